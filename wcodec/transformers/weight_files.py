"""What lies in a model's directory: its form, its dtype, and tensors of ``.wcodec`` files as the
loader of transformers takes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch

from wcodec.codec.decoder import Decoder
from wcodec.codec.opening import open_source
from wcodec.codec.sources import PartSource
from wcodec.codec.urls import Place
from wcodec.directories.hub_header import looks_like_stream
from wcodec.files.file import File
from wcodec.files.safetensors_header import read_safetensors_header
from wcodec.files.shard_index import (
    CODED,
    PLAIN,
    file_names,
    is_index,
    is_plain_name,
    read_weight_map,
    with_ending,
)
from wcodec.reference.planes import DType
from wcodec.torch import dtypes

_STEM: Final = "model"  #: of the file with the weights, as transformers and wcodec name it


class StreamSlice:
    """A tensor of a ``.wcodec`` file, to be read as the stream that it would be in hub form.

    Parameters
    ----------
    file, name
        Which one.
    """

    def __init__(self, file: File, name: str) -> None:
        self.file, self.name = file, name

    def __getitem__(self, index: Any) -> torch.Tensor:
        """The stream; nothing is decoded.

        Raises
        ------
        TypeError
            For any index but ``...``.
        """
        if index is not Ellipsis:
            raise TypeError("a stream is read as a whole")
        return torch.from_numpy(np.require(self.file.extract(self.name), requirements=["W"]))

    def get_dtype(self) -> str:
        """As of any stream."""
        return "U8"

    def get_shape(self) -> list[int]:
        """As of any stream, one dimension. How long it is shows when it is read."""
        return [-1]


def weight_files(
    directory: Place, suffix: str, variant: str | None = None, named: str | None = None
) -> dict[Place, set[str] | None]:
    """The files of a suffix that hold a model's weights, in the order of their names, and the
    tensors that the index says are in each; ``None`` for all, of a single file. None if there are
    none.

    Parameters
    ----------
    named
        The safetensors file, or the index of such, that the configuration names in their place
        (``transformers_weights``).

    Raises
    ------
    DecodeError
        As `read_weight_map`.
    FileNotFoundError
        One that the index names is missing.
    """
    names = file_names(_STEM, suffix, variant or None)
    if named is not None:
        names = [with_ending(named, PLAIN, suffix)] if is_plain_name(named) else []
    found = next((path for name in names if (path := directory / name).is_file()), None)
    if found is None:
        return {}
    if not is_index(found.name, suffix):
        return {found: None}
    files: dict[Place, set[str] | None] = {}
    for name, file in sorted(read_weight_map(found, suffix).items(), key=lambda pair: pair[1]):
        tensors = files.setdefault(directory / file, set())
        assert tensors is not None
        tensors.add(name)
    missing = [f.name for f in files if not f.is_file()]
    if missing:
        raise FileNotFoundError(f"{found} names files that are not there: {', '.join(missing)}")
    return files


def stored_dtype(
    directory: Place, variant: str | None = None, named: str | None = None
) -> torch.dtype | None:
    """What transformers would take for the dtype of a plain model whose ``config.json`` names none:
    that of the first weight of the first file, by their names, that has one in which a model can be
    made. ``None`` if there is no such weight, or no file. `variant` and `named` are as of
    `weight_files`.

    Raises
    ------
    DecodeError
    """
    for suffix, rows in ((CODED, _wcodec_rows), (PLAIN, _hub_rows)):
        for path in list(weight_files(directory, suffix, variant, named))[:1]:
            for row in rows(path):
                dtype = dtypes.torch_dtype(row)
                if dtype.is_floating_point and dtype.itemsize > 1:
                    return dtype
    return None


def _wcodec_rows(path: Place) -> Iterator[DType]:
    with File(path) as f:
        yield from (t.dtype for t in sorted(f.index.tensors, key=lambda t: t.name))


def _hub_rows(path: Place) -> Iterator[DType]:
    source, decoder = open_source(path), Decoder()
    for t in sorted(read_safetensors_header(source).tensors, key=lambda t: t.name):
        if looks_like_stream(t, source):
            stream = PartSource(source, t.start, t.nbytes)
            yield from (r.dtype for r in decoder.read_index(stream).tensors)
        else:
            yield t.dtype
