"""`import wcodec` is quick, and brings in nothing that only backends or integrations need."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

HEAVY = ("numba", "llvmlite", "cupy", "torch", "tqdm", "onnx", "safetensors", "hypothesis")


def test_nothing_heavy_is_imported() -> None:
    script = f"import sys, wcodec; print([m for m in {HEAVY} if m in sys.modules])"
    for code in (script, script.replace("wcodec", "wcodec.cli", 1)):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def test_it_takes_less_than_150_ms_beyond_numpy() -> None:
    for code in ("import numpy", "import wcodec"):  # the first time reads from disk and writes bytecode
        seconds(code)
    pairs = [(seconds("import numpy"), seconds("import wcodec")) for _ in range(7)]
    without, with_wcodec = (statistics.median(times) for times in zip(*pairs, strict=True))
    assert with_wcodec - without < 0.15
