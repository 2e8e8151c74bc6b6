"""A checkpoint for tests of files at URLs: what it holds, and its files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file as save_plain

from wcodec.files.checkpoint import encode_file

BF16 = ml_dtypes.bfloat16


class Checkpoint(NamedTuple):
    """A checkpoint.

    Attributes
    ----------
    arrays
        Its tensors.
    plain, coded
        The bytes of the safetensors file and of the ``.wcodec`` file.
    folder
        Has both, as ``m.safetensors`` and ``m.wcodec``.
    """

    arrays: dict[str, NDArray[Any]]
    plain: bytes
    coded: bytes
    folder: Path


def gaussian(seed: int, *shape: int) -> NDArray[Any]:
    """Weights in bfloat16."""
    rng = np.random.default_rng(seed)
    weights: NDArray[Any] = (rng.standard_normal(shape, np.float32) * 0.02).astype(BF16)
    return weights


def make_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint with a large tensor, one twice, many small ones, and one of no elements."""
    rng, arrays = np.random.default_rng(5), dict[str, NDArray[Any]]()
    arrays["embed"] = gaussian(1, 2048, 1024)
    for i in range(40):
        arrays[f"{i}.norm"] = gaussian(100 + i, 256)
    arrays["w"] = rng.standard_normal((512, 640), np.float32)
    arrays["v"] = gaussian(2, 512, 768)
    arrays["none"] = np.empty((0, 3), np.float16)
    arrays["w.again"] = arrays["w"].copy()
    arrays["ids"] = np.arange(40000, dtype=np.int64).reshape(200, 200)
    save_plain(arrays, folder / "m.safetensors", {"format": "pt"})
    encode_file(folder / "m.safetensors", folder / "m.wcodec", fsync=False)
    plain, coded = ((folder / f"m.{s}").read_bytes() for s in ("safetensors", "wcodec"))
    return Checkpoint(arrays, plain, coded, folder)


def sha256(data: Any) -> str:
    """SHA-256 of a file, by its path or URL, or of bytes."""
    return hashlib.sha256(data if isinstance(data, bytes) else got(str(data))).hexdigest()


def got(url: str) -> bytes:
    """The bytes of a file, read without wcodec."""
    fs, path = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    data: bytes = fs.cat_file(path)
    return data


def put(url: str, data: bytes) -> str:
    """A file, written without wcodec: its URL."""
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(path, data)
    fs.invalidate_cache()
    return url


def names(url: str) -> list[str]:
    """All files under a URL."""
    fs, path = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return [p.rpartition("/")[2] for p in fs.find(path)]


def assert_same(found: Any, arrays: dict[str, NDArray[Any]]) -> None:
    """Whether tensors by name are those of a checkpoint, bit for bit."""
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name
