"""`wcodec conformance`, `demo` and `bench`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wcodec.cli.common import BAD_INPUT, DONE, INTERRUPTED, backend_of, fail, show, tqdm_class
from wcodec.cli.outputs import check_target
from wcodec.errors import BackendUnavailable
from wcodec.files.atomic import atomic_output

if TYPE_CHECKING:
    from wcodec.conformance import Outcome


def conformance(args: argparse.Namespace) -> int:
    """`wcodec conformance`: 0 only if all checks ran and passed."""
    from wcodec.conformance import Command, run

    if args.command is not None and args.backend is not None:
        args.error("--command is instead of --backend")
    if args.report:
        check_target(args, "the report", args.report)
    try:
        target = Command(args.command) if args.command is not None else backend_of(args)
        with _interrupted_between_checks() as progress:
            report = run(target, select=args.filter, sweeps=not args.no_sweeps, progress=progress)
    except (BackendUnavailable, FileNotFoundError, ValueError) as e:
        args.error(str(e))
        raise
    for outcome in report.failed:
        print(f"FAILED {outcome}")
    if args.report:
        with atomic_output(args.report, overwrite=args.force) as f:
            f.write((report.as_json() + "\n").encode())
    about = ", ".join(f"{k} {v}" for k, v in report.info.items())
    print(
        f"{report.target}{f' ({about})' if about else ''}: {report.vectors['cases']} vectors, "
        f"{report.seconds:.1f} s"
    )
    for why, n in Counter(o.message for o in report.outcomes if o.outcome == "not run").items():
        print(f"NOT RUN {n}: {why}")
    print(report.last_line)
    if report.interrupted:
        return INTERRUPTED
    return DONE if report.good else BAD_INPUT


@contextmanager
def _interrupted_between_checks() -> Iterator[
    Callable[[Iterable[Outcome], int], Iterable[Outcome]]
]:
    """How to go through the outcomes, so that the first Ctrl-C comes between two of them:
    what was found is reported.
    """
    before, told = signal.getsignal(signal.SIGINT), list[int]()

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
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


def warmup(args: argparse.Namespace) -> int:
    """`wcodec warmup`."""
    from wcodec.cli.warmup import warm_up, warm_up_cuda
    from wcodec.reference.planes import DTYPES

    chosen = args.backend or os.environ.get("WCODEC_BACKEND") or "auto"
    # if it is named, without a GPU too
    of_cuda = chosen == "cuda" or backend_of(args).name == "cuda"
    if args.arch is not None and not of_cuda:
        args.error("--arch is for --backend cuda")
    if args.dtype and of_cuda:
        args.error("--dtype is not for --backend cuda, all of whose kernels are compiled")
    start, done = time.perf_counter(), list[dict[str, Any]]()
    wanted = [d for d in DTYPES if d.name in args.dtype] if args.dtype else list(DTYPES)
    name, steps = (
        ("cuda", warm_up_cuda(args.arch))
        if of_cuda
        else (backend_of(args).name, warm_up(backend_of(args), wanted))
    )
    for step in steps:
        done.append(step._asdict())
        if not args.json:
            print(f"{step.seconds:7.2f} s  {step.what}", flush=True)
    seconds = time.perf_counter() - start
    show(
        args,
        {"backend": name, "seconds": seconds, "steps": done},
        [f"{seconds:7.2f} s  in all, for backend {name}"],
    )
    return DONE


def demo(args: argparse.Namespace) -> int:
    """`wcodec demo`."""
    from wcodec.cli.demo import run_demo

    if run_demo(lambda line: print(line, flush=True), args.backend, args.threads):
        return DONE
    return fail("a file did not come back with the same SHA-256, or the backends' files differ")


def bench(args: argparse.Namespace) -> int:
    """`wcodec bench`."""
    from wcodec.cli.bench import as_text, bench_file

    def say(line: str) -> None:
        print("wcodec:", line, file=sys.stderr)

    report = bench_file(
        args.input, args.backend, args.threads, args.rounds, args.sample_nbytes, say
    )
    show(args, report, as_text(report))
    return DONE if report["same"] else fail("the tensors did not come back the same")
