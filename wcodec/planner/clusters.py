"""Clusters of histograms, each with a table of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wcodec.planner.costs import (
    BYTE,
    IMPOSSIBLE,
    Counts,
    ideal_cost,
    quantise,
    symbol_costs,
)
from wcodec.planner.tables import MAX_RARE
from wcodec.reference.tables import Table


def table_price(table: Table) -> int:
    return (table.serialised_nbytes + 2) * BYTE


def map_price(n_contexts: int, n_classes: int) -> int:
    return (2 + n_contexts + 2 * n_classes) * BYTE


class Clusters:
    """Tables for many histograms: those given, and new ones as long as they pay.

    Parameters
    ----------
    counts
        Histograms (n, 256).
    tables
        What there is.
    prob_bits
        Of new tables.
    """

    def __init__(self, counts: Counts, tables: list[Table], prob_bits: int) -> None:
        self.counts = counts
        self.tables = list(tables)
        self.prob_bits = prob_bits
        self.n_given = len(tables)
        self.total = counts.sum(axis=0)
        self.number, self.cost = np.zeros(len(counts), np.int64), np.full(len(counts), IMPOSSIBLE)
        for i, table in enumerate(self.tables):
            self._offer(i, table)

    def _offer(self, i: int, table: Table) -> None:
        got = self.counts @ symbol_costs(table)
        self.number = np.where(got < self.cost, i, self.number)
        self.cost = np.minimum(got, self.cost)

    def _table(self, of: NDArray[np.bool_], everything: bool = False) -> Table:
        """A table for some histograms; `everything` gives a slot to all symbols that occur
        anywhere.
        """
        total = self.counts[of].sum(axis=0)
        rare = (total == 0) & (self.total > 0)
        if not everything and rare.sum() > MAX_RARE:
            rare[:] = False
        if (total + rare > 0).sum() < 2:  # a table has at least two symbols
            rare[int(np.argmax(total == 0))] = True
        return quantise(total + rare, self.prob_bits)

    def grow(self, most: int) -> None:
        """Add up to `most` tables, the next one for the histogram that gains most,
        and for all that like it.
        """
        ideal, tried = ideal_cost(self.counts), np.zeros(len(self.counts), bool)
        for _ in range(2 * most):
            gain = np.where(tried, 0, self.cost - ideal)
            k = int(np.argmax(gain))
            if gain[k] < 64 * BYTE or len(self.tables) - self.n_given == most:
                break
            tried[k] = True
            takers = (
                self.counts @ symbol_costs(self._table(np.arange(len(gain)) == k, everything=True))
                < self.cost
            )
            takers[k] = True
            new = self._table(takers)
            got = self.counts @ symbol_costs(new)
            if np.maximum(self.cost - got, 0).sum() > table_price(new):
                self.tables.append(new)
                self._offer(len(self.tables) - 1, new)
        self._settle()

    def _settle(self) -> None:
        """Make each new table again from the histograms that it has, twice."""
        for _ in range(2):
            for i in range(self.n_given, len(self.tables)):
                # nothing costs nothing, wherever it is
                mine = (self.number == i) & (self.counts > 0).any(axis=1)
                if mine.any():
                    self.tables[i] = self._table(mine)
                    self.cost[mine] = self.counts[mine] @ symbol_costs(self.tables[i])
            for i in range(self.n_given, len(self.tables)):
                self._offer(i, self.tables[i])
