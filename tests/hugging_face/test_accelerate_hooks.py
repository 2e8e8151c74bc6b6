"""`AccelerateHooks`: `save_state` and `load_state` of accelerate, by way of ``.wcodec`` files."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.distributed.checkpoint.api import CheckpointException

from wcodec.transformers import AccelerateHooks


class Tied(torch.nn.Module):
    """A model with two weights that are one, buffers, and state that is no tensor."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = torch.nn.Embedding(40, 24)
        self.norm = torch.nn.BatchNorm1d(24)
        self.head = torch.nn.Linear(24, 40, bias=False, dtype=torch.float32)
        self.head.weight = self.embed.weight
        self.wide = torch.nn.Linear(24, 300, dtype=torch.bfloat16)
        self.seed = seed

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(ids))
        return self.head(x).sum() + self.wide(x.bfloat16()).float().sum()

    def get_extra_state(self) -> dict[str, int]:
        return {"seed": self.seed}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seed = state["seed"]


def prepared(hooks: AccelerateHooks, seed: int) -> tuple[Accelerator, list[Any], Any]:
    """An accelerator with two models."""
    accelerator = Accelerator(cpu=True)
    models = [Tied(seed), torch.nn.Linear(5, 7)]
    optimizer = torch.optim.AdamW(models[0].parameters(), lr=0.1)
    models[0], models[1], optimizer = accelerator.prepare(*models, optimizer)
    accelerator.register_save_state_pre_hook(hooks.save)
    accelerator.register_load_state_pre_hook(hooks.load)
    return accelerator, models, optimizer


def step(accelerator: Accelerator, models: list[Any], optimizer: Any) -> None:
    ids = torch.arange(8) + 8 * accelerator.process_index
    accelerator.backward(models[0](ids))
    optimizer.step()
    optimizer.zero_grad()


def bits(accelerator: Accelerator, models: list[Any]) -> list[dict[str, torch.Tensor]]:
    """Weights and buffers as they are now."""
    states = [accelerator.unwrap_model(m).state_dict() for m in models]
    return [{k: v.clone() for k, v in s.items() if isinstance(v, torch.Tensor)} for s in states]


def same(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> None:
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for k, v in one.items():
            assert v.dtype is other[k].dtype
            assert torch.equal(v, other[k]), k


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """accelerate keeps its state for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_save_and_load(tmp_path: Path) -> None:
    """In place; weights that are tied stay so, and training goes on as it would have."""
    hooks = AccelerateHooks()
    accelerator, models, optimizer = prepared(hooks, 1)
    step(accelerator, models, optimizer)
    due = bits(accelerator, models)
    accelerator.save_state(str(tmp_path / "1"))
    assert not list((tmp_path / "1").glob("*.safetensors"))
    assert (tmp_path / "1" / "optimizer.bin").is_file()
    step(accelerator, models, optimizer)
    later = bits(accelerator, models)
    assert not torch.equal(later[0]["embed.weight"], due[0]["embed.weight"])
    weight, models[0].seed = models[0].embed.weight, 7
    accelerator.load_state(str(tmp_path / "1"))
    same(bits(accelerator, models), due)
    assert models[0].seed == 1
    assert models[0].embed.weight is weight
    assert models[0].head.weight is weight
    step(accelerator, models, optimizer)
    same(bits(accelerator, models), later)


def test_differences(tmp_path: Path) -> None:
    hooks = AccelerateHooks()
    accelerator, models, optimizer = prepared(hooks, 1)
    accelerator.save_state(str(tmp_path / "1"))
    hooks.base = tmp_path / "1"
    for p in models[0].embed.parameters():
        p.requires_grad_(False)
    step(accelerator, models, optimizer)
    due = bits(accelerator, models)
    accelerator.save_state(str(tmp_path / "2"))
    sizes = [(tmp_path / d / "wcodec" / "__0_0.wcodec").stat().st_size for d in "12"]
    assert sizes[1] < sizes[0]
    step(accelerator, models, optimizer)
    accelerator.load_state(str(tmp_path / "2"))
    same(bits(accelerator, models), due)
    (tmp_path / "1").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointException, match="bad_base"):
        accelerator.load_state(str(tmp_path / "2"))


def test_refused(tmp_path: Path) -> None:
    hooks = AccelerateHooks()
    accelerator, _, _ = prepared(hooks, 1)
    accelerator.save_state(str(tmp_path / "1"))
    with pytest.raises(CheckpointException, match="output_exists"):
        accelerator.save_state(str(tmp_path / "1"))
    (tmp_path / "2").mkdir()
    with pytest.raises(FileNotFoundError, match=r"remove the hook.*2/wcodec"):
        accelerator.load_state(str(tmp_path / "2"))
    hooks.base = tmp_path / "2"
    with pytest.raises(CheckpointException, match="bad_option: the base"):
        accelerator.save_state(str(tmp_path / "3"))


def test_models_that_accelerate_has_written(tmp_path: Path) -> None:
    """As it does those of FSDP before it calls the hooks, which then get no weights."""
    with pytest.warns(UserWarning, match="WCodecStorageWriter"):
        AccelerateHooks().save([torch.nn.Linear(2, 2)], [], tmp_path)
    AccelerateHooks().load([], tmp_path)
    assert list(tmp_path.iterdir()) == []


def _rank(rank: int, path: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (path / "port").read_text(),
    }  # fmt: skip
    hooks = AccelerateHooks()
    accelerator, models, optimizer = prepared(hooks, 1)
    assert accelerator.num_processes == 2
    step(accelerator, models, optimizer)
    accelerator.save_state(str(path / "1"))
    due = bits(accelerator, models)
    step(accelerator, models, optimizer)
    hooks.base = path / "1"
    accelerator.save_state(str(path / "2"))
    accelerator.load_state(str(path / "1"))
    if rank == 0:
        same(bits(accelerator, models), due)
        torch.save(due, path / "due.pt")
    dist.barrier()
    # as of accelerate itself: all have the buffers of rank 0
    found = bits(accelerator, models)
    same(found, torch.load(path / "due.pt"))
    assert (rank == 0) is torch.equal(found[0]["norm.running_mean"], due[0]["norm.running_mean"])
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.exhaustive
def test_two_processes(tmp_path: Path) -> None:
    """And one process loads what two have saved."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(s.getsockname()[1]))
    mp.spawn(_rank, (tmp_path,), nprocs=2)
    accelerator, models, _ = prepared(AccelerateHooks(), 3)
    accelerator.load_state(str(tmp_path / "1"))
    same(bits(accelerator, models), torch.load(tmp_path / "due.pt"))
