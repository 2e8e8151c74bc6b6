"""`wcodec encode`, `decode` and `repack`: files and directories of models to and fro."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wcodec.backends import Backend
from wcodec.cli.common import (
    DONE,
    backend_of,
    base_nbytes,
    decoded_nbytes,
    each,
    in_directory,
    limits_of,
    progress_of,
    say,
    typed,
)
from wcodec.cli.fleets import say_more, workers_of
from wcodec.cli.outputs import plan_outputs, take_output
from wcodec.codec.opening import open_source
from wcodec.codec.urls import Place, place_of, size_of, url_of
from wcodec.directories.decoding import check_plan_room, decoding_task, plan_decode
from wcodec.directories.encoding import encode_one, encoding_task, plan_encode
from wcodec.directories.hub_header import InputKind, is_coded, kind_of
from wcodec.directories.hub_reading import HubFile, decode_hub_file
from wcodec.directories.resumable import DirectoryPlan
from wcodec.directories.tasks import FileTask, Report
from wcodec.errors import DecodeError, EncodeError, within
from wcodec.files.atomic import sync_file
from wcodec.files.checkpoint import decode_file, is_same_stream
from wcodec.files.file import File, open_base
from wcodec.files.plain import is_pipe
from wcodec.files.shard_index import CODED, PLAIN
from wcodec.inspect.report import percent_text, size_text
from wcodec.planner.options import EncodeOptions

#: the pieces of the plain file that a file holds, by its path and the backend
Contents = Callable[[argparse.Namespace, str, Backend], Iterator[Any]]


def options_of(args: argparse.Namespace) -> EncodeOptions:
    """What was chosen; leaves with 2 where that does not go together."""
    try:
        return EncodeOptions(
            args.segment, args.tile, args.predictor, args.layout, args.prob_bits,
            preset=args.preset, transform=args.transform, coder=args.coder, operand=args.operand,
        )  # fmt: skip
    except EncodeError as e:
        args.error(str(e))
        raise


def _check_removal(args: argparse.Namespace) -> None:
    """Leaves with 2 where ``--rm`` would remove what decoding needs,
    or more than what the output holds.
    """
    if not args.rm:
        return
    if getattr(args, "raw", False):
        args.error("--rm is not for --raw: names, shapes and dtypes would be lost")
    needed = list[Place]()
    if args.base is not None and place_of(args.base).is_file():
        base = open_base(args.base, backend_of(args))
        needed = list(base.paths())
        base.close()
    for path in args.inputs:
        if url_of(path) is not None or is_pipe(path):
            args.error(f"--rm is for files, not for {path}")
        if os.path.isdir(path):
            args.error(
                f"--rm is for files: {path} may hold more than what goes into the output; `wcodec "
                "verify` it, then remove it"
            )
        for other in needed:
            if isinstance(other, Path) and os.path.exists(path) and other.samefile(path):
                args.error(f"--rm would remove {path}, which decoding needs as a base")


@dataclass
class _Done:
    """An output that was made."""

    source: str
    target: str
    line: str
    report: dict[str, Any]
    start: float


def _check_output(
    source: str, target: str, before: os.stat_result, one: Iterator[Any], other: Iterator[Any]
) -> None:
    """Whether an input may be removed: its output, read back and on the disk, holds the same, and
    the input is what it was.

    Raises
    ------
    DecodeError, EncodeError
    """
    if not is_same_stream(one, other):
        with within(target):
            raise DecodeError("bad_value", f"it does not hold what {source!r} does, which stays")
    sync_file(target)
    now = os.stat(source)
    if not os.path.samestat(before, now) or before.st_mtime_ns != now.st_mtime_ns:
        raise EncodeError("bad_source", f"{source!r} has changed meanwhile, and stays")


def _convert(
    args: argparse.Namespace,
    name_of: Callable[[str], str],
    work: Callable[[str, str, Backend], dict[str, Any]],
    contents: tuple[Contents, Contents],
) -> int:
    """Make an output of each input.

    Parameters
    ----------
    name_of
        As of `plan_outputs`.
    work
        Makes the output of an input, both by their paths; returns what there is to report.
        ``line`` says it in words.
    contents
        The plain file that an input, and an output, holds: for ``--rm``.
    """
    _check_removal(args)
    outputs, backend, removable = plan_outputs(args, name_of), backend_of(args), dict[str, _Done]()

    def convert(source: str) -> int:
        target, before = outputs.targets[source], os.stat(source) if args.rm else None
        start = time.perf_counter()
        with in_directory(source):
            report = work(source, target, backend)
        done = _Done(source, target, report.pop("line"), report, start)
        if before is None:
            return say_done(done)
        of_source, of_target = contents
        pieces = of_source(args, source, backend), of_target(args, target, backend)
        _check_output(source, target, before, *pieces)
        removable[source] = done
        return DONE

    def remove(source: str) -> int:
        os.unlink(source)
        return say_done(removable[source], removed=True)

    def say_done(done: _Done, removed: bool = False) -> int:
        seconds = time.perf_counter() - done.start
        note = f", removed {typed(done.source)}" if removed else ""
        report = (
            done.report
            | ({"removed": True} if removed else {})
            | {"seconds": seconds, "backend": backend.name}
        )
        line = f"{typed(done.source)} -> {typed(done.target)}: {done.line}, {seconds:.1f} s{note}"
        say(args, line, {"input": done.source, "output": done.target, **report})
        return DONE

    with outputs.made(), workers_of(args, backend) as args.workers:
        status = each(outputs.targets, convert)
        say_more(args)
        # not before all are done: one may be the base of another
        return max(status, each(removable, remove))


def _how(args: argparse.Namespace) -> dict[str, Any]:
    """How outputs are written."""
    return {"overwrite": args.force, "fsync": args.fsync}


def _plain(_: argparse.Namespace, path: str, __: Backend) -> Iterator[Any]:
    source = open_source(path, EncodeError, is_checked=True)
    yield from (piece.data for piece in source.pieces(0, source.nbytes))


def _coded(args: argparse.Namespace, path: str, backend: Backend) -> Iterator[Any]:
    """What a ``.wcodec`` file, or one in hub form, restores."""
    if is_coded(path):
        with File(path, backend, base=args.base, **limits_of(args)) as f:
            yield from f.restored()
    else:
        yield from HubFile(path, backend, **limits_of(args)).restored()


def _of_sizes(nbytes: int, stored_nbytes: int, encoded: bool) -> dict[str, Any]:
    """The report of one file."""
    sizes = [size_text(nbytes), size_text(stored_nbytes)]
    line = " -> ".join(sizes if encoded else sizes[::-1])
    report: dict[str, Any] = {"nbytes": nbytes, "stored_nbytes": stored_nbytes}
    if encoded:
        line += f" ({percent_text(stored_nbytes, nbytes)})"
        report["ratio"] = stored_nbytes / nbytes if nbytes else None
    return {"line": line, **report}


def of_files(report: Report, done: str) -> dict[str, Any]:
    """The report of a directory; `done` is ``"encoded"``, ``"decoded"`` or ``"good"``."""
    counts = [f"{report.n_coded} file{'s' * (report.n_coded != 1)} {done}"]
    counts += [f"{report.n_copied} copied"] if report.n_copied else []
    counts += (
        [f"{report.n_skipped} of these {report.n_coded + report.n_copied} done before"]
        if report.n_skipped
        else []
    )
    sizes = _of_sizes(report.nbytes, report.stored_nbytes, done == "encoded")
    return {
        "line": f"{', '.join(counts)}, {sizes['line']}",
        **asdict(report),
        **{k: v for k, v in sizes.items() if k == "ratio"},
    }


def _run_plan(args: argparse.Namespace, plan: DirectoryPlan, done: str) -> dict[str, Any]:
    """Convert a directory, here or on other machines."""
    with progress_of(args, plan.nbytes) as progress:
        if args.workers is None:
            return of_files(plan.run(progress), done)
        from wcodec.fleet.conversion import spread

        report = of_files(spread(plan, args.workers.runner, progress), done)
    return _of_shard(args, report, plan.is_complete)


def _run_file(
    args: argparse.Namespace, job: FileTask, target: str, key: dict[str, Any], backend: Backend
) -> dict[str, Any]:
    """Convert a file on other machines, or this process's part of it."""
    from wcodec.fleet.conversion import convert_file

    how = {**_how(args), "shard": args.shard}
    with progress_of(args, job.nbytes) as progress:
        sizes = convert_file(
            job, place_of(target), key, args.workers.runner, backend, progress, **how
        )
    return _of_shard(args, _of_sizes(*sizes, encoded=not job.decodes), any(sizes))


def _of_shard(args: argparse.Namespace, report: dict[str, Any], complete: bool) -> dict[str, Any]:
    """A report, with what is to be said of several processes."""
    report |= {**args.workers.report(), "complete": complete}
    if not complete:
        report["line"] += ", and other processes have not done their parts yet"
    return report


# ---- encode --------------------------------------------------------------------------------------
def encode(args: argparse.Namespace) -> int:
    """`wcodec encode`."""
    options = options_of(args)
    take_output(args)
    if args.form == "hub" and args.base is not None:
        args.error("--base is for --form wcodec: there is no hub form of differences")

    def encode_input(source: str, target: str, backend: Backend) -> dict[str, Any]:
        is_folder = kind_of(source) is InputKind.DIRECTORY
        form = {"form": args.form} if is_folder or args.form != "wcodec" else {}
        if is_folder:
            how = args.form, options, backend, args.base, args.force, args.fsync, args.shard
            plan = plan_encode(source, target, *how)
            return _run_plan(args, plan, "encoded") | form
        if args.workers is not None:
            job = encoding_task(source, args.form, options, args.base)
            key = {"run": "encode", "form": args.form, "options": asdict(options)}
            return _run_file(args, job, target, key, backend) | form
        nbytes = 0 if is_pipe(source) else size_of(source)
        with progress_of(args, nbytes + base_nbytes(args.base)) as progress:
            sizes = encode_one(
                source, target, args.form, options, backend, progress, args.base, **_how(args)
            )
        return _of_sizes(*sizes, encoded=True) | form

    return _convert(
        args,
        lambda name: name if args.form == "hub" else name.removesuffix(PLAIN) + CODED,
        encode_input,
        (_plain, _coded),
    )


# ---- decode --------------------------------------------------------------------------------------
def decode(args: argparse.Namespace) -> int:
    """`wcodec decode`."""

    take_output(args)
    check_hub_options(args)

    def decode_input(source: str, target: str, backend: Backend) -> dict[str, Any]:
        kind = kind_of(source)
        if kind is InputKind.DIRECTORY:
            plan = plan_decode(
                source,
                target,
                backend,
                base=args.base,
                shard=args.shard,
                **_how(args),
                **limits_of(args),
            )
            check_plan_room(plan)
            return _run_plan(args, plan, "decoded")
        if args.workers is not None:
            is_hub = kind is InputKind.SAFETENSORS
            job = decoding_task(source, is_hub, backend, args.base, args.raw, **limits_of(args))
            return _run_file(args, job, target, {"run": "decode", "raw": args.raw}, backend)
        if kind is InputKind.SAFETENSORS:
            with progress_of(args, hub_nbytes(args, source, backend)) as progress:
                sizes = decode_hub_file(
                    source, target, backend, progress, **_how(args), **limits_of(args)
                )
        else:
            total = decoded_nbytes(args, source, backend) + base_nbytes(args.base)
            more: dict[str, Any] = {"raw": args.raw, "base": args.base, **_how(args)}
            with progress_of(args, total) as progress:
                sizes = decode_file(source, target, backend, progress, **more, **limits_of(args))
        return _of_sizes(*sizes[::-1], encoded=False)

    return _convert(
        args,
        lambda name: name if name.endswith(PLAIN) else name.removesuffix(CODED) + PLAIN,
        decode_input,
        (_coded, _plain),
    )


def check_hub_options(args: argparse.Namespace) -> None:
    """Leaves with 2 where an option is for ``.wcodec`` files alone,
    and an input is something else.
    """
    for path in args.inputs:
        if kind_of(path) is InputKind.WCODEC:
            continue
        for option in ("raw", "explain", "plot"):
            if getattr(args, option, None):
                args.error(f"--{option} is for .wcodec files; {path} is none")
        if args.base is not None and not place_of(path).is_dir():
            args.error(f"--base is for .wcodec files; {path} is none")


def hub_nbytes(args: argparse.Namespace, path: str, backend: Backend) -> int:
    """What progress counts up to; 0 where none is shown."""
    return HubFile(path, backend, **limits_of(args)).nbytes if sys.stderr.isatty() else 0


# ---- repack --------------------------------------------------------------------------------------
def repack(args: argparse.Namespace) -> int:
    """`wcodec repack`."""
    from wcodec.files.repack import repack_file

    options = options_of(args)
    take_output(args)

    def repack_input(source: str, target: str, backend: Backend) -> dict[str, Any]:
        more: dict[str, Any] = {**_how(args), **limits_of(args)}
        with progress_of(args, decoded_nbytes(args, source, backend)) as progress:
            nbytes, stored_nbytes = repack_file(
                source, target, options, backend, progress, args.base, **more
            )
        line = (
            f"{size_text(nbytes)} -> {size_text(stored_nbytes)} "
            f"({percent_text(stored_nbytes, nbytes)})"
        )
        return {"line": line, "nbytes": nbytes, "stored_nbytes": stored_nbytes}

    return _convert(args, lambda name: name, repack_input, (_coded, _coded))
