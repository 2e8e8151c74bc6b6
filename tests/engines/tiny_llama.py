"""A tiny Llama with random weights in bf16, and its steps of training, for tests with engines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

PROMPTS = [[1, 5, 9, 33], [7, 7, 200, 14, 90], [250]]
CONFIG: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def model(step: int) -> transformers.LlamaForCausalLM:
    """The model after a step: its weights are Gaussian, and each step changes one in fifty."""
    torch.manual_seed(0)
    found = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)).to(torch.bfloat16)
    with torch.no_grad():
        for p in found.parameters():
            if p.dim() == 2:
                p.copy_(torch.randn(p.shape) * 0.3)
        for i in range(step):
            torch.manual_seed(1000 + i)
            for p in found.parameters():
                p.add_(torch.randn(p.shape).to(p.dtype) * (torch.rand(p.shape) < 0.02))
    return found.eval()


def save(step: int, path: Path) -> Path:
    """A checkpoint of it, as vLLM loads it."""
    model(step).save_pretrained(path)
    return path


def engine(path: Path, **options: Any) -> Any:
    """vLLM with the model of a checkpoint."""
    from vllm import LLM

    return LLM(
        str(path), skip_tokenizer_init=True, enforce_eager=True, max_model_len=64, seed=0,
        max_num_seqs=4, **options,
    )  # fmt: skip


def generated(llm: Any) -> list[list[int]]:
    """What it generates, greedily."""
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": ids} for ids in PROMPTS]
    return [list(o.outputs[0].token_ids) for o in llm.generate(prompts, greedy, use_tqdm=False)]


if __name__ == "__main__":  # a fresh engine with the weights of a step
    checkpoint, out = map(Path, sys.argv[1:])
    out.write_text(json.dumps(generated(engine(checkpoint))))
