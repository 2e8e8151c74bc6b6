"""The content SHA-256 (spec: 11.1): the same of every form, another one of other content."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inputs import ARRAY_DTYPES, make_array, safetensors_bytes
from memory import peak_of

import wcodec
from wcodec.cli import main
from wcodec.errors import DecodeError, EncodeError
from wcodec.files.repack import repack_file
from wcodec.planner.options import EncodeOptions

METADATA = {"format": "pt", "é": "ü\n", "empty": ""}
Tensors = list[tuple[str, str, list[int], bytes]]


def independent(path: Path) -> str:
    """Section 11.1 of the spec, of a safetensors file, by hashlib and json alone."""
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__", {})

    def text(value: str) -> bytes:
        return struct.pack("<I", len(value.encode())) + value.encode()

    total = hashlib.sha256(b"wcodec content 1\n" + struct.pack("<I", len(metadata)))
    for key in sorted(metadata, key=str.encode):
        total.update(text(key) + text(metadata[key]))
    for name in sorted(header, key=str.encode):
        t, shape = header[name], header[name]["shape"]
        first, end = t["data_offsets"]
        total.update(text(name) + text(t["dtype"]) + struct.pack("<I", len(shape)))
        total.update(b"".join(struct.pack("<Q", n) for n in shape))
        total.update(hashlib.sha256(data[start + first : start + end]).digest())
    return total.hexdigest()


def some_tensors() -> Tensors:
    """Of all dtypes, some equal, some empty, one of a dtype without an id."""
    found = Tensors()
    for i, d in enumerate(d for d in ARRAY_DTYPES if d.safetensors):
        for shape in ((64, 96), (3,), (), (0, 2)):
            array = make_array(d, shape, "gaussian", i)
            found.append((f"{d.name}.{shape}", d.safetensors, list(shape), array.tobytes()))
    found.append(("twin", *found[4][1:]))
    found.append(("Ω", "F4", [4, 6], bytes(range(12))))
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("content") / "m.safetensors"
    path.write_bytes(safetensors_bytes(some_tensors(), METADATA, padding=5))
    return path


def test_an_independent_computation_agrees(source: Path, tmp_path: Path) -> None:
    assert wcodec.content_sha256(source) == independent(source)
    path = tmp_path / "none.safetensors"
    path.write_bytes(safetensors_bytes([]))
    assert wcodec.content_sha256(path) == independent(path)
    # of nothing: the mark and four bytes
    assert independent(path) == hashlib.sha256(b"wcodec content 1\n" + bytes(4)).hexdigest()


@pytest.mark.parametrize(
    ("preset", "backend"),
    [("fast", "numba"), ("default", "numba"), ("max", "numba"), ("fast", "reference")],
)
def test_it_is_the_same_of_every_form(
    source: Path, tmp_path: Path, preset: str, backend: str
) -> None:
    due, coded, again = independent(source), tmp_path / "m.wcodec", tmp_path / "again.wcodec"
    encode: Callable[..., Any] = wcodec.encode_safetensors_to_wcodec
    encode(source, coded, preset=preset, backend="numba")
    encode(source, tmp_path / "hub.safetensors", form="hub", preset=preset, backend="numba")
    repack_file(coded, again, EncodeOptions(layout="raw"))
    with wcodec.use_backend(backend):
        for path in (coded, tmp_path / "hub.safetensors", again):
            assert wcodec.content_sha256(path) == due, path


def test_it_is_that_of_saved_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"b": rng.standard_normal((64, 64)), "a": np.float32(2).reshape(())}
    entries = [
        (n, {"b": "F64", "a": "F32"}[n], list(a.shape), a.tobytes()) for n, a in arrays.items()
    ]
    for i, order in enumerate((entries, entries[::-1])):
        path = tmp_path / f"{i}.safetensors"
        path.write_bytes(safetensors_bytes(order, {"k": "v"}, padding=8 * i))
        assert wcodec.content_sha256(path) == independent(tmp_path / "0.safetensors")
    wcodec.save_file(arrays, tmp_path / "m.wcodec", metadata={"k": "v"})
    assert wcodec.content_sha256(tmp_path / "m.wcodec") == independent(tmp_path / "0.safetensors")


def test_it_is_the_same_of_a_difference(source: Path, tmp_path: Path) -> None:
    tensors = some_tensors()
    tensors[0] = (*tensors[0][:3], bytes([1]) + tensors[0][3][1:])
    (tmp_path / "t.safetensors").write_bytes(safetensors_bytes(tensors))
    wcodec.encode_safetensors_to_wcodec(
        tmp_path / "t.safetensors", tmp_path / "t.wcodec", base=source
    )
    due = independent(tmp_path / "t.safetensors")
    assert wcodec.content_sha256(tmp_path / "t.wcodec", source) == due
    with pytest.raises(DecodeError, match="bad_base"):
        wcodec.content_sha256(tmp_path / "t.wcodec")


def _name(t: Tensors) -> None:
    t[0] = ("other", *t[0][1:])


def _byte(t: Tensors) -> None:
    t[0] = (*t[0][:3], bytes([t[0][3][0] ^ 1]) + t[0][3][1:])


def _dtype(t: Tensors) -> None:
    t[1] = (t[1][0], "U8", *t[1][2:])


def _shape(t: Tensors) -> None:
    t[0] = (t[0][0], t[0][1], [1, *t[0][2]], t[0][3])


def _swapped(t: Tensors) -> None:
    t[0], t[4] = (t[4][0], *t[0][1:]), (t[0][0], *t[4][1:])


def _fewer(t: Tensors) -> None:
    del t[3]


@pytest.mark.parametrize("change", [_name, _byte, _dtype, _shape, _swapped, _fewer])
def test_other_tensors_have_another(
    change: Callable[[Tensors], None], source: Path, tmp_path: Path
) -> None:
    tensors = some_tensors()
    change(tensors)
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes(tensors, METADATA, padding=5))
    assert wcodec.content_sha256(path) == independent(path) != independent(source)


def test_texts_run_into_no_others(tmp_path: Path) -> None:
    """A byte moved from one text to the next makes another hash."""
    found = set[str]()
    for metadata in ({}, {"ab": "c"}, {"a": "bc"}, {"a": "b", "c": ""}, {"abc": ""}, {"": "abc"}):
        for name in ("", "F", "FU8"):
            path = tmp_path / "m.safetensors"
            path.write_bytes(safetensors_bytes([(name, "U8", [0], b"")], metadata))
            found.add(wcodec.content_sha256(path))
    assert len(found) == 18


def test_a_file_that_restores_another_one_has_none(tmp_path: Path) -> None:
    """Its header swaps two tensors: who reads it and who restores it get others."""
    one, two = (np.full((2, 2), n, np.float32) for n in (1, 2))
    good = safetensors_bytes([(n, "F32", [2, 2], a.tobytes()) for n, a in (("a", one), ("b", two))])
    (tmp_path / "m.safetensors").write_bytes(good)
    swapped = good[: -2 * one.nbytes].replace(b'"a"', b'"?"').replace(b'"b"', b'"a"')
    other = swapped.replace(b'"?"', b'"b"')
    other_metadata = safetensors_bytes(
        [(n, "F32", [2, 2], a.tobytes()) for n, a in (("a", one), ("b", two))], {"k": "v"}
    )[: -2 * one.nbytes]
    short = struct.pack("<Q", 2) + b"{}"
    for header in (other, other_metadata, short, b"no header"):
        with open(tmp_path / "m.wcodec", "wb") as f:
            writer = wcodec.Encoder().start(f)
            writer.add("a", one)
            writer.add("b", two)
            writer.finish({}, header)
        with pytest.raises(DecodeError, match=r"bad_value: .*original header"):
            wcodec.content_sha256(tmp_path / "m.wcodec")


def test_what_is_no_checkpoint_has_none(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    good = safetensors_bytes([("a", "U8", [3], b"abc")])
    for data in (b"", b"junk", good[:-1], good + b"x"):
        path.write_bytes(data)
        with pytest.raises((DecodeError, EncodeError)) as raised:
            wcodec.content_sha256(path)
        assert raised.value.file == str(path)


def test_it_takes_the_memory_of_a_few_pieces(tmp_path: Path) -> None:
    n = 24 << 20
    data = safetensors_bytes([("w", "I16", [n // 2], np.arange(n // 2, dtype="<i2").tobytes())])
    (tmp_path / "m.safetensors").write_bytes(data)
    wcodec.encode_safetensors_to_wcodec(tmp_path / "m.safetensors", tmp_path / "m.wcodec")
    del data
    told = list[int]()
    for path, most in ((tmp_path / "m.safetensors", 20 << 20), (tmp_path / "m.wcodec", 64 << 20)):
        assert peak_of(lambda p=path: wcodec.content_sha256(p, progress=told.append)) < most
    assert sum(told) == 4 * n


# ---- the command ---------------------------------------------------------------------------------
@pytest.fixture
def folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(source, tmp_path / "m.safetensors")
    (tmp_path / "plain" / "sub").mkdir(parents=True)
    for name in ("b.safetensors", "a.safetensors", "sub/c.safetensors"):
        (tmp_path / "plain" / name).write_bytes(
            safetensors_bytes([("w", "U8", [5], f"{name:5.5}".encode())])
        )
    for form in ("wcodec", "hub"):
        wcodec.encode_safetensors_to_wcodec("plain", form, form=form)
    wcodec.encode_safetensors_to_wcodec("m.safetensors", "m.wcodec")
    return tmp_path


def test_lines_are_those_of_sha256sum(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    due = independent(folder / "m.safetensors")
    (folder / "a\n\\b.wcodec").write_bytes((folder / "m.wcodec").read_bytes())
    assert main(["hash", "m.safetensors", "m.wcodec", "a\n\\b.wcodec"]) == 0
    out = capsys.readouterr().out
    assert out == f"{due}  m.safetensors\n{due}  m.wcodec\n\\{due}  a\\n\\\\b.wcodec\n"
    Path("sums").write_text(out)
    assert main(["hash", "--check", "sums"]) == 0
    said = capsys.readouterr().out
    assert said == "m.safetensors: OK\nm.wcodec: OK\n$'a\\x0a\\\\b.wcodec': OK\n"
    assert main(["hash", "--json", "m.wcodec"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": "m.wcodec", "sha256": due}


def test_a_directory_has_a_line_for_each_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("a", "b", "sub/c")
    digests = [independent(folder / "plain" / f"{n}.safetensors") for n in names]
    for form, ending in (("plain", "safetensors"), ("hub", "safetensors"), ("wcodec", "wcodec")):
        assert main(["hash", form]) == 0
        lines = [f"{d}  {form}/{n}.{ending}\n" for d, n in zip(digests, names, strict=True)]
        assert capsys.readouterr().out == "".join(lines)
    (folder / "none").mkdir()
    assert main(["hash", "none"]) == 1
    assert capsys.readouterr().err.startswith("wcodec: error: bad_magic: ")


def test_sums_of_one_form_check_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the originals, published once."""
    assert main(["hash", "plain"]) == 0
    Path("sums").write_text(capsys.readouterr().out.replace("  plain/", "  "))
    for form, ending in (("plain", "safetensors"), ("hub", "safetensors"), ("wcodec", "wcodec")):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(form)
            assert main(["hash", "--check", "../sums"]) == 0
        due = "".join(f"{n}.{ending}: OK\n" for n in ("a", "b", "sub/c"))
        assert capsys.readouterr().out == due


def test_what_differs_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    due, wrong = independent(folder / "m.safetensors"), "0" * 64
    Path("sums").write_text(f"{wrong}  m.wcodec\n{due} *m.safetensors\n{due}  gone.wcodec\n")
    assert main(["hash", "--check", "sums"]) == 1
    out, err = capsys.readouterr()
    assert out == "m.wcodec: FAILED\nm.safetensors: OK\n"
    assert err.splitlines() == [
        "wcodec: error: gone.wcodec: No such file or directory",
        "wcodec: error: 1 of the files of 'sums' hold something else: 'm.wcodec'",
    ]
    assert main(["hash", "--check", "sums", "-q", "--json"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == [{"file": "m.wcodec", "good": False, "sha256": due}]
    for text in (
        "",
        "junk\n",
        f"{due[1:]}  m.wcodec\n",
        f"{due}  \n",
        f"{due.upper()}  m.wcodec\n",
    ):
        Path("sums").write_text(text)
        assert main(["hash", "--check", "sums"]) == 1
        assert capsys.readouterr().err.startswith("wcodec: error: bad_value: in 'sums': ")


@pytest.mark.parametrize("args", [[], ["--check", "sums", "m.wcodec"]])
def test_files_or_sums_are_named(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["hash", *args])
    assert "name files to hash, or a file of --check" in capsys.readouterr().err


def test_hashing_has_limits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub = "hub/a.safetensors"
    for name in ("m.wcodec", hub):
        for option in ("--max-nbytes", "--max-memory"):
            assert main(["hash", name, option, "4"]) == 1
            assert capsys.readouterr().err.startswith("wcodec: error: resource_limit: in '")
