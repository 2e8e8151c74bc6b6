"""The command line: every subcommand, every exit status,
and no bad file that gets through or leaves anything behind.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import BACKENDS
from inputs import BY_NAME, bits, make_array, safetensors_bytes
from sampling import exhaustive

import wcodec
from wcodec import cli
from wcodec.backends import load_backend
from wcodec.cli import demo
from wcodec.files.checkpoint import encode_file
from wcodec.reference.container import seal_index

WCODEC = [sys.executable, "-m", "wcodec"]


def run(*args: object, **more: Any) -> tuple[int, str, str]:
    """The command: status, stdout, stderr."""
    done = subprocess.run(
        [*WCODEC, *map(str, args)], capture_output=True, text=True, timeout=120, **more
    )
    return done.returncode, done.stdout, done.stderr


def call(*args: object) -> tuple[int, str, str]:
    """`main` in this process, which is much faster: as `run`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main([str(a) for a in args])
        except SystemExit as e:
            status = int(e.code or 0)
    return status, out.getvalue(), err.getvalue()


def assert_one_line_of_error(err: str, code: str = r"\w+") -> None:
    assert re.fullmatch(rf"wcodec: error: {code}.*\n", err), err


CHECKPOINT = safetensors_bytes(
    [
        ("w", "BF16", [200, 150], bits(make_array(BY_NAME["bfloat16"], (200, 150), "gaussian"))),
        ("w8", "I8", [200, 150], bits(make_array(BY_NAME["int8"], (200, 150), "gaussian"))),
        ("none", "F32", [0, 3], b""),
        ("ramp\x1b[31m\n", "U16", [100], np.arange(7, 107, dtype="<u2").tobytes()),
    ],
    {"format": "pt"},
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, which holds ``model.safetensors`` alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WCODEC_BACKEND", raising=False)
    (tmp_path / "model.safetensors").write_bytes(CHECKPOINT)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ---- what it does --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "do"), [("numba", run), ("reference", call), exhaustive(("reference", run))]
)
def test_there_and_back(folder: Path, name: str, do: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = do("--backend", name, "encode", "model.safetensors", "-o", "model.wcodec")
    assert (status, err) == (0, "")
    line = r"model\.safetensors -> model\.wcodec: [\d.]+ kB -> [\d.]+ kB \([\d.]+ %\), [\d.]+ s\n"
    assert re.fullmatch(line, out), out
    status, out, err = do(
        "decode", "model.wcodec", "-o", "back.safetensors", "--backend", name, "--threads", 1
    )
    assert (status, err) == (0, "")
    assert re.fullmatch(
        r"model\.wcodec -> back\.safetensors: [\d.]+ kB -> [\d.]+ kB, [\d.]+ s\n", out
    ), out
    assert (folder / "back.safetensors").read_bytes() == CHECKPOINT
    status, out, err = do("verify", "model.wcodec", "--backend", name)
    assert (status, err) == (0, "")
    assert out.startswith("model.wcodec: good, ")
    assert names(folder) == ["back.safetensors", "model.safetensors", "model.wcodec"]


def test_default_outputs(folder: Path) -> None:
    assert call("encode", "model.safetensors")[0] == 0
    assert names(folder) == ["model.safetensors", "model.wcodec"]
    (folder / "model.safetensors").unlink()
    assert call("decode", "model.wcodec")[0] == 0
    assert (folder / "model.safetensors").read_bytes() == CHECKPOINT
    (folder / "v1.5").write_bytes(CHECKPOINT)
    assert call("encode", "v1.5")[0] == 0
    assert "v1.5.wcodec" in names(folder)


def test_a_link_that_is_replaced_stays_a_link(folder: Path) -> None:
    (folder / "real").write_bytes(b"old")
    (folder / "link").symlink_to("real")
    assert call("encode", "model.safetensors", "-f", "-o", "link")[0] == 0
    assert (folder / "link").is_symlink()
    assert (folder / "real").read_bytes().startswith(b"\x89WCODEC\n")


def test_quiet_and_json(folder: Path) -> None:
    assert call("encode", "model.safetensors", "-o", "m", "-q") == (0, "", "")
    assert call("decode", "m", "-o", "back", "--quiet") == (0, "", "")
    assert call("verify", "-q", "m") == (0, "", "")
    status, out, err = call(
        "--backend", "reference", "encode", "--json", "model.safetensors", "-o", "m2"
    )
    report = json.loads(out)
    assert (status, err) == (0, "")
    assert report.keys() == {
        "input",
        "output",
        "nbytes",
        "stored_nbytes",
        "ratio",
        "seconds",
        "backend",
    }
    size = (folder / "m2").stat().st_size
    found = (report["nbytes"], report["stored_nbytes"], report["ratio"])
    assert found == (len(CHECKPOINT), size, size / len(CHECKPOINT))
    found = (report["input"], report["backend"], report["output"])
    assert found == ("model.safetensors", "reference", "m2")
    for args in (("decode", "m2", "-o", "b2"), ("verify", "m2")):
        status, out, err = call(*args, "--json")
        report = json.loads(out)
        found = (status, err, report["nbytes"], report["stored_nbytes"])
        assert found == (0, "", len(CHECKPOINT), size)


OPTIONS = [
    "--predictor",
    "top",
    "--layout",
    "bytes",
    "--segment",
    "64x64",
    "--tile",
    "32x16",
    "--prob-bits",
    "10",
]


def test_options_reach_the_encoder(folder: Path) -> None:
    assert call("encode", "model.safetensors", "-o", "m", *OPTIONS)[0] == 0
    with wcodec.open("m") as f:
        g = f.record("w").geometry
        assert (g.segment_rows, g.segment_cols, g.tile_rows, g.tile_cols) == (64, 64, 32, 16)
        assert {t.prob_bits for t in f.index.tables.tables} == {10}
    assert call("decode", "m", "-o", "back")[0] == 0
    assert Path("back").read_bytes() == CHECKPOINT


def test_info(folder: Path) -> None:
    call("encode", "model.safetensors", "-o", "m", "-q")
    status, out, err = call("info", "m", "--json", "--backend", "reference")
    report = json.loads(out)
    assert (status, err) == (0, "")
    found = (report["format"], report["backend"], report["source"], report["metadata_keys"])
    assert found == ("0.2", "reference", "safetensors", ["format"])
    assert (report["nbytes"], report["stored_nbytes"]) == (
        len(CHECKPOINT),
        Path("m").stat().st_size,
    )
    w, w8, none, ramp = report["tensors"]
    assert (w["name"], w["dtype"], w["shape"], w["nbytes"]) == ("w", "BF16", [200, 150], 60_000)
    assert w["bits_per_weight"] == 8 * w["stored_nbytes"] / 30_000
    assert w["layouts"] == {"pairs": 1}
    assert w["coders"] == {"raw": 1, "rans": 1}
    assert w["predictions"] == {"none": 1}
    assert w["order0_bits_per_weight"] == pytest.approx(
        order0(w["dtype"], make_array(BY_NAME["bfloat16"], (200, 150), "gaussian"))
    )
    assert w8["order0_bits_per_weight"] == pytest.approx(
        order0("I8", make_array(BY_NAME["int8"], (200, 150), "gaussian"))
    )
    found = (none["bits_per_weight"], none["order0_bits_per_weight"], none["n_segments"])
    assert found == (None, None, 0)
    assert ramp["name"] == "ramp\x1b[31m\n"
    status, out, _ = call("info", "m")
    assert status == 0
    assert "\x1b" not in out, "a name in a file must not reach the terminal as a control sequence"
    assert "ramp\\x1b[31m\\n" in out
    status, out, _ = call("info", "m", "--json", "--no-bound")
    assert json.loads(out)["tensors"][0]["order0_bits_per_weight"] is None


def order0(name: str, array: np.ndarray) -> float:
    """Sum over the byte planes of their entropy, straight from the definition."""
    words = array.reshape(-1).view(np.uint16 if name == "BF16" else np.uint8).astype(int)
    planes = [words >> 7 & 255, words >> 15 << 7 | words & 127] if name == "BF16" else [words]
    total = 0.0
    for plane in planes:
        p = np.unique(plane, return_counts=True)[1] / plane.size
        total -= float((p * np.log2(p)).sum())
    return total


def test_info_counts_the_modes_of_tiles(folder: Path) -> None:
    rng = np.random.default_rng(4)
    array = rng.integers(0, 200, (256, 256)).astype(np.uint8)
    array[:, 128:] = np.cumsum(rng.integers(0, 3, (256, 128)), axis=1) + rng.integers(
        0, 9, (256, 1)
    )
    (folder / "a").write_bytes(safetensors_bytes([("a", "U8", [256, 256], array.tobytes())]))
    call("encode", "a", "-o", "m", "--segment", "256x256", "--tile", "64x64", "-q")
    for more in ([], ["--no-bound"]):
        (t,) = json.loads(call("info", "m", "--json", *more)[1])["tensors"]
        assert t["predictions"] == {"per_tile": 1}
        assert t["tile_modes"]["none"] == 8
        assert sum(t["tile_modes"].values()) == 16


def test_info_of_a_reader_that_goes_away(folder: Path) -> None:
    # a line each: more than the pipe holds
    tensors = [(f"tensor.{i}", "U8", [1], b"x") for i in range(200)]
    (folder / "many").write_bytes(safetensors_bytes(tensors))
    call("encode", "many", "-o", "m", "-q", "--backend", "reference")
    line = [*WCODEC, "info", "--no-bound", "m"]
    p = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pipesize=4096
    )
    assert p.stdout is not None
    assert p.stderr is not None
    p.stdout.readline()
    p.stdout.close()
    assert p.stderr.read() == ""
    p.stderr.close()
    assert p.wait() == 128 + signal.SIGPIPE


def test_backends(folder: Path) -> None:
    status, out, err = call("backends", "--json")
    rows = {r["name"]: r for r in json.loads(out)}
    assert (status, err) == (0, "")
    assert all(rows[name]["usable"] for name in BACKENDS)
    assert [r["name"] for r in rows.values() if r["used"]] == [
        "cuda" if rows["cuda"]["usable"] else "numba"
    ]
    assert rows["cuda"]["usable"] or re.match("backend 'cuda' needs ", rows["cuda"]["reason"])
    status, out, _ = call("backends", "--backend", "reference")
    assert re.search(r"^\* reference +numpy ", out, re.MULTILINE)
    assert re.search(r"^  numba ", out, re.MULTILINE)


def test_the_environment_and_verbosity(folder: Path) -> None:
    env = os.environ | {"WCODEC_BACKEND": "reference", "WCODEC_THREADS": "1"}
    assert (
        json.loads(run("encode", "model.safetensors", "-o", "m", "--json", env=env)[1])["backend"]
        == "reference"
    )
    _, out, _ = run(
        "encode", "model.safetensors", "-f", "-o", "m", "--json", "--backend", "numba", env=env
    )
    assert json.loads(out)["backend"] == "numba"
    status, out, err = run("-v", "verify", "m", "-q")
    assert (status, out) == (0, "")
    assert re.fullmatch(
        r"wcodec: auto: (backend cuda|not cuda: backend 'cuda' needs .+\nwcodec: auto: "
        r"backend numba)\n",
        err,
    )
    assert run("verify", "m", env=env | {"WCODEC_BACKEND": "nonsense"})[0] == 1


def test_version_and_help() -> None:
    status, out, _ = call("--version")
    assert (status, out) == (0, f"wcodec {wcodec.__version__} (format 0.2)\n")
    status, out, _ = call("--help")
    assert status == 0
    for name in (
        "encode",
        "decode",
        "repack",
        "verify",
        "info",
        "backends",
        "conformance",
        "warmup",
        "demo",
        "bench",
    ):
        assert re.search(rf"^ +{name} ", out, re.MULTILINE)
        assert call(name, "--help")[0] == 0


def test_conformance_gets_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    from wcodec import conformance

    seen: list[tuple[object, dict[str, Any]]] = []
    report = conformance.Report(
        "x", vectors={"cases": 0}, outcomes=[conformance.Outcome("x", (), "failed")]
    )
    monkeypatch.setattr(
        conformance, "run", lambda target, **more: seen.append((target, more)) or report
    )
    assert call("conformance", "--command", "sh {input} {output}", "--no-sweeps")[0] == 1
    more = "--filter", "accept", "--threads", 3, "--timeout", 9, "-x"
    assert call("--backend", "numba", "conformance", *more)[0] == 1
    assert call("--backend", "numba", "conformance", "--in-process")[0] == 1
    (command, first), (child, second), (backend, _) = seen
    assert isinstance(command, conformance.Command)
    found = (command.template, first["sweeps"], first["select"], first["stop_at_first"])
    assert found == ("sh {input} {output}", False, "", False)
    assert isinstance(child, conformance.InChild)
    assert (child.backend, child.threads, child.timeout) == ("numba", 3, 9)
    found = (second["sweeps"], second["select"], second["stop_at_first"])
    assert found == (True, ["accept"], True)
    assert backend == load_backend("numba")


def test_demo(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        demo,
        "make_checkpoints",
        partial(demo.make_checkpoints, shapes={"a": (300, 200), "b": (10, 70)}),
    )
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status, out, err = call("demo")
    assert (status, err) == (0, "")
    for name in BACKENDS:
        assert (
            len(re.findall(rf"^(bf16|int8)\.safetensors +{name} .* MB/s +yes$", out, re.MULTILINE))
            == 2
        )
    assert names(tmp_path) == []
    monkeypatch.setattr(
        demo,
        "decode_file",
        lambda source, target, backend, overwrite: Path(target).write_bytes(b"x"),
    )
    status, out, err = call("demo", "--backend", "reference")
    assert status == 1
    assert_one_line_of_error(err, "a file did not come back")
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", BACKENDS)
def test_bench(folder: Path, name: str) -> None:
    status, out, err = call(
        "bench", "model.safetensors", "--backend", name, "--rounds", 2, "--json"
    )
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert (report["nbytes"], report["n_tensors"], report["same"]) == (90_200, 4, True)
    (row,) = report["backends"]
    assert (row["name"], row["rounds"]) == (name, 2)
    assert 0.6 < row["ratio"] < 1
    for speed in (report["memcpy"], row["encode"], row["decode"]):
        assert 0 < speed["p25_gb_s"] <= speed["median_gb_s"] <= speed["p75_gb_s"]
    assert names(folder) == ["model.safetensors"]


def test_bench_of_all_backends_and_of_a_part(folder: Path) -> None:
    status, out, _ = call("bench", "model.safetensors", "--rounds", 1, "--sample-nbytes", 60_000)
    assert status == 0
    assert out.startswith("model.safetensors: 1 tensors, 60.0 kB of ")
    for name in ("memcpy", *BACKENDS):
        assert len(re.findall(rf"^{name} +\d+\.\d\d % ", out, re.MULTILINE)) == 1


def test_bench_of_a_backend_that_is_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wcodec.cli.bench._Candidate.decode", lambda self: None)
    status, _, err = call("bench", "model.safetensors", "--backend", "reference", "--rounds", 1)
    assert status == 1
    assert_one_line_of_error(err, "the tensors did not come back")


# ---- bad usage: 2 --------------------------------------------------------------------------------
BAD_USAGE = [
    ["nonsense"],
    ["encode"],
    ["decode"],
    ["encode", "model.safetensors", "link", "-o", "m"],
    ["encode", "model.safetensors", "-o", "m", "--output-dir", "d"],
    ["encode", "model.safetensors", "--output-dir", "model.safetensors"],
    ["encode", "-"],
    ["encode", "model.safetensors", "-o", "-"],
    ["encode", "model.safetensors", "--output-dir", "-"],
    ["encode", "model.safetensors", "--base", "-"],
    ["decode", "-"],
    ["verify", "-"],
    ["info", "-"],
    ["info", "model.safetensors", "--explain", "--plot", "-"],
    ["bench", "-"],
    ["conformance", "--report", "-"],
    ["conformance", "--command", "x {input} {output}", "--backend", "numba"],
    ["encode", "--rm", "."],
    ["encode", "--rm", ".", "-o", "../m"],
    ["repack", "model.safetensors"],
    ["encode", "model.safetensors", "-o", "model.safetensors"],
    ["encode", "model.safetensors", "-o", "./model.safetensors"],
    ["encode", "model.safetensors", "-o", "link"],
    ["encode", "model.safetensors", "-o", "/dev/null"],
    ["encode", "model.safetensors", "-o", "."],
    ["encode", "."],
    ["encode", ".", "-o", "."],
    ["encode", ".", "-o", "m"],
    ["encode", ".", "-o", ".."],
    ["encode", ".", "-o", "model.safetensors"],
    ["encode", "--form", "hub", "model.safetensors"],
    ["encode", "--form", "hub", "model.safetensors", "-o", "model.safetensors"],
    ["encode", "--form", "hub", "model.safetensors", "-o", "."],
    ["encode", "--form", "hub", "model.safetensors", "-o", "m", "--base", "model.safetensors"],
    ["encode", "--form", "zip", "model.safetensors", "-o", "m"],
    ["decode", "."],
    ["decode", ".", "-o", "m"],
    ["decode", ".", "-o", "m", "--raw"],
    ["decode", "model.safetensors"],
    ["decode", "model.safetensors", "-o", "m", "--base", "model.safetensors"],
    ["info", ".", "--explain"],
    ["info", "model.safetensors", "--explain"],
    ["encode", "model.safetensors", "-o", "m", "--segment", "64"],
    ["encode", "model.safetensors", "-o", "m", "--segment", "0x64"],
    ["encode", "model.safetensors", "-o", "m", "--tile", "8x16"],
    ["encode", "model.safetensors", "-o", "m", "--preset", "best"],
    ["encode", "model.safetensors", "-o", "m", "--transform", "dft"],
    ["encode", "model.safetensors", "-o", "m", "--coder", "huffman"],
    ["encode", "model.safetensors", "-o", "m", "--segment", "64x64", "--tile", "60x64"],
    ["encode", "model.safetensors", "-o", "m", "--prob-bits", "13"],
    ["encode", "model.safetensors", "-o", "m", "--predictor", "paeth"],
    ["encode", "model.safetensors", "-o", "m", "--layout", "planes"],
    ["encode", "model.safetensors", "-o", "m", "--threads", "0"],
    ["encode", "model.safetensors", "-o", "m", "--quiet", "--json"],
    ["decode", "m", "--max-nbytes", "-1"],
    ["info", "m", "--nonsense"],
    ["info", "m", "--js"],
    ["bench"],
    ["bench", "m", "--rounds", "0"],
]


@pytest.mark.parametrize("args", BAD_USAGE, ids=" ".join)
def test_bad_usage(folder: Path, args: list[str]) -> None:
    (folder / "link").symlink_to("model.safetensors")
    status, out, err = call(*args)
    assert (status, out) == (2, "")
    first, second, *more = err.splitlines()
    assert not more, "two lines: what is wrong, and where help is"
    prog = re.match("(wcodec.*): error: ", first)
    assert prog, err
    assert second == f"{prog[1]}: `{prog[1]} -h` shows the usage"
    assert names(folder) == ["link", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == CHECKPOINT


# ---- bad input: 1, one line, nothing left --------------------------------------------------------
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["encode", "missing", "-o", "m"], "missing: No such file or directory"),
        (["decode", "missing", "-o", "m"], "missing: No such file or directory"),
        (["verify", "missing"], "missing: No such file or directory"),
        (["info", "missing"], "missing: No such file or directory"),
        (
            ["encode", "empty_directory", "-o", "m"],
            "bad_source: there is no .safetensors file in 'empty_directory'",
        ),
        (["decode", "empty_directory", "-o", "m"], "bad_magic: there is neither "),
        (["verify", "empty_directory"], "bad_magic: there is neither "),
        (["info", "empty_directory"], "bad_magic: there is neither "),
        (
            ["encode", "hub.safetensors", "-o", "m"],
            "bad_source: in 'hub.safetensors': the file is in hub form already",
        ),
        (
            ["encode", "--form", "hub", "hub.safetensors", "-o", "m"],
            "bad_source: in 'hub.safetensors': the file is in hub form already",
        ),
        (["encode", "--form", "hub", "missing", "-o", "m"], "missing: No such file or directory"),
        (["decode", "hub.safetensors", "-o", "m", "--max-nbytes", "100"], "resource_limit: "),
        (["verify", "hub.safetensors", "--max-nbytes", "100"], "resource_limit: "),
        (["encode", "model.safetensors", "-o", "no/such/m"], "no/such: there is no such directory"),
        (
            ["encode", "model.safetensors", "-o", "model.safetensors/m"],
            "model.safetensors: there is no such directory",
        ),
        (["decode", "model.safetensors", "-o", "m"], "bad_magic: "),
        (["verify", "model.safetensors", "--json"], "bad_magic: "),
        (["info", "model.safetensors", "--json"], "bad_magic: "),
        (
            ["encode", "coded", "-o", "m"],
            "bad_source: in 'coded': not a safetensors file but a .wcodec file: "
            "wcodec decode restores",
        ),
        (
            ["encode", "empty", "-o", "m"],
            "bad_source: in 'empty': not a safetensors file but an empty file",
        ),
        (["decode", "empty", "-o", "m"], "(truncated|bad_magic): "),
        (["decode", "coded", "-o", "m", "--max-nbytes", "100"], "resource_limit: "),
        (["verify", "coded", "--max-nbytes", "100"], "resource_limit: "),
        (["--backend", "nonsense", "verify", "coded"], "backend_unavailable: "),
        (["verify", "coded", "--backend", "no_such_package:Class"], "backend_unavailable: "),
        (["backends", "--backend", "math:pi"], "backend_unavailable: "),
        (["demo", "--backend", "nonsense"], "backend_unavailable: "),
        (["bench", "missing"], "missing: No such file or directory"),
        (["bench", "coded"], "bad_source: "),
        (["bench", "model.safetensors", "--backend", "nonsense"], "backend_unavailable: "),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else "",
)
def test_bad_input(folder: Path, args: list[str], message: str) -> None:
    call("encode", "model.safetensors", "-o", "coded", "-q")
    call("encode", "model.safetensors", "-o", "hub.safetensors", "--form", "hub", "-q")
    (folder / "empty").touch()
    (folder / "empty_directory").mkdir()
    status, out, err = call(*args)
    assert (status, out) == (1, "")
    assert_one_line_of_error(err, message)
    assert names(folder) == [
        "coded",
        "empty",
        "empty_directory",
        "hub.safetensors",
        "model.safetensors",
    ]


def refused(folder: Path, data: bytes, label: object) -> str:
    """`decode` a bad file in this process: exit 1, one line, no output and nothing else.
    Returns the error's code.
    """
    (folder / "bad").write_bytes(data)
    before = names(folder)
    status, out, err = call("decode", "bad", "-o", "out", "--backend", "reference")
    assert (status, out) == (1, ""), label
    assert_one_line_of_error(err, r"[a-z_]+: ")
    assert names(folder) == before, label
    return err.split(": ")[2]


def small_file(folder: Path) -> bytes:
    """A coded file with every kind of part: streams, tile modes, patches, raw bytes, constants,
    a source header, metadata.
    """
    rng = np.random.default_rng(1)
    tiles = rng.integers(0, 200, (32, 64)).astype(np.uint8)
    tiles[:, 32:] = np.arange(32)[:, None] * 5 + rng.integers(0, 3, (32, 32))
    bf16 = make_array(BY_NAME["bfloat16"], (12, 64), "gaussian")
    bf16[3, 3] = 1e30
    tensors = [
        ("tiles", "U8", [32, 64], tiles.tobytes()),
        ("w", "BF16", [12, 64], bits(bf16)),
        ("zeros", "F32", [2, 2], bytes(16)),
        ("noise", "I32", [2], bits(make_array(BY_NAME["int32"], (2,)))),
    ]
    (folder / "small").write_bytes(safetensors_bytes(tensors, {"format": "pt"}))
    options = wcodec.EncodeOptions(segment=(32, 64), tile=(32, 32), min_saving=0)
    encode_file(folder / "small", folder / "small.wcodec", options, load_backend("reference"))
    return (folder / "small.wcodec").read_bytes()


def test_the_small_file_holds_what_the_sweeps_are_to_break(folder: Path) -> None:
    small_file(folder)
    report = json.loads(call("info", "small.wcodec", "--json")[1])
    assert report["stored_nbytes"] < 5000
    assert report["n_tables"] >= 1
    assert report["metadata_keys"] == ["format"]
    assert report["source"] == "safetensors"
    assert set(report["coders"]) == {"raw", "constant", "rans"}
    assert report["layouts"].keys() >= {"bytes", "pairs"}
    assert report["n_patches"] > 0
    assert "per_tile" in report["predictions"]
    assert call("decode", "small.wcodec", "-o", "back")[0] == 0
    assert (folder / "back").read_bytes() == (folder / "small").read_bytes()


@pytest.mark.parametrize("step", [10, exhaustive(1)])
def test_a_flipped_bit_anywhere_is_refused(folder: Path, step: int) -> None:
    """In header and footer in any byte; elsewhere in each `step`.
    All bits of some files: the suite's sweeps.
    """
    data = small_file(folder)
    codes = set()
    for at in sorted({*range(64), *range(0, len(data), step), *range(len(data) - 64, len(data))}):
        bad = bytearray(data)
        bad[at] ^= 1 << (at * 5 + at // 8) % 8  # a bit of each byte, now this one, now that
        codes.add(refused(folder, bytes(bad), at))
    assert codes == {"bad_magic", "bad_checksum"}


@pytest.mark.parametrize("step", [10, exhaustive(1)])
def test_a_cut_at_any_length_is_refused(folder: Path, step: int) -> None:
    data = small_file(folder)
    lengths = {*range(100), *range(100, len(data), step), *range(len(data) - 100, len(data))}
    assert {refused(folder, data[:n], n) for n in lengths} == {"truncated"}
    refused(folder, data + b"x", "a byte more")
    refused(folder, data + data, "twice")


@pytest.mark.parametrize("step", [7, exhaustive(3)])
def test_sizes_in_the_index_that_lie_are_refused(folder: Path, step: int) -> None:
    """Eight bytes anywhere in the index made huge, with checksums that fit. (All single bytes:
    test_container.)
    """
    data = small_file(folder)
    foot = len(data) - 64
    (index_offset,) = struct.unpack_from("<Q", data, foot)
    data_nbytes, n_tensors = struct.unpack_from("<QI", data, foot + 32)
    raw = data[index_offset:foot]
    if data[foot + 44]:
        raw = zlib.decompress(raw)
    n_taken = 0
    for at in range(0, len(raw) - 8, step):
        for value in (b"\xff" * 8, struct.pack("<Q", 1 << 40)):
            lying = raw[:at] + value + raw[at + 8 :]
            if lying == raw:
                continue
            (folder / "bad").write_bytes(
                data[:index_offset] + seal_index(lying, index_offset, data_nbytes, n_tensors)
            )
            status, _, err = call("decode", "bad", "-o", "out", "--backend", "reference", "-q")
            if status == 0:
                (folder / "out").unlink()
                # what no decoder can know better: a name, a metadata text, the source header
                n_taken += 1
            else:
                assert status == 1
                assert_one_line_of_error(err, r"[a-z_]+: ")
            assert "out" not in names(folder)
    assert n_taken < len(raw) / step


def test_fields_of_the_footer_that_lie_are_refused(folder: Path) -> None:
    data = small_file(folder)
    foot = len(data) - 64
    for at in (0, 8, 16, 24, 32):
        (old,) = struct.unpack_from("<Q", data, foot + at)
        for value in (0, 1, old - 1, old + 1, 1 << 40, 1 << 63, (1 << 64) - 1):
            bad = bytearray(data)
            struct.pack_into("<Q", bad, foot + at, value)
            struct.pack_into("<I", bad, foot + 52, zlib.crc32(bad[foot : foot + 52]))
            refused(folder, bytes(bad), (at, value))


@pytest.mark.parametrize(
    "in_process", [{"decode": "reference", "verify": "numba", "info": "numba"}, exhaustive({})]
)
def test_a_bad_file(folder: Path, in_process: dict[str, str]) -> None:
    """By each command as a process of its own, but with one of the backends in this one."""
    call("encode", "model.safetensors", "-o", "coded", "-q")
    data = bytearray((folder / "coded").read_bytes())
    with wcodec.open("coded") as f:
        start = f.record("w8").payload_offset
    data[start + 20] ^= 1
    (folder / "coded").write_bytes(data)
    (folder / "out").write_bytes(b"old")
    for name, args in product(
        BACKENDS,
        (["decode", "coded", "-f", "-o", "out"], ["verify", "coded"], ["info", "coded", "--json"]),
    ):
        status, out, err = (call if in_process.get(args[0]) == name else run)(
            "--backend", name, *args
        )
        assert (status, out) == (1, "")
        assert_one_line_of_error(err, "bad_checksum: in 'coded': ")
        assert f"(tensor 'w8', offset {start})" in err
    assert (folder / "out").read_bytes() == b"old"
    assert names(folder) == ["coded", "model.safetensors", "out"]


def test_an_error_stays_one_line_whatever_the_name(folder: Path) -> None:
    (folder / "bad").write_bytes(safetensors_bytes([("a\nb\x1b[31m", "F32", [3], b"xy")]))
    status, _, err = call("encode", "bad", "-o", "m")
    assert status == 1
    assert_one_line_of_error(err, "bad_source: ")
    assert "\x1b" not in err


def test_a_directory_that_cannot_be_written(folder: Path) -> None:
    before = names(folder)
    # where not even root can make a file
    status, out, err = call("encode", "model.safetensors", "-o", "/proc/self/m")
    assert (status, out) == (1, "")
    assert_one_line_of_error(err, ".*proc")
    assert names(folder) == before


def test_a_disk_that_is_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("encode", "model.safetensors", "-o", "coded", "-q")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=1, free=1))
    status, _, err = call("decode", "coded", "-o", "out")
    assert status == 1
    assert_one_line_of_error(err, "resource_limit: ")
    limit = resource.RLIMIT_FSIZE
    for args in (["encode", "model.safetensors", "-o", "out"], ["repack", "coded", "-o", "out"]):
        status, _, err = run(*args, preexec_fn=lambda: resource.setrlimit(limit, (9000, 9000)))
        assert status == 1
        assert_one_line_of_error(err, "out: File too large")
    assert names(folder) == ["coded", "model.safetensors"]


def test_too_little_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("wcodec.directories.encoding.encode_file", fail)
    status, _, err = call("encode", "model.safetensors", "-o", "m")
    assert status == 1
    assert_one_line_of_error(err, "resource_limit: ")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interrupted_command_leaves_nothing(
    folder: Path, number: signal.Signals, status: int
) -> None:
    data = np.random.default_rng(2).standard_normal(1_000_000).astype(np.float16).tobytes() * 30
    (folder / "large").write_bytes(safetensors_bytes([("w", "F16", [30_000, 1000], data)]))
    before = names(folder)
    command = [*WCODEC, "--backend", "reference", "encode", "large", "-o", "m"]
    # a background job of a shell has it ignored
    heeded = partial(signal.signal, number, signal.SIG_DFL)
    p = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heeded)
    deadline = time.monotonic() + 60
    while names(folder) == before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(names(folder)) == len(before) + 1, "the temporary file"
    p.send_signal(number)
    _, err = p.communicate(timeout=60)
    assert p.returncode == status
    assert "Traceback" not in err
    assert names(folder) == before


def test_a_signal_that_is_ignored_stays_so(folder: Path) -> None:
    """As by nohup."""
    script = """
import os, signal, sys
from wcodec.cli import main, measure
measure.demo = lambda args: os.kill(os.getpid(), signal.SIGHUP) or 7
signal.signal(signal.SIGHUP, signal.SIG_IGN)
sys.argv[1:] = ["demo"]
sys.exit(main())
"""
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode
        == 7
    )


@pytest.mark.parametrize("has_tqdm", [False, True])
def test_progress_on_a_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, has_tqdm: bool
) -> None:
    """Of work that takes long: here each file does.
    With tqdm its bar, without it a line that is written over.
    """

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    if not has_tqdm:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr("wcodec.cli.common.QUIET_S", 0)
    monkeypatch.setattr("wcodec.cli.common.EVERY_S", 0)
    for args in (
        ["encode", "model.safetensors", "-o", "m"],
        ["verify", "m"],
        ["decode", "m", "-o", "back"],
        ["repack", "m", "-o", "n"],
    ):
        shown = Terminal()
        with contextlib.redirect_stderr(shown):
            assert cli.main(args) == 0
        text = shown.getvalue()
        assert re.search(
            r"\r +\d+%\|.*B/s\]"
            if has_tqdm
            else r"\r\d+ %, [\d.]+ kB of 90\.\d kB, [\d.]+ .?B/s, \d+ s left",
            text,
        ), args
        *_, last, nothing = text.split("\r")
        assert (last.strip(), nothing) == ("", ""), "the line is wiped"
    assert call("encode", "model.safetensors", "-f", "-o", "m")[2] == "", "nothing in a pipe"
