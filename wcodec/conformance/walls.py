"""Memory between pages that cannot be touched: who reads or writes beyond it dies at once."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.reference.planes import Bytes

_NONE: Final = 0  #: PROT_NONE of mprotect(2)


def _mprotect() -> Any:
    try:
        function = ctypes.CDLL(None, use_errno=True).mprotect
    except (AttributeError, OSError, TypeError):  # not POSIX
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


_PROTECT: Final = _mprotect()
AVAILABLE: Final = _PROTECT is not None  #: whether this system has such pages


def room_between_walls(nbytes: int) -> Bytes:
    """At least so many bytes, whole pages, with a wall before the first and after the last one.

    Raises
    ------
    OSError
    """
    page = mmap.PAGESIZE
    inside = max(1, -(-nbytes // page)) * page
    memory = mmap.mmap(-1, inside + 2 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # keeps the memory as long as any part of it is there
    room = np.frombuffer(memory, np.uint8, inside, page)
    start = room.ctypes.data
    for wall in (start - page, start + inside):
        if _PROTECT(wall, page, _NONE):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return room


def against_a_wall(array: NDArray[Any], at_end: bool) -> NDArray[Any]:
    """A copy of an array that ends, or begins, at a wall; the array itself where there are none."""
    if not AVAILABLE:
        return array
    room = room_between_walls(array.nbytes)
    at = room.size - array.nbytes if at_end else 0
    copied = np.ndarray(array.shape, array.dtype, room, at)
    copied[...] = array
    return copied
