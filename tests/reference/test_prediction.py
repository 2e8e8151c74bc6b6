"""Prediction: a tile worked out by hand in every mode, and every mode there and back."""

from __future__ import annotations

import numpy as np
import pytest

from wcodec.reference.prediction import N_MODES, Mode, predict, reconstruct

TILE = [[10, 20, 40], [250, 5, 7], [3, 255, 0]]

# First row as LEFT and first column as TOP in every mode: 10, 20 - 10, 40 - 20;
# 250 - 10, 3 - 250 = -247 = 9 mod 256.
RESIDUALS = {
    Mode.NONE: TILE,
    # 5 - 250 = 11, 7 - 5, 255 - 3, 0 - 255 = 1
    Mode.LEFT: [[10, 10, 20], [240, 11, 2], [9, 252, 1]],
    # 5 - 20 = 241, 7 - 40 = 223, 255 - 5, 0 - 7 = 249
    Mode.TOP: [[10, 10, 20], [240, 241, 223], [9, 250, 249]],
    # means, rounded down and in 9 bits: (250 + 20) / 2 = 135, (5 + 40) / 2 = 22, (3 + 5) / 2 = 4,
    # (255 + 7) / 2 = 131
    Mode.AVG: [[10, 10, 20], [240, 126, 241], [9, 251, 125]],
    # 250 + 20 - 10 = 4, 5 + 40 - 20 = 25, 3 + 5 - 250 = 14, 255 + 7 - 5 = 1, all mod 256
    Mode.PLANAR: [[10, 10, 20], [240, 1, 238], [9, 241, 255]],
}


@pytest.mark.parametrize("mode", Mode)
def test_a_tile_by_hand(mode: Mode) -> None:
    tile = np.array(TILE, np.uint8)
    residual = predict(tile, mode)
    assert residual.tolist() == RESIDUALS[mode]
    assert tile.tolist() == TILE
    assert reconstruct(residual, mode).tolist() == TILE
    assert residual.tolist() == RESIDUALS[mode]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (16, 16), (17, 31)])
def test_every_tile_comes_back(mode: Mode, shape: tuple[int, int]) -> None:
    tiles = np.random.default_rng(2).integers(0, 256, (3, *shape), np.uint8)
    assert np.array_equal(reconstruct(predict(tiles, mode), mode), tiles)
    for tile in tiles:  # several at once are the same as one by one
        assert np.array_equal(predict(tiles, mode)[0], predict(tiles[0], mode))
        assert np.array_equal(reconstruct(predict(tile, mode), mode), tile)


def test_ids_of_modes_are_fixed() -> None:
    assert {m.name: m.value for m in Mode} == {
        "NONE": 0,
        "LEFT": 1,
        "TOP": 2,
        "AVG": 3,
        "PLANAR": 4,
    }


@pytest.mark.parametrize("step", [predict, reconstruct])
def test_a_mode_that_is_not_there_is_refused(step) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="not a prediction mode"):
        step(np.zeros((2, 2), np.uint8), N_MODES)
