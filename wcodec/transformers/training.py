"""Checkpoints of transformers' `Trainer`, smaller: `WCodecCallback` stores their large files when
they are saved, `restore_checkpoint` writes them again.

``checkpoint-N/wcodec.json`` says where the files are stored: in ``checkpoint-N/wcodec``, or with
differences in ``_wcodec/N`` beside the checkpoint, for the bases of others outlive it. Each is a
checkpoint of `wcodec.torch.WCodecStorageWriter`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from wcodec.errors import DecodeError, EncodeError, within
from wcodec.files.atomic import AnyPath, atomic_output, sync_folder
from wcodec.files.file import MAX_BASES, File
from wcodec.planner.options import EncodeOptions
from wcodec.torch.checkpoint import (
    METADATA,
    WCodecStorageWriter,
    base_path,
    opened,
    quiet_if_alone,
)
from wcodec.transformers.checkpoint_files import SAFETENSORS, is_stored, pack, same, unpack

POINTER: Final = "wcodec.json"
OUTSIDE: Final = "_wcodec"  #: what Trainer sends to the hub leaves out names with ``_``
INSIDE: Final = "wcodec"
OPTIMIZER: Final = "optimizer.pt"
_FILE: Final = "__0_0.wcodec"  #: of a single rank
#: a name, and how often there was one before
_PLACE: Final = re.compile(rf"(\d+|{INSIDE})(?:-(\d+))?")
_SHARDED: Final = ("pytorch_model_fsdp*", "optimizer_[0-9]*", "global_step*")


class WCodecCallback(TrainerCallback):
    """Makes the checkpoints that `Trainer` saves smaller: what is in their ``*.safetensors`` and
    ``optimizer.pt`` is stored, losslessly, and these files are removed. `restore_checkpoint` writes
    them again, before training goes on from such a checkpoint.

    The process of rank 0 does it, while the others wait for it in their next step. It reads back
    what it stored before it removes anything: a checkpoint is plain, or can be restored, whenever
    it is interrupted. Checkpoints of FSDP and DeepSpeed stay as they are, with a warning.

    With ``load_best_model_at_end``, a checkpoint that is the best one when it is saved keeps its
    ``*.safetensors``, for Trainer reads them in the end.

    Parameters
    ----------
    deltas
        Whether to store what has changed since the save before, in ``_wcodec`` in the output
        directory. This pays where many weights stay the same, as frozen ones do, or bfloat16 ones
        at a low learning rate. Else, differences are hardly smaller, and as they need their bases,
        more than `save_total_limit` saves stay on the disk.
    full_every
        Each so-manyth is stored in full all the same: 1 to 8. Restoring reads so many at most.
    options
        How files are encoded; see `wcodec.EncodeOptions`.

    Raises
    ------
    EncodeError
        ``bad_option``: `full_every`; when training begins, with ``hub_strategy`` ``"checkpoint"``
        or ``"all_checkpoints"``, which send files in the background, in a search for
        hyperparameters, and where the best model so far is to be loaded and has to be restored
        first. When a checkpoint is saved, ``bad_source``: a file cannot be read. It stays plain.
    DecodeError, OSError
        When a checkpoint is saved: the save before is damaged, or the disk is full. This one stays
        plain.

    Examples
    --------
    >>> trainer = Trainer(model, args, callbacks=[WCodecCallback()])
    >>> trainer.train()
    """

    def __init__(
        self,
        *,
        deltas: bool = False,
        full_every: int = MAX_BASES,
        options: EncodeOptions | None = None,
    ) -> None:
        if not 1 <= full_every <= MAX_BASES:
            raise EncodeError("bad_option", f"full_every is {full_every}, not 1 to {MAX_BASES}")
        self.deltas, self.full_every, self.options = deltas, full_every, options
        self._has_warned = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse what would not work. Raises `EncodeError`."""
        if args.push_to_hub and args.hub_strategy in ("checkpoint", "all_checkpoints"):
            raise EncodeError(
                "bad_option",
                f"hub_strategy={str(args.hub_strategy.value)!r} sends files of checkpoints in the "
                "background, and WCodecCallback removes them: take 'every_save' or 'end'",
            )
        if state.is_hyper_param_search:
            raise EncodeError(
                "bad_option", "WCodecCallback does not find the checkpoints of a search"
            )
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        if best is not None and _missing(Path(best), SAFETENSORS):
            raise EncodeError(
                "bad_option",
                f"load_best_model_at_end may read {best!r}, which is compressed: call "
                f"wcodec.transformers.restore_checkpoint({best!r}) first",
            )

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Store the checkpoint that was saved. Raises as the class does."""
        if not state.is_world_process_zero:
            return
        checkpoint = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if any(path for pattern in _SHARDED for path in checkpoint.glob(pattern)):
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"{str(checkpoint)!r} has shards of FSDP or DeepSpeed: WCodecCallback leaves it"
                    " as it is; wcodec.torch.WCodecStorageWriter writes sharded checkpoints",
                    stacklevel=2,
                )
            return
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        is_best = best is not None and Path(best).name == checkpoint.name
        names = [name for name in _files(checkpoint) if not (is_best and name != OPTIMIZER)]
        if names:
            self._store(checkpoint, names)

    def _store(self, checkpoint: Path, names: list[str]) -> None:
        """Store files of a checkpoint, and remove them and what nothing needs any more."""
        checkpoint = Path(os.path.realpath(checkpoint))
        tensors = dict[str, torch.Tensor]()
        for name in names:
            tensors[name], others = pack(checkpoint / name, name)
            tensors.update(others)
        if self.deltas:
            folder = checkpoint.parent / OUTSIDE
            place = _free(folder, checkpoint.name.rpartition("-")[2])
            base = _base(place, self.full_every)
        else:
            place, base = _free(checkpoint, INSIDE), None
        with _unwrapped(), quiet_if_alone():
            writer = WCodecStorageWriter(place, base=base, options=self.options)
            dcp.save(tensors, storage_writer=writer, no_dist=True)
        with opened(place / _FILE) as (reader, _):
            for name, tensor in tensors.items():
                if not same(tensor, reader.tensor(name)):
                    raise EncodeError("changed", "the file was written to", tensor=name)
        sync_folder(place.parent)
        sync_folder(checkpoint.parent)
        where = {"stored": Path(os.path.relpath(place, checkpoint)).as_posix(), "files": names}
        with atomic_output(checkpoint / POINTER, overwrite=True) as f:
            f.write(json.dumps(where, indent=1).encode() + b"\n")
        del tensors, others  # mapped from the files
        for name in names:
            (checkpoint / name).unlink()
        for path in _places(checkpoint, INSIDE):
            if path != place:
                shutil.rmtree(path)
        _prune(checkpoint.parent)


def restore_checkpoint(checkpoint: AnyPath) -> str:
    """Write the files of a checkpoint again that `WCodecCallback` has stored. What is stored stays
    too, until `Trainer` removes the checkpoint. One that is plain is left as it is.

    Files of safetensors have the bytes that they had. ``optimizer.pt`` holds the same, with tensors
    on the CPU, where Trainer moves them from; tensors that shared memory have their own. Nothing
    that is read runs code.

    Of several processes, one calls this first: ``with args.main_process_first(local=False):``.

    Parameters
    ----------
    checkpoint
        The directory.

    Returns
    -------
    Its path, to resume from.

    Raises
    ------
    EncodeError
        ``output_exists``: some files are there, and one is not the one that was stored.
    DecodeError
        What is stored is damaged, or differs from something that is missing.
    FileNotFoundError
        There is no such directory, or not the one that the files are stored in.

    Examples
    --------
    >>> trainer.train(resume_from_checkpoint=restore_checkpoint("out/checkpoint-500"))
    """
    path = Path(checkpoint)
    if not path.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such checkpoint", str(path))
    missing = _missing(path)
    if not missing:
        return os.fspath(checkpoint)
    place, names = _pointer(path)
    if not (place / _FILE).is_file():
        raise FileNotFoundError(
            errno.ENOENT,
            f"{str(path)!r} is stored elsewhere, and that is not there: put it where it was beside "
            "the checkpoint, and restore a checkpoint before you move it",
            str(place),
        )
    time = path.stat()
    with opened(place / _FILE) as (reader, _):
        for name in names:
            if name not in missing and not is_stored(path / name, name, reader.tensor):
                raise EncodeError(
                    "output_exists",
                    f"{str(path / name)!r} is another file than the one that was stored with "
                    f"{missing[0]!r}: move it away to have all files as they were stored",
                )
        for name in missing:
            unpack(path / name, name, reader.tensor)
    # Trainer removes checkpoints by the times of their directories
    os.utime(path, ns=(time.st_atime_ns, time.st_mtime_ns))
    return os.fspath(checkpoint)


def _files(checkpoint: Path) -> list[str]:
    """Names of the large files of a checkpoint, and of directories of adapters in it."""
    found = [*checkpoint.glob(f"*{SAFETENSORS}"), *checkpoint.glob(f"*/*{SAFETENSORS}")]
    names = sorted(path.relative_to(checkpoint).as_posix() for path in found)
    return names + [OPTIMIZER] * (checkpoint / OPTIMIZER).is_file()


def _pointer(checkpoint: Path) -> tuple[Path, list[str]]:
    """Where the files of a checkpoint are stored, and their names.

    Raises
    ------
    DecodeError
        ``bad_value``
    """
    path = checkpoint / POINTER
    try:
        where = json.loads(path.read_bytes())
        stored, names = str(where["stored"]), [str(name) for name in where["files"]]
    except (ValueError, KeyError, TypeError):
        raise DecodeError("bad_value", f"{str(path)!r} does not say where files are") from None
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DecodeError("bad_value", f"{str(path)!r} names {name!r}, outside its directory")
    return Path(os.path.realpath(Path(os.path.realpath(checkpoint), stored))), names


def _missing(checkpoint: Path, suffix: str = "") -> list[str]:
    """Names of files that are stored and not there. Raises as `_pointer`."""
    if not (checkpoint / POINTER).is_file():
        return []
    _, names = _pointer(checkpoint)
    return [n for n in names if n.endswith(suffix) and not (checkpoint / n).exists()]


# ---- directories that files are stored in --------------------------------------------------------
def _order(place: Path) -> tuple[int, int]:
    """The step, and how often it was stored before."""
    match = _PLACE.fullmatch(place.name)
    assert match is not None
    return int(match[1]) if match[1] != INSIDE else 0, int(match[2] or 0)


def _places(folder: Path, name: str | None = None) -> list[Path]:
    """Directories that files are stored in, or those of one name, in their order."""
    found = [p for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
    return sorted(
        (p for p in found if (match := _PLACE.fullmatch(p.name)) and name in (None, match[1])),
        key=_order,
    )


def _free(folder: Path, name: str) -> Path:
    """A new one: a checkpoint that is saved again may be the base of others as it was."""
    there = _places(folder, name)
    return folder / (f"{name}-{_order(there[-1])[1] + 1}" if there else name)


def _base(place: Path, full_every: int) -> Path | None:
    """What to store differences from: the save before, unless a full one is due. Raises
    `DecodeError`.
    """
    for there in reversed(_places(place.parent)):
        is_whole = (there / METADATA).is_file() and (there / _FILE).is_file()
        if is_whole and _order(there)[0] < _order(place)[0]:
            with within(there), opened(there / _FILE) as (_, n_bases):
                return there if n_bases + 1 < full_every else None
    return None


def _prune(run: Path) -> None:
    """Remove what neither a checkpoint needs nor what is stored of one. Raises `DecodeError`."""
    needed = set[Path]()
    for path in run.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{POINTER}"):
        place, _ = _pointer(path.parent)
        while place not in needed and (place / _FILE).is_file():
            needed.add(place)
            with File(place / _FILE) as f:
                there = base_path(f)
            if there is not None:
                place = Path(os.path.realpath(there.parent))
    for place in reversed(_places(run / OUTSIDE)):  # differences before their bases
        if place not in needed:
            shutil.rmtree(place)


@contextmanager
def _unwrapped() -> Iterator[None]:
    """The error of a single process, of which DCP makes one of its own."""
    try:
        yield
    except CheckpointException as e:
        error, _ = e.failures[0]
        raise error from None
