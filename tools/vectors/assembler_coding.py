"""From words to streams, after the spec alone: a second implementation, slow and plain, that shares
no code with the package.

Chapters 5 to 9 of the spec: word maps, planes, prediction, transforms, contexts, tables, rANS.
`assembler` makes files of it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

SPEC = Path(__file__).resolve().parents[2] / "spec" / "wcodec.md"
RAW, BYTES, PAIRS = 0, 1, 2  # layouts
PLAIN, CONSTANT, RANS, CONTEXT = 0, 1, 2, 4  # coders; PLAIN is the coder RAW
NONE, LEFT, TOP, AVG, PLANAR, PER_TILE = 0, 1, 2, 3, 4, 255
DCT, ADST = 1 << 4, 2 << 4  # bits of a mode
PLANE, POSITION, SCALE = 1, 2, 3  # kinds of context maps
XOR, MINUS = 1, 2  # differences
N_CONTEXTS = {PLANE: 256, POSITION: 64, SCALE: 16}

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


# ---- what the caller chooses of a segment --------------------------------------------------------
@dataclass(frozen=True)
class Plane:
    """Coder of a plane; `table` numbers a table or a context map, or is the constant's value.
    `modes` holds a mode, or one a tile.
    """

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
    #: words put behind the patches as if they were some, whatever the layout
    extra: tuple[int, ...] = ()
    #: elements that have a patch although they lie within the window, and a code that is not theirs
    also: tuple[int, ...] = ()
    #: for each lane of a stream, in how many steps, the first ones, it takes a word in any case
    early: tuple[int, ...] = ()
    #: of the rows, and again from the first one if there are more rows
    row_classes: tuple[int, ...] = (0,)
    col_classes: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class MapSpec:
    """A context map: the class of each context (again from the first one if there are more
    contexts), and the tables.
    """

    kind: int
    class_of: tuple[int, ...]
    tables: tuple[int, ...]

    @property
    def classes(self) -> list[int]:
        """The class of each context."""
        return repeated(self.class_of, N_CONTEXTS[self.kind])


@dataclass(frozen=True)
class TableSpec:
    """A table: frequencies, or ``None`` to make them from the symbols coded under it; order `k` of
    its codes, or the shortest.
    """

    prob_bits: int = 12
    freq: tuple[int, ...] | None = None
    k: int | None = None


@dataclass
class Symbols:
    """A segment as symbols: of each plane, behind its modes, in element order;
    what is due for contexts; the patches.
    """

    planes: list[list[int]] = field(default_factory=list)
    #: plane 0 before its modes; 4-bit codes with PAIRS of larger words
    first: list[int] = field(default_factory=list)
    #: row and column in the segment, and in the tile
    places: list[tuple[int, int, int, int]] = field(default_factory=list)
    patches: list[int] = field(default_factory=list)


def repeated(values: Sequence[int], n: int) -> list[int]:
    """The first `n` of the values, over and over."""
    return [values[i % len(values)] for i in range(n)]


# ---- words ---------------------------------------------------------------------------------------
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


def differ(word: int, base: int, kind: int, nbytes: int) -> int:
    """R12.5: what is coded in place of a word."""
    if kind == XOR:
        return word ^ base
    n = 8 * nbytes
    d = (word - base) % (1 << n)
    return 2 * d if d < 1 << n - 1 else 2 * ((1 << n) - d) - 1


# ---- prediction and transform --------------------------------------------------------------------
def residuals(tile: list[list[int]], mode: int) -> list[int]:
    """Chapters 7 and 8: a tile in raster order, each value less its prediction, mod 256,
    and transformed.
    """
    prediction, out = mode % 16, []
    for r, row in enumerate(tile):
        out.append(
            [(value - guess(tile, r, c, prediction, mode)) % 256 for c, value in enumerate(row)]
        )
    return [v for row in (transformed(out, mode // 16) if mode // 16 else out) for v in row]


def guess(tile: list[list[int]], r: int, c: int, prediction: int, mode: int) -> int:
    """R7.4 to R7.6."""
    if prediction == NONE:
        return 128 if mode else 0
    if r == 0 and c == 0:
        return 0
    if r == 0:
        return tile[0][c - 1]
    if c == 0:
        return tile[r - 1][0]
    left, top, corner = tile[r][c - 1], tile[r - 1][c], tile[r - 1][c - 1]
    return {LEFT: left, TOP: top, AVG: (left + top) // 2, PLANAR: left + top - corner}[prediction]


@cache
def lifting(transform: int) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The order of the coefficients and the rows of the table of a transform, out of the spec."""
    name = {1: "dct", 2: "adst"}[transform]
    found = re.search(
        rf"{name.upper()}, order ([\d, ]+):\n\n<!-- {name} -->\n(.*?)<!-- /{name} -->",
        SPEC.read_text(encoding="utf-8"),
        re.S,
    )
    if not found:
        raise ValueError(f"the spec has no table of {name}")
    rows = [re.findall(r"-?\d+", line) for line in found[2].splitlines()]
    return tuple(map(int, found[1].split(","))), tuple(tuple(map(int, row)) for row in rows if row)


def signed(v: int) -> int:
    """R8.3."""
    return (v + 128) % 256 - 128


def eight(y: list[int], transform: int) -> list[int]:
    """R8.3: eight values, transformed."""
    order, rows = lifting(transform)
    y = [signed(v) for v in y]
    for a, b, p, u, r in rows:
        for t, s, c in ((a, b, p), (b, a, u), (a, b, r)):
            y[t] = signed(y[t] + (c * y[s] + 64 >> 7))
    return [y[k] % 256 for k in order]


def transformed(tile: list[list[int]], transform: int) -> list[list[int]]:
    """R8.2: whole groups of 8 of each row, then of each column."""

    def lines(rows: list[list[int]]) -> list[list[int]]:
        done = []
        for row in rows:
            whole = len(row) // 8 * 8
            done.append(
                [v for i in range(0, whole, 8) for v in eight(row[i : i + 8], transform)]
                + row[whole:]
            )
        return done

    def turned(rows: list[list[int]]) -> list[list[int]]:
        return [list(column) for column in zip(*rows, strict=True)]

    return turned(lines(turned(lines(tile))))


# ---- planes --------------------------------------------------------------------------------------
def nibble_pairs(codes: list[int], fill: int) -> list[int]:
    """Two 4-bit codes a symbol, the first in the low half."""
    codes = [*codes, fill] if len(codes) % 2 else codes
    return [a | b << 4 for a, b in zip(codes[::2], codes[1::2], strict=True)]


def in_tiles(segment: list[list[int]], tile: tuple[int, int]) -> list[list[list[int]]]:
    """Tiles of a segment in raster order, each a list of rows, clipped at the edges."""
    height, width = len(segment), len(segment[0])
    return [
        [row[c : c + tile[1]] for row in segment[r : r + tile[0]]]
        for r in range(0, height, tile[0])
        for c in range(0, width, tile[1])
    ]


def places_of(height: int, width: int, tile: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Row and column of each element in the segment, and in its tile, in element order (R6.9)."""
    corners = [(r, c) for r in range(0, height, tile[0]) for c in range(0, width, tile[1])]
    return [
        (r + i, c + j, i, j)
        for r, c in corners
        for i in range(min(tile[0], height - r))
        for j in range(min(tile[1], width - c))
    ]


def segment_symbols(
    rows: list[list[int]], dtype: str, tile: tuple[int, int], s: Segment
) -> Symbols:
    """Symbols of each plane in element order; `rows` holds words."""
    nbytes = DTYPES[dtype][1]
    tiles = in_tiles([[map_word(w, dtype) for w in row] for row in rows], tile)
    words = [w for one in tiles for row in one for w in row]
    places = places_of(len(rows), len(rows[0]), tile)
    if s.layout == PAIRS and nbytes == 1:
        planes = [
            nibble_pairs([w >> 4 for w in words], s.fill),
            nibble_pairs([w & 15 for w in words], 0),
        ]
        return Symbols(planes, planes[0], places)
    if s.layout == PAIRS:
        tops = [w >> 8 * (nbytes - 1) for w in words]
        inside = [s.base <= v < s.base + 16 for v in tops]
        codes = [v - s.base if ok else s.fill for v, ok in zip(tops, inside, strict=True)]
        for i in s.also:
            inside[i], codes[i] = False, codes[i] ^ 1
        patches = [
            v << 24 | i for i, (v, ok) in enumerate(zip(tops, inside, strict=True)) if not ok
        ]
        planes = [
            nibble_pairs(codes, s.fill),
            *([w >> 8 * p & 255 for w in words] for p in range(nbytes - 2, -1, -1)),
        ]
        return Symbols(planes, codes, places, patches)
    out = Symbols([], [w >> 8 * (nbytes - 1) for w in words], places)
    for p in range(nbytes):
        modes = s.planes[p].modes if p < len(s.planes) else NONE
        each = [modes] * len(tiles) if isinstance(modes, int) else list(modes)
        cut = [[[w >> 8 * (nbytes - 1 - p) & 255 for w in row] for row in one] for one in tiles]
        out.planes.append(
            [v for one, mode in zip(cut, each, strict=True) for v in residuals(one, mode)]
        )
    return out


# ---- contexts ------------------------------------------------------------------------------------
def classes_of(symbols: Symbols, p: int, spec: MapSpec, s: Segment) -> list[int]:
    """R9.12 to R9.14: the class of each symbol of plane `p`."""
    if spec.kind == PLANE:
        return [spec.classes[v] for v in symbols.first]
    places = symbols.places[::2] if len(symbols.planes[p]) < len(symbols.places) else symbols.places
    if spec.kind == POSITION:
        return [spec.classes[8 * (i % 8) + j % 8] for _, _, i, j in places]
    rows, cols = s.row_classes, s.col_classes
    return [spec.classes[4 * rows[r % len(rows)] + cols[c % len(cols)]] for r, c, _, _ in places]


def scale_bytes(height: int, width: int, s: Segment) -> bytes:
    """R10.10: classes of the rows, then of the columns, two bits each."""
    both = repeated(s.row_classes, height) + repeated(s.col_classes, width)
    both += [0] * (-len(both) % 4)
    return bytes(
        a | b << 2 | c << 4 | d << 6
        for a, b, c, d in zip(both[::4], both[1::4], both[2::4], both[3::4], strict=True)
    )


# ---- entropy coding ------------------------------------------------------------------------------
def frequencies(symbols: Sequence[int], prob_bits: int) -> tuple[int, ...]:
    """A legal table for some symbols of at least two kinds;
    not the package's choice, and no worse for that.
    """
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
    return (
        "0" * (quotient.bit_length() - 1)
        + f"{quotient:b}"
        + (f"{value & (1 << k) - 1:0{k}b}" if k else "")
    )


def rans(
    symbols: list[int],
    tables: Sequence[TableSpec],
    classes: list[int] | None = None,
    early: Sequence[int] = (),
) -> bytes:
    """Chapter 9: an interleaved rANS stream, one symbol after another, last one first;
    `tables` has one for each class; `early` as of `Segment`.
    """
    early = (*early, *(0,) * (32 - len(early)))
    freqs, bits = [t.freq or () for t in tables], tables[0].prob_bits
    starts = [[sum(f[:s]) for s in range(256)] for f in freqs]
    padding = -len(symbols) % 128
    symbols = symbols + [max(range(256), key=lambda s: (freqs[0][s], -s))] * padding
    classes = (classes or [0] * (len(symbols) - padding)) + [0] * padding
    state, words = [1 << 16] * 32, list[int]()
    for step in range(len(symbols) // 32 - 1, -1, -1):
        for lane in range(31, -1, -1):
            i = step // 4 * 128 + lane * 4 + step % 4
            f, start = freqs[classes[i]][symbols[i]], starts[classes[i]][symbols[i]]
            if state[lane] >= f << 32 - bits or step < early[lane]:
                words.append(state[lane] & 0xFFFF)
                state[lane] >>= 16
            state[lane] = (state[lane] // f << bits) + state[lane] % f + start
    return struct.pack("<32I", *state) + struct.pack(f"<{len(words)}H", *reversed(words))
