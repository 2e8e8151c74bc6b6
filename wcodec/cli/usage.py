"""`wcodec du`: what is in directories and at URLs, and how much of it could be saved."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from wcodec.cli.common import BAD_INPUT, DONE, backend_of, fail, limits_of, progress_of, show, typed
from wcodec.inspect.report import percent_text, printable, size_text, table_text
from wcodec.inspect.sampling import SAMPLE_NBYTES
from wcodec.inspect.usage import usage

_FORMS: Final = {
    "wcodec": ".wcodec",
    "hub": "safetensors, hub form",
    "safetensors": "safetensors",
    "other": "other files",
    "unreadable": "not readable",
}
_MOST: Final = 10  #: rows of a list; --json has more
_FEW: Final = 4  #: files of a row


def du(args: argparse.Namespace) -> int:
    """`wcodec du`."""
    if args.pairs is not None and not args.sampled:
        args.error("--pairs is of samples, which --no-sample leaves out")
    more = {} if args.pairs is None else {"max_pairs": args.pairs}
    report = usage(
        args.places,
        backend_of(args),
        full=args.full,
        sampled=args.sampled,
        progresses=partial(progress_of, args),
        **limits_of(args),
        **more,
    )
    for e in report["errors"]:
        where = e["file"] if e["code"] is None else f"{e['code']}: in {e['file']!r}"
        fail(f"{where}: {e['error']}")
    show(args, report, _lines(report))
    return BAD_INPUT if report["errors"] else DONE


def _lines(report: dict[str, Any]) -> Iterator[str]:
    places = ", ".join(map(typed, report["places"]))
    yield f"{places}: {_count(report['n_files'], 'file')}, {_sizes(report)}"
    yield ""
    rows = [["", "files", "tensors", "decoded", "stored", "stored/decoded"]]
    for form, of in report["forms"].items():
        if of["n_files"]:
            is_known = form not in ("other", "unreadable")
            tensors = str(of["n_tensors"]) if is_known else ""
            rows.append([_FORMS[form], str(of["n_files"]), tensors, *_cells(of, is_known)])
    yield from table_text(rows)
    if report["dtypes"]:
        yield ""
        rows = [["dtype", "tensors", "decoded", "stored", "stored/decoded"]]
        rows += [
            [printable(k), str(of["n_tensors"]), *_cells(of)] for k, of in report["dtypes"].items()
        ]
        yield from table_text(rows)
    if any(report["forms"][form]["n_files"] for form in ("wcodec", "hub", "safetensors")):
        yield ""
        yield from _duplicates(report["duplicates"])
        if report["bases"] is not None:
            yield ""
            yield from _bases(report["bases"])


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _sizes(of: dict[str, Any]) -> str:
    return f"{size_text(of['nbytes'])} in {size_text(of['stored_nbytes'])}"


def _cells(of: dict[str, Any], is_known: bool = True) -> list[str]:
    nbytes, stored = of["nbytes"], of["stored_nbytes"]
    return [
        size_text(nbytes) if is_known else "",
        size_text(stored),
        percent_text(stored, nbytes) if is_known else "",
    ]


# ---- what is there more than once ----------------------------------------------------------------
def _duplicates(of: dict[str, Any]) -> Iterator[str]:
    how = "SHA-256" if of["compared_by"] == "sha256" else "CRC-32s of the files' indexes"
    yield f"held more than once, by {how}:"
    for key, where in (("between", "by several files"), ("within", "within a file")):
        found = of[key]
        what = f"{_count(found['n_tensors'], 'tensor')}, {_sizes(found)}"
        line = f"  {where}: {what if found['n_tensors'] else 'nothing'}"
        weak = found["nbytes_by_proof"].get("crc32", 0)
        yield line + (f"; {size_text(weak)} of it by a single CRC-32" if weak else "")
    left_out = of["not_compared"]
    if left_out["n_tensors"]:
        yield (
            f"  not compared: {_count(left_out['n_tensors'], 'tensor')} without a CRC-32, "
            f"{size_text(left_out['nbytes'])}"
            + ("" if of["compared_by"] == "sha256" else "; --full reads them")
        )
    for group in of["groups"][:_MOST]:
        files = ", ".join(map(typed, group["files"][:_FEW]))
        n_more = len(group["files"]) - _FEW
        files += f" and {_count(n_more, 'other file')}" if n_more > 0 else ""
        renamed = group["n_renamed"]
        names = f", {renamed} of them under several names" if renamed else ""
        yield f"  {_count(group['n_tensors'], 'tensor')}, {_sizes(group)}{names}: {files}"
    yield from _more(of["n_groups"] - _MOST)


def _more(n: int) -> Iterator[str]:
    if n > 0:
        yield f"  and {n} more; --json has more of them"


# ---- what bases would save -----------------------------------------------------------------------
def _bases(of: dict[str, Any]) -> Iterator[str]:
    if not of["pairs"] and not of["n_failed"]:
        yield "no two files share names, dtypes and shapes of most tensors: no base would help"
        return
    yield (
        f"as differences from a base, estimated from up to {size_text(SAMPLE_NBYTES)} of each "
        f"file: {_saved(of['saved_nbytes'])}"
    )
    ranked = sorted(of["pairs"], key=lambda p: -p["saved_nbytes"])
    for p in ranked[:_MOST]:
        alone = (
            "" if p["alone_nbytes"] == p["now_nbytes"]
            else f", {size_text(p['alone_nbytes'])} without a base"
        )  # fmt: skip
        yield (
            f"  {typed(p['file'])}: {size_text(p['now_nbytes'])} now, "
            f"{size_text(p['with_base_nbytes'])} with the base {typed(p['base'])}{alone}: "
            f"{_saved(p['saved_nbytes'])}"
        )
    yield from _more(len(ranked) - _MOST)
    if of["n_left_out"]:
        yield f"  {_count(of['n_left_out'], 'file')} not sampled; --pairs takes more"


def _saved(nbytes: int) -> str:
    return f"saves {size_text(nbytes)}" if nbytes > 0 else "saves nothing"
