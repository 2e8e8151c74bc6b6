"""`import wcodec` brings in nothing that only backends or integrations need; `benchmarks/bench_import.py` says how long it takes."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("numba", "llvmlite", "cupy", "torch", "tqdm", "onnx", "safetensors", "hypothesis")


def test_nothing_heavy_is_imported() -> None:
    script = f"import sys, wcodec; print([m for m in {HEAVY} if m in sys.modules])"
    for code in (script, script.replace("wcodec", "wcodec.cli", 1)):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"
