"""Which planes are coded with contexts, and under which tables.
Spec: chapters 9.4 and 14 (informative).

Clusters are found by iteration under code length (as k-means under squared distance: S. Lloyd,
1982; under code length: T. Linder, 2000), tables are added as long as they save more than their own
bytes (minimum description length: J. Rissanen, 1978). All in whole numbers, in a fixed order, ties
to the lowest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wcodec.planner.clusters import Clusters, map_price, table_price
from wcodec.planner.costs import (
    IMPOSSIBLE,
    Choice,
    Chunk,
    Costs,
    Counts,
    quantise,
    stream_nbytes,
    symbol_costs,
)
from wcodec.planner.modes import TileModes
from wcodec.planner.scales import Scales, joint_counts, positions, weights
from wcodec.planner.tables import MAX_RARE, RECENT_TABLES, Tables
from wcodec.reference.planes import Bytes, split
from wcodec.reference.prediction import PER_TILE, residuals
from wcodec.reference.segments import Coder, padded
from wcodec.reference.tables import MAX_CLASSES, N_CONTEXTS, ContextKind, ContextMap
from wcodec.reference.tiles import tiles

LEAST_WORDS: Final = 4096  #: smaller segments have no contexts, unless these are forced
BLOCK: Final = 64  #: segments looked at together
NEW_TABLES: Final = 64  #: most tables that contexts of a block add
ROUNDS: Final = 2  #: of fitting classes to tables, and tables to classes
RECENT_MAPS: Final = 64  #: how far back an encoder looks for a map that fits
FEW_MAPS: Final = 4  #: the same, for segments so small that looking would take longer than all else


@dataclass
class _Found:
    """Context maps for a plane of some segments, and the cost of the symbols."""

    number: Counts
    cost: Costs


class Contexts:
    """Chooses context maps.

    Parameters
    ----------
    tables
        Where tables and maps come from.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables, self.pool, self.options = tables, tables.pool, tables.options
        self.forced = tables.options.coder == "context"

    def _costs(self, joint: Counts, context_map: ContextMap) -> Costs:
        """Of joint counts (n, contexts, 256), under a map's tables."""
        by_class = np.stack([symbol_costs(self.pool[t]) for t in context_map.tables])
        table = by_class[np.frombuffer(context_map.class_of, np.uint8)]
        return np.asarray(joint.reshape(len(joint), -1) @ table.reshape(-1), np.float64)

    def _recent(self, joint: Counts, kind: int) -> _Found:
        """The best of the maps that there are."""
        found = _Found(np.zeros(len(joint), np.int64), np.full(len(joint), IMPOSSIBLE))
        most = RECENT_MAPS if joint.sum() >= len(joint) * LEAST_WORDS else FEW_MAPS
        for i in range(max(0, len(self.pool.maps) - most), len(self.pool.maps)):
            if self.pool.maps[i].kind == kind:
                got = self._costs(joint, self.pool.maps[i])
                found.number = np.where(got < found.cost, i, found.number)
                found.cost = np.minimum(got, found.cost)
        return found

    def _room(self) -> bool:
        return (
            len(self.pool.maps) < self.tables.most - BLOCK
            and len(self.pool) < self.tables.most - NEW_TABLES - MAX_CLASSES
        )

    def shared(self, joint: Counts, kind: ContextKind) -> _Found:
        """For each segment the best of the maps of a kind,
        one new map for all of them among these if it pays.
        """
        found, total = self._recent(joint, kind), joint.sum(axis=0)
        seen = np.flatnonzero(total.sum(axis=1))
        if seen.size == 0 or not self._room():
            return found
        clusters = Clusters(total[seen], [], self.options.prob_bits)
        clusters.grow(MAX_CLASSES)
        used, number = np.unique(clusters.number, return_inverse=True)
        # of contexts that have not occurred
        nearest = np.abs(np.arange(N_CONTEXTS[kind])[:, None] - seen).argmin(axis=1)
        class_of = number.reshape(-1)[nearest].astype(np.uint8).tobytes()
        new = ContextMap(kind, class_of, tuple(len(self.pool) + i for i in range(used.size)))
        self.pool.tables += [clusters.tables[i] for i in used]
        got = self._costs(joint, new)
        price = sum(table_price(clusters.tables[i]) for i in used) + map_price(
            N_CONTEXTS[kind], used.size
        )
        if np.maximum(found.cost - got, 0).sum() > price:
            self.pool.maps.append(new)
            better = got < found.cost
            return _Found(
                np.where(better, len(self.pool.maps) - 1, found.number), np.minimum(got, found.cost)
            )
        del self.pool.tables[-used.size :]
        return found

    def by_scale(self, scales: list[Scales]) -> _Found:
        """For each segment a map of kind SCALE; fits classes to tables,
        and new tables to classes.
        """
        n_tables = len(self.pool)
        found = self._scale_maps(np.stack([s.joint() for s in scales]))
        if not (found.cost < IMPOSSIBLE).all():
            return found
        maps = [self.pool.maps[i] for i in found.number.tolist()]
        for _ in range(ROUNDS):
            joint = np.stack(
                [
                    self._fitted(own, m, cost)
                    for own, m, cost in zip(scales, maps, found.cost.tolist(), strict=True)
                ]
            )
            self._settle(joint, maps, n_tables)
            found.cost = np.array(
                [self._costs(j[None], m)[0] for j, m in zip(joint, maps, strict=True)]
            )
        return found

    def _fitted(self, own: Scales, m: ContextMap, cost: float) -> Counts:
        """Joint counts, after the classes have been fitted to a map's tables if that costs less
        than `cost`.
        """
        before = own.kept()
        own.fit(np.stack([symbol_costs(self.pool[m.tables[c]]) for c in m.class_of]))
        joint = own.joint()
        if self._costs(joint[None], m)[0] < cost:
            return joint
        own.restore(before)
        return own.joint()

    def _settle(self, joint: Counts, maps: list[ContextMap], n_tables: int) -> None:
        """Make each table after the first `n_tables` again from what it codes."""
        total = np.zeros((len(self.pool), 256), np.int64)
        for counts, m in zip(joint, maps, strict=True):
            np.add.at(total, [m.tables[c] for c in m.class_of], counts)
        for t in range(n_tables, len(self.pool)):
            rare = (total[t] == 0) & (self.pool[t].freq > 0)
            if (total[t] > 0).sum() > 1:
                self.pool.tables[t] = quantise(
                    total[t] + (rare & (rare.sum() <= MAX_RARE)), self.options.prob_bits
                )

    def _scale_maps(self, joint: Counts) -> _Found:
        """For each segment a map of kind SCALE, given counts by classes of rows and columns
        (n, 16, 256).
        """
        found = self._recent(joint, ContextKind.SCALE)
        if not self._room():
            return found
        first = max(0, len(self.pool) - RECENT_TABLES)
        clusters = Clusters(
            joint.reshape(-1, 256), self.pool.tables[first:], self.options.prob_bits
        )
        clusters.grow(NEW_TABLES)
        self.pool.tables += clusters.tables[clusters.n_given :]
        for k, (numbers, cost) in enumerate(
            zip(
                clusters.number.reshape(-1, 16),
                clusters.cost.reshape(-1, 16).sum(axis=1),
                strict=True,
            )
        ):
            used, class_of = np.unique(first + numbers, return_inverse=True)
            new = ContextMap(
                ContextKind.SCALE,
                class_of.reshape(-1).astype(np.uint8).tobytes(),
                tuple(used.tolist()),
            )
            if cost + map_price(16, used.size) < found.cost[k]:
                self.pool.maps.append(new)
                rest = self._costs(joint[k:], new)
                better = rest < found.cost[k:]
                found.number[k:][better] = len(self.pool.maps) - 1
                found.cost[k:][better] = rest[better]
        return found

    def improve(
        self, chunk: Chunk, planes: list[Choice], tile_modes: TileModes, where: NDArray[np.bool_]
    ) -> tuple[list[Choice], list[Bytes]]:
        """Choices of byte planes with contexts where they make them smaller, maps aside; and the
        packed classes of each segment.

        Looks at segments `where`.
        """
        out = [c.copy() for c in planes]
        scales = [np.empty(0, np.uint8)] * chunk.size.size
        large = np.flatnonzero(where & ((chunk.size >= LEAST_WORDS) | self.forced))
        words = chunk.backend.to_host(chunk.words)
        for at in range(0, large.size, BLOCK):
            ids = large[at : at + BLOCK]
            cut = [split(words[chunk.geometry.rectangle(k)], chunk.dtype) for k in ids.tolist()]
            for p, choice in enumerate(planes):
                if p < 2 or (choice.coder[ids] == Coder.RANS).any() or self.forced:
                    coded = [
                        _coded(chunk, int(k), b[p], choice, tile_modes.get(p))
                        for k, b in zip(ids, cut, strict=True)
                    ]
                    self._improve_plane(chunk, ids, [b[0] for b in cut], coded, p, out[p], scales)
        return out, scales

    def _improve_plane(
        self,
        chunk: Chunk,
        ids: Counts,
        tops: list[Bytes],
        coded: list[Bytes],
        p: int,
        choice: Choice,
        scales: list[Bytes],
    ) -> None:
        """Contexts of one plane of some segments: by the plane above, by place after transforms,
        else by rows and columns.
        """
        wanted = (choice.coder[ids] != Coder.CONSTANT) & (
            self.forced | (p > 0) | (choice.coder[ids] == Coder.RANS)
        )
        mode = choice.prediction[ids]
        placed = ((mode >= 16) & (mode != PER_TILE)) | (
            (mode == PER_TILE) & (not chunk.geometry.one_tile)
        )
        by_place = np.flatnonzero(wanted & placed & (p == 0))
        by_scale = np.flatnonzero(wanted & ~placed & (p == 0))
        by_plane = np.flatnonzero(wanted & (p > 0))
        g = chunk.geometry
        if by_plane.size:
            joint = np.stack([joint_counts(tops[i], coded[i], 256) for i in by_plane])
            self._take(choice, ids[by_plane], self.shared(joint, ContextKind.PLANE), 0)
        if by_place.size:
            places = [positions(coded[i], g) for i in by_place]
            joint = np.stack(
                [
                    joint_counts(place, coded[i], 64)
                    for i, place in zip(by_place, places, strict=True)
                ]
            )
            self._take(choice, ids[by_place], self.shared(joint, ContextKind.POSITION), 0)
        if by_scale.size:
            count = chunk.joint_histogram
            classes = [Scales(coded[i], weights(chunk.dtype), count) for i in by_scale]
            found = self.by_scale(classes)
            packed = [c.packed() for c in classes]
            took = self._take(
                choice, ids[by_scale], found, padded(np.array([s.size for s in packed]))
            )
            for k, own, mine in zip(ids[by_scale].tolist(), packed, took.tolist(), strict=True):
                scales[k] = own if mine else scales[k]

    def _take(
        self, choice: Choice, ids: Counts, found: _Found, more_nbytes: Counts | int
    ) -> NDArray[np.bool_]:
        """Use maps where they make a plane smaller, with `more_nbytes` beside its stream.
        Returns where.
        """
        nbytes = stream_nbytes(found.cost) + more_nbytes
        took = (found.cost < IMPOSSIBLE) & ((nbytes < choice.nbytes[ids]) | self.forced)
        mine = ids[took]
        choice.coder[mine] = Coder.CONTEXT
        choice.table[mine] = found.number[took]
        choice.nbytes[mine] = nbytes[took]
        return np.asarray(took)

    def price(
        self, planes: list[Choice], where: NDArray[np.bool_], n_tables: int, n_maps: int
    ) -> int:
        """Cost of the maps after the first `n_maps` that some segments use, and of their tables
        after the first `n_tables`.
        """
        numbers = {
            int(i)
            for c in planes
            for i in c.table[where & (c.coder == Coder.CONTEXT)]
            if i >= n_maps
        }
        maps = [self.pool.maps[i] for i in sorted(numbers)]
        own = {t for m in maps for t in m.tables if t >= n_tables}
        return sum(map_price(len(m.class_of), len(m.tables)) for m in maps) + sum(
            table_price(self.pool[t]) for t in sorted(own)
        )


def _coded(
    chunk: Chunk, k: int, plane: Bytes, choice: Choice, tile_modes: list[NDArray[np.uint8]] | None
) -> Bytes:
    """What is coded of a plane of segment `k`: its residuals, in raster order."""
    mode = int(choice.prediction[k])
    if mode == 0:
        return plane
    modes = (
        tile_modes[k] if mode == PER_TILE and tile_modes is not None else np.array([mode], np.uint8)
    )
    out, g, (height, width) = np.empty_like(plane), chunk.geometry, plane.shape
    for i, at in enumerate(tiles(height, width, g.tile_rows, g.tile_cols)):
        out[at] = residuals(plane[at], int(modes[i % modes.size]))
    return out
