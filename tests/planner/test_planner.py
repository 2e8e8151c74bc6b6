"""The planner: options that are refused, geometry of known shapes,
and the same choices every time.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from inputs import BY_NAME, make_array

from wcodec.backends.reference import ReferenceBackend
from wcodec.codec.encoder import words_of
from wcodec.errors import EncodeError
from wcodec.planner.geometry import choose_geometry
from wcodec.planner.options import EncodeOptions
from wcodec.planner.planner import Planner, ideal_cost
from wcodec.reference.planes import Layout
from wcodec.reference.prediction import PER_TILE
from wcodec.reference.segments import Coder, SegmentPlan, SegmentTable
from wcodec.reference.tiles import CHUNK_NBYTES, chunks


@pytest.mark.parametrize(
    "wrong",
    [
        {"predictor": "paeth"},
        {"layout": "planes"},
        {"prob_bits": 8},
        {"prob_bits": 13},
        {"min_saving": 1.01},
        {"min_saving": -0.01},
        {"min_saving": 0.5, "force": True},
        {"min_saving": math.nan},
        {"segment": (0, 5)},
        {"segment": (1 << 13, 1 << 12)},
        {"tile": (8, 16)},
        {"tile": (1 << 13, 1 << 12)},
        {"preset": "best"},
        {"transform": "dst"},
        {"coder": "huffman"},
        {"layout": "pairs", "predictor": "top"},
        {"layout": "raw", "transform": "dct"},
        {"layout": "pairs", "coder": "context"},
        {"coder": "raw", "predictor": "left"},
        {"coder": "raw", "transform": "adst"},
        {"segment": (32, 32), "tile": (16, 0)},
        {"segment": (32, 32), "tile": (16, 24)},
        {"segment": (32, 32), "tile": (8, 32)},
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(EncodeError, match="bad_option"):
        EncodeOptions(**wrong)


@pytest.mark.parametrize(
    ("shape", "dtype", "row_rank", "matrix", "segment"),
    [
        ((), "float32", 0, (1, 1), (1, 1)),
        ((100_000,), "bfloat16", 0, (1, 100_000), (1, 32_768)),
        ((100_000,), "float32", 0, (1, 100_000), (1, 16_384)),
        # up to 319 segments of the least size, then 160 and more up to four times as large
        ((2048, 4096), "bfloat16", 1, (2048, 4096), (128, 256)),
        ((2559, 4096), "bfloat16", 1, (2559, 4096), (128, 256)),
        ((2560, 4096), "bfloat16", 1, (2560, 4096), (128, 512)),
        ((4096, 4096), "bfloat16", 1, (4096, 4096), (128, 512)),
        ((14_336, 4096), "bfloat16", 1, (14_336, 4096), (128, 1024)),
        ((4096, 4096), "float32", 1, (4096, 4096), (128, 512)),
        ((4096, 11_008), "int8", 1, (4096, 11_008), (128, 1024)),  # bands of whole groups
        ((4096, 11_072), "int8", 1, (4096, 11_072), (114, 1152)),  # and of whole 64 columns
        ((1 << 26,), "bfloat16", 0, (1, 1 << 26), (1, 1 << 17)),
        # one band; six segments of equal height
        ((512, 384), "bfloat16", 1, (512, 384), (86, 384)),
        ((32, 3, 3, 3), "bfloat16", 0, (1, 864), (1, 864)),  # no split leaves rows of 64
        ((256, 64, 3, 3), "bfloat16", 1, (256, 576), (128, 320)),  # bands of whole 64 columns
        ((8, 100, 64), "bfloat16", 2, (800, 64), (400, 64)),
        ((100, 64), "complex64", 1, (100, 128), (100, 128)),
        ((0, 5), "int8", 0, (1, 0), (1, 1)),
        ((5, 0), "int8", 0, (1, 0), (1, 1)),
    ],
)
def test_geometry_of_known_shapes(
    shape: tuple[int, ...],
    dtype: str,
    row_rank: int,
    matrix: tuple[int, int],
    segment: tuple[int, int],
) -> None:
    got, g = choose_geometry(shape, BY_NAME[dtype], EncodeOptions())
    assert (got, g.rows, g.cols) == (row_rank, *matrix)
    assert (g.segment_rows, g.segment_cols) == segment
    assert g.one_tile


@pytest.mark.parametrize(
    "shape",
    [
        (2, 100_000),
        (3, 400_000),
        (8, 125_000),
        (64, 64, 3, 3),
        (100_000, 7),
        (5000, 63),
        (40, 40, 40),
        (70_000,),
    ],
)
@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float32", "complex128"])
def test_segments_are_large_wherever_the_matrix_is(shape: tuple[int, ...], dtype: str) -> None:
    """A segment costs some 20 bytes, and a stream 107:
    thousands of small ones would make files grow.
    """
    _, g = choose_geometry(shape, BY_NAME[dtype], EncodeOptions())
    assert g.n_segments <= 1 + g.rows * g.cols / 8192


@pytest.mark.parametrize(
    ("shape", "dtype", "segment"),
    [
        ((512, 384), "bfloat16", (512, 384)),
        ((30_522, 384), "int8", (1388, 384)),
        ((4096, 4096), "bfloat16", (256, 1024)),
        ((4096, 4096), "float32", (256, 1024)),
        ((4096, 11_008), "int8", (512, 1024)),
        ((1 << 22,), "bfloat16", (1, 1 << 18)),
    ],
)
def test_segments_of_max_are_large(
    shape: tuple[int, ...], dtype: str, segment: tuple[int, int]
) -> None:
    _, g = choose_geometry(shape, BY_NAME[dtype], EncodeOptions(preset="max"))
    assert (g.segment_rows, g.segment_cols) == segment


@pytest.mark.parametrize(
    "shape", [(4096, 4096), (300, 200), (70_000,), (3, 5000), (1 << 20, 64), (5, 7), (), (0, 3)]
)
@pytest.mark.parametrize("tile", [(16, 16), (64, 48), (16, 1 << 20), (1 << 12, 1 << 12)])
@pytest.mark.parametrize("preset", ["fast", "default", "max"])
def test_a_tile_size_alone_makes_segments_of_whole_tiles(
    shape: tuple[int, ...], tile: tuple[int, int], preset: str
) -> None:
    _, g = choose_geometry(shape, BY_NAME["int8"], EncodeOptions(tile=tile, preset=preset))
    assert (g.tile_rows, g.tile_cols) == tile
    assert (g.segment_rows % tile[0], g.segment_cols % tile[1]) == (0, 0)
    assert 0 < g.segment_rows * g.segment_cols <= 1 << 24


def test_too_many_dimensions_are_refused() -> None:
    choose_geometry((1,) * 32, BY_NAME["int8"], EncodeOptions())
    with pytest.raises(EncodeError, match="resource_limit"):
        choose_geometry((1,) * 33, BY_NAME["int8"], EncodeOptions())


@pytest.mark.parametrize(
    "shape", [(4096, 4096), (1, 1 << 26), (3, 1 << 25), (1 << 22, 3), (300_000, 64), (5, 7), (0, 3)]
)
@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float64"])
def test_chunks_cover_all_segments_once_and_stay_small(shape: tuple[int, ...], dtype: str) -> None:
    _, g = choose_geometry(shape, BY_NAME[dtype], EncodeOptions())
    seen = []
    for down, across in chunks(g, BY_NAME[dtype].word_nbytes):
        part, ids = g.select(down, across)
        assert part.rows * part.cols * BY_NAME[dtype].word_nbytes <= CHUNK_NBYTES
        seen += ids.tolist()
    assert seen == list(range(g.n_segments))


def test_ideal_cost_is_order_0_entropy() -> None:
    assert ideal_cost(np.full(256, 10)) == 2560 * 8 << 16
    assert ideal_cost(np.array([7] + [0] * 255)) == 0
    assert ideal_cost(np.zeros(256, np.int64)) == 0
    # of sums above 2^16 too, where counts are rounded
    counts = np.random.default_rng(3).integers(0, 1 << 22, 256)
    p = counts[counts > 0] / counts.sum()
    exact = -(counts[counts > 0] * np.log2(p)).sum()
    assert int(ideal_cost(counts)) / 65536 == pytest.approx(exact, rel=1e-3)


def plan_of(array: np.ndarray, options: EncodeOptions | None = None) -> SegmentPlan:
    options = options or EncodeOptions()
    dtype, words = words_of(array)
    _, g = choose_geometry(array.shape, dtype, options)
    return Planner(options).plan(words.reshape(g.rows, g.cols), g, dtype, ReferenceBackend())


def same(a: SegmentPlan, b: SegmentPlan) -> bool:
    return (
        all(
            np.array_equal(getattr(a.segments, f.name), getattr(b.segments, f.name))
            for f in fields(SegmentTable)
        )
        and [t.serialised for t in a.tables.tables] == [t.serialised for t in b.tables.tables]
        and (a.modes is None) == (b.modes is None)
        and (a.modes is None or np.array_equal(a.modes, b.modes))
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "float16", "float32", "float8_e4m3fn"])
@pytest.mark.parametrize("kind", ["gaussian", "uniform", "ramp", "outliers"])
def test_the_same_input_gets_the_same_plan(dtype: str, kind: str) -> None:
    array = make_array(BY_NAME[dtype], (300, 200), kind)
    assert same(plan_of(array), plan_of(array.copy()))


def test_what_is_chosen_for_what() -> None:
    gaussian = plan_of(make_array(BY_NAME["bfloat16"], (256, 256), "gaussian"))
    assert set(gaussian.segments.layout.tolist()) == {Layout.PAIRS}
    assert set(gaussian.segments.coder[0].tolist()) == {Coder.RANS}
    assert set(gaussian.segments.coder[1].tolist()) == {Coder.RAW}
    noise = plan_of(make_array(BY_NAME["uint8"], (256, 256), "uniform"))
    assert set(noise.segments.layout.tolist()) == {Layout.RAW}
    assert len(noise.tables) == 0
    zeros = plan_of(np.zeros((256, 256), np.float32))
    assert set(zeros.segments.coder.reshape(-1).tolist()) == {Coder.CONSTANT}
    # a plane in the plain sense
    steps = plan_of((np.arange(256)[:, None] * 3 + np.arange(256)).astype(np.uint8))
    assert (steps.segments.prediction[0] > 0).all()


def test_tiles_get_modes_of_their_own_where_they_differ() -> None:
    rng = np.random.default_rng(4)
    array = rng.integers(0, 200, (256, 256)).astype(np.uint8)
    array[:, 128:] = np.cumsum(rng.integers(0, 3, (256, 128)), axis=1) + rng.integers(
        0, 9, (256, 1)
    )
    plan = plan_of(array, EncodeOptions(segment=(256, 256), tile=(64, 64)))
    assert plan.segments.prediction[0].tolist() == [PER_TILE]
    assert plan.modes is not None
    modes = plan.modes.reshape(4, 4)
    assert (modes[:, :2] == 0).all()
    assert (modes[:, 2:] != 0).all()


@pytest.mark.parametrize("mode", [1, 2, 3, 4])
def test_a_predictor_that_is_asked_for_is_used(mode: int) -> None:
    name = ["none", "left", "top", "avg", "planar"][mode]
    plan = plan_of(
        make_array(BY_NAME["uint8"], (64, 64), "gaussian"),
        EncodeOptions(predictor=name, layout="bytes", force=True),
    )
    assert plan.segments.prediction[0].tolist() == [mode]


def test_tables_that_nobody_uses_are_not_kept() -> None:
    plan = plan_of(make_array(BY_NAME["bfloat16"], (256, 256), "gaussian"))
    used = {int(t) for t in plan.segments.table[plan.segments.coder == Coder.RANS]}
    assert used == set(range(len(plan.tables)))
