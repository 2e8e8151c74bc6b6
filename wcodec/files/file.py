"""`open`, as in safetensors: a ``.wcodec`` file, read as far as it is asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend, load_backend
from wcodec.codec.batches import decode_batch, in_batches
from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder
from wcodec.codec.opening import open_source, source_of
from wcodec.codec.pipelining import Progress, ignore_progress
from wcodec.codec.sources import ClosedSource, reading_on
from wcodec.codec.urls import Place, absolute, place_of
from wcodec.errors import DecodeError, within
from wcodec.files.atomic import AnyPath
from wcodec.files.bases import (
    MAX_BASES,
    CodedBaseTensor,
    OpenBase,
    base_path,
    check_is_base,
    paths_of,
    safetensors_base,
)
from wcodec.files.extract import extract
from wcodec.files.kinds import named_for_what_it_is
from wcodec.files.safetensors_header import entry_of, restored_header, stated_tensors
from wcodec.files.slices import Slice, slice_of
from wcodec.processes import Lock
from wcodec.reference.container import MAGIC, Index
from wcodec.reference.differences import NOTHING_KNOWN, BaseTensor, Difference, content_hash
from wcodec.reference.planes import Bytes, DType, Words
from wcodec.reference.tensors import TensorRecord
from wcodec.reference.tiles import Geometry

__all__ = ["MAX_BASES", "Buffer", "File", "open", "open_base", "paths_of"]

Buffer = bytes | bytearray | memoryview | NDArray[np.uint8]
#: what is wrong with a file, or with one that was written to while it was read
_OF_CONTENT: Final = {"bad_checksum", "bad_stream", "bad_patch", "unsupported_coder"}


def open(
    file: AnyPath | BinaryIO | Buffer,
    backend: Backend | None = None,
    base: AnyPath | None = None,
    *,
    max_nbytes: int | None = None,
    max_memory: int | None = None,
) -> File:
    """Open a ``.wcodec`` file for reading; only the index is read now.

    Parameters
    ----------
    file
        A path, a seekable binary file object, or the bytes of a file.
    backend
        ``None`` for the one of `wcodec.get_backend`.
    base
        The ``.wcodec`` or safetensors file that the file holds differences from, if it does;
        ``None`` for the one beside it that is called as the base was. It is opened when a tensor
        needs it.
    max_nbytes, max_memory
        As of `wcodec.Decoder`; `max_memory` is also that of the base.

    Raises
    ------
    DecodeError

    Examples
    --------
    >>> with wcodec.open("model.wcodec") as f:
    ...     rows = f.get_slice("embed.weight")[:64]
    """
    return File(file, backend, max_nbytes, base, max_memory=max_memory)


class File:
    """An open ``.wcodec`` file; see `open`.

    Parameters
    ----------
    max_nbytes, max_memory
        As of `open`.
    depth
        How many files have this one as their base, or as its base, and so on.
    """

    def __init__(
        self,
        file: AnyPath | BinaryIO | Buffer,
        backend: Backend | None = None,
        max_nbytes: int | None = None,
        base: AnyPath | None = None,
        depth: int = 0,
        max_memory: int | None = None,
    ) -> None:
        self.path = place_of(file) if isinstance(file, str | os.PathLike) else None
        self._base_path, self._lock, self._depth = base, Lock(), depth
        self._base: OpenBase | None = None
        self._kept = dict[str, Words]()  # see `CodedBaseTensor`
        self._closed = False
        self.source = source_of(file, max_memory)
        self.decoder = Decoder(backend, max_nbytes, max_memory)
        #: for who pickles it: the working directory may be another one then
        self._where = None if self.path is None else absolute(self.path)
        self._base_where = None if base is None else absolute(base)
        self._has_backend = backend is not None
        with self.guarded(), named_for_what_it_is(self.source):
            self.index: Index = self.decoder.read_index(self.source)
        #: of tensors that the format has no dtype for: what the header says that the file keeps
        self.stated = stated_tensors(self.index)
        self._by_name = {t.name: t for t in self.index.tensors}
        self._originals = dict[str, TensorRecord]()
        for t in self.index.tensors:
            self._originals[t.name] = (
                t
                if t.duplicate_of is None
                else self._originals[self.index.tensors[t.duplicate_of].name]
            )

    def __repr__(self) -> str:
        name = "" if self.path is None else f" {str(self.path)!r}"
        if self._closed:
            return f"<wcodec.File{name}, closed>"
        return (
            f"<wcodec.File{name}: {len(self.index.tensors)} tensors, {self.index.data_nbytes} "
            f"bytes in {self.index.file_nbytes}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """An open file of a path, for another process, which opens it again."""
        if self._closed or self.path is None:
            what = "a closed file" if self._closed else "an open file that has no path"
            raise TypeError(f"{what} cannot be pickled: open it in the process that needs it")
        kind, backend = type(self.decoder.backend), None
        if self._has_backend:
            backend = f"{kind.__module__}:{kind.__qualname__}", self.decoder.backend.threads
        limits = self.decoder.max_nbytes, self.decoder.max_memory
        how = self._where, backend, limits[0], self._base_where, self._depth, limits[1]
        return _opened_again, (*how, self._identity())

    def _identity(self) -> tuple[Any, ...]:
        """What tells whether a file holds the same."""
        return self.index.file_nbytes, self.content_hash(), self.index.metadata

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file and its base. Arrays that were read stay."""
        self._closed = True
        if self._base is not None:
            self._base.close()
            self._base = None
        getattr(self.source, "close", lambda: None)()
        self.source = ClosedSource()

    def keys(self) -> list[str]:
        """Names of the tensors, in the file's order."""
        return list(self._by_name)

    def metadata(self) -> dict[str, str]:
        """Texts kept with the tensors."""
        return dict(self.index.metadata)

    @property
    def name(self) -> str:
        """What the file is called; empty of a file object."""
        return "" if self.path is None else self.path.name

    @contextlib.contextmanager
    def checked(self) -> Iterator[None]:
        """Of what is wrong because the file was written to since it was opened, errors say that."""
        try:
            yield
        except DecodeError as e:
            check = getattr(self.source, "check", None)
            if e.code in _OF_CONTENT and check is not None:
                with within(self.path):
                    check()
            raise

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """As `checked`, and errors name the file."""
        with within(self.path), self.checked():
            yield

    def find(self, name: str, dtype: DType, shape: tuple[int, ...]) -> TensorRecord | None:
        """The tensor of this name, dtype and shape, or the one that it duplicates."""
        t = self._by_name.get(name)
        return None if t is None or (t.dtype, t.shape) != (dtype, shape) else self.original(t)

    def record(self, name: str) -> TensorRecord:
        """What the index says of a tensor.

        Raises
        ------
        KeyError
        """
        return self._by_name[name]

    def get_tensor(self, name: str, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Decode a tensor, checked against its CRC-32; opaque bytes come as uint8.

        Raises
        ------
        KeyError, DecodeError
        """
        t = self.original(self._by_name[name])
        with self.guarded():
            return self.decoder.tensor(self.source, t, self.index.tables, out, self.base_of(t))

    def get_slice(self, name: str) -> Slice:
        """A tensor to take parts of: ``f.get_slice(name)[r0:r1, c0:c1]``.

        Raises
        ------
        KeyError
        """
        t = self.original(self._by_name[name])
        return slice_of(t, self.__repr__, self._read_segments, self.stated.get(name))

    def _read_segments(
        self, t: TensorRecord, down: NDArray[np.int64], across: NDArray[np.int64], out: Words
    ) -> None:
        with self.guarded():
            plan, base = t.plan(self.index.tables), self.base_of(t)
            self.decoder.grid(self.source, t, plan, down, across, out, base)

    def extract(self, name: str) -> Bytes:
        """A tensor as a file of its own: uint8, the bytes that `wcodec.decode` takes. Nothing is
        decoded, but a difference is.

        Raises
        ------
        KeyError
        DecodeError
            Of a tensor that differs from a base.
        """
        t = self.original(self._by_name[name])
        if t.difference != Difference.NONE:
            return np.frombuffer(
                Encoder(backend=self.decoder.backend).encode(self.get_tensor(name)), np.uint8
            )
        with self.guarded():
            return extract(self.source, t, self.index.tables)

    def restored(self, raw: bool = False) -> Iterator[Any]:
        """The original file, a piece at a time: its header, then the tensors (spec: R4.22).

        Parameters
        ----------
        raw
            Without an original header, make none either;
            otherwise it is that of a safetensors file.

        Raises
        ------
        DecodeError
            Possibly after some pieces.
        """
        made = self.index.source_kind is None and not raw
        yield (
            restored_header(map(entry_of, self.index.tensors), self.index.metadata)
            if made
            else self.index.source_header
        )
        with self.all_ahead():
            for batch in in_batches(self.index.tensors):
                if len(batch) > 1:
                    yield b"".join(a.tobytes() for a in self.small_tensors(batch))
                    continue
                for chunk in self.chunks(batch[0]):
                    yield chunk.reshape(-1).view(np.uint8).data

    def all_ahead(self) -> AbstractContextManager[None]:
        """Where all tensors are decoded in order; see `reading_on`."""
        return reading_on(self.source, 0, self.index.index_offset)

    def small_tensors(self, batch: list[TensorRecord]) -> list[NDArray[Any]]:
        """Decode small tensors together; see `batches.in_batches` and `get_tensor`."""
        originals = [self.original(t) for t in batch]
        with self.guarded():
            return decode_batch(self.decoder, self.source, originals, self.index.tables)

    def chunks(self, t: TensorRecord) -> Iterator[Words]:
        """The words of a tensor in order; see `Decoder.chunks`."""
        t = self.original(t)
        with self.guarded():
            yield from self.decoder.chunks(self.source, t, self.index.tables, self.base_of(t))

    # ---- duplicates and differences
    def original(self, t: TensorRecord) -> TensorRecord:
        """The tensor itself, or the one that it duplicates."""
        return self._originals[t.name]

    @property
    def needs_base(self) -> bool:
        """Whether tensors are differences from a base."""
        return any(t.difference for t in self.index.tensors)

    def base(self, progress: Progress = ignore_progress) -> OpenBase:
        """The checkpoint that tensors differ from, opened and checked the first time.

        Raises
        ------
        DecodeError
            ``bad_base``: it is not there, or not the one whose content hash the file names.
        OSError
        """
        with self._lock, within(self.path):
            if self._base is None:
                self._base = self._open_base(progress)
            return self._base

    def _open_base(self, progress: Progress) -> OpenBase:
        path = base_path(self.path, self.index.base, self._base_path, self._depth)
        limit = self.decoder.max_memory
        base = open_base(path, self.decoder.backend, progress, self._depth + 1, limit)
        try:
            check_is_base(base, self.index.base, path)
        except BaseException:
            base.close()
            raise
        return base

    def take_base(self, base: File) -> None:
        """Take an open file as the base, wherever it lies. It is closed with this one.

        Raises
        ------
        DecodeError
            ``bad_base``: it is not the one whose content hash the file names.
        """
        with self._lock, within(self.path):
            check_is_base(base, self.index.base, base.path or "")
            self._base = base

    def base_paths(self) -> list[Place]:
        """The files that this one is read with, which no output may replace: of a base that cannot
        be had, where it should be.
        """
        if not self.needs_base:
            return []
        try:
            return paths_of(self.base())
        except DecodeError:
            if self._base_path is not None:
                return [place_of(self._base_path)]
            name = "" if self.index.base is None else self.index.base.name
            return [] if self.path is None else [self.path.parent / name]

    # ---- as the base of another file; see `OpenBase`
    def base_tensor(
        self, name: str, dtype: DType, shape: tuple[int, ...], geometry: Geometry
    ) -> BaseTensor | None:
        """As `BaseCheckpoint.base_tensor`."""
        t = self.find(name, dtype, shape)
        if t is None:
            return None
        with within(base=self.name):
            # each level would decode the next many times
            flat = 1 in (t.geometry.rows, geometry.rows)
            if t.difference and t.geometry.cols != geometry.cols and not flat:
                raise DecodeError(
                    "bad_base", "a difference whose matrix has other columns", tensor=name
                )
            plan = t.plan(self.index.tables)
            return CodedBaseTensor(
                self.name, self.decoder, self.source, t, plan, self.base_of(t), geometry.cols,
                self.checked, self._kept,
            )  # fmt: skip

    def content_hash(self, known: Mapping[str, int] = NOTHING_KNOWN) -> bytes:
        """As `BaseCheckpoint.content_hash`: the index knows all of it."""
        return content_hash((t.name, t.dtype, t.shape, t.crc32) for t in self.index.tensors)

    def paths(self) -> Iterator[Place]:
        """As `OpenBase.paths`."""
        if self.path is not None:
            yield self.path
        if self.needs_base:
            yield from self.base().paths()

    def base_of(self, t: TensorRecord) -> BaseTensor | None:
        """What a tensor that is no duplicate differs from, if anything. Raises as `base`."""
        if t.difference == Difference.NONE:
            return None
        base = self.base()
        found = base.base_tensor(t.name, t.dtype, t.shape, t.geometry)
        if found is None:
            raise DecodeError(
                "bad_base",
                f"the base {base.name!r} has no tensor of this name, dtype and shape",
                tensor=t.name,
            )
        return found


def _opened_again(path: str, backend: tuple[str, int | None] | None, *how: Any) -> File:
    """A file that was pickled, in the process that got it.

    Raises
    ------
    DecodeError
        ``changed``: another file has its name by now.
    """
    *options, identity = how
    file = File(path, None if backend is None else load_backend(*backend), *options)
    if file._identity() != identity:
        file.close()
        with within(path):
            raise DecodeError("changed", "this is not the file that was open when it was pickled")
    return file


def open_base(
    path: AnyPath,
    backend: Backend,
    progress: Progress = ignore_progress,
    depth: int = 1,
    max_memory: int | None = None,
) -> OpenBase:
    """Open a checkpoint that others are coded as differences from.

    Raises
    ------
    DecodeError
        ``bad_base``: neither a ``.wcodec`` nor a safetensors file.
    OSError
    """
    with within(base=path):
        source = open_source(path, is_checked=True)
        if source.read(0, min(len(MAGIC), source.nbytes)).tobytes() == MAGIC:
            return File(path, backend, depth=depth, max_memory=max_memory)
        return safetensors_base(place_of(path), source, backend, progress)
