"""`wcodec.torch`: tensors to and from files, parts of them, checkpoints of several files,
and what is said of bad ones.
"""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuda_emulator.streams import LazyRuntime
from inputs import ARRAY_DTYPES, bits, make_array, safetensors_bytes
from sampling import exhaustive
from torch._subclasses.fake_tensor import FakeTensorMode

import wcodec
import wcodec.cuda
from wcodec.backends import Backend, use_backend
from wcodec.directories.hub_writing import encode_hub_file
from wcodec.errors import BackendUnavailable, DecodeError, EncodeError
from wcodec.files.checkpoint import encode_file
from wcodec.reference.planes import DTYPES, DType
from wcodec.torch import WCodecCheckpoint, load_file, load_wcodec_checkpoint, safe_open, save_file
from wcodec.torch.dtypes import from_array, row_of, to_array, torch_dtype
from wcodec.torch.loading import decoding
from wcodec.torch.loading.reader import Reader

TORCH_DTYPES = {
    "bool": torch.bool, "uint8": torch.uint8, "int8": torch.int8, "uint16": torch.uint16,
    "int16": torch.int16, "uint32": torch.uint32, "int32": torch.int32, "uint64": torch.uint64,
    "int64": torch.int64, "float16": torch.float16, "bfloat16": torch.bfloat16,
    "float32": torch.float32, "float64": torch.float64, "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2, "float8_e8m0fnu": torch.float8_e8m0fnu,
    "float8_e4m3fnuz": torch.float8_e4m3fnuz, "float8_e5m2fnuz": torch.float8_e5m2fnuz,
    "complex64": torch.complex64, "complex128": torch.complex128,
}  # fmt: skip
SHAPES = ((), (0,), (3, 0, 2), (1,), (5000,), (130, 70), (3, 50, 40))


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor, to compare NaNs and signed zeros too."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.dtype == wanted.dtype and found.shape == wanted.shape and raw(found) == raw(wanted)


def tensor_of(
    dtype: DType, shape: tuple[int, ...], kind: str = "uniform", seed: int = 0
) -> torch.Tensor:
    return from_array(make_array(dtype, shape, kind, seed), dtype)


def weights(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


class Counted(io.BytesIO):
    """A file object that counts what is read."""

    n_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        self.n_read += len(piece)
        return piece


# ---- dtypes --------------------------------------------------------------------------------------
def test_every_dtype_has_its_own() -> None:
    assert {d.name: torch_dtype(d) for d in ARRAY_DTYPES} == TORCH_DTYPES
    assert torch_dtype(DTYPES[0]) is torch.uint8
    assert [row_of(torch_dtype(d)) for d in ARRAY_DTYPES] == list(ARRAY_DTYPES)


def test_tensors_and_arrays_share_memory() -> None:
    for dtype in ARRAY_DTYPES:
        tensor = tensor_of(dtype, (30, 20))
        array = to_array(tensor)
        assert array.dtype == dtype.numpy
        assert array.ctypes.data == tensor.data_ptr() == from_array(array, dtype).data_ptr()


@pytest.mark.parametrize("kind", [exhaustive("uniform"), "gaussian"])
def test_every_dtype_there_and_back(backend: Backend, tmp_path: Path, kind: str) -> None:
    tensors = {
        f"{d.name} {shape}": tensor_of(d, shape, kind, i)
        for i, d in enumerate(ARRAY_DTYPES)
        for shape in SHAPES
    }
    # all NaNs among them
    tensors["all patterns"] = torch.from_numpy(np.arange(1 << 16, dtype=np.uint16)).view(
        torch.bfloat16
    )
    assert save_file(tensors, tmp_path / "a", {"made": "here"}) == (tmp_path / "a").stat().st_size
    loaded = load_file(tmp_path / "a")
    assert list(loaded) == list(tensors)
    assert [name for name in tensors if not same(loaded[name], tensors[name])] == []
    assert all(t.data_ptr() % 64 == 0 for t in loaded.values())  # as PyTorch allocates
    arrays = wcodec.load_file(tmp_path / "a")
    assert [name for name in tensors if bits(arrays[name]) != raw(tensors[name])] == []


def test_the_file_is_that_of_the_arrays(tmp_path: Path) -> None:
    tensors = {d.name: tensor_of(d, (40, 30), "gaussian") for d in ARRAY_DTYPES}
    save_file(tensors, tmp_path / "a", {"x": "y"})
    wcodec.save_file(
        {d.name: make_array(d, (40, 30), "gaussian") for d in ARRAY_DTYPES},
        tmp_path / "b",
        {"x": "y"},
    )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tensors_of_other_layouts(tmp_path: Path) -> None:
    w, z = weights(60, 50), torch.randn(40, 30, dtype=torch.complex64)
    tensors = {
        "turned": w.t(), "strided": w[::2, 1::3], "expanded": w[:1].expand(5, 50),
        "conjugated": z.conj(), "negative": z.conj().imag,
        "channels": torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last),
        "trained": torch.nn.Parameter(weights(30, 30)),
        "in a graph": torch.nn.Parameter(torch.ones(3)) * 2, "inside": w.reshape(-1)[7:1500],
    }  # fmt: skip
    assert tensors["conjugated"].is_conj()
    assert tensors["negative"].is_neg()
    save_file(tensors, tmp_path / "a")
    for name, found in load_file(tmp_path / "a").items():
        wanted = tensors[name].detach().resolve_conj().resolve_neg()
        assert same(found, wanted), name
        assert found.is_contiguous()
        assert not found.requires_grad


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    w = weights(500, 400)
    alone = save_file({"embed": w}, tmp_path / "a")
    tied = save_file({"embed": w, "head": w, "again": w.clone(), "view": w[:]}, tmp_path / "b")
    assert tied - alone < 300
    loaded = load_file(tmp_path / "b")
    assert all(same(t, w) for t in loaded.values())
    # equal weights need not be tied: each has memory of its own
    assert len({t.data_ptr() for t in loaded.values()}) == 4
    overlapping = {"all": w, "most": w[100:], "some": w[:, :7]}
    save_file(overlapping, tmp_path / "c")
    assert all(same(t, overlapping[name]) for name, t in load_file(tmp_path / "c").items())


class Wrapper(torch.Tensor):
    """A subclass that holds its values in another tensor."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapper:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError


class Weight(torch.nn.Parameter):
    """A parameter that knows more than its values, as those of vLLM and bitsandbytes."""


class Watched(torch.Tensor):
    """A subclass that sees to its functions itself, and lets none through."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    "make",
    [
        lambda t: Weight(t),
        lambda t: Weight(t, requires_grad=False),
        lambda t: t.as_subclass(Watched),
        lambda t: torch.nn.Buffer(t),
        lambda t: Weight(t).t(),
    ],
    ids=["parameter", "frozen", "as_subclass", "buffer", "view"],
)
def test_subclasses_with_memory_of_their_own_are_stored_as_plain_tensors(
    tmp_path: Path, make: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    w = weights(130, 70)
    given = make(w)
    assert save_file({"w": given, "again": w}, tmp_path / "a") < 2 * w.nbytes
    found = load_file(tmp_path / "a")["w"]
    assert type(found) is torch.Tensor
    assert same(found, w.t() if found.shape != w.shape else w)


def test_zeros_without_memory_are_stored_as_zeros(tmp_path: Path) -> None:
    save_file({"w": torch._efficientzerotensor((3, 4))}, tmp_path / "a")
    assert same(load_file(tmp_path / "a")["w"], torch.zeros(3, 4))


@pytest.mark.parametrize("transform", [torch.vmap, torch.func.grad], ids=["vmap", "grad"])
def test_tensors_inside_of_transforms_are_refused(tmp_path: Path, transform: Any) -> None:
    def inside(x: torch.Tensor) -> torch.Tensor:
        with pytest.raises(EncodeError, match=r"torch\.func.*tensor 'x'"):
            save_file({"x": x}, tmp_path / "a")
        return x.sum()

    transform(inside)(torch.ones(3))
    assert list(tmp_path.iterdir()) == []


def test_names_of_dimensions_are_not_lost_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch 2.13 has none any more."""
    monkeypatch.setattr(torch.Tensor, "has_names", lambda _: True, raising=False)
    with pytest.raises(EncodeError, match=r"rename\(None\).*tensor 'x'"):
        save_file({"x": torch.ones(3)}, tmp_path / "a")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.zeros(3, device="meta"), "'meta'"),
        (lambda: torch.eye(3).to_sparse(), "to_dense"),
        (lambda: torch.eye(3).to_sparse_csr(), "to_dense"),
        (lambda: Wrapper(torch.zeros(3)), r"a Wrapper .*full_tensor"),
        (lambda: FakeTensorMode().from_tensor(torch.zeros(3)), "a FakeTensor"),
        (lambda: torch.nn.UninitializedParameter(), "run the model once"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), r"\.unbind\(\)"),
        (
            lambda: torch.nested.nested_tensor(
                [torch.zeros(2), torch.zeros(3)], layout=torch.jagged
            ),
            r"\.unbind\(\)",
        ),
        (lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), "int_repr"),
        (
            lambda: torch.zeros(3, dtype=torch.uint8).view(torch.uint4),
            r"uint4 .*view\(torch.uint8\)",
        ),
        (lambda: torch.zeros(3, dtype=torch.complex32), r"torch.complex32 .*view\(torch.uint8\)"),
        (lambda: np.zeros(3), "wcodec.save_file takes NumPy"),
    ],
    ids=[
        "meta",
        "sparse",
        "csr",
        "wrapper",
        "fake",
        "lazy",
        "nested",
        "jagged",
        "quantised",
        "uint4",
        "complex32",
        "array",
    ],
)
@pytest.mark.filterwarnings(
    "ignore:Sparse CSR tensor support:UserWarning", "ignore:.*invariant checks:UserWarning"
)
@pytest.mark.filterwarnings(
    "ignore:ComplexHalf support:UserWarning",
    "ignore:Lazy modules:UserWarning",
    "ignore:The PyTorch API of nested tensors:UserWarning",
    "ignore:.*quantize:UserWarning",
)
def test_what_has_no_values_to_store_is_refused(
    tmp_path: Path, make: Callable[[], Any], what: str
) -> None:
    with pytest.raises(EncodeError, match=what) as e:
        save_file({"fine": torch.ones(9), "bad": make()}, tmp_path / "a")
    assert (e.value.code, e.value.tensor) == ("unsupported_dtype", "bad")
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []


# ---- decoding ------------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    tensors = {f"t{i}": weights(200 + i, 300, seed=i) for i in range(6)} | {
        "long": weights(90_000),
        "rows": weights(2, 70_000),
    }
    save_file(tensors, tmp_path / "a")
    monkeypatch.setattr(decoding, "PIECE_NBYTES", 1 << 15)  # tensors come in many pieces
    with use_backend("numba", threads):
        loaded = load_file(tmp_path / "a")
    assert all(same(loaded[name], t) for name, t in tensors.items())


def test_all_that_others_decode_is_decoded_too(tmp_path: Path) -> None:
    """Presets, forced tiles, differences from a base, file objects, opaque bytes."""
    tensors = {"w": weights(300, 400), "v": weights(100, 900, dtype=torch.float16)}
    base = tmp_path / "base"
    save_file(tensors, base)
    tuned = {name: t.clone() for name, t in tensors.items()}
    tuned["w"][::50] *= 2
    for options in (
        wcodec.EncodeOptions(preset="max"),
        wcodec.EncodeOptions(preset="fast"),
        wcodec.EncodeOptions(tile=(16, 16)),
    ):
        save_file(tensors, tmp_path / "a", options=options)
        assert all(same(load_file(tmp_path / "a")[name], t) for name, t in tensors.items())
    assert save_file(tuned, tmp_path / "a", base=base) < base.stat().st_size // 4
    for loaded in (
        load_file(tmp_path / "a"),
        load_file(tmp_path / "a", base=base),
        load_wcodec_checkpoint(tmp_path / "a", base=base),
    ):
        assert all(same(loaded[name], t) for name, t in tuned.items())
    (tmp_path / "in").write_bytes(
        safetensors_bytes([("a", "F4", [4], b"ab"), ("b", "BOOL", [3], b"\x00\x02\xff")])
    )
    encode_file(tmp_path / "in", tmp_path / "a", overwrite=True)
    with (tmp_path / "a").open("rb") as f:
        loaded = load_file(f)
    assert raw(loaded["a"]) == b"ab"
    assert loaded["b"].dtype is torch.bool
    assert raw(loaded["b"]) == b"\x00\x02\xff"


def test_only_what_is_wanted_is_read(tmp_path: Path) -> None:
    tensors = {name: weights(600, 800, seed=i) for i, name in enumerate("abcd")}
    nbytes = save_file(tensors, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    f = Counted(data)
    found = load_file(f, names=["c", "a"])
    assert list(found) == ["c", "a"]
    assert same(found["c"], tensors["c"])
    assert 0.48 * nbytes < f.n_read < 0.56 * nbytes
    f = Counted(data)
    with safe_open(f) as opened:
        assert f.n_read < 0.05 * nbytes
        opened.get_slice("b")[:10]
        assert f.n_read < 0.15 * nbytes
    with pytest.raises(KeyError, match="no tensor 'e'"):
        load_file(tmp_path / "x", names=["a", "e"])


def test_a_file_may_go_once_it_is_open(tmp_path: Path) -> None:
    w = weights(600, 800)
    save_file({"w": w}, tmp_path / "a")
    with use_backend("numba", 2), WCodecCheckpoint(tmp_path / "a") as c:
        (tmp_path / "a").unlink()
        assert same(c["w"], w)


class Failing(io.BytesIO):
    """A file object whose reads fail from a place on, or end there."""

    def __init__(self, data: bytes, first: int, error: bool) -> None:
        super().__init__(data)
        self._first, self._error = first, error

    def read(self, size: int | None = -1, /) -> bytes:
        if self._first <= self.tell() < len(self.getbuffer()) - (1 << 16):
            if self._error:
                raise OSError("the disk is gone")
            return b""
        return super().read(size)


@pytest.mark.parametrize("threads", [1, 2])
def test_reads_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    save_file({f"t{i}": weights(300, 400, seed=i) for i in range(9)}, tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    monkeypatch.setattr(decoding, "AHEAD_NBYTES", 1 << 18)
    with use_backend("numba", threads):
        with pytest.raises(OSError, match="the disk is gone"):
            load_file(Failing(data, len(data) // 2, True))
        with pytest.raises(DecodeError, match=r"ends .* bytes early") as e:
            load_file(Failing(data, len(data) // 2, False))
        assert e.value.code == "truncated"
    assert not [
        t.name for t in threading.enumerate() if t.name.startswith(("wcodec-read", "wcodec-load"))
    ]


# ---- safe_open -----------------------------------------------------------------------------------
def test_safe_open(tmp_path: Path) -> None:
    tensors = {
        "w": weights(300, 200),
        "e": weights(4, 30, 50, dtype=torch.float8_e4m3fn),
        "s": torch.tensor(2.5),
    }
    save_file(tensors, tmp_path / "a", {"format": "pt"})
    with safe_open(tmp_path / "a", framework="pt", device="cpu") as f:
        assert f.keys() == f.offset_keys() == ["w", "e", "s"]
        assert f.metadata() == {"format": "pt"}
        assert all(same(f.get_tensor(name), t) for name, t in tensors.items())
        assert {name: raw(t) for name, t in f.get_tensors().items()} == {
            name: raw(t) for name, t in tensors.items()
        }
        part = f.get_slice("e")
        assert (part.get_shape(), part.get_dtype()) == ([4, 30, 50], "F8_E4M3")
        with pytest.raises(KeyError, match="no tensor 'x'"):
            f.get_slice("x")
    with pytest.raises(ValueError, match=r"wcodec\.open gives NumPy"):
        safe_open(tmp_path / "a", framework="np")


INDICES = [
    3, -1, slice(5, 9), (slice(None), slice(2, 40, 3)), (..., 4), (2, ..., slice(1, 2)), ...,
    slice(0, 0), (1, 2, 3), (slice(None), -1), (),
]  # fmt: skip


@pytest.mark.parametrize(
    "dtype",
    [
        d
        for d in ARRAY_DTYPES
        if d.name in ("bfloat16", "bool", "complex64", "float8_e5m2", "uint32", "int8")
    ],
)
def test_slices_are_those_of_torch(tmp_path: Path, dtype: DType) -> None:
    whole = tensor_of(dtype, (40, 60, 70), "gaussian")
    save_file({"w": whole}, tmp_path / "a")
    with safe_open(tmp_path / "a") as f:
        part = f.get_slice("w")
        for index in INDICES:
            assert same(part[index], whole[index]), index
        with pytest.raises(IndexError, match="out of bounds"):
            part[40]
        with pytest.raises(TypeError, match="indices are"):
            part["a"]


# ---- checkpoints ---------------------------------------------------------------------------------
@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder of two shards with an index, and a file that does not belong to them."""
    folder = tmp_path / "model"
    folder.mkdir()
    tensors = {f"layers.{i}.w": weights(100 + i, 80, seed=i) for i in range(6)} | {
        "norm": torch.ones(80)
    }
    names = [f"model-0000{i}-of-00002.wcodec" for i in (1, 2)]
    save_file(
        {n: t for n, t in tensors.items() if n < "layers.3"},
        folder / names[0],
        {"format": "pt", "part": "1"},
    )
    save_file(
        {n: t for n, t in tensors.items() if n > "layers.3"},
        folder / names[1],
        {"format": "pt", "part": "2"},
    )
    save_file({"layers.0.w": torch.zeros(4)}, folder / "other.wcodec")
    weight_map = {n: names[n > "layers.3"] for n in tensors}
    (folder / "model.wcodec.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return folder, tensors


def test_a_checkpoint_of_shards(shards: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, tensors = shards
    with WCodecCheckpoint(folder) as c:
        assert list(c) == list(c.keys()) == list(tensors)
        assert len(c) == 7
        assert "norm" in c
        assert "other" not in c
        assert c.shapes() == {n: t.shape for n, t in tensors.items()}
        assert c.dtypes() == {n: t.dtype for n, t in tensors.items()}
        assert c.nbytes == sum(t.nbytes for t in tensors.values())
        assert c.stored_nbytes == sum(p.stat().st_size for p in folder.glob("model-*.wcodec"))
        assert c.metadata == {"format": "pt", "part": "1"}
        assert same(c["layers.4.w"], tensors["layers.4.w"])
        for found in (
            dict(c.items()),
            dict(zip(c, c.values(), strict=True)),
            c.state_dict(),
            dict(c),
            load_wcodec_checkpoint(folder),
        ):
            assert list(found) == list(tensors)
            assert all(same(t, tensors[n]) for n, t in found.items())
        with pytest.raises(KeyError, match="model has no tensor 'x'"):
            c["x"]
    (folder / "model.wcodec.index.json").unlink()
    (folder / "other.wcodec").unlink()
    assert list(WCodecCheckpoint(folder)) == list(tensors)


def test_a_model_takes_a_checkpoint(tmp_path: Path) -> None:
    model, other = torch.nn.Linear(40, 50), torch.nn.Linear(40, 50)
    save_file(model.state_dict(), tmp_path / "a")
    with WCodecCheckpoint(tmp_path / "a") as c:
        other.load_state_dict(c)
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(other.bias, model.bias)


def test_iteration_decodes_one_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"t{i}": weights(50, 60, seed=i) for i in range(9)}
    save_file(tensors, tmp_path / "a")
    decoded, tensor = list[str](), Reader.tensor
    monkeypatch.setattr(
        Reader, "tensor", lambda self, name: (decoded.append(name), tensor(self, name))[1]
    )
    items = iter(WCodecCheckpoint(tmp_path / "a").items())
    for i in range(4):
        name, found = next(items)
        assert (name, same(found, tensors[name])) == (f"t{i}", True)
        assert len(decoded) <= i + 2
    items.close()  # type: ignore[attr-defined]
    assert len(decoded) <= 5


def test_where_tensors_go(tmp_path: Path) -> None:
    w = weights(60, 50)
    save_file({"w": w, "one": torch.tensor(1.5), "none": torch.zeros(0, 3)}, tmp_path / "a")
    for where in (
        "cpu",
        torch.device("cpu"),
        None,
        {"cpu": "cpu"},
        {"cuda:0": "cuda:1"},
        lambda storage, location: None,
    ):
        assert same(load_wcodec_checkpoint(tmp_path / "a", map_location=where)["w"], w)
    for where in ("meta", {"cpu": "meta"}):
        found = load_wcodec_checkpoint(tmp_path / "a", map_location=where)
        assert {t.device.type for t in found.values()} == {"meta"}
        assert [t.shape for t in found.values()] == [(60, 50), (), (0, 3)]
    calls = list[tuple[int, str]]()

    def moved(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
        calls.append((storage.nbytes(), location))
        return storage.clone()

    found = load_wcodec_checkpoint(tmp_path / "a", map_location=moved)
    assert calls == [(6000, "cpu"), (4, "cpu"), (0, "cpu")]
    assert same(found["w"], w)
    assert same(found["one"], torch.tensor(1.5))

    def on_meta(storage: torch.UntypedStorage, _: str) -> torch.UntypedStorage:
        return torch.empty(storage.nbytes(), dtype=torch.uint8, device="meta").untyped_storage()

    found = load_wcodec_checkpoint(tmp_path / "a", map_location=on_meta)
    assert found["w"].device.type == "meta"


# ---- GPUs ----------------------------------------------------------------------------------------
def test_a_missing_gpu_is_named(tmp_path: Path) -> None:
    save_file({"w": weights(3, 3)}, tmp_path / "a")
    with pytest.raises(
        BackendUnavailable, match=r"'cuda:1': this PyTorch finds no GPU; install .*wcodec\[cuda\]"
    ):
        load_file(tmp_path / "a", device="cuda:1")
    with pytest.raises(BackendUnavailable, match="finds no GPU"):
        load_wcodec_checkpoint(tmp_path / "a", map_location=torch.device("cuda"))


def test_a_missing_driver_or_cupy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"w": weights(3, 3)}, tmp_path / "a")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(
        BackendUnavailable, match=r"backend 'cuda' needs (an NVIDIA GPU and its driver|CuPy)"
    ):
        load_file(tmp_path / "a", device="cuda:0")


def test_device_memory_becomes_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every dtype, from an emulated device, whose memory is the host's. It is PyTorch's own, and
    its stream is that of PyTorch.
    """
    tensors = {
        f"{d.name} {shape}": tensor_of(d, shape, "gaussian", i)
        for i, d in enumerate(ARRAY_DTYPES)
        for shape in SHAPES
    }
    tensors["float4"] = weights(60, 50).view(torch.float4_e2m1fn_x2)
    save_file(tensors, tmp_path / "a")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    made = list[int | None]()

    def loader(number: int | None) -> wcodec.cuda.Loader:
        made.append(number)
        return real(number, runtime_of=lambda n: Runtime(n or 0))

    real = wcodec.cuda.Loader
    taken, streams = list[torch.Tensor](), list[int]()

    def empty(nbytes: int, device: torch.device) -> torch.Tensor:
        taken.append(torch.empty(nbytes, dtype=torch.uint8))
        return taken[-1]

    class Runtime(LazyRuntime):
        def external_stream(self, handle: int) -> Any:
            streams.append(handle)
            return super().external_stream(handle)

    monkeypatch.setattr("wcodec.torch.loading.device_memory.empty", empty)
    monkeypatch.setattr(
        "wcodec.torch.loading.device_memory.current_stream", lambda device: 70 + device.index
    )
    monkeypatch.setattr("wcodec.cuda.shared_loader", loader)
    monkeypatch.setattr("wcodec.cuda.Loader", loader)
    found = load_file(tmp_path / "a", device="cuda:2")
    assert list(found) == list(tensors)
    assert [name for name in tensors if not same(found[name], tensors[name])] == []
    assert {t.untyped_storage().data_ptr() for t in found.values()} == {
        t.untyped_storage().data_ptr() for t in taken
    }
    names = list(tensors)[3:5]
    assert list(load_file(tmp_path / "a", device="cuda:2", names=names)) == names
    with WCodecCheckpoint(tmp_path / "a", "cuda:1") as c:
        assert all(same(t, tensors[n]) for n, t in c.items())
        assert same(c[names[0]], tensors[names[0]])
    assert made == [2, 2, 1, 1]
    assert set(streams) == {71, 72}


def test_device_memory_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the runtime keeps is given back, once; then the error is that of memory."""
    save_file({"w": weights(64, 64)}, tmp_path / "a")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked, closed, free = list[int](), list[int](), list[bool]([False, True])

    def empty(nbytes: int, device: torch.device) -> torch.Tensor:
        asked.append(nbytes)
        if not free or not free.pop(0):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return torch.empty(nbytes, dtype=torch.uint8)

    class Runtime(LazyRuntime):
        def close(self) -> None:
            closed.append(self.device)

    monkeypatch.setattr("wcodec.torch.loading.device_memory.empty", empty)
    monkeypatch.setattr("wcodec.torch.loading.device_memory.current_stream", lambda _: 7)
    loader = wcodec.cuda.Loader(1, runtime_of=lambda n: Runtime(n or 0))
    monkeypatch.setattr("wcodec.cuda.shared_loader", lambda _: loader)
    assert same(load_file(tmp_path / "a", device="cuda:1")["w"], weights(64, 64))
    assert (asked, closed) == ([8192, 8192], [1])
    with pytest.raises(
        DecodeError,
        match="resource_limit: in 'a': there is no memory for the tensors: CUDA out of memory",
    ):
        load_file(tmp_path / "a", device="cuda:1")


def test_a_backend_that_was_chosen_is_used(tmp_path: Path) -> None:
    """Another one than ``auto`` takes: decoded on the host, then moved,
    which fails here in PyTorch's words.
    """
    save_file({"w": weights(3, 3)}, tmp_path / "a")
    with use_backend("reference"), pytest.raises((AssertionError, RuntimeError), match="CUDA"):
        load_file(tmp_path / "a", device="cuda")


# ---- bad files -----------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [1, 2])
def test_damage_names_tensor_and_file(tmp_path: Path, threads: int) -> None:
    tensors = {name: weights(400, 300, seed=i) for i, name in enumerate("abc")}
    path = tmp_path / "model.wcodec"
    save_file(tensors, path)
    with wcodec.open(path) as f:
        place = f.record("b").payload_offset + f.record("b").payload_nbytes // 2
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)
    readers: list[Callable[[], Any]] = [
        lambda: load_file(path),
        lambda: load_file(path, names=["b"]),
        lambda: safe_open(path).get_tensor("b"),
        lambda: safe_open(path).get_slice("b")[:],
        lambda: WCodecCheckpoint(path)["b"],
        lambda: list(WCodecCheckpoint(path).items()),
        lambda: load_wcodec_checkpoint(path),
    ]
    with use_backend("numba", threads):
        for read in readers:
            with pytest.raises(
                DecodeError, match=r"in 'model\.wcodec': the CRC-32 of segment"
            ) as e:
                read()
            assert (e.value.code, e.value.tensor) == ("bad_checksum", "b")
        assert same(load_file(path, names=["c", "a"])["a"], tensors["a"])


def test_the_sum_of_a_tensor_is_checked(tmp_path: Path) -> None:
    """Segments that are right, in a tensor whose index names another CRC-32."""
    save_file({"w": weights(400, 300)}, tmp_path / "a")
    with use_backend("numba", 2), safe_open(tmp_path / "a") as f:
        object.__setattr__(f._reader.file.original(f._reader.record("w")), "crc32", 1)
        with pytest.raises(DecodeError, match="CRC-32 of the decoded tensor") as e:
            f.get_tensor("w")
    assert e.value.tensor == "w"


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    save_file({"w": weights(40, 30)}, tmp_path / "model.wcodec")
    data = bytearray((tmp_path / "model.wcodec").read_bytes())
    data[8:12] = struct.pack("<HH", 7, 3)
    data[28:32] = struct.pack("<I", zlib.crc32(data[:28]))
    (tmp_path / "model.wcodec").write_bytes(data)
    for read in (load_file, load_wcodec_checkpoint, safe_open, WCodecCheckpoint):
        with pytest.raises(
            DecodeError, match=r"in 'model.wcodec': format version 7.3; this decoder knows 0.2"
        ) as e:
            read(tmp_path / "model.wcodec")
        assert e.value.code == "unsupported_version"


def test_safetensors_files_are_pointed_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes([("w", "BF16", [300, 200], raw(weights(300, 200)))]))
    with pytest.raises(
        DecodeError,
        match=r"in 'model\.safetensors': .* not compressed: safetensors\.torch\.load_file reads it",
    ) as e:
        load_file(path)
    assert e.value.code == "bad_magic"
    encode_hub_file(path, tmp_path / "hub.safetensors")
    with pytest.raises(DecodeError, match=r"in hub form: wcodec\.transformers loads its directory"):
        WCodecCheckpoint(tmp_path / "hub.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no \.wcodec file; wcodec\.transformers loads"):
        WCodecCheckpoint(tmp_path)
    path.write_bytes(b"neither of both, but long enough to be one")
    with pytest.raises(DecodeError, match="magic"):
        load_file(path)


def index_with(folder: Path, weight_map: Any) -> None:
    (folder / "model.wcodec.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    "file",
    [
        "../a.wcodec",
        "/etc/a.wcodec",
        "sub/a.wcodec",
        "sub\\a.wcodec",
        "..",
        "",
        "a.safetensors",
        "a\0.wcodec",
    ],
)
def test_an_index_names_no_other_places(
    shards: tuple[Path, dict[str, torch.Tensor]], file: str
) -> None:
    index_with(shards[0], {"layers.0.w": file})
    with pytest.raises(DecodeError, match="file beside the index") as e:
        WCodecCheckpoint(shards[0])
    assert (e.value.code, e.value.tensor) == ("bad_name", "layers.0.w")


def test_bad_folders(shards: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    folder, _ = shards
    index = folder / "model.wcodec.index.json"
    for text in (
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"layers.0.w": 3}}',
        "[" * 100_000,
        "\ud800".encode("utf-8", "surrogatepass"),
    ):
        index.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(DecodeError) as e:
            WCodecCheckpoint(folder)
        assert e.value.code == "bad_value"
    index_with(folder, {"norm": "model-00001-of-00002.wcodec"})
    with pytest.raises(DecodeError, match="does not hold it") as e:
        WCodecCheckpoint(folder)
    assert (e.value.code, e.value.tensor) == ("bad_range", "norm")
    index_with(folder, {"norm": "absent.wcodec"})
    with pytest.raises(FileNotFoundError):
        WCodecCheckpoint(folder)
    index.unlink()
    with pytest.raises(DecodeError, match="both have this tensor") as e:
        WCodecCheckpoint(folder)
    assert (e.value.code, e.value.tensor) == ("bad_name", "layers.0.w")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.wcodec file"):
        WCodecCheckpoint(tmp_path / "empty")


def test_without_pytorch() -> None:
    code = "import sys; sys.modules['torch'] = None; import wcodec; import wcodec.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        done.stderr.strip().splitlines()[-1]
        == "ImportError: wcodec.torch needs PyTorch: pip install 'wcodec[torch]'"
    )


def test_wcodec_alone_imports_no_pytorch() -> None:
    code = "import sys, wcodec; assert not {'torch', 'numba', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
