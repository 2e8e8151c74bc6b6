"""Operands in device memory: matrices that kernels multiply by as they lie in a file (spec:
chapter 14.1).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.cuda.decoding import LUT_NBYTES
from wcodec.backends.cuda.runtime import Runtime
from wcodec.backends.cuda.worklist import TableRows
from wcodec.reference.operands import operand_problem
from wcodec.reference.segments import ALIGN, Coder, SegmentPlan
from wcodec.reference.tables import TablePool
from wcodec.reference.tensors import TensorRecord

BLOCK: Final = 256  #: threads of a block
WARPS: Final = BLOCK // 32
#: of ``kernels/operand.cuh``
RECORD: Final = np.dtype([("codes", "<u4"), ("lower", "<u4"), ("patches", "<u4"), ("info", "<u4")])
MOST_SIDE: Final = (1 << 31) - 1
MOST_NBYTES: Final = 1 << 34  #: of a payload: its 4-byte words have numbers of 32 bits

#: What kernels call the weights' dtypes.
WEIGHTS: Final = {
    "bfloat16": "bf16",
    "int8": "int8",
    "float8_e4m3fn": "e4m3",
    "float8_e5m2": "e5m2",
}


class Operand:
    """A matrix whose payload lies in device memory, ready to be multiplied by or decoded. Its
    payload is taken to be whole.

    Parameters
    ----------
    t, tables
        The tensor, an operand, and the tables of its file.
    payload
        Device address of its payload, a multiple of 16. The memory is the caller's.

    Attributes
    ----------
    shape
        Rows and columns: outputs and inputs of a linear layer.
    weights
        What kernels call its dtype: "bf16", "int8", "e4m3" or "e5m2".
    coded
        Whether some of its symbols are coded.
    nbytes
        Device memory that is needed beside the payload.
    args
        What all kernels of operands get first.

    Raises
    ------
    ValueError
        The tensor is no operand, or too large.
    """

    def __init__(self, runtime: Runtime, t: TensorRecord, tables: TablePool, payload: int) -> None:
        problem = kernel_problem(t)
        if problem is not None:
            raise ValueError(f"no operand: {problem}")
        self.runtime = runtime
        self.shape = (t.shape[0], t.shape[1])
        self.weights = WEIGHTS[t.dtype.name]
        plan = t.plan(tables)
        with runtime.in_use():
            # CuPy has no dtypes with fields, or few
            self._records = runtime.upload(records_of(plan).view(np.uint8))
            self._luts, self.prob_bits = _luts_of(runtime, plan)
        self.coded = self._luts is not None
        self.nbytes = int(self._records.nbytes) + (LUT_NBYTES if self.coded else 0)
        luts = np.uint64(runtime.address(self._luts) if self.coded else 0)
        sizes = map(np.uint32, (*self.shape, self.prob_bits))
        self.args: tuple[Any, ...] = (np.uint64(payload), self._records, luts, *sizes)

    def expand(self, words: int) -> None:
        """Queue decoding to a device address, row by row, on the current stream."""
        n_segments = self._records.nbytes // RECORD.itemsize
        with self.runtime.in_use():
            self.runtime.launch(
                f"expand_{self.weights}",
                -(-n_segments // WARPS),
                BLOCK,
                *self.args,
                np.uint64(words),
            )


def kernel_problem(t: TensorRecord) -> str | None:
    """Why kernels cannot read a tensor: it is no operand, or too large; ``None`` if they can."""
    problem = operand_problem(t)
    if problem is None and (max(t.shape) > MOST_SIDE or t.payload_nbytes >= MOST_NBYTES):
        return "it is too large"
    return problem


def records_of(plan: SegmentPlan) -> NDArray[Any]:
    """What kernels know of each segment: `RECORD`."""
    s, out = plan.segments, np.zeros(plan.geometry.n_segments, RECORD)
    out["codes"], out["lower"] = plan.plane_offsets[:2] // ALIGN
    out["patches"] = plan.patch_offsets // ALIGN
    out["info"] = s.base | (s.coder[0] == Coder.RANS).astype(np.uint32) << 8 | s.n_patches << 16
    return out


def _luts_of(runtime: Runtime, plan: SegmentPlan) -> tuple[Any, int]:
    """Entries of the table that symbols are coded with, and its precision;
    ``None`` and 9 if there is none.
    """
    s, rows = plan.segments, TableRows()
    coded = np.flatnonzero(s.coder[0] == Coder.RANS)[:1]
    if not coded.size:
        return None, 9
    rows.of(plan.tables, s.table[0][coded], s.coder[0][coded])
    table, luts = rows.array(), runtime.empty(LUT_NBYTES)
    runtime.launch("build_luts", 1, BLOCK, runtime.upload(table.view(np.uint8)), np.uint32(1), luts)
    runtime.mark().synchronize()  # before the table goes
    return luts, int(table["prob_bits"][0])
