"""Kernels called with arrays between guards, their results and statuses checked.

On backends whose memory is the host's, an array lies against a page that cannot be touched
(`Side.END` behind it, `Side.START` before it), with canaries on its other side. On others, and
where a system has no such pages, there are canaries on both sides, as with `Side.NONE`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from enum import Enum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.protocol import Backend, Checksums
from wcodec.conformance.cases import require, require_same
from wcodec.conformance.walls import AVAILABLE, against_a_wall, room_between_walls
from wcodec.reference.checksums import crc32_each
from wcodec.reference.planes import Bytes, Words
from wcodec.reference.segments import SegmentPlan, SegmentTable

GUARD: Final = 64  #: bytes before and after each array that a kernel gets

CANARY: Final = 0xC5
_COLUMNS: Final = tuple(f.name for f in fields(SegmentTable))


class Side(Enum):
    """Which end of an array lies against a page that cannot be touched."""

    END = "end"
    START = "start"
    NONE = "none"


_side = Side.END


@contextmanager
def guarded_at(side: Side) -> Iterator[None]:
    """Where the guards of all arrays are that say nothing else."""
    global _side
    before, _side = _side, side
    try:
        yield
    finally:
        _side = before


def at_each_side(check: Callable[[Backend], None], backend: Backend) -> None:
    """A check with guards behind all arrays, and again with guards before them."""
    for side in (Side.END, Side.START) if has_walls(backend) else (Side.NONE,):
        with guarded_at(side):
            check(backend)


def has_walls(backend: Backend) -> bool:
    """Whether arrays of a backend can lie against such pages."""
    return AVAILABLE and type(backend).to_device is Backend.to_device


def sides_of(backend: Backend, word_nbytes: int) -> list[tuple[Side, int, int]]:
    """How arrays of words are guarded in the runs of a check: `Guarded`'s side, canary, shift."""
    if not has_walls(backend):
        return [(Side.END, CANARY, 0), (Side.START, 0x3A, word_nbytes)]
    return [(Side.END, CANARY, 0), (Side.START, 0x3A, 0), (Side.NONE, 0x3A, word_nbytes)]


class Guarded:
    """A device array amid guards: `array` is what a kernel gets.

    Parameters
    ----------
    content
        uint8: what the array holds.
    shift
        With canaries on both sides: bytes by which it is off a multiple of 64.
    side
        By default what `guarded_at` says.
    """

    def __init__(
        self,
        backend: Backend,
        content: Bytes,
        canary: int = CANARY,
        shift: int = 0,
        side: Side | None = None,
    ) -> None:
        side, n = side or _side, content.size
        if side == Side.NONE or not has_walls(backend):
            room = np.empty(n + 4 * GUARD, np.uint8)
            start = -room.ctypes.data % GUARD
            self.low, stop = GUARD + shift, n + shift + 2 * GUARD
            before = room[start : start + stop]
        else:
            room = room_between_walls(n + GUARD)
            self.low = GUARD if side == Side.END else 0
            before = room[room.size - n - GUARD :] if self.low else room[: n + GUARD]
        self.high = self.low + n
        before[:] = canary
        before[self.low : self.high] = content
        self.expected = before.copy()
        self.backend, self.device = backend, backend.to_device(before)
        self.array = self.device[self.low : self.high]
        if not n and self.device is before:  # NumPy's empty slices lie where the whole begins
            self.array = np.ndarray(0, np.uint8, before, self.low)

    def content(self, what: str) -> Bytes:
        """What the array holds now, after a look at the canaries."""
        now = self.backend.to_host(self.device)
        wrong = np.flatnonzero(now[: self.low] != self.expected[: self.low])
        if wrong.size:
            text = f"{wrong.size} bytes changed, the last {self.low - int(wrong[-1])} before it"
            require(False, f"nothing written before {what}", text)
        wrong = np.flatnonzero(now[self.high :] != self.expected[self.high :])
        if wrong.size:
            text = f"{wrong.size} bytes changed, the first {int(wrong[0]) + 1} behind its end"
            require(False, f"nothing written after {what}", text)
        return np.asarray(now[self.low : self.high])

    def unchanged(self, what: str) -> None:
        """Check that nothing at all was written."""
        now = self.content(what)
        require_same(now, self.expected[self.low : self.high], f"{what}, which no kernel changes,")


def snapshot(plan: SegmentPlan) -> list[bytes]:
    """All arrays of a plan as bytes."""
    columns = [getattr(plan.segments, f.name) for f in fields(SegmentTable)]
    return [a.tobytes() for a in (*columns, plan.fill, plan.modes, plan.scales) if a is not None]


def walled(backend: Backend, array: Any, side: Side | None = None) -> Any:
    """A host array, copied to where it lies against a guard; ``None`` for ``None``."""
    side = side or _side
    if array is None or side == Side.NONE or not has_walls(backend):
        return array
    return against_a_wall(array, side == Side.END)


def walled_plan(backend: Backend, plan: SegmentPlan, side: Side | None = None) -> SegmentPlan:
    """A plan whose columns, fill codes, modes and classes lie against guards."""
    columns = {
        f.name: walled(backend, getattr(plan.segments, f.name), side) for f in fields(SegmentTable)
    }
    more = {
        name: walled(backend, getattr(plan, name), side) for name in ("fill", "modes", "scales")
    }
    return replace(plan, segments=SegmentTable(**columns), **more)


def decode_guarded(
    backend: Backend,
    plan: SegmentPlan,
    payload: Bytes,
    canary: int = CANARY,
    shift: int = 0,
    checksums: bool = False,
    side: Side | None = None,
) -> tuple[NDArray[Any], Words]:
    """Status and words of `Backend.decode_segments`, or of `Backend.decode_with_checksums`, with
    guards around payload and output.
    """
    geometry, word = plan.geometry, plan.dtype.word_type
    source = Guarded(backend, payload, canary, side=side)
    out = Guarded(
        backend,
        np.full(geometry.rows * geometry.cols * word.itemsize, canary ^ 0xFF, np.uint8),
        canary,
        shift,
        side,
    )
    before = snapshot(plan)
    target = out.array.view(word).reshape(geometry.rows, geometry.cols)
    if checksums:
        status, sums = backend.decode_with_checksums(plan, source.array, target)
        check_checksums(sums, plan, payload, out.content("out") if not status.any() else None)
    else:
        status = backend.decode_segments(plan, source.array, target)
    words = out.content("out").view(word).reshape(geometry.rows, geometry.cols)
    source.unchanged("the payload")
    require(snapshot(plan) == before, "the plan to be left as it is", "changes")
    n = geometry.n_segments
    shaped = isinstance(status, np.ndarray) and status.dtype == np.uint8 and status.shape == (n,)
    require(
        shaped,
        f"a status of uint8 and shape ({n},)",
        f"{getattr(status, 'dtype', type(status))} {getattr(status, 'shape', '')}",
    )
    return status, words


def check_checksums(
    sums: Checksums, plan: SegmentPlan, payload: Bytes, words: Bytes | None
) -> None:
    """Checksums of all records, and of all words if these are known."""
    due = crc32_each(payload, plan.offsets)
    require_same(np.asarray(sums.records), due, "the CRC-32s of the records")
    if words is not None:
        crc = zlib.crc32(words.data)
        require(sums.words == crc, f"the CRC-32 {crc:#010x} of the words", f"{sums.words:#010x}")
