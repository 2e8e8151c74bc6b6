"""Tensors to and from files: `save_file`, `load_file` and `safe_open`,
as in ``safetensors.torch``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import BinaryIO

import torch

from wcodec.files.atomic import AnyPath
from wcodec.files.file import File
from wcodec.files.saving import tensors_to_bytes, write_tensors
from wcodec.planner.options import EncodeOptions
from wcodec.torch.dtypes import take
from wcodec.torch.loading.reader import Device, Reader, TensorSlice


def save_file(
    tensors: Mapping[str, torch.Tensor],
    path: AnyPath,
    metadata: dict[str, str] | None = None,
    options: EncodeOptions | None = None,
    base: AnyPath | Mapping[str, torch.Tensor] | File | None = None,
    *,
    fsync: bool = True,
) -> int:
    """Write tensors to a ``.wcodec`` file. Tensors that are the same, such as tied weights,
    are stored once.

    Tensors may share memory in any way: each is stored as what it shows. One at a time is copied to
    the host or made contiguous, where it is not.

    Parameters
    ----------
    tensors
        By name. Gradients are not kept, nor what subclasses add to the values: a subclass with
        memory of its own, such as one of ``torch.nn.Parameter``, is stored as the plain tensor.
        float4 is stored with a safetensors header that says so.
    metadata, options, base, fsync
        As of `wcodec.save_file`; the base may be an open file too, of `wcodec.open`.

    Returns
    -------
    Bytes of the file.

    Raises
    ------
    EncodeError
        ``unsupported_dtype``: also of sparse, nested, quantised and ``meta`` tensors, and those of
        subclasses that wrap others (``__torch_dispatch__``); and as `wcodec.save_file`. Nothing is
        left behind.
    DecodeError
        The base is not well-formed.
    """
    return write_tensors(tensors, take, path, metadata, options, base, fsync)


def load_file(
    path: AnyPath | BinaryIO,
    device: Device = "cpu",
    base: AnyPath | None = None,
    names: Sequence[str] | None = None,
    *,
    max_nbytes: int | None = None,
    max_memory: int | None = None,
) -> dict[str, torch.Tensor]:
    """Tensors of a ``.wcodec`` file by name, in the file's order; each in memory of its own.

    On the CPU they are decoded where they stay. On a GPU, records go there as they are and are
    decoded there, unless another backend than ``"cuda"`` was chosen (`wcodec.set_backend`). For
    other devices tensors are decoded on the CPU and moved.

    Parameters
    ----------
    path
        A path, or a seekable binary file object, such as one of ``fsspec``.
    device
        As `torch.device` takes it.
    base
        The file that this one holds differences from, if it does; see `wcodec.open`.
    names
        Those wanted, in this order; ``None`` for all.
    max_nbytes, max_memory
        As of `wcodec.open`: limits of what the file may take.

    Raises
    ------
    BackendUnavailable
        The device is a GPU, and PyTorch for CUDA, CuPy or a driver is missing.
    DecodeError
        With the file's name and the tensor's; ``unsupported_coder`` also of a dtype that PyTorch
        does not have, such as float6.
    KeyError
        The file has no tensor of a name.
    """
    limits = {"max_nbytes": max_nbytes, "max_memory": max_memory}
    with Reader(path, device, base, **limits) as reader:
        return reader.tensors(names)


def save(
    tensors: Mapping[str, torch.Tensor],
    metadata: dict[str, str] | None = None,
    options: EncodeOptions | None = None,
    base: AnyPath | Mapping[str, torch.Tensor] | None = None,
) -> bytes:
    """The bytes of the file that `save_file` writes: for `load_file` by way of ``io.BytesIO``, and
    for `wcodec.apply`.

    Parameters
    ----------
    tensors, metadata, options, base
        As of `save_file`.

    Raises
    ------
    EncodeError, DecodeError
        As `save_file`.
    """
    return tensors_to_bytes(tensors, take, metadata, options, base)


class safe_open:  # noqa: N801 (its name in safetensors)
    """A ``.wcodec`` file open for reading; only the index is read now. As
    ``safetensors.safe_open``.

    Parameters
    ----------
    filename, device, base, max_nbytes, max_memory
        As of `load_file`.
    framework
        ``"pt"``; `wcodec.open` gives NumPy arrays.

    Raises
    ------
    BackendUnavailable, DecodeError
        As `load_file`.
    ValueError
        Another framework.

    Examples
    --------
    >>> with safe_open("model.wcodec", "pt") as f:
    ...     rows = f.get_slice("embed.weight")[:64]
    """

    def __init__(
        self,
        filename: AnyPath | BinaryIO,
        framework: str = "pt",
        device: Device = "cpu",
        base: AnyPath | None = None,
        *,
        max_nbytes: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        if framework not in ("pt", "torch", "pytorch"):
            raise ValueError(
                f"framework {framework!r}: wcodec.torch gives tensors of PyTorch ('pt'); "
                "wcodec.open gives NumPy arrays"
            )
        limits = {"max_nbytes": max_nbytes, "max_memory": max_memory}
        self._reader = Reader(filename, device, base, **limits)

    def __enter__(self) -> safe_open:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def keys(self) -> list[str]:
        """Names of the tensors, in the file's order."""
        return self._reader.keys()

    def offset_keys(self) -> list[str]:
        """Names of the tensors in the order in which they lie in the file: the same."""
        return self._reader.keys()

    def metadata(self) -> dict[str, str]:
        """Texts kept with the tensors."""
        return self._reader.file.metadata()

    def get_tensor(self, name: str) -> torch.Tensor:
        """Decode a tensor, checked against its CRC-32.

        Raises
        ------
        KeyError, DecodeError
        """
        return self._reader.tensor(name)

    def get_tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name. Raises as `get_tensor`."""
        return self._reader.tensors()

    def get_slice(self, name: str) -> TensorSlice:
        """A tensor to take parts of: ``f.get_slice(name)[64:128]`` reads and decodes the segments
        that it touches.

        Raises
        ------
        KeyError
        """
        return self._reader.slice(name)
