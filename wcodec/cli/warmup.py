"""`wcodec warmup`: compile ahead of time what would keep the first call waiting,
for containers and CI.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from wcodec.backends import Backend
from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder
from wcodec.codec.sources import BufferSource
from wcodec.errors import BackendUnavailable
from wcodec.planner.options import PRESETS, EncodeOptions
from wcodec.reference.planes import DType

#: Of what is encoded and decoded: rows that are whole lines of cache; ends that no vector fills, in
#: more than one segment; scales of rows.
_SHAPES = (256, 1024), (520, 1100), (300, 1)


class Step(NamedTuple):
    """A part of the work that is done.

    Attributes
    ----------
    what
        A dtype, or a source of kernels and its architecture.
    seconds
        Wall time.
    """

    what: str
    seconds: float


def warm_up(
    backend: Backend, dtypes: Iterable[DType], presets: Iterable[str] = PRESETS
) -> Iterator[Step]:
    """Encode and decode a small matrix of each dtype with each preset:
    what that compiles is kept on disk.

    Raises
    ------
    BackendUnavailable
    """
    rng = np.random.default_rng(0)
    # of different scale, as in models
    all_rows = [
        rng.standard_normal(shape) * 0.02 * np.exp(rng.standard_normal((shape[0], 1)))
        for shape in _SHAPES
    ]
    presets = list(presets)
    for dtype in dtypes:
        start = time.perf_counter()
        for rows, preset in product(all_rows, presets):
            array = (
                np.clip(np.round(rows * 400), 0, 127).astype(dtype.numpy)
                if dtype.numpy.kind in "iub"
                else rows.astype(dtype.numpy)
            )
            data = Encoder(EncodeOptions(preset=preset), backend).encode(array)
            source, decoder = BufferSource(data), Decoder(backend)
            index = decoder.read_index(source)
            decoder.tensor(source, index.tensors[0], index.tables, np.empty_like(array))
        yield Step(dtype.name, time.perf_counter() - start)


def warm_up_cuda(arch: int | None = None) -> Iterator[Step]:
    """Compile all CUDA kernels for an architecture, in threads.
    That needs no GPU, if the architecture is named.

    Parameters
    ----------
    arch
        Compute capability without the point, such as 90; ``None`` for that of the GPU.

    Raises
    ------
    BackendUnavailable
        CuPy or NVRTC is missing; there is no GPU and no architecture was named;
        NVRTC does not know the architecture.
    """
    from wcodec.backends.cuda import cubins
    from wcodec.backends.cuda.runtime import SOURCES

    if arch is None:
        from wcodec.backends.cuda.cupy_runtime import CupyRuntime

        try:
            arch = CupyRuntime().capability()
        except BackendUnavailable as e:
            raise BackendUnavailable(
                f"{e}; to compile for one that is elsewhere, name it: --arch 90"
            ) from e
    arch = cubins.architecture_for(arch)
    for done in cubins.compile_all(SOURCES, arch):
        yield Step(
            f"{done.source} for sm_{arch}" + ("" if done.is_new else ", which was there"),
            done.seconds,
        )
