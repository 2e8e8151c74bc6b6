"""Matrices as operands in the emulator's memory."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from cuda_cases import Array, Memory, address
from cuda_emulator import EmulatedRuntime

import wcodec
from wcodec.cuda.linear import linear, plan_linear
from wcodec.cuda.operand import Operand
from wcodec.files.file import File
from wcodec.planner.options import EncodeOptions

FORMS = ["fixed", "rans"]
KINDS = {
    "bf16": ml_dtypes.bfloat16,
    "int8": np.int8,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}
FACTORS: dict[str, Any] = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16}
#: that kernels multiply
PAIRS = [
    (kind, factors) for kind in KINDS for factors in FACTORS if (kind, factors) != ("bf16", "fp16")
]
SPECIALS = np.array(
    [
        0x0000,
        0x8000,
        0x0001,
        0x807F,
        0x7F80,
        0xFF80,
        0x7FC0,
        0xFFC1,
        0x7F81,
        0x7F7F,
        0xFF7F,
        0x0080,
        0x3F80,
    ],
    np.uint16,
)


def bf16_of(values: Array) -> Array:
    """Words of the nearest bf16, of values that are finite."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def floats(words: Array) -> Array:
    """Values of bf16 words, float32."""
    return (words.astype(np.uint32) << 16).view(np.float32)


def words_of(kind: str, shape: tuple[int, int], seed: int = 0) -> Array:
    """A matrix of bf16 words that an encoder stores in pairs:
    at most one word in 100 is outside of a window.
    """
    rng = np.random.default_rng([seed, *shape])
    gaussian = bf16_of(rng.normal(0, 0.02, shape))
    if kind == "specials":
        return np.where(rng.random(shape) < 0.005, rng.choice(SPECIALS, shape), gaussian).astype(
            np.uint16
        )
    if kind == "high":  # one window, at the very top
        return (gaussian & 0x807F | rng.integers(240, 255, shape, dtype=np.uint16) << 7).astype(
            np.uint16
        )
    if kind == "tiny":  # subnormals, and what is next to them
        return (gaussian & 0x807F | rng.integers(0, 4, shape, dtype=np.uint16) << 7).astype(
            np.uint16
        )
    return gaussian


def weights_of(kind: str, shape: tuple[int, int], seed: int = 0) -> Array:
    """Gaussian weights of a kind."""
    if kind == "bf16":
        return words_of("specials" if seed else "gaussian", shape, seed).view(ml_dtypes.bfloat16)
    values = np.random.default_rng([seed, *shape]).normal(0, 1, shape)
    return (
        np.clip(np.round(values * 40), -128, 127).astype(np.int8)
        if kind == "int8"
        else values.astype(KINDS[kind])
    )


def operand_of(runtime: EmulatedRuntime, array: Array, form: str, memory: Memory) -> Operand:
    """An operand whose payload can only be read, and stands against memory that cannot be."""
    data = np.frombuffer(wcodec.encode(array, EncodeOptions(operand=form)), np.uint8)
    index = File(data, None).index
    (t,) = index.tensors
    payload = memory.put(data[t.payload_offset : t.payload_offset + t.payload_nbytes])
    assert address(payload) % 16 == 0
    return Operand(runtime, t, index.tables, address(payload))


def multiply(
    runtime: EmulatedRuntime,
    x: Array,
    weights: Array,
    form: str = "fixed",
    *,
    bias: Array | None = None,
    scale: Array | None = None,
    n_parts: int | None = None,
    n_slices: int | None = None,
    at_end: bool = True,
) -> Array:
    """y, of the type of `x`. All inputs can only be read,
    and nothing is touched around any buffer.
    """
    memory, rows = Memory(at_end), len(weights)
    weight = operand_of(runtime, weights, form, memory)
    plan = plan_linear(weight.shape, weight.coded, len(x), 4, n_parts, n_slices)
    workspace, y = memory.room(plan.workspace_nbytes), memory.room(2 * len(x) * rows)
    ends = {
        name: address(memory.put(given))
        for name, given in (("bias", bias), ("scale", scale))
        if given is not None
    }
    factors = "fp16" if x.dtype == np.float16 else "bf16"
    linear(
        address(memory.put(x)),
        len(x),
        weight,
        address(y),
        factors=factors,
        plan=plan,
        workspace=address(workspace),
        **ends,
    )
    memory.check()
    return y.view(x.dtype).reshape(len(x), rows).copy()


def damaged_operand(
    runtime: EmulatedRuntime, array: Array, form: str, seed: int, memory: Memory
) -> Operand:
    """An operand of whose payload some bytes are others, or all;
    of some seeds, patches do not ascend, or are far off.
    """
    rng = np.random.default_rng(seed)
    data = np.frombuffer(wcodec.encode(array, EncodeOptions(operand=form)), np.uint8).copy()
    index = File(data, None).index
    (t,) = index.tensors
    payload = data[t.payload_offset : t.payload_offset + t.payload_nbytes]
    hit = rng.random(payload.size) < (1, 0.02)[seed % 2]
    payload[hit] = rng.integers(0, 256, int(hit.sum()))
    if seed % 3 == 0:
        plan = t.plan(index.tables)
        for a, n in zip(plan.patch_offsets, t.segments.n_patches, strict=True):
            payload[a : a + 4 * n] = rng.choice([0, 255], 4 * n)
    return Operand(runtime, t, index.tables, address(memory.put(payload)))
