"""Header, list of index records, footer. Spec: chapter 4.

With `records` and `tables`, this is the only code that reads structures of an untrusted file. Every
size is checked against what is there before anything is read, allocated or computed from it.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wcodec.errors import DecodeError
from wcodec.reference.checksums import crc32
from wcodec.reference.cursor import Cursor, fail
from wcodec.reference.memory import DUPLICATE_NBYTES, Memory
from wcodec.reference.records import (
    PlanChecker,
    check_lists,
    check_plan,
    check_tensor,
    check_tensors,
    read_contexts,
    read_metadata,
    read_tables_record,
    read_tensor,
    write_contexts,
    write_metadata,
    write_tables,
    write_tensor,
)
from wcodec.reference.tables import TablePool, TableReader, read_tables
from wcodec.reference.tensors import TensorRecord

MAGIC: Final = b"\x89WCODEC\n"
END_MAGIC: Final = b"WCODECFT"
VERSION: Final = (0, 2)
# magic, major, minor, flags, reserved, reserved, header_crc32
HEADER: Final = struct.Struct("<8sHHIQII")
FOOTER: Final = struct.Struct("<QQQQQIB3sII8s")
RECORD: Final = struct.Struct("<HHQ")  # type, flags, nbytes
MUST_UNDERSTAND: Final = 1
_MANY: Final = 64  #: tensors of which those of one segment are checked together
MAX_INDEX_RATIO: Final = 64  #: R4.14: an index inflates at most this much


class RecordType(IntEnum):
    """Types of index records."""

    TABLES = 1
    SOURCE = 2
    METADATA = 3
    TENSOR = 4
    CONTEXTS = 5
    BASE = 6
    DUPLICATE = 7


_FIRST: Final = {RecordType.TABLES, RecordType.CONTEXTS, RecordType.BASE}
_ONCE: Final = {*_FIRST, RecordType.SOURCE, RecordType.METADATA}


class SourceKind(IntEnum):
    """What a SOURCE record restores."""

    SAFETENSORS = 1


@dataclass(frozen=True)
class Base:
    """Which checkpoint the differences of a file refer to (R4.27).

    Attributes
    ----------
    sha256
        32 bytes: the content hash (R11.4) of that checkpoint.
    name
        What its file was called; a hint.
    """

    sha256: bytes
    name: str


class ByteSource(Protocol):
    """A file or buffer that can be read anywhere."""

    nbytes: int

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Exactly `nbytes` bytes from `offset`; the caller has checked that they are there."""


@dataclass(frozen=True)
class Index:
    """All that a file says of itself besides the payload."""

    tensors: list[TensorRecord]
    tables: TablePool
    metadata: dict[str, str] = field(default_factory=dict)
    source_kind: int | None = None
    source_header: bytes = b""
    base: Base | None = None
    unknown_records: int = 0
    index_offset: int = 0
    index_nbytes: int = 0
    file_nbytes: int = 0
    version: tuple[int, int] = VERSION

    @property
    def data_nbytes(self) -> int:
        """Bytes of all decoded tensors."""
        return sum(t.nbytes for t in self.tensors)


def write_header() -> bytes:
    """The first 32 bytes of a file (R4.2)."""
    body = HEADER.pack(MAGIC, *VERSION, 0, 0, 0, 0)[:-4]
    return body + struct.pack("<I", crc32(body))


def _record(kind: int, body: bytes, flags: int = 0) -> bytes:
    return RECORD.pack(kind, flags, len(body)) + body


def _write_tensor(t: TensorRecord) -> bytes:
    """A TENSOR or DUPLICATE record."""
    if t.duplicate_of is None:
        return _record(RecordType.TENSOR, write_tensor(t), MUST_UNDERSTAND)
    return _record(
        RecordType.DUPLICATE, struct.pack("<I", t.duplicate_of) + t.name.encode(), MUST_UNDERSTAND
    )


def write_index(index: Index, index_offset: int) -> bytes:
    """The index and the footer after it (R4.7 to R4.19)."""
    records = []
    if len(index.tables):
        records.append(_record(RecordType.TABLES, write_tables(index.tables), MUST_UNDERSTAND))
    if len(index.tables.maps):
        records.append(_record(RecordType.CONTEXTS, write_contexts(index.tables), MUST_UNDERSTAND))
    if index.base is not None:
        records.append(
            _record(RecordType.BASE, index.base.sha256 + index.base.name.encode(), MUST_UNDERSTAND)
        )
    if index.source_kind is not None:
        body = struct.pack("<H", index.source_kind) + index.source_header
        records.append(_record(RecordType.SOURCE, body, MUST_UNDERSTAND))
    if index.metadata:
        records.append(_record(RecordType.METADATA, write_metadata(index.metadata)))
    records += [_write_tensor(t) for t in index.tensors]
    raw = b"".join(records)
    return seal_index(raw, index_offset, index.data_nbytes, len(index.tensors))


def seal_index(raw: bytes, index_offset: int, data_nbytes: int, n_tensors: int) -> bytes:
    """Compress the records where that pays and may be done, and put the footer after them."""
    deflated = zlib.compress(raw, 6)
    coding = int(len(deflated) < len(raw) <= MAX_INDEX_RATIO * len(deflated))
    stored = deflated if coding else raw
    file_nbytes = index_offset + len(stored) + FOOTER.size
    body = FOOTER.pack(
        index_offset,
        len(stored),
        len(raw),
        file_nbytes,
        data_nbytes,
        n_tensors,
        coding,
        bytes(3),
        crc32(stored),
        0,
        END_MAGIC,
    )[:52]
    return stored + body + struct.pack("<I", crc32(body)) + END_MAGIC


def check_header(head: bytes) -> tuple[int, int]:
    """Check the first 32 bytes of a file (R4.2 to R4.6). Returns the version."""
    if head[:8] != MAGIC[: len(head)]:
        raise fail("bad_magic", "this is not a wcodec file", offset=0)
    if len(head) < HEADER.size:
        raise fail(
            "truncated",
            f"the file has {len(head)} bytes; the header alone has {HEADER.size}",
            offset=len(head),
        )
    _, major, minor, flags, r0, r1, crc = HEADER.unpack(head)
    if crc32(head[:28]) != crc:
        raise fail("bad_checksum", "the CRC-32 of the header does not match", offset=0)
    if (major, minor) != VERSION:
        known = f"this decoder knows {VERSION[0]}.{VERSION[1]}"
        message = f"format version {major}.{minor}; {known}"
        raise fail("unsupported_version", message, offset=8)
    if flags or r0 or r1:
        raise fail("bad_value", "reserved bits of the header are set", offset=12)
    return major, minor


class _Footer(NamedTuple):
    index_offset: int
    index_nbytes: int
    index_raw_nbytes: int
    file_nbytes: int
    data_nbytes: int
    n_tensors: int
    index_coding: int
    index_crc32: int


def _check_footer(foot: bytes, actual_nbytes: int) -> _Footer:
    at = actual_nbytes - FOOTER.size
    (
        offset,
        nbytes,
        raw_nbytes,
        file_nbytes,
        data_nbytes,
        n_tensors,
        coding,
        reserved,
        index_crc,
        crc,
        magic,
    ) = FOOTER.unpack(foot)
    if crc32(foot[:52]) != crc:
        if magic != END_MAGIC:
            raise fail(
                "truncated",
                "the file does not end in a footer: it was cut short, or not written to its end",
                offset=at,
            )
        raise fail("bad_checksum", "the CRC-32 of the footer does not match", offset=at)
    if magic != END_MAGIC:
        raise fail("bad_magic", "the end magic is wrong", offset=at + 56)
    f = _Footer(offset, nbytes, raw_nbytes, file_nbytes, data_nbytes, n_tensors, coding, index_crc)
    if f.file_nbytes != actual_nbytes:
        code = "truncated" if f.file_nbytes > actual_nbytes else "bad_range"
        raise fail(
            code,
            f"the file has {actual_nbytes} bytes; its footer says {f.file_nbytes}",
            offset=at + 24,
        )
    if f.index_offset < HEADER.size or f.index_offset + f.index_nbytes != at:
        raise fail("bad_range", "the index does not end where the footer starts", offset=at)
    if any(reserved):
        raise fail("bad_value", "reserved bytes of the footer are set", offset=at + 45)
    if f.index_coding > 1:
        raise fail("unsupported_coder", f"index coding {f.index_coding}", offset=at + 44)
    if f.index_coding == 0 and f.index_raw_nbytes != f.index_nbytes:
        raise fail("bad_range", "the two sizes of a stored index differ", offset=at + 16)
    if f.index_raw_nbytes > MAX_INDEX_RATIO * f.index_nbytes:
        raise fail(
            "bad_range", f"the index inflates more than {MAX_INDEX_RATIO} times", offset=at + 16
        )
    return f


def _inflate(stored: bytes, raw_nbytes: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(stored, raw_nbytes + 1)
    except zlib.error as e:
        raise fail("bad_stream", f"the index does not inflate: {e}") from None
    if len(raw) != raw_nbytes or not inflater.eof or inflater.unused_data:
        raise fail("bad_range", "the index does not inflate to its size")
    return raw


def read_index(
    source: ByteSource,
    read_tables: TableReader = read_tables,
    check_plan: PlanChecker = check_plan,
    memory: Memory | None = None,
) -> Index:
    """Read and check all of a file but its payload.

    Parameters
    ----------
    read_tables, check_plan
        What does the same as `wcodec.reference.tables.read_tables` and
        `wcodec.reference.records.check_plan`, perhaps faster.
    memory
        Counts what the index takes, before it is taken; ``None`` allows what `Memory` does.

    Raises
    ------
    DecodeError
        Any code but ``bad_patch``. ``resource_limit``: `memory` does not allow it.
    """
    n = source.nbytes
    version = check_header(source.read(0, min(n, HEADER.size)).tobytes())
    if n < HEADER.size + FOOTER.size:
        raise fail(
            "truncated",
            f"the file has {n} bytes; header and footer alone have {HEADER.size + FOOTER.size}",
            offset=n,
        )
    foot = _check_footer(source.read(n - FOOTER.size, FOOTER.size).tobytes(), n)
    memory = memory or Memory()
    memory.take_index(foot.index_nbytes, foot.index_raw_nbytes)
    stored = source.read(foot.index_offset, foot.index_nbytes).tobytes()
    if crc32(stored) != foot.index_crc32:
        raise fail(
            "bad_checksum", "the CRC-32 of the index does not match", offset=foot.index_offset
        )
    raw = _inflate(stored, foot.index_raw_nbytes) if foot.index_coding else stored
    reader = _Reader(raw, foot, read_tables, check_plan, memory)
    index = reader.read(foot.index_offset, foot.index_nbytes, n, version)
    if len(index.tensors) != foot.n_tensors:
        raise fail("bad_range", f"{len(index.tensors)} tensors; the footer says {foot.n_tensors}")
    if index.data_nbytes != foot.data_nbytes:
        raise fail(
            "bad_range", f"{index.data_nbytes} bytes of tensors; the footer says {foot.data_nbytes}"
        )
    return index


class _Reader:
    """Reads the index records, in order."""

    def __init__(
        self,
        raw: bytes,
        foot: _Footer,
        read_tables: TableReader,
        check_plan: PlanChecker,
        memory: Memory,
    ) -> None:
        self.raw, self.index_offset, self.read_tables = raw, foot.index_offset, read_tables
        self.memory = memory
        self.has_many, self.singles = foot.n_tensors > _MANY, list[TensorRecord]()
        self.sparse = list[TensorRecord]()
        self.array, self.check_plan = np.frombuffer(raw, np.uint8).copy(), check_plan
        self.tensors: list[TensorRecord] = []
        self.names: set[str] = set()
        self.seen: set[int] = set()
        self.base: Base | None = None
        self.payload_end = HEADER.size

    def read(self, *more: Any) -> Index:
        """All records; `more` are the last fields of the index."""
        tables, metadata, kind, header, unknown = TablePool(), {}, None, b"", 0
        cursor = Cursor(self.raw)
        while cursor.left:
            record, flags, nbytes = cursor.unpack(RECORD)
            if flags & ~MUST_UNDERSTAND:
                raise fail(
                    "bad_value", f"reserved flags of an index record of type {record} are set"
                )
            if nbytes > cursor.left:
                raise fail(
                    "bad_range", f"an index record of type {record} is longer than the index"
                )
            body = Cursor(self.raw, cursor.at, cursor.at + nbytes)
            cursor.at += nbytes
            self._check_place(record)
            if record == RecordType.TABLES:
                tables = read_tables_record(body, self.read_tables, self.memory)
            elif record == RecordType.CONTEXTS:
                tables.maps += read_contexts(body, tables, self.memory)
                tables.seal()
            elif record == RecordType.SOURCE:
                (kind,) = body.unpack("<H")
                if kind != SourceKind.SAFETENSORS:
                    raise fail("unsupported_record", f"source kind {kind}")
                header = body.take(body.left)
            elif record == RecordType.METADATA:
                metadata = read_metadata(body, self.memory)
            elif record == RecordType.BASE:
                self.base = Base(body.take(32), body.text(body.left))
            elif record == RecordType.TENSOR:
                self._add(body, tables)
            elif record == RecordType.DUPLICATE:
                self._add_duplicate(body)
            elif flags & MUST_UNDERSTAND:
                raise fail("unsupported_record", f"a must-understand index record of type {record}")
            else:
                unknown += 1
        check_tensors(self.singles, tables, self.check_plan)
        check_lists(self.sparse, tables, self.check_plan)
        if self.payload_end != self.index_offset:
            raise fail(
                "bad_range",
                "the tensors' payloads do not end where the index starts",
                offset=self.payload_end,
            )
        return Index(self.tensors, tables, metadata, kind, header, self.base, unknown, *more)

    def _check_place(self, record: int) -> None:
        """Rules R4.19 on how often and where a record may stand."""
        if record in _ONCE:
            late = bool(self.tensors) and record in _FIRST
            if (
                record in self.seen
                or late
                or (record == RecordType.TABLES and RecordType.CONTEXTS in self.seen)
            ):
                raise fail("bad_value", f"a second or late index record of type {record}")
            self.seen.add(record)

    def _add_duplicate(self, body: Cursor) -> None:
        (of,) = body.unpack("<I")
        self.memory.take(DUPLICATE_NBYTES, "a duplicate")
        name = body.text(body.left)
        if of >= len(self.tensors):
            raise fail(
                "bad_range",
                f"a duplicate of tensor number {of}, which does not come before it",
                tensor=name,
            )
        if name in self.names:
            raise fail("bad_name", "two tensors have this name", tensor=name)
        self.names.add(name)
        self.tensors.append(self.tensors[of].duplicate(name, of))

    def _add(self, body: Cursor, tables: TablePool) -> None:
        try:
            has_base = self.base is not None
            t = read_tensor(body, self.array, has_base, self.memory)
            if t.lists is not None:
                self.sparse.append(t)
            elif self.has_many and t.is_single:
                self.singles.append(t)
            else:
                check_tensor(t, tables, self.check_plan)
        except DecodeError as e:
            name = e.tensor or f"number {len(self.tensors)}"
            raise fail(e.code, e.message, tensor=name) from None
        if t.name in self.names:
            raise fail("bad_name", "two tensors have this name", tensor=t.name)
        if (
            t.payload_offset != self.payload_end
            or t.payload_nbytes > self.index_offset - self.payload_end
        ):
            raise fail(
                "bad_range",
                "the payload does not follow on that of the tensor before",
                tensor=t.name,
            )
        self.names.add(t.name)
        self.tensors.append(t)
        self.payload_end += t.payload_nbytes
