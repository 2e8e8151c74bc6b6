"""Hooks for accelerate's ``save_state`` and ``load_state``."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from wcodec.files.atomic import AnyPath
from wcodec.planner.options import EncodeOptions
from wcodec.torch.checkpoint import (
    METADATA,
    WCodecStorageReader,
    WCodecStorageWriter,
    quiet_if_alone,
)

FOLDER: Final = "wcodec"


class AccelerateHooks:
    """Has accelerate's ``save_state`` store the weights of all models in a directory ``wcodec`` in
    its own, and ``load_state`` load them from there. All else accelerate saves as ever, also the
    state of optimizers.

    What several processes have the same copy of, rank 0 writes, as accelerate would; shards are
    written by their ranks. Where accelerate writes models itself, by FSDP or DeepSpeed, the hooks
    do nothing, with a warning.

    Parameters
    ----------
    base
        The directory of an earlier ``save_state`` with these hooks, to store differences from,
        which is needed again to load them; ``None`` to store all. It may be set between saves.
    options
        How files are encoded; see `wcodec.EncodeOptions`.

    Raises
    ------
    CheckpointException
        Of ``torch.distributed.checkpoint``, from ``save_state`` and ``load_state``, with an error
        for each rank: `EncodeError` or `DecodeError` as of `wcodec.torch.WCodecStorageWriter`.
        A directory that holds weights already is refused (``output_exists``).
    FileNotFoundError
        From ``load_state``: the directory has none.

    Examples
    --------
    >>> hooks = wcodec.transformers.AccelerateHooks()
    >>> accelerator.register_save_state_pre_hook(hooks.save)
    >>> accelerator.register_load_state_pre_hook(hooks.load)
    >>> accelerator.save_state("out/1")
    >>> hooks.base = "out/1"
    >>> accelerator.save_state("out/2")
    """

    def __init__(
        self, *, base: AnyPath | None = None, options: EncodeOptions | None = None
    ) -> None:
        self.base, self.options = base, options

    def save(
        self,
        models: list[torch.nn.Module],
        weights: list[dict[str, torch.Tensor]],
        output_dir: AnyPath,
    ) -> None:
        """For ``register_save_state_pre_hook``. Raises as the class does."""
        if len(weights) != len(models):
            warnings.warn(
                "accelerate has written the models itself, by FSDP or DeepSpeed: the hooks of "
                "wcodec leave them; wcodec.torch.WCodecStorageWriter writes sharded checkpoints",
                stacklevel=2,
            )
            return
        base = None if self.base is None else Path(self.base, FOLDER)
        writer = WCodecStorageWriter(Path(output_dir, FOLDER), base=base, options=self.options)
        planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)
        with quiet_if_alone():
            dcp.save(_states(models), storage_writer=writer, planner=planner)
        weights.clear()

    def load(self, models: list[torch.nn.Module], input_dir: AnyPath) -> None:
        """For ``register_load_state_pre_hook``. Raises as the class does."""
        if not models:
            return
        path = Path(input_dir, FOLDER)
        if not (path / METADATA).is_file():
            raise FileNotFoundError(
                errno.ENOENT,
                "no weights are stored here: remove the hook to load those that accelerate saved",
                str(path),
            )
        states = _states(models)
        with quiet_if_alone():
            dcp.load(states, storage_reader=WCodecStorageReader(path))
        for i, model in enumerate(models):
            set_model_state_dict(model, states[str(i)])
        models.clear()


def _states(models: list[torch.nn.Module]) -> dict[str, Any]:
    """Their states by number, under the names that parameters have without wrappers."""
    return {str(i): get_model_state_dict(model) for i, model in enumerate(models)}
