"""Manifests of strangers: each rule of spec/chain.md that one can break."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wcodec
from wcodec.deltas.manifest import MAX_NBYTES, Manifest, Version, read_manifest
from wcodec.errors import DecodeError, EncodeError

VERSIONS = (
    Version(1, "full", None, "1-00000000.wcodec", 9, 0, "0" * 64, "2026-01-02T03:04:05Z", {}, True),
    Version(3, "delta", 1, "3-0000000a.wcodec", 9, 0, "a" * 64, "2026-01-02T03:04:06Z", {"é": "x"}),
    Version(4, "delta", 3, "4-0000000b.wcodec", 9, 0, "b" * 64, "2026-01-02T03:04:06Z", {}),
)
GOOD = Manifest(7, VERSIONS)


def fields() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOOD.write())
    return found


def test_a_manifest_is_what_the_spec_says() -> None:
    assert read_manifest(GOOD.write()) == GOOD
    assert json.loads(Manifest(1, VERSIONS[:1]).write()) == {
        "format": "wcodec chain", "generation": 1, "major": 1, "minor": 0,
        "versions": [
            {
                "content_hash": "0" * 64, "data_nbytes": 0, "file": "1-00000000.wcodec",
                "kind": "full", "metadata": {}, "nbytes": 9, "parent": None, "retired": True,
                "time": "2026-01-02T03:04:05Z", "version": 1,
            }
        ],
    }  # fmt: skip
    assert GOOD.shown == list(VERSIONS[1:])
    assert GOOD.path(VERSIONS[2]) == list(VERSIONS)


def put(key: str, value: Any, i: int | None = 1) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        (found if i is None else found["versions"][i])[key] = value

    return change


def drop(key: str, i: int | None = 1) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        del (found if i is None else found["versions"][i])[key]

    return change


BAD = [
    ("bad_magic", put("format", "wcodec", None)),
    ("bad_magic", drop("format", None)),
    ("unsupported_version", put("major", 2, None)),
    ("bad_value", put("major", "1", None)),
    ("bad_value", put("minor", -1, None)),
    ("bad_value", put("generation", 0, None)),
    ("bad_value", put("generation", True, None)),
    ("bad_value", put("generation", 1.5, None)),
    ("bad_value", put("versions", {}, None)),
    ("bad_value", put("versions", [3], None)),
    *(("bad_value", drop(key)) for key in Version._fields),
    ("bad_value", put("version", 1)),
    ("bad_value", put("version", 9)),
    ("bad_value", put("version", 1 << 63, 2)),
    ("bad_value", put("version", 0, 0)),
    ("bad_base", put("parent", 3)),
    ("bad_base", put("parent", 4)),
    ("bad_base", put("parent", 2)),
    ("bad_value", put("parent", None)),
    ("bad_value", put("parent", True)),
    ("bad_value", put("parent", 1, 0)),
    ("bad_value", put("kind", "half")),
    ("bad_value", put("kind", ["full"])),
    *(
        ("bad_name", put("file", name))
        for name in (
            "../3-0000000a.wcodec", "/etc/passwd", "", "..", "3-0000000a.wcodec/", "chain.json",
            "3-0000000A.wcodec", "3-0000000a.wcodec\n", "x/3-0000000a.wcodec", "s3://b/3.wcodec",
            "٣-0000000a.wcodec", "4-0000000b.wcodec", "1" * 300 + "-0000000a.wcodec",
        )
    ),
    ("bad_value", put("file", 3)),
    ("bad_value", put("nbytes", -1)),
    ("bad_value", put("nbytes", 10**400)),
    ("bad_value", put("data_nbytes", None)),
    ("bad_value", put("content_hash", "A" * 64)),
    ("bad_value", put("content_hash", "a" * 63)),
    *(
        ("bad_value", put("time", text))
        for text in ("now", "2026-13-02T03:04:05Z", "2026-01-02T03:04:05", "2026-1-2T3:4:5Z", 3)
    ),
    ("bad_value", put("metadata", {"a": 1})),
    ("bad_value", put("metadata", [])),
    ("bad_name", put("metadata", {"a": "\ud800"})),
    ("bad_value", put("retired", 0)),
    ("bad_value", put("retired", True, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("code", "change"), BAD)
def test_a_rule_that_is_broken(
    code: str, change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    found = fields()
    change(found)
    (tmp_path / "chain.json").write_text(json.dumps(found))
    with pytest.raises(DecodeError) as e:
        wcodec.Chain(tmp_path).versions()
    assert e.value.code == code
    assert e.value.file == str(tmp_path / "chain.json")
    with pytest.raises(DecodeError):
        wcodec.Chain(tmp_path).append({})


@pytest.mark.parametrize(
    ("code", "raw"),
    [
        ("bad_value", b""),
        ("bad_value", b"\xff"),
        ("bad_value", b"[" * 100_000),
        ("bad_value", b'{"generation": ' + b"1" * 10_000 + b"}"),
        ("bad_magic", b"[]"),
        ("bad_name", b'{"format": "wcodec chain", "format": "wcodec chain"}'),
        ("resource_limit", b" " * (MAX_NBYTES + 1)),
    ],
)
def test_what_is_no_manifest(code: str, raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "chain.json").write_bytes(raw)
    with pytest.raises(DecodeError) as e:
        wcodec.Chain(tmp_path).load()
    assert e.value.code == code


def test_a_later_minor_version_is_read_and_not_written(tmp_path: Path) -> None:
    wcodec.Chain(tmp_path).append({})
    found = json.loads((tmp_path / "chain.json").read_text())
    found |= {"minor": 1, "colour": "blue"}
    (tmp_path / "chain.json").write_text(json.dumps(found))
    chain = wcodec.Chain(tmp_path)
    assert chain.load() == {}
    with pytest.raises(EncodeError, match=r"bad_option: .*1\.1 is read, not written"):
        chain.append({})
    assert len(list(tmp_path.iterdir())) == 2


def test_texts_that_cannot_be_written(tmp_path: Path) -> None:
    chain = wcodec.Chain(tmp_path)
    with pytest.raises(EncodeError, match="bad_name"):
        chain.append({}, {"a": "\ud800"})
    with pytest.raises(TypeError):
        chain.append({}, {"a": 1})  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=5,
)


@given(st.data())
def test_anything_in_place_of_a_field(data: st.DataObject) -> None:
    """No error but those of the list, and what is read is written the same."""
    found = fields()
    place = data.draw(st.sampled_from([found, *found["versions"]]))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON)
    try:
        manifest = read_manifest(json.dumps(found).encode())
    except DecodeError:
        return
    assert read_manifest(manifest.write()) == manifest


@given(st.binary(max_size=40), st.integers(0, 2000))
def test_damaged_bytes(noise: bytes, at: int) -> None:
    raw = GOOD.write()
    try:
        read_manifest(raw[:at] + noise + raw[at + len(noise) :])
    except DecodeError:
        return
