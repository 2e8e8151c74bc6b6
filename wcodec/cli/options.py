"""Arguments that several subcommands of `wcodec` take, and their values."""

from __future__ import annotations

import argparse
from typing import Any

from wcodec.cli.common import STATUSES, Parser
from wcodec.reference.memory import nbytes_of


def global_options(default: Any = argparse.SUPPRESS) -> Parser:
    """Options that may stand before or after the subcommand;
    after it they must not bring their defaults along.
    """
    p = Parser(prog="wcodec", add_help=False, allow_abbrev=False)
    g = p.add_argument_group("global options")
    text = (
        "a name out of `wcodec backends`, or package.module:Class (default: "
        "$WCODEC_BACKEND or auto)"
    )
    g.add_argument("--backend", metavar="NAME", default=default, help=text)
    g.add_argument(
        "--threads",
        metavar="N",
        type=positive,
        default=default,
        help="CPU threads (default: $WCODEC_THREADS or one a core)",
    )
    g.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0 if default is None else default,
        help="say on stderr what is done",
    )
    return p


def add_command(commands: Any, name: str, text: str, run: str) -> argparse.ArgumentParser:
    """A parser of one more subcommand, or of an action of one.

    Parameters
    ----------
    commands
        What `add_subparsers` gave.
    text
        Its help.
    run
        The function that does it, as ``module.function`` of `wcodec.cli`.
    """
    s: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=STATUSES,
        parents=[global_options()],
        allow_abbrev=False,
    )
    s.set_defaults(run=run, error=s.error)
    return s


def add_report(s: argparse.ArgumentParser) -> None:
    """What `wcodec.cli.common.say` reads."""
    g = s.add_mutually_exclusive_group()
    g.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    add_json(g)


def add_json(s: argparse._ActionsContainer) -> None:
    """``--json``."""
    s.add_argument(
        "--json", action="store_true", help="print JSON: an object; of several inputs, one a line"
    )


def add_limits(s: argparse.ArgumentParser) -> None:
    """What `wcodec.cli.common.limits_of` reads."""
    g = s.add_argument_group("limits, as bytes: 1000000, 500M, 4G")
    text = "refuse files whose tensors have more bytes than that"
    g.add_argument("--max-nbytes", metavar="N", type=nbytes, help=text)
    text = (
        "refuse files that take more memory to read, outputs not counted (default: "
        "$WCODEC_MAX_MEMORY, or 4G for the index alone)"
    )
    g.add_argument("--max-memory", metavar="N", type=nbytes, help=text)


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def nbytes(text: str) -> int:
    """A number of bytes, such as ``4G``."""
    try:
        return nbytes_of(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


def pair(text: str) -> tuple[int, int]:
    """Rows and columns."""
    rows, x, cols = text.partition("x")
    if not x:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form ROWSxCOLS, such as 64x64")
    return positive(rows), positive(cols)
