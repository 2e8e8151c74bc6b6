"""Kernels of transforms and their inverses, on the CPU, against the reference."""

from __future__ import annotations

import re

import numpy as np
import pytest
from cuda_cases import BLOCK, EACH_RUNTIME, Array, address, check_sanitized, launch
from cuda_emulator import EmulatedRuntime
from plans import random_geometry
from test_cuda_predict import FLOAT32, Case, Structures, make_case, tile_slices

from wcodec.backends.cuda.runtime import KERNELS
from wcodec.reference.encoding import histogram
from wcodec.reference.planes import BY_NAME
from wcodec.reference.prediction import IS_MODE, MODES, PER_TILE
from wcodec.reference.tiles import Geometry
from wcodec.reference.transforms import ORDER, ROWS, Transform

BAD_TILE_MODE = 2  # as in common.cuh
WITH_TRANSFORM = [m for m in MODES if m >> 4]


@pytest.fixture(params=EACH_RUNTIME)
def runtime(request: pytest.FixtureRequest) -> EmulatedRuntime:
    return EmulatedRuntime(**request.param)


@pytest.mark.parametrize("transform", [Transform.DCT, Transform.ADST], ids=lambda t: t.name)
def test_steps_are_those_of_the_reference(transform: Transform) -> None:
    text = (KERNELS / "transform.cuh").read_text()
    found = re.search(rf"struct Steps<TRANSFORM_{transform.name}> {{(.*?)\n}};", text, re.DOTALL)
    assert found
    rows = [
        tuple(map(int, row))
        for row in re.findall(r"{(\d), (\d), (-?\d+), (-?\d+), (-?\d+)}", found[1])
    ]
    assert tuple(rows) == ROWS[transform]
    heads = re.search(r"COUNT = (\d+), ORDER = 0x(\w{8});", found[1])
    assert heads
    assert int(heads[1]) == len(rows)
    assert tuple(int(digit) for digit in reversed(heads[2])) == ORDER[transform]


def check_both(
    runtime: EmulatedRuntime, case: Case, chosen: Array | None = None, at_end: bool = True
) -> None:
    """There and back, on some planes; nothing else is touched."""
    chosen = np.flatnonzero(case.prediction.reshape(-1)) if chosen is None else chosen
    if chosen.size == 0:
        return
    keys = {(int(i) // FLOAT32.n_planes, int(i) % FLOAT32.n_planes) for i in chosen}
    s = Structures(case, case.residuals, at_end)
    status = s.memory.room(4 * s.segments.size).view(np.uint32)
    status[:] = 4
    launch(runtime, "inverse_transform", s.all, chosen)
    launch(runtime, "inverse_prediction", s.all, chosen, status)
    assert (status == 4).all()
    s.check(
        s.rooms, {key: case.symbols[key] if key in keys else case.residuals[key] for key in s.rooms}
    )
    s, none = Structures(case, case.symbols, at_end), np.empty(0, np.uint8)
    rooms = {key: s.memory.room(room.size) for key, room in s.rooms.items()}
    for (k, p), room in rooms.items():
        s.planes[k, p]["residuals"] = address(room)
    launch(runtime, "forward_prediction", s.all, chosen)
    launch(runtime, "forward_transform", s.all, chosen)
    s.check(rooms, {key: case.residuals[key] if key in keys else none for key in rooms})
    s.check(s.rooms, case.symbols)


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_random(runtime: EmulatedRuntime, seed: int, at_end: bool) -> None:
    """Any geometry, any modes, any planes."""
    rng = np.random.default_rng(seed)
    for _ in range(3):
        case = make_case(rng, random_geometry(rng), [0, 3, 16, 18, 36, PER_TILE, PER_TILE], MODES)
        ids = np.flatnonzero(case.prediction.reshape(-1))
        check_both(runtime, case, rng.permutation(ids)[: rng.integers(0, ids.size + 1)], at_end)


@pytest.mark.parametrize("mode", WITH_TRANSFORM)
def test_tiles(mode: int) -> None:
    """Tiles that warps take and tiles that the block takes, narrower and flatter than a group, with
    left-overs at both edges.
    """
    rng, runtime = np.random.default_rng(mode), EmulatedRuntime(order="shuffled", seed=mode)
    for rows, cols, *rest in (
        (60, 70, 48, 64, 16, 16),
        (35, 57, 34, 57, 17, 19),
        (64, 40, 64, 40, 64, 40),
        (1, 300, 1, 300, 1, 300),
        (300, 1, 300, 1, 300, 1),
        (7, 90, 7, 90, 7, 90),
        (90, 7, 90, 7, 90, 7),
        (8, 8, 8, 8, 8, 8),
        (9, 15, 9, 15, 9, 15),
    ):
        check_both(runtime, make_case(rng, Geometry(rows, cols, *rest), [mode]))


@pytest.mark.parametrize("mode", [16, 32])
def test_extremes(runtime: EmulatedRuntime, mode: int) -> None:
    """Values at both ends, which wrap at many a step."""
    geometry = Geometry(40, 48, 40, 48, 40, 48)
    check_both(
        runtime, make_case(np.random.default_rng(mode), geometry, [mode], values=(0, 255, 127, 128))
    )


@pytest.mark.parametrize(
    "geometry",
    [Geometry(130, 171, 64, 64, 16, 16), Geometry(40, 40, 40, 40, 40, 40)],
    ids=["many", "one"],
)
def test_bytes_that_are_no_modes(runtime: EmulatedRuntime, geometry: Geometry) -> None:
    """Each of them is refused where there are tiles enough, and no other;
    its tile stays as it was.
    """
    rng = np.random.default_rng(2)
    case = make_case(rng, geometry, [PER_TILE], MODES)
    wrong = iter(rng.permutation(np.flatnonzero(~IS_MODE)).tolist())
    expected, bad = {key: symbols.copy() for key, symbols in case.symbols.items()}, set()
    for (k, p), modes in case.modes.items():
        rows, cols = geometry.rectangle(k)
        at = 0
        for i, (r, c) in enumerate(
            tile_slices(geometry, (rows.stop - rows.start, cols.stop - cols.start))
        ):
            end = at + (r.stop - r.start) * (c.stop - c.start)
            if k != 4 and rng.random() < 0.9 and (mode := next(wrong, None)) is not None:
                modes[i] = mode
                expected[k, p][at:end] = case.residuals[k, p][at:end]
                bad.add(k)
            at = end
    assert geometry.one_tile or next(wrong, None) is None
    s = Structures(case, case.residuals)
    status = s.memory.room(4 * s.segments.size).view(np.uint32)
    status[:] = 1
    everything = np.arange(s.planes.size)
    launch(runtime, "inverse_transform", s.all, everything)
    launch(runtime, "inverse_prediction", s.all, everything, status)
    assert status.tolist() == [1 | BAD_TILE_MODE * (k in bad) for k in range(geometry.n_segments)]
    s.check(s.rooms, expected)


# ---- histograms ----------------------------------------------------------------------------------
def test_counts(runtime: EmulatedRuntime) -> None:
    rng = np.random.default_rng(3)
    case = make_case(rng, Geometry(70, 50, 33, 33, 33, 33), [16])
    s = Structures(case, case.residuals)
    s.planes["residuals"] = s.planes["symbols"]
    chosen = rng.permutation(s.planes.size)[:9]
    counts = s.memory.room(4 * 256 * chosen.size)
    runtime.launch(
        "count_residuals",
        chosen.size,
        BLOCK,
        s.memory.put(s.planes),
        s.memory.put(chosen.astype(np.uint32)),
        counts,
    )
    expected = [
        np.bincount(case.residuals[i // FLOAT32.n_planes, i % FLOAT32.n_planes], minlength=256)
        for i in chosen.tolist()
    ]
    np.testing.assert_array_equal(counts.view(np.uint32).reshape(-1, 256), expected)
    s.memory.check()


@pytest.mark.parametrize("name", ["uint8", "int16", "float32", "float64"])
def test_histograms(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """By the backend: all planes or some, of all segments or some,
    in one portion of scratch or several.
    """
    from cuda_emulator.backend import EmulatedCuda

    from wcodec.backends.cuda import encoding

    backend, rng, dtype = EmulatedCuda(), np.random.default_rng(4), BY_NAME[name]
    for limit, mode in zip((1 << 20, 5000, 1), (16, 33, 36), strict=True):
        monkeypatch.setattr(encoding, "SCRATCH_NBYTES", limit)
        geometry = random_geometry(rng)
        words = rng.integers(
            0, 256, (geometry.rows, geometry.cols * dtype.word_nbytes), np.uint8
        ).view(dtype.word_type)
        some = np.flatnonzero(rng.random(geometry.n_segments) < 0.6)
        for segments in (None, some, some[:0]):
            for planes in (None, (dtype.word_nbytes - 1,)):
                call = {"segments": segments, "planes": planes, "mode": mode}
                expected = histogram(words, geometry, dtype, **call)
                np.testing.assert_array_equal(
                    backend.histogram(words, geometry, dtype, **call), expected
                )


# ---- sanitizers ----------------------------------------------------------------------------------
# the sample of the conformance suite runs these kernels with sanitizers too
@pytest.mark.exhaustive
def test_sanitizers_find_nothing() -> None:
    check_sanitized(__file__)


def main() -> None:
    """The tests above in a process with sanitizers on."""
    runtime = EmulatedRuntime.sanitized()
    for seed in range(4):
        test_random(runtime, seed, seed % 2 == 0)
    for mode in (16, 32):
        test_extremes(runtime, mode)
    test_bytes_that_are_no_modes(runtime, Geometry(130, 171, 64, 64, 16, 16))
    test_counts(runtime)
    print("OK")


if __name__ == "__main__":
    main()
