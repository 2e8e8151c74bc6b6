"""Runs of training, as the states of a model after each step, for tests of what follows them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

State = dict[str, NDArray[Any]]
BF16 = np.dtype(ml_dtypes.bfloat16)


def changed(rng: np.random.Generator, array: NDArray[Any], share: float) -> NDArray[Any]:
    """A copy in which so many words differ."""
    words = array.reshape(-1).view(np.uint16).copy()
    at = rng.choice(words.size, max(1, int(words.size * share)), replace=False)
    words[at] ^= rng.integers(1, 8, at.size, np.uint16)
    return words.view(array.dtype).reshape(array.shape)


def gaussian(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    return (rng.standard_normal(shape) * 0.02).astype(BF16)


def steps(n: int, seed: int = 0) -> list[State]:
    """A model after each of `n` steps: 1 % of its words change; in step 7 nearly all; tensors come
    (every fifth step), go, change their shape, become the same as others, and part again.
    """
    rng = np.random.default_rng(seed)
    now: State = {
        "embed": gaussian(rng, (64, 48)), "layer.0": gaussian(rng, (48, 96)),
        "layer.1": gaussian(rng, (96, 40)), "norm": gaussian(rng, (96,)),
        "step": np.array(0, np.int64), "empty": np.empty((0, 3), np.float32),
    }  # fmt: skip
    now["head"] = now["embed"].copy()
    out = []
    for i in range(n):
        share = 0.9 if i == 7 else 0.01
        now = {name: changed(rng, a, share) if a.dtype == BF16 else a for name, a in now.items()}
        now["step"] = np.array(i, np.int64)
        if i % 5 == 2:
            now[f"new.{i}"] = gaussian(rng, (17, 8 + i))
        if i % 5 == 4:
            now.pop(f"new.{i - 2}")
        if i % 6 == 3:
            now["layer.1"] = gaussian(rng, (96, 40 + i))
        if i % 4 == 1:
            now["head"] = now["embed"].copy()
        out.append(now)
    return out


def fixed_steps(n: int, seed: int = 0, n_rows: int = 100) -> list[State]:
    """A model of fixed shapes after each of `n` steps, in each of which 1 % of its words change."""
    rng = np.random.default_rng(seed)
    now: State = {"a": gaussian(rng, (n_rows, 400)), "b": gaussian(rng, (500,))}
    out = [now]
    for _ in range(n - 1):
        now = {name: changed(rng, array, 0.01) for name, array in now.items()}
        out.append(now)
    return out


def same(a: dict[str, Any], b: State) -> bool:
    """Whether two states have the same names in the same order, dtypes, shapes and bits."""
    return list(a) == list(b) and all(
        (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
        for x, y in zip(a.values(), b.values(), strict=True)
    )


def copies(state: State) -> State:
    return {name: array.copy() for name, array in state.items()}
