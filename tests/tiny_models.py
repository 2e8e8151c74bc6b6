"""Small models of transformers with random weights, and directories of them in each form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from wcodec.directories.encoding import encode_directory
from wcodec.torch.resident.compressed import CompressedTensor

_DECODER = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
#: Auto class, configuration, and how many of its weights are large enough to be coded,
#: tied ones counted once.
MODELS: dict[str, tuple[str, Any, dict[str, Any], int]] = {
    "llama": (
        "AutoModelForCausalLM", transformers.LlamaConfig,
        {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 160, **_DECODER}, 2 * 5 + 2,
    ),
    "qwen": (
        "AutoModelForCausalLM", transformers.Qwen3Config,
        {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 160, "head_dim": 32,
         "tie_word_embeddings": True, **_DECODER},
        2 * 7 + 1,
    ),
    "mixtral": (
        "AutoModelForCausalLM", transformers.MixtralConfig,
        {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_local_experts": 4,
         **_DECODER},
        2 * (2 + 3 * 4) + 2,
    ),
    "gpt2": (
        "AutoModelForCausalLM", transformers.GPT2Config,
        {"vocab_size": 320, "n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4,
         "bos_token_id": 0, "eos_token_id": 0},
        2 * 4 + 2,
    ),
    "t5": (
        "AutoModelForSeq2SeqLM", transformers.T5Config,
        {"vocab_size": 320, "d_model": 64, "d_kv": 16, "d_ff": 160, "num_layers": 2, "num_heads": 4,
         "decoder_start_token_id": 0},
        2 * 6 + 2 * 10 + 1,
    ),
    "bert": (
        "AutoModelForMaskedLM", transformers.BertConfig,
        {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
         "num_attention_heads": 4},
        2 * 6 + 3,
    ),
}  # fmt: skip


def make(name: str, dtype: torch.dtype) -> Any:
    """A model with random weights."""
    auto_class, config_class, options, _ = MODELS[name]
    torch.manual_seed(len(name))
    return getattr(transformers, auto_class).from_config(config_class(**options)).to(dtype).eval()


def auto_class(name: str) -> Any:
    """Its auto class."""
    return getattr(transformers, MODELS[name][0])


def encode(source: Path, target: Path, form: str) -> Path:
    """A model's directory in another form."""
    encode_directory(source, target, form, overwrite=True)
    return target


def directories(model: Any, folder: Path, **how: Any) -> dict[str, Path]:
    """A model saved by transformers, and that in both forms."""
    model.save_pretrained(folder / "plain", **how)
    return {"plain": folder / "plain"} | {
        form: encode(folder / "plain", folder / form, form) for form in ("hub", "wcodec")
    }


def streams(directory: Path) -> dict[str, torch.Tensor]:
    """The streams of a directory in hub form, by the names of their tensors."""
    found = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as f:
            for name in f.keys():  # noqa: SIM118
                tensor = f.get_tensor(name)
                if (
                    tensor.dtype == torch.uint8
                    and tensor.dim() == 1
                    and bytes(tensor[:8].tolist()) == b"\x89WCODEC\n"
                ):
                    found[name] = tensor
    return found


def inputs(name: str, vocabulary: int = 320) -> dict[str, torch.Tensor]:
    """Two rows of tokens, the second one padded on the left;
    for T5 also what the decoder begins with.
    """
    ids = torch.randint(1, vocabulary, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, :4], mask[1, :4] = 0, 0
    more = {"decoder_input_ids": torch.zeros(2, 3, dtype=torch.int64)} if name == "t5" else {}
    return {"input_ids": ids, "attention_mask": mask, **more}


@torch.no_grad()
def logits(model: Any, name: str) -> torch.Tensor:
    """What a model says of the inputs."""
    out: torch.Tensor = model(**inputs(name)).logits
    assert torch.isfinite(out).all()
    return out


def tokens(model: Any, name: str, n: int = 64) -> list[list[int]]:
    """What a model says next, the likeliest token each time."""
    given = {k: v for k, v in inputs(name).items() if k != "decoder_input_ids"}
    out = model.generate(**given, max_new_tokens=n, min_new_tokens=n, do_sample=False)
    assert out.shape[1] >= n
    tokens: list[list[int]] = out.tolist()
    return tokens


def same_state(a: Any, b: Any) -> None:
    """Compare all parameters and buffers of two models: names, dtypes and bits."""
    one, other = a.state_dict(), b.state_dict()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(dense(tensor), dense(other[name])), name


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, decoded if it is held compressed."""
    return tensor.decode() if isinstance(tensor, CompressedTensor) else tensor


def compressed(model: Any) -> dict[str, Any]:
    """The parameters that a model holds compressed, tied ones once."""
    return {name: p for name, p in model.named_parameters() if isinstance(p, CompressedTensor)}
