"""What `gpu.py` measures: copies, decoding and encoding of tensors, and a whole model."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gpu_device import (
    BackendOn,
    Device,
    Effort,
    Recorder,
    gpu_times,
    stage_times,
    summary,
    wall_times,
)
from numpy.typing import NDArray

from wcodec.backends import Backend, load_backend
from wcodec.backends.cuda import encoding
from wcodec.backends.cuda.checksums import PendingChecksums, crc32_ranges
from wcodec.backends.cuda.decoding import Decoding
from wcodec.backends.cuda.worklist import WorkItem
from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder, words_of
from wcodec.codec.sources import BufferSource
from wcodec.errors import BackendUnavailable
from wcodec.files.file import File
from wcodec.planner.options import EncodeOptions
from wcodec.planner.planner import Planner
from wcodec.reference.segments import SegmentPlan

DTYPES: dict[str, Any] = {
    "bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32,
    "fp8": ml_dtypes.float8_e4m3fn, "int8": np.int8,
}  # fmt: skip
#: data sets of a case; if more are needed to fill the L2, they are copies elsewhere in memory
DISTINCT = 3
ROTATION = 3  #: times the L2 that a case's sets are together
MOST_SETS = 1024
BLOCK = 1 << 20  #: elements that a thread draws at once
CANARY = 0xA5
ALIGN = 256


def host_backend() -> Backend:
    """The fastest one that needs no GPU."""
    try:
        return load_backend("numba")
    except BackendUnavailable:
        return load_backend("reference")


def need(condition: object, what: str) -> None:
    """A wrong result ends the measurement of a case: its speed is worth nothing."""
    if not condition:
        raise AssertionError(what)


# ---- the data ------------------------------------------------------------------------------------
def weights(shape: tuple[int, int], dtype: str, seed: int) -> NDArray[Any]:
    """Gaussian weights of standard deviation 0.02;
    int8 is quantised by row to its largest magnitude.
    """
    rows, cols = shape
    out, step = np.empty(shape, DTYPES[dtype]), max(1, BLOCK // cols)

    def fill(first: int) -> None:
        n = min(step, rows - first)
        values = np.random.default_rng([seed, rows, cols, first]).standard_normal(
            (n, cols), np.float32
        )
        if dtype == "int8":
            values = np.rint(values * (127 / np.abs(values).max(axis=1, keepdims=True)))
        else:
            values *= np.float32(0.02)
        out[first : first + n] = values.astype(out.dtype)

    with ThreadPoolExecutor() as pool:
        list(pool.map(fill, range(0, rows, step)))
    return out


class Encoded:
    """A tensor and the file that the host made of it."""

    def __init__(self, array: NDArray[Any], host: Backend) -> None:
        self.array, self.data = array, Encoder(None, host).encode(array)
        index = Decoder(host).read_index(BufferSource(self.data))
        self.record = index.tensors[0]
        self.plan = self.record.plan(index.tables)

    @cached_property
    def payload(self) -> NDArray[np.uint8]:
        """Segment records."""
        return np.frombuffer(self.data, np.uint8)[self.record.payload_offset :][
            : self.record.payload_nbytes
        ]

    @cached_property
    def matrix(self) -> NDArray[Any]:
        """Words, in the geometry's shape."""
        g = self.record.geometry
        return words_of(self.array)[1].reshape(g.rows, g.cols)


def checked_crcs(
    runtime: Any, plan: SegmentPlan, payload: int, words: int, nbytes: int
) -> tuple[PendingChecksums, PendingChecksums]:
    """Queue the checksums of the records of a tensor and of its words, as a `Loader` does."""
    records = crc32_ranges(
        runtime, plan.offsets[:-1].astype(np.uint64) + np.uint64(payload), np.diff(plan.offsets)
    )
    return records, crc32_ranges(
        runtime, np.array([words], np.uint64), np.array([nbytes], np.int64)
    )


class DecodeSet:
    """Payload, output and work list of a tensor on the device, decoded once and checked."""

    def __init__(self, device: Device, source: Encoded, compare: bool) -> None:
        runtime, t, plan = device.runtime, source.record, source.plan
        self.source = source
        self.payload = runtime.upload(source.payload)
        self.out = runtime.upload(np.full(t.nbytes, CANARY, np.uint8))
        at = runtime.address(self.out), runtime.address(self.payload)
        self.plain, self.checks = Recorder(runtime), Recorder(runtime)
        start = time.perf_counter()
        decoding = Decoding(self.plain, [WorkItem(plan, *at)])
        decoding.queue()
        self.queue_s = time.perf_counter() - start
        records, words = checked_crcs(self.checks, plan, at[1], at[0], t.nbytes)
        need(not decoding.status().any(), "a segment is not OK")
        need((records.result() == t.segment_crc32).all(), "the CRC-32 of a record is wrong")
        need(int(words.result()[0]) == t.crc32, "the CRC-32 of the words is wrong")
        if compare:
            self.compare()

    def compare(self) -> None:
        """Check the output bit for bit."""
        same = np.array_equal(self.out_on_host(), self.source.array.reshape(-1).view(np.uint8))
        need(same, "decoded words differ from the original ones")

    def out_on_host(self) -> NDArray[np.uint8]:
        return self.checks.download(self.out)  # type: ignore[no-any-return]

    def replay(self) -> None:
        """Decode, with checksums."""
        self.plain.replay()
        self.checks.replay()

    @property
    def words(self) -> Any:
        """The output as a backend takes it."""
        g = self.source.record.geometry
        return self.out.view(self.source.record.dtype.word_type).reshape(g.rows, g.cols)


# ---- copies --------------------------------------------------------------------------------------
def copy_bandwidth(device: Device, effort: Effort, nbytes: int) -> dict[str, Any]:
    """Device to device, read and write counted, and pinned memory to device and back."""
    runtime = device.runtime
    pairs = [(runtime.empty(nbytes), runtime.upload(noise(nbytes, seed))) for seed in range(2)]

    def copy(i: int) -> Callable[[], None]:
        return lambda: device.copy(*pairs[i])

    until = time.perf_counter() + effort.seconds
    while time.perf_counter() < until:  # clocks rise
        copy(0)()
        device.synchronize()
    inside = gpu_times(device, [copy(0), copy(1)], 1, effort)
    some = min(nbytes, 1 << 28)
    pinned = runtime.pinned(some)
    pinned[:] = noise(some, 3)
    to_device = gpu_times(device, [lambda: runtime.copy_in(pairs[0][0][:some], pinned)], 1, effort)
    to_host = gpu_times(device, [lambda: runtime.copy_out(pinned, pairs[0][1][:some])], 1, effort)
    return {
        "nbytes": nbytes, "device_to_device": summary(inside, 2 * nbytes),
        "pinned_to_device": summary(to_device, some), "device_to_pinned": summary(to_host, some),
    }  # fmt: skip


def noise(nbytes: int, seed: int) -> NDArray[np.uint8]:
    """Random bytes: a few MB of them over and over."""
    some = np.random.default_rng(seed).integers(0, 256, min(nbytes, 1 << 24), np.uint8)
    return np.resize(some, nbytes)


# ---- one tensor ----------------------------------------------------------------------------------
class Case:
    """Everything that is measured of one shape and dtype.

    Parameters
    ----------
    bandwidth
        Bytes a second that the device copies, reads and writes counted.
    """

    def __init__(
        self, device: Device, shape: tuple[int, int], dtype: str, bandwidth: float, effort: Effort
    ) -> None:
        self.device = device
        self.shape = shape
        self.dtype = dtype
        self.bandwidth = bandwidth
        self.effort = effort
        self.host = host_backend()
        start = time.perf_counter()
        arrays = [weights(shape, dtype, seed) for seed in range(DISTINCT)]
        self.encoded = [Encoded(a, self.host) for a in arrays]
        self.prepared_s = time.perf_counter() - start
        one = self.encoded[0]
        self.nbytes, self.stored_nbytes = one.array.nbytes, one.payload.nbytes
        self.floor_s = (self.nbytes + self.stored_nbytes) / bandwidth

    def about(self) -> dict[str, Any]:
        """Sizes, and the floor of the time: one pass over all bytes."""
        plan = self.encoded[0].plan
        return {
            "shape": "x".join(map(str, self.shape)), "dtype": self.dtype, "nbytes": self.nbytes,
            "stored_nbytes": self.stored_nbytes, "ratio": self.stored_nbytes / self.nbytes,
            "n_segments": plan.geometry.n_segments, "floor_s": self.floor_s,
            "prepared_s": self.prepared_s,
        }  # fmt: skip

    def _speed(self, times: Sequence[float]) -> dict[str, float]:
        s = summary(times, self.nbytes)
        return {**s, "of_floor": self.floor_s / s["median_s"]}

    # ---- decoding
    def decode(self) -> dict[str, Any]:
        """Kernels alone with and without checksums, their stages, calls of the backend,
        and from host memory.
        """
        device, effort = self.device, self.effort
        n = min(
            MOST_SETS,
            max(
                DISTINCT,
                math.ceil(ROTATION * device.l2_nbytes / (self.nbytes + self.stored_nbytes)),
            ),
        )
        sets = [
            DecodeSet(device, self.encoded[i % DISTINCT], compare=i < DISTINCT) for i in range(n)
        ]
        n_launches = len(sets[0].plain.launches), len(sets[0].checks.launches)
        out = {
            "n_sets": n, "launches": n_launches[0],
            "queue_s": float(np.median([s.queue_s for s in sets])),
            "kernels": self._speed(
                gpu_times(device, [s.plain.replay for s in sets], n_launches[0], effort)
            ),
            "with_crc": self._speed(
                gpu_times(device, [s.replay for s in sets], sum(n_launches), effort)
            ),
            "stages_s": {
                **stage_times(device, [s.plain for s in sets], effort),
                **stage_times(device, [s.checks for s in sets], effort),
            },
            "launch_s": _launch_s(device, [s.plain for s in sets]),
        }  # fmt: skip
        backend = BackendOn(device.runtime)
        calls = [
            lambda s=s: backend.decode_segments(s.source.plan, s.payload, s.words) for s in sets
        ]
        checked = [
            lambda s=s: backend.decode_with_checksums(s.source.plan, s.payload, s.words)
            for s in sets
        ]
        out["call"] = self._speed(wall_times(calls, effort))
        out["call_with_crc"] = self._speed(wall_times(checked, effort))
        for s in sets[:DISTINCT]:
            s.compare()  # after all that ran over it
        return out | self._from_host()

    def _from_host(self) -> dict[str, Any]:
        """`Loader.decode` of bytes, and `Loader.load_file` of a warm file."""
        with self.device.loader() as loader, room_for(len(self.encoded[0].data)) as folder:
            path = folder / "one.wcodec"
            path.write_bytes(self.encoded[0].data)
            need(
                loader.load_file(path)[""].numpy().tobytes() == self.encoded[0].array.tobytes(),
                "a loaded file differs",
            )
            return {
                "from_bytes": self._speed(
                    wall_times(
                        [lambda e=e: loader.decode(e.data) for e in self.encoded], self.effort
                    )
                ),
                "from_file": self._speed(wall_times([lambda: loader.load_file(path)], self.effort)),
            }

    # ---- encoding
    def encode(self) -> dict[str, Any]:
        """Kernels alone, their stages, and calls without and with planning."""
        device, effort, backend = self.device, self.effort, BackendOn(self.device.runtime)
        one = self.encoded[0].record
        sets, plans, plan_s = list[Recorder](), list[SegmentPlan](), list[float]()
        words = [device.runtime.upload(e.matrix) for e in self.encoded]
        kept = []
        for e, w in zip(self.encoded, words, strict=True):
            start = time.perf_counter()
            plans.append(Planner(EncodeOptions()).plan(w, one.geometry, one.dtype, backend))
            plan_s.append(time.perf_counter() - start)
            sets.append(Recorder(device.runtime))
            kept.append(encoding.encode(sets[-1], plans[-1], w))
            self._same(e, plans[-1], kept[-1])
        ops = len(sets[0].launches)
        out: dict[str, Any] = {
            "launches": ops, "first_plan_s": plan_s[0],
            "kernels": self._speed(gpu_times(device, [s.replay for s in sets], ops, effort)),
            "stages_s": stage_times(device, sets, effort), "launch_s": _launch_s(device, sets),
        }  # fmt: skip
        for e, plan, result in zip(self.encoded, plans, kept, strict=True):
            self._same(e, plan, result)

        def planned(w: Any) -> None:
            backend.encode_segments(
                Planner(EncodeOptions()).plan(w, one.geometry, one.dtype, backend), w
            )

        calls = [
            lambda p=p, w=w: backend.encode_segments(p, w)
            for p, w in zip(plans, words, strict=True)
        ]
        out["call"] = self._speed(wall_times(calls, effort))
        out["call_with_plan"] = self._speed(
            wall_times([lambda w=w: planned(w) for w in words], effort)
        )
        encoder = Encoder(None, backend)
        out["host_to_host"] = self._speed(
            wall_times([lambda e=e: encoder.encode(e.array) for e in self.encoded], effort)
        )
        return out

    def _same(self, e: Encoded, plan: SegmentPlan, result: tuple[Any, Any, Any]) -> None:
        """Check that the bytes are those that the host makes of the same plan."""
        due = self.host.encode_segments(plan, e.matrix)
        need(
            (due.n_units == result[1]).all() and (due.n_patches == result[2]).all(),
            "streams or patches differ from the host's",
        )
        need(
            np.array_equal(due.payload, self.device.runtime.download(result[0])),
            "the payload differs from the host's",
        )


def _launch_s(device: Device, runs: Sequence[Recorder]) -> float:
    """Seconds that the host needs for a launch."""
    device.synchronize()
    some = list(runs[:32])
    start = time.perf_counter()
    for run in some:
        run.replay()
    seconds = time.perf_counter() - start
    device.synchronize()
    return seconds / max(1, sum(len(run.launches) for run in some))


@contextmanager
def room_for(nbytes: int) -> Iterator[Path]:
    """A new folder in memory, if there is room, or else wherever temporary files go."""
    memory = Path("/dev/shm")
    fits = memory.is_dir() and shutil.disk_usage(memory).free > 1.1 * nbytes
    with tempfile.TemporaryDirectory(prefix="wcodec-gpu-", dir=memory if fits else None) as name:
        yield Path(name)


# ---- a whole model -------------------------------------------------------------------------------
@dataclass(frozen=True)
class ModelShape:
    """A Llama: by default that of Llama-2-7B without its norms, 13.5 GB in bf16."""

    layers: int = 32
    hidden: int = 4096
    ffn: int = 11008
    vocab: int = 32000

    def tensors(self) -> dict[str, tuple[int, int]]:
        """Shapes by name."""
        h, f = self.hidden, self.ffn
        layer = {
            "q": (h, h),
            "k": (h, h),
            "v": (h, h),
            "o": (h, h),
            "gate": (f, h),
            "up": (f, h),
            "down": (h, f),
        }
        out = {
            f"layers.{i}.{name}": shape for i in range(self.layers) for name, shape in layer.items()
        }
        return {"embed": (self.vocab, h), **out, "head": (self.vocab, h)}

    @property
    def nbytes(self) -> int:
        """Of all tensors in bf16."""
        return 2 * sum(math.prod(s) for s in self.tensors().values())


class Model:
    """A model of distinct random tensors, `DISTINCT` of each shape, each used for several names."""

    def __init__(
        self, device: Device, shape: ModelShape, bandwidth: float, effort: Effort, folder: Path
    ) -> None:
        self.device, self.bandwidth, self.effort = device, bandwidth, effort
        self.shape, self.path = shape, folder / "model.wcodec"
        self.arrays, self.of = dict[tuple[Any, ...], NDArray[Any]](), dict[str, tuple[Any, ...]]()
        start = time.perf_counter()
        for i, (name, s) in enumerate(shape.tensors().items()):
            self.of[name] = (*s, i % DISTINCT)
            if self.of[name] not in self.arrays:
                self.arrays[self.of[name]] = weights(s, "bf16", i % DISTINCT)
        with self.path.open("wb") as f:
            writer = Encoder(None, host_backend()).start(f)
            for name, key in self.of.items():
                writer.add(name, self.arrays[key])
            writer.finish()
        self.prepared_s = time.perf_counter() - start

    def about(self) -> dict[str, Any]:
        """Sizes."""
        nbytes, stored = self.shape.nbytes, self.path.stat().st_size
        return {
            "layers": self.shape.layers, "n_tensors": len(self.of), "nbytes": nbytes,
            "stored_nbytes": stored, "ratio": stored / nbytes,
            "floor_s": (nbytes + stored) / self.bandwidth, "prepared_s": self.prepared_s,
            "folder": str(self.path.parent.parent),
        }  # fmt: skip

    def decode(self) -> dict[str, Any]:
        """All tensors by one work list, from device memory to device memory."""
        runtime, jobs = self.device.runtime, list[WorkItem]()
        outs, records = list[Any](), list[Any]()
        with File(self.path, host_backend()) as f:
            for t in f.index.tensors:
                payload, out = runtime.empty(t.payload_nbytes), runtime.empty(t.nbytes)
                self._upload(payload, f.source.read(t.payload_offset, t.payload_nbytes))
                jobs.append(
                    WorkItem(t.plan(f.index.tables), runtime.address(out), runtime.address(payload))
                )
                outs.append((payload, out))
                records.append(t)
        run, start = Recorder(runtime), time.perf_counter()
        decoding = Decoding(run, jobs)
        decoding.queue()
        queue_s = time.perf_counter() - start
        need(not decoding.status().any(), "a segment of the model is not OK")
        addresses = np.array([j.words for j in jobs], np.uint64)
        sizes = np.array([t.nbytes for t in records], np.int64)
        crcs = crc32_ranges(runtime, addresses, sizes).result()
        need(
            (crcs == [t.crc32 for t in records]).all(),
            "the CRC-32 of a tensor of the model is wrong",
        )
        for i in (0, 1, len(outs) - 1):
            due = self.arrays[self.of[records[i].name]].reshape(-1).view(np.uint8)
            need(
                np.array_equal(runtime.download(outs[i][1]), due),
                f"tensor {records[i].name} of the model differs",
            )
        times = summary(
            gpu_times(self.device, [run.replay], len(run.launches), self.effort), self.shape.nbytes
        )
        floor_s = (self.shape.nbytes + sum(t.payload_nbytes for t in records)) / self.bandwidth
        return {
            "kernels": {**times, "of_floor": floor_s / times["median_s"]}, "queue_s": queue_s,
            "launches": len(run.launches), "stages_s": stage_times(self.device, [run], self.effort),
            "n_segments": int(decoding.work.segments.size),
        }  # fmt: skip

    def _upload(self, target: Any, source: NDArray[np.uint8]) -> None:
        """By way of a pinned buffer: a runtime's `upload` makes memory of its own."""
        step = 1 << 26
        pinned = self.device.runtime.pinned(min(step, source.size))
        for a in range(0, source.size, step):
            n = min(step, source.size - a)
            pinned[:n] = source[a : a + n]
            self.device.runtime.copy_in(target[a : a + n], pinned[:n])
            self.device.synchronize()

    def load(self, repeats: int) -> dict[str, Any]:
        """`Loader.load_file`, with and without checksums;
        the first call, which takes all memory, apart.
        """
        out: dict[str, Any] = {"read_gb_s": self._read_speed()}
        for name, options in (("load", {}), ("load_unchecked", {"verify": False})):
            with self.device.loader(**options) as loader:
                times, loaded = list[float](), dict[str, Any]()
                for _ in range(repeats + 1):
                    loaded.clear()  # memory for the next one
                    start = time.perf_counter()
                    loaded = loader.load_file(self.path)
                    times.append(time.perf_counter() - start)
                for key in (next(iter(loaded)), next(reversed(loaded))):
                    need(
                        loaded[key].numpy().tobytes() == self.arrays[self.of[key]].tobytes(),
                        f"tensor {key} of the file differs",
                    )
                loaded.clear()
            out[name] = {"first_s": times[0], **summary(times[1:], self.shape.nbytes)}
        return out

    def _read_speed(self) -> float:
        """Of the file to memory by one thread: a floor of its own."""
        buffer = bytearray(1 << 24)
        start = time.perf_counter()
        with self.path.open("rb", buffering=0) as f:
            while f.readinto(buffer):
                pass
        return self.path.stat().st_size / (time.perf_counter() - start) / 1e9
