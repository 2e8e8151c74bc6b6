"""Models of transformers and state dicts of PyTorch from directories at URLs."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
import tiny_models
import torch

import wcodec.torch
from wcodec.directories import encode_directory
from wcodec.transformers import WCodecModel


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model in shards."""
    tiny_models.make("llama", torch.bfloat16).save_pretrained(tmp_path / "m", max_shard_size="50KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 2
    return tmp_path / "m"


@pytest.mark.parametrize("form", ["wcodec", "hub", "plain"])
def test_a_model_at_a_url(model: Path, form: str, tmp_path: Path) -> None:
    url = f"memory://models/{form}"
    if form == "plain":
        fsspec.filesystem("memory").put(f"{model}/", "/models/plain/", recursive=True)
    else:
        encode_directory(model, url, form)
    encode_directory(model, tmp_path / "local")
    due, loaded = WCodecModel.from_pretrained(tmp_path / "local"), WCodecModel.from_pretrained(url)
    assert loaded.name_or_path == loaded.config.name_or_path == url
    assert loaded.state_dict().keys() == due.state_dict().keys()
    for name, tensor in due.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    x = torch.arange(8)[None]
    assert torch.equal(loaded(x).logits, due(x).logits)
    fsspec.filesystem("memory").rm("/models", recursive=True)


def test_a_state_dict_at_a_url(model: Path) -> None:
    url = "memory://models/coded"
    encode_directory(model, url)
    due = WCodecModel.from_pretrained(model).state_dict()
    for place in (url, f"{url}/{next(iter(p.stem for p in model.glob('*.safetensors')))}.wcodec"):
        found = wcodec.torch.load_wcodec_checkpoint(place)
        assert found
        assert all(torch.equal(t, due[name]) for name, t in found.items())
    assert len(wcodec.torch.load_wcodec_checkpoint(url)) == len(due)
    fsspec.filesystem("memory").rm("/models", recursive=True)
