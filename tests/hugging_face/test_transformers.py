"""Models from compressed weights say what they say from plain ones: the same bits of logits, the
same tokens, in each form and mode.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from sampling import exhaustive
from test_real_weights import PACKAGES, packaged
from tiny_models import MODELS, compressed, logits, same_state, streams, tokens
from transformers import AutoModel, AutoTokenizer

from wcodec.errors import EncodeError
from wcodec.torch.resident.models import model_memory
from wcodec.transformers import WCodecConfig, WCodecModel

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
CASES: list[Any] = [*((name, "bf16", 12) for name in MODELS), ("t5", "fp16", 12)]
CASES += [exhaustive(((name, dtype, 64),)) for dtype in DTYPES for name in MODELS]


class Case:
    """A model in all forms, and what it says uncompressed, in so many tokens."""

    def __init__(self, name: str, dtype: str, n_tokens: int, folder: Path) -> None:
        self.name = name
        self.auto = tiny_models.auto_class(name)
        self.least = MODELS[name][3]
        self.n_tokens = n_tokens
        self.directories = tiny_models.directories(tiny_models.make(name, DTYPES[dtype]), folder)
        self.plain = {
            a: self.auto.from_pretrained(self.directories["plain"], attn_implementation=a)
            for a in ("eager", "sdpa")
        }
        self.logits = {a: logits(m, name) for a, m in self.plain.items()}
        self.tokens = tokens(self.plain["sdpa"], name, n_tokens) if name != "bert" else None

    def load(self, form: str, mode: str, **how: Any) -> Any:
        """From a form: by the auto class where that can, else by `WCodecModel`."""
        if form == "wcodec":
            return WCodecModel.from_pretrained(self.directories[form], mode=mode, **how)
        coding = {"quantization_config": WCodecConfig(mode=mode)} if mode != "decoded" else {}
        return self.auto.from_pretrained(self.directories[form], **coding, **how)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Each model in each precision."""
    name, dtype, n_tokens = request.param
    return Case(name, dtype, n_tokens, tmp_path_factory.mktemp(name))


def test_weights_are_coded(case: Case) -> None:
    """What is compared below is compressed: nearly all of each model is in streams."""
    found = streams(case.directories["hub"])
    assert len(found) >= case.least
    total, plain = (
        sum(f.stat().st_size for f in case.directories[d].glob("*.safetensors"))
        for d in ("hub", "plain")
    )
    assert total < 0.95 * plain


@pytest.mark.parametrize("form", ["hub", "wcodec"])
def test_decoded_while_loading(case: Case, form: str) -> None:
    """The model is an ordinary one, with the same weights; logits and tokens are the same."""
    model = case.load(form, mode="decoded")
    assert type(model) is type(case.plain["sdpa"])
    assert not compressed(model)
    assert not model.is_quantized
    assert all(p.requires_grad for p in model.parameters())
    same_state(model, case.plain["sdpa"])
    assert torch.equal(logits(model, case.name), case.logits["sdpa"])
    if case.tokens is not None and form == "hub":
        assert tokens(model, case.name, case.n_tokens) == case.tokens


@pytest.mark.parametrize("form", ["hub", "wcodec", "plain"])
def test_resident(case: Case, form: str) -> None:
    """The weights are held compressed, also if they were stored plain;
    logits and tokens are the same.
    """
    model = case.load(form, mode="resident")
    assert type(model) is type(case.plain["sdpa"])
    assert model_memory(model).held < 0.96 * model_memory(model).dense
    same_state(model, case.plain["sdpa"])
    assert torch.equal(logits(model, case.name), case.logits["sdpa"])
    if case.tokens is not None and form == "hub":
        assert tokens(model, case.name, case.n_tokens) == case.tokens


def test_resident_weights(case: Case) -> None:
    """All weights that are worth it are held compressed, stacked experts as well;
    tied ones stay one.
    """
    held = compressed(case.load("hub", mode="resident"))
    plain = dict(case.plain["sdpa"].named_parameters())
    large = {n for n, p in plain.items() if p.dim() >= 2 and p.numel() * p.element_size() > 8000}
    assert large <= held.keys() <= {n for n, p in plain.items() if p.dim() >= 2}
    assert not any(p.requires_grad for p in held.values())


@pytest.mark.parametrize("mode", ["decoded", "resident"])
def test_eager_attention(case: Case, mode: str) -> None:
    """The same with the other attention."""
    model = case.load("hub", mode, attn_implementation="eager")
    assert torch.equal(logits(model, case.name), case.logits["eager"])


# ---- real weights --------------------------------------------------------------------------------
SENTENCES = ["Weights are numbers with a long tail of small ones.", "The same sentence again."]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The published all-MiniLM-L6-v2 in all forms."""
    source = packaged(PACKAGES["fp32"], ".safetensors").parent
    folder = tmp_path_factory.mktemp("minilm")
    shutil.copytree(source, folder / "plain", symlinks=False)
    return {"plain": folder / "plain"} | {
        f: tiny_models.encode(folder / "plain", folder / f, f) for f in ("hub", "wcodec")
    }


@torch.no_grad()
def embed(model: Any, directory: Path) -> torch.Tensor:
    """The mean of the last hidden states."""
    given = AutoTokenizer.from_pretrained(directory)(SENTENCES, padding=True, return_tensors="pt")
    hidden, mask = model(**given).last_hidden_state, given["attention_mask"][..., None]
    out: torch.Tensor = (hidden * mask).sum(1) / mask.sum(1)
    return out


def test_minilm(minilm: dict[str, Path]) -> None:
    """Sentences are embedded identically, in both modes, from each form;
    ``config.json`` names no dtype.
    """
    plain = AutoModel.from_pretrained(minilm["plain"])
    want = embed(plain, minilm["plain"])
    assert want.shape == (2, 384)
    for mode in ("decoded", "resident"):
        coding = WCodecConfig(mode)
        for directory, load in ((minilm["hub"], AutoModel), (minilm["wcodec"], WCodecModel)):
            model = load.from_pretrained(directory, quantization_config=coding)
            assert type(model) is transformers.BertModel
            assert bool(compressed(model)) == (mode == "resident")
            assert torch.equal(embed(model, directory), want)


@pytest.mark.parametrize("name", [exhaustive("llama"), "mixtral", "t5"])
def test_fused(name: str, tmp_path: Path) -> None:
    """Matrices are multiplied as they are decoded:
    the same weights, and logits as close as sums in another order are.
    """
    case = Case(name, "bf16", 4, tmp_path)
    coding = {"quantization_config": WCodecConfig(mode="fused")}
    models = [
        case.auto.from_pretrained(case.directories["hub"], **coding),
        case.auto.from_pretrained(case.directories["plain"], **coding),
        WCodecModel.from_pretrained(case.directories["wcodec"], mode="fused"),
    ]
    for model in models:
        same_state(model, case.plain["sdpa"])
        assert compressed(model)
        assert all(p.mode == "fused" for p in compressed(model).values())
        due = case.logits["sdpa"].float()
        assert (logits(model, name).float() - due).abs().max() <= 0.02 * due.abs().max()
    models[0].save_pretrained(tmp_path / "again")
    same_state(case.auto.from_pretrained(tmp_path / "again"), case.plain["sdpa"])
    for more in ({"mode": "fused"}, {"mode": "fused", "operand": "rans"}, {"preset": "max"}):
        with pytest.raises(ValueError, match="give them there"):
            WCodecModel.from_pretrained(case.directories["hub"], **more, **coding)
    with pytest.raises(EncodeError, match="needs mode='fused', not 'decoded'"):
        WCodecModel.from_pretrained(case.directories["hub"], operand="rans")
    with pytest.raises(TypeError, match="resident"):
        WCodecModel.from_pretrained(case.directories["hub"], resident=True)
