"""Products with compressed weights, tile by tile: as exact as dense ones, with gradients, and
without the whole matrix in memory.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (as everyone calls it)
from memory import peak_of, torch_peak_of
from sampling import exhaustive
from test_torch_compressed import _one_thread  # noqa: F401 (a fixture)

import wcodec
from wcodec import EncodeOptions
from wcodec.errors import DecodeError, EncodeError
from wcodec.reference.operands import operand_form
from wcodec.torch import CompressedTensor, WCodecLinear, compress_model, load_compressed, save_file
from wcodec.torch.resident import held as held_module
from wcodec.torch.resident import products as products_module
from wcodec.torch.resident import scratch
from wcodec.torch.resident import tiles as tiles_module

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# (rows, columns): the prime and the ragged, 1 in both places, one segment, several bands,
# several rows of segments
SHAPES = [
    (1, 1),
    (1, 300),
    (300, 1),
    (17, 33),
    (33, 17),
    (33, 1000),
    (1000, 33),
    (300, 1000),
    (1000, 300),
]


@pytest.fixture(params=[1 << 20, 1 << 14], ids=["large tiles", "small tiles"])
def _tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small ones, the matrices here take several."""
    monkeypatch.setattr(tiles_module, "TILE_NBYTES", request.param)


def weight(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.randn(*shape) * 0.02).to(dtype)


def fused(dense: torch.Tensor, options: wcodec.EncodeOptions | None = None) -> CompressedTensor:
    return CompressedTensor.from_dense(dense, options, "w", mode="fused")


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


# ---- exactness -----------------------------------------------------------------------------------
@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_exact_as_dense(shape: tuple[int, int], dtype: torch.dtype) -> None:
    dense = weight(*shape, dtype=dtype)
    w, bias = fused(dense), weight(shape[0], dtype=dtype)
    for m in (1, 2, 7, 16, 64):
        x, back = torch.randn(m, shape[1]).to(dtype), torch.randn(m, shape[0]).to(dtype)
        for b in (None, bias):
            due = F.linear(x.double(), dense.double(), None if b is None else b.double())
            got = operate(x, w, b)
            assert (got.dtype, got.shape) == (dtype, due.shape)
            assert error(got, due) <= 1.5 * error(F.linear(x, dense, b), due)
        due = back.double() @ dense.double()
        got = torch.ops.wcodec.linear_grad_input(back, w.stream, list(shape), dtype)
        assert error(got, due) <= 1.5 * error(back @ dense, due)


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("segment", [(300, 64), (7, 1000), (1, 96), (64, 1), (5, 13)])
def test_geometries(segment: tuple[int, int]) -> None:
    """Segments as other encoders may cut them, of a matrix that is not flattened."""
    dense = weight(300, 1000)
    w, x = fused(dense, wcodec.EncodeOptions(segment=segment)), weight(3, 1000)
    assert torch.equal(F.linear(x, w), operate(x, w))
    assert error(F.linear(x, w), x.double() @ dense.double().t()) <= 1.5 * error(
        F.linear(x, dense), x.double() @ dense.double().t()
    )


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("shape", [(30001, 3), (5000, 7), (100000, 1), (1, 100000)])
def test_segments_that_do_not_end_with_rows(shape: tuple[int, int]) -> None:
    """Matrices of short rows are coded as if they were one row,
    and a long row is decoded in parts.
    """
    dense = weight(*shape, dtype=torch.float32)
    w, x, back = fused(dense), torch.randn(2, shape[1]), torch.randn(2, shape[0])
    assert w.held.record().geometry.rows == 1
    for got, plain, due in (
        (F.linear(x, w), F.linear(x, dense), x.double() @ dense.double().t()),
        (back @ w, back @ dense, back.double() @ dense.double()),
    ):
        assert error(got, due) <= 1.5 * error(plain, due)
    rows = torch.cat([tile.clone() for _, tile in w.held.row_tiles()])
    assert torch.equal(rows, dense)


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("dtype", DTYPES)
def test_outliers_nan_and_infinity(dtype: torch.dtype) -> None:
    dense = weight(300, 1000, dtype=dtype)
    dense[::7, 3], dense[2, 500] = 1000.0, -30000.0  # outside the window of 16 top bytes: patches
    w, x = fused(dense), weight(4, 1000, dtype=dtype)
    assert w.held.record().segments.n_patches.any() or dtype != torch.bfloat16
    due = x.double() @ dense.double().t()
    assert error(F.linear(x, w), due) <= 1.5 * error(F.linear(x, dense), due)
    dense[5, 7] = float("nan")
    dense[150, 9] = float("inf")
    dense[299, 999] = -float("inf")
    dense[0] = 0
    w = fused(dense)
    x[1, 3], x[2, 4], x[3, 9] = float("inf"), float("nan"), 0  # and 0 * inf
    for got, plain in ((F.linear(x, w), F.linear(x, dense)), (x[:, :300] @ w, x[:, :300] @ dense)):
        assert plain.isnan().any()
        assert plain.isinf().any()
        assert torch.equal(got.isnan(), plain.isnan())
        assert torch.equal(got.isinf(), plain.isinf())
        assert torch.equal(got[got.isinf()], plain[plain.isinf()])


def test_dimensions_before_and_empty_ones() -> None:
    dense, bias = weight(300, 96), weight(300)
    w = fused(dense)
    for before in ((), (1,), (2, 3), (2, 1, 3), (0,), (2, 0)):
        x = weight(*before, 96)
        for got in (F.linear(x, w, bias), operate(x, w, bias)):
            assert got.shape == (*before, 300)
            torch.testing.assert_close(got, F.linear(x, dense, bias))
        assert torch.ops.wcodec.linear_grad_input(
            weight(*before, 300), w.stream, [300, 96], w.dtype
        ).shape == (*before, 96)
    for shape in ((0, 5), (5, 0), (0, 0)):
        empty = fused(torch.zeros(shape))
        x, bias = torch.randn(3, shape[1]), torch.randn(shape[0])
        for b in (None, bias):
            assert torch.equal(operate(x, empty, b), F.linear(x, torch.zeros(shape), b))
            assert torch.equal(F.linear(x, empty, b), F.linear(x, torch.zeros(shape), b))
        assert torch.equal(torch.randn(3, shape[0]) @ empty, torch.zeros(3, shape[1]))


@pytest.mark.parametrize("narrow", [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_narrow_weights(narrow: torch.dtype, dtype: torch.dtype) -> None:
    dense = (torch.randn(300, 200) * 20).to(narrow)
    w, x, back = fused(dense), weight(3, 200, dtype=dtype), weight(3, 300, dtype=dtype)
    due, plain = x.double() @ dense.double().t(), F.linear(x, dense.to(dtype))
    assert error(operate(x, w), due) <= 1.5 * error(plain, due)
    due, plain = back.double() @ dense.double(), back @ dense.to(dtype)
    assert error(
        torch.ops.wcodec.linear_grad_input(back, w.stream, [300, 200], narrow), due
    ) <= 1.5 * error(plain, due)
    with pytest.raises(RuntimeError):
        F.linear(x, w)  # as of the dense weight


def test_what_does_not_fit() -> None:
    w, x = fused(weight(64, 96)), weight(3, 96)
    for wrong, message in (
        (lambda: operate(x[:, :-1], w), "cannot be multiplied"),
        (lambda: operate(x.float(), w), r"not multiplied by torch\.float32"),
        (lambda: operate(x, w, weight(3)), "the bias is"),
        (lambda: operate(x, w, torch.zeros(64)), "the bias is"),
        (lambda: torch.ops.wcodec.linear(x, w.stream, [64, 97], w.dtype), "cannot be multiplied"),
        (lambda: torch.ops.wcodec.linear(x, w.stream, [65, 96], w.dtype), "the stream holds"),
        (lambda: torch.ops.wcodec.linear(x, w.stream, [96], w.dtype), "1 dimensions"),
        (
            lambda: torch.ops.wcodec.linear(x.half(), w.stream, [64, 96], torch.float16),
            "the stream holds",
        ),
        (lambda: F.linear(x.float(), w), "dtype"),
        (lambda: F.linear(x[:, :-1], w), "shapes"),
        (lambda: x @ w, "shapes"),
    ):
        with pytest.raises(RuntimeError, match=message):
            wrong()


# ---- the operators -------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore")
def test_opcheck() -> None:
    w, bias = fused(weight(64, 96, dtype=torch.float32)), torch.randn(64, requires_grad=True)
    x, back = torch.randn(2, 3, 96, requires_grad=True), torch.randn(5, 64, requires_grad=True)
    rest = w.stream, [64, 96], w.dtype
    for arguments in ((x, *rest, bias), (x, *rest), (x.detach(), *rest, bias.detach())):
        torch.library.opcheck(torch.ops.wcodec.linear.default, arguments)
    torch.library.opcheck(torch.ops.wcodec.linear_grad_input.default, (back, *rest))


@pytest.mark.parametrize(("n", "k"), [(14, 11), exhaustive((40, 30))])
def test_gradcheck(n: int, k: int) -> None:
    w, dense = fused(d := weight(n, k, dtype=torch.float64) * 50), d
    x = torch.randn(2, 3, k, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(n, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, b: operate(x, w, b), (x, bias))
    assert torch.autograd.gradgradcheck(lambda x, b: operate(x, w, b), (x, bias))
    assert torch.autograd.gradcheck(lambda x, b: F.linear(x, w, b), (x, bias))
    back = torch.randn(4, n, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: g @ w, (back,))
    torch.testing.assert_close(operate(x, w, bias), F.linear(x, dense, bias))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = weight(300, 1000, dtype=dtype)
    w, grads = fused(dense), []
    never_whole(monkeypatch)
    for call in (
        lambda x, b: operate(x, w, b),
        lambda x, b: F.linear(x, w, b),
        lambda x, b: F.linear(x, dense, b),
    ):
        torch.manual_seed(3)
        x = torch.randn(2, 5, 1000).to(dtype).requires_grad_()
        b = weight(300, dtype=dtype).requires_grad_()
        call(x, b).float().square().sum().backward()
        assert x.grad is not None
        assert b.grad is not None
        grads.append((x.grad, b.grad))
    for got in grads[:2]:
        torch.testing.assert_close(
            got,
            grads[2],
            rtol=2e-2 if dtype != torch.float32 else 1e-4,
            atol=2e-2 if dtype != torch.float32 else 1e-5,
        )


def test_the_same_each_time() -> None:
    dense = weight(1000, 2000)
    w, x, back = fused(dense), weight(9, 2000), weight(9, 1000)
    y, grad = F.linear(x, w), back @ w
    for _ in range(3):
        assert torch.equal(F.linear(x, w), y)
        assert torch.equal(operate(x, w), y)
        assert torch.equal(back @ w, grad)


def test_calls_from_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles_module, "TILE_NBYTES", 1 << 14)
    w, x, back = fused(weight(300, 1000)), weight(4, 1000), weight(4, 300)
    y, grad = F.linear(x, w), back @ w
    with ThreadPoolExecutor(4) as threads:
        assert all(
            threads.map(
                lambda _: torch.equal(F.linear(x, w), y) and torch.equal(back @ w, grad), range(40)
            )
        )


def test_backends(backend: wcodec.Backend) -> None:
    dense = weight(64, 96)
    w, x = fused(dense), weight(3, 96)
    torch.testing.assert_close(F.linear(x, w), F.linear(x, dense))
    assert w.held._file is not None, "what the products have opened"
    assert w.held._file[2].decoder.backend is backend


# ---- what is decoded, and how much of it ---------------------------------------------------------
def test_products_of_all_kinds_go_tile_by_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = weight(300, 96, dtype=torch.float32)
    w = fused(dense)
    never_whole(monkeypatch)
    x, back, bias = torch.randn(5, 96), torch.randn(5, 300), torch.randn(300)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            for got, due in (
                (F.linear(x, w), F.linear(x, dense)),
                (F.linear(x[0], w, bias), F.linear(x[0], dense, bias)),
                (F.linear(x[None], w, bias), F.linear(x[None], dense, bias)),
                (F.linear(x[None], w), F.linear(x[None], dense)),
                (x @ w.t(), x @ dense.t()),
                (x @ w.mT, x @ dense.mT),
                (back @ w, back @ dense),
                (w @ x.t(), dense @ x.t()),
                (w.t() @ back.t(), dense.t() @ back.t()),
                (torch.addmm(bias, x, w.t()), torch.addmm(bias, x, dense.t())),
                (torch.addmm(bias[:96], back, w), torch.addmm(bias[:96], back, dense)),
            ):
                torch.testing.assert_close(got, due)
    with pytest.raises(AssertionError, match="as a whole"):
        w + 1
    with pytest.raises(AssertionError, match="as a whole"):
        torch.addmm(bias, x, w.t(), beta=2)


def test_each_segment_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles_module, "TILE_NBYTES", 1 << 14)
    w = fused(weight(1000, 300))
    decoder, seen = w.held.opened().decoder, []
    part = type(decoder).part
    monkeypatch.setattr(
        type(decoder), "part", lambda *a, **k: seen.extend(a[3].ids.tolist()) or part(*a, **k)
    )
    F.linear(weight(2, 300), w)
    n = w.held.record().geometry.n_segments
    assert n > 4
    assert seen == list(range(n))


def test_scratch_is_a_tile() -> None:
    scratch.release_scratch()
    w = fused(weight(3000, 2000))
    F.linear(weight(2, 2000), w)
    limit = tiles_module.tile_nbytes(w.held.opened().decoder.backend) + (1 << 16)
    assert 0 < scratch.scratch_nbytes() <= limit
    held = weakref.ref(w.held)
    scratch.release_scratch()
    assert scratch.scratch_nbytes() == 0
    operate(weight(2, 2000), w)
    torch.ops.wcodec.decode(w.stream, [3000, 2000], w.dtype)
    stream = weakref.ref(w.stream)
    del w
    gc.collect()
    assert held() is None
    assert stream() is None, "what operators keep of a stream does not keep it"


@pytest.mark.parametrize("mode", ["fused", "resident"])
def test_peak_of_a_product(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of one row of segments, the same in float32, and what numba takes;
    otherwise all of the matrix.
    """
    monkeypatch.setattr(tiles_module, "TILE_NBYTES", 1 << 14)
    monkeypatch.setattr(tiles_module, "MOST_THREADS", 1)
    dense = weight(4096, 512)
    w = CompressedTensor.from_stream(CompressedTensor.from_dense(dense).stream.clone(), mode=mode)
    x = weight(4, 512).requires_grad_()

    def steps() -> None:
        scratch.release_scratch()
        F.linear(x, w).float().sum().backward()

    peak = torch_peak_of(steps) + peak_of(steps)
    if mode == "fused":
        assert peak < dense.nbytes / 6
    else:
        assert peak > dense.nbytes, "otherwise nothing was measured"


def test_where_weights_are_decoded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: into scratch, all of it."""
    monkeypatch.setattr(products_module, "by_tiles", lambda held: False)
    dense, bias = weight(300, 96), weight(300)
    w, x, back = fused(dense), weight(2, 5, 96), weight(5, 300)
    for _ in range(2):
        assert torch.equal(F.linear(x, w, bias), F.linear(x, dense, bias))
        assert torch.equal(back @ w, F.linear(back, dense.t()))
    assert torch.equal(
        operate(x.float(), fused((dense * 500).to(torch.int8))),
        F.linear(x.float(), (dense * 500).to(torch.int8).float()),
    )


def test_autocast() -> None:
    dense = weight(64, 96, dtype=torch.float32)
    w, x, back = fused(dense), torch.randn(3, 96), torch.randn(3, 64)
    y, grad = operate(x, w), torch.ops.wcodec.linear_grad_input(back, w.stream, [64, 96], w.dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(operate(x, w), y), "the operator takes its operands as they are"
        assert torch.equal(
            torch.ops.wcodec.linear_grad_input(back, w.stream, [64, 96], w.dtype), grad
        )
        got, due = F.linear(x, w), F.linear(x, dense)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, due), "the layer as it is with a dense weight, which is cast"


# ---- weights in modules --------------------------------------------------------------------------
def test_the_flag_goes_along() -> None:
    w = fused(weight(64, 96))
    assert "fused" in repr(w)
    assert "fused" not in repr(CompressedTensor.from_dense(weight(64, 96)))
    file = io.BytesIO()
    torch.save(w, file)
    file.seek(0)
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(w, requires_grad=False)
    model.half()
    model.to("cpu")
    copies = [
        w.detach(),
        w.t(),
        w.clone(),
        w.to("cpu", copy=True),
        copy.deepcopy(w),
        pickle.loads(pickle.dumps(w)),
        w.data,
    ]
    for other in (*copies, torch.load(file), model.weight):
        assert isinstance(other, CompressedTensor)
        assert other.mode == "fused"
    assert model.weight.dtype == torch.float16


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(96, 256), torch.nn.GELU(), torch.nn.Linear(256, 96, bias=False)
    )
    small = compress_model(copy.deepcopy(model), mode="fused")
    never_whole(monkeypatch)
    torch._dynamo.reset()
    compiled = torch.compile(small, backend=backend, fullgraph=True)
    grads = []
    for call in (compiled, small):
        x = torch.linspace(-1, 1, 2 * 3 * 96).reshape(2, 3, 96).requires_grad_()
        y = call(x)
        y.square().sum().backward()
        grads.append((y.detach(), x.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0], grads[1])
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")
def test_damage_is_an_error_with_the_name() -> None:
    small = fused(weight(200, 96))
    damaged = small.stream.clone()
    damaged[100] ^= 4
    w = CompressedTensor.from_stream(damaged, "layers.0.weight", mode="fused")
    x = weight(1, 96)
    for use in (lambda: F.linear(x, w), lambda: weight(1, 200) @ w):
        with pytest.raises(DecodeError, match=r"bad_checksum.*'layers.0.weight'"):
            use()
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: F.linear(x, w), backend="aot_eager", fullgraph=True)
    with pytest.raises(DecodeError, match=r"bad_checksum.*'layers.0.weight'"):
        compiled(x)
    torch._dynamo.reset()
    with pytest.raises(DecodeError, match="bad_checksum"):
        torch.ops.wcodec.linear(x, damaged.clone(), [200, 96], w.dtype)
    damaged[100] ^= 4
    assert torch.equal(F.linear(x, w), F.linear(x, small))
    record = w.held.record()
    object.__setattr__(record, "crc32", record.crc32 ^ 1)
    with pytest.raises(
        DecodeError, match=r"bad_checksum: the CRC-32 of the decoded tensor.*'layers.0.weight'"
    ):
        F.linear(x, w)


def test_models_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = torch.nn.Sequential(
        torch.nn.Linear(96, 256), torch.nn.GELU(), torch.nn.Linear(256, 96)
    ).bfloat16()
    save_file(dense.state_dict(), tmp_path / "m.wcodec")
    small = compress_model(copy.deepcopy(dense), mode="fused")
    loaded = copy.deepcopy(dense)
    assert load_compressed(loaded, tmp_path / "m.wcodec", mode="fused") == ([], [])
    never_whole(monkeypatch)
    x = weight(3, 96) * 50
    for model in (small, loaded):
        assert model[0].weight.mode == "fused"
        assert model[0].weight.held.name == "0.weight"
        torch.testing.assert_close(model(x), dense(x))
    assert compress_model(copy.deepcopy(dense))[0].weight.mode == "resident"


def test_layers() -> None:
    dense = torch.nn.Linear(96, 256).bfloat16().eval()
    x = weight(3, 96) * 50
    layer = WCodecLinear.from_linear(dense)
    assert isinstance(layer, torch.nn.Linear)
    assert (layer.mode, layer.training, layer.bias is dense.bias) == ("fused", False, True)
    assert "in_features=96, out_features=256, bias=True, mode=fused" in repr(layer)
    torch.testing.assert_close(layer(x), dense(x))
    resident = WCodecLinear.from_linear(layer, mode="resident")
    assert (resident.mode, layer.mode) == ("resident", "fused")
    assert resident.weight.held is layer.weight.held
    assert torch.equal(resident(x), dense(x))
    other = WCodecLinear.from_linear(
        WCodecLinear.from_linear(dense, name="up"), options=EncodeOptions(operand="rans")
    )
    assert (operand_form(other.weight.held.record()), other.weight.held.name) == ("rans", "up"), (
        "coded anew"
    )
    assert torch.equal(other.weight.decode(), dense.weight)
    again = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    assert (type(again), again.mode) == (WCodecLinear, "fused")
    again.load_state_dict(dense.state_dict())
    assert torch.equal(again(x), layer(x))
    fresh = WCodecLinear(96, 64, bias=False, dtype=torch.bfloat16, name="head")
    assert fresh(x).shape == (3, 64)
    assert fresh.weight.held.name == "head"
    fresh.weight = torch.nn.Parameter(weight(64, 96))
    assert fresh.mode == "decoded"
    for wrong in (
        lambda: WCodecLinear(3, 4, mode="other"),
        lambda: WCodecLinear.from_linear(dense, mode="other"),
        lambda: WCodecLinear(3, 4, mode="resident", operand="rans"),
        lambda: WCodecLinear(3, 4, operand="other"),
        lambda: WCodecLinear(3, 4, operand="rans", options=wcodec.EncodeOptions(coder="raw")),
    ):
        with pytest.raises(EncodeError, match="bad_option"):
            wrong()
    with pytest.raises(EncodeError, match="meta"):
        WCodecLinear(96, 64, device="meta")


def test_adapters_train_on_top() -> None:
    peft = pytest.importorskip("peft")
    model = torch.nn.Sequential(torch.nn.Linear(96, 256), torch.nn.GELU(), torch.nn.Linear(256, 96))
    small = torch.nn.Sequential(
        WCodecLinear.from_linear(model[0]), model[1], WCodecLinear.from_linear(model[2])
    )
    losses = []
    for net in (model, small):
        torch.manual_seed(5)
        tuned = peft.get_peft_model(
            copy.deepcopy(net),
            peft.LoraConfig(r=4, target_modules=["0", "2"], init_lora_weights=False),
        )
        optimiser = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
        x, found = torch.randn(8, 96), []
        for _ in range(4):
            optimiser.zero_grad()
            loss = (tuned(x) - 1).square().mean()
            loss.backward()
            optimiser.step()
            found.append(loss.detach())
        losses.append(torch.stack(found))
    assert losses[1][-1] < losses[1][0]
    torch.testing.assert_close(losses[1], losses[0])
