"""Models of transformers on a GPU (``make gpu-check``):
decoded there while they are loaded, or held there compressed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from test_transformers_errors import damage
from tiny_models import compressed, inputs, same_state, streams

from wcodec import DecodeError
from wcodec.transformers import WCodecConfig, WCodecModel

pytestmark = pytest.mark.gpu
RESIDENT = {"quantization_config": WCodecConfig(mode="resident")}
modes = pytest.mark.parametrize("how", [{}, RESIDENT], ids=["decoded", "resident"])


@pytest.fixture(scope="module", params=["llama", "qwen", "mixtral", "gpt2", "t5", "bert"])
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Path]]:
    """Each model in bf16, in all forms."""
    return request.param, tiny_models.directories(
        tiny_models.make(request.param, torch.bfloat16), tmp_path_factory.mktemp(request.param)
    )


@torch.no_grad()
def says(model: Any, name: str, n_tokens: int = 0) -> tuple[torch.Tensor, Any]:
    """Logits, and tokens of those models that generate."""
    given = {k: v.to("cuda") for k, v in inputs(name).items()}
    out = model(**given).logits
    assert out.is_cuda
    assert torch.isfinite(out).all()
    if name == "bert" or n_tokens == 0:
        return out, None
    given.pop("decoder_input_ids", None)
    return out, model.generate(
        **given, max_new_tokens=n_tokens, min_new_tokens=n_tokens, do_sample=False
    ).tolist()


@modes
@pytest.mark.parametrize(
    ("device_map", "attention"), [("cuda", "sdpa"), ("cuda", "eager"), ("auto", "sdpa")]
)
def test_on_the_gpu(case: Any, attention: str, device_map: str, how: Any) -> None:
    """Logits and tokens are those of the plain model there, from both forms."""
    name, directories = case
    auto = tiny_models.auto_class(name)
    options = {"device_map": device_map, "attn_implementation": attention}
    plain = auto.from_pretrained(directories["plain"], **options)
    n_tokens = 64 if attention == "sdpa" else 0
    want = says(plain, name, n_tokens)
    for load, form in ((auto, "hub"), (WCodecModel, "wcodec")):
        model = load.from_pretrained(directories[form], **options, **how)
        assert all(p.is_cuda for p in model.parameters())
        assert bool(compressed(model)) == bool(how)
        same_state(model, plain)
        logits, tokens = says(model, name, n_tokens)
        assert torch.equal(logits, want[0])
        assert tokens == want[1]


@modes
def test_saved_from_the_gpu(case: Any, how: Any, tmp_path: Path) -> None:
    """What is saved from there is in hub form; a model that is decoded there is plain."""
    name, directories = case
    auto = tiny_models.auto_class(name)
    model = auto.from_pretrained(directories["hub"], device_map="cuda", **how)
    model.save_pretrained(tmp_path / "hub")
    assert streams(tmp_path / "hub").keys() == streams(directories["hub"]).keys()
    same_state(auto.from_pretrained(tmp_path / "hub"), auto.from_pretrained(directories["plain"]))
    model.dequantize().save_pretrained(tmp_path / "plain")
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() == (
        directories["plain"] / "model.safetensors"
    ).read_bytes()


@modes
def test_to_and_fro(case: Any, how: Any) -> None:
    """A model that was loaded on the host and moved to the GPU says the same there;
    back on the host it is what it was.
    """
    name, directories = case
    auto = tiny_models.auto_class(name)
    model = auto.from_pretrained(directories["hub"], **how)
    plain = auto.from_pretrained(directories["plain"])
    assert torch.equal(says(model.to("cuda"), name)[0], says(plain.to("cuda"), name)[0])
    same_state(model.to("cpu"), plain.to("cpu"))


@modes
@pytest.mark.parametrize("where", ["payload", "index"])
def test_damaged(case: Any, where: str, how: Any, tmp_path: Path) -> None:
    """A damaged stream is refused while the model is loaded, with the tensor's name."""
    name, directories = case
    tensor = sorted(streams(directories["hub"]))[-1]
    directory = damage(directories["hub"], tmp_path / "bad", tensor, where)
    with pytest.raises(DecodeError) as e:
        tiny_models.auto_class(name).from_pretrained(directory, device_map="cuda", **how)
    assert e.value.tensor == tensor


def test_partly_on_the_host(tmp_path: Path) -> None:
    """Decoded weights may lie on the host and come to the GPU as they are used;
    compressed ones may not.
    """
    directories = tiny_models.directories(tiny_models.make("llama", torch.bfloat16), tmp_path)
    auto = tiny_models.auto_class("llama")
    on_the_gpu = (
        "model.embed_tokens",
        "model.rotary_emb",
        "model.layers.0",
        "model.norm",
        "lm_head",
    )
    device_map = {**dict.fromkeys(on_the_gpu, 0), "model.layers.1": "cpu"}
    plain = auto.from_pretrained(directories["plain"], device_map=device_map)
    model = auto.from_pretrained(directories["hub"], device_map=device_map)
    assert torch.equal(says(model, "llama")[0], says(plain, "llama")[0])
    with pytest.raises(
        ValueError, match="mode 'resident' holds all weights compressed on the devices that compute"
    ):
        auto.from_pretrained(directories["hub"], device_map=device_map, **RESIDENT)
