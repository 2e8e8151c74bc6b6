"""Contexts: worked out by hand for a small segment of each kind, and read by the spec's decoder."""

from __future__ import annotations

import struct
from dataclasses import replace

import decoder
import numpy as np
import pytest
from plans import complete, only, random_tables

from wcodec.conformance.cases import load
from wcodec.reference import contexts, segments
from wcodec.reference.contexts import classes_of, contexts_of, pack_scales, unpack_scales
from wcodec.reference.planes import BY_NAME, Layout
from wcodec.reference.rans import decode_streams, encode_streams
from wcodec.reference.segments import Coder
from wcodec.reference.tables import ContextKind, ContextMap, Table, TablePool
from wcodec.reference.tiles import Geometry

NONE = np.empty(0, np.uint8)
ANY = {
    kind: ContextMap(kind, bytes(n), (0,))
    for kind, n in ((ContextKind.PLANE, 256), (ContextKind.POSITION, 64), (ContextKind.SCALE, 16))
}


def plan_of(
    dtype: str, layout: Layout, geometry: Geometry, kind: ContextKind
) -> segments.SegmentPlan:
    """A plan whose planes all have the map of a kind, but for plane 0 of kind PLANE."""
    tables = TablePool(random_tables(np.random.default_rng(1), 1).tables, [ANY[kind]])
    n = BY_NAME[dtype].n_planes
    first = Coder.RANS if kind == ContextKind.PLANE else Coder.CONTEXT
    unused = layout == Layout.BYTES and dtype == "uint8"
    return only(
        BY_NAME[dtype],
        geometry,
        tables,
        layout,
        coder=[first, *[Coder.RAW if unused else Coder.CONTEXT] * (n - 1)],
    )


# ---- by hand -------------------------------------------------------------------------------------
def test_plane_contexts_by_hand() -> None:
    geometry = Geometry(1, 5, 1, 5, 1, 5)
    # codes a, b, c, d, e; the last half belongs to no word
    first = np.array([0xBA, 0xDC, 0xFE], np.uint8)
    plan = plan_of("bfloat16", Layout.PAIRS, geometry, ContextKind.PLANE)
    found = contexts_of(plan, ANY[ContextKind.PLANE], 1, 0, NONE, first)
    assert found.tolist() == [0xA, 0xB, 0xC, 0xD, 0xE]
    plan = plan_of("int8", Layout.PAIRS, geometry, ContextKind.PLANE)
    found = contexts_of(plan, ANY[ContextKind.PLANE], 1, 0, NONE, first)
    assert found.tolist() == [0xBA, 0xDC, 0xFE]
    first = np.array([1, 2, 250, 4, 5], np.uint8)
    plan = plan_of("uint16", Layout.BYTES, geometry, ContextKind.PLANE)
    found = contexts_of(plan, ANY[ContextKind.PLANE], 1, 0, NONE, first)
    assert found.tolist() == [1, 2, 250, 4, 5]


def test_position_contexts_by_hand() -> None:
    # 2 x 18 words in tiles of 2 x 16, so of 2 x 16 and 2 x 2:
    # each counts its own columns, again from 0 after 7.
    plan = plan_of("uint8", Layout.BYTES, Geometry(2, 18, 2, 32, 2, 16), ContextKind.POSITION)
    row = [*range(8), *range(8)]
    due = [*row, *(8 + c for c in row), 0, 1, 8, 9]
    assert contexts_of(plan, ANY[ContextKind.POSITION], 0, 0, NONE, NONE).tolist() == due
    # Nibble pairs of 3 x 3 words: elements 0, 2, 4, 6, 8 count, at (0, 0), (0, 2), (1, 1), (2, 0),
    # (2, 2).
    plan = plan_of("bfloat16", Layout.PAIRS, Geometry(3, 3, 3, 3, 3, 3), ContextKind.POSITION)
    found = contexts_of(plan, ANY[ContextKind.POSITION], 0, 0, NONE, NONE)
    assert found.tolist() == [0, 2, 9, 16, 18]
    found = contexts_of(plan, ANY[ContextKind.POSITION], 1, 0, NONE, NONE)
    assert found.tolist() == [0, 1, 2, 8, 9, 10, 16, 17, 18]


def test_scale_contexts_by_hand() -> None:
    # Rows of classes 3, 0 and columns of 1, 2, 0: bits 11 00 01 10 00 from the lowest up are the
    # bytes 0x93 = 10 01 00 11 and 0x00.
    scales = pack_scales(np.array([3, 0], np.uint8), np.array([1, 2, 0], np.uint8))
    assert scales.tobytes() == bytes([0b10_01_00_11, 0])
    assert [a.tolist() for a in unpack_scales(scales, 2, 3)] == [[3, 0], [1, 2, 0]]
    plan = plan_of("uint8", Layout.BYTES, Geometry(2, 3, 2, 3, 2, 3), ContextKind.SCALE)
    assert plan.scale_nbytes.tolist() == [2]
    found = contexts_of(plan, ANY[ContextKind.SCALE], 0, 0, scales, NONE)
    assert found.tolist() == [13, 14, 12, 1, 2, 0]
    # elements 0, 2, 4
    plan = plan_of("int8", Layout.PAIRS, Geometry(2, 3, 2, 3, 2, 3), ContextKind.SCALE)
    assert contexts_of(plan, ANY[ContextKind.SCALE], 0, 0, scales, NONE).tolist() == [13, 12, 2]


def test_scales_are_of_the_segment_and_not_of_the_tile() -> None:
    scales = pack_scales(np.arange(16, dtype=np.uint8) % 4, np.arange(32, dtype=np.uint8) // 16)
    plan = plan_of("uint8", Layout.BYTES, Geometry(16, 32, 16, 32, 16, 16), ContextKind.SCALE)
    got = contexts_of(plan, ANY[ContextKind.SCALE], 0, 0, scales, NONE)
    assert got[:256].tolist() == [4 * (r % 4) for r in range(16) for _ in range(16)]
    assert got[256:].tolist() == [4 * (r % 4) + 1 for r in range(16) for _ in range(16)]


def test_classes_pick_tables() -> None:
    class_of = bytes(1 if v == 7 else 0 for v in range(256))
    plan = plan_of("uint16", Layout.BYTES, Geometry(1, 3, 1, 3, 1, 3), ContextKind.PLANE)
    plan = replace(
        plan,
        tables=TablePool(plan.tables.tables * 3, [ContextMap(ContextKind.PLANE, class_of, (2, 1))]),
    )
    first = np.array([7, 6, 7], np.uint8)
    classes = classes_of(plan, 1, 0, NONE, first)
    assert classes is not None
    assert classes.tolist() == [1, 0, 1]
    assert contexts.tables_of(plan, 1, 0) == (2, 1)
    assert classes_of(plan, 0, 0, NONE, first) is None


def one_of(symbol: int, other: int, freq: int) -> Table:
    """A table of two symbols."""
    values = np.zeros(256, np.int64)
    values[symbol], values[other] = freq, 512 - freq
    return Table(values, 9)


def test_a_stream_of_two_tables_by_hand() -> None:
    """R9.8, R9.12: three symbols, of lane 0, steps 0 to 2;
    step 3 and all other lanes hold the filling of class 0.
    """
    pool = TablePool([one_of(65, 66, 256), one_of(70, 71, 128)])
    (stream,) = encode_streams(
        [np.array([70, 66, 71], np.uint8)], [(0, 1)], pool, [np.array([1, 0, 1], np.uint8)]
    )
    x = 1 << 16
    # step 3: the filling, 65, of slots 0 to 255; 2: 71 under table 1, of slots 128 to 511; 1: 66,
    # of 256 to 511; 0: 70, of 0 to 127
    for f, c in ((256, 0), (384, 128), (256, 256), (128, 0)):
        assert x < f << 23  # no word is shed
        x = (x // f << 9) + x % f + c
    filled = 1 << 16
    for _ in range(4):
        filled = (filled // 256 << 9) + filled % 256
    assert stream.tobytes() == struct.pack("<32I", x, *[filled] * 31)
    (back,), good = decode_streams(
        [stream], np.array([3]), [(0, 1)], pool, [np.array([1, 0, 1], np.uint8)]
    )
    assert back.tolist() == [70, 66, 71]
    assert good.all()
    _, good = decode_streams(
        [stream], np.array([3]), [(0, 1)], pool, [np.array([1, 1, 1], np.uint8)]
    )
    assert not good.any(), "other classes, and it ends all the same"


@pytest.mark.parametrize("kind", ContextKind)
def test_records_have_scales_where_a_plane_needs_them(kind: ContextKind) -> None:
    plan = plan_of("bfloat16", Layout.PAIRS, Geometry(20, 30, 16, 30, 16, 30), kind)
    scales = np.concatenate(
        [pack_scales(np.zeros(h, np.uint8), np.ones(30, np.uint8)) for h in (16, 4)]
    )
    plan = replace(plan, scales=scales if kind == ContextKind.SCALE else None)
    case = complete(plan, np.random.default_rng(3).integers(0, 1 << 16, (20, 30), np.uint16))
    sizes = [12, 9] if kind == ContextKind.SCALE else [0, 0]
    assert plan.scale_nbytes.tolist() == sizes
    assert plan.head_nbytes.tolist() == [-(-n // 16) * 16 for n in sizes]
    at = int(case.decoding.offsets[1])
    assert case.payload[at : at + sizes[1]].tobytes() == scales[12:].tobytes() * (
        kind == ContextKind.SCALE
    )


# ---- from the spec alone -------------------------------------------------------------------------
VECTORS = load()
READ = [c for c in VECTORS.cases if c.expect == "accept" and "Contexts" in c.row["flags"]]


def test_the_decoder_of_the_spec_reads_all_vectors_with_contexts() -> None:
    """`tests/reference/test_spec_decoder.py` has it read all others."""
    assert len(READ) > 40
    for case in READ:
        base = b"" if case.checkpoint is None else case.checkpoint.data
        _, *tensors = decoder.decode_file(case.data, base)
        for i, tensor in enumerate(tensors):
            assert tensor == case.words(i).tobytes(), f"{case.id}, tensor {i}"


def test_it_would_find_an_error() -> None:
    """Another class of the first column, after those of eight rows, gives other tables."""
    data = bytearray(VECTORS["accept/base_contexts"].data)
    t = decoder.read_index(bytes(data)).tensors[0]
    s = decoder.segment(t, 0)
    record = data[t.payload_offset : t.payload_offset + s.nbytes]
    words = decoder.decode_segment(bytes(record), s)
    assert VECTORS["accept/base_contexts"].words(0).tobytes().startswith(words[: s.width])
    record[2] ^= 1
    with pytest.raises(decoder.Refused, match="bad_stream"):
        decoder.decode_segment(bytes(record), s)
