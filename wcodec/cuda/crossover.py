"""Up to how many rows of x products are taken straight from an operand. With more, it is decoded and multiplied by cuBLAS.

Nothing has been measured on a GPU yet. Until then the limit is that of the kernels, for weights whose symbols are coded too.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from wcodec.cuda.linear import MOST_BATCH


class Row(NamedTuple):
    """What was measured: a line of ``benchmarks/fused.py --table``.

    Attributes
    ----------
    capability
        Compute capability of the GPU, 90 for 9.0.
    weights
        As of `wcodec.cuda.operand.Operand`.
    form
        "fixed", or "rans" if symbols are coded.
    n, k
        Rows and columns of the weight.
    most_batch
        The largest batch up to which products from the operand take no longer; 0 if they always do.
    """

    capability: int
    weights: str
    form: str
    n: int
    k: int
    most_batch: int


TABLE: Final[tuple[Row, ...]] = ()


def most_batch(shape: tuple[int, int], weights: str, coded: bool, capability: int) -> int:
    """That of the row whose shape is nearest by ratios, of those of the same GPU, weights and form."""
    kind = capability, weights, "rans" if coded else "fixed"
    rows = [row for row in TABLE if (row.capability, row.weights, row.form) == kind]
    if not rows:
        return MOST_BATCH
    nearest = min(rows, key=lambda row: abs(math.log(row.n / shape[0])) + abs(math.log(row.k / shape[1])))
    return min(nearest.most_batch, MOST_BATCH)
