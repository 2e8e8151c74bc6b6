"""Each kernel of a backend against the reference, on random legal plans (`plans`),
and on payloads made bad.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from fences import CANARY, Fence
from plans import (
    Case,
    aligned,
    complete,
    lacking,
    make_case,
    only,
    per_tile_case,
    random_geometry,
    random_plan,
    random_scales,
    random_tables,
    random_words,
    two_symbol_cases,
    two_symbols,
    windowed_case,
    with_maps,
)
from sampling import exhaustive, sampled

from wcodec.backends import load_backend
from wcodec.backends.numba import threads
from wcodec.backends.numba.backend import NumbaBackend
from wcodec.backends.protocol import Backend, SegmentPlan, Status
from wcodec.errors import DecodeError
from wcodec.planner.costs import quantise
from wcodec.reference import decoding, encoding
from wcodec.reference.checksums import crc32, crc32_each
from wcodec.reference.columns import Stored, StoredTable, write_columns
from wcodec.reference.planes import BY_NAME, DTYPES, DType, Layout
from wcodec.reference.prediction import IS_MODE, MODES, PER_TILE
from wcodec.reference.rans import UNIT, max_stream_nbytes
from wcodec.reference.records import check_plan
from wcodec.reference.segments import Coder, SegmentTable
from wcodec.reference.tables import (
    MAX_PROB_BITS,
    MIN_PROB_BITS,
    N_CONTEXTS,
    ContextKind,
    ContextMap,
    TablePool,
    TableReader,
    read_tables,
)
from wcodec.reference.tiles import Geometry

BACKENDS = ["numba", "cuda_emulator.backend:EmulatedCuda"]
GUARD = 64  #: canary words on both sides of an output
SHAPES_OF_WORDS = [
    "uint8",
    "int8",
    "float8_e4m3fn",
    "float8_e5m2",
    "uint16",
    "int16",
    "bfloat16",
    "int32",
    "float32",
    "float64",
    "int64",
]


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    # more threads than some machines have cores: ranges end at odd places
    one = load_backend(request.param, 3)
    yield one
    one.close()


# ---- checks: to be run on any backend ------------------------------------------------------------
def check_encode(backend: Backend, case: Case) -> None:
    words = case.words.copy()
    encoded = backend.encode_segments(case.plan, backend.to_device(words))
    s = case.decoding.segments
    assert encoded.n_units.dtype == encoded.n_patches.dtype == np.uint32
    np.testing.assert_array_equal(encoded.n_units, s.n_units)
    np.testing.assert_array_equal(encoded.n_patches, s.n_patches)
    np.testing.assert_array_equal(backend.to_host(encoded.payload), case.payload)
    in_parts, sums = backend.encode_in_parts(case.plan, backend.to_device(words))
    np.testing.assert_array_equal(in_parts.n_units, s.n_units)
    np.testing.assert_array_equal(in_parts.n_patches, s.n_patches)
    parts = [np.empty(0, np.uint8), *map(backend.to_host, in_parts.payload)]
    np.testing.assert_array_equal(np.concatenate(parts), case.payload)
    np.testing.assert_array_equal(sums.records, crc32_each(case.payload, case.decoding.offsets))
    assert sums.words == crc32(words)
    np.testing.assert_array_equal(words, case.words)
    backend.encode_segments(case.plan, backend.to_device(case.words))  # from read-only memory


def decode(backend: Backend, plan: SegmentPlan, payload: Any) -> tuple[Any, np.ndarray[Any, Any]]:
    """Status and words, from an output that stands between canaries."""
    g, t = plan.geometry, plan.dtype.word_type
    canary = np.frombuffer(bytes([CANARY]) * t.itemsize, t)[0]
    room = backend.to_device(np.full(g.rows * g.cols + 2 * GUARD, canary, t))
    status = backend.decode_segments(
        plan,
        backend.to_device(payload),
        room[GUARD : GUARD + g.rows * g.cols].reshape(g.rows, g.cols),
    )
    host = backend.to_host(room)
    assert (host[:GUARD] == canary).all(), "written before the output"
    assert (host[-GUARD:] == canary).all(), "written behind the output"
    assert status.dtype == np.uint8
    return status, host[GUARD:-GUARD].reshape(g.rows, g.cols)


def check_decode(backend: Backend, case: Case) -> None:
    status, words = decode(backend, case.decoding, case.payload)
    assert (status == Status.OK).all()
    np.testing.assert_array_equal(words, case.expected)
    if not (case.plan.segments.coder == Coder.CONSTANT).any():
        np.testing.assert_array_equal(words, case.words)


def check_bad(backend: Backend, plan: SegmentPlan, payload: np.ndarray[Any, Any]) -> list[int]:
    """Same status as the reference, and same words where it is OK. Returns the statuses."""
    payload = aligned(payload)
    expected = np.empty((plan.geometry.rows, plan.geometry.cols), plan.dtype.word_type)
    good = decoding.decode_segments(plan, payload, expected)
    before = payload.copy()
    status, words = decode(backend, plan, payload)
    np.testing.assert_array_equal(status, good)
    np.testing.assert_array_equal(payload, before)
    for k in np.flatnonzero(good == Status.OK).tolist():
        where = plan.geometry.rectangle(k)
        np.testing.assert_array_equal(words[where], expected[where])
    return [int(s) for s in good]


def check_histogram(
    backend: Backend, rng: np.random.Generator, geometry: Geometry, dtype: DType
) -> None:
    words, n = random_words(rng, geometry, dtype), geometry.n_segments
    some = np.flatnonzero(rng.random(n) < 0.5)
    calls: list[dict[str, Any]] = [
        {"mode": int(m)}
        for m in (0, *rng.choice(MODES[1:5], 2, False), *rng.choice(MODES[5:], 2, False))
    ]
    if dtype.has_pairs:
        bases = [0] if dtype.word_nbytes == 1 else [0, 240, int(rng.integers(0, 241))]
        calls += [{"base": b, "fill": int(rng.integers(0, 16))} for b in bases]
        last = 1 if dtype.word_nbytes == 1 else dtype.word_nbytes - 1
        calls += [{"base": 0, "fill": 5, "planes": (p,)} for p in (0, last)]
    for call, segments in itertools.product(calls, (None, some)):
        expected = encoding.histogram(words, geometry, dtype, segments=segments, **call)
        counts = backend.histogram(
            backend.to_device(words), geometry, dtype, segments=segments, **call
        )
        assert counts.dtype == np.int64
        np.testing.assert_array_equal(counts, expected, err_msg=f"{call} {segments}")


def check_checksums(backend: Backend, case: Case) -> None:
    crcs = backend.checksums(backend.to_device(case.payload), case.decoding.offsets)
    assert crcs.dtype == np.uint32
    np.testing.assert_array_equal(crcs, crc32_each(case.payload, case.decoding.offsets))


def spoil(rng: np.random.Generator, case: Case) -> np.ndarray[Any, Any]:
    """A payload with a few wrong bits or bytes, by preference where they are not mere data."""
    payload, plan = case.payload.copy(), case.decoding
    starts = [
        plan.offsets[:-1],
        plan.patch_offsets,
        plan.plane_offsets.reshape(-1),
        plan.offsets[1:] - 16,
    ]
    for _ in range(int(rng.integers(1, 6)) if payload.size else 0):
        at = int(rng.choice(starts[int(rng.integers(0, 4))])) + int(rng.integers(0, 24))
        if rng.random() < 0.3:
            at = int(rng.integers(0, payload.size))
        if 0 <= at < payload.size:
            payload[at] = (
                rng.integers(0, 256)
                if rng.random() < 0.5
                else payload[at] ^ (1 << int(rng.integers(0, 8)))
            )
    return payload


# ---- tests ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("seed", sampled(range(6), 2))
def test_random_plans(backend: Backend, dtype: DType, seed: int) -> None:
    case = make_case(np.random.default_rng([seed, dtype.id]), dtype)
    check_encode(backend, case)
    check_decode(backend, case)
    check_checksums(backend, case)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("n", [1, exhaustive(3)])
def test_histograms(backend: Backend, dtype: DType, n: int) -> None:
    rng = np.random.default_rng(dtype.id)
    for _ in range(n):
        check_histogram(backend, rng, random_geometry(rng), dtype)


@pytest.mark.parametrize("name", SHAPES_OF_WORDS)
@pytest.mark.parametrize("n", [3, exhaustive(6)])
def test_spoilt_payloads(backend: Backend, name: str, n: int) -> None:
    rng, seen = np.random.default_rng(7), set[int]()
    for _ in range(n):
        case = make_case(rng, BY_NAME[name])
        for _ in range(n):
            seen.update(check_bad(backend, case.decoding, spoil(rng, case)))
    assert {Status.OK, Status.BAD_STREAM} <= seen


@pytest.mark.parametrize("name", SHAPES_OF_WORDS)
@pytest.mark.parametrize("kind", ["noise", "zeros", "ones"])
def test_garbage_payloads(backend: Backend, name: str, kind: str) -> None:
    rng = np.random.default_rng(8)
    for _ in range(3):
        case = make_case(rng, BY_NAME[name])
        n = case.payload.size
        check_bad(
            backend,
            case.decoding,
            rng.integers(0, 256, n).astype(np.uint8)
            if kind == "noise"
            else np.full(n, -(kind == "ones") & 255, np.uint8),
        )


def test_one_word_short(backend: Backend) -> None:
    """A stream whose only word is 0, cut off before it:
    read as zeros, every state comes out right, and yet it is bad.
    """
    geometry = Geometry(1, 128, 1, 128, 1, 128)
    plan = only(
        BY_NAME["uint8"],
        geometry,
        TablePool([two_symbols(12, 1, 0, 1)]),
        Layout.BYTES,
        coder=[Coder.RANS, Coder.RAW],
    )
    words = np.ones((1, 128), np.uint8)
    words[0, 4 * 5 + 2 : 4 * 5 + 4] = 0  # lane 5 alone sheds a word, once
    case = complete(plan, words)
    check_decode(backend, case)
    assert case.payload.size == 128 + 16
    assert not case.payload[128:].any()
    short = case.decoding.encoded(np.array([[8], [0]], np.uint32), np.zeros(1, np.uint32))
    assert check_bad(backend, short, case.payload[:128]) == [Status.BAD_STREAM]


def test_patches(backend: Backend) -> None:
    """Bad patches, and that a bad stream goes before them."""
    rng = np.random.default_rng(1)
    dtype = BY_NAME["bfloat16"]
    geometry = Geometry(40, 40, 20, 20, 20, 20)
    plan = only(
        dtype, geometry, random_tables(rng), Layout.PAIRS, base=118, coder=[Coder.RANS, Coder.RAW]
    )
    words = rng.integers(0, 1 << 16, (40, 40)).astype(np.uint16)
    case = complete(plan, words)
    check_encode(backend, case)
    check_decode(backend, case)
    at = int(case.decoding.patch_offsets[2])
    seen = set[int]()
    for offset, value in [(0, 255), (0, 3), (1, 1), (2, 1), (4, 0), (5, 255), (6, 255), (8, 0)]:
        payload = case.payload.copy()
        payload[at + offset] = value
        seen.update(check_bad(backend, case.decoding, payload))
        payload[int(case.decoding.plane_offsets[0, 2]) + 3] ^= 0x40
        assert check_bad(backend, case.decoding, payload)[2] == Status.BAD_STREAM
    assert Status.BAD_PATCH in seen
    n = int(case.decoding.segments.n_patches[2]) * 4
    payload = case.payload.copy()
    payload[at : at + n].view("<u4")[-1] = 400  # just outside
    assert check_bad(backend, case.decoding, payload) == [0, 0, Status.BAD_PATCH, 0]
    payload[at : at + n].view("<u4")[-1] = 399 | 7 << 24
    assert check_bad(backend, case.decoding, payload) == [0, 0, 0, 0]


@pytest.mark.parametrize("lacks", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_uncoded_pairs(backend: Backend, name: str, lacks: float) -> None:
    """Tables that lack few pairs of codes, many, nearly all: words get patches instead."""
    rng = np.random.default_rng(12)
    for fill, geometry in (
        (0, Geometry(71, 131, 71, 131, 71, 131)),
        (15, Geometry(35, 65, 17, 33, 17, 33)),
    ):
        tables = lacking(rng, lacks, fill)
        case = windowed_case(rng, BY_NAME[name], 0.1, geometry, fill, tables)
        check_encode(backend, case)
        check_decode(backend, case)


def test_tile_modes(backend: Backend) -> None:
    """Bytes that are no modes, and that a bad stream goes before them."""
    case = per_tile_case(np.random.default_rng(2), Geometry(48, 40, 32, 32, 16, 16))
    check_encode(backend, case)
    check_decode(backend, case)
    for i, value in enumerate(np.flatnonzero(~IS_MODE)):
        payload = case.payload.copy()
        payload[i % 8] = value
        status, _ = decode(backend, case.decoding, aligned(payload))
        assert status.tolist() == [Status.BAD_TILE_MODE, 0, 0, 0], value
    for value in (5, 255):
        payload = case.payload.copy()
        payload[0] = value
        assert check_bad(backend, case.decoding, payload) == [Status.BAD_TILE_MODE, 0, 0, 0]
        # the lowest bits may pass for another symbol
        payload[int(case.decoding.plane_offsets[1, 0]) + 3] ^= 0x40
        assert check_bad(backend, case.decoding, payload) == [Status.BAD_STREAM, 0, 0, 0]


@pytest.mark.parametrize("coder", [Coder.RANS, Coder.CONTEXT])
def test_faults_of_several_kinds(backend: Backend, coder: Coder) -> None:
    """A mode that is none goes before bad streams of lower planes with contexts,
    which it may keep from being decoded.
    """
    rng = np.random.default_rng(4)
    dtype = BY_NAME["int16"]
    geometry = Geometry(48, 40, 32, 32, 16, 16)
    tables = random_tables(rng)
    bits = [t.prob_bits for t in tables.tables]
    alike = tuple(i for i, b in enumerate(bits) if b == bits[0])
    class_of = (np.arange(256) % len(alike)).astype(np.uint8).tobytes()
    pool = TablePool(
        tables.tables,
        [
            ContextMap(ContextKind.POSITION, class_of[:64], alike),
            ContextMap(ContextKind.PLANE, class_of, alike),
        ],
    )
    table = [0, 1 if coder == Coder.CONTEXT else 0]
    plan = only(
        dtype,
        geometry,
        pool,
        Layout.BYTES,
        coder=[Coder.CONTEXT, coder],
        table=table,
        prediction=[0, PER_TILE],
    )
    plan = replace(plan, modes=rng.choice(np.array(MODES, np.uint8), int(plan.modes_nbytes.sum())))
    case = complete(plan, random_words(rng, geometry, dtype))
    check_encode(backend, case)
    check_decode(backend, case)
    late = coder == Coder.CONTEXT
    for plane, bad_mode, expected in [
        (None, True, Status.BAD_TILE_MODE), (0, False, Status.BAD_STREAM),
        (0, True, Status.BAD_STREAM), (1, False, Status.BAD_STREAM),
        (1, True, Status.BAD_TILE_MODE if late else Status.BAD_STREAM),
    ]:  # fmt: skip
        payload = case.payload.copy()
        if bad_mode:
            payload[int(case.decoding.offsets[1])] = 0x35
        if plane is not None:
            payload[int(case.decoding.plane_offsets[plane, 1]) + 3] ^= 0x40
        assert check_bad(backend, case.decoding, payload) == [0, expected, 0, 0]


@pytest.mark.parametrize("name", ["uint8", "bfloat16", "float32"])
@pytest.mark.parametrize("rows", [60, exhaustive(300)])
def test_contexts_in_large_segments(backend: Backend, name: str, rows: int) -> None:
    """Pairs of segments of many groups, and of unequal ones,
    with all kinds of maps over 16 tables.
    """
    tall = rows * 16 // 25
    rng = np.random.default_rng(11)
    dtype = BY_NAME[name]
    geometry = Geometry(rows, 700, tall, 256, tall, 256)
    tables = TablePool(
        quantise((1 + 1e5 * rng.random(256) ** 9).astype(np.int64), 12) for _ in range(16)
    )
    maps = [
        ContextMap(k, rng.integers(0, 16, n).astype(np.uint8).tobytes(), tuple(range(16)))
        for k, n in N_CONTEXTS.items()
    ]
    n = geometry.n_segments
    for layout in [Layout.BYTES, Layout.PAIRS] if dtype.has_pairs else [Layout.BYTES]:
        n_planes = dtype.word_nbytes if layout == Layout.BYTES or dtype.word_nbytes > 1 else 2
        plan = only(
            dtype,
            geometry,
            TablePool(tables.tables, maps),
            layout,
            base=100 if layout == Layout.PAIRS and n_planes > 2 else 0,
        )
        s = plan.segments
        s.coder[:n_planes] = rng.choice(
            [Coder.RANS, Coder.CONTEXT, Coder.CONTEXT, Coder.CONTEXT], (n_planes, n)
        )
        s.table[:n_planes] = np.where(
            np.arange(n_planes)[:, None] == 0,
            rng.integers(1, 3, n),
            rng.integers(0, 3, (n_planes, n)),
        )
        case = complete(
            replace(plan, scales=random_scales(rng, plan)), random_words(rng, geometry, dtype)
        )
        check_encode(backend, case)
        check_decode(backend, case)
        check_bad(backend, case.decoding, spoil(rng, case))


@pytest.mark.parametrize("prob_bits", range(MIN_PROB_BITS, MAX_PROB_BITS + 1))
@pytest.mark.parametrize("rare", [1, 2, 3, 7, 255])
def test_extreme_tables(backend: Backend, prob_bits: int, rare: int) -> None:
    """Two symbols, of frequencies at both ends:
    where a reciprocal would be inexact, were it ever so.
    """
    for case in two_symbol_cases(61, 67, prob_bits, rare, (0.0, 0.001, 0.5, 1.0)):
        check_encode(backend, case)
        check_decode(backend, case)


@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 127, 128, 129, 255, 256, 257, 300])
@pytest.mark.parametrize("name", ["uint8", "bfloat16", "float32", "int64"])
def test_sizes(backend: Backend, n: int, name: str) -> None:
    rng = np.random.default_rng(n)
    for geometry in (
        Geometry(1, n, 1, n, 1, n),
        Geometry(n, 1, n, 1, n, 1),
        Geometry(3, n, 1, n, 1, n),
    ):
        case = make_case(rng, BY_NAME[name], geometry)
        check_encode(backend, case)
        check_decode(backend, case)


@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (7, 0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_nothing(backend: Backend, shape: tuple[int, int], dtype: DType) -> None:
    geometry = Geometry(*shape, 4, 4, 4, 4)
    case = make_case(np.random.default_rng(0), dtype, geometry)
    check_encode(backend, case)
    check_decode(backend, case)
    check_checksums(backend, case)
    assert backend.histogram(case.words, geometry, dtype).shape == (0, dtype.word_nbytes, 256)


@pytest.mark.parametrize("name", ["bfloat16", "uint8", exhaustive("float32")])
@pytest.mark.parametrize("share", [4, exhaustive(1)])
def test_more_than_one_range(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, name: str, share: int
) -> None:
    """A range for each thread, with a ragged last segment row and column; a share of it, where
    threads begin to be used at that share.
    """
    monkeypatch.setattr(threads, "INLINE_NBYTES", threads.INLINE_NBYTES // share)
    rng, dtype = np.random.default_rng(5), BY_NAME[name]
    rows = ((2 << 20) // share if backend.name == "numba" else 1 << 18) // 1030 // dtype.word_nbytes
    geometry = Geometry(rows, 1030, 128, 256, 32, 64)
    case = make_case(rng, dtype, geometry)
    check_encode(backend, case)
    check_decode(backend, case)
    check_checksums(backend, case)
    check_histogram(backend, rng, geometry, dtype)
    check_bad(backend, case.decoding, spoil(rng, case))


@pytest.mark.parametrize("layout", [Layout.BYTES, Layout.PAIRS])
@pytest.mark.parametrize("name", sampled(SHAPES_OF_WORDS, 4))
def test_segments_of_one_kind(backend: Backend, name: str, layout: Layout) -> None:
    """What real files hold: streams of neighbours are coded together, and merged as they come.

    Three segments of a row, of which the last is not whole vectors wide.
    """
    rng, dtype = np.random.default_rng(8), BY_NAME[name]
    if layout == Layout.PAIRS and not dtype.has_pairs:
        layout = Layout.BYTES
    tables = TablePool([quantise(rng.integers(1, 1000, 256), MAX_PROB_BITS)])
    for coded in {1, dtype.word_nbytes}:
        coders = [Coder.RANS] * coded + [Coder.RAW] * (dtype.n_planes - coded)
        plan = only(dtype, Geometry(20, 600, 4, 256, 4, 256), tables, layout, coder=coders)
        case = make_case(rng, dtype, plan=plan)
        check_encode(backend, case)
        check_decode(backend, case)
        check_checksums(backend, case)


@pytest.mark.parametrize("share", [4, exhaustive(1)])
def test_calls_at_once(backend: Backend, share: int) -> None:
    cases = [make_case(np.random.default_rng([6, i]), d) for i, d in enumerate(DTYPES)][::share]
    cases.append(
        make_case(
            np.random.default_rng(6),
            BY_NAME["bfloat16"],
            Geometry(300 // share, 1030, 64, 256, 64, 256),
        )
    )
    # made here, and not by the threads
    assert all(case.expected.size == case.words.size for case in cases)

    def work(i: int) -> None:
        for case in cases[i:] + cases[:i]:
            check_encode(backend, case)
            check_decode(backend, case)
            check_checksums(backend, case)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(0, len(cases), -(-len(cases) // 5))))


@pytest.mark.parametrize("share", [8, exhaustive(1)])
def test_use_after_close(backend: Backend, monkeypatch: pytest.MonkeyPatch, share: int) -> None:
    monkeypatch.setattr(threads, "INLINE_NBYTES", threads.INLINE_NBYTES // share)
    case = make_case(
        np.random.default_rng(9),
        BY_NAME["bfloat16"],
        Geometry(1000 // share, 1030, 64, 256, 64, 256),
    )
    for _ in range(2):
        check_decode(backend, case)
        check_encode(backend, case)
        backend.close()


# ---- memory that ends where the arrays do: the CPU backends only ---------------------------------
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("name", SHAPES_OF_WORDS)
def test_nothing_outside_is_touched(name: str, at_end: bool) -> None:
    """A read or write outside of payload, words or output ends the process."""
    backend, rng, dtype = load_backend("numba", 1), np.random.default_rng(10), BY_NAME[name]
    for _ in range(4):
        case = make_case(rng, dtype)
        shape = case.words.shape
        words, out, payload = (
            Fence(n, at_end).bytes
            for n in (case.words.nbytes, case.words.nbytes, case.payload.size)
        )
        words[:] = case.words.reshape(-1).view(np.uint8)
        matrix = words.view(dtype.word_type).reshape(shape)
        assert (backend.encode_segments(case.plan, matrix).payload == case.payload).all()
        backend.histogram(matrix, case.plan.geometry, dtype, mode=int(rng.choice(MODES)))
        for _ in range(4):
            payload[:] = (
                case.payload
                if rng.random() < 0.2
                else spoil(rng, case)
                if rng.random() < 0.5
                else rng.integers(0, 256, payload.size)
            )
            backend.decode_segments(
                case.decoding, payload, out.view(dtype.word_type).reshape(shape)
            )
            backend.checksums(payload, case.decoding.offsets)


# ---- tables --------------------------------------------------------------------------------------
def test_tables_are_read_as_the_reference_reads_them() -> None:
    """Good ones, 70 at a time for more than a block of them, and such that are cut or changed: the
    same tables, or the same error.
    """
    backend, rng, refused = NumbaBackend(1), np.random.default_rng(13), 0

    def outcome(read: TableReader, data: bytes, n: int) -> Any:
        try:
            tables, end = read(data, 3, n)
        except DecodeError as e:
            return str(e)
        return [(t.prob_bits, t.freq.tolist()) for t in tables], end

    for i in range(400):
        n = 70 if i % 100 == 0 else int(rng.integers(0, 4))
        data = bytearray(
            b"abc" + b"".join(t.serialised for t in random_tables(rng, n).tables) + bytes(i % 3)
        )
        if i % 2 and len(data) > 3:
            at = int(rng.integers(3, len(data)))
            data[at] ^= 1 << int(rng.integers(0, 8))
            if i % 4 == 1:
                del data[at:]
        due = outcome(read_tables, bytes(data), n)
        refused += isinstance(due, str)
        assert outcome(backend.read_tables, bytes(data), n) == due
    assert 100 < refused < 200


@pytest.mark.parametrize("coder", [Coder.RANS, Coder.CONTEXT])
@pytest.mark.parametrize("where", ["table", "beside", "map"])
def test_tables_that_are_not_there_are_refused(coder: Coder, where: str) -> None:
    """A number out of range, on a plane beside one with contexts, and in a context map:
    such plans come from no file.
    """
    backend, dtype, geometry = NumbaBackend(1), BY_NAME["int16"], Geometry(32, 32, 16, 16, 16, 16)
    tables = random_tables(np.random.default_rng(14), 2).tables
    one_map = ContextMap(ContextKind.POSITION, bytes(64), (2 if where == "map" else 0,))
    plan = only(
        dtype,
        geometry,
        TablePool(tables, [one_map]),
        Layout.BYTES,
        coder=[Coder.CONTEXT if where != "table" else coder, coder],
    )
    plan.segments.table[1, 3] = {"map": 0, "beside": 2, "table": 2}[where]
    words = np.zeros((32, 32), np.uint16)
    with pytest.raises(ValueError, match="not among its 2 tables and 1 maps"):
        backend.encode_segments(plan, words)


def _spoilt(rng: np.random.Generator, plan: SegmentPlan) -> SegmentPlan:
    """A plan with one number of one column changed."""
    columns = {f.name: getattr(plan.segments, f.name).copy() for f in fields(SegmentTable)}
    column = columns[str(rng.choice(list(columns)))]
    at = tuple(int(rng.integers(0, n)) for n in column.shape)
    most = np.iinfo(column.dtype).max
    near = [int(column[at]) + d for d in (-1, 1, 2, 9, 240)]
    column[at] = rng.choice([v for v in (0, 1, 4, 255, 256, most, *near) if 0 <= v <= most])
    return replace(plan, segments=SegmentTable(**columns))


def _stored(plan: SegmentPlan) -> SegmentPlan:
    """A plan as it comes from an index, other bytes around its columns."""
    columns = np.frombuffer(b"\x05\x00" + write_columns(plan.segments) + b"\x01", np.uint8)
    n, n_planes = plan.geometry.n_segments, plan.dtype.n_planes
    stored = Stored(columns, 2, columns.size - 1, n, n_planes)
    return replace(plan, segments=StoredTable.at(stored))


def test_tables_of_plans_are_checked_as_the_reference_checks_them() -> None:
    """What a kernel takes, the reference takes; what it refuses, the reference explains."""
    rng, backend, refused = np.random.default_rng(21), NumbaBackend(1), 0
    for i in range(1500):
        dtype = DTYPES[i % len(DTYPES)]
        geometry = random_geometry(rng)
        plan = random_plan(rng, geometry, dtype, with_maps(rng, random_tables(rng)))
        units = np.where(plan.is_stream, max_stream_nbytes(plan.plane_nbytes) // UNIT, 0)
        plan = plan.encoded(units.astype(np.uint32), plan.segments.n_patches)
        for one in (plan, _spoilt(rng, plan)):
            try:
                check_plan(replace(one))
                due: str | int = replace(one).payload_nbytes
            except DecodeError as e:
                due = str(e)
                refused += 1
            for form in (replace(one), _stored(one)):
                try:
                    backend.check_plan(form)
                    got: str | int = form.payload_nbytes
                except DecodeError as e:
                    got = str(e)
                assert got == due
    assert 500 < refused < 1400


def test_tables_with_cut_columns_are_refused() -> None:
    """At every byte, and with one too many."""
    rng, backend = np.random.default_rng(22), NumbaBackend(1)
    plan = complete_plan(rng)
    data = np.frombuffer(write_columns(plan.segments) + b"\0", np.uint8)
    n, n_planes = plan.geometry.n_segments, plan.dtype.n_planes
    for end in range(data.size + 1):
        stored = Stored(data, 0, end, n, n_planes)
        cut = replace(plan, segments=StoredTable.at(stored))
        if end == data.size - 1:
            backend.check_plan(cut)
        else:
            with pytest.raises(DecodeError, match=r"more bytes where|left over"):
                backend.check_plan(cut)
    for width in (3, 5, 255):
        wrong = data[:-1].copy()
        wrong[0] = width
        stored = Stored(wrong, 0, wrong.size, n, n_planes)
        with pytest.raises(DecodeError, match="width"):
            backend.check_plan(replace(plan, segments=StoredTable.at(stored)))


def complete_plan(rng: np.random.Generator) -> SegmentPlan:
    """A plan as a decoder reads it."""
    return make_case(rng, BY_NAME["bfloat16"], Geometry(40, 50, 16, 16, 16, 16)).decoding
