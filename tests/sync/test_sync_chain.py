"""Weights by way of a directory that one process writes and others follow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runs import State, changed, copies, gaussian, same, steps

import wcodec
from wcodec.errors import DecodeError, EncodeError
from wcodec.sync import ChainReceiver, ChainSender, open_receiver, open_sender

LONG = 120.0  #: seconds that nothing takes


def run(n: int) -> list[State]:
    rng = np.random.default_rng(0)
    out: list[State] = [{"a": gaussian(rng, (200, 300)), "b": gaussian(rng, (70,))}]
    for _ in range(n - 1):
        out.append({name: changed(rng, array, 0.01) for name, array in out[-1].items()})
    return out


def test_every_version_comes_bit_for_bit(tmp_path: Path) -> None:
    url = tmp_path / "run"
    with open_receiver(url, poll=0.01) as receiver, open_sender(url) as sender:
        assert isinstance(receiver, ChainReceiver)
        assert isinstance(sender, ChainSender)
        assert receiver.update() is None
        assert dict(receiver.tensors) == {}
        for i, state in enumerate(steps(9), 1):
            assert sender.send(state) == i
            if i % 3 != 2:  # some are missed
                assert receiver.wait_for(i, LONG) == i
                assert same(dict(receiver.tensors), state)


def test_tensors_are_changed_in_place(tmp_path: Path) -> None:
    states, url = run(4), str(tmp_path / "run")
    live = copies(states[3])
    arrays = dict(live)
    with open_sender(url) as sender, open_receiver(url, live, poll=0.01) as receiver:
        for i, state in enumerate(states, 1):
            sender.send(state)
            assert receiver.wait_for(i, LONG) == i
            assert same(live, state)
    assert all(live[name] is array for name, array in arrays.items())
    with open_sender(url) as sender:
        sender.send(states[0])
    with open_receiver(url, live, version=4, checked="full") as receiver:
        assert receiver.version == 4
        assert receiver.update() == 5
        assert same(live, states[0])
    with pytest.raises(ValueError, match="none are given"):
        open_receiver(url, version=4)


def test_versions_that_are_pruned_and_packed_in_between(tmp_path: Path) -> None:
    states, url = run(6), tmp_path / "run"
    live, chain = copies(states[0]), wcodec.Chain(url)
    with (
        open_sender(url) as sender,
        open_receiver(url, live) as receiver,
        open_receiver(url) as own,
    ):
        sender.send(states[0])
        assert receiver.update() == own.update() == 1
        for state in states[1:4]:
            sender.send(state)
        chain.pack()
        chain.prune(keep_last=1)
    with open_sender(url) as sender:
        for state in states[4:]:
            sender.send(state)
        for end in (receiver, own):
            assert end.update() == 6
            assert same(dict(end.tensors), states[5])


def test_what_somebody_has_changed_is_found_and_mended(tmp_path: Path) -> None:
    states, url = run(2), tmp_path / "run"
    live = copies(states[0])
    with open_sender(url) as sender, open_receiver(url, live) as receiver:
        sender.send(states[0])
        receiver.update()
        live["a"].view(np.uint16)[...] ^= 1
        sender.send(states[1])
        with pytest.raises(DecodeError, match="bad_base"):
            receiver.update()
        assert receiver.version is None
        assert receiver.update() == 2
        assert same(live, states[1])


def test_waiting_ends(tmp_path: Path) -> None:
    with open_receiver(tmp_path / "run", poll=0.01) as receiver:
        assert receiver.update(0.05) is None
        with pytest.raises(TimeoutError, match="version 3 has not come"):
            receiver.wait_for(3, 0.05)


def test_numbers_are_the_chains(tmp_path: Path) -> None:
    states = run(2)
    with open_sender(tmp_path / "run") as sender:
        with pytest.raises(EncodeError, match="bad_option"):
            sender.send(states[0], 2)
        assert sender.send(states[0], 1) == 1
        with pytest.raises(EncodeError, match="bad_option"):
            sender.send(states[1], 1)
        assert sender.send(states[1], 2) == 2
