"""Memory of PyTorch's on a GPU, for tensors that are decoded there: it goes back to PyTorch's
allocator, which knows who reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from wcodec.backends.cuda.runtime import Runtime
from wcodec.cuda.loader import DeviceTensor
from wcodec.torch import dtypes


def current_stream(device: torch.device) -> int:
    """PyTorch's current stream, as the driver knows it; on a CPU, where an emulator runs, none."""
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0


class DeviceMemory:
    """Where a `wcodec.cuda.Loader` puts tensors of PyTorch.

    They are made on the stream that is current when they are loaded, as others of PyTorch are: what
    reads one on another stream calls ``record_stream``, if the tensor may go before that is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._taken = device, dict[int, torch.Tensor]()

    @contextmanager
    def in_use(self, runtime: Runtime) -> Iterator[None]:
        """Make PyTorch's current stream that of the runtime:
        what is written waits for what was queued there.
        """
        with runtime.in_use(), runtime.on(runtime.external_stream(current_stream(self.device))):
            yield

    def allocate(self, runtime: Runtime, nbytes: int) -> Any:
        """Memory for a tensor, as an array of the runtime.

        Raises
        ------
        MemoryError
            There is none, nor any that the runtime had kept.
        """
        n = max(nbytes, 1)  # never a null pointer
        try:
            memory = empty(n, self.device)
        except torch.cuda.OutOfMemoryError:
            runtime.close()
            try:
                memory = empty(n, self.device)
            except torch.cuda.OutOfMemoryError as e:
                raise MemoryError(str(e)) from None
        self._taken[memory.data_ptr()] = memory
        return runtime.adopt(memory.data_ptr(), nbytes, memory)

    def tensor(self, t: DeviceTensor) -> torch.Tensor:
        """The tensor that was decoded; to be called once for each."""
        memory = self._taken.pop(t.address)
        return memory[: t.nbytes].view(dtypes.torch_dtype(t.dtype)).view(t.shape)


def empty(nbytes: int, device: torch.device) -> torch.Tensor:
    """Bytes of PyTorch's on a device."""
    return torch.empty(nbytes, dtype=torch.uint8, device=device)
