"""A ``.wcodec`` file as another one that holds the same, coded otherwise."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from wcodec.backends import Backend
from wcodec.codec.encoder import Encoder
from wcodec.codec.pipelining import Progress, WriteBehind, ignore_progress
from wcodec.errors import DecodeError
from wcodec.files.atomic import AnyPath, atomic_output, check_output, named, reserve
from wcodec.files.file import File, base_for, paths_of
from wcodec.planner.options import EncodeOptions
from wcodec.reference.planes import Words
from wcodec.reference.records import TensorRecord

IN_MEMORY: Final = 1 << 26  #: bytes of a decoded tensor from which on it goes by way of a file


def repack_file(
    source: AnyPath,
    target: AnyPath,
    options: EncodeOptions | None = None,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    base: AnyPath | None = None,
    *,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Encode the tensors of a ``.wcodec`` file anew: names, order, metadata, what is restored and
    its base stay as they are.

    A tensor at a time; a large one is decoded to a temporary file beside the target.

    Parameters
    ----------
    base
        As of `wcodec.open`, if the file holds differences from one.
    overwrite
        Whether a target that is there may be replaced, if it is neither the source nor the base.

    Returns
    -------
    Bytes of the source and of the target.

    Raises
    ------
    DecodeError
        The source is damaged. Nothing is left behind.
    EncodeError
        ``output_exists``; ``bad_option``: the target is the source or the base.
    """
    check_output(target, overwrite, [source])
    with File(source, backend, base=base) as f:
        encoder, index = Encoder(options, f.decoder.backend), f.index
        other_path = _base_path(f, base) if f.needs_base else None
        with (
            base_for(other_path, encoder.backend) as other,
            atomic_output(
                target, overwrite=overwrite, inputs=[source, *paths_of(other)], like=source
            ) as stream,
            WriteBehind(stream, f.decoder.backend.threads) as out,
        ):
            writer = encoder.start(out, progress, other)
            for t in index.tensors:
                if t.duplicate_of is not None:
                    writer.add_duplicate(t.name, t.duplicate_of)
                    continue
                with _words(f, t, Path(target).absolute().parent) as words:
                    writer.add_later(t.name, words, t.dtype, t.shape, t.dtype_name)
            return index.file_nbytes, writer.finish(
                index.metadata, index.source_header if index.source_kind is not None else None
            )


def _base_path(f: File, given: AnyPath | None) -> Path:
    """Where the base of a file is, once it is known to be the right one.

    Raises
    ------
    DecodeError
        ``bad_base``
    """
    f.base()
    if given is not None:
        return Path(given)
    if f.path is None or f.index.base is None:
        raise DecodeError("bad_base", "name the base")
    return f.path.parent / f.index.base.name


@contextmanager
def _words(f: File, t: TensorRecord, folder: Path) -> Iterator[Words]:
    """The words of a tensor, flat: in memory, or in a file that is gone afterwards."""
    if t.nbytes < IN_MEMORY:
        words = np.empty(t.nbytes // t.dtype.word_nbytes, t.dtype.word_type)
        _fill(f, t, words)
        yield words
        return
    with tempfile.TemporaryFile(dir=folder) as room:
        with named(folder):
            room.truncate(t.nbytes)
            reserve(room, t.nbytes)  # a map of what the disk has no room for would end the process
            words = np.memmap(
                room, t.dtype.word_type, "r+", shape=(t.nbytes // t.dtype.word_nbytes,)
            )
        _fill(f, t, words)
        yield np.asarray(words)
        del words


def _fill(f: File, t: TensorRecord, words: Words) -> None:
    at = 0
    for chunk in f.chunks(t):
        words[at : at + chunk.size] = chunk.reshape(-1)
        at += chunk.size
