# fmt: off
# One case a paragraph: these are tables, and read as such.
"""Files that every decoder must read."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from typing import Any

from assembler import File, Image, Tensor, assemble
from assembler_coding import (
    AVG,
    BYTES,
    CONSTANT,
    DTYPES,
    LEFT,
    NONE,
    PAIRS,
    PLAIN,
    PLANAR,
    RANS,
    TOP,
    Plane,
    Segment,
    TableSpec,
)
from cases import Case, assembled, encoded, n_words, tensor

Recipe = dict[str, Any]
PAIR_DTYPES = [d for d, row in DTYPES.items() if row[1] == 1 or row[3] == "exponent_first"]
FORCED: dict[str, Any] = {"force": True}


# ---- recipes -------------------------------------------------------------------------------------
def weights(seed: int, mantissa_bits: int, top: int, depth: int) -> Recipe:
    return {"recipe": "weights", "seed": seed, "mantissa_bits": mantissa_bits, "top": top,
            "depth": depth}


def bell(seed: int, n: int = 4, shift: int = 4, add: int = 0) -> Recipe:
    return {"recipe": "bell", "seed": seed, "n": n, "shift": shift, "add": add}


def choice(seed: int, *values: int) -> Recipe:
    return {"recipe": "choice", "seed": seed, "values": [hex(v) for v in values]}


def smooth(seed: int, width: int, down: int, across: int, both: int = 0, noise: int = 3,
           shift: int = 0) -> Recipe:
    return {"recipe": "smooth", "seed": seed, "width": width, "down": down, "across": across,
            "both": both, "noise": noise, "shift": shift}


def constant(value: int) -> Recipe:
    return {"recipe": "constant", "value": hex(value)}


def counter(start: int = 0, step: int = 1) -> Recipe:
    return {"recipe": "counter", "start": hex(start), "step": step}


def noise(seed: int, shift: int = 0) -> Recipe:
    return {"recipe": "splitmix64", "seed": seed, "shift": shift}


def hexes(layout: str, *words: int) -> Recipe:
    return {"recipe": "hex", "bytes": struct.pack(f"<{len(words)}{layout}", *words).hex()}


def bf16(seed: int) -> Recipe:
    return weights(seed, 7, 122, 14)


TYPICAL: dict[str, Recipe] = {
    "opaque": bell(1), "bool": choice(2, 0, 0, 0, 1), "uint8": bell(3), "int8": bell(4, 4, 4, -32),
    "uint16": bell(5, 8, 0), "int16": bell(6, 8, 0, -1020), "uint32": bell(7, 8, 0),
    "int32": bell(8, 8, 0, -1020), "uint64": bell(9, 8, 0), "int64": bell(10, 8, 0, -1020),
    "float16": weights(11, 10, 13, 10), "bfloat16": bf16(12), "float32": weights(13, 23, 122, 14),
    "float64": weights(14, 52, 1020, 20), "float8_e4m3fn": weights(15, 3, 9, 8),
    "float8_e5m2": weights(16, 2, 17, 12), "float8_e8m0fnu": bell(17, 4, 6, 120),
    "float8_e4m3fnuz": weights(18, 3, 9, 8), "float8_e5m2fnuz": weights(19, 2, 17, 12),
    "complex64": weights(20, 23, 122, 14), "complex128": weights(21, 52, 1020, 20),
}


# ---- written by the encoder ----------------------------------------------------------------------
def dtypes() -> Iterator[Case]:
    for d, (_, nbytes, per, kind, _) in DTYPES.items():
        rules = "R4.31 R5.1 R5.3" + (" R6.2" if per == 2 else "")
        named = ("F4",) if d == "opaque" else ()
        one = [("w", d, (12, 40) if nbytes < 8 else (7, 21), TYPICAL[d], *named)]
        yield encoded(f"accept/bytes_{d}", f"{d}, word map {kind}, every plane coded.",
                      f"{rules} R5.2 R5.4 R9.8", "", one, layout="bytes", **FORCED)
        short = [("w", d, (5, 7), TYPICAL[d], *named)]
        yield encoded(f"accept/raw_{d}", f"{d}: words of {nbytes} bytes as they are.",
                      f"{rules} R5.5 R10.7", "", short, layout="raw")
    for d in PAIR_DTYPES:
        one = [("w", d, (21, 33), TYPICAL[d])]
        text = "both halves of a byte as codes" if DTYPES[d][1] == 1 else "codes of a window"
        yield encoded(f"accept/pairs_{d}", f"{d} in nibble pairs: {text}.", "R5.6 R5.7 R5.9", "",
                      one, layout="pairs", **FORCED)


def patterns() -> Iterator[Case]:
    for d in ("bfloat16", "float16", "int16", "uint16"):
        text = (f"All 65,536 patterns of {d}, one row for each high byte; "
                "prediction chosen by the encoder.")
        yield encoded(f"accept/all_{d}", text, "R5.1 R5.2 R7.3 R7.5", "AllPatterns",
                      [("w", d, (256, 256), counter())])
    for d, row in DTYPES.items():
        if row[1] == 1:
            text = f"All 256 patterns of {d}, every second one backwards."
            yield encoded(f"accept/all_{d}", text, "R5.1 R5.2", "AllPatterns",
                          [("w", d, (256,), counter(0, 127))], layout="bytes", **FORCED)
    nans = {
        "bfloat16": hexes("H", 0x7F81, 0x7FC0, 0xFF81, 0xFFFF, 0x7F80, 0xFF80, 0x8000, 0x0000,
                          0x0001, 0x807F, 0x0080),
        "float16": hexes("H", 0x7C01, 0x7E00, 0xFC01, 0xFFFF, 0x7C00, 0xFC00, 0x8000, 0x0000,
                         0x0001, 0x83FF, 0x0400),
        "float32": hexes("I", 0x7F800001, 0x7FC00000, 0xFF800001, 0xFFFFFFFF, 0x7F800000,
                         0x80000000, 1, 0x807FFFFF, 0x00800000),
        "float64": hexes("Q", 0x7FF0000000000001, 0x7FF8 << 48, 0xFFF0DEADBEEF0001, (1 << 64) - 1,
                         0x7FF << 52, 1 << 63, 1, (1 << 52) - 1),
        "complex64": hexes("I", 0x7F800001, 0x80000000, 0x80000000, 0xFFC00123, 0x00000001,
                           0x7F800000),
        "float8_e4m3fn": hexes("B", 0x7F, 0xFF, 0x80, 0x00, 0x01, 0x87, 0x08, 0x7E),
        "float8_e5m2": hexes("B", 0x7D, 0x7E, 0xFF, 0x7C, 0xFC, 0x80, 0x01, 0x83),
        "float8_e4m3fnuz": hexes("B", 0x80, 0x00, 0x01, 0x7F, 0xFF),
    }
    for d, recipe in nans.items():
        n = len(recipe["bytes"]) // 2 // (DTYPES[d][1] * DTYPES[d][2])
        text = ("Signalling and quiet NaNs with payloads, infinities, -0, "
                "the smallest and largest subnormal.")
        yield encoded(f"accept/special_{d}", text, "R5.1 R5.2", "SpecialValues",
                      [("w", d, (n,), recipe)], layout="bytes")
    for d in ("bfloat16", "float32"):
        nan = "0x7f81" if d == "bfloat16" else "0x7f800001"
        recipe = TYPICAL[d] | {"set": [[0, nan], [500, "0x8000"], [777, "0x1"]]}
        text = "NaN, subnormal and -0 among ordinary weights: patches."
        yield encoded(f"accept/special_in_pairs_{d}", text, "R5.1 R10.8", "SpecialValues Patches",
                      [("w", d, (28, 28), recipe)], layout="pairs", **FORCED)


def shapes() -> Iterator[Case]:
    for d, r in (("uint8", constant(7)), ("bfloat16", hexes("H", 0x7F81)),
                 ("complex128", hexes("Q", 1, 1 << 63))):
        yield encoded(f"accept/rank_0_{d}", "A scalar: one row, one column.", "R6.2 R6.4", "",
                      [("", d, (), r)])
    for name, shape in {"0": (0,), "3x0x5": (3, 0, 5), "0x0": (0, 0),
                        "0_after_large": (1 << 40, 0)}.items():
        text = "No words: no segments, no segment table, no payload."
        yield encoded(f"accept/empty_{name}", text, "R4.36 R6.4 R4.35", "EmptyTensor",
                      [("w", "bfloat16", shape, constant(0))])
    for name, shape in {
        "1": (1,), "1x1x1": (1, 1, 1), "1d_1000": (1000,), "3d": (3, 5, 70),
        "conv_4x8x3x3": (4, 8, 3, 3), "column": (300, 1), "row": (1, 300),
        "rank_32": (1,) * 27 + (2, 3, 1, 5, 7), "rank_32_twos": (2,) * 8 + (1,) * 24,
    }.items():
        yield encoded(f"accept/shape_{name}", f"Rank {len(shape)}.", "R6.1 R6.2", "",
                      [("w", "bfloat16", shape, bf16(31))], layout="bytes", **FORCED)
    zeros = (1,) * 30 + (0, 4)
    yield encoded("accept/rank_32_empty", "Rank 32 with a dimension of 0.", "R6.1 R6.4",
                  "EmptyTensor", [("w", "int8", zeros, constant(0))])


def sizes() -> Iterator[Case]:
    groups = {1: "one symbol", 2: "two", 127: "a group less one", 128: "a group",
              129: "a group and one", 255: "", 256: "two groups", 257: ""}
    for n, text in {**groups, 383: "", 384: "three groups", 385: "", 4095: "", 4096: "",
                    4097: ""}.items():
        text = f"{n} symbols: {text}." if text else f"{n} symbols."
        recipe = bell(40) | ({"set": [[0, "0xff"]]} if n > 1 else {})
        rules = "R9.2 R9.4 R9.5 R9.8 R9.9"
        yield encoded(f"accept/n_{n}_bytes", text, rules, "Bracket", [("w", "uint8", (n,), recipe)],
                      layout="bytes", **FORCED)
    for n in (1, 2, 3, 255, 256, 257, 511, 512, 513):
        alone = ", the last code alone" if n % 2 else ""
        text = f"{n} words: {-(-n // 2)} symbols of two codes{alone}."
        rules = "R5.6 R9.4 R9.5 R10.3"
        yield encoded(f"accept/n_{n}_pairs", text, rules, "Bracket",
                      [("w", "bfloat16", (n,), bf16(41))], layout="pairs", **FORCED)
        if n > 3:
            yield encoded(f"accept/n_{n}_pairs_int8", text, rules, "Bracket",
                          [("w", "int8", (n,), bell(42, 4, 4, -32))], layout="pairs", **FORCED)
    for n in (15, 16, 17):
        text = f"{n} bytes of words: a record is padded to 16."
        yield encoded(f"accept/n_{n}_raw", text, "R10.2 R10.6", "Bracket",
                      [("w", "uint8", (n,), noise(43))], layout="raw")


def cuts() -> Iterator[Case]:
    plane = [("w", "bfloat16", (28, 70), bf16(50))]
    for name, options in {
        "short_last_segment": {"segment": (16, 70)}, "ragged_both_ways": {"segment": (16, 48)},
        "narrow_bands": {"segment": (28, 16)}, "one_row_segments": {"segment": (1, 70)},
        "larger_than_matrix": {"segment": (64, 64)},
    }.items():
        for layout in ("bytes", "pairs"):
            words = plane if name != "one_row_segments" else [("w", "bfloat16", (6, 70), bf16(50))]
            height, width = options["segment"]
            text = f"Segments of {height} x {width} over {words[0][2][0]} x 70 words."
            yield encoded(f"accept/{layout}_{name}", text, "R6.4 R6.5 R6.6", "Ragged", words,
                          layout=layout, **options, **FORCED)
    for name, options in {
        "16x16": {"segment": (32, 48), "tile": (16, 16)},
        "16_rows": {"segment": (32, 48), "tile": (16, 48)},
        "16_columns": {"segment": (32, 48), "tile": (32, 16)},
        "32x16": {"segment": (64, 64), "tile": (32, 16)},
    }.items():
        sizes = *options["tile"], *options["segment"]
        text = "Tiles of {} x {} in segments of {} x {}.".format(*sizes)
        rules = "R6.7 R6.8 R6.9"
        for layout in ("bytes", "pairs", "raw") if name == "16x16" else ("bytes", "pairs"):
            more = FORCED if layout != "raw" else {}
            small = [("w", "bfloat16", (34, 66), bf16(51))]
            yield encoded(f"accept/tiles_{name}_{layout}", text, rules, "Ragged", small,
                          layout=layout, predictor="none", **options, **more)
    for mode in ("left", "top", "avg", "planar"):
        for d, width in (("uint8", 65), ("bfloat16", 77), ("uint32", 64)):
            steps = (3, 5, 1, 7) if d != "uint32" else (3000, 70000, 111, 0xFFF)
            r = smooth(60, width, *steps)
            text = f"{mode.upper()} in every coded plane of {d}; ragged tiles."
            rules = "R7.1 R7.3 R7.5 R7.6 R6.8"
            options = {"segment": (16, width)}
            if d == "bfloat16":
                options = {"segment": (32, 32), "tile": (16, 16)}
            yield encoded(f"accept/{mode}_{d}", text, rules, "Prediction Ragged",
                          [("w", d, (21, width), r)], predictor=mode, layout="bytes", **options,
                          **FORCED)
    for mode, start in (("left", 1), ("top", 7), ("avg", 0)):
        text = "Residuals that are all equal, or all but the first: no plane of one value."
        line = [("w", "uint8", (100,) if mode != "top" else (3, 64),
                 counter(start) if mode != "top"
                 else smooth(63, 64, 7, 0, 0, 0) | {"set": [[0, "0x7"]]})]
        yield encoded(f"accept/{mode}_equal_residuals", text, "R7.3 R7.5 R10.5", "Prediction", line,
                      predictor=mode, layout="bytes", **FORCED)
    both = [("w", "int8", (64, 96), smooth(61, 96, 2, 1, 0, 1))]
    yield encoded("accept/auto_tiles_int8", "The encoder looks at each tile.", "R7.1 R10.4",
                  "Prediction", both, segment=(64, 96), tile=(16, 16), layout="bytes")
    for bits in (9, 10, 11):
        for layout in ("bytes", "pairs"):
            text = f"Tables of sum 2^{bits}."
            yield encoded(f"accept/prob_bits_{bits}_{layout}", text, "R9.1 R9.6 R9.7", "",
                          [("w", "bfloat16", (20, 50), bf16(62))], layout=layout, prob_bits=bits,
                          **FORCED)


def wholes() -> Iterator[Case]:
    yield encoded("accept/auto_bfloat16", "The encoder's own choices: nibble pairs.", "R5.6", "",
                  [("w", "bfloat16", (64, 96), bf16(70))])
    yield encoded("accept/auto_int8", "The encoder's own choices.", "R5.4", "",
                  [("w", "int8", (64, 128), bell(71, 4, 4, -32))])
    yield encoded("accept/auto_noise", "Noise: the encoder stores the words.", "R5.5", "",
                  [("w", "uint32", (20, 30), noise(72))])
    yield encoded("accept/auto_constant", "One value: planes without a byte of payload.",
                  "R10.5 R10.6", "", [("w", "bfloat16", (64, 64), constant(0x3F80))])
    mixed = smooth(73, 64, 6, 0, 0, 31)
    yield encoded("accept/auto_tables", "Segments unlike each other.", "R9.7 R10.5", "",
                  [("w", "uint8", (40, 64), mixed)], segment=(10, 64), layout="bytes", **FORCED)
    many = [
        (f"layers.{i}.weight", "bfloat16" if i % 3 else "int8", (i % 5 + 1, i + 1), noise(80 + i))
        for i in range(25)
    ]
    yield encoded("accept/many_tensors", "Twenty-five tensors; a deflated index.",
                  "R4.15 R4.16 R4.33", "DeflatedIndex", many)
    names = ["", "a", "a/b\\c.d", "\0", "gewicht.größe", "重み", "\U0001f9ee" * 3, "e\u0301",
             "\u00e9", "n" * 1000]
    named = [(n, "uint8", (2,), counter(i)) for i, n in enumerate(names)]
    text = "The empty name, controls, accents in two forms, four-byte characters, a long name."
    yield encoded("accept/names", text, "R2.6 R4.32", "", named)
    yield encoded("accept/no_tensors", "A file without tensors: 96 bytes.", "R4.6 R4.16 R4.33", "",
                  [])
    pairs = {"": "", "schlüssel": "wert\n", "key": "値 " * 10}
    yield encoded("accept/metadata", "Texts to keep, among them empty ones.", "R4.23 R4.24", "",
                  [("w", "uint8", (3,), counter())], metadata=pairs)
    tensors = [("b", "float16", (3, 4), TYPICAL["float16"]), ("a", "bfloat16", (2, 5), bf16(90)),
               ("c", "opaque", (7,), noise(91), "F4")]
    text = "A safetensors file: its header comes back before the tensors, its odd spaces too."
    yield encoded("accept/source", text, "R4.21 R4.22 R12.1", "", tensors,
                  source=_safetensors(tensors), metadata={"format": "pt"})
    yield encoded("accept/source_alone", "A header and no tensors.", "R4.22", "", [],
                  source=struct.pack("<Q", 8) + b"{}      ")


def _safetensors(tensors: list[tuple[Any, ...]]) -> bytes:
    names, at, header = {"float16": "F16", "bfloat16": "BF16", "opaque": "F4"}, 0, dict[str, Any]()
    for name, dtype, shape, *_ in tensors:
        n = n_words(shape, dtype) * DTYPES[dtype][1]
        shown = [math.prod(shape) * 2] if dtype == "opaque" else list(shape)
        header[name] = {"dtype": names[dtype], "shape": shown, "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header, indent=1).encode() + b"   "
    return struct.pack("<Q", len(text)) + text


# ---- assembled by hand ---------------------------------------------------------------------------
def R(table: int = 0, modes: int | tuple[int, ...] = NONE) -> Plane:  # noqa: N802
    return Plane(RANS, table, modes)


def K(value: int) -> Plane:  # noqa: N802
    return Plane(CONSTANT, value)


P = Plane(PLAIN)


def one(t: Tensor, *tables: TableSpec) -> File:
    """A file of one tensor; if no tables are given, of one table if it needs one."""
    coded = any(p.coder == RANS for s in t.segments for p in s.planes)
    return File((t,), tables or (TableSpec(),) * coded)


def base_files() -> dict[str, tuple[str, str, str, File]]:
    """Files that refused ones are made from, with an index that is not compressed:
    comment, rules, flags, file.
    """
    outliers = {"set": [[0, "0x0"], [17, "0x7f81"], [255, "0xffff"], [256, "0x8001"], [319, "0x1"]]}
    pairs = tensor("pairs", "bfloat16", (20, 16), bf16(101) | outliers, (16, 16),
                   (Segment(PAIRS, (R(), P), 108, 5),))
    tiled = tensor("tiles", "uint8", (40, 48), smooth(102, 48, 2, 3, 0, 1), (32, 48), (
        Segment(BYTES, (R(0, (NONE, LEFT, TOP, AVG, PLANAR, LEFT)),)),
        Segment(BYTES, (R(0, (AVG, PLANAR, TOP)),))), (16, 16))
    both = tensor("both", "bfloat16", (33, 18), smooth(103, 18, 40, 77, 3, 15), (48, 18), (
        Segment(BYTES, (R(0, (TOP, LEFT, AVG)), R(1, (PLANAR, NONE, LEFT)))),), (16, 18))
    plain = tensor("bytes", "uint8", (20, 30), bell(100, 4, 6), (16, 30), (Segment(BYTES, (R(),)),))
    coders = tensor("coders", "uint32", (9, 14), smooth(104, 14, 1 << 17, 1300, 0, 0xFF), (8, 14),
                    (Segment(BYTES, (K(0), R(1), P, R(0))),))
    source = struct.pack("<Q", 2) + b"{}"
    records = File(
        (tensor("first", "float16", (3, 20), TYPICAL["float16"], (3, 20),
                (Segment(BYTES, (R(), P)),)),
         tensor("second", "uint8", (3, 4), constant(9), (3, 4), (Segment(BYTES, (K(9),)),))),
        (TableSpec(),), (("key", "value"), ("other", "")), source,
        ("tables", "source", "metadata", (99, 0, b"ignored"), "tensor0", "tensor1"),
    )
    return {
        "bytes": ("Two segments of BYTES.", "R5.4 R9.3 R9.9", "Ragged", one(plain)),
        "pairs": ("Two segments of PAIRS, patches at the first and last index.", "R5.7 R10.8",
                  "Patches Ragged", one(pairs)),
        "tiles": ("A mode for each tile, all five of them, ragged.", "R10.4 R7.4 R7.5 R7.6",
                  "PerTile Ragged", one(tiled)),
        "both_planes": ("Tile modes of both planes, one behind another.", "R10.4 R10.2",
                        "PerTile Ragged", one(both, TableSpec(), TableSpec(10))),
        "coders": ("CONSTANT, RANS and RAW planes in one segment.", "R10.5 R10.6", "Ragged",
                   one(coders, TableSpec(), TableSpec())),
        "raw": ("A segment of words.", "R5.5 R10.7", "",
                one(tensor("raw", "float16", (3, 7), noise(105), (3, 7)))),
        "records": ("All kinds of records.", "R4.17 R4.18 R4.19 R4.20 R4.21 R4.23",
                    "UnusualEncoder", records),
    }


def _two(a: int = 1, b: int = 4095, bits: int = 12) -> tuple[int, ...]:
    freq = [0] * 256
    freq[a], freq[b % 256] = 1, (1 << bits) - 1
    return tuple(freq)


def planes() -> Iterator[tuple[Case, Image]]:
    def pairs(name: str, text: str, rules: str, recipe: Recipe, segment: Segment,
              dtype: str = "bfloat16", shape: tuple[int, ...] = (13, 21),
              *tables: TableSpec) -> tuple[Case, Image]:
        flags = "Patches UnusualEncoder" if "patch" in text.lower() else "UnusualEncoder"
        return assembled(f"accept/{name}", text, rules, flags,
                         one(tensor("w", dtype, shape, recipe, (13, 21), (segment,)), *tables))

    low = choice(110, *(e << 7 | m << 4 for e in range(8) for m in range(8)))
    yield pairs("pairs_base_0", "The lowest window.", "R5.7 R5.8", low, Segment(PAIRS, (R(), P), 0))
    high = choice(111, *(e << 7 | 0x8000 for e in range(245, 256)))
    yield pairs("pairs_base_240", "The highest window, up to 255.", "R5.7 R5.8", high,
                Segment(PAIRS, (R(), P), 240))
    yield pairs("pairs_plane_0_constant", "Two equal codes in each symbol.", "R5.6 R10.5",
                constant(0x3F80), Segment(PAIRS, (K(0x77), K(0)), 120, 7))
    yield pairs("pairs_plane_0_raw", "Codes not coded.", "R5.6 R10.3 R10.5", bf16(112),
                Segment(PAIRS, (P, P), 110))
    yield pairs("pairs_all_coded", "Sign and mantissa under a table too.", "R5.7 R10.5", bf16(113),
                Segment(PAIRS, (R(0), R(1)), 110), "bfloat16", (13, 21), TableSpec(), TableSpec(11))
    yield pairs("pairs_plane_1_constant", "Powers of two: no mantissa, one sign.", "R10.5",
                choice(114, *(e << 7 for e in range(112, 124))), Segment(PAIRS, (R(), K(0)), 112))
    yield pairs("pairs_all_patched", "Every word is outside of the window: patches alone.",
                "R10.8 R10.9", bf16(115), Segment(PAIRS, (K(0x33), P), 200, 3))
    yield pairs("pairs_last_code_filled", "The half of the last byte that no word owns is not 0.",
                "R5.6", bf16(116), Segment(PAIRS, (R(), P), 110, 15))
    yield pairs("pairs_float32_patched", "Three raw planes, patches.", "R5.7 R10.8",
                weights(117, 23, 122, 20) | {"set": [[3, "0x1"], [4, "0x7f800001"]]},
                Segment(PAIRS, (R(), P, P, P), 110), "float32")
    recipe = weights(118, 23, 122, 20) | {"set": [[1, "0x80000000"]]}
    segment = Segment(PAIRS, (R(), P, R(1), P), 110)
    yield pairs("pairs_complex_patched", "Two words an element; a patch.", "R5.7 R6.2", recipe,
                segment, "complex64", (13, 5), TableSpec(), TableSpec())
    yield pairs("pairs_int8_both_coded", "High and low halves under two tables.", "R5.7",
                bell(119, 4, 4, -32), Segment(PAIRS, (R(0), R(1)), 0, 9), "int8", (13, 21),
                TableSpec(), TableSpec(9))
    yield pairs("pairs_int8_low_constant", "Low halves all 0 but for the last pair's missing one.",
                "R5.7 R5.9", choice(120, 0x10, 0xF0, 0x70), Segment(PAIRS, (R(), K(0)), 0, 9),
                "int8")
    tiled = tensor("w", "bfloat16", (40, 40),
                   bf16(121) | {"set": [[i * 97, "0x0"] for i in range(16)]}, (40, 40),
                   (Segment(PAIRS, (R(), P), 110, 2),), (40, 20))
    yield assembled("accept/pairs_patches_in_tiles",
                    "16 patches; their indices count in element order, tile by tile.", "R6.9 R10.8",
                    "Patches UnusualEncoder Bracket", one(tiled))
    needless = tensor("w", "bfloat16", (50,), bf16(151), (1, 50),
                      (Segment(PAIRS, (R(), P), 110, also=(0, 7, 8, 49)),))
    yield assembled("accept/patches_within_window",
                    "Patches of words within the window, under codes of other words.", "R10.8",
                    "Patches UnusualEncoder", one(needless))
    for n in (4, 5):
        few = tensor("w", "bfloat16", (100,), bf16(122) | {"set": [[i, "0x0"] for i in range(n)]},
                     (1, 100), (Segment(PAIRS, (R(), P), 110),))
        yield assembled(f"accept/patches_{n}", f"{n} patches: {4 * n} bytes, padded to 16.",
                        "R10.6 R10.8", "Patches Bracket", one(few))
    mixed = tensor("w", "bfloat16", (40, 20), bf16(123), (10, 20), (
        Segment(), Segment(BYTES, (R(0), P)), Segment(PAIRS, (R(1), P), 110),
        Segment(BYTES, (R(0, TOP), R(2, AVG)))))
    yield assembled("accept/mixed_layouts", "Each segment has another layout.", "R5.3 R5.9 R10.2",
                    "UnusualEncoder", one(mixed, TableSpec(), TableSpec(), TableSpec()))
    raw = tensor("w", "int16", (40, 50), counter(0x3F80, 7), (32, 32), (Segment(),), (16, 16))
    yield assembled("accept/raw_in_tiles", "Words in raster order, whatever the tiles.",
                    "R5.5 R10.7 R6.9", "Ragged", one(raw))
    half = tensor("w", "complex64", (4, 5), weights(124, 23, 122, 14), (4, 3),
                  (Segment(BYTES, (R(), P, P, P)),))
    yield assembled("accept/segment_splits_element",
                    "A segment ends between the two words of a number.", "R6.2 R6.4",
                    "Ragged UnusualEncoder", one(half))
    wide = tensor("w", "uint64", (20, 18), smooth(125, 18, 1 << 40, 3 << 33, 77, (1 << 20) - 1),
                  (20, 18), (
        Segment(BYTES,
                (K(0), K(0), R(0, (TOP, LEFT)), R(1, PLANAR), R(1, (AVG, NONE)), R(2), P,
                 R(2, LEFT))),), (20, 9))
    wide = tensor("w", "uint64", (20, 32), wide.recipe | {"width": 32}, (20, 32), wide.segments,
                  (20, 16))
    yield assembled("accept/eight_planes",
                    "Eight planes: constant, raw, predicted as a whole and by tiles.",
                    "R5.4 R10.4 R7.1", "PerTile", one(wide, TableSpec(), TableSpec(), TableSpec()))
    second = tensor("w", "int16", (32, 32), smooth(126, 32, 20, 30, 0, 7), (32, 32),
                    (Segment(BYTES, (P, R(0, (LEFT, TOP, AVG, PLANAR)))),), (16, 16))
    yield assembled("accept/modes_of_plane_1", "Tile modes of the second plane alone.", "R10.4",
                    "PerTile", one(second))
    thin = tensor("w", "uint8", (40, 17), smooth(127, 17, 5, 9, 0, 3), (40, 17),
                  (Segment(BYTES, (R(0, PLANAR),)),), (40, 17))
    yield assembled("accept/planar_one_tile", "PLANAR over a tile of 40 x 17: sums wrap often.",
                    "R7.6", "Prediction", one(thin))
    for mode, name in ((LEFT, "left"), (TOP, "top"), (AVG, "avg"), (PLANAR, "planar")):
        for shape in ((1, 50), (50, 1)):
            line = tensor("w", "uint8", shape, smooth(128, shape[1], 3, 7, 0, 15), shape,
                          (Segment(BYTES, (R(0, mode),)),))
            yield assembled(f"accept/{name}_{shape[0]}x{shape[1]}",
                            "A tile of one row or column: its neighbours are all there is.", "R7.5",
                            "Prediction Bracket", one(line))
        wrap = tensor("w", "uint8", (16, 16), choice(129, 0, 255, 254, 1), (16, 16),
                      (Segment(BYTES, (R(0, mode),)),))
        yield assembled(f"accept/{name}_wraps",
                        "Neighbours of 0 and 255: the sum of two has 9 bits.", "R7.3 R7.6",
                        "Prediction", one(wrap))
    order = tensor("w", "uint8", (44, 104), counter(0, 7), (32, 64), (Segment(BYTES, (P,)),),
                   (16, 32))
    yield assembled("accept/element_order",
                    "A raw plane shows the order of elements: tile by tile.", "R6.8 R6.9 R10.5",
                    "Ragged UnusualEncoder", one(order))


def tables() -> Iterator[tuple[Case, Image]]:
    def with_tables(name: str, text: str, rules: str, recipe: Recipe, *specs: TableSpec,
                    segments: tuple[Segment, ...] = (Segment(BYTES, (R(),)),)) -> tuple[Case,
                                                                                        Image]:
        return assembled(f"accept/{name}", text, rules, "UnusualEncoder",
                         one(tensor("w", "uint8", (6, 100), recipe, (2, 100), segments), *specs))

    orders = tuple(TableSpec(9 + k % 4, k=k) for k in range(12))
    row = tuple(Segment(BYTES, (R(k),)) for k in range(12))
    each = tensor("w", "uint8", (12, 100), bell(130), (1, 100), row)
    yield assembled("accept/table_orders", "Tables with codes of all orders k, and all sums.",
                    "R9.6 R9.7 R10.5", "UnusualEncoder", one(each, *orders))
    yield with_tables("table_all_symbols", "Every symbol has a frequency.", "R9.7", noise(131),
                      TableSpec(freq=(16,) * 256))
    yield with_tables("table_first_and_last", "Symbols 0 and 255 alone, 254 zeros between them.",
                      "R9.7", choice(132, 0, 255, 0, 0), TableSpec())
    yield with_tables("table_two_neighbours", "Two symbols.", "R9.6 R9.7", choice(133, 7, 8),
                      TableSpec())
    yield with_tables("table_most_unequal",
                      "Frequencies 1 and 4095: the least that a symbol costs.", "R9.6 R9.9",
                      constant(255) | {"set": [[5, "0x1"]]}, TableSpec(freq=_two(1, 255)),
                      segments=(Segment(BYTES, (R(),)), Segment(BYTES, (R(),)),
                                Segment(BYTES, (K(255),))))
    yield with_tables("table_dear_symbols", "Only symbols of frequency 1: 12 bits each.",
                      "R9.9 R9.10", choice(134, *range(200)), TableSpec(freq=(1,) * 255 + (3841,)))
    yield with_tables("table_fills_with_lowest",
                      "Two equal frequencies: the last group is filled with the lower symbol.",
                      "R9.4", choice(135, 3, 200),
                      TableSpec(freq=tuple(2048 if s in (3, 200) else 0 for s in range(256))))
    yield with_tables("tables_unused", "Tables that no plane uses.", "R4.20", bell(136),
                      TableSpec(), TableSpec(freq=_two()), TableSpec(9, freq=_two(1, 255, 9)))
    none = tensor("w", "uint8", (5,), counter(), (1, 5))
    yield assembled("accept/tables_none", "A TABLES record of 0 tables.", "R4.20", "UnusualEncoder",
                    File((none,), records=("tables", "tensor0")))
    shared = File((tensor("a", "uint8", (300,), bell(137), (1, 300), (Segment(BYTES, (R(),)),)),
                   tensor("b", "int8", (300,), bell(138), (1, 150),
                          (Segment(BYTES, (R(1),)), Segment(BYTES, (R(0),))))),
                  (TableSpec(), TableSpec()))
    yield assembled("accept/tables_shared", "Two tensors under the same tables.", "R4.33 R10.5", "",
                    shared)


def containers() -> Iterator[tuple[Case, Image]]:
    small = tensor("w", "uint8", (20, 30), bell(140), (8, 30), (Segment(BYTES, (R(),)),))
    for width in (0, 1, 2, 4):
        widths = {"all": width}
        if not width:
            widths = {"all": 4, "layout": 0, "base": 0, "n_patches": 0, "coder[0]": 0,
                      "table[1]": 0}
        yield assembled(f"accept/columns_width_{width}",
                        f"Columns of {width} bytes an entry where one value would do." if width
                        else "Columns of one value among wide ones.", "R4.36 R4.37 R4.39",
                        "UnusualEncoder", one(Tensor(**{**small.__dict__, "widths": widths})))
    mixed = {"layout": 1, "base": 2, "n_patches": 4, "coder[0]": 2, "table[0]": 1,
             "prediction[0]": 4, "n_units[0]": 2, "coder[1]": 1, "n_units[1]": 4}
    yield assembled("accept/columns_mixed", "Each column has another width.", "R4.37",
                    "UnusualEncoder", one(Tensor(**{**small.__dict__, "widths": mixed})))
    many = tensor("w", "uint8", (300, 16), smooth(141, 16, 1, 0, 0, 0), (1, 16),
                  tuple(Segment(BYTES, (K(r % 256),)) for r in range(300)))
    yield assembled("accept/300_segments", "300 segments of one value each, no payload.",
                    "R4.34 R4.36 R10.5", "", one(many))
    for name, row_rank in (("rows_all", 3), ("rows_2", 2), ("rows_1", 1), ("rows_none", 0)):
        shaped = tensor("w", "bfloat16", (3, 4, 10), bf16(142), (2, 12), (Segment(BYTES, (P, P)),),
                        row_rank=row_rank)
        yield assembled(f"accept/{name}",
                        f"The first {row_rank} of three dimensions make the rows.", "R6.2 R6.6",
                        "UnusualEncoder", one(shaped))
    large = tensor("w", "uint8", (3, 5), bell(143), (4096, 4096), (Segment(BYTES, (R(),)),),
                   (16, 16))
    yield assembled("accept/segment_2_24",
                    "Segments of 2^24 elements, the most there may be, over 15 words.", "R6.5 R6.7",
                    "Bracket UnusualEncoder", one(large))
    tall = tensor("w", "uint8", (7, 5), bell(144), (1 << 24, 1), (Segment(BYTES, (R(0, TOP),)),),
                  (16, 1))
    yield assembled("accept/segment_one_column",
                    "Segments of one column and 2^24 rows, tiles of 16 x 1.", "R6.5 R6.7 R6.6",
                    "Bracket UnusualEncoder Prediction", one(tall))
    huge = tensor("w", "uint8", (0, 1 << 62), constant(0), (1, 1))
    yield assembled("accept/empty_huge", "No rows of 2^62 bytes: within the limit.", "R4.35 R6.4",
                    "EmptyTensor Overflow", File((huge,)))
    named = tensor("w", "opaque", (9,), noise(145), (1, 9), dtype_name="größe F6_E2M3")
    yield assembled("accept/dtype_name", "Opaque bytes with a name of their dtype.", "R2.6 R4.30",
                    "", File((named,)))
    odd = tensor("w", "uint16", (9,), noise(146), (1, 9), dtype_name="ignored")
    yield assembled("accept/dtype_name_ignored", "A dtype_name where none is due is ignored.",
                    "R4.30", "UnusualEncoder", File((odd,)))
    plain = tensor("w", "uint8", (30,), bell(147), (1, 30), (Segment(BYTES, (P,)),))
    last = File((plain,), (TableSpec(freq=_two()),), (("k", "v"),), struct.pack("<Q", 0),
                ("tables", "tensor0", "metadata", "source"))
    yield assembled("accept/records_late", "METADATA and SOURCE behind the tensor.", "R4.19",
                    "UnusualEncoder", last)
    unknown = File((plain,),
                   records=((0xFFFF, 0, b""), (0, 0, b"x" * 20), "tensor0", (0x8000, 0, b"private"),
                            (8, 0, b"")))
    yield assembled("accept/records_unknown",
                    "Records of unknown types that may be skipped, before and behind.",
                    "R4.17 R4.18", "UnusualEncoder", unknown)
    yield assembled("accept/metadata_empty", "A METADATA record of no pairs.", "R4.24",
                    "UnusualEncoder", File((plain,), records=("metadata", "tensor0")))
    flagged = File((plain,), (), (("k", "v"),),
                   records=((3, 1, struct.pack("<IIcIc", 1, 1, b"k", 1, b"v")), "tensor0"))
    yield assembled("accept/metadata_must_understand",
                    "METADATA with MUST_UNDERSTAND: a known type.", "R4.18", "UnusualEncoder",
                    flagged)
    bare = File((plain,), records=("tensor0",))
    yield assembled("accept/index_stored", "The index as it is.", "R4.14", "", bare)
    for name, deflate in {"level_0": (0, 15), "level_9": (9, 15), "window_9": (6, 9)}.items():
        many_pairs = tuple((f"key {i}", f"value {i}") for i in range(20))
        longer = ": longer than the records" if deflate[0] == 0 else ""
        text = f"A zlib stream of level {deflate[0]}, window 2^{deflate[1]}{longer}."
        yield assembled(f"accept/index_deflated_{name}", text, "R4.12 R4.15",
                        "DeflatedIndex UnusualEncoder",
                        File((plain,), metadata=many_pairs, coding=1, deflate=deflate))
    yield assembled("accept/index_64_times", "The index inflates exactly 64 times.", "R4.14 R4.15",
                    "DeflatedIndex Bracket UnusualEncoder", ratio_file(64))


def ratio_file(ratio: int, more: int = 0) -> File:
    """A file whose index inflates exactly `ratio` times and `more` bytes:
    zeros in an ignorable record.
    """
    plain = tensor("w", "uint8", (30,), bell(148), (1, 30))
    n = 9000
    for _ in range(200):
        file = File((plain,), records=("tensor0", (99, 0, bytes(n))), coding=1, deflate=(9, 15))
        footer = assemble(file).data[-64:]
        stored, raw = struct.unpack("<QQ", footer[8:24])
        if raw == ratio * stored + more:
            return file
        n += ratio * stored + more - raw
    raise ValueError("no size of zeros gives the ratio")


def cases() -> Iterator[Case]:
    """All of them, but for the bases of spoilt files."""
    for group in (dtypes, patterns, shapes, sizes, cuts, wholes):
        yield from group()
    for made in (planes, tables, containers):
        yield from (case for case, _ in made())
