"""Outputs that appear when they are whole or not at all.

An output is written under a temporary name beside the target, and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from wcodec.errors import DecodeError, EncodeError

AnyPath = str | os.PathLike[str]

#: characters of the target's name in that of its temporary file: 4 bytes each, and 14 more, are a
#: name still
NAME_LENGTH: Final = 60

_BUFFERED: Final = 1 << 20
_RESERVED: Final = 1 << 24  #: files of fewer bytes take room as they grow
_unfinished: Final[set[Path]] = set()  #: temporary files of outputs


class _Named(io.FileIO):
    """A temporary file whose errors name the target: that is the name that the caller knows."""

    def __init__(self, temporary: Path, target: Path) -> None:
        self._target = str(target)
        with named(target):
            super().__init__(temporary, "xb")

    def write(self, data: Any) -> int:
        with named(self._target):
            return super().write(data)


@contextlib.contextmanager
def named(path: AnyPath) -> Iterator[None]:
    """Errors of the system are about this path."""
    try:
        yield
    except OSError as e:
        raise OSError(e.errno, e.strerror or str(e), str(path)) from None


def reserve(f: BinaryIO, nbytes: int) -> None:
    """Take room for a file on the disk, if that is worth it and the file system can.

    Raises
    ------
    OSError
        The disk is full.
    """
    if nbytes < _RESERVED or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(f.fileno(), 0, nbytes)
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise


def check_room(target: AnyPath, nbytes: int) -> None:
    """Refuse to write more bytes than the disk has room for.

    Raises
    ------
    DecodeError
        ``resource_limit``
    """
    room = shutil.disk_usage(Path(target).absolute().parent).free
    if nbytes > room:
        raise DecodeError(
            "resource_limit",
            f"the tensors have {nbytes} bytes; the disk of {str(target)!r} has room for {room}",
        )


def check_output(target: AnyPath, overwrite: bool = False, inputs: Iterable[AnyPath] = ()) -> None:
    """Refuse a path to write to, before anything is written.

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
    FileNotFoundError
        There is no such directory.
    """
    if not os.fspath(target):
        raise EncodeError("bad_option", "the output has no name")
    if os.path.exists(target):
        for path in inputs:
            if os.path.exists(path) and os.path.samefile(path, target):
                raise EncodeError(
                    "bad_option",
                    f"the output {str(target)!r} would replace {str(path)!r}, which is read for it",
                )
        if not os.path.isfile(target):
            what = "a directory" if os.path.isdir(target) else "not a regular file"
            raise EncodeError("bad_option", f"the output {str(target)!r} is {what}")
    if not overwrite and os.path.lexists(target):
        raise EncodeError(
            "output_exists",
            f"{str(target)!r} exists and is not replaced unasked: -f does that (overwrite=True)",
        )
    folder = os.path.dirname(target)
    if folder and not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "there is no such directory", folder)


def temporary_of(target: Path) -> Path:
    """A new name beside a file that is to be written, under which it is written first."""
    return target.with_name(f".{target.name[:NAME_LENGTH]}.{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def atomic_output(
    path: AnyPath,
    nbytes: int = 0,
    *,
    overwrite: bool,
    inputs: Iterable[AnyPath] = (),
    like: AnyPath | None = None,
) -> Iterator[BinaryIO]:
    """Binary file that appears under `path` only if the block ends without an exception. All files
    that wcodec writes go by here.

    Room for `nbytes` bytes is taken on the disk at once, where the file system can: writing is
    faster then. What is not used is given back.

    Parameters
    ----------
    overwrite, inputs
        As of `check_output`, which raises as described there. A file that comes to be while this
        one is written is not replaced either.
    like
        A file of which this one gets the permissions; that of a file which is replaced by default.
    """
    check_output(path, overwrite, inputs)
    target = Path(path)
    like = target if target.exists() else like
    temporary = temporary_of(target)
    _unfinished.add(temporary)
    try:
        with io.BufferedWriter(_Named(temporary, target), _BUFFERED) as f:
            with named(target):
                if like is not None:
                    os.fchmod(f.fileno(), stat.S_IMODE(os.stat(like).st_mode) & 0o777)
                reserve(f, nbytes)
            yield f
            f.flush()
            with named(target):
                if os.fstat(f.fileno()).st_size > f.tell():
                    f.truncate()
        with named(target):
            os.replace(temporary, target) if overwrite else _rename_to_new(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        _unfinished.discard(temporary)


def _rename_to_new(temporary: Path, target: Path) -> None:
    """Rename a file, but not onto another one."""
    try:
        os.link(temporary, target)  # renaming would replace what came to be there in the meantime
    except FileExistsError:
        check_output(target)
        raise
    except OSError as e:
        if e.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        check_output(target)  # a file system without hard links
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
