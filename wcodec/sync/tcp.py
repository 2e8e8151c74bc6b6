"""What both ends of a TCP connection have."""

from __future__ import annotations

import contextlib
import socket
from typing import Final
from urllib.parse import urlsplit

SCHEME: Final = "tcp"
PIECE_NBYTES: Final = 1 << 20  #: written or read at once
SILENT_S: Final = 60.0  #: a peer that acknowledges nothing for so long is gone


def address_of(url: str) -> tuple[str, int]:
    """Host and port of ``tcp://host:port``.

    Raises
    ------
    ValueError
    """
    parts = urlsplit(url)
    with contextlib.suppress(ValueError):
        if parts.scheme == SCHEME and parts.hostname and parts.port is not None and not parts.path:
            return parts.hostname, parts.port
    raise ValueError(f"{url!r} is not of the form tcp://host:port")


def keep_alive(s: socket.socket) -> None:
    """Have the system find out that a peer has gone without a word."""
    s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (
        ("TCP_KEEPIDLE", int(SILENT_S / 3)), ("TCP_KEEPINTVL", int(SILENT_S / 6)),
        ("TCP_KEEPCNT", 4), ("TCP_USER_TIMEOUT", int(SILENT_S * 1000)),
    ):  # fmt: skip
        if (option := getattr(socket, name, None)) is not None:  # not all systems have them
            s.setsockopt(socket.IPPROTO_TCP, option, value)
