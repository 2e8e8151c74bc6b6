# fmt: off
# One case a paragraph: these are tables, and read as such.
"""Files that every decoder must read: sparse tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from assembler import File, Image, Tensor, content_hash
from assembler_coding import (
    BYTES,
    DCT,
    DTYPES,
    LEFT,
    MINUS,
    PAIRS,
    PLANAR,
    PLANE,
    POSITION,
    RANS,
    SCALE,
    TOP,
    XOR,
    MapSpec,
    Segment,
    TableSpec,
)
from assembler_sparse import Sparse
from cases import U32, Case, assembled, encoded, matrix, tensor
from cases_accept import K, P, R, bf16, constant, counter, smooth, weights
from cases_modes import BASE, BLOCK, HASHED, C, again, base_checkpoint, by_value, changed

Made = Iterator[tuple[Case, Image]]
Edits = list[tuple[int, int]]
RULES = "R12.7 R12.8 R12.9 R12.10 R12.11"
KINDS = {"xor": XOR, "minus": MINUS}

#: tensors of another checkpoint: for long gaps, of more dimensions, of more bytes
LONG = {
    "long": ("uint8", (1200,), counter(7)),
    "cube": ("bfloat16", (5, 8, 9), bf16(400)),
    "pairs": ("complex128", (3, 4), weights(401, 52, 1020, 20)),
    "all": ("bfloat16", (9, 30), bf16(402)),
    "row": ("uint8", (1, 300), counter(11)),
    "same": ("int16", (200,), smooth(403, 20, 3, 5, 0, 7)),
}


def long_checkpoint() -> tuple[Case, Image, File]:
    """The checkpoint of these tensors."""
    tensors = (tensor(name, d, shape, recipe, (64, 1 << 12))
               for name, (d, shape, recipe) in LONG.items())
    file = File(tuple(tensors), coding=1)
    return *assembled("accept/checkpoint_long",
                      "A checkpoint with longer tensors, that sparse ones are taken from.",
                      "R11.4 R12.1", "Difference", file), file


def set_words(edits: Edits) -> dict[str, Any]:
    """What a recipe has for other words."""
    return {"set": [[i, w if w < U32 else hex(w)] for i, w in edits]} if edits else {}


def few(name: str, kind: int, edits: Edits, size: int | None = None, *, rows: int = 1,
        widths: dict[str, int] | None = None, pad: int = 0, **lists: Any) -> Tensor:
    """A tensor of a checkpoint with some other words, as a sparse one; its segments have `size`
    words, or all. `lists` are of `Sparse`.
    """
    d, shape, recipe = LONG[name] if name in LONG else BASE[name]
    before = tensor(name, d, shape, recipe, shape)
    t = tensor(name, d, shape, recipe | set_words(edits), (1, 1), difference=kind,
               base=before.data, pad=pad, sparse=Sparse(**lists), widths=widths or {})
    return replace(t, segment=(rows, size or max(1, matrix(t)[1])))


def old_words(name: str, at: Sequence[int]) -> list[int]:
    """Words of a tensor of a checkpoint."""
    d, shape, recipe = LONG[name] if name in LONG else BASE[name]
    data, n = tensor(name, d, shape, recipe, shape).data, DTYPES[d][1]
    return [int.from_bytes(data[i * n : i * n + n], "little") for i in at]


def raw(n: int) -> tuple[Segment]:
    """Layout BYTES, all `n` planes as they are."""
    return (Segment(BYTES, (P,) * n),)


def coded(n: int, table: int = 0) -> tuple[Segment]:
    """Layout BYTES, all `n` planes under one table."""
    return (Segment(BYTES, (R(table),) * n),)


FEW = {
    "w1": [(0, 0x80), (17, 0x7F), (100, 1), (239, 0xFF)],
    "w2": [(0, 0x7FC0), (9, 0x8000), (77, 0xFFFF), (239, 0x3C01)],
    "w4": [(0, 1 << 31), (50, 0x3D000001), (104, U32)],
    "w8": [(0, 1 << 63), (20, 1), (44, (1 << 64) - 1)],
}


def n_tables(tensors: tuple[Tensor, ...], maps: tuple[MapSpec, ...]) -> int:
    """How many tables planes and maps name, which name all up to the last one."""
    named = {n for m in maps for n in m.tables}
    for t in tensors:
        lists = (t.sparse.gaps, t.sparse.words) if t.sparse is not None else (t.segments,)
        named |= {p.table for some in lists for s in some for p in s.planes if p.coder == RANS}
    return max(named, default=-1) + 1


class Maker:
    """Makes cases of tensors of one checkpoint."""

    def __init__(self, checkpoint: tuple[Case, Image, File]) -> None:
        self.id = checkpoint[0].id
        self.base = (content_hash(checkpoint[2].tensors), "checkpoint.safetensors")

    def __call__(self, name: str, text: str, rules: str, *tensors: Tensor, flags: str = "",
                 bits: int = 12, maps: tuple[MapSpec, ...] = (),
                 **more: Any) -> tuple[Case, Image]:
        """A case; it has tables made from the symbols coded under them."""
        tables = (TableSpec(bits),) * n_tables(tensors, maps)
        file = File(tensors, tables, base=self.base, maps=maps, **more)
        return assembled(f"accept/sparse_{name}", text, rules, f"Difference Sparse {flags}", file,
                         base_checkpoint=self.id)


# ---- which words ---------------------------------------------------------------------------------
def listed(case: Maker) -> Made:
    for name, edits in FEW.items():
        for title, kind in KINDS.items():
            text = (f"Words of {name[1:]} bytes, the first and the last among them, as "
                    f"{title.upper()}; gaps and words are RAW.")
            yield case(f"{title}_{name}", text, f"{RULES} R12.5 R12.12 R12.13",
                       few(name, kind, edits))
    ends = [(0, 1), (49, 2), (100, 3), (149, 4), (200, 5), (239, 6)]
    yield case("segments", "Five segments, the last one smaller: the first and last word of every "
               "second one.", f"{RULES} R6.6",
               few("w1", MINUS, ends, 50, gaps=coded(1), words=coded(1, 1)),
               flags="Ragged")
    yield case("second_segment", "One segment of three has listed words, and that not the first.",
               RULES, few("w2", XOR, [(80, 1), (159, 2)], 80, words=raw(2)))
    yield case("last_segment", "A last segment of one word, which alone is listed.",
               f"{RULES} R6.6", few("w4", MINUS, [(104, 9)], 52),
               flags="Ragged Bracket")
    yield case("segments_of_1", "Segments of a word each, of which three are listed.", RULES,
               few("w8", XOR, FEW["w8"], 1), flags="Bracket")
    for size, which in ((None, "no word"), (64, "no word of any segment")):
        yield case(f"none{'' if size is None else '_of_some'}",
                   f"There is {which} that is listed: the table ends, and there is no payload.",
                   "R12.8 R4.34", few("w1", XOR, [], size))
    yield case("none_and_some", "A tensor without listed words before one that has some.",
               "R12.8 R4.33", few("w2", MINUS, [], 7), few("w1", XOR, [(3, 0x55)]))
    all_new = few("w1", MINUS, [], 100, gaps=(Segment(BYTES, (K(0),)),), words=coded(1))
    other = tensor("w1", "int8", (12, 20), constant(0x60), (1, 1))
    yield case("all", "Another word in the place of each: all gaps are 0.", f"{RULES} R12.12",
               replace(all_new, data=other.data, recipe=other.recipe), flags="Ragged")
    yield case("unchanged", "Listed words that have not changed, beside one that has.",
               f"{RULES} R12.12", few("w2", XOR, [(9, 0x8000)], 120, also=(0, 8, 10, 119, 200)),
               flags="UnusualEncoder")
    yield case("unchanged_all", "All words of a tensor of which none has changed: planes of zeros.",
               f"{RULES} R12.12",
               few("w4", MINUS, [], 60, also=tuple(range(105)), gaps=(Segment(BYTES, (K(0),)),),
                   words=(Segment(BYTES, (K(0),) * 4),)),
               flags="UnusualEncoder Ragged")
    yield case("rank_0", "The one word of a tensor of rank 0.", f"{RULES} R6.2",
               few("", MINUS, [(0, 9)]), flags="Bracket")
    yield case("empty", "A tensor without words: it has no segment table.", "R4.36 R12.7 R6.4",
               few("empty", XOR, [], 16), flags="EmptyTensor")
    yield case("complex64", "Segments of three words, which end within elements.",
               f"{RULES} R5.1", few("größe", MINUS, [(0, 5), (2, 6), (3, 7), (19, 1 << 31)],
                                         3, words=raw(4)), flags="Ragged")
    yield case("segment_rows", "Segments 16 words high and wider than the one row there is.",
               "R12.7 R6.5 R6.6", few("w1", XOR, FEW["w1"], 1000, rows=16),
               flags="UnusualEncoder")
    yield case("rows_of_segments", "Segments three words high, of one row.", "R12.7 R6.6",
               few("w2", XOR, FEW["w2"], 48, rows=3), flags="UnusualEncoder")
    yield case("deflated", "An index that is deflated.", f"{RULES} R4.15",
               few("w1", XOR, FEW["w1"], 30), coding=1, flags="DeflatedIndex")


def gaps(case: Maker) -> Made:
    for gap in (254, 255, 256, 510, 511):
        text = f"{gap} words are skipped before the first listed word, and before the second."
        yield case(f"gap_{gap}", text, RULES, few("long", XOR, [(gap, 1), (2 * gap + 1, 2)]),
                   flags="Bracket")
    yield case("gap_to_the_end", "The last word of a segment of 256, 255 words behind its first.",
               RULES, few("long", MINUS, [(0, 1), (255, 2), (511, 3)], 256, words=raw(1)),
               flags="Bracket Ragged")
    yield case("gaps_most", "As many gaps as R12.9 allows, in each segment.", RULES,
               few("long", XOR, [(255, 1), (256 + 255, 2), (1199, 3)], 256, gaps=raw(1)),
               flags="Bracket Ragged")
    yield case("gaps_skip", "One word, the last of 1200: four gaps of 255 before it.", RULES,
               few("long", MINUS, [(1199, 0)], gaps=coded(1)), flags="Bracket")
    yield case("cube", "A tensor of rank 3, in segments across its dimensions.",
               f"{RULES} R6.2", few("cube", MINUS, [(7, 1), (130, 2), (131, 3), (359, 4)], 100,
                                    gaps=coded(1), words=raw(2)), flags="Ragged")
    yield case("complex128", "Elements of two words of eight bytes.", f"{RULES} R5.1",
               few("pairs", XOR, [(0, 5), (7, 1 << 63), (23, 9)], 5, words=raw(8)),
               flags="Ragged")


# ---- how lists are coded -------------------------------------------------------------------------
SUMS = MapSpec(SCALE, tuple(r + c for r in range(4) for c in range(4)), (0, 1, 2, 3, 3, 3, 3))
CYCLE: dict[str, Any] = {"row_classes": (2,), "col_classes": (2, 0, 1, 3, 0, 1, 0)}
SOME = [(i * i // 3 % 240, 100 + i) for i in range(1, 30)]  #: words of w1 and w2


def codings(case: Maker) -> Made:
    position, plane = MapSpec(POSITION, BLOCK, (0, 1, 2, 0)), MapSpec(PLANE, HASHED, (0, 1) * 8)
    ways: dict[str, tuple[str, tuple[Segment, ...], tuple[MapSpec, ...]]] = {
        "bytes": ("as BYTES, the plane RAW", raw(1), ()),
        "rans": ("as BYTES and RANS", coded(1), ()),
        "pairs": ("as PAIRS, high halves RANS, low ones RAW",
                  (Segment(PAIRS, (R(0), P), 0, 5),), ()),
        "pairs_rans": ("as PAIRS, both planes RANS", (Segment(PAIRS, (R(0), R(1)), 0, 3),), ()),
        "pairs_plane": ("as PAIRS, low halves under the class of the byte of high ones",
                        (Segment(PAIRS, (R(0), C(0)), 0, 1),), (plane,)),
        "pairs_constant": ("as PAIRS, high halves CONSTANT", (Segment(PAIRS, (K(0), R(0))),), ()),
        "left": ("predicted LEFT", (Segment(BYTES, (R(0, LEFT),)),), ()),
        "dct": ("in mode DCT, PLANAR", (Segment(BYTES, (R(0, DCT | PLANAR),)),), ()),
        "tile": ("in a mode that stands in the record", (Segment(BYTES, (R(0, (TOP,)),)),), ()),
        "position": ("under the class of their place", (Segment(BYTES, (C(0),)),), (position,)),
        "scale": ("under the classes of rows and columns", (Segment(BYTES, (C(0),), **CYCLE),),
                  (SUMS,)),
        "mixed": ("RAW in one segment, RANS in the next one, PAIRS in the last",
                  (Segment(), *coded(1), Segment(PAIRS, (R(0), P))), ()),
    }
    rules = {"left": " R7.4", "dct": " R8.2", "tile": " R10.4", "position": " R9.13",
             "scale": " R10.10", "pairs_plane": " R9.13"}
    flags = {"left": "Prediction", "dct": "Prediction Transform", "tile": "PerTile Prediction",
             "position": "Contexts", "scale": "Contexts", "pairs_plane": "Contexts"}
    for name, (text, segments, maps) in ways.items():
        edits = [(i, w) for i, w in SOME if i % 240 < 16 or name != "pairs_constant"]
        t = few("w1", XOR, edits, {"pairs_constant": None, "mixed": 80}.get(name, 120),
                gaps=segments)
        yield case(f"gaps_{name}", f"Gaps are coded {text}.",
                   f"{RULES}{rules.get(name, '')}", t,
                   flags=flags.get(name, ""), maps=maps, bits=10)
    below = (MapSpec(PLANE, by_value(1), (1, 2)),)
    values = [(i, (w << 8 | w) * 257 & 0xFFFF) for i, w in SOME]
    words: dict[str, tuple[str, str, Edits, int, tuple[Segment, ...], dict[str, Any]]] = {
        "constant": ("their high planes CONSTANT, the lowest one RANS", "w4",
                     [], MINUS, (Segment(BYTES, (K(0), K(0), K(0), R(0))),), {}),
        "plane": ("lower planes under the class of the highest byte", "w4",
                  [(i * 9, 0x3D000001 * i & U32) for i in range(1, 11)], MINUS,
                  (Segment(BYTES, (R(0), C(0), P, C(0))),), {"maps": below}),
        "pairs_bfloat16": ("as PAIRS by the rules of their dtype, most with patches", "w2",
                           values, XOR, (Segment(PAIRS, (R(0), R(1)), 104, 9),), {}),
        "pairs_uint8": ("as PAIRS by the rules of uint8", "w1", SOME, MINUS,
                        (Segment(PAIRS, (R(0), R(1)), 0, 15),), {}),
        "int8": ("by the rules of int8, whose highest bit is turned", "w1", SOME, XOR, coded(1),
                 {}),
        "modes": ("under PLANAR and the ADST, in a tile of one row", "w2", values, MINUS,
                  (Segment(BYTES, (R(0, PLANAR), R(1, (0x20,)))),), {}),
        "scale": ("under the classes of rows and columns", "w1", SOME, XOR,
                  (Segment(BYTES, (C(0),), **CYCLE),), {"maps": (SUMS,)}),
        "mixed": ("RAW in one segment, in planes of RANS and RAW in the others", "w8", FEW["w8"],
                  MINUS, (Segment(), Segment(BYTES, (*(P,) * 6, R(0), R(0))), *raw(8)), {}),
    }
    tags = {"plane": "Contexts", "pairs_bfloat16": "Patches", "modes": "Prediction Transform",
            "scale": "Contexts"}
    for name, (text, of, edits, kind, segments, more) in words.items():
        if name == "constant":
            at = range(0, 100, 7)
            edits = [(i, w + (i % 5 - 2 or 3)) for i, w in zip(at, old_words(of, at), strict=True)]
        size = 15 if of == "w8" else None
        yield case(f"words_{name}", f"Listed words are coded {text}.", f"{RULES} R12.5",
                   few(of, kind, edits, size, words=segments), flags=tags.get(name, ""), **more)
    for width in (0, 1, 2, 4):
        edits = [(i, 7) for i in (3, 5, 123, 125)]
        yield case(f"width_{width}", f"All columns of both tables, and n_gaps, have width {width}.",
                   f"{RULES} R4.37", few("w2", MINUS, edits, 120, widths={"all": width},
                                         gaps=raw(1)))
    yield case("widths_mixed", "Columns of different widths, more than their values need.",
               f"{RULES} R4.37",
               few("w1", XOR, SOME, 80, gaps=coded(1), words=coded(1),
                   widths={"n_gaps": 4, "gaps.layout": 2, "gaps.n_units[0]": 4, "gaps.base": 1,
                           "words.coder[0]": 4, "words.table[0]": 2, "words.layout": 1}),
               flags="UnusualEncoder")


# ---- beside others -------------------------------------------------------------------------------
def together(case: Maker) -> Made:
    sparse = few("w2", MINUS, FEW["w2"], 100, gaps=coded(1), words=coded(2))
    dense = changed("w8", XOR, FEW["w8"], *(P,) * 8)
    plain = tensor("new", "bfloat16", (3, 4), bf16(410), (3, 4))
    yield case("mixed", "A sparse tensor, a difference that lists nothing, and one that is none.",
               f"{RULES} R4.33", sparse, dense, plain, few("w1", XOR, FEW["w1"]),
               flags="Ragged")
    yield case("duplicate", "Duplicates of a sparse tensor, and of one without listed words.",
               f"{RULES} R4.28 R12.4", sparse, again(sparse, "tied", 0), few("w1", XOR, [], 100),
               again(sparse, "tied again", 1), again(few("w1", XOR, []), "same", 2),
               flags="Duplicates Ragged")
    source = (2).to_bytes(8, "little") + b"{}"
    yield case("source", "A restored file, of a sparse tensor and another one.", "R12.1 R4.22",
               few("w8", XOR, FEW["w8"]), plain, source=source,
               metadata=(("step", "2"),))
    yield case("padding_parts", "Parts of records that end at a multiple of 16, and none.",
               "R10.2 R12.10",
               few("w1", XOR, [(i, 9) for i in range(16)] + [(i, 8) for i in range(100, 132)], 100),
               flags="Bracket")


def by_encoder() -> Iterator[Case]:
    base, _, _ = long_checkpoint()
    new = {"long": [(5, 1), (6, 2), (700, 3), (1199, 4)], "cube": [(i, i) for i in range(0, 45, 7)],
           "pairs": [], "row": [(299, 1)], "same": []}
    moved = [(name, d, shape, bf16(404) if name == "all" else recipe | set_words(new[name]))
             for name, (d, shape, recipe) in LONG.items()]
    text = ("A checkpoint of which few words have changed: these are listed, but where all of a "
            "tensor have.")
    yield encoded("accept/encoder_sparse", text, f"{RULES} R12.13 R12.5", "Difference Sparse",
                  moved, base=base)


def cases() -> Iterator[Case]:
    """All of them."""
    short, long = base_checkpoint(), long_checkpoint()
    yield long[0]
    for group in (listed, codings, together):
        yield from (case for case, _ in group(Maker(short)))
    yield from (case for case, _ in gaps(Maker(long)))
    yield from by_encoder()
