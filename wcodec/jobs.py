"""Many files, one after another, into a directory: what was interrupted goes on where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from wcodec.codec import Progress, ignore_progress
from wcodec.errors import CodedError, EncodeError
from wcodec.outputs import AnyPath, atomic_output

STATE: Final = ".wcodec-resume.json"  #: in an unfinished directory: which files are done

_PIECE_NBYTES: Final = 1 << 23

Work = Callable[[Path, Progress], tuple[int, int]]  #: writes the file; returns bytes of it plain and encoded


@dataclass(frozen=True)
class Report:
    """What was done with the files of a directory, or with one file.

    Attributes
    ----------
    n_coded
        Files that were encoded, decoded or verified.
    n_copied
        Others that were written: the same bytes, or a text with names changed.
    n_skipped
        Files that an earlier run had finished; they count in the other numbers too.
    nbytes, stored_nbytes
        Bytes of all files, plain and encoded.
    """

    n_coded: int
    n_copied: int
    n_skipped: int
    nbytes: int
    stored_nbytes: int


@dataclass(frozen=True)
class Job:
    """A file to be written.

    Attributes
    ----------
    sources
        The file that it is made from, and others whose change makes it another one.
    name
        Where it goes in the target directory, with ``/``.
    label
        What errors call it.
    nbytes
        How many bytes of progress it is.
    is_coded
        Whether it is encoded or decoded, not copied.
    """

    sources: tuple[Path, ...]
    name: str
    label: str
    nbytes: int
    is_coded: bool
    work: Work

    def identity(self) -> list[list[int]]:
        """Sizes and times of the sources."""
        found = [p.stat() for p in self.sources]
        return [[s.st_size, s.st_mtime_ns] for s in found]


def copying(source: Path) -> Work:
    """Copy a file."""

    def work(target: Path, progress: Progress) -> tuple[int, int]:
        nbytes = 0
        with open(source, "rb") as f, atomic_output(target) as out:
            while piece := f.read(_PIECE_NBYTES):
                out.write(piece)
                nbytes += len(piece)
                progress(len(piece))
        return nbytes, nbytes

    return work


def writing(text: bytes, nbytes: int, stored_nbytes: int) -> Work:
    """Write a text; sizes as `Work` returns them."""

    def work(target: Path, progress: Progress) -> tuple[int, int]:
        with atomic_output(target) as out:
            out.write(text)
        progress(nbytes)
        return nbytes, stored_nbytes

    return work


@contextlib.contextmanager
def in_file(name: str) -> Iterator[None]:
    """Errors say which file they are about."""
    try:
        yield
    except CodedError as e:
        raise type(e)(e.code, f"in {name!r}: {e.message}", tensor=e.tensor, offset=e.offset) from None


@dataclass
class Plan:
    """Files to be written into a directory; nothing has been written yet.

    Parameters
    ----------
    folders
        Directories in the target to be made.
    key
        What must be the same in a run that goes on where another one stopped; JSON.

    Raises
    ------
    EncodeError
        ``bad_option``: the target is no directory, or holds weights that are not part of the plan, or a link to a directory.
    """

    target: Path
    jobs: list[Job]
    folders: list[str]
    key: dict[str, Any]
    done: dict[str, dict[str, Any]] = field(init=False)
    _resumes: bool = field(init=False)

    def __post_init__(self) -> None:
        self._check_target()
        self.key = json.loads(json.dumps(self.key))
        self._resumes, files = self._read_state()
        self.done = {j.name: files[j.name] for j in self.jobs if self._is_done(j, files.get(j.name))}

    @property
    def nbytes(self) -> int:
        """Bytes of progress that `run` will count."""
        return sum(j.nbytes for j in self.jobs if j.name not in self.done)

    def _check_target(self) -> None:
        if not self.target.exists():
            return
        if not self.target.is_dir():
            raise EncodeError("bad_option", f"the output {str(self.target)!r} is not a directory")
        names, folders = {j.name for j in self.jobs}, {*self.folders}
        for parent, inside, files in os.walk(self.target):
            relative = Path(parent).relative_to(self.target)
            for name in inside:
                path = (relative / name).as_posix()
                if path in names:
                    raise EncodeError("bad_option", f"in the output a directory stands where the file {path!r} goes")
                if path in folders and (self.target / path).is_symlink():
                    raise EncodeError("bad_option", f"in the output {path!r} is a link to a directory")
            for name in files:
                path = (relative / name).as_posix()
                if path in folders:
                    raise EncodeError("bad_option", f"in the output a file stands where the directory {path!r} goes")
                if path not in names and name.endswith((".safetensors", ".wcodec")):
                    raise EncodeError(
                        "bad_option", f"the output holds {path!r}, which is not of this model: name another directory, or remove it"
                    )

    # ---- what an earlier run did
    def _read_state(self) -> tuple[bool, dict[str, Any]]:
        """Whether an earlier run stopped, and what it finished if it was one like this."""
        try:
            state = json.loads((self.target / STATE).read_bytes().decode())
            files = state["files"] if state["run"] == self.key else {}
        except FileNotFoundError:
            return False, {}
        except (ValueError, RecursionError, KeyError, TypeError):  # not ours, or damaged: all is done again
            return True, {}
        return True, files if isinstance(files, dict) else {}

    def _is_done(self, job: Job, entry: Any) -> bool:
        sizes = [entry.get(k) for k in ("nbytes", "stored_nbytes", "target_nbytes")] if isinstance(entry, dict) else []
        if not sizes or not all(isinstance(n, int) for n in sizes):
            return False
        path = self.target / job.name
        return entry.get("sources") == job.identity() and path.is_file() and path.stat().st_size == sizes[2]

    def _save_state(self) -> None:
        with atomic_output(self.target / STATE) as f:
            f.write(json.dumps({"run": self.key, "files": self.done}).encode())

    def _remove_remains(self) -> None:
        """Temporary files of a run that was killed."""
        for folder in (".", *self.folders):
            names = [Path(STATE).name, *(Path(j.name).name for j in self.jobs if Path(j.name).parent.as_posix() == folder)]
            ours = re.compile("|".join(rf"\.{re.escape(n[:200])}\.[0-9a-f]{{8}}\.tmp" for n in names))
            with contextlib.suppress(FileNotFoundError):
                for path in (self.target / folder).iterdir():
                    if ours.fullmatch(path.name):
                        path.unlink()

    # ---- the run
    def run(self, progress: Progress = ignore_progress) -> Report:
        """Write the files. If that ends early, the same plan goes on where it stopped.

        Raises
        ------
        DecodeError, EncodeError
            About one of the files; those before are there.
        OSError
        """
        made, n_skipped = not self.target.exists(), len(self.done)
        self.target.mkdir(parents=True, exist_ok=True)
        if self._resumes:
            self._remove_remains()
        try:
            self._save_state()
            for folder in self.folders:
                (self.target / folder).mkdir(exist_ok=True)
            for job in self.jobs:
                if job.name not in self.done:
                    self._run_job(job, progress)
        except BaseException:
            if not self.done:
                self._undo(made)
            raise
        (self.target / STATE).unlink()
        coded = sum(j.is_coded for j in self.jobs)
        nbytes, stored_nbytes = (sum(d[k] for d in self.done.values()) for k in ("nbytes", "stored_nbytes"))
        return Report(coded, len(self.jobs) - coded, n_skipped, nbytes, stored_nbytes)

    def _run_job(self, job: Job, progress: Progress) -> None:
        sources, path = job.identity(), self.target / job.name
        with in_file(job.label):
            nbytes, stored_nbytes = job.work(path, progress)
        self.done[job.name] = {
            "sources": sources, "nbytes": nbytes, "stored_nbytes": stored_nbytes, "target_nbytes": path.stat().st_size
        }  # fmt: skip
        self._save_state()

    def _undo(self, made: bool) -> None:
        """Leave nothing, if no file was finished."""
        (self.target / STATE).unlink(missing_ok=True)
        if made:
            for folder in (*reversed(self.folders), "."):
                with contextlib.suppress(OSError):
                    (self.target / folder).rmdir()


# ---- trees -------------------------------------------------------------------------------------------------------------------
def scan(root: Path, refuse: Callable[[str], CodedError], skip: Iterable[str] = (".git", ".cache")) -> tuple[dict[str, Path], list[str]]:
    """Files and directories below `root` by their names with ``/``, in order, each directory before what is in it.

    Links to files are followed; other things than files and directories are refused.
    """
    files, folders, left = dict[str, Path](), list[str](), [""]
    while left:
        folder = left.pop()
        with os.scandir(root / folder) as entries:
            inside = sorted(entries, key=lambda e: e.name)
        for entry in inside:
            name = f"{folder}/{entry.name}".lstrip("/")
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in skip:
                    folders.append(name)
                    left.append(name)
            elif entry.is_file():
                files[name] = root / name
            elif entry.is_dir():
                raise refuse(f"{name!r} is a link to a directory: put the directory there, or remove it")
            else:
                raise refuse(f"{name!r} is {'a broken link' if entry.is_symlink() else 'neither a file nor a directory'}")
    return dict(sorted(files.items())), sorted(folders)


def check_places(source: AnyPath, target: AnyPath) -> None:
    """Refuse a target that is the source, lies in it, or holds it.

    Raises
    ------
    EncodeError
        ``bad_option``
    """
    a, b = Path(source).resolve(), Path(target).resolve()
    if a == b:
        raise EncodeError("bad_option", f"input and output are the same directory: {str(source)!r}")
    for inner, outer, message in ((b, a, "the output lies in the input"), (a, b, "the input lies in the output")):
        if outer in inner.parents:
            raise EncodeError("bad_option", f"{message}: {str(target)!r}")
