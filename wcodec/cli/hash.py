"""`wcodec hash`: what files hold as one number, to be signed or compared. Spec: 11.1."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from wcodec.backends import Backend
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
    typed,
)
from wcodec.codec.urls import place_of, size_of
from wcodec.directories.content import content_sha256
from wcodec.directories.decoding import scan_coded
from wcodec.directories.hub_header import is_coded
from wcodec.errors import DecodeError, named, within
from wcodec.files.shard_index import CODED, PLAIN

#: as of sha256sum, which escapes names with line ends
_LINE = re.compile(r"(\\?)([0-9a-f]{64}) [ *](.+)")
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}


def hash(args: argparse.Namespace) -> int:
    """`wcodec hash`."""
    if bool(args.inputs) == (args.check is not None):
        args.error("name files to hash, or a file of --check")
    backend = backend_of(args)
    if args.check is not None:
        return _check(args, backend)

    def hash_input(source: str) -> int:
        if not place_of(source).is_dir():
            return hash_file(source)
        with in_directory(source):
            paths = [
                str(p) for n, p in scan_coded(source).files.items() if n.endswith((PLAIN, CODED))
            ]
            if not paths:
                raise DecodeError("bad_magic", f"there are no weights in {source!r}")
        return each(paths, hash_file)

    def hash_file(path: str) -> int:
        digest = _sha256(args, path, backend)
        name = "".join(_ESCAPES.get(c, c) for c in path)
        _say(args, f"{'' if name == path else chr(92)}{digest}  {name}", file=path, sha256=digest)
        return DONE

    return each(args.inputs, hash_input)


def _sha256(args: argparse.Namespace, path: str, backend: Backend) -> str:
    nbytes = size_of(path)
    if is_coded(path):
        nbytes = decoded_nbytes(args, path, backend) + base_nbytes(args.base)
    with progress_of(args, nbytes) as progress:
        return content_sha256(
            path, args.base, backend=backend, progress=progress, **limits_of(args)
        )


def _say(args: argparse.Namespace, line: str, **report: Any) -> None:
    with named("standard output"):
        print(json.dumps(report) if args.json else line)
        sys.stdout.flush()


# ---- --check -------------------------------------------------------------------------------------
def _check(args: argparse.Namespace, backend: Backend) -> int:
    """Compare the files that the lines of a file name. Those names may be of another form."""
    wrong = list[str]()

    def check(due: str, path: str) -> int:
        found = _sha256(args, path, backend)
        good = found == due
        if not good:
            wrong.append(path)
        if not (good and args.quiet):
            line = f"{typed(path)}: {'OK' if good else 'FAILED'}"
            _say(args, line, file=path, good=good, sha256=found)
        return DONE if good else BAD_INPUT

    status = DONE
    for due, name in list(_lines(args.check)):
        status = max(status, each([_there(name)], partial(check, due)))
    if wrong:
        fail(f"{len(wrong)} of the files of {args.check!r} hold something else: {wrong[0]!r}")
    return status


def _lines(path: str) -> Iterator[tuple[str, str]]:
    """Digest and name of each line.

    Raises
    ------
    DecodeError
        ``bad_value``
    """
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as f, within(path):
        n = 0
        for n, line in enumerate(f, 1):
            found = _LINE.fullmatch(line.removesuffix("\n").removesuffix("\r"))
            if found is None:
                raise DecodeError("bad_value", f"line {n} is no SHA-256, two spaces and a name")
            yield found[2], _unescaped(found[3]) if found[1] else found[3]
        if not n:
            raise DecodeError("bad_value", "it has no line")


def _unescaped(name: str) -> str:
    plain = {escaped: c for c, escaped in _ESCAPES.items()}
    return re.sub(r"\\.", lambda m: plain.get(m[0], m[0]), name)


def _there(name: str) -> str:
    """The file of a name, or where there is none, the one that encoding or decoding makes of it."""
    for old, new in ((PLAIN, CODED), (CODED, PLAIN)):
        other = name.removesuffix(old) + new
        if name.endswith(old) and not os.path.exists(name) and os.path.exists(other):
            return other
    return name
