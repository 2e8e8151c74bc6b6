"""Lists of words that differ from those of a base, on any backend, against the reference; and what
they are coded with: segments of a single row of any widths, CRC-32s of ranges of bytes.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from plans import make_case
from test_backends_equal import (
    BACKENDS,
    check_bad,
    check_checksums,
    check_decode,
    check_encode,
    check_histogram,
    spoil,
)

from wcodec.backends import load_backend
from wcodec.backends.protocol import Backend
from wcodec.reference import sparse
from wcodec.reference.differences import Difference
from wcodec.reference.planes import DTYPES, DType
from wcodec.reference.sparse import GAP_SKIP, Changes
from wcodec.reference.tiles import Spans

Array = np.ndarray[Any, Any]
SIZES = (1, 2, 4, 8)


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    one = load_backend(request.param, 3)
    yield one
    one.close()


# ---- listing -------------------------------------------------------------------------------------
def words_pair(n: int, word_nbytes: int, at: Any, seed: int = 0) -> tuple[Array, Array]:
    """Words, and others that differ from them in some places, each in one bit."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, n * word_nbytes, np.uint8).view(f"<u{word_nbytes}")
    words, at = base.copy(), np.asarray(at, np.int64)
    words[at] ^= (1 << rng.integers(0, 8 * word_nbytes, at.size)).astype(words.dtype)
    return words, base


def some_of(n: int, share: float, seed: int = 0) -> Array:
    return np.flatnonzero(np.random.default_rng(seed).random(n) < share)


#: words, words of a segment, which of them differ
CHANGES: tuple[tuple[int, int, Any], ...] = (
    (1, 1, []),
    (1, 5, [0]),
    (33, 33, range(33)),
    (1000, 64, [0, 63, 64, 127, 128, 511, 999]),  # first and last ones, and some have none
    (3000, 3000, [0, 255, 510, 766, 1278, 2999]),  # gaps of 254, 254, 255, 511
    (3000, 1000, [256, 1255, 2999]),
    (20_000, 20_000, [19_999]),  # skips parts
    (20_000, 9001, [0, 4095, 4096, 9000, 9001, 13_096, 13_097]),  # where parts begin and end
    (9000, 7, some_of(9000, 0.3)),
    (30_000, 1 << 14, some_of(30_000, 0.1, 1)),
    (30_000, 12_345, some_of(30_000, 0.001, 2)),
)


def check_changes(backend: Backend, words: Array, base: Array, segment: int) -> None:
    due = sparse.list_changes(words, base, segment)
    given = [backend.to_device(a) for a in (words, base)]
    n = int(due.n_listed.sum())
    found = backend.list_changes(*given, segment, n)
    assert found is not None
    for name, a, b in zip(Changes._fields, found, due, strict=True):
        assert a.shape == b.shape, name
        assert a.dtype == b.dtype, name
        assert np.array_equal(backend.to_host(a), b), name
    if n:
        assert backend.list_changes(*given, segment, n - 1) is None
    for device, host in zip(given, (words, base), strict=True):
        assert np.array_equal(backend.to_host(device), host)


@pytest.mark.parametrize("word_nbytes", SIZES)
def test_changes(backend: Backend, word_nbytes: int) -> None:
    for seed, (n, segment, at) in enumerate(CHANGES):
        check_changes(backend, *words_pair(n, word_nbytes, at, seed), segment)


def test_changes_of_nothing(backend: Backend) -> None:
    for word_nbytes in SIZES:
        check_changes(backend, *words_pair(0, word_nbytes, []), 10)
        check_changes(backend, *words_pair(5000, word_nbytes, []), 600)


# ---- places --------------------------------------------------------------------------------------
def lists_of(n_words: Any, share: float, seed: int = 0) -> tuple[Array, ...]:
    """Gaps of segments that all have listed words, and what else `places_of` is told; and the
    places.
    """
    sizes, rng = np.asarray(n_words, np.int64), np.random.default_rng(seed)
    starts, at, parts = np.cumsum(sizes) - sizes + 3, list[Array](), list[Changes]()
    for start, n in zip(starts.tolist(), sizes.tolist(), strict=True):
        listed = np.union1d(rng.integers(0, n, 1), np.flatnonzero(rng.random(n) < share))
        words = np.zeros(n, np.uint8)
        words[listed] = 1
        parts.append(sparse.list_changes(words, np.zeros(n, np.uint8), n))
        at.append(listed + start)
    gaps = np.concatenate([p.gaps for p in parts])
    n_gaps, n_listed = (np.array([int(p[i][0]) for p in parts], np.int64) for i in (1, 0))
    return gaps, n_gaps, n_listed, starts, sizes, np.concatenate(at)


def places(backend: Backend, lists: tuple[Array, ...]) -> tuple[Array, Array]:
    found, right = backend.places_of(backend.to_device(lists[0]), *lists[1:5])
    return backend.to_host(found), right


@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.5, 1])
def test_places(backend: Backend, share: float) -> None:
    lists = lists_of([1, 2, 31, 4000, 127, 128, 129, 9000, 256, 255, 1], share, int(100 * share))
    found, right = places(backend, lists)
    assert found.dtype == np.int64
    assert right.dtype == np.bool_
    assert right.all()
    assert np.array_equal(found, lists[5])
    due, _ = sparse.places_of(*lists[:5])
    assert np.array_equal(found, due)


def test_places_of_nothing(backend: Backend) -> None:
    none = np.empty(0, np.int64)
    found, right = places(backend, (np.empty(0, np.uint8), none, none, none, none))
    assert (found.dtype, found.shape) == (np.int64, (0,))
    assert (right.dtype, right.shape) == (np.bool_, (0,))


def malformed() -> Iterator[tuple[Array, ...]]:
    """Lists of which some gaps break the rule, each in its way, between some that keep it."""
    for seed in range(6):
        lists = lists_of([300, 5000, 40, 700, 128, 2000], 0.05, seed)
        gaps, n_gaps, n_listed, starts, sizes, at = lists
        rng = np.random.default_rng(seed)
        for k, end in enumerate(np.cumsum(n_gaps).tolist()):
            numbers, own = (n_gaps, n_listed, starts), slice(end - int(n_gaps[k]), end)
            for values in (GAP_SKIP, 254, 0, rng.integers(0, 256, n_gaps[k])):
                changed = gaps.copy()
                changed[own] = values
                yield changed, *numbers, sizes
            changed = gaps.copy()
            changed[end - 1] = GAP_SKIP  # the last gap lists none
            yield changed, *numbers, sizes
            one = (np.arange(n_gaps.size) == k).astype(np.int64)
            more = np.insert(gaps, end, GAP_SKIP)  # the same, but as many words are listed
            yield more, n_gaps + one, n_listed, starts, sizes + 300
            yield np.insert(gaps, end, 0), n_gaps + one, n_listed, starts, sizes
            yield gaps, n_gaps, n_listed + one, starts, sizes  # too few
            if n_listed[k] > 1:
                yield gaps, n_gaps, n_listed - one, starts, sizes  # too many
            room = sizes.copy()
            room[k] = at[int(n_listed[: k + 1].sum()) - 1] - starts[k]
            yield gaps, *numbers, room  # the last word is just behind the end of its segment


def check_malformed(backend: Backend, lists: tuple[Array, ...]) -> int:
    """No place is outside of its segment, and right ones are where they are. Returns how many
    segments are wrong.
    """
    found, right = places(backend, lists)
    _, due = sparse.places_of(*lists)
    assert right.tolist() == due.tolist()
    gaps, n_gaps, n_listed, starts, sizes = lists
    first, first_gap = np.cumsum(n_listed) - n_listed, np.cumsum(n_gaps) - n_gaps
    for k, is_right in enumerate(right.tolist()):
        own = found[first[k] : first[k] + n_listed[k]]
        if is_right:
            one = slice(k, k + 1)
            of = gaps[first_gap[k] : first_gap[k] + n_gaps[k]]
            alone, _ = sparse.places_of(of, n_gaps[one], n_listed[one], starts[one], sizes[one])
            assert np.array_equal(own, alone)
        else:
            assert ((own >= starts[k]) & (own < starts[k] + max(sizes[k], 1))).all()
    return int((~right).sum())


def test_malformed_gaps(backend: Backend) -> None:
    n_wrong = sum(check_malformed(backend, lists) for lists in malformed())
    assert n_wrong > 100


# ---- words at places -----------------------------------------------------------------------------
@pytest.mark.parametrize("word_nbytes", SIZES)
def test_take_and_put(backend: Backend, word_nbytes: int) -> None:
    rng = np.random.default_rng(word_nbytes)
    for shape, n in (((5, 0), 0), ((1, 1), 1), ((7, 300), 0), ((3, 700), 1999)):
        words, values = (
            rng.integers(0, 256, size * word_nbytes, np.uint8).view(f"<u{word_nbytes}")
            for size in (shape[0] * shape[1], n)
        )
        at = np.sort(rng.permutation(words.size)[:n])
        device, on = backend.to_device(words.reshape(shape)), backend.to_device(at)
        taken = backend.take(device, on)
        assert (taken.shape, taken.dtype) == ((n,), words.dtype)
        assert np.array_equal(backend.to_host(taken), words[at])
        backend.put(device, on, backend.to_device(values))
        words[at] = values
        assert np.array_equal(backend.to_host(device).reshape(-1), words)


# ---- all of it -----------------------------------------------------------------------------------
@pytest.mark.parametrize("word_nbytes", SIZES)
def test_there_and_back(backend: Backend, word_nbytes: int) -> None:
    """The base's words become the others."""
    n, segment = 5000, 1200
    words, base = words_pair(n, word_nbytes, some_of(n, 0.05), 3)
    device, on_base = backend.to_device(words), backend.to_device(base)
    found = backend.list_changes(device, on_base, segment, n)
    assert found is not None
    coded = backend.subtract_base(found.words, found.base, Difference.MINUS)
    starts = np.arange(0, n, segment)
    sizes = np.minimum(segment, n - starts)
    counts = (a.astype(np.int64) for a in (found.n_gaps, found.n_listed))
    at, right = backend.places_of(found.gaps, *counts, starts, sizes)
    assert right.all()
    crc = backend.add_base(coded, backend.take(on_base, at), Difference.MINUS)
    assert crc == zlib.crc32(backend.to_host(found.words))
    backend.put(on_base, at, coded)
    assert np.array_equal(backend.to_host(on_base), words)


def test_checksums_of_ranges_of_any_bytes(backend: Backend) -> None:
    rng = np.random.default_rng(3)
    data = rng.integers(0, 256, 70_003, np.uint8)
    offsets = np.append(5, np.cumsum(rng.integers(0, 130, 500)) + 5)
    for host in (data, data[:69_999].view("<u1")[3:]):
        device = backend.to_device(host)
        crcs = backend.checksums(device, offsets)
        assert crcs.dtype == np.uint32
        due = [zlib.crc32(host[a:b]) for a, b in itertools.pairwise(offsets)]
        assert crcs.tolist() == due
    part = device[7:]  # which does not start where memory does
    assert backend.checksums(part, np.array([0, 40_001])).tolist() == [zlib.crc32(host[7:40_008])]
    words = rng.integers(0, 1 << 16, 999).astype("<u2")
    lists = backend.to_device(words).view(np.uint8)
    assert backend.checksums(lists, np.array([0, 2, 666, 1998])).tolist() == [
        zlib.crc32(words[a:b]) for a, b in ((0, 1), (1, 333), (333, 999))
    ]


# ---- segments of a single row --------------------------------------------------------------------
WIDTHS = (1, 300, 2, 4096, 127, 128, 129, 1, 513, 17, 31, 33, 16)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_spans(backend: Backend, dtype: DType) -> None:
    """Of odd widths, so that all but a few start in the middle of whatever is loaded at once."""
    rng = np.random.default_rng(dtype.id)
    for widths in (WIDTHS, rng.integers(1, 200, 9).tolist(), (1,)):
        spans = Spans.of(np.array(widths, np.int64))
        case = make_case(rng, dtype, spans)
        check_encode(backend, case)
        check_decode(backend, case)
        check_checksums(backend, case)
        check_histogram(backend, rng, spans, dtype)
        check_bad(backend, case.decoding, spoil(rng, case))
