"""Backends with faults that end their process or need a look around: each is named as
``faulty_backends:Class`` and checked in a child. What `Healthy` does is right.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from wcodec.backends.reference import ReferenceBackend

#: `touch` reads or writes a byte; `through` copies through a buffer that all threads share
SOURCE = """
#include <stddef.h>
#include <stdint.h>
#include <time.h>
static volatile uint8_t shared[1 << 24];
int look(const volatile uint8_t *p, ptrdiff_t at) { return p[at]; }
void spoil(volatile uint8_t *p, ptrdiff_t at) { p[at] = 7; }
void through(const uint8_t *from, uint8_t *to, size_t n) {
    struct timespec decoding = {0, 5000000};
    for (size_t i = 0; i < n; i++) shared[i] = from[i];
    nanosleep(&decoding, 0);  /* others run meanwhile, on a busy machine too */
    for (size_t i = 0; i < n; i++) to[i] = shared[i];
}
"""


def compiler() -> str | None:
    return shutil.which("cc")


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """`SOURCE`, compiled."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "faulty.c"), Path(folder, "faulty.so")
        source.write_text(SOURCE)
        line = [str(compiler()), "-O1", "-shared", "-fPIC", str(source), "-o", str(out)]
        subprocess.run(line, check=True)
        lib = ctypes.CDLL(str(out))
    lib.look.argtypes = lib.spoil.argtypes = ctypes.c_void_p, ctypes.c_ssize_t
    lib.through.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
    return lib


def look(array: np.ndarray, at: int) -> None:
    """Read a byte at an offset, without a compiler."""
    ctypes.string_at(array.ctypes.data + at, 1)


class Healthy(ReferenceBackend):
    name = "healthy"


class ReadsPastTheEnd(Healthy):
    """Loads a byte too many at the end of a payload."""

    def decode_segments(self, plan, payload, out):
        look(payload, payload.size)
        return super().decode_segments(plan, payload, out)


class ReadsBeforeTheStart(Healthy):
    def decode_segments(self, plan, payload, out):
        look(payload, -1)
        return super().decode_segments(plan, payload, out)


class ReadsPastWords(Healthy):
    """Loads a byte too many of the words that it encodes."""

    def encode_segments(self, plan, words):
        look(words, words.nbytes)
        return super().encode_segments(plan, words)


class ReadsPastColumns(Healthy):
    """Loads a byte too many of a column of the plan."""

    def decode_segments(self, plan, payload, out):
        column = plan.segments.n_units
        look(column, column.nbytes)
        return super().decode_segments(plan, payload, out)


class WritesPastTheEnd(Healthy):
    """Stores a byte too many behind its output."""

    def decode_segments(self, plan, payload, out):
        status = super().decode_segments(plan, payload, out)
        ctypes.memset(out.ctypes.data + out.nbytes, 7, 1)
        return status


class WritesBeforeTheStart(Healthy):
    def decode_segments(self, plan, payload, out):
        status = super().decode_segments(plan, payload, out)
        ctypes.memset(out.ctypes.data - 1, 7, 1)
        return status


class SharesABuffer(Healthy):
    """All threads decode from one copy of the payload."""

    buffer = np.empty(1 << 22, np.uint8)

    def decode_segments(self, plan, payload, out):
        mine = self.buffer[: payload.size]
        mine[:] = payload
        return super().decode_segments(plan, mine, out)


class InC(Healthy):
    """Has its library before the first check."""

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(threads)
        library()


class ReadsPastTheEndInC(InC):
    def decode_segments(self, plan, payload, out):
        library().look(payload.ctypes.data, payload.size)
        return super().decode_segments(plan, payload, out)


class ReadsBeforeTheStartInC(InC):
    def decode_segments(self, plan, payload, out):
        library().look(payload.ctypes.data, -1)
        return super().decode_segments(plan, payload, out)


class SharesABufferInC(InC):
    """Threads share a static buffer, for as long as a call takes; Python runs others meanwhile."""

    def decode_segments(self, plan, payload, out):
        mine = np.empty_like(payload)
        library().through(payload.ctypes.data, mine.ctypes.data, payload.size)
        return super().decode_segments(plan, mine, out)


# ---- that end, or do not end ---------------------------------------------------------------------
class At(Healthy):
    """Does what `misbehave` does in the check `duty/faults`, which alone has such a payload."""

    def decode_segments(self, plan, payload, out):
        status = super().decode_segments(plan, payload, out)
        if status.any():
            self.misbehave()
        return status

    def misbehave(self) -> None:
        raise NotImplementedError


class Aborts(At):
    def misbehave(self) -> None:
        os.abort()


class Crashes(At):
    def misbehave(self) -> None:
        ctypes.memset(8, 0, 1)


class Exits(At):
    def misbehave(self) -> None:
        os._exit(0)


class Hangs(At):
    def misbehave(self) -> None:
        time.sleep(1000)


class Moody(Healthy):
    """Has another fault for words of each of some types, and none for others."""

    def decode_segments(self, plan, payload, out):
        match plan.dtype.name:
            case "bfloat16":
                os.abort()
            case "complex128":
                ctypes.memset(8, 0, 1)
            case "uint8":
                time.sleep(1000)
        return super().decode_segments(plan, payload, out)


class Greedy(Healthy):
    """Reads beyond ends: which, depends on the type of words."""

    def decode_segments(self, plan, payload, out):
        if plan.dtype.name == "bfloat16":
            look(payload, payload.size)
        elif plan.dtype.name == "complex128":
            look(payload, -1)
        return super().decode_segments(plan, payload, out)

    def histogram(self, words, geometry, dtype, **how):
        if dtype.name == "float32":
            look(words, words.nbytes)
        return super().histogram(words, geometry, dtype, **how)


class Interrupts(At):
    """As Ctrl-C does while a check hangs: tells the parent, and leaves its own number."""

    def misbehave(self) -> None:
        Path(os.environ["FAULTY_PID"]).write_text(str(os.getpid()))
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(1000)


class LeavesByExit(At):
    def misbehave(self) -> None:
        raise SystemExit(0)


class Odd(BaseException):
    def __str__(self) -> str:
        raise ValueError("no text")


class RaisesOddly(At):
    def misbehave(self) -> None:
        raise Odd


class Prints(Healthy):
    """Prints what looks like an answer, by Python and below it."""

    def decode_segments(self, plan, payload, out):
        print('{"message": "printed"}', flush=True)
        os.write(1, b'{"message": "printed"}\n')
        return super().decode_segments(plan, payload, out)


# ---- that cannot be made -------------------------------------------------------------------------
class CannotBeMade(Healthy):
    def __init__(self, threads: int | None = None) -> None:
        raise RuntimeError("no device\nat all")


class LeavesWhenMade(Healthy):
    def __init__(self, threads: int | None = None) -> None:
        raise SystemExit(3)


class DiesWhenMade(Healthy):
    def __init__(self, threads: int | None = None) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class HasNoInfo(Healthy):
    def info(self) -> dict[str, str]:
        raise KeyError("driver")


def factory(threads: int | None = None) -> Healthy:
    return Healthy(threads)


def factory_of_nothing(threads: int | None = None) -> None:
    return None
