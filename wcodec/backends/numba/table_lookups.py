"""How decoders look up entries of tables: by the gather instruction, or index by index.

CPUs differ. On Zen 4 gather is microcode, and moving indices to general registers is 1.2 times as
fast; on Sapphire Rapids gather is 1.3 to 1.8 times as fast; where microcode mends Downfall, gather
became slow. So both are timed, once for each CPU, in 5 ms. Both give the same bytes.
"""

from __future__ import annotations

import ctypes
import os
import time
from functools import cache
from typing import Final, NamedTuple

import numpy as np

from wcodec.backends.numba import machine_code, rans_vectors
from wcodec.backends.numba.ir import GATHERS
from wcodec.backends.numba.kernels import Native, address_of
from wcodec.backends.numba.rans import EXPANSION
from wcodec.backends.numba.rans_vectors import SLACK_NBYTES, STREAM, TOGETHER
from wcodec.errors import BackendMisconfigured
from wcodec.reference.rans import GROUP, LANES
from wcodec.reference.tables import MAX_PROB_BITS

SETTING: Final = "WCODEC_TABLE_LOOKUP"  #: the environment variable that names one
GATHER, REGISTERS = NAMES = ("gather", "registers")
ROUNDS: Final = 32
N_GROUPS: Final = 64  #: of each stream that is decoded in a round


class Choice(NamedTuple):
    """Which lookup is used, of `NAMES`, and why."""

    name: str
    why: str


@cache
def choice() -> Choice:
    """The one that the environment names, or the one that is the faster here. That is measured
    once, and kept with the machine code.

    Raises
    ------
    BackendMisconfigured
        The environment names one that is not there.
    """
    named = os.environ.get(SETTING, "")
    if named and named not in NAMES:
        raise BackendMisconfigured(f"{SETTING} is {named!r}: set it to {' or '.join(NAMES)}")
    if not GATHERS:
        if named == GATHER:
            raise BackendMisconfigured(f"{SETTING} is {named!r}: code for this CPU has no gather")
        return Choice(REGISTERS, "the only one for this CPU")
    if named:
        return Choice(named, f"named by {SETTING}")
    found = machine_code.kept("table_lookups", _measure).decode(errors="replace")
    name, _, ratio = found.partition(" ")
    if name not in NAMES:  # of another version
        name, _, ratio = _measure().decode().partition(" ")
    return Choice(name, f"measured {ratio} times as fast as {NAMES[name == GATHER]}")


def _measure() -> bytes:
    """Name of the faster one, and how many times as fast it is."""
    calls = [_Call(rans_vectors.decoder(TOGETHER, False, name == GATHER)) for name in NAMES]
    seconds = [[call.seconds() for call in calls] for _ in range(ROUNDS)]
    gather, registers = np.array(seconds).min(axis=0).tolist()
    name = GATHER if gather < registers else REGISTERS
    return f"{name} {max(gather, registers) / min(gather, registers):.2f}".encode()


class _Call:
    """A decoder, and streams for it, of any content: it takes the same time for all."""

    def __init__(self, native: Native) -> None:
        rng, size = np.random.default_rng(0), 1 << MAX_PROB_BITS
        self._lut = rng.integers(0, 1 << 32, size, np.uint32)
        self._words = np.zeros(N_GROUPS * GROUP + SLACK_NBYTES, np.uint16)
        self._out = np.empty((TOGETHER, N_GROUPS * GROUP), np.uint8)
        self._states = rng.integers(1 << 16, 1 << 32, (TOGETHER, LANES), np.uint32)
        self._params = np.zeros(TOGETHER, STREAM)
        self._params["source"], self._params["limit"] = address_of(self._words), self._out.shape[1]
        self._params["table"], self._params["bits"] = address_of(self._lut), MAX_PROB_BITS
        self._params["target"] = [address_of(row) for row in self._out]
        arrays = self._params, self._states, EXPANSION
        self._args = *map(address_of, arrays), N_GROUPS
        self._function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(native.address)

    def seconds(self) -> float:
        """How long it takes."""
        self._params["position"] = 0
        start = time.perf_counter()
        self._function(*self._args)
        return time.perf_counter() - start
