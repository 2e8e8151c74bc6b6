"""No file of a user is lost: every function and subcommand that writes, with outputs that exist,
and that are inputs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inputs import BY_NAME, bits, make_array, safetensors_bytes
from test_cli import call

import wcodec
from wcodec.backends import use_backend
from wcodec.directories.decoding import decode_directory
from wcodec.directories.encoding import encode_directory, encode_one
from wcodec.directories.hub_reading import decode_hub_file
from wcodec.directories.hub_writing import encode_hub_file
from wcodec.directories.resumable import STATE
from wcodec.errors import EncodeError
from wcodec.files.atomic import atomic_output
from wcodec.files.checkpoint import decode_file, encode_file
from wcodec.files.repack import repack_file
from wcodec.inspect.explain import plot

OLD = b"a file of a user"


def plain(seed: int = 0) -> bytes:
    return safetensors_bytes(
        [("w", "BF16", [64, 80], bits(make_array(BY_NAME["bfloat16"], (64, 80), "gaussian", seed)))]
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory: two checkpoints, encoded ones in both forms,
    and directories of them.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WCODEC_BACKEND", "reference")
    with use_backend("reference"):  # what would be chosen now would stay so for later tests
        for i in (1, 2):
            Path(f"m-{i}.safetensors").write_bytes(plain(i))
            Path(f"model-{i}").mkdir()
            Path(f"model-{i}/model.safetensors").write_bytes(plain(i))
            Path(f"model-{i}/config.json").write_text(json.dumps({"model_type": f"model {i}"}))
        Path("coded").mkdir()
        for i in (1, 2):
            encode_file(f"m-{i}.safetensors", f"coded/c-{i}.wcodec")
        encode_hub_file("m-1.safetensors", "coded/hub.safetensors")
        encode_directory("model-1", "model-1-wcodec")
        encode_directory("model-1", "model-1-hub", "hub")
        yield tmp_path


def all_bytes(root: Path = Path()) -> dict[str, bytes | str]:
    """What every file holds, and where every link points."""
    return {
        str(p): os.readlink(p) if p.is_symlink() else p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_symlink() or p.is_file()
    }


# ---- the functions -------------------------------------------------------------------------------
#: Functions that make a file of another one, and their input.
CONVERT: dict[str, tuple[Callable[..., Any], str]] = {
    "encode_file": (encode_file, "m-1.safetensors"),
    "encode_hub_file": (encode_hub_file, "m-1.safetensors"),
    "encode_one": (
        lambda a, b, **more: encode_one(
            a, b, "wcodec", wcodec.EncodeOptions(), wcodec.get_backend(), **more
        ),
        "m-1.safetensors",
    ),
    "encode_safetensors_to_wcodec": (wcodec.encode_safetensors_to_wcodec, "m-1.safetensors"),
    "encode_safetensors_to_wcodec, hub": (
        lambda a, b, **more: wcodec.encode_safetensors_to_wcodec(a, b, form="hub", **more),
        "m-1.safetensors",
    ),
    "decode_file": (decode_file, "coded/c-1.wcodec"),
    "decode_hub_file": (decode_hub_file, "coded/hub.safetensors"),
    "repack_file": (repack_file, "coded/c-1.wcodec"),
}


@pytest.mark.parametrize("name", CONVERT)
def test_a_function_replaces_only_when_it_is_told_to(here: Path, name: str) -> None:
    convert, source = CONVERT[name]
    Path("out").write_bytes(OLD)
    Path("dangling").symlink_to("nowhere")
    before = all_bytes()
    for target in ("out", here / "out", "dangling"):
        with pytest.raises(
            EncodeError, match=r"output_exists: '.*' exists and is not replaced unasked"
        ):
            convert(source, target)
    assert all_bytes() == before
    convert(source, "new")
    convert(source, "out", overwrite=True)
    assert Path("out").read_bytes() == Path("new").read_bytes() != OLD


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", CONVERT)
def test_a_function_never_replaces_its_input(here: Path, name: str, overwrite: bool) -> None:
    convert, source = CONVERT[name]
    Path("link").symlink_to(source)
    Path("hard").hardlink_to(source)
    (here / "coded" / "up").symlink_to("..")
    before = all_bytes()
    for target in (source, here / source, f"./{source}", "link", "hard", f"coded/up/{source}"):
        for a, b in ((source, target), (target, source)):
            with pytest.raises(
                EncodeError,
                match=r"bad_option: the output '.*' would replace '.*', which is read for it",
            ):
                convert(a, b, overwrite=overwrite)
    assert all_bytes() == before


@pytest.mark.parametrize(
    "write", [encode_file, encode_one, wcodec.save_file, wcodec.encode_safetensors_to_wcodec]
)
def test_a_base_is_never_replaced(here: Path, write: Callable[..., Any]) -> None:
    """Nor what it needs in turn."""
    Path("tuned.safetensors").write_bytes(plain(1)[:-1] + b"x")
    encode_file("tuned.safetensors", "coded/delta.wcodec", base="coded/c-1.wcodec")
    before = all_bytes()
    for target in ("coded/delta.wcodec", "coded/c-1.wcodec"):
        source: Any = (
            wcodec.load_file("coded/c-2.wcodec") if write is wcodec.save_file else "m-2.safetensors"
        )
        more: dict[str, Any] = {} if write is wcodec.save_file else {"overwrite": True}
        args = ["wcodec", None, None] if write is encode_one else []
        with pytest.raises(EncodeError, match=r"bad_option: the output '.*' would replace "):
            write(source, target, *args, base="coded/delta.wcodec", **more)
    assert all_bytes() == before


def test_save_file_replaces_a_file(here: Path) -> None:
    Path("out").write_bytes(OLD)
    wcodec.save_file({"a": np.arange(5)}, "out")
    assert wcodec.load_file("out")["a"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(
        EncodeError, match=r"bad_option: the output '/dev/null' is not a regular file"
    ):
        wcodec.save_file({"a": np.arange(5)}, "/dev/null")
    with pytest.raises(EncodeError, match=r"bad_option: the output 'coded' is a directory"):
        wcodec.save_file({"a": np.arange(5)}, "coded")


def test_a_figure_replaces_only_when_it_is_told_to(here: Path) -> None:
    Path("x.png").write_bytes(OLD)
    report: dict[str, Any] = {"tensors": []}
    with pytest.raises(EncodeError, match="output_exists"):
        plot(report, "x.png")
    assert Path("x.png").read_bytes() == OLD
    plot(report, "x.png", overwrite=True)
    assert Path("x.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_that_comes_to_be_in_the_meantime_stays(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> None:
        with atomic_output("out", overwrite=False) as f:
            f.write(b"ours")
            Path("out").write_bytes(OLD)

    with pytest.raises(EncodeError, match="output_exists"):
        write()
    assert Path("out").read_bytes() == OLD
    Path("out").unlink()
    with monkeypatch.context() as m:  # a file system without hard links
        m.setattr(
            "os.link",
            lambda *_: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")),
        )
        with pytest.raises(EncodeError, match="output_exists"):
            write()
        assert Path("out").read_bytes() == OLD
        Path("out").unlink()
        with atomic_output("out", overwrite=False) as f:
            f.write(b"ours")
    assert Path("out").read_bytes() == b"ours"
    assert not [p for p in os.listdir() if p.endswith("-tmp")]


# ---- directories ---------------------------------------------------------------------------------
DIRECTORIES: dict[str, tuple[Callable[..., Any], str]] = {
    "wcodec": (encode_directory, "model-1"),
    "hub": (lambda a, b, **more: encode_directory(a, b, "hub", **more), "model-1"),
    "in one call": (wcodec.encode_safetensors_to_wcodec, "model-1"),
    "decode": (decode_directory, "model-1-hub"),
    "decode wcodec": (decode_directory, "model-1-wcodec"),
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_directory_with_other_things_is_refused(here: Path, name: str) -> None:
    convert, source = DIRECTORIES[name]
    convert(source, "due")
    for i, files in enumerate(
        (
            {"config.json": OLD},
            {"notes": OLD},
            {".hidden": OLD},
            {"model.safetensors": OLD},
            {"sub/x": OLD},
            {"empty/": b""},
        )
    ):
        out = here / f"out-{i}"
        for path, data in files.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).mkdir() if path.endswith("/") else (out / path).write_bytes(data)
        before = all_bytes()
        with pytest.raises(
            EncodeError,
            match=r"output_exists: the output '.*' holds '.*', which no interrupted run left",
        ):
            convert(source, out)
        assert all_bytes() == before
        convert(source, out, overwrite=True)
        found = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        due = {p.relative_to("due"): p.read_bytes() for p in Path("due").rglob("*") if p.is_file()}
        assert found == {Path(p): d for p, d in files.items() if not p.endswith("/")} | due, (
            "the same names replaced, all else as it was"
        )
    with pytest.raises(EncodeError, match="output_exists"):
        convert(source, "due")


def test_weights_that_stay_beside_others_are_named(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encode_directory("model-1", "model-2", overwrite=True)
    assert caplog.messages == ["model-2 holds 'model.safetensors' too, which is not of this model"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_that_holds_an_input_by_a_link_is_refused(here: Path, overwrite: bool) -> None:
    for i, link in enumerate((os.link, os.symlink)):
        out = here / f"out-{i}"
        out.mkdir()
        link(here / "model-1" / "config.json", out / "config.json")
        before = all_bytes()
        with pytest.raises(
            EncodeError,
            match="bad_option: in the output 'config.json' is" if overwrite else "output_exists",
        ):
            encode_directory("model-1", out, "hub", overwrite=overwrite)
        assert all_bytes() == before


def test_a_run_that_was_killed_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the file was whole that it was at, and the state did not say so yet."""
    whole = encode_directory("model-1", "whole")
    pid = os.fork()
    if pid == 0:
        link = os.link
        monkeypatch.setattr(
            "os.link",
            lambda a, b: link(a, b) or (os._exit(9) if b.name == "model.wcodec" else None),
        )
        encode_directory("model-1", "out")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    state = json.loads(Path("out", STATE).read_bytes())
    assert (sorted(state["files"]), state["writing"]) == (["config.json"], "model.wcodec")
    Path("out/mine").write_bytes(OLD)
    with pytest.raises(EncodeError, match=r"output_exists: .* holds 'mine'"):
        encode_directory("model-1", "out")
    Path("out/mine").unlink()
    again = encode_directory("model-1", "out")
    assert (again.n_skipped, again.stored_nbytes) == (1, whole.stored_nbytes)
    assert sorted(p.name for p in Path("out").iterdir()) == ["config.json", "model.wcodec"]
    assert Path("out/model.wcodec").read_bytes() == Path("whole/model.wcodec").read_bytes()


def interrupted(files: int = 1, **more: Any) -> None:
    """Encode ``model-1``, which has ``z.safetensors`` too, into ``out``;
    end after so many files.
    """
    Path("model-1/z.safetensors").write_bytes(plain(3))
    done = []

    def stop(nbytes: int) -> None:
        if nbytes in (len(Path("model-1/config.json").read_bytes()), 64 * 80 * 2):
            done.append(nbytes)
        if len(done) > files:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_directory("model-1", "out", progress=stop, **more)
    assert len(json.loads(Path("out", STATE).read_bytes())["files"]) == files


def test_a_run_that_fails_leaves_an_unfinished_directory_unfinished(here: Path) -> None:
    interrupted(2)
    os.utime("model-1/config.json", (1, 1))
    os.utime("model-1/model.safetensors", (1, 1))  # so that nothing is done any more

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    for more in ({}, {"overwrite": True, "options": wcodec.EncodeOptions(preset="max")}):
        with pytest.raises(OSError, match="No space"):
            encode_directory("model-1", "out", progress=fail, **more)
        assert Path("out", STATE).exists()
        with pytest.raises(wcodec.DecodeError, match="truncated"):
            decode_directory("out", "back")
        if not more:
            assert plan_names(wcodec.directories.encoding.plan_encode("model-1", "out")) == set()  # type: ignore[attr-defined]
    encode_directory("model-1", "out", overwrite=True)


def plan_names(plan: Any) -> set[str]:
    """What a run that goes on would not do again."""
    return set(plan.done)


def test_a_file_that_was_changed_since_is_a_users(here: Path) -> None:
    """Also one of the same size; and what an earlier run made of a source that is gone."""
    interrupted(2)
    data = Path("out/model.wcodec").read_bytes()
    Path("out/model.wcodec").write_bytes(bytes(len(data)))
    before = all_bytes()
    with pytest.raises(
        EncodeError, match=r"output_exists: .* holds 'model.wcodec', which no interrupted run left"
    ):
        encode_directory("model-1", "out")
    assert all_bytes() == before
    Path("out/model.wcodec").unlink()
    assert encode_directory("model-1", "out").n_skipped == 1
    for path in Path("out").iterdir():
        path.unlink()
    interrupted(2)
    Path("model-1/model.safetensors").rename("model-1/y.safetensors")
    with pytest.raises(
        EncodeError, match=r"output_exists: .* holds 'model.wcodec', which no interrupted run left"
    ):
        encode_directory("model-1", "out")


def test_two_files_that_would_get_one_name(here: Path) -> None:
    Path("model-1/model.wcodec").mkdir()
    with pytest.raises(EncodeError, match=r"bad_source: .* would both become 'model.wcodec'"):
        encode_directory("model-1", "out")
    assert not Path("out").exists()


def test_permissions_are_those_of_the_input(here: Path) -> None:
    """Weights that only their owner may read stay so; what is replaced keeps its permissions."""
    old = os.umask(0o022)
    try:
        for name, (convert, source) in CONVERT.items():
            os.chmod(source, 0o600)
            convert(source, f"out {name}")
            assert os.stat(f"out {name}").st_mode & 0o777 == 0o600, name
            os.chmod(f"out {name}", 0o640)
            convert(source, f"out {name}", overwrite=True)
            assert os.stat(f"out {name}").st_mode & 0o777 == 0o640, name
        os.chmod("model-1/config.json", 0o750)
        os.chmod("model-1/model.safetensors", 0o600)
        encode_directory("model-1", "coded-1")
        assert [
            os.stat(f"coded-1/{n}").st_mode & 0o777 for n in ("config.json", "model.wcodec")
        ] == [0o750, 0o600]
        wcodec.save_file({"a": np.arange(5)}, "new")
        assert os.stat("new").st_mode & 0o777 == 0o644
        os.chmod("new", 0o600)
        wcodec.save_file({"a": np.arange(5)}, "new")
        assert os.stat("new").st_mode & 0o777 == 0o600
    finally:
        os.umask(old)


def test_names_as_long_as_they_may_be(here: Path) -> None:
    for name in (
        "\N{SNOWMAN}" * 85,
        "\N{GRINNING FACE}" * 63,
        "n" * 255,
        "a" * 59 + "\N{SNOWMAN}" * 65,
    ):
        encode_file("m-1.safetensors", name)
        Path(name).unlink()


# ---- the command ---------------------------------------------------------------------------------
def test_a_glob_of_two_files(here: Path) -> None:
    """What a shell makes of ``m-*.safetensors``, and of ``c-*.wcodec``."""
    before = all_bytes()
    status, out, err = call("encode", "m-1.safetensors", "m-2.safetensors")
    assert (status, err) == (0, "")
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        f"m-{i}.safetensors -> m-{i}.wcodec" for i in (1, 2)
    ]
    assert all_bytes().items() >= before.items()
    status, out, err = call("decode", "coded/c-1.wcodec", "coded/c-2.wcodec", "--json")
    assert (status, err) == (0, "")
    assert [json.loads(line)["output"] for line in out.splitlines()] == [
        "coded/c-1.safetensors",
        "coded/c-2.safetensors",
    ]
    assert [Path(f"coded/c-{i}.safetensors").read_bytes() for i in (1, 2)] == [plain(1), plain(2)]
    assert all_bytes().items() >= before.items()


#: Subcommands that write, all but where to.
COMMANDS = {
    "encode": ["encode", "m-1.safetensors"],
    "encode hub": ["encode", "--form", "hub", "m-1.safetensors"],
    "decode": ["decode", "coded/c-1.wcodec"],
    "decode hub": ["decode", "coded/hub.safetensors"],
    "repack": ["repack", "coded/c-1.wcodec"],
    "encode a directory": ["encode", "model-1"],
    "encode a directory to hub": ["encode", "--form", "hub", "model-1"],
    "decode a directory": ["decode", "model-1-wcodec"],
    "decode a directory in hub form": ["decode", "model-1-hub"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_replaces_only_by_force(here: Path, name: str) -> None:
    args, is_folder = COMMANDS[name], "directory" in name
    before = all_bytes()
    assert call(*args, "-o", "out")[0] == 0
    made = {p: d for p, d in all_bytes().items() if p not in before}
    assert all_bytes().items() >= before.items()
    for path in made:
        Path(path).write_bytes(OLD)
    spoilt = all_bytes()
    status, out, err = call(*args, "-o", "out")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(
        "wcodec: error: output_exists: "
        + ("the output 'out' holds " if is_folder else "'out' exists")
    )
    assert "-f" in err
    assert all_bytes() == spoilt
    assert call(*args, "-f", "-o", "out")[0] == 0
    assert all_bytes() == before | made
    assert call(*args, "--output-dir", "many")[0] == 0
    (target,) = Path("many").iterdir()
    for path, data in made.items():
        assert (
            target / Path(path).relative_to("out") if is_folder else target
        ).read_bytes() == data
    spoilt = all_bytes()
    assert call(*args, "--output-dir", "many")[0] == 1
    assert all_bytes() == spoilt


@pytest.mark.parametrize("force", [[], ["-f"]])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_never_replaces_an_input(here: Path, name: str, force: list[str]) -> None:
    *options, source = COMMANDS[name]
    Path("link").symlink_to(source)
    before = all_bytes()
    for target in (source, f"./{source}", "link", str(here / source)):
        status, out, err = call(*options, source, *force, "-o", target)
        assert (status, out) == (2, ""), target
        assert len(err.splitlines()) == 2
    for folder in (str(Path(source).parent), "."):
        if (
            (Path(folder) / Path(source).name).exists()
            and "wcodec" not in name
            and options != ["encode"]
            and options != ["decode"]
        ):
            assert call(*options, source, *force, "--output-dir", folder)[0] == 2
    assert all_bytes() == before


def test_outputs_that_are_inputs_of_the_same_run(here: Path) -> None:
    Path("m-1").write_bytes(plain(1))
    Path("m-2.wcodec").write_bytes(Path("coded/c-2.wcodec").read_bytes())
    before = all_bytes()
    for args, message in (
        (
            ["encode", "-f", "m-2.safetensors", "m-2.wcodec"],
            "the output m-2.wcodec is m-2.wcodec, which is read",
        ),
        (
            ["encode", "m-1.safetensors", "m-1"],
            "m-1.safetensors and m-1 would both become m-1.wcodec",
        ),
        (
            [
                "encode",
                "m-1.safetensors",
                "model-1/model.safetensors",
                "model-2/model.safetensors",
                "--output-dir",
                "d",
            ],
            "would both become d/",
        ),
        (
            ["encode", "-f", "m-1.safetensors", "--base", "m-2.wcodec", "-o", "m-2.wcodec"],
            "the output m-2.wcodec is m-2.wcodec",
        ),
        (
            ["decode", "-f", "coded/c-1.wcodec", "coded/hub.safetensors", "-o", "x"],
            "-o names the output of one input",
        ),
    ):
        status, out, err = call(*args)
        assert (status, out) == (2, ""), args
        assert message in err
    assert all_bytes() == before


def test_where_one_of_several_fails_the_others_are_done(here: Path) -> None:
    Path("bad.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    Path("m-1.wcodec").write_bytes(OLD)
    status, out, err = call("encode", "m-1.safetensors", "bad.safetensors", "m-2.safetensors")
    assert status == 1
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        "m-2.safetensors -> m-2.wcodec"
    ]
    assert [line.split(": ")[2] for line in err.splitlines()] == ["output_exists", "bad_source"]
    assert Path("m-1.wcodec").read_bytes() == OLD
    before = all_bytes()
    status, out, err = call("encode", "-f", "m-1.safetensors", "m-3.safetensors")
    assert (status, out) == (1, "")
    assert err == (
        "wcodec: error: m-3.safetensors: No such file or directory; an output is named by -o\n"
    )
    assert all_bytes() == before


def test_reports_and_figures(here: Path) -> None:
    Path("r.json").write_bytes(OLD)
    Path("x.png").write_bytes(OLD)
    suite = ["conformance", "--filter", "accept/rank_0", "--no-sweeps", "--report", "r.json"]
    figure = ["info", "--explain", "coded/c-1.wcodec", "--plot", "x.png"]
    for args in (suite, figure):
        before = all_bytes()
        status, _, err = call(*args)
        assert (status, "output_exists: " in err) == (1, True)
        assert all_bytes() == before
        assert call(*args, "-f")[0] == 0
    assert json.loads(Path("r.json").read_bytes())
    assert Path("x.png").read_bytes().startswith(b"\x89PNG")
    status, _, err = call(
        "info", "--explain", "-f", "coded/c-1.wcodec", "--plot", "coded/c-1.wcodec"
    )
    assert (status, "would replace" in err) == (2, True)


# ---- --rm ----------------------------------------------------------------------------------------
def test_rm_removes_what_was_read_back(here: Path) -> None:
    before = all_bytes()
    status, out, _ = call("encode", "--rm", "m-1.safetensors", "m-2.safetensors")
    assert (status, out.count(", removed m-")) == (0, 2)
    assert not list(Path().glob("m-*.safetensors"))
    assert call("decode", "--rm", "m-1.wcodec", "m-2.wcodec", "-q")[0] == 0
    assert all_bytes() == before
    args = "--form", "hub", "--rm", "m-1.safetensors", "-o", "h.safetensors", "--json"
    assert json.loads(call("encode", *args)[1])["removed"] is True
    assert call("decode", "--rm", "h.safetensors", "-o", "m-1.safetensors")[0] == 0
    assert call("repack", "--rm", "--preset", "max", "coded/c-1.wcodec", "-o", "x.wcodec")[0] == 0
    assert call("repack", "--rm", "x.wcodec", "-o", "coded/c-1.wcodec")[0] == 0
    assert all_bytes() == before
    Path("link.safetensors").symlink_to("m-1.safetensors")
    assert call("encode", "--rm", "link.safetensors", "-q")[0] == 0
    assert not os.path.lexists("link.safetensors")
    assert Path("m-1.safetensors").read_bytes() == plain(1), "of a link, the link"


def test_rm_keeps_what_did_not_come_back(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(source: str, target: str, *_: object, **__: object) -> tuple[int, int]:
        Path(target).write_bytes(Path("coded/c-2.wcodec").read_bytes())
        return 1, 1

    monkeypatch.setattr("wcodec.directories.encoding.encode_file", wrong)
    status, out, err = call("encode", "--rm", "m-1.safetensors")
    assert (status, out) == (1, "")
    assert (
        "bad_value: in 'm-1.wcodec': it does not hold what 'm-1.safetensors' does, which stays"
        in err
    )
    assert Path("m-1.safetensors").read_bytes() == plain(1)


def test_rm_is_refused_where_more_would_be_lost(here: Path) -> None:
    before = all_bytes()
    for args in (
        ["model-1", "-o", "x"],
        ["m-1.safetensors", "--base", "m-1.safetensors"],
        ["m-1.safetensors", "model-1", "--output-dir", "d"],
    ):
        assert call("encode", "--rm", *args)[0] == 2
    Path("m-1.wcodec").write_bytes(OLD)
    assert call("encode", "--rm", "m-1.safetensors")[0] == 1
    Path("m-1.wcodec").unlink()
    assert all_bytes() == before


def test_rm_of_a_file_and_its_base(here: Path) -> None:
    """All are decoded before any is removed."""
    Path("t.safetensors").write_bytes(plain(1)[:-1] + b"x")
    encode_file("t.safetensors", "coded/t.wcodec", base="coded/c-1.wcodec")
    assert call("decode", "--rm", "coded/c-1.wcodec", "coded/t.wcodec", "-q") == (0, "", "")
    assert Path("coded/t.safetensors").read_bytes() == Path("t.safetensors").read_bytes()
    assert sorted(p.name for p in Path("coded").iterdir()) == [
        "c-1.safetensors",
        "c-2.wcodec",
        "hub.safetensors",
        "t.safetensors",
    ]


def test_rm_keeps_what_has_changed_meanwhile(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wcodec.cli import convert

    same = convert.is_same_stream

    def replaced(*streams: Any) -> bool:
        try:
            return same(*streams)
        finally:
            Path("m-1.safetensors").write_bytes(plain(7))

    monkeypatch.setattr(convert, "is_same_stream", replaced)
    status, _, err = call("encode", "--rm", "m-1.safetensors")
    assert (status, "'m-1.safetensors' has changed meanwhile, and stays" in err) == (1, True)
    assert Path("m-1.safetensors").read_bytes() == plain(7)


# ---- odd outputs ---------------------------------------------------------------------------------
def test_outputs_that_are_no_names(here: Path) -> None:
    before = all_bytes()
    for args in (["-o", ""], ["--output-dir", ""], ["--base", ""]):
        status, _, err = call("encode", "m-1.safetensors", *args)
        assert (status, "an empty path" in err) == (2, True)
    with pytest.raises(EncodeError, match="bad_option: the output has no name"):
        wcodec.save_file({}, "")
    Path("dangling.wcodec").symlink_to("nowhere")
    assert call("encode", "m-1.safetensors", "-o", "dangling.wcodec")[0] == 1
    assert not Path("nowhere").exists()
    Path("many").mkdir()
    Path("bad.safetensors").write_bytes(b"")
    assert call("encode", "bad.safetensors", "--output-dir", "many")[0] == 1
    assert Path("many").is_dir(), "it was there before"
    assert call("encode", "bad.safetensors", "--output-dir", "new")[0] == 1
    assert not Path("new").exists()
    Path("D").mkdir()
    Path("D/x.safetensors").write_bytes(plain(5))
    Path("O/D").mkdir(parents=True)
    Path("O/D/x.safetensors").write_bytes(plain(6))
    status, _, err = call(
        "encode", "--form", "hub", "D", "O/D/x.safetensors", "--output-dir", "O", "-f"
    )
    assert (status, "holds O/D/x.safetensors, which is read" in err) == (2, True)
    assert Path("O/D/x.safetensors").read_bytes() == plain(6)
    assert all_bytes().items() >= before.items()


@pytest.mark.parametrize(
    "args",
    [
        ["encode", "m-1.safetensors", "-o", "x"],
        ["verify", "coded/c-1.wcodec"],
        ["info", "model-1-hub"],
    ],
)
def test_a_file_system_without_maps(
    here: Path, monkeypatch: pytest.MonkeyPatch, args: list[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr("mmap.mmap", fail)
    assert call(*args)[0] == 0


def test_errors_of_the_system_name_what_the_user_knows(here: Path) -> None:
    with pytest.raises(OSError, match="proc") as e:
        wcodec.save_file({}, "/proc/self/x")
    assert str(e.value).endswith(": '/proc/self/x'")
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m wcodec encode m-1.safetensors >&-"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- paths as they are typed ---------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a b.safetensors", "'a b.wcodec'"),
        ("it's.safetensors", "'it'\"'\"'s.wcodec'"),
        ("$HOME.safetensors", "'$HOME.wcodec'"),
        ("a\x1b[31m\n'.safetensors", "$'a\\x1b[31m\\x0a\\'.wcodec'"),
        ("-o.safetensors", "./-o.wcodec"),
        ("\N{SNOWMAN}.safetensors", "'\N{SNOWMAN}.wcodec'"),
        ("plain_1.safetensors", "plain_1.wcodec"),
    ],
)
def test_outputs_are_printed_as_they_can_be_typed(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str, shown: str
) -> None:
    (here / "coded" / name).write_bytes(plain())
    monkeypatch.chdir("coded")
    status, out, _ = call("encode", "--", name)
    assert status == 0
    assert out.startswith(f"{shown.replace('.wcodec', '.safetensors')} -> {shown}: "), out
    assert json.loads(call("encode", "-f", "--json", "--", name)[1])["output"] == name.replace(
        ".safetensors", ".wcodec"
    )
    assert subprocess.run(["bash", "-c", f"test -f {shown}"], check=False).returncode == 0
    assert json.loads(call("encode", "-f", "--json", f"../coded/{name}")[1])["output"].startswith(
        "../coded/"
    ), "relative as the input was"
