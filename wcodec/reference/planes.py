"""Words and planes: what a dtype's bit patterns are, and how they are cut into streams of bytes.
Spec: chapter 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from wcodec.errors import EncodeError

Words = NDArray[Any]  #: unsigned integers of 1, 2, 4 or 8 bytes: bit patterns
Bytes = NDArray[np.uint8]

WORD_TYPES: Final[dict[int, np.dtype[Any]]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}


class WordMap(IntEnum):
    """What is done to a word before it is cut into planes. Each is a bijection."""

    IDENTITY = 0
    #: the top bit flipped: two's complement becomes offset binary, so that order is kept
    OFFSET = 1
    EXPONENT_FIRST = 2  #: exponent | sign | mantissa, from the top bit down


class Layout(IntEnum):
    """How a segment's words are stored. Spec: R5.3."""

    RAW = 0  #: the words themselves
    BYTES = 1  #: one plane a byte of the mapped word, top byte first
    PAIRS = 2  #: plane 0 holds 4-bit codes, two to a symbol


@dataclass(frozen=True, slots=True)
class DType:
    """One row of the dtype registry (spec: chapter 18).

    Attributes
    ----------
    id
        Id in a tensor record.
    name
        Name in this project.
    safetensors
        Name in a safetensors header.
    word_nbytes
        Bytes of a word: 1, 2, 4 or 8.
    words_per_element
        2 for complex numbers, otherwise 1.
    word_map, exponent_bits
        The map, and for `EXPONENT_FIRST` the width of the exponent.
    numpy
        The NumPy dtype of decoded arrays.
    """

    id: int
    name: str
    safetensors: str
    word_nbytes: int
    words_per_element: int
    word_map: WordMap
    exponent_bits: int
    numpy: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of an element."""
        return self.word_nbytes * self.words_per_element

    @property
    def word_type(self) -> np.dtype[Any]:
        """Unsigned NumPy dtype of a word."""
        return WORD_TYPES[self.word_nbytes]

    @property
    def n_planes(self) -> int:
        """Planes that the segment table has columns for (R5.9):
        two for one-byte words, for `PAIRS` needs two.
        """
        return max(2, self.word_nbytes)

    @property
    def has_pairs(self) -> bool:
        """Whether `Layout.PAIRS` is defined for this dtype (R5.7)."""
        return self.word_nbytes == 1 or self.word_map is WordMap.EXPONENT_FIRST


def _row(
    id: int,
    name: str,
    st: str,
    n: int,
    numpy: Any,
    m: WordMap = WordMap.IDENTITY,
    e: int = 0,
    k: int = 1,
) -> DType:
    dtype = np.dtype(numpy)
    return DType(
        id, name, st, n, k, m, e, dtype.newbyteorder("<") if dtype.kind in "iufc" else dtype
    )


_OFF, _EXP = WordMap.OFFSET, WordMap.EXPONENT_FIRST
DTYPES: Final[tuple[DType, ...]] = (
    _row(0, "opaque", "", 1, "u1"),
    _row(1, "bool", "BOOL", 1, "?"),
    _row(2, "uint8", "U8", 1, "u1"),
    _row(3, "int8", "I8", 1, "i1", _OFF),
    _row(4, "uint16", "U16", 2, "u2"),
    _row(5, "int16", "I16", 2, "i2", _OFF),
    _row(6, "uint32", "U32", 4, "u4"),
    _row(7, "int32", "I32", 4, "i4", _OFF),
    _row(8, "uint64", "U64", 8, "u8"),
    _row(9, "int64", "I64", 8, "i8", _OFF),
    _row(10, "float16", "F16", 2, "f2"),
    _row(11, "bfloat16", "BF16", 2, ml_dtypes.bfloat16, _EXP, 8),
    _row(12, "float32", "F32", 4, "f4", _EXP, 8),
    _row(13, "float64", "F64", 8, "f8"),
    _row(14, "float8_e4m3fn", "F8_E4M3", 1, ml_dtypes.float8_e4m3fn, _EXP, 4),
    _row(15, "float8_e5m2", "F8_E5M2", 1, ml_dtypes.float8_e5m2, _EXP, 5),
    _row(16, "float8_e8m0fnu", "F8_E8M0", 1, ml_dtypes.float8_e8m0fnu),
    _row(17, "float8_e4m3fnuz", "F8_E4M3FNUZ", 1, ml_dtypes.float8_e4m3fnuz, _EXP, 4),
    _row(18, "float8_e5m2fnuz", "F8_E5M2FNUZ", 1, ml_dtypes.float8_e5m2fnuz, _EXP, 5),
    _row(19, "complex64", "C64", 4, "c8", _EXP, 8, 2),
    _row(20, "complex128", "C128", 8, "c16", k=2),
)
OPAQUE: Final = DTYPES[0]
BY_ID: Final = {d.id: d for d in DTYPES}
BY_NAME: Final = {d.name: d for d in DTYPES}
BY_SAFETENSORS: Final = {d.safetensors: d for d in DTYPES[1:]}
_BY_NUMPY: Final = {d.numpy: d for d in DTYPES[1:]}


def dtype_of(array: NDArray[Any]) -> DType:
    """Registry row of an array's dtype.

    Raises
    ------
    EncodeError
        ``unsupported_dtype``: objects, strings, dates, structures, long doubles,
        unpacked 4-bit types.
    """
    dtype = array.dtype.newbyteorder("<") if array.dtype.kind in "iufc" else array.dtype
    row = _BY_NUMPY.get(dtype)
    if row is None:
        raise EncodeError(
            "unsupported_dtype", f"dtype {array.dtype.name!r} has no id in the format{_hint(array)}"
        )
    return row


def _hint(array: NDArray[Any]) -> str:
    """What to do about an array of another dtype."""
    if array.dtype.names is not None:
        return "; store each field by itself"
    if array.dtype.kind == "V" and "4" in array.dtype.name:
        return "; pack 4-bit values two to a uint8"
    if array.dtype.kind in "mM":
        return "; store array.view('int64'), and keep the unit beside it"
    if array.dtype.kind == "O":
        return "; store numbers that are all of one dtype"
    return "; store its bytes: array.view('uint8')" if array.dtype.kind in "SUVfc" else ""


def map_words(words: Words, dtype: DType) -> Words:
    """Apply the dtype's word map (R5.2). Shape and type are kept."""
    if dtype.word_map is WordMap.IDENTITY:
        return words
    t, bits = words.dtype.type, 8 * dtype.word_nbytes
    mapped: Words
    if dtype.word_map is WordMap.OFFSET:
        mapped = words ^ t(1 << (bits - 1))
        return mapped
    m = bits - 1 - dtype.exponent_bits
    sign = words >> t(bits - 1)
    exponent = (words >> t(m)) & t((1 << dtype.exponent_bits) - 1)
    mantissa = words & t((1 << m) - 1)
    mapped = (exponent << t(m + 1)) | (sign << t(m)) | mantissa
    return mapped


def unmap_words(mapped: Words, dtype: DType) -> Words:
    """Inverse of `map_words`."""
    if dtype.word_map is not WordMap.EXPONENT_FIRST:
        return map_words(mapped, dtype)  # the other two are involutions
    t, bits = mapped.dtype.type, 8 * dtype.word_nbytes
    m = bits - 1 - dtype.exponent_bits
    sign, exponent, mantissa = (mapped >> t(m)) & t(1), mapped >> t(m + 1), mapped & t((1 << m) - 1)
    words: Words = (sign << t(bits - 1)) | (exponent << t(m)) | mantissa
    return words


def split(words: Words, dtype: DType) -> Bytes:
    """Byte planes of words (R5.4).

    Parameters
    ----------
    words
        Any shape.

    Returns
    -------
    uint8 array of shape ``(word_nbytes, *words.shape)``, top byte first.
    """
    mapped = np.ascontiguousarray(map_words(words, dtype).astype(dtype.word_type, copy=False))
    return np.moveaxis(mapped.view(np.uint8).reshape(*mapped.shape, dtype.word_nbytes), -1, 0)[::-1]


def merge(planes: Bytes, dtype: DType) -> Words:
    """Inverse of `split`."""
    stacked = np.ascontiguousarray(np.moveaxis(planes[::-1], 0, -1))
    return unmap_words(stacked.view(dtype.word_type)[..., 0], dtype)


def pack_nibbles(codes: Bytes, fill: int = 0) -> Bytes:
    """Two 4-bit codes a byte: ``codes[2i] | codes[2i+1] << 4`` (R5.6);
    an odd last one is joined by `fill`.
    """
    if codes.size % 2:
        codes = np.append(codes, np.uint8(fill))
    return codes[0::2] | (codes[1::2] << np.uint8(4))


def unpack_nibbles(packed: Bytes, n: int) -> Bytes:
    """First `n` codes of packed bytes."""
    return np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(-1)[:n]


def split_window(top: Bytes, base: int, fill: int) -> tuple[Bytes, NDArray[np.uint32]]:
    """Codes of a top plane in the window ``base .. base + 15``,
    and the patches for what lies outside (R5.7, R10.8).

    Returns
    -------
    codes
        uint8, one a word, 0 to 15; `fill` outside the window.
    patches
        uint32, ``value << 24 | index``, ascending by index.
    """
    code = top - np.uint8(base)  # mod 256: what lies below the window becomes large
    outside = np.flatnonzero(code > 15).astype(np.uint32)
    code[outside] = fill
    return code, (top[outside].astype(np.uint32) << np.uint32(24)) | outside


def patch_uncoded(
    pairs: Bytes, patches: NDArray[np.uint32], top: Bytes, coded: NDArray[np.bool_], fill: int
) -> tuple[Bytes, NDArray[np.uint32]]:
    """Pairs of codes that a table can code, and patches for what that changes (R10.8).

    Of a pair that it cannot, the second code becomes `fill`, or else the first, or else both.

    Parameters
    ----------
    pairs
        uint8 of shape (n,): packed codes of the top plane, of words in the window.
    patches
        uint32: those of the words outside of it.
    top
        uint8: the top plane.
    coded
        bool of shape (256,): which symbols the table codes, ``fill | fill << 4`` among them.

    Returns
    -------
    The pairs, and all patches, ascending by index.
    """
    where = np.flatnonzero(~coded[pairs])
    if where.size == 0:
        return pairs, patches
    first, second = pairs[where] & np.uint8(15), pairs[where] >> np.uint8(4)
    one, other = first | np.uint8(fill << 4), second << np.uint8(4) | np.uint8(fill)
    keeps_first = coded[one]
    keeps_second = ~keeps_first & coded[other]
    pairs = pairs.copy()
    pairs[where] = np.select([keeps_first, keeps_second], [one, other], np.uint8(fill | fill << 4))
    changed = np.concatenate([2 * where[~keeps_first], 2 * where[~keeps_second] + 1])
    more = top[changed].astype(np.uint32) << np.uint32(24) | changed.astype(np.uint32)
    both = np.concatenate([patches, more])
    return pairs, both[np.argsort(both & np.uint32(0xFFFFFF))]
