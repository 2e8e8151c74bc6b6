"""Files as bytes: inputs that are mapped, and outputs that appear when they are whole or not at all.

An output is written under a temporary name beside the target, and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Final

from wcodec.codec import CHUNK_BUFFERS
from wcodec.errors import DecodeError

AnyPath = str | os.PathLike[str]

_BUFFERED: Final = 1 << 20
_RESERVED: Final = 1 << 24  #: files of fewer bytes take room as they grow
_unfinished: Final[set[Path]] = set()  #: temporary files of outputs


@contextlib.contextmanager
def _named(temporary: Path, target: Path) -> Iterator[None]:
    """Errors about the temporary file name the target: that is the name that the caller knows."""
    try:
        yield
    except OSError as e:
        if e.filename == str(temporary):
            e.filename = str(target)
        raise


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
        raise DecodeError("resource_limit", f"the tensors have {nbytes} bytes; the disk has room for {room}")


@contextlib.contextmanager
def atomic_output(path: AnyPath, nbytes: int = 0) -> Iterator[BinaryIO]:
    """Binary file that appears under `path` only if the block ends without an exception.

    Room for `nbytes` bytes is taken on the disk at once, where the file system can: writing is faster then. What is not used is
    given back.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")
    _unfinished.add(temporary)
    try:
        with _named(temporary, target), open(temporary, "xb", buffering=_BUFFERED) as f:
            reserve(f, nbytes)
            yield f
            f.flush()
            if os.fstat(f.fileno()).st_size > f.tell():
                f.truncate()
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    finally:
        _unfinished.discard(temporary)


def remove_unfinished() -> None:
    """Remove what outputs of this process have been written so far, when it is about to end at once."""
    for temporary in tuple(_unfinished):
        with contextlib.suppress(OSError):
            temporary.unlink()


class WriteBehind:
    """Writes to a file in a thread of its own, in order, while the caller makes what comes next.

    Use as a context; it ends when all is written. What is given to `write` must not change before `CHUNK_BUFFERS` more writes.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._pending = stream, deque[Future[int]]()
        self._thread = ThreadPoolExecutor(1, "wcodec-write")

    def write(self, data: Any) -> int:
        """Write later. Raises what an earlier write has raised."""
        while len(self._pending) >= CHUNK_BUFFERS - 1:
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._stream.write, data))
        return len(data)

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            while kind is None and self._pending:
                self._pending.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)


def map_file(path: AnyPath) -> Any:
    """The bytes of a file, mapped for reading; ``b""`` for an empty one, which cannot be mapped."""
    with open(path, "rb") as f:
        if os.fstat(f.fileno()).st_size == 0:
            return b""
        return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
