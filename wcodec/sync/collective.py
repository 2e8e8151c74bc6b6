"""Weights by broadcasts of ``torch.distributed``: gloo, NCCL, or another backend of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
import torch.distributed as dist

from wcodec.backends import Backend
from wcodec.errors import DecodeError
from wcodec.planner.options import EncodeOptions
from wcodec.sync.ends import Sender
from wcodec.sync.messages import (
    DELTA,
    FULL,
    HEADER_NBYTES,
    HELD,
    Held,
    Message,
    held_message,
    most_nbytes,
    read_header,
)
from wcodec.sync.versions import Publisher, SubscribedReceiver, Subscriber

PIECE_NBYTES: Final = 1 << 26  #: of a file, in one broadcast (S10)


class _Group:
    """A process group, and memory for what is broadcast.

    Parameters
    ----------
    source
        Rank of the sender within the group.
    """

    def __init__(self, group: dist.ProcessGroup | None, source: int) -> None:
        self.group, self.source = group, source
        backend = dist.get_backend(group)
        self.device = torch.device("cuda" if backend == "nccl" else "cpu")
        self.rank = dist.get_rank(group)

    def gather(self, held: Held | None) -> list[Held | None]:
        """What all ranks have, by rank."""
        mine = torch.frombuffer(bytearray(held_message(held)), dtype=torch.uint8).to(self.device)
        all_ = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(all_, mine, self.group)
        return [read_header(t.cpu().numpy().tobytes(), (HELD,)).held for t in all_]

    def broadcast(self, data: Any) -> None:
        """Send bytes."""
        view = memoryview(data)
        for start in range(0, len(view), PIECE_NBYTES):
            piece = bytearray(view[start : start + PIECE_NBYTES])
            room = torch.frombuffer(piece, dtype=torch.uint8).to(self.device)
            dist.broadcast(room, group=self.group, group_src=self.source)

    def receive(self, nbytes: int, is_kept: bool = True) -> bytearray:
        """Receive so many bytes. Memory is taken as they come, whatever a header says."""
        data = bytearray()
        for start in range(0, nbytes, PIECE_NBYTES):
            n = min(nbytes - start, PIECE_NBYTES)
            room = torch.empty(n, dtype=torch.uint8, device=self.device)
            dist.broadcast(room, group=self.group, group_src=self.source)
            if is_kept:
                data += memoryview(room.cpu().numpy())
        return data


class BroadcastSender(Sender):
    """Sends weights to all other ranks of a process group, which call `BroadcastReceiver.update` at
    the same time.

    Parameters
    ----------
    group
        The process group; ``None`` for all ranks.
    options, backend
        How weights are encoded, and by what.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        options: EncodeOptions | None = None,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        self._group = _Group(group, dist.get_rank(group))
        self._publisher = Publisher(options, backend)

    def send(self, state_dict: Mapping[str, Any], version: int | None = None) -> int:
        """As `Sender.send`; a collective call. Ranks that have not the same get all tensors.

        Raises
        ------
        EncodeError
            Before any rank is spoken to.
        """
        self._check_process()
        number = self._publisher.publish(state_dict, version)
        held = self._group.gather(self._publisher.newest)
        others = {h for rank, h in enumerate(held) if rank != self._group.rank}
        (common,) = others if len(others) == 1 else (None,)
        message = self._publisher.message(common) or self._publisher.message(None)
        while message is not None:  # all that they missed
            self._send(message)
            message = self._publisher.message(message.held)
        return number

    def _send(self, message: Message) -> None:
        self._group.broadcast(message.header())
        self._group.broadcast(message.data)

    def close(self) -> None:
        """As `_End.close`: the group is the caller's."""


class BroadcastReceiver(SubscribedReceiver):
    """Has weights, and turns them into those of a `BroadcastSender`.

    Parameters
    ----------
    tensors, checked, backend, max_nbytes, max_memory
        As of `Subscriber`. Of `max_nbytes`, a message may have 64 MiB more.
    group
        The process group; ``None`` for all ranks.
    source
        Rank of the sender within the group.
    """

    def __init__(
        self,
        tensors: Mapping[str, Any] | None = None,
        group: dist.ProcessGroup | None = None,
        *,
        source: int = 0,
        checked: str = "sampled",
        backend: Backend | None = None,
        max_nbytes: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        super().__init__(
            Subscriber(
                tensors, checked=checked, backend=backend, max_nbytes=max_nbytes,
                max_memory=max_memory,
            )
        )  # fmt: skip
        self._group, self._max_nbytes = _Group(group, source), most_nbytes(max_nbytes)

    def update(self, timeout: float | None = 0.0) -> int | None:
        """As `Receiver.update`; a collective call, which waits for `BroadcastSender.send`. How long
        it waits, the process group says.

        Raises
        ------
        DecodeError
            All messages of the call were received: the next one can be made.
        """
        self._check_process()
        newest = self._group.gather(self._subscriber.held)[self._group.source]
        error: Exception | None = None
        while True:
            raw = bytes(self._group.receive(HEADER_NBYTES))
            header = read_header(raw, (FULL, DELTA))
            assert header.held is not None
            try:
                read_header(raw, (FULL, DELTA), self._max_nbytes)
            except DecodeError as e:  # the other ranks go on, and this one with them
                error = error or e
            data = self._group.receive(header.nbytes, is_kept=error is None)
            if error is None:
                try:
                    self._subscriber.apply(Message(header.held, header.parent, data))
                except Exception as e:
                    error = e
            if error is not None:
                self._subscriber.held = None
            if header.held == newest:
                break
        if error is not None:
            raise error
        if self._subscriber.held != newest:
            raise DecodeError("bad_value", "the sender has sent another version than it said")
        return self.version

    def close(self) -> None:
        """As `_End.close`: the group is the caller's."""
