"""Runs that are killed: nothing whole-looking is left, and the same command again ends as if it had
never been killed.
"""

from __future__ import annotations

import random

import pytest
from fault_cases import CASES, FILES, FOLDERS, LEFT, Room
from test_system_calls import STATE
from zygote import KILL, Harm


def kill(room: Room, name: str, harm: Harm) -> tuple[int, int]:
    """Kill a run, look what is there, and run it again.

    Returns
    -------
    Whether it was killed before it ended, and how many temporary files it left.
    """
    room.clear()
    due = room.due[name]
    killed = room.run_case(name, harm=harm)
    assert killed.status in (-9, 0)
    found = room.output()
    left = {path for path in found if LEFT.fullmatch(path)}
    whole = {path: data for path, data in found.items() if path not in left | {STATE}}
    assert whole.items() <= due.items(), f"not whole: {sorted(found)}"
    if CASES[name].is_folder and STATE not in found and whole:
        assert whole == due, f"a directory that looks whole: {sorted(found)}"
    elif CASES[name].is_folder or not whole:
        again = room.run_case(name)
        assert (again.status, again.err) == (0, ""), sorted(found)
    now = room.output()
    if not CASES[name].is_folder:  # a file may be anyone's; they are known by their names
        now = {path: data for path, data in now.items() if path not in left}
    assert now == due
    return killed.status == -9, len(left)


def kill_many(room: Room, names: list[str], n: int, seed: int) -> int:
    """Kill runs at random moments. Returns how many did not end by themselves."""
    rng, n_killed = random.Random(seed), 0
    for i in range(n):
        name = names[i % len(names)]
        after_s = rng.uniform(0, 1.1 * room.seconds[name])
        n_killed += kill(room, name, Harm(kill_after_s=after_s))[0]
    return n_killed


def test_runs_that_are_killed_at_random(room: Room) -> None:
    assert kill_many(room, [*FILES, *FOLDERS], 12, seed=0) > 0


@pytest.mark.exhaustive
def test_runs_that_are_killed_at_200_random_moments(room: Room) -> None:
    assert kill_many(room, [*FILES, *FOLDERS], 200, seed=1) > 100


@pytest.mark.parametrize("name", ["encode", "decode", "encode directory"])
def test_runs_that_are_killed_where_it_matters(room: Room, name: str) -> None:
    """At the calls that make, write, sync and name files."""
    calls, n_left = room.calls[name], 0
    at = [i for i, c in enumerate(calls) if c in ("write", "fsync", "link", "unlink", "rename")]
    for i in at[:: 1 if len(at) < 12 else len(at) // 12]:
        killed, left = kill(room, name, Harm(i, KILL))
        assert killed
        n_left += left
    assert n_left, "some had begun to write"


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CASES)
def test_runs_that_are_killed_at_each_call(room: Room, name: str) -> None:
    step = 4 if CASES[name].is_folder else 1
    assert all(kill(room, name, Harm(i, KILL))[0] for i in range(0, len(room.calls[name]), step))
