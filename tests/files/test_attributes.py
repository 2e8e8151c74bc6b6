"""What outputs get beside their bytes: links followed, permissions, owners and extended attributes
kept, all of it on the disk.
"""

from __future__ import annotations

import ast
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import call
from test_outputs import COMMANDS, CONVERT, DIRECTORIES, all_bytes, here, plain

import wcodec
import wcodec.torch
from wcodec.errors import EncodeError
from wcodec.files import atomic
from wcodec.files.atomic import atomic_output, check_room, temporary_of
from wcodec.files.attributes import Attributes
from wcodec.files.checkpoint import decode_file, encode_file
from wcodec.files.repack import repack_file
from wcodec.inspect.explain import explain, plot

__all__ = ["here"]  # a fixture
ROOT = Path(wcodec.__file__).parent
ARRAYS = {"a": np.arange(500, dtype=np.float32)}

#: All functions that write one file, and their input. These two always replace.
SAVE: dict[str, Callable[..., Any]] = {
    "save_file": lambda _, target, **how: wcodec.save_file(ARRAYS, target, **how),
    "torch.save_file": lambda _, target, **how: wcodec.torch.save_file(
        {"a": torch.arange(500.0)}, target, **how
    ),
}
WRITE: dict[str, tuple[Callable[..., Any], str]] = {
    **{name: (partial(f, overwrite=True), source) for name, (f, source) in CONVERT.items()},
    **{name: (f, "m-1.safetensors") for name, f in SAVE.items()},
}


def test_all_functions_that_write_are_tested_here() -> None:
    """Those with a choice of what to replace, or of fsync."""
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                names = {a.arg for a in (*node.args.args, *node.args.kwonlyargs)}
                if names & {"overwrite", "fsync"}:
                    found.add(node.name)
    below = {"write_tensors", "atomic_output", "check_output", "plan_encode", "plan_decode"}
    below |= {"remote_output", "refuse_existing", "encode_part", "join_parts", "do_task"}
    below |= {"make_link", "convert_file"}
    assert found - below == {
        *(name for name in CONVERT if "," not in name),
        "save_file",  # in wcodec and wcodec.torch
        *("encode_directory", "decode_directory", "plot"),
    }


# ---- inputs --------------------------------------------------------------------------------------
def test_what_is_read_is_not_replaced(here: Path) -> None:
    """A base that is given and not needed; a figure of a file; a base in an output directory."""
    Path("t.safetensors").write_bytes(plain(1)[:-1] + b"x")
    encode_file("t.safetensors", "coded/t.wcodec", base="coded/c-1.wcodec")
    Path("hard").hardlink_to("coded/c-1.wcodec")
    Path("link").symlink_to("coded/c-1.wcodec")
    report = explain("coded/t.wcodec", base="coded/c-1.wcodec")
    before = all_bytes()
    calls: list[Callable[[str], object]] = [
        lambda to: decode_file("coded/c-2.wcodec", to, base="coded/c-1.wcodec", overwrite=True),
        lambda to: decode_file("coded/t.wcodec", to, base="coded/c-1.wcodec", overwrite=True),
        lambda to: decode_file("coded/t.wcodec", to, overwrite=True),
        lambda to: repack_file("coded/c-2.wcodec", to, base="coded/c-1.wcodec", overwrite=True),
        lambda to: repack_file("coded/t.wcodec", to, overwrite=True),
        lambda to: plot(report, to, overwrite=True),
        lambda to: plot(explain("coded/t.wcodec"), to, overwrite=True),
        lambda to: wcodec.torch.save_file({}, to, base="coded/t.wcodec"),
    ]
    for i, function in enumerate(calls):
        for target in ("hard", "link", "coded/c-1.wcodec", str(here / "coded/c-1.wcodec")):
            with pytest.raises(EncodeError, match=r"bad_option: the output .* would replace "):
                function(target)
            assert all_bytes() == before, (i, target)


def test_a_base_in_the_output_directory_is_not_replaced(here: Path) -> None:
    encode_directory, decode_directory = DIRECTORIES["wcodec"][0], DIRECTORIES["decode wcodec"][0]
    encode_directory("model-2", "delta", base="model-1")
    Path("up").symlink_to("model-1")
    before = all_bytes()
    for target in ("model-1", "up", here / "model-1", "."):
        for function, source in ((encode_directory, "model-2"), (decode_directory, "delta")):
            with pytest.raises(EncodeError, match="bad_option"):
                function(source, target, base="model-1", overwrite=True)
    assert all_bytes() == before


# ---- links ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", WRITE)
def test_what_a_link_points_at_is_written(here: Path, name: str) -> None:
    write, source = WRITE[name]
    write(source, "due")
    due = Path("due").read_bytes()
    Path("far").mkdir()
    Path("far/old").write_bytes(b"old")
    Path("far/link").symlink_to("old")
    for link, to, place in (
        ("to-file", "far/old", "far/old"),
        ("to-link", here / "far/link", "far/old"),
        ("dangling", "far/new", "far/new"),
    ):
        Path(link).symlink_to(to)
        Path("far/old").write_bytes(b"old")
        write(source, link)
        assert (os.readlink(link), Path(place).read_bytes()) == (str(to), due)
    assert os.readlink("far/link") == "old"
    assert sorted(os.listdir("far")) == ["link", "new", "old"]
    Path("loop").symlink_to("pool")
    Path("pool").symlink_to("loop")
    Path("nowhere").symlink_to("no/such/place")
    Path("to-folder").symlink_to("far")
    before = all_bytes()
    for target, error, match in (
        ("loop", OSError, "Too many levels of symbolic links: 'loop'"),
        ("nowhere", FileNotFoundError, "there is no such directory: .*no/such"),
        ("to-folder", EncodeError, "bad_option: the output 'to-folder' is a directory"),
    ):
        with pytest.raises(error, match=match):
            write(source, target)
    assert all_bytes() == before


@pytest.mark.parametrize("name", [name for name in COMMANDS if "directory" not in name])
def test_the_command_follows_links_as_the_functions_do(here: Path, name: str) -> None:
    assert call(*COMMANDS[name], "-o", "due")[0] == 0
    for to in ("old", "new"):
        Path(f"to-{to}").symlink_to(to)
    Path("old").write_bytes(b"old")
    Path("loop").symlink_to("loop")
    before = all_bytes()
    for target in ("to-old", "to-new", "loop"):
        assert call(*COMMANDS[name], "-o", target)[0] == 1
    status, _, err = call(*COMMANDS[name], "-f", "-o", "loop")
    assert (status, err) == (1, "wcodec: error: loop: Too many levels of symbolic links\n")
    assert all_bytes() == before
    for to in ("old", "new"):
        assert call(*COMMANDS[name], "-f", "-o", f"to-{to}")[0] == 0
        assert (os.readlink(f"to-{to}"), Path(to).read_bytes()) == (to, Path("due").read_bytes())


def test_reports_and_figures_follow_links(here: Path) -> None:
    for name in ("r.json", "x.png"):
        Path(name).symlink_to(f"of-{name}")
    suite = ["conformance", "--filter", "accept/rank_0", "--no-sweeps", "--report", "r.json"]
    assert call(*suite, "-f")[0] == 0
    assert call("info", "--explain", "coded/c-1.wcodec", "--plot", "x.png", "-f")[0] == 0
    assert (os.readlink("r.json"), os.readlink("x.png")) == ("of-r.json", "of-x.png")
    assert Path("of-r.json").read_bytes().startswith(b"{")
    assert Path("of-x.png").read_bytes().startswith(b"\x89PNG")


# ---- permissions ---------------------------------------------------------------------------------
def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture
def open_umask() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


@pytest.mark.usefixtures("open_umask")
@pytest.mark.parametrize("name", CONVERT)
def test_an_output_is_never_more_readable_than_its_source(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Not while it is written either: someone might open it then."""
    convert, source = CONVERT[name]
    seen, chmod = list[int](), os.chmod

    def look(descriptor: int, to: int) -> None:
        seen.append(mode(f"/proc/self/fd/{descriptor}"))
        chmod(descriptor, to)

    for before, after in ((0o600, 0o600), (0o640, 0o640), (0o4755, 0o755), (0o400, 0o400)):
        chmod(source, before)
        seen.clear()
        with monkeypatch.context() as m:
            m.setattr("os.chmod", look)
            convert(source, f"out-{after}")
        assert (mode(f"out-{after}"), seen) == (after, [0o600])


@pytest.mark.usefixtures("open_umask")
def test_directories_get_permissions_too(here: Path) -> None:
    Path("model-1/sub").mkdir()
    Path("model-1/sub/x").write_bytes(b"x")
    for path, to in (("sub/x", 0o604), ("sub", 0o710), ("config.json", 0o640), ("", 0o750)):
        os.chmod(Path("model-1", path), to)
    for name, (convert, _) in DIRECTORIES.items():
        if "decode" not in name:
            convert("model-1", name)
            for path, due in (("sub/x", 0o604), ("sub", 0o710), ("", 0o750)):
                assert mode(Path(name, path)) == due
            assert mode(Path(name, "config.json")) == 0o640, "also where its text was changed"
            DIRECTORIES["decode"][0](name, f"back of {name}")
            assert mode(f"back of {name}") == 0o750
            assert mode(f"back of {name}/config.json") == 0o640


@pytest.mark.usefixtures("open_umask")
def test_where_the_group_is_not_kept_it_gets_no_more_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.chown", refuse)
    for i, (own, due) in enumerate(((0o640, 0o600), (0o664, 0o644), (0o675, 0o655))):
        path = tmp_path / f"{i}"
        path.write_bytes(b"")
        path.chmod(own)
        attributes = Attributes.of(path, is_replaced=False)
        assert attributes is not None
        path.chmod(0o600)
        with open(path, "rb+") as f:
            attributes.give(f.fileno())
            assert mode(path) == own
            f.truncate(0)
            path.chmod(0o600)
            replace(attributes, gid=attributes.gid + 1, uid=attributes.uid + 1).give(f.fileno())
            assert mode(path) == due


def test_owner_and_group_of_what_is_replaced_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[tuple[int, int]]()
    monkeypatch.setattr("os.chown", lambda _, uid, gid: asked.append((uid, gid)))
    for path in ("old", "source"):
        (tmp_path / path).write_bytes(b"")
    of, found = Attributes.of, os.stat(tmp_path / "old")

    def strange(path: str, *, is_replaced: bool) -> Attributes | None:
        a = of(path, is_replaced=is_replaced)
        assert a is not None
        return replace(a, uid=a.uid + 7 * (a.uid != -1), gid=a.gid + 7)

    monkeypatch.setattr(Attributes, "of", strange)
    with atomic_output(tmp_path / "old", overwrite=True, like=tmp_path / "source") as f:
        f.write(b"new")
    assert asked == [(-1, found.st_gid + 7), (found.st_uid + 7, -1)]
    asked.clear()
    with atomic_output(tmp_path / "new", overwrite=True, like=tmp_path / "source") as f:
        f.write(b"new")
    assert asked == [(-1, found.st_gid + 7)], "a new file belongs to who writes it"


class Xattrs:
    """Extended attributes of files by inode: not all file systems have them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of = dict[int, dict[str, bytes]]()
        for name in ("listxattr", "getxattr", "setxattr", "removexattr"):
            monkeypatch.setattr(os, name, getattr(self, name), raising=False)
        self.refused = ""

    def at(self, file: Any) -> dict[str, bytes]:
        return self.of.setdefault(os.stat(file).st_ino, {})

    def listxattr(self, file: Any) -> list[str]:
        return list(self.at(file))

    def getxattr(self, file: Any, name: str) -> bytes:
        return self.at(file)[name]

    def setxattr(self, file: Any, name: str, value: bytes) -> None:
        if name == self.refused:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        self.at(file)[name] = value

    def removexattr(self, file: Any, name: str) -> None:
        del self.at(file)[name]


ACL = "system.posix_acl_access"


def test_extended_attributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of what is replaced are kept; of a source only who may read it."""
    xattrs, path, source = Xattrs(monkeypatch), tmp_path / "x", tmp_path / "source"

    def write(to: Path) -> dict[str, bytes]:
        with atomic_output(to, overwrite=True, like=source) as f:
            f.write(b"new")
            xattrs.at(f.fileno()).clear()  # the inode may have been another file's
            if xattrs.refused == "of the directory":
                xattrs.at(f.fileno())[ACL] = b"all"
        return xattrs.at(to)

    for p in (path, source):
        p.write_bytes(b"")
        p.chmod(0o640)
    xattrs.of[path.stat().st_ino] = {
        "user.note": b"mine", ACL: b"bob", "security.selinux": b"s",
        "security.ima": b"a hash", "security.capability": b"net",
    }  # fmt: skip
    kept = {"user.note": b"mine", ACL: b"bob", "security.selinux": b"s"}
    assert write(path) == kept
    xattrs.refused = "security.selinux"
    assert write(path) == {"user.note": b"mine", ACL: b"bob"}
    xattrs.of[source.stat().st_ino] = {"user.sha256": b"of other bytes", ACL: b"eve"}
    assert (write(tmp_path / "new"), mode(tmp_path / "new")) == ({ACL: b"eve"}, 0o640)
    xattrs.refused = ACL
    assert (write(tmp_path / "less"), mode(tmp_path / "less")) == ({}, 0o600)
    xattrs.of[source.stat().st_ino], xattrs.refused = {}, "of the directory"
    assert write(tmp_path / "fresh") == {}


def test_a_source_that_is_no_file_says_nothing_of_permissions(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for like in (tmp_path / "pipe", None):
        with atomic_output(tmp_path / f"{like is None}", overwrite=False, like=like) as f:
            f.write(b"x")
    assert mode(tmp_path / "False") == mode(tmp_path / "True")


# ---- on the disk ---------------------------------------------------------------------------------
@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed, in order."""
    seen, link, rename = list[str](), os.link, os.replace

    def fsync(descriptor: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        seen.append("fsync " + (name.split(".")[1] if name.startswith(".") else f"{name}/"))

    def named(function: Callable[..., None]) -> Callable[..., None]:
        def renamed(a: Any, b: Any) -> None:
            function(a, b)
            seen.append(f"name {os.path.basename(b)}")

        return renamed

    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr("os.link", named(link))
    monkeypatch.setattr("os.replace", named(rename))
    return seen


@pytest.mark.parametrize("name", WRITE)
def test_data_are_synced_before_the_name_and_the_directory_after(
    here: Path, events: list[str], name: str
) -> None:
    write, source = WRITE[name]
    Path("sub").mkdir()
    events.clear()
    for _ in range(2):
        write(source, "sub/out")
        assert events == ["fsync out", "name out", "fsync sub/"]
        events.clear()
    write(source, "sub/out", fsync=False)
    assert events == ["name out"]


@pytest.mark.parametrize("name", DIRECTORIES)
def test_all_files_of_a_directory_are_synced(here: Path, events: list[str], name: str) -> None:
    convert, source = DIRECTORIES[name]
    for fsync in (True, False):
        events.clear()
        convert(source, f"out-{fsync}", fsync=fsync)
        files = sorted(os.listdir(f"out-{fsync}"))
        assert sorted(e for e in events if e.startswith("name") and "resume" not in e) == [
            f"name {f}" for f in files
        ]
        synced = [e for e in events if e.startswith("fsync")]
        if not fsync:
            assert synced == []
            continue
        assert {e for e in synced if not e.endswith("/")} == {
            f"fsync {f.split('.')[0]}" for f in files
        }
        assert synced[-2:] == [f"fsync out-{fsync}/", f"fsync {here.name}/"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_syncs_unless_it_is_told_not_to(
    here: Path, events: list[str], name: str
) -> None:
    events.clear()
    assert call(*COMMANDS[name], "-o", "out")[0] == 0
    assert f"fsync {here.name}/" in events
    events.clear()
    assert call(*COMMANDS[name], "-f", "--no-fsync", "-o", "out")[0] == 0
    assert events
    assert not [e for e in events if e.startswith("fsync")]


def test_an_input_is_not_removed_before_its_output_is_on_the_disk(
    here: Path, events: list[str]
) -> None:
    assert call("encode", "--rm", "--no-fsync", "m-1.safetensors")[0] == 0
    assert events == ["name m-1.wcodec", "fsync m-1.wcodec/", f"fsync {here.name}/"]


def test_where_nothing_can_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> Callable[[int], None]:
        def fsync(descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        return fsync

    for i, number in enumerate((errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)):
        monkeypatch.setattr("os.fsync", fail(number))
        wcodec.save_file(ARRAYS, tmp_path / f"{i}")
    monkeypatch.setattr("os.fsync", fail(errno.EIO))
    with pytest.raises(OSError, match=r"Input/output error: .*/x'"):
        wcodec.save_file(ARRAYS, tmp_path / "x")
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2"]


# ---- room and names ------------------------------------------------------------------------------
def test_room_that_is_not_known_is_found_out_by_writing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    none = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
    full = os.statvfs_result((4096, 4096, 10, 0, 0, 0, 0, 0, 0, 255))
    for i, statvfs in enumerate((unknown, lambda _: none)):
        monkeypatch.setattr("os.statvfs", statvfs)
        check_room("x", 1 << 60)
        for j, name in enumerate(("coded/c-1.wcodec", "coded/hub.safetensors", "model-1-wcodec")):
            assert call("decode", name, "-o", f"out-{i}{j}")[0] == 0
    monkeypatch.setattr("os.statvfs", lambda _: full)
    with pytest.raises(wcodec.DecodeError, match="resource_limit"):
        check_room("x", 1)


def test_long_and_strange_names(here: Path) -> None:
    """The temporary file has a name too, which says whose it is."""
    names = ["n" * 255, "\N{SNOWMAN}" * 85, "\udcff" * 255, "\N{GRINNING FACE}" * 63, "a\n \\'*"]
    for name in names:
        temporary = temporary_of(Path("sub") / name)
        assert temporary.parent == Path("sub")
        assert len(os.fsencode(temporary.name)) <= 255
        assert temporary.name.startswith(f".{name[:58]}.")
        assert temporary.name.endswith(".wcodec-tmp")
        wcodec.save_file(ARRAYS, name)
        decode_file(name, "back", overwrite=True)
        encode_file("back", name, overwrite=True)
        assert wcodec.load_file(name)["a"].tolist() == ARRAYS["a"].tolist()
        os.unlink(name)
    with pytest.raises(OSError, match="File name too long: 'n"):
        encode_file("m-1.safetensors", "n" * 256)
    with pytest.raises(OSError, match="File name too long: 'n"):
        wcodec.save_file(ARRAYS, "n" * 256)


def test_a_temporary_file_is_where_the_output_goes(here: Path) -> None:
    """Renaming from one file system to another would fail."""
    Path("far").mkdir()
    Path("link").symlink_to("far/out")
    with atomic_output("link", overwrite=True) as f:
        f.write(b"x")
        (name,) = os.listdir("far")
        assert name.startswith(".out.")
        assert f.name == "link"
        assert atomic._unfinished == {(here / "far" / name)}
