"""Products with weights in fused mode where kernels read them, against dense ones and float64: for
a GPU and for the emulator.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (as everyone calls it)

from wcodec.backends import load_backend
from wcodec.errors import BackendUnavailable
from wcodec.reference.operands import operand_form
from wcodec.torch import CompressedTensor
from wcodec.torch.resident import products

NARROW = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)

#: dtype of the weight, form, dtype of x: all that kernels are made for.
KINDS = [(torch.bfloat16, form, torch.bfloat16) for form in ("fixed", "rans")]
KINDS += [
    (dtype, form, x)
    for dtype in NARROW
    for form, x in (("fixed", torch.bfloat16), ("rans", torch.float16))
]


def need_gpu() -> None:
    """Skip a test where neither PyTorch nor the backend finds a GPU, with the reason."""
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch finds no GPU")
    try:
        load_backend("cuda")
    except BackendUnavailable as e:
        pytest.skip(str(e))


def weight(*shape: int, dtype: torch.dtype = torch.bfloat16, device: Any = "cpu") -> torch.Tensor:
    """Gaussian, of a size that the dtype makes something of."""
    dense = torch.randn(*shape, device=device) * 0.02
    return (dense * 1000).to(dtype) if dtype == torch.int8 else dense.to(dtype)


def form_of(w: CompressedTensor) -> str | None:
    """Of the stream of a weight."""
    return operand_form(w.held.record())


def operate(
    x: torch.Tensor,
    w: CompressedTensor,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """The operator, given a weight."""
    return torch.ops.wcodec.linear(x, w, list(w.shape), w.dtype, bias, scale)  # type: ignore[no-any-return]


def error(got: torch.Tensor, due: torch.Tensor) -> float:
    """Relative, of the whole result, against float64."""
    return float((got.double() - due).norm() / due.norm())


def check_product(
    w: CompressedTensor,
    dense: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> None:
    """A product is as exact as PyTorch's with the dense weight,
    and the same when it is taken again.
    """
    wide = dense.double() if scale is None else dense.double() * scale.double()[:, None]
    due = F.linear(x.double(), wide, None if bias is None else bias.double())
    usual = F.linear(x, products.dequantised(dense, scale, x.dtype), bias)
    got = operate(x, w, bias, scale)
    assert (got.dtype, got.shape, got.device) == (x.dtype, due.shape, x.device)
    assert error(got, due) <= 1.5 * error(usual, due)
    assert torch.equal(operate(x, w, bias, scale), got)


def check_gradients(
    w: CompressedTensor, dense: torch.Tensor, x: torch.Tensor, scale: torch.Tensor | None = None
) -> None:
    """Gradients to x, to a bias and to a scale are those of the dense product, up to rounding."""
    found = []
    for exact in (False, True):
        own = [
            None if t is None else t.detach().clone().requires_grad_()
            for t in (x, torch.ones_like(dense[:, 0], dtype=x.dtype), scale)
        ]
        if exact:
            doubles = [None if t is None else t.double() for t in own]
            matrix = dense.double() if doubles[2] is None else dense.double() * doubles[2][:, None]
            y = F.linear(doubles[0], matrix, doubles[1])
        else:
            y = operate(own[0], w, own[1], own[2])
        y.double().square().sum().backward()
        found.append([t.grad.double() for t in own if t is not None])
    for got, due in zip(*found, strict=True):
        assert error(got, due) < 0.02


def damaged(w: CompressedTensor) -> CompressedTensor:
    """The same weight with a bit of its payload flipped."""
    stream = w.stream.clone()
    stream[200] ^= 8
    return CompressedTensor.from_stream(stream, "layers.0.weight", mode="fused")


class Net(torch.nn.Module):
    """An embedding, some layers, and a tied head."""

    def __init__(self, width: int, vocabulary: int, depth: int) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(vocabulary, width)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(depth))
        self.head = torch.nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight
        self.to(torch.bfloat16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = x + torch.nn.functional.gelu(layer(x))
        return self.head(x)
