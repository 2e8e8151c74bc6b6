"""Structures for single kernels of the CUDA backend, in the emulator's memory:
each buffer ends where it may be touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulator import ORDERS, EmulatedRuntime, run_sanitized
from fences import Fence
from paths import PYTHONPATH

from wcodec.backends.cuda.layout import PLANE, SEGMENT, TABLE, TENSOR
from wcodec.reference.planes import DType
from wcodec.reference.tables import TablePool
from wcodec.reference.tiles import Geometry

Array = np.ndarray[Any, Any]
BLOCK = 256

#: Options of an `EmulatedRuntime`: all orders, and the check for races.
RUNTIMES: list[dict[str, Any]] = [{"order": order, "seed": seed} for order, seed in ORDERS]
RUNTIMES.append({"order": "shuffled", "seed": 3, "races": True})


def runtime_id(options: dict[str, Any]) -> str:
    """Name of such options in a test's id."""
    return "races" if "races" in options else f"{options['order']}-{options['seed']}"


#: The same for a fixture: always one that compares accesses, and one in an order that no GPU has;
#: the other orders in `make test-all`.
EACH_RUNTIME = [
    pytest.param(
        options,
        id=runtime_id(options),
        marks=() if runtime_id(options) in ("races", "reverse-0") else pytest.mark.exhaustive,
    )
    for options in RUNTIMES
]


def check_sanitized(file: str) -> None:
    """A file of tests, run as a program with sanitizers on, gets to its end and says so."""
    run = run_sanitized([str(Path(file).resolve())], env={"PYTHONPATH": PYTHONPATH})
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip() == "OK"


class Memory:
    """Buffers behind fences; the emulator's device memory is the host's.

    Attributes
    ----------
    at_end
        Whether the next buffers end where memory ends, or start where it starts.
    """

    def __init__(self, at_end: bool = True) -> None:
        self.at_end = at_end
        self._fences: list[Fence] = []

    def room(self, nbytes: int) -> Array:
        """Bytes filled with canaries."""
        fence = Fence(nbytes, self.at_end)
        self._fences.append(fence)
        return fence.bytes

    def put(self, data: Array, nbytes: int = 0) -> Array:
        """A copy that cannot be written, of at least so many bytes:
        what follows the data are canaries.
        """
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        out = self.room(max(nbytes, flat.size))
        out[: flat.size] = flat
        self._fences[-1].freeze()
        return out

    def check(self) -> None:
        """Nothing was written around the buffers."""
        assert all(f.whole for f in self._fences)


def address(array: Array) -> int:
    return int(array.ctypes.data)


def pad(n: int, to: int = 16) -> int:
    return -(-n // to) * to


def table_rows(tables: TablePool) -> Array:
    """A `TABLE` of each table."""
    rows = np.zeros(len(tables), TABLE)
    for row, table in zip(rows, tables.tables, strict=True):
        row["prob_bits"], row["padding"], row["freq"] = table.prob_bits, table.padding, table.freq
    return rows


def tensors_of(dtype: DType, geometry: Geometry) -> Array:
    """The `TENSOR` of a matrix."""
    out = np.zeros(1, TENSOR)
    out["cols"] = geometry.cols
    out["tile_rows"] = geometry.tile_rows
    out["tile_cols"] = geometry.tile_cols
    out["word_nbytes"] = dtype.word_nbytes
    out["map"] = dtype.word_map
    out["exponent_bits"] = dtype.exponent_bits
    out["n_planes"] = dtype.n_planes
    return out


def segments_of(dtype: DType, geometry: Geometry, words: int) -> Array:
    """`SEGMENT`s of a matrix at an address, without a layout."""
    out = np.zeros(geometry.n_segments, SEGMENT)
    out["height"], out["width"] = geometry.sizes()
    out["n_tiles"] = geometry.tile_counts()
    out["plane"] = np.arange(out.size) * dtype.n_planes
    for k in range(out.size):
        rows, cols = geometry.rectangle(k)
        out["words"][k] = words + (rows.start * geometry.cols + cols.start) * dtype.word_nbytes
    return out


def planes_of(dtype: DType, geometry: Geometry) -> Array:
    """`PLANE`s of all segments, without a coder."""
    out = np.zeros((geometry.n_segments, dtype.n_planes), PLANE)
    out["segment"] = np.arange(geometry.n_segments)[:, None]
    out["index"] = np.arange(dtype.n_planes)
    return out


def launch(
    runtime: EmulatedRuntime,
    kernel: str,
    structures: tuple[Array, ...],
    chosen: Array,
    *results: Array,
) -> None:
    """Run a kernel on the entries of a list, which together with the structures can't be
    written.
    """
    memory = Memory()
    args = [memory.put(a) for a in (*structures, chosen.astype(np.uint32))]
    runtime.launch(kernel, chosen.size, BLOCK, *args, *results)
