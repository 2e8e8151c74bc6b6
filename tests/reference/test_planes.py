"""Planes: the maps of known values as literals, and every 16-bit pattern there and back."""

from __future__ import annotations

import numpy as np
import pytest
from inputs import BY_NAME

from wcodec.errors import EncodeError
from wcodec.reference.planes import (
    DTYPES,
    WORD_TYPES,
    dtype_of,
    map_words,
    merge,
    pack_nibbles,
    patch_uncoded,
    split,
    split_window,
    unmap_words,
    unpack_nibbles,
)

# dtype, word, mapped word. EXPONENT_FIRST moves the sign bit below the exponent;
# OFFSET flips the top bit.
EXAMPLES = [
    ("bfloat16", 0x3F80, 0x7F00),  # 1.0: exponent 127
    ("bfloat16", 0xBFC0, 0x7FC0),  # -1.5: sign and the top bit of the mantissa
    ("bfloat16", 0x8000, 0x0080),  # -0.0
    ("bfloat16", 0xFFFF, 0xFFFF),  # a NaN with every bit set
    ("bfloat16", 0x7F80, 0xFF00),  # infinity
    ("float32", 0x3F800000, 0x7F000000),  # 1.0
    ("float32", 0xC0490FDB, 0x80C90FDB),  # -3.1415927: exponent 128, sign, mantissa 0x490FDB
    ("float32", 0x80000001, 0x00800001),  # the least negative subnormal
    ("complex64", 0x3F800000, 0x7F000000),
    ("float8_e4m3fn", 0x38, 0x70),  # 1.0: exponent 7
    ("float8_e4m3fn", 0xBE, 0x7E),  # -1.75
    ("float8_e4m3fnuz", 0x80, 0x08),  # its only NaN
    ("float8_e5m2", 0x3C, 0x78),  # 1.0: exponent 15
    ("float8_e5m2", 0xBE, 0x7E),  # -1.5
    ("float16", 0xBE00, 0xBE00),  # not mapped
    ("float64", 0x3FF0000000000000, 0x3FF0000000000000),
    ("int8", 0x80, 0x00),  # -128 is the least
    ("int8", 0x00, 0x80),
    ("int16", 0xFFFF, 0x7FFF),  # -1
    ("int32", 0x00000001, 0x80000001),
    ("int64", 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF),
    ("uint8", 0x80, 0x80),
    ("uint64", 0x0123456789ABCDEF, 0x0123456789ABCDEF),
]


@pytest.mark.parametrize(("name", "word", "mapped"), EXAMPLES)
def test_known_values_are_mapped_as_the_spec_says(name: str, word: int, mapped: int) -> None:
    dtype = BY_NAME[name]
    t = dtype.word_type.type
    assert int(map_words(np.array([word], t), dtype)[0]) == mapped
    assert int(unmap_words(np.array([mapped], t), dtype)[0]) == word


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.word_nbytes <= 2], ids=lambda d: d.name)
def test_every_pattern_of_one_and_two_bytes_is_mapped_to_another(dtype) -> None:  # type: ignore[no-untyped-def]
    words = np.arange(1 << 8 * dtype.word_nbytes).astype(dtype.word_type)
    mapped = map_words(words, dtype)
    assert np.array_equal(np.sort(mapped), words)
    assert np.array_equal(unmap_words(mapped, dtype), words)
    assert np.array_equal(merge(split(words, dtype), dtype), words)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_planes_are_the_bytes_of_mapped_words_top_byte_first(dtype) -> None:  # type: ignore[no-untyped-def]
    words = np.frombuffer(
        np.random.default_rng(1).bytes(6 * dtype.word_nbytes), dtype.word_type
    ).reshape(2, 3)
    planes = split(words, dtype)
    assert planes.shape == (dtype.word_nbytes, 2, 3)
    whole = sum(
        planes[p].astype(object) << 8 * (dtype.word_nbytes - 1 - p)
        for p in range(dtype.word_nbytes)
    )
    assert whole.tolist() == map_words(words, dtype).tolist()
    assert np.array_equal(merge(planes, dtype), words)


def test_planes_of_a_bfloat16_are_exponent_and_sign_with_mantissa() -> None:
    planes = split(np.array([0x3F80, 0xBFC0], "<u2"), BY_NAME["bfloat16"])
    assert planes.tolist() == [[0x7F, 0x7F], [0x00, 0xC0]]


def test_nibbles_are_packed_low_one_first() -> None:
    codes = np.array([1, 2, 15, 0, 7], np.uint8)
    assert pack_nibbles(codes, 9).tolist() == [0x21, 0x0F, 0x97]
    assert unpack_nibbles(np.array([0x21, 0x0F, 0x97], np.uint8), 5).tolist() == codes.tolist()
    assert pack_nibbles(np.empty(0, np.uint8)).size == 0


def test_what_lies_outside_the_window_becomes_a_patch() -> None:
    top = np.array([100, 99, 115, 116, 0, 255], np.uint8)
    code, patches = split_window(top, 100, 5)
    assert code.tolist() == [0, 5, 15, 5, 5, 5]
    assert patches.tolist() == [99 << 24 | 1, 116 << 24 | 3, 0 << 24 | 4, 255 << 24 | 5]
    assert top.tolist() == [100, 99, 115, 116, 0, 255]


def test_pairs_that_a_table_does_not_code_get_patches() -> None:
    """The second code becomes the fill code 5, or else the first, or else both."""
    top = np.array([101, 102, 103, 104, 101, 108, 250, 109, 105, 102], np.uint8)
    codes, patches = split_window(top, 100, 5)
    pairs = pack_nibbles(codes, 5)
    coded = np.zeros(256, np.bool_)
    coded[[0x55, 0x21, 0x53, 0x85]] = True  # 1 and 2; 3 and fill; fill and 8
    found, all_patches = patch_uncoded(pairs, patches, top, coded, 5)
    assert found.tolist() == [0x21, 0x53, 0x85, 0x55, 0x55]
    changed = {i & 0xFFFFFF: i >> 24 for i in all_patches.tolist()}
    assert changed == {3: 104, 4: 101, 6: 250, 7: 109, 9: 102}
    assert list(changed) == sorted(changed)
    assert pairs[1] == 0x43  # the caller's stay as they are
    both, _ = patch_uncoded(pairs[:1], patches[:0], top[:2], ~coded | (np.arange(256) == 0x55), 5)
    assert both.tolist() == [0x51]
    only, more = patch_uncoded(pairs[:1], patches[:0], top[:2], np.arange(256) == 0x55, 5)
    assert only.tolist() == [0x55]
    assert more.tolist() == [101 << 24, 102 << 24 | 1]


def test_the_missing_neighbour_of_an_odd_last_word_gets_no_patch() -> None:
    top = np.array([102, 105, 103], np.uint8)
    codes, patches = split_window(top, 100, 5)
    pairs = pack_nibbles(codes, 5)
    found, more = patch_uncoded(pairs, patches, top, np.arange(256) == 0x55, 5)
    assert found.tolist() == [0x55, 0x55]
    assert more.tolist() == [102 << 24, 103 << 24 | 2]


def test_ids_and_names_of_the_registry_are_unique_and_sizes_right() -> None:
    assert [d.id for d in DTYPES] == list(range(21))
    assert len({d.name for d in DTYPES}) == len({d.safetensors for d in DTYPES}) == 21
    for d in DTYPES:
        assert d.numpy.itemsize == d.nbytes == d.word_nbytes * d.words_per_element
        assert d.word_type == WORD_TYPES[d.word_nbytes]


@pytest.mark.parametrize(
    "array",
    [np.array(["a"]), np.array([object()]), np.zeros(1, "M8[s]"), np.zeros(1, [("a", "u1")])],
)
def test_dtypes_without_an_id_are_refused(array: np.ndarray) -> None:
    with pytest.raises(EncodeError, match="unsupported_dtype"):
        dtype_of(array)
