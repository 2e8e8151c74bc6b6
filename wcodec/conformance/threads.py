"""What backends owe callers in several threads: each gets what it would get alone."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import numpy as np

from wcodec.backends.protocol import Backend
from wcodec.backends.reference import ReferenceBackend
from wcodec.codec.parts import aligned
from wcodec.conformance.cases import Vectors, check_decode, check_encode, require_same
from wcodec.conformance.cases import require_same_bytes as same_bytes
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
MOST_ROUNDS: Final = 100  #: and two at least


@contextmanager
def _switching_often() -> Iterator[None]:
    """Python's threads take turns after a few instructions, so that more happens at once."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def check_threads(vectors: Vectors, backend: Backend) -> None:
    """Kernels, and whole files, in eight threads at once, each several times."""
    kernels = [_kernels_of(backend, seed) for seed in range(N_THREADS)]
    for kernel in kernels:  # whatever is made at the first call
        kernel()
    barrier, deadline = threading.Barrier(N_THREADS), time.monotonic() + SECONDS

    def again_and_again(kernel: Callable[[], None]) -> None:
        with suppress(threading.BrokenBarrierError):  # where not all threads can be started
            barrier.wait(timeout=10)
        for i in range(MOST_ROUNDS):
            kernel()
            if i and time.monotonic() > deadline:
                break

    cases = [vectors[f"accept/{name}"] for name in THREADED] * 3
    with _switching_often(), Workers(N_THREADS, "wcodec-checks") as workers:
        jobs = [workers.begin(again_and_again, kernel) for kernel in kernels]
        jobs += [workers.begin(check_decode, c, backend) for c in cases]
        jobs += [workers.begin(check_encode, c, backend) for c in cases if "encode" in c.row]
        for job in jobs:
            job.result()


def _kernels_of(backend: Backend, seed: int) -> Callable[[], None]:
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

    def call() -> None:
        out = backend.target(np.zeros(SHAPE, dtype.word_type))
        status = backend.decode_segments(done, records, out)
        require_same(status, np.zeros_like(status), "the status of segments in a thread of eight")
        require_same(backend.to_host(out), words, "the words decoded in a thread of eight")
        encoded = backend.encode_segments(plan, device)
        same_bytes(backend.to_host(encoded.payload), payload, "the payload of a thread of eight")
        got = backend.histogram(device, geometry, dtype)
        require_same(got, counts, "the histograms of a thread of eight")
        sums = backend.checksums(records, done.offsets)
        require_same(sums, crcs, "the CRC-32s of a thread of eight")

    return call
