"""What an encoder chooses: geometry, layouts, coders, tables, prediction. Spec: chapter 14 (informative).

All choices are made here, on the host, in integers and from exact histograms, so that every backend on every machine
writes the same file. Costs are in 1/65536 bit where they are sums over symbols, in bytes where they are sums of records.
Float64 holds them, because products of histograms with costs are then one matrix product; all are integers below 2^53.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from wcodec.errors import EncodeError
from wcodec.reference import entropy
from wcodec.reference.entropy import TablePool, log2_fixed, quantise
from wcodec.reference.planes import DType, Layout, Words
from wcodec.reference.prediction import N_MODES, PER_TILE, Mode
from wcodec.reference.segments import Coder, SegmentPlan, SegmentTable, padded
from wcodec.reference.tiles import MAX_RANK, MAX_SEGMENT_ELEMENTS, MIN_TILE, Geometry, matrix_view

Counts = NDArray[np.int64]

CHUNK_NBYTES: Final = 1 << 24  #: words planned and encoded at once
EVEN: Final = 64  #: widths of bands are multiples of that many words: kernels move whole vectors
MIN_ROW: Final = 64  #: fewest columns of a matrix view, where the shape allows
MAX_RARE: Final = 4  #: symbols of which a table keeps one slot each though they do not occur
MAX_TABLES: Final = (1 << 16) - 1
RECENT_TABLES: Final = 256  #: how far back an encoder looks for a table that fits
NEW_TABLES: Final = 16  #: most tables that one plane of a chunk adds for segments unlike the others
FEW: Final = 16  #: of no more segments than that, all planes are counted, in all
TRIED: Final = 64  #: parts of segments that prediction is tried on, about
MAX_PATCHES: Final = 100  #: a segment with more than one patch in so many words is not coded in pairs
NEGLIGIBLE: Final = 4096  #: a new table must save that part of what it codes, besides its own bytes
IMPOSSIBLE: Final = float(entropy.NEVER)


@dataclass(frozen=True)
class EncodeOptions:
    """Choices that a caller can take out of the encoder's hands.

    Parameters
    ----------
    segment
        Rows and columns of a segment in the matrix view, which is a single row if the last dimensions make fewer than 64
        columns (spec: R6.2, chapter 14); by default about 32768 words, 16384 of 4 or 8 bytes.
    tile
        Rows and columns of a tile, each a divisor of the segment's and at least 16 (or the whole); by default the segment.
    predictor
        ``"auto"``, or one mode for all coded byte planes: ``"none"``, ``"left"``, ``"top"``, ``"avg"``, ``"planar"``.
    layout
        ``"auto"``, ``"raw"``, ``"bytes"`` or ``"pairs"``; dtypes that have no pairs are then stored in bytes.
    prob_bits
        log2 of the sum of a table's frequencies, 9 to 12.
    min_saving
        Part of a plane's bytes that coding must save, or it is stored raw. Below 0 forces coding.

    Raises
    ------
    EncodeError
        ``bad_option``
    """

    segment: tuple[int, int] | None = None
    tile: tuple[int, int] | None = None
    predictor: str = "auto"
    layout: str = "auto"
    prob_bits: int = entropy.MAX_PROB_BITS
    min_saving: float = 0.02

    def __post_init__(self) -> None:
        def require(holds: bool, message: str) -> None:
            if not holds:
                raise EncodeError("bad_option", message)

        modes = ["auto", *(m.name.lower() for m in Mode)]
        require(self.predictor in modes, f"predictor {self.predictor!r} is none of {', '.join(modes)}")
        require(self.layout in ("auto", "raw", "bytes", "pairs"), f"layout {self.layout!r} is none of auto, raw, bytes, pairs")
        low, high = entropy.MIN_PROB_BITS, entropy.MAX_PROB_BITS
        require(low <= self.prob_bits <= high, f"prob_bits {self.prob_bits} is not {low} to {high}")
        require(-64 <= self.min_saving <= 1, f"min_saving {self.min_saving} is not -64 to 1")
        if self.segment is not None:
            require(min(self.segment) >= 1, "a segment size is below 1")
            require(math.prod(self.segment) <= MAX_SEGMENT_ELEMENTS, f"segments of more than {MAX_SEGMENT_ELEMENTS} elements")
        if self.tile is not None:
            require(min(self.tile) >= 1, "a tile size is below 1")
            require(self.segment is not None, "a tile size needs a segment size")
            for s, t in zip(self.segment or (), self.tile, strict=True):
                require(s % t == 0 and (t >= MIN_TILE or t == s), f"tile size {t} does not fit segment size {s}")


# ---- geometry ------------------------------------------------------------------------------------------------------------
def choose_row_rank(shape: tuple[int, ...]) -> int:
    """How many leading dimensions make the rows (R6.2): as many as leave rows of 64 elements."""
    rank = len(shape)
    for row_rank in range(rank - 1, 0, -1):
        if math.prod(shape[row_rank:]) >= MIN_ROW:
            return row_rank
    return 0


def choose_geometry(shape: tuple[int, ...], dtype: DType, options: EncodeOptions) -> tuple[int, Geometry]:
    """`row_rank` and geometry of a tensor.

    Raises
    ------
    EncodeError
        ``resource_limit``: more than 32 dimensions.
    """
    if len(shape) > MAX_RANK:
        raise EncodeError("resource_limit", f"{len(shape)} dimensions; the format has room for {MAX_RANK}")
    row_rank = choose_row_rank(shape)
    rows, cols = matrix_view(shape, row_rank, dtype.words_per_element)
    s_rows, s_cols = options.segment or _segment_size(max(rows, 1), max(cols, 1), dtype.word_nbytes)
    t_rows, t_cols = options.tile or (s_rows, s_cols)
    return row_rank, Geometry(rows, cols, s_rows, s_cols, t_rows, t_cols)


def _segment_size(rows: int, cols: int, word_nbytes: int) -> tuple[int, int]:
    """Bands of equal width near 256, a multiple of 64 but for the last one, wider where there are few rows, cut into segments of
    equal height near the target.

    A matrix of up to two bands is one. A row of segments holds at most 2^24 words, so that it can be coded at once.
    """
    target = 1 << 15 if word_nbytes <= 2 else 1 << 14
    most_rows = min(rows, max(1, MAX_SEGMENT_ELEMENTS // cols))
    wide = max(256, target // most_rows)
    if most_rows == 1:
        return 1, min(cols, wide)
    s_cols = cols if cols <= 2 * wide else -(-cols // (cols // wide * EVEN)) * EVEN
    n_down = max(1, round(rows * s_cols / target), -(-rows // most_rows))
    return -(-rows // n_down), s_cols


def chunks(geometry: Geometry, word_nbytes: int, nbytes: int = CHUNK_NBYTES) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Sub-grids that are coded at once: whole rows of segments up to `nbytes`.

    Where a row of segments is larger than that and one word high, it is cut; the words of a chunk are contiguous either way.
    """
    n_down, n_across = geometry.grid
    all_across = np.arange(n_across, dtype=np.int64)
    band = geometry.segment_rows * geometry.cols * word_nbytes
    if band > nbytes and min(geometry.segment_rows, geometry.rows) == 1:
        step = max(1, nbytes // (geometry.segment_cols * word_nbytes))
        for i in range(n_down):
            for j in range(0, n_across, step):
                yield np.array([i], np.int64), all_across[j : j + step]
    else:
        step = max(1, nbytes // max(band, 1))
        for i in range(0, n_down, step):
            yield np.arange(i, min(i + step, n_down), dtype=np.int64), all_across


# ---- planning ------------------------------------------------------------------------------------------------------------
class Histograms(Protocol):
    """The one kernel that planning needs; see `wcodec.backends.protocol.Backend.histogram`."""

    def histogram(
        self, words: Words, geometry: Geometry, dtype: DType, *,
        segments: NDArray[np.int64] | None = None, planes: tuple[int, ...] | None = None,
        mode: int = 0, base: int | None = None, fill: int = 0,
    ) -> NDArray[np.int64]: ...  # fmt: skip


@dataclass
class _Choice:
    """How one plane of each segment would be stored, and its bytes in the file."""

    coder: NDArray[np.uint8]
    table: NDArray[np.uint32]
    prediction: NDArray[np.uint8]
    nbytes: Counts

    @classmethod
    def raw(cls, size: Counts) -> _Choice:
        """All stored raw."""
        n = size.size
        return cls(np.zeros(n, np.uint8), np.zeros(n, np.uint32), np.zeros(n, np.uint8), padded(size))

    def take(self, other: _Choice, where: NDArray[np.bool_]) -> None:
        """Take over another choice in some segments."""
        for f in fields(self):
            np.copyto(getattr(self, f.name), getattr(other, f.name), where=where)


@lru_cache(maxsize=1)
def _log2_counts() -> Counts:
    return log2_fixed(1 << 16)


@lru_cache(maxsize=1)
def _n_log2_n() -> Counts:
    return np.arange((1 << 16) + 1, dtype=np.int64) * _log2_counts()


def ideal_cost(counts: Counts) -> Counts:
    """Order-0 entropy of each histogram (last axis), summed over its symbols."""
    total = counts.sum(axis=-1)
    if int(total.max(initial=0)) <= 1 << 16:
        terms = _n_log2_n()
        return np.asarray(terms[total] - terms[counts].sum(axis=-1), np.int64)
    shift, log2 = int(total.max()).bit_length() - 16, _log2_counts()
    scaled = log2[counts >> shift] + np.where(counts >> shift > 0, shift << 16, 0)
    whole = log2[total >> shift] + np.where(total >> shift > 0, shift << 16, 0)
    return np.asarray(total * whole - (counts * scaled).sum(axis=-1), np.int64)


def _stream_nbytes(cost: Any) -> Counts:
    """Bytes of a rANS stream whose symbols have this cost: the start states, the words, padding."""
    return np.asarray(padded(entropy.HEAD_NBYTES + np.ceil(cost / (8 << 16)).astype(np.int64)), np.int64)


@dataclass(frozen=True)
class _Chunk:
    """The words that a plan is for; `size` is of each segment."""

    words: Words
    geometry: Geometry
    dtype: DType
    backend: Histograms
    size: Counts

    def histogram(self, **what: Any) -> Counts:
        """See `wcodec.backends.protocol.Backend.histogram`."""
        return self.backend.histogram(self.words, self.geometry, self.dtype, **what)

    def top_rows(self) -> _Chunk:
        """The first sixteenth of the rows of each segment, as segments of a single tile; of flat ones and the last row of segments none."""
        g = self.geometry
        height, n_down = g.segment_rows // 16, g.rows // g.segment_rows
        if height == 0 or n_down == 0:
            return self
        words = self.words[: n_down * g.segment_rows].reshape(n_down, g.segment_rows * g.cols)[:, : height * g.cols]
        part = Geometry(n_down * height, g.cols, height, g.segment_cols, height, g.segment_cols)
        heights, widths = part.sizes()
        return replace(self, words=words.copy().reshape(part.rows, g.cols), geometry=part, size=heights * widths)


@dataclass
class _Sample:
    """What is looked at first: a part of the chunk and some of its segments, and their histograms; byte planes worth counting,
    and nibble planes of one-byte words; whether pairs and bytes come into question."""

    part: _Chunk
    ids: Counts
    counts: Counts
    planes: tuple[int, ...]
    pairs: bool
    bytes: bool
    nibbles: tuple[int, ...] = (0, 1)

    def window(self) -> tuple[int, int]:
        """Base and fill code of nibble pairs."""
        top = self.counts[:, 0].sum(axis=0)
        if self.counts.shape[1] == 1:
            return 0, int(np.argmax(top.reshape(16, 16).sum(axis=1)))
        return window_of(top)


def spread(n: int, most: int) -> Counts:
    """Ids of a quarter of `n` segments, but at least one and no more than `most`, spread evenly."""
    count = min(most, max(1, n // 4))
    return np.arange(count) * n // count


def _unseen_cost(counts: Counts) -> Counts:
    """Entropy of what a few symbols stand for, in all: theirs, and half a nat for each symbol but one (Miller and Madow, 1955)."""
    return np.asarray(ideal_cost(counts) + ((counts > 0).sum(axis=-1) - 1) * 47274, np.int64)


def _bytes_suit_some(halves: Counts, whole: Counts, size: Counts) -> bool:
    """Whether some segments look 3 % smaller in bytes than in nibble pairs, by their histograms in both forms."""
    pairs = np.minimum(_unseen_cost(halves), size[:, None] * (4 << 16)).sum(axis=1)
    return bool((pairs * 100 > np.minimum(_unseen_cost(whole), size * (8 << 16)) * 103).any())


def window_of(top: Counts) -> tuple[int, int]:
    """The sixteen neighbouring top bytes that occur most, and the code of the most frequent one."""
    base = int(np.argmax(np.convolve(top, np.ones(16, np.int64), "valid")))
    return base, int(np.argmax(top[base : base + 16]))


@dataclass
class _Pairs:
    """How segments would be stored in nibble pairs; `top` holds counts of their top bytes, for words of several."""

    base: int
    fill: int
    planes: list[_Choice]
    n_patches: Counts
    top: Counts | None = None

    @property
    def nbytes(self) -> Counts:
        """Bytes in the file."""
        return sum((c.nbytes for c in self.planes), padded(4 * self.n_patches))


def _store(table: SegmentTable, planes: list[_Choice], where: NDArray[np.bool_]) -> None:
    """Write choices into a segment table."""
    for p, choice in enumerate(planes):
        for column, value in ((table.coder, choice.coder), (table.table, choice.table), (table.prediction, choice.prediction)):
            np.copyto(column[p], value, where=where)


class Planner:
    """Plans chunk after chunk of a file's tensors; keeps the table pool.

    Parameters
    ----------
    options
        Choices taken by the caller.
    """

    def __init__(self, options: EncodeOptions) -> None:
        self.options, self.pool = options, TablePool()
        self.keep = 1024 - round(options.min_saving * 1024)  # coded bytes may be this many 1024ths of the raw ones

    def plan(self, words: Words, geometry: Geometry, dtype: DType, backend: Histograms) -> SegmentPlan:
        """Plan the segments of `words`, which `geometry` covers exactly."""
        n, n_tables = geometry.n_segments, len(self.pool)
        heights, widths = geometry.sizes()
        size = heights * widths
        table = SegmentTable.zeros(n, dtype.n_planes)
        if self.options.layout == "raw" or n == 0:
            return SegmentPlan(dtype, geometry, table, self.pool)
        chunk = _Chunk(words, geometry, dtype, backend, size)
        sample, raw_nbytes, fill, cost = self._look(chunk), padded(size * dtype.word_nbytes), np.zeros(n, np.uint8), padded(size) * 0
        winners = self._winners(chunk, sample)
        sample.bytes |= any(winners)
        pairs = self._pairs(chunk, sample) if sample.pairs else None
        tile_modes: dict[int, list[NDArray[np.uint8]]] = {}
        if pairs is None or not self._best_by_far(pairs, sample, chunk, winners, raw_nbytes):
            planes = self._bytes(chunk, sample, pairs, winners, tile_modes)
            cost = sum((c.nbytes for c in planes), cost)
            forced = self.options.layout != "auto" or self.options.min_saving < 0
            table.layout[:] = Layout.BYTES if forced else np.where(cost < raw_nbytes, Layout.BYTES, Layout.RAW)
            _store(table, planes, table.layout == Layout.BYTES)
            wanted = None if pairs is None else self._wanted(pairs, np.minimum(cost, raw_nbytes), size)
        else:
            wanted = np.full(n, True)
        if pairs is not None and wanted is not None:
            take = np.full(n, True) if self.options.layout == "pairs" else wanted
            table.layout[take] = Layout.PAIRS
            table.base[take], fill[take] = pairs.base, pairs.fill
            _store(table, pairs.planes, take)
        self._prune(table, n_tables)
        modes = [m[k] for k in range(n) for p, m in sorted(tile_modes.items()) if table.prediction[p, k] == PER_TILE]
        return SegmentPlan(dtype, geometry, table, self.pool, fill, np.concatenate(modes) if modes else None)

    # ---- looking at the words
    def _look(self, chunk: _Chunk) -> _Sample:
        """Histograms of some words: which planes are worth counting, and whether pairs or bytes can be left out."""
        n, one_byte = chunk.size.size, chunk.dtype.word_nbytes == 1
        part = chunk if n <= FEW else chunk.top_rows()
        ids = spread(n, FEW) if part is chunk else np.arange(part.size.size)
        counts = part.histogram(segments=ids)
        cost, bits = ideal_cost(counts.sum(axis=0)), int(part.size[ids].sum()) * (8 << 16)
        outliers = (ideal_cost(counts) * 20 < part.size[ids, None] * ((8 << 16) * 19)).any(axis=0)
        worth = np.flatnonzero((cost * 100 < bits * 99) | outliers)
        planes = range(counts.shape[1]) if n <= FEW or self.options.min_saving < 0 else sorted({0, *worth.tolist()})
        pairs = chunk.dtype.has_pairs and self.options.layout in ("auto", "pairs")
        sample = _Sample(part, ids, counts, tuple(planes), pairs, True)
        if pairs and one_byte and n > FEW and self.options.layout == "auto" and self.options.min_saving >= 0:
            halves = part.histogram(segments=ids, base=0, fill=sample.window()[1])
            of_both, low = ideal_cost(halves.sum(axis=0)), ideal_cost(halves[:, 1])
            nibbles, whole = int(np.minimum(of_both, bits // 2).sum()), min(int(cost[0]), bits)
            low_pays = of_both[1] * 200 < bits * 99 or bool((low * 40 < part.size[ids] * ((8 << 16) * 19)).any())
            sample.nibbles = (0, 1) if low_pays else (0,)
            sample.pairs, sample.bytes = nibbles * 99 < whole * 100, nibbles * 400 > whole * 401
            sample.bytes = sample.bytes or _bytes_suit_some(halves, counts[:, 0], part.size[ids])
        return sample

    def _pairs(self, chunk: _Chunk, sample: _Sample) -> _Pairs:
        """Choices of the planes, if coded in nibble pairs; counts of the top plane come with them."""
        size, dtype = chunk.size, chunk.dtype
        half, (base, fill) = (size + 1) // 2, sample.window()
        if dtype.word_nbytes == 1:
            counts = chunk.histogram(base=0, fill=fill, planes=sample.nibbles)
            halves = [self._choose(counts[:, i], half) for i in range(len(sample.nibbles))]
            return _Pairs(0, fill, [*halves, _Choice.raw(half)][:2], np.zeros(size.size, np.int64))
        counts = chunk.histogram(base=base, fill=fill, planes=sample.planes)
        better, filled = window_of(counts[:, 1].sum(axis=0))
        outside = size - counts[:, 1, base : base + 16].sum(axis=1)
        if (int(outside.sum()) - int((size - counts[:, 1, better : better + 16].sum(axis=1)).sum())) << 10 > int(size.sum()):
            base, fill = better, filled  # the sample has misled
            counts = chunk.histogram(base=base, fill=fill, planes=sample.planes)
            outside = size - counts[:, 1, base : base + 16].sum(axis=1)
        top, lower = self._choose(counts[:, 0], half), [_Choice.raw(size) for _ in range(1, dtype.word_nbytes)]
        for i, p in enumerate(sample.planes[1:], 2):
            lower[p - 1] = self._choose(counts[:, i], size)
        return _Pairs(base, fill, [top, *lower], outside, counts[:, 1])

    def _bytes(
        self, chunk: _Chunk, sample: _Sample, pairs: _Pairs | None, winners: list[list[int]], tile_modes: dict[int, list[NDArray[np.uint8]]]
    ) -> list[_Choice]:
        """Choices of the planes, if coded in bytes."""
        size, word_nbytes = chunk.size, chunk.dtype.word_nbytes
        if not sample.bytes:
            return [_Choice.raw(size)]
        if pairs is not None and pairs.top is not None:
            planes = [self._choose(pairs.top, size), *pairs.planes[1:]]
        else:
            counts = chunk.histogram(planes=sample.planes)
            planes = [_Choice.raw(size) for _ in range(word_nbytes)]
            for i, p in enumerate(sample.planes):
                planes[p] = self._choose(counts[:, i], size)
        if self.options.predictor == "auto" and not any(winners):
            return planes
        return self._predict(chunk, planes, winners, tile_modes)

    def _wanted(self, pairs: _Pairs, others: Counts, size: Counts) -> NDArray[np.bool_]:
        """Where pairs are better than what costs `others`: at most 0.3 % larger, for they decode faster, and few patches."""
        raw_nbytes = padded(size * len(pairs.planes)) if pairs.top is not None else padded(size)
        better = (pairs.nbytes * 1000 <= others * 1003) & (pairs.nbytes < raw_nbytes)
        return np.asarray((pairs.n_patches * MAX_PATCHES <= size) & (better | (self.options.min_saving < 0)))

    def _best_by_far(self, pairs: _Pairs, sample: _Sample, chunk: _Chunk, winners: list[list[int]], raw_nbytes: Counts) -> bool:
        """Whether pairs are better everywhere than bytes can be, so that these need not be chosen."""
        if any(winners) or self.options.predictor not in ("auto", "none"):
            return False
        if not sample.bytes:
            return bool(self._wanted(pairs, raw_nbytes, chunk.size).all())
        if pairs.top is None:
            return False
        least = np.where(pairs.top.max(axis=1) == chunk.size, 0, _stream_nbytes(ideal_cost(pairs.top)))
        bound = np.minimum(least, padded(chunk.size)) + sum((c.nbytes for c in pairs.planes[1:]), np.zeros(chunk.size.size, np.int64))
        return bool(self._wanted(pairs, np.minimum(bound, raw_nbytes), chunk.size).all())

    # ---- tables
    def _choose(self, counts: Counts, size: Counts, mode: int = 0) -> _Choice:
        """Coder and table of a plane of all segments, given its histograms (n, 256) and symbols (n,)."""
        n = size.size
        out = _Choice.raw(size)
        top = counts.max(axis=1)
        constant = (top == size) & ((counts[:, 0] == size) | (mode == 0))  # equal residuals do not make equal bytes
        out.coder[constant], out.nbytes[constant] = Coder.CONSTANT, 0
        out.table[constant] = np.argmax(counts[constant], axis=1)
        left = top < size  # a table has at least two symbols
        limit, ideal = padded(size) * self.keep // 1024, ideal_cost(counts)
        left &= (_stream_nbytes(ideal) <= limit) | (self.options.min_saving < 0)
        if not left.any():
            return out
        table, cost = np.zeros(n, np.int64), np.full(n, IMPOSSIBLE)
        self._fit(counts, left, table, cost)
        for _ in range(NEW_TABLES):  # segments unlike the others: a table for the worst of them, for all that like it better
            gain = np.where(left, cost - ideal, 0)
            k = int(np.argmax(gain * (gain * 50 > cost)))
            if gain[k] * 50 <= cost[k] or gain[k] < 512 * 8 << 16 or not self._fit(counts, np.arange(n) == k, table, cost, left):
                break
        nbytes = _stream_nbytes(np.minimum(cost, IMPOSSIBLE))
        coded = left & (cost < IMPOSSIBLE) & ((nbytes <= limit) | (self.options.min_saving < 0))
        out.coder[coded], out.table[coded], out.nbytes[coded] = Coder.RANS, table[coded], nbytes[coded]
        out.prediction[coded] = mode
        return out

    def _fit(
        self, counts: Counts, of: NDArray[np.bool_], table: Counts, cost: NDArray[np.float64], offer: NDArray[np.bool_] | None = None
    ) -> bool:
        """Give segments `of` a table, an earlier one if that is no dearer, and offer it to `offer`. False if that helps none."""
        total = counts[of].sum(axis=0)
        first = max(0, len(self.pool) - RECENT_TABLES)
        recent = self.pool.tables[first:]
        costs = np.array([t.cost @ total for t in recent])
        best = int(np.argmin(costs)) if recent else -1
        fits = bool(recent) and costs[best] * NEGLIGIBLE <= int(ideal_cost(total)) * (NEGLIGIBLE + 1)
        if not fits and len(self.pool) < MAX_TABLES:
            rare = (total == 0) & (recent[best].freq > 0) if recent else total < 0  # they have occurred: later chunks may want them
            new = quantise(total + (rare & (int(rare.sum()) <= MAX_RARE)), self.options.prob_bits)
            price = float(new.cost @ total)
            if not recent or costs[best] > price + price // NEGLIGIBLE + (8 * new.serialised_nbytes << 16):
                self.pool.tables.append(new)
                best = len(recent)
        got = counts @ self.pool[first + best].cost
        take = (of if offer is None else of | offer) & (got < cost)
        table[take], cost[take] = first + best, got[take]
        return bool(take.any())

    def _prune(self, s: SegmentTable, n_kept: int) -> None:
        """Drop the tables that were added behind the first `n_kept` and are not used."""
        rans = s.coder == Coder.RANS
        used = np.unique(s.table[rans])
        used = used[used >= n_kept]
        renumber = np.arange(len(self.pool))
        renumber[used] = n_kept + np.arange(used.size)
        self.pool.tables[n_kept:] = [self.pool.tables[i] for i in used]
        s.table[rans] = renumber[s.table[rans]]

    # ---- prediction
    def _winners(self, chunk: _Chunk, sample: _Sample) -> list[list[int]]:
        """Modes that save a plane at least 2 % in a part of the sample: a closer look may pay."""
        winners: list[list[int]] = [[] for _ in range(chunk.dtype.word_nbytes)]
        if self.options.predictor != "auto":
            return winners
        some = np.arange(0, sample.ids.size, max(1, sample.ids.size // TRIED))
        ids, counts = sample.ids[some], sample.counts[some][:, sample.planes]
        before = np.minimum(ideal_cost(counts.sum(axis=0)), int(sample.part.size[ids].sum()) * (8 << 16))
        for mode in range(1, N_MODES):
            after = ideal_cost(sample.part.histogram(segments=ids, planes=sample.planes, mode=mode).sum(axis=0))
            for i in np.flatnonzero(after * 50 < before * 49).tolist():
                winners[sample.planes[i]].append(mode)
        return winners

    def _predict(
        self, chunk: _Chunk, plain: list[_Choice], winners: list[list[int]], tile_modes: dict[int, list[NDArray[np.uint8]]]
    ) -> list[_Choice]:
        """Choices of byte planes with prediction where it makes them smaller; fills `tile_modes` where tiles differ."""
        size = chunk.size
        if self.options.predictor == "none":
            return plain
        if self.options.predictor != "auto":
            mode = int(Mode[self.options.predictor.upper()])
            predicted = chunk.histogram(mode=mode)
            return [self._choose(predicted[:, p], size, mode) for p in range(chunk.dtype.word_nbytes)]
        if not chunk.geometry.one_tile:
            return self._predict_tiles(chunk, plain, winners, tile_modes)
        out = [replace(c, **{f.name: getattr(c, f.name).copy() for f in fields(c)}) for c in plain]
        by_mode = {m: chunk.histogram(mode=m) for m in sorted(set().union(*winners))}
        for p, modes in enumerate(winners):
            if not modes:
                continue
            costs = np.stack([ideal_cost(by_mode[m][:, p]) for m in modes])
            best = np.argmin(costs, axis=0)
            for i, mode in enumerate(modes):
                mine = best == i
                if mine.any():
                    choice = _scatter(self._choose(by_mode[mode][mine, p], size[mine], mode), mine)
                    out[p].take(choice, mine & (choice.nbytes * 1024 < out[p].nbytes * 1003))
        return out

    def _predict_tiles(
        self, chunk: _Chunk, plain: list[_Choice], winners: list[list[int]], tile_modes: dict[int, list[NDArray[np.uint8]]]
    ) -> list[_Choice]:
        """As `_predict`, with a mode for each tile: the one of the least entropy, NONE unless another saves 2 %."""
        out, geometry = list(plain), chunk.geometry
        counts_of: dict[int, list[Counts]] = {p: [] for p, w in enumerate(winners) if w}
        for i in range(geometry.grid[0]):  # a row of segments at a time: a tile's histograms are larger than the tile
            row, _ = geometry.select(np.array([i], np.int64), np.arange(geometry.grid[1], dtype=np.int64))
            part = chunk.words[i * geometry.segment_rows : i * geometry.segment_rows + row.rows]
            as_tiles = replace(row, segment_rows=row.tile_rows, segment_cols=row.tile_cols)
            modes = sorted(set().union(*winners))
            by_mode = {m: chunk.backend.histogram(part, as_tiles, chunk.dtype, mode=m) for m in [0, *modes]}
            owner = np.arange(as_tiles.grid[1]) // (geometry.segment_cols // geometry.tile_cols)
            owner = np.broadcast_to(owner, as_tiles.grid).reshape(-1)
            for p in counts_of:
                mine = [0, *winners[p]]
                costs = np.stack([ideal_cost(by_mode[m][:, p]) for m in mine])
                costs[0] -= costs[0] // 50
                best = np.argmin(costs, axis=0)
                chosen = np.stack([by_mode[m][:, p] for m in mine])[best, np.arange(best.size)]
                for j in range(geometry.grid[1]):
                    counts_of[p].append(chosen[owner == j].sum(axis=0))
                    tile_modes.setdefault(p, []).append(np.array(mine, np.uint8)[best[owner == j]])
        for p, counts in counts_of.items():
            choice = self._choose(np.stack(counts), chunk.size, PER_TILE)
            for k, modes_of in enumerate(tile_modes[p]):
                if choice.coder[k] == Coder.RANS and (modes_of == modes_of[0]).all():
                    choice.prediction[k] = modes_of[0]
            choice.nbytes += np.where(choice.prediction == PER_TILE, padded(np.array([m.size for m in tile_modes[p]])), 0)
            out[p] = replace(plain[p], **{f.name: getattr(plain[p], f.name).copy() for f in fields(_Choice)})
            out[p].take(choice, choice.nbytes < plain[p].nbytes)
        return out


def _scatter(choice: _Choice, where: NDArray[np.bool_]) -> _Choice:
    """A choice of some segments as one of all; the others hold zeros."""

    def spread(values: NDArray[Any]) -> NDArray[Any]:
        out = np.zeros(where.size, values.dtype)
        out[where] = values
        return out

    return _Choice(*(spread(getattr(choice, f.name)) for f in fields(_Choice)))
