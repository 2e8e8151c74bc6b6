"""Safetensors files as they are read to be encoded: at any place, or front to back from a pipe."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from wcodec.codec.opening import open_source
from wcodec.codec.pipelining import map_ahead
from wcodec.codec.remote import AT_ONCE, RemoteSource
from wcodec.codec.sources import Descriptor, FileSource, FileWords, reading_on
from wcodec.codec.urls import place_of, url_of
from wcodec.errors import EncodeError, named
from wcodec.files.atomic import AnyPath, reserve
from wcodec.files.duplicates import LEAST_NBYTES, pieces_of
from wcodec.files.safetensors_header import (
    SafetensorsHeader,
    SourceTensor,
    header_nbytes,
    parse_safetensors_header,
    read_safetensors_header,
)
from wcodec.reference.planes import Bytes, Words

IN_MEMORY: Final = 1 << 26  #: bytes from which on words that cannot be read again go to a file
_PIECE_NBYTES: Final = 1 << 23  #: of a pipe, read at once

_LOOKS_AHEAD: Final = 4  #: tensors of a remote file whose places are looked at before it is needed


class Opened(NamedTuple):
    """A tensor that is read to be encoded.

    Attributes
    ----------
    words
        Flat.
    again
        Reads them once more; ``None`` where that cannot be.
    pieces
        As `pieces_of` them, if that is known.
    """

    t: SourceTensor
    words: Words | FileWords
    again: Callable[[], Words | FileWords] | None = None
    pieces: bytes | None = None


class PlainFile:
    """A safetensors file that can be read at any place.

    Raises
    ------
    EncodeError
        ``bad_source``
    OSError
    """

    def __init__(self, path: AnyPath) -> None:
        self.source = open_source(path, EncodeError, is_checked=True)
        self.header = read_safetensors_header(self.source)

    def tensors(
        self, folder: Path, first: int = 0, last: int | None = None
    ) -> Generator[Opened, None, None]:
        """Tensors in the file's order, all or those with some numbers."""
        some, is_remote = self.header.tensors[first:last], isinstance(self.source, RemoteSource)
        start, stop = (some[0].start, some[-1].stop) if some else (0, 0)
        looks = map_ahead(self._look, some, _LOOKS_AHEAD * is_remote, _LOOKS_AHEAD)
        with closing(looks), reading_on(self.source, start, stop):
            for t, pieces in zip(some, looks, strict=True):
                read = partial(self._words, t)
                yield Opened(t, read(), read, pieces)
        self.source.check()

    def looked_at(self) -> Iterator[Opened]:
        """Tensors in the file's order, of which no more is read than their pieces."""
        some, is_remote = self.header.tensors, isinstance(self.source, RemoteSource)

        def look(t: SourceTensor) -> bytes | None:
            return pieces_of(self._lazy(t)) if t.nbytes >= LEAST_NBYTES else None

        for t, pieces in zip(some, map_ahead(look, some, AT_ONCE * is_remote), strict=True):
            yield Opened(t, self._lazy(t), partial(self._lazy, t), pieces)

    def _lazy(self, t: SourceTensor) -> FileWords:
        dtype = np.dtype(t.dtype.word_type)
        return FileWords(self.source, t.start, dtype, (t.nbytes // dtype.itemsize,))

    def _words(self, t: SourceTensor) -> Words | FileWords:
        return self.source.words(t.start, t.nbytes, np.dtype(t.dtype.word_type))

    def _look(self, t: SourceTensor) -> bytes | None:
        """The pieces of a large tensor of a remote file: where it is read, they come later."""
        if not isinstance(self.source, RemoteSource) or t.nbytes <= self.source.block:
            return None
        return pieces_of(self._words(t))


class PipedFile:
    """A safetensors file out of a pipe. Raises as `PlainFile`."""

    def __init__(self, path: AnyPath) -> None:
        self._name = os.fspath(path)
        self._pipe = Descriptor(_open_pipe(path), self._name)
        head = self._read(8, short=True)
        nbytes = header_nbytes(head, 1 << 63)
        self.header: SafetensorsHeader = parse_safetensors_header(head + self._read(nbytes - 8))

    def tensors(self, folder: Path) -> Generator[Opened, None, None]:
        """Tensors in the file's order, which can be read until the next one.

        Parameters
        ----------
        folder
            Where a large tensor is kept meanwhile.
        """
        for t in self.header.tensors:
            spool = spooled(self._pieces(t), t.nbytes, t.dtype.word_type, folder, IN_MEMORY)
            with spool as words:
                yield Opened(t, words)
        if self._read(1, short=True):
            raise EncodeError("bad_source", "more bytes follow the last tensor")

    def _pieces(self, t: SourceTensor) -> Iterator[Bytes]:
        for at in range(0, t.nbytes, _PIECE_NBYTES):
            piece = self._read(min(_PIECE_NBYTES, t.nbytes - at))
            yield np.frombuffer(piece, np.uint8)

    def _read(self, nbytes: int, short: bool = False) -> bytes:
        """So many bytes; `short` for fewer, if it ends."""
        pieces, left = list[bytes](), nbytes
        with named(self._name):
            while left and (piece := os.read(self._pipe.number, left)):
                pieces.append(piece)
                left -= len(piece)
        if left and not short:
            raise EncodeError("truncated", f"the pipe ends {left} bytes early")
        return b"".join(pieces)


def open_plain(path: AnyPath) -> PlainFile | PipedFile:
    """A safetensors file. Raises as `PlainFile`."""
    return PipedFile(path) if is_pipe(path) else PlainFile(path)


def is_pipe(path: AnyPath) -> bool:
    """Whether a path is something that can be read from front to back alone.

    Raises
    ------
    OSError
    """
    if url_of(path) is not None:
        return False
    mode = os.stat(place_of(path)).st_mode
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _open_pipe(path: AnyPath) -> int:
    own = re.fullmatch(r"/dev/stdin|/(?:dev|proc/self)/fd/([0-9]+)", os.fspath(path))
    if own is not None:  # a socket cannot be opened by such a name
        return os.dup(int(own[1] or 0))
    return os.open(path, os.O_RDONLY)


@contextmanager
def spooled(
    pieces: Iterable[Bytes], nbytes: int, dtype: Any, folder: Path, in_memory: int
) -> Iterator[Words | FileWords]:
    """Words that come once, flat: in memory, or of many in a file that is gone afterwards.

    Parameters
    ----------
    pieces
        Their bytes, `nbytes` in all; a piece may change when the next one is asked for.
    dtype
        Of the words.
    folder
        Where the file goes.
    in_memory
        Bytes from which on there is a file.

    Raises
    ------
    OSError
        There is no room for it.
    """
    if nbytes < in_memory:
        room, at = np.empty(nbytes, np.uint8), 0
        for piece in pieces:
            room[at : at + piece.size] = piece
            at += piece.size
        yield room.view(dtype)
        return
    with named(folder):
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    with file:
        with named(folder):
            reserve(file, nbytes)
        for piece in pieces:
            with named(folder):
                file.write(piece.data)
        with named(folder):
            file.flush()
        source = FileSource(file)
        yield source.words(0, nbytes, np.dtype(dtype))
        source.close()
