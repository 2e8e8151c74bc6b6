"""Frequency tables and interleaved rANS. Spec: chapter 9."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache
from itertools import repeat
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.errors import DecodeError

Bytes = NDArray[np.uint8]
Counts = NDArray[np.int64]

LANES: Final = 32  #: R9.2
STEPS: Final = 4  #: symbols of a lane in a group
GROUP: Final = LANES * STEPS  #: symbols in a group
STATE_LOW: Final = 1 << 16  #: states lie in [2^16, 2^32); the last one is 2^16
HEAD_NBYTES: Final = 4 * LANES  #: the start states
UNIT: Final = 16  #: bytes; streams are padded to a whole number of units
MIN_PROB_BITS: Final = 9
MAX_PROB_BITS: Final = 12


# ---- tables ----------------------------------------------------------------------------------------------------------
class Table:
    """Frequencies of the 256 symbols, of sum ``2**prob_bits`` (R9.6).

    Parameters
    ----------
    freq
        256 integers.
    prob_bits
        9 to 12.

    Raises
    ------
    DecodeError
        ``bad_table``: a rule of R9.6 is broken.
    """

    def __init__(self, freq: Sequence[int] | NDArray[Any], prob_bits: int) -> None:
        self.freq, self.prob_bits = np.asarray(freq, np.int64), prob_bits
        if not MIN_PROB_BITS <= prob_bits <= MAX_PROB_BITS:
            raise DecodeError("bad_table", f"prob_bits is {prob_bits}, not 9 to 12")
        if self.freq.sum() != 1 << prob_bits:
            raise DecodeError(
                "bad_table", f"the frequencies sum to {self.freq.sum()}, not {1 << prob_bits}"
            )
        if self.freq.max() >= 1 << prob_bits:
            raise DecodeError("bad_table", "a table holds one symbol alone")

    @cached_property
    def start(self) -> Counts:
        """First slot of each symbol: the sum of the frequencies before it."""
        return np.cumsum(self.freq) - self.freq

    @cached_property
    def padding(self) -> int:
        """The most probable symbol, the lowest of several: it fills up the last group (R9.4)."""
        return int(np.argmax(self.freq))

    @cached_property
    def lut(self) -> NDArray[np.uint32]:
        """Decoding table: ``freq << 20 | (slot - start) << 8 | symbol`` for each slot."""
        symbol = np.repeat(np.arange(256), self.freq)
        bias = np.arange(1 << self.prob_bits) - self.start[symbol]
        return (self.freq[symbol] << 20 | bias << 8 | symbol).astype(np.uint32)

    @cached_property
    def cost(self) -> NDArray[np.float64]:
        """What each symbol costs, in 1/65536 bit, a whole number; `NEVER` where the frequency is 0."""
        return np.where(self.freq > 0, (self.prob_bits << 16) - LOG2[self.freq], NEVER).astype(
            np.float64
        )

    @cached_property
    def _range(self) -> tuple[int, Counts]:
        """First symbol that is used, and the frequencies from it to the last one."""
        used = np.flatnonzero(self.freq)
        return int(used[0]), self.freq[used[0] : used[-1] + 1]

    @cached_property
    def _code_bits(self) -> Counts:
        """Bits of all frequencies as Exp-Golomb codes of each order."""
        k = np.arange(MAX_PROB_BITS)[:, None]
        quotient_bits = np.frexp((self._range[1] >> k) + 1)[1]
        return np.asarray((2 * quotient_bits - 1 + k).sum(axis=1), np.int64)

    @property
    def serialised_nbytes(self) -> int:
        """Length of `serialised`, in less time."""
        return 4 + -(-int(self._code_bits.min()) // 8)

    @cached_property
    def serialised(self) -> bytes:
        """The table as the TABLES record holds it (R9.7): the shortest of all `k`."""
        first, values = self._range
        last, k = first + values.size - 1, int(np.argmin(self._code_bits))
        bits = "".join(map(_exp_golomb, values.tolist(), repeat(k)))
        bits += "0" * (-len(bits) % 8)
        return bytes([self.prob_bits, first, last, k]) + int(bits, 2).to_bytes(
            len(bits) // 8, "big"
        )


@lru_cache(maxsize=1 << 12)
def _exp_golomb(value: int, k: int) -> str:
    """Exp-Golomb code of order k: as many zeros as the quotient has bits after its first, the quotient, k low bits."""
    quotient, low = (value >> k) + 1, value & ((1 << k) - 1)
    return "0" * (quotient.bit_length() - 1) + f"{quotient:b}" + (f"{low:0{k}b}" if k else "")


#: `read_tables`, or what does the same
TableReader = Callable[[bytes, int, int], tuple[list[Table], int]]


def read_tables(data: bytes, offset: int, n: int) -> tuple[list[Table], int]:
    """Read `n` serialised tables (R9.7). Returns them and the offset behind the last one.

    Raises
    ------
    DecodeError
        ``bad_table``
    """
    tables: list[Table] = []
    while len(tables) < n:
        some, offset = _read_some_tables(data, offset, min(n - len(tables), 64))
        tables += some
    return tables, offset


def _read_some_tables(data: bytes, offset: int, n: int) -> tuple[list[Table], int]:
    """Find the codes of each table one by one, for where one starts depends on all before; read their values all together."""
    start, at_bits, heads = offset, list[int](), list[tuple[int, int, int, int]]()
    for _ in range(n):
        heads.append(_read_head(data, offset))
        codes, n_bits = _find_codes(data, offset + 4, heads[-1])
        at_bits += [8 * (offset + 4 - start) + at for at in codes]
        offset += 4 + -(-n_bits // 8)
    raw = np.frombuffer(data[start:offset] + bytes(8), np.uint8)
    begin = np.array(at_bits, np.int64)
    row, k = (
        np.repeat(np.arange(n), [last - first + 1 for _, first, last, _ in heads]),
        np.array([h[3] for h in heads]),
    )
    symbol = np.concatenate([np.arange(first, last + 1) for _, first, last, _ in heads])
    window = raw[(begin // 8)[:, None] + np.arange(8)].view(">u8")[:, 0].astype(np.uint64) << (
        begin % 8
    ).astype(np.uint64)
    # before the first 1
    zeros = 63 - (np.frexp((window >> np.uint64(32)).astype(np.float64))[1] + 31)
    values = (window << zeros.astype(np.uint64)) >> (63 - (zeros + k[row])).astype(np.uint64)
    freq = np.zeros((n, 256), np.int64)
    freq[row, symbol] = values.astype(np.int64) - (1 << k[row])
    for line, (_, first, last, _) in zip(freq, heads, strict=True):
        if line[first] == 0 or line[last] == 0:
            raise DecodeError("bad_table", "the first or last frequency is 0")
    return [Table(line, head[0]) for line, head in zip(freq, heads, strict=True)], offset


def _read_head(data: bytes, offset: int) -> tuple[int, int, int, int]:
    """`prob_bits`, first and last symbol, order of the codes."""
    if len(data) - offset < 4:
        raise DecodeError("bad_table", "a table is cut short")
    prob_bits, first, last, k = data[offset : offset + 4]
    if not MIN_PROB_BITS <= prob_bits <= MAX_PROB_BITS or first > last or k >= MAX_PROB_BITS:
        raise DecodeError("bad_table", f"prob_bits {prob_bits}, first {first}, last {last}, k {k}")
    return prob_bits, first, last, k


def _find_codes(data: bytes, offset: int, head: tuple[int, int, int, int]) -> tuple[list[int], int]:
    """Where each Exp-Golomb code starts, in bits from `offset`, and their bits in all: zeros, a 1, as many bits as zeros, k bits."""
    _, first, last, k = head
    # longer codes than this break a rule
    longest = (last - first + 1) * (2 * MAX_PROB_BITS + 1 + k)
    bits = np.unpackbits(
        np.frombuffer(data[offset : offset + longest // 8 + 1], np.uint8)
    ).tobytes()
    at, codes, find, add = 0, list[int](), bits.find, 1 + k
    for symbol in range(first, last + 1):
        one = find(1, at)
        if not 0 <= one - at <= MAX_PROB_BITS:
            raise DecodeError(
                "bad_table", f"the frequency of symbol {symbol} is cut short or too long"
            )
        codes.append(at)
        at = 2 * one - at + add
    if at > len(bits):
        raise DecodeError("bad_table", f"the frequency of symbol {last} is cut short")
    if find(1, at, at + -at % 8) >= 0:
        raise DecodeError("bad_table", "the padding bits of a table are not 0")
    return codes, at


class ContextKind(IntEnum):
    """Where the context of a symbol comes from (R9.13)."""

    PLANE = 1  #: the symbol of plane 0 at its place
    POSITION = 2  #: its place in the 8 x 8 blocks of its tile
    SCALE = 3  #: the classes of its row and column, which the segment record holds


N_CONTEXTS: Final = {ContextKind.PLANE: 256, ContextKind.POSITION: 64, ContextKind.SCALE: 16}
MAX_CLASSES: Final = 16  #: tables that one plane of a segment can use


@dataclass(frozen=True)
class ContextMap:
    """Which of some tables codes a symbol, by its context (R9.12).

    Attributes
    ----------
    kind
        A `ContextKind`.
    class_of
        The class of each context: an index into `tables`. `N_CONTEXTS` bytes.
    tables
        Numbers of tables of the pool, all of one `prob_bits`.
    """

    kind: int
    class_of: bytes
    tables: tuple[int, ...]


class TablePool:
    """The tables and context maps of a file, in order, and their arrays for coding many streams at once."""

    def __init__(self, tables: Iterable[Table] = (), maps: Iterable[ContextMap] = ()) -> None:
        self.tables, self.maps = list(tables), list(maps)

    def __len__(self) -> int:
        return len(self.tables)

    def __getitem__(self, i: int) -> Table:
        return self.tables[i]

    def stack(self, ids: NDArray[Any], field: str) -> NDArray[Any]:
        """``getattr(table, field)`` of several tables, as one array; shorter rows (a `lut` of fewer slots) end in 0."""
        rows = [np.atleast_1d(getattr(self.tables[i], field)) for i in ids.tolist()]
        out = np.zeros(
            (len(rows), max((r.size for r in rows), default=0)), rows[0].dtype if rows else np.int64
        )
        for line, row in zip(out, rows, strict=True):
            line[: row.size] = row
        return out


# ---- the model: from counts to frequencies and costs, in integers, so that every machine chooses the same --------------
def log2_fixed(n: int) -> Counts:
    """``floor(log2(i) * 65536)`` for i in 0..n (0 for 0), by repeated squaring of 30-bit fractions."""
    i = np.maximum(np.arange(n + 1, dtype=np.int64), 1)
    # exact: the exponent of an integer below 2^53
    whole = np.frexp(i.astype(np.float64))[1].astype(np.int64) - 1
    fraction, out = i << (30 - whole), whole
    for _ in range(16):
        fraction = (fraction * fraction) >> 30
        bit = fraction >> 31
        fraction, out = fraction >> bit, out << 1 | bit
    return out


LOG2: Final = log2_fixed(1 << MAX_PROB_BITS)


@lru_cache(maxsize=1)
def _log2_list() -> list[int]:
    out: list[int] = LOG2.tolist()
    return out


NEVER: Final = 1 << 46  #: above the cost of any chunk: a symbol that a table cannot code


def quantise(counts: Counts, prob_bits: int = MAX_PROB_BITS) -> Table:
    """Table of the counts: at least 1 for each symbol that occurs; what rounding leaves goes where it costs least.

    Parameters
    ----------
    counts
        256 counts, at least two of them not 0, of sum below 2^40.
    """
    total, f, most = int(counts.sum()), np.zeros(256, np.int64), (1 << prob_bits) - 1
    used = np.flatnonzero(counts)
    f[used] = np.clip((counts[used] << prob_bits) // total, 1, most)
    freq, missing = f.tolist(), most + 1 - int(f.sum())
    step, of, log2 = (1 if missing > 0 else -1), counts.tolist(), _log2_list()
    heap = [
        (of[i] * (log2[freq[i]] - log2[freq[i] + step]), i)
        for i in used.tolist()
        if 1 <= freq[i] + step <= most
    ]
    heapq.heapify(heap)
    for _ in range(abs(missing)):
        i = heap[0][1]
        freq[i] += step
        if 1 <= freq[i] + step <= most:
            heapq.heapreplace(heap, (of[i] * (log2[freq[i]] - log2[freq[i] + step]), i))
        else:
            heapq.heappop(heap)
    f[:] = freq
    return Table(f, prob_bits)


# ---- rANS, vectorised over (streams, lanes) -----------------------------------------------------------------------------
def max_stream_nbytes(n_symbols: Any) -> Any:
    """Longest stream of `n_symbols` symbols (R9.10): the start states and one word a symbol, padded."""
    return HEAD_NBYTES + -(-n_symbols // GROUP) * (2 * GROUP)


TableIds = int | np.integer[Any] | Sequence[int] | NDArray[Any]


class _Rows:
    """Which row of stacked tables codes a symbol: that of its stream, or one of several, by the symbol's class."""

    def __init__(
        self, sizes: Sequence[int], tables: Sequence[TableIds], classes: Sequence[Bytes | None]
    ) -> None:
        own_tables = [np.atleast_1d(t) for t in tables]
        self.ids, flat = np.unique(
            np.concatenate([np.empty(0, np.int64), *own_tables]), return_inverse=True
        )
        ends = np.cumsum([0, *(t.size for t in own_tables)])
        self.first = flat[ends[:-1]]
        self.lines: NDArray[np.int64] | None = None
        if any(c is not None for c in classes):
            most = -(-max(sizes) // GROUP)
            self.lines = np.repeat(self.first[:, None], most * GROUP, axis=1)
            for line, own, a, b in zip(self.lines, classes, ends[:-1], ends[1:], strict=True):
                if own is not None:
                    line[: own.size] = flat[a:b][own]
            self.lines = self.lines.reshape(-1, most, LANES, STEPS)

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
        return self.first[:n, None] if self.lines is None else self.lines[:n, group, :, step]


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
    freq, start = (
        pool.stack(rows.ids, "freq").astype(np.uint64),
        pool.stack(rows.ids, "start").astype(np.uint64),
    )
    bits = pool.stack(rows.ids, "prob_bits").astype(np.uint64)[rows.first]
    most = int(n_groups.max(initial=0))
    lines = np.empty((len(order), most * GROUP), np.uint8)
    for line, k, row in zip(lines, order, rows.first, strict=True):
        line[: symbols[k].size], line[symbols[k].size :] = (
            symbols[k],
            pool[int(rows.ids[row])].padding,
        )
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
    """Decode each stream into its number of symbols (R9.9). Never reads outside of a stream. Tables and classes as for `encode_streams`.

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
    lut, bits = (
        pool.stack(rows.ids, "lut"),
        pool.stack(rows.ids, "prob_bits").astype(np.uint32)[rows.first],
    )
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
