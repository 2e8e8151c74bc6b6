"""Outputs that appear when they are whole or not at all.

An output is written under a temporary name beside the target, and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from wcodec.codec.opening import open_source
from wcodec.codec.urls import Url, place_of
from wcodec.errors import DecodeError, EncodeError, named
from wcodec.files.attributes import NOT_HERE, Attributes
from wcodec.files.uploads import refuse_existing, remote_output
from wcodec.processes import call_in_child

AnyPath = str | os.PathLike[str]

#: characters of the target's name in that of its temporary file: 4 bytes each, and 21 more, are a
#: name still
_NAME_LENGTH: Final = 58
_BUFFERED: Final = 1 << 20
_RESERVED: Final = 1 << 24  #: files of fewer bytes take room as they grow
_unfinished: Final[set[Path]] = set()  #: temporary files of outputs of this process
call_in_child(_unfinished.clear)


class _Named(io.FileIO):
    """A temporary file that goes by the name of the target, which the caller knows.

    Parameters
    ----------
    mode
        Its permissions, of which the system takes the umask.
    fsync
        Whether it is to be synced: then the disk writes while the file is made.
    """

    def __init__(self, temporary: Path, target: Path, mode: int, fsync: bool) -> None:
        self._begins_early = fsync and hasattr(os, "posix_fadvise")
        self._process = os.getpid()
        with named(target):
            super().__init__(
                temporary, "xb+", opener=lambda path, flags: os.open(path, flags, mode)
            )
        self.name = str(target)

    def write(self, data: Any) -> int:
        if os.getpid() != self._process:  # what it had not yet written is its own to write
            return memoryview(data).nbytes
        with named(self.name):
            n = super().write(data)
            if self._begins_early and n >= _BUFFERED:
                # Linux begins to write what is not on the disk yet, and keeps it in memory
                os.posix_fadvise(self.fileno(), self.tell() - n, n, os.POSIX_FADV_DONTNEED)
        return n

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with named(self.name):
            return super().seek(offset, whence)

    def truncate(self, size: int | None = None) -> int:
        with named(self.name):
            return super().truncate(size)

    def close(self) -> None:
        with named(self.name):
            super().close()


def reserve(f: BinaryIO, nbytes: int) -> None:
    """Take room for a file on the disk, if that is worth it and the file system can.

    Raises
    ------
    OSError
        The disk is full, or the file may not be as large.
    """
    if nbytes < _RESERVED or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(f.fileno(), 0, nbytes)
    except OSError as e:
        if e.errno not in NOT_HERE:
            raise


def check_room(target: AnyPath, nbytes: int) -> None:
    """Refuse to write more bytes than the disk has room for. What is not known, such as of mounts
    that report a size of 0, is found out by writing.

    Raises
    ------
    DecodeError
        ``resource_limit``
    """
    if isinstance(place_of(target), Url):
        return
    try:
        disk = shutil.disk_usage(Path(followed(target)).absolute().parent)
    except OSError:
        return
    if disk.total and nbytes > disk.free:
        raise DecodeError(
            "resource_limit",
            f"the tensors have {nbytes} bytes; the disk of {str(target)!r} has room for "
            f"{disk.free}",
        )


def followed(path: AnyPath) -> str:
    """The file that is written under a name: of a symbolic link, what it points at, whether that is
    there or not.

    Raises
    ------
    OSError
        Links that form a loop, or one that the system does not follow for this user.
    """
    if not os.path.islink(path):
        return os.fspath(path)
    _found(path)
    return os.path.realpath(path)


def _found(path: AnyPath, follow_symlinks: bool = True) -> os.stat_result | None:
    """What stands under a name, or ``None``. Raises `OSError`: the name cannot be used."""
    try:
        return os.stat(path, follow_symlinks=follow_symlinks)
    except (FileNotFoundError, NotADirectoryError):
        return None


def check_output(target: AnyPath, overwrite: bool = False, inputs: Iterable[AnyPath] = ()) -> None:
    """Refuse a path to write to, before anything is written. Symbolic links are followed.

    Parameters
    ----------
    overwrite
        Whether a file that is there may be replaced.
    inputs
        Files that are read for the output: none of them is ever replaced, by whatever name or link.

    Raises
    ------
    EncodeError
        ``bad_option``: it is one of the inputs, or what stands there is no regular file.
        ``output_exists``
    OSError
        There is no such directory, or no file can have that name.
    """
    if not os.fspath(target):
        raise EncodeError("bad_option", "the output has no name")
    place = place_of(target)
    if isinstance(place, Url):
        if (same := next((p for p in inputs if place_of(p) == place), None)) is not None:
            raise EncodeError("bad_option", f"the output {str(target)!r} is read for it: {same!r}")
        refuse_existing(place, overwrite)
        return
    target = place
    there = _found(target)
    if there is not None:
        for path in map(place_of, inputs):
            if isinstance(path, Url) or (read := _found(path)) is None:
                continue
            if os.path.samestat(there, read):
                raise EncodeError(
                    "bad_option",
                    f"the output {str(target)!r} would replace {str(path)!r}, which is read for it",
                )
        if not stat.S_ISREG(there.st_mode):
            what = "a directory" if stat.S_ISDIR(there.st_mode) else "not a regular file"
            raise EncodeError("bad_option", f"the output {str(target)!r} is {what}")
    if not overwrite and _found(target, follow_symlinks=False) is not None:
        raise EncodeError(
            "output_exists",
            f"{str(target)!r} exists and is not replaced unasked: -f does that (overwrite=True)",
        )
    folder = os.path.dirname(followed(target)) or "."
    found = _found(folder)
    if found is None or not stat.S_ISDIR(found.st_mode):
        raise FileNotFoundError(errno.ENOENT, "there is no such directory", folder)


def folder_for(target: AnyPath) -> Path:
    """Where what is kept for a while on the way to an output goes: beside it, or, of one at a URL,
    where temporary files go.
    """
    place = place_of(target)
    return Path(tempfile.gettempdir()) if isinstance(place, Url) else place.absolute().parent


def temporary_of(target: Path) -> Path:
    """A new name beside a file that is to be written, under which it is written first. Whoever
    finds one after a crash can see whose it is.
    """
    random = secrets.token_hex(4)
    return target.with_name(f".{target.name[:_NAME_LENGTH]}.{random}.wcodec-tmp")


def temporary_names(target: str) -> str:
    """A regular expression for the names that `temporary_of` may give, of the last part of a
    path.
    """
    return rf"\.{re.escape(target[:_NAME_LENGTH])}\.[0-9a-f]{{8}}\.wcodec-tmp"


@contextlib.contextmanager
def atomic_output(
    path: AnyPath,
    nbytes: int = 0,
    *,
    overwrite: bool,
    inputs: Iterable[AnyPath] = (),
    like: AnyPath | None = None,
    fsync: bool = True,
) -> Iterator[BinaryIO]:
    """Binary file that appears under `path` only if the block ends without an exception. All files
    that wcodec writes go by here. Of a symbolic link, what it points at is written.

    Room for `nbytes` bytes is taken on the disk at once, where the file system can: writing is
    faster then. What is not used is given back.

    Parameters
    ----------
    overwrite, inputs
        As of `check_output`, which raises as described there. A file that comes to be while this
        one is written is not replaced either. One that is replaced hands on its owner, permissions
        and extended attributes (`Attributes`).
    like
        The file that this one is made of, which hands on permissions to a new one.
    fsync
        Have the bytes on the disk before the file gets its name, and its name there in the end, so
        that the file is whole after a power failure too.
    """
    check_output(path, overwrite, inputs)
    place = place_of(path)
    if isinstance(place, Url):
        with remote_output(place, overwrite=overwrite) as stream:
            yield stream
        return
    path = place
    target = Path(followed(path))
    is_replaced = target.exists()
    like = target if is_replaced else None if like is None else place_of(like)
    like = None if isinstance(like, Url) else like
    attributes = None if like is None else Attributes.of(like, is_replaced=is_replaced)
    temporary, process = temporary_of(target), os.getpid()
    _unfinished.add(temporary)
    try:
        # with what permissions is decided when it is whole; until then, nobody else may read it
        mode = 0o666 if attributes is None else 0o600
        with io.BufferedWriter(_Named(temporary, Path(path), mode, fsync), _BUFFERED) as f:
            with named(path):
                reserve(f, nbytes)
            yield f
            if os.getpid() != process:
                raise RuntimeError(f"{str(path)!r} is written by the process that began it")
            f.flush()
            with named(path):
                _complete(f, attributes, fsync)
        with named(path):
            os.replace(temporary, target) if overwrite else _rename_to_new(temporary, target)
    except BaseException:
        if os.getpid() == process:
            with contextlib.suppress(OSError):
                temporary.unlink()
        raise
    finally:
        _unfinished.discard(temporary)
    if fsync:
        sync_folder(target.parent)


def _complete(f: BinaryIO, attributes: Attributes | None, fsync: bool) -> None:
    """Make a file that is written ready for its name."""
    if os.fstat(f.fileno()).st_size > f.tell():
        f.truncate()
    if attributes is not None:
        attributes.give(f.fileno())
    if fsync:
        _sync(f.fileno())


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno not in NOT_HERE:
            raise


def sync_file(path: AnyPath) -> None:
    """Have a file that is there, and its name, on the disk. Raises `OSError`: the disk fails."""
    place = place_of(path)
    if isinstance(place, Url):  # what an upload has made is there to stay
        return
    path = followed(place)
    with open(path, "rb") as f, named(path):
        _sync(f.fileno())
    sync_folder(os.path.dirname(path) or ".")


def sync_folder(folder: AnyPath) -> None:
    """Have the names in a directory on the disk, where the file system can.

    Raises
    ------
    OSError
        The disk fails. The files are there, and may be gone after a power failure.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # a directory to put files into, not to look what is there
        return
    with named(folder):
        try:
            _sync(descriptor)
        finally:
            os.close(descriptor)


def _rename_to_new(temporary: Path, target: Path) -> None:
    """Rename a file, but not onto another one."""
    try:
        os.link(temporary, target)  # renaming would replace what came to be there in the meantime
    except FileExistsError:
        check_output(target)
        raise
    except OSError:  # a file system without hard links; what else is wrong, renaming says too
        check_output(target)
        os.replace(temporary, target)
    else:
        temporary.unlink()


def remove_unfinished() -> None:
    """Remove what outputs of this process have been written so far,
    when it is about to end at once.
    """
    for temporary in tuple(_unfinished):
        with contextlib.suppress(OSError):
            temporary.unlink()


def read_bytes(path: AnyPath, nbytes: int = -1) -> bytes:
    """The first bytes of a file, or all. Raises `OSError`, which names the file."""
    place = place_of(path)
    if isinstance(place, Url):
        source = open_source(place)
        return source.read(0, source.nbytes if nbytes < 0 else min(nbytes, source.nbytes)).tobytes()
    with named(path), open(place, "rb") as f:
        return f.read(nbytes)
