"""Reading the bytes of an untrusted index."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wcodec.errors import DecodeError


def fail(code: str, message: str, **where: Any) -> DecodeError:
    """An error to raise."""
    return DecodeError(code, message, **where)


class Cursor:
    """Reads a record's body from front to back; what is not there is `bad_range`."""

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self.data, self.at, self.end = data, start, len(data) if end is None else end

    @property
    def left(self) -> int:
        return self.end - self.at

    def take(self, nbytes: int) -> bytes:
        start, end = self.at, self.at + nbytes
        if end > self.end:
            raise fail("bad_range", f"a record holds {self.left} more bytes where {nbytes} are due")
        self.at = end
        return self.data[start:end]

    def unpack(self, layout: struct.Struct | str) -> tuple[Any, ...]:
        s = struct.Struct(layout) if isinstance(layout, str) else layout
        if s.size > self.end - self.at:
            self.take(s.size)  # says what is wrong
        self.at += s.size
        return s.unpack_from(self.data, self.at - s.size)

    def array(self, dtype: str, n: int) -> NDArray[Any]:
        return np.frombuffer(self.take(n * np.dtype(dtype).itemsize), dtype)

    def text(self, nbytes: int) -> str:
        try:
            return self.take(nbytes).decode()
        except UnicodeDecodeError:
            raise fail("bad_name", "a text is not UTF-8") from None

    def done(self, what: str) -> None:
        if self.left:
            raise fail("bad_range", f"{self.left} bytes are left over after {what}")
