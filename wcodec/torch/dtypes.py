"""PyTorch's dtypes and those of the format, and tensors as NumPy arrays and back without a copy.
Spec: chapter 18.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from wcodec.errors import EncodeError, within
from wcodec.reference.planes import DTYPES, DType

if sys.byteorder != "little":
    raise ImportError("wcodec.torch needs a little-endian machine")

_OF_ROW: Final[dict[str, torch.dtype]] = {
    d.name: torch.uint8 if d.name == "opaque" else getattr(torch, d.name) for d in DTYPES
}
_ROWS: Final[dict[torch.dtype, DType]] = {_OF_ROW[d.name]: d for d in DTYPES[1:]}


def torch_dtype(dtype: DType) -> torch.dtype:
    """PyTorch's dtype of a row of the registry; opaque bytes are uint8."""
    return _OF_ROW[dtype.name]


def row_of(dtype: torch.dtype) -> DType:
    """Row of the registry of one of PyTorch's dtypes.

    Raises
    ------
    EncodeError
        ``unsupported_dtype``
    """
    row = _ROWS.get(dtype)
    if row is None:
        raise EncodeError(
            "unsupported_dtype",
            f"{dtype} has no id in the format; store its bytes: tensor.view(torch.uint8)",
        )
    return row


def _check(tensor: torch.Tensor, name: str | None) -> None:
    """Refuse what is not a plain tensor with values of its own."""

    def refuse(what: str, to_do: str) -> EncodeError:
        return EncodeError(
            "unsupported_dtype", f"{what} cannot be stored as it is: {to_do}", tensor=name
        )

    if not isinstance(tensor, torch.Tensor):
        raise refuse(
            f"a {type(tensor).__name__}", "give a torch.Tensor; wcodec.save_file takes NumPy arrays"
        )
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise refuse(
            f"a {type(tensor).__name__}",
            "give the plain tensors that it is made of, or what its .full_tensor() makes",
        )
    if tensor.is_meta:
        raise refuse("a tensor on the device 'meta'", "it has no values; load them first")
    if tensor.layout is not torch.strided:
        raise refuse(
            f"a tensor of layout {tensor.layout}",
            "give tensor.to_dense(), or its indices and values",
        )
    if tensor.is_quantized:
        raise refuse(
            f"a quantised tensor ({tensor.dtype})",
            "give tensor.int_repr(), and keep scales and zero points beside it",
        )


def to_array(tensor: torch.Tensor, name: str | None = None) -> NDArray[Any]:
    """The values of a tensor as an array of the same dtype and shape, as `wcodec.encode` takes it.

    Without a copy, if the tensor is contiguous and on the CPU: then both have one memory. bfloat16
    and float8 are those of ``ml_dtypes``.

    Parameters
    ----------
    name
        What errors call the tensor.

    Raises
    ------
    EncodeError
        ``unsupported_dtype``: a dtype that the format does not have; a sparse, quantised or
        ``meta`` tensor, or one of a subclass.
    """
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        decode = getattr(type(tensor), "decode", None)  # of a compressed one
        tensor = tensor if decode is None else decode(tensor)
    _check(tensor, name)
    with within(tensor=name):
        row = row_of(tensor.dtype)
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    array: NDArray[Any] = plain.reshape(-1).view(torch.uint8).numpy()
    return array.view(row.numpy).reshape(tuple(tensor.shape))


def from_array(array: NDArray[Any], dtype: DType) -> torch.Tensor:
    """The tensor in the memory of an array: C-contiguous, writeable,
    of the dtype's own words or NumPy dtype.
    """
    flat = torch.from_numpy(array.reshape(-1).view(np.uint8))
    return flat.view(torch_dtype(dtype)).view(array.shape)


def out_array(tensor: torch.Tensor, dtype: DType) -> NDArray[Any]:
    """The memory of a new CPU tensor as an array to decode into."""
    flat: NDArray[Any] = tensor.reshape(-1).view(torch.uint8).numpy()
    return flat.view(dtype.numpy).reshape(tuple(tensor.shape))
