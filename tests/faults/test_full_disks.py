"""Disks that are full, at any byte: an error that names the file, and nothing left of it."""

from __future__ import annotations

import errno
import random

import pytest
from fault_cases import CASES, LEFT, Room
from test_system_calls import STATE
from zygote import Harm


def fill(room: Room, name: str, harm: Harm, strerror: str) -> None:
    """Run with a full disk, and again with one that is not."""
    room.clear()
    done = room.run_case(name, harm=harm)
    assert done.status == 1, (name, harm, done)
    assert done.err.startswith(f"wcodec: error: {room.out}"), done.err
    assert done.err.endswith(f": {strerror}\n"), done.err
    found = room.output()
    assert not [path for path in found if LEFT.fullmatch(path)]
    if CASES[name].is_folder:
        assert not found or STATE in found
        whole = {path: data for path, data in found.items() if path != STATE}
        assert whole.items() <= room.due[name].items()
    else:
        assert found == {}
    if found:  # else it would be the first run
        assert room.run_case(name).status == 0
        assert room.output() == room.due[name]


def sizes(room: Room, name: str, n: int, seed: int) -> list[int]:
    """Sizes that are too small for the largest file that a run makes."""
    most = max(map(len, room.due[name].values()))
    rng = random.Random(seed)
    return [0, most - 1, *(rng.randrange(most) for _ in range(n - 2))]


@pytest.mark.parametrize("name", CASES)
def test_files_that_may_not_grow(room: Room, name: str) -> None:
    """A limit on the size of files ends a write somewhere in its middle, as a full disk does."""
    for nbytes in sizes(room, name, 3, 0):
        if CASES[name].is_folder and nbytes < 4096:
            continue  # not even for its notes
        fill(room, name, Harm(file_nbytes=nbytes), "File too large")


@pytest.mark.parametrize("name", ["encode", "decode", "encode directory"])
def test_a_disk_that_is_full_from_a_write_on(room: Room, name: str) -> None:
    for error in (errno.ENOSPC, errno.EDQUOT):
        n = room.calls[name].count("write")
        for at in {0, n // 2, n - 1}:
            harm = Harm(at, error, for_ever=True, only="write")
            fill(room, name, harm, {errno.ENOSPC: "No space left on device",
                                    errno.EDQUOT: "Disk quota exceeded"}[error])  # fmt: skip


@pytest.mark.exhaustive
def test_50_full_disks(room: Room) -> None:
    names, n_done = list(CASES), 0
    for i, name in enumerate(names):
        for nbytes in sizes(room, name, 6, i + 1):
            if not CASES[name].is_folder or nbytes >= 4096:
                fill(room, name, Harm(file_nbytes=nbytes), "File too large")
                n_done += 1
    for at in range(room.calls["encode directory"].count("write")):
        harm = Harm(at, errno.ENOSPC, for_ever=True, only="write")
        fill(room, "encode directory", harm, "No space left on device")
        n_done += 1
    assert n_done >= 50
