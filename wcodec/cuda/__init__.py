"""Tensors decoded straight into the memory of GPUs.

Needs the extra ``wcodec[cuda]``; decoding needs an NVIDIA GPU.

>>> import wcodec.cuda
>>> tensors = wcodec.cuda.load_file("model.wcodec")
>>> weight = torch.from_dlpack(tensors["weight"])  # no copy

The host reads and checks the file's index;
records go to the device as they are, are decoded there, and checked there.
"""

from wcodec.cuda.loader import (
    DeviceTensor,
    Loader,
    decode,
    decode_async,
    load_file,
    shared_loader,
)

__all__ = ["DeviceTensor", "Loader", "decode", "decode_async", "load_file", "shared_loader"]
