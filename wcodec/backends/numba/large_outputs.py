"""How words are stored that no cache holds: past the caches, or through them.

A store to memory through the caches reads the line first. On Zen 4 decoding bf16 takes 0.7 of the
time without that. Whether it is so is timed once for each CPU, in 30 ms, when the first large array
is decoded. Both give the same bytes.
"""

from __future__ import annotations

import ctypes
import time
from functools import cache, partial
from typing import Any, Final

import numpy as np

from wcodec.backends.numba import merge
from wcodec.backends.numba.choices import Choice, Ways, least
from wcodec.backends.numba.ir import STREAMS
from wcodec.backends.numba.kernels import address_of
from wcodec.backends.numba.kinds import KINDS, Kind
from wcodec.backends.numba.merge import MERGE
from wcodec.reference.rans import GROUP

STREAMING, CACHED = NAMES = ("streaming", "cached")
WAYS: Final = Ways("WCODEC_LARGE_OUTPUTS", NAMES, "large_outputs", STREAMS, "streaming stores")
#: Outputs from that size on are large. Of one of 8 MiB, caches hold enough: both take as long.
LARGE_NBYTES: Final = 1 << 24
ROUNDS: Final = 5
MEASURED_NBYTES: Final = 1 << 25  #: of words that are written in a round
_KIND: Final = KINDS.index(Kind(True, 2, "exponent 8"))  #: bf16


@cache
def choice() -> Choice:
    """The one to use; see `Ways.choose`."""
    return WAYS.choose(_measure)


def is_streamed(nbytes: int) -> bool:
    """Whether an output of that size is stored past the caches; named, it is whatever its size.

    Where there is no memory to measure it, it is not, and the next call measures.
    """
    named = WAYS.named()
    if named or nbytes < LARGE_NBYTES:
        return named == STREAMING
    try:
        return choice().name == STREAMING
    except MemoryError:
        return False


def _measure() -> tuple[float, float]:
    """Seconds that each takes to merge words of bf16."""
    words, planes = (np.ones(MEASURED_NBYTES // part, np.uint8) for part in (1, 2))
    n_groups, lanes = MEASURED_NBYTES // (4 * GROUP), np.zeros(merge.LANES_NBYTES, np.uint8)
    mergers = [
        ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 2)(merge.merger(_KIND + 1, False, way).address)
        for way in (True, False)
    ]

    def seconds(merger: Any) -> float:
        params = np.zeros(1, MERGE)
        params["target"] = -(-address_of(words) // merge.ALIGNED) * merge.ALIGNED
        params["symbols"] = params["lower"][:, 0] = address_of(planes)
        params["lanes"] = params["row_factors"] = address_of(lanes)
        params["row_groups"] = params["left"] = n_groups
        params["ahead"] = 16 * GROUP
        start = time.perf_counter()
        merger(address_of(params), n_groups - 1)
        return time.perf_counter() - start

    return least([partial(seconds, merger) for merger in mergers], ROUNDS)
