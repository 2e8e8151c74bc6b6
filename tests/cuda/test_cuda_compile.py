"""Every kernel compiles for every architecture, without a GPU, and takes no more than it should."""

from __future__ import annotations

import functools
import itertools
import struct
from typing import Any, NamedTuple

import pytest
from kernel_usage import Usage, compile_with_usage
from sampling import exhaustive

from wcodec.backends.cuda.compiler import ARCHITECTURES, compile_cubin
from wcodec.backends.cuda.runtime import KERNELS, LINEARS, SOURCES, read_source
from wcodec.errors import BackendUnavailable

MOST_REGISTERS = {"decode": 64}  #: for 32 warps on a multiprocessor
MOST_SHARED_NBYTES = 48 * 1024  #: of static shared memory


class Built(NamedTuple):
    """A source, compiled for one architecture."""

    cubin: bytes
    usage: dict[str, Usage]
    warnings: str


@functools.cache
def build(source: str, arch: int) -> Built:
    """A source for an architecture."""
    return Built(*compile_with_usage(read_source(source), arch))


def code_of(cubin: bytes) -> dict[str, int]:
    """Bytes of machine code of each kernel: the ELF file's sections ``.text.KERNEL``."""
    assert cubin[:5] == b"\x7fELF\x02"
    table, entry_nbytes, n, names = struct.unpack_from("<Q10xHHH", cubin, 40)
    assert table + entry_nbytes * n <= len(cubin)
    headers = [struct.unpack_from("<I20xQQ", cubin, table + entry_nbytes * i) for i in range(n)]
    text = cubin[headers[names][1] :][: headers[names][2]]
    sections = {
        text[name : text.index(b"\0", name)].decode(): nbytes for name, _, nbytes in headers
    }
    return {
        name.removeprefix(".text."): nbytes
        for name, nbytes in sections.items()
        if name.startswith(".text.")
    }


def test_every_source_is_named() -> None:
    assert {f.stem for f in KERNELS.glob("*.cu")} == set(SOURCES)


def targets() -> list[Any]:
    """All sources for all architectures; always each for one of them in turn,
    of products one for the usual one.
    """
    always = {
        source: ARCHITECTURES[-1 - i % len(ARCHITECTURES)]
        for i, source in enumerate(SOURCES)
        if source not in LINEARS
    }
    always["linear_e4m3_fp16"] = 90
    pairs = itertools.product(SOURCES, ARCHITECTURES)
    return [
        (source, arch) if always.get(source) == arch else exhaustive((source, arch))
        for source, arch in pairs
    ]


@pytest.mark.parametrize(("source", "arch"), targets())
def test_compiles(source: str, arch: int) -> None:
    cubin, usage, warnings = build(source, arch)
    assert set(usage) == set(SOURCES[source])
    code = code_of(cubin)
    assert set(code) == set(usage)
    assert all(nbytes > 0 for nbytes in code.values())
    assert warnings == ""
    for kernel, u in usage.items():
        assert u[1:4] == (0, 0, 0), f"{kernel} keeps values in memory: {u}"
        assert 0 < u.registers <= MOST_REGISTERS.get(source, 255), f"{kernel}: {u}"
        assert u.shared_nbytes <= MOST_SHARED_NBYTES, f"{kernel}: {u}"


@pytest.mark.exhaustive
def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    """Print registers a thread and shared memory a block, of each kernel but the many products."""
    sources = [source for source in SOURCES if source not in LINEARS[1:]]
    lines = [f"{'kernel':30} {'shared':>6}  registers on sm_90"]
    lines += [
        f"{k:30} {u.shared_nbytes:6}  {u.registers:4}"
        for source in sources
        for k, u in build(source, 90).usage.items()
    ]
    with capsys.disabled():
        print("", *lines, sep="\n")
    assert len(lines) == 1 + sum(len(SOURCES[source]) for source in sources)


# ---- the compiler
def test_what_a_kernel_takes_is_seen() -> None:
    """One that spills, needs a stack and shared memory, and one that shifts too far."""
    source = """
    extern "C" __global__ void __launch_bounds__(1024) greedy(float *a, int n) {
        __shared__ float shared[333];
        shared[n] = 1;
        float kept[128], indexed[16];
        for (int i = 0; i < 16; i++) indexed[i] = a[i * n];
        #pragma unroll
        for (int i = 0; i < 128; i++) kept[i] = a[i * n];
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 128; i++)
            a[3 * i * n] = kept[127 - i] + shared[i] + indexed[(n + i) & 15];
    }
    extern "C" __global__ void plain(int *a) { a[0] = 1 << 40; }
    """
    cubin, usage, warnings = compile_with_usage(source, 90)
    assert set(code_of(cubin)) == set(usage) == {"greedy", "plain"}
    greedy, plain = usage["greedy"], usage["plain"]
    assert greedy.registers == 64
    assert greedy.shared_nbytes == 4 * 333
    assert min(greedy.stack_nbytes, greedy.spill_stores_nbytes, greedy.spill_loads_nbytes) > 0
    assert plain[1:] == (0, 0, 0, 0)
    assert "shift count is too large" in warnings
    assert "spill" not in warnings


def test_functions_that_are_called_count() -> None:
    source = """
    __noinline__ __device__ int picks(int *a, int n) {
        int indexed[40];
        for (int i = 0; i < 40; i++) indexed[i] = a[i * n];
        return indexed[n];
    }
    extern "C" __global__ void calls(int *a, int n) { a[0] = picks(a, n) + picks(a + 1, n + 1); }
    """
    assert compile_with_usage(source, 90)[1]["calls"].stack_nbytes >= 160


def test_errors_have_the_log() -> None:
    with pytest.raises(BackendUnavailable, match=r"(?s)sm_90.*no_such_thing"):
        compile_cubin('extern "C" __global__ void k() { no_such_thing(); }', 90)
    with pytest.raises(BackendUnavailable, match="sm_12"):
        compile_cubin('extern "C" __global__ void k() {}', 12)


def test_the_file_is_whole() -> None:
    """CuPy takes a byte off its end."""
    cubin = compile_cubin('extern "C" __global__ void k(int *a) { *a = 1; }', 75)
    segments, entry_nbytes, n = struct.unpack_from("<Q14xHH", cubin, 32)
    assert segments + entry_nbytes * n <= len(cubin)
    assert set(code_of(cubin)) == {"k"}
