"""Inputs are named for what they are, and what to do is said;
a directory is taken as people have it.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inputs import safetensors_bytes
from test_cli import call
from test_directories import CONFIG, INDEX, INDEX_NAME, MODEL, SHARDS, fill, tree, weights

import wcodec
from wcodec.directories.decoding import decode_directory, verify_directory
from wcodec.directories.encoding import encode_directory
from wcodec.errors import DecodeError, EncodeError
from wcodec.files.checkpoint import encode_file

PLAIN = safetensors_bytes([("a", "U8", [3], b"abc")])


def torch_zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as z:
        z.writestr("archive/data.pkl", b"\x80\x02.")
    return stream.getvalue()


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.arange(3))
    return stream.getvalue()


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.arange(3))
    return stream.getvalue()


#: What is in a file, what it is called, and a word of what to do.
STRANGERS: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "an empty file", "did not finish"),
    "GGUF": (
        b"GGUF\x03\0\0\0" + bytes(100),
        "a GGUF file",
        "safetensors files that it was made from",
    ),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file", "with safetensors"),
    "ONNX": (b"\x08\x07\x12\x07pytorch" + bytes(100), "an ONNX model", "with safetensors"),
    "pickle": (pickle.dumps({"a": [1.0] * 100}), "a pickle", "torch.load"),
    "pickle of protocol 2": (
        pickle.dumps({"a": [1.0] * 100}, protocol=2),
        "a pickle",
        "torch.load",
    ),
    "torch.save": (torch_zip(), "a pickle of torch.save", "torch.load"),
    "numpy.savez": (npz(), "an archive of numpy.savez", "wcodec.save_file"),
    "numpy.save": (npy(), "an array of numpy.save", "wcodec.save_file"),
    "LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n",
        "a pointer of Git LFS",
        "git lfs pull",
    ),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(100), "compressed by zstd", "unpack"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(100), "compressed by gzip", "unpack"),
    "HTML": (b"<!DOCTYPE html><html>" + bytes(100), "a page of HTML", "download"),
    "JSON": (b'{\n  "model_type": "x"\n}\n', "a JSON text", "the weights"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WCODEC_BACKEND", "reference")
    return tmp_path


@pytest.mark.parametrize("name", STRANGERS)
def test_what_a_file_is(here: Path, name: str) -> None:
    data, what, to_do = STRANGERS[name]
    Path("x").write_bytes(data)
    for args in (
        ["encode", "x"],
        ["encode", "--form", "hub", "x", "-o", "y"],
        ["decode", "x"],
        ["verify", "x"],
        ["info", "x"],
    ):
        status, out, err = call(*args)
        assert (status, out, err.count("\n")) == (1, "", 1), args
        assert "in 'x': " in err, args
        assert what in err, args
        assert to_do in err, args
    for read in (
        wcodec.load_file,
        lambda x: wcodec.encode_safetensors_to_wcodec(x, "y"),
        lambda x: wcodec.save_file({}, "y", base=x),
    ):
        with pytest.raises((DecodeError, EncodeError), match=f"{what}.*{to_do}"):
            read("x")
    assert os.listdir() == ["x"]


def test_a_file_that_is_encoded_already(here: Path) -> None:
    Path("a.safetensors").write_bytes(PLAIN)
    encode_file("a.safetensors", "a.wcodec")
    status, _, err = call("encode", "a.wcodec")
    assert status == 1
    assert "in 'a.wcodec': not a safetensors file but a .wcodec file: wcodec decode restores" in err
    status, _, err = call("decode", "a.safetensors", "-o", "x")
    assert (status, "nothing to decode" in err) == (1, True)
    with pytest.raises(
        DecodeError,
        match=(
            r"in 'a.safetensors': this is no .wcodec file but a safetensors file: "
            r"wcodec encode makes"
        ),
    ):
        wcodec.load_file("a.safetensors")


def test_a_safetensors_file_that_begins_as_another_kind_is_taken(here: Path) -> None:
    """Its first bytes are a number: 0x280 = b"\\x80\\x02" is also how pickles begin,
    and spaces may stand before the header.
    """
    raw = b" " + PLAIN[8:-3]
    raw += b" " * (0x280 - len(raw))
    Path("a").write_bytes(len(raw).to_bytes(8, "little") + raw + b"abc")
    assert call("encode", "a", "-o", "x")[0] == 0
    assert wcodec.load_file("x")["a"].tobytes() == b"abc"


def test_pipes_are_refused_not_waited_for(here: Path) -> None:
    os.mkfifo("pipe")
    for args in (
        ["encode", "--form", "hub", "pipe", "-o", "x"],
        ["decode", "pipe", "-o", "x"],
        ["verify", "pipe"],
        ["info", "pipe"],
        ["verify", "/dev/null"],
    ):
        status, out, err = call(*args)
        assert (status, out) == (2, ""), args
        assert "a pipe or device; wcodec needs a file that it can seek in" in err


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("pytorch_model.bin", torch_zip()),
        ("model.gguf", STRANGERS["GGUF"][0]),
        ("m.onnx", STRANGERS["ONNX"][0]),
        ("m.h5", b"?"),
    ],
)
def test_a_directory_without_weights_that_are_taken(here: Path, name: str, data: bytes) -> None:
    fill(here / "model", {"config.json": CONFIG, name: data})
    status, _, err = call("encode", "model", "-o", "x")
    assert (
        status,
        err.startswith(
            "wcodec: error: bad_source: there is no .safetensors file in 'model', but '" + name
        ),
    ) == (1, True), err
    status, _, err = call("decode", "model", "-o", "x")
    assert (status, "there is neither a .wcodec file nor" in err) == (1, True)


# ---- directories as people have them -------------------------------------------------------------
@pytest.mark.parametrize("form", ["wcodec", "hub"])
def test_a_directory_that_holds_its_encoded_files_too(here: Path, form: str) -> None:
    fill(here / "model", MODEL)
    encode_directory("model", "due", form)
    for name in SHARDS:
        assert call("encode", f"model/{name}", "-q")[0] == 0
    fill(
        here / "model",
        {INDEX_NAME.replace("safetensors", "wcodec"): INDEX.replace(b".safetensors", b".wcodec")},
    )
    assert call("encode", "--form", form, "model", "-o", "out")[0] == 0
    assert tree(here / "out") == tree(here / "due"), "what is made anew is left out"
    (here / "model" / SHARDS[0].replace("safetensors", "wcodec")).write_bytes(
        (here / "model" / SHARDS[1]).read_bytes()
    )
    status, _, err = call("encode", "--form", form, "model", "-f", "-o", "out")
    assert (
        status,
        "is encoded already, and not from 'model-00001-of-00002.safetensors'" in err,
    ) == (1, True)


def cache(root: Path, revisions: int) -> Path:
    """A cache of Hugging Face: blobs, and snapshots that are links into them."""
    repository = root / "models--some--model"
    fill(repository / "blobs", {"0" * 40: CONFIG, "1" * 64: weights(1)})
    fill(repository / "refs", {"main": b"0123abc"})
    for i in range(revisions):
        folder = repository / "snapshots" / f"{i}123abc"
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        (folder / "config.json").symlink_to("../../blobs/" + "0" * 40)
        (folder / "model.safetensors").symlink_to("../../blobs/" + "1" * 64)
    return repository


@pytest.mark.parametrize("root", ["cache/hub/models--some--model", "cache/hub", "cache"])
def test_the_cache_of_hugging_face(here: Path, root: str) -> None:
    cache(here / "cache" / "hub", 1)
    fill(here / "plain", {"config.json": CONFIG, "model.safetensors": weights(1)})
    for form in ("wcodec", "hub"):
        assert call("encode", "--form", form, root, "-o", form)[0] == 0
        assert call("decode", form, "-o", f"{form}-back")[0] == 0
        assert tree(here / f"{form}-back") == tree(here / "plain")
    cache(here / "cache" / "hub", 3)
    status, _, err = call("encode", root, "-o", "x")
    assert (status, err.count("\n")) == (1, 1)
    assert "bad_source: a cache of Hugging Face with 3 snapshots; name one of them: " in err
    assert err.count("/snapshots/") == 3
    assert not Path("x").exists()


@pytest.mark.parametrize("form", ["wcodec", "hub"])
@pytest.mark.parametrize("make_link", [os.symlink, os.link])
def test_other_names_of_a_file_stay_links(
    here: Path, form: str, make_link: Callable[..., None]
) -> None:
    """So an output is no larger than its input, whatever links there are;
    the same tree comes back.
    """
    fill(here / "model", {"config.json": CONFIG, "data/blob": weights(1), "sub/note": b"x" * 500})
    for name, to in (
        ("model.safetensors", "data/blob"),
        ("alias.safetensors", "data/blob"),
        ("latest", "data/blob"),
        ("copy", "sub/note"),
    ):
        make_link(here / "model" / to, here / "model" / name)
    fill(
        here / "once",
        {"config.json": CONFIG, "model.safetensors": weights(1), "sub/note": b"x" * 500},
    )
    report = encode_directory("model", "coded", form)
    once = encode_directory("once", "coded-once", form)
    assert report.stored_nbytes == once.stored_nbytes
    assert verify_directory("coded").n_coded == 1
    decode_directory("coded", "back")
    assert tree(here / "back") == tree(here / "model")
    assert sum(p.is_symlink() for p in (here / "back").rglob("*")) == 4
    for root in ("coded", "back"):
        for path in Path(root).rglob("*"):
            assert not path.is_symlink() or not os.readlink(path).startswith("/")
    with pytest.raises(EncodeError, match="output_exists"):
        encode_directory("model", "coded", form)
    encode_directory("model", "coded", form, overwrite=True)
    decode_directory("coded", "back", overwrite=True)
    assert tree(here / "back") == tree(here / "model")


def test_names_of_a_file_that_become_different_files(here: Path) -> None:
    """In hub form: config.json with weights beside it and without,
    weights of transformers and of others.
    """
    fill(
        here / "model",
        {"a/config.json": CONFIG, "m.safetensors": weights(1), "dense/config.json": b"{}"},
    )
    fill(here / "model", {"plain.safetensors": weights(2, stream=b"no magic")})
    os.link("model/a/config.json", "model/config.json")
    os.link("model/m.safetensors", "model/m2.safetensors")
    os.link("model/plain.safetensors", "model/dense/x.safetensors")
    report = encode_directory("model", "coded", "hub")
    assert report.n_coded == 2
    assert b"quantization_config" in Path("coded/config.json").read_bytes()
    assert Path("coded/a/config.json").read_bytes() == CONFIG
    assert (
        Path("coded/dense/x.safetensors").read_bytes()
        == Path("model/dense/x.safetensors").read_bytes()
    )
    assert Path("coded/m2.safetensors").is_symlink()
    decode_directory("coded", "back")
    assert tree(here / "back") == tree(here / "model")


def test_a_model_that_holds_a_cache_is_no_cache(here: Path) -> None:
    fill(here / "model", {"config.json": CONFIG, "model.safetensors": weights(1)})
    cache(here / "model", 1)
    assert encode_directory("model", "coded").n_coded == 2
    assert Path("coded/config.json").exists()
    assert Path("coded/model.wcodec").exists()


# ---- manners -------------------------------------------------------------------------------------
def test_bare_wcodec_shows_the_subcommands() -> None:
    status, out, err = call()
    assert (status, out) == (2, "")
    for name in (
        "encode",
        "decode",
        "repack",
        "verify",
        "info",
        "backends",
        "conformance",
        "demo",
        "bench",
    ):
        assert f"\n    {name} " in err


def test_every_argument_says_what_it_is() -> None:
    from wcodec.cli.parser import parser

    (subparsers,) = [a for a in parser()._actions if a.choices and not a.option_strings]
    assert isinstance(subparsers.choices, dict)
    (actions,) = [a for a in subparsers.choices["chain"]._actions if isinstance(a.choices, dict)]
    for name, sub in {"": parser(), **subparsers.choices, **(actions.choices or {})}.items():
        for action in sub._actions:
            assert action is subparsers or action.help, (name, action)
        for status in (
            "0 done",
            "1 bad input",
            "2 bad usage",
            "129, 130, 143 told to end",
            "141 who read",
        ):
            assert status in (sub.epilog or ""), name


def test_several_are_verified_and_shown(here: Path) -> None:
    fill(here / "model", {"config.json": CONFIG, "model.safetensors": weights(1)})
    encode_directory("model", "coded")
    encode_directory("model", "hub", "hub")
    names = ["coded/model.wcodec", "coded", "hub", "hub/model.safetensors"]
    status, out, err = call("verify", *names)
    assert (status, err) == (0, "")
    assert [line.partition(": ")[0] for line in out.splitlines()] == names
    assert [
        json.loads(line)["input"] for line in call("verify", "--json", *names)[1].splitlines()
    ] == names
    status, out, err = call("info", *names)
    assert (status, err) == (0, "")
    for name in names:
        assert f"{name}:" in out
    assert len([json.loads(line) for line in call("info", "--json", *names)[1].splitlines()]) == 4
    Path("coded/model.wcodec").write_bytes(b"version https://git-lfs")
    for command in ("verify", "info"):
        status, out, err = call(command, *names)
        assert (status, err.count("\n")) == (1, 2), "the others all the same"
        assert "in 'coded/model.wcodec': " in err
        assert "hub/model.safetensors: " in out


def test_save_file_says_what_is_wanted(here: Path) -> None:
    array = np.arange(3)
    calls: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: wcodec.save_file(array, "x"),
            "save_file takes tensors by name, such as {'weight': tensor}, and then a path; this is "
            "a ndarray",
        ),
        (lambda: wcodec.save_file("x", {"a": array}), "this is a str"),  # type: ignore[arg-type]
        (lambda: wcodec.save_file({1: array}, "x"), "names of tensors are texts; 1 is a int"),  # type: ignore[dict-item]
        (
            lambda: wcodec.save_file({"a": array}, "x", metadata={"epoch": 3}),
            "metadata are texts; 3 of 'epoch' is a int: give str(3)",
        ),  # type: ignore[dict-item]
        (
            lambda: wcodec.save_file({"a": array}, "x", metadata=["a"]),
            "metadata are texts by name, such as {'epoch': '3'}; this is a list",
        ),  # type: ignore[arg-type]
    ]
    for run, message in calls:
        with pytest.raises(TypeError) as e:
            run()
        assert message in str(e.value)
    assert os.listdir() == []


def test_what_objects_say_they_are(here: Path) -> None:
    wcodec.save_file({"a": np.arange(3), "b": np.ones((2, 2), np.float16)}, "x.wcodec")
    f = wcodec.open("x.wcodec")
    size = Path("x.wcodec").stat().st_size
    assert repr(f) == f"<wcodec.File 'x.wcodec': 2 tensors, 32 bytes in {size}>"
    assert repr(f.get_slice("b")) == f"<wcodec Slice: 'b' of {f!r}, F16, shape [2, 2]>"
    f.close()
    assert repr(f) == "<wcodec.File 'x.wcodec', closed>"
    with wcodec.open(io.BytesIO(Path("x.wcodec").read_bytes())) as g:
        assert repr(g) == f"<wcodec.File: 2 tensors, 32 bytes in {size}>"


def test_errors_of_the_api_name_the_file(here: Path) -> None:
    wcodec.save_file(
        {"w": np.random.default_rng(0).standard_normal((64, 80)).astype(np.float32)}, "x.wcodec"
    )
    data = bytearray(Path("x.wcodec").read_bytes())
    data[300] ^= 1
    Path("x.wcodec").write_bytes(data)
    with wcodec.open("x.wcodec") as f:
        for read in (
            lambda: f.get_tensor("w"),
            lambda: f.get_slice("w")[:3],
            lambda: list(f.restored()),
        ):
            with pytest.raises(DecodeError, match=r"bad_checksum: in 'x.wcodec': ") as e:
                read()
            assert e.value.file == "x.wcodec"
            assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)
