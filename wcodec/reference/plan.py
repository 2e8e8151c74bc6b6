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

CHUNK_NBYTES: Final = 1 << 23  #: words planned and encoded at once
MIN_ROW: Final = 64  #: fewest columns of a matrix view, where the shape allows
MAX_TABLES: Final = (1 << 16) - 1
RECENT_TABLES: Final = 256  #: how far back an encoder looks for a table that fits
NEW_TABLES: Final = 8  #: most tables that one plane of a chunk adds for segments unlike the others
MAX_PATCHES: Final = 100  #: a segment with more than one patch in so many words is not coded in pairs
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
    """Bands of equal width near 256, wider where there are few rows, cut into segments of equal height near the target.

    A matrix of up to two bands is one. A row of segments holds at most 2^24 words, so that it can be coded at once.
    """
    target = 1 << 15 if word_nbytes <= 2 else 1 << 14
    most_rows = min(rows, max(1, MAX_SEGMENT_ELEMENTS // cols))
    wide = max(256, target // most_rows)
    if most_rows == 1:
        return 1, min(cols, wide)
    s_cols = cols if cols <= 2 * wide else -(-cols // (cols // wide))
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
        segments: NDArray[np.int64] | None = None, n_planes: int | None = None,
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


def ideal_cost(counts: Counts) -> Counts:
    """Order-0 entropy of each histogram (last axis), summed over its symbols."""
    total = counts.sum(axis=-1)
    shift = max(0, int(total.max(initial=0)).bit_length() - 16)
    log2 = _log2_counts()
    scaled = log2[counts >> shift] + np.where(counts >> shift > 0, shift << 16, 0)
    whole = log2[total >> shift] + np.where(total >> shift > 0, shift << 16, 0)
    return np.asarray(total * whole - (counts * scaled).sum(axis=-1), np.int64)


def _stream_nbytes(cost: Any) -> Counts:
    """Bytes of a rANS stream whose symbols have this cost: the start states, the words, padding."""
    return np.asarray(padded(entropy.HEAD_NBYTES + np.ceil(cost / (8 << 16)).astype(np.int64)), np.int64)


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
        if self.options.layout == "raw":
            return SegmentPlan(dtype, geometry, SegmentTable.zeros(n, dtype.n_planes), self.pool)
        counts = self._count(words, geometry, dtype, backend, size)
        plain = [self._choose(counts[:, p], size) for p in range(counts.shape[1])]
        plain += [_Choice.raw(size) for _ in range(counts.shape[1], dtype.word_nbytes)]
        tile_modes: dict[int, list[NDArray[np.uint8]]] = {}
        planes = plain
        if self.options.predictor != "none":
            planes = self._predict(words, geometry, dtype, backend, counts, size, plain, tile_modes)
        cost = sum((c.nbytes for c in planes), np.zeros(n, np.int64))
        raw_nbytes = padded(size * dtype.word_nbytes)
        forced = self.options.layout != "auto" or self.options.min_saving < 0
        layout = np.full(n, Layout.BYTES) if forced else np.where(cost < raw_nbytes, Layout.BYTES, Layout.RAW)
        table = SegmentTable.zeros(n, dtype.n_planes)
        for p, choice in enumerate(planes):
            table.coder[p], table.table[p], table.prediction[p] = choice.coder, choice.table, choice.prediction
        fill = np.zeros(n, np.uint8)
        if dtype.has_pairs and self.options.layout in ("auto", "pairs"):
            base, code, pairs, n_patches = self._pairs(words, geometry, dtype, backend, counts, size, plain)
            pair_cost = sum((c.nbytes for c in pairs), padded(4 * n_patches))
            better = (pair_cost * 1000 <= np.minimum(cost, raw_nbytes) * 1003) & (pair_cost < raw_nbytes)
            wanted = (n_patches * MAX_PATCHES <= size) & (better | (self.options.min_saving < 0))
            take = np.full(n, True) if self.options.layout == "pairs" else wanted
            layout[take] = Layout.PAIRS
            table.base[take], fill[take] = base, code
            for p, choice in enumerate(pairs):
                for column, value in ((table.coder, choice.coder), (table.table, choice.table), (table.prediction, choice.prediction)):
                    np.copyto(column[p], value, where=take)
        table.layout[:] = layout
        raw = layout == Layout.RAW
        for column in (table.coder, table.table, table.prediction):
            column[:, raw] = 0
        self._prune(table, n_tables)
        modes = [m[k] for k in range(n) for p, m in sorted(tile_modes.items()) if table.prediction[p, k] == PER_TILE]
        return SegmentPlan(dtype, geometry, table, self.pool, fill, np.concatenate(modes) if modes else None)

    def _count(self, words: Words, geometry: Geometry, dtype: DType, backend: Histograms, size: Counts) -> Counts:
        """Histograms of the top planes, down to the last one that could save 1 % in sixteen segments."""
        n = geometry.n_segments
        ids = np.unique(np.arange(16) * n // 16)
        if n <= 16 or dtype.word_nbytes == 1 or self.options.min_saving < 0:
            return backend.histogram(words, geometry, dtype)
        sample = ideal_cost(backend.histogram(words, geometry, dtype, segments=ids)).sum(axis=0)
        worth = np.flatnonzero(sample * 100 < size[ids].sum() * (8 << 16) * 99)
        return backend.histogram(words, geometry, dtype, n_planes=max(1, int(worth.max(initial=0)) + 1))

    def _pairs(
        self, words: Words, geometry: Geometry, dtype: DType, backend: Histograms, counts: Counts, size: Counts, plain: list[_Choice]
    ) -> tuple[int, int, list[_Choice], Counts]:
        """Window base, fill code, choices of the planes, and patches of each segment, if coded in nibble pairs."""
        top, half = counts[:, 0], (size + 1) // 2
        if dtype.word_nbytes == 1:
            high = top.sum(axis=0).reshape(16, 16).sum(axis=1)
            fill = int(np.argmax(high))
            pair_counts = backend.histogram(words, geometry, dtype, base=0, fill=fill)
            return 0, fill, [self._choose(pair_counts[:, p], half) for p in range(2)], np.zeros(size.size, np.int64)
        total = top.sum(axis=0)
        base = int(np.argmax(np.convolve(total, np.ones(16, np.int64), "valid")))
        fill = int(np.argmax(total[base : base + 16]))
        pair_counts = backend.histogram(words, geometry, dtype, base=base, fill=fill)
        n_patches = size - top[:, base : base + 16].sum(axis=1)
        return base, fill, [self._choose(pair_counts[:, 0], half), *plain[1:]], n_patches

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
        limit = padded(size) * self.keep // 1024
        left &= (_stream_nbytes(ideal_cost(counts)) <= limit) | (self.options.min_saving < 0)
        if not left.any():
            return out
        table, cost = np.zeros(n, np.int64), np.full(n, IMPOSSIBLE)
        self._fit(counts, left, table, cost)
        for _ in range(NEW_TABLES):  # segments unlike the others: a table for the worst of them, for all that like it better
            gain = np.where(left, cost - ideal_cost(counts), 0)
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
        if len(self.pool) < MAX_TABLES:
            new = quantise(total, self.options.prob_bits)
            if not recent or costs[best] > new.cost @ total + (8 * new.serialised_nbytes << 16):
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
    def _predict(
        self, words: Words, geometry: Geometry, dtype: DType, backend: Histograms, counts: Counts, size: Counts,
        plain: list[_Choice], tile_modes: dict[int, list[NDArray[np.uint8]]],
    ) -> list[_Choice]:  # fmt: skip
        """Choices of byte planes with prediction where it makes them smaller; fills `tile_modes` where tiles differ."""
        if self.options.predictor != "auto":
            mode = int(Mode[self.options.predictor.upper()])
            predicted = backend.histogram(words, geometry, dtype, mode=mode)
            return [self._choose(predicted[:, p], size, mode) for p in range(dtype.word_nbytes)]
        winners = self._sample(words, geometry, dtype, backend, counts, size)
        if not any(winners):
            return plain
        if not geometry.one_tile:
            return self._predict_tiles(words, geometry, dtype, backend, size, plain, winners, tile_modes)
        out = [replace(c, **{f.name: getattr(c, f.name).copy() for f in fields(c)}) for c in plain]
        by_mode = {m: backend.histogram(words, geometry, dtype, mode=m) for m in sorted(set().union(*winners))}
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

    def _sample(self, words: Words, geometry: Geometry, dtype: DType, backend: Histograms, counts: Counts, size: Counts) -> list[list[int]]:
        """Modes that save a plane at least 2 % in four segments, or all if there are no more: a closer look may pay."""
        n = geometry.n_segments
        ids = np.unique(np.arange(4) * n // 4)
        before = np.minimum(ideal_cost(counts[ids]), size[ids, None] * (8 << 16)).sum(axis=0)
        n_planes = counts.shape[1]
        winners: list[list[int]] = [[] for _ in range(n_planes)]
        for mode in range(1, N_MODES):
            after = ideal_cost(backend.histogram(words, geometry, dtype, segments=ids, n_planes=n_planes, mode=mode)).sum(axis=0)
            for p in np.flatnonzero(after * 50 < before * 49).tolist():
                winners[p].append(mode)
        return winners

    def _predict_tiles(
        self, words: Words, geometry: Geometry, dtype: DType, backend: Histograms, size: Counts,
        plain: list[_Choice], winners: list[list[int]], tile_modes: dict[int, list[NDArray[np.uint8]]],
    ) -> list[_Choice]:  # fmt: skip
        """As `_predict`, with a mode for each tile: the one of the least entropy, NONE unless another saves 2 %."""
        out = list(plain)
        counts_of: dict[int, list[Counts]] = {p: [] for p, w in enumerate(winners) if w}
        for i in range(geometry.grid[0]):  # a row of segments at a time: a tile's histograms are larger than the tile
            row, _ = geometry.select(np.array([i], np.int64), np.arange(geometry.grid[1], dtype=np.int64))
            part = words[i * geometry.segment_rows : i * geometry.segment_rows + row.rows]
            as_tiles = replace(row, segment_rows=row.tile_rows, segment_cols=row.tile_cols)
            modes = sorted(set().union(*winners))
            by_mode = {m: backend.histogram(part, as_tiles, dtype, mode=m) for m in [0, *modes]}
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
            choice = self._choose(np.stack(counts), size, PER_TILE)
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
