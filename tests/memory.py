"""Memory that code asks for while it takes some steps:
what it holds at once at most, whatever the allocator makes of it.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from unittest import mock

from wcodec.codec.pipelining import WriteBehind


def peak_of(steps: Callable[[], object]) -> int:
    """Bytes of NumPy's arrays and Python's objects, in all threads. Mapped files do not count, nor
    what compiling takes: the first run.

    Files are written at once: how many pieces wait for a slow disk is a matter of time.
    `WriteBehind` bounds them.
    """
    with mock.patch.object(WriteBehind, "write", lambda self, data: self._stream.write(data)):
        steps()
        tracemalloc.start()
        try:
            steps()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


def torch_peak_of(steps: Callable[[], object]) -> int:
    """Bytes of PyTorch's tensors, in this thread."""
    from torch.profiler import ProfilerActivity, profile

    steps()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        steps()
    events = [
        (e.start_ns(), e.nbytes())
        for e in p.profiler.kineto_results.events()
        if e.name() == "[memory]"
    ]
    now = peak = 0
    for _, nbytes in sorted(events, key=lambda event: event[0]):
        now += nbytes
        peak = max(peak, now)
    return peak
