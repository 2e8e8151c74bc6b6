"""Safetensors files as they are read to be encoded: at any place, or front to back from a pipe."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from wcodec.codec.sources import Descriptor, FileSource, FileWords
from wcodec.errors import EncodeError, named
from wcodec.files.atomic import AnyPath, reserve
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

#: reads the words of a tensor, each time it is called
Read = Callable[[], Words | FileWords]


class PlainFile:
    """A safetensors file that can be read at any place.

    Raises
    ------
    EncodeError
        ``bad_source``
    OSError
    """

    def __init__(self, path: AnyPath) -> None:
        self.source = FileSource(path, EncodeError, is_checked=True)
        self.header = read_safetensors_header(self.source)

    def tensors(self, folder: Path) -> Iterator[tuple[SourceTensor, Words | FileWords, Read]]:
        """Tensors in the file's order, their words, and how to read these again."""
        for t in self.header.tensors:
            read = partial(self.source.words, t.start, t.nbytes, np.dtype(t.dtype.word_type))
            yield t, read(), read


class PipedFile:
    """A safetensors file out of a pipe. Raises as `PlainFile`."""

    def __init__(self, path: AnyPath) -> None:
        self._name = os.fspath(path)
        self._pipe = Descriptor(_open_pipe(path), self._name)
        head = self._read(8, short=True)
        nbytes = header_nbytes(head, 1 << 63)
        self.header: SafetensorsHeader = parse_safetensors_header(head + self._read(nbytes - 8))

    def tensors(self, folder: Path) -> Iterator[tuple[SourceTensor, Words | FileWords, None]]:
        """Tensors in the file's order and their words, which can be read until the next one.

        Parameters
        ----------
        folder
            Where a large tensor is kept meanwhile.
        """
        for t in self.header.tensors:
            spool = spooled(self._pieces(t), t.nbytes, t.dtype.word_type, folder, IN_MEMORY)
            with spool as words:
                yield t, words, None
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
    mode = os.stat(path).st_mode
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
