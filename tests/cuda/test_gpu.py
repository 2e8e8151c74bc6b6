"""What needs a GPU: ``make gpu-check`` runs it. Kernels against the reference, loading of files,
DLPack, many calls, large tensors.

``WCODEC_GPU_TESTS=emulated`` runs it on the emulator, on small tensors: a test of this file alone.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inputs import ARRAY_DTYPES, make_array
from plans import make_case
from test_backends_equal import (
    check_bad,
    spoil,
    test_calls_at_once,
    test_contexts_in_large_segments,
    test_extreme_tables,
    test_faults_of_several_kinds,
    test_garbage_payloads,
    test_histograms,
    test_more_than_one_range,
    test_nothing,
    test_one_word_short,
    test_patches,
    test_random_plans,
    test_segments_of_one_kind,
    test_sizes,
    test_spoilt_payloads,
    test_tile_modes,
    test_uncoded_pairs,
    test_use_after_close,
)
from test_backends_sparse import (
    test_changes,
    test_changes_of_nothing,
    test_checksums_of_ranges_of_any_bytes,
    test_malformed_gaps,
    test_places,
    test_places_of_nothing,
    test_spans,
    test_take_and_put,
    test_there_and_back,
)
from test_real_weights import checkpoints  # noqa: F401 (a fixture)

import wcodec
import wcodec.cuda
from wcodec.backends import load_backend, use_backend
from wcodec.backends.protocol import Backend, Status
from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder
from wcodec.cuda import Loader, pipeline
from wcodec.errors import BackendUnavailable, DecodeError
from wcodec.files.checkpoint import encode_file
from wcodec.reference.planes import DTYPES, DType

pytestmark = pytest.mark.gpu

__all__ = [  # run here with this file's `backend`
    "test_calls_at_once", "test_changes", "test_changes_of_nothing",
    "test_checksums_of_ranges_of_any_bytes", "test_contexts_in_large_segments",
    "test_extreme_tables", "test_faults_of_several_kinds", "test_garbage_payloads",
    "test_histograms", "test_malformed_gaps", "test_more_than_one_range", "test_nothing",
    "test_one_word_short", "test_patches", "test_places", "test_places_of_nothing",
    "test_random_plans", "test_segments_of_one_kind", "test_sizes", "test_spans",
    "test_spoilt_payloads", "test_take_and_put", "test_there_and_back", "test_tile_modes",
    "test_uncoded_pairs", "test_use_after_close",
]  # fmt: skip

EMULATED = os.environ.get("WCODEC_GPU_TESTS") == "emulated"
BACKEND = "cuda_emulator.backend:EmulatedCuda" if EMULATED else "cuda"
LARGE = (96, 160) if EMULATED else (4096, 4096)
SMALL = (23, 87) if EMULATED else (123, 457)
REPEATS = 3 if EMULATED else 50
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    """The CUDA backend; what needs it is skipped where it can't be used, and says why."""
    try:
        one = load_backend(BACKEND)
    except BackendUnavailable as e:
        pytest.skip(str(e))
    yield one
    one.close()


@pytest.fixture
def loader_of(backend: Backend) -> Callable[..., Loader]:
    """Makes loaders on the device."""
    if EMULATED:
        from cuda_emulator.streams import LazyRuntime

        return lambda **options: Loader(
            runtime_of=lambda number: LazyRuntime(number or 0), **options
        )
    return Loader


@pytest.fixture(scope="module")
def host() -> Backend:
    return load_backend("numba")


def same(device: Any, host: Array) -> None:
    assert device.shape == host.shape
    back = device.numpy()
    assert back.dtype == host.dtype
    assert back.tobytes() == host.tobytes()


def gaussian(dtype: DType, shape: tuple[int, ...], seed: int = 0) -> Array:
    """Weights of a dtype: values of standard deviation 0.02, or 20 of integers."""
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    if dtype.name == "bool":
        return values > 1
    if dtype.numpy.kind in "iu":
        return np.rint(values * 20).astype(np.int64).astype(dtype.numpy)
    with np.errstate(all="ignore"):
        return (values * np.float32(0.02)).astype(dtype.numpy)


def tensors_of_a_model() -> dict[str, Array]:
    """Many dtypes and sizes, empty ones and scalars among them."""
    out = {
        f"{d.name}.{kind}": make_array(d, SMALL, kind, 1)
        for d in ARRAY_DTYPES
        for kind in ("gaussian", "few", "uniform")
    }
    bfloat16 = next(d for d in DTYPES if d.name == "bfloat16")
    out |= {f"layer.{i}": gaussian(bfloat16, (LARGE[0] // 2 + i, LARGE[1]), i) for i in range(6)}
    return out | {"nothing": np.zeros((0, 3), np.float32), "one": np.array(1.5, np.float16)}


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, host: Backend
) -> tuple[Path, dict[str, Array]]:
    path, tensors = tmp_path_factory.mktemp("gpu") / "model.wcodec", tensors_of_a_model()
    with path.open("wb") as f:
        writer = Encoder(None, host).start(f)
        for name, a in tensors.items():
            writer.add(name, a)
        writer.finish()
    return path, tensors


# ---- what there is -------------------------------------------------------------------------------
@pytest.mark.skipif(EMULATED, reason="an emulated device has no driver")
def test_info(backend: Backend) -> None:
    info = backend.info()
    assert {"device", "compute capability", "memory", "driver", "cupy"} <= set(info)
    assert float(info["compute capability"]) >= 7.5
    assert load_backend("auto").name == "cuda"


# ---- files ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("slot_nbytes", [1 << 16, pipeline.SLOT_NBYTES])
def test_whole_file(
    checkpoint: Any,
    loader_of: Callable[..., Loader],
    streams: int,
    slot_nbytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also in sets so small that tensors are cut, and every stream is used many times."""
    monkeypatch.setattr("wcodec.cuda.loader.SLOT_NBYTES", slot_nbytes)
    path, tensors = checkpoint
    with loader_of(streams=streams) as loader:
        for _ in range(2):
            loaded = loader.load_file(path)
            assert list(loaded) == list(tensors)
            for name, a in tensors.items():
                same(loaded[name], a)


def test_one_after_another(checkpoint: Any, loader_of: Callable[..., Loader]) -> None:
    path, tensors = checkpoint
    with loader_of() as loader:
        for t in loader.iterate(path):
            same(t, tensors[t.name])


@pytest.mark.skipif(EMULATED, reason="takes long on the emulator")
def test_real_weights(
    checkpoints: dict[str, Path],  # noqa: F811
    loader_of: Callable[..., Loader],
    tmp_path: Path,
    host: Backend,
) -> None:
    """A published model in several precisions, where the packages are that hold it."""
    for name, source in checkpoints.items():
        encode_file(source, tmp_path / f"{name}.wcodec", backend=host)
        with wcodec.open(tmp_path / f"{name}.wcodec", host) as f, loader_of() as loader:
            for key, t in loader.load_file(tmp_path / f"{name}.wcodec").items():
                assert t.numpy().tobytes() == f.get_tensor(key).tobytes()


def test_spoilt_file(checkpoint: Any, loader_of: Callable[..., Loader], tmp_path: Path) -> None:
    path, tensors = checkpoint
    with wcodec.open(path, load_backend("reference")) as f:
        t = f.record("layer.3")
    with loader_of() as loader:
        for i in range(6):
            data = bytearray(path.read_bytes())
            data[t.payload_offset + (i * t.payload_nbytes) // 6 + 40] ^= 1 << i
            (tmp_path / "spoilt.wcodec").write_bytes(data)
            with pytest.raises(DecodeError) as e:
                loader.load_file(tmp_path / "spoilt.wcodec")
            assert e.value.tensor == "layer.3"
        same(loader.load_file(path, ["layer.3"])["layer.3"], tensors["layer.3"])


def test_sparse_files(
    loader_of: Callable[..., Loader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of which few words differ from those of another, and one that follows it: many
    segments, in sets so small that they are cut, and in others.
    """
    names = ("bfloat16", "float32", "float64", "int8")
    dtypes = [d for d in DTYPES if d.name in names]
    versions = [{d.name: gaussian(d, LARGE) for d in dtypes} | {"one": np.array(1.5, np.float16)}]
    for seed in (1, 2):
        rng, now = np.random.default_rng(seed), {n: a.copy() for n, a in versions[-1].items()}
        for d in dtypes:
            changes = rng.random(LARGE) < 0.02
            now[d.name][changes] = gaussian(d, LARGE, seed)[changes]
        versions.append(now)
    monkeypatch.setattr("wcodec.planner.differences.LIST_WORDS", LARGE[0] * LARGE[1] // 50)
    for i, tensors in enumerate(versions):
        base = tmp_path / f"{i - 1}.wcodec" if i else None
        for name in ("numba", BACKEND):
            with use_backend(name):
                wcodec.save_file(tensors, tmp_path / f"{name}.wcodec", base=base)
        same_bytes = {(tmp_path / f"{name}.wcodec").read_bytes() for name in ("numba", BACKEND)}
        assert len(same_bytes) == 1
        (tmp_path / f"{i}.wcodec").write_bytes(same_bytes.pop())
    with wcodec.open(tmp_path / "2.wcodec") as f:
        assert all(f.record(d.name).lists is not None for d in dtypes)
    for slot_nbytes in (1 << 16, pipeline.SLOT_NBYTES):
        monkeypatch.setattr("wcodec.cuda.loader.SLOT_NBYTES", slot_nbytes)
        with loader_of() as loader:
            for i in (1, 2):
                for name, t in loader.load_file(tmp_path / f"{i}.wcodec").items():
                    same(t, versions[i][name])
    with use_backend(BACKEND):
        for name, a in wcodec.load_file(tmp_path / "2.wcodec").items():
            assert a.tobytes() == versions[2][name].tobytes()


# ---- DLPack --------------------------------------------------------------------------------------
def test_dlpack_to_torch(checkpoint: Any, loader_of: Callable[..., Loader], backend: Any) -> None:
    """Without a copy; and the memory stays after everything else is gone."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    path, tensors = checkpoint
    kept = {}
    with loader_of() as loader:
        for name, t in loader.load_file(path).items():
            if not hasattr(torch, t.dtype.name):
                continue
            shared = torch.from_dlpack(t)
            assert tuple(shared.shape) == t.shape
            assert t.nbytes == 0 or shared.data_ptr() == backend.runtime.address(t.words)
            assert str(shared.dtype).removeprefix("torch.") == t.dtype.name
            assert shared.is_cuda != EMULATED
            kept[name] = shared
        del t, shared
        loader.load_file(path)  # would take memory that nobody holds
    for name, shared in kept.items():
        on_host = shared.cpu()
        assert (
            ctypes.string_at(on_host.data_ptr(), tensors[name].nbytes) == tensors[name].tobytes()
        ), name


def test_torch_computes_with_it(loader_of: Callable[..., Loader]) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    a = gaussian(next(d for d in DTYPES if d.name == "bfloat16"), LARGE)
    with loader_of() as loader:
        shared = torch.from_dlpack(loader.decode(Encoder(None, load_backend("numba")).encode(a)))
        total = float(shared.double().sum())
    assert total == pytest.approx(float(a.astype(np.float64).sum()), rel=1e-9, abs=1e-9)


@pytest.mark.skipif(EMULATED, reason="needs CuPy's arrays")
def test_dlpack_to_cupy(checkpoint: Any, loader_of: Callable[..., Loader]) -> None:
    cupy = pytest.importorskip("cupy")
    path, tensors = checkpoint
    with loader_of() as loader:
        for name, t in loader.load_file(path).items():
            if tensors[name].dtype.kind in "iufc" and t.nbytes:
                shared = cupy.from_dlpack(t)
                assert shared.data.ptr == t.words.data.ptr
                assert shared.get().tobytes() == tensors[name].tobytes()


# ---- calls ---------------------------------------------------------------------------------------
def arrays(n: int) -> list[Array]:
    """Of several sizes and dtypes."""
    by_name = {d.name: d for d in DTYPES}
    names = ["bfloat16", "float32", "int8", "float8_e4m3fn", "float16"]
    return [gaussian(by_name[names[i % 5]], (100 + 37 * i, 300 + i), i) for i in range(n)]


def test_decode_async(loader_of: Callable[..., Loader], host: Backend) -> None:
    some, encoder = arrays(10), Encoder(None, host)
    with loader_of() as loader:
        futures = [loader.decode_async(encoder.encode(a)) for a in some]
        for future, a in zip(futures, some, strict=True):
            same(future.result(60), a)
        with pytest.raises(DecodeError):
            loader.decode_async(b"no file").result(60)


@pytest.mark.skipif(EMULATED, reason="they make loaders of their own, on GPUs")
def test_functions_of_the_module(checkpoint: Any, backend: Backend, host: Backend) -> None:
    path, tensors = checkpoint
    for name, t in wcodec.cuda.load_file(path).items():
        same(t, tensors[name])
    (a,) = arrays(1)
    data = Encoder(None, host).encode(a)
    same(wcodec.cuda.decode(data), a)
    same(wcodec.cuda.decode_async(data).result(60), a)


def test_several_threads(loader_of: Callable[..., Loader], backend: Backend, host: Backend) -> None:
    """One loader, loaders of their own, and the backend, all at once."""
    some, encoder = arrays(8), Encoder(None, host)
    files = [encoder.encode(a) for a in some]
    with loader_of() as shared:

        def work(i: int) -> None:
            with loader_of(streams=2) as own:
                for k in range(3 * len(some)):
                    n = (i + k) % len(some)
                    same(shared.decode(files[n]), some[n])
                    same(own.decode(files[n]), some[n])
                    assert Decoder(backend).decode(files[n]).tobytes() == some[n].tobytes()
                    assert Encoder(None, backend).encode(some[n]) == files[n]

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))


def test_statuses_of_many_spoilt_payloads(backend: Backend) -> None:
    """All kinds, equal to the reference's."""
    rng, seen = np.random.default_rng(11), set[int]()
    for seed in range(4 if EMULATED else 60):
        case = make_case(rng, DTYPES[seed % len(DTYPES)])
        for _ in range(2 if EMULATED else 8):
            seen.update(check_bad(backend, case.decoding, spoil(rng, case)))
    assert {Status.OK, Status.BAD_STREAM} <= seen


# ---- memory --------------------------------------------------------------------------------------
def test_too_little_memory_is_allowed(checkpoint: Any, loader_of: Callable[..., Loader]) -> None:
    path, tensors = checkpoint
    with (
        pytest.raises(DecodeError, match="resource_limit"),
        loader_of(max_device_bytes=sum(a.nbytes for a in tensors.values())) as loader,
    ):
        loader.load_file(path)


@pytest.mark.skipif(
    EMULATED, reason="needs CuPy's memory hooks; tests/cuda/test_cuda_loader.py has the like"
)
@pytest.mark.parametrize("more", [8 << 20, 64 << 20, 512 << 20])
def test_max_device_bytes(checkpoint: Any, loader_of: Callable[..., Loader], more: int) -> None:
    memory_hook = pytest.importorskip("cupy.cuda.memory_hook")

    class Most(memory_hook.MemoryHook):  # type: ignore[misc, name-defined]
        name = "Most"
        now = most = 0

        def malloc_postprocess(self, **about: Any) -> None:
            self.now += about["mem_size"]
            self.most = max(self.most, self.now)

        def free_postprocess(self, **about: Any) -> None:
            self.now -= about["mem_size"]

    path, tensors = checkpoint
    limit = sum(a.nbytes for a in tensors.values()) + more
    with loader_of(max_device_bytes=limit) as loader, Most() as hook:
        loaded = loader.load_file(path)
        assert len(loaded) == len(tensors)
        assert 0 < hook.most <= limit


@pytest.mark.skipif(EMULATED, reason="needs CuPy's memory pool")
def test_memory_that_others_still_read(
    loader_of: Callable[..., Loader], host: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that was given back while the caller's stream has yet to read it may be taken, but
    not be written before that.
    """
    cupy = pytest.importorskip("cupy")
    a = gaussian(next(d for d in DTYPES if d.name == "bfloat16"), LARGE)
    data = Encoder(None, host).encode(a)
    due = np.random.default_rng(3).integers(0, 256, a.nbytes, np.uint8)
    wait = cupy.RawModule(code=importlib.import_module("gpu_device").BUSY_SOURCE).get_function(
        "busy"
    )
    with loader_of() as loader:
        same(loader.decode(data), a)  # compiled, and all buffers are there
        for _ in range(3):
            before, copied = cupy.asarray(due), cupy.empty(a.nbytes, np.uint8)
            cupy.cuda.get_current_stream().synchronize()
            wait((1,), (1,), (np.uint64(200_000_000),))
            copied.data.copy_from_device_async(before.data, a.nbytes)
            del before
            same(loader.decode(data), a)
            assert np.array_equal(copied.get(), due)


# ---- large tensors -------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ARRAY_DTYPES, ids=lambda d: d.name)
def test_large_tensors(
    loader_of: Callable[..., Loader], backend: Backend, host: Backend, dtype: DType
) -> None:
    """The device decodes what the host encodes, and encodes the same bytes."""
    a = gaussian(dtype, LARGE, dtype.id)
    data = Encoder(None, host).encode(a)
    assert Decoder(host).decode(data).tobytes() == a.tobytes()
    with loader_of() as loader:
        same(loader.decode(data), a)
    assert Decoder(backend).decode(data).tobytes() == a.tobytes()
    assert Encoder(None, backend).encode(a) == data


@pytest.mark.parametrize("name", ["bfloat16", "float32", "int8"])
def test_again_and_again(
    loader_of: Callable[..., Loader], backend: Backend, host: Backend, name: str
) -> None:
    """A race would give another result now and then."""
    dtype = next(d for d in DTYPES if d.name == name)
    a = gaussian(dtype, LARGE)
    data = Encoder(None, host).encode(a)
    with loader_of() as loader:
        for _ in range(REPEATS):
            same(loader.decode(data), a)
    assert all(Encoder(None, backend).encode(a) == data for _ in range(REPEATS // 3))


@pytest.mark.skipif(EMULATED, reason="there are as many emulated devices as one likes")
def test_several_gpus(checkpoint: Any, backend: Backend) -> None:
    n = pytest.importorskip("cupy").cuda.runtime.getDeviceCount()
    if n < 2:
        pytest.skip("there is one GPU")
    path, tensors = checkpoint
    with Loader(range(n)) as loader:
        loaded = loader.load_file(path)
    assert {t.device for t in loaded.values()} == set(range(n))
    for name, a in tensors.items():
        same(loaded[name], a)
