"""What `fused.py` needs of a GPU: the runtime of the kernels on a stream of PyTorch, and CUDA
graphs; or an emulator, for tests.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from gpu_device import CupyDevice, Device, EmulatedDevice, Work

from wcodec.errors import BackendUnavailable


class TorchDevice(Device):
    """A device whose memory is PyTorch's.

    Attributes
    ----------
    place
        Where tensors are.
    capability
        Compute capability without the point.
    burst_nbytes
        Dense weights, in bytes, that a measurement goes through at least:
        for a time that is long beside its ends.
    graph_error
        Why work was not captured, once that has failed; then it is not tried again.
    """

    place: torch.device
    capability: int
    burst_nbytes: int
    graph_error: str | None = None

    @abstractmethod
    def capture(self, work: Work) -> Work:
        """A graph of what `work` queues: what queues it again."""

    @abstractmethod
    def free_nbytes(self) -> int:
        """Memory that tensors can still take."""


class GraphDevice(CupyDevice, TorchDevice):
    """A GPU: the current one of PyTorch.

    Raises
    ------
    BackendUnavailable
    """

    burst_nbytes = 1 << 31

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise BackendUnavailable(
                "products on a GPU are measured on one, and this PyTorch finds none"
            )
        self.place = torch.device("cuda", torch.cuda.current_device())
        super().__init__(self.place.index)
        self.capability = 10 * int(self.runtime.properties["major"]) + int(
            self.runtime.properties["minor"]
        )
        self._stream = torch.cuda.Stream(self.place)  # the default one is not captured

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Make the device and a stream that both libraries know the calling thread's."""
        runtime, handle = self.runtime, int(self._stream.cuda_stream)
        with (
            torch.cuda.device(self.place),
            torch.cuda.stream(self._stream),
            runtime.in_use(),
            runtime.on(runtime.external_stream(handle)),
        ):
            yield

    def capture(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        # with memory of its own: a pool may not be named again once all its graphs are gone
        graph.capture_begin()
        try:
            work()
        except BaseException:
            # that the capture is not valid, which the first error has said better
            with suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
        return graph.replay

    def free_nbytes(self) -> int:
        torch.cuda.empty_cache()
        return self.runtime.free_nbytes()


class EmulatedTorchDevice(EmulatedDevice, TorchDevice):
    """The CPU, which runs the kernels as the tests do:
    that everything runs is seen, its times mean nothing.
    """

    capability = 0
    burst_nbytes = 0

    def __init__(self) -> None:
        super().__init__()
        self.place = torch.device("cpu")

    def capture(self, work: Work) -> Work:
        return work

    def free_nbytes(self) -> int:
        return self.runtime.free_nbytes()


#: by whether it is emulated
DEVICES: dict[bool, Callable[[], TorchDevice]] = {False: GraphDevice, True: EmulatedTorchDevice}
