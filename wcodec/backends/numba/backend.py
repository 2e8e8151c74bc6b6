"""The CPU backend: compiled loops over ranges of segments, one thread a range."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite
import numpy as np
from numpy.typing import NDArray

from wcodec.backends.numba import large_outputs, machine_code, table_lookups
from wcodec.backends.numba import threads as sharing
from wcodec.backends.numba.changes import BLOCK, LIST, PUT_LISTS, PUT_WORDS, TAKE, find_places
from wcodec.backends.numba.checksums import Sums
from wcodec.backends.numba.coding import (
    Counting,
    Decoding,
    Encoding,
    all_sums,
    bytes_of,
    no_sums,
)
from wcodec.backends.numba.cpu import cpu_name
from wcodec.backends.numba.crc32 import SLICES, crc32_range
from wcodec.backends.numba.differences import ADD, SUBTRACT, XOR
from wcodec.backends.numba.ir import CARRYLESS, VARIANT
from wcodec.backends.numba.jobs import payload_nbytes
from wcodec.backends.numba.joint import count_by_line
from wcodec.backends.numba.kernels import Kernel, Native, address_of
from wcodec.backends.numba.scratch import Loans, Scratch
from wcodec.backends.numba.tables import fill_luts, read_tables
from wcodec.backends.protocol import (
    Backend,
    Changes,
    Checksums,
    Difference,
    DType,
    EncodedSegments,
    Geometry,
    ListedSegments,
    Put,
    PutStatus,
    SegmentPlan,
)
from wcodec.errors import BackendUnavailable
from wcodec.reference.checksums import crc32_combine
from wcodec.reference.planes import Bytes
from wcodec.reference.records import check_plan
from wcodec.reference.sparse import GAP_SKIP
from wcodec.reference.tables import MAX_PROB_BITS, Table
from wcodec.reference.tables import read_tables as reference_read_tables

#: what is made of a payload in which the records of each range start and end somewhere
Finish = Callable[[Encoding, Bytes, list[tuple[int, int]]], EncodedSegments]


def _bitcode_of(one: Kernel | Native) -> bytes:
    """Imports numba, which takes longer than all else."""
    try:
        from wcodec.backends.numba import compiling
    except ImportError as e:
        raise ImportError(
            f"kernels.xz cannot be used, and without numba it cannot be made anew ({e})"
        ) from e
    return compiling.bitcode_of(one)


machine_code.use_compiler(_bitcode_of)


class NumbaBackend(Backend):
    """Compiled loops on the CPU. Needs ``llvmlite``, which numba brings along.

    Raises
    ------
    BackendUnavailable
        Its kernels cannot be run here.
    """

    name = "numba"
    takes_spans = True

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(threads)
        _check_kernels()
        table_lookups.choice()
        large_outputs.WAYS.named()
        self._threads = sharing.Threads(threads or len(os.sched_getaffinity(0)))
        self._loans = Loans()

    def info(self) -> dict[str, str]:
        lookups, stores = table_lookups.choice(), large_outputs.choice()
        return {
            "llvmlite": llvmlite.__version__, "numpy": np.__version__,
            "variant": VARIANT, "table lookups": f"{lookups.name} ({lookups.why})",
            "large outputs": f"{stores.name} ({stores.why})",
            "threads": str(self._threads.n), "cpu": cpu_name(),
        }  # fmt: skip

    def close(self) -> None:
        self._threads.close()
        self._loans = Loans()

    def decoding_nbytes(self, segment: int, piece: int, word_nbytes: int) -> int:
        # threads, each with rooms for planes (12 and 4 for each byte of a word), copies of streams
        # (5 of 2 bytes a symbol at most), and words side by side where tiles are narrow
        at_once = min(self._threads.n, -(-piece // segment))
        return at_once * (segment * (24 + 5 * word_nbytes) + (1 << 20))

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
        call = Counting(words, geometry, dtype, segments, planes, (mode,), base, fill)
        self._threads.map(call.run, call.n, call.nbytes)
        return call.counts

    def histograms(
        self,
        words: Any,
        geometry: Geometry,
        dtype: DType,
        modes: Sequence[int],
        *,
        segments: NDArray[np.int64] | None = None,
        planes: tuple[int, ...] | None = None,
    ) -> NDArray[np.int64]:
        call = Counting(words, geometry, dtype, segments, planes, modes, None, 0)
        self._threads.map(call.run, call.n, call.nbytes)
        return call.counts.reshape(len(modes), call.n, *call.counts.shape[1:])

    def joint_histogram(
        self,
        symbols: NDArray[np.uint8],
        rows: NDArray[np.int64],
        cols: NDArray[np.int64],
        bins: NDArray[np.uint8],
        shape: tuple[int, int],
    ) -> NDArray[np.int64]:
        symbols, rows, cols, bins = map(np.ascontiguousarray, (symbols, rows, cols, bins))
        if symbols.shape != (rows.size, cols.size):
            raise ValueError(
                f"symbols of shape {symbols.shape}, {rows.size} rows, {cols.size} cols"
            )
        if bins.shape != (256,):
            raise ValueError(f"bins of shape {bins.shape} where (256,) is due")
        if symbols.size and (
            min(rows.min(), cols.min()) < 0
            or rows.max() + cols.max() >= shape[0]
            or bins.max() >= shape[1]
        ):
            raise ValueError(f"lines or bins beyond {shape}")
        counts = np.zeros(shape, np.uint32)
        firsts = (lines.astype(np.uint64) * np.uint64(shape[1]) for lines in (rows, cols))
        count_by_line(symbols, *firsts, bins, counts.reshape(-1))
        return counts.astype(np.int64)

    def encode_segments(self, plan: SegmentPlan, words: Any) -> EncodedSegments:
        return self._encode(plan, words, no_sums())

    def encode_with_checksums(
        self, plan: SegmentPlan, words: Any
    ) -> tuple[EncodedSegments, Checksums]:
        sums = all_sums(plan)
        encoded = self._encode(plan, words, sums)
        if not sums.made:
            done = plan.encoded(encoded.n_units, encoded.n_patches)
            sums.records = self.checksums(encoded.payload, done.offsets)
        return encoded, self._checksums(sums, words)

    def encode_in_parts(self, plan: SegmentPlan, words: Any) -> tuple[EncodedSegments, Checksums]:
        sums = all_sums(plan)
        if not sums.made:
            return super().encode_in_parts(plan, words)
        return self._encode(plan, words, sums, Encoding.in_parts), self._checksums(sums, words)

    def _checksums(self, sums: Sums, words: Any) -> Checksums:
        return Checksums(sums.records, sums.crc32() if sums.of_words else self.crc32(words))

    def _encode(
        self, plan: SegmentPlan, words: Any, sums: Sums, finish: Finish = Encoding.joined
    ) -> EncodedSegments:
        call = Encoding(plan, words, sums)
        payload = np.asarray(self._loans.borrow(call.worst_nbytes))

        def step(first: int, last: int, scratch: Scratch) -> tuple[int, int]:
            return call.run(first, last, payload, scratch)

        ranges = self._threads.map(step, plan.geometry.n_segments, call.data.nbytes)
        return finish(call, payload, ranges)

    def decode_segments(self, plan: SegmentPlan, payload: Any, out: Any) -> NDArray[np.uint8]:
        return self._decode(plan, payload, out, no_sums())

    def decode_with_checksums(
        self, plan: SegmentPlan, payload: Any, out: Any
    ) -> tuple[NDArray[np.uint8], Checksums]:
        sums = all_sums(plan)
        status = self._decode(plan, payload, out, sums)
        records = sums.records if sums.made else self.checksums(payload, plan.offsets)
        return status, Checksums(records, sums.crc32() if sums.of_words else self.crc32(out))

    def _decode(self, plan: SegmentPlan, payload: Any, out: Any, sums: Sums) -> NDArray[np.uint8]:
        call = Decoding(plan, payload, out, sums)
        self._threads.map(call.run, call.status.size, call.data.size)
        return call.status

    def subtract_base(self, words: Any, base: Any, difference: Difference) -> Any:
        out, top = np.empty(words.shape, words.dtype), 8 * words.itemsize - 1
        flat, others, coded = (bytes_of(a).view(words.dtype) for a in (words, base, out))

        def step(first: int, last: int, _: Scratch) -> None:
            three = flat[first:last], others[first:last], coded[first:last]
            if difference == Difference.XOR:
                XOR[words.itemsize](*three)
            else:
                SUBTRACT[words.itemsize](*three, top)

        self._threads.map(step, out.size, out.nbytes)
        return out

    def add_base(self, coded: Any, base: Any, difference: Difference) -> int:
        work = (XOR if difference == Difference.XOR else ADD)[coded.itemsize]
        words, others = (bytes_of(a).view(coded.dtype) for a in (coded, base))

        def step(first: int, last: int, _: Scratch) -> None:
            work(words[first:last], others[first:last], words[first:last])

        self._threads.map(step, words.size, words.nbytes)
        return self.crc32(coded)

    def list_changes(self, words: Any, base: Any, segment: int, most: int) -> Changes | None:
        flat, others = (bytes_of(a).view(words.dtype) for a in (words, base))
        n_segments = -(-flat.size // segment)
        counts = np.zeros((n_segments, 2), np.int64)

        def step(first: int, last: int, _: Scratch) -> tuple[Any, ...] | None:
            some, other = (a[first * segment : last * segment] for a in (flat, others))
            room = min(most, some.size) + BLOCK
            gaps = np.empty(room + some.size // GAP_SKIP + 1, np.uint8)
            listed, old = np.empty(room, flat.dtype), np.empty(room, flat.dtype)
            of_each = counts[first:last].reshape(-1)
            n = LIST[flat.itemsize](some, other, segment, of_each, gaps, listed, old)
            return None if n < 0 else (gaps[: int(of_each[1::2].sum())], listed[:n], old[:n])

        if flat.size == 0:
            return Changes(none := np.empty(0, np.uint32), none, np.empty(0, np.uint8), flat, flat)
        parts = self._threads.map(step, n_segments, 2 * flat.nbytes)
        n_listed, n_gaps = counts.T.astype(np.uint32)
        if None in parts or int(n_listed.sum()) > most:
            return None
        gaps, listed, old = (np.concatenate(some) for some in zip(*parts, strict=True))
        return Changes(n_listed, n_gaps, gaps, listed, old)

    def places_of(
        self,
        gaps: Any,
        n_gaps: NDArray[np.int64],
        n_listed: NDArray[np.int64],
        starts: NDArray[np.int64],
        sizes: NDArray[np.int64],
    ) -> tuple[Any, NDArray[np.bool_]]:
        places, right = np.empty(int(n_listed.sum()), np.int64), np.empty(n_gaps.size, np.uint8)
        before = np.cumsum(np.stack([n_gaps, n_listed]), axis=1) - np.stack([n_gaps, n_listed])

        def step(first: int, last: int, _: Scratch) -> None:
            of = slice(first, last)
            some = gaps[before[0, first] :], n_gaps[of], n_listed[of], starts[of], sizes[of]
            find_places(*some, places[before[1, first] :], right[of])

        self._threads.map(step, n_gaps.size, 8 * places.size)
        return places, right.view(np.bool_)

    def take(self, words: Any, places: Any) -> Any:
        flat = bytes_of(words).view(words.dtype)
        out = np.empty(places.size, flat.dtype)

        def step(first: int, last: int, _: Scratch) -> None:
            TAKE[flat.itemsize](flat, places[first:last], out[first:last])

        self._threads.map(step, places.size, 8 * places.size)
        return out

    def put(self, words: Any, places: Any, values: Any) -> None:
        flat = bytes_of(words).view(words.dtype)

        def step(first: int, last: int, _: Scratch) -> None:
            PUT_WORDS[flat.itemsize](flat, places[first:last], values[first:last])

        self._threads.map(step, places.size, 8 * places.size)

    def put_lists(
        self,
        arrays: Sequence[Any],
        gaps: Any,
        listed: Any,
        segments: ListedSegments,
        difference: Difference,
    ) -> Put:
        size = listed.dtype.itemsize
        starts = np.array([address_of(array) for array in arrays], np.int64)
        if not CARRYLESS or (starts % size).any():
            return super().put_lists(arrays, gaps, listed, segments, difference)
        starts //= size
        ends_of_arrays = starts + [array.size for array in arrays]
        words = [int(starts.min()) * size, int(ends_of_arrays.max() - starts.min())]
        places, before = np.empty(listed.size, np.int64), np.empty(listed.size, listed.dtype)
        status = np.full(segments.of.size, PutStatus.OTHER, np.uint8)
        gap_ends, ends = np.append(0, np.cumsum(segments.n_gaps)), segments.ends()
        columns = (starts - starts.min())[segments.of], *segments[1:5]

        def step(first: int, last: int, scratch: Scratch) -> None:
            a, b = slice(first, last), int(ends[first])
            lists = gaps[gap_ends[first] :], *(column[a] for column in columns), places[b:]
            PUT_LISTS[size](
                words, lists, listed[b:], before[b:], int(difference == Difference.MINUS),
                segments.words_crc32[a], (SLICES, scratch.rest.value), status[a],
            )  # fmt: skip

        put = Put(status, places, before)
        try:
            self._threads.map(step, status.size, 32 * listed.size)
        except BaseException:
            self._take_back(arrays, put, segments, range(len(arrays)))
            raise
        if wrong := put.wrong_arrays(segments):
            self._take_back(arrays, put, segments, wrong)
        return put

    def _take_back(
        self, arrays: Sequence[Any], put: Put, segments: ListedSegments, numbers: Sequence[int]
    ) -> None:
        """Undo what was put into some arrays."""
        ends, is_put = segments.ends(), put.status == PutStatus.PUT.value
        for k in np.flatnonzero(is_put & np.isin(segments.of, numbers)).tolist():
            some = slice(int(ends[k]), int(ends[k + 1]))
            self.put(arrays[int(segments.of[k])], put.places[some], put.before[some])

    def read_tables(self, data: bytes, offset: int, n: int) -> tuple[list[Table], int]:
        raw, tables, at = np.frombuffer(data, np.uint8), list[Table](), offset
        while len(tables) < n:
            some = min(n - len(tables), 64)
            freq, prob_bits = np.zeros((some, 256), np.int64), np.zeros(some, np.int64)
            at = read_tables(raw, at, freq, prob_bits)
            if at < 0:
                return reference_read_tables(data, offset, n)  # which says what is wrong
            tables += map(Table.checked, freq, prob_bits.tolist())
        return tables, at

    def check_plan(self, plan: SegmentPlan) -> None:
        nbytes = payload_nbytes(plan)
        if nbytes < 0:
            check_plan(plan)  # says what is wrong
            raise AssertionError("a segment table is wrong, and all right")
        vars(plan)["payload_nbytes"] = nbytes

    def checksums(self, payload: Any, offsets: NDArray[np.int64]) -> NDArray[np.uint32]:
        data, offsets = bytes_of(payload), np.ascontiguousarray(offsets, np.int64)
        out = np.empty(offsets.size - 1, np.uint32)

        def step(first: int, last: int, _: Scratch) -> None:
            crc32_range(data, offsets, first, last, 0, out)

        self._threads.map(step, out.size, int(offsets[-1] - offsets[0]))
        return out

    def crc32(self, words: Any, start: int = 0) -> int:
        data = bytes_of(words)
        n = min(self._threads.n, max(1, data.size // sharing.INLINE_NBYTES))
        offsets, parts = np.arange(n + 1, dtype=np.int64) * data.size // n, np.empty(n, np.uint32)

        def step(first: int, last: int, _: Scratch) -> None:
            for k in range(first, last):
                crc32_range(data, offsets, k, k + 1, start if k == 0 else 0, parts)

        self._threads.map(step, n, data.size)
        crc, *others = parts.tolist()
        for part, nbytes in zip(others, np.diff(offsets)[1:].tolist(), strict=True):
            crc = crc32_combine(crc, part, nbytes)
        return int(crc)


def _check_kernels() -> None:
    """Run a kernel, to be sure that they can be loaded."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        raise BackendUnavailable(
            "NUMBA_DISABLE_JIT is set, which forbids compiled code: unset it, or use the backend "
            "reference"
        )
    freq, luts = np.zeros((1, 256), np.int64), np.empty((1, 1 << MAX_PROB_BITS), np.uint32)
    freq[0, 7] = 1 << MAX_PROB_BITS
    try:
        fill_luts(freq, luts)
    except Exception as e:  # of LLVM, numba or the machine code
        raise BackendUnavailable(f"kernels of the numba backend cannot be run here: {e}") from e
    if luts[0, 1] != freq[0, 7] << 20 & 0xFFFFFFFF | 1 << 8 | 7:
        raise BackendUnavailable("a kernel of the numba backend has given a wrong result")
