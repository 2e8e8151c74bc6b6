"""The numba backend's prediction, tile by tile: against the reference, and within its arrays."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import test_numba_transform
from fences import Fence
from numba import njit
from sampling import exhaustive
from variants import VARIANTS, check_tests

from wcodec.backends.numba import (
    compiling,  # noqa: F401 (it tells numba what parts of kernels are)
    contexts,
    prediction,
)
from wcodec.reference.prediction import IS_MODE, Mode, predict
from wcodec.reference.tables import ContextKind

MODES = [m for m in Mode if m != Mode.NONE]
GUARD, CANARY = 128, 0xA5  # as far as the longest vector could reach
# Every width up to two blocks of 128 columns and more, so all that is left behind vectors of 16,
# 32 and 128 bytes.
WIDTHS, HEIGHTS = range(1, 301), range(1, 6)
# AVG works on groups of 15 rows below the first one: one group, a row more or less, two groups;
# 47 makes 15, 15, 15 and 1.
TALL = [
    *product((15, 16, 17, 30, 31, 32, 47), (1, 2, 15, 16, 17, 28, 31, 32, 33, 47, 48, 49, 64, 250))
]
SHAPES = [*product(HEIGHTS, WIDTHS), *TALL]
# Of those one in five, at each height others.
FEW = [*((h, w) for h, w in SHAPES if (h + w) % 5 == 0 or w % 32 in (31, 0, 1)), *TALL]
MOST = max(h * w for h, w in SHAPES)

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@njit
def predict_tile(tile: Any, out: Any, height: int, width: int, mode: int) -> None:
    prediction.predict_tile(tile, out, height, width, mode)


@njit
def reconstruct_tile(tile: Any, height: int, width: int, mode: int) -> None:
    prediction.reconstruct_tile(tile, height, width, mode)


@njit
def are_modes(modes: Any) -> Any:
    return prediction.are_modes(modes)


class Place:
    """Room for tiles, with a page that cannot be touched on one side, and canaries on the other."""

    def __init__(self, at_end: bool) -> None:
        self.fenced, self.at_end = Fence(MOST + GUARD, at_end), at_end

    def take(self, n: int) -> tuple[Bytes, Bytes]:
        """`n` bytes at the fence, and the canaries beside them."""
        memory = self.fenced.bytes
        memory[:] = CANARY
        return (
            (memory[-n:], memory[-n - GUARD : -n])
            if self.at_end
            else (memory[:n], memory[n : n + GUARD])
        )


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shapes", [FEW, exhaustive(SHAPES)], ids=len)
def test_predict(mode: Mode, at_end: bool, shapes: list[tuple[int, int]]) -> None:
    rng, source, target = np.random.default_rng(mode), Place(at_end), Place(at_end)
    for height, width in shapes:
        values = rng.integers(0, 256, (height, width), np.uint8)
        (tile, beside), (out, beside_out) = source.take(values.size), target.take(values.size)
        tile[:] = values.reshape(-1)
        predict_tile(tile, out, height, width, int(mode))
        np.testing.assert_array_equal(
            out.reshape(height, width), predict(values, mode), err_msg=f"{height} x {width}"
        )
        np.testing.assert_array_equal(tile.reshape(height, width), values)
        assert (beside == CANARY).all()
        assert (beside_out == CANARY).all()


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shapes", [FEW, exhaustive(SHAPES)], ids=len)
def test_reconstruct(mode: Mode, at_end: bool, shapes: list[tuple[int, int]]) -> None:
    """The reference must make the same residuals out of the tile again;
    its own inverse of AVG takes minutes.
    """
    rng, place = np.random.default_rng(mode), Place(at_end)
    for height, width in shapes:
        residual = rng.integers(0, 256, (height, width), np.uint8)
        tile, beside = place.take(residual.size)
        tile[:] = residual.reshape(-1)
        reconstruct_tile(tile, height, width, int(mode))
        np.testing.assert_array_equal(
            predict(tile.reshape(height, width), mode), residual, err_msg=f"{height} x {width}"
        )
        assert (beside == CANARY).all()


@pytest.mark.parametrize("values", [[0], [255], [0, 255], [127, 128]])
def test_extremes(values: list[int]) -> None:
    """Where the means' ninth bit is always or never set, and where roundings differ."""
    rng = np.random.default_rng(len(values))
    for mode, (height, width) in product(MODES, [(16, 16), (17, 70), (40, 200)]):
        residual = rng.choice(np.array(values, np.uint8), (height, width))
        tile, out = residual.reshape(-1).copy(), np.empty(height * width, np.uint8)
        reconstruct_tile(tile, height, width, int(mode))
        np.testing.assert_array_equal(predict(tile.reshape(height, width), mode), residual)
        predict_tile(tile, out, height, width, int(mode))
        np.testing.assert_array_equal(out.reshape(height, width), residual)


def test_which_bytes_are_modes() -> None:
    found = [are_modes(np.array([0x24, i], np.uint8)) for i in range(256)]
    assert found == IS_MODE.tolist()


def test_a_map_of_one_class_is_no_kind_of_the_spec() -> None:
    assert contexts.SINGLE not in set(ContextKind)


@pytest.mark.exhaustive
@pytest.mark.parametrize("marks", ["not exhaustive", "exhaustive"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_other_variants(variant: str, marks: str) -> None:
    """The tests above and those of transforms, as another CPU runs them."""
    names = "test_predict or test_reconstruct or test_extremes or test_forward_and_back"
    check_tests(variant, names, marks, __file__, test_numba_transform.__file__)
