"""What fresh engines generate, before another one takes the memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_llama import save

os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> list[list[list[int]]]:
    """What fresh engines generate with the weights of steps 0, 1 and 2."""
    room, found = tmp_path_factory.mktemp("fresh"), []
    script = Path(__file__).parent / "tiny_llama.py"
    for step in range(3):
        path, out = save(step, room / f"step-{step}"), room / f"{step}.json"
        subprocess.run([sys.executable, script, path, out], check=True)
        found.append(json.loads(out.read_text()))
    assert found[0] != found[1] != found[2] != found[0], "or nothing is shown"
    return found
