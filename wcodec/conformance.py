"""The conformance suite: ``wcodec conformance`` runs the vectors against a backend, or against any program that decodes.

    wcodec conformance --backend numba
    wcodec conformance --backend package.module:Class
    wcodec conformance --command 'their-decoder {input} {output} {base}'

The last line is ``214 passed, 0 failed, 0 not run``, with the numbers; the exit status is 0 only if the last two are 0.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from wcodec import conformance_cases as cases
from wcodec import conformance_kernels as kernels
from wcodec.backends import Backend
from wcodec.conformance_cases import Case, Check, Mismatch, Vectors, load, require, sha256
from wcodec.conformance_recipes import splitmix64

__all__ = ["Outcome", "Report", "run"]

SWEPT: Final = ("base_bytes", "base_records")  #: files whose prefixes and flips a program gets
SAMPLE: Final = 32  #: prefixes, and flips, of each: a process apiece is slow
TIMEOUT_S: Final = 60


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
    interrupted: bool = False  #: whether it was ended before its time; checks that were to come are not run

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


# ---- a program -----------------------------------------------------------------------------------------------------------
class Command:
    """A decoder program.

    Parameters
    ----------
    template
        Command line with ``{input}`` and ``{output}``: a file of the format, and where to write the restored stream,
        `source_header` and the decoded tensors one behind another (R4.22). ``{base}`` is the file that the input holds
        differences from, nothing if it holds none. Without it, cases that have a base cannot be run.
    """

    def __init__(self, template: str) -> None:
        self.template, self.words = template, shlex.split(template)
        if not any("{input}" in w for w in self.words) or not any("{output}" in w for w in self.words):
            raise ValueError(f"the command {template!r} lacks {{input}} or {{output}}")
        self.takes_base = any("{base}" in w for w in self.words)

    def decode(self, data: bytes, base: Path | None = None) -> tuple[int, bytes | None]:
        """Run the program. Returns its exit status and what it wrote, ``None`` if there is no output file."""
        with tempfile.TemporaryDirectory() as folder:
            source, output = Path(folder) / "input.wcodec", Path(folder) / "restored"
            source.write_bytes(data)
            places = {"{input}": str(source), "{output}": str(output), "{base}": str(base or "")}
            line = [re.sub(r"\{(input|output|base)\}", lambda found: places[found[0]], w) for w in self.words]
            try:
                done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False)
            except subprocess.TimeoutExpired:
                raise Mismatch("an end", f"none after {TIMEOUT_S} s") from None
            if done.returncode < 0:
                raise Mismatch("a regular exit", f"signal {-done.returncode}")
            return done.returncode, output.read_bytes() if output.is_file() else None


def _is_refused(status: int, output: bytes | None) -> bool:
    if status:
        require(output is None, "no output file where the status is not 0", "one")
    return status != 0


def _check_command(case: Case, command: Command) -> None:
    status, output = command.decode(case.data, case.base_path)
    refused = _is_refused(status, output)
    if case.expect == "reject":
        require(refused, f"a nonzero status ({case.row['code']})", "status 0")
    elif case.expect == "accept" or not refused:
        require(not refused, "status 0", f"status {status}")
        require(output is not None, "an output file", "none")
        require(
            sha256(output) == case.row["restored_sha256"], f"{case.row['restored_nbytes']} restored bytes", f"{len(output or b'')} others"
        )


def _check_command_prefix(case: Case, command: Command, n: int) -> None:
    require(_is_refused(*command.decode(case.data[:n])), f"{n} of {len(case.data)} bytes refused", "status 0")


def _check_command_flip(case: Case, command: Command, bit: int) -> None:
    spoilt = bytearray(case.data)
    spoilt[bit // 8] ^= 1 << bit % 8
    status, output = command.decode(bytes(spoilt))
    if not _is_refused(status, output):
        require(sha256(output or b"") == case.row["restored_sha256"], f"a file refused whose bit {bit} was flipped", "other data")


def _sample(most: int, seed: int) -> list[int]:
    return sorted(set((splitmix64(seed, SAMPLE) % np.uint64(most)).tolist()))


def _command_checks(vectors: Vectors, command: Command) -> Iterator[Check]:
    for case in vectors.cases:
        cannot = "the command has no {base}" if case.checkpoint and not command.takes_base else ""
        yield Check(case.id, case.rules, partial(_check_command, case, command), cannot)


def _command_sweeps(vectors: Vectors, command: Command) -> Iterator[Check]:
    for seed, name in enumerate(SWEPT):
        case = vectors[f"accept/{name}"]
        for n in _sample(case.row["nbytes"], 2 * seed):
            yield Check(f"prefixes/{name}/{n}", ("R4.6", "R4.7"), partial(_check_command_prefix, case, command, n))
        for bit in _sample(8 * case.row["nbytes"], 2 * seed + 1):
            yield Check(f"flips/{name}/{bit}", ("R11.2",), partial(_check_command_flip, case, command, bit))


# ---- running -------------------------------------------------------------------------------------------------------------
def checks_of(target: Backend | Command, vectors: Vectors) -> tuple[list[Check], list[Check]]:
    """The checks of a target, and its sweeps."""
    if isinstance(target, Command):
        return list(_command_checks(vectors, target)), list(_command_sweeps(vectors, target))
    return [*cases.checks(vectors, target), *kernels.checks(vectors, target)], list(kernels.sweeps(vectors, target))


def _run_one(check: Check) -> Outcome:
    start = time.perf_counter()
    try:
        check.run()
    except Mismatch as e:
        outcome, message = "failed", str(e)
    except Exception as e:  # whatever a stranger's code raises is one failed check, not the end of the suite
        outcome, message = "failed", f"expected no exception; got {type(e).__name__}: {e}"
    else:
        outcome, message = "passed", ""
    return Outcome(check.id, check.rules, outcome, time.perf_counter() - start, message)


def run(
    target: Backend | Command, *, folder: Path | None = None, select: str | Iterable[str] = "", sweeps: bool = True,
    progress: Callable[[Iterable[Outcome], int], Iterable[Outcome]] = lambda outcomes, n: outcomes,
) -> Report:  # fmt: skip
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
    chosen = [c for c in [*plain, *(swept if sweeps else [])] if any(w in c.id for w in wanted) and not c.cannot]
    report = Report(target.template if isinstance(target, Command) else target.name)
    report.info = {} if isinstance(target, Command) else target.info()
    report.vectors = {"cases": len(vectors.cases), "manifest_sha256": sha256((vectors.folder / "manifest.json").read_bytes())}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # for programs, whose start is slow; a backend has threads of its own
        outcomes = pool.map(_run_one, chosen) if isinstance(target, Command) else map(_run_one, chosen)
        try:
            for outcome in progress(outcomes, len(chosen)):
                report.outcomes.append(outcome)
        except KeyboardInterrupt:
            report.interrupted = True
            pool.shutdown(cancel_futures=True)
    done, due = {o.id for o in report.outcomes}, {c.id for c in chosen}
    report.outcomes += [
        Outcome(c.id, c.rules, "not run", message=c.cannot or ("interrupted" if c.id in due else "left out"))
        for c in [*plain, *swept] if c.id not in done
    ]  # fmt: skip
    report.seconds = time.perf_counter() - start
    return report
