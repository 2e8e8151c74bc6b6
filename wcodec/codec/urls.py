"""Files by their URLs, such as ``s3://bucket/model.wcodec``: those that ``fsspec`` opens."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from wcodec.errors import CodecError, MissingPackage

#: how URLs begin; a ``::`` chains two, such as ``zip://model.wcodec::s3://bucket/models.zip``
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
#: what ``fsspec`` knows of objects that changes when they do, the surest first
_TAGS: Final = (
    "ETag", "etag", "generation", "md5Hash", "content_md5", "sha256", "oid", "blob_id",
    "LastModified", "last_modified", "mtime", "modified", "updated", "created", "CRC",
)  # fmt: skip
_FILE: Final = re.compile(r"(?i)(file|local)://")


class Found(NamedTuple):
    """What is under a URL.

    Attributes
    ----------
    tag
        Changes when the object does.
    """

    is_directory: bool
    nbytes: int
    tag: str


class Url(str):
    """A file or directory of a file system of ``fsspec``, to be given where paths go.

    Parameters
    ----------
    url
        Such as ``s3://bucket/model.wcodec``.
    options
        For ``fsspec``, such as ``anon=True`` or ``endpoint_url=...`` of ``s3``. What all URLs of a
        protocol have in common stands in the configuration of ``fsspec``, or in environment
        variables of the library that serves it.

    Raises
    ------
    ValueError
        It is no URL.

    Examples
    --------
    >>> wcodec.load_file(wcodec.Url("s3://bucket/model.wcodec", anon=True))
    """

    def __new__(cls, url: str, **options: Any) -> Url:
        """A URL; one that is one already keeps its options."""
        if not _SCHEME.match(url):
            raise ValueError(f"{url!r} is no URL: it begins as a path does")
        self = super().__new__(cls, url)
        self.options = {**getattr(url, "options", {}), **options}
        return self

    options: dict[str, Any]
    known: Found | None = None  #: what a listing has said of it

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (str(self), self.options)

    def _parts(self) -> tuple[str, str, str]:
        """What comes before the path of the first URL of a chain, the path, and the rest."""
        first, sign, rest = self.partition("::")
        head, sep, path = first.partition("://")
        if head.lower() in ("http", "https") and "?" in path:
            path, mark, query = path.partition("?")
            rest, sign = mark + query + sign + rest, ""
        return head + sep, path, sign + rest

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._parts()[1].rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> Url:
        """The directory that it is in."""
        head, path, rest = self._parts()
        rest = rest if rest.startswith("::") else ""  # a query is one file's
        return _made(head + path.rstrip("/").rpartition("/")[0] + rest, self.options)

    def __truediv__(self, name: str | os.PathLike[str]) -> Url:
        head, path, rest = self._parts()
        inside = os.fspath(name)
        path = path.rstrip("/") + "/" if path else ""
        return _made(head + (path + inside if inside else path.rstrip("/")) + rest, self.options)

    def with_name(self, name: str) -> Url:
        """Another file of the same directory."""
        return self.parent / name

    def samefile(self, other: object) -> bool:
        """Whether another path or URL is this one."""
        return str(self) == str(other)

    # ---- the file system
    def filesystem(self) -> tuple[Any, str]:
        """The file system of ``fsspec``, and what the file is called there.

        Raises
        ------
        MissingPackage
        OSError
            There is none for such a URL.
        """
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise MissingPackage(
                f"{self}: a URL needs fsspec: pip install 'wcodec[remote]'"
            ) from None
        try:
            fs, path = url_to_fs(str(self), **self.options)
        except ImportError as e:
            what = str(e).rstrip(".")
            raise MissingPackage(
                f"{self}: {what}: pip install 'wcodec[remote]' brings s3 and http"
            ) from e
        except ValueError as e:
            raise OSError(errno.EPROTONOSUPPORT, str(e), str(self)) from e
        return fs, path

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors of whatever library serves the URL become `OSError` that names it."""
        try:
            yield
        except (CodecError, MissingPackage, MemoryError):
            raise
        except Exception as e:
            raise self.error(e) from e

    def error(self, e: Exception) -> OSError:
        """An error of the library that serves the URL, as one of the system's."""
        if isinstance(e, OSError) and e.filename == str(self):
            return e
        for kind, number in _KINDS:
            if isinstance(e, kind):
                return kind(number, os.strerror(number), str(self))
        text = " ".join(str(e).split()) or "no more is known"
        return OSError(getattr(e, "errno", None) or errno.EIO, f"{_name(e)}: {text}", str(self))

    def look_up(self) -> Found | None:
        """What is there now, or ``None``. Raises `OSError`: that cannot be told."""
        fs, path = self.filesystem()
        with self.named():
            fs.invalidate_cache()
            try:
                info = fs.info(path)
            except FileNotFoundError:
                return None
            return _found(info)

    def exists(self) -> bool:
        """Whether a file or directory is there."""
        return self.look_up() is not None

    def is_file(self) -> bool:
        """Whether a file is there."""
        found = self.look_up()
        return found is not None and not found.is_directory

    def is_dir(self) -> bool:
        """Whether a directory is there: in an object store, anything whose name goes on."""
        found = self.look_up()
        return found is not None and found.is_directory

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file."""
        fs, path = self.filesystem()
        with self.named():
            try:
                fs.rm_file(path)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def files(self) -> dict[str, Url]:
        """All files in it and below, by names with ``/``, in order.

        Raises
        ------
        FileNotFoundError
            Nothing is there.
        OSError
        """
        fs, path = self.filesystem()
        with self.named():
            fs.invalidate_cache()
            if not fs.isdir(path):
                raise FileNotFoundError
            root = path.rstrip("/") + "/" if path.strip("/") else path
            inside = dict[str, Url]()
            for place, info in sorted(fs.find(path, detail=True).items()):
                name = place.removeprefix(root).lstrip("/")
                inside[name] = self / name
                inside[name].known = _found(info)
            return inside


#: What errors of libraries are, of those that a system has too.
_KINDS: Final[list[tuple[type[OSError], int]]] = [
    (FileNotFoundError, errno.ENOENT),
    (FileExistsError, errno.EEXIST),
    (PermissionError, errno.EACCES),
    (IsADirectoryError, errno.EISDIR),
    (NotADirectoryError, errno.ENOTDIR),
]


def _name(e: Exception) -> str:
    return type(e).__name__


def _found(info: dict[str, Any]) -> Found:
    return Found(info["type"] == "directory", int(info.get("size") or 0), tag_of(info))


def _made(url: str, options: dict[str, Any]) -> Url:
    return Url(url, **options)


def tag_of(info: dict[str, Any]) -> str:
    """What changes when an object does, out of what ``fsspec`` says of it."""
    for key in _TAGS:
        found = info.get(key)
        if found:  # a listing may give a time as a number, and a look at one object as a date
            stamp = getattr(found, "timestamp", None)
            return str(found if stamp is None else stamp())
    return ""


#: what has a name, a parent, and tells what is there
Place: TypeAlias = Path | Url


def place_of(path: str | os.PathLike[str]) -> Place:
    """A path or URL that is given as a text."""
    if isinstance(path, str) and _SCHEME.match(path):
        if not _FILE.match(path) or "::" in path:
            return path if isinstance(path, Url) else Url(path)
        return Path(_FILE.sub("", path, count=1))
    return Path(path)


def resolved(path: str | os.PathLike[str]) -> str:
    """A path without links, or a URL."""
    place = place_of(path)
    return str(place) if isinstance(place, Url) else os.path.realpath(place)


def absolute(path: str | os.PathLike[str]) -> str:
    """A path or URL for who has another working directory."""
    place = place_of(path)
    return place if isinstance(place, Url) else os.path.abspath(place)


def size_of(path: str | os.PathLike[str]) -> int:
    """Bytes of a file.

    Raises
    ------
    OSError
        It is not there.
    """
    place = place_of(path)
    if not isinstance(place, Url):
        return place.stat().st_size
    found = place.known or place.look_up()
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place))
    return found.nbytes


def url_of(path: object) -> Url | None:
    """A URL that is given in place of a path, or ``None``."""
    if not isinstance(path, str) or not _SCHEME.match(path):
        return None
    place = place_of(path)
    return place if isinstance(place, Url) else None
