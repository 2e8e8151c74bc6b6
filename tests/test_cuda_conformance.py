"""The CUDA backend on the emulator: the whole conformance suite and corrupted segments, with sanitizers and in other orders.

What only a GPU can show (its memory model, PTX, speed) is in ``tests/test_gpu.py`` and `make gpu-check`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulator import run_sanitized

ROOT = Path(__file__).parent.parent
BACKEND = "cuda_emulator.backend:EmulatedCuda"


def sanitized(args: list[str], how: str) -> str:
    """What a command prints; it must end well, and the sanitizers must be silent."""
    paths = f"{ROOT}:{ROOT / 'tests'}"
    done = run_sanitized(args, timeout=590, env={"WCODEC_EMULATOR": f"sanitize {how}", "PYTHONPATH": paths})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert not re.search("Sanitizer|runtime error", done.stderr), done.stderr[-6000:]
    return done.stdout


SUITE = ["-m", "wcodec", "conformance", "--backend", BACKEND]


def check_all_passed(out: str) -> None:
    last = out.splitlines()[-1]
    found = re.fullmatch(r"(\d+) passed, 0 failed, 0 not run", last)
    assert found, last
    assert int(found[1]) >= 1000


def test_whole_suite_with_sanitizers() -> None:
    check_all_passed(sanitized(SUITE, ""))


def test_whole_suite_without_races() -> None:
    """Every access of memory is compared with those before it that no barrier orders; threads run in any order."""
    env = {**os.environ, "WCODEC_EMULATOR": "races shuffled 5", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, *SUITE], env=env, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    check_all_passed(done.stdout)


@pytest.mark.parametrize(("seed", "how"), [(1, "forward"), (2, "reverse"), (3, "shuffled 3")])
def test_corrupted_segments(seed: int, how: str) -> None:
    """20,000 in all, amid memory that ends where the buffers do."""
    tool = str(ROOT / "tools" / "fuzz_segments.py")
    out = sanitized([tool, "--small", "--segments", "6700", "--seed", str(seed), "--backend", BACKEND], how)
    assert int(out.split()[0]) >= 6700
