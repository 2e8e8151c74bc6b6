"""The command on a cluster of Ray of two nodes, with files on a server of S3: what comes out has
the bytes of one machine, whatever dies meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest
from models import make_model, remote_sums, sums

from wcodec.directories import encode_directory

#: Ray's own, of processes that it leaves to others to wait for
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
LONG = 300  #: seconds, after which a test has failed


class Run:
    """A run of the command in a process of its own."""

    def __init__(self, *args: str) -> None:
        command = [sys.executable, "-m", "wcodec", *args]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def end(self, status: int = 0) -> Any:
        """What it prints as JSON, once it has ended."""
        out, err = self.process.communicate(timeout=LONG)
        assert self.process.returncode == status, err
        return json.loads(out) if status == 0 else err


def put_model(folder: Path, s3: str, **shape: int) -> tuple[str, dict[str, str]]:
    """A model in the bucket, and the sums of its encoded form."""
    make_model(folder / "model", **shape)
    encode_directory(folder / "model", folder / "one")
    fs = fsspec.filesystem("s3")
    fs.put(str(folder / "model") + "/", "bucket/model/", recursive=True)
    return f"{s3}/model", sums(folder / "one")


@pytest.fixture
def model(tmp_path: Path, s3: str) -> tuple[str, dict[str, str]]:
    """A large one."""
    return put_model(tmp_path, s3, n_shards=6, n=8, side=1024)


def test_ray_makes_the_same(cluster: Any, s3: str, tmp_path: Path) -> None:
    source, want = put_model(tmp_path, s3, n_shards=4, n=2)
    report = Run("encode", source, f"{s3}/coded", "--json", "--ray", cluster.address).end()
    assert remote_sums(f"{s3}/coded") == want
    machines = report["fleet"]["machines"]
    assert len(machines) == 2, "both nodes worked"
    assert sum(m["units"] for m in machines) == report["fleet"]["units"] == 7


@pytest.mark.exhaustive
def test_all_that_ray_does(
    cluster: Any, s3: str, model: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    source, want = model
    ray = ("--ray", "auto")  # the only cluster here
    Run("encode", source, f"{s3}/coded", "--json", *ray).end()
    assert remote_sums(f"{s3}/coded") == want
    found = Run("verify", f"{s3}/coded", "--json", *ray).end()
    assert (found["good"], found["n_coded"]) == (True, 6)
    Run("decode", f"{s3}/coded", str(tmp_path / "back"), "--json", *ray).end()
    assert sums(tmp_path / "back") == sums(tmp_path / "model")


def when(said: Callable[[], bool], run: Run, act: Callable[[], None]) -> threading.Thread:
    """Do something as soon as something is so, while a command runs."""

    def watch() -> None:
        pause = threading.Event()
        while run.process.poll() is None:
            if said():
                act()
                return
            pause.wait(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def objects(url: str) -> Callable[[], int]:
    """Counts the encoded files at a URL."""
    fs = fsspec.filesystem("s3")

    def count() -> int:
        fs.invalidate_cache()
        return sum(name.endswith(".wcodec") for name in fs.find(url.removeprefix("s3://")))

    return count


def kill_workers() -> None:
    """Kill all processes that do tasks of Ray now."""
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if line.startswith("ray::_call"):
            process.kill()


@pytest.mark.exhaustive
@pytest.mark.timeout(LONG)
@pytest.mark.parametrize("what", ["worker", "node", "driver", "driver, told"])
def test_what_dies_costs_its_work_alone(
    cluster: Any, s3: str, model: tuple[str, dict[str, str]], what: str
) -> None:
    source, want = model
    args = ("encode", source, f"{s3}/coded", "--json", "--preset", "max", "--ray", cluster.address)
    encode = Run(*args)
    done = objects(f"{s3}/coded")
    killed = list[str]()

    def act() -> None:
        killed.append(what)
        if what == "worker":
            kill_workers()
        elif what == "node":
            cluster.remove_node(next(n for n in cluster.list_all_nodes() if not n.head))
        else:
            encode.process.send_signal(signal.SIGKILL if what == "driver" else signal.SIGTERM)

    watch = when(lambda: done() >= 1, encode, act)
    if what in ("worker", "node"):
        report = encode.end()
        assert report["fleet"]["retries"] >= 1
    else:
        encode.process.wait(LONG)
        assert encode.process.returncode != 0
        report = Run(*args).end()
        assert report["n_skipped"] >= 1
    watch.join()
    assert killed
    assert report["complete"]
    wanted = {n: s for n, s in remote_sums(f"{s3}/coded").items() if "parts" not in n}
    assert wanted.keys() == want.keys()
    back = Run("verify", f"{s3}/coded", "--json").end()
    assert back["good"]


@pytest.mark.exhaustive
@pytest.mark.timeout(LONG)
def test_a_large_file_is_spread(cluster: Any, s3: str, tmp_path: Path) -> None:
    """In parts, which are joined to the bytes of one run, also where the driver is killed.

    It is read from the disk: moto copies an object whole for each range of it.
    """
    make_model(tmp_path / "model", n_shards=1, n=72, side=2048)  # 600 MB, three parts
    source = tmp_path / "model" / "model-00001-of-00001.safetensors"
    encode_directory(tmp_path / "model", tmp_path / "one")
    want = sums(tmp_path / "one")["model-00001-of-00001.wcodec"]
    args = ("encode", str(source), f"{s3}/out/big.wcodec", "--json", "--ray", cluster.address)
    encode = Run(*args)
    fs = fsspec.filesystem("s3")

    def a_part_is_noted() -> bool:
        fs.invalidate_cache()
        found = fs.glob("bucket/out/.big.wcodec*.json")
        return any(b"-of-00003.wcodec" in fs.cat_file(name) for name in found)

    watch = when(a_part_is_noted, encode, lambda: encode.process.kill())
    encode.process.wait(LONG)
    watch.join()
    assert encode.process.returncode == -signal.SIGKILL
    report = Run(*args).end()
    assert report["complete"]
    assert report["fleet"]["units"] < 4, "a part that was there is not coded again"
    assert remote_sums(f"{s3}/out") == {"big.wcodec": want}
    os.sync()
