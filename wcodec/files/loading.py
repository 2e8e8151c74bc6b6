"""`load_file`: all arrays of a ``.wcodec`` file."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from wcodec.codec.batches import in_batches
from wcodec.files.atomic import AnyPath
from wcodec.files.file import open


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
    arrays = dict[str, NDArray[Any]]()
    with open(path, base=base, max_nbytes=max_nbytes, max_memory=max_memory) as f:
        for batch in in_batches(f.index.tensors):
            names = [t.name for t in batch]
            if len(batch) == 1:
                arrays[names[0]] = f.get_tensor(names[0])
            else:
                arrays.update(zip(names, f.small_tensors(batch), strict=True))
    return arrays
