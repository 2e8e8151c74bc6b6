"""Fused mode on a GPU: ``make gpu-check`` runs it; ``WCODEC_GPU_TESTS=emulated``, on the emulator,
but for what only a GPU has.
"""

from __future__ import annotations

import copy
import gc
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (as everyone calls it)
from cuda_emulator import EmulatedRuntime
from torch_fused_cases import (
    KINDS,
    NARROW,
    Net,
    check_gradients,
    check_product,
    damaged,
    form_of,
    need_gpu,
    operate,
    weight,
)

from wcodec import EncodeOptions
from wcodec.errors import DecodeError
from wcodec.torch import (
    CompressedTensor,
    WCodecLinear,
    compress_model,
    load_compressed,
    model_memory,
    save_file,
)
from wcodec.torch.resident import device, operands, scratch

pytestmark = pytest.mark.gpu

EMULATED = os.environ.get("WCODEC_GPU_TESTS") == "emulated"
GPU = torch.device("cpu") if EMULATED else torch.device("cuda", 0)
SHAPES = (
    [(33, 200), (70, 1100)]
    if EMULATED
    else [(1024, 4096), (4096, 1000), (777, 2049), (48, 16384), (14336, 512)]
)
BATCHES = [1, 9, 64, 65] if EMULATED else [1, 2, 5, 8, 9, 16, 17, 33, 63, 64, 65, 300]
needs_cuda = pytest.mark.skipif(
    EMULATED, reason="the emulator has neither graphs, nor streams, nor memory of its own"
)


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.manual_seed(1)
    if EMULATED:
        runtime = EmulatedRuntime()
        monkeypatch.setattr(operands, "on_gpu", lambda _: True)
        monkeypatch.setattr(device, "runtime_of", lambda _: runtime)
        yield
        return
    need_gpu()
    yield
    scratch.release_scratch()


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return weight(*shape, dtype=dtype, device=GPU)


def fused(dense: torch.Tensor, operand: str | None = None) -> CompressedTensor:
    w = CompressedTensor.from_dense(dense, name="w", mode="fused", operand=operand)
    assert w.held.operand() is not None
    return w


def small_net() -> Net:
    return Net(256, 300, 2) if EMULATED else Net(2048, 5000, 4).to(GPU)


def ids() -> torch.Tensor:
    return torch.tensor([[3, 299, 0]], device=GPU)


# ---- products ------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_as_exact_as_dense(kind: tuple[torch.dtype, str, torch.dtype]) -> None:
    dtype, form, of_x = kind
    for shape in SHAPES:
        dense = random(*shape, dtype=dtype)
        w, bias = fused(dense, form), random(shape[0], dtype=of_x)
        for m in BATCHES:
            check_product(w, dense, random(m, shape[1], dtype=of_x), bias if m % 2 else None)
        assert torch.equal(w.decode().view(torch.uint8), dense.view(torch.uint8))


@pytest.mark.parametrize("dtype", NARROW)
def test_scales(dtype: torch.dtype) -> None:
    """Weights of a byte, activations of two, a scale for each row."""
    n, k = SHAPES[-1]
    dense, scale = random(n, k, dtype=dtype), torch.rand(n, device=GPU) + 0.5
    for form, of_x in (("fixed", torch.bfloat16), ("rans", torch.float16)):
        layer = WCodecLinear.from_quantized(
            dense, scale, random(n, dtype=of_x), options=EncodeOptions(operand=form)
        )
        for m in BATCHES:
            x = random(m, k, dtype=of_x)
            check_product(layer.weight, dense, x, layer.bias, scale)
            assert torch.equal(layer(x), operate(x, layer.weight, layer.bias, scale))


def test_not_finite() -> None:
    n, k = SHAPES[0]
    dense, x = random(n, k), random(9, k)
    dense[3, 5] = float("inf")
    dense[20, 64] = float("nan")
    dense[22, 7] = float("inf")
    dense[22, 9] = -float("inf")
    dense[30, 11], dense[31, 11], dense[32, 11] = 1e30, -1e30, 0
    x[4, 11], x[6, 100] = float("inf"), float("nan")
    got, due = F.linear(x, fused(dense)), F.linear(x, dense)
    assert due.isnan().any()
    assert due.isinf().any()
    assert torch.equal(got.isnan(), due.isnan())
    assert torch.equal(got.isinf(), due.isinf())
    assert torch.equal(got[due.isinf()], due[due.isinf()])
    for dtype, bits in ((torch.float8_e4m3fn, 0x7F), (torch.float8_e5m2, 0xFC)):
        narrow = random(n, k, dtype=dtype)
        narrow.view(torch.uint8)[n - 1, k - 1] = bits
        got, due = operate(random(2, k).abs(), fused(narrow)), narrow.to(torch.bfloat16)
        assert torch.equal(got.isfinite().all(0), due.isfinite().all(1))


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[1], KINDS[3]], ids=str)
def test_gradients(kind: tuple[torch.dtype, str, torch.dtype]) -> None:
    dtype, form, of_x = kind
    n, k = SHAPES[0]
    dense = random(n, k, dtype=dtype)
    w = fused(dense, form)
    scale = None if dtype == torch.bfloat16 else torch.rand(n, device=GPU) / 50 + 0.01
    for m in (3, 65):
        check_gradients(w, dense, random(2, m, k, dtype=of_x), scale)


@pytest.mark.filterwarnings("ignore")
def test_opcheck() -> None:
    n, k = SHAPES[0]
    w, x, bias = fused(random(n, k)), random(3, k).requires_grad_(), random(n).requires_grad_()
    torch.library.opcheck(torch.ops.wcodec.linear.default, (x, w.stream, [n, k], w.dtype, bias))
    torch.library.opcheck(
        torch.ops.wcodec.linear_grad_input.default,
        (random(3, n).requires_grad_(), w.stream, [n, k], w.dtype),
    )
    w, scale = fused(random(n, k, dtype=torch.int8)), torch.rand(n, device=GPU, requires_grad=True)
    torch.library.opcheck(
        torch.ops.wcodec.linear.default, (x, w.stream, [n, k], w.dtype, bias, scale)
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "how",
    [{"backend": "aot_eager"}, pytest.param({"mode": "reduce-overhead"}, marks=needs_cuda)],
    ids=str,
)
def test_compiled(how: dict[str, str]) -> None:
    """Graphs too: weights that nobody has used yet are decoded, and checked, before one is
    captured. (The backend "cudagraphs" would copy streams, as it does all that it gets, and what is
    new would be opened while a graph is captured.)
    """
    net = small_net()
    layers = torch.nn.Sequential(*compress_model(copy.deepcopy(net), mode="fused").layers)
    torch._dynamo.reset()
    compiled = torch.compile(layers, fullgraph=True, dynamic=False, **how)
    with torch.no_grad():
        for m in (1, 3, 80):
            x = random(m, net.head.in_features)
            for _ in range(3):
                torch.testing.assert_close(compiled(x).clone(), layers(x), rtol=0.02, atol=0.002)
    torch._dynamo.reset()


# ---- graphs, streams, memory ---------------------------------------------------------------------
@needs_cuda
@pytest.mark.parametrize("form", ["fixed", "rans"])
@pytest.mark.parametrize("m", [1, 8, 64, 100])
def test_graphs(form: str, m: int) -> None:
    """Captured and replayed with other x: kernels up to the crossover;
    above it, decoding into memory of the graph.
    """
    model = torch.nn.Sequential(
        torch.nn.Linear(2048, 1024), torch.nn.Linear(1024, 2048, bias=False)
    ).to(GPU, torch.bfloat16)
    small, x = compress_model(model, mode="fused", operand=form), random(m, 2048)
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                small(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = small(x)
        for _ in range(3):
            x.copy_(random(m, 2048))
            y.fill_(77)
            graph.replay()
            torch.testing.assert_close(
                y, small(x), rtol=0.02 if m > 64 else 0, atol=1e-3 if m > 64 else 0
            )
    assert [form_of(layer.weight) for layer in small] == [form] * 2


@needs_cuda
def test_two_streams() -> None:
    """One may use what another has made ready,
    and kernels of many products are queued before any has run.
    """
    dense, xs = random(4096, 4096), [random(3, 4096) for _ in range(20)]
    ready = fused(dense, "rans")
    due = [F.linear(x, ready) for x in xs]
    w = CompressedTensor.from_dense(dense, mode="fused", operand="rans")
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    found = list[torch.Tensor]()
    for i, x in enumerate(xs):
        with torch.cuda.stream(streams[i % 2]):
            found.append(F.linear(x, w))
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, due, strict=True))


@needs_cuda
@pytest.mark.parametrize(("form", "most"), [("fixed", 0.76), ("rans", 0.68)])
def test_memory(form: str, most: float) -> None:
    """Of a model of 0.4 GB: what is held, and for a while a buffer of one weight.
    Products take no more.
    """
    gc.collect()
    scratch.release_scratch()
    start, x = torch.cuda.memory_allocated(), random(4, 4096)
    model = torch.nn.Sequential(*[torch.nn.Linear(4096, 4096, bias=False) for _ in range(12)]).to(
        GPU, torch.bfloat16
    )
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.02)
        compress_model(model, mode="fused", operand=form)
        model(x)
    held = model_memory(model)
    assert held.held <= most * held.dense
    gc.collect()
    scratch.release_scratch()
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.memory_allocated() - start < held.held + (8 << 20)
    with torch.no_grad():
        for _ in range(3):
            model(x)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - start < held.held + (24 << 20), (
        "activations, and sums of parts"
    )


# ---- weights on their way ------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["fixed", "rans"])
def test_models(form: str, tmp_path: Path) -> None:
    net = small_net()
    save_file(net.state_dict(), tmp_path / "plain.wcodec")
    save_file(net.state_dict(), tmp_path / "operands.wcodec", options=EncodeOptions(operand=form))
    asked = {"mode": "fused", "operand": None if form == "fixed" else form}
    small = [compress_model(copy.deepcopy(net), **asked)]
    for name in ("plain", "operands"):
        small.append(copy.deepcopy(net))
        load_compressed(small[-1], tmp_path / f"{name}.wcodec", device=GPU, **asked)
    small.append(compress_model(copy.deepcopy(net).cpu(), **asked).to(GPU))
    file = io.BytesIO()
    torch.save(small[0].state_dict(), file)
    file.seek(0)
    small.append(copy.deepcopy(net))
    small[-1].load_state_dict(torch.load(file, map_location=GPU), assign=True)
    small.append(copy.deepcopy(small[0]))
    for model in small:
        memory = model_memory(model)
        assert memory.held <= (0.77 if form == "fixed" else 0.72) * memory.dense
        for w in (model.head.weight, model.layers[0].weight):
            assert form_of(w) == form
            assert w.device == GPU
        assert torch.equal(model.layers[0].weight.decode(), net.layers[0].weight)
        assert torch.equal(model(ids()), small[0](ids()))
    torch.testing.assert_close(small[0](ids()), net(ids()), rtol=0.05, atol=0.05)


def test_damage_and_another_content() -> None:
    dense = random(*SHAPES[0])
    w, x = fused(dense), random(2, SHAPES[0][1])
    other = damaged(w)
    for use in two_uses(other, x):
        with pytest.raises(DecodeError, match=r"bad_checksum.*'layers.0.weight'"):
            use()
    w.mul_(2)
    assert form_of(w) == "fixed"
    check_product(w, dense * 2, x)


def two_uses(w: CompressedTensor, x: torch.Tensor) -> list[Callable[[], object]]:
    return [lambda: F.linear(x, w), lambda: w.held.operand()] * 2
