"""Weights held compressed on a GPU: decoded there,
the next one on a stream of its own while this one is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch

from wcodec.backends import load_backend
from wcodec.backends.cuda.runtime import Runtime
from wcodec.codec.decoder import Decoder
from wcodec.cuda.operand import Operand
from wcodec.cuda.resident import ResidentTensor
from wcodec.errors import DecodeError, within
from wcodec.files.slices import entries_of, touched
from wcodec.planner.options import EncodeOptions
from wcodec.processes import Lock, Workers
from wcodec.reference.planes import Bytes
from wcodec.reference.tensors import TensorRecord
from wcodec.torch.loading.device_memory import current_stream
from wcodec.torch.resident.device_products import FACTORS, Prepared, multiply_transposed, prepare
from wcodec.torch.resident.held import ROWS_IN_GRAPH, Held, only_tensor, portions
from wcodec.torch.resident.scratch import (
    PREFETCHER_OF_TYPE,
    Buffers,
    Decodable,
    Prefetcher,
    prefetcher_of,
)

ALIGNED: Final = 16  #: of payloads (spec: chapter 4)
FIRST_USE: Final = "first use of {} while a CUDA graph is captured: run the model once before"
NO_OPERAND: Final = (
    "{} cannot be decoded in a CUDA graph, for it is no operand: hold it with mode='fused', dense,"
    " or outside of the graph"
)


class TensorSource:
    """The bytes of a tensor on any device, copied to the host as they are read: a `ByteSource`."""

    def __init__(self, stream: torch.Tensor) -> None:
        self.stream, self.nbytes = stream, stream.numel()

    def read(self, offset: int, nbytes: int) -> Bytes:
        """`nbytes` bytes from `offset`."""
        host: Bytes = self.stream[offset : offset + nbytes].cpu().numpy()
        return host


def runtime_of(device: torch.device) -> Runtime:
    """What drives a GPU.

    Raises
    ------
    BackendUnavailable
        CuPy or NVRTC is missing, with what to install.
    """
    number = 0 if device.index is None else device.index
    with _runtimes_lock:
        if number not in _runtimes:
            from wcodec.backends.cuda.cupy_runtime import CupyRuntime

            _runtimes[number] = CupyRuntime(number)
        return _runtimes[number]


_runtimes: Final[dict[int, Runtime]] = {}
_runtimes_lock: Final = Lock()


class DeviceHeld(Held):
    """A weight as a wcodec file of one tensor in device memory; see `Held`.

    What is checked is checked when it is first decoded:
    bytes in device memory are taken to stay as they are.
    """

    def __init__(
        self, stream: torch.Tensor, name: str = "", options: EncodeOptions | None = None
    ) -> None:
        #: and the stream that it decodes, which may change
        self._resident: tuple[torch.Tensor, ResidentTensor] | None = None
        self._prepared: tuple[ResidentTensor, Prepared] | None = None
        self._first = Lock()
        super().__init__(stream.clone() if stream.data_ptr() % ALIGNED else stream, name, options)

    def record(self) -> TensorRecord:
        return self._opened_there().t

    def outside_of_graphs(self, what: str) -> None:
        if is_capturing(self.stream.device):
            raise RuntimeError(what.format(repr(self.name) if self.name else "a compressed weight"))

    def _opened_there(self) -> ResidentTensor:
        stream, opened = self.stream, self._resident
        if opened is None or opened[0] is not stream:
            self.outside_of_graphs(FIRST_USE)
            with within(tensor=self.name):
                index = Decoder(load_backend("reference")).read_index(TensorSource(stream))
                t = only_tensor(index)
            resident = ResidentTensor(
                self._runtime(), t, index.tables, stream.data_ptr() + t.payload_offset
            )
            opened = self._resident = stream, resident
        return opened[1]

    def _runtime(self) -> Runtime:
        return runtime_of(self.stream.device)

    @contextmanager
    def _on_its_stream(self) -> Iterator[ResidentTensor]:
        """The tensor, with the stream of PyTorch that is current the runtime's too."""
        resident = self._opened_there()
        runtime = resident.runtime
        with (
            within(tensor=self.name),
            runtime.in_use(),
            runtime.on(runtime.external_stream(current_stream(self.stream.device))),
        ):
            yield resident

    def decode_into(self, buffer: torch.Tensor) -> None:
        """As `Held.decode_into`, on the current stream; only the first time is it waited for.

        Raises
        ------
        RuntimeError
            A CUDA graph is captured, and this is the first use, or the weight is no operand.
        """
        with self._on_its_stream() as resident:
            if not is_capturing(self.stream.device) and self._decode_first(resident, buffer):
                return
            operand = self._known(resident).operand
            if operand is None:
                self.outside_of_graphs(NO_OPERAND)
                resident.decode(buffer.data_ptr())
            else:
                operand.expand(buffer.data_ptr())

    def _decode_first(self, resident: ResidentTensor, buffer: torch.Tensor) -> bool:
        """Decode, check and make ready, if that was not done yet; whether it was done now. Later
        calls launch kernels and nothing else.
        """
        with self._first:
            if self._prepared is not None and self._prepared[0] is resident:
                return False
            resident.decode(buffer.data_ptr())
            self._prepared = resident, prepare(resident, self.view(buffer))
            return True

    def _known(self, resident: ResidentTensor) -> Prepared:
        """What is known of a weight; it is decoded into scratch if it was not decoded yet."""
        prepared = self._prepared
        if prepared is None or prepared[0] is not resident:
            self.outside_of_graphs(FIRST_USE)
            buffers = prefetcher_of(self.stream.device).buffers
            buffer = buffers.take(self.nbytes)
            try:
                self._decode_first(resident, buffer)
            finally:
                buffers.give(buffer)
            prepared = self._prepared
            assert prepared is not None
        return prepared[1]

    def product(
        self, x: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor | None
    ) -> torch.Tensor | None:
        """As `Held.product`, on the current stream.
        The first time, the stream is decoded and checked.
        """
        with self._on_its_stream() as resident:
            return (
                multiply_transposed(self._known(resident), x, bias, scale)
                if x.dtype in FACTORS
                else None
            )

    def operand(self) -> Operand | None:
        """The operand in the stream, decoded and checked at first use;
        ``None`` if it holds none.
        """
        with self._on_its_stream() as resident:
            return self._known(resident).operand

    def take(self, ids: torch.Tensor) -> torch.Tensor:
        """As `Held.take`; `ids` on the host."""
        out = torch.empty(
            (ids.numel(), *self.shape[1:]), dtype=self.dtype, device=self.stream.device
        )
        rows = ids.numpy()
        if out.numel() == 0:
            rows = rows[:0]
        for some in portions(rows, self.rows_at_once):
            out[some] = self._part(rows[some])
        return out

    def _part(self, ids: np.ndarray[Any, Any]) -> torch.Tensor:
        self.outside_of_graphs(ROWS_IN_GRAPH)
        with self._on_its_stream() as resident:
            t, n = resident.t, resident.t.dtype.words_per_element
            rows, cols = entries_of(ids, t.shape, t.row_rank)
            cols = (cols[:, None] * n + np.arange(n)).reshape(-1)
            down, row_at = touched(rows, t.geometry.segment_rows, t.geometry.rows)
            across, col_at = touched(cols, t.geometry.segment_cols, t.geometry.cols)
            geometry, segments = t.geometry.select(down, across)
            offsets = t.plan(resident.tables).offsets + t.payload_offset
            records = torch.cat([self.stream[a:b] for a, b in _runs(offsets, segments)])
            words = torch.empty(
                geometry.rows * geometry.cols * t.dtype.word_nbytes,
                dtype=torch.uint8,
                device=self.stream.device,
            )
            resident.decode_part(down, across, records.data_ptr(), words.data_ptr())
            grid = words.view(geometry.rows, geometry.cols, t.dtype.word_nbytes)
            picked = grid[self._index_of(row_at)][:, self._index_of(col_at)]
        return picked.reshape(-1).view(self.dtype).view(ids.size, *self.shape[1:])

    def _index_of(self, at: slice | np.ndarray[Any, Any]) -> slice | torch.Tensor:
        return at if isinstance(at, slice) else torch.from_numpy(at).to(self.stream.device)

    def replace(self, dense: torch.Tensor) -> None:
        old = self._resident, self._prepared, self.stream
        super().replace(dense)
        self._runtime().finish()  # another stream may still decode what was there
        del old


def _runs(offsets: np.ndarray[Any, Any], segments: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
    """Byte ranges of the records of ascending segments, neighbours together."""
    cuts = np.flatnonzero(np.diff(segments) > 1) + 1
    return [(int(offsets[run[0]]), int(offsets[run[-1] + 1])) for run in np.split(segments, cuts)]


def is_capturing(device: torch.device) -> bool:
    """Whether work for a GPU goes to a graph, not to the GPU."""
    if device.type != "cuda":  # an emulator's
        return False
    with torch.cuda.device(device):
        return bool(torch.cuda.is_current_stream_capturing())


class DeviceBuffers(Buffers):
    """As `Buffers`. What was queued may still read a buffer that comes back:
    the stream that takes it next waits for that.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        #: by address: when all that read a buffer is done
        self._read: dict[int, torch.cuda.Event] = {}

    def take(self, nbytes: int) -> torch.Tensor:
        # a graph has memory of its own, and waits for nothing outside of it
        if is_capturing(self.device):
            return torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        buffer, stream = super().take(nbytes), torch.cuda.current_stream(self.device)
        done = self._read.pop(buffer.data_ptr(), None)
        if done is not None:
            stream.wait_event(done)
        buffer.record_stream(stream)
        return buffer

    def _new(self, nbytes: int) -> torch.Tensor:
        """By a thread of its own: the memory of the caller's may be that of graphs, where
        ``torch.compile`` lets nothing stay.
        """
        stream, new = torch.cuda.current_stream(self.device), super()._new

        def there() -> torch.Tensor:
            with torch.cuda.stream(stream):
                return new(nbytes)

        with Workers(1, "wcodec-memory") as thread:
            return thread.submit(there).result()

    def give(self, buffer: torch.Tensor) -> None:
        if is_capturing(self.device):
            return
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.device))
        self._read[buffer.data_ptr()] = done
        super().give(buffer)


class DevicePrefetcher(Prefetcher):
    """As `Prefetcher`; what is next is decoded on a stream of its own, and who uses it lets the
    current stream wait for it."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(DeviceBuffers(device))
        self._side = torch.cuda.Stream(device)
        self._next: tuple[Decodable, int, torch.Tensor, torch.cuda.Event] | None = None

    def decoded(self, held: Decodable) -> torch.Tensor:
        if is_capturing(self.buffers.device):
            return self._decode(held)
        with self._lock:
            pending, self._next = self._next, None
            self._follow(held)
        if pending is not None and pending[0] is held and pending[1] == held.version:
            _, _, buffer, ready = pending
            current = torch.cuda.current_stream(self.buffers.device)
            current.wait_event(ready)
            buffer.record_stream(current)
        else:
            if pending is not None:
                self._give_after(pending)
            buffer = self._decode(held)
        following = None if held.successor is None else held.successor()
        if following is not None and following is not held:
            self._queue(following)
        return buffer

    def _give_after(self, pending: tuple[Decodable, int, torch.Tensor, torch.cuda.Event]) -> None:
        torch.cuda.current_stream(self.buffers.device).wait_event(pending[3])
        self.buffers.give(pending[2])

    def _queue(self, following: Decodable) -> None:
        """Decode on the side, after all that is queued so far:
        the buffer may be in use until then.
        """
        try:
            buffer = self.buffers.take(following.nbytes)
        except torch.cuda.OutOfMemoryError:
            # then it is decoded when it is used, and other memory is free
            return
        buffer.record_stream(self._side)
        self._side.wait_stream(torch.cuda.current_stream(self.buffers.device))
        with torch.cuda.stream(self._side):
            try:
                following.decode_into(buffer)
            except (DecodeError, MemoryError):  # it will be met again when the weight is used
                self.buffers.give(buffer)
                return
            ready = torch.cuda.Event()
            ready.record(self._side)
        with self._lock:
            stale, self._next = self._next, (following, following.version, buffer, ready)
        if stale is not None:
            self._give_after(stale)

    def clear(self) -> None:
        with self._lock:
            pending, self._next, self._last = self._next, None, None
        if pending is not None:
            self._give_after(pending)


PREFETCHER_OF_TYPE["cuda"] = DevicePrefetcher
