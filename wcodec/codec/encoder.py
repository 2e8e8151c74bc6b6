"""From arrays to a file: plan, kernels, container."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend, get_backend
from wcodec.backends.protocol import Checksums
from wcodec.codec.arrays import as_array
from wcodec.codec.batches import (
    MOST,
    Small,
    as_small,
    encode_batch,
)
from wcodec.codec.checks import check_encoded
from wcodec.codec.joining import join_tables
from wcodec.codec.listing import Listed, Tensor, encode_listed, list_words
from wcodec.codec.parts import Ids, Rectangle, rectangle
from wcodec.codec.pipelining import Progress, ignore_progress, map_ahead
from wcodec.codec.sources import FileWords
from wcodec.codec.whole import Whole
from wcodec.codec.working import MOST_NBYTES
from wcodec.errors import EncodeError, within
from wcodec.planner.differences import (
    choose_difference,
    enlarged,
    few_changed,
    list_segments,
    lists_pay,
)
from wcodec.planner.fast import has_grown, stored_raw
from wcodec.planner.geometry import choose_geometry
from wcodec.planner.options import EncodeOptions
from wcodec.planner.planner import Planner
from wcodec.reference import container
from wcodec.reference.checksums import crc32_combine
from wcodec.reference.container import Base, Index
from wcodec.reference.differences import BaseCheckpoint, BaseTensor, Difference, coded_dtype
from wcodec.reference.operands import is_of_operand
from wcodec.reference.planes import DType, Words, dtype_of
from wcodec.reference.segments import SegmentPlan, SegmentTable
from wcodec.reference.tables import TablePool
from wcodec.reference.tensors import TensorRecord
from wcodec.reference.tiles import Geometry, chunks

MOST_LISTED: Final = 1 << 22  #: listed words that are coded at once


class ByteSink(Protocol):
    """What is written to: a binary file, or anything that takes bytes and keeps what it is given
    unchanged.
    """

    def write(self, data: Any, /) -> Any:
        """Write all of some bytes."""


def words_of(array: NDArray[Any]) -> tuple[DType, Words]:
    """Registry row of an array and its words, flat;
    a copy only if it is not contiguous and little-endian.

    Raises
    ------
    EncodeError
        ``unsupported_dtype``
    """
    dtype = dtype_of(array)
    flat = np.ascontiguousarray(array, dtype.numpy).reshape(-1)
    return dtype, flat.view(np.uint8).view(dtype.word_type)


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

    def __init__(
        self, options: EncodeOptions | None = None, backend: Backend | None = None
    ) -> None:
        self.options, self.backend = options or EncodeOptions(), backend or get_backend()

    def start(
        self,
        stream: ByteSink,
        progress: Progress = ignore_progress,
        base: BaseCheckpoint | None = None,
        n_parts: int = 1,
    ) -> Writer:
        """Begin a file on a binary stream, which need not be seekable;
        of differences from a base, where these are smaller; of `n_parts` (`Writer.start_part`).
        """
        return Writer(stream, self.options, self.backend, progress, base, n_parts)

    def encode(self, array: NDArray[Any]) -> bytes:
        """One array as a file of one tensor with an empty name. See `encode`."""
        array = as_array(array)
        whole = Whole(array.nbytes)
        writer = self.start(whole)
        writer.add("", array)
        writer.finish()
        return whole.getvalue()


class Writer:
    """A file being written: `add` each tensor, then `finish`.
    Holds one chunk of words, small tensors that wait for others, and the index in memory.
    """

    def __init__(
        self,
        stream: ByteSink,
        options: EncodeOptions,
        backend: Backend,
        progress: Progress = ignore_progress,
        base: BaseCheckpoint | None = None,
        n_parts: int = 1,
    ) -> None:
        self.stream = stream
        self.options = options
        self.backend = backend
        self.progress = progress
        self.base = base
        self._n_parts, self._pools, self._starts = n_parts, list[TablePool](), list[int]()
        self.tensors, self.names = list[TensorRecord](), set[str]()
        self.offset = self._write(container.write_header())
        self._batch, self._batch_nbytes = list[Small](), 0
        self._geometries = dict[Any, tuple[int, Geometry]]()
        self._base_crcs = dict[str, int]()  # of tensors of the base, where they are known
        self._listed, self._listed_words = list[Listed](), 0
        self._rooms = [np.empty(0, np.uint8)] * 2  # one is coded while the other one is planned
        self.start_part()

    def start_part(self) -> None:
        """Begin a part, the first one at once: how it is coded does not depend on those before."""
        self._flush()
        self.planner = Planner(self.options, self._n_parts)
        self._pools.append(self.planner.pool)
        self._starts.append(len(self.tensors))

    def _write(self, data: Any) -> int:
        self.stream.write(data)
        return len(data)

    def _put(self, data: Any) -> int:
        """Write bytes, and give the place where they start."""
        start = self.offset
        self.offset += self._write(data)
        return start

    def add(self, name: str, array: NDArray[Any]) -> TensorRecord:
        """Encode and write a tensor.

        Parameters
        ----------
        name
            UTF-8, unlike the others, at most 65535 bytes.
        array
            Any shape; a dtype of the registry. See `encode` on what is no plain array.

        Raises
        ------
        EncodeError
            ``unsupported_dtype``, ``bad_name``, ``resource_limit``
        """
        with within(tensor=name):
            array = as_array(array)
            dtype, words = words_of(array)
        return self.add_words(name, words, dtype, array.shape)

    def add_words(
        self,
        name: str,
        words: Words | FileWords,
        dtype: DType,
        shape: tuple[int, ...],
        dtype_name: str = "",
    ) -> TensorRecord:
        """Encode and write a tensor given as words: a flat unsigned array, or words of a file.

        `dtype_name` is kept in the file for dtypes that the format stores as opaque bytes.
        """
        tensor = self._checked(name, words, dtype, shape, dtype_name)
        is_listed = self._list(tensor, words)
        self._flush()
        return self.tensors[-1] if is_listed else self._add(tensor, words)

    def _checked(
        self, name: str, words: Any, dtype: DType, shape: tuple[int, ...], dtype_name: str
    ) -> Tensor:
        self._check_name(name)
        if words.size != math.prod(shape) * dtype.words_per_element:
            raise EncodeError("bad_source", f"{words.size} words for shape {shape}", tensor=name)
        return Tensor(name, dtype, shape, dtype_name)

    def _base_tensor(self, t: Tensor, geometry: Geometry) -> BaseTensor | None:
        """What a tensor may be coded as a difference from, as such a matrix."""
        operand = self.options.operand is not None and is_of_operand(geometry)
        if self.base is None or operand:
            return None
        return self.base.base_tensor(t.name, t.dtype, t.shape, geometry)

    def _add(self, t: Tensor, words: Words | FileWords) -> TensorRecord:
        """Encode and write a tensor, all of its words."""
        name, dtype, shape, dtype_name = t
        row_rank, geometry = choose_geometry(shape, dtype, self.options)
        matrix: Any = words.reshape(geometry.rows, geometry.cols)
        base, difference = self._base_tensor(t, geometry), Difference.NONE
        if base is not None:
            difference = choose_difference(matrix, base, dtype, self.backend)
        if (
            difference != Difference.NONE
            and self.options.segment is None
            and self.options.tile is None
        ):
            geometry = enlarged(geometry)
        coded = coded_dtype(dtype, difference)
        crc, start = 0, self.offset
        tables, crcs = list[SegmentTable](), list[NDArray[np.uint32]]()
        grid = list(chunks(geometry, dtype.word_nbytes))
        self.planner.start_tensor(difference != Difference.NONE)
        plans = self._plans(matrix, geometry, coded, grid, base, difference)
        # coded while the next chunk is planned
        in_a_thread = len(grid) > 1 and self.backend.threads != 1
        for segments, sums, nbytes in map_ahead(
            lambda chunk: self._code(*chunk), plans, int(in_a_thread)
        ):
            tables.append(segments)
            crcs.append(sums.records)
            crc = crc32_combine(crc, sums.words, nbytes)
            self.progress(nbytes)
        record = TensorRecord(
            name, dtype, shape, row_rank, geometry,
            SegmentTable.concatenate(tables) if tables else SegmentTable.zeros(0, coded.n_planes),
            np.concatenate(crcs) if crcs else np.empty(0, np.uint32),
            start, self.offset - start, crc, dtype_name, difference,
        )  # fmt: skip
        self.tensors.append(record)
        return record

    def _list(self, t: Tensor, words: Any) -> bool:
        """List what has changed of a tensor, to be coded with that of others. False if that is too
        much, or the options say how to code all words.
        """
        if self.base is None or words.size == 0 or not self.options.allows_lists:
            return False
        _, geometry = choose_geometry(t.shape, t.dtype, self.options)
        base, matrix = self._base_tensor(t, geometry), words.reshape(geometry.rows, geometry.cols)
        sample = None if base is None else few_changed(matrix, base, t.dtype)
        if sample is None:
            return False
        flat = self.base.base_tensor(t.name, t.dtype, t.shape, list_segments(words.size))
        listed = flat and list_words(t, words, flat, list_segments(words.size), self.backend)
        if not listed or not lists_pay(listed, sample, t.dtype, self.backend):
            return False
        self._base_crcs[t.name] = listed.base_crc32
        self._listed.append(listed)
        self._listed_words += listed.words.size
        return True

    def add_later(
        self,
        name: str,
        words: Words | FileWords,
        dtype: DType,
        shape: tuple[int, ...],
        dtype_name: str = "",
    ) -> None:
        """As `add_words`, but a small tensor waits for others, to be coded with them. Its words are
        copied.
        """
        if self.base is not None:
            tensor = self._checked(name, words, dtype, shape, dtype_name)
            if not self._list(tensor, words):
                self._flush()
                self._add(tensor, words)
            elif len(self._listed) == MOST or self._listed_words >= MOST_LISTED:
                self._flush()
            return
        small = None
        if isinstance(words, np.ndarray):
            small = as_small(name, words, dtype, shape, dtype_name, self.options, self._geometries)
        if small is None:
            self.add_words(name, words, dtype, shape, dtype_name)
            return
        self._check_name(name)
        self._batch.append(small)
        self._batch_nbytes += len(small.words)
        if len(self._batch) == MOST or self._batch_nbytes >= MOST_NBYTES:
            self._flush()

    def _flush(self) -> None:
        """Encode and write what waits. After an error it still waits: nothing is left out."""
        if self._batch:
            batch = encode_batch(self._batch, self.planner, self.backend, self.offset)
            self.offset += self._write(batch[0])
            self.tensors += batch[1]
            nbytes, self._batch, self._batch_nbytes = self._batch_nbytes, [], 0
            self.progress(nbytes)
        if self._listed:
            records = encode_listed(self._listed, self.planner, self.backend, self._put)
            self._listed, self._listed_words = [], 0
            self.tensors += records
            self.progress(sum(t.nbytes for t in records))

    def add_duplicate(self, name: str, of: int) -> TensorRecord:
        """Add a tensor that is in all but its name the one of that number, counted from 0.
        Costs a few bytes.

        Raises
        ------
        EncodeError
            ``bad_name``
        """
        self._flush()
        self._check_name(name)
        first = self.tensors[of]
        of = of if first.duplicate_of is None else first.duplicate_of
        record = first.duplicate(name, of)
        self.tensors.append(record)
        self.progress(record.nbytes)
        return record

    def _plans(
        self,
        matrix: Any,
        geometry: Geometry,
        dtype: DType,
        grid: list[tuple[Ids, Ids]],
        base: BaseTensor | None,
        difference: Difference,
    ) -> Iterator[tuple[SegmentPlan, bool, Any, int | None]]:
        """Plan of each chunk, whether it is an estimate, and words; for differences also the CRC-32
        of the words before.
        """
        backend, room = self.backend, np.empty(0, dtype.word_type)
        for down, across in grid:
            piece = rectangle(geometry, down, across)
            chunk = self._chunk(matrix, piece, dtype, base is None)
            crc = None
            words = backend.to_device(chunk)
            if base is not None and difference != Difference.NONE:
                room = room if room.size >= chunk.size else np.empty(chunk.size, dtype.word_type)
                other = base.words(piece.rows, piece.cols, room[: chunk.size].reshape(chunk.shape))
                words = backend.subtract_base(words, backend.to_device(other), difference)
                crc = backend.crc32(chunk)
            plan = self.planner.plan(words, piece.geometry, dtype, backend)
            yield plan, self.planner.estimated, words, crc

    def _chunk(self, matrix: Any, piece: Rectangle, dtype: DType, is_coded: bool) -> Words:
        """Words of a chunk; of a file, in memory that the chunk before the last one had, but those
        that are not coded themselves are let go of at once.
        """
        if not is_coded or not isinstance(matrix, FileWords):
            return np.require(matrix[piece.rows, piece.cols], dtype.word_type, ["C", "A"])
        self._rooms.reverse()
        n = math.prod(piece.shape) * dtype.word_nbytes
        if self._rooms[0].size < n:
            self._rooms[0] = np.empty(n, np.uint8)
        chunk = self._rooms[0][:n].view(dtype.word_type).reshape(piece.shape)
        matrix.read_into((piece.rows, piece.cols), chunk)
        return chunk

    def _code(
        self, plan: SegmentPlan, estimated: bool, words: Any, crc: int | None
    ) -> tuple[SegmentTable, Checksums, int]:
        """Encode and write one chunk. Returns its segment table, checksums, and bytes before."""
        backend, geometry = self.backend, plan.geometry

        def encode(plan: SegmentPlan) -> tuple[Any, Checksums, SegmentPlan]:
            encoded, sums = backend.encode_in_parts(plan, words)
            return encoded.payload, sums, plan.encoded(encoded.n_units, encoded.n_patches)

        coded, sums, done = encode(plan)
        if estimated and (grown := has_grown(done)).any():
            coded, sums, done = encode(stored_raw(plan, grown))
        sums = sums if crc is None else sums._replace(words=crc)
        parts = [backend.to_host(part) for part in coded]
        check_encoded(backend, done, sum(part.nbytes for part in parts))
        for part in parts:
            self.offset += self._write(part.data)
        return done.segments, sums, geometry.rows * geometry.cols * plan.dtype.word_nbytes

    def _check_name(self, name: str) -> None:
        try:
            nbytes = len(name.encode())
        except UnicodeEncodeError:
            raise EncodeError("bad_name", f"the name {name!r} is not UTF-8") from None
        if nbytes > 0xFFFF:
            raise EncodeError(
                "bad_name", f"a name of {nbytes} bytes; the format has room for 65535"
            )
        if name in self.names:
            raise EncodeError("bad_name", "two tensors have this name", tensor=name)
        self.names.add(name)

    def finish(
        self, metadata: dict[str, str] | None = None, source_header: bytes | None = None
    ) -> int:
        """Write the index and the footer. Returns the bytes of the file.

        Parameters
        ----------
        metadata
            Texts to keep.
        source_header
            The first bytes of the safetensors file that the tensors came from, in order:
            restored before them.

        Raises
        ------
        EncodeError
            ``bad_name``: a metadata text is not UTF-8.
        """
        self._flush()
        for text in (t for pair in (metadata or {}).items() for t in pair):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise EncodeError("bad_name", f"the metadata text {text!r} is not UTF-8") from None
        kind = None if source_header is None else container.SourceKind.SAFETENSORS
        base = None
        if self.base is not None and any(t.difference for t in self.tensors):
            sha256, called = self.base.content_hash(self._base_crcs), self.base.name
            base = Base(sha256, called.encode(errors="replace").decode())
        pool, tensors = join_tables(self._pools, self._starts, self.tensors)
        index = Index(tensors, pool, metadata or {}, kind, source_header or b"", base)
        self.offset += self._write(container.write_index(index, self.offset))
        return self.offset
