"""Shared libraries of kernels for the CPU, built by g++ once and kept in a folder."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
COMPILER = "g++"

COMMON = [
    "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing",
    "-Wall", "-Wunused-parameter", "-Werror", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized",
]  # fmt: skip
_ENGINE = ["-O3", "-fno-tree-loop-distribute-patterns", "-fno-builtin-memcpy"]

#: What is looked for while kernels run: flags for all files, and for the kernels. For races, the
#: calls that the compiler puts before each access for ThreadSanitizer come to races.cpp, which
#: names inlined functions: line tables alone (-g1) do not.
CHECKS = {
    "none": (["-g1"], ["-O2"]),
    "races": (["-g", "-DEMULATOR_RACES"], ["-O1", "-fsanitize=thread"]),
    # each place reports itself to coverage.cpp, for a fuzzer to be guided
    "coverage": (["-g1"], ["-O1", "-fsanitize-coverage=trace-pc"]),
    "sanitizers": (
        ["-g1", "-DEMULATOR_ADDRESS"],
        [
            "-O0",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=undefined",
            "-fno-omit-frame-pointer",
        ],
    ),
}


class EmulatorError(RuntimeError):
    """A kernel that can't be built, launched, or went wrong."""


def cache_folder() -> Path:
    """Where libraries are kept; nobody else can write there."""
    root = os.environ.get("XDG_CACHE_HOME")
    folder = (
        Path(root, "wcodec-emulator")
        if root
        else Path(tempfile.gettempdir(), f"wcodec-emulator-{os.getuid()}")
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise EmulatorError(f"{folder} belongs to someone else")
    return folder


@functools.cache
def _compiler_version() -> str:
    if shutil.which(COMPILER) is None:
        raise EmulatorError(f"the emulator needs {COMPILER}, which is not there")
    return subprocess.run(
        [COMPILER, "--version"], capture_output=True, text=True, check=True
    ).stdout


@functools.cache
def _digest(path: Path, changed_ns: int, nbytes: int) -> str:
    """Of a file's content, which is that of a time and size."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _content(path: Path) -> str:
    about = path.stat()
    return _digest(path, about.st_mtime_ns, about.st_size)


def make(name: str, inputs: list[Path], command: list[str]) -> Path:
    """Output of a command, which depends on nothing else than its text,
    the inputs and the compiler.
    """
    key = hashlib.sha256(
        repr(
            (command, _compiler_version(), [(p.name, _content(p)) for p in sorted(inputs)])
        ).encode()
    )
    target = cache_folder() / f"{key.hexdigest()[:32]}-{name}"
    if target.exists():
        return target
    handle, unfinished = tempfile.mkstemp(dir=target.parent, prefix="unfinished-")
    os.close(handle)
    try:
        done = subprocess.run(
            [COMPILER, *command, "-o", unfinished], capture_output=True, text=True
        )
        if done.returncode:
            raise EmulatorError(f"{name} can't be built:\n{done.stderr}")
        os.replace(unfinished, target)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return target


def build_library(source: Path, kernels: tuple[str, ...], headers: Path, check: str) -> Path:
    """Shared library with the kernels of one source.

    Parameters
    ----------
    headers
        Folder of the headers that the source includes, besides its own.
    check
        One of `CHECKS`.
    """
    if not source.exists():
        raise EmulatorError(f"there is no {source}")
    ours = [
        HERE / name
        for name in (
            "cuda_host.h",
            "cuda_host.cpp",
            "fibers.h",
            "races.cpp",
            "coverage.cpp",
            "kernels.cpp",
            "shared.ld",
        )
    ]
    define, instrument = CHECKS[check]
    entries = " ".join(f"ENTRY({kernel})" for kernel in kernels)
    objects = [
        make(f"{name}.o", ours, [*COMMON, *_ENGINE, *define, "-c", str(HERE / f"{name}.cpp")])
        for name in ("cuda_host", "races", *(["coverage"] if check == "coverage" else []))
    ]
    inputs = [*ours, source, *source.parent.glob("*.cuh"), *headers.glob("*.cuh"), *objects]
    compile_kernels = [
        *COMMON, *define, *instrument, "-fdata-sections", "-I", str(HERE), "-I", str(headers),
        f'-DKERNEL_SOURCE="{source}"', f"-DKERNEL_LIST={entries}", "-c", str(HERE / "kernels.cpp"),
    ]  # fmt: skip
    kernels_object = make(f"{source.stem}.o", inputs, compile_kernels)
    sanitizers = [flag for flag in instrument if flag.startswith("-fsanitize=address")]
    link = [
        "-shared",
        *sanitizers,
        *([] if sanitizers else ["-Wl,-z,defs"]),
        f"-Wl,-T,{HERE / 'shared.ld'}",
    ]
    return make(
        f"{source.stem}.so",
        [*inputs, kernels_object],
        [*link, str(kernels_object), *map(str, objects)],
    )
