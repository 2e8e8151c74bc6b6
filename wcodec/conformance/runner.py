"""Runs the checks of the suite against a target, and reports."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from wcodec.backends import Backend
from wcodec.codec.pipelining import map_ahead
from wcodec.conformance import cases, kernels, sweeps
from wcodec.conformance.cases import Check, Mismatch, Vectors, load, sha256
from wcodec.conformance.child import InChild
from wcodec.conformance.command import Command, command_checks, command_sweeps

Target = Backend | Command | InChild
Progress = Callable[[Iterable["Outcome"], int], Iterable["Outcome"]]
OUTCOMES: Final = ("passed", "failed", "not run", "not selected")


@dataclass(frozen=True)
class Outcome:
    """What came of a check: one of `OUTCOMES`. `features` are the flags of its vector."""

    id: str
    rules: tuple[str, ...]
    outcome: str
    seconds: float = 0.0
    message: str = ""
    features: tuple[str, ...] = ()
    profile: str | None = None

    def __str__(self) -> str:
        return f"{self.id} [{' '.join(self.rules)}]: {self.message}"


@dataclass
class Report:
    """What came of all checks against a target. `profile` is that which the target claims to
    decode, ``None`` for all of the format.
    """

    target: str
    info: dict[str, str] = field(default_factory=dict)
    vectors: dict[str, Any] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0
    #: whether it was ended before its time; checks that were to come are not run
    interrupted: bool = False
    profile: str | None = None

    @property
    def totals(self) -> dict[str, int]:
        """Number of checks by outcome."""
        count = Counter(o.outcome for o in self.outcomes)
        return {name: count[name] for name in OUTCOMES}

    @property
    def failed(self) -> list[Outcome]:
        """Checks that failed."""
        return [o for o in self.outcomes if o.outcome == "failed"]

    @property
    def good(self) -> bool:
        """Whether all checks ran and passed: this alone is conformance."""
        return self.selection_good and not self.totals["not selected"]

    @property
    def selection_good(self) -> bool:
        """Whether all checks that were selected ran and passed."""
        totals = self.totals
        return totals["passed"] > 0 and not totals["failed"] and not totals["not run"]

    @property
    def last_line(self) -> str:
        """``214 passed, 0 failed, 0 not run``, and what was not selected, if anything."""
        *ran, (_, n) = self.totals.items()
        text = ", ".join(f"{n} {name}" for name, n in ran)
        return f"{text}; {n} not selected, which is not the whole suite" if n else text


# ---- running -------------------------------------------------------------------------------------
def checks_of(target: Target, vectors: Vectors) -> tuple[list[Check], list[Check]]:
    """The checks of a target, and its sweeps."""
    if isinstance(target, Command):
        return list(command_checks(vectors, target)), list(command_sweeps(vectors, target))
    if isinstance(target, InChild):
        target.start(vectors.folder)
        return list(target.checks("plain")), list(target.checks("sweeps"))
    own = [*kernels.checks(vectors, target), *cases.checks(vectors, target)]
    return own, list(sweeps.sweeps(vectors, target))


def is_selected(id: str, wanted: Iterable[str]) -> bool:
    """Whether an id is one of those that are wanted: it matches a pattern with ``*``, ``?`` or
    ``[``, or contains a text without.
    """
    return any(fnmatchcase(id, w) if set(w) & set("*?[") else w in id for w in wanted)


def run_one(check: Check) -> Outcome:
    """Run a check; whatever a stranger's code raises is one failed check, not the end."""
    start = time.perf_counter()
    try:
        check.run()
    except Mismatch as e:
        outcome, message = "failed", str(e)
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        try:
            said = str(e)
        except Exception:
            said = "(its text cannot be made)"
        outcome, message = "failed", f"expected no exception; got {type(e).__name__}: {said}"
    else:
        outcome, message = "passed", ""
    seconds = time.perf_counter() - start
    return Outcome(check.id, check.rules, outcome, seconds, message, profile=check.profile)


def _run_all(
    checks: list[Check], report: Report, progress: Progress, n_threads: int, stop: bool
) -> str:
    """Run checks until Ctrl-C, or the first failure. Returns why those that are left were not run.
    Threads are for programs, whose start is slow; a backend has threads of its own.
    """
    with closing(map_ahead(run_one, checks, n_threads, n_threads)) as outcomes:
        try:
            for outcome in progress(outcomes, len(checks)):
                report.outcomes.append(outcome)
                if stop and outcome.outcome == "failed":
                    return "stopped at the first failure"
        except KeyboardInterrupt:
            report.interrupted = True
    return "interrupted"


def run(
    target: Target | str,
    *,
    folder: Path | None = None,
    select: str | Iterable[str] = "",
    sweeps: bool = True,
    stop_at_first: bool = False,
    progress: Progress = lambda outcomes, n: outcomes,
) -> Report:
    """Run the suite. Ctrl-C ends it, with a report of what was found until then.

    Parameters
    ----------
    target
        The name of a backend, or ``package.module:Class``, or an `InChild` of it: checked in a
        process of its own, where a crash or a hang costs one check. A program. Or a backend object:
        checked in this process, which then has its crashes.
    folder
        Where the vectors are; by default those of this installation.
    select
        Run only checks whose id contains this, or matches it if there is ``*``, ``?`` or ``[`` in
        it; or any of these. The others are not selected.
    sweeps
        Run the sweeps too. If not, they count as not run.
    stop_at_first
        End at the first failure. What is left counts as not run.
    progress
        Wraps the outcomes, so many of them, while they come, as ``tqdm.tqdm`` does.

    Raises
    ------
    BackendUnavailable
        There is no such backend, or it cannot be made.
    """
    start, vectors = time.perf_counter(), load(folder)
    target = InChild(target) if isinstance(target, str) else target
    wanted = [select] if isinstance(select, str) else list(select)
    with closing(target) if isinstance(target, InChild) else nullcontext():
        plain, swept = checks_of(target, vectors)
        everything = [*plain, *swept]
        left_out = set() if sweeps else {c.id for c in swept}
        chosen = [c for c in everything if is_selected(c.id, wanted)]
        report = Report(target.name)
        report.profile = target.profile if isinstance(target, Command) else None
        report.info = {} if isinstance(target, Command) else target.info()
        n_threads = (os.cpu_count() or 1) if isinstance(target, Command) else 0
        todo = [c for c in chosen if c.id not in left_out and not c.not_run_because]
        why = _run_all(todo, report, progress, n_threads, stop_at_first)
    report.vectors = {
        "cases": len(vectors.cases),
        "manifest_sha256": sha256((vectors.folder / "manifest.json").read_bytes()),
    }
    reasons = {c.id: c.not_run_because or ("left out" if c.id in left_out else why) for c in chosen}
    report.outcomes = list(_completed(report.outcomes, everything, reasons, vectors))
    report.seconds = time.perf_counter() - start
    return report


def _completed(
    done: list[Outcome], checks: list[Check], reasons: dict[str, str], vectors: Vectors
) -> Iterator[Outcome]:
    """Outcomes of all checks, those that were not run included, with the features of each."""
    flags = {c.id: tuple(c.row.get("flags", ())) for c in vectors.cases}
    ran = {o.id: o for o in done}
    for c in checks:
        features = flags.get(case_of(c.id), ())
        if c.id in ran:
            yield replace(ran[c.id], features=features)
        else:
            outcome = "not run" if c.id in reasons else "not selected"
            why = reasons.get(c.id, "")
            yield Outcome(c.id, c.rules, outcome, 0.0, why, features, c.profile)


def case_of(id: str) -> str:
    """The id of the vector that a check is about; of duties, one that there is not."""
    kind, name = id.split("/")[:2]
    return f"{kind if kind in ('accept', 'reject', 'either') else 'accept'}/{name}"
