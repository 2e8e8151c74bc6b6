"""Pairs of codes that a table does not code: the numba backend writes what the reference does."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from wcodec.backends import load_backend
from wcodec.codec.encoder import words_of
from wcodec.reference import encoding
from wcodec.reference.planes import DType, Layout, Words
from wcodec.reference.segments import Coder, SegmentPlan, SegmentTable
from wcodec.reference.tables import Table, TablePool
from wcodec.reference.tiles import Geometry

DTYPES = [ml_dtypes.bfloat16, np.float32, np.float64]


def table_of(rng: np.random.Generator, n: int, fill: int) -> Table:
    """A table that codes `n` pairs or so, that of `fill` among them."""
    freq = np.zeros(256, np.int64)
    freq[rng.permutation(256)[:n]] = 1
    both = fill | fill << 4
    freq[[both, both ^ 1]] = 1
    freq[both] += 4096 - freq.sum()
    return Table(freq, 12)


def any_plan(rng: np.random.Generator, dtype: Any) -> tuple[SegmentPlan, Words]:
    """Segments in PAIRS of any shape, of which the table codes few pairs or all."""
    rows, cols = int(rng.integers(1, 70)), int(rng.integers(1, 700))
    array = (rng.standard_normal((rows, cols)) * 0.02).astype(dtype)
    if rng.random() < 0.5:
        array.reshape(-1)[rng.integers(0, array.size, array.size // 50)] = 1e30
    of, words = words_of(array)
    height, width = int(rng.integers(1, rows + 1)), int(rng.integers(1, cols + 1))
    tall = int(rng.integers(1, 3))  # segments of one tile or two
    geometry = Geometry(rows, cols, tall * height, width, height, width)
    fill = int(rng.integers(16))
    return plan_of(
        rng, of, geometry, table_of(rng, int(rng.choice([2, 30, 200, 256])), fill), fill
    ), (words.reshape(rows, cols))


def plan_of(
    rng: np.random.Generator, dtype: DType, geometry: Geometry, table: Table, fill: int
) -> SegmentPlan:
    """Segments in PAIRS under one table, each with a window of its own."""
    n = geometry.n_segments
    segments = SegmentTable.zeros(n, dtype.n_planes)
    segments.layout[:], segments.coder[0] = Layout.PAIRS, Coder.RANS
    segments.base[:] = rng.integers(105, 115, n)
    pool = TablePool()
    pool.tables.append(table)
    return SegmentPlan(dtype, geometry, segments, pool, np.full(n, fill, np.uint8))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_backends_write_the_same(dtype: Any, seed: int) -> None:
    rng, backend = np.random.default_rng(seed), load_backend("numba", 1)
    for _ in range(6):
        plan, words = any_plan(rng, dtype)
        payload, n_units, n_patches = encoding.encode_segments(plan, words)
        encoded = backend.encode_segments(plan, words)
        assert np.array_equal(encoded.n_patches, n_patches)
        assert np.array_equal(encoded.n_units, n_units)
        assert np.array_equal(encoded.payload, payload)
        out = np.empty_like(words)
        assert not backend.decode_segments(plan.encoded(n_units, n_patches), payload, out).any()
        assert np.array_equal(out, words)


@pytest.mark.parametrize("coder", [Coder.RAW, Coder.CONSTANT])
def test_planes_that_have_no_table_keep_their_pairs(coder: Coder) -> None:
    rng, backend = np.random.default_rng(3), load_backend("numba", 1)
    array = np.full((8, 128), 0.02, ml_dtypes.bfloat16)
    if coder == Coder.RAW:
        array[:] = (rng.standard_normal(array.shape) * 0.02).astype(array.dtype)
    of, words = words_of(array)
    plan = plan_of(rng, of, Geometry(8, 128, 8, 128, 8, 128), table_of(rng, 2, 3), 3)
    plan.segments.coder[0], plan.segments.base[:] = coder, 110
    plan.segments.table[0] = 0 if coder == Coder.RAW else 0x99
    words = words.reshape(8, 128)
    payload, _, n_patches = encoding.encode_segments(plan, words)
    encoded = backend.encode_segments(plan, words)
    assert np.array_equal(encoded.payload, payload)
    assert np.array_equal(encoded.n_patches, n_patches)
