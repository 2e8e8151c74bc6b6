"""Preset ``fast``: choices from a sixteenth of the words. Spec: chapter 14 (informative).

All segments are looked at, but only the first rows of each. Each plane of a chunk gets one table,
which can code any symbol, or any pair of codes by patches: what was not looked at can make a record
larger, but not wrong.
`wcodec.codec.encoder.Writer` stores raw what has become larger than its words.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wcodec.planner.costs import (
    BYTE,
    Choice,
    Chunk,
    Counts,
    Sample,
    stream_nbytes,
)
from wcodec.planner.tables import Tables, costs_under
from wcodec.reference.segments import Coder, SegmentPlan, SegmentTable, padded

#: sixteenths of its bytes that a plane below the top one may keep, or it is stored raw
LOWER: Final = 15
#: a segment of which more than one word in so many has seemed to need a patch is not coded in pairs
MAX_OUTSIDE: Final = 200


class Fast:
    """Choices for one chunk.

    Parameters
    ----------
    tables
        Where the tables come from.
    chunk, sample
        The words, and what was looked at: a part of each segment.
    """

    def __init__(self, tables: Tables, chunk: Chunk, sample: Sample) -> None:
        self.tables, self.chunk, self.sample = tables, chunk, sample
        n = np.arange(chunk.size.size)
        # the last row of segments is not looked at
        self.like = np.where(n < sample.part.size.size, n, n - chunk.geometry.grid[1])

    def _choose(
        self,
        counts: Counts,
        part_size: Counts,
        size: Counts,
        sixteenths: int = 16,
        fill: int | None = None,
    ) -> Choice:
        """Coder of a plane of each segment, given histograms of parts (n, 256), their symbols (n,)
        and those of the segments (n,). `fill` is as for `Tables.choose`.
        """
        out, total = Choice.raw(size), counts.sum(axis=0)
        if fill is None or np.count_nonzero(total) < 2:
            total, fill = total + 1, None
        table = self.tables.pool[number := self.tables.fit(total, fill)]
        codes_all = fill is not None or bool((table.freq > 0).all())
        cost = (counts @ costs_under(table, fill))[self.like]
        part_size = part_size[self.like]
        nbytes = stream_nbytes(cost * size // part_size)
        limit = np.minimum(padded(size) * self.tables.keep // 1024, padded(size) * sixteenths // 16)
        coded = (cost < part_size * BYTE) & (nbytes <= limit) & codes_all
        out.coder[coded], out.table[coded], out.nbytes[coded] = Coder.RANS, number, nbytes[coded]
        return out

    def bytes(self) -> list[Choice]:
        """Choices of the byte planes."""
        planes = [Choice.raw(self.chunk.size) for _ in range(self.chunk.dtype.word_nbytes)]
        s = self.sample
        for p in s.planes:
            planes[p] = self._choose(
                s.counts[:, p], s.part.size, self.chunk.size, LOWER if p else 16
            )
        return planes

    def pairs(self) -> tuple[int, int, list[Choice], NDArray[np.bool_]]:
        """Base, fill code and choices of the planes in nibble pairs, and where these will do."""
        size, part, (base, fill) = self.chunk.size, self.sample.part, self.sample.window()
        half, part_half = (size + 1) // 2, (part.size + 1) // 2
        if self.chunk.dtype.word_nbytes == 1:
            counts = part.histogram(base=0, fill=fill, planes=self.sample.nibbles)
            planes = [
                self._choose(counts[:, i], part_half, half, LOWER if i else 16)
                for i in range(len(self.sample.nibbles))
            ]
            return 0, fill, [*planes, Choice.raw(half)][:2], np.full(size.size, True)
        counts = part.histogram(base=base, fill=fill, planes=())
        top = self.sample.counts[:, 0]
        few = (part.size - top[:, base : base + 16].sum(axis=1)) * MAX_OUTSIDE <= part.size
        return (
            base,
            fill,
            [self._choose(counts[:, 0], part_half, half, fill=fill), *self.bytes()[1:]],
            few[self.like],
        )


def has_grown(plan: SegmentPlan) -> NDArray[np.bool_]:
    """Which of the segments that are done are larger than their words."""
    return np.asarray(np.diff(plan.offsets) > padded(plan.n_elements * plan.dtype.word_nbytes))


def stored_raw(plan: SegmentPlan, where: NDArray[np.bool_]) -> SegmentPlan:
    """A plan without tile modes or contexts, some of its segments stored as they are."""
    columns = {
        f.name: np.where(where, 0, getattr(plan.segments, f.name)).astype(
            getattr(plan.segments, f.name).dtype
        )
        for f in fields(SegmentTable)
    }
    return replace(plan, segments=SegmentTable(**columns))
