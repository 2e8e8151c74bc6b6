"""Frequency tables and interleaved rANS. Spec: chapter 9."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.reference.planes import Bytes
from wcodec.reference.tables import TablePool

LANES: Final = 32  #: R9.2
STEPS: Final = 4  #: symbols of a lane in a group
GROUP: Final = LANES * STEPS  #: symbols in a group
STATE_LOW: Final = 1 << 16  #: states lie in [2^16, 2^32); the last one is 2^16
HEAD_NBYTES: Final = 4 * LANES  #: the start states
UNIT: Final = 16  #: bytes; streams are padded to a whole number of units


def max_stream_nbytes(n_symbols: Any) -> Any:
    """Longest stream of `n_symbols` symbols (R9.10):
    the start states and one word a symbol, padded.
    """
    return HEAD_NBYTES + -(-n_symbols // GROUP) * (2 * GROUP)


TableIds = int | np.integer[Any] | Sequence[int] | NDArray[Any]


class _Rows:
    """Which row of stacked tables codes a symbol:
    that of its stream, or one of several, by the symbol's class.
    """

    def __init__(
        self, sizes: Sequence[int], tables: Sequence[TableIds], classes: Sequence[Bytes | None]
    ) -> None:
        own_tables = [np.atleast_1d(t) for t in tables]
        #: numbers of the tables that are stacked
        self.ids, flat = np.unique(
            np.concatenate([np.empty(0, np.int64), *own_tables]), return_inverse=True
        )
        ends = np.cumsum([0, *(t.size for t in own_tables)])
        #: of each stream, the row of its first table
        self.first = flat[ends[:-1]]
        #: the row for each symbol, of shape (streams, groups, lanes, steps), where classes differ
        self.of_symbols: NDArray[np.int64] | None = None
        if any(c is not None for c in classes):
            most = -(-max(sizes) // GROUP)
            self.of_symbols = np.repeat(self.first[:, None], most * GROUP, axis=1)
            for row_of, own, a, b in zip(
                self.of_symbols, classes, ends[:-1], ends[1:], strict=True
            ):
                if own is not None:
                    row_of[: own.size] = flat[a:b][own]
            self.of_symbols = self.of_symbols.reshape(-1, most, LANES, STEPS)

    @classmethod
    def ordered(
        cls,
        order: NDArray[np.int64],
        sizes: Sequence[int],
        tables: Sequence[TableIds] | NDArray[Any],
        classes: Sequence[Bytes | None] | None,
    ) -> _Rows:
        """For streams in another order."""
        return cls(
            [sizes[k] for k in order],
            [tables[k] for k in order],
            [None if classes is None else classes[k] for k in order],
        )

    def of(self, n: int, group: int, step: int) -> NDArray[np.int64]:
        """Rows of the first `n` streams for a step: of shape (n, 1), or (n, lanes)."""
        return (
            self.first[:n, None] if self.of_symbols is None else self.of_symbols[:n, group, :, step]
        )


def _filled(symbols: Sequence[Bytes], padding: Sequence[int], n_groups: int) -> Bytes:
    """Symbols of all streams as lines of `n_groups` groups, each filled up (R9.4)."""
    lines = np.empty((len(symbols), n_groups * GROUP), np.uint8)
    for line, own, symbol in zip(lines, symbols, padding, strict=True):
        line[: own.size], line[own.size :] = own, symbol
    return lines


def encode_streams(
    symbols: Sequence[Bytes],
    tables: Sequence[TableIds] | NDArray[Any],
    pool: TablePool,
    classes: Sequence[Bytes | None] | None = None,
) -> list[Bytes]:
    """Encode each of `symbols`; groups run backwards (R9.8).

    Parameters
    ----------
    symbols
        uint8 arrays.
    tables
        For each the number of its table, or of as many tables as there are classes.
    classes
        For each ``None``, or the class of each symbol: uint8.

    Returns
    -------
    One uint8 array a stream, a whole number of 16-byte units each.
    """
    n_groups = np.array([-(-s.size // GROUP) for s in symbols], np.int64)
    # longest first: those that take part in a group are a prefix
    order = np.argsort(-n_groups, kind="stable")
    rows = _Rows.ordered(order, [s.size for s in symbols], tables, classes)
    freq = pool.stack(rows.ids, "freq").astype(np.uint64)
    start = pool.stack(rows.ids, "start").astype(np.uint64)
    bits = pool.stack(rows.ids, "prob_bits").astype(np.uint64)[rows.first]
    most = int(n_groups.max(initial=0))
    padding = [pool[int(rows.ids[row])].padding for row in rows.first]
    lines = _filled([symbols[k] for k in order], padding, most)
    states = np.full((len(order), LANES), STATE_LOW, np.uint64)
    words = np.zeros((len(order), most * GROUP), np.uint16)
    position = np.full(len(order), most * GROUP)
    for g in range(most - 1, -1, -1):
        n = int((n_groups > g).sum())
        group = lines[:n, g * GROUP : (g + 1) * GROUP].reshape(n, LANES, STEPS)
        x, p = states[:n], bits[:n]
        for j in range(STEPS - 1, -1, -1):
            r = rows.of(n, g, j)
            f, c = freq[r, group[:, :, j]], start[r, group[:, :, j]]
            # these lanes shed a word, lane 31 first: the decoder reads forward
            over = x >= f << (np.uint64(32) - p)
            rank = np.cumsum(over, axis=1)
            position[:n] -= rank[:, -1]
            s, lane = np.nonzero(over)
            words[s, position[s] + rank[s, lane] - 1] = x[s, lane] & np.uint64(0xFFFF)
            x = np.where(over, x >> np.uint64(16), x)
            x = ((x // f) << p) + x % f + c
        states[:n] = x
    out: list[Bytes] = [np.empty(0, np.uint8)] * len(order)
    for i, k in enumerate(order):
        stream = states[i].astype("<u4").tobytes() + words[i, position[i] :].astype("<u2").tobytes()
        out[k] = np.frombuffer(stream + bytes(-len(stream) % UNIT), np.uint8)
    return out


def decode_streams(
    streams: Sequence[Bytes],
    n_symbols: NDArray[np.int64],
    tables: Sequence[TableIds] | NDArray[Any],
    pool: TablePool,
    classes: Sequence[Bytes | None] | None = None,
) -> tuple[list[Bytes], NDArray[np.bool_]]:
    """Decode each stream into its number of symbols (R9.9). Never reads outside of a stream. Tables
    and classes as for `encode_streams`.

    Returns
    -------
    symbols
        One uint8 array a stream.
    good
        Whether each stream ended in its final states with every word consumed.
    """
    n_groups = -(-n_symbols // GROUP)
    order = np.argsort(-n_groups, kind="stable")
    rows = _Rows.ordered(order, n_symbols.tolist(), tables, classes)
    lut = pool.stack(rows.ids, "lut")
    bits = pool.stack(rows.ids, "prob_bits").astype(np.uint32)[rows.first]
    most = int(n_groups.max(initial=0))
    n_words = np.array([streams[k].size // 2 - 2 * LANES for k in order], np.int64)
    words = np.zeros((len(order), int(n_words.max(initial=0)) + LANES), np.uint32)
    states = np.zeros((len(order), LANES), np.uint32)
    for i, k in enumerate(order):
        states[i] = streams[k][:HEAD_NBYTES].view("<u4")
        words[i, : n_words[i]] = streams[k][HEAD_NBYTES:].view("<u2")
    position, last = np.zeros(len(order), np.int64), words.shape[1] - 1
    lines = np.zeros((len(order), most, LANES, STEPS), np.uint8)
    for g in range(most):
        n = int((n_groups > g).sum())
        x, p = states[:n], bits[:n]
        for j in range(STEPS):
            entry = lut[rows.of(n, g, j), x & ((np.uint32(1) << p) - np.uint32(1))]
            lines[:n, g, :, j] = entry & np.uint32(255)
            x = (entry >> np.uint32(20)) * (x >> p) + ((entry >> np.uint32(8)) & np.uint32(4095))
            low = x < STATE_LOW
            rank = np.cumsum(low, axis=1)
            # a stream that runs out reads zeros, and is refused
            at = np.minimum(position[:n, None] + rank - 1, last)
            x = np.where(low, x << np.uint32(16) | words[np.arange(n)[:, None], at], x)
            position[:n] += rank[:, -1]
        states[:n] = x
    good = (
        (states == STATE_LOW).all(axis=1) & (position <= n_words) & (n_words - position < UNIT // 2)
    )
    symbols: list[Bytes] = [np.empty(0, np.uint8)] * len(order)
    correct = np.zeros(len(order), bool)
    for i, k in enumerate(order):
        symbols[k], correct[k] = lines[i].reshape(-1)[: n_symbols[k]], good[i]
    return symbols, correct
