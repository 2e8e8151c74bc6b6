"""Which prediction and transform planes, segments and tiles get. Spec: chapter 14 (informative)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.planner.costs import BYTE, Choice, Chunk, Counts, Sample, ideal_cost
from wcodec.planner.tables import Tables
from wcodec.reference.prediction import MODES, N_MODES, PER_TILE
from wcodec.reference.segments import Coder, padded
from wcodec.reference.tiles import Spans

#: of planes, for each segment the modes of its tiles
TileModes = dict[int, list[NDArray[np.uint8]]]

TRIED: Final = 64  #: parts of segments that predictions are tried on, about
LEAST_TRIED: Final = 8  #: but no more than a quarter of all, if that is not below this
LARGEST: Final = 256  #: of many tensors of integers, those that predictions are tried on
LEAST_SAVED: Final = 32 * BYTE  #: of one of many tensors: less may be by chance
GLANCED: Final = 4  #: of these, parts that a transform is tried on before any other
PREDICTED: Final = range(1, N_MODES)  #: modes without a transform
TRANSFORMED: Final = tuple(m for m in MODES if m >= 16)
MAX_TRANSFORMED: Final = 3  #: modes with a transform that are tried on all words


class Modes:
    """Looks for modes that make byte planes smaller.

    Parameters
    ----------
    tables
        Where the tables come from.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables, self.options = tables, tables.options
        exact = self.options.preset == "max"
        # hundredths of its bytes that a plane of the sample may keep, or the mode is not looked
        # into
        self.look = 99 if exact else 98
        # 1024ths of its bytes that a plane may keep, or it is stored without the mode
        self.least = 1024 if exact else 1003

    def winners(self, chunk: Chunk, sample: Sample) -> list[list[int]]:
        """For each plane modes that save it at least 2 % in a part of the sample, 1 % in preset
        ``max`` or of few segments; of many tensors in any of them. A closer look may pay.
        """
        allowed, n = self.options.modes, chunk.dtype.word_nbytes
        if (
            self.options.preset == "fast"
            or self.options.coder == "raw"
            or (allowed is not None and len(allowed) == 1)
        ):
            return [[] for _ in range(n)]
        if self.options.forces_mode:
            return [list(allowed or ()) for _ in range(n)]
        if isinstance(chunk.geometry, Spans):
            return self._of_tensors(chunk, sample)
        n_tried = min(TRIED, max(LEAST_TRIED, sample.ids.size // 4))
        some = np.arange(0, sample.ids.size, max(1, sample.ids.size // n_tried))
        if sample.predicted is not None:
            some = np.arange(sample.ids.size)
        look = self.look if sample.predicted is None else 99  # a first row is not predicted
        before = self._before(sample, some)
        costs = self._costs(sample, some, PREDICTED)
        won = self._won(before, costs, PREDICTED, look)
        if allowed is None and (
            any(won) or (chunk.dtype.numpy.kind in "iu" and self._glance(sample, some[:GLANCED]))
        ):
            best = np.minimum(before, costs.min(axis=0))
            for mine, more in zip(
                won,
                self._won(best, self._costs(sample, some, TRANSFORMED), TRANSFORMED, look),
                strict=True,
            ):
                mine += more[:MAX_TRANSFORMED]
        winners: list[list[int]] = [[] for _ in range(n)]
        for p, modes in zip(sample.planes, won, strict=True):
            winners[p] = sorted(modes)
        return winners

    def _of_tensors(self, chunk: Chunk, sample: Sample) -> list[list[int]]:
        """`winners` of many tensors, tried on the largest of them."""
        tried = LARGEST if chunk.dtype.numpy.kind in "iu" else TRIED
        ids = np.sort(np.argsort(chunk.size, kind="stable")[-tried:])
        best = np.minimum(ideal_cost(sample.counts[ids]), chunk.size[ids, None] * BYTE)
        won: list[list[int]] = [[] for _ in sample.planes]
        for modes in (PREDICTED, TRANSFORMED):
            if modes is TRANSFORMED:
                pay_perhaps = any(won) or chunk.dtype.numpy.kind in "iu"
                if self.options.modes is not None or not pay_perhaps:
                    break
                ids, best = ids[-TRIED:], best[-TRIED:]
            after = ideal_cost(chunk.histograms(modes, segments=ids, planes=sample.planes))
            saved = best - after
            pays = (after * 100 < best * self.look) & (saved >= LEAST_SAVED)
            total = np.where(pays, saved, 0).sum(axis=1)
            for p, mine in enumerate(won):
                order = np.argsort(-total[:, p], kind="stable")[:MAX_TRANSFORMED]
                mine += [modes[m] for m in order.tolist() if total[m, p] > 0]
            best = np.minimum(best, after.min(axis=0))
        return [sorted(mine) for mine in won]

    def _glance(self, sample: Sample, some: Counts) -> bool:
        """Whether a transform saves enough in a few parts; floats are not looked at, for an
        exponent that is smooth is predicted well.
        """
        first = TRANSFORMED[:1]
        costs = self._costs(sample, some, first)
        return any(self._won(self._before(sample, some), costs, first, self.look))

    def _before(self, sample: Sample, some: Counts) -> Counts:
        """What each plane of some parts costs without a mode."""
        whole = ideal_cost(sample.counts[some][:, sample.planes].sum(axis=0))
        return np.minimum(whole, int(sample.part.size[sample.ids[some]].sum()) * BYTE)

    def _costs(self, sample: Sample, some: Counts, modes: Sequence[int]) -> Counts:
        """What each plane of some parts costs in each mode: of shape (modes, planes)."""
        if sample.predicted is not None and modes is PREDICTED:
            return sample.predicted
        ids = sample.ids[some]
        counts = sample.part.histograms(modes, segments=ids, planes=sample.planes)
        return ideal_cost(counts.sum(axis=1))

    @staticmethod
    def _won(before: Counts, after: Counts, modes: Sequence[int], look: int) -> list[list[int]]:
        """Modes with costs `after`, of shape (modes, planes), below `look` hundredths of `before`,
        the best first.
        """
        order, of = np.argsort(after, axis=0, kind="stable"), np.array(modes)
        return [
            of[o[a[o] * 100 < b * look]].tolist()
            for o, a, b in zip(order.T, after.T, before, strict=True)
        ]

    def predict(
        self, chunk: Chunk, plain: list[Choice], winners: list[list[int]], tile_modes: TileModes
    ) -> list[Choice]:
        """Choices of byte planes with modes where they make them smaller;
        fills `tile_modes` where tiles differ.
        """
        size, allowed = chunk.size, self.options.modes
        if allowed == (0,) or (not any(winners) and not self.options.forces_mode):
            return plain
        if allowed is not None and len(allowed) == 1:
            predicted = chunk.histogram(mode=allowed[0])
            return [
                self.tables.choose(predicted[:, p], size, allowed[0])
                for p in range(chunk.dtype.word_nbytes)
            ]
        if not chunk.geometry.one_tile:
            return self._predict_tiles(chunk, plain, winners, tile_modes)
        out = [c.copy() for c in plain]
        tried = sorted(set().union(*winners))
        by_mode = dict(zip(tried, chunk.histograms(tried) if tried else (), strict=True))
        for p, modes in enumerate(winners):
            if not modes:
                continue
            costs = np.stack([ideal_cost(by_mode[m][:, p]) for m in modes])
            best = np.argmin(costs, axis=0)
            for i, mode in enumerate(modes):
                mine = best == i
                if mine.any():
                    chosen = self.tables.choose(by_mode[mode][mine, p], size[mine], mode)
                    choice = _scatter(chosen, mine)
                    pays = choice.nbytes * 1024 < out[p].nbytes * self.least
                    out[p].take(choice, mine & (self.options.forces_mode | pays))
        return out

    def _predict_tiles(
        self, chunk: Chunk, plain: list[Choice], winners: list[list[int]], tile_modes: TileModes
    ) -> list[Choice]:
        """As `predict`, with a mode for each tile:
        the one of the least entropy, NONE unless another saves 2 %.
        """
        out, geometry, forced = list(plain), chunk.geometry, self.options.forces_mode
        counts_of: dict[int, list[Counts]] = {p: [] for p, w in enumerate(winners) if w}
        # a row of segments at a time: a tile's histograms are larger than the tile
        for i in range(geometry.grid[0]):
            row, _ = geometry.select(
                np.array([i], np.int64), np.arange(geometry.grid[1], dtype=np.int64)
            )
            part = chunk.words[i * geometry.segment_rows : i * geometry.segment_rows + row.rows]
            as_tiles = replace(row, segment_rows=row.tile_rows, segment_cols=row.tile_cols)
            modes = sorted(set().union(*winners))
            by_mode = {
                m: chunk.backend.histogram(part, as_tiles, chunk.dtype, mode=m)
                for m in {*modes, *([] if forced else [0])}
            }
            owner = np.arange(as_tiles.grid[1]) // (geometry.segment_cols // geometry.tile_cols)
            owner = np.broadcast_to(owner, as_tiles.grid).reshape(-1)
            for p in counts_of:
                mine = [*([] if forced else [0]), *winners[p]]
                costs = np.stack([ideal_cost(by_mode[m][:, p]) for m in mine])
                if not forced:
                    costs[0] -= costs[0] // 50
                best = np.argmin(costs, axis=0)
                chosen = np.stack([by_mode[m][:, p] for m in mine])[best, np.arange(best.size)]
                for j in range(geometry.grid[1]):
                    counts_of[p].append(chosen[owner == j].sum(axis=0))
                    tile_modes.setdefault(p, []).append(np.array(mine, np.uint8)[best[owner == j]])
        for p, counts in counts_of.items():
            choice = self.tables.choose(np.stack(counts), chunk.size, PER_TILE)
            for k, modes_of in enumerate(tile_modes[p]):
                if choice.coder[k] == Coder.RANS and (modes_of == modes_of[0]).all():
                    choice.prediction[k] = modes_of[0]
            choice.nbytes += np.where(
                choice.prediction == PER_TILE, padded(np.array([m.size for m in tile_modes[p]])), 0
            )
            out[p] = plain[p].copy()
            out[p].take(choice, forced | (choice.nbytes < plain[p].nbytes))
        return out


def _scatter(choice: Choice, where: NDArray[np.bool_]) -> Choice:
    """A choice of some segments as one of all; the others hold zeros."""

    def spread(values: NDArray[Any]) -> NDArray[Any]:
        out = np.zeros(where.size, values.dtype)
        out[where] = values
        return out

    return Choice(*(spread(getattr(choice, f.name)) for f in fields(Choice)))
