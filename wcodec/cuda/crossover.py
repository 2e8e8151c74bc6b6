"""Up to how many rows of x products are taken straight from an operand. With more, it is decoded
and multiplied by cuBLAS.

Nothing has been measured on a GPU yet. Until then the limit is that of the kernels, for weights
whose symbols are coded too.
"""

from __future__ import annotations

from math import log
from typing import Final

from wcodec.cuda.linear import MOST_BATCH

#: What was measured: the lines that ``benchmarks/gpu/fused.py --table`` prints. Compute capability
#: without the point, weights as `wcodec.cuda.operand.Operand` calls them, "fixed" or "rans", rows
#: and columns of the weight, and the largest batch up to which products straight from it were not
#: slower; 0 if there is none.
TABLE: Final[tuple[tuple[int, str, str, int, int, int], ...]] = ()


def most_batch(shape: tuple[int, int], weights: str, coded: bool, capability: int) -> int:
    """The batch of the row whose shape is nearest by ratios, of those of the same GPU,
    weights and form.
    """
    kind = capability, weights, "rans" if coded else "fixed"
    found = [
        (abs(log(n / shape[0])) + abs(log(k / shape[1])), most)
        for *of, n, k, most in TABLE
        if tuple(of) == kind
    ]
    return min(min(found)[1], MOST_BATCH) if found else MOST_BATCH
