"""Decoding of work lists: which kernels, on which segments, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.cuda.runtime import Runtime
from wcodec.backends.cuda.worklist import (
    Array,
    Batches,
    Ids,
    Packed,
    WorkItem,
    WorkList,
    whole_groups,
)
from wcodec.reference.planes import Layout
from wcodec.reference.prediction import Mode
from wcodec.reference.segments import Coder, Status
from wcodec.reference.tables import MAX_PROB_BITS

BLOCK: Final = 256  #: threads of a block
SCRATCH_NBYTES: Final = 1 << 28  #: symbols of segments that no fused kernel suits, decoded at once
LUT_NBYTES: Final = 4 << MAX_PROB_BITS

#: Kernels by number: 1 and half the bytes of a word (rounded down), 3 more for pairs.
FUSED: Final = (
    "",
    "decode_bytes_1",
    "decode_bytes_2",
    "decode_bytes_4",
    "decode_pairs_1",
    "decode_pairs_2",
    "decode_pairs_4",
)

_BAD_STREAM, _BAD_TILE_MODE, _BAD_PATCH, _BAD_LATE_STREAM = 1, 2, 4, 8  # bits of a segment's status


class Decoding:
    """What is launched to decode the segments of some jobs.

    Parameters
    ----------
    jobs
        Tensors of one or more files; payloads and matrices on the device of `runtime`.
    scratch_nbytes
        Most device memory for symbols on their way; at least one segment's worth is taken.
    """

    def __init__(
        self, runtime: Runtime, jobs: Sequence[WorkItem], scratch_nbytes: int = SCRATCH_NBYTES
    ) -> None:
        self.runtime, self.scratch_nbytes = runtime, scratch_nbytes
        self.work = WorkList.of(jobs)
        self._packed = Packed()
        self._launches: list[tuple[str, int, list[Any]]] = []
        self._scratch: Any = None
        self._luts: Any = None
        self._status = self._packed.add(np.zeros(self.work.segments.size, np.uint32))
        self._names: dict[str, Any] = {}

    def queue(self) -> None:
        """Upload the work list and launch all kernels on the current stream."""
        self.prepare()
        self.launch()

    @property
    def needs_scratch(self) -> bool:
        """Whether symbols go by way of device memory, which is kept from `prepare` on."""
        return self._scratch is not None

    def prepare(self) -> None:
        """Upload the work list and build what kernels look up, on the current stream."""
        if self.work.segments.size == 0:
            return
        runtime, work, packed = self.runtime, self.work, self._packed
        kinds = fused_kernels(work)
        self._fuse(kinds)
        general = np.flatnonzero(kinds == 0)
        if general.size:
            self._take_apart(general)
        tables, maps, tensors = (packed.add(a) for a in (work.tables, work.maps, work.tensors))
        segments, planes = packed.add(work.segments), packed.add(work.planes)
        packed.upload(runtime)
        luts = self._luts = runtime.empty(max(1, work.tables.size) * LUT_NBYTES)
        self._names = {
            "luts": luts,
            "tables": tables,
            "tensors": tensors,
            "segments": segments,
            "planes": planes,
        }
        self._names |= {"maps": maps, "status": self._status}
        if work.tables.size:
            runtime.launch(
                "build_luts",
                work.tables.size,
                BLOCK,
                packed.address(tables),
                np.uint32(work.tables.size),
                luts,
            )

    def launch(self) -> None:
        """Launch the kernels on the current stream: again and again, if the payload stays.
        Faults that are met are kept.
        """
        for kernel, grid, args in self._launches:
            given = [self._names.get(a, a) if isinstance(a, str) else a for a in args]
            self.runtime.launch(
                kernel,
                grid,
                BLOCK,
                *(self._packed.address(a) if isinstance(a, int) else a for a in given),
            )

    def _launch(self, kernel: str, grid: int, *args: Any) -> None:
        """Later: a string stands for a structure, an int for an array of the upload."""
        if grid:
            self._launches.append((kernel, grid, list(args)))

    def _fuse(self, kinds: Ids) -> None:
        """Kernels that go from payload to words at once."""
        work = self.work
        for kind in np.unique(kinds[kinds > 0]).tolist():
            ids = np.flatnonzero(kinds == kind)
            lists = Batches.of(
                ids, work.planes["table"][work.segments["plane"][ids]].astype(np.int64)
            )
            batches, listed = self._packed.add(lists.batches), self._packed.add(lists.ids)
            self._launch(
                FUSED[kind],
                lists.batches.size,
                "tables",
                "luts",
                "tensors",
                "segments",
                "planes",
                batches,
                listed,
                "status",
            )

    def _take_apart(self, ids: Ids) -> None:
        """Kernels for all other segments, by way of scratch:
        portions of them, one after another in the same memory.
        """
        planes = self.work.planes
        context = planes["coder"] == Coder.CONTEXT
        coded, late = context | (planes["coder"] == Coder.RANS), context & (planes["index"] > 0)
        symbols = np.where(coded, whole_groups(planes["n_symbols"]), 0)
        classes = np.where(context, symbols, 0)
        room = symbols + classes
        of_segment = np.bincount(planes["segment"], room, self.work.segments.size).astype(np.int64)[
            ids
        ]
        parts, ends = portions(of_segment, self.scratch_nbytes), np.cumsum(of_segment)
        largest = max(int(ends[b - 1] - ends[a] + of_segment[a]) for a, b in parts)
        self._scratch = self.runtime.empty(max(largest, 1))
        base = self.runtime.address(self._scratch)
        of = np.zeros(self.work.segments.size, np.int64)
        for number, (a, b) in enumerate(parts, 1):
            of[ids[a:b]] = number
        portion_of_plane = of[planes["segment"]]
        for number, (a, b) in enumerate(parts, 1):
            of_portion = (portion_of_plane == number) & coded
            streams = np.flatnonzero(of_portion)
            planes["symbols"][streams] = base + np.cumsum(room[streams]) - room[streams]
            planes["classes"][streams] = planes["symbols"][streams] + symbols[streams].astype(
                np.uint64
            )
            self._decode_planes(np.flatnonzero(of_portion & ~late), _BAD_STREAM)
            # plane 0 may hold their contexts
            self._decode_planes(np.flatnonzero(of_portion & late), _BAD_LATE_STREAM)
            listed = self._packed.add(ids[a:b].astype(np.uint32))
            self._launch("merge_words", b - a, "tensors", "segments", "planes", listed, "status")

    def _decode_planes(self, ids: Ids, fault: int) -> None:
        """From streams to symbols, and from these to bytes;
        `fault` is the bit for bad streams by contexts.
        """
        planes, add = self.work.planes, self._packed.add
        context = planes["coder"][ids] == Coder.CONTEXT
        if (streams := ids[~context]).size:
            lists = Batches.of(streams, planes["table"][streams].astype(np.int64))
            self._launch(
                "decode_streams",
                lists.batches.size,
                "tables",
                "luts",
                "planes",
                add(lists.batches),
                add(lists.ids),
                "status",
            )
        if (streams := ids[context]).size:
            lists = Batches.of(streams, planes["table"][streams].astype(np.int64))
            batches, listed = add(lists.batches), add(lists.ids)
            self._launch(
                "find_classes",
                streams.size,
                "maps",
                "tensors",
                "segments",
                "planes",
                listed,
                np.uint32(False),
            )
            self._launch(
                "decode_contexts",
                lists.batches.size,
                "maps",
                "luts",
                "planes",
                batches,
                listed,
                np.uint32(fault),
                "status",
            )
        predicted, transformed = predicted_of(planes, ids)
        self._launch(
            "inverse_transform", transformed.size, "tensors", "segments", "planes", add(transformed)
        )
        self._launch(
            "inverse_prediction",
            predicted.size,
            "tensors",
            "segments",
            "planes",
            add(predicted),
            "status",
        )

    def status(self) -> NDArray[np.uint8]:
        """A `Status` for each segment; waits for the kernels."""
        if self.work.segments.size == 0:
            return np.zeros(0, np.uint8)
        return status_of(self.runtime.download(self._packed.device(self._status)).view(np.uint32))


def status_of(bits: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Statuses out of bits: of several faults the one that goes first (`wcodec.backends.protocol`).

    Streams that are late, as their contexts may come of another plane,
    are not decoded at all where a tile mode is wrong.
    """
    out = np.where(bits & _BAD_PATCH, Status.BAD_PATCH, Status.OK)
    out = np.where(bits & _BAD_LATE_STREAM, Status.BAD_STREAM, out)
    out = np.where(bits & _BAD_TILE_MODE, Status.BAD_TILE_MODE, out)
    return np.where(bits & _BAD_STREAM, Status.BAD_STREAM, out).astype(np.uint8)


def predicted_of(planes: Array, ids: Ids) -> tuple[Array, Array]:
    """Of some planes those that have a prediction or a transform,
    and those that may have a transform.
    """
    prediction = planes["prediction"][ids]
    return ids[prediction != 0].astype(np.uint32), ids[prediction >= len(Mode)].astype(np.uint32)


def fused_kernels(work: WorkList) -> Ids:
    """For each segment the number of the kernel that decodes it in one go (`FUSED`), or 0: see the
    guarantees in ``kernels/decode.cu``.
    """
    s, planes = work.segments, work.planes
    tensors = work.tensors[s["tensor"]]
    word_nbytes, pairs = tensors["word_nbytes"], s["layout"] == Layout.PAIRS
    owner, index = planes["segment"], planes["index"]
    due = np.where(index == 0, Coder.RANS, Coder.RAW)
    unfit = (planes["n_symbols"] > 0) & ((planes["coder"] != due) | (planes["prediction"] != 0))
    suits = np.bincount(owner, unfit, s.size) == 0
    suits &= (s["layout"] != Layout.RAW) & (s["n_tiles"] == 1) & (word_nbytes <= 4)
    suits &= (
        (s["height"] == 1)
        | (s["width"] == tensors["cols"])
        | (s["width"] % np.where(pairs, 8, 4) == 0)
    )
    return np.asarray(np.where(suits, 1 + word_nbytes // 2 + 3 * pairs, 0), np.int64)


def portions(nbytes: Ids, limit: int) -> list[tuple[int, int]]:
    """Ranges that take at most `limit` bytes each, or hold one entry."""
    ends, cuts = np.cumsum(nbytes), [0]
    while cuts[-1] < nbytes.size:
        before = int(ends[cuts[-1] - 1]) if cuts[-1] else 0
        cuts.append(max(cuts[-1] + 1, int(np.searchsorted(ends, before + limit, side="right"))))
    return list(pairwise(cuts))
