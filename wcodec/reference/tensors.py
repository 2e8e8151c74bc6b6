"""What an index says of a tensor. Spec: 4.4, 12.1."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wcodec.processes import cached_property
from wcodec.reference.differences import Difference, coded_dtype
from wcodec.reference.planes import BY_NAME, DType
from wcodec.reference.segments import SegmentPlan, SegmentTable
from wcodec.reference.tables import TablePool
from wcodec.reference.tiles import Geometry, Spans

GAP_DTYPE: Final = BY_NAME["uint8"]  #: R12.10


@dataclass
class TensorRecord:
    """What the index says of one tensor (R4.30). Not to be changed. A sparse one has `lists`, and
    no entries in `segments` and `segment_crc32`.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    row_rank: int
    geometry: Geometry
    segments: SegmentTable
    segment_crc32: NDArray[np.uint32]
    payload_offset: int
    payload_nbytes: int
    crc32: int
    dtype_name: str = ""
    difference: Difference = Difference.NONE
    duplicate_of: int | None = None
    lists: Lists | None = None
    _plan: SegmentPlan | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded tensor."""
        return self.geometry.rows * self.geometry.cols * self.dtype.word_nbytes

    def duplicate(self, name: str, of: int) -> TensorRecord:
        """The record of a duplicate of this tensor, which is number `of`; both have one plan."""
        record = replace(self, name=name, duplicate_of=of)
        record._plan = self._plan
        return record

    @property
    def is_single(self) -> bool:
        """Whether it is a single row, and that a segment of one tile, and not empty."""
        g = self.geometry
        fits = g.rows == 1 and 0 < g.cols <= min(g.segment_cols, g.tile_cols)
        return fits and self.lists is None

    @property
    def coded_dtype(self) -> DType:
        """As the function `coded_dtype`, of this tensor."""
        return coded_dtype(self.dtype, self.difference)

    def part(self, ids: NDArray[np.int64], geometry: Geometry, tables: TablePool) -> SegmentPlan:
        """The plan of some segments, which fill a matrix of this geometry;
        see `Geometry.select`.
        """
        return SegmentPlan(self.coded_dtype, geometry, self.segments.take(ids), tables)

    def plan(self, tables: TablePool) -> SegmentPlan:
        """The plan of all segments; the same each time, with what it has found out."""
        if self._plan is None or self._plan.tables is not tables:
            self._plan = SegmentPlan(self.coded_dtype, self.geometry, self.segments, tables)
        return self._plan


@dataclass(frozen=True)
class Lists:
    """The lists of a sparse tensor (12.1).

    Attributes
    ----------
    n_listed
        uint32: the listed words of each segment.
    words_crc32
        uint32: their CRC-32s, of segments that have some.
    gaps, words
        The gaps and the listed words as tensors of one row, with a segment for each segment of the
        sparse tensor that has listed words: `Spans`, or without segments an empty `Geometry`.
    """

    n_listed: NDArray[np.uint32]
    words_crc32: NDArray[np.uint32]
    gaps: TensorRecord
    words: TensorRecord

    @classmethod
    def of(
        cls,
        name: str,
        coded: DType,
        n_listed: NDArray[np.uint32],
        n_gaps: NDArray[np.uint32],
        words_crc32: NDArray[np.uint32],
        tables: tuple[SegmentTable, SegmentTable],
        record_crc32s: tuple[NDArray[np.uint32], NDArray[np.uint32]],
    ) -> Lists:
        """Lists of a tensor, given how gaps and listed words are coded. Of the two parts, `place`
        says where they are.
        """
        sizes = n_gaps, n_listed[n_listed > 0]
        gaps, words = (
            _list_of(name, dtype, n, segments, crc32)
            for dtype, n, segments, crc32 in zip(
                (GAP_DTYPE, coded), sizes, tables, record_crc32s, strict=True
            )
        )
        return cls(n_listed, words_crc32, gaps, words)

    @classmethod
    def none(cls, name: str, coded: DType, n_listed: NDArray[np.uint32]) -> Lists:
        """Lists of a tensor of which no word is listed."""
        none = np.empty(0, np.uint32)
        tables = [SegmentTable.zeros(0, dtype.n_planes) for dtype in (GAP_DTYPE, coded)]
        return cls.of(name, coded, n_listed, none, none, (tables[0], tables[1]), (none, none))

    @cached_property
    def touched(self) -> NDArray[np.int64]:
        """Numbers of the segments that have listed words."""
        return np.flatnonzero(self.n_listed)

    @property
    def parts(self) -> tuple[TensorRecord, TensorRecord]:
        """In the order of their records."""
        return self.gaps, self.words

    def place(self, offset: int, sizes: tuple[int, int]) -> None:
        """Enter where the records of gaps are, and those of words after them, and their bytes."""
        for part, nbytes in zip(self.parts, sizes, strict=True):
            part.payload_offset, part.payload_nbytes = offset, nbytes
            offset += nbytes


def _list_of(
    name: str,
    dtype: DType,
    n: NDArray[np.uint32],
    segments: SegmentTable,
    crc32: NDArray[np.uint32],
) -> TensorRecord:
    sizes = n.astype(np.int64)
    geometry = Spans.of(sizes) if n.size else Geometry(1, 0, 1, 1, 1, 1)
    return TensorRecord(name, dtype, (geometry.cols,), 0, geometry, segments, crc32, 0, 0, 0)
