"""Directories and large files, converted by many workers; what was interrupted goes on."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final

from wcodec.backends import Backend
from wcodec.codec.pipelining import Progress, ignore_progress
from wcodec.codec.urls import Place, Url, resolved
from wcodec.directories.resumable import DirectoryPlan, do_task, parts_folder, state_name
from wcodec.directories.tasks import FileTask, Report, Runner, Unit, identity_of
from wcodec.errors import within
from wcodec.files.atomic import check_output
from wcodec.files.parts import PART_NBYTES, Repeats, encode_part, find_repeats, join_parts
from wcodec.planner.options import EncodeOptions

_SAVE_S: Final = 1.0  #: between two notes of how far a run has come


def spread(plan: DirectoryPlan, runner: Runner, progress: Progress = ignore_progress) -> Report:
    """Write the files of a plan by many workers; large ones in parts. If that ends early, the same
    plan goes on where it stopped, with however many workers.

    Raises
    ------
    DecodeError, EncodeError
        About one of the files; others may be there.
    OSError
    """
    with plan.running() as todo:
        _Spread(plan, todo).run(runner, progress)
    return plan.report


class _Spread:
    """The units of a plan, and what has come of them."""

    def __init__(self, plan: DirectoryPlan, todo: list[FileTask]) -> None:
        self._plan, self._todo = plan, todo
        self._of_part, self._parts = dict[str, FileTask](), dict[str, list[str]]()
        self._repeats, self._saved = dict[str, Repeats](), time.monotonic()

    def run(self, runner: Runner, progress: Progress) -> None:
        """Have all units done that are this process's, and what they make possible."""
        plan = self._plan
        plan.under_way = [j.name for j in self._todo]
        plan.save_state(plan.under_way)
        runner(self._units(), self._follow, progress)
        if plan.shard is not None:
            plan.save_state(plan.under_way)
            plan.look_again()
            plan.done = {j.name for j in plan.jobs if plan.is_done(j.name, j.identity())}
            joins = [u for j in self._todo if j.name not in plan.done for u in self._join(j)]
            runner(joins, self._follow, progress)
            plan.look_again()
            plan.done |= {j.name for j in plan.jobs if plan.is_done(j.name, j.identity())}

    def _units(self) -> Iterator[Unit]:
        plan, numbers = self._plan, {j.name: i for i, j in enumerate(self._plan.jobs)}
        shard, n_shards = plan.shard or (1, 1)
        for job in self._todo:
            units = self._parts_of(job) or [self._whole(job)]
            for i, unit in enumerate(units, numbers[job.name]):
                is_mine = i % n_shards == shard - 1
                if is_mine and not plan.is_done(unit.key, job.identity()):
                    yield unit
            if job.name in self._parts and plan.shard is None:
                yield from self._join(job)  # if all were there before

    def _whole(self, job: FileTask) -> Unit:
        plan = self._plan
        may_replace = plan.overwrite or job.name in plan.notes or job.name in (plan.writing or ())
        work = partial(_do_task, job, plan.target / job.name, may_replace, plan.fsync)
        return Unit(job.name, job.label, job.nbytes, work)

    def _parts_of(self, job: FileTask) -> list[Unit]:
        """The units of a file that is encoded in parts; none of another one."""
        if job.split is None or job.nbytes <= PART_NBYTES:
            return []
        source, plan = job.sources[0], self._plan
        with within(job.label):
            n, repeats = find_repeats(source)
        if n == 1:
            return []
        folder = parts_folder(job.name)
        if not isinstance(plan.target, Url):
            os.makedirs(plan.target / folder, exist_ok=True)
        names = [f"{folder}/{i + 1:05}-of-{n:05}.wcodec" for i in range(n)]
        self._parts[job.name], self._repeats[job.name] = names, repeats
        self._of_part.update(dict.fromkeys(names, job))
        how = source, job.identity(), job.split, repeats, plan.fsync
        return [
            Unit(name, job.label, job.nbytes // n, partial(_do_part, plan.target / name, i, *how))
            for i, name in enumerate(names)
        ]

    def _join(self, job: FileTask) -> Iterator[Unit]:
        """What joins the parts of a file, if all are there."""
        names, plan = self._parts.get(job.name, []), self._plan
        sources = job.identity()
        if names and all(plan.notes.get(n, {}).get("sources") == sources for n in names):
            parts = [plan.target / name for name in names]
            work = partial(join_parts, job.sources[0], parts=parts, repeats=self._repeats[job.name])
            joining = FileTask(job.sources, job.name, job.label, 0, True, work)
            yield Unit(
                job.name,
                job.label,
                0,
                partial(_do_task, joining, plan.target / job.name, True, plan.fsync),
            )

    def _follow(self, unit: Unit, made: dict[str, Any]) -> list[Unit]:
        plan = self._plan
        plan.note(unit.key, made)
        job, more = self._of_part.get(unit.key), list[Unit]()
        if job is None:
            plan.done.add(unit.key)
            self._remove_parts(unit.key)
        elif plan.shard is None:
            more = list(self._join(job))
        if time.monotonic() - self._saved > _SAVE_S:
            plan.save_state(plan.under_way)
            self._saved = time.monotonic()
        return more

    def _remove_parts(self, name: str) -> None:
        """Remove the parts of a file that is there."""
        plan = self._plan
        for part in self._parts.get(name, []):
            (plan.target / part).unlink(missing_ok=True)
            plan.notes.pop(part, None)
        if name in self._parts and not isinstance(plan.target, Url):
            with contextlib.suppress(OSError):
                os.rmdir(plan.target / parts_folder(name))


def _do_task(
    job: FileTask,
    path: Place,
    overwrite: bool,
    fsync: bool,
    backend: Backend,
    progress: Progress,
    again: bool,
) -> dict[str, Any]:
    return do_task(job, path, backend, progress, overwrite or again, fsync)


def _do_part(
    path: Place,
    part: int,
    source: Place,
    sources: list[list[Any]],
    options: EncodeOptions,
    repeats: Repeats,
    fsync: bool,
    backend: Backend,
    progress: Progress,
    again: bool,
) -> dict[str, Any]:
    how: dict[str, Any] = {"options": options, "overwrite": True, "fsync": fsync}
    nbytes, stored_nbytes = encode_part(
        source, path, backend, progress, part=part, repeats=repeats, **how
    )
    return {
        "sources": sources,
        "nbytes": nbytes,
        "stored_nbytes": stored_nbytes,
        "target": identity_of(path),
    }


# ---- one file ------------------------------------------------------------------------------------
class FilePlan(DirectoryPlan):
    """One file to be written: the only job. What else is in its directory does not matter."""

    def __post_init__(self) -> None:
        self.prefix = f".{self.jobs[0].name}"
        super().__post_init__()

    def _inside(self) -> Iterator[tuple[str, bool]]:
        name, self.objects = self.jobs[0].name, dict[str, Url]()
        folder = parts_folder(name)
        if not isinstance(self.target, Url):
            for path in self.target.glob("*"):
                if path.name in (name, folder) or self._is_state(path.name):
                    yield path.name, path.is_dir()
            yield from ((f"{folder}/{p.name}", False) for p in (self.target / folder).glob("*"))
            return
        n = 0 if self.shard is None else self.shard[1]
        shards: list[tuple[int, int] | None] = [(i + 1, n) for i in range(n)] or [None]
        for one in (name, *(self.prefix + state_name(shard) for shard in shards)):
            url = self.target / one
            url.known = url.look_up()
            if url.known is not None:
                self.objects[one] = url
        with contextlib.suppress(FileNotFoundError):
            inside = (self.target / folder).files()
            self.objects.update({f"{folder}/{n}": url for n, url in inside.items()})
        yield from ((one, False) for one in self.objects)

    def _check_target(self) -> None:
        job = self.jobs[0]
        path, is_ours = self.target / job.name, job.name in (self.writing or ())
        if job.name not in self.done:
            check_output(path, self.overwrite or is_ours, job.sources)


def convert_file(
    job: FileTask,
    target: Place,
    key: dict[str, Any],
    runner: Runner,
    backend: Backend,
    progress: Progress = ignore_progress,
    *,
    overwrite: bool = False,
    fsync: bool = True,
    shard: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Convert one file by many workers: the bytes are those of one. What was interrupted goes on.

    Parameters
    ----------
    job
        What is done; its first source is the file.
    key
        What must be the same in a run that goes on where another one stopped; JSON.

    Returns
    -------
    Bytes of the file plain and encoded; 0 where other processes have not done their parts.

    Raises
    ------
    DecodeError, EncodeError, OSError
        As what the job does.
    """
    source = job.sources[0]
    key = {**key, "source": resolved(source)}
    how = key, backend, overwrite, fsync, shard
    plan = FilePlan(source.parent, target.parent, [replace(job, name=target.name)], [], *how)
    report = spread(plan, runner, progress)
    return report.nbytes, report.stored_nbytes
