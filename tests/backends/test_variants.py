"""The numba backend as other CPUs run it: numba is told of a lesser one,
in a process of its own.
"""

from __future__ import annotations

import json
import platform
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sampling import exhaustive
from variants import ALL_VARIANTS, check_variant, host_has

from wcodec.backends import load_backend
from wcodec.reference.checksums import crc32, crc32_combine

#: in `make test`, with the sample; the others have the whole suite in `make test-all`
ALWAYS = ("native registers", "plain", "avx2")


@pytest.mark.parametrize("variant", [v if v in ALWAYS else exhaustive(v) for v in ALL_VARIANTS])
def test_every_variant_passes_a_sample_of_the_suite(variant: str) -> None:
    found = json.loads(check_variant(variant, "conformance_sample", "numba"))
    assert found["variant"] == name_of(variant)
    assert found["failed"] == []
    assert found["passed"] >= 500


@pytest.mark.exhaustive
@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_every_variant_passes_the_suite(variant: str) -> None:
    out = check_variant(variant, "wcodec", "conformance", "--backend", "numba")
    assert f"variant {name_of(variant)}," in out
    assert out.splitlines()[-1].endswith("passed, 0 failed, 0 not run")


def native_variant() -> str:
    """What this CPU has."""
    return (
        "avx512"
        if all(map(host_has, ("avx512f", "avx512bw", "avx512vl", "pclmul")))
        else "avx2"
        if host_has("avx2") and host_has("pclmul")
        else "neon"
        if platform.machine() in ("aarch64", "arm64")
        else "plain"
    )


def name_of(variant: str) -> str:
    """What the backend calls a variant."""
    name = variant.split()[0]
    return native_variant() if name == "native" else name


def test_the_variant_suits_this_cpu() -> None:
    assert load_backend("numba").info()["variant"] == native_variant()


# Sizes on both sides of a block of every variant (64 to 256 bytes), of two blocks (the first that
# are folded), of eight bytes (the tables), and of a thread's share.
SIZES = [
    *range(18),
    63,
    64,
    65,
    127,
    128,
    129,
    255,
    256,
    257,
    511,
    512,
    513,
    519,
    1000,
    4097,
    300_001,
]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_crc32_is_that_of_zlib(threads: int) -> None:
    backend = load_backend("numba", threads)
    data = np.random.default_rng(1).integers(0, 256, 300_008, dtype=np.uint8)
    for n in SIZES:
        for start in (0, 1, 0xCBF43926, 0xFFFFFFFF):
            piece: Any = data[3 : 3 + n]
            assert backend.crc32(piece, start) == crc32(piece, start), (n, start)


def test_checksums_of_pieces_of_all_sizes() -> None:
    backend = load_backend("numba")
    data = np.random.default_rng(2).integers(0, 256, sum(SIZES), dtype=np.uint8)
    offsets = np.concatenate([[0], np.cumsum(SIZES)]).astype(np.int64)
    got = backend.checksums(data, offsets)
    assert got.tolist() == [crc32(data[a:b]) for a, b in pairwise(offsets)]


def test_the_known_value() -> None:
    assert load_backend("numba").crc32(np.frombuffer(b"123456789", np.uint8)) == 0xCBF43926


@pytest.mark.parametrize("n", [0, 1, 5, 1000])
def test_crc32_of_parts(n: int) -> None:
    data = np.random.default_rng(3).integers(0, 256, 1000 + n, dtype=np.uint8)
    assert crc32_combine(crc32(data[:1000]), crc32(data[1000:]), n) == crc32(data)
