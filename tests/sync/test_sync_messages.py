"""Headers of messages: spec/sync.md, S1 to S3."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wcodec.errors import DecodeError
from wcodec.sync.messages import (
    DELTA,
    FULL,
    HEADER_NBYTES,
    HELD,
    Header,
    Held,
    Message,
    held_message,
    read_header,
)

ALL = HELD, FULL, DELTA
HASH = bytes(range(32))
LAST = (1 << 63) - 1  #: the greatest version


def packed(**changed: Any) -> bytes:
    """A DELTA's header, by the table of S1, in which some fields have other values."""
    fields: dict[str, Any] = {
        "magic": b"WCSY", "major": 1, "kind": DELTA, "reserved": 0, "version": 7, "parent": 6,
        "nbytes": 100, "content_hash": HASH,
    }  # fmt: skip
    assert changed.keys() <= fields.keys()
    return struct.pack("<4sBBHQQQ32s", *(fields | changed).values())


def written(header: Header) -> bytes:
    """The bytes of a header that was read."""
    if header.held is None or header.kind == HELD:
        return held_message(header.held)
    return packed(
        kind=header.kind, version=header.held.version, parent=header.parent,
        nbytes=header.nbytes, content_hash=header.held.content_hash,
    )  # fmt: skip


@pytest.mark.parametrize("held", [None, Held(1, HASH), Held(LAST, bytes(32))])
def test_what_is_held_comes_back(held: Held | None) -> None:
    raw = held_message(held)
    assert len(raw) == HEADER_NBYTES == 64
    assert read_header(raw, (HELD,)) == Header(HELD, held, 0, 0)


@pytest.mark.parametrize(("version", "parent"), [(1, 0), (2, 1), (LAST, LAST - 1), (LAST, 0)])
def test_messages_come_back(version: int, parent: int) -> None:
    message = Message(Held(version, HASH), parent, b"12345")
    kind = DELTA if parent else FULL
    assert message.kind == kind
    raw = message.header()
    assert raw == packed(
        kind=kind, version=version, parent=parent, nbytes=5, content_hash=HASH
    )  # fmt: skip
    assert read_header(raw, (FULL, DELTA), 5) == Header(kind, message.held, parent, 5)


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        ("bad_magic", {"magic": b"WCSZ"}),
        ("bad_magic", {"magic": bytes(4)}),
        ("bad_magic", {"magic": b"WCSZ", "major": 2, "kind": 9}),  # said first
        ("unsupported_version", {"major": 0}),
        ("unsupported_version", {"major": 2}),
        ("unsupported_version", {"major": 2, "kind": 9}),  # another version may have other kinds
        ("bad_value", {"kind": 0}),
        ("bad_value", {"kind": 4}),
        ("bad_value", {"reserved": 1}),
        ("bad_value", {"reserved": 1 << 15}),
        ("bad_value", {"version": 0, "parent": 0}),
        ("bad_value", {"version": 1 << 63}),
        ("bad_value", {"parent": 0}),
        ("bad_value", {"parent": 7}),
        ("bad_value", {"parent": 8}),
        ("bad_value", {"kind": FULL, "version": 0, "parent": 0}),
        ("bad_value", {"kind": FULL, "version": 0, "parent": 0, "content_hash": bytes(32)}),
        ("bad_value", {"kind": FULL, "version": 1 << 63, "parent": 0}),
        ("bad_value", {"kind": FULL}),
        ("bad_value", {"kind": HELD, "nbytes": 0}),
        ("bad_value", {"kind": HELD, "parent": 0}),
        ("bad_value", {"kind": HELD, "parent": 0, "nbytes": 0, "version": 0}),
        ("bad_value", {"kind": HELD, "parent": 0, "nbytes": 0, "version": 1 << 63}),
        ("bad_value", {"kind": HELD, "parent": 1, "nbytes": 0, "version": 0,
                       "content_hash": bytes(32)}),
        ("resource_limit", {"nbytes": 101}),
    ],
)  # fmt: skip
def test_a_rule_that_is_broken(code: str, changed: dict[str, Any]) -> None:
    assert read_header(packed(), ALL, 100).nbytes == 100
    with pytest.raises(DecodeError) as e:
        read_header(packed(**changed), ALL, 100)
    assert e.value.code == code


@pytest.mark.parametrize("kinds", [(HELD,), (FULL,), (HELD, FULL)])
def test_a_kind_that_may_not_come(kinds: tuple[int, ...]) -> None:
    with pytest.raises(DecodeError, match="bad_value"):
        read_header(packed(), kinds)


def raws() -> st.SearchStrategy[bytes]:
    """64 bytes; of many, the fields are near those that are right."""
    number = st.integers(0, 3) | st.integers(0, (1 << 64) - 1)
    near = st.builds(
        packed, major=st.just(1), kind=st.integers(0, 4), reserved=st.sampled_from([0, 0, 1]),
        version=number, parent=number, nbytes=number,
        content_hash=st.just(bytes(32)) | st.binary(min_size=32, max_size=32),
    )  # fmt: skip
    return st.binary(min_size=64, max_size=64) | near


@given(raws())
@example(packed())
@example(held_message(None))
def test_any_64_bytes(raw: bytes) -> None:
    """They are refused, or what is read is all that they say."""
    header = None
    with contextlib.suppress(DecodeError):
        header = read_header(raw, ALL)
    assert header is None or written(header) == raw
