"""Frequency tables, and context maps that choose between them. Spec: 9.1, 9.4."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.errors import DecodeError
from wcodec.processes import cached_property

Counts = NDArray[np.int64]

MIN_PROB_BITS: Final = 9

MAX_PROB_BITS: Final = 12


# ---- tables --------------------------------------------------------------------------------------
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

    @classmethod
    def checked(cls, freq: Counts, prob_bits: int) -> Table:
        """A table of frequencies that keep the rules."""
        table = cls.__new__(cls)
        table.freq, table.prob_bits = freq, prob_bits
        return table

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
        codes = _exp_golomb_codes(k)
        bits = "".join([codes[value] for value in values.tolist()])
        bits += "0" * (-len(bits) % 8)
        return bytes([self.prob_bits, first, last, k]) + int(bits, 2).to_bytes(
            len(bits) // 8, "big"
        )


@lru_cache(maxsize=MAX_PROB_BITS)
def _exp_golomb_codes(k: int) -> list[str]:
    """Exp-Golomb codes of order k of all frequencies: as many zeros as the quotient has bits after
    its first, the quotient, k low bits.
    """
    codes = list[str]()
    for value in range((1 << MAX_PROB_BITS) + 1):
        quotient, low = (value >> k) + 1, value & ((1 << k) - 1)
        zeros = "0" * (quotient.bit_length() - 1)
        codes.append(zeros + f"{quotient:b}" + (f"{low:0{k}b}" if k else ""))
    return codes


#: `read_tables`, or what does the same
TableReader = Callable[[bytes, int, int], tuple[list[Table], int]]


def read_tables(data: bytes, offset: int, n: int) -> tuple[list[Table], int]:
    """Read `n` serialised tables (R9.7). Returns them and the offset after the last one.

    Raises
    ------
    DecodeError
        ``bad_table``
    """
    tables = list[Table]()
    while len(tables) < n:
        table, offset = _read_table(data, offset)
        tables.append(table)
    return tables, offset


def _read_table(data: bytes, offset: int) -> tuple[Table, int]:
    """Read one table: four bytes, then an Exp-Golomb code of order k for each frequency."""
    if len(data) - offset < 4:
        raise DecodeError("bad_table", "a table is cut short")
    prob_bits, first, last, k = data[offset : offset + 4]
    if not MIN_PROB_BITS <= prob_bits <= MAX_PROB_BITS or first > last or k >= MAX_PROB_BITS:
        raise DecodeError("bad_table", f"prob_bits {prob_bits}, first {first}, last {last}, k {k}")
    longest = (last - first + 1) * (2 * MAX_PROB_BITS + 1 + k)  # longer codes break a rule
    codes = data[offset + 4 : offset + 4 + longest // 8 + 1]
    bits = f"{int.from_bytes(codes, 'big'):0{8 * len(codes)}b}"  # the highest of a byte first
    freq, at = [0] * 256, 0
    for symbol in range(first, last + 1):
        one = bits.find("1", at)
        zeros = one - at
        end = one + zeros + 1 + k
        if not 0 <= zeros <= MAX_PROB_BITS or end > len(bits):
            raise DecodeError(
                "bad_table", f"the frequency of symbol {symbol} is cut short or too long"
            )
        freq[symbol] = int(bits[one:end], 2) - (1 << k)
        at = end
    if "1" in bits[at : at + -at % 8]:
        raise DecodeError("bad_table", "the padding bits of a table are not 0")
    if freq[first] == 0 or freq[last] == 0:
        raise DecodeError("bad_table", "the first or last frequency is 0")
    return Table(freq, prob_bits), offset + 4 + -(-at // 8)


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
    """The tables and context maps of a file, in order,
    and their arrays for coding many streams at once.
    """

    def __init__(self, tables: Iterable[Table] = (), maps: Iterable[ContextMap] = ()) -> None:
        self.tables, self.maps = list(tables), list(maps)
        self._kinds: NDArray[np.int64] | None = None

    def seal(self) -> None:
        """No map will be added or changed: a reader asks for their kinds with each tensor."""
        self._kinds = self.map_kinds

    @property
    def map_kinds(self) -> NDArray[np.int64]:
        """The kind of each context map."""
        if self._kinds is not None:
            return self._kinds
        return np.array([m.kind for m in self.maps], np.int64)

    def __len__(self) -> int:
        return len(self.tables)

    def __getitem__(self, i: int) -> Table:
        return self.tables[i]

    def stack(self, ids: NDArray[Any], field: str) -> NDArray[Any]:
        """``getattr(table, field)`` of several tables, as one array;
        shorter rows (a `lut` of fewer slots) end in 0.
        """
        rows = [np.atleast_1d(getattr(self.tables[i], field)) for i in ids.tolist()]
        out = np.zeros(
            (len(rows), max((r.size for r in rows), default=0)), rows[0].dtype if rows else np.int64
        )
        for line, row in zip(out, rows, strict=True):
            line[: row.size] = row
        return out
