"""Columns of segment tables, as an index holds them: read and written. Spec: R4.36, R4.37."""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wcodec.reference.cursor import Cursor, fail
from wcodec.reference.planes import Bytes
from wcodec.reference.segments import SegmentTable

_FEW: Final = 16  #: numbers that are looked at one by one
_ONE_VALUE: Final = struct.Struct("<BI")
#: a column of one value (R4.37)
_COLUMN: Final = np.dtype([("width", "u1"), ("value", "<u4")])


# ---- writing -----------------------------------------------------------------------------------
def write_column(values: NDArray[Any]) -> bytes:
    """A column of the segment table (R4.37): one value for all,
    or the narrowest width that holds them.
    """
    if values.size <= _FEW:
        numbers = values.tolist()
        first, most = numbers[0], max(numbers)
        same = numbers.count(first) == len(numbers)
    else:
        first, most = int(values[0]), int(values.max())
        same = bool((values == first).all())
    if same:
        return _ONE_VALUE.pack(0, first)
    width = 1 if most < 1 << 8 else 2 if most < 1 << 16 else 4
    return bytes([width]) + values.astype(f"<u{width}").tobytes()


def write_columns(s: SegmentTable) -> bytes:
    """The columns of a segment table that is not empty (R4.36)."""
    if isinstance(s, StoredTable) and s.stored is not None:
        return s.stored.bytes()
    return b"".join(map(write_column, in_order(s)))


def in_order(s: SegmentTable) -> list[NDArray[Any]]:
    """The columns in the order of the index (R4.36)."""
    columns: list[NDArray[Any]] = [s.layout, s.base, s.n_patches]
    for planes in zip(s.coder, s.table, s.prediction, s.n_units, strict=True):
        columns += planes
    return columns


def single_columns(s: SegmentTable) -> list[StoredTable]:
    """The tables of tensors of one segment each, given the columns of all of them."""
    parts = in_order(s)
    columns = np.zeros((s.layout.size, len(parts)), _COLUMN)
    for column, values in zip(columns.T, parts, strict=True):
        column["value"] = values
    index, nbytes, n_planes = columns.reshape(-1).view(np.uint8), 5 * len(parts), len(s.coder)
    return [
        StoredTable.at(Stored(index, k * nbytes, (k + 1) * nbytes, 1, n_planes))
        for k in range(s.layout.size)
    ]


# ---- reading -----------------------------------------------------------------------------------
class Stored(NamedTuple):
    """Where an index holds the columns of a segment table (R4.36).

    Attributes
    ----------
    array
        All records of the index, uint8.
    start, end
        Where the columns are in it.
    n, n_planes
        Segments, and planes of each.
    """

    array: Bytes
    start: int
    end: int
    n: int
    n_planes: int

    def bytes(self) -> bytes:
        """They themselves."""
        return self.array[self.start : self.end].tobytes()

    def read(self) -> SegmentTable:
        """The columns."""
        body = Cursor(self.bytes())
        columns = read_columns(body, self.n, self.n_planes)
        body.done("the segment table")
        return columns


class StoredTable(SegmentTable):
    """A segment table as an index holds it, whose columns are read when one is asked for.

    Attributes
    ----------
    stored
        Where it is; ``None`` of a table with other columns that was made of this one.
    """

    __slots__ = ("stored",)
    stored: Stored | None

    @classmethod
    def at(cls, stored: Stored) -> StoredTable:
        """The table there."""
        table = cls.__new__(cls)
        object.__setattr__(table, "stored", stored)  # it is frozen
        return table

    def __getattr__(self, name: str) -> Any:
        if name == "stored":
            return None
        if name not in SegmentTable.__slots__:
            raise AttributeError(name)
        assert self.stored is not None
        columns = self.stored.read()
        for column in SegmentTable.__slots__:
            object.__setattr__(self, column, getattr(columns, column))
        return getattr(self, name)


def joined_columns(tables: list[SegmentTable]) -> SegmentTable | None:
    """The columns of tensors of one segment each, as those of one table; ``None`` if they are not
    stored as `single_columns` does.
    """
    stored = [t.stored if isinstance(t, StoredTable) else None for t in tables]
    first = stored[0]
    if first is None:
        return None
    starts = [s.start for s in stored if s is not None and s.array is first.array]
    nbytes = 5 * (3 + 4 * first.n_planes)
    if len(starts) < len(tables) or any(s and s.end - s.start != nbytes for s in stored):
        return None
    rows = first.array[np.array(starts)[:, None] + np.arange(nbytes)].view(_COLUMN)
    if rows["width"].any():
        return None
    of = np.ascontiguousarray(rows["value"].T)
    # in the order of the index; by themselves, larger numbers are refused
    most = [255, 255, None, *[255, None, 255, None] * first.n_planes]
    if any(m is not None and (c > m).any() for c, m in zip(of, most, strict=True)):
        return None
    planes = of[3:].reshape(first.n_planes, 4, -1)
    u1 = np.uint8
    return SegmentTable(
        of[0].astype(u1), of[1].astype(u1), of[2], planes[:, 0].astype(u1),
        np.ascontiguousarray(planes[:, 1]), planes[:, 2].astype(u1),
        np.ascontiguousarray(planes[:, 3]),
    )  # fmt: skip


def concatenated(tables: list[SegmentTable]) -> SegmentTable:
    """Tables one after another, at least one. Those of one segment as `single_columns` stores them
    are read at once.
    """
    n = [t.stored.n if isinstance(t, StoredTable) and t.stored else -1 for t in tables]
    ones = [i for i, k in enumerate(n) if k == 1]
    joined = joined_columns([tables[i] for i in ones]) if len(ones) > 1 else None
    if joined is None:
        return SegmentTable.concatenate(tables)
    others = [t for t, k in zip(tables, n, strict=True) if k != 1]
    places, at_one, at = list[NDArray[np.int64]](), 0, len(ones)
    for t, k in zip(tables, n, strict=True):
        if k == 1:
            places.append(np.array([at_one]))
            at_one += 1
        else:
            places.append(np.arange(at, at + t.layout.size))
            at += t.layout.size
    return SegmentTable.concatenate([joined, *others]).take(np.concatenate(places))


def stored_columns(body: Cursor, index: Bytes, n: int, n_planes: int) -> StoredTable:
    """The columns of `n` segments that follow, passed over, to be read when they are wanted;
    `index` is what the cursor reads.
    """
    data, start, at = body.data, body.at, body.at
    for _ in range(3 + 4 * n_planes):
        width = data[at] if at < body.end else 0
        if width not in (0, 1, 2, 4):
            raise fail("bad_value", f"a column of the segment table has width {width}")
        at += 1 + (width * n or 4)
    body.take(at - start)
    return StoredTable.at(Stored(index, start, at, n, n_planes))


def read_column(body: Cursor, out: NDArray[Any]) -> None:
    """Fill `out` with a column (R4.37) whose values its type has to hold (R4.39)."""
    width, limit = body.take(1)[0], (1 << 8 * out.itemsize) - 1
    if width not in (0, 1, 2, 4):
        raise fail("bad_value", f"a column of the segment table has width {width}")
    values: Any = (
        int.from_bytes(body.take(4), "little") if width == 0 else body.array(f"<u{width}", out.size)
    )
    most = values if width == 0 else int(values.max())
    if most > limit:
        raise fail("bad_value", f"a column of the segment table holds {most}, more than {limit}")
    out[:] = values


def read_columns(body: Cursor, n: int, n_planes: int) -> SegmentTable:
    """The columns of `n` segments, at least one (R4.36)."""
    s = SegmentTable.zeros(n, n_planes)
    for values in (s.layout, s.base, s.n_patches):
        read_column(body, values)
    for p in range(n_planes):
        for of_planes in (s.coder, s.table, s.prediction, s.n_units):
            read_column(body, of_planes[p])
    return s
