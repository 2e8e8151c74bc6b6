"""What backends owe callers in several threads: each gets what it would get alone."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from wcodec.backends.protocol import Backend
from wcodec.backends.reference import ReferenceBackend
from wcodec.codec.parts import aligned
from wcodec.conformance.cases import (
    Vectors,
    check_decode,
    check_encode,
    require_same,
    require_same_bytes,
)
from wcodec.conformance.recipes import splitmix64
from wcodec.planner.options import EncodeOptions
from wcodec.planner.planner import Planner
from wcodec.processes import Workers
from wcodec.reference import encoding
from wcodec.reference.checksums import crc32_each
from wcodec.reference.planes import DTYPES
from wcodec.reference.tiles import Geometry

N_THREADS: Final = 8
THREADED: Final = (
    "base_bytes", "base_pairs", "base_tiles", "mixed_layouts", "auto_bfloat16", "auto_int8",
    "many_tensors", "auto_tables", "modes_mixed", "context_plane_tiles", "context_scale_parts",
    "difference_mixed", "sparse_mixed", "encoder_sparse",
)  # fmt: skip
#: words of the matrices that kernels get in each thread, and how long they get them again and again
SHAPE: Final = 64, 256
SECONDS: Final = 0.5
LEAST_ROUNDS: Final = 12  #: three of each of the four kernels


@contextmanager
def _switching_often() -> Iterator[None]:
    """Python's threads take turns after a few instructions, so that more happens at once."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class _Together:
    """Threads that make the same call at the same time, round by round."""

    def __init__(self, n: int) -> None:
        self._n_rounds, self._deadline = 0, time.monotonic() + SECONDS
        self._barrier = threading.Barrier(n, self._decide, timeout=60)
        self.over = False

    def _decide(self) -> None:
        """At each barrier, by one of the threads for all."""
        self._n_rounds += 1
        self.over = self._n_rounds > LEAST_ROUNDS and time.monotonic() > self._deadline

    def run(self, kernels: Sequence[Callable[[], None]]) -> None:
        """Make these calls until it is over, or another thread has failed."""
        try:
            while not self.over:
                for kernel in kernels:
                    self._barrier.wait()
                    kernel()
        except threading.BrokenBarrierError:  # another one says why
            pass
        finally:
            self._barrier.abort()


def check_threads(vectors: Vectors, backend: Backend) -> None:
    """Kernels, and whole files, in eight threads at once, each several times."""
    kernels = [_kernels_of(backend, seed) for seed in range(N_THREADS)]
    for kernel in kernels[0]:  # whatever is made at the first call
        kernel()
    cases = [vectors[f"accept/{name}"] for name in THREADED] * 3
    with _switching_often(), Workers(N_THREADS, "wcodec-checks") as workers:
        together = _Together(N_THREADS)
        jobs = [workers.begin(together.run, some) for some in kernels]
        jobs += [workers.begin(check_decode, c, backend) for c in cases]
        jobs += [workers.begin(check_encode, c, backend) for c in cases if "encode" in c.row]
        for job in jobs:
            job.result()


def _kernels_of(backend: Backend, seed: int) -> list[Callable[[], None]]:
    """A call of each kernel on words of its own; raises `Mismatch`."""
    dtype = next(d for d in DTYPES if d.name == ("bfloat16", "int8")[seed % 2])
    n = SHAPE[0] * SHAPE[1] * dtype.word_nbytes
    raw = splitmix64(seed, n // 8).view(np.uint8) & np.uint8(0x1F + seed)
    words, geometry = raw.view(dtype.word_type).reshape(SHAPE), Geometry(*SHAPE, *SHAPE, *SHAPE)
    plan = Planner(EncodeOptions()).plan(words, geometry, dtype, ReferenceBackend())
    payload, n_units, n_patches = encoding.encode_segments(plan, words)
    payload = aligned(payload)
    done, counts = plan.encoded(n_units, n_patches), encoding.histogram(words, geometry, dtype)
    crcs, device = crc32_each(payload, done.offsets), backend.to_device(words)
    records: Any = backend.to_device(payload)

    def decode() -> None:
        out = backend.target(np.zeros(SHAPE, dtype.word_type))
        status = backend.decode_segments(done, records, out)
        require_same(status, np.zeros_like(status), "the status of segments in a thread of eight")
        require_same(backend.to_host(out), words, "the words decoded in a thread of eight")

    def encode() -> None:
        got = backend.to_host(backend.encode_segments(plan, device).payload)
        require_same_bytes(got, payload, "the payload of a thread of eight")

    def count() -> None:
        got = backend.histogram(device, geometry, dtype)
        require_same(got, counts, "the histograms of a thread of eight")

    def check() -> None:
        got = backend.checksums(records, done.offsets)
        require_same(got, crcs, "the CRC-32s of a thread of eight")

    return [decode, encode, count, check]
