"""Which parameters of a test always run, and which only run in `make test-all`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest


def sampled(values: Iterable[Any], always: int) -> list[Any]:
    """All of some parameters: `always` of them, evenly spread, run in `make test`,
    the others are marked ``exhaustive``.
    """
    held = list(values)
    kept = {round(i * (len(held) - 1) / max(1, always - 1)) for i in range(always)}
    return [v if i in kept else exhaustive(v) for i, v in enumerate(held)]


def crossed(*axes: Iterable[Any], one_in: int) -> list[Any]:
    """All combinations; one in so many runs in `make test`, such that each value is in one if some
    other axis has that many.
    """
    held = [list(axis) for axis in axes]
    places = product(*(range(len(axis)) for axis in held))
    return [
        v if sum(at) % one_in == 0 else exhaustive(v)
        for at, v in zip(places, product(*held), strict=True)
    ]


def exhaustive(value: Any) -> Any:
    """A parameter that only `make test-all` runs; several values of one test are a tuple."""
    if hasattr(value, "marks"):  # it is a `pytest.param`
        return pytest.param(
            *value.values, marks=[*value.marks, pytest.mark.exhaustive], id=value.id
        )
    return pytest.param(
        *(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.exhaustive
    )
