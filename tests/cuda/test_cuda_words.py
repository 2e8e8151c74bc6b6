"""Kernels that merge planes into words and split words into planes, on the CPU,
against the reference.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cuda_cases import (
    EACH_RUNTIME,
    Array,
    Memory,
    address,
    check_sanitized,
    launch,
    pad,
    planes_of,
    segments_of,
    table_rows,
    tensors_of,
)
from cuda_emulator import CANARY, EmulatedRuntime
from plans import Case, complete, lacking, make_case, only, random_tables, windowed_case
from sampling import exhaustive, sampled

from wcodec.backends.protocol import SegmentPlan, Status
from wcodec.reference import decoding, encoding
from wcodec.reference.planes import BY_NAME, DTYPES, DType, Layout, WordMap, unmap_words
from wcodec.reference.segments import Coder
from wcodec.reference.tables import Table, TablePool
from wcodec.reference.tiles import Geometry

BAD_PATCH = 4  # as in common.cuh
WINDOWED = [d for d in DTYPES if d.has_pairs and d.word_nbytes > 1]
# in no registry, yet the kernels can
F64_SPLIT = replace(BY_NAME["float64"], word_map=WordMap.EXPONENT_FIRST, exponent_bits=11)
KINDS = [
    BY_NAME[n] for n in ("uint8", "int8", "float8_e5m2", "int16", "bfloat16", "float32", "int64")
]

#: Each dtype at one end of memory; at the other in `make test-all`.
EACH_END = [(d, i % 2 == 0) for i, d in enumerate([*DTYPES, F64_SPLIT])]
EACH_END += [exhaustive((d, not at_end)) for d, at_end in EACH_END]


@pytest.fixture(params=EACH_RUNTIME)
def runtime(request: pytest.FixtureRequest) -> EmulatedRuntime:
    return EmulatedRuntime(**request.param)


def symbols_of(case: Case, k: int) -> list[Array]:
    """Planes of a segment as they are before prediction."""
    return (
        []
        if case.plan.segments.layout[k] == Layout.RAW
        else encoding.segment_planes(case.plan, case.words, k)[0]
    )


def some(rng: np.random.Generator, n: int) -> Array:
    """A few of n segments, or all, in any order."""
    return rng.permutation(n)[: rng.integers(1, n + 1)] if n else np.empty(0, np.int64)


# ---- merge ---------------------------------------------------------------------------------------
class Merging:
    """Structures to merge a case, each part of its records in a buffer of its own."""

    def __init__(self, case: Case, at_end: bool = True) -> None:
        self.case, self.plan, self.memory = case, case.decoding, Memory(at_end)
        dtype, geometry, s = self.plan.dtype, self.plan.geometry, self.plan.segments
        self.words = self.memory.room(case.words.nbytes)
        self.tensors, self.planes = tensors_of(dtype, geometry), planes_of(dtype, geometry)
        self.segments = segments_of(dtype, geometry, address(self.words))
        for k, segment in enumerate(self.segments):
            segment["layout"] = s.layout[k]
            segment["base"] = s.base[k]
            segment["n_patches"] = s.n_patches[k]
            segment["record"] = self._part(
                int(self.plan.offsets[k]), int(self.plan.words_nbytes[k])
            )
            segment["patches"] = self._part(
                int(self.plan.patch_offsets[k]), pad(4 * int(s.n_patches[k]))
            )
            for p, symbols in enumerate(symbols_of(case, k)):
                self._place(self.planes[k, p], p, k, symbols)

    def _part(self, start: int, nbytes: int) -> int:
        return address(self.memory.put(self.case.payload[start : start + nbytes])) if nbytes else 0

    def _place(self, plane: Array, p: int, k: int, symbols: Array) -> None:
        s = self.plan.segments
        plane["coder"] = s.coder[p, k]
        plane["table"] = s.table[p, k]
        plane["n_symbols"] = symbols.size
        if s.coder[p, k] == Coder.RAW:
            plane["at"] = self._part(
                int(self.plan.plane_offsets[p, k]), int(self.plan.stream_nbytes[p, k])
            )
            plane["nbytes"] = self.plan.stream_nbytes[p, k]
        elif s.coder[p, k] != Coder.CONSTANT:
            plane["symbols"] = address(self.memory.put(symbols, pad(symbols.size, 128)))

    def run(self, runtime: EmulatedRuntime, chosen: Array, status: int = 0) -> tuple[Array, Array]:
        """Words and status bits of all segments, which are `status` before."""
        self.words[:] = CANARY
        bits = self.memory.room(4 * self.segments.size).view(np.uint32)
        bits[:] = status
        launch(runtime, "merge_words", (self.tensors, self.segments, self.planes), chosen, bits)
        self.memory.check()
        return self.words.view(self.plan.dtype.word_type).reshape(
            self.case.words.shape
        ).copy(), bits


def check_merge(runtime: EmulatedRuntime, case: Case, chosen: Array, at_end: bool = True) -> None:
    """The words of the chosen segments are those of the reference, and no others are touched."""
    expected = (
        np.frombuffer(np.full(case.words.nbytes, CANARY, np.uint8), case.words.dtype)
        .reshape(case.words.shape)
        .copy()
    )
    decoded = expected.copy()
    assert not decoding.decode_segments(case.decoding, case.payload, decoded).any()
    for k in chosen.tolist():
        expected[case.plan.geometry.rectangle(k)] = decoded[case.plan.geometry.rectangle(k)]
    words, bits = Merging(case, at_end).run(runtime, chosen, 3)
    np.testing.assert_array_equal(words, expected)
    assert (bits == 3).all()


@pytest.mark.parametrize(
    ("dtype", "at_end"),
    EACH_END,
    ids=lambda v: f"{v.name}-{v.exponent_bits}" if isinstance(v, DType) else str(v),
)
def test_merge(runtime: EmulatedRuntime, dtype: DType, at_end: bool) -> None:
    rng = np.random.default_rng([dtype.id, at_end, dtype.exponent_bits])
    for _ in range(3):
        case = make_case(rng, dtype)
        check_merge(runtime, case, some(rng, case.plan.geometry.n_segments), at_end)


# ---- split ---------------------------------------------------------------------------------------
def check_split(
    runtime: EmulatedRuntime, plan: SegmentPlan, words: Array, chosen: Array, at_end: bool = True
) -> None:
    """Symbols and patches of the chosen segments are those of the reference,
    and nothing else is touched.
    """
    memory = Memory(at_end)
    dtype = plan.dtype
    geometry = plan.geometry
    case = Case(plan, words, np.empty(0, np.uint8), plan)
    tensors, planes = tensors_of(dtype, geometry), planes_of(dtype, geometry)
    segments = segments_of(dtype, geometry, address(memory.put(words)))
    segments["layout"] = plan.segments.layout
    segments["base"] = plan.segments.base
    segments["fill"] = plan.fill
    counts = memory.room(4 * segments.size).view(np.uint32)
    counts[:] = 12345
    patches = [memory.room(4 * int(n)) for n in plan.n_elements]
    segments["patches"] = [address(p) for p in patches]
    rooms = {}
    for k in range(segments.size):
        for p, symbols in enumerate(symbols_of(case, k)):
            rooms[k, p] = memory.room(pad(symbols.size, 128))
            planes[k, p]["symbols"], planes[k, p]["n_symbols"] = address(rooms[k, p]), symbols.size
    planes["coder"], planes["table"] = plan.segments.coder.T, plan.segments.table.T
    tables = table_rows(plan.tables)
    launch(runtime, "split_words", (tables, tensors, segments, planes), chosen, counts)
    memory.check()
    for k in range(segments.size):
        raw = plan.segments.layout[k] == Layout.RAW
        found = np.empty(0, np.uint32) if raw else encoding.segment_planes(plan, words, k)[1]
        own = symbols_of(case, k)
        if k in chosen:
            assert counts[k] == found.size
            for p, symbols in enumerate(own):
                np.testing.assert_array_equal(
                    rooms[k, p][: symbols.size], symbols, f"segment {k}, plane {p}"
                )
        else:
            assert counts[k] == 12345
            assert all((rooms[k, p] == CANARY).all() for p in range(len(own)))
            found = found[:0]
        np.testing.assert_array_equal(patches[k].view(np.uint32)[: found.size], found)
        assert (patches[k][4 * found.size :] == CANARY).all()


@pytest.mark.parametrize(
    ("dtype", "at_end"),
    EACH_END,
    ids=lambda v: f"{v.name}-{v.exponent_bits}" if isinstance(v, DType) else str(v),
)
def test_split(runtime: EmulatedRuntime, dtype: DType, at_end: bool) -> None:
    rng = np.random.default_rng([dtype.id, at_end, dtype.exponent_bits])
    for _ in range(3):
        case = make_case(rng, dtype)
        check_split(
            runtime, case.plan, case.words, some(rng, case.plan.geometry.n_segments), at_end
        )


# ---- both ----------------------------------------------------------------------------------------
def check_both(runtime: EmulatedRuntime, case: Case) -> None:
    everything = np.arange(case.plan.geometry.n_segments)
    check_merge(runtime, case, everything)
    check_split(runtime, case.plan, case.words, everything)


@pytest.mark.parametrize(
    "n",
    sampled(
        [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 127, 128, 129, 1023, 1025, 4095, 4096, 4097, 9000],
        always=10,
    ),
)
@pytest.mark.parametrize("dtype", KINDS, ids=lambda d: d.name)
def test_sizes(dtype: DType, n: int) -> None:
    """Around items, groups, and what a block takes at once; contiguous or not."""
    rng, runtime = np.random.default_rng(n), EmulatedRuntime(order="shuffled", seed=n)
    for geometry in (
        Geometry(1, n, 1, n, 1, n),
        Geometry(n, 1, n, 1, n, 1),
        Geometry(3, n, 1, n, 1, n),
        Geometry(n, 3, n, 2, n, 2),
    ):
        if n < 1025 or geometry.cols != n:
            check_both(runtime, make_case(rng, dtype, geometry))


LESS_USUAL = map(exhaustive, (1, 2, 5, 8, 15, 24, 31, 32, 33, 48, 257))


@pytest.mark.parametrize("width", [3, 16, 17, 100, *LESS_USUAL])
@pytest.mark.parametrize("dtype", KINDS, ids=lambda d: d.name)
def test_widths(dtype: DType, width: int) -> None:
    """Rows that items go beyond or not, aligned or not, in a wider matrix;
    as one tile, as narrow and as flat ones.
    """
    rng, runtime = np.random.default_rng(width), EmulatedRuntime(order="shuffled", seed=width)
    rows = max(2, 3000 // width)
    for cols, tile in (
        (2 * width, width),
        (2 * width + 1, width),
        (2 * width, 16),
        (3 * width, 17),
    ):
        tall = max(16, pad(rows, 32))
        if tile == width:
            geometries = [
                Geometry(rows, cols, rows, width, rows, width),
                Geometry(rows, cols, tall, width, 16, width),
            ]
        elif width < tile:
            continue
        else:
            across = pad(width, tile)
            geometries = [
                Geometry(rows, cols, tall, across, 16, tile),
                Geometry(rows, cols, rows, across, rows, tile),
            ]
        for geometry in geometries:
            check_both(runtime, make_case(rng, dtype, geometry))


def test_all_16_bit_words(runtime: EmulatedRuntime) -> None:
    geometry = Geometry(256, 256, 256, 256, 256, 256)
    words = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    for name in ("bfloat16", "int16"):
        for layout in (Layout.BYTES, Layout.PAIRS)[: 1 + BY_NAME[name].has_pairs]:
            plan = only(
                BY_NAME[name],
                geometry,
                random_tables(np.random.default_rng(0)),
                layout,
                base=100 * (layout == Layout.PAIRS),
            )
            check_both(runtime, complete(plan, words))


# ---- patches -------------------------------------------------------------------------------------
@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("dtype", WINDOWED, ids=lambda d: d.name)
def test_patches(runtime: EmulatedRuntime, dtype: DType, share: float) -> None:
    """None, few, and all words; fills at both ends."""
    rng = np.random.default_rng([dtype.id, int(share * 1000)])
    for fill in (0, 15):
        check_both(runtime, windowed_case(rng, dtype, share, fill=fill))
    check_both(runtime, windowed_case(rng, dtype, share, Geometry(70, 131, 70, 131, 70, 131)))


@pytest.mark.parametrize("lacks", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [*WINDOWED, F64_SPLIT], ids=lambda d: d.name)
def test_uncoded_pairs(runtime: EmulatedRuntime, dtype: DType, lacks: float) -> None:
    """Tables that lack few pairs of codes, many, nearly all; odd numbers of words."""
    rng = np.random.default_rng([dtype.id, int(lacks * 100)])
    for fill, geometry in (
        (0, Geometry(71, 131, 71, 131, 71, 131)),
        (5, Geometry(3, 301, 1, 301, 1, 301)),
        (15, Geometry(35, 65, 17, 33, 17, 33)),
        (9, None),
    ):
        tables = lacking(rng, lacks, fill)
        check_both(runtime, windowed_case(rng, dtype, 0.1, geometry, fill, tables))


@pytest.mark.parametrize("dtype", [*WINDOWED, F64_SPLIT], ids=lambda d: d.name)
def test_which_code_of_a_pair_changes(runtime: EmulatedRuntime, dtype: DType) -> None:
    outside = 200
    codes = [2, 1, 3, 4, 6, 2, 7, 8, 3, outside, 6, outside, outside, 4, outside, outside, 6]
    freq = np.zeros(256, np.int64)
    freq[[0x12, 0x25, 0x53, 0x55]] = 1, 1, 1, 4093
    tables = TablePool([Table(freq, 12)])
    case = case_of_codes(dtype, codes, tables, Coder.RANS)
    planes, patches = encoding.segment_planes(case.plan, case.words, 0)
    assert planes[0].tolist() == [0x12, 0x53, 0x25, 0x55, 0x53, 0x55, 0x55, 0x55, 0x55]
    changed = [3, 4, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16]
    assert patches.tolist() == [20 + codes[i] << 24 | i for i in changed]
    check_both(runtime, case)
    case = case_of_codes(dtype, codes, tables, Coder.RAW)  # no table is looked at
    planes, patches = encoding.segment_planes(case.plan, case.words, 0)
    assert planes[0].tolist() == [0x12, 0x43, 0x26, 0x87, 0x53, 0x56, 0x45, 0x55, 0x56]
    assert patches.size == codes.count(outside)
    check_both(runtime, case)


def case_of_codes(dtype: DType, codes: list[int], tables: TablePool, top: Coder) -> Case:
    """Words of such codes, all in one segment whose window starts at 20."""
    n, shift = len(codes), np.uint64(8 * dtype.word_nbytes - 8)
    geometry, mapped = Geometry(1, n, 1, n, 1, n), (np.array([codes], np.uint64) + 20) << shift
    coder = [top, *[Coder.RAW] * (dtype.n_planes - 1)]
    plan = only(dtype, geometry, tables, Layout.PAIRS, base=20, coder=coder)
    return complete(plan, unmap_words(mapped.astype(dtype.word_type), dtype))


@pytest.mark.parametrize("dtype", WINDOWED, ids=lambda d: d.name)
def test_bad_patches(runtime: EmulatedRuntime, dtype: DType) -> None:
    """Each makes the status bad, and nothing outside of the segment changes."""
    rng, geometry = np.random.default_rng(dtype.id), Geometry(39, 40, 32, 34, 16, 17)
    case = windowed_case(rng, dtype, 0.05, geometry)
    n, count = int(case.plan.n_elements[0]), int(case.decoding.segments.n_patches[0])
    at = int(case.decoding.patch_offsets[0])
    good = case.payload[at : at + 4 * count].view("<u4").copy()
    others = np.ones(case.words.shape, bool)
    others[geometry.rectangle(0)] = False
    for where in (0, 1, count // 2, count - 2, count - 1):
        indices = [n, n + 1, 0xFFFFFF]
        if where:
            indices += [int(good[where - 1] & 0xFFFFFF), int(good[where - 1] & 0xFFFFFF) - 1, 0]
        if where + 1 < count:
            indices += [int(good[where + 1] & 0xFFFFFF), int(good[where + 1] & 0xFFFFFF) + 1]
        for index in indices:
            payload = case.payload.copy()
            payload[at + 4 * where : at + 4 * where + 4].view("<u4")[0] = index | 0xAB000000
            spoilt = Case(case.plan, case.words, payload, case.decoding)
            status = decoding.decode_segments(case.decoding, payload, case.words.copy())
            assert status[0] == Status.BAD_PATCH
            words, bits = Merging(spoilt).run(runtime, np.array([0]), 2)
            assert bits[0] == 2 | BAD_PATCH
            assert (bits[1:] == 2).all()
            assert (words.view(np.uint8).reshape(*words.shape, -1)[others] == CANARY).all()


def test_any_patches(runtime: EmulatedRuntime) -> None:
    """Random ones: the status is the reference's."""
    rng, geometry = np.random.default_rng(8), Geometry(50, 60, 24, 17, 24, 17)
    for _ in range(5):
        case = windowed_case(rng, BY_NAME["bfloat16"], 0.05, geometry)
        payload = case.payload.copy()
        for k in np.flatnonzero(rng.random(geometry.n_segments) < 0.7):
            at = int(case.decoding.patch_offsets[k])
            count = int(case.decoding.segments.n_patches[k])
            random = rng.integers(0, int(case.plan.n_elements[k]) + 3, count)
            payload[at : at + 4 * count] = np.sort(random).astype("<u4").view(np.uint8)
        expected = case.words.copy()
        status = decoding.decode_segments(case.decoding, payload, expected)
        words, bits = Merging(Case(case.plan, case.words, payload, case.decoding)).run(
            runtime, np.arange(geometry.n_segments)
        )
        assert ((bits == BAD_PATCH) == (status == Status.BAD_PATCH)).all()
        assert (bits & ~np.uint32(BAD_PATCH) == 0).all()
        for k in np.flatnonzero(status == Status.OK):
            np.testing.assert_array_equal(
                words[geometry.rectangle(k)], expected[geometry.rectangle(k)]
            )


# ---- sanitizers ----------------------------------------------------------------------------------
@pytest.mark.exhaustive
def test_sanitizers_find_nothing() -> None:
    check_sanitized(__file__)


def main() -> None:
    """The tests above in a process with sanitizers on."""
    runtime = EmulatedRuntime.sanitized()
    for dtype in [*DTYPES, F64_SPLIT]:
        test_merge(runtime, dtype, True)
        test_split(runtime, dtype, False)
    for dtype in WINDOWED:
        test_patches(runtime, dtype, 0.05)
        test_uncoded_pairs(runtime, dtype, 0.5)
    test_bad_patches(runtime, BY_NAME["bfloat16"])
    test_any_patches(runtime)
    print("OK")


if __name__ == "__main__":
    main()
