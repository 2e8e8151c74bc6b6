"""Fused mode where the CUDA backend multiplies straight from operands: on the emulator."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import tiny_models
import torch
import torch.nn.functional as F  # noqa: N812 (as everyone calls it)
from cuda_emulator import EmulatedRuntime
from cuda_emulator.streams import LazyRuntime
from sampling import exhaustive
from test_torch_compressed import _one_thread  # noqa: F401 (a fixture)
from torch_fused_cases import (
    KINDS,
    Net,
    check_gradients,
    check_product,
    damaged,
    form_of,
    operate,
    weight,
)

from wcodec import EncodeOptions
from wcodec.cuda import crossover
from wcodec.errors import DecodeError, EncodeError
from wcodec.torch import (
    CompressedTensor,
    WCodecLinear,
    compress_model,
    load_compressed,
    model_memory,
    save_file,
)
from wcodec.torch.resident import device, holding, operands
from wcodec.torch.resident.device import DeviceHeld
from wcodec.torch.resident.held import Held
from wcodec.transformers import WCodecConfig, WCodecModel

#: Less than a tile and a band, ragged in both, several segments and parts.
SHAPES = [(5, 200), (33, 200), (70, 1100), (264, 2080)]


@pytest.fixture(scope="module")
def runtime() -> EmulatedRuntime:
    return EmulatedRuntime(order="shuffled", seed=5)


class Place:
    """Whether the CPU's memory stands for a GPU's."""

    is_gpu = True


@pytest.fixture(autouse=True)
def place(runtime: EmulatedRuntime, monkeypatch: pytest.MonkeyPatch) -> Place:
    """What `runtime` drives; each test with the same weights in each run."""
    torch.manual_seed(0)
    place = Place()
    monkeypatch.setattr(operands, "on_gpu", lambda _: place.is_gpu)
    monkeypatch.setattr(device, "runtime_of", lambda _: runtime)
    return place


def fused(dense: torch.Tensor, operand: str | None = None, name: str = "w") -> CompressedTensor:
    return CompressedTensor.from_dense(dense, name=name, mode="fused", operand=operand)


@pytest.fixture
def _straight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that is decoded for a product is an error."""

    def refuse(_: Held) -> None:
        raise AssertionError("decoded for a product")

    monkeypatch.setattr(Held, "lease", refuse)


# ---- products ------------------------------------------------------------------------------------
@pytest.mark.usefixtures("_straight")
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("large", [(264, 1100), exhaustive((SHAPES[-1],))], ids=str)
def test_as_exact_as_dense(
    kind: tuple[torch.dtype, str, torch.dtype], large: tuple[int, int]
) -> None:
    dtype, form, of_x = kind
    for shape, batches in zip(
        [*SHAPES[:-1], large], [(1, 5, 64), (5,), (64,), (1, 5)], strict=True
    ):
        dense = weight(*shape, dtype=dtype)
        w, bias = fused(dense, form), weight(shape[0], dtype=of_x)
        for m in batches:
            check_product(w, dense, weight(m, shape[1], dtype=of_x), bias if m == 5 else None)


@pytest.mark.usefixtures("_straight")
@pytest.mark.parametrize("kind", KINDS[2:], ids=str)
def test_scales(kind: tuple[torch.dtype, str, torch.dtype]) -> None:
    dtype, form, of_x = kind
    dense, scale = weight(70, 1100, dtype=dtype), torch.rand(70) + 0.5
    layer = WCodecLinear.from_quantized(dense, scale, weight(70, dtype=of_x), operand=form)
    for m in (1, 9):
        x = weight(m, 1100, dtype=of_x)
        check_product(layer.weight, dense, x, layer.bias, scale)
        assert torch.equal(layer(x), operate(x, layer.weight, layer.bias, scale))
    # whose numbers lie apart
    check_product(layer.weight, dense, x, layer.bias, torch.stack([scale, scale], 1)[:, 0])


@pytest.mark.usefixtures("_straight")
def test_activations_of_all_sorts() -> None:
    dense, bias = weight(70, 264), weight(140)[::2]
    w = fused(dense)
    apart, odd = (weight(5, 528)[:, ::2], weight(264, 5).t()), weight(5 * 264 + 1)[1:].view(5, 264)
    for x in (weight(264), weight(1, 1, 264), weight(2, 3, 264), *apart, odd):
        assert torch.equal(
            operate(x, w), F.linear(x.clone(memory_format=torch.contiguous_format), w)
        )
        for b in (None, bias):
            assert operate(x, w, b).shape == F.linear(x, w, b).shape == (*x.shape[:-1], 70)
            for y in (operate(x, w, b), F.linear(x, w, b)):
                torch.testing.assert_close(y, F.linear(x, dense, b), rtol=0.02, atol=1e-3)
    for before in ((0,), (2, 0)):
        assert F.linear(weight(*before, 264), w, bias).shape == (*before, 70)
    x = weight(5, 264)
    for got, due in (
        (x @ w.t(), x @ dense.t()),
        (w @ x.t(), dense @ x.t()),
        (torch.addmm(bias, x, w.t()), torch.addmm(bias, x, dense.t())),
    ):
        torch.testing.assert_close(got, due)


@pytest.mark.usefixtures("_straight")
def test_outliers_nan_and_infinity() -> None:
    dense, x = weight(70, 1100), weight(4, 1100)
    dense[::7, 3], dense[2, 500], dense[8] = 1000.0, -30000.0, 0  # patches, all of a row
    w = fused(dense)
    assert w.held.record().segments.n_patches.max() > 1000
    check_product(w, dense, x)
    dense[5, 7], dense[10, 9], dense[69, 1099] = float("nan"), float("inf"), -float("inf")
    x[1, 3], x[2, 4], x[3, 9] = float("inf"), float("nan"), 0
    got, due = F.linear(x, fused(dense)), F.linear(x, dense)
    assert torch.equal(got.isnan(), due.isnan())
    assert torch.equal(got.isinf(), due.isinf())
    assert torch.equal(got[due.isinf()], due[due.isinf()])


def test_more_rows_are_multiplied_by_the_dense_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, bias = weight(70, 1100), weight(70)
    w, leases, lease = fused(dense), [], Held.lease
    monkeypatch.setattr(Held, "lease", lambda held: leases.append(1) or lease(held))
    for m, n_leases in ((64, 0), (65, 1), (200, 2), (1, 2)):
        x = weight(m, 1100)
        y = F.linear(x, w, bias)
        assert len(leases) == n_leases
        if m > 64:
            assert torch.equal(y, F.linear(x, dense, bias))
    monkeypatch.setattr(crossover, "TABLE", ((0, "bf16", "fixed", 64, 1024, 7),))
    other = fused(dense)
    for m, n_leases in ((7, 2), (8, 3)):
        F.linear(weight(m, 1100), other)
        assert len(leases) == n_leases
    x = weight(3, 1100, dtype=torch.float32)
    narrow = fused(weight(70, 1100, dtype=torch.int8))
    assert torch.equal(operate(x, narrow), F.linear(x, narrow.decode().float())), (
        "no kernel is made for float32"
    )


def test_crossover(monkeypatch: pytest.MonkeyPatch) -> None:
    assert crossover.most_batch((10, 10), "bf16", True, 90) == 64
    rows = [
        (90, "bf16", "fixed", 4096, 4096, 48),
        (90, "bf16", "fixed", 4096, 14336, 32),
        (90, "bf16", "rans", 4096, 4096, 0),
    ]
    monkeypatch.setattr(crossover, "TABLE", (*rows, (90, "int8", "fixed", 4096, 4096, 500)))
    for shape, weights, coded, capability, most in (
        ((4096, 4096), "bf16", False, 90, 48),
        ((5000, 13000), "bf16", False, 90, 32),
        ((1, 1), "bf16", True, 90, 0),
        ((4096, 8192), "bf16", False, 90, 32),  # nearer by its ratio, not by its difference
        ((4096, 4096), "bf16", False, 100, 64),
        ((4096, 4096), "int8", False, 90, 64),
        ((4096, 4096), "e4m3", False, 90, 64),
    ):
        assert crossover.most_batch(shape, weights, coded, capability) == most


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[3]], ids=str)
def test_gradients(kind: tuple[torch.dtype, str, torch.dtype]) -> None:
    dtype, form, of_x = kind
    dense = weight(70, 1100, dtype=dtype)
    w, scale = fused(dense, form), None if dtype == torch.bfloat16 else torch.rand(70) / 50 + 0.01
    for m in (3, 65):
        check_gradients(w, dense, weight(2, m, 1100, dtype=of_x), scale)


@pytest.mark.filterwarnings("ignore")
def test_opcheck_and_compiled() -> None:
    w = fused(weight(33, 200))
    x, bias = weight(3, 200).requires_grad_(), weight(33).requires_grad_()
    torch.library.opcheck(torch.ops.wcodec.linear.default, (x, w.stream, [33, 200], w.dtype, bias))
    layers = torch.nn.Sequential(
        torch.nn.Linear(200, 96), torch.nn.GELU(), torch.nn.Linear(96, 64, bias=False)
    ).bfloat16()
    small = compress_model(copy.deepcopy(layers), mode="fused")
    torch._dynamo.reset()
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), small(x))
    y = compiled(x)
    y.float().sum().backward()
    torch.testing.assert_close(y, layers(x))
    assert x.grad is not None
    torch._dynamo.reset()


# ---- what is kept, and checked -------------------------------------------------------------------
@pytest.mark.usefixtures("_straight")
def test_later_products_only_launch_kernels(
    runtime: EmulatedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, x = weight(70, 2100), weight(60, 2100)
    w = fused(dense, "rans")
    y, launched, launch = F.linear(x, w), [], runtime.launch
    operand = w.held.operand()
    assert operand is not None

    def refuse(*_: object) -> None:
        raise AssertionError("not a kernel")

    for name in ("upload", "download", "empty", "pinned", "mark", "finish"):
        monkeypatch.setattr(runtime, name, refuse)
    monkeypatch.setattr(
        runtime, "launch", lambda kernel, *rest: launched.append(kernel) or launch(kernel, *rest)
    )
    assert torch.equal(F.linear(x, w), y)
    assert launched == ["linear_bf16_bf16_coded_64", "add_parts_bf16"]
    assert torch.equal(w.decode(), dense)
    assert launched[2:] == ["expand_bf16"]
    assert w.held.operand() is operand


@pytest.mark.parametrize("form", ["fixed", "rans"])
def test_ready_for_any_stream(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the first use has queued is done when it ends:
    the next one may come on another stream.
    """
    lazy = LazyRuntime(seed=1)
    stream = lazy.stream()
    monkeypatch.setattr(lazy, "external_stream", lambda _: stream)
    monkeypatch.setattr(device, "runtime_of", lambda _: lazy)
    assert fused(weight(70, 264), form).held.operand() is not None
    assert stream.n_done == stream.n_queued > 0


def test_replaced_after_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was queued still reads the old stream: that goes only when it is done."""
    lazy = LazyRuntime(seed=2)
    stream = lazy.stream()
    monkeypatch.setattr(lazy, "external_stream", lambda _: stream)
    monkeypatch.setattr(device, "runtime_of", lambda _: lazy)
    dense, other = weight(70, 264), weight(70, 264)
    w = fused(dense)
    buffer = torch.zeros(w.held.nbytes, dtype=torch.uint8)
    for _ in range(3):
        w.held.decode_into(buffer.fill_(7))
    assert stream.n_done < stream.n_queued
    w.held.replace(other)
    assert stream.n_done == stream.n_queued
    assert torch.equal(w.held.view(buffer), dense)
    assert torch.equal(w.decode(), other)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_decoded_again_and_again(
    kind: tuple[torch.dtype, str, torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second time on by the kernel for operands: the same bits, NaN and all."""
    dtype, form, _ = kind
    dense = weight(70, 1100, dtype=dtype)
    if dtype == torch.bfloat16:
        dense.view(torch.int16)[3, ::97] = 0x7FA5
    w = fused(dense, form)
    buffer = torch.full((dense.nbytes + 64,), 77, dtype=torch.uint8)
    for _ in range(2):
        w.held.decode_into(buffer)
        assert torch.equal(buffer[: dense.nbytes], dense.view(torch.uint8).view(-1))
        assert (buffer[dense.nbytes :] == 77).all()
        buffer.fill_(77)
        monkeypatch.setattr(device.ResidentTensor, "decode", None)
    assert torch.equal(w[3:5].view(torch.uint8), dense[3:5].view(torch.uint8))
    assert torch.equal(
        F.embedding(torch.tensor([60, 2]), w).view(torch.uint8), dense[[60, 2]].view(torch.uint8)
    )


def test_damage_is_found_at_first_use() -> None:
    small, x = fused(weight(70, 264)), weight(2, 264)
    w = damaged(small)
    for use in (
        lambda: F.linear(x, w),
        lambda: weight(1, 70) @ w,
        lambda: operate(x, w),
        lambda: w.held.operand(),
    ) * 2:
        with pytest.raises(DecodeError, match=r"bad_checksum.*'layers.0.weight'"):
            use()
    w.stream[200] ^= 8
    assert torch.equal(F.linear(x, w), F.linear(x, small))
    again = CompressedTensor.from_stream(small.stream.clone(), "v", mode="fused")
    record = again.held.record()
    object.__setattr__(record, "crc32", record.crc32 ^ 1)
    with pytest.raises(DecodeError, match=r"bad_checksum: the CRC-32 of the decoded tensor.*'v'"):
        F.linear(x, again)


def test_another_content() -> None:
    dense, x = weight(70, 1100), weight(2, 1100)
    w = fused(dense, "rans")
    before = w.held.operand()
    w.mul_(2)
    assert torch.equal(w.decode(), dense * 2)
    w[3] = 1
    dense = dense * 2
    dense[3] = 1
    assert torch.equal(w.decode(), dense)
    assert w.held.operand() is not before
    assert form_of(w) == "rans"
    check_product(w, dense, x)
    # nobody said how it was compressed
    plain = CompressedTensor.from_stream(fused(dense).stream, mode="fused")
    plain.mul_(0.5)
    assert form_of(plain) == "fixed"
    check_product(plain, dense * 0.5, x)
    given = CompressedTensor.from_dense(dense, EncodeOptions(layout="bytes"), mode="fused")
    given.mul_(0.5)
    assert form_of(given) is None
    assert torch.equal(F.linear(x, given), F.linear(x, dense * 0.5))


def test_calls_from_threads() -> None:
    dense, x = weight(70, 264), weight(4, 264)
    y = F.linear(x, fused(dense))
    w = fused(dense)
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda _: torch.equal(F.linear(x, w), y), range(20)))


def nan_in(dtype: torch.dtype, bits: int) -> torch.Tensor:
    dense = weight(70, 264, dtype=dtype)
    dense.view(torch.uint8)[69, 263] = bits
    return dense


def wild() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randint(-(1 << 15), 1 << 15, (70, 264), dtype=torch.int16).view(torch.bfloat16)


UNLIKE = [
    weight(70, 264, dtype=torch.float16),
    weight(70, 264, dtype=torch.float32),
    weight(3, 70, 64),
    wild(),
    torch.zeros(0, 5).bfloat16(),
]
NOT_FINITE = [nan_in(torch.float8_e4m3fn, bits) for bits in (0x7F, 0xFF)] + [
    nan_in(torch.float8_e5m2, bits) for bits in (0x7C, 0xFD)
]


@pytest.mark.parametrize(
    ("dense", "is_operand"), [*((t, False) for t in UNLIKE), *((t, True) for t in NOT_FINITE)]
)
def test_what_kernels_cannot_multiply_is_decoded(
    dense: torch.Tensor, is_operand: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # so that what is last is not looked at with the first
    monkeypatch.setattr("wcodec.torch.resident.device_products.SOME_NBYTES", 1000)
    w = fused(dense)
    assert torch.equal(w.decode().view(torch.uint8), dense.view(torch.uint8))
    assert (w.held.operand() is not None) == is_operand == (form_of(w) is not None)
    if dense.dim() != 2:
        return
    x = weight(3, dense.shape[1], dtype=dense.dtype if dense.dtype.itemsize > 1 else torch.bfloat16)
    for _ in range(2):
        got, due = operate(x, w), F.linear(x, dense.to(x.dtype))
        assert torch.equal(got.isnan(), due.isnan())
        assert torch.equal(got.nan_to_num(), due.nan_to_num())
        assert dense.dtype.itemsize > 1 or not due.isfinite().all()


def test_other_streams_are_decoded() -> None:
    dense, x = weight(70, 264), weight(3, 264)
    w = CompressedTensor.from_stream(CompressedTensor.from_dense(dense).stream, mode="fused")
    assert form_of(w) is w.held.operand() is None
    assert torch.equal(F.linear(x, w), F.linear(x, dense))
    w = fused(dense)
    w.mode = "resident"
    assert torch.equal(F.linear(x, w), F.linear(x, dense))
    assert torch.equal(
        torch.ops.wcodec.linear(x, w.stream, [70, 264], w.dtype, mode="resident"),
        F.linear(x, dense),
    )


# ---- weights on their way ------------------------------------------------------------------------
def test_compressed_models() -> None:
    net = Net(256, 300, 2)
    ids = torch.tensor([[3, 299, 0]])
    for how, form, most in (
        ({}, "fixed", 0.76),
        ({"operand": "rans"}, "rans", 0.7),
        ({"preset": "max"}, "fixed", 0.76),
    ):
        small = compress_model(copy.deepcopy(net), mode="fused", **how)
        assert small.head.weight is small.embed.weight
        assert [form_of(p) for p in (small.embed.weight, small.layers[1].weight)] == [form] * 2
        memory = model_memory(small)
        assert memory.held <= most * memory.dense
        torch.testing.assert_close(small(ids), net(ids), rtol=0.05, atol=0.05)
    for options, form in (
        (EncodeOptions(layout="bytes"), None),
        (EncodeOptions(operand="rans"), "rans"),
        (EncodeOptions(), "fixed"),
    ):
        assert (
            form_of(compress_model(copy.deepcopy(net), options=options, mode="fused").head.weight)
            == form
        )
    assert form_of(compress_model(copy.deepcopy(net)).head.weight) is None
    half = compress_model(torch.nn.Linear(64, 64).half(), mode="fused", operand="rans")
    assert form_of(half.weight) is None
    for wrong, message in (
        ({"mode": "other"}, "mode 'other' is none of resident, fused"),
        ({"mode": "decoded"}, "mode 'decoded' is none of resident, fused"),
        ({"mode": True}, "mode True is none of"),
        ({"mode": None}, "mode None is none of"),
        ({"mode": "fused", "operand": "other"}, "operand 'other' is none of fixed, rans"),
        ({"mode": "fused", "operand": True}, "operand True is none of"),
        ({"operand": "rans"}, "operand='rans' needs mode='fused', not 'resident'"),
        (
            {"mode": "fused", "operand": "rans", "options": EncodeOptions(operand="fixed")},
            "leave operand out, or give options with operand='rans'",
        ),
    ):
        for compress in (
            compress_model,
            lambda model, **how: CompressedTensor.from_dense(model.head.weight, **how),
            lambda model, **how: WCodecLinear.from_linear(
                model.head, **{"mode": "resident", **how}
            ),
        ):
            with pytest.raises(EncodeError, match=f"bad_option: .*{message}"):
                compress(copy.deepcopy(net), **wrong)
    given = CompressedTensor.from_dense(
        net.head.weight, EncodeOptions(preset="max"), mode="fused", operand="rans"
    )
    assert form_of(given) == "rans"


def test_models_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, ids = Net(256, 300, 2), torch.tensor([[3, 299, 0]])
    encoded, encode = [], holding.encode
    monkeypatch.setattr(holding, "encode", lambda *a: encoded.append(1) or encode(*a))
    plain, *forms = EncodeOptions(), EncodeOptions(operand="fixed"), EncodeOptions(operand="rans")
    for stored, asked, form, n_encoded in (
        (plain, {"mode": "fused"}, "fixed", 3),
        (forms[0], {"mode": "fused"}, "fixed", 0),
        (forms[1], {"mode": "fused"}, "rans", 0),
        (forms[1], {"mode": "fused", "operand": "fixed"}, "fixed", 3),
        (plain, {"mode": "fused", "operand": "rans"}, "rans", 3),
        (plain, {}, None, 0),
    ):
        path = tmp_path / "m.wcodec"
        save_file(net.state_dict(), path, options=stored)
        other = Net(256, 300, 2)
        encoded.clear()
        load_compressed(other, path, **asked)
        assert len(encoded) == n_encoded
        assert other.head.weight is other.embed.weight
        for name in ("head", "layers.0"):
            w = other.get_submodule(name).weight
            assert (form_of(w), w.mode, w.held.name) == (
                form,
                asked.get("mode", "resident"),
                "embed.weight" if name == "head" else f"{name}.weight",
            )
            assert torch.equal(w.decode(), net.get_submodule(name).weight)
        torch.testing.assert_close(other(ids), net(ids), rtol=0.05, atol=0.05)
    for wrong in ({"mode": "other"}, {"operand": "rans"}, {"mode": "fused", "operand": "other"}):
        with pytest.raises(EncodeError, match="bad_option"):
            load_compressed(other, path, **wrong)


def brought(w: CompressedTensor) -> CompressedTensor:
    """What ``.to("cuda")`` calls. The emulated device is one whose name differs from that of the
    CPU, and whose memory does not.
    """
    out = torch.ops.aten._to_copy.default(w, device=torch.device("cpu", 0))
    assert isinstance(out, CompressedTensor)
    return out


def test_brought_to_a_gpu(place: Place) -> None:
    dense = weight(70, 1100)
    place.is_gpu = False
    some = {"options": EncodeOptions(layout="bytes")}, {"options": EncodeOptions(preset="max")}
    ways = ({"operand": None}, {"operand": "rans"}, *some)
    small = [CompressedTensor.from_dense(dense, name="w")]
    small += [CompressedTensor.from_dense(dense, name="w", mode="fused", **how) for how in ways]
    assert [form_of(w) for w in small] == [None, None, "rans", None, None]
    unlike = CompressedTensor.from_dense(wild(), name="w", mode="fused")
    place.is_gpu = True
    moved = [brought(w) for w in small]
    assert [form_of(w) for w in moved] == [None, "fixed", "rans", None, "fixed"]
    for w in moved:
        assert isinstance(w.held, DeviceHeld)
        assert w.held.name == "w"
        assert torch.equal(w.decode(), dense)
    assert torch.equal(brought(unlike).stream, unlike.stream), (
        "what is no operand even when it is encoded as one stays as it was"
    )
    twin = WCodecLinear.from_linear(
        torch.nn.Linear(1100, 70, bias=False, dtype=torch.bfloat16), mode="resident"
    )
    assert form_of(twin.weight) is None
    layer = WCodecLinear.from_linear(twin)
    assert (layer.mode, form_of(layer.weight), form_of(twin.weight)) == ("fused", "fixed", None)
    assert WCodecLinear.from_linear(layer).weight.held is layer.weight.held
    # the form that is asked for last is the one that counts
    for operand, form in (("rans", "rans"), (None, "rans"), ("fixed", "fixed")):
        layer = WCodecLinear.from_linear(layer, operand=operand)
        assert form_of(layer.weight) == form
        assert torch.equal(layer.weight.decode(), twin.weight.decode())


def test_copies_and_state_dicts(place: Place) -> None:
    net, ids = Net(256, 300, 1), torch.tensor([[3, 299, 0]])
    small = compress_model(copy.deepcopy(net), mode="fused", operand="rans")
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    again = Net(256, 300, 1)
    again.load_state_dict(torch.load(file), assign=True)
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), again):
        w = other.layers[0].weight
        assert torch.equal(w.stream, small.layers[0].weight.stream)
        assert w.mode == "fused"
        assert torch.equal(other(ids), small(ids))
    small.load_state_dict({name: t * 2 for name, t in net.state_dict().items()})
    assert form_of(small.layers[0].weight) == "rans"
    assert torch.equal(small.layers[0].weight.decode(), net.layers[0].weight * 2)
    place.is_gpu = False
    file = io.BytesIO()
    torch.save(CompressedTensor.from_dense(weight(70, 264), mode="fused"), file)
    file.seek(0)
    place.is_gpu = True
    assert form_of(torch.load(file)) == "fixed"


@pytest.mark.parametrize("operand", [exhaustive(None), "rans"])
def test_transformers(operand: str | None, tmp_path: Path) -> None:
    plain = tiny_models.make("llama", torch.bfloat16)
    found, due = tiny_models.directories(plain, tmp_path), tiny_models.logits(plain, "llama")
    coding = WCodecConfig(mode="fused", operand=operand)
    auto = tiny_models.auto_class("llama")
    models = [
        auto.from_pretrained(found[form], quantization_config=coding) for form in ("hub", "plain")
    ]
    models.append(WCodecModel.from_pretrained(found["wcodec"], mode="fused", operand=operand))
    for model in models:
        weights = tiny_models.compressed(model)
        assert len(weights) >= 12
        assert {form_of(w) for w in weights.values()} == (
            {"fixed"} if operand is None else {"fixed", "rans"}
        ), "the second where it pays"
        assert all(w.mode == "fused" for w in weights.values())
        assert (tiny_models.logits(model, "llama") - due).abs().max() <= 0.02 * due.abs().max()
    models[0].save_pretrained(tmp_path / "again")
    tiny_models.same_state(auto.from_pretrained(tmp_path / "again"), plain)
    for wrong, message in (
        ({"mode": "other"}, "mode 'other' is none of decoded, resident, fused"),
        ({"mode": "fused", "operand": "other"}, "operand 'other'"),
        ({"operand": "rans"}, "operand='rans' needs mode='fused', not 'decoded'"),
        ({"mode": "resident", "operand": "rans"}, "needs mode='fused', not 'resident'"),
    ):
        with pytest.raises(EncodeError, match=f"bad_option: .*{message}"):
            WCodecConfig(**wrong)


def test_sizes_in_the_readme() -> None:
    """What is held of a Gaussian 4096 x 4096 matrix."""
    dense = torch.randn(4096, 4096) * 0.02
    scaled = dense / dense.abs().amax(1, keepdim=True)
    for narrowed, due in (
        (dense.bfloat16(), {"fixed": 0.751, "rans": 0.667}),
        ((scaled * 127).round().to(torch.int8), {"fixed": 1.001, "rans": 0.906}),
        ((scaled * 448).to(torch.float8_e4m3fn), {"fixed": 1.001, "rans": 0.835}),
    ):
        for form, part in due.items():
            w = fused(narrowed, form)
            assert w.stream.numel() / narrowed.nbytes == pytest.approx(part, abs=0.001)
            assert form_of(w) == form


def test_scratch_is_not_of_the_memory_of_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is taken by another thread:
    ``torch.compile`` sends to the memory of its graphs what the caller's takes.
    """
    threads, new = list[int](), torch.empty
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: "a stream")
    monkeypatch.setattr(
        torch.cuda, "stream", lambda stream: nullcontext(threads.append(len(stream)))
    )
    monkeypatch.setattr(
        torch, "empty", lambda *a, **k: threads.append(threading.get_ident()) or new(*a, **k)
    )
    with torch.inference_mode():
        buffer = device.DeviceBuffers(torch.device("cpu"))._new(1 << 16)
    assert (buffer.numel(), buffer.dtype, buffer.is_inference()) == (1 << 16, torch.uint8, False)
    assert threads[0] == len("a stream"), "on the caller's stream"
    assert len(threads) == 2
    assert threads[1] != threading.get_ident()


def test_first_use_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What checks a stream waits for it, which a graph cannot: said before anything is queued."""
    dense, x = weight(32, 64), weight(3, 64)
    w = CompressedTensor.from_dense(dense, name="layer.weight", mode="fused")
    monkeypatch.setattr(device, "is_capturing", lambda _: True)
    with pytest.raises(
        RuntimeError,
        match=(
            r"first use of 'layer\.weight' while a CUDA graph is captured: "
            r"run the model once before"
        ),
    ):
        F.linear(x, w)
    monkeypatch.setattr(device, "is_capturing", lambda _: False)
    y = F.linear(x, w)
    monkeypatch.setattr(device, "is_capturing", lambda _: True)
    assert torch.equal(F.linear(x, w), y)


def test_what_is_not_captured_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has to wait for the device: an operator on a new stream, a weight that is no operand,
    an embedding.
    """
    dense, ids = weight(40, 64), torch.tensor([3, 3, 0])
    plain, rows = (CompressedTensor.from_dense(dense, name=name) for name in ("plain", "embedding"))
    operand = CompressedTensor.from_dense(dense, name="operand", mode="fused")
    buffer = torch.empty(dense.nbytes, dtype=torch.uint8)
    assert isinstance(plain.held, device.DeviceHeld)
    monkeypatch.setattr(device, "is_capturing", lambda _: True)
    for held in (plain.held, operand.held):
        with pytest.raises(
            RuntimeError,
            match=rf"first use of '{held.name}' while a CUDA graph is captured: run the model once",
        ):
            held.decode_into(buffer)
    for pick in (
        lambda: F.embedding(ids, rows),
        lambda: rows[ids],
        lambda: rows[2],
        lambda: rows.held.take(torch.tensor([1])),
    ):
        with pytest.raises(
            RuntimeError,
            match="rows of 'embedding' cannot be picked in a CUDA graph: hold it dense",
        ):
            pick()
    with pytest.raises(
        RuntimeError, match="first use of a compressed weight while a CUDA graph is captured"
    ):
        torch.ops.wcodec.linear(weight(3, 64), operand.stream.clone(), [40, 64], dense.dtype, None)
    monkeypatch.setattr(device, "is_capturing", lambda _: False)
    assert torch.equal(F.embedding(ids, rows), dense[ids])
    for held in (plain.held, operand.held):
        held.decode_into(buffer)
    monkeypatch.setattr(device, "is_capturing", lambda _: True)
    with pytest.raises(
        RuntimeError,
        match=(
            "'plain' cannot be decoded in a CUDA graph, for it is no operand: "
            "hold it with mode='fused'"
        ),
    ):
        plain.held.decode_into(buffer)
    operand.held.decode_into(buffer)
    assert torch.equal(operand.held.view(buffer), dense)
