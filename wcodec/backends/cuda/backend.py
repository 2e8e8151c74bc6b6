"""The CUDA backend: the protocol's kernels on one GPU.
`wcodec.cuda` decodes whole files to the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.cuda import differences, encoding, sparse
from wcodec.backends.cuda.checksums import PendingChecksums, crc32_ranges, crc32_records
from wcodec.backends.cuda.decoding import Decoding
from wcodec.backends.cuda.runtime import Runtime
from wcodec.backends.cuda.worklist import WorkItem
from wcodec.backends.protocol import (
    Backend,
    Changes,
    Checksums,
    Difference,
    DType,
    EncodedSegments,
    Geometry,
    SegmentPlan,
)


class CudaBackend(Backend):
    """NVIDIA GPUs. Needs ``cupy``; kernels are compiled by NVRTC when they are first used,
    and kept on disk.

    Each call has a stream to itself, and is done when it returns.

    Parameters
    ----------
    threads
        Ignored.
    device
        Number of the GPU; ``None`` for the environment variable ``WCODEC_CUDA_DEVICE``, or 0.

    Raises
    ------
    BackendUnavailable
        CuPy, the driver or a GPU is missing.
    """

    name = "cuda"
    survives_fork = False  # CUDA does not
    at_once = 4
    takes_spans = True

    def __init__(self, threads: int | None = None, device: int | None = None) -> None:
        super().__init__(threads)
        self.runtime = self._runtime(device)
        self._streams: list[Any] = []

    def _runtime(self, device: int | None) -> Runtime:
        from wcodec.backends.cuda.cupy_runtime import CupyRuntime

        return CupyRuntime(device)

    def info(self) -> dict[str, str]:
        return self.runtime.info()

    @contextmanager
    def _on_a_stream(self) -> Iterator[None]:
        """A stream that no other call uses; it starts when the caller's has come to here,
        and its work is done at the end.
        """
        try:
            stream = self._streams.pop()
        except IndexError:
            stream = self.runtime.stream()
        with self.runtime.in_use():
            before = self.runtime.mark()
        with self.runtime.in_use(), self.runtime.on(stream):
            try:
                self.runtime.wait_for(before)
                yield
            finally:
                self.runtime.mark().synchronize()
                self._streams.append(stream)

    # ---- transfers
    def to_device(self, array: NDArray[Any]) -> Any:
        with self._on_a_stream():
            return self.runtime.upload(np.ascontiguousarray(array))

    def to_host(self, array: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
        with self._on_a_stream():
            return self.runtime.download(array, out)

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        return (
            self.runtime.empty(int(np.prod(shape)) * np.dtype(dtype).itemsize)
            .view(dtype)
            .reshape(shape)
        )

    def target(self, out: NDArray[Any]) -> Any:
        return self._empty(out.shape, out.dtype)

    # ---- kernels
    def histogram(
        self,
        words: Any,
        geometry: Geometry,
        dtype: DType,
        *,
        segments: NDArray[np.int64] | None = None,
        planes: tuple[int, ...] | None = None,
        mode: int = 0,
        base: int | None = None,
        fill: int = 0,
    ) -> NDArray[np.int64]:
        with self._on_a_stream():
            return encoding.histograms(
                self.runtime, words, geometry, dtype, segments, planes, mode, base, fill
            )

    def encode_segments(self, plan: SegmentPlan, words: Any) -> EncodedSegments:
        with self._on_a_stream():
            return EncodedSegments(*encoding.encode(self.runtime, plan, words))

    def encode_with_checksums(
        self, plan: SegmentPlan, words: Any
    ) -> tuple[EncodedSegments, Checksums]:
        with self._on_a_stream():
            of_words = self._crc32_of(words)
            encoded = EncodedSegments(*encoding.encode(self.runtime, plan, words))
            records = self._crc32_of_records(
                encoded.payload, plan.encoded(encoded.n_units, encoded.n_patches).offsets
            )
            return encoded, Checksums(records.result(), int(of_words.result()[0]))

    def decode_segments(self, plan: SegmentPlan, payload: Any, out: Any) -> NDArray[np.uint8]:
        with self._on_a_stream():
            return self._queue_decoding(plan, payload, out).status()

    def decode_with_checksums(
        self, plan: SegmentPlan, payload: Any, out: Any
    ) -> tuple[NDArray[np.uint8], Checksums]:
        with self._on_a_stream():
            records = self._crc32_of_records(payload, plan.offsets)
            decoding = self._queue_decoding(plan, payload, out)
            words = self._crc32_of(out)
            return decoding.status(), Checksums(records.result(), int(words.result()[0]))

    def _queue_decoding(self, plan: SegmentPlan, payload: Any, out: Any) -> Decoding:
        decoding = Decoding(
            self.runtime, [WorkItem(plan, self.runtime.address(out), self.runtime.address(payload))]
        )
        decoding.queue()
        return decoding

    # ---- differences
    def subtract_base(self, words: Any, base: Any, difference: Difference) -> Any:
        with self._on_a_stream():
            out = self._empty(words.shape, words.dtype)
            addresses = (self.runtime.address(words), self.runtime.address(base))
            nbytes = int(np.prod(words.shape)) * words.dtype.itemsize
            word_nbytes = words.dtype.itemsize
            differences.subtract_base(
                self.runtime, *addresses, self.runtime.address(out), nbytes, word_nbytes, difference
            )
            return out

    def add_base(self, coded: Any, base: Any, difference: Difference) -> int:
        with self._on_a_stream():
            addresses = self.runtime.address(coded), self.runtime.address(base)
            nbytes = int(np.prod(coded.shape)) * coded.dtype.itemsize
            word_nbytes = coded.dtype.itemsize
            differences.add_base(self.runtime, *addresses, nbytes, word_nbytes, difference)
            return int(self._crc32_of(coded).result()[0])

    # ---- sparse tensors
    def list_changes(self, words: Any, base: Any, segment: int, most: int) -> Changes | None:
        with self._on_a_stream():
            return sparse.list_changes(self.runtime, words, base, segment, most)

    def places_of(
        self,
        gaps: Any,
        n_gaps: NDArray[np.int64],
        n_listed: NDArray[np.int64],
        starts: NDArray[np.int64],
        sizes: NDArray[np.int64],
    ) -> tuple[Any, NDArray[np.bool_]]:
        with self._on_a_stream():
            of_segments = n_gaps, n_listed, starts, sizes
            pending = sparse.PendingPlaces(self.runtime, gaps, *of_segments)
            return pending.places, pending.right()

    def take(self, words: Any, places: Any) -> Any:
        with self._on_a_stream():
            out = self._empty(places.shape, words.dtype)
            addresses = self.runtime.address(words), self.runtime.address(out)
            sparse.take(self.runtime, addresses[0], places, words.dtype.itemsize, addresses[1])
            return out

    def put(self, words: Any, places: Any, values: Any) -> None:
        with self._on_a_stream():
            addresses = self.runtime.address(words), self.runtime.address(values)
            sparse.put(self.runtime, addresses[0], places, words.dtype.itemsize, addresses[1])

    # ---- checksums
    def _crc32_of(self, array: Any) -> PendingChecksums:
        address = self.runtime.address(array)
        nbytes = int(np.prod(array.shape)) * array.dtype.itemsize
        return crc32_ranges(
            self.runtime, np.array([address], np.uint64), np.array([nbytes], np.int64)
        )

    def _crc32_of_records(self, payload: Any, offsets: NDArray[np.int64]) -> PendingChecksums:
        return crc32_records(self.runtime, [(self.runtime.address(payload), offsets)])

    def checksums(self, payload: Any, offsets: NDArray[np.int64]) -> NDArray[np.uint32]:
        with self._on_a_stream():
            return self._crc32_of_records(payload, offsets).result()

    def crc32_of(self, words: Any) -> int:
        with self._on_a_stream():
            return int(self._crc32_of(words).result()[0])

    def close(self) -> None:
        self._streams.clear()
        self.runtime.close()
