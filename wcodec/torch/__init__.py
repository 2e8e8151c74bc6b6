"""wcodec for PyTorch: files to and from tensors, checkpoints, shards of tensor parallelism. Needs the extra ``wcodec[torch]``.

>>> import wcodec.torch
>>> wcodec.torch.save_file(model.state_dict(), "model.wcodec")
>>> model.load_state_dict(wcodec.torch.load_file("model.wcodec", device="cuda"))
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401 (the real one: imports are absolute)
except ImportError as e:
    raise ImportError("wcodec.torch needs PyTorch: pip install 'wcodec[torch]'") from e

from wcodec.torch.checkpoint import WCodecCheckpoint, load_wcodec_checkpoint
from wcodec.torch.files import load_file, safe_open, save_file

__all__ = ["WCodecCheckpoint", "load_file", "load_wcodec_checkpoint", "safe_open", "save_file"]
