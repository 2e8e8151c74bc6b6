"""Parts of tensors: segments, runs of them, and where their words and records lie."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wcodec.codec.sources import read_into
from wcodec.reference.container import ByteSource
from wcodec.reference.planes import Bytes
from wcodec.reference.segments import SegmentPlan
from wcodec.reference.tensors import TensorRecord
from wcodec.reference.tiles import Geometry, chunks

Ids = NDArray[np.int64]


class Part(NamedTuple):
    """Some segment rows and columns of a tensor, planned: their ids, where their records start in
    the file, and how they are coded.
    """

    down: Ids
    across: Ids
    ids: Ids
    starts: NDArray[np.int64]
    plan: SegmentPlan


def part_of(t: TensorRecord, whole: SegmentPlan, down: Ids, across: Ids) -> Part:
    """Plan some segment rows and columns of a tensor; `whole` is the tensor's plan."""
    if (down.size, across.size) == t.geometry.grid:
        ids, plan = np.arange(whole.n_elements.size), whole
    else:
        geometry, ids = t.geometry.select(down, across)
        plan = t.part(ids, geometry, whole.tables)
    return Part(down, across, ids, whole.offsets[:-1][ids] + t.payload_offset, plan)


def runs(ids: Ids, size: int, total: int) -> list[slice]:
    """Rows (or columns) of words of the runs of neighbours in ascending segment rows (or
    columns).
    """
    cuts = [0, *(np.flatnonzero(np.diff(ids) > 1) + 1).tolist(), ids.size]
    return [
        slice(int(ids[a]) * size, min((int(ids[b - 1]) + 1) * size, total))
        for a, b in pairwise(cuts)
    ]


class Rectangle(NamedTuple):
    """A chunk of a tensor: segment rows, segment columns, their geometry,
    and the rectangle of words that they fill.
    """

    down: Ids
    across: Ids
    geometry: Geometry
    rows: slice
    cols: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of words."""
        return self.rows.stop - self.rows.start, self.cols.stop - self.cols.start


def rectangle(geometry: Geometry, down: Ids, across: Ids) -> Rectangle:
    """What neighbouring segment rows and columns fill."""
    part = (
        geometry if (down.size, across.size) == geometry.grid else geometry.select(down, across)[0]
    )
    r, c = int(down[0]) * geometry.segment_rows, int(across[0]) * geometry.segment_cols
    return Rectangle(down, across, part, slice(r, r + part.rows), slice(c, c + part.cols))


def rectangles(t: TensorRecord, nbytes: int) -> Iterator[Rectangle]:
    """Chunks of a tensor of about `nbytes` bytes."""
    return (
        rectangle(t.geometry, down, across)
        for down, across in chunks(t.geometry, t.dtype.word_nbytes, nbytes)
    )


#: where neighbouring records start in a file, and their bytes
Runs = list[tuple[int, int]]


def runs_of_records(starts: NDArray[np.int64], offsets: NDArray[np.int64]) -> Runs:
    """The records that start at `starts` in a file, one after another as `offsets` says: neighbours
    together.
    """
    cut = np.flatnonzero(np.diff(starts) != np.diff(offsets)[:-1]) + 1
    bounds = [0, *cut.tolist(), starts.size]
    return [(int(starts[a]), int(offsets[b] - offsets[a])) for a, b in pairwise(bounds)]


def gather(source: ByteSource, where: Runs, room: Bytes | None = None) -> Bytes:
    """Runs of records, one after another; read into `room`, if there is one."""
    if room is None:
        pieces = [source.read(start, nbytes) for start, nbytes in where]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    room = room[: sum(nbytes for _, nbytes in where)]
    read_runs = getattr(source, "read_runs", None)
    if read_runs is not None:
        read_runs(where, room)
        return room
    at = 0
    for start, nbytes in where:
        read_into(source, start, room[at : at + nbytes])
        at += nbytes
    return room


def aligned(data: Bytes) -> Bytes:
    """Bytes, in a place that is a multiple of 16."""
    if data.ctypes.data % 16 == 0:
        return data
    room = np.empty(data.size + 15, np.uint8)
    start = -room.ctypes.data % 16
    room[start : start + data.size] = data
    return room[start : start + data.size]
