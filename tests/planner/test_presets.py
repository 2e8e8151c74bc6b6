"""Presets and forced modes: what was asked for is used, what was not is chosen by what it costs."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from inputs import BY_NAME, bits, make_array, safetensors_bytes
from numpy.typing import NDArray
from sampling import crossed, exhaustive, sampled
from test_cli import call

import wcodec
from wcodec import EncodeOptions
from wcodec.backends import load_backend
from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder
from wcodec.codec.sources import BufferSource
from wcodec.codec.whole import Whole
from wcodec.planner import fast as plan_fast
from wcodec.planner.clusters import Clusters
from wcodec.planner.costs import ideal_cost, log2_of
from wcodec.planner.geometry import choose_geometry
from wcodec.planner.planner import Planner
from wcodec.planner.scales import Scales
from wcodec.reference.container import Index
from wcodec.reference.contexts import unpack_scales
from wcodec.reference.planes import Layout
from wcodec.reference.prediction import MODES, PER_TILE
from wcodec.reference.segments import Coder, SegmentPlan
from wcodec.reference.tables import ContextKind

REFERENCE = load_backend("reference")
Array = NDArray[Any]


def coded(array: Array, **options: Any) -> tuple[int, Index]:
    """Bytes of the file of an array, which comes back from it, and its index."""
    data = Encoder(EncodeOptions(**options), REFERENCE).encode(array)
    decoder = Decoder(REFERENCE)
    got = decoder.decode(data)
    assert got.dtype == array.dtype
    assert got.tobytes() == array.tobytes()
    return len(data), decoder.read_index(BufferSource(data))


def plan_of(array: Array, **options: Any) -> tuple[Planner, SegmentPlan]:
    dtype, words = wcodec.codec.encoder.words_of(array)
    _, g = choose_geometry(array.shape, dtype, EncodeOptions(**options))
    planner = Planner(EncodeOptions(**options))
    return planner, planner.plan(words.reshape(g.rows, g.cols), g, dtype, REFERENCE)


def scaled_weights(rows: int, cols: int, seed: int = 1) -> Array:
    """Weights whose rows and columns have scales of their own, as trained ones have."""
    rng = np.random.default_rng(seed)
    w = (
        rng.standard_normal((rows, cols))
        * np.exp(rng.standard_normal((rows, 1)) * 0.7)
        * np.exp(rng.standard_normal((1, cols)) * 0.7)
    )
    return (w * 0.02).astype(np.float32)


# ---- images --------------------------------------------------------------------------------------
def field(n: int, noise: float) -> Array:
    """A smooth random field, with noise."""
    rng = np.random.default_rng(5)
    k = np.hypot(np.fft.fftfreq(160)[:, None], np.fft.rfftfreq(160)[None, :])
    z = np.fft.irfft2(
        np.fft.rfft2(rng.standard_normal((n, n))) / (1 + (k * 60) ** 2) ** 1.2, (n, n)
    )
    return np.clip(128 + 40 * z / z.std() + noise * rng.standard_normal((n, n)), 0, 255).astype(
        np.uint8
    )


def waves(n: int, fast: int) -> Array:
    y, x = np.mgrid[0:n, 0:n] / n
    return (
        128 + 60 * np.sin(fast * x + 40 * y) + np.random.default_rng(6).standard_normal((n, n))
    ).astype(np.uint8)


def gradient(n: int) -> Array:
    y, x = np.mgrid[0:n, 0:n] / n
    return (30 + 150 * x + 60 * y + np.random.default_rng(7).standard_normal((n, n))).astype(
        np.uint8
    )


IMAGES = {
    "field": field(160, 0),
    "noisy field": field(160, 2),
    "waves": waves(160, 20),
    "fast waves": waves(160, 60),
    "gradient": gradient(160),
}


def png_nbytes(image: Array) -> int:
    """Size of a grey PNG: libpng's filters by the least sum of absolute differences,
    zlib level 9.
    """
    above, lines = np.zeros(image.shape[1], np.int64), list[bytes]()
    for line in image.astype(np.int64):
        left, corner = np.append(0, line[:-1]), np.append(0, above[:-1])
        away = [abs(left + above - corner - v) for v in (left, above, corner)]
        paeth = np.where(
            (away[0] <= away[1]) & (away[0] <= away[2]),
            left,
            np.where(away[1] <= away[2], above, corner),
        )
        tried = [
            (line - q).astype(np.uint8) for q in (0 * line, left, above, (left + above) >> 1, paeth)
        ]
        best = int(np.argmin([np.abs(t.view(np.int8).astype(int)).sum() for t in tried]))
        lines.append(bytes([best]) + tried[best].tobytes())
        above = line
    return 8 + 25 + 12 + len(zlib.compress(b"".join(lines), 9)) + 12


@pytest.mark.parametrize(("name", "preset"), crossed(IMAGES, ["default", "max"], one_in=2))
def test_smooth_images_shrink_by_modes_and_are_no_larger_than_png(name: str, preset: str) -> None:
    image = IMAGES[name]
    size, _ = coded(image, preset=preset)
    without, _ = coded(image, preset=preset, predictor="none", coder="rans")
    assert size <= 0.75 * without
    assert size <= 1.15 * png_nbytes(image)


def test_waves_are_transformed_and_coded_by_place() -> None:
    size, index = coded(IMAGES["fast waves"], preset="max")
    by_rans, _ = coded(IMAGES["fast waves"], preset="max", coder="rans")
    assert int(index.tensors[0].segments.prediction[0, 0]) >> 4 > 0
    assert [m.kind for m in index.tables.maps] == [ContextKind.POSITION]
    assert size < 0.97 * by_rans


def test_a_transform_is_found_though_no_prediction_helps() -> None:
    y, x = np.mgrid[0:256, 0:256]
    image = (
        128
        + 60 * np.cos(2.75 * x) * np.cos(2.75 * y)
        + np.random.default_rng(8).standard_normal((256, 256))
    ).astype(np.uint8)
    _, plan = plan_of(image, transform="none")
    assert (plan.segments.prediction[0] == 0).all()
    _, plan = plan_of(image)
    assert (plan.segments.prediction[0] >= 16).all()


# ---- weights -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("dtype", "preset"),
    crossed(
        ["bfloat16", "float16", "float32", "float8_e4m3fn", "int8"],
        ["fast", "default", "max"],
        one_in=2,
    ),
)
def test_gaussian_weights_are_not_predicted(dtype: str, preset: str) -> None:
    array = make_array(BY_NAME[dtype], (128, 300), "gaussian")
    size, index = coded(array, preset=preset)
    assert (index.tensors[0].segments.prediction == 0).all()
    assert size <= coded(array, preset=preset, predictor="none", transform="none")[0]


def test_position_embeddings_gain_by_top() -> None:
    """int8 rows that change slowly from one to the next, each column with a scale of its own."""
    rng = np.random.default_rng(9)
    steps = np.cumsum(rng.standard_normal((512, 384)) * 0.5, axis=0)
    slow = steps - np.linspace(0, 1, 512)[:, None] * steps[-1] + 2 * rng.standard_normal((512, 384))
    array = np.clip(np.round(slow / np.abs(slow).max(axis=0) * 127), -128, 127).astype(np.int8)
    size, index = coded(array)
    assert set(index.tensors[0].segments.prediction[0].tolist()) == {2}
    assert size <= 0.92 * coded(array, predictor="none")[0]
    assert coded(array, preset="max")[0] < size


@pytest.mark.parametrize(
    ("dtype", "least"),
    [
        ("bfloat16", 0.02),
        ("float16", 0.005),
        exhaustive(("float32", 0.008)),
        ("float8_e4m3fn", 0.03),
        exhaustive(("int8", 0.01)),
    ],
)
def test_max_gains_by_scales_and_by_the_plane_above(dtype: str, least: float) -> None:
    w = scaled_weights(384, 512)
    if dtype == "int8":
        array: Array = np.clip(np.round(w * 400), -127, 127).astype(np.int8)
    else:
        array = w.astype(
            {"bfloat16": ml_dtypes.bfloat16, "float8_e4m3fn": ml_dtypes.float8_e4m3fn}.get(
                dtype, dtype
            )
        )
    size, index = coded(array, preset="max")
    assert size <= (1 - least) * coded(array)[0]
    segments, maps = index.tensors[0].segments, index.tables.maps
    kinds = {maps[i].kind for i in segments.table[segments.coder == Coder.CONTEXT].tolist()}
    assert ContextKind.SCALE in kinds
    assert (ContextKind.PLANE in kinds) == (dtype in ("bfloat16", "float32"))


@pytest.mark.parametrize(
    ("dtype", "kind", "shape"),
    crossed(
        ["bfloat16", "float16", "float32", "int8", "int64"],
        ["gaussian", "uniform", "ramp", "outliers"],
        [(90, 130), (50,), (3, 3)],
        one_in=2,
    ),
)
def test_max_is_never_larger(dtype: str, kind: str, shape: tuple[int, ...]) -> None:
    array = make_array(BY_NAME[dtype], shape, kind)
    assert coded(array, preset="max")[0] <= coded(array)[0]


@pytest.mark.parametrize(
    ("preset", "kind"), crossed(["fast", "default", "max"], ["gaussian", "outliers"], one_in=2)
)
def test_the_planner_knows_what_it_will_cost(preset: str, kind: str) -> None:
    """Streams end some 64 bytes earlier than planned:
    the start states hold what the first words would.
    """
    array = make_array(BY_NAME["bfloat16"], (300, 400), kind)
    planner, plan = plan_of(array, preset=preset)
    _, index = coded(array, preset=preset)
    stored, n_streams = index.tensors[0].payload_nbytes, int((plan.segments.coder >= 2).sum())
    assert (
        abs(int(planner.nbytes.sum()) - stored)
        <= 96 * n_streams + (preset == "fast") * 0.02 * stored
    )


def test_maps_and_tables_that_nobody_uses_are_not_kept() -> None:
    _, index = coded(scaled_weights(384, 512).astype(ml_dtypes.bfloat16), preset="max")
    segments = index.tensors[0].segments
    maps = {int(i) for i in segments.table[segments.coder == Coder.CONTEXT]}
    tables = {int(i) for i in segments.table[segments.coder == Coder.RANS]} | {
        t for m in index.tables.maps for t in m.tables
    }
    assert maps == set(range(len(index.tables.maps)))
    assert tables == set(range(len(index.tables)))


# ---- clusters ------------------------------------------------------------------------------------
def test_log2_of_any_count() -> None:
    n = np.array([1, 2, 3, 1000, 1 << 16, (1 << 17) - 1, 1 << 17, 3 << 30, 1 << 39])
    assert np.abs(log2_of(n) / 65536 - np.log2(n)).max() < 1e-4


def test_classes_find_rows_and_columns_of_like_scale() -> None:
    rng = np.random.default_rng(3)
    rows, cols = rng.integers(0, 4, 300), rng.integers(0, 4, 200)
    scale = np.array([1, 2, 4, 8])
    plane = np.clip(
        np.round(128 + 2 * rng.standard_normal((300, 200)) * scale[rows][:, None] * scale[cols]),
        0,
        255,
    ).astype(np.uint8)
    found = Scales(plane, np.abs(2 * np.arange(256) - 255))
    joint = found.joint()
    assert joint.sum() == plane.size
    true = np.stack(
        [
            np.bincount(plane[rows == i][:, cols == j].reshape(-1), minlength=256)
            for i in range(4)
            for j in range(4)
        ]
    )
    assert ideal_cost(joint).sum() <= 1.01 * ideal_cost(true).sum()
    assert ideal_cost(joint).sum() <= 0.95 * ideal_cost(joint.sum(axis=0))
    r, c = unpack_scales(found.packed(), 300, 200)
    assert (r == found.rows).all()
    assert (c == found.cols).all()


def test_as_many_tables_as_there_are_kinds_of_histograms() -> None:
    rng = np.random.default_rng(4)
    shapes = [np.abs(np.arange(256) - c) for c in (40, 120, 200)]
    counts = np.stack(
        [
            rng.multinomial(4000, p / p.sum())
            for s in shapes
            for p in [np.exp(-s / 9)]
            for _ in range(10)
        ]
    )
    clusters = Clusters(counts, [], 12)
    clusters.grow(16)
    of_each = [set(clusters.number[i : i + 10].tolist()) for i in (0, 10, 20)]
    assert [len(used) for used in of_each] == [1, 1, 1]
    assert len(set.union(*of_each)) == 3


# ---- what is forced ------------------------------------------------------------------------------
@pytest.mark.parametrize(("mode", "dtype"), crossed(MODES, ["uint8", "bfloat16"], one_in=2))
def test_a_mode_that_is_asked_for_is_used(dtype: str, mode: int) -> None:
    prediction = ["none", "left", "top", "avg", "planar"][mode & 15]
    transform = ["none", "dct", "adst"][mode >> 4]
    array = make_array(BY_NAME[dtype], (64, 72), "gaussian")
    _, index = coded(array, predictor=prediction, transform=transform, layout="bytes", force=True)
    segments = index.tensors[0].segments
    assert set(segments.prediction[: array.itemsize].reshape(-1).tolist()) == {mode}


def test_a_transform_alone_gets_the_best_prediction() -> None:
    size, index = coded(IMAGES["fast waves"], transform="dct")
    segments = index.tensors[0].segments
    assert (segments.prediction[0] >> 4 == 1).all()
    assert (segments.layout == Layout.BYTES).all()
    assert size == min(
        coded(IMAGES["fast waves"], transform="dct", predictor=p)[0]
        for p in ("none", "left", "top", "avg", "planar")
    )


@pytest.mark.parametrize("transform", sampled(["auto", "none", "dct", "adst"], 2))
def test_transforms_of_tiles_are_the_ones_asked_for(transform: str) -> None:
    rng = np.random.default_rng(10)
    lines = (
        rng.integers(0, 200, (96, 1)) + np.arange(96) // 2 % 9,
        rng.integers(0, 200, (1, 96)) + np.arange(96)[:, None] // 2 % 9,
    )
    image = np.concatenate([part + rng.integers(0, 3, (96, 96)) for part in lines], axis=1).astype(
        np.uint8
    )
    _, plan = plan_of(image, tile=(32, 32), transform=transform)
    modes = plan.segments.prediction[0] if plan.modes is None else plan.modes
    assert (plan.modes is None) == (PER_TILE not in plan.segments.prediction)
    used = set((modes >> 4).tolist())
    assert used == {"none": {0}, "dct": {1}, "adst": {2}}.get(transform, used)
    coded(image, tile=(32, 32), transform=transform)
    coded(image, tile=(32, 32), transform=transform, preset="max")


@pytest.mark.parametrize(
    ("dtype", "coder", "preset"),
    crossed(
        ["bfloat16", "float32", "int8"],
        ["raw", "rans", "context"],
        ["fast", "default", "max"],
        one_in=3,
    ),
)
def test_a_coder_that_is_asked_for_is_used(dtype: str, coder: str, preset: str) -> None:
    array = make_array(BY_NAME[dtype], (130, 200), "gaussian")
    _, index = coded(array, coder=coder, preset=preset, layout="bytes", force=True)
    used = set(index.tensors[0].segments.coder[: array.itemsize].reshape(-1).tolist())
    assert used == {{"raw": Coder.RAW, "rans": Coder.RANS, "context": Coder.CONTEXT}[coder]}


def test_a_constant_with_contexts_that_are_asked_for() -> None:
    _, index = coded(np.full((100, 100), 3, np.uint16), coder="context")
    assert set(index.tensors[0].segments.coder.reshape(-1).tolist()) == {Coder.CONSTANT}
    coded(np.arange(40, dtype=np.uint8), coder="context", force=True)
    coded(np.array([7], np.float32), coder="context", force=True)
    coded(np.zeros((0, 5), np.float32), coder="context", force=True)


# ---- fast ----------------------------------------------------------------------------------------
def large(dtype: str) -> Array:
    """Weights in more segments than are looked at in all."""
    w = np.random.default_rng(2).standard_normal((1024, 1024), np.float32) * 0.02
    if dtype == "int8":
        return np.round(w * 1500).astype(np.int8)
    return w.astype(
        {"bfloat16": ml_dtypes.bfloat16, "float8_e4m3fn": ml_dtypes.float8_e4m3fn}.get(dtype, dtype)
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float8_e4m3fn", "int8"])
def test_fast_is_little_larger_and_reads_less(dtype: str) -> None:
    array, counted = large(dtype), dict[str, int]()
    for preset in ("fast", "default"):
        counted[preset] = 0

        class Counting:
            def histogram(
                self, words: Any, geometry: Any, dtype: Any, preset: str = preset, **what: Any
            ) -> Any:
                counts = REFERENCE.histogram(words, geometry, dtype, **what)
                counted[preset] += int(counts.sum())
                return counts

        d, words = wcodec.codec.encoder.words_of(array)
        _, g = choose_geometry(array.shape, d, EncodeOptions(preset=preset))
        planner = Planner(EncodeOptions(preset=preset))
        planner.plan(words.reshape(g.rows, g.cols), g, d, Counting())  # type: ignore[arg-type]
        counted[preset + " nbytes"] = int(planner.nbytes.sum())
    assert counted["fast"] * 4 < counted["default"]
    assert counted["fast nbytes"] < 1.02 * counted["default nbytes"]


def test_what_fast_has_not_looked_at_may_be_anything() -> None:
    """The first rows of each segment are weights, the others noise:
    stored raw where it grows, and always right.
    """
    array = large("bfloat16").copy()
    noise = (
        np.random.default_rng(1)
        .integers(0, 1 << 16, array.shape)
        .astype(np.uint16)
        .view(ml_dtypes.bfloat16)
    )
    inside = np.arange(1024) % 128 >= 8
    array[inside, :512] = noise[inside, :512]
    size, index = coded(array, preset="fast")
    layout = index.tensors[0].segments.layout.reshape(-1, 4)
    assert (layout[:, :2] == Layout.RAW).all()
    assert (layout[:, 2:] == Layout.PAIRS).all()
    assert size < array.nbytes


def test_a_last_row_of_segments_that_fast_does_not_look_at() -> None:
    array = large("int8")[:1000]
    size, index = coded(array, preset="fast")
    assert index.tensors[0].segments.layout.size == 32
    assert size < 1.02 * coded(array)[0]
    assert not plan_fast.has_grown(index.tensors[0].plan(index.tables)).any()


# ---- the command line ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    w = scaled_weights(200, 300).astype(ml_dtypes.bfloat16)
    data = safetensors_bytes(
        [
            ("w", "BF16", [200, 300], bits(w)),
            ("image", "U8", [160, 160], IMAGES["fast waves"].tobytes()),
        ],
        {},
    )
    path = tmp_path_factory.mktemp("presets") / "in.safetensors"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (["--preset", "max"], "contexts", {"scale": 1, "position": 1}),
        (["--coder", "context"], "contexts", None),
        (["--transform", "adst", "--predictor", "top"], "predictions", {"top+adst": None}),
        (["--transform", "dct", "--predictor", "none"], "predictions", {"dct": None}),
        (["--predictor", "left"], "predictions", {"left": None}),
        (["--coder", "raw"], "coders", {"raw": None}),
        (["--preset", "fast", "--tile", "64x32"], "tile_modes", None),
    ],
)
def test_info_shows_what_was_asked_for(
    checkpoint: Path, tmp_path: Path, options: list[str], key: str, value: Any
) -> None:
    target = tmp_path / "out.wcodec"
    status, _, err = call(
        "--backend", "reference", "encode", checkpoint, "-f", "-o", target, *options
    )
    assert (status, err) == (0, "")
    status, out, _ = call("--backend", "reference", "info", "--json", "--no-bound", target)
    report = json.loads(out)
    assert status == 0
    if "--tile" in options:
        assert {tuple(t["tile"]) for t in report["tensors"]} == {(64, 32)}
    elif value is None:
        assert report[key]
    else:
        for k, v in value.items():
            assert k in report[key]
            assert v is None or report[key][k] == v
        assert v is not None or set(report[key]) <= {k, "none"}
    assert call("--backend", "reference", "info", "--no-bound", target)[1].startswith("format")
    status, _, err = call(
        "--backend", "reference", "decode", target, "-f", "-o", tmp_path / "back.safetensors"
    )
    assert (status, err) == (0, "")
    assert (tmp_path / "back.safetensors").read_bytes() == checkpoint.read_bytes()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--preset", "best"],
        ["--tile", "8x8"],
        ["--coder", "raw", "--predictor", "top"],
        ["--transform", "dst"],
    ],
)
def test_bad_choices_are_bad_usage(checkpoint: Path, tmp_path: Path, wrong: list[str]) -> None:
    status, _, err = call("encode", checkpoint, "-o", tmp_path / "out.wcodec", *wrong)
    assert status == 2
    assert "error:" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (
            np.random.default_rng(0).integers(0, 256, 8000, np.uint8).view("c8"),
            {"predictor": "avg"},
        ),
        (
            np.random.default_rng(0).integers(0, 256, (33, 33), np.uint8),
            {"preset": "max", "transform": "adst", "tile": (16, 16)},
        ),
    ],
)
def test_classes_without_symbols(array: Any, options: dict[str, Any]) -> None:
    """Pairs of classes that no word has need no table."""
    data = wcodec.encode(array, wcodec.EncodeOptions(coder="context", **options))
    assert wcodec.decode(data).tobytes() == array.tobytes()


@pytest.mark.parametrize("preset", ["fast", "default", "max"])
@pytest.mark.parametrize("mode", [{"transform": "dct"}, {"predictor": "left"}])
def test_modes_that_are_asked_for_are_taken_by_all_presets(
    preset: str, mode: dict[str, str]
) -> None:
    for array in (np.array(True), np.arange(70_000, dtype=np.int32)):
        options = EncodeOptions(preset=preset, **mode)  # type: ignore[arg-type]
        assert bits(wcodec.decode(wcodec.encode(array, options))) == bits(array)


def test_no_transform_is_looked_for_unless_it_may_be() -> None:
    waves = np.sin(np.arange(64)[:, None] * np.arange(1, 65) / 9) * 9000
    tensors = {str(i): np.tile(row, 8).astype(np.int16) for i, row in enumerate(waves)}
    used = {}
    for transform in ("auto", "none"):
        whole = Whole(0)
        writer = wcodec.codec.Encoder(EncodeOptions(transform=transform)).start(whole)
        for name, array in tensors.items():
            dtype, words = wcodec.codec.encoder.words_of(array)
            writer.add_later(name, words, dtype, array.shape)
        writer.finish()
        with wcodec.open(whole.getvalue()) as f:
            used[transform] = {
                int(m) >> 4 for t in f.index.tensors for m in t.segments.prediction.reshape(-1)
            }
    assert used["none"] == {0}
    assert used["auto"] - {0}
