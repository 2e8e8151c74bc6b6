"""Tensor parallelism of transformers from the wcodec form:
two processes, each with its part of the weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import tiny_models
import torch
from paths import TESTS

#: Both processes, forked once all is imported.
RANKS = """
import json, multiprocessing, os, sys, torch, tiny_models
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
from wcodec.transformers import WCodecConfig, WCodecModel

def load(load, form, **how):
    parts = DistributedConfig(tp_size=2, tp_plan="auto")
    return load.from_pretrained(f"{sys.argv[1]}/{form}", distributed_config=parts, **how)

def refusal(*args, **how):
    try:
        load(*args, **how)
    except ValueError as e:
        return str(e)

def work(rank):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    rendezvous = f"file://{sys.argv[1]}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    plain, model = load(AutoModelForCausalLM, "plain"), load(WCodecModel, "wcodec")
    weights = [(p, dict(plain.named_parameters())[name]) for name, p in model.named_parameters()]
    parts = [(p, q) for p, q in weights if hasattr(p, "to_local")]
    facts = {
        "sharded": len(parts),
        "whole": list(model.model.layers[0].mlp.up_proj.weight.shape),
        "part": list(model.model.layers[0].mlp.up_proj.weight.to_local().shape),
        "weights": all(torch.equal(p.to_local(), q.to_local()) for p, q in parts),
        "logits": torch.equal(*(tiny_models.logits(m, "llama") for m in (model, plain))),
        "hub": refusal(AutoModelForCausalLM, "hub"),
        "resident": refusal(WCodecModel, "wcodec", mode="resident"),
    }
    json.dump(facts, open(f"{sys.argv[1]}/{rank}.json", "w"))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()

other = multiprocessing.get_context("fork").Process(target=work, args=(1,), daemon=True)
other.start()
work(0)
other.join()
sys.exit(other.exitcode)
"""


def test_two_processes(tmp_path: Path) -> None:
    """Each process decodes its part; logits are those of the plain model in two parts.
    The hub form is refused.
    """
    tiny_models.directories(tiny_models.make("llama", torch.bfloat16), tmp_path)
    (tmp_path / "ranks.py").write_text(RANKS)
    paths = os.pathsep.join([str(TESTS), *sys.path])
    command = [sys.executable, str(tmp_path / "ranks.py"), str(tmp_path)]
    env = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": paths, **env},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    for rank in (0, 1):
        facts = json.loads((tmp_path / f"{rank}.json").read_text())
        assert facts["sharded"] >= 2 * 7
        assert (facts["whole"], facts["part"]) == ([160, 64], [80, 64])
        assert facts["weights"]
        assert facts["logits"]
        assert "tp_size=2" in facts["hub"]
        assert (
            "WCodecModel.from_pretrained, or the tensors of a part by wcodec.torch.load_shard"
            in facts["hub"]
        )
        assert "nor with a model in parts" in facts["resident"]
