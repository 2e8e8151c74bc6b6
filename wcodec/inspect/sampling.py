"""What files would take as differences from others, estimated from some of their rows."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.codec.pipelining import Progress, map_ahead
from wcodec.files.file import MAX_BASES, File
from wcodec.files.saving import take_array, tensors_to_bytes
from wcodec.inspect.weights import Held, Index, Weights

MOST_PAIRS: Final = 16  #: files of which it is estimated, unless more are asked for
SAMPLE_NBYTES: Final = 1 << 24  #: of each file of a pair
_N_BLOCKS: Final = 64  #: that a sample is made of
_MOST_STRATA: Final = 64
_GOLDEN: Final = (math.sqrt(5) - 1) / 2
_MOST_COMPARED: Final = 8  #: files that a base is chosen from, of those that share as much

Kind = tuple[str, str, tuple[int, ...]]


class Candidate(NamedTuple):
    """A file that may be a base, or have one.

    Attributes
    ----------
    number
        Of the file.
    crc32s
        Of tensors, by name, as far as they are known.
    """

    number: int
    held: list[Held]
    crc32s: dict[str, int]


@dataclass(frozen=True)
class Pair:
    """A file, and one that could be its base.

    Attributes
    ----------
    differing
        Tensors that both have by name, dtype and shape: those that are not known to be equal.
    equal
        Those that are, by their CRC-32.
    """

    file: int
    base: int
    differing: list[Held]
    equal: list[Held]

    @property
    def shared_nbytes(self) -> int:
        """Decoded bytes of what both have."""
        return sum(t.nbytes for t in (*self.differing, *self.equal))


class Block(NamedTuple):
    """A part of a tensor."""

    t: Held
    part: Index


class Stratum(NamedTuple):
    """Parts of tensors of one shape that stand for `nbytes` bytes."""

    nbytes: int
    blocks: list[Block]


class Sample(NamedTuple):
    """What all tensors would take, by a sample of `nbytes` bytes."""

    nbytes: int
    alone_nbytes: int
    with_base_nbytes: int


# ---- which files ---------------------------------------------------------------------------------
def choose_pairs(candidates: list[Candidate], most: int) -> tuple[list[Pair], int]:
    """For each file the one of those before it that shares most bytes of tensors of equal names,
    dtypes and shapes, if that is more than half of its bytes. Of several, the one with most
    tensors of equal CRC-32s, and then the nearest one. A file whose base would be as many
    differences away from a full one as can be, stays one.

    Returns
    -------
    The `most` largest pairs, in the order of the files, and how many were left out.
    """
    before, depth = _Before(), dict[int, int]()
    pairs = list[Pair]()
    for c in candidates:
        base = before.best(c, depth)
        depth[c.number] = 0
        if base is not None:
            depth[c.number] = depth[base.number] + 1
            pairs.append(_pair(c, base))
        before.add(c)
    kept = sorted(pairs, key=lambda p: -p.shared_nbytes)[:most]
    return sorted(kept, key=lambda p: p.file), len(pairs) - len(kept)


class _Before:
    """The files so far: those that have the same tensors, but for what these hold, together."""

    def __init__(self) -> None:
        self._groups = dict[frozenset[Kind], list[Candidate]]()
        self._having = defaultdict[Kind, list[frozenset[Kind]]](list)

    def add(self, c: Candidate) -> None:
        kinds = _kinds(c.held)
        if kinds not in self._groups:
            self._groups[kinds] = []
            for kind in kinds:
                self._having[kind].append(kinds)
        self._groups[kinds].append(c)

    def best(self, c: Candidate, depth: dict[int, int]) -> Candidate | None:
        shared = defaultdict[frozenset[Kind], int](int)
        for t in filter(_can_differ, c.held):
            for kinds in self._having.get(t.kind, ()):
                shared[kinds] += t.nbytes
        kinds = max(shared, key=lambda k: shared[k], default=frozenset[Kind]())
        if 2 * shared[kinds] <= sum(t.nbytes for t in c.held):
            return None
        near = self._groups[kinds][-_MOST_COMPARED:]
        found = max(near, key=lambda b: (_equal_nbytes(c, b), b.number))
        return found if depth[found.number] + 1 < MAX_BASES else None


def _kinds(held: list[Held]) -> frozenset[Kind]:
    return frozenset(t.kind for t in filter(_can_differ, held))


def _can_differ(t: Held) -> bool:
    return t.nbytes > 0 and t.numpy is not None


def _is_equal(t: Held, one: Candidate, other: Candidate) -> bool:
    crc = one.crc32s.get(t.name)
    return crc is not None and crc == other.crc32s.get(t.name)


def _equal_nbytes(c: Candidate, base: Candidate) -> int:
    return sum(t.nbytes for t in c.held if _is_equal(t, c, base))


def _pair(c: Candidate, base: Candidate) -> Pair:
    theirs = _kinds(base.held)
    shared = [t for t in filter(_can_differ, c.held) if t.kind in theirs]
    equal = [t for t in shared if _is_equal(t, c, base)]
    names = {t.name for t in equal}
    return Pair(c.number, base.number, [t for t in shared if t.name not in names], equal)


# ---- samples -------------------------------------------------------------------------------------
def strata_of(held: list[Held], nbytes: int) -> list[Stratum]:
    """Parts of tensors, about `nbytes` bytes in all, or less if there is not so much. Tensors whose
    names differ in numbers alone do the same in many layers: of each such group there are parts in
    proportion to its bytes, spread evenly over all of it, of different groups in different layers.
    """
    alike, total = defaultdict[Kind, list[Held]](list), sum(t.nbytes for t in held)
    for t in held:
        alike[re.sub(r"[0-9]+", "#", t.name), t.dtype, t.shape].append(t)
    groups = sorted(alike.values(), key=lambda g: -sum(t.nbytes for t in g))[:_MOST_STRATA]
    found = list[Stratum]()
    for k, group in enumerate(groups):
        size = sum(t.nbytes for t in group)
        n = max(1, round(_N_BLOCKS * size / max(total, nbytes)))
        if size <= max(nbytes * size // total, nbytes // _N_BLOCKS) and len(group) <= _N_BLOCKS:
            blocks = [Block(t, tuple(slice(0, n) for n in t.shape)) for t in group]
        else:
            blocks = _spread(group, n, (k + 1) * _GOLDEN % 1, nbytes // _N_BLOCKS)
        found.append(Stratum(size, blocks))
    return found


def _spread(group: list[Held], n: int, shift: float, nbytes: int) -> list[Block]:
    """`n` blocks, `shift` of the distance between two from the start."""
    ends, found = list(accumulate(t.nbytes for t in group)), dict[str, Block]()
    for i in range(n):
        place = int((i + shift) * ends[-1] / n)
        k = bisect_right(ends, place)
        t = group[k]
        index = _part_of(t, nbytes, (place - ends[k] + t.nbytes) / t.nbytes)
        found[f"{k} {index}"] = Block(t, index)
    return list(found.values())


def _part_of(t: Held, nbytes: int, at: float) -> Index:
    """About `nbytes` bytes that lie side by side, `at` of the way through a tensor."""
    index, left = list[slice](), t.nbytes
    for i, size in enumerate(t.shape):
        left //= size  # bytes of an entry
        is_inside = left > nbytes and i + 1 < len(t.shape)
        n = 1 if is_inside else min(size, max(1, nbytes // left))
        first = min(int(at * size), size - 1) if is_inside else int(at * (size - n))
        index.append(slice(first, first + n))
        if is_inside:
            at = at * size - first
        elif n < size:
            return (*index, *(slice(0, n) for n in t.shape[i + 1 :]))
    return tuple(index)


def strata_nbytes(strata: Iterable[Stratum]) -> int:
    """Decoded bytes of the parts."""
    return sum(
        math.prod(s.stop - s.start for s in index) * t.numpy.itemsize
        for _, blocks in strata
        for t, index in blocks
        if t.numpy is not None
    )


def sample(
    file: Weights,
    base: Weights,
    held: list[Held],
    strata: list[Stratum],
    backend: Backend,
    n_threads: int,
    progress: Progress,
) -> Sample:
    """Encode parts of tensors by themselves, and as differences from those of another file.

    Parameters
    ----------
    held, strata
        The tensors, and what `strata_of` them gives.
    n_threads
        Parts that are read at once.

    Raises
    ------
    WcodecError, OSError
        One of the files cannot be read.
    """
    if not strata:
        return Sample(0, 0, 0)
    arrays, others = (_parts(w, strata, n_threads, progress) for w in (file, base))
    alone, with_base = (
        _scaled(
            tensors_to_bytes(arrays, take_array, None, None, of, backend), held, strata, backend
        )
        for of in (None, others)
    )
    return Sample(sum(a.nbytes for a in arrays.values()), alone, with_base)


def _scaled(data: bytes, held: list[Held], strata: list[Stratum], backend: Backend) -> int:
    """What tensors take, given a file of the parts, one tensor of each stratum."""
    with File(data, backend) as f:
        tensors = f.index.tensors
        payload = sum(
            s.nbytes * t.payload_nbytes / t.nbytes for s, t in zip(strata, tensors, strict=True)
        )
        stored = sum(t.payload_nbytes for t in tensors if t.duplicate_of is None)
        share = sum(s.nbytes for s in strata) / sum(t.nbytes for t in held)
        index = (len(data) - stored) * len(held) / len(tensors)
        return round(payload / share + index)


def _parts(
    weights: Weights, strata: list[Stratum], n_threads: int, progress: Progress
) -> dict[str, NDArray[Any]]:
    """The parts of each stratum, as one array."""

    def read(block: Block) -> NDArray[Any]:
        array = np.ascontiguousarray(weights.part(*block))
        is_whole = array.ndim > 1 and array.shape[-1] == block.t.shape[-1]
        return array.reshape(-1, array.shape[-1]) if is_whole else array.reshape(-1)

    found = dict[str, NDArray[Any]]()
    blocks = [block for s in strata for block in s.blocks]
    with closing(map_ahead(read, blocks, n_threads)) as arrays:
        for i, s in enumerate(strata):
            found[str(i)] = np.concatenate([next(arrays) for _ in s.blocks])
            progress(found[str(i)].nbytes)
    return found
