# fmt: off
# One case a paragraph: these are tables, and read as such.
"""Files that every decoder must refuse, and those that the format leaves open:
accepted files with literal edits.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cases_payload
from assembler import File, Image, Tensor, assemble, seal, table_image
from assembler_coding import Segment, TableSpec, exp_golomb
from cases import (
    U32,
    U64,
    Base,
    Bases,
    Case,
    assembled,
    indexed,
    other_tensor,
    rebuilt,
    reseal,
    tensor,
)
from cases_accept import base_files, bell, ratio_file


def bases() -> Bases:
    """The accepted files that the others are made from."""
    out = {}
    for name, (comment, rules, flags, file) in base_files().items():
        out[name] = Base(*assembled(f"accept/base_{name}", comment, rules, flags, file), file)
    source = out["records"].file
    file = replace(source, coding=1, metadata=tuple((f"key {i}", "value") for i in range(20)))
    made = assembled("accept/base_deflated", "All kinds of records, deflated.", "R4.12 R4.15",
                     "DeflatedIndex UnusualEncoder", file)
    out["deflated"] = Base(*made, file)
    return out


# ---- header and footer ---------------------------------------------------------------------------
def header(b: Bases) -> Iterator[Case]:
    r = b["records"].spoil
    yield r("reject/magic_first_byte", "bad_magic", "The first byte of the magic.", "R4.2",
            at={0: b"\x88"})
    yield r("reject/magic_last_byte", "bad_magic", "The magic with a carriage return.", "R4.2",
            at={7: b"\r"})
    yield r("reject/magic_safetensors", "bad_magic", "The start of a safetensors file.", "R4.2",
            at={0: struct.pack("<Q", 64)})
    yield r("reject/header_crc", "bad_checksum", "header_crc32.", "R4.3", "Checksum",
            at={28: bytes(4)}, refit=False)
    yield r("reject/header_crc_of_field", "bad_checksum",
            "A reserved field changed and the CRC-32 not.", "R4.3", "Checksum", at={24: b"\1"},
            refit=False)
    yield r("reject/version_0_0", "unsupported_version", "Version 0.0.", "R4.4",
            fields={"header.minor": 0})
    for minor in (1, 3):
        yield r(f"reject/version_0_{minor}", "unsupported_version",
                f"Version 0.{minor}: while major is 0 each minor is another format.", "R4.4",
                fields={"header.minor": minor})
    yield r("reject/version_1_1", "unsupported_version", "Version 1.1.", "R4.4",
            fields={"header.major": 1})
    yield r("reject/version_2_0", "unsupported_version", "Version 2.0.", "R4.4",
            fields={"header.major": 2, "header.minor": 0})
    for name, value in (("flags", 1), ("flags", 1 << 31), ("reserved_0", 1),
                        ("reserved_0", 1 << 63), ("reserved_1", 1 << 24)):
        yield r(f"reject/header_{name}_{value.bit_length() - 1}", "bad_value",
                f"Bit {value.bit_length() - 1} of {name}.", "R4.5 R2.5", "Reserved",
                fields={f"header.{name}": value})


def footer(b: Bases) -> Iterator[Case]:
    base = b["records"]
    r, f = base.spoil, base.image.fields
    at, end = f["footer.index_offset"][0], len(base.case.data)
    index = f["index"]
    for n, text in {
        0: "Nothing.", 1: "One byte.", 8: "The magic.", 31: "The header less a byte.",
        32: "The header.", 95: "One byte less than header and footer.",
        96: "As long as header and footer.", index[0]: "Header and payload.",
        index[0] + 40: "Into the index.", at: "All but the footer.", at + 20: "Into the footer.",
        end - 8: "All but the end magic.", end - 1: "All but the last byte.",
    }.items():
        rules = "R4.2" if n < 32 else "R4.6" if n < 96 else "R4.7"
        yield r(f"reject/cut_to_{n}", "truncated", f"{text} {n} bytes of {end}.", rules,
                "Truncated", cut=n)
    yield r("reject/trailing_byte", "truncated",
            "A byte behind the footer: what stands at the end is no footer.", "R4.7", append=b"\0")
    yield r("reject/trailing_footer", "bad_range", "The footer twice.", "R4.9",
            append=base.case.data[at:])
    yield r("reject/footer_crc", "bad_checksum", "footer_crc32.", "R4.7", "Checksum",
            fields={"footer.footer_crc32": 0}, refit=False)
    yield r("reject/footer_crc_of_field", "bad_checksum", "data_nbytes changed and the CRC-32 not.",
            "R4.7", "Checksum", fields={"footer.data_nbytes": 1}, refit=False)
    yield r("reject/end_magic", "bad_magic", "The last byte of the end magic.", "R4.8",
            fields={"footer.end_magic": b"WCODECFU"})
    yield r("reject/index_crc", "bad_checksum", "index_crc32.", "R4.13", "Checksum",
            fields={"footer.index_crc32": 0})
    yield r("reject/index_crc_of_byte", "bad_checksum",
            "A byte of the index changed and the CRC-32 not.", "R4.13", "Checksum",
            fields={"metadata[0].value": b"Value"}, refit=False)
    good = {name.removeprefix("footer."): int.from_bytes(base.case.data[a : a + n], "little")
            for name, (a, n) in f.items() if name.startswith("footer.")}
    lies: list[tuple[str, dict[str, int], str, str]] = [
        ("file_nbytes_more", {"file_nbytes": end + 1}, "truncated", "R4.9"),
        ("file_nbytes_less", {"file_nbytes": end - 1}, "bad_range", "R4.9"),
        ("file_nbytes_most", {"file_nbytes": U64}, "truncated", "R4.9"),
        ("index_offset_low",
         {"index_offset": 31, "index_nbytes": at - 31, "index_raw_nbytes": at - 31}, "bad_range",
         "R4.10"),
        ("index_offset_0", {"index_offset": 0, "index_nbytes": at, "index_raw_nbytes": at},
         "bad_range", "R4.10"),
        ("index_offset_more", {"index_offset": index[0] + 1}, "bad_range", "R4.10"),
        ("index_offset_wraps",
         {"index_offset": U64 - 15, "index_nbytes": at + 16, "index_raw_nbytes": at + 16},
         "bad_range", "R4.10"),
        ("index_nbytes_less", {"index_nbytes": index[1] - 1, "index_raw_nbytes": index[1] - 1},
         "bad_range", "R4.10"),
        ("index_nbytes_most", {"index_nbytes": U64, "index_raw_nbytes": U64}, "bad_range", "R4.10"),
        ("index_sizes_wrap",
         {"index_offset": 1 << 63, "index_nbytes": (1 << 63) + at,
          "index_raw_nbytes": (1 << 63) + at}, "bad_range", "R4.10"),
        ("index_raw_nbytes_more", {"index_raw_nbytes": index[1] + 1}, "bad_range", "R4.14"),
        ("index_raw_nbytes_less", {"index_raw_nbytes": index[1] - 1}, "bad_range", "R4.14"),
        ("data_nbytes_more", {"data_nbytes": good["data_nbytes"] + 1}, "bad_range", "R4.16"),
        ("data_nbytes_0", {"data_nbytes": 0}, "bad_range", "R4.16"),
        ("n_tensors_more", {"n_tensors": 3}, "bad_range", "R4.16"),
        ("n_tensors_less", {"n_tensors": 1}, "bad_range", "R4.16"),
        ("n_tensors_most", {"n_tensors": U32}, "bad_range", "R4.16"),
        ("index_coding_1", {"index_coding": 1}, "bad_stream", "R4.15"),
    ]
    for name, fields, code, rules in lies:
        text = "The footer says " + ", ".join(f"{k} {v}" for k, v in fields.items()) + "."
        flags = "Overflow" if max(fields.values()) > 1 << 60 else ""
        yield r(f"reject/footer_{name}", code, text, rules, flags,
                fields={f"footer.{k}": v for k, v in fields.items()})
    for i in range(3):
        yield r(f"reject/footer_reserved_{i}", "bad_value", f"Byte {i} of the reserved ones.",
                "R4.11 R2.5", "Reserved",
                fields={"footer.reserved": bytes(i) + b"\1" + bytes(2 - i)})


def deflated(b: Bases) -> Iterator[Case]:
    base = b["deflated"]
    r, (at, n) = base.spoil, base.image.fields["index"]
    stored = base.case.data[at : at + n]
    raw = zlib.decompress(stored)

    def sealed(index: bytes, **footer: int) -> Image:
        return reseal(_with_index(base, raw, stored=index), **footer)

    for name, code, text, rules, image in (
        ("index_not_zlib", "bad_stream", "The first byte of the zlib stream.", "R4.15",
         sealed(b"\xff" + stored[1:])),
        ("index_block_type", "bad_stream", "A deflate block of type 3.", "R4.15",
         sealed(stored[:2] + b"\x07" + stored[3:])),
        ("index_adler", "bad_stream", "The Adler-32 of the zlib stream.", "R4.15",
         sealed(stored[:-1] + bytes([stored[-1] ^ 1]))),
        ("index_deflate_cut", "bad_range", "The zlib stream ends early.", "R4.15",
         sealed(stored[:-20])),
        ("index_deflate_no_adler", "bad_range", "The zlib stream lacks its Adler-32.", "R4.15",
         sealed(stored[:-4])),
        ("index_deflate_and_more", "bad_range", "A byte behind the zlib stream.", "R4.15",
         sealed(stored + b"\0")),
        ("index_raw_nbytes_low", "bad_range",
         "The zlib stream inflates to a byte more than the footer says.", "R4.15",
         sealed(stored, index_raw_nbytes=len(raw) - 1)),
        ("index_raw_nbytes_high", "bad_range",
         "The zlib stream inflates to a byte less than the footer says.", "R4.15",
         sealed(stored, index_raw_nbytes=len(raw) + 1)),
        ("index_raw_nbytes_huge", "bad_range", "The footer promises 2^60 bytes of records.",
         "R4.14", sealed(stored, index_raw_nbytes=1 << 60)),
        ("index_dictionary", "bad_stream", "The zlib stream asks for a preset dictionary.", "R4.15",
         sealed(b"\x78\xbb" + stored[2:])),
    ):
        yield r(f"reject/{name}", code, text, rules, "DeflatedIndex", image=image)
    for coding in (2, 255):
        yield r(f"reject/footer_index_coding_{coding}", "unsupported_coder",
                f"The footer says index_coding {coding}; the index is a zlib stream.", "R4.12",
                "DeflatedIndex Reserved", fields={"footer.index_coding": coding})
    yield r("reject/index_bomb", "bad_range", "The index inflates 64 times and one byte.", "R4.14",
            "DeflatedIndex Bracket", image=assemble(ratio_file(64, 1)))


# ---- index records -------------------------------------------------------------------------------
def records(b: Bases) -> Iterator[Case]:
    base = b["records"]
    r, f = base.spoil, base.image.fields
    order = base.file.records or ()

    def again(id: str, code: str, text: str, rules: str, flags: str = "", **changes: Any) -> Case:
        return r(id, code, text, rules, flags, image=rebuilt(base, **changes))

    last = f"record[{len(order) - 1}]"
    size = int.from_bytes(base.case.data[f[f"{last}.nbytes"][0] :][:8], "little")
    yield r("reject/record_too_long", "bad_range",
            "The last record is a byte longer than the index.", "R4.17",
            fields={f"{last}.nbytes": size + 1})
    yield r("reject/record_nbytes_most", "bad_range", "A record of 2^64 - 1 bytes.", "R4.17",
            "Overflow", fields={f"{last}.nbytes": U64})
    yield r("reject/record_nbytes_wraps", "bad_range",
            "A record whose end wraps around to its start.", "R4.17", "Overflow",
            fields={f"{last}.nbytes": U64 - 11})
    yield r("reject/record_unknown_too_long", "bad_range",
            "A record to skip, a byte longer than the index.", "R4.17",
            image=_with_index(base, _index(base) + struct.pack("<HHQ", 99, 0, 1)))
    yield r("reject/tensor_record_short", "bad_range",
            "The last TENSOR record is a byte too short: its segment table is cut, and a byte is "
            "left over.", "R4.17 R4.30", fields={f"{last}.nbytes": size - 1})
    yield r("reject/record_head_cut", "bad_range", "The index ends in the head of a record.",
            "R4.17", image=_with_index(base, _index(base) + bytes(11)))
    for bit in (1, 15):
        yield r(f"reject/record_flags_{bit}", "bad_value", f"Bit {bit} of a record's flags.",
                "R4.17 R2.5", "Reserved", fields={"record[3].flags": 1 << bit})
    yield r("reject/record_tensor_flags", "bad_value", "A reserved flag of a TENSOR record.",
            "R4.17 R2.5", "Reserved", fields={f"{last}.flags": 3})
    flags = {"record[0].flags": 0, "record[2].flags": 1, f"{last}.flags": 0}
    yield r("accept/record_flags_of_known",
            "", "MUST_UNDERSTAND says nothing new on known types: TABLES and TENSOR without it, "
                "METADATA with it.", "R4.18", "UnusualEncoder", fields=flags)
    yield r("reject/record_must_understand", "unsupported_record",
            "An unknown record with MUST_UNDERSTAND.", "R4.18", fields={"record[3].flags": 1})
    yield r("reject/record_type_8", "unsupported_record",
            "The lowest type that is not used, with MUST_UNDERSTAND.", "R4.18", "Bracket",
            fields={"record[3].flags": 1, "record[3].type": 8})
    for kind in ("tables", "source", "metadata"):
        yield again(f"reject/{kind}_twice", "bad_value", f"Two {kind.upper()} records.", "R4.19",
                    records=(kind, *order))
    yield _late_tables(base)
    coded = b["bytes"]
    yield coded.spoil("reject/tables_missing", "bad_range", "A RANS plane and no tables.",
                      "R4.20 R10.5", image=rebuilt(coded, records=("tensor0",)))
    yield r("reject/tables_n_more", "bad_table", "One table more than there is.", "R4.20",
            fields={"tables.n": 2})
    yield again("reject/tables_left_over", "bad_range", "A byte behind the last table.", "R4.20",
                records=((1, 1, _body(base, "record[0]") + b"\0"), *order[1:]))
    raw = tuple(replace(t, segments=(Segment(),)) for t in base.file.tensors)
    yield again("reject/tables_n_less", "bad_range", "No tables, and the bytes of one.", "R4.20",
                tensors=raw, tables=(),
                records=((1, 1, bytes(2) + _body(base, "record[0]")[2:]), *order[1:]))
    yield again("reject/tables_cut", "bad_range", "A TABLES record of one byte.", "R4.20",
                tensors=raw, tables=(), records=((1, 1, b"\0"), *order[1:]))
    yield r("reject/source_kind_0", "unsupported_record", "Source kind 0.", "R4.21",
            fields={"source.kind": 0})
    yield r("reject/source_kind_2", "unsupported_record", "Source kind 2.", "R4.21",
            fields={"source.kind": 2})
    yield again("reject/source_cut", "bad_range", "A SOURCE record of one byte.", "R4.21",
                records=("tables", (2, 1, b"\1"), *order[2:]))
    yield r("reject/metadata_n_more", "bad_range", "One pair more than there is.", "R4.24",
            fields={"metadata.n": 3})
    yield r("reject/metadata_n_most", "bad_range", "2^32 - 1 pairs.", "R4.24", "Overflow",
            fields={"metadata.n": U32})
    yield r("reject/metadata_n_less", "bad_range", "One pair less than there is.", "R4.24",
            fields={"metadata.n": 1})
    yield r("reject/metadata_key_nbytes", "bad_range", "A key of 2^32 - 1 bytes.", "R4.24",
            "Overflow", fields={"metadata[0].key_nbytes": U32})
    yield r("reject/metadata_value_nbytes", "bad_range", "A value that reaches behind the record.",
            "R4.24", fields={"metadata[1].value_nbytes": 1})
    yield r("reject/metadata_cut", "bad_range", "A METADATA record of three bytes.", "R4.24",
            image=rebuilt(base, records=(*order[:2], (3, 0, bytes(3)), *order[3:])))
    yield r("reject/metadata_key_not_utf8", "bad_name", "A key that is not UTF-8.", "R2.6 R4.23",
            fields={"metadata[0].key": b"k\xffy"})
    yield r("reject/metadata_value_not_utf8", "bad_name", "A value cut in a character.",
            "R2.6 R4.23", fields={"metadata[0].value": b"valu\xc3"})
    yield again("reject/metadata_key_twice", "bad_name", "A key twice.", "R4.23",
                metadata=(("key", "1"), ("key", "2")))
    yield again("reject/name_twice", "bad_name", "Two tensors of one name.", "R4.32",
                tensors=tuple(replace(t, name="same") for t in base.file.tensors))
    yield again("reject/name_twice_empty", "bad_name", "Two tensors without a name.", "R4.32",
                tensors=tuple(replace(t, name="") for t in base.file.tensors))
    for name, text, data in (
        ("invalid_byte", "a byte that starts no character", b"f\xffrst"),
        ("overlong", "the letter / in two bytes", b"f\xc0\xafrs"),
        ("surrogate", "half of a surrogate pair", b"f\xed\xa0\x80r"),
        ("beyond", "a character above U+10FFFF", b"\xf4\x90\x80\x80t"),
        ("cut", "half a character", b"firs\xc3"),
    ):
        yield r(f"reject/name_{name}", "bad_name", f"A name with {text}.", "R2.6 R4.32",
                fields={"tensor[0].name": data[:5]})
    named = [replace(t, dtype_name="ab") for t in base.file.tensors]
    image = rebuilt(base, tensors=tuple(named))
    yield r("reject/dtype_name_not_utf8", "bad_name", "A dtype_name that is not UTF-8.", "R2.6",
            image=image, fields={"tensor[0].dtype_name": b"\x80a"})


def _body(base: Base, record: str) -> bytes:
    at, n = base.image.fields[f"{record}.nbytes"]
    size = int.from_bytes(base.case.data[at : at + n], "little")
    return base.case.data[at + n : at + n + size]


def _index(base: Base) -> bytes:
    at, n = base.image.fields["index"]
    return base.case.data[at : at + n]


def _with_index(base: Base, index: bytes, gap: int = 0, stored: bytes | None = None) -> Image:
    """The base's file with another index; `stored` is its deflated form.
    The image has the fields of header and footer.
    """
    at = base.image.fields["index"][0]
    image = Image(bytearray(base.case.data[:at] + bytes(gap)))
    data_nbytes = sum(len(t.data) for t in base.file.tensors)
    return seal(image, index, coding=int(stored is not None), deflated=stored,
                data_nbytes=data_nbytes, n_tensors=len(base.file.tensors))


def _late_tables(base: Base) -> Case:
    """TABLES behind a tensor that needs none."""
    plain = replace(base.file.tensors[1], name="first")
    file = replace(base.file, tensors=(plain,), tables=(TableSpec(freq=(2048, 2048) + (0,) * 254),),
                   records=("source", "metadata", "tensor0", "tables"))
    return base.spoil("reject/tables_late", "bad_value",
                      "TABLES behind a tensor, which needs none.", "R4.19", image=assemble(file))


def tables(b: Bases) -> Iterator[Case]:
    base = b["bytes"]
    r, order = base.spoil, ("tables", "tensor0")
    good = assemble(base.file)
    head, (at, n) = good.fields["table[0].prob_bits"][0], good.fields["table[0].codes"]
    prob_bits, first, last, k = good.data[head : head + 4]

    codes = bytes(good.data[at : at + n])
    whole = bytes([prob_bits, first, last, k]) + codes

    def table(name: str, text: str, data: bytes, rules: str = "R9.7") -> Case:
        """It is the second table, and no plane is coded under it: else streams would not end."""
        body = struct.pack("<H", 2) + whole + data
        return r(f"reject/table_{name}", "bad_table", text, rules,
                 image=rebuilt(base, records=((1, 1, body), *order[1:])))

    def made(freq: dict[int, int], bits: int = 12, **more: Any) -> bytes:
        return bytes(table_image([freq.get(s, 0) for s in range(256)], bits, **more).data)

    for p in (1, 8, 13, 17):
        yield table(f"prob_bits_{p}", f"prob_bits {p}, and frequencies of that sum.",
                    made({1: (1 << p) - (1 << p >> 1), 2: 1 << p >> 1}, p), "R9.6")
    yield table("other_sum", "prob_bits is 11; the frequencies sum to 2^12.",
                bytes([11]) + whole[1:], "R9.6")
    yield table("sum_less", "The frequencies sum to 2^12 - 1.", made({1: 2048, 2: 2047}), "R9.6")
    yield table("sum_more", "The frequencies sum to 2^12 + 1.", made({1: 2048, 2: 2049}), "R9.6")
    yield table("one_symbol", "One symbol alone.", made({5: 4096}), "R9.6")
    yield table("one_symbol_less", "One symbol of 2^12 - 1.", made({5: 4095}), "R9.6")
    yield table("first_above_last", "first is above last.", bytes([prob_bits, 200, 199, k]) + codes)
    yield table("k_12", "k is 12, and codes of that order.",
                _codes(12, 4, 5, 12, [2048, 2048]))
    yield table("cut_zeros", "A code is cut in bits that are 0.",
                _codes(12, 4, 5, 11, [2048, 2048])[:-1])
    yield table("first_0", "The first frequency is 0.", _codes(12, 4, 6, 3, [0, 2048, 2048]))
    yield table("last_0", "The last frequency is 0.", _codes(12, 4, 6, 3, [2048, 2048, 0]))
    yield table("padding", "A padding bit is 1.", _codes(12, 4, 5, 3, [2000, 2096], padding="1"))
    yield table("many_zeros", "A code of 13 leading zeros.",
                _codes(12, 4, 5, 0, [(1 << 13) - 1, 1]))
    yield table("all_zeros", "200 bytes of zeros where codes are due.",
                bytes([12, 0, 255, 0]) + bytes(200))
    yield table("frequency_huge", "A frequency of more than 2^20.",
                _codes(12, 4, 5, 11, [(1 << 20) + 5, 1]), "R9.6")
    yield table("cut", "The codes are cut short.", whole[:-1])
    yield table("cut_head", "The head is cut short.", whole[:3], "R4.20 R9.7")
    yield table("cut_codes_missing", "The head alone.", whole[:4])


def _codes(prob_bits: int, first: int, last: int, k: int, values: list[int],
           padding: str = "0") -> bytes:
    bits = "".join(exp_golomb(v, k) for v in values)
    if padding == "1" and len(bits) % 8 == 0:
        raise ValueError("there is no padding")
    bits += "0" * (-len(bits) % 8 - 1) + padding if len(bits) % 8 else ""
    return bytes([prob_bits, first, last, k]) + int(bits, 2).to_bytes(len(bits) // 8, "big")


# ---- tensor records ------------------------------------------------------------------------------
def tensors(b: Bases) -> Iterator[Case]:
    base = b["bytes"]
    r, f, t = base.spoil, base.image.fields, "tensor[0]."

    def lie(name: str, code: str, text: str, rules: str, tags: str = "", /, **fields: int) -> Case:
        """``shape_0=3`` is the field ``shape[0]``."""
        return r(f"reject/tensor_{name}", code, text, rules, tags,
                 fields={t + indexed(k): v for k, v in fields.items()})

    nbytes = int.from_bytes(base.case.data[f[t + "payload_nbytes"][0] :][:8], "little")
    yield lie("payload_offset", "bad_range", "The payload does not start behind the header.",
              "R4.33", payload_offset=48)
    yield lie("payload_offset_0", "bad_range", "The payload starts in the header.", "R4.33",
              payload_offset=16)
    yield lie("payload_offset_most", "bad_range", "The payload starts at 2^64 - 16.", "R4.33",
              "Overflow", payload_offset=U64 - 15)
    yield lie("payload_nbytes_less", "bad_range",
              "The payload has 16 bytes less than its segments.", "R4.34",
              payload_nbytes=nbytes - 16)
    yield lie("payload_nbytes_more", "bad_range", "The payload reaches into the index.",
              "R4.33 R4.34", payload_nbytes=nbytes + 16)
    yield lie("payload_nbytes_most", "bad_range", "A payload of 2^64 - 16 bytes.", "R4.33 R4.34",
              "Overflow", payload_nbytes=U64 - 15)
    yield lie("crc32", "bad_checksum", "The CRC-32 of the decoded tensor.", "R11.3", "Checksum",
              crc32=1)
    for dtype in (21, 127, 255):
        yield lie(f"dtype_{dtype}", "unsupported_coder", f"dtype {dtype}.", "R4.31", "Reserved",
                  dtype_id=dtype)
    yield lie("dtype_larger", "bad_range", "A dtype of larger words: nothing fits any more.",
              "R4.30 R4.34", dtype_id=6)
    yield lie("element_order_1", "unsupported_coder", "Matrix fragments, reserved.", "R4.31",
              "Reserved", element_order=1)
    yield lie("flags", "bad_value", "A flag.", "R4.31 R2.5", "Reserved", flags=1)
    yield lie("reserved", "bad_value", "The reserved field.", "R4.31 R2.5", "Reserved",
              reserved=0x8000)
    tall = tensor("w", "uint8", (20, 1), bell(152), (20, 1), row_rank=3)
    yield r("reject/tensor_row_rank", "bad_range", "row_rank above rank.",
            "R6.1", "Bracket", image=assemble(File((tall,))))
    for rank in (33, 255):
        deep = Tensor("w", "uint8", (1,) * rank, b"\7", (1, 1))
        yield r(f"reject/tensor_rank_{rank}", "bad_range", f"Rank {rank}.", "R6.1",
                image=assemble(File((deep,))))
    yield lie("name_nbytes", "bad_range", "A name longer than the record.", "R4.30",
              name_nbytes=0xFFFF)
    yield lie("dtype_name_nbytes", "bad_range", "A dtype_name longer than the record.", "R4.30",
              dtype_name_nbytes=0xFFFF)
    cut, more = _body(base, "record[1]")[:47], _body(base, "record[1]") + b"\0"
    for name, text, body in (("fixed_cut", "The record ends in its fixed fields.", cut),
                             ("left_over", "A byte behind the segment table.", more),
                             ("table_cut", "The last column is cut short.",
                              _body(base, "record[1]")[:-1]),
                             ("empty", "A record of 0 bytes.", b"")):
        yield r(f"reject/tensor_{name}", "bad_range", text, "R4.30", image=_with_body(base, body))
    for field in ("segment_rows", "segment_cols", "tile_rows", "tile_cols"):
        yield lie(f"{field}_0", "bad_range", f"{field} is 0.", "R6.5", **{field: 0})
    for name, text, tags, segment in (
        ("above_2_24", "4097 x 4096 elements", "Bracket", (4097, 4096)),
        ("wraps_32", "2^16 x 2^16: 0 in 32 bits", "Overflow", (1 << 16, 1 << 16)),
        ("wraps_to_few", "65537 x 65536: 65536 in 32 bits", "Overflow", (65537, 65536)),
        ("most", "2^32 - 1 squared: 1 in 32 bits", "Overflow", (U32, U32)),
    ):
        yield r(f"reject/tensor_segment_{name}", "bad_range", f"Segments of {text}.", "R6.5", tags,
                image=other_tensor(base, segment=segment))
    yield r("reject/tensor_tile_rows_divide", "bad_range",
            "tile_rows does not divide segment_rows.", "R6.7",
            image=other_tensor(base, segment=(40, 30), tile=(16, 30)))
    yield lie("tile_cols_divide", "bad_range", "tile_cols does not divide segment_cols.", "R6.7",
              tile_cols=16)
    yield lie("tile_rows_8", "bad_range", "Tiles of 8 rows in segments of 16.", "R6.7", tile_rows=8)
    yield lie("tile_cols_15", "bad_range", "Tiles of 15 columns in segments of 30.", "R6.7",
              "Bracket", tile_cols=15)
    yield lie("tile_larger", "bad_range", "Tiles larger than the segments.", "R6.7", tile_rows=32)
    yield lie("shape_more", "bad_range", "A row more: the sizes no longer sum.", "R4.34",
              shape_0=200)
    yield lie("segments_too_many", "bad_range", "More segments than the record has checksums for.",
              "R4.38", shape_0=1 << 30)
    yield lie("segments_2_60", "bad_range", "2^59 segments.", "R4.38", "Overflow", shape_0=1 << 58,
              segment_rows=1, tile_rows=1)
    yield lie("segments_wrap", "bad_range", "2^62 segments, four bytes each: 0 in 64 bits.",
              "R4.38", "Overflow", shape_0=1 << 62, shape_1=1, segment_rows=1, segment_cols=1,
              tile_rows=1, tile_cols=1)
    yield lie("shape_2_63", "bad_range", "2^63 bytes.", "R4.35", "Overflow Bracket",
              shape_0=1 << 62, shape_1=2)
    yield lie("shape_wraps", "bad_range", "2^32 x 2^32 elements: 0 in 64 bits.", "R4.35",
              "Overflow", shape_0=1 << 32, shape_1=1 << 32)
    yield lie("shape_wraps_to_good", "bad_range", "Dimensions whose product is 600 in 64 bits.",
              "R4.35", "Overflow", shape_0=(1 << 63) + 300, shape_1=2)
    zero = Tensor("w", "uint8", (0, 7), b"", (1, 1))
    image = assemble(File((zero,)))
    yield r("reject/tensor_empty_2_63", "bad_range",
            "No rows of 2^63 bytes: too many if there were one.", "R4.35", "Overflow EmptyTensor",
            image=image, fields={"tensor[0].shape[1]": 1 << 63})
    complex_zero = Tensor("w", "complex128", (0, 7), b"", (1, 1))
    image = assemble(File((complex_zero,)))
    yield r("reject/tensor_empty_elements", "bad_range", "No rows of 2^59 elements of 16 bytes.",
            "R4.35", "Overflow EmptyTensor Bracket", image=image,
            fields={"tensor[0].shape[1]": 1 << 59})
    yield r("reject/segment_crc", "bad_checksum", "The CRC-32 of a segment.", "R11.2 R11.1",
            "Checksum", fields={"tensor[0].segment_crc32[1]": 5})
    padded = b["raw"]
    at = sum(padded.image.fields["tensor[0].segment[0]"]) - 1
    yield padded.spoil("reject/segment_crc_of_byte", "bad_checksum",
                       "A byte of padding changed and the CRC-32 not.", "R11.2", "Checksum",
                       at={at: b"\xff"}, refit=False)
    records = b["records"]
    yield records.spoil("reject/second_payload_offset", "bad_range",
                        "The second payload does not follow on the first.", "R4.33",
                        fields={"tensor[1].payload_offset": 32})
    yield r("reject/payload_gap", "bad_range", "16 bytes between the payload and the index.",
            "R4.33", image=_with_index(base, _index(base), gap=16))


def _with_body(base: Base, body: bytes) -> Image:
    """The base's file with another body of its TENSOR record, the last one."""
    before = base.image.fields["record[1].type"][0] - base.image.fields["index"][0]
    return _with_index(base, _index(base)[:before] + struct.pack("<HHQ", 4, 1, len(body)) + body)


def cases() -> Iterator[Case]:
    """The bases and all that is made from them."""
    b = bases()
    yield from (base.case for base in b.values())
    for group in (header, footer, deflated, records, tables, tensors):
        yield from group(b)
    yield from cases_payload.cases(b)
