"""Segment records: what the segment table says of them, where their parts lie, how they are coded.
Spec: chapter 10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wcodec.processes import cached_property
from wcodec.reference import rans
from wcodec.reference.planes import (
    Bytes,
    DType,
    Layout,
)
from wcodec.reference.prediction import PER_TILE
from wcodec.reference.tables import ContextKind, TablePool
from wcodec.reference.tiles import Geometry, tiles

ALIGN: Final = 16  #: bytes; every part of a segment record starts at a multiple of it (R10.2)


LAST_LAYOUT: Final = int(max(Layout))
MAX_WINDOW_BASE: Final = 240  #: R10.9


class Coder(IntEnum):
    """How a plane is stored (R10.5)."""

    RAW = 0  #: its bytes
    CONSTANT = 1  #: nothing: the value stands in the column `table`
    RANS = 2  #: an interleaved rANS stream
    #: the same, with a table for each class of contexts; the column `table` names a context map
    CONTEXT = 4


class Status(IntEnum):
    """What a decoder says of a segment."""

    OK = 0
    BAD_STREAM = 1
    BAD_PATCH = 2
    BAD_TILE_MODE = 3


@dataclass(frozen=True, slots=True)
class SegmentTable:
    """The columns of a tensor record (R4.36), one entry a segment;
    those of planes have shape (n_planes, n).
    """

    layout: NDArray[np.uint8]
    base: NDArray[np.uint8]
    n_patches: NDArray[np.uint32]
    coder: NDArray[np.uint8]
    table: NDArray[np.uint32]
    prediction: NDArray[np.uint8]
    n_units: NDArray[np.uint32]

    @classmethod
    def zeros(cls, n: int, n_planes: int) -> SegmentTable:
        """A table of `n` segments that are all `Layout.RAW`."""
        one, planes = (n,), (n_planes, n)
        u1, u4 = np.uint8, np.uint32
        return cls(
            np.zeros(one, u1), np.zeros(one, u1), np.zeros(one, u4),
            np.zeros(planes, u1), np.zeros(planes, u4), np.zeros(planes, u1), np.zeros(planes, u4),
        )  # fmt: skip

    def take(self, ids: NDArray[np.int64]) -> SegmentTable:
        """Entries of some segments."""
        return SegmentTable(
            *(np.ascontiguousarray(getattr(self, f.name)[..., ids]) for f in fields(self))
        )

    @staticmethod
    def concatenate(parts: list[SegmentTable]) -> SegmentTable:
        """Tables one after another, at least one."""
        if len(parts) == 1:
            return parts[0]
        return SegmentTable(
            *(
                np.concatenate([getattr(p, f.name) for p in parts], axis=-1)
                for f in fields(SegmentTable)
            )
        )


@dataclass(frozen=True)
class SegmentPlan:
    """All that a kernel needs to know of some segments: a sub-grid of a tensor's matrix.

    Attributes
    ----------
    dtype, geometry
        Of the words; `geometry` covers exactly these segments.
    segments
        Their columns of the segment table. For encoding `n_units` is 0: it is a result.
    tables
        The table pool of the file.
    fill
        Encoding only: uint8 of shape (n,), the 4-bit code that stands for a word outside the
        window.
    modes
        Encoding only: for planes with prediction `PER_TILE`, the modes of all tiles: segment by
        segment, in each plane by plane.
    scales
        Encoding only: the packed classes of rows and columns (R10.10) of the segments that have
        them, one after another.
    """

    dtype: DType
    geometry: Geometry
    segments: SegmentTable
    tables: TablePool
    fill: NDArray[np.uint8] | None = None
    modes: Bytes | None = None
    scales: Bytes | None = None

    def encoded(self, n_units: NDArray[np.uint32], n_patches: NDArray[np.uint32]) -> SegmentPlan:
        """This plan for a decoder, given what encoding has found."""
        return SegmentPlan(
            self.dtype,
            self.geometry,
            replace(self.segments, n_units=n_units, n_patches=n_patches),
            self.tables,
        )

    @cached_property
    def is_raw(self) -> NDArray[np.bool_]:
        """Which segments are `Layout.RAW`."""
        return np.asarray(self.segments.layout == Layout.RAW.value)

    @cached_property
    def is_pairs(self) -> NDArray[np.bool_]:
        """Which segments are `Layout.PAIRS`."""
        return np.asarray(self.segments.layout == Layout.PAIRS.value)

    @cached_property
    def is_stream(self) -> NDArray[np.bool_]:
        """Which planes are `Coder.RANS` or `Coder.CONTEXT`, shape (n_planes, n)."""
        return np.asarray(
            (self.segments.coder == Coder.RANS.value) | (self.segments.coder == Coder.CONTEXT.value)
        )

    @property
    def n_elements(self) -> NDArray[np.int64]:
        """Words of each segment; not to be changed."""
        return self.geometry.n_elements()

    @cached_property
    def plane_nbytes(self) -> NDArray[np.int64]:
        """Decoded bytes of each plane of each segment, shape (n_planes, n):
        also its symbols (R10.3).
        """
        n = self.n_elements
        sizes, half = np.empty((self.dtype.n_planes, n.size), np.int64), (n + 1) // 2
        sizes[:] = n
        np.copyto(sizes[0], half, where=self.is_pairs)
        if self.dtype.word_nbytes == 1:
            sizes[1] = half * self.is_pairs
        np.copyto(sizes, 0, where=self.is_raw)
        return sizes

    @cached_property
    def modes_nbytes(self) -> NDArray[np.int64]:
        """Bytes of tile modes in each record, without padding (R10.4)."""
        per_tile = self.segments.prediction == PER_TILE
        if not per_tile.any():
            return np.zeros(per_tile.shape[1], np.int64)
        return np.asarray(per_tile.sum(axis=0) * self.geometry.tile_counts(), np.int64)

    @cached_property
    def modes_offsets(self) -> NDArray[np.int64]:
        """Where each segment's modes start in `modes`; one more entry than segments."""
        return _ends(self.modes_nbytes)

    @cached_property
    def scale_nbytes(self) -> NDArray[np.int64]:
        """Bytes of the classes of rows and columns in each record, without padding (R10.10)."""
        context = self.segments.coder == Coder.CONTEXT.value
        if not self.tables.maps or not context.any():
            return np.zeros(self.geometry.n_segments, np.int64)
        kinds = self.tables.map_kinds[np.where(context, self.segments.table, 0)]
        used = (context & (kinds == ContextKind.SCALE.value)).any(axis=0)
        heights, widths = self.geometry.sizes()
        return np.where(used, (heights + widths + 3) // 4, 0)

    @cached_property
    def scale_offsets(self) -> NDArray[np.int64]:
        """Where each segment's classes start in `scales`; one more entry than segments."""
        return _ends(self.scale_nbytes)

    @cached_property
    def head_nbytes(self) -> NDArray[np.int64]:
        """Bytes of each record before its first plane, padded:
        tile modes, classes of rows and columns.
        """
        return padded(self.modes_nbytes) + padded(self.scale_nbytes)

    @cached_property
    def stream_nbytes(self) -> NDArray[np.int64]:
        """Stored bytes of each plane, padded, shape (n_planes, n) (R10.6)."""
        # 0 of planes that are not streams
        sizes = self.segments.n_units.astype(np.int64) * rans.UNIT
        np.copyto(sizes, padded(self.plane_nbytes), where=self.segments.coder == Coder.RAW.value)
        return sizes

    @cached_property
    def words_nbytes(self) -> NDArray[np.int64]:
        """Bytes of the words of a `Layout.RAW` segment, padded; 0 for the others."""
        return padded(self.n_elements * self.dtype.word_nbytes) * self.is_raw

    @cached_property
    def patches_nbytes(self) -> NDArray[np.int64]:
        """Bytes of each segment's patches, padded."""
        return padded(self.segments.n_patches.astype(np.int64) * 4)

    @cached_property
    def plane_offsets(self) -> NDArray[np.int64]:
        """Where each plane's stream starts in the payload, shape (n_planes, n)."""
        before = np.cumsum(self.stream_nbytes, axis=0) - self.stream_nbytes
        return np.asarray(self.offsets[:-1] + self.head_nbytes + before, np.int64)

    @cached_property
    def patch_offsets(self) -> NDArray[np.int64]:
        """Where each segment's patches start in the payload."""
        return self.offsets[1:] - self.patches_nbytes

    @cached_property
    def payload_nbytes(self) -> int:
        """Bytes of all records."""
        return int(self.offsets[-1])

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where each record starts in the payload,
        and at the end where the last one stops (R10.1).
        """
        return _ends(
            self.words_nbytes
            + self.head_nbytes
            + self.stream_nbytes.sum(axis=0)
            + self.patches_nbytes
        )


@dataclass
class Record:
    """A segment record in its parts, in the order in which they lie (R10.1 to R10.10).

    Attributes
    ----------
    words
        The words of a segment of layout RAW; its other parts are empty.
    modes
        The modes of all tiles, of each plane that has one a tile.
    scales
        The packed classes of rows and columns.
    stored
        What is stored of each plane: its bytes, nothing, or a stream.
    patches
        uint32: words outside the window.
    planes
        The bytes of each plane, as far as they are known.
    status
        What a decoder has found to be wrong with it.
    """

    words: Bytes
    modes: Bytes
    scales: Bytes
    stored: list[Bytes]
    patches: NDArray[np.uint32]
    planes: list[Bytes]
    status: Status = Status.OK


def padded(nbytes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sizes rounded up to a multiple of 16."""
    return np.asarray((nbytes + (ALIGN - 1)) & -ALIGN, np.int64)


def _ends(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    ends = np.zeros(sizes.size + 1, np.int64)
    np.cumsum(sizes, out=ends[1:])
    return ends


def each_tile(
    plan: SegmentPlan, k: int, plane: Bytes, modes: Bytes, step: Callable[[Bytes, int], Bytes]
) -> Bytes:
    """Apply `step(tile, mode)` to each tile of a plane in element order;
    `modes` holds one mode, or one a tile.
    """
    rows, cols = plan.geometry.rectangle(k)
    shape = rows.stop - rows.start, cols.stop - cols.start
    out, at = np.empty_like(plane), 0
    for i, (r, c) in enumerate(tiles(*shape, plan.geometry.tile_rows, plan.geometry.tile_cols)):
        height, width = r.stop - r.start, c.stop - c.start
        tile = plane[at : at + height * width].reshape(height, width)
        out[at : at + tile.size] = step(tile, int(modes[i % modes.size])).reshape(-1)
        at += tile.size
    return out


def plane_modes(plan: SegmentPlan, k: int, record_modes: Bytes) -> list[Bytes]:
    """Modes of each plane of segment `k`: an array of one mode,
    or of one a tile cut from `record_modes`.
    """
    n_tiles, at, out = int(plan.geometry.tile_counts()[k]), 0, []
    for mode in plan.segments.prediction[:, k].tolist():
        if mode == PER_TILE:
            out.append(record_modes[at : at + n_tiles])
            at += n_tiles
        else:
            out.append(np.array([mode], np.uint8))
    return out
