# fmt: off
# One case a paragraph: these are tables, and read as such.
"""Operands: files that every decoder must read, and matrix kernels can multiply by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from assembler import File
from assembler_coding import PAIRS, PLAIN, RANS, Plane, Segment, TableSpec
from cases import Case, assembled, encoded, tensor
from cases_accept import _two, bell, bf16, weights

RULES = "R14.1 R14.2 R14.3 R14.4"
RECIPES = {"bfloat16": bf16(301), "int8": bell(302, 4, 4, -32),
           "float8_e4m3fn": weights(303, 3, 9, 8), "float8_e5m2": weights(304, 2, 17, 12)}
WORDS = {  #: zeros, subnormals, infinities, NaNs
    "bfloat16": (0x0000, 0x8000, 0x0001, 0x807F, 0x7F80, 0xFF81, 0x7FC0),
    "int8": (0x00, 0x80, 0x7F), "float8_e4m3fn": (0x00, 0x80, 0x01, 0x7F, 0xFF),
    "float8_e5m2": (0x00, 0x80, 0x83, 0x7C, 0xFD, 0x7F),
}


def _with_words(dtype: str, step: int) -> dict[str, Any]:
    return RECIPES[dtype] | {"set": [[5 + i * step, hex(w)] for i, w in enumerate(WORDS[dtype])]}


def _encoded() -> Iterator[Case]:
    for d in RECIPES:
        flags = "Operand Ragged SpecialValues" + " Patches" * (d == "bfloat16")
        patches = " as patches" if d == "bfloat16" else ""
        text = (f"{d}, 8 and 5 rows, two tiles and 6 columns: "
                f"zeros, subnormals, infinities, NaNs{patches}.")
        yield encoded(f"accept/operand_fixed_{d}", text, f"{RULES} R6.9 R10.8", flags,
                      [("w", d, (13, 70), _with_words(d, 131))], operand="fixed")
        text = f"{d}, plane 0 of 8 x 256 words coded, of 1 x 256 raw."
        yield encoded(f"accept/operand_rans_{d}", text, f"{RULES} R14.5 R14.6 R9.2", flags,
                      [("w", d, (9, 256), _with_words(d, 349))], operand="rans")
    yield encoded("accept/operand_fixed_one_row", "One row of two segments.", RULES,
                  "Operand Ragged", [("w", "int8", (1, 1030), bell(305, 4, 4, -32))],
                  operand="rans")
    yield encoded("accept/operand_fixed_one_word", "One word: an odd code.", RULES,
                  "Operand Ragged Bracket", [("w", "float8_e5m2", (1, 1), RECIPES["float8_e5m2"])],
                  operand="fixed")
    text = ("Two segments across; the second has columns left over behind its last tile, "
            "so it is raw.")
    yield encoded("accept/operand_rans_across", text, f"{RULES} R14.5", "Operand Ragged",
                  [("w", "int8", (8, 1060), bell(306, 4, 4, -32))], operand="rans")
    zeros = bf16(307) | {"set": [[128 + i, "0x0"] for i in range(16)]}
    yield encoded("accept/operand_fixed_zero_row",
                  "A row of zeros is a segment with a window of its own.", f"{RULES} R5.8",
                  "Operand Ragged", [("w", "bfloat16", (9, 16), zeros)], operand="fixed")
    both = [("a", "int8", (8, 256), bell(308, 4, 4, -32)),
            ("b", "int8", (8, 256), bell(309, 4, 4, -32)), ("c", "bfloat16", (8, 0), bf16(310)),
            ("d", "float16", (3, 5), weights(311, 10, 13, 10))]
    yield encoded("accept/encoder_operand",
                  "Two tensors under the same table; an empty one and one of float16, which are "
                  "none.", "R14.1 R14.6 R10.5", "EmptyTensor", both, operand="rans")


def _assembled() -> Iterator[Case]:
    raw, coded = (Plane(PLAIN), Plane(PLAIN)), (Plane(RANS, 1), Plane(PLAIN))
    patched = bf16(320) | {"set": [[3, "0x7f80"], [31, "0x0"], [32, "0xff81"], [500, "0x8001"],
                                   [530, "0x0"], [1023, "0x7fff"]]}
    segments = (Segment(PAIRS, coded, 110, 9), Segment(PAIRS, raw, 100, 3),
                Segment(PAIRS, coded, 108, 0), Segment(PAIRS, raw, 111, 15))
    w = tensor("w", "bfloat16", (32, 32), patched, (8, 1024), segments, (8, 32))
    text = ("Raw and coded segments with windows of their own, under the second of two tables, "
            "which has no symbols but theirs; patches in both.")
    yield assembled("accept/operand_rans_mixed", text, f"{RULES} R14.6 R10.8",
                    "Operand Patches UnusualEncoder",
                    File((w,), (TableSpec(9, freq=_two(1, 255, 9)), TableSpec(10))))[0]
    w = tensor("w", "float8_e4m3fn", (19, 96), weights(321, 3, 9, 8), (8, 1024),
               (Segment(PAIRS, raw), Segment(PAIRS, (Plane(RANS), Plane(PLAIN))),
                Segment(PAIRS, raw, 0, 7)), (8, 32))
    yield assembled("accept/operand_rans_second", "The second segment alone is coded.",
                    f"{RULES} R14.5", "Operand Ragged UnusualEncoder",
                    File((w,), (TableSpec(),)))[0]


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _encoded()
    yield from _assembled()
