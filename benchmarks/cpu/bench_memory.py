"""Memory of a model whose weights stay compressed, of 1 GB, as the system counts it. Linux.

    python benchmarks/cpu/bench_memory.py

makes a checkpoint (bf16 weights, Gaussian), and takes a process each for a model that is loaded
from it, and for a dense model that is compressed layer by layer. Writes
``benchmarks/results/DATE-memory.json``: bytes of weights, and what the process took for them at its
peak, loading and a forward pass included. What the code asks for is tested by
``tests/pytorch/test_torch_memory.py``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from bench_files import RESULTS, machine

import wcodec
from wcodec.reference.planes import BY_NAME
from wcodec.torch import compress_model, load_compressed, model_memory

HIDDEN, INNER, LAYERS = 2048, 5632, 12


class Block(torch.nn.Module):
    """The products of a decoder layer."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.q, self.o = (
            torch.nn.Linear(hidden, hidden, bias=False, dtype=torch.bfloat16) for _ in range(2)
        )
        self.gate, self.up = (
            torch.nn.Linear(hidden, inner, bias=False, dtype=torch.bfloat16) for _ in range(2)
        )
        self.down = torch.nn.Linear(inner, hidden, bias=False, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.rms_norm(x + self.o(self.q(x)), x.shape[-1:])
        return x + self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))


def write(path: Path, hidden: int = HIDDEN, inner: int = INNER, layers: int = LAYERS) -> None:
    """The checkpoint: the same Gaussian numbers in another order for each weight."""
    numbers = (
        np.random.default_rng(1).standard_normal(hidden * inner + 4096, np.float32) * 0.02
    ).view(np.uint32)
    words = ((numbers + 0x8000) >> 16).astype(np.uint16)
    with torch.device("meta"):
        model = torch.nn.Sequential(*[Block(hidden, inner) for _ in range(layers)])
    with path.open("wb") as f:
        writer = wcodec.Encoder().start(f)
        for i, (name, p) in enumerate(model.named_parameters()):
            writer.add_words(
                name, words[13 * i : 13 * i + p.numel()], BY_NAME["bfloat16"], tuple(p.shape)
            )
        writer.finish()


def status(key: str) -> int:
    """A line of the process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def main() -> None:
    """See the module."""
    p = argparse.ArgumentParser(description="Memory of a model whose weights stay compressed.")
    p.add_argument(
        "--out", type=Path, help="the JSON file (default: benchmarks/results/DATE-memory.json)"
    )
    p.add_argument("--child", nargs=2, metavar=("FILE", "WAY"), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        print(json.dumps(measured(Path(args.child[0]), args.child[1])))
        return
    with tempfile.TemporaryDirectory(prefix="wcodec-bench-") as name:
        path = Path(name) / "model.wcodec"
        write(path)
        found = {
            way: json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--child", path, way],
                    capture_output=True,
                    check=True,
                ).stdout
            )
            for way in ("load", "compress")
        }
    for way, m in found.items():
        print(
            f"{way:9} dense {m['dense'] / 1e9:.3f} GB, held {m['held'] / 1e9:.3f} GB,"
            f" peak {m['peak'] / 1e9:.3f} GB"
        )
    out = args.out or RESULTS / f"{datetime.date.today().isoformat()}-memory.json"
    out.write_text(json.dumps({"machine": machine(), "models": found}, indent=1) + "\n")


def measured(path: Path, way: str) -> dict[str, int]:
    """Bytes of weights in mode "resident" and of the peak, of this process."""
    torch.set_num_threads(1)
    x = torch.randn(1, HIDDEN).bfloat16()
    with torch.no_grad():
        # compiles kernels, takes buffers that do not grow with the model
        compress_model(Block(HIDDEN, 64))(x)
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        if way == "load":
            with torch.device("meta"):
                model = torch.nn.Sequential(*[Block(HIDDEN, INNER) for _ in range(LAYERS)])
            load_compressed(model, path)
        else:
            with wcodec.open(path) as f:
                name = f.keys()[-1]
            dense = wcodec.torch.load_file(path, names=[name])[name]
            model = torch.nn.Sequential(*[compress_model(_block(dense)) for _ in range(LAYERS)])
        y = model(x)
        assert y.isfinite().all()
        assert torch.equal(model(x), y)
    memory = model_memory(model)
    return {
        "dense": memory.dense,
        "held": memory.held,
        "n_compressed": memory.n_compressed,
        "peak": status("VmHWM") - before,
    }


def _block(dense: torch.Tensor) -> Block:
    """A dense layer of numbers that are there."""
    block = Block(HIDDEN, INNER)
    for p in block.parameters():
        p.data.copy_(dense.reshape(-1)[: p.numel()].reshape(p.shape))
    return block


if __name__ == "__main__":
    main()
