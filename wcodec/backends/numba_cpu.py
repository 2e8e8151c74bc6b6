"""The CPU backend: compiled loops (`wcodec.backends.numba_kernels`) over ranges of segments, one thread a range."""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import numba
import numpy as np
from numba.core import event
from numpy.typing import NDArray

from wcodec.backends import numba_fused, numba_vector
from wcodec.backends import numba_kernels as kernels
from wcodec.backends.numba_crc import crc32_range
from wcodec.backends.numba_ir import VARIANT
from wcodec.backends.numba_streams import Work
from wcodec.backends.protocol import Backend, DType, EncodedSegments, Geometry, SegmentPlan
from wcodec.reference import entropy
from wcodec.reference.checksums import crc32_combine
from wcodec.reference.planes import Bytes, Layout, WordMap, Words
from wcodec.reference.segments import Coder, padded

T = TypeVar("T")
Ints = NDArray[np.int64]

TASK_NBYTES: Final = 1 << 22  #: words that a thread takes at once: enough to be worth it, little enough to share out
INLINE_NBYTES: Final = 1 << 17  #: less than that is done in the caller's thread
STAGING_NBYTES: Final = 1 << 25  #: encoded parts up to that wait in scratch until they are put together
KEPT_NBYTES: Final = 1 << 26  #: larger scratch is not kept


class _Announcement(event.Listener):
    """Says once that kernels are being compiled, which takes seconds: on a logger that the command line shows on a terminal."""

    said = False

    def on_start(self, event: Any) -> None:
        if not self.said:
            _compile_log.info("numba: compiling for this CPU; the machine code is kept for later runs")
            self.said = True

    def on_end(self, event: Any) -> None:
        """Nothing to say."""


_compile_log = logging.getLogger("wcodec.compile")
_register: Any = event.register
_register("numba:compile", _Announcement())


class _Scratch:
    """What one thread needs besides inputs and outputs. Grows on demand."""

    def __init__(self) -> None:
        self.planes, self.record = np.empty(0, np.uint8), np.empty(0, np.uint8)
        self.stream_words = np.empty(0, np.uint16)
        self.four, self.raw_at, self.streams = np.empty(4 * 256, np.uint32), np.empty(8, np.int64), Work()

    @property
    def nbytes(self) -> int:
        """Bytes that grow."""
        return self.planes.nbytes + self.record.nbytes + self.stream_words.nbytes + self.streams.spare.nbytes

    def grow(self, n_planes: int, room: int, record_nbytes: int = 0) -> None:
        """Make room for planes `room` apart, a stream of such a plane, and records."""
        if self.planes.size < n_planes * room:
            self.planes = np.empty(n_planes * room, np.uint8)
        if record_nbytes and self.stream_words.size < room + 16:
            self.stream_words = np.empty(room + 16, np.uint16)
        if self.record.size < record_nbytes:
            self.record = np.empty(record_nbytes, np.uint8)


@contextmanager
def _borrow(free: list[_Scratch]) -> Iterator[_Scratch]:
    """Scratch that no one else uses meanwhile."""
    try:
        scratch = free.pop()
    except IndexError:
        scratch = _Scratch()
    yield scratch
    if scratch.nbytes <= KEPT_NBYTES:
        free.append(scratch)


class _Memory:
    """Memory of an array, for `np.asarray`."""

    def __init__(self, array: Bytes) -> None:
        self.array = array  # NumPy keeps this object, which keeps the memory
        address = array.__array_interface__["data"][0]
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": array.shape, "data": (address, False)}


def _bytes(array: NDArray[Any]) -> Bytes:
    """The bytes of a contiguous array.

    Read-only memory (a mapped file) has another type in numba, for which it would compile all anew. Kernels do not write
    to their inputs, so inputs may all pass for writeable.
    """
    flat = array.reshape(-1).view(np.uint8)
    return flat if flat.flags.writeable else np.asarray(_Memory(flat))


def _words(words: Words, geometry: Geometry, dtype: DType) -> Words:
    """The words, flat, checked."""
    return _bytes(_checked(words, geometry, dtype)).view(dtype.word_type)


def _word_map(dtype: DType) -> NDArray[np.uint64]:
    """Parameters of the dtype's word map, as the kernels take them."""
    bits = 8 * dtype.word_nbytes
    up, stay, sign, flip, down = 0, (1 << bits) - 1, 0, 0, 0
    if dtype.word_map is WordMap.OFFSET:
        flip = 1 << (bits - 1)
    elif dtype.word_map is WordMap.EXPONENT_FIRST:
        m = bits - 1 - dtype.exponent_bits
        up, stay, sign, down = ((1 << dtype.exponent_bits) - 1) << m, (1 << m) - 1, 1 << m, dtype.exponent_bits
    return np.array([up, stay, sign, flip, down], np.uint64)


def _top_byte(dtype: DType) -> tuple[int, int]:
    """How far the top byte of a mapped word stands up in the word, and what is flipped in it, where words have more."""
    exponent_first = dtype.word_map is WordMap.EXPONENT_FIRST
    return 8 * dtype.word_nbytes - (9 if exponent_first else 8), 0x80 if dtype.word_map is WordMap.OFFSET else 0


def _rectangles(geometry: Geometry, dtype: DType) -> Ints:
    """Jobs of all segments, of which only the rectangles are filled in."""
    jobs = np.zeros((geometry.n_segments, kernels.N_COLUMNS + dtype.n_planes * kernels.PLANE_COLUMNS), np.int64)
    if geometry.n_segments:
        down, across = np.divmod(np.arange(geometry.n_segments), geometry.grid[1])
        jobs[:, kernels.ROW], jobs[:, kernels.COL] = down * geometry.segment_rows, across * geometry.segment_cols
        jobs[:, kernels.HEIGHT], jobs[:, kernels.WIDTH] = geometry.sizes()
    return jobs


class _Tables(NamedTuple):
    """The tables that a plan uses. `rows` says for each plane which one, or holds its constant."""

    ids: Ints
    rows: Ints

    @classmethod
    def of(cls, plan: SegmentPlan) -> _Tables:
        rans, rows = plan.segments.coder == Coder.RANS, plan.segments.table.astype(np.int64)
        ids, inverse = np.unique(rows[rans], return_inverse=True)
        rows[rans] = inverse.reshape(-1)
        return cls(ids, rows)


def _jobs(plan: SegmentPlan, tables: _Tables) -> Ints:
    """All that the kernels need to know of each segment, one row each."""
    s, n_planes = plan.segments, plan.dtype.n_planes
    jobs = _rectangles(plan.geometry, plan.dtype)
    columns: dict[int, NDArray[Any]] = {
        kernels.LAYOUT: s.layout, kernels.BASE: s.base, kernels.START: plan.offsets[:-1], kernels.N_TILES: plan.geometry.tile_counts(),
        kernels.MODES_AT: plan.modes_offsets[:-1], kernels.MODES_NBYTES: plan.modes_nbytes,
        kernels.PATCHES_AT: plan.patch_offsets, kernels.N_PATCHES: s.n_patches,
    }  # fmt: skip
    if plan.fill is not None:
        columns[kernels.FILL] = plan.fill
    for column, values in columns.items():
        jobs[:, column] = values
    planes = jobs[:, kernels.N_COLUMNS :].reshape(-1, n_planes, kernels.PLANE_COLUMNS)
    for field, values in (
        (kernels.CODER, s.coder), (kernels.TABLE, tables.rows), (kernels.PREDICTION, s.prediction),
        (kernels.AT, plan.plane_offsets), (kernels.NBYTES, plan.stream_nbytes),
    ):  # fmt: skip
        planes[:, :, field] = values.T
    return jobs


def _shape(geometry: Geometry, dtype: DType) -> tuple[int, int, int, int]:
    return geometry.cols, geometry.tile_rows, geometry.tile_cols, dtype.word_nbytes


def _room(jobs: Ints) -> int:
    """Bytes for a plane of the largest segment: whole groups, and one for padding."""
    largest = int((jobs[:, kernels.HEIGHT] * jobs[:, kernels.WIDTH]).max(initial=0))
    return (largest // entropy.GROUP + 2) * entropy.GROUP


def _coding(plan: SegmentPlan, tables: _Tables) -> NDArray[np.uint64]:
    """Encoding tables: for each symbol ``ceil(2 ** (32 + prob_bits) / freq)`` and ``freq << 32 | start``."""
    freq, start = (plan.tables.stack(tables.ids, f).astype(np.uint64).reshape(-1, 256) for f in ("freq", "start"))
    one = np.uint64(1) << (np.uint64(32) + plan.tables.stack(tables.ids, "prob_bits").astype(np.uint64).reshape(-1, 1))
    some = np.maximum(freq, np.uint64(1))
    return np.stack([(one + some - np.uint64(1)) // some, freq << np.uint64(32) | start, freq << np.uint64(16) | start], axis=-1)


def _fused_kinds(plan: SegmentPlan) -> Ints:
    """For each segment the number of the fused kernel that decodes it (`numba_vector.KINDS`, from 1), or 0 for none."""
    s, dtype = plan.segments, plan.dtype
    name = dtype.word_map.name.lower().replace("_first", f" {dtype.exponent_bits}")
    heights, widths = plan.geometry.sizes()
    numbers = {
        pairs: 1 + numba_vector.KINDS.index(kind) if (kind := (pairs, dtype.word_nbytes, name)) in numba_vector.KINDS else 0
        for pairs in (False, True)
    }
    suits = (s.layout != Layout.RAW) & (s.coder[0] == Coder.RANS) & ~s.prediction.any(axis=0)
    suits &= (heights <= plan.geometry.tile_rows) & (widths <= plan.geometry.tile_cols) & (VARIANT != "plain")
    return np.where(suits, np.where(s.layout == Layout.PAIRS, numbers[True], numbers[False]), 0)


def _worst_nbytes(plan: SegmentPlan) -> Ints:
    """The most bytes that each segment's record can take."""
    s, size = plan.segments, plan.plane_nbytes
    streams = np.where(s.coder == Coder.RANS, entropy.max_stream_nbytes(size), np.where(s.coder == Coder.RAW, padded(size), 0))
    patches = np.where((s.layout == Layout.PAIRS) & (plan.dtype.word_nbytes > 1), padded(4 * plan.n_elements), 0)
    return np.asarray(plan.words_nbytes + padded(plan.modes_nbytes) + streams.sum(axis=0) + patches, np.int64)


class NumbaBackend(Backend):
    """Compiled loops on the CPU. Needs ``numba``."""

    name = "numba"

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(threads)
        self.n_threads = threads or len(os.sched_getaffinity(0))
        self._lock, self._pid = threading.Lock(), os.getpid()
        self._executor: ThreadPoolExecutor | None = None
        self._free: list[_Scratch] = []
        self._staging: list[_Scratch] = []

    def info(self) -> dict[str, str]:
        return {
            "numba": numba.__version__, "llvmlite": version("llvmlite"), "numpy": np.__version__,
            "variant": VARIANT, "threads": str(self.n_threads), "cpu": _cpu_name(),
        }  # fmt: skip

    # ---- threads
    def _map(self, step: Callable[[int, int, _Scratch], T], n: int, nbytes: int) -> list[T]:
        """``step(first, last, scratch)`` for ranges that make up `n` segments of `nbytes` bytes in all."""
        if n == 0:
            return []
        share = n if nbytes < INLINE_NBYTES else -(-n // self.n_threads)
        size = max(1, min(share, n * TASK_NBYTES // max(nbytes, 1)))

        def task(first: int) -> T:
            with _borrow(self._free) as scratch:
                return step(first, min(first + size, n), scratch)

        if size >= n or self.n_threads == 1:
            return [task(first) for first in range(0, n, size)]
        with self._lock:  # so that `close` finds all tasks, or none
            executor = self._threads()
            tasks = [executor.submit(task, first) for first in range(0, n, size)]
        try:
            return [t.result() for t in tasks]
        finally:  # after an error or an interrupt, none may go on to write to the caller's arrays
            for t in tasks:
                t.cancel()
            wait(tasks)

    def _threads(self) -> ThreadPoolExecutor:
        if self._executor is None or self._pid != os.getpid():  # a forked child has none of its parent's threads
            self._executor, self._pid = ThreadPoolExecutor(self.n_threads, "wcodec"), os.getpid()
        return self._executor

    def close(self) -> None:
        with self._lock:
            executor, self._executor, self._free, self._staging = self._executor, None, [], []
        if executor is not None:
            executor.shutdown()

    # ---- kernels
    def histogram(
        self, words: Any, geometry: Geometry, dtype: DType, *,
        segments: NDArray[np.int64] | None = None, n_planes: int | None = None,
        mode: int = 0, base: int | None = None, fill: int = 0,
    ) -> NDArray[np.int64]:  # fmt: skip
        jobs = _rectangles(geometry, dtype)
        if segments is not None:
            jobs = np.ascontiguousarray(jobs[segments])
        if base is not None:
            n_planes = 2 if dtype.word_nbytes == 1 else 1
        elif n_planes is None:
            n_planes = dtype.word_nbytes
        counts, top = np.empty((len(jobs), n_planes, 256), np.int64), _top_byte(dtype)
        data, shape, word_map, room = _words(words, geometry, dtype), _shape(geometry, dtype), _word_map(dtype), _room(jobs)

        def step(first: int, last: int, scratch: _Scratch) -> None:
            scratch.grow(dtype.word_nbytes + 1, room)
            kernels.histogram_range(
                first, last, jobs, shape, word_map, top, data, mode, -1 if base is None else base, fill,
                scratch.planes, room, scratch.four, counts,
            )  # fmt: skip

        self._map(step, len(jobs), int((jobs[:, kernels.HEIGHT] * jobs[:, kernels.WIDTH]).sum()) * dtype.word_nbytes)
        return counts

    def encode_segments(self, plan: SegmentPlan, words: Any) -> EncodedSegments:
        n, dtype, tables = plan.geometry.n_segments, plan.dtype, _Tables.of(plan)
        jobs, worst, coding = _jobs(plan, tables), _worst_nbytes(plan), _coding(plan, tables)
        own = np.array([(plan.tables[i].prob_bits, plan.tables[i].padding) for i in tables.ids], np.int64).reshape(-1, 2)
        modes = np.empty(0, np.uint8) if plan.modes is None else _bytes(plan.modes)
        data, shape, word_map = _words(words, plan.geometry, dtype), _shape(plan.geometry, dtype), _word_map(dtype)
        room, n_units, n_patches = _room(jobs), np.zeros((dtype.n_planes, n), np.uint32), np.zeros(n, np.uint32)
        # Where a part belongs is known when all before it are done. Until then it waits in memory that was used before:
        # new pages cost more than the copy.
        staged, lock = 0, threading.Lock()

        def step(first: int, last: int, scratch: _Scratch) -> Bytes:
            nonlocal staged
            scratch.grow(dtype.word_nbytes + 1, room, int(worst[first:last].sum()))
            used = kernels.encode_range(
                first, last, jobs, shape, word_map, data, modes, coding, own,
                scratch.planes, room, scratch.stream_words, scratch.streams.arrays(), scratch.record, n_units, n_patches,
            )  # fmt: skip
            with lock:
                at, fits = staged, staged + used <= staging.size
                staged += used if fits else 0
            part = staging[at : at + used] if fits else np.empty(used, np.uint8)
            part[:] = scratch.record[:used]
            return part

        with _borrow(self._staging) as room_for_parts:
            room_for_parts.grow(0, 0, min(data.nbytes, STAGING_NBYTES))
            staging = room_for_parts.record
            parts = self._map(step, n, data.nbytes)
            ends = np.cumsum([part.size for part in parts], dtype=np.int64)
            payload = np.empty(int(ends[-1]) if parts else 0, np.uint8)

            def join(first: int, last: int, _: _Scratch) -> None:
                for part, end in zip(parts[first:last], ends[first:last].tolist(), strict=True):
                    payload[end - part.size : end] = part

            self._map(join, len(parts), payload.size)
        return EncodedSegments(payload, n_units, n_patches)

    def decode_segments(self, plan: SegmentPlan, payload: Any, out: Any) -> NDArray[np.uint8]:
        dtype, tables = plan.dtype, _Tables.of(plan)
        jobs, luts = _jobs(plan, tables), plan.tables.stack(tables.ids, "lut").astype(np.uint32, copy=False)
        own = plan.tables.stack(tables.ids, "prob_bits").astype(np.int64).reshape(-1, 1)
        room, shape, word_map = _room(jobs), _shape(plan.geometry, dtype), _word_map(dtype)
        if payload.size < plan.offsets[-1]:
            raise ValueError(f"the payload has {payload.size} bytes; the plan says {plan.offsets[-1]}")
        source, typed = _bytes(payload), _checked(out, plan.geometry, dtype).reshape(-1)
        target = typed.view(np.uint8)
        status = np.empty(plan.geometry.n_segments, np.uint8)

        kinds, longest = _fused_kinds(plan), int(plan.stream_nbytes.max(initial=0))
        n_planes = 7 + 2 * dtype.word_nbytes if kinds.any() else dtype.word_nbytes + 1

        def step(first: int, last: int, scratch: _Scratch) -> None:
            scratch.grow(n_planes, room)
            scratch.streams.grow(longest)
            arrays = scratch.streams.arrays()
            cuts = first + 1 + np.flatnonzero(np.diff(kinds[first:last]))
            for a, b in pairwise([first, *cuts.tolist(), last]):
                if kinds[a] == 0:
                    kernels.decode_range(
                        a, b, jobs, shape, word_map, source, luts, own, scratch.planes, room, scratch.raw_at, arrays, typed, status
                    )
                else:
                    words = scratch.planes[7 * room : (7 + 2 * dtype.word_nbytes) * room]
                    numba_fused.decode_fused_range(
                        a, b, jobs, shape, word_map, source, luts, own, scratch.planes, room, words, arrays, target, status,
                        (0,) * int(kinds[a]),
                    )  # fmt: skip

        self._map(step, status.size, target.size)
        return status

    def checksums(self, payload: Any, offsets: NDArray[np.int64]) -> NDArray[np.uint32]:
        data, offsets = _bytes(payload), np.ascontiguousarray(offsets, np.int64)
        out = np.empty(offsets.size - 1, np.uint32)

        def step(first: int, last: int, _: _Scratch) -> None:
            crc32_range(data, offsets, first, last, 0, out)

        self._map(step, out.size, int(offsets[-1] - offsets[0]))
        return out

    def crc32(self, words: Any, start: int = 0) -> int:
        data = _bytes(words)
        n = min(self.n_threads, max(1, data.size // INLINE_NBYTES))
        offsets, parts = np.arange(n + 1, dtype=np.int64) * data.size // n, np.empty(n, np.uint32)

        def step(first: int, last: int, _: _Scratch) -> None:
            for k in range(first, last):
                crc32_range(data, offsets, k, k + 1, start if k == 0 else 0, parts)

        self._map(step, n, data.size)
        crc, *others = parts.tolist()
        for part, nbytes in zip(others, np.diff(offsets)[1:].tolist(), strict=True):
            crc = crc32_combine(crc, part, nbytes)
        return int(crc)


def _checked(words: Words, geometry: Geometry, dtype: DType) -> Words:
    """`words`, if they are what the kernels take for granted."""
    if words.shape != (geometry.rows, geometry.cols) or words.dtype != dtype.word_type or not words.flags.c_contiguous:
        due = f"a C-contiguous {dtype.word_type} array of shape {geometry.rows, geometry.cols}"
        raise ValueError(f"{words.dtype} words of shape {words.shape} where {due} is due")
    return words


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
