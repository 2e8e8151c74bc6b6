"""What files are read from: files that are cut, changed or replaced meanwhile, and pipes."""

import contextlib
import errno
import io
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import wcodec
import wcodec.torch
from wcodec.cli import main
from wcodec.codec.opening import source_of
from wcodec.codec.sources import FileSource, StreamSource
from wcodec.directories.hub_reading import decode_hub_file
from wcodec.directories.hub_writing import encode_hub_file
from wcodec.errors import DecodeError, EncodeError
from wcodec.files.checkpoint import decode_file, encode_file, verify_file
from wcodec.files.repack import repack_file

RNG = np.random.default_rng(19)
#: `a` and `b` are several chunks each; `tied` is `a` again
A = RNG.standard_normal((1536, 4096)).astype(ml_dtypes.bfloat16)
B = RNG.standard_normal((1536, 4096)).astype(ml_dtypes.bfloat16)
ARRAYS = {"a": A, "b": B, "few": np.arange(5.0), "tied": A, "nothing": np.empty((0, 3), "f4")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A checkpoint in all its forms."""
    here = tmp_path_factory.mktemp("made")
    safetensors.numpy.save_file(ARRAYS, here / "x.safetensors")
    encode_file(here / "x.safetensors", here / "x.wcodec")
    encode_hub_file(here / "x.safetensors", here / "hub.safetensors")
    return {p.name: p.read_bytes() for p in here.iterdir()}


@pytest.fixture
def here(made: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    for name, data in made.items():
        Path(name).write_bytes(data)
    yield tmp_path
    for path in tmp_path.iterdir():  # pytest keeps what is there, and these are large
        path.unlink()


# ---- cut, written to, replaced -------------------------------------------------------------------
def cut(name: str) -> None:
    os.truncate(name, os.path.getsize(name) // 3)


def empty(name: str) -> None:
    os.truncate(name, 0)


def write_over(name: str) -> None:
    """Other bytes in place, of the same number, and at another time than the file's."""
    with open(name, "r+b") as f:
        f.write(bytes(os.path.getsize(name)))
    os.utime(name, ns=(0, 0))


def replace(name: str) -> None:
    Path("other").write_bytes(bytes(os.path.getsize(name)))
    os.replace("other", name)


WORK: dict[str, tuple[str, Callable[..., object]]] = {
    "encode": ("x.safetensors", lambda f, p: encode_file(f, "out", progress=p)),
    "encode hub": ("x.safetensors", lambda f, p: encode_hub_file(f, "out", progress=p)),
    "decode": ("x.wcodec", lambda f, p: decode_file(f, "out", progress=p)),
    "verify": ("x.wcodec", lambda f, p: verify_file(f, progress=p)),
    "decode hub": ("hub.safetensors", lambda f, p: decode_hub_file(f, "out", progress=p)),
    "repack": ("x.wcodec", lambda f, p: repack_file(f, "out", progress=p)),
    "base": (
        "x.safetensors",
        lambda f, p: encode_file("y.safetensors", "out", progress=p, base=f),
    ),
}


@pytest.mark.parametrize("damage", [cut, empty, write_over, replace])
@pytest.mark.parametrize("what", WORK)
def test_a_file_that_does_not_stay_as_it_was(
    here: Path, what: str, damage: Callable[[str], None]
) -> None:
    name, work = WORK[what]
    if what == "base":
        safetensors.numpy.save_file({**ARRAYS, "a": A + A}, "y.safetensors")
    before, done = set(os.listdir()), [0]

    def progress(nbytes: int) -> None:
        done[0] += nbytes
        first = 0 if what != "base" else os.path.getsize("y.safetensors")
        if done[0] > first and len(done) == 1:  # once the base has been read for its hash
            done.append(1)
            damage(name)

    if damage is replace:  # what is open stays as it was
        work(name, progress)
        assert len(done) == 2
        return
    with pytest.raises((DecodeError, EncodeError)) as e:
        work(name, progress)
    assert len(done) == 2
    assert e.value.code == ("changed" if damage is write_over else "truncated"), e.value
    if what == "base":
        assert f"in the base '{name}'" in str(e.value)
    else:
        assert e.value.file == name
    assert set(os.listdir()) == before, "nothing is left behind"


@pytest.mark.parametrize("damage", [cut, empty, write_over, replace])
@pytest.mark.parametrize(
    "opened", [wcodec.open, wcodec.torch.safe_open, wcodec.torch.WCodecCheckpoint]
)
def test_an_open_file_that_does_not_stay_as_it_was(
    here: Path, opened: Callable[[str], Any], damage: Callable[[str], None]
) -> None:
    with opened("x.wcodec") as f:
        damage("x.wcodec")
        reads: list[Callable[[], Any]] = [
            lambda: f.get_tensor("b") if hasattr(f, "get_tensor") else f["b"],
            lambda: f.get_slice("b")[:9] if hasattr(f, "get_slice") else f["b"][:9],
        ]
        for read in reads:
            if damage is replace:
                part = read()
                bits = part.view(np.uint16) if isinstance(part, np.ndarray) else part.float()
                want = B[: len(part)]
                assert np.array_equal(
                    np.asarray(bits),
                    want.view(np.uint16) if isinstance(part, np.ndarray) else want.astype("f4"),
                )
                continue
            with pytest.raises(DecodeError) as e:
                read()
            assert e.value.code == ("changed" if damage is write_over else "truncated")
            assert e.value.file == "x.wcodec"


def test_a_file_that_is_only_touched_stays_readable(here: Path) -> None:
    with wcodec.open("x.wcodec") as f:
        os.utime("x.wcodec", ns=(0, 0))
        assert f.get_tensor("a").tobytes() == A.tobytes()


def test_a_file_that_is_closed_while_a_thread_reads_it(here: Path) -> None:
    """The thread reads on, or is told; it never reads what another file has got its number."""
    Path("zeros").write_bytes(bytes(1 << 20))
    for _ in range(20):
        f = wcodec.open("x.wcodec")
        found = list[Any]()

        def read(f: Any = f, found: list[Any] = found) -> None:
            try:
                found.append(f.get_tensor("few").tolist())
            except ValueError as e:
                found.append(str(e))

        thread = threading.Thread(target=read)
        thread.start()
        f.close()
        with open("zeros", "rb"):
            thread.join()
        assert found[0] in ([0.0, 1.0, 2.0, 3.0, 4.0], "the file 'x.wcodec' is closed") or (
            "closed" in found[0]
        )


# ---- sources -------------------------------------------------------------------------------------
def test_errors_of_the_system_name_the_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FileSource("x.wcodec")

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("wcodec.codec.sources._read_at", fail)
    with pytest.raises(OSError, match=r"Input/output error: 'x\.wcodec'"):
        source.read(0, 5)
    assert main(["verify", "x.wcodec"]) == 1


def test_files_are_read_without_preadv(here: Path) -> None:
    """As macOS before 11 has it."""
    code = (
        "import os; del os.preadv; import wcodec; f = wcodec.open('x.wcodec')\n"
        "assert f.get_tensor('few').tolist() == [0, 1, 2, 3, 4]; f.close()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_file_objects_that_are_not_files_as_they_are(here: Path) -> None:
    import gzip

    data = Path("x.wcodec").read_bytes()
    with gzip.open("x.gz", "wb") as f:
        f.write(data)
    with gzip.open("x.gz") as packed:
        for stream in (packed, io.BytesIO(data)):
            assert isinstance(source_of(stream), StreamSource)
            with wcodec.open(stream) as file:  # type: ignore[arg-type]
                assert file.get_tensor("few").tolist() == [0, 1, 2, 3, 4]
    with open("x.wcodec", "rb") as plain:
        assert isinstance(source_of(plain), FileSource)
        plain.seek(77)
        with wcodec.open(plain) as file:
            assert file.get_tensor("few").tolist() == [0, 1, 2, 3, 4]
        assert plain.tell() == 77, "its position is the caller's"


# ---- pipes ---------------------------------------------------------------------------------------
@contextlib.contextmanager
def piped(name: str, pipe: str = "fifo") -> Iterator[str]:
    """A pipe that a file is written to."""
    os.mkfifo(pipe)

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), open(pipe, "wb") as f:
            f.write(Path(name).read_bytes())

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    yield pipe
    os.unlink(pipe)


@pytest.mark.parametrize("in_memory", [1 << 26, 1 << 20])
def test_encoding_from_a_pipe_gives_the_same_file(
    here: Path, made: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr("wcodec.files.plain.IN_MEMORY", in_memory)
    with piped("x.safetensors") as pipe:
        nbytes, stored_nbytes = encode_file(pipe, "piped.wcodec")
    assert Path("piped.wcodec").read_bytes() == made["x.wcodec"]
    assert (nbytes, stored_nbytes) == (len(made["x.safetensors"]), len(made["x.wcodec"]))


def test_tensors_that_look_alike_are_found_by_a_pipe_as_by_a_file(here: Path) -> None:
    """Of those that are alike where they are looked at, no more than a few are remembered."""
    tensors = {f"t{i}": np.zeros(100_000, np.uint8) for i in range(10)}
    for i, t in enumerate(tensors.values()):
        t[500 + i] = 1
    safetensors.numpy.save_file({**tensors, "last": tensors["t9"]}, "alike.safetensors")
    encode_file("alike.safetensors", "want")
    with piped("alike.safetensors") as pipe:
        encode_file(pipe, "got")
    assert Path("got").read_bytes() == Path("want").read_bytes()


def test_a_base_that_is_written_to(here: Path) -> None:
    wcodec.save_file({"a": A + A}, "delta.wcodec", base="x.wcodec")
    with wcodec.open("delta.wcodec") as f:
        f.base()
        write_over("x.wcodec")
        with pytest.raises(DecodeError, match=r"changed: in 'delta\.wcodec': in the base 'x") as e:
            f.get_tensor("a")
    assert e.value.file == "delta.wcodec"


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/0"])
@pytest.mark.parametrize("kind", ["pipe", "file", "socket"])
def test_encoding_standard_input(here: Path, made: dict[str, bytes], name: str, kind: str) -> None:
    command = [sys.executable, "-m", "wcodec", "encode", name, "-o", "o.wcodec"]
    data = made["x.safetensors"]
    if kind == "pipe":
        done = subprocess.run(command, input=data, capture_output=True)
    elif kind == "file":
        with open("x.safetensors", "rb") as f:
            done = subprocess.run(command, stdin=f, capture_output=True)
    else:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = subprocess.Popen(command, stdin=theirs, stderr=subprocess.PIPE)
            theirs.close()
            ours.sendall(data)
            ours.shutdown(socket.SHUT_WR)
            done = subprocess.CompletedProcess(command, 0, b"", process.communicate()[1])
            done.returncode = process.returncode
    assert (done.returncode, done.stderr) == (0, b"")
    assert Path("o.wcodec").read_bytes() == made["x.wcodec"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-5], "truncated: in 'fifo': the pipe ends 5 bytes early"),
        (lambda data: data[:50], "truncated: in 'fifo': the pipe ends"),
        (lambda data: data[:5], "bad_source: in 'fifo': not a safetensors file: it has fewer"),
        (lambda data: data + b"x", "bad_source: in 'fifo': more bytes follow the last tensor"),
        (lambda data: b"\xff" * 99, "bad_source: in 'fifo': not a safetensors file: its first 8"),
    ],
)
def test_pipes_that_hold_something_else(
    here: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    Path("in").write_bytes(change(Path("x.safetensors").read_bytes()))
    with piped("in") as pipe, pytest.raises(EncodeError, match=message):
        encode_file(pipe, "out")
    assert not [name for name in os.listdir() if "out" in name]


def test_what_needs_a_file_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("fifo")
    for args in (
        ["decode", "fifo", "-o", "o"],
        ["verify", "fifo"],
        ["info", "fifo"],
        ["repack", "fifo", "-o", "o"],
        ["encode", "--form", "hub", "fifo", "-o", "o"],
        ["encode", "--base", "fifo", "x.safetensors", "-o", "o"],
        ["verify", "--base", "/dev/null", "fifo"],
    ):
        assert main(args) == 2, args
        err = capsys.readouterr().err
        assert err == (
            "wcodec: error: fifo: a pipe or device; wcodec needs a file that it can seek in\n"
        ), args
    with pytest.raises(SystemExit) as e:
        main(["encode", "fifo"])
    assert e.value.code == 2
    assert "name the output of fifo, which has no name of its own" in capsys.readouterr().err
    with pytest.raises(SystemExit) as e:
        main(["encode", "--rm", "fifo", "-o", "o"])
    assert "--rm is for files, not for fifo" in capsys.readouterr().err
    assert main(["verify", "fifo", "x.wcodec"]) == 2, "the other one is verified all the same"
    with pytest.raises(io.UnsupportedOperation, match="a pipe or device"):
        wcodec.open("fifo")
    with pytest.raises(IsADirectoryError):
        wcodec.open(".")
