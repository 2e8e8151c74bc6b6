"""Subcommands of `wcodec` on directories, and on safetensors files in hub form."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from wcodec.backends import Backend
from wcodec.cli import DONE, _backend, _base_nbytes, _output, _progress, _say
from wcodec.directories import (
    check_plan_room,
    coded_files,
    encode_one,
    plan_decode,
    plan_encode,
    scan_coded,
    verify_directory,
)
from wcodec.errors import EncodeError
from wcodec.hub import HubFile, decode_hub_file, verify_hub_file
from wcodec.jobs import Report, check_places
from wcodec.reference.plan import EncodeOptions
from wcodec.report import percent_text, printable, size_text


def _checked_places(args: argparse.Namespace) -> None:
    """Leaves with 2 where the output is not named, or is not one for this input."""
    if args.output is None:
        args.error("name the output directory")
    try:
        check_places(args.input, args.output)
    except EncodeError as e:
        args.error(e.message)
    if os.path.exists(args.output) and not os.path.isdir(args.output):
        args.error(f"the output is not a directory: {args.output}")


def _say_report(args: argparse.Namespace, report: Report, start: float, backend: Backend, done: str) -> int:
    """Print what was done, in how many seconds; `done` is ``"encoded"``, ``"decoded"`` or ``"good"``."""
    seconds, encoded, target = time.perf_counter() - start, done == "encoded", getattr(args, "output", None)
    counts = [f"{report.n_coded} file{'s' * (report.n_coded != 1)} {done}"]
    counts += [f"{report.n_copied} copied"] if report.n_copied else []
    counts += [f"{report.n_skipped} of these {report.n_coded + report.n_copied} done before"] if report.n_skipped else []
    sizes = [size_text(report.nbytes), size_text(report.stored_nbytes)]
    line = f"{', '.join(counts)}, {' -> '.join(sizes if encoded else sizes[::-1])}"
    line += f" ({percent_text(report.stored_nbytes, report.nbytes)})" if encoded else ""
    result: dict[str, Any] = {"input": args.input, **({"good": True} if target is None else {"output": target}), **asdict(report)}
    if encoded:
        result |= {"form": args.form, "ratio": report.stored_nbytes / report.nbytes if report.nbytes else None}
    where = args.input if target is None else f"{args.input} -> {target}"
    _say(args, f"{where}: {line}, {seconds:.1f} s", {**result, "seconds": seconds, "backend": backend.name})
    return DONE


# ---- encode ------------------------------------------------------------------------------------------------------------------
def encode(args: argparse.Namespace, options: EncodeOptions) -> int:
    """`wcodec encode` of a directory, or of a file with ``--form hub``."""
    if args.form == "hub" and args.base is not None:
        args.error("--base is for --form wcodec: there is no hub form of differences")
    if not os.path.isdir(args.input):
        return _encode_file(args, options)
    _checked_places(args)
    backend, start = _backend(args), time.perf_counter()
    plan = plan_encode(args.input, args.output, args.form, options, backend, args.base)
    with _progress(args, plan.nbytes) as progress:
        report = plan.run(progress)
    return _say_report(args, report, start, backend, "encoded")


def _encode_file(args: argparse.Namespace, options: EncodeOptions) -> int:
    if args.output is None:
        args.error("name the output of --form hub")
    output, backend = _output(args, "", ""), _backend(args)
    start = time.perf_counter()
    with _progress(args, os.stat(args.input).st_size) as progress:
        nbytes, stored_nbytes = encode_one(args.input, output, "hub", options, backend, progress)
    seconds = time.perf_counter() - start
    line = f"{size_text(nbytes)} -> {size_text(stored_nbytes)} ({percent_text(stored_nbytes, nbytes)}), {seconds:.1f} s"
    _say(args, f"{args.input} -> {args.output}: {line}", {
        "input": args.input, "output": str(output), "form": "hub", "nbytes": nbytes, "stored_nbytes": stored_nbytes,
        "ratio": stored_nbytes / nbytes if nbytes else None, "seconds": seconds, "backend": backend.name,
    })  # fmt: skip
    return DONE


# ---- decode and verify -------------------------------------------------------------------------------------------------------
def _check_options(args: argparse.Namespace) -> None:
    """Leaves with 2 where an option is for ``.wcodec`` files alone."""
    if getattr(args, "raw", False):
        args.error("--raw is for one .wcodec file")
    if args.base is not None and not os.path.isdir(args.input):
        args.error("--base is for .wcodec files: there is no hub form of differences")


def decode(args: argparse.Namespace) -> int:
    """`wcodec decode` of a directory, or of a file in hub form."""
    _check_options(args)
    if not os.path.isdir(args.input):
        return _decode_file(args)
    _checked_places(args)
    backend, start = _backend(args), time.perf_counter()
    plan = plan_decode(args.input, args.output, backend, args.max_nbytes, args.base)
    check_plan_room(plan)
    with _progress(args, plan.nbytes) as progress:
        report = plan.run(progress)
    return _say_report(args, report, start, backend, "decoded")


def _decode_file(args: argparse.Namespace) -> int:
    if args.output is None:
        args.error("name the output of a file in hub form")
    output, backend = _output(args, "", ""), _backend(args)
    start = time.perf_counter()
    with _progress(args, _hub_nbytes(args.input, backend)) as progress:
        stored_nbytes, nbytes = decode_hub_file(args.input, output, backend, progress, args.max_nbytes)
    seconds = time.perf_counter() - start
    _say(args, f"{args.input} -> {args.output}: {size_text(stored_nbytes)} -> {size_text(nbytes)}, {seconds:.1f} s", {
        "input": args.input, "output": str(output), "stored_nbytes": stored_nbytes, "nbytes": nbytes,
        "seconds": seconds, "backend": backend.name,
    })  # fmt: skip
    return DONE


def _hub_nbytes(path: str, backend: Backend) -> int:
    """What a progress bar counts up to; 0 where there will be none."""
    return HubFile(path, backend).nbytes if sys.stderr.isatty() else 0


def verify(args: argparse.Namespace) -> int:
    """`wcodec verify` of a directory, or of a file in hub form."""
    _check_options(args)
    backend, start = _backend(args), time.perf_counter()
    if os.path.isdir(args.input):
        total = 0
        if sys.stderr.isatty():
            coded = coded_files(args.input, scan_coded(args.input)[0], backend, args.max_nbytes, args.base)
            total = sum(c.nbytes + (0 if c.base is None else _base_nbytes(argparse.Namespace(base=str(c.base)))) for c in coded.values())
        with _progress(args, total) as progress:
            report = verify_directory(args.input, backend, progress, args.max_nbytes, args.base)
    else:
        with _progress(args, _hub_nbytes(args.input, backend)) as progress:
            stored_nbytes, nbytes = verify_hub_file(args.input, backend, progress, args.max_nbytes)
        report = Report(1, 0, 0, nbytes, stored_nbytes)  # in the same words as of a directory
    return _say_report(args, report, start, backend, "good")


# ---- info --------------------------------------------------------------------------------------------------------------------
def info(args: argparse.Namespace) -> int:
    """`wcodec info` of a directory, or of a file in hub form: a line for each encoded file or tensor."""
    if args.explain or args.plot:
        args.error("--explain and --plot are for one .wcodec file")
    _check_options(args)
    backend = _backend(args)
    report = _describe_directory(args, backend) if os.path.isdir(args.input) else _describe_hub(args, backend)
    if args.json:
        print(json.dumps(report, indent=1))
        return DONE
    for line in _lines(report):
        print(line)
    return DONE


def _describe_directory(args: argparse.Namespace, backend: Backend) -> dict[str, Any]:
    coded = coded_files(args.input, scan_coded(args.input)[0], backend, base=args.base).values()
    keys = ("nbytes", "stored_nbytes")
    return {
        "directory": args.input,
        **{k: sum(getattr(c, k) for c in coded) for k in keys},
        "files": [{"name": c.name, "form": "hub" if c.is_hub else "wcodec", **{k: getattr(c, k) for k in keys}} for c in coded],
    }


def _describe_hub(args: argparse.Namespace, backend: Backend) -> dict[str, Any]:
    f = HubFile(args.input, backend)
    tensors = [
        {
            "name": name, "dtype": t.dtype, "shape": list(t.shape), "is_stream": t.index is not None,
            "nbytes": t.nbytes, "stored_nbytes": t.source.nbytes,
        } for name, t in f.tensors.items()
    ]  # fmt: skip
    return {"file": args.input, "form": "hub", "nbytes": f.nbytes, "stored_nbytes": f.stored_nbytes, "tensors": tensors}


def _lines(report: dict[str, Any]) -> Iterator[str]:
    rows = report["files"] if "files" in report else report["tensors"]
    sizes = f"{size_text(report['nbytes'])} -> {size_text(report['stored_nbytes'])}"
    percent = percent_text(report["stored_nbytes"], report["nbytes"])
    if "files" in report:
        yield f"{printable(report['directory'])}: a directory with {len(rows)} encoded file{'s' * (len(rows) != 1)}, {sizes} ({percent})"
    else:
        n = sum(r["is_stream"] for r in rows)
        yield f"{printable(report['file'])}: hub form, {len(rows)} tensors, {n} of them encoded, {sizes} ({percent})"
    for r in rows:
        what = r["form"] if "form" in r else f"{r['dtype']} {'x'.join(map(str, r['shape'])) or 'scalar'}"
        how = percent_text(r["stored_nbytes"], r["nbytes"]) if r.get("is_stream", True) else "as it is"
        yield f"  {printable(r['name'])}  {printable(what)}  {size_text(r['nbytes'])} -> {size_text(r['stored_nbytes'])}  {how}"
