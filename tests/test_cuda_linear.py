"""Products with fixed-rate weights, on the CPU, against float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_cases import RUNTIMES, Array, Memory, address, check_sanitized, runtime_id
from cuda_emulator import EmulatedRuntime
from test_cuda_fixed import bf16_of, words_of

from wcodec.cuda.fixed import FixedWeight
from wcodec.cuda.linear import BATCHES, ROUNDS, LinearPlan, linear, plan_linear

MATRIX = Path(__file__).parent / "cuda_emulator" / "matrix.cu"
MATRIX_KERNELS = ("matrix_units", "shuffles", "scaled_pairs", "rounded")
SHAPES = [(1, 1), (7, 16), (16, 7), (17, 33), (33, 64), (64, 100), (100, 17), (130, 72), (16, 1096), (5, 2056)]
INF, NAN, ONE = 0x7F80, 0x7FC0, 0x3F80


@pytest.fixture(params=RUNTIMES, ids=runtime_id)
def runtime(request: pytest.FixtureRequest) -> EmulatedRuntime:
    return EmulatedRuntime(**request.param)


def floats(words: Array) -> Array:
    """Values of bf16 words, float32."""
    return (words.astype(np.uint32) << 16).view(np.float32)


def make_x(batch: int, cols: int, seed: int = 0) -> Array:
    return bf16_of(np.random.default_rng([seed, batch, cols]).normal(0, 1, (batch, cols)))


def multiply(
    runtime: EmulatedRuntime, x: Array, words: Array, bias: Array | None = None, n_parts: int | None = None, at_end: bool = True
) -> Array:
    """Words of y. All inputs can only be read, and nothing is touched around any buffer."""
    memory, (rows, cols) = Memory(at_end), (words.shape[0], words.shape[1])
    packed = FixedWeight.from_words(runtime, address(np.ascontiguousarray(words)), (rows, cols))
    parts = [memory.put(runtime.download(a)) for a in (packed.tiles, packed.starts, packed.patches)]
    weight = FixedWeight(runtime, packed.shape, packed.base, packed.n_patches, *parts)
    plan = plan_linear(weight.shape, len(x), 4, n_parts)
    workspace = memory.room(plan.workspace_nbytes)
    out = memory.room(2 * len(x) * rows)
    added = 0 if bias is None else address(memory.put(bias))
    linear(runtime, address(memory.put(x)), len(x), weight, added, address(out), plan=plan, workspace=workspace)
    memory.check()
    return out.view(np.uint16).reshape(len(x), rows).copy()


def check(y: Array, x: Array, words: Array, bias: Array | None = None) -> None:
    """The error is at most 1.5 times that of a product summed in fp32 and rounded, and each value's is near that of rounding."""
    exact = floats(x).astype(np.float64) @ floats(words).astype(np.float64).T
    size = np.abs(floats(x)).astype(np.float64) @ np.abs(floats(words)).astype(np.float64).T
    plain = np.zeros(exact.shape, np.float32)
    for k in range(words.shape[1]):
        plain += floats(x)[:, k, None] * floats(words)[None, :, k]
    if bias is not None:
        exact, size, plain = exact + floats(bias), size + np.abs(floats(bias)), plain + floats(bias)
    error, usual = np.abs(floats(y) - exact), np.abs(floats(bf16_of(plain)) - exact)
    assert np.linalg.norm(error) <= 1.5 * np.linalg.norm(usual) + 1e-38
    assert (error <= np.abs(exact) * 2.0**-8 * 1.001 + size * 2.0**-21 + 1e-38).all()


def parts_of(shape: tuple[int, int]) -> list[int]:
    return sorted({1, 2, 3, -(-shape[1] // 64)})


# ---- the operations ----------------------------------------------------------------------------------------------------------
def fragment_index(lane: int, i: int) -> tuple[int, int]:
    """Row and column of element i of a lane's part of A; PTX ISA 9.7.14.5.8."""
    row = lane // 4 if i < 2 or 4 <= i < 6 else lane // 4 + 8
    return row, lane % 4 * 2 + (i & 1) + (8 if i >= 4 else 0)


@pytest.mark.parametrize("kernel", ["matrix_units", "shuffles"])
def test_fragments(runtime: EmulatedRuntime, kernel: str) -> None:
    """Integers: sums are exact. Fragments are taken apart as the PTX ISA says, element by element."""
    runtime._sources |= dict.fromkeys(MATRIX_KERNELS, (MATRIX, MATRIX_KERNELS))
    rng, n = np.random.default_rng(0), 6
    a, b, c = (rng.integers(-9, 10, (n, *shape)).astype(np.float32) for shape in ((16, 16), (16, 8), (16, 8)))
    halves = [np.zeros((n, 32, 8), np.uint16), np.zeros((n, 32, 4), np.uint16)]
    sums, expected = np.zeros((n, 32, 4), np.float32), np.zeros((n, 32, 4), np.float32)
    for lane in range(32):
        for i in range(8):
            halves[0][:, lane, i] = bf16_of(a[(slice(None), *fragment_index(lane, i))])
        for i in range(4):
            halves[1][:, lane, i] = bf16_of(b[:, lane % 4 * 2 + (i & 1) + (8 if i >= 2 else 0), lane // 4])
            at = slice(None), lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)
            sums[:, lane, i], expected[:, lane, i] = c[at], (a @ b + c)[at]
    out = runtime.upload(sums)
    runtime.launch(kernel, n // 2, 64, runtime.upload(halves[0]), runtime.upload(halves[1]), out)
    np.testing.assert_array_equal(runtime.download(out), expected)


def test_scaling_and_rounding() -> None:
    runtime = EmulatedRuntime(extra={"matrix": (MATRIX, MATRIX_KERNELS)})
    fields = np.array([s | e << 7 | m for s in (0, 0x8000) for e in range(1, 16) for m in range(128)] + [0, 0x8000] * 64, np.uint16)
    for base in (0, 1, 109, 127):
        scales = np.full(fields.size // 2, (127 + base) * 0x00800080, np.uint32)
        out = runtime.empty(fields.nbytes)
        runtime.launch("scaled_pairs", 2, fields.size // 2 // 2, runtime.upload(fields.view(np.uint32)), runtime.upload(scales), out)
        expected = np.where(fields & 0x7FFF, fields + (base << 7), fields)
        np.testing.assert_array_equal(runtime.download(out).view(np.uint16), expected)
    bits = np.array(
        [0, 0x80000000, 0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001], np.uint32
    )
    rounded = runtime.empty(2 * bits.size)
    runtime.launch("rounded", 1, bits.size, runtime.upload(bits), rounded)
    expected = np.array([0, 0x8000, 0x3F80, 0x3F82, 0x3F81, 0x3F80, 0x7F80, 0x7F80, 0xFF80, 0x7FFF], np.uint16)
    np.testing.assert_array_equal(runtime.download(rounded).view(np.uint16), expected)


# ---- products ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", BATCHES)
def test_shapes(runtime: EmulatedRuntime, batch: int) -> None:
    for i, shape in enumerate(SHAPES):
        words, x = words_of("gaussian", shape), make_x(batch - i % 3, shape[1])
        bias = bf16_of(np.random.default_rng(i).normal(0, 0.1, shape[0])) if i % 2 else None
        for n_parts in parts_of(shape)[:: 1 if batch < 32 else 2]:
            check(multiply(runtime, x, words, bias, n_parts, i % 3 > 0), x, words, bias)


@pytest.mark.parametrize("batch", range(1, 65))
def test_every_batch(batch: int) -> None:
    words, x = words_of("gaussian", (19, 104)), make_x(batch, 104)
    check(multiply(EmulatedRuntime(), x, words, n_parts=1 + batch % 2), x, words)


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_patches(runtime: EmulatedRuntime, share: float) -> None:
    """Weights of very different sizes: small ones as patches change nothing, large ones decide."""
    rng = np.random.default_rng(int(100 * share))
    for shape, n_parts in [((33, 100), 1), ((17, 300), 2)]:
        outside = rng.normal(0, 1, shape) * 2.0 ** rng.choice([-60, -40, 20, 40], shape)
        words = np.where(rng.random(shape) < share, bf16_of(outside), words_of("gaussian", shape)).astype(np.uint16)
        x = make_x(5, shape[1])
        check(multiply(runtime, x, words, None, n_parts), x, words)


@pytest.mark.parametrize("where", ["weights", "x", "both", "bias"])
def test_not_finite(runtime: EmulatedRuntime, where: str) -> None:
    """NaN and Inf come out where they do of an uncompressed product; elsewhere all is as without them."""
    rng, shape = np.random.default_rng(7), (40, 136)
    words, x, bias = words_of("gaussian", shape), make_x(9, shape[1]), bf16_of(rng.normal(0, 1, 40))
    words[rng.random(shape) < 0.05] = ONE + (9 << 7)  # a patch
    if where in ("weights", "both"):
        words[3, 5], words[3, 130], words[20, 64], words[21, 0], words[22, 7], words[22, 9] = INF, INF, NAN, 0x8000 | INF, INF, 0x8000 | INF
        x[2, 5] = 0  # times Inf
    if where in ("x", "both"):
        x[0, 3], x[1, 70], x[4, 135], x[5, 1], x[5, 2] = INF, 0x8000 | INF, NAN, INF, 0x8000 | INF
        bias[4], bias[8] = 0x8000 | INF, INF
        x[6, [13, 46]], x[7, [13, 100, 119]] = INF, INF  # signs of weights decide
        words[::2, 13] = 0x7000
        words[::3, 3], words[1::3, 3], words[::4, 70], words[1::4, 70] = 0, 0x7000, 0xF000, 0x0001
    if where == "bias":
        bias[:3] = INF, NAN, 0x8000 | INF
    with np.errstate(invalid="ignore"):
        products = floats(x)[:, None, :] * floats(words)[None]
        plain = floats(bias) + products.sum(2, dtype=np.float32)
    for n_parts in (1, 2):
        y = floats(multiply(runtime, x, words, bias, n_parts))
        np.testing.assert_array_equal(np.isnan(y), np.isnan(plain))
        np.testing.assert_array_equal(np.isposinf(y), np.isposinf(plain))
        np.testing.assert_array_equal(np.isneginf(y), np.isneginf(plain))
        finite = np.isfinite(plain)
        assert 0 < finite.sum() < finite.size
        size = np.abs(np.where(np.isfinite(products), products, 0)).sum(2) + 1
        assert (np.abs(y[finite] - plain[finite]) <= size[finite] * 2.0**-7).all()


def test_deterministic() -> None:
    """Whatever the order, bit for bit."""
    words, x = words_of("patches", (50, 300)), make_x(12, 300)
    words[(words & 0x7F80) == 0x7F80] = 0
    results = [multiply(EmulatedRuntime(**options), x, words, None, 3) for options in (*RUNTIMES, RUNTIMES[0])]
    assert len({r.tobytes() for r in results}) == 1


def test_addresses() -> None:
    """x that is not aligned gives the same as x that is."""
    runtime, words, x = EmulatedRuntime(), words_of("gaussian", (20, 72)), make_x(3, 72)
    weight = FixedWeight.from_words(runtime, address(words), (20, 72))
    results = []
    for offset in (0, 2, 8):
        there, y = runtime.empty(x.nbytes + 16), runtime.empty(2 * 3 * 20)
        there[offset : offset + x.nbytes] = x.reshape(-1).view(np.uint8)
        assert linear(runtime, address(there) + offset, 3, weight, 0, address(y)) is None
        results.append(y.tobytes())
    assert len(set(results)) == 1


# ---- plans -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", [1, 8, 9, 16, 17, 33, 64])
def test_plans_cover_the_matrix(batch: int) -> None:
    for shape in [(1, 1), (16, 64), (129, 65), (4096, 4096), (14336, 4096), (4096, 14336), (128256, 4096), (7, 100_000)]:
        for n_parts in (None, 1, 2, 5, 1000):
            p = plan_linear(shape, batch, 132, n_parts)
            row_blocks, tiles = -(-shape[0] // 128), -(-shape[1] // 64)
            assert p.batch == min(b for b in BATCHES if b >= batch)
            assert p.grid == row_blocks * p.n_parts
            assert (p.n_parts - 1) * p.part_tiles < tiles <= p.n_parts * p.part_tiles
            assert p.n_parts == 1 or p.part_tiles % ROUNDS[p.batch] == 0
            assert n_parts is None or p.n_parts <= n_parts
            assert p.workspace_nbytes == (p.n_parts * -(-shape[0] // 16) * 16 * p.batch * 4 if p.n_parts > 1 else 0)


def test_plans_fill_the_device() -> None:
    assert plan_linear((4096, 4096), 1, 132) == LinearPlan(8, 32 * 8, 8, 8, 8 * 4096 * 8 * 4)
    assert plan_linear((14336, 4096), 1, 132).n_parts == 2
    assert plan_linear((128256, 4096), 1, 132) == LinearPlan(8, 1002, 1, 64, 0)
    assert plan_linear((16, 256), 1, 132).n_parts == 1


@pytest.mark.parametrize("batch", [0, 65])
def test_no_such_batch(batch: int) -> None:
    with pytest.raises(ValueError, match=f"a batch of {batch} rows"):
        plan_linear((16, 16), batch, 1)


def test_refuses() -> None:
    runtime, words = EmulatedRuntime(), words_of("gaussian", (16, 128))
    weight = FixedWeight.from_words(runtime, address(words), (16, 128))
    plan = plan_linear((16, 128), 8, 1, 2)
    assert plan.workspace_nbytes == 0  # 2 tiles are less than a round
    with pytest.raises(ValueError, match="the plan is for 1 to 8"):
        linear(runtime, 0, 9, weight, 0, 0, plan=plan)
    plan = plan_linear((16, 128), 64, 1, 2)
    with pytest.raises(ValueError, match=f"a workspace of 10 bytes; {plan.workspace_nbytes} are needed"):
        linear(runtime, 0, 9, weight, 0, 0, plan=plan, workspace=runtime.empty(10))


# ---- sanitizers ----------------------------------------------------------------------------------------------------------------
def test_sanitizers_find_nothing() -> None:
    check_sanitized(__file__)


def main() -> None:
    """Some of the tests above in a process with sanitizers on."""
    runtime: Any = EmulatedRuntime.sanitized()
    for batch in BATCHES:
        for shape in [(17, 33), (130, 72)]:
            words, x = words_of("gaussian", shape), make_x(batch, shape[1])
            check(multiply(runtime, x, words, None, 2), x, words)
    test_patches(runtime, 0.3)
    test_not_finite(runtime, "both")
    print("OK")


if __name__ == "__main__":
    main()
