"""`wcodec verify`, `info` and `backends`: what files and directories hold,
and what this machine can run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wcodec.backends import Backend, backend_names, load_backend
from wcodec.cli.common import (
    BAD_INPUT,
    DONE,
    backend_of,
    base_nbytes,
    decoded_nbytes,
    each,
    fail,
    in_directory,
    limits_of,
    progress_of,
    say,
    show,
    typed,
)
from wcodec.cli.convert import check_hub_options, hub_nbytes, of_files
from wcodec.cli.fleets import say_more, workers_of
from wcodec.cli.outputs import check_target
from wcodec.codec.urls import place_of, size_of, url_of
from wcodec.directories.decoding import coded_files, scan_coded, verify_directory
from wcodec.directories.hub_header import InputKind, kind_of
from wcodec.directories.hub_reading import HubFile, verify_hub_file
from wcodec.directories.tasks import Report
from wcodec.errors import BackendUnavailable
from wcodec.files.atomic import atomic_output
from wcodec.files.checkpoint import verify_file
from wcodec.files.file import File
from wcodec.files.shard_index import CODED, PLAIN
from wcodec.inspect.report import percent_text, printable, size_text


# ---- verify --------------------------------------------------------------------------------------
def verify(args: argparse.Namespace) -> int:
    """`wcodec verify`."""
    check_hub_options(args)
    if args.report:
        check_target(args, "the report", args.report, args.inputs)
    backend, reports = backend_of(args), list[dict[str, Any]]()

    def check(source: str) -> int:
        start = time.perf_counter()
        with in_directory(source):
            of_many = args.workers is not None or (url_of(source) and place_of(source).is_dir())
            report = (
                _all_verified(args, source, backend)
                if of_many
                else _verified(args, source, backend)
            )
        seconds, line = time.perf_counter() - start, report.pop("line")
        about = {
            "input": source,
            "good": True,
            **report,
            "seconds": seconds,
            "backend": backend.name,
        }
        reports.append(about)
        say(args, f"{typed(source)}: {line}, {seconds:.1f} s", about)
        for bad in (f for f in report.get("files", []) if f["error"]):
            fail(f"{source}: {bad['file']}: {bad['error']}")
        return DONE if about["good"] else BAD_INPUT

    with workers_of(args, backend) as args.workers:
        status = each(args.inputs, check)
        say_more(args)
    if args.report:
        with atomic_output(args.report, overwrite=args.force) as f:
            f.write(json.dumps(reports, indent=1).encode())
    return status


def _all_verified(args: argparse.Namespace, source: str, backend: Backend) -> dict[str, Any]:
    """A directory, by many workers or at a URL; or one file, by a worker."""
    from wcodec.fleet.running import in_this_process
    from wcodec.fleet.verification import verify_all

    workers, place, total = args.workers, place_of(source), 0
    if sys.stderr.isatty():
        paths = scan_coded(source).files.values() if place.is_dir() else [place]
        total = sum(size_of(p) for p in paths if p.name.endswith((PLAIN, CODED)))
    with progress_of(args, total) as progress:
        runner = in_this_process(backend) if workers is None else workers.runner
        found = verify_all(source, runner, progress, args.base, args.max_memory, args.shard)
    coded = [f for f in found if f.form != "plain"]
    bad = sum(not f.good for f in found)
    sizes = sum(f.stored_nbytes for f in coded), sum(f.nbytes for f in coded)
    line = (
        f"{len(coded)} file{'s' * (len(coded) != 1)} verified, {bad} bad"
        if bad
        else (f"{len(coded)} file{'s' * (len(coded) != 1)} good")
    )
    return {
        "line": f"{line}, {size_text(sizes[0])} -> {size_text(sizes[1])}",
        "good": not bad,
        "n_coded": len(coded),
        "n_bad": bad,
        "stored_nbytes": sizes[0],
        "nbytes": sizes[1],
        "files": [{**f._asdict(), "good": f.good} for f in found],
        **({} if workers is None else workers.report()),
    }


def _verified(args: argparse.Namespace, source: str, backend: Backend) -> dict[str, Any]:
    kind = kind_of(source)
    if kind is InputKind.DIRECTORY:
        total = 0
        if sys.stderr.isatty():
            files = scan_coded(source).files
            coded = coded_files(source, files, backend, base=args.base, **limits_of(args))
            total = sum(
                c.nbytes + (0 if c.base is None else base_nbytes(str(c.base)))
                for c in coded.values()
            )
        with progress_of(args, total) as progress:
            return of_files(
                verify_directory(source, backend, progress, base=args.base, **limits_of(args)),
                "good",
            )
    if kind is InputKind.SAFETENSORS:
        with progress_of(args, hub_nbytes(args, source, backend)) as progress:
            stored_nbytes, nbytes = verify_hub_file(source, backend, progress, **limits_of(args))
        # in the same words as of a directory
        return of_files(Report(1, 0, 0, nbytes, stored_nbytes), "good")
    total = decoded_nbytes(args, source, backend) + base_nbytes(args.base)
    with progress_of(args, total) as progress:
        stored_nbytes, nbytes = verify_file(
            source, backend, progress, base=args.base, **limits_of(args)
        )
    line = f"good, {size_text(stored_nbytes)} -> {size_text(nbytes)}"
    return {"line": line, "stored_nbytes": stored_nbytes, "nbytes": nbytes}


# ---- info ----------------------------------------------------------------------------------------
def info(args: argparse.Namespace) -> int:
    """`wcodec info`."""
    if args.plot and not args.explain:
        args.error("--plot needs --explain")
    if args.plot and len(args.inputs) > 1:
        args.error("--plot is of one file")
    if args.explain and args.bound is False:
        args.error("--explain decodes all tensors; it has no --no-bound")
    check_hub_options(args)
    backend = backend_of(args)

    def describe(source: str) -> int:
        with in_directory(source):
            kind = kind_of(source)
            if kind is InputKind.DIRECTORY:
                report = _describe_directory(args, source, backend)
                show(args, report, _lines(report))
            elif kind is InputKind.SAFETENSORS:
                report = _describe_hub(args, source, backend)
                show(args, report, _lines(report))
            else:
                return (
                    _explain(args, source, backend)
                    if args.explain
                    else _describe_file(args, source, backend)
                )
        return DONE

    return each(args.inputs, describe)


def _describe_file(args: argparse.Namespace, source: str, backend: Backend) -> int:
    from wcodec.inspect.report import as_text, describe

    with (
        File(source, backend, base=args.base, **limits_of(args)) as f,
        progress_of(args, 0 if args.bound is False else f.index.data_nbytes) as progress,
    ):
        report = {"file": source, **describe(f, args.bound, progress)}
    heading = [f"{typed(source)}:"] if len(args.inputs) > 1 else []
    show(args, report, [*heading, *as_text(report)])
    return DONE


def _explain(args: argparse.Namespace, source: str, backend: Backend) -> int:
    from wcodec.inspect.explain import as_text, explain_file, figure_class, plot

    if args.plot:
        try:
            figure_class()
        except ImportError as e:
            return fail(str(e))
    with File(source, backend, base=args.base, **limits_of(args)) as f:
        if args.plot:
            check_target(args, "the figure", args.plot, [Path(source), *f.base_paths()])
        with progress_of(args, f.index.data_nbytes) as progress:
            report = explain_file(f, progress)
    if args.plot:
        plot(report, args.plot, args.force)
    show(args, report, as_text(report))
    return DONE


def _describe_directory(args: argparse.Namespace, source: str, backend: Backend) -> dict[str, Any]:
    files = scan_coded(source).files
    coded = coded_files(source, files, backend, base=args.base, **limits_of(args)).values()
    keys = ("nbytes", "stored_nbytes")
    return {
        "directory": source,
        **{k: sum(getattr(c, k) for c in coded) for k in keys},
        "files": [
            {
                "name": c.name,
                "form": "hub" if c.is_hub else "wcodec",
                **{k: getattr(c, k) for k in keys},
            }
            for c in coded
        ],
    }


def _describe_hub(args: argparse.Namespace, source: str, backend: Backend) -> dict[str, Any]:
    f = HubFile(source, backend, **limits_of(args))
    tensors = [
        {
            "name": name, "dtype": t.dtype, "shape": list(t.shape),
            "is_stream": t.index is not None, "nbytes": t.nbytes, "stored_nbytes": t.source.nbytes,
        } for name, t in f.tensors.items()
    ]  # fmt: skip
    return {
        "file": source,
        "form": "hub",
        "nbytes": f.nbytes,
        "stored_nbytes": f.stored_nbytes,
        "tensors": tensors,
    }


def _lines(report: dict[str, Any]) -> Iterator[str]:
    rows = report["files"] if "files" in report else report["tensors"]
    sizes = f"{size_text(report['nbytes'])} -> {size_text(report['stored_nbytes'])}"
    percent = percent_text(report["stored_nbytes"], report["nbytes"])
    if "files" in report:
        yield (
            f"{typed(report['directory'])}: a directory with {len(rows)} encoded "
            f"file{'s' * (len(rows) != 1)}, {sizes} ({percent})"
        )
    else:
        n = sum(r["is_stream"] for r in rows)
        yield (
            f"{typed(report['file'])}: hub form, {len(rows)} tensors, {n} of them encoded, "
            f"{sizes} ({percent})"
        )
    for r in rows:
        what = (
            r["form"]
            if "form" in r
            else f"{r['dtype']} {'x'.join(map(str, r['shape'])) or 'scalar'}"
        )
        how = (
            percent_text(r["stored_nbytes"], r["nbytes"])
            if r.get("is_stream", True)
            else "as it is"
        )
        yield (
            f"  {printable(r['name'])}  {printable(what)}  {size_text(r['nbytes'])} -> "
            f"{size_text(r['stored_nbytes'])}  {how}"
        )


# ---- backends ------------------------------------------------------------------------------------
def backend_rows(args: argparse.Namespace, used: Backend | None) -> list[dict[str, Any]]:
    """What is known of each backend, and of one that ``--backend`` names by its class."""
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(
        [*backend_names(), *([args.backend] if args.backend and ":" in args.backend else [])]
    ):
        row = {"name": name, "usable": False, "used": False, "reason": "", "info": {}}
        try:
            backend = load_backend(name, args.threads)
            row |= {"info": _info_of(backend), "usable": True, "used": backend is used}
        except BackendUnavailable as e:
            row["reason"] = str(e)
        rows.append(row)
    return rows


def _info_of(backend: Backend) -> dict[str, str]:
    """What a backend says of itself; one that cannot is not usable."""
    try:
        return backend.info()
    except Exception as e:
        raise BackendUnavailable(f"its info() raised {type(e).__name__}: {e}") from e


def backends(args: argparse.Namespace) -> int:
    """`wcodec backends`."""
    rows = backend_rows(args, backend_of(args))
    if args.json:
        print(json.dumps(rows, indent=1))
        return DONE
    for row in rows:
        detail = (
            ", ".join(f"{k} {v}" for k, v in row["info"].items())
            if row["usable"]
            else f"not usable: {row['reason']}"
        )
        print(f"{'*' if row['used'] else ' '} {row['name']:<12} {detail}".rstrip())
    print("* is in use; --backend and WCODEC_BACKEND choose another")
    return DONE
