"""The numba backend's transforms, tile by tile: against the reference, and within their arrays.

As other CPUs run them: `test_numba_prediction`.
"""

from __future__ import annotations

import ctypes
from itertools import product
from typing import Any

import numpy as np
import pytest
from fences import CANARY, Fence

from wcodec.backends.numba.rans import TRANSFORMS, StreamScratch
from wcodec.backends.numba.transforms import LANES, transformer
from wcodec.reference.prediction import MODES, PER_TILE
from wcodec.reference.transforms import Transform, forward

KINDS = [Transform.DCT, Transform.ADST]
# No block, one, two and more, with and without what is left over;
# widths up to two vectors of 32 columns and more.
SHAPES = [*product((1, 7, 8, 17), range(1, 73)), (64, 250), (40, 8)]


def kernel(transform: int, inverse: bool) -> Any:
    """A native function, to be called from Python."""
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(transformer(transform, inverse).address)


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("centre", [0, 128])
@pytest.mark.parametrize("transform", KINDS)
def test_forward_and_back(transform: Transform, centre: int, at_end: bool) -> None:
    """Nothing but the tile is changed, and nothing is touched but it and `LANES` bytes after
    it.
    """
    rng = np.random.default_rng(transform)
    there = kernel(transform, False)
    back = kernel(transform, True)
    most = max(h * w for h, w in SHAPES) + LANES
    fence = Fence(most, at_end)
    for height, width in SHAPES:
        n = height * width
        room = fence.bytes[most - n - LANES :] if at_end else fence.bytes[: n + LANES]
        fence.bytes[:] = CANARY
        tile = rng.integers(0, 256, (height, width), np.uint8)
        if width % 3 == 0:
            tile[tile < 128] = 0  # the ends of what is signed
            tile[tile > 128] = 255
        room[:n] = tile.reshape(-1)
        there(room.ctypes.data, height, width, centre)
        expected = forward(tile - np.uint8(centre), transform)
        np.testing.assert_array_equal(
            room[:n].reshape(height, width), expected, err_msg=f"{height} x {width}"
        )
        back(room.ctypes.data, height, width, centre)
        np.testing.assert_array_equal(
            room[:n].reshape(height, width), tile, err_msg=f"{height} x {width}"
        )
        assert (room[n:] == CANARY).all()
        outside = fence.bytes[: most - n - LANES] if at_end else fence.bytes[n + LANES :]
        assert (outside == CANARY).all()


@pytest.mark.parametrize(
    ("modes", "compiled"),
    [
        ({0, 4}, ""),
        ({0x12}, "DCT"),
        ({0, 0x20}, "ADST"),
        ({PER_TILE}, "DCT ADST"),
        ({*MODES}, "DCT ADST"),
    ],
)
def test_only_what_a_plan_needs_is_compiled(modes: set[int], compiled: str) -> None:
    streams = StreamScratch()
    streams.need_transforms(modes)
    for transform in KINDS:
        at = TRANSFORMS + 2 * (transform - 1)
        there = (
            [transformer(transform, inverse).address for inverse in (False, True)]
            if transform.name in compiled.split()
            else [0, 0]
        )
        assert streams.natives[at : at + 2].tolist() == there
