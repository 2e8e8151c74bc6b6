"""Parts of a file that are coded on their own, each with tables of its own, put together.

So a large file can be coded on many machines, and becomes the same bytes as on one.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from wcodec.reference.segments import Coder, SegmentTable
from wcodec.reference.tables import TablePool
from wcodec.reference.tensors import TensorRecord


def join_tables(
    pools: list[TablePool], starts: list[int], tensors: list[TensorRecord]
) -> tuple[TablePool, list[TensorRecord]]:
    """One pool of all tables, and the tensors with the numbers that theirs have there.

    Parameters
    ----------
    pools
        Of each part.
    starts
        Number of the first tensor of each part.
    tensors
        Those of all parts, with their places in the whole file. Duplicates may be of tensors of
        earlier parts.
    """
    if len(pools) == 1:
        return pools[0], tensors
    pool, joined = TablePool(), list[TensorRecord]()
    for tables, (a, b) in zip(pools, pairwise([*starts, len(tensors)]), strict=True):
        n_tables, n_maps = len(pool), len(pool.maps)
        pool.tables += tables.tables
        for m in tables.maps:
            pool.maps.append(replace(m, tables=tuple(n_tables + i for i in m.tables)))
        for t in tensors[a:b]:
            if t.duplicate_of is not None:
                joined.append(joined[t.duplicate_of].duplicate(t.name, t.duplicate_of))
            else:
                joined.append(replace(t, segments=_shifted(t.segments, n_tables, n_maps)))
    return pool, joined


def _shifted(s: SegmentTable, n_tables: int, n_maps: int) -> SegmentTable:
    """Columns whose tables and context maps are those after so many others."""
    if not n_tables and not n_maps:
        return s
    table = s.table.copy()
    table[s.coder == Coder.RANS.value] += np.uint32(n_tables)
    table[s.coder == Coder.CONTEXT.value] += np.uint32(n_maps)
    return replace(s, table=table)
