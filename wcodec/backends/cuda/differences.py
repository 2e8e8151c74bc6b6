"""Differences of words from a base, and back, by ``kernels/difference.cu``. Spec: R12.5."""

from __future__ import annotations

from typing import Final

import numpy as np

from wcodec.backends.cuda.runtime import Runtime
from wcodec.reference.differences import Difference

THREADS: Final = 256
UNIT_NBYTES: Final = 16
MOST_BLOCKS: Final = 1 << 13  #: of several units a thread, beyond as many


def subtract_base(
    runtime: Runtime,
    words: int,
    base: int,
    out: int,
    nbytes: int,
    word_nbytes: int,
    difference: Difference,
) -> None:
    """Queue the differences of `nbytes` bytes of words from those of a base. Faster if all
    addresses are as far from a multiple of 16.
    """
    _launch(runtime, "subtract_base", words, base, out, nbytes, word_nbytes, difference)


def add_base(
    runtime: Runtime, coded: int, base: int, nbytes: int, word_nbytes: int, difference: Difference
) -> None:
    """Queue the inverse of `subtract_base`, in place."""
    _launch(runtime, "add_base", coded, base, coded, nbytes, word_nbytes, difference)


def _launch(
    runtime: Runtime,
    kernel: str,
    words: int,
    base: int,
    out: int,
    nbytes: int,
    word_nbytes: int,
    difference: Difference,
) -> None:
    if nbytes == 0:
        return
    n_units = -(-(out % UNIT_NBYTES + nbytes) // UNIT_NBYTES)
    blocks = min(-(-n_units // THREADS), MOST_BLOCKS)
    sizes = np.uint64(nbytes), np.uint32(word_nbytes), np.uint32(int(difference))
    runtime.launch(
        kernel, blocks, THREADS, np.uint64(words), np.uint64(base), np.uint64(out), *sizes
    )
