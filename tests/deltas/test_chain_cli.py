"""`wcodec chain`."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest
from inputs import bits, safetensors_bytes
from runs import State, same, steps

import wcodec
from wcodec.cli import main
from wcodec.files.safetensors_header import read_safetensors_header

Capture = pytest.CaptureFixture[str]


def call(capsys: Capture, *args: str) -> tuple[int, str, str]:
    """Exit status and what is printed."""
    capsys.readouterr()
    try:
        status = main(["chain", *args])
    except SystemExit as e:
        status = int(str(e.code))
    out, err = capsys.readouterr()
    return status, out, err


def plain(state: State) -> bytes:
    names = {"bfloat16": "BF16", "int64": "I64", "float32": "F32"}
    return safetensors_bytes(
        [(n, names[a.dtype.name], list(a.shape), bits(a)) for n, a in state.items()],
        {"from": "a test"},
    )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> list[State]:
    """A chain ``run`` of four versions, and the files that they were added from."""
    monkeypatch.chdir(tmp_path)
    states = steps(4)
    for i, state in enumerate(states):
        Path(f"{i}.safetensors").write_bytes(plain(state))
        if i == 2:
            wcodec.encode_safetensors_to_wcodec(f"{i}.safetensors", f"{i}.wcodec")
        file = f"{i}.wcodec" if i == 2 else f"{i}.safetensors"
        status, out, err = call(capsys, "add", "run", file, "--metadata", f"step={i}")
        assert (status, err) == (0, "")
        assert out.startswith(f"run: version {i + 1}, {'delta' if i else 'full'}, ")
    return states


def test_versions_are_listed_and_written(run: list[State], capsys: Capture) -> None:
    status, out, _ = call(capsys, "list", "run")
    assert status == 0
    assert out.splitlines()[0].split() == ["version", "kind", "time", "bytes", "of", "metadata"]
    assert out.splitlines()[3].endswith("from=a test step=2")
    listed = json.loads(call(capsys, "list", "run", "--json")[1])
    assert [v["version"] for v in listed] == [1, 2, 3, 4]
    assert listed[1]["parent"] == 1
    for i, state in enumerate(run):
        assert call(capsys, "get", "run", str(i + 1), "-o", "out.wcodec", "-f")[0] == 0
        assert same(wcodec.load_file("out.wcodec"), state)
        assert call(capsys, "get", "run", str(i + 1), "-o", "out.safetensors", "-f")[0] == 0
        header = read_safetensors_header(memoryview(Path("out.safetensors").read_bytes()))
        assert header.metadata == {"from": "a test", "step": str(i)}
        assert [t.name for t in header.tensors] == list(state)
    status, out, _ = call(capsys, "get", "run", "-o", "newest.wcodec", "--json")
    assert json.loads(out)["version"] == 4
    assert same(wcodec.load_file("newest.wcodec"), run[3])


def test_a_file_comes_back(run: list[State], capsys: Capture) -> None:
    """The same tensors and metadata, by the content SHA-256; of float4 too."""
    data = safetensors_bytes([("w", "F4", [10, 40], bytes(range(200)))], {"a": "b"})
    Path("float4.safetensors").write_bytes(data)
    for name in ("float4", "0"):
        assert call(capsys, "add", f"{name}.run", f"{name}.safetensors")[0] == 0
        for out in ("back.safetensors", "back.wcodec"):
            assert call(capsys, "get", f"{name}.run", "-f", "-o", out)[0] == 0
            due = wcodec.content_sha256(f"{name}.safetensors")
            assert wcodec.content_sha256(out) == due


def test_chains_are_verified_pruned_and_packed(run: list[State], capsys: Capture) -> None:
    status, out, _ = call(capsys, "verify", "run", "--json")
    assert status == 0
    assert json.loads(out)["n_versions"] == 4
    assert call(capsys, "pack", "run", "3")[1].startswith("run: version 3, full, ")
    status, out, _ = call(capsys, "prune", "run", "--keep-last", "1", "--keep", "2,3")
    assert out.startswith("run: 1 version and 0 files removed, ")
    assert [v["version"] for v in json.loads(call(capsys, "list", "run", "--json")[1])] == [2, 3, 4]
    assert call(capsys, "prune", "run", "--keep-every", "3", "-q")[:2] == (0, "")
    assert call(capsys, "verify", "run")[1].startswith("run: good, 2 versions, ")
    status, out, _ = call(capsys, "add", "run", "0.safetensors", "--full")
    assert out.startswith("run: version 5, full, ")


def test_what_is_refused(run: list[State], capsys: Capture) -> None:
    assert run

    def refused(status: int, text: str, *args: str) -> None:
        found, out, err = call(capsys, *args)
        assert (found, out) == (status, "")
        assert text in err
        assert status == 2 or err.count("\n") == 1

    Path("out.wcodec").write_bytes(b"mine")
    refused(1, "output_exists", "get", "run", "-o", "out.wcodec")
    assert Path("out.wcodec").read_bytes() == b"mine"
    refused(2, "a directory", "get", "run", "-o", "run", "-f")
    refused(1, "bad_option: in 'run': the chain has no version 9", "get", "run", "9", "-o", "x")
    refused(1, "the chain has no version 9", "prune", "run", "--keep", "9")
    refused(1, "the chain has no version 9", "pack", "run", "9")
    refused(2, "say what to keep", "prune", "run")
    refused(2, "'0' is not a whole number from 1", "prune", "run", "--keep", "3,0")
    refused(2, "is not of the form KEY=VALUE", "add", "run", "0.safetensors", "--metadata", "x")
    refused(1, "none/chain.json: No such file", "list", "none")
    refused(1, "none.safetensors: No such file", "add", "run", "none.safetensors")
    refused(1, "bad_magic: in '", "add", "run", "run/chain.json")
    wcodec.encode_safetensors_to_wcodec("0.safetensors", "hub.safetensors", form="hub")
    refused(1, "bad_source: in 'hub.safetensors': it is in hub", "add", "run", "hub.safetensors")
    refused(2, "nonsense", "list", "nonsense://x")
    refused(2, "ACTION")
    assert sorted(p.name for p in Path().glob("x*")) == []
    Path("run/chain.json").write_text("{}")
    for action in (["list"], ["verify"], ["pack"]):
        refused(1, "bad_magic: in 'run/chain.json'", *action, "run")


def test_at_a_url(run: list[State], capsys: Capture) -> None:
    url = "memory://cli/run"
    for i in range(3):
        assert call(capsys, "add", url, f"{i}.safetensors")[0] == 0
    assert call(capsys, "verify", url)[1].startswith(f"{url}: good, 3 versions")
    assert call(capsys, "get", url, "2", "-o", "two.wcodec")[0] == 0
    assert same(wcodec.load_file("two.wcodec"), run[1])
    fsspec.filesystem("memory").rm("/cli", recursive=True)
