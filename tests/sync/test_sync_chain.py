"""Weights by way of a chain in a directory."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from links import LONG, arrays_of, torch_of
from runs import copies, fixed_steps, same, steps

from wcodec.errors import DecodeError, EncodeError
from wcodec.sync import ChainReceiver, ChainSender, open_receiver, open_sender

POLL = 0.01


def ends(path: Path, tensors: Any = None) -> tuple[ChainSender, ChainReceiver]:
    sender, receiver = open_sender(path), open_receiver(str(path), tensors, poll=POLL)
    assert isinstance(sender, ChainSender)
    assert isinstance(receiver, ChainReceiver)
    return sender, receiver


def test_every_version_comes_bit_for_bit(tmp_path: Path) -> None:
    sender, receiver = ends(tmp_path / "run")
    with sender, receiver:
        assert receiver.version is None
        assert receiver.tensors == {}
        for i, state in enumerate(steps(12), 1):
            assert sender.send(state) == i
            assert receiver.update() == receiver.version == i
            assert same(dict(receiver.tensors), state)
            assert receiver.update() == i


@pytest.mark.parametrize("is_torch", [False, True])
def test_tensors_are_changed_in_place(tmp_path: Path, is_torch: bool) -> None:
    states = fixed_steps(5)
    live: Any = (torch_of if is_torch else copies)(states[3])
    memory = {n: a.ctypes.data for n, a in arrays_of(live).items()}
    sender, receiver = ends(tmp_path, live)
    for i, state in enumerate(states, 1):
        sender.send(state)
        if i != 3:  # it misses one
            assert receiver.wait_for(i, LONG) == i
            assert same(arrays_of(live), state)
    assert receiver.tensors is live
    assert memory == {n: a.ctypes.data for n, a in arrays_of(live).items()}


def test_a_receiver_may_begin_first(tmp_path: Path) -> None:
    state = fixed_steps(1)[0]
    sender, receiver = ends(tmp_path / "run")
    assert receiver.update() is None
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(receiver.wait_for(1, LONG)))
    thread.start()
    sender.send(state)
    thread.join(LONG)
    assert found == [1]
    assert same(dict(receiver.tensors), state)


def test_waiting_ends(tmp_path: Path) -> None:
    sender, receiver = ends(tmp_path)
    with pytest.raises(TimeoutError, match=r"version 1 has not come .* are version None"):
        receiver.wait_for(1, 0.05)
    with pytest.raises(TimeoutError):
        receiver.wait_for(1, 0)
    sender.send(fixed_steps(1)[0])
    assert receiver.wait_for(1, LONG) == 1
    assert receiver.wait_for(1, 0) == 1
    assert receiver.update(0.05) == 1
    with pytest.raises(TimeoutError, match=r"version 2 has not come .* are version 1"):
        receiver.wait_for(2, 0.05)


def test_versions_that_are_pruned_and_packed_in_between(tmp_path: Path) -> None:
    states = fixed_steps(9)
    sender, own = ends(tmp_path)
    live = copies(states[0])
    other = open_receiver(tmp_path, live, poll=POLL)
    for i, state in enumerate(states, 1):
        sender.send(state)
        if i == 4:
            sender.chain.pack()
        if i == 6:
            sender.chain.pack(5)
            sender.chain.prune(keep_last=1)
        if i == 8:
            sender.chain.pack()
            sender.chain.prune(keep_last=1)
        if i != 5:
            assert own.wait_for(i, LONG) == i
            assert same(dict(own.tensors), state)
        if i in (1, 3, 7, 9):
            assert other.wait_for(i, LONG) == i
            assert same(live, state)


def test_all_is_behind_one_version(tmp_path: Path) -> None:
    """Only the newest version is left, as a whole: who is behind, or has nothing, gets it."""
    states = fixed_steps(4)
    sender, behind = ends(tmp_path)
    sender.send(states[0])
    behind.update()
    for state in states[1:]:
        sender.send(state)
    sender.chain.pack()
    sender.chain.prune(keep_last=1)
    for receiver in (behind, ends(tmp_path)[1]):
        assert receiver.update() == 4
        assert same(dict(receiver.tensors), states[3])


def test_the_caller_gives_numbers(tmp_path: Path) -> None:
    states = fixed_steps(3)
    sender, receiver = ends(tmp_path)
    for i, state in enumerate(states, 1):
        for wrong in (i - 1, i + 1, 0, -1):
            with pytest.raises(EncodeError, match="bad_option"):
                sender.send(state, wrong)
        assert sender.send(state, i) == i
        assert receiver.update() == i
    with open_sender(tmp_path) as again:  # of a new process
        with pytest.raises(EncodeError, match=r"bad_option.*does not follow 3"):
            again.send(states[0], 1)
        assert again.send(states[0], 4) == 4
    assert receiver.update() == 4
    assert same(dict(receiver.tensors), states[0])


def test_what_tensors_are_may_be_known(tmp_path: Path) -> None:
    states = fixed_steps(3)
    sender, _ = ends(tmp_path)
    for state in states[:2]:
        sender.send(state)
    full = tmp_path / sender.chain.find(1).file
    live = copies(states[1])
    receiver = open_receiver(tmp_path, live, version=2, poll=POLL)
    assert receiver.update() == 2
    sender.send(states[2])
    full.rename(tmp_path / "away")  # it is not read
    assert receiver.update() == 3
    assert same(live, states[2])
    with pytest.raises(ValueError, match="none are given"):
        open_receiver(tmp_path, version=2)


def test_tensors_that_somebody_changed(tmp_path: Path) -> None:
    states = fixed_steps(3)
    live = copies(states[0])
    sender, receiver = ends(tmp_path, live)
    sender.send(states[0])
    receiver.update()
    live["a"].view(np.int16)[...] ^= 1
    sender.send(states[1])
    with pytest.raises(DecodeError, match=r"bad_base.*'a'"):
        receiver.update()
    assert receiver.version is None
    assert receiver.update() == 2
    assert same(live, states[1])
    sender.send(states[2])
    assert receiver.update() == 3
    assert same(live, states[2])


def test_a_file_that_is_damaged(tmp_path: Path) -> None:
    states = fixed_steps(3)
    sender, receiver = ends(tmp_path)
    sender.send(states[0])
    receiver.update()
    sender.send(states[1])
    file = tmp_path / sender.chain.find(2).file
    data = bytearray(file.read_bytes())
    shutil.copy(file, tmp_path / "good")
    data[len(data) // 3] ^= 255
    file.write_bytes(data)
    with pytest.raises(DecodeError):
        receiver.update()
    assert receiver.version is None
    shutil.copy(tmp_path / "good", file)
    assert receiver.update() == 2
    assert same(dict(receiver.tensors), states[1])


def test_what_cannot_be_stored_is_no_version(tmp_path: Path) -> None:
    states = fixed_steps(2)
    sender, receiver = ends(tmp_path)
    for i, state in enumerate(states, 1):
        with pytest.raises(EncodeError, match="unsupported_dtype"):
            sender.send({"a": np.array(["text"])})
        assert sender.send(state) == i
        assert receiver.update() == i
        assert same(dict(receiver.tensors), state)
