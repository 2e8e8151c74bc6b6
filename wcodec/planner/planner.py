"""What an encoder chooses: layouts, coders, tables, modes, contexts.
Spec: chapter 14 (informative).

All choices are made here, on the host, in integers and from histograms, so that every backend
on every machine writes the same file; `costs` says in what unit. Options and geometry are in
`options`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from wcodec.planner.contexts import Contexts
from wcodec.planner.costs import (
    BYTE,
    MAX_PATCHES,
    Choice,
    Chunk,
    Counts,
    Histograms,
    Sample,
    ideal_cost,
    pair_costs,
    stream_nbytes,
    window_of,
)
from wcodec.planner.drafts import Draft, Pairs
from wcodec.planner.fast import Fast
from wcodec.planner.geometry import choose_geometry
from wcodec.planner.modes import PREDICTED, Modes
from wcodec.planner.operands import Operands
from wcodec.planner.options import EncodeOptions
from wcodec.planner.tables import MAX_TABLES, MAX_UNSEEN, Tables
from wcodec.reference.operands import is_of_operand
from wcodec.reference.planes import DType, Layout, Words
from wcodec.reference.prediction import Mode
from wcodec.reference.segments import Coder, SegmentPlan, SegmentTable, padded
from wcodec.reference.tiles import CHUNK_NBYTES, Geometry, Spans, chunks

__all__ = [
    "CHUNK_NBYTES",
    "EncodeOptions",
    "Histograms",
    "Planner",
    "choose_geometry",
    "chunks",
    "ideal_cost",
]

FEW: Final = 16  #: of no more segments than that, all planes are counted


#: chunks of so many words are planned by an eighth of their rows
ESTIMATED_WORDS: Final = 1 << 21
#: of no fewer words in few segments, a part is looked at to begin with
SAMPLED_WORDS: Final = 1 << 15


def spread(n: int, most: int) -> Counts:
    """Ids of a quarter of `n` segments, but at least one and no more than `most`, spread evenly."""
    count = min(most, max(1, n // 4))
    return np.arange(count) * n // count


def _unseen_cost(counts: Counts) -> Counts:
    """Entropy of what a few symbols stand for, in all: theirs, and half a nat for each symbol but
    one (Miller and Madow, 1955).
    """
    return np.asarray(ideal_cost(counts) + ((counts > 0).sum(axis=-1) - 1) * 47274, np.int64)


def _bytes_suit_some(halves: Counts, whole: Counts, size: Counts) -> bool:
    """Whether some segments look 3 % smaller in bytes than in nibble pairs,
    by their histograms in both forms.
    """
    pairs = np.minimum(_unseen_cost(halves), size[:, None] * (4 << 16)).sum(axis=1)
    return bool((pairs * 100 > np.minimum(_unseen_cost(whole), size * BYTE) * 103).any())


class Planner:
    """Plans chunk after chunk of a file's tensors; keeps the table pool.

    Parameters
    ----------
    options
        Choices taken by the caller.
    n_parts
        Of the file, each with a planner of its own: they share the numbers of tables.
    """

    def __init__(self, options: EncodeOptions, n_parts: int = 1) -> None:
        self.options, self.tables = options, Tables(options, MAX_TABLES // n_parts)
        self.pool, self.forced = self.tables.pool, self.tables.forced
        self.modes = Modes(self.tables)
        self.contexts = Contexts(self.tables)
        self.operands = Operands(self.tables)
        #: of the segments of the last plan: their records, as far as a plan can say
        self.nbytes: Counts = np.empty(0, np.int64)
        #: whether the last plan was made from some of the words, so that a record can be larger
        #: than its words
        self.estimated = False
        self._trusts_sample = options.trusts_sample

    def start_tensor(self, is_difference: bool = False) -> None:
        """The next chunk is the first one of a tensor. Of differences all words are counted: there
        are few symbols, and slots of a table for others cost more than that takes.
        """
        self._trusts_sample = self.options.trusts_sample and not is_difference
        self.operands.start_tensor()

    def plan(
        self, words: Words, geometry: Geometry, dtype: DType, backend: Histograms
    ) -> SegmentPlan:
        """Plan the segments of `words`, which `geometry` covers exactly."""
        n, kept = geometry.n_segments, (len(self.pool), len(self.pool.maps))
        heights, widths = geometry.sizes()
        size = heights * widths
        draft = Draft(
            SegmentTable.zeros(n, dtype.n_planes),
            np.zeros(n, np.uint8),
            padded(size * dtype.word_nbytes),
        )
        self.tables.unlike, self.estimated = isinstance(geometry, Spans), False
        if self.options.layout != "raw" and n > 0:
            chunk = Chunk(words, geometry, dtype, backend, size)
            if self.options.operand and is_of_operand(geometry):
                self._fill_in_operand(draft, chunk)
            else:
                self._fill_in(draft, chunk)
            self.tables.prune(draft.table, *kept)
        self.nbytes = draft.nbytes
        return draft.plan(dtype, geometry, self.pool)

    def plan_lists(
        self, words: Words, spans: Geometry, dtype: DType, backend: Histograms
    ) -> SegmentPlan:
        """Plan lists of words: byte planes alone, for words beside each other are not alike."""
        chunk, n_tables = Chunk(words, spans, dtype, backend, spans.n_elements()), len(self.pool)
        raw_nbytes = padded(chunk.size * dtype.word_nbytes)
        table = SegmentTable.zeros(spans.n_segments, dtype.n_planes)
        draft = Draft(table, np.zeros(spans.n_segments, np.uint8), raw_nbytes)
        self.tables.unlike = False
        counts = chunk.histogram()
        planes = [self.tables.choose(c, chunk.size) for c in np.moveaxis(counts, 1, 0)]
        draft.take_bytes(planes, raw_nbytes, forced=False)
        self.tables.prune(draft.table, n_tables, len(self.pool.maps))
        return draft.plan(dtype, spans, self.pool)

    def _fill_in(self, draft: Draft, chunk: Chunk) -> None:
        """Choose all of a chunk."""
        sample, raw_nbytes, size = self._look(chunk), draft.nbytes, chunk.size
        if self._trusts_sample and sample.part is not chunk and chunk.geometry.one_tile:
            self._trust(draft, Fast(self.tables, chunk, sample))
            self.estimated = True
            return
        winners = self.modes.winners(chunk, sample)
        sample.bytes |= any(winners) or self.options.contexts
        if self._estimate(draft, chunk, sample, winners):
            return
        pairs = self._pairs(chunk, sample) if sample.pairs else None
        others, plain, planes = raw_nbytes, list[Choice](), list[Choice]()
        if pairs is None or not self._best_by_far(pairs, sample, chunk, winners, raw_nbytes):
            plain = self._bytes(chunk, sample, pairs)
            planes = (
                self.modes.predict(chunk, plain, winners, draft.tile_modes)
                if sample.bytes
                else plain
            )
            draft.take_bytes(
                planes,
                raw_nbytes,
                self.forced or self.options.layout != "auto" or self.options.forces_mode,
            )
            others = np.minimum(draft.nbytes, raw_nbytes)
            wanted = None if pairs is None else self._wanted(pairs, others, size)
        else:
            wanted = np.full(size.size, True)
        if pairs is not None and wanted is not None:
            draft.take_pairs(pairs, wanted | (self.options.layout == "pairs"))
        if planes and self.options.contexts:
            self._with_contexts(draft, chunk, planes, plain)

    def _estimate(
        self, draft: Draft, chunk: Chunk, sample: Sample, winners: list[list[int]]
    ) -> bool:
        """Choose all of a chunk by an eighth of its rows, if it is large: all rows tell little
        more. What is not seen there gets patches, or in one-byte words slots of the tables, if
        there are few such symbols.
        """
        one_byte = chunk.dtype.word_nbytes == 1
        part = self._part(chunk, sample) if not any(winners) else None
        if part is None:
            return False
        with self.tables.all_slots(one_byte) as enough:
            pairs = self._pairs(part, sample) if sample.pairs else None
            planes = self._bytes(part, sample, None) if one_byte and sample.bytes else []
        raw_nbytes = padded(part.size * chunk.dtype.word_nbytes)
        for choices in (planes, [] if pairs is None else pairs.planes):
            # constant, they may be, or noise
            sure = not choices or (choices[0].coder == Coder.RANS).all()
            if not sure or (choices and (choices[-1].coder == Coder.CONSTANT).any()):
                return False
        if not all(enough):
            return False
        if planes:
            draft.take_bytes(planes, raw_nbytes, forced=False)
        if pairs is not None:
            wanted = self._wanted(pairs, np.minimum(draft.nbytes, raw_nbytes), part.size)
            if not one_byte and not self._best_by_far(pairs, sample, part, winners, raw_nbytes):
                return False
            draft.take_pairs(pairs, wanted)
        self.estimated = True
        return True

    def _part(self, chunk: Chunk, sample: Sample) -> Chunk | None:
        """The rows that tell enough of a chunk, or none if all have to be looked at."""
        g, one_byte = chunk.geometry, chunk.dtype.word_nbytes == 1
        if (
            g.rows * g.cols < ESTIMATED_WORDS
            or isinstance(g, Spans)
            or not g.one_tile
            or sample.planes != (0,)
            or not self.options.estimates
            or not (sample.pairs or one_byte)
            or (one_byte and (not chunk.dtype.has_pairs or sample.unseen > 2 * MAX_UNSEEN))
        ):
            return None
        return chunk.eighth()

    def _fill_in_operand(self, draft: Draft, chunk: Chunk) -> None:
        """Choose all of a chunk of an operand: pairs, but for segments of too many patches, if
        layout pairs is not asked for.
        """
        windows, planes = self.operands.choose(chunk)
        few = windows.few(chunk.size) | (self.options.layout == "pairs")
        if not few.all():
            ids = np.flatnonzero(~few)
            counts = chunk.histogram(segments=ids)
            others = [Choice.raw(chunk.size) for _ in range(chunk.dtype.word_nbytes)]
            for p, choice in enumerate(others):
                choice.put(self.tables.choose(counts[:, p], chunk.size[ids]), ids)
            draft.take_bytes(others, draft.nbytes, forced=False)
        draft.take_pairs(Pairs(windows.base, windows.fill, planes, windows.outside), few)

    def _trust(self, draft: Draft, fast: Fast) -> None:
        """Choose all of a chunk by the sample."""
        raw_nbytes, layout, sample = draft.nbytes, self.options.layout, fast.sample
        if sample.bytes or not sample.pairs:
            draft.take_bytes(fast.bytes(), raw_nbytes, layout != "auto")
        if sample.pairs:
            base, fill, planes, few = fast.pairs()
            pairs = Pairs(base, fill, planes, np.zeros_like(raw_nbytes))
            draft.take_pairs(
                pairs,
                (few & (pairs.nbytes * 1000 <= draft.nbytes * 1003) & (pairs.nbytes < raw_nbytes))
                | (layout == "pairs"),
            )

    def _with_contexts(
        self, draft: Draft, chunk: Chunk, planes: list[Choice], plain: list[Choice]
    ) -> None:
        """Take layout BYTES with contexts where that is smaller,
        if it is so with the maps and tables that it needs.

        `planes` may have modes; `plain` has none:
        with contexts, NONE may be better where it was not.
        """
        n_tables, n_maps = len(self.pool), len(self.pool.maps)
        moded = np.any([c.prediction > 0 for c in planes], axis=0)
        planes, scales = self.contexts.improve(
            chunk, planes, draft.tile_modes, np.full_like(moded, True)
        )
        if moded.any() and not self.options.forces_mode:
            others, other_scales = self.contexts.improve(chunk, plain, {}, moded)
            for p, (choice, other) in enumerate(zip(planes, others, strict=True)):
                better = moded & (other.nbytes < choice.nbytes)
                choice.take(other, better)
                scales = [
                    o if b and p == 0 else s
                    for s, o, b in zip(scales, other_scales, better.tolist(), strict=True)
                ]
        nbytes = sum((c.nbytes for c in planes), np.zeros_like(chunk.size))
        forced = self.contexts.forced
        better = (nbytes < draft.nbytes) | forced
        saved = int(np.maximum(draft.nbytes - nbytes, 0).sum()) * BYTE
        if forced or saved > self.contexts.price(planes, better, n_tables, n_maps):
            draft.store(planes, better, Layout.BYTES, nbytes)
            draft.scales = [s if b else s[:0] for s, b in zip(scales, better.tolist(), strict=True)]

    # ---- looking at the words
    def _look(self, chunk: Chunk) -> Sample:
        """Histograms of some words: which planes are worth counting,
        and whether pairs or bytes can be left out.
        """
        n, one_byte = chunk.size.size, chunk.dtype.word_nbytes == 1
        tensors = isinstance(chunk.geometry, Spans)  # which need not be alike
        few = self._has_few(chunk)
        part = chunk if tensors or (n <= FEW and not few) else chunk.top_rows(FEW if few else 0)
        ids = spread(n, FEW) if part is chunk and not tensors else np.arange(part.size.size)
        modes = (Mode.NONE, *PREDICTED) if few else (Mode.NONE,)
        looked = part.histograms(modes, segments=ids)
        counts = looked[0]
        cost, bits = ideal_cost(counts.sum(axis=0)), int(part.size[ids].sum()) * BYTE
        worth = cost * 100 < bits * 99
        worth[~worth] = (
            ideal_cost(counts[:, ~worth]) * 20 < part.size[ids, None] * (BYTE * 19)
        ).any(axis=0)
        predicted = ideal_cost(looked[1:].sum(axis=1)) if few else None
        planes = (
            range(counts.shape[1])
            if n <= FEW or self.forced or tensors
            else sorted({0, *np.flatnonzero(worth).tolist()})
        )
        pairs = (
            chunk.dtype.has_pairs
            and self.options.layout in ("auto", "pairs")
            and not self.options.forces_mode
        )
        sample = Sample(part, ids, counts, tuple(planes), pairs, True, predicted)
        if (
            pairs
            and one_byte
            and not tensors
            and n > FEW
            and self.options.layout == "auto"
            and not self.forced
        ):
            halves = part.histogram(segments=ids, base=0, fill=sample.window()[1])
            of_both, low = ideal_cost(halves.sum(axis=0)), ideal_cost(halves[:, 1])
            nibbles, whole = int(np.minimum(of_both, bits // 2).sum()), min(int(cost[0]), bits)
            low_pays = of_both[1] * 200 < bits * 99 or bool(
                (low * 40 < part.size[ids] * (BYTE * 19)).any()
            )
            sample.nibbles = (0, 1) if low_pays else (0,)
            sample.pairs, sample.bytes = nibbles * 99 < whole * 100, nibbles * 400 >= whole * 401
            sample.bytes = sample.bytes or _bytes_suit_some(halves, counts[:, 0], part.size[ids])
            layouts = halves[:, 0] if sample.pairs else None, counts[:, 0] if sample.bytes else None
            sample.unseen = max(int((c.sum(axis=0) == 0).sum()) for c in layouts if c is not None)
        return sample

    def _has_few(self, chunk: Chunk) -> bool:
        """Whether there are few segments, but predictions are tried on a part of each: a look at
        all of them would take as long as to code them.
        """
        return (
            chunk.size.size <= FEW
            and int(chunk.size.sum()) >= SAMPLED_WORDS
            and self.options.preset == "default"
            and not self.forced
            and chunk.geometry.one_tile
            and not isinstance(chunk.geometry, Spans)
        )

    def _pairs(self, chunk: Chunk, sample: Sample) -> Pairs:
        """Choices of the planes, if coded in nibble pairs;
        counts of the top plane come with them.
        """
        size, dtype = chunk.size, chunk.dtype
        half, (base, fill) = (size + 1) // 2, sample.window()
        if dtype.word_nbytes == 1:
            counts = chunk.histogram(base=0, fill=fill, planes=sample.nibbles)
            halves = [self.tables.choose(counts[:, i], half) for i in range(len(sample.nibbles))]
            return Pairs(0, fill, [*halves, Choice.raw(half)][:2], np.zeros(size.size, np.int64))
        counts = chunk.histogram(base=base, fill=fill, planes=sample.planes)
        better, filled = window_of(counts[:, 1].sum(axis=0))
        outside = size - counts[:, 1, base : base + 16].sum(axis=1)
        if (
            int(outside.sum()) - int((size - counts[:, 1, better : better + 16].sum(axis=1)).sum())
        ) << 10 > int(size.sum()):
            base, fill = better, filled  # the sample has misled
            counts = chunk.histogram(base=base, fill=fill, planes=sample.planes)
            outside = size - counts[:, 1, base : base + 16].sum(axis=1)
        top = self.tables.choose(counts[:, 0], half, fill=fill)
        lower = [Choice.raw(size) for _ in range(1, dtype.word_nbytes)]
        for i, p in enumerate(sample.planes[1:], 2):
            lower[p - 1] = self.tables.choose(counts[:, i], size)
        n_more = np.zeros(size.size, np.int64)
        for number in np.unique(top.table[rans := top.coder == Coder.RANS]):
            where = rans & (top.table == number)
            n_more[where] = counts[where, 0] @ pair_costs(self.pool[int(number)], fill)[1]
        return Pairs(base, fill, [top, *lower], outside, counts[:, 1], n_more)

    def _bytes(self, chunk: Chunk, sample: Sample, pairs: Pairs | None) -> list[Choice]:
        """Choices of the planes, if coded in bytes without modes."""
        size, word_nbytes = chunk.size, chunk.dtype.word_nbytes
        if not sample.bytes:
            return [Choice.raw(size)]
        if pairs is not None and pairs.top is not None:
            planes = [self.tables.choose(pairs.top, size), *pairs.planes[1:]]
        else:
            counts = chunk.histogram(planes=sample.planes)
            planes = [Choice.raw(size) for _ in range(word_nbytes)]
            for i, p in enumerate(sample.planes):
                planes[p] = self.tables.choose(counts[:, i], size)
        return planes

    def _wanted(self, pairs: Pairs, others: Counts, size: Counts) -> NDArray[np.bool_]:
        """Where pairs are better than what costs `others`:
        at most 0.3 % larger, for they decode faster, and few patches.
        """
        raw_nbytes = padded(size * len(pairs.planes)) if pairs.top is not None else padded(size)
        better = (
            pairs.nbytes * 1000 <= others * (1000 if self.options.preset == "max" else 1003)
        ) & (pairs.nbytes < raw_nbytes)
        n_patches = pairs.n_patches + pairs.n_more
        return np.asarray((n_patches * MAX_PATCHES <= size) & (better | self.forced))

    def _best_by_far(
        self,
        pairs: Pairs,
        sample: Sample,
        chunk: Chunk,
        winners: list[list[int]],
        raw_nbytes: Counts,
    ) -> bool:
        """Whether pairs are better everywhere than bytes can be,
        so that these need not be chosen.
        """
        if any(winners) or self.options.contexts:
            return False
        if not sample.bytes:
            return bool(self._wanted(pairs, raw_nbytes, chunk.size).all())
        if pairs.top is None:
            return False
        least = np.where(
            pairs.top.max(axis=1) == chunk.size, 0, stream_nbytes(ideal_cost(pairs.top))
        )
        bound = np.minimum(least, padded(chunk.size)) + sum(
            (c.nbytes for c in pairs.planes[1:]), np.zeros(chunk.size.size, np.int64)
        )
        return bool(self._wanted(pairs, np.minimum(bound, raw_nbytes), chunk.size).all())
