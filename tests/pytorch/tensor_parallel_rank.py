"""The two processes of tests/pytorch/test_torch_sharding.py:
``python tensor_parallel_rank.py FOLDER``. They are forked once all is imported.

`FOLDER` holds a tiny model in plain safetensors and as ``.wcodec`` shards, and the linear layers of
a block. Each rank loads its parts of both from ``.wcodec`` files, checks them against transformers'
own sharding, runs them, and writes what came out as JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

os.environ["GLOO_SOCKET_IFNAME"] = "lo"

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

from wcodec.torch import load_shard

WORLD = 2
BLOCK_PLAN = {"up": "colwise", "down": "rowwise"}


def block(folder: Path, rank: int) -> dict[str, Any]:
    """Two linear layers, the first split by columns, the second by rows,
    and a sum over the ranks.
    """
    shard = load_shard(folder / "block.wcodec", rank, WORLD, BLOCK_PLAN)
    x = torch.load(folder / "x.pt")
    hidden = torch.nn.functional.linear(x, shard["up.weight"], shard["up.bias"])
    out = torch.nn.functional.linear(hidden, shard["down.weight"])
    dist.all_reduce(out)
    torch.save({"hidden": hidden, "out": out + shard["down.bias"]}, folder / f"block-{rank}.pt")
    return {"part": shard.report.part, "nbytes": sum(t.nbytes for t in shard.values())}


def model(folder: Path, rank: int, name: str) -> dict[str, Any]:
    """A model of transformers, sharded by transformers, whose local tensors must be those that
    `load_shard` gives; run with these.
    """
    whole = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
    plan = whole._expand_parallel_plan(dict(whole.tp_plan))
    shard = load_shard(folder / f"{name}-wcodec", rank, WORLD, whole.tp_plan)
    theirs = apply_tensor_parallelism(
        whole, init_device_mesh("cpu", (WORLD,), mesh_dim_names=("tp",)), plan
    )
    n_split = 0
    for key, parameter in theirs.named_parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if not torch.equal(local, shard[key]) or local.dtype != shard[key].dtype:
            raise AssertionError(
                f"{key}: {tuple(local.shape)} of transformers, "
                f"{tuple(shard[key].shape)} of load_shard"
            )
        n_split += shard[key].shape != parameter.shape
        with torch.no_grad():
            local.copy_(shard[key])
    if theirs.state_dict().keys() != shard.keys():
        raise AssertionError("other names")
    with torch.no_grad():
        logits = theirs(torch.arange(12).reshape(1, 12)).logits
    torch.save(logits, folder / f"{name}-{rank}.pt")
    return {"part": shard.report.part, "n_split": n_split, "unused": shard.report.unused}


def work(folder: Path, rank: int) -> None:
    """Do all, in the order in which the other rank does."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    found = {
        "block": block(folder, rank),
        **{name: model(folder, rank, name) for name in ("llama", "mixtral")},
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    other = multiprocessing.get_context("fork").Process(
        target=work, args=(Path(sys.argv[1]), 1), daemon=True
    )
    other.start()
    work(Path(sys.argv[1]), 0)
    other.join()
    sys.exit(other.exitcode)
