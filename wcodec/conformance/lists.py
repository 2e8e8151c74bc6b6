"""What backends owe sparse tensors (12.1): lists made, read, and put into their places."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.protocol import Backend, Changes
from wcodec.conformance.cases import require, require_same, require_same_bytes
from wcodec.conformance.guarded import Guarded, walled
from wcodec.conformance.recipes import splitmix64
from wcodec.reference import sparse
from wcodec.reference.checksums import crc32_each
from wcodec.reference.differences import Difference, subtract
from wcodec.reference.planes import Bytes, Words

#: words, and words of a segment: ragged, exact, of one word, of more than there are
SIZES: Final = (
    (0, 5), (1, 1), (1, 9), (5, 2), (64, 64), (255, 255), (256, 255), (1000, 1 << 20), (1000, 300),
    (1024, 256), (700, 1), (129, 128), (5000, 777), (70000, 1 << 14),
)  # fmt: skip
SKIP: Final = sparse.GAP_SKIP
#: words that some tests start from
_FROM: Final = 3


def _masks(n: int, segment: int) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Which words have changed: none, all, few, and such that gaps are of all sizes that matter."""
    none, noise = np.zeros(n, bool), splitmix64(n + segment, n)
    yield "none", none
    yield "all", ~none
    for one_in in (3, 50, 1000):
        yield f"one in {one_in}", noise % np.uint64(one_in) == 0
    of_segment = np.arange(n) % segment
    yield "the first and last of each segment", (of_segment == 0) | (of_segment == segment - 1)
    yield "the last", np.arange(n) == n - 1
    for gap in (SKIP - 1, SKIP, SKIP + 1, 2 * SKIP, 2 * SKIP + 1):
        yield f"one after {gap}", np.arange(n) % (gap + 1) == gap


def _on_device(backend: Backend, words: Words) -> tuple[Guarded, Any]:
    """Words amid canaries, and what a kernel gets of that."""
    room = Guarded(backend, np.frombuffer(words.tobytes(), np.uint8), shift=words.itemsize)
    return room, room.array.view(words.dtype).reshape(words.shape)


def check_list_changes(backend: Backend) -> None:
    """`list_changes` of words of all sizes is that of the reference, up to the most words that are
    asked for.
    """
    for nbytes in (1, 2, 4, 8):
        for n, segment in SIZES:
            base = splitmix64(n, n).astype(f"<u{nbytes}")
            for what, mask in _masks(n, segment):
                # one bit, in any byte of a word
                bits = base.dtype.type(1) << (np.arange(n) * 5 % (8 * nbytes)).astype(base.dtype)
                words = np.where(mask, base ^ bits, base)
                text = f"{what} of {n} words of {nbytes} bytes, in segments of {segment}"
                _check_changes(backend, words, base, segment, text)


def _check_changes(backend: Backend, words: Words, base: Words, segment: int, text: str) -> None:
    due = sparse.list_changes(words, base, segment)
    n = due.words.size
    given = [_on_device(backend, a) for a in (words, base)]
    for most in {n, n + 1, words.size}:
        got = backend.list_changes(given[0][1], given[1][1], segment, most)
        require(got is not None, f"the changes of {text}, at most {most}", "none")
        assert got is not None
        for name in Changes._fields:
            there = getattr(got, name)
            there = there if name.startswith("n_") else backend.to_host(there)
            require_same(there, getattr(due, name), f"{name} of {text}")
    for most in {n - 1, 0} - {-1, n}:
        got = backend.list_changes(given[0][1], given[1][1], segment, most)
        require(got is None, f"no changes of {text}: they are more than {most}", "some")
    for room, _ in given:
        room.unchanged("the words and the base")


# ---- places --------------------------------------------------------------------------------------
class _Lists(NamedTuple):
    """What `places_of` gets."""

    gaps: Bytes
    n_gaps: NDArray[np.int64]
    n_listed: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]


def _lists(mask: NDArray[np.bool_], segment: int) -> _Lists:
    """Gaps to some words, in the order of their segments; these have room between them."""
    found = sparse.list_changes(mask.astype(np.uint8), np.zeros(mask.size, np.uint8), segment)
    k = np.flatnonzero(found.n_listed)
    sizes = np.minimum(segment, mask.size - k * segment)
    starts = _FROM + k * segment + np.arange(k.size)
    n_gaps, n_listed = (a[k].astype(np.int64) for a in (found.n_gaps, found.n_listed))
    return _Lists(found.gaps, n_gaps, n_listed, starts.astype(np.int64), sizes.astype(np.int64))


def _spoilt(good: _Lists) -> Iterator[tuple[str, _Lists]]:
    """Lists of which one breaks R12.11, or many do."""
    ends = np.cumsum(good.n_gaps)

    def with_gaps(change: Any) -> _Lists:
        gaps = good.gaps.copy()
        change(gaps)
        return good._replace(gaps=gaps)

    def column(name: str, k: int, by: int) -> _Lists:
        new = getattr(good, name).copy()
        new[k] += by
        return good._replace(**{name: new})

    yield "all gaps 255", with_gaps(lambda gaps: gaps.fill(255))
    yield "all gaps 254", with_gaps(lambda gaps: gaps.fill(254))
    yield "all gaps 0", with_gaps(lambda gaps: gaps.fill(0))
    for seed in range(3):
        noise = splitmix64(seed, good.gaps.size).astype(np.uint8)
        yield "gaps of noise", good._replace(gaps=noise)
        yield "gaps of 255 and 0", good._replace(gaps=noise % 2 * np.uint8(255))
    for k in sorted({0, good.n_gaps.size // 2, good.n_gaps.size - 1}):
        first, last = int(ends[k] - good.n_gaps[k]), int(ends[k] - 1)

        def put(gaps: Bytes, at: int, value: int) -> None:
            gaps[at] = value

        for at, value in ((last, 255), (first, 255), (first, 254), (last, 254), (first, 0)):
            spoilt = with_gaps(lambda gaps, at=at, value=value: put(gaps, at, value))
            yield f"gap {at} of list {k} is {value}", spoilt
        yield f"n_listed of list {k} is one more", column("n_listed", k, 1)
        if good.n_listed[k] > 1:
            yield f"n_listed of list {k} is one less", column("n_listed", k, -1)
        for less in (1, 2, int(good.sizes[k]) - 1):
            if 0 < less < good.sizes[k]:
                yield f"segment of list {k} has {less} words less", column("sizes", k, -less)


def check_places(backend: Backend) -> None:
    """`places_of` of good lists and of others is that of the reference, as far as that is said; no
    place is outside of its segment.
    """
    for n, segment in SIZES:
        for what, mask in _masks(n, segment):
            good = _lists(mask, segment)
            text = f"{what} of {n} words in segments of {segment}"
            _check_places(backend, good, text)
            if good.n_gaps.size and n <= 1024 and segment > 1:
                for how, spoilt in _spoilt(good):
                    _check_places(backend, spoilt, f"{text}; {how}")


def _check_places(backend: Backend, lists: _Lists, text: str) -> None:
    due, right_due = sparse.places_of(*lists)
    room, gaps = _on_device(backend, lists.gaps)
    before = [a.tobytes() for a in lists]
    device, right = backend.places_of(gaps, *(walled(backend, a) for a in lists[1:]))
    places = backend.to_host(device)
    room.unchanged("the gaps")
    require([a.tobytes() for a in lists] == before, "the lists to be left as they are", "changes")
    require_same(right, right_due, f"which lists are right ({text})")
    shape = int(lists.n_listed.sum())
    require(places.shape == (shape,), f"{shape} places ({text})", str(places.shape))
    starts, ends = (
        np.repeat(a, lists.n_listed) for a in (lists.starts, lists.starts + lists.sizes)
    )
    inside = (places >= starts) & (places < ends)
    require(bool(inside.all()), f"places in their segments ({text})", str(places[~inside][:8]))
    good = np.repeat(right_due, lists.n_listed)
    require_same(places[good].astype(due.dtype), due[good], f"the places of {text}")


def check_take_put(backend: Backend) -> None:
    """`take` and `put` copy the words at some places, and no others, of arrays of any shape."""
    for nbytes in (1, 2, 4, 8):
        for rows, cols in ((1, 1), (1, 300), (40, 60), (3, 5000)):
            n = rows * cols
            words = splitmix64(n, n).astype(f"<u{nbytes}").reshape(rows, cols)
            for what, mask in _masks(n, cols):
                lists = _lists(mask, n)._replace(starts=np.zeros(int(mask.any()), np.int64))
                places, _ = backend.places_of(backend.to_device(lists.gaps), *lists[1:])
                room, device = _on_device(backend, words)
                taken, due = backend.take(device, places), words[mask.reshape(rows, cols)]
                text = f"{what} of {rows} x {cols} words of {nbytes} bytes"
                require_same(backend.to_host(taken), due, f"take: {text}")
                room.unchanged("the words that are taken")
                new, put = ~due, words.copy()
                put[mask.reshape(rows, cols)] = new
                values, of_values = _on_device(backend, new)
                backend.put(device, places, of_values)
                got = room.content("the words that are put")
                require_same_bytes(got, put.tobytes(), f"put: {text}")
                values.unchanged("the values that are put")


# ---- lists put in --------------------------------------------------------------------------------
class _Several(NamedTuple):
    """Several arrays: words of the base, new words, their lists."""

    bases: list[Words]
    news: list[Words]
    changes: list[Changes]
    segments: sparse.ListedSegments

    @classmethod
    def of(cls, nbytes: int, segment: int) -> _Several:
        """Arrays of words of `nbytes` each."""
        bases, news, changes, columns = list[Words](), list[Words](), list[Changes](), list[Any]()
        masks = [mask for n in (70, 700) for _, mask in _masks(n, segment) if mask.any()]
        for i, mask in enumerate(masks):
            base = splitmix64(i, mask.size).astype(f"<u{nbytes}")
            bases.append(base)
            news.append(np.where(mask, base ^ base.dtype.type(1 << i % 8), base))
            changes.append(sparse.list_changes(news[-1], base, segment))
            lists = _lists(mask, segment)
            starts = np.flatnonzero(changes[-1].n_listed) * segment
            ends = np.append(0, np.cumsum(lists.n_listed)) * nbytes
            crcs = crc32_each(changes[-1].words.view(np.uint8), ends)
            counts = lists.n_gaps, lists.n_listed
            columns.append((np.full(starts.size, i), *counts, starts, lists.sizes, crcs))
        of_all = (np.concatenate(column) for column in zip(*columns, strict=True))
        return cls(bases, news, changes, sparse.ListedSegments._make(of_all))


#: what is wrong in the last segment of an array, by its number
_WRONG: Final = {
    1: sparse.PutStatus.BAD_GAPS, 2: sparse.PutStatus.OTHER, 4: sparse.PutStatus.THERE,
}  # fmt: skip


def check_put_lists(backend: Backend) -> None:
    """`put_lists` makes the new words of those of the base; where a segment of an array is wrong it
    leaves that array as it is, and no other.
    """
    for nbytes, difference in product((1, 2, 4, 8), (Difference.XOR, Difference.MINUS)):
        arrays = _Several.of(nbytes, 64)
        bases, news, changes, segments = arrays
        gaps, gap_ends = np.concatenate([c.gaps for c in changes]), np.cumsum(segments.n_gaps)
        before, due = [b.copy() for b in bases], list(news)
        status = np.full(segments.of.size, sparse.PutStatus.PUT, np.uint8)
        for i, how in _WRONG.items():
            k = int(np.flatnonzero(segments.of == i)[-1])
            at = slice(int(segments.starts[k]), int(segments.starts[k] + segments.sizes[k]))
            if how == sparse.PutStatus.BAD_GAPS:
                gaps[gap_ends[k] - 1] = 255
            elif how == sparse.PutStatus.OTHER:
                listed = np.flatnonzero(news[i][at] != bases[i][at])
                before[i][at][listed[-1]] ^= before[i].dtype.type(128)
            else:
                before[i][at] = news[i][at]
            status[k], due[i] = how, news[i] if how == sparse.PutStatus.THERE else before[i]
        coded = np.concatenate([subtract(c.words, c.base, difference) for c in changes])
        text = f"words of {nbytes} bytes, {difference.name}"
        _check_put(backend, arrays, (gaps, coded, difference), (before, due, status), text)


def _check_put(backend: Backend, several: _Several, given: Any, expected: Any, text: str) -> None:
    (gaps, coded, difference), (before, due, status) = given, expected
    segments = several.segments
    rooms = [_on_device(backend, words) for words in before]
    devices = [array for _, array in rooms]
    gaps, coded = (_on_device(backend, array)[1] for array in (gaps, coded))
    put = backend.put_lists(devices, gaps, coded, segments, difference)
    require_same(put.status, status, f"the status of each list ({text})")
    for (room, _), words in zip(rooms, due, strict=True):
        content = room.content("the words that are put")
        require_same_bytes(content, words.tobytes(), f"the words of each array ({text})")
    known = np.repeat(status != sparse.PutStatus.BAD_GAPS, segments.n_listed)
    places = [np.flatnonzero(n != b) for n, b in zip(several.news, several.bases, strict=True)]
    was = np.concatenate([words[at] for words, at in zip(before, places, strict=True)])
    for name, there, wanted in (
        ("places", put.places, np.concatenate(places)), ("words that were there", put.before, was),
    ):  # fmt: skip
        require_same(backend.to_host(there)[known], wanted[known], f"the {name} ({text})")
