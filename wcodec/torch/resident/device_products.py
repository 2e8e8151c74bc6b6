"""Products with operands on a GPU: by the kernels of `wcodec.cuda.linear`,
in PyTorch's memory and on its current stream.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

import torch

from wcodec.cuda.crossover import most_batch
from wcodec.cuda.linear import linear, plan_linear
from wcodec.cuda.operand import Operand, kernel_problem
from wcodec.cuda.resident import ResidentTensor

#: activations that kernels multiply, as they call them
FACTORS: Final = {torch.bfloat16: "bf16", torch.float16: "fp16"}
#: bits that are all set in NaN, and in Inf
_NOT_FINITE: Final = {torch.float8_e4m3fn: 0x7F, torch.float8_e5m2: 0x7C}
SOME_NBYTES: Final = 1 << 24  #: bytes that are looked at together

_plan = lru_cache(maxsize=4096)(plan_linear)


class Prepared(NamedTuple):
    """What is known of a weight in device memory that was decoded and checked.

    Attributes
    ----------
    operand
        ``None`` if its stream holds none.
    most_batch
        Rows of x up to which products are taken from it;
        0 if kernels would not give what PyTorch does.
    n_processors
        Multiprocessors of the device.
    """

    operand: Operand | None
    most_batch: int
    n_processors: int


def prepare(resident: ResidentTensor, dense: torch.Tensor) -> Prepared:
    """Make a weight that was just decoded ready to be multiplied by, and wait until it is.

    Parameters
    ----------
    dense
        What was decoded.
    """
    runtime, t = resident.runtime, resident.t
    if kernel_problem(t) is not None:
        return Prepared(None, 0, 0)
    operand = Operand(runtime, t, resident.tables, resident.payload)
    most = (
        most_batch(operand.shape, operand.weights, operand.coded, runtime.capability())
        if _is_finite(dense)
        else 0
    )
    runtime.mark().synchronize()  # from now on, any stream may read it
    return Prepared(operand, most, runtime.n_processors())


def _is_finite(dense: torch.Tensor) -> bool:
    """Whether float8 weights have neither NaN nor Inf, for which kernels have no room;
    others may have them.
    """
    bits = _NOT_FINITE.get(dense.dtype)
    if bits is None:
        return True
    return not any(
        bool(((some & bits) == bits).any())
        for some in dense.view(torch.uint8).view(-1).split(SOME_NBYTES)
    )


def multiply_transposed(
    weight: Prepared, x: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor | None
) -> torch.Tensor | None:
    """``(x @ W.T) * scale + bias``; ``None`` if the weight has to be decoded first.

    Parameters
    ----------
    x
        Of shape (..., k) and a dtype of `FACTORS`.
    bias, scale
        Of shape (n,), the first of the dtype of `x`, the other float32.
    """
    operand, batch = weight.operand, x.shape[:-1].numel()
    if operand is None or batch > weight.most_batch:
        return None
    y = x.new_empty(*x.shape[:-1], operand.shape[0])
    if batch == 0:
        return y
    plan = _plan(operand.shape, operand.coded, batch, weight.n_processors)
    x, ends = x.contiguous(), [None if t is None else t.contiguous() for t in (bias, scale)]
    parts = torch.empty(plan.workspace_nbytes, dtype=torch.uint8, device=x.device)
    at_bias, at_scale = (0 if t is None else t.data_ptr() for t in ends)
    factors, workspace = FACTORS[x.dtype], parts.data_ptr() or None
    linear(
        x.data_ptr(),
        batch,
        operand,
        y.data_ptr(),
        bias=at_bias,
        scale=at_scale,
        factors=factors,
        plan=plan,
        workspace=workspace,
    )
    return y
