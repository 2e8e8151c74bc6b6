"""The CUDA backend on the emulator: the conformance suite and corrupted segments, with sanitizers,
without races, in other orders.

A sample of the suite is checked always, all of it by `make test-all`.

What only a GPU can show (its memory model, PTX,
speed) is in ``tests/cuda/test_gpu.py`` and `make gpu-check`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from cuda_emulator import run_sanitized
from paths import PYTHONPATH, TOOLS
from sampling import exhaustive

from wcodec import conformance
from wcodec.backends import load_backend
from wcodec.backends.cuda.runtime import LINEARS, SOURCES

BACKEND = "cuda_emulator.backend:EmulatedCuda"


def sanitized(args: list[str], how: str) -> str:
    """What a command prints; it must end well, and the sanitizers must be silent."""
    done = run_sanitized(
        args, timeout=1800, env={"WCODEC_EMULATOR": f"sanitize {how}", "PYTHONPATH": PYTHONPATH}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert not re.search("Sanitizer|runtime error", done.stderr), done.stderr[-6000:]
    return done.stdout


SUITE = ["-m", "wcodec", "conformance", "--backend", BACKEND]
SAMPLE = ["-m", "conformance_sample", BACKEND]
LAUNCHED = {
    kernel
    for source, kernels in SOURCES.items()
    if source not in ("operand", *LINEARS)
    for kernel in kernels
}


def races(args: list[str]) -> str:
    """What a command prints, for which every access of memory is compared with those before it that
    no barrier orders, in any order.
    """
    env = {
        **os.environ,
        "WCODEC_EMULATOR": "races shuffled 5",
        "PYTHONPATH": PYTHONPATH,
    }
    done = subprocess.run(
        [sys.executable, *args], env=env, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


def check_all_passed(out: str) -> None:
    last = out.splitlines()[-1]
    found = re.fullmatch(r"(\d+) passed, 0 failed, 0 not run", last)
    assert found, last
    assert int(found[1]) >= 1000


#: kernels that only duties launch; `test_cuda_sparse.py` looks for races in them
OF_DUTIES = {"count_changes", "list_changes"}


def check_sample(out: str, least: int, launched: set[str] = LAUNCHED) -> None:
    """Nothing failed, so many checks passed at least,
    and every kernel ran that the suite launches.
    """
    found = json.loads(out)
    assert found["failed"] == []
    assert found["passed"] >= least
    assert set(found["launched"]) == launched


@pytest.mark.exhaustive
def test_suite_but_for_spoilt_files() -> None:
    report = conformance.run(load_backend(BACKEND), sweeps=False)
    assert [str(o) for o in report.failed] == []
    assert report.totals["passed"] >= 1300


def test_sample_with_sanitizers() -> None:
    check_sample(sanitized(SAMPLE, ""), 500)


@pytest.mark.exhaustive
def test_sample_without_races() -> None:
    """Of what is accepted, and of damaged payloads:
    a file that is refused launches no kernel, or one of those.
    """
    out = races([*SAMPLE, "accept/", "kernels/", "encode/", "payload/"])
    check_sample(out, 200, LAUNCHED - OF_DUTIES)


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_whole_suite_with_sanitizers() -> None:
    check_all_passed(sanitized(SUITE, ""))


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_whole_suite_without_races() -> None:
    check_all_passed(races(SUITE))


ORDERS = ["forward", "reverse", "shuffled 3"]
IN_FULL = [exhaustive((6700, seed, how)) for seed, how in enumerate(ORDERS, 1)]


@pytest.mark.parametrize(
    ("n", "seed", "how"), [(700, 4, "shuffled 4"), exhaustive((2000, 4, "shuffled 4")), *IN_FULL]
)
def test_corrupted_segments(n: int, seed: int, how: str) -> None:
    """Amid memory that ends where the buffers do; 20,000 in full."""
    tool = str(TOOLS / "fuzz" / "fuzz_segments.py")
    out = sanitized(
        [tool, "--small", "--segments", str(n), "--seed", str(seed), "--backend", BACKEND], how
    )
    assert int(out.split()[0]) >= n
