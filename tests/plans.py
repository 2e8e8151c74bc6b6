"""Random legal plans, made by hand, and what the reference makes of them.

The planner never writes most of what the format allows; a decoder meets it all the same. So plans
are drawn here column by column, and only checked against the rules that a file's index is checked
against.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from wcodec.backends.protocol import SegmentPlan
from wcodec.planner.costs import quantise
from wcodec.reference import contexts, decoding, encoding
from wcodec.reference.planes import BY_NAME, DType, Layout, WordMap, unmap_words
from wcodec.reference.prediction import MODES, PER_TILE
from wcodec.reference.records import check_geometry, check_plan
from wcodec.reference.segments import Coder, SegmentTable
from wcodec.reference.tables import (
    MAX_CLASSES,
    MAX_PROB_BITS,
    MIN_PROB_BITS,
    N_CONTEXTS,
    ContextKind,
    ContextMap,
    Table,
    TablePool,
)
from wcodec.reference.tiles import Geometry


@dataclass
class Case:
    """A plan, its words, and what the reference makes of them."""

    plan: SegmentPlan
    words: np.ndarray[Any, Any]
    payload: np.ndarray[Any, Any]
    decoding: SegmentPlan  # the plan as a decoder reads it

    @cached_property
    def expected(self) -> np.ndarray[Any, Any]:
        """The words that the reference decodes; made-up constants are not those that were
        encoded.
        """
        out = np.empty_like(self.words)
        assert not decoding.decode_segments(self.decoding, self.payload, out).any()
        return out


def aligned(data: Any) -> np.ndarray[Any, Any]:
    """A read-only copy of bytes that starts at a multiple of 16, as a payload does."""
    room = np.empty(data.size + 15, np.uint8)
    start = -room.ctypes.data % 16
    out = room[start : start + data.size]
    out[:] = data
    out.flags.writeable = False
    return out


def random_geometry(rng: np.random.Generator, most: int = 60) -> Geometry:
    """Any legal geometry: tiles that cut segments or do not, ragged edges,
    single rows and columns.
    """
    sides = []
    for _ in range(2):
        tile = int(rng.choice([16, 17, 24, rng.integers(1, most)]))
        segment = tile * int(rng.integers(1, 4)) if tile >= 16 else tile
        n_whole = int(rng.integers(0, 3))
        sides.append((max(1, segment * n_whole + int(rng.integers(0, segment))), segment, tile))
    (rows, s_rows, t_rows), (cols, s_cols, t_cols) = sides
    return Geometry(rows, cols, s_rows, s_cols, t_rows, t_cols)


def random_words(
    rng: np.random.Generator, geometry: Geometry, dtype: DType
) -> np.ndarray[Any, Any]:
    """Words of any kind: noise, few values, smooth,
    or floats around one exponent with some far off.
    """
    shape = (geometry.rows, geometry.cols)
    bits = 8 * dtype.word_nbytes
    kind = int(rng.integers(0, 4))
    words = (
        rng.integers(0, 1 << bits, shape, np.uint64, endpoint=False)
        if bits < 64
        else rng.integers(0, 1 << 64, shape, np.uint64)
    )
    if kind == 1:
        words = rng.choice(words.reshape(-1)[:5], shape)
    elif kind == 2:
        words = np.cumsum(rng.integers(0, 3, shape, np.uint64), axis=1) << np.uint64(bits - 8)
    elif kind == 3 and dtype.word_map is WordMap.EXPONENT_FIRST:
        m = bits - 1 - dtype.exponent_bits
        exponent = np.clip(
            rng.normal(0.45 * 2**dtype.exponent_bits, 3, shape), 0, 2**dtype.exponent_bits - 1
        ).astype(np.uint64)
        keep = ~np.uint64(((1 << dtype.exponent_bits) - 1) << m)
        words = np.where(rng.random(shape) < 0.99, words & keep | exponent << np.uint64(m), words)
    return np.ascontiguousarray(words.astype(dtype.word_type))


def random_tables(rng: np.random.Generator, n: int = 5) -> TablePool:
    """Tables of all precisions that hold all symbols, more or less skewed."""
    counts = [(1 + 1e5 * rng.random(256) ** rng.integers(1, 40)).astype(np.int64) for _ in range(n)]
    return TablePool(
        quantise(c, int(rng.integers(MIN_PROB_BITS, MAX_PROB_BITS + 1))) for c in counts
    )


def with_maps(rng: np.random.Generator, tables: TablePool) -> TablePool:
    """The same tables, and context maps of all kinds over those of equal precision."""
    maps = []
    for kind in [*ContextKind, ContextKind(int(rng.integers(1, 4)))]:
        bits = int(rng.choice([t.prob_bits for t in tables.tables]))
        alike = [i for i, t in enumerate(tables.tables) if t.prob_bits == bits]
        n_classes = int(rng.choice([1, 2, 3, MAX_CLASSES, rng.integers(1, MAX_CLASSES + 1)]))
        class_of = rng.integers(0, n_classes, N_CONTEXTS[kind]).astype(np.uint8)
        maps.append(
            ContextMap(kind, class_of.tobytes(), tuple(rng.choice(alike, n_classes).tolist()))
        )
    return TablePool(tables.tables, maps)


def two_symbols(prob_bits: int, rare: int, first: int = 3, second: int = 200) -> Table:
    """A table of two symbols, the first of the given frequency."""
    freq = np.zeros(256, np.int64)
    freq[first], freq[second] = rare, (1 << prob_bits) - rare
    return Table(freq, prob_bits)


def lacking(rng: np.random.Generator, share: float, fill: int) -> TablePool:
    """A table that lacks about such a share of all pairs of codes, but never that of two `fill`."""
    freq = (rng.random(256) >= share).astype(np.int64)
    filled = 17 * fill
    freq[[filled, filled - 1]] = 1  # two, for no table holds one symbol alone
    freq[filled] += (1 << MAX_PROB_BITS) - freq.sum()
    return TablePool([Table(freq, MAX_PROB_BITS)])


def random_plan(
    rng: np.random.Generator, geometry: Geometry, dtype: DType, tables: TablePool
) -> SegmentPlan:
    """Each column drawn from what the rules allow."""
    n, s = geometry.n_segments, SegmentTable.zeros(geometry.n_segments, dtype.n_planes)
    s.layout[:] = rng.choice(
        [Layout.RAW, Layout.BYTES, Layout.BYTES, Layout.PAIRS, Layout.PAIRS]
        if dtype.has_pairs
        else [0, 1, 1],
        n,
    )
    pairs = s.layout == Layout.PAIRS
    if dtype.word_nbytes > 1:
        s.base[:] = np.where(pairs, rng.choice([0, 108, 118, 240, rng.integers(0, 241)], n), 0)
    of_plane = np.array([m.kind == ContextKind.PLANE for m in tables.maps], bool)
    for p in range(dtype.n_planes):
        used = (s.layout != Layout.RAW) & (pairs | (p < dtype.word_nbytes))
        maps = np.flatnonzero(~of_plane if p == 0 else np.ones(of_plane.size, bool))
        coders = [Coder.RAW, Coder.CONSTANT, Coder.RANS, Coder.RANS, Coder.RANS] + [
            Coder.CONTEXT
        ] * (3 * bool(maps.size))
        s.coder[p] = np.where(used, rng.choice(coders, n), 0)
        if p > 0:  # a constant that is made up is no context
            s.coder[p, (s.coder[p] == Coder.CONTEXT) & (s.coder[0] == Coder.CONSTANT)] = Coder.RANS
        rans, constant, context = (
            s.coder[p] == c for c in (Coder.RANS, Coder.CONSTANT, Coder.CONTEXT)
        )
        s.table[p] = np.where(
            rans, rng.integers(0, len(tables), n), np.where(constant, rng.integers(0, 256, n), 0)
        )
        s.table[p, context] = rng.choice(maps, int(context.sum())) if maps.size else 0
        modes = rng.choice([0, 1, 2, 3, 4, rng.choice(MODES), PER_TILE, PER_TILE], n)
        s.prediction[p] = np.where((rans | context) & ~pairs, modes, 0)
    plan = SegmentPlan(dtype, geometry, s, tables, rng.integers(0, 16, n).astype(np.uint8))
    tile_modes = rng.choice(np.array(MODES, np.uint8), int(plan.modes_nbytes.sum()))
    tile_modes.flags.writeable = False
    return replace(plan, modes=tile_modes, scales=random_scales(rng, plan))


def random_scales(rng: np.random.Generator, plan: SegmentPlan) -> np.ndarray[Any, Any]:
    """Classes of rows and columns for all segments that have them."""
    heights, widths = plan.geometry.sizes()
    parts = [
        contexts.pack_scales(
            rng.integers(0, 4, h).astype(np.uint8), rng.integers(0, 4, w).astype(np.uint8)
        )
        for h, w, nbytes in zip(
            heights.tolist(), widths.tolist(), plan.scale_nbytes.tolist(), strict=True
        )
        if nbytes
    ]
    out = np.concatenate([np.empty(0, np.uint8), *parts])
    out.flags.writeable = False
    return out


def make_case(
    rng: np.random.Generator,
    dtype: DType,
    geometry: Geometry | None = None,
    plan: SegmentPlan | None = None,
) -> Case:
    """A random case of a dtype, or of a plan."""
    geometry = (
        (random_geometry(rng) if geometry is None else geometry) if plan is None else plan.geometry
    )
    check_geometry(geometry)
    plan = (
        random_plan(rng, geometry, dtype, with_maps(rng, random_tables(rng)))
        if plan is None
        else plan
    )
    words = random_words(rng, geometry, dtype)
    words.flags.writeable = False
    return complete(plan, words)


def complete(plan: SegmentPlan, words: np.ndarray[Any, Any]) -> Case:
    """Encode with the reference; the plan of the result must be one that a file may hold."""
    payload, n_units, n_patches = encoding.encode_segments(plan, words)
    decoding = plan.encoded(n_units, n_patches)
    check_plan(decoding)
    assert payload.size == decoding.offsets[-1]
    return Case(plan, words, aligned(payload), decoding)


def two_symbol_cases(
    n_rows: int, n_cols: int, prob_bits: int, rare: int, shares: Iterable[float]
) -> Iterator[Case]:
    """Cases of uint8 of two symbols, of frequencies at both ends of a table; `shares` say how many
    of the words are the rare one.
    """
    rng, dtype = np.random.default_rng(3), BY_NAME["uint8"]
    geometry = Geometry(n_rows, n_cols, n_rows, n_cols, n_rows, n_cols)
    tables = TablePool([two_symbols(prob_bits, rare)])
    plan = only(dtype, geometry, tables, Layout.BYTES, coder=[Coder.RANS, Coder.RAW])
    for share in shares:
        words = np.where(rng.random((n_rows, n_cols)) < share, 3, 200)
        yield complete(plan, words.astype(np.uint8))


def per_tile_case(rng: np.random.Generator, geometry: Geometry) -> Case:
    """A case of int16 whose tiles have each a mode of its own, drawn by chance."""
    plan = only(
        BY_NAME["int16"],
        geometry,
        random_tables(rng),
        Layout.BYTES,
        coder=[Coder.RANS, Coder.RANS],
        prediction=[PER_TILE, PER_TILE],
    )
    plan = replace(plan, modes=rng.choice(np.array(MODES, np.uint8), int(plan.modes_nbytes.sum())))
    return complete(plan, random_words(rng, geometry, BY_NAME["int16"]))


def windowed_case(
    rng: np.random.Generator,
    dtype: DType,
    share: float,
    geometry: Geometry | None = None,
    fill: int = 5,
    tables: TablePool | None = None,
) -> Case:
    """Words of which a share is outside of the window; all segments have the first table."""
    geometry = random_geometry(rng) if geometry is None else geometry
    base = int(rng.integers(0, 241))
    mapped = rng.integers(
        0, 1 << (8 * dtype.word_nbytes), (geometry.rows, geometry.cols), np.uint64
    )
    shift = np.uint64(8 * dtype.word_nbytes - 8)
    top = np.where(
        rng.random(mapped.shape) < share,
        rng.integers(0, 256, mapped.shape),
        base + rng.integers(0, 16, mapped.shape),
    )
    mapped = (mapped & ((np.uint64(1) << shift) - np.uint64(1))) | top.astype(np.uint64) << shift
    plan = only(
        dtype,
        geometry,
        random_tables(rng) if tables is None else tables,
        Layout.PAIRS,
        base=base,
        coder=[Coder.RANS, *[Coder.RAW] * (dtype.n_planes - 1)],
    )
    plan = replace(plan, fill=np.full(geometry.n_segments, fill, np.uint8))
    return complete(plan, unmap_words(mapped.astype(dtype.word_type), dtype))


def only(
    dtype: DType, geometry: Geometry, tables: TablePool, layout: Layout, **columns: Any
) -> SegmentPlan:
    """A plan with the same columns in all segments."""
    s = SegmentTable.zeros(geometry.n_segments, dtype.n_planes)
    s.layout[:] = layout
    for name, value in columns.items():
        getattr(s, name)[...] = np.reshape(value, (-1, 1)) if getattr(s, name).ndim == 2 else value
    return SegmentPlan(dtype, geometry, s, tables, np.full(geometry.n_segments, 5, np.uint8))
