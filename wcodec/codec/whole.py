"""Bytes that are put together in memory, as a file that is written."""

from __future__ import annotations

import ctypes
import io
import mmap
from typing import Any, Final

import numpy as np

from wcodec.reference.tiles import CHUNK_NBYTES

#: files of fewer bytes are put together when they are whole: their memory may well be some that the
#: process has let go of, and that of larger ones is always new
_LARGE: Final = 2 * CHUNK_NBYTES
_PAGES_NBYTES: Final = 1 << 22  #: NumPy asks for large pages from here on too


class Whole:
    """A file in memory.

    Parameters
    ----------
    nbytes
        About the most bytes that will be written. Memory for more than is written costs nothing.
    """

    def __init__(self, nbytes: int) -> None:
        self._file, self._parts = None if nbytes <= _LARGE else _room(nbytes), list[Any]()

    def write(self, data: Any) -> None:
        """Write bytes, which must not change any more: the backends do not write again to a payload
        that someone holds.
        """
        if self._file is None:
            self._parts.append(data)
        else:
            _write(self._file, data)

    def getvalue(self) -> bytes:
        """All that was written, to be called once."""
        file, parts = self._file, self._parts
        if file is None:
            file = _room(sum(map(len, parts)))
            for part in parts:
                _write(file, part)
        file.truncate()
        return file.getvalue()


def _write(file: io.BytesIO, data: Any) -> None:
    """``file.write(data)``, which other threads need not wait for."""
    n, at = len(data), file.tell()
    with file.getbuffer() as room:
        fits = at + n <= len(room)
        if fits:
            np.frombuffer(room, np.uint8)[at : at + n] = np.frombuffer(data, np.uint8)
    if fits:
        file.seek(at + n)
    else:
        file.write(data)


def _new_bytes(nbytes: int) -> bytes:
    """Bytes of any content; zeros where Python has no such call."""
    api = getattr(ctypes, "pythonapi", None)
    if api is None:
        return bytes(nbytes)
    make: Any = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
        ("PyBytes_FromStringAndSize", api)
    )
    new: bytes = make(None, nbytes)
    return new


def _room(nbytes: int) -> io.BytesIO:
    """A file in memory of that size, whose bytes may be anything. It is one `bytes` object, which
    `io.BytesIO` writes to and gives away without a copy.

    Of large ones, the system is asked for large pages: most of the time that new memory costs goes
    for each page.
    """
    file = io.BytesIO(_new_bytes(nbytes))
    if nbytes >= _PAGES_NBYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with file.getbuffer() as room:
            address = np.frombuffer(room, np.uint8).ctypes.data
        first, last = -(-address // mmap.PAGESIZE), (address + nbytes) // mmap.PAGESIZE
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        start, size = first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE
        madvise(start, size, mmap.MADV_HUGEPAGE)  # a system that cannot does nothing
    return file
