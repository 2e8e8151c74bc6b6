"""`wcodec.torch.load_shard`: the parts are those of torch.chunk and of transformers,
and little more than them is read.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import PYTHONPATH
from tensor_parallel_rank import BLOCK_PLAN
from test_torch_files import same, weights
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig
from transformers.distributed import expert_parallel
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES

import wcodec
from wcodec.files.checkpoint import encode_file
from wcodec.torch import load_shard, save_file
from wcodec.torch.loading.sharding import STYLES, intervals_of

HERE = Path(__file__).parent


# ---- styles --------------------------------------------------------------------------------------
def test_the_styles_are_those_of_transformers() -> None:
    assert set(STYLES) == set(ALL_PARALLEL_STYLES) == set(expert_parallel.ALL_PARALLEL_STYLES)


def chunk(t: torch.Tensor, dim: int, rank: int, world: int, groups: int = 1) -> torch.Tensor:
    """What a rank gets of each of some groups of a dimension, by PyTorch alone."""
    parts = []
    for group in t.split(-(-t.shape[dim] // groups), dim):
        chunks = group.chunk(world, dim)
        parts.append(chunks[rank] if rank < len(chunks) else group.narrow(dim, 0, 0))
    return torch.cat(parts, dim)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 8, 10, 13])
@pytest.mark.parametrize("groups", [1, 2])
def test_intervals_are_chunks(n: int, groups: int, world: int) -> None:
    t = torch.arange(n)
    for rank in range(world):
        found = [i for a, b in intervals_of(n, groups, rank, world) for i in range(a, b)]
        assert found == (chunk(t, 0, rank, world, groups).tolist() if n else [])


#: Style, name of the parameter, its shape, the dimension that is split, and into how many groups;
#: none: all ranks get all.
SPLITS: list[tuple[str, str, tuple[int, ...], int | None, int]] = [
    *(
        (style, "weight", (100, 60), 0, 1)
        for style in ("colwise", "colwise_rep", "colwise_gather_output", "embedding_rowwise")
    ),
    ("colwise", "bias", (101,), 0, 1),
    ("colwise", "weight", (4, 50, 60), 1, 1),  # a stack of experts
    *(
        (style, "weight", (60, 101), 1, 1)
        for style in ("rowwise", "rowwise_rep", "rowwise_split_input", "embedding_colwise")
    ),
    ("rowwise", "bias", (100,), None, 1),
    ("rowwise", "down_proj", (4, 60, 50), 2, 1),
    ("packed_colwise", "weight", (120, 30), 0, 2),
    ("packed_colwise", "gate_up_proj", (4, 120, 30), 1, 2),
    ("packed_colwise", "bias", (120,), 0, 1),
    ("packed_rowwise", "weight", (30, 122), 1, 2),
    ("packed_rowwise", "bias", (120,), None, 1),
    ("grouped_gemm", "gate_up_proj", (6, 20, 30), 0, 1),
    *(
        (s, "weight", (60, 50), None, 1)
        for s in (
            "replicate",
            "replicated_with_grad_allreduce",
            "mla_kv_a_proj",
            "sequence_parallel",
        )
    ),
]


@pytest.mark.parametrize(("style", "parameter", "shape", "dim", "groups"), SPLITS)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_style(
    tmp_path: Path,
    style: str,
    parameter: str,
    shape: tuple[int, ...],
    dim: int | None,
    groups: int,
    world: int,
) -> None:
    w, name = weights(*shape), f"model.layers.11.part.{parameter}"
    save_file({name: w, "model.other": torch.ones(7)}, tmp_path / "a")
    for rule in ("model.layers.*.part", f"model.layers.*.part.{parameter}", "model.layers.11.part"):
        for rank in range(world):
            shard = load_shard(
                tmp_path / "a", rank, world, {rule: style, "model.absent": "colwise"}
            )
            assert same(shard[name], w if dim is None else chunk(w, dim, rank, world, groups))
            assert same(shard["model.other"], torch.ones(7))
            assert list(shard) == [name, "model.other"]
            assert shard.report.styles == {name: style, "model.other": ""}
            assert shard.report.unused == ["model.absent"]


def test_more_ranks_than_rows(tmp_path: Path) -> None:
    w = weights(3, 500)
    save_file({"a.weight": w}, tmp_path / "a")
    shapes = [
        tuple(load_shard(tmp_path / "a", rank, 4, {"a": "colwise"})["a.weight"].shape)
        for rank in range(4)
    ]
    assert shapes == [(1, 500), (1, 500), (1, 500), (0, 500)]


def test_a_rule_of_the_parameter_goes_before_that_of_its_module(tmp_path: Path) -> None:
    save_file(
        {"m.3.experts.gate": weights(4, 8, 8), "m.3.experts.bias": weights(4, 6)}, tmp_path / "a"
    )
    plan = {"m.*.experts": "moe_tp_experts", "m.*.experts.gate": "packed_colwise"}
    shard = load_shard(tmp_path / "a", 1, 2, plan)
    assert (shard["m.3.experts.gate"].shape, shard["m.3.experts.bias"].shape) == ((4, 4, 8), (4, 6))
    assert shard.report.unused == []


@pytest.mark.parametrize(
    ("rank", "plan", "message"),
    [
        (2, {"a": "colwise"}, "rank 2 of 2"),
        (-1, {"a": "colwise"}, "rank -1 of 2"),
        (0, {"a": "columns"}, "unknown style 'columns'; there are all_reduce, colwise"),
        (
            0,
            {"layers.*.a": "colwise"},
            r"no rule of the plan fits a tensor of x: "
            r"rules such as 'layers\.\*\.a', tensors such as 'a'",
        ),
        (0, {"a": "grouped_gemm"}, "the 5 experts of 'a' cannot be spread evenly over 2 ranks"),
        (0, {"s": "rowwise"}, r"the tensor 's' of shape \[\] cannot be split as 'rowwise'"),
        (0, {"a": "embedding_colwise"}, r"'a' of shape \[5\] cannot be split"),
    ],
)
def test_mistakes(tmp_path: Path, rank: int, plan: dict[str, str], message: str) -> None:
    save_file({"a": weights(5), "s": torch.tensor(1.0)}, tmp_path / "x")
    with pytest.raises(ValueError, match=message):
        load_shard(tmp_path / "x", rank, 2, plan)


# ---- what is read --------------------------------------------------------------------------------
READS = [
    ((1024, 1024), "colwise", 0.5),
    ((1024, 1024), "rowwise", 0.5),
    ((1000, 1376), "rowwise", 0.7),  # bands of 320 columns, of which the first rank needs three
    ((512, 4096), "rowwise", 0.5),
    ((8, 256, 1024), "colwise", 0.51),  # experts
    ((8, 256, 1024), "rowwise", 0.51),
    ((2048, 512), "packed_colwise", 0.5),
    ((512, 512), "rowwise", 1.0),  # up to 512 columns are one band
]


@pytest.mark.parametrize(("shape", "style", "most"), READS)
def test_what_is_read(tmp_path: Path, shape: tuple[int, ...], style: str, most: float) -> None:
    save_file({"w.weight": weights(*shape)}, tmp_path / "a")
    reports = [load_shard(tmp_path / "a", rank, 2, {"w": style}).report for rank in range(2)]
    size = (tmp_path / "a").stat().st_size
    for report in reports:
        assert report.part <= most + 0.01
        assert (
            report.payload_nbytes["a"] + report.index_nbytes["a"] + 200
            > size
            > report.payload_nbytes["a"]
        )
    assert sum(r.part for r in reports) >= 0.999


def test_wider_segments_are_read_whole(tmp_path: Path) -> None:
    """A segment is the least that is read: preset max makes them too wide here,
    a forced segment makes them right.
    """
    w = weights(512, 1024)
    for options, part in (
        (wcodec.EncodeOptions(preset="max"), 1.0),
        (wcodec.EncodeOptions(preset="max", segment=(512, 512)), 0.5),
    ):
        save_file({"w.weight": w}, tmp_path / "a", options=options)
        shard = load_shard(tmp_path / "a", 1, 2, {"w": "rowwise"})
        assert math.isclose(shard.report.part, part, abs_tol=0.01)
        assert same(shard["w.weight"], w[:, 512:])


# ---- two processes -------------------------------------------------------------------------------
def tiny(kind: Any, **more: int) -> Any:
    """A configuration whose matrices are wide enough to be split by columns."""
    return kind(
        vocab_size=96, hidden_size=1024, intermediate_size=1536, num_hidden_layers=1,
        num_attention_heads=8, num_key_value_heads=4, attn_implementation="eager", **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and a block of linear layers, as they are and encoded."""
    root = tmp_path_factory.mktemp("ranks")
    generator = torch.Generator().manual_seed(1)
    models = {"llama": tiny(LlamaConfig), "mixtral": tiny(MixtralConfig, num_local_experts=4)}
    for name, config in models.items():
        torch.manual_seed(2)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.save_pretrained(root / name)
        (root / f"{name}-wcodec").mkdir()
        state = list(model.state_dict().items())
        save_file(dict(state[::2]), root / f"{name}-wcodec" / "one.wcodec")
        save_file(dict(state[1::2]), root / f"{name}-wcodec" / "two.wcodec")
    shapes = {
        "up.weight": (1536, 1024),
        "up.bias": (1536,),
        "down.weight": (1024, 1536),
        "down.bias": (1024,),
    }
    block = {
        name: torch.randint(-8, 9, shape, generator=generator) / 16
        for name, shape in shapes.items()
    }
    save_file(block, root / "block.wcodec")
    torch.save(block, root / "block.pt")
    torch.save(torch.randint(-8, 9, (5, 1024), generator=generator) / 16, root / "x.pt")
    return root


def test_two_processes(folder: Path) -> None:
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([PYTHONPATH, os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, str(HERE / "tensor_parallel_rank.py"), str(folder)]
    run = subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    found = [json.loads((folder / f"rank-{r}.json").read_text()) for r in range(2)]

    block, x = torch.load(folder / "block.pt"), torch.load(folder / "x.pt")
    outs = [torch.load(folder / f"block-{r}.pt") for r in range(2)]
    hidden = torch.nn.functional.linear(x, block["up.weight"], block["up.bias"])
    out = torch.nn.functional.linear(hidden, block["down.weight"], block["down.bias"])
    # sums of few bits: exact in any order
    assert torch.equal(torch.cat([o["hidden"] for o in outs], -1), hidden)
    assert all(torch.equal(o["out"], out) for o in outs)
    assert BLOCK_PLAN == {"up": "colwise", "down": "rowwise"}
    for of_rank in found:
        assert 0.49 <= of_rank["block"]["part"] <= 0.51

    for name in ("llama", "mixtral"):
        whole = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
        with torch.no_grad():
            logits = whole(torch.arange(12).reshape(1, 12)).logits
        for rank, of_rank in enumerate(found):
            torch.testing.assert_close(
                torch.load(folder / f"{name}-{rank}.pt"), logits, rtol=1e-4, atol=1e-5
            )
            assert 0.49 <= of_rank[name]["part"] <= 0.51, name
            assert of_rank[name]["unused"] == []
            assert of_rank[name]["n_split"] >= 7


def test_encoded_by_the_command(folder: Path, tmp_path: Path) -> None:
    """What encodes a model's own file gives shards too."""
    source = next((folder / "llama").glob("*.safetensors"))
    encode_file(source, tmp_path / "model.wcodec")
    plan = AutoModelForCausalLM.from_pretrained(folder / "llama").tp_plan
    shard = load_shard(tmp_path / "model.wcodec", 1, 2, plan)
    other = load_shard(folder / "llama-wcodec", 1, 2, plan)
    assert shard.keys() == other.keys()
    assert all(same(t, other[name]) for name, t in shard.items())
