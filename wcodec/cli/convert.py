"""`wcodec encode`, `decode` and `repack`: files and directories of models to and fro."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from wcodec.backends import Backend
from wcodec.cli.common import (
    DONE,
    backend_of,
    base_nbytes,
    decoded_nbytes,
    each,
    in_directory,
    plan_outputs,
    progress_of,
    say,
    typed,
)
from wcodec.directories import check_plan_room, encode_one, plan_decode, plan_encode
from wcodec.errors import DecodeError, EncodeError, in_file
from wcodec.files import File, decode_file, is_same_stream
from wcodec.hub import HubFile, decode_hub_file, is_coded, is_hub
from wcodec.jobs import Report
from wcodec.outputs import map_file
from wcodec.reference.plan_options import OPERANDS, EncodeOptions
from wcodec.report import percent_text, size_text

PLAIN, CODED = ".safetensors", ".wcodec"


def is_directory_or_hub(path: str) -> bool:
    """Whether an input is a directory, or a safetensors file, which may be in hub form."""
    return os.path.isdir(path) or (os.path.isfile(path) and not is_coded(path) and (path.endswith(PLAIN) or is_hub(path)))


def _swapped(name: str, old: str, new: str) -> str:
    return name.removesuffix(old) + new


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
    """Leaves with 2 where ``--rm`` would remove what decoding needs, or more than what was encoded."""
    if args.rm:
        for path in args.inputs:
            if os.path.isdir(path):
                args.error(f"--rm is for files: {path} may hold more than what goes into the output; `wcodec verify` it, then remove it")
            if args.base and os.path.exists(path) and os.path.exists(args.base) and os.path.samefile(path, args.base):
                args.error(f"--rm would remove the base: {path}")


def _convert(args: argparse.Namespace, name_of: Callable[[str], str], work: Callable[[str, str, Backend], dict[str, Any]]) -> int:
    """Make an output of each input.

    Parameters
    ----------
    name_of
        As of `plan_outputs`.
    work
        Makes the output of an input, both by their paths; returns what there is to report. ``line`` says it in words.
    """
    _check_removal(args)
    outputs, backend = plan_outputs(args, name_of), backend_of(args)

    def convert(source: str) -> int:
        target, start = outputs.targets[source], time.perf_counter()
        with in_directory(source):
            # of a link to a file, what it points at is replaced, not the link
            report = work(source, os.path.realpath(target) if os.path.islink(target) and not os.path.isdir(source) else target, backend)
        if args.rm:
            _remove(args, source, target, backend)
            report["removed"] = True
        seconds, line = time.perf_counter() - start, report.pop("line")
        removed = f", removed {typed(source)}" if args.rm else ""
        about = {"input": source, "output": target, **report, "seconds": seconds, "backend": backend.name}
        say(args, f"{typed(source)} -> {typed(target)}: {line}, {seconds:.1f} s{removed}", about)
        return DONE

    with outputs.made():
        return each(outputs.targets, convert)


def _remove(args: argparse.Namespace, source: str, target: str, backend: Backend) -> None:
    """Remove an input whose output holds the same.

    Raises
    ------
    DecodeError
        It does not.
    """
    raw = getattr(args, "raw", False)
    if not is_same_stream(_contents(source, backend, args.base, raw), _contents(target, backend, args.base, raw)):
        with in_file(target):
            raise DecodeError("bad_value", f"it does not hold what {source!r} does, which stays")
    os.unlink(source)


def _contents(path: str, backend: Backend, base: str | None, raw: bool) -> Iterator[Any]:
    """The plain file that a file holds, whatever its form."""
    if is_coded(path):
        with File(path, backend, base=base) as f:
            yield from f.restored(raw)
    elif is_hub(path):
        yield from HubFile(path, backend).restored()
    else:
        yield memoryview(map_file(path))


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
    counts += [f"{report.n_skipped} of these {report.n_coded + report.n_copied} done before"] if report.n_skipped else []
    sizes = _of_sizes(report.nbytes, report.stored_nbytes, done == "encoded")
    return {"line": f"{', '.join(counts)}, {sizes['line']}", **asdict(report), **{k: v for k, v in sizes.items() if k == "ratio"}}


# ---- encode ------------------------------------------------------------------------------------------------------------------
def encode(args: argparse.Namespace) -> int:
    """`wcodec encode`."""
    options = options_of(args)
    if args.form == "hub" and args.base is not None:
        args.error("--base is for --form wcodec: there is no hub form of differences")

    def work(source: str, target: str, backend: Backend) -> dict[str, Any]:
        form = {} if args.form == "wcodec" and not os.path.isdir(source) else {"form": args.form}
        if os.path.isdir(source):
            plan = plan_encode(source, target, args.form, options, backend, args.base, args.force)
            with progress_of(args, plan.nbytes) as progress:
                return of_files(plan.run(progress), "encoded") | form
        with progress_of(args, os.stat(source).st_size + base_nbytes(args.base)) as progress:
            sizes = encode_one(source, target, args.form, options, backend, progress, args.base, args.force)
        return _of_sizes(*sizes, encoded=True) | form

    return _convert(args, lambda name: name if args.form == "hub" else _swapped(name, PLAIN, CODED), work)


# ---- decode ------------------------------------------------------------------------------------------------------------------
def decode(args: argparse.Namespace) -> int:
    """`wcodec decode`."""

    check_hub_options(args)

    def work(source: str, target: str, backend: Backend) -> dict[str, Any]:
        if os.path.isdir(source):
            plan = plan_decode(source, target, backend, args.max_nbytes, args.base, args.force)
            check_plan_room(plan)
            with progress_of(args, plan.nbytes) as progress:
                return of_files(plan.run(progress), "decoded")
        if is_directory_or_hub(source):
            with progress_of(args, hub_nbytes(source, backend)) as progress:
                sizes = decode_hub_file(source, target, backend, progress, args.max_nbytes, overwrite=args.force)
        else:
            with progress_of(args, decoded_nbytes(source, backend) + base_nbytes(args.base)) as progress:
                sizes = decode_file(source, target, backend, progress, args.max_nbytes, args.raw, args.base, overwrite=args.force)
        return _of_sizes(*sizes[::-1], encoded=False)

    return _convert(args, lambda name: name if name.endswith(PLAIN) else _swapped(name, CODED, PLAIN), work)


def check_hub_options(args: argparse.Namespace) -> None:
    """Leaves with 2 where an option is for ``.wcodec`` files alone, and an input is something else."""
    for path in filter(is_directory_or_hub, args.inputs):
        for option in ("raw", "explain", "plot"):
            if getattr(args, option, None):
                args.error(f"--{option} is for .wcodec files; {path} is none")
        if args.base is not None and not os.path.isdir(path):
            args.error(f"--base is for .wcodec files; {path} is none")


def hub_nbytes(path: str, backend: Backend) -> int:
    """What progress counts up to; 0 where none is shown."""
    return HubFile(path, backend).nbytes if sys.stderr.isatty() else 0


# ---- repack ------------------------------------------------------------------------------------------------------------------
def repack(args: argparse.Namespace) -> int:
    """`wcodec repack`."""
    from wcodec.repack import repack_file

    if args.coder in OPERANDS:
        args.coder, args.operand = "auto", args.coder
    options = options_of(args)

    def work(source: str, target: str, backend: Backend) -> dict[str, Any]:
        with progress_of(args, decoded_nbytes(source, backend)) as progress:
            nbytes, stored_nbytes = repack_file(source, target, options, backend, progress, args.base, overwrite=args.force)
        line = f"{size_text(nbytes)} -> {size_text(stored_nbytes)} ({percent_text(stored_nbytes, nbytes)})"
        return {"line": line, "nbytes": nbytes, "stored_nbytes": stored_nbytes}

    return _convert(args, lambda name: name, work)
