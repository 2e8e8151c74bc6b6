"""wcodec for PyTorch: files to and from tensors, checkpoints, shards of tensor parallelism, and weights that stay compressed.

Needs the extra ``wcodec[torch]``.

>>> import wcodec.torch
>>> wcodec.torch.save_file(model.state_dict(), "model.wcodec")
>>> model.load_state_dict(wcodec.torch.load_file("model.wcodec", device="cuda"))
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401 (the real one: imports are absolute)
except ImportError as e:
    raise ImportError("wcodec.torch needs PyTorch: pip install 'wcodec[torch]'") from e

from wcodec.directories import encode_safetensors_to_wcodec
from wcodec.torch.checkpoint import WCodecCheckpoint, load_wcodec_checkpoint
from wcodec.torch.compressed import CompressedTensor
from wcodec.torch.files import load_file, safe_open, save_file
from wcodec.torch.layers import WCodecLinear
from wcodec.torch.models import compress_model, decompress_model, load_compressed, model_memory
from wcodec.torch.scratch import release_scratch, scratch_nbytes
from wcodec.torch.sharding import load_shard

__all__ = [
    "CompressedTensor",
    "WCodecCheckpoint",
    "WCodecLinear",
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
    "save_file",
    "scratch_nbytes",
]
