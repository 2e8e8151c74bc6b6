"""One tensor of a file as a file of its own, without decoding it:
its records as they are, with the tables that they name.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wcodec.codec.sources import read_into
from wcodec.reference import container
from wcodec.reference.container import HEADER, ByteSource, Index
from wcodec.reference.planes import Bytes
from wcodec.reference.segments import Coder, SegmentTable
from wcodec.reference.tables import TablePool
from wcodec.reference.tensors import TensorRecord


def extract(source: ByteSource, t: TensorRecord, tables: TablePool) -> Bytes:
    """The bytes of a file of one tensor with an empty name, such as `wcodec.encode` makes.

    Parameters
    ----------
    source
        The file.
    t
        A tensor of it that is no difference from a base.
    tables
        The file's.

    Returns
    -------
    uint8 of one dimension.
    """
    segments, used = _own_tables(t.segments, tables)
    record = replace(t, name="", segments=segments, payload_offset=HEADER.size, duplicate_of=None)
    head = container.write_header()
    index = container.write_index(Index([record], used), HEADER.size + t.payload_nbytes)
    out = np.empty(len(head) + t.payload_nbytes + len(index), np.uint8)
    out[: len(head)] = np.frombuffer(head, np.uint8)
    payload = out[len(head) : len(head) + t.payload_nbytes]
    read_into(source, t.payload_offset, payload)
    out[len(head) + t.payload_nbytes :] = np.frombuffer(index, np.uint8)
    return out


def _own_tables(s: SegmentTable, tables: TablePool) -> tuple[SegmentTable, TablePool]:
    """A tensor's columns with the numbers of its own tables and context maps, and these."""
    coded, context = s.coder == Coder.RANS.value, s.coder == Coder.CONTEXT.value
    maps = np.unique(s.table[context])
    of_maps = [i for m in maps.tolist() for i in tables.maps[m].tables]
    ids = np.unique(np.concatenate([s.table[coded].astype(np.int64), np.array(of_maps, np.int64)]))
    table = s.table.copy()
    table[coded] = _places(ids, s.table[coded])
    table[context] = _places(maps, s.table[context])
    own = [
        replace(
            tables.maps[m], tables=tuple(_places(ids, np.array(tables.maps[m].tables)).tolist())
        )
        for m in maps.tolist()
    ]
    return replace(s, table=table), TablePool([tables[i] for i in ids.tolist()], own)


def _places(among: NDArray[np.integer], ids: NDArray[np.integer]) -> NDArray[np.uint32]:
    """Where each id stands in an ascending list."""
    return np.searchsorted(among, ids).astype(np.uint32)
