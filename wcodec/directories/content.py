"""`content_sha256`: of a checkpoint in any form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wcodec.backends import Backend
from wcodec.codec.opening import open_source
from wcodec.codec.pipelining import Progress, ignore_progress
from wcodec.directories.hub_header import is_coded, is_hub
from wcodec.directories.hub_reading import HubFile
from wcodec.errors import EncodeError, within
from wcodec.files.atomic import AnyPath
from wcodec.files.content import content_of, content_of_coded
from wcodec.files.file import File
from wcodec.files.safetensors_header import read_safetensors_header


def content_sha256(
    path: AnyPath,
    base: AnyPath | None = None,
    *,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    max_nbytes: int | None = None,
    max_memory: int | None = None,
) -> str:
    """The content SHA-256 of a checkpoint: of the names, dtypes, shapes and bytes of its tensors
    and of its metadata. It does not depend on how these are stored: it is the same of a safetensors
    file, of a ``.wcodec`` file or one in hub form that was made from it with whatever options, and
    of one that `save_file` wrote of the same tensors and metadata.

    All of the file is read and decoded, and every checksum checked.

    Parameters
    ----------
    path
        A ``.wcodec`` file, or a safetensors file, in hub form or plain.
    base, backend, max_nbytes, max_memory
        As of `wcodec.open`.
    progress
        Called with the number of decoded bytes that were just done.

    Returns
    -------
    64 hexadecimal digits.

    Raises
    ------
    DecodeError
        ``bad_value``: also of a ``.wcodec`` file that restores another file than its tensors make.
    EncodeError
        ``bad_source``: not a well-formed safetensors file.

    See also
    --------
    spec/wcodec.md, 11.1

    Examples
    --------
    >>> wcodec.content_sha256("model.wcodec") == wcodec.content_sha256("model.safetensors")
    True
    """
    if is_coded(path):
        with File(path, backend, max_nbytes, base, max_memory=max_memory) as f:
            if f.needs_base:
                f.base(progress)
            return content_of_coded(f, progress).hex()
    with within(path):
        if is_hub(path):
            pieces = HubFile(path, backend, max_nbytes, max_memory).restored()
        else:
            pieces = _plain_pieces(path)
        return content_of(pieces, progress)[1].hex()


def _plain_pieces(path: AnyPath) -> Iterator[Any]:
    source = open_source(path, EncodeError, is_checked=True)
    header = read_safetensors_header(source)
    yield header.raw
    yield from (piece.data for piece in source.pieces(len(header.raw), source.nbytes))
