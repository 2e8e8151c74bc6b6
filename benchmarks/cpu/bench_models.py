"""Speed and memory of a language model whose weights stay compressed,
against the same model as it is.

    python benchmarks/cpu/bench_models.py                # on the CPU: a Llama-shaped one of 0.3 GB
    python benchmarks/cpu/bench_models.py --device cuda  # on a GPU: one of the shape of Llama-3-8B
    python benchmarks/cpu/bench_models.py --hidden 2048 --inner 5632 --layers 12 --vocab 32000
    python benchmarks/cpu/bench_models.py --mode fused   # mode "fused" too
    python benchmarks/cpu/bench_models.py --device cuda --mode fused --operands fixed,rans

The model is made on the device: bf16, Gaussian weights of standard deviation 0.02. A prompt is
read, then tokens are taken greedily, with a cache of keys and values, one sequence, ``generate`` of
transformers; then the weights are compressed in place, and the same is done again in mode
"resident": the tokens have to be the same. ``--mode fused`` does it once more in mode "fused", for
each operand of ``--operands`` ("none": by device and dtype), with the weights compressed anew, and
says how many tokens are the same: the last bits of these products may differ, and with random
weights the next token hangs on little. "First" is the time of the prompt and one token, "tokens/s"
that of the tokens after it; medians of ``--rounds`` runs after one that is not counted. On a GPU,
memory is the most that PyTorch and CuPy have held since the model was there; on a CPU, bytes of
weights as they are held, and of the memory that they are decoded into. Results go to ``--out`` as
JSON.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from bench_files import RESULTS, machine

import wcodec.torch
from wcodec.errors import BackendUnavailable
from wcodec.planner.options import OPERANDS
from wcodec.torch.resident.models import model_memory
from wcodec.torch.resident.operands import MODES

CPU = {"hidden": 1024, "inner": 2816, "layers": 12, "vocab": 8000, "heads": 16, "kv_heads": 4}
LLAMA_3_8B = {
    "hidden": 4096,
    "inner": 14336,
    "layers": 32,
    "vocab": 128256,
    "heads": 32,
    "kv_heads": 8,
}
NONE = "none"  #: the operand that mode "fused" takes by itself, if any
CHOICES = (NONE, *OPERANDS)


def operands_of(text: str) -> list[str]:
    """A list of `CHOICES`."""
    wrong = set(text.split(",")) - set(CHOICES)
    if wrong:
        raise argparse.ArgumentTypeError(
            f"{', '.join(sorted(wrong))}: there are {', '.join(CHOICES)}"
        )
    return text.split(",")


def make(shape: dict[str, int], device: torch.device) -> Any:
    """A Llama-shaped model with random weights, made on the device."""
    config = transformers.LlamaConfig(
        vocab_size=shape["vocab"], hidden_size=shape["hidden"], intermediate_size=shape["inner"],
        num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"], max_position_embeddings=4096,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval()


class Timer:
    """Wall time, with the device's work done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        """Seconds."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def generate(model: Any, prompt: torch.Tensor, n: int) -> torch.Tensor:
    """`n` tokens after a prompt."""
    with torch.inference_mode():
        return model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=n,
            min_new_tokens=n,
            do_sample=False,
            use_cache=True,
        )  # type: ignore[no-any-return]


def measure(
    model: Any, prompt: torch.Tensor, n_tokens: int, rounds: int
) -> tuple[dict[str, Any], torch.Tensor]:
    """Times of a prompt and its tokens, and the tokens."""
    timer, first, rate = Timer(prompt.device), list[float](), list[float]()
    tokens = generate(model, prompt, n_tokens)
    for _ in range(rounds):
        a = timer.now()
        generate(model, prompt, 1)
        b = timer.now()
        generate(model, prompt, n_tokens)
        c = timer.now()
        first.append(b - a)
        rate.append((n_tokens - 1) / max((c - b) - (b - a), 1e-9))
    return {
        "first_s": statistics.median(first), "tokens_s": statistics.median(rate),
        "first_spread_s": [min(first), max(first)], "tokens_s_spread": [min(rate), max(rate)],
    }, tokens  # fmt: skip


def device_memory(device: torch.device, reset: bool = False) -> int | None:
    """Most bytes of the GPU that PyTorch has held since the last reset, and what CuPy holds;
    nothing on a CPU.
    """
    if device.type != "cuda":
        return None
    import cupy

    most = torch.cuda.max_memory_allocated(device) + int(
        cupy.get_default_memory_pool().total_bytes()
    )
    if reset:
        torch.cuda.reset_peak_memory_stats(device)
    return most


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All of it; what there is is written after each part, lest a time limit loses it."""
    device = torch.device(args.device)
    shape = {
        key: getattr(args, key) or default
        for key, default in (LLAMA_3_8B if device.type == "cuda" else CPU).items()
    }
    model = make(shape, device)
    prompt = torch.randint(
        1, shape["vocab"], (1, args.prompt), generator=torch.Generator().manual_seed(1)
    ).to(device)
    report: dict[str, Any] = {
        "machine": about(device),
        "shape": shape,
        "prompt": args.prompt,
        "tokens": args.tokens,
        "rounds": args.rounds,
    }
    report["dense_nbytes"] = model_memory(model).dense
    device_memory(device, reset=True)
    report["plain"], due = measure(model, prompt, args.tokens, args.rounds)
    report["plain"]["device_nbytes"] = device_memory(device)
    write(report, args.out)
    start = time.perf_counter()
    wcodec.torch.compress_model(model, preset=args.preset)
    report["compress_s"], report["preset"] = time.perf_counter() - start, args.preset
    gc.collect()
    free(device)
    memory = model_memory(model)
    report["held_nbytes"], report["n_compressed"] = memory.held, memory.n_compressed
    device_memory(device, reset=True)
    report["resident"], got = measure(model, prompt, args.tokens, args.rounds)
    report["resident"]["device_nbytes"] = device_memory(device)
    report["scratch_nbytes"] = wcodec.torch.scratch_nbytes()
    report["same_tokens"] = bool(torch.equal(got, due))
    write(report, args.out)
    for operand in args.operands:
        report.setdefault("fused", {})[operand] = run_fused(model, prompt, due, operand, args)
        write(report, args.out)
    return report


def write(report: dict[str, Any], folder: Path) -> Path:
    """The results, in a file of the day and the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    gpu = report["machine"]["gpu"]
    kind = "cpu" if gpu is None else "gpu-" + re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    path = folder / f"{datetime.date.today().isoformat()}-models-{kind}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def run_fused(
    model: Any, prompt: torch.Tensor, due: torch.Tensor, operand: str, args: argparse.Namespace
) -> dict[str, Any]:
    """The same in mode "fused", with an operand of `CHOICES`."""
    start = time.perf_counter()
    wcodec.torch.decompress_model(model)
    wcodec.torch.compress_model(
        model, args.preset, mode="fused", operand=None if operand == NONE else operand
    )
    compress_s = time.perf_counter() - start
    wcodec.torch.release_scratch()
    gc.collect()
    free(prompt.device)
    device_memory(prompt.device, reset=True)
    found, got = measure(model, prompt, args.tokens, args.rounds)
    found |= {
        "device_nbytes": device_memory(prompt.device),
        "scratch_nbytes": wcodec.torch.scratch_nbytes(),
    }
    found |= {"held_nbytes": model_memory(model).held, "compress_s": compress_s}
    new = slice(prompt.shape[1], None)
    return {**found, "n_same_tokens": int((got == due)[:, new].sum())}


def free(device: torch.device) -> None:
    """Give back what caches hold, so that the peaks that follow are of what comes then."""
    if device.type == "cuda":
        import cupy

        torch.cuda.empty_cache()
        cupy.get_default_memory_pool().free_all_blocks()


def about(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    found = machine()
    found["versions"] |= {"torch": torch.__version__, "transformers": transformers.__version__}
    found |= {"backend": wcodec.get_backend().name, "torch_threads": torch.get_num_threads()}
    return {**found, "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None}


def lines(report: dict[str, Any]) -> list[str]:
    """The report, to be read."""
    out = [
        f"{report['dense_nbytes'] / 1e9:.2f} GB of weights, "
        f"{report['held_nbytes'] / 1e9:.2f} GB held compressed"
    ]
    fused = {
        "fused" if operand == NONE else f"fused {operand}": found
        for operand, found in report.get("fused", {}).items()
    }
    found = {name: report[name] for name in ("plain", "resident")} | fused
    for name, r in found.items():
        memory = (
            ""
            if r["device_nbytes"] is None
            else f", {r['device_nbytes'] / 1e9:.2f} GB of the device"
        )
        out.append(
            f"{name}: {r['tokens_s']:.2f} tokens/s, first token after {r['first_s']:.3f} s{memory}"
        )
    plain = found.pop("plain")["tokens_s"]
    out += [
        f"{name} / plain: {r['tokens_s'] / plain:.2f} of the tokens/s" for name, r in found.items()
    ]
    for name, r in fused.items():
        out.append(
            f"{name}: {r['held_nbytes'] / 1e9:.2f} GB held, {r['n_same_tokens']} of "
            f"{report['tokens']} tokens as plain"
        )
        out.append(
            f"scratch: {report['scratch_nbytes'] / 1e6:.1f} MB resident, "
            f"{r['scratch_nbytes'] / 1e6:.1f} MB {name}"
        )
    out.append("the same tokens" if report["same_tokens"] else "FAILED: other tokens")
    return out


def main(argv: list[str] | None = None) -> int:
    """Run, print, write. Returns 0 if the tokens are the same."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    for key in CPU:
        p.add_argument(
            f"--{key.replace('_', '-')}",
            type=int,
            help=f"(default: {CPU[key]}, on a GPU {LLAMA_3_8B[key]})",
        )
    p.add_argument("--prompt", type=int, default=128, help="tokens of the prompt (default: 128)")
    p.add_argument("--tokens", type=int, default=32, help="tokens to generate (default: 32)")
    p.add_argument("--rounds", type=int, default=7, help="runs of each (default: 7)")
    p.add_argument(
        "--mode",
        choices=MODES,
        default="resident",
        help="fused: measure that mode too (default: resident alone)",
    )
    p.add_argument(
        "--operands",
        type=operands_of,
        metavar="OPERANDS",
        help=f"with --mode fused: comma-separated, of {', '.join(CHOICES)} (default: {NONE})",
    )
    p.add_argument("--preset", default="default", help="of the compression (default: default)")
    p.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ["OUT"]) if os.environ.get("OUT") else RESULTS,
    )
    args = p.parse_args(argv)
    if args.mode != "fused" and args.operands:
        p.error("--operands needs --mode fused")
    args.operands = args.operands or [NONE] * (args.mode == "fused")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("this PyTorch finds no GPU", file=sys.stderr)
        return 2
    try:
        report = run(args)
    except BackendUnavailable as e:
        print(e, file=sys.stderr)
        return 2
    print("\n".join(lines(report)))
    print(write(report, args.out))
    return 0 if report["same_tokens"] else 1


if __name__ == "__main__":
    sys.exit(main())
