"""Servers that fail now and then or for ever, and objects that change: right bytes or an error."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from checkpoints import Checkpoint, assert_same, gaussian, put, sha256
from servers import HttpFiles

import wcodec
from wcodec.codec import ranges
from wcodec.codec.ranges import TRIES
from wcodec.codec.remote import RemoteSource
from wcodec.codec.urls import Url
from wcodec.files.checkpoint import decode_file, encode_file, verify_file

#: Answers a request wrongly: by the server, the handler, the file's name, first and last byte.
Fault = Callable[[HttpFiles, Any, str, int, int], None]


# ---- faults --------------------------------------------------------------------------------------
def status(code: int, **headers: str) -> Fault:
    def fault(server: HttpFiles, h: Any, name: str, first: int, last: int) -> None:
        h.send_response(code)
        for key, value in headers.items():
            h.send_header(key.replace("_", "-"), value)
        h.send_header("Content-Length", "4")
        h.end_headers()
        h.wfile.write(b"busy")

    return fault


def begun(server: HttpFiles, h: Any, name: str, first: int, last: int) -> None:
    """The head of the right answer, and half of its body."""
    data = server.files[name]
    h.send_response(206)
    h.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
    h.send_header("Content-Length", str(last + 1 - first))
    h.send_header("ETag", server.tag(name))
    h.end_headers()
    h.wfile.write(data[first : (first + last) // 2])
    h.wfile.flush()


def hang_up(h: Any) -> None:
    h.close_connection = True
    h.connection.shutdown(socket.SHUT_RDWR)


def cut(server: HttpFiles, h: Any, name: str, first: int, last: int) -> None:
    begun(server, h, name, first, last)
    hang_up(h)


def no_answer(server: HttpFiles, h: Any, name: str, first: int, last: int) -> None:
    hang_up(h)


def short(server: HttpFiles, h: Any, name: str, first: int, last: int) -> None:
    data, about = server.files[name], f"bytes {first}-{last}/{len(server.files[name])}"
    server.reply(h, 206, data[first:last], name, about)


def another_range(server: HttpFiles, h: Any, name: str, first: int, last: int) -> None:
    """As many bytes, from another place."""
    data, by = server.files[name], -1 if first else 1
    first, last = first + by, last + by
    server.reply(h, 206, data[first : last + 1], name, f"bytes {first}-{last}/{len(data)}")


def shorter_range(server: HttpFiles, h: Any, name: str, first: int, last: int) -> None:
    data = server.files[name]
    server.reply(h, 206, data[first:last], name, f"bytes {first}-{last - 1}/{len(data)}")


def no_range(server: HttpFiles, h: Any, name: str, first: int, last: int) -> None:
    server.reply(h, 206, server.files[name][first : last + 1], name)


def whole_file(server: HttpFiles, h: Any, name: str, first: int, last: int) -> None:
    server.reply(h, 200, server.files[name], name)


FAULTS: dict[str, Fault] = {
    "500": status(500),
    "503": status(503),
    "503-retry-after": status(503, Retry_After="1"),
    "429": status(429, Retry_After="0"),
    "408": status(408),
    "cut": cut,
    "no-answer": no_answer,
    "short": short,
    "another-range": another_range,
    "shorter-range": shorter_range,
    "no-range": no_range,
    "whole-file": whole_file,
}


class Failing:
    """Every third range, the first time it is asked for, and once more."""

    def __init__(self, server: HttpFiles, fault: Fault, times: int = 2) -> None:
        self.server, self.fault, self.times = server, fault, times
        self.left, self.n = dict[tuple[str, int, int], int](), 0
        server.fault = self

    def __call__(self, n: int, name: str, h: Any) -> bool:
        wanted = self.server.range_of(h, name)
        if wanted is None:
            return False
        with self.server.lock:
            new = self.times if len(self.left) % 3 == 0 else 0
            left = self.left.setdefault((name, *wanted), new)
            self.left[(name, *wanted)] -= 1
            self.n += left > 0
        if left > 0:
            self.fault(self.server, h, name, *wanted)
        return left > 0


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between tries, which are not made."""
    found = list[float]()
    monkeypatch.setattr(ranges, "time", SimpleNamespace(sleep=found.append))
    return found


def convert(url: str, made: Checkpoint) -> None:
    """Everything that reads, compared with what local files give."""
    assert decode_file(f"{url}/m.wcodec", "m.safetensors")[1] == len(made.plain)
    assert sha256(str(Path("m.safetensors").absolute())) == sha256(made.plain)
    encode_file(f"{url}/m.safetensors", "m.wcodec")
    assert sha256(str(Path("m.wcodec").absolute())) == sha256(made.coded)
    assert verify_file(f"{url}/m.wcodec") == (len(made.coded), len(made.plain))
    with wcodec.open(f"{url}/m.wcodec") as f:
        for r in (5, 800, 1600):
            part = f.get_slice("embed")[r : r + 30]
            assert part.tobytes() == made.arrays["embed"][r : r + 30].tobytes()
    assert_same(wcodec.load_file(f"{url}/m.wcodec"), made.arrays)


#: of these, others show nearly as much
SELDOM = ("500", "408", "shorter-range", "no-range")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(name, marks=[pytest.mark.exhaustive] if name in SELDOM else [])
        for name in FAULTS
    ],
)
def test_faults_that_pass(
    fault: str,
    http: HttpFiles,
    made: Checkpoint,
    here: Path,
    small_blocks: int,
    naps: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    http.files = {"m.wcodec": made.coded, "m.safetensors": made.plain}
    failing = Failing(http, FAULTS[fault])
    with caplog.at_level(logging.INFO, ranges.__name__):
        convert(http.url, made)
    assert failing.n > 20, "or nothing is tested"
    assert http.n == len(http.asked) + failing.n
    again = [r for r in caplog.records if "; again in" in r.getMessage()]
    # aiohttp asks again by itself, once, where a connection that it had before is closed
    assert len(again) == len(naps) <= failing.n
    assert fault == "no-answer" or len(again) == failing.n
    least = {"503-retry-after": 1.0}.get(fault, 0)
    assert least <= min(naps) <= max(naps) <= 1.0


def test_a_server_that_stalls(
    http: HttpFiles, made: Checkpoint, here: Path, small_blocks: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It sends half an answer, and nothing more as long as someone waits for it."""
    monkeypatch.setattr(ranges, "STALLED_S", 0.5)
    ended = threading.Event()

    def stall(server: HttpFiles, h: Any, name: str, first: int, last: int) -> None:
        begun(server, h, name, first, last)
        ended.wait(60)
        h.close_connection = True

    http.files["m.wcodec"] = made.coded
    failing = Failing(http, stall, 1)
    try:
        assert_same(wcodec.load_file(f"{http.url}/m.wcodec"), made.arrays)
    finally:
        ended.set()
    assert failing.n > 5


def test_pauses_grow_and_a_server_may_ask_for_longer_ones(
    http: HttpFiles, naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "_FIRST_WAIT_S", 0.1)
    http.files["x"] = b"x" * 100
    Failing(http, status(503), TRIES - 1)
    assert RemoteSource(Url(f"{http.url}/x")).nbytes == 100
    assert len(naps) == TRIES - 1
    for n, nap in enumerate(naps):
        assert 0.05 * 2**n <= nap <= 0.1 * 2**n
    for asked, want in (("3", 3.0), ("9999", 30.0), ("never", 0.1)):
        naps.clear()
        Failing(http, status(503, Retry_After=asked), 1)
        RemoteSource(Url(f"{http.url}/x"))
        assert len(naps) == 1
        assert naps[0] == want if asked.isdecimal() else naps[0] <= want


# ---- faults that stay ----------------------------------------------------------------------------
def steps_of(url: str) -> Iterator[Callable[[], object]]:
    yield lambda: wcodec.open(f"{url}/m.wcodec")
    yield lambda: encode_file(f"{url}/m.safetensors", "out")


@pytest.mark.parametrize(
    ("fault", "kind", "number", "tries"),
    [
        (status(404), FileNotFoundError, errno.ENOENT, 1),
        (status(410), FileNotFoundError, errno.ENOENT, 1),
        (status(401), PermissionError, errno.EACCES, 1),
        (status(403), PermissionError, errno.EACCES, 1),
        (status(400), OSError, errno.EIO, 1),
        (status(500), OSError, errno.EIO, TRIES),
        (status(503), OSError, errno.EIO, TRIES),
        (cut, OSError, errno.EIO, TRIES),
        (another_range, OSError, errno.EIO, TRIES),
        (short, OSError, errno.EIO, TRIES),
    ],
)
def test_faults_that_stay(
    fault: Fault, kind: type[OSError], number: int, tries: int,
    http: HttpFiles, made: Checkpoint, here: Path,
) -> None:  # fmt: skip
    http.files = {"m.wcodec": made.coded, "m.safetensors": made.plain}
    for step in steps_of(http.url):
        http.n = 0
        Failing(http, fault, 1000)
        with pytest.raises(kind, match=http.url) as e:
            step()
        assert e.value.errno == number
        assert e.value.filename.startswith(http.url)
        assert "\n" not in str(e.value)
        assert http.n == tries
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("fault", [status(404), status(500), cut])
def test_faults_that_begin_later_and_stay(
    fault: Fault, http: HttpFiles, made: Checkpoint, here: Path, small_blocks: int
) -> None:
    http.files = {"m.wcodec": made.coded, "m.safetensors": made.plain}

    def later(n: int, name: str, h: Any) -> bool:
        wanted = http.range_of(h, name)
        if wanted is None or not 1 << 20 <= wanted[0] < 2 << 20:
            return False
        fault(http, h, name, *wanted)
        return True

    http.fault = later
    url = http.url
    for step in (
        lambda: encode_file(f"{url}/m.safetensors", "out"),
        lambda: decode_file(f"{url}/m.wcodec", "out"),
        lambda: verify_file(f"{url}/m.wcodec"),
        lambda: wcodec.load_file(f"{url}/m.wcodec"),
    ):
        with pytest.raises(OSError, match=url):
            step()
    assert list(here.iterdir()) == []


def test_a_server_that_gives_no_ranges(http: HttpFiles, made: Checkpoint, here: Path) -> None:
    http.files = {"m.wcodec": made.coded, "m.safetensors": made.plain}
    http.gives_ranges = False
    for step in steps_of(http.url):
        http.n = 0
        with pytest.raises(OSError, match=r"gives no parts of files .*: download the file") as e:
            step()
        assert http.url in str(e.value)
        assert "\n" not in str(e.value)
        assert http.n == 1
    http.files["small"] = wcodec.save({"w": gaussian(1, 30)})
    assert list(wcodec.load_file(f"{http.url}/small")) == ["w"], "it is one answer"


def test_nobody_listens(here: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{s.getsockname()[1]}"
        for step in steps_of(url):
            with pytest.raises(OSError, match=url):
                step()


# ---- S3 ------------------------------------------------------------------------------------------
class Flaky:
    """Every third call of a method of S3 fails, or has a wrong answer."""

    def __init__(self, method: str, wrong: bool, patch: pytest.MonkeyPatch) -> None:
        from s3fs import S3FileSystem

        self.n, right, this = 0, S3FileSystem._call_s3, self

        async def call(fs: Any, name: str, *args: Any, **kwargs: Any) -> Any:
            if name != method:
                return await right(fs, name, *args, **kwargs)
            this.n += 1
            if this.n % 3 == 0 and not wrong:
                raise ConnectionResetError(errno.ECONNRESET, "the line is down")
            answer = await right(fs, name, *args, **kwargs)
            if this.n % 3 == 0:
                answer["ContentRange"] = "bytes 1-2/3"
            return answer

        patch.setattr(S3FileSystem, "_call_s3", call)


@pytest.mark.parametrize("wrong", [False, True])
def test_s3_that_fails_now_and_then(
    wrong: bool, s3: str, made: Checkpoint, small_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(f"{s3}/flaky.wcodec", made.coded)
    flaky = Flaky("get_object", wrong, monkeypatch)
    assert_same(wcodec.load_file(url), made.arrays)
    assert flaky.n > 20


def test_s3_that_refuses(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3fs import S3FileSystem

    async def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(S3FileSystem, "_call_s3", refuse)
    with pytest.raises(PermissionError, match=f"{s3}/x"):
        wcodec.open(f"{s3}/x")


# ---- other file systems --------------------------------------------------------------------------
def test_a_file_system_that_fails_now_and_then(
    memory: str, made: Checkpoint, small_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, kind = put(f"{memory}/m.wcodec", made.coded), type(fsspec.filesystem("memory"))
    right, n, lock = kind.cat_file, [0], threading.Lock()

    def cat_file(*args: Any, **kwargs: Any) -> bytes:
        with lock:
            n[0] += 1
            turn = n[0] % 6
        if turn == 3:
            raise RuntimeError("the line is down")
        data: bytes = right(*args, **kwargs)
        return data[:-1] if turn == 0 else data

    monkeypatch.setattr(kind, "cat_file", cat_file)
    assert_same(wcodec.load_file(url), made.arrays)
    assert n[0] > 20
