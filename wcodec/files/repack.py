"""A ``.wcodec`` file as another one that holds the same, coded otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wcodec.backends import Backend
from wcodec.codec.encoder import Encoder
from wcodec.codec.pipelining import Progress, WriteBehind, ignore_progress
from wcodec.codec.urls import Place, place_of
from wcodec.errors import DecodeError
from wcodec.files.atomic import AnyPath, atomic_output, check_output, folder_for
from wcodec.files.file import File
from wcodec.files.plain import IN_MEMORY, spooled
from wcodec.files.saving import base_for
from wcodec.planner.options import EncodeOptions
from wcodec.reference.planes import Bytes
from wcodec.reference.tensors import TensorRecord
from wcodec.reference.tiles import CHUNK_NBYTES


def repack_file(
    source: AnyPath,
    target: AnyPath,
    options: EncodeOptions | None = None,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    base: AnyPath | None = None,
    *,
    overwrite: bool = False,
    max_nbytes: int | None = None,
    max_memory: int | None = None,
    fsync: bool = True,
) -> tuple[int, int]:
    """Encode the tensors of a ``.wcodec`` file anew: names, order, metadata, what is restored and
    its base stay as they are.

    A tensor at a time; a large one is decoded to a temporary file beside the target.

    Parameters
    ----------
    base, max_nbytes, max_memory
        As of `wcodec.open`.
    overwrite, fsync
        As of `encode_file`.

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
    inputs = [source] if base is None else [source, base]
    check_output(target, overwrite, inputs)
    with File(source, backend, max_nbytes, base, max_memory=max_memory) as f:
        encoder, index = Encoder(options, f.decoder.backend), f.index
        other_path = _base_path(f, base) if f.needs_base else None
        inputs += f.base_paths()
        with (
            base_for(other_path, encoder.backend, max_memory=max_memory) as other,
            atomic_output(
                target, overwrite=overwrite, inputs=inputs, like=source, fsync=fsync
            ) as stream,
            WriteBehind(stream, f.decoder.backend.threads, CHUNK_NBYTES) as out,
        ):
            writer = encoder.start(out, progress, other)
            for t in index.tensors:
                if t.duplicate_of is not None:
                    writer.add_duplicate(t.name, t.duplicate_of)
                    continue
                folder = folder_for(target)
                spool = spooled(_pieces(f, t), t.nbytes, t.dtype.word_type, folder, IN_MEMORY)
                with spool as words:
                    writer.add_later(t.name, words, t.dtype, t.shape, t.dtype_name)
            header = index.source_header if index.source_kind is not None else None
            return index.file_nbytes, writer.finish(index.metadata, header)


def _base_path(f: File, given: AnyPath | None) -> Place:
    """Where the base of a file is, once it is known to be the right one.

    Raises
    ------
    DecodeError
        ``bad_base``
    """
    f.base()
    if given is not None:
        return place_of(given)
    if f.path is None or f.index.base is None:
        raise DecodeError("bad_base", "name the base")
    return f.path.parent / f.index.base.name


def _pieces(f: File, t: TensorRecord) -> Iterator[Bytes]:
    return (chunk.reshape(-1).view(np.uint8) for chunk in f.chunks(t))
