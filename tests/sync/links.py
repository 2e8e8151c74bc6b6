"""What tests of sent weights have in common: waiting, tensors of PyTorch, connections that fail."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from runs import BF16, State

from wcodec.sync.tcp import address_of

LOCAL = "tcp://127.0.0.1:0"
LONG = 600.0  #: seconds: as long as a test may take


def until(condition: Callable[[], Any]) -> None:
    """Wait until something is so; if it never is, the time limit of tests ends it."""
    while not condition():
        time.sleep(0.002)


def threads_of_ends() -> set[threading.Thread]:
    """Threads that ends of TCP may have begun; fsspec, in other tests, has some of such names."""
    ours = "wcodec-sync", "asyncio"
    return {t for t in threading.enumerate() if t.name.startswith(ours)}


def running(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """A thread that calls something, and a list that has what it returns or raises."""
    found: list[Any] = []

    def call() -> None:
        try:
            found.append(function())
        except Exception as e:
            found.append(e)

    thread = threading.Thread(target=call)
    thread.start()
    return thread, found


def torch_of(state: State) -> dict[str, torch.Tensor]:
    """Copies, as tensors of bfloat16."""
    return {n: torch.from_numpy(a.view(np.int16).copy()).view(torch.bfloat16)
            for n, a in state.items()}  # fmt: skip


def arrays_of(live: Mapping[str, Any]) -> State:
    """Arrays, or those in the memory of tensors of bfloat16."""
    return {n: t.view(torch.int16).numpy().view(BF16) if isinstance(t, torch.Tensor) else t
            for n, t in live.items()}  # fmt: skip


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
