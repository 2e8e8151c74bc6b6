"""URLs, and what needs packages that may not be installed."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from checkpoints import Checkpoint, put
from paths import PYTHONPATH

from wcodec.codec.remote import RemoteSource
from wcodec.codec.urls import Url, place_of


# ---- URLs ----------------------------------------------------------------------------------------
def test_parts_of_urls() -> None:
    url = Url("s3://bucket/models/m.wcodec", anon=True)
    assert (url.name, url.parent.name) == ("m.wcodec", "models")
    for other in (url.parent, url.parent / "x.wcodec", url.with_name("y"), Url(url)):
        assert other.options == {"anon": True}
    assert url.parent / "x.wcodec" == "s3://bucket/models/x.wcodec"
    inside = Url("zip://a/m.wcodec::https://host/models.zip")
    assert (inside.name, inside.parent) == ("m.wcodec", "zip://a::https://host/models.zip")
    asked = Url("https://host/a/m.wcodec?token=1/2")
    assert (asked.name, asked.with_name("n")) == ("m.wcodec", "https://host/a/n")
    assert place_of("file:///tmp/x") == Path("/tmp/x")
    assert place_of("C:/x") == Path("C:/x")
    assert isinstance(place_of("s3://b/k"), Url)
    with pytest.raises(ValueError, match="no URL"):
        Url("/tmp/x")
    copied = pickle.loads(pickle.dumps(url))
    assert (type(copied), copied, copied.options) == (Url, url, url.options)


# ---- what is not installed -----------------------------------------------------------------------
def in_process(code: str) -> tuple[int, str, str]:
    """Status and outputs of Python code, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_without_fsspec() -> None:
    hidden = "import sys; sys.modules['fsspec'] = None; sys.modules['fsspec.core'] = None\n"
    status, out, _ = in_process(
        f"{hidden}import wcodec\ntry:\n    wcodec.load_file('s3://b/k')\n"
        "except ImportError as e:\n    print(type(e).__name__, e)"
    )
    assert status == 0
    assert out == ("MissingPackage s3://b/k: a URL needs fsspec: pip install 'wcodec[remote]'\n")
    status, out, err = in_process(
        f"{hidden}from wcodec.cli import main\nsys.exit(main(['info', 's3://b/k']))"
    )
    assert (status != 0, out, err.count("\n")) == (True, "", 1), err
    assert "pip install 'wcodec[remote]'" in err


def test_without_the_library_of_a_protocol() -> None:
    hidden = "import sys; sys.modules['gcsfs'] = None\n"
    status, out, err = in_process(
        f"{hidden}from wcodec.cli import main\nsys.exit(main(['info', 'gs://b/k']))"
    )
    assert (status != 0, out, err.count("\n")) == (True, "", 1), err
    assert "gcsfs" in err
    assert "gs://b/k" in err


def test_nothing_of_it_is_imported_for_local_files(made: Checkpoint) -> None:
    code = (
        "import sys, wcodec\n{}\n"
        "print({{'fsspec', 'aiohttp', 's3fs', 'botocore', 'ray'}} & set(sys.modules) or '{{}}')"
    )
    for line in ("", f"wcodec.load_file('file://{made.folder}/m.wcodec')"):
        assert in_process(code.format(line))[:2] == (0, "{}\n")
    remote = "wcodec.save_file({'a': __import__('numpy').zeros(3)}, 'memory://x')"
    assert "fsspec" in in_process(code.format(remote))[1], "or the test sees nothing"


def test_memory_is_given_by_the_environment(
    memory: str, made: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = Url(put(f"{memory}/m.wcodec", made.coded))
    monkeypatch.setenv("WCODEC_REMOTE_MEMORY", "32M")
    assert RemoteSource(url).memory == 32 << 20
    assert RemoteSource(url, memory=5 << 20).memory == 5 << 20
    monkeypatch.delenv("WCODEC_REMOTE_MEMORY")
    assert RemoteSource(url).memory == 256 << 20
    assert fsspec.filesystem("memory").exists("/models/m.wcodec")
