"""A rank of a process group: the first one sends, the others receive. For test_sync_distributed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from runs import State, changed, copies, gaussian, same

from wcodec.errors import DecodeError
from wcodec.sync.collective import BroadcastReceiver, BroadcastSender


def run(n: int) -> list[State]:
    rng = np.random.default_rng(0)
    out: list[State] = [{"a": gaussian(rng, (200, 300)), "b": gaussian(rng, (70,))}]
    for _ in range(n - 1):
        out.append({name: changed(rng, array, 0.01) for name, array in out[-1].items()})
    return out


def main(rank: int, size: int, room: Path) -> None:
    dist.init_process_group("gloo", f"file://{room / 'store'}", rank=rank, world_size=size)
    states = run(7)
    if rank == 0:
        with BroadcastSender() as sender:
            for i, state in enumerate(states, 1):
                assert sender.send(state) == i
    else:
        live = copies(states[0])
        receiver = BroadcastReceiver(live)
        for i, state in enumerate(states, 1):
            if i == 4 and rank == 1:  # a new one, which has nothing
                live = copies(states[0])
                receiver = BroadcastReceiver(live)
            if i == 6 and rank == 2:
                live["a"].view(np.uint16)[...] ^= 1
                with pytest.raises(DecodeError, match="bad_base"):
                    receiver.update()
                assert receiver.version is None
                continue
            assert receiver.update() == i
            assert same(live, state)
        receiver.close()
    dist.barrier()  # or a rank that ends takes the store away from the others
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
