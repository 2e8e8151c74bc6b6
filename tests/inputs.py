"""Inputs that several tests use: arrays of every dtype, and safetensors files made by hand."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wcodec.reference.planes import BY_NAME as BY_NAME
from wcodec.reference.planes import DTYPES, DType

#: Rows of the registry that arrays can have.
ARRAY_DTYPES: tuple[DType, ...] = DTYPES[1:]
KINDS = ("uniform", "gaussian", "constant", "ramp", "few", "outliers")


def bits(array: NDArray[Any]) -> bytes:
    """The bytes of an array, to compare NaNs and signed zeros too."""
    return np.ascontiguousarray(array).tobytes()


def make_array(
    dtype: DType, shape: tuple[int, ...], kind: str = "uniform", seed: int = 0
) -> NDArray[Any]:
    """An array of bit patterns of a kind: random ones, Gaussian values, one value, ramps, few
    values, constant but for outliers.
    """
    rng = np.random.default_rng(seed)
    n, t = int(np.prod(shape, dtype=np.int64)) * dtype.words_per_element, dtype.word_type
    top = 256**dtype.word_nbytes - 1
    uniform = rng.integers(0, top, n, np.uint64, endpoint=True).astype(t)
    if kind == "gaussian":
        words = gaussian_words(rng, dtype, n)
    elif kind == "constant":
        words = np.full(n, rng.integers(0, top, None, np.uint64, endpoint=True), np.uint64).astype(
            t
        )
    elif kind == "ramp":
        step, every = rng.integers(0, 5), rng.choice([1, 1, 4])
        # one that starts at its step has one residual everywhere
        start = step if rng.random() < 0.5 else rng.integers(0, 300)
        words = np.arange(n) // every * step + start
    elif kind == "few":
        words = rng.choice(uniform[:3], n) if n else uniform
    elif kind == "outliers":
        words = np.where(rng.random(n) < 0.01, uniform, t.type(uniform[0] if n else 0))
    else:
        words = uniform
    array = words.astype(t).view(np.uint8)
    if dtype.name == "bool":
        array = array & np.uint8(1)  # other bytes are no NumPy booleans
    return array.view(dtype.numpy).reshape(shape)


def gaussian_words(rng: np.random.Generator, dtype: DType, n: int) -> NDArray[Any]:
    """Words of Gaussian values as weights have them."""
    values = rng.standard_normal(n)
    with np.errstate(all="ignore"):
        if dtype.numpy.kind in "iub":
            return np.rint(values * 20).astype(np.int64).astype(dtype.word_type)
        scalar = dtype.numpy if dtype.words_per_element == 1 else np.dtype(f"<f{dtype.word_nbytes}")
        return (values * 0.02).astype(scalar).view(dtype.word_type)


def safetensors_bytes(
    tensors: list[tuple[str, str, list[int], bytes]],
    metadata: dict[str, str] | None = None,
    padding: int = 0,
    order: list[int] | None = None,
) -> bytes:
    """A safetensors file made by hand.

    Parameters
    ----------
    tensors
        Name, dtype, shape and bytes, in the order of their bytes.
    padding
        Spaces after the header's JSON.
    order
        Order in which the header names the tensors; by default that of their bytes.
    """
    entries, at = list[tuple[str, Any]](), 0
    for name, dtype, shape, data in tensors:
        entries.append(
            (name, {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]})
        )
        at += len(data)
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    header.update(entries[i] for i in order or range(len(entries)))
    raw = json.dumps(header).encode() + b" " * padding
    return struct.pack("<Q", len(raw)) + raw + b"".join(data for *_, data in tensors)
