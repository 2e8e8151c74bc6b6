"""What the CUDA backend asks of a GPU: memory, copies, launches. CuPy's here; the tests have one
that runs kernels on the CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

#: folder of the CUDA C++ sources; each .cu is compiled by itself
KERNELS: Final = Path(__file__).parent / "kernels"

#: Sources of products, by types of weights and factors.
LINEARS: Final = (
    "linear_bf16_bf16", "linear_int8_bf16", "linear_int8_fp16",
    "linear_e4m3_bf16", "linear_e4m3_fp16", "linear_e5m2_bf16", "linear_e5m2_fp16",
)  # fmt: skip

#: Kernels by source file.
SOURCES: Final[dict[str, tuple[str, ...]]] = {
    "decode": (
        "build_luts", "decode_streams",
        "decode_bytes_1", "decode_bytes_2", "decode_bytes_4",
        "decode_pairs_1", "decode_pairs_2", "decode_pairs_4",
    ),
    "context": ("find_classes", "decode_contexts"),
    "words": ("merge_words", "split_words"),
    "predict": ("inverse_prediction", "forward_prediction"),
    "transform": ("inverse_transform", "forward_transform"),
    "encode": ("build_coders", "encode_streams", "encode_contexts", "assemble"),
    "histogram": ("histograms", "count_residuals"),
    "checksum": ("crc32_parts", "crc32_join"),
    "difference": ("subtract_base", "add_base"),
    "sparse": ("count_changes", "list_changes", "find_places", "take_words", "put_words"),
    "operand": (
        "expand_bf16", "expand_int8", "expand_e4m3", "expand_e5m2",
        "add_parts_bf16", "add_parts_fp16",
    ),
    **{
        name: tuple(f"{name}_{form}_{b}" for form in ("raw", "coded") for b in (8, 16, 32, 64))
        for name in LINEARS
    },
}  # fmt: skip


class Mark(Protocol):
    """A point in the work of a stream."""

    def synchronize(self) -> None:
        """Wait until the device has come to it."""


class Runtime(ABC):
    """Memory, copies and launches on one device. Device arrays look like NumPy's: ``shape``,
    ``dtype``, ``view``, ``reshape``, slices.

    Work goes to the current stream of the calling thread, in order, and may run later; what a
    stream uses must live until it has been waited for.
    """

    device: int  #: number of the device

    # ---- what it is
    @abstractmethod
    def info(self) -> dict[str, str]:
        """Device, memory, versions."""

    @abstractmethod
    def free_nbytes(self) -> int:
        """Device memory that can still be taken."""

    def n_processors(self) -> int:
        """Multiprocessors of the device."""
        return 1

    def capability(self) -> int:
        """Compute capability, 90 for 9.0; 0 for what is no GPU."""
        return 0

    def in_use(self) -> AbstractContextManager[Any]:
        """Make the device the calling thread's for a ``with`` block."""
        return nullcontext()

    def close(self) -> None:
        """Give back memory that is kept for later."""

    # ---- memory
    @abstractmethod
    def empty(self, nbytes: int) -> Any:
        """Uninitialised device memory, uint8 of shape (nbytes,), aligned to 256 bytes."""

    @abstractmethod
    def adopt(self, address: int, nbytes: int, owner: Any) -> Any:
        """Device memory of another library, uint8 of shape (nbytes,), which `owner` keeps."""

    @abstractmethod
    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Host memory that the device can copy from and to on its own."""

    @abstractmethod
    def address(self, array: Any) -> int:
        """Device address of an array's first byte."""

    # ---- copies
    @abstractmethod
    def upload(self, host: NDArray[Any]) -> Any:
        """Device copy of a host array, which may be changed afterwards."""

    @abstractmethod
    def download(self, device: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Host copy of a device array, in `out` if given,
        once all work before it on the current stream is done.
        """

    @abstractmethod
    def copy_in(self, device: Any, host: NDArray[np.uint8]) -> None:
        """Copy from pinned memory, some time; `host` must not change before that is waited for."""

    @abstractmethod
    def copy_out(self, host: NDArray[np.uint8], device: Any) -> None:
        """Copy to pinned memory, some time."""

    @abstractmethod
    def copy_within(self, out: Any, device: Any) -> None:
        """Copy device memory to other memory of the device, of as many bytes, some time."""

    # ---- order
    @abstractmethod
    def stream(self) -> Any:
        """A new stream of work."""

    @abstractmethod
    def external_stream(self, handle: int) -> Any:
        """A stream of another library, which names it by the driver's handle."""

    @abstractmethod
    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Make a stream the current one of the calling thread for a ``with`` block."""

    @abstractmethod
    def mark(self) -> Mark:
        """The point that the current stream is at."""

    def finish(self) -> None:
        """Wait for all work of the device, whoever has queued it."""
        self.mark().synchronize()

    @abstractmethod
    def wait_for(self, mark: Any) -> None:
        """Let the current stream wait for a point of another one."""

    # ---- kernels
    @abstractmethod
    def launch(self, kernel: str, grid: int, block: int, *args: Any) -> None:
        """Run `grid` blocks of `block` threads.

        Parameters
        ----------
        args
            Device arrays, which stand for their addresses, and ``np.uint32`` or ``np.uint64``.
        """


def read_source(name: str) -> str:
    """CUDA C++ of a source of `SOURCES` with its headers in place, each once."""
    seen: set[str] = set()

    def expand(file: str) -> str:
        lines = []
        for line in (KERNELS / file).read_text().splitlines():
            words = line.split()
            if words[:1] == ["#include"] and words[1].startswith('"'):
                header = words[1].strip('"')
                if header not in seen:
                    seen.add(header)
                    lines.append(expand(header))
            elif words != ["#pragma", "once"]:
                lines.append(line)
        return "\n".join(lines) + "\n"

    return expand(f"{name}.cu")
