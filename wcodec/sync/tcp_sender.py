"""A server that sends weights over TCP.
Spec: spec/sync.md.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from wcodec.backends import Backend
from wcodec.errors import DecodeError
from wcodec.planner.options import EncodeOptions
from wcodec.processes import Lock, Workers
from wcodec.sync.ends import Sender
from wcodec.sync.messages import HEADER_NBYTES, HELD, Held, read_header
from wcodec.sync.tcp import PIECE_NBYTES, SCHEME, address_of, keep_alive
from wcodec.sync.versions import Publisher

HELLO_S: Final = 30.0  #: a receiver says so soon what it has


class _Client:
    """A receiver, as the server sees it."""

    def __init__(self, s: socket.socket, held: Held | None) -> None:
        self.held, self.sent, self.news = held, held, asyncio.Event()
        self.name = "{}:{}".format(*s.getpeername()[:2])


class TcpSender(Sender):
    """Sends weights to any number of receivers, which come and go. One that comes back gets what it
    lacks.

    Anyone who reaches the port gets the weights: nothing is encrypted, and nobody is asked who they
    are. Use it in a network that you trust, or through a tunnel.

    Parameters
    ----------
    url
        ``tcp://host:port`` to listen at; port 0 for one that is free.
    options, backend
        How weights are encoded, and by what.
    max_behind
        `send` waits while a receiver that is connected lacks more versions than this; ``None`` to
        never wait: a receiver that is far behind gets all tensors then.
    timeout
        The most seconds that `send` waits; ``None`` for ever.

    Raises
    ------
    OSError
        The address cannot be listened at.
    ValueError
        The URL is of another form.

    Attributes
    ----------
    url
        With the port that it has.
    """

    def __init__(
        self,
        url: str,
        options: EncodeOptions | None = None,
        backend: Backend | None = None,
        *,
        max_behind: int | None = 8,
        timeout: float | None = None,
    ) -> None:
        host, port = address_of(url)
        self._publisher = Publisher(options, backend)
        self._max_behind, self._timeout = max_behind, timeout
        self._clients = set[_Client]()
        self._connections = dict[asyncio.Task[None], asyncio.StreamWriter]()  # said HELD or not
        self._error: Exception | None = None  # of the thread, for who sends next
        self._recent = deque[Held](maxlen=1024)  # versions, the newest last
        self._changed, self._closed = threading.Condition(Lock()), False
        self._sending = Lock()  # versions are told of in the order of their numbers
        self._loop, self._worker = asyncio.new_event_loop(), Workers(1, "wcodec-sync")
        try:
            self._server = self._loop.run_until_complete(
                asyncio.start_server(self._accept, host, port)
            )
        except BaseException:
            self._loop.close()
            raise
        found = self._server.sockets[0].getsockname()
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{SCHEME}://{shown}:{found[1]}"
        super().__init__()
        self._running = self._worker.begin(self._loop.run_forever)

    # ---- for who sends
    def send(self, state_dict: Mapping[str, Any], version: int | None = None) -> int:
        """As `Sender.send`. It returns when the version is encoded, and is sent by a thread.

        Raises
        ------
        TimeoutError
            A receiver is too far behind: nothing is sent.
        EncodeError, MemoryError
            Also of a version before, which a receiver could not be sent: it is disconnected, and
            nothing is sent now.
        RuntimeError
            It is closed, or of another process.
        """
        self._check()
        if self._max_behind is not None:
            self._wait(self._max_behind, self._timeout)
        with self._sending:
            number = self._publisher.publish(state_dict, version)
            newest = self._publisher.newest
            assert newest is not None
            with self._changed:
                self._recent.append(newest)
        self._loop.call_soon_threadsafe(self._tell)
        return number

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all receivers that are connected have applied the newest version.

        Parameters
        ----------
        timeout
            The most seconds to wait; ``None`` for ever.

        Raises
        ------
        TimeoutError, RuntimeError
            As `send`.
        EncodeError, MemoryError
            A receiver could not be sent a version.
        """
        self._check()
        self._wait(0, timeout)

    def receivers(self) -> dict[str, int | None]:
        """Addresses of the receivers that are connected, and the versions that they have."""
        with self._changed:
            return {c.name: None if c.held is None else c.held.version for c in self._clients}

    def close(self) -> None:
        """As `_End.close`. Receivers that lack something do not get it: see `flush`."""
        with self._changed:
            was_closed, self._closed = self._closed, True
            self._changed.notify_all()
        if was_closed or self._is_forked:  # the loop is the parent's
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._running.result()
        self._worker.close()
        self._loop.close()

    def _files(self) -> list[int]:
        theirs = (writer.get_extra_info("socket") for writer in self._connections.values())
        return [s.fileno() for s in (*self._server.sockets, *theirs)]

    def _check(self) -> None:
        self._check_process()
        if self._closed:
            raise RuntimeError("the sender is closed")
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _wait(self, behind: int, timeout: float | None) -> None:
        """Wait until no receiver lacks more than so many versions."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                self._check()
                slow = [c.name for c in self._clients if self._lacks(c.held) > behind]
                if not slow:
                    return
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(
                        f"{', '.join(slow)}: more than {behind} versions behind for {timeout} s"
                    )
                self._changed.wait(left)

    def _lacks(self, held: Held | None) -> int:
        """How many versions a receiver lacks; one that has nothing it can build on lacks one."""
        if not self._recent or held == self._recent[-1]:
            return 0
        if held is None or held not in self._recent:
            return 1
        return len(self._recent) - 1 - self._recent.index(held)

    # ---- in the thread of the loop
    def _tell(self) -> None:
        for client in self._clients:
            client.news.set()

    async def _end(self) -> None:
        for s in self._server.sockets:  # `close` would lose those that are being accepted
            self._loop.remove_reader(s)
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in self._connections:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.1)  # before Python 3.12, wait_for may go on
        self._server.close()
        await self._loop.shutdown_default_executor()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._connections[task] = writer
        task.add_done_callback(self._let_go)

    def _let_go(self, task: asyncio.Task[None]) -> None:
        """End a connection at once, also one that takes nothing of what is still to be sent."""
        self._connections.pop(task).transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a receiver until one side ends it."""
        client: _Client | None = None
        s = writer.get_extra_info("socket")
        try:
            keep_alive(s)
            client = _Client(s, await asyncio.wait_for(_read_held(reader), HELLO_S))
            with self._changed:
                self._clients.add(client)
            listening = asyncio.ensure_future(self._listen(reader, client))
            try:
                await self._feed(writer, client, listening)
            finally:
                listening.cancel()
        except (OSError, EOFError, DecodeError, asyncio.TimeoutError):
            pass  # it is gone, or no receiver: it may come back
        except Exception as e:
            self._error = e
        except asyncio.CancelledError:
            if not self._closed:
                raise
        finally:
            with self._changed:
                if client is not None:
                    self._clients.discard(client)
                self._changed.notify_all()

    async def _listen(self, reader: asyncio.StreamReader, client: _Client) -> None:
        """Take what a receiver says that it has."""
        while True:
            held = await _read_held(reader)
            with self._changed:
                client.held = held
                if held is None:  # something went wrong there: all tensors come next
                    client.sent = None
                    client.news.set()
                self._changed.notify_all()

    async def _feed(
        self, writer: asyncio.StreamWriter, client: _Client, listening: asyncio.Future[None]
    ) -> None:
        """Send a receiver what it lacks, as versions come."""
        while True:
            client.news.clear()
            sent = client.sent
            message = await asyncio.to_thread(self._publisher.message, sent)
            if client.sent is not sent:
                continue
            if message is None:
                news = asyncio.ensure_future(client.news.wait())
                both: set[asyncio.Future[Any]] = {news, listening}
                try:
                    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    news.cancel()
                if listening.done():
                    return listening.result()
                continue
            client.sent = message.held
            writer.write(message.header())
            data = memoryview(message.data)
            for start in range(0, len(data), PIECE_NBYTES):
                writer.write(data[start : start + PIECE_NBYTES])
                await writer.drain()


async def _read_held(reader: asyncio.StreamReader) -> Held | None:
    return read_header(await reader.readexactly(HEADER_NBYTES), (HELD,)).held
