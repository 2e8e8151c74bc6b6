"""Tensors that several files hold, or one holds more than once: by checksums, or by SHA-256."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import numpy as np

from wcodec.backends import Backend
from wcodec.codec.pipelining import Progress
from wcodec.inspect.weights import Held, Weights

MOST_GROUPS: Final = 100  #: sets of files that a report names
_FEW: Final = 3  #: tensors of each that it names

#: What says that tensors are the same: one CRC-32 of their bytes; that, and the CRC-32s of all
#: their encoded segments; the SHA-256 of their bytes.
PROOFS: Final = ("crc32", "segment_crc32", "sha256")


class Copy(NamedTuple):
    """A tensor, and the number of the file that holds it."""

    file: int
    held: Held


class Same(NamedTuple):
    """Tensors that are the same, two or more, and what says so, out of `PROOFS`."""

    copies: list[Copy]
    proof: str


class Digests:
    """CRC-32s and SHA-256s of tensors that were read, by file and name."""

    def __init__(self, backend: Backend) -> None:
        self._crc32 = backend.crc32
        self.crc32s = dict[tuple[int, str], int]()
        self.sha256s = dict[tuple[int, str], bytes]()

    def read(self, file: int, weights: Weights, t: Held, progress: Progress) -> None:
        """Read a tensor, unless that was done. Raises what `Weights.pieces` does."""
        key = file, t.name
        if key in self.sha256s:
            return
        crc, found = 0, hashlib.sha256()
        for piece in weights.pieces(t.name):
            found.update(piece)
            if t.crc32 is None:
                crc = self._crc32(np.frombuffer(piece, np.uint8), crc)
            progress(len(piece))
        self.crc32s[key] = crc if t.crc32 is None else t.crc32
        self.sha256s[key] = found.digest()


def candidates(copies: Iterable[Copy], crc32s: dict[tuple[int, str], int]) -> list[list[Copy]]:
    """Tensors that have dtype, shape, bytes and CRC-32 in common. Empty ones, and those whose
    CRC-32 is not known, are not among them.
    """
    alike = defaultdict[tuple[Any, ...], list[Copy]](list)
    for c in copies:
        t = c.held
        crc = crc32s.get((c.file, t.name)) if t.crc32 is None else t.crc32
        if crc is not None and t.nbytes:
            alike[t.dtype, t.shape, t.nbytes, crc].append(c)
    return [group for group in alike.values() if len(group) > 1]


def by_checksums(groups: Iterable[list[Copy]]) -> list[Same]:
    """Candidates as what they are by what indexes say of them."""
    found = list[Same]()
    for group in groups:
        records = {c.held.records for c in group}
        is_strong = len(records) == 1 and b"" not in records
        found.append(Same(group, "segment_crc32" if is_strong else "crc32"))
    return found


def by_sha256(groups: Iterable[list[Copy]], sha256s: dict[tuple[int, str], bytes]) -> list[Same]:
    """Candidates that are the same by SHA-256; those that could not be read are left out."""
    found = list[Same]()
    for group in groups:
        alike = defaultdict[bytes, list[Copy]](list)
        for c in group:
            digest = sha256s.get((c.file, c.held.name))
            if digest is not None:
                alike[digest].append(c)
        found += [Same(copies, "sha256") for copies in alike.values() if len(copies) > 1]
    return found


class _Sum:
    """Copies beyond the first of each tensor, and what they take."""

    def __init__(self) -> None:
        self.n_tensors = self.nbytes = self.stored_nbytes = 0
        self.by_proof = dict.fromkeys(PROOFS, 0)

    def add(self, n: int, same: Same, stored_nbytes: int) -> None:
        nbytes = n * same.copies[0].held.nbytes
        self.n_tensors += n
        self.nbytes += nbytes
        self.stored_nbytes += stored_nbytes
        self.by_proof[same.proof] += nbytes

    def report(self) -> dict[str, Any]:
        return {
            "n_tensors": self.n_tensors,
            "nbytes": self.nbytes,
            "stored_nbytes": self.stored_nbytes,
            "nbytes_by_proof": {k: n for k, n in self.by_proof.items() if n},
        }


def describe_same(found: Iterable[Same], label: Callable[[int], str]) -> dict[str, Any]:
    """How many bytes are held more than once. Of each tensor, the copy that takes most is the one
    that would stay: what the others take counts.

    Parameters
    ----------
    label
        The path or URL of a file, by its number.
    """
    within, between, groups = _Sum(), _Sum(), dict[tuple[int, ...], _Group]()
    for same in found:
        stored = defaultdict[int, list[int]](list)
        for c in same.copies:
            stored[c.file].append(c.held.stored_nbytes)
        n_more = len(same.copies) - len(stored)
        if n_more:
            within.add(n_more, same, sum(sum(of) - max(of) for of in stored.values()))
        most = [max(of) for of in stored.values()]
        if len(most) > 1:
            between.add(len(most) - 1, same, sum(most) - max(most))
        files = tuple(sorted(stored))
        all_stored = [n for of in stored.values() for n in of]
        group = groups.setdefault(files, _Group())
        group.add(len(same.copies) - 1, same, sum(all_stored) - max(all_stored))
        group.note(same)
    ranked = sorted(groups.items(), key=lambda g: (-g[1].nbytes, g[0]))
    return {
        "within": within.report(),
        "between": between.report(),
        "n_groups": len(ranked),
        "groups": [
            {"files": [label(i) for i in files], **group.report()}
            for files, group in ranked[:MOST_GROUPS]
        ],
    }


class _Group(_Sum):
    """What the same files hold more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.n_renamed = list[list[str]](), 0

    def note(self, same: Same) -> None:
        names = sorted({c.held.name for c in same.copies})
        self.n_renamed += len(names) > 1
        self.names.append(names)
        if len(self.names) > _FEW:
            self.names.pop()

    def report(self) -> dict[str, Any]:
        return {**super().report(), "n_renamed": self.n_renamed, "names": self.names}
