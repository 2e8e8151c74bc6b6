"""The numba backend's code for CPUs of the architecture aarch64, which an emulator runs."""

from __future__ import annotations

import json
import os

import pytest
from aarch64_emulator import TARGETS, environment, missing
from llvmlite import binding as llvm
from paths import TESTS, TOOLS
from sampling import exhaustive
from variants import run_module

from wcodec.backends.numba import ir

BACKEND = "aarch64_emulator.backend"
LINUX, APPLE = "aarch64-unknown-linux-gnu", "arm64-apple-darwin22.6.0"


@pytest.mark.parametrize(
    ("triple", "listed", "target"),
    [
        (LINUX, "+fp-armv8,+neon,+aes,+sha2,+crc,-sve", "neon"),
        (LINUX, "+fp-armv8,+neon,+crc,-aes", "neon-narrow"),
        (LINUX, "-aes,-sve", "neon-narrow"),  # as LLVM sees an emulated CPU
        (LINUX, "", "neon-narrow"),
        (APPLE, "", "neon-narrow"),
        ("x86_64-unknown-linux-gnu", "+sse2,+aes", "plain"),
        ("riscv64-unknown-linux-gnu", "+v", "plain"),
    ],
)
def test_the_target_suits_the_cpu(
    monkeypatch: pytest.MonkeyPatch, triple: str, listed: str, target: str
) -> None:
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        monkeypatch.delenv(name, raising=False)
    features = llvm.FeatureMap((f[1:], f[0] == "+") for f in listed.split(",") if f)
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: features)
    monkeypatch.setattr(llvm, "get_process_triple", lambda: triple)
    assert ir._choose_target() == target


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A target whose code can be run here."""
    if missing():
        pytest.skip(f"there is no {missing()}: see CONTRIBUTING.md")
    monkeypatch.setenv("PYTHONPATH", str(TOOLS), prepend=os.pathsep)
    return str(request.param)


def emulated(target: str, *args: str) -> str:
    """What a module prints that has the emulator run kernels."""
    return run_module(environment(target), *args)


@pytest.mark.parametrize("target", ["neon", exhaustive("neon-narrow")], indirect=True)
def test_a_sample_of_the_suite_passes(target: str) -> None:
    """The kernels by themselves."""
    kinds = "duty/", "kernels/"
    found = json.loads(emulated(target, "conformance_sample", f"{BACKEND}:NumbaBackend", *kinds))
    assert found["variant"] == "neon"
    assert found["failed"] == []
    assert found["passed"] >= 50


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_the_suite_passes(target: str) -> None:
    suite = "wcodec", "conformance", "--timeout", "3600"
    out = emulated(target, *suite, "--backend", f"{BACKEND}:NumbaBackend")
    assert "variant neon," in out
    assert out.splitlines()[-1].endswith("passed, 0 failed, 0 not run")


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_random_plans(target: str) -> None:
    files = [str(TESTS / "backends" / f"test_{name}.py") for name in ("backends_equal", "variants")]
    chosen = ["-k", "numba or crc32 or checksums", "-m", "not gpu"]
    out = emulated(target, "pytest", "-p", "no:cacheprovider", "-p", BACKEND, *chosen, *files)
    assert int(out.split(" passed")[0].split()[-1]) > 200
