"""Segments side by side in one row, by backends that take no such `Spans`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.backends.protocol import Checksums, EncodedSegments
from wcodec.reference.planes import DType, Words
from wcodec.reference.segments import SegmentPlan
from wcodec.reference.tiles import Geometry, Spans


def coder_of(backend: Backend, geometry: Geometry) -> Any:
    """What codes segments of a geometry: the backend, or `OneByOne` where it takes no `Spans`."""
    if isinstance(geometry, Spans) and not backend.takes_spans:
        return OneByOne(backend, geometry)
    return backend


class OneByOne:
    """A backend that takes no `Spans`, with kernels that do: a call for each segment.

    Its words are a list: those of each segment, on the device.
    """

    def __init__(self, backend: Backend, spans: Spans) -> None:
        self.backend, self.spans = backend, spans

    def to_device(self, words: Words) -> list[Any]:
        """The words of each segment."""
        parts = (words[self.spans.rectangle(k)] for k in range(self.spans.n_segments))
        return [self.backend.to_device(np.ascontiguousarray(part)) for part in parts]

    def to_host(self, array: NDArray[Any]) -> NDArray[Any]:
        """What `encode_with_checksums` gives is there."""
        return array

    def _geometry(self, k: int) -> Geometry:
        n = int(self.spans.bounds[k + 1] - self.spans.bounds[k])
        return Geometry(1, n, 1, n, 1, n)

    def histogram(
        self, words: list[Any], geometry: Geometry, dtype: DType, *,
        segments: NDArray[np.int64] | None = None, **what: Any,
    ) -> NDArray[np.int64]:  # fmt: skip
        """See `Backend.histogram`."""
        ids = range(len(words)) if segments is None else segments.tolist()
        of_each = self.backend.histogram
        return np.concatenate([of_each(words[k], self._geometry(k), dtype, **what) for k in ids])

    def encode_with_checksums(
        self, plan: SegmentPlan, words: list[Any]
    ) -> tuple[EncodedSegments, Checksums]:
        """See `Backend.encode_with_checksums`; without the checksum of all words."""
        done = list[tuple[EncodedSegments, Checksums]]()
        for k, part in enumerate(words):
            fill = None if plan.fill is None else plan.fill[k : k + 1]
            columns = plan.segments.take(np.array([k]))
            one = SegmentPlan(plan.dtype, self._geometry(k), columns, plan.tables, fill)
            encoded, sums = self.backend.encode_with_checksums(one, part)
            payload = self.backend.to_host(encoded.payload).copy()
            done.append((encoded._replace(payload=payload), sums))
        return EncodedSegments(
            np.concatenate([e.payload for e, _ in done]),
            np.concatenate([e.n_units for e, _ in done], axis=1),
            np.concatenate([e.n_patches for e, _ in done]),
        ), Checksums(np.concatenate([s.records for _, s in done]), 0)

    def decode_with_checksums(
        self, plan: SegmentPlan, payload: Any, out: Any
    ) -> tuple[NDArray[np.uint8], Checksums]:
        """See `Backend.decode_with_checksums`; without the checksum of all words."""
        done = list[tuple[NDArray[np.uint8], Checksums]]()
        for k, (a, b) in enumerate(pairwise(plan.offsets.tolist())):
            columns = plan.segments.take(np.array([k]))
            one = SegmentPlan(plan.dtype, self._geometry(k), columns, plan.tables)
            place = self.spans.rectangle(k)
            done.append(self.backend.decode_with_checksums(one, payload[a:b], out[place]))
        records = np.concatenate([sums.records for _, sums in done])
        return np.concatenate([status for status, _ in done]), Checksums(records, 0)
