"""Words that differ from those of a base: listed, and put into their places. Spec: 12.1.

There are kernels for each size of words in bytes. Arrays of words are flat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from wcodec.backends.numba.crc32 import crc32_of
from wcodec.backends.numba.ir import I1, I64, constant, declare, element, load, vector
from wcodec.backends.numba.kernels import (
    Bytes,
    Int,
    Ints,
    Kernel,
    UInts32,
    UInts32x2,
    Words,
    intrinsic,
    jit,
    kernel,
)
from wcodec.reference.planes import WORD_TYPES
from wcodec.reference.sparse import GAP_SKIP, PutStatus

BLOCK: Final = 64  #: words that are compared at once
_SKIP: Final = GAP_SKIP
#: of a segment, columns of `counts`
LISTED, GAPS = 0, 1
PUT, THERE, OTHER, BAD_GAPS = (np.uint8(status) for status in PutStatus)


class Lists(NamedTuple):
    """What kernels know of the listed words of some segments.

    Attributes
    ----------
    gaps
        Those of all segments, one after another.
    firsts
        Of each segment, the number of the first word of its array.
    n_gaps, n_listed, starts, sizes
        Of each segment; it starts in its array at `starts`, and has `sizes` words.
    places
        To be filled in: places in arrays.
    """

    gaps: Bytes
    firsts: Ints
    n_gaps: Ints
    n_listed: Ints
    starts: Ints
    sizes: Ints
    places: Ints


class Sums(NamedTuple):
    """Parameters of `crc32_of`."""

    slices: UInts32x2
    rest: Bytes


@intrinsic
def _differing(typing: Any, words: Any, base: Any, at: Any) -> Any:
    """Which of the `BLOCK` words from `at` on differ: a bit each, the lowest for the first."""
    from numba.core import types

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        bits = context.get_value_type(signature.args[0].dtype)
        of = vector(bits, BLOCK)
        two = [
            load(b, element(b, context.make_array(t)(context, b, a).data, bits, args[2]), of)
            for t, a in zip(signature.args[:2], args[:2], strict=True)
        ]
        return b.bitcast(b.icmp_unsigned("!=", *two), I64)

    return types.uint64(words, base, types.int64), codegen


@intrinsic
def _lowest(typing: Any, bits: Any) -> Any:
    """Number of the lowest bit of a u64 that is not 0."""
    from numba.core import types

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.call(declare(b, "llvm.cttz.i64", I64, [I64, I1]), [args[0], constant(I1, 1)])

    return types.int64(types.uint64), codegen


@jit
def _put_gap(gaps: Any, n: Any, skipped: Any) -> Any:
    while skipped >= _SKIP:
        gaps[n] = np.uint8(_SKIP)
        skipped -= _SKIP
        n += 1
    gaps[n] = np.uint8(skipped)
    return n + 1


def _list_range(
    words: Words, base: Words, segment: Int, counts: Ints, gaps: Bytes, listed: Words, old: Words
) -> Int:
    """Lists the words of whole segments that differ. `counts` has two numbers for each segment.

    `gaps` have room for a gap of each word that `listed` has room for, and for all that list none.
    Returns the words that are listed; or -1 if there is no room for them, or might be none for
    those of a block.
    """
    n, n_gaps, n_segments = 0, 0, (words.size + segment - 1) // segment
    for k in range(n_segments):
        at, end = k * segment, min((k + 1) * segment, words.size)
        first, first_gap, after = n, n_gaps, at
        while at < end:
            if n + BLOCK > listed.size:
                return -1
            if at + BLOCK <= end:
                bits = _differing(words, base, at)
                while bits:
                    i = at + _lowest(bits)
                    bits &= bits - np.uint64(1)
                    n_gaps = _put_gap(gaps, n_gaps, i - after)
                    listed[n], old[n] = words[i], base[i]
                    n, after = n + 1, i + 1
                at += BLOCK
            else:
                if words[at] != base[at]:
                    n_gaps = _put_gap(gaps, n_gaps, at - after)
                    listed[n], old[n] = words[at], base[at]
                    n, after = n + 1, at + 1
                at += 1
        counts[2 * k + LISTED], counts[2 * k + GAPS] = n - first, n_gaps - first_gap
    return n


@jit
def _find_places(gaps: Any, start: Any, size: Any, places: Any) -> Any:
    """Puts the places of a segment's listed words into `places`; false if its gaps do not list as
    many words of the segment.
    """
    at, n = 0, 0
    step: Any = 0
    for i in range(gaps.size):
        step = np.int64(gaps[i])
        at += step
        if step < _SKIP:
            if n == places.size or at >= size:
                return False
            places[n] = start + at
            n += 1
            at += 1
    return n == places.size and step < _SKIP


@kernel
def find_places(
    gaps: Bytes, n_gaps: Ints, n_listed: Ints, starts: Ints, sizes: Ints, places: Ints, right: Bytes
) -> None:
    """As `wcodec.reference.sparse.places_of`; places of wrong segments are their starts."""
    gap, word = 0, 0
    for k in range(n_gaps.size):
        own = places[word : word + n_listed[k]]
        is_right = _find_places(gaps[gap : gap + n_gaps[k]], starts[k], sizes[k], own)
        if not is_right:
            own[:] = starts[k]
        right[k] = np.uint8(is_right)
        gap, word = gap + n_gaps[k], word + n_listed[k]


@jit
def _add(listed: Any, old: Any, minus: Any) -> None:
    """As `Backend.add_base`."""
    if minus:
        for i in range(listed.size):
            z = listed[i]
            listed[i] = old[i] + (z >> 1 ^ -(z & 1))
    else:
        for i in range(listed.size):
            listed[i] ^= old[i]


def _put_lists_range(
    words: Words, of: Lists, listed: Words, old: Words, minus: Int, wanted: UInts32, crc: Sums,
    status: Bytes,
) -> None:  # fmt: skip
    """As `Backend.put_lists`, of some segments, but what is right is put in even where something
    else is wrong. `words` reach from the first of all arrays to the last; `old` are those that were
    there.
    """
    gap, word, lists, sums = 0, 0, Lists(*of), Sums(*crc)
    for k in range(status.size):
        end = word + lists.n_listed[k]
        places, new, before = lists.places[word:end], listed[word:end], old[word:end]
        own = lists.gaps[gap : gap + lists.n_gaps[k]]
        is_right = _find_places(own, lists.starts[k], lists.sizes[k], places)
        gap, word = gap + lists.n_gaps[k], end
        if not is_right:
            status[k] = BAD_GAPS
            continue
        first = lists.firsts[k]
        for i in range(places.size):
            before[i] = words[first + places[i]]
        _add(new, before, minus)
        if crc32_of(new.view(np.uint8), np.uint32(0), sums.slices, sums.rest) == wanted[k]:
            for i in range(places.size):
                words[first + places[i]] = new[i]
            status[k] = PUT
        elif crc32_of(before.view(np.uint8), np.uint32(0), sums.slices, sums.rest) == wanted[k]:
            status[k] = THERE
        else:
            status[k] = OTHER


def _take_range(words: Words, places: Ints, out: Words) -> None:
    for i in range(places.size):
        out[i] = words[places[i]]


def _put_range(words: Words, places: Ints, values: Words) -> None:
    for i in range(places.size):
        words[places[i]] = values[i]


def _for_words(function: Callable[..., Any]) -> dict[int, Kernel]:
    return {nbytes: Kernel(function, word) for nbytes, word in WORD_TYPES.items()}


LIST: Final = _for_words(_list_range)
TAKE: Final = _for_words(_take_range)
PUT_WORDS: Final = _for_words(_put_range)
PUT_LISTS: Final = _for_words(_put_lists_range)
