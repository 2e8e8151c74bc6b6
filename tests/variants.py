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
_AVX2 = VARIANTS["avx2"]["NUMBA_CPU_FEATURES"]
_AVX512 = {
    "NUMBA_CPU_NAME": "skylake-avx512",
    "NUMBA_CPU_FEATURES": f"{_AVX2},+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl",
}
_GATHER, _REGISTERS = (
    {"WCODEC_TABLE_LOOKUP": lookup, "WCODEC_LARGE_OUTPUTS": outputs}
    for lookup, outputs in (("gather", "streaming"), ("registers", "cached"))
)
#: this CPU and each lesser one, each with both ways to look up entries and to store words; also
#: CPUs between these: with a wider carry-less multiplication, or without one and byte tables
ALL_VARIANTS = {
    "native gather": _GATHER,
    "native registers": _REGISTERS,
    "plain": VARIANTS["plain"],
    "avx2": {**VARIANTS["avx2"], **_REGISTERS},
    "avx2 vpclmulqdq": {
        "NUMBA_CPU_NAME": "znver3",
        "NUMBA_CPU_FEATURES": f"{_AVX2},+vpclmulqdq",
        **_GATHER,
    },
    "avx512": {**_AVX512, **_GATHER},
    "avx512 registers": {**_AVX512, **_REGISTERS},
}


def host_has(feature: str) -> bool:
    """Whether this machine can run code for a variant at all."""
    import llvmlite.binding

    return bool(llvmlite.binding.get_host_cpu_features().get(feature, False))


def skip_unless_it_runs(variant: str) -> None:
    """Skip the test, if this machine cannot run code for a variant."""
    needed = ALL_VARIANTS.get(variant, {}).get("NUMBA_CPU_FEATURES", "")
    if variant == "native gather":
        needed = "+avx2"
    lacking = [f[1:] for f in needed.split(",") if f and not host_has(f[1:])]
    if lacking:
        pytest.skip(f"this CPU lacks {', '.join(lacking)}")


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
    return run_module(ALL_VARIANTS[variant], *args)


def check_tests(variant: str, names: str, marks: str, *files: str) -> None:
    """Tests of some files pass, as another CPU runs them."""
    check_variant(variant, "pytest", "-p", "no:cacheprovider", "-k", names, "-m", marks, *files)
