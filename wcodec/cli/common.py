"""What the subcommands share: how they end, where outputs go, progress,
and how results and paths are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NoReturn

from wcodec.backends import Backend, load_backend
from wcodec.codec.pipelining import Progress, ignore_progress
from wcodec.codec.urls import place_of, size_of
from wcodec.errors import BackendUnavailable, CodecError, WcodecError, named
from wcodec.files.file import File
from wcodec.inspect.report import printable, size_text

DONE: Final = 0
BAD_INPUT: Final = 1
BAD_USAGE: Final = 2
INTERRUPTED: Final = 128 + signal.SIGINT
PIPE_CLOSED: Final = 128 + signal.SIGPIPE
STATUSES: Final = (
    "Exit status: 0 done; 1 bad input, or an output that exists; 2 bad usage; 129, 130, 143 told "
    "to end (SIGHUP, SIGINT, SIGTERM); 141 who read the output went away."
)

QUIET_S: Final = 1.0  #: progress is shown of work that takes longer than that
EVERY_S: Final = 0.1  #: between two changes of the line


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and where help is in another."""

    def error(self, message: str) -> NoReturn:
        """Leave with 2."""
        self.exit(
            BAD_USAGE,
            f"{self.prog}: error: {one_line(message)}\n"
            f"{self.prog}: `{self.prog} -h` shows the usage\n",
        )


def path_argument(text: str) -> str:
    """A path of the command line. ``-``, which elsewhere means a pipe, is none, but to encode."""
    if text == "-":
        raise argparse.ArgumentTypeError(
            "wcodec needs files that it can seek in, not pipes; a file that is called - is ./-"
        )
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    return text


def stream_argument(text: str) -> str:
    """A path of the command line, or ``-`` for standard input."""
    return "/dev/stdin" if text == "-" else path_argument(text)


# ---- how a subcommand ends -----------------------------------------------------------------------
def fail(message: str) -> int:
    """Say what went wrong, in one line."""
    print("wcodec: error:", one_line(message), file=sys.stderr)
    return BAD_INPUT


def one_line(message: str) -> str:
    """A message on one line, without control characters that a terminal would obey."""
    return printable(" ".join(message.splitlines()))


def each(sources: Iterable[str], work: Callable[[str], int]) -> int:
    """Do a piece of work for each input; where one fails, that is said,
    and the next one is begun.
    """
    status = DONE
    for source in sources:
        try:
            status = max(status, work(source))
        except (BackendUnavailable, BrokenPipeError):
            raise
        except MemoryError:
            fail(f"resource_limit: in {source!r}: there is not enough memory")
            status = max(status, BAD_INPUT)
        except (WcodecError, OSError) as e:
            status = max(status, failed(e))
    return status


def failed(e: WcodecError | OSError) -> int:
    """Say what went wrong, in one line. Returns the exit status."""
    fail(described(e))
    return BAD_USAGE if isinstance(e, io.UnsupportedOperation) else BAD_INPUT


def described(e: WcodecError | OSError) -> str:
    """An error in one line."""
    if isinstance(e, BackendUnavailable):
        return f"backend_unavailable: {e}"
    if isinstance(e, OSError):
        return (f"{e.filename}: " if e.filename else "") + (e.strerror or str(e))
    return str(e)


@contextlib.contextmanager
def in_directory(source: str) -> Iterator[None]:
    """Errors about files of a directory name these by a path that can be opened."""
    try:
        yield
    except CodecError as e:
        if e.file is not None and place_of(source).is_dir():
            e.file = os.path.join(source, e.file)
        raise


# ---- what was chosen -----------------------------------------------------------------------------
def backend_of(args: argparse.Namespace) -> Backend:
    """The backend that was chosen.

    Raises
    ------
    BackendUnavailable
    """
    return load_backend(args.backend or os.environ.get("WCODEC_BACKEND") or "auto", args.threads)


def limits_of(args: argparse.Namespace) -> dict[str, Any]:
    """What files may take, as arguments of the functions that read them."""
    return {name: getattr(args, name, None) for name in ("max_nbytes", "max_memory")}


# ---- progress ------------------------------------------------------------------------------------
class _Line:
    """Progress as a line that is written over, for want of tqdm."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._width = total, 0, 0
        self._start = self._shown = time.monotonic()

    def update(self, nbytes: int) -> None:
        """So many bytes more are done."""
        self._done += nbytes
        now = time.monotonic()
        if now - self._start >= QUIET_S and now - self._shown >= EVERY_S:
            self._shown = now
            rate = self._done / (now - self._start)
            left = max(0, self._total - self._done) / rate if rate else 0.0
            text = (
                f"{size_text(self._done)} of {size_text(self._total)}, {size_text(int(rate))}/s, "
                f"{left:.0f} s left"
            )
            if self._total:
                text = f"{min(100, 100 * self._done // self._total)} %, {text}"
            self._show(text[: shutil.get_terminal_size().columns - 1])

    def _show(self, text: str) -> None:
        sys.stderr.write(f"\r{text.ljust(self._width)}")
        sys.stderr.flush()
        self._width = len(text)

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        if self._width:
            self._show("")
            self._show("")


@contextlib.contextmanager
def progress_of(args: argparse.Namespace, total: int) -> Iterator[Progress]:
    """Progress on a terminal, of work that takes a while; nothing in a pipe."""
    if not sys.stderr.isatty() or getattr(args, "quiet", False):
        yield ignore_progress
        return
    bar: Any
    tqdm = tqdm_class()
    if tqdm is None:
        bar = _Line(total)
    else:
        bar = tqdm(
            total=total, unit="B", unit_scale=True, delay=QUIET_S, leave=False, dynamic_ncols=True
        )
    with bar:
        yield bar.update


def tqdm_class() -> Any:
    """The bar of tqdm, without the thread that it would start; ``None`` if it is not there."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    tqdm.monitor_interval = 0
    return tqdm


def decoded_nbytes(args: argparse.Namespace, path: str, backend: Backend) -> int:
    """What progress counts up to; 0 where none is shown."""
    if not sys.stderr.isatty():
        return 0
    with File(path, backend, **limits_of(args)) as f:
        return f.index.data_nbytes + len(f.index.source_header)


def base_nbytes(base: str | None) -> int:
    """Bytes of a base that is read to find out which one it is:
    of a ``.wcodec`` file, the index says so.
    """
    return 0 if base is None or base.endswith(".wcodec") else size_of(base)


# ---- results -------------------------------------------------------------------------------------
def typed(path: str) -> str:
    """A path as it can be typed into a shell again,
    without control characters that a terminal would obey.
    """
    path = f"./{path}" if path.startswith("-") else path
    if path.isprintable():
        return shlex.quote(path)
    escaped = (
        "".join(f"\\x{b:02x}" for b in os.fsencode(c))
        if not c.isprintable()
        else f"\\{c}"
        if c in "'\\"
        else c
        for c in path
    )
    return f"$'{''.join(escaped)}'"


def say(args: argparse.Namespace, line: str, report: dict[str, Any]) -> None:
    """Print what was done: an object with ``--json``, else a line."""
    show(args, report, [] if args.quiet else [line], indent=None)


def show(
    args: argparse.Namespace, report: Any, lines: Iterable[str], indent: int | None = 1
) -> None:
    """Print a report as JSON, on one line if there are several; or its lines:
    these are made only if they are wanted.
    """
    with named("standard output"):
        if args.json:
            print(
                json.dumps(report, indent=None if len(getattr(args, "inputs", [])) > 1 else indent)
            )
        else:
            for line in lines:
                print(line)
        sys.stdout.flush()
