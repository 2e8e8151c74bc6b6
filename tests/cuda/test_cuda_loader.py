"""`wcodec.cuda` on emulated devices, whose streams put work off:
whole files to the device, and back by DLPack.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cuda_emulator.streams import LazyRuntime
from paths import VECTORS
from sampling import sampled

import wcodec
import wcodec.cuda
from wcodec.backends.cuda import cupy_runtime
from wcodec.backends.cuda.cupy_runtime import CupyRuntime
from wcodec.backends.cuda.decoding import Decoding
from wcodec.cuda import Loader, pipeline
from wcodec.errors import BackendUnavailable, DecodeError

RNG = np.random.default_rng(8)


def weights(*shape: int, dtype: Any = ml_dtypes.bfloat16) -> np.ndarray[Any, Any]:
    return (RNG.standard_normal(shape, dtype=np.float32) * 0.02).astype(dtype)


def model() -> dict[str, np.ndarray[Any, Any]]:
    """Tensors of many dtypes and sizes, empty ones and scalars among them."""
    out = {f"layer{i}.weight": weights(200 + i, 320) for i in range(5)}
    out |= {
        "half": weights(70, 130, dtype=np.float16),
        "single": weights(90, 200, dtype=np.float32),
    }
    out |= {
        "double": weights(40, 100, dtype=np.float64),
        "eight": weights(300, 90, dtype=ml_dtypes.float8_e4m3fn),
    }
    out |= {
        "complex": weights(30, 70, dtype=np.complex64),
        "flags": RNG.random(1000) < 0.1,
        "nothing": weights(0, 3),
        "one": weights(),
    }
    return out | {
        "ids": RNG.integers(0, 50, (1000, 3)),
        "small": RNG.integers(-20, 20, (100, 400)).astype(np.int8),
    }


def emulated(device: int | None) -> LazyRuntime:
    return LazyRuntime(device or 0, seed=device or 0)


@pytest.fixture
def small_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets so small that tensors are cut and every stream is used many times."""
    monkeypatch.setattr("wcodec.cuda.loader.SLOT_NBYTES", 1 << 14)
    monkeypatch.setattr(pipeline, "READ_NBYTES", 1 << 12)


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray[Any, Any]]]:
    tensors = model()
    wcodec.save_file(tensors, tmp_path / "model.wcodec")
    return tmp_path / "model.wcodec", tensors


def same(device: Any, host: np.ndarray[Any, Any]) -> None:
    assert device.shape == host.shape
    back = device.numpy()
    assert back.dtype == host.dtype
    assert back.tobytes() == host.tobytes()


@pytest.mark.usefixtures("small_slots")
@pytest.mark.parametrize(
    ("devices", "streams"), sampled(itertools.product([None, [0], [0, 1, 2]], [1, 2, 4]), always=4)
)
def test_whole_file(checkpoint: Any, streams: int, devices: list[int] | None) -> None:
    path, tensors = checkpoint
    with Loader(devices, streams=streams, runtime_of=emulated) as loader:
        for _ in range(2):  # buffers are used again
            loaded = loader.load_file(path)
            assert list(loaded) == list(tensors)
            for name, host in tensors.items():
                same(loaded[name], host)
    used = {t.device for t in loaded.values()}
    assert used == set(devices or [0])


def test_files_of_every_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transforms and contexts, of the conformance suite; pieces that are rows of segments share the
    tables and maps of the file.
    """
    monkeypatch.setattr("wcodec.cuda.loader.SLOT_NBYTES", 1 << 10)
    paths = [
        p
        for kind in ("dct", "adst", "context")
        for p in (VECTORS / "accept").glob(f"{kind}_*.wcodec")
    ]
    assert len(paths) > 30
    with Loader(runtime_of=emulated) as loader:
        for path in paths:
            loaded, tensors = loader.load_file(path), wcodec.load_file(path)
            assert list(loaded) == list(tensors)
            for name, host in tensors.items():
                same(loaded[name], host)


def test_some_tensors(checkpoint: Any) -> None:
    path, tensors = checkpoint
    loader = Loader(runtime_of=emulated)
    loaded = loader.load_file(path, ["half", "layer2.weight"])
    assert list(loaded) == ["half", "layer2.weight"]
    same(loaded["half"], tensors["half"])
    with pytest.raises(KeyError):
        loader.load_file(path, ["no such tensor"])


@pytest.mark.usefixtures("small_slots")
def test_one_after_another(checkpoint: Any) -> None:
    path, tensors = checkpoint
    loader = Loader(runtime_of=emulated)
    for t in loader.iterate(path):
        same(t, tensors[t.name])
    same(next(iter(loader.iterate(path))), tensors["layer0.weight"])  # given up half way
    assert len(loader.load_file(path)) == len(tensors)


def test_later() -> None:
    arrays = [weights(100, 300) for _ in range(4)]
    with Loader(runtime_of=emulated) as loader:
        futures = [loader.decode_async(wcodec.encode(a)) for a in arrays]
        for future, a in zip(futures, arrays, strict=True):
            same(future.result(), a)
        with pytest.raises(DecodeError):
            loader.decode_async(b"no file").result()


def test_dlpack(checkpoint: Any) -> None:
    path, tensors = checkpoint
    for name, t in Loader(runtime_of=emulated).load_file(path).items():
        if tensors[name].dtype.kind in "iufcb":
            shared = np.from_dlpack(t)
            assert shared.dtype == tensors[name].dtype
            assert shared.tobytes() == tensors[name].tobytes()
            assert shared.size == 0 or np.shares_memory(shared, t.words)


def test_dlpack_of_dtypes_that_numpy_has_not(checkpoint: Any) -> None:
    """Codes, bits and memory as the specification has them;
    torch is asked in tests/cuda/test_gpu.py.
    """
    path, tensors = checkpoint
    loaded = Loader(runtime_of=emulated).load_file(path)
    for name, code, bits in (("layer1.weight", 4, 16), ("eight", 10, 8), ("single", 2, 32)):
        t = loaded[name]
        capsule = t.__dlpack__()
        exported = described(capsule)
        assert (exported.code, exported.bits, exported.lanes, exported.ndim) == (code, bits, 1, 2)
        assert tuple(exported.shape[:2]) == tensors[name].shape
        assert exported.data + exported.byte_offset == t.words.ctypes.data
    assert loaded["layer1.weight"].__dlpack_device__() == (1, 0)


class DLTensor(ctypes.Structure):
    """From dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


def described(capsule: Any) -> DLTensor:
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    address = pointer(capsule, b"dltensor")
    assert address is not None
    return DLTensor.from_buffer_copy(ctypes.string_at(address, ctypes.sizeof(DLTensor)))


@pytest.mark.usefixtures("small_slots")
@pytest.mark.parametrize("verify", [True, False])
def test_spoilt_files(checkpoint: Any, verify: bool) -> None:
    """A flipped bit of the payload is an error that names the tensor,
    unless nobody looks and no stream ends badly.
    """
    path, tensors = checkpoint
    data = bytearray(path.read_bytes())
    with wcodec.open(path) as f:
        records = {t.name: t for t in f.index.tensors}
    t = records["layer3.weight"]
    loader, found = Loader(runtime_of=emulated, verify=verify), list[DecodeError | None]()
    for i in range(6):
        at = t.payload_offset + (i * t.payload_nbytes) // 6 + 40
        data[at] ^= 1 << i
        found.append(error_of(loader, path, bytes(data)))
        data[at] ^= 1 << i
    errors = [e for e in found if e is not None]
    assert len(errors) == 6 if verify else errors
    for e in errors:
        assert e.tensor == "layer3.weight"
        assert (
            t.payload_offset <= (e.offset or t.payload_offset) < t.payload_offset + t.payload_nbytes
        )
    assert len(loader.load_file(path)) == len(tensors), "a loader goes on after an error"


def error_of(loader: Loader, path: Path, data: bytes) -> DecodeError | None:
    """What a loader says of a spoilt file, if anything."""
    spoilt = path.with_name("spoilt.wcodec")
    spoilt.write_bytes(data)
    try:
        loader.load_file(spoilt)
    except DecodeError as e:
        return e
    return None


def test_limits(checkpoint: Any) -> None:
    path, tensors = checkpoint
    nbytes = sum(a.nbytes for a in tensors.values())
    with pytest.raises(DecodeError, match="resource_limit"):
        Loader(runtime_of=emulated, max_device_bytes=nbytes).load_file(path)
    runtime = Counting(0)
    loaded = Loader(runtime_of=lambda _: runtime, max_device_bytes=nbytes + (8 << 20)).load_file(
        path
    )
    assert len(loaded) == len(tensors)
    assert runtime.most <= nbytes + (8 << 20)
    with pytest.raises(ValueError, match="at least one"):
        Loader([], runtime_of=emulated)


def test_limits_are_of_each_device(tmp_path: Path) -> None:
    """Also where the share of the last device is the smallest."""
    wcodec.save_file({"large": weights(1000, 2000), "small": weights(10)}, tmp_path / "two.wcodec")
    loader = Loader([0, 1], runtime_of=emulated, max_device_bytes=4_000_000 + (8 << 20))
    loader.load_file(tmp_path / "two.wcodec")
    buffers = [
        p.n_streams * p.slot_nbytes * wcodec.cuda.loader.BUFFERS_OF_SLOT
        for p in loader._pipelines
        if p is not None
    ]
    assert len(buffers) == 2
    assert buffers[0] <= 8 << 20
    kept = list(loader._pipelines)
    loader.load_file(tmp_path / "two.wcodec")
    assert loader._pipelines == kept, "buffers are kept if they still fit"


def test_limits_are_of_scratch_too(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = checkpoint
    slots, queue = list[int](), Decoding.queue

    def seen(self: Decoding) -> None:
        slots.append(self.scratch_nbytes)
        queue(self)

    monkeypatch.setattr(Decoding, "queue", seen)
    Loader(runtime_of=emulated, max_device_bytes=16 << 20).load_file(path, ["double"])
    assert slots
    assert max(slots) <= 8 << 20


@pytest.mark.usefixtures("small_slots")
def test_limits_while_tensors_go(tmp_path: Path) -> None:
    """Those alive at once count, not all."""
    wcodec.save_file({f"{i}": weights(200, 300) for i in range(20)}, tmp_path / "many.wcodec")
    runtime, limit = Counting(0), 8 * 120_000 + 8 * (1 << 14)
    for t in Loader(runtime_of=lambda _: runtime, max_device_bytes=limit, streams=2).iterate(
        tmp_path / "many.wcodec"
    ):
        assert t.nbytes == 120_000
    assert runtime.most <= limit
    with pytest.raises(DecodeError, match="resource_limit"):
        next(
            iter(
                Loader(runtime_of=emulated, max_device_bytes=200_000).iterate(
                    tmp_path / "many.wcodec"
                )
            )
        )


def test_a_loader_that_iterates_does_other_things_too(checkpoint: Any) -> None:
    """And between its tensors the device in use is the caller's."""
    path, tensors = checkpoint
    runtime, done = Counting(0), list[str]()

    def work() -> None:
        loader = Loader(runtime_of=lambda _: runtime)
        for t in loader.iterate(path):
            assert runtime.n_in_use == 0
            same(loader.load_file(path, [t.name])[t.name], tensors[t.name])
            done.append(t.name)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(120)
    assert done == list(tensors)


def test_later_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    data, go, queue = wcodec.encode(weights(30, 40)), threading.Event(), Decoding.queue

    def slow(self: Decoding) -> None:
        assert go.wait(60)
        queue(self)

    monkeypatch.setattr(Decoding, "queue", slow)
    with Loader(runtime_of=emulated) as loader:
        futures = [loader.decode_async(data)]
        thread = threading.Thread(
            target=lambda: futures.append(loader.decode_async(data)), daemon=True
        )
        thread.start()
        thread.join(30)
        waited = thread.is_alive()
        go.set()
        thread.join()
        assert not waited
        assert len({f.result().numpy().tobytes() for f in futures}) == 1


@pytest.mark.usefixtures("small_slots")
def test_what_is_queued_is_waited_for_when_something_fails(
    checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory goes with the error; a kernel that runs later would write to what is another's by
    then.
    """
    path, tensors = checkpoint
    runtime, of_words, n = Counting(0), pipeline.crc32_ranges, 0

    def failing(*args: Any) -> Any:
        nonlocal n
        n += 1
        if n == 3:
            raise MemoryError("no room")
        return of_words(*args)

    monkeypatch.setattr(pipeline, "crc32_ranges", failing)
    loader = Loader(runtime_of=lambda _: runtime)
    with pytest.raises(DecodeError, match=r"resource_limit.*no room"):
        loader.load_file(path)
    assert runtime._streams
    assert not any(stream.waiting for stream in runtime._streams)
    assert len(loader.load_file(path)) == len(tensors)


def test_staged_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large arrays go through a little pinned memory, a piece at a time;
    CuPy's part is played by NumPy.
    """
    monkeypatch.setattr(cupy_runtime, "STAGED_NBYTES", 1000)
    monkeypatch.setattr(cupy_runtime, "MOST_STAGED_NBYTES", 3000)
    runtime, pinned = CupyRuntime.__new__(CupyRuntime), list[int]()

    def alloc_pinned(nbytes: int) -> bytearray:
        pinned.append(nbytes)
        return bytearray(nbytes)

    stream = SimpleNamespace(record=lambda event: event)
    cuda = SimpleNamespace(
        Device=lambda _: nullcontext(), get_current_stream=lambda: stream,
        alloc_pinned_memory=alloc_pinned,
        Event=lambda **_: SimpleNamespace(synchronize=lambda: None),
        runtime=SimpleNamespace(CUDARuntimeError=ZeroDivisionError),
    )  # fmt: skip
    runtime.device, runtime._pid = 0, os.getpid()
    runtime.cupy = SimpleNamespace(
        cuda=cuda, empty=lambda n, dtype: np.empty(n, dtype).view(PlayedArray)
    )
    for shape in ((2000,), (7, 500), (4500, 1), (3000, 5)):
        host = RNG.integers(0, 1 << 16, shape).astype(np.uint16)
        device = runtime.upload(host)
        assert device.shape == shape
        out = np.zeros(shape, np.uint16)
        assert runtime.download(device, out) is out
        for back in (device, out, runtime.download(device)):
            assert np.array_equal(back, host)
    copied = runtime.empty(device.nbytes)
    runtime.copy_within(copied, device)
    assert copied.tobytes() == device.tobytes()
    runtime.copy_within(runtime.empty(0), runtime.empty(0))
    with pytest.raises(ValueError, match="C-contiguous"):
        runtime.download(device, np.zeros((3000, 10), np.uint16)[:, ::2])
    assert runtime.empty(0).shape == (0,)
    assert max(pinned) == 3000


class PlayedArray(np.ndarray[Any, Any]):
    """An array of CuPy's, as far as copies go."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        at = self.ctypes.data
        return SimpleNamespace(
            at=at,
            copy_from_device_async=lambda device, n: ctypes.memmove(at, device.at, n),
            copy_from_host_async=lambda host, n: ctypes.memmove(at, host, n),
            copy_to_host_async=lambda host, n: ctypes.memmove(host, at, n),
        )


def test_many_small_tensors_take_few_launches(tmp_path: Path) -> None:
    wcodec.save_file({f"{i}": weights(64, 128) for i in range(60)}, tmp_path / "small.wcodec")
    runtime = Counting(0)
    assert len(Loader(runtime_of=lambda _: runtime).load_file(tmp_path / "small.wcodec")) == 60
    assert runtime.n_launches < 12


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, with what to install; and a backend that was named is not replaced by another."""
    monkeypatch.setattr(cupy_runtime.ctypes, "CDLL", no_driver)
    with pytest.raises(
        BackendUnavailable,
        match=r"^backend 'cuda' needs an NVIDIA GPU and its driver: no libcuda\.so\.1 here$",
    ):
        cupy_runtime.CupyRuntime()
    with pytest.raises(BackendUnavailable, match="its driver"):
        Loader()
    monkeypatch.setattr(cupy_runtime, "_ask_driver", lambda: None)
    monkeypatch.setitem(sys.modules, "cupy", None)
    # it may be there, and be found without its parent
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    with pytest.raises(BackendUnavailable, match=r"needs CuPy .*; pip install 'wcodec\[cuda\]'$"):
        cupy_runtime.CupyRuntime()
    monkeypatch.setenv("WCODEC_CUDA_DEVICE", "first")
    monkeypatch.setattr(cupy_runtime, "_cupy", lambda: None)
    with pytest.raises(BackendUnavailable, match="not the number of a GPU"):
        cupy_runtime.CupyRuntime()


def no_driver(name: str) -> Any:
    raise OSError(f"no {name} here")


class Counting(LazyRuntime):
    """Counts launches, the bytes of device memory that are in use,
    and how often the device is made the thread's.
    """

    now = most = n_launches = n_in_use = 0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        self.n_in_use += 1
        yield
        self.n_in_use -= 1

    def launch(self, *args: Any) -> None:
        self.n_launches += 1
        super().launch(*args)

    def empty(self, nbytes: int) -> Any:
        memory = super().empty(nbytes)
        self.now += nbytes
        self.most = max(self.most, self.now)

        def gone() -> None:
            self.now -= nbytes

        weakref.finalize(memory.base if memory.base is not None else memory, gone)
        return memory
