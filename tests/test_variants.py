"""The numba backend as other CPUs run it: numba is told of a lesser one, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from wcodec.backends import load_backend
from wcodec.reference.checksums import crc32, crc32_combine

VARIANTS = {
    "avx2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+sse4.2,+popcnt,+avx,+avx2,+pclmul,+bmi,+bmi2,+lzcnt"},
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


def check_variant(variant: str, *args: str) -> str:
    """A module, run as another CPU runs it, ends well. Returns what it prints."""
    skip_unless_it_runs(variant)
    env = {**os.environ, **VARIANTS[variant]}
    run = subprocess.run([sys.executable, "-m", *args], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return run.stdout


def check_tests(variant: str, file: str, names: str) -> None:
    """Tests of a file pass, as another CPU runs them."""
    check_variant(variant, "pytest", "-p", "no:cacheprovider", "-k", names, file)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_passes_the_suite(variant: str) -> None:
    out = check_variant(variant, "wcodec", "conformance", "--backend", "numba")
    assert f"variant {variant}," in out
    assert out.splitlines()[-1].endswith("passed, 0 failed, 0 not run")


def test_the_variant_suits_this_cpu() -> None:
    expected = "avx512" if all(map(host_has, ("avx512f", "avx512bw", "avx512vl"))) else "avx2" if host_has("avx2") else "plain"
    assert load_backend("numba").info()["variant"] == expected


# Sizes on both sides of a block of every variant (64 to 256 bytes), of two blocks (the first that are folded), of eight bytes
# (the tables), and of a thread's share.
SIZES = [*range(18), 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 519, 1000, 4097, 300_001]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_crc32_is_that_of_zlib(threads: int) -> None:
    backend, data = load_backend("numba", threads), np.random.default_rng(1).integers(0, 256, 300_008, dtype=np.uint8)
    for n in SIZES:
        for start in (0, 1, 0xCBF43926, 0xFFFFFFFF):
            piece: Any = data[3 : 3 + n]
            assert backend.crc32(piece, start) == crc32(piece, start), (n, start)


def test_checksums_of_pieces_of_all_sizes() -> None:
    backend, data = load_backend("numba"), np.random.default_rng(2).integers(0, 256, sum(SIZES), dtype=np.uint8)
    offsets = np.concatenate([[0], np.cumsum(SIZES)]).astype(np.int64)
    got = backend.checksums(data, offsets)
    assert got.tolist() == [crc32(data[a:b]) for a, b in pairwise(offsets)]


def test_the_known_value() -> None:
    assert load_backend("numba").crc32(np.frombuffer(b"123456789", np.uint8)) == 0xCBF43926


@pytest.mark.parametrize("n", [0, 1, 5, 1000])
def test_crc32_of_parts(n: int) -> None:
    data = np.random.default_rng(3).integers(0, 256, 1000 + n, dtype=np.uint8)
    assert crc32_combine(crc32(data[:1000]), crc32(data[1000:]), n) == crc32(data)
