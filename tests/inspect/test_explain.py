"""`wcodec.explain`: what it says of known data, that it agrees with the encoder, and its text,
JSON and figure.
"""

from __future__ import annotations

import json
import math
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from inputs import BY_NAME, make_array
from sampling import crossed, exhaustive
from test_cli import call

import wcodec
from wcodec import EncodeOptions
from wcodec.backends import load_backend
from wcodec.codec.encoder import Encoder
from wcodec.inspect.explain import as_text, candidates, plot
from wcodec.planner.planner import Planner
from wcodec.reference.planes import DType
from wcodec.reference.tiles import Geometry

REFERENCE = load_backend("reference")


def explained(array: np.ndarray, **options: Any) -> dict[str, Any]:
    report = wcodec.explain(Encoder(EncodeOptions(**options), REFERENCE).encode(array), REFERENCE)
    tensor: dict[str, Any] = report["tensors"][0]
    assert report["stored_nbytes"] == tensor["stored_nbytes"]
    return tensor


def test_bounds_of_known_planes() -> None:
    """The top byte has one of 4 equally frequent values, the other one of 256."""
    words = (
        (np.arange(4).repeat(4096) << 8 | np.arange(16384) % 256)
        .astype(np.uint16)
        .reshape(128, 128)
    )
    t = explained(words, predictor="none", transform="none")
    assert [p["order0"] for p in t["planes"]] == [2, 8]
    assert t["order0_bits_per_weight"] == 10
    assert t["costs"]["raw"] == 16
    assert sum(p["stored"] for p in t["planes"]) == pytest.approx(t["bits_per_weight"])
    assert t["best"] != "none"
    assert t["left"] == pytest.approx(t["bits_per_weight"] - t["costs"][t["best"]])
    assert t["left_nbytes"] * 8 == pytest.approx(t["left"] * words.size)


@pytest.mark.parametrize(
    ("dtype", "options"),
    crossed(
        ["bfloat16", "int8", "float32", "uint16", "bool"],
        [{}, {"layout": "raw"}, {"layout": "bytes"}, {"preset": "max"}],
        one_in=2,
    ),
)
def test_every_way_has_a_cost(dtype: str, options: dict[str, Any]) -> None:
    array = make_array(BY_NAME[dtype], (50, 60), "gaussian")
    t = explained(array, **options)
    assert set(t["costs"]) == {"raw", *candidates(BY_NAME[dtype])}
    assert ("pairs" in t["costs"]) == BY_NAME[dtype].has_pairs
    assert all(0 <= c < 3 * 8 * array.itemsize for c in t["costs"].values())
    assert t["costs"][t["best"]] == min(t["costs"].values())
    assert t["left"] >= 0
    assert t["chosen"]["layouts"]
    assert len(t["planes"]) == array.itemsize


@pytest.mark.parametrize("mode", ["left", "top", "planar", "dct", "avg+adst"])
def test_costs_of_modes_are_what_files_of_them_have(mode: str) -> None:
    y, x = np.mgrid[0:128, 0:128] / 160
    image = (
        128 + 60 * np.sin(20 * x + 31 * y) + np.random.default_rng(1).standard_normal((128, 128))
    ).astype(np.uint8)
    prediction, transform = {"dct": ("none", "dct"), "avg+adst": ("avg", "adst")}.get(
        mode, (mode, "none")
    )
    forced = explained(image, predictor=prediction, transform=transform)
    cost = explained(image)["costs"][mode]
    assert list(forced["chosen"]["predictions"]) == [mode]
    # its table, and what start states hold
    assert forced["bits_per_weight"] == pytest.approx(cost, abs=8 * 400 / image.size)


def test_what_is_left_on_the_table() -> None:
    rng = np.random.default_rng(2)
    w = (
        rng.standard_normal((256, 384))
        * np.exp(rng.standard_normal((256, 1)))
        * np.exp(rng.standard_normal((1, 384)))
    )
    array = (w * 0.02).astype(ml_dtypes.bfloat16)
    t = explained(array)
    assert t["best"] in ("contexts", "max")
    assert t["left"] > 0.1
    assert explained(array, preset="max")["left"] < 0.05


@pytest.mark.parametrize("side", [400, exhaustive(1000)])
def test_tiny_segments_are_not_planned_with(side: int) -> None:
    """Each of the planner's histograms of a million segments would have 2 GB and more."""
    array = make_array(BY_NAME["uint16"], (side, side), "gaussian")
    coded = Encoder(EncodeOptions(segment=(1, 1), layout="raw"), load_backend("numba")).encode(
        array
    )
    seen = list[int]()
    plan = Planner.plan

    def noted(self: Planner, words: Any, geometry: Geometry, dtype: DType, backend: Any) -> Any:
        seen.append(geometry.n_segments)
        return plan(self, words, geometry, dtype, backend)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(Planner, "plan", noted)
        (t,) = wcodec.explain(coded, load_backend("numba"))["tensors"]
    assert t["segment"] == [1, 1]
    assert 0 < max(seen) <= 2 * array.size // 4096
    assert t["costs"]["default"] < 16


@pytest.mark.parametrize("dtype", ["complex64", "uint16"])
def test_tiny_segments_have_the_costs_of_default_ones(dtype: str) -> None:
    array = make_array(BY_NAME[dtype], (90, 100), "gaussian")
    assert explained(array, segment=(3, 16), layout="raw")["costs"] == explained(array)["costs"]


def test_tensors_without_words() -> None:
    t = explained(np.zeros((0, 3), np.float32))
    assert (t["bits_per_weight"], t["left"], t["nbytes"]) == (0, 0, 0)
    assert "0 B" in "".join(
        as_text(
            {"nbytes": 0, "stored_nbytes": 0, "left_nbytes": 0, "base_error": None, "tensors": [t]}
        )
    )


# ---- the command ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("explain") / "x.wcodec"
    arrays = {k: make_array(BY_NAME[k], (40, 70), "gaussian") for k in ("bfloat16", "int8")}
    wcodec.save_file(
        {
            **arrays,
            "w\x1b$": np.arange(5000, dtype=np.uint8).reshape(50, 100),
            "again": arrays["int8"],
        },
        target,
    )
    return target


def test_the_command_prints_a_line_a_tensor(path: Path) -> None:
    status, out, err = call("--backend", "reference", "info", "--explain", path)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert "left on the table" in lines[0]
    assert lines[2].split()[:3] == ["tensor", "dtype", "chosen"]
    assert lines[3].split()[0] == "bfloat16"
    assert "\x1b" not in out


def test_the_command_prints_json(path: Path) -> None:
    status, out, _ = call("--backend", "reference", "info", "--explain", "--json", path)
    report = json.loads(out)
    assert status == 0
    assert (report["file"], report["bases"]) == (str(path), [])
    assert report == json.loads(json.dumps(wcodec.explain(path, REFERENCE)))
    assert not any(math.isnan(c) for t in report["tensors"] for c in t["costs"].values())


def test_the_figure_is_a_png_with_something_on_it(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "bits.png"
    status, _, err = call("--backend", "reference", "info", "--explain", "--plot", target, path)
    assert (status, err) == (0, "")
    data = target.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert min(width, height) > 200
    at, stream = 8, b""
    while at < len(data):
        (nbytes,) = struct.unpack(">I", data[at : at + 4])
        stream += data[at + 8 : at + 8 + nbytes] * (data[at + 4 : at + 8] == b"IDAT")
        at += 12 + nbytes
    assert len(set(zlib.decompress(stream))) > 20


def test_the_figure_needs_matplotlib(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'wcodec\[plot\]'"):
        plot({"tensors": []}, tmp_path / "x.png")
    status, out, err = call(
        "--backend", "reference", "info", "--explain", "--plot", tmp_path / "x.png", path
    )
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert "wcodec[plot]" in err
    assert not list(tmp_path.iterdir())


def test_a_figure_of_nothing_is_bad_usage(path: Path, tmp_path: Path) -> None:
    assert call("info", "--plot", tmp_path / "x.png", path)[0] == 2


def test_explaining_without_bounds_is_bad_usage(path: Path) -> None:
    status, out, err = call("info", "--explain", "--no-bound", path)
    assert (status, out) == (2, "")
    assert "--no-bound" in err


def test_matplotlib_is_asked_for_first(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(
        sys.modules["wcodec.inspect.explain"], "explain_file", lambda *_: pytest.fail("explained")
    )
    assert call("info", "--explain", "--plot", tmp_path / "x.png", path)[0] == 1


def test_half_a_figure_is_not_left(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def savefig(_: Any, f: Any, **__: Any) -> None:
        f.write(b"half")
        raise OSError(28, "No space left on device")

    target = tmp_path / "x.png"
    target.write_bytes(b"old")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
    assert call("--backend", "reference", "info", "--explain", "--plot", target, path)[0] == 1
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_a_figure_replaces_neither_input_nor_base_nor_directory(delta: Path) -> None:
    base, here = delta.with_name("base.wcodec"), {p: p.read_bytes() for p in delta.parent.iterdir()}
    link = delta.with_name("link.png")
    link.symlink_to(base)
    for target in (delta, base, link, delta.parent / "." / delta.name, delta.parent):
        for named in ((), ("--base", base)):
            status, out, err = call("info", "--explain", "--plot", target, *named, delta)
            assert (status, out) == (2, ""), target
            assert "the figure" in err
    link.unlink()
    assert {p: p.read_bytes() for p in delta.parent.iterdir()} == here
    assert call("info", "--explain", "--plot", delta.parent / "no" / "x.png", delta)[0] == 1


# ---- differences and duplicates ------------------------------------------------------------------
@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """A file of a difference, a tensor of its own, and duplicates of both; its base beside it."""
    array = make_array(BY_NAME["bfloat16"], (64, 80), "gaussian")
    moved = array.copy()
    moved[3, 5] = 1
    wcodec.save_file({"w": array}, tmp_path / "base.wcodec")
    own = make_array(BY_NAME["int8"], (80, 70), "gaussian")
    wcodec.save_file(
        {"w": moved, "own": own, "again": own, "twin": moved},
        tmp_path / "x.wcodec",
        base=tmp_path / "base.wcodec",
    )
    return tmp_path / "x.wcodec"


def rows_of(report: dict[str, Any]) -> dict[str, list[str]]:
    return {line.split()[0]: line.split() for line in as_text(report) if line}


def test_differences_and_duplicates(delta: Path) -> None:
    report = wcodec.explain(delta, REFERENCE)
    w, own, again, twin = report["tensors"]
    assert w["chosen"]["difference"] in ("xor", "minus")
    assert (w["best"], w["left"], w["left_nbytes"]) == (None, None, None)
    assert w["order0_bits_per_weight"] > w["bits_per_weight"]
    assert own["chosen"]["difference"] == "none"
    assert report["left_nbytes"] == own["left_nbytes"]
    assert again["duplicate_of"] == "own"
    assert (
        again["stored_nbytes"],
        again["costs"],
        again["best"],
        again["left"],
        again["planes"],
    ) == (0, {}, None, None, [])
    assert (twin["duplicate_of"], twin["left"]) == ("w", None)
    rows = rows_of(report)
    assert rows["w"][2] == w["chosen"]["difference"]
    assert rows["w"][-2:] == ["-", "-"]
    assert rows["again"][2:5] == ["duplicate", "of", "own"]
    assert rows["own"][-2] == own["best"]


def test_without_the_base_the_rest_is_explained(delta: Path, tmp_path: Path) -> None:
    before = wcodec.explain(delta, REFERENCE)
    assert before["base_error"] is None
    delta.with_name("base.wcodec").unlink()
    report = wcodec.explain(delta, REFERENCE)
    w, own, *_ = report["tensors"]
    assert own == before["tensors"][1]
    assert (w["costs"], w["best"], w["order0_bits_per_weight"]) == ({}, None, None)
    assert w["bits_per_weight"] == before["tensors"][0]["bits_per_weight"]
    assert "base.wcodec" in report["base_error"]
    status, out, err = call(
        "--backend", "reference", "info", "--explain", "--plot", tmp_path / "x.png", delta
    )
    assert (status, err) == (0, "")
    assert out.splitlines()[1].startswith("without the base")
