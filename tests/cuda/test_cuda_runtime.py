"""The runtime of GPUs, without one: what runs is what is audited and kept on disk, streams and
memory of other libraries.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kernel_usage import compile_with_usage
from test_cuda_compile import code_of

from wcodec.backends.cuda import cubins
from wcodec.backends.cuda.compiler import compile_cubin
from wcodec.backends.cuda.cupy_runtime import CupyRuntime
from wcodec.backends.cuda.runtime import SOURCES, read_source
from wcodec.errors import BackendUnavailable

SOURCE = "difference"  #: the smallest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "wcodec" / "cuda"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Architectures, one for each time that something is compiled."""
    times = list[int]()

    def compile_one(text: str, arch: int) -> bytes:
        times.append(arch)
        return compile_cubin(text, arch)

    monkeypatch.setattr(cubins, "compile_cubin", compile_one)
    return times


def runtime_of(capability: int, cupy: Any) -> Any:
    """A runtime without a GPU."""
    runtime: Any = CupyRuntime.__new__(CupyRuntime)
    runtime.cupy, runtime.device = cupy, 0
    runtime.properties = {"major": capability // 10, "minor": capability % 10}
    runtime._functions = {}
    runtime._modules = {}
    runtime._lock = threading.Lock()
    runtime._pid = os.getpid()
    runtime._streams, runtime._cubins = {}, cubins.Cubins(capability)
    return runtime


def test_what_runs_is_what_is_audited(folder: Path) -> None:
    """The code that tests/cuda/test_cuda_compile.py and benchmarks/gpu/sass.py look at;
    so with their options, and no others.
    """
    loaded = list[bytes]()

    class Module:
        def load(self, cubin: bytes) -> None:
            loaded.append(cubin)

        def get_function(self, name: str) -> str:
            return f"function {name}"

    cuda = SimpleNamespace(function=SimpleNamespace(Module=Module), Device=lambda _: nullcontext())
    runtime = runtime_of(90, SimpleNamespace(cuda=cuda))
    assert [runtime.function(k) for k in ("subtract_base", "add_base", "add_base")] == [
        "function subtract_base",
        *["function add_base"] * 2,
    ]
    assert loaded == [compile_cubin(read_source(SOURCE), 90)]
    # whose option has ptxas talk
    assert code_of(loaded[0]) == code_of(compile_with_usage(read_source(SOURCE), 90)[0])


def test_compiled_once(folder: Path, compiled: list[int]) -> None:
    code = cubins.cubin_of(SOURCE, 90)
    assert cubins.cubin_of(SOURCE, 90) == code
    assert cubins.cubin_of(SOURCE, 80) != code
    assert compiled == [90, 80]
    done = list(cubins.compile_all([SOURCE, "context"], 90, n_threads=2))
    assert {(c.source, c.is_new) for c in done} == {(SOURCE, False), ("context", True)}
    assert compiled == [90, 80, 90]
    assert len(list(folder.iterdir())) == 3


def test_what_is_used_together_is_compiled_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the same time, each once; and what NVRTC does not take is an error of its own source
    alone.
    """
    together, asked = threading.Barrier(2, timeout=60), list[str]()

    def cubin_of(source: str, arch: int) -> bytes:
        asked.append(source)
        if source in ("one", "two"):
            together.wait()
        if source == "wrong":
            raise BackendUnavailable("NVRTC: a log")
        return f"{source} {arch}".encode()

    monkeypatch.setattr(cubins, "TOGETHER", {"one": ("two",), "three": ("one", "wrong")})
    monkeypatch.setattr(cubins, "cubin_of", cubin_of)
    some = cubins.Cubins(90)
    found = [some[name] for name in ("one", "two", "one", "three", "four")]
    assert found == [b"one 90", b"two 90", b"one 90", b"three 90", b"four 90"]
    with pytest.raises(BackendUnavailable, match="NVRTC: a log"):
        some["wrong"]
    assert sorted(asked) == ["four", "one", "three", "two", "wrong"]


def test_what_is_together_is_there() -> None:
    assert set(cubins.TOGETHER) | {
        name for names in cubins.TOGETHER.values() for name in names
    } <= set(SOURCES)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: b"",
        lambda d: d[:10],
        lambda d: d[:-1],
        lambda d: d[:-9] + bytes([d[-9] ^ 1]) + d[-8:],
    ],
)
def test_damaged_code_is_not_run(folder: Path, compiled: list[int], damage: Any) -> None:
    code = cubins.cubin_of(SOURCE, 90)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert cubins.cubin_of(SOURCE, 90) == code
    assert path.read_bytes() == whole
    assert compiled == [90, 90]


def test_a_directory_where_the_file_would_be(
    folder: Path, compiled: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    code = cubins.cubin_of(SOURCE, 90)
    (path,) = folder.iterdir()
    path.unlink()
    path.mkdir()
    with caplog.at_level(logging.WARNING, "wcodec"):
        assert cubins.cubin_of(SOURCE, 90) == code
    assert compiled == [90, 90]
    assert len(caplog.messages) == 1


def test_no_place_to_keep_it(
    folder: Path, compiled: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    folder.parent.parent.mkdir(exist_ok=True)
    folder.parent.write_bytes(b"a file where the folder would be")
    with caplog.at_level(logging.WARNING, "wcodec"):
        assert cubins.cubin_of(SOURCE, 90) == cubins.cubin_of(SOURCE, 90)
    assert compiled == [90, 90]
    assert len(caplog.messages) == 1
    assert str(folder) in caplog.messages[0]


@pytest.mark.parametrize(
    ("capability", "arch"), [(75, 75), (87, 87), (89, 89), (90, 90), (101, 100), (121, 121)]
)
def test_architectures(capability: int, arch: int) -> None:
    assert cubins.architecture_for(capability) == arch


def test_a_gpu_that_nvrtc_does_not_know() -> None:
    with pytest.raises(BackendUnavailable, match=r"capabilities 75, .*this GPU has 990"):
        cubins.architecture_for(990)


def test_streams_of_others_give_no_warning() -> None:
    """CuPy 14 warns of its class for them at each use."""
    cupy = pytest.importorskip("cupy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert runtime_of(90, cupy).external_stream(1234).ptr == 1234
        assert runtime_of(90, cupy).external_stream(0).ptr == 0


def test_streams_of_others_before_cupy_14() -> None:
    cuda = SimpleNamespace(Stream=object, ExternalStream=lambda handle, device: (handle, device))
    runtime = runtime_of(90, SimpleNamespace(cuda=cuda))
    assert runtime.external_stream(7) == (7, 0)
    assert [runtime.external_stream(handle)[0] for handle in range(200)] == list(range(200))
    assert runtime.external_stream(199) is runtime.external_stream(199)
    assert len(runtime._streams) <= 64


# ---- memory that PyTorch keeps -------------------------------------------------------------------
class OutOfMemoryError(MemoryError):
    pass


class Full:
    """CuPy of a GPU whose memory PyTorch's cache holds, and PyTorch."""

    def __init__(self, initialized: bool, enough: bool = True) -> None:
        self.held, self.enough = True, enough
        self.cuda = SimpleNamespace(
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            Device=lambda _: nullcontext(), is_initialized=lambda: initialized,
            empty_cache=self.empty_cache,
        )  # fmt: skip

    def empty_cache(self) -> None:
        self.held = not self.enough

    def empty(self, n: int, dtype: Any) -> Any:
        if self.held:
            raise OutOfMemoryError
        return np.empty(n, dtype)


@pytest.mark.parametrize(("initialized", "enough"), [(True, True), (True, False), (False, True)])
def test_memory_that_pytorch_keeps(
    monkeypatch: pytest.MonkeyPatch, initialized: bool, enough: bool
) -> None:
    full = Full(initialized, enough)
    monkeypatch.setitem(sys.modules, "torch", full)
    if initialized and enough:
        assert runtime_of(90, full).empty(5).nbytes == 5
        return
    with pytest.raises(OutOfMemoryError):
        runtime_of(90, full).empty(5)


def test_no_memory_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(OutOfMemoryError):
        runtime_of(90, Full(True)).empty(5)
