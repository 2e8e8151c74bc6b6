"""Operands: what matrix kernels read as it lies in the file. Spec: chapter 14.1.

All segments are in nibble pairs, lower planes raw. Plane 0 is raw, or coded under one table for the
whole tensor, which can code any symbol: what the first chunk has not may be in later ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wcodec.planner.costs import (
    MAX_PATCHES,
    Choice,
    Chunk,
    Counts,
    stream_nbytes,
    symbol_costs,
    window_of,
)
from wcodec.planner.tables import Tables
from wcodec.reference.operands import SEGMENT as OPERAND_SEGMENT
from wcodec.reference.operands import TILE as OPERAND_TILE
from wcodec.reference.planes import Bytes
from wcodec.reference.segments import Coder

FEW_PATCHES: Final = 8  #: that a segment may have however small it is
SAMPLED: Final = 16  #: segments in which the window is looked for first


@dataclass
class Windows:
    """Base and fill code of each segment, words outside of its window, and histograms of plane 0,
    if they are wanted.
    """

    base: Bytes
    fill: Bytes
    outside: Counts
    codes: Counts | None

    def few(self, size: Counts) -> NDArray[np.bool_]:
        """Which of the segments have few patches: small ones too,
        or a last row would make a matrix no operand.
        """
        return np.asarray((self.outside * MAX_PATCHES <= size) | (self.outside <= FEW_PATCHES))


def _own_windows(top: Counts) -> Counts:
    """The sixteen neighbouring top bytes that occur most in each histogram (n, 256),
    the lowest of several.
    """
    ends = np.cumsum(np.concatenate([np.zeros((len(top), 1), np.int64), top], axis=1), axis=1)
    return np.asarray(np.argmax(ends[:, 16:] - ends[:, :-16], axis=1), np.int64)


def _inside(top: Counts, base: Counts) -> Counts:
    """How many words of each segment lie in its window, given histograms of top bytes (n, 256)."""
    return np.asarray(
        np.take_along_axis(top, base[:, None] + np.arange(16), axis=1).sum(axis=1), np.int64
    )


class Operands:
    """Choices for one chunk after another.

    Parameters
    ----------
    tables
        Where the tables come from.

    Attributes
    ----------
    table
        Number of the table of the tensor that is planned, once a segment of it is coded.
    window
        Base and fill code of its last chunk: a table suits codes of one window.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables, self.coded = tables, tables.options.operand == "rans"
        self.start_tensor()

    def start_tensor(self) -> None:
        """The next chunk is the first one of a tensor."""
        self.table: int | None = None
        self.window: tuple[int, int] | None = None

    def choose(self, chunk: Chunk) -> tuple[Windows, list[Choice]]:
        """Windows and choices of the planes of all segments."""
        half = (chunk.size + 1) // 2
        if chunk.dtype.word_nbytes == 1:
            zero = np.zeros(half.size, np.uint8)
            codes = chunk.histogram(base=0, fill=0, planes=(0,))[:, 0] if self.coded else None
            windows, lower = Windows(zero, zero, np.zeros_like(half), codes), Choice.raw(half)
        else:
            windows, lower = self._windows(chunk), Choice.raw(chunk.size)
        top = Choice.raw(half)
        if windows.codes is not None:
            self._code(top, windows.codes, self._whole(chunk) & windows.few(chunk.size))
        return windows, [top, lower]

    def _windows(self, chunk: Chunk) -> Windows:
        """One window for all segments but those of which it leaves out too much:
        these have their own.
        """
        n, size = chunk.size.size, chunk.size
        if self.window is None:
            ids = np.arange(min(n, SAMPLED)) * n // min(n, SAMPLED)
            self.window = window_of(chunk.histogram(segments=ids, planes=(0,))[:, 0].sum(axis=0))
        base, fill = self.window
        counts = (
            chunk.histogram(base=base, fill=fill, planes=(0,))
            if self.coded
            else chunk.histogram(planes=(0,))
        )
        codes, top = counts[:, 0] if self.coded else None, counts[:, -1]
        better = window_of(top.sum(axis=0))
        bases, fills = np.full(n, better[0]), np.full(n, fill, np.uint8)
        if int((_inside(top, bases) - _inside(top, np.full(n, base))).sum()) << 10 <= int(
            size.sum()
        ):
            bases[:] = base
        else:
            self.window = better  # the sample, or the chunk before, has misled
        many = (size - _inside(top, bases)) * MAX_PATCHES > size
        bases[many] = _own_windows(top[many])
        for b in np.unique(bases[bases != base]).tolist():
            ids = np.flatnonzero(bases == b)
            fills[ids] = np.argmax(top[ids, b : b + 16].sum(axis=0))
            if codes is not None:
                fill = int(fills[ids[0]])
                codes[ids] = chunk.histogram(segments=ids, base=b, fill=fill, planes=())[:, 0]
        return Windows(bases.astype(np.uint8), fills, size - _inside(top, bases), codes)

    @staticmethod
    def _whole(chunk: Chunk) -> NDArray[np.bool_]:
        """Which segments consist of whole tiles."""
        heights, widths = chunk.geometry.sizes()
        return np.asarray((heights == OPERAND_SEGMENT[0]) & (widths % OPERAND_TILE[1] == 0))

    def _code(self, out: Choice, counts: Counts, may: NDArray[np.bool_]) -> None:
        """Code plane 0 where that makes it smaller, under the tensor's table, or a new one if it
        saves more than its own bytes.
        """
        if not may.any():
            return
        n_tables = len(self.tables.pool)
        number = self.tables.fit(counts[may].sum(axis=0) + 1) if self.table is None else self.table
        table = self.tables.pool[number]
        if not (table.freq > 0).all():
            return  # an earlier tensor's, where the file has no room for another one
        nbytes = stream_nbytes(counts @ symbol_costs(table))
        may = may & (nbytes < out.nbytes)
        if int((out.nbytes - nbytes)[may].sum()) > (
            table.serialised_nbytes if number >= n_tables else 0
        ):
            self.table = number
            out.coder[may], out.table[may], out.nbytes[may] = Coder.RANS, number, nbytes[may]
