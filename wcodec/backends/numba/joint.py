"""Counts of symbols by where they stand."""

from __future__ import annotations

import numpy as np

from wcodec.backends.numba.kernels import Bytes, Bytes2, UInts32, UInts64, kernel


@kernel
def count_by_line(
    symbols: Bytes2, rows: UInts64, cols: UInts64, bins: Bytes, counts: UInts32
) -> None:
    """As `Backend.joint_histogram`, but rows and columns have the number of the first count of
    their line. Counts are added to.
    """
    for i in range(symbols.shape[0]):
        row, line = symbols[i], rows[i]
        for j in range(row.size):
            counts[line + cols[j] + np.uint64(bins[row[j]])] += np.uint32(1)
