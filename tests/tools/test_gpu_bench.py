"""A dry run of ``benchmarks/gpu/gpu.py`` and ``tools/gpu_check.py`` on the emulator: their numbers
need a GPU, but that they run is known.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda_emulator import EmulatedRuntime
from kernel_usage import compile_with_usage
from paths import ROOT
from sampling import exhaustive

from wcodec.backends import load_backend
from wcodec.backends.cuda import compiler
from wcodec.errors import BackendUnavailable


class Modules:
    """The scripts, imported."""

    def __init__(self) -> None:
        for name in (
            "gpu",
            "gpu_cases",
            "gpu_device",
            "gpu_others",
            "gpu_rates",
            "gpu_report",
            "harness",
            "gpu_check",
        ):
            setattr(self, name, importlib.import_module(name))

    gpu: ModuleType
    gpu_cases: ModuleType
    gpu_device: ModuleType
    gpu_others: ModuleType
    gpu_rates: ModuleType
    gpu_report: ModuleType
    harness: ModuleType
    gpu_check: ModuleType


@pytest.fixture(scope="module")
def scripts() -> Modules:
    return Modules()


def emulated(scripts: Modules, spoil: str = "") -> Any:
    """An emulated device; `spoil` is a kernel that fails, as it would on a GPU that is lost."""

    class CUDARuntimeError(RuntimeError):
        pass

    class Runtime(EmulatedRuntime):
        def launch(self, kernel: str, grid: int, block: int, *args: Any) -> None:
            if kernel == spoil:
                raise CUDARuntimeError("an illegal memory access was encountered")
            super().launch(kernel, grid, block, *args)

    class Emulated(scripts.gpu_device.EmulatedDevice):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.runtime, self.delays = Runtime(), list[float]()

        def busy(self, seconds: float) -> None:
            self.delays.append(seconds)

    return Emulated()


def run(
    scripts: Modules, folder: Path, *args: str, spoil: str = ""
) -> tuple[int, dict[str, Any], str]:
    """Exit status, report and tables."""
    status = scripts.gpu.main(
        ["--emulated", "--out", str(folder), *args], lambda: emulated(scripts, spoil)
    )
    (path,) = folder.glob("*.json")
    return status, json.loads(path.read_text()), path.with_suffix(".md").read_text()


def first_of(report: dict[str, Any], shape: str, dtype: str) -> dict[str, Any]:
    """The entry of a case."""
    return next(c for c in report["cases"] if (c["shape"], c["dtype"]) == (shape, dtype))  # type: ignore[no-any-return]


@pytest.mark.exhaustive
def test_everything_runs(scripts: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = "40x64", "64x96"
    monkeypatch.setattr(scripts.gpu, "KEY", [("64x96", "int8")])
    status, report, tables = run(
        scripts, tmp_path, "--shapes", ",".join(shapes), "--dtypes", "bf16,fp8,int8",
        "--model", "2,64,96,128", "--rates",
    )  # fmt: skip
    assert status == 0, report["failures"]
    assert not report["failures"]
    assert not report["left_out"]
    cases = {(c["shape"], c["dtype"]) for c in report["cases"]}
    assert cases == {(s, d) for s in shapes for d in ("bf16", "fp8", "int8")}
    first = report["cases"][0]
    assert (first["shape"], first["dtype"]) == ("64x96", "int8"), "the marked ones come first"
    for c in report["cases"]:
        d, e = c["decode"], c["encode"]
        assert d["n_sets"] >= 3
        speeds = [
            *(
                d[n]
                for n in ("kernels", "with_crc", "call", "call_with_crc", "from_bytes", "from_file")
            )
        ]
        speeds += [e[n] for n in ("kernels", "call", "call_with_plan", "host_to_host")]
        assert all(
            0 < s["p10_s"] <= s["median_s"] <= s["p90_s"] and s["gb_s"] > 0 and s["of_floor"] > 0
            for s in speeds
        )
        assert {"crc32_parts", "crc32_join"} <= set(d["stages_s"])
        assert {"split_words", "assemble"} <= set(e["stages_s"])
        assert c["floor_s"] == pytest.approx(
            (c["nbytes"] + c["stored_nbytes"]) / (report["copy"]["device_to_device"]["gb_s"] * 1e9)
        )
    assert {"build_luts", "decode_pairs_2"} <= set(
        first_of(report, "64x96", "bf16")["decode"]["stages_s"]
    )
    assert {"build_coders", "encode_streams"} <= set(
        first_of(report, "64x96", "bf16")["encode"]["stages_s"]
    )
    assert report["model"]["n_tensors"] == 16
    assert report["model"]["decode"]["n_segments"] >= 16
    assert report["model"]["load"]["load"]["first_s"] > 0
    assert [o["name"] for o in report["others"]] == ["nvCOMP ANS", "DFloat11"]
    assert all(o["missing"] for o in report["others"])
    for title in (
        "## Decode",
        "## Encode",
        "## Model",
        "## Beside",
        "## Marks",
        "64x96 fp8",
        "not measured",
    ):
        assert title in tables
    assert "sources" in tables
    assert report["machine"]["versions"]["wcodec"]


def test_a_failure_is_kept_and_the_rest_runs(
    scripts: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> None:
        raise AssertionError("a wrong word")

    monkeypatch.setattr(scripts.gpu_cases.Case, "encode", fail)
    status, report, tables = run(
        scripts, tmp_path, "--shapes", "40x64", "--dtypes", "bf16", "--sections", "decode,encode"
    )
    assert status == 1
    assert [f["step"] for f in report["failures"]] == ["40x64 bf16: encode"]
    assert report["cases"][0]["decode"]
    assert report["cases"][0]["encode"] is None
    assert "FAILED 40x64 bf16: encode: AssertionError: a wrong word" in tables


def test_a_lost_gpu_ends_the_run(scripts: Modules, tmp_path: Path) -> None:
    status, report, _ = run(
        scripts,
        tmp_path,
        "--shapes",
        "40x64",
        "--dtypes",
        "bf16",
        "--sections",
        "decode,encode",
        spoil="build_luts",
    )
    assert status == 1
    assert [f["step"] for f in report["failures"]] == ["40x64 bf16: decode"]
    assert report["left_out"] == ["40x64 bf16: encode"]


def test_time_that_is_up(scripts: Modules, tmp_path: Path) -> None:
    status, report, tables = run(
        scripts, tmp_path, "--shapes", "40x64", "--dtypes", "bf16", "--seconds", "1e-9"
    )
    assert status == 0
    assert report["left_out"] == ["copy"]
    assert "Left out: copy" in tables


def test_wrong_bits_are_seen(scripts: Modules) -> None:
    cases, device = scripts.gpu_cases, emulated(scripts)
    with device.in_use():
        e = cases.Encoded(cases.weights((40, 64), "bf16", 0), cases.host_backend())
        e.array.view(np.uint16)[3, 5] ^= 1
        with pytest.raises(AssertionError, match="differ"):
            cases.DecodeSet(device, e, compare=True)
        e.record.__dict__["crc32"] ^= 1
        with pytest.raises(AssertionError, match="CRC-32 of the words"):
            cases.DecodeSet(device, e, compare=False)


def test_marks(scripts: Modules) -> None:
    def case(shape: str, dtype: str, **sections: Any) -> dict[str, Any]:
        return {"shape": shape, "dtype": dtype, **sections}

    decode = {
        "kernels": {"of_floor": 0.7},
        "call_with_crc": {"median_s": 2e-3},
        "from_bytes": {"median_s": 0.5e-3},
    }
    report = {
        "cases": [
            case(
                "4096x11008",
                "bf16",
                decode=decode,
                encode={"kernels": {"gb_s": 300.0}, "call": {"gb_s": 200.0}},
            ),
            case("256x256", "bf16", decode=decode, encode=None),
        ],
        "model": {
            "layers": 32,
            "nbytes": 13.5e9,
            "decode": None,
            "load": {"load": {"median_s": 2.9, "first_s": 3.1}},
        },
    }
    found = scripts.gpu_report.marks(report)
    assert [m["met"] for m in found] == [True, False, False, True, None, True, False, True, False]
    report["model"]["layers"] = 2
    assert [m["met"] for m in scripts.gpu_report.marks(report)][5:7] == [None, None]
    lines = list(scripts.gpu_report.marks_text({"marks": found}))
    assert lines[0] == "met     bf16 4096x11008 decode, kernels: of the floor: 70 % (>= 60 %)"
    assert lines[2] == "MISSED  bf16 256x256 decode, a call with checksums: 2 ms (< 1 ms)"
    assert lines[4].startswith("-       int8 4096x4096")


def test_without_a_gpu(scripts: Modules, capsys: pytest.CaptureFixture[str]) -> None:
    def none() -> Any:
        raise BackendUnavailable("backend 'cuda' needs an NVIDIA GPU and its driver")

    assert scripts.gpu.main(["--quick"], none) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


def test_without_git(scripts: Modules, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_git() -> Any:
        raise FileNotFoundError("git")

    monkeypatch.setattr(scripts.harness, "machine", no_git)
    about = scripts.harness.about_machine()
    assert about["commit"] == "unknown"
    assert len(about["sources_sha256"]) == 64


def test_model_is_that_of_7b(scripts: Modules) -> None:
    shape = scripts.gpu_cases.ModelShape()
    assert 13.4e9 < shape.nbytes < 13.6e9
    assert len(shape.tensors()) == 32 * 7 + 2


def test_weights(scripts: Modules) -> None:
    for dtype in scripts.gpu_cases.DTYPES:
        a, b = (scripts.gpu_cases.weights((3000, 500), dtype, seed) for seed in (0, 1))
        assert (
            a.tobytes() == scripts.gpu_cases.weights((3000, 500), dtype, 0).tobytes() != b.tobytes()
        )
        values = a.astype(np.float32)
        assert (
            values.std() == pytest.approx(0.02, rel=0.01)
            if dtype != "int8"
            else np.abs(values).max(axis=1).tolist() == [127] * 3000
        )


def test_replay_gives_the_same_times_in_turn(scripts: Modules) -> None:
    """Each work in turn, as often as is due, and none before the stream is held."""
    device, calls = emulated(scripts), list[int]()
    works = [lambda i=i: calls.append(i) for i in range(3)]
    times = scripts.gpu_device.gpu_times(device, works, 300, scripts.gpu_device.Effort(7, 7, 0.0))
    assert len(times) == 7
    assert len(device.delays) == 7
    assert calls == [0, 1, 2, 0, 0, 1, 2, 0, 1, 2, 0]


# ---- what is beside ------------------------------------------------------------------------------
def prefix_codes(counts: list[int]) -> dict[int, tuple[int, int]]:
    """Lengths of 1, 2, 3, ..: bits and code of each symbol."""
    return {s: (i + 1, (1 << (i + 1)) - 2) for i, s in enumerate(counts)}


@pytest.mark.parametrize("n", [1, 7, 8, 1000, 40000])
def test_huffman(scripts: Modules, n: int) -> None:
    """A plain decoder, which begins where the gaps say, finds all symbols."""
    others, table = scripts.gpu_others, prefix_codes([118, 117, 119, 116, 120])
    symbols = (
        np.random.default_rng(n)
        .choice([118, 117, 119, 116, 120], n, p=[0.5, 0.25, 0.15, 0.06, 0.04])
        .astype(np.uint8)
    )
    h = others.huffman(symbols, table, (6, 0b111110))
    bits, by_code = np.unpackbits(h.data), {v: s for s, v in table.items()}
    gaps = np.packbits(
        np.pad(np.unpackbits(h.gaps)[: h.gaps.size * 8 // 5 * 5].reshape(-1, 5), ((0, 0), (3, 0))),
        axis=1,
    ).ravel()
    found = list[int]()
    for thread in range(-(-bits.size // others.THREAD_BITS)):
        at = thread * others.THREAD_BITS + int(gaps[thread])
        if thread % others.THREADS == 0:
            assert h.positions[thread // others.THREADS] == len(found)
        while at < min((thread + 1) * others.THREAD_BITS, bits.size) and len(found) < n:
            length = 1 + int(np.argmin(bits[at : at + 6]))
            found.append(by_code[length, (1 << length) - 2])
            at += length
    assert found == symbols.tolist()
    assert h.positions[-1] == n


@pytest.mark.parametrize("arch", [75, exhaustive(120)])
def test_rates_compile(scripts: Modules, arch: int) -> None:
    """For the least and the newest architecture;
    each kernel without spills, and small enough that two blocks fit.
    """
    usage = compile_with_usage(scripts.gpu_rates.source(), arch)[1]
    assert set(usage) == {f"rate_{name}" for name in scripts.gpu_rates.STEPS}
    assert all(
        u.spill_stores_nbytes == u.stack_nbytes == 0 and u.registers <= 32 for u in usage.values()
    )
    assert compiler.compile_cubin(scripts.gpu_device.BUSY_SOURCE, 90)[:4] == b"\x7fELF"


HANGS = """
import time
try:
    print('begun')
    time.sleep(100)
except KeyboardInterrupt:
    print('interrupted')
"""


# ---- the whole check -----------------------------------------------------------------------------
@pytest.fixture
def checker(scripts: Modules, tmp_path: Path) -> Iterator[Any]:
    with (tmp_path / "log").open("w") as log:
        yield scripts.gpu_check.Checker(tmp_path, 0, "numba", log)


def test_a_step_that_passes_fails_or_hangs(checker: Any) -> None:
    good = checker.run(
        [sys.executable, "-c", "import wcodec, plans; print('one'); print('two')"], 60
    )
    assert (good.status, good.last) == (0, "two"), "the repository and its tests can be imported"
    assert checker.run([sys.executable, "-c", "raise SystemExit(3)"], 60).status == 3
    told = checker.run(
        [sys.executable, "-c", "import sys; print('[]'); print('warning', file=sys.stderr)"],
        60,
        apart=True,
    )
    assert (told.output, told.errors) == ("[]\n", "warning\n")
    log = checker.out / "log"
    hangs = checker.run([sys.executable, "-c", HANGS], 4)
    assert (hangs.status, hangs.output) == (None, "begun\ninterrupted\n"), (
        "it can say what it has found"
    )
    assert log.read_text().endswith("begun\n---- 3 s are up\ninterrupted\n"), (
        "what was said is there at once"
    )
    hangs = checker.run(
        [
            sys.executable,
            "-c",
            "import signal, time\nsignal.signal(2, signal.SIG_IGN)\nwhile 1: time.sleep(9)",
        ],
        2,
    )
    assert hangs.status is None
    assert checker.run(["no-such-program"], 5).status == 127


@pytest.mark.exhaustive
def test_a_step_is_interrupted_in_the_background_too(checker: Any) -> None:
    """Where a shell has it that interrupts are ignored."""
    make = (
        "import sys, gpu_check, pathlib; c = gpu_check.Checker(pathlib.Path('.'), 0, 'numba', "
        "sys.stderr)"
    )
    command = [
        sys.executable,
        "-c",
        f"{make}; print(c.run(sys.argv[1:], 4).output)",
        sys.executable,
        "-c",
        HANGS,
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tools")}
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "begun\ninterrupted\n\n", done.stderr


def test_one_bad_step_does_not_stop_the_others(
    scripts: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = scripts.gpu_check

    def broken(_: Any) -> Any:
        raise RuntimeError("no idea")

    monkeypatch.setattr(check.Checker, "conformance", broken)
    monkeypatch.setattr(
        check.Checker, "tests", lambda self: check.Result("tests", "timed out", "...")
    )
    monkeypatch.setattr(
        check.Checker, "speed", lambda self: check.Result("speed", "passed", "7 marks met")
    )
    monkeypatch.setattr(
        check.Checker, "fused", lambda self: check.Result("fused", "failed", "a wrong product")
    )
    monkeypatch.setattr(
        check.Checker,
        "models",
        lambda self: check.Result("models", "not there", "torch not installed"),
    )
    monkeypatch.setattr(check, "sanitizer", lambda: None)
    only = [a for name in check.STEPS[1:] for a in ("--only", name)]
    assert check.main(["--out", str(tmp_path), "--backend", "numba", "--seconds", "0", *only]) == 1
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    outcomes = {s["name"]: s["outcome"] for s in report["steps"]}
    assert outcomes == {
        "conformance": "failed", "tests": "timed out", "speed": "passed", "fused": "failed",
        "models": "not there", "memcheck": "not there", "racecheck": "not there",
    }  # fmt: skip
    assert not report["good"]
    assert check.main(["--out", str(tmp_path), "--only", "speed", "--only", "memcheck"]) == 0, (
        "what is not there is no failure"
    )
    seen = list[Any]()
    monkeypatch.setattr(
        check.Checker,
        "tests",
        lambda self: seen.append(json.loads((tmp_path / "gpu-check.json").read_text())) or 1 / 0,
    )
    steps = ["--only", "speed", "--only", "tests", "--only", "memcheck"]
    assert check.main(["--out", str(tmp_path), *steps]) == 1
    assert [(s["name"], s["outcome"], s["detail"]) for s in seen[0]["steps"]] == [
        ("speed", "passed", "7 marks met"), ("tests", "left out", "not reached"),
        ("memcheck", "left out", "not reached"),
    ], "written after each step"  # fmt: skip
    assert not seen[0]["good"]
    assert check.main(["--out", str(tmp_path), "--only", "speed", "--seconds", "1"]) == 1, (
        "what is left out is one"
    )


def test_the_time_is_shared_out(
    scripts: Modules, checker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps leave to those after them what these need at least;
    what has too little left is not begun.
    """
    check, now, limits = scripts.gpu_check, [0.0], dict[str, float]()
    monkeypatch.setattr(check.time, "monotonic", lambda: now[0])

    def takes(name: str, seconds: float) -> Any:
        def step(self: Any) -> Any:
            limits[name] = self.limit
            now[0] += min(seconds, self.limit)
            return check.Result(name, "passed")

        return step

    for name, seconds in {
        "devices": 9,
        "conformance": 999,
        "tests": 999,
        "speed": 999,
        "fused": 999,
    }.items():
        monkeypatch.setattr(check.Checker, name, takes(name, seconds))
    checker.seconds, checker.started = 560, 0
    assert [r.outcome for r in check.check(checker, list(check.USUAL))] == ["passed"] * 5
    assert limits == {
        "devices": 60,
        "conformance": 150,
        "tests": 200,
        "speed": 560 - 9 - 150 - 200 - 60,
        "fused": 60,
    }
    assert now[0] == 560, "and no more"
    checker.seconds, checker.started, now[0] = 420, 0, 0
    check.check(checker, ["devices", "conformance", "tests"])
    assert limits | {"devices": 60, "conformance": 150, "tests": 200} == limits, (
        "the first call of a visit has room for all"
    )
    checker.seconds, checker.started, now[0] = 100, 0, 0
    results = check.check(checker, list(check.USUAL))
    assert [r.outcome for r in results] == ["passed", "passed", "passed", "left out", "left out"]
    assert results[3].detail == "no time; --only speed runs it alone"


def test_devices(scripts: Modules, checker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # much on the standard error: no business of who reads the JSON
    monkeypatch.setenv("PYTHONVERBOSE", "1")
    assert checker.devices().outcome == "passed"
    monkeypatch.delenv("PYTHONVERBOSE")
    checker.backend = "no_such_backend"
    results = scripts.gpu_check.check(checker, ["devices", "conformance"])
    assert [r.outcome for r in results] == ["failed", "left out"]
    assert "there is no backend 'no_such_backend'" in results[0].detail


@pytest.fixture(params=["here", exhaustive("process")])
def run_script(
    request: pytest.FixtureRequest,
    scripts: Modules,
    checker: Any,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """As `Checker.run`, for commands of scripts:
    in this process, which has imported what they import, or as they are.
    """

    def here(command: list[str], *_: Any, **__: Any) -> Any:
        assert (command[0], (ROOT / command[1]).is_file()) == (sys.executable, True)
        status = importlib.import_module(Path(command[1]).stem).main(command[2:])
        said = capsys.readouterr()
        return scripts.gpu_check.Run(status, said.out + said.err, 0.0)

    return here if request.param == "here" else checker.run


def test_the_commands_are_understood(
    scripts: Modules, checker: Any, run_script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suite's, and the benchmark's where there is no GPU;
    pytest's, where there is nothing to run.
    """
    seen = list[list[str]]()
    monkeypatch.setattr(
        checker,
        "run",
        lambda command, *_, **__: seen.append(command) or scripts.gpu_check.Run(1, "", 0.0),
    )
    assert {
        checker.conformance().outcome,
        checker.tests().outcome,
        checker.speed().outcome,
        checker.models().outcome,
    } == {"failed"}
    conformance, tests, speed, models = seen
    monkeypatch.undo()
    done = checker.run([*conformance, "--filter", "accept/base_bytes"], 120)
    assert done.last.startswith("1 passed, 0 failed")
    assert (
        json.loads((checker.out / "conformance.json").read_text())["decoders"][0]["name"] == "numba"
    )
    assert "tests/cuda/test_gpu.py" in tests
    assert scripts.gpu.parse(speed[2:]).seconds > 100
    assert run_script(models, 120).status == 2, "there is no GPU, and that is said"
    on_a_cpu = run_script(
        [*models, "--device", "cpu", *scripts.gpu_check.TINY.split(), "--rounds", "1"], 300
    )
    assert on_a_cpu.status == 0, on_a_cpu.output
    (written,) = checker.out.glob("*-models-cpu.json")
    report = json.loads(written.read_text())
    assert report["same_tokens"]
    assert report["n_compressed"] == 2 * 7 + 2
    assert report["held_nbytes"] < report["dense_nbytes"]
    assert set(report["fused"]) == {"fixed", "rans"}
    assert (
        report["fused"]["rans"]["held_nbytes"]
        < report["fused"]["fixed"]["held_nbytes"]
        < report["dense_nbytes"]
    )
    assert all(f["tokens_s"] > 0 and 0 <= f["n_same_tokens"] <= 4 for f in report["fused"].values())
    assert "fused rans / plain" in on_a_cpu.output


def test_products_are_a_step(
    checker: Any, run_script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU it fails; what a benchmark finds is told."""
    tiny = "--emulated --weights bf16 --operands fixed --shapes 24x1056 --batches 1 --rounds 1"
    monkeypatch.setattr(checker, "run", run_script)
    result = checker.fused()
    assert result.outcome == "failed"
    assert result.detail.endswith("this PyTorch finds none")
    monkeypatch.setattr(
        checker, "run", lambda command, *_, **__: run_script([*command, *tiny.split()], 120)
    )
    result = checker.fused()
    assert result.outcome == "passed", (checker.out / "log").read_text()
    assert result.detail.startswith(
        "bf16 fixed, MLP shapes, batch 1 to 16: as fast as cuBLAS: not measured; "
    )
    assert float(result.command[result.command.index("--seconds") + 1]) > 100


@pytest.mark.exhaustive
def test_tests_of_a_gpu_run(checker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of tests/cuda/test_gpu.py, but for the kernels' against the reference, which the
    emulated backend passes elsewhere.
    """
    monkeypatch.setenv("WCODEC_GPU_TESTS", "emulated")
    others = importlib.import_module("test_gpu").__all__
    monkeypatch.setenv("PYTEST_ADDOPTS", f"-k 'not ({' or '.join(others)})'")
    # PyTorch has no emulator of GPUs
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = checker.tests()
    assert result.outcome == "passed", (checker.out / "log").read_text()
    assert int(result.detail.split()[0]) > 20
    assert result.detail.endswith("without torch and transformers, whose tests were not run")
    assert not any("torch" in a or "transformers" in a for a in result.command)


def test_nothing_of_the_kernels_is_left_out() -> None:
    """Every test of all backends that a device can run is one of tests/cuda/test_gpu.py."""
    there = {
        name
        for module in ("test_backends_equal", "test_backends_sparse")
        for name in vars(importlib.import_module(module))
        if name.startswith("test_")
    }
    of_numba = {
        "test_nothing_outside_is_touched",
        *(name for name in there if name.startswith("test_tables_")),
    }
    assert there - of_numba == set(importlib.import_module("test_gpu").__all__)


def test_reduced_run(scripts: Modules) -> None:
    said = list[str]()
    assert (
        scripts.gpu_check.reduced("cuda_emulator.backend:EmulatedCuda", 300, said.append, most=12)
        == 0
    )
    assert said[-1].startswith("reduced: ")
    assert int(said[-1].split()[1]) > 4


def test_reduced_run_counts_what_is_wrong(
    scripts: Modules, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = load_backend("reference")
    said = list[str]()
    monkeypatch.setattr(
        type(backend),
        "decode_segments",
        lambda self, plan, payload, out: np.zeros(plan.geometry.n_segments, np.uint8),
    )
    assert scripts.gpu_check.reduced("reference", 300, said.append, most=12) > 0
    assert any(line.startswith("FAILED") for line in said)


def test_counts_of_pytest(scripts: Modules, tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text(
        '<testsuites><testsuite tests="9" failures="1" errors="2" skipped="3"/></testsuites>'
    )
    assert scripts.gpu_check.counted(tmp_path / "x.xml") == {
        "passed": 3,
        "failures": 1,
        "errors": 2,
        "skipped": 3,
    }
    assert scripts.gpu_check.counted(tmp_path / "none.xml") == {}
    lines = (
        "tests/a.py::one PASSED [ 10%]\n"
        "tests/a.py::two[x PASSED y] FAILED [ 20%]\n"
        "FAILED tests/a.py::two - no\n"
        "tests/a.py::three "
    )
    assert scripts.gpu_check.counted_lines(lines) == {
        "passed": 1,
        "failures": 1,
        "errors": 0,
        "skipped": 0,
    }
    assert scripts.gpu_check.counted_lines("collecting ...") == {}
