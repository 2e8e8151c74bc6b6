"""Products with compressed weights, tile by tile: as exact as dense ones, with gradients, and without the whole matrix in memory."""

from __future__ import annotations

import copy
import gc
import io
import json
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (as everyone calls it)
from test_files import reads_proc

import wcodec
from wcodec.errors import DecodeError, EncodeError
from wcodec.torch import CompressedTensor, WCodecLinear, compress_model, load_compressed, save_file, scratch
from wcodec.torch import held as held_module
from wcodec.torch import tiles as tiles_module

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDE = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}  #: bits of significands

# (rows, columns): the prime and the ragged, 1 in both places, one segment, several bands, several rows of segments
SHAPES = [(1, 1), (1, 300), (300, 1), (17, 33), (33, 17), (33, 1000), (1000, 33), (300, 1000), (1000, 300)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Other tests run beside this one: threads of PyTorch would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1 << 20, 1 << 14], ids=["large tiles", "small tiles"])
def _tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small ones, the matrices here take several."""
    monkeypatch.setattr(tiles_module, "TILE_NBYTES", request.param)


def weight(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.randn(*shape) * 0.02).to(dtype)


def fused(dense: torch.Tensor, options: wcodec.EncodeOptions | None = None) -> CompressedTensor:
    return CompressedTensor.from_dense(dense, options, "w", fused=True)


def operate(x: torch.Tensor, w: CompressedTensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The operator, on the stream."""
    return torch.ops.wcodec.linear(x, w.stream, list(w.shape), w.dtype, bias)  # type: ignore[no-any-return]


def error(got: torch.Tensor, due: torch.Tensor) -> float:
    """Relative, of the whole result, against float64."""
    return float((got.double() - due).norm() / due.norm())


def never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a weight that is decoded as a whole is an error."""

    def refuse(*_: object) -> None:
        raise AssertionError("decoded as a whole")

    monkeypatch.setattr(held_module.Held, "decode_into", refuse)


# ---- exactness -------------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_exact_as_dense(shape: tuple[int, int], dtype: torch.dtype) -> None:
    dense = weight(*shape, dtype=dtype)
    w, bias = fused(dense), weight(shape[0], dtype=dtype)
    half = 0.5**WIDE[dtype]  # what rounding a single number may cost: two that are right may still differ by that
    for m in (1, 2, 7, 16, 64):
        x, back = torch.randn(m, shape[1]).to(dtype), torch.randn(m, shape[0]).to(dtype)
        for b in (None, bias):
            due = F.linear(x.double(), dense.double(), None if b is None else b.double())
            got = operate(x, w, b)
            assert (got.dtype, got.shape) == (dtype, due.shape)
            assert error(got, due) <= 1.5 * max(error(F.linear(x, dense, b), due), half)
        due = back.double() @ dense.double()
        got = torch.ops.wcodec.linear_grad_input(back, w.stream, list(shape), dtype)
        assert error(got, due) <= 1.5 * max(error(back @ dense, due), half)
