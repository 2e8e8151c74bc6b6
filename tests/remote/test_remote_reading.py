"""Files at URLs are read as local ones are, by few requests, in memory of a stated size."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from checkpoints import Checkpoint, assert_same, gaussian, put, sha256
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import PYTHONPATH
from safetensors.numpy import save_file as save_plain
from servers import HttpFiles
from test_cli import call

import wcodec
import wcodec.torch
from wcodec.codec import remote
from wcodec.codec.ranges import Answer
from wcodec.codec.remote import GAP_NBYTES, HEAD_NBYTES, RemoteSource
from wcodec.codec.urls import Url, place_of
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


# ---- the source against bytes --------------------------------------------------------------------
class OfBytes:
    """`Ranges` of bytes in memory, which counts."""

    def __init__(self, data: bytes, has_head: bool = True) -> None:
        self.data, self.has_head, self.asked = data, has_head, list[tuple[int, int]]()

    def first(self, nbytes: int) -> Answer:
        head = self.data[:nbytes] if self.has_head else b""
        return Answer(bytes(head), len(self.data), "x")

    def get(self, start: int, stop: int) -> Answer:
        assert 0 <= start < stop <= len(self.data)
        self.asked.append((start, stop))
        return Answer(bytes(memoryview(self.data)[start:stop]), len(self.data), "x")


def source_of(ranges: OfBytes, memory: int) -> RemoteSource:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "ranges_of", lambda _: ranges)
        return RemoteSource(Url("memory://x"), memory=memory)


DATA = np.random.default_rng(3).bytes(3 << 20)
LARGE = bytes(64 << 20)


def some(rng: random.Random, first: int, last: int, most: int) -> tuple[int, int]:
    """A place and a size in a part of the file."""
    start = rng.randint(first, last)
    return start, min(rng.randint(0, most), last - start)


def steps(source: RemoteSource, rng: random.Random, n: int) -> None:
    """Random reads, in parts that are read ahead, some in others; each is compared."""
    with ExitStack() as stack:
        regions = [(0, len(DATA))]
        for _ in range(n):
            a, b = rng.choice(regions)
            what = rng.randrange(7)
            if what == 0 and len(regions) < 5:
                start, size = some(rng, max(0, a - 300_000), b, len(DATA))
                stack.enter_context(source.ahead(start, start + size))
                regions.append((start, start + size))
            elif what == 1:
                where = [some(rng, a, b, 60_000) for _ in range(rng.randint(0, 6))]
                room = np.empty(sum(n for _, n in where), np.uint8)
                source.read_runs(where, room)
                assert room.tobytes() == b"".join(DATA[s : s + n] for s, n in where)
            elif what == 2:
                where = [some(rng, a, b, 500) for _ in range(rng.randint(1, 6))]
                want = b"".join(DATA[s : s + n] for s, n in where)
                assert source.look(where).tobytes() == want
            elif what == 3:
                start, size = some(rng, a, b, 700_000)
                found = b"".join(p.tobytes() for p in source.pieces(start, start + size))
                assert found == DATA[start : start + size]
            elif what == 4:  # on, as who reads a tensor does
                start, size = some(rng, a, b, 200_000)
                while start + size <= b and rng.random() < 0.9:
                    assert source.read(start, size).tobytes() == DATA[start : start + size]
                    start, size = start + size, rng.randint(1, 200_000)
            else:
                start, size = some(rng, a, b, 300_000)
                assert source.read(start, size).tobytes() == DATA[start : start + size]


@settings(max_examples=50)
@given(
    seed=st.integers(0, 1 << 32), memory=st.sampled_from([1, 1 << 18, 1 << 20, 1 << 28]),
    has_head=st.booleans(), n_threads=st.sampled_from([1, 1, 4]),
)  # fmt: skip
def test_random_reads(seed: int, memory: int, has_head: bool, n_threads: int) -> None:
    source = source_of(OfBytes(DATA, has_head), memory)
    with ThreadPoolExecutor(n_threads) as threads:
        tasks = [
            threads.submit(steps, source, random.Random(seed + i), 12) for i in range(n_threads)
        ]
        for task in tasks:
            task.result()
    assert source._runs == []
    source.close()


def test_ranges_near_each_other_are_joined_and_no_others() -> None:
    ranges = OfBytes(DATA)
    source = source_of(ranges, 1 << 28)
    far = 500_000 + 100 + GAP_NBYTES + 1
    near = far + 100 + GAP_NBYTES
    where = [(far, 100), (500_000, 100), (near, 50), (near + 10, 60)]
    room = np.empty(310, np.uint8)
    source.read_runs(where, room)
    assert room.tobytes() == b"".join(DATA[s : s + n] for s, n in where)
    assert sorted(ranges.asked) == [(500_000, 500_100), (far, near + 70)]


def test_a_large_range_is_asked_for_in_blocks() -> None:
    ranges = OfBytes(DATA)
    source = source_of(ranges, 1 << 20)
    assert source.block == 1 << 17
    source.read(100_000, 300_000)
    blocks = [(100_000, 231_072), (231_072, 362_144), (362_144, 400_000)]
    assert sorted(ranges.asked) == blocks


def test_head_and_tail_are_held() -> None:
    ranges = OfBytes(DATA)
    source = source_of(ranges, 1 << 20)
    for _ in range(2):
        for start, n in ((0, HEAD_NBYTES), (len(DATA) - 9, 9), (len(DATA) - 60_000, 50_000)):
            assert source.read(start, n).tobytes() == DATA[start : start + n]
    assert ranges.asked == [(len(DATA) - (1 << 16), len(DATA))]


def test_a_read_behind_the_end() -> None:
    source = source_of(OfBytes(DATA), 1 << 20)
    with pytest.raises(DecodeError, match="truncated"):
        source.read(len(DATA) - 5, 6)


def test_memory_is_bounded() -> None:
    memory, n = 1 << 22, len(LARGE)

    def read(where: list[tuple[int, int]]) -> None:
        source = source_of(OfBytes(LARGE), memory)
        with source.ahead(0, n):
            for start, size in where:
                source.read(start, size)
        source.close()

    forth = [(i, 1 << 16) for i in range(0, n, 1 << 16)]
    back = forth[::-1]
    zigzag = [x for pair in itertools.pairwise(forth[::3]) for x in pair[::-1]]
    room = [(i, 1 << 18) for i in range(0, n, 1 << 18)]
    for where in (forth, back, zigzag, room):
        tracemalloc.start()
        try:
            read(where)
            assert tracemalloc.get_traced_memory()[1] <= memory + 4 * (memory // 8) + (1 << 20)
        finally:
            tracemalloc.stop()


def test_memory_of_scattered_reads_is_bounded() -> None:
    memory = 1 << 22
    source = source_of(OfBytes(LARGE), memory)
    where = [(i << 20, 700_000) for i in range(60)]
    room = np.empty(sum(n for _, n in where), np.uint8)
    tracemalloc.start()
    try:
        source.read_runs(where, room)
        assert tracemalloc.get_traced_memory()[1] <= memory + 4 * (memory // 8) + (1 << 20)
    finally:
        tracemalloc.stop()
    source.close()


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
