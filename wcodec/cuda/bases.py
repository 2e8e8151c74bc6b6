"""Bases of differences, on the device. Spec: R12.5."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any

import numpy as np

from wcodec.cuda.pipeline import Pipeline
from wcodec.cuda.sparse import segments_nbytes
from wcodec.errors import DecodeError, within
from wcodec.files.bases import SafetensorsBase
from wcodec.files.file import File
from wcodec.reference.tensors import TensorRecord


def n_coded_bases(file: File) -> int:
    """How many ``.wcodec`` files have to be decoded for a file's tensors besides itself.
    Raises as `File.base`.
    """
    base = file.base() if file.needs_base else None
    return 1 + n_coded_bases(base) if isinstance(base, File) else 0


def largest_lists(file: File, records: list[TensorRecord]) -> int:
    """Device memory that it takes to decode the lists of a segment, at most: of some tensors of a
    file and of all of its bases. Raises as `File.base`.
    """
    sparse = [segments_nbytes(t, file.index.tables) for t in records if t.lists is not None]
    most = max((int(nbytes.max(initial=0)) for nbytes in sparse), default=0)
    base = file.base() if any(t.difference for t in records) else None
    return max(most, largest_lists(base, base.index.tensors)) if isinstance(base, File) else most


def base_memory(
    pipeline: Pipeline, file: File, records: list[TensorRecord]
) -> Generator[Any, None, None]:
    """Device memory of what some tensors of a file differ from, uint8,
    one for each that is a difference, in order.

    Parameters
    ----------
    pipeline
        What decodes the file; the base is decoded by the one below it.

    Raises
    ------
    DecodeError
        As `File.base`, and of the base.
    """
    wanted = [file.original(t) for t in records if t.difference]
    if not wanted:
        return
    base = file.base()
    if isinstance(base, File):
        yield from _decoded(pipeline.below, base, wanted)
    elif isinstance(base, SafetensorsBase):
        runtime = pipeline.runtime
        for t in wanted:
            words = base.flat_words(t.name, t.dtype, t.shape)
            with runtime.in_use():
                memory = runtime.upload(_there(words, base.name, t).view(np.uint8))
            yield memory


def _decoded(
    pipeline: Pipeline, file: File, wanted: list[TensorRecord]
) -> Generator[Any, None, None]:
    records = [_there(file.find(t.name, t.dtype, t.shape), file.name, t) for t in wanted]
    with (
        within(base=file.name),
        closing(base_memory(pipeline, file, records)) as bases,
        closing(pipeline.tensors(file.source, records, file.index.tables, bases)) as tensors,
    ):
        for _, memory in tensors:
            yield memory


def _there(found: Any, base: str, t: TensorRecord) -> Any:
    if found is None:
        raise DecodeError(
            "bad_base",
            f"the base {base!r} has no tensor of this name, dtype and shape",
            tensor=t.name,
        )
    return found
