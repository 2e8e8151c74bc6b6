"""Kernels that find the classes of symbols and decode by them, on the CPU,
against the reference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from cuda_cases import BLOCK, EACH_RUNTIME, Array, Memory, address, check_sanitized, pad
from cuda_emulator import EmulatedRuntime
from cuda_emulator.backend import EmulatedCuda
from plans import (
    complete,
    make_case,
    only,
    random_geometry,
    random_scales,
    random_tables,
    random_words,
    with_maps,
)
from test_backends_equal import check_bad, check_encode
from test_cuda_decode import (
    all_precisions,
    check_kernel,
    random_symbols,
    spoilt_stream,
    whole_groups,
)

from wcodec.backends.cuda.layout import PLANE
from wcodec.backends.cuda.worklist import TableRows, WorkItem, WorkList
from wcodec.backends.protocol import SegmentPlan, Status
from wcodec.reference import contexts
from wcodec.reference.encoding import segment_planes
from wcodec.reference.planes import BY_NAME, DType, Layout
from wcodec.reference.prediction import PER_TILE
from wcodec.reference.rans import GROUP, decode_streams, encode_streams
from wcodec.reference.segments import Coder
from wcodec.reference.tables import MAX_CLASSES, N_CONTEXTS, ContextKind, ContextMap, TablePool
from wcodec.reference.tiles import Geometry

BAD_LATE_STREAM = 8  # as in common.cuh
KINDS = [
    (d, layout)
    for d in ("int8", "float8_e5m2", "bfloat16", "float32", "float64")
    for layout in (Layout.BYTES, Layout.PAIRS)
]
KINDS = [(n, layout) for n, layout in KINDS if layout == Layout.BYTES or BY_NAME[n].has_pairs]


@pytest.fixture(params=EACH_RUNTIME)
def runtime(request: pytest.FixtureRequest) -> EmulatedRuntime:
    return EmulatedRuntime(**request.param)


# ---- classes -------------------------------------------------------------------------------------
def context_plan(
    rng: np.random.Generator, dtype: DType, layout: Layout, geometry: Geometry, kind: ContextKind
) -> SegmentPlan:
    """Planes by contexts of one kind; plane 0, where it can't, by any other coder."""
    tables = random_tables(rng)
    maps = [m for _ in range(4) for m in with_maps(rng, tables).maps if m.kind == kind]
    plan = only(
        dtype,
        geometry,
        TablePool(tables.tables, maps),
        layout,
        coder=[Coder.CONTEXT] * dtype.n_planes,
    )
    s, shape = plan.segments, (geometry.n_segments,)
    used = dtype.n_planes if layout == Layout.PAIRS else dtype.word_nbytes
    s.table[...] = rng.integers(0, len(maps), s.table.shape)
    s.coder[used:], s.table[used:] = 0, 0
    if kind == ContextKind.PLANE:
        s.coder[0] = rng.choice([Coder.RAW, Coder.CONSTANT, Coder.RANS], shape)
        s.table[0] = np.where(s.coder[0] == Coder.RAW, 0, rng.integers(0, len(tables), shape))
    return replace(plan, scales=random_scales(rng, plan))


def check_classes(
    runtime: EmulatedRuntime, plan: SegmentPlan, words: Array, at_end: bool, encoding: bool
) -> None:
    """Classes of all symbols of all planes that have them are the reference's,
    of what fills up the last group 0.
    """
    memory, n_planes = Memory(at_end), plan.dtype.n_planes
    work = WorkList.of([WorkItem(plan, 0)], encoding=True)
    rooms, expected = {}, {}
    for k in range(plan.geometry.n_segments):
        planes, _ = segment_planes(plan, words, k)
        first, row = planes[0], work.planes[k * n_planes]
        if plan.segments.coder[0, k] == Coder.CONSTANT and not encoding:
            first = np.full(first.size, plan.segments.table[0, k], np.uint8)
        elif plan.segments.coder[0, k] == Coder.RAW and not encoding:
            row["at"] = address(memory.put(first, pad(first.size)))
        else:
            row["symbols"] = address(memory.put(first, pad(first.size, GROUP)))
        assert plan.scales is not None
        scales = plan.scales[plan.scale_offsets[k] : plan.scale_offsets[k + 1]]
        work.segments["scales"][k] = address(memory.put(scales)) if scales.size else 0
        for p in range(n_planes):
            classes = contexts.classes_of(plan, p, k, scales, first)
            if classes is not None:
                i = k * n_planes + p
                rooms[i], expected[i] = memory.room(pad(classes.size, GROUP)), classes
                work.planes["classes"][i] = address(rooms[i])
    chosen = memory.put(np.array(list(rooms), np.uint32))
    args = [memory.put(a) for a in (work.maps, work.tensors, work.segments, work.planes)]
    runtime.launch("find_classes", len(rooms), BLOCK, *args, chosen, np.uint32(encoding))
    memory.check()
    for i, want in expected.items():
        np.testing.assert_array_equal(
            rooms[i], np.pad(want, (0, rooms[i].size - want.size)), f"plane {i}"
        )


@pytest.mark.parametrize("kind", ContextKind, ids=lambda k: k.name)
@pytest.mark.parametrize(("name", "layout"), KINDS)
def test_classes(runtime: EmulatedRuntime, name: str, layout: Layout, kind: ContextKind) -> None:
    """Of all tilings, odd numbers of words among them, with two elements a symbol or one."""
    rng, dtype = np.random.default_rng([1, layout, kind]), BY_NAME[name]
    shapes = [
        Geometry(35, 57, 34, 57, 17, 19),
        Geometry(1, 601, 1, 301, 1, 301),
        Geometry(301, 1, 301, 1, 301, 1),
        random_geometry(rng),
    ]
    for i, geometry in enumerate(shapes):
        plan = context_plan(rng, dtype, layout, geometry, kind)
        words = random_words(rng, geometry, dtype)
        if (plan.segments.coder == Coder.CONTEXT).any():
            check_classes(runtime, plan, words, i % 2 == 0, encoding=False)
            check_classes(runtime, plan, words, i % 2 == 1, encoding=True)


# ---- streams -------------------------------------------------------------------------------------
@dataclass
class Streams:
    """Streams, the symbols that each should have, their classes and context maps."""

    pool: TablePool
    streams: list[Array]
    n_symbols: Array
    classes: list[Array]
    maps: Array


def random_streams(rng: np.random.Generator, sizes: list[int]) -> Streams:
    """Good streams, under maps of all precisions and of any number of classes."""
    tables, maps, bits = all_precisions(rng), [], []
    for n_classes in (1, 2, 5, MAX_CLASSES, MAX_CLASSES):
        bits.append(int(rng.integers(9, 13)))
        alike = [i for i, t in enumerate(tables.tables) if t.prob_bits == bits[-1]]
        maps.append(
            ContextMap(
                ContextKind.SCALE,
                bytes(N_CONTEXTS[ContextKind.SCALE]),
                tuple(rng.choice(alike, n_classes).tolist()),
            )
        )
    pool, chosen = TablePool(tables.tables, maps), rng.integers(0, len(maps), len(sizes))
    classes, symbols = [], []
    for n, m in zip(sizes, chosen.tolist(), strict=True):
        classes.append(rng.integers(0, len(maps[m].tables), n).astype(np.uint8))
        each = [random_symbols(rng, pool[t], n) for t in maps[m].tables]
        symbols.append(np.stack(each)[classes[-1], np.arange(n)])
    streams = encode_streams(symbols, [maps[m].tables for m in chosen], pool, classes)
    return Streams(pool, streams, np.array(sizes, np.int64), classes, chosen)


def check_streams(
    runtime: EmulatedRuntime, rng: np.random.Generator, some: Streams, at_end: bool = True
) -> Array:
    """Symbols, and what is said of the streams, are the reference's. Returns which are good."""
    memory, rows, whole = Memory(at_end), TableRows(), whole_groups(some.n_symbols)
    padded = [np.pad(c, (0, int(n) - c.size)) for c, n in zip(some.classes, whole, strict=True)]
    expected = decode_streams(
        some.streams, whole, [some.pool.maps[m].tables for m in some.maps], some.pool, padded
    )
    planes = np.zeros(len(some.streams), PLANE)
    planes["table"] = rows.of(
        some.pool, some.maps.astype(np.uint32), np.full(some.maps.size, Coder.CONTEXT, np.uint8)
    )
    planes["classes"] = [address(memory.put(c)) for c in padded]
    return check_kernel(
        runtime,
        rng,
        memory,
        "decode_contexts",
        some,
        planes,
        rows.array(),
        expected,
        BAD_LATE_STREAM,
        rows.maps(),
    )


@pytest.mark.parametrize("at_end", [True, False])
def test_streams(runtime: EmulatedRuntime, at_end: bool) -> None:
    rng = np.random.default_rng(2)
    sizes = [
        1,
        2,
        127,
        128,
        129,
        255,
        256,
        257,
        *range(384, 1025, 128),
        *rng.integers(1, 1024, 20).tolist(),
        4000,
        6001,
    ]
    assert check_streams(runtime, rng, random_streams(rng, sizes), at_end).all()


@pytest.mark.parametrize("at_end", [True, False])
def test_bad_streams(runtime: EmulatedRuntime, at_end: bool) -> None:
    rng = np.random.default_rng([3, at_end])
    some = random_streams(rng, rng.integers(1, 1500, 200).tolist())
    some.streams = [spoilt_stream(rng, s, i % 8) for i, s in enumerate(some.streams)]
    n_bad = int((~check_streams(runtime, rng, some, at_end)).sum())
    assert 100 < n_bad < 200  # not all: padding is no fault


# ---- all of it -----------------------------------------------------------------------------------
def test_status_of_several_faults() -> None:
    """Of a segment whose planes are all by contexts:
    a late stream is bad only where no tile mode is wrong.
    """
    backend, rng, dtype = EmulatedCuda(), np.random.default_rng(4), BY_NAME["int16"]
    tables = random_tables(rng, 1)
    maps = [
        ContextMap(kind, bytes(N_CONTEXTS[kind]), (0,))
        for kind in (ContextKind.SCALE, ContextKind.PLANE)
    ]
    geometry = Geometry(48, 64, 48, 64, 16, 16)
    plan = only(
        dtype,
        geometry,
        TablePool(tables.tables, maps),
        Layout.BYTES,
        coder=[Coder.CONTEXT] * 2,
        table=[0, 1],
        prediction=[PER_TILE] * 2,
    )
    plan = replace(
        plan,
        modes=rng.choice(np.array([4, 16, 36], np.uint8), int(plan.modes_nbytes.sum())),
        scales=random_scales(rng, plan),
    )
    case = complete(plan, random_words(rng, geometry, dtype))
    check_encode(backend, case)
    n_tiles = int(geometry.tile_counts()[0])
    (first, second) = case.decoding.plane_offsets[:, 0].tolist()
    places = first + 3, second + 3, 0, n_tiles  # in both streams, and in both planes' modes
    for faults in range(16):
        payload = case.payload.copy()
        for i, at in enumerate(places):
            payload[at] ^= 0x48 * (faults >> i & 1)
        found = check_bad(backend, case.decoding, payload)
        modes = bool(faults & 12)
        assert found == [
            Status.BAD_STREAM
            if faults & 1
            else Status.BAD_TILE_MODE
            if modes
            else Status.BAD_STREAM
            if faults & 2
            else 0
        ]


def test_scratch_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments one after another in the same scratch,
    whose symbols and classes are those of the one before.
    """
    from wcodec.backends.cuda import decoding

    backend, rng = EmulatedCuda(), np.random.default_rng(5)
    case = make_case(rng, BY_NAME["bfloat16"], Geometry(150, 170, 48, 48, 16, 16))
    assert (case.plan.segments.coder == Coder.CONTEXT).any()
    whole = decoding.Decoding
    for limit in (1, 10_000, 30_000):
        monkeypatch.setattr(
            "wcodec.backends.cuda.backend.Decoding",
            lambda runtime, jobs, limit=limit: whole(runtime, jobs, limit),
        )
        assert not any(check_bad(backend, case.decoding, case.payload))


# ---- sanitizers ----------------------------------------------------------------------------------
# the sample of the conformance suite runs these kernels with sanitizers too
@pytest.mark.exhaustive
def test_sanitizers_find_nothing() -> None:
    check_sanitized(__file__)


def main() -> None:
    """The tests above in a process with sanitizers on."""
    runtime = EmulatedRuntime.sanitized()
    for kind in ContextKind:
        for name, layout in KINDS:
            test_classes(runtime, name, layout, kind)
    for at_end in (True, False):
        test_streams(runtime, at_end)
        test_bad_streams(runtime, at_end)
    print("OK")


if __name__ == "__main__":
    main()
