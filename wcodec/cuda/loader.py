"""`Loader`: what the functions of `wcodec.cuda` decode with."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.cuda.runtime import Runtime
from wcodec.codec.decoder import Decoder
from wcodec.codec.pipelining import map_ahead
from wcodec.codec.sources import BufferSource
from wcodec.cuda import dlpack
from wcodec.cuda.bases import base_memory, largest_lists, n_coded_bases
from wcodec.cuda.pipeline import LEAST_SLOT_NBYTES, SLOT_NBYTES, STREAMS, Allocate, Pipeline
from wcodec.errors import DecodeError
from wcodec.files.atomic import AnyPath
from wcodec.files.file import File
from wcodec.processes import Lock, Workers
from wcodec.reference.container import ByteSource, Index
from wcodec.reference.planes import DType
from wcodec.reference.tensors import TensorRecord

#: device memory of a stream for each byte of a slot: payload, symbols on their way, tables and
#: lists
BUFFERS_OF_SLOT: Final = 4


@dataclass(frozen=True)
class DeviceTensor:
    """A decoded tensor in device memory.

    It speaks DLPack (``torch.from_dlpack(t)``, ``jax.dlpack.from_dlpack(t)``),
    bfloat16 and float8 as what they are.

    Attributes
    ----------
    name, shape
        As in the file.
    dtype
        Row of the dtype registry (spec: chapter 18); `dtype.numpy` is the NumPy dtype.
    words
        Flat device array (of CuPy) of unsigned integers: the bit patterns.
    device
        Number of the GPU.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    words: Any
    device: int
    _runtime: Runtime

    @property
    def array(self) -> Any:
        """Device array of the tensor's shape; bfloat16 and float8, which CuPy does not have,
        as unsigned integers.
        """
        return dlpack.typed(self.words, self.shape, self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return int(self.words.size) * self.dtype.word_nbytes

    @property
    def address(self) -> int:
        """Device address of its first byte."""
        return self._runtime.address(self.words)

    def numpy(self) -> NDArray[Any]:
        """A copy on the host."""
        host = self._runtime.download(self.words)
        return host.view(np.uint8).view(self.dtype.numpy).reshape(self.shape)

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        """A DLPack capsule, without a copy. The tensor is complete, so no stream need wait."""
        with self._runtime.in_use():
            return dlpack.export(self.words, self.shape, self.dtype)

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, number = self.words.__dlpack_device__()
        return int(kind), int(number)


def _runtime_of(device: int | None) -> Runtime:
    from wcodec.backends.cuda.cupy_runtime import CupyRuntime

    return CupyRuntime(device)


class Loader:
    """Decodes files to one or more GPUs, and keeps buffers from one to the next.
    Calls from several threads take turns.

    Parameters
    ----------
    devices
        Numbers of the GPUs that tensors are spread over by size; ``None`` for
        ``WCODEC_CUDA_DEVICE``, or the first.
    streams
        Sets of segments under way at once on each GPU:
        while one is read from the file, others are copied and decoded.
    max_device_bytes
        Most memory of each GPU to use, tensors and buffers together.
    verify
        Whether CRC-32s of all records and tensors are checked, on the device.
        Streams check themselves in any case.

    Raises
    ------
    BackendUnavailable
        CuPy, the driver or a GPU is missing.
    """

    def __init__(
        self,
        devices: int | Sequence[int] | None = None,
        *,
        streams: int = STREAMS,
        max_device_bytes: int | None = None,
        verify: bool = True,
        runtime_of: Callable[[int | None], Runtime] = _runtime_of,
    ) -> None:
        numbers: list[int | None] = (
            [devices] if devices is None or isinstance(devices, int) else list(devices)
        )
        if not numbers or streams < 1:
            raise ValueError("at least one device and one stream are needed")
        self.streams, self.max_device_bytes, self.verify = streams, max_device_bytes, verify
        self.runtimes = [runtime_of(n) for n in numbers]
        self._pipelines: list[Pipeline | None] = [None] * len(self.runtimes)
        self._lock, self._decoder = Lock(), Decoder(_host())
        self._workers = Workers(1, "wcodec-load")

    # ---- files
    def load_file(
        self,
        path: AnyPath,
        names: Sequence[str] | None = None,
        base: AnyPath | None = None,
        *,
        allocate: Allocate | None = None,
    ) -> dict[str, DeviceTensor]:
        """Tensors of a file by name, in its order.

        Parameters
        ----------
        names
            Those wanted; ``None`` for all.
        base
            As of `wcodec.open`; it is decoded to the device too, a few tensors at a time.
        allocate
            Makes the memory of the tensors, where it is to be another library's: called with the
            `Runtime` of the device and a number of bytes, returns what `Runtime.adopt` makes of it.

        Raises
        ------
        DecodeError
            As `wcodec.load_file`; ``resource_limit``:
            more device memory than there is, or than is allowed.
        KeyError
            The file has no tensor of a name.
        """
        with File(path, self._decoder.backend, base=base) as f:
            return self.load_open(f, names, allocate=allocate)

    def load_open(
        self, f: File, names: Sequence[str] | None = None, *, allocate: Allocate | None = None
    ) -> dict[str, DeviceTensor]:
        """As `load_file`, of a file that is open."""
        with f.checked():
            return self._load(f.source, f, f.index, names, allocate)

    def decode(self, data: Any) -> DeviceTensor:
        """The tensor of the bytes that `wcodec.encode` makes. Raises as `load_file`."""
        source = BufferSource(data)
        index = self._decoder.read_index(source)
        if len(index.tensors) != 1:
            raise DecodeError(
                "bad_range", f"this file holds {len(index.tensors)} tensors, not one: use load_file"
            )
        (tensor,) = self._load(source, None, index, None).values()
        return tensor

    def decode_async(self, data: Any) -> Future[DeviceTensor]:
        """`decode` in a thread of its own, calls in order;
        `data` must not change before the result is there.
        """
        return self._workers.submit(self.decode, data)

    def iterate(
        self,
        path: AnyPath,
        names: Sequence[str] | None = None,
        base: AnyPath | None = None,
        *,
        allocate: Allocate | None = None,
    ) -> Generator[DeviceTensor, None, None]:
        """Tensors of a file one after another, each when it is whole: a caller that drops them
        needs memory for a few alone.

        On the first device, with buffers of its own: meanwhile the loader may be used for other
        things. Raises as `load_file`.
        """
        with File(path, self._decoder.backend, base=base) as f:
            yield from self.iterate_open(f, names, allocate=allocate)

    def iterate_open(
        self, f: File, names: Sequence[str] | None = None, *, allocate: Allocate | None = None
    ) -> Generator[DeviceTensor, None, None]:
        """As `iterate`, of a file that is open."""
        records = _chosen(f.index, names)
        size = self._fit(records, f, lambda streams, slot: _most_alive(records, streams, slot))
        pipeline = Pipeline(self.runtimes[0], *size, self.verify)
        tensors = self._tensors(pipeline, f.source, f, f.index, records, allocate)
        with f.checked(), closing(tensors):
            yield from tensors

    def close(self) -> None:
        """Give back buffers and threads."""
        self._workers.close()
        with self._lock:
            self._pipelines = [None] * len(self.runtimes)
        for runtime in self.runtimes:
            runtime.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- how
    def _load(
        self,
        source: ByteSource,
        file: File | None,
        index: Index,
        names: Sequence[str] | None,
        allocate: Allocate | None = None,
    ) -> dict[str, DeviceTensor]:
        records = _chosen(index, names)
        shares = _spread(records, len(self.runtimes))
        with self._lock:
            pipelines = [self._pipeline(i, share, file) for i, share in enumerate(shares)]
            if len(shares) == 1:
                done = {
                    t.name: t
                    for t in self._tensors(pipelines[0], source, file, index, shares[0], allocate)
                }
            else:
                parts = map_ahead(
                    lambda one: list(self._tensors(one[0], source, file, index, one[1], allocate)),
                    zip(pipelines, shares, strict=True),
                    len(shares),
                )
                done = {t.name: t for part in parts for t in part}
        return {t.name: done[t.name] for t in records}

    def _pipeline(self, i: int, share: list[TensorRecord], file: File | None) -> Pipeline:
        """The pipeline of a device; the one before,
        if its buffers fit beside the tensors and need not be smaller.
        """
        nbytes = sum(t.nbytes for t in share)
        size, kept = self._fit(share, file, lambda streams, slot: nbytes), self._pipelines[i]
        if kept is None or (kept.n_streams, kept.slot_nbytes) != size:
            self._pipelines[i] = None  # its buffers go before others come
            kept = self._pipelines[i] = Pipeline(self.runtimes[i], *size, self.verify)
        return kept

    def _fit(
        self, records: list[TensorRecord], file: File | None, alive: Callable[[int, int], int]
    ) -> tuple[int, int]:
        """Streams and slots whose buffers `max_device_bytes` allows beside the tensors,
        `alive(streams, slot)` bytes at once.

        Tensors of a base come on top, and the buffers of those that decode it; and what lists of a
        segment take that is larger than a slot.
        """
        streams, slot = self.streams, SLOT_NBYTES
        differences = [t for t in records if t.difference]
        n_bases = largest = 0
        if file is not None and differences and self.max_device_bytes is not None:
            n_bases, largest = n_coded_bases(file), largest_lists(file, differences)
        while self.max_device_bytes is not None:
            tensors = alive(streams, slot)
            slots = streams * slot * (1 + n_bases) + max(0, largest - slot)
            buffers = slots * BUFFERS_OF_SLOT
            tensors += max(n_bases, 1) * _most_alive(differences, streams, slot)
            if tensors + buffers <= self.max_device_bytes:
                break
            if slot > LEAST_SLOT_NBYTES:
                slot //= 2
            elif streams > 1:
                streams -= 1
            else:
                needs = (
                    f"the tensors need {tensors} bytes of the device, buffers {buffers} at least"
                )
                raise DecodeError("resource_limit", f"{needs}; {self.max_device_bytes} are allowed")
        return streams, slot

    def _tensors(
        self,
        pipeline: Pipeline,
        source: ByteSource,
        file: File | None,
        index: Index,
        records: list[TensorRecord],
        allocate: Allocate | None,
    ) -> Generator[DeviceTensor, None, None]:
        runtime = pipeline.runtime
        bases = None if file is None else base_memory(pipeline, file, records)
        try:
            for t, memory in pipeline.tensors(
                source, records, index.tables, bases, allocate
            ):  # between which the device in use is the caller's
                yield DeviceTensor(
                    t.name,
                    t.shape,
                    t.dtype,
                    memory.view(t.dtype.word_type),
                    runtime.device,
                    runtime,
                )
        except MemoryError as e:
            raise DecodeError(
                "resource_limit", f"there is no memory for the tensors: {e}"
            ) from None
        finally:
            if bases is not None:
                bases.close()


def _host() -> Any:
    from wcodec.backends import load_backend

    return load_backend("reference")  # for the index alone, which no backend has a part in


def _chosen(index: Index, names: Sequence[str] | None) -> list[TensorRecord]:
    if names is None:
        return list(index.tensors)
    by_name = {t.name: t for t in index.tensors}
    return [by_name[name] for name in names]


def _spread(records: list[TensorRecord], n: int) -> list[list[TensorRecord]]:
    """Shares of about equal bytes, each in the file's order."""
    owner, load = {}, [0] * n
    for t in sorted(records, key=lambda t: -t.nbytes):
        i = load.index(min(load))
        owner[t.name], load[i] = i, load[i] + t.nbytes
    return [[t for t in records if owner[t.name] == i] for i in range(n)]


def _most_alive(records: list[TensorRecord], streams: int, slot_nbytes: int) -> int:
    """Most bytes of tensors at once where each goes when the next one is there:
    of those in sets under way, and one more.

    Under way are `streams` sets and one that is being checked,
    and the tensor that found no room in the last of them.
    """
    # that sets are filled by
    sizes = [t.nbytes if t.difference else t.payload_nbytes for t in records]
    most = now = in_sets = first = 0
    for t, size in zip(records, sizes, strict=True):
        now, in_sets = now + t.nbytes, in_sets + size
        while in_sets - sizes[first] - size > (streams + 1) * slot_nbytes:
            now, in_sets, first = now - records[first].nbytes, in_sets - sizes[first], first + 1
        most = max(most, now)
    return most + max((t.nbytes for t in records), default=0)


# ---- with a loader of one's own ------------------------------------------------------------------
_loaders: dict[int | None, Loader] = {}
_loaders_lock = Lock()


def shared_loader(device: int | None) -> Loader:
    """The loader that the functions of this module use for a GPU."""
    with _loaders_lock:
        if device not in _loaders:
            _loaders[device] = Loader(device)
        return _loaders[device]


def load_file(
    path: AnyPath,
    device: int | None = None,
    names: Sequence[str] | None = None,
    base: AnyPath | None = None,
) -> dict[str, DeviceTensor]:
    """Tensors of a ``.wcodec`` file in the memory of a GPU. See `Loader.load_file`."""
    return shared_loader(device).load_file(path, names, base)


def decode(data: Any, device: int | None = None) -> DeviceTensor:
    """The bytes of `wcodec.encode` as a tensor in the memory of a GPU. See `Loader.decode`."""
    return shared_loader(device).decode(data)


def decode_async(data: Any, device: int | None = None) -> Future[DeviceTensor]:
    """`decode`, later: a future. See `Loader.decode_async`."""
    return shared_loader(device).decode_async(data)
