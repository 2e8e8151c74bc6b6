"""Comparison of what backends gave with what an index says."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.codec.parts import Ids
from wcodec.errors import DecodeError
from wcodec.reference.segments import SegmentPlan, Status
from wcodec.reference.tensors import TensorRecord

_STATUS_ERRORS: Final = {
    Status.BAD_STREAM: ("bad_stream", "a rANS stream does not end as it must"),
    Status.BAD_PATCH: ("bad_patch", "a patch lies outside the segment, or out of order"),
    Status.BAD_TILE_MODE: ("unsupported_coder", "a tile has a reserved prediction mode"),
}


def check_segments(
    t: TensorRecord, ids: Ids, starts: Ids, status: NDArray[np.uint8], crcs: NDArray[np.uint32]
) -> None:
    """Compare what decoding gave for some segments of a tensor: status and CRC-32 of each; `starts`
    says where they are in the file.

    Raises
    ------
    DecodeError
        ``bad_checksum``, ``bad_stream``, ``bad_patch``, ``unsupported_coder``
    """
    wrong, bad = crcs != t.segment_crc32[ids], status != Status.OK.value
    if wrong.any():
        k = int(np.argmax(wrong))
        raise DecodeError(
            "bad_checksum",
            f"the CRC-32 of segment {int(ids[k])} does not match",
            tensor=t.name,
            offset=int(starts[k]),
        )
    if bad.any():
        k = int(np.argmax(bad))
        code, message = _STATUS_ERRORS[Status(int(status[k]))]
        raise DecodeError(
            code, f"segment {int(ids[k])}: {message}", tensor=t.name, offset=int(starts[k])
        )


def check_tensor(t: TensorRecord, crc: int) -> None:
    """Compare the CRC-32 of a whole tensor.

    Raises
    ------
    DecodeError
        ``bad_checksum``
    """
    if crc != t.crc32:
        raise DecodeError(
            "bad_checksum", "the CRC-32 of the decoded tensor does not match", tensor=t.name
        )


def check_encoded(backend: Backend, plan: SegmentPlan, nbytes: int) -> None:
    """Check what a backend has encoded: its sizes keep the rules, and the payload is of them.

    Raises
    ------
    AssertionError, DecodeError
        The backend is wrong.
    """
    backend.check_plan(plan)
    if nbytes != plan.payload_nbytes:
        raise AssertionError(
            f"backend {backend.name!r} wrote {nbytes} bytes where its sizes say "
            f"{plan.payload_nbytes}"
        )
