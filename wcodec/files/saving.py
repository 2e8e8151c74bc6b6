"""`save_file`: arrays to a ``.wcodec`` file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from wcodec.codec.encoder import Encoder, Writer, words_of
from wcodec.codec.sources import FileWords
from wcodec.files.atomic import (
    AnyPath,
    atomic_output,
)
from wcodec.files.bases import paths_of
from wcodec.files.duplicates import Duplicates, ReadWords
from wcodec.files.file import base_for
from wcodec.planner.options import EncodeOptions
from wcodec.reference.planes import DType, Words

T = TypeVar("T")


def save_file(
    tensors: Mapping[str, NDArray[Any]],
    path: AnyPath,
    metadata: dict[str, str] | None = None,
    options: EncodeOptions | None = None,
    base: AnyPath | None = None,
) -> int:
    """Write arrays to a ``.wcodec`` file. Arrays that are the same are stored once.

    Parameters
    ----------
    tensors
        Arrays by name; any shape, dtypes as in `wcodec.encode`.
    path
        A file that is there is replaced, once the new one is whole.
    metadata
        Texts to keep with them.
    options
        See `EncodeOptions`.
    base
        A ``.wcodec`` or safetensors file: arrays of which it has one of the same name, dtype and
        shape are stored as what they differ in, where that is smaller. To read them, it is needed
        again.

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
    return write_arrays(tensors, lambda array, _: np.asarray(array), path, metadata, options, base)


def write_arrays(
    tensors: Mapping[str, T],
    array_of: Callable[[T, str], NDArray[Any]],
    path: AnyPath,
    metadata: dict[str, str] | None,
    options: EncodeOptions | None,
    base: AnyPath | None,
) -> int:
    """`save_file` for tensors of any library: `array_of` is called with one and its name, and again
    where it may have a twin.
    """
    _check_types(tensors, metadata)
    encoder = Encoder(options)
    with (
        base_for(base, encoder.backend) as other,
        atomic_output(path, overwrite=True, inputs=paths_of(other)) as f,
    ):
        writer, seen = encoder.start(f, base=other), Duplicates()
        for name, tensor in tensors.items():
            array = array_of(tensor, name)
            dtype, words = words_of(array)
            add_tensor(
                writer,
                seen,
                name,
                words,
                dtype,
                array.shape,
                "",
                partial(_words, array_of, tensor, name),
            )
        return writer.finish(metadata)


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


def _words(array_of: Callable[[T, str], NDArray[Any]], tensor: T, name: str) -> Words:
    return words_of(array_of(tensor, name))[1]


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
