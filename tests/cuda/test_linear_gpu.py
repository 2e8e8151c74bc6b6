"""Operands and their products on a GPU: ``make gpu-check`` runs it;
``WCODEC_GPU_TESTS=emulated``, on the emulator.
"""

from __future__ import annotations

import os
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cuda_emulator import EmulatedRuntime
from operand_cases import FACTORS, FORMS, KINDS, PAIRS, weights_of, words_of

import wcodec
from wcodec.backends.cuda.cupy_runtime import CupyRuntime
from wcodec.backends.cuda.runtime import Runtime
from wcodec.cuda.linear import linear, plan_linear
from wcodec.cuda.operand import Operand
from wcodec.files.file import File
from wcodec.planner.options import EncodeOptions

pytestmark = pytest.mark.gpu

EMULATED = os.environ.get("WCODEC_GPU_TESTS") == "emulated"
SHAPES = (
    [(100, 264), (33, 1057)]
    if EMULATED
    else [(1024, 4096), (4096, 1000), (777, 2049), (16, 16384), (14336, 512)]
)
BATCHES = [1, 9, 64] if EMULATED else [1, 2, 5, 8, 9, 16, 17, 32, 33, 63, 64]

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return EmulatedRuntime() if EMULATED else CupyRuntime()


class Held:
    """An operand, and the payload that it reads."""

    def __init__(self, runtime: Runtime, array: Array, form: str) -> None:
        data = np.frombuffer(wcodec.encode(array, EncodeOptions(operand=form)), np.uint8)
        index = File(data, None).index
        (t,) = index.tensors
        self.payload = runtime.upload(data[t.payload_offset : t.payload_offset + t.payload_nbytes])
        self.operand = Operand(runtime, t, index.tables, runtime.address(self.payload))


def multiply(
    runtime: Runtime,
    x: Array,
    held: Held,
    bias: Array,
    scale: Array | None = None,
    n_parts: int | None = None,
) -> Array:
    """y."""
    weight = held.operand
    there = runtime.upload(x.view(np.uint16))
    added = runtime.upload(bias.view(np.uint16))
    y = runtime.empty(2 * len(x) * weight.shape[0])
    scales = None if scale is None else runtime.upload(scale)
    plan = plan_linear(weight.shape, weight.coded, len(x), runtime.n_processors(), n_parts)
    at = {"bias": runtime.address(added), "scale": 0 if scales is None else runtime.address(scales)}
    factors = "fp16" if x.dtype == np.float16 else "bf16"
    kept = linear(
        runtime.address(there), len(x), weight, runtime.address(y), factors=factors, plan=plan, **at
    )
    out = runtime.download(y).view(x.dtype).reshape(len(x), -1)
    del kept
    return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_expand(runtime: Runtime, kind: str, form: str) -> None:
    for shape in SHAPES:
        array = weights_of(kind, shape, 1)
        held, out = Held(runtime, array, form), runtime.empty(array.nbytes)
        held.operand.expand(runtime.address(out))
        np.testing.assert_array_equal(runtime.download(out), array.reshape(-1).view(np.uint8))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "factors"), PAIRS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products(
    runtime: Runtime, shape: tuple[int, int], kind: str, factors: str, form: str
) -> None:
    """Errors are those of rounding; a second run gives the same."""
    rng, dtype = np.random.default_rng(1), FACTORS[factors]
    weights, bias = weights_of(kind, shape), rng.normal(0, 0.1, shape[0]).astype(dtype)
    scale = None if kind == "bf16" else rng.uniform(0.01, 0.1, shape[0]).astype(np.float32)
    held, factor = Held(runtime, weights, form), 1 if scale is None else scale
    for batch in BATCHES:
        x = rng.normal(0, 1, (batch, shape[1])).astype(dtype)
        exact = x.astype(np.float64) @ weights.astype(np.float64).T * factor + bias.astype(
            np.float64
        )
        summed = x.astype(np.float32) @ weights.astype(np.float32).T * factor + bias.astype(
            np.float32
        )
        usual = summed.astype(dtype).astype(np.float64) - exact
        for n_parts in (None, 1, 3):
            y = multiply(runtime, x, held, bias, scale, n_parts)
            assert np.linalg.norm(y.astype(np.float64) - exact) <= 1.5 * np.linalg.norm(usual)
            np.testing.assert_array_equal(
                multiply(runtime, x, held, bias, scale, n_parts).view(np.uint16), y.view(np.uint16)
            )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "factors"), PAIRS)
def test_every_weight_is_exact(runtime: Runtime, kind: str, factors: str, form: str) -> None:
    """Times ones and zeros, all bytes come out as they are, subnormals too."""
    if kind == "bf16":
        weights = words_of("gaussian", (64, 1088)).view(ml_dtypes.bfloat16)
    else:
        values = np.arange(256, dtype=np.uint8).view(KINDS[kind])
        weights = np.resize(values[np.isfinite(values.astype(np.float32))], (64, 1088))
        if form == "rans":
            weights = np.where(
                np.random.default_rng(0).random(weights.shape) < 0.8, values[1], weights
            )
    held, x = Held(runtime, weights, form), np.zeros((64, 1088), FACTORS[factors])
    x[np.arange(64), 1000 + np.arange(64)] = 1
    y = multiply(runtime, x, held, np.zeros(64, x.dtype))
    np.testing.assert_array_equal(y.astype(np.float32), weights[:, 1000:1064].T.astype(np.float32))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "factors"), PAIRS)
def test_subnormal(runtime: Runtime, kind: str, factors: str, form: str) -> None:
    """Weights, activations, scales and results below the least normal number are not taken for 0.
    All here is exact.
    """
    rng, shape, dtype = np.random.default_rng(5), (64, 1088), FACTORS[factors]
    exponents = {
        "bf16": range(-6, 7),
        "int8": range(7),
        "e4m3": range(-9, 8),
        "e5m2": range(-16, 15),
    }[kind]
    powers = np.array([2.0**e for e in exponents]).astype(KINDS[kind])
    weights = np.where(
        rng.random(shape) < (0.8 if form == "rans" else 0), powers[0], rng.choice(powers, shape)
    )
    weights *= rng.choice([-1, 1], shape).astype(weights.dtype)
    held = Held(runtime, weights, form)
    x = np.zeros(shape, dtype)
    nothing = np.zeros(shape[0], dtype)
    rows, cols = np.arange(64), 1000 + np.arange(64)
    due = weights[:, cols].T.astype(np.float64)
    # the least normal number, the least at all
    least = {"bf16": (2.0**-126, 2.0**-133), "fp16": (2.0**-14, 2.0**-24)}[factors]
    for small in least:
        x[rows, cols] = small
        np.testing.assert_array_equal(
            multiply(runtime, x, held, nothing), (due * small).astype(np.float32).astype(dtype)
        )
    if kind != "bf16":
        x[rows, cols] = 1
        scale = np.full(shape[0], 2.0 ** (-130 if factors == "bf16" else -20), np.float32)
        np.testing.assert_array_equal(
            multiply(runtime, x, held, nothing, scale),
            (due * scale).astype(np.float32).astype(dtype),
        )


@pytest.mark.parametrize("form", FORMS)
def test_not_finite(runtime: Runtime, form: str) -> None:
    shape = SHAPES[-1]
    words = words_of("gaussian", shape)
    x = np.random.default_rng(2).normal(0, 1, (9, shape[1])).astype(ml_dtypes.bfloat16)
    words[3, 5], words[20, 64], words[22, 7], words[22, 9] = 0x7F80, 0x7FC0, 0x7F80, 0xFF80
    words[30, 11], words[31, 11], words[32, 11] = 0x7000, 0xF000, 0
    x[4, 11], x[6, 100] = np.inf, np.nan
    weights = words.view(ml_dtypes.bfloat16)
    with np.errstate(invalid="ignore"):
        plain = np.stack(
            [
                (row.astype(np.float32) * weights.astype(np.float32)).sum(1, dtype=np.float32)
                for row in x
            ]
        )
    for n_parts in (1, 2):
        y = multiply(
            runtime, x, Held(runtime, weights, form), np.zeros(shape[0], x.dtype), None, n_parts
        ).astype(np.float32)
        for test in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(test(y), test(plain))
