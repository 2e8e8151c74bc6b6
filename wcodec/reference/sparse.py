"""Lists of words that differ from those of a base: found, and put into their places.
Spec: 12.1.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wcodec.reference.planes import Bytes, Words

GAP_SKIP: Final = 255  #: a gap that skips so many words, and lists none (R12.11)


class Changes(NamedTuple):
    """Words that differ from those of a base, segment by segment.

    Attributes
    ----------
    n_listed, n_gaps
        uint32, on the host: of each segment.
    gaps
        uint8, in the backend's memory: those of all segments, one after another.
    words, base
        Unsigned, in the backend's memory: the words that differ, and those of the base in their
        places.
    """

    n_listed: NDArray[np.uint32]
    n_gaps: NDArray[np.uint32]
    gaps: Any
    words: Any
    base: Any


class PutStatus(IntEnum):
    """What has become of the listed words of a segment."""

    PUT = 0  #: they are in their places
    THERE = 1  #: they have been there already
    OTHER = 2  #: something else has been there than the base
    BAD_GAPS = 3  #: its gaps do not fit it (R12.11)


class ListedSegments(NamedTuple):
    """Segments with listed words, of one array or several.

    Attributes
    ----------
    of
        int64, ascending: in which array each segment is.
    n_gaps, n_listed
        int64: of each segment, not 0.
    starts, sizes
        int64: where each segment starts in its array, and how many words it has there.
    words_crc32
        uint32: of its listed words (R12.13).
    """

    of: NDArray[np.int64]
    n_gaps: NDArray[np.int64]
    n_listed: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    words_crc32: NDArray[np.uint32]

    def ends(self) -> NDArray[np.int64]:
        """Where the listed words of each segment start among those of all, and at the end where the
        last ones stop.
        """
        return np.append(0, np.cumsum(self.n_listed))

    def ends_of(self, n_arrays: int) -> NDArray[np.int64]:
        """The same of the listed words of each array."""
        return self.ends()[np.searchsorted(self.of, np.arange(n_arrays + 1))]


class Put(NamedTuple):
    """Result of `Backend.put_lists`.

    Attributes
    ----------
    status
        uint8, on the host: a `PutStatus` a segment.
    places, before
        On the device: of all listed words, where they are in their array, and what was there.
    """

    status: NDArray[np.uint8]
    places: Any
    before: Any

    def wrong_arrays(self, segments: ListedSegments) -> list[int]:
        """Numbers of the arrays that have stayed as they were, for a segment is wrong there."""
        wrong = self.status > PutStatus.THERE.value
        return np.unique(segments.of[wrong]).tolist() if wrong.any() else []


def list_changes(words: Words, base: Words, segment: int) -> Changes:
    """The words that differ from those of a base, by the rules of R12.11.

    Parameters
    ----------
    words, base
        Unsigned, of shape (n,) and the same type.
    segment
        Words of a segment; the last one may have fewer.
    """
    at = np.flatnonzero(words != base)
    of = at // segment
    before = np.full(at.size, -1, np.int64)
    before[1:] = at[:-1]
    skipped = at - np.maximum(before, of * segment - 1) - 1
    n_each = skipped // GAP_SKIP + 1
    gaps = np.full(int(n_each.sum()), GAP_SKIP, np.uint8)
    gaps[np.cumsum(n_each) - 1] = skipped % GAP_SKIP
    n_segments = -(-words.size // segment)
    n_gaps = np.bincount(of, n_each, n_segments).astype(np.uint32)
    n_listed = np.bincount(of, minlength=n_segments).astype(np.uint32)
    return Changes(n_listed, n_gaps, gaps, words[at], base[at])


def places_of(
    gaps: Bytes,
    n_gaps: NDArray[np.int64],
    n_listed: NDArray[np.int64],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where listed words are (R12.11).

    Parameters
    ----------
    gaps
        uint8: those of some segments, one after another.
    n_gaps, n_listed
        Of each segment, not 0.
    starts, sizes
        Where each segment starts in an array, and how many words it has there.

    Returns
    -------
    places
        int64: of all listed words, as indices into the array; where the gaps of a segment break the
        rule, that of its first word.
    right
        bool: of each segment, whether they keep it.
    """
    lists = gaps < GAP_SKIP
    ends = np.cumsum(n_gaps)
    of = np.repeat(np.arange(n_gaps.size), n_gaps)
    after = np.cumsum(gaps.astype(np.int64) + lists)
    skipped = np.append(0, after)[ends - n_gaps]
    counts = np.bincount(of[lists], minlength=n_gaps.size)
    right = (counts == n_listed) & (after[ends - 1] - skipped <= sizes) & lists[ends - 1]
    places = np.repeat(starts, n_listed)
    good = lists & right[of]
    places[np.repeat(right, n_listed)] = (after - 1 + (starts - skipped)[of])[good]
    return places, right
