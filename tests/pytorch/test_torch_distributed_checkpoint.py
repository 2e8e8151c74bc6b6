"""`WCodecStorageWriter` and `WCodecStorageReader`: as DCP's own storage."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

import wcodec.torch
from wcodec.torch import WCodecStorageReader, WCodecStorageWriter

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch's own, of one process


def state(step: int = 0) -> dict[str, Any]:
    """A nested state dict, with the state of an optimizer."""
    torch.manual_seed(1)
    model = torch.nn.Linear(64, 48)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(step + 1):
        model(torch.ones(64)).sum().backward()
        optimizer.step()
    return {
        "model": {k: v.detach().clone() for k, v in model.state_dict().items()},
        "half": {"w": torch.randn(300, 40).bfloat16(), "n": torch.arange(7)},
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "scalar": torch.tensor(1.5 + step), "empty": torch.empty(0, 3), "step": step,
        "text": {"a": f"step {step}"},
    }  # fmt: skip


def blank(of: Any) -> Any:
    """The same, of zeros."""
    if isinstance(of, dict):
        return {k: blank(v) for k, v in of.items()}
    if isinstance(of, list | tuple):
        return type(of)(blank(v) for v in of)
    return torch.zeros_like(of) if isinstance(of, torch.Tensor) else of


def same(a: Any, b: Any) -> None:
    """Refuse what is not equal to the bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for k in a:
            same(a[k], b[k])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a, b)
    else:
        assert a == b


def save(step: int, path: Path, base: Path | None = None) -> None:
    dcp.save(state(step), storage_writer=WCodecStorageWriter(path, base=base), no_dist=True)


def load(path: Path) -> dict[str, Any]:
    found = blank(state())
    dcp.load(found, storage_reader=WCodecStorageReader(path), no_dist=True)
    return found


def test_as_plain(tmp_path: Path) -> None:
    save(1, tmp_path / "w")
    dcp.save(state(1), checkpoint_id=tmp_path / "plain", no_dist=True)
    plain = blank(state())
    dcp.load(plain, checkpoint_id=tmp_path / "plain", no_dist=True)
    found = load(tmp_path / "w")
    same(found, plain)
    same(found, state(1))
    with pytest.raises(CheckpointException, match="output_exists"):
        save(2, tmp_path / "w")


def test_chain_of_differences(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(10)]
    for i in range(3):
        save(i, paths[i], paths[i - 1] if i else None)
    for i in range(3):
        same(load(paths[i]), state(i))
    sizes = [(p / "__0_0.wcodec").stat().st_size for p in paths[:2]]
    assert sizes[1] < sizes[0]
    moved = tmp_path / "elsewhere"
    paths[0].rename(moved)
    with pytest.raises(CheckpointException, match="bad_base"):
        load(paths[2])
    save(5, paths[0])  # another one in its place
    with pytest.raises(CheckpointException, match="bad_base"):
        load(paths[2])


def test_chains_end(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(10)]
    for i in range(9):
        save(i, paths[i], paths[i - 1] if i else None)
    same(load(paths[8]), state(8))
    with pytest.raises(CheckpointException, match="8 bases already"):
        save(9, paths[9], paths[8])


def test_damage_and_no_metadata(tmp_path: Path) -> None:
    save(0, tmp_path)
    file = tmp_path / "__0_0.wcodec"
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointException, match=r"bad_\w+: in "):
        load(tmp_path)
    (tmp_path / ".metadata").unlink()
    with pytest.raises(CheckpointException):
        load(tmp_path)


def _ranks(rank: int, world: int, path: Path, is_save: bool) -> None:
    name = f"file://{path}/init{world}"
    dist.init_process_group("gloo", init_method=name, rank=rank, world_size=world)
    try:
        mesh = init_device_mesh("cpu", (world,))
        full = {"a": torch.arange(800.0).reshape(40, 20), "b": torch.arange(110).reshape(10, 11)}
        dims = {"a": 0, "b": 1}
        sharded: dict[str, DTensor] = {
            k: distribute_tensor(t, mesh, [Shard(dims[k])]) for k, t in full.items()
        }
        if is_save:
            dcp.save(sharded, storage_writer=WCodecStorageWriter(path / "w"))
            dcp.save(sharded, checkpoint_id=path / "plain")
            changed = {k: t + 1 for k, t in sharded.items()}
            writer = WCodecStorageWriter(path / "d", base=path / "w")
            dcp.async_save(changed, storage_writer=writer).result()
            # A thread of gloo may still be about to let go of a tensor, for which it takes the GIL:
            # if Python ends meanwhile, PyTorch aborts the process (pytorch/pytorch#190489).
            dist.barrier()
            return
        for where, more in (("w", 0), ("plain", 0), ("d", 1)):
            found = {k: torch.zeros_like(t) for k, t in sharded.items()}
            reader = None if where == "plain" else WCodecStorageReader(path / where)
            dcp.load(found, checkpoint_id=path / where, storage_reader=reader)
            for k, t in found.items():
                same(t.to_local(), (sharded[k] + more).to_local())
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.exhaustive
def test_two_processes_save_and_four_load(tmp_path: Path) -> None:
    for world, is_save in ((2, True), (4, False)):
        mp.spawn(_ranks, (world, tmp_path, is_save), nprocs=world)


def test_async(tmp_path: Path) -> None:
    name = f"file://{tmp_path}/init"
    dist.init_process_group("gloo", init_method=name, rank=0, world_size=1)
    try:
        given = state(1)
        future = dcp.async_save(given, storage_writer=WCodecStorageWriter(tmp_path / "w"))
        future.result()
        same(load(tmp_path / "w"), given)
    finally:
        dist.destroy_process_group()


def test_imported_when_used() -> None:
    assert wcodec.torch.WCodecStorageWriter is WCodecStorageWriter
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = wcodec.torch.other
