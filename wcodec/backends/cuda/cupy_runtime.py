"""`Runtime` by CuPy: the one that runs on GPUs."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.cuda.compiler import load_nvrtc
from wcodec.backends.cuda.cubins import Cubins, architecture_for
from wcodec.backends.cuda.runtime import SOURCES, Runtime
from wcodec.errors import BackendUnavailable
from wcodec.processes import Lock

LEAST_CAPABILITY: Final = 75  #: of what NVRTC 13 compiles for
#: from here on, copies go through pinned memory, which the device reads and writes by itself
STAGED_NBYTES: Final = 1 << 20
#: of that memory, of which CuPy takes the next power of two, and keeps it
MOST_STAGED_NBYTES: Final = 1 << 25
#: of other libraries that are remembered: PyTorch takes its streams from a pool of 32
MOST_STREAMS: Final = 64
_OUT_OF_MEMORY: Final = 2  #: cudaErrorMemoryAllocation
_NOT_INITIALIZED: Final = 3  #: CUDA_ERROR_NOT_INITIALIZED
_FORKED: Final = (
    "backend 'cuda' cannot be used in a process forked from one that has used CUDA: "
    "start processes by spawn"
)
_SOURCE_OF: Final = {kernel: source for source, kernels in SOURCES.items() for kernel in kernels}


def _check_process(pid: int | None) -> None:
    """See that this is the process that CUDA was started in, if it was.

    Raises
    ------
    BackendUnavailable
    """
    if pid not in (None, os.getpid()):
        raise BackendUnavailable(_FORKED)


def _ask_driver() -> None:
    """Look for a driver and a GPU before CuPy is imported, which takes half a second.

    Raises
    ------
    BackendUnavailable
    """
    needs = "backend 'cuda' needs an NVIDIA GPU and its driver"
    _check_process(_user)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        raise BackendUnavailable(f"{needs}: {e}") from None
    count = ctypes.c_int()
    error = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if error == _NOT_INITIALIZED:  # by cuInit itself: its parent has called it
        raise BackendUnavailable(_FORKED)
    if error:
        raise BackendUnavailable(f"{needs}: the driver's error {error} at start")
    if count.value == 0:
        raise BackendUnavailable(f"{needs}: there is no GPU, or CUDA_VISIBLE_DEVICES hides it")


_user: int | None = None  #: the process that has used CUDA here, or its parent


def _cupy() -> Any:
    """CuPy, if it, NVRTC, a driver and a GPU are there.

    Raises
    ------
    BackendUnavailable
        In one line, what is missing and what to do.
    """
    global _user
    _ask_driver()
    _user = os.getpid()
    load_nvrtc()
    import cupy

    runtime = cupy.cuda.runtime
    try:
        runtime.getDeviceCount()
    except runtime.CUDARuntimeError as e:
        raise BackendUnavailable(
            f"backend 'cuda' finds no GPU that CuPy {cupy.__version__} can use: {e}"
        ) from e
    return cupy


def _device_of(text: str | None) -> int:
    if text is None:
        return 0
    if not text.isdecimal():
        raise BackendUnavailable(f"WCODEC_CUDA_DEVICE is {text!r}, not the number of a GPU")
    return int(text)


class _ExternalStream:
    """A stream of another library, as the CUDA stream protocol has it."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


class CupyRuntime(Runtime):
    """One GPU.

    Parameters
    ----------
    device
        Its number; ``None`` for the environment variable ``WCODEC_CUDA_DEVICE``, or 0.

    Raises
    ------
    BackendUnavailable
    """

    def __init__(self, device: int | None = None) -> None:
        self.cupy = _cupy()
        self.device = _device_of(os.environ.get("WCODEC_CUDA_DEVICE")) if device is None else device
        n = self.cupy.cuda.runtime.getDeviceCount()
        if not 0 <= self.device < n:
            raise BackendUnavailable(
                f"there is no GPU {self.device}; there are {n}, numbered from 0"
            )
        p = self.properties = dict[str, Any](
            self.cupy.cuda.runtime.getDeviceProperties(self.device)
        )
        if self.capability() < LEAST_CAPABILITY:
            raise BackendUnavailable(
                f"GPU {self.device} has compute capability {p['major']}.{p['minor']}; "
                "7.5 is the least"
            )
        self._functions: dict[str, Any] = {}
        self._modules: dict[str, Any] = {}
        self._cubins = Cubins(architecture_for(self.capability()))
        self._streams: dict[int, Any] = {}  #: of other libraries, by handle
        self._lock, self._pid = Lock(), os.getpid()

    def info(self) -> dict[str, str]:
        cuda, p = self.cupy.cuda.runtime, self.properties
        driver, toolkit = cuda.driverGetVersion(), cuda.runtimeGetVersion()
        others = [cuda.getDeviceProperties(i) for i in range(cuda.getDeviceCount())]
        named = ", ".join(
            f"{i}: {o['name'].decode()} ({o['totalGlobalMem'] / 2**30:.1f} GiB)"
            for i, o in enumerate(others)
        )
        return {
            "device": f"{self.device}: {p['name'].decode()}",
            "compute capability": f"{p['major']}.{p['minor']}",
            "memory": f"{p['totalGlobalMem'] / 2**30:.1f} GiB", "devices": named,
            "driver": f"CUDA {driver // 1000}.{driver % 1000 // 10}",
            "runtime": f"CUDA {toolkit // 1000}.{toolkit % 1000 // 10}",
            "cupy": self.cupy.__version__,
        }  # fmt: skip

    def free_nbytes(self) -> int:
        with self.in_use():
            free, _ = self.cupy.cuda.runtime.memGetInfo()
            return int(free) + int(self.cupy.get_default_memory_pool().free_bytes())

    def n_processors(self) -> int:
        return int(self.properties["multiProcessorCount"])

    def capability(self) -> int:
        return 10 * int(self.properties["major"]) + int(self.properties["minor"])

    def in_use(self) -> AbstractContextManager[Any]:
        _check_process(self._pid)
        context: AbstractContextManager[Any] = self.cupy.cuda.Device(self.device)
        return context

    def close(self) -> None:
        with self.in_use():
            self.cupy.get_default_memory_pool().free_all_blocks()
            self.cupy.get_default_pinned_memory_pool().free_all_blocks()

    # ---- memory
    def empty(self, nbytes: int) -> Any:
        n = max(nbytes, 1)  # never a null pointer, which not everything takes
        with self.in_use():
            try:
                return self.cupy.empty(n, np.uint8)[:nbytes]
            except self.cupy.cuda.memory.OutOfMemoryError:
                torch = sys.modules.get("torch")
                if torch is None or not torch.cuda.is_initialized():
                    raise
                torch.cuda.empty_cache()  # what PyTorch keeps for later
                return self.cupy.empty(n, np.uint8)[:nbytes]

    def adopt(self, address: int, nbytes: int, owner: Any) -> Any:
        cuda = self.cupy.cuda
        memory = cuda.UnownedMemory(address, nbytes, owner, self.device)
        return self.cupy.ndarray((nbytes,), np.uint8, cuda.MemoryPointer(memory, 0))

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        cuda = self.cupy.cuda
        with self.in_use():
            try:
                return np.frombuffer(cuda.alloc_pinned_memory(max(nbytes, 1)), np.uint8, nbytes)
            except cuda.runtime.CUDARuntimeError as e:
                if e.status != _OUT_OF_MEMORY:
                    raise
                raise MemoryError(f"no {nbytes} bytes of pinned host memory") from None

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    # ---- copies
    def upload(self, host: NDArray[Any]) -> Any:
        with self.in_use():
            host = np.ascontiguousarray(host)
            if host.nbytes < STAGED_NBYTES:
                return self.cupy.asarray(host)
            device, flat = self.empty(host.nbytes), host.reshape(-1).view(np.uint8)
            staged = self.pinned(min(flat.size, MOST_STAGED_NBYTES))
            for a in range(0, flat.size, staged.size):
                some = flat[a : a + staged.size]
                np.copyto(staged[: some.size], some)
                self.copy_in(device[a : a + some.size], staged[: some.size])
                self.mark().synchronize()
            return device.view(host.dtype).reshape(host.shape)

    def download(self, device: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
        with self.in_use():
            if device.nbytes < STAGED_NBYTES:
                host: NDArray[Any] = device.get(out=out)
                return host
            host = np.empty(device.shape, device.dtype) if out is None else out
            if not host.flags.c_contiguous:
                raise ValueError("a device array goes to a C-contiguous one")
            source, flat = device.reshape(-1).view(np.uint8), host.reshape(-1).view(np.uint8)
            staged = self.pinned(min(flat.size, MOST_STAGED_NBYTES))
            for a in range(0, flat.size, staged.size):
                some = flat[a : a + staged.size]
                self.copy_out(staged[: some.size], source[a : a + some.size])
                self.mark().synchronize()
                np.copyto(some, staged[: some.size])
            return host

    def copy_in(self, device: Any, host: NDArray[np.uint8]) -> None:
        if host.nbytes:
            device.data.copy_from_host_async(host.ctypes.data, host.nbytes)

    def copy_out(self, host: NDArray[np.uint8], device: Any) -> None:
        if host.nbytes:
            device.data.copy_to_host_async(host.ctypes.data, host.nbytes)

    def copy_within(self, out: Any, device: Any) -> None:
        if out.nbytes:
            out.data.copy_from_device_async(device.data, out.nbytes)

    # ---- order
    def stream(self) -> Any:
        with self.in_use():
            return self.cupy.cuda.Stream(non_blocking=True)

    def external_stream(self, handle: int) -> Any:
        known = self._streams.get(handle)
        if known is None:
            streams = self.cupy.cuda
            if hasattr(streams.Stream, "from_external"):  # CuPy 14
                known = streams.Stream.from_external(_ExternalStream(handle))
            else:
                known = streams.ExternalStream(handle, self.device)
            if len(self._streams) == MOST_STREAMS:
                self._streams.clear()
            self._streams[handle] = known
        return known

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = stream
        return context

    def mark(self) -> Any:
        return self.cupy.cuda.get_current_stream().record(self.cupy.cuda.Event(disable_timing=True))

    def finish(self) -> None:
        self.cupy.cuda.Device(self.device).synchronize()

    def wait_for(self, mark: Any) -> None:
        self.cupy.cuda.get_current_stream().wait_event(mark)

    # ---- kernels
    def launch(self, kernel: str, grid: int, block: int, *args: Any) -> None:
        function = self._functions.get(kernel) or self.function(kernel)
        function((grid,), (block,), args)

    def function(self, kernel: str) -> Any:
        """A kernel, out of the machine code of its source,
        which is compiled at first (`cubins`).
        """
        with self._lock:
            if kernel not in self._functions:
                source = _SOURCE_OF[kernel]
                if source not in self._modules:
                    with self.in_use():
                        module = self.cupy.cuda.function.Module()
                        module.load(self._cubins[source])
                    self._modules[source] = module
                self._functions[kernel] = self._modules[source].get_function(kernel)
            return self._functions[kernel]
