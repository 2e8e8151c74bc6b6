"""CRC-32 of device memory: the kernels, on the CPU, against zlib."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from cuda_cases import check_sanitized
from cuda_emulator import CANARY, ORDERS, EmulatedRuntime
from fences import Fence
from numpy.typing import NDArray

from wcodec.backends.cuda import checksums
from wcodec.backends.cuda.checksums import POWERS, RANGE, ROW_NBYTES, PendingChecksums, crc32_ranges
from wcodec.reference.checksums import crc32_combine

GUARD = 256
PART_SIZES = [ROW_NBYTES, 33 * ROW_NBYTES, checksums.LEAST_PART_NBYTES, 1 << 16]


class GuardedRuntime(EmulatedRuntime):
    """Scratch and results stand between canaries."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._blocks: list[NDArray[np.uint8]] = []

    def empty(self, nbytes: int) -> NDArray[np.uint8]:
        block = super().empty(nbytes + 2 * GUARD)
        self._blocks.append(block)
        return block[GUARD : GUARD + nbytes]

    @property
    def whole(self) -> bool:
        """Whether all canaries are as they were."""
        return bool(self._blocks) and all(
            (b[:GUARD] == CANARY).all() and (b[-GUARD:] == CANARY).all() for b in self._blocks
        )


def check(
    runtime: EmulatedRuntime,
    data: Any,
    starts: Sequence[int] | NDArray[Any],
    sizes: Sequence[int] | NDArray[Any],
) -> None:
    """Compare the CRC-32s of ranges of `data`, which is on the device, with zlib's."""
    starts = np.asarray(starts, np.int64)
    sizes = np.asarray(sizes, np.int64)
    before = zlib.crc32(data)
    out = crc32_ranges(runtime, (starts + runtime.address(data)).astype(np.uint64), sizes).result()
    want = np.array(
        [zlib.crc32(data[a : a + n]) for a, n in zip(starts, sizes, strict=True)], np.uint32
    )
    assert out.dtype == np.uint32
    wrong = np.flatnonzero(out != want)
    assert not wrong.size, [(int(starts[k]) % 128, int(sizes[k])) for k in wrong[:8]]
    assert zlib.crc32(data) == before


def random_bytes(n: int) -> NDArray[np.uint8]:
    return np.random.default_rng(n).integers(0, 256, n, np.uint8)


@pytest.fixture(params=ORDERS, ids=lambda o: f"{o[0]}-{o[1]}")
def runtime(request: pytest.FixtureRequest) -> EmulatedRuntime:
    order, seed = request.param
    return GuardedRuntime(order=order, seed=seed)


@pytest.fixture
def part_nbytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Size of parts, whatever there is to do."""
    size: int = request.param
    monkeypatch.setattr(checksums, "part_nbytes_of", lambda total: size)
    return size


def test_every_small_size_at_odd_addresses(runtime: GuardedRuntime) -> None:
    sizes = np.arange(301)
    data = runtime.upload(random_bytes(1024))
    for offset in (0, 1, 3, 64, 125, 127):
        check(runtime, data, np.full(301, offset), sizes)
    assert runtime.whole


@pytest.mark.parametrize("part_nbytes", PART_SIZES, indirect=True)
def test_sizes_around_rows_blocks_and_parts(runtime: GuardedRuntime, part_nbytes: int) -> None:
    """Rows are of 128 bytes, blocks of 32 rows behind the first 1 to 32, parts of `part_nbytes`."""
    edges = {k * ROW_NBYTES for k in (1, 2, 31, 32, 33, 34, 64, 65, 66)} | {
        part_nbytes,
        2 * part_nbytes,
    }
    sizes = sorted({edge + d for edge in edges for d in (-5, -1, 0, 1, 4) if edge + d <= 70_000})
    data = runtime.upload(random_bytes(80_000))
    for offset in (0, 2, 119):
        check(runtime, data, np.full(len(sizes), offset), sizes)
    assert runtime.whole


@pytest.mark.parametrize("part_nbytes", PART_SIZES, indirect=True)
def test_random_ranges(part_nbytes: int) -> None:
    rng, runtime = np.random.default_rng(part_nbytes), GuardedRuntime(order="shuffled", seed=3)
    data = runtime.upload(random_bytes(100_000))
    starts = rng.integers(0, 100_000, 200)
    sizes = np.minimum(
        rng.integers(0, 4000, 200) ** rng.integers(0, 2, 200) * rng.integers(0, 30, 200),
        100_000 - starts,
    )
    check(runtime, data, starts, sizes)
    assert runtime.whole


def test_many_records(runtime: GuardedRuntime) -> None:
    sizes = 16 * np.random.default_rng(0).integers(1, 40, 3000)
    starts = np.cumsum(sizes) - sizes
    check(runtime, runtime.upload(random_bytes(int(sizes.sum()))), starts, sizes)
    assert runtime.whole


def test_large_ranges_take_several_parts_a_warp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "MOST_BLOCKS", 3)
    monkeypatch.setattr(checksums, "ENOUGH_PARTS", 30)
    runtime = GuardedRuntime()
    data = runtime.upload(random_bytes(4_000_003))
    check(runtime, data, [0, 1, 5, 1_000_002], [4_000_003, 4_000_000, 70_000, 2_999_999])
    assert runtime.whole


@pytest.mark.parametrize("value", [0, 255])
def test_uniform_bytes(value: int) -> None:
    runtime = GuardedRuntime()
    check(runtime, runtime.upload(np.full(9000, value, np.uint8)), [0, 0, 1, 100], [9000, 4, 3, 0])


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize(
    "nbytes", [1, 2, 3, 4, 5, 15, 127, 128, 129, 4095, 4096, 4099, 8192, 12_345]
)
def test_nothing_is_read_outside(nbytes: int, at_end: bool) -> None:
    fence = Fence(nbytes, at_end)
    fence.bytes[:] = random_bytes(nbytes)
    fence.freeze()
    check(GuardedRuntime(), fence.bytes, [0], [nbytes])


def test_of_nothing() -> None:
    runtime = GuardedRuntime()
    none = crc32_ranges(runtime, np.zeros(0, np.uint64), np.zeros(0, np.int64)).result()
    assert (none.shape, none.dtype) == ((0,), np.uint32)
    assert crc32_ranges(
        runtime, np.array([1, 0], np.uint64), np.zeros(2, np.int64)
    ).result().tolist() == [0, 0]


def test_computed_first_fetched_later() -> None:
    runtime = GuardedRuntime()
    data = runtime.upload(np.frombuffer(b"123456789", np.uint8))
    pending = crc32_ranges(runtime, np.array([runtime.address(data)], np.uint64), np.array([9]))
    assert isinstance(pending, PendingChecksums)
    assert pending.device.shape == (1,)
    data[:] = 0
    assert pending.result().tolist() == [0xCBF43926]  # the check value of CRC-32
    assert pending.result().tolist() == [0xCBF43926]


def test_ranges_larger_than_any_here() -> None:
    """crc32_join on shares of a part of ranges of terabytes."""
    runtime, rng = GuardedRuntime(), np.random.default_rng(5)
    nbytes = np.array([1 << 44, (1 << 40) + 12_345, 3, (1 << 32) - 1, 1 << 29], np.uint64)
    ranges = np.zeros(5, RANGE)
    ranges["nbytes"] = nbytes
    shares = np.zeros(40, [("behind", "<u8"), ("remainder", "<u4"), ("range", "<u4")])
    shares["range"] = rng.integers(0, 5, 40)
    shares["remainder"] = rng.integers(0, 1 << 32, 40)
    shares["behind"] = ROW_NBYTES + rng.integers(0, nbytes[shares["range"]] + np.uint64(1))
    out = runtime.upload(np.zeros(5, np.uint32))
    device = [
        runtime.upload(a)
        for a in (
            checksums.powers_of_x8().view(np.uint8),
            ranges.view(np.uint8),
            shares.view(np.uint8),
        )
    ]
    runtime.launch("crc32_join", 1, checksums.THREADS, *device, out, np.uint32(5), np.uint32(40))
    want = [crc32_combine(0xFFFFFFFF, 0, int(n)) ^ 0xFFFFFFFF for n in nbytes]
    for behind, remainder, k in shares.tolist():
        want[k] ^= crc32_combine(remainder, 0, behind - ROW_NBYTES + 4)
    assert out.tolist() == want


def test_powers() -> None:
    powers = checksums.powers_of_x8()[0]
    assert powers.nbytes == POWERS.itemsize == 4352
    x = 0x40000000  # x^1, of bits reflected
    for k in range(32):
        assert powers["doubling"][k] == x
        x = _product(x, x)
    assert x == 0x40000000  # x^(2^32), for x^(2^32 - 1) is 1


def _product(a: int, b: int) -> int:
    """Modulo the CRC's polynomial, bit by bit."""
    out = 0
    for i in range(32):
        out = out >> 1 ^ (out & 1) * 0xEDB88320 ^ (a >> i & 1) * b
    return out


def test_sanitizers_find_nothing() -> None:
    check_sanitized(__file__)


def main() -> None:
    """Ranges in memory that ends where they do, with sanitizers on."""
    runtime = EmulatedRuntime.sanitized()
    for nbytes in [*range(1, 140, 3), 4096, 4097, 8191, 70_001]:
        check(
            runtime,
            runtime.upload(random_bytes(nbytes)),
            [0, nbytes // 2],
            [nbytes, nbytes - nbytes // 2],
        )
    print("OK")


if __name__ == "__main__":
    main()
