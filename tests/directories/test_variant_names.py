"""Names of weights and indexes, of variants too, as libraries form them: all are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from inputs import bits, safetensors_bytes
from test_cli import call

from wcodec.directories.decoding import decode_directory, verify_directory
from wcodec.directories.encoding import encode_directory
from wcodec.errors import DecodeError, EncodeError
from wcodec.files.shard_index import CODED, PLAIN, file_names, is_index, with_ending
from wcodec.torch import WCodecCheckpoint, load_compressed, load_shard, load_wcodec_checkpoint

#: An index of a variant and its shards, by the library that writes them.
SCHEMES = {
    "transformers": ("model.safetensors.index.fp16.json", "model.fp16-{}.safetensors"),
    "diffusers": (
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.fp16-{}.safetensors",
    ),
    "huggingface_hub": ("model.fp16.safetensors.index.json", "model.fp16-{}.safetensors"),
    "old diffusers": (
        "diffusion_pytorch_model.safetensors.fp16.index.json",
        "diffusion_pytorch_model-{}.fp16.safetensors",
    ),
    "another stem": (
        "open_clip.model.safetensors.index.fp16.json",
        "open_clip.model.fp16-{}.safetensors",
    ),
}
NUMBERS = ("00001-of-00002", "00002-of-00002")


def one(name: str, seed: int, dtype: str = "F32") -> bytes:
    """A safetensors file of one tensor."""
    values = np.random.default_rng(seed).standard_normal((40, 30), np.float32)
    values = values.astype(np.float16) if dtype == "F16" else values
    return safetensors_bytes([(name, dtype, [40, 30], bits(values))])


def sharded(index: str, shards: str, seed: int, dtype: str = "F32") -> dict[str, bytes]:
    """Two shards of a tensor each, and their index."""
    names = [shards.format(n) for n in NUMBERS]
    weight_map = dict(zip("ab", names, strict=True))
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}, indent=2)
    files = {n: one(t, seed + i, dtype) for i, (t, n) in enumerate(weight_map.items())}
    return {index: text.encode(), **files}


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def first(checkpoint: Path, variant: str | None = None) -> bytes:
    """The bytes of the tensor ``a``."""
    with WCodecCheckpoint(checkpoint, variant=variant) as c:
        assert sorted(c) == ["a", "b"]
        return bits(c["a"].numpy())


def data(seed: int, dtype: str = "F32") -> bytes:
    return one("a", seed, dtype)[-1200 * (2 if dtype == "F16" else 4) :]


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("beside", ["sharded", "single"])
def test_directories_with_a_variant(tmp_path: Path, name: str, beside: str) -> None:
    """Encoded, its index names encoded shards; it comes back byte for byte; either is loaded."""
    index, shards = SCHEMES[name]
    stem = shards.split(".fp16")[0].split("-{}")[0]
    files = sharded(index, shards, 1, "F16")
    files |= (
        sharded(f"{stem}.safetensors.index.json", stem + "-{}.safetensors", 5)
        if beside == "sharded"
        else {f"{stem}.safetensors": safetensors_bytes(
            [(t, "F32", [40, 30], data(5 + i)) for i, t in enumerate("ab")]
        )}
    )  # fmt: skip
    source = fill(tmp_path / "model", files)
    encode_directory(source, tmp_path / "coded")
    found = content(tmp_path / "coded")
    assert sorted(found) == sorted(n.replace("safetensors", "wcodec") for n in files)
    coded_index = index.replace("safetensors", "wcodec")
    assert set(json.loads(found[coded_index])["weight_map"].values()) <= set(found)
    decode_directory(tmp_path / "coded", tmp_path / "back")
    assert content(tmp_path / "back") == files
    verify_directory(tmp_path / "coded")
    assert first(tmp_path / "coded") == data(5)
    assert first(tmp_path / "coded", "fp16") == data(1, "F16")
    assert (
        bits(load_wcodec_checkpoint(tmp_path / "coded", variant="fp16")["b"].numpy())
        == (one("b", 2, "F16")[-2400:])
    )
    shard = load_shard(tmp_path / "coded", 0, 2, {"a": "colwise"}, variant="fp16")
    assert bits(shard["a"].numpy()) == data(1, "F16")[:1200]
    with pytest.raises(FileNotFoundError, match=r"no .wcodec file of the variant 'bf16'"):
        WCodecCheckpoint(tmp_path / "coded", variant="bf16")


@pytest.mark.parametrize("name", SCHEMES)
def test_the_command_knows_them(tmp_path: Path, name: str) -> None:
    index, shards = SCHEMES[name]
    files = sharded(index, shards, 1)
    source, coded, back = fill(tmp_path / "in", files), tmp_path / "coded", tmp_path / "back"
    assert call("encode", str(source), "-o", str(coded))[0] == 0
    assert call("verify", str(coded))[0] == 0
    status, out, _ = call("info", str(coded))
    assert status == 0
    assert all(shards.format(n).replace(PLAIN, CODED) in out for n in NUMBERS)
    assert call("decode", str(coded), "-o", str(back))[0] == 0
    assert content(back) == files
    assert first(coded) == first(coded, "fp16") == data(1)  # the only one
    (coded / shards.format(NUMBERS[1]).replace(PLAIN, CODED)).unlink()
    status, _, err = call("verify", str(coded))
    assert status != 0
    assert f"/{index.replace(PLAIN, CODED)}': the index names" in err


@pytest.mark.parametrize("form", ["wcodec", "hub"])
@pytest.mark.parametrize("name", SCHEMES)
def test_a_shard_that_an_index_of_a_variant_names(tmp_path: Path, name: str, form: str) -> None:
    index, shards = SCHEMES[name]
    source = fill(tmp_path / "in", sharded(index, shards, 1))
    (source / shards.format(NUMBERS[0])).unlink()
    with pytest.raises(EncodeError, match=rf"in '{index}': the index names .*, which is not there"):
        encode_directory(source, tmp_path / "out", form)


@pytest.mark.parametrize("name", SCHEMES)
def test_an_encoded_index_beside_its_own_is_left_out(tmp_path: Path, name: str) -> None:
    index, shards = SCHEMES[name]
    source = fill(tmp_path / "in", sharded(index, shards, 1))
    encode_directory(source, tmp_path / "coded")
    for path in (tmp_path / "coded").iterdir():
        path.rename(source / path.name)
    encode_directory(source, tmp_path / "again")
    assert len(content(tmp_path / "again")) == 3


# ---- folders without an index --------------------------------------------------------------------
def test_a_single_file_of_a_variant(tmp_path: Path) -> None:
    files = {"model.safetensors": one("a", 1), "model.fp16.safetensors": one("a", 2, "F16")}
    encode_directory(fill(tmp_path / "in", files), tmp_path / "coded")
    with WCodecCheckpoint(tmp_path / "coded") as c:
        assert bits(c["a"].numpy()) == data(1)
    with WCodecCheckpoint(tmp_path / "coded", variant="fp16") as c:
        assert bits(c["a"].numpy()) == data(2, "F16")


def test_files_that_are_only_called_as_variants_are_parts(tmp_path: Path) -> None:
    """Of other tensors: nothing is left out in silence."""
    files = {"model.safetensors": one("a", 1), "model.head.safetensors": one("b", 2)}
    encode_directory(fill(tmp_path / "in", files), tmp_path / "coded")
    assert sorted(WCodecCheckpoint(tmp_path / "coded")) == ["a", "b"]
    assert list(WCodecCheckpoint(tmp_path / "coded", variant="head")) == ["b"]


def test_shards_of_a_variant_without_an_index(tmp_path: Path) -> None:
    files = {
        f"model{v}-{n}.safetensors": one(t, i + s)
        for v, s in (("", 1), (".fp16", 5))
        for i, (t, n) in enumerate(zip("ab", NUMBERS, strict=True))
    }
    encode_directory(fill(tmp_path / "in", files), tmp_path / "coded")
    assert first(tmp_path / "coded", "fp16") == data(5)
    with pytest.raises(DecodeError, match=r"bad_name: .*name the variant"):
        WCodecCheckpoint(tmp_path / "coded")


def test_two_indexes(tmp_path: Path) -> None:
    both = sharded("model.safetensors.index.json", "model-{}.safetensors", 1)
    both |= sharded("other.safetensors.index.json", "other-{}.safetensors", 3)
    encode_directory(fill(tmp_path / "in", both), tmp_path / "coded")
    with pytest.raises(
        DecodeError, match=r"bad_value: .* two indexes: model.wcodec.index.json and o"
    ):
        WCodecCheckpoint(tmp_path / "coded")
    two = sharded("model.safetensors.index.fp16.json", "model.fp16-{}.safetensors", 1)
    two |= sharded("model.safetensors.index.bf16.json", "model.bf16-{}.safetensors", 3)
    encode_directory(fill(tmp_path / "in2", two), tmp_path / "coded2")
    with pytest.raises(DecodeError, match=r"two indexes: .*; name the variant"):
        WCodecCheckpoint(tmp_path / "coded2")
    assert first(tmp_path / "coded2", "bf16") == data(3)


def test_compressed_models_load_a_variant(tmp_path: Path) -> None:
    import torch

    files = {"model.safetensors": one("weight", 1), "model.x.safetensors": one("weight", 2)}
    encode_directory(fill(tmp_path / "in", files), tmp_path / "coded")
    layer = torch.nn.Linear(30, 40, bias=False)
    load_compressed(layer, tmp_path / "coded", variant="x")
    assert bits(layer.weight.detach().numpy()) == one("weight", 2)[-4800:]


# ---- names ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("plain", "coded"),
    [
        ("model.safetensors", "model.wcodec"),
        ("model.fp16.safetensors", "model.fp16.wcodec"),
        ("sub.safetensors/m.safetensors.index.json", "sub.safetensors/m.wcodec.index.json"),
        ("m.safetensors.index.v1.0.json", "m.wcodec.index.v1.0.json"),
        ("a.safetensors.b.safetensors.index.x.json", "a.safetensors.b.wcodec.index.x.json"),
        *((i, i.replace("safetensors", "wcodec")) for i, _ in SCHEMES.values()),
    ],
)
def test_endings(plain: str, coded: str) -> None:
    assert with_ending(plain, PLAIN, CODED) == coded
    assert with_ending(coded, CODED, PLAIN) == plain
    assert is_index(plain, PLAIN) == is_index(coded, CODED) == plain.endswith(".json")
    assert not is_index(plain, CODED)
    assert not is_index(coded, PLAIN)


@pytest.mark.parametrize(
    "name",
    ["config.json", "index.json", "model.safetensors.json", "model.bin.index.json",
     "x.safetensors.md", "model.safetensors.index.json.bak", "model.safetensors.index"],
)  # fmt: skip
def test_other_names_stay(name: str) -> None:
    assert not is_index(name, PLAIN)
    assert with_ending(name, PLAIN, CODED) == name


def test_where_weights_are_looked_for() -> None:
    assert file_names("model", PLAIN, None) == ["model.safetensors", "model.safetensors.index.json"]
    assert file_names("model", CODED, "fp16") == [
        "model.fp16.wcodec",
        "model.wcodec.index.fp16.json",
        "model.fp16.wcodec.index.json",
        "model.wcodec.fp16.index.json",
    ]
