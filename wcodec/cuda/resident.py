"""Tensors that stay compressed in device memory, and are decoded there again and again."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.cuda.checksums import crc32_ranges, crc32_records
from wcodec.backends.cuda.decoding import Decoding
from wcodec.backends.cuda.runtime import Runtime
from wcodec.backends.cuda.worklist import WorkItem
from wcodec.codec.checks import check_segments, check_tensor
from wcodec.processes import Lock
from wcodec.reference.segments import SegmentPlan
from wcodec.reference.tables import TablePool
from wcodec.reference.tensors import TensorRecord

Ids = NDArray[np.int64]
MOST_PREPARED: Final = 4  #: addresses that a tensor is ready to be decoded to


class ResidentTensor:
    """A tensor whose payload lies in device memory.

    The first time it is decoded everything is checked, as `wcodec.decode` does; then the payload is
    taken to stay as it is, kernels are launched, and nobody waits.

    Parameters
    ----------
    t, tables
        The tensor, which is no difference from a base, and the tables of its file.
    payload
        Device address of its payload, a multiple of 16. The memory is the caller's.
    """

    def __init__(self, runtime: Runtime, t: TensorRecord, tables: TablePool, payload: int) -> None:
        self.runtime, self.t, self.tables, self.payload = runtime, t, tables, payload
        self._checked, self._lock = False, Lock()
        self._prepared: dict[int, Decoding] = {}

    def decode(self, words: int) -> None:
        """Decode to a device address, on the current stream; the first time, wait and check.

        Raises
        ------
        DecodeError
        """
        with self._lock:
            plan, decoding = self.t.plan(self.tables), self._prepare(words)
            decoding.launch()
            if not self._checked:
                self._check(plan, decoding, words)
                self._checked = True
            elif decoding.needs_scratch:
                self.runtime.mark().synchronize()  # before its memory goes

    def _prepare(self, words: int) -> Decoding:
        """What is launched to decode to an address: the same as the last time, but for kernels that
        need memory of their own.
        """
        decoding = self._prepared.get(words)
        if decoding is None:
            decoding = Decoding(
                self.runtime, [WorkItem(self.t.plan(self.tables), words, self.payload)]
            )
            decoding.prepare()
            if not decoding.needs_scratch:  # which would be kept with it
                # buffers have moved: what was prepared for others is of no use
                if len(self._prepared) == MOST_PREPARED:
                    self.runtime.finish()
                    self._prepared.clear()
                self._prepared[words] = decoding
        return decoding

    def _check(self, plan: SegmentPlan, decoding: Decoding, words: int) -> None:
        records = crc32_records(self.runtime, [(self.payload, plan.offsets)])
        whole = crc32_ranges(
            self.runtime, np.array([words], np.uint64), np.array([self.t.nbytes], np.int64)
        )
        ids = np.arange(plan.geometry.n_segments)
        starts = plan.offsets[:-1] + self.t.payload_offset
        try:
            check_segments(self.t, ids, starts, decoding.status(), records.result())
            check_tensor(self.t, int(whole.result()[0]))
        except BaseException:
            self._prepared.clear()
            raise

    def decode_part(self, down: Ids, across: Ids, payload: int, words: int) -> None:
        """Decode some segment rows and columns, whose records lie one after another at `payload`,
        and check them; waits.

        Raises
        ------
        DecodeError
        """
        geometry, ids = self.t.geometry.select(down, across)
        plan = self.t.part(ids, geometry, self.tables)
        decoding = Decoding(self.runtime, [WorkItem(plan, words, payload)])
        decoding.queue()
        records = crc32_records(self.runtime, [(payload, plan.offsets)])
        starts = self.t.plan(self.tables).offsets[:-1][ids] + self.t.payload_offset
        check_segments(self.t, ids, starts, decoding.status(), records.result())
