"""Arguments of kernels that belong together, as named tuples.

Kernels get plain tuples, and name their elements first: ``matrix = Matrix(*matrix)``.
"""

from __future__ import annotations

from typing import NamedTuple

from wcodec.backends.numba.kernels import (
    Bytes,
    Bytes2,
    Int,
    Ints,
    UInts16,
    UInts32,
    UInts32x2,
    UInts64,
    UInts64x2,
)


class Matrix(NamedTuple):
    """A matrix of words, and how it is cut into tiles.

    Attributes
    ----------
    data
        Its bytes, uint8, row by row.
    cols, tile_rows, tile_cols
        In words.
    word_nbytes
        Bytes of a word.
    word_map
        Five uint64; see `words`.
    native
        Address of the native function that splits words into planes or merges them.
    """

    data: Bytes
    cols: Int
    tile_rows: Int
    tile_cols: Int
    word_nbytes: Int
    word_map: UInts64
    native: Int


class Counted(NamedTuple):
    """What a histogram counts; see `Backend.histogram`.

    Attributes
    ----------
    planes
        int64: byte planes, or nibble planes where words are of one byte and `base` is not -1.
    modes
        int64: counts are of what each makes of the bytes.
    base
        Start of the window of which pairs of codes are counted too, or -1 for none.
    fill
        The code of words outside of it.
    """

    planes: Ints
    modes: Ints
    base: Int
    fill: Int


class Heads(NamedTuple):
    """What a plan has for the heads of records, uint8; see `SegmentPlan`."""

    modes: Bytes
    scales: Bytes


class Rooms(NamedTuple):
    """Scratch of one thread for the planes of a segment.

    Attributes
    ----------
    bytes
        uint8: rooms for a plane each, one after another.
    size
        Bytes of a room: the largest plane in whole groups, and a group more.
    words
        uint8: room for the words of a segment whose tiles are narrower than it, otherwise empty.
    addresses
        int64: where each plane is that is split or merged, 8 for each of two segments.
    stream_words
        uint16: room for the words of `rans.ENCODING_ROWS` streams that are encoded.
    """

    bytes: Bytes
    size: Int
    words: Bytes
    addresses: Ints
    stream_words: UInts16


class EncodingTables(NamedTuple):
    """Tables that encode; see `tables.encoding_tables`.

    Attributes
    ----------
    codes
        uint64 of shape (256 * n, 2), for plain loops.
    entries
        uint8 of shape (n, bytes of a table), for vectors.
    prob_bits, padding
        int64 of shape (n,): log2 of the sum of frequencies, and the symbol that fills a last group.
    uncoded
        uint8 of shape (n, 32): bit ``symbol >> 4 & 7`` of byte ``symbol >> 7 << 4 | symbol & 15``
        is set for symbols that a table does not code.
    """

    codes: UInts64x2
    entries: Bytes2
    prob_bits: Ints
    padding: Ints
    uncoded: Bytes2


class DecodingTables(NamedTuple):
    """Tables that decode.

    Attributes
    ----------
    luts
        uint32, 4096 for each table; see `tables.fill_luts`.
    prob_bits
        int64 of shape (n,): log2 of the sum of frequencies.
    """

    luts: UInts32
    prob_bits: Ints


class ContextMaps(NamedTuple):
    """Context maps; see `contexts`.

    Attributes
    ----------
    kind
        int64 of shape (n,): a `ContextKind`, or `contexts.SINGLE`.
    class_of
        uint8 of shape (n, 256): the class of each context.
    parts
        uint32 of shape (n, 16): where the table of each class begins, in entries of all tables.
    prob_bits, padding
        int64 of shape (n,): those of the tables of a map, of which the first one fills.
    """

    kind: Ints
    class_of: Bytes2
    parts: UInts32x2
    prob_bits: Ints
    padding: Ints


class Encoded(NamedTuple):
    """What encoding makes of segments; see `protocol.EncodedSegments`.

    Attributes
    ----------
    records
        uint8: room for the records of a range of segments at worst.
    n_units
        uint32 of shape (n_planes, n).
    n_patches
        uint32 of shape (n,).
    """

    records: Bytes
    n_units: UInts32x2
    n_patches: UInts32
