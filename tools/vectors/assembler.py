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
from functools import partial
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
from assembler_sparse import SPARSE, Sparse

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
    #: that words are listed. Widths of columns are then named ``n_gaps``, ``gaps.layout``,
    #: ``words.layout``
    sparse: Sparse | None = None
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
    """All dimensions but the last make the rows, or of a sparse tensor none, if the caller does not
    say otherwise.
    """
    usual = 0 if t.sparse is not None else max(len(t.shape) - 1, 0)
    return usual if t.row_rank is None else t.row_rank


def has_changed(t: Tensor, i: int) -> bool:
    """Whether word `i` of a difference is another one than in the base."""
    n = DTYPES[t.dtype][1]
    return t.data[i * n : i * n + n] != t.base[i * n : i * n + n]


def listed_places(t: Tensor) -> list[list[int]]:
    """Numbers of the words that each segment of a sparse tensor lists."""
    if t.sparse is None:
        return []
    n = DTYPES[t.dtype][1]
    return t.sparse.places(_words(t.data, n), _words(t.base, n), t.segment[1])


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


@dataclass
class _Part:
    """Segments with a table of their own: those of a tensor, or of a list of a sparse one, which is
    described as a tensor here. `name` stands behind that of the tensor.
    """

    name: str
    t: Tensor
    cuts: list[_Cut]


@dataclass
class _Lists:
    """Of a sparse tensor: `n_listed` of each segment, of others what those with words have."""

    n_listed: list[int]
    n_gaps: list[int]
    crc32s: list[int]


def _words(data: bytes, n: int) -> list[int]:
    return [int.from_bytes(data[i : i + n], "little") for i in range(0, len(data), n)]


def _cuts(t: Tensor, pieces: list[list[list[int]]]) -> list[_Cut]:
    """Segments, each given as rows of the words that are coded, after the choices of a tensor."""
    chosen = t.segments * len(pieces) if len(t.segments) == 1 else t.segments
    cuts = []
    for s, p in zip(chosen, pieces, strict=True):
        tile = (len(p), len(p[0])) if t.sparse is not None else t.tile or t.segment
        symbols = segment_symbols(p, t.coded_dtype, tile, s)
        cuts.append(_Cut(s, p, symbols, [*symbols.patches, *s.extra]))
    return cuts


class _Builder:
    def __init__(self, file: File) -> None:
        self.file = file
        self.lists: dict[int, _Lists] = {}
        self.parts = [self._parts(i, t) for i, t in enumerate(file.tensors)]
        self.tables = [self._table(i, t) for i, t in enumerate(file.tables)]

    def _parts(self, number: int, t: Tensor) -> list[_Part]:
        rows, cols = matrix(t)
        if t.duplicate_of is not None:
            return []
        n = DTYPES[t.dtype][1]
        words, base = _words(t.data, n), _words(t.base, n)
        if t.difference:
            words = [differ(w, b, t.difference, n) for w, b in zip(words, base, strict=True)]
        if t.sparse is not None:
            return self._lists(number, t, t.sparse, words)
        if not rows * cols:
            return []
        pieces = in_tiles([words[r * cols : (r + 1) * cols] for r in range(rows)], t.segment)
        return [_Part("", t, _cuts(t, pieces))]

    def _lists(self, number: int, t: Tensor, s: Sparse, coded: list[int]) -> list[_Part]:
        """R12.8, R12.10: the lists of gaps, and those of words."""
        size, n, places = t.segment[1], DTYPES[t.dtype][1], listed_places(t)
        some = [(k, of_segment) for k, of_segment in enumerate(places) if of_segment]
        gaps = [s.stored_gaps(k, of_segment, size) for k, of_segment in some]
        crc32s = [
            zlib.crc32(b"".join(t.data[i * n : i * n + n] for i in of_segment))
            for _, of_segment in some
        ]
        self.lists[number] = _Lists([len(p) for p in places], [len(g) for g in gaps], crc32s)
        pieces = {"gaps": [[g] for g in gaps], "words": [[[coded[i] for i in p]] for _, p in some]}
        parts = []
        for name, segments in (("gaps", s.gaps), ("words", s.words)):
            own = {
                key.removeprefix(f"{name}."): width
                for key, width in t.widths.items()
                if key == "all" or key.startswith(f"{name}.")
            }
            part = replace(
                t, dtype="uint8" if name == "gaps" else t.coded_dtype, segments=segments,
                difference=0, widths=own, spoil=s.spoil and partial(s.spoil, name),
            )  # fmt: skip
            parts.append(_Part(f".{name}", part, _cuts(part, pieces[name])))
        return parts

    def _table(self, number: int, spec: TableSpec) -> TableSpec:
        """A table that has its frequencies: if need be those of all symbols that are coded under
        it.
        """
        if spec.freq is not None:
            return spec
        coded, contexts = list[int](), False
        for cut in (c for parts in self.parts for part in parts for c in part.cuts):
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
            tables = [self.tables[plane.table]]
            return rans(cut.symbols.planes[i], tables, early=cut.chosen.early)
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
        t, prefix, start = self.file.tensors[number], f"tensor[{number}]", len(payload.data)
        tables = [self._segments(prefix + p.name, p, payload) for p in self.parts[number]]
        if t.sparse is not None:
            payload.put(f"{prefix}.tail", t.sparse.tail)
        tile, name, dtype_name = t.tile or t.segment, t.name.encode(), t.dtype_name.encode()
        body = Image()
        body.pack(
            prefix, "QQIBBBBIIIIHHHH", payload_offset=start,
            payload_nbytes=len(payload.data) - start, crc32=zlib.crc32(t.data),
            dtype_id=DTYPES[t.dtype][0], rank=len(t.shape), row_rank=row_rank(t), element_order=0,
            segment_rows=t.segment[0], segment_cols=t.segment[1], tile_rows=tile[0],
            tile_cols=tile[1], flags=t.difference | (0 if t.sparse is None else SPARSE),
            name_nbytes=len(name), dtype_name_nbytes=len(dtype_name), reserved=0,
        )  # fmt: skip
        for i, d in enumerate(t.shape):
            body.put(f"{prefix}.shape[{i}]", struct.pack("<Q", d))
        body.put(f"{prefix}.name", name)
        body.put(f"{prefix}.dtype_name", dtype_name)
        if t.sparse is not None:
            lists = self.lists[number]
            for k, n in enumerate(lists.n_listed):
                body.put(f"{prefix}.n_listed[{k}]", struct.pack("<I", n))
            if lists.n_gaps:
                _column(body, t, prefix, "n_gaps", lists.n_gaps)
            for k, crc in enumerate(lists.crc32s):
                body.put(f"{prefix}.words_crc32[{k}]", struct.pack("<I", crc))
        for table in tables:
            body.extend(table)
        return body

    def _segments(self, prefix: str, part: _Part, payload: Image) -> Image:
        """Appends the records of segments, returns their table."""
        crcs, units, table = list[int](), list[list[int]](), Image()
        for k, cut in enumerate(part.cuts):
            record, n_units = self.record(part.t, prefix, k, cut)
            payload.fields[f"{prefix}.segment[{k}]"] = (len(payload.data), len(record.data))
            payload.extend(record)
            crcs.append(zlib.crc32(record.data))
            units.append(n_units)
        for k, crc in enumerate(crcs):
            table.put(f"{prefix}.segment_crc32[{k}]", struct.pack("<I", crc))
        if crcs:
            self._columns(part.t, prefix, table, part.cuts, units)
        return table

    def _columns(
        self, t: Tensor, prefix: str, body: Image, cuts: list[_Cut], units: list[list[int]]
    ) -> None:
        def column(name: str, values: list[int]) -> None:
            _column(body, t, prefix, name, values)

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


def _column(body: Image, t: Tensor, prefix: str, name: str, values: list[int]) -> None:
    """R4.37: appends a column, as narrow as its values if no width is chosen for it."""
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
