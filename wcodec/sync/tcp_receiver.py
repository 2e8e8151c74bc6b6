"""A client that has weights, sent over TCP.
Spec: spec/sync.md.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

from wcodec.backends import Backend
from wcodec.processes import Lock, Workers
from wcodec.sync.messages import (
    DELTA,
    FULL,
    HEADER_NBYTES,
    Held,
    Message,
    held_message,
    most_nbytes,
    read_header,
)
from wcodec.sync.tcp import PIECE_NBYTES, address_of, keep_alive
from wcodec.sync.versions import SubscribedReceiver, Subscriber

CONNECT_S: Final = 10.0  #: for one try to connect, which `close` waits for
RETRY_S: Final = 0.1, 5.0  #: the first pause between two tries to connect, and the longest
INBOX: Final = 16  #: messages that are taken in before they are applied


class TcpReceiver(SubscribedReceiver):
    """Has weights, and turns them into those of a `TcpSender`. A thread takes in what comes
    meanwhile, and connects again if the connection is lost.

    Parameters
    ----------
    url
        ``tcp://host:port`` of the sender, which may begin later.
    tensors
        As of `Subscriber`.
    held
        What `tensors` are, if that is known; see `held`.
    checked, backend, max_nbytes, max_memory
        As of `Subscriber`. Of `max_nbytes`, a message may have 64 MiB more.

    Raises
    ------
    ValueError
        The URL is of another form.
    """

    def __init__(
        self,
        url: str,
        tensors: Mapping[str, Any] | None = None,
        *,
        held: Held | None = None,
        checked: str = "sampled",
        backend: Backend | None = None,
        max_nbytes: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        if held is not None and tensors is None:
            raise ValueError("held says what tensors are, and none are given")
        self._address, self.url = address_of(url), url
        self._max_nbytes = most_nbytes(max_nbytes)
        self._inbox, self._updating = deque[Message](), Lock()
        self._changed, self._closed = threading.Condition(Lock()), False
        self._last = held  # what has been received
        self._beginning = 0  # counts how often all tensors were asked for
        self._socket: socket.socket | None = None
        self._error: Exception | None = None  # what keeps versions from coming
        self._is_lost = False  # by that, for ever
        subscriber = Subscriber(
            tensors, checked=checked, backend=backend, max_nbytes=max_nbytes, max_memory=max_memory
        )
        subscriber.held = held
        super().__init__(subscriber)
        self._worker = Workers(1, "wcodec-sync")
        self._running = self._worker.begin(self._run)

    # ---- for who has the weights
    def update(self, timeout: float | None = 0.0) -> int | None:
        """As `Receiver.update`; all that has come by then, version by version.

        Raises
        ------
        DecodeError, MemoryError
            Also if the peer is no sender of weights, or sends more than there is room for: nothing
            comes any more then.
        RuntimeError
            It is closed, or of another process.
        """
        self._check_process()
        with self._updating:
            with self._changed:
                self._changed.wait_for(lambda: self._inbox or self._over, timeout)
                n = len(self._inbox)
                if self._closed:
                    raise RuntimeError("the receiver is closed")
                if n == 0 and self._is_lost and self._error is not None:
                    raise self._error
            for _ in range(n):
                self._apply_next()
        return self.version

    def _apply_next(self) -> None:
        with self._changed:
            if not self._inbox:  # all tensors of a version have replaced several
                return
            message = self._inbox.popleft()
            self._changed.notify_all()
        try:
            self._subscriber.apply(message)
        except BaseException:
            self._begin_again()
            raise
        self._say(self._subscriber.held)

    @property
    def _over(self) -> bool:
        """Whether nothing will come any more."""
        return self._closed or self._is_lost

    def _begin_again(self) -> None:
        """All tensors of a version are to come next."""
        with self._changed:
            self._inbox.clear()
            self._last, self._beginning = self._subscriber.held, self._beginning + 1
            self._changed.notify_all()
            self._disconnect()

    def _say(self, held: Held | None) -> None:
        """Tell the sender what is held. If the connection is lost, the thread does that."""
        with self._changed, contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.sendall(held_message(held))

    def _trouble(self) -> str:
        return "" if self._error is None else f" ({self.url}: {self._error})"

    def close(self) -> None:
        """As `_End.close`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._disconnect()
        self._worker.close()

    def _disconnect(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _files(self) -> list[int]:
        return [] if self._socket is None else [self._socket.fileno()]

    # ---- in its thread
    def _run(self) -> None:
        delay, longest = RETRY_S
        while not self._over:
            try:
                with self._connected() as (s, beginning):
                    delay = RETRY_S[0]
                    while not self._closed:
                        self._take(self._receive(s), beginning)
            except (OSError, EOFError) as e:
                self._error = e
            except Exception as e:  # for who updates
                with self._changed:
                    self._error, self._is_lost = e, True
                    self._changed.notify_all()
            with self._changed:
                self._changed.wait_for(lambda: self._over, delay)
            delay = min(2 * delay, longest)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[tuple[socket.socket, int]]:
        with socket.create_connection(self._address, timeout=CONNECT_S) as s:
            if s.getsockname() == s.getpeername():  # nobody listens, and the system chose that port
                raise OSError("the receiver was connected to itself")
            keep_alive(s)
            s.settimeout(None)
            with self._changed:
                if self._closed:
                    raise EOFError("closed")
                s.sendall(held_message(self._last))
                applied = self._subscriber.held
                if applied not in (None, self._last):  # the rest has come, and is not applied yet
                    s.sendall(held_message(applied))
                self._socket, self._error, beginning = s, None, self._beginning
            try:
                yield s, beginning
            finally:
                with self._changed:
                    self._socket = None

    def _receive(self, s: socket.socket) -> Message:
        raw = bytes(_read(s, HEADER_NBYTES))
        header = read_header(raw, (FULL, DELTA), self._max_nbytes)
        assert header.held is not None
        return Message(header.held, header.parent, _read(s, header.nbytes))

    def _take(self, message: Message, beginning: int) -> None:
        with self._changed:
            is_full = message.parent == 0
            self._changed.wait_for(lambda: is_full or len(self._inbox) < INBOX or self._over)
            if beginning == self._beginning and not self._closed:
                if is_full:
                    self._inbox.clear()  # it needs none of them
                self._inbox.append(message)
                self._last = message.held
                self._changed.notify_all()


def _read(s: socket.socket, nbytes: int) -> bytearray:
    """So many bytes. Memory is taken as they come, whatever a header says."""
    data = bytearray()
    while len(data) < nbytes:
        piece = s.recv(min(nbytes - len(data), PIECE_NBYTES))
        if not piece:
            raise EOFError("the sender has ended the connection")
        data += piece
    return data
