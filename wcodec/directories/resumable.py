"""Many files, one after another, into a directory:
what was interrupted goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from wcodec.codec.pipelining import Progress, ignore_progress
from wcodec.errors import EncodeError, named, within
from wcodec.files.atomic import (
    atomic_output,
    check_output,
    read_bytes,
    sync_folder,
    temporary_names,
    temporary_of,
)
from wcodec.files.shard_index import CODED, PLAIN
from wcodec.processes import cached_property

STATE: Final = ".wcodec-resume.json"  #: in an unfinished directory: which files are done

_PIECE_NBYTES: Final = 1 << 23

#: Writes the file at a path; ``progress``, ``overwrite`` and ``fsync`` are as of `encode_file`.
#: Returns bytes of the file plain and encoded.
Work = Callable[..., tuple[int, int]]

log = logging.getLogger(__name__)


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
class FileTask:
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
        return [_identity(p) for p in self.sources]


def _pieces(path: Path) -> Iterator[bytes]:
    with named(path), open(path, "rb") as f:
        while piece := f.read(_PIECE_NBYTES):
            yield piece


def copying(source: Path) -> Work:
    """Copy a file."""

    def copy(target: Path, progress: Progress, **how: bool) -> tuple[int, int]:
        nbytes = 0
        with atomic_output(target, inputs=[source], like=source, **how) as out:
            for piece in _pieces(source):
                out.write(piece)
                nbytes += len(piece)
                progress(len(piece))
        return nbytes, nbytes

    return copy


def text_task(
    text: bytes, old_nbytes: int, sources: tuple[Path, ...], name: str, label: str, encodes: bool
) -> FileTask:
    """Write a text that an encoding or decoding run has changed, in place of one of `old_nbytes`
    bytes.
    """
    nbytes, stored_nbytes = (old_nbytes, len(text)) if encodes else (len(text), old_nbytes)

    def write(target: Path, progress: Progress, **how: bool) -> tuple[int, int]:
        with atomic_output(target, inputs=sources, like=sources[0], **how) as out:
            out.write(text)
        progress(nbytes)
        return nbytes, stored_nbytes

    return FileTask(sources, name, label, nbytes, False, write)


def linking(text: str) -> Work:
    """Make a link to a file of the same directory; it has no bytes of its own."""

    def link(target: Path, progress: Progress, *, overwrite: bool, fsync: bool) -> tuple[int, int]:
        check_output(target, overwrite)
        temporary = temporary_of(target) if target.exists() else target
        with named(target):
            temporary.symlink_to(text)
            if temporary != target:
                os.replace(temporary, target)
        if fsync:
            sync_folder(target.parent)
        return 0, 0

    return link


@dataclass
class DirectoryPlan:
    """Files to be written into a directory; nothing has been written yet.

    Parameters
    ----------
    source
        The directory that it is made of.
    folders
        Directories in it, to be made in the target; new ones get its permissions.
    key
        What must be the same in a run that goes on where another one stopped; JSON.
    overwrite
        Whether the target may hold other things than what an earlier run of this plan left: files
        of the same names are replaced then, all else stays.
    fsync
        Have each file on the disk before the next one is begun.

    Raises
    ------
    EncodeError
        ``output_exists``: the target holds other things. ``bad_option``: it is no directory, has a
        link to a directory or other things of the wrong kind where the plan has files and
        directories, or a file that is one of the sources.
    """

    source: Path
    target: Path
    jobs: list[FileTask]
    folders: list[str]
    key: dict[str, Any]
    overwrite: bool = False
    fsync: bool = True
    #: what is known of files that this plan has written, now or earlier
    notes: dict[str, dict[str, Any]] = field(init=False)
    done: set[str] = field(init=False)  #: names of those that are as they should be
    #: name of the file that an earlier run of this plan was at; ``None`` if there was no such run
    _writing: str | None = field(init=False)
    #: name of a file that this run made and could not note
    _left: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.key = json.loads(json.dumps(self.key))
        self.notes, self._writing = self._read_state()
        self.done = {
            j.name
            for j in self.jobs
            if self._is_as_noted(j.name) and self.notes[j.name]["sources"] == j.identity()
        }
        self._check_target()

    @property
    def nbytes(self) -> int:
        """Bytes of progress that `run` will count."""
        return sum(j.nbytes for j in self.jobs if j.name not in self.done)

    # ---- what is there
    def _check_target(self) -> None:
        if not os.path.lexists(self.target):
            return
        if not self.target.is_dir():
            raise EncodeError("bad_option", f"the output {str(self.target)!r} is not a directory")
        names = {j.name for j in self.jobs}
        others = sorted(
            path for path, is_folder in self._inside() if not self._fits(path, is_folder, names)
        )
        if others and not self.overwrite:
            what = (
                f"holds {others[0]!r}, which no interrupted run left: name another directory; or "
                "files of the same names are replaced by"
            )
            if STATE in others:
                what = (
                    "is of a run that did not end, with another input or other options: run that "
                    "again; or what it left is replaced by"
                )
            raise EncodeError(
                "output_exists", f"the output {str(self.target)!r} {what} -f (overwrite=True)"
            )
        for path in others:
            if path not in names and path.endswith((PLAIN, CODED)):
                log.warning("%s holds %r too, which is not of this model", self.target, path)
        sources = {
            (s.st_dev, s.st_ino): p for j in self.jobs for p in j.sources for s in [p.stat()]
        }
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found = (self.target / name).stat()
                if (found.st_dev, found.st_ino) in sources:
                    source = sources[found.st_dev, found.st_ino]
                    raise EncodeError(
                        "bad_option",
                        f"in the output {name!r} is {str(source)!r}, which is read for it",
                    )

    def _inside(self) -> Iterator[tuple[str, bool]]:
        """All that the target holds by name, and whether it is a directory, or a link to one."""
        for parent, inside, files in os.walk(self.target):
            relative = Path(parent).relative_to(self.target)
            for names, is_folder in ((inside, True), (files, False)):
                for name in names:
                    yield (relative / name).as_posix(), is_folder

    def _fits(self, path: str, is_folder: bool, names: set[str]) -> bool:
        """Whether something in the target is left of an earlier run of this plan. Refuses what
        stands in the way of the plan.
        """
        if is_folder and path in names:
            raise EncodeError(
                "bad_option", f"in the output a directory stands where the file {path!r} goes"
            )
        if is_folder and path in self.folders and (self.target / path).is_symlink():
            raise EncodeError("bad_option", f"in the output {path!r} is a link to a directory")
        if not is_folder and path in self.folders:
            raise EncodeError(
                "bad_option", f"in the output a file stands where the directory {path!r} goes"
            )
        if self._writing is None:  # a run may have ended before it could note that it began
            return not is_folder and re.fullmatch(temporary_names(STATE), path) is not None
        if is_folder:
            return path in self.folders
        ours = path == STATE or (
            path in names and (path == self._writing or self._is_as_noted(path))
        )
        return ours or self._remains.fullmatch(path) is not None

    @cached_property
    def _remains(self) -> re.Pattern[str]:
        """Temporary files of a run that was killed.
        A whole file that it did not note is made again too.
        """
        paths = [PurePosixPath(name) for name in (STATE, *(j.name for j in self.jobs))]
        return re.compile(
            "|".join(
                re.escape(f"{p.parent}/".removeprefix("./")) + temporary_names(p.name)
                for p in paths
            )
        )

    # ---- what an earlier run did
    def _read_state(self) -> tuple[dict[str, Any], str | None]:
        """The notes of an earlier run of this plan, and the file that it was at;
        ``None`` if there was no such run.
        """
        path = self.target / STATE
        try:
            state = json.loads(read_bytes(path).decode()) if path.is_file() else {}
            if state["run"] == self.key and isinstance(state["files"], dict):
                return state["files"], str(state["writing"])
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            # none, not ours, or damaged
            pass
        return {}, None

    def _is_as_noted(self, name: str) -> bool:
        """Whether a file of the target is one that this plan has written,
        and nobody has changed since.
        """
        note = self.notes.get(name)
        if not isinstance(note, dict) or not all(
            isinstance(note.get(k), int) for k in ("nbytes", "stored_nbytes")
        ):
            return False
        return (
            "sources" in note
            and (self.target / name).is_file()
            and note.get("target") == _identity(self.target / name)
        )

    def _save_state(self, writing: str) -> None:
        # what is lost of it, such as by a power failure, is done again
        with atomic_output(self.target / STATE, overwrite=True, fsync=False) as f:
            f.write(json.dumps({"run": self.key, "files": self.notes, "writing": writing}).encode())

    # ---- the run
    def run(self, progress: Progress = ignore_progress) -> Report:
        """Write the files. If that ends early, the same plan goes on where it stopped.

        Raises
        ------
        DecodeError, EncodeError
            About one of the files; those before are there.
        OSError
        """
        made, n_skipped = list[Path](), len(self.done)
        was_unfinished = (self.target / STATE).exists()
        try:
            if not self.target.exists():
                self.target.parent.mkdir(parents=True, exist_ok=True)
                made.append(self._make_folder(""))
            self._remove_remains()
            self._save_state("")
            for folder in self.folders:
                if not (self.target / folder).exists():
                    made.append(self._make_folder(folder))
            for job in self.jobs:
                if job.name not in self.done:
                    self._run_job(job, progress)
        except BaseException:
            self._stop(made, was_unfinished)
            raise
        (self.target / STATE).unlink()
        if self.fsync:
            for folder_path in (self.target, *(p.parent for p in made)):
                sync_folder(folder_path)
        coded = sum(j.is_coded for j in self.jobs)
        nbytes, stored_nbytes = (
            sum(self.notes[name][k] for name in self.done) for k in ("nbytes", "stored_nbytes")
        )
        return Report(coded, len(self.jobs) - coded, n_skipped, nbytes, stored_nbytes)

    def _remove_remains(self) -> None:
        """Remove what a run left that was killed."""
        for path, is_folder in list(self._inside()):
            if not is_folder and (
                self._remains.fullmatch(path) or (path == self._writing and path not in self.notes)
            ):
                (self.target / path).unlink()

    def _make_folder(self, name: str) -> Path:
        """Make a directory that is no more readable than the one that it is made of."""
        path = self.target / name
        path.mkdir(mode=(self.source / name).stat().st_mode & 0o777 | 0o700)
        return path

    def _run_job(self, job: FileTask, progress: Progress) -> None:
        sources, path = job.identity(), self.target / job.name
        overwrite, was_there = self.overwrite or job.name in self.notes, os.path.lexists(path)
        self._save_state(job.name)
        if overwrite and path.is_symlink():
            path.unlink()  # a link would lead elsewhere, or to another file of the plan
        try:
            with within(job.label):
                nbytes, stored_nbytes = job.work(
                    path, progress=progress, overwrite=overwrite, fsync=self.fsync
                )
            target = _identity(path)
        except OSError:  # a disk may fail when the file has its name already
            self._left = job.name if os.path.lexists(path) and not was_there else ""
            raise
        self.notes[job.name] = {
            "sources": sources,
            "nbytes": nbytes,
            "stored_nbytes": stored_nbytes,
            "target": target,
        }
        self.done.add(job.name)

    def _stop(self, made: list[Path], was_unfinished: bool) -> None:
        """Note what is done; if nothing is, leave nothing that was not there."""
        if self.done or was_unfinished or self._left:
            # such as of a full disk, which is what the caller is told of
            with contextlib.suppress(OSError):
                self._save_state(self._left)
            return
        (self.target / STATE).unlink(missing_ok=True)
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _identity(path: Path) -> list[int]:
    """Size and time of a file."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]
