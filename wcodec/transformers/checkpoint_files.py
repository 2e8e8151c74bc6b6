"""The large files of a training checkpoint as tensors by name and a few bytes, and back: what
`Trainer` writes as ``*.safetensors`` and ``optimizer.pt``.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from safetensors import safe_open

from wcodec.codec.opening import open_source
from wcodec.errors import EncodeError, within
from wcodec.files.atomic import atomic_output
from wcodec.files.safetensors_header import parse_safetensors_header, read_safetensors_header
from wcodec.torch.dtypes import has_row

SAFETENSORS: Final = ".safetensors"
Read: TypeAlias = Callable[[str], torch.Tensor]  #: a stored tensor by its name


class Packed(NamedTuple):
    """What is in a file.

    Attributes
    ----------
    rest
        Bytes: of a safetensors file its header; of another one all but its tensors, as `torch.save`
        writes it with tensors on the device ``"meta"`` in their places.
    tensors
        By name, mapped from the file. Those of a dtype that the format has no id for are bytes.
    """

    rest: torch.Tensor
    tensors: dict[str, torch.Tensor]


def pack(path: Path, name: str) -> Packed:
    """Read a file.

    Parameters
    ----------
    name
        What the names of its tensors begin with.

    Raises
    ------
    EncodeError
        ``bad_source``: it is damaged, or ``torch.load(weights_only=True)`` does not read it.
    """
    with within(path):
        if path.suffix == SAFETENSORS:
            return _pack_safetensors(path, name)
        return _pack_optimizer(path, name)


def unpack(path: Path, name: str, read: Read) -> None:
    """Write a file again, atomically. A safetensors file gets the bytes that it had; another one
    holds the same, on the CPU.

    Raises
    ------
    EncodeError
        ``output_exists``
    DecodeError, KeyError
        As `read` does.
    """
    rest = read(name).numpy().tobytes()
    if path.suffix == SAFETENSORS:
        header = parse_safetensors_header(rest)
        with atomic_output(path, header.end, overwrite=False) as f:
            f.write(rest)
            for t in header.tensors:
                f.write(_bytes(read(_name(name, t.name))).numpy())
        return
    state = _Walk(lambda t, way: _filled(t, read(way)) if t.is_meta else t).of(
        torch.load(io.BytesIO(rest), weights_only=True), name
    )
    with atomic_output(path, overwrite=False) as f:
        torch.save(state, f)


def is_stored(path: Path, name: str, read: Read) -> bool:
    """Whether a file holds what is stored of it. Raises as `pack` and `read` do."""
    rest, tensors = pack(path, name)
    stored = read(name)
    return same(rest, stored) and all(same(t, read(way)) for way, t in tensors.items())


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are of one dtype and shape, and have the same bits."""
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(_bytes(a), _bytes(b))


def _name(file: str, tensor: str) -> str:
    return f"{file}/{tensor}"


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _storable(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if has_row(tensor.dtype) else _bytes(tensor)


def _as_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _pack_safetensors(path: Path, name: str) -> Packed:
    source = open_source(path)
    try:
        header = read_safetensors_header(source)
    finally:
        source.close()
    with safe_open(path, framework="pt") as f:
        tensors = {_name(name, t.name): _storable(f.get_tensor(t.name)) for t in header.tensors}
    return Packed(_as_tensor(header.raw), tensors)


def _pack_optimizer(path: Path, name: str) -> Packed:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError) as e:
        raise EncodeError(
            "bad_source", f"torch.load(weights_only=True) does not read it: {e}"
        ) from None
    tensors = dict[str, torch.Tensor]()

    def take(tensor: torch.Tensor, way: str) -> torch.Tensor:
        if not _is_plain(tensor):
            return tensor
        tensors[way] = _storable(tensor)
        return torch.empty_like(tensor, device="meta")

    buffer = io.BytesIO()
    torch.save(_Walk(take).of(state, name), buffer)
    return Packed(_as_tensor(buffer.getvalue()), tensors)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether its values are all that there is to a tensor. Others stay with the rest."""
    return (
        type(tensor) is torch.Tensor
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.is_quantized or tensor.is_complex() or tensor.is_neg())
        and not tensor.requires_grad
    )


def _filled(place: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The tensor that a place on ``"meta"`` was left for."""
    out = torch.empty_like(place, device="cpu")
    if values.dtype is not place.dtype:
        values = values.view(place.dtype)
    return out.copy_(values.reshape(place.shape))


class _Walk:
    """Puts others in the places of the tensors of nested dicts, lists and tuples. A tensor that
    occurs twice is asked for once.

    Parameters
    ----------
    change
        Called with a tensor and the way to it, which is different for each.
    """

    def __init__(self, change: Callable[[torch.Tensor, str], torch.Tensor]) -> None:
        self._change = change
        self._seen = dict[int, torch.Tensor]()

    def of(self, value: Any, way: str) -> Any:
        """The value with its tensors changed; what it is made of stays as it is."""
        if isinstance(value, torch.Tensor):
            if id(value) not in self._seen:
                self._seen[id(value)] = self._change(value, way)
            return self._seen[id(value)]
        if isinstance(value, dict):
            out = copy.copy(value)
            for key, v in value.items():
                out[key] = self.of(v, f"{way}[{key!r}]")
            return out
        if type(value) in (list, tuple):
            return type(value)(self.of(v, f"{way}[{i}]") for i, v in enumerate(value))
        return value
