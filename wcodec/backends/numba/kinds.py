"""Kinds of segments, by the kernels that suit them.

Common kinds have numbers from 1: 1 is ``KINDS[0]``. All others are coded by loops for any segment.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from wcodec.backends.numba import ir
from wcodec.reference.planes import BY_ID, DType, WordMap

GENERAL: Final = 0  #: kind of segments that `segments` codes
WITH_CONTEXTS: Final = -1  #: kind of segments that `contexts` codes


class Kind(NamedTuple):
    """A common kind: segments of a single tile, not predicted, whose plane 0 is coded.

    Attributes
    ----------
    pairs
        Whether their layout is PAIRS, not BYTES.
    word_nbytes
        Bytes of a word.
    word_map
        Name of the word map, and the width of the exponent where it moves that.
    """

    pairs: bool
    word_nbytes: int
    word_map: str

    @property
    def n_lower(self) -> int:
        """Planes besides plane 0."""
        return 1 if self.pairs and self.word_nbytes == 1 else self.word_nbytes - 1


_OF_ONE_BYTE: Final = ("identity", "offset", "exponent 4", "exponent 5")
_OF_MORE: Final = (
    (False, "identity"),
    (False, "offset"),
    (False, "exponent 8"),
    (True, "exponent 8"),
)
#: Kinds of words that are split and merged as vectors.
KINDS: Final = (
    *(Kind(pairs, 1, name) for pairs in (False, True) for name in _OF_ONE_BYTE),
    *(Kind(pairs, nbytes, name) for nbytes in (2, 4) for pairs, name in _OF_MORE),
)


def _number(dtype: DType, pairs: bool) -> int:
    name = {
        WordMap.IDENTITY: "identity",
        WordMap.OFFSET: "offset",
        WordMap.EXPONENT_FIRST: f"exponent {dtype.exponent_bits}",
    }[dtype.word_map]
    kind = Kind(pairs, dtype.word_nbytes, name)
    return 1 + KINDS.index(kind) if ir.VARIANT != "plain" and kind in KINDS else GENERAL


@lru_cache(maxsize=64)
def common_kinds(dtype_id: int) -> tuple[int, int]:
    """Numbers of the common kinds of layouts BYTES and PAIRS of a dtype, or `GENERAL`."""
    return _number(BY_ID[dtype_id], False), _number(BY_ID[dtype_id], True)
