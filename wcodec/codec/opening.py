"""What is read: a file, a URL, a file object, or bytes in memory."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

from wcodec.codec.remote import RemoteSource, default_memory
from wcodec.codec.sources import FileSource, Path, source_of_object
from wcodec.codec.urls import Url, place_of
from wcodec.errors import CodecError, DecodeError
from wcodec.reference.container import ByteSource

#: a file of the system or at a URL: besides `ByteSource`, what encoders ask of one
OpenedFile: TypeAlias = FileSource | RemoteSource


def open_source(
    path: Path,
    error: type[CodecError] = DecodeError,
    is_checked: bool = False,
    memory: int | None = None,
) -> OpenedFile:
    """A file to read from, by its path or URL.

    Parameters
    ----------
    error, is_checked
        As of `FileSource`.
    memory
        As of `RemoteSource`.

    Raises
    ------
    OSError
    MissingPackage
        What reads such a URL is not installed.
    """
    place = place_of(path)
    if isinstance(place, Url):
        return RemoteSource(place, error, memory)
    return FileSource(place if "://" in os.fspath(path) else path, error, is_checked)


def source_of(file: Any, max_memory: int | None = None) -> ByteSource:
    """What to read a path, a URL, a binary file object or a buffer by. Raises as `open_source`.

    Parameters
    ----------
    max_memory
        What decoding may take: a quarter of it at most is held of a remote file.
    """
    if not isinstance(file, str | os.PathLike):
        return source_of_object(file)
    memory = None if max_memory is None else min(default_memory(), max_memory // 4)
    return open_source(file, memory=memory)
