"""The kernels of `encode.cu` and `histogram.cu`, on the CPU, against the reference, from planes
that the reference has split.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cuda_cases import check_sanitized, table_rows
from cuda_emulator import ORDERS, EmulatedRuntime
from fences import CANARY, Heap
from numpy.typing import NDArray
from plans import (
    Case,
    complete,
    lacking,
    make_case,
    only,
    per_tile_case,
    random_geometry,
    random_tables,
    random_words,
    two_symbol_cases,
    two_symbols,
    windowed_case,
)
from sampling import exhaustive

from wcodec.backends.cuda.layout import BATCH, PLANE, SEGMENT, TABLE, TENSOR
from wcodec.backends.cuda.worklist import TableRows
from wcodec.reference import contexts, encoding, segments
from wcodec.reference.planes import BY_NAME, DTYPES, DType, Layout
from wcodec.reference.prediction import Mode, residuals
from wcodec.reference.rans import GROUP, HEAD_NBYTES, UNIT, max_stream_nbytes
from wcodec.reference.segments import Coder
from wcodec.reference.tables import MAX_PROB_BITS, MIN_PROB_BITS, Table, TablePool
from wcodec.reference.tiles import Geometry

BLOCK = 256
CODER = np.dtype([("reciprocal", "<u8"), ("freq", "<u4"), ("start", "<u4")])
#: Strips of several warps, words together or not, tiles of odd and even sides, odd numbers of
#: words, single rows and columns.
GEOMETRIES = [
    Geometry(3, 700, 3, 700, 3, 700), Geometry(3, 701, 3, 350, 3, 350),
    Geometry(50, 300, 34, 300, 17, 300), Geometry(40, 290, 40, 145, 40, 29),
    Geometry(20, 68, 20, 34, 20, 17), Geometry(9, 257, 9, 257, 9, 257),
    Geometry(33, 64, 33, 64, 33, 64), Geometry(300, 1, 300, 1, 300, 1),
    Geometry(1, 301, 1, 301, 1, 301), Geometry(45, 48, 45, 48, 45, 16),
]  # fmt: skip
NOWHERE = 0x10  #: an address that nothing may be read from

Array = NDArray[Any]


class Device:
    """An emulated device, whose memory stands behind fences;
    or one with sanitizers, which know where memory ends.
    """

    def __init__(self, runtime: EmulatedRuntime, fenced: bool = True) -> None:
        self.runtime = runtime
        self.heap = Heap() if fenced else None

    def put(self, array: Array) -> Array:
        """What kernels may only read."""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return self.runtime.upload(flat) if self.heap is None else self.heap.copy(flat, frozen=True)

    def room(self, nbytes: int) -> Array:
        """Bytes that are `CANARY`."""
        return (
            self.runtime.empty(nbytes) if self.heap is None else self.heap.empty(nbytes, np.uint8)
        )

    def units(self, data: Array, room_nbytes: int) -> Array:
        """Scratch that starts with some bytes; the others are noise."""
        room = self.room(room_nbytes)
        room[:] = np.random.default_rng(data.size).integers(0, 256, room_nbytes)
        room[: data.size] = data
        return room

    def address(self, array: Array) -> int:
        return self.runtime.address(array)

    def launch(self, kernel: str, grid: int, *args: Any) -> None:
        self.runtime.launch(kernel, grid, BLOCK, *args)
        assert self.heap is None or self.heap.whole, f"{kernel} wrote outside"


@pytest.fixture(params=ORDERS, ids=lambda o: f"{o[0]}-{o[1]}")
def device(request: pytest.FixtureRequest) -> Device:
    order, seed = request.param
    return Device(EmulatedRuntime(order=order, seed=seed))


@pytest.fixture
def shuffled() -> Device:
    return Device(EmulatedRuntime(order="shuffled", seed=3))


# ---- work, laid out as the kernels before `encode_streams` would leave it ------------------------
def whole_groups(n: int) -> int:
    return -(-n // GROUP) * GROUP


def padded(n: int) -> int:
    return -(-n // UNIT) * UNIT


def tensor_row(geometry: Geometry, dtype: DType) -> Array:
    fields = (
        geometry.cols,
        geometry.tile_rows,
        geometry.tile_cols,
        dtype.word_nbytes,
        dtype.word_map,
        dtype.exponent_bits,
        dtype.n_planes,
    )
    return np.array([tuple(int(f) for f in fields)], TENSOR)


def segment_rows(geometry: Geometry, dtype: DType, words: int) -> Array:
    rows = np.zeros(geometry.n_segments, SEGMENT)
    for k, row in enumerate(rows):
        down, across = geometry.rectangle(k)
        row["words"] = words + (down.start * geometry.cols + across.start) * dtype.word_nbytes
        row["height"], row["width"] = down.stop - down.start, across.stop - across.start
    rows["n_tiles"] = geometry.tile_counts()
    rows["modes"] = rows["scales"] = rows["patches"] = rows["record"] = NOWHERE
    return rows


class Work:
    """Segments of a case in the memory of a device, and scratch with their planes."""

    def __init__(self, device: Device, case: Case) -> None:
        plan, dtype, n = case.plan, case.plan.dtype, case.plan.geometry.n_segments
        self.device, self.case, self.n_planes = device, case, dtype.n_planes
        self._kept: list[Array] = [device.put(case.words)]
        self.segments = segment_rows(plan.geometry, dtype, device.address(self._kept[0]))
        self.segments["layout"] = plan.segments.layout
        self.segments["plane"] = dtype.n_planes * np.arange(n)
        self.planes = np.zeros(n * dtype.n_planes, PLANE)
        self.planes["at"] = self.planes["symbols"] = self.planes["residuals"] = self.planes[
            "classes"
        ] = NOWHERE
        self.streams: dict[int, Array] = {}
        self.patches = np.zeros(n, np.uint32)
        rows = TableRows()
        rows.of(
            plan.tables,
            np.arange(len(plan.tables), dtype=np.uint32),
            np.full(len(plan.tables), Coder.RANS, np.uint8),
        )
        rows.of(
            plan.tables,
            np.arange(len(plan.tables.maps), dtype=np.uint32),
            np.full(len(plan.tables.maps), Coder.CONTEXT, np.uint8),
        )
        for k in range(n):
            self._add(k)
        self.tables, self.maps, self.tensors = (
            device.put(a) for a in (rows.array(), rows.maps(), tensor_row(plan.geometry, dtype))
        )
        self.on_device = [self.tensors, device.put(self.segments), device.put(self.planes)]

    def _keep(self, array: Array) -> int:
        self._kept.append(array)
        return self.device.address(array)

    def _add(self, k: int) -> None:
        plan, case, device = self.case.plan, self.case, self.device
        if plan.segments.layout[k] == Layout.RAW:
            return
        modes = (
            np.empty(0, np.uint8)
            if plan.modes is None
            else plan.modes[plan.modes_offsets[k] : plan.modes_offsets[k + 1]]
        )
        planes, patches = encoding.segment_planes(plan, case.words, k)
        data = patches.astype("<u4").view(np.uint8)
        self.patches[k] = patches.size
        self.segments["modes"][k] = self._keep(device.put(modes)) if modes.size else NOWHERE
        scales = (
            np.empty(0, np.uint8)
            if plan.scales is None
            else plan.scales[plan.scale_offsets[k] : plan.scale_offsets[k + 1]]
        )
        self.segments["scales"][k] = self._keep(device.put(scales)) if scales.size else NOWHERE
        self.segments["scales_nbytes"][k] = scales.size
        self.segments["patches"][k] = (
            self._keep(device.units(data, padded(data.size))) if data.size else NOWHERE
        )
        for p, (plane, plane_modes) in enumerate(
            zip(planes, segments.plane_modes(plan, k, modes), strict=False)
        ):
            i = k * self.n_planes + p
            row, n = self.planes[i], plane.size
            row["n_symbols"], row["segment"], row["index"] = n, k, p
            row["coder"], row["table"], row["prediction"] = (
                getattr(plan.segments, c)[p, k] for c in ("coder", "table", "prediction")
            )
            if row["coder"] == Coder.RAW:
                row["symbols"] = self._keep(device.units(plane, whole_groups(n)))
            elif row["coder"] != Coder.CONSTANT:
                self.streams[i] = device.room(int(max_stream_nbytes(n)))
                row["at"], row["nbytes"] = device.address(self.streams[i]), self.streams[i].size
                predicted = row["prediction"] != Mode.NONE
                coded = (
                    segments.each_tile(plan, k, plane, plane_modes, residuals)
                    if predicted
                    else plane
                )
                row["residuals" if predicted else "symbols"] = self._keep(
                    device.units(coded, whole_groups(n))
                )
            if row["coder"] == Coder.CONTEXT:
                classes = contexts.classes_of(plan, p, k, scales, planes[0])
                assert classes is not None
                row["classes"] = self._keep(device.put(np.pad(classes, (0, -n % GROUP))))

    def batches(self, rng: np.random.Generator, coder: Coder) -> tuple[Array, Array]:
        """All streams of a coder in any order, in batches of random sizes,
        each with one table or map.
        """
        rans = rng.permutation(
            np.array(
                [i for i in sorted(self.streams) if self.planes["coder"][i] == coder], np.int64
            )
        )
        listed, batches = list[int](), list[tuple[int, int, int, int]]()
        for table in np.unique(self.planes["table"][rans]).tolist():
            ids = rans[self.planes["table"][rans] == table].tolist()
            while ids:
                count = min(len(ids), int(rng.choice([1, 3, 8, 9, 30])))
                batches.append((len(listed), count, table, 0))
                listed += ids[:count]
                del ids[:count]
        return np.array(listed, np.uint32), np.array(batches, BATCH)

    def encode(self, rng: np.random.Generator) -> Array:
        """Run `build_coders`, `encode_streams` and `encode_contexts`;
        returns the lengths of all planes.
        """
        device, n_tables = self.device, len(self.case.plan.tables)
        coders = device.room(n_tables * 256 * CODER.itemsize)
        lengths = device.room(4 * self.planes.size)
        device.launch("build_coders", n_tables, self.tables, np.uint32(n_tables), coders)
        for coder, kernel, tables in (
            (Coder.RANS, "encode_streams", (self.tables,)),
            (Coder.CONTEXT, "encode_contexts", (self.tables, self.maps)),
        ):
            listed, batches = self.batches(rng, coder)
            if listed.size:
                device.launch(
                    kernel,
                    batches.size,
                    *tables,
                    coders,
                    self.on_device[2],
                    device.put(batches),
                    device.put(listed),
                    lengths,
                )
        return lengths

    def assemble(self, rng: np.random.Generator, lengths: Array) -> list[Array]:
        """Run `assemble` with records in any order and gaps between them; returns the records."""
        device, offsets = self.device, self.case.decoding.offsets
        sizes, order = np.diff(offsets), rng.permutation(offsets.size - 1)
        ends = np.cumsum(sizes[order] + UNIT)
        starts = np.zeros(sizes.size, np.int64)
        starts[order] = ends - sizes[order]
        room = device.room(int(ends[-1]))
        records = device.put((starts + device.address(room)).astype(np.uint64))
        device.launch(
            "assemble", sizes.size, *self.on_device, lengths, device.put(self.patches), records
        )
        out = [room[a : a + n].copy() for a, n in zip(starts.tolist(), sizes.tolist(), strict=True)]
        for a, n in zip(starts.tolist(), sizes.tolist(), strict=True):
            room[a : a + n] = CANARY
        assert (room == CANARY).all(), "written between records"
        return out


def check_stream(work: Work, i: int, length: int) -> None:
    """A stream is as in the payload, at the end of its scratch,
    before which nothing has changed.
    """
    decoding, (k, p) = work.case.decoding, divmod(i, work.n_planes)
    at, n = int(decoding.plane_offsets[p, k]), int(decoding.segments.n_units[p, k]) * UNIT
    stored, scratch = work.case.payload[at : at + n], work.streams[i]
    assert length % 2 == 0
    assert 0 <= n - length < UNIT
    np.testing.assert_array_equal(scratch[scratch.size - length :], stored[:length])
    assert (scratch[: scratch.size - length] == CANARY).all()


def check_encode(device: Device, case: Case, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    work = Work(device, case)
    lengths = work.encode(rng)
    for i, length in enumerate(lengths.view(np.uint32).tolist()):
        if i in work.streams:
            check_stream(work, i, length)
        else:
            assert length == CANARY * 0x01010101
    offsets = case.decoding.offsets
    for k, record in enumerate(work.assemble(rng, lengths)):
        np.testing.assert_array_equal(
            record, case.payload[offsets[k] : offsets[k + 1]], err_msg=f"segment {k}"
        )
    if device.heap is not None:
        device.heap.forget()


def check_histogram(
    device: Device, words: Array, geometry: Geometry, dtype: DType, segments: Array, **call: Any
) -> None:
    """As `encoding.histogram`, for calls that name all of its options."""
    base, planes = call["base"], call["planes"]
    held = device.put(words)
    rows = segment_rows(geometry, dtype, device.address(held))
    rows["base"], rows["fill"] = base or 0, call["fill"]
    expected = encoding.histogram(words, geometry, dtype, segments=segments, **call)
    counts = device.room(4 * expected.size)
    held_too = [
        device.put(a)
        for a in (
            tensor_row(geometry, dtype),
            rows,
            segments.astype(np.uint32),
            np.array(planes, np.uint32),
        )
    ]
    device.launch(
        "histograms",
        segments.size,
        *held_too,
        np.uint32(len(planes)),
        np.uint32(call["mode"]),
        np.uint32(base is not None),
        counts,
    )
    np.testing.assert_array_equal(
        counts.view(np.uint32).reshape(expected.shape), expected, err_msg=f"{geometry} {call}"
    )
    if device.heap is not None:
        device.heap.forget()


def histogram_calls(rng: np.random.Generator, dtype: DType) -> Iterator[dict[str, Any]]:
    """All planes under each mode, some planes, and pairs with and without planes."""
    n, fill = dtype.word_nbytes, int(rng.integers(0, 16))
    every = tuple(range(n))
    for mode in Mode:
        yield {"planes": every, "mode": int(mode), "base": None, "fill": fill}
    yield {"planes": every[-1:], "mode": int(rng.choice(Mode)), "base": None, "fill": fill}
    if not dtype.has_pairs:
        return
    if n == 1:
        yield from (
            {"planes": planes, "mode": 0, "base": 0, "fill": fill}
            for planes in ((0, 1), (0,), (1,))
        )
    else:
        bases = 0, 240, int(rng.integers(0, 241))
        yield from (
            {"planes": planes, "mode": 0, "base": b, "fill": fill}
            for b, planes in zip(bases, ((), every, every[1:]), strict=True)
        )


def check_histograms(
    device: Device, rng: np.random.Generator, geometry: Geometry, dtype: DType
) -> None:
    words, n = random_words(rng, geometry, dtype), geometry.n_segments
    for call in histogram_calls(rng, dtype):
        if (
            dtype.has_pairs
            and call["base"] is not None
            and not call["planes"]
            and dtype.word_nbytes == 1
        ):
            continue
        segments = np.arange(n) if rng.random() < 0.5 else np.flatnonzero(rng.random(n) < 0.6)
        if segments.size:
            check_histogram(device, words, geometry, dtype, segments, **call)


# ---- tables and streams --------------------------------------------------------------------------
def test_coders(device: Device) -> None:
    tables = random_tables(np.random.default_rng(1), 9)
    few = np.zeros(256, np.int64)
    few[[0, 31, 32, 255]] = 1, 2, 4000, 93
    tables.tables.append(Table(few, 12))
    coders = device.room(len(tables) * 256 * CODER.itemsize)
    device.launch(
        "build_coders", len(tables), device.put(table_rows(tables)), np.uint32(len(tables)), coders
    )
    for table, row in zip(tables.tables, coders.view(CODER).reshape(-1, 256), strict=True):
        np.testing.assert_array_equal(row["freq"], table.freq)
        np.testing.assert_array_equal(row["start"], table.start)
        np.testing.assert_array_equal(
            row["reciprocal"],
            [-((-1 << 32 + table.prob_bits) // f) if f else 0 for f in table.freq.tolist()],
        )


@pytest.mark.parametrize("prob_bits", range(MIN_PROB_BITS, MAX_PROB_BITS + 1))
def test_division_is_exact(prob_bits: int) -> None:
    """Reciprocals of all frequencies, at both ends of each of many quotients,
    in the arithmetic of the kernel.
    """
    device, rng = Device(EmulatedRuntime()), np.random.default_rng(prob_bits)
    whole = 1 << prob_bits
    pairs = [(f, whole - f) for f in range(1, whole // 2 + 1)]
    rows = np.zeros(len(pairs), TABLE)
    rows["prob_bits"], rows["freq"][:, :2] = prob_bits, pairs
    coders = device.room(rows.size * 256 * CODER.itemsize)
    device.launch("build_coders", rows.size, device.put(rows), np.uint32(rows.size), coders)
    used = coders.view(CODER).reshape(-1, 256)[:, :2].reshape(-1, 1)
    freq, reciprocal = used["freq"].astype(np.uint64), used["reciprocal"]
    low, high, word = reciprocal & np.uint64(0xFFFFFFFF), reciprocal >> np.uint64(32), np.uint64(32)
    most = 1 << 32 - prob_bits  # quotients are below it
    quotients = np.concatenate(
        [np.arange(50), most - 1 - np.arange(50), rng.integers(0, most, 400)]
    ).astype(np.uint64)[None, :]
    for x in (quotients * freq, quotients * freq + freq - np.uint64(1)):
        assert (x < freq << np.uint64(32 - prob_bits)).all()
        mixed = ((x * low >> word) + x * high) & np.uint64(0xFFFFFFFF)
        np.testing.assert_array_equal(
            mixed >> np.uint64(prob_bits), np.broadcast_to(quotients, x.shape)
        )


@pytest.mark.parametrize("prob_bits", range(MIN_PROB_BITS, MAX_PROB_BITS + 1))
@pytest.mark.parametrize("rare", [1, 2, 3, 255])
def test_extreme_tables(shuffled: Device, prob_bits: int, rare: int) -> None:
    """Two symbols, of frequencies at both ends."""
    for case in two_symbol_cases(31, 37, prob_bits, rare, (0.0, 0.01, 0.5, 1.0)):
        check_encode(shuffled, case)


@pytest.mark.parametrize(
    "n", [1, 2, 15, 16, 17, 127, 128, 129, 256, 383, 511, 512, 513, 640, 1025, 1100]
)
def test_sizes(device: Device, n: int) -> None:
    """Around groups, and chunks of four groups."""
    rng, dtype = np.random.default_rng(n), BY_NAME["uint8"]
    for rows in (1, 12):
        geometry = Geometry(rows, n, 1, n, 1, n)
        plan = only(
            dtype,
            geometry,
            random_tables(rng),
            Layout.BYTES,
            coder=[Coder.RANS, Coder.RAW],
            table=[int(rng.integers(0, 5)), 0],
        )
        check_encode(device, complete(plan, random_words(rng, geometry, dtype)), n)


def test_symbols_that_a_table_does_not_have(shuffled: Device) -> None:
    """No plan has them; the scratch holds what becomes of them."""
    rng = np.random.default_rng(4)
    dtype = BY_NAME["uint8"]
    geometry = Geometry(12, 600, 1, 600, 1, 600)
    plan = only(dtype, geometry, random_tables(rng), Layout.BYTES, coder=[Coder.RANS, Coder.RAW])
    work = Work(shuffled, complete(plan, random_words(rng, geometry, dtype)))
    work.tables = shuffled.put(np.tile(table_rows(TablePool([two_symbols(12, 1, 7, 8)])), 5))
    lengths = work.encode(rng).view(np.uint32)[:: work.n_planes]
    assert (lengths >= HEAD_NBYTES).all()
    assert (lengths <= max_stream_nbytes(600)).all()
    assert lengths.max() == max_stream_nbytes(600) - 2 * (-600 % GROUP)


# ---- records -------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("seed", [0, exhaustive(1)])
def test_random_plans(device: Device, dtype: DType, seed: int) -> None:
    check_encode(device, make_case(np.random.default_rng([seed, dtype.id]), dtype), seed)


@pytest.mark.parametrize("name", ["uint8", "bfloat16", "float32", "int64"])
@pytest.mark.parametrize("at_end", [True, False])
def test_raw_words(shuffled: Device, name: str, at_end: bool) -> None:
    """Rows at any address that is one of words:
    aligned, not aligned, shorter than a unit, all together.
    """
    rng, dtype = np.random.default_rng(5), BY_NAME[name]
    assert shuffled.heap is not None
    shuffled.heap.at_end = at_end
    for rows, cols, segment_rows_, segment_cols in [
        (5, 64, 5, 64),
        (5, 64, 2, 32),
        (7, 33, 3, 17),
        (9, 3, 4, 2),
        (1, 100, 1, 100),
        (40, 1, 20, 1),
    ]:
        geometry = Geometry(rows, cols, segment_rows_, segment_cols, segment_rows_, segment_cols)
        check_encode(
            shuffled,
            complete(
                only(dtype, geometry, random_tables(rng), Layout.RAW),
                random_words(rng, geometry, dtype),
            ),
        )


def test_tile_modes_and_patches(device: Device) -> None:
    rng = np.random.default_rng(6)
    check_encode(device, per_tile_case(rng, Geometry(70, 50, 48, 32, 16, 16)))
    dtype, geometry = BY_NAME["bfloat16"], Geometry(40, 41, 20, 20, 20, 20)
    plan = only(
        dtype, geometry, random_tables(rng), Layout.PAIRS, base=118, coder=[Coder.RANS, Coder.RAW]
    )
    words = rng.integers(0, 1 << 16, (40, 41)).astype(np.uint16)
    words[:20, :20] = 120 << 7  # no patch in the first segment, one in the third
    words[:20, 40:] = 120 << 7
    words[3, 40] = 0
    check_encode(device, complete(plan, words))


@pytest.mark.parametrize("lacks", [0.01, 0.5, 1.0])
def test_uncoded_pairs(device: Device, lacks: float) -> None:
    """Streams under tables that lack few pairs of codes, many, nearly all."""
    rng, geometry = np.random.default_rng(7), Geometry(40, 41, 20, 20, 20, 20)
    tables = lacking(rng, lacks, fill=5)
    check_encode(device, windowed_case(rng, BY_NAME["bfloat16"], 0.1, geometry, tables=tables))


# ---- histograms ----------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_histograms(device: Device, dtype: DType) -> None:
    rng = np.random.default_rng(dtype.id)
    check_histograms(device, rng, random_geometry(rng, 40), dtype)


@pytest.mark.parametrize(
    "name",
    ["uint8", "int8", "float8_e4m3fn", "bfloat16", "int16", "float32", "int32", "float64", "int64"],
)
@pytest.mark.parametrize("at_end", [True, False])
def test_histograms_of_many_geometries(name: str, at_end: bool) -> None:
    rng = np.random.default_rng(8)
    dtype = BY_NAME[name]
    device = Device(EmulatedRuntime(order="shuffled", seed=5))
    assert device.heap is not None
    device.heap.at_end = at_end
    for geometry in GEOMETRIES:
        check_histograms(device, rng, geometry, dtype)


def test_histogram_of_many_words() -> None:
    """One bin that takes all, as a layer of zeros would."""
    rng = np.random.default_rng(9)
    dtype = BY_NAME["bfloat16"]
    geometry = Geometry(1 << 9, 1 << 9, 1 << 9, 1 << 9, 1 << 9, 1 << 9)
    words = random_words(rng, geometry, dtype) & np.uint16(0x8000)
    call = {"planes": (0, 1), "mode": 0, "base": 0, "fill": 3}
    check_histogram(Device(EmulatedRuntime()), words, geometry, dtype, np.arange(1), **call)


# ---- sanitizers ----------------------------------------------------------------------------------
# the sample of the conformance suite runs these kernels with sanitizers too
@pytest.mark.exhaustive
def test_sanitizers_find_nothing() -> None:
    check_sanitized(__file__)


def main() -> None:
    """In memory that ends where it should, with sanitizers on."""
    device = Device(EmulatedRuntime.sanitized(), fenced=False)
    for dtype, seed in itertools.product(DTYPES, range(2)):
        rng = np.random.default_rng([seed, dtype.id])
        check_encode(device, make_case(rng, dtype), seed)
        check_histograms(device, rng, random_geometry(rng, 40), dtype)
    for geometry, name in itertools.product(GEOMETRIES, ["int8", "bfloat16", "float32", "int64"]):
        check_histograms(device, rng, geometry, BY_NAME[name])
    print("OK")


if __name__ == "__main__":
    main()
