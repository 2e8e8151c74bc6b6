"""What ``make fuzz FUZZ_ARGS=--blind`` tries is drawn again from its number, and finds what it is
there to find.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import blind
import campaign
import numpy as np
import pytest
import targets
import test_fuzz
from bulk import draw_bulk, draw_pool
from cuda_emulator.backend import EmulatedCuda
from fuzz_segments import Fault
from paths import TOOLS
from plans import aligned
from sampling import exhaustive
from targets import TARGETS, Broken, Target, corpus_of

from wcodec.backends import Backend, load_backend
from wcodec.backends.numba.backend import NumbaBackend
from wcodec.backends.protocol import Status
from wcodec.cuda.loader import DeviceTensor

SPANS_CASE = 3 * blind.POOL_CASES  #: the first of the segments in a single row


def digests(backend: str, numbers: range) -> tuple[dict[int, int], Counter[str]]:
    """What a decoder makes of some cases, and their statuses."""
    told, done = dict[int, int](), Counter[str]()
    target = replace(TARGETS["segments_numba"], backend=backend)
    run = blind.run_segments(target, 5, False, told.__setitem__)
    for number in numbers:
        done += run(number)
    return told, done


# ---- segments ------------------------------------------------------------------------------------
@pytest.mark.parametrize("first", [exhaustive(0), SPANS_CASE])
def test_decoders_agree_on_the_same_segments(first: int) -> None:
    told, done = digests("numba", range(first, first + 2))
    assert told == digests("reference", range(first, first + 2))[0]
    assert len(set(told.values())) == 2
    assert done.total() > 1000
    assert min(done["OK"], done["BAD_STREAM"]) > 200


def test_statuses_of_all_kinds_come_up() -> None:
    """Grids and rows, in twelve pools."""
    done = sum((digests("numba", range(i, i + 1))[1] for i in range(0, 96, 8)), Counter())
    assert all(done[s.name] > 20 for s in Status), done


def test_rows_are_for_backends_that_take_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated, rows = "cuda_emulator.backend:EmulatedCuda", range(SPANS_CASE, SPANS_CASE + 1)
    assert digests(emulated, rows) == digests("reference", rows)
    monkeypatch.setattr(EmulatedCuda, "takes_spans", False)
    assert digests(emulated, rows) == ({}, Counter())


def test_segments_that_are_left_alone_are_as_in_the_pool() -> None:
    pool = draw_pool(np.random.default_rng(1), False)
    bulk = draw_bulk(np.random.default_rng(2), pool)
    assert bulk.plan.geometry.n_segments > 10 * pool.plan.geometry.n_segments
    assert 0.05 < (~bulk.touched).mean() < 0.5
    out = np.empty_like(bulk.expected)
    status = load_backend("numba").decode_segments(bulk.plan, aligned(bulk.payload), out)
    assert not status[~bulk.touched].any()
    assert status[bulk.touched].any()
    for k in np.flatnonzero(~bulk.touched).tolist():
        where = bulk.plan.geometry.rectangle(k)
        assert np.array_equal(out[where], bulk.expected[where])


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (test_fuzz.WritesBehind, "canaries"),
        (test_fuzz.SpoilsNeighbours, "left alone"),
        (test_fuzz.LikesAllPatches, "in the reference"),
    ],
)
def test_planted_faults_of_kernels_are_found(faulty: type[Backend], message: str) -> None:
    with pytest.raises(Fault, match=message):
        digests(f"test_fuzz:{faulty.__name__}", range(24))


def test_a_crash_leaves_the_number_of_its_case(tmp_path: Path) -> None:
    """In its process; the command that is named runs that case again."""
    code = (
        "import sys, blind\n"
        "from dataclasses import replace\n"
        "of = blind.TARGETS['segments_numba']\n"
        "blind.TARGETS['segments_numba'] = replace(of, backend='test_fuzz:ReadsBehind')\n"
        "blind.main()\n"
    )
    folder = f"--folder={tmp_path}"
    run = subprocess.run(
        [sys.executable, "-c", code, "segments_numba", "--first=7", folder],
        env={**os.environ, "PYTHONPATH": str(TOOLS / "fuzz")}, capture_output=True, check=False,
    )  # fmt: skip
    assert run.returncode == -signal.SIGSEGV, run.stderr
    # the first in which buffers end where memory does, and checksums are made by themselves
    assert campaign.case_of(tmp_path / "segments_numba") == 9


def test_decoders_that_differ_are_named(tmp_path: Path) -> None:
    for name, text in (("a", "1 0 aa\n1 1 bb\n"), ("b", "1 1 bc\n2 0 ab\n"), ("c", "1 0 aa\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "digests").write_text(text)
    assert campaign.differing(["a", "c", "d"], tmp_path) == []
    assert campaign.differing(["a", "b", "c"], tmp_path) == ["--seed=1 --case=1: b and a differ"]


# ---- files ---------------------------------------------------------------------------------------
def inputs(
    monkeypatch: pytest.MonkeyPatch, name: str, seed: int
) -> tuple[list[bytes], list[bytes]]:
    """Those of the first cases that are checked in a hurry, and in full."""
    quick, whole = list[bytes](), list[bytes]()
    target = Target(whole.append, TARGETS[name].mutate, quick=lambda data: quick.append(data) or "")
    monkeypatch.setitem(TARGETS, "fake", replace(target, corpus=name))
    run = blind.run_files("fake", seed, False, Path())
    quick.clear()  # of the corpus
    assert sum((run(number) for number in range(48)), Counter()).total() == 48
    return quick, whole


@pytest.mark.parametrize("name", ["index", "hub"])
def test_a_seed_gives_the_same_files(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    quick, whole = inputs(monkeypatch, name, 1)
    assert (quick, whole) == inputs(monkeypatch, name, 1)
    assert quick != inputs(monkeypatch, name, 2)[0]
    assert (len(quick), len(whole)) == (45, 3)
    assert len({*quick, *whole}) > 40


def test_a_file_that_is_found_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def check(data: bytes) -> None:
        raise Broken("planted")

    monkeypatch.setitem(TARGETS, "fake", replace(TARGETS["weight_map"], check=check, corpus="hub"))
    with pytest.raises(Broken, match="planted"):
        blind.run_files("fake", 4, False, tmp_path)(9)
    (left,) = tmp_path.iterdir()
    assert left.name == "found-4-9"
    with pytest.raises(Broken, match="planted"):
        campaign.replay("fake", [left])


@pytest.mark.parametrize("name", [n for n in TARGETS if TARGETS[n].quick])
def test_what_is_checked_in_a_hurry_is_accepted_or_refused(name: str) -> None:
    run = blind.run_files(name, 1, False, Path())
    done = sum((run(number) for number in range(1, 50)), Counter())
    assert done["accepted"] > 0
    assert len(set(done) - {"accepted", "checked"}) > 1


def test_the_command_counts_inputs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--blind", "--inputs=100", "--folder", str(tmp_path), "--seed=3"]
    names = ["weight_map", "segments_numba"]
    assert campaign.main([*arguments, "--targets", *names]) == 0
    out = capfd.readouterr().out
    assert " 100 " in next(line for line in out.splitlines() if line.startswith("weight_map"))
    assert out.endswith("2 targets without a find, 0 with one\n")
    assert (tmp_path / "segments_numba" / "digests").read_text().startswith("3 0 ")


# ---- targets that are above the kernels ----------------------------------------------------------
class AddsOne(NumbaBackend):
    """Adds another base."""

    def add_base(self, coded: Any, base: Any, difference: Any) -> int:
        return super().add_base(coded, base + 1, difference)


def check_corpus(name: str) -> None:
    """Check the corpus of a target."""
    for path in sorted(corpus_of(name).iterdir()):
        TARGETS[name].check(path.read_bytes())


def test_planted_faults_of_differences_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = load_backend("reference")
    monkeypatch.setattr(targets, "backends", lambda: (reference, AddsOne(1)))
    with pytest.raises(Broken):
        check_corpus("base")


def test_planted_faults_of_the_loader_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = DeviceTensor.numpy
    monkeypatch.setattr(DeviceTensor, "numpy", lambda self: numpy(self)[..., ::-1])
    with pytest.raises(Broken, match="the loader gives something else"):
        check_corpus("loader")


def test_planted_faults_of_products_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "linear", lambda *_: None)
    with pytest.raises(Broken, match="a product with columns of the unit matrix"):
        check_corpus("linear")
