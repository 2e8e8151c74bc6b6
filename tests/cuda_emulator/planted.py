"""The kernels of planted.cu: what each computes without its fault, and a command that runs some:
``python -m cuda_emulator.planted``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import CANARY, EmulatedRuntime

U32s = NDArray[np.uint32]

SOURCE = Path(__file__).with_name("planted.cu")
KERNELS = tuple(re.findall(r"^KERNEL (\w+)\(", SOURCE.read_text(), re.MULTILINE))
BLOCK = 128
N = 5 * BLOCK
INPUT: U32s = np.random.default_rng(4).integers(0, 1 << 32, N, dtype=np.uint32)


def _votes(x: U32s) -> U32s:
    odd = (x.reshape(-1, 32) & 1) << np.arange(32, dtype=np.uint32)
    return np.repeat(odd.sum(1, dtype=np.uint32), 32)


def _four_passes(x: U32s) -> U32s:
    for _ in range(4):
        x = x + x[np.arange(N) ^ 64]
    return x


def _sum_at_start(x: U32s) -> U32s:
    out = np.full(N * 4, CANARY, np.uint8).view(np.uint32)
    out[:1] += x.sum(dtype=np.uint32)
    return out


_EXPECTED: dict[str, Callable[[U32s], U32s]] = {
    "left_over_shared": lambda x: np.repeat(x.reshape(-1, BLOCK).sum(1, dtype=np.uint32), BLOCK),
    "missing_syncthreads": lambda x: x[np.arange(N) ^ 64],
    "missing_second_syncthreads": _four_passes,
    "missing_syncwarp": lambda x: x[np.arange(N) ^ 1],
    "race_of_warps": lambda x: np.repeat(x[::BLOCK], BLOCK),
    "lost_update": _sum_at_start,
    "ballot_as_barrier": lambda x: x[np.arange(N) ^ 1],
    "divergent_ballot": _votes,
    "other_collective": lambda x: np.repeat(x[3::32], 32),
    "part_of_warp": _votes,
    "early_exit": _votes,
}


def expected(kernel: str) -> U32s:
    """What a kernel computes without its fault."""
    return _EXPECTED[kernel](INPUT) if kernel in _EXPECTED else INPUT


def run(kernel: str, fault: bool, **options: Any) -> U32s:
    """What a kernel computes, on a runtime with these options."""
    runtime = EmulatedRuntime(extra={"planted": (SOURCE, KERNELS)}, **options)
    out = runtime.empty(INPUT.nbytes)
    runtime.launch(
        kernel, N // BLOCK, BLOCK, runtime.upload(INPUT), out, np.uint32(N), np.uint32(fault)
    )
    return runtime.download(out).view(np.uint32)


if __name__ == "__main__":
    fault, sanitize = sys.argv[1] == "fault", sys.argv[2] == "sanitize"
    for kernel in sys.argv[3:]:
        print(
            kernel,
            "right"
            if np.array_equal(run(kernel, fault, sanitize=sanitize), expected(kernel))
            else "wrong",
        )
