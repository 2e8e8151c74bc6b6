"""Weights with a scale for each row: the operator, its gradients,
and layers of quantised weights.
"""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (as everyone calls it)
from sampling import exhaustive, sampled
from test_torch_compressed import _one_thread  # noqa: F401 (a fixture)
from test_torch_linear import DTYPES, SHAPES, _tiles, error, fused, never_whole, weight  # noqa: F401 (a fixture)

from wcodec.errors import DecodeError, EncodeError
from wcodec.torch import (
    CompressedTensor,
    WCodecLinear,
    decompress_model,
    load_compressed,
    save_file,
)
from wcodec.torch.resident import held as held_module
from wcodec.torch.resident import products as products_module

NARROW = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
MODES = ("fused", "resident")
#: results in float32, or in a dimension of the weight: luck may make their roundings small, and
#: medians are compared
FEW = 64


def quantised(n: int, k: int, dtype: torch.dtype = torch.int8) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and its scale: rows differ in size, as those of models do."""
    dense = torch.randn(n, k) * torch.logspace(-0.5, 0.5, n)[:, None]
    most = 127 if dtype == torch.int8 else torch.finfo(dtype).max
    scale = dense.abs().amax(1) / most
    values = dense / scale[:, None]
    return (values.round() if dtype == torch.int8 else values).to(dtype), scale


def exact(dense: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return dense.double() * scale.double()[:, None]


def plain(dense: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weight as PyTorch would be given it."""
    return (dense.float() * scale[:, None]).to(dtype)


def rest(w: CompressedTensor) -> tuple[torch.Tensor, list[int], torch.dtype]:
    return w.stream, list(w.shape), w.dtype


def linear(x: torch.Tensor, w: CompressedTensor, *more: Any) -> torch.Tensor:
    return torch.ops.wcodec.linear(x, *rest(w), *more)  # type: ignore[no-any-return]


def grad_input(x: torch.Tensor, w: CompressedTensor, *more: Any) -> torch.Tensor:
    return torch.ops.wcodec.linear_grad_input(x, *rest(w), *more)  # type: ignore[no-any-return]


def a_layer(
    mode: str = "fused", dtype: torch.dtype = torch.bfloat16, of: torch.dtype = torch.int8
) -> WCodecLinear:
    return WCodecLinear.from_quantized(*quantised(300, 96, of), weight(300, dtype=dtype), mode)


# ---- exactness -----------------------------------------------------------------------------------
@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize(
    ("narrow", "dtype"),
    sampled(itertools.product(NARROW, [*DTYPES, torch.float64]), always=6),
    ids=str,
)
def test_as_exact_as_dequantised(narrow: torch.dtype, dtype: torch.dtype) -> None:
    ours, theirs = list[float](), list[float]()
    for shape in SHAPES:
        dense, scale = quantised(*shape, narrow)
        w = fused(dense)
        bias = weight(shape[0], dtype=dtype)
        whole = exact(dense, scale)
        wide = plain(dense, scale, dtype)
        for m in (1, 16):
            x, back = torch.randn(m, shape[1]).to(dtype), torch.randn(m, shape[0]).to(dtype)
            cases = [
                (
                    back.double() @ whole,
                    back @ wide,
                    [grad_input(back, w, scale, mode) for mode in MODES],
                )
            ]
            for b in (None, bias):
                due = F.linear(x.double(), whole, None if b is None else b.double())
                cases.append(
                    (
                        due,
                        F.linear(x, wide, b),
                        [linear(x, w, b, scale, mode) for mode in MODES],
                    )
                )
            for due, other, got in cases:
                for y in got:
                    assert (y.dtype, y.shape) == (dtype, due.shape)
                    ours.append(error(y, due))
                    theirs.append(error(other, due))
                    if dtype.itemsize == 2 or (
                        dtype == torch.float32 and min(y.numel(), *shape) >= FEW
                    ):
                        assert ours[-1] <= 1.5 * theirs[-1]
    if dtype == torch.float64:  # where `plain` has the weights of float32
        assert max(ours) < 1e-12
    else:
        assert median(ours) <= 1.5 * median(theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_result_is_rounded_once(dtype: torch.dtype) -> None:
    """Scaled before it is rounded, and biased too: what float32 gives, rounded."""
    dense, scale = quantised(300, 200)
    w, x, bias = fused(dense), torch.randn(8, 200).to(dtype), weight(300, dtype=dtype) * 50
    due = F.linear(x.double(), exact(dense, scale))
    assert (linear(x, w, None, scale) != due.to(dtype)).float().mean() < 0.01, (
        "all but where float32 fell on the other side"
    )
    assert (linear(x, w, bias, scale) != (due + bias.double()).to(dtype)).float().mean() < 0.01
    again = (F.linear(x, dense.to(dtype)).float() * scale).to(dtype)
    assert (again != due.to(dtype)).float().mean() > 0.1, "as it would be, rounded twice"


def test_what_is_large_before_it_is_scaled() -> None:
    dense = torch.full((20, 1024), 127, dtype=torch.int8)
    scale = torch.full((20,), 1e-3)
    x = torch.ones(3, 1024).half()
    assert F.linear(x, dense.half()).isinf().all()
    w = fused(dense)
    for mode in MODES:
        of_scale = scale.clone().requires_grad_()
        y = linear(x, w, None, of_scale, mode)
        torch.testing.assert_close(y, torch.full((3, 20), 130.048).half())
        y.sum().backward()
        assert torch.equal(of_scale.grad, torch.full((20,), 3 * 127.0 * 1024)), (
            "so is what its gradient is made of"
        )


def test_without_a_scale_the_bits_are_those_of_pytorch() -> None:
    for dtype in DTYPES:
        for narrow in NARROW:
            dense = quantised(300, 200, narrow)[0]
            w = fused(dense)
            x = weight(3, 200, dtype=dtype)
            back = weight(3, 300, dtype=dtype)
            bias = weight(300, dtype=dtype)
            for mode in MODES:
                assert torch.equal(
                    linear(x, w, bias, None, mode), F.linear(x, dense.to(dtype), bias)
                ), "a matrix that is one tile"
            assert torch.equal(
                grad_input(back, w, None, "resident"), F.linear(back, dense.to(dtype).t())
            )


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_float_types(dtype: torch.dtype) -> None:
    """Scales are not of quantised weights alone, and what is decoded stays as it was."""
    dense, scale = weight(300, 200, dtype=dtype), torch.rand(300) + 0.5
    w, x = fused(dense), weight(3, 200, dtype=dtype)
    due, other = F.linear(x.double(), exact(dense, scale)), F.linear(x, plain(dense, scale, dtype))
    for mode in (*MODES, "resident"):
        assert error(linear(x, w, None, scale, mode), due) <= 1.5 * error(other, due)


def test_nan_and_infinity() -> None:
    dense, scale = quantised(64, 96, torch.float8_e5m2)
    dense[3, 5], dense[9, 7] = float("nan"), float("inf")
    scale[20], scale[40] = float("nan"), 0
    w, x = fused(dense), torch.randn(4, 96)
    x[1, 2] = float("inf")
    due = F.linear(x, plain(dense, scale, torch.float32))
    assert linear(x, w, None, scale)[0, [3, 20]].isnan().all()
    for mode in MODES:
        torch.testing.assert_close(linear(x, w, None, scale, mode), due, equal_nan=True)


def test_dimensions_before_and_empty_ones() -> None:
    dense, scale = quantised(300, 96)
    w, bias = fused(dense), weight(300)
    for before in ((), (2, 1, 3), (0,), (2, 0)):
        for mode in MODES:
            assert linear(weight(*before, 96), w, bias, scale, mode).shape == (*before, 300)
            assert grad_input(weight(*before, 300), w, scale, mode).shape == (*before, 96)
    for shape in ((0, 5), (5, 0), (0, 0)):
        empty, some = fused(torch.zeros(shape, dtype=torch.int8)), torch.full(shape[:1], 2.0)
        x, back, b = torch.randn(3, shape[1]), torch.randn(3, shape[0]), torch.randn(shape[0])
        for mode in MODES:
            assert torch.equal(linear(x, empty, None, some, mode), torch.zeros(3, shape[0]))
            assert torch.equal(linear(x, empty, b, some, mode), b.expand(3, -1))
            assert torch.equal(grad_input(back, empty, some, mode), torch.zeros(3, shape[1]))


def test_what_does_not_fit() -> None:
    dense, scale = quantised(64, 96)
    w, x, back = fused(dense), weight(3, 96), weight(3, 64)
    for wrong, message in (
        (
            lambda: linear(x, w, None, scale[:-1]),
            r"the scale is torch\.float32 of \(63,\), not torch\.float32 of \(64,\)",
        ),
        (lambda: linear(x, w, None, scale[:, None]), "the scale is"),
        (lambda: linear(x, w, None, scale[0]), "the scale is"),
        (lambda: linear(x, w, None, scale.bfloat16()), r"the scale is torch\.bfloat16"),
        (lambda: linear(x.float(), w, None, scale.double()), r"the scale is torch\.float64"),
        (
            lambda: linear(x, w, None, scale.to("meta")),
            "the scale is on meta, the activations on cpu",
        ),
        (lambda: linear(x, w, weight(64).to("meta"), scale), "the bias is on meta"),
        (lambda: linear(x.to("meta"), w), "the weight is on cpu, the activations on meta"),
        (lambda: grad_input(back, w, torch.ones(96)), "the scale is"),
        (lambda: grad_input(back, w, scale.half()), "the scale is"),
        (
            lambda: torch.ops.wcodec.linear(x, w, [96, 64], w.dtype),
            "cannot be multiplied|the weight is a",
        ),
        (lambda: torch.ops.wcodec.linear(x, w.t(), [64, 96], w.dtype), "transposed"),
        (
            lambda: torch.ops.wcodec.linear_grad_input(back, w, [64, 96], torch.float8_e5m2),
            "the weight is a",
        ),
    ):
        with pytest.raises(RuntimeError, match=message):
            wrong()


# ---- gradients -----------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore")
def test_opcheck() -> None:
    dense, scale = quantised(64, 96)
    w, scale, bias = fused(dense), scale.requires_grad_(), torch.randn(64, requires_grad=True)
    x, back = torch.randn(2, 3, 96, requires_grad=True), torch.randn(5, 64, requires_grad=True)
    for more in ((bias, scale), (None, scale, "resident"), (None, scale.detach())):
        torch.library.opcheck(torch.ops.wcodec.linear.default, (x, *rest(w), *more))
    for more in ((scale,), (scale.detach(), "resident")):
        torch.library.opcheck(torch.ops.wcodec.linear_grad_input.default, (back, *rest(w), *more))


@pytest.mark.parametrize("mode", ["fused", exhaustive("resident")])
def test_gradcheck(mode: str) -> None:
    dense, scale = quantised(8, 6)
    w, scale = fused(dense), (scale.double() * 50).requires_grad_()
    x = torch.randn(2, 2, 6).double().requires_grad_()
    back = torch.randn(3, 8).double().requires_grad_()
    bias = torch.randn(8).double().requires_grad_()
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x, b, s: linear(x, w, b, s, mode), (x, bias, scale))
        assert check(lambda x, s: linear(x, w, None, s, mode), (x, scale))
        assert check(lambda g, s: grad_input(g, w, s, mode), (back, scale))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_layers(dtype: torch.dtype, mode: str) -> None:
    layer, found = a_layer(mode, dtype), []
    dense = layer.weight.decode()
    assert layer.weight_scale is not None
    for scale in (
        layer.weight_scale.requires_grad_(),
        layer.weight_scale.detach().clone().requires_grad_(),
    ):
        torch.manual_seed(3)
        x = (torch.randn(2, 5, 96) * 3).to(dtype).requires_grad_()
        bias = layer.bias.detach().clone().requires_grad_()
        layer.bias = torch.nn.Parameter(bias) if scale is layer.weight_scale else layer.bias
        y = (
            layer(x)
            if scale is layer.weight_scale
            else F.linear(x.double(), dense.double() * scale.double()[:, None], bias.double())
        )
        y.double().square().sum().backward()
        found.append(
            (x.grad, layer.bias.grad if scale is layer.weight_scale else bias.grad, scale.grad)
        )
    for got, due in zip(*found, strict=True):
        assert (got.dtype, got.shape) == (due.dtype, due.shape)
        assert error(got, due.double()) < (2e-2 if dtype == torch.bfloat16 else 2e-3)
    assert found[0][2].dtype == torch.float32


@pytest.mark.parametrize("mode", MODES)
def test_nothing_decoded_is_kept_for_the_backward_pass(mode: str) -> None:
    layer, kept = a_layer(mode), list[torch.Tensor]()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        layer(weight(2, 96).requires_grad_())
    assert any(isinstance(t, CompressedTensor) for t in kept)
    assert sum(t.numel() for t in kept if not isinstance(t, CompressedTensor)) <= 2 * 300


def test_gradients_are_taken_as_the_product_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them tile by tile, or none."""
    dense, scale = quantised(64, 96)
    w, scale = fused(dense), scale.requires_grad_()

    def run(mode: str) -> None:
        x, back = torch.randn(2, 96, requires_grad=True), torch.randn(2, 64, requires_grad=True)
        linear(x, w, None, scale, mode).sum().backward()
        grad_input(back, w, scale, mode).sum().backward()

    with monkeypatch.context() as patch:
        never_whole(patch)
        run("fused")
        with pytest.raises(AssertionError, match="as a whole"):
            run("resident")
    monkeypatch.setattr(
        held_module.Held, "row_tiles", lambda held: pytest.fail("a tile was decoded")
    )
    run("resident")


# ---- layers --------------------------------------------------------------------------------------
@pytest.mark.parametrize("of", NARROW)
@pytest.mark.parametrize("mode", MODES)
def test_layers(mode: str, of: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, scale = quantised(300, 96, of)
    bias, x = weight(300), weight(2, 3, 96) * 50
    due = F.linear(x.double(), exact(dense, scale), bias.double())
    other = F.linear(x, plain(dense, scale, x.dtype), bias)
    layer = WCodecLinear.from_quantized(dense, scale, bias, mode, name="up")
    assert isinstance(layer, torch.nn.Linear)
    found = (layer.mode, layer.in_features, layer.out_features, layer.weight.held.name)
    assert found == (mode, 96, 300, "up")
    assert f"mode={mode}, weight={of} with a scale" in repr(layer)
    assert list(layer.state_dict()) == ["weight", "bias", "weight_scale"]
    assert not any(p.requires_grad for p in layer.parameters())
    assert error(layer(x), due) <= 1.5 * error(other, due)
    other_mode = WCodecLinear.from_linear(layer, "resident" if mode == "fused" else "fused")
    assert other_mode.weight_scale is layer.weight_scale
    assert error(other_mode(x), due) <= 1.5 * error(other, due)
    from_compressed = WCodecLinear.from_quantized(layer.weight, scale, layer.bias, mode)
    assert from_compressed.bias is layer.bias
    assert torch.equal(from_compressed(x), layer(x))
    unbiased = WCodecLinear.from_quantized(dense, scale, None, mode)
    assert "bias=False" in repr(unbiased)
    for dtype in (*DTYPES, torch.float64):
        assert unbiased(x.to(dtype)).dtype == dtype
    if mode == "fused":
        never_whole(monkeypatch)
        assert error(layer(x), due) <= 1.5 * error(other, due)


def test_scales_of_other_shapes() -> None:
    dense, scale = quantised(64, 96)
    x, per_row = weight(3, 96), WCodecLinear.from_quantized(dense, scale)
    assert torch.equal(WCodecLinear.from_quantized(dense, scale[:, None])(x), per_row(x))
    one = WCodecLinear.from_quantized(dense, torch.full((64,), 0.25))(x)
    for scalar in (torch.tensor(0.25), torch.tensor([0.25]), torch.tensor([[0.25]]).half()):
        layer = WCodecLinear.from_quantized(dense, scalar)
        assert layer.weight_scale.shape == (64,)
        assert layer.weight_scale.is_contiguous()
        assert torch.equal(layer(x), one)
    assert torch.equal(
        WCodecLinear.from_quantized(dense, scale.bfloat16()).weight_scale, scale.bfloat16().float()
    )
    scale.zero_()
    assert not torch.equal(per_row.weight_scale, scale), "memory of its own"


def test_what_makes_no_layer() -> None:
    dense, scale = quantised(64, 96)
    for arguments, message in (
        ((dense.float(), scale), "the weight is torch.float32"),
        ((dense[0], scale), "two dimensions"),
        ((dense, scale[:-1]), r"the scale is torch.float32 of \(63,\)"),
        ((dense, scale[None]), "the scale is"),
        ((dense, scale.double()), "the scale is torch.float64"),
        ((dense.numpy(), scale), "the weight is a ndarray, not int8 or float8"),
        ((dense, 2.0), "the scale is a float, not a tensor"),
        ((dense, scale, 0.0), "the bias is a float, not a tensor"),
        ((dense, scale, weight(65)), "the bias is"),
        ((dense, scale, torch.zeros(64, dtype=torch.int8)), "the bias is torch.int8"),
        ((dense, scale, None, "other"), "mode 'other' is none of resident, fused"),
    ):
        with pytest.raises(EncodeError, match=message) as e:
            WCodecLinear.from_quantized(*arguments)
        assert e.value.code == "bad_option"


@pytest.mark.parametrize("of", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("mode", MODES)
def test_copies_and_state(mode: str, of: torch.dtype, tmp_path: Path) -> None:
    layer, x = a_layer(mode, of=of), weight(3, 96)
    y, state = layer(x), layer.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    plain_state = {
        "weight": layer.weight.decode(),
        "weight_scale": layer.weight_scale[:, None],
        "bias": layer.bias,
    }
    save_file(state, tmp_path / "layer.wcodec")
    loads: list[Callable[[WCodecLinear], object]] = [
        lambda other: other.load_state_dict(state),
        lambda other: other.load_state_dict(torch.load(file)),
        lambda other: other.load_state_dict(plain_state),
        lambda other: load_compressed(other, tmp_path / "layer.wcodec", mode=mode),
    ]
    for load in loads:
        other = a_layer(mode, of=of)
        assert not torch.equal(other(x), y)
        load(other)
        assert (other.mode, other.weight.dtype) == (mode, of)
        assert torch.equal(other(x), y)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert (type(again), again.mode) == (WCodecLinear, mode)
        assert torch.equal(again(x), y)
    with pytest.raises(RuntimeError, match="size mismatch for weight_scale"):
        layer.load_state_dict({**plain_state, "weight_scale": torch.ones(7)})
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_scale"):
        layer.load_state_dict({"weight": plain_state["weight"], "bias": layer.bias})
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("of", [torch.int8, torch.float8_e4m3fn])
def test_to(of: torch.dtype) -> None:
    layer = torch.nn.Sequential(a_layer(of=of))
    scale, whole = layer[0].weight_scale.detach().clone(), layer[0].weight.decode()
    layer[0].weight_scale.requires_grad_()
    layer(weight(1, 96)).sum().backward()
    for convert in (
        layer.half,
        layer.double,
        layer.bfloat16,
        lambda: layer.to(torch.float16),
        lambda: layer.to("cpu", torch.float32),
    ):
        convert()
        assert layer[0].mode == "fused"
        assert (
            layer[0].weight.dtype,
            layer[0].weight_scale.dtype,
            layer[0].weight_scale.grad.dtype,
        ) == (of, torch.float32, torch.float32)
        assert torch.equal(layer[0].weight_scale, scale)
        assert torch.equal(layer[0].weight.decode().view(torch.uint8), whole.view(torch.uint8))
        assert layer(torch.zeros(1, 96, dtype=layer[0].bias.dtype)).dtype == layer[0].bias.dtype
    layer.to("meta", torch.bfloat16)
    assert [(p.device.type, p.dtype) for p in layer.parameters()] == [
        ("meta", t) for t in (of, torch.bfloat16, torch.float32)
    ]
    assert layer(torch.zeros(2, 96, dtype=torch.bfloat16, device="meta")).shape == (2, 300)
    assert WCodecLinear.from_linear(torch.nn.Linear(96, 64)).half().weight.dtype == torch.float16, (
        "without a scale, as ever"
    )


def test_weights_that_are_dense_again() -> None:
    layer, x = a_layer("resident"), weight(3, 96)
    y = layer(x)
    for other in (copy.deepcopy(layer), decompress_model(copy.deepcopy(layer))):
        state = {
            "weight": layer.weight.decode(),
            "weight_scale": layer.weight_scale[:, None].detach(),
            "bias": layer.bias.detach(),
        }
        other.load_state_dict(state, assign=True)
        assert other.mode == "decoded"
        assert other.weight_scale.shape == (300,)
        assert torch.equal(other(x), y)


def test_autocast() -> None:
    layer, x = a_layer(dtype=torch.float32), torch.randn(3, 96)
    half = WCodecLinear.from_quantized(layer.weight, layer.weight_scale, layer.bias.bfloat16())
    due = half(x.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), due)
        assert (
            WCodecLinear.from_quantized(layer.weight, layer.weight_scale)(x.double()).dtype
            == torch.float64
        )
    assert layer(x).dtype == torch.float32


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", [exhaustive("eager"), "aot_eager"])
@pytest.mark.parametrize("mode", MODES)
def test_compiled(mode: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(
        a_layer(mode, torch.float32),
        torch.nn.GELU(),
        WCodecLinear.from_quantized(*quantised(64, 300), None, mode),
    )
    model[0].weight_scale.requires_grad_()
    if mode == "fused":
        never_whole(monkeypatch)
    torch._dynamo.reset()
    compiled, found = torch.compile(model, backend=backend, fullgraph=True), []
    for call in (compiled, model):
        model.zero_grad()
        x = torch.linspace(-1, 1, 2 * 3 * 96).reshape(2, 3, 96).requires_grad_()
        y = call(x)
        y.square().sum().backward()
        found.append((y.detach(), x.grad, model[0].weight_scale.grad))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0], found[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(x), model(x))
    torch._dynamo.reset()


@pytest.mark.parametrize("mode", MODES)
def test_damage_is_an_error_with_the_name(mode: str) -> None:
    layer = a_layer(mode)
    damaged = layer.weight.stream.clone()
    damaged[100] ^= 4
    broken = CompressedTensor.from_stream(damaged, "layers.0.weight")
    with pytest.raises(DecodeError, match=r"bad_checksum.*'layers.0.weight'"):
        WCodecLinear.from_quantized(broken, layer.weight_scale, mode=mode)(weight(1, 96))


def test_where_weights_are_decoded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU; rows are dequantised some at a time."""
    dense, scale = quantised(300, 96)
    x, back, bias, w = weight(5, 96), weight(5, 300), weight(300), fused(dense)
    monkeypatch.setattr(products_module, "by_tiles", lambda held: False)
    for at_once in (1, 1000, 1 << 18):
        monkeypatch.setitem(products_module.DEQUANTISED, "cpu", at_once)
        assert torch.equal(
            linear(x, w, bias, scale), F.linear(x, plain(dense, scale, x.dtype), bias)
        )
        assert torch.equal(
            grad_input(back, w, scale), F.linear(back, plain(dense, scale, x.dtype).t())
        )


def test_adapters_train_on_top() -> None:
    peft = pytest.importorskip("peft")
    for mode in MODES:
        torch.manual_seed(5)
        model = torch.nn.Sequential(
            a_layer(mode, torch.float32), torch.nn.GELU(), torch.nn.Linear(300, 4)
        )
        tuned = peft.get_peft_model(
            model, peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)
        )
        optimiser = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
        x, losses = torch.randn(8, 96), []
        for _ in range(4):
            optimiser.zero_grad()
            loss = (tuned(x) - 1).square().mean()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]
