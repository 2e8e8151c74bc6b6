"""Segments to decode that are not what an encoder wrote: plans that an index may hold, over
payloads that nobody checked.

A segment record is taken apart, some of its columns and parts are spoilt, and then every part is
cut or extended to the size that the columns give it. So the plan stays one that the parser lets
through, whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from plans import (
    Case,
    complete,
    random_geometry,
    random_plan,
    random_scales,
    random_tables,
    random_words,
    two_symbols,
    with_maps,
)

from wcodec.reference import rans
from wcodec.reference.planes import DTYPES, DType, Layout
from wcodec.reference.prediction import MODES, PER_TILE
from wcodec.reference.records import MAX_WINDOW_BASE, check_geometry, check_plan
from wcodec.reference.segments import Coder, SegmentPlan, SegmentTable, padded
from wcodec.reference.tables import (
    MAX_PROB_BITS,
    MIN_PROB_BITS,
    N_CONTEXTS,
    ContextKind,
    ContextMap,
    TablePool,
)
from wcodec.reference.tiles import Geometry

Bytes = NDArray[np.uint8]
Rng = np.random.Generator
MIN_UNITS: Final = rans.HEAD_NBYTES // rans.UNIT
#: parts of a record: the planes stand between scales and patches
WORDS, TILE_MODES, SCALES, PLANES, PATCHES = 0, 1, 2, 3, -1
#: share of the segments that are left alone, to see that their neighbours do not write to them
INTACT: Final = 0.2
#: the only ones with patches
WINDOWED: Final = tuple(d for d in DTYPES if d.has_pairs and d.word_nbytes > 1)
#: making them for each plan would take most of the time
TABLES: Final = tuple(random_tables(np.random.default_rng(0), 40).tables)


# ---- plans ---------------------------------------------------------------------------------------
EXTREMES: Final = tuple(
    two_symbols(bits, 1, 255 * (bits % 2), 7) for bits in range(MIN_PROB_BITS, MAX_PROB_BITS + 1)
)


def draw_case(rng: Rng, small: bool = False, geometry: Geometry | None = None) -> Case:
    """A case of any kind: every other one is of segments that suit fused kernels,
    several groups each.

    `small` ones have some sixty segments of up to three groups, or those of a `geometry`,
    for decoders that are slow and like many at once.
    """
    dtype = (
        DTYPES[int(rng.integers(0, len(DTYPES)))]
        if rng.random() < 0.7
        else WINDOWED[int(rng.integers(0, len(WINDOWED)))]
    )
    tables = with_maps(
        rng,
        TablePool(
            [TABLES[i] for i in rng.choice(len(TABLES), int(rng.integers(1, 6)), replace=False)]
        ),
    )
    if small:
        geometry = small_geometry(rng) if geometry is None else geometry
        plan = random_plan(rng, geometry, dtype, tables)
        plan = fused_plan(rng, plan) if geometry.one_tile and rng.random() < 0.7 else plan
    elif rng.random() < 0.5:
        geometry = random_geometry(rng)
        plan = random_plan(rng, geometry, dtype, tables)
    else:
        geometry = fused_geometry(rng)
        plan = fused_plan(rng, random_plan(rng, geometry, dtype, tables))
    check_geometry(geometry)
    case = complete(plan, random_words(rng, geometry, dtype))
    return replace(case, decoding=replace(case.decoding, tables=with_extremes(rng, tables)))


def with_extremes(rng: Rng, tables: TablePool) -> TablePool:
    """The pool, and after its tables and maps some that a corrupt index can name too:
    of symbols that take a word each.
    """
    maps = list(tables.maps)
    for kind in ContextKind:
        bits = int(rng.integers(0, len(EXTREMES)))
        alike = [i for i, t in enumerate(tables.tables) if t.prob_bits == EXTREMES[bits].prob_bits]
        numbers = (len(tables) + bits, *alike)
        maps.append(
            ContextMap(
                kind,
                rng.integers(0, len(numbers), N_CONTEXTS[kind]).astype(np.uint8).tobytes(),
                numbers,
            )
        )
    return TablePool([*tables.tables, *EXTREMES], maps)


def small_geometry(rng: Rng) -> Geometry:
    """About sixty segments of a few hundred words, of one tile or of four, ragged at the edges."""
    height = int(rng.integers(1, 25))
    width = int(rng.choice([8, 12, 16, 24, 32, rng.integers(1, 40)]))
    tiled = rng.random() < 0.3
    tile_rows, tile_cols = (16, 16) if tiled else (height, width)
    s_rows, s_cols = (32, 32) if tiled else (height, width)
    return Geometry(
        8 * s_rows - int(rng.integers(0, s_rows)),
        8 * s_cols - int(rng.integers(0, s_cols)),
        s_rows,
        s_cols,
        tile_rows,
        tile_cols,
    )


def fused_geometry(rng: Rng) -> Geometry:
    """Segments of one tile each, several groups of 128 or 256 words wide or long; widths are a
    multiple of a group, or not.
    """
    width = int(rng.choice([128, 256, 384, 512, 768])) + (
        int(rng.integers(-127, 128)) if rng.random() < 0.5 else 0
    )
    if rng.random() < 0.15:
        width = int(rng.integers(1, 128))
    # the last one has indices of more than 16 bits
    most = int(rng.choice([2500, 20_000, 80_000], p=[0.88, 0.1, 0.02]))
    height = int(rng.integers(1, max(2, most // width)))
    rows, cols = (side * int(rng.integers(1, 4)) for side in (height, width))
    rows, cols = (
        side - int(rng.integers(0, one)) if rng.random() < 0.3 else side
        for side, one in ((rows, height), (cols, width))
    )
    return Geometry(rows, cols, height, width, height, width)


def fused_plan(rng: Rng, plan: SegmentPlan) -> SegmentPlan:
    """The plan, but its top planes are streams, nothing is predicted,
    and most other planes are raw.
    """
    s, n = plan.segments, plan.geometry.n_segments
    there = s.layout != Layout.RAW
    s.prediction[...] = 0
    s.coder[0] = np.where(there, Coder.RANS, 0)
    s.table[0] = np.where(there, rng.integers(0, len(plan.tables), n), 0)
    raw = rng.random(s.coder[1:].shape) < 0.7
    s.coder[1:][raw] = s.table[1:][raw] = 0
    plan = replace(plan, modes=np.empty(0, np.uint8))  # a new one: the old one keeps its sizes
    return replace(plan, scales=random_scales(rng, plan))


# ---- records -------------------------------------------------------------------------------------
def part_sizes(plan: SegmentPlan) -> NDArray[np.int64]:
    """Bytes of each part of each record, shape (4 + n_planes, n):
    words, modes, scales, planes, patches.
    """
    patches = padded(plan.segments.n_patches.astype(np.int64) * 4)
    return np.vstack(
        [
            plan.words_nbytes,
            padded(plan.modes_nbytes),
            padded(plan.scale_nbytes),
            plan.stream_nbytes,
            patches,
        ]
    )


def cut(plan: SegmentPlan, payload: Bytes) -> list[list[Bytes]]:
    """The parts of each record, to be written to."""
    flat = np.split(payload.copy(), np.cumsum(part_sizes(plan).T.reshape(-1))[:-1])
    n_parts = 4 + plan.dtype.n_planes
    return [flat[k * n_parts : (k + 1) * n_parts] for k in range(plan.geometry.n_segments)]


def fitted(rng: Rng, part: Bytes, nbytes: int) -> Bytes:
    """A part cut to a size, or extended with zeros, ones or noise."""
    if part.size >= nbytes:
        return part[:nbytes]
    return np.concatenate([part, _filling(rng, nbytes - part.size)])


def _filling(rng: Rng, n: int) -> Bytes:
    kind = int(rng.integers(0, 3))
    return (
        rng.integers(0, 256, n, np.uint8) if kind == 0 else np.full(n, 255 * (kind - 1), np.uint8)
    )


# ---- corruptions: of segment `k`, in place; each says whether it had anything to do --------------
@dataclass
class Wreck:
    """Segments while they are being spoilt."""

    dtype: DType
    geometry: Geometry
    tables: TablePool
    s: SegmentTable
    other: SegmentTable  # columns of another plan of the same shape
    parts: list[list[Bytes]]
    most_units: NDArray[np.int64]  # of each plane, as a stream

    def streams(self, k: int) -> list[int]:
        """Planes that are rANS streams."""
        return [
            int(p) for p in np.flatnonzero(np.isin(self.s.coder[:, k], (Coder.RANS, Coder.CONTEXT)))
        ]

    def some_map(self, rng: Rng, p: int) -> int:
        """A context map that plane `p` may have."""
        return int(
            rng.choice(
                [i for i, m in enumerate(self.tables.maps) if p > 0 or m.kind != ContextKind.PLANE]
            )
        )

    def windowed(self, k: int) -> bool:
        """Whether a segment has a window, and so may have patches."""
        return bool(self.s.layout[k] == Layout.PAIRS) and self.dtype.word_nbytes > 1

    def some_part(self, rng: Rng, k: int) -> Bytes:
        """A part that is not empty, if there is one."""
        there = [part for part in self.parts[k] if part.size]
        return there[int(rng.integers(0, len(there)))] if there else np.empty(0, np.uint8)


def flip_bits(rng: Rng, w: Wreck, k: int) -> bool:
    """A few bits of a part, by preference at its ends:
    start states, first and last words, padding.
    """
    part = w.some_part(rng, k)
    for _ in range(int(rng.integers(1, 6)) if part.size else 0):
        kind = rng.random()
        at = int(rng.integers(0, min(132, part.size)) if kind < 0.4 else rng.integers(0, part.size))
        part[part.size - 1 - at % 16 if kind > 0.8 else at] ^= 1 << int(rng.integers(0, 8))
    return part.size > 0


def overwrite(rng: Rng, w: Wreck, k: int) -> bool:
    """A range of a part, or all of it, becomes noise, zeros or ones."""
    part = w.some_part(rng, k)
    a, b = (
        (0, part.size) if rng.random() < 0.5 else sorted(rng.integers(0, part.size + 1, 2).tolist())
    )
    part[a:b] = _filling(rng, b - a)
    return bool(b > a)


def swap_streams(rng: Rng, w: Wreck, k: int) -> bool:
    """A stream of another segment or plane, and its size; that plane may get this one's."""
    other = int(rng.integers(0, len(w.parts)))
    if not (w.streams(k) and w.streams(other)):
        return False
    here, there = (int(rng.choice(w.streams(i))) for i in (k, other))
    mine = w.parts[k][PLANES + here]
    w.parts[k][PLANES + here] = w.parts[other][PLANES + there].copy()
    w.s.n_units[here, k] = min(w.s.n_units[there, other], w.most_units[here, k])
    if rng.random() < 0.5:  # within one segment
        there = int(rng.choice(w.streams(k)))
        w.parts[k][PLANES + there] = mine
        w.s.n_units[there, k] = min(max(mine.size // rans.UNIT, MIN_UNITS), w.most_units[there, k])
    return (other, there) != (k, here)


def resize_stream(rng: Rng, w: Wreck, k: int) -> bool:
    """Streams are cut or extended: by a unit, to the least, to the most, or to any size."""
    before = w.s.n_units[:, k].copy()
    for p in w.streams(k):
        most, now = int(w.most_units[p, k]), int(w.s.n_units[p, k])
        units = (now - 1, now + 1, MIN_UNITS, most, int(rng.integers(MIN_UNITS, most + 1)))[
            int(rng.integers(0, 5))
        ]
        w.s.n_units[p, k] = min(max(units, MIN_UNITS), most)
    return bool((w.s.n_units[:, k] != before).any())


def starve(rng: Rng, w: Wreck, k: int) -> bool:
    """Streams of zeros, which take a word at each step and so reach the furthest beyond their ends;
    long, so that no other is longer.
    """
    for p in w.streams(k):
        w.s.n_units[p, k] = max(MIN_UNITS, int(w.most_units[p, k]) - int(rng.integers(0, 40)))
        w.parts[k][PLANES + p] = np.zeros(int(w.s.n_units[p, k]) * rans.UNIT, np.uint8)
    return bool(w.streams(k))


def change_table(rng: Rng, w: Wreck, k: int) -> bool:
    """Other tables, context maps or constants."""
    before = w.s.table[:, k].copy()
    for p in np.flatnonzero(w.s.coder[:, k] != Coder.RAW).tolist():
        if rng.random() < 0.7:
            coder = w.s.coder[p, k]
            most = len(w.tables) if coder == Coder.RANS else 256
            w.s.table[p, k] = (
                w.some_map(rng, p) if coder == Coder.CONTEXT else rng.integers(0, most)
            )
    return bool((w.s.table[:, k] != before).any())


def change_coder(rng: Rng, w: Wreck, k: int) -> bool:
    """Streams of one table become streams of many, and these such of one."""
    for p in w.streams(k):
        if w.s.coder[p, k] == Coder.RANS:
            w.s.coder[p, k], w.s.table[p, k] = Coder.CONTEXT, w.some_map(rng, p)
        elif rng.random() < 0.5:
            w.s.coder[p, k], w.s.table[p, k] = Coder.RANS, rng.integers(0, len(w.tables))
    return bool(w.streams(k))


def change_prediction(rng: Rng, w: Wreck, k: int) -> bool:
    """Other modes; new tile modes are those of the old ones that there are, and then any."""
    before = w.s.prediction[:, k].copy()
    if w.s.layout[k] != Layout.PAIRS:
        for p in w.streams(k):
            w.s.prediction[p, k] = rng.choice(
                [0, 1, 2, 3, 4, rng.choice(MODES), PER_TILE, PER_TILE]
            )
    return bool((w.s.prediction[:, k] != before).any())


def change_modes(rng: Rng, w: Wreck, k: int) -> bool:
    """Tile modes that are all legal, or in which one may not be."""
    modes = w.parts[k][TILE_MODES]
    modes[:] = rng.choice(MODES, modes.size)
    if modes.size and rng.random() < 0.7:
        modes[int(rng.integers(0, modes.size))] = rng.integers(0, 256)
    return modes.size > 0


def change_scales(rng: Rng, w: Wreck, k: int) -> bool:
    """Other classes of rows and columns."""
    scales = w.parts[k][SCALES]
    scales[:] = rng.integers(0, 256, scales.size)
    return scales.size > 0


def change_window(rng: Rng, w: Wreck, k: int) -> bool:
    """Another base."""
    if w.windowed(k):
        w.s.base[k] = rng.integers(0, MAX_WINDOW_BASE + 1)
    return w.windowed(k)


def change_patches(rng: Rng, w: Wreck, k: int) -> bool:
    """Another number of patches; indices are right, nearly right, or noise."""
    if not w.windowed(k):
        return False
    height, width = (int(v[k]) for v in w.geometry.sizes())
    n_elements = height * width
    n = min(n_elements, (0, 1, int(rng.integers(0, 20)), n_elements)[int(rng.integers(0, 4))])
    index = np.sort(rng.choice(n_elements, n, replace=False))
    if n and rng.random() < 0.5:
        at = int(rng.integers(0, n))
        index[at] = (n_elements, 0xFFFFFF, n_elements - 1, 0, index[at - 1], index[at] + 1)[
            int(rng.integers(0, 6))
        ]
    patches = index.astype("<u4") | rng.integers(0, 256, n, np.uint32) << np.uint32(24)
    if rng.random() < 0.15:
        patches = rng.integers(0, 1 << 32, n, np.uint32)
    w.s.n_patches[k], w.parts[k][PATCHES] = n, patches.view(np.uint8)
    return True


def redraw(rng: Rng, w: Wreck, k: int) -> bool:
    """All columns anew: layout, coders, tables, and any sizes.
    Parts stay what they are, as far as they reach.
    """
    for f in fields(SegmentTable):
        getattr(w.s, f.name)[..., k] = getattr(w.other, f.name)[..., k]
    sizes = SegmentPlan(w.dtype, w.geometry, w.s, TablePool()).plane_nbytes[:, k]
    w.most_units[:, k] = rans.max_stream_nbytes(sizes) // rans.UNIT
    for p in w.streams(k):
        w.s.n_units[p, k] = rng.integers(MIN_UNITS, int(w.most_units[p, k]) + 1)
    change_patches(rng, w, k)
    return True


KINDS: Final[tuple[Callable[[Rng, Wreck, int], bool], ...]] = (
    flip_bits, overwrite, swap_streams, resize_stream, starve, change_table, change_coder,
    change_prediction, change_modes, change_modes, change_scales, change_window, change_patches,
    change_patches, redraw,
)  # fmt: skip


def corrupted(rng: Rng, case: Case) -> tuple[SegmentPlan, Bytes, NDArray[np.bool_]]:
    """A plan and a payload out of those of a case,
    and which of the segments were not left alone.
    """
    good = case.decoding
    n = good.geometry.n_segments
    s = SegmentTable(*(getattr(good.segments, f.name).copy() for f in fields(SegmentTable)))
    other = random_plan(rng, good.geometry, good.dtype, good.tables).segments
    most = rans.max_stream_nbytes(good.plane_nbytes) // rans.UNIT
    w = Wreck(good.dtype, good.geometry, good.tables, s, other, cut(good, case.payload), most)
    touched = np.zeros(n, bool)
    for k in np.flatnonzero(rng.random(n) >= INTACT).tolist():
        left = int(rng.choice([1, 1, 1, 2, 3]))
        while left > 0:
            left -= KINDS[int(rng.integers(0, len(KINDS)))](rng, w, k)
        touched[k] = True
    plan = SegmentPlan(good.dtype, good.geometry, s, good.tables)
    check_plan(plan)
    sizes = part_sizes(plan)
    parts = [
        fitted(rng, part, int(sizes[i, k])) for k in range(n) for i, part in enumerate(w.parts[k])
    ]
    return plan, np.concatenate(parts) if parts else np.empty(0, np.uint8), touched
