"""Jobs: what a kernel has to know about one segment, a record each.

A structured array of NumPy, whose records kernels read by the names of their fields.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, NamedTuple

import numpy as np

from wcodec.backends.numba.arrays import padded
from wcodec.backends.numba.kernels import (
    ArrayOf,
    Bytes,
    Bytes2,
    Int,
    Ints,
    Ints2,
    UInts32,
    UInts32x2,
    jit,
    kernel,
)
from wcodec.backends.numba.kinds import GENERAL, WITH_CONTEXTS
from wcodec.reference.planes import WORD_TYPES, Layout
from wcodec.reference.segments import Coder

MAX_PLANES: Final = max(WORD_TYPES)

#: of a plane; offsets are in the payload
PLANE: Final = np.dtype(
    [
        ("coder", np.int64),  # a `Coder`
        ("table", np.int64),  # number of a table or context map, or the value of a constant plane
        ("prediction", np.int64),  # a mode, or PER_TILE
        ("offset", np.int64),  # where it starts
        ("nbytes", np.int64),  # what it takes there
    ]
)
#: of a segment; offsets are in the payload unless it says otherwise
JOB: Final = np.dtype(
    [
        ("row", np.int64),  # of its first word in the matrix
        ("col", np.int64),
        ("height", np.int64),  # in words
        ("width", np.int64),
        ("layout", np.int64),  # a `Layout`
        ("base", np.int64),  # where the window of exponents begins
        ("fill", np.int64),  # the code of words outside of the window
        ("start", np.int64),  # where its record starts
        ("end", np.int64),  # where its record ends
        ("n_tiles", np.int64),
        ("modes_offset", np.int64),  # in the plan's modes
        ("modes_nbytes", np.int64),
        ("scales_offset", np.int64),  # in the plan's scales
        ("scales_nbytes", np.int64),
        ("patches_offset", np.int64),
        ("n_patches", np.int64),
        ("planes", PLANE, (MAX_PLANES,)),
    ]
)


Jobs = Annotated[Any, ArrayOf(JOB)]


class Columns(NamedTuple):
    """Columns of a segment table, an entry a segment; of shape (n_planes, n) those of planes.

    `fill` is the plan's, or empty.
    """

    layout: Bytes
    base: Bytes
    fill: Bytes
    n_patches: UInts32
    coder: Bytes2
    table: UInts32x2
    prediction: Bytes2


class Pair(NamedTuple):
    """Two integers."""

    first: Int
    second: Int


class Sizes(NamedTuple):
    """Bytes of the parts of each record; `offsets` of records is empty for encoding."""

    modes_nbytes: Ints
    scales_nbytes: Ints
    stream_nbytes: Ints2
    offsets: Ints


@jit
def _number_tables(columns: Any, numbers: Any, ids: Any) -> Any:
    """Number the tables that are used; returns how many, or -1 if one is not there."""
    coder, table, n_used = columns.coder, columns.table, 0
    for p in range(coder.shape[0]):
        for k in range(coder.shape[1]):
            if coder[p, k] == Coder.RANS:
                if table[p, k] >= numbers.size:
                    return -1
                numbers[table[p, k]] = 1
    for i in range(numbers.size):
        if numbers[i]:
            ids[n_used], numbers[i] = i, n_used
            n_used += 1
    return n_used


@jit
def _fill_planes(job: Any, k: Any, columns: Any, sizes: Any, numbers: Any) -> Any:
    """Fill in the planes of a job; returns whether any is coded with contexts, or predicted."""
    contexts, predicted, at = False, False, np.int64(0)
    if sizes.offsets.size:
        at = job.start + padded(job.modes_nbytes) + padded(job.scales_nbytes)
    for p in range(columns.coder.shape[0]):
        plane, coder = job.planes[p], columns.coder[p, k]
        plane.coder, plane.prediction = coder, columns.prediction[p, k]
        plane.table = columns.table[p, k]
        if coder == Coder.RANS:
            plane.table = numbers[plane.table]
        contexts |= coder == Coder.CONTEXT
        predicted |= plane.prediction != 0
        if sizes.offsets.size:
            plane.offset, plane.nbytes = at, sizes.stream_nbytes[p, k]
            at += plane.nbytes
    return contexts, predicted


@kernel
def fill_jobs(
    jobs: Jobs,
    tile_shape: Pair,
    columns: Columns,
    sizes: Sizes,
    numbers: Ints,
    ids: Ints,
    kinds: Ints,
    common_kinds: Pair,
) -> Int:
    """Fill in jobs of which only the rectangles are.

    Parameters
    ----------
    jobs
        Records of type `JOB`.
    tile_shape
        Rows and columns of a tile.
    columns, sizes
        Elements of `Columns` and `Sizes`.
    numbers
        int64, an entry for each table of the pool: 1 for tables of context maps, 0 for the others.
        Filled with the numbers from 0 of the tables that are used.
    ids
        int64: filled with which tables of the pool these are.
    kinds
        int64: filled with which kernels suit each segment; see `kinds`.
    common_kinds
        Kinds of segments of layout BYTES and of layout PAIRS that are a single tile.

    Returns
    -------
    How many tables are used, or -1 if one is not there.
    """
    columns, sizes = Columns(*columns), Sizes(*sizes)
    offsets = sizes.offsets
    n_used, modes_offset, scales_offset = _number_tables(columns, numbers, ids), 0, 0
    (tile_rows, tile_cols), (of_bytes, of_pairs) = tile_shape, common_kinds
    for k in range(len(jobs) if n_used >= 0 else 0):
        job = jobs[k]
        job.layout, job.base = columns.layout[k], columns.base[k]
        if columns.fill.size:
            job.fill = columns.fill[k]
        n_across = (job.width + tile_cols - 1) // tile_cols
        job.n_tiles = (job.height + tile_rows - 1) // tile_rows * n_across
        job.modes_offset, job.modes_nbytes = modes_offset, sizes.modes_nbytes[k]
        job.scales_offset, job.scales_nbytes = scales_offset, sizes.scales_nbytes[k]
        modes_offset += job.modes_nbytes
        scales_offset += job.scales_nbytes
        if offsets.size:
            job.n_patches, job.start, job.end = columns.n_patches[k], offsets[k], offsets[k + 1]
            job.patches_offset = job.end - padded(4 * job.n_patches)
        contexts, predicted = _fill_planes(job, k, columns, sizes, numbers)
        common = job.layout != Layout.RAW and not predicted and columns.coder[0, k] == Coder.RANS
        kinds[k] = GENERAL
        if contexts:
            kinds[k] = WITH_CONTEXTS
        elif common and job.n_tiles == 1:
            kinds[k] = of_pairs if job.layout == Layout.PAIRS else of_bytes
    return n_used
