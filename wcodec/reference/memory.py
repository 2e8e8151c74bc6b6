"""The memory that reading a file may take, counted before it is taken. Spec: chapter 16."""

from __future__ import annotations

from typing import Final

from wcodec.reference.cursor import fail

#: Bytes that an index may take where the caller says nothing. That of 100 GB of bfloat16 in 100,000
#: tensors, 28 MB of records, counts as 0.9 GB.
DEFAULT_MAX_MEMORY: Final = 1 << 32

# Bytes of memory, of each at most; `tools/worst_cases.py` measures them.
_A_RECORD_BYTE: Final = 8  #: two copies of the records, and texts, of four bytes a character
TABLE_NBYTES: Final = 2560
CONTEXT_MAP_NBYTES: Final = 512
PAIR_NBYTES: Final = 256
TENSOR_NBYTES: Final = 4096  #: with its plan
DUPLICATE_NBYTES: Final = 640
_SEGMENT_NBYTES: Final = 48
_PLANE_NBYTES: Final = 48  #: of a segment


_UNITS: Final = {"K": 10, "M": 20, "G": 30, "T": 40}


def nbytes_of(text: str) -> int:
    """A number of bytes from 1, as people type it: ``4294967296``, ``4096M`` or ``4G``.

    Raises
    ------
    ValueError
    """
    number = text.rstrip("KMGT")
    if len(text) - len(number) > 1 or not number.isdecimal() or not int(number):
        raise ValueError(f"{text!r} is not a number of bytes from 1, such as 4096M or 4G")
    return int(number) << _UNITS.get(text[len(number) :], 0)


class Memory:
    """What reading a file takes, against what the caller allows.

    Parameters
    ----------
    most
        Bytes that are allowed; ``None`` for `DEFAULT_MAX_MEMORY`.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most, self.taken = DEFAULT_MAX_MEMORY if most is None else most, 0

    def take(self, nbytes: int, what: str) -> None:
        """Count bytes that are about to be taken, and kept, for what `what` names.

        Raises
        ------
        DecodeError
            ``resource_limit``
        """
        self.check(nbytes, what)
        self.taken += nbytes

    def check(self, nbytes: int, what: str) -> None:
        """As `take`, of bytes that are given back."""
        if self.taken + nbytes > self.most:
            raise fail(
                "resource_limit",
                f"reading the file may take {self.taken + nbytes} bytes of memory or more, with "
                f"{what}; {self.most} are allowed: max_memory (--max-memory) allows more",
            )

    def take_index(self, stored_nbytes: int, raw_nbytes: int) -> None:
        """Count an index, by the sizes that the footer gives."""
        self.take(stored_nbytes + _A_RECORD_BYTE * raw_nbytes, f"an index of {raw_nbytes} bytes")

    def take_tensor(self, n_segments: int, n_planes: int) -> None:
        """Count what is kept of a tensor, and what it takes to decode it."""
        each = _SEGMENT_NBYTES + n_planes * _PLANE_NBYTES
        self.take(TENSOR_NBYTES + n_segments * each, f"a tensor of {n_segments} segments")
