"""What a tensor differs in from the one of the same name in another checkpoint, and what that
checkpoint is called. Spec: R12.5, R11.4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Final, Protocol

import numpy as np

from wcodec.reference.planes import BY_NAME, DType, Words
from wcodec.reference.tiles import Geometry

NOTHING_KNOWN: Final[Mapping[str, int]] = {}
UNSIGNED: Final = {n: BY_NAME[f"uint{8 * n}"] for n in (1, 2, 4, 8)}


class Difference(IntEnum):
    """What is coded of a tensor, in place of its words (R12.5): bits 0 and 1 of its flags."""

    NONE = 0
    XOR = 1  #: ``w ^ b``, b the base's word
    MINUS = 2  #: ``w - b`` modulo the word, the sign moved to the lowest bit


def coded_dtype(dtype: DType, difference: Difference) -> DType:
    """Dtype by whose rules words are coded: another one for `Difference.MINUS` (R12.5)."""
    return UNSIGNED[dtype.word_nbytes] if difference == Difference.MINUS else dtype


class BaseTensor(Protocol):
    """A tensor of another checkpoint, seen as the matrix of the one that is coded as a difference
    from it.
    """

    def words(self, rows: slice, cols: slice, room: Words) -> Words:
        """The words of a rectangle, C-contiguous and aligned:
        in `room`, which has its shape and type, or where they lie.

        Raises
        ------
        DecodeError
        """


class BaseCheckpoint(Protocol):
    """A checkpoint that others are coded as differences from."""

    @property
    def name(self) -> str:
        """What people call it."""

    def base_tensor(
        self, name: str, dtype: DType, shape: tuple[int, ...], geometry: Geometry
    ) -> BaseTensor | None:
        """The tensor of this name, dtype and shape as a matrix of these rows and columns,
        if there is one.
        """

    def content_hash(self, known: Mapping[str, int] = NOTHING_KNOWN) -> bytes:
        """Spec: R11.4. Of some tensors, by name, the CRC-32s are known."""


def subtract(words: Words, base: Words, difference: Difference) -> Words:
    """What is coded in place of words (R12.5).

    Parameters
    ----------
    words, base
        Unsigned, of the same shape and type.

    Returns
    -------
    A new array of the same shape and type.
    """
    if difference == Difference.XOR:
        return np.bitwise_xor(words, base)
    one, top = words.dtype.type(1), words.dtype.type(8 * words.itemsize - 1)
    d = np.subtract(words, base)
    return np.asarray(d << one ^ -(d >> top), words.dtype)


def add(coded: Words, base: Words, difference: Difference) -> None:
    """Inverse of `subtract`: `coded` becomes the words."""
    if difference == Difference.MINUS:
        one = coded.dtype.type(1)
        coded[...] = base + (coded >> one ^ -(coded & one))
    else:
        np.bitwise_xor(coded, base, out=coded)


def content_hash(tensors: Iterable[tuple[str, DType, tuple[int, ...], int]]) -> bytes:
    """SHA-256 of what a checkpoint holds, however it is coded (R11.4), from name, dtype,
    shape and CRC-32 of each tensor.
    """
    import hashlib  # only differences need it, and it loads OpenSSL

    sha = hashlib.sha256()
    for name, dtype, shape, crc in sorted(tensors, key=lambda t: t[0].encode()):
        text = name.encode()
        sha.update(
            struct.pack("<I", len(text))
            + text
            + struct.pack(f"<BB{len(shape)}QI", dtype.id, len(shape), *shape, crc)
        )
    return sha.digest()
