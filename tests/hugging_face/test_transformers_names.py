"""Weights under other names than the usual ones, in models of transformers: variants, whole and in
shards, and files that ``config.json`` names. And weights of dtypes that the format has no id for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import save_file
from tiny_models import same_state
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from wcodec.directories.decoding import decode_directory, verify_directory
from wcodec.transformers import WCodecModel
from wcodec.transformers.weight_files import weight_files


def edit(directory: Path, **changes: Any) -> None:
    """Change keys of ``config.json``; ``None`` takes one away."""
    config = {**json.loads((directory / "config.json").read_text()), **changes}
    config = {k: v for k, v in config.items() if v is not None}
    (directory / "config.json").write_text(json.dumps(config))


def contents(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


@pytest.fixture(scope="module", params=["sharded", "whole"])
def forms(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model in float32 and another one of the variant fp16 beside it, of which the configuration
    does not say the dtype; in each form.
    """
    folder = tmp_path_factory.mktemp("variants")
    how: dict[str, Any] = {"max_shard_size": "100KB"} if request.param == "sharded" else {}
    tiny_models.make("llama", torch.float32).save_pretrained(folder / "plain", **how)
    variant = tiny_models.make("llama", torch.float16)
    with torch.no_grad():
        variant.model.norm.weight.mul_(2)
    variant.save_pretrained(folder / "plain", variant="fp16", **how)
    edit(folder / "plain", dtype=None)
    forms = {f: tiny_models.encode(folder / "plain", folder / f, f) for f in ("hub", "wcodec")}
    return {"plain": folder / "plain", **forms}


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("form", ["hub", "wcodec"])
@pytest.mark.parametrize("mode", ["decoded", "resident"])
def test_variants(forms: Any, form: str, variant: str | None, mode: str) -> None:
    plain = AutoModelForCausalLM.from_pretrained(forms["plain"], variant=variant)
    model = WCodecModel.from_pretrained(forms[form], variant=variant, mode=mode)
    assert model.dtype == plain.dtype == (torch.float32 if variant is None else torch.float16)
    same_state(model, plain)


@pytest.mark.parametrize("form", ["hub", "wcodec"])
def test_directories_of_variants_come_back(forms: Any, form: str, tmp_path: Path) -> None:
    decode_directory(forms[form], tmp_path / "back")
    assert contents(tmp_path / "back") == contents(forms["plain"])
    verify_directory(forms[form])


def test_a_variant_that_is_not_there(forms: Any) -> None:
    for form in ("hub", "wcodec"):
        with pytest.raises(OSError, match=r"no file named model\.bf16\.safetensors"):
            WCodecModel.from_pretrained(forms[form], variant="bf16")


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("model.x-{}.safetensors", "model.x.safetensors.index.json"),
        ("model-{}.x.safetensors", "model.safetensors.x.index.json"),
    ],
)
def test_variants_as_other_libraries_name_them(tmp_path: Path, name: str, index: str) -> None:
    """huggingface_hub and older diffusers; transformers itself does not look for these."""
    plain = tiny_models.make("llama", torch.bfloat16)
    plain.save_pretrained(tmp_path / "plain", max_shard_size="100KB", variant="x")
    for path in (tmp_path / "plain").glob("model.x-*"):
        path.rename(path.with_name(name.format(path.stem.removeprefix("model.x-"))))
    found = tmp_path / "plain/model.safetensors.index.x.json"
    text = found.read_text()
    for file in set(json.loads(text)["weight_map"].values()):
        number = Path(file).stem.removeprefix("model.x-")
        text = text.replace(f'"{file}"', json.dumps(name.format(number)))
    found.unlink()
    (tmp_path / "plain" / index).write_text(text)
    tiny_models.encode(tmp_path / "plain", tmp_path / "coded", "wcodec")
    assert len(weight_files(tmp_path / "coded", ".wcodec", "x")) > 1
    same_state(WCodecModel.from_pretrained(tmp_path / "coded", variant="x"), plain)


@pytest.mark.parametrize("size", ["100KB", "1GB"])
@pytest.mark.parametrize("form", ["hub", "wcodec"])
def test_weights_that_the_configuration_names(tmp_path: Path, size: str, form: str) -> None:
    """``transformers_weights`` in ``config.json``; the dtype is theirs, if it names none."""
    plain = tiny_models.make("llama", torch.bfloat16)
    plain.save_pretrained(tmp_path / "plain", max_shard_size=size)
    ending = "safetensors" if size == "1GB" else "safetensors.index.json"
    (tmp_path / f"plain/model.{ending}").rename(tmp_path / f"plain/own.{ending}")
    edit(tmp_path / "plain", transformers_weights=f"own.{ending}", dtype=None)
    tiny_models.encode(tmp_path / "plain", tmp_path / form, form)
    for mode in ("decoded", "resident"):
        model = WCodecModel.from_pretrained(tmp_path / form, mode=mode)
        same_state(model, AutoModelForCausalLM.from_pretrained(tmp_path / "plain"))
        assert model.dtype == torch.bfloat16
    assert weight_files(tmp_path / form, ".wcodec", None, "../own.safetensors") == {}


# ---- float4 --------------------------------------------------------------------------------------
class PackedConfig(PretrainedConfig):
    model_type = "packed"


class Packed(PreTrainedModel):
    """A model with a weight of float4 and one of bfloat16."""

    config_class = PackedConfig

    def __init__(self, config: PackedConfig) -> None:
        super().__init__(config)
        self.packed = torch.nn.Parameter(
            torch.empty(64, 128, dtype=torch.float4_e2m1fn_x2), requires_grad=False
        )
        self.plain = torch.nn.Linear(64, 64, dtype=torch.bfloat16)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        pass


@pytest.mark.parametrize("mode", ["decoded", "resident"])
def test_float4(tmp_path: Path, mode: str) -> None:
    torch.manual_seed(0)
    bits = torch.randint(0, 256, (64, 128), dtype=torch.uint8)
    state = {
        "packed": bits.view(torch.float4_e2m1fn_x2),
        "plain.weight": torch.randn(64, 64).to(torch.bfloat16),
        "plain.bias": torch.randn(64).to(torch.bfloat16),
    }
    (tmp_path / "plain").mkdir()
    save_file(state, tmp_path / "plain/model.safetensors", {"format": "pt"})
    config = PackedConfig(architectures=["Packed"], dtype="bfloat16")
    config.save_pretrained(tmp_path / "plain")
    tiny_models.encode(tmp_path / "plain", tmp_path / "wcodec", "wcodec")
    AutoConfig.register("packed", PackedConfig, exist_ok=True)
    AutoModel.register(PackedConfig, Packed, exist_ok=True)
    model = WCodecModel.from_pretrained(tmp_path / "wcodec", auto_class=AutoModel, mode=mode)
    assert model.packed.dtype is torch.float4_e2m1fn_x2
    assert torch.equal(model.packed.view(torch.uint8), bits)
    assert torch.equal(model.plain.weight, state["plain.weight"])
