"""Which tables code what. Spec: chapter 14 (informative)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.planner.costs import (
    BYTE,
    IMPOSSIBLE,
    Choice,
    Costs,
    Counts,
    ideal_cost,
    pair_costs,
    quantise,
    stream_nbytes,
    symbol_costs,
    without_rare,
)
from wcodec.planner.options import EncodeOptions
from wcodec.reference.prediction import CENTRE, PER_TILE, Mode
from wcodec.reference.segments import Coder, SegmentTable, padded
from wcodec.reference.tables import Table, TablePool

MAX_RARE: Final = 4  #: symbols of which a table keeps one slot each though they do not occur
#: symbols that a part of the words lacks, and a table made from it codes all the same
MAX_UNSEEN: Final = 8
MAX_TABLES: Final = (1 << 16) - 1
RECENT_TABLES: Final = 256  #: how far back an encoder looks for a table that fits
NEW_TABLES: Final = 16  #: most tables that one plane of a chunk adds for segments unlike the others
GROUPS: Final = 32  #: of segments that are not alike, each of which a table is made for
NEGLIGIBLE: Final = 4096  #: a new table must save that part of what it codes, besides its own bytes


def costs_under(table: Table, fill: int | None) -> Costs:
    """What symbols cost, or pairs of codes in a window."""
    return symbol_costs(table) if fill is None else pair_costs(table, fill)[0]


def _constant(counts: Counts, size: Counts, mode: int) -> NDArray[np.bool_]:
    """Which planes consist of one byte, given the counts of what a mode makes of them: equal
    residuals show that only if they are 0.
    """
    if mode == Mode.NONE:
        return np.asarray(counts.max(axis=1) == size)
    # there NONE may stand beside others
    return np.asarray((counts[:, 0] == size) & (mode != PER_TILE))


class Tables:
    """The table pool of a file, and what is taken from it or added to it.

    Parameters
    ----------
    options
        Choices taken by the caller.
    most
        Tables that there may be, and context maps.
    """

    def __init__(self, options: EncodeOptions, most: int) -> None:
        self.options, self.pool, self.most = options, TablePool(), most
        # coded bytes may be this many 1024ths of the raw ones
        self.keep = 1024 - round(options.saving * 1024)
        self.forced = options.force
        #: whether segments are those of many tensors, which need not be alike
        self.unlike = False
        self._enough: list[bool] | None = None

    @contextmanager
    def all_slots(self, wanted: bool) -> Iterator[list[bool]]:
        """Meanwhile tables are such that code all symbols, if that is wanted. Gives a list of
        whether that costs little, for each table that is looked for.
        """
        enough = list[bool]()
        self._enough = enough if wanted else None
        try:
            yield enough
        finally:
            self._enough = None

    def choose(
        self, counts: Counts, size: Counts, mode: int = 0, fill: int | None = None
    ) -> Choice:
        """Coder and table of a plane of all segments,
        given its histograms (n, 256) and symbols (n,).

        `fill` is given for pairs of codes in a window, of which rare ones may get patches.
        """
        n = size.size
        out = Choice.raw(size)
        if self.options.coder == "raw":
            return out
        top = counts.max(axis=1)
        constant = _constant(counts, size, mode)
        out.coder[constant], out.nbytes[constant] = Coder.CONSTANT, 0
        out.table[constant] = (
            np.argmax(counts[constant], axis=1)
            if mode == Mode.NONE
            else CENTRE
            if mode & 15 == Mode.NONE
            else 0
        )
        left = top < size  # a table has at least two symbols
        limit, ideal = padded(size) * self.keep // 1024, ideal_cost(counts)
        left &= (stream_nbytes(ideal) <= limit) | self.forced
        if not left.any():
            return out
        table, cost = np.zeros(n, np.int64), np.full(n, IMPOSSIBLE)
        if self.unlike:
            self._share(counts, left, table, cost)
        else:
            self._fit(counts, left, table, cost, fill)
        # segments unlike the others: a table for the worst of them, for all that like it better
        for _ in range(NEW_TABLES):
            gain = np.where(left, cost - ideal, 0)
            k = int(np.argmax(gain * (gain * 50 > cost)))
            if (
                gain[k] * 50 <= cost[k]
                or gain[k] < 512 * BYTE
                or not self._fit(counts, np.arange(n) == k, table, cost, fill, left)
            ):
                break
        nbytes = stream_nbytes(np.minimum(cost, IMPOSSIBLE))
        coded = left & (cost < IMPOSSIBLE) & ((nbytes <= limit) | self.forced)
        out.coder[coded] = Coder.RANS
        out.table[coded] = table[coded]
        out.nbytes[coded] = nbytes[coded]
        out.prediction[coded] = mode
        return out

    def _share(self, counts: Counts, of: NDArray[np.bool_], table: Counts, cost: Costs) -> None:
        """Give segments `of` that are not alike the tables that suit them: earlier ones, and as
        many new ones as pay, each made of segments whose symbols are of similar size.
        """
        own = counts[of]
        mine = own.astype(np.float64)
        first = max(0, len(self.pool) - 2 * GROUPS)
        recent = self.pool.tables[first:]
        if len(self.pool) + GROUPS >= self.most:
            self._fit(counts, of, table, cost)
            return
        order = np.argsort(mine @ np.arange(256) // mine.sum(axis=1), kind="stable")
        starts = np.unique(np.arange(GROUPS) * order.size // GROUPS)
        totals = [*np.add.reduceat(own[order], starts, axis=0), own.sum(axis=0)]
        made = [quantise(t, self.options.prob_bits) for t in totals if np.count_nonzero(t) > 1]
        tables = [*recent, *made]
        costs = mine @ np.stack([symbol_costs(t) for t in tables], axis=1)
        price = np.array(
            [0] * len(recent) + [8 * t.serialised_nbytes << 16 for t in made], np.float64
        )
        raw = mine.sum(axis=1) * BYTE
        best, number = raw, np.zeros(len(mine), np.int64)
        chosen: dict[int, int] = {}
        while True:
            saved = np.maximum(best[:, None] - costs, 0).sum(axis=0) - price
            i = int(np.argmax(saved))
            if saved[i] <= 0:
                break
            if i >= len(recent):
                chosen[i] = len(self.pool)
                self.pool.tables.append(tables[i])
            price[i] = 0
            number = np.where(costs[:, i] < best, chosen.get(i, first + i), number)
            best = np.minimum(best, costs[:, i])
        table[of], cost[of] = number, np.where(best < raw, best, IMPOSSIBLE)

    def _fit(
        self,
        counts: Counts,
        of: NDArray[np.bool_],
        table: Counts,
        cost: Costs,
        fill: int | None = None,
        offer: NDArray[np.bool_] | None = None,
    ) -> bool:
        """Give segments `of` a table, an earlier one if that is no dearer, and offer it to `offer`.
        False if that helps none.
        """
        number = self.fit(counts[of].sum(axis=0), fill)
        got = counts @ costs_under(self.pool[number], fill)
        take = (of if offer is None else of | offer) & (got < cost)
        table[take], cost[take] = number, got[take]
        return bool(take.any())

    def fit(self, total: Counts, fill: int | None = None) -> int:
        """Number of the table for a histogram: an earlier one if that is no dearer than a new
        one. `fill` is as for `choose`.
        """
        if self._enough is not None:
            self._enough.append(int((total == 0).sum()) <= MAX_UNSEEN)
            total = total + 1
        first = max(0, len(self.pool) - RECENT_TABLES)
        recent = self.pool.tables[first:]
        costs = np.array([costs_under(t, fill) @ total for t in recent])
        best = int(np.argmin(costs)) if recent else -1
        fits = bool(recent) and costs[best] * NEGLIGIBLE <= int(ideal_cost(total)) * (
            NEGLIGIBLE + 1
        )
        if not fits and len(self.pool) < self.most:
            # they have occurred: later chunks may want them
            rare = (total == 0) & (recent[best].freq > 0) if recent else total < 0
            wanted = total + (rare & (int(rare.sum()) <= MAX_RARE))
            wanted = wanted if fill is None else without_rare(total, fill)
            new = quantise(wanted, self.options.prob_bits)
            if recent:
                price = float(costs_under(new, fill) @ total)
                price += price // NEGLIGIBLE + (8 * new.serialised_nbytes << 16)
            if not recent or costs[best] > price:
                self.pool.tables.append(new)
                best = len(recent)
        if self._enough is not None:  # where there is no room for another one
            self._enough[-1] &= bool((self.pool[first + best].freq > 0).all())
        return first + best

    def prune(self, s: SegmentTable, n_tables: int, n_maps: int = 0) -> None:
        """Drop the tables after the first `n_tables` and the context maps after the first
        `n_maps` that are not used.
        """
        if len(self.pool) == n_tables and len(self.pool.maps) == n_maps:
            return
        rans = s.coder == Coder.RANS.value
        if len(self.pool.maps) == n_maps:  # all tables may be in use
            in_use = set(s.table[rans].tolist())
            if in_use.issuperset(range(n_tables, len(self.pool))):
                return
        by_map = s.coder == Coder.CONTEXT.value
        s.table[by_map], used_maps = _renumbered(s.table[by_map], len(self.pool.maps), n_maps)
        maps = [self.pool.maps[i] for i in used_maps]
        of_maps = np.array([t for m in maps for t in m.tables], np.int64)
        numbers, used = _renumbered(
            np.concatenate([s.table[rans], of_maps]), len(self.pool), n_tables
        )
        s.table[rans], of_maps = np.split(numbers, [int(rans.sum())])
        parts = np.split(of_maps, np.cumsum([len(m.tables) for m in maps], dtype=np.int64)[:-1])
        self.pool.tables[n_tables:] = [self.pool.tables[i] for i in used]
        self.pool.maps[n_maps:] = [
            replace(m, tables=tuple(t.tolist())) for m, t in zip(maps, parts, strict=len(maps) > 0)
        ]


def _renumbered(numbers: NDArray[Any], n: int, n_kept: int) -> tuple[NDArray[np.int64], list[int]]:
    """`numbers` after all of `n` things after the first `n_kept` have gone that they do not name;
    and which of those are left.
    """
    used = n_kept + np.flatnonzero(np.bincount(numbers.astype(np.int64), minlength=n)[n_kept:])
    renumber = np.arange(n)
    renumber[used] = n_kept + np.arange(used.size)
    return renumber[numbers.astype(np.int64)], used.tolist()
