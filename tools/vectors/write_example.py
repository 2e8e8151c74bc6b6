"""Writes chapter 19 of the spec, the worked example: ``python tools/vectors/write_example.py``;
with ``--check`` only compares.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np

from wcodec.codec.sources import BufferSource
from wcodec.planner.costs import quantise
from wcodec.reference import container, records
from wcodec.reference.checksums import crc32
from wcodec.reference.encoding import encode_segments, histogram, segment_planes
from wcodec.reference.planes import BY_ID, Layout
from wcodec.reference.segments import Coder, SegmentPlan, SegmentTable
from wcodec.reference.tables import TablePool
from wcodec.reference.tiles import Geometry

SPEC = Path(__file__).resolve().parents[2] / "spec" / "wcodec.md"
VALUES = [[0.5, -0.25, 1.0, 0.125], [0.75, -1.5, 0.0625, 0.25], [-0.5, 2.0, 1e-30, 0.375]]
FILL = 13  # the code of exponent 126, the most frequent one with 125


def example_array() -> np.ndarray:
    """The tensor of the example: bf16, 3 x 4."""
    return np.array(VALUES, np.float32).astype(ml_dtypes.bfloat16)


def example_file() -> bytes:
    """The file of the example, its choices made by hand;
    the index is stored, so that it can be read.
    """
    words = example_array().view(np.uint16)
    dtype, geometry, s = BY_ID[11], Geometry(3, 4, 3, 4, 3, 4), SegmentTable.zeros(1, 2)
    s.layout[0] = Layout.PAIRS
    s.base[0] = 113
    s.coder[:, 0] = [Coder.RANS, Coder.RAW]
    fill = np.array([FILL], np.uint8)
    counts = histogram(words, geometry, dtype, base=113, fill=FILL)
    tables = TablePool([quantise(counts[0, 0], 9)])
    payload, s.n_units[:], s.n_patches[:] = encode_segments(
        SegmentPlan(dtype, geometry, s, tables, fill), words
    )
    crcs = np.array([crc32(payload)], np.uint32)
    t = records.TensorRecord(
        "w", dtype, (3, 4), 1, geometry, s, crcs, 32, payload.size, crc32(words.tobytes())
    )
    kinds = (
        (container.RecordType.TABLES, records.write_tables(tables)),
        (container.RecordType.TENSOR, records.write_tensor(t)),
    )
    raw = b"".join(container.RECORD.pack(kind, 1, len(body)) + body for kind, body in kinds)
    at, n = 32 + payload.size, len(raw)
    foot = struct.pack("<5QI4xI", at, n, n, at + n + 64, 24, 1, crc32(raw))
    head = container.write_header() + payload.tobytes()
    return head + raw + foot + struct.pack("<I", crc32(foot)) + container.END_MAGIC


def listing(data: bytes) -> list[str]:
    """Every byte of the file, field by field."""
    index = container.read_index(BufferSource(data))
    t, lines, at = index.tensors[0], [], 0
    plan = t.plan(index.tables)

    def field(nbytes: int, text: str) -> None:
        nonlocal at
        piece = data[at : at + nbytes]
        for i in range(0, nbytes, 16):
            part = piece[i : i + 16]
            lines.append(f"{at + i:04x}  {part.hex(' '):<47}  {text if i == 0 else ''}".rstrip())
        at += nbytes

    def fields(*items: tuple[int, str]) -> None:
        for nbytes, text in items:
            field(nbytes, text)

    def title(text: str) -> None:
        lines.append(f"                                                       -- {text}")

    title("header")
    fields(
        (8, "magic"),
        (2, "major 0"),
        (2, "minor 2"),
        (4, "flags"),
        (8, "reserved"),
        (4, "reserved"),
        (4, "header_crc32"),
    )
    title("payload of tensor 0: its one segment")
    n_words = int(plan.stream_nbytes[0, 0]) - 128
    for lane in range(0, 32, 4):
        field(16, f"plane 0: start states of lanes {lane} to {lane + 3}")
    field(n_words, "plane 0: words, padding") if n_words else None
    fields((16, "plane 1: 12 bytes sign | mantissa, padding"), (16, "one patch, padding"))
    title("index: TABLES")
    size = struct.unpack_from("<Q", data, at + 4)[0]
    fields((2, "type 1"), (2, "flags: MUST_UNDERSTAND"), (8, f"nbytes {size}"), (2, "n_tables 1"))
    table = index.tables[0]
    fields(
        (1, f"prob_bits {table.prob_bits}"),
        (1, f"first {data[at + 1]}"),
        (1, f"last {data[at + 2]}"),
        (1, f"k {data[at + 3]}"),
    )
    field(size - 6, "frequencies")
    title("index: TENSOR")
    size = struct.unpack_from("<Q", data, at + 4)[0]
    fields((2, "type 4"), (2, "flags: MUST_UNDERSTAND"), (8, f"nbytes {size}"))
    fields(
        (8, "payload_offset 32"),
        (8, f"payload_nbytes {t.payload_nbytes}"),
        (4, "crc32 of the decoded tensor"),
    )
    fields(
        (1, "dtype 11, bfloat16"),
        (1, "rank 2"),
        (1, f"row_rank {t.row_rank}"),
        (1, "element_order 0"),
    )
    g = t.geometry
    fields((4, f"segment_rows {g.segment_rows}"), (4, f"segment_cols {g.segment_cols}"))
    fields((4, f"tile_rows {g.tile_rows}"), (4, f"tile_cols {g.tile_cols}"))
    fields(
        (2, "flags"),
        (2, "name_nbytes 1"),
        (2, "dtype_name_nbytes 0"),
        (2, "reserved"),
        (16, "shape 3, 4"),
        (1, "name w"),
    )
    field(4, "segment table: crc32")
    s = t.segments
    columns = [("layout", s.layout), ("base", s.base), ("n_patches", s.n_patches)]
    for p in range(2):
        columns += [
            (f"plane {p}: {name}", getattr(s, name)[p])
            for name in ("coder", "table", "prediction", "n_units")
        ]
    for name, values in columns:
        field(5, f"{name} {int(values[0])} for all segments")
    title("footer")
    fields(
        (8, f"index_offset {index.index_offset}"),
        (8, f"index_nbytes {index.index_nbytes}"),
        (8, "index_raw_nbytes, the same"),
    )
    fields(
        (8, f"file_nbytes {len(data)}"),
        (8, "data_nbytes 24"),
        (4, "n_tensors 1"),
        (1, "index_coding 0"),
        (3, "reserved"),
    )
    fields((4, "index_crc32"), (4, "footer_crc32"), (8, "end_magic"))
    if at != len(data):
        raise AssertionError(f"the listing covers {at} of {len(data)} bytes")
    return lines


def trace(data: bytes) -> list[str]:
    """How lanes 0 and 1 decode the six symbols of plane 0."""
    index = container.read_index(BufferSource(data))
    table, start = index.tables[0], index.tensors[0].payload_offset
    n_units = int(index.tensors[0].segments.n_units[0, 0])
    words = list(struct.unpack_from(f"<{(16 * n_units - 128) // 2}H", data, start + 128))
    x, at = list(struct.unpack_from("<32I", data, start)), 0
    lines = [
        "| step | lane | x before | slot | symbol | f, c | x after | word taken |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for j in range(4):
        for lane in range(32):
            slot = x[lane] % 512
            symbol = int(table.lut[slot]) & 255
            f, c = int(table.freq[symbol]), int(table.start[symbol])
            after = f * (x[lane] >> 9) + slot - c
            taken = ""
            if after < 1 << 16:
                after, taken, at = after << 16 | words[at], f"{words[at]:04x}", at + 1
            if lane < 2:
                note = "" if 4 * lane + j < 6 else " (filling)"
                lines.append(
                    f"| {j} | {lane} | {x[lane]:08x} | {slot} | {symbol:02x}{note} | {f}, {c} | "
                    f"{after:08x} | {taken} |"
                )
            x[lane] = after
    return lines


def chapter() -> str:
    """The text between the markers of chapter 19."""
    data, array = example_file(), example_array()
    index = container.read_index(BufferSource(data))
    t, table = index.tensors[0], index.tables[0]
    words = array.view(np.uint16)
    plan = replace(t.plan(index.tables), fill=np.array([FILL], np.uint8))
    planes, patches = segment_planes(plan, words, 0)
    top = (words >> 7) & 0xFF
    freq = ", ".join(f"{s:02x}: {f}" for s, f in enumerate(table.freq) if f)
    values = "; ".join(", ".join(f"{v:g}" for v in row) for row in VALUES)
    return "\n".join(
        [
            f"A bfloat16 tensor `w` of shape 3 x 4: {values}. Coded in PAIRS with P = 9, to show "
            "all parts; this project's encoder",
            "would store so small a tensor RAW. `tools/vectors/write_example.py` writes this "
            "chapter, and a test compares it with the code.",
            "",
            f"Words: `{' '.join(f'{w:04x}' for w in words.reshape(-1).tolist())}`.",
            "Top bytes of the mapped words, their exponents: "
            f"`{' '.join(f'{b:02x}' for b in top.reshape(-1).tolist())}`.",
            f"The window starts at base {int(t.segments.base[0])}. Element 10 lies outside: its "
            f"code is {FILL}, and it has the patch",
            f"`{int(patches[0]):08x}`.",
            f"Plane 0, two codes a byte: `{planes[0].tobytes().hex(' ')}`. Plane 1, sign and "
            f"mantissa: `{planes[1].tobytes().hex(' ')}`.",
            f"Table: {freq}; the sum is 512.",
            "",
            "```",
            *listing(data),
            "```",
            "",
            "Lanes 0 and 1 hold the six symbols: lane 0 the first four. All others, and the last "
            "two of lane 1, hold the filling.",
            "",
            *trace(data),
            "",
            "All 32 states end as `00010000`.",
        ]
    )


def main() -> int:
    """Write the chapter, or compare it."""
    text = SPEC.read_text()
    head, rest = text.split("<!-- example -->\n")
    _, tail = rest.split("<!-- /example -->")
    new = f"{head}<!-- example -->\n{chapter()}\n<!-- /example -->{tail}"
    if "--check" in sys.argv[1:]:
        if new != text:
            print(
                "chapter 19 of spec/wcodec.md is not current: run python "
                "tools/vectors/write_example.py",
                file=sys.stderr,
            )
        return int(new != text)
    SPEC.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
