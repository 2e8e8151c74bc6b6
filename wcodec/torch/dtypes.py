"""PyTorch's dtypes and those of the format, and tensors as NumPy arrays and back without a copy.
Spec: chapter 18.
"""

from __future__ import annotations

import sys
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.parameter import is_lazy

from wcodec.errors import DecodeError, EncodeError, within
from wcodec.files.safetensors_header import Stated
from wcodec.files.saving import Taken, taken
from wcodec.reference.planes import DTYPES, OPAQUE, DType
from wcodec.reference.tensors import TensorRecord

if sys.byteorder != "little":
    raise ImportError("wcodec.torch needs a little-endian machine")

_OF_ROW: Final[dict[str, torch.dtype]] = {
    d.name: torch.uint8 if d.name == "opaque" else getattr(torch, d.name) for d in DTYPES
}
_ROWS: Final[dict[torch.dtype, DType]] = {_OF_ROW[d.name]: d for d in DTYPES[1:]}
#: dtypes of a byte that holds several elements, which the format has no id for, by their names in
#: safetensors; PyTorch has float4 from 2.8 on
_PACKED: Final[dict[str, torch.dtype]] = {
    name: getattr(torch, dtype)
    for name, dtype in {"F4": "float4_e2m1fn_x2"}.items()
    if hasattr(torch, dtype)
}
_STATED: Final = {dtype: name for name, dtype in _PACKED.items()}
_ELEMENTS: Final = 2  #: of a packed dtype in a byte


class Form(NamedTuple):
    """Dtype and shape of a tensor in PyTorch."""

    dtype: torch.dtype
    shape: torch.Size


def torch_dtype(dtype: DType) -> torch.dtype:
    """PyTorch's dtype of a row of the registry; opaque bytes are uint8."""
    return _OF_ROW[dtype.name]


def form_of(t: TensorRecord, stated: Stated | None) -> Form:
    """Dtype and shape of a tensor of a file, as safetensors gives them: of float4, two elements are
    one of PyTorch's.

    Parameters
    ----------
    stated
        What the header says of opaque bytes; see `wcodec.files.file.File`.

    Raises
    ------
    DecodeError
        ``unsupported_coder``: PyTorch has no such dtype, or not in this shape.
    """
    if stated is None:
        return Form(torch_dtype(t.dtype), torch.Size(t.shape))
    if stated.dtype not in _PACKED:
        raise DecodeError(
            "unsupported_coder",
            f"PyTorch {torch.__version__} has no dtype for {stated.dtype}, as the file's header "
            "calls it: wcodec.open(path).get_tensor gives the bytes",
            tensor=t.name,
        )
    try:
        return Form(_PACKED[stated.dtype], torch.Size(stated.packed_shape))
    except ValueError as e:
        raise DecodeError("unsupported_coder", str(e), tensor=t.name) from None


def formed(tensor: torch.Tensor, form: Form) -> torch.Tensor:
    """A tensor as it was decoded, as what it is: a view."""
    return tensor if tensor.dtype is form.dtype else tensor.view(form.dtype).view(form.shape)


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


def has_row(dtype: torch.dtype) -> bool:
    """Whether the format has an id for one of PyTorch's dtypes."""
    return dtype in _ROWS


# ---- from tensors --------------------------------------------------------------------------------
def plain_of(tensor: Any, name: str | None) -> torch.Tensor:
    """A tensor that has values of its own as one of the class `torch.Tensor`, without its graph.

    Raises
    ------
    EncodeError
        ``unsupported_dtype``: it has none, or more than can be stored.
    """

    def refuse(what: str, to_do: str) -> EncodeError:
        return EncodeError(
            "unsupported_dtype", f"{what} cannot be stored as it is: {to_do}", tensor=name
        )

    kind = type(tensor)
    if not isinstance(tensor, torch.Tensor):
        raise refuse(
            f"a {kind.__name__}", "give a torch.Tensor; wcodec.save_file takes NumPy arrays"
        )
    with torch._C.DisableTorchFunctionSubclass():
        if is_lazy(tensor):
            raise refuse(f"an {kind.__name__}", "it has no shape yet; run the model once")
        if tensor.is_nested:
            raise refuse("a nested tensor", "give what .unbind() makes, each under its name")
        if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
            raise refuse(
                f"a {kind.__name__}",
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
        if hasattr(tensor, "has_names") and tensor.has_names():  # up to PyTorch 2.12
            raise refuse(
                "a tensor with named dimensions",
                "give tensor.rename(None), and keep the names in the metadata",
            )
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            raise refuse("a tensor inside of a transform of torch.func", "store what comes of it")
        plain: torch.Tensor = tensor.as_subclass(torch.Tensor).detach()
        return plain


def _flat_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """The bytes of a plain tensor: its own memory, where it is contiguous and on the CPU."""
    plain = tensor.resolve_conj().resolve_neg()
    if plain._is_zerotensor():  # zeros without memory, as of gradients
        plain = plain.clone()
    array: NDArray[np.uint8] = plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return array


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
        ``unsupported_dtype``: a dtype that the format does not have; a sparse, nested, quantised or
        ``meta`` tensor, or one of a subclass that wraps others.
    """
    plain = plain_of(_decoded(tensor), name)
    with within(tensor=name):
        row = row_of(plain.dtype)
    return _flat_bytes(plain).view(row.numpy).reshape(tuple(plain.shape))


def _decoded(tensor: Any) -> Any:
    """A tensor, dense if it is held compressed."""
    if type(tensor) in (torch.Tensor, torch.nn.Parameter):
        return tensor
    decode = getattr(type(tensor), "decode", None)
    return tensor if decode is None else decode(tensor)


def take(tensor: torch.Tensor, name: str) -> Taken:
    """A tensor as the format takes it: as `to_array`, and float4 as opaque bytes."""
    plain = plain_of(_decoded(tensor), name)
    stated = _STATED.get(plain.dtype)
    if stated is None:
        return taken(to_array(plain, name))
    flat = _flat_bytes(plain.view(torch.uint8))  # PyTorch does not compute with float4
    if not plain.dim():
        raise EncodeError(
            "unsupported_dtype",
            f"{plain.dtype} without dimensions has no shape in safetensors: give tensor.view(1)",
            tensor=name,
        )
    shape = (*plain.shape[:-1], plain.shape[-1] * _ELEMENTS)
    return Taken(flat, OPAQUE, flat.shape, Stated(stated, shape, 8 // _ELEMENTS))


# ---- to tensors ----------------------------------------------------------------------------------
def from_array(array: NDArray[Any], dtype: DType) -> torch.Tensor:
    """The tensor in the memory of an array: C-contiguous, writeable,
    of the dtype's own words or NumPy dtype.
    """
    flat = torch.from_numpy(array.reshape(-1).view(np.uint8))
    return flat.view(torch_dtype(dtype)).view(array.shape)


def joined(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    """Contiguous tensors, one after another in a dimension; of float4 too, which PyTorch does not
    join itself.
    """
    return torch.cat([p.view(torch.uint8) for p in parts], dim).view(parts[0].dtype)


def out_array(tensor: torch.Tensor, dtype: DType) -> NDArray[Any]:
    """The memory of a new CPU tensor as an array to decode into."""
    flat: NDArray[Any] = tensor.reshape(-1).view(torch.uint8).numpy()
    return flat.view(dtype.numpy).reshape(tuple(tensor.shape))
