"""Words that differ from those of a base, by ``kernels/sparse.cu``. Spec: 12.1."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.cuda.runtime import Runtime
from wcodec.reference.sparse import GAP_SKIP, Changes

# Structures of kernels/sparse.cu.
ARRAYS: Final = np.dtype([
    ("words", "<u8"), ("base", "<u8"), ("n", "<u8"), ("segment", "<u8"),
    ("part", "<u4"), ("parts_each", "<u4"), ("n_parts", "<u4"), ("reserved", "<u4"),
])  # fmt: skip
COUNT: Final = np.dtype([("n_listed", "<u4"), ("n_gaps", "<u4"), ("first", "<u4"), ("last", "<u4")])
START: Final = np.dtype([
    ("listed", "<u8"), ("gaps", "<u8"), ("after", "<u8"), ("n_listed", "<u4"), ("reserved", "<u4"),
])  # fmt: skip
LIST: Final = np.dtype([
    ("gaps", "<u8"), ("places", "<u8"), ("start", "<u8"), ("size", "<u8"),
    ("n_gaps", "<u4"), ("n_listed", "<u4"),
])  # fmt: skip

THREADS: Final = 256
WARPS: Final = THREADS // 32
PART: Final = 1 << 12  #: words that a warp compares
PLACE_NBYTES: Final = 8
MOST_BLOCKS: Final = 1 << 13  #: of several words a thread, beyond as many

Ints = NDArray[np.int64]


def _before(n: Ints) -> Ints:
    return np.asarray(np.cumsum(n) - n, np.int64)


# ---- listing -------------------------------------------------------------------------------------
def list_changes(
    runtime: Runtime, words: Any, base: Any, segment: int, most: int
) -> Changes | None:
    """See `wcodec.backends.protocol.Backend.list_changes`. Waits for the counts."""
    n, word = int(words.size), words.dtype
    segment = max(1, min(segment, n))
    n_segments, parts_each = -(-n // segment), -(-segment // PART)
    about = np.zeros(1, ARRAYS)
    about["words"], about["base"] = runtime.address(words), runtime.address(base)
    about["n"], about["segment"], about["part"] = n, segment, PART
    n_parts = n_segments * parts_each
    about["parts_each"], about["n_parts"] = parts_each, n_parts
    counts, blocks = np.zeros(0, COUNT), -(-n_parts // WARPS)
    given: tuple[Any, ...] = runtime.upload(about.view(np.uint8)), np.uint32(word.itemsize)
    if n_parts:
        room = runtime.empty(n_parts * COUNT.itemsize)
        runtime.launch("count_changes", blocks, THREADS, *given, room)
        counts = runtime.download(room).view(COUNT)
    n_listed, n_gaps, after = _of_parts(counts, segment, parts_each)
    total = int(n_listed.sum())
    if total > most:
        return None
    gaps = runtime.empty(int(n_gaps.sum()))
    listed, old = (runtime.empty(total * word.itemsize) for _ in range(2))
    if total:
        starts = np.zeros(n_parts, START)
        starts["listed"], starts["gaps"] = _before(n_listed), _before(n_gaps)
        starts["after"], starts["n_listed"] = after, n_listed
        on_device = runtime.upload(starts.view(np.uint8))
        runtime.launch("list_changes", blocks, THREADS, *given, on_device, gaps, listed, old)
        runtime.mark().synchronize()  # what it reads is given back when this returns
    each_listed, each_gaps = (
        a.reshape(n_segments, parts_each).sum(axis=1).astype(np.uint32) for a in (n_listed, n_gaps)
    )
    return Changes(each_listed, each_gaps, gaps, listed.view(word), old.view(word))


def _of_parts(counts: NDArray[Any], segment: int, parts_each: int) -> tuple[Ints, Ints, Ints]:
    """Of each part the listed words, the gaps, and the place that the first gap skips from: it is
    behind the last listed word of the parts before, or where the segment starts.
    """
    n_listed, n_gaps = counts["n_listed"].astype(np.int64), counts["n_gaps"].astype(np.int64)
    of, within = np.divmod(np.arange(counts.size), parts_each)
    after, start = of * segment, of * segment + within * PART
    some = np.flatnonzero(n_listed)
    follow = np.diff(of[some]) == 0
    after[some[1:][follow]] = (start + counts["last"] + 1)[some[:-1][follow]]
    n_gaps[some] += (start + counts["first"] - after)[some] // GAP_SKIP + 1
    return n_listed, n_gaps, after


# ---- decoding ------------------------------------------------------------------------------------
class PendingPlaces:
    """Where listed words are, which a stream has been told to find.

    Parameters
    ----------
    gaps
        uint8, on the device.
    n_gaps, n_listed, starts, sizes
        See `wcodec.reference.sparse.places_of`.

    Attributes
    ----------
    places
        int64, on the device: each in its segment, also where its gaps are wrong.
    """

    def __init__(
        self, runtime: Runtime, gaps: Any, n_gaps: Ints, n_listed: Ints, starts: Ints, sizes: Ints
    ) -> None:
        self._runtime, n = runtime, int(n_gaps.size)
        self.places = runtime.empty(int(n_listed.sum()) * PLACE_NBYTES).view(np.int64)
        self._right, self._lists = runtime.empty(n), None
        if n == 0:
            return
        lists = np.zeros(n, LIST)
        lists["gaps"], lists["places"] = _before(n_gaps), _before(n_listed)
        lists["start"], lists["size"] = starts, sizes
        lists["n_gaps"], lists["n_listed"] = n_gaps, n_listed
        self._lists = runtime.upload(lists.view(np.uint8))  # kept for as long as it may be read
        given = self._lists, np.uint32(n), gaps, self.places, self._right
        runtime.launch("find_places", -(-n // WARPS), THREADS, *given)

    def right(self) -> NDArray[np.bool_]:
        """Of each segment, whether its gaps keep the rule; waits, on the stream that finds it."""
        out: NDArray[np.uint8] = self._runtime.download(self._right)
        self._lists = None
        return out.view(np.bool_)


def take(runtime: Runtime, words: int, places: Any, word_nbytes: int, out: int) -> None:
    """Queue ``out[...] = words[places]``, of device addresses, and places on the device."""
    _launch(runtime, "take_words", words, places, word_nbytes, out)


def put(runtime: Runtime, words: int, places: Any, word_nbytes: int, values: int) -> None:
    """Queue ``words[places] = values``, of device addresses, and places on the device."""
    _launch(runtime, "put_words", words, places, word_nbytes, values)


def _launch(
    runtime: Runtime, kernel: str, words: int, places: Any, word_nbytes: int, others: int
) -> None:
    n = int(places.size)
    if n == 0:
        return
    blocks, about = min(-(-n // THREADS), MOST_BLOCKS), (np.uint64(n), np.uint32(word_nbytes))
    runtime.launch(kernel, blocks, THREADS, np.uint64(words), places, *about, np.uint64(others))
