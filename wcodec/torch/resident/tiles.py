"""A matrix that is held compressed, some rows at a time: a tile that fits caches is decoded, used,
and its memory used again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

import torch

from wcodec.backends import Backend
from wcodec.codec.checks import check_tensor
from wcodec.codec.parts import Part, part_of
from wcodec.files.file import File
from wcodec.reference.checksums import crc32_combine
from wcodec.reference.tensors import TensorRecord
from wcodec.reference.tiles import chunks
from wcodec.torch.resident.scratch import tile_buffers

#: of decoded words for each thread that decodes: about a second-level cache
TILE_NBYTES: Final = 1 << 20
MOST_THREADS: Final = 8  #: with more of them, tiles do not grow


class Tiling(NamedTuple):
    """What is decoded at once, and the bytes of the largest of these parts."""

    parts: list[Part]
    nbytes: int


def tile_nbytes(backend: Backend) -> int:
    """Decoded bytes of a tile. Rows of segments are not cut: it may become larger by one."""
    return TILE_NBYTES * min(backend.threads or len(os.sched_getaffinity(0)), MOST_THREADS)


def tiling_of(file: File, t: TensorRecord) -> Tiling:
    """How to decode a tensor from its first word to the last one, each segment once."""
    whole = t.plan(file.index.tables)
    parts = [
        part_of(t, whole, down, across)
        for down, across in chunks(
            t.geometry, t.dtype.word_nbytes, tile_nbytes(file.decoder.backend)
        )
    ]
    return Tiling(parts, max((_n_words(p) for p in parts), default=0) * t.dtype.word_nbytes)


def _n_words(part: Part) -> int:
    return part.plan.geometry.rows * part.plan.geometry.cols


def row_tiles(
    file: File, t: TensorRecord, tiling: Tiling, dtype: torch.dtype
) -> Iterator[tuple[int, torch.Tensor]]:
    """The rows of a matrix in order: the number of the first one,
    and a tensor of as many as were decoded at once.

    The tensor is overwritten when the next one is asked for. Where segments do not end with rows,
    the start of a row waits for its end.

    Raises
    ------
    DecodeError
        The CRC-32 of a segment does not match, or another thing is wrong with it; after the last
        rows, that of the tensor.
    """
    n_cols, buffers = t.shape[1], tile_buffers(torch.device("cpu"))
    row_nbytes = n_cols * t.dtype.word_nbytes
    buffer = buffers.take(max(tiling.nbytes + row_nbytes, tile_nbytes(file.decoder.backend)))
    memory = buffer.numpy()
    try:
        crc = first = n_left = 0  # `n_left`: bytes of a row that began in the part before
        for part in tiling.parts:
            g, nbytes = part.plan.geometry, _n_words(part) * t.dtype.word_nbytes
            words = memory[n_left : n_left + nbytes].view(t.dtype.word_type).reshape(g.rows, g.cols)
            crc = crc32_combine(crc, file.decoder.part(file.source, t, part, words), nbytes)
            n_left += nbytes
            n_rows = n_left // row_nbytes
            if n_rows:
                done = n_rows * row_nbytes
                yield first, buffer[:done].view(dtype).view(n_rows, n_cols)
                memory[: n_left - done] = memory[done:n_left].copy()
                first, n_left = first + n_rows, n_left - done
        check_tensor(t, crc)
    finally:
        buffers.give(buffer)
