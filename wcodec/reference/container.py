"""Header, index records, footer: the only code that reads structures of an untrusted file. Spec: chapter 4.

Every size is checked against what is there before anything is read, allocated or computed from it.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from wcodec.errors import DecodeError
from wcodec.reference import entropy
from wcodec.reference.checksums import crc32
from wcodec.reference.entropy import (
    MAX_CLASSES,
    N_CONTEXTS,
    ContextKind,
    ContextMap,
    TablePool,
    TableReader,
    read_tables,
)
from wcodec.reference.planes import BY_ID, BY_NAME, DType, Layout
from wcodec.reference.prediction import IS_MODE, PER_TILE
from wcodec.reference.segments import Coder, SegmentPlan, SegmentTable
from wcodec.reference.tiles import MAX_RANK, MAX_SEGMENT_ELEMENTS, MIN_TILE, Geometry, matrix_view

MAGIC: Final = b"\x89WCODEC\n"
END_MAGIC: Final = b"WCODECFT"
VERSION: Final = (0, 2)
# magic, major, minor, flags, reserved, reserved, header_crc32
HEADER: Final = struct.Struct("<8sHHIQII")
FOOTER: Final = struct.Struct("<QQQQQIB3sII8s")
RECORD: Final = struct.Struct("<HHQ")  # type, flags, nbytes
TENSOR: Final = struct.Struct("<QQIBBBBIIIIHHHH")
MUST_UNDERSTAND: Final = 1
MAX_INDEX_RATIO: Final = 64  #: R4.14: an index inflates at most this much
MAX_WINDOW_BASE: Final = 240  #: R10.9
MAX_DATA_NBYTES: Final = (1 << 63) - 1
UNSIGNED: Final = {n: BY_NAME[f"uint{8 * n}"] for n in (1, 2, 4, 8)}
_IS_CODER: Final = np.isin(np.arange(256), list(Coder))
_LAST_LAYOUT: Final = int(max(Layout))
_HEAD_UNITS: Final = entropy.HEAD_NBYTES // entropy.UNIT


class RecordType(IntEnum):
    """Types of index records."""

    TABLES = 1
    SOURCE = 2
    METADATA = 3
    TENSOR = 4
    CONTEXTS = 5
    BASE = 6
    DUPLICATE = 7


class SourceKind(IntEnum):
    """What a SOURCE record restores."""

    SAFETENSORS = 1


class Difference(IntEnum):
    """What is coded of a tensor, in place of its words (R12.5): bits 0 and 1 of its flags."""

    NONE = 0
    XOR = 1  #: ``w ^ b``, b the base's word
    MINUS = 2  #: ``w - b`` modulo the word, the sign moved to the lowest bit


def coded_dtype(dtype: DType, difference: Difference) -> DType:
    """Dtype by whose rules words are coded: another one for `Difference.MINUS` (R12.5)."""
    return UNSIGNED[dtype.word_nbytes] if difference == Difference.MINUS else dtype


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
class TensorRecord:
    """What the index says of one tensor (R4.30)."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    row_rank: int
    geometry: Geometry
    segments: SegmentTable
    segment_crc32: NDArray[np.uint32]
    payload_offset: int
    payload_nbytes: int
    crc32: int
    dtype_name: str = ""
    difference: Difference = Difference.NONE
    duplicate_of: int | None = None
    _plans: list[SegmentPlan] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded tensor."""
        return self.geometry.rows * self.geometry.cols * self.dtype.word_nbytes

    def duplicate(self, name: str, of: int) -> TensorRecord:
        """The record of a duplicate of this tensor, which is number `of`; both have one plan."""
        record = replace(self, name=name, duplicate_of=of)
        record._plans.extend(self._plans)
        return record

    @property
    def coded_dtype(self) -> DType:
        """As the function `coded_dtype`, of this tensor."""
        return coded_dtype(self.dtype, self.difference)

    def plan(self, tables: TablePool) -> SegmentPlan:
        """The plan of all segments; the same each time, with what it has found out."""
        for plan in self._plans:
            if plan.tables is tables:
                return plan
        plan = SegmentPlan(self.coded_dtype, self.geometry, self.segments, tables)
        self._plans[:] = [plan]
        return plan


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


# ---- writing -----------------------------------------------------------------------------------------------------------
def write_header() -> bytes:
    """The first 32 bytes of a file (R4.2)."""
    body = HEADER.pack(MAGIC, *VERSION, 0, 0, 0, 0)[:-4]
    return body + struct.pack("<I", crc32(body))


def _record(kind: int, body: bytes, flags: int = 0) -> bytes:
    return RECORD.pack(kind, flags, len(body)) + body


def _column(values: NDArray[Any]) -> bytes:
    """A column of the segment table (R4.37): one value for all, or the narrowest width that holds them."""
    first = int(values[0])
    if (values == first).all():
        return struct.pack("<BI", 0, first)
    most = int(values.max())
    width = 1 if most < 1 << 8 else 2 if most < 1 << 16 else 4
    return bytes([width]) + values.astype(f"<u{width}").tobytes()


def write_tensor(t: TensorRecord) -> bytes:
    """The body of a TENSOR record (R4.30)."""
    name, dtype_name, g = t.name.encode(), t.dtype_name.encode(), t.geometry
    fixed = TENSOR.pack(
        t.payload_offset, t.payload_nbytes, t.crc32, t.dtype.id, len(t.shape), t.row_rank, 0,
        g.segment_rows, g.segment_cols, g.tile_rows, g.tile_cols, int(t.difference), len(name), len(dtype_name), 0,
    )  # fmt: skip
    parts = [fixed, struct.pack(f"<{len(t.shape)}Q", *t.shape), name, dtype_name]
    if g.n_segments:
        s = t.segments
        parts += [
            t.segment_crc32.astype("<u4").tobytes(),
            _column(s.layout),
            _column(s.base),
            _column(s.n_patches),
        ]
        for p in range(t.coded_dtype.n_planes):
            parts += [_column(c[p]) for c in (s.coder, s.table, s.prediction, s.n_units)]
    return b"".join(parts)


def write_tables(tables: TablePool) -> bytes:
    """The body of a TABLES record (R4.20)."""
    return struct.pack("<H", len(tables)) + b"".join(t.serialised for t in tables.tables)


def write_contexts(tables: TablePool) -> bytes:
    """The body of a CONTEXTS record (R4.25)."""
    maps = [
        bytes([m.kind, len(m.tables)]) + m.class_of + struct.pack(f"<{len(m.tables)}H", *m.tables)
        for m in tables.maps
    ]
    return struct.pack("<H", len(maps)) + b"".join(maps)


def _write_tensor(t: TensorRecord) -> bytes:
    """A TENSOR or DUPLICATE record."""
    if t.duplicate_of is None:
        return _record(RecordType.TENSOR, write_tensor(t), MUST_UNDERSTAND)
    return _record(
        RecordType.DUPLICATE, struct.pack("<I", t.duplicate_of) + t.name.encode(), MUST_UNDERSTAND
    )


def write_metadata(metadata: dict[str, str]) -> bytes:
    """The body of a METADATA record (R4.23)."""
    texts = [text.encode() for pair in metadata.items() for text in pair]
    return struct.pack("<I", len(metadata)) + b"".join(struct.pack("<I", len(t)) + t for t in texts)


def write_index(index: Index, index_offset: int) -> bytes:
    """The index and the footer behind it (R4.7 to R4.19)."""
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
    """Compress the records where that pays and may be done, and put the footer behind them."""
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


# ---- reading -----------------------------------------------------------------------------------------------------------
def _fail(code: str, message: str, **where: Any) -> DecodeError:
    return DecodeError(code, message, **where)


class _Cursor:
    """Reads a record's body from front to back; what is not there is `bad_range`."""

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self.data, self.at, self.end = data, start, len(data) if end is None else end

    @property
    def left(self) -> int:
        return self.end - self.at

    def take(self, nbytes: int) -> bytes:
        start, end = self.at, self.at + nbytes
        if end > self.end:
            raise _fail(
                "bad_range", f"a record holds {self.left} more bytes where {nbytes} are due"
            )
        self.at = end
        return self.data[start:end]

    def unpack(self, layout: struct.Struct | str) -> tuple[Any, ...]:
        s = struct.Struct(layout) if isinstance(layout, str) else layout
        return s.unpack(self.take(s.size))

    def array(self, dtype: str, n: int) -> NDArray[Any]:
        return np.frombuffer(self.take(n * np.dtype(dtype).itemsize), dtype)

    def text(self, nbytes: int) -> str:
        try:
            return self.take(nbytes).decode()
        except UnicodeDecodeError:
            raise _fail("bad_name", "a text is not UTF-8") from None

    def done(self, what: str) -> None:
        if self.left:
            raise _fail("bad_range", f"{self.left} bytes are left over behind {what}")


def check_header(head: bytes) -> tuple[int, int]:
    """Check the first 32 bytes of a file (R4.2 to R4.6). Returns the version."""
    if head[:8] != MAGIC[: len(head)]:
        raise _fail("bad_magic", "this is not a wcodec file", offset=0)
    if len(head) < HEADER.size:
        raise _fail(
            "truncated",
            f"the file has {len(head)} bytes; the header alone has {HEADER.size}",
            offset=len(head),
        )
    _, major, minor, flags, r0, r1, crc = HEADER.unpack(head)
    if crc32(head[:28]) != crc:
        raise _fail("bad_checksum", "the CRC-32 of the header does not match", offset=0)
    if (major, minor) != VERSION:
        raise _fail(
            "unsupported_version",
            f"format version {major}.{minor}; this decoder knows {VERSION[0]}.{VERSION[1]}",
            offset=8,
        )
    if flags or r0 or r1:
        raise _fail("bad_value", "reserved bits of the header are set", offset=12)
    return major, minor


@dataclass(frozen=True)
class _Footer:
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
            raise _fail(
                "truncated",
                "the file does not end in a footer: it was cut short, or not written to its end",
                offset=at,
            )
        raise _fail("bad_checksum", "the CRC-32 of the footer does not match", offset=at)
    if magic != END_MAGIC:
        raise _fail("bad_magic", "the end magic is wrong", offset=at + 56)
    f = _Footer(offset, nbytes, raw_nbytes, file_nbytes, data_nbytes, n_tensors, coding, index_crc)
    if f.file_nbytes != actual_nbytes:
        code = "truncated" if f.file_nbytes > actual_nbytes else "bad_range"
        raise _fail(
            code,
            f"the file has {actual_nbytes} bytes; its footer says {f.file_nbytes}",
            offset=at + 24,
        )
    if f.index_offset < HEADER.size or f.index_offset + f.index_nbytes != at:
        raise _fail("bad_range", "the index does not end where the footer starts", offset=at)
    if any(reserved):
        raise _fail("bad_value", "reserved bytes of the footer are set", offset=at + 45)
    if f.index_coding > 1:
        raise _fail("unsupported_coder", f"index coding {f.index_coding}", offset=at + 44)
    if f.index_coding == 0 and f.index_raw_nbytes != f.index_nbytes:
        raise _fail("bad_range", "the two sizes of a stored index differ", offset=at + 16)
    if f.index_raw_nbytes > MAX_INDEX_RATIO * f.index_nbytes:
        raise _fail(
            "bad_range", f"the index inflates more than {MAX_INDEX_RATIO} times", offset=at + 16
        )
    return f


def _inflate(stored: bytes, raw_nbytes: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(stored, raw_nbytes + 1)
    except zlib.error as e:
        raise _fail("bad_stream", f"the index does not inflate: {e}") from None
    if len(raw) != raw_nbytes or not inflater.eof or inflater.unused_data:
        raise _fail("bad_range", "the index does not inflate to its size")
    return raw


def read_index(source: ByteSource, read_tables: TableReader = read_tables) -> Index:
    """Read and check all of a file but its payload.

    Parameters
    ----------
    read_tables
        What does the same as `wcodec.reference.entropy.read_tables`, perhaps faster.

    Raises
    ------
    DecodeError
        Any code but ``bad_patch`` and ``resource_limit``.
    """
    n = source.nbytes
    version = check_header(source.read(0, min(n, HEADER.size)).tobytes())
    if n < HEADER.size + FOOTER.size:
        raise _fail(
            "truncated",
            f"the file has {n} bytes; header and footer alone have {HEADER.size + FOOTER.size}",
            offset=n,
        )
    foot = _check_footer(source.read(n - FOOTER.size, FOOTER.size).tobytes(), n)
    stored = source.read(foot.index_offset, foot.index_nbytes).tobytes()
    if crc32(stored) != foot.index_crc32:
        raise _fail(
            "bad_checksum", "the CRC-32 of the index does not match", offset=foot.index_offset
        )
    raw = _inflate(stored, foot.index_raw_nbytes) if foot.index_coding else stored
    index = _Reader(raw, foot.index_offset, read_tables).read()
    if len(index.tensors) != foot.n_tensors:
        raise _fail("bad_range", f"{len(index.tensors)} tensors; the footer says {foot.n_tensors}")
    if index.data_nbytes != foot.data_nbytes:
        raise _fail(
            "bad_range", f"{index.data_nbytes} bytes of tensors; the footer says {foot.data_nbytes}"
        )
    tables, tensors = index.tables, index.tensors
    return Index(
        tensors, tables, index.metadata, index.source_kind, index.source_header, index.base, index.unknown_records,
        foot.index_offset, foot.index_nbytes, n, version,
    )  # fmt: skip


class _Reader:
    """Reads the index records, in order."""

    def __init__(self, raw: bytes, index_offset: int, read_tables: TableReader) -> None:
        self.raw, self.index_offset, self.read_tables = raw, index_offset, read_tables
        self.tensors: list[TensorRecord] = []
        self.names: set[str] = set()
        self.seen: set[int] = set()
        self.base: Base | None = None
        self.payload_end = HEADER.size

    def read(self) -> Index:
        tables, metadata, kind, header, unknown = TablePool(), {}, None, b"", 0
        cursor = _Cursor(self.raw)
        while cursor.left:
            record, flags, nbytes = cursor.unpack(RECORD)
            if flags & ~MUST_UNDERSTAND:
                raise _fail(
                    "bad_value", f"reserved flags of an index record of type {record} are set"
                )
            if nbytes > cursor.left:
                raise _fail(
                    "bad_range", f"an index record of type {record} is longer than the index"
                )
            body = _Cursor(self.raw, cursor.at, cursor.at + nbytes)
            cursor.at += nbytes
            self._check_place(record)
            if record == RecordType.TABLES:
                tables = _read_tables(body, self.read_tables)
            elif record == RecordType.CONTEXTS:
                tables.maps += _read_contexts(body, tables)
            elif record == RecordType.SOURCE:
                (kind,) = body.unpack("<H")
                if kind != SourceKind.SAFETENSORS:
                    raise _fail("unsupported_record", f"source kind {kind}")
                header = body.take(body.left)
            elif record == RecordType.METADATA:
                metadata = _read_metadata(body)
            elif record == RecordType.BASE:
                self.base = Base(body.take(32), body.text(body.left))
            elif record == RecordType.TENSOR:
                self._add(body, tables)
            elif record == RecordType.DUPLICATE:
                self._add_duplicate(body)
            elif flags & MUST_UNDERSTAND:
                raise _fail(
                    "unsupported_record", f"a must-understand index record of type {record}"
                )
            else:
                unknown += 1
        if self.payload_end != self.index_offset:
            raise _fail(
                "bad_range",
                "the tensors' payloads do not end where the index starts",
                offset=self.payload_end,
            )
        return Index(self.tensors, tables, metadata, kind, header, self.base, unknown)

    def _check_place(self, record: int) -> None:
        """Rules R4.19 on how often and where a record may stand."""
        first = (RecordType.TABLES, RecordType.CONTEXTS, RecordType.BASE)
        if record in (*first, RecordType.SOURCE, RecordType.METADATA):
            late = bool(self.tensors) and record in first
            if (
                record in self.seen
                or late
                or (record == RecordType.TABLES and RecordType.CONTEXTS in self.seen)
            ):
                raise _fail("bad_value", f"a second or late index record of type {record}")
            self.seen.add(record)

    def _add_duplicate(self, body: _Cursor) -> None:
        (of,) = body.unpack("<I")
        name = body.text(body.left)
        if of >= len(self.tensors):
            raise _fail(
                "bad_range",
                f"a duplicate of tensor number {of}, which does not come before it",
                tensor=name,
            )
        if name in self.names:
            raise _fail("bad_name", "two tensors have this name", tensor=name)
        self.names.add(name)
        self.tensors.append(self.tensors[of].duplicate(name, of))

    def _add(self, body: _Cursor, tables: TablePool) -> None:
        try:
            t = _read_tensor(body, tables, self.base is not None)
        except DecodeError as e:
            name = e.tensor or f"number {len(self.tensors)}"
            raise _fail(e.code, e.message, tensor=name) from None
        if t.name in self.names:
            raise _fail("bad_name", "two tensors have this name", tensor=t.name)
        if (
            t.payload_offset != self.payload_end
            or t.payload_nbytes > self.index_offset - self.payload_end
        ):
            raise _fail(
                "bad_range",
                "the payload does not follow on that of the tensor before",
                tensor=t.name,
            )
        if int(t.plan(tables).offsets[-1]) != t.payload_nbytes:
            raise _fail(
                "bad_range", "the segments' sizes do not sum to the payload's", tensor=t.name
            )
        self.names.add(t.name)
        self.tensors.append(t)
        self.payload_end += t.payload_nbytes


def _read_tables(body: _Cursor, read: TableReader) -> TablePool:
    (n,) = body.unpack("<H")
    data = body.take(body.left)
    tables, at = read(data, 0, n)
    if at != len(data):
        raise _fail("bad_range", "bytes are left over behind the tables")
    return TablePool(tables)


def _read_contexts(body: _Cursor, tables: TablePool) -> list[ContextMap]:
    (n,) = body.unpack("<H")
    maps: list[ContextMap] = []
    for number in range(n):
        kind, n_classes = body.unpack("<BB")
        if kind not in N_CONTEXTS:
            raise _fail("unsupported_coder", f"context map {number} is of kind {kind}")
        if not 1 <= n_classes <= MAX_CLASSES:
            raise _fail("bad_range", f"context map {number} has {n_classes} classes")
        class_of, ids = body.take(N_CONTEXTS[ContextKind(kind)]), body.unpack(f"<{n_classes}H")
        if max(class_of) >= n_classes or max(ids) >= len(tables):
            raise _fail(
                "bad_range", f"context map {number} names a class or table that is not there"
            )
        if len({tables[i].prob_bits for i in ids}) > 1:
            raise _fail("bad_value", f"the tables of context map {number} have different sums")
        maps.append(ContextMap(kind, class_of, ids))
    body.done("the context maps")
    return maps


def _read_metadata(body: _Cursor) -> dict[str, str]:
    (n,) = body.unpack("<I")
    pairs: dict[str, str] = {}
    for _ in range(n):
        key = body.text(body.unpack("<I")[0])
        if key in pairs:
            raise _fail("bad_name", f"the metadata key {key!r} occurs twice")
        pairs[key] = body.text(body.unpack("<I")[0])
    body.done("the metadata")
    return pairs


def _read_tensor(body: _Cursor, tables: TablePool, has_base: bool) -> TensorRecord:
    (
        offset, nbytes, crc, dtype_id, rank, row_rank, order, s_rows, s_cols, t_rows, t_cols, flags, n_name, n_dtype, reserved,
    ) = body.unpack(TENSOR)  # fmt: skip
    if rank > MAX_RANK or row_rank > rank:
        raise _fail("bad_range", f"rank {rank}, row_rank {row_rank}")
    shape = tuple(int(d) for d in body.unpack(f"<{rank}Q"))
    name, dtype_name = body.text(n_name), body.text(n_dtype)
    try:
        if flags & ~3 or reserved:
            raise _fail("bad_value", "reserved bits of the tensor record are set")
        if flags > max(Difference) or (flags and not has_base):
            raise _fail(
                "bad_value",
                f"difference {flags}" + ("" if has_base else ", in a file that has no base"),
            )
        if dtype_id not in BY_ID:
            raise _fail("unsupported_coder", f"dtype id {dtype_id}")
        if order != 0:
            raise _fail("unsupported_coder", f"element order {order}")
        dtype = BY_ID[dtype_id]
        rows, cols = matrix_view(shape, row_rank, dtype.words_per_element)
        largest = math.prod(max(d, 1) for d in shape) * dtype.nbytes
        if largest > MAX_DATA_NBYTES:
            raise _fail(
                "bad_range",
                "the tensor has more than 2^63 - 1 bytes, or would if no dimension were 0",
            )
        geometry = Geometry(rows, cols, s_rows, s_cols, t_rows, t_cols)
        check_geometry(geometry)
        n = geometry.n_segments
        if 4 * n > body.left:
            raise _fail(
                "bad_range", f"{n} segments; the record has room for {body.left // 4} checksums"
            )
        crcs = body.array("<u4", n).astype(np.uint32)
        difference = Difference(flags)
        coded = coded_dtype(dtype, difference)
        segments = (
            _read_columns(body, n, coded.n_planes) if n else SegmentTable.zeros(0, coded.n_planes)
        )
        body.done("the segment table")
        t = TensorRecord(
            name,
            dtype,
            shape,
            row_rank,
            geometry,
            segments,
            crcs,
            offset,
            nbytes,
            crc,
            dtype_name,
            difference,
        )
        _check_plan(t.plan(tables))
    except DecodeError as e:
        raise _fail(e.code, e.message, tensor=name) from None
    return t


def _read_columns(body: _Cursor, n: int, n_planes: int) -> SegmentTable:
    def column(limit: int, out: NDArray[Any]) -> None:
        width = body.take(1)[0]
        if width not in (0, 1, 2, 4):
            raise _fail("bad_value", f"a column of the segment table has width {width}")
        values: Any = (
            int.from_bytes(body.take(4), "little") if width == 0 else body.array(f"<u{width}", n)
        )
        most = values if width == 0 else int(values.max())
        if most > limit:
            raise _fail(
                "bad_value", f"a column of the segment table holds {most}, more than {limit}"
            )
        out[:] = values

    s = SegmentTable.zeros(n, n_planes)
    for one in (s.layout, s.base, s.n_patches):
        column((1 << 8 * one.itemsize) - 1, one)
    for p in range(n_planes):
        for of_planes in (s.coder, s.table, s.prediction, s.n_units):
            column((1 << 8 * of_planes.itemsize) - 1, of_planes[p])
    return s


def check_geometry(g: Geometry) -> None:
    """Rules R6.5 and R6.7 on segment and tile sizes.

    Raises
    ------
    DecodeError
        ``bad_range``
    """
    if min(g.segment_rows, g.segment_cols, g.tile_rows, g.tile_cols) < 1:
        raise _fail("bad_range", "a segment or tile size is 0")
    if g.segment_rows * g.segment_cols > MAX_SEGMENT_ELEMENTS:
        raise _fail("bad_range", f"segments of more than {MAX_SEGMENT_ELEMENTS} elements")
    for segment, tile in ((g.segment_rows, g.tile_rows), (g.segment_cols, g.tile_cols)):
        if segment % tile or (tile < MIN_TILE and tile != segment):
            raise _fail(
                "bad_range",
                f"tiles of {g.tile_rows} x {g.tile_cols} do not fit segments of {g.segment_rows} x {g.segment_cols}",
            )


def check_segments(dtype: DType, geometry: Geometry, s: SegmentTable, tables: TablePool) -> None:
    """Rules R10.3 to R10.9 on the columns of a segment table: what a kernel may rely on.

    Raises
    ------
    DecodeError
        ``bad_value``, ``bad_range`` or ``unsupported_coder``
    """
    _check_plan(SegmentPlan(dtype, geometry, s, tables))


def _check_plan(plan: SegmentPlan) -> None:
    dtype, s, raw, pairs = plan.dtype, plan.segments, plan.is_raw, plan.is_pairs

    def require(holds: NDArray[np.bool_], code: str, message: str) -> None:
        if not holds.all():
            raise _fail(code, f"segment {int(np.argwhere(~holds)[0][-1])}: {message}")

    require(s.layout <= _LAST_LAYOUT, "unsupported_coder", "reserved layout")
    require(_IS_CODER[s.coder], "unsupported_coder", "reserved coder")
    require(
        IS_MODE[s.prediction] | (s.prediction == PER_TILE), "unsupported_coder", "reserved mode"
    )
    if not dtype.has_pairs:
        require(~pairs, "bad_value", "layout PAIRS on a dtype that has none")
    windowed = pairs & (dtype.word_nbytes > 1)
    require(windowed | (s.base == 0), "bad_value", "a window base where there is no window")
    require(s.base <= MAX_WINDOW_BASE, "bad_value", "window base above 240")
    require(
        s.n_patches <= plan.n_elements * windowed,
        "bad_range",
        "more patches than words, or where there is no window",
    )
    there = np.array([~raw if p < dtype.word_nbytes else pairs for p in range(dtype.n_planes)])
    blank = s.coder | s.prediction | s.table | s.n_units == 0
    require(there | blank, "bad_value", "a plane that is not there has columns that are not 0")
    plain, streams, context = s.prediction == 0, plan.is_stream, s.coder == Coder.CONTEXT.value
    require(streams | plain, "bad_value", "a mode on a plane that is no stream")
    require(~pairs | plain, "bad_value", "a mode with layout PAIRS")
    limit = np.where(streams, len(plan.tables), np.where(s.coder == Coder.CONSTANT.value, 256, 1))
    if context.any():
        np.copyto(limit, len(plan.tables.maps), where=context)
        of_plane_0 = [i for i, m in enumerate(plan.tables.maps) if m.kind == ContextKind.PLANE]
        require(
            ~(context[0] & np.isin(s.table[0], of_plane_0)),
            "bad_value",
            "plane 0 with itself as context",
        )
    require(s.table < limit, "bad_range", "table, context map or constant out of range")
    most = entropy.max_stream_nbytes(plan.plane_nbytes) // entropy.UNIT
    require(
        (s.n_units <= most * streams) & (s.n_units >= _HEAD_UNITS * streams),
        "bad_range",
        "the size of a stream is out of range",
    )
