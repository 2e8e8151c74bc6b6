"""Conformance cases: what the manifest says, and the checks of a decoder built from a backend.

A check is a function that raises `Mismatch` if what came is not what was due.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.protocol import Backend
from wcodec.codec.encoder import Encoder
from wcodec.conformance.recipes import make
from wcodec.errors import DecodeError
from wcodec.files.file import File
from wcodec.planner.options import EncodeOptions
from wcodec.processes import cached_property
from wcodec.reference.container import Index
from wcodec.reference.differences import Difference, subtract
from wcodec.reference.planes import DTYPES, DType
from wcodec.reference.sparse import Changes, list_changes
from wcodec.reference.tensors import TensorRecord

DTYPE_OF: Final = {d.name: d for d in DTYPES}


class Mismatch(Exception):
    """A check failed. Says what was expected and what came."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}; got {got}")


@dataclass(frozen=True)
class Check:
    """One check: its id, the rules that it proves, and what to run; or why it cannot be run, and
    the profile of the format that it belongs to, if the manifest names one.
    """

    id: str
    rules: tuple[str, ...]
    run: Callable[[], None]
    not_run_because: str = ""
    profile: str | None = None


def require(holds: bool, expected: str, got: str) -> None:
    """Raise `Mismatch` unless a condition holds."""
    if not holds:
        raise Mismatch(expected, got)


def require_same(got: Any, due: NDArray[Any], what: str) -> None:
    """Raise `Mismatch`, with the first place that differs, unless two arrays are the same."""
    shape, dtype = getattr(got, "shape", None), getattr(got, "dtype", type(got))
    if (shape, dtype) != (due.shape, due.dtype):
        kind = f"{what}: {due.dtype} of shape {due.shape}"
        raise Mismatch(kind, f"{dtype} of shape {shape}")
    different = np.atleast_1d(got != due)
    if different.any():
        at = np.unravel_index(int(np.argmax(different)), different.shape)
        place = ", ".join(str(int(i)) for i in at)
        due_there, got_there = (
            f"{int(a[at]):#0{2 + 2 * a.itemsize}x}" if a.dtype.kind == "u" else str(a[at])
            for a in (np.atleast_1d(due), np.atleast_1d(got))
        )
        n = f"{np.count_nonzero(different)} of {different.size} differ"
        raise Mismatch(f"{what}: {due_there} at [{place}]", f"{got_there} ({n})")


def require_same_bytes(got: Any, due: Any, what: str) -> None:
    """As `require_same`, of two buffers of any size; says which byte differs first."""
    a, b = (np.frombuffer(data, np.uint8) for data in (got, due))
    n = min(a.size, b.size)
    require_same(a[:n], b[:n], f"{what}, byte by byte")
    require(a.size == b.size, f"{what} of {b.size} bytes", f"{a.size} that begin alike")


#: whose files a decoder takes, by what it claims (chapter 17 of the spec)
PROFILES: Final = {
    "core": ("core",),
    "operand": ("core", "operand"),
    "full": ("core", "operand", "full"),
    "base": ("core", "operand", "full", "base"),
}


@dataclass(frozen=True)
class Case:
    """A row of the manifest.

    Attributes
    ----------
    id, expect, rules
        As in the manifest.
    row
        All of the row.
    path
        Of the file.
    checkpoint
        The case whose file the decoder is given as the base of differences.
    """

    id: str
    expect: str
    rules: tuple[str, ...]
    row: dict[str, Any]
    path: Path
    checkpoint: Case | None = None

    @property
    def profile(self) -> str | None:
        """The smallest of `PROFILES` whose decoders take the file; none where all refuse it."""
        return None if self.expect == "reject" else str(self.row.get("profile", "core"))

    @property
    def name(self) -> str:
        """The id without its first part."""
        return self.id.partition("/")[2]

    @cached_property
    def data(self) -> bytes:
        """The bytes of the file, held against their SHA-256."""
        data = self.path.read_bytes()
        require(
            sha256(data) == self.row["sha256"],
            f"{self.path.name} as the manifest has it",
            "another SHA-256: the vectors are damaged",
        )
        return data

    @property
    def base_path(self) -> Path | None:
        """The file of the base of differences."""
        return None if self.checkpoint is None else self.checkpoint.path

    def words(self, i: int) -> NDArray[Any]:
        """Words of tensor `i`, flat, made by its recipe."""
        t = self.row["tensors"][i]
        dtype = DTYPE_OF[t["dtype"]]
        data = make(t["recipe"], t["nbytes"] // dtype.word_nbytes, dtype.word_nbytes)
        require(
            sha256(data) == t["sha256"],
            f"the recipe of tensor {t['name']!r} to give its bytes",
            "others",
        )
        return np.frombuffer(data, dtype.word_type)

    @property
    def restored(self) -> bytes:
        """What a decoder restores: the source header, and all tensors made by their recipes."""
        words = (self.words(i).tobytes() for i in range(len(self.row["tensors"])))
        return bytes.fromhex(self.row.get("source_header", "")) + b"".join(words)

    def coded_words(self, i: int, difference: Difference) -> NDArray[Any]:
        """What is coded in place of the words of tensor `i` (R12.5)."""
        if difference == Difference.NONE or self.checkpoint is None:
            return self.words(i)
        return subtract(self.words(i), self.base_words(i), difference)

    def base_words(self, i: int) -> NDArray[Any]:
        """The words of the base in place of those of tensor `i`, flat."""
        assert self.checkpoint is not None
        names = [t["name"] for t in self.checkpoint.row["tensors"]]
        return self.checkpoint.words(names.index(self.row["tensors"][i]["name"]))

    def changes(self, i: int, segment: int) -> Changes:
        """What lists of tensor `i`, which is sparse, hold (R12.11): the words that differ from the
        base's, and others that the manifest names. `segment` is the words of a segment.
        """
        words, base = self.words(i), self.base_words(i)
        listed = words != base
        listed[self.row["tensors"][i].get("listed_too", [])] = True
        found = list_changes(listed.astype(np.uint8), np.zeros(listed.size, np.uint8), segment)
        return found._replace(words=words[listed], base=base[listed])

    def dtype(self, i: int) -> DType:
        """Registry row of tensor `i`."""
        return DTYPE_OF[self.row["tensors"][i]["dtype"]]


@dataclass(frozen=True)
class Vectors:
    """The vectors of a folder."""

    folder: Path
    cases: tuple[Case, ...]

    def __getitem__(self, id: str) -> Case:
        return next(c for c in self.cases if c.id == id)


def find_folder() -> Path:
    """Where the vectors are: in the package of a wheel, in a source tree beside it.

    Raises
    ------
    FileNotFoundError
    """
    here = Path(__file__).resolve().parent.parent
    for folder in (here / "conformance_vectors", here.parent / "conformance_vectors"):
        if (folder / "manifest.json").is_file():
            return folder
    raise FileNotFoundError(f"there are no conformance vectors in or beside {here}")


def load(folder: Path | None = None) -> Vectors:
    """The vectors of a folder, or of this installation."""
    folder = folder or find_folder()
    rows = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["cases"]
    cases = {
        r["id"]: Case(r["id"], r["expect"], tuple(r["rules"]), r, folder / f"{r['id']}.wcodec")
        for r in rows
    }
    for id, case in cases.items():
        if "base_checkpoint" in case.row:
            cases[id] = replace(case, checkpoint=cases[case.row["base_checkpoint"]])
    return Vectors(folder, tuple(cases.values()))


def sha256(data: Any) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


# ---- decoding ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Decoded:
    """A file, decoded."""

    index: Index
    arrays: list[NDArray[Any]]

    @property
    def restored(self) -> bytes:
        """Source header and all tensors, one after another (R4.22)."""
        return self.index.source_header + b"".join(a.tobytes() for a in self.arrays)


def decode(backend: Backend, data: bytes, base: Path | None = None) -> Decoded:
    """Decode all tensors of a file, given the file of its base."""
    with File(io.BytesIO(data), backend, base=base) as f:
        return Decoded(f.index, [f.get_tensor(t.name) for t in f.index.tensors])


def _described(t: TensorRecord, array: NDArray[Any]) -> dict[str, Any]:
    row = {
        "name": t.name,
        "dtype": t.dtype.name,
        "shape": list(array.shape),
        "nbytes": array.nbytes,
        "sha256": sha256(array.tobytes()),
    }
    if t.duplicate_of is not None:
        row["duplicate_of"] = t.duplicate_of
    elif t.difference != Difference.NONE:
        row["difference"] = t.difference.name.lower()
        row |= {"sparse": True} if t.lists is not None else {}
    return row | ({"dtype_name": t.dtype_name} if t.dtype_name else {})


def compare(case: Case, decoded: Decoded) -> None:
    """Hold a decoded file against the manifest."""
    due, index = case.row["tensors"], decoded.index
    require(len(due) == len(index.tensors), f"{len(due)} tensors", f"{len(index.tensors)}")
    for row, t, array in zip(due, index.tensors, decoded.arrays, strict=True):
        got = _described(t, array)
        if got["sha256"] != row["sha256"] and got["nbytes"] == row["nbytes"]:
            # says where; the words come from a recipe
            words = case.words(case.row["tensors"].index(row))
            bits = np.frombuffer(array.tobytes(), words.dtype)
            require_same(bits, words, f"the words of tensor {row['name']!r}")
        for key, value in got.items():
            require(
                row.get(key) == value,
                f"tensor {row['name']!r} with {key} {row.get(key)}",
                str(value),
            )
    header, metadata = case.row.get("source_header", ""), case.row.get("metadata", {})
    require(
        index.source_header.hex() == header, f"source_header {header}", index.source_header.hex()
    )
    require(index.metadata == metadata, f"metadata {metadata}", str(index.metadata))
    require(sha256(decoded.restored) == case.row["restored_sha256"], "the restored bytes", "others")


def check_decode(case: Case, backend: Backend) -> None:
    """Accepted, refused with the code, or either."""
    try:
        decoded = decode(backend, case.data, case.base_path)
    except DecodeError as e:
        due = {"accept": "the file to be decoded", "reject": str(case.row.get("code"))}.get(
            case.expect, e.code
        )
        require(e.code == due, due, str(e))
        return
    require(case.expect != "reject", str(case.row.get("code")), "a decoded file")
    compare(case, decoded)


# ---- encoding ------------------------------------------------------------------------------------
def options_of(row: dict[str, Any]) -> EncodeOptions:
    """Options of an `encode` entry of the manifest."""
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return EncodeOptions(**options)


def check_encode(case: Case, backend: Backend) -> None:
    """The recipes' words, encoded with the options of the case, give the same file."""
    stream = io.BytesIO()
    base = None if case.checkpoint is None else File(io.BytesIO(case.checkpoint.data), backend)
    writer = Encoder(options_of(case.row["encode"]), backend).start(stream, base=base)
    for i, t in enumerate(case.row["tensors"]):
        if "duplicate_of" in t:
            writer.add_duplicate(t["name"], t["duplicate_of"])
        else:
            writer.add_words(
                t["name"], case.words(i), case.dtype(i), tuple(t["shape"]), t.get("dtype_name", "")
            )
    header = case.row.get("source_header")
    writer.finish(case.row.get("metadata"), None if header is None else bytes.fromhex(header))
    require_same_bytes(stream.getvalue(), case.data, f"the file {case.path.name}")


def checks(vectors: Vectors, backend: Backend) -> Iterator[Check]:
    """Checks of all cases against a backend."""
    for case in vectors.cases:
        run = partial(check_decode, case, backend)
        yield Check(case.id, case.rules, run, profile=case.profile)
    for case in vectors.cases:
        if "encode" in case.row and case.expect == "accept":
            run = partial(check_encode, case, backend)
            yield Check(f"encode/{case.name}", ("R9.4", "R9.8"), run)
