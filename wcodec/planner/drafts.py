"""Plans while they are made. Spec: chapter 14 (informative)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wcodec.planner.costs import Choice, Counts
from wcodec.planner.modes import TileModes
from wcodec.reference.planes import Bytes, DType, Layout
from wcodec.reference.prediction import PER_TILE
from wcodec.reference.segments import SegmentPlan, SegmentTable, padded
from wcodec.reference.tables import TablePool
from wcodec.reference.tiles import Geometry


@dataclass
class Pairs:
    """How segments would be stored in nibble pairs;
    `top` holds counts of their top bytes, for words of several. `n_patches` is of words outside of
    the window, `n_more` of pairs that the table does not code.
    """

    base: int | NDArray[np.uint8]
    fill: int | NDArray[np.uint8]
    planes: list[Choice]
    n_patches: Counts
    top: Counts | None = None
    n_more: Counts | int = 0

    @property
    def nbytes(self) -> Counts:
        """Bytes in the file."""
        return sum((c.nbytes for c in self.planes), padded(4 * self.n_patches))


@dataclass
class Draft:
    """A plan while it is made: `nbytes` of each segment's record, `tile_modes` of byte planes,
    `scales` of each segment.
    """

    table: SegmentTable
    fill: NDArray[np.uint8]
    nbytes: Counts
    tile_modes: TileModes = field(default_factory=dict)
    scales: list[Bytes] = field(default_factory=list)

    def store(
        self, planes: list[Choice], where: NDArray[np.bool_], layout: Layout, nbytes: Counts
    ) -> None:
        """Use choices of planes in some segments, and of nothing else there."""
        t = self.table
        self.nbytes = np.where(where, nbytes, self.nbytes)
        np.copyto(t.layout, layout.value, where=where)
        np.copyto(t.base, 0, where=where)
        for column, name in ((t.coder, "coder"), (t.table, "table"), (t.prediction, "prediction")):
            for p in range(len(column)):
                np.copyto(
                    column[p], getattr(planes[p], name) if p < len(planes) else 0, where=where
                )

    def take_bytes(self, planes: list[Choice], raw_nbytes: Counts, forced: bool) -> None:
        """Use layout BYTES, where it is smaller or everywhere."""
        nbytes = sum((c.nbytes for c in planes), np.zeros_like(raw_nbytes))
        self.store(planes, (nbytes < raw_nbytes) | forced, Layout.BYTES, nbytes)

    def take_pairs(self, pairs: Pairs, where: NDArray[np.bool_]) -> None:
        """Use layout PAIRS in some segments."""
        self.store(pairs.planes, where, Layout.PAIRS, pairs.nbytes)
        np.copyto(self.table.base, pairs.base, where=where)
        np.copyto(self.fill, pairs.fill, where=where)

    def plan(self, dtype: DType, geometry: Geometry, pool: TablePool) -> SegmentPlan:
        """The plan, for its encoder."""
        of_tiles = sorted(self.tile_modes.items())
        modes = [
            m[k]
            for k in range(geometry.n_segments if of_tiles else 0)
            for p, m in of_tiles
            if self.table.prediction[p, k] == PER_TILE
        ]
        scales = np.concatenate(self.scales) if any(s.size for s in self.scales) else None
        return SegmentPlan(
            dtype,
            geometry,
            self.table,
            pool,
            self.fill,
            np.concatenate(modes) if modes else None,
            scales,
        )
