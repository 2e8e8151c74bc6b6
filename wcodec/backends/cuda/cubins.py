"""Machine code of the kernels, compiled when it is needed and kept on disk:
the same that audits and tests look at.

CuPy's own compiler adds options after ours:
``-ftz=true``, by which products lose subnormal numbers, among them.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from wcodec.backends.code_cache import CodeCache, cache_folder
from wcodec.backends.cuda.compiler import OPTIONS, compile_cubin, load_nvrtc
from wcodec.backends.cuda.runtime import LINEARS, read_source
from wcodec.errors import BackendUnavailable
from wcodec.processes import Lock, Task, Workers

#: What is used soon after a source is.
TOGETHER: Final[dict[str, tuple[str, ...]]] = {
    "decode": ("words", "checksum"),
    "histogram": ("words", "encode", "checksum"),
    **dict.fromkeys(LINEARS, ("operand",)),
}
_compile_log = logging.getLogger("wcodec.compile")


def architecture_for(capability: int) -> int:
    """The architecture to compile for: the device's,
    or the newest one before it whose code it runs.

    Parameters
    ----------
    capability
        Compute capability of the device without the point: 90.

    Raises
    ------
    BackendUnavailable
        The device is newer than NVRTC.
    """
    known: tuple[int, ...] = load_nvrtc().getSupportedArchs()
    fitting = [arch for arch in known if arch <= capability and arch // 10 == capability // 10]
    if not fitting:
        raise BackendUnavailable(
            f"NVRTC compiles for compute capabilities {', '.join(map(str, known))}, "
            f"and this GPU has {capability}"
        )
    return max(fitting)


def cubin_of(source: str, arch: int) -> bytes:
    """Machine code of a source for an architecture, from disk if it is there.

    A file that is damaged is written anew. Where none can be written, the code is compiled each
    time, and that is said once.

    Raises
    ------
    BackendUnavailable
        NVRTC does not take it, with its log.
    """
    return _cubin(source, arch)[0]


def _cubin(source: str, arch: int) -> tuple[bytes, bool]:
    """Machine code, and whether it had to be compiled."""
    text = read_source(source)
    cache = CodeCache(cache_folder("cuda"), "machine code of CUDA kernels")
    name, key = f"{source}-sm_{arch}", (text, OPTIONS, arch, load_nvrtc().getVersion())
    kept = cache.load(name, key)
    if kept is not None:
        return kept, False
    _compile_log.info(
        "cuda: compiling %s for sm_%d; the machine code is kept for later runs", source, arch
    )
    code = compile_cubin(text, arch)
    cache.keep(name, key, code)
    return code, True


class Compiled(NamedTuple):
    """A source that is there now: how long that took, and whether it had to be compiled."""

    source: str
    seconds: float
    is_new: bool


def compile_all(
    sources: Iterable[str], arch: int, n_threads: int | None = None
) -> Iterator[Compiled]:
    """Compile what is not there yet, in threads, and keep it on disk;
    in their order.

    Raises
    ------
    BackendUnavailable
        As `cubin_of`.
    """

    def compile_one(source: str) -> Compiled:
        start = time.perf_counter()
        is_new = _cubin(source, arch)[1]
        return Compiled(source, time.perf_counter() - start, is_new)

    with Workers(n_threads or len(os.sched_getaffinity(0)), "wcodec-compile") as workers:
        tasks = [workers.begin(compile_one, source) for source in sources]
        try:
            for task in tasks:
                yield task.result()
        finally:
            for task in reversed(tasks):  # those that have not begun first
                task.settle()


class Cubins:
    """Machine code for one architecture, source by source. What is used together with a source is
    compiled at the same time, in threads: NVRTC lets go of the GIL.
    """

    def __init__(self, arch: int) -> None:
        self.arch, self._coming, self._lock = arch, dict[str, Task[bytes]](), Lock()
        self._workers = Workers(len(os.sched_getaffinity(0)), "wcodec-compile")

    def __getitem__(self, source: str) -> bytes:
        with self._lock:
            new = [name for name in (source, *TOGETHER.get(source, ())) if name not in self._coming]
            self._coming |= {name: self._workers.begin(cubin_of, name, self.arch) for name in new}
            task = self._coming[source]
        try:
            return task.result()
        except BaseException:  # Ctrl-C, or what may go better the next time
            with self._lock:
                if self._coming.get(source) is task:
                    del self._coming[source]
            raise
