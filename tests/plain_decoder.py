"""A decoder of segment records straight from the spec, in plain loops: of the package it takes what
the index says, and nothing else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

SPEC = (Path(__file__).resolve().parent.parent / "spec" / "wcodec.md").read_text(encoding="utf-8")


def rans(stream: bytes, n: int, table_of: Callable[[int], Any]) -> list[int]:
    """R9.2 to R9.4, R9.9, R9.11: `n` symbols; `table_of(i)` is the table of symbol i."""
    x = list(struct.unpack("<32I", stream[:128]))
    words, taken = struct.unpack(f"<{len(stream) // 2 - 64}H", stream[128:]), 0
    out = [0] * (-(-n // 128) * 128)
    for step in range(len(out) // 32):
        for lane in range(32):
            i = step // 4 * 128 + lane * 4 + step % 4
            bits, symbol_at, freq, start = slots(table_of(i if i < n else -1))
            slot = x[lane] % (1 << bits)
            s = out[i] = symbol_at[slot]
            x[lane] = freq[s] * (x[lane] >> bits) + slot - start[s]
            if x[lane] < 1 << 16:
                x[lane], taken = x[lane] << 16 | words[taken], taken + 1
    assert x == [1 << 16] * 32
    assert len(words) - taken < 8
    return out[:n]


_SLOTS: dict[int, tuple[Any, tuple[int, list[int], list[int], list[int]]]] = {}


def slots(table: Any) -> tuple[int, list[int], list[int], list[int]]:
    """Sum of a table as a power of two, the symbol of each slot, frequencies and first slots."""
    if id(table) not in _SLOTS:
        freq = [int(f) for f in table.freq]
        start = [sum(freq[:s]) for s in range(256)]
        _SLOTS[id(table)] = (
            table,
            (table.prob_bits, [s for s in range(256) for _ in range(freq[s])], freq, start),
        )
    return _SLOTS[id(table)][1]


# ---- modes ---------------------------------------------------------------------------------------
@cache
def lifting(transform: int) -> tuple[list[int], list[list[int]]]:
    """Order and rows of the table in chapter 8."""
    name = ("", "dct", "adst")[transform]
    found = re.search(
        rf"{name.upper()}, order (.*?):\n\n<!-- {name} -->\n.*?\n.*?\n(.*?)<!--", SPEC, re.S
    )
    assert found
    return [int(k) for k in found[1].split(",")], [
        [int(v) for v in line.strip("|").split("|")] for line in found[2].splitlines()
    ]


def signed(v: int) -> int:
    v %= 256
    return v - 256 if v > 127 else v


def undo(coefficients: list[int], transform: int) -> list[int]:
    """R8.4, one group."""
    order, rows = lifting(transform)
    y = [0] * 8
    for k, v in enumerate(coefficients):
        y[order[k]] = signed(v)
    for a, b, p, u, r in reversed(rows):
        for t, s, c in ((a, b, r), (b, a, u), (a, b, p)):
            y[t] = signed(y[t] - ((c * y[s] + 64) >> 7))
    return [v % 256 for v in y]


def tile_of(coded: list[int], height: int, width: int, mode: int) -> list[list[int]]:
    """R7.3 to R7.6, R8.4: a tile from what its stream holds."""
    v = [coded[r * width : (r + 1) * width] for r in range(height)]
    prediction, transform = mode & 15, mode >> 4
    if transform:
        for r0 in range(0, height // 8 * 8, 8):
            for c in range(width):
                for i, value in enumerate(undo([v[r0 + k][c] for k in range(8)], transform)):
                    v[r0 + i][c] = value
        for row in v:
            for c0 in range(0, width // 8 * 8, 8):
                row[c0 : c0 + 8] = undo(row[c0 : c0 + 8], transform)
    for r in range(height):
        for c in range(width):
            if prediction == 0:
                q = 128 if transform else 0
            elif r == 0 or c == 0:
                q = v[0][c - 1] if c else v[r - 1][0] if r else 0
            else:
                left, top, corner = v[r][c - 1], v[r - 1][c], v[r - 1][c - 1]
                q = (left, top, (left + top) >> 1, left + top - corner)[prediction - 1]
            v[r][c] = (v[r][c] + q) % 256
    return v


# ---- a segment -----------------------------------------------------------------------------------
class Record:
    """The record of segment `k` of a tensor, and what the index says of it."""

    def __init__(self, data: bytes, at: int, t: Any, tables: Any, k: int) -> None:
        g, self.k, self.tables, self.dtype = t.geometry, k, tables, t.coded_dtype
        self.s = {
            name: [int(v) for v in getattr(t.segments, name)[..., k].reshape(-1)]
            for name in t.segments.__slots__
        }
        across = -(-g.cols // g.segment_cols)
        self.row, self.col = k // across * g.segment_rows, k % across * g.segment_cols
        self.height = min(g.segment_rows, g.rows - self.row)
        self.width = min(g.segment_cols, g.cols - self.col)
        self.n, self.data, self.at = self.height * self.width, data, at
        h, w = g.tile_rows, g.tile_cols
        self.tiles = [
            (r, c, min(h, self.height - r), min(w, self.width - c))
            for r in range(0, self.height, h)
            for c in range(0, self.width, w)
        ]
        self.places = [
            (r + i, c + j, i, j)
            for r, c, height, width in self.tiles
            for i in range(height)
            for j in range(width)
        ]

    def take(self, nbytes: int) -> bytes:
        """The next part, behind which the record goes on at a multiple of 16."""
        part = self.data[self.at : self.at + nbytes]
        self.at += -(-nbytes // 16) * 16
        return part

    def words(self) -> list[list[int]]:
        """Chapter 10: rows of words."""
        nbytes, out = self.dtype.word_nbytes, [[0] * self.width for _ in range(self.height)]
        if self.s["layout"] == [0]:
            raw = self.take(self.n * nbytes)
            values = [
                int.from_bytes(raw[i : i + nbytes], "little") for i in range(0, len(raw), nbytes)
            ]
            return [values[r * self.width : (r + 1) * self.width] for r in range(self.height)]
        for (r, c, _, _), mapped in zip(self.places, self.mapped(), strict=True):
            out[r][c] = self.word(mapped)
        return out

    def word(self, m: int) -> int:
        """R5.2, backwards."""
        b, e = 8 * self.dtype.word_nbytes, self.dtype.exponent_bits
        if self.dtype.word_map.name == "EXPONENT_FIRST":
            f = b - 1 - e
            return (m >> f & 1) << (b - 1) | m >> (f + 1) << f | m % (1 << f)
        return m ^ 1 << (b - 1) if self.dtype.word_map.name == "OFFSET" else m

    def mapped(self) -> list[int]:
        """The mapped word of each element."""
        nbytes, pairs = self.dtype.word_nbytes, self.s["layout"] == [2]
        modes = {p: self.one_mode(p) for p in range(nbytes)}
        own = [p for p in range(len(self.s["coder"])) if self.s["prediction"][p] == 255]
        stored = self.take(len(own) * len(self.tiles))
        for i, p in enumerate(own):
            modes[p] = list(stored[i * len(self.tiles) : (i + 1) * len(self.tiles)])
        used = [
            self.tables.maps[m]
            for m, coder in zip(self.s["table"], self.s["coder"], strict=True)
            if coder == 4
        ]
        scales = (
            self.take(-(-(self.height + self.width) // 4))
            if any(m.kind == 3 for m in used)
            else b""
        )
        classes = [b >> 2 * i & 3 for b in scales for i in range(4)]
        planes: list[list[int]] = []
        for p in range(2 if nbytes == 1 and pairs else nbytes):
            symbols = self.plane(p, planes, classes)
            planes.append(symbols if pairs else self.restored(symbols, modes[p]))
        if not pairs:
            return [int.from_bytes(bytes(element), "big") for element in zip(*planes, strict=True)]
        halves = [
            [h for v in plane for h in (v & 15, v >> 4)][: self.n]
            for plane in planes[: 1 + (nbytes == 1)]
        ]
        if nbytes == 1:
            return [high << 4 | low for high, low in zip(*halves, strict=True)]
        tops = [self.s["base"][0] + code for code in halves[0]]
        patches = self.take(4 * self.s["n_patches"][0])
        for (patch,) in struct.iter_unpack("<I", patches):
            tops[patch & 0xFFFFFF] = patch >> 24
        return [
            int.from_bytes(bytes(element), "big") for element in zip(tops, *planes[1:], strict=True)
        ]

    def one_mode(self, p: int) -> list[int]:
        return [self.s["prediction"][p]] * len(self.tiles)

    def plane(self, p: int, planes: list[list[int]], classes: list[int]) -> list[int]:
        """R10.5: the symbols of a plane."""
        half = self.s["layout"] == [2] and (p == 0 or self.dtype.word_nbytes == 1)
        n = (self.n + 1) // 2 if half else self.n
        coder = self.s["coder"][p]
        number = self.s["table"][p]
        if coder == 0:
            return list(self.take(n))
        if coder == 1:
            return [number] * n
        stream = self.take(16 * self.s["n_units"][p])
        if coder == 2:
            return rans(stream, n, lambda i: self.tables[number])
        context_map = self.tables.maps[number]
        contexts = self.contexts(context_map.kind, planes, classes, half)

        def table_of(i: int) -> Any:
            return self.tables[
                context_map.tables[0 if i < 0 else context_map.class_of[contexts[i]]]
            ]

        return rans(stream, n, table_of)

    def contexts(
        self, kind: int, planes: list[list[int]], classes: list[int], half: bool
    ) -> list[int]:
        """R9.13, R9.14: the context of each symbol."""
        if kind == 1:
            if self.s["layout"] == [2] and self.dtype.word_nbytes > 1:
                return [code for v in planes[0] for code in (v & 15, v >> 4)]
            return planes[0]
        places = self.places[::2] if half else self.places
        if kind == 2:
            return [8 * (i % 8) + j % 8 for _, _, i, j in places]
        return [4 * classes[r] + classes[self.height + c] for r, c, _, _ in places]

    def restored(self, symbols: list[int], modes: list[int]) -> list[int]:
        """A plane of BYTES, tile by tile."""
        out, at = list[int](), 0
        for (_, _, height, width), mode in zip(self.tiles, modes, strict=True):
            out += [
                v
                for row in tile_of(symbols[at : at + height * width], height, width, mode)
                for v in row
            ]
            at += height * width
        return out


def decode(data: bytes, t: Any, tables: Any) -> bytes:
    """The words of a tensor, as they are coded (R12.5 is left to the caller)."""
    rows, at = [[0] * t.geometry.cols for _ in range(t.geometry.rows)], t.payload_offset
    for k in range(t.geometry.n_segments):
        record = Record(data, at, t, tables, k)
        for r, words in enumerate(record.words()):
            rows[record.row + r][record.col : record.col + record.width] = words
        at = record.at
    assert at == t.payload_offset + t.payload_nbytes
    return b"".join(w.to_bytes(t.coded_dtype.word_nbytes, "little") for row in rows for w in row)
