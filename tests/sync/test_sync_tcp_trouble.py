"""Weights over TCP: links that fail, peers that do nothing, ends that are closed at any moment."""

from __future__ import annotations

import gc
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from typing import Any

import numpy as np
import pytest
from links import LOCAL, LONG, Link, forked, free_url, running, threads_of_ends, until
from runs import copies, fixed_steps, same
from sampling import sampled

from wcodec.sync import tcp_receiver, versions
from wcodec.sync.messages import HEADER_NBYTES, Held, Message, held_message, read_header
from wcodec.sync.tcp import address_of
from wcodec.sync.tcp_receiver import TcpReceiver
from wcodec.sync.tcp_sender import TcpSender
from wcodec.sync.versions import Publisher


@pytest.fixture(autouse=True)
def _nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No thread is, and no socket: a warning of one that is collected is an error."""
    monkeypatch.setattr(tcp_receiver, "RETRY_S", (0.005, 0.02))
    before = threads_of_ends()
    yield
    gc.collect()
    assert threads_of_ends() <= before


def connected(sender: TcpSender, held: Held | None = None) -> socket.socket:
    """A receiver that says what it has, and nothing else."""
    s = socket.create_connection(address_of(sender.url), timeout=LONG)
    s.sendall(held_message(held))
    return s


def ends(s: socket.socket) -> bool:
    """Read until the connection ends."""
    try:
        while s.recv(1 << 20):
            pass
    except ConnectionResetError:
        pass
    return True


def nbytes_of(states: list[Any]) -> tuple[int, int]:
    """Bytes of the message of all tensors, and of the longest of the others."""
    publisher, sizes, held = Publisher(), list[int](), None
    for state in states:
        publisher.publish(state)
        message = publisher.message(held)
        assert message is not None
        held = message.held
        sizes.append(HEADER_NBYTES + len(message.data))
    return sizes[0], max(sizes[1:])


# ---- links ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", sampled(range(4), 2))
def test_connections_that_are_cut_anywhere(seed: int) -> None:
    """What has come as a whole does not come again, and all tensors come once."""
    states, rng = fixed_steps(12, seed), random.Random(seed)
    full, delta = nbytes_of(states)
    live = copies(states[5])
    with (
        TcpSender(LOCAL, max_behind=None) as sender,
        closing(Link(sender.url)) as link,
        TcpReceiver(link.url, live) as receiver,
    ):
        sender.send(states[0])
        assert receiver.wait_for(1, LONG) == 1
        until(lambda: sum(link.passed) == full)
        link.limits = iter([rng.randrange(2 * delta) for _ in range(30)])
        link.cut()
        for state in states[1:]:
            sender.send(state)
        while receiver.version != 12:
            version = receiver.update(LONG)
            assert version is not None
            assert same(live, states[version - 1])
        n = len(link.passed) - 1
        assert n > 3
        assert sum(link.passed[1:]) < 11 * delta + n * delta
        assert max(link.passed[1:]) <= 11 * delta < full


def test_a_link_that_passes_on_little_and_late() -> None:
    states = fixed_steps(4)
    with (
        TcpSender(LOCAL) as sender,
        closing(Link(sender.url)) as link,
        TcpReceiver(link.url) as receiver,
    ):
        link.delay = 0.001
        for i, state in enumerate(states, 1):
            sender.send(state)
            assert receiver.wait_for(i, LONG) == i
            assert same(dict(receiver.tensors), state)
        sender.flush(LONG)
        assert list(sender.receivers().values()) == [4]


def test_what_has_come_and_is_not_applied_is_waited_for() -> None:
    """Also after the connection was cut."""
    states = fixed_steps(3)
    with (
        TcpSender(LOCAL) as sender,
        closing(Link(sender.url)) as link,
        TcpReceiver(link.url) as receiver,
    ):
        sender.send(states[0])
        receiver.wait_for(1, LONG)
        sender.flush(LONG)
        sender.send(states[1])
        until(lambda: receiver._inbox)
        link.cut()
        until(lambda: len(link.passed) == 2 and sender.receivers())
        until(lambda: list(sender.receivers().values()) == [1])
        with pytest.raises(TimeoutError, match=r"127\.0\.0\.1:.* more than 0 versions behind"):
            sender.flush(0.1)
        assert receiver.update() == 2
        sender.flush(LONG)
        assert link.passed[1] == 0


# ---- senders that wait ---------------------------------------------------------------------------
def test_a_sender_waits_as_long_as_it_takes() -> None:
    states = fixed_steps(4)
    with TcpSender(LOCAL, max_behind=1) as sender, TcpReceiver(sender.url) as receiver:
        sender.send(states[0])
        receiver.wait_for(1, LONG)
        sender.flush(LONG)
        sender.send(states[1])
        sender.send(states[2])  # it lacks two from now on
        thread, found = running(lambda: sender.send(states[3]))
        until(lambda: sender._changed._waiters)  # type: ignore[attr-defined]
        assert not found
        receiver.wait_for(3, LONG)
        thread.join(LONG)
        assert found == [4]
        assert receiver.wait_for(4, LONG) == 4
        assert same(dict(receiver.tensors), states[3])


@pytest.mark.parametrize("is_flush", [False, True])
def test_who_waits_hears_that_the_sender_is_closed(is_flush: bool) -> None:
    states = fixed_steps(2)
    with TcpSender(LOCAL, max_behind=0) as sender:
        sender.send(states[0])
        with connected(sender) as s:
            until(sender.receivers)
            thread, found = running(sender.flush if is_flush else lambda: sender.send(states[1]))
            until(lambda: sender._changed._waiters)  # type: ignore[attr-defined]
            sender.close()
            thread.join(LONG)
            assert ends(s)
        assert isinstance(found[0], RuntimeError)
        assert "closed" in str(found[0])


def test_who_waits_goes_on_when_a_receiver_is_gone() -> None:
    with TcpSender(LOCAL, max_behind=0) as sender:
        sender.send(fixed_steps(1)[0])
        with connected(sender):
            until(sender.receivers)
            thread, found = running(sender.flush)
            until(lambda: sender._changed._waiters)  # type: ignore[attr-defined]
            assert not found
        thread.join(LONG)
        assert found == [None]


def test_who_waits_hears_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()
    with TcpSender(LOCAL) as sender:
        sender.send(fixed_steps(1)[0])

        def message(*_: object) -> None:
            assert begun.wait(LONG)
            raise MemoryError("no room")

        monkeypatch.setattr(Publisher, "message", message)
        with connected(sender) as s:
            until(sender.receivers)
            thread, found = running(sender.flush)
            until(lambda: sender._changed._waiters)  # type: ignore[attr-defined]
            begun.set()
            thread.join(LONG)
            assert ends(s)
        assert isinstance(found[0], MemoryError)


def test_threads_that_send_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    states, publish = fixed_steps(10), Publisher.publish

    def slow(*args: Any) -> int:
        number = publish(*args)
        time.sleep(0.002)  # others come in between, if they may
        return number

    monkeypatch.setattr(Publisher, "publish", slow)
    with TcpSender(LOCAL, max_behind=None) as sender, TcpReceiver(sender.url) as receiver:
        threads = [running(lambda: [sender.send(s) for s in states]) for _ in range(4)]
        for thread, _ in threads:
            thread.join(LONG)
        numbers = [found[0] for _, found in threads]
        assert all(n == sorted(n) for n in numbers)
        assert sorted(chain(*numbers)) == list(range(1, 41))
        assert [held.version for held in sender._recent] == list(range(1, 41))
        assert receiver.wait_for(40, LONG) == 40
        sender.flush(LONG)
        (last,) = [n.index(40) for n in numbers if 40 in n]
        assert same(dict(receiver.tensors), states[last])


# ---- receivers -----------------------------------------------------------------------------------
def test_what_comes_before_all_tensors_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "MAX_DELTAS", 1)
    monkeypatch.setattr(tcp_receiver, "INBOX", 3)
    states = fixed_steps(40)
    with TcpSender(LOCAL, max_behind=None) as sender, TcpReceiver(sender.url) as receiver:
        for i, state in enumerate(states, 1):
            sender.send(state)
            with receiver._changed:
                assert [m.parent for m in receiver._inbox].count(0) <= 1
                assert len(receiver._inbox) <= 3
            if i % 5 == 0:
                version = receiver.update(LONG)
                assert version is not None
                assert same(dict(receiver.tensors), states[version - 1])
        assert receiver.wait_for(40, LONG) == 40
        assert same(dict(receiver.tensors), states[-1])


def test_all_tensors_come_while_others_are_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is room for no more."""
    states, publisher = fixed_steps(6), Publisher()
    with TcpSender(LOCAL) as sender, TcpReceiver(sender.url) as receiver:
        for state in states:
            publisher.publish(state)
        sender.send(states[0])
        receiver.wait_for(1, LONG)
        for state in states[1:4]:
            sender.send(state)
        until(lambda: len(receiver._inbox) == 3)
        monkeypatch.setattr(tcp_receiver, "INBOX", 1)
        last, apply = publisher.message(None), receiver._subscriber.apply
        assert last is not None

        def applied(message: Message) -> list[str]:
            if message.parent == 1:
                receiver._take(last, receiver._beginning)
            return apply(message)

        monkeypatch.setattr(receiver._subscriber, "apply", applied)
        assert receiver.update() == 6
        assert same(dict(receiver.tensors), states[5])


def test_what_goes_wrong_in_a_receivers_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(tcp_receiver, "_read", read)
    with TcpSender(LOCAL) as sender, TcpReceiver(sender.url) as receiver:
        for timeout in (None, 0, LONG):
            with pytest.raises(MemoryError, match="no room"):
                receiver.update(timeout)
        with pytest.raises(MemoryError, match="no room"):
            receiver.wait_for(1)


@pytest.mark.parametrize("held", [Held(1, bytes(32)), Held(2**62, bytes(range(32)))])
def test_who_has_what_nobody_knows_gets_all_tensors(held: Held) -> None:
    states = fixed_steps(2)
    with TcpSender(LOCAL) as sender:
        for state in states:
            sender.send(state)
        with connected(sender, held) as s, s.makefile("rb") as file:
            header = read_header(file.read(HEADER_NBYTES), (2, 3))
            assert (header.parent, header.held and header.held.version) == (0, 2)
            file.read(header.nbytes)
            with pytest.raises(TimeoutError):  # it does not say that it has them
                sender.flush(0.02)
            s.sendall(bytes(HEADER_NBYTES))  # rubbish, later
            assert file.read() == b""
        live = copies(states[0])
        with TcpReceiver(sender.url, live, held=held) as receiver:
            assert receiver.wait_for(2, LONG) == held.version or same(live, states[1])


# ---- closing -------------------------------------------------------------------------------------
def test_a_peer_that_takes_nothing_does_not_keep_a_sender_open() -> None:
    rng = np.random.default_rng(0)
    with TcpSender(LOCAL) as sender:
        sender.send({"a": rng.integers(0, 256, 1 << 24, np.uint8)})
        with connected(sender) as s:
            assert s.recv(1)
            sender.close()
            assert ends(s)


@pytest.mark.parametrize("n", [0, 1, 63, 64])
def test_a_sender_is_closed_while_receivers_connect(n: int) -> None:
    for _ in range(20):
        with TcpSender(LOCAL) as sender:
            s = socket.create_connection(address_of(sender.url), timeout=LONG)
            s.sendall(held_message(None)[:n])
        with s:
            assert ends(s)


def test_ends_that_several_threads_close() -> None:
    for _ in range(10):
        sender = TcpSender(LOCAL)
        receiver = TcpReceiver(sender.url)
        waiting = running(lambda end=receiver: end.update(None))
        threads = [running(end.close) for end in (sender, receiver) * 3]
        for thread, found in threads:
            thread.join(LONG)
            assert found == [None]
        waiting[0].join(LONG)
        assert "closed" in str(waiting[1][0])
        until(lambda end=sender: end._loop.is_closed())


def test_a_receiver_that_nobody_answers_is_closed() -> None:
    with TcpReceiver(free_url()) as receiver:
        until(lambda: receiver._error)
        with pytest.raises(TimeoutError, match=receiver.url):
            receiver.wait_for(1, 0.01)


def test_an_address_that_is_taken() -> None:
    with TcpSender(LOCAL) as sender, pytest.raises(OSError, match="in use"):
        TcpSender(sender.url)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # later Pythons, of threads
@pytest.mark.parametrize("has_said", [False, True])
def test_a_forked_child_keeps_no_connection_of_a_sender(has_said: bool) -> None:
    with TcpSender(LOCAL) as sender:
        s = socket.create_connection(address_of(sender.url), timeout=LONG)
        if has_said:
            s.sendall(held_message(None))
        until(lambda: sender.receivers() if has_said else sender._connections)

        def close() -> bool:
            s.close()
            sender.close()
            return True

        with forked(close), s:
            sender.close()
            assert ends(s)
            with TcpSender(sender.url):
                pass
