"""The emulator that runs CUDA kernels: what it computes,
and that it finds what is wrong with a kernel.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulator import (
    CANARY,
    ORDERS,
    EmulatedRuntime,
    EmulatorError,
    build,
    planted,
    run_sanitized,
)
from numpy.typing import NDArray
from paths import PYTHONPATH, TESTS
from sampling import sampled

from wcodec.backends.cuda import layout

PROBE = TESTS / "cuda_emulator" / "probe.cu"
KERNELS = ("collectives", "integers", "atomics", "vectors", "indices", "nothing")

U32s = NDArray[np.uint32]


def probe(**options: Any) -> EmulatedRuntime:
    """A runtime with the kernels of probe.cu."""
    return EmulatedRuntime(extra={"probe": (PROBE, KERNELS)}, **options)


def random_words(n: int, seed: int = 1) -> U32s:
    """Words some of which are small, or have few bits."""
    words = np.random.default_rng(seed).integers(0, 1 << 32, n, dtype=np.uint32)
    words[: n // 4] >>= np.arange(n // 4, dtype=np.uint32) % 32
    words[n // 4 : n // 4 + 2] = 0, 0xFFFFFFFF
    return words


OPTIONS = [{"order": order, "seed": seed} for order, seed in ORDERS] + [
    {"order": "shuffled", "seed": 3, "races": True}
]


@pytest.fixture(
    params=sampled(OPTIONS, always=3), ids=lambda options: "-".join(map(str, options.values()))
)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Every order, and one with each access checked."""
    return dict(request.param)


# ---- what it computes ----------------------------------------------------------------------------
def expected_collectives(x: U32s, block: int) -> U32s:
    """Results of all collectives of probe.cu, a row each."""
    warps, lanes = x.reshape(-1, 32), np.arange(32)

    def each(of_warps: Any) -> U32s:
        return np.repeat(np.asarray(of_warps, np.uint32), 32)

    def lane(of: Any) -> U32s:
        return np.take_along_axis(
            warps, np.broadcast_to(of, warps.shape).astype(np.int64), 1
        ).ravel()

    return np.stack([
        each([sum(int(v & 1) << k for k, v in enumerate(warp)) for warp in warps]),
        each((warps % 64 == 0).any(1)),
        each((warps % 64 != 0).all(1)),
        lane(warps & 31),
        lane(np.where(lanes >= 3, lanes - 3, lanes)),
        lane(np.where(lanes <= 26, lanes + 5, lanes)),
        lane(lanes ^ 6),
        lane(31 - lanes),
        np.tile(31 - lanes, len(warps)).astype(np.uint32),
        each(warps.sum(1, dtype=np.uint32)),
        x.reshape(-1, block)[:, ::-1].ravel(),
        ~lane(31 - lanes),
    ])  # fmt: skip


@pytest.mark.parametrize(("grid", "block"), [(1, 32), (7, 96), (5, 1024)])
def test_collectives(options: dict[str, Any], grid: int, block: int) -> None:
    rt, x = probe(**options), random_words(grid * block)
    rows = expected_collectives(x, block)
    out = rt.empty(rows.nbytes)
    rt.launch("collectives", grid, block, rt.upload(x), out, np.uint32(x.size))
    np.testing.assert_array_equal(rt.download(out).view(np.uint32).reshape(rows.shape), rows)


def test_fibers_of_other_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "COMMON", [*build.COMMON, "-DEMULATOR_UCONTEXT"])
    test_collectives({"order": "shuffled"}, 7, 96)
    with pytest.raises(EmulatorError, match="divergent collective"):
        planted.run("divergent_ballot", True)


def integer_functions(x: int, y: int) -> list[int]:
    """Results of the integer functions of probe.cu."""
    signed = [v - (v >> 31 << 32) for v in (x, y)]
    wide = (x << 32 | y) * (y << 32 | x) >> 64
    by_nibble = []
    for i in range(4):
        pick = y >> 4 * i & 15
        byte = (y << 32 | x) >> 8 * (pick & 7) & 255
        by_nibble.append((255 if byte & 128 else 0) if pick & 8 else byte)
    shift = y & 31
    return [
        x.bit_count(), x.bit_count() + y.bit_count(), 32 - x.bit_length(), (x & -x).bit_length(),
        int(f"{x:032b}"[::-1], 2), int.from_bytes(bytes(by_nibble), "little"),
        ((y << 32 | x) << shift >> 32) & 0xFFFFFFFF, (y << 32 | x) >> shift & 0xFFFFFFFF,
        x * y >> 32, wide & 0xFFFFFFFF, wide >> 32, 0, min(x, y), max(x, y),
        min(signed) & 0xFFFFFFFF, max(signed) & 0xFFFFFFFF,
    ]  # fmt: skip


def test_integer_functions() -> None:
    rt, a, b = probe(), random_words(1000, 1), random_words(1000, 2)[::-1].copy()
    rows = np.array(
        [integer_functions(int(x), int(y)) for x, y in zip(a, b, strict=True)], np.uint32
    ).T
    out = rt.empty(rows.nbytes)
    rt.launch("integers", 8, 128, rt.upload(a), rt.upload(b), out, np.uint32(a.size))
    np.testing.assert_array_equal(rt.download(out).view(np.uint32).reshape(rows.shape), rows)


def test_atomics(options: dict[str, Any]) -> None:
    rt, x = probe(**options), random_words(1000)
    for dtype, values in ((np.uint32, x), (np.uint64, x.astype(np.uint64) << np.uint64(32) | ~x)):
        start = np.array(
            [
                5,
                0,
                -1 % (1 << np.dtype(dtype).itemsize * 8),
                9,
                0,
                -1 % (1 << np.dtype(dtype).itemsize * 8),
                0,
                3,
            ],
            dtype,
        )
        other = np.zeros(8, np.uint64 if dtype is np.uint32 else np.uint32)
        mine, theirs = rt.upload(start), rt.upload(other)
        pair = (mine, theirs) if dtype is np.uint32 else (theirs, mine)
        rt.launch("atomics", 8, 128, rt.upload(x), *pair, np.uint32(x.size))
        got = rt.download(mine)
        expected = [
            np.append(values, start[0]).sum(dtype=dtype),
            np.bitwise_or.reduce(values & dtype(0xFF00FF00)),
            np.bitwise_and.reduce(values | dtype(0xFF00)),
            start[3] ^ np.bitwise_xor.reduce(values),
            values.max(),
            values.min(),
        ]
        np.testing.assert_array_equal(got[:6], np.array(expected, dtype))
        assert got[6] in values | dtype(1)  # one lane has put it there
        assert got[7] == 7


def test_indices_and_64_bit_parameters() -> None:
    rt = probe()
    out = rt.empty(3 * 70 * 16)
    rt.launch("indices", 3, 70, out, np.uint64((1 << 32) + 10))  # the last warp is not whole
    i = np.arange(210, dtype=np.uint32)
    np.testing.assert_array_equal(
        rt.download(out).view(np.uint32).reshape(-1, 4),
        np.stack([i + 10, 0 * i + 3, 0 * i, (i % 4) ** 2], 1),
    )


def test_vectors_and_no_parameters() -> None:
    rt, x = probe(), random_words(400)
    out = rt.empty(x.nbytes)
    rt.launch("vectors", 1, 128, rt.upload(x), out, np.uint32(100))
    np.testing.assert_array_equal(
        rt.download(out).view(np.uint32).reshape(-1, 4), x.reshape(-1, 4)[:, ::-1]
    )
    rt.launch("nothing", (1 << 16) + 1, 1)


@pytest.mark.parametrize("name", ["TABLE", "CONTEXT_MAP", "TENSOR", "SEGMENT", "PLANE", "BATCH"])
def test_structures_are_those_of_layout(tmp_path: Path, name: str) -> None:
    """Sizes and offsets by the compiler are those of the dtype; its fields leave nothing out."""
    dtype, struct = getattr(layout, name), "".join(word.capitalize() for word in name.split("_"))
    entries = [f"sizeof({struct})"]
    expected = [dtype.itemsize]
    for field, (kind, offset) in ((field, entry[:2]) for field, entry in dtype.fields.items()):
        entries += [f"__builtin_offsetof({struct}, {field})", f"sizeof((({struct} *)0)->{field})"]
        expected += [offset, kind.itemsize]
    assert sum(expected[2::2]) == expected[0]
    lines = [f"    out[{i}] = (u32){entry};" for i, entry in enumerate(entries)]
    source = tmp_path / "structures.cu"
    source.write_text(
        "\n".join(['#include "common.cuh"', "KERNEL structures(u32 *out) {", *lines, "}", ""])
    )
    rt = EmulatedRuntime(extra={"structures": (source, ("structures",))})
    out = rt.empty(4 * len(entries))
    rt.launch("structures", 1, 1, out)
    assert rt.download(out).view(np.uint32).tolist() == expected


# ---- memory --------------------------------------------------------------------------------------
def test_memory() -> None:
    rt = EmulatedRuntime()
    for nbytes in (0, 1, 255, 1000):
        fresh = rt.empty(nbytes)
        assert fresh.shape == (nbytes,)
        assert fresh.dtype == np.uint8
        assert rt.address(fresh) % 256 == 0
        assert (fresh == CANARY).all()
    host = random_words(60).reshape(6, 10)
    device = rt.upload(host)
    assert rt.address(device) % 256 == 0
    assert rt.address(device[1:]) == rt.address(device) + 40
    back = rt.download(device)
    host[:] = device[:] = 0
    np.testing.assert_array_equal(back, random_words(60).reshape(6, 10))


# ---- launches that can't be ----------------------------------------------------------------------
def test_wrong_launches() -> None:
    rt = probe()
    x, n = rt.upload(random_words(32)), np.uint32(32)
    for args in ((x, x), (x, x, n, n), (x, x, np.uint64(32)), (x, n, n), ()):
        with pytest.raises(
            EmulatorError, match=r"collectives takes parameters of \(8, 8, 4\) bytes"
        ):
            rt.launch("collectives", 1, 32, *args)
    for arg in (32, 1.5, np.int32(1), None):
        with pytest.raises(EmulatorError, match="an argument is"):
            rt.launch("collectives", 1, 32, x, x, arg)
    for grid, block in ((0, 32), (1, 0), (1, 1025), (1 << 31, 32)):
        with pytest.raises(EmulatorError, match="can't be launched"):
            rt.launch("nothing", grid, block)
    with pytest.raises(EmulatorError, match="no kernel absent"):
        rt.launch("absent", 1, 32)


def test_sources_that_do_not_fit(tmp_path: Path) -> None:
    source = tmp_path / "one.cu"
    source.write_text('#include "common.cuh"\nKERNEL one(u32 *out) { *out = 1; }\n')
    extra = {
        "one": (source, ("one", "two")),
        "gone": (tmp_path / "gone.cu", ("three",)),
        "probe": (PROBE, KERNELS),
    }
    rt = EmulatedRuntime(extra=extra)
    with pytest.raises(EmulatorError, match=r"(?s)one\.o can't be built.*two.*was not declared"):
        rt.launch("one", 1, 1, rt.empty(4))
    with pytest.raises(EmulatorError, match=r"there is no .*gone\.cu"):
        rt.launch("three", 1, 1, rt.empty(4))
    rt.launch("nothing", 1, 1)


def test_a_changed_source_is_built_again(tmp_path: Path) -> None:
    source, header = tmp_path / "one.cu", tmp_path / "number.cuh"
    source.write_text(
        '#include "common.cuh"\n#include "number.cuh"\nKERNEL one(u32 *out) { *out = NUMBER; }\n'
    )
    for number in (3, 4):
        header.write_text(f"#define NUMBER {number}\n")
        rt = EmulatedRuntime(extra={"one": (source, ("one",))})
        out = rt.empty(4)
        rt.launch("one", 1, 1, out)
        assert out.view(np.uint32)[0] == number


def test_builds_and_launches_from_several_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four threads find nothing built."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    x = random_words(96 * 40)
    rows = expected_collectives(x, 96)
    start = threading.Barrier(4)

    def launch(seed: int) -> list[U32s]:
        rt = probe(order="shuffled", seed=seed)
        start.wait()
        outs = [rt.empty(rows.nbytes) for _ in range(5)]
        for out in outs:
            rt.launch("collectives", 40, 96, rt.upload(x), out, np.uint32(x.size))
        return [rt.download(out).view(np.uint32).reshape(rows.shape) for out in outs]

    with ThreadPoolExecutor(4) as pool:
        for outs in pool.map(launch, range(4)):
            for out in outs:
                np.testing.assert_array_equal(out, rows)
    assert not list(tmp_path.glob("**/unfinished-*"))


# ---- faults --------------------------------------------------------------------------------------
#: Faults that end the launch in any order, with what is said.
REFUSED = {
    "divergent_ballot": "divergent collective: __ballot_sync .planted.cu:",
    "other_collective": "divergent collective: .*(__any_sync|__shfl_sync)",
    "part_of_warp": "mask 0x0000ffff: collectives name the whole warp",
    "early_exit": "__ballot_sync .* waits for lanes 0x00000020, which have exited",
    "exit_before_syncthreads": "thread 96: __syncthreads .* exited",
    "divergent_syncthreads": "divergent __syncthreads",
    "deadlock": (
        "thread [0-9]+: __syncwarp .* waits for lanes 0x00000200, which wait at __syncthreads"
    ),
}
#: Faults that give other results in some order.
BY_ORDER = [
    "uninitialised_shared", "left_over_shared", "missing_syncthreads", "missing_second_syncthreads",
    "missing_syncwarp", "race_of_warps", "race_of_blocks", "scratch_of_all_blocks",
]  # fmt: skip
#: Faults that comparing accesses finds, in any order.
RACES = [
    "missing_syncthreads", "missing_second_syncthreads", "missing_syncwarp", "race_of_warps",
    "race_of_blocks", "scratch_of_all_blocks", "lost_update", "ballot_as_barrier",
]  # fmt: skip
#: Faults that the sanitizers find, with what they say.
SANITIZED = {
    "read_beyond": "heap-buffer-overflow",
    "write_beyond": "heap-buffer-overflow",
    "read_before": "heap-buffer-overflow",
    "shared_overrun": "global-buffer-overflow",
    "bad_shift": "shift exponent 32 is too large",
    "misaligned": "load of misaligned address",
    "misaligned_vector": "misaligned address 0x[0-9a-f]+ for type 'const struct uint4'",
}
ENVIRONMENT = {"PYTHONPATH": PYTHONPATH}


def test_every_planted_kernel_has_its_test() -> None:
    assert {*REFUSED, *BY_ORDER, *RACES, *SANITIZED, "deep_recursion"} == set(planted.KERNELS)


@pytest.mark.parametrize("kernel", planted.KERNELS)
def test_nothing_is_found_without_a_fault(options: dict[str, Any], kernel: str) -> None:
    np.testing.assert_array_equal(planted.run(kernel, False, **options), planted.expected(kernel))


@pytest.mark.parametrize("kernel", REFUSED)
def test_planted_fault_ends_the_launch(options: dict[str, Any], kernel: str) -> None:
    with pytest.raises(EmulatorError, match=f"^{kernel}, block [0-4], .*{REFUSED[kernel]}"):
        planted.run(kernel, True, **options)
    # the next launch is whole
    np.testing.assert_array_equal(planted.run(kernel, False, **options), planted.expected(kernel))


@pytest.mark.parametrize("kernel", BY_ORDER)
def test_planted_fault_shows_in_some_order(kernel: str) -> None:
    results = [planted.run(kernel, True, order=order, seed=seed) for order, seed in ORDERS]
    assert any(not np.array_equal(result, planted.expected(kernel)) for result in results)
    assert any(not np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("kernel", RACES)
@pytest.mark.parametrize(("order", "seed"), ORDERS)
def test_planted_race_is_found_in_any_order(kernel: str, order: str, seed: int) -> None:
    place = r"planted\.cu:[0-9]+"
    with pytest.raises(
        EmulatorError,
        match=rf"^{kernel}, .*race: {place} (reads|writes) what {place} has (read|written)",
    ):
        planted.run(kernel, True, order=order, seed=seed, races=True)


def test_misaligned_access_is_found_with_races() -> None:
    with pytest.raises(EmulatorError, match=r"misaligned: planted\.cu:[0-9]+ accesses 8 bytes"):
        planted.run("misaligned", True, races=True)


@pytest.mark.parametrize("kernel", sampled(SANITIZED, always=4))
def test_sanitizer_finds_planted_fault(kernel: str) -> None:
    done = run_sanitized(
        ["-m", "cuda_emulator.planted", "fault", "sanitize", kernel], env=ENVIRONMENT
    )
    assert done.returncode != 0
    assert re.search(SANITIZED[kernel], done.stderr), done.stderr
    assert "planted.cu:" in done.stderr
    assert not done.stdout


def test_sanitizers_find_nothing_without_a_fault() -> None:
    done = run_sanitized(
        ["-m", "cuda_emulator.planted", "right", "sanitize", *planted.KERNELS], env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == [f"{kernel} right" for kernel in planted.KERNELS] + [""]


def test_sanitized_runtime_needs_its_process() -> None:
    with pytest.raises(EmulatorError, match="run_sanitized"):
        EmulatedRuntime(sanitize=True)


def test_stack_overflow_does_not_reach_other_stacks() -> None:
    command = [sys.executable, "-m", "cuda_emulator.planted", "fault", "plain", "deep_recursion"]
    done = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True
    )
    assert done.returncode == -11, done.stderr
