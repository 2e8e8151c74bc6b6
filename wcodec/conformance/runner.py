"""Runs the checks of the suite against a target, and reports."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wcodec.backends import Backend
from wcodec.codec.pipelining import map_ahead
from wcodec.conformance import cases, kernels, sweeps
from wcodec.conformance.cases import Check, Mismatch, Vectors, load, sha256
from wcodec.conformance.command import Command, command_checks, command_sweeps


@dataclass(frozen=True)
class Outcome:
    """What came of a check: ``passed``, ``failed`` or ``not run``."""

    id: str
    rules: tuple[str, ...]
    outcome: str
    seconds: float = 0.0
    message: str = ""

    def __str__(self) -> str:
        return f"{self.id} [{' '.join(self.rules)}]: {self.message}"


@dataclass
class Report:
    """What came of all checks against a target."""

    target: str
    info: dict[str, str] = field(default_factory=dict)
    vectors: dict[str, Any] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0
    #: whether it was ended before its time; checks that were to come are not run
    interrupted: bool = False

    @property
    def totals(self) -> dict[str, int]:
        """Number of checks by outcome."""
        count = Counter(o.outcome for o in self.outcomes)
        return {name: count[name] for name in ("passed", "failed", "not run")}

    @property
    def failed(self) -> list[Outcome]:
        """Checks that failed."""
        return [o for o in self.outcomes if o.outcome == "failed"]

    @property
    def good(self) -> bool:
        """Whether all checks ran and passed."""
        totals = self.totals
        return totals["passed"] > 0 and not totals["failed"] and not totals["not run"]

    @property
    def last_line(self) -> str:
        """``214 passed, 0 failed, 0 not run``."""
        return ", ".join(f"{n} {name}" for name, n in self.totals.items())

    def as_json(self) -> str:
        """All of it."""
        whole = {
            "target": self.target,
            "info": self.info,
            "vectors": self.vectors,
            "totals": self.totals,
            "seconds": round(self.seconds, 3),
        }
        checks = [asdict(o) | {"seconds": round(o.seconds, 6)} for o in self.outcomes]
        return json.dumps(whole | {"checks": checks}, indent=1)


# ---- running -------------------------------------------------------------------------------------
def checks_of(target: Backend | Command, vectors: Vectors) -> tuple[list[Check], list[Check]]:
    """The checks of a target, and its sweeps."""
    if isinstance(target, Command):
        return list(command_checks(vectors, target)), list(command_sweeps(vectors, target))
    own = [*cases.checks(vectors, target), *kernels.checks(vectors, target)]
    return own, list(sweeps.sweeps(vectors, target))


def _run_one(check: Check) -> Outcome:
    start = time.perf_counter()
    try:
        check.run()
    except Mismatch as e:
        outcome, message = "failed", str(e)
    except Exception as e:
        # whatever a stranger's code raises is one failed check, not the end of the suite
        outcome, message = "failed", f"expected no exception; got {type(e).__name__}: {e}"
    else:
        outcome, message = "passed", ""
    return Outcome(check.id, check.rules, outcome, time.perf_counter() - start, message)


def _run_all(
    checks: list[Check],
    report: Report,
    progress: Callable[[Iterable[Outcome], int], Iterable[Outcome]],
    n_threads: int | None,
) -> None:
    """Run checks until Ctrl-C. Threads are for programs, whose start is slow; a backend has threads
    of its own.
    """
    with closing(map_ahead(_run_one, checks, n_threads or 0, n_threads or 0)) as outcomes:
        try:
            for outcome in progress(outcomes, len(checks)):
                report.outcomes.append(outcome)
        except KeyboardInterrupt:
            report.interrupted = True


def run(
    target: Backend | Command,
    *,
    folder: Path | None = None,
    select: str | Iterable[str] = "",
    sweeps: bool = True,
    progress: Callable[[Iterable[Outcome], int], Iterable[Outcome]] = lambda outcomes, n: outcomes,
) -> Report:
    """Run the suite. Ctrl-C ends it, with a report of what was found until then.

    Parameters
    ----------
    target
        A backend, or a program.
    folder
        Where the vectors are; by default those of this installation.
    select
        Run only checks whose id contains this, or any of these. The others count as not run.
    sweeps
        Run the sweeps too. If not, they count as not run.
    progress
        Wraps the outcomes, so many of them, while they come, as ``tqdm.tqdm`` does.
    """
    start, vectors = time.perf_counter(), load(folder)
    plain, swept = checks_of(target, vectors)
    wanted = [select] if isinstance(select, str) else list(select)
    chosen = [
        c
        for c in [*plain, *(swept if sweeps else [])]
        if any(w in c.id for w in wanted) and not c.not_run_because
    ]
    report = Report(target.template if isinstance(target, Command) else target.name)
    report.info = {} if isinstance(target, Command) else target.info()
    report.vectors = {
        "cases": len(vectors.cases),
        "manifest_sha256": sha256((vectors.folder / "manifest.json").read_bytes()),
    }
    n_threads = os.cpu_count() if isinstance(target, Command) else 0
    _run_all(chosen, report, progress, n_threads)
    done, due = {o.id for o in report.outcomes}, {c.id for c in chosen}
    report.outcomes += [
        Outcome(
            c.id,
            c.rules,
            "not run",
            message=c.not_run_because or ("interrupted" if c.id in due else "left out"),
        )
        for c in [*plain, *swept]
        if c.id not in done
    ]
    report.seconds = time.perf_counter() - start
    return report
