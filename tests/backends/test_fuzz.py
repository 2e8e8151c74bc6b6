"""A share of the fuzz that ``python tools/fuzz/fuzz_segments.py`` does in full,
and that it finds what it is there to find.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import fuzz_segments
import numpy as np
import pytest
from corruptions import corrupted, draw_case
from paths import TOOLS
from sampling import exhaustive
from variants import VARIANTS, skip_unless_it_runs

from wcodec.backends.numba import jobs
from wcodec.backends.numba.backend import NumbaBackend
from wcodec.backends.numba.ir import VARIANT
from wcodec.backends.numba.kinds import KINDS, WITH_CONTEXTS
from wcodec.backends.protocol import SegmentPlan, Status
from wcodec.reference.planes import DTYPES, Layout
from wcodec.reference.prediction import MODES, PER_TILE
from wcodec.reference.rans import GROUP
from wcodec.reference.segments import Coder
from wcodec.reference.tables import MAX_PROB_BITS, MIN_PROB_BITS

Result = tuple[int, str, str]  #: status, stdout, stderr


@pytest.fixture
def fuzz(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run the command: here, for its work is done in a process of its own anyway."""

    def run(*arguments: str) -> Result:
        status = fuzz_segments.main([*arguments])
        return status, *capfd.readouterr()

    return run


@pytest.mark.parametrize("share", [100, exhaustive(1500)])
@pytest.mark.parametrize("variant", ["native", *VARIANTS])
def test_corrupt_segments_touch_nothing_outside(
    fuzz: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, variant: str, share: int
) -> None:
    skip_unless_it_runs(variant)
    for name, value in VARIANTS.get(variant, {}).items():
        monkeypatch.setenv(name, value)
    status, out, err = fuzz("--segments", str(share), "--seed", "15", "--json")
    assert status == 0, err[-2000:]
    result = json.loads(out)
    assert result["variant"] == (VARIANT if variant == "native" else variant)
    assert result["segments"] >= share
    assert result["compared"] > share // 30
    assert all(result["statuses"][s.name] > share // 200 for s in Status), result


@pytest.mark.parametrize("n", [60, exhaustive(300)])
def test_a_seed_gives_the_same_segments(fuzz: Callable[..., Result], n: int) -> None:
    first, second, other = (
        fuzz("--segments", str(n), "--seed", seed, "--json", "--backend", "reference")
        for seed in ("7", "7", "8")
    )
    statuses = [json.loads(out)["statuses"] for _, out, _ in (first, second, other)]
    assert statuses[0] == statuses[1] != statuses[2]


# ---- what is drawn -------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=[200, exhaustive(600)])
def plans(request: pytest.FixtureRequest) -> list[SegmentPlan]:
    """Corrupt plans, as the fuzz draws them."""
    out = []
    for i in range(request.param):
        rng = np.random.default_rng([2, i])
        plan, payload, _ = corrupted(rng, draw_case(rng))
        assert payload.size == plan.offsets[-1]
        out.append(plan)
    return out


def values(plans: list[SegmentPlan], column: str) -> set[int]:
    """All values of a column."""
    return {int(v) for plan in plans for v in getattr(plan.segments, column).reshape(-1)}


def test_plans_of_all_kinds_are_drawn(plans: list[SegmentPlan]) -> None:
    assert {plan.dtype for plan in plans} == set(DTYPES)
    assert values(plans, "layout") == set(Layout)
    assert values(plans, "coder") == set(Coder)
    assert values(plans, "prediction") == {*MODES, PER_TILE}
    assert max(values(plans, "n_patches")) > 1000
    assert min(values(plans, "n_units") - {0}) == 8
    bits = {
        plan.tables[int(i)].prob_bits
        for plan in plans
        for i in plan.segments.table[plan.segments.coder == Coder.RANS]
    }
    assert bits == set(range(MIN_PROB_BITS, MAX_PROB_BITS + 1))
    counts = np.concatenate([plan.geometry.tile_counts() for plan in plans])
    assert (counts == 1).any()
    assert counts.max() >= 4


@pytest.mark.skipif(VARIANT == "plain", reason="plain loops have no kernels for common kinds")
def test_all_kernels_are_reached(plans: list[SegmentPlan]) -> None:
    """One or two segments at a time, of several groups; into the output, and by way of scratch."""
    seen, shapes = set[int](), set[tuple[bool, bool]]()
    for plan in plans:
        kinds = jobs.Jobs.of(plan).kinds
        seen.update(kinds.tolist())
        heights, widths = plan.geometry.sizes()
        for kind, width in zip(
            kinds[heights * widths >= 4 * GROUP], widths[heights * widths >= 4 * GROUP], strict=True
        ):
            if kind > 0:
                shapes.add(
                    (
                        int(width) % (2 * GROUP if KINDS[kind - 1].pairs else GROUP) == 0,
                        kinds.size > 1,
                    )
                )
    assert seen == {WITH_CONTEXTS, *range(len(KINDS) + 1)}
    assert shapes == {(True, True), (True, False), (False, True), (False, False)}


# ---- planted faults: `fuzz_segments` imports these from here -------------------------------------
class WritesBehind(NumbaBackend):
    """Writes a word after the output."""

    def decode_segments(self, plan: SegmentPlan, payload: Any, out: Any) -> Any:
        result = super().decode_segments(plan, payload, out)
        ctypes.memset(out.ctypes.data + out.nbytes, 0, out.itemsize)
        return result


class WritesBefore(NumbaBackend):
    """Writes a byte before the output."""

    def decode_segments(self, plan: SegmentPlan, payload: Any, out: Any) -> Any:
        ctypes.memset(out.ctypes.data - 1, 0, 1)
        return super().decode_segments(plan, payload, out)


class WritesPayload(NumbaBackend):
    """Writes to its input."""

    def decode_segments(self, plan: SegmentPlan, payload: Any, out: Any) -> Any:
        ctypes.memset(payload.ctypes.data, 0, 1)
        return super().decode_segments(plan, payload, out)


class ReadsBehind(NumbaBackend):
    """Reads a byte after the payload."""

    def decode_segments(self, plan: SegmentPlan, payload: Any, out: Any) -> Any:
        ctypes.string_at(payload.ctypes.data + payload.nbytes, 1)
        return super().decode_segments(plan, payload, out)


class ReadsBefore(NumbaBackend):
    """Reads a byte before the payload."""

    def decode_segments(self, plan: SegmentPlan, payload: Any, out: Any) -> Any:
        ctypes.string_at(payload.ctypes.data - 1, 1)
        return super().decode_segments(plan, payload, out)


class ScratchTooSmall(NumbaBackend):
    """Takes a group too little for each plane: kernels go on beyond the scratch."""

    def decode_segments(self, plan: SegmentPlan, payload: Any, out: Any) -> Any:
        room = jobs.plane_room
        with mock.patch.object(jobs, "plane_room", lambda geometry: room(geometry) - 2 * GROUP):
            return super().decode_segments(plan, payload, out)


class SpoilsNeighbours(NumbaBackend):
    """A bad segment changes a word of a good one."""

    def decode_segments(self, plan: SegmentPlan, payload: Any, out: Any) -> Any:
        result = super().decode_segments(plan, payload, out)
        status = getattr(result, "status", result)
        if status.any() and not status.all():
            out[plan.geometry.rectangle(int(np.argmin(status)))][-1, -1] ^= 1
        return result


class LikesAllPatches(NumbaBackend):
    """Says OK where patches are wrong."""

    def decode_segments(self, plan: SegmentPlan, payload: Any, out: Any) -> Any:
        result = super().decode_segments(plan, payload, out)
        status = getattr(result, "status", result)
        return np.where(status == Status.BAD_PATCH, np.uint8(Status.OK), status)


class Raises(NumbaBackend):
    """Raises on a bad payload."""

    def decode_segments(self, plan: SegmentPlan, payload: Any, out: Any) -> Any:
        result = super().decode_segments(plan, payload, out)
        if getattr(result, "status", result).any():
            raise ValueError("a bad payload")
        return result


FAULTS = {
    WritesBehind: "canaries beside a buffer were written to",
    WritesBefore: "fuzz: SIGSEGV in case ",
    WritesPayload: "fuzz: SIGSEGV in case ",
    ReadsBehind: "fuzz: SIGSEGV in case ",
    ReadsBefore: "fuzz: SIGSEGV in case ",
    ScratchTooSmall: "",  # canaries or SIGSEGV: it depends on which buffer comes first
    SpoilsNeighbours: "has status 0 or other words",
    LikesAllPatches: "has status 0, and 2 in the reference",
    Raises: "ValueError: a bad payload",
}


@pytest.mark.parametrize("backend", FAULTS, ids=lambda b: b.__name__)
@pytest.mark.parametrize("seed", ["15", exhaustive("1")])
def test_planted_faults_are_found(
    fuzz: Callable[..., Result], backend: type[NumbaBackend], seed: str
) -> None:
    """In one of the first cases, with seed 15."""
    status, out, err = fuzz(
        "--segments", "5000", "--backend", f"test_fuzz:{backend.__name__}", "--seed", seed
    )
    assert status == 1, out + err
    assert FAULTS[backend] in err
    again = err.splitlines()[-1].partition("again: python tools/fuzz/fuzz_segments.py ")[2]
    assert f"--backend test_fuzz:{backend.__name__} --seed {seed} --case " in again


def test_a_fault_is_found_again(fuzz: Callable[..., Result]) -> None:
    """By the command that the report names."""
    _, _, first = fuzz(
        "--segments", "5000", "--backend", "test_fuzz:LikesAllPatches", "--seed", "15"
    )
    again = (
        first.splitlines()[-1].partition("again: python tools/fuzz/fuzz_segments.py ")[2].split()
    )
    assert int(again[-1]) > 0  # the first case would be the same again without any number
    second = subprocess.run(
        [sys.executable, TOOLS / "fuzz" / "fuzz_segments.py", *again],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (second.returncode, second.stderr) == (1, first)
