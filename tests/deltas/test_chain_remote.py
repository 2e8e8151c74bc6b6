"""Chains at URLs: in the memory of fsspec, and on an S3 server on this machine."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from typing import Any

import fsspec
import numpy as np
import pytest
from runs import copies, same, steps

import wcodec
from wcodec.errors import DecodeError, EncodeError


@pytest.fixture
def memory() -> Iterator[str]:
    """A URL in memory; what is there is removed before and after."""
    fs = fsspec.filesystem("memory")
    for _ in range(2):
        if fs.exists("/runs"):
            fs.rm("/runs", recursive=True)
        if _ == 0:
            yield "memory://runs/7"


def check(url: str, options: dict[str, Any] | None = None) -> None:
    """All that a chain does, at a URL."""
    fs, root = fsspec.core.url_to_fs(url, **(options or {}))
    states = steps(9)

    def chain(**more: Any) -> wcodec.Chain:
        return wcodec.Chain(url, storage_options=options, **more)

    def names() -> set[str]:
        fs.invalidate_cache()
        return {key.rpartition("/")[2] for key in fs.ls(root, detail=False)}

    with pytest.raises(FileNotFoundError, match=f"{url}/chain.json"):
        chain().versions()
    writer, reader = chain(max_share=9), chain()
    for i, state in enumerate(states):
        assert writer.append(state, {"step": str(i)}) == i + 1
        assert same(reader.load(), state)
    versions = reader.versions()
    assert [v.kind for v in versions] == ["full"] + ["delta"] * 8
    assert names() == {"chain.json", *(v.file for v in versions)}
    assert all(same(reader.load(i + 1), state) for i, state in enumerate(states))
    assert reader.verify() == versions
    live = copies(states[7])
    assert reader.update(live, 8, 9) == 9
    assert all(live[name].tobytes() == a.tobytes() for name, a in states[8].items())
    assert [v.version for v in reader.follow(after=7, timeout=0)] == [8, 9]
    # pruned, packed, an orphan
    packed = writer.pack(6)
    assert writer.prune(keep_last=2, keep=[6]).versions == [1, 2, 3, 4, 5, 7]
    left = chain().versions(retired=True)
    assert [(v.version, v.retired) for v in left] == [(6, False), (7, True), (8, False), (9, False)]
    assert names() == {"chain.json", versions[5].file, *(v.file for v in left)}
    assert left[0] == packed
    assert all(same(reader.load(n), states[n - 1]) for n in (6, 8, 9))
    # another writer
    chain().append(states[0])
    with pytest.raises(EncodeError, match=f"changed: .*{url}/chain.json"):
        writer.append(states[1])
    # damage
    newest = chain().versions()[-1].file
    fs.invalidate_cache()
    data = fs.cat_file(f"{root}/{newest}")
    fs.pipe_file(f"{root}/{newest}", data[:-1])
    with pytest.raises(DecodeError, match=f"{url}/{newest}"):
        reader.load()
    fs.rm_file(f"{root}/{newest}")
    with pytest.raises(FileNotFoundError, match=f"{url}/{newest}"):
        reader.load()
    fs.pipe_file(f"{root}/chain.json", b"{}")
    with pytest.raises(DecodeError, match=f"bad_magic: in '{url}/chain.json'"):
        reader.load()


def test_in_memory(memory: str) -> None:
    check(memory)


def test_orphans_that_are_old(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, fs = wcodec.Chain(memory), fsspec.filesystem("memory")
    chain.append({"a": np.arange(9)})
    fs.pipe_file("/runs/7/2-00000000.wcodec", b"x")
    fs.pipe_file("/runs/7/notes/2-00000000.wcodec", b"x")
    assert chain.prune(keep_last=1).files == []
    now = time.time()
    monkeypatch.setattr("wcodec.deltas.stores.time.time", lambda: now + 3700)
    assert chain.prune(keep_last=1).files == ["2-00000000.wcodec"]
    assert len(chain.load()) == 1
    assert fs.exists("/runs/7/notes/2-00000000.wcodec")


def test_a_put_that_fails(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    states = steps(3)
    chain, fs = wcodec.Chain(memory), fsspec.filesystem("memory")
    chain.append(states[0])

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the line is down")

    for name in ("put_file", "pipe_file"):
        with monkeypatch.context() as m:
            m.setattr(type(fs), name, fail)
            with pytest.raises(OSError, match=f"the line is down.*{memory}/"):
                chain.append(states[1])
        assert [v.version for v in chain.versions()] == [1]
    assert chain.append(states[2]) == 2
    assert same(chain.load(), states[2])


def test_a_read_that_fails(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, fs = wcodec.Chain(memory), fsspec.filesystem("memory")
    chain.append(steps(1)[0])
    file = chain.versions()[0].file

    class Broken(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            raise RuntimeError("the line is down")

    monkeypatch.setattr(type(fs), "open", lambda *_, **__: Broken(bytes(100)))
    with pytest.raises(OSError, match=f"RuntimeError: the line is down.*{memory}/{file}"):
        chain.load()


def test_urls_that_nothing_serves() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        wcodec.Chain("nonsense://x")


def test_files_have_urls_too(tmp_path: Any) -> None:
    wcodec.Chain(f"file://{tmp_path}/run").append({"a": np.arange(9)})
    assert list(wcodec.Chain(tmp_path / "run").load()) == ["a"]


def test_on_an_s3_server(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", port=0)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {
            "client_kwargs": {"endpoint_url": f"http://{host}:{port}"},
            "skip_instance_cache": True,
        }
        fs = fsspec.filesystem("s3", **options)
        fs.mkdir("bucket")
        check("s3://bucket/runs/7", options)
    finally:
        server.stop()
