"""Checkpoints that others are coded as differences from, opened: safetensors and ``.wcodec`` files.
Spec: R12.5, R12.6.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from wcodec.backends import Backend
from wcodec.codec.decoder import Decoder
from wcodec.codec.opening import OpenedFile
from wcodec.codec.parts import rectangle
from wcodec.codec.pipelining import Progress, ignore_progress
from wcodec.codec.sources import FileWords, reading_on
from wcodec.codec.urls import Place, place_of
from wcodec.errors import DecodeError, EncodeError, within
from wcodec.files.safetensors_header import SourceTensor, read_safetensors_header
from wcodec.reference.container import Base, ByteSource
from wcodec.reference.differences import NOTHING_KNOWN, BaseCheckpoint, BaseTensor, content_hash
from wcodec.reference.planes import DType, Words
from wcodec.reference.segments import SegmentPlan
from wcodec.reference.tensors import TensorRecord
from wcodec.reference.tiles import Geometry

MAX_BASES: Final = 8  #: checkpoints of which each is a difference from the next
WHOLE_NBYTES: Final = 1 << 28  #: a tensor up to that size is decoded as a whole, as another matrix
BLOCK_NBYTES: Final = 1 << 23  #: of a tensor that is coded as another matrix, decoded at once


class OpenBase(BaseCheckpoint, Protocol):
    """A base, to be closed."""

    def paths(self) -> Iterator[Place]:
        """Its file, and those that this one needs. Raises as `wcodec.files.file.File.base`."""

    def close(self) -> None:
        """Let go of the file."""


class SafetensorsBase(OpenBase):
    """A safetensors file.

    Parameters
    ----------
    source
        The file.
    progress
        Told of the bytes that are read for the content hash.

    Raises
    ------
    EncodeError
        ``bad_source``: not a well-formed safetensors file.
    """

    def __init__(
        self,
        path: Place,
        source: OpenedFile,
        backend: Backend,
        progress: Progress = ignore_progress,
    ) -> None:
        self.path, self._source = path, source
        self._backend, self._progress = backend, progress
        self._tensors = {t.name: t for t in read_safetensors_header(source).tensors}

    @property
    def name(self) -> str:
        """As `BaseCheckpoint.name`."""
        return self.path.name

    def base_tensor(
        self, name: str, dtype: DType, shape: tuple[int, ...], geometry: Geometry
    ) -> BaseTensor | None:
        """As `BaseCheckpoint.base_tensor`."""
        t = self._find(name, dtype, shape)
        if t is None:
            return None
        matrix = geometry.rows, geometry.cols
        words = FileWords(self._source, t.start, np.dtype(dtype.word_type), matrix)
        return _InFile(self.name, words)

    def _find(self, name: str, dtype: DType, shape: tuple[int, ...]) -> SourceTensor | None:
        t = self._tensors.get(name)
        return None if t is None or (t.dtype, t.shape) != (dtype, shape) else t

    def flat_words(self, name: str, dtype: DType, shape: tuple[int, ...]) -> Words | None:
        """All words of a tensor."""
        t = self._find(name, dtype, shape)
        with within(base=self.name):
            return None if t is None else self._source.read(t.start, t.nbytes).view(dtype.word_type)

    def content_hash(self, known: Mapping[str, int] = NOTHING_KNOWN) -> bytes:
        """As `BaseCheckpoint.content_hash`; all other tensors are read for it."""

        def crc32(t: SourceTensor) -> int:
            if t.name in known:
                self._progress(t.nbytes)
                return known[t.name]
            with within(base=self.name):
                return crc32_of(self._source, t, self._backend, self._progress)

        all_of_it = reading_on(self._source, 0, self._source.nbytes)
        with nullcontext() if known else all_of_it:
            return content_hash(
                (t.name, t.dtype, t.shape, crc32(t)) for t in self._tensors.values()
            )

    def paths(self) -> Iterator[Place]:
        """As `OpenBase.paths`."""
        yield self.path

    def close(self) -> None:
        """As `OpenBase.close`."""
        self._source.close()
        self._tensors = {}


def crc32_of(
    source: OpenedFile, t: SourceTensor, backend: Backend, progress: Progress = ignore_progress
) -> int:
    """CRC-32 of a tensor of a safetensors file, read a piece at a time."""
    crc = 0
    for piece in source.pieces(t.start, t.stop):
        crc = backend.crc32(piece, crc)
        progress(piece.size)
    return crc


def safetensors_base(
    path: Place, source: OpenedFile, backend: Backend, progress: Progress
) -> SafetensorsBase:
    """A base that is no ``.wcodec`` file.

    Raises
    ------
    DecodeError
        ``bad_base``: it is no safetensors file either.
    """
    try:
        return SafetensorsBase(path, source, backend, progress)
    except EncodeError as e:
        raise DecodeError(
            "bad_base", f"it is no .wcodec file, and {e.message}", tensor=e.tensor
        ) from None


class _InFile(BaseTensor):
    """Words of a safetensors file."""

    def __init__(self, name: str, matrix: FileWords) -> None:
        self._name, self._matrix = name, matrix

    def words(self, rows: slice, cols: slice, room: Words) -> Words:
        """As `BaseTensor.words`."""
        with within(base=self._name):
            self._matrix.read_into((rows, cols), room)
        return room


class InMemory(BaseTensor):
    """A matrix of words in memory."""

    def __init__(self, matrix: Words) -> None:
        self._matrix = matrix

    def words(self, rows: slice, cols: slice, room: Words) -> Words:
        """As `BaseTensor.words`."""
        part = self._matrix[rows, cols]
        if part.flags.c_contiguous and part.flags.aligned:
            return part
        np.copyto(room, part)
        return room


class CodedBaseTensor(BaseTensor):
    """A tensor of a ``.wcodec`` file, as a matrix of any number of columns;
    decoded where it is asked for.
    """

    def __init__(
        self,
        name: str,
        decoder: Decoder,
        source: ByteSource,
        t: TensorRecord,
        plan: SegmentPlan,
        base: BaseTensor | None,
        n_cols: int,
        checked: Callable[[], AbstractContextManager[None]],
        kept: dict[str, Words],
    ) -> None:
        self._checked, self._kept = checked, kept
        self._name, self._decoder, self._source, self._t = name, decoder, source, t
        self._plan, self._base, self._n_cols = plan, base, n_cols

    def words(self, rows: slice, cols: slice, room: Words) -> Words:
        """As `BaseTensor.words`."""
        with within(base=self._name), self._checked():
            if self._t.geometry.cols == self._n_cols:
                self._decode(rows, cols, room)
            else:
                self._reshape(rows, cols, room)
        return room

    def _decode(self, rows: slice, cols: slice, out: Words) -> None:
        """A rectangle of the tensor's own matrix."""
        g = self._t.geometry
        down = np.arange(
            rows.start // g.segment_rows, -(-rows.stop // g.segment_rows), dtype=np.int64
        )
        across = np.arange(
            cols.start // g.segment_cols, -(-cols.stop // g.segment_cols), dtype=np.int64
        )
        piece = rectangle(g, down, across)
        whole = (piece.rows, piece.cols) == (rows, cols)
        room = out if whole else np.empty(piece.shape, out.dtype)
        self._decoder.grid(self._source, self._t, self._plan, down, across, room, self._base)
        if not whole:
            r, c = rows.start - piece.rows.start, cols.start - piece.cols.start
            np.copyto(out, room[r : r + out.shape[0], c : c + out.shape[1]])

    def _reshape(self, rows: slice, cols: slice, out: Words) -> None:
        """A rectangle of a matrix of other columns, some rows at a time."""
        if self._t.nbytes <= WHOLE_NBYTES and self._decoder.max_memory is None:
            np.copyto(out, self._whole().reshape(-1, self._n_cols)[rows, cols])
            return
        n, step = self._n_cols, max(1, BLOCK_NBYTES // (self._n_cols * out.itemsize))
        for r in range(rows.start, rows.stop, step):
            last = min(r + step, rows.stop)
            to = out[r - rows.start : last - rows.start]
            if last - r == 1:
                to[0] = self._flat(r * n + cols.start, r * n + cols.stop, out.dtype)
            else:
                to[...] = self._flat(r * n, last * n, out.dtype).reshape(-1, n)[:, cols]

    def _whole(self) -> Words:
        """All words, kept until another tensor is asked for: many rectangles of one tensor are, and
        in other columns each of them has words of many segments.
        """
        words = self._kept.get(self._t.name)
        if words is None:
            g = self._t.geometry
            words = np.empty((g.rows, g.cols), self._t.dtype.word_type)
            self._decode(slice(0, g.rows), slice(0, g.cols), words)
            self._kept.clear()
            self._kept[self._t.name] = words
        return words

    def _flat(self, first: int, end: int, dtype: np.dtype[Any]) -> Words:
        """Words in raster order: those of a part of a row, or of all rows that have some."""
        width = self._t.geometry.cols
        (top, left), last = divmod(first, width), (end - 1) // width
        cols = slice(left, left + end - first) if top == last else slice(0, width)
        room = np.empty((last - top + 1, cols.stop - cols.start), dtype)
        self._decode(slice(top, last + 1), cols, room)
        start = 0 if top == last else left
        return room.reshape(-1)[start : start + end - first]


def base_path(
    path: Place | None, wanted: Base | None, given: str | os.PathLike[str] | None, depth: int
) -> Place:
    """Where the base of a file is: as given, or called as it was, beside the file.

    Parameters
    ----------
    path
        The file that needs it, if it has one.
    wanted
        What the file says of its base. The name is a stranger's: no path.
    depth
        How many files have that one as their base, or as its base, and so on.

    Raises
    ------
    DecodeError
        ``bad_base``: there is none.
    """
    if wanted is None:
        raise DecodeError("bad_base", "the file has no base")
    if depth >= MAX_BASES:
        raise DecodeError(
            "bad_base", f"more than {MAX_BASES} checkpoints, each a difference from the next"
        )
    if given is not None:
        return place_of(given)
    name = wanted.name
    if path is not None and Path(name).name == name and not set("/\\\0") & set(name):
        with contextlib.suppress(OSError):  # such as of a name that is too long
            if (found := path.parent / name).is_file() and not found.samefile(str(path)):
                return found
    if not name:
        raise DecodeError(
            "bad_base",
            "the file holds differences from tensors that had no file: name the base, a file of "
            "them (--base), or change the tensors themselves (wcodec.apply)",
        )
    to_do = (
        "put it there, or name a restored safetensors file as the base"
        if depth
        else "name the base (--base)"
    )
    raise DecodeError(
        "bad_base", f"the file holds differences from {name!r}, which is not beside it: {to_do}"
    )


def check_is_base(base: OpenBase, wanted: Base | None, path: object) -> None:
    """Whether a checkpoint is the one that a file holds differences from.

    Raises
    ------
    DecodeError
        ``bad_base``
    """
    found = base.content_hash()
    if wanted is None or found != wanted.sha256:
        name, want = ("", b"") if wanted is None else (wanted.name, wanted.sha256)
        raise DecodeError(
            "bad_base",
            f"{path} has the content hash {found.hex()[:16]}; the file holds differences from "
            f"{name!r} with {want.hex()[:16]}: name that one (--base)",
        )


def paths_of(base: OpenBase | None) -> list[Place]:
    """The files of a base, which no output may replace."""
    return [] if base is None else list(base.paths())
