"""`wcodec warmup`: what it compiles is what the first call would wait for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sampling import exhaustive

from wcodec.backends.cuda import runtime
from wcodec.cli import main

#: Prints what a call compiles for a Gaussian array of a dtype.
CALL = """
import sys
import numpy as np
import wcodec
from wcodec.backends.numba import machine_code
from wcodec.reference.planes import DTYPES

compiled = machine_code._compiled
machine_code._compiled = lambda one: (print(one.name), compiled(one))[1]
(dtype,) = (d for d in DTYPES if d.name == sys.argv[1])
array = (np.random.default_rng(1).standard_normal((300, 700)) * 0.1).astype(dtype.numpy)
assert wcodec.decode(wcodec.encode(array)).tobytes() == array.tobytes()
"""


def test_each_dtype_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["warmup", "--backend", "reference", "--dtype", "int8", "bool", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["backend"] == "reference"
    assert [s["what"] for s in report["steps"]] == ["bool", "int8"]
    assert report["seconds"] >= sum(s["seconds"] for s in report["steps"]) > 0


@pytest.mark.parametrize("dtype", ["bfloat16", exhaustive("float32")])
def test_nothing_is_left_to_compile(dtype: str, tmp_path: Path) -> None:
    def run(*args: str) -> str:
        env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "WCODEC_BACKEND": "numba"}
        return subprocess.run(
            [sys.executable, *args], env=env, capture_output=True, text=True, check=True
        ).stdout

    assert run("-c", CALL, dtype), "with an empty cache, the call compiles"
    assert dtype in run("-m", "wcodec", "warmup", "--dtype", dtype)
    assert run("-c", CALL, dtype) == ""


def test_cuda_kernels_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        runtime, "SOURCES", {name: runtime.SOURCES[name] for name in ("difference", "context")}
    )
    assert main(["warmup", "--backend", "cuda", "--arch", "90"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split(" s  ")[1] for line in lines[:-1]) == [
        "context for sm_90",
        "difference for sm_90",
    ]
    assert lines[-1].endswith(" s  in all, for backend cuda")
    assert len(list((tmp_path / "wcodec" / "cuda").iterdir())) == 2
    monkeypatch.setenv("WCODEC_BACKEND", "cuda")
    assert main(["warmup", "--arch", "90", "--json"]) == 0
    assert all(
        s["what"].endswith("which was there") for s in json.loads(capsys.readouterr().out)["steps"]
    )


def test_what_cannot_be_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["warmup", "--backend", "cuda"]) == 1
    assert "name it: --arch 90" in capsys.readouterr().err
    assert main(["warmup", "--backend", "cuda", "--arch", "9"]) == 1
    assert "NVRTC compiles for compute capabilities" in capsys.readouterr().err
    for args in (
        ["--backend", "reference", "--arch", "90"],
        ["--backend", "cuda", "--dtype", "int8"],
        ["--dtype", "int99"],
    ):
        with pytest.raises(SystemExit) as left:
            main(["warmup", *args])
        assert left.value.code == 2
