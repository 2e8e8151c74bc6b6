"""Kernels that decode streams and segments, on the CPU, against the reference."""

from __future__ import annotations

import functools
import mmap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from cuda_cases import (
    BLOCK,
    EACH_RUNTIME,
    Array,
    Memory,
    address,
    check_sanitized,
    pad,
    planes_of,
    segments_of,
    tensors_of,
)
from cuda_emulator import CANARY, EmulatedRuntime
from plans import Case, complete, only, random_tables, random_words, two_symbols
from sampling import sampled

from wcodec.backends.cuda.layout import BATCH, PLANE, TABLE
from wcodec.backends.protocol import Status
from wcodec.reference import decoding
from wcodec.reference.planes import BY_NAME, DTYPES, DType, Layout
from wcodec.reference.rans import GROUP, decode_streams, encode_streams
from wcodec.reference.segments import Coder
from wcodec.reference.tables import MAX_PROB_BITS, MIN_PROB_BITS, Table, TablePool
from wcodec.reference.tiles import Geometry

SLOTS = 1 << MAX_PROB_BITS
BAD_STREAM, BAD_PATCH = 1, 4  # as in common.cuh
BYTES = [d for d in DTYPES if d.word_nbytes <= 4]
PAIRS = [d for d in BYTES if d.has_pairs]
KINDS = [(d, Layout.BYTES) for d in BYTES] + [(d, Layout.PAIRS) for d in PAIRS]
ONE_OF_EACH = [
    (BY_NAME[n], layout)
    for n in ("int8", "bfloat16", "float32")
    for layout in (Layout.BYTES, Layout.PAIRS)
]


def kind_id(kind: Any) -> str:
    """Name of a dtype or a layout."""
    return str(kind.name).lower()


@pytest.fixture(params=EACH_RUNTIME)
def runtime(request: pytest.FixtureRequest) -> EmulatedRuntime:
    return EmulatedRuntime(**request.param)


def all_precisions(rng: np.random.Generator) -> TablePool:
    """Tables of each precision, with symbols of any frequency,
    also at both ends of the alphabet.
    """
    tables = []
    for prob_bits in range(MIN_PROB_BITS, MAX_PROB_BITS + 1):
        tables += [
            two_symbols(prob_bits, 1),
            two_symbols(prob_bits, (1 << prob_bits) - 1, 0, 255),
            two_symbols(prob_bits, 7, 254, 1),
        ]
        some = random_tables(rng, 40)
        tables += [t for t in some.tables if t.prob_bits == prob_bits][:2]
    return TablePool(tables)


def table_rows(pool: TablePool) -> Array:
    """`TABLE`s of a pool."""
    out = np.zeros(len(pool), TABLE)
    for row, table in zip(out, pool.tables, strict=True):
        row["prob_bits"], row["padding"], row["freq"] = table.prob_bits, table.padding, table.freq
    return out


def batches_of(rng: np.random.Generator, ids: Array, tables: Array) -> tuple[Array, Array]:
    """`BATCH`es of random sizes, each of one table, in any order,
    and the list that they are parts of.
    """
    batches, listed = list[tuple[int, int, int, int]](), list[int]()
    for table in rng.permutation(np.unique(tables)).tolist():
        of_table = rng.permutation(ids[tables == table]).tolist()
        while of_table:
            n = int(rng.choice([1, 7, 8, 9, 20]))
            batches.append((len(listed), min(n, len(of_table)), table, 0))
            listed, of_table = listed + of_table[:n], of_table[n:]
    return np.array(batches, BATCH), np.array(listed, np.uint32)


def luts_of(runtime: EmulatedRuntime, memory: Memory, rows: Array) -> Array:
    """What ``build_luts`` makes of tables."""
    luts = memory.room(4 * SLOTS * rows.size)
    runtime.launch("build_luts", rows.size, BLOCK, memory.put(rows), np.uint32(rows.size), luts)
    memory.check()
    return luts


@functools.cache
def known_luts(pool: TablePool) -> Array:
    """The same by the reference."""
    return np.concatenate([np.pad(t.lut, (0, SLOTS - t.lut.size)) for t in pool.tables]).astype(
        np.uint32
    )


def test_luts(runtime: EmulatedRuntime) -> None:
    pool = all_precisions(np.random.default_rng(0))
    luts = luts_of(runtime, Memory(), table_rows(pool)).view(np.uint32).reshape(-1, SLOTS)
    np.testing.assert_array_equal(luts.ravel(), known_luts(pool))
    for lut, table in zip(luts, pool.tables, strict=True):
        np.testing.assert_array_equal(lut[: 1 << table.prob_bits], table.lut)
        assert (lut[1 << table.prob_bits :] == 0).all()


# ---- streams -------------------------------------------------------------------------------------
@dataclass
class Streams:
    """Streams, the symbols that each should have, and their tables."""

    pool: TablePool
    streams: list[Array]
    n_symbols: Array
    tables: Array


def random_symbols(rng: np.random.Generator, table: Table, n: int) -> Array:
    """Symbols about as frequent as the table says, or uniform among its symbols,
    or the rarest alone.
    """
    used = np.flatnonzero(table.freq)
    kind = rng.integers(0, 4)
    if kind == 0:
        return rng.choice(used, n).astype(np.uint8)
    if kind == 1:
        return np.full(n, used[np.argmin(table.freq[used])], np.uint8)
    return rng.choice(256, n, p=table.freq / table.freq.sum()).astype(np.uint8)


def random_streams(
    rng: np.random.Generator, sizes: Iterable[int], pool: TablePool | None = None
) -> Streams:
    """Good streams of these sizes, under any tables."""
    pool, n_symbols = all_precisions(rng) if pool is None else pool, np.array(list(sizes), np.int64)
    tables = rng.integers(0, len(pool), n_symbols.size)
    symbols = [
        random_symbols(rng, pool[t], n)
        for t, n in zip(tables.tolist(), n_symbols.tolist(), strict=True)
    ]
    return Streams(pool, encode_streams(symbols, tables, pool), n_symbols, tables)


def check_streams(
    runtime: EmulatedRuntime, rng: np.random.Generator, some: Streams, at_end: bool = True
) -> Array:
    """Symbols, those that fill up the last groups too, and what is said of the streams, are the
    reference's. Returns which are good.
    """
    memory, rows, whole = Memory(at_end), table_rows(some.pool), whole_groups(some.n_symbols)
    expected = decode_streams(some.streams, whole, some.tables, some.pool)
    planes = np.zeros(len(some.streams), PLANE)
    planes["table"], planes["coder"] = some.tables, Coder.RANS
    return check_kernel(
        runtime, rng, memory, "decode_streams", some, planes, rows, expected, BAD_STREAM
    )


def whole_groups(n_symbols: Array) -> Array:
    """Numbers of symbols with those that fill up the last groups."""
    return -(-n_symbols // GROUP) * GROUP


def check_kernel(
    runtime: EmulatedRuntime,
    rng: np.random.Generator,
    memory: Memory,
    kernel: str,
    some: Any,
    planes: Array,
    rows: Array,
    expected: tuple[list[Array], Array],
    bad: int,
    maps: Array | None = None,
) -> Array:
    """A kernel finds symbols, and which streams are good, as expected. Returns the latter.

    Parameters
    ----------
    some
        Streams, with `streams` and `n_symbols`.
    planes
        Their `PLANE`s, as far as they are not filled in here.
    rows
        `TABLE`s.
    bad
        What a bad stream sets in the status of its segment.
    maps
        Context maps, if the kernel takes some; it is told what to set too.
    """
    symbols, good = expected
    rooms, before = [memory.room(s.size) for s in symbols], 64
    planes["at"] = [address(memory.put(s)) for s in some.streams]
    planes["nbytes"] = [s.size for s in some.streams]
    planes["symbols"], planes["n_symbols"] = [address(r) for r in rooms], some.n_symbols
    planes["segment"] = rng.permutation(planes.size)
    batches, listed = batches_of(rng, np.arange(planes.size), planes["table"])
    luts = luts_of(runtime, memory, rows)
    status = memory.room(4 * planes.size).view(np.uint32)
    status[:] = before
    first, last = (rows, []) if maps is None else (maps, [np.uint32(bad)])
    args = [memory.put(first), luts, *(memory.put(a) for a in (planes, batches, listed)), *last]
    runtime.launch(kernel, batches.size, BLOCK, *args, status)
    memory.check()
    np.testing.assert_array_equal(status[planes["segment"]], np.where(good, before, before | bad))
    for k in np.flatnonzero(good).tolist():
        np.testing.assert_array_equal(rooms[k], symbols[k], f"stream {k}")
    return good


@pytest.mark.parametrize("at_end", [True, False])
def test_streams(runtime: EmulatedRuntime, at_end: bool) -> None:
    """Of 1 to 8 groups and some longer, all precisions;
    the buffer of words slides in the longer ones.
    """
    rng = np.random.default_rng(1)
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
        6000,
        9001,
    ]
    assert check_streams(runtime, rng, random_streams(rng, sizes), at_end).all()


GREEDY = two_symbols(12, 4095, 0, 255)


def greedy_stream(n_groups: int, n_waiting: int) -> Array:
    """A good stream of zeros under `GREEDY`, such as no encoder makes: each lane takes a word at
    each step, but for some that never do.
    """
    state, n_steps = 1 << 16, 4 * n_groups
    for _ in range(n_steps):
        state = state // 4095 << 12 | state % 4095
    words = np.zeros((n_steps, 32 - n_waiting), "<u2")
    words[-2] = 1  # then the last one makes 2^16 of the state
    stream = (
        np.array([state] * n_waiting + [0] * (32 - n_waiting), "<u4").tobytes() + words.tobytes()
    )
    return np.frombuffer(stream + bytes(-len(stream) % 16), np.uint8)


def test_most_words(runtime: EmulatedRuntime) -> None:
    """The fastest way through the buffer; beside other streams, whose words are not 0."""
    rng, pool = np.random.default_rng(2), TablePool([GREEDY])
    shapes = [(n_groups, n_waiting) for n_groups in (1, 2, 3, 8, 9, 61) for n_waiting in range(8)]
    others = encode_streams(
        [np.full(n, 255, np.uint8) for n in range(4000, 4040)], np.zeros(40, np.int64), pool
    )
    streams = [greedy_stream(*s) for s in shapes] + others
    sizes = np.array([GROUP * n for n, _ in shapes] + [*range(4000, 4040)])
    assert check_streams(
        runtime, rng, Streams(pool, streams, sizes, np.zeros(sizes.size, np.int64))
    ).all()


def test_streams_that_run_out(runtime: EmulatedRuntime) -> None:
    """Zeros follow them: all states end as they should, and only the number of words is wrong."""
    rng, pool, streams = np.random.default_rng(3), TablePool([GREEDY]), []
    shapes = [(n_groups, n_waiting) for n_groups in (1, 2, 7, 20) for n_waiting in (0, 1)]
    for shape in shapes:
        stream = greedy_stream(*shape)
        streams += [
            stream,
            stream[:-16],
            stream[:-32],
            stream[:-48],
            np.append(stream, np.zeros(16, np.uint8)),
        ]
    sizes = np.repeat([GROUP * n for n, _ in shapes], 5)
    good = check_streams(
        runtime, rng, Streams(pool, streams, sizes, np.zeros(sizes.size, np.int64))
    )
    np.testing.assert_array_equal(good, np.arange(sizes.size) % 5 == 0)


def spoilt_stream(rng: np.random.Generator, stream: Array, kind: int) -> Array:
    """A stream of whole units with something wrong, or perhaps nothing."""
    out = stream.copy()
    if kind == 0:  # a few bits
        for at in rng.integers(0, out.size, rng.integers(1, 4)):
            out[at] ^= 1 << int(rng.integers(0, 8))
    elif kind == 1:  # the states
        out[:128] = rng.integers(0, 256, 128)
    elif kind == 2:  # states below 2^16
        out[:128].view("<u4")[:] = rng.integers(0, 3, 32) * rng.integers(0, 1 << 16, 32)
    elif kind == 3:  # units too few or too many
        n = int(rng.integers(0, out.size // 16 - 7))
        out = np.concatenate(
            [out[: 128 + 16 * n], rng.integers(0, 2, 16 * int(rng.integers(0, 3))).astype(np.uint8)]
        )
    elif kind == 4:  # all of it
        out[:] = rng.integers(0, 256, out.size)
    elif kind == 5:
        out[:] = rng.choice([0, 255])
    elif kind == 6:  # the last word, or padding: which may hold anything
        out[-int(rng.integers(1, 17))] ^= 1 << int(rng.integers(0, 8))
    else:  # one unit
        at = 16 * int(rng.integers(0, out.size // 16))
        out[at : at + 16] = rng.integers(0, 256, 16)
    return out


@pytest.mark.parametrize("at_end", [True, False])
def test_bad_streams(runtime: EmulatedRuntime, at_end: bool) -> None:
    """What is said of them is what the reference says; nothing outside is touched."""
    rng, n_bad = np.random.default_rng([13, at_end]), 0
    for _ in range(2):
        some = random_streams(rng, rng.integers(1, 1500, 300))
        some.streams = [spoilt_stream(rng, s, i % 8) for i, s in enumerate(some.streams)]
        n_bad += int((~check_streams(runtime, rng, some, at_end)).sum())
    assert 300 < n_bad < 600  # not all: padding is no fault


# ---- segments ------------------------------------------------------------------------------------
def kernel_of(dtype: DType, layout: Layout) -> str:
    return f"decode_{layout.name.lower()}_{dtype.word_nbytes}"


@functools.cache
def some_tables(seed: int) -> TablePool:
    return random_tables(np.random.default_rng(seed))


def fused_case(
    rng: np.random.Generator,
    dtype: DType,
    layout: Layout,
    geometry: Geometry,
    words: Array | None = None,
) -> Case:
    """A plan of one-tile segments whose lower planes are raw, each with any table."""
    pool, n = some_tables(int(rng.integers(20))), geometry.n_segments
    coder = [Coder.RANS, *[Coder.RAW] * (dtype.n_planes - 1)]
    windowed = layout == Layout.PAIRS and dtype.word_nbytes > 1
    plan = only(dtype, geometry, pool, layout, coder=coder)
    plan.segments.table[0] = rng.integers(0, len(pool), n)
    plan.segments.base[:] = (
        rng.choice([0, 108, 118, 240, int(rng.integers(0, 241))], n) if windowed else 0
    )
    plan = replace(plan, fill=rng.integers(0, 16, n).astype(np.uint8))
    return complete(plan, random_words(rng, geometry, dtype) if words is None else words)


def suits(case: Case) -> Array:
    """Segments that the kernels are made for: each lane's words of a group lie in one row."""
    (heights, widths) = case.plan.geometry.sizes()
    each = 8 if case.plan.segments.layout[0] == Layout.PAIRS else 4
    return np.flatnonzero(
        (heights == 1) | (widths == case.plan.geometry.cols) | (widths % each == 0)
    )


class Fused:
    """Structures to decode a case, each part of its records in a buffer of its own.

    Parameters
    ----------
    shift
        Words before the matrix, in a buffer that is larger by a few:
        where it starts is aligned to words only.
    """

    def __init__(
        self, case: Case, payload: Array | None = None, at_end: bool = True, shift: int = 0
    ) -> None:
        self.case, self.plan, self.memory = case, case.decoding, Memory(at_end)
        self._payload = case.payload if payload is None else payload
        dtype, geometry, s = self.plan.dtype, self.plan.geometry, self.plan.segments
        before, nbytes = shift * dtype.word_nbytes, case.words.nbytes
        self.room = self.memory.room(pad(before + nbytes) if shift or not at_end else nbytes)
        self.words = self.room[before : before + nbytes]
        self.tensors, self.planes = tensors_of(dtype, geometry), planes_of(dtype, geometry)
        self.segments = segments_of(dtype, geometry, address(self.words))
        self.segments["layout"] = s.layout
        self.segments["base"] = s.base
        self.segments["n_patches"] = s.n_patches
        for k, segment in enumerate(self.segments):
            segment["patches"] = self._part(
                int(self.plan.patch_offsets[k]), pad(4 * int(s.n_patches[k]))
            )
            for p, plane in enumerate(self.planes[k]):
                nbytes = int(self.plan.stream_nbytes[p, k])
                plane["coder"] = s.coder[p, k]
                plane["table"] = s.table[p, k]
                plane["n_symbols"] = self.plan.plane_nbytes[p, k]
                plane["at"] = self._part(int(self.plan.plane_offsets[p, k]), nbytes)
                plane["nbytes"] = nbytes

    def _part(self, start: int, nbytes: int) -> int:
        return address(self.memory.put(self._payload[start : start + nbytes])) if nbytes else 0

    def run(
        self, runtime: EmulatedRuntime, rng: np.random.Generator, chosen: Array
    ) -> tuple[Array, Array]:
        """Words and status bits of all segments, which are 8 before."""
        rows = table_rows(self.plan.tables)
        luts = self.memory.put(known_luts(self.plan.tables))
        batches, listed = batches_of(rng, chosen, self.plan.segments.table[0][chosen])
        self.room[:] = CANARY
        status = self.memory.room(4 * self.segments.size).view(np.uint32)
        status[:] = 8
        args = [
            self.memory.put(a) for a in (self.tensors, self.segments, self.planes, batches, listed)
        ]
        kernel = kernel_of(self.plan.dtype, Layout(int(self.plan.segments.layout[0])))
        runtime.launch(kernel, batches.size, BLOCK, self.memory.put(rows), luts, *args, status)
        self.memory.check()
        whole = self.room.copy()
        at = address(self.words) - address(self.room)
        whole[at : at + self.words.size] = CANARY
        assert (whole == CANARY).all(), "written outside of the matrix"
        return self.words.view(self.plan.dtype.word_type).reshape(
            self.case.words.shape
        ).copy(), status


def canaries(case: Case) -> Array:
    """A matrix of nothing else."""
    out: Array = (
        np.full(case.words.nbytes, CANARY, np.uint8)
        .view(case.words.dtype)
        .reshape(case.words.shape)
    )
    return out


def check_fused(
    runtime: EmulatedRuntime,
    rng: np.random.Generator,
    case: Case,
    chosen: Array | None = None,
    at_end: bool = True,
    shift: int = 0,
) -> None:
    """The words of the chosen segments are those of the reference, and no others are touched."""
    chosen = suits(case) if chosen is None else chosen
    if chosen.size == 0:
        return
    decoded, expected = case.words.copy(), canaries(case)
    assert not decoding.decode_segments(case.decoding, case.payload, decoded).any()
    for k in chosen.tolist():
        expected[case.plan.geometry.rectangle(k)] = decoded[case.plan.geometry.rectangle(k)]
    words, status = Fused(case, at_end=at_end, shift=shift).run(runtime, rng, chosen)
    np.testing.assert_array_equal(words, expected)
    assert (status == 8).all()


def check_bad(
    runtime: EmulatedRuntime, rng: np.random.Generator, case: Case, payload: Array
) -> Array:
    """Same status as the reference, same words where it is good, nothing else touched. Returns the
    statuses of all segments.
    """
    chosen, decoded = suits(case), case.words.copy()
    good = decoding.decode_segments(case.decoding, payload, decoded)
    words, status = Fused(case, payload).run(runtime, rng, chosen)
    found = np.where(
        status & BAD_STREAM,
        Status.BAD_STREAM,
        np.where(status & BAD_PATCH, Status.BAD_PATCH, Status.OK),
    )
    np.testing.assert_array_equal(found[chosen], good[chosen])
    assert (status & ~np.uint32(BAD_STREAM | BAD_PATCH) == 8).all()
    for k in range(case.plan.geometry.n_segments):
        where = case.plan.geometry.rectangle(k)
        if k not in chosen:
            decoded[where] = canaries(case)[where]
        elif good[k] != Status.OK:
            continue
        np.testing.assert_array_equal(words[where], decoded[where])
    return good


@pytest.mark.parametrize("at_end", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(("dtype", "layout"), KINDS, ids=kind_id)
def test_segments(runtime: EmulatedRuntime, dtype: DType, layout: Layout, at_end: bool) -> None:
    """All maps; segments as wide as the matrix or not, in step with groups or not."""
    rng = np.random.default_rng([4, dtype.id, layout, at_end])
    shapes = [
        (9, 512, 9, 256),
        (40, 100, 17, 100),
        (30, 120, 24, 40),
        (33, 70, 33, 16),
        (7, 300, 5, 120),
    ]
    for rows, cols, s_rows, s_cols in shapes:
        case = fused_case(rng, dtype, layout, Geometry(rows, cols, s_rows, s_cols, s_rows, s_cols))
        check_fused(runtime, rng, case, at_end=at_end)
        check_fused(
            runtime,
            rng,
            case,
            rng.permutation(suits(case))[:2],
            not at_end,
            shift=int(rng.integers(0, 4)),
        )


@pytest.mark.parametrize(
    "n",
    sampled(
        [1, 2, 3, 4, 5, 7, 8, 9, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1025, 5000], always=10
    ),
)
@pytest.mark.parametrize(("dtype", "layout"), ONE_OF_EACH, ids=kind_id)
def test_sizes(dtype: DType, layout: Layout, n: int) -> None:
    """Around a lane's words, groups, and pairs of groups;
    in one row, in one column, in rows of a few.
    """
    rng, runtime = np.random.default_rng([5, n]), EmulatedRuntime(order="shuffled", seed=n)
    for rows, cols, s_rows, s_cols in (
        (1, n, 1, n),
        (n, 1, n, 1),
        (2, n, 1, n),
        (n, 8, n, 8),
        (-(-n // 8), 24, -(-n // 8), 8),
    ):
        if rows * cols < 20000:
            case = fused_case(
                rng, dtype, layout, Geometry(rows, cols, s_rows, s_cols, s_rows, s_cols)
            )
            check_fused(runtime, rng, case, shift=n % 5)


@pytest.mark.parametrize("width", [1, 7, 8, 1301, 1304])
@pytest.mark.parametrize(("dtype", "layout"), ONE_OF_EACH, ids=kind_id)
def test_parts_of_a_row(dtype: DType, layout: Layout, width: int) -> None:
    """Of any width, and the last one of less, in a matrix of one row or more; aligned or not."""
    rng, runtime = np.random.default_rng([17, width]), EmulatedRuntime(order="shuffled", seed=width)
    for rows, cols in ((1, 3 * width + 3), (2, 2 * width + 1)):
        case = fused_case(rng, dtype, layout, Geometry(rows, cols, 1, width, 1, width))
        for shift in (0, 1):
            check_fused(runtime, rng, case, np.arange(case.plan.geometry.n_segments), shift=shift)


@pytest.mark.parametrize(
    "width",
    sampled([8, 16, 24, 32, 40, 64, 120, 128, 136, 248, 256, 264, 512, 520, 1024], always=8),
)
@pytest.mark.parametrize(("dtype", "layout"), ONE_OF_EACH, ids=kind_id)
def test_widths(dtype: DType, layout: Layout, width: int) -> None:
    """Rows of the matrix that are aligned to what a lane stores, or not."""
    rng, runtime = np.random.default_rng([6, width]), EmulatedRuntime(order="shuffled", seed=width)
    rows = max(3, 2600 // width)
    for cols in (2 * width, 2 * width + 1, 2 * width + 4):
        case = fused_case(rng, dtype, layout, Geometry(rows, cols, rows, width, rows, width))
        check_fused(runtime, rng, case, np.arange(2), shift=0)
        check_fused(runtime, rng, case, np.arange(2), shift=1)


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(BY_NAME["bfloat16"], Layout.PAIRS), (BY_NAME["int8"], Layout.BYTES)],
    ids=kind_id,
)
def test_rows_far_apart(dtype: DType, layout: Layout) -> None:
    """Two groups span more than 4 GiB of a matrix, most of whose pages are never touched."""
    rng, rows = np.random.default_rng(7), 64 + 9
    case = fused_case(rng, dtype, layout, Geometry(rows, 8, rows, 8, rows, 8))
    fused, pitch = Fused(case), (1 << 32) // 32 + 64
    # Linux: MAP_NORESERVE
    far = mmap.mmap(-1, rows * pitch, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    matrix = np.frombuffer(far, dtype.word_type).reshape(rows, -1)
    fused.tensors["cols"], fused.segments["words"] = matrix.shape[1], address(matrix)
    fused.run(EmulatedRuntime(), rng, np.arange(1))
    np.testing.assert_array_equal(matrix[:, :8], case.words)
    assert (matrix[:, 8:100] == 0).all()


def test_all_16_bit_words(runtime: EmulatedRuntime) -> None:
    rng, geometry = np.random.default_rng(7), Geometry(256, 256, 256, 128, 256, 128)
    words = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    for name in ("bfloat16", "int16", "float16"):
        check_fused(runtime, rng, fused_case(rng, BY_NAME[name], Layout.BYTES, geometry, words))
    check_fused(runtime, rng, fused_case(rng, BY_NAME["bfloat16"], Layout.PAIRS, geometry, words))


# ---- patches -------------------------------------------------------------------------------------
WINDOWED = [d for d in PAIRS if d.word_nbytes > 1]


def patched_case(rng: np.random.Generator, dtype: DType, share: float, geometry: Geometry) -> Case:
    """Words of which a share has any exponent."""
    m = 8 * dtype.word_nbytes - 9
    words = rng.integers(0, 1 << (8 * dtype.word_nbytes), (geometry.rows, geometry.cols), np.uint64)
    exponent = np.where(
        rng.random(words.shape) < share,
        rng.integers(0, 256, words.shape),
        118 + rng.integers(0, 16, words.shape),
    )
    words = words & ~np.uint64(255 << m) | exponent.astype(np.uint64) << np.uint64(m)
    case = fused_case(rng, dtype, Layout.PAIRS, geometry, words.astype(dtype.word_type))
    case.plan.segments.base[:] = 118
    return complete(case.plan, case.words)


@pytest.mark.parametrize("share", [0.001, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("dtype", WINDOWED, ids=kind_id)
def test_patches(runtime: EmulatedRuntime, dtype: DType, share: float) -> None:
    rng = np.random.default_rng([8, dtype.id])
    for geometry in (Geometry(24, 200, 24, 64, 24, 64), Geometry(37, 41, 37, 41, 37, 41)):
        case = patched_case(rng, dtype, share, geometry)
        check_fused(runtime, rng, case)
        check_fused(runtime, rng, case, shift=1)


@pytest.mark.parametrize("dtype", [BY_NAME["bfloat16"], BY_NAME["float32"]], ids=kind_id)
def test_bad_patches(runtime: EmulatedRuntime, dtype: DType) -> None:
    """Each makes the status bad, unless the stream is bad too."""
    rng, geometry = np.random.default_rng([9, dtype.id]), Geometry(40, 80, 20, 40, 20, 40)
    case = patched_case(rng, dtype, 0.1, geometry)
    at, count = int(case.decoding.patch_offsets[2]), int(case.decoding.segments.n_patches[2])
    good = case.payload[at : at + 4 * count].view("<u4") & np.uint32(0xFFFFFF)
    assert count > 64
    for where in (0, 1, 31, 32, 33, count // 2, count - 1):
        indices = [800, 0xFFFFFF]
        if where:
            indices += [int(good[where - 1]), int(good[where - 1]) - 1, 0]
        if where + 1 < count:
            indices += [int(good[where + 1]), int(good[where + 1]) + 1]
        for i, index in enumerate(indices):
            payload = case.payload.copy()
            payload[at + 4 * where : at + 4 * where + 4].view("<u4")[0] = index | 0xAB000000
            assert check_bad(runtime, rng, case, payload).tolist() == [0, 0, Status.BAD_PATCH, 0]
            if i == 0:
                payload[int(case.decoding.plane_offsets[0, 2]) + 3] ^= 0x40
                assert check_bad(runtime, rng, case, payload)[2] == Status.BAD_STREAM


def test_any_patches(runtime: EmulatedRuntime) -> None:
    """Random ones, sorted: some segments are bad."""
    rng, geometry, seen = np.random.default_rng(10), Geometry(50, 64, 25, 16, 25, 16), set[int]()
    for _ in range(4):
        case = patched_case(rng, BY_NAME["bfloat16"], 0.05, geometry)
        payload = case.payload.copy()
        for k in np.flatnonzero(rng.random(geometry.n_segments) < 0.7).tolist():
            at = int(case.decoding.patch_offsets[k])
            count = int(case.decoding.segments.n_patches[k])
            payload[at : at + 4 * count] = (
                np.sort(rng.integers(0, 402, count)).astype("<u4").view(np.uint8)
            )
        seen.update(check_bad(runtime, rng, case, payload).tolist())
    assert seen == {Status.OK, Status.BAD_PATCH}


# ---- corrupt payloads ----------------------------------------------------------------------------
@pytest.mark.parametrize(("dtype", "layout"), ONE_OF_EACH, ids=kind_id)
def test_bad_payloads(runtime: EmulatedRuntime, dtype: DType, layout: Layout) -> None:
    """Any bytes of any records; the reference says which are bad."""
    rng, n_bad, n = np.random.default_rng([11, dtype.id, layout]), 0, 0
    for _ in range(6):
        case = fused_case(rng, dtype, layout, Geometry(48, 160, 8, 40, 8, 40))
        payload = case.payload.copy()
        for k in np.flatnonzero(rng.random(case.plan.geometry.n_segments) < 0.7).tolist():
            a, b = int(case.decoding.offsets[k]), int(case.decoding.offsets[k + 1])
            payload[a:b] = spoilt_stream(
                rng, payload[a:b], int(rng.choice([0, 0, 1, 2, 4, 5, 6, 7, 7]))
            )
        statuses = check_bad(runtime, rng, case, payload)
        n_bad, n = n_bad + int((statuses != Status.OK).sum()), n + statuses.size
    assert 0.1 * n < n_bad < 0.8 * n


# ---- sanitizers ----------------------------------------------------------------------------------
# the sample of the conformance suite runs these kernels with sanitizers too
@pytest.mark.exhaustive
def test_sanitizers_find_nothing() -> None:
    check_sanitized(__file__)


def main() -> None:
    """The tests above in a process with sanitizers on."""
    runtime = EmulatedRuntime.sanitized()
    test_luts(runtime)
    test_streams(runtime, True)
    test_most_words(runtime)
    test_streams_that_run_out(runtime)
    test_bad_streams(runtime, True)
    test_bad_streams(runtime, False)
    for dtype, layout in ONE_OF_EACH:
        test_segments(runtime, dtype, layout, True)
    for dtype, layout in ONE_OF_EACH:
        test_bad_payloads(runtime, dtype, layout)
    test_patches(runtime, BY_NAME["float32"], 0.5)
    test_bad_patches(runtime, BY_NAME["bfloat16"])
    print("OK")


if __name__ == "__main__":
    main()
