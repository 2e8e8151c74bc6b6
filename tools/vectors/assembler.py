"""Builds files of the format by hand, after the spec alone: a second implementation, slow and
plain, that shares no code with the package, so that what it builds can be held against what the
package reads.

`assemble` lays a file out from explicit choices (every layout, coder, table, mode and column width
is named by the caller) and keeps the offset of each field, so that a case can say which one it
spoils.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from assembler_coding import (
    CONSTANT,
    CONTEXT,
    DTYPES,
    MINUS,
    PLAIN,
    RANS,
    RAW,
    SCALE,
    MapSpec,
    Plane,
    Segment,
    Symbols,
    TableSpec,
    classes_of,
    differ,
    exp_golomb,
    frequencies,
    in_tiles,
    rans,
    scale_bytes,
    segment_symbols,
)

TABLES, SOURCE, METADATA, TENSOR, CONTEXTS, BASE, DUPLICATE = 1, 2, 3, 4, 5, 6, 7  # index records


# ---- what the caller chooses ---------------------------------------------------------------------
@dataclass(frozen=True)
class Tensor:
    """A tensor and all choices about it; one `Segment` in `segments` stands for all.
    Widths are of columns, by name.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes
    segment: tuple[int, int]
    segments: tuple[Segment, ...] = (Segment(),)
    tile: tuple[int, int] | None = None
    row_rank: int | None = None
    dtype_name: str = ""
    widths: dict[str, int] = field(default_factory=dict)
    pad: int = 0  #: byte that pads the parts of a record; 0 in a file after the rules
    #: spoils the stream of a segment and plane before it is stored
    spoil: Callable[[int, int, bytes], bytes] | None = None
    recipe: dict[str, Any] = field(default_factory=dict)  #: of `data`, for the manifest
    difference: int = 0
    base: bytes = b""  #: what the difference is taken from
    #: number of the tensor that this one repeats; only `name`, and for callers `data`, count then
    duplicate_of: int | None = None

    @property
    def coded_dtype(self) -> str:
        """The dtype by whose rules the words are coded (R12.5)."""
        return f"uint{8 * DTYPES[self.dtype][1]}" if self.difference == MINUS else self.dtype

    @property
    def n_planes(self) -> int:
        """Planes of the segment table."""
        return max(2, DTYPES[self.dtype][1])


@dataclass(frozen=True)
class File:
    """A whole file. `records` lists the index records in order:
    a name, or ``(type, flags, body)`` of any record.
    """

    tensors: tuple[Tensor, ...] = ()
    tables: tuple[TableSpec, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    source: bytes | None = None
    records: tuple[Any, ...] | None = None
    coding: int = 0
    deflate: tuple[int, int] = (6, 15)  #: level and window bits of a deflated index
    maps: tuple[MapSpec, ...] = ()
    base: tuple[bytes, str] | None = None  #: content hash of another checkpoint, and its name


@dataclass
class Image:
    """A file and where its fields are: ``fields[name] = (offset, nbytes)``."""

    data: bytearray = field(default_factory=bytearray)
    fields: dict[str, tuple[int, int]] = field(default_factory=dict)

    def put(self, name: str, data: bytes) -> None:
        """Append a field."""
        self.fields[name] = (len(self.data), len(data))
        self.data += data

    def pack(self, prefix: str, layout: str, **values: int) -> None:
        """Append one field after another, little-endian; `layout` has a letter for each."""
        for letter, (name, value) in zip(layout, values.items(), strict=True):
            self.put(f"{prefix}.{name}", struct.pack(f"<{letter}", value))

    def extend(self, other: Image) -> None:
        """Append another image with its fields."""
        start = len(self.data)
        self.fields |= {name: (start + at, n) for name, (at, n) in other.fields.items()}
        self.data += other.data


# ---- parts of a file -----------------------------------------------------------------------------
def table_image(freq: Sequence[int], prob_bits: int, k: int | None = None) -> Image:
    """A serialised table; `k` of the shortest form if it is not given."""
    used = [s for s in range(256) if freq[s]]
    span = freq[used[0] : used[-1] + 1]
    order = (
        min(range(12), key=lambda o: sum(len(exp_golomb(f, o)) for f in span)) if k is None else k
    )
    bits = "".join(exp_golomb(f, order) for f in span)
    bits += "0" * (-len(bits) % 8)
    image = Image()
    image.pack("", "BBBB", prob_bits=prob_bits, first=used[0], last=used[-1], k=order)
    image.put(".codes", int(bits, 2).to_bytes(len(bits) // 8, "big"))
    return image


def matrix(t: Tensor) -> tuple[int, int]:
    """Chapter 6: rows and columns of the matrix view, in words."""
    rows, cols = 1, DTYPES[t.dtype][2]
    for i, d in enumerate(t.shape):
        rows, cols = (rows * d, cols) if i < row_rank(t) else (rows, cols * d)
    return rows, cols


def row_rank(t: Tensor) -> int:
    """All dimensions but the last make the rows, if the caller does not say otherwise."""
    return max(len(t.shape) - 1, 0) if t.row_rank is None else t.row_rank


# ---- the file ------------------------------------------------------------------------------------
@dataclass
class _Cut:
    """A segment: what was chosen for it, its words, its symbols,
    and what is stored as its patches.
    """

    chosen: Segment
    rows: list[list[int]]
    symbols: Symbols
    patches: list[int]


class _Builder:
    def __init__(self, file: File) -> None:
        self.file = file
        self.cut = [self._cut(t) for t in file.tensors]
        self.tables = [self._table(i, t) for i, t in enumerate(file.tables)]

    def _cut(self, t: Tensor) -> list[_Cut]:
        rows, cols = matrix(t)
        if t.duplicate_of is not None or not rows * cols:
            return []
        n = DTYPES[t.dtype][1]
        words, base = (
            [int.from_bytes(data[i : i + n], "little") for i in range(0, len(data), n)]
            for data in (t.data, t.base)
        )
        if t.difference:
            words = [differ(w, b, t.difference, n) for w, b in zip(words, base, strict=True)]
        pieces = in_tiles([words[r * cols : (r + 1) * cols] for r in range(rows)], t.segment)
        chosen = t.segments * len(pieces) if len(t.segments) == 1 else t.segments
        cuts = []
        for s, p in zip(chosen, pieces, strict=True):
            symbols = segment_symbols(p, t.coded_dtype, t.tile or t.segment, s)
            cuts.append(_Cut(s, p, symbols, [*symbols.patches, *s.extra]))
        return cuts

    def _table(self, number: int, spec: TableSpec) -> TableSpec:
        """A table that has its frequencies: if need be those of all symbols that are coded under
        it.
        """
        if spec.freq is not None:
            return spec
        coded, contexts = list[int](), False
        for cut in (c for cuts in self.cut for c in cuts):
            for i, (p, symbols) in enumerate(
                zip(cut.chosen.planes, cut.symbols.planes, strict=False)
            ):
                if (p.coder, p.table) == (RANS, number):
                    coded += symbols
                elif p.coder == CONTEXT and number in (spec_map := self.file.maps[p.table]).tables:
                    classes, contexts = classes_of(cut.symbols, i, spec_map, cut.chosen), True
                    coded += [
                        v
                        for v, k in zip(symbols, classes, strict=True)
                        if spec_map.tables[k] == number
                    ]
        # a class may be empty, or of one symbol
        coded += [0, 1] if contexts and len(set(coded)) < 2 else []
        return replace(spec, freq=frequencies(coded, spec.prob_bits))

    def stream(self, cut: _Cut, plane: Plane, i: int) -> bytes:
        """The stream of plane `i`."""
        if plane.coder == RANS:
            return rans(cut.symbols.planes[i], [self.tables[plane.table]])
        spec = self.file.maps[plane.table]
        return rans(
            cut.symbols.planes[i],
            [self.tables[k] for k in spec.tables],
            classes_of(cut.symbols, i, spec, cut.chosen),
        )

    def record(self, t: Tensor, prefix: str, k: int, cut: _Cut) -> tuple[Image, list[int]]:
        """The record of segment `k` and the units of its streams."""
        s, n, prefix = cut.chosen, DTYPES[t.dtype][1], f"{prefix}.segment[{k}]"
        out, units = Image(), [0] * t.n_planes

        def part(name: str, data: bytes) -> None:
            out.put(f"{prefix}.{name}", data)
            if -len(data) % 16:
                out.put(f"{prefix}.{name}.padding", bytes([t.pad]) * (-len(data) % 16))

        if s.layout == RAW:
            part("words", b"".join(w.to_bytes(n, "little") for row in cut.rows for w in row))
            part("patches", struct.pack(f"<{len(cut.patches)}I", *cut.patches))
            return out, units
        part("modes", bytes(m for p in s.planes if not isinstance(p.modes, int) for m in p.modes))
        if any(p.coder == CONTEXT and self.file.maps[p.table].kind == SCALE for p in s.planes):
            part("scales", scale_bytes(len(cut.rows), len(cut.rows[0]), s))
        for i, symbols in enumerate(cut.symbols.planes):
            plane = s.planes[i] if i < len(s.planes) else Plane()
            if plane.coder == CONSTANT and set(symbols) != {plane.table}:
                raise ValueError(f"plane {i} of {t.name!r} is not constant")
            if plane.coder == PLAIN:
                part(f"plane[{i}]", bytes(symbols))
            elif plane.coder in (RANS, CONTEXT):
                stream = self.stream(cut, plane, i)
                stream = stream if t.spoil is None else t.spoil(k, i, stream)
                part(f"plane[{i}]", stream)
                units[i] = -(-len(stream) // 16)
        part("patches", struct.pack(f"<{len(cut.patches)}I", *cut.patches))
        return out, units

    def tensor(self, number: int, payload: Image) -> Image:
        """Appends a tensor's payload, returns the body of its record."""
        t, prefix = self.file.tensors[number], f"tensor[{number}]"
        start, crcs, units = len(payload.data), list[int](), list[list[int]]()
        for k, cut in enumerate(self.cut[number]):
            record, n_units = self.record(t, prefix, k, cut)
            payload.fields[f"{prefix}.segment[{k}]"] = (len(payload.data), len(record.data))
            payload.extend(record)
            crcs.append(zlib.crc32(record.data))
            units.append(n_units)
        tile, name, dtype_name = t.tile or t.segment, t.name.encode(), t.dtype_name.encode()
        body = Image()
        body.pack(
            prefix, "QQIBBBBIIIIHHHH", payload_offset=start,
            payload_nbytes=len(payload.data) - start, crc32=zlib.crc32(t.data),
            dtype_id=DTYPES[t.dtype][0], rank=len(t.shape), row_rank=row_rank(t), element_order=0,
            segment_rows=t.segment[0], segment_cols=t.segment[1], tile_rows=tile[0],
            tile_cols=tile[1], flags=t.difference, name_nbytes=len(name),
            dtype_name_nbytes=len(dtype_name), reserved=0,
        )  # fmt: skip
        for i, d in enumerate(t.shape):
            body.put(f"{prefix}.shape[{i}]", struct.pack("<Q", d))
        body.put(f"{prefix}.name", name)
        body.put(f"{prefix}.dtype_name", dtype_name)
        for k, crc in enumerate(crcs):
            body.put(f"{prefix}.segment_crc32[{k}]", struct.pack("<I", crc))
        if crcs:
            self._columns(t, prefix, body, self.cut[number], units)
        return body

    def _columns(
        self, t: Tensor, prefix: str, body: Image, cuts: list[_Cut], units: list[list[int]]
    ) -> None:
        def column(name: str, values: list[int]) -> None:
            narrow = (
                0
                if len(set(values)) == 1
                else 1
                if max(values) < 1 << 8
                else 2
                if max(values) < 1 << 16
                else 4
            )
            width = t.widths.get(name, t.widths.get("all", narrow))
            body.put(f"{prefix}.{name}.width", bytes([width]))
            stored = values[:1] if width == 0 else values
            body.put(f"{prefix}.{name}", b"".join(v.to_bytes(width or 4, "little") for v in stored))

        segments = [cut.chosen for cut in cuts]
        column("layout", [s.layout for s in segments])
        column("base", [s.base for s in segments])
        column("n_patches", [len(cut.patches) for cut in cuts])
        for p in range(t.n_planes):
            planes = [s.planes[p] if p < len(s.planes) else Plane() for s in segments]
            column(f"coder[{p}]", [x.coder for x in planes])
            column(f"table[{p}]", [x.table for x in planes])
            column(f"prediction[{p}]", [x.prediction for x in planes])
            column(f"n_units[{p}]", [u[p] for u in units])

    def body_of(self, name: str, payload: Image) -> tuple[int, int, Image]:
        """Type, flags and body of a record that is named."""
        body = Image()
        if name == "tables":
            body.put("tables.n", struct.pack("<H", len(self.tables)))
            for i, table in enumerate(self.tables):
                one = table_image(table.freq or (), table.prob_bits, table.k)
                one.fields = {f"table[{i}]{k}": v for k, v in one.fields.items()}
                body.extend(one)
            return TABLES, 1, body
        if name == "contexts":
            body.put("contexts.n", struct.pack("<H", len(self.file.maps)))
            for i, m in enumerate(self.file.maps):
                body.pack(f"context[{i}]", "BB", kind=m.kind, n_classes=len(m.tables))
                body.put(f"context[{i}].class_of", bytes(m.classes))
                body.put(f"context[{i}].tables", struct.pack(f"<{len(m.tables)}H", *m.tables))
            return CONTEXTS, 1, body
        if name == "base" and self.file.base is not None:
            body.put("base.sha256", self.file.base[0])
            body.put("base.name", self.file.base[1].encode())
            return BASE, 1, body
        if name == "source":
            body.put("source.kind", struct.pack("<H", 1))
            body.put("source.header", self.file.source or b"")
            return SOURCE, 1, body
        if name == "metadata":
            body.put("metadata.n", struct.pack("<I", len(self.file.metadata)))
            for i, pair in enumerate(self.file.metadata):
                for what, text in zip(("key", "value"), pair, strict=True):
                    body.put(f"metadata[{i}].{what}_nbytes", struct.pack("<I", len(text.encode())))
                    body.put(f"metadata[{i}].{what}", text.encode())
            return METADATA, 0, body
        number = int(name.removeprefix("tensor"))
        t = self.file.tensors[number]
        if t.duplicate_of is not None:
            body.put(f"tensor[{number}].of", struct.pack("<I", t.duplicate_of))
            body.put(f"tensor[{number}].name", t.name.encode())
            return DUPLICATE, 1, body
        return TENSOR, 1, self.tensor(number, payload)

    def default_records(self) -> tuple[str, ...]:
        """The records of the file in the usual order."""
        f = self.file
        parts = {
            "tables": f.tables,
            "contexts": f.maps,
            "base": f.base,
            "source": f.source is not None,
            "metadata": f.metadata,
        }
        front = [name for name, there in parts.items() if there]
        return (*front, *(f"tensor{i}" for i in range(len(f.tensors))))


def content_hash(tensors: Sequence[Tensor]) -> bytes:
    """R11.4."""
    data = b""
    for t in sorted(tensors, key=lambda t: t.name.encode()):
        head = (
            struct.pack("<I", len(t.name.encode()))
            + t.name.encode()
            + bytes([DTYPES[t.dtype][0], len(t.shape)])
        )
        data += (
            head
            + struct.pack(f"<{len(t.shape)}Q", *t.shape)
            + struct.pack("<I", zlib.crc32(t.data))
        )
    return hashlib.sha256(data).digest()


def seal(
    image: Image,
    records: bytes,
    *,
    coding: int,
    deflated: bytes | None,
    data_nbytes: int,
    n_tensors: int,
) -> Image:
    """Put index and footer behind the payload."""
    stored = deflated if coding and deflated is not None else records
    start = len(image.data)
    image.data += stored
    image.fields["index"] = (start, len(stored))
    foot = len(image.data)
    image.pack(
        "footer", "QQQQQI", index_offset=start, index_nbytes=len(stored),
        index_raw_nbytes=len(records), file_nbytes=foot + 64, data_nbytes=data_nbytes,
        n_tensors=n_tensors,
    )  # fmt: skip
    image.put("footer.index_coding", bytes([coding]))
    image.put("footer.reserved", bytes(3))
    image.put("footer.index_crc32", struct.pack("<I", zlib.crc32(stored)))
    image.put("footer.footer_crc32", struct.pack("<I", zlib.crc32(image.data[foot:])))
    image.put("footer.end_magic", b"WCODECFT")
    return image


def assemble(file: File) -> Image:
    """A whole file."""
    builder, image, index = _Builder(file), Image(), Image()
    image.put("header.magic", b"\x89WCODEC\n")
    image.pack("header", "HHIQI", major=0, minor=2, flags=0, reserved_0=0, reserved_1=0)
    image.put("header.header_crc32", struct.pack("<I", zlib.crc32(image.data)))
    for number, record in enumerate(
        builder.default_records() if file.records is None else file.records
    ):
        kind, flags, body = builder.body_of(record, image) if isinstance(record, str) else record
        index.pack(
            f"record[{number}]",
            "HHQ",
            type=kind,
            flags=flags,
            nbytes=len(body.data if isinstance(body, Image) else body),
        )
        if isinstance(body, Image):
            index.extend(body)
        else:
            index.put(f"record[{number}].body", body)
    start = len(image.data)
    if file.coding == 0:  # only then do the fields of the index have an offset in the file
        image.fields |= {name: (start + at, n) for name, (at, n) in index.fields.items()}
    squeeze = zlib.compressobj(file.deflate[0], wbits=file.deflate[1])
    deflated = squeeze.compress(index.data) + squeeze.flush()
    data_nbytes = sum(len(t.data) for t in file.tensors)
    return seal(
        image,
        bytes(index.data),
        coding=file.coding,
        deflated=deflated,
        data_nbytes=data_nbytes,
        n_tensors=len(file.tensors),
    )
