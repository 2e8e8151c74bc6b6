"""Kernels from CUDA C++ by NVRTC, which needs CuPy, and neither a GPU nor a driver."""

from __future__ import annotations

import re
import struct
from typing import Any, Final, NamedTuple

from wcodec.errors import BackendUnavailable

#: Compute capabilities that the kernels are built and tested for, without the point.
ARCHITECTURES: Final = (75, 80, 86, 89, 90, 100, 120)
#: 177: headers have functions that not every source uses.
OPTIONS: Final = ("--std=c++17", "-diag-suppress=177")

_ENTRY: Final = re.compile(r"Compiling entry function '(\w+)'")
_FRAME: Final = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)
_USED: Final = re.compile(r"Used (\d+) registers")
_SHARED: Final = re.compile(r"(\d+) bytes smem")


class Usage(NamedTuple):
    """What a kernel takes: registers of a thread, bytes of a thread's stack and of registers spilt
    to it, bytes shared by a block.
    """

    registers: int
    stack_nbytes: int
    spill_stores_nbytes: int
    spill_loads_nbytes: int
    shared_nbytes: int


def load_nvrtc() -> Any:
    """NVRTC, as CuPy has it.

    Raises
    ------
    BackendUnavailable
        In one line, what is missing and what to install.
    """
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except (ImportError, RuntimeError, OSError) as e:
        raise BackendUnavailable(
            f"backend 'cuda' needs CuPy and NVRTC to compile its kernels ({e}); "
            "pip install 'wcodec[cuda]'"
        ) from e
    return nvrtc


def _whole(cubin: bytes) -> bytes:
    """An ELF file to its end: CuPy takes the last byte off, a zero, as if it ended a text."""
    tables = struct.unpack_from("<QQ", cubin, 32)  # of segments, and of sections
    sizes = struct.unpack_from("<HHHH", cubin, 54)
    return cubin.ljust(max(tables[0] + sizes[0] * sizes[1], tables[1] + sizes[2] * sizes[3]), b"\0")


def compile_cubin(source: str, arch: int, *options: str) -> bytes:
    """Machine code for one architecture.

    Parameters
    ----------
    source
        CUDA C++ without includes, as of `runtime.read_source`.
    arch
        Compute capability without the point: 90.
    options
        More options of NVRTC.

    Raises
    ------
    BackendUnavailable
        There is no NVRTC, or it does not take the source or the architecture; with its log.
    """
    return compile_with_log(source, arch, *options)[0]


def compile_with_log(source: str, arch: int, *options: str) -> tuple[bytes, str]:
    """`compile_cubin`, and what NVRTC had to say."""
    nvrtc = load_nvrtc()
    program = nvrtc.createProgram(source, "wcodec.cu", (), ())
    try:
        nvrtc.compileProgram(program, (f"--gpu-architecture=sm_{arch}", *OPTIONS, *options))
        return _whole(nvrtc.getCUBIN(program)), _log(nvrtc, program)
    except nvrtc.NVRTCError as e:
        raise BackendUnavailable(
            f"NVRTC {nvrtc.getVersion()} can't compile for sm_{arch} ({e}):\n{_log(nvrtc, program)}"
        ) from e
    finally:
        nvrtc.destroyProgram(program)


def _log(nvrtc: Any, program: Any) -> str:
    log: str = nvrtc.getProgramLog(program)
    return log.rstrip("\0\n")


def compile_with_usage(source: str, arch: int) -> tuple[bytes, dict[str, Usage], str]:
    """`compile_cubin`, what each kernel takes, and warnings."""
    cubin, log = compile_with_log(source, arch, "--ptxas-options=--verbose")
    usage, rest, kernel = dict[str, Usage](), [], ""
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            kernel = entry[1]
            usage[kernel] = Usage(0, 0, 0, 0, 0)
        elif frame := _FRAME.search(line):  # of the kernel, and of functions that it calls
            stack, stores, loads = (
                a + int(b) for a, b in zip(usage[kernel][1:4], frame.groups(), strict=True)
            )
            usage[kernel] = usage[kernel]._replace(
                stack_nbytes=stack, spill_stores_nbytes=stores, spill_loads_nbytes=loads
            )
        elif used := _USED.search(line):
            shared = _SHARED.search(line)
            usage[kernel] = usage[kernel]._replace(
                registers=int(used[1]), shared_nbytes=int(shared[1]) if shared else 0
            )
        elif not line.startswith("ptxas info"):
            rest.append(line)
    return cubin, usage, "\n".join(rest).strip()
