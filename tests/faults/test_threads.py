"""16 threads that read one file at once get the right bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from readers import N_THREADS, Readers, read_in_threads

WAYS = [name for name in dir(Readers) if name.startswith("by_")]


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_threads_that_share_a_reader(tmp_path: Path, backend: str) -> None:
    rounds = 2 * len(WAYS) if backend == "numba" else 1  # each begins with another way
    taken = read_in_threads(tmp_path, backend, lambda i: i < rounds)
    assert taken.total() == N_THREADS * rounds
    assert set(taken) == set(WAYS)


@pytest.mark.exhaustive
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_threads_that_share_a_reader_for_long(tmp_path: Path, backend: str) -> None:
    rounds = (40 if backend == "numba" else 4) * len(WAYS)
    assert read_in_threads(tmp_path, backend, lambda i: i < rounds).total() == N_THREADS * rounds
