"""From arrays to files in the format and back: plan, kernels, container.

`Encoder` and `Decoder` are the long form; `encode` and `decode` are one array in one call.
"""

from __future__ import annotations

import io
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, BinaryIO, Final, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend, get_backend
from wcodec.backends.protocol import Checksums
from wcodec.differences import BaseCheckpoint, BaseTensor, choose_difference, enlarged
from wcodec.errors import DecodeError, EncodeError
from wcodec.planner.fast import has_grown, stored_raw
from wcodec.planner.geometry import choose_geometry
from wcodec.planner.options import EncodeOptions
from wcodec.planner.planner import Planner
from wcodec.reference import container
from wcodec.reference.checksums import crc32_combine
from wcodec.reference.container import Base, ByteSource, Difference, Index, TensorRecord, coded_dtype
from wcodec.reference.entropy import TablePool
from wcodec.reference.operands import is_of_operand
from wcodec.reference.planes import Bytes, DType, Words, dtype_of
from wcodec.reference.segments import SegmentPlan, SegmentTable, Status
from wcodec.reference.tiles import Geometry, chunks

CHUNK_BUFFERS: Final = 3  #: buffers that `Decoder.chunks` uses in turn: one is filled while others are written
_TENSOR_NBYTES: Final = 1 << 25  #: words of an array decoded at once
_STREAM_NBYTES: Final = 1 << 23  #: words decoded at once on their way to a file

S = TypeVar("S")
T = TypeVar("T")
Ids = NDArray[np.int64]
Progress = Callable[[int], object]  #: called with the number of decoded bytes that were just done

_STATUS_ERRORS: Final = {
    Status.BAD_STREAM: ("bad_stream", "a rANS stream does not end as it must"),
    Status.BAD_PATCH: ("bad_patch", "a patch lies outside the segment, or out of order"),
    Status.BAD_TILE_MODE: ("unsupported_coder", "a tile has a reserved prediction mode"),
}


class ByteSink(Protocol):
    """What is written to: a binary file, or anything that takes bytes and keeps what it is given unchanged."""

    def write(self, data: Any, /) -> Any:
        """Write all of some bytes."""


def ignore_progress(_: int) -> None:
    """No progress wanted."""


def words_of(array: NDArray[Any]) -> tuple[DType, Words]:
    """Registry row of an array and its words, flat; a copy only if it is not contiguous and little-endian.

    Raises
    ------
    EncodeError
        ``unsupported_dtype``
    """
    dtype = dtype_of(array)
    flat = np.ascontiguousarray(array, dtype.numpy).reshape(-1)
    return dtype, flat.view(np.uint8).view(dtype.word_type)


# ---- encoding ----------------------------------------------------------------------------------------------------------
class Encoder:
    """Writes one file after another with the same options, backend and buffers.

    Parameters
    ----------
    options
        What not to leave to the encoder's measure; see `EncodeOptions`.
    backend
        ``None`` for the one of `get_backend`.

    Examples
    --------
    >>> with open("model.wcodec", "wb") as f:
    ...     writer = Encoder().start(f)
    ...     writer.add("weight", array)
    ...     writer.finish()
    """

    def __init__(self, options: EncodeOptions | None = None, backend: Backend | None = None) -> None:
        self.options, self.backend = options or EncodeOptions(), backend or get_backend()

    def start(self, stream: ByteSink, progress: Progress = ignore_progress, base: BaseCheckpoint | None = None) -> Writer:
        """Begin a file on a binary stream, which need not be seekable; of differences from a base, where these are smaller."""
        return Writer(stream, self.options, self.backend, progress, base)

    def encode(self, array: NDArray[Any]) -> bytes:
        """One array as a file of one tensor with an empty name. See `encode`."""
        parts = _Parts()
        writer = self.start(parts)
        writer.add("", array)
        writer.finish()
        return b"".join(parts)


class _Parts(list[Any]):
    """What was written, to be put together once: backends do not write again to a payload that someone holds."""

    write = list.append


class Writer:
    """A file being written: `add` each tensor, then `finish`. Holds one chunk of words and the index in memory."""

    def __init__(
        self, stream: ByteSink, options: EncodeOptions, backend: Backend, progress: Progress = ignore_progress,
        base: BaseCheckpoint | None = None,
    ) -> None:  # fmt: skip
        self.stream, self.options, self.backend, self.progress, self.base = stream, options, backend, progress, base
        self.planner, self.tensors, self.names = Planner(options), list[TensorRecord](), set[str]()
        self.offset = self._write(container.write_header())

    def _write(self, data: Any) -> int:
        self.stream.write(data)
        return len(data)

    def add(self, name: str, array: NDArray[Any]) -> TensorRecord:
        """Encode and write a tensor.

        Parameters
        ----------
        name
            UTF-8, unlike the others, at most 65535 bytes.
        array
            Any shape; a dtype of the registry.

        Raises
        ------
        EncodeError
            ``unsupported_dtype``, ``bad_name``, ``resource_limit``
        """
        array = np.asarray(array)
        dtype, words = words_of(array)
        return self.add_words(name, words, dtype, array.shape)

    def add_words(self, name: str, words: Words, dtype: DType, shape: tuple[int, ...], dtype_name: str = "") -> TensorRecord:
        """Encode and write a tensor given as words, a flat unsigned array that may be a mapped file's.

        `dtype_name` is kept in the file for dtypes that the format stores as opaque bytes.
        """
        self._check_name(name)
        row_rank, geometry = choose_geometry(shape, dtype, self.options)
        if words.size != math.prod(shape) * dtype.words_per_element:
            raise EncodeError("bad_source", f"{words.size} words for shape {shape}", tensor=name)
        matrix = words.reshape(geometry.rows, geometry.cols)
        operand = self.options.operand is not None and is_of_operand(geometry)
        base = None if self.base is None or operand else self.base.tensor(name, dtype, shape, geometry)
        difference = Difference.NONE if base is None else choose_difference(matrix, base, dtype, self.options.prob_bits, self.backend)
        if difference != Difference.NONE and self.options.segment is None and self.options.tile is None:
            geometry = enlarged(geometry)
        coded = coded_dtype(dtype, difference)
        crc, start = 0, self.offset
        tables, crcs = [SegmentTable.zeros(0, coded.n_planes)], [np.empty(0, np.uint32)]
        grid = list(chunks(geometry, dtype.word_nbytes))
        self.planner.start_tensor()
        plans = self._plans(matrix, geometry, coded, grid, base, difference)
        in_a_thread = len(grid) > 1 and self.backend.threads != 1  # coded while the next chunk is planned
        for segments, sums, nbytes in ahead(lambda chunk: self._code(*chunk), plans, int(in_a_thread)):
            tables.append(segments)
            crcs.append(sums.records)
            crc = crc32_combine(crc, sums.words, nbytes)
            self.progress(nbytes)
        record = TensorRecord(
            name, dtype, shape, row_rank, geometry, SegmentTable.concatenate(tables), np.concatenate(crcs),
            start, self.offset - start, crc, dtype_name, difference,
        )  # fmt: skip
        self.tensors.append(record)
        return record

    def add_duplicate(self, name: str, of: int) -> TensorRecord:
        """Add a tensor that is in all but its name the one of that number, counted from 0. Costs a few bytes.

        Raises
        ------
        EncodeError
            ``bad_name``
        """
        self._check_name(name)
        first = self.tensors[of]
        of = of if first.duplicate_of is None else first.duplicate_of
        record = first.duplicate(name, of)
        self.tensors.append(record)
        self.progress(record.nbytes)
        return record

    def _plans(
        self, matrix: Words, geometry: Geometry, dtype: DType, grid: list[tuple[Ids, Ids]], base: BaseTensor | None, difference: Difference
    ) -> Iterator[tuple[SegmentPlan, Any, int | None]]:
        """Plan and words of each chunk; for differences, these and the CRC-32 of the words before."""
        backend, room = self.backend, np.empty(0, dtype.word_type)
        for down, across in grid:
            piece = rectangle(geometry, down, across)
            chunk, crc = np.require(matrix[piece.rows, piece.cols], dtype.word_type, ["C", "A"]), None
            words = backend.to_device(chunk)
            if base is not None and difference != Difference.NONE:
                room = room if room.size >= chunk.size else np.empty(chunk.size, dtype.word_type)
                other = base.words(piece.rows, piece.cols, room[: chunk.size].reshape(chunk.shape))
                words, crc = backend.subtract_base(words, backend.to_device(other), difference), backend.crc32(chunk)
            yield self.planner.plan(words, piece.geometry, dtype, backend), words, crc

    def _code(self, plan: SegmentPlan, words: Any, crc: int | None) -> tuple[SegmentTable, Checksums, int]:
        """Encode and write one chunk. Returns its segment table, checksums, and bytes before."""
        backend, geometry = self.backend, plan.geometry

        def encode(plan: SegmentPlan) -> tuple[Any, Checksums, SegmentPlan]:
            encoded, sums = backend.encode_with_checksums(plan, words)
            return encoded.payload, sums, plan.encoded(encoded.n_units, encoded.n_patches)

        coded, sums, done = encode(plan)
        if self.options.trusts_sample and (grown := has_grown(done)).any():
            coded, sums, done = encode(stored_raw(plan, grown))
        sums = sums if crc is None else sums._replace(words=crc)
        payload = backend.to_host(coded)
        if payload.nbytes != int(done.offsets[-1]):
            raise AssertionError(f"backend {backend.name!r} wrote {payload.nbytes} bytes where its sizes say {done.offsets[-1]}")
        self.offset += self._write(payload.data)
        return done.segments, sums, geometry.rows * geometry.cols * plan.dtype.word_nbytes

    def _check_name(self, name: str) -> None:
        try:
            nbytes = len(name.encode())
        except UnicodeEncodeError:
            raise EncodeError("bad_name", f"the name {name!r} is not UTF-8") from None
        if nbytes > 0xFFFF:
            raise EncodeError("bad_name", f"a name of {nbytes} bytes; the format has room for 65535")
        if name in self.names:
            raise EncodeError("bad_name", "two tensors have this name", tensor=name)
        self.names.add(name)

    def finish(self, metadata: dict[str, str] | None = None, source_header: bytes | None = None) -> int:
        """Write the index and the footer. Returns the bytes of the file.

        Parameters
        ----------
        metadata
            Texts to keep.
        source_header
            The first bytes of the safetensors file that the tensors came from, in order: restored before them.

        Raises
        ------
        EncodeError
            ``bad_name``: a metadata text is not UTF-8.
        """
        for text in (t for pair in (metadata or {}).items() for t in pair):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise EncodeError("bad_name", f"the metadata text {text!r} is not UTF-8") from None
        kind = None if source_header is None else container.SourceKind.SAFETENSORS
        base = None
        if self.base is not None and any(t.difference for t in self.tensors):
            base = Base(self.base.content_hash(), self.base.name.encode(errors="replace").decode())
        index = Index(self.tensors, self.planner.pool, metadata or {}, kind, source_header or b"", base)
        self.offset += self._write(container.write_index(index, self.offset))
        return self.offset


# ---- reading bytes -------------------------------------------------------------------------------------------------------
class BufferSource:
    """A buffer, or a mapped file."""

    def __init__(self, data: Any) -> None:
        self.view = np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)
        self.nbytes = self.view.size

    def read(self, offset: int, nbytes: int) -> Bytes:
        """`nbytes` bytes from `offset`, without a copy."""
        return self.view[offset : offset + nbytes]

    def read_into(self, offset: int, target: Bytes) -> None:
        """Fill `target` with bytes from `offset`."""
        np.copyto(target, self.read(offset, target.size))


class FileSource(BufferSource):
    """A mapped file that can also be read by calls, into the place where bytes are wanted: a map would fault at every page.

    Parameters
    ----------
    mapped
        The file as it is mapped.
    file
        The same file, open for reading.
    """

    def __init__(self, mapped: ByteSource, file: BinaryIO) -> None:
        super().__init__(mapped.read(0, mapped.nbytes))
        self._descriptor, self._name = file.fileno(), file.name

    def read_into(self, offset: int, target: Bytes) -> None:
        """As `BufferSource.read_into`.

        Raises
        ------
        DecodeError
            ``truncated``: the file has become shorter than it was.
        OSError
        """
        done = 0
        while done < target.size:
            try:
                n = os.preadv(self._descriptor, [target.data[done:]], offset + done)
            except OSError as e:
                e.filename = self._name  # the system does not say
                raise
            if n == 0:
                raise DecodeError("truncated", f"the file ends {target.size - done} bytes early", offset=offset + done)
            done += n


class StreamSource:
    """A seekable binary file object: a local file, or one of ``fsspec``."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.lock = stream, threading.Lock()
        self.nbytes = stream.seek(0, io.SEEK_END)

    def read(self, offset: int, nbytes: int) -> Bytes:
        """`nbytes` bytes from `offset`.

        Raises
        ------
        DecodeError
            ``truncated``: the file has become shorter than it was.
        """
        if nbytes == 0:
            return np.empty(0, np.uint8)
        pieces, done = list[bytes](), 0
        with self.lock:
            self.stream.seek(offset)
            while done < nbytes:
                pieces.append(self.stream.read(nbytes - done))
                if not pieces[-1]:
                    raise DecodeError("truncated", f"the file ends {nbytes - done} bytes early", offset=offset + done)
                done += len(pieces[-1])
        return np.frombuffer(pieces[0] if len(pieces) == 1 else b"".join(pieces), np.uint8)


# ---- decoding ----------------------------------------------------------------------------------------------------------
@contextmanager
def _memory(nbytes: int, tensor: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise DecodeError("resource_limit", f"there is no memory for {nbytes} bytes", tensor=tensor) from None


class Decoder:
    """Decodes tensors of any number of files with the same backend and buffers.

    Parameters
    ----------
    backend
        ``None`` for the one of `get_backend`.
    max_nbytes
        Refuse files whose tensors decode to more bytes than that.
    """

    def __init__(self, backend: Backend | None = None, max_nbytes: int | None = None) -> None:
        self.backend, self.max_nbytes = backend or get_backend(), max_nbytes
        self._buffers = [np.empty(0, np.uint8)] * (CHUNK_BUFFERS + max(0, self.backend.at_once - 1))
        self._turn, self._spares = 0, list[Bytes]()

    def read_index(self, source: ByteSource) -> Index:
        """Read and check all of a file but the payload.

        Raises
        ------
        DecodeError
            As `wcodec.reference.container.read_index`; ``resource_limit`` above `max_nbytes`.
        """
        index = container.read_index(source, self.backend.read_tables)
        if self.max_nbytes is not None and index.data_nbytes > self.max_nbytes:
            raise DecodeError("resource_limit", f"the tensors have {index.data_nbytes} bytes; the caller allows {self.max_nbytes}")
        return index

    def decode(self, data: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The array of a file of one tensor. See `decode`."""
        source = BufferSource(data)
        index = self.read_index(source)
        if len(index.tensors) != 1:
            raise DecodeError("bad_range", f"this file holds {len(index.tensors)} tensors, not one: use load_file or open")
        return self.tensor(source, index.tensors[0], index.tables, out)

    def tensor(
        self, source: ByteSource, t: TensorRecord, tables: TablePool, out: NDArray[Any] | None = None, base: BaseTensor | None = None
    ) -> NDArray[Any]:
        """A whole tensor, checked against its CRC-32.

        Parameters
        ----------
        out
            C-contiguous array of the tensor's shape and dtype to decode into; ``None`` for a new one.
        base
            The tensor that one with a difference differs from.

        Raises
        ------
        DecodeError
        ValueError
            `out` has another shape or dtype, or is not contiguous.
        """
        _check_base(t, base)
        if out is None:
            with _memory(t.nbytes, t.name):
                out = np.empty(t.shape, t.dtype.numpy)
        elif out.shape != t.shape or out.dtype != t.dtype.numpy or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError(f"out must be a writeable C-contiguous {t.dtype.name} array of shape {t.shape}")
        matrix = out.reshape(-1).view(np.uint8).view(t.dtype.word_type).reshape(t.geometry.rows, t.geometry.cols)
        plan = t.plan(tables)

        def decode(piece: Rectangle) -> tuple[int, int]:
            chunk = matrix[piece.rows, piece.cols]
            return self.grid(source, t, plan, piece.down, piece.across, chunk, base), chunk.nbytes

        crc = 0
        for part, nbytes in ahead(decode, _rectangles(t, _TENSOR_NBYTES), self.backend.at_once):
            crc = crc32_combine(crc, part, nbytes)
        check_tensor(t, crc)
        return out

    def chunks(self, source: ByteSource, t: TensorRecord, tables: TablePool, base: BaseTensor | None = None) -> Iterator[Words]:
        """The words of a tensor in order, a chunk at a time. A chunk is overwritten `CHUNK_BUFFERS` chunks later. Raises as `tensor`."""
        _check_base(t, base)
        crc, plan = 0, t.plan(tables)

        def decode(piece: tuple[Rectangle, Bytes]) -> tuple[int, Words]:
            place, buffer = piece
            chunk = buffer.view(t.dtype.word_type).reshape(place.shape)
            return self.grid(source, t, plan, place.down, place.across, chunk, base), chunk

        pieces = ((r, self._buffer(math.prod(r.shape) * t.dtype.word_nbytes, t.name)) for r in _rectangles(t, _STREAM_NBYTES))
        for part, chunk in ahead(decode, pieces, self.backend.at_once):
            crc = crc32_combine(crc, part, chunk.nbytes)
            yield chunk
        check_tensor(t, crc)

    def _buffer(self, nbytes: int, tensor: str) -> Bytes:
        """Memory that is handed out again when as many others have been."""
        self._turn = (self._turn + 1) % len(self._buffers)
        if self._buffers[self._turn].size < nbytes:
            with _memory(nbytes, tensor):
                self._buffers[self._turn] = np.empty(nbytes, np.uint8)
        return self._buffers[self._turn][:nbytes]

    def grid(
        self, source: ByteSource, t: TensorRecord, whole: SegmentPlan, down: Ids, across: Ids, out: Words, base: BaseTensor | None = None
    ) -> int:
        """Decode the segments of some segment rows and columns into `out`, which they fill; reads no others. `whole` is the tensor's plan.

        Returns
        -------
        CRC-32 of `out`.

        Raises
        ------
        DecodeError
            ``bad_checksum`` of a segment, ``bad_stream``, ``bad_patch``, ``unsupported_coder``; ``bad_base``: it is missing.
        """
        _check_base(t, base)
        if down.size == 0 or across.size == 0:
            return 0
        return self.part(source, t, part_of(t, whole, down, across), out, base)

    def part(self, source: ByteSource, t: TensorRecord, part: Part, out: Words, base: BaseTensor | None = None) -> int:
        """As `grid`, of a part that was planned before: who decodes it again and again spares that."""
        records = _gather(source, part.starts, part.plan.offsets)
        backend = self.backend
        payload, device = backend.to_device(_aligned(records)), backend.target(out)
        status, sums = backend.decode_with_checksums(part.plan, payload, device)
        check_segments(t, part.ids, part.starts, status, sums.records)
        crc = sums.words
        if base is not None and t.difference != Difference.NONE:
            with self._spare(out.nbytes, t.name) as room:
                other = _base_words(t.geometry, part.down, part.across, base, room.view(out.dtype).reshape(out.shape))
                crc = backend.add_base(device, backend.to_device(other), t.difference)
        if device is not out:
            backend.to_host(device, out)
        return crc

    @contextmanager
    def _spare(self, nbytes: int, tensor: str) -> Iterator[Bytes]:
        """Memory that nobody else uses meanwhile."""
        try:
            room = self._spares.pop()
        except IndexError:
            room = np.empty(0, np.uint8)
        if room.size < nbytes:
            with _memory(nbytes, tensor):
                room = np.empty(nbytes, np.uint8)
        yield room[:nbytes]
        if room.size <= _TENSOR_NBYTES:
            self._spares.append(room)


class Part(NamedTuple):
    """Some segment rows and columns of a tensor, planned: their ids, where their records start in the file, and how they are coded."""

    down: Ids
    across: Ids
    ids: Ids
    starts: NDArray[np.int64]
    plan: SegmentPlan


def part_of(t: TensorRecord, whole: SegmentPlan, down: Ids, across: Ids) -> Part:
    """Plan some segment rows and columns of a tensor; `whole` is the tensor's plan."""
    if (down.size, across.size) == t.geometry.grid:
        ids, plan = np.arange(whole.n_elements.size), whole
    else:
        geometry, ids = t.geometry.select(down, across)
        plan = SegmentPlan(t.coded_dtype, geometry, t.segments.take(ids), whole.tables)
    return Part(down, across, ids, whole.offsets[:-1][ids] + t.payload_offset, plan)


def _check_base(t: TensorRecord, base: BaseTensor | None) -> None:
    if t.difference != Difference.NONE and base is None:
        raise DecodeError("bad_base", "the tensor is a difference from a base, which is not given", tensor=t.name)


def _base_words(geometry: Geometry, down: Ids, across: Ids, base: BaseTensor, room: Words) -> Words:
    """The base's words of some segment rows and columns: in `room`, or where they lie."""
    runs_down = _runs(down, geometry.segment_rows, geometry.rows)
    runs_across = _runs(across, geometry.segment_cols, geometry.cols)
    if len(runs_down) == len(runs_across) == 1:
        return base.words(runs_down[0], runs_across[0], room)
    r = 0
    for rows in runs_down:
        height, c = rows.stop - rows.start, 0
        for cols in runs_across:
            width = cols.stop - cols.start
            room[r : r + height, c : c + width] = base.words(rows, cols, np.empty((height, width), room.dtype))
            c += width
        r += height
    return room


def _runs(ids: Ids, size: int, total: int) -> list[slice]:
    """Rows (or columns) of words of the runs of neighbours in ascending segment rows (or columns)."""
    cuts = [0, *(np.flatnonzero(np.diff(ids) > 1) + 1).tolist(), ids.size]
    return [slice(int(ids[a]) * size, min((int(ids[b - 1]) + 1) * size, total)) for a, b in pairwise(cuts)]


def check_segments(t: TensorRecord, ids: Ids, starts: Ids, status: NDArray[np.uint8], crcs: NDArray[np.uint32]) -> None:
    """Compare what decoding gave for some segments of a tensor: status and CRC-32 of each; `starts` says where they are in the file.

    Raises
    ------
    DecodeError
        ``bad_checksum``, ``bad_stream``, ``bad_patch``, ``unsupported_coder``
    """
    wrong, bad = crcs != t.segment_crc32[ids], status != Status.OK.value
    if wrong.any():
        k = int(np.argmax(wrong))
        raise DecodeError("bad_checksum", f"the CRC-32 of segment {int(ids[k])} does not match", tensor=t.name, offset=int(starts[k]))
    if bad.any():
        k = int(np.argmax(bad))
        code, message = _STATUS_ERRORS[Status(int(status[k]))]
        raise DecodeError(code, f"segment {int(ids[k])}: {message}", tensor=t.name, offset=int(starts[k]))


def check_tensor(t: TensorRecord, crc: int) -> None:
    """Compare the CRC-32 of a whole tensor.

    Raises
    ------
    DecodeError
        ``bad_checksum``
    """
    if crc != t.crc32:
        raise DecodeError("bad_checksum", "the CRC-32 of the decoded tensor does not match", tensor=t.name)


class Rectangle(NamedTuple):
    """A chunk of a tensor: segment rows, segment columns, their geometry, and the rectangle of words that they fill."""

    down: Ids
    across: Ids
    geometry: Geometry
    rows: slice
    cols: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of words."""
        return self.rows.stop - self.rows.start, self.cols.stop - self.cols.start


def ahead(function: Callable[[S], T], items: Iterable[S], n: int) -> Iterator[T]:
    """``map(function, items)``, with up to `n` calls at once in threads of their own; with none, in the caller's."""
    if n < 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(n, "wcodec-ahead") as threads:
        under_way: deque[Future[T]] = deque()
        try:
            for item in items:
                if len(under_way) == n:
                    yield under_way.popleft().result()
                under_way.append(threads.submit(function, item))
            while under_way:
                yield under_way.popleft().result()
        finally:
            for call in under_way:
                call.cancel()


def rectangle(geometry: Geometry, down: Ids, across: Ids) -> Rectangle:
    """What neighbouring segment rows and columns fill."""
    part = geometry if (down.size, across.size) == geometry.grid else geometry.select(down, across)[0]
    r, c = int(down[0]) * geometry.segment_rows, int(across[0]) * geometry.segment_cols
    return Rectangle(down, across, part, slice(r, r + part.rows), slice(c, c + part.cols))


def _rectangles(t: TensorRecord, nbytes: int) -> Iterator[Rectangle]:
    """Chunks of a tensor of about `nbytes` bytes."""
    return (rectangle(t.geometry, down, across) for down, across in chunks(t.geometry, t.dtype.word_nbytes, nbytes))


def _gather(source: ByteSource, starts: NDArray[np.int64], offsets: NDArray[np.int64]) -> Bytes:
    """The records that start at `starts` in a file, one behind another as `offsets` says."""
    cut = np.flatnonzero(np.diff(starts) != np.diff(offsets)[:-1]) + 1
    bounds = [0, *cut.tolist(), starts.size]
    pieces = [source.read(int(starts[a]), int(offsets[b] - offsets[a])) for a, b in pairwise(bounds)]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _aligned(data: Bytes) -> Bytes:
    """Bytes, in a place that is a multiple of 16."""
    if data.ctypes.data % 16 == 0:
        return data
    room = np.empty(data.size + 15, np.uint8)
    start = -room.ctypes.data % 16
    room[start : start + data.size] = data
    return room[start : start + data.size]


# ---- one array -----------------------------------------------------------------------------------------------------------
def encode(array: NDArray[Any], options: EncodeOptions | None = None) -> bytes:
    """Encode an array into bytes that `decode` turns back into it, bit for bit.

    Parameters
    ----------
    array
        Any shape; bool, int8 to int64, uint8 to uint64, float16/32/64, complex64/128, and bfloat16 and float8 of ``ml_dtypes``.

    Raises
    ------
    EncodeError
        ``unsupported_dtype``, ``resource_limit``

    See also
    --------
    spec/wcodec.md, chapter 3
    """
    return Encoder(options).encode(np.asarray(array))


def decode(data: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Decode the bytes of `encode`.

    Parameters
    ----------
    data
        bytes, or anything with a contiguous buffer.
    out
        Array of the same shape and dtype to decode into, to spare the allocation.

    Raises
    ------
    DecodeError
    """
    return Decoder().decode(data, out)
