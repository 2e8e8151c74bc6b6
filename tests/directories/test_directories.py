"""Directories of models: the whole tree there and back, runs that go on where they stopped,
and what is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from inputs import BY_NAME, bits, make_array, safetensors_bytes
from test_cli import call

import wcodec
from wcodec.backends import Backend
from wcodec.directories.configs import add_entry, remove_entry, rename_shards
from wcodec.directories.decoding import decode_directory, verify_directory
from wcodec.directories.encoding import encode_directory, plan_encode
from wcodec.directories.hub_header import is_hub, is_stream
from wcodec.directories.resumable import STATE
from wcodec.directories.tasks import Report
from wcodec.errors import BackendUnavailable, CodecError, DecodeError, EncodeError

FORMS = ("wcodec", "hub")
#: the adapter stays as it is in form hub: peft reads it
N_CODED = {"wcodec": 4, "hub": 3, "decode": 3}
CONFIG = (
    b"{\n"
    b'  "architectures": [\n'
    b'    "X"\n'
    b"  ],\n"
    b'  "model_type": "x",\n'
    b'  "snow": "\\u2603 \xe2\x98\x83"\n'
    b"}\n"
)
ENTRY = b'\n  "quantization_config": {"quant_method": "wcodec", "format_version": "0.2"},'


def weights(seed: int, padding: int = 0, stream: bytes = b"\x89WCODEC\n") -> bytes:
    half = make_array(BY_NAME["bfloat16"], (60, 70), "gaussian", seed)
    tensors = [
        ("w", "BF16", [60, 70], bits(half)),
        ("b", "F32", [3], b"abcdefghijkl"),
        ("none", "F16", [0, 2], b""),
        ("four", "F4", [2, 2], b"xy"),
        ("stream", "U8", [9], stream + b"x"),
        (
            "scale",
            "F8_E4M3",
            [80, 90],
            bits(make_array(BY_NAME["float8_e4m3fn"], (80, 90), "gaussian", seed)),
        ),
    ]
    return safetensors_bytes(tensors, {"format": "pt"}, padding, order=[3, 0, 1, 2, 4, 5])


SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX_NAME = "model.safetensors.index.json"
OF_SHARDS = {"metadata": {"total_size": 1}, "weight_map": {"w": SHARDS[0], "v": SHARDS[1]}}
INDEX = json.dumps(OF_SHARDS, indent=2).encode() + b"\n"
MODEL: dict[str, bytes] = {
    "config.json": CONFIG,
    SHARDS[0]: weights(1),
    SHARDS[1]: weights(2, padding=5),
    INDEX_NAME: INDEX,
    "tokenizer.json": '{"a": "\N{SNOWMAN}\r\n"}'.encode(),
    "empty": b"",
    "assets/deep/noise.bin": np.random.default_rng(3).bytes(3000),
    "text_encoder/config.json": b' \n{"model_type":"y"}',
    "text_encoder/model.safetensors": weights(4),
    "1_Pooling/config.json": b'{"pooling_mode": "mean"}',
    "lora/adapter_model.safetensors": weights(5, stream=b"no magic"),
    "\N{SNOWMAN} space/a.json": b"{}",
}


def fill(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory of a sharded model."""
    root = fill(tmp_path / "model", MODEL)
    (root / "nothing" / "here").mkdir(parents=True)
    return root


def tree(root: Path) -> dict[str, str]:
    """SHA-256 of every file, by name; directories too."""
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        if p.is_file()
        else "directory"
        for p in sorted(root.rglob("*"))
    }


def there_and_back(folder: Path, form: str) -> tuple[Report, Report]:
    """The reports of a model that came back whole."""
    there = encode_directory(folder / "model", folder / "coded", form)
    checked = verify_directory(folder / "coded")
    back = decode_directory(folder / "coded", folder / "back")
    assert tree(folder / "back") == tree(folder / "model")
    found = (back.n_coded, back.nbytes, back.stored_nbytes)
    assert found == (there.n_coded, there.nbytes, there.stored_nbytes)
    assert checked.n_coded == there.n_coded
    for root, total in (
        ("model", there.nbytes),
        ("coded", there.stored_nbytes),
        ("back", back.nbytes),
    ):
        assert sum(p.stat().st_size for p in (folder / root).rglob("*") if p.is_file()) == total
    return there, back


# ---- there and back ------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMS)
def test_a_model_comes_back_byte_for_byte(
    backend: Backend, tmp_path: Path, model: Path, form: str
) -> None:
    there, back = there_and_back(tmp_path, form)
    n = N_CODED[form]
    assert (
        (there.n_coded, there.n_copied, there.n_skipped)
        == (n, 12 - n, 0)
        == (back.n_coded, back.n_copied, back.n_skipped)
    )
    assert there.stored_nbytes < there.nbytes


def test_what_form_wcodec_holds(tmp_path: Path, model: Path) -> None:
    encode_directory(model, tmp_path / "coded")
    found = {
        name: (tmp_path / "coded" / name).read_bytes()
        for name, what in tree(tmp_path / "coded").items()
        if what != "directory"
    }
    changed = {name for name in MODEL if "safetensors" in name}
    assert {n: d for n, d in found.items() if "wcodec" not in n} == {
        n: d for n, d in MODEL.items() if n not in changed
    }
    assert {n for n in found if "wcodec" in n} == {
        n.replace(".safetensors", ".wcodec") for n in changed
    }
    assert found["model.wcodec.index.json"] == INDEX.replace(b".safetensors", b".wcodec")
    with wcodec.open(tmp_path / "coded" / "text_encoder" / "model.wcodec") as f:
        assert bits(f.get_tensor("w")) == bits(
            make_array(BY_NAME["bfloat16"], (60, 70), "gaussian", 4)
        )


def test_what_form_hub_holds(tmp_path: Path, model: Path) -> None:
    encode_directory(model, tmp_path / "coded", "hub")
    found = {
        name: (tmp_path / "coded" / name).read_bytes()
        for name, what in tree(tmp_path / "coded").items()
        if what != "directory"
    }
    assert found.keys() == MODEL.keys()
    changed = {n for n in MODEL if found[n] != MODEL[n]}
    assert changed == {
        *SHARDS,
        "text_encoder/model.safetensors",
        "config.json",
        "text_encoder/config.json",
    }
    with_dtype = ENTRY.replace(b'"}', b'", "dtype": "%s"}')
    assert found["config.json"] == b"{" + with_dtype % b"float32" + CONFIG[1:], (
        "of the first weight by name that is float"
    )
    assert (
        found["text_encoder/config.json"]
        == b" \n{" + with_dtype % b"float32" + b'"model_type":"y"}'
    )
    for name in SHARDS:
        assert is_hub(tmp_path / "coded" / name)
    index = json.loads(found[INDEX_NAME])
    with safetensors.safe_open(tmp_path / "coded" / index["weight_map"]["v"], "numpy") as f:
        assert is_stream(w := f.get_tensor("w"))
        assert bits(wcodec.decode(w)) == bits(
            make_array(BY_NAME["bfloat16"], (60, 70), "gaussian", 2)
        )


def test_weights_of_other_libraries_are_left_alone_in_form_hub(tmp_path: Path) -> None:
    """Such as a Dense layer of sentence-transformers, or a UNet of diffusers:
    they would not know what to do with streams.
    """
    others = {
        "2_Dense/config.json": b'{"in_features": 3}',
        "2_Dense/model.safetensors": weights(6, stream=b"no magic"),
    }
    fill(tmp_path / "model", {"config.json": CONFIG, "model.safetensors": weights(1), **others})
    there, _ = there_and_back(tmp_path, "hub")
    assert (there.n_coded, there.n_copied) == (1, 3)
    for name, data in others.items():
        assert (tmp_path / "coded" / name).read_bytes() == data
    fill(tmp_path / "dense", others)
    with pytest.raises(EncodeError, match=r"bad_source: no weights .* use --form wcodec"):
        encode_directory(tmp_path / "dense", tmp_path / "out", "hub")
    assert encode_directory(tmp_path / "dense", tmp_path / "out").n_coded == 1


@pytest.mark.parametrize("form", FORMS)
def test_weights_alone(tmp_path: Path, form: str) -> None:
    fill(tmp_path / "model", {"model.safetensors": weights(1)})
    assert there_and_back(tmp_path, form)[0].n_copied == 0


@pytest.mark.parametrize("form", FORMS)
def test_links_and_what_is_left_out(tmp_path: Path, form: str) -> None:
    """As in the cache of huggingface_hub: files are links into another directory."""
    fill(tmp_path / "blobs", {"a": CONFIG, "b": weights(1)})
    plain = fill(tmp_path / "plain", {"config.json": CONFIG, "model.safetensors": weights(1)})
    root = fill(
        tmp_path / "model",
        {
            ".git/config": b"x",
            ".cache/huggingface/x.lock": b"",
            "sub/.git/x": b"y",
            "sub/.gitattributes": b"z",
        },
    )
    (root / "config.json").symlink_to("../blobs/a")
    (root / "model.safetensors").symlink_to("../blobs/b")
    (plain / "sub").mkdir()
    (plain / "sub" / ".gitattributes").write_bytes(b"z")
    encode_directory(root, tmp_path / "coded", form)
    decode_directory(tmp_path / "coded", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(plain)
    assert not any(p.is_symlink() for p in (tmp_path / "coded").rglob("*"))


def test_wcodec_files_of_arrays_become_safetensors_files(tmp_path: Path) -> None:
    (tmp_path / "coded").mkdir()
    wcodec.save_file({"a": np.arange(9.0)}, tmp_path / "coded" / "x.wcodec")
    assert decode_directory(tmp_path / "coded", tmp_path / "back") == Report(
        1, 0, 0, *sizes(tmp_path, "back", "coded")
    )
    np.testing.assert_array_equal(
        safetensors.numpy.load_file(tmp_path / "back" / "x.safetensors")["a"], np.arange(9.0)
    )


def sizes(folder: Path, *roots: str) -> list[int]:
    return [
        sum(p.stat().st_size for p in (folder / root).rglob("*") if p.is_file()) for root in roots
    ]


def test_plain_safetensors_files_beside_encoded_ones_are_copied(
    tmp_path: Path, model: Path
) -> None:
    """Such as an adapter that was saved into an encoded directory."""
    encode_directory(model, tmp_path / "coded", "hub")
    fill(
        tmp_path / "coded",
        {"adapter_model.safetensors": safetensors_bytes([("a", "U8", [3], b"abc")])},
    )
    decode_directory(tmp_path / "coded", tmp_path / "back")
    fill(model, {"adapter_model.safetensors": safetensors_bytes([("a", "U8", [3], b"abc")])})
    assert tree(tmp_path / "back") == tree(model)


def test_progress_counts_all_files(tmp_path: Path, model: Path) -> None:
    for form in FORMS:
        done = list[int]()
        plan = plan_encode(model, tmp_path / form, form)
        assert plan.nbytes == sizes(tmp_path, "model")[0]
        plan.run(done.append)
        headers = 4 * 700  # of weights, which are not counted
        assert plan.nbytes == 0
        assert sizes(tmp_path, "model")[0] - headers <= sum(done) <= sizes(tmp_path, "model")[0]
        done.clear()
        decode_directory(tmp_path / form, tmp_path / f"{form}-back", progress=done.append)
        assert sum(done) == sizes(tmp_path, "model")[0]
        done.clear()
        verify_directory(tmp_path / form, progress=done.append)
        assert sum(done) == sum(
            len(d)
            for n, d in MODEL.items()
            if n.endswith(".safetensors") and (form == "wcodec" or "lora" not in n)
        )


# ---- bases ---------------------------------------------------------------------------------------
def tuned(data: bytes) -> bytes:
    return data[:-7000] + bytes(3) + data[-6997:]


@pytest.mark.parametrize("coded_base", [False, True])
def test_differences_from_a_directory(tmp_path: Path, model: Path, coded_base: bool) -> None:
    base = tmp_path / "base"
    files = {name: data for name, data in MODEL.items() if "lora" not in name}
    fill(
        model,
        {
            name: tuned(data) if name.endswith(".safetensors") else data
            for name, data in files.items()
        },
    )
    if coded_base:
        encode_directory(fill(tmp_path / "plain", files), base)
    else:
        fill(base, files)
    alone = encode_directory(model, tmp_path / "alone")
    there = encode_directory(model, tmp_path / "coded", base=base)
    assert there.stored_nbytes < 0.6 * alone.stored_nbytes
    for check in (decode_directory, None):
        with pytest.raises(DecodeError, match="bad_base: in 'model-00001"):
            verify_directory(tmp_path / "coded") if check is None else check(
                tmp_path / "coded", tmp_path / "no"
            )
    assert not (tmp_path / "no" / SHARDS[0]).exists()
    verify_directory(tmp_path / "coded", base=base)
    decode_directory(tmp_path / "coded", tmp_path / "back", base=base)
    assert tree(tmp_path / "back") == tree(model)


@pytest.mark.parametrize("form", FORMS)
def test_bases_that_are_none(tmp_path: Path, model: Path, form: str) -> None:
    (tmp_path / "empty").mkdir()
    for base in (tmp_path / "missing", model / "config.json", tmp_path / "empty"):
        with pytest.raises(EncodeError, match="bad_option"):
            encode_directory(model, tmp_path / "coded", form, base=base)
    assert not (tmp_path / "coded").exists()


# ---- runs that stop ------------------------------------------------------------------------------
class Stop(Exception):
    """What a test raises from the callback of progress."""


def stopping(after: int) -> Callable[[int], None]:
    left = [after]

    def progress(nbytes: int) -> None:
        left[0] -= nbytes
        if left[0] < 0:
            raise Stop

    return progress


def run(form: str, folder: Path, progress: Callable[[int], object]) -> Report:
    """Encode in a form; or decode one that is encoded."""
    if form == "decode":
        return decode_directory(folder / "coded", folder / "out", progress=progress)
    return encode_directory(folder / "model", folder / "out", form, progress=progress)


@pytest.mark.parametrize("form", [*FORMS, "decode"])
def test_a_run_goes_on_where_it_stopped(tmp_path: Path, model: Path, form: str) -> None:
    encode_directory(model, tmp_path / "coded", "hub")
    encode_directory(model, tmp_path / "whole", "hub" if form == "decode" else form)
    wanted = tree(model if form == "decode" else tmp_path / "whole")
    skipped = list[int]()
    total = sizes(tmp_path, "model")[0]
    for part in (0.3, 0.3, 0.3):
        with pytest.raises(Stop):
            run(form, tmp_path, stopping(int(total * part)))
        present = {n: h for n, h in tree(tmp_path / "out").items() if n != STATE}
        assert present.items() <= wanted.items(), "only whole files, under their names"
        state = json.loads((tmp_path / "out" / STATE).read_bytes())
        assert state["files"].keys() == {n for n, h in present.items() if h != "directory"}
        skipped.append(len(state["files"]))
    done = list[int]()
    report = run(form, tmp_path, done.append)
    assert report.n_skipped == skipped[-1] > skipped[0] > 0
    assert sum(done) < total * 0.5
    assert (report.n_coded, report.n_copied) == (N_CODED[form], 12 - N_CODED[form])
    assert tree(tmp_path / "out") == wanted
    # a run that ended is no run to go on with
    with pytest.raises(EncodeError, match="output_exists"):
        run(form, tmp_path, lambda _: None)


def interrupted(folder: Path, form: str = "wcodec", **more: Any) -> int:
    """Stop an encoding run after its first files. Returns how many were finished."""
    with pytest.raises(Stop):
        encode_directory(
            folder / "model",
            folder / "out",
            form,
            progress=stopping(sizes(folder, "model")[0] // 2),
            **more,
        )
    return len(json.loads((folder / "out" / STATE).read_bytes())["files"])


def test_other_options_do_all_again(tmp_path: Path, model: Path) -> None:
    assert interrupted(tmp_path) > 2
    options, before = wcodec.EncodeOptions(segment=(16, 70)), tree(tmp_path / "out")
    with pytest.raises(
        EncodeError,
        match=(
            r"output_exists: the output '.*' is of a run that did not end, "
            r"with another input or other options"
        ),
    ):
        encode_directory(model, tmp_path / "out", options=options)
    assert tree(tmp_path / "out") == before
    assert encode_directory(model, tmp_path / "out", options=options, overwrite=True).n_skipped == 0
    encode_directory(model, tmp_path / "whole", options=options)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_changed_source_is_done_again(tmp_path: Path, model: Path) -> None:
    n = interrupted(tmp_path)
    # the one larger, the other of another time
    for i, name in enumerate(("assets/deep/noise.bin", "config.json")):
        path = model / name
        path.write_bytes(path.read_bytes() + b"\n" * (1 - i))
        os.utime(path, ns=(0, i))
    assert encode_directory(model, tmp_path / "out").n_skipped == n - 2
    decode_directory(tmp_path / "out", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(model)


def test_a_finished_file_that_is_gone_is_done_again(tmp_path: Path, model: Path) -> None:
    n = interrupted(tmp_path)
    (tmp_path / "out" / "config.json").unlink()
    assert encode_directory(model, tmp_path / "out").n_skipped == n - 1
    decode_directory(tmp_path / "out", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(model)


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"run": 1}',
        b'{"run": {}, "files": 7}',
        b"[" * 100_000,
        "list",
        "entries",
        "numbers",
    ],
)
def test_a_damaged_state_does_all_again(tmp_path: Path, model: Path, state: bytes | str) -> None:
    interrupted(tmp_path)
    path = tmp_path / "out" / STATE
    if isinstance(state, str):
        whole = json.loads(path.read_bytes())
        entry = next(iter(whole["files"].values()))
        files = {
            "list": [],
            "entries": dict.fromkeys(whole["files"], 7),
            "numbers": dict.fromkeys(whole["files"], entry | {"nbytes": "1"}),
        }
        state = json.dumps({"run": whole["run"], "files": files[state], "writing": ""}).encode()
    path.write_bytes(state)
    assert encode_directory(model, tmp_path / "out", overwrite=True).n_skipped == 0
    decode_directory(tmp_path / "out", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(model)


def test_what_a_killed_run_left_is_removed(tmp_path: Path, model: Path) -> None:
    interrupted(tmp_path)
    ours = [
        f".{STATE}.0123abcd.wcodec-tmp",
        ".model-00001-of-00002.wcodec.00000000.wcodec-tmp",
        "lora/.adapter_model.wcodec.ffffffff.wcodec-tmp",
    ]
    others = [
        ".model-00001-of-00002.wcodec.wcodec-tmp",
        ".other.wcodec.00000000.wcodec-tmp",
        "lora/.model-00001-of-00002.wcodec.00000000.wcodec-tmp",
    ]
    fill(tmp_path / "out", dict.fromkeys(ours, b"half"))
    assert plan_encode(model, tmp_path / "out").done
    fill(tmp_path / "out", dict.fromkeys(others, b"half"))
    with pytest.raises(EncodeError, match="output_exists: "):
        encode_directory(model, tmp_path / "out")
    encode_directory(model, tmp_path / "out", overwrite=True)
    found = tree(tmp_path / "out").keys()
    assert set(others) <= found
    assert not set(ours) & found


def test_a_run_that_fails_at_once_leaves_nothing(tmp_path: Path, model: Path) -> None:
    with pytest.raises(Stop):
        encode_directory(model, tmp_path / "out", progress=stopping(-1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    (tmp_path / "out").mkdir()
    with pytest.raises(Stop):
        encode_directory(model, tmp_path / "out", progress=stopping(-1))
    assert list((tmp_path / "out").iterdir()) == []
    fill(tmp_path / "out", {"mine": b"x"})
    with pytest.raises(Stop):
        encode_directory(model, tmp_path / "out", progress=stopping(-1), overwrite=True)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_an_unfinished_directory_is_no_input(tmp_path: Path, model: Path) -> None:
    interrupted(tmp_path, "hub")
    for function in (
        lambda: decode_directory(tmp_path / "out", tmp_path / "x"),
        lambda: verify_directory(tmp_path / "out"),
    ):
        with pytest.raises(
            DecodeError, match=r"truncated: '\.wcodec-resume\.json': the directory is unfinished"
        ):
            function()
    with pytest.raises(
        EncodeError, match=r"bad_source: '\.wcodec-resume\.json': the directory is unfinished"
    ):
        encode_directory(tmp_path / "out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


# ---- what is refused before anything is written --------------------------------------------------
def link(root: Path, name: str, to: str) -> None:
    (root / name).symlink_to(to)


LIKE_A_STREAM = safetensors_bytes([("a", "U8", [8], b"\x89WCODEC\n")])
BAD_SOURCES: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    "no weights": (lambda m: [p.unlink() for p in m.rglob("*.safetensors")], FORMS,
                   "there is no .safetensors file"),
    "weights twice": (lambda m: fill(m, {"lora/adapter_model.wcodec": b"x"}), FORMS,
                      "'lora/adapter_model.wcodec' is encoded already"),
    "an index twice": (lambda m: fill(m, {"model.wcodec.index.json": b"{}"}), FORMS,
                       "'model.wcodec.index.json' is encoded already"),
    "bad weights": (lambda m: fill(m, {"lora/x.safetensors": b"version https://git-lfs"}), FORMS,
                    "in 'lora/x.safetensors': not a"),
    "weights in hub form": (
        lambda m: fill(m, {"x.safetensors": safetensors_bytes([], {"wcodec": "0.2"})}), FORMS,
        "in 'x.safetensors': the file is in hub form"
    ),
    "a quantized model": (
        lambda m: fill(m, {"config.json": b'{"model_type": "x", "quantization_config": '
                                          b'{"quant_method": "gptq"}}'}),
        ("hub",), "in 'config.json': the model is quantized by gptq already; use --form wcodec",
    ),
    "a strange quantization": (
        lambda m: fill(m, {"config.json": b'{"model_type": "x", "quantization_config": null}'}),
        ("hub",), "quantized by an unknown method"
    ),
    "a config that is no JSON": (lambda m: fill(m, {"config.json": b"{"}), ("hub",),
                                 "in 'config.json': not JSON"),
    "a config that is no object": (lambda m: fill(m, {"config.json": b"[]"}), ("hub",),
                                   "in 'config.json': not a JSON object"),
    "an index that cannot be turned back": (
        lambda m: fill(m, {INDEX_NAME: b'{"weight_map": {"a": "x.safetensors", "b": "y.wcodec"}}'}),
        ("wcodec",), f"in '{INDEX_NAME}': the"
    ),
    "a link to a directory": (lambda m: link(m, "linked", "text_encoder"), FORMS,
                              "'linked' is a link to a directory"),
    "a link to itself": (lambda m: link(m, "loop", "."), FORMS, "'loop' is a link to a directory"),
    "a broken link": (lambda m: link(m, "broken", "missing"), FORMS, "'broken' is a broken link"),
    "a link with the name of an encoded file": (lambda m: link(m, "x.wcodec", SHARDS[0]), FORMS,
                                                f"'x.wcodec' is a name of '{SHARDS[0]}'"),
    "a pipe": (lambda m: os.mkfifo(m / "pipe"), FORMS, "'pipe' is neither a file nor a directory"),
    "something like a stream that is not encoded": (
        lambda m: fill(m, {"dense/config.json": b"{}", "dense/x.safetensors": LIKE_A_STREAM}),
        ("hub",), "'dense/x.safetensors' has a tensor that looks like a stream",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, form) for name, (_, forms, _) in BAD_SOURCES.items() for form in forms],
)
def test_a_bad_source(tmp_path: Path, model: Path, name: str, form: str) -> None:
    change, _, message = BAD_SOURCES[name]
    change(model)
    with pytest.raises(EncodeError) as e:
        encode_directory(model, tmp_path / "out", form)
    assert e.value.code == "bad_source"
    assert message in str(e.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("form", [*FORMS, "decode"])
def test_bad_targets(tmp_path: Path, model: Path, form: str) -> None:
    encode_directory(model, tmp_path / "coded")
    source = tmp_path / ("coded" if form == "decode" else "model")
    inside = "assets/deep/noise.bin"
    targets = {
        source: "are the same directory",
        source / "sub" / "deeper": "the output lies in the input",
        tmp_path: "the input lies in the output",
        tmp_path / "link": "are the same directory",
        fill(tmp_path, {"file": b""}) / "file": "is not a directory",
        fill(
            tmp_path / "a", {f"{inside}/x": b""}
        ): "a directory stands where the file 'assets/deep/noise.bin' goes",
        fill(tmp_path / "b", {"assets": b""}): "a file stands where the directory 'assets' goes",
        fill(tmp_path / "c", {"x": b""}): "'assets' is a link to a directory",
    }
    link(tmp_path, "link", source.name)
    link(tmp_path / "c", "assets", "../a")
    before = tree(tmp_path)
    for target, message in targets.items():
        write = partial(
            decode_directory if form == "decode" else partial(encode_directory, form=form),
            source,
            overwrite=True,
        )
        with pytest.raises(EncodeError) as e:
            write(target)
        assert (e.value.code, message in e.value.message) == ("bad_option", True), e.value
    assert tree(tmp_path) == before


def test_a_link_in_the_target_is_replaced_not_followed(tmp_path: Path, model: Path) -> None:
    fill(tmp_path, {"precious": b"x"})
    (tmp_path / "out").mkdir()
    link(tmp_path / "out", "config.json", "../precious")
    encode_directory(model, tmp_path / "out", overwrite=True)
    assert (tmp_path / "precious").read_bytes() == b"x"
    assert (tmp_path / "out" / "config.json").read_bytes() == CONFIG
    # a link that leads to another file of the plan
    due = tree(tmp_path / "out")
    (first, second) = sorted(p.name for p in (tmp_path / "out").glob("model-*.wcodec"))
    (tmp_path / "out" / first).unlink()
    link(tmp_path / "out", first, second)
    encode_directory(model, tmp_path / "out", overwrite=True)
    assert tree(tmp_path / "out") == due


# ---- damage --------------------------------------------------------------------------------------
def flip(path: Path, at: int = -3000) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def text(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str, str]] = {
    "a bit": ("wcodec", lambda c: flip(c / "text_encoder/model.wcodec"), "bad_checksum",
              "in 'text_encoder/model.wcodec': "),
    "a bit in a stream": ("hub", lambda c: flip(c / SHARDS[1]), "bad_checksum",
                          f"in '{SHARDS[1]}': "),
    "a cut": ("wcodec", lambda c: cut(c / "lora/adapter_model.wcodec"), "truncated",
              "in 'lora/adapter_model.wcodec': "),
    "a cut in hub form": ("hub", lambda c: cut(c / SHARDS[0]), "truncated", f"in '{SHARDS[0]}': "),
    "weights that are none": ("hub",
                              lambda c: (c / SHARDS[0]).write_bytes(b"version https://git-lfs"),
                              "bad_magic", "in 'model-00001"),
    "a later hub form": ("hub", lambda c: text(c / SHARDS[0], b'"0.2"', b'"0.3"'),
                         "unsupported_version", "in 'model-00001"),
    "a later config": ("hub", lambda c: text(c / "config.json", b'"0.2"', b'"0.3"'),
                       "unsupported_version", "in 'config.json': "),
    "a config that is no JSON": ("hub", lambda c: text(c / "config.json", b"{", b"("), "bad_value",
                                 "in 'config.json': "),
    "an index that mixes": ("wcodec",
                            lambda c: text(c / "model.wcodec.index.json", b'2.w',
                                           b'2.safetensors": ".w'), "bad_value", ""),
    "both forms": ("wcodec", lambda c: fill(c, {SHARDS[0]: safetensors_bytes([])}), "bad_value",
                   f"would both become '{SHARDS[0]}'"),
    "both indexes": ("wcodec", lambda c: fill(c, {INDEX_NAME: b"{}"}), "bad_value",
                     f"would both become '{INDEX_NAME}'"),
    "a directory in the place": ("wcodec", lambda c: (c / SHARDS[0]).mkdir(), "bad_value",
                                 f"would both become '{SHARDS[0]}'"),
    "a link to a directory": ("wcodec", lambda c: link(c, "linked", "lora"), "bad_value",
                              "'linked' is a link to a directory"),
    "nothing encoded": ("wcodec", lambda c: [p.unlink() for p in c.rglob("*.wcodec")], "bad_magic",
                        "there is neither"),
}  # fmt: skip
#: Damage that is found when the file before has been written, or that only a decoder would meet.
LATE = {"a bit", "a bit in a stream"}
NOT_VERIFIED = {"an index that mixes", "both forms", "both indexes", "a directory in the place"}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(tmp_path: Path, model: Path, name: str) -> None:
    form, damage, code, message = DAMAGE[name]
    encode_directory(model, tmp_path / "coded", form)
    damage(tmp_path / "coded")
    with pytest.raises(DecodeError) as e:
        decode_directory(tmp_path / "coded", tmp_path / "back")
    assert e.value.code == code, e.value
    assert message in str(e.value)
    if name in LATE:
        assert e.value.tensor in {"w", "scale"}
        present = {n: h for n, h in tree(tmp_path / "back").items() if n != STATE}
        assert present.items() < tree(model).items(), "whole files alone"
    else:
        assert not (tmp_path / "back").exists()
    if name not in NOT_VERIFIED:
        with pytest.raises(DecodeError) as again:
            verify_directory(tmp_path / "coded")
        assert (again.value.code, again.value.tensor) == (code, e.value.tensor)


@pytest.mark.parametrize("form", FORMS)
def test_a_shard_that_is_missing(tmp_path: Path, model: Path, form: str) -> None:
    encode_directory(model, tmp_path / "coded", form)
    name = SHARDS[1] if form == "hub" else SHARDS[1].replace(".safetensors", ".wcodec")
    (tmp_path / "coded" / name).unlink()
    message = f"in '.*index.json': the index names '{name}', which is not there"
    for look in (verify_directory, lambda d: decode_directory(d, tmp_path / "back")):
        with pytest.raises(DecodeError, match=f"truncated: {message}"):
            look(tmp_path / "coded")
    (model / SHARDS[1]).unlink()
    with pytest.raises(
        EncodeError,
        match=f"bad_source: in '.*index.json': the index names '{SHARDS[1]}', which is not there",
    ):
        encode_directory(model, tmp_path / "again", form)
    assert not (tmp_path / "back").exists()
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "index",
    [
        b"{}",
        b"[]",
        b'{"weight_map": {"a": 7}}',
        b'{"weight_map": {"a": []}}',
        b'{"weight_map": []}',
        b"\xff",
    ],
)
def test_an_index_that_is_none(tmp_path: Path, model: Path, index: bytes) -> None:
    fill(model, {INDEX_NAME: index})
    encode_directory(model, tmp_path / "coded")
    with pytest.raises(DecodeError, match=r"bad_value: in 'model.wcodec.index.json': not an index"):
        verify_directory(tmp_path / "coded")
    decode_directory(tmp_path / "coded", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(model)


@pytest.mark.parametrize("form", FORMS)
def test_names_in_an_index_are_not_followed(tmp_path: Path, form: str) -> None:
    fill(tmp_path / "elsewhere", {"x.safetensors": weights(9)})
    index = json.dumps(
        {
            "weight_map": {
                "w": "../elsewhere/x.safetensors",
                "v": "/etc/passwd",
                "u": "model.safetensors",
            }
        }
    ).encode()
    fill(
        tmp_path / "model",
        {"model.safetensors": weights(1), INDEX_NAME: index, "config.json": CONFIG},
    )
    before = tree(tmp_path / "elsewhere")
    assert there_and_back_without_verifying(tmp_path, form).n_coded == 1
    assert tree(tmp_path / "elsewhere") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "coded", "elsewhere", "model"]


def there_and_back_without_verifying(folder: Path, form: str) -> Report:
    report = encode_directory(folder / "model", folder / "coded", form)
    decode_directory(folder / "coded", folder / "back")
    assert tree(folder / "back") == tree(folder / "model")
    return report


def test_limits(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for form in FORMS:
        coded = tmp_path / form
        encode_directory(model, coded, form)
        total = N_CODED[form] * (60 * 70 * 2 + 12 + 2 + 9 + 80 * 90)
        for function in (
            partial(verify_directory, coded),
            partial(decode_directory, coded, tmp_path / "x"),
        ):
            with pytest.raises(DecodeError, match="resource_limit"):
                function(max_nbytes=total - 1)
        verify_directory(coded, max_nbytes=total)
        with monkeypatch.context() as m:
            m.setattr(
                "shutil.disk_usage",
                lambda _: SimpleNamespace(total=1 << 40, free=sizes(tmp_path, "model")[0] - 1),
            )
            with pytest.raises(DecodeError, match="resource_limit"):
                decode_directory(coded, tmp_path / "x")
    assert not (tmp_path / "x").exists()


# ---- config.json ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "raw",
    [
        CONFIG,
        b'{"a":1}',
        b'\r\n\t{\r\n"a": "{"}\r\n',
        b'{"text_config": {"quantization_config": {}}}',
    ],
)
def test_the_entry_comes_out_as_it_went_in(raw: bytes) -> None:
    added = add_entry(raw)
    assert len(added) == len(raw) + len(ENTRY)
    assert json.loads(added) == {
        "quantization_config": {"quant_method": "wcodec", "format_version": "0.2"},
        **json.loads(raw),
    }
    assert remove_entry(added) == raw
    assert remove_entry(raw) == raw
    assert json.loads(add_entry(raw, "float16"))["quantization_config"]["dtype"] == "float16"
    assert remove_entry(add_entry(raw, "float16")) == raw
    named = raw.replace(b"{", b'{"torch_dtype": "float32",', 1)
    assert add_entry(named, "float16") == add_entry(named)


def test_a_config_that_was_written_anew() -> None:
    """As by save_pretrained: sorted, with more of the entry."""
    entry = {"format_version": "0.2", "mode": "resident", "quant_method": "wcodec"}
    config = {"model_type": "x", "quantization_config": entry, "snow": "\N{SNOWMAN}"}
    written = json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"
    assert remove_entry(written) == b'{\n  "model_type": "x",\n  "snow": "\\u2603"\n}\n'
    other = json.dumps({"quantization_config": {"quant_method": "gptq"}}).encode()
    assert remove_entry(other) == other
    with pytest.raises(EncodeError, match="the object is empty"):
        add_entry(b"{ }")


def test_a_directory_that_another_program_saved(tmp_path: Path) -> None:
    """Streams without an original header, and a config.json written anew."""
    array = make_array(BY_NAME["bfloat16"], (100, 90), "gaussian")
    (tmp_path / "coded").mkdir()
    stream = np.frombuffer(wcodec.encode(array), np.uint8)
    safetensors.numpy.save_file(
        {"w": stream, "b": np.arange(3.0)},
        tmp_path / "coded" / "model.safetensors",
        {"format": "pt"},
    )
    config = {"model_type": "x", "quantization_config": {"quant_method": "wcodec"}}
    fill(tmp_path / "coded", {"config.json": json.dumps(config, indent=2).encode()})
    decode_directory(tmp_path / "coded", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_bytes()) == {"model_type": "x"}
    back = safetensors.numpy.load_file(tmp_path / "back" / "model.safetensors")
    assert bits(back["w"]) == bits(array)
    assert verify_directory(tmp_path / "coded").n_coded == 1


def test_names_of_shards() -> None:
    raw = b'{"a": "x.safetensors", "b.safetensors": "c"}'
    assert rename_shards(raw, b".safetensors", b".wcodec") == b'{"a": "x.wcodec", "b.wcodec": "c"}'
    assert rename_shards(b'"x.wcodec"', b".safetensors", b".wcodec") is None


# ---- one call, and the command -------------------------------------------------------------------
def test_encode_safetensors_to_wcodec(tmp_path: Path, model: Path) -> None:
    name = model / SHARDS[0]
    for form in FORMS:
        done = list[int]()
        report = wcodec.encode_safetensors_to_wcodec(
            name,
            tmp_path / "one",
            form=form,
            backend="reference",
            progress=done.append,
            overwrite=True,
        )
        assert report == Report(1, 0, 0, name.stat().st_size, (tmp_path / "one").stat().st_size)
        assert sum(done) > 15_000
        assert (
            wcodec.encode_safetensors_to_wcodec(str(model), tmp_path / form, form=form).n_coded
            == N_CODED[form]
        )
        decode_directory(tmp_path / form, tmp_path / f"{form}-back")
        assert tree(tmp_path / f"{form}-back") == tree(model)
    assert is_hub(tmp_path / "one")
    fast, options = wcodec.EncodeOptions(preset="fast"), wcodec.EncodeOptions(segment=(16, 70))
    for more, same in (({"preset": "fast"}, fast), ({"options": options}, options)):
        wcodec.encode_safetensors_to_wcodec(model, tmp_path / "more", overwrite=True, **more)  # type: ignore[arg-type]
        encode_directory(model, tmp_path / "same", options=same, overwrite=True)
        assert tree(tmp_path / "more") == tree(tmp_path / "same")
    assert tree(tmp_path / "more") != tree(tmp_path / "wcodec")
    report = wcodec.encode_safetensors_to_wcodec(name, tmp_path / "x.wcodec", base=name)
    assert report.stored_nbytes < 3000


def test_bad_calls(tmp_path: Path, model: Path) -> None:
    name = model / SHARDS[0]
    hub = tmp_path / "hub.safetensors"
    wcodec.encode_safetensors_to_wcodec(name, hub, form="hub")
    calls: list[tuple[dict[str, Any], str]] = [
        ({"form": "zip"}, "bad_option"),
        ({"preset": "best"}, "bad_option"),
        ({"preset": "max", "options": wcodec.EncodeOptions()}, "bad_option"),
        ({"form": "hub", "base": model}, "bad_option"),
    ]
    for source in (model, name):
        for more, code in calls:
            with pytest.raises(EncodeError) as e:
                wcodec.encode_safetensors_to_wcodec(source, tmp_path / "out", **more)
            assert e.value.code == code
    with pytest.raises(EncodeError, match=r"bad_option: the output '.*' is a directory"):
        wcodec.encode_safetensors_to_wcodec(name, model)
    for form in FORMS:
        with pytest.raises(
            EncodeError,
            match=r"bad_source: in '.*hub.safetensors': the file is in hub form already",
        ):
            wcodec.encode_safetensors_to_wcodec(hub, tmp_path / "out", form=form)
    with pytest.raises(BackendUnavailable):
        wcodec.encode_safetensors_to_wcodec(name, tmp_path / "out", backend="none")
    with pytest.raises(FileNotFoundError):
        wcodec.encode_safetensors_to_wcodec(tmp_path / "missing", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hub.safetensors", "model"]


@pytest.fixture
def here(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, which holds ``model``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WCODEC_BACKEND", raising=False)
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_the_command(here: Path, form: str) -> None:
    status, out, err = call("encode", "--form", form, "model", "-o", "coded")
    assert (status, err) == (0, "")
    n = N_CODED[form]
    assert out.startswith(f"model -> coded: {n} files encoded, {12 - n} copied, 6"), out
    status, out, err = call("verify", "coded", "--json")
    report = json.loads(out)
    found = (status, err, report["good"], report["n_coded"], report["input"])
    assert found == (0, "", True, n, "coded")
    status, out, err = call("info", "coded")
    assert (status, err, len(out.splitlines())) == (0, "", n + 1)
    assert out.startswith(f"coded: a directory with {n} encoded files, ")
    status, out, err = call("info", "coded", "--json")
    assert [f["form"] for f in json.loads(out)["files"]] == [form] * n
    status, out, err = call("decode", "coded", "-o", "back", "--json")
    report = json.loads(out)
    assert (
        status,
        err,
        report["output"],
        report["n_coded"],
        report["n_copied"],
        report["n_skipped"],
    ) == (0, "", "back", n, 12 - n, 0)
    assert [report["nbytes"], report["stored_nbytes"]] == sizes(here, "back", "coded")
    assert tree(here / "back") == tree(here / "model")
    assert call("encode", "--form", form, "model", "-f", "-o", "coded", "-q") == (0, "", "")
    status, out, err = call("encode", "--form", form, "model", "-f", "-o", "coded", "--json")
    assert json.loads(out).keys() == {
        "input", "output", "form", "n_coded", "n_copied", "n_skipped", "nbytes", "stored_nbytes",
        "ratio", "seconds", "backend",
    }  # fmt: skip


def test_the_command_goes_on(here: Path) -> None:
    n = interrupted(here)
    status, out, _ = call("encode", "model", "-o", "out")
    assert (status, f"4 files encoded, 8 copied, {n} of these 12 done before, " in out) == (0, True)


def test_the_command_with_a_base(here: Path) -> None:
    fill(here / "base", MODEL)
    assert call("encode", "model", "-o", "coded", "--base", "base", "-q")[0] == 0
    status, _, err = call("decode", "coded", "-o", "back")
    assert (status, err.startswith("wcodec: error: bad_base: in ")) == (1, True)
    for args in (("verify", "coded"), ("info", "coded"), ("decode", "coded", "-f", "-o", "back")):
        assert call(*args, "--base", "base")[0] == 0
    assert tree(here / "back") == tree(here / "model")


def test_the_command_on_one_file_in_hub_form(here: Path) -> None:
    name = f"model/{SHARDS[0]}"
    status, out, err = call("encode", "--form", "hub", name, "-o", "hub.safetensors", "--json")
    report = json.loads(out)
    found = (status, err, report["form"], report["stored_nbytes"])
    assert found == (0, "", "hub", (here / "hub.safetensors").stat().st_size)
    status, out, err = call("verify", "hub.safetensors")
    assert (status, err, out.startswith("hub.safetensors: 1 file good, ")) == (0, "", True)
    status, out, err = call("info", "hub.safetensors")
    assert (status, err, len(out.splitlines())) == (0, "", 7)
    assert out.startswith("hub.safetensors: hub form, 6 tensors, 3 of them encoded, ")
    status, out, err = call("info", "hub.safetensors", "--json")
    assert {t["name"]: t["is_stream"] for t in json.loads(out)["tensors"]} == {
        "w": True, "b": False, "none": False, "four": False, "stream": True, "scale": True
    }  # fmt: skip
    (here / "hub.safetensors").rename("hub.bin")
    status, out, err = call("decode", "hub.bin", "-o", "back", "--json")
    assert (status, err, json.loads(out)["nbytes"]) == (0, "", (here / name).stat().st_size)
    assert (here / "back").read_bytes() == (here / name).read_bytes()


def test_the_command_on_damage(here: Path) -> None:
    for form in FORMS:
        call("encode", "--form", form, "model", "-o", form, "-q")
        flip(next((here / form).glob("model-00001*")))
        for args in (["decode", form, "-o", f"{form}-back"], ["verify", form]):
            status, out, err = call(*args)
            assert (status, out, err.count("\n")) == (1, "", 1)
            assert err.startswith(
                f"wcodec: error: bad_checksum: in '{form}/model-00001-of-00002."
            ), err
            assert "(tensor '" in err
        assert not list((here / f"{form}-back").glob("model-00001*"))


def test_errors_say_which_file(tmp_path: Path, model: Path) -> None:
    fill(model, {"lora/bad\n\x1b[31m.safetensors": b"xx"})
    with pytest.raises(
        CodecError, match=r"in 'lora/bad\\n\\x1b\[31m.safetensors': not a safetensors file"
    ):
        encode_directory(model, tmp_path / "out")
