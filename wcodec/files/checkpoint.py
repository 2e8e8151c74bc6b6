"""Whole checkpoints to and fro: `encode_file`, `decode_file`, `verify_file`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

import numpy as np

from wcodec.backends import Backend
from wcodec.codec.encoder import Encoder
from wcodec.codec.pipelining import Progress, WriteBehind, ignore_progress
from wcodec.errors import within
from wcodec.files.atomic import (
    AnyPath,
    atomic_output,
    check_output,
    check_room,
    folder_for,
)
from wcodec.files.bases import paths_of
from wcodec.files.duplicates import Duplicates
from wcodec.files.file import File
from wcodec.files.parts import part_starts
from wcodec.files.plain import PipedFile, open_plain
from wcodec.files.safetensors_header import SafetensorsHeader
from wcodec.files.saving import add_tensor, base_for
from wcodec.planner.options import EncodeOptions
from wcodec.reference.tiles import CHUNK_NBYTES


def encode_file(
    source: AnyPath,
    target: AnyPath,
    options: EncodeOptions | None = None,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    base: AnyPath | None = None,
    *,
    overwrite: bool = False,
    fsync: bool = True,
    check_header: Callable[[SafetensorsHeader], object] | None = None,
) -> tuple[int, int]:
    """Encode a safetensors file; `decode_file` restores it byte for byte.

    Parameters
    ----------
    source
        A file, or a pipe, which is read from front to back.
    base
        As of `save_file`.
    overwrite
        Whether a target that is there may be replaced, if it is neither the source nor the base.
    fsync
        As of `save_file`.
    check_header
        Called with the source's header before anything is written; may refuse it.

    Returns
    -------
    Bytes of the source and of the target.

    Raises
    ------
    EncodeError
        ``truncated``, ``changed``: the source was cut or written to meanwhile.
        ``bad_source``: not a well-formed safetensors file. ``output_exists``; ``bad_option``:
        `target` is the source or the base. Nothing is left behind.
    DecodeError
        The base is not well-formed.
    """
    check_output(target, overwrite, [source])
    with within(source):
        plain = open_plain(source)
        if check_header is not None:
            check_header(plain.header)
    like, header = None if isinstance(plain, PipedFile) else source, plain.header
    encoder, seen = Encoder(options, backend), Duplicates()
    with (
        base_for(base, encoder.backend, progress) as other,
        atomic_output(
            target, overwrite=overwrite, inputs=[source, *paths_of(other)], like=like, fsync=fsync
        ) as stream,
        WriteBehind(stream, encoder.backend.threads, CHUNK_NBYTES) as f,
        within(source),
    ):
        starts = part_starts(header) if other is None else [0]
        writer = encoder.start(f, progress, other, len(starts))
        with closing(plain.tensors(folder_for(target))) as tensors:
            for i, (t, words, again, pieces) in enumerate(tensors):
                if i and i in starts:
                    writer.start_part()
                how = t.dtype, t.shape, t.dtype_name, again, pieces
                add_tensor(writer, seen, t.name, words, *how)
        return header.end, writer.finish(header.metadata, header.raw)


def decode_file(
    source: AnyPath,
    target: AnyPath,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    max_nbytes: int | None = None,
    raw: bool = False,
    base: AnyPath | None = None,
    *,
    overwrite: bool = False,
    max_memory: int | None = None,
    fsync: bool = True,
) -> tuple[int, int]:
    """Restore the file that `encode_file` read;
    from one that `save_file` wrote, a safetensors file of its arrays.

    Parameters
    ----------
    max_nbytes, max_memory
        As of `open`.
    raw
        From a file that `save_file` wrote, the bytes of its tensors alone.
    base
        As of `open`.
    overwrite
        Whether a target that is there may be replaced, if it is neither the source nor the base.
    fsync
        As of `save_file`.

    Returns
    -------
    Bytes of the source and of the target.

    Raises
    ------
    DecodeError
        Nothing is left behind. ``resource_limit``: the disk has not the room.
    EncodeError
        ``output_exists``; ``bad_option``: the target is the source or the base.
    """
    inputs = [source] if base is None else [source, base]
    check_output(target, overwrite, inputs)
    with File(source, backend, max_nbytes, base, max_memory=max_memory) as f:
        inputs += paths_of(f.base(progress) if f.needs_base else None)
        total, nbytes = 0, f.index.data_nbytes
        check_room(target, nbytes)
        with (
            atomic_output(
                target, nbytes, overwrite=overwrite, inputs=inputs, like=source, fsync=fsync
            ) as stream,
            WriteBehind(stream, f.decoder.backend.threads) as out,
        ):
            for piece in f.restored(raw):
                out.write(piece)
                total += len(piece)
                progress(len(piece))
        return f.index.file_nbytes, total


def is_same_stream(one: Iterable[Any], other: Iterable[Any]) -> bool:
    """Whether two files, each as the pieces of its bytes, are the same."""
    lefts = [iter(one), iter(other)]
    pieces = [np.empty(0, np.uint8)] * 2
    while True:
        for i, left in enumerate(lefts):
            while not pieces[i].size and (piece := next(left, None)) is not None:
                pieces[i] = np.frombuffer(piece, np.uint8) if len(piece) else pieces[i]
        n = min(p.size for p in pieces)
        if not n:
            return not any(p.size for p in pieces)
        if not np.array_equal(pieces[0][:n], pieces[1][:n]):
            return False
        pieces = [p[n:] for p in pieces]


def verify_file(
    source: AnyPath,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    max_nbytes: int | None = None,
    base: AnyPath | None = None,
    max_memory: int | None = None,
) -> tuple[int, int]:
    """Decode all of a file and check every checksum, keeping nothing.

    Returns
    -------
    Bytes of the file, and of what it restores.

    Raises
    ------
    DecodeError
    """
    with File(source, backend, max_nbytes, base, max_memory=max_memory) as f:
        if f.needs_base:
            f.base(progress)
        total = 0
        for piece in f.restored():
            total += len(piece)
            progress(len(piece))
        return f.index.file_nbytes, total
