"""Encoding of work lists, and histograms: which kernels, on which segments, in which order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.cuda.decoding import BLOCK, SCRATCH_NBYTES, portions, predicted_of
from wcodec.backends.cuda.layout import PLANE, SEGMENT, TENSOR
from wcodec.backends.cuda.runtime import Runtime
from wcodec.backends.cuda.worklist import (
    Batches,
    Ids,
    Packed,
    WorkItem,
    WorkList,
    rectangles,
    tensor_row,
    whole_groups,
)
from wcodec.reference.planes import DType, Layout
from wcodec.reference.prediction import Mode
from wcodec.reference.rans import UNIT, max_stream_nbytes
from wcodec.reference.segments import Coder, SegmentPlan
from wcodec.reference.tiles import Geometry

CODER_NBYTES = 16 * 256  #: of an encoding table


def encode(
    runtime: Runtime, plan: SegmentPlan, words: Any
) -> tuple[Any, NDArray[np.uint32], NDArray[np.uint32]]:
    """Encode all segments of a plan; `words` is its matrix on the device. Returns payload,
    `n_units` and `n_patches`.

    Waits for the lengths of the streams, which say where each record goes, and at the end.
    """
    n, n_planes = plan.geometry.n_segments, plan.dtype.n_planes
    if n == 0:
        return runtime.empty(0), np.zeros((n_planes, 0), np.uint32), np.zeros(0, np.uint32)
    modes, scales = (
        runtime.upload(np.zeros(1, np.uint8) if a is None or a.size == 0 else a)
        for a in (plan.modes, plan.scales)
    )
    job = WorkItem(
        plan, runtime.address(words), modes=runtime.address(modes), scales=runtime.address(scales)
    )
    work = WorkList.of([job], encoding=True)
    scratch = runtime.empty(_place_scratch(work, plan))
    _shift(work, runtime.address(scratch))
    packed = Packed()
    tensors, segments, planes = (packed.add(a) for a in (work.tensors, work.segments, work.planes))
    everything = packed.add(np.arange(n, dtype=np.uint32))
    results = packed.add(np.zeros(work.planes.size + n, np.uint32))
    coding = _Coding(work, packed)
    packed.upload(runtime)
    given = tuple(map(packed.address, (tensors, segments, planes)))
    lengths = packed.address(results)
    n_patches = packed.address(results) + np.uint64(4 * work.planes.size)
    chosen = packed.address(everything), n_patches
    runtime.launch("split_words", n, BLOCK, coding.tables, *given, *chosen)
    coding.launch(runtime, given, lengths)
    done = runtime.download(packed.device(results)).view(np.uint32)
    of_streams = done[: work.planes.size].reshape(n, n_planes).T.astype(np.int64)
    patches = done[work.planes.size :].copy()
    # lengths of planes that are no streams have stayed 0
    n_units = (-(-of_streams // UNIT)).astype(np.uint32)
    offsets = plan.encoded(n_units, patches).offsets
    payload = runtime.empty(int(offsets[-1]))
    records = runtime.upload((offsets[:-1] + runtime.address(payload)).astype(np.uint64))
    runtime.launch("assemble", n, BLOCK, *given, lengths, n_patches, records)
    runtime.mark().synchronize()  # scratch is given back when this returns
    return payload, n_units, patches


class _Coding:
    """From symbols to streams: lists of planes in an upload, and what is launched on them.

    Parameters
    ----------
    packed
        The upload, to which the lists are added.
    """

    def __init__(self, work: WorkList, packed: Packed) -> None:
        self._at, self._n_tables = packed.address, work.tables.size
        self._coders: Any = None
        self._tables, self._maps = packed.add(work.tables), packed.add(work.maps)
        rans, context = (
            np.flatnonzero(work.planes["coder"] == c) for c in (Coder.RANS, Coder.CONTEXT)
        )
        self._chosen = [
            (ids.size, packed.add(ids))
            for ids in predicted_of(work.planes, np.concatenate([rans, context]))
        ]
        lists = [
            Batches.of(ids, work.planes["table"][ids].astype(np.int64)) for ids in (rans, context)
        ]
        self._streams = [
            (b.ids.size, b.batches.size, packed.add(b.batches), packed.add(b.ids)) for b in lists
        ]

    @property
    def tables(self) -> np.uint64:
        """Address of the tables."""
        return self._at(self._tables)

    def launch(self, runtime: Runtime, given: tuple[np.uint64, ...], lengths: np.uint64) -> None:
        """Queue all that follows `split_words`."""
        at, planes, tables = self._at, given[2], self.tables
        for kernel, (n, listed) in zip(
            ("forward_prediction", "forward_transform"), self._chosen, strict=True
        ):
            if n:
                runtime.launch(kernel, n, BLOCK, *given, at(listed))
        # kept for as long as the kernels may run
        coders = self._coders = runtime.empty(self._n_tables * CODER_NBYTES)
        if self._n_tables:
            runtime.launch(
                "build_coders", self._n_tables, BLOCK, tables, np.uint32(self._n_tables), coders
            )
        (n, n_batches, batches, listed), by_class = self._streams
        if n:
            runtime.launch(
                "encode_streams",
                n_batches,
                BLOCK,
                tables,
                coders,
                planes,
                at(batches),
                at(listed),
                lengths,
            )
        n, n_batches, batches, listed = by_class
        if n:
            maps = at(self._maps)
            runtime.launch("find_classes", n, BLOCK, maps, *given, at(listed), np.uint32(True))
            runtime.launch(
                "encode_contexts",
                n_batches,
                BLOCK,
                tables,
                maps,
                coders,
                planes,
                at(batches),
                at(listed),
                lengths,
            )


def _place_scratch(work: WorkList, plan: SegmentPlan) -> int:
    """Offsets of all scratch; returns its bytes."""
    segments, planes = work.segments, work.planes
    context, at = planes["coder"] == Coder.CONTEXT, 0
    coded = context | (planes["coder"] == Coder.RANS)
    streams = np.where(coded, max_stream_nbytes(planes["n_symbols"].astype(np.int64)), 0)
    windowed = (segments["layout"] == Layout.PAIRS) & (plan.dtype.word_nbytes > 1)
    rooms: list[tuple[Any, str, Ids]] = [
        (planes, "symbols", whole_groups(planes["n_symbols"])),
        (
            planes,
            "residuals",
            np.where(coded & (planes["prediction"] != 0), whole_groups(planes["n_symbols"]), 0),
        ),
        (planes, "classes", np.where(context, whole_groups(planes["n_symbols"]), 0)),
        (planes, "at", streams),
        (segments, "patches", np.where(windowed, -(-plan.n_elements // 4) * 16, 0)),
    ]
    planes["nbytes"] = streams
    for array, field, nbytes in rooms:
        ends = np.cumsum(nbytes)
        array[field] = at + ends - nbytes
        at += int(ends[-1])
    return at


def _shift(work: WorkList, base: int) -> None:
    for field in ("symbols", "residuals", "classes", "at"):
        work.planes[field] += np.uint64(base)
    work.segments["patches"] += np.uint64(base)


def histograms(
    runtime: Runtime,
    words: Any,
    geometry: Geometry,
    dtype: DType,
    segments: Ids | None,
    planes: tuple[int, ...] | None,
    mode: int,
    base: int | None,
    fill: int,
) -> NDArray[np.int64]:
    """See `wcodec.backends.protocol.Backend.histogram`."""
    if mode >= len(Mode):
        return _of_transforms(runtime, words, geometry, dtype, segments, planes, mode)
    one_byte = base is not None and dtype.word_nbytes == 1
    which = np.array(
        range(2 if one_byte else dtype.word_nbytes) if planes is None else planes, np.uint32
    )
    listed = (
        np.arange(geometry.n_segments, dtype=np.uint32)
        if segments is None
        else segments.astype(np.uint32)
    )
    shape = listed.size, which.size + (base is not None and not one_byte), 256
    if 0 in shape:
        return np.zeros(shape, np.int64)
    places = rectangles(geometry, dtype, runtime.address(words))
    places["base"], places["fill"] = base or 0, fill
    tensors = np.array([tensor_row(geometry, dtype)], TENSOR)
    packed = Packed()
    numbers = [packed.add(a) for a in (tensors, places.astype(SEGMENT), listed, which)]
    packed.upload(runtime)
    counts = runtime.empty(4 * int(np.prod(shape)))
    options = np.uint32(which.size), np.uint32(mode), np.uint32(base is not None)
    runtime.launch(
        "histograms", listed.size, BLOCK, *map(packed.address, numbers), *options, counts
    )
    return runtime.download(counts).view(np.uint32).reshape(shape).astype(np.int64)


def _of_transforms(
    runtime: Runtime,
    words: Any,
    geometry: Geometry,
    dtype: DType,
    segments: Ids | None,
    planes: tuple[int, ...] | None,
    mode: int,
) -> NDArray[np.int64]:
    """Histograms of coefficients, which are made in scratch first:
    of some segments after others in the same memory.
    """
    which = np.array(range(dtype.word_nbytes) if planes is None else planes, np.int64)
    listed = np.arange(geometry.n_segments) if segments is None else segments
    counts = np.zeros((listed.size, which.size, 256), np.int64)
    if 0 in counts.shape:
        return counts
    places = rectangles(geometry, dtype, runtime.address(words)).astype(SEGMENT)[listed]
    places["layout"], places["plane"] = Layout.BYTES, np.arange(listed.size) * dtype.n_planes
    room = whole_groups(places["height"].astype(np.int64) * places["width"])
    parts = portions(2 * room * which.size, SCRATCH_NBYTES)
    scratch = runtime.empty(max(int(2 * room[a:b].sum()) for a, b in parts) * which.size)
    for a, b in parts:
        rows = np.zeros((b - a, dtype.n_planes), PLANE)
        rows["segment"] = np.arange(b - a)[:, None]
        rows["index"] = np.arange(dtype.n_planes)
        rows["prediction"] = mode
        rows["n_symbols"] = (places["height"][a:b] * places["width"][a:b])[:, None]
        own = np.repeat(room[a:b, None], which.size, axis=1)
        ends = np.cumsum(own).reshape(own.shape) + runtime.address(scratch)
        rows["symbols"][:, which] = ends - own
        rows["residuals"][:, which] = ends - own + int(own.sum())
        here = places[a:b].copy()
        here["plane"] -= here["plane"][0]
        counts[a:b] = _count_coefficients(runtime, geometry, dtype, here, rows, which)
    return counts


def _count_coefficients(
    runtime: Runtime, geometry: Geometry, dtype: DType, segments: Any, rows: Any, which: Ids
) -> NDArray[np.int64]:
    """Histograms of some planes of some segments, given their scratch."""
    packed, n = Packed(), segments.size
    ids = (np.arange(n)[:, None] * dtype.n_planes + which).astype(np.uint32)
    tensors = np.array([tensor_row(geometry, dtype)], TENSOR)
    numbers = [
        packed.add(a)
        for a in (tensors, segments, rows.reshape(-1), np.arange(n, dtype=np.uint32), ids)
    ]
    packed.upload(runtime)
    *structures, everything, chosen = map(packed.address, numbers)
    n_patches, counts = runtime.empty(4 * n), runtime.empty(4 * 256 * ids.size)
    # without tables: layout BYTES has no use for them
    runtime.launch("split_words", n, BLOCK, np.uint64(0), *structures, everything, n_patches)
    runtime.launch("forward_prediction", ids.size, BLOCK, *structures, chosen)
    runtime.launch("forward_transform", ids.size, BLOCK, *structures, chosen)
    runtime.launch("count_residuals", ids.size, BLOCK, structures[2], chosen, counts)
    return runtime.download(counts).view(np.uint32).reshape(n, which.size, 256).astype(np.int64)
