"""``benchmarks/gpu/fused.py``: its numbers need a GPU;
that it runs, checks results and counts rightly is seen on the emulator.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from sampling import exhaustive

from wcodec.cuda.operand import Operand

SHAPE = "24x1056"


class Modules:
    """The scripts, imported."""

    def __init__(self) -> None:
        for name in ("fused", "fused_cases", "fused_device", "fused_report"):
            setattr(self, name, importlib.import_module(name))

    fused: ModuleType
    fused_cases: ModuleType
    fused_device: ModuleType
    fused_report: ModuleType


@pytest.fixture(scope="module")
def scripts() -> Modules:
    return Modules()


def run(scripts: Modules, folder: Path, *args: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, report and tables."""
    status = scripts.fused.main(
        ["--emulated", "--rounds", "2", "--shapes", SHAPE, "--out", str(folder), *args]
    )
    (path,) = folder.glob("*-fused-*.json")
    return status, json.loads(path.read_text()), path.with_suffix(".md").read_text()


@pytest.mark.exhaustive
def test_everything_runs(scripts: Modules, tmp_path: Path) -> None:
    status, report, tables = run(scripts, tmp_path, "--batches", "1,9")
    assert status == 0, report["failures"]
    assert report["emulated"]
    assert "these times mean nothing" in tables
    assert not report["left_out"]
    cases = {(c["weights"], c["operand"]): c for c in report["cases"]}
    assert set(cases) == {(w, f) for w in ("bf16", "int8", "e4m3") for f in ("fixed", "rans")}
    copy = report["copy"]["device_to_device"]["gb_s"]
    for (weights, operand), c in cases.items():
        n_words, l2 = 24 * 1056, scripts.fused_device.EmulatedTorchDevice.l2_nbytes
        assert (c["n"], c["k"], c["dense_nbytes"]) == (24, 1056, 2 * n_words)
        least = {"bf16": 12, "int8": 8, "e4m3": 8}[weights] / 8 * n_words
        assert (
            c["payload_nbytes"] >= least
            if operand == "fixed"
            else c["payload_nbytes"] < 0.98 * least
        )
        assert c["copies"]["fused"] * c["payload_nbytes"] >= 5 * l2
        assert c["copies"]["cublas"] * c["dense_nbytes"] >= 5 * l2
        assert [b["batch"] for b in c["batches"]] == [1, 9]
        for b in c["batches"]:
            assert 0 < b["error"] <= 1.5 * b["torch_error"] < 0.01
            assert (b["way"], b["n_parts"] * b["n_slices"]) == ("graph", 2)
            assert b["n_products"] == max(c["copies"].values())
            times = {name: b["times"][name]["median_s"] for name in ("fused", "cublas", "decoded")}
            assert all(b["times"][name]["n"] == b["launched"][name]["n"] == 2 for name in times)
            assert b["to_cublas"] == pytest.approx(times["cublas"] / times["fused"])
            assert b["to_decoded"] == pytest.approx(times["decoded"] / times["fused"])
            assert b["gb_s"]["fused"] == pytest.approx(c["payload_nbytes"] / times["fused"] / 1e9)
            assert b["gb_s"]["cublas"] == pytest.approx(c["dense_nbytes"] / times["cublas"] / 1e9)
            assert b["of_copy"]["fused"] == pytest.approx(b["gb_s"]["fused"] / copy)
    assert len(report["crossover"]) == 6
    assert all(m["value"] is None and m["met"] is None for m in report["marks"]), (
        "none of their shapes was measured"
    )


def spoil_product(scripts: Modules, m: pytest.MonkeyPatch) -> None:
    """One value of a product is 0."""
    real = scripts.fused_cases.linear

    def spoiled(*args: Any, **options: Any) -> None:
        real(*args, **options)
        ctypes.memset(args[3], 0, 2)

    m.setattr(scripts.fused_cases, "linear", spoiled)


def spoil_second_product(scripts: Modules, m: pytest.MonkeyPatch) -> None:
    """The last copy of the weights gives something else."""
    real, seen = scripts.fused_cases.linear, list[Any]()

    def spoiled(*args: Any, **options: Any) -> None:
        real(*args, **options)
        seen.append(args)
        if len(seen) % 2 == 0:
            ctypes.memset(args[3] + 2, 0, 2)

    m.setattr(scripts.fused_cases, "linear", spoiled)


def spoil_decoding(scripts: Modules, m: pytest.MonkeyPatch) -> None:
    """One byte of decoded words is another one."""
    real = Operand.expand

    def spoiled(self: Operand, words: int) -> None:
        real(self, words)
        ctypes.memset(words + 100, ctypes.c_uint8.from_address(words + 100).value ^ 1, 1)

    m.setattr(Operand, "expand", spoiled)


def spoil_form(scripts: Modules, m: pytest.MonkeyPatch) -> None:
    """The encoder makes no operand."""
    m.setattr(scripts.fused_cases, "OPTIONS", {"fixed": None})


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (spoil_product, "error .* of PyTorch's product"),
        exhaustive((spoil_second_product, "two products with the same weights differ")),
        (spoil_decoding, "decoded words differ"),
        exhaustive((spoil_form, "the encoder made None, not fixed")),
    ],
)
def test_wrong_results_are_not_timed(
    scripts: Modules,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[..., None],
    error: str,
) -> None:
    spoil(scripts, monkeypatch)
    monkeypatch.setattr(scripts.fused_cases, "timed", lambda *_: pytest.fail("timed"))
    status, report, tables = run(
        scripts, tmp_path, "--batches", "1,2", "--weights", "bf16", "--operands", "fixed"
    )
    assert status == 1
    assert not any(c["batches"] for c in report["cases"])
    assert len(report["failures"]) == (2 if "product" in error else 1), (
        "a batch that fails does not keep the next from being tried"
    )
    for f in report["failures"]:
        assert re.search(error, f["error"])
    assert "FAILED" in tables


def test_without_graphs(scripts: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once one could not be captured, streams are held, and the run has failed."""
    held, tried = list[float](), list[int]()

    def capture(self: Any, work: Any) -> Any:
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(scripts.fused_device.EmulatedTorchDevice, "capture", capture)
    monkeypatch.setattr(
        scripts.fused_device.EmulatedTorchDevice, "busy", lambda self, seconds: held.append(seconds)
    )
    status, report, _ = run(
        scripts, tmp_path, "--batches", "1,2", "--weights", "bf16", "--operands", "fixed"
    )
    assert status == 1
    assert [f["step"] for f in report["failures"]] == ["CUDA graphs"]
    assert "not permitted" in report["failures"][0]["error"]
    assert len(tried) == 1
    assert [b["way"] for c in report["cases"] for b in c["batches"]] == ["held", "held"]
    assert sum(s > 1e-4 for s in held) >= 2 * 2 * 3, "before each contender, in each round"


class Clock:
    """A device whose time is that of the works."""

    def __init__(self) -> None:
        self.now, self.done = 0.0, list[str]()

    def work(self, name: str, seconds: float) -> Callable[[], None]:
        def spend() -> None:
            self.now += seconds
            self.done.append(name)

        return spend

    def event(self) -> float:
        return self.now

    def seconds(self, first: float, last: float) -> float:
        return last - first

    def synchronize(self) -> None:
        self.now += 100.0

    def busy(self, seconds: float) -> None:
        self.now += seconds


def test_contenders_take_turns(scripts: Modules) -> None:
    clock = Clock()
    times = scripts.fused_cases.timed(
        clock, {"a": clock.work("a", 2.0), "b": clock.work("b", 8.0)}, 4, 4, hold=7.0
    )
    assert clock.done == list("ab" + "abbaabba"), "one of each is not counted"
    assert {name: t["median_s"] for name, t in times.items()} == {
        "a": pytest.approx(0.5),
        "b": pytest.approx(2.0),
    }
    assert times["a"]["n"] == 4


def case(
    shape: str, operand: str, ratios: dict[int, tuple[float, float]], weights: str = "bf16"
) -> dict[str, Any]:
    """A case of a report, with ratios by batch: to cuBLAS, to decoding and cuBLAS."""
    n, k = map(int, shape.split("x"))
    batches = [{"batch": b, "to_cublas": c, "to_decoded": d} for b, (c, d) in ratios.items()]
    return {
        "shape": shape,
        "n": n,
        "k": k,
        "weights": weights,
        "operand": operand,
        "batches": batches,
    }


def test_crossover(scripts: Modules, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        case("4096x4096", "fixed", {1: (1.2, 2.0), 8: (1.1, 1.0), 16: (0.5, 0.99), 32: (0.5, 1.5)}),
        case("1024x4096", "fixed", {1: (1.2, 2.0), 64: (0.8, 1.1)}),
        case("4096x4096", "rans", {1: (0.7, 0.9), 2: (0.7, 1.2)}, "int8"),
        case("8192x8192", "rans", {}),
    ]
    rows = scripts.fused_report.crossover({"cases": cases, "capability": 90})
    assert rows == [
        (90, "bf16", "fixed", 4096, 4096, 8), (90, "bf16", "fixed", 1024, 4096, 64),
        (90, "int8", "rans", 4096, 4096, 0),
    ]  # fmt: skip
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"crossover": rows}))
    assert scripts.fused.main(["--table", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == '    (90, "bf16", "fixed", 4096, 4096, 8),'


def test_marks(scripts: Modules) -> None:
    report = scripts.fused_report
    fixed = [
        case(shape, "fixed", dict.fromkeys((1, 2, 4, 8, 16), (1.3, 2.0)) | {32: (0.1, 0.1)})
        for shape in report.MLP
    ]
    assert [m["met"] for m in report.marks(fixed)] == [True, True, None, None], (
        "batch 32 has no mark"
    )
    fixed[1]["batches"][4]["to_cublas"] = 1.1
    assert [(m["met"], m["value"]) for m in report.marks(fixed)[:2]] == [(True, 1.1), (False, 1.1)]
    assert report.marks(fixed[:3])[0]["met"] is None, "a shape is missing"
    rans = [case(shape, "rans", {1: (0.7, 1.4)}) for shape in report.LAYERS]
    assert [m["met"] for m in report.marks(rans)] == [None, None, True, True]
    rans[0]["batches"][0]["to_decoded"] = 0.9
    assert report.marks(rans)[3]["met"] is False
    assert all(m["met"] is None for m in report.marks([{**c, "weights": "int8"} for c in fixed]))


def test_shapes_of_the_marks_are_measured(scripts: Modules) -> None:
    assert {s for mark in scripts.fused_report.MARKS for s in mark.shapes} <= set(
        scripts.fused.SHAPES
    )
    assert {b for mark in scripts.fused_report.MARKS for b in mark.batches} <= set(
        scripts.fused.BATCHES
    )


def test_without_a_gpu(
    scripts: Modules, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert scripts.fused.main([]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "products on a GPU are measured on one, and this PyTorch finds none"
    ]
    assert not scripts.fused_device.GraphDevice.__abstractmethods__


def test_no_memory(scripts: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        scripts.fused_device.EmulatedTorchDevice, "free_nbytes", lambda self: 1 << 20
    )
    status, report, _ = run(scripts, tmp_path, "--weights", "bf16")
    assert status == 0
    assert report["left_out"] == [
        f"{SHAPE} bf16 fixed (no memory)",
        f"{SHAPE} bf16 rans (no memory)",
    ]
