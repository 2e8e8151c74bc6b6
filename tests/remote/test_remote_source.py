"""`RemoteSource` against the bytes that it gives: random reads, requests, memory."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wcodec.codec import remote
from wcodec.codec.ranges import Answer
from wcodec.codec.remote import GAP_NBYTES, HEAD_NBYTES, RemoteSource
from wcodec.codec.urls import Url
from wcodec.errors import DecodeError


# ---- the source against bytes --------------------------------------------------------------------
class OfBytes:
    """`Ranges` of bytes in memory, which counts."""

    def __init__(self, data: bytes, has_head: bool = True) -> None:
        self.data, self.has_head, self.asked = data, has_head, list[tuple[int, int]]()

    def first(self, nbytes: int) -> Answer:
        head = self.data[:nbytes] if self.has_head else b""
        return Answer(bytes(head), len(self.data), "x")

    def get(self, start: int, stop: int) -> Answer:
        assert 0 <= start < stop <= len(self.data)
        self.asked.append((start, stop))
        return Answer(bytes(memoryview(self.data)[start:stop]), len(self.data), "x")


def source_of(ranges: OfBytes, memory: int) -> RemoteSource:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "ranges_of", lambda _: ranges)
        return RemoteSource(Url("memory://x"), memory=memory)


DATA = np.random.default_rng(3).bytes(3 << 20)
LARGE = bytes(64 << 20)


def some(rng: random.Random, first: int, last: int, most: int) -> tuple[int, int]:
    """A place and a size in a part of the file."""
    start = rng.randint(first, last)
    return start, min(rng.randint(0, most), last - start)


def steps(source: RemoteSource, rng: random.Random, n: int) -> None:
    """Random reads, in parts that are read ahead, some in others; each is compared."""
    with ExitStack() as stack:
        regions = [(0, len(DATA))]
        for _ in range(n):
            a, b = rng.choice(regions)
            what = rng.randrange(7)
            if what == 0 and len(regions) < 5:
                start, size = some(rng, max(0, a - 300_000), b, len(DATA))
                stack.enter_context(source.ahead(start, start + size))
                regions.append((start, start + size))
            elif what == 1:
                where = [some(rng, a, b, 60_000) for _ in range(rng.randint(0, 6))]
                room = np.empty(sum(n for _, n in where), np.uint8)
                source.read_runs(where, room)
                assert room.tobytes() == b"".join(DATA[s : s + n] for s, n in where)
            elif what == 2:
                where = [some(rng, a, b, 500) for _ in range(rng.randint(1, 6))]
                want = b"".join(DATA[s : s + n] for s, n in where)
                assert source.look(where).tobytes() == want
            elif what == 3:
                start, size = some(rng, a, b, 700_000)
                found = b"".join(p.tobytes() for p in source.pieces(start, start + size))
                assert found == DATA[start : start + size]
            elif what == 4:  # on, as who reads a tensor does
                start, size = some(rng, a, b, 200_000)
                while start + size <= b and rng.random() < 0.9:
                    assert source.read(start, size).tobytes() == DATA[start : start + size]
                    start, size = start + size, rng.randint(1, 200_000)
            else:
                start, size = some(rng, a, b, 300_000)
                assert source.read(start, size).tobytes() == DATA[start : start + size]


@settings(max_examples=50)
@given(
    seed=st.integers(0, 1 << 32), memory=st.sampled_from([1, 1 << 18, 1 << 20, 1 << 28]),
    has_head=st.booleans(), n_threads=st.sampled_from([1, 1, 4]),
)  # fmt: skip
def test_random_reads(seed: int, memory: int, has_head: bool, n_threads: int) -> None:
    source = source_of(OfBytes(DATA, has_head), memory)
    with ThreadPoolExecutor(n_threads) as threads:
        tasks = [
            threads.submit(steps, source, random.Random(seed + i), 12) for i in range(n_threads)
        ]
        for task in tasks:
            task.result()
    assert source._runs == []
    source.close()


def test_ranges_near_each_other_are_joined_and_no_others() -> None:
    ranges = OfBytes(DATA)
    source = source_of(ranges, 1 << 28)
    far = 500_000 + 100 + GAP_NBYTES + 1
    near = far + 100 + GAP_NBYTES
    where = [(far, 100), (500_000, 100), (near, 50), (near + 10, 60)]
    room = np.empty(310, np.uint8)
    source.read_runs(where, room)
    assert room.tobytes() == b"".join(DATA[s : s + n] for s, n in where)
    assert sorted(ranges.asked) == [(500_000, 500_100), (far, near + 70)]


def test_a_large_range_is_asked_for_in_blocks() -> None:
    ranges = OfBytes(DATA)
    source = source_of(ranges, 1 << 20)
    assert source.block == 1 << 17
    source.read(100_000, 300_000)
    blocks = [(100_000, 231_072), (231_072, 362_144), (362_144, 400_000)]
    assert sorted(ranges.asked) == blocks


def test_head_and_tail_are_held() -> None:
    ranges = OfBytes(DATA)
    source = source_of(ranges, 1 << 20)
    for _ in range(2):
        for start, n in ((0, HEAD_NBYTES), (len(DATA) - 9, 9), (len(DATA) - 60_000, 50_000)):
            assert source.read(start, n).tobytes() == DATA[start : start + n]
    assert ranges.asked == [(len(DATA) - (1 << 16), len(DATA))]


def test_a_read_behind_the_end() -> None:
    source = source_of(OfBytes(DATA), 1 << 20)
    with pytest.raises(DecodeError, match="truncated"):
        source.read(len(DATA) - 5, 6)


def test_memory_is_bounded() -> None:
    memory, n = 1 << 22, len(LARGE)

    def read(where: list[tuple[int, int]]) -> None:
        source = source_of(OfBytes(LARGE), memory)
        with source.ahead(0, n):
            for start, size in where:
                source.read(start, size)
        source.close()

    forth = [(i, 1 << 16) for i in range(0, n, 1 << 16)]
    back = forth[::-1]
    zigzag = [x for pair in itertools.pairwise(forth[::3]) for x in pair[::-1]]
    room = [(i, 1 << 18) for i in range(0, n, 1 << 18)]
    for where in (forth, back, zigzag, room):
        tracemalloc.start()
        try:
            read(where)
            assert tracemalloc.get_traced_memory()[1] <= memory + 4 * (memory // 8) + (1 << 20)
        finally:
            tracemalloc.stop()


def test_memory_of_scattered_reads_is_bounded() -> None:
    memory = 1 << 22
    source = source_of(OfBytes(LARGE), memory)
    where = [(i << 20, 700_000) for i in range(60)]
    room = np.empty(sum(n for _, n in where), np.uint8)
    tracemalloc.start()
    try:
        source.read_runs(where, room)
        assert tracemalloc.get_traced_memory()[1] <= memory + 4 * (memory // 8) + (1 << 20)
    finally:
        tracemalloc.stop()
    source.close()
