"""Bases of differences, on the device. Spec: R12.5."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any

import numpy as np

from wcodec.cuda.pipeline import Pipeline
from wcodec.errors import DecodeError, within
from wcodec.files.bases import SafetensorsBase
from wcodec.files.file import File
from wcodec.reference.records import TensorRecord


def n_coded_bases(file: File) -> int:
    """How many ``.wcodec`` files have to be decoded for a file's tensors besides itself.
    Raises as `File.base`.
    """
    base = file.base() if file.needs_base else None
    return 1 + n_coded_bases(base) if isinstance(base, File) else 0


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
