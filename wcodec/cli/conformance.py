"""`wcodec conformance`."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wcodec.backends import load_backend
from wcodec.cli.common import BAD_INPUT, DONE, INTERRUPTED, one_line, tqdm_class
from wcodec.cli.outputs import check_target
from wcodec.errors import BackendUnavailable, named
from wcodec.files.atomic import atomic_output

if TYPE_CHECKING:
    from wcodec.backends import Backend
    from wcodec.conformance import Command, InChild, Outcome, Report

#: ids of checks alike that a line names
MOST_NAMED = 5


def conformance(args: argparse.Namespace) -> int:
    """`wcodec conformance`: 0 only if all checks that were asked for ran and passed."""
    from wcodec.conformance import InChild, run

    outputs = {name: getattr(args, name) for name in ("report", "html", "badge")}
    for name, path in outputs.items():
        if path:
            check_target(args, f"--{name}", path)
    select = args.filter or ""
    try:
        targets = _targets(args)
        if args.list:
            return _list(targets[0], select)
        reports: list[Report] = []
        for target in targets:
            at_once = isinstance(target, InChild)
            with _interruptible(at_once) as progress:
                reports.append(
                    run(
                        target,
                        select=select,
                        sweeps=not args.no_sweeps,
                        stop_at_first=args.exit_first,
                        progress=progress,
                    )
                )
            if reports[-1].interrupted:
                break
    except (BackendUnavailable, FileNotFoundError, ValueError) as e:
        args.error(str(e))
        raise
    if select and not any(r.totals["not selected"] < len(r.outcomes) for r in reports):
        args.error(f"no check has such an id: {' '.join(select)}")
    _write(args, outputs, reports)
    with named("standard output"):
        _print(args, reports)
    if reports[-1].interrupted:
        return INTERRUPTED
    good = all(r.selection_good if select else r.good for r in reports)
    return DONE if good else BAD_INPUT


def _targets(args: argparse.Namespace) -> list[Command | InChild | Backend]:
    from wcodec.conformance import Command, InChild

    if args.profile and not args.command:
        args.error("--profile is of --command: a backend has to do all")
    if args.command and args.backend is not None:
        args.error("--command is instead of --backend")
    if args.command:
        found = [re.fullmatch(r"(?:([\w.+-]+)=)?(.*)", line, re.DOTALL) for line in args.command]
        how = args.timeout, args.profile
        commands = [Command(m[2], m[1] or "", *how) for m in found if m]
        names = Counter(c.name for c in commands)
        if len(names) < len(commands):
            args.error(f"several commands are called {names.most_common(1)[0][0]!r}")
        return [*commands]
    name = args.backend or os.environ.get("WCODEC_BACKEND") or "auto"
    if args.in_process:
        return [load_backend(name, args.threads)]
    return [InChild(name, args.threads, args.timeout)]


def _list(target: Command | InChild | Backend, select: Iterable[str]) -> int:
    from wcodec.conformance import InChild, checks_of
    from wcodec.conformance.cases import load
    from wcodec.conformance.runner import is_selected

    try:
        for check in [c for checks in checks_of(target, load()) for c in checks]:
            if is_selected(check.id, select or [""]):
                print(check.id)
    finally:
        if isinstance(target, InChild):
            target.close()
    return DONE


def _write(args: argparse.Namespace, outputs: dict[str, str | None], reports: list[Report]) -> None:
    from wcodec.conformance.cases import load
    from wcodec.conformance.documents import as_badge, as_json
    from wcodec.conformance.page import as_html

    text_of: dict[str, Callable[[], str]] = {
        "report": lambda: as_json(reports),
        "html": lambda: as_html(reports, load()),
        "badge": lambda: as_badge(reports),
    }
    for name, path in outputs.items():
        if path:
            with atomic_output(path, overwrite=args.force) as f:
                f.write(text_of[name]().encode(errors="backslashreplace"))


def _print(args: argparse.Namespace, reports: list[Report]) -> None:
    from wcodec.conformance.documents import as_markdown, grouped, table

    if args.markdown:
        print(as_markdown(reports), end="")
        return
    for report in reports:
        for first, *more in grouped(report.failed):
            print(f"FAILED {one_line(str(first))}")
            if more:
                ids = ", ".join(o.id for o in more[:MOST_NAMED])
                print(f"  and {len(more)} alike: {ids}{', ...' if len(more) > MOST_NAMED else ''}")
        about = ", ".join(f"{k} {v}" for k, v in report.info.items())
        print(
            f"{report.target}{f' ({about})' if about else ''}: {report.vectors['cases']} vectors, "
            f"{report.seconds:.1f} s"
        )
        why_not = Counter(o.message for o in report.outcomes if o.outcome == "not run")
        for why, n in why_not.items():
            print(f"NOT RUN {n}: {why}")
        if len(reports) > 1:
            print(report.last_line)
    if len(reports) > 1:
        print("", *table(reports), "", sep="\n")
        good = sum(r.good for r in reports)
        print(f"{good} of {len(reports)} decoders passed the whole suite")
    else:
        print(reports[0].last_line)


@contextmanager
def _interruptible(
    at_once: bool,
) -> Iterator[Callable[[Iterable[Outcome], int], Iterable[Outcome]]]:
    """How to go through the outcomes, so that what was found until the first Ctrl-C is reported: it
    comes between two checks, or at once where another process makes them.
    """
    before, told = signal.getsignal(signal.SIGINT), list[int]()

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        if at_once:
            raise KeyboardInterrupt
        told.append(number)

    def progress(outcomes: Iterable[Outcome], n: int) -> Iterator[Outcome]:
        for outcome in _bar(outcomes, n):
            yield outcome
            if told:
                raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or before in (
        signal.SIG_IGN,
        None,
    ):
        yield progress
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield progress
    finally:
        signal.signal(signal.SIGINT, before)


def _bar(outcomes: Iterable[Outcome], n: int) -> Iterable[Outcome]:
    """A bar on a terminal, if tqdm is there."""
    tqdm = tqdm_class() if sys.stderr.isatty() else None
    if tqdm is None:
        return outcomes
    bar: Iterable[Outcome] = tqdm(outcomes, total=n, unit="check", leave=False)
    return bar
