"""Messages of `wcodec.sync` by their rules, and both ends without a transport (spec/sync.md)."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import State, changed, copies, gaussian, same, steps

from wcodec.errors import DecodeError, EncodeError
from wcodec.sync import Held, Message, Publisher, Subscriber, versions
from wcodec.sync.messages import (
    DELTA,
    FULL,
    HEADER_NBYTES,
    HELD,
    held_message,
    read_header,
)

KINDS = (HELD, FULL, DELTA)
HASH = bytes(range(32))


# ---- headers -------------------------------------------------------------------------------------
@pytest.mark.parametrize("message", [Message(Held(7, HASH), p, b"xyz") for p in (0, 6)])
def test_headers_of_versions(message: Message) -> None:
    header = read_header(message.header(), (FULL, DELTA))
    assert header == (message.kind, message.held, message.parent, 3)


@pytest.mark.parametrize("held", [None, Held(1, HASH), Held((1 << 63) - 1, bytes(32))])
def test_headers_of_receivers(held: Held | None) -> None:
    assert read_header(held_message(held), (HELD,)) == (HELD, held, 0, 0)


DELTA_HEADER = Message(Held(7, HASH), 6, b"xyz").header()
FULL_HEADER = Message(Held(7, HASH), 0, b"xyz").header()


@pytest.mark.parametrize(
    ("header", "at", "value", "code"),
    [
        (DELTA_HEADER, 0, b"w", "bad_magic"),
        (DELTA_HEADER, 4, b"\x02", "unsupported_version"),
        (DELTA_HEADER, 5, b"\x00", "bad_value"),
        (DELTA_HEADER, 5, b"\x04", "bad_value"),
        (DELTA_HEADER, 6, b"\x01", "bad_value"),
        (DELTA_HEADER, 8, bytes(8), "bad_value"),
        (DELTA_HEADER, 15, b"\x80", "bad_value"),
        (DELTA_HEADER, 16, b"\x07", "bad_value"),
        (DELTA_HEADER, 16, b"\x00", "bad_value"),
        (FULL_HEADER, 16, b"\x01", "bad_value"),
        (FULL_HEADER, 8, bytes(8), "bad_value"),
        (held_message(Held(7, HASH)), 24, b"\x01", "bad_value"),
        (held_message(Held(7, HASH)), 16, b"\x01", "bad_value"),
        (held_message(None), 32, b"\x01", "bad_value"),
        (DELTA_HEADER, 24, b"\xff\xff", "resource_limit"),
    ],
)
def test_each_rule_of_headers(header: bytes, at: int, value: bytes, code: str) -> None:
    read_header(header, KINDS, 1000)
    broken = header[:at] + value + header[at + len(value) :]
    with pytest.raises(DecodeError) as e:
        read_header(broken, KINDS, 1000)
    assert e.value.code == code


def test_only_kinds_that_may_come_are_taken() -> None:
    with pytest.raises(DecodeError, match="bad_value"):
        read_header(DELTA_HEADER, (HELD,))


@given(
    st.binary(min_size=HEADER_NBYTES, max_size=HEADER_NBYTES),
    st.sampled_from([b"", b"WCSY", b"WCSY\x01", *(b"WCSY\x01" + bytes([k, 0, 0]) for k in KINDS)]),
)
def test_a_header_is_refused_or_is_written_again_as_it_was(raw: bytes, start: bytes) -> None:
    raw = start + raw[len(start) :]
    try:
        header = read_header(raw, KINDS)
    except DecodeError:
        return
    if header.kind == HELD:
        assert held_message(header.held) == raw
        return
    assert header.held is not None
    again = bytearray(Message(header.held, header.parent, b"").header())
    again[24:32] = header.nbytes.to_bytes(8, "little")
    assert bytes(again) == raw


# ---- both ends -----------------------------------------------------------------------------------
def next_message(publisher: Publisher, subscriber: Subscriber) -> Message:
    message = publisher.message(subscriber.held)
    assert message is not None
    return message


def follow(publisher: Publisher, subscriber: Subscriber) -> int:
    """Apply all that there is; returns how many messages that was."""
    n = 0
    while (message := publisher.message(subscriber.held)) is not None:
        subscriber.apply(message)
        n += 1
    return n


def test_every_version_comes_bit_for_bit() -> None:
    publisher, always, late = Publisher(), Subscriber(), Subscriber()
    for i, state in enumerate(steps(12), 1):
        assert publisher.publish(state) == i
        assert follow(publisher, always) == 1
        assert same(dict(always.tensors), state)
        if i % 4 == 0:
            follow(publisher, late)
            assert same(dict(late.tensors), state)
    assert publisher.message(always.held) is None


def test_tensors_of_pytorch_are_changed_in_place() -> None:
    def state(i: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        w = torch.randn(200, 300).to(torch.bfloat16)
        w[i] += 1
        return {"w": w, "n": torch.tensor(i), "f8": torch.full((5,), i).to(torch.float8_e4m3fn)}

    live = {name: torch.zeros_like(t) for name, t in state(0).items()}
    where = {name: t.data_ptr() for name, t in live.items()}
    publisher, subscriber = Publisher(), Subscriber(live, checked="full")
    for i in range(4):
        publisher.publish(state(i))
        follow(publisher, subscriber)
        for name, t in state(i).items():
            assert live[name].dtype == t.dtype
            assert torch.equal(live[name].float(), t.float()), name
    assert {name: t.data_ptr() for name, t in live.items()} == where


def test_tied_scalar_empty_and_small_tensors() -> None:
    publisher, subscriber = Publisher(), Subscriber()
    for i in range(3):
        w = np.full((40, 50), i, ml_dtypes.bfloat16)
        state = {
            "w": w, "tied": w, "0d": np.array(i, np.int64), "empty": np.empty((0, 3), np.float16),
            "f8": np.full(7, i, ml_dtypes.float8_e5m2),
        }  # fmt: skip
        publisher.publish(state)
        follow(publisher, subscriber)
        assert same(dict(subscriber.tensors), state)


def test_a_state_that_shares_nothing_with_the_one_before() -> None:
    publisher, subscriber = Publisher(), Subscriber()
    for name in ("a", "b", "b"):
        publisher.publish({name: np.arange(100.0)})
        assert follow(publisher, subscriber) == 1
        assert list(subscriber.tensors) == [name]


def run(n: int) -> list[State]:
    rng = np.random.default_rng(0)
    out: list[State] = [{"a": gaussian(rng, (200, 300)), "b": gaussian(rng, (70,))}]
    for _ in range(n - 1):
        out.append({name: changed(rng, array, 0.01) for name, array in out[-1].items()})
    return out


def test_a_delta_of_another_version_changes_nothing() -> None:
    states, publisher = run(3), Publisher()
    for state in states[:2]:
        publisher.publish(state)
    subscriber = Subscriber()
    follow(publisher, subscriber)  # all of version 2
    first = Publisher()
    first.publish(states[0])
    first.publish(states[1])
    assert first.newest is not None
    delta = first.message(Held(1, b""))  # not known: all
    assert delta is not None
    assert delta.kind == FULL
    publisher.publish(states[2])
    message = next_message(publisher, subscriber)
    assert message.kind == DELTA
    for held in (None, Held(1, HASH), Held(2, HASH)):
        other = Subscriber(copies(states[1]))
        other.held = held
        with pytest.raises(DecodeError, match="bad_base"):
            other.apply(message)
        assert other.held == held
        assert same(dict(other.tensors), states[1])
    subscriber.apply(message)
    assert same(dict(subscriber.tensors), states[2])


def test_what_somebody_has_changed_is_found_and_mended() -> None:
    states, publisher, live = run(2), Publisher(), copies(run(1)[0])
    publisher.publish(states[0])
    subscriber = Subscriber(live)
    follow(publisher, subscriber)
    live["a"].view(np.uint16)[...] ^= 1
    publisher.publish(states[1])
    with pytest.raises(DecodeError, match="bad_base"):
        follow(publisher, subscriber)
    assert subscriber.held is None
    assert next_message(publisher, subscriber).kind == FULL
    follow(publisher, subscriber)
    assert same(live, states[1])


def test_messages_that_are_not_what_they_say() -> None:
    states, publisher = run(2), Publisher()
    publisher.publish(states[0])
    subscriber = Subscriber()
    full = next_message(publisher, subscriber)
    for wrong in (
        full._replace(held=Held(1, HASH)),
        full._replace(held=Held(2, full.held.content_hash), parent=1),
    ):
        subscriber.held = None if not wrong.parent else Held(1, HASH)
        with pytest.raises(DecodeError, match="bad_value"):
            subscriber.apply(wrong)
    subscriber.held = None
    subscriber.apply(full)
    publisher.publish(states[1])
    delta = next_message(publisher, subscriber)
    with pytest.raises(DecodeError, match="bad_value"):
        subscriber.apply(delta._replace(parent=0))
    subscriber.apply(delta)
    assert same(dict(subscriber.tensors), states[1])


def test_damage_is_refused_and_mended() -> None:
    states, publisher = run(2), Publisher()
    publisher.publish(states[0])
    first = Subscriber()
    follow(publisher, first)
    held = first.held
    publisher.publish(states[1])
    delta, full = next_message(publisher, first), publisher.message(None)
    assert full is not None
    rng, n_refused = np.random.default_rng(0), 0
    for message in (delta, full):
        for at in rng.integers(0, len(message.data), 60):
            data = bytearray(message.data)
            data[at] ^= 1 << int(rng.integers(8))
            live = copies(states[0])
            subscriber = Subscriber(live)
            subscriber.held = held
            try:
                subscriber.apply(message._replace(data=bytes(data)))
            except DecodeError:
                n_refused += 1
                subscriber.apply(full)
            assert same(live, states[1])
    assert n_refused > 100


def test_limits() -> None:
    publisher, state = Publisher(), run(1)[0]
    publisher.publish(state)
    with pytest.raises(DecodeError, match="resource_limit"):
        follow(publisher, Subscriber(max_nbytes=1000))
    with pytest.raises(ValueError, match="none of"):
        Subscriber(checked="never")


def test_numbers_are_the_callers() -> None:
    publisher, states = Publisher(), run(3)
    assert publisher.publish(states[0], 100) == 100
    assert publisher.publish(states[1]) == 101
    for wrong in (101, 1, 0, -1):
        with pytest.raises(EncodeError, match="bad_option"):
            publisher.publish(states[2], wrong)
    assert publisher.publish(states[2], 500) == 500
    with pytest.raises(EncodeError, match="bad_option"):
        Publisher().publish(states[0], 0)


def test_after_an_error_the_version_before_is_the_newest() -> None:
    publisher, states, subscriber = Publisher(), run(2), Subscriber()
    publisher.publish(states[0])
    follow(publisher, subscriber)
    with pytest.raises(EncodeError, match="unsupported_dtype"):
        publisher.publish({"a": np.array(["text"])})
    assert publisher.message(subscriber.held) is None
    assert publisher.publish(states[1]) == 2
    assert next_message(publisher, subscriber).kind == DELTA
    follow(publisher, subscriber)
    assert same(dict(subscriber.tensors), states[1])


def test_what_is_kept_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "MAX_DELTAS", 5)
    publisher, states = Publisher(), run(12)
    for state in states:
        publisher.publish(state)
        assert len(publisher._deltas) <= 5
    monkeypatch.setattr(versions, "MAX_SHARE", 0.02)
    for state in states:
        publisher.publish(state)
        room = 0.02 * sum(a.nbytes for a in state.values())
        assert sum(len(m.data) for m in publisher._deltas.values()) <= room
    subscriber = Subscriber()
    follow(publisher, subscriber)
    assert same(dict(subscriber.tensors), states[-1])
