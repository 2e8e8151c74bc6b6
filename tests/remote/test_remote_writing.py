"""Files are written to URLs whole or not at all, and nothing that is there is replaced unasked."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from checkpoints import Checkpoint, assert_same, gaussian, got, names, put, sha256
from servers import HttpFiles
from test_cli import call

import wcodec
import wcodec.torch
from wcodec.codec.urls import Url
from wcodec.errors import CodecError, DecodeError, EncodeError
from wcodec.files import uploads
from wcodec.files.atomic import atomic_output, read_bytes
from wcodec.files.checkpoint import decode_file, encode_file
from wcodec.files.parts import encode_part, find_repeats, join_parts
from wcodec.files.repack import repack_file

OLD = b"a file of a user"
S3_LEAST = 5 << 20  #: bytes of a part that S3 takes


@pytest.fixture(params=["s3", "memory", "file"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place to write to, empty."""
    if request.param == "file":
        (tmp_path / "files").mkdir()
        yield f"file://{tmp_path}/files"
        return
    yield f"{request.getfixturevalue(request.param)}/writing"
    if request.param == "s3":
        fs = fsspec.filesystem("s3")
        fs.invalidate_cache()
        for path in fs.find("bucket/writing"):
            fs.rm_file(path)
        assert unfinished() == []


def unfinished() -> list[Any]:
    """Uploads to S3 that were begun, and are neither whole nor given up."""
    found: dict[str, Any] = fsspec.filesystem("s3").call_s3(
        "list_multipart_uploads", Bucket="bucket"
    )
    return list(found.get("Uploads", []))


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads in small parts."""
    monkeypatch.setattr(uploads, "PART_NBYTES", S3_LEAST)


# ---- results -------------------------------------------------------------------------------------
def test_what_is_written_is_what_local_files_hold(
    root: str, made: Checkpoint, here: Path, parts: None
) -> None:
    plain, coded = made.folder / "m.safetensors", made.folder / "m.wcodec"
    n = len(made.plain), len(made.coded)
    assert encode_file(plain, f"{root}/m.wcodec") == n
    assert sha256(f"{root}/m.wcodec") == sha256(made.coded)
    assert decode_file(f"{root}/m.wcodec", f"{root}/m.safetensors") == n[::-1]
    assert sha256(f"{root}/m.safetensors") == sha256(made.plain)
    options = wcodec.EncodeOptions(segment=(64, 64))
    repack_file(coded, "small.wcodec", options)
    repack_file(f"{root}/m.wcodec", f"{root}/small.wcodec", options)
    assert sha256(f"{root}/small.wcodec") == sha256(f"{here}/small.wcodec")
    assert sha256(f"{root}/small.wcodec") != sha256(made.coded)
    nbytes = wcodec.save_file(made.arrays, f"{root}/saved.wcodec", {"a": "b"})
    assert nbytes == wcodec.save_file(made.arrays, "saved.wcodec", {"a": "b"})
    assert sha256(f"{root}/saved.wcodec") == sha256(f"{here}/saved.wcodec")
    assert_same(wcodec.load_file(f"{root}/saved.wcodec"), made.arrays)
    assert sorted(names(root)) == [
        "m.safetensors", "m.wcodec", "saved.wcodec", "small.wcodec",
    ]  # fmt: skip


def test_torch_writes_them(root: str, here: Path) -> None:
    tensors = {"w": torch.arange(3000, dtype=torch.bfloat16).reshape(30, 100)}
    wcodec.torch.save_file(tensors, f"{root}/t.wcodec")
    wcodec.torch.save_file(tensors, "t.wcodec")
    assert sha256(f"{root}/t.wcodec") == sha256(f"{here}/t.wcodec")
    assert torch.equal(wcodec.torch.load_file(f"{root}/t.wcodec")["w"], tensors["w"])


def test_differences_from_a_file_beside(root: str, here: Path) -> None:
    old, new = {"w": gaussian(1, 200, 256)}, {"w": gaussian(1, 200, 256)}
    new["w"][5] = 0
    for where in (root, "."):
        wcodec.save_file(old, f"{where}/old.wcodec")
        wcodec.save_file(new, f"{where}/new.wcodec", base=f"{where}/old.wcodec")
    assert sha256(f"{root}/new.wcodec") == sha256(f"{here}/new.wcodec")
    assert_same(wcodec.load_file(f"{root}/new.wcodec"), new)
    decode_file(f"{root}/new.wcodec", f"{root}/new.safetensors")
    decode_file("new.wcodec", "new.safetensors")
    assert sha256(f"{root}/new.safetensors") == sha256(f"{here}/new.safetensors")


@pytest.mark.parametrize(
    "root", ["memory", "file", pytest.param("s3", marks=pytest.mark.exhaustive)], indirect=True
)
def test_parts_are_joined_to_the_same(
    root: str, made: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wcodec.files.parts.PART_NBYTES", 1 << 20)
    source = put(f"{root}/m.safetensors", made.plain)
    encode_file(source, f"{root}/whole.wcodec")
    n, repeats = find_repeats(source)
    assert n > 2
    paths = [f"{root}/part-{i}" for i in range(n)]
    for i, path in enumerate(paths):
        encode_part(source, path, part=i, repeats=repeats)
    join_parts(source, f"{root}/joined.wcodec", parts=paths, repeats=repeats)
    assert sha256(f"{root}/joined.wcodec") == sha256(f"{root}/whole.wcodec")


def test_the_command_line(root: str, made: Checkpoint) -> None:
    put(f"{root}/m.safetensors", made.plain)
    assert call("encode", f"{root}/m.safetensors", "-o", f"{root}/m.wcodec")[::2] == (0, "")
    assert sha256(f"{root}/m.wcodec") == sha256(made.coded)
    status, out, err = call("encode", f"{root}/m.safetensors", "-o", f"{root}/m.wcodec")
    assert (status != 0, out, err.count("\n")) == (True, "", 1)
    assert "output_exists" in err
    assert call("encode", "-f", f"{root}/m.safetensors", "-o", f"{root}/m.wcodec")[0] == 0


# ---- what is there stays -------------------------------------------------------------------------
def outputs(made: Checkpoint) -> dict[str, Callable[[str], object]]:
    """All that writes a file, of good inputs."""
    plain, coded = made.folder / "m.safetensors", made.folder / "m.wcodec"
    return {
        "encode": lambda to: encode_file(plain, to),
        "decode": lambda to: decode_file(coded, to),
        "repack": lambda to: repack_file(coded, to),
    }


@pytest.mark.parametrize("step", ["encode", "decode", "repack"])
def test_a_target_that_exists(
    root: str, step: str, made: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before anything is read."""
    put(f"{root}/old", OLD)
    monkeypatch.setattr(wcodec.files.file, "open_source", None)
    with pytest.raises(EncodeError, match=r"exists and is not replaced unasked") as e:
        outputs(made)[step](f"{root}/old")
    assert e.value.code == "output_exists"
    assert got(f"{root}/old") == OLD
    assert names(root) == ["old"]


def test_a_target_is_replaced_where_that_is_asked_for(root: str, made: Checkpoint) -> None:
    put(f"{root}/old", OLD)
    encode_file(made.folder / "m.safetensors", f"{root}/old", overwrite=True)
    assert sha256(f"{root}/old") == sha256(made.coded)
    wcodec.save_file({"w": gaussian(1, 30)}, f"{root}/old")
    assert list(wcodec.load_file(f"{root}/old")) == ["w"]
    assert names(root) == ["old"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_replaced(root: str, made: Checkpoint, overwrite: bool) -> None:
    url = put(f"{root}/m", made.plain)
    code = "bad_option"
    with pytest.raises(EncodeError) as e:
        encode_file(url, url, overwrite=overwrite)
    assert e.value.code == code
    put(url, made.coded)
    for step in (decode_file, repack_file):
        with pytest.raises(EncodeError) as e:
            step(url, url, overwrite=overwrite)
        assert e.value.code == code
    with pytest.raises(EncodeError) as e:
        wcodec.save_file({"w": gaussian(1, 30)}, url, base=url)
    assert e.value.code == code
    assert got(url) == made.coded


def test_a_directory_is_not_replaced(s3: str, memory: str) -> None:
    for url in (f"{s3}/folder-of-files", f"{memory}/folder-of-files"):
        put(f"{url}/x", OLD)
        with (
            pytest.raises(EncodeError, match="is a directory"),
            atomic_output(url, overwrite=False),
        ):
            pass
        assert got(f"{url}/x") == OLD


# ---- nothing half-written ------------------------------------------------------------------------
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("nbytes", [100, S3_LEAST + 100, 3 * S3_LEAST + 100])
def test_nothing_is_left_of_an_output_that_fails(
    root: str, nbytes: int, there: bool, parts: None
) -> None:
    if there:
        put(f"{root}/new", OLD)

    def write() -> None:
        with atomic_output(f"{root}/new", overwrite=True) as f:
            for i in range(0, nbytes, 1 << 20):
                f.write(bytes(min(1 << 20, nbytes - i)))
            seen.append(got(f"{root}/new") if "new" in names(root) else None)
            raise KeyError

    seen = list[bytes | None]()
    with pytest.raises(KeyError):
        write()
    assert seen == [OLD if there else None]
    assert names(root) == ["new"] * there
    if there:
        assert got(f"{root}/new") == OLD


@pytest.mark.parametrize("step", ["encode", "decode", "repack", "save"])
def test_an_encoding_that_fails_in_the_middle(
    root: str, step: str, made: Checkpoint, here: Path, parts: None
) -> None:
    plain, coded = bytearray(made.plain), bytearray(made.coded)
    coded[3_000_000] ^= 1
    bad = {
        "encode": plain[:-1000],
        "decode": coded,
        "repack": coded,
    }
    arrays: dict[str, Any] = {**made.arrays, "last": np.zeros(3, "O")}
    (here / "in").write_bytes(bad.get(step, b""))
    steps: dict[str, Callable[[], object]] = {
        "encode": lambda: encode_file("in", f"{root}/out"),
        "decode": lambda: decode_file("in", f"{root}/out"),
        "repack": lambda: repack_file("in", f"{root}/out"),
        "save": lambda: wcodec.save_file(arrays, f"{root}/out"),
    }
    with pytest.raises(CodecError):
        steps[step]()
    assert names(root) == []


def test_a_source_that_shrinks_after_parts_were_sent(
    s3: str, here: Path, parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload is under way then."""
    noise = np.random.default_rng(1).integers(0, 1 << 16, (20, 1 << 20), np.uint16)
    wcodec.save_file({str(i): a for i, a in enumerate(noise)}, "noise.wcodec")
    decode_file("noise.wcodec", "noise.safetensors")
    seen = list[int]()

    def cut(n: int) -> None:
        seen.append(len(unfinished()))
        if len(seen) == 16:
            with open("noise.safetensors", "r+b") as f:
                f.truncate(1 << 20)

    with pytest.raises(EncodeError, match=r"truncated|changed"):
        encode_file("noise.safetensors", f"{s3}/shrinks", progress=cut)
    assert max(seen) == 1, "or nothing was sent"
    assert unfinished() == []
    assert "shrinks" not in names(s3)


# ---- uploads to S3 -------------------------------------------------------------------------------
@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Methods of S3 that were called to write."""
    from s3fs import S3FileSystem

    found, right = list[str](), S3FileSystem._call_s3

    async def call_s3(fs: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if not method.startswith(("get", "head", "list")):
            found.append(method)
        return await right(fs, method, *args, **kwargs)

    monkeypatch.setattr(S3FileSystem, "_call_s3", call_s3)
    monkeypatch.setattr(
        S3FileSystem,
        "call_s3",
        lambda fs, *args, **kwargs: fsspec.asyn.sync(fs.loop, fs._call_s3, *args, **kwargs),
    )
    return found


@pytest.mark.parametrize(
    ("nbytes", "n_parts"),
    [
        (0, 0), (1, 0), (S3_LEAST - 1, 0), (S3_LEAST, 1), (S3_LEAST + 1, 2),
        (2 * S3_LEAST, 2), (5 * S3_LEAST + 3, 6),
    ],
)  # fmt: skip
def test_parts_of_an_upload(
    nbytes: int, n_parts: int, s3: str, parts: None, calls: list[str]
) -> None:
    url, data = f"{s3}/upload-{nbytes}", np.random.default_rng(nbytes).bytes(nbytes)
    with atomic_output(url, overwrite=False) as f:
        for i in range(0, nbytes, 999_983):
            f.write(memoryview(data)[i : i + 999_983])
        assert f.tell() == nbytes
    assert sha256(url) == sha256(data)
    assert calls.count("upload_part") == n_parts
    assert calls.count("put_object") == (n_parts == 0)
    assert unfinished() == []


def test_an_upload_of_more_parts_than_s3_takes(
    s3: str, parts: None, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some parts, they are twice as large, and so on."""
    monkeypatch.setattr(uploads, "_DOUBLED", 2)
    url, data = f"{s3}/many", np.random.default_rng(1).bytes(7 * S3_LEAST + 3)
    with atomic_output(url, overwrite=False) as f:
        f.write(data)
    assert got(url) == data
    assert calls.count("upload_part") == 5  # of 1, 1, 2, 2 and 1 times the least, and 3 bytes


@pytest.mark.parametrize("nbytes", [100, 2 * S3_LEAST + 100])
def test_another_writer_comes_first(root: str, nbytes: int, parts: None) -> None:

    def write() -> None:
        with atomic_output(f"{root}/new", overwrite=False) as f:
            f.write(bytes(nbytes))
            put(f"{root}/new", OLD)

    with pytest.raises(EncodeError) as e:
        write()
    assert e.value.code == "output_exists"
    assert got(f"{root}/new") == OLD
    assert names(root) == ["new"]


@pytest.mark.parametrize("nbytes", [100, 2 * S3_LEAST + 100])
def test_another_writer_comes_at_the_last_moment(
    nbytes: int, s3: str, parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last look: S3 itself refuses."""
    url, looks = f"{s3}/last-moment-{nbytes}", list[int]()
    right = uploads.refuse_existing

    def look(place: Url, overwrite: bool) -> None:
        right(place, overwrite)
        looks.append(1)
        if len(looks) == 2:
            put(url, OLD)

    monkeypatch.setattr(uploads, "refuse_existing", look)
    with (
        pytest.raises((EncodeError, FileExistsError)) as e,
        atomic_output(url, overwrite=False) as f,
    ):
        f.write(bytes(nbytes))
    assert len(looks) == 2
    assert getattr(e.value, "code", "output_exists") == "output_exists"
    assert getattr(e.value, "errno", errno.EEXIST) == errno.EEXIST
    assert url in str(e.value)
    assert got(url) == OLD
    assert unfinished() == []


@pytest.mark.parametrize("method", ["create_multipart_upload", "upload_part"])
@pytest.mark.parametrize("times", [2, 1000])
def test_a_part_that_fails(
    method: str, times: int, s3: str, parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, left = uploads._S3._call, [times]

    def fails(self: Any, name: str, **more: Any) -> Any:
        if name == method and left[0] > 0:
            left[0] -= 1
            raise ConnectionResetError(errno.ECONNRESET, "the line is down")
        return right(self, name, **more)

    monkeypatch.setattr(uploads._S3, "_call", fails)
    url, data = f"{s3}/fails-{method}-{times}", np.random.default_rng(1).bytes(3 * S3_LEAST + 7)
    if times == 2:
        with atomic_output(url, overwrite=False) as f:
            f.write(data)
        assert sha256(url) == sha256(data)
        return
    with (
        pytest.raises(OSError, match=f"the line is down.*{url}"),
        atomic_output(url, overwrite=False) as f,
    ):
        f.write(data)
    assert Url(url).look_up() is None
    monkeypatch.undo()
    assert unfinished() == []


# ---- places that cannot be written to ------------------------------------------------------------
def test_a_server_that_takes_nothing(http: HttpFiles, made: Checkpoint) -> None:
    with pytest.raises(OSError, match="writes no files") as e:
        encode_file(made.folder / "m.safetensors", f"{http.url}/new")
    assert http.url in str(e.value)
    assert "\n" not in str(e.value)


def test_a_bucket_that_is_not_there(s3: str, made: Checkpoint) -> None:
    with pytest.raises(OSError, match="s3://nosuch-bucket/x"):
        encode_file(made.folder / "m.safetensors", "s3://nosuch-bucket/x")


def test_bytes_that_are_read_as_they_are(root: str) -> None:
    url = put(f"{root}/x", bytes(range(100)))
    assert read_bytes(url) == bytes(range(100))
    assert read_bytes(url, 7) == bytes(range(7))
    with pytest.raises(FileNotFoundError):
        read_bytes(f"{root}/y")


def test_a_damaged_file_at_a_url_is_named(root: str, made: Checkpoint) -> None:
    data = bytearray(made.coded)
    data[2_000_000] ^= 1
    url = put(f"{root}/bad.wcodec", bytes(data))
    with pytest.raises(DecodeError, match="bad_checksum") as e:
        wcodec.load_file(url)
    assert e.value.file is not None
    assert e.value.file.endswith("bad.wcodec")
