"""Fixed-rate weights and their products on a GPU: ``make gpu-check`` runs it; ``WCODEC_GPU_TESTS=emulated``, on the emulator."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from cuda_emulator import EmulatedRuntime
from test_cuda_fixed import bf16_of, words_of
from test_cuda_linear import floats, make_x

from wcodec.backends.cuda.cupy_runtime import CupyRuntime
from wcodec.backends.cuda.runtime import Runtime
from wcodec.cuda.fixed import FixedWeight
from wcodec.cuda.linear import linear, plan_linear

pytestmark = pytest.mark.gpu

EMULATED = os.environ.get("WCODEC_GPU_TESTS") == "emulated"
SHAPES = [(100, 264), (33, 71)] if EMULATED else [(1024, 4096), (4096, 1000), (777, 2049), (16, 16384), (14336, 512)]
BATCHES = [1, 9, 64] if EMULATED else [1, 2, 5, 8, 9, 16, 17, 32, 33, 63, 64]

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return EmulatedRuntime() if EMULATED else CupyRuntime()


def pack(runtime: Runtime, words: Array) -> FixedWeight:
    there = runtime.upload(words)
    weight = FixedWeight.from_words(runtime, runtime.address(there), (words.shape[0], words.shape[1]))
    runtime.mark().synchronize()
    return weight


def multiply(runtime: Runtime, x: Array, weight: FixedWeight, bias: Array, n_parts: int | None = None) -> Array:
    """Words of y."""
    there, added, y = runtime.upload(x), runtime.upload(bias), runtime.empty(2 * len(x) * weight.shape[0])
    plan = plan_linear(weight.shape, len(x), runtime.n_processors(), n_parts)
    addresses = runtime.address(there), runtime.address(added), runtime.address(y)
    kept = linear(runtime, addresses[0], len(x), weight, addresses[1], addresses[2], plan=plan)
    words = runtime.download(y).view(np.uint16).reshape(len(x), -1)
    del kept
    return words


@pytest.mark.parametrize("kind", ["gaussian", "random", "patches", "specials", "zeros", "tiny"])
def test_round_trip(runtime: Runtime, kind: str) -> None:
    for shape in SHAPES:
        words = words_of(kind, shape)
        weight, out = pack(runtime, words), runtime.empty(words.nbytes)
        weight.unpack(runtime.address(out))
        np.testing.assert_array_equal(runtime.download(out).view(np.uint16).reshape(shape), words)


@pytest.mark.parametrize("shape", SHAPES)
def test_products(runtime: Runtime, shape: tuple[int, int]) -> None:
    """Errors are those of rounding; a second run gives the same."""
    words, bias = words_of("gaussian", shape), bf16_of(np.random.default_rng(1).normal(0, 0.1, shape[0]))
    words[3::7, 5::50] ^= 0x2000  # patches, among them large ones
    weight, values = pack(runtime, words), floats(words).astype(np.float64)
    assert weight.n_patches > 0
    for batch in BATCHES:
        x = make_x(batch, shape[1])
        exact = floats(x).astype(np.float64) @ values.T + floats(bias)
        usual = floats(bf16_of(floats(x) @ floats(words).T + floats(bias))) - exact
        for n_parts in (None, 1, 3):
            y = multiply(runtime, x, weight, bias, n_parts)
            assert np.linalg.norm(floats(y) - exact) <= 1.5 * np.linalg.norm(usual)
            np.testing.assert_array_equal(multiply(runtime, x, weight, bias, n_parts), y)


def test_not_finite(runtime: Runtime) -> None:
    shape = SHAPES[0]
    words, x = words_of("gaussian", shape), make_x(9, shape[1])
    words[3, 5], words[20, 64], words[22, 7], words[22, 9] = 0x7F80, 0x7FC0, 0x7F80, 0xFF80
    words[30, 11], words[31, 11], words[32, 11] = 0x7000, 0xF000, 0
    x[4, 11], x[6, 100] = 0x7F80, 0x7FC0
    with np.errstate(invalid="ignore"):
        plain = np.stack([(floats(row) * floats(words)).sum(1, dtype=np.float32) for row in x])
    for n_parts in (1, 2):
        y = floats(multiply(runtime, x, pack(runtime, words), np.zeros(shape[0], np.uint16), n_parts))
        for test in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(test(y), test(plain))
