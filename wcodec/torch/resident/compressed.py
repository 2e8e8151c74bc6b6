"""`CompressedTensor`: a tensor that is held compressed and decoded by each operation that reads it.

It stands where a weight stood, in any module: it has the weight's shape, dtype and device,
operators of PyTorch take it, autograd keeps it (not what was decoded) for the backward pass, and
what comes out has the bits that the dense weight would have given if it were frozen, since the same
kernels get the same operands. What only turns or hands on a weight stays compressed; an embedding
or an expert of a stack decodes no more than the rows that it picks.

A matrix in mode "fused" is multiplied without being decoded first
(`wcodec.torch.resident.products`): on a CPU it is decoded tile by tile and no memory holds all of
it, on a GPU kernels read the stream, if it is an operand (spec: chapter 14.1) and few rows are
multiplied by it. These are the same products, but summed by kernels of other shapes, so the last
bits of results may differ. Other operations are as in mode "resident".

Operations that write to the whole tensor, such as ``w.mul_(2)`` or ``w[3] = 0``, compress it anew.
A view (``w[3]``, ``w.view(-1)``) is a copy: what is written to it does not reach the weight.
``model.to(...)`` has to swap the tensors of parameters, which PyTorch refuses while an autograd
graph or a weak reference holds one.

See "Extending PyTorch", section on tensor subclasses with ``__torch_dispatch__``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_map_only

from wcodec.planner.options import EncodeOptions
from wcodec.torch.resident.dispatch import HANDLERS
from wcodec.torch.resident.held import Held, compress
from wcodec.torch.resident.holding import held_of, hold, moved, name_stream
from wcodec.torch.resident.operands import INSTEAD, check_mode
from wcodec.torch.resident.scratch import ROUND


class CompressedTensor(torch.Tensor):
    """A tensor held as a wcodec stream. Make one by `from_dense` or `from_stream`.

    Attributes
    ----------
    stream
        uint8 of one dimension, on the tensor's device: a wcodec file of one tensor (spec:
        chapter 4).
    mode
        ``"resident"``: it is decoded for each operation; ``"fused"``: products with a matrix are
        taken without decoding it first. May be set. A matrix that comes to a GPU in mode "fused"
        becomes an operand, unless it was compressed with options that say more than a preset.
    """

    _mode: str
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
        mode: str = "resident",
        requires_grad: bool | None = None,
    ) -> Any:
        if requires_grad is not None:  # so accelerate makes parameters of the class of others
            return torch.nn.Parameter(held, requires_grad)
        check_mode(mode)
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
        out._held, out._stream = held if isinstance(held, Held) else None, stream
        out._swapped, out._mode = swapped, mode
        return out

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    @classmethod
    def from_stream(
        cls, stream: torch.Tensor, name: str = "", *, mode: str = "resident"
    ) -> CompressedTensor:
        """The tensor of a stream, which is read only as far as its index.

        Parameters
        ----------
        stream
            uint8 of one dimension, on any device; it is not copied.
        name
            What errors call the tensor.
        mode
            See the class. On a GPU, products with a stream that is no operand are taken by decoding
            it first.

        Raises
        ------
        DecodeError
            It is no wcodec file of one tensor.
        EncodeError
            ``bad_option``: there is no such mode.
        """
        return cls(hold(stream, name), mode=mode)

    @classmethod
    def from_dense(
        cls,
        tensor: torch.Tensor,
        options: EncodeOptions | None = None,
        name: str = "",
        *,
        mode: str = "resident",
        operand: str | None = None,
    ) -> CompressedTensor:
        """Compress a tensor; `mode` and `operand` are as of `wcodec.torch.compress_model`.

        Raises
        ------
        EncodeError
            ``unsupported_dtype``; ``bad_option``: there is no such mode or operand; an operand
            beside another mode than "fused", or beside `options` that say more than a preset.
        """
        check_mode(mode, operand, options)
        stream, options = compress(tensor.detach(), options, name, mode, operand)
        return cls(hold(stream, name, options), mode=mode)

    # ---- what is in it
    @property
    def mode(self) -> str:
        """See the class."""
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        check_mode(mode)
        self._mode = mode

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
        return like(self)

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        other = value
        if not isinstance(other, CompressedTensor):
            other = CompressedTensor.from_dense(
                value, self.held.options, self.held.name, mode=self.mode
            )
        torch.Tensor.data.__set__(self, other)
        self._held, self._stream = other._held, other._stream
        self._swapped, self._mode = other._swapped, other._mode

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
            "a compressed tensor has no memory to point at, as kernels and accelerate's "
            f"dispatch_model ask for: use .decode(), or .stream for what is held, or {INSTEAD}"
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        held = f"{self.stream.numel()} bytes compressed" + ", fused" * (self.mode == "fused")
        return (
            f"CompressedTensor(shape={tuple(self.shape)}, dtype={self.dtype}, "
            f"device={self.device}, {held})"
        )

    # ---- copying, pickling, tracing
    def __deepcopy__(self, memo: dict[int, Any]) -> CompressedTensor:
        if id(self) not in memo:
            out = CompressedTensor(self.held.copy(), self._swapped, mode=self.mode)
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
            self.mode,
        )

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        name = "" if self._held is None else self._held.name
        if name:
            name_stream(self.stream, name)
        return ["stream"], (self._swapped, shape_held(self), self.dtype, name, self.mode)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Any], meta: Any, outer_size: Any, outer_stride: Any
    ) -> CompressedTensor:
        swapped, shape, dtype, name, mode = meta
        stream = inner["stream"]
        if type(stream) is torch.Tensor:
            return CompressedTensor(hold(stream, name), swapped, mode=mode)
        return CompressedTensor(stream, swapped, shape, dtype, mode)

    def _stable_hash_for_caching(self) -> str:
        """What graphs of ``torch.compile`` are kept by."""
        held = self._swapped, self.mode, self.stream.numel()
        return repr((type(self).__name__, tuple(self.shape), self.dtype, str(self.device), *held))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # of a tensor of before, PyTorch takes no view made in that mode
        if func.is_view and torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return cls.__torch_dispatch__(func, types, args, kwargs)
        handler = HANDLERS.get(func)
        if handler is not None:
            out = handler(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        return _on_dense(func, args, kwargs or {})


#: attributes that are not a user's
OWN: Final = {"_held", "_swapped", "_stream", "_mode", "_is_param"}


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
    mode: str | bool = "resident",
) -> CompressedTensor:
    """What a pickle of a compressed tensor calls. Those of earlier versions say whether it is in
    mode "fused", and for `force`, a `min_saving` below 0."""
    if isinstance(mode, bool):
        mode = "fused" if mode else "resident"
    if options is not None and (options.get("min_saving") or 0) < 0:
        options = {**options, "min_saving": None, "force": True}
    held = hold(stream, name, None if options is None else EncodeOptions(**options))
    # in torch.load, the stream may have come to a GPU
    out = CompressedTensor(moved(held, stream.device, mode), swapped, mode=mode)
    out.__dict__.update(extra)
    out.requires_grad_(requires_grad)
    return out


def _swap(sizes: Any) -> tuple[int, ...]:
    return (*sizes[:-2], sizes[-1], sizes[-2])


def like(w: CompressedTensor, swapped: bool | None = None) -> CompressedTensor:
    """Another view of the same content."""
    swapped = w._swapped if swapped is None else swapped
    if w._held is not None:
        return CompressedTensor(w._held, swapped, mode=w.mode)
    return CompressedTensor(w._stream, swapped, shape_held(w), w.dtype, w.mode)


def shape_held(w: CompressedTensor) -> tuple[int, ...]:
    """Shape of the weight as it is in the stream."""
    shape = tuple(w.shape)
    return _swap(shape) if w._swapped else shape


# ---- operations on what is decoded ---------------------------------------------------------------
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
            out = torch.ops.wcodec.decode(w._stream, list(shape_held(w)), w.dtype)
        else:
            held = w._held
            if id(held) not in leases:
                leases[id(held)] = held, held.lease()
            out = held.view(leases[id(held)][1])
        return out.transpose(-2, -1) if w._swapped else out

    kept = set[int]()
    try:
        given = tree_map_only(CompressedTensor, dense, args)
        named = tree_map_only(CompressedTensor, dense, kwargs)
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
    """A result that may be a view of a decoded weight:
    it keeps the buffer, or a copy if that is much too large.
    """
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
            "the shape of a compressed tensor cannot be changed in place: "
            "change that of a copy (.decode())"
        )
    w.held.replace(whole)


#: pickles name it so, wherever it lies
rebuild.__module__ = "wcodec.torch.compressed"
# so that torch.load takes them: a stream is data, checked when it is decoded
torch.serialization.add_safe_globals([rebuild])
