"""Fixtures for files at URLs: servers, a checkpoint in both forms, and no pauses between tries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from checkpoints import Checkpoint, make_checkpoint
from servers import HttpFiles, http_files, s3_server

from wcodec.backends import use_backend
from wcodec.codec import ranges


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No pauses, and the backend that is fast."""
    monkeypatch.setattr(ranges, "_FIRST_WAIT_S", 1e-6)
    with use_backend("numba"):
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint of some megabytes, as files of this machine."""
    with use_backend("numba"):
        return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Memory of remote files, such that those of tests have many blocks."""
    monkeypatch.setenv("WCODEC_REMOTE_MEMORY", str(1 << 20))
    return 1 << 20


@pytest.fixture
def http() -> Iterator[HttpFiles]:
    """A server of HTTP without files."""
    with http_files() as server:
        yield server


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket of S3."""
    with s3_server():
        yield "s3://bucket"


@pytest.fixture
def memory() -> Iterator[str]:
    """An empty directory of ``memory://``."""
    fs = fsspec.filesystem("memory")
    yield "memory://models"
    for path in list(fs.store):
        fs.rm_file(path)
    fs.pseudo_dirs[:] = [""]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
