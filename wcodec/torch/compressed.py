"""`CompressedTensor`: a tensor that is held compressed and decoded by each operation that reads it.

It stands where a weight stood, in any module: it has the weight's shape, dtype and device, operators of PyTorch take it, autograd
keeps it (not what was decoded) for the backward pass, and what comes out has the bits that the dense weight would have given, since
the same kernels get the same operands. What only turns or hands on a weight stays compressed; an embedding or an expert of a stack
decodes no more than the rows that it picks.

See "Extending PyTorch", section on tensor subclasses with ``__torch_dispatch__``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from wcodec.reference.plan import EncodeOptions
from wcodec.torch.held import Held, encode, hold

aten: Final = torch.ops.aten


class CompressedTensor(torch.Tensor):
    """A tensor held as a wcodec stream. Make one by `from_dense` or `from_stream`.

    Attributes
    ----------
    stream
        uint8 of one dimension, on the tensor's device: a wcodec file of one tensor (spec: chapter 4).
    """

    _held: Held | None
    _swapped: bool
    _stream: torch.Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    # ---- making one
    @staticmethod
    def __new__(
        cls, held: Held | torch.Tensor, swapped: bool = False, shape: tuple[int, ...] | None = None, dtype: torch.dtype | None = None
    ) -> CompressedTensor:
        stream = held.stream if isinstance(held, Held) else held
        if isinstance(held, Held):
            shape, dtype = held.shape, held.dtype
        strides = torch.empty(shape, device="meta").stride()
        if swapped:
            shape, strides = _swap(shape), _swap(strides)
        with torch.inference_mode(False):  # a weight outlives the call that it is made in, and views of it go with it
            out: CompressedTensor = torch.Tensor._make_wrapper_subclass(
                cls, shape, strides=strides, dtype=dtype, device=stream.device, requires_grad=False
            )
        out._held, out._swapped = held if isinstance(held, Held) else None, swapped
        out._stream = stream
        return out

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    @classmethod
    def from_stream(cls, stream: torch.Tensor, name: str = "") -> CompressedTensor:
        """The tensor of a stream, which is read only as far as its index.

        Parameters
        ----------
        stream
            uint8 of one dimension, on any device; it is not copied.
        name
            What errors call the tensor.

        Raises
        ------
        DecodeError
            It is no wcodec file of one tensor.
        """
        return cls(hold(stream, name))

    @classmethod
    def from_dense(cls, tensor: torch.Tensor, options: EncodeOptions | None = None, name: str = "") -> CompressedTensor:
        """Compress a tensor.

        Raises
        ------
        EncodeError
            ``unsupported_dtype``
        """
        return cls(hold(encode(tensor.detach(), options), name))

    # ---- what is in it
    @property
    def held(self) -> Held:
        """How it is held."""
        if self._held is None:
            raise RuntimeError("a compressed tensor that torch.compile traces has no content")
        return self._held

    @property
    def stream(self) -> torch.Tensor:
        """See the class."""
        return self._stream if self._held is None else self._held.stream

    def decode(self) -> torch.Tensor:
        """The dense tensor, in memory of its own.

        Raises
        ------
        DecodeError
            The stream is damaged.
        """
        dense = self.held.dense()
        return dense.transpose(-2, -1) if self._swapped else dense

    @property
    def data(self) -> torch.Tensor:
        """The same weight without a history; what is done to it in place is done to this one."""
        return _like(self)

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        other = value if isinstance(value, CompressedTensor) else CompressedTensor.from_dense(value)
        torch.Tensor.data.__set__(self, other)
        self._held, self._swapped, self._stream = other._held, other._swapped, other._stream

    # ---- what reads memory that is not there
    def numpy(self, *, force: bool = False) -> np.ndarray[Any, Any]:
        array: np.ndarray[Any, Any] = self.decode().numpy(force=force)
        return array

    def tolist(self) -> Any:
        return self.decode().tolist()

    def data_ptr(self) -> int:
        raise RuntimeError("a compressed tensor has no memory to point at: use .decode(), or .stream for what is held")

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        held = f"{self.stream.numel()} bytes compressed"
        return f"CompressedTensor(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device}, {held})"

    # ---- copying, pickling, tracing
    def __deepcopy__(self, memo: dict[int, Any]) -> CompressedTensor:
        if id(self) not in memo:
            out = CompressedTensor(self.held.copy(), self._swapped)
            out.requires_grad_(self.requires_grad)
            out.__dict__.update({k: v for k, v in self.__dict__.items() if k not in _OWN})
            memo[id(self)] = out
        return memo[id(self)]  # type: ignore[no-any-return]

    def __reduce_ex__(self, protocol: Any) -> Any:
        extra = {k: v for k, v in self.__dict__.items() if k not in _OWN}
        return rebuild, (self.stream, self.held.name, self._swapped, self.requires_grad, extra)

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        shape = tuple(self.shape)
        return ["stream"], (self._swapped, _swap(shape) if self._swapped else shape, self.dtype)

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Any], meta: Any, outer_size: Any, outer_stride: Any) -> CompressedTensor:
        swapped, shape, dtype = meta
        stream = inner["stream"]
        return CompressedTensor(hold(stream), swapped) if type(stream) is torch.Tensor else CompressedTensor(stream, swapped, shape, dtype)

    def _stable_hash_for_caching(self) -> str:
        """What graphs of ``torch.compile`` are kept by."""
        return repr((type(self).__name__, tuple(self.shape), self.dtype, str(self.device), self._swapped, self.stream.numel()))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func.is_view and torch.is_inference_mode_enabled():  # of a tensor of before, PyTorch takes no view made in that mode
            with torch.inference_mode(False), torch.no_grad():
                return cls.__torch_dispatch__(func, types, args, kwargs)
        handler = _HANDLERS.get(func)
        if handler is not None:
            out = handler(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        return _on_dense(func, args, kwargs or {})


_OWN: Final = {"_held", "_swapped", "_stream"}


def rebuild(stream: torch.Tensor, name: str, swapped: bool, requires_grad: bool, extra: dict[str, Any]) -> CompressedTensor:
    """What a pickle of a compressed tensor calls."""
    out = CompressedTensor(hold(stream, name), swapped)
    out.__dict__.update(extra)
    out.requires_grad_(requires_grad)
    return out


def _swap(sizes: Any) -> tuple[int, ...]:
    return (*sizes[:-2], sizes[-1], sizes[-2])


def _like(w: CompressedTensor, swapped: bool | None = None) -> CompressedTensor:
    """Another view of the same content."""
    swapped = w._swapped if swapped is None else swapped
    if w._held is not None:
        return CompressedTensor(w._held, swapped)
    shape = tuple(w.shape)
    return CompressedTensor(w._stream, swapped, _swap(shape) if w._swapped else shape, w.dtype)


# ---- operations on what is decoded ---------------------------------------------------------------------------------------
_of_graphs: Final = WeakTensorKeyDictionary()  #: streams that graphs decode, as they are held


@torch.library.custom_op("wcodec::decode", mutates_args=())
def decode_op(stream: torch.Tensor, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """A stream, decoded: what stands in graphs of ``torch.compile``."""
    held = _of_graphs.get(stream)
    if held is None:
        held = _of_graphs[stream] = hold(stream)
    if held.shape != tuple(shape) or held.dtype != dtype:
        raise RuntimeError(f"the stream holds a {held.dtype} tensor of shape {held.shape}, not {dtype} of {tuple(shape)}")
    return held.dense()


@decode_op.register_fake
def _(stream: torch.Tensor, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=stream.device)


def _changed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[CompressedTensor]:
    """The compressed tensors that an operation writes to."""
    written = list[Any]()
    for i, declared in enumerate(func._schema.arguments):
        if declared.alias_info is not None and declared.alias_info.is_write:
            written.append(args[i] if i < len(args) else kwargs.get(declared.name))
    return [w for w in tree_flatten(written)[0] if isinstance(w, CompressedTensor)]


def _on_dense(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on decoded operands; what it wrote to is compressed again."""
    leases: dict[int, tuple[Held, torch.Tensor]] = {}

    def dense(w: CompressedTensor) -> torch.Tensor:
        if w._held is None:
            shape = tuple(w.shape)
            out = torch.ops.wcodec.decode(w._stream, list(_swap(shape) if w._swapped else shape), w.dtype)
        else:
            held = w._held
            if id(held) not in leases:
                leases[id(held)] = held, held.lease()
            out = held.view(leases[id(held)][1])
        return out.transpose(-2, -1) if w._swapped else out

    lent = set[int]()
    try:
        out = func(*tree_map_only(CompressedTensor, dense, args), **tree_map_only(CompressedTensor, dense, kwargs))
        if changed := _changed(func, args, kwargs):
            for w in changed:
                w.held.replace(w.held.view(leases[id(w.held)][1]))
            return changed[0] if isinstance(out, torch.Tensor) else out
        lent = {t.untyped_storage().data_ptr() for t in tree_flatten(out)[0] if leases and isinstance(t, torch.Tensor)}
    finally:
        for held, buffer in leases.values():
            if buffer.untyped_storage().data_ptr() not in lent:  # a view of the weight keeps its buffer
                held.give_back(buffer)
    return out


# ---- operations that need not decode, or not all ---------------------------------------------------------------------------
_HANDLERS: Final[dict[Any, Callable[..., Any]]] = {}


def _handles(*ops: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _HANDLERS.update(dict.fromkeys(ops, function))
        return function

    return register


@_handles(aten.detach.default, aten.alias.default)
def _alias(w: Any) -> Any:
    return _like(w)


@_handles(aten.clone.default)
def _clone(w: Any, *, memory_format: Any = None) -> Any:
    return NotImplemented if w._held is None else CompressedTensor(w._held.copy(), w._swapped)


@_handles(aten.t.default)
def _t(w: Any) -> Any:
    return _like(w, not w._swapped) if w.dim() == 2 else NotImplemented


@_handles(aten.transpose.int)
def _transpose(w: Any, a: int, b: int) -> Any:
    n = w.dim()
    return _like(w, not w._swapped) if n > 1 and {a % n, b % n} == {n - 2, n - 1} else NotImplemented


@_handles(aten._to_copy.default)
def _to_copy(w: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> Any:
    """To another device compressed; to another dtype dense."""
    if w._held is None or (dtype is not None and dtype != w.dtype):
        return NotImplemented
    held = w._held.copy() if device is None or torch.device(device) == w.device else w._held.to(torch.device(device))
    return CompressedTensor(held, w._swapped)


@_handles(aten.copy_.default)
def _copy(to: Any, source: Any, non_blocking: bool = False) -> Any:
    """Into a compressed weight, as loading a state dict does: what it held is not looked at."""
    if not isinstance(to, CompressedTensor) or to._held is None:
        return NotImplemented
    dense = source.decode() if isinstance(source, CompressedTensor) else source
    dense = dense.to(to.dtype).expand(to.shape)
    to._held.replace((dense.transpose(-2, -1) if to._swapped else dense).to(to.device))
    return to


def _rows(w: Any, ids: torch.Tensor) -> torch.Tensor:
    """``dense[ids]`` for ids of any shape; negative ones count from the end."""
    n = w.shape[0]
    flat = ids.detach().reshape(-1).to("cpu", torch.int64)
    if flat.numel() and not (-n <= int(flat.min()) and int(flat.max()) < n):
        raise IndexError(f"index out of range: {n} rows")
    some, inverse = torch.unique(flat % n if n else flat, return_inverse=True)
    rows = w._held.take(some)
    return rows[inverse].reshape(*ids.shape, *w.shape[1:])


def _can_pick(w: Any) -> bool:
    return isinstance(w, CompressedTensor) and w._held is not None and w.dim() > 0 and not (w._swapped and w.dim() == 2)


def _turn(w: Any, part: torch.Tensor) -> torch.Tensor:
    return part.transpose(-2, -1) if w._swapped else part


@_handles(aten.embedding.default)
def _embedding(w: Any, ids: torch.Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False) -> Any:
    return _rows(w, ids) if _can_pick(w) and not w._swapped else NotImplemented


@_handles(aten.select.int)
def _select(w: Any, dim: int, index: int) -> Any:
    if not _can_pick(w) or dim % w.dim() != 0:
        return NotImplemented
    return _turn(w, _dense_rows(w, torch.tensor(index)))


@_handles(aten.index.Tensor)
def _index(w: Any, indices: Any) -> Any:
    if not _can_pick(w) or len(indices) != 1 or indices[0] is None or indices[0].dtype not in (torch.int64, torch.int32):
        return NotImplemented
    return _turn(w, _dense_rows(w, indices[0]))


@_handles(aten.index_select.default)
def _index_select(w: Any, dim: int, index: torch.Tensor) -> Any:
    return _turn(w, _dense_rows(w, index)) if _can_pick(w) and dim % w.dim() == 0 else NotImplemented


def _dense_rows(w: Any, ids: torch.Tensor) -> torch.Tensor:
    """Rows of the weight as it is held, before it is turned."""
    return _rows(_like(w, False), ids)


torch.serialization.add_safe_globals([rebuild])  # so that torch.load takes them: a stream is data, checked when it is decoded
