"""Memory that stands against pages which cannot be touched:
what goes beyond it ends the process, or leaves a trace.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from typing import Any

import numpy as np

CANARY = 0xA5
PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)


def _protect(address: int, nbytes: int, protection: int) -> None:
    """Set what may be done to pages."""
    if _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), protection) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Fence:
    """Bytes that end where a page begins that cannot be touched, or start where one ends.

    Canaries fill the rest of the last or first page, after which there is such a page too.

    Attributes
    ----------
    bytes
        uint8 of shape (nbytes,), filled with `CANARY`. It keeps the memory.
    """

    def __init__(self, nbytes: int, at_end: bool) -> None:
        inner = max(1, -(-nbytes // PAGE)) * PAGE
        whole: np.ndarray[Any, Any] = np.frombuffer(
            mmap.mmap(-1, inner + 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8
        )
        self._inner = whole[PAGE : PAGE + inner]
        self._inner[:] = CANARY
        _protect(whole.ctypes.data, PAGE, 0)
        _protect(whole.ctypes.data + PAGE + inner, PAGE, 0)
        start = inner - nbytes if at_end else 0
        self.bytes = self._inner[start : start + nbytes]
        self._rest = self._inner[:start] if at_end else self._inner[nbytes:]

    def freeze(self) -> None:
        """Let the bytes be read only, from now on."""
        _protect(self._inner.ctypes.data, self._inner.size, mmap.PROT_READ)

    @property
    def whole(self) -> bool:
        """Whether the canaries are as they were."""
        return bool((self._rest == CANARY).all())


class Heap:
    """Arrays behind fences. It keeps them until they are forgotten.

    Attributes
    ----------
    at_end
        On which side of their pages the next arrays stand.
    """

    def __init__(self) -> None:
        self.at_end = True
        self._fences: list[Fence] = []

    def empty(self, shape: int | tuple[int, ...], dtype: Any = float) -> np.ndarray[Any, Any]:
        """As `numpy.empty`."""
        shape, dtype = (shape,) if isinstance(shape, int) else shape, np.dtype(dtype)
        fence = Fence(math.prod(shape) * dtype.itemsize, self.at_end)
        self._fences.append(fence)
        array: np.ndarray[Any, Any] = fence.bytes.view(dtype).reshape(shape)
        return array

    def zeros(self, shape: int | tuple[int, ...], dtype: Any = float) -> np.ndarray[Any, Any]:
        """As `numpy.zeros`."""
        out = self.empty(shape, dtype)
        out[...] = 0
        return out

    def copy(self, array: np.ndarray[Any, Any], frozen: bool = False) -> np.ndarray[Any, Any]:
        """A copy, which can be read only if it is `frozen`; NumPy is not told."""
        out = self.empty(array.shape, array.dtype)
        out[...] = array
        if frozen:
            self._fences[-1].freeze()
        return out

    @property
    def whole(self) -> bool:
        """Whether all canaries are as they were."""
        return all(fence.whole for fence in self._fences)

    def forget(self) -> None:
        """Let go of all arrays."""
        self._fences.clear()
