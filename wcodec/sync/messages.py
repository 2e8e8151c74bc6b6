"""What a sender of weights and its receivers say to each other.
Spec: spec/sync.md.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

from wcodec.errors import DecodeError

MAGIC: Final = b"WCSY"
MAJOR: Final = 1
HELD: Final = 1  #: a receiver tells what it holds
FULL: Final = 2  #: all tensors of a version
DELTA: Final = 3  #: what a version differs in from its parent
HEADER_NBYTES: Final = 64
SLACK_NBYTES: Final = 1 << 26  #: that a message may have beyond its tensors
MAX_VERSION: Final = (1 << 63) - 1

_HEADER: Final = struct.Struct("<4sBBHQQQ32s")
_NO_HASH: Final = bytes(32)


class Held(NamedTuple):
    """A version that someone has.

    Attributes
    ----------
    version
        Its number, at least 1.
    content_hash
        Of its tensors (R11.4 of spec/wcodec.md): 32 bytes.
    """

    version: int
    content_hash: bytes


class Message(NamedTuple):
    """A version on its way to receivers.

    Attributes
    ----------
    held
        What a receiver has afterwards.
    parent
        Number of the version that it differs from; 0 of all tensors.
    data
        The bytes of a ``.wcodec`` file.
    """

    held: Held
    parent: int
    data: Any

    @property
    def kind(self) -> int:
        """`FULL` or `DELTA`."""
        return DELTA if self.parent else FULL

    def header(self) -> bytes:
        """What goes before `data`."""
        return _HEADER.pack(
            MAGIC, MAJOR, self.kind, 0, self.held.version, self.parent, len(self.data),
            self.held.content_hash,
        )  # fmt: skip


class Header(NamedTuple):
    """A header that was read (S2, S3).

    Attributes
    ----------
    kind
        `HELD`, `FULL` or `DELTA`.
    held
        The version that it tells of; ``None`` of a receiver that has none.
    parent
        Of a `DELTA`, the number of the version that it differs from; else 0.
    nbytes
        Bytes that follow.
    """

    kind: int
    held: Held | None
    parent: int
    nbytes: int


def most_nbytes(max_nbytes: int | None) -> int | None:
    """The most bytes that a message may have whose tensors may have `max_nbytes`."""
    return None if max_nbytes is None else max_nbytes + SLACK_NBYTES


def held_message(held: Held | None) -> bytes:
    """What a receiver says when it connects, and after each version that it has applied."""
    version, content_hash = held or (0, _NO_HASH)
    return _HEADER.pack(MAGIC, MAJOR, HELD, 0, version, 0, 0, content_hash)


def read_header(raw: bytes, kinds: tuple[int, ...], max_nbytes: int | None = None) -> Header:
    """Read and check a header.

    Parameters
    ----------
    raw
        `HEADER_NBYTES` bytes.
    kinds
        Those that may come.
    max_nbytes
        The most bytes that may follow.

    Raises
    ------
    DecodeError
        ``bad_magic``: it is none. ``unsupported_version``, ``bad_value``; ``resource_limit``: more
        bytes follow.
    """
    magic, major, kind, reserved, version, parent, nbytes, content_hash = _HEADER.unpack(raw)
    if magic != MAGIC:
        raise DecodeError("bad_magic", "what has come is no message of wcodec.sync")
    if major != MAJOR:
        raise DecodeError(
            "unsupported_version", f"a message of version {major}; this wcodec knows {MAJOR}"
        )
    is_none = version == 0 and content_hash == _NO_HASH and kind == HELD
    if (
        kind not in kinds
        or reserved
        or not (is_none or 0 < version <= MAX_VERSION)
        or (kind == HELD and nbytes > 0)
        or (kind == DELTA and not 0 < parent < version)
        or (kind != DELTA and parent > 0)
    ):
        raise DecodeError("bad_value", "a message's header has a value that it must not have")
    if max_nbytes is not None and nbytes > max_nbytes:
        raise DecodeError(
            "resource_limit", f"a message of {nbytes} bytes, where {max_nbytes} may come"
        )
    return Header(kind, None if is_none else Held(version, content_hash), parent, nbytes)
