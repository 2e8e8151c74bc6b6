"""The numba backend, whose kernels an emulator runs; see the package.

A call copies the arrays that a kernel takes into memory that both processes share, each between
canaries, and back what has changed. Arrays of which a kernel takes all that lies between them are
first brought side by side.
"""

from __future__ import annotations

import atexit
import ctypes
import mmap
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from kernels import AARCH64, compile_for

from aarch64_emulator import COMPILER, EMULATOR, SYMBOLS
from wcodec.backends.numba import ir, kernels, machine_code
from wcodec.backends.numba.backend import NumbaBackend
from wcodec.backends.numba.kernels import KERNELS, ArrayOf, Kernel
from wcodec.backends.numba.kernels import address_of as address_of_array
from wcodec.backends.protocol import Put

__all__ = ["NumbaBackend"]

HARNESS = Path(__file__).parent / "harness.c"
BASE, NBYTES = 1 << 36, 1 << 30  #: of the memory that is shared, which takes what is touched
GUARD, CANARY = 64, 0xA5


# ---- the program ---------------------------------------------------------------------------------
def _build(folder: Path) -> dict[str, int]:
    """Link all kernels and native functions. Returns their addresses, by symbol."""
    from wcodec.backends.numba.catalogue import everything

    objects = list[Path]()
    for one in everything():
        objects.append(folder / f"{one.name}.o")
        objects[-1].write_bytes(machine_code._compiled(one))
    places = [f"-DBASE={BASE}", f"-DNBYTES={NBYTES}"]
    options = ["-O1", "-Wall", "-Werror", "-static", "-no-pie", *places]
    program = folder / "harness"
    subprocess.run([COMPILER, *options, "-o", program, HARNESS, *objects], check=True)
    run = subprocess.run([SYMBOLS, program], check=True, capture_output=True, text=True)
    lines = (line.split() for line in run.stdout.splitlines())
    return {words[2]: int(words[0], 16) for words in lines if len(words) == 3}


class _Machine:
    """The emulated CPU, which works on one call at a time."""

    def __init__(self, folder: Path) -> None:
        self.symbols = _build(folder)
        memory = folder / "memory"
        with memory.open("w+b") as f:
            f.truncate(NBYTES)
            self.memory = np.frombuffer(mmap.mmap(f.fileno(), NBYTES), np.uint8)
        self.lock = threading.Lock()
        command = [EMULATOR, "-cpu", "max", folder / "harness", memory]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def call(self, address: int, words: int) -> int:
        """Call a kernel. Returns its status."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(struct.pack("qq", address, words))
        self.process.stdin.flush()
        status = self.process.stdout.read(4)
        if len(status) != 4:
            raise SystemError(f"{EMULATOR} has ended with status {self.process.wait()}")
        return int.from_bytes(status, "little", signed=True)

    def end(self) -> None:
        """End the program."""
        self.process.communicate()


@cache
def _machine() -> _Machine:
    folder = Path(tempfile.mkdtemp(prefix="aarch64-"))
    atexit.register(shutil.rmtree, folder)
    machine = _Machine(folder)
    atexit.register(machine.end)
    return machine


# ---- calls ---------------------------------------------------------------------------------------
class _Run(NamedTuple):
    """Bytes of this process that a kernel gets, and where."""

    start: int
    end: int
    place: int


def _arrays(types: tuple[Any, ...], words: list[int]) -> Iterator[tuple[int, int, int]]:
    """Of each array that a kernel takes: the place of its address in the words, its address and
    size in bytes.
    """
    flat, at = list(types), 1
    while flat:
        of = flat.pop(0)
        if isinstance(of, ArrayOf):
            shape = words[at + 1 : at + 1 + of.ndim]
            yield at, words[at], int(np.prod(shape, dtype=np.int64)) * np.dtype(of.dtype).itemsize
            at += 1 + of.ndim
        elif isinstance(of, tuple):
            flat = [*of, *flat]
        else:
            at += 1


def _runs(arrays: list[tuple[int, int, int]], first: int) -> list[_Run]:
    """Places for arrays, from `first` on; arrays that overlap stay together."""
    runs = list[_Run]()
    for start, nbytes in sorted((start, nbytes) for _, start, nbytes in arrays):
        end = start + nbytes
        if runs and start < runs[-1].end:
            runs[-1] = runs[-1]._replace(end=max(end, runs[-1].end))
        else:
            place = runs[-1].place + runs[-1].end - runs[-1].start + GUARD if runs else first
            place += (start - place) % 64  # aligned as they are
            runs.append(_Run(start, end, place))
    return runs


def _place_of(start: int, runs: list[_Run]) -> int:
    """Where the bytes of an array are that starts there."""
    return next(r.place + start - r.start for r in reversed(runs) if r.start <= start <= r.end)


def _end_of(runs: list[_Run], first: int) -> int:
    """Where the canaries behind the last array end."""
    return max([r.place + r.end - r.start for r in runs], default=first) + GUARD


def _bytes_at(address: int, nbytes: int) -> Any:
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.uint8)


def _bring(runs: list[_Run], memory: Any) -> None:
    """Copy bytes to their places, between canaries."""
    memory[:] = CANARY
    for r in runs:
        memory[r.place : r.place + r.end - r.start] = _bytes_at(r.start, r.end - r.start)


def _bring_back(runs: list[_Run], memory: Any, first: int, name: str) -> None:
    """Copy back what has changed, if all canaries from `first` on are as they were."""
    for r in runs:
        new, old = memory[r.place : r.place + r.end - r.start], _bytes_at(r.start, r.end - r.start)
        assert (memory[first : r.place] == CANARY).all(), f"{name} wrote before an array"
        first = r.place + new.size
        if not np.array_equal(new, old):  # else it may be memory that cannot be written to
            old[:] = new
    assert (memory[first:] == CANARY).all(), f"{name} wrote behind an array"


class _Entry:
    """What calls a kernel, given where its machine code is."""

    def __init__(self, address: int) -> None:
        symbols = {machine_code.symbol_of(k.name): k for k in KERNELS.values()}
        (self.kernel,) = (k for s, k in symbols.items() if _machine().symbols.get(s) == address)
        self.address = address

    def __call__(self, at: int) -> int:
        with _machine().lock:
            return _called(self.kernel, self.address, at)


def _called(kernel: Kernel, address: int, at: int) -> int:
    n_words = kernel._n_words
    given, nbytes = _bytes_at(at, 8 * n_words).view(np.int64), 8 * n_words
    arrays = list(_arrays(kernel._types, given.tolist()))
    runs = _runs(arrays, nbytes + GUARD)
    end = _end_of(runs, nbytes)
    assert end <= NBYTES, f"{kernel.name} takes {end} bytes"
    memory = _machine().memory[:end]
    _bring(runs, memory)
    words = memory[:nbytes].view(np.int64)
    words[:] = given
    for i, start, _ in arrays:
        words[i] = BASE + _place_of(start, runs)
    status = _machine().call(address, BASE)
    given[0] = words[0]
    _bring_back(runs, memory, nbytes, kernel.name)
    return status


_put_lists = NumbaBackend.put_lists


def _put_lists_side_by_side(self: NumbaBackend, arrays: Sequence[Any], *args: Any) -> Put:
    """`put_lists`, whose kernel takes all memory from the first of the arrays to the last."""
    given = [(i, address_of_array(array), array.nbytes) for i, array in enumerate(arrays)]
    runs = _runs(given, GUARD)
    end = _end_of(runs, GUARD)
    room = np.empty(end + 64, np.uint8)
    memory = room[-address_of_array(room) % 64 :][:end]
    _bring(runs, memory)
    copies = list[Any]()
    for array, (_, start, nbytes) in zip(arrays, given, strict=True):
        place = _place_of(start, runs)
        copies.append(memory[place : place + nbytes].view(array.dtype).reshape(array.shape))
    try:
        return _put_lists(self, copies, *args)
    finally:
        _bring_back(runs, memory, 0, "put_lists")


def _address_of(one: Any) -> int:
    return _machine().symbols[machine_code.symbol_of(one.name)]


assert ir.VARIANT == "neon", "the environment does not name such a CPU"
compile_for(AARCH64)
machine_code.address_of = _address_of
kernels._Entry = _Entry  # type: ignore[misc,assignment]
NumbaBackend.put_lists = _put_lists_side_by_side  # type: ignore[method-assign]
