"""Units of work, done by an engine: some at once, again where that fails, with a report."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from wcodec.backends import Backend, load_backend
from wcodec.codec.pipelining import Progress, ignore_progress
from wcodec.directories.tasks import Unit
from wcodec.errors import WcodecError
from wcodec.fleet.engines import Engine, machine_name

TRIES: Final = 4  #: of a unit, each where the engine puts it
_WAITING: Final = 2  #: units for each worker: one that it works on, and the next
_LOOK_S: Final = 5.0  #: between two looks at how many workers there are
#: variables of who reads and writes at URLs, which workers get where they have none of their own
_PASSED_ON: Final = ("AWS_", "FSSPEC_", "GOOGLE_", "AZURE_", "HF_", "WCODEC_")
_WORKER_MEMORY: Final = "128M"  #: that a worker may hold of a remote file (`RemoteSource`)

_PROCESS: Final = secrets.token_hex(8)  #: tells whether a unit is done where it comes from

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What a worker gives back."""

    result: Any
    machine: str
    process: int
    seconds: float


@dataclass
class Machine:
    """What a machine has done."""

    n_units: int = 0
    nbytes: int = 0
    busy_seconds: float = 0.0
    processes: set[int] = field(default_factory=set)


class Fleet:
    """Has units done by an engine; a `wcodec.directories.tasks.Runner`.

    Parameters
    ----------
    engine
        Where they are done.
    backend
        Name of the backend that workers use.
    threads
        Of each unit.
    """

    def __init__(self, engine: Engine, backend: str = "auto", threads: int = 1) -> None:
        self._engine, self._backend = engine, (backend, threads)
        self.machines, self.n_retries = dict[str, Machine](), 0
        self._start = time.monotonic()

    def __call__(
        self,
        units: Iterable[Unit],
        follow: Callable[[Unit, Any], Iterable[Unit]],
        progress: Progress = ignore_progress,
    ) -> None:
        """As `Runner`."""
        _Run(self, iter(units), follow, progress).run()

    def submit(self, unit: Unit, n: int) -> Future[Outcome]:
        """Have a unit done, for the `n`-th time."""
        passed_on = {k: v for k, v in os.environ.items() if k.startswith(_PASSED_ON)}
        return self._engine.submit(do_unit, unit, self._backend, n > 1, passed_on, _PROCESS)

    @property
    def room(self) -> int:
        """Units that may be under way."""
        return _WAITING * self._engine.n_workers

    def count(self, unit: Unit, outcome: Outcome) -> None:
        """Enter who has done a unit."""
        machine = self.machines.setdefault(outcome.machine, Machine())
        machine.n_units += 1
        machine.nbytes += unit.nbytes
        machine.busy_seconds += outcome.seconds
        machine.processes.add(outcome.process)

    def report(self) -> dict[str, Any]:
        """What was done where, for ``--json``."""
        seconds = time.monotonic() - self._start
        nbytes = sum(m.nbytes for m in self.machines.values())
        return {
            "units": sum(m.n_units for m in self.machines.values()),
            "retries": self.n_retries,
            "nbytes_per_second": round(nbytes / seconds) if seconds else 0,
            "machines": [
                {
                    "machine": name,
                    "processes": len(m.processes),
                    "units": m.n_units,
                    "nbytes": m.nbytes,
                    "busy_seconds": round(m.busy_seconds, 3),
                    "nbytes_per_busy_second": round(m.nbytes / m.busy_seconds)
                    if m.busy_seconds
                    else 0,
                }
                for name, m in sorted(self.machines.items())
            ],
        }


class _Run:
    """One call of a `Fleet`."""

    def __init__(
        self,
        fleet: Fleet,
        units: Iterator[Unit],
        follow: Callable[[Unit, Any], Iterable[Unit]],
        progress: Progress,
    ) -> None:
        self._fleet, self._units, self._follow = fleet, units, follow
        self._progress, self._next = progress, deque[tuple[Unit, int]]()
        self._under_way = dict[Future[Outcome], tuple[Unit, int]]()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Have all done."""
        try:
            while self._fill() or self._under_way:
                ready, _ = wait(self._under_way, _LOOK_S, FIRST_COMPLETED)
                for future in ready:
                    self._take(future, *self._under_way.pop(future))
        finally:
            for future in self._under_way:
                future.cancel()
        if self._error is not None:
            raise self._error

    def _fill(self) -> bool:
        """Begin what may be begun. Returns whether there is more."""
        if self._error is not None:
            return False
        room = self._fleet.room
        while len(self._under_way) < room:
            if self._next:
                unit, n = self._next.popleft()
            elif (found := next(self._units, None)) is not None:
                unit, n = found, 1
            else:
                return False
            self._under_way[self._fleet.submit(unit, n)] = unit, n
        return True

    def _take(self, future: Future[Outcome], unit: Unit, n: int) -> None:
        try:
            outcome = future.result()
        except Exception as e:
            error = getattr(e, "cause", None) or e  # as Ray wraps those of tasks
            if not isinstance(error, WcodecError) and n < TRIES:
                self._fleet.n_retries += 1
                text = " ".join(str(error).split())[:200]
                log.info("%s: %s %s; tried again", unit.label, type(error).__name__, text)
                self._next.append((unit, n + 1))
            elif unit.may_fail:
                self._next.extend((more, 1) for more in self._follow(unit, error))
            else:
                self._error = self._error or _of_worker(unit, error)
            return
        self._fleet.count(unit, outcome)
        self._progress(unit.nbytes)
        self._next.extend((more, 1) for more in self._follow(unit, outcome.result))


def _of_worker(unit: Unit, e: BaseException) -> BaseException:
    """An error of a worker, or of what it runs on, as one that can be told in a line."""
    if isinstance(e, WcodecError | OSError):
        return e
    text = " ".join(str(e).split())[:500]
    return OSError(errno.EIO, f"after {TRIES} tries: {type(e).__name__}: {text}", unit.label)


def do_unit(
    unit: Unit,
    backend: tuple[str, int | None],
    again: bool,
    environment: dict[str, str],
    process: str = "",
) -> Outcome:
    """Do a unit; called on the worker.

    Parameters
    ----------
    again
        Whether it was begun before, and may have left something.
    environment
        Variables for a worker that has none of these names, if it is not of the same `process`.
    """
    if process != _PROCESS:
        for name, value in {"WCODEC_REMOTE_MEMORY": _WORKER_MEMORY, **environment}.items():
            os.environ.setdefault(name, value)
    start = time.perf_counter()
    result = unit.work(backend=load_backend(*backend), progress=ignore_progress, again=again)
    return Outcome(result, machine_name(), os.getpid(), time.perf_counter() - start)


def in_this_process(backend: Backend) -> Callable[..., None]:
    """A `wcodec.directories.tasks.Runner` without an engine: one unit after another."""

    def run(
        units: Iterable[Unit],
        follow: Callable[[Unit, Any], Iterable[Unit]],
        progress: Progress = ignore_progress,
    ) -> None:
        more = deque[Unit]()
        for unit in units:
            more.append(unit)
            while more:
                one = more.popleft()
                try:
                    result = one.work(backend=backend, progress=progress, again=False)
                except (WcodecError, OSError) as e:
                    if not one.may_fail:
                        raise
                    result = e
                more.extend(follow(one, result))

    return run
