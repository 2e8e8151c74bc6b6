"""The CPU backend: compiled loops (`wcodec.backends.numba.segments`) over ranges of segments, one
thread a range.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from importlib.metadata import version
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

import numba
import numpy as np
from numba.core import event
from numpy.typing import NDArray

from wcodec.backends.numba import common_segments as common
from wcodec.backends.numba import contexts
from wcodec.backends.numba import jobs as plans
from wcodec.backends.numba import segments as kernels
from wcodec.backends.numba.checksums import Sums, crc32_range
from wcodec.backends.numba.differences import add_range, subtract_range, xor_range
from wcodec.backends.numba.ir import VARIANT
from wcodec.backends.numba.jobs import Ints, Jobs
from wcodec.backends.numba.merge import merger as vector_merger
from wcodec.backends.numba.rans import VECTOR_BITS
from wcodec.backends.numba.scratch import Loans, Memory, Scratch, borrow_scratch
from wcodec.backends.numba.segments import WITH_CONTEXTS
from wcodec.backends.numba.split import splitter as vector_splitter
from wcodec.backends.numba.tables import fill_luts, read_tables
from wcodec.backends.numba.words import merger, splitter
from wcodec.backends.protocol import (
    Backend,
    Checksums,
    Difference,
    DType,
    EncodedSegments,
    Geometry,
    SegmentPlan,
)
from wcodec.reference import entropy
from wcodec.reference.checksums import crc32_combine
from wcodec.reference.entropy import Table
from wcodec.reference.planes import Bytes, Words

T = TypeVar("T")

#: words that a thread takes at once: enough to be worth it, little enough to share out
TASK_NBYTES: Final = 1 << 23
#: less than that is done in the caller's thread: to wake another one takes as long
INLINE_NBYTES: Final = 1 << 20


class _Announcement(event.Listener):
    """Says once that kernels are being compiled, which takes seconds: on a logger that the command
    line shows on a terminal.

    Numba tells of all that it compiles, a user's own functions too.
    """

    said = False

    def on_start(self, event: Any) -> None:
        module = (
            getattr(getattr(event.data.get("dispatcher"), "py_func", None), "__module__", None)
            or ""
        )
        if not self.said and module.startswith(__name__.rpartition(".")[0] + "."):
            _compile_log.info(
                "numba: compiling for this CPU; the machine code is kept for later runs"
            )
            self.said = True

    def on_end(self, event: Any) -> None:
        """Nothing to say."""


_compile_log = logging.getLogger("wcodec.compile")
_register: Any = event.register
_register("numba:compile", _Announcement())


def _bytes(array: NDArray[Any]) -> Bytes:
    """The bytes of a contiguous array.

    Read-only memory (a mapped file) has another type in numba, for which it would compile all anew.
    Kernels do not write to their inputs, so inputs may all pass for writeable.
    """
    flat = array.reshape(-1).view(np.uint8)
    return flat if flat.flags.writeable else np.asarray(Memory(flat))


def _runs(kinds: Ints, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Ranges of segments of the same kind."""
    cuts = first + 1 + np.flatnonzero(np.diff(kinds[first:last]))
    return pairwise([first, *cuts.tolist(), last])


def _sums(plan: SegmentPlan) -> Sums:
    """For all checksums."""
    g = plan.geometry
    return Sums(
        g.n_segments,
        (g.rows, g.cols, max(1, min(g.segment_cols, g.cols)), plan.dtype.word_nbytes),
        True,
    )


class NumbaBackend(Backend):
    """Compiled loops on the CPU. Needs ``numba``."""

    name = "numba"

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(threads)
        self.n_threads = threads or len(os.sched_getaffinity(0))
        self._lock, self._pid = threading.Lock(), os.getpid()
        self._executor: ThreadPoolExecutor | None = None
        self._free: list[Scratch] = []
        self._loans = Loans()

    def info(self) -> dict[str, str]:
        return {
            "numba": numba.__version__, "llvmlite": version("llvmlite"), "numpy": np.__version__,
            "variant": VARIANT, "threads": str(self.n_threads), "cpu": _cpu_name(),
        }  # fmt: skip

    # ---- threads
    def _map(self, step: Callable[[int, int, Scratch], T], n: int, nbytes: int) -> list[T]:
        """``step(first, last, scratch)`` for ranges that make up `n` segments of `nbytes` bytes in
        all.

        The caller's thread takes part: Linux wakes two threads of a waiting caller on the same
        core, and moves one only after 2 to 4 ms.
        """
        if n == 0:
            return []
        size = n
        if self.n_threads > 1 and nbytes >= INLINE_NBYTES:
            size = max(1, min(-(-n // self.n_threads), n * TASK_NBYTES // nbytes))

        firsts, turns, out = range(0, n, size), count(), list[Any]([None] * -(-n // size))

        def work() -> None:
            with borrow_scratch(self._free) as scratch:
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
        # a forked child has none of its parent's threads
        if self._executor is None or self._pid != os.getpid():
            self._executor, self._pid = (
                ThreadPoolExecutor(self.n_threads - 1, "wcodec"),
                os.getpid(),
            )
        return self._executor

    def close(self) -> None:
        with self._lock:
            executor, self._executor, self._free, self._loans = self._executor, None, [], Loans()
        if executor is not None:
            executor.shutdown()

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
        jobs, (height, width) = plans.rectangles(geometry, dtype, segments), plans.largest(geometry)
        nibbles = base is not None and dtype.word_nbytes == 1
        which = np.array(
            range(2 if nibbles else dtype.word_nbytes) if planes is None else planes, np.int64
        )
        counts = np.empty(
            (len(jobs), which.size + (base is not None and not nibbles), 256), np.int64
        )
        data, word_map = _bytes(_checked(words, geometry, dtype)), plans.word_map(dtype.id)
        shape, room = plans.matrix_shape(geometry, dtype), plans.plane_room(geometry)
        raster = height <= geometry.tile_rows and width <= geometry.tile_cols
        kind, window = (
            plans.fused_kinds(dtype.id)[base is not None] if raster else 0,
            -1 if base is None else base,
        )
        split = (
            vector_splitter(kind, nibbles or bool((which > 0).any()))
            if kind
            else splitter(dtype.word_nbytes)
        )

        def step(first: int, last: int, scratch: Scratch) -> None:
            scratch.streams.need_transforms({mode})
            if kind:
                scratch.grow(common.SHARE + dtype.word_nbytes, room)
                common.histogram_fused_range(
                    first,
                    last,
                    jobs,
                    shape,
                    data,
                    which,
                    mode,
                    window,
                    fill,
                    scratch.planes,
                    room,
                    scratch.planes[common.SHARE * room :],
                    scratch.split,
                    scratch.four,
                    scratch.streams.natives,
                    counts,
                    split,
                )
            else:
                scratch.grow(dtype.word_nbytes + 1, room)
                side = scratch.grow_side(room, shape, width)
                kernels.histogram_range(
                    first,
                    last,
                    jobs,
                    shape,
                    word_map,
                    data,
                    which,
                    mode,
                    window,
                    fill,
                    scratch.planes,
                    room,
                    side,
                    scratch.four,
                    scratch.streams.natives,
                    counts,
                    scratch.addresses,
                    split,
                )

        self._map(
            step,
            len(jobs),
            int((jobs[:, kernels.HEIGHT] * jobs[:, kernels.WIDTH]).sum()) * dtype.word_nbytes,
        )
        return counts

    def encode_segments(self, plan: SegmentPlan, words: Any) -> EncodedSegments:
        return self._encode(plan, words, Sums(0, (0, 1, 1, 1), False))

    def encode_with_checksums(
        self, plan: SegmentPlan, words: Any
    ) -> tuple[EncodedSegments, Checksums]:
        sums = _sums(plan)
        encoded = self._encode(plan, words, sums)
        done = encoded.payload
        if not sums.made:
            sums.records = self.checksums(
                done, plan.encoded(encoded.n_units, encoded.n_patches).offsets
            )
        return encoded, Checksums(
            sums.records, sums.crc32() if sums.of_words else self.crc32(words)
        )

    def _encode(self, plan: SegmentPlan, words: Any, sums: Sums) -> EncodedSegments:
        n, g, dtype, of_plan = (
            plan.geometry.n_segments,
            plan.geometry,
            plan.dtype,
            Jobs.of(plan, encoding=True),
        )
        jobs, kinds, tables, _ = of_plan
        worst, (coding, entries, context_entries) = (
            plans.worst_nbytes(plan),
            plans.coding_tables(tables),
        )
        own = np.array([(t.prob_bits, t.padding) for t in tables], np.int64).reshape(-1, 2)
        modes = np.empty(0, np.uint8) if plan.modes is None else _bytes(plan.modes)
        data, shape, word_map = (
            _bytes(_checked(words, g, dtype)),
            plans.matrix_shape(g, dtype),
            plans.word_map(dtype.id),
        )
        maps, used_modes = of_plan.map_arrays(own, 256), plans.used_modes(plan)
        scales = np.empty(0, np.uint8) if plan.scales is None else _bytes(plan.scales)
        coded = np.flatnonzero(kinds > 0)
        kinds[coded[own[jobs[coded, kernels.N_COLUMNS + kernels.TABLE], 0] < VECTOR_BITS]] = 0
        room, n_units, n_patches = (
            plans.plane_room(g),
            np.zeros((dtype.n_planes, n), np.uint32),
            np.zeros(n, np.uint32),
        )
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(worst)])
        # each thread writes where its part would start at worst
        payload = np.asarray(self._loans.borrow(int(starts[-1])))

        def step(first: int, last: int, scratch: Scratch) -> tuple[int, int]:
            scratch.grow(2 * common.SHARE + dtype.word_nbytes, room, encoding=True)
            side = scratch.grow_side(room, shape, plans.largest(g)[1])
            scratch.streams.need_transforms(used_modes)
            start, arrays, crcs = int(starts[first]), scratch.streams.arrays(), sums.arrays()
            at = start
            for a, b in _runs(kinds, first, last):
                if kinds[a] == 0:
                    at += kernels.encode_range(
                        a,
                        b,
                        jobs,
                        shape,
                        word_map,
                        data,
                        modes,
                        coding,
                        entries,
                        own,
                        scratch.planes,
                        room,
                        side,
                        scratch.stream_words,
                        arrays,
                        crcs,
                        payload[at:],
                        n_units,
                        n_patches,
                        scratch.addresses,
                        splitter(dtype.word_nbytes),
                    )
                elif kinds[a] == WITH_CONTEXTS:
                    scratch.streams.need_contexts()
                    at += contexts.encode_context_range(
                        a,
                        b,
                        jobs,
                        shape,
                        word_map,
                        data,
                        modes,
                        scales,
                        coding,
                        context_entries,
                        maps,
                        scratch.planes,
                        room,
                        side,
                        scratch.stream_words,
                        arrays,
                        crcs,
                        payload[at:],
                        n_units,
                        n_patches,
                        scratch.addresses,
                        splitter(dtype.word_nbytes),
                    )
                else:
                    at += common.encode_fused_range(
                        a,
                        b,
                        jobs,
                        shape,
                        data,
                        coding,
                        entries,
                        own,
                        scratch.planes,
                        room,
                        scratch.planes[2 * common.SHARE * room :],
                        scratch.split,
                        scratch.stream_words,
                        arrays,
                        crcs,
                        payload[at:],
                        n_units,
                        n_patches,
                        vector_splitter(int(kinds[a]), True),
                    )
            return start, at

        end = 0
        for start, behind in self._map(step, n, data.nbytes):
            if start > end:  # closes the gap
                ctypes.memmove(
                    payload[end:].ctypes.data, payload[start:].ctypes.data, behind - start
                )
            end += behind - start
        return EncodedSegments(payload[:end], n_units, n_patches)

    def decode_segments(self, plan: SegmentPlan, payload: Any, out: Any) -> NDArray[np.uint8]:
        return self._decode(plan, payload, out, Sums(0, (0, 1, 1, 1), False))

    def decode_with_checksums(
        self, plan: SegmentPlan, payload: Any, out: Any
    ) -> tuple[NDArray[np.uint8], Checksums]:
        sums = _sums(plan)
        status = self._decode(plan, payload, out, sums)
        records = sums.records if sums.made else self.checksums(payload, plan.offsets)
        return status, Checksums(records, sums.crc32() if sums.of_words else self.crc32(out))

    def _decode(self, plan: SegmentPlan, payload: Any, out: Any, sums: Sums) -> NDArray[np.uint8]:
        g, dtype, of_plan = plan.geometry, plan.dtype, Jobs.of(plan)
        jobs, kinds, tables, _ = of_plan
        luts, own = (
            np.empty((len(tables), 1 << entropy.MAX_PROB_BITS), np.uint32),
            np.empty((len(tables), 1), np.int64),
        )
        fill_luts(plans.frequencies(tables), luts)
        own[:, 0] = [t.prob_bits for t in tables]
        maps, used_modes = (
            of_plan.map_arrays(own, 1 << entropy.MAX_PROB_BITS),
            plans.used_modes(plan),
        )
        room, shape, word_map = (
            plans.plane_room(g),
            plans.matrix_shape(g, dtype),
            plans.word_map(dtype.id),
        )
        if payload.size < plan.offsets[-1]:
            raise ValueError(
                f"the payload has {payload.size} bytes; the plan says {plan.offsets[-1]}"
            )
        source, target = _bytes(payload), _checked(out, g, dtype).reshape(-1).view(np.uint8)
        status = np.empty(g.n_segments, np.uint8)

        longest = int(plan.stream_nbytes.max(initial=0))
        n_planes = 6 + 2 * dtype.word_nbytes if kinds.any() else dtype.word_nbytes + 1
        if maps:
            n_planes = 2 * (contexts.N_ROOMS + dtype.word_nbytes)

        def step(first: int, last: int, scratch: Scratch) -> None:
            scratch.grow(n_planes, room)
            side = scratch.grow_side(room, shape, plans.largest(g)[1])
            scratch.streams.grow(longest)
            scratch.streams.need_transforms(used_modes)
            arrays, crcs = scratch.streams.arrays(), sums.arrays()
            for a, b in _runs(kinds, first, last):
                if kinds[a] == 0:
                    kernels.decode_range(
                        a,
                        b,
                        jobs,
                        shape,
                        word_map,
                        source,
                        luts,
                        own,
                        scratch.planes,
                        room,
                        side,
                        arrays,
                        crcs,
                        target,
                        status,
                        scratch.addresses,
                        merger(dtype.word_nbytes),
                    )
                elif kinds[a] == WITH_CONTEXTS:
                    scratch.streams.need_contexts()
                    contexts.decode_context_range(
                        a,
                        b,
                        jobs,
                        shape,
                        word_map,
                        source,
                        luts,
                        maps,
                        scratch.planes,
                        room,
                        side,
                        arrays,
                        crcs,
                        target,
                        status,
                        scratch.addresses,
                        merger(dtype.word_nbytes),
                    )
                else:
                    common.decode_fused_range(
                        a,
                        b,
                        jobs,
                        shape,
                        word_map,
                        source,
                        luts,
                        own,
                        scratch.planes,
                        room,
                        scratch.planes[6 * room :],
                        scratch.symbols,
                        scratch.merging,
                        scratch.lanes,
                        arrays,
                        crcs,
                        target,
                        status,
                        vector_merger(int(kinds[a]), sums.of_words),
                    )

        self._map(step, status.size, target.size)
        return status

    def subtract_base(self, words: Any, base: Any, difference: Difference) -> Any:
        out, top = np.empty(words.shape, words.dtype), 8 * words.itemsize - 1
        flat, others, coded = (_bytes(a).view(words.dtype) for a in (words, base, out))

        def step(first: int, last: int, _: Scratch) -> None:
            if difference == Difference.XOR:
                xor_range(flat[first:last], others[first:last], coded[first:last])
            else:
                subtract_range(flat[first:last], others[first:last], coded[first:last], top)

        self._map(step, out.size, out.nbytes)
        return out

    def add_base(self, coded: Any, base: Any, difference: Difference) -> int:
        work = xor_range if difference == Difference.XOR else add_range
        words, others = (_bytes(a).view(coded.dtype) for a in (coded, base))

        def step(first: int, last: int, _: Scratch) -> None:
            work(words[first:last], others[first:last], words[first:last])

        self._map(step, words.size, words.nbytes)
        return self.crc32(coded)

    def read_tables(self, data: bytes, offset: int, n: int) -> tuple[list[Table], int]:
        raw, tables, at = np.frombuffer(data, np.uint8), list[Table](), offset
        while len(tables) < n:
            some = min(n - len(tables), 64)
            freq, prob_bits = np.zeros((some, 256), np.int64), np.zeros(some, np.int64)
            at = read_tables(raw, at, freq, prob_bits)
            if at < 0:
                return entropy.read_tables(data, offset, n)  # which says what is wrong
            tables += map(Table, freq, prob_bits.tolist())
        return tables, at

    def checksums(self, payload: Any, offsets: NDArray[np.int64]) -> NDArray[np.uint32]:
        data, offsets = _bytes(payload), np.ascontiguousarray(offsets, np.int64)
        out = np.empty(offsets.size - 1, np.uint32)

        def step(first: int, last: int, _: Scratch) -> None:
            crc32_range(data, offsets, first, last, 0, out)

        self._map(step, out.size, int(offsets[-1] - offsets[0]))
        return out

    def crc32(self, words: Any, start: int = 0) -> int:
        data = _bytes(words)
        n = min(self.n_threads, max(1, data.size // INLINE_NBYTES))
        offsets, parts = np.arange(n + 1, dtype=np.int64) * data.size // n, np.empty(n, np.uint32)

        def step(first: int, last: int, _: Scratch) -> None:
            for k in range(first, last):
                crc32_range(data, offsets, k, k + 1, start if k == 0 else 0, parts)

        self._map(step, n, data.size)
        crc, *others = parts.tolist()
        for part, nbytes in zip(others, np.diff(offsets)[1:].tolist(), strict=True):
            crc = crc32_combine(crc, part, nbytes)
        return int(crc)


def _checked(words: Words, geometry: Geometry, dtype: DType) -> Words:
    """`words`, if they are what the kernels take for granted."""
    if (
        words.shape != (geometry.rows, geometry.cols)
        or words.dtype != dtype.word_type
        or not words.flags.c_contiguous
    ):
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
