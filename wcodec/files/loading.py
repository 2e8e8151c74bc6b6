"""`load_file`, and others that decode all tensors of a ``.wcodec`` file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from wcodec.codec.batches import in_batches
from wcodec.files.atomic import AnyPath
from wcodec.files.file import File, open
from wcodec.reference.tensors import TensorRecord


def load_file(
    path: AnyPath,
    base: AnyPath | None = None,
    *,
    max_nbytes: int | None = None,
    max_memory: int | None = None,
) -> dict[str, NDArray[Any]]:
    """All arrays of a ``.wcodec`` file by name, in the file's order.

    Parameters
    ----------
    base, max_nbytes, max_memory
        See `open`.

    Raises
    ------
    DecodeError
    """
    with open(path, base=base, max_nbytes=max_nbytes, max_memory=max_memory) as f:
        return {t.name: array for t, array in arrays_of(f)}


def arrays_of(file: File) -> Iterator[tuple[TensorRecord, NDArray[Any]]]:
    """All tensors of a file in order, small ones decoded together. Raises as `File.get_tensor`."""
    with file.all_ahead():
        for batch in in_batches(file.index.tensors):
            if len(batch) == 1:
                yield batch[0], file.get_tensor(batch[0].name)
            else:
                yield from zip(batch, file.small_tensors(batch), strict=True)
