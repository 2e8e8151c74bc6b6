"""Whole tensors to the device: reading, copying in,
decoding and checking overlap on several streams.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.cuda.checksums import PendingChecksums, crc32_ranges, crc32_records
from wcodec.backends.cuda.decoding import Decoding
from wcodec.backends.cuda.differences import add_base
from wcodec.backends.cuda.runtime import Runtime
from wcodec.backends.cuda.worklist import ALIGN, WorkItem
from wcodec.codec.checks import check_segments, check_tensor
from wcodec.codec.sources import read_into
from wcodec.cuda.sparse import PendingLists, portions
from wcodec.errors import DecodeError
from wcodec.processes import Workers, cached_property
from wcodec.reference.checksums import crc32_combine
from wcodec.reference.container import ByteSource
from wcodec.reference.segments import SegmentPlan
from wcodec.reference.tables import TablePool
from wcodec.reference.tensors import TensorRecord
from wcodec.reference.tiles import chunks

STREAMS: Final = 4
SLOT_NBYTES: Final = 1 << 26  #: payload that a stream takes at once
LEAST_SLOT_NBYTES: Final = 1 << 20
READ_NBYTES: Final = 1 << 23  #: of the file that a thread reads at once
SCRATCH_OF_SLOT: Final = 2  #: device memory for symbols on their way, for each byte of a slot

#: Makes memory of so many bytes on the device of a runtime, uint8, for the runtime's current
#: stream. Raises MemoryError.
Allocate: TypeAlias = Callable[[Runtime, int], Any]


@dataclass(frozen=True)
class Piece:
    """Segments of a tensor that are decoded at once: all of them, or some rows of segments.

    Attributes
    ----------
    first
        Id of its first segment.
    start, nbytes
        Of its records in the file.
    word_offset, words_nbytes
        Of its words in the tensor's memory, in bytes.
    """

    t: TensorRecord
    plan: SegmentPlan
    first: int
    start: int
    nbytes: int
    word_offset: int
    words_nbytes: int
    last: bool


def pieces(t: TensorRecord, tables: TablePool, limit: int) -> Iterator[Piece]:
    """Cut a tensor into pieces of at most `limit` bytes of payload, or of a row of segments."""
    whole, g = t.plan(tables), t.geometry
    if t.payload_nbytes <= limit or g.grid[0] * g.grid[1] < 2:
        yield Piece(t, whole, 0, t.payload_offset, t.payload_nbytes, 0, t.nbytes, True)
        return
    share = max(1, limit * max(t.nbytes, 1) // max(t.payload_nbytes, t.nbytes, 1))
    word_offset = 0
    for down, across in chunks(g, t.dtype.word_nbytes, share):
        part, ids = g.select(down, across)
        first, last = int(ids[0]), int(ids[-1])
        plan = t.part(ids, part, tables)
        nbytes = part.rows * part.cols * t.dtype.word_nbytes
        start, end = int(whole.offsets[first]), int(whole.offsets[last + 1])
        yield Piece(
            t,
            plan,
            first,
            t.payload_offset + start,
            end - start,
            word_offset,
            nbytes,
            last + 1 == g.n_segments,
        )
        word_offset += nbytes


@dataclass
class _Target:
    """A tensor on its way: its memory, that of what it differs from,
    and the CRC-32 of what is there so far.
    """

    memory: Any
    base: Any
    crc: int = 0


class _Sparse(NamedTuple):
    """A sparse tensor, which is decoded by itself."""

    t: TensorRecord
    target: _Target


@dataclass
class _Slot:
    """Buffers and a stream of their own; what is under way in them."""

    stream: Any
    pinned: NDArray[np.uint8]
    payload: Any
    pieces: list[tuple[Piece, _Target]] = field(default_factory=list)
    decoding: Decoding | None = None
    #: of the records, and of the words of each piece, if wanted
    crcs: list[PendingChecksums] = field(default_factory=list)


def _allocate(runtime: Runtime, nbytes: int) -> Any:
    return runtime.empty(nbytes)


class Pipeline:
    """Decodes tensors one after another into device memory.

    Parameters
    ----------
    streams
        Sets of segments under way at once.
    slot_nbytes
        Payload of a set; a set holds at least one piece.
    verify
        Whether CRC-32s of records and tensors are checked, on the device.
        What rANS streams check by themselves always is.
    """

    def __init__(
        self,
        runtime: Runtime,
        streams: int = STREAMS,
        slot_nbytes: int = SLOT_NBYTES,
        verify: bool = True,
    ) -> None:
        self.runtime = runtime
        self.n_streams = streams
        self.slot_nbytes = slot_nbytes
        self.verify = verify
        self._free: list[_Slot] = []

    @cached_property
    def below(self) -> Pipeline:
        """One like this for the file that this one's tensors differ from."""
        return Pipeline(self.runtime, self.n_streams, self.slot_nbytes, self.verify)

    def tensors(
        self,
        source: ByteSource,
        records: Iterable[TensorRecord],
        tables: TablePool,
        bases: Iterator[Any] | None = None,
        allocate: Allocate | None = None,
    ) -> Generator[tuple[TensorRecord, Any], None, None]:
        """Tensors with their memory on the device, uint8, each when it is whole and checked.

        Parameters
        ----------
        bases
            Device memory of what each tensor with a difference differs from, in their order.
        allocate
            Makes the tensors' memory; by default, the runtime does.

        Raises
        ------
        DecodeError
            As `wcodec.codec.decoder.Decoder.tensor`.
        """
        under_way: deque[_Slot] = deque()
        with Workers(self.n_streams, "wcodec-read") as readers:
            try:
                for some in self._sets(records, tables, bases, allocate or _allocate):
                    if isinstance(some, _Sparse):
                        while under_way:
                            yield from self._finish(under_way.popleft())
                        yield self._finish_sparse(source, some, tables, readers)
                        continue
                    if len(under_way) == self.n_streams:
                        yield from self._finish(under_way.popleft())
                    under_way.append(self._slot(some))
                    self._start(source, under_way[-1], readers)
                while under_way:
                    yield from self._finish(under_way.popleft())
            finally:
                for slot in under_way:
                    self._give_up(slot)

    def _sets(
        self,
        records: Iterable[TensorRecord],
        tables: TablePool,
        bases: Iterator[Any] | None,
        allocate: Allocate,
    ) -> Iterator[list[tuple[Piece, _Target]] | _Sparse]:
        some: list[tuple[Piece, _Target]] = []
        nbytes = 0
        for t in records:
            if t.difference and bases is None:
                raise DecodeError(
                    "bad_base",
                    "the tensor is a difference from a base, which is not given",
                    tensor=t.name,
                )
            target = _Target(
                allocate(self.runtime, t.nbytes),
                next(bases) if bases is not None and t.difference else None,
            )
            if t.lists is not None:
                if some:
                    yield some
                    some, nbytes = [], 0
                yield _Sparse(t, target)
                continue
            for piece in pieces(t, tables, self.slot_nbytes):
                # the base is in memory meanwhile
                size = piece.words_nbytes if t.difference else _room(piece.nbytes)
                if some and nbytes + size > self.slot_nbytes:
                    yield some
                    some, nbytes = [], 0
                some.append((piece, target))
                nbytes += size
        if some:
            yield some

    def _slot(self, some: list[tuple[Piece, _Target]]) -> _Slot:
        """A free slot for a set."""
        slot = (
            self._free.pop()
            if self._free
            else _Slot(self.runtime.stream(), np.empty(0, np.uint8), None)
        )
        slot.pieces = some
        return slot

    def _give_up(self, slot: _Slot) -> None:
        """Wait for what has been queued of a set: memory may go only when nothing uses it any
        more.
        """
        with self.runtime.in_use(), self.runtime.on(slot.stream):
            self.runtime.mark().synchronize()
        self._release(slot)

    def _release(self, slot: _Slot) -> None:
        slot.pieces, slot.decoding, slot.crcs = [], None, []
        self._free.append(slot)

    def _read(
        self, source: ByteSource, slot: _Slot, records: list[tuple[int, int]], readers: Workers
    ) -> list[int]:
        """Read runs of records, given where each starts in the file and its bytes, and queue their
        copy to the slot's payload, on its stream. Returns the device address of each run.
        """
        runtime, offsets, nbytes = self.runtime, list[int](), 0
        for _, n in records:
            offsets.append(nbytes)
            nbytes += _room(n)
        size = 1 << max(nbytes - 1, 0).bit_length()  # as the next set may be a little larger
        if slot.pinned.size < nbytes:
            slot.pinned = np.empty(0, np.uint8)
            slot.pinned = runtime.pinned(size)
        if slot.payload is None or slot.payload.size < nbytes:
            slot.payload = None
            slot.payload = runtime.empty(size)
        reads = list[tuple[int, NDArray[np.uint8]]]()
        for (start, n), at in zip(records, offsets, strict=True):
            for a in range(0, n, READ_NBYTES):
                b = min(a + READ_NBYTES, n)
                reads.append((start + a, slot.pinned[at + a : at + b]))
        others = [readers.begin(read_into, source, *read) for read in reads[1:]]
        for read in reads[:1]:  # this thread has nothing else to do
            read_into(source, *read)
        for other in others:
            other.result()
        runtime.copy_in(slot.payload[:nbytes], slot.pinned[:nbytes])
        base = runtime.address(slot.payload)
        return [base + offset for offset in offsets]

    def _start(self, source: ByteSource, slot: _Slot, readers: Workers) -> None:
        """Read a set, and queue all that is to be done with it."""
        runtime, some = self.runtime, slot.pieces
        with runtime.in_use():
            # the tensors' memory comes from the caller's stream, which may still read what was
            # there
            before = runtime.mark()
        with runtime.in_use(), runtime.on(slot.stream):
            runtime.wait_for(before)
            payloads = self._read(source, slot, [(p.start, p.nbytes) for p, _ in some], readers)
            jobs = [
                WorkItem(piece.plan, runtime.address(target.memory) + piece.word_offset, payload)
                for (piece, target), payload in zip(some, payloads, strict=True)
            ]
            slot.decoding = Decoding(runtime, jobs, SCRATCH_OF_SLOT * self.slot_nbytes)
            if self.verify:
                slot.crcs.append(
                    crc32_records(runtime, [(j.payload, j.plan.offsets) for j in jobs])
                )
            slot.decoding.queue()
            for job, (piece, target) in zip(jobs, some, strict=True):
                if target.base is not None:
                    base = runtime.address(target.base) + piece.word_offset
                    add_base(
                        runtime,
                        job.words,
                        base,
                        piece.words_nbytes,
                        piece.t.dtype.word_nbytes,
                        piece.t.difference,
                    )
            if self.verify:
                starts = np.array([j.words for j in jobs], np.uint64)
                sizes = np.array([p.words_nbytes for p, _ in some], np.int64)
                slot.crcs.append(crc32_ranges(runtime, starts, sizes))

    def _finish_sparse(
        self, source: ByteSource, sparse: _Sparse, tables: TablePool, readers: Workers
    ) -> tuple[TensorRecord, Any]:
        """Decode a sparse tensor and check it: the base's words, of which some become others."""
        runtime, (t, target), slot = self.runtime, sparse, self._slot([])
        with runtime.in_use():
            before = runtime.mark()  # as of a set
        try:
            with runtime.in_use(), runtime.on(slot.stream):
                runtime.wait_for(before)
                runtime.copy_within(target.memory, target.base)
                words = runtime.address(target.memory)
                for portion in portions(t, tables, self.slot_nbytes):
                    payloads = self._read(source, slot, portion.records, readers)
                    scratch_nbytes = SCRATCH_OF_SLOT * self.slot_nbytes
                    PendingLists(
                        runtime, portion, payloads, words, scratch_nbytes, self.verify
                    ).check()
                if self.verify:
                    whole = np.array([words], np.uint64), np.array([t.nbytes], np.int64)
                    check_tensor(t, int(crc32_ranges(runtime, *whole).result()[0]))
        finally:
            self._give_up(slot)
            if slot.payload is not None and slot.payload.size > self.slot_nbytes:
                slot.payload = None  # of a segment larger than a set, and not counted for each slot
        target.base = None
        return t, target.memory

    def _finish(self, slot: _Slot) -> Iterator[tuple[TensorRecord, Any]]:
        """Wait for a set and check it."""
        assert slot.decoding is not None
        with self.runtime.in_use(), self.runtime.on(slot.stream):
            self.runtime.mark().synchronize()
            status = slot.decoding.status()
            records, words = (c.result() for c in slot.crcs) if slot.crcs else (None, None)
        some, at = slot.pieces, 0
        self._release(slot)
        for i, (piece, target) in enumerate(some):
            n, t = piece.plan.geometry.n_segments, piece.t
            ids = piece.first + np.arange(n)
            crcs = t.segment_crc32[ids] if records is None else records[at : at + n]
            check_segments(t, ids, piece.start + piece.plan.offsets[:-1], status[at : at + n], crcs)
            at += n
            if words is not None:
                target.crc = crc32_combine(target.crc, int(words[i]), piece.words_nbytes)
            if piece.last:
                if words is not None:
                    check_tensor(t, target.crc)
                yield t, target.memory


def _room(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN
