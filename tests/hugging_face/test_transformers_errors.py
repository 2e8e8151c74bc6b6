"""What is damaged, too new, missing or not to be had is refused with its name; what only looks like
a stream is not one; placement.
"""

from __future__ import annotations

import importlib
import itertools
import json
import re
import shutil
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sampling import exhaustive, sampled
from tiny_models import compressed, logits, same_state, streams
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

import wcodec.torch
from wcodec import DecodeError, EncodeError
from wcodec.directories.decoding import decode_directory
from wcodec.reference.container import HEADER
from wcodec.transformers import WCodecConfig, WCodecHfQuantizer, WCodecModel

RESIDENT = {"quantization_config": WCodecConfig(mode="resident")}
modes = pytest.mark.parametrize("how", [{}, RESIDENT], ids=["decoded", "resident"])


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Directories of two models in bf16, by model and form."""
    return {
        n: tiny_models.directories(tiny_models.make(n, torch.bfloat16), tmp_path_factory.mktemp(n))
        for n in ("llama", "mixtral", "t5")
    }


def edit(directory: Path, **changes: Any) -> None:
    """Change keys of ``config.json``; ``None`` takes one away."""
    config = {**json.loads((directory / "config.json").read_text()), **changes}
    (directory / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if v is not None})
    )


def damage(source: Path, target: Path, name: str, where: str) -> Path:
    """A copy of a directory in hub form in which one byte of a stream is another."""
    shutil.copytree(source, target)
    path = target / "model.safetensors"
    tensors = load_file(path)
    stream = tensors[name].clone()
    stream[{"magic": 3, "version": 10, "payload": 200, "index": stream.numel() - 100}[where]] ^= (
        0x10
    )
    if where == "version":  # as a newer wcodec would write it
        crc = zlib.crc32(stream[: HEADER.size - 4].numpy()).to_bytes(4, "little")
        stream[HEADER.size - 4 : HEADER.size] = torch.tensor(list(crc), dtype=torch.uint8)
    with safe_open(path, framework="pt") as f:
        metadata = f.metadata()
    save_file({**tensors, name: stream}, path, metadata)
    return target


# ---- damaged -------------------------------------------------------------------------------------
DAMAGED = {
    "llama": "model.layers.1.mlp.up_proj.weight",
    "mixtral": "model.layers.0.block_sparse_moe.experts.2.w3.weight",
}
PLACES = ["payload", "index", "version"]


@pytest.mark.parametrize(
    ("model", "where", "threads", "how"),
    sampled(itertools.product(DAMAGED, PLACES, [True, False], [{}, RESIDENT]), always=8),
)
def test_damaged_stream(
    forms: Any,
    model: str,
    where: str,
    threads: bool,
    how: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`DecodeError` with the tensor's name, in whatever way it is loaded;
    no model with made-up weights.
    """
    name = DAMAGED[model]
    if not threads:
        monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    directory = damage(forms[model]["hub"], tmp_path / "bad", name, where)
    for load in (AutoModelForCausalLM, WCodecModel):
        with pytest.raises(DecodeError) as e:
            load.from_pretrained(directory, **how)
        assert e.value.tensor == name
        codes = {"payload": "bad_checksum", "index": "bad_checksum"}
        assert e.value.code == codes.get(where, "unsupported_version")


@modes
def test_damaged_file(forms: Any, how: Any, tmp_path: Path) -> None:
    """The same of the wcodec form; a file that is cut short is refused."""
    for directory in ("bad", "short"):
        shutil.copytree(forms["llama"]["wcodec"], tmp_path / directory)
    data = bytearray((tmp_path / "bad" / "model.wcodec").read_bytes())
    (tmp_path / "short" / "model.wcodec").write_bytes(data[: len(data) // 2])
    data[len(data) // 2] ^= 1
    (tmp_path / "bad" / "model.wcodec").write_bytes(data)
    with pytest.raises(DecodeError, match="bad_checksum") as e:
        WCodecModel.from_pretrained(tmp_path / "bad", **how)
    assert e.value.tensor
    assert e.value.tensor.startswith("model.layers")
    with pytest.raises(DecodeError):
        WCodecModel.from_pretrained(tmp_path / "short", **how)


@modes
def test_without_magic(forms: Any, how: Any, tmp_path: Path) -> None:
    """A stream without its magic is a plain tensor, whose shape does not fit:
    transformers refuses it.
    """
    directory = damage(
        forms["llama"]["hub"], tmp_path / "bad", "model.layers.1.mlp.up_proj.weight", "magic"
    )
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(directory, **how)


@modes
def test_mismatched_sizes(forms: Any, how: Any, tmp_path: Path) -> None:
    """A model of other sizes than its weights is refused, or gets new weights,
    as with plain ones.
    """
    for form in ("hub", "plain"):  # a plain one is compressed while it is loaded
        shutil.copytree(forms["llama"][form], tmp_path / form)
        edit(tmp_path / form, vocab_size=400)
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            AutoModelForCausalLM.from_pretrained(tmp_path / form, **how)
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / form, ignore_mismatched_sizes=True, **how
        )
        assert model.lm_head.weight.shape == (400, 64)
        kept = AutoModel.from_pretrained(forms["llama"]["plain"]).layers[1].mlp.up_proj.weight
        assert torch.equal(tiny_models.dense(model.model.layers[1].mlp.up_proj.weight), kept)


# ---- versions and configurations -----------------------------------------------------------------
@pytest.mark.parametrize(
    ("version", "code"),
    [("0.3", "unsupported_version"), ("1.0", "unsupported_version"), ("two", "bad_value")],
)
def test_newer_version(forms: Any, version: str, code: str, tmp_path: Path) -> None:
    """A directory that a newer wcodec wrote is refused, with both versions;
    its configuration alone can be read.
    """
    shutil.copytree(forms["llama"]["hub"], tmp_path / "new")
    edit(
        tmp_path / "new",
        quantization_config={"quant_method": "wcodec", "format_version": version, "unheard_of": 1},
    )
    transformers.AutoConfig.from_pretrained(tmp_path / "new")
    for load in (AutoModelForCausalLM, WCodecModel):
        with pytest.raises(DecodeError, match=version) as e:
            load.from_pretrained(tmp_path / "new")
        assert e.value.code == code
        assert code != "unsupported_version" or "0.2" in str(e.value)


def test_config() -> None:
    """What is stored says nothing of how to load; keys of others are left alone;
    options are checked.
    """
    config = WCodecConfig(mode="resident", preset="max", dtype="bfloat16")
    assert config.to_dict() == {
        "quant_method": "wcodec",
        "format_version": "0.2",
        "dtype": "bfloat16",
    }
    again = WCodecConfig.from_dict({**config.to_dict(), "mode": "resident", "other": 3})
    assert (again.mode, again.dtype, again.preset) == ("resident", "bfloat16", "default")
    assert WCodecConfig.from_dict({}, return_unused_kwargs=True, preset="fast", x=1)[1] == {"x": 1}
    with pytest.raises(EncodeError, match="preset"):
        WCodecConfig(preset="best")
    with pytest.raises(TypeError):
        WCodecConfig(residnet=True)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("entry", "mode", "operand"),
    [
        ({}, "decoded", None),
        ({"resident": False}, "decoded", None),
        ({"resident": False, "fused": False}, "decoded", None),
        ({"resident": True}, "resident", None),
        ({"resident": True, "fused": False}, "resident", None),
        ({"resident": True, "fused": True}, "fused", None),
        ({"resident": True, "fused": "fixed"}, "fused", "fixed"),
        ({"resident": True, "fused": "rans"}, "fused", "rans"),
        ({"mode": "fused"}, "fused", None),
        ({"mode": "fused", "operand": "rans"}, "fused", "rans"),
        ({"mode": "decoded", "operand": None}, "decoded", None),
    ],
)
def test_words_of_earlier_versions(entry: Any, mode: str, operand: str | None) -> None:
    """An entry of ``config.json`` that says ``resident`` and ``fused`` means what it did."""
    config = WCodecConfig.from_dict({"quant_method": "wcodec", "format_version": "0.2", **entry})
    assert (config.mode, config.operand) == (mode, operand)
    assert config.get_loading_attributes() == {
        "mode": mode,
        "operand": operand,
        "preset": "default",
    }


@pytest.mark.parametrize(
    "entry",
    [
        {"fused": True},
        {"resident": False, "fused": "rans"},
        {"resident": True, "fused": "other"},
        {"mode": "other"},
        {"mode": "resident", "operand": "rans"},
    ],
)
def test_words_that_mean_nothing(entry: Any) -> None:
    with pytest.raises(EncodeError, match="bad_option"):
        WCodecConfig.from_dict({"quant_method": "wcodec", "format_version": "0.2", **entry})


def test_mode_in_config(forms: Any, tmp_path: Path) -> None:
    """``config.json`` may say that weights stay compressed; the caller's word counts more.
    Nothing is printed about it.
    """
    shutil.copytree(forms["llama"]["hub"], tmp_path / "hub")
    entry = {"quant_method": "wcodec", "format_version": "0.2"}
    for words in ({"resident": True, "fused": True}, {"mode": "fused"}):
        edit(tmp_path / "hub", quantization_config={**entry, **words})
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "hub")
        assert {p.mode for p in compressed(model).values()} == {"fused"}
    assert not compressed(
        AutoModelForCausalLM.from_pretrained(tmp_path / "hub", quantization_config=WCodecConfig())
    )


def test_dtype_of_streams_alone(forms: Any, tmp_path: Path) -> None:
    """Where nothing says which dtype a model has, the one to ask for it is the caller; what
    ``config.json`` says of it counts.
    """
    shutil.copytree(forms["t5"]["hub"], tmp_path / "hub")
    edit(tmp_path / "hub", dtype=None)
    path = tmp_path / "hub" / "model.safetensors"
    save_file(
        {k: v for k, v in load_file(path).items() if k in streams(tmp_path / "hub")},
        path,
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match="which dtype"):
        # does not know where it is
        transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "hub")
    t5 = transformers.T5ForConditionalGeneration
    assert t5.from_pretrained(tmp_path / "hub", dtype=torch.float32).dtype == torch.float32
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hub").dtype == torch.bfloat16
    edit(
        tmp_path / "hub",
        quantization_config={
            "quant_method": "wcodec",
            "format_version": "0.2",
            "dtype": "bfloat16",
        },
    )
    assert t5.from_pretrained(tmp_path / "hub").dtype == torch.bfloat16


# ---- what is missing -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        (
            "torch",
            None,
            "needs PyTorch and transformers, and torch is missing: "
            "pip install 'wcodec[transformers]'",
        ),
        ("transformers", None, "and transformers is missing: pip install 'wcodec[transformers]'"),
        ("transformers", SimpleNamespace(__version__="4.57.1"), "5.16 or later"),
    ],
)
def test_missing_packages(
    name: str, module: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to install is said."""
    for loaded in [n for n in sys.modules if n.startswith("wcodec.transformers")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ImportError, match=rf"^wcodec\.transformers .*{re.escape(message)}"):
        importlib.import_module("wcodec.transformers")


def test_model_class(forms: Any, tmp_path: Path) -> None:
    """Which class a model has must be clear, and options must not say two things."""
    with pytest.raises(TypeError, match=r"from_pretrained\(directory\)"):
        WCodecModel()
    with pytest.raises(ValueError, match="AutoModelForImageClassification has no class for it"):
        WCodecModel.from_pretrained(
            forms["llama"]["hub"], auto_class=transformers.AutoModelForImageClassification
        )
    with pytest.raises(ValueError, match="stand in the quantization_config"):
        WCodecModel.from_pretrained(forms["llama"]["hub"], mode="resident", **RESIDENT)
    shutil.copytree(forms["llama"]["wcodec"], tmp_path / "unnamed")
    edit(tmp_path / "unnamed", architectures=None)
    with pytest.raises(ValueError, match=r"config\.json names none"):
        WCodecModel.from_pretrained(tmp_path / "unnamed")
    model = WCodecModel.from_pretrained(tmp_path / "unnamed", auto_class=AutoModelForCausalLM)
    assert type(model) is transformers.LlamaForCausalLM


def test_loader_options(forms: Any, tmp_path: Path) -> None:
    """Options of transformers work on the wcodec form:
    a subfolder, a variant, the report, changes of the configuration.
    """
    shutil.copytree(forms["llama"]["wcodec"], tmp_path / "sub")
    (tmp_path / "sub" / "model.wcodec").rename(tmp_path / "sub" / "model.x.wcodec")
    model, report = WCodecModel.from_pretrained(
        tmp_path, subfolder="sub", variant="x", output_loading_info=True, output_attentions=True
    )
    assert not any(report.values())
    assert model.config.output_attentions
    assert model.config.name_or_path == str(tmp_path)
    same_state(model, AutoModelForCausalLM.from_pretrained(forms["llama"]["plain"]))
    renamed = AutoModelForCausalLM.from_pretrained(
        forms["llama"]["hub"], key_mapping={"weight": "something_else"}
    )
    # the loader takes such a name back, and with it the converter that it found
    same_state(renamed, model)
    plain = WCodecModel.from_pretrained(forms["llama"]["plain"])
    assert not hasattr(plain, "hf_quantizer")
    same_state(plain, model)


CODE = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel

class OwnConfig(PreTrainedConfig):
    model_type = "own"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(64, 64, bias=False)
        self.lstm = torch.nn.LSTM(64, 64)
        self.register_buffer("bytes", torch.zeros(40, dtype=torch.uint8))
        self.register_buffer("looks_like_one", torch.zeros(40, dtype=torch.uint8))
        self.register_buffer("table", torch.zeros(64, 64))
        self.post_init()
    def _init_weights(self, module):
        pass
    def forward(self, x):
        return self.lstm(self.linear(x) + self.table)[0]
"""


@modes
def test_code_of_its_own(how: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose code lies beside it, with uint8 buffers, one of which looks like a stream:
    it comes back as it was.
    """
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "modeling_own.py").write_text(CODE)
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    (tmp_path / "code" / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": own})
    )
    config = transformers.AutoConfig.from_pretrained(tmp_path / "code", trust_remote_code=True)
    model = AutoModel.from_config(config, trust_remote_code=True)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.table.normal_()
    model.bytes += 7
    model.looks_like_one[:] = torch.from_numpy(
        np.frombuffer(b"\x89WCODEC\n" + bytes(32), np.uint8).copy()
    )
    model.save_pretrained(tmp_path / "plain")
    x = torch.randn(64, 64)
    want = model(x)
    assert not bool(want.isnan().any())
    for form, load in (
        ("hub", AutoModel),
        ("hub", WCodecModel),
        ("wcodec", WCodecModel),
        ("plain", WCodecModel),
    ):
        if form != "plain" and not (tmp_path / form).exists():
            tiny_models.encode(tmp_path / "plain", tmp_path / form, form)
        other = load.from_pretrained(tmp_path / form, trust_remote_code=True, **how)
        same_state(other, model)
        assert torch.equal(other(x), want)
        assert set(compressed(other)) == ({"linear.weight"} if how else set())
        other.save_pretrained(tmp_path / "saved")
        same_state(AutoModel.from_pretrained(tmp_path / "saved", trust_remote_code=True), model)
        with pytest.raises(ValueError, match="trust_remote_code"):
            load.from_pretrained(tmp_path / form, trust_remote_code=False, **how)
    for form in ("plain", "hub"):  # bytes where the model has float32: they are cast
        path = tmp_path / form / "model.safetensors"
        save_file(
            {**load_file(path), "lstm.bias_ih_l0": torch.arange(256).to(torch.uint8)},
            path,
            {"format": "pt"},
        )
    want, other = (
        AutoModel.from_pretrained(tmp_path / f, trust_remote_code=True, **h)
        for f, h in (("plain", {}), ("hub", how))
    )
    assert want.lstm.bias_ih_l0.dtype == torch.float32
    same_state(other, want)


# ---- placement -----------------------------------------------------------------------------------
@modes
@pytest.mark.parametrize("device_map", ["auto", exhaustive("cpu"), {"": "cpu"}], ids=str)
def test_device_map(forms: Any, how: Any, device_map: Any) -> None:
    """accelerate places a model as it places a plain one."""
    plain = AutoModelForCausalLM.from_pretrained(forms["mixtral"]["plain"], device_map=device_map)
    want = logits(plain, "mixtral")
    for form, load in (("hub", AutoModelForCausalLM), ("wcodec", WCodecModel)):
        model = load.from_pretrained(forms["mixtral"][form], device_map=device_map, **how)
        assert getattr(model, "hf_device_map", None) == getattr(plain, "hf_device_map", None)
        assert bool(compressed(model)) == bool(how)
        assert torch.equal(logits(model, "mixtral"), want)


@pytest.mark.parametrize("form", ["hub", "wcodec"])
def test_offload(forms: Any, form: str, tmp_path: Path) -> None:
    """Weights on disk are written there decoded, and saved again coded;
    held compressed they cannot be there.
    """
    device_map = {
        "model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu",
        "model.layers.1": "disk", "model.norm": "cpu", "lm_head": "disk",
    }  # fmt: skip
    how = {"device_map": device_map, "offload_folder": tmp_path / "offload"}
    load = AutoModelForCausalLM if form == "hub" else WCodecModel
    model = load.from_pretrained(forms["mixtral"][form], **how)
    assert model.lm_head.weight.is_meta
    assert torch.equal(
        logits(model, "mixtral"),
        logits(AutoModelForCausalLM.from_pretrained(forms["mixtral"]["plain"]), "mixtral"),
    )
    with pytest.warns(UserWarning, match="offloaded modules"):
        model.save_pretrained(tmp_path / "saved")
    assert streams(tmp_path / "saved").keys() == streams(forms["mixtral"]["hub"]).keys()
    same_state(
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved"),
        AutoModelForCausalLM.from_pretrained(forms["mixtral"]["plain"]),
    )
    with pytest.raises(
        ValueError, match="mode 'resident' holds all weights compressed on the devices that compute"
    ):
        load.from_pretrained(forms["mixtral"][form], **how, **RESIDENT)


def test_parts() -> None:
    """Weights in hub form cannot be cut for several processes; the message says what can be."""
    quantizer = WCodecHfQuantizer(WCodecConfig())
    for plan in (None, SimpleNamespace(tp_size=1, fsdp_size=None)):
        quantizer._process_model_before_weight_loading(
            SimpleNamespace(config=SimpleNamespace(distributed_config=plan))
        )
    with pytest.raises(ValueError, match=r"tp_size=2.*wcodec\.torch\.load_shard"):
        quantizer._process_model_before_weight_loading(
            SimpleNamespace(config=SimpleNamespace(distributed_config=SimpleNamespace(tp_size=2)))
        )


@pytest.mark.skipif(
    transformers.__version__ == "5.16.0", reason="it loads no such model, not a plain one either"
)
def test_another_quantization(forms: Any, tmp_path: Path) -> None:
    """A model that is quantized by another method is loaded from the wcodec form, decoded,
    by that method.
    """
    fp8 = transformers.FineGrainedFP8Config(weight_block_size=(32, 32), dequantize=True)
    plain = AutoModelForCausalLM.from_pretrained(forms["llama"]["plain"])
    shutil.copytree(forms["llama"]["plain"], tmp_path / "plain")
    weights, scales = load_file(tmp_path / "plain" / "model.safetensors"), {}
    for name in [n for n in weights if "_proj" in n]:
        weights[name] = weights[name].float().clamp(-440, 440).to(torch.float8_e4m3fn)
        scales[f"{name}_scale_inv"] = (
            torch.rand(weights[name].shape[0] // 32, weights[name].shape[1] // 32) + 0.5
        )
    save_file({**weights, **scales}, tmp_path / "plain" / "model.safetensors", {"format": "pt"})
    edit(tmp_path / "plain", quantization_config={**fp8.to_dict(), "dequantize": True})
    tiny_models.encode(tmp_path / "plain", tmp_path / "wcodec", "wcodec")
    want = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=fp8)
    same_state(WCodecModel.from_pretrained(tmp_path / "wcodec", quantization_config=fp8), want)
    assert not torch.equal(
        want.model.layers[0].mlp.up_proj.weight, plain.model.layers[0].mlp.up_proj.weight
    )
    with pytest.raises(ValueError, match="does not go together with another quantization"):
        WCodecModel.from_pretrained(tmp_path / "wcodec", mode="resident")


# ---- wcodec's own commands on what transformers wrote --------------------------------------------
@modes
def test_decode_what_was_saved(forms: Any, how: Any, tmp_path: Path) -> None:
    """`decode_directory` makes a plain directory of one that ``save_pretrained`` wrote."""
    AutoModelForCausalLM.from_pretrained(forms["mixtral"]["hub"], **how).save_pretrained(
        tmp_path / "saved"
    )
    decode_directory(tmp_path / "saved", tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    model, want = (
        AutoModelForCausalLM.from_pretrained(d)
        for d in (tmp_path / "plain", forms["mixtral"]["plain"])
    )
    assert not hasattr(model, "hf_quantizer")
    same_state(model, want)


# ---- indexes of strangers ------------------------------------------------------------------------
@pytest.fixture
def sharded(forms: Any, tmp_path: Path) -> Path:
    """The wcodec form of a model in several shards."""
    model = transformers.AutoModelForCausalLM.from_pretrained(forms["llama"]["plain"])
    found = tiny_models.directories(model, tmp_path, max_shard_size="100KB")
    assert len(list(found["wcodec"].glob("*.wcodec"))) > 1
    return found["wcodec"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": 5}}',
        '{"weight_map": [1]}',
        "[" * 9999,
    ],
)
def test_an_index_that_is_none(sharded: Path, text: str) -> None:
    (sharded / "model.wcodec.index.json").write_text(text)
    with pytest.raises(DecodeError, match=r"bad_value|bad_name"):
        WCodecModel.from_pretrained(sharded)


@pytest.mark.parametrize("place", ["../elsewhere/", "{tmp}/elsewhere/"])
def test_an_index_that_names_a_path(sharded: Path, tmp_path: Path, place: str) -> None:
    shutil.copytree(sharded, tmp_path / "elsewhere")
    index = sharded / "model.wcodec.index.json"
    index.write_text(
        index.read_text().replace('"model-00001', f'"{place.format(tmp=tmp_path)}model-00001')
    )
    with pytest.raises(DecodeError, match="bad_name"):
        WCodecModel.from_pretrained(sharded)


def test_a_tensor_in_another_shard_than_the_index_says(sharded: Path) -> None:
    """The index decides between two of one name, and is wrong if the shard has none."""
    plain = WCodecModel.from_pretrained(sharded)
    index = json.loads((sharded / "model.wcodec.index.json").read_text())
    name = "lm_head.weight"
    other = next(
        f for n, f in sorted(index["weight_map"].items()) if f != index["weight_map"][name]
    )
    tensors = wcodec.torch.load_file(sharded / other)
    wcodec.torch.save_file(
        {**tensors, name: torch.zeros_like(plain.lm_head.weight)}, sharded / other
    )
    tiny_models.same_state(WCodecModel.from_pretrained(sharded), plain)
    index["weight_map"]["model.norm.weight"] = (
        other if index["weight_map"]["model.norm.weight"] != other else index["weight_map"][name]
    )
    (sharded / "model.wcodec.index.json").write_text(json.dumps(index))
    with pytest.raises(DecodeError, match=r"bad_range.*'model\.norm\.weight'"):
        WCodecModel.from_pretrained(sharded)


def test_a_configuration_of_the_caller_stays_as_it_is(forms: Any) -> None:
    config = transformers.AutoConfig.from_pretrained(forms["llama"]["plain"])
    before = config.to_dict()
    WCodecModel.from_pretrained(forms["llama"]["wcodec"], config=config, mode="resident")
    assert config.to_dict() == before
    with pytest.raises(ValueError, match="nothing of a plain model is: give mode"):
        WCodecModel.from_pretrained(forms["llama"]["plain"], preset="max")
    with pytest.raises(DecodeError, match=r"bad_value.*nonsense"):
        WCodecConfig(dtype="nonsense")
