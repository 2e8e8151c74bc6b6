"""All kernels and native functions: what ``tools/kernels.py`` compiles."""

from __future__ import annotations

from itertools import product

from wcodec.backends.numba import backend, kinds, merge, rans_vectors, split, transforms, words
from wcodec.backends.numba.ir import CARRYLESS, GATHERS, STREAMS, VARIANT
from wcodec.backends.numba.kernels import KERNELS, NATIVES, Kernel, Native
from wcodec.reference.planes import WORD_TYPES
from wcodec.reference.transforms import Transform

__all__ = ["backend", "everything"]  # the backend imports all kernels


def everything() -> list[Kernel | Native]:
    """All kernels and native functions of the target that is compiled for."""
    for nbytes in WORD_TYPES:
        words.splitter(nbytes)
        words.merger(nbytes)
    for transform in set(Transform) - {Transform.NONE}:
        for inverse in (False, True):
            transforms.transformer(transform, inverse)
    if VARIANT != "plain":
        for number in range(1, 1 + len(kinds.KINDS)):
            for choice in (False, True):
                split.splitter(number, choice)
            for crc, streaming in product({False, bool(CARRYLESS)}, {False, STREAMS}):
                merge.merger(number, crc, streaming)
        for with_contexts in (False, True):
            for n, gather in product((1, 2), {False, GATHERS}):
                rans_vectors.decoder(n, with_contexts, gather)
            rans_vectors.encoder(1, with_contexts)
        rans_vectors.decoder(rans_vectors.TOGETHER, False, GATHERS)
        rans_vectors.encoder(2)
        rans_vectors.reverser()
        rans_vectors.mapper()
    left_out: tuple[str, ...] = ()
    left_out += ("common_decoding.", "common_encoding.") if VARIANT == "plain" else ()
    left_out += () if CARRYLESS else ("checksums.", "crc32.", "changes._put_lists")
    return [*(k for k in KERNELS.values() if not k.name.startswith(left_out)), *NATIVES.values()]
