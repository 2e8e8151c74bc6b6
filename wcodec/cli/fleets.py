"""Options of subcommands that many machines can share, and what is said of them."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wcodec.backends import Backend
from wcodec.directories.tasks import Runner
from wcodec.inspect.report import printable, size_text

if TYPE_CHECKING:
    from wcodec.fleet.running import Fleet


@dataclass
class Workers:
    """Who does the work, where it is shared.

    Attributes
    ----------
    fleet
        An engine's; ``None`` where this process does its part alone.
    shard
        Which part that is.
    """

    runner: Runner
    fleet: Fleet | None
    shard: tuple[int, int] | None

    def report(self) -> dict[str, Any]:
        """What is said of it with ``--json``."""
        report: dict[str, Any] = {}
        if self.fleet is not None:
            report["fleet"] = self.fleet.report()
        if self.shard is not None:
            report["shard"] = "/".join(map(str, self.shard))
        return report

    def lines(self) -> Iterator[str]:
        """The same in words."""
        if self.fleet is None:
            return
        found = self.fleet.report()
        n = len(found["machines"])
        yield (
            f"  {n} machine{'s' * (n != 1)}, {found['units']} units of work, {found['retries']} "
            f"tried again, {size_text(found['nbytes_per_second'])}/s"
        )
        for m in found["machines"]:
            yield (
                f"  {printable(m['machine'])}: {m['units']} units, {size_text(m['nbytes'])} in "
                f"{m['busy_seconds']:.1f} s of {m['processes']} processes"
            )


@contextlib.contextmanager
def workers_of(args: argparse.Namespace, backend: Backend) -> Iterator[Workers | None]:
    """Who does the work, as ``--ray``, ``--executor`` and ``--shard`` say; ``None`` without them.

    Raises
    ------
    MissingPackage
    EncodeError
        ``bad_option``: there is no such cluster or executor.
    """
    ray, executor, shard = (getattr(args, name, None) for name in ("ray", "executor", "shard"))
    if ray is None and executor is None:
        if shard is None:
            yield None
            return
        from wcodec.fleet.running import in_this_process

        yield Workers(in_this_process(backend), None, shard)
        return
    from wcodec.fleet.engines import open_engine
    from wcodec.fleet.running import Fleet

    threads = args.threads or 1
    engine = open_engine(ray, executor, threads)
    try:
        fleet = Fleet(engine, args.backend or "auto", threads)
        yield Workers(fleet, fleet, shard)
    finally:
        engine.close()


def say_more(args: argparse.Namespace) -> None:
    """Print what machines have done."""
    if args.workers is not None and not (args.json or args.quiet):
        for line in args.workers.lines():
            print(line, flush=True)


def add_workers(s: argparse.ArgumentParser) -> None:
    """``--ray``, ``--executor`` and ``--shard``."""
    g = s.add_argument_group("many machines")
    one = g.add_mutually_exclusive_group()
    text = (
        "share the work out over a cluster of Ray: auto for the one that runs here, an address, or "
        "local to start one on this machine"
    )
    one.add_argument("--ray", metavar="ADDRESS", help=text)
    text = "over an executor of concurrent.futures that a function without arguments gives"
    one.add_argument("--executor", metavar="MODULE:FACTORY", help=text)
    text = "do one part of N; other processes, such as those of a Slurm array, do the others"
    g.add_argument("--shard", metavar="I/N", type=_shard, help=text)


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form I/N, from 1/N to N/N")
    return int(found[1]), int(found[2])
