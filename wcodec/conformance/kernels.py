"""Checks of a backend's kernels against the rules of `wcodec.backends.protocol`.

The payloads that a plan must give stand in the vectors, many of them from a second implementation;
where inputs are made on the spot (corrupt payloads, histograms), ``wcodec.reference`` says what is
due.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.protocol import Backend
from wcodec.codec.decoder import Decoder
from wcodec.codec.sources import BufferSource
from wcodec.conformance.cases import (
    Case,
    Check,
    Mismatch,
    Vectors,
    require,
    require_same,
    require_same_bytes,
)
from wcodec.conformance.coded import Coded, coded_of, fills, matrices, payload_of
from wcodec.conformance.duties import (
    check_empty,
    check_joint_histogram,
    check_spans,
    check_uncoded_pairs,
)
from wcodec.conformance.guarded import (
    CANARY,
    Guarded,
    Side,
    at_each_side,
    check_checksums,
    decode_guarded,
    sides_of,
    snapshot,
    walled,
    walled_plan,
)
from wcodec.conformance.lists import (
    check_list_changes,
    check_places,
    check_put_lists,
    check_take_put,
)
from wcodec.conformance.recipes import splitmix64
from wcodec.conformance.threads import check_threads
from wcodec.errors import DecodeError
from wcodec.files.file import File
from wcodec.reference import encoding
from wcodec.reference.differences import Difference, subtract
from wcodec.reference.planes import Words
from wcodec.reference.prediction import MODES, N_MODES
from wcodec.reference.segments import SegmentPlan, Status, padded
from wcodec.reference.tensors import TensorRecord

Bytes = NDArray[np.uint8]

MOST_SEGMENTS: Final = 24  #: decoded one by one
DCT_TOP: Final = 0x12  #: a mode


# ---- kernels on good input -----------------------------------------------------------------------
def check_kernels(case: Case, backend: Backend) -> None:
    """Every kernel on every tensor of a case."""
    with File(io.BytesIO(case.data), backend, base=case.base_path) as f:
        for i, t in enumerate(f.index.tensors):
            if t.duplicate_of is not None:
                continue
            words, fill = matrices(case, i, t), fills(case, i, t)
            for coded in coded_of(case.data, t, f.index.tables, backend):
                codes = fill[coded.number]
                codes = None if codes is None else codes[coded.segments]
                _check_coded(case, backend, coded, words[coded.number][:, coded.cols], codes)
            _check_parts(f, t, case.words(i).reshape(t.geometry.rows, t.geometry.cols))


def _check_coded(
    case: Case, backend: Backend, coded: Coded, matrix: Words, fill: Bytes | None
) -> None:
    t, plan, payload = coded.record, coded.plan, coded.payload
    for side, canary, shift in sides_of(backend, t.dtype.word_nbytes):
        guarded = walled_plan(backend, plan, side)
        status, words = decode_guarded(
            backend, guarded, payload, canary, shift, checksums=side != Side.END, side=side
        )
        require_same(status, np.zeros_like(status), "the status of each segment")
        require_same(words, matrix, f"the words of tensor {t.name!r}")
        crcs = backend.checksums(Guarded(backend, payload, side=side).array, plan.offsets)
        require_same(crcs, t.segment_crc32, "the CRC-32s of the records")
    if fill is not None:
        _check_encode(backend, t, plan, payload, matrix, fill)
    _check_histograms(case, backend, t, matrix)


def _check_parts(f: File, t: TensorRecord, matrix: Words) -> None:
    """Single segments, and the whole in chunks."""
    g, base = t.geometry, f.base_of(t)
    for k in range(0, g.n_segments, -(-g.n_segments // MOST_SEGMENTS)) if g.n_segments > 1 else ():
        rows, cols = g.rectangle(k)
        i, j = divmod(k, g.grid[1])
        out = np.full(matrix[rows, cols].shape, CANARY, t.dtype.word_type)
        f.decoder.grid(
            f.source,
            t,
            t.plan(f.index.tables),
            np.array([i], np.int64),
            np.array([j], np.int64),
            out,
            base,
        )
        require_same(out, matrix[rows, cols], f"the words of segment {k} alone")
    parts = b"".join(part.tobytes() for part in f.chunks(t))
    require_same_bytes(parts, matrix.tobytes(), "the words in chunks")


def _pieces(payload: Bytes, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Bytes | None:
    """Parts of a payload, one after another; ``None`` if all are empty."""
    parts = [payload[a : a + n] for a, n in zip(starts.tolist(), sizes.tolist(), strict=True)]
    return np.concatenate(parts) if any(p.size for p in parts) else None


def _check_encode(
    backend: Backend, t: TensorRecord, plan: SegmentPlan, payload: Bytes, matrix: Words, fill: Bytes
) -> None:
    """`encode_segments` after the plan that the file shows gives the payload of the file."""
    done = plan.segments
    s = replace(done, n_units=np.zeros_like(done.n_units), n_patches=np.zeros_like(done.n_patches))
    modes = _pieces(payload, plan.offsets[:-1], plan.modes_nbytes)
    scales = _pieces(payload, plan.offsets[:-1] + padded(plan.modes_nbytes), plan.scale_nbytes)
    free = SegmentPlan(plan.dtype, plan.geometry, s, plan.tables, fill, modes, scales)
    before, content = snapshot(free), np.frombuffer(matrix.tobytes(), np.uint8)
    for side, _, shift in sides_of(backend, t.dtype.word_nbytes):
        todo = walled_plan(backend, free, side)
        words = Guarded(backend, content, shift=shift, side=side)
        device = words.array.view(t.dtype.word_type).reshape(matrix.shape)
        if side != Side.END:
            encoded, sums = backend.encode_with_checksums(todo, device)
            parts, again = backend.encode_in_parts(todo, device)
            whole = b"".join(np.asarray(backend.to_host(p)).tobytes() for p in parts.payload)
            require_same_bytes(whole, payload, "the payload of the file, in parts")
            for of in (sums, again):
                check_checksums(of, plan, payload, content)
        else:
            encoded = backend.encode_segments(todo, device)
        words.unchanged("the words")
        require(snapshot(todo) == before, "the plan to be left as it is", "changes")
        require_same(encoded.n_units, done.n_units, "n_units")
        require_same(encoded.n_patches, done.n_patches, "n_patches")
        got = np.asarray(backend.to_host(encoded.payload))
        require(got.dtype == np.uint8, "a payload of uint8", str(got.dtype))
        require_same_bytes(got.tobytes(), payload, "the payload of the file")


def _modes(case: Case) -> list[int]:
    """All modes; of cases that are not about transforms, one of each transform."""
    k = zlib.crc32(case.id.encode()) % N_MODES
    return [m for m in MODES if m < N_MODES or m % 16 == k or "Transform" in case.row["flags"]]


def _check_histograms(case: Case, backend: Backend, t: TensorRecord, matrix: Words) -> None:
    """`histogram` of modes, of windows, of some segments, against the reference."""
    g, n = t.geometry, t.geometry.n_segments
    if n > 64:  # a few dozen segments show as much
        return
    some, last = np.arange(0, n, 2), t.dtype.word_nbytes - 1
    calls: list[dict[str, Any]] = [{"mode": m} for m in _modes(case)] + [
        {"segments": some},
        {"segments": some[:0]},
    ]
    calls += [
        {"planes": (0,)},
        {"planes": (last,), "segments": some},
        {"planes": (last,), "mode": DCT_TOP},
    ]
    dtype = t.coded_dtype
    if dtype.has_pairs:
        bases = (0,) if dtype.word_nbytes == 1 else (0, 110, 240)
        calls += [{"base": b, "fill": f} for b in bases for f in (0, 9)] + [
            {"base": 0, "fill": 15, "segments": some}
        ]
        if not last:
            calls += [{"base": 0, "fill": 6, "planes": (p,)} for p in (0, 1)]
        else:
            calls += [{"base": 110, "fill": 3, "planes": p} for p in ((), (0,), (0, last))]
    rooms = [
        (side, Guarded(backend, np.frombuffer(matrix.tobytes(), np.uint8), shift=shift, side=side))
        for side, _, shift in sides_of(backend, t.dtype.word_nbytes)
    ]
    for i, call in enumerate(calls):
        due = encoding.histogram(matrix, g, dtype, **call)
        for k, (side, words) in enumerate(rooms):
            if k and i % 4:  # all calls at one end, some at the other
                continue
            device = words.array.view(dtype.word_type).reshape(matrix.shape)
            more = {**call, "segments": walled(backend, call.get("segments"), side)}
            got = backend.histogram(device, g, dtype, **more)
            words.unchanged("the words")
            require_same(got, due, f"histograms by segment, plane and symbol with {call}")
    modes = (*_modes(case), DCT_TOP)
    of: dict[str, Any] = {"segments": some, "planes": tuple(sorted({0, last}))}
    one_by_one = np.stack([encoding.histogram(matrix, g, dtype, mode=m, **of) for m in modes])
    for _, words in rooms[:2]:
        device = words.array.view(dtype.word_type).reshape(matrix.shape)
        many = backend.histograms(device, g, dtype, modes, **of)
        words.unchanged("the words")
        require_same(many, one_by_one, f"histograms of modes {modes}, one after another,")


#: parts of the record of a file's first segment that are spoilt, and what its status is then: a
#: stream of plane 0 comes before a tile mode, that before a stream that needs plane 0 for its
#: contexts, all of them before a patch
FAULTS: Final = (
    ("base_modes", ("modes",), Status.BAD_TILE_MODE),
    ("base_modes", ("plane 0",), Status.BAD_STREAM),
    ("base_modes", ("plane 1",), Status.BAD_STREAM),
    ("base_modes", ("modes", "plane 0"), Status.BAD_STREAM),
    ("base_modes", ("modes", "plane 1"), Status.BAD_TILE_MODE),
    ("base_modes", ("modes", "plane 0", "plane 1"), Status.BAD_STREAM),
    ("base_contexts", ("patches",), Status.BAD_PATCH),
    ("base_contexts", ("patches", "plane 0"), Status.BAD_STREAM),
    ("base_contexts", ("patches", "plane 1"), Status.BAD_STREAM),
    ("context_scale_parts", ("plane 1",), Status.BAD_STREAM),
    ("context_scale_parts", ("patches", "plane 1"), Status.BAD_STREAM),
)


def check_faults(vectors: Vectors, backend: Backend) -> None:
    """A segment with several faults has the status of the first one that a decoder meets."""
    for name, parts, due in FAULTS:
        case = vectors[f"accept/{name}"]
        index = Decoder(backend).read_index(BufferSource(case.data))
        plan = index.tensors[0].plan(index.tables)
        spoilt = payload_of(index.tensors[0], case.data).copy()
        starts = {f"plane {p}": int(plan.plane_offsets[p, 0]) for p in range(plan.dtype.n_planes)}
        starts |= {"modes": int(plan.offsets[0]), "patches": int(plan.patch_offsets[0])}
        for part in parts:
            # no start state that leads to the end, no mode, no index
            spoilt[starts[part] : starts[part] + 4] = 255
        status, _ = decode_guarded(backend, plan, spoilt)
        require(
            status[0] == due,
            f"status {due.name} of {name} with other {', '.join(parts)}",
            str(status[0]),
        )
        require(not status[1:].any(), "status OK of the other segments", str(status.tolist()))


def check_differences(backend: Backend) -> None:
    """`subtract_base` and `add_base` are as the reference has them, and each other's inverse."""
    for nbytes in (1, 2, 4, 8):
        words, base = (
            splitmix64(seed, 35 * 8 // nbytes).view(f"<u{nbytes}")[: 35 * 8].reshape(35, -1)
            for seed in (1, 2)
        )
        base[::3] = words[::3]
        base[1::3] = words[1::3] + base.dtype.type(1)
        for difference in (Difference.XOR, Difference.MINUS):
            given = [
                Guarded(backend, np.frombuffer(a.tobytes(), np.uint8), shift=nbytes)
                for a in (words, base)
            ]
            devices = [g.array.view(words.dtype).reshape(words.shape) for g in given]
            coded = backend.subtract_base(devices[0], devices[1], difference)
            due = subtract(words, base, difference)
            text = f"{difference.name} of words of {nbytes} bytes"
            require_same(backend.to_host(coded), due, text)
            room = Guarded(backend, np.frombuffer(due.tobytes(), np.uint8), shift=nbytes)
            crc = backend.add_base(
                room.array.view(words.dtype).reshape(words.shape), devices[1], difference
            )
            content = room.content("the words")
            require_same_bytes(content, words.tobytes(), f"the words, from {difference.name}")
            require(crc == zlib.crc32(words.tobytes()), "the CRC-32 of the words", str(crc))
            for g in given:
                g.unchanged("the words and the base")


def check_limit(vectors: Vectors, backend: Backend) -> None:
    """A decoder that is told a limit keeps it, to the byte."""
    case = vectors["accept/base_records"]
    n, source = sum(t["nbytes"] for t in case.row["tensors"]), BufferSource(case.data)
    Decoder(backend, n).read_index(source)
    try:
        Decoder(backend, n - 1).read_index(source)
    except DecodeError as e:
        require(e.code == "resource_limit", "resource_limit", str(e))
    else:
        raise Mismatch("resource_limit", "an index")


def checks(vectors: Vectors, backend: Backend) -> Iterator[Check]:
    """Checks of kernels: duties, and then every file."""

    def duty(name: str, rules: tuple[str, ...], check: Callable[[Backend], None]) -> Check:
        return Check(f"duty/{name}", rules, partial(at_each_side, check, backend))

    yield duty("empty_input", ("R6.4",), check_empty)
    if backend.takes_spans:
        yield duty("spans", (), check_spans)
    yield duty("uncoded_pairs", ("R10.8",), check_uncoded_pairs)
    yield duty("joint_histogram", (), check_joint_histogram)
    yield Check("duty/threads", (), partial(check_threads, vectors, backend))
    yield duty("faults", ("R13.1",), partial(check_faults, vectors))
    yield duty("differences", ("R12.5",), check_differences)
    yield duty("list_changes", ("R12.11",), check_list_changes)
    yield duty("places", ("R12.11", "R13.2"), check_places)
    yield duty("take_put", ("R12.7",), check_take_put)
    yield duty("put_lists", ("R12.11", "R12.13"), check_put_lists)
    yield Check("duty/max_nbytes", ("R13.2",), partial(check_limit, vectors, backend))
    for case in vectors.cases:
        if case.expect == "accept":
            yield Check(f"kernels/{case.name}", case.rules, partial(check_kernels, case, backend))
