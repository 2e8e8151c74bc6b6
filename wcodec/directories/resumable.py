"""Many files, one after another or on many machines, into a directory:
what was interrupted goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from wcodec.backends import Backend
from wcodec.codec.pipelining import Progress, ignore_progress
from wcodec.codec.urls import Place, Url
from wcodec.directories.tasks import FileTask, Report, identity_of
from wcodec.errors import CodecError, EncodeError, within
from wcodec.files.atomic import atomic_output, read_bytes, sync_folder, temporary_names
from wcodec.files.checkpoint import verify_file
from wcodec.files.file import File
from wcodec.files.shard_index import CODED, PLAIN
from wcodec.processes import cached_property

#: in an unfinished directory: which files are done; one for each process of several (``--shard``)
STATE: Final = ".wcodec-resume.json"
_STATES: Final = re.compile(r"\.wcodec-resume(-[0-9]+-of-[0-9]+)?\.json")
PARTS: Final = ".wcodec-parts"  #: a directory of parts of one file ends so

log = logging.getLogger(__name__)


def is_state(name: str) -> bool:
    """Whether a file says how far a run has come."""
    return _STATES.fullmatch(PurePosixPath(name).name) is not None


def state_name(shard: tuple[int, int] | None) -> str:
    """Name of the file that says how far a process has come, one of several or the only one."""
    which = "" if shard is None else f"-{shard[0]}-of-{shard[1]}"
    return STATE.replace(".json", f"{which}.json")


def parts_folder(name: str) -> str:
    """The directory for parts of a file, in the same directory."""
    path = PurePosixPath(name)
    return path.with_name(f".{path.name}{PARTS}").as_posix()


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
    backend
        What codes.
    overwrite
        Whether the target may hold other things than what an earlier run of this plan left: files
        of the same names are replaced then, all else stays.
    fsync
        Have each file on the disk before the next one is begun.
    shard
        Which of several processes this is, from 1, and how many there are: each does its part.

    Raises
    ------
    EncodeError
        ``output_exists``: the target holds other things. ``bad_option``: it is no directory, has a
        link to a directory or other things of the wrong kind where the plan has files and
        directories, or a file that is one of the sources.
    """

    source: Place
    target: Place
    jobs: list[FileTask]
    folders: list[str]
    key: dict[str, Any]
    backend: Backend
    overwrite: bool = False
    fsync: bool = True
    shard: tuple[int, int] | None = None
    #: what is known of files that this plan has written, now or earlier
    notes: dict[str, dict[str, Any]] = field(init=False)
    done: set[str] = field(init=False)  #: names of those that are as they should be
    #: names of files that earlier runs of this plan were at; ``None`` if there was no such run
    writing: set[str] | None = field(init=False)
    #: name of a file that this run made and could not note
    _left: str = field(init=False, default="")
    #: names of files that workers are at, or may be
    under_way: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.key = json.loads(json.dumps(self.key))
        self._found = dict(self._inside())
        self.read_states()
        self.done = {j.name for j in self.jobs if self.is_done(j.name, j.identity())}
        self._check_target()

    @property
    def nbytes(self) -> int:
        """Bytes of progress that `run` will count."""
        return sum(j.nbytes for j in self.jobs if j.name not in self.done)

    # ---- what is there
    def _check_target(self) -> None:
        if not isinstance(self.target, Url):
            if not os.path.lexists(self.target):
                return
            if not self.target.is_dir():
                raise EncodeError(
                    "bad_option", f"the output {str(self.target)!r} is not a directory"
                )
        names = {j.name for j in self.jobs}
        others = sorted(
            path
            for path, is_folder in self._found.items()
            if not self._fits(path, is_folder, names)
        )
        if others and not self.overwrite:
            what = (
                f"holds {others[0]!r}, which no interrupted run left: name another directory; or "
                "files of the same names are replaced by"
            )
            if any(map(self._is_state, others)):
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
        self._check_sources(names)

    def _check_sources(self, names: set[str]) -> None:
        """Refuse to write a file that is read."""
        if isinstance(self.target, Url):
            return
        read = {p for j in self.jobs for p in j.sources if not isinstance(p, Url)}
        sources = {(s.st_dev, s.st_ino): p for p in read for s in [p.stat()]}
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
        self.objects = dict[str, Url]()  # with what is known of them
        if isinstance(self.target, Url):
            with contextlib.suppress(FileNotFoundError):
                self.objects = self.target.files()
            yield from ((name, False) for name in self.objects)
            return
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
        if is_folder and path in self.folders and os.path.islink(self.target / path):
            raise EncodeError("bad_option", f"in the output {path!r} is a link to a directory")
        if not is_folder and path in self.folders:
            raise EncodeError(
                "bad_option", f"in the output a file stands where the directory {path!r} goes"
            )
        if self.writing is None:  # a run may have ended before it could note that it began
            return not is_folder and re.fullmatch(temporary_names(self.state), path) is not None
        if path in self._parts_folders or PurePosixPath(path).parent.as_posix() in (
            self._parts_folders
        ):
            return True
        if is_folder:
            return path in self.folders
        ours = self._is_state(path) or (
            path in names
            and (path in self.writing or self.shard is not None or self._is_as_noted(path))
        )
        return ours or self._remains.fullmatch(path) is not None

    @cached_property
    def _parts_folders(self) -> set[str]:
        return {parts_folder(j.name) for j in self.jobs if j.split is not None}

    @cached_property
    def _remains(self) -> re.Pattern[str]:
        """Temporary files of a run that was killed.
        A whole file that it did not note is made again too.
        """
        paths = [PurePosixPath(name) for name in (self.state, *(j.name for j in self.jobs))]
        return re.compile(
            "|".join(
                re.escape(f"{p.parent}/".removeprefix("./")) + temporary_names(p.name)
                for p in paths
            )
        )

    # ---- what earlier runs did, and other processes of this one
    prefix = ""  #: of the names of states

    @property
    def state(self) -> str:
        """Name of the file that says how far this process has come."""
        return self.prefix + state_name(self.shard)

    def _is_state(self, name: str) -> bool:
        is_ours = name.startswith(self.prefix) and "/" not in name
        return is_ours and is_state(name.removeprefix(self.prefix))

    def read_states(self) -> None:
        """Read what runs of this plan have noted."""
        self.notes, self.writing = {}, None
        for name, is_folder in self._found.items():
            if is_folder or not self._is_state(name):
                continue
            try:
                state = json.loads(read_bytes(self.target / name).decode())
                if state["run"] != self.key or not isinstance(state["files"], dict):
                    continue
                writing = state["writing"]
                names = {writing} if isinstance(writing, str) else {str(n) for n in writing}
            except (OSError, ValueError, RecursionError, KeyError, TypeError, CodecError):
                # none, not ours, or damaged
                continue
            self.notes.update(state["files"])
            self.writing = (self.writing or set()) | names

    def look_again(self) -> None:
        """Read what other processes have noted by now, besides what this one has."""
        mine = self.notes
        self._found = dict(self._inside())
        self.read_states()
        self.notes.update(mine)

    def is_done(self, name: str, sources: list[list[Any]]) -> bool:
        """Whether a file is there as it was made of these sources."""
        return self._is_as_noted(name) and self.notes[name]["sources"] == sources

    def _is_as_noted(self, name: str) -> bool:
        """Whether a file of the target is one that this plan has written,
        and nobody has changed since.
        """
        note = self.notes.get(name)
        if not isinstance(note, dict) or not all(
            isinstance(note.get(k), int) for k in ("nbytes", "stored_nbytes")
        ):
            return False
        if "sources" not in note:
            return False
        if isinstance(self.target, Url):
            found = self.objects.get(name)
            return found is not None and (
                note.get("target") == identity_of(found) or self._holds(found, note.get("content"))
            )
        path = self.target / name
        return path.is_file() and note.get("target") == identity_of(path)

    def _holds(self, url: Url, content: Any) -> bool:
        """Whether an object that was put there anew is whole, and holds what it did."""
        if not isinstance(content, str):
            return False
        try:
            with File(url, self.backend) as f:
                is_same = f.content_hash().hex() == content
            return is_same and bool(verify_file(url, self.backend))
        except CodecError:
            return False

    def save_state(self, writing: str | list[str]) -> None:
        """Note what is done, and what is being written."""
        state = {"run": self.key, "files": self.notes, "writing": writing}
        # what is lost of it, such as by a power failure, is done again
        with atomic_output(self.target / self.state, overwrite=True, fsync=False) as f:
            f.write(json.dumps(state).encode())

    # ---- the run
    def run(self, progress: Progress = ignore_progress) -> Report:
        """Write the files. If that ends early, the same plan goes on where it stopped.

        Raises
        ------
        DecodeError, EncodeError
            About one of the files; those before are there.
        OSError
        """
        with self.running() as todo:
            for job in todo:
                self._run_job(job, progress)
        return self.report

    @contextlib.contextmanager
    def running(self) -> Iterator[list[FileTask]]:
        """While files are written: gives those that are to be. What is done is noted in the end,
        and when it ends early.
        """
        made, self._n_skipped = list[Place](), len(self.done)
        was_unfinished = self.state in self._found
        try:
            if not isinstance(self.target, Url) and not self.target.exists():
                self.target.parent.mkdir(parents=True, exist_ok=True)
                made.append(self._make_folder(""))
            if self.shard is None:  # else another process may be at it
                self._remove_remains()
            self.save_state("")
            for folder in () if isinstance(self.target, Url) else self.folders:
                if not (self.target / folder).exists():
                    made.append(self._make_folder(folder))
            yield [j for j in self.jobs if j.name not in self.done]
        except BaseException:
            self._stop(made, was_unfinished)
            raise
        if not self.is_complete:  # other processes do the rest
            self.save_state("")
            return
        self._remove_remains()
        for name in {self.state, *filter(self._is_state, self._found)}:
            (self.target / name).unlink(missing_ok=True)
        if self.fsync and not isinstance(self.target, Url):
            for folder_path in (self.target, *(p.parent for p in made)):
                sync_folder(folder_path)

    @property
    def is_complete(self) -> bool:
        """Whether all files are there."""
        return len(self.done) == len({j.name for j in self.jobs})

    @property
    def report(self) -> Report:
        """What has been done, by this run and those before."""
        done = [j for j in self.jobs if j.name in self.done]
        coded = sum(j.is_coded for j in done)
        nbytes, stored_nbytes = (
            sum(self.notes[j.name][k] for j in done) for k in ("nbytes", "stored_nbytes")
        )
        return Report(coded, len(done) - coded, self._n_skipped, nbytes, stored_nbytes)

    def _remove_remains(self) -> None:
        """Remove what a run left that was killed."""
        for path, is_folder in list(self._inside()):
            left = path in (self.writing or ()) and path not in self.notes
            if not is_folder and (self._remains.fullmatch(path) or left):
                (self.target / path).unlink()

    def _make_folder(self, name: str) -> Place:
        """Make a directory that is no more readable than the one that it is made of."""
        path, of = self.target / name, self.source / name
        mode = 0o777 if isinstance(of, Url) else of.stat().st_mode & 0o777 | 0o700
        os.mkdir(path, mode)
        return path

    def _run_job(self, job: FileTask, progress: Progress) -> None:
        path = self.target / job.name
        overwrite, was_there = self.overwrite or job.name in self.notes, os.path.lexists(path)
        self.save_state(job.name)
        if overwrite and os.path.islink(path):
            os.unlink(path)  # a link would lead elsewhere, or to another file of the plan
        try:
            self.note(job.name, do_task(job, path, self.backend, progress, overwrite, self.fsync))
        except OSError:  # a disk may fail when the file has its name already
            self._left = job.name if os.path.lexists(path) and not was_there else ""
            raise
        self.done.add(job.name)

    def note(self, name: str, made: dict[str, Any]) -> None:
        """Enter what was made."""
        self.notes[name] = json.loads(json.dumps(made))

    def _stop(self, made: list[Place], was_unfinished: bool) -> None:
        """Note what is done; if nothing is, leave nothing that was not there."""
        if self.notes or was_unfinished or self._left:
            # such as of a full disk, which is what the caller is told of
            with contextlib.suppress(OSError):
                self.save_state(self._left or self.under_way or "")
            return
        (self.target / self.state).unlink(missing_ok=True)
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def do_task(
    job: FileTask, path: Place, backend: Backend, progress: Progress, overwrite: bool, fsync: bool
) -> dict[str, Any]:
    """Write a file. Returns what is to be noted of it."""
    sources, how = job.identity(), {"overwrite": overwrite, "fsync": fsync}
    with within(job.label):
        done = job.work(target=path, backend=backend, progress=progress, **how)
    note = {"sources": sources, **job.sizes(done), "target": identity_of(path)}
    if isinstance(path, Url) and path.endswith(CODED):
        with File(path, backend) as f:
            note["content"] = f.content_hash().hex()
    return note
