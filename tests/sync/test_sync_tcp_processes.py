"""Weights over TCP between processes, which are killed or end without closing anything."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from links import LONG, arrays_of, free_url, torch_of
from runs import copies, fixed_steps, same

from wcodec.sync import open_receiver, tcp_receiver

WRITER = Path(__file__).parent / "sync_writer.py"
N = 20  #: versions of a run


def begun(url: str, seed: int) -> subprocess.Popen[bytes]:
    """A writer in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(WRITER), url, str(seed), str(N)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


@pytest.mark.parametrize("is_torch", [False, True])
def test_a_writer_that_is_killed_and_begun_again(
    is_torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each writer numbers from 1, and has other weights: those of its seed."""
    monkeypatch.setattr(tcp_receiver, "RETRY_S", (0.01, 0.1))
    rng, url, runs = random.Random(0), free_url(), [fixed_steps(N, seed) for seed in range(4)]
    live: Any = (torch_of if is_torch else copies)(runs[0][9])
    with open_receiver(url, live) as receiver:
        for seed, states in enumerate(runs):
            last = N if seed == len(runs) - 1 else rng.randrange(1, N)
            with begun(url, seed) as writer:
                seen = False
                while not seen:
                    version = receiver.update(LONG)
                    assert version is not None
                    now = states[version - 1]
                    if seed > 0 and not same(arrays_of(live), now):  # of the writer before
                        now = runs[seed - 1][version - 1]
                    assert same(arrays_of(live), now)
                    seen = now is states[version - 1] and version >= last
                writer.kill()


SCRIPT = """
import numpy as np
from wcodec.sync import open_receiver, open_sender
sender = open_sender("tcp://127.0.0.1:0")
receiver = open_receiver(sender.url)
lost = open_receiver("{lost}")
for i in range(3):
    sender.send({{"a": np.arange(1000) + i}})
    assert receiver.wait_for(i + 1, 100) == i + 1
{end}
"""


@pytest.mark.parametrize(("end", "code"), [("", 0), ("raise SystemExit(3)", 3)])
def test_a_process_that_closes_nothing_ends(end: str, code: int) -> None:
    script = SCRIPT.format(lost=free_url(), end=end)
    done = subprocess.run(
        [sys.executable, "-c", script], timeout=LONG, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")
