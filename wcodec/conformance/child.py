"""Checks of a backend in another process, so that a crash or a hang costs one check.

The process makes the backend, and then runs the checks that it is asked for, one after another. If
one of them ends the process, or takes too long, the next check gets a new one. Both sides write a
line of JSON at a time. What a backend prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from wcodec.conformance.cases import Check, Mismatch
from wcodec.errors import BackendUnavailable

TIMEOUT_S: Final = 300.0  #: by default, of a check; a backend may compile at its first one
START_S: Final = 600.0  #: to make a backend
END_S: Final = 10.0  #: to end, once it has nothing to do
#: a process whose parent has gone ends so long after the limit of its check
GRACE_S: Final = 30.0
_CODE: Final = (
    "import json, os, sys; requests = os.fdopen(os.dup(0), 'rb'); "
    "sys.path[:] = json.loads(requests.readline()); "
    "from wcodec.conformance.serving import serve; serve(requests)"
)


_BEYOND: Final = ", as where a kernel reads or writes beyond an end of an array"


class Failed(Mismatch):
    """A check that failed in the other process, with what was said there."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)


class InChild:
    """A backend that is made, and checked, in a process of its own.

    Parameters
    ----------
    backend
        A name out of ``wcodec backends``, or ``package.module:Class``; instead of a class it may be
        a function that makes a backend, given ``threads``.
    threads
        CPU threads; ``None`` for the default.
    timeout
        Seconds that a check may take.
    """

    def __init__(
        self, backend: str, threads: int | None = None, timeout: float | None = None
    ) -> None:
        self.backend, self.threads, self.timeout = backend, threads, timeout or TIMEOUT_S
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._hello: dict[str, Any] = {}

    def start(self, folder: Path | None = None) -> None:
        """Make the backend, to be checked with the vectors of a folder.

        Raises
        ------
        BackendUnavailable
        """
        self.close()
        self._folder = folder
        line = [sys.executable, "-c", _CODE]
        self._process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self._write(sys.path)
            answer = self._ask(
                {
                    "backend": self.backend,
                    "threads": self.threads,
                    "folder": str(folder) if folder else None,
                },
                START_S,
            )
        except Mismatch as e:
            raise BackendUnavailable(f"backend {self.backend!r} cannot be made: {e}") from None
        if "error" in answer:
            self.close()
            raise BackendUnavailable(answer["error"])
        self._hello = answer

    @property
    def name(self) -> str:
        """Of the backend, once it was made."""
        return str(self._hello.get("name", self.backend))

    def info(self) -> dict[str, str]:
        """What the backend says of itself."""
        return dict(self._hello.get("info", {}))

    def checks(self, kind: str) -> Iterator[Check]:
        """Its checks: ``"plain"`` or ``"sweeps"``."""
        for id, rules, profile in self._hello[kind]:
            yield Check(id, tuple(rules), partial(self._run, id), profile=profile)

    def _run(self, id: str) -> None:
        if self._process is None:
            self.start(self._folder)
        message = self._ask({"id": id, "timeout": self.timeout + GRACE_S}, self.timeout)["message"]
        if message:
            raise Failed(message)

    def _write(self, request: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer will say why
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def _ask(self, request: Any, limit: float) -> Any:
        """What the process answers. Raises `Mismatch` if it ends instead, or does not in time."""
        process, late = self._process, threading.Event()
        assert process is not None
        assert process.stdout is not None

        def expire() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(limit, expire)
        timer.daemon = True
        timer.start()
        try:
            self._write(request)
            line = process.stdout.readline()
        except BaseException:
            self.close(at_once=True)
            raise
        finally:
            timer.cancel()
        if line.endswith(b"\n") and not late.is_set():
            return json.loads(line)
        status = process.wait()
        self.close()
        if late.is_set():
            raise Mismatch("an end", f"none after {limit:g} s")
        if status == -signal.SIGINT:
            raise KeyboardInterrupt
        raise Mismatch("an end of the check", how_ended(status, _BEYOND))

    def close(self, at_once: bool = False) -> None:
        """End the process, if there is one; the next check would start another.

        Parameters
        ----------
        at_once
            Do not let it finish, which it may not do.
        """
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            if not at_once:
                process.wait(END_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def how_ended(status: int, hint: str = "") -> str:
    """How a process ended, by the status that `subprocess` gives; and what that hints at where it
    has touched what it must not.
    """
    if status >= 0:
        return f"the end of its process, with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    more = hint if name in ("SIGSEGV", "SIGBUS") else ""
    return f"the end of its process, by {name}{more}"
