"""What backends owe on inputs that no vector has: made on the spot, with what is due from the
reference.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from wcodec.backends.protocol import Backend
from wcodec.backends.reference import ReferenceBackend
from wcodec.conformance.cases import require, require_same, require_same_bytes
from wcodec.conformance.guarded import Guarded, decode_guarded, walled, walled_plan
from wcodec.conformance.recipes import splitmix64
from wcodec.planner.options import EncodeOptions
from wcodec.planner.planner import Planner
from wcodec.reference import encoding
from wcodec.reference.contexts import joint_histogram
from wcodec.reference.planes import DTYPES, DType, Layout, Words, unmap_words
from wcodec.reference.segments import Coder, SegmentPlan, SegmentTable
from wcodec.reference.tables import MAX_PROB_BITS, Table, TablePool
from wcodec.reference.tiles import Geometry, Spans

_SPANS: Final = Spans.of(np.array([1, 300, 2, 4096, 127, 128, 129, 1, 513], np.int64))


def check_spans(backend: Backend) -> None:
    """Kernels on tensors of one row each, coded at once (`Spans`)."""
    for dtype in DTYPES:
        words, plan = _of_spans(dtype)
        raw = np.frombuffer(words, np.uint8)
        room = Guarded(backend, raw, shift=dtype.word_nbytes)
        device = room.array.view(dtype.word_type).reshape(words.shape)
        counts = backend.histogram(device, _SPANS, dtype)
        due = encoding.histogram(words, _SPANS, dtype)
        require_same(counts, due, f"histograms of {dtype.name}")
        room.unchanged("the words")
        _check_as_reference(backend, plan, words)


@lru_cache(maxsize=len(DTYPES))
def _of_spans(dtype: DType) -> tuple[Words, SegmentPlan]:
    """Words of `_SPANS`, and the plan that the encoder makes for them."""
    nbytes = _SPANS.cols * dtype.word_nbytes
    raw = splitmix64(dtype.id, -(-nbytes // 8)).view(np.uint8)[:nbytes] & np.uint8(0x1F)
    words = raw.view(dtype.word_type)[None]
    return words, Planner(EncodeOptions()).plan(words, _SPANS, dtype, ReferenceBackend())


def _check_as_reference(backend: Backend, plan: SegmentPlan, words: Words) -> None:
    """A plan's records are the reference's, and are decoded; with and without checksums."""
    dtype, raw = plan.dtype, np.frombuffer(words.tobytes(), np.uint8)
    room = Guarded(backend, raw, shift=dtype.word_nbytes)
    device = room.array.view(dtype.word_type).reshape(words.shape)
    payload, n_units, n_patches = encoding.encode_segments(plan, words)
    plan = walled_plan(backend, plan)
    done = walled_plan(backend, plan.encoded(n_units, n_patches))
    both = backend.encode_segments(plan, device), backend.encode_with_checksums(plan, device)[0]
    for encoded, checksums in zip(both, (False, True), strict=True):
        require_same(encoded.n_units, n_units, f"n_units of {dtype.name}")
        require_same(encoded.n_patches, n_patches, f"n_patches of {dtype.name}")
        got = backend.to_host(encoded.payload).tobytes()
        require_same_bytes(got, payload, f"the records of {dtype.name}")
        room.unchanged("the words")
        status, out = decode_guarded(backend, done, payload, checksums=checksums)
        require_same(status, np.zeros_like(status), "the status of each segment")
        require_same(out, words, f"the words of {dtype.name}")


def check_uncoded_pairs(backend: Backend) -> None:
    """`encode_segments` under tables that lack nearly all pairs of codes, most, or some; plane 0 of
    the last segment has no table.
    """
    geometry, fill = Geometry(5, 999, 1, 999, 1, 999), np.array([0, 5, 9, 15, 0], np.uint8)
    freq = np.array([np.arange(256) * 37 % 256 < n for n in (3, 30, 150, 253)], np.int64)
    filled = np.arange(4), 17 * fill[:4].astype(np.int64)
    freq[filled] = 0
    freq[filled] = (1 << MAX_PROB_BITS) - freq.sum(axis=1)
    tables = TablePool(Table(f, MAX_PROB_BITS) for f in freq)
    for dtype in (d for d in DTYPES if d.has_pairs and d.word_nbytes > 1):
        top = splitmix64(dtype.id, 625).view(np.uint8)[: 5 * 999].reshape(5, 999)
        top = np.where(top % 64 == 1, top, 100 + top // 16)  # few outside of the window
        words = unmap_words(top.astype(dtype.word_type) << 8 * (dtype.word_nbytes - 1), dtype)
        s = SegmentTable.zeros(5, dtype.n_planes)
        s.layout[:], s.base[:] = Layout.PAIRS, 100
        s.coder[0, :4], s.table[0, :4] = Coder.RANS, range(4)
        _check_as_reference(backend, SegmentPlan(dtype, geometry, s, tables, fill), words)


def check_joint_histogram(backend: Backend) -> None:
    """`joint_histogram` of planes of all shapes, by all that lines are made of."""
    noise = splitmix64(1, 4096).view(np.uint8)
    for height, width in ((0, 0), (0, 3), (3, 0), (1, 1), (7, 129), (64, 100), (300, 9)):
        symbols = noise[: height * width].reshape(height, width)
        halves = (np.arange(256) // 2).astype(np.uint8)
        rows, cols = np.arange(height), np.arange(width)
        for lines in ((rows, cols % 4 * height), (rows % 3 * width, cols), (0 * rows, 0 * cols)):
            n_lines = 1 + int(lines[0].max(initial=0) + lines[1].max(initial=0))
            shape = n_lines, 128
            given = *(walled(backend, a) for a in (symbols, *lines, halves)), shape
            counts = backend.joint_histogram(*given)
            due = joint_histogram(symbols, *lines, halves, shape)
            require_same(counts, due, f"joint histogram of {height} x {width} symbols")


def check_empty(backend: Backend) -> None:
    """All kernels on no segments at all."""
    for dtype in DTYPES:
        for rows, cols in ((0, 0), (0, 5), (5, 0)):
            g = Geometry(rows, cols, 16, 16, 16, 16)
            plan = SegmentPlan(
                dtype, g, SegmentTable.zeros(0, dtype.n_planes), TablePool(), np.empty(0, np.uint8)
            )
            words = backend.to_device(np.empty((rows, cols), dtype.word_type))
            counts = backend.histogram(words, g, dtype)
            require(
                counts.shape == (0, dtype.word_nbytes, 256),
                f"no histograms of {dtype.word_nbytes} planes",
                str(counts.shape),
            )
            encoded = backend.encode_segments(plan, words)
            payload = backend.to_host(encoded.payload)
            require(payload.size == 0, "no payload", f"{payload.size} bytes")
            require(
                encoded.n_units.shape == (dtype.n_planes, 0),
                f"n_units of shape ({dtype.n_planes}, 0)",
                str(encoded.n_units.shape),
            )
            require(
                encoded.n_patches.shape == (0,),
                "n_patches of shape (0,)",
                str(encoded.n_patches.shape),
            )
            for checksums in (False, True):
                status, _ = decode_guarded(
                    backend, plan, np.empty(0, np.uint8), checksums=checksums
                )
                require(status.size == 0, "no status", str(status))
    crcs = backend.checksums(backend.to_device(np.empty(0, np.uint8)), np.zeros(1, np.int64))
    require(crcs.shape == (0,), "no CRC-32s", str(crcs.shape))
