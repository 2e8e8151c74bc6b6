# fmt: off
# One case a paragraph: these are tables, and read as such.
"""Refused files whose fault lies in modes, contexts, duplicates or differences,
and those that the format leaves open.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from assembler import File, assemble, content_hash
from assembler_coding import (
    BYTES,
    DCT,
    PAIRS,
    PLANE,
    POSITION,
    SCALE,
    TOP,
    XOR,
    MapSpec,
    Segment,
    TableSpec,
)
from cases import U32, Base, Bases, Case, assembled, indexed, rebuilt, tensor
from cases_accept import P, R, bell, bf16, smooth
from cases_modes import BLOCK, HASHED, C, again, base_checkpoint, by_value, changed


def base_files() -> dict[str, tuple[str, str, str, File, dict[str, Any]]]:
    """Files that refused ones are made from: comment, rules, flags, file,
    and what else the manifest says.
    """
    rows = {"row_classes": (0, 3, 1), "col_classes": (2, 0, 1, 3)}
    w = tensor("w", "bfloat16", (11, 9), bf16(270) | {"set": [[7, "0x0"]]}, (8, 9),
               (Segment(PAIRS, (C(1), C(0)), 110, 1, **rows),))
    plane = MapSpec(PLANE, by_value(7, 11), (1, 0, 1))
    maps = (plane, MapSpec(SCALE, (0, 1), (0, 1)), MapSpec(POSITION, BLOCK, (0, 1, 1, 1)))
    contexts = File((w,), (TableSpec(), TableSpec()), maps=maps,
                    records=("tables", "contexts", "tensor0"))
    modes = tensor("w", "uint16", (32, 10), smooth(271, 10, 700, 190, 1, 63), (32, 10),
                   (Segment(BYTES, (R(0, (DCT | TOP, TOP)), C(0, (TOP, DCT)))),), (16, 10))
    a = tensor("a", "uint8", (11,), bell(272), (1, 11))
    small = tensor("c", "uint16", (1, 20), bell(273, 8, 0), (1, 20),
                   (Segment(BYTES, (C(0), P), row_classes=(1,), col_classes=(2, 0)),))
    extended = File((a, again(a, "b", 0), small), (TableSpec(9),),
                    maps=(MapSpec(SCALE, (0,), (0,)),), base=(bytes(range(32)), "x"),
                    records=("tables", "contexts", "base", "tensor0", "tensor1", "tensor2"))
    difference = File((changed("w1", XOR, [(3, 0x55)], R(0)),), (TableSpec(9),),
                      base=(content_hash(base_checkpoint()[2].tensors), "base"),
                      records=("tables", "base", "tensor0"))
    return {
        "contexts": ("Contexts of kinds PLANE and SCALE, and a map that nothing uses.",
                     "R9.12 R10.10 R4.25", "Contexts Patches Ragged", contexts, {}),
        "modes": ("Tile modes with transforms, of a plane that is a context and of one that has "
                  "contexts.", "R7.1 R9.13 R10.4", "Contexts Transform Prediction PerTile",
                  File((modes,), (TableSpec(), TableSpec()),
                       maps=(MapSpec(PLANE, HASHED, (0, 1) * 8),)), {}),
        "extended": ("Records CONTEXTS, BASE and DUPLICATE; nothing is a difference.",
                     "R4.19 R4.28 R12.6", "Contexts Duplicates UnusualEncoder", extended, {}),
        "difference": ("A difference.", "R12.5 R12.6", "Difference", difference,
                       {"base_checkpoint": "accept/checkpoint"}),
    }


def bases() -> Bases:
    """The accepted files that the others are made from."""
    out = {}
    for name, (comment, rules, flags, file, more) in base_files().items():
        out[name] = Base(*assembled(f"accept/base_{name}", comment, rules, flags, file, **more),
                         file)
    return out


# ---- index records -------------------------------------------------------------------------------
def context_records(b: Bases) -> Iterator[Case]:
    base = b["contexts"]
    r, f, order = base.spoil, base.image.fields, ("tables", "contexts", "tensor0")

    def record(name: str, code: str, text: str, rules: str, flags: str = "", /, *records: Any,
               **changes: Any) -> Case:
        return r(f"reject/contexts_{name}", code, text, rules, flags,
                 image=rebuilt(base, records=records or order, **changes))

    def maps(name: str, code: str, text: str, rules: str, *specs: MapSpec, flags: str = "",
             **changes: Any) -> Case:
        return record(name, code, text, rules, flags, maps=(*base.file.maps[:2], *specs), **changes)

    at, n = f["record[1].nbytes"]
    size = int.from_bytes(base.case.data[at : at + n], "little")
    body = base.case.data[at + n : at + n + size]
    yield record("twice", "bad_value", "Two CONTEXTS records.", "R4.19", "", "tables", "contexts",
                 "contexts", "tensor0")
    plain = replace(base.file.tensors[0], segments=(Segment(BYTES, (P, P)),))
    bare: dict[str, Any] = {"tensors": (plain,),
                            "tables": (TableSpec(freq=(2048, 2048, *(0,) * 254)),) * 2}
    yield record("late", "bad_value", "CONTEXTS behind a tensor, which needs none.", "R4.19", "",
                 "tables", "tensor0", "contexts", **bare)
    none = (5, 1, struct.pack("<H", 0))
    yield record("before_tables", "bad_value", "CONTEXTS, of no maps, before TABLES.", "R4.19", "",
                 none, "tables", "tensor0", **bare)
    yield record("without_tables", "bad_range", "A map and no tables.", "R4.25", "",
                 (5, 1, struct.pack("<HBB", 1, 3, 1) + bytes(18)), "tensor0", **bare)
    yield record("missing", "bad_range", "A CONTEXT plane and no maps.", "R10.5", "", "tables",
                 "tensor0")
    for kind in (0, 4, 255):
        yield r(f"reject/contexts_kind_{kind}", "unsupported_coder", f"A map of kind {kind}.",
                "R4.25", "Reserved", fields={"context[2].kind": kind})
    yield r("reject/contexts_kind_larger", "bad_range",
            "A map of kind POSITION says that it is of kind PLANE: it ends behind the record.",
            "R4.26", fields={"context[2].kind": 1})
    yield r("reject/contexts_classes_0", "bad_range", "A map of no classes.", "R4.25", "Bracket",
            fields={"context[2].n_classes": 0})
    yield maps("classes_17", "bad_range", "A map of 17 classes.", "R4.25",
               MapSpec(POSITION, tuple(range(16)), (0,) * 17), flags="Bracket")
    yield maps("classes_255", "bad_range", "A map of 255 classes.", "R4.25",
               MapSpec(SCALE, (0,), (0,) * 255))
    yield maps("class_2", "bad_range", "Class 2 of two.", "R4.25",
               MapSpec(POSITION, (0,) * 63 + (2,), (0, 1)), flags="Bracket")
    yield maps("class_255", "bad_range", "Class 255 in a map that nothing uses.", "R4.25",
               MapSpec(PLANE, (0,) * 255 + (255,), (0,) * 16))
    yield maps("table_2", "bad_range", "Table 2 of two.", "R4.25", MapSpec(SCALE, (0,), (0, 2)),
               flags="Bracket")
    yield maps("table_most", "bad_range", "Table 65535.", "R4.25", MapSpec(SCALE, (0,), (0xFFFF,)))
    yield maps("sums_differ", "bad_value", "A map of tables of sums 2^12 and 2^11.", "R4.25",
               MapSpec(SCALE, (0, 1), (0, 2)),
               tables=(*base.file.tables, TableSpec(11, freq=(1024, 1024, *(0,) * 254))))
    yield r("reject/contexts_n_more", "bad_range", "A map more than there is.", "R4.26",
            fields={"contexts.n": 4})
    yield r("reject/contexts_n_less", "bad_range", "A map less than there is.", "R4.26",
            fields={"contexts.n": 2})
    yield r("reject/contexts_n_most", "bad_range", "65535 maps.", "R4.26",
            fields={"contexts.n": 0xFFFF})
    for name, text, new in (("left_over", "A byte behind the last map.", body + b"\0"),
                            ("cut", "The last map is cut short.", body[:-1]),
                            ("empty", "A CONTEXTS record of one byte.", b"\0")):
        yield record(name, "bad_range", text, "R4.26", "", "tables", (5, 1, new), "tensor0")


def other_records(b: Bases) -> Iterator[Case]:
    base = b["extended"]
    r, f, order = base.spoil, base.image.fields, base.file.records or ()

    def again_with(id: str, code: str, text: str, rules: str, *records: Any,
                   **changes: Any) -> Case:
        return r(f"reject/{id}", code, text, rules,
                 image=rebuilt(base, records=records or order, **changes))

    yield again_with("base_twice", "bad_value", "Two BASE records.", "R4.19", "base", *order)
    yield again_with("base_late", "bad_value", "BASE behind a tensor.", "R4.19", "tables",
                     "contexts", "tensor0", "base", "tensor1", "tensor2")
    yield again_with("base_cut", "bad_range", "A BASE record of 31 bytes.", "R4.27", "tables",
                     "contexts", (6, 1, bytes(31)), *order[3:])
    yield again_with("base_empty", "bad_range", "A BASE record of 0 bytes.", "R4.27", "tables",
                     "contexts", (6, 1, b""), *order[3:])
    yield r("reject/base_name", "bad_name", "The base's name is not UTF-8.", "R4.27 R2.6",
            fields={"base.name": b"\xff"})
    for name, of, text in (("of_itself", 1, "itself"), ("of_next", 2, "the tensor behind it"),
                           ("of_most", U32, "tensor 2^32 - 1")):
        yield r(f"reject/duplicate_{name}", "bad_range", f"A duplicate of {text}.", "R4.28",
                "Overflow" if of == U32 else "", fields={"tensor[1].of": of})
    yield again_with("duplicate_first", "bad_range", "A duplicate before all tensors.", "R4.28",
                     *order[:3], (7, 1, bytes(4) + b"z"), *order[3:])
    yield again_with("duplicate_cut", "bad_range", "A DUPLICATE record of three bytes.", "R4.28",
                     *order[:4], (7, 1, bytes(3)), order[5])
    yield again_with("duplicate_name_twice", "bad_name", "A duplicate of the name of its tensor.",
                     "R4.32", *order[:4], (7, 1, bytes(4) + b"a"), order[5])
    yield again_with("duplicate_name_of_next", "bad_name",
                     "A tensor of the name of a duplicate before it.", "R4.32", *order[:4],
                     (7, 1, bytes(4) + b"c"), order[5])
    yield r("reject/duplicate_name", "bad_name", "A duplicate's name is not UTF-8.", "R4.28 R2.6",
            fields={"tensor[1].name": b"\x80"})
    yield r("reject/duplicate_not_counted", "bad_range", "n_tensors leaves the duplicate out.",
            "R4.16", fields={"footer.n_tensors": 2})
    nbytes = sum(len(t.data) for t in base.file.tensors)
    yield r("reject/duplicate_no_bytes", "bad_range", "data_nbytes leaves the duplicate out.",
            "R4.16", fields={"footer.data_nbytes": nbytes - 11})
    for flags in (1, 2):
        bare = rebuilt(base, records=tuple(name for name in order if name != "base"))
        yield r(f"reject/difference_{flags}_no_base", "bad_value",
                f"Difference {flags}, and no BASE record.", "R4.31", image=bare,
                fields={"tensor[2].flags": flags}, also={"base_checkpoint": "accept/checkpoint"})
    for bit in (3, 15):
        yield r(f"reject/tensor_flags_{bit}", "bad_value", f"Bit {bit} of a tensor's flags.",
                "R4.31 R2.5", "Reserved", fields={"tensor[2].flags": 1 << bit})
    at = f["tensor[0].segment[0].words"][0]
    yield r("reject/duplicate_payload", "bad_checksum",
            "Another word of a tensor that is there twice.", "R11.3 R12.4", "Payload",
            at={at: b"\xee"})


def differences(b: Bases) -> Iterator[Case]:
    base = b["difference"]
    r, given = base.spoil, {"base_checkpoint": "accept/checkpoint"}
    sha = base.image.fields["base.sha256"]
    good = bytes(base.image.data[sha[0] : sha[0] + 32])
    yield r("reject/base_missing", "bad_base", "A difference, and no base is given.", "R12.6",
            fields={"base.name": b"gone"})
    yield r("reject/base_other_file", "bad_base", "The base that is given is another checkpoint.",
            "R12.6 R11.4", fields={"base.name": b"that"},
            also={"base_checkpoint": "accept/base_records"})
    yield r("reject/base_other_hash", "bad_base", "The base's hash differs in one bit.",
            "R12.6 R4.27", fields={"base.sha256": good[:31] + bytes([good[31] ^ 1])}, also=given)
    t = base.file.tensors[0]
    image = rebuilt(base, tensors=(replace(t, name="w3"),))
    yield r("reject/base_no_such_name", "bad_base", "The base has no tensor of this name.",
            "R12.5 R12.6", image=image, also=given)
    image = rebuilt(base, tensors=(replace(t, shape=(20, 12), segment=(20, 12)),))
    yield r("reject/base_other_shape", "bad_base",
            "The tensor of this name has another shape in the base.", "R12.5 R12.6", image=image,
            also=given)
    image = rebuilt(base, tensors=(replace(t, dtype="uint8"),))
    yield r("reject/base_other_dtype", "bad_base",
            "The tensor of this name has another dtype in the base.", "R12.5 R12.6", image=image,
            also=given)
    yield r("reject/difference_3", "bad_value", "Difference 3.", "R4.31", "Reserved Bracket",
            fields={"tensor[0].flags": 3}, also=given)
    yield r("reject/difference_kind", "bad_checksum",
            "MINUS in place of XOR: the tensor's CRC-32 finds it.", "R12.6 R11.3",
            fields={"tensor[0].flags": 2}, also=given)


# ---- segment tables and payloads -----------------------------------------------------------------
def columns(b: Bases) -> Iterator[Case]:
    base = b["contexts"]

    def column(name: str, code: str, text: str, rules: str, tags: str = "", /,
               **values: int) -> Case:
        return base.spoil(f"reject/context_{name}", code, text, rules, tags,
                          fields={f"tensor[0].{indexed(k)}": v for k, v in values.items()})

    yield column("map_3", "bad_range", "Map 3 of three.", "R10.5", "Bracket", table_1=3)
    yield column("map_most", "bad_range", "Map 2^32 - 1.", "R10.5", "Overflow", table_1=U32)
    itself = tensor("w", "uint8", (3, 20), bell(274), (3, 20), (Segment(BYTES, (C(0),)),))
    yield base.spoil("reject/context_plane_0_of_itself", "bad_value",
                     "Plane 0 under a map of kind PLANE. All its contexts have one class.", "R9.13",
                     image=assemble(File((itself,), (TableSpec(),),
                                         maps=(MapSpec(PLANE, (0,), (0,)),))))
    yield column("prediction_with_pairs", "bad_value", "A mode with layout PAIRS.", "R7.2",
                 prediction_1=16)
    yield column("coder_rans", "bad_range", "Coder RANS with the number of a map: no such table.",
                 "R10.5", coder_1=2, table_1=2)
    yield column("scales_missing", "bad_range",
                 "No map of kind SCALE any more: the sizes no longer sum.", "R4.34 R10.10",
                 table_0=2)
    modes = b["modes"]
    more = {"tensor[0].table[1]": struct.pack("<I", 1)}
    image = rebuilt(modes, maps=(*modes.file.maps, MapSpec(SCALE, (0,), (0,))))
    yield modes.spoil("reject/context_scales_not_there",
                      "bad_range", "A map of kind SCALE, and no classes in the record: the sizes "
                                   "no longer sum.", "R4.34 R10.10", image=image, fields=more)
    for units, name in ((7, "7"), (8 + 16 + 1, "too_many")):
        at, n = base.image.fields["tensor[0].n_units[1]"]
        stored = base.image.data[at : at + n]
        stored[0] = units
        yield base.spoil(f"reject/context_units_{name}", "bad_range",
                         f"n_units of a CONTEXT plane is {units}.", "R9.10", "Bracket",
                         fields={"tensor[0].n_units[1]": bytes(stored)})


def payloads(b: Bases) -> Iterator[Case]:
    base, modes, extended = b["contexts"], b["modes"], b["extended"]

    def flip(of: Base, part: str, offset: int, mask: int) -> dict[int, bytes]:
        at, n = of.image.fields[f"tensor[0].segment[{part}"]
        at += offset % n
        return {at: bytes([of.case.data[at] ^ mask])}

    for p in (0, 1):
        for name, offset, text in (("state", 13, "A bit of a start state"),
                                   ("word", -1, "A bit of the last word")):
            yield base.spoil(f"reject/context_{name}_plane_{p}", "bad_stream",
                             f"{text} of plane {p}, a CONTEXT stream.", "R9.11 R9.12",
                             "Payload Contexts", at=flip(base, f"0].plane[{p}]", offset, 1))
    at, n = base.image.fields["tensor[0].segment[0].scales"]
    yield base.spoil("reject/context_scales", "bad_stream",
                     "Other classes of rows and columns: other tables.", "R10.10 R9.11",
                     "Payload Contexts",
                     at={at: bytes(255 - v for v in base.case.data[at : at + n])})
    yield base.spoil("reject/context_maps_exchanged", "bad_stream",
                     "Other classes of the contexts.", "R9.12 R9.11", "Contexts",
                     fields={"context[0].class_of": bytes(v < 9 for v in range(256))})
    yield base.spoil("reject/context_tables_exchanged", "bad_stream",
                     "The tables of the classes are exchanged.", "R9.12 R9.11", "Contexts",
                     fields={"context[0].tables": struct.pack("<3H", 0, 1, 0)})
    for tile, mode, name in ((0, 5, "of_context"), (1, 0x30, "of_context_48"),
                             (2, 0xFF, "with_contexts")):
        m_at = modes.image.fields["tensor[0].segment[0].modes"][0] + tile
        which = "the context of plane 1" if tile < 2 else "which has contexts"
        text = f"Mode {mode} of a tile of plane {tile // 2}, {which}."
        yield modes.spoil(f"reject/tile_mode_{name}", "unsupported_coder", text, "R10.4 R7.1",
                          "Payload PerTile Reserved", at={m_at: bytes([mode])})
    m_at = modes.image.fields["tensor[0].segment[0].modes"][0]
    yield modes.spoil("reject/tile_mode_other_transform", "bad_checksum",
                      "ADST in place of DCT in the last tile: the tensor's CRC-32 finds it.",
                      "R11.3 R10.4", "Payload PerTile Transform", at={m_at + 3: b"\x20"})
    at, n = extended.image.fields["tensor[2].segment[0].scales"]
    text = "The bits behind the last class are not 0. A decoder need not look."
    yield extended.spoil("either/padding_scale_bits", "", text, "R10.10 R2.4",
                         "Padding Payload Contexts",
                         at={at + n - 1: bytes([extended.case.data[at + n - 1] | 0xC0])})
    at, n = extended.image.fields["tensor[2].segment[0].scales.padding"]
    yield extended.spoil("either/padding_scales", "",
                         "The padding behind the classes of rows and columns is not 0. A decoder "
                         "need not look.", "R10.10 R2.4", "Padding Payload Contexts",
                         at={at: b"\xa5" * n})


def cases() -> Iterator[Case]:
    """The bases and all that is made from them."""
    b = bases()
    yield from (base.case for base in b.values())
    for group in (context_records, other_records, differences, columns, payloads):
        yield from group(b)
