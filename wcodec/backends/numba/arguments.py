"""Arguments of kernels that belong together, as named tuples.

Python passes plain tuples, whose types numba finds faster than those of named ones, and each kernel
names their elements first: ``matrix = Matrix(*matrix)``.
"""

from __future__ import annotations

from typing import Any, NamedTuple


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

    data: Any
    cols: Any
    tile_rows: Any
    tile_cols: Any
    word_nbytes: Any
    word_map: Any
    native: Any


class Counted(NamedTuple):
    """What a histogram counts; see `Backend.histogram`.

    Attributes
    ----------
    planes
        int64: byte planes, or nibble planes where words are of one byte and `base` is not -1.
    mode
        Counts are of what it makes of the bytes.
    base
        Start of the window of which pairs of codes are counted too, or -1 for none.
    fill
        The code of words outside of it.
    """

    planes: Any
    mode: Any
    base: Any
    fill: Any


class Heads(NamedTuple):
    """What a plan has for the heads of records, uint8; see `SegmentPlan`."""

    modes: Any
    scales: Any


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
        uint16: room for the words of two streams that are encoded.
    """

    bytes: Any
    size: Any
    words: Any
    addresses: Any
    stream_words: Any


class EncodingTables(NamedTuple):
    """Tables that encode; see `tables.encoding_tables`.

    Attributes
    ----------
    codes
        uint64 of shape (n, 256, 2), for plain loops.
    entries
        uint8 of shape (n, bytes of a table), for vectors.
    prob_bits, padding
        int64 of shape (n,): log2 of the sum of frequencies, and the symbol that fills a last group.
    """

    codes: Any
    entries: Any
    prob_bits: Any
    padding: Any


class DecodingTables(NamedTuple):
    """Tables that decode.

    Attributes
    ----------
    luts
        uint32 of shape (n, 4096); see `tables.fill_luts`.
    prob_bits
        int64 of shape (n,): log2 of the sum of frequencies.
    """

    luts: Any
    prob_bits: Any


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

    kind: Any
    class_of: Any
    parts: Any
    prob_bits: Any
    padding: Any


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

    records: Any
    n_units: Any
    n_patches: Any
