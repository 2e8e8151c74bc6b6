"""What choices cost. Spec: chapter 14 (informative).

Costs are in 1/65536 bit where they are sums over symbols, in bytes where they are sums of records.
Float64 holds them where products of histograms with costs are one matrix product; all are integers
below 2^53, so that every machine finds the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from wcodec.reference import rans
from wcodec.reference.contexts import joint_histogram
from wcodec.reference.planes import Bytes, DType, Words
from wcodec.reference.segments import padded
from wcodec.reference.tables import MAX_PROB_BITS, Table
from wcodec.reference.tiles import Geometry

Counts = NDArray[np.int64]
Costs = NDArray[np.float64]


# ---- from counts to frequencies and costs --------------------------------------------------------
def log2_fixed(n: int) -> Counts:
    """``floor(log2(i) * 65536)`` for i in 0..n (0 for 0),
    by repeated squaring of 30-bit fractions.
    """
    i = np.maximum(np.arange(n + 1, dtype=np.int64), 1)
    # exact: the exponent of an integer below 2^53
    whole = np.frexp(i.astype(np.float64))[1].astype(np.int64) - 1
    fraction, out = i << (30 - whole), whole
    for _ in range(16):
        fraction = (fraction * fraction) >> 30
        bit = fraction >> 31
        fraction, out = fraction >> bit, out << 1 | bit
    return out


LOG2: Final = log2_fixed(1 << MAX_PROB_BITS)


@lru_cache(maxsize=1)
def _log2_list() -> list[int]:
    out: list[int] = LOG2.tolist()
    return out


_COSTS: Final[WeakKeyDictionary[Table, Costs]] = WeakKeyDictionary()


def symbol_costs(table: Table) -> Costs:
    """What each symbol costs in a stream coded by a table, in 1/65536 bit, a whole number;
    `NEVER` where the frequency is 0."""
    costs = _COSTS.get(table)
    if costs is None:
        used = (table.prob_bits << 16) - LOG2[table.freq]
        costs = _COSTS[table] = np.where(table.freq > 0, used, NEVER).astype(np.float64)
    return costs


_PAIR_COSTS: Final[WeakKeyDictionary[Table, dict[int, tuple[Costs, Counts]]]] = WeakKeyDictionary()


def pair_costs(table: Table, fill: int) -> tuple[Costs, Counts]:
    """What each pair of codes in a window costs, and how many of its words need patches: of those
    that the table does not code, one or both become `fill`; see
    `wcodec.reference.planes.patch_uncoded`. All cost `NEVER` under a table without the pair of two
    `fill`, which words that a plan has not seen may need.
    """
    known = _PAIR_COSTS.setdefault(table, {})
    if fill not in known:
        pairs, coded = np.arange(256), table.freq > 0
        one, other = pairs & 15 | fill << 4, pairs & 240 | fill
        instead = np.where(coded[one], one, np.where(coded[other], other, fill | fill << 4))
        n_patches = np.where(coded, 0, np.where(coded[one] | coded[other], 1, 2))
        costs = symbol_costs(table)[np.where(coded, pairs, instead)] + n_patches * PATCH
        if not coded[fill | fill << 4]:
            costs[:] = NEVER
        known[fill] = costs, n_patches
    return known[fill]


def without_rare(counts: Counts, fill: int) -> Counts:
    """Counts of pairs but for those so rare that patches cost less than a slot of the table. The
    two that occur most stay, and the one of `fill`.
    """
    kept = counts << RARE >= counts.sum()
    kept[np.argsort(counts, kind="stable")[-2:]] = True
    out = np.where(kept, counts, 0)
    out[fill | fill << 4] = max(1, int(counts[fill | fill << 4]))
    return out


def quantise(counts: Counts, prob_bits: int = MAX_PROB_BITS) -> Table:
    """Table of the counts: at least 1 for each symbol that occurs;
    what rounding leaves goes where it costs least.

    Parameters
    ----------
    counts
        256 counts, at least two of them not 0, of sum below 2^40.
    """
    total, f, most = int(counts.sum()), np.zeros(256, np.int64), (1 << prob_bits) - 1
    used = np.flatnonzero(counts)
    f[used] = np.clip((counts[used] << prob_bits) // total, 1, most)
    freq, missing = f.tolist(), most + 1 - int(f.sum())
    step, of, log2 = (1 if missing > 0 else -1), counts.tolist(), _log2_list()
    heap = [
        (of[i] * (log2[freq[i]] - log2[freq[i] + step]), i)
        for i in used.tolist()
        if 1 <= freq[i] + step <= most
    ]
    heapq.heapify(heap)
    for _ in range(abs(missing)):
        i = heap[0][1]
        freq[i] += step
        if 1 <= freq[i] + step <= most:
            heapq.heapreplace(heap, (of[i] * (log2[freq[i]] - log2[freq[i] + step]), i))
        else:
            heapq.heappop(heap)
    f[:] = freq
    return Table(f, prob_bits)


NEVER: Final = 1 << 46  #: above the cost of any chunk: a symbol that a table cannot code
BIT: Final = 1 << 16  #: a bit, in the unit of costs
BYTE: Final = 8 * BIT
PATCH: Final = 32 * BIT
#: Of 2^RARE pairs, one that occurs less than once has no slot: a slot of 4096 costs all others
#: together 46 bits then, and patches about 28 each time.
RARE: Final = 17
IMPOSSIBLE: Final = float(NEVER)
# An estimate looks at one row of so many, neighbours together.
PART: Final = 8
ROWS: Final = 8
#: a segment with more than one patch in so many words is not coded in pairs
MAX_PATCHES: Final = 100


class Histograms(Protocol):
    """The one kernel that planning needs, and the way to the host for contexts; see
    `wcodec.backends.protocol.Backend`, whose `histograms` and `joint_histogram` are used where they
    are.
    """

    def histogram(
        self, words: Words, geometry: Geometry, dtype: DType, *,
        segments: NDArray[np.int64] | None = None, planes: tuple[int, ...] | None = None,
        mode: int = 0, base: int | None = None, fill: int = 0,
    ) -> NDArray[np.int64]: ...  # fmt: skip

    def to_host(self, array: Words, out: Words | None = None) -> Words: ...


@dataclass
class Choice:
    """How one plane of each segment would be stored, and its bytes in the file."""

    coder: NDArray[np.uint8]
    table: NDArray[np.uint32]
    prediction: NDArray[np.uint8]
    nbytes: Counts

    @classmethod
    def raw(cls, size: Counts) -> Choice:
        """All stored raw."""
        n = size.size
        return cls(
            np.zeros(n, np.uint8), np.zeros(n, np.uint32), np.zeros(n, np.uint8), padded(size)
        )

    def copy(self) -> Choice:
        """The same, in memory of its own."""
        return Choice(*(getattr(self, f.name).copy() for f in fields(self)))

    def take(self, other: Choice, where: NDArray[np.bool_]) -> None:
        """Take over another choice in some segments."""
        for f in fields(self):
            np.copyto(getattr(self, f.name), getattr(other, f.name), where=where)

    def put(self, other: Choice, ids: Counts) -> None:
        """Take over a choice that is of these segments alone."""
        for f in fields(self):
            getattr(self, f.name)[ids] = getattr(other, f.name)


@lru_cache(maxsize=1)
def _log2_counts() -> Counts:
    return log2_fixed(1 << 16)


def log2_of(n: Counts) -> Counts:
    """log2 of positive integers, in 1/65536; of the first 16 bits of each."""
    shift = np.maximum(np.frexp(n.astype(np.float64))[1] - 16, 0).astype(np.int64)
    return np.asarray(_log2_counts()[n >> shift] + (shift << 16), np.int64)


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


def stream_nbytes(cost: Any) -> Counts:
    """Bytes of a rANS stream whose symbols have this cost: the start states, the words, padding."""
    return np.asarray(padded(rans.HEAD_NBYTES + np.ceil(cost / BYTE).astype(np.int64)), np.int64)


@dataclass(frozen=True)
class Chunk:
    """The words that a plan is for; `size` is of each segment. With `blocks`, an eighth of each is
    looked at: these segments of the geometry, a row for each.
    """

    words: Words
    geometry: Geometry
    dtype: DType
    backend: Histograms
    size: Counts
    blocks: Counts | None = None

    def histogram(self, **what: Any) -> Counts:
        """See `wcodec.backends.protocol.Backend.histogram`."""
        if self.blocks is None:
            return self.backend.histogram(self.words, self.geometry, self.dtype, **what)
        what["segments"] = self.blocks.reshape(-1)
        counts = self.backend.histogram(self.words, self.geometry, self.dtype, **what)
        each = counts.reshape(*self.blocks.shape, *counts.shape[1:])
        return np.asarray(PART * each.sum(axis=1), np.int64)

    def histograms(self, modes: Sequence[int], **what: Any) -> Counts:
        """See `wcodec.backends.protocol.Backend.histograms`, which will do."""
        at_once = getattr(self.backend, "histograms", None)
        if at_once is None or self.blocks is not None:
            return np.stack([self.histogram(mode=m, **what) for m in modes])
        return np.asarray(at_once(self.words, self.geometry, self.dtype, modes, **what), np.int64)

    def joint_histogram(
        self, symbols: Bytes, rows: Counts, cols: Counts, bins: Bytes, shape: tuple[int, int]
    ) -> Counts:
        """See `wcodec.backends.protocol.Backend.joint_histogram`, which will do."""
        faster = getattr(self.backend, "joint_histogram", joint_histogram)
        return np.asarray(faster(symbols, rows, cols, bins, shape), np.int64)

    def top_rows(self, least: int = 0) -> Chunk:
        """The first sixteenth of the rows of each segment, or `least` if that is more, as segments
        of a single tile; of flat ones and the last row of segments none.
        """
        g = self.geometry
        height, n_down = max(g.segment_rows // 16, least), g.rows // g.segment_rows
        height = min(height, g.segment_rows if g.segment_rows >= 16 else 0)
        if height == 0 or n_down == 0:
            return self
        words = self.words[: n_down * g.segment_rows].reshape(n_down, g.segment_rows * g.cols)[
            :, : height * g.cols
        ]
        part = Geometry(n_down * height, g.cols, height, g.segment_cols, height, g.segment_cols)
        heights, widths = part.sizes()
        return replace(
            self,
            words=words.copy().reshape(part.rows, g.cols),
            geometry=part,
            size=heights * widths,
        )

    def eighth(self) -> Chunk | None:
        """An eighth of the rows of each segment, eight neighbours at a time, others in each; none
        where heights are no multiples of 64.
        """
        g = self.geometry
        if g.segment_rows % (PART * ROWS) or g.rows % g.segment_rows:
            return None
        n_blocks, (n_down, n_across) = g.segment_rows // ROWS, g.grid
        down, across = np.arange(n_down)[:, None, None], np.arange(n_across)[:, None]
        some = (5 * np.arange(n_blocks // PART) + 3 * (down + across)) % n_blocks
        blocks = (down * n_blocks + some) * n_across + across
        geometry = Geometry(g.rows, g.cols, ROWS, g.segment_cols, ROWS, g.segment_cols)
        return replace(self, geometry=geometry, blocks=blocks.reshape(-1, n_blocks // PART))


@dataclass
class Sample:
    """What is looked at first: a part of the chunk and some of its segments, and their histograms;
    byte planes worth counting, and nibble planes of one-byte words; whether pairs and bytes come
    into question; what `planes` cost in each mode without a transform, of shape (modes, planes), if
    that is known; of one-byte words, how many of 256 symbols do not occur in a layout that comes
    into question.
    """

    part: Chunk
    ids: Counts
    counts: Counts
    planes: tuple[int, ...]
    pairs: bool
    bytes: bool
    predicted: Counts | None = None
    nibbles: tuple[int, ...] = (0, 1)
    unseen: int = 0

    def window(self) -> tuple[int, int]:
        """Base and fill code of nibble pairs."""
        top = self.counts[:, 0].sum(axis=0)
        if self.counts.shape[1] == 1:
            return 0, int(np.argmax(top.reshape(16, 16).sum(axis=1)))
        return window_of(top)


def window_of(top: Counts) -> tuple[int, int]:
    """The sixteen neighbouring top bytes that occur most, and the code of the most frequent one."""
    base = int(np.argmax(np.convolve(top, np.ones(16, np.int64), "valid")))
    return base, int(np.argmax(top[base : base + 16]))
