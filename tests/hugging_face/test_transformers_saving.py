"""`save_pretrained` writes hub form from both modes, `dequantize` makes a plain model;
dtypes, parts, copies, adapters.
"""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
import transformers
from safetensors import safe_open
from sampling import exhaustive
from tiny_models import MODELS, compressed, dense, inputs, logits, same_state, streams, tokens

from wcodec.torch.resident.models import compress_model, model_memory
from wcodec.transformers import WCodecConfig, WCodecModel

# peft asks for it
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
RESIDENT = {"quantization_config": WCodecConfig(mode="resident")}
MODES = [{}, RESIDENT]
modes = pytest.mark.parametrize("how", MODES, ids=["decoded", "resident"])
DTYPES = [torch.float16, torch.float32, "auto"]


def pairs(*values: Any) -> Any:
    """Each model with each value, these in turn; with all others in `make test-all`."""
    always = [(n, values[i % len(values)]) for i, n in enumerate(MODELS)]
    return always + [exhaustive((n, v)) for n in MODELS for v in values if (n, v) not in always]


def name_of(value: Any) -> str:
    """In a test's id."""
    return str(value) if not isinstance(value, dict) else "resident" if value else "decoded"


@pytest.fixture(scope="module")
def all_forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Directories of all models in bf16, by model and form."""
    return {
        n: tiny_models.directories(tiny_models.make(n, torch.bfloat16), tmp_path_factory.mktemp(n))
        for n in MODELS
    }


def names_in(directory: Path) -> set[str]:
    """Names of all tensors of a directory's safetensors files."""
    found = set[str]()
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as f:
            found |= set(f.keys())
    return found


# ---- saving --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "how"), pairs(*MODES), ids=name_of)
def test_save_and_load(all_forms: Any, name: str, how: Any, tmp_path: Path) -> None:
    """What is saved is in hub form, under the names of the original, and gives the same model.
    Experts are stored one by one again.
    """
    forms, auto = all_forms[name], tiny_models.auto_class(name)
    model = auto.from_pretrained(forms["hub"], **how)
    model.save_pretrained(tmp_path / "saved")
    assert names_in(tmp_path / "saved") == names_in(forms["plain"])
    first, again = streams(forms["hub"]), streams(tmp_path / "saved")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[k], again[k]) for k in first)
    same_state(auto.from_pretrained(tmp_path / "saved"), auto.from_pretrained(forms["plain"]))
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved.pop("quantization_config") == {"quant_method": "wcodec", "format_version": "0.2"}
    assert saved == json.loads((forms["plain"] / "config.json").read_text())
    with safe_open(tmp_path / "saved" / "model.safetensors", framework="pt") as f:
        assert f.metadata() == {"format": "pt", "wcodec": "0.2"}


@pytest.mark.parametrize(("name", "how"), pairs(*reversed(MODES)), ids=name_of)
def test_dequantize(all_forms: Any, name: str, how: Any, tmp_path: Path) -> None:
    """The model is plain then: what is saved is, byte for byte,
    what the uncompressed model saves.
    """
    forms, auto = all_forms[name], tiny_models.auto_class(name)
    model = auto.from_pretrained(forms["hub"], **how)
    assert model.dequantize() is model
    assert not compressed(model)
    assert not hasattr(model, "hf_quantizer")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters()
    }
    assert torch.equal(logits(model, name), logits(auto.from_pretrained(forms["plain"]), name))
    model.save_pretrained(tmp_path / "saved")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "saved" / file).read_bytes() == (forms["plain"] / file).read_bytes()


def test_dequantize_to_a_dtype(all_forms: Any) -> None:
    """With a dtype, weights are cast to it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        all_forms["llama"]["hub"], **RESIDENT
    ).dequantize(torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    same_state(
        model,
        transformers.AutoModelForCausalLM.from_pretrained(all_forms["llama"]["plain"]).to(
            torch.float32
        ),
    )


@modes
def test_shards(all_forms: Any, how: Any, tmp_path: Path) -> None:
    """A model in several files, in each form."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(all_forms["mixtral"]["plain"])
    forms = tiny_models.directories(plain, tmp_path, max_shard_size="100KB")
    assert len(list(forms["wcodec"].glob("*.wcodec"))) > 2
    for model in (
        transformers.AutoModelForCausalLM.from_pretrained(forms["hub"], **how),
        WCodecModel.from_pretrained(forms["wcodec"], **how),
    ):
        same_state(model, plain)
        model.save_pretrained(tmp_path / "saved", max_shard_size="80KB")
        assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 2
        same_state(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), plain)
    (forms["wcodec"] / "model-00001-of-00005.wcodec").unlink()
    with pytest.raises(FileNotFoundError, match="names files that are not there: model-00001"):
        WCodecModel.from_pretrained(forms["wcodec"])


@modes
def test_save_as_the_model_has_it(all_forms: Any, how: Any, tmp_path: Path) -> None:
    """Without the original's names: experts stay stacked.
    Of a model that was decoded nothing is encoded then.
    """
    forms = all_forms["mixtral"]
    model = transformers.AutoModelForCausalLM.from_pretrained(forms["hub"], **how)
    model.save_pretrained(tmp_path / "saved", save_original_format=False)
    assert any(n.endswith("experts.gate_up_proj") for n in names_in(tmp_path / "saved"))
    assert bool(streams(tmp_path / "saved")) == bool(how)
    for mode in MODES:
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", **mode)
        same_state(again, transformers.AutoModelForCausalLM.from_pretrained(forms["plain"]))


@pytest.mark.parametrize(("name", "mode"), pairs("decoded", "resident"))
def test_compress_while_loading(all_forms: Any, name: str, mode: str, tmp_path: Path) -> None:
    """A plain directory, loaded to be compressed:
    held so if that is wanted, and saved in hub form in any case.
    """
    forms, auto = all_forms[name], tiny_models.auto_class(name)
    model = auto.from_pretrained(
        forms["plain"], quantization_config=WCodecConfig(mode, preset="fast")
    )
    assert bool(compressed(model)) == (mode == "resident")
    same_state(model, auto.from_pretrained(forms["plain"]))
    model.save_pretrained(tmp_path)
    assert streams(tmp_path).keys() >= streams(forms["hub"]).keys()
    same_state(auto.from_pretrained(tmp_path), auto.from_pretrained(forms["plain"]))


def test_preset(tmp_path: Path) -> None:
    """The preset says how ``save_pretrained`` compresses."""
    model, sizes = tiny_models.make("llama", torch.bfloat16), {}
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.float().cumsum(0))
    directory = tiny_models.directories(model, tmp_path)["hub"]
    for preset in ("fast", "max"):
        coding = WCodecConfig(preset=preset)
        transformers.AutoModelForCausalLM.from_pretrained(
            directory, quantization_config=coding
        ).save_pretrained(tmp_path / preset)
        sizes[preset] = sum(v.numel() for v in streams(tmp_path / preset).values())
    assert sizes["max"] < 0.9 * sizes["fast"]


# ---- dtypes --------------------------------------------------------------------------------------
@modes
@pytest.mark.parametrize(("name", "dtype"), pairs(*DTYPES), ids=name_of)
def test_dtype(all_forms: Any, name: str, how: Any, dtype: Any) -> None:
    """Weights are cast as plain ones are; those of T5 that must be float32 among float16 ones
    are.
    """
    forms, auto = all_forms[name], tiny_models.auto_class(name)
    plain = auto.from_pretrained(forms["plain"], dtype=dtype)
    assert ({p.dtype for p in plain.parameters()} == {torch.float16, torch.float32}) == (
        name == "t5" and dtype == torch.float16
    )
    for model in (
        auto.from_pretrained(forms["hub"], dtype=dtype, **how),
        WCodecModel.from_pretrained(forms["wcodec"], dtype=dtype, **how),
    ):
        same_state(model, plain)
        assert bool(compressed(model)) == bool(how)
        assert model.config.dtype == plain.config.dtype


@pytest.mark.parametrize(
    "dtype", [exhaustive(torch.bfloat16), torch.float16, exhaustive(torch.float32)], ids=str
)
def test_no_dtype_in_config(dtype: torch.dtype, tmp_path: Path) -> None:
    """Where ``config.json`` names no dtype, it is that of the weights."""
    forms = tiny_models.directories(tiny_models.make("qwen", dtype), tmp_path)
    for directory in forms.values():
        config = json.loads((directory / "config.json").read_text())
        del config["dtype"]
        (directory / "config.json").write_text(json.dumps(config))
    plain = transformers.AutoModelForCausalLM.from_pretrained(forms["plain"])
    assert plain.dtype == dtype
    same_state(transformers.AutoModelForCausalLM.from_pretrained(forms["hub"]), plain)
    for form in forms:
        same_state(WCodecModel.from_pretrained(forms[form]), plain)


def test_cast_afterwards(all_forms: Any) -> None:
    """A decoded model is cast as any other; of one that holds weights compressed,
    transformers refuses ``half``.
    """
    forms = all_forms["bert"]
    plain = transformers.AutoModelForMaskedLM.from_pretrained(forms["plain"])
    for cast in ("half", "float", "double"):
        model = transformers.AutoModelForMaskedLM.from_pretrained(forms["hub"])
        same_state(getattr(model, cast)(), getattr(copy.deepcopy(plain), cast)())
    same_state(
        transformers.AutoModelForMaskedLM.from_pretrained(forms["hub"]).to(torch.float16),
        copy.deepcopy(plain).to(torch.float16),
    )
    resident = transformers.AutoModelForMaskedLM.from_pretrained(forms["hub"], **RESIDENT)
    assert resident.is_quantized
    with pytest.raises(ValueError, match="not supported for quantized model"):
        resident.half()


# ---- what else one does with a model -------------------------------------------------------------
@modes
def test_part_and_whole(all_forms: Any, how: Any) -> None:
    """The model without its head from the whole one,
    and the whole one from weights without a head.
    """
    forms = all_forms["llama"]
    same_state(
        transformers.AutoModel.from_pretrained(forms["hub"], **how),
        transformers.AutoModel.from_pretrained(forms["plain"]),
    )
    model = WCodecModel.from_pretrained(forms["wcodec"], auto_class=transformers.AutoModel, **how)
    same_state(model, transformers.AutoModel.from_pretrained(forms["plain"]))


@modes
def test_tied_weights(all_forms: Any, how: Any) -> None:
    """Tied weights are one and the same, also held compressed."""
    model = transformers.AutoModelForCausalLM.from_pretrained(all_forms["qwen"]["hub"], **how)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    t5 = WCodecModel.from_pretrained(all_forms["t5"]["wcodec"], **how)
    assert t5.encoder.embed_tokens.weight is t5.decoder.embed_tokens.weight is t5.shared.weight
    assert model_memory(t5).n_compressed == len(compressed(t5))


@modes
def test_copies(all_forms: Any, how: Any, tmp_path: Path) -> None:
    """A model can be copied and pickled, and the copy saved."""
    model = transformers.AutoModelForCausalLM.from_pretrained(all_forms["mixtral"]["hub"], **how)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        same_state(other, model)
        assert compressed(other).keys() == compressed(model).keys()
        other.save_pretrained(tmp_path)
        assert streams(tmp_path).keys() == streams(all_forms["mixtral"]["hub"]).keys()


def test_compressed_later(all_forms: Any, tmp_path: Path) -> None:
    """A model that was decoded, and compressed by `compress_model` then, is saved as one that was
    held compressed from the start.
    """
    forms = all_forms["t5"]
    model = compress_model(transformers.AutoModelForSeq2SeqLM.from_pretrained(forms["hub"]))
    model.save_pretrained(tmp_path / "hub")
    assert streams(tmp_path / "hub").keys() == streams(forms["hub"]).keys()
    same_state(transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hub"), model)
    model.dequantize().save_pretrained(tmp_path / "plain")
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() == (
        forms["plain"] / "model.safetensors"
    ).read_bytes()


def adapted(model: Any, *more: str) -> Any:
    """A model with LoRA adapters that do something."""
    modules = ["q_proj", "v_proj", "down_proj", *more]
    torch.manual_seed(3)
    out = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=4, target_modules=modules, init_lora_weights=False, task_type="CAUSAL_LM"
        ),
    )
    return out.train(False)


def test_lora(all_forms: Any) -> None:
    """Adapters on compressed weights get the gradients that they get on plain ones, also with
    checkpoints of activations.
    """
    forms, gradients = all_forms["llama"], []
    for how in ({}, RESIDENT):
        model = adapted(
            transformers.AutoModelForCausalLM.from_pretrained(
                forms["hub" if how else "plain"], **how
            ),
            "embed_tokens",
        )
        ids = inputs("llama")["input_ids"]
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        assert all(n.count("lora_") for n in gradients[-1])
        if how:
            assert compressed(model)
            assert model.base_model.model.hf_quantizer.is_trainable
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert torch.equal(gradient, gradients[1][name]), name


@modes
def test_training(all_forms: Any, how: Any, tmp_path: Path) -> None:
    """`Trainer` takes a decoded model, and a compressed one with adapters on it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(all_forms["llama"]["hub"], **how)
    before = {n: dense(p).clone() for n, p in model.named_parameters()}
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=1, report_to=[], save_strategy="no",
        use_cpu=True, learning_rate=0.1, disable_tqdm=True,
    )  # fmt: skip
    row = inputs("llama")["input_ids"][0]
    rows = [{"input_ids": row, "labels": row}] * 2
    if how:
        with pytest.raises(ValueError, match="attach trainable adapters"):
            transformers.Trainer(model, arguments, train_dataset=rows)
        model = adapted(model)
    transformers.Trainer(model, arguments, train_dataset=rows).train()
    base = model.base_model.model if how else model
    after = {
        n.replace(".base_layer", ""): dense(p)
        for n, p in base.named_parameters()
        if "lora_" not in n
    }
    assert all(torch.equal(before[n], after[n]) for n in before) == bool(how)


@modes
def test_saved_adapters_load_on_top(all_forms: Any, how: Any, tmp_path: Path) -> None:
    """Adapters that were saved load on top of a compressed model, by peft and by transformers."""
    forms = all_forms["llama"]
    adapted(transformers.AutoModelForCausalLM.from_pretrained(forms["plain"])).save_pretrained(
        tmp_path
    )
    plain = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(forms["plain"]), tmp_path
    )
    want = logits(plain, "llama")
    bare = logits(transformers.AutoModelForCausalLM.from_pretrained(forms["plain"]), "llama")
    assert not torch.equal(want, bare)
    base = transformers.AutoModelForCausalLM.from_pretrained(forms["hub"], **how)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(base, tmp_path), "llama"), want)
    one, other = (
        transformers.AutoModelForCausalLM.from_pretrained(forms[f], **h)
        for f, h in (("plain", {}), ("hub", how))
    )
    for model in (one, other):
        model.load_adapter(str(tmp_path))
    assert torch.equal(logits(one, "llama"), logits(other, "llama"))
    assert not torch.equal(logits(one, "llama"), bare)


def test_generation_config(all_forms: Any, tmp_path: Path) -> None:
    """From the wcodec form, a model generates as its ``generation_config.json`` says."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(all_forms["llama"]["plain"])
    plain.generation_config.update(max_new_tokens=5, suppress_tokens=list(range(100)))
    forms = tiny_models.directories(plain, tmp_path)
    model = WCodecModel.from_pretrained(forms["wcodec"])
    assert (
        model.generation_config.to_dict()
        == transformers.AutoModelForCausalLM.from_pretrained(
            forms["hub"]
        ).generation_config.to_dict()
    )
    assert model.generation_config.max_new_tokens == 5
    assert tokens(model, "llama", 8) == tokens(plain, "llama", 8)
