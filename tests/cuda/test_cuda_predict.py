"""Kernels of prediction and its inverse, on the CPU, against the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from cuda_cases import (
    EACH_RUNTIME,
    Array,
    Memory,
    address,
    check_sanitized,
    launch,
    pad,
    planes_of,
    segments_of,
    tensors_of,
)
from cuda_emulator import CANARY, EmulatedRuntime
from plans import random_geometry
from sampling import sampled

from wcodec.reference.planes import BY_NAME
from wcodec.reference.prediction import N_MODES, PER_TILE, Mode, predict, residuals
from wcodec.reference.tiles import Geometry, tiles

BAD_TILE_MODE = 2  # as in common.cuh
FLOAT32 = BY_NAME["float32"]
MODES = [Mode.LEFT, Mode.TOP, Mode.AVG, Mode.PLANAR]


@pytest.fixture(params=EACH_RUNTIME)
def runtime(request: pytest.FixtureRequest) -> EmulatedRuntime:
    return EmulatedRuntime(**request.param)


@dataclass
class Case:
    """Planes of four-byte words in element order, and how each is predicted.

    Attributes
    ----------
    prediction
        Of each plane of each segment, shape (n, n_planes).
    modes
        Of each plane of each segment, the modes of all tiles.
    symbols, residuals
        Of each plane of each segment, its bytes.
    """

    geometry: Geometry
    prediction: Array
    modes: dict[tuple[int, int], Array]
    symbols: dict[tuple[int, int], Array]
    residuals: dict[tuple[int, int], Array]


def make_case(
    rng: np.random.Generator,
    geometry: Geometry,
    choices: list[int],
    modes: Sequence[int] = range(N_MODES),
    values: tuple[int, ...] = (),
) -> Case:
    """Random symbols, planes' modes out of `choices` and tiles' out of `modes`,
    and what the reference makes of them.

    Symbols are out of `values`, if there are any.
    """
    n, counts = geometry.n_segments, geometry.tile_counts()
    case = Case(geometry, rng.choice(choices, (n, FLOAT32.n_planes)), {}, {}, {})
    for k in range(n):
        rows, cols = geometry.rectangle(k)
        shape = rows.stop - rows.start, cols.stop - cols.start
        for p in range(FLOAT32.n_planes):
            own = case.prediction[k, p]
            case.modes[k, p] = (
                rng.choice(modes, counts[k]) if own == PER_TILE else np.full(counts[k], own)
            ).astype(np.uint8)
            sizes = [(r.stop - r.start, c.stop - c.start) for r, c in tile_slices(geometry, shape)]
            of_tiles = [
                rng.choice(values, s).astype(np.uint8)
                if values
                else rng.integers(0, 256, s, np.uint8)
                for s in sizes
            ]
            case.symbols[k, p] = np.concatenate([t.reshape(-1) for t in of_tiles])
            coded = [
                residuals(t, int(m)).reshape(-1)
                for t, m in zip(of_tiles, case.modes[k, p], strict=True)
            ]
            case.residuals[k, p] = np.concatenate(coded)
    return case


def tile_slices(geometry: Geometry, shape: tuple[int, int]) -> list[tuple[slice, slice]]:
    return list(tiles(*shape, geometry.tile_rows, geometry.tile_cols))


class Structures:
    """What the kernels read, and the planes, each in a buffer of whole groups."""

    def __init__(
        self, case: Case, symbols: dict[tuple[int, int], Array], at_end: bool = True
    ) -> None:
        self.case, self.memory = case, Memory(at_end)
        n_planes = FLOAT32.n_planes
        self.tensors = tensors_of(FLOAT32, case.geometry)
        self.planes = planes_of(FLOAT32, case.geometry)
        self.segments = segments_of(FLOAT32, case.geometry, 0)
        self.planes["prediction"] = case.prediction
        self.rooms = {}
        for k, segment in enumerate(self.segments):
            per_tile = [
                case.modes[k, p] for p in range(n_planes) if case.prediction[k, p] == PER_TILE
            ]
            segment["modes"] = address(self.memory.put(np.concatenate(per_tile))) if per_tile else 0
            for p in range(n_planes):
                data = symbols[k, p]
                room = self.rooms[k, p] = self.memory.room(pad(data.size, 128))
                room[: data.size] = data
                self.planes[k, p]["symbols"] = address(room)
                self.planes[k, p]["n_symbols"] = data.size

    @property
    def all(self) -> tuple[Array, Array, Array]:
        return self.tensors, self.segments, self.planes

    def check(
        self, rooms: dict[tuple[int, int], Array], expected: dict[tuple[int, int], Array]
    ) -> None:
        """Planes are as they should be, and what is after their symbols as it was."""
        self.memory.check()
        for key, want in expected.items():
            np.testing.assert_array_equal(rooms[key][: want.size], want, f"segment and plane {key}")
            assert (rooms[key][want.size :] == CANARY).all()


def chosen_planes(rng: np.random.Generator, case: Case) -> Array:
    """Some planes with a prediction, in any order."""
    ids = np.flatnonzero(case.prediction.reshape(-1))
    return rng.permutation(ids)[: rng.integers(0, ids.size + 1)]


def check_inverse(runtime: EmulatedRuntime, case: Case, chosen: Array, at_end: bool = True) -> None:
    s = Structures(case, case.residuals, at_end)
    status = s.memory.room(4 * s.segments.size).view(np.uint32)
    status[:] = 4
    if chosen.size:
        launch(runtime, "inverse_prediction", s.all, chosen, status)
    assert (status == 4).all()
    keys = {(int(i) // FLOAT32.n_planes, int(i) % FLOAT32.n_planes) for i in chosen}
    s.check(
        s.rooms, {key: case.symbols[key] if key in keys else case.residuals[key] for key in s.rooms}
    )


def check_forward(runtime: EmulatedRuntime, case: Case, chosen: Array, at_end: bool = True) -> None:
    s, none = Structures(case, case.symbols, at_end), np.empty(0, np.uint8)
    rooms = {key: s.memory.room(room.size) for key, room in s.rooms.items()}
    for (k, p), room in rooms.items():
        s.planes[k, p]["residuals"] = address(room)
    if chosen.size:
        launch(runtime, "forward_prediction", s.all, chosen)
    keys = {(int(i) // FLOAT32.n_planes, int(i) % FLOAT32.n_planes) for i in chosen}
    s.check(rooms, {key: case.residuals[key] if key in keys else none for key in rooms})
    s.check(s.rooms, case.symbols)


def check_both(runtime: EmulatedRuntime, case: Case) -> None:
    everything = np.flatnonzero(case.prediction.reshape(-1))
    check_inverse(runtime, case, everything)
    check_forward(runtime, case, everything)


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("seed", sampled(range(12), always=7))
def test_random(runtime: EmulatedRuntime, seed: int, at_end: bool) -> None:
    """Any geometry, any modes, any planes."""
    rng = np.random.default_rng(seed)
    for _ in range(3):
        case = make_case(rng, random_geometry(rng), [0, 1, 2, 3, 4, PER_TILE, PER_TILE])
        check_inverse(runtime, case, chosen_planes(rng, case), at_end)
        check_forward(runtime, case, chosen_planes(rng, case), at_end)


@pytest.mark.parametrize("mode", MODES)
def test_tiles(runtime: EmulatedRuntime, mode: Mode) -> None:
    """Many tiles, which warps take, with ragged ones at both edges: of the usual sizes, flat,
    narrow, and of an odd width.
    """
    rng = np.random.default_rng(mode)
    for tile in (
        (16, 16),
        (16, 64),
        (64, 16),
        (17, 19),
        (16, 33),
        (40, 18),
        (16, 2),
        (33, 1),
        (1, 16),
        (2, 17),
        (3, 600),
    ):
        rows, cols = 3 * tile[0] + min(5, tile[0]), 4 * tile[1] + min(7, tile[1])
        segment = tuple(5 * t if t >= 16 else t for t in tile)
        rows, cols = min(rows, segment[0]), min(cols, segment[1])
        check_both(runtime, make_case(rng, Geometry(rows, cols, *segment, *tile), [mode]))


SHAPES = [
    (1, 1), (1, 2), (2, 1), (2, 2), (1, 15), (1, 16), (1, 17), (1, 511), (1, 512), (1, 513),
    (1, 5000), (1, 9013), (5000, 1), (9013, 1), (2, 5000), (7, 1024), (7, 1031), (8, 1024),
    (9, 520), (5000, 2), (2500, 3), (1200, 4), (1000, 7), (300, 16), (300, 17), (31, 48), (32, 48),
    (33, 48), (64, 256), (65, 257), (70, 130), (100, 33), (130, 100), (5, 1030), (4, 1100),
    (12, 260), (3, 2052),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "cols"), sampled(SHAPES, always=19))
@pytest.mark.parametrize("mode", MODES)
def test_large_tiles(mode: Mode, rows: int, cols: int) -> None:
    """A segment that is one tile, which the block shares."""
    rng, shape = np.random.default_rng([mode, rows, cols]), (rows, cols)
    for order, seed in (("forward", 0), ("shuffled", 3)):
        check_both(
            EmulatedRuntime(order=order, seed=seed),
            make_case(rng, Geometry(*shape, *shape, *shape), [mode]),
        )


@pytest.mark.parametrize("mode", MODES)
def test_extremes(runtime: EmulatedRuntime, mode: Mode) -> None:
    """Sums of the largest bytes, which no register may overflow into a neighbour."""
    for shape in ((1, 40000), (200, 200), (9, 1024), (2000, 8)):
        geometry = Geometry(*shape, *shape, *shape)
        case = make_case(np.random.default_rng(0), geometry, [mode])
        residuals = np.full(shape, 255, np.uint8)
        s = Structures(case, {key: residuals.reshape(-1) for key in case.symbols})
        status = s.memory.room(4).view(np.uint32)
        launch(runtime, "inverse_prediction", s.all, np.array([0]), status)
        symbols = s.rooms[0, 0][: residuals.size].reshape(shape)
        np.testing.assert_array_equal(predict(symbols, mode), residuals)


def test_bad_modes(runtime: EmulatedRuntime) -> None:
    """The status says so; tiles with bad modes are as they were, all others are right."""
    rng = np.random.default_rng(1)
    for geometry in (
        Geometry(70, 75, 64, 64, 16, 16),
        Geometry(70, 75, 64, 64, 32, 64),
        Geometry(3, 40, 1, 40, 1, 40),
    ):
        case = make_case(rng, geometry, [PER_TILE, PER_TILE, Mode.TOP])
        expected = {key: symbols.copy() for key, symbols in case.symbols.items()}
        bad = set()
        for (k, p), modes in case.modes.items():
            if case.prediction[k, p] != PER_TILE or rng.random() < 0.3:
                continue
            ends = np.cumsum(
                [
                    (r.stop - r.start) * (c.stop - c.start)
                    for r, c in tile_slices(geometry, shape_of(geometry, k))
                ]
            )
            for i in rng.permutation(modes.size)[: rng.integers(1, 3)]:
                modes[i] = rng.choice([5, 6, 128, 254, 255])
                tile = slice(int(ends[i - 1]) if i else 0, int(ends[i]))
                expected[k, p][tile] = case.residuals[k, p][tile]
                bad.add(k)
        s = Structures(case, case.residuals)
        status = s.memory.room(4 * s.segments.size).view(np.uint32)
        status[:] = 1
        launch(
            runtime,
            "inverse_prediction",
            s.all,
            np.flatnonzero(case.prediction.reshape(-1)),
            status,
        )
        assert status.tolist() == [
            1 | BAD_TILE_MODE * (k in bad) for k in range(geometry.n_segments)
        ]
        s.check(s.rooms, expected)


def shape_of(geometry: Geometry, k: int) -> tuple[int, int]:
    rows, cols = geometry.rectangle(k)
    return rows.stop - rows.start, cols.stop - cols.start


# ---- sanitizers ----------------------------------------------------------------------------------
# the sample of the conformance suite runs these kernels with sanitizers too
@pytest.mark.exhaustive
def test_sanitizers_find_nothing() -> None:
    check_sanitized(__file__)


def main() -> None:
    """The tests above in a process with sanitizers on."""
    runtime = EmulatedRuntime.sanitized()
    for seed in range(12):
        test_random(runtime, seed, seed % 2 == 0)
    for mode in MODES:
        test_tiles(runtime, mode)
        test_extremes(runtime, mode)
    test_bad_modes(runtime)
    print("OK")


if __name__ == "__main__":
    main()
