"""CRC-32s of ranges of device memory, by ``kernels/checksum.cu``. Spec: chapter 11."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.cuda.runtime import Runtime
from wcodec.reference.checksums import crc32_combine

# Structures of kernels/checksum.cu.
POWERS: Final = np.dtype(
    [("doubling", "<u4", (32,)), ("of_lane", "<u4", (32,)), ("y", "<u4", (4, 256))]
)
RANGE: Final = np.dtype(
    [("at", "<u8"), ("nbytes", "<u8"), ("first_part", "<u4"), ("n_parts", "<u4")]
)
SHARE_NBYTES: Final = 16

ROW_NBYTES: Final = 128
THREADS: Final = 256
PART_NBYTES: Final = 1 << 16  #: what a warp takes, if enough of these are there
LEAST_PART_NBYTES: Final = 1 << 12
ENOUGH_PARTS: Final = 1 << 13  #: two for each warp that a GPU of some 130 multiprocessors can run
MOST_BLOCKS: Final = 1 << 11  #: of several parts a warp, beyond as many


class PendingChecksums:
    """CRC-32s that a stream has been told to compute.

    Attributes
    ----------
    device
        uint32 of shape (n,), on the device.
    """

    def __init__(self, runtime: Runtime, device: Any, kept: tuple[Any, ...]) -> None:
        self.device = device
        self._runtime, self._kept = runtime, kept

    def result(self) -> NDArray[np.uint32]:
        """Them, on the host; on the stream that computes them."""
        out: NDArray[np.uint32] = self._runtime.download(self.device)
        self._kept = ()
        return out


@cache
def powers_of_x8() -> NDArray[Any]:
    """``Powers``: `crc32_combine` multiplies by powers of x^8."""
    out, one = np.zeros(1, POWERS), 0x80000000
    out["doubling"] = [one >> (1 << k) for k in range(3)] + [
        crc32_combine(one, 0, 1 << k) for k in range(29)
    ]
    out["of_lane"] = [crc32_combine(one, 0, 4 * (31 - lane)) for lane in range(32)]
    y = out["y"].reshape(-1)
    for bit in range(32):
        index = np.arange(256 * (bit // 8), 256 * (bit // 8 + 1))
        y[index[(index >> bit % 8 & 1).astype(bool)]] ^= np.uint32(
            crc32_combine(1 << bit, 0, ROW_NBYTES)
        )
    return out


def part_nbytes_of(total: int) -> int:
    """Large parts cost less; small ones are more."""
    size = PART_NBYTES
    while size > LEAST_PART_NBYTES and total < ENOUGH_PARTS * size:
        size //= 2
    return size


def crc32_records(
    runtime: Runtime, payloads: Sequence[tuple[int, NDArray[np.int64]]]
) -> PendingChecksums:
    """As `crc32_ranges`, of the records of payloads: the address of each, and where its records
    start and the last one ends.
    """
    starts = [offsets[:-1].astype(np.uint64) + np.uint64(address) for address, offsets in payloads]
    return crc32_ranges(
        runtime,
        np.concatenate(starts),
        np.concatenate([np.diff(offsets) for _, offsets in payloads]),
    )


def crc32_ranges(
    runtime: Runtime, addresses: NDArray[np.uint64], sizes: NDArray[np.int64]
) -> PendingChecksums:
    """Compute CRC-32s of device memory on the current stream: of ``sizes[k]`` bytes at
    ``addresses[k]``, any of them.
    """
    ranges = np.zeros(len(addresses), RANGE)
    ranges["at"], ranges["nbytes"] = addresses, sizes
    part_nbytes = part_nbytes_of(int(ranges["nbytes"].sum()))
    in_parts = ranges["nbytes"] + ranges["at"] % ROW_NBYTES  # parts begin with rows
    n_parts = np.where(ranges["nbytes"] > 0, -(-in_parts.astype(np.int64) // part_nbytes), 0)
    ends = np.cumsum(n_parts)
    ranges["first_part"], ranges["n_parts"] = ends - n_parts, n_parts
    n_ranges, total = len(ranges), int(ends[-1]) if len(ranges) else 0

    checksums = runtime.empty(4 * max(n_ranges, 1)).view(np.uint32)[:n_ranges]
    if n_ranges == 0:
        return PendingChecksums(runtime, checksums, ())
    tables = runtime.upload(np.concatenate([powers_of_x8().view(np.uint8), ranges.view(np.uint8)]))
    shares = runtime.empty(SHARE_NBYTES * max(total, 1))
    powers, on_device = tables[: POWERS.itemsize], tables[POWERS.itemsize :]
    counts = np.uint32(n_ranges), np.uint32(total)
    blocks = max(1, min(-(-32 * total // THREADS), MOST_BLOCKS))
    runtime.launch(
        "crc32_parts",
        blocks,
        THREADS,
        powers,
        on_device,
        shares,
        checksums,
        *counts,
        np.uint32(part_nbytes),
    )
    blocks = min(-(-(n_ranges + total) // THREADS), MOST_BLOCKS)
    runtime.launch("crc32_join", blocks, THREADS, powers, on_device, shares, checksums, *counts)
    return PendingChecksums(runtime, checksums, (tables, shares))
