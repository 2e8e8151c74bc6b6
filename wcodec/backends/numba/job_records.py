"""Jobs: what a kernel has to know about one segment, a record each.

A structured array of NumPy, whose records kernels read by the names of their fields.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, NamedTuple

import numpy as np

from wcodec.backends.numba.arrays import padded
from wcodec.backends.numba.kernels import ArrayOf, Bytes, Int, Ints, Ints2, jit, kernel
from wcodec.backends.numba.kinds import GENERAL, WITH_CONTEXTS
from wcodec.reference.planes import WORD_TYPES, Layout
from wcodec.reference.prediction import N_MODES, PER_TILE
from wcodec.reference.rans import GROUP, HEAD_NBYTES, UNIT
from wcodec.reference.segments import LAST_LAYOUT, MAX_WINDOW_BASE, Coder
from wcodec.reference.tables import ContextKind
from wcodec.reference.transforms import N_TRANSFORMS

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

MAX_COLUMNS: Final = 3 + 4 * MAX_PLANES
#: where the columns of a segment table are
COLUMNS: Final = np.dtype([("at", np.int64, MAX_COLUMNS), ("width", np.int64, MAX_COLUMNS)])
ColumnsAt = Annotated[Any, ArrayOf(COLUMNS)]


class Table(NamedTuple):
    """A segment table, and what it is for.

    Attributes
    ----------
    data
        uint8: its columns as a tensor record holds them (R4.36) are in it.
    start, end
        From where, and to where.
    n_planes
        Planes that it has columns for.
    rows, cols, segment_rows, segment_cols, tile_rows, tile_cols
        Of the matrix, of a segment and of a tile, in words.
    word_nbytes
        Bytes of a word.
    has_pairs
        Whether the dtype has layout PAIRS.
    bounds
        int64: those of `tiles.Spans`, or empty.
    map_kinds
        int64: the kind of each context map.
    columns
        Room for one record of type `COLUMNS`.
    """

    data: Bytes
    start: Int
    end: Int
    n_planes: Int
    rows: Int
    cols: Int
    segment_rows: Int
    segment_cols: Int
    tile_rows: Int
    tile_cols: Int
    word_nbytes: Int
    has_pairs: Int
    bounds: Ints
    map_kinds: Ints
    columns: ColumnsAt


class Pair(NamedTuple):
    """Two integers."""

    first: Int
    second: Int


# ---- columns -------------------------------------------------------------------------------------
@jit
def _n_across(table: Any) -> Any:
    return (table.cols + table.segment_cols - 1) // table.segment_cols


@jit
def _n_segments(table: Any) -> Any:
    if table.bounds.size:
        return table.bounds.size - 1
    if table.rows == 0 or table.cols == 0:
        return 0
    n_down = (table.rows + table.segment_rows - 1) // table.segment_rows
    return n_down * _n_across(table)


@jit
def _find_columns(table: Any) -> Any:
    """Find all columns; returns whether they are there, and nothing else is."""
    columns, at, n = table.columns[0], table.start, _n_segments(table)
    for c in range(3 + 4 * table.n_planes if n else 0):
        if at >= table.end:
            return False
        width = np.int64(table.data[at])
        nbytes = 4 if width == 0 else width * n
        if width == 3 or width > 4 or nbytes > table.end - at - 1:
            return False
        columns.at[c], columns.width[c] = at + 1, width
        at += 1 + nbytes
    return at == table.end


@jit
def _value(table: Any, c: Any, k: Any) -> Any:
    """What column `c` says of segment `k`."""
    width = table.columns[0].width[c]
    at, value = table.columns[0].at[c] + k * width, np.int64(0)
    for i in range(width if width else 4):
        value |= np.int64(table.data[at + i]) << (8 * i)
    return value


# Columns of a segment, and of each plane.
LAYOUT, BASE, N_PATCHES = 0, 1, 2
CODER, TABLE, PREDICTION, N_UNITS = 3, 4, 5, 6


# ---- jobs ----------------------------------------------------------------------------------------
@jit
def _fill_rectangle(job: Any, table: Any, k: Any) -> None:
    """Where segment `k` is, and its tiles."""
    if table.bounds.size:
        job.row, job.col, job.height = 0, table.bounds[k], 1
        job.width = table.bounds[k + 1] - job.col
    else:
        i, j = k // _n_across(table), k % _n_across(table)
        job.row, job.col = i * table.segment_rows, j * table.segment_cols
        job.height = min(table.segment_rows, table.rows - job.row)
        job.width = min(table.segment_cols, table.cols - job.col)
    across = (job.width + table.tile_cols - 1) // table.tile_cols
    job.n_tiles = (job.height + table.tile_rows - 1) // table.tile_rows * across


@jit
def symbols_of(job: Any, word_nbytes: Any, p: Any) -> Any:
    """Bytes of a plane, 0 if the layout has none (R10.3)."""
    n = job.height * job.width
    if job.layout == Layout.RAW or (p >= word_nbytes and job.layout != Layout.PAIRS):
        return 0
    return (n + 1) // 2 if job.layout == Layout.PAIRS and (p == 0 or word_nbytes == 1) else n


@jit
def longest_stream(size: Any) -> Any:
    """Bytes of the longest stream of so many symbols (R9.10)."""
    return HEAD_NBYTES + (size + GROUP - 1) // GROUP * (2 * GROUP)


@jit
def _fill_job(job: Any, table: Any, k: Any, start: Any, encoding: Any) -> None:
    """Fill in a job, whose record starts at `start`; to encode, with sizes at worst."""
    _fill_rectangle(job, table, k)
    job.layout, job.base = _value(table, LAYOUT, k), _value(table, BASE, k)
    job.n_patches, job.start = _value(table, N_PATCHES, k), start
    job.modes_nbytes, job.scales_nbytes, nbytes = 0, 0, 0
    if job.layout == Layout.RAW:
        nbytes = padded(job.height * job.width * table.word_nbytes)
    for p in range(table.n_planes):
        plane = job.planes[p]
        plane.coder = _value(table, CODER + 4 * p, k)
        plane.table = _value(table, TABLE + 4 * p, k)
        plane.prediction = _value(table, PREDICTION + 4 * p, k)
        plane.nbytes = UNIT * _value(table, N_UNITS + 4 * p, k)
        size = symbols_of(job, table.word_nbytes, p)
        if plane.coder == Coder.RAW:
            plane.nbytes = padded(size)
        elif encoding and plane.coder != Coder.CONSTANT:
            plane.nbytes = longest_stream(size)
        if plane.prediction == PER_TILE:
            job.modes_nbytes += job.n_tiles
        named = plane.coder == Coder.CONTEXT and plane.table < table.map_kinds.size
        if named and table.map_kinds[plane.table] == ContextKind.SCALE:
            job.scales_nbytes = (job.height + job.width + 3) // 4
    at = start + nbytes + padded(job.modes_nbytes) + padded(job.scales_nbytes)
    for p in range(table.n_planes):
        job.planes[p].offset = at
        at += job.planes[p].nbytes
    n_patches = job.n_patches
    if encoding and job.layout == Layout.PAIRS and table.word_nbytes > 1:
        n_patches = job.height * job.width
    job.patches_offset, job.end = at, at + padded(4 * n_patches)


@jit
def _kind_of(job: Any, n_planes: Any, common_kinds: Any) -> Any:
    """Which kernels suit a segment; see `kinds`."""
    contexts, predicted = False, False
    for p in range(n_planes):
        contexts |= job.planes[p].coder == Coder.CONTEXT
        predicted |= job.planes[p].prediction != 0
    if contexts:
        return WITH_CONTEXTS
    common = job.layout != Layout.RAW and not predicted and job.planes[0].coder == Coder.RANS
    if common and job.n_tiles == 1:
        return common_kinds[1] if job.layout == Layout.PAIRS else common_kinds[0]
    return GENERAL


@kernel
def fill_rectangles(jobs: Jobs, table: Table, segments: Ints) -> None:
    """Fill in where segments are, in jobs of these numbers or, if there are none, of all."""
    table = Table(*table)
    for i in range(len(jobs)):
        _fill_rectangle(jobs[i], table, segments[i] if segments.size else i)


# What `fill_jobs` finds out of all segments together.
(
    N_TABLES,  # tables in use, or -1 if one is not there
    NBYTES,  # bytes of all records
    LONGEST,  # bytes of the longest stream
    TRANSFORMS,  # a bit for each transform in use
    KIND,  # the kind of all segments, or `MIXED`
    N_FOUND,
) = range(6)
MIXED: Final = -2


@jit
def _number_tables(jobs: Any, n_planes: Any, tables: Any) -> Any:
    """Number the tables that are in use from 0; returns how many."""
    numbers, ids, n_used = tables[0], tables[1], 0
    for i in range(numbers.size):
        if numbers[i]:
            ids[n_used], numbers[i] = i, n_used
            n_used += 1
    for k in range(len(jobs)):
        for p in range(n_planes):
            if jobs[k].planes[p].coder == Coder.RANS:
                jobs[k].planes[p].table = numbers[jobs[k].planes[p].table]
    return n_used


@jit
def _look_at_planes(job: Any, n_planes: Any, n_maps: Any, numbers: Any, found: Any) -> Any:
    """Find what is in use; returns whether all tables and context maps are there."""
    for p in range(n_planes):
        plane = job.planes[p]
        if plane.coder == Coder.RANS:
            if plane.table >= numbers.size:
                return False
            numbers[plane.table] = 1
        elif plane.coder == Coder.CONTEXT and plane.table >= n_maps:
            return False
        found[LONGEST] = max(found[LONGEST], plane.nbytes)
        mode = plane.prediction
        found[TRANSFORMS] |= (1 << N_TRANSFORMS) - 1 if mode == PER_TILE else 1 << (mode >> 4)
    return True


@kernel
def fill_jobs(
    jobs: Jobs,
    kinds: Ints,
    table: Table,
    fill: Bytes,
    common_kinds: Pair,
    tables: Ints2,
    encoding: Int,
    found: Ints,
) -> None:
    """Fill in jobs.

    Parameters
    ----------
    jobs
        Records of type `JOB`, one a segment.
    kinds
        int64: filled with which kernels suit each segment; see `kinds`.
    table
        Elements of `Table`.
    fill
        The plan's, or empty.
    common_kinds
        Kinds of segments of layout BYTES and of layout PAIRS that are a single tile.
    tables
        int64 of shape (2, tables of the pool), the first row 1 for those of context maps, 0 for the
        others: filled with the numbers from 0 of the tables that are used, which jobs have, and
        with which tables these are.
    encoding
        Whether sizes are those at worst.
    found
        int64: filled with what is found out of all segments together, `N_FOUND` numbers.
    """
    table, modes_offset, scales_offset = Table(*table), 0, 0
    n_maps = table.map_kinds.size
    found[N_TABLES], found[NBYTES], found[LONGEST], found[TRANSFORMS] = -1, 0, 0, 0
    found[KIND] = MIXED
    if not _find_columns(table):
        return
    for k in range(len(jobs)):
        job = jobs[k]
        _fill_job(job, table, k, found[NBYTES], encoding)
        job.fill = fill[k] if fill.size else np.uint8(0)
        job.modes_offset, job.scales_offset = modes_offset, scales_offset
        modes_offset += job.modes_nbytes
        scales_offset += job.scales_nbytes
        found[NBYTES], kinds[k] = job.end, _kind_of(job, table.n_planes, common_kinds)
        if k == 0:
            found[KIND] = kinds[0]
        elif kinds[k] != kinds[0]:
            found[KIND] = MIXED
        if not _look_at_planes(job, table.n_planes, n_maps, tables[0], found):
            return
    found[N_TABLES] = _number_tables(jobs, table.n_planes, tables)


# ---- checks --------------------------------------------------------------------------------------
@jit
def _is_coder(coder: Any) -> Any:
    named = coder == Coder.RAW or coder == Coder.CONSTANT
    return named or coder == Coder.RANS or coder == Coder.CONTEXT


@jit
def _is_good_plane(job: Any, p: Any, table: Any, n_tables: Any, n_units: Any) -> Any:
    """Whether the columns of a plane keep the rules."""
    plane, size = job.planes[p], symbols_of(job, table.word_nbytes, p)
    coder, number, mode = plane.coder, plane.table, plane.prediction
    is_mode = (mode & 15) < N_MODES and (mode >> 4) < N_TRANSFORMS
    if not _is_coder(coder) or not (is_mode or mode == PER_TILE):
        return False
    if size == 0:
        return coder == 0 and number == 0 and mode == 0 and n_units == 0
    stream = coder == Coder.RANS or coder == Coder.CONTEXT
    if mode != 0 and (not stream or job.layout == Layout.PAIRS):
        return False
    if not stream:
        return n_units == 0 and number < (256 if coder == Coder.CONSTANT else 1)
    if number >= (n_tables if coder == Coder.RANS else table.map_kinds.size):
        return False
    if coder == Coder.CONTEXT and p == 0 and table.map_kinds[number] == ContextKind.PLANE:
        return False
    return HEAD_NBYTES // UNIT <= n_units <= longest_stream(size) // UNIT


@jit
def _is_good(job: Any, table: Any, n_tables: Any, k: Any) -> Any:
    """Whether the columns of a segment keep the rules."""
    pairs = job.layout == Layout.PAIRS
    if job.layout > LAST_LAYOUT or (pairs and not table.has_pairs):
        return False
    windowed = pairs and table.word_nbytes > 1
    if job.base > (MAX_WINDOW_BASE if windowed else 0):
        return False
    if job.n_patches > (job.height * job.width if windowed else 0):
        return False
    for p in range(table.n_planes):
        if not _is_good_plane(job, p, table, n_tables, _value(table, N_UNITS + 4 * p, k)):
            return False
    return True


@kernel
def check_table(job: Jobs, table: Table, n_tables: Int) -> Int:
    """Check the columns of a segment table, by all rules of
    `wcodec.reference.records.check_plan`.

    Parameters
    ----------
    job
        Room for one record of type `JOB`.
    table
        Elements of `Table`.
    n_tables
        Tables of the pool.

    Returns
    -------
    Bytes of all records, or -1 if a rule is broken.
    """
    table, end = Table(*table), 0
    if not _find_columns(table):
        return -1
    for k in range(_n_segments(table)):
        _fill_job(job[0], table, k, end, 0)
        if not _is_good(job[0], table, n_tables, k):
            return -1
        end = job[0].end
    return end
