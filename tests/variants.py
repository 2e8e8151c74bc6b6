"""The numba backend on lesser CPUs: what it is told of each, and how to run something there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from paths import TESTS

VARIANTS = {
    "avx2": {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+sse4.2,+popcnt,+avx,+avx2,+pclmul,+bmi,+bmi2,+lzcnt",
    },
    "plain": {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2"},
}


def host_has(feature: str) -> bool:
    """Whether this machine can run code for a variant at all."""
    import llvmlite.binding

    return bool(llvmlite.binding.get_host_cpu_features().get(feature, False))


def skip_unless_it_runs(variant: str) -> None:
    """Skip the test, if this machine cannot run code for a variant."""
    if variant == "avx2" and not host_has("avx2"):
        pytest.skip("this CPU has no AVX2")


def run_module(env: dict[str, str], *args: str) -> str:
    """A module, run with such an environment, ends well. Returns what it prints."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, **env, "PYTHONPATH": os.pathsep.join(paths)}
    run = subprocess.run(
        [sys.executable, "-m", *args], env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return run.stdout


def check_variant(variant: str, *args: str) -> str:
    """A module, run as another CPU runs it, ends well. Returns what it prints."""
    skip_unless_it_runs(variant)
    return run_module(VARIANTS[variant], *args)


def check_tests(variant: str, names: str, marks: str, *files: str) -> None:
    """Tests of some files pass, as another CPU runs them."""
    check_variant(variant, "pytest", "-p", "no:cacheprovider", "-k", names, "-m", marks, *files)
