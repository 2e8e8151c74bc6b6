"""The CPU backend: compiled loops (`wcodec.backends.numba_kernels`) over ranges of segments, one thread a range."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import numba
import numpy as np
from numba.core import event
from numpy.typing import NDArray

from wcodec.backends import numba_fused, numba_ir, numba_merge, numba_split, numba_vector
from wcodec.backends import numba_kernels as kernels
from wcodec.backends.numba_crc import Sums, crc32_range
from wcodec.backends.numba_ir import VARIANT
from wcodec.backends.numba_streams import VECTOR_BITS, Work
from wcodec.backends.protocol import Backend, Checksums, DType, EncodedSegments, Geometry, SegmentPlan
from wcodec.reference import entropy
from wcodec.reference.checksums import crc32_combine
from wcodec.reference.planes import Bytes, Layout, WordMap, Words
from wcodec.reference.segments import Coder, padded

T = TypeVar("T")
Ints = NDArray[np.int64]

TASK_NBYTES: Final = 1 << 23  #: words that a thread takes at once: enough to be worth it, little enough to share out
INLINE_NBYTES: Final = 1 << 20  #: less than that is done in the caller's thread: to wake another one takes as long
KEPT_LOANS: Final = 4  #: payloads whose memory is kept
KEPT_SEGMENTS: Final = 1024  #: grids of more are not kept
KEPT_NBYTES: Final = 1 << 26  #: larger scratch is not kept
KEPT_LOAN_NBYTES: Final = 1 << 28  #: larger payloads are not kept


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
        self.planes, self.stream_words = np.empty(0, np.uint8), np.empty(0, np.uint16)
        self.four, self.raw_at, self.streams = np.empty(4 * 256, np.uint32), np.empty(8, np.int64), Work()
        self.split = np.zeros(numba_split.N_PARAMS + 8, np.int64)
        self.symbols = np.zeros((2, numba_fused.BLOCK * entropy.GROUP), np.uint8)
        self.merging, self.lanes = np.zeros((2, numba_merge.N_PARAMS), np.int64), np.zeros((2, numba_merge.LANES_NBYTES), np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes that grow."""
        return self.planes.nbytes + self.stream_words.nbytes + self.streams.spare.nbytes

    def grow(self, n_planes: int, room: int, encoding: bool = False) -> None:
        """Make room for planes `room` apart, and for encoding two streams of such planes."""
        if self.planes.size < n_planes * room:
            self.planes = np.empty(n_planes * room, np.uint8)
        if encoding and self.stream_words.size < 2 * (room + 16):
            self.stream_words = np.empty(2 * (room + 16), np.uint16)


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

    def __init__(self, array: Bytes, nbytes: int | None = None) -> None:
        self.array = array  # NumPy keeps this object, which keeps the memory
        address, n = array.__array_interface__["data"][0], array.size if nbytes is None else nbytes
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (n,), "data": (address, False)}


class _Loans:
    """Memory for payloads, taken back when nobody looks at it any more: new pages cost as much as coding."""

    def __init__(self) -> None:
        self.free: list[Bytes] = []

    def borrow(self, nbytes: int) -> _Memory:
        """Memory of that size."""
        try:
            array = self.free.pop()
        except IndexError:
            array = np.empty(0, np.uint8)
        if array.size < nbytes:
            array = np.empty(nbytes, np.uint8)
        memory = _Memory(array, nbytes)
        weakref.finalize(memory, self._take_back, array).atexit = False
        return memory

    def _take_back(self, array: Bytes) -> None:
        if len(self.free) < KEPT_LOANS and array.size <= KEPT_LOAN_NBYTES:
            self.free.append(array)


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


@lru_cache(maxsize=16)
def _blank_jobs(geometry: Geometry, n_planes: int) -> Ints:
    jobs = np.zeros((geometry.n_segments, kernels.N_COLUMNS + n_planes * kernels.PLANE_COLUMNS), np.int64)
    jobs[:, kernels.ROW], jobs[:, kernels.COL] = geometry.corners()
    jobs[:, kernels.HEIGHT], jobs[:, kernels.WIDTH] = geometry.sizes()
    return jobs


def _rectangles(geometry: Geometry, dtype: DType) -> Ints:
    """Jobs of all segments, of which only the rectangles are filled in."""
    if geometry.n_segments > KEPT_SEGMENTS:
        return _blank_jobs.__wrapped__(geometry, dtype.n_planes)
    return _blank_jobs(geometry, dtype.n_planes).copy()


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


def _jobs(plan: SegmentPlan, tables: _Tables, encoding: bool = False) -> Ints:
    """All that the kernels need to know of each segment, one row each; for encoding, not where anything is in the payload."""
    s, n_planes = plan.segments, plan.dtype.n_planes
    jobs = _rectangles(plan.geometry, plan.dtype)
    columns: dict[int, NDArray[Any]] = {
        kernels.LAYOUT: s.layout, kernels.BASE: s.base,
        kernels.N_TILES: plan.geometry.tile_counts(), kernels.MODES_AT: plan.modes_offsets[:-1], kernels.MODES_NBYTES: plan.modes_nbytes,
    }  # fmt: skip
    planes: dict[int, NDArray[Any]] = {kernels.CODER: s.coder, kernels.TABLE: tables.rows, kernels.PREDICTION: s.prediction}
    if plan.fill is not None:
        columns[kernels.FILL] = plan.fill
    if not encoding:
        columns |= {
            kernels.START: plan.offsets[:-1], kernels.END: plan.offsets[1:],
            kernels.PATCHES_AT: plan.patch_offsets, kernels.N_PATCHES: s.n_patches,
        }  # fmt: skip
        planes |= {kernels.AT: plan.plane_offsets, kernels.NBYTES: plan.stream_nbytes}
    for column, values in columns.items():
        jobs[:, column] = values
    of_planes = jobs[:, kernels.N_COLUMNS :].reshape(-1, n_planes, kernels.PLANE_COLUMNS)
    for field, values in planes.items():
        of_planes[:, :, field] = values.T
    return jobs


def _shape(geometry: Geometry, dtype: DType) -> tuple[int, int, int, int]:
    return geometry.cols, geometry.tile_rows, geometry.tile_cols, dtype.word_nbytes


def _room(jobs: Ints) -> int:
    """Bytes for a plane of the largest segment: whole groups, and one for padding."""
    largest = int((jobs[:, kernels.HEIGHT] * jobs[:, kernels.WIDTH]).max(initial=0))
    return (largest // entropy.GROUP + 2) * entropy.GROUP


def _coding(plan: SegmentPlan, tables: _Tables) -> tuple[NDArray[np.uint64], Bytes]:
    """Encoding tables: for each symbol ``ceil(2 ** (32 + prob_bits) / freq)`` and ``freq << 32 | start``; those of `numba_vector`."""
    freq, start = (plan.tables.stack(tables.ids, f).astype(np.uint64).reshape(-1, 256) for f in ("freq", "start"))
    one = np.uint64(1) << (np.uint64(32) + plan.tables.stack(tables.ids, "prob_bits").astype(np.uint64).reshape(-1, 1))
    some = np.maximum(freq, np.uint64(1))
    entries = (freq << np.uint64(20) | start << np.uint64(8)).astype("<u4").view(np.uint8).reshape(-1, 256, 4)
    if numba_ir.BYTE_LOOKUP:
        entries = np.ascontiguousarray(entries[:, :, 1:].transpose(0, 2, 1))
    reciprocals = np.stack([(one + some - np.uint64(1)) // some, freq << np.uint64(32) | start], axis=-1)
    return reciprocals, entries.reshape(len(freq), entries.shape[1] * entries.shape[2])


def _kind(dtype: DType, pairs: bool) -> int:
    """Number of the vector kernels that suit a layout (`numba_vector.KINDS`, from 1), or 0 for none."""
    name = dtype.word_map.name.lower().replace("_first", f" {dtype.exponent_bits}")
    kind = (pairs, dtype.word_nbytes, name)
    return 1 + numba_vector.KINDS.index(kind) if VARIANT != "plain" and kind in numba_vector.KINDS else 0


def _fused_kinds(plan: SegmentPlan) -> Ints:
    """For each segment the number of the fused kernels that suit it, or 0 for none."""
    s, geometry = plan.segments, plan.geometry
    heights, widths = geometry.sizes()
    suits = (s.layout != Layout.RAW) & (s.coder[0] == Coder.RANS) & ~s.prediction.any(axis=0)
    suits &= (heights <= geometry.tile_rows) & (widths <= geometry.tile_cols)
    return np.where(suits, np.where(s.layout == Layout.PAIRS, _kind(plan.dtype, True), _kind(plan.dtype, False)), 0)


def _runs(kinds: Ints, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Ranges of segments of the same kind."""
    cuts = first + 1 + np.flatnonzero(np.diff(kinds[first:last]))
    return pairwise([first, *cuts.tolist(), last])


def _sums(plan: SegmentPlan) -> Sums:
    """For all checksums."""
    g = plan.geometry
    return Sums(g.n_segments, (g.rows, g.cols, max(1, min(g.segment_cols, g.cols)), plan.dtype.word_nbytes), True)


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
        self._loans = _Loans()

    def info(self) -> dict[str, str]:
        return {
            "numba": numba.__version__, "llvmlite": version("llvmlite"), "numpy": np.__version__,
            "variant": VARIANT, "threads": str(self.n_threads), "cpu": _cpu_name(),
        }  # fmt: skip

    # ---- threads
    def _map(self, step: Callable[[int, int, _Scratch], T], n: int, nbytes: int) -> list[T]:
        """``step(first, last, scratch)`` for ranges that make up `n` segments of `nbytes` bytes in all.

        The caller's thread takes part: Linux wakes two threads of a waiting caller on the same core, and moves one only after 2 to 4 ms.
        """
        if n == 0:
            return []
        size = n
        if self.n_threads > 1 and nbytes >= INLINE_NBYTES:
            size = max(1, min(-(-n // self.n_threads), n * TASK_NBYTES // nbytes))

        firsts, turns, out = range(0, n, size), count(), list[Any]([None] * -(-n // size))

        def work() -> None:
            with _borrow(self._free) as scratch:
                while (i := next(turns)) < len(firsts):
                    out[i] = step(firsts[i], min(firsts[i] + size, n), scratch)

        if len(firsts) == 1:
            work()
            return out
        with self._lock:  # so that `close` finds all helpers, or none
            executor = self._threads()
            helpers = [executor.submit(work) for _ in range(min(self.n_threads, len(firsts)) - 1)]
        try:
            work()
        finally:  # after an error or an interrupt, none may go on to write to the caller's arrays
            turns = count(len(firsts))
            wait([h for h in helpers if not h.cancel()])
        for helper in helpers:
            if not helper.cancelled():
                helper.result()
        return out

    def _threads(self) -> ThreadPoolExecutor:
        if self._executor is None or self._pid != os.getpid():  # a forked child has none of its parent's threads
            self._executor, self._pid = ThreadPoolExecutor(self.n_threads - 1, "wcodec"), os.getpid()
        return self._executor

    def close(self) -> None:
        with self._lock:
            executor, self._executor, self._free, self._loans = self._executor, None, [], _Loans()
        if executor is not None:
            executor.shutdown()

    # ---- kernels
    def histogram(
        self, words: Any, geometry: Geometry, dtype: DType, *,
        segments: NDArray[np.int64] | None = None, planes: tuple[int, ...] | None = None,
        mode: int = 0, base: int | None = None, fill: int = 0,
    ) -> NDArray[np.int64]:  # fmt: skip
        jobs = _rectangles(geometry, dtype)
        if segments is not None:
            jobs = np.ascontiguousarray(jobs[segments])
        nibbles = base is not None and dtype.word_nbytes == 1
        which = np.array(range(2 if nibbles else dtype.word_nbytes) if planes is None else planes, np.int64)
        counts = np.empty((len(jobs), which.size + (base is not None and not nibbles), 256), np.int64)
        data, shape, word_map, room = _words(words, geometry, dtype), _shape(geometry, dtype), _word_map(dtype), _room(jobs)
        raster = bool((jobs[:, kernels.HEIGHT] <= shape[1]).all() and (jobs[:, kernels.WIDTH] <= shape[2]).all())
        kind, window = _kind(dtype, base is not None) if raster else 0, -1 if base is None else base
        splitter = numba_split.splitter(kind, nibbles or bool((which > 0).any())) if kind else 0

        def step(first: int, last: int, scratch: _Scratch) -> None:
            if kind:
                scratch.grow(numba_fused.SHARE + dtype.word_nbytes, room)
                numba_fused.histogram_fused_range(
                    first, last, jobs, shape, data.view(np.uint8), which, mode, window, fill, scratch.planes, room,
                    scratch.planes[numba_fused.SHARE * room :], scratch.split, scratch.four, counts, splitter,
                )  # fmt: skip
            else:
                scratch.grow(dtype.word_nbytes + 1, room)
                kernels.histogram_range(
                    first, last, jobs, shape, word_map, data, which, mode, window, fill, scratch.planes, room, scratch.four, counts
                )

        self._map(step, len(jobs), int((jobs[:, kernels.HEIGHT] * jobs[:, kernels.WIDTH]).sum()) * dtype.word_nbytes)
        return counts

    def encode_segments(self, plan: SegmentPlan, words: Any) -> EncodedSegments:
        return self._encode(plan, words, Sums(0, (0, 1, 1, 1), False))

    def encode_with_checksums(self, plan: SegmentPlan, words: Any) -> tuple[EncodedSegments, Checksums]:
        sums = _sums(plan)
        encoded = self._encode(plan, words, sums)
        done = encoded.payload
        if not sums.made:
            sums.records = self.checksums(done, plan.encoded(encoded.n_units, encoded.n_patches).offsets)
        return encoded, Checksums(sums.records, sums.crc32() if sums.of_words else self.crc32(words))

    def _encode(self, plan: SegmentPlan, words: Any, sums: Sums) -> EncodedSegments:
        n, dtype, tables = plan.geometry.n_segments, plan.dtype, _Tables.of(plan)
        jobs, worst, (coding, entries) = _jobs(plan, tables, True), _worst_nbytes(plan), _coding(plan, tables)
        own = np.array([(plan.tables[i].prob_bits, plan.tables[i].padding) for i in tables.ids], np.int64).reshape(-1, 2)
        modes = np.empty(0, np.uint8) if plan.modes is None else _bytes(plan.modes)
        data, shape, word_map = _words(words, plan.geometry, dtype), _shape(plan.geometry, dtype), _word_map(dtype)
        kinds = _fused_kinds(plan)
        coded = np.flatnonzero(kinds)
        kinds[coded[own[tables.rows[0, coded], 0] < VECTOR_BITS]] = 0
        room, n_units, n_patches = _room(jobs), np.zeros((dtype.n_planes, n), np.uint32), np.zeros(n, np.uint32)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(worst)])
        payload = np.asarray(self._loans.borrow(int(starts[-1])))  # each thread writes where its part would start at worst

        def step(first: int, last: int, scratch: _Scratch) -> tuple[int, int]:
            scratch.grow(2 * numba_fused.SHARE + dtype.word_nbytes, room, encoding=True)
            start, arrays, crcs = int(starts[first]), scratch.streams.arrays(), sums.arrays()
            at = start
            for a, b in _runs(kinds, first, last):
                if kinds[a] == 0:
                    at += kernels.encode_range(
                        a, b, jobs, shape, word_map, data, modes, coding, entries, own,
                        scratch.planes, room, scratch.stream_words, arrays, crcs, payload[at:], n_units, n_patches,
                    )  # fmt: skip
                else:
                    at += numba_fused.encode_fused_range(
                        a, b, jobs, shape, data.view(np.uint8), coding, entries, own, scratch.planes, room,
                        scratch.planes[2 * numba_fused.SHARE * room :], scratch.split, scratch.stream_words, arrays, crcs, payload[at:],
                        n_units, n_patches, numba_split.splitter(int(kinds[a]), True),
                    )  # fmt: skip
            return start, at

        end = 0
        for start, behind in self._map(step, n, data.nbytes):
            if start > end:  # closes the gap
                ctypes.memmove(payload[end:].ctypes.data, payload[start:].ctypes.data, behind - start)
            end += behind - start
        return EncodedSegments(payload[:end], n_units, n_patches)

    def decode_segments(self, plan: SegmentPlan, payload: Any, out: Any) -> NDArray[np.uint8]:
        return self._decode(plan, payload, out, Sums(0, (0, 1, 1, 1), False))

    def decode_with_checksums(self, plan: SegmentPlan, payload: Any, out: Any) -> tuple[NDArray[np.uint8], Checksums]:
        sums = _sums(plan)
        status = self._decode(plan, payload, out, sums)
        records = sums.records if sums.made else self.checksums(payload, plan.offsets)
        return status, Checksums(records, sums.crc32() if sums.of_words else self.crc32(out))

    def _decode(self, plan: SegmentPlan, payload: Any, out: Any, sums: Sums) -> NDArray[np.uint8]:
        dtype, tables = plan.dtype, _Tables.of(plan)
        jobs, luts = _jobs(plan, tables), np.empty((tables.ids.size, 1 << entropy.MAX_PROB_BITS), np.uint32)
        kernels.fill_luts(plan.tables.stack(tables.ids, "freq").reshape(-1, 256), luts)
        own = plan.tables.stack(tables.ids, "prob_bits").astype(np.int64).reshape(-1, 1)
        room, shape, word_map = _room(jobs), _shape(plan.geometry, dtype), _word_map(dtype)
        if payload.size < plan.offsets[-1]:
            raise ValueError(f"the payload has {payload.size} bytes; the plan says {plan.offsets[-1]}")
        source, typed = _bytes(payload), _checked(out, plan.geometry, dtype).reshape(-1)
        target = typed.view(np.uint8)
        status = np.empty(plan.geometry.n_segments, np.uint8)

        kinds, longest = _fused_kinds(plan), int(plan.stream_nbytes.max(initial=0))
        n_planes = 6 + 2 * dtype.word_nbytes if kinds.any() else dtype.word_nbytes + 1

        def step(first: int, last: int, scratch: _Scratch) -> None:
            scratch.grow(n_planes, room)
            scratch.streams.grow(longest)
            arrays, crcs = scratch.streams.arrays(), sums.arrays()
            for a, b in _runs(kinds, first, last):
                if kinds[a] == 0:
                    kernels.decode_range(
                        a, b, jobs, shape, word_map, source, luts, own, scratch.planes, room, scratch.raw_at, arrays, crcs, typed, status
                    )
                else:
                    numba_fused.decode_fused_range(
                        a, b, jobs, shape, word_map, source, luts, own, scratch.planes, room, scratch.planes[6 * room :],
                        scratch.symbols, scratch.merging, scratch.lanes, arrays, crcs, target, status,
                        numba_merge.merger(int(kinds[a]), sums.of_words),
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
