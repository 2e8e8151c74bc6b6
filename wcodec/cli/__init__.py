"""The `wcodec` command.

Exit statuses are those of `wcodec.cli.common.STATUSES`.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

# before all that imports NumPy
import wcodec.cli.startup  # noqa: F401
from wcodec.cli.common import BAD_USAGE, INTERRUPTED, PIPE_CLOSED, fail, failed
from wcodec.cli.parser import parse, parser
from wcodec.errors import WcodecError
from wcodec.files.atomic import remove_unfinished


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status;
    bad usage leaves by `SystemExit` (2), as argparse does.

    Parameters
    ----------
    argv
        Arguments; ``None`` for those of the process,
        which then also cleans up when it is told to end.
    """
    if argv is None:
        gc.set_threshold(100_000, 50, 100)  # an index is many objects, none of which is garbage
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, _leave)
    streams = sys.stdout, sys.stderr  # one may be closed
    sys.stdout, sys.stderr = (s or open(os.devnull, "w") for s in streams)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # names in files may not fit the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        parser().print_help(sys.stderr)
        return BAD_USAGE
    args = parse(argv)
    with _logging(args.verbose):
        return _guarded(args)


def _leave(number: int, _: object) -> NoReturn:
    """End the process now. An exception would be lost where C code asks Python for an attribute and
    drops all errors, as NumPy's does.
    """
    remove_unfinished()
    if number == signal.SIGINT:
        os.write(2, b"wcodec: interrupted\n")
    os._exit(128 + number)


def _guarded(args: argparse.Namespace) -> int:
    room, _, name = args.run.partition(".")
    try:
        status = int(getattr(importlib.import_module(f"wcodec.cli.{room}"), name)(args))
        sys.stdout.flush()
    except BrokenPipeError:
        # so that the interpreter's last flush says nothing
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except MemoryError:
        return fail("resource_limit: there is not enough memory")
    except (WcodecError, OSError) as e:
        return failed(e)
    except KeyboardInterrupt:
        print("wcodec: interrupted", file=sys.stderr)
        return INTERRUPTED
    return status


@contextlib.contextmanager
def _logging(verbose: int) -> Iterator[None]:
    log = logging.getLogger("wcodec")
    handler = logging.StreamHandler()
    level = logging.getLogger("wcodec").level
    handler.setFormatter(logging.Formatter("wcodec: %(message)s"))
    log.addHandler(handler)
    log.setLevel([logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)])
    # what keeps a user waiting, said on a terminal without being asked
    slow = logging.getLogger("wcodec.compile")
    if not verbose and sys.stderr.isatty():
        slow.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        slow.setLevel(logging.NOTSET)
