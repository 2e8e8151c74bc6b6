"""What vLLM calls in each of its processes; see `wcodec.sync.vllm`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

NAME: Final = "wcodec"  #: of the backend
_ENGINES: Final = "wcodec.sync.vllm"  #: imported when one is made


def register() -> None:
    """Make the backend known, once in a process. An older vLLM has no such
    backends, or only those of workers."""
    if find_spec("vllm.distributed.weight_transfer") is None:
        return
    from vllm.distributed.weight_transfer import factory

    for registry, engine in (
        ("WeightTransferEngineFactory", "WCodecWeightTransferEngine"),
        ("WeightTransferTrainerFactory", "WCodecTrainerWeightTransferEngine"),
    ):
        if (known := getattr(factory, registry, None)) is not None:
            known.register_engine(NAME, _ENGINES, engine)
