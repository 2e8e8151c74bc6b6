"""What tests of weights over TCP have in common: a model's states, and connections that fail."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from runs import State, changed, gaussian

from wcodec.sync.tcp import address_of

LOCAL = "tcp://127.0.0.1:0"
LONG = 120.0  #: seconds that nothing takes


def states_of(n: int, seed: int = 0, n_rows: int = 100) -> list[State]:
    """A model of fixed shapes after each of `n` steps."""
    rng = np.random.default_rng(seed)
    now: State = {"a": gaussian(rng, (n_rows, 400)), "b": gaussian(rng, (500,))}
    out = [now]
    for _ in range(n - 1):
        now = {name: changed(rng, array, 0.01) for name, array in now.items()}
        out.append(now)
    return out


def until(condition: Callable[[], Any]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def free_url() -> str:
    """An address that nobody listens at."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{s.getsockname()[1]}"


@contextlib.contextmanager
def forked(call: Callable[[], bool]) -> Iterator[None]:
    """A child that calls something, which is true, and lives until the context ends. It has called
    it when the context begins.
    """
    (there, done), (wait, end) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(end)
            code = 0 if call() else 2
            os.write(done, b"1")
            os.read(wait, 1)
        finally:
            os._exit(code)
    os.close(done)
    os.close(wait)
    try:
        os.read(there, 1)
        yield
    finally:
        os.close(end)
        os.close(there)
        assert os.waitpid(child, 0)[1] == 0


class Link:
    """Passes bytes on, in pieces of random sizes.

    Parameters
    ----------
    url
        Of the sender.

    Attributes
    ----------
    limits
        After how many of the sender's bytes each next connection is cut; without one, it is not.
    passed
        How many of the sender's bytes each connection has passed on.
    delay
        Seconds before each piece.
    """

    def __init__(self, url: str) -> None:
        self.limits: Iterator[int] = iter(())
        self.passed, self.delay = list[int](), 0.0
        self._behind, self._rng = address_of(url), random.Random(0)
        self._open = set[socket.socket]()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def cut(self) -> None:
        """Cut the connection that there is."""
        for s in list(self._open):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        while True:
            try:
                there, _ = self._server.accept()
            except OSError:
                return
            with there, socket.socket() as here:
                if here.connect_ex(self._behind):
                    continue
                self._open = {there, here}
                self.passed.append(0)
                back = threading.Thread(target=self._copy, args=(there, here))
                back.start()
                self._copy(here, there, next(self.limits, None), is_counted=True)
                back.join()
                self._open = set()

    def _copy(
        self, source: socket.socket, target: socket.socket, limit: int | None = None,
        is_counted: bool = False,
    ) -> None:  # fmt: skip
        with contextlib.suppress(OSError):
            while limit is None or self.passed[-1] < limit:
                n = self._rng.choice([1, 7, 63, 64, 65, 1000, 65536])
                if limit is not None:
                    n = min(n, limit - self.passed[-1])
                if not (data := source.recv(n)):
                    break
                time.sleep(self.delay)
                target.sendall(data)
                if is_counted:
                    self.passed[-1] += len(data)
        for s in (source, target):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """As that of a socket."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        self._thread.join()
