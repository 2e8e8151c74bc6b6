"""Operators of PyTorch that take a compressed tensor as it is, or decode no more than they need."""

from __future__ import annotations

from typing import Any, Final

import torch

from wcodec.torch.resident import products
from wcodec.torch.resident.compressed import CompressedTensor, like, shape_held
from wcodec.torch.resident.dispatch import handles
from wcodec.torch.resident.held import ROWS_IN_GRAPH
from wcodec.torch.resident.holding import moved

aten: Final = torch.ops.aten


# ---- operations that need not decode, or not all -------------------------------------------------
@handles(aten.detach.default, aten.alias.default)
def _alias(w: Any) -> Any:
    return like(w)


@handles(aten.clone.default)
def _clone(w: Any, *, memory_format: Any = None) -> Any:
    return (
        NotImplemented
        if w._held is None or _turns(w, memory_format)
        else CompressedTensor(w._held.copy(), w._swapped, mode=w.mode)
    )


def _turns(w: Any, memory_format: Any) -> bool:
    """Whether a copy has to lie in memory in another order."""
    keeps = memory_format in (None, torch.preserve_format) or (
        memory_format is torch.contiguous_format and not w._swapped
    )
    return not keeps


@handles(aten.t.default, aten.mT.default, aten.numpy_T.default)
def _t(w: Any) -> Any:
    return like(w, not w._swapped) if w.dim() == 2 else NotImplemented


@handles(aten.transpose.int)
def _transpose(w: Any, a: int, b: int) -> Any:
    n = w.dim()
    in_range = n > 1 and -n <= a < n and -n <= b < n
    return (
        like(w, not w._swapped) if in_range and {a % n, b % n} == {n - 2, n - 1} else NotImplemented
    )


@handles(aten._to_copy.default)
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
        else moved(w._held, torch.device(device), w.mode)
    )
    return CompressedTensor(held, w._swapped, mode=w.mode)


@handles(aten.copy_.default)
def _copy(to: Any, source: Any, non_blocking: bool = False) -> Any:
    """Into a compressed weight, as loading a state dict does: what it held is not looked at."""
    if not isinstance(to, CompressedTensor) or to._held is None:
        return NotImplemented
    dense = source.decode() if isinstance(source, CompressedTensor) else source
    dense = dense.to(to.dtype).expand(to.shape)
    to._held.replace((dense.transpose(-2, -1) if to._swapped else dense).to(to.device))
    return to


def _rows(w: Any, ids: torch.Tensor) -> torch.Tensor:
    """``dense[ids]`` of the weight as it is held, for ids of any shape;
    negative ones count from the end.
    """
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


@handles(aten.embedding.default)
def _embedding(
    w: Any,
    ids: torch.Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    return _rows(w, ids) if w.dim() == 2 and _picks(w, ids, negative=False) else NotImplemented


@handles(aten.select.int)
def _select(w: Any, dim: int, index: int) -> Any:
    ids = torch.tensor(index)
    return (
        _rows(w, ids) if dim in (0, -w.dim()) and _picks(w, ids, negative=True) else NotImplemented
    )


@handles(aten.index.Tensor)
def _index(w: Any, indices: Any) -> Any:
    return (
        _rows(w, indices[0])
        if len(indices) == 1 and _picks(w, indices[0], negative=True)
        else NotImplemented
    )


@handles(aten.index_select.default)
def _index_select(w: Any, dim: int, index: torch.Tensor) -> Any:
    in_one = isinstance(index, torch.Tensor) and index.dim() == 1 and dim in (0, -w.dim())
    return _rows(w, index) if in_one and _picks(w, index, negative=False) else NotImplemented


# ---- products in mode "fused" ------------------------------------------------------------------
def _multiplies(w: Any, *others: Any) -> bool:
    """Whether a weight and the other operands are multiplied in mode "fused"; what PyTorch refuses
    is left to PyTorch."""
    if (
        not isinstance(w, CompressedTensor)
        or w.mode != "fused"
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


def _product(x: Any, w: CompressedTensor, bias: Any = None, transposed: bool = False) -> Any:
    """``x @ w + bias``, or ``x @ w.T + bias``, of operands that `_multiplies` has found fit,
    shapes included.
    """
    swapped = w._swapped != transposed
    if w._held is not None:
        return (products.multiply_transposed if swapped else products.multiply)(w._held, x, bias)
    if swapped:
        return torch.ops.wcodec.linear(x, w._stream, shape_held(w), w.dtype, bias)
    out = torch.ops.wcodec.linear_grad_input(x, w._stream, shape_held(w), w.dtype)
    return out if bias is None else out + bias


@handles(aten.linear.default)
def _linear(x: Any, w: Any, bias: Any = None) -> Any:
    fits = (
        _multiplies(w, x, bias)
        and x.shape[-1] == w.shape[1]
        and (bias is None or bias.shape == w.shape[:1])
    )
    return _product(x, w, bias, transposed=True) if fits else NotImplemented


@handles(aten.mm.default, aten.matmul.default)
def _matmul(a: Any, b: Any) -> Any:
    if _multiplies(b, a) and a.shape[-1] == b.shape[0]:
        return _product(a, b)
    if _multiplies(a, b) and b.dim() == 2 and a.shape[1] == b.shape[0]:
        return _product(b.t(), a, transposed=True).t().contiguous()
    return NotImplemented


@handles(aten.addmm.default)
def _addmm(bias: Any, x: Any, w: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    fits = (
        beta == alpha == 1
        and _multiplies(w, x, bias)
        and x.shape[-1] == w.shape[0]
        and bias.shape == w.shape[1:]
    )
    return _product(x, w, bias) if fits else NotImplemented


@handles(torch.ops.wcodec.linear.default)
def _linear_op(
    x: Any, w: Any, shape: Any, dtype: Any, bias: Any = None, scale: Any = None, mode: str = "fused"
) -> Any:
    """The operator, given a weight where a stream is due."""
    if not _stands_for_stream(w, shape, dtype, x, bias, scale):
        return NotImplemented
    if w._held is None:
        return torch.ops.wcodec.linear(x, w._stream, shape, dtype, bias, scale, _mode_of(w, mode))
    products.check(x, w._stream, shape, dtype, 1, bias, scale, mode)
    return products.multiply_transposed(w._held, x, bias, scale, _mode_of(w, mode))


@handles(torch.ops.wcodec.linear_grad_input.default)
def _linear_grad_input_op(
    grad: Any, w: Any, shape: Any, dtype: Any, scale: Any = None, mode: str = "fused"
) -> Any:
    if not _stands_for_stream(w, shape, dtype, grad, scale):
        return NotImplemented
    if w._held is None:
        return torch.ops.wcodec.linear_grad_input(
            grad, w._stream, shape, dtype, scale, _mode_of(w, mode)
        )
    products.check(grad, w._stream, shape, dtype, 0, None, scale, mode)
    return products.multiply(w._held, grad, None, scale, _mode_of(w, mode))


def _mode_of(w: CompressedTensor, mode: str) -> str:
    """The mode of an operator that is given a weight: "fused" only where the weight is in that
    too."""
    return w.mode if mode == "fused" else mode


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
            f"the weight is a {w.dtype} tensor of shape {tuple(w.shape)}{turned}, "
            f"not {dtype} of {tuple(shape)}"
        )
    return True
