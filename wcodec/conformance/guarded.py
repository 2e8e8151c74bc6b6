"""Kernels called with arrays between guards, their results and statuses checked."""

from __future__ import annotations

import zlib
from dataclasses import fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.protocol import Backend, Checksums
from wcodec.conformance.cases import (
    require,
)
from wcodec.reference.checksums import crc32_each
from wcodec.reference.planes import Bytes, Words
from wcodec.reference.segments import SegmentPlan, SegmentTable

GUARD: Final = 64  #: bytes before and after each array that a kernel gets

CANARY: Final = 0xC5


class Guarded:
    """A device array amid canaries: `array` is what a kernel gets.

    Parameters
    ----------
    content
        uint8: what the array holds.
    shift
        Bytes by which it is off a multiple of 64.
    """

    def __init__(
        self, backend: Backend, content: Bytes, canary: int = CANARY, shift: int = 0
    ) -> None:
        room = np.empty(content.size + 4 * GUARD, np.uint8)
        start = -room.ctypes.data % GUARD
        self.low, self.high = GUARD + shift, GUARD + shift + content.size
        before = room[start : start + self.high + GUARD]
        before[:] = canary
        before[self.low : self.high] = content
        self.expected = before.copy()
        self.backend, self.device = backend, backend.to_device(before)
        self.array = self.device[self.low : self.high]

    def content(self, what: str) -> Bytes:
        """What the array holds now, after a look at the canaries."""
        now = self.backend.to_host(self.device)
        for name, part in (("before", slice(0, self.low)), ("after", slice(self.high, None))):
            wrong = np.flatnonzero(now[part] != self.expected[part])
            require(
                not wrong.size,
                f"nothing written {name} {what}",
                f"{wrong.size} bytes changed there",
            )
        return np.asarray(now[self.low : self.high])

    def unchanged(self, what: str) -> None:
        """Check that nothing at all was written."""
        same = bool((self.content(what) == self.expected[self.low : self.high]).all())
        require(same, f"{what} to be left as it is", "changes")


def snapshot(plan: SegmentPlan) -> list[bytes]:
    """All arrays of a plan as bytes."""
    columns = [getattr(plan.segments, f.name) for f in fields(SegmentTable)]
    return [a.tobytes() for a in (*columns, plan.fill, plan.modes, plan.scales) if a is not None]


def decode_guarded(
    backend: Backend,
    plan: SegmentPlan,
    payload: Bytes,
    canary: int = CANARY,
    shift: int = 0,
    checksums: bool = False,
) -> tuple[NDArray[Any], Words]:
    """Status and words of `Backend.decode_segments`, or of `Backend.decode_with_checksums`, with
    canaries around all arrays.
    """
    geometry, word = plan.geometry, plan.dtype.word_type
    source = Guarded(backend, payload, canary)
    out = Guarded(
        backend,
        np.full(geometry.rows * geometry.cols * word.itemsize, canary ^ 0xFF, np.uint8),
        canary,
        shift,
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
    due = crc32_each(payload, plan.offsets).tolist()
    require(
        sums.records.tolist() == due, "the CRC-32s of the records", str(sums.records.tolist()[:8])
    )
    require(
        words is None or sums.words == zlib.crc32(words.data),
        "the CRC-32 of the words",
        str(sums.words),
    )
