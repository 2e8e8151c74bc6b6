"""Memory of models whose weights stay compressed: a process of its own holds and runs one of 1 GB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_files import reads_proc

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memory") / "model.wcodec"


def run(checkpoint: Path, mode: str) -> dict[str, Any]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    command = [sys.executable, str(Path(__file__).with_name("torch_memory.py")), str(checkpoint), mode]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@reads_proc
def test_peak_of_a_model_of_1_gb(checkpoint: Path) -> None:
    """From a file to the result of a forward pass: weights, scratch, plans, and what reading took."""
    found = run(checkpoint, "load")
    assert found["dense"] > 1e9
    assert found["n"] == 60
    assert found["held"] < 0.665 * found["dense"]
    assert found["peak"] < 750_000_000 * found["dense"] / 1e9


@reads_proc
def test_peak_while_a_model_is_compressed(checkpoint: Path) -> None:
    """Layer by layer: never more than one dense layer beside the compressed ones, and what encoding takes."""
    found = run(checkpoint, "compress")
    assert found["held"] < 0.665 * found["dense"]
    assert found["peak"] < 0.9 * found["dense"]
