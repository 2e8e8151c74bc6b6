"""`save_file`: arrays to a ``.wcodec`` file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

from numpy.typing import NDArray

from wcodec.codec.arrays import as_array
from wcodec.codec.encoder import Encoder, Writer, words_of
from wcodec.codec.sources import FileWords
from wcodec.errors import EncodeError, within
from wcodec.files.atomic import (
    AnyPath,
    atomic_output,
)
from wcodec.files.bases import paths_of
from wcodec.files.duplicates import Duplicates, ReadWords
from wcodec.files.file import base_for
from wcodec.files.safetensors_header import Entry, Stated, write_safetensors_header
from wcodec.planner.options import EncodeOptions
from wcodec.reference.planes import DType, Words

T = TypeVar("T")


def save_file(
    tensors: Mapping[str, NDArray[Any]],
    path: AnyPath,
    metadata: dict[str, str] | None = None,
    options: EncodeOptions | None = None,
    base: AnyPath | None = None,
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
        A ``.wcodec`` or safetensors file: arrays of which it has one of the same name, dtype and
        shape are stored as what they differ in, where that is smaller. To read them, it is needed
        again.
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
    return write_tensors(tensors, _taken, path, metadata, options, base, fsync)


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


def _taken(given: Any, name: str) -> Taken:
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
    base: AnyPath | None,
    fsync: bool,
) -> int:
    """`save_file` for tensors of any library: `take` is called with one and its name, and again
    where it may have a twin.

    Where there are opaque bytes, the file keeps the header of a safetensors file of all tensors:
    there it stands what the bytes are.
    """
    _check_types(tensors, metadata)
    encoder = Encoder(options)
    with (
        base_for(base, encoder.backend) as other,
        atomic_output(path, overwrite=True, inputs=paths_of(other), fsync=fsync) as f,
    ):
        writer, seen, entries = encoder.start(f, base=other), Duplicates(), list[Entry]()
        is_stated = False
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
) -> None:
    """Write a tensor, or that it is an earlier one again; see `Duplicates.find`."""
    of = seen.find(words, dtype, shape, dtype_name, read_again)
    if of is None:
        writer.add_later(name, words, dtype, shape, dtype_name)
    else:
        writer.add_duplicate(name, of)
