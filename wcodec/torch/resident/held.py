"""A weight held compressed: a file of one tensor as a uint8 tensor, and how it is decoded."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch

from wcodec.backends import get_backend
from wcodec.codec.encoder import Encoder
from wcodec.errors import DecodeError, within
from wcodec.files.file import File
from wcodec.planner.options import EncodeOptions
from wcodec.reference.container import Index
from wcodec.reference.operands import operand_form
from wcodec.reference.tensors import TensorRecord
from wcodec.torch import dtypes
from wcodec.torch.resident import operands
from wcodec.torch.resident.scratch import prefetcher_of
from wcodec.torch.resident.tiles import Tiling, row_tiles, tiling_of

PART_NBYTES: Final = 1 << 24  #: decoded at once where rows are picked
ROWS_IN_GRAPH: Final = (
    "rows of {} cannot be picked in a CUDA graph: hold it dense, or use it outside of the graph"
)


class Held:
    """A weight as a wcodec file of one tensor in memory (spec: chapter 4).

    Parameters
    ----------
    stream
        The file: uint8 of one dimension.
    name
        What errors call it.
    options
        How it is compressed when it changes; ``None`` or a preset alone for that preset,
        or as an operand if it is one.

    Raises
    ------
    DecodeError
        The stream is no file of one tensor.
    """

    def __init__(
        self, stream: torch.Tensor, name: str = "", options: EncodeOptions | None = None
    ) -> None:
        self.stream, self.name, self.options = stream, name, options
        self.version = 0
        self.successor: weakref.ref[Held] | None = None
        #: what was opened, for which stream and memory: these may change
        self._file: tuple[torch.Tensor, int, File] | None = None
        self._tiling: tuple[File, Tiling] | None = None  #: of what was opened
        t = self.record()
        self.shape, self.nbytes, self.dtype = t.shape, t.nbytes, dtypes.torch_dtype(t.dtype)

    # ---- what it is
    def record(self) -> TensorRecord:
        """What the stream's index says of the tensor. Raises DecodeError."""
        with within(tensor=self.name):
            return only_tensor(self.opened().index)

    def opened(self) -> File:
        """The stream, opened for the backend in use."""
        backend, stream, opened = get_backend(), self.stream, self._file
        # which another one becomes when it is shared with other processes
        where = stream.data_ptr()
        if (
            opened is None
            or opened[0] is not stream
            or opened[1] != where
            or opened[2].decoder.backend is not backend
        ):
            opened = self._file = stream, where, File(stream.numpy(), backend)
        return opened[2]

    # ---- decoding
    def decode_into(self, buffer: torch.Tensor) -> None:
        """Decode into the first bytes of a uint8 tensor, checked against all CRC-32s.

        Raises
        ------
        DecodeError
        """
        with within(tensor=self.name):
            file = self.opened()
            t = only_tensor(file.index)
            file.get_tensor(t.name, dtypes.out_array(self.view(buffer), t.dtype))

    def dense(self) -> torch.Tensor:
        """The weight, in memory of its own."""
        buffer = torch.empty(self.nbytes, dtype=torch.uint8, device=self.stream.device)
        self.decode_into(buffer)
        return self.view(buffer)

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        """The weight that lies at the start of a buffer."""
        return buffer[: self.nbytes].view(self.dtype).view(self.shape)

    def lease(self) -> torch.Tensor:
        """A buffer that starts with the weight, to be given back to `give_back`."""
        return prefetcher_of(self.stream.device).decoded(self)

    def give_back(self, buffer: torch.Tensor) -> None:
        """End a lease."""
        prefetcher_of(self.stream.device).buffers.give(buffer)

    def take(self, ids: torch.Tensor) -> torch.Tensor:
        """Entries of the first dimension, ``dense()[ids]``:
        only the segments that hold them are decoded.

        Parameters
        ----------
        ids
            int64 of one dimension, ascending, none twice.

        Raises
        ------
        DecodeError, IndexError
        """
        out = torch.empty((ids.numel(), *self.shape[1:]), dtype=self.dtype)
        with within(tensor=self.name):
            file = self.opened()
            t = only_tensor(file.index)
            part, rows = file.get_slice(t.name), ids.numpy()
            for some in portions(rows, self.rows_at_once):
                out[some] = dtypes.from_array(part.take(rows[some]), t.dtype)
        return out

    def row_tiles(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The rows of a matrix on the CPU in order, some at a time; see
        `wcodec.torch.resident.tiles.row_tiles`.

        Raises
        ------
        DecodeError
        """
        with within(tensor=self.name):
            file, tiling = self.opened(), self._tiling
            t = only_tensor(file.index)
            if tiling is None or tiling[0] is not file:
                tiling = self._tiling = file, tiling_of(file, t)
            yield from row_tiles(file, t, tiling[1], self.dtype)

    @property
    def rows_at_once(self) -> int:
        """Entries of the first dimension that `take` decodes at once."""
        return max(1, PART_NBYTES * max(self.shape[0], 1) // max(self.nbytes, 1))

    def outside_of_graphs(self, what: str) -> None:
        """See that no CUDA graph is captured for the weight's device,
        where that would have to wait for it.

        Parameters
        ----------
        what
            The message of the error, with {} for the weight's name.

        Raises
        ------
        RuntimeError
        """

    def product(
        self, x: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor | None
    ) -> torch.Tensor | None:
        """``(x @ W.T) * scale + bias`` of a matrix, by a kernel that reads the stream; ``None``
        where none does, as on the CPU.
        """
        return None

    # ---- changing
    def replace(self, dense: torch.Tensor) -> None:
        """Hold another weight of the same shape and dtype from now on, compressed as this one was.

        Raises
        ------
        EncodeError
        """
        form = operand_form(self.record())
        mode = "resident" if form is None else "fused"
        stream, _ = compress(dense, self.options, self.name, mode, form)
        self.stream = stream.to(self.stream.device)
        self.version += 1

    def copy(self) -> Held:
        """Another one with the same content, which may change for itself."""
        return type(self)(self.stream.clone(), self.name, self.options)


def portions(rows: np.ndarray[Any, Any], span: int) -> Sequence[slice]:
    """Ranges of ascending ids that are less than `span` apart from first to last."""
    cuts, start = [], 0
    while start < rows.size:
        stop = int(np.searchsorted(rows, rows[start] + span))
        cuts.append(slice(start, stop))
        start = stop
    return cuts


def only_tensor(index: Index) -> TensorRecord:
    """The tensor of a stream.

    Raises
    ------
    DecodeError
        ``bad_range``: there is none, or there are more. ``bad_base``: it is a difference.
    """
    if len(index.tensors) != 1:
        raise DecodeError(
            "bad_range", f"a stream holds one tensor; this one holds {len(index.tensors)}"
        )
    (t,) = index.tensors
    if t.difference:
        raise DecodeError("bad_base", "the stream holds a difference from a base")
    return t


def encode(
    dense: torch.Tensor, options: EncodeOptions | None = None, name: str = ""
) -> torch.Tensor:
    """A tensor as a stream: uint8 of one dimension, on the tensor's device.

    Raises
    ------
    EncodeError
        ``unsupported_dtype``
    """
    array = dtypes.to_array(dense, name or None)
    return torch.frombuffer(bytearray(Encoder(options).encode(array)), dtype=torch.uint8).to(
        dense.device
    )


def pays(operand: torch.Tensor, dense: torch.Tensor) -> bool:
    """Whether a weight is held as an operand: not if that is larger, for its patches. Of bytes
    there are none; there is no other way for kernels to read them, larger or not.
    """
    return bool(dense.element_size() == 1 or operand.numel() < dense.numel() * dense.element_size())


def compress(
    dense: torch.Tensor,
    options: EncodeOptions | None = None,
    name: str = "",
    mode: str = "resident",
    operand: str | None = None,
) -> tuple[torch.Tensor, EncodeOptions | None]:
    """A tensor as a stream on its device, in mode "fused" as an operand where `options_for` has it
    so, and the options that it was made with.

    Raises
    ------
    EncodeError
        ``unsupported_dtype``
    """
    of_operand = operands.options_for(
        tuple(dense.shape), dense.dtype, dense.device, options, mode, operand
    )
    stream = encode(dense, of_operand, name)
    if of_operand is options or pays(stream, dense):
        return stream, of_operand
    return encode(dense, options, name), options
