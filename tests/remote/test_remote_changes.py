"""Objects that change while they are read are noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Checkpoint, put
from servers import HttpFiles

import wcodec
from wcodec.codec.urls import Url
from wcodec.errors import CodecError, DecodeError, EncodeError
from wcodec.files.checkpoint import decode_file, encode_file, verify_file


# ---- objects that change -------------------------------------------------------------------------
def shorten(data: bytes) -> bytes:
    return data[:-100]


def rewrite(data: bytes) -> bytes:
    return data[:-70000] + b"\1" * 70000


CHANGES = {"truncated": shorten, "changed": rewrite}


@pytest.mark.parametrize("code", CHANGES)
@pytest.mark.parametrize("at", [4, 12])
def test_an_object_that_changes_behind_http(
    code: str, at: int, http: HttpFiles, made: Checkpoint, here: Path, small_blocks: int
) -> None:
    url = http.url

    def change(n: int, name: str, h: Any) -> bool:
        with http.lock:
            if n == at:
                http.files[name] = CHANGES[code](http.files[name])
        return False

    steps: list[tuple[type[CodecError], Callable[[], object]]] = [
        (EncodeError, lambda: encode_file(f"{url}/m.safetensors", "out")),
        (DecodeError, lambda: decode_file(f"{url}/m.wcodec", "out")),
        (DecodeError, lambda: verify_file(f"{url}/m.wcodec")),
        (DecodeError, lambda: wcodec.load_file(f"{url}/m.wcodec")),
        (EncodeError, lambda: wcodec.content_sha256(f"{url}/m.safetensors")),
    ]
    for kind, step in steps:
        http.files = {"m.wcodec": made.coded, "m.safetensors": made.plain}
        http.fault, http.n = change, 0
        with pytest.raises(kind, match=f"{code}: in '{url}/m") as e:
            step()
        assert e.value.code == code
    assert list(here.iterdir()) == []


def test_an_object_that_changes_at_the_very_end(
    http: HttpFiles, made: Checkpoint, here: Path
) -> None:
    """All of it has been read; the last request sees it."""
    http.files["m.safetensors"] = made.plain
    encode_file(f"{http.url}/m.safetensors", "out")
    assert [a for a in http.asked if a[2] == 0] == [("m.safetensors", 0, 0)]

    def change(n: int, name: str, h: Any) -> bool:
        if http.range_of(h, name) == (0, 0):
            http.files[name] = rewrite(made.plain)
        return False

    http.fault, http.n = change, 0
    with pytest.raises(EncodeError, match="changed"):
        encode_file(f"{http.url}/m.safetensors", "again")
    assert [p.name for p in here.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["http", "s3", "memory"])
@pytest.mark.parametrize("code", CHANGES)
def test_an_object_that_changes_while_it_is_open(
    kind: str, code: str, request: pytest.FixtureRequest, made: Checkpoint
) -> None:
    root = request.getfixturevalue(kind)

    def write(data: bytes) -> str:
        if kind == "http":
            root.files["m.wcodec"] = data
            return f"{root.url}/m.wcodec"
        return put(f"{root}/changing/m.wcodec", data)

    url = write(made.coded)
    with wcodec.open(url) as f:
        f.get_slice("embed")[:3]
        write(CHANGES[code](b"\0" * len(made.coded)))
        with pytest.raises(DecodeError, match=f"in '{url}'") as e:
            f.get_slice("embed")[1000:1100]
        assert e.value.code == code


@pytest.mark.parametrize("kind", ["s3", "memory"])
@pytest.mark.parametrize("code", CHANGES)
def test_a_source_that_changes_while_it_is_encoded(
    kind: str, code: str, request: pytest.FixtureRequest, made: Checkpoint, here: Path
) -> None:
    url = put(f"{request.getfixturevalue(kind)}/changing/m.safetensors", made.plain)

    def change(_: Any) -> None:
        put(url, CHANGES[code](made.plain))

    with pytest.raises(EncodeError) as e:
        encode_file(url, "out", check_header=change)
    assert e.value.code == code
    assert list(here.iterdir()) == []


def test_an_object_that_is_gone(s3: str, memory: str, made: Checkpoint) -> None:
    for root in (s3, memory):
        url = put(f"{root}/gone/m.wcodec", made.coded)
        with wcodec.open(url) as f:
            Url(url).unlink()
            with pytest.raises(FileNotFoundError, match=url):
                f.get_slice("embed")[1000:1100]
