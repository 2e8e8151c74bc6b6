"""Products with a matrix that is held compressed, which is never there as a whole: decoded tile by
tile, each tile multiplied.

`multiply_transposed` and `multiply` are what compressed weights in mode "fused" call; the operators
``wcodec::linear`` and ``wcodec::linear_grad_input`` are the same on streams, for graphs and for
code of your own, with gradients to all but the stream.

Quantised weights have a scale for each row: ``y = (x @ W.T) * scale + bias``. Tiles of these are
multiplied in float32 (float64 for `x` of that), scaled, the bias is added, and the result is
rounded once. In bfloat16, a result would be rounded before it is scaled; in float16, what int8
weights give before it is scaled may be too large.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 (as everyone calls it)

from wcodec.torch.resident import operands
from wcodec.torch.resident.held import Held
from wcodec.torch.resident.holding import held_of

#: of activations
FLOATS: Final = frozenset({torch.bfloat16, torch.float16, torch.float32, torch.float64})
#: of weights: the types above hold their values
NARROW: Final = frozenset({torch.int8, torch.float8_e4m3fn, torch.float8_e5m2})
#: words that are scaled at once: in float32 they fit caches, or scratch
DEQUANTISED: Final = {"cpu": 1 << 18, "cuda": 1 << 24}


def _no_autocast(x: torch.Tensor) -> AbstractContextManager[Any]:
    """No autocast, which would take tiles to another dtype, one by one; nothing where there is
    none, for that takes microseconds.
    """
    device = x.device.type
    return (
        torch.autocast(device, enabled=False)
        if torch.is_autocast_enabled(device)
        else nullcontext()
    )


# ---- what weights call ---------------------------------------------------------------------------
def multiply_transposed(
    held: Held,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    mode: str = "fused",
) -> torch.Tensor:
    """``(x @ W.T) * scale + bias``, of a matrix W of shape (n, k).

    Parameters
    ----------
    x
        Of shape (..., k) and the weight's dtype,
        or of any float type if the weight has one of `NARROW`.
    bias
        Of shape (n,) and the dtype of `x`.
    scale
        Of shape (n,), float32, or float64 where `x` is that.
    mode
        "resident": the weight is decoded first, all of it, and with a scale multiplied by that and
        rounded to the dtype of `x`.

    Returns
    -------
    Of shape (..., n) and the dtype of `x`; each tile is multiplied by PyTorch's own kernel, in the
    dtype of `x`, or with a scale in float32 (float64 of that).

    Raises
    ------
    DecodeError
    """
    with _no_autocast(x):
        if mode == "fused" and by_tiles(held):
            return _multiply_tiles_transposed(held, x, bias, scale)
        out = held.product(x, bias, scale) if mode == "fused" else None
        if out is not None:
            return out
        with _decoded(held) as dense:
            return F.linear(x, dequantised(dense, scale, x.dtype), bias)


def _multiply_tiles_transposed(
    held: Held, x: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor | None
) -> torch.Tensor:
    n, k = held.shape
    flat = x.reshape(-1, k) if k else x.new_zeros(x.shape[:-1].numel(), 0)
    out = x.new_empty(*x.shape[:-1], n)
    into = out.view(-1, n) if n else out
    if out.numel() == 0:
        return out
    if k == 0:
        zero = out.zero_() if scale is None else out.copy_(out.new_zeros(n) * scale)
        return zero if bias is None else zero.add_(bias)
    wide = flat if scale is None else flat.to(wide_of(x.dtype))
    for first, tile in held.row_tiles():
        rows = slice(first, first + tile.shape[0])
        if scale is None:
            into[:, rows] = F.linear(flat, tile.to(x.dtype), None if bias is None else bias[rows])
        else:
            sums = F.linear(wide, tile.to(wide.dtype)).mul_(scale[rows])
            into[:, rows] = sums if bias is None else sums.add_(bias[rows])
    return out


def multiply(
    held: Held,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    mode: str = "fused",
) -> torch.Tensor:
    """``(x * scale) @ W + bias``, of a matrix W of shape (n, k): for gradients of
    `multiply_transposed`.

    Parameters
    ----------
    x
        Of shape (..., n); dtypes as of `multiply_transposed`.
    bias
        Of shape (k,).
    scale, mode
        As of `multiply_transposed`.

    Returns
    -------
    Of shape (..., k) and the dtype of `x`. Sums of tiles are added in float32, in float64 of that,
    and rounded once.

    Raises
    ------
    DecodeError
    """
    with _no_autocast(x):
        if not (mode == "fused" and by_tiles(held)):
            with _decoded(held) as dense:
                return F.linear(x, dequantised(dense, scale, x.dtype).t(), bias)
        return _multiply_tiles(held, x, bias, scale)


def _multiply_tiles(
    held: Held, x: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor | None
) -> torch.Tensor:
    n, k = held.shape
    wide = wide_of(x.dtype)
    m = x.shape[:-1].numel()
    total = torch.zeros(m, k, dtype=wide) if bias is None else bias.to(wide).repeat(m, 1)
    if m and n and k:
        flat = x.reshape(m, n).to(wide)
        flat = flat if scale is None else flat * scale
        for first, tile in held.row_tiles():
            total.addmm_(flat[:, first : first + tile.shape[0]], tile.to(wide))
    return total.to(x.dtype).view(*x.shape[:-1], k)


def wide_of(dtype: torch.dtype) -> torch.dtype:
    """What sums of products are kept in that have activations of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dequantised(
    dense: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """A weight of shape (n, k) times its scale of shape (n,), rounded once to the dtype of
    activations; some rows at a time.
    """
    if scale is None:
        return dense.to(dtype)
    out = torch.empty(dense.shape, dtype=dtype, device=dense.device)
    some = max(1, DEQUANTISED[dense.device.type] // max(1, dense.shape[1]))
    for of, rows, scales in zip(out.split(some), dense.split(some), scale.split(some), strict=True):
        of.copy_(rows.to(wide_of(dtype)) * scales[:, None])
    return out


def by_tiles(held: Held) -> bool:
    """Whether a weight is multiplied tile by tile, not decoded first: on the CPU."""
    return not operands.on_gpu(held.stream.device)


@contextmanager
def _decoded(held: Held) -> Iterator[torch.Tensor]:
    """The dense weight in scratch."""
    buffer = held.lease()
    try:
        yield held.view(buffer)
    finally:
        held.give_back(buffer)


def takes(dtype: torch.dtype, x: torch.dtype) -> bool:
    """Whether activations of a dtype are multiplied with weights of another one."""
    return x in FLOATS and (x == dtype or dtype in NARROW)


# ---- operators -----------------------------------------------------------------------------------
def check(
    x: torch.Tensor,
    stream: torch.Tensor,
    shape: list[int],
    dtype: torch.dtype,
    dim: int,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    mode: str,
) -> None:
    """Refuse operands that do not go together, and modes that are none; `dim` is the dimension of
    the weight that is summed over.

    Raises
    ------
    EncodeError
        ``bad_option``: there is no such mode.
    RuntimeError
    """
    operands.check_mode(mode)
    if len(shape) != 2:
        raise RuntimeError(
            f"the weight has {len(shape)} dimensions: a linear layer multiplies by a matrix"
        )
    if x.dim() == 0 or x.shape[-1] != shape[dim]:
        raise RuntimeError(
            f"operands of shapes {tuple(x.shape)} and {tuple(shape)} cannot be multiplied"
        )
    if not takes(dtype, x.dtype):
        raise RuntimeError(
            f"a weight of {dtype} is not multiplied by {x.dtype}; "
            "int8 and float8 weights are, by any float type"
        )
    if bias is not None and (bias.dtype != x.dtype or tuple(bias.shape) != (shape[1 - dim],)):
        raise RuntimeError(
            f"the bias is {bias.dtype} of {tuple(bias.shape)}, not {x.dtype} of {(shape[1 - dim],)}"
        )
    if scale is not None and (
        scale.dtype not in (torch.float32, wide_of(x.dtype)) or tuple(scale.shape) != (shape[0],)
    ):
        raise RuntimeError(
            f"the scale is {scale.dtype} of {tuple(scale.shape)}, "
            f"not {torch.float32} of {(shape[0],)}"
        )
    for what, other in (("weight", stream), ("bias", bias), ("scale", scale)):
        if other is not None and other.device != x.device:
            raise RuntimeError(f"the {what} is on {other.device}, the activations on {x.device}")


@torch.library.custom_op("wcodec::linear", mutates_args=())
def linear(
    x: torch.Tensor,
    stream: torch.Tensor,
    shape: list[int],
    dtype: torch.dtype,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    mode: str = "fused",
) -> torch.Tensor:
    """``(x @ W.T) * scale + bias`` for the weight W of a stream:
    a wcodec file of one tensor, uint8 of one dimension.

    A `CompressedTensor` stands for its stream, and is decoded first unless it is in mode "fused".

    Parameters
    ----------
    x
        Of shape (..., k).
    shape, dtype
        Of the weight: (n, k).
    bias
        Of shape (n,).
    scale
        Of shape (n,), float32, or float64 where `x` is that: a factor for each row of W.
    mode
        "fused"; or "resident": the weight is decoded first, all of it, and dequantised in the dtype
        of `x`.

    Returns
    -------
    Of shape (..., n).

    Raises
    ------
    DecodeError
    EncodeError
        ``bad_option``: there is no such mode.
    RuntimeError
        Shapes, dtypes or devices that do not go together, or are not those of the stream.
    """
    check(x, stream, shape, dtype, 1, bias, scale, mode)
    return multiply_transposed(held_of(stream, shape, dtype), x, bias, scale, mode)


@linear.register_fake
def _(
    x: torch.Tensor,
    stream: torch.Tensor,
    shape: list[int],
    dtype: torch.dtype,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    mode: str = "fused",
) -> torch.Tensor:
    check(x, stream, shape, dtype, 1, bias, scale, mode)
    return x.new_empty(*x.shape[:-1], shape[0])


@torch.library.custom_op("wcodec::linear_grad_input", mutates_args=())
def linear_grad_input(
    grad: torch.Tensor,
    stream: torch.Tensor,
    shape: list[int],
    dtype: torch.dtype,
    scale: torch.Tensor | None = None,
    mode: str = "fused",
) -> torch.Tensor:
    """``(grad * scale) @ W``: the gradient of ``wcodec::linear`` to its input, from that to its
    output. Takes and raises what that does."""
    check(grad, stream, shape, dtype, 0, None, scale, mode)
    return multiply(held_of(stream, shape, dtype), grad, None, scale, mode)


@linear_grad_input.register_fake
def _(
    grad: torch.Tensor,
    stream: torch.Tensor,
    shape: list[int],
    dtype: torch.dtype,
    scale: torch.Tensor | None = None,
    mode: str = "fused",
) -> torch.Tensor:
    check(grad, stream, shape, dtype, 0, None, scale, mode)
    return grad.new_empty(*grad.shape[:-1], shape[1])


# ---- gradients -----------------------------------------------------------------------------------
def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """What is kept for a backward pass: the stream and the scale,
    and what was multiplied if the scale has a gradient.
    """
    x, stream, ctx.shape, ctx.dtype = inputs[:4]
    scale, ctx.mode = inputs[-2:]
    ctx.save_for_backward(stream, scale, x if scale is not None and scale.requires_grad else None)


def _linear_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    stream, scale, x = ctx.saved_tensors
    wanted = ctx.needs_input_grad  # which ends earlier where no bias or no scale was given
    to_x = (
        torch.ops.wcodec.linear_grad_input(grad, stream, ctx.shape, ctx.dtype, scale, ctx.mode)
        if wanted[0]
        else None
    )
    to_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if any(wanted[4:5]) else None
    return (
        to_x,
        None,
        None,
        None,
        to_bias,
        _to_scale(ctx, x, grad) if any(wanted[5:6]) else None,
        None,
    )


def _grad_input_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    stream, scale, multiplied = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    to_grad = (
        torch.ops.wcodec.linear(grad, stream, ctx.shape, ctx.dtype, None, scale, ctx.mode)
        if wanted[0]
        else None
    )
    return (
        to_grad,
        None,
        None,
        None,
        _to_scale(ctx, grad, multiplied) if any(wanted[4:5]) else None,
        None,
    )


def _to_scale(ctx: Any, x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """The sum of ``grad * (x @ W.T)`` over the batch.
    The product is taken anew, in float32 if the weight is narrow.
    """
    stream, scale, _ = ctx.saved_tensors
    wide = wide_of(x.dtype)
    product = torch.ops.wcodec.linear(
        x.to(wide) if ctx.dtype in NARROW else x,
        stream,
        ctx.shape,
        ctx.dtype,
        None,
        None,
        ctx.mode,
    )
    return (grad.to(wide) * product).reshape(-1, scale.numel()).sum(0).to(scale.dtype)


linear.register_autograd(_linear_backward, setup_context=_keep)
linear_grad_input.register_autograd(_grad_input_backward, setup_context=_keep)
