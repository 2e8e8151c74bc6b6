"""Weights by broadcasts of gloo: see sync_rank.py for what happens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_a_sender_and_two_receivers(tmp_path: Path) -> None:
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent / "deltas")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, HERE / "sync_rank.py", str(rank), "3", tmp_path],
            env=env, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(3)
    ]  # fmt: skip
    errors = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0], errors
