"""How decoders look up entries of tables: by the gather instruction, or index by index.

CPUs differ. On Zen 4 gather is microcode, and moving indices to general registers is 1.2 times as
fast; on Sapphire Rapids gather is 1.3 to 1.8 times as fast; where microcode mends Downfall, gather
became slow. So both are timed, once for each CPU, in 5 ms. Both give the same bytes.
"""

from __future__ import annotations

import ctypes
import time
from functools import cache
from typing import Final

import numpy as np

from wcodec.backends.numba import rans_vectors
from wcodec.backends.numba.choices import Choice, Ways, least
from wcodec.backends.numba.ir import GATHERS
from wcodec.backends.numba.kernels import address_of
from wcodec.backends.numba.rans import EXPANSION
from wcodec.backends.numba.rans_vectors import SLACK_NBYTES, STREAM, TOGETHER
from wcodec.reference.rans import GROUP, LANES
from wcodec.reference.tables import MAX_PROB_BITS

GATHER, REGISTERS = NAMES = ("gather", "registers")
WAYS: Final = Ways("WCODEC_TABLE_LOOKUP", NAMES, "table_lookups", GATHERS, "gather")
ROUNDS: Final = 32
N_GROUPS: Final = 64  #: of each stream that is decoded in a round


@cache
def choice() -> Choice:
    """The one to use; see `Ways.choose`."""
    return WAYS.choose(_measure)


def _measure() -> tuple[float, float]:
    """Seconds that each takes for a stream, of as many at a time as are the fastest."""
    return least([_Call(TOGETHER, True).seconds, _Call(2, False).seconds], ROUNDS)


class _Call:
    """A decoder, and streams for it, of any content: it takes the same time for all."""

    def __init__(self, n: int, gather: bool) -> None:
        native, self._n = rans_vectors.decoder(n, False, gather), n
        rng, size = np.random.default_rng(0), 1 << MAX_PROB_BITS
        self._lut = rng.integers(0, 1 << 32, size, np.uint32)
        self._words = np.zeros(N_GROUPS * GROUP + SLACK_NBYTES, np.uint16)
        self._out = np.empty((n, N_GROUPS * GROUP), np.uint8)
        self._states = rng.integers(1 << 16, 1 << 32, (n, LANES), np.uint32)
        self._params = np.zeros(n, STREAM)
        self._params["source"], self._params["limit"] = address_of(self._words), self._out.shape[1]
        self._params["table"], self._params["bits"] = address_of(self._lut), MAX_PROB_BITS
        self._params["target"] = [address_of(row) for row in self._out]
        arrays = self._params, self._states, EXPANSION
        self._args = *map(address_of, arrays), N_GROUPS
        self._function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(native.address)

    def seconds(self) -> float:
        """How long it takes, for each stream."""
        self._params["position"] = 0
        start = time.perf_counter()
        self._function(*self._args)
        return (time.perf_counter() - start) / self._n
