"""Runs the kernels of the CUDA backend on the CPU:
unchanged sources, compiled by g++, each CUDA thread a fiber.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.cuda.runtime import KERNELS, SOURCES, Mark, Runtime

from .build import COMPILER, EmulatorError, build_library

__all__ = ["CANARY", "ORDERS", "EmulatedRuntime", "EmulatorError", "run_sanitized"]

CANARY = 0xA5  #: what fresh device memory holds
ALIGNMENT = 256

#: Orders of lanes, warps and blocks, each with a seed.
#: A kernel without races gives the same in all.
ORDERS = [("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)]
_ORDER_NUMBERS = {"forward": 0, "reverse": 1, "shuffled": 2}

_libc = ctypes.CDLL(None)
_libc.free.argtypes = [ctypes.c_void_p]
_libc.posix_memalign.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]


def _allocate(nbytes: int) -> NDArray[np.uint8]:
    """Memory whose end is that of a block of the heap,
    so that AddressSanitizer sees what goes beyond it.
    """
    address = ctypes.c_void_p()
    if _libc.posix_memalign(ctypes.byref(address), ALIGNMENT, nbytes) != 0 or not address.value:
        raise MemoryError(f"no {nbytes} bytes")
    memory = (ctypes.c_uint8 * nbytes).from_address(address.value)
    weakref.finalize(memory, _libc.free, address.value)
    return np.ndarray(nbytes, np.uint8, memory)  # type: ignore[arg-type]


def check_dtype(host: NDArray[Any]) -> None:
    """Refuse what CuPy does: dtypes with fields,
    of which some versions take none and others only those that are aligned.
    """
    if host.dtype.kind not in "?biufc":
        raise EmulatorError(f"no device array has dtype {host.dtype}")


class _Library:
    """Kernels of one source, loaded."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._library = ctypes.CDLL(str(path))
        self._library.emulator_parameters.argtypes = [
            ctypes.c_char_p,
            ctypes.c_void_p,
            ctypes.c_uint32,
        ]
        self._library.emulator_launch.argtypes = [
            ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32,
            ctypes.c_uint64,
        ]  # fmt: skip
        self._library.emulator_launch.restype = ctypes.c_char_p
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._lock = threading.Lock()  # one launch at a time: the library's state is its own

    def sizes(self, kernel: str) -> tuple[int, ...]:
        """Sizes of a kernel's parameters, in bytes."""
        if kernel not in self._sizes:
            room = (ctypes.c_uint32 * 64)()
            n = self._library.emulator_parameters(kernel.encode(), room, len(room))
            self._sizes[kernel] = tuple(room[:n])
        return self._sizes[kernel]

    def launch(
        self, kernel: str, grid: int, block: int, values: Sequence[Any], order: int, seed: int
    ) -> None:
        """Run a kernel, whose arguments are ctypes values."""
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(v) for v in values])
        with self._lock:
            wrong = self._library.emulator_launch(
                kernel.encode(), grid, block, pointers, order, seed
            )
        if wrong is not None:
            raise EmulatorError(
                re.sub(r"<code \+(0x[0-9a-f]+)>", lambda m: self._line(m[1]), wrong.decode())
            )

    def _line(self, address: str) -> str:
        """Source line of an address of code."""
        found = subprocess.run(
            ["addr2line", "-e", self._path, address], capture_output=True, text=True
        )
        return os.path.basename(found.stdout.split()[0]) if found.returncode == 0 else address


_libraries: dict[Path, _Library] = {}
_libraries_lock = threading.Lock()


def _load(path: Path) -> _Library:
    with _libraries_lock:
        if path not in _libraries:
            _libraries[path] = _Library(path)
        return _libraries[path]


class _Mark:
    """A point in work that is done at once."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


class EmulatedRuntime(Runtime):
    """A device whose memory is the host's, and whose work is done at once.

    Parameters
    ----------
    sanitize
        Kernels are built with AddressSanitizer and UndefinedBehaviorSanitizer,
        in a process started by `run_sanitized`.
    races
        Each access is compared with those before: one that no barrier orders is an error.
    coverage
        Kernels count where they come by, in ``emulator_counters`` of each library.
    order, seed
        In which order lanes, warps and blocks run: "forward", "reverse", or "shuffled" by the seed,
        several blocks at a time.
    extra
        More sources: their path and their kernels, by a name.
    """

    #: kernels that any of them was asked to run, in this process
    launched: ClassVar[set[str]] = set()

    device = 0

    def __init__(
        self,
        sanitize: bool = False,
        order: str = "forward",
        seed: int = 0,
        extra: Mapping[str, tuple[Path, tuple[str, ...]]] | None = None,
        races: bool = False,
        coverage: bool = False,
    ) -> None:
        if sanitize + races + coverage > 1:
            raise EmulatorError("one check at a time: sanitize, races or coverage")
        if sanitize and not hasattr(_libc, "__asan_init"):
            raise EmulatorError("a sanitized runtime needs a process started by run_sanitized")
        self.races = races
        self._check = (
            "sanitizers" if sanitize else "races" if races else "coverage" if coverage else "none"
        )
        self._order, self._seed = order, seed
        sources = {
            name: (KERNELS / f"{name}.cu", kernels) for name, kernels in SOURCES.items()
        } | dict(extra or {})
        self._sources = {kernel: source for source in sources.values() for kernel in source[1]}
        self._by_kernel: dict[str, _Library] = {}

    @classmethod
    def sanitized(cls) -> EmulatedRuntime:
        """One with sanitizers, in an order that nothing may rely on."""
        return cls(sanitize=True, order="shuffled", seed=4)

    def info(self) -> dict[str, str]:
        return {
            "device": "emulated on the CPU",
            "memory": f"{self.free_nbytes() >> 20} MiB",
            "order": self._order,
        }

    def free_nbytes(self) -> int:
        return 1 << 30

    def empty(self, nbytes: int) -> NDArray[np.uint8]:
        memory = _allocate(nbytes)
        memory[:] = CANARY
        return memory

    def adopt(self, address: int, nbytes: int, owner: Any) -> NDArray[np.uint8]:
        memory = (ctypes.c_uint8 * nbytes).from_address(address)
        memory.owner = owner  # type: ignore[attr-defined]
        return np.frombuffer(memory, np.uint8)

    pinned = empty

    def upload(self, host: NDArray[Any]) -> NDArray[Any]:
        check_dtype(host)
        out: NDArray[Any] = _allocate(host.nbytes).view(host.dtype).reshape(host.shape)
        out[...] = host
        return out

    def download(self, device: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
        if out is None:
            return np.array(device)
        out[...] = device
        return out

    def copy_in(self, device: NDArray[Any], host: NDArray[np.uint8]) -> None:
        device[...] = host

    def copy_out(self, host: NDArray[np.uint8], device: NDArray[Any]) -> None:
        host[...] = device

    def copy_within(self, out: NDArray[Any], device: NDArray[Any]) -> None:
        out[...] = device

    def stream(self) -> Any:
        return object()

    def external_stream(self, handle: int) -> Any:
        return self.stream()

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        return nullcontext(stream)

    def mark(self) -> Mark:
        return _Mark()

    def wait_for(self, mark: Any) -> None:
        """Nothing to wait for."""

    def address(self, array: NDArray[Any]) -> int:
        return int(array.ctypes.data)

    def launch(self, kernel: str, grid: int, block: int, *args: Any) -> None:
        library = self._library_of(kernel)
        if not 1 <= grid < 1 << 31 or not 1 <= block <= 1024:
            raise EmulatorError(f"{kernel}: {grid} blocks of {block} threads can't be launched")
        self.launched.add(kernel)
        values = [self._argument(arg) for arg in args]
        sizes = library.sizes(kernel)
        if sizes != tuple(ctypes.sizeof(v) for v in values):
            raise EmulatorError(
                f"{kernel} takes parameters of {sizes} bytes, not "
                f"{tuple(ctypes.sizeof(v) for v in values)}"
            )
        library.launch(kernel, grid, block, values, _ORDER_NUMBERS[self._order], self._seed)

    def _library_of(self, kernel: str) -> _Library:
        if kernel not in self._by_kernel:
            if kernel not in self._sources:
                raise EmulatorError(f"there is no kernel {kernel}")
            source, kernels = self._sources[kernel]
            library = _load(build_library(source, kernels, KERNELS, self._check))
            self._by_kernel.update(dict.fromkeys(kernels, library))
        return self._by_kernel[kernel]

    def _argument(self, arg: Any) -> Any:
        if isinstance(arg, np.ndarray):
            return ctypes.c_uint64(self.address(arg))
        if isinstance(arg, np.uint32):
            return ctypes.c_uint32(int(arg))
        if isinstance(arg, np.uint64):
            return ctypes.c_uint64(int(arg))
        raise EmulatorError(
            f"an argument is a device array, np.uint32 or np.uint64, not {type(arg).__name__}"
        )


def run_sanitized(
    args: Sequence[str], timeout: float = 600, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in a process in which kernels can be built with sanitizers;
    what they say is in its stderr.
    """
    libraries = []
    for name in ("libasan.so", "libubsan.so"):
        path = subprocess.run(
            [COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        if not os.path.isabs(path):
            raise EmulatorError(f"{COMPILER} has no {name}")
        libraries.append(path)
    settings = {
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": (
            "detect_leaks=0:detect_stack_use_after_return=0:halt_on_error=1:"
            "allocator_may_return_null=1"
        ),
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    command = [sys.executable, *args]
    return subprocess.run(
        command,
        env={**os.environ, **settings, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
