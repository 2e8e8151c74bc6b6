"""The arguments of the `wcodec` command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from wcodec.cli.chain_options import add_chain
from wcodec.cli.common import STATUSES, Parser, path_argument, stream_argument
from wcodec.cli.fleets import add_workers
from wcodec.cli.options import (
    add_command,
    add_json,
    add_limits,
    add_report,
    global_options,
    pair,
    positive,
)
from wcodec.planner.options import CODERS, LAYOUTS, OPERANDS, PREDICTORS, PRESETS, TRANSFORMS
from wcodec.reference.container import VERSION
from wcodec.reference.planes import DTYPES


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line. ``run`` of the result names the module and function of the
    subcommand.
    """
    return parser().parse_args(argv)


@lru_cache(maxsize=1)
def parser() -> Parser:
    """The parser of the command and all its subcommands."""
    p = Parser(
        prog="wcodec",
        description="A bit-exact codec for neural-network weights.",
        epilog=f"`wcodec SUBCOMMAND -h` says more. {STATUSES}",
        parents=[global_options(None)],
        allow_abbrev=False,
    )
    p.add_argument("--version", action="version", version=_version())
    subparsers = p.add_subparsers(metavar="SUBCOMMAND", required=True)

    for name, (room, add_options, text) in SUBCOMMANDS.items():
        add_options(add_command(subparsers, name, text, f"{room}.{name}"))
    return p


# ---- by subcommand -------------------------------------------------------------------------------
def _add_encode(s: argparse.ArgumentParser) -> None:
    _add_inputs(
        s,
        "a safetensors file, - for one from standard input, or the directory of a model; "
        "of a cache of Hugging Face, its only snapshot",
        stream_argument,
    )
    _add_outputs(s, "default of IN.safetensors: IN.wcodec beside it")
    text = (
        "wcodec: .wcodec files; hub: safetensors files that transformers loads (import "
        "wcodec.transformers) (default: wcodec)"
    )
    s.add_argument("--form", choices=("wcodec", "hub"), default="wcodec", help=text)
    text = (
        "a .wcodec or safetensors file, or a directory of them: tensors that it has too are stored "
        "as differences; decoding needs it"
    )
    s.add_argument("--base", metavar="BASE", type=path_argument, help=text)
    add_report(s)
    _add_choices(s)
    add_workers(s)


def _add_decode(s: argparse.ArgumentParser) -> None:
    _add_inputs(s, "a .wcodec file, a safetensors file in hub form, or a directory of them")
    _add_outputs(s, "default of IN.wcodec: IN.safetensors beside it")
    s.add_argument(
        "--raw",
        action="store_true",
        help="if the file was not made from another one, write the tensors' bytes alone",
    )
    _add_base(s)
    add_report(s)
    add_workers(s)
    add_limits(s)


def _add_repack(s: argparse.ArgumentParser) -> None:
    _add_inputs(s, "a .wcodec file")
    _add_outputs(s, "there is no default")
    _add_base(s)
    add_report(s)
    _add_choices(s)
    add_limits(s)


def _add_info(s: argparse.ArgumentParser) -> None:
    _add_inputs(s, "a .wcodec file, a safetensors file in hub form, or a directory of them")
    _add_base(s)
    bound = s.add_mutually_exclusive_group()
    bound.add_argument(
        "--no-bound",
        dest="bound",
        action="store_false",
        default=None,
        help="leave out the order-0 bound, for which all tensors are decoded",
    )
    text = "give it of small tensors too, where there are more than 1000 of them"
    bound.add_argument("--bound", action="store_true", default=None, help=text)
    s.add_argument(
        "--explain", action="store_true", help="show what each tensor would have cost otherwise"
    )
    text = "with --explain: draw bits a weight of tensors and planes (needs matplotlib)"
    s.add_argument("--plot", metavar="OUT.png", type=path_argument, help=text)
    s.add_argument("-f", "--force", action="store_true", help="replace the figure, if it exists")
    add_json(s)
    add_limits(s)


def _add_conformance(s: argparse.ArgumentParser) -> None:
    text = (
        "instead of --backend: a program that decodes a file into its restored bytes, given the "
        "file that it holds differences from, or nothing; without {base}, cases of differences are "
        "not run; several, each under a NAME, are compared"
    )
    s.add_argument(
        "--command", metavar="'[NAME=]PROGRAM {input} {output} {base}'", action="append", help=text
    )
    text = (
        "of --command: what it claims to decode (chapter 17 of the spec); it may refuse files that "
        "are beyond it (default: base, which is all)"
    )
    s.add_argument("--profile", choices=("core", "operand", "full", "base"), help=text)
    text = (
        "run only checks whose id contains this, or matches it if there is * ? or [ in it; may be "
        "given several times; the exit status is then that of what was selected"
    )
    s.add_argument("--filter", action="append", metavar="GLOB", help=text)
    s.add_argument(
        "--no-sweeps", action="store_true", help="leave out the sweeps; they count as not run"
    )
    s.add_argument("-x", "--exit-first", action="store_true", help="stop at the first failure")
    s.add_argument("--list", action="store_true", help="print the ids of checks, and run none")
    text = "of a check (default: 300, and 60 of a program)"
    s.add_argument("--timeout", metavar="SECONDS", type=positive, help=f"most time {text}")
    text = "check the backend in this process, for debuggers: a crash then ends it"
    s.add_argument("--in-process", action="store_true", help=text)
    s.add_argument(
        "--report", metavar="OUT.json", type=path_argument, help="write what came of each check"
    )
    text = "write a page that shows it: features by decoder, and each vector"
    s.add_argument("--html", metavar="OUT.html", type=path_argument, help=text)
    text = "write a badge that says it"
    s.add_argument("--badge", metavar="OUT.svg", type=path_argument, help=text)
    s.add_argument("--markdown", action="store_true", help="print it as a table for GitHub")
    text = "replace reports, pages and badges that exist"
    s.add_argument("-f", "--force", action="store_true", help=text)


def _add_warmup(s: argparse.ArgumentParser) -> None:
    s.add_argument(
        "--dtype",
        metavar="NAME",
        nargs="+",
        choices=[d.name for d in DTYPES],
        help="only for these (default: all)",
    )
    text = (
        "with --backend cuda: the compute capability to compile for, 75 to 120, where there is no "
        "GPU (default: that of the GPU)"
    )
    s.add_argument("--arch", metavar="N", type=positive, help=text)
    add_json(s)


# ---- what several have ---------------------------------------------------------------------------
def _add_inputs(
    s: argparse.ArgumentParser, text: str, kind: Callable[[str], str] = path_argument
) -> None:
    s.add_argument(
        "inputs",
        metavar="IN",
        nargs="+",
        type=kind,
        help=f"{text}; several are done one after another",
    )


def _add_outputs(s: argparse.ArgumentParser, default: str) -> None:
    g = s.add_mutually_exclusive_group()
    g.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=path_argument,
        help=f"the output of the one input ({default})",
    )
    g.add_argument(
        "--output-dir",
        metavar="DIR",
        type=path_argument,
        help="the directory for the outputs; it is made if it is not there",
    )
    text = "replace outputs that exist; in a directory, files of the same names, all else stays"
    s.add_argument("-f", "--force", action="store_true", help=text)
    text = "do not wait until outputs are on the disk: quicker, and lost if the power fails"
    s.add_argument("--no-fsync", dest="fsync", action="store_false", help=text)
    s.add_argument(
        "--rm",
        action="store_true",
        help="remove each input file once its output was read back and holds the same",
    )


def _add_choices(s: argparse.ArgumentParser) -> None:
    """What `wcodec.cli.convert.options_of` reads."""
    s.add_argument(
        "--preset",
        choices=PRESETS,
        default="default",
        help="fast: encode speed first; max: size first (default: default)",
    )
    text = (
        "matrices of bf16, int8 and fp8 become operands of GPU kernels, never differences;"
        " fixed: 12 bits a bf16 weight; rans: smaller"
    )
    s.add_argument("--operand", choices=OPERANDS, help=text)
    g = s.add_argument_group("what not to leave to the encoder's measure")
    g.add_argument(
        "--predictor",
        choices=PREDICTORS,
        default="auto",
        help="prediction of all coded byte planes",
    )
    g.add_argument(
        "--transform", choices=TRANSFORMS, default="auto", help="transform of all coded byte planes"
    )
    text = "raw: nothing is coded; rans: no contexts; context: contexts"
    g.add_argument("--coder", choices=CODERS, default="auto", help=text)
    g.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="auto",
        help="how words become planes; pairs: two nibble codes make a symbol",
    )
    g.add_argument("--segment", metavar="RxC", type=pair, help="rows and columns of a segment")
    g.add_argument(
        "--tile",
        metavar="RxC",
        type=pair,
        help="rows and columns of a tile, from 16; segments are made of whole tiles",
    )
    text = "log2 of the sum of a table's frequencies, 9 to 12 (default: 12)"
    g.add_argument("--prob-bits", metavar="N", type=int, default=12, help=text)


def _add_base(s: argparse.ArgumentParser) -> None:
    text = (
        "the .wcodec or safetensors file that IN was encoded against (default: "
        "the file of its name beside it)"
    )
    s.add_argument("--base", metavar="BASE", type=path_argument, help=text)


def _add_verify(s: argparse.ArgumentParser) -> None:
    _add_inputs(s, "a .wcodec file, a safetensors file in hub form, or a directory of them")
    _add_base(s)
    text = "write what came of each input, and of each file, as JSON"
    s.add_argument("--report", metavar="OUT.json", type=path_argument, help=text)
    s.add_argument("-f", "--force", action="store_true", help="replace the report, if it exists")
    add_report(s)
    add_workers(s)
    add_limits(s)


def _add_hash(s: argparse.ArgumentParser) -> None:
    text = (
        "a .wcodec file, a safetensors file, in hub form or plain, or a directory of them; there is"
        " a line for each file"
    )
    s.add_argument("inputs", metavar="IN", nargs="*", type=path_argument, help=text)
    text = "instead of IN: compare the files that such lines name; exit status 1 if one differs"
    s.add_argument("--check", metavar="FILE", type=path_argument, help=text)
    _add_base(s)
    text = "with --check: print nothing of files that hold what they should"
    s.add_argument("-q", "--quiet", action="store_true", help=text)
    s.add_argument("--json", action="store_true", help="print JSON: an object for each file")
    add_limits(s)


def _add_du(s: argparse.ArgumentParser) -> None:
    text = (
        "a directory, such as one of many checkpoints, or a file; a path, or a URL that fsspec "
        "opens, such as s3://bucket/models"
    )
    s.add_argument("places", metavar="PLACE", nargs="+", type=path_argument, help=text)
    text = (
        "read tensors that have no CRC-32, and compare those that seem to be equal by SHA-256 "
        "(default: headers and indexes alone are read)"
    )
    s.add_argument("--full", action="store_true", help=text)
    text = "do not encode samples to say what bases would save"
    s.add_argument("--no-sample", dest="sampled", action="store_false", help=text)
    text = "files that are sampled at most (default: 16)"
    s.add_argument("--pairs", metavar="N", type=positive, help=text)
    add_json(s)
    add_limits(s)


def _add_bench(s: argparse.ArgumentParser) -> None:
    text = "the file whose tensors are measured; it is only read"
    s.add_argument("input", metavar="FILE.safetensors", type=path_argument, help=text)
    text = "runs of each; fewer of slow backends (default: 7)"
    s.add_argument("--rounds", metavar="N", type=positive, default=7, help=text)
    text = "stop taking tensors there (default: 268435456)"
    s.add_argument("--sample-nbytes", metavar="N", type=positive, default=1 << 28, help=text)
    add_json(s)


def _add_nothing(s: argparse.ArgumentParser) -> None:
    """For a subcommand without options."""


#: Subcommands: the module with the function of the same name, what adds options, the help.
SUBCOMMANDS: Final[dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], str]]] = {
    "encode": ("convert", _add_encode, "encode safetensors files, or directories of models"),
    "decode": (
        "convert",
        _add_decode,
        "restore the files or directories that were encoded, byte for byte",
    ),
    "repack": (
        "convert",
        _add_repack,
        "encode the tensors of .wcodec files anew, with other choices",
    ),
    "verify": (
        "inspect",
        _add_verify,
        "decode all of files or directories, check every checksum, write nothing",
    ),
    "info": ("inspect", _add_info, "show what files or directories hold and how it is coded"),
    "hash": (
        "hash",
        _add_hash,
        "print a SHA-256 of what files hold, the same however they are encoded, or check it",
    ),
    "du": (
        "usage",
        _add_du,
        "show what takes the space in directories or at URLs, and what could be saved",
    ),
    "chain": (
        "chain",
        add_chain,
        "keep the checkpoints of a run of training as full ones and differences",
    ),
    "backends": (
        "inspect",
        add_json,
        "list the backends: usable or why not, and which one is used",
    ),
    "doctor": (
        "doctor",
        add_json,
        "show what wcodec finds on this machine, and test that each backend works here",
    ),
    "conformance": (
        "conformance",
        _add_conformance,
        "run the conformance suite against a backend or a program",
    ),
    "warmup": (
        "measure",
        _add_warmup,
        "compile ahead of time what the first call would wait for, for containers and CI",
    ),
    "demo": (
        "measure",
        _add_nothing,
        "make a checkpoint offline, encode, decode and compare it, show sizes and speeds",
    ),
    "bench": (
        "measure",
        _add_bench,
        "measure speed and size of a safetensors file in memory, by backend, beside memcpy",
    ),
}


# ---- values --------------------------------------------------------------------------------------
def _version() -> str:
    from wcodec import __version__

    return f"wcodec {__version__} (format {VERSION[0]}.{VERSION[1]})"
