"""Writers of chains that are killed, at any moment: the manifest names what is whole."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import PYTHONPATH, TESTS
from runs import same, steps

import wcodec
from wcodec.deltas.stores import Folder
from wcodec.errors import EncodeError


def kill_once(run: Path, seed: int, after_s: float) -> None:
    """Start a writer, and kill it so long after it has begun."""
    env = {**os.environ, "PYTHONPATH": PYTHONPATH, "WCODEC_THREADS": "1"}
    command = [sys.executable, str(TESTS / "deltas" / "writer.py"), str(run), str(seed)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(after_s)
        writer.kill()
        assert writer.wait() == -9


def kill_often(run: Path, n: int, seed: int) -> None:
    """Kill writers of one chain, each of which goes on where the one before was killed."""
    rng, states, before = random.Random(seed), steps(12), 0
    for i in range(n):
        kill_once(run, i, rng.uniform(0, 0.15))
        chain = wcodec.Chain(run)
        versions = chain.versions()
        assert versions[-1].version > before
        before = versions[-1].version
        for v in versions:
            assert same(chain.load(v.version), states[int(v.metadata["state"])])
    named = {v.file for v in chain.versions(retired=True)} | {"chain.json"}
    left = {p.name for p in run.iterdir()} - named
    for name in left:
        os.utime(run / name, (0, 0))
    assert left <= set(chain.prune(keep_last=1).files)
    assert {p.name for p in run.iterdir()} <= named
    assert len(chain.verify()) == 1


def test_writers_that_are_killed_at_some_moments(tmp_path: Path) -> None:
    kill_often(tmp_path / "run", 10, seed=0)


@pytest.mark.exhaustive
def test_writers_that_are_killed_at_100_moments(tmp_path: Path) -> None:
    kill_often(tmp_path / "run", 100, seed=1)


def test_a_crash_between_file_and_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, states = tmp_path / "run", steps(4)
    chain = wcodec.Chain(run)
    chain.append(states[0])

    def crash(*_: object) -> None:
        raise OSError("the power is gone")

    with monkeypatch.context() as m:
        m.setattr(Folder, "replace", crash)
        with pytest.raises(OSError, match="the power is gone"):
            chain.append(states[1])
    assert len(list(run.iterdir())) == 3
    assert [v.version for v in chain.versions()] == [1]
    assert chain.append(states[2]) == 2, "the same writer"
    assert wcodec.Chain(run).append(states[3]) == 3, "another one"
    for number, state in ((1, states[0]), (2, states[2]), (3, states[3])):
        assert same(chain.load(number), state)
    assert len(list(run.iterdir())) == 5
    assert chain.prune(keep_last=3) == ([], []), "the orphan is young"


def test_a_crash_after_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fails when the manifest has its name already: the version is there."""
    states = steps(3)
    chain, replace = wcodec.Chain(tmp_path / "run"), Folder.replace
    chain.append(states[0])

    def fail_late(self: Folder, name: str, data: bytes) -> None:
        replace(self, name, data)
        raise OSError("the disk fails")

    with monkeypatch.context() as m:
        m.setattr(Folder, "replace", fail_late)
        with pytest.raises(OSError, match="the disk fails"):
            chain.append(states[1])
    assert same(chain.load(2), states[1])
    with pytest.raises(EncodeError, match="changed"):
        chain.append(states[2])
    assert wcodec.Chain(tmp_path / "run").append(states[2]) == 3
