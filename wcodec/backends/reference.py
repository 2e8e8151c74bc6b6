"""The reference as a backend: NumPy, one thread."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.protocol import Backend, DType, EncodedSegments, Geometry, SegmentPlan
from wcodec.reference import decoding, encoding


class ReferenceBackend(Backend):
    """Runs `wcodec.reference.segments`. Needs nothing but NumPy."""

    name = "reference"
    takes_spans = True

    def info(self) -> dict[str, str]:
        return {"numpy": np.__version__}

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
        return encoding.histogram(
            words,
            geometry,
            dtype,
            segments=segments,
            planes=planes,
            mode=mode,
            base=base,
            fill=fill,
        )

    def encode_segments(self, plan: SegmentPlan, words: Any) -> EncodedSegments:
        return EncodedSegments(*encoding.encode_segments(plan, words))

    def decode_segments(self, plan: SegmentPlan, payload: Any, out: Any) -> NDArray[np.uint8]:
        return decoding.decode_segments(plan, payload, out)
