"""What `gpu.py` needs of a GPU besides the backend:
events, copies, repeated launches, and times out of them.
"""

from __future__ import annotations

import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from wcodec.backends.cuda.backend import CudaBackend
from wcodec.backends.cuda.runtime import Runtime
from wcodec.cuda import Loader

TESTS = Path(__file__).resolve().parents[2] / "tests"
QUEUE = 400  #: launches and events that are queued before anybody waits: a driver takes about 1024
MOST_BUSY_S = 0.05

#: Keeps one thread of the GPU busy for some nanoseconds,
#: so that what is queued after it starts without a gap.
BUSY_SOURCE = r"""
extern "C" __global__ void busy(unsigned long long nanoseconds) {
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    while (now - start < nanoseconds);
}
"""

Work = Callable[[], object]  #: queues work on the current stream


class Device(ABC):
    """A GPU, or what stands for one in tests.

    Attributes
    ----------
    l2_nbytes
        Of its L2 cache; 0 if there is none to defeat.
    """

    runtime: Runtime
    l2_nbytes: int = 0

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Model, driver, clocks: what the numbers depend on."""

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Make the device and a new stream the calling thread's."""
        with self.runtime.in_use(), self.runtime.on(self.runtime.stream()):
            yield

    @abstractmethod
    def event(self) -> Any:
        """The time at which the current stream comes to here."""

    @abstractmethod
    def seconds(self, first: Any, last: Any) -> float:
        """Between two events that are over."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for the current stream."""

    @abstractmethod
    def copy(self, target: Any, source: Any) -> None:
        """Queue a copy of device memory to device memory."""

    @abstractmethod
    def busy(self, seconds: float) -> None:
        """Keep the current stream from what comes next for a while."""

    @abstractmethod
    def loader(self, **options: Any) -> Loader:
        """A `Loader` on this device."""


class CupyDevice(Device):
    """A real one.

    Raises
    ------
    BackendUnavailable
    """

    def __init__(self, number: int | None = None) -> None:
        from wcodec.backends.cuda.cupy_runtime import CupyRuntime

        self.runtime = runtime = CupyRuntime(number)
        self.cupy, self.number = runtime.cupy, runtime.device
        self.l2_nbytes = int(runtime.properties["l2CacheSize"])
        with runtime.in_use():
            self._busy = self.cupy.RawModule(code=BUSY_SOURCE).get_function("busy")

    def about(self) -> dict[str, Any]:
        p = self.runtime.properties
        return {
            **self.runtime.info(), "multiprocessors": int(p["multiProcessorCount"]),
            "l2_nbytes": self.l2_nbytes, "nvidia-smi": nvidia_smi(),
        }  # fmt: skip

    def event(self) -> Any:
        event = self.cupy.cuda.Event()
        event.record()
        return event

    def seconds(self, first: Any, last: Any) -> float:
        return float(self.cupy.cuda.get_elapsed_time(first, last)) / 1e3

    def synchronize(self) -> None:
        self.cupy.cuda.get_current_stream().synchronize()

    def copy(self, target: Any, source: Any) -> None:
        api, stream = self.cupy.cuda.runtime, self.cupy.cuda.get_current_stream()
        api.memcpyAsync(
            target.data.ptr, source.data.ptr, source.nbytes, api.memcpyDeviceToDevice, stream.ptr
        )

    def busy(self, seconds: float) -> None:
        self._busy((1,), (1,), (np.uint64(seconds * 1e9),))

    def loader(self, **options: Any) -> Loader:
        return Loader(self.number, **options)


class EmulatedDevice(Device):
    """The CPU, which runs the kernels as the tests do:
    that everything runs is seen, its times mean nothing.
    """

    l2_nbytes = 1 << 14

    def __init__(self) -> None:
        if str(TESTS) not in sys.path:
            sys.path.append(str(TESTS))
        from cuda_emulator import EmulatedRuntime

        self.runtime = EmulatedRuntime()

    def about(self) -> dict[str, Any]:
        return {**self.runtime.info(), "l2_nbytes": self.l2_nbytes}

    def event(self) -> float:
        return time.perf_counter()

    def seconds(self, first: float, last: float) -> float:
        return max(last - first, 1e-9)

    def synchronize(self) -> None:
        """Work is done when it is asked for."""

    def copy(self, target: Any, source: Any) -> None:
        self.runtime.copy_in(target, source)

    def busy(self, seconds: float) -> None:
        """Nothing is queued that would have to wait."""

    def loader(self, **options: Any) -> Loader:
        return Loader(runtime_of=lambda _: self.runtime, **options)


def nvidia_smi() -> dict[str, str]:
    """State of the GPUs as the driver tells it; empty if it does not."""
    fields = (
        "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
        "power.draw,power.limit,temperature.gpu,pcie.link.gen.current,pcie.link.width.current,"
        "clocks_event_reasons.active"
    )
    try:
        asked = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = asked.stdout.splitlines()
    if asked.returncode or not lines:
        return {"error": (asked.stdout + asked.stderr).strip()[-200:]}
    return dict(
        zip(fields.split(","), (cell.strip() for cell in lines[0].split(",")), strict=False)
    )


class Recorder:
    """A `Runtime` that remembers what is launched, and keeps the memory for it:
    `replay` launches all of it again.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self._kept = runtime, list[Any]()
        self.launches: list[tuple[str, int, int, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def empty(self, nbytes: int) -> Any:
        """As the runtime's."""
        self._kept.append(self._runtime.empty(nbytes))
        return self._kept[-1]

    def upload(self, host: Any) -> Any:
        """As the runtime's."""
        self._kept.append(self._runtime.upload(host))
        return self._kept[-1]

    def launch(self, kernel: str, grid: int, block: int, *args: Any) -> None:
        """As the runtime's."""
        self.launches.append((kernel, grid, block, args))
        self._runtime.launch(kernel, grid, block, *args)

    def replay(self) -> None:
        """Queue all launches."""
        for kernel, grid, block, args in self.launches:
            self._runtime.launch(kernel, grid, block, *args)


class BackendOn(CudaBackend):
    """`CudaBackend` on a runtime that is there already."""

    def __init__(self, runtime: Any) -> None:
        self._given = runtime
        super().__init__()

    def _runtime(self, device: int | None) -> Runtime:
        out: Runtime = self._given
        return out


# ---- times ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Effort:
    """How often something is measured: for about `seconds`, at least `least` times,
    at most `most`.
    """

    least: int = 20
    most: int = 300
    seconds: float = 0.4

    def repeats(self, once_s: float) -> int:
        """Of something that takes that long."""
        return int(min(self.most, max(self.least, self.seconds / max(once_s, 1e-9))))


def summary(times: Sequence[float], nbytes: int = 0) -> dict[str, float]:
    """Median, 10th and 90th percentile; of `nbytes` bytes, also the speed."""
    p10, median, p90 = (float(t) for t in np.percentile(times, [10, 50, 90]))
    speed = {"gb_s": nbytes / median / 1e9} if nbytes else {}
    return {"median_s": median, "p10_s": p10, "p90_s": p90, "n": len(times), **speed}


def _groups(device: Device, works: Sequence[Work], ops: int, effort: Effort) -> Iterator[list[int]]:
    """Works in turn, by number, in portions that a queue takes;
    the stream is kept busy while a portion is queued.
    """
    for work in works:
        work()
    device.synchronize()
    size = max(1, QUEUE // ops)
    start = time.perf_counter()
    for work in works[:size]:
        work()
    queued = time.perf_counter()
    device.synchronize()
    n = len(works[:size])
    host_s, repeats = (queued - start) / n, effort.repeats((time.perf_counter() - start) / n)
    for first in range(0, repeats, size):
        some = [i % len(works) for i in range(first, min(first + size, repeats))]
        device.synchronize()
        device.busy(min(MOST_BUSY_S, 2 * host_s * len(some) + 1e-4))
        yield some


def gpu_times(device: Device, works: Sequence[Work], ops: int, effort: Effort) -> list[float]:
    """Seconds of each of many works, by events; `ops` is what each queues, about."""
    times = list[float]()
    for some in _groups(device, works, ops + 1, effort):
        events = [device.event()]
        for i in some:
            works[i]()
            events.append(device.event())
        device.synchronize()
        times += [device.seconds(a, b) for a, b in pairwise(events)]
    return times


def stage_times(device: Device, runs: Sequence[Recorder], effort: Effort) -> dict[str, float]:
    """Median seconds of each kernel of some launches that are alike, by events between them;
    several launches of one are added up.
    """
    times = defaultdict[str, list[float]](list)
    for some in _groups(
        device, [run.replay for run in runs], 2 * max(1, len(runs[0].launches)), effort
    ):
        marked = []
        for i in some:
            marks = [("", device.event())]
            for kernel, grid, block, args in runs[i].launches:
                device.runtime.launch(kernel, grid, block, *args)
                marks.append((kernel, device.event()))
            marked.append(marks)
        device.synchronize()
        for marks in marked:
            sums = defaultdict[str, float](float)
            for (_, before), (kernel, behind) in pairwise(marks):
                sums[kernel] += device.seconds(before, behind)
            for kernel, seconds in sums.items():
                times[kernel].append(seconds)
    return {kernel: float(np.median(t)) for kernel, t in times.items()}


def wall_times(calls: Sequence[Callable[[], object]], effort: Effort) -> list[float]:
    """Seconds of each of many calls that wait for their results, in turn,
    after one of each that is not counted.
    """
    start = time.perf_counter()
    for call in calls[:32]:
        call()
    once_s = (time.perf_counter() - start) / len(calls[:32])
    times = []
    for i in range(effort.repeats(once_s)):
        start = time.perf_counter()
        calls[i % len(calls)]()
        times.append(time.perf_counter() - start)
    return times
