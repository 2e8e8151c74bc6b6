# fmt: off
# One case a paragraph: these are tables, and read as such.
"""What decoders got wrong and no other case shows: each of these cases was made for a mistake that
was planted in a decoder and passed all others.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from assembler import File, Image, Tensor, assemble, content_hash
from assembler_coding import (
    AVG,
    BYTES,
    DTYPES,
    LEFT,
    MINUS,
    PAIRS,
    PLANAR,
    SCALE,
    TOP,
    XOR,
    MapSpec,
    Segment,
    TableSpec,
)
from cases import Base, Bases, Case, assembled, other_tensor, reseal, tensor
from cases_accept import K, P, R, bell, bf16, choice, constant, one
from cases_modes import BASE, C, again, base_checkpoint, changed
from cases_reject import _index, _with_index

ALL = 4  #: steps of a lane in a group


# ---- accepted ------------------------------------------------------------------------------------
def streams() -> Iterator[tuple[Case, Image]]:
    rules = "R9.9 R9.10"
    for name, text, early in (
        ("low", "Start states below 2^16, and states that stay there for a step: a lane takes one "
                "word a step.", (1, 2, ALL, 3, 0, 2)),
        ("most_units", "Each lane takes a word in each step: as many units as there may be.",
         (ALL,) * 32),
    ):
        chosen = Segment(BYTES, (R(),), early=early)
        w = tensor("w", "uint8", (2, 64), bell(400), (2, 64), (chosen,))
        yield assembled(f"accept/stream_{name}", text, rules, "UnusualEncoder Bracket", one(w))


def geometry() -> Iterator[tuple[Case, Image]]:
    whole = Segment(BYTES, (R(0, ((LEFT, TOP, AVG, PLANAR) * 5)[:19]),))
    clipped = Segment(BYTES, (R(0, (TOP,)),))
    w = tensor("w", "uint8", (20, 320), bell(401), (16, 304), (whole, clipped) * 2, (16, 16))
    yield assembled("accept/tiles_of_clipped_segments",
                    "Segments of 19 tiles, and at the edge of one: 32 bytes of modes, and 16.",
                    "R6.6 R6.8 R10.4", "PerTile Ragged", one(w))


def records() -> Iterator[tuple[Case, Image]]:
    w = tensor("w", "bfloat16", (9, 17), bf16(402), (9, 17), (Segment(PAIRS, (C(257), P), 110),))
    tables = (*(TableSpec(freq=(2048, 2048, *(0,) * 254)),) * 258, TableSpec())
    maps = (*(MapSpec(SCALE, (0,), (i,)) for i in range(257)), MapSpec(SCALE, (0,), (258,)))
    yield assembled("accept/pool_of_259", "Table 258 of 259, and context map 257 of 258: more than "
                    "a byte counts.", "R4.20 R4.25 R10.5", "Contexts DeflatedIndex Bracket",
                    File((w,), tables, maps=maps, coding=1))
    plain = tensor("w", "uint8", (3, 4), constant(9), (3, 4), (Segment(BYTES, (K(9),)),))
    file = File((plain,), (TableSpec(freq=(2048, 2048, *(0,) * 254)),), base=(bytes(32), "x"),
                records=("base", "tables", "tensor0"))
    yield assembled("accept/records_base_first", "BASE in front of TABLES.", "R4.19",
                    "UnusualEncoder", file)
    two = replace(plain, name="a\0b"), replace(plain, name="a\0c")
    yield assembled("accept/name_nul", "Two names that are equal up to their NUL.", "R4.32 R2.6",
                    "UnusualEncoder", File(two))


def differences() -> Iterator[tuple[Case, Image]]:
    made = base_checkpoint()
    base = (content_hash(made[2].tensors), "base")
    tensors = list[Tensor]()
    for name in ("w1", "w2", "w4", "w8"):
        dtype, shape, recipe = BASE[name]
        n = DTYPES[dtype][1]
        data = tensor(name, dtype, shape, recipe, shape).data
        word = (int.from_bytes(data[:n], "little") + (1 << 8 * n - 1)) % (1 << 8 * n)
        tensors.append(changed(name, MINUS, [(0, word)], *(R(0),) * n))
    yield assembled("accept/difference_minus_half",
                    "The first word of each tensor is that of the base and half of all there are: "
                    "z is 2^n - 1.", "R12.5", "Difference Bracket Overflow",
                    File(tuple(tensors), (TableSpec(),), base=base), base_checkpoint=made[0].id)
    a = tensor("é", "uint8", (3, 20), bell(403), (3, 20))
    b = tensor("z", "uint8", (3, 20), bell(404), (3, 20))
    checkpoint = File((a, b, again(a, "tied", 0)))
    given = assembled("accept/checkpoint_duplicates",
                      "A base with a duplicate; of its names, one begins with a byte above 127.",
                      "R11.4 R4.28", "Difference Duplicates", checkpoint)
    yield given
    new = bytearray(a.data)
    new[7] ^= 9
    recipe = bell(403) | {"set": [[7, hex(new[7])]]}
    tied = tensor("tied", "uint8", (3, 20), recipe, (3, 20), (Segment(BYTES, (R(),)),),
                  difference=XOR, base=a.data)
    file = File((tied,), (TableSpec(),), base=(content_hash(checkpoint.tensors), "base"))
    yield assembled("accept/difference_of_duplicate",
                    "A difference from a duplicate. The content hash counts it too, and orders "
                    "names by their bytes, unsigned.", "R11.4 R12.4 R12.5", "Difference Duplicates",
                    file, base_checkpoint=given[0].id)
    plain = tensor("w", "uint8", (3, 4), constant(9), (3, 4), (Segment(BYTES, (K(9),)),))
    yield assembled("accept/base_not_needed", "A BASE record, no difference, and another "
                    "checkpoint for a base: nobody needs it.", "R12.6", "UnusualEncoder",
                    File((plain,), base=(bytes(32), "x")), base_checkpoint=made[0].id)


# ---- refused -------------------------------------------------------------------------------------
def of_nothing(case: Case) -> Case:
    """A refused file whose base is none of the cases: it counts as one made by hand."""
    more = {k: v for k, v in case.more.items() if k not in ("base", "edits", "refit")}
    return replace(case, flags=["Assembled", *case.flags[1:]], more=more)


def bad_streams() -> Iterator[Case]:
    """Streams that end as they must not: each in a file of one tensor."""
    def case(name: str, text: str, w: Tensor, spoil: Callable[[bytes], bytes]) -> Case:
        good = one(w)
        base = Base(*assembled(f"accept/{name}_not", "", "", "", good), good)

        def first(_: int, p: int, s: bytes) -> bytes:
            return spoil(s) if p == 0 else s

        made = base.spoil(f"reject/stream_{name}", "bad_stream", text, "R9.11", "Payload Bracket",
                          image=other_tensor(base, spoil=first))
        return of_nothing(made)

    few = tensor("w", "uint8", (1, 4), bell(405), (1, 4), (Segment(BYTES, (R(),)),))

    def other_lane(s: bytes) -> bytes:
        state = int.from_bytes(s[124:128], "little") + (1 << 22)
        return s[:124] + state.to_bytes(4, "little") + s[128:]

    yield case("state_of_filling", "The state of a lane that holds filling alone does not end as "
               "2^16.", few, other_lane)
    for left in (8, 9, 13):
        w, _ = _with_words(-left % 8, "uint8", bell(406), ())
        yield case(f"{left}_words_left", f"{left} words are left.", w,
                   lambda s, left=left: s + bytes(2 * left))  # type: ignore[misc]
    w, n = _with_words(1, "uint16", choice(407, *(i << 8 for i in (3, 4, 4, 4, 5, 7))),
                       (0,) * 31 + (ALL,))
    yield case("missing_word_0", "The last word is missing. It would be 0, and so are the bytes of "
               "the next plane that follow.", w, lambda s: s[: 128 + 2 * n - 2])


def _with_words(rest: int, dtype: str, recipe: dict[str, Any],
                early: tuple[int, ...]) -> tuple[Tensor, int]:
    """A tensor whose stream has a number of words with this rest modulo 8, and that number."""
    planes = (R(), P)[: DTYPES[dtype][1]]
    for more in range(30):
        lanes = tuple(1 if i < more else e for i, e in
                      enumerate((*early, *(0,) * (32 - len(early)))))
        sizes = list[int]()

        def seen(_: int, p: int, s: bytes, sizes: list[int] = sizes) -> bytes:
            sizes.append(len(s))
            return s

        w = tensor("w", dtype, (2, 64), recipe, (2, 64), (Segment(BYTES, planes, early=lanes),))
        assemble(one(replace(w, spoil=seen)))
        if (sizes[0] - 128) // 2 % 8 == rest:
            return w, (sizes[0] - 128) // 2
    raise ValueError("no such stream")


def bad_records(b: Bases) -> Iterator[Case]:
    records, deflated = b["records"], b["deflated"]
    yield records.spoil("reject/record_private_must_understand", "unsupported_record",
                        "A record of a private type with MUST_UNDERSTAND.", "R4.18",
                        fields={"record[3].flags": 1, "record[3].type": 0x8000})
    for name, text, data in (("3", "the letter / in three bytes", b"\xe0\x80\xafrs"),
                             ("4", "the letter / in four bytes", b"\xf0\x80\x80\xaft")):
        yield records.spoil(f"reject/name_overlong_{name}", "bad_name", f"A name with {text}.",
                            "R2.6 R4.32", fields={"tensor[0].name": data})
    at, n = deflated.image.fields["index"]
    raw = zlib.decompress(deflated.case.data[at : at + n])
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    for name, stored in (("raw", stream.compress(raw) + stream.flush()),
                         ("gzip", gzip.compress(raw, 9, mtime=0))):
        yield deflated.spoil(f"reject/index_{name}_deflate", "bad_stream",
                             f"The index is deflated, {name}, and no zlib stream.", "R4.15",
                             "DeflatedIndex",
                             image=reseal(_with_index(deflated, raw, stored=stored)))
    none = File(())
    base = Base(*assembled("accept/no_tensors_not", "", "", "", none), none)
    made = base.spoil("reject/payload_without_tensors", "bad_range",
                      "16 bytes of payload, and no tensors.", "R4.33",
                      image=_with_index(base, _index(base), gap=16))
    yield of_nothing(made)


def bad_tensors(b: Bases) -> Iterator[Case]:
    def case(id: str, code: str, text: str, rules: str, flags: str, file: File,
             fields: dict[str, Any] | None = None, **more: Any) -> Case:
        base = Base(*assembled("accept/edge", "", "", "", file), file)
        made = base.spoil(f"reject/{id}", code, text, rules, flags, image=base.image,
                          fields=fields, also=more)
        return of_nothing(made)

    empty = tensor("w", "uint8", (0, 40), constant(0), (32, 40))
    for name, fields in (
        ("segment_rows_0", {"segment_rows": 0, "tile_rows": 0}),
        ("tile_cols_15", {"segment_cols": 30, "tile_cols": 15}),
        ("tile_cols_divide", {"tile_cols": 16}),
    ):
        yield case(f"empty_{name}", "bad_range", "Of a tensor without words: "
                   + ", ".join(f"{k} is {v}" for k, v in fields.items()) + ".",
                   "R6.5" if "0" in name[-2:] else "R6.7", "EmptyTensor", File((empty,)),
                   {f"tensor[0].{k}": v for k, v in fields.items()})
    yield case("empty_crc32", "bad_checksum", "The CRC-32 of a tensor without words is 1.",
               "R11.3 R11.1", "EmptyTensor Checksum", File((empty,)), {"tensor[0].crc32": 1})
    same = tensor("w", "uint8", (3, 4), constant(9), (3, 4), (Segment(BYTES, (K(9),)),))
    yield case("empty_record_crc32", "bad_checksum", "The CRC-32 of a record of no bytes is 1.",
               "R11.2 R11.1", "Checksum", File((same,)), {"tensor[0].segment_crc32[0]": 1})
    made = base_checkpoint()
    of = (content_hash(made[2].tensors), "base")
    given = {"base_checkpoint": made[0].id}
    nothing = changed("empty", XOR, [])
    yield case("empty_base_missing", "bad_base", "A difference without words, and no base.",
               "R12.6", "EmptyTensor Difference", File((nothing,), base=of))
    yield case("empty_no_such_name", "bad_base",
               "A difference without words of a tensor that the base does not have.", "R12.6",
               "EmptyTensor Difference", File((replace(nothing, name="gone"),), base=of), **given)
    minus = changed("w2", MINUS, [(0, 0x7FC0)], R(0), R(0))
    image_of = File((minus,), (TableSpec(),), base=of)
    nibbles = replace(minus, segments=(Segment(PAIRS, (R(0), R(0)), 0),))
    yield case("difference_minus_pairs", "bad_value",
               "Nibble pairs of z, which is coded as uint16.", "R5.7 R12.5", "Difference",
               replace(image_of, tensors=(nibbles,)), **given)


def bad_coders(b: Bases) -> Iterator[Case]:
    contexts = b["contexts"]
    yield contexts.spoil("reject/context_coder_3", "unsupported_coder",
                         "Coder 3 where CONTEXT stood.", "R10.5", "Reserved Bracket",
                         fields={"tensor[0].coder[1]": 3})


def cases(b: Bases) -> Iterator[Case]:
    """All of them; `b` are bases of other modules."""
    for made in (streams, geometry, records, differences):
        yield from (case for case, _ in made())
    yield from bad_streams()
    for group in (bad_records, bad_tensors, bad_coders):
        yield from group(b)
