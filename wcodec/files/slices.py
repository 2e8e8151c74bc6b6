"""Which words of a tensor an index takes, and in which segments they lie."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wcodec.files.safetensors_header import Stated
from wcodec.planner.geometry import choose_row_rank
from wcodec.reference.planes import Words
from wcodec.reference.tensors import TensorRecord

Ids = NDArray[np.int64]
ReadSegments = Callable[[TensorRecord, Ids, Ids, Words], None]


class Slice:
    """A tensor of which parts are read: only the segments that a part touches are read and decoded.

    A segment is checked against its CRC-32; the tensor's own CRC-32 needs all of them and is not.

    Parameters
    ----------
    what
        Says what the tensor's file is called.
    read
        Decodes segment rows and columns of a tensor into a matrix of words.
    """

    def __init__(self, record: TensorRecord, what: Callable[[], str], read: ReadSegments) -> None:
        self._record, self._what, self._read = record, what, read
        # a sparse tensor has one row, whose words would have to be picked one by one
        is_sparse = record.lists is not None
        self._row_rank = choose_row_rank(record.shape) if is_sparse else record.row_rank

    def __repr__(self) -> str:
        return (
            f"<wcodec Slice: {self._record.name!r} of {self._what()}, {self.get_dtype()}, "
            f"shape {self.get_shape()}>"
        )

    def get_shape(self) -> list[int]:
        """Shape of the whole tensor."""
        return list(self._record.shape)

    def get_dtype(self) -> str:
        """Name of the dtype as in safetensors; bytes of which no more is known are ``U8``."""
        return self._record.dtype.safetensors or "U8"

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Part of the tensor by integers, slices and ``...``, as NumPy takes them.

        Raises
        ------
        IndexError, TypeError
            As NumPy does.
        DecodeError
        """
        t = self._record
        picks = picks_of(index, t.shape)
        shape = tuple(len(p) for p in picks if isinstance(p, range))
        if 0 in shape:  # other dimensions may be larger than any memory
            return np.empty(shape, t.dtype.numpy)
        n = self._row_rank
        rows, cols = flat_ids(picks[:n], t.shape[:n]), flat_ids(picks[n:], t.shape[n:])
        return self._part(rows, cols, shape)

    def take(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Entries of the first dimension by their numbers, ascending and not negative:
        ``whole[ids]``.

        Raises
        ------
        IndexError
        DecodeError
        """
        t = self._record
        return self._part(*entries_of(ids, t.shape, self._row_rank), (ids.size, *t.shape[1:]))

    def _part(
        self, rows: NDArray[np.int64], cols: NDArray[np.int64], shape: tuple[int, ...]
    ) -> NDArray[Any]:
        """Rows and columns of the matrix view, by their numbers in elements."""
        t = self._record
        if rows.size == 0 or cols.size == 0:
            return np.empty(shape, t.dtype.numpy)
        n = t.dtype.words_per_element
        cols = (cols[:, None] * n + np.arange(n)).reshape(-1)
        if self._row_rank != t.row_rank:
            words = self._of_runs(rows, cols, math.prod(t.shape[self._row_rank :]) * n)
            return words.reshape(-1).view(np.uint8).view(t.dtype.numpy).reshape(shape)
        down, row_at = touched(rows, t.geometry.segment_rows, t.geometry.rows)
        across, col_at = touched(cols, t.geometry.segment_cols, t.geometry.cols)
        part, _ = t.geometry.select(down, across)
        grid = np.empty((part.rows, part.cols), t.dtype.word_type)
        self._read(t, down, across, grid)
        words = np.ascontiguousarray(grid[row_at][:, col_at])
        return words.reshape(-1).view(np.uint8).view(t.dtype.numpy).reshape(shape)

    def _of_runs(self, rows: Ids, cols: Ids, n_cols: int) -> Words:
        """Words of rows of `n_cols`, of a tensor whose own matrix is one row."""
        t, size = self._record, self._record.geometry.segment_cols
        starts = rows * n_cols
        first, last = starts // size, (starts + n_cols - 1) // size
        opened = np.bincount(first, minlength=t.geometry.n_segments)
        closed = np.append(0, np.bincount(last, minlength=t.geometry.n_segments)[:-1])
        across = np.flatnonzero(np.cumsum(opened - closed) > 0)
        widths = np.minimum(size, t.geometry.cols - across * size)
        grid = np.empty((1, int(widths.sum())), t.dtype.word_type)
        self._read(t, np.zeros(1, np.int64), across, grid)
        number, taken = np.searchsorted(across, first), _run_of(cols)
        places = (np.cumsum(widths) - widths)[number] + starts - first * size
        if (np.diff(places) == n_cols).all():
            block = grid[0, places[0] : places[0] + rows.size * n_cols].reshape(-1, n_cols)
            return np.ascontiguousarray(block[:, taken])
        out = np.empty((rows.size, cols.size), grid.dtype)
        for row, place in zip(out, places.tolist(), strict=True):
            row[:] = grid[0, place : place + n_cols][taken]
        return out


class PackedSlice(Slice):
    """A `Slice` of a tensor whose dtype NumPy and the format do not know, such as float4: bytes.

    Indices count elements as the header does. Parts come as uint8, with bytes in the last
    dimension, in which an index is a slice of whole bytes.

    Parameters
    ----------
    record
        Of the tensor: opaque, of one dimension.
    stated
        What the header says of it.
    """

    def __init__(
        self, record: TensorRecord, what: Callable[[], str], read: ReadSegments, stated: Stated
    ) -> None:
        super().__init__(record, what, read)
        self._stated = stated

    def get_shape(self) -> list[int]:
        """Shape of the whole tensor in its elements, as in the header."""
        return list(self._stated.shape)

    def get_dtype(self) -> str:
        """Name of the dtype in the header."""
        return self._stated.dtype

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Part of the tensor by integers, slices and ``...``, as bytes.

        Raises
        ------
        IndexError, TypeError
            As NumPy does; a part of the last dimension that is no slice of whole bytes.
        ValueError
            The last dimension does not end with a byte.
        DecodeError
        """
        s, packed = self._stated, self._stated.packed_shape
        picks = picks_of(index, s.shape)
        last = picks[-1]
        if (
            not isinstance(last, range)
            or last.step != 1
            or (last.start * s.bits | len(last) * s.bits) % 8
        ):
            raise IndexError(
                f"the last dimension of {s.dtype} is taken by slices of whole bytes, "
                f"of {8 // math.gcd(s.bits, 8)} elements or a multiple"
            )
        first = last.start * s.bits // 8
        picks[-1] = range(first, first + len(last) * s.bits // 8)
        rows = picks[0] if isinstance(picks[0], range) else range(picks[0], picks[0] + 1)
        low, high = (min(rows[0], rows[-1]), max(rows[0], rows[-1]) + 1) if rows else (0, 0)
        nbytes = math.prod(packed[1:])
        part = self._bytes(low * nbytes, high * nbytes).reshape(high - low, *packed[1:])
        before = (low, *[0] * len(packed[1:]))
        return np.ascontiguousarray(part[tuple(map(_relative, picks, before))])

    def take(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """As `Slice.take`, as bytes; also raises as ``self[...]``."""
        shape = self._stated.shape
        if not ids.size:
            return self[:0]
        if ids[0] < 0 or ids[-1] >= shape[0] or (np.diff(ids) < 0).any():
            raise IndexError(
                f"ids do not ascend, or one is out of bounds for the shape {list(shape)}"
            )
        if len(shape) == 1:
            raise IndexError(f"elements of {self._stated.dtype} are no whole bytes")
        first = int(ids[0])
        return np.ascontiguousarray(self[first : int(ids[-1]) + 1][ids - first])

    def _bytes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes of the tensor."""
        t, one = self._record, np.zeros(1, np.int64)
        if start == stop:
            return np.empty(0, np.uint8)
        size = t.geometry.segment_rows if t.row_rank else t.geometry.segment_cols
        ids = np.arange(start // size, -(-stop // size), dtype=np.int64)
        down, across = (ids, one) if t.row_rank else (one, ids)
        part, _ = t.geometry.select(down, across)
        grid = np.empty((part.rows, part.cols), np.uint8)
        self._read(t, down, across, grid)
        first = start - int(ids[0]) * size
        return grid.reshape(-1)[first : first + stop - start]


def _run_of(ids: Ids) -> Ids | slice:
    """Ids as a slice, if each follows the one before."""
    return slice(int(ids[0]), int(ids[-1]) + 1) if (np.diff(ids) == 1).all() else ids


def slice_of(
    record: TensorRecord, what: Callable[[], str], read: ReadSegments, stated: Stated | None
) -> Slice:
    """A tensor to take parts of; `stated` of one that a header describes."""
    return Slice(record, what, read) if stated is None else PackedSlice(record, what, read, stated)


def _relative(pick: range | int, first: int) -> slice | int:
    """What a pick takes of an array that begins with entry `first`."""
    if isinstance(pick, int):
        return pick - first
    if not pick:
        return slice(0, 0)
    stop = pick.stop - first
    return slice(pick.start - first, stop if stop >= 0 else None, pick.step)


def picks_of(index: Any, shape: tuple[int, ...]) -> list[range | int]:
    """An index, brought to one integer or range for each dimension."""
    parts = list(index) if isinstance(index, tuple) else [index]
    dots = [i for i, p in enumerate(parts) if p is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if len(parts) - len(dots) > len(shape):
        raise IndexError(f"too many indices: the tensor has {len(shape)} dimensions")
    at = dots[0] if dots else len(parts)
    parts[at : at + 1] = [slice(None)] * (len(shape) - len(parts) + len(dots))
    picks: list[range | int] = []
    for part, n in zip(parts, shape, strict=True):
        if isinstance(part, slice):
            picks.append(range(n)[part])
        elif hasattr(part, "__index__") and not isinstance(part, bool | np.ndarray):
            try:
                picks.append(range(n)[part])
            except IndexError:
                raise IndexError(
                    f"index {part} is out of bounds for a dimension of size {n}"
                ) from None
        else:
            raise TypeError(f"indices are integers, slices and '...', not {type(part).__name__}")
    return picks


def flat_ids(picks: list[range | int], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Raster ids of the elements that `picks` takes out of dimensions `shape`."""
    ids = np.zeros(1, np.int64)
    for i, pick in enumerate(picks):
        r = pick if isinstance(pick, range) else range(pick, pick + 1)
        along = np.arange(r.start, r.stop, r.step, dtype=np.int64) * math.prod(shape[i + 1 :])
        ids = (ids[:, None] + along).reshape(-1)
    return ids


def touched(
    ids: NDArray[np.int64], size: int, total: int
) -> tuple[NDArray[np.int64], NDArray[np.int64] | slice]:
    """Segment rows (or columns) that hold `ids`, ascending,
    and where the ids lie in them once they are put together.
    """
    of = ids // size
    segments = np.unique(of)
    sizes = np.minimum(size, total - segments * size)
    before = np.cumsum(sizes) - sizes
    at = ids - of * size + before[np.searchsorted(segments, of)]
    if at.size and (np.diff(at) == 1).all():
        return segments, slice(int(at[0]), int(at[-1]) + 1)
    return segments, at


def entries_of(
    ids: NDArray[np.int64], shape: tuple[int, ...], row_rank: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the matrix view that hold entries of the first dimension,
    both in elements.

    Raises
    ------
    IndexError
        An id is negative or too large, or less than the one before.
    """
    if (
        not shape
        or (ids.size and not 0 <= int(ids[0]) <= int(ids[-1]) < shape[0])
        or (np.diff(ids) < 0).any()
    ):
        raise IndexError(f"ids do not ascend, or one is out of bounds for the shape {shape}")
    if ids.size == 0 or 0 in shape[1:]:  # other dimensions may be larger than any memory
        return np.empty(0, np.int64), np.empty(0, np.int64)
    n_rows, n_cols = math.prod(shape[1 : max(row_rank, 1)]), math.prod(shape[max(row_rank, 1) :])
    if row_rank == 0:
        return np.zeros(1, np.int64), (ids[:, None] * n_cols + np.arange(n_cols)).reshape(-1)
    return (ids[:, None] * n_rows + np.arange(n_rows)).reshape(-1), np.arange(n_cols)
