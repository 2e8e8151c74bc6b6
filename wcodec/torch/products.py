"""Products with a matrix that is held compressed, which is never there as a whole: decoded tile by tile, each tile multiplied.

`times_transposed` and `times` are what compressed weights in fused mode call; the operators ``wcodec::linear`` and
``wcodec::linear_grad_input`` are the same on streams, for graphs and for code of your own, with gradients to all but the stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 (as everyone calls it)

from wcodec.torch.held import Held, held_of

FLOATS: Final = frozenset({torch.bfloat16, torch.float16, torch.float32, torch.float64})  #: of activations
NARROW: Final = frozenset({torch.int8, torch.float8_e4m3fn, torch.float8_e5m2})  #: of weights: the types above hold their values


# ---- what weights call -----------------------------------------------------------------------------------------------------
def times_transposed(held: Held, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ W.T + bias``, of a matrix W of shape (n, k).

    Parameters
    ----------
    x
        Of shape (..., k) and the weight's dtype, or of any float type if the weight has one of `NARROW`.
    bias
        Of shape (n,) and the dtype of `x`.

    Returns
    -------
    Of shape (..., n) and the dtype of `x`; each tile is multiplied by PyTorch's own kernel.

    Raises
    ------
    DecodeError
    """
    with torch.autocast(x.device.type, enabled=False):  # which would take tiles to another dtype, one by one
        return _times_transposed(held, x, bias)


def _times_transposed(held: Held, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    n, k = held.shape
    if not by_tiles(held):
        with _decoded(held) as dense:
            return F.linear(x, dense.to(x.dtype), bias)
    flat, out = x.reshape(-1, k) if k else x.new_zeros(x.shape[:-1].numel(), 0), x.new_empty(*x.shape[:-1], n)
    into = out.view(-1, n) if n else out
    if out.numel() == 0:
        return out
    if k == 0:
        return out.zero_() if bias is None else out.copy_(bias.expand(out.shape))
    for first, tile in held.row_tiles():
        rows = slice(first, first + tile.shape[0])
        into[:, rows] = F.linear(flat, tile.to(x.dtype), None if bias is None else bias[rows])
    return out


def times(held: Held, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ W + bias``, of a matrix W of shape (n, k): what the gradient of `times_transposed` is of.

    Parameters
    ----------
    x
        Of shape (..., n); dtypes as of `times_transposed`.
    bias
        Of shape (k,).

    Returns
    -------
    Of shape (..., k) and the dtype of `x`. Sums of tiles are added in float32, in float64 of that, and rounded once.

    Raises
    ------
    DecodeError
    """
    with torch.autocast(x.device.type, enabled=False):
        return _times(held, x, bias)


def _times(held: Held, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    n, k = held.shape
    if not by_tiles(held):
        with _decoded(held) as dense:
            return F.linear(x, dense.to(x.dtype).t(), bias)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    m = x.shape[:-1].numel()
    total = torch.zeros(m, k, dtype=wide) if bias is None else bias.to(wide).repeat(m, 1)
    if m and n and k:
        flat = x.reshape(m, n).to(wide)
        for first, tile in held.row_tiles():
            total.addmm_(flat[:, first : first + tile.shape[0]], tile.to(wide))
    return total.to(x.dtype).view(*x.shape[:-1], k)


def by_tiles(held: Held) -> bool:
    """Whether a weight is multiplied tile by tile, not decoded first: on the CPU."""
    return bool(held.stream.device.type == "cpu")


@contextmanager
def _decoded(held: Held) -> Iterator[torch.Tensor]:
    """The dense weight in scratch, for a GPU. A kernel that multiplies as it decodes will stand in its place."""
    buffer = held.lease()
    try:
        yield held.view(buffer)
    finally:
        held.give_back(buffer)


def takes(dtype: torch.dtype, x: torch.dtype) -> bool:
    """Whether activations of a dtype are multiplied with weights of another one."""
    return x in FLOATS and (x == dtype or dtype in NARROW)


# ---- operators -------------------------------------------------------------------------------------------------------------
def _check(x: torch.Tensor, shape: list[int], dtype: torch.dtype, dim: int, bias: torch.Tensor | None = None) -> None:
    """Refuse operands that do not go together; `dim` is the dimension of the weight that is summed over.

    Raises
    ------
    RuntimeError
    """
    if len(shape) != 2:
        raise RuntimeError(f"the weight has {len(shape)} dimensions: a linear layer multiplies by a matrix")
    if x.dim() == 0 or x.shape[-1] != shape[dim]:
        raise RuntimeError(f"operands of shapes {tuple(x.shape)} and {tuple(shape)} cannot be multiplied")
    if not takes(dtype, x.dtype):
        raise RuntimeError(f"a weight of {dtype} is not multiplied by {x.dtype}; int8 and float8 weights are, by any float type")
    if bias is not None and (bias.dtype != x.dtype or tuple(bias.shape) != (shape[1 - dim],)):
        raise RuntimeError(f"the bias is {bias.dtype} of {tuple(bias.shape)}, not {x.dtype} of {(shape[1 - dim],)}")


@torch.library.custom_op("wcodec::linear", mutates_args=())
def linear(x: torch.Tensor, stream: torch.Tensor, shape: list[int], dtype: torch.dtype, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ W.T + bias`` for the weight W of a stream: a wcodec file of one tensor, uint8 of one dimension.

    Parameters
    ----------
    x
        Of shape (..., k).
    shape, dtype
        Of the weight: (n, k).
    bias
        Of shape (n,).

    Returns
    -------
    Of shape (..., n).

    Raises
    ------
    DecodeError
    RuntimeError
        Shapes or dtypes that do not go together, or are not those of the stream.
    """
    _check(x, shape, dtype, 1, bias)
    return times_transposed(held_of(stream, shape, dtype), x, bias)


@linear.register_fake
def _(x: torch.Tensor, stream: torch.Tensor, shape: list[int], dtype: torch.dtype, bias: torch.Tensor | None = None) -> torch.Tensor:
    _check(x, shape, dtype, 1, bias)
    return x.new_empty(*x.shape[:-1], shape[0])


@torch.library.custom_op("wcodec::linear_grad_input", mutates_args=())
def linear_grad_input(grad: torch.Tensor, stream: torch.Tensor, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """``grad @ W``: the gradient of ``wcodec::linear`` to its input, from that to its output. Raises as that."""
    _check(grad, shape, dtype, 0)
    return times(held_of(stream, shape, dtype), grad)


@linear_grad_input.register_fake
def _(grad: torch.Tensor, stream: torch.Tensor, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    _check(grad, shape, dtype, 0)
    return grad.new_empty(*grad.shape[:-1], shape[1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """What is kept for a backward pass: the stream."""
    ctx.save_for_backward(inputs[1])
    ctx.shape, ctx.dtype = inputs[2], inputs[3]


def _linear_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    (stream,) = ctx.saved_tensors
    to_x = torch.ops.wcodec.linear_grad_input(grad, stream, ctx.shape, ctx.dtype) if ctx.needs_input_grad[0] else None
    wanted = any(ctx.needs_input_grad[4:])  # which ends earlier where no bias was given
    return to_x, None, None, None, grad.reshape(-1, grad.shape[-1]).sum(0) if wanted else None


def _grad_input_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    (stream,) = ctx.saved_tensors
    to_grad = torch.ops.wcodec.linear(grad, stream, ctx.shape, ctx.dtype) if ctx.needs_input_grad[0] else None
    return to_grad, None, None, None


linear.register_autograd(_linear_backward, setup_context=_keep)
linear_grad_input.register_autograd(_grad_input_backward, setup_context=_keep)
