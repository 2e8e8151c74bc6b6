"""Products with operands, on the CPU, against float64."""

from __future__ import annotations

from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cuda_cases import EACH_RUNTIME, RUNTIMES, Array, Memory, address, check_sanitized
from cuda_emulator import EmulatedRuntime
from operand_cases import (
    FACTORS,
    FORMS,
    KINDS,
    PAIRS,
    bf16_of,
    damaged_operand,
    floats,
    multiply,
    operand_of,
    weights_of,
    words_of,
)
from paths import TESTS
from sampling import exhaustive, sampled

from wcodec.cuda.linear import (
    BATCHES,
    CODED_STAGE_VECTORS,
    ROUND_TILES,
    SEGMENT_TILES,
    STAGE_VECTORS,
    LinearPlan,
    linear,
    plan_linear,
)

MATRIX = TESTS / "cuda_emulator" / "matrix.cu"
MATRIX_KERNELS = (
    "matrix_units_bf16", "matrix_units_fp16", "shuffles_bf16", "shuffles_fp16", "fused_bf16",
    "fused_fp16", "rounded_bf16", "rounded_fp16", "widened_fp16",
)  # fmt: skip
SHAPES = {
    "fixed": [
        (1, 1),
        (7, 16),
        (16, 7),
        (17, 33),
        (33, 64),
        (100, 17),
        (130, 72),
        (16, 1096),
        (5, 2056),
    ],
    "rans": [(16, 1024), (17, 1057), (24, 2112), (136, 1024), (9, 3080)],
}
INF, NAN, ONE = 0x7F80, 0x7FC0, 0x3F80


@pytest.fixture(params=EACH_RUNTIME)
def runtime(request: pytest.FixtureRequest) -> EmulatedRuntime:
    return EmulatedRuntime(**request.param)


def random(factors: str, *shape: int, seed: int = 0, sigma: float = 1) -> Array:
    """Gaussian numbers of a type."""
    return np.random.default_rng([seed, *shape]).normal(0, sigma, shape).astype(FACTORS[factors])


def check(
    y: Array, x: Array, weights: Array, bias: Array | None = None, scale: Array | None = None
) -> None:
    """The error is at most 1.5 times that of a product summed in fp32 and rounded, and each value's
    is near that of rounding.
    """
    exact_x, exact_w = x.astype(np.float64), weights.astype(np.float64)
    exact, size = exact_x @ exact_w.T, np.abs(exact_x) @ np.abs(exact_w).T
    plain = np.zeros(exact.shape, np.float32)
    for k in range(weights.shape[1]):
        plain += x[:, k, None].astype(np.float32) * weights[None, :, k].astype(np.float32)
    if scale is not None:
        exact, size, plain = exact * scale, size * scale, plain * scale
    if bias is not None:
        exact = exact + bias.astype(np.float64)
        size = size + np.abs(bias.astype(np.float64))
        plain = plain + bias.astype(np.float32)
    error = np.abs(y.astype(np.float64) - exact)
    usual = np.abs(plain.astype(y.dtype).astype(np.float64) - exact)
    assert np.linalg.norm(error) <= 1.5 * np.linalg.norm(usual) + 1e-38
    half_step = 2.0**-11 if y.dtype == np.float16 else 2.0**-8
    assert (error <= np.abs(exact) * half_step * 1.001 + size * 2.0**-21 + 2.0**-25).all()


# ---- the operations ------------------------------------------------------------------------------
def fragment_index(lane: int, i: int) -> tuple[int, int]:
    """Row and column of element i of a lane's part of A; PTX ISA 9.7.14.5.8."""
    row = lane // 4 if i < 2 or 4 <= i < 6 else lane // 4 + 8
    return row, lane % 4 * 2 + (i & 1) + (8 if i >= 4 else 0)


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("kernel", ["matrix_units", "shuffles"])
def test_fragments(runtime: EmulatedRuntime, kernel: str, factors: str) -> None:
    """Integers: sums are exact. Fragments are taken apart as the PTX ISA says,
    element by element.
    """
    runtime._sources |= dict.fromkeys(MATRIX_KERNELS, (MATRIX, MATRIX_KERNELS))
    rng, n = np.random.default_rng(0), 6
    a, b, c = (
        rng.integers(-9, 10, (n, *shape)).astype(np.float32)
        for shape in ((16, 16), (16, 8), (16, 8))
    )
    halves = [np.zeros((n, 32, 8), FACTORS[factors]), np.zeros((n, 32, 4), FACTORS[factors])]
    sums, expected = np.zeros((n, 32, 4), np.float32), np.zeros((n, 32, 4), np.float32)
    for lane in range(32):
        for i in range(8):
            halves[0][:, lane, i] = a[(slice(None), *fragment_index(lane, i))]
        for i in range(4):
            halves[1][:, lane, i] = b[:, lane % 4 * 2 + (i & 1) + (8 if i >= 2 else 0), lane // 4]
            at = slice(None), lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)
            sums[:, lane, i], expected[:, lane, i] = c[at], (a @ b + c)[at]
    out = runtime.upload(sums)
    there = [runtime.upload(h.view(np.uint16)) for h in halves]
    runtime.launch(f"{kernel}_{factors}", n // 2, 64, *there, out)
    np.testing.assert_array_equal(runtime.download(out), expected)


def every_word(factors: str) -> Array:
    """All numbers of a type that are finite, as words."""
    words = np.arange(1 << 16, dtype=np.uint16)
    return words[np.isfinite(words.view(FACTORS[factors]).astype(np.float32))]


@pytest.mark.parametrize("factors", FACTORS)
def test_two_at_once(factors: str) -> None:
    """a b + c where it is exact: what weights of a byte are made with."""
    runtime = EmulatedRuntime(extra={"matrix": (MATRIX, MATRIX_KERNELS)})
    dtype, words = FACTORS[factors], every_word(factors)
    words = words[: words.size // 512 * 512]
    one, out = np.full(words.size, 1, dtype), runtime.empty(words.nbytes)
    for c in (np.full(words.size, -0.0, dtype), words.view(dtype)):  # a, and 2 a
        args = [runtime.upload(v.view(np.uint16)) for v in (words.view(dtype), one, c)]
        runtime.launch(f"fused_{factors}", words.size // 512, 256, *args, out)
        with np.errstate(over="ignore"):
            expected = (words.view(dtype).astype(np.float32) + c.astype(np.float32)).astype(dtype)
        np.testing.assert_array_equal(
            runtime.download(out).view(np.uint16), expected.view(np.uint16)
        )


@pytest.mark.parametrize("factors", FACTORS)
def test_rounding(factors: str) -> None:
    """To the nearest, ties to even, subnormals and overflow included;
    from a number back to itself.
    """
    runtime = EmulatedRuntime(extra={"matrix": (MATRIX, MATRIX_KERNELS)})
    rng = np.random.default_rng(3)
    edges = every_word(factors).view(FACTORS[factors]).astype(np.float32)
    between = (
        (edges[:-1] + np.diff(np.sort(edges)) / 2).astype(np.float32)
        if factors == "fp16"
        else edges[:-1] * np.float32(1 + 2.0**-8)
    )
    specials = np.array([np.inf, -np.inf, 65519, 65520, -65520, 0.0, -0.0, 1], np.float32)
    values = np.concatenate(
        [
            specials,
            edges,
            between,
            rng.integers(0, 1 << 32, 1 << 16, dtype=np.uint32).view(np.float32),
        ]
    )
    values = values[~np.isnan(values)][: values.size // 512 * 512 - 512]
    out = runtime.empty(2 * values.size)
    runtime.launch(f"rounded_{factors}", values.size // 256, 256, runtime.upload(values), out)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(
            runtime.download(out).view(np.uint16), values.astype(FACTORS[factors]).view(np.uint16)
        )
    nans = runtime.upload(np.array([0x7F800001, 0xFFC00000], np.uint32).view(np.float32))
    runtime.launch(f"rounded_{factors}", 1, 2, nans, out)
    assert np.isnan(runtime.download(out)[:4].view(FACTORS[factors]).astype(np.float32)).all()


def test_widening() -> None:
    runtime = EmulatedRuntime(extra={"matrix": (MATRIX, MATRIX_KERNELS)})
    words = np.arange(1 << 16, dtype=np.uint16)
    out = runtime.empty(4 * words.size)
    runtime.launch("widened_fp16", words.size // 256, 256, runtime.upload(words), out)
    np.testing.assert_array_equal(
        runtime.download(out).view(np.float32), words.view(np.float16).astype(np.float32)
    )


# ---- products ------------------------------------------------------------------------------------
def parts_of(shape: tuple[int, int]) -> list[int]:
    return sorted({1, 2, -(-shape[1] // 32)})


@pytest.mark.parametrize("more", [False, exhaustive(True)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", BATCHES)
def test_shapes(runtime: EmulatedRuntime, batch: int, form: str, more: bool) -> None:
    # comparing accesses takes ten times as long
    every = 1 if more and not (runtime.races and batch > 8) else 3
    for i, shape in list(enumerate(SHAPES[form]))[batch // 16 % every :: every]:
        weights, x = weights_of("bf16", shape), random("bf16", batch - i % 3, shape[1])
        bias = random("bf16", shape[0], sigma=0.1) if i % 2 else None
        for n_parts in parts_of(shape)[:: 1 if batch < 16 else 2]:
            y = multiply(
                runtime,
                x,
                weights,
                form,
                bias=bias,
                n_parts=n_parts,
                n_slices=1 << (i + n_parts) % 4,
                at_end=i % 3 > 0,
            )
            check(y, x, weights, bias)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "factors"), PAIRS)
@pytest.mark.parametrize("long", [False, exhaustive(True)])
def test_types(kind: str, factors: str, form: str, long: bool) -> None:
    """With a scale and a bias, all kernels."""
    runtime = EmulatedRuntime(order="shuffled", seed=9)
    for batch, shape in zip(
        (3, 13, 30, 64),
        [(17, 1057), (24, 1056), (40, 2048) if long else (17, 1057), (9, 1120)],
        strict=True,
    ):
        weights = weights_of(kind, shape, 1)
        x = random(factors, batch, shape[1], sigma=0.3)
        bias = random(factors, shape[0])
        if kind == "bf16":
            weights = weights_of(kind, shape)
        scale = np.random.default_rng(batch).uniform(0.01, 2, shape[0]).astype(np.float32)
        check(
            multiply(runtime, x, weights, form, bias=bias, scale=scale, n_parts=1 + batch % 2),
            x,
            weights,
            bias,
            scale,
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "factors"), PAIRS)
def test_every_weight_is_exact(kind: str, factors: str, form: str) -> None:
    """Times a matrix of ones and zeros, weights come out as they are: all bytes, all windows,
    patches, at all places of tiles.
    """
    shape, rng = (40, 1088), np.random.default_rng(5)
    if kind == "bf16":
        words = words_of("gaussian", shape)
        words[rng.random(shape) < 0.004] = rng.choice(
            np.array([0, 0x8000, 1, 0x807F, 0x7F7F, 0xFF00, 0x0080], np.uint16)
        )
        weights = words.view(ml_dtypes.bfloat16)
    else:
        values = np.arange(256, dtype=np.uint8).view(KINDS[kind])
        values = values[np.isfinite(values.astype(np.float32))]
        weights = rng.permutation(np.resize(values, shape[0] * shape[1])).reshape(shape)
        if form == "rans":  # most of them alike: coding pays
            weights = np.where(rng.random(shape) < 0.8, values[1], weights)
    for first in (0, 512, 1024):
        x = np.zeros((64, shape[1]), FACTORS[factors])
        x[np.arange(64), first + np.arange(64)] = 1
        y = multiply(EmulatedRuntime(), x, weights, form)
        np.testing.assert_array_equal(
            y.astype(np.float32), weights[:, first : first + 64].T.astype(np.float32)
        )


@pytest.mark.parametrize("batch", sampled(range(1, 65), always=22))
def test_every_batch(batch: int) -> None:
    weights, x = weights_of("bf16", (19, 104)), random("bf16", batch, 104)
    check(multiply(EmulatedRuntime(), x, weights, n_parts=1 + batch % 2), x, weights)


@pytest.mark.parametrize("form", FORMS)
def test_patches(runtime: EmulatedRuntime, form: str) -> None:
    """Weights of very different sizes: small ones as patches change nothing, large ones decide."""
    rng = np.random.default_rng(6)
    for shape, n_parts in [((33, 100), 1), ((17, 1200), 2), ((24, 2048), 2)]:
        outside = rng.normal(0, 1, shape) * 2.0 ** rng.choice([-60, -40, 20, 40], shape)
        words = np.where(
            rng.random(shape) < 0.004, bf16_of(outside), words_of("gaussian", shape)
        ).astype(np.uint16)
        weights, x = words.view(ml_dtypes.bfloat16), random("bf16", 5, shape[1])
        check(multiply(runtime, x, weights, form, n_parts=n_parts), x, weights)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["weights", "x", "both", "bias"])
def test_not_finite(where: str, form: str) -> None:
    """NaN and Inf come out where they do of an uncompressed product;
    elsewhere all is as without them.
    """
    rng, shape = np.random.default_rng(7), (40, 1160)
    words = words_of("gaussian", shape)
    x = bf16_of(rng.normal(0, 1, (9, shape[1])))
    bias = bf16_of(rng.normal(0, 1, 40))
    words[rng.random(shape) < 0.003] = ONE + (9 << 7)  # a patch
    if where in ("weights", "both"):
        words[3, 5] = INF
        words[3, 130] = INF
        words[20, 64] = NAN
        words[21, 0] = 0x8000 | INF
        words[22, 7] = INF
        words[22, 9] = 0x8000 | INF
        words[30, 1159], x[2, 5] = INF, 0  # 0 times Inf
    if where in ("x", "both"):
        x[0, 3], x[1, 70], x[4, 135], x[5, 1], x[5, 2] = INF, 0x8000 | INF, NAN, INF, 0x8000 | INF
        bias[4], bias[8] = 0x8000 | INF, INF
        x[6, [13, 46]], x[7, [13, 100, 1159]] = INF, INF  # signs of weights decide
        words[::2, 13] = 0x7000
        words[::3, 3], words[1::3, 3], words[::4, 70], words[1::4, 70] = 0, 0x7000, 0xF000, 0x0001
    if where == "bias":
        bias[:3] = INF, NAN, 0x8000 | INF
    weights, factors, added = (a.view(ml_dtypes.bfloat16) for a in (words, x, bias))
    with np.errstate(invalid="ignore"):
        products = floats(x)[:, None, :] * floats(words)[None]
        plain = floats(bias) + products.sum(2, dtype=np.float32)
    for n_parts in (1, 2):
        y = multiply(EmulatedRuntime(), factors, weights, form, bias=added, n_parts=n_parts).astype(
            np.float32
        )
        np.testing.assert_array_equal(np.isnan(y), np.isnan(plain))
        np.testing.assert_array_equal(np.isposinf(y), np.isposinf(plain))
        np.testing.assert_array_equal(np.isneginf(y), np.isneginf(plain))
        finite = np.isfinite(plain)
        assert 0 < finite.sum() < finite.size
        size = np.abs(np.where(np.isfinite(products), products, 0)).sum(2) + 1
        assert (np.abs(y[finite] - plain[finite]) <= size[finite] * 2.0**-7).all()


@pytest.mark.parametrize("form", FORMS)
def test_deterministic(form: str) -> None:
    """Whatever the order, bit for bit."""
    weights, x = weights_of("bf16", (50, 3072)), random("bf16", 12, 3072)
    results = [
        multiply(EmulatedRuntime(**options), x, weights, form, n_parts=3)
        for options in (*RUNTIMES, RUNTIMES[0])
    ]
    assert len({r.tobytes() for r in results}) == 1


def test_addresses() -> None:
    """x that is not aligned gives the same as x that is."""
    runtime, weights, x = EmulatedRuntime(), weights_of("bf16", (20, 72)), random("bf16", 3, 72)
    weight, results = operand_of(runtime, weights, "fixed", memory := Memory()), []
    for offset in (0, 2, 8):
        there, y = runtime.empty(x.nbytes + 16), runtime.empty(2 * 3 * 20)
        there[offset : offset + x.nbytes] = x.reshape(-1).view(np.uint8)
        assert linear(address(there) + offset, 3, weight, address(y)) is None
        results.append(y.tobytes())
    assert len(set(results)) == 1
    memory.check()


def test_workspace_is_taken() -> None:
    runtime, weights, x = EmulatedRuntime(), weights_of("bf16", (16, 2048)), random("bf16", 3, 2048)
    weight, y = operand_of(runtime, weights, "fixed", memory := Memory()), runtime.empty(2 * 3 * 16)
    plan = plan_linear(weight.shape, False, 3, 1, 2)
    taken = linear(address(x), 3, weight, address(y), plan=plan)
    memory.check()
    assert taken.nbytes == plan.workspace_nbytes > 0
    check(y.view(x.dtype).reshape(3, 16), x, weights)


# ---- plans ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cols", [4100, pytest.param(5120, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(
    "batch",
    [exhaustive(1), 2, exhaustive(3), exhaustive(6), *BATCHES[:2], *map(exhaustive, BATCHES[2:])],
)
def test_slices(batch: int, cols: int, form: str) -> None:
    """All numbers of slices, also where there are more than segments, and some are empty."""
    weights, x = weights_of("bf16", (40, cols)), random("bf16", batch, cols)
    for n_slices, n_parts in (
        ((2, 2), (4, 1), (8, 2)) if cols == 4100 else product((2, 4, 8), (1, 2))
    ):
        check(
            multiply(
                EmulatedRuntime(order="shuffled"),
                x,
                weights,
                form,
                n_parts=n_parts,
                n_slices=n_slices,
            ),
            x,
            weights,
        )


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("batch", [1, 8, 9, 16, 17, 33, 64])
def test_plans_cover_the_matrix(batch: int, coded: bool) -> None:
    for shape in [
        (1, 1),
        (16, 64),
        (129, 65),
        (4096, 4096),
        (14336, 4096),
        (4096, 14336),
        (128256, 4096),
        (7, 100_000),
    ]:
        for n_parts in (None, 1, 2, 5, 1000):
            for n_slices in (None, 1, 2, 4, 8):
                p = plan_linear(shape, coded, batch, 132, n_parts, n_slices)
                tiles, slices = -(-shape[1] // 32), 1 << p.slice_bits
                assert p.batch == min(b for b in BATCHES if b >= batch)
                assert p.grid == -(-shape[0] // (128 // slices)) * p.n_parts
                assert p.part_tiles == p.slice_tiles * slices
                assert (p.n_parts - 1) * p.part_tiles < tiles <= p.n_parts * p.part_tiles
                assert min(batch, 8) <= 1 << p.row_bits < 2 * batch or batch > 8
                # tiles, of a slice
                stage = (CODED_STAGE_VECTORS if coded else STAGE_VECTORS) >> (
                    p.slice_bits + p.row_bits + 2
                )
                assert stage % (1 if coded else ROUND_TILES[p.batch]) == 0
                assert stage > 0
                assert p.slice_tiles % (SEGMENT_TILES if coded else ROUND_TILES[p.batch]) == 0
                assert n_parts is None or p.n_parts <= n_parts
                assert n_slices is None or slices <= n_slices
                assert p.workspace_nbytes == (
                    p.n_parts * -(-shape[0] // 16) * 16 * p.batch * 4 if p.n_parts > 1 else 0
                )


def test_plans_fill_the_device() -> None:
    assert plan_linear((4096, 4096), False, 1, 132) == LinearPlan(8, 256, 1, 128, 3, 16, 0, 0)
    assert plan_linear((4096, 14336), False, 5, 132) == LinearPlan(8, 256, 1, 448, 3, 56, 3, 0)
    assert plan_linear((4096, 4096), False, 9, 132) == LinearPlan(
        16, 256, 2, 64, 2, 16, 4, 2 * 4096 * 16 * 4
    )
    assert plan_linear((4096, 4096), True, 1, 132) == LinearPlan(8, 128, 1, 128, 2, 32, 0, 0)
    assert plan_linear((14336, 4096), False, 2, 132) == LinearPlan(8, 224, 1, 128, 1, 64, 1, 0)
    assert plan_linear((1024, 4096), False, 3, 132) == LinearPlan(
        8, 256, 4, 32, 3, 4, 2, 4 * 1024 * 8 * 4
    )
    assert plan_linear((128256, 4096), False, 1, 132) == LinearPlan(8, 1002, 1, 128, 0, 128, 0, 0)
    assert plan_linear((4096, 14336), False, 16, 132) == LinearPlan(
        16, 256, 2, 224, 2, 56, 4, 2 * 4096 * 16 * 4
    )
    assert plan_linear((4096, 14336), False, 32, 132) == LinearPlan(
        32, 256, 4, 112, 1, 56, 5, 4 * 4096 * 32 * 4
    )
    assert plan_linear((4096, 14336), False, 64, 132) == LinearPlan(
        64, 256, 8, 56, 0, 56, 6, 8 * 4096 * 64 * 4
    )


@pytest.mark.parametrize("batch", [0, 65])
def test_no_such_batch(batch: int) -> None:
    with pytest.raises(ValueError, match=f"a batch of {batch} rows"):
        plan_linear((16, 16), False, batch, 1)


def test_refuses() -> None:
    weight = operand_of(EmulatedRuntime(), weights_of("bf16", (16, 128)), "fixed", Memory())
    with pytest.raises(ValueError, match="the plan is for 1 to 8"):
        linear(0, 9, weight, 0, plan=plan_linear((16, 128), False, 8, 1))
    with pytest.raises(ValueError, match="bf16 weights are not multiplied by fp16"):
        linear(0, 1, weight, 0, factors="fp16")
    with pytest.raises(ValueError, match="not multiplied by fp32"):
        linear(0, 1, weight, 0, factors="fp32")


# ---- damage, sanitizers --------------------------------------------------------------------------
def damaged(runtime: EmulatedRuntime, kind: str, form: str, seed: int) -> None:
    """Whatever a payload holds, nothing is touched that is not the operand's, and kernels end."""
    array, batch, memory = weights_of(kind, (33, 1090), 1), (5, 60)[seed % 2], Memory(seed % 2 == 0)
    weight = damaged_operand(runtime, array, form, seed, memory)
    plan = plan_linear(weight.shape, weight.coded, batch, 4, 1 + seed % 3)
    x = memory.put(random("bf16", batch, 1090))
    y = memory.room(2 * batch * 33)
    workspace = memory.room(plan.workspace_nbytes)
    linear(address(x), batch, weight, address(y), plan=plan, workspace=address(workspace))
    memory.check()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_damaged(kind: str, form: str) -> None:
    for seed in range(8):
        damaged(EmulatedRuntime(order="shuffled", seed=seed), kind, form, seed)


def test_sanitizers_find_nothing() -> None:
    check_sanitized(__file__)


def main() -> None:
    """Some of the tests above in a process with sanitizers on."""
    runtime: Any = EmulatedRuntime.sanitized()
    for form in FORMS:
        for batch in BATCHES:
            shape = (33, 72) if form == "fixed" else (17, 1056)
            weights, x = weights_of("bf16", shape), random("bf16", batch, shape[1])
            check(multiply(runtime, x, weights, form, n_parts=2), x, weights)
        for seed in range(2):
            damaged(runtime, "bf16", form, seed)
        weights, x = weights_of("int8", (17, 1057)), random("fp16", 9, 1057, sigma=0.1)
        check(multiply(runtime, x, weights, form), x, weights)
    print("OK")


if __name__ == "__main__":
    main()
