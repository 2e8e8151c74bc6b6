"""Kernels from CUDA C++ by NVRTC, which needs CuPy, and neither a GPU nor a driver."""

from __future__ import annotations

import struct
from typing import Any, Final

from wcodec.errors import BackendUnavailable

#: Compute capabilities that the kernels are built and tested for, without the point.
ARCHITECTURES: Final = (75, 80, 86, 89, 90, 100, 120)
#: 177: headers have functions that not every source uses.
OPTIONS: Final = ("--std=c++17", "-diag-suppress=177")


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
