"""Encoding of work lists, and histograms: which kernels, on which segments, in which order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.cuda.decoding import BLOCK
from wcodec.backends.cuda.layout import SEGMENT, TENSOR
from wcodec.backends.cuda.runtime import Runtime
from wcodec.backends.cuda.worklist import Batches, Ids, Job, Packed, WorkList, rectangles, tensor_row, whole_groups
from wcodec.reference.entropy import UNIT, max_stream_nbytes
from wcodec.reference.planes import DType, Layout
from wcodec.reference.segments import Coder, SegmentPlan
from wcodec.reference.tiles import Geometry

CODER_NBYTES = 16 * 256  #: of an encoding table


def encode(runtime: Runtime, plan: SegmentPlan, words: Any) -> tuple[Any, NDArray[np.uint32], NDArray[np.uint32]]:
    """Encode all segments of a plan; `words` is its matrix on the device. Returns payload, `n_units` and `n_patches`.

    Waits for the lengths of the streams, which say where each record goes, and at the end.
    """
    n, n_planes = plan.geometry.n_segments, plan.dtype.n_planes
    if n == 0:
        return runtime.empty(0), np.zeros((n_planes, 0), np.uint32), np.zeros(0, np.uint32)
    modes = runtime.upload(np.zeros(1, np.uint8) if plan.modes is None or plan.modes.size == 0 else plan.modes)
    work = WorkList.of([Job(plan, runtime.address(words), modes=runtime.address(modes))], encoding=True)
    scratch = runtime.empty(_place_scratch(work, plan))
    _shift(work, runtime.address(scratch))
    packed = Packed()
    tables, tensors, segments, planes = (packed.add(a) for a in (work.tables, work.tensors, work.segments, work.planes))
    everything = packed.add(np.arange(n, dtype=np.uint32))
    rans = np.flatnonzero(work.planes["coder"] == Coder.RANS)
    predicted = rans[work.planes["prediction"][rans] != 0].astype(np.uint32)
    lists = Batches.of(rans, work.planes["table"][rans].astype(np.int64))
    listed, batches, chosen = packed.add(lists.ids), packed.add(lists.batches), packed.add(predicted)
    results = packed.add(np.zeros(work.planes.size + n, np.uint32))
    packed.upload(runtime)
    at = packed.address
    lengths, n_patches = at(results), at(results) + np.uint64(4 * work.planes.size)
    runtime.launch("split_words", n, BLOCK, at(tensors), at(segments), at(planes), at(everything), n_patches)
    if predicted.size:
        runtime.launch("forward_prediction", predicted.size, BLOCK, at(tensors), at(segments), at(planes), at(chosen))
    if rans.size:
        coders = runtime.empty(work.tables.size * CODER_NBYTES)
        runtime.launch("build_coders", work.tables.size, BLOCK, at(tables), np.uint32(work.tables.size), coders)
        runtime.launch("encode_streams", lists.batches.size, BLOCK, at(tables), coders, at(planes), at(batches), at(listed), lengths)
    done = runtime.download(packed.device(results)).view(np.uint32)
    of_streams, patches = done[: work.planes.size].reshape(n, n_planes).T.astype(np.int64), done[work.planes.size :].copy()
    n_units = np.where(plan.segments.coder == Coder.RANS, -(-of_streams // UNIT), 0).astype(np.uint32)
    offsets = plan.encoded(n_units, patches).offsets
    payload = runtime.empty(int(offsets[-1]))
    records = runtime.upload((offsets[:-1] + runtime.address(payload)).astype(np.uint64))
    runtime.launch("assemble", n, BLOCK, at(tensors), at(segments), at(planes), lengths, n_patches, records)
    runtime.mark().synchronize()  # scratch is given back when this returns
    return payload, n_units, patches


def _place_scratch(work: WorkList, plan: SegmentPlan) -> int:
    """Offsets of all scratch; returns its bytes."""
    segments, planes = work.segments, work.planes
    rans, at = planes["coder"] == Coder.RANS, 0
    streams = np.where(rans, max_stream_nbytes(planes["n_symbols"].astype(np.int64)), 0)
    windowed = (segments["layout"] == Layout.PAIRS) & (plan.dtype.word_nbytes > 1)
    rooms: list[tuple[Any, str, Ids]] = [
        (planes, "symbols", whole_groups(planes["n_symbols"])),
        (planes, "residuals", np.where(rans & (planes["prediction"] != 0), whole_groups(planes["n_symbols"]), 0)),
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
    for array, field in ((work.planes, "symbols"), (work.planes, "residuals"), (work.planes, "at"), (work.segments, "patches")):
        array[field] += np.uint64(base)


def histograms(
    runtime: Runtime, words: Any, geometry: Geometry, dtype: DType, segments: Ids | None,
    planes: tuple[int, ...] | None, mode: int, base: int | None, fill: int,
) -> NDArray[np.int64]:  # fmt: skip
    """See `wcodec.backends.protocol.Backend.histogram`."""
    one_byte = base is not None and dtype.word_nbytes == 1
    which = np.array(range(2 if one_byte else dtype.word_nbytes) if planes is None else planes, np.uint32)
    listed = np.arange(geometry.n_segments, dtype=np.uint32) if segments is None else segments.astype(np.uint32)
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
    runtime.launch("histograms", listed.size, BLOCK, *map(packed.address, numbers), *options, counts)
    return runtime.download(counts).view(np.uint32).reshape(shape).astype(np.int64)
