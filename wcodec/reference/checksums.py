"""CRC-32 of parts and of wholes. Spec: chapter 11."""

from __future__ import annotations

import zlib
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


def crc32(data: Any, start: int = 0) -> int:
    """CRC-32 as in zlib, gzip and PNG, of anything with a contiguous buffer; `start` continues an earlier one."""
    return zlib.crc32(data, start)


def crc32_each(payload: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint32]:
    """CRC-32 of each piece ``payload[offsets[k] : offsets[k + 1]]``. Returns uint32 of length ``len(offsets) - 1``."""
    view, at = payload.data, offsets.tolist()
    return np.array([zlib.crc32(view[a:b]) for a, b in pairwise(at)], np.uint32)
