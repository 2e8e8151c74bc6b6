"""The fixed-rate form of bf16 weights: packed and unpacked on the CPU, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases import RUNTIMES, Array, Memory, address, check_sanitized, runtime_id
from cuda_emulator import EmulatedRuntime

from wcodec.cuda.fixed import MAX_BASE, TILE_NBYTES, FixedWeight, choose_base

SIDES = [1, 7, 16, 17, 33, 64, 100]
SHAPES = [(n, k) for n in SIDES for k in SIDES]
KINDS = ["random", "gaussian", "zeros", "specials", "patches", "high", "tiny"]
SPECIALS = np.array([0x0000, 0x8000, 0x0001, 0x807F, 0x7F80, 0xFF80, 0x7FC0, 0xFFC1, 0x7F81, 0x7F7F, 0xFF7F, 0x0080, 0x3F80], np.uint16)


@pytest.fixture(params=RUNTIMES, ids=runtime_id)
def runtime(request: pytest.FixtureRequest) -> EmulatedRuntime:
    return EmulatedRuntime(**request.param)


def bf16_of(values: Array) -> Array:
    """Words of the nearest bf16, of values that are finite."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def words_of(kind: str, shape: tuple[int, int], seed: int = 0) -> Array:
    """A matrix of bf16 words."""
    rng = np.random.default_rng([seed, *shape])
    gaussian = bf16_of(rng.normal(0, 0.02, shape))
    if kind == "random":
        return rng.integers(0, 1 << 16, shape, dtype=np.uint16)
    if kind == "zeros":
        return np.where(rng.random(shape) < 0.5, gaussian & 0x8000, 0).astype(np.uint16)
    if kind == "specials":
        return rng.choice(SPECIALS, shape)
    if kind == "patches":
        return np.where(rng.random(shape) < 0.1, rng.choice(SPECIALS, shape), gaussian).astype(np.uint16)
    if kind == "high":  # beyond all windows
        return (gaussian & 0x807F | rng.integers(200, 256, shape, dtype=np.uint16) << 7).astype(np.uint16)
    if kind == "tiny":  # subnormals, and what is next to them
        return (gaussian & 0x807F | rng.integers(0, 4, shape, dtype=np.uint16) << 7).astype(np.uint16)
    return gaussian


def expected_patches(words: Array, base: int) -> tuple[Array, Array]:
    """Places and fp32 bits of the weights that have no code, and are no zeros."""
    exponents = words >> 7 & 255
    outside = ((words & 0x7FFF) != 0) & ((exponents <= base) | (exponents > base + 15))
    return np.argwhere(outside), words[outside].astype(np.uint32) << 16


def check(runtime: EmulatedRuntime, words: Array, at_end: bool = True) -> FixedWeight:
    """The words come back, and the list of patches is as it should be."""
    memory = Memory(at_end)
    weight = FixedWeight.from_words(runtime, address(memory.put(words)), (words.shape[0], words.shape[1]))
    places, values = expected_patches(words, weight.base)
    assert weight.n_patches == len(places)
    listed = runtime.download(weight.patches).view(np.uint32).reshape(-1, 2)[: weight.n_patches]
    starts = runtime.download(weight.starts)
    np.testing.assert_array_equal(starts, np.searchsorted(places[:, 0], np.arange(words.shape[0] + 1)))
    np.testing.assert_array_equal(listed, np.stack([places[:, 1].astype(np.uint32), values], 1))
    out = memory.room(words.nbytes)
    weight.unpack(address(out))
    memory.check()
    np.testing.assert_array_equal(out.view(np.uint16).reshape(words.shape), words)
    return weight


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(runtime: EmulatedRuntime, kind: str) -> None:
    for i, shape in enumerate(SHAPES):
        check(runtime, words_of(kind, shape), i % 2 == 0)


def test_every_word(runtime: EmulatedRuntime) -> None:
    check(runtime, np.random.default_rng(1).permutation(1 << 16).astype(np.uint16).reshape(256, 256))


def test_size() -> None:
    runtime, words = EmulatedRuntime(), words_of("gaussian", (100, 100))
    weight = check(runtime, words)
    assert weight.nbytes == 7 * 2 * TILE_NBYTES + 4 * 101 + 8 * weight.n_patches
    assert TILE_NBYTES == 1536
    assert 0 < weight.n_patches < 20
    assert check(runtime, words & 0x8000).n_patches == 0


def lane_words(runtime: EmulatedRuntime, words: Array) -> tuple[Array, int]:
    """Words of the first tile of a matrix, by lane, and the base."""
    weight = FixedWeight.from_words(runtime, address(words), (words.shape[0], words.shape[1]))
    vectors = runtime.download(weight.tiles)[:TILE_NBYTES].view(np.uint32).reshape(3, 32, 4)
    return vectors.transpose(1, 0, 2).reshape(32, 12), weight.base


def test_layout() -> None:
    """One weight after another in a tile of zeros is where the description says: independent of the kernels' own inverse."""
    runtime = EmulatedRuntime()
    for row, col in [(0, 0), (3, 1), (8, 0), (15, 63), (5, 2), (13, 6), (2, 11), (9, 44), (12, 31), (7, 32), (10, 55)]:
        words = np.zeros((16, 64), np.uint16)
        words[row, col] = 0x8000 | 0x79 << 7 | 0x55
        got, base = lane_words(runtime, words)
        assert base == 0x79 - 15
        fields = 0x8000 | 15 << 7 | 0x55
        lane, fragment = 4 * (row % 8) + col % 32 // 8, 2 * (col // 32) + col % 8 // 4
        pair, half = row // 8 + 2 * (col % 4 // 2), col % 2
        expected = np.zeros((32, 12), np.uint32)
        if pair < 3:
            expected[lane, 3 * fragment + pair] = fields << 16 * half
        else:
            whole = fields << 16 * half
            parts = whole & 0x80078007, whole & 0x00780078, whole & 0x07800780
            rotated = (parts[0] >> 4 | parts[0] << 28) & 0xFFFFFFFF
            expected[lane, 3 * fragment : 3 * fragment + 3] = rotated, parts[1] << 8, parts[2] << 4
        np.testing.assert_array_equal(got, expected)


def test_base() -> None:
    counts = np.zeros(256, np.uint64)
    assert choose_base(counts) == 0
    counts[[100, 114]] = 5
    assert choose_base(counts) == 99
    counts[115] = 6
    assert choose_base(counts) == 100
    counts[:] = 0
    counts[255] = 1
    assert choose_base(counts) == 0
    counts[MAX_BASE + 15] = 1
    assert choose_base(counts) == MAX_BASE
    counts[0] = 1 << 40  # zeros have a code anyway
    assert choose_base(counts) == MAX_BASE


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1 << 31, 1), (1, 1 << 31)])
def test_no_such_matrix(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="has no fixed-rate form"):
        FixedWeight.from_words(EmulatedRuntime(), 0, shape)


def test_sanitized() -> None:
    check_sanitized(__file__)


if __name__ == "__main__":
    for kind in KINDS:
        for shape in [(1, 1), (7, 64), (17, 33), (33, 100), (64, 16)]:
            check(EmulatedRuntime.sanitized(), words_of(kind, shape))
    print("OK")
