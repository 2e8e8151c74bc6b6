"""Checks of a backend's kernels against the rules of `wcodec.backends.protocol`.

The payloads that a plan must give stand in the vectors, many of them from a second implementation;
where inputs are made on the spot (corrupt payloads, histograms), ``wcodec.reference`` says what is
due.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
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
    check_decode,
    check_encode,
    require,
)
from wcodec.conformance.coded import Coded, coded_of, fills, matrices, payload_of
from wcodec.conformance.duties import (
    check_empty,
    check_joint_histogram,
    check_spans,
    check_uncoded_pairs,
)
from wcodec.conformance.guarded import CANARY, Guarded, check_checksums, decode_guarded, snapshot
from wcodec.conformance.lists import (
    check_list_changes,
    check_places,
    check_put_lists,
    check_take_put,
)
from wcodec.conformance.recipes import splitmix64
from wcodec.errors import DecodeError
from wcodec.files.file import File
from wcodec.processes import Workers
from wcodec.reference import encoding
from wcodec.reference.differences import Difference, subtract
from wcodec.reference.planes import Words
from wcodec.reference.prediction import MODES, N_MODES
from wcodec.reference.segments import SegmentPlan, Status, padded
from wcodec.reference.tensors import TensorRecord

Bytes = NDArray[np.uint8]

MOST_SEGMENTS: Final = 24  #: decoded one by one
THREADED: Final = (
    "base_bytes", "base_pairs", "base_tiles", "mixed_layouts", "auto_bfloat16", "auto_int8",
    "many_tensors", "auto_tables", "modes_mixed", "context_plane_tiles", "context_scale_parts",
    "difference_mixed", "sparse_mixed", "encoder_sparse",
)  # fmt: skip
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
    for canary, shift in ((CANARY, 0), (0x3A, t.dtype.word_nbytes)):
        status, words = decode_guarded(backend, plan, payload, canary, shift, checksums=shift > 0)
        require(not status.any(), "status OK of all segments", str(status.tolist()[:20]))
        require(bool((words == matrix).all()), f"the words of tensor {t.name!r}", "others")
    crcs = backend.checksums(Guarded(backend, payload).array, plan.offsets)
    require(
        crcs.tolist() == t.segment_crc32.tolist(),
        "the CRC-32s of the records",
        str(crcs.tolist()[:8]),
    )
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
        require(
            bool((out == matrix[rows, cols]).all()), f"the words of segment {k} alone", "others"
        )
    parts = b"".join(part.tobytes() for part in f.chunks(t))
    require(parts == matrix.tobytes(), "the words in chunks", "others")


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
    todo = SegmentPlan(plan.dtype, plan.geometry, s, plan.tables, fill, modes, scales)
    before = snapshot(todo)
    for shift in (0, t.dtype.word_nbytes):
        words = Guarded(backend, np.frombuffer(matrix.tobytes(), np.uint8), shift=shift)
        device = words.array.view(t.dtype.word_type).reshape(matrix.shape)
        if shift:
            encoded, sums = backend.encode_with_checksums(todo, device)
            parts, again = backend.encode_in_parts(todo, device)
            whole = b"".join(np.asarray(backend.to_host(p)).tobytes() for p in parts.payload)
            require(
                whole == payload.tobytes() and again.words == sums.words,
                "the payload of the file, in parts too",
                "another",
            )
            check_checksums(sums, plan, payload, np.frombuffer(matrix.tobytes(), np.uint8))
        else:
            encoded = backend.encode_segments(todo, device)
        words.unchanged("the words")
        require(snapshot(todo) == before, "the plan to be left as it is", "changes")
        require(
            np.array_equal(encoded.n_units, done.n_units),
            f"n_units {done.n_units.tolist()}",
            str(encoded.n_units.tolist()),
        )
        require(
            np.array_equal(encoded.n_patches, done.n_patches),
            f"n_patches {done.n_patches.tolist()}",
            str(encoded.n_patches.tolist()),
        )
        got = np.asarray(backend.to_host(encoded.payload))
        require(
            got.dtype == np.uint8 and got.tobytes() == payload.tobytes(),
            "the payload of the file",
            "another",
        )


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
    words = Guarded(backend, np.frombuffer(matrix.tobytes(), np.uint8))
    device = words.array.view(dtype.word_type).reshape(matrix.shape)
    for call in calls:
        got = backend.histogram(device, g, dtype, **call)
        due = encoding.histogram(matrix, g, dtype, **call)
        words.unchanged("the words")
        require(
            got.dtype == np.int64 and got.shape == due.shape,
            f"histograms of int64 {due.shape}",
            f"{got.dtype} {got.shape}",
        )
        if not np.array_equal(got, due):
            segment, plane, symbol = np.argwhere(got != due)[0].tolist()
            what = (
                f"{due[segment, plane, symbol]} of symbol {symbol} in plane {plane} of histogram "
                f"{segment} with {call}"
            )
            raise Mismatch(what, str(got[segment, plane, symbol]))
    modes = (*_modes(case), DCT_TOP)
    of: dict[str, Any] = {"segments": some, "planes": tuple(sorted({0, last}))}
    many = backend.histograms(device, g, dtype, modes, **of)
    one_by_one = [encoding.histogram(matrix, g, dtype, mode=m, **of) for m in modes]
    require(
        np.array_equal(many, np.stack(one_by_one)),
        f"histograms of modes {modes} as of one at a time",
        "others",
    )


def check_threads(vectors: Vectors, backend: Backend) -> None:
    """Cases at once in several threads, each several times."""
    cases = [vectors[f"accept/{name}"] for name in THREADED] * 3
    with Workers(4, "wcodec-checks") as workers:
        jobs = [workers.begin(check_decode, c, backend) for c in cases]
        jobs += [workers.begin(check_encode, c, backend) for c in cases if "encode" in c.row]
        for job in jobs:
            job.result()


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
            require(
                np.array_equal(backend.to_host(coded), due),
                f"{difference.name} of words of {nbytes} bytes",
                "others",
            )
            room = Guarded(backend, np.frombuffer(due.tobytes(), np.uint8), shift=nbytes)
            crc = backend.add_base(
                room.array.view(words.dtype).reshape(words.shape), devices[1], difference
            )
            require(
                room.content("the words").tobytes() == words.tobytes(),
                f"the words, from {difference.name}",
                "others",
            )
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
    """Checks of kernels."""
    for case in vectors.cases:
        if case.expect == "accept":
            yield Check(f"kernels/{case.name}", case.rules, partial(check_kernels, case, backend))
    yield Check("duty/empty_input", ("R6.4",), partial(check_empty, backend))
    if backend.takes_spans:
        yield Check("duty/spans", (), partial(check_spans, backend))
    yield Check("duty/uncoded_pairs", ("R10.8",), partial(check_uncoded_pairs, backend))
    yield Check("duty/joint_histogram", (), partial(check_joint_histogram, backend))
    yield Check("duty/threads", (), partial(check_threads, vectors, backend))
    yield Check("duty/faults", ("R13.1",), partial(check_faults, vectors, backend))
    yield Check("duty/differences", ("R12.5",), partial(check_differences, backend))
    yield Check("duty/list_changes", ("R12.11",), partial(check_list_changes, backend))
    yield Check("duty/places", ("R12.11", "R13.2"), partial(check_places, backend))
    yield Check("duty/take_put", ("R12.7",), partial(check_take_put, backend))
    yield Check("duty/put_lists", ("R12.11", "R12.13"), partial(check_put_lists, backend))
    yield Check("duty/max_nbytes", ("R13.2",), partial(check_limit, vectors, backend))
