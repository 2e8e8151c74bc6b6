"""Builds files of the format by hand, after the spec alone: a second implementation, slow and plain, that shares no code
with the package, so that what it builds can be held against what the package reads.

`assemble` lays a file out from explicit choices (every layout, coder, table, mode and column width is named by the
caller) and keeps the offset of each field, so that a case can say which one it spoils.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

RAW, BYTES, PAIRS = 0, 1, 2  # layouts
PLAIN, CONSTANT, RANS = 0, 1, 2  # coders; PLAIN is the coder RAW
NONE, LEFT, TOP, AVG, PLANAR, PER_TILE = 0, 1, 2, 3, 4, 255
TABLES, SOURCE, METADATA, TENSOR = 1, 2, 3, 4  # index records

#: name: id, bytes of a word, words of an element, word map, bits of the exponent
DTYPES = {
    "opaque": (0, 1, 1, "identity", 0),
    "bool": (1, 1, 1, "identity", 0),
    "uint8": (2, 1, 1, "identity", 0),
    "int8": (3, 1, 1, "offset", 0),
    "uint16": (4, 2, 1, "identity", 0),
    "int16": (5, 2, 1, "offset", 0),
    "uint32": (6, 4, 1, "identity", 0),
    "int32": (7, 4, 1, "offset", 0),
    "uint64": (8, 8, 1, "identity", 0),
    "int64": (9, 8, 1, "offset", 0),
    "float16": (10, 2, 1, "identity", 0),
    "bfloat16": (11, 2, 1, "exponent_first", 8),
    "float32": (12, 4, 1, "exponent_first", 8),
    "float64": (13, 8, 1, "identity", 0),
    "float8_e4m3fn": (14, 1, 1, "exponent_first", 4),
    "float8_e5m2": (15, 1, 1, "exponent_first", 5),
    "float8_e8m0fnu": (16, 1, 1, "identity", 0),
    "float8_e4m3fnuz": (17, 1, 1, "exponent_first", 4),
    "float8_e5m2fnuz": (18, 1, 1, "exponent_first", 5),
    "complex64": (19, 4, 2, "exponent_first", 8),
    "complex128": (20, 8, 2, "identity", 0),
}


# ---- what the caller chooses ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Plane:
    """Coder of a plane; `table` is a table's number, or the constant's value. `modes` holds a mode, or one a tile."""

    coder: int = PLAIN
    table: int = 0
    modes: int | tuple[int, ...] = NONE

    @property
    def prediction(self) -> int:
        """What stands in the prediction column."""
        return self.modes if isinstance(self.modes, int) else PER_TILE


@dataclass(frozen=True)
class Segment:
    """How a segment is stored. `planes` may be shorter than the columns: the others are zeros."""

    layout: int = RAW
    planes: tuple[Plane, ...] = ()
    base: int = 0
    fill: int = 0
    extra: tuple[int, ...] = ()  #: words put behind the patches as if they were some, whatever the layout
    also: tuple[int, ...] = ()  #: elements that have a patch although they lie within the window, and a code that is not theirs


@dataclass(frozen=True)
class Tensor:
    """A tensor and all choices about it; one `Segment` in `segments` stands for all. Widths are of columns, by name."""

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
    spoil: Callable[[int, int, bytes], bytes] | None = None  #: spoils the stream of a segment and plane before it is stored
    recipe: dict[str, Any] = field(default_factory=dict)  #: of `data`, for the manifest


@dataclass(frozen=True)
class TableSpec:
    """A table: frequencies, or ``None`` to make them from the symbols coded under it; order `k` of its codes, or the shortest."""

    prob_bits: int = 12
    freq: tuple[int, ...] | None = None
    k: int | None = None


@dataclass(frozen=True)
class File:
    """A whole file. `records` lists the index records in order: a name, or ``(type, flags, body)`` of any record."""

    tensors: tuple[Tensor, ...] = ()
    tables: tuple[TableSpec, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    source: bytes | None = None
    records: tuple[Any, ...] | None = None
    coding: int = 0
    deflate: tuple[int, int] = (6, 15)  #: level and window bits of a deflated index


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


# ---- words, planes, prediction -------------------------------------------------------------------------------------------
def map_word(word: int, dtype: str) -> int:
    """Chapter 5: the word whose bytes are the planes."""
    _, nbytes, _, kind, e = DTYPES[dtype]
    bits = 8 * nbytes
    if kind == "offset":
        return word ^ 1 << bits - 1
    if kind == "exponent_first":
        m = bits - 1 - e
        sign, exponent, mantissa = word >> bits - 1, word >> m & (1 << e) - 1, word & (1 << m) - 1
        return exponent << m + 1 | sign << m | mantissa
    return word


def residuals(tile: list[list[int]], mode: int) -> list[int]:
    """Chapter 7: a tile in raster order, each value less its prediction, mod 256."""
    out = []
    for r, row in enumerate(tile):
        for c, value in enumerate(row):
            left, top = row[c - 1] if c else 0, tile[r - 1][c] if r else 0
            corner = tile[r - 1][c - 1] if r and c else 0
            if mode == NONE or (r == 0 and c == 0):
                guess = 0
            elif r == 0:
                guess = left
            elif c == 0:
                guess = top
            else:
                guess = {LEFT: left, TOP: top, AVG: (left + top) // 2, PLANAR: left + top - corner}[mode]
            out.append((value - guess) % 256)
    return out


def nibble_pairs(codes: list[int], fill: int) -> list[int]:
    """Two 4-bit codes a symbol, the first in the low half."""
    codes = [*codes, fill] if len(codes) % 2 else codes
    return [a | b << 4 for a, b in zip(codes[::2], codes[1::2], strict=True)]


def in_tiles(segment: list[list[int]], tile: tuple[int, int]) -> list[list[list[int]]]:
    """Tiles of a segment in raster order, each a list of rows, clipped at the edges."""
    height, width = len(segment), len(segment[0])
    return [[row[c : c + tile[1]] for row in segment[r : r + tile[0]]] for r in range(0, height, tile[0]) for c in range(0, width, tile[1])]


def segment_symbols(rows: list[list[int]], t: Tensor, s: Segment) -> tuple[list[list[int]], list[int]]:
    """Symbols of each plane in element order, after prediction, and the patches. `rows` holds words."""
    nbytes, tile = DTYPES[t.dtype][1], t.tile or t.segment
    tiles = in_tiles([[map_word(w, t.dtype) for w in row] for row in rows], tile)
    if s.layout == PAIRS:
        words = [w for one in tiles for row in one for w in row]
        if nbytes == 1:
            return [nibble_pairs([w >> 4 for w in words], s.fill), nibble_pairs([w & 15 for w in words], 0)], []
        tops = [w >> 8 * (nbytes - 1) for w in words]
        inside = [s.base <= v < s.base + 16 for v in tops]
        codes = [v - s.base if ok else s.fill for v, ok in zip(tops, inside, strict=True)]
        for i in s.also:
            inside[i], codes[i] = False, codes[i] ^ 1
        patches = [v << 24 | i for i, (v, ok) in enumerate(zip(tops, inside, strict=True)) if not ok]
        return [nibble_pairs(codes, s.fill), *([w >> 8 * p & 255 for w in words] for p in range(nbytes - 2, -1, -1))], patches
    planes = []
    for p in range(nbytes):
        modes = s.planes[p].modes if p < len(s.planes) else NONE
        each = [modes] * len(tiles) if isinstance(modes, int) else list(modes)
        cut = [[[w >> 8 * (nbytes - 1 - p) & 255 for w in row] for row in one] for one in tiles]
        planes.append([v for one, mode in zip(cut, each, strict=True) for v in residuals(one, mode)])
    return planes, []


# ---- entropy coding ------------------------------------------------------------------------------------------------------
def frequencies(symbols: Sequence[int], prob_bits: int) -> tuple[int, ...]:
    """A legal table for some symbols of at least two kinds; not the package's choice, and no worse for that."""
    if len(set(symbols)) < 2:
        raise ValueError("a table of fewer than two symbols")
    count = [0] * 256
    for s in symbols:
        count[s] += 1
    freq = [max(1, c * (1 << prob_bits) // len(symbols)) if c else 0 for c in count]
    while (left := (1 << prob_bits) - sum(freq)) != 0:
        most = max(range(256), key=lambda s: freq[s])
        freq[most] += left if left > 0 else -1
    return tuple(freq)


def exp_golomb(value: int, k: int) -> str:
    """Exp-Golomb code of order k, as a string of bits."""
    quotient = (value >> k) + 1
    return "0" * (quotient.bit_length() - 1) + f"{quotient:b}" + (f"{value & (1 << k) - 1:0{k}b}" if k else "")


def table_image(freq: Sequence[int], prob_bits: int, k: int | None = None) -> Image:
    """A serialised table; `k` of the shortest form if it is not given."""
    used = [s for s in range(256) if freq[s]]
    span = freq[used[0] : used[-1] + 1]
    order = min(range(12), key=lambda o: sum(len(exp_golomb(f, o)) for f in span)) if k is None else k
    bits = "".join(exp_golomb(f, order) for f in span)
    bits += "0" * (-len(bits) % 8)
    image = Image()
    image.pack("", "BBBB", prob_bits=prob_bits, first=used[0], last=used[-1], k=order)
    image.put(".codes", int(bits, 2).to_bytes(len(bits) // 8, "big"))
    return image


def rans(symbols: list[int], freq: Sequence[int], prob_bits: int) -> bytes:
    """Chapter 9: an interleaved rANS stream, one symbol after another, last one first."""
    start = [sum(freq[:s]) for s in range(256)]
    symbols = symbols + [max(range(256), key=lambda s: (freq[s], -s))] * (-len(symbols) % 128)
    state, words = [1 << 16] * 32, list[int]()
    for step in range(len(symbols) // 32 - 1, -1, -1):
        for lane in range(31, -1, -1):
            s = symbols[step // 4 * 128 + lane * 4 + step % 4]
            if state[lane] >= freq[s] << 32 - prob_bits:
                words.append(state[lane] & 0xFFFF)
                state[lane] >>= 16
            state[lane] = (state[lane] // freq[s] << prob_bits) + state[lane] % freq[s] + start[s]
    return struct.pack("<32I", *state) + struct.pack(f"<{len(words)}H", *reversed(words))


def matrix(t: Tensor) -> tuple[int, int]:
    """Chapter 6: rows and columns of the matrix view, in words."""
    rows, cols = 1, DTYPES[t.dtype][2]
    for i, d in enumerate(t.shape):
        rows, cols = (rows * d, cols) if i < row_rank(t) else (rows, cols * d)
    return rows, cols


def row_rank(t: Tensor) -> int:
    """All dimensions but the last make the rows, if the caller does not say otherwise."""
    return max(len(t.shape) - 1, 0) if t.row_rank is None else t.row_rank


# ---- the file ------------------------------------------------------------------------------------------------------------
class _Builder:
    def __init__(self, file: File) -> None:
        self.file = file
        self.cut = [self._cut(t) for t in file.tensors]
        self.tables = [self._table(i, t) for i, t in enumerate(file.tables)]

    def _cut(self, t: Tensor) -> list[tuple[Segment, list[list[int]], list[list[int]], list[int]]]:
        """Each segment's choices, rows of words, symbols and patches."""
        rows, cols = matrix(t)
        n = DTYPES[t.dtype][1]
        words = [int.from_bytes(t.data[i : i + n], "little") for i in range(0, len(t.data), n)]
        pieces = in_tiles([words[r * cols : (r + 1) * cols] for r in range(rows)], t.segment) if rows and cols else []
        chosen = t.segments * len(pieces) if len(t.segments) == 1 else t.segments
        cuts = []
        for s, p in zip(chosen, pieces, strict=True):
            symbols, patches = segment_symbols(p, t, s)
            cuts.append((s, p, symbols, [*patches, *s.extra]))
        return cuts

    def _table(self, number: int, spec: TableSpec) -> TableSpec:
        if spec.freq is not None:
            return spec
        coded = [v for cut in self.cut for s, _, planes, _ in cut for p, symbols in zip(s.planes, planes, strict=False)
                 if (p.coder, p.table) == (RANS, number) for v in symbols]  # fmt: skip
        return replace(spec, freq=frequencies(coded, spec.prob_bits))

    def record(self, t: Tensor, prefix: str, k: int, cut: Any) -> tuple[Image, list[int]]:
        """The record of segment `k` and the units of its streams."""
        s, rows, planes, patches = cut
        prefix = f"{prefix}.segment[{k}]"
        out, units, n = Image(), [0] * max(2, DTYPES[t.dtype][1]), DTYPES[t.dtype][1]

        def part(name: str, data: bytes) -> None:
            out.put(f"{prefix}.{name}", data)
            if -len(data) % 16:
                out.put(f"{prefix}.{name}.padding", bytes([t.pad]) * (-len(data) % 16))

        if s.layout == RAW:
            part("words", b"".join(w.to_bytes(n, "little") for row in rows for w in row))
            part("patches", struct.pack(f"<{len(patches)}I", *patches))
            return out, units
        part("modes", bytes(m for p in s.planes if not isinstance(p.modes, int) for m in p.modes))
        for i, symbols in enumerate(planes):
            plane = s.planes[i] if i < len(s.planes) else Plane()
            if plane.coder == CONSTANT and set(symbols) != {plane.table}:
                raise ValueError(f"plane {i} of {t.name!r} is not constant")
            if plane.coder == PLAIN:
                part(f"plane[{i}]", bytes(symbols))
            elif plane.coder == RANS:
                table = self.tables[plane.table]
                stream = rans(symbols, table.freq or (), table.prob_bits)
                stream = stream if t.spoil is None else t.spoil(k, i, stream)
                part(f"plane[{i}]", stream)
                units[i] = -(-len(stream) // 16)
        part("patches", struct.pack(f"<{len(patches)}I", *patches))
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
            prefix, "QQIBBBBIIIIHHHH", payload_offset=start, payload_nbytes=len(payload.data) - start, crc32=zlib.crc32(t.data),
            dtype_id=DTYPES[t.dtype][0], rank=len(t.shape), row_rank=row_rank(t),
            element_order=0, segment_rows=t.segment[0], segment_cols=t.segment[1], tile_rows=tile[0], tile_cols=tile[1], flags=0,
            name_nbytes=len(name), dtype_name_nbytes=len(dtype_name), reserved=0,
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

    def _columns(self, t: Tensor, prefix: str, body: Image, cuts: list[Any], units: list[list[int]]) -> None:
        def column(name: str, values: list[int]) -> None:
            narrow = 0 if len(set(values)) == 1 else 1 if max(values) < 1 << 8 else 2 if max(values) < 1 << 16 else 4
            width = t.widths.get(name, t.widths.get("all", narrow))
            body.put(f"{prefix}.{name}.width", bytes([width]))
            stored = values[:1] if width == 0 else values
            body.put(f"{prefix}.{name}", b"".join(v.to_bytes(width or 4, "little") for v in stored))

        segments = [cut[0] for cut in cuts]
        column("layout", [s.layout for s in segments])
        column("base", [s.base for s in segments])
        column("n_patches", [len(cut[3]) for cut in cuts])
        for p in range(max(2, DTYPES[t.dtype][1])):
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
        return TENSOR, 1, self.tensor(int(name.removeprefix("tensor")), payload)

    def default_records(self) -> tuple[str, ...]:
        """The records of the file in the usual order."""
        f = self.file
        front = [n for n, there in (("tables", f.tables), ("source", f.source is not None), ("metadata", f.metadata)) if there]
        return (*front, *(f"tensor{i}" for i in range(len(f.tensors))))


def seal(image: Image, records: bytes, *, coding: int, deflated: bytes | None, data_nbytes: int, n_tensors: int) -> Image:
    """Put index and footer behind the payload."""
    stored = deflated if coding and deflated is not None else records
    start = len(image.data)
    image.data += stored
    image.fields["index"] = (start, len(stored))
    foot = len(image.data)
    image.pack(
        "footer", "QQQQQI", index_offset=start, index_nbytes=len(stored), index_raw_nbytes=len(records), file_nbytes=foot + 64,
        data_nbytes=data_nbytes, n_tensors=n_tensors,
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
    image.pack("header", "HHIQI", major=0, minor=1, flags=0, reserved_0=0, reserved_1=0)
    image.put("header.header_crc32", struct.pack("<I", zlib.crc32(image.data)))
    for number, record in enumerate(builder.default_records() if file.records is None else file.records):
        kind, flags, body = builder.body_of(record, image) if isinstance(record, str) else record
        index.pack(f"record[{number}]", "HHQ", type=kind, flags=flags, nbytes=len(body.data if isinstance(body, Image) else body))
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
    return seal(image, bytes(index.data), coding=file.coding, deflated=deflated, data_nbytes=data_nbytes, n_tensors=len(file.tensors))
