"""Files at URLs are read as local ones are, by few requests, in memory of a stated size."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import Checkpoint, assert_same, gaussian, put, sha256
from paths import PYTHONPATH
from safetensors.numpy import save_file as save_plain
from servers import HttpFiles
from test_cli import call

import wcodec
import wcodec.torch
from wcodec.codec.remote import GAP_NBYTES, HEAD_NBYTES, RemoteSource
from wcodec.codec.urls import Url
from wcodec.errors import DecodeError
from wcodec.files.checkpoint import decode_file, encode_file, verify_file
from wcodec.files.file import File

KINDS = ("http", "s3", "memory", "zip", "file", "path")


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, made: Checkpoint, small_blocks: int) -> str:
    """Where the checkpoint is, in both forms: what comes before the names of its files."""
    kind, folder = request.param, str(made.folder)
    if kind == "http":
        server: HttpFiles = request.getfixturevalue("http")
        server.files = {"m.wcodec": made.coded, "m.safetensors": made.plain}
        return server.url + "/"
    if kind == "zip":
        archive = request.getfixturevalue("tmp_path") / "models.zip"
        with zipfile.ZipFile(archive, "w") as z:
            z.writestr("a/m.wcodec", made.coded)
            z.writestr("a/m.safetensors", made.plain)
        return f"zip://a/{{}}::{archive}"
    if kind in ("s3", "memory"):
        root = request.getfixturevalue(kind) + "/reading/"
        put(root + "m.wcodec", made.coded)
        put(root + "m.safetensors", made.plain)
        return str(root)
    return f"file://{folder}/" if kind == "file" else folder + "/"


def at(place: str, name: str) -> str:
    return place.format(name) if "{}" in place else place + name


# ---- results -------------------------------------------------------------------------------------
def test_tensors_are_those_of_the_local_file(place: str, made: Checkpoint) -> None:
    assert_same(wcodec.load_file(at(place, "m.wcodec")), made.arrays)
    with wcodec.open(at(place, "m.wcodec")) as f:
        assert sorted(f.keys()) == sorted(made.arrays)
        assert f.metadata() == {"format": "pt"}
        assert f.name == "m.wcodec"
        embed = f.get_slice("embed")
        for index in (np.s_[100:164], np.s_[::400, 5], np.s_[-1], np.s_[7:9, 30:900:2]):
            assert embed[index].tobytes() == made.arrays["embed"][index].tobytes()
        assert f.get_tensor("w.again").tobytes() == made.arrays["w"].tobytes()
    with pytest.raises(ValueError, match="is closed"):
        f.get_tensor("w")


def test_converted_files_are_those_of_local_ones(place: str, made: Checkpoint, here: Path) -> None:
    n = len(made.plain), len(made.coded)
    assert encode_file(at(place, "m.safetensors"), "m.wcodec") == n
    assert sha256(str(here / "m.wcodec")) == sha256(made.coded)
    assert decode_file(at(place, "m.wcodec"), "m.safetensors") == n[::-1]
    assert sha256(str(here / "m.safetensors")) == sha256(made.plain)
    assert verify_file(at(place, "m.wcodec")) == n[::-1]
    local = wcodec.content_sha256(made.folder / "m.safetensors")
    for name in ("m.wcodec", "m.safetensors"):
        assert wcodec.content_sha256(at(place, name)) == local


def test_torch_loads_them(place: str, made: Checkpoint) -> None:
    found = wcodec.torch.load_file(at(place, "m.wcodec"))
    want = wcodec.torch.load_file(made.folder / "m.wcodec")
    assert list(found) == list(want)
    for name, tensor in want.items():
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name
    with wcodec.torch.safe_open(at(place, "m.wcodec"), framework="pt") as f:
        part = f.get_slice("embed")[64:128]
    assert torch.equal(part, want["embed"][64:128])


@pytest.mark.parametrize("place", ["http", "memory", "file"], indirect=True)
@pytest.mark.parametrize("form", ["wcodec", "safetensors"])
def test_bases_at_urls(place: str, made: Checkpoint, here: Path, form: str) -> None:
    new = {**made.arrays, "embed": made.arrays["embed"].copy()}
    new["embed"][3, :50] = 1
    base = at(place, f"m.{form}")
    wcodec.save_file(new, "local.wcodec", base=made.folder / f"m.{form}")
    wcodec.save_file(new, "new.wcodec", base=base)
    assert sha256(str(here / "new.wcodec")) == sha256(str(here / "local.wcodec"))
    assert os.path.getsize("new.wcodec") < 100_000, "or it is no difference"
    assert_same(wcodec.load_file("new.wcodec", base), new)
    with pytest.raises(DecodeError, match=f"differences from 'm.{form}', which is not beside"):
        wcodec.load_file("new.wcodec")


@pytest.mark.parametrize("kind", ["http", "s3", "memory"])
def test_a_base_is_found_beside_a_file_at_a_url(
    kind: str, request: pytest.FixtureRequest, here: Path
) -> None:
    old, new = {"w": gaussian(1, 64, 256)}, {"w": gaussian(1, 64, 256)}
    new["w"][0] = 0
    wcodec.save_file(old, "old.wcodec")
    wcodec.save_file(new, "new.wcodec", base="old.wcodec")
    data = {name: Path(name).read_bytes() for name in ("old.wcodec", "new.wcodec")}
    root = request.getfixturevalue(kind)
    if kind == "http":
        root.files, root = data, root.url
    else:
        root += "/beside"
        for name, content in data.items():
            put(f"{root}/{name}", content)
    assert_same(wcodec.load_file(f"{root}/new.wcodec"), new)


def test_a_zip_behind_a_server(http: HttpFiles, made: Checkpoint) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("m.wcodec", made.coded)
    http.files["models.zip"] = archive.getvalue()
    with wcodec.open(f"zip://m.wcodec::{http.url}/models.zip") as f:
        assert f.get_slice("v")[5:9].tobytes() == made.arrays["v"][5:9].tobytes()


def test_a_url_with_a_query(http: HttpFiles, made: Checkpoint) -> None:
    http.files["m.wcodec"] = made.coded
    assert wcodec.open(f"{http.url}/m.wcodec?token=a/b&x=1").name == "m.wcodec"


def test_the_command_line(http: HttpFiles, made: Checkpoint) -> None:
    http.files["m.wcodec"] = made.coded
    url = f"{http.url}/m.wcodec"
    assert call("verify", url)[::2] == (0, "")
    assert call("info", url)[1].replace(url, "") == call("info", made.folder / "m.wcodec")[
        1
    ].replace(str(made.folder / "m.wcodec"), "")


@pytest.mark.parametrize("kind", ["http", "s3", "memory"])
def test_a_file_without_bytes_or_of_few(kind: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(kind)
    for data, code in ((b"", "truncated"), (b"WC", "truncated"), (b"x" * 300, "bad_magic")):
        if kind == "http":
            root.files["x"] = data
        url = f"{root.url}/x" if kind == "http" else put(f"{root}/few", data)
        with pytest.raises(DecodeError) as local:
            wcodec.open(data)
        with pytest.raises(DecodeError, match=f"in '{url}'") as e:
            wcodec.open(url)
        assert e.value.code == local.value.code, code
        source = RemoteSource(Url(url))
        assert source.read(0, len(data)).tobytes() == data
        source.check()


def test_what_is_no_file(s3: str, memory: str, http: HttpFiles) -> None:
    put(f"{s3}/folder/x", b"1")
    put(f"{memory}/folder/x", b"1")
    with pytest.raises(IsADirectoryError, match=f"{memory}/folder"):
        wcodec.open(f"{memory}/folder")
    with pytest.raises(FileNotFoundError, match=f"{s3}/folder"):  # a part of names alone
        wcodec.open(f"{s3}/folder")
    for root in (s3, memory):
        with pytest.raises(FileNotFoundError, match=f"{root}/nothing"):
            wcodec.open(f"{root}/nothing")
    with pytest.raises(IsADirectoryError):
        wcodec.open(s3)
    with pytest.raises(OSError, match="nosuch"):
        wcodec.open("nosuch://x/y")
    with pytest.raises(OSError, match="nosuch"):
        wcodec.open("s3://nosuch-bucket/y")


# ---- requests ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def matrix() -> bytes:
    """A file with a tensor of 4096 x 4096 among others."""
    arrays = {f"{i}.norm": gaussian(i, 300) for i in range(400)}
    arrays["w"] = gaussian(7, 4096, 4096)
    return wcodec.save({**arrays, **{f"{i}.after": gaussian(i, 300) for i in range(400)}})


def test_a_slice_takes_few_requests_and_bytes(matrix: bytes, http: HttpFiles) -> None:
    http.files["m.wcodec"] = matrix
    with wcodec.open(f"{http.url}/m.wcodec") as f:
        assert http.n <= 3, "before the payload"
        opened = http.sent
        part = f.get_slice("w")[2048:2112]
        t = f.record("w")
    assert part.tobytes() == gaussian(7, 4096, 4096)[2048:2112].tobytes()
    assert http.n <= 5
    assert opened <= 2 * HEAD_NBYTES + 100
    assert http.sent - opened <= 3 * 64 / 4096 * t.payload_nbytes + GAP_NBYTES


@pytest.mark.exhaustive
def test_a_slice_of_a_gigabyte(http: HttpFiles, here: Path) -> None:
    matrices = {f"{i}.w": gaussian(i, 4096, 4096) for i in range(6)}
    noise = np.random.default_rng(1).integers(0, 1 << 16, (512, 1 << 20), np.uint16)
    wcodec.save_file({"a": noise[:256], **matrices, "b": noise[256:]}, "m.wcodec", fsync=False)
    del noise
    http.files["m.wcodec"] = memoryview(np.memmap("m.wcodec", np.uint8, "r"))
    http.tags["m.wcodec"] = '"large"'
    assert os.path.getsize("m.wcodec") > 1 << 30
    with wcodec.open(f"{http.url}/m.wcodec") as f:
        assert http.n <= 3
        part = f.get_slice("3.w")[1000:1064]
    assert part.tobytes() == matrices["3.w"][1000:1064].tobytes()
    assert http.n <= 5
    assert http.sent <= os.path.getsize("m.wcodec") / 100


def assert_read_once(server: HttpFiles, name: str, nbytes: int) -> None:
    """Whether every byte was sent once, but for the head, which whoever opens the file reads."""
    assert server.sent <= nbytes + 2 * HEAD_NBYTES
    end = HEAD_NBYTES
    for _, first, last in sorted(a for a in server.asked if a[0] == name and a[1]):
        assert first == end, "a byte is asked for twice, or never"
        end = last + 1
    assert end == nbytes


@pytest.mark.parametrize("steps", ["verify", "decode", "hash", "encode", "load"])
def test_every_byte_is_read_once(
    steps: str, http: HttpFiles, made: Checkpoint, here: Path, small_blocks: int
) -> None:
    once = {k: v for k, v in made.arrays.items() if k != "w.again"}  # which is read twice
    http.files = {"m.wcodec": wcodec.save(once), "m.safetensors": made.plain}
    name = "m.safetensors" if steps == "encode" else "m.wcodec"
    url = f"{http.url}/{name}"
    if steps == "verify":
        verify_file(url)
    elif steps == "decode":
        decode_file(url, "out")
    elif steps == "hash":
        wcodec.content_sha256(url)
    elif steps == "load":
        wcodec.load_file(url)
    else:
        encode_file(url, "out")
    n = len(http.files[name])
    if steps == "encode":  # some places are looked at before, and a tensor that is there twice
        assert http.sent <= n * 1.15 + made.arrays["w"].nbytes * 2 + 40 * 4096
    else:
        assert_read_once(http, name, n)


@pytest.mark.parametrize("steps", ["verify", "load", "torch"])
def test_many_requests_are_in_flight(steps: str, http: HttpFiles, small_blocks: int) -> None:
    """The server answers nothing of the payload before six are there, of tensors that are less than
    a request each.
    """
    arrays = {f"{i}.w": gaussian(i, 256, 300) for i in range(30)}
    http.files["m.wcodec"] = wcodec.save(arrays)
    there, in_flight = threading.Condition(), [0, 0]

    def wait(n: int, name: str, h: Any) -> bool:
        if n <= 2:
            return False
        with there:
            in_flight[0] += 1
            in_flight[1] = max(in_flight)
            there.notify_all()
            there.wait_for(lambda: in_flight[1] >= 6, 20)
            in_flight[0] -= 1
        return False

    http.fault = wait
    load = {"verify": verify_file, "load": wcodec.load_file, "torch": wcodec.torch.load_file}
    load[steps](f"{http.url}/m.wcodec")
    assert 6 <= in_flight[1] <= 8, "more than the memory allows"


def test_a_base_takes_few_requests(http: HttpFiles, here: Path) -> None:
    """A sample of a tensor is rectangles of many rows."""
    old = gaussian(1, 2048, 2048)
    new = {"w": old.copy()}
    new["w"][::3] = 0
    save_plain({"w": old}, "old.safetensors")
    http.files["old.safetensors"] = Path("old.safetensors").read_bytes()
    wcodec.save_file(new, "new.wcodec", base=f"{http.url}/old.safetensors")
    assert http.n <= 60
    http.n = 0
    assert_same(wcodec.load_file("new.wcodec", f"{http.url}/old.safetensors"), new)
    assert http.n <= 10


# ---- processes and threads -----------------------------------------------------------------------
def read_some(f: File, seed: int = 0) -> str:
    """SHA-256 of a tensor and of slices."""
    rng, parts = random.Random(seed), [f.get_tensor("w").tobytes()]
    for _ in range(6):
        r = rng.randrange(2000)
        parts.append(f.get_slice("embed")[r : r + 40].tobytes())
    return sha256(b"".join(parts))


def send_some(f: File, pipe: Any) -> None:
    pipe.send(read_some(f))
    pipe.close()


def test_forked_children_read_on(place: str, made: Checkpoint) -> None:
    context = multiprocessing.get_context("fork")
    want = read_some(wcodec.open(made.folder / "m.wcodec"))
    with wcodec.open(at(place, "m.wcodec")) as f:
        f.get_slice("embed")[:3]
        children = []
        for _ in range(2):
            mine, theirs = context.Pipe(duplex=False)
            child = context.Process(target=send_some, args=(f, theirs))
            child.start()
            theirs.close()
            children.append((child, mine))
        assert read_some(f) == want  # while they read
        for child, pipe in children:
            assert pipe.poll(60), "the child hangs"
            assert pipe.recv() == want
            child.join(60)
            assert child.exitcode == 0
        assert read_some(f) == want  # and after they ended


@pytest.mark.parametrize(
    "place",
    ["http", "memory", "zip", "path", pytest.param("s3", marks=pytest.mark.exhaustive)],
    indirect=True,
)
def test_threads_read_one_file(place: str, made: Checkpoint) -> None:
    with wcodec.open(made.folder / "m.wcodec") as f:
        want = [read_some(f, i) for i in range(16)]
    with wcodec.open(at(place, "m.wcodec")) as f, ThreadPoolExecutor(16) as threads:
        assert list(threads.map(read_some, [f] * 16, range(16))) == want


def test_a_pickled_file_opens_again(place: str, made: Checkpoint, here: Path) -> None:
    want = read_some(wcodec.open(made.folder / "m.wcodec"))
    with wcodec.open(at(place, "m.wcodec")) as f:
        data = pickle.dumps(f)
    again = pickle.loads(data)
    assert read_some(again) == want
    again.close()


def test_options_travel_with_a_pickled_file(s3: str, made: Checkpoint) -> None:
    """Into a process whose environment does not say where the server is."""
    put(f"{s3}/pickled.wcodec", made.coded)
    own = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
    url = Url(
        f"{s3}/pickled.wcodec", key="testing", secret="testing",
        endpoint_url=own["AWS_ENDPOINT_URL"], client_kwargs={"region_name": "us-east-1"},
    )  # fmt: skip
    with wcodec.open(url) as f:
        data, want = pickle.dumps(f), read_some(f)
    script = (
        "import pickle, sys, hashlib, wcodec\n"
        "f = pickle.load(sys.stdin.buffer)\n"
        "print(type(f.path).__name__, hashlib.sha256(f.get_tensor('w').tobytes()).hexdigest())"
    )
    env = {k: v for k, v in os.environ.items() if k not in own} | {"PYTHONPATH": PYTHONPATH}
    done = subprocess.run(
        [sys.executable, "-c", script], input=data, capture_output=True, env=env, check=True
    )
    assert done.stdout.decode().split() == ["Url", sha256(made.arrays["w"].tobytes())]
    assert want


def test_another_file_under_the_name_of_a_pickled_one(memory: str, made: Checkpoint) -> None:
    url = put(f"{memory}/m.wcodec", made.coded)
    with wcodec.open(url) as f:
        data = pickle.dumps(f)
    put(url, wcodec.save({"a": np.zeros(3)}))
    with pytest.raises(DecodeError, match="changed"):
        pickle.loads(data)
