"""The arguments of `wcodec chain`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final

from wcodec.cli.common import path_argument
from wcodec.cli.options import add_command, add_json, add_limits, add_report, positive


def add_chain(s: argparse.ArgumentParser) -> None:
    """Its actions, each with arguments of its own."""
    actions = s.add_subparsers(metavar="ACTION", required=True, help="what to do")
    for name, (function, add_options, text) in ACTIONS.items():
        a = add_command(actions, name, text, f"chain.{function}")
        text = "the directory of the chain, or a URL that fsspec knows, such as s3://bucket/run"
        a.add_argument("chain", metavar="RUN", type=path_argument, help=text)
        add_options(a)


def _add_add(a: argparse.ArgumentParser) -> None:
    text = "a safetensors file, or a .wcodec file: the tensors of the version"
    a.add_argument("input", metavar="FILE", type=path_argument, help=text)
    text = "write a full checkpoint, also where a delta is small"
    a.add_argument("--full", action="store_true", default=None, help=text)
    text = "a text to keep with it, besides those of the file; may be given again"
    a.add_argument("--metadata", metavar="K=V", type=_text, action="append", default=[], help=text)
    add_report(a)
    add_limits(a)


def _add_list(a: argparse.ArgumentParser) -> None:
    add_json(a)


def _add_get(a: argparse.ArgumentParser) -> None:
    _add_version(a)
    text = "OUT.safetensors becomes a safetensors file, any other name a .wcodec file"
    a.add_argument("-o", "--output", metavar="OUT", type=path_argument, required=True, help=text)
    a.add_argument("-f", "--force", action="store_true", help="replace the output, if it exists")
    text = "do not wait until the output is on the disk"
    a.add_argument("--no-fsync", dest="fsync", action="store_false", help=text)
    add_report(a)
    add_limits(a)


def _add_verify(a: argparse.ArgumentParser) -> None:
    add_report(a)
    add_limits(a)


def _add_prune(a: argparse.ArgumentParser) -> None:
    text = "the newest N versions stay; the newest one always does"
    a.add_argument("--keep-last", metavar="N", type=positive, help=text)
    text = "versions whose number is a multiple of K stay"
    a.add_argument("--keep-every", metavar="K", type=positive, help=text)
    text = "these versions stay"
    a.add_argument("--keep", metavar="V,V", type=_numbers, default=[], help=text)
    add_report(a)


def _add_pack(a: argparse.ArgumentParser) -> None:
    _add_version(a)
    add_report(a)
    add_limits(a)


def _add_version(a: argparse.ArgumentParser) -> None:
    text = "the number of a version (default: the newest)"
    a.add_argument("version", metavar="VERSION", nargs="?", type=positive, help=text)


#: Actions: the function of `wcodec.cli.chain`, what adds options, the help.
ACTIONS: Final[dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], str]]] = {
    "add": ("add", _add_add, "add a version: what it differs in, or a full checkpoint"),
    "list": ("list_versions", _add_list, "list the versions"),
    "get": ("get", _add_get, "write a version to a file"),
    "verify": ("verify", _add_verify, "decode all files, check every checksum and content hash"),
    "prune": ("prune", _add_prune, "let versions go, and files that nothing needs"),
    "pack": ("pack", _add_pack, "make a version a full checkpoint"),
}


def _text(text: str) -> tuple[str, str]:
    key, is_one, value = text.partition("=")
    if not is_one:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    return key, value


def _numbers(text: str) -> list[int]:
    return [positive(number) for number in text.split(",")]
