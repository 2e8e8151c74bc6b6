"""Files of weights of any form, opened as far as it takes to say what is in them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.codec.decoder import check_nbytes
from wcodec.codec.opening import OpenedFile, open_source
from wcodec.codec.pipelining import map_ahead
from wcodec.codec.sources import reading_on
from wcodec.codec.urls import Place
from wcodec.directories.hub_header import A_HEADER_BYTE, VERSION_KEY, looks_like_stream
from wcodec.directories.hub_reading import HubFile
from wcodec.errors import within
from wcodec.files.file import File
from wcodec.files.safetensors_header import (
    SafetensorsHeader,
    SourceTensor,
    header_nbytes,
    read_safetensors_header,
)
from wcodec.files.shard_index import CODED, PLAIN
from wcodec.reference.container import MAGIC
from wcodec.reference.differences import Difference
from wcodec.reference.memory import Memory
from wcodec.reference.planes import OPAQUE, DType
from wcodec.reference.tensors import TensorRecord

_PIECE_NBYTES: Final = 1 << 23  #: of a tensor, read at once
_READS_AHEAD: Final = 2  #: of such pieces
_HEAD_NBYTES: Final = 9  #: the magic number, or the size of a header and a brace

#: of segments side by side, which are decoded where one of their rows is wanted: those of the
#: encoder have half as many at most
_ROW_NBYTES: Final = 1 << 28

Index = tuple[slice, ...]  #: rows and the like: what lies side by side in raster order


class Limits(NamedTuple):
    """What files may take; see `wcodec.open`."""

    max_nbytes: int | None = None
    max_memory: int | None = None


class Held(NamedTuple):
    """A tensor of a file.

    Attributes
    ----------
    dtype
        Name as in safetensors, or in this project.
    shape
        Of opaque bytes: how many.
    nbytes, stored_nbytes
        Decoded, and in the file: 0 of a duplicate in a ``.wcodec`` file.
    crc32
        Of the decoded bytes, if the file gives it.
    records
        Tells how it is cut into segments, and the CRC-32s of their records; empty where there are
        none, or where they are of a difference.
    numpy
        Of its elements; ``None`` of opaque bytes, and where it takes too much to read a part.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    stored_nbytes: int
    crc32: int | None
    records: bytes
    numpy: np.dtype[Any] | None

    @property
    def kind(self) -> tuple[str, str, tuple[int, ...]]:
        """What two tensors have in common of which one may be a difference from the other."""
        return self.name, self.dtype, self.shape


class Weights(Protocol):
    """A file of weights, open for reading.

    Attributes
    ----------
    form
        ``wcodec``, ``hub`` or ``safetensors``.
    nbytes, stored_nbytes
        Of the file that it decodes to, and its own.
    needs_base
        Whether it holds differences, and what the checkpoint was called that they refer to.
    """

    form: str
    nbytes: int
    stored_nbytes: int
    needs_base: bool
    base_name: str
    held: list[Held]

    def pieces(self, name: str) -> Iterator[Any]:
        """The decoded bytes of a tensor, some at a time."""

    def part(self, t: Held, index: Index) -> NDArray[Any]:
        """Some of the elements of a tensor that is not opaque."""

    def ahead(self) -> AbstractContextManager[None]:
        """Where tensors are read in about their order."""

    def close(self) -> None:
        """Let go of the file."""


def is_named_weights(name: str) -> bool:
    """Whether a file is called as one of weights."""
    return name.endswith((PLAIN, CODED))


def looks_like_weights(head: bytes) -> bool:
    """Whether a file with another name is one of weights, by its first bytes."""
    return head[: len(MAGIC)] == MAGIC or (head[8:9] == b"{" and head[5:8] == bytes(3))


def open_weights(
    place: Place, backend: Backend, limits: Limits, is_named: bool = True
) -> Weights | None:
    """A file of weights, by what is in it.

    Parameters
    ----------
    is_named
        Whether it is called as one, and has to be one.

    Returns
    -------
    The file, to be closed; ``None`` of one that is none and need not be.

    Raises
    ------
    WcodecError, OSError
        It cannot be read.
    """
    if is_named and place.name.endswith(CODED):
        return _coded(place, backend, limits)
    source = open_source(place, is_checked=True)
    with ExitStack() as stack:
        stack.callback(source.close)
        head = source.read(0, min(_HEAD_NBYTES, source.nbytes)).tobytes()
        if not is_named and not looks_like_weights(head):
            return None
        if head.startswith(MAGIC):
            return _coded(place, backend, limits)
        with within(place):
            header = _header(source, limits)
            if not _is_hub(header, source):
                check_nbytes(sum(t.nbytes for t in header.tensors), limits.max_nbytes)
                stack.pop_all()
                return _Plain(place, source, header)
        return _Hub(HubFile(place, backend, limits.max_nbytes, limits.max_memory))


def _coded(place: Place, backend: Backend, limits: Limits) -> Weights:
    return _Coded(File(place, backend, limits.max_nbytes, max_memory=limits.max_memory))


def _is_hub(header: SafetensorsHeader, source: OpenedFile) -> bool:
    is_said = VERSION_KEY in header.metadata
    return is_said or any(looks_like_stream(t, source) for t in header.tensors)


def _header(source: OpenedFile, limits: Limits) -> SafetensorsHeader:
    head = source.read(0, min(8, source.nbytes)).tobytes()
    if len(head) == 8:
        # one that leaves the file is refused for what it is below
        nbytes = min(int.from_bytes(head, "little"), source.nbytes)
        nbytes = header_nbytes(head, source.nbytes) if nbytes < source.nbytes else 0
        Memory(limits.max_memory).take(nbytes * A_HEADER_BYTE, f"a header of {nbytes} bytes")
    return read_safetensors_header(source)


def _dtype_name(dtype: DType, stated: str) -> str:
    return stated or dtype.safetensors or dtype.name


def _of_record(t: TensorRecord, name: str, stored_nbytes: int, stated: str) -> Held:
    numpy = None if t.dtype is OPAQUE or _row_nbytes(t) > _ROW_NBYTES else t.dtype.numpy
    dtype = _dtype_name(t.dtype, stated)
    return Held(name, dtype, t.shape, t.nbytes, stored_nbytes, t.crc32, _records(t), numpy)


def _row_nbytes(t: TensorRecord) -> int:
    """Bytes of segments side by side; of a single row, parts of it are decoded."""
    g = t.geometry
    return 0 if g.rows <= 1 else min(g.rows, g.segment_rows) * g.cols * t.dtype.word_nbytes


def _records(t: TensorRecord) -> bytes:
    """See `Held.records`. Of constants, nothing is in the records."""
    if t.difference != Difference.NONE or t.lists is not None or not t.payload_nbytes:
        return b""
    found = hashlib.sha256(repr(t.geometry).encode())
    found.update(np.ascontiguousarray(t.segment_crc32).data)
    return found.digest()[:16]


class _Coded(Weights):
    """A ``.wcodec`` file."""

    form = "wcodec"

    def __init__(self, file: File) -> None:
        self._file, index = file, file.index
        self.nbytes = index.data_nbytes + len(index.source_header)
        self.stored_nbytes, self.needs_base = index.file_nbytes, file.needs_base
        self.base_name = "" if index.base is None else index.base.name
        self.held = [
            _of_record(
                t,
                t.name,
                0 if t.duplicate_of is not None else t.payload_nbytes,
                file.stated[t.name].dtype if t.name in file.stated else t.dtype_name,
            )
            for t in index.tensors
        ]

    def pieces(self, name: str) -> Iterator[Any]:
        """As `Weights.pieces`."""
        for chunk in self._file.chunks(self._file.record(name)):
            yield chunk.reshape(-1).view(np.uint8)

    def part(self, t: Held, index: Index) -> NDArray[Any]:
        """As `Weights.part`."""
        return self._file.get_slice(t.name)[index]

    def ahead(self) -> AbstractContextManager[None]:
        """As `Weights.ahead`."""
        return self._file.all_ahead()

    def close(self) -> None:
        """As `Weights.close`."""
        self._file.close()


class _Plain(Weights):
    """A safetensors file that is not in hub form."""

    form, needs_base, base_name = "safetensors", False, ""

    def __init__(self, place: Place, source: OpenedFile, header: SafetensorsHeader) -> None:
        self._place, self._source = place, source
        self.nbytes = self.stored_nbytes = source.nbytes
        self._tensors = {t.name: t for t in header.tensors}
        self.held = [_of_entry(t, None) for t in header.tensors]

    def pieces(self, name: str) -> Iterator[Any]:
        """As `Weights.pieces`."""
        t = self._tensors[name]

        def read(at: int) -> NDArray[np.uint8]:
            return self._source.read(at, min(_PIECE_NBYTES, t.stop - at))

        n_threads = _READS_AHEAD if t.nbytes > _PIECE_NBYTES else 0
        with within(self._place):
            yield from map_ahead(read, range(t.start, t.stop, _PIECE_NBYTES), n_threads)

    def part(self, t: Held, index: Index) -> NDArray[Any]:
        """As `Weights.part`."""
        with within(self._place):
            return _part(self._source, self._tensors[t.name], index)

    def ahead(self) -> AbstractContextManager[None]:
        """As `Weights.ahead`."""
        first = min((t.start for t in self._tensors.values()), default=0)
        return reading_on(self._source, first, self._source.nbytes)

    def close(self) -> None:
        """As `Weights.close`."""
        self._source.close()


class _Hub(Weights):
    """A file in hub form."""

    form, needs_base, base_name = "hub", False, ""

    def __init__(self, file: HubFile) -> None:
        self._file = file
        self.nbytes, self.stored_nbytes = file.nbytes, file.stored_nbytes
        self.held = [
            _of_entry(t.source, file.crc32(name))
            if t.index is None
            else _of_record(t.index.tensors[0], name, t.source.nbytes, "")
            for name, t in file.tensors.items()
        ]

    def pieces(self, name: str) -> Iterator[Any]:
        """As `Weights.pieces`."""
        return self._file.pieces(name)

    def part(self, t: Held, index: Index) -> NDArray[Any]:
        """As `Weights.part`."""
        found = self._file.tensors[t.name]
        if found.index is not None:
            return self._file.get_slice(t.name)[index]
        with within(self._file.path):
            return _part(self._file.file, found.source, index)

    def ahead(self) -> AbstractContextManager[None]:
        """As `Weights.ahead`."""
        return reading_on(self._file.file, 0, self.stored_nbytes)

    def close(self) -> None:
        """As `Weights.close`."""
        self._file.close()


def _of_entry(t: SourceTensor, crc32: int | None) -> Held:
    numpy = None if t.dtype is OPAQUE else t.dtype.numpy
    dtype = _dtype_name(t.dtype, t.dtype_name)
    return Held(t.name, dtype, t.shape, t.nbytes, t.nbytes, crc32, b"", numpy)


def _part(source: OpenedFile, t: SourceTensor, index: Index) -> NDArray[Any]:
    """Elements of a tensor that lies in a file as it is; see `Index`."""
    first = 0
    for size, along in zip(t.shape, index, strict=True):
        first = first * size + along.start
    shape = tuple(along.stop - along.start for along in index)
    nbytes = t.dtype.nbytes
    data = source.read(t.start + first * nbytes, math.prod(shape) * nbytes)
    return data.view(t.dtype.numpy).reshape(shape)
