# fmt: off
# One case a paragraph: these are tables, and read as such.
"""Refused files whose fault lies in a sparse tensor.

Each breaks one rule, and would be decoded by who does not check that one, but where a comment says
what else must find it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from assembler import File, Image, Tensor, assemble, seal
from assembler_coding import BYTES, LEFT, MINUS, PAIRS, XOR, Plane, Segment, TableSpec
from assembler_sparse import Sparse
from cases import U32, Base, Case, assembled, tensor
from cases_accept import K, P, R, constant
from cases_sparse import Maker, coded, few, long_checkpoint, old_words, raw

RULES = "R12.7 R12.8 R12.9 R12.10 R12.11 R12.13"
ORDER = ("tables", "base", "tensor0")
TABLES_HEAD = struct.pack("<HH", 1, 1)  #: type and flags of a TABLES record


class _Spoiler:
    """Makes cases from files of one sparse tensor: from `base` under a table, from `plain` without.
    """

    def __init__(self) -> None:
        checkpoint = long_checkpoint()
        self.given = {"base_checkpoint": checkpoint[0].id}
        edits = [(3, 1), (300, 2), (399, 3), (805, 4), (806, 5)]
        t = few("long", XOR, edits, 400, gaps=coded(1), words=coded(1))
        file = File((t,), (TableSpec(9),), base=Maker(checkpoint).base, records=ORDER)
        self.base = self._made("sparse", "Two of three segments have listed words.", file)
        t = few("long", XOR, [(3, 1), (300, 2)])
        file = File((t,), base=file.base, records=ORDER[1:])
        self.plain = self._made("sparse_raw", "One segment, gaps and words RAW.", file)

    def _made(self, name: str, text: str, file: File) -> Base:
        return Base(*assembled(f"accept/base_{name}", text, f"{RULES} R12.5", "Difference Sparse",
                               file, **self.given), file)

    def __call__(self, name: str, code: str, text: str, rules: str, flags: str = "", *,
                 given: bool = True, image: Image | None = None, **more: Any) -> Case:
        """A case; further arguments as of `Base.spoil`."""
        bare = image is not None and TABLES_HEAD not in image.data
        of = self.plain if bare else self.base
        return of.spoil(f"reject/sparse_{name}", code, text, rules, f"Sparse {flags}",
                        also=self.given if given else None, image=image, **more)

    def image(self, t: Tensor, n_tables: int = 1, **changes: Any) -> Image:
        """The file of another tensor."""
        tables = (TableSpec(9),) * n_tables
        order = ORDER if n_tables else ORDER[1:]
        return assemble(replace(self.base.file, **{"tensors": (t,), "tables": tables,
                                                   "records": order} | changes))

    def with_lists(self, **lists: Any) -> Image:
        """The base with other lists."""
        t = self.base.file.tensors[0]
        return self.image(replace(t, sparse=replace(t.sparse or Sparse(), **lists)))

    def resized(self, at: int, remove: int, insert: bytes, image: Image | None = None) -> Image:
        """The base with other bytes in the record of the tensor, whose size is right."""
        image, new = image or self.base.image, Image()
        start, n = image.fields["index"]
        index = bytearray(image.data[start : start + n])
        size = next(f for f in reversed(image.fields) if f.endswith(".nbytes"))
        size_at = image.fields[size][0] - start
        nbytes = int.from_bytes(index[size_at : size_at + 8], "little") + len(insert) - remove
        index[at - start : at - start + remove] = insert
        index[size_at : size_at + 8] = nbytes.to_bytes(8, "little")
        new.data += image.data[:start]
        foot = image.fields["footer.data_nbytes"][0]
        data_nbytes = int.from_bytes(image.data[foot : foot + 8], "little")
        return seal(new, bytes(index), coding=0, deflated=None, data_nbytes=data_nbytes,
                    n_tensors=1)


# ---- the record ----------------------------------------------------------------------------------
def flags(r: _Spoiler) -> Iterator[Case]:
    new = constant(0) | {"set": [[3, "0x55"], [300, "0x66"]]}
    zeros = tensor("long", "uint8", (1200,), new, (1, 400), base=bytes(1200),
                   sparse=Sparse())
    yield r("no_difference", "bad_value", "SPARSE, and no difference: as if the base were zeros.",
            "R4.31", image=r.image(zeros, 0))
    yield r("no_base_record", "bad_value",
            "A sparse tensor, and no BASE record: R12.6 does not hold then either.", "R4.31",
            image=r.image(r.base.file.tensors[0], records=("tables", "tensor0")))
    minus = few("long", MINUS, [(3, 1), (300, 2)], 400)
    flag = {"tensor[0].flags": 7}
    yield r("difference_3", "bad_value", "SPARSE, and difference 3; the words are those of MINUS.",
            "R4.31", "Reserved", image=r.image(minus, 0), fields=flag)
    for bit in (3, 15):
        yield r(f"flags_{bit}", "bad_value", f"Bit {bit} of a sparse tensor's flags.", "R4.31 R2.5",
                "Reserved", fields={"tensor[0].flags": 1 << bit | 5})
    row = few("row", XOR, [(3, 1), (299, 2)], 100)
    yield r("row_rank_1", "bad_value", "row_rank 1 of a tensor of one row: its words lie as "
            "with 0.", "R12.7", image=r.image(replace(row, row_rank=1), 0))
    cube = few("cube", XOR, [(3, 1), (300, 2)], 360)
    yield r("row_rank_of_cube", "bad_value", "row_rank 3 of three: 360 rows of a word in one "
            "segment.", "R12.7", image=r.image(replace(cube, segment=(360, 1), row_rank=3,
                                           sparse=Sparse(listed=((3, 300),))), 0))
    t = few("long", XOR, [(3, 1), (300, 2)], 400)
    for name, segment, tile in (("cols", (1, 400), (1, 16)), ("rows", (32, 400), (16, 400))):
        yield r(f"tile_{name}", "bad_value", f"tile_{name} is 16, segments are larger.", "R12.7",
                image=r.image(replace(t, segment=segment, tile=tile), 0))


def tables(r: _Spoiler) -> Iterator[Case]:
    f = r.base.image.fields
    end = f["tensor[0].words.n_units[1]"][0] + 4
    for name, field, n, text in (
        ("n_listed", "n_listed[2]", 2, "n_listed of the last segment"),
        ("n_gaps", "n_gaps.width", 0, "n_gaps"), ("n_gaps_values", "n_gaps", 1, "n_gaps' values"),
        ("words_crc32", "words_crc32[1]", 0, "the second words_crc32"),
        ("gaps_crc32", "gaps.segment_crc32[1]", 1, "the second CRC-32 of gaps"),
        ("gaps_table", "gaps.coder[0]", 2, "the table of gaps, in coder"),
        ("words_crc32s", "words.segment_crc32[0]", 0, "the CRC-32s of listed words"),
        ("words_table", "words.n_units[1].width", 0, "the last column"),
    ):
        at = f[f"tensor[0].{field}"][0] + n
        text = f"The record ends at {text}" + (
            ", of zeros." if name == "words_table" else "; who takes the rest for zeros finds "
            "numbers that break other rules.")
        yield r(f"cut_{name}", "bad_range", text, "R4.30 R12.8", image=r.resized(at, end - at, b""))
    at = end - 4
    yield r("cut_zeros", "bad_range", "The last column, of zeros, lacks its last three bytes.",
            "R4.30", image=r.resized(at + 1, 3, b""))
    yield r("left_over", "bad_range", "A byte behind the last table.", "R4.30",
            image=r.resized(end, 0, b"\0"))
    none = r.image(few("long", XOR, [], 400), 0)
    at = none.fields["tensor[0].n_listed[2]"][0] + 4
    yield r("left_over_none", "bad_range", "No word is listed, and the table goes on.",
            "R4.30 R12.8", image=r.resized(at, 0, bytes(5), none))
    most = {"tensor[0].shape[0]": 1 << 40}
    yield r("segments_most", "bad_range", "2^40 words in segments of 400: no room for n_listed.",
            "R4.38 R12.8", "Overflow", fields=most)
    for name, more in (("more", 16), ("less", -16), ("most", (1 << 63) - 1)):
        nbytes = len(r.base.image.data[32 : f["index"][0]])
        wrong = nbytes + more if abs(more) == 16 else more
        text = f"payload_nbytes is {abs(more)} {name} than it should be."
        yield r(f"payload_{name}", "bad_range",
                "payload_nbytes is 2^63 - 1." if name == "most" else text, "R4.34 R4.33",
                fields={"tensor[0].payload_nbytes": wrong})
    yield r("payload_tail", "bad_range",
            "16 bytes behind the lists, which payload_nbytes counts: R4.33 finds them too, if the "
            "sizes of records are summed.", "R4.34", image=r.with_lists(tail=bytes(16)))
    yield r("payload_of_none", "bad_range",
            "No word is listed, and there is a payload: R4.33 finds it too.", "R4.34 R12.8",
            image=r.image(replace(few("long", XOR, [], 400), sparse=Sparse(tail=bytes(16))), 0))


# ---- which words ---------------------------------------------------------------------------------
def counts(r: _Spoiler) -> Iterator[Case]:
    too = "; R12.11 cannot hold either"
    t = few("long", XOR, [(1195, 1), (1199, 2)], 1195,
            listed=((), (1195, 1196, 1197, 1198, 1199, 1199)), own_gaps={1: (0, 0, 0, 0, 0, 0)})
    yield r("n_listed_more", "bad_range", f"Six listed words of a segment of five{too}.", "R12.9",
            "Bracket", image=r.image(t, 0))
    zeros = (Segment(BYTES, (K(0),)),)
    bare = few("long", XOR, [], gaps=zeros, words=zeros, also=(0,))
    for n, flag in ((1201, "Bracket"), (U32, "Overflow")):
        yield r(f"n_listed_{'most' if n == U32 else n}", "bad_range",
                f"{n} listed words of a segment of 1200, constant as their gaps are: there is no "
                f"payload that they would have to be in{too}.", "R12.9", flag,
                image=r.image(bare, 0), fields={"tensor[0].n_listed[0]": n, "tensor[0].n_gaps": n})
    edits = [(3, 1), (300, 2)]
    fewer = few("long", XOR, edits, also=(301,), own_gaps={0: (3, 255)})
    yield r("n_gaps_less", "bad_range", f"Two gaps of three words{too}.", "R12.9", "Bracket",
            image=r.image(fewer, 0))
    more = few("long", XOR, edits, 500, own_gaps={0: (3, 255, 41, 255)})
    yield r("n_gaps_more", "bad_range", "Four gaps of two words of 500: (500 - 2) // 255 is 1, so "
            f"three would be the most{too}.", "R12.9", "Bracket", image=r.image(more, 0))
    none = r.image(bare, 0)
    yield r("n_gaps_most", "bad_range", f"2^32 - 1 gaps of a word, constant{too}.", "R12.9",
            "Overflow", image=none, fields={"tensor[0].n_gaps": U32})
    yield r("n_gaps_0", "bad_range", f"No gap of one word{too}.", "R12.9", image=none,
            fields={"tensor[0].n_gaps": 0})


def gaps(r: _Spoiler) -> Iterator[Case]:
    def one(name: str, text: str, edits: list[tuple[int, int]], size: int | None = None,
            /, **lists: Any) -> Case:
        fields = lists.pop("fields", {})
        image = r.image(few("long", XOR, edits, size, **lists), 0)
        return r(f"gaps_{name}", "bad_patch", text, "R12.11", "Payload", image=image, fields=fields)

    two = [(3, 1), (300, 2)]
    crc = _crc_of(few("long", XOR, two))  # of the words that the gaps list
    yield one("list_too_few", "The gaps list two words, n_listed is 3.", two, also=(301,),
              own_gaps={0: (3, 255, 41)}, fields=crc)
    yield one("list_too_many", "The gaps list three words, n_listed is 2.", two,
              own_gaps={0: (3, 255, 41, 5)})
    yield one("beyond_segment", "The last word that the first segment lists is in the second one.",
              [(3, 1), (230, 2)], 200, listed=((3, 230), (), (), (), (), ()))
    yield one("at_end_of_segment", "The word that the first segment lists is the first one of the "
              "second.", [(200, 2)], 200, listed=((200,), (), (), (), (), ()))
    yield one("beyond_tensor", "The last word that is listed would lie behind the tensor, so "
              "that no checksum holds.",
              [(3, 1), (1199, 2)], 1000, listed=((3,), (1000, 1199)),
              own_gaps={1: (0, 199)})
    yield one("at_end_of_tensor",
              "The word that is listed would be the first behind the tensor, so that no checksum "
              "holds.", [(1199, 2)], own_gaps={0: (255, 255, 255, 255, 180)})
    yield one("last_255", "The last gap skips 255 words that the segment has, and lists none.",
              two, own_gaps={0: (3, 255, 41, 255)})
    yield one("last_255_of_second", "So does that of the second segment.",
              [(3, 1), (700, 2)], 600, own_gaps={1: (100, 255)})
    yield one("all_255", "All gaps but one are 255, behind the one.",
              [(3, 1)], own_gaps={0: (3, 255, 255, 255, 255)})


def _crc_of(t: Tensor) -> dict[str, int]:
    """`words_crc32` of a tensor of one segment."""
    image = assemble(File((t,), base=(bytes(32), "")))
    at, n = image.fields["tensor[0].words_crc32[0]"]
    return {"tensor[0].words_crc32[0]": int.from_bytes(image.data[at : at + n], "little")}


# ---- checksums and the base ----------------------------------------------------------------------
def checksums(r: _Spoiler) -> Iterator[Case]:
    f, data = r.base.image.fields, r.base.image.data

    def other(name: str) -> dict[str, bytes]:
        at, n = f[name]
        return {name: bytes([data[at] ^ 1]) + data[at + 1 : at + n]}

    for name, field, text, rules in (
        ("gaps", "gaps.segment_crc32[1]", "of the second record of gaps", "R11.2 R12.10"),
        ("words", "words.segment_crc32[1]", "of the second record of listed words",
         "R11.2 R12.10"),
        ("of_words", "words_crc32[1]", "of the second list of words", "R12.13"),
        ("tensor", "crc32", "of the tensor", "R11.3"),
    ):
        yield r(f"crc32_{name}", "bad_checksum", f"The CRC-32 {text} is another one.", rules,
                "Checksum", fields=other(f"tensor[0].{field}"))
    yield r("difference_kind", "bad_checksum", "MINUS in place of XOR: words_crc32 finds it.",
            "R12.13 R12.5", fields={"tensor[0].flags": 6})
    yield r("base_missing", "bad_base", "A sparse tensor, and no base is given.", "R12.6",
            given=False, fields={"base.name": b"checkpoint.safetensorx"})
    yield r("base_other_hash", "bad_base", "The base's hash differs in one bit.", "R12.6",
            fields=other("base.sha256"))
    yield r("base_no_such_name", "bad_base", "The base has no tensor of this name.", "R12.6",
            fields={"tensor[0].name": b"lono"})
    unlike = few("long", XOR, [(3, 1)])
    yield r("base_other_shape", "bad_base", "The base's tensor has another shape: 2 x 600.",
            "R12.6", image=r.image(replace(unlike, shape=(2, 600)), 0))
    yield r("base_other_dtype", "bad_base", "The base's tensor has another dtype.", "R12.6",
            image=r.image(replace(unlike, dtype="int8"), 0))
    none = few("long", XOR, [])
    yield r("base_none_listed", "bad_base",
            "The base's hash is another one; no word is listed, and none is decoded.", "R12.6",
            image=r.image(none, 0, base=(bytes(32), "none")))


# ---- the tables of the lists ---------------------------------------------------------------------
def columns(r: _Spoiler) -> Iterator[Case]:
    t = r.base.file.tensors[0]
    for part, what in (("gaps", "gaps"), ("words", "listed words")):
        def spoilt(name: str, code: str, text: str, rules: str, segment: Segment, flags: str = "",
                   part: str = part, column: str = "", values: bytes = b"", **lists: Any) -> Case:
            is_coded = R(0) in segment.planes
            of = replace(t.sparse or Sparse(), **{part: (*coded(1), segment)}, **lists)
            if not is_coded:
                of = Sparse(**{part: (*raw(1), segment)})
            name_of = f"{part}.{column}"
            image = r.image(replace(t, sparse=of, widths={name_of: 4} if column else {}),
                            int(is_coded))
            return r(f"{part}_{name}", code, text, rules, flags, image=image,
                     fields={f"tensor[0].{name_of}": values} if column else {})

        def field(name: str, code: str, text: str, rules: str, flags: str = "", part: str = part,
                  **values: int) -> Case:
            fields = {f"tensor[0].{part}.{k}": v for k, v in values.items()}
            return r(f"{part}_{name}", code, text, rules, flags, image=r.plain.image, fields=fields)

        yield field("layout_3", "unsupported_coder", f"The layout of {what} is 3.", "R5.3 R12.10",
                    "Reserved Bracket", layout=3)
        yield field("layout_256", "bad_value", f"The layout of {what} is 256.", "R4.39 R12.10",
                    layout=256)
        yield spoilt("coder_3", "unsupported_coder", f"The coder of {what} is 3 in one of two "
                     "segments, which is stored as RAW.", "R10.5", Segment(BYTES, (P,)),
                     "Reserved Bracket", column="coder[0]", values=_u32s(0, 3))
        for n in (1, U32):
            yield spoilt(f"table_{'most' if n == U32 else n}", "bad_range",
                         f"Table {n} of {what}, of one.", "R10.5", Segment(BYTES, (R(0),)),
                         "Bracket" if n == 1 else "Overflow", column="table[0]",
                         values=_u32s(0, n))
        yield field("base_1", "bad_value", f"A window base of {what}, which have no window.",
                    "R5.8", base=1)
        yield spoilt("mode", "bad_value", f"A mode of {what} that are RAW.", "R7.2",
                     Segment(BYTES, (Plane(0, 0, 1),)))
        yield spoilt("plane_1", "bad_value", f"A second plane of {what}, whose words are one byte.",
                     "R5.9", Segment(BYTES, (P, K(0))))
        yield spoilt("stream", "bad_stream",
                     f"More words are left than a stream may have, in that of {what}.", "R9.11",
                     Segment(BYTES, (R(0),)), "Payload",
                     spoil=lambda name, k, p, s, of=part: s + bytes(16 * (k == 1 and name == of)))


def _u32s(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def records(r: _Spoiler) -> Iterator[Case]:
    padded = replace(r.plain.file.tensors[0], pad=0xA5)
    yield r.plain.spoil("either/sparse_padding", "",
                        "Padding of gaps and of listed words is not 0. A decoder need not look.",
                        "R2.4 R12.10", "Padding Payload Sparse", image=r.image(padded, 0))
    edits = [(i, w ^ 0x15) for i, w in zip((3, 300, 301), old_words("cube", (3, 300, 301)),
                                           strict=True)]
    patched = Segment(PAIRS, (P, P), 0, extra=(0x40 << 24 | 3,))
    yield r("words_patch", "bad_patch", "A patch of word 3 of three that are listed; the segment "
            "has 360.", "R10.8 R12.10", "Payload Patches",
            image=r.image(few("cube", XOR, edits, words=(patched,)), 0))
    tile = (Segment(BYTES, (R(0, (LEFT,)),)),)
    image = r.image(few("long", XOR, [(3, 1), (9, 2), (300, 3)], gaps=tile))
    at = image.fields["tensor[0].gaps.segment[0].modes"][0]
    yield r("gaps_tile_mode", "unsupported_coder", "Mode 5 of the one tile of gaps.",
            "R10.4 R12.10", "Payload PerTile Reserved", image=image, at={at: b"\5"})


def cases() -> Iterator[Case]:
    """The bases and all that is made from them."""
    r = _Spoiler()
    yield r.base.case
    yield r.plain.case
    for group in (flags, tables, counts, gaps, checksums, columns, records):
        yield from group(r)
