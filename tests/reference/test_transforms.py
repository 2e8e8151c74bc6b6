"""Transforms: steps worked out by hand, every tile there and back,
and what they are worth beside the real DCT and DST.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from wcodec.reference import transforms
from wcodec.reference.prediction import IS_MODE, MODES, Mode, mode_name, predict, residuals, restore
from wcodec.reference.transforms import SIZE, Transform, forward, forward_1d, inverse, inverse_1d

BOTH = [Transform.DCT, Transform.ADST]
RNG = np.random.default_rng(8)
SHAPES = [
    (1, 1),
    (7, 7),
    (8, 8),
    (1, 8),
    (8, 1),
    (1, 50),
    (50, 1),
    (9, 17),
    (16, 16),
    (23, 31),
    (7, 24),
    (24, 7),
]


def tiles(kind: str, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Three tiles: noise, extremes that make every step wrap, one value, or a slope."""
    if kind == "slope":
        r, c = np.indices(shape)
        return np.stack(
            [(r * a + c * b).astype(np.uint8) for a, b in ((1, 2), (17, 3), (128, 129))]
        )
    values = {
        "noise": np.arange(256),
        "extremes": np.array([0, 127, 128, 255]),
        "one value": np.array([200]),
    }[kind]
    return RNG.choice(values, (3, *shape)).astype(np.uint8)


@pytest.mark.parametrize("transform", [Transform.NONE, *BOTH])
@pytest.mark.parametrize("kind", ["noise", "extremes", "one value", "slope"])
def test_every_tile_comes_back(transform: Transform, kind: str) -> None:
    for shape in SHAPES:
        before = tiles(kind, shape)
        kept = before.copy()
        coded = forward(before, transform)
        assert np.array_equal(inverse(coded, transform), before)
        assert np.array_equal(before, kept)
        assert np.array_equal(coded[1], forward(before[1], transform)), (
            "several at once are not as one by one"
        )


@pytest.mark.parametrize("transform", BOTH)
def test_every_pair_of_values_comes_back(transform: Transform) -> None:
    """All 65536 values of each pair of neighbours."""
    pairs = (
        np.stack(np.meshgrid(np.arange(-128, 128), np.arange(-128, 128)), axis=-1)
        .reshape(-1, 2)
        .astype(np.int16)
    )
    for at in range(SIZE - 1):
        rows = np.full((len(pairs), SIZE), -77, np.int16)
        rows[:, at : at + 2] = pairs
        assert np.array_equal(inverse_1d(forward_1d(rows, transform), transform), rows)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_comes_back(mode: int) -> None:
    for shape in SHAPES:
        tile = tiles("noise", shape)
        assert np.array_equal(restore(residuals(tile, mode), mode), tile)


def test_a_row_by_hand() -> None:
    # Of 8 equal values v: the first rows make 4, then 2, then 1 difference of 0, and means of v;
    # nothing else moves.
    assert forward_1d(np.full(8, 55, np.int16), Transform.DCT).tolist() == [55, 0, 0, 0, 0, 0, 0, 0]
    # 127 and -128 four times: the first row makes y[7] = -128 - 127 = -255, which is 1, and y[0] =
    # 127 + (1 * 64 + 64 >> 7) = 128, which is -128; the next three do the same to y[4] to y[6] and
    # y[1] to y[3]. Of equal means y[1], y[2], y[3] become 0. Then of the ones: row 6 5 takes -71 +
    # 64 >> 7 = -1 to y[5], which is 0; row 7 6 takes 91 + 64 >> 7 = 1 to y[6], which is 2, and
    # -106 + 64 >> 7 = -1 to y[7], which is 0. All other products round to 0.
    y = np.array([127, 127, 127, 127, -128, -128, -128, -128], np.int16)
    found = transforms.steps(Transform.DCT)[:4]
    assert found == [(7, 0, -128), (0, 7, 64), (6, 1, -128), (1, 6, 64)]
    # y[0], y[6], y[3], y[7], y[1], y[4], y[2], y[5]
    assert forward_1d(y, Transform.DCT).tolist() == [-128, 2, 0, 0, 0, 1, 0, 0]
    assert (
        inverse_1d(np.array([-128, 2, 0, 0, 0, 1, 0, 0], np.int16), Transform.DCT).tolist()
        == y.tolist()
    )
    # The first row of the ADST alone: y[0] = 100 - (6 * 50) / 128 = 98 (-2.34 rounds to -2), y[7] =
    # 50 + (13 * 98) / 128 = 60, y[0] = 98 - (6 * 60) / 128 = 95.
    y = np.array([100, 0, 0, 0, 0, 0, 0, 50], np.int16)
    first = [(0, 7, -6), (7, 0, 13), (0, 7, -6)]
    assert transforms.steps(Transform.ADST)[:3] == first
    for t, s, c in first:
        y[t] += (int(y[s]) * c + 64) >> 7
    assert (y[0], y[7]) == (95, 60)


def test_what_is_left_over_is_left_alone() -> None:
    tile = tiles("noise", (11, 13))[0]
    for transform in BOTH:
        coded = forward(tile, transform)
        assert np.array_equal(coded[8:, 8:], tile[8:, 8:])
        assert np.array_equal(coded[8:, :8], forward(tile[8:, :8], transform)), (
            "rows alone where there is no column of 8"
        )
        assert np.array_equal(coded[:8, 8:], forward(tile[:8, 8:], transform))
        assert np.array_equal(coded[:8, :8], forward(tile[:8, :8], transform))
        assert not np.array_equal(coded[:8, :8], tile[:8, :8])


def test_rows_come_before_columns() -> None:
    tile = tiles("noise", (8, 8))[0]
    for transform in BOTH:
        rows = forward_1d(tile.view(np.int8).astype(np.int16), transform)
        both = forward_1d(rows.T, transform).T
        assert np.array_equal(forward(tile, transform), both.astype(np.int8).view(np.uint8))
        other = forward_1d(
            forward_1d(tile.view(np.int8).astype(np.int16).T, transform).T, transform
        )
        assert not np.array_equal(both, other), "the order would not matter"


def test_dct_sees_a_shift_in_its_mean_alone() -> None:
    """R8: values that all grow by the same, modulo 256, have the same other coefficients."""
    rows = RNG.integers(-128, 128, (2000, SIZE)).astype(np.int16)
    first = forward_1d(rows, Transform.DCT)
    for add in (1, 77, 128, 255):
        shifted = forward_1d((rows + add).astype(np.int8).astype(np.int16), Transform.DCT)
        assert np.array_equal(shifted[:, 1:], first[:, 1:])
        assert np.array_equal((shifted[:, 0] - first[:, 0]) % 256, np.full(2000, add))


def test_none_predicts_the_centre_in_front_of_a_transform() -> None:
    tile = tiles("noise", (16, 16))[0]
    for transform in BOTH:
        assert np.array_equal(
            residuals(tile, transform << 4), forward(tile - np.uint8(128), transform)
        )
        assert np.array_equal(
            residuals(tile, transform << 4 | Mode.TOP), forward(predict(tile, Mode.TOP), transform)
        )
    flat = residuals(np.full((8, 8), 131, np.uint8), Transform.DCT << 4)
    assert (flat[0, 0], np.count_nonzero(flat)) == (3, 1)


def test_bytes_that_are_modes() -> None:
    assert (
        np.flatnonzero(IS_MODE).tolist()
        == sorted(MODES)
        == [*range(5), *range(16, 21), *range(32, 37)]
    )
    assert [mode_name(m) for m in (0x00, 0x03, 0x10, 0x24)] == ["none", "avg", "dct", "planar+adst"]
    for mode in set(range(256)) - set(MODES):
        with pytest.raises(ValueError, match="not a valid"):
            mode_name(mode)


# ---- what they are worth -------------------------------------------------------------------------
def real(transform: Transform) -> NDArray[np.float64]:
    """The matrix of the real transform, orthonormal: DCT-II or DST-IV, as textbooks have it."""
    n, k = np.arange(SIZE), np.arange(SIZE)[:, None]
    if transform == Transform.DCT:
        m = np.cos(np.pi * (2 * n + 1) * k / (2 * SIZE)) * np.sqrt(2 / SIZE)
        m[0] /= np.sqrt(2)
        return np.asarray(m)
    return np.asarray(np.sin(np.pi * (2 * n + 1) * (2 * k + 1) / (4 * SIZE)) * np.sqrt(2 / SIZE))


def gain(coefficients: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Bits a value that coding coefficients instead of values saves, at one step of quantisation:
    half the log2 of the variances' ratio.

    The scales of the coefficients differ from one transform to another;
    their product is 1, so that the sum tells the truth.
    """
    variances = coefficients.reshape(-1, coefficients.shape[-1]).var(axis=0)
    return float(0.5 * (np.log2(values.var()) - np.log2(variances).mean()))


@pytest.mark.parametrize("transform", BOTH)
def test_the_matrix_is_that_of_the_real_transform(transform: Transform) -> None:
    """Each coefficient is the real one but for its scale and sign; the scales' product is 1."""
    rows = forward_1d((np.eye(SIZE) * 100).astype(np.int16), transform).T / 100
    scales = np.linalg.norm(rows, axis=1)
    assert np.abs(np.sum(rows / scales[:, None] * real(transform), axis=1)).min() > 0.999
    assert np.prod(scales) == pytest.approx(1, abs=0.05)


def autoregressive(rho: float, deviation: float, n: int, width: int) -> NDArray[np.float64]:
    """Rows of a first-order autoregressive process."""
    rng = np.random.default_rng(5)
    x = np.empty((n, width))
    x[:, 0] = rng.normal(0, deviation, n)
    for i in range(1, width):
        x[:, i] = rho * x[:, i - 1] + rng.normal(0, deviation * np.sqrt(1 - rho * rho), n)
    return x


@pytest.mark.parametrize(("transform", "least"), [(Transform.DCT, 1.44), (Transform.ADST, 0.8)])
def test_energy_compaction_of_rows(transform: Transform, least: float) -> None:
    """AR(1) of rho 0.95: the textbook case of image rows.
    Textbooks give the DCT of 8 a gain of 8.83 dB, 1.467 bits.
    """
    rows = np.rint(autoregressive(0.95, 16, 40_000, SIZE)).clip(-128, 127).astype(np.int16)
    coded, ideal = gain(forward_1d(rows, transform), rows), gain(rows @ real(transform).T, rows)
    assert coded > ideal - (0.02 if transform == Transform.DCT else 0.05)
    assert coded > least


def image(kind: str, size: float, noise: float) -> NDArray[np.int8]:
    """256 x 256 signed bytes as 8 x 8 blocks: gradients or sinusoids,
    and the noise that images have.
    """
    r, c = np.indices((256, 256)) / 256
    values = {
        "gradient": -100 + 90 * r + 110 * c,
        "sinusoids": 45 * np.sin(2 * np.pi * (3 * r + 2 * c))
        + 35 * np.sin(2 * np.pi * (5 * c - r))
        + 20 * np.cos(20 * r * c),
    }[kind]
    whole = (
        np.rint(size * values + np.random.default_rng(6).normal(0, noise, values.shape))
        .clip(-128, 127)
        .astype(np.int8)
    )
    return whole.reshape(32, 8, 32, 8).swapaxes(1, 2).reshape(-1, 8, 8)


def entropy(values: NDArray[np.int8]) -> float:
    """Order-0 entropy in bits a byte."""
    p = np.bincount(values.reshape(-1).view(np.uint8), minlength=256) / values.size
    return float(-(p[p > 0] * np.log2(p[p > 0])).sum())


@pytest.mark.parametrize("kind", ["gradient", "sinusoids"])
@pytest.mark.parametrize(
    ("transform", "size", "noise", "loss"),
    [
        (Transform.DCT, 1, 1, 0.3),
        (Transform.DCT, 1, 3, 0.06),
        (Transform.ADST, 0.3, 1, 0.3),
        (Transform.ADST, 0.3, 4, 0.1),
    ],
)
def test_energy_compaction_of_images(
    transform: Transform, kind: str, size: float, noise: float, loss: float
) -> None:
    """8 x 8 blocks beside the real transform, whose coefficients are no integers.

    What the integer one loses is the rounding of its steps, which counts where the data has hardly
    any noise; and sums beyond a byte, of which the ADST has more: it is for what prediction leaves,
    values around 0.
    """
    blocks, m = image(kind, size, noise), real(transform)
    coded = forward(blocks.view(np.uint8), transform).view(np.int8)
    values = blocks.astype(np.float64)
    got = gain(coded.reshape(-1, 64).astype(np.float64), values)
    due = gain((m @ values @ m.T).reshape(-1, 64), values)
    assert got > due - loss
    assert due > (3 if transform == Transform.DCT else 1)
    saved = entropy(blocks) - np.mean([entropy(coded.reshape(-1, 64)[:, i]) for i in range(64)])
    assert saved > (3 if transform == Transform.DCT else 1)
