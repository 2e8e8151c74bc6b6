"""wcodec for PyTorch: files to and from tensors, checkpoints, shards of tensor parallelism, and
weights that stay compressed.

Needs the extra ``wcodec[torch]``.

>>> import wcodec.torch
>>> wcodec.torch.save_file(model.state_dict(), "model.wcodec")
>>> model.load_state_dict(wcodec.torch.load_file("model.wcodec", device="cuda"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    import torch as _torch  # noqa: F401 (the real one: imports are absolute)
except ImportError as e:
    raise ImportError("wcodec.torch needs PyTorch: pip install 'wcodec[torch]'") from e

from wcodec.directories.encoding import encode_safetensors_to_wcodec
from wcodec.torch.loading.checkpoint import WCodecCheckpoint, load_wcodec_checkpoint
from wcodec.torch.loading.files import load_file, safe_open, save, save_file
from wcodec.torch.loading.sharding import load_shard
from wcodec.torch.resident import operators as _operators  # noqa: F401 (registers them)
from wcodec.torch.resident.compressed import CompressedTensor
from wcodec.torch.resident.layers import WCodecLinear
from wcodec.torch.resident.models import (
    compress_model,
    decompress_model,
    load_compressed,
    model_memory,
)
from wcodec.torch.resident.scratch import release_scratch, scratch_nbytes

if TYPE_CHECKING:
    from wcodec.torch.checkpoint import WCodecStorageReader, WCodecStorageWriter

__all__ = [
    "CompressedTensor",
    "WCodecCheckpoint",
    "WCodecLinear",
    "WCodecStorageReader",
    "WCodecStorageWriter",
    "compress_model",
    "decompress_model",
    "encode_safetensors_to_wcodec",
    "load_compressed",
    "load_file",
    "load_shard",
    "load_wcodec_checkpoint",
    "model_memory",
    "release_scratch",
    "safe_open",
    "save",
    "save_file",
    "scratch_nbytes",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """What needs ``torch.distributed.checkpoint``, which is slow to import: when it is used."""
        if name not in ("WCodecStorageReader", "WCodecStorageWriter"):
            raise AttributeError(f"module 'wcodec.torch' has no attribute {name!r}")
        from importlib import import_module

        found = globals()[name] = getattr(import_module("wcodec.torch.checkpoint"), name)
        return found
