"""Where the files of a chain are: a directory, or a URL of ``fsspec``."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast

from wcodec.errors import named
from wcodec.files.atomic import AnyPath, atomic_output, sync_folder

T = TypeVar("T")


class Store(Protocol):
    """Files by their names. All methods raise `OSError`, which names the file;
    `FileNotFoundError` where it is not there.
    """

    def path(self, name: str) -> str:
        """What people call a file."""

    def read(self, name: str, limit: int) -> bytes:
        """All bytes of a file; of one of more than `limit` bytes, one more than that."""

    def open(self, name: str) -> AbstractContextManager[AnyPath | BinaryIO]:
        """A file, for `wcodec.open`."""

    def write(self, name: str, make: Callable[[Path], T]) -> T:
        """Write a new file: whole and durable when this returns.

        Parameters
        ----------
        make
            Writes it to a path. What it returns is returned.
        """

    def replace(self, name: str, data: bytes) -> None:
        """Write a file, in place of one that may be there: readers get all of it, or all of the
        old one.
        """

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def ages(self, names: re.Pattern[str]) -> dict[str, float]:
        """Files of some names, and the seconds since they were written."""


def store_of(url: AnyPath, options: dict[str, Any] | None) -> Store:
    """The store of a path or URL.

    Parameters
    ----------
    options
        For ``fsspec``.

    Raises
    ------
    ImportError, ValueError
        ``fsspec`` is not there, or what it needs for such a URL; or it does not know it.
    """
    text = os.fspath(url)
    if "://" in text and not text.startswith("file://"):
        return Remote(text, options or {})
    return Folder(text.removeprefix("file://"))


class Folder(Store):
    """A directory of a file system. It is made when something is written, not its parents."""

    def __init__(self, path: str) -> None:
        self._path = path

    def path(self, name: str) -> str:
        """As `Store.path`."""
        return os.path.join(self._path, name)

    def read(self, name: str, limit: int) -> bytes:
        """As `Store.read`."""
        path = self.path(name)
        with named(path), open(path, "rb") as f:
            return f.read(limit + 1)

    def open(self, name: str) -> AbstractContextManager[AnyPath]:
        """As `Store.open`."""
        return nullcontext(self.path(name))

    def write(self, name: str, make: Callable[[Path], T]) -> T:
        """As `Store.write`: `make` gives it its name when it is whole and on the disk."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._path)
            sync_folder(os.path.dirname(os.path.abspath(self._path)))
        return make(Path(self.path(name)))

    def replace(self, name: str, data: bytes) -> None:
        """As `Store.replace`."""
        with atomic_output(self.path(name), overwrite=True) as f:
            f.write(data)

    def remove(self, name: str) -> None:
        """As `Store.remove`."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(name))

    def ages(self, names: re.Pattern[str]) -> dict[str, float]:
        """As `Store.ages`."""
        found, now = dict[str, float](), time.time()
        with os.scandir(self._path) as entries:
            for entry in filter(lambda entry: names.fullmatch(entry.name), entries):
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    found[entry.name] = now - entry.stat(follow_symlinks=False).st_mtime
        return found


class _Stream:
    """What is read of a file object of ``fsspec``, with errors as all others have them."""

    def __init__(self, file: BinaryIO, named: Callable[[], AbstractContextManager[None]]) -> None:
        self._file, self._named = file, named

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def read(self, nbytes: int) -> bytes:
        with self._named():
            return self._file.read(nbytes)


class Remote(Store):
    """A directory of a file system of ``fsspec``, such as a prefix of an object store. An object is
    written by one put, and is there when it is whole.
    """

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise ImportError("a URL needs fsspec: pip install 'wcodec[remote]'") from None
        self._url = url.rstrip("/")
        self._fs, root = url_to_fs(url, **options)
        self._root = root.rstrip("/")

    def path(self, name: str) -> str:
        """As `Store.path`."""
        return f"{self._url}/{name}"

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Errors of whatever library serves the URL name the file."""
        try:
            yield
        except FileNotFoundError as e:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path(name)) from e
        except Exception as e:
            raise OSError(errno.EIO, f"{type(e).__name__}: {e}", self.path(name)) from e

    def read(self, name: str, limit: int) -> bytes:
        """As `Store.read`: one request, of what is there now."""
        with self._named(name):
            self._fs.invalidate_cache()
            return bytes(self._fs.cat_file(self._key(name), start=0, end=limit + 1))

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """As `Store.open`."""
        with self._named(name):
            self._fs.invalidate_cache()  # a listing from before the file was there
            file: BinaryIO = self._fs.open(self._key(name), "rb")
        with file:
            yield cast(BinaryIO, _Stream(file, lambda: self._named(name)))

    def write(self, name: str, make: Callable[[Path], T]) -> T:
        """As `Store.write`."""
        with tempfile.TemporaryDirectory(prefix="wcodec-chain-") as folder:
            path = Path(folder, name)
            made = make(path)
            with self._named(name):
                self._fs.put_file(str(path), self._key(name))
        return made

    def replace(self, name: str, data: bytes) -> None:
        """As `Store.replace`."""
        with self._named(name):
            self._fs.pipe_file(self._key(name), data)

    def remove(self, name: str) -> None:
        """As `Store.remove`."""
        with contextlib.suppress(FileNotFoundError), self._named(name):
            self._fs.rm_file(self._key(name))

    def ages(self, names: re.Pattern[str]) -> dict[str, float]:
        """As `Store.ages`."""
        found, now = dict[str, float](), time.time()
        with self._named(""):
            self._fs.invalidate_cache()
            for key in self._fs.ls(self._root, detail=False):
                name = key.rpartition("/")[2]
                if names.fullmatch(name):
                    found[name] = now - self._fs.modified(key).timestamp()
        return found
