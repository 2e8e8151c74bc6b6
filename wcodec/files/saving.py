"""`save_file`: arrays to a ``.wcodec`` file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeVar

from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.codec.arrays import as_array
from wcodec.codec.encoder import Encoder, Writer, words_of
from wcodec.codec.pipelining import Progress, ignore_progress
from wcodec.codec.sources import FileWords
from wcodec.codec.urls import Place
from wcodec.codec.whole import Whole
from wcodec.errors import EncodeError, within
from wcodec.files.atomic import (
    AnyPath,
    atomic_output,
)
from wcodec.files.bases import InMemory, OpenBase, paths_of
from wcodec.files.duplicates import Duplicates, ReadWords
from wcodec.files.file import File, open_base
from wcodec.files.safetensors_header import Entry, Stated, write_safetensors_header
from wcodec.planner.options import EncodeOptions
from wcodec.reference.differences import NOTHING_KNOWN, BaseTensor, content_hash
from wcodec.reference.planes import DType, Words
from wcodec.reference.tiles import Geometry

T = TypeVar("T")


def save_file(
    tensors: Mapping[str, NDArray[Any]],
    path: AnyPath,
    metadata: dict[str, str] | None = None,
    options: EncodeOptions | None = None,
    base: AnyPath | Mapping[str, NDArray[Any]] | None = None,
    *,
    fsync: bool = True,
) -> int:
    """Write arrays to a ``.wcodec`` file. Arrays that are the same are stored once.

    Parameters
    ----------
    tensors
        Arrays by name; any shape, dtypes as in `wcodec.encode`, which says what is refused.
    path
        A file that is there is replaced, once the new one is whole; of a symbolic link, the file
        that it points at.
    metadata
        Texts to keep with them.
    options
        See `EncodeOptions`.
    base
        A ``.wcodec`` or safetensors file, or arrays by name: arrays of which it has one of the same
        name, dtype and shape are stored as what they differ in, where that is smaller. To read
        them, it is needed again; `wcodec.apply` turns arrays in memory into the new ones.
    fsync
        Have the file on the disk before this returns, so that it is whole after a power failure.

    Returns
    -------
    Bytes of the file.

    Raises
    ------
    EncodeError
        ``unsupported_dtype``, ``bad_name``, ``resource_limit``; ``bad_option``: `path` is the base.
        Nothing is left behind.
    DecodeError
        The base is not well-formed.
    TypeError
        `tensors` or `metadata` are of another type.
    """
    return write_tensors(tensors, take_array, path, metadata, options, base, fsync)


def save(
    tensors: Mapping[str, NDArray[Any]],
    metadata: dict[str, str] | None = None,
    options: EncodeOptions | None = None,
    base: AnyPath | Mapping[str, NDArray[Any]] | None = None,
) -> bytes:
    """The bytes of the file that `save_file` writes: for `wcodec.open` and `wcodec.apply`.

    Parameters
    ----------
    tensors, metadata, options, base
        As of `save_file`.

    Raises
    ------
    EncodeError, DecodeError, TypeError
        As `save_file`.
    """
    return tensors_to_bytes(tensors, take_array, metadata, options, base)


class Taken(NamedTuple):
    """A tensor of any library as the format takes it.

    Attributes
    ----------
    words
        Flat.
    stated
        Of opaque bytes, what they are; ``None`` of other dtypes.
    """

    words: Words
    dtype: DType
    shape: tuple[int, ...]
    stated: Stated | None = None


def taken(array: NDArray[Any]) -> Taken:
    """An array as the format takes it. Raises as `words_of`."""
    dtype, words = words_of(array)
    return Taken(words, dtype, array.shape)


def take_array(given: Any, name: str) -> Taken:
    """What `save_file` takes as an array, as the format takes it. Raises as `save_file`."""
    try:
        return taken(as_array(given))
    except EncodeError:
        with within(tensor=name):
            raise


def write_tensors(
    tensors: Mapping[str, T],
    take: Callable[[T, str], Taken],
    path: AnyPath,
    metadata: dict[str, str] | None,
    options: EncodeOptions | None,
    base: AnyPath | Mapping[str, T] | File | None,
    fsync: bool,
    backend: Backend | None = None,
) -> int:
    """`save_file` for tensors of any library: `take` is called with one and its name, and again
    where it may have a twin.

    Where there are opaque bytes, the file keeps the header of a safetensors file of all tensors:
    there it stands what the bytes are.
    """
    _check_types(tensors, metadata)
    encoder = Encoder(options, backend)
    with (
        _base_for(base, take, encoder.backend) as other,
        atomic_output(path, overwrite=True, inputs=paths_of(other), fsync=fsync) as f,
    ):
        return _write(encoder.start(f, base=other), tensors, take, metadata)


def tensors_to_bytes(
    tensors: Mapping[str, T],
    take: Callable[[T, str], Taken],
    metadata: dict[str, str] | None,
    options: EncodeOptions | None,
    base: AnyPath | Mapping[str, T] | None,
    backend: Backend | None = None,
) -> bytes:
    """`save` for tensors of any library, as `write_tensors`."""
    _check_types(tensors, metadata)
    encoder, whole = Encoder(options, backend), Whole(0)
    with _base_for(base, take, encoder.backend) as other:
        _write(encoder.start(whole, base=other), tensors, take, metadata)
    return whole.getvalue()


@contextmanager
def base_for(
    path: AnyPath | None,
    backend: Backend,
    progress: Progress = ignore_progress,
    max_memory: int | None = None,
) -> Iterator[OpenBase | None]:
    """The base of a file that is about to be written."""
    if path is None:
        yield None
        return
    base = open_base(path, backend, progress, max_memory=max_memory)
    try:
        yield base
    finally:
        base.close()


def _base_for(
    base: AnyPath | Mapping[str, T] | File | None,
    take: Callable[[T, str], Taken],
    backend: Backend,
) -> AbstractContextManager[OpenBase | None]:
    if isinstance(base, File):  # the caller's, who closes it
        return nullcontext(base)
    if isinstance(base, Mapping):
        return nullcontext(ArraysBase(base, take, backend))
    return base_for(base, backend)


def _write(
    writer: Writer,
    tensors: Mapping[str, T],
    take: Callable[[T, str], Taken],
    metadata: dict[str, str] | None,
) -> int:
    seen, entries, is_stated = Duplicates(), list[Entry](), False
    for name, tensor in tensors.items():
        t = take(tensor, name)
        dtype_name, shape = "", t.shape
        if t.stated is not None:
            dtype_name, shape, is_stated = t.stated.dtype, t.stated.shape, True
        entries.append((name, dtype_name or t.dtype.safetensors, shape, t.words.nbytes))
        read_again = partial(_words, take, tensor, name)
        add_tensor(writer, seen, name, t.words, t.dtype, t.shape, dtype_name, read_again)
    header = write_safetensors_header(entries, dict(metadata or {})) if is_stated else None
    return writer.finish(metadata, header)


class ArraysBase(OpenBase):
    """Tensors in memory that others are coded as differences from.

    Parameters
    ----------
    take
        As of `write_tensors`.
    """

    name = ""

    def __init__(
        self, tensors: Mapping[str, T], take: Callable[[T, str], Taken], backend: Backend
    ) -> None:
        self._tensors: Mapping[str, Any] = tensors
        self._take: Callable[[Any, str], Taken] = take
        self._backend = backend

    def base_tensor(
        self, name: str, dtype: DType, shape: tuple[int, ...], geometry: Geometry
    ) -> BaseTensor | None:
        """As `BaseCheckpoint.base_tensor`."""
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        t = self._take(tensor, name)
        if (t.dtype, t.shape) != (dtype, shape):
            return None
        return InMemory(t.words.reshape(geometry.rows, geometry.cols))

    def content_hash(self, known: Mapping[str, int] = NOTHING_KNOWN) -> bytes:
        """As `BaseCheckpoint.content_hash`; the words of the other tensors are read for it."""
        crc32 = self._backend.crc32
        taken = ((name, self._take(tensor, name)) for name, tensor in self._tensors.items())
        return content_hash(
            (name, t.dtype, t.shape, known[name] if name in known else crc32(t.words))
            for name, t in taken
        )

    def paths(self) -> Iterator[Place]:
        """As `OpenBase.paths`: none."""
        yield from ()

    def close(self) -> None:
        """As `OpenBase.close`."""


def _check_types(tensors: Any, metadata: Any) -> None:
    """Say what is wanted, where something else was given than tensors by name and texts by name."""
    if not isinstance(tensors, Mapping):
        raise TypeError(
            f"save_file takes tensors by name, such as {{'weight': "
            f"tensor}}, and then a path; this is a {_type(tensors)}"
        )
    if not isinstance(metadata, Mapping | None):
        raise TypeError(
            f"metadata are texts by name, such as {{'epoch': '3'}}; this is a {_type(metadata)}"
        )
    for name in tensors:
        if not isinstance(name, str):
            raise TypeError(f"names of tensors are texts; {name!r} is a {_type(name)}")
    for key, text in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(text, str):
            wrong = text if isinstance(key, str) else key
            raise TypeError(
                f"metadata are texts; {wrong!r} of {key!r} is a {_type(wrong)}: give "
                f"str({wrong!r}), or json.dumps of it"
            )


def _type(value: object) -> str:
    return type(value).__name__


def _words(take: Callable[[T, str], Taken], tensor: T, name: str) -> Words:
    return take(tensor, name).words


def add_tensor(
    writer: Writer,
    seen: Duplicates,
    name: str,
    words: Words | FileWords,
    dtype: DType,
    shape: tuple[int, ...],
    dtype_name: str,
    read_again: ReadWords,
    pieces: bytes | None = None,
) -> None:
    """Write a tensor, or that it is an earlier one again; see `Duplicates.find`."""
    of = seen.find(words, dtype, shape, dtype_name, read_again, pieces)
    if of is None:
        writer.add_later(name, words, dtype, shape, dtype_name)
    else:
        writer.add_duplicate(name, of)
