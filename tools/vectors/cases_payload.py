# fmt: off
# One case a paragraph: these are tables, and read as such.
"""Refused files whose fault lies in a segment table or in a payload,
and those that the format leaves open.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from assembler import File, Tensor, assemble
from assembler_coding import BYTES, PAIRS, PLAIN, RANS, RAW, Plane, Segment, TableSpec
from cases import U32, Base, Bases, Case, assembled, indexed, other_tensor, tensor
from cases_accept import bell


# ---- segment tables ------------------------------------------------------------------------------
def columns(b: Bases) -> Iterator[Case]:
    plain, pairs, coders, raw = b["bytes"], b["pairs"], b["coders"], b["raw"]

    def column(base: Base, name: str, code: str, text: str, rules: str, tags: str = "", /,
               **values: int) -> Case:
        """``coder_1=3`` is the column ``coder[1]``, of one value for all segments."""
        return base.spoil(f"reject/{name}", code, text, rules, tags,
                          fields={f"tensor[0].{indexed(k)}": v for k, v in values.items()})

    def wide(base: Base, name: str, code: str, text: str, rules: str, tags: str = "", /,
             **values: int) -> Case:
        """The same, in a file whose columns have 4 bytes an entry;
        the first entry alone changes.
        """
        image, fields = other_tensor(base, widths={"all": 4}), dict[str, int | bytes]()
        for key, value in values.items():
            at, n = image.fields[f"tensor[0].{indexed(key)}"]
            rest = bytes(image.data[at + 4 : at + n])
            fields[f"tensor[0].{indexed(key)}"] = value.to_bytes(4, "little") + rest
        return base.spoil(f"reject/{name}", code, text, rules, tags, fields=fields, image=image)

    for width in (3, 5, 8, 255):
        yield plain.spoil(f"reject/column_width_{width}", "bad_value",
                          f"A column of width {width}, whose values have so many bytes.", "R4.37",
                          image=other_tensor(plain, widths={"layout": width}))
    yield plain.spoil("reject/column_width_3_of_4", "bad_value",
                      "A column of width 3, whose values have 4 bytes.", "R4.37",
                      image=other_tensor(plain, widths={"layout": 4}),
                      fields={"tensor[0].layout.width": 3})
    yield plain.spoil("reject/column_width_4_cut", "bad_range",
                      "The last column says width 4 and holds one value.", "R4.30",
                      fields={"tensor[0].n_units[1].width": 4})
    for name, value in ("layout", BYTES), ("base", 0), ("coder_0", RANS), ("prediction_0", 0):
        yield wide(plain, f"column_{name}_256", "bad_value",
                   f"{name} is {256 + value}: right in its lowest byte.", "R4.39", "Overflow",
                   **{name: 256 + value})
    yield column(plain, "layout_3", "unsupported_coder", "Layout 3.", "R5.3", "Reserved", layout=3)
    yield column(plain, "layout_255", "unsupported_coder", "Layout 255.", "R5.3", "Reserved",
                 layout=255)
    yield wide(plain, "layout_3_of_one", "unsupported_coder",
               "Layout 3 of the first segment alone.", "R5.3", "Reserved", layout=3)
    for coder in (3, 5, 255):
        yield column(plain, f"coder_{coder}", "unsupported_coder", f"Coder {coder}.", "R10.5",
                     "Reserved", coder_0=coder)
    for mode in (5, 15, 21, 37, 48, 128, 254):
        yield column(plain, f"prediction_{mode}", "unsupported_coder",
                     f"Mode {mode} in the prediction column.", "R7.1", "Reserved",
                     prediction_0=mode)
    half = Tensor("w", "float16", (2, 40), bytes(160), (2, 40),
                  (Segment(PAIRS, (Plane(PLAIN), Plane(PLAIN))),))
    image = assemble(File((half,)))
    yield plain.spoil("reject/pairs_float16", "bad_value", "PAIRS on float16.", "R5.7", image=image)
    for dtype, nbytes in (("float64", 8), ("int32", 4), ("uint16", 2), ("complex128", 16)):
        more = Tensor("w", dtype, (1, 4), bytes(4 * nbytes), (1, 8),
                      (Segment(PAIRS, (Plane(PLAIN),) * min(nbytes, 8)),))
        yield plain.spoil(f"reject/pairs_{dtype}", "bad_value", f"PAIRS on {dtype}.", "R5.7",
                          image=assemble(File((more,))))
    yield column(plain, "base_with_bytes", "bad_value", "A base with layout BYTES.", "R5.8", base=1)
    yield column(raw, "base_with_raw", "bad_value", "A base with layout RAW.", "R5.8", base=1)
    small = tensor("w", "int8", (4, 40), bell(150), (4, 40),
                   (Segment(PAIRS, (Plane(RANS), Plane(PLAIN))),))
    nibbles = Base(*assembled("accept/base_nibbles", "PAIRS of one-byte words.", "R5.7", "",
                              File((small,), (TableSpec(),))), File((small,), (TableSpec(),)))
    yield nibbles.case
    yield column(nibbles, "base_with_bytes_in_pairs", "bad_value",
                 "A base with PAIRS of one-byte words.", "R5.8", base=16)
    yield column(nibbles, "patches_with_bytes_in_pairs", "bad_range",
                 "Patches with PAIRS of one-byte words.", "R10.9", n_patches=1)
    yield column(pairs, "base_241", "bad_value", "Base 241.", "R5.8", "Bracket", base=241)
    yield column(pairs, "base_255", "bad_value", "Base 255.", "R5.8", base=255)
    stray = {
        "bytes": Tensor("w", "bfloat16", (4, 5), bytes(40), (4, 5),
                        (Segment(BYTES, (Plane(PLAIN), Plane(PLAIN)), extra=(7,)),)),
        "raw": Tensor("w", "bfloat16", (4, 5), bytes(40), (4, 5), (Segment(RAW, extra=(7,)),)),
        "nibbles": Tensor("w", "uint8", (4, 5), bytes(20), (4, 5),
                          (Segment(PAIRS, (Plane(PLAIN), Plane(PLAIN)), extra=(7,)),)),
    }
    for name, t in stray.items():
        yield pairs.spoil(f"reject/patch_in_{name}", "bad_range",
                          f"A patch, stored as it should be, with {name}: there is no window.",
                          "R10.9", image=assemble(File((t,))))
    full = Tensor("w", "bfloat16", (1, 3), bytes(6), (1, 3),
                  (Segment(PAIRS, (Plane(PLAIN), Plane(PLAIN)), 100, extra=(2,)),))
    yield pairs.spoil("reject/patches_n_plus_1", "bad_range",
                      "Three words, four patches, all of them stored.", "R10.9", "Bracket",
                      image=assemble(File((full,))))
    yield wide(pairs, "patches_above_n", "bad_range", "A patch more than the segment has words.",
               "R10.9", "Bracket", n_patches=257)
    yield wide(pairs, "patches_most", "bad_range", "2^32 - 1 patches.", "R10.9", "Overflow",
               n_patches=U32)
    yield wide(pairs, "patches_fewer", "bad_range", "No patches: the sizes no longer sum.",
               "R4.34 R10.6", n_patches=0)
    yield plain.spoil("reject/patches_with_bytes", "bad_range", "Patches with layout BYTES.",
                      "R10.9", image=other_tensor(plain, segment=(20, 30)),
                      fields={"tensor[0].n_patches": 1})
    yield column(raw, "patches_with_raw", "bad_range", "Patches with layout RAW.", "R10.9",
                 n_patches=1)
    yield column(raw, "coder_with_raw", "bad_value", "A coder with layout RAW.", "R5.9", coder_0=1)
    yield column(raw, "table_with_raw", "bad_value", "A table with layout RAW.", "R5.9", table_1=1)
    yield column(raw, "units_with_raw", "bad_value", "n_units with layout RAW.", "R5.9",
                 n_units_0=8)
    yield column(raw, "prediction_with_raw", "bad_value", "A mode with layout RAW.", "R5.9 R7.2",
                 prediction_0=1)
    for name in ("coder", "table", "prediction", "n_units"):
        yield column(plain, f"plane_1_{name}", "bad_value",
                     f"{name} of the second plane of one-byte words with layout BYTES.", "R5.9",
                     **{f"{name}_1": 1})
    yield column(coders, "prediction_on_raw", "bad_value", "A mode on a RAW plane.", "R7.2",
                 prediction_2=1)
    yield column(coders, "prediction_on_constant", "bad_value", "A mode on a CONSTANT plane.",
                 "R7.2", prediction_0=2)
    zeros = tensor("w", "uint8", (2, 20), {"recipe": "hex", "bytes": "00" * 40}, (2, 20),
                   (Segment(BYTES, (Plane(PLAIN),)),))
    yield plain.spoil("reject/prediction_on_raw_255", "bad_value", "Modes of tiles on a RAW plane.",
                      "R7.2", image=assemble(File((zeros,))),
                      fields={"tensor[0].prediction[0]": 255})
    yield column(pairs, "prediction_with_pairs", "bad_value", "A mode with layout PAIRS.", "R7.2",
                 prediction_0=1)
    yield column(pairs, "prediction_with_pairs_plane_1", "bad_value",
                 "A mode on the second plane of PAIRS.", "R7.2", prediction_1=4)
    yield column(plain, "table_out_of_range", "bad_range", "Table 1 of 1.", "R10.5", "Bracket",
                 table_0=1)
    yield column(plain, "table_most", "bad_range", "Table 2^32 - 1.", "R10.5", "Overflow",
                 table_0=U32)
    yield column(coders, "constant_256", "bad_range", "A constant of 256.", "R10.5", "Bracket",
                 table_0=256)
    yield column(coders, "constant_most", "bad_range", "A constant of 2^32 - 1.", "R10.5",
                 "Overflow", table_0=U32)
    yield column(coders, "table_of_raw_plane", "bad_range", "The table of a RAW plane is 1.",
                 "R10.5", table_2=1)
    yield column(coders, "units_of_raw_plane", "bad_range", "n_units of a RAW plane is 1.", "R10.6",
                 n_units_2=1)
    yield column(coders, "units_of_constant", "bad_range", "n_units of a CONSTANT plane is 8.",
                 "R10.6", n_units_0=8)
    yield wide(plain, "units_7", "bad_range", "n_units is 7: the start states alone need 8.",
               "R9.10", "Bracket", n_units_0=7)
    yield wide(plain, "units_0", "bad_range", "n_units is 0.", "R9.10", n_units_0=0)
    yield wide(plain, "units_too_many", "bad_range", "One unit more than a word a symbol.", "R9.10",
               "Bracket", n_units_0=8 + 16 * 4 + 1)
    yield wide(plain, "units_most", "bad_range", "n_units is 2^32 - 1.", "R9.10", "Overflow",
               n_units_0=U32)
    yield wide(plain, "units_wrap", "bad_range", "n_units is 2^28: 0 bytes in 32 bits.", "R9.10",
               "Overflow", n_units_0=1 << 28)
    at, n = plain.image.fields["tensor[0].n_units[0]"]
    units = plain.case.data[at : at + n]
    yield plain.spoil("reject/units_one_more", "bad_range",
                      "n_units one more than stored: the sizes no longer sum.", "R4.34 R10.6",
                      fields={"tensor[0].n_units[0]": bytes([units[0] + 1]) + units[1:]})


# ---- payloads ------------------------------------------------------------------------------------
def payloads(b: Bases) -> Iterator[Case]:
    plain, pairs, tiles, both = b["bytes"], b["pairs"], b["tiles"], b["both_planes"]
    data, f = plain.case.data, plain.image.fields
    at, n = f["tensor[0].segment[0].plane[0]"]
    wrong = "R9.11"

    def stream(name: str, text: str, changes: dict[int, bytes]) -> Case:
        return plain.spoil(f"reject/stream_{name}", "bad_stream", text, wrong, "Payload",
                           at=changes)

    def flipped(offset: int, mask: int) -> dict[int, bytes]:
        return {offset: bytes([data[offset] ^ mask])}

    yield stream("state_lane_0", "The lowest bit of lane 0's start state.", flipped(at, 1))
    yield stream("state_lane_31", "The highest bit of lane 31's start state.",
                 flipped(at + 127, 128))
    yield stream("states_0", "All start states are 0: no state ends as 2^16.",
                 {at: bytes(128)})
    yield stream("states_most", "All start states are 2^32 - 1.", {at: b"\xff" * 128})
    yield stream("states_swapped", "Two lanes' start states are exchanged.",
                 {at: data[at + 4 : at + 8] + data[at : at + 4]})
    yield stream("first_word", "A bit of the first word.", flipped(at + 128, 1))
    yield stream("last_word", "A bit of the last word.", flipped(at + n - 1, 0x40))
    yield stream("words_swapped",
                 "The first two words are exchanged: lanes take them in ascending order.",
                 {at + 128: data[at + 130 : at + 132] + data[at + 128 : at + 130]})
    yield stream("words_0", "All words are 0.", {at + 128: bytes(n - 128)})
    at1 = f["tensor[0].segment[1].plane[0]"][0]
    yield stream("of_last_segment", "A bit in the last segment's stream.", flipped(at1 + 60, 4))

    def spoilt(name: str, text: str, change: Callable[[bytes], bytes]) -> Case:
        def only_first(k: int, p: int, s: bytes) -> bytes:
            return change(s) if (k, p) == (0, 0) else s

        image = other_tensor(plain, spoil=only_first)
        return plain.spoil(f"reject/stream_{name}", "bad_stream", text, wrong, "Payload",
                           image=image)

    yield spoilt("word_too_few", "The last word is missing.", lambda s: s[:-2])
    yield spoilt("unit_too_few", "The last 16 bytes are missing.",
                 lambda s: (s + bytes(-len(s) % 16))[:-16])
    yield spoilt("word_first", "A word more in front of the others.",
                 lambda s: s[:128] + b"\1\2" + s[128:])
    yield spoilt("unit_too_many", "A unit of zeros behind the padding.",
                 lambda s: s + bytes(-len(s) % 16) + bytes(16))
    yield spoilt("no_words", "The start states alone.", lambda s: s[:128])
    more = struct.unpack("<I", data[at + 40 : at + 44])[0] + 1
    yield stream("state_more", "A start state that is one more.",
                 {at + 40: struct.pack("<I", more)})

    p_at, p_n = pairs.image.fields["tensor[0].segment[0].patches"]
    values = struct.unpack(f"<{p_n // 4}I", pairs.case.data[p_at : p_at + p_n])

    def patched(name: str, text: str, new: list[int]) -> Case:
        return pairs.spoil(f"reject/patch_{name}", "bad_patch", text, "R10.8", "Payload Patches",
                           at={p_at: struct.pack(f"<{len(new)}I", *new)})

    last = values[-1] >> 24 << 24
    yield patched("beyond", "The index of the last patch is the number of words.",
                  [*values[:-1], last | 256])
    yield patched("far_beyond", "The index of the last patch is 2^24 - 1.",
                  [*values[:-1], last | 0xFFFFFF])
    yield patched("order", "Two patches exchanged.", [values[1], values[0], *values[2:]])
    yield patched("twice", "An index twice.", [values[0], values[0], *values[2:]])
    yield patched("same_index", "An index twice, with other values.",
                  [values[0], (values[1] >> 24 << 24) | values[0] & 0xFFFFFF, *values[2:]])
    q_at, q_n = pairs.image.fields["tensor[0].segment[1].patches"]
    one = struct.unpack("<I", pairs.case.data[q_at : q_at + 4])[0]
    ragged = {q_at + q_n - 4: struct.pack("<I", one >> 24 << 24 | 120)}
    yield pairs.spoil("reject/patch_beyond_ragged", "bad_patch",
                      "An index within a whole segment, but beyond the short last one.",
                      "R10.8 R6.6", "Payload Patches Ragged", at=ragged)
    value = {p_at: struct.pack("<I", values[0] ^ 1 << 24)}
    yield pairs.spoil("reject/patch_value", "bad_checksum",
                      "Another value of a patch: the tensor's CRC-32 finds it.", "R11.3",
                      "Payload Patches", at=value)

    m_at, m_n = tiles.image.fields["tensor[0].segment[0].modes"]
    for tile, mode in ((0, 5), (5, 255), (2, 15), (1, 21), (3, 37), (4, 48), (m_n - 1, 128)):
        text = f"Mode {mode} of tile {tile}."
        yield tiles.spoil(f"reject/tile_mode_{mode}", "unsupported_coder", text, "R10.4",
                          "Payload PerTile Reserved", at={m_at + tile: bytes([mode])})
    ragged_at = tiles.image.fields["tensor[0].segment[1].modes"][0]
    yield tiles.spoil("reject/tile_mode_last_segment", "unsupported_coder",
                      "Mode 6 in the short last segment.", "R10.4", "Payload PerTile Ragged",
                      at={ragged_at + 2: b"\6"})
    both_at = both.image.fields["tensor[0].segment[0].modes"][0]
    yield both.spoil("reject/tile_mode_plane_1", "unsupported_coder",
                     "Mode 5 of the second plane's last tile.", "R10.4", "Payload PerTile",
                     at={both_at + 5: b"\5"})
    yield tiles.spoil("reject/tile_mode_other", "bad_checksum",
                      "Another mode: the tensor's CRC-32 finds it.", "R11.3 R10.4",
                      "Payload PerTile", at={m_at + 1: b"\2"})
    word_at = b["raw"].image.fields["tensor[0].segment[0].words"][0]
    yield b["raw"].spoil("reject/raw_word", "bad_checksum",
                         "Another word, with the CRC-32 of its record: the tensor's finds it.",
                         "R11.3", "Payload", at={word_at: b"\0\0"})


def either(b: Bases) -> Iterator[Case]:
    for name, base, part in (("words", "raw", "words"), ("modes", "tiles", "modes"),
                             ("patches", "pairs", "patches"), ("plane", "coders", "plane[2]")):
        field = f"tensor[0].segment[{1 if name == 'plane' else 0}].{part}.padding"
        at, n = b[base].image.fields[field]
        text = f"The padding behind the {name} is not 0. A decoder need not look."
        yield b[base].spoil(f"either/padding_{name}", "", text, "R2.4 R10.2", "Padding Payload",
                            at={at: b"\xa5" * n})
    base = b["bytes"]
    for k in (0, 1):
        field = f"tensor[0].segment[{k}].plane[0].padding"
        if field in base.image.fields:
            at, n = base.image.fields[field]
            text = f"The padding behind a stream holds {n // 2} words. A decoder need not look."
            yield base.spoil(f"either/padding_stream_{k}", "", text, "R2.4 R9.11",
                             "Padding Payload", at={at: b"\xa5" * n})


def cases(b: Bases) -> Iterator[Case]:
    """All of them."""
    for group in (columns, payloads, either):
        yield from group(b)
