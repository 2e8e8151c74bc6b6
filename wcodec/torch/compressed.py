"""`CompressedTensor`: a tensor that is held compressed and decoded by each operation that reads it.

It stands where a weight stood, in any module: it has the weight's shape, dtype and device, operators of PyTorch take it, autograd
keeps it (not what was decoded) for the backward pass, and what comes out has the bits that the dense weight would have given if it were
frozen, since the same kernels get the same operands. What only turns or hands on a weight stays compressed; an embedding or an expert
of a stack decodes no more than the rows that it picks.

A matrix in fused mode is multiplied without being decoded first (`wcodec.torch.products`): on a CPU it is decoded tile by tile and no
memory holds all of it, on a GPU kernels read the stream, if it is an operand (spec: chapter 14.1) and few rows are multiplied by it. These
are the same products, but summed by kernels of other shapes, so the last bits of results may differ. Other operations are as without it.

Operations that write to the whole tensor, such as ``w.mul_(2)`` or ``w[3] = 0``, compress it anew. A view (``w[3]``, ``w.view(-1)``) is a
copy: what is written to it does not reach the weight. ``model.to(...)`` has to swap the tensors of parameters, which PyTorch refuses
while an autograd graph or a weak reference holds one.

See "Extending PyTorch", section on tensor subclasses with ``__torch_dispatch__``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_map_only

from wcodec.planner.options import EncodeOptions
from wcodec.torch import products
from wcodec.torch.held import ROWS_IN_GRAPH, Held, compress
from wcodec.torch.holding import held_of, hold, moved, name_stream
from wcodec.torch.operands import Fused, check_options
from wcodec.torch.scratch import ROUND

aten: Final = torch.ops.aten


class CompressedTensor(torch.Tensor):
    """A tensor held as a wcodec stream. Make one by `from_dense` or `from_stream`.

    Attributes
    ----------
    stream
        uint8 of one dimension, on the tensor's device: a wcodec file of one tensor (spec: chapter 4).
    fused
        Whether products with a matrix are taken without decoding it first. May be set. A matrix that comes to a GPU in fused mode
        becomes an operand, unless it was compressed with options that say more than a preset.
    """

    fused: bool
    _held: Held | None
    _swapped: bool
    _stream: torch.Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    # ---- making one
    @staticmethod
    def __new__(
        cls,
        held: Held | torch.Tensor,
        swapped: bool = False,
        shape: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
        fused: bool = False,
    ) -> CompressedTensor:
        stream = held.stream if isinstance(held, Held) else held
        if isinstance(held, Held):
            shape, dtype = held.shape, held.dtype
        strides = torch.empty(shape, device="meta").stride()
        if swapped:
            shape, strides = _swap(shape), _swap(strides)
        # a weight outlives the call that it is made in, and views of it go with it
        with torch.inference_mode(False):
            out: CompressedTensor = torch.Tensor._make_wrapper_subclass(
                cls, shape, strides=strides, dtype=dtype, device=stream.device, requires_grad=False
            )
        out._held, out._swapped, out.fused = (
            held if isinstance(held, Held) else None,
            swapped,
            fused,
        )
        out._stream = stream
        return out

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    @classmethod
    def from_stream(
        cls, stream: torch.Tensor, name: str = "", fused: bool = False
    ) -> CompressedTensor:
        """The tensor of a stream, which is read only as far as its index.

        Parameters
        ----------
        stream
            uint8 of one dimension, on any device; it is not copied.
        name
            What errors call the tensor.
        fused
            See the class. On a GPU, products with a stream that is no operand are taken by decoding it first.

        Raises
        ------
        DecodeError
            It is no wcodec file of one tensor.
        """
        return cls(hold(stream, name), fused=fused)

    @classmethod
    def from_dense(
        cls,
        tensor: torch.Tensor,
        options: EncodeOptions | None = None,
        name: str = "",
        fused: Fused = False,
    ) -> CompressedTensor:
        """Compress a tensor, in fused mode as `wcodec.torch.compress_model` does it.

        Raises
        ------
        EncodeError
            ``unsupported_dtype``; ``bad_option``: `fused` names no form, or one beside `options` that say more than a preset.
        """
        check_options(options, fused)
        stream, options = compress(tensor.detach(), options, name, fused)
        return cls(hold(stream, name, options), fused=bool(fused))

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
        other = value
        if not isinstance(other, CompressedTensor):
            other = CompressedTensor.from_dense(
                value, self.held.options, self.held.name, self.fused
            )
        torch.Tensor.data.__set__(self, other)
        self._held, self._swapped, self._stream, self.fused = (
            other._held,
            other._swapped,
            other._stream,
            other.fused,
        )

    # ---- what reads memory that is not there
    def numpy(self, *, force: bool = False) -> np.ndarray[Any, Any]:
        array: np.ndarray[Any, Any] = self.decode().numpy(force=force)
        return array

    def tolist(self) -> Any:
        return self.decode().tolist()

    def __dlpack__(self, **how: Any) -> Any:
        return self.decode().__dlpack__(**how)

    def share_memory_(self) -> CompressedTensor:
        """Move what is held to memory that other processes can map."""
        self.stream.share_memory_()
        return self

    def is_shared(self) -> bool:
        return bool(self.stream.is_shared())

    def __setitem__(self, index: Any, value: Any) -> None:
        dense = self.decode()
        dense[index] = value
        self.held.replace(dense.transpose(-2, -1) if self._swapped else dense)

    def data_ptr(self) -> int:
        raise NotImplementedError(
            "a compressed tensor has no memory to point at: use .decode(), or .stream for what is held"
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        held = f"{self.stream.numel()} bytes compressed" + (", fused" if self.fused else "")
        return f"CompressedTensor(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device}, {held})"

    # ---- copying, pickling, tracing
    def __deepcopy__(self, memo: dict[int, Any]) -> CompressedTensor:
        if id(self) not in memo:
            out = CompressedTensor(self.held.copy(), self._swapped, fused=self.fused)
            out.requires_grad_(self.requires_grad)
            out.__dict__.update(_extra(self))
            memo[id(self)] = out
        return memo[id(self)]  # type: ignore[no-any-return]

    def __reduce_ex__(self, protocol: Any) -> Any:
        stream = self.stream
        if stream.untyped_storage().nbytes() > stream.numel():  # of which a pickle would hold all
            stream = stream.clone()
        options = None if self.held.options is None else asdict(self.held.options)
        return rebuild, (
            stream,
            self.held.name,
            self._swapped,
            self.requires_grad,
            _extra(self),
            options,
            self.fused,
        )

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        shape = tuple(self.shape)
        name = "" if self._held is None else self._held.name
        if name:
            name_stream(self.stream, name)
        return ["stream"], (
            self._swapped,
            _swap(shape) if self._swapped else shape,
            self.dtype,
            name,
            self.fused,
        )

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Any], meta: Any, outer_size: Any, outer_stride: Any
    ) -> CompressedTensor:
        swapped, shape, dtype, name, fused = meta
        stream = inner["stream"]
        if type(stream) is torch.Tensor:
            return CompressedTensor(hold(stream, name), swapped, fused=fused)
        return CompressedTensor(stream, swapped, shape, dtype, fused)

    def _stable_hash_for_caching(self) -> str:
        """What graphs of ``torch.compile`` are kept by."""
        what = (
            tuple(self.shape),
            self.dtype,
            str(self.device),
            self._swapped,
            self.fused,
            self.stream.numel(),
        )
        return repr((type(self).__name__, *what))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # of a tensor of before, PyTorch takes no view made in that mode
        if func.is_view and torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return cls.__torch_dispatch__(func, types, args, kwargs)
        handler = _HANDLERS.get(func)
        if handler is not None:
            out = handler(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        return _on_dense(func, args, kwargs or {})


#: attributes that are not a user's
OWN: Final = {"_held", "_swapped", "_stream", "fused", "_is_param"}


def _extra(w: CompressedTensor) -> dict[str, Any]:
    """What goes along with copies: what was noted on the tensor, and that it is a parameter."""
    return {k: v for k, v in w.__dict__.items() if k not in OWN or k == "_is_param"}


def rebuild(
    stream: torch.Tensor,
    name: str,
    swapped: bool,
    requires_grad: bool,
    extra: dict[str, Any],
    options: dict[str, Any] | None,
    fused: bool = False,
) -> CompressedTensor:
    """What a pickle of a compressed tensor calls."""
    held = hold(stream, name, None if options is None else EncodeOptions(**options))
    # in torch.load, the stream may have come to a GPU
    out = CompressedTensor(moved(held, stream.device, fused), swapped, fused=fused)
    out.__dict__.update(extra)
    out.requires_grad_(requires_grad)
    return out


def _swap(sizes: Any) -> tuple[int, ...]:
    return (*sizes[:-2], sizes[-1], sizes[-2])


def _like(w: CompressedTensor, swapped: bool | None = None) -> CompressedTensor:
    """Another view of the same content."""
    swapped = w._swapped if swapped is None else swapped
    if w._held is not None:
        return CompressedTensor(w._held, swapped, fused=w.fused)
    return CompressedTensor(w._stream, swapped, _shape_held(w), w.dtype, w.fused)


def _shape_held(w: CompressedTensor) -> tuple[int, ...]:
    """Shape of the weight as it is in the stream."""
    shape = tuple(w.shape)
    return _swap(shape) if w._swapped else shape


# ---- operations on what is decoded ---------------------------------------------------------------------------------------
@torch.library.custom_op("wcodec::decode", mutates_args=())
def decode_op(stream: torch.Tensor, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """A stream, decoded: what stands in graphs of ``torch.compile``."""
    return held_of(stream, shape, dtype).dense()


@decode_op.register_fake
def _(stream: torch.Tensor, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=stream.device)


def _targets(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What an operation writes to, tensors in lists one by one."""
    found = list[Any]()
    for i, declared in enumerate(func._schema.arguments):
        if declared.alias_info is not None and declared.alias_info.is_write:
            found.append(args[i] if i < len(args) else kwargs.get(declared.name))
    return list(tree_flatten(found)[0])


def _changed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[CompressedTensor]:
    """The compressed tensors among them."""
    return [w for w in _targets(func, args, kwargs) if isinstance(w, CompressedTensor)]


def _written(
    func: Any, given: Any, named: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[torch.Tensor]:
    """What stood for these when the operation ran."""
    return [
        d
        for d, w in zip(_targets(func, given, named), _targets(func, args, kwargs), strict=True)
        if isinstance(w, CompressedTensor)
    ]


def _on_dense(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on decoded operands; what it wrote to is compressed again."""
    leases: dict[int, tuple[Held, torch.Tensor]] = {}

    def dense(w: CompressedTensor) -> torch.Tensor:
        if w._held is None:
            out = torch.ops.wcodec.decode(w._stream, list(_shape_held(w)), w.dtype)
        else:
            held = w._held
            if id(held) not in leases:
                leases[id(held)] = held, held.lease()
            out = held.view(leases[id(held)][1])
        return out.transpose(-2, -1) if w._swapped else out

    kept = set[int]()
    try:
        given, named = (
            tree_map_only(CompressedTensor, dense, args),
            tree_map_only(CompressedTensor, dense, kwargs),
        )
        out = func(*given, **named)
        if changed := _changed(func, args, kwargs):
            for w, written in zip(changed, _written(func, given, named, args, kwargs), strict=True):
                _replace(w, written, w.held.view(leases[id(w.held)][1]))
            return changed[0] if isinstance(out, torch.Tensor) else out
        if leases:
            out = tree_map_only(torch.Tensor, lambda t: _own(t, leases, kept), out)
    finally:
        for held, buffer in leases.values():
            if id(buffer) not in kept:
                held.give_back(buffer)
    return out


def _own(
    out: torch.Tensor, leases: dict[int, tuple[Held, torch.Tensor]], kept: set[int]
) -> torch.Tensor:
    """A result that may be a view of a decoded weight: it keeps the buffer, or a copy if that is much too large."""
    if out.layout is not torch.strided:
        return out
    storage = out.untyped_storage().data_ptr()
    for held, buffer in leases.values():
        if storage and storage == buffer.untyped_storage().data_ptr():
            if buffer.numel() <= held.nbytes + ROUND:
                kept.add(id(buffer))
                return out
            own = buffer[: held.nbytes].clone().view(out.dtype)
            return own.as_strided(out.shape, out.stride(), out.storage_offset())
    return out


def _replace(w: CompressedTensor, written: torch.Tensor, whole: torch.Tensor) -> None:
    """Compress anew what an operation has written to.

    Raises
    ------
    RuntimeError
        It has changed the shape, or put other memory in its place.
    """
    due = whole.transpose(-2, -1) if w._swapped else whole
    if (written.shape, written.stride(), written.data_ptr()) != (
        due.shape,
        due.stride(),
        due.data_ptr(),
    ):
        raise RuntimeError(
            "the shape of a compressed tensor cannot be changed in place: change that of a copy (.decode())"
        )
    w.held.replace(whole)


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
    return (
        NotImplemented
        if w._held is None or _turns(w, memory_format)
        else CompressedTensor(w._held.copy(), w._swapped, fused=w.fused)
    )


def _turns(w: Any, memory_format: Any) -> bool:
    """Whether a copy has to lie in memory in another order."""
    keeps = memory_format in (None, torch.preserve_format) or (
        memory_format is torch.contiguous_format and not w._swapped
    )
    return not keeps


@_handles(aten.t.default, aten.mT.default, aten.numpy_T.default)
def _t(w: Any) -> Any:
    return _like(w, not w._swapped) if w.dim() == 2 else NotImplemented


@_handles(aten.transpose.int)
def _transpose(w: Any, a: int, b: int) -> Any:
    n = w.dim()
    in_range = n > 1 and -n <= a < n and -n <= b < n
    return (
        _like(w, not w._swapped)
        if in_range and {a % n, b % n} == {n - 2, n - 1}
        else NotImplemented
    )


@_handles(aten._to_copy.default)
def _to_copy(
    w: Any, *, dtype: Any = None, device: Any = None, memory_format: Any = None, **_: Any
) -> Any:
    """To another device compressed; to another dtype dense, and to ``meta`` nothing."""
    if device is not None and torch.device(device).type == "meta":
        return torch.empty_strided(w.shape, w.stride(), dtype=dtype or w.dtype, device="meta")
    if w._held is None or (dtype is not None and dtype != w.dtype) or _turns(w, memory_format):
        return NotImplemented
    held = (
        w._held.copy()
        if device is None or torch.device(device) == w.device
        else moved(w._held, torch.device(device), w.fused)
    )
    return CompressedTensor(held, w._swapped, fused=w.fused)


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
    """``dense[ids]`` of the weight as it is held, for ids of any shape; negative ones count from the end."""
    n = w._held.shape[0]
    flat = ids.detach().reshape(-1).to("cpu", torch.int64)
    if flat.numel() and not (-n <= int(flat.min()) and int(flat.max()) < n):
        raise IndexError(f"index out of range: {n} rows")
    some, inverse = torch.unique(flat % n if n else flat, return_inverse=True)
    rows = w._held.take(some)
    rows = rows[inverse.to(rows.device)].reshape(*ids.shape, *w._held.shape[1:])
    return rows.transpose(-2, -1) if w._swapped else rows


def _picks(w: Any, ids: Any, negative: bool) -> bool:
    """Whether ids pick rows of a weight as it is held; what PyTorch refuses is left to PyTorch."""
    if not isinstance(w, CompressedTensor) or w._held is None or w.dim() < (3 if w._swapped else 1):
        return False
    if (
        not isinstance(ids, torch.Tensor)
        or type(ids) is not torch.Tensor
        or ids.dtype not in (torch.int64, torch.int32)
    ):
        return False
    w._held.outside_of_graphs(ROWS_IN_GRAPH)
    return negative or ids.numel() == 0 or int(ids.min()) >= 0


@_handles(aten.embedding.default)
def _embedding(
    w: Any,
    ids: torch.Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    return _rows(w, ids) if w.dim() == 2 and _picks(w, ids, negative=False) else NotImplemented


@_handles(aten.select.int)
def _select(w: Any, dim: int, index: int) -> Any:
    ids = torch.tensor(index)
    return (
        _rows(w, ids) if dim in (0, -w.dim()) and _picks(w, ids, negative=True) else NotImplemented
    )


@_handles(aten.index.Tensor)
def _index(w: Any, indices: Any) -> Any:
    return (
        _rows(w, indices[0])
        if len(indices) == 1 and _picks(w, indices[0], negative=True)
        else NotImplemented
    )


@_handles(aten.index_select.default)
def _index_select(w: Any, dim: int, index: torch.Tensor) -> Any:
    in_one = isinstance(index, torch.Tensor) and index.dim() == 1 and dim in (0, -w.dim())
    return _rows(w, index) if in_one and _picks(w, index, negative=False) else NotImplemented


# ---- products in fused mode ------------------------------------------------------------------------------------------------
def _multiplies(w: Any, *others: Any) -> bool:
    """Whether a weight and the other operands are multiplied in fused mode; what PyTorch refuses is left to PyTorch."""
    if (
        not isinstance(w, CompressedTensor)
        or not w.fused
        or w.dim() != 2
        or w.dtype not in products.FLOATS
    ):
        return False
    some = [t for t in others if t is not None]
    alike = all(
        (t.dtype, t.device, t.layout) == (w.dtype, w.device, torch.strided) and t.dim() > 0
        for t in some
    )
    return alike and not any(isinstance(t, CompressedTensor) for t in some)


def _times(x: Any, w: CompressedTensor, bias: Any = None, transposed: bool = False) -> Any:
    """``x @ w + bias``, or ``x @ w.T + bias``, of operands that `_multiplies` has found fit, shapes included."""
    swapped = w._swapped != transposed
    if w._held is not None:
        return (products.times_transposed if swapped else products.times)(w._held, x, bias)
    if swapped:
        return torch.ops.wcodec.linear(x, w._stream, _shape_held(w), w.dtype, bias)
    out = torch.ops.wcodec.linear_grad_input(x, w._stream, _shape_held(w), w.dtype)
    return out if bias is None else out + bias


@_handles(aten.linear.default)
def _linear(x: Any, w: Any, bias: Any = None) -> Any:
    fits = (
        _multiplies(w, x, bias)
        and x.shape[-1] == w.shape[1]
        and (bias is None or bias.shape == w.shape[:1])
    )
    return _times(x, w, bias, transposed=True) if fits else NotImplemented


@_handles(aten.mm.default, aten.matmul.default)
def _matmul(a: Any, b: Any) -> Any:
    if _multiplies(b, a) and a.shape[-1] == b.shape[0]:
        return _times(a, b)
    if _multiplies(a, b) and b.dim() == 2 and a.shape[1] == b.shape[0]:
        return _times(b.t(), a, transposed=True).t().contiguous()
    return NotImplemented


@_handles(aten.addmm.default)
def _addmm(bias: Any, x: Any, w: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    fits = (
        beta == alpha == 1
        and _multiplies(w, x, bias)
        and x.shape[-1] == w.shape[0]
        and bias.shape == w.shape[1:]
    )
    return _times(x, w, bias) if fits else NotImplemented


@_handles(torch.ops.wcodec.linear.default)
def _linear_op(
    x: Any, w: Any, shape: Any, dtype: Any, bias: Any = None, scale: Any = None, fused: bool = True
) -> Any:
    """The operator, given a weight where a stream is due."""
    if not _stands_for_stream(w, shape, dtype, x, bias, scale):
        return NotImplemented
    if w._held is None:
        return torch.ops.wcodec.linear(x, w._stream, shape, dtype, bias, scale, fused and w.fused)
    products.check(x, w._stream, shape, dtype, 1, bias, scale)
    return products.times_transposed(w._held, x, bias, scale, fused and w.fused)


@_handles(torch.ops.wcodec.linear_grad_input.default)
def _linear_grad_input_op(
    grad: Any, w: Any, shape: Any, dtype: Any, scale: Any = None, fused: bool = True
) -> Any:
    if not _stands_for_stream(w, shape, dtype, grad, scale):
        return NotImplemented
    if w._held is None:
        return torch.ops.wcodec.linear_grad_input(
            grad, w._stream, shape, dtype, scale, fused and w.fused
        )
    products.check(grad, w._stream, shape, dtype, 0, None, scale)
    return products.times(w._held, grad, None, scale, fused and w.fused)


def _stands_for_stream(w: Any, shape: Any, dtype: Any, *others: Any) -> bool:
    """Whether a weight is given where a stream is due, and nothing else is compressed.

    Raises
    ------
    RuntimeError
        It is another weight than said.
    """
    if not isinstance(w, CompressedTensor) or any(isinstance(t, CompressedTensor) for t in others):
        return False
    if w._swapped or (list(w.shape), w.dtype) != (list(shape), dtype):
        turned = ", transposed" if w._swapped else ""
        raise RuntimeError(
            f"the weight is a {w.dtype} tensor of shape {tuple(w.shape)}{turned}, not {dtype} of {tuple(shape)}"
        )
    return True


# so that torch.load takes them: a stream is data, checked when it is decoded
torch.serialization.add_safe_globals([rebuild])
