# fmt: off
# One case a paragraph: these are tables, and read as such.
"""Files that every decoder must read: transforms, contexts, duplicates, differences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from assembler import File, Image, Tensor, content_hash
from assembler_coding import (
    ADST,
    AVG,
    BYTES,
    CONTEXT,
    DCT,
    DTYPES,
    LEFT,
    MINUS,
    NONE,
    PAIRS,
    PLANAR,
    PLANE,
    POSITION,
    SCALE,
    TOP,
    XOR,
    MapSpec,
    Plane,
    Segment,
    TableSpec,
)
from cases import U32, Case, assembled, encoded, tensor
from cases_accept import (
    FORCED,
    K,
    P,
    R,
    bell,
    bf16,
    choice,
    constant,
    counter,
    noise,
    one,
    smooth,
    weights,
)

Made = Iterator[tuple[Case, Image]]
PREDICTIONS = {"none": NONE, "left": LEFT, "top": TOP, "avg": AVG, "planar": PLANAR}
TRANSFORMS = {"dct": DCT, "adst": ADST}
ALL_MODES = tuple(t | p for t in (0, DCT, ADST) for p in PREDICTIONS.values())


def C(number: int = 0, modes: int | tuple[int, ...] = NONE) -> Plane:  # noqa: N802
    """A plane under a context map."""
    return Plane(CONTEXT, number, modes)


# ---- transforms ----------------------------------------------------------------------------------
def transforms() -> Made:
    for t, bits in TRANSFORMS.items():
        for p, prediction in PREDICTIONS.items():
            text = (f"{t.upper()} behind {p.upper()}; tiles of 8k + 1 rows and columns, "
                    "and of 8k rows.")
            w = tensor("w", "uint8", (33, 25), smooth(200, 25, 3, 5, 1, 7), (17, 25),
                       (Segment(BYTES, (R(0, bits | prediction),)),))
            yield assembled(f"accept/{t}_{p}", text, "R7.1 R7.3 R7.4 R8.1 R8.2 R8.3 R8.4",
                            "Prediction Transform Ragged", one(w))
    wraps = tensor("w", "uint8", (80, 48), choice(201, 0, 255, 127, 128, 1, 254), (80, 48),
                   (Segment(BYTES, (R(0, ALL_MODES),)),), (16, 16))
    yield assembled("accept/modes_wrap", "All 15 modes on values that make every step wrap.",
                    "R8.1 R8.3 R7.3", "Prediction Transform PerTile", one(wraps))
    ragged = tensor("w", "int8", (42, 93), smooth(202, 93, 2, 3, 0, 3), (51, 95),
                    (Segment(BYTES, (R(0, ALL_MODES),)),), (17, 19))
    yield assembled("accept/modes_ragged",
                    "All 15 modes in tiles of 17 x 19, some of them cut to 8 rows and 17 columns.",
                    "R8.2 R7.1 R10.4", "Prediction Transform PerTile Ragged", one(ragged))
    for shape in ((7, 7), (8, 8), (1, 8), (1, 50), (50, 1), (7, 20), (20, 7), (15, 16), (9, 24)):
        text = f"A tile of {shape[0]} x {shape[1]}: groups of 8, and what is left over."
        if max(shape) < 8:
            text = "No group of 8 in either direction: the residuals as they are."
        some = [tensor(name, "uint8", shape, smooth(203, shape[1], 5, 9, 0, 15), shape,
                       (Segment(BYTES, (R(0, mode),)),))
                for name, mode in (("dct", DCT), ("adst_top", ADST | TOP))]
        yield assembled(f"accept/transform_{shape[0]}x{shape[1]}", text, "R8.2",
                        "Transform Bracket", File(tuple(some), (TableSpec(),), coding=1))
    edges = tensor("w", "uint8", (37, 21), smooth(204, 21, 4, 6, 0, 7), (32, 32),
                   (Segment(BYTES, (R(0, DCT | AVG),)),
                    Segment(BYTES, (R(0, (ADST, DCT | LEFT)),))), (16, 16))
    yield assembled("accept/transform_edges", "Tiles of 16 x 16, at the edges 5 high and 5 wide.",
                    "R8.2 R6.8", "Transform PerTile Ragged", one(edges))
    modes = DCT, ADST | PLANAR, TOP, DCT | LEFT, NONE, ADST, DCT | AVG, ADST | TOP
    planes = tuple(R(p % 2, m) for p, m in enumerate(modes))
    ramp = smooth(205, 9, 1 << 56 | 3 << 40 | 77, 5 << 48 | 9 << 24, 1 << 16, (1 << 20) - 1)
    words = tensor("w", "uint64", (10, 9), ramp, (10, 9), (Segment(BYTES, planes),))
    yield assembled("accept/modes_of_eight_planes", "Each of eight planes in a mode of its own.",
                    "R7.1 R5.4", "Prediction Transform", one(words, TableSpec(), TableSpec(11)))
    mixed = tensor("w", "bfloat16", (64, 20), smooth(206, 20, 600, 170, 1, 31), (32, 20), (
        Segment(BYTES, (R(0, DCT | TOP), R(1, (NONE, ADST, TOP, ADST | AVG)))),
        Segment(BYTES, (R(0, (DCT, PLANAR, LEFT, DCT | PLANAR)), R(1, ADST | LEFT)))), (16, 16))
    mixed = tensor("w", "bfloat16", (64, 32), mixed.recipe | {"width": 32}, (32, 32),
                   mixed.segments, (16, 16))
    yield assembled("accept/modes_mixed",
                    "One mode for all tiles of a plane, and a mode for each tile of the other one.",
                    "R7.1 R10.4", "Prediction Transform PerTile",
                    one(mixed, TableSpec(), TableSpec(9)))


# ---- contexts ------------------------------------------------------------------------------------
def by_value(*limits: int) -> tuple[int, ...]:
    """Classes of 256 contexts: how many of the limits a value reaches."""
    return tuple(sum(v >= limit for limit in limits) for v in range(256))


HASHED = tuple(v * 11 % 16 for v in range(256))  #: 16 classes
HALVES = tuple((v ^ v >> 4) % 4 for v in range(256))  #: 4 classes, by both halves
BLOCK = tuple(min(3, r + c) for r in range(8) for c in range(8))  #: classes of 64 places


def contexts_of_planes() -> Made:
    def case(name: str, text: str, dtype: str, shape: tuple[int, int], recipe: dict[str, Any],
             segments: Segment | tuple[Segment, ...], maps: tuple[MapSpec, ...], n_tables: int,
             *, rules: str = "R9.12 R9.13 R10.5", flags: str = "",
             segment: tuple[int, int] | None = None, tile: tuple[int, int] | None = None,
             bits: int = 12) -> tuple[Case, Image]:
        all_of = segments if isinstance(segments, tuple) else (segments,)
        w = tensor("w", dtype, shape, recipe, segment or shape, all_of, tile)
        return assembled(f"accept/context_{name}", text, rules, f"Contexts {flags}",
                         File((w,), (TableSpec(bits),) * n_tables, maps=maps))

    two = (MapSpec(PLANE, by_value(124), (1, 2)),)
    for d, recipe, limit in (("bfloat16", bf16(210), 121),
                             ("float32", weights(211, 23, 122, 14), 121),
                             ("uint64",
                              smooth(212, 17, 5 << 56 | 3 << 41, 1 << 57 | 999, 0, (1 << 34) - 1),
                              100)):
        n, shape = {"bfloat16": (2, (11, 17)), "float32": (4, (11, 17)), "uint64": (8, (5, 17))}[d]
        planes = (R(0), C(0), *((C(0), P, C(0), R(0), P, C(0)) if n == 8 else (P, C(0))))[:n]
        yield case(f"plane_{d}",
                   f"Lower planes of {n}-byte words under the class of the highest byte.", d, shape,
                   recipe, Segment(BYTES, planes), (MapSpec(PLANE, by_value(limit), (1, 2)),), 3)
    yield case("plane_pairs_bfloat16", "Sign and mantissa under the class of the 4-bit code.",
               "bfloat16", (11, 17), bf16(213), Segment(PAIRS, (R(0), C(0)), 110, 9),
               (MapSpec(PLANE, by_value(7, 11), (2, 1, 2)),), 3)
    yield case("plane_pairs_float32", "Two planes under the class of the 4-bit code.", "float32",
               (7, 13), weights(214, 23, 122, 14), Segment(PAIRS, (R(0), C(0), P, C(1)), 110),
               (MapSpec(PLANE, by_value(11), (1, 2)), MapSpec(PLANE, by_value(3, 12), (2, 1, 1))),
               3)
    yield case("plane_pairs_int8",
               "Low halves of two one-byte words under the class of the byte of their high "
               "halves; an odd number of words.", "int8", (15, 21), bell(215, 4, 4, -32),
               Segment(PAIRS, (R(0), C(0)), 0, 6), (MapSpec(PLANE, HALVES, (1, 2, 2, 1)),), 3)
    outliers = bf16(216) | {"set": [[i * 19, "0x0"] for i in range(8)]}
    yield case("plane_patched", "The context is the code, not the value of the patch.", "bfloat16",
               (11, 17), outliers, Segment(PAIRS, (R(0), C(0)), 110, 12, also=(1, 50, 186)),
               (MapSpec(PLANE, by_value(6, 12), (1, 2, 3)),), 4, flags="Patches")
    yield case("plane_raw", "Plane 0 is stored RAW.", "bfloat16", (9, 17), bf16(217),
               (Segment(PAIRS, (P, C(0)), 110), Segment(BYTES, (P, C(0)))),
               (MapSpec(PLANE, by_value(12), (0, 1)),), 2, segment=(5, 17), flags="Ragged")
    yield case("plane_constant", "Plane 0 is CONSTANT: all symbols are of one class.", "bfloat16",
               (7, 16), choice(218, *(0x3F80 | m for m in range(0, 90, 7))),
               (Segment(PAIRS, (K(0x77), C(0)), 120, 7), Segment(BYTES, (K(0x7F), C(0)))),
               (MapSpec(PLANE, by_value(5, 100), (0, 1, 1)),), 2, segment=(4, 16), flags="Ragged")
    down = smooth(219, 19, 700, 190, 1, 63)
    for mode, name in ((TOP, "top"), (DCT, "dct"), (ADST | PLANAR, "adst_planar")):
        yield case(f"plane_predicted_{name}",
                   f"Plane 0 in mode {mode}: the context is the byte, not what the stream codes.",
                   "uint16", (17, 19), down,
                   Segment(BYTES, (R(0, mode), C(0, LEFT if mode == TOP else NONE))),
                   (MapSpec(PLANE, by_value(20, 40), (1, 2, 1)),), 3, flags="Prediction")
    tiles = tensor("w", "int16", (34, 40), smooth(220, 40, 700, 190, 1, 63), (32, 40),
                   (Segment(BYTES, (R(0, (TOP, DCT)), C(0, (ADST | LEFT, NONE)))),
                    Segment(BYTES, (C(1, DCT | TOP), C(0, (AVG, ADST))))), (32, 20))
    maps = (MapSpec(PLANE, by_value(130, 140), (1, 2, 1)), MapSpec(POSITION, BLOCK, (2, 0, 1, 0)))
    yield assembled("accept/context_plane_tiles",
                    "Modes of tiles on both planes; plane 0 of the second segment has contexts of "
                    "its own.", "R9.13 R10.4 R7.2", "Contexts Prediction PerTile Ragged",
                    File((tiles,), (TableSpec(),) * 3, maps=maps))
    yield case("plane_16_classes", "16 classes and 16 tables, most of a few symbols.", "bfloat16",
               (13, 21), bf16(221), Segment(PAIRS, (R(0), C(0)), 110),
               (MapSpec(PLANE, tuple(range(16)), tuple(range(1, 17))),), 17, flags="Bracket")
    yield case("one_class", "One class: a table as any other.", "bfloat16", (9, 17), bf16(222),
               Segment(PAIRS, (R(0), C(0)), 110), (MapSpec(PLANE, (0,), (1,)),), 2, flags="Bracket")
    for bits in (9, 10, 11):
        yield case(f"prob_bits_{bits}", f"Tables of sum 2^{bits}.", "bfloat16", (9, 17), bf16(223),
                   Segment(PAIRS, (R(0), C(0)), 110), two, 3, bits=bits, rules="R9.12 R4.25")
    never_0 = MapSpec(PLANE, (1,), (0, 1))
    rare = tuple({200: 4000, 7: 50, 9: 46}.get(s, 0) for s in range(256))
    few = tensor("w", "uint16", (1, 130), bell(224, 8, 0), (1, 130),
                 (Segment(BYTES, (R(2), C(0))),))
    file = File((few,), (TableSpec(freq=rare), TableSpec(freq=(16,) * 256), TableSpec()),
                maps=(never_0,))
    yield assembled("accept/context_filling",
                    "All symbols are of class 1; the filling is coded under the table of class 0 "
                    "all the same.", "R9.12 R9.4", "Contexts Bracket", file)


def contexts_of_places() -> Made:
    position = MapSpec(POSITION, BLOCK, (0, 1, 2, 0))
    for name, mode in (("none", NONE), ("dct", DCT), ("adst_left", ADST | LEFT)):
        w = tensor("w", "uint8", (35, 27), smooth(230, 27, 3, 5, 1, 7), (18, 27),
                   (Segment(BYTES, (C(0, mode),)),))
        yield assembled(f"accept/context_position_{name}",
                        "The place in blocks of 8 x 8 of the tile picks the table of a symbol, in "
                        f"mode {mode}.", "R9.13 R8.2", "Contexts Transform Ragged",
                        File((w,), (TableSpec(),) * 3, maps=(position,)))
    all_places = MapSpec(POSITION, tuple((r * 3 + c * 5) % 16 for r in range(8) for c in range(8)),
                         tuple(range(16)))
    w = tensor("w", "uint8", (37, 50), bell(231), (48, 60), (Segment(BYTES, (C(),)),), (16, 20))
    yield assembled("accept/context_position_tiles",
                    "16 classes of places; the count starts anew in each tile of 16 x 20.",
                    "R9.13 R6.9", "Contexts Ragged Bracket",
                    File((w,), (TableSpec(),) * 16, maps=(all_places,)))
    columns = MapSpec(POSITION, tuple(c for _ in range(8) for c in range(8)), tuple(range(8)))
    for d, recipe, base, planes in (("bfloat16", bf16(232), 110, (C(0), C(0))),
                                    ("int8", bell(233, 4, 4, -32), 0, (C(0), C(0)))):
        w = tensor("w", d, (19, 37), recipe, (16, 57), (Segment(PAIRS, planes, base, 3),), (16, 19))
        text = ("Nibble pairs in tiles of odd width: the place of a symbol is that of its first "
                "element, in whichever tile and row that lies.")
        yield assembled(f"accept/context_position_pairs_{d}", text, "R9.13 R9.14",
                        "Contexts Ragged", File((w,), (TableSpec(),) * 8, maps=(columns,)))
    sums = MapSpec(SCALE, tuple(r + c for r in range(4) for c in range(4)), (0, 1, 2, 3, 4, 4, 5))
    cycle = {"row_classes": (0, 3, 1, 2, 2), "col_classes": (2, 0, 1, 3, 0, 1, 0)}
    for shape in ((1, 1), (1, 2), (3, 3), (5, 7), (30, 50)):
        text = (f"Classes of {shape[0]} rows and {shape[1]} columns: {sum(shape)} of two bits "
                f"each, {-(-sum(shape) // 4)} bytes.")
        w = tensor("w", "uint8", shape, bell(234), shape, (Segment(BYTES, (C(),), **cycle),))
        yield assembled(f"accept/context_scale_{shape[0]}x{shape[1]}", text, "R9.13 R10.10 R10.2",
                        "Contexts Bracket", File((w,), (TableSpec(),) * 6, maps=(sums,), coding=1))
    w = tensor("w", "float32", (21, 13), weights(235, 23, 122, 14), (16, 13), (
        Segment(BYTES, (C(0), C(0), C(1), R(0)), **cycle),
        Segment(BYTES, (R(1), C(2), P, C(0)), row_classes=(1,), col_classes=(3, 0))))
    text = ("Planes under contexts of all three kinds; those of kind SCALE share the classes of "
            "the record, under maps of their own too.")
    maps = (sums, MapSpec(SCALE, (0, 1), (3, 2)),
            MapSpec(PLANE, HASHED, tuple(range(6)) + (5,) * 10))
    yield assembled("accept/context_scale_shared", text, "R9.13 R10.10", "Contexts Ragged",
                    File((w,), (TableSpec(),) * 6, maps=maps))
    for d, recipe, base in (("bfloat16", bf16(236), 110), ("int8", bell(237, 4, 4, -32), 0)):
        w = tensor("w", d, (19, 17), recipe, (16, 17),
                   (Segment(PAIRS, (C(0), C(0)), base, 1, **cycle),))
        yield assembled(f"accept/context_scale_pairs_{d}",
                        "Nibble pairs of an odd width: the row and column of a symbol are those "
                        "of its first element.", "R9.13 R9.14 R10.10", "Contexts Ragged",
                        File((w,), (TableSpec(),) * 6, maps=(sums,)))
    patched = bf16(238) | {"set": [[i * 31, "0x0"] for i in range(5)]}
    w = tensor("w", "bfloat16", (34, 36), patched, (32, 36),
               (Segment(PAIRS, (C(0), C(1)), 110, 1, **cycle),
                Segment(BYTES, (C(0, (DCT, TOP)), C(1, ADST)), **cycle)), (32, 18))
    text = ("Records with all parts: tile modes, classes of rows and columns, planes; "
            "and classes, planes, patches.")
    yield assembled("accept/context_scale_parts", text, "R10.10 R10.2 R10.4",
                    "Contexts Patches PerTile Ragged",
                    File((w,), (TableSpec(),) * 6,
                         maps=(sums, MapSpec(PLANE, HASHED, tuple(range(6)) + (5,) * 10))))


def context_records() -> Made:
    maps = (MapSpec(PLANE, by_value(7, 11), (0, 1, 0)), MapSpec(SCALE, (1, 0), (0, 1)),
            MapSpec(POSITION, BLOCK, (1, 1, 1, 1)))
    shared = (tensor("a", "bfloat16", (7, 15), bf16(240), (7, 15),
                     (Segment(PAIRS, (R(0), C(0)), 110),)),
              tensor("b", "uint16", (3, 9), bell(241, 8, 0), (3, 9),
                     (Segment(BYTES, (C(1), C(0)), row_classes=(2, 0), col_classes=(1, 3)),)),
              tensor("c", "bfloat16", (5, 15), bf16(242), (5, 15),
                     (Segment(PAIRS, (C(2), C(0)), 110),)))
    yield assembled("accept/context_maps_shared",
                    "Three tensors under the same maps; a table of several classes.", "R4.25 R4.26",
                    "Contexts", File(shared, (TableSpec(),) * 2, maps=maps))
    late = File(shared[:1], (TableSpec(),) * 2, (("k", "v"),), b"\2" + bytes(7) + b"{}",
                ("metadata", "tables", (99, 0, b"x"), "contexts", "source", "tensor0"), maps=maps)
    yield assembled("accept/context_record_late",
                    "CONTEXTS with other records before and behind; maps that nothing uses.",
                    "R4.19 R4.26", "Contexts UnusualEncoder", late)
    plain = tensor("w", "uint8", (30,), bell(243), (1, 30), (Segment(BYTES, (P,)),))
    yield assembled("accept/context_maps_none", "A CONTEXTS record of no maps, without tables.",
                    "R4.25 R4.26", "Contexts UnusualEncoder",
                    File((plain,), records=("contexts", "tensor0")))


# ---- duplicates and differences ------------------------------------------------------------------
def again(t: Tensor, name: str, of: int) -> Tensor:
    """A duplicate of tensor number `of`, which is `t`."""
    return Tensor(name, t.dtype, t.shape, t.data, t.segment, dtype_name=t.dtype_name,
                  recipe=t.recipe, duplicate_of=of)


def duplicates() -> Made:
    a = tensor("a", "bfloat16", (7, 15), bf16(250), (7, 15), (Segment(PAIRS, (R(0), P), 110),))
    b = tensor("b", "opaque", (9,), noise(251), (1, 9), dtype_name="F4")
    e = tensor("e", "int8", (0, 3), constant(0), (1, 1))
    rules = "R4.28 R12.4 R4.16"
    yield assembled("accept/duplicate", "A tensor twice, its payload once.", rules, "Duplicates",
                    File((a, again(a, "tied", 0)), (TableSpec(),)))
    tensors = (a, again(a, "tied", 0), b, again(a, "thrice", 1), again(b, "b2", 2),
               again(b, "b3", 4))
    yield assembled("accept/duplicate_of_duplicate",
                    "Duplicates of duplicates, and one of opaque bytes.", rules,
                    "Duplicates UnusualEncoder", File(tensors, (TableSpec(),)))
    yield assembled("accept/duplicate_of_empty", "A duplicate of a tensor without words.", rules,
                    "Duplicates EmptyTensor", File((e, again(e, "f", 0))))
    raw = tensor("m", "uint8", (5,), counter(9), (1, 5))
    head = (2).to_bytes(8, "little") + b"{}"
    file = File((a, raw, again(a, "tied", 0), b, again(raw, "z", 1)), (TableSpec(),), (), head)
    yield assembled("accept/duplicate_source",
                    "The restored file has the duplicates' bytes where their records stand.",
                    f"{rules} R4.22 R12.1", "Duplicates", file)
    names = (again(b, "", 0), again(b, "größe", 0))
    yield assembled("accept/duplicate_names", "The empty name, and one that is not ASCII.",
                    "R4.28 R2.6 R4.32", "Duplicates", File((b, *names)))


BASE = {
    "w8": ("float64", (5, 9), weights(260, 52, 1020, 20)),
    "w1": ("int8", (12, 20), bell(261, 4, 4, -32)), "w2": ("bfloat16", (12, 20), bf16(262)),
    "w4": ("float32", (7, 15), weights(263, 23, 122, 14)),
    "größe": ("complex64", (2, 5), weights(264, 23, 122, 14)),
    "empty": ("int16", (3, 0), constant(0)), "": ("uint8", (), constant(7)),
}


def base_checkpoint() -> tuple[Case, Image, File]:
    """The checkpoint that differences refer to; its names do not ascend."""
    file = File(tuple(tensor(name, d, shape, recipe, (64, 64)) for name,
                      (d, shape, recipe) in BASE.items()), coding=1)
    return *assembled("accept/checkpoint",
                      "A checkpoint that differences are taken from; its names do not ascend.",
                      "R11.4 R12.1", "Difference", file), file


def changed(name: str, kind: int, edits: list[tuple[int, int]], *planes: Plane, layout: int = BYTES,
            base: int = 0, **more: Any) -> Tensor:
    """A tensor of the base with some other words, as a difference."""
    d, shape, recipe = BASE[name]
    before = tensor(name, d, shape, recipe, shape)
    new = recipe | {"set": [[i, hex(w)] for i, w in edits]}
    side = shape if len(shape) == 2 and 0 not in shape else (1, 1)
    segment = more.pop("segment", side)
    return tensor(name, d, shape, new, segment, (Segment(layout, planes, base),), difference=kind,
                  base=before.data, **more)


def differences() -> Made:
    made = base_checkpoint()
    yield made[0], made[1]
    base = (content_hash(made[2].tensors), "checkpoint.safetensors")

    def case(name: str, text: str, rules: str, *tensors: Tensor, flags: str = "", n_tables: int = 1,
             **more: Any) -> tuple[Case, Image]:
        file = File(tensors, (TableSpec(),) * n_tables, base=base, **more)
        return assembled(f"accept/difference_{name}", text, rules, f"Difference {flags}", file,
                         base_checkpoint=made[0].id)

    other = tuple(replace(t, segments=(Segment(BYTES, (P,) * DTYPES[t.dtype][1]),),
                          segment=(4, 3)) for t in reversed(made[2].tensors))
    recoded = assembled("accept/checkpoint_recoded",
                        "The same checkpoint in another order and coded otherwise: its content "
                        "hash is the same.", "R11.4", "Difference UnusualEncoder",
                        File(other, coding=1))
    yield recoded
    few = {
        "w1": [(0, 0x80), (17, 0x7F), (100, 1), (239, 0xFF)],
        "w2": [(0, 0x7FC0), (9, 0x8000), (77, 0xFFFF), (239, 0x3C01)],
        "w4": [(0, 1 << 31), (50, 0x3D000001), (104, U32)],
        "w8": [(0, 1 << 63), (20, 1), (44, (1 << 64) - 1)],
    }
    rules = "R4.27 R4.31 R12.5 R12.6 R11.4"
    for name, edits in few.items():
        n = int(name[1:])
        zero = (R(0),) * n
        for kind, title in ((XOR, "xor"), (MINUS, "minus")):
            text = f"Words of {n} bytes, most of them those of the base: {title.upper()}."
            yield case(f"{title}_{name}", text, rules, changed(name, kind, edits, *zero))
    xor = changed("w2", XOR, few["w2"], R(0), R(0), layout=PAIRS)
    yield case("xor_pairs",
               "An exclusive or, by the rules of its dtype: nibble pairs, their window at 0.",
               rules, xor)
    minus = changed("w1", MINUS, few["w1"], R(0), R(0), layout=PAIRS)
    yield case("minus_pairs",
               "z of one-byte words, by the rules of uint8: nibble pairs, not mapped.", rules,
               minus)
    context = changed("w4", MINUS, few["w4"], R(0), C(0), C(0), C(0))
    yield case("minus_context",
               "z of four-byte words: lower planes under the class of the highest byte.", rules,
               context, n_tables=3, maps=(MapSpec(PLANE, by_value(1), (1, 2)),), flags="Contexts")
    changed_complex = changed("größe", MINUS, [(0, 5), (19, 1 << 31)], *(R(0),) * 4,
                              segment=(2, 3))
    tensors = (changed("", XOR, [(0, 9)], P),
               changed("w2", MINUS, few["w2"], R(0), R(0), segment=(5, 16)),
               tensor("new", "bfloat16", (3, 4), bf16(265), (3, 4)),
               changed("empty", XOR, []), changed_complex,
               changed("w1", XOR, few["w1"], layout=0))
    tensors = (*tensors, again(tensors[1], "tied", 1),
               again(tensors[6] if len(tensors) > 6 else tensors[1], "tied again", 6),
               again(tensors[2], "new too", 2))
    yield case("mixed",
               "XOR, MINUS, no difference, RAW, no words, and duplicates of tensors with and "
               "without one: their base is that of the tensor they repeat.", f"{rules} R4.28",
               *tensors, flags="Duplicates EmptyTensor Ragged")
    same = changed("w2", XOR, [], K(0), K(0))
    file = File((changed("w1", MINUS, few["w1"], R(0)),), (TableSpec(10),), base=base)
    yield assembled("accept/difference_recoded",
                    "The base is the same checkpoint, coded otherwise.", "R11.4 R12.6",
                    "Difference", file, base_checkpoint=recoded[0].id)
    yield case("none_left", "All words are those of the base: planes of zeros.", rules, same,
               n_tables=0)
    plain = tensor("w2", "bfloat16", (2, 3), bf16(266), (2, 3))
    yield assembled("accept/base_unused",
                    "A BASE record and no difference: such a file needs no base.", "R12.6 R4.27",
                    "Difference UnusualEncoder", File((plain,), base=(bytes(range(32)), "")))


# ---- written by the encoder ----------------------------------------------------------------------
def by_encoder() -> Iterator[Case]:
    rough: dict[str, Any] = {"layout": "bytes", "force": True}
    for t in TRANSFORMS:
        for p, d, shape, recipe in (("none", "uint8", (21, 69), smooth(280, 69, 3, 5, 0, 7)),
                                    ("planar", "int16", (9, 65), smooth(281, 65, 400, 90, 1, 63))):
            text = f"{t.upper()} behind {p.upper()} in all planes; ragged tiles."
            yield encoded(f"accept/encoder_{t}_{p}_{d}", text, "R8.2 R8.3 R7.3",
                          "Prediction Transform Ragged", [("w", d, shape, recipe)], transform=t,
                          predictor=p, segment=(32, 64), tile=(16, 16), **rough)
        text = f"{t.upper()}, behind the prediction that costs least in each tile."
        yield encoded(f"accept/encoder_{t}", text, "R8.2 R10.4", "Prediction Transform",
                      [("w", "uint8", (24, 64), smooth(282, 64, 2, 3, 1, 15))], transform=t,
                      segment=(32, 64), tile=(16, 16), **rough)
    for d, shape, recipe in (("bfloat16", (10, 64), bf16(283)),
                             ("float32", (5, 64), weights(284, 23, 122, 14)),
                             ("uint8", (15, 64), smooth(285, 64, 2, 3, 1, 15))):
        yield encoded(f"accept/encoder_context_{d}", "Contexts in all planes that can have them.",
                      "R9.12 R9.13", "Contexts", [("w", d, shape, recipe)], coder="context",
                      **rough)
    for preset in ("fast", "max"):
        some = [("a", "bfloat16", (32, 64), bf16(286)),
                ("b", "int8", (32, 64), smooth(287, 64, 2, 1, 0, 3))]
        yield encoded(f"accept/encoder_{preset}", f"The encoder's choices, preset {preset}.",
                      "R9.12 R10.5", "", some, preset=preset)
    tied = [("a", "bfloat16", (5, 64), bf16(289)), ("b", "int8", (5, 5), bell(290)), ("c", 0),
            ("d", 2)]
    yield encoded("accept/encoder_duplicates",
                  "Tensors that repeat others: each names the first one.", "R4.28 R12.4",
                  "Duplicates", tied)
    base, _, _ = base_checkpoint()
    moved = [(name, d, shape, recipe | ({"set": [[3, "0x5"]]} if name.startswith("w") else {}))
             for name, (d, shape, recipe) in BASE.items()]
    text = ("A checkpoint of which some words have changed: differences where they are smaller, "
            "under a content hash.")
    yield encoded("accept/encoder_difference", text, "R12.5 R12.6 R11.4", "Difference EmptyTensor",
                  moved, base=base, **FORCED)


def cases() -> Iterator[Case]:
    """All of them."""
    yield from by_encoder()
    for group in (transforms, contexts_of_planes, contexts_of_places, context_records, duplicates,
                  differences):
        yield from (case for case, _ in group())
