"""Weights by broadcasts of ``torch.distributed``, to processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from links import arrays_of, torch_of
from runs import copies, fixed_steps, same, steps

from wcodec.errors import DecodeError, EncodeError
from wcodec.sync import collective, messages
from wcodec.sync.collective import BroadcastReceiver, BroadcastSender
from wcodec.sync.messages import Message

WORLD = 3


def sender_of(parents: list[int]) -> BroadcastSender:
    """One that notes the parents of what it sends."""
    sender = BroadcastSender()
    send = sender._send

    def noted(message: Message) -> None:
        parents.append(message.parent)
        send(message)

    sender._send = noted  # type: ignore[method-assign]
    return sender


# ---- what the ranks do ---------------------------------------------------------------------------
def _all_versions(rank: int) -> None:
    """Rank 1 has arrays of its own, rank 2 has tensors; they are sent by rank 0."""
    parents = list[int]()
    states, all_states = fixed_steps(5), steps(5)
    live = torch_of(states[4])
    if rank == 0:
        with sender_of(parents) as sender:
            for i, state in enumerate(states, 1):
                assert sender.send(state) == i
                with pytest.raises(EncodeError, match="bad_option"):  # nobody is spoken to
                    sender.send(state, i)
            assert parents == [0, 1, 2, 3, 4]
        for i, state in enumerate(all_states):
            sender.send(state, 100 + i)
        return
    memory = {n: t.data_ptr() for n, t in live.items()}
    receiver = BroadcastReceiver(live if rank == 2 else None)
    for i, state in enumerate(states, 1):
        assert receiver.update() == receiver.version == i
        if rank == 1:
            assert same(dict(receiver.tensors), state)
        else:
            assert receiver.tensors is live
            assert same(arrays_of(live), state)
    assert memory == {n: t.data_ptr() for n, t in live.items()}
    receiver = BroadcastReceiver()
    for i, state in enumerate(all_states):
        assert receiver.wait_for(100 + i) == 100 + i
        assert same(dict(receiver.tensors), state)


def _ends_begin_anew(rank: int) -> None:
    states, parents = fixed_steps(5), list[int]()
    if rank == 0:
        sender = sender_of(parents)
        for state in states[:4]:
            sender.send(state)
        sender = sender_of(parents)  # the same numbers, and other states
        sender.send(states[4])
        sender = sender_of(parents)  # receivers have this one already
        sender.send(states[4])
        sender.send(states[0])
        assert parents == [0, 1, 0, 3, 0, 0, 1]
        return
    receiver = BroadcastReceiver()
    for i, state in enumerate(states[:4], 1):
        if i == 3 and rank == 2:  # another in its place, which has nothing
            receiver = BroadcastReceiver(copies(states[4]))
        assert receiver.update() == i
        assert same(dict(receiver.tensors), state)
    for number, state in ((1, states[4]), (1, states[4]), (2, states[0])):
        assert receiver.update() == number
        assert same(dict(receiver.tensors), state)


def _one_is_damaged(rank: int) -> None:
    states, parents = fixed_steps(5), list[int]()
    if rank == 0:
        sender = sender_of(parents)
        for state in states:
            sender.send(state)
        assert parents == [0, 1, 0, 3, 4]
        return
    live = copies(states[0])
    receiver = BroadcastReceiver(live)
    for i, state in enumerate(states, 1):
        if i == 2 and rank == 1:
            live["a"].view(np.int16)[...] ^= 1
            with pytest.raises(DecodeError, match=r"bad_base.*'a'"):
                receiver.update()
            assert receiver.version is None
            continue
        assert receiver.update() == i
        assert same(live, state)


def _all_missed_some(rank: int) -> None:
    """Versions that were published and not sent come one after the other, in one call."""
    states, parents = fixed_steps(4), list[int]()
    if rank == 0:
        sender = sender_of(parents)
        sender.send(states[0])
        for state in states[1:3]:
            sender._publisher.publish(state)
        assert sender.send(states[3]) == 4
        assert parents == [0, 1, 2, 3]
        return
    live = copies(states[0])
    receiver = BroadcastReceiver(live)
    receiver.update()
    if rank == 1:
        live["b"].view(np.int16)[...] ^= 1
        with pytest.raises(DecodeError, match=r"bad_base.*'b'"):
            receiver.update()
        return
    assert receiver.update() == 4
    assert same(live, states[3])


def _one_has_no_room(rank: int) -> None:
    """A message that is too long for one rank is none for that one alone; files come in pieces."""
    states = fixed_steps(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collective, "PIECE_NBYTES", 1000)
        patch.setattr(messages, "SLACK_NBYTES", 0)
        if rank == 0:
            sender = BroadcastSender()
            for state in states:
                sender.send(state)
            return
        nbytes = sum(a.nbytes for a in states[0].values())
        receiver = BroadcastReceiver(max_nbytes=nbytes // 4 if rank == 1 else nbytes)
        for i, state in enumerate(states, 1):
            if rank == 1:
                with pytest.raises(DecodeError, match=r"resource_limit.* may come"):
                    receiver.update()
                assert receiver.version is None
            else:
                assert receiver.update() == i
                assert same(dict(receiver.tensors), state)


STORIES = (_all_versions, _ends_begin_anew, _one_is_damaged, _all_missed_some, _one_has_no_room)


def _process(rank: int, path: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/init", rank=rank, world_size=WORLD)
    try:
        for story in STORIES:
            story(rank)
            dist.barrier()  # nobody leaves while others still talk
    finally:
        dist.destroy_process_group()


def test_ranks(tmp_path: Path) -> None:
    """All stories in the same processes, which take longer to start."""
    mp.spawn(_process, (tmp_path,), nprocs=WORLD)
