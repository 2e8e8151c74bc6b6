"""The `wcodec` command.

Exit status: 0 done, 1 bad input (one line on stderr), 2 bad usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NoReturn

from wcodec.backends import Backend, backend_names, load_backend
from wcodec.codec import Progress, ignore_progress
from wcodec.errors import BackendUnavailable, EncodeError, WcodecError
from wcodec.files import File, decode_file, encode_file, verify_file
from wcodec.hub import is_coded, is_hub, read_plain_header
from wcodec.outputs import map_file, remove_unfinished
from wcodec.reference.container import VERSION
from wcodec.reference.plan_options import CODERS, LAYOUTS, OPERANDS, PREDICTORS, PRESETS, TRANSFORMS, EncodeOptions

DONE: Final = 0
BAD_INPUT: Final = 1
INTERRUPTED: Final = 128 + signal.SIGINT
PIPE_CLOSED: Final = 128 + signal.SIGPIPE


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status; bad usage leaves by `SystemExit` (2), as argparse does.

    Parameters
    ----------
    argv
        Arguments; ``None`` for those of the process, which then also cleans up when it is told to end.
    """
    if argv is None:
        signal.signal(signal.SIGTERM, _leave)
        signal.signal(signal.SIGINT, _leave)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names in files may not fit the terminal's encoding
    args = _parse(sys.argv[1:] if argv is None else argv)
    with _logging(args.verbose):
        return _guarded(args)


def _leave(number: int, _: object) -> NoReturn:
    """End the process now. An exception would be lost where C code asks Python for an attribute and drops all errors, as NumPy's does."""
    remove_unfinished()
    if number == signal.SIGINT:
        os.write(2, b"wcodec: interrupted\n")
    os._exit(128 + number)


def _guarded(args: argparse.Namespace) -> int:
    try:
        status = int(args.run(args))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the interpreter's last flush says nothing
        return PIPE_CLOSED
    except BackendUnavailable as e:
        return _fail(f"backend_unavailable: {e}")
    except WcodecError as e:
        return _fail(str(e))
    except MemoryError:
        return _fail("resource_limit: there is not enough memory")
    except OSError as e:
        where = f"{e.filename}: " if e.filename else ""
        return _fail(f"{where}{e.strerror or e}")
    except KeyboardInterrupt:
        print("wcodec: interrupted", file=sys.stderr)
        return INTERRUPTED
    return status


def _fail(message: str) -> int:
    print("wcodec: error:", " ".join(message.splitlines()), file=sys.stderr)
    return BAD_INPUT


@contextlib.contextmanager
def _logging(verbose: int) -> Iterator[None]:
    log, handler, level = logging.getLogger("wcodec"), logging.StreamHandler(), logging.getLogger("wcodec").level
    handler.setFormatter(logging.Formatter("wcodec: %(message)s"))
    slow = logging.getLogger("wcodec.compile")  # what keeps a user waiting, said on a terminal without being asked
    if verbose:
        log.addHandler(handler)
        log.setLevel(logging.INFO if verbose == 1 else logging.DEBUG)
    elif sys.stderr.isatty():
        slow.addHandler(handler)
        slow.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        slow.removeHandler(handler)
        log.setLevel(level)
        slow.setLevel(logging.NOTSET)


# ---- arguments ---------------------------------------------------------------------------------------------------------------
def _global_options(default: Any = argparse.SUPPRESS) -> argparse.ArgumentParser:
    """Options that may stand before or after the subcommand; behind it they must not bring their defaults along."""
    p = argparse.ArgumentParser(prog="wcodec", add_help=False, allow_abbrev=False)
    g = p.add_argument_group("global options")
    text = "a name out of `wcodec backends`, or package.module:Class (default: $WCODEC_BACKEND or auto)"
    g.add_argument("--backend", metavar="NAME", default=default, help=text)
    g.add_argument("--threads", metavar="N", type=_positive, default=default, help="CPU threads (default: $WCODEC_THREADS or one a core)")
    g.add_argument("-v", "--verbose", action="count", default=0 if default is None else default, help="say on stderr what is done")
    return p


def _parse(argv: list[str]) -> argparse.Namespace:
    args, rest = _global_options(None).parse_known_args(argv)
    if rest[:1] == ["conformance"]:  # it has a parser of its own, and a --backend that means the same
        return argparse.Namespace(run=_conformance, rest=rest[1:], **vars(args))
    return _parser().parse_args(argv)


@lru_cache(maxsize=1)
def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="wcodec",
        description="A bit-exact codec for neural-network weights.",
        epilog="Exit status: 0 done, 1 bad input, 2 bad usage. `wcodec SUBCOMMAND -h` says more.",
        parents=[_global_options(None)],
        allow_abbrev=False,
    )
    p.add_argument("--version", action="version", version=_version())
    subparsers = p.add_subparsers(metavar="SUBCOMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        s = subparsers.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=[_global_options()], allow_abbrev=False
        )
        s.set_defaults(run=run, error=s.error)
        return s

    _add_encode(add("encode", _encode, "encode a safetensors file, or the directory of a model"))
    s = add("decode", _decode, "restore the file or directory that was encoded, byte for byte")
    s.add_argument("input", metavar="IN", help="a .wcodec file, a safetensors file in hub form, or a directory of them")
    text = "default of IN.wcodec: IN.safetensors, if there is none yet; others must be named"
    s.add_argument("output", metavar="OUT", nargs="?", help=text)
    s.add_argument("--raw", action="store_true", help="if the file was not made from another one, write the tensors' bytes alone")
    _add_base(s)
    _add_common(s, max_nbytes=True)
    _add_repack(add("repack", _repack, "encode the tensors of a .wcodec file anew, with other choices"))
    s = add("verify", _verify, "decode all of a file or directory, check every checksum, write nothing")
    s.add_argument("input", metavar="IN")
    _add_base(s)
    _add_common(s, max_nbytes=True)
    s = add("info", _info, "show what a file or directory holds and how it is coded")
    s.add_argument("input", metavar="IN")
    _add_base(s)
    s.add_argument("--no-bound", dest="bound", action="store_false", help="leave out the order-0 bound, for which all tensors are decoded")
    s.add_argument("--explain", action="store_true", help="show what each tensor would have cost otherwise")
    s.add_argument("--plot", metavar="OUT.png", help="with --explain: draw bits a weight of tensors and planes (needs matplotlib)")
    s.add_argument("--json", action="store_true", help="print JSON")
    s = add("backends", _backends, "list the backends: usable or why not, and which one is used")
    s.add_argument("--json", action="store_true", help="print JSON")
    subparsers.add_parser("conformance", help="run the conformance suite against a backend or a command", add_help=False)
    add("demo", _demo, "make a checkpoint offline, encode, decode and compare it, show sizes and speeds")
    s = add("bench", _bench, "measure speed and size of a safetensors file in memory, by backend, beside memcpy")
    s.add_argument("input", metavar="FILE.safetensors")
    s.add_argument("--rounds", metavar="N", type=_positive, default=7, help="runs of each; fewer of slow backends (default: 7)")
    s.add_argument("--sample-nbytes", metavar="N", type=_positive, default=1 << 28, help="stop taking tensors there (default: 268435456)")
    s.add_argument("--json", action="store_true", help="print JSON")
    return p


def _add_repack(s: argparse.ArgumentParser) -> None:
    s.add_argument("input", metavar="IN.wcodec")
    s.add_argument("output", metavar="OUT.wcodec")
    _add_base(s)
    _add_common(s)
    text = "fixed, rans: operands, as by --operand of encode; raw: nothing is coded; context: contexts"
    _add_choices(s, (*OPERANDS, *(c for c in CODERS if c not in OPERANDS)), text)
    s.set_defaults(operand=None)


def _add_encode(s: argparse.ArgumentParser) -> None:
    s.add_argument("input", metavar="IN", help="a safetensors file, or the directory of a model")
    s.add_argument("output", metavar="OUT", nargs="?", help="default of a file: IN.wcodec, if there is none yet; a directory must be named")
    text = "wcodec: .wcodec files; hub: safetensors files that transformers loads (import wcodec.transformers) (default: wcodec)"
    s.add_argument("--form", choices=("wcodec", "hub"), default="wcodec", help=text)
    text = "a .wcodec or safetensors file, or a directory of them: tensors that it has too are stored as differences; decoding needs it"
    s.add_argument("--base", metavar="BASE", help=text)
    _add_common(s)
    _add_choices(s, CODERS, "raw: nothing is coded; rans: no contexts; context: contexts")
    text = "matrices of bf16, int8 and fp8 as operands of GPU kernels, never as differences; fixed: 12 bits a bf16 weight; rans: smaller"
    s.add_argument("--operand", choices=OPERANDS, help=text)


def _add_choices(s: argparse.ArgumentParser, coders: tuple[str, ...], of_coders: str) -> None:
    s.add_argument("--preset", choices=PRESETS, default="default", help="fast: encode speed first; max: size first (default: default)")
    g = s.add_argument_group("what not to leave to the encoder's measure")
    g.add_argument("--predictor", choices=PREDICTORS, default="auto", help="prediction of all coded byte planes")
    g.add_argument("--transform", choices=TRANSFORMS, default="auto", help="transform of all coded byte planes")
    g.add_argument("--coder", choices=coders, default="auto", help=of_coders)
    g.add_argument("--layout", choices=LAYOUTS, default="auto")
    g.add_argument("--segment", metavar="RxC", type=_pair, help="rows and columns of a segment")
    g.add_argument("--tile", metavar="RxC", type=_pair, help="rows and columns of a tile, from 16; segments are made of whole tiles")
    g.add_argument("--prob-bits", metavar="N", type=int, default=12, help="log2 of the sum of a table's frequencies, 9 to 12")


def _add_common(s: argparse.ArgumentParser, max_nbytes: bool = False) -> None:
    g = s.add_mutually_exclusive_group()
    g.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    g.add_argument("--json", action="store_true", help="print JSON")
    if max_nbytes:
        s.add_argument("--max-nbytes", metavar="N", type=_positive, help="refuse files whose tensors have more bytes than that")


def _add_base(s: argparse.ArgumentParser) -> None:
    text = "the .wcodec or safetensors file that FILE was encoded against (default: the file of its name beside it)"
    s.add_argument("--base", metavar="BASE", help=text)


def _version() -> str:
    from wcodec import __version__

    return f"wcodec {__version__} (format {VERSION[0]}.{VERSION[1]})"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _pair(text: str) -> tuple[int, int]:
    rows, x, cols = text.partition("x")
    if not x:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form ROWSxCOLS, such as 64x64")
    return _positive(rows), _positive(cols)


def _backend(args: argparse.Namespace) -> Backend:
    return load_backend(args.backend or os.environ.get("WCODEC_BACKEND") or "auto", args.threads)


def _output(args: argparse.Namespace, old: str, new: str) -> Path:
    """Where the output goes. Leaves with 2 where it would destroy the input, a device, or a file that was not named."""
    source = Path(args.input)
    named = args.output is not None
    output = Path(args.output) if named else source.with_name((source.stem if source.suffix == old else source.name) + new)
    if output.exists():
        if source.exists() and output.samefile(source):
            args.error(f"input and output are the same file: {source}")
        if args.base and os.path.exists(args.base) and output.samefile(args.base):
            args.error(f"the output would replace the base: {output}")
        if not output.is_file():
            args.error(f"the output is not a regular file: {output}")
        if not named:
            args.error(f"{output} exists; name it as the output to replace it")
    if not output.parent.is_dir():
        raise OSError(errno.ENOENT, "there is no such directory", str(output.parent))
    return Path(os.path.realpath(output))  # of a link, what it points at is replaced, not the link


@contextlib.contextmanager
def _progress(args: argparse.Namespace, total: int) -> Iterator[Progress]:
    """A bar on a terminal, if tqdm is there; nothing in a pipe."""
    bar: Any = None
    if sys.stderr.isatty() and not getattr(args, "quiet", False):
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            bar = tqdm(total=total, unit="B", unit_scale=True, delay=0.5, leave=False, dynamic_ncols=True)
    if bar is None:
        yield ignore_progress
    else:
        with bar:
            yield bar.update


def _decoded_nbytes(path: str, backend: Backend) -> int:
    """What a progress bar counts up to; 0 where there will be none."""
    if not sys.stderr.isatty():
        return 0
    with File(path, backend) as f:
        return f.index.data_nbytes + len(f.index.source_header)


def _base_nbytes(args: argparse.Namespace) -> int:
    """Bytes of a base that is read to find out which one it is: of a ``.wcodec`` file, the index says so."""
    return 0 if args.base is None or args.base.endswith(".wcodec") else os.stat(args.base).st_size


def _say(args: argparse.Namespace, line: str, report: dict[str, Any]) -> None:
    if args.json:
        print(json.dumps(report))
    elif not args.quiet:
        print(line)


def _show(args: argparse.Namespace, report: Any, lines: Iterable[str]) -> None:
    """Print a report as JSON, or its lines: these are made only if they are wanted."""
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        for line in lines:
            print(line)


def _is_directory_or_hub(path: str) -> bool:
    """Whether an input is a directory or a safetensors file, which `wcodec.cli_directories` sees to."""
    return os.path.isdir(path) or (os.path.isfile(path) and not is_coded(path) and (path.endswith(".safetensors") or is_hub(path)))


# ---- subcommands -------------------------------------------------------------------------------------------------------------
def _options(args: argparse.Namespace) -> EncodeOptions:
    """What was chosen; leaves with 2 where that does not go together."""
    try:
        return EncodeOptions(
            args.segment, args.tile, args.predictor, args.layout, args.prob_bits,
            preset=args.preset, transform=args.transform, coder=args.coder, operand=args.operand,
        )  # fmt: skip
    except EncodeError as e:
        args.error(str(e))
        raise


def _repack(args: argparse.Namespace) -> int:
    from wcodec.repack import repack_file
    from wcodec.report import percent_text, size_text

    if args.coder in OPERANDS:
        args.coder, args.operand = "auto", args.coder
    options, output, backend = _options(args), _output(args, ".wcodec", ".wcodec"), _backend(args)
    start = time.perf_counter()
    with _progress(args, _decoded_nbytes(args.input, backend)) as progress:
        nbytes, stored_nbytes = repack_file(args.input, output, options, backend, progress, args.base)
    seconds = time.perf_counter() - start
    line = f"{size_text(nbytes)} -> {size_text(stored_nbytes)} ({percent_text(stored_nbytes, nbytes)}), {seconds:.1f} s"
    _say(args, f"{args.input} -> {args.output}: {line}", {
        "input": args.input, "output": str(output), "nbytes": nbytes, "stored_nbytes": stored_nbytes, "seconds": seconds,
        "backend": backend.name,
    })  # fmt: skip
    return DONE


def _encode(args: argparse.Namespace) -> int:
    from wcodec.report import percent_text, size_text

    options = _options(args)
    if args.form == "hub" or os.path.isdir(args.input):
        from wcodec.cli_directories import encode

        return encode(args, options)
    output, backend = _output(args, ".safetensors", ".wcodec"), _backend(args)
    read_plain_header(memoryview(map_file(args.input)))
    start = time.perf_counter()
    with _progress(args, os.stat(args.input).st_size + _base_nbytes(args)) as progress:
        nbytes, stored_nbytes = encode_file(args.input, output, options, backend, progress, args.base)
    seconds = time.perf_counter() - start
    line = f"{size_text(nbytes)} -> {size_text(stored_nbytes)} ({percent_text(stored_nbytes, nbytes)}), {seconds:.1f} s"
    _say(args, f"{args.input} -> {output.name if args.output is None else args.output}: {line}", {
        "input": args.input, "output": str(output), "nbytes": nbytes, "stored_nbytes": stored_nbytes,
        "ratio": stored_nbytes / nbytes if nbytes else None, "seconds": seconds, "backend": backend.name,
    })  # fmt: skip
    return DONE


def _decode(args: argparse.Namespace) -> int:
    from wcodec.report import size_text

    if _is_directory_or_hub(args.input):
        from wcodec.cli_directories import decode

        return decode(args)
    output, backend = _output(args, ".wcodec", ".safetensors"), _backend(args)
    start = time.perf_counter()
    with _progress(args, _decoded_nbytes(args.input, backend) + _base_nbytes(args)) as progress:
        stored_nbytes, nbytes = decode_file(args.input, output, backend, progress, args.max_nbytes, args.raw, args.base)
    seconds = time.perf_counter() - start
    line = f"{size_text(stored_nbytes)} -> {size_text(nbytes)}, {seconds:.1f} s"
    _say(args, f"{args.input} -> {output.name if args.output is None else args.output}: {line}", {
        "input": args.input, "output": str(output), "stored_nbytes": stored_nbytes, "nbytes": nbytes,
        "seconds": seconds, "backend": backend.name,
    })  # fmt: skip
    return DONE


def _verify(args: argparse.Namespace) -> int:
    from wcodec.report import size_text

    if _is_directory_or_hub(args.input):
        from wcodec.cli_directories import verify

        return verify(args)
    backend = _backend(args)
    start = time.perf_counter()
    with _progress(args, _decoded_nbytes(args.input, backend) + _base_nbytes(args)) as progress:
        stored_nbytes, nbytes = verify_file(args.input, backend, progress, args.max_nbytes, args.base)
    seconds = time.perf_counter() - start
    _say(args, f"{args.input}: good, {size_text(stored_nbytes)} -> {size_text(nbytes)}, {seconds:.1f} s", {
        "input": args.input, "good": True, "stored_nbytes": stored_nbytes, "nbytes": nbytes, "seconds": seconds, "backend": backend.name,
    })  # fmt: skip
    return DONE


def _info(args: argparse.Namespace) -> int:
    from wcodec.report import as_text, describe

    if _is_directory_or_hub(args.input):
        from wcodec.cli_directories import info

        return info(args)
    if args.explain:
        return _explain(args)
    if args.plot:
        args.error("--plot needs --explain")
    with File(args.input, _backend(args), base=args.base) as f, _progress(args, f.index.data_nbytes if args.bound else 0) as progress:
        report = {"file": args.input, **describe(f, args.bound, progress)}
    _show(args, report, as_text(report))
    return DONE


def _explain(args: argparse.Namespace) -> int:
    from wcodec.explain import as_text, explain_file, figure_class, plot

    if not args.bound:
        args.error("--explain decodes all tensors; it has no --no-bound")
    target = _plot_target(args, args.input, args.base) if args.plot else None
    if target:
        try:
            figure_class()
        except ImportError as e:
            return _fail(str(e))
    with File(args.input, _backend(args), base=args.base) as f:
        if target and f.index.base is not None and args.base is None:
            _plot_target(args, os.path.join(os.path.dirname(args.input), f.index.base.name))
        with _progress(args, f.index.data_nbytes) as progress:
            report = {"file": args.input, **explain_file(f, progress)}
    if target:
        plot(report, target)
    _show(args, report, as_text(report))
    return DONE


def _plot_target(args: argparse.Namespace, *kept: str | None) -> str:
    """Where the figure goes. Leaves with 2 where it would destroy one of the files to be kept, or a device."""
    target: str = os.path.realpath(args.plot)
    if os.path.exists(target):
        for path in kept:
            if path and os.path.exists(path) and os.path.samefile(path, target):
                args.error(f"the figure would replace {path}")
        if not os.path.isfile(target):
            args.error(f"the figure's path is not a regular file: {args.plot}")
    if not os.path.isdir(os.path.dirname(target)):
        raise OSError(errno.ENOENT, "there is no such directory", os.path.dirname(target))
    return target


def _backends(args: argparse.Namespace) -> int:
    used = _backend(args)
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys([*backend_names(), *([args.backend] if args.backend and ":" in args.backend else [])]):
        try:
            backend = load_backend(name, args.threads)
            rows.append({"name": name, "usable": True, "used": backend is used, "reason": "", "info": backend.info()})
        except BackendUnavailable as e:
            rows.append({"name": name, "usable": False, "used": False, "reason": str(e), "info": {}})
    if args.json:
        print(json.dumps(rows, indent=1))
        return DONE
    for row in rows:
        detail = ", ".join(f"{k} {v}" for k, v in row["info"].items()) if row["usable"] else f"not usable: {row['reason']}"
        print(f"{'*' if row['used'] else ' '} {row['name']:<12} {detail}".rstrip())
    print("* is in use; --backend and WCODEC_BACKEND choose another")
    return DONE


def _conformance(args: argparse.Namespace) -> int:
    from wcodec import conformance

    if args.threads:
        os.environ["WCODEC_THREADS"] = str(args.threads)
    return conformance.main([*args.rest, *(["--backend", args.backend] if args.backend else [])])


def _demo(args: argparse.Namespace) -> int:
    from wcodec.demo import run_demo

    if run_demo(lambda line: print(line, flush=True), args.backend, args.threads):
        return DONE
    return _fail("a file did not come back with the same SHA-256, or the backends' files differ")


def _bench(args: argparse.Namespace) -> int:
    from wcodec.bench import as_text, bench_file

    def show(line: str) -> None:
        print("wcodec:", line, file=sys.stderr)

    report = bench_file(args.input, args.backend, args.threads, args.rounds, args.sample_nbytes, show)
    _show(args, report, as_text(report))
    return DONE if report["same"] else _fail("the tensors did not come back the same")
