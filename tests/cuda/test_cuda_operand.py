"""Operands: what the host says of them, and decoding them, on the CPU, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from cuda_cases import EACH_RUNTIME, Array, Memory, address, check_sanitized
from cuda_emulator import EmulatedRuntime
from operand_cases import FORMS, KINDS, damaged_operand, operand_of, weights_of, words_of

import wcodec
from wcodec.cuda.operand import RECORD, Operand, kernel_problem, records_of
from wcodec.files.file import File
from wcodec.planner.options import EncodeOptions

SHAPES = [
    (1, 1),
    (7, 16),
    (16, 7),
    (17, 33),
    (100, 31),
    (16, 1024),
    (33, 1056),
    (8, 2080),
    (9, 1030),
    (24, 3072),
]


@pytest.fixture(params=EACH_RUNTIME)
def runtime(request: pytest.FixtureRequest) -> EmulatedRuntime:
    return EmulatedRuntime(**request.param)


def check(runtime: EmulatedRuntime, array: Array, form: str, at_end: bool = True) -> Operand:
    """The words come back, wherever they are to go."""
    memory = Memory(at_end)
    weight = operand_of(runtime, array, form, memory)
    out = memory.room(array.nbytes)
    weight.expand(address(out))
    memory.check()
    np.testing.assert_array_equal(out, np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return weight


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_expand(runtime: EmulatedRuntime, kind: str, form: str) -> None:
    coded = [
        check(runtime, weights_of(kind, shape, i), form, i % 2 == 0).coded
        for i, shape in enumerate(SHAPES)
    ]
    assert any(coded) == (form == "rans")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["specials", "high", "tiny"])
def test_windows(kind: str, form: str) -> None:
    for shape in [(16, 1024), (9, 1057)]:
        check(EmulatedRuntime(), words_of(kind, shape, 3).view(ml_dtypes.bfloat16), form)


def test_every_byte() -> None:
    for kind in ("int8", "e4m3", "e5m2"):
        every = (
            np.random.default_rng(1)
            .permutation(np.arange(4096) % 256)
            .astype(np.uint8)
            .reshape(32, 128)
        )
        check(EmulatedRuntime(), every.view(KINDS[kind]), "fixed")


def test_any_address() -> None:
    """Words go to any multiple of a word."""
    runtime = EmulatedRuntime()
    for kind, step in (("bf16", 2), ("int8", 1)):
        array = weights_of(kind, (9, 96))
        weight = operand_of(runtime, array, "fixed", memory := Memory())
        expected = array.reshape(-1).view(np.uint8)
        for offset in (0, step, 4 * step, 8 * step):
            out = memory.room(offset + array.nbytes)
            weight.expand(address(out) + offset)
            np.testing.assert_array_equal(out[offset:], expected)


def test_records() -> None:
    """Where planes are, whether plane 0 is coded, the base, and how many patches there are."""
    array = words_of("specials", (20, 1100)).view(ml_dtypes.bfloat16)
    index = File(
        np.frombuffer(wcodec.encode(array, EncodeOptions(operand="rans")), np.uint8), None
    ).index
    (t,) = index.tensors
    plan = t.plan(index.tables)
    got = records_of(plan)
    assert (got.dtype, got.size) == (RECORD, 6)
    np.testing.assert_array_equal(got["codes"] * 16, plan.plane_offsets[0])
    np.testing.assert_array_equal(got["lower"] * 16, plan.plane_offsets[1])
    np.testing.assert_array_equal(got["patches"] * 16, plan.patch_offsets)
    np.testing.assert_array_equal(got["info"] & 255, t.segments.base)
    np.testing.assert_array_equal(got["info"] >> 8 & 255, [1, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(got["info"] >> 16, t.segments.n_patches)
    assert t.segments.n_patches.sum() > 20


def test_memory_beside_the_payload() -> None:
    weight = operand_of(EmulatedRuntime(), weights_of("bf16", (64, 2048)), "fixed", Memory())
    assert (weight.nbytes, weight.coded) == (16 * 16, False)
    weight = operand_of(EmulatedRuntime(), weights_of("bf16", (64, 2048)), "rans", Memory())
    assert (weight.nbytes, weight.coded) == (16 * 16 + 16384, True)


def test_too_large() -> None:
    """Kernels number 4-byte words of a payload, rows and columns in 32 bits."""
    (t,) = File(
        wcodec.encode(weights_of("bf16", (8, 1024)), EncodeOptions(operand="fixed")), None
    ).index.tensors
    assert kernel_problem(replace(t, payload_nbytes=(1 << 34) - 16)) is None
    assert kernel_problem(replace(t, payload_nbytes=1 << 34)) == "it is too large"
    assert kernel_problem(replace(t, shape=(8, (1 << 31) - 1))) is None
    assert kernel_problem(replace(t, shape=(8, 1 << 31))) == "it is too large"


def test_no_operand() -> None:
    index = File(np.frombuffer(wcodec.encode(weights_of("bf16", (64, 2048))), np.uint8), None).index
    with pytest.raises(ValueError, match="no operand: segments of 64 x 512"):
        Operand(EmulatedRuntime(), index.tensors[0], index.tables, 0)


def damaged(runtime: EmulatedRuntime, kind: str, form: str, seed: int) -> None:
    """Whatever a payload holds, nothing is touched that is not the operand's, and kernels end."""
    array, memory = weights_of(kind, (17, 1090), 1), Memory(seed % 2 == 0)
    weight = damaged_operand(runtime, array, form, seed, memory)
    weight.expand(address(memory.room(array.nbytes)))
    memory.check()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["bf16", "e4m3"])
def test_damaged(kind: str, form: str) -> None:
    for seed in range(12):
        damaged(EmulatedRuntime(order="shuffled", seed=seed), kind, form, seed)


def test_sanitized() -> None:
    check_sanitized(__file__)


if __name__ == "__main__":
    runtime = EmulatedRuntime.sanitized()
    for form in FORMS:
        for kind in KINDS:
            for i, shape in enumerate([(1, 1), (7, 64), (17, 33), (9, 1056)]):
                check(runtime, weights_of(kind, shape, i), form)
        for seed in range(6):
            damaged(runtime, "bf16", form, seed)
    print("OK")
