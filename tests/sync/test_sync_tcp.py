"""Weights over TCP: receivers come and go, connections are cut, and nothing is lost or mixed."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
import pytest
from links import LOCAL, LONG, Link, forked, running, threads_of_ends, until
from runs import BF16, State, changed, copies, fixed_steps, gaussian, same, steps

import wcodec.sync
from wcodec.errors import DecodeError
from wcodec.sync.messages import FULL, HEADER_NBYTES, Held, held_message
from wcodec.sync.tcp import address_of
from wcodec.sync.tcp_receiver import TcpReceiver
from wcodec.sync.tcp_sender import TcpSender
from wcodec.sync.versions import Publisher


# ---- what is sent --------------------------------------------------------------------------------
def test_every_version_comes_bit_for_bit() -> None:
    with TcpSender(LOCAL) as sender, TcpReceiver(sender.url) as receiver:
        for i, state in enumerate(steps(12), 1):
            assert sender.send(state) == i
            assert receiver.wait_for(i, LONG) == i
            assert same(dict(receiver.tensors), state)


def test_tensors_are_changed_in_place() -> None:
    states = fixed_steps(4)
    live = copies(states[3])
    arrays = dict(live)
    with TcpSender(LOCAL) as sender, TcpReceiver(sender.url, live) as receiver:
        for i, state in enumerate(states, 1):
            sender.send(state)
            assert receiver.wait_for(i, LONG) == i
            assert same(live, state)
        assert all(live[name] is array for name, array in arrays.items())


def test_nothing_changes_until_it_is_asked_for() -> None:
    states = fixed_steps(2)
    live = copies(states[0])
    with TcpSender(LOCAL) as sender, TcpReceiver(sender.url, live) as receiver:
        assert receiver.update() is None
        sender.send(states[1])
        until(lambda: receiver._inbox)
        assert same(live, states[0])
        assert receiver.version is None
        assert receiver.update() == 1
        assert same(live, states[1])


def test_receivers_come_and_go() -> None:
    states = fixed_steps(6)
    with TcpSender(LOCAL) as sender, TcpReceiver(sender.url) as first:
        sender.send(states[0])
        first.wait_for(1, LONG)
        with TcpReceiver(sender.url) as second:
            sender.send(states[1])
            sender.send(states[2])
            assert second.wait_for(3, LONG) == 3
            first.wait_for(3, LONG)
            sender.flush(LONG)
            assert set(sender.receivers().values()) == {3}
            assert len(sender.receivers()) == 2
        until(lambda: len(sender.receivers()) == 1)
        sender.send(states[3])
        assert first.wait_for(4, LONG) == 4
        assert same(dict(first.tensors), states[3])


def test_what_is_held_is_not_sent_again() -> None:
    states = fixed_steps(3)
    with TcpSender(LOCAL) as sender:
        for state in states[:2]:
            sender.send(state)
        with TcpReceiver(sender.url) as receiver:
            receiver.wait_for(2, LONG)
            held = receiver.held
        live = copies(states[1])
        with TcpReceiver(sender.url, live, held=held) as receiver:
            until(sender.receivers)
            sender.send(states[2])
            until(lambda: receiver._inbox)
            assert receiver._inbox[0].parent == 2
            assert receiver.update() == 3
            assert same(live, states[2])
    with pytest.raises(ValueError, match="none are given"):
        TcpReceiver("tcp://127.0.0.1:1", held=held)


def test_a_sender_begins_anew_and_receivers_find_it() -> None:
    states = fixed_steps(4)
    sender = TcpSender(LOCAL)
    with TcpReceiver(sender.url) as receiver:
        sender.send(states[0])
        sender.send(states[1])
        receiver.wait_for(2, LONG)
        sender.close()
        with TcpSender(receiver.url) as again:  # the same port, and from 1 again
            again.send(states[3])
            until(lambda: receiver.update() == 1)
            assert same(dict(receiver.tensors), states[3])


def test_a_receiver_may_begin_first() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    state = fixed_steps(1)[0]
    with TcpReceiver(f"tcp://127.0.0.1:{port}") as receiver:
        with pytest.raises(TimeoutError, match=f"127.0.0.1:{port}"):
            receiver.wait_for(1, 0.5)
        with TcpSender(receiver.url) as sender:
            sender.send(state)
            assert receiver.wait_for(1, LONG) == 1
            assert same(dict(receiver.tensors), state)


# ---- connections that break ----------------------------------------------------------------------
@pytest.mark.parametrize("where", [0, 1, 63, 64, 65, 300, -1])
def test_a_connection_that_is_cut_goes_on_with_what_is_missing(where: int) -> None:
    states, publisher = fixed_steps(3, n_rows=300), Publisher()
    publisher.publish(states[0])
    full = publisher.message(None)
    assert full is not None
    publisher.publish(states[1])
    delta = publisher.message(full.held)
    assert delta is not None
    first, one = HEADER_NBYTES + len(full.data), HEADER_NBYTES + len(delta.data)
    with TcpSender(LOCAL) as sender, closing(Link(sender.url)) as link:
        link.limits = iter([first + where % one])
        with TcpReceiver(link.url) as receiver:
            sender.send(states[0])
            receiver.wait_for(1, LONG)
            sender.send(states[1])
            assert receiver.wait_for(2, LONG) == 2
            assert same(dict(receiver.tensors), states[1])
            assert link.passed[0] == first + where % one
            assert sum(link.passed[1:]) <= 2 * one < len(full.data)


@contextmanager
def said(data: bytes) -> Iterator[str]:
    """A server that is no sender: it says something to who connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as s, contextlib.suppress(ConnectionError):
                s.sendall(data)
                while s.recv(4096):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
    thread.join()


def test_what_is_no_sender_is_refused() -> None:
    with said(b"HTTP/1.1 400 Bad Request\r\n" * 4) as url, TcpReceiver(url) as receiver:
        for _ in range(2):
            with pytest.raises(DecodeError, match="bad_magic"):
                receiver.update(LONG)


def test_memory_is_not_taken_for_what_has_not_come() -> None:
    header = bytearray(held_message(Held(1, bytes(32))))
    header[5] = FULL
    header[24:32] = (1 << 60).to_bytes(8, "little")
    with said(bytes(header)) as url, TcpReceiver(url) as receiver:
        until(lambda: receiver._socket is not None)
        assert receiver.update(0.2) is None
    with (
        said(bytes(header)) as url,
        TcpReceiver(url, max_nbytes=1 << 20) as receiver,
        pytest.raises(DecodeError, match="resource_limit"),
    ):
        receiver.update(LONG)


def test_who_is_no_receiver_harms_nobody() -> None:
    states = fixed_steps(2)
    with TcpSender(LOCAL) as sender, TcpReceiver(sender.url) as receiver:
        address = address_of(sender.url)
        with socket.create_connection(address) as silent:
            with socket.create_connection(address) as s:
                s.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" * 4)
                assert s.recv(100) == b""
            sender.send(states[0])
            assert receiver.wait_for(1, LONG) == 1
            assert silent.fileno() > 0
        assert len(sender.receivers()) == 1


def test_tensors_that_somebody_changed_are_sent_whole() -> None:
    states = fixed_steps(3)
    live = copies(states[0])
    with TcpSender(LOCAL) as sender, TcpReceiver(sender.url, live) as receiver:
        sender.send(states[0])
        receiver.wait_for(1, LONG)
        live["a"].view(np.uint16)[...] ^= 1
        sender.send(states[1])
        with pytest.raises(DecodeError, match="bad_base"):
            receiver.wait_for(2, LONG)
        assert receiver.version is None
        assert receiver.wait_for(2, LONG) == 2
        assert same(live, states[1])
        sender.send(states[2])
        assert receiver.wait_for(3, LONG) == 3
        assert same(live, states[2])


def test_tensors_that_do_not_fit_stay_as_they_are() -> None:
    state = fixed_steps(1)[0]
    live = {"a": np.zeros((3, 4), BF16), "b": state["b"].copy()}
    with TcpSender(LOCAL) as sender, TcpReceiver(sender.url, live) as receiver:
        sender.send(state)
        with pytest.raises(DecodeError, match=r"bad_base.*'a'"):
            receiver.wait_for(1, LONG)
        assert not live["a"].any()


def test_what_goes_wrong_in_the_thread_is_raised_by_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = fixed_steps(2)
    with TcpSender(LOCAL) as sender, TcpReceiver(sender.url) as receiver:
        with monkeypatch.context() as patch:

            def message(*_: object) -> None:
                raise MemoryError("no room")

            patch.setattr(Publisher, "message", message)
            sender.send(states[0])
            until(lambda: sender._error)
        with pytest.raises(MemoryError, match="no room"):
            sender.send(states[1])
        assert sender.send(states[1]) == 2
        assert receiver.wait_for(2, LONG) == 2
        assert same(dict(receiver.tensors), states[1])


# ---- waiting -------------------------------------------------------------------------------------
def test_a_sender_waits_for_who_is_behind() -> None:
    states = fixed_steps(5)
    with (
        TcpSender(LOCAL, max_behind=2, timeout=0.3) as sender,
        TcpReceiver(sender.url) as receiver,
    ):
        sender.send(states[0])
        receiver.wait_for(1, LONG)
        until(lambda: set(sender.receivers().values()) == {1})
        for state in states[1:4]:
            sender.send(state)
        (name,) = sender.receivers()
        with pytest.raises(TimeoutError, match=name):
            sender.send(states[4])
        with pytest.raises(TimeoutError, match=name):
            sender.flush(0.1)
        assert receiver.wait_for(4, LONG) == 4
        sender.flush(LONG)
        assert sender.send(states[4]) == 5
        assert receiver.wait_for(5, LONG) == 5
        assert same(dict(receiver.tensors), states[4])


def test_a_sender_that_never_waits_sends_all_to_who_is_far_behind() -> None:
    rng = np.random.default_rng(0)
    now: State = {"a": gaussian(rng, (200, 200))}
    with TcpSender(LOCAL, max_behind=None) as sender, TcpReceiver(sender.url) as receiver:
        sender.send(now)
        receiver.wait_for(1, LONG)
        for _ in range(300):
            now = {"a": changed(rng, now["a"], 0.001)}
            sender.send(now)
        assert receiver.wait_for(301, LONG) == 301
        assert same(dict(receiver.tensors), now)


# ---- ends ----------------------------------------------------------------------------------------
def test_ends_are_closed_whoever_waits() -> None:
    before = threads_of_ends()
    sender = TcpSender(LOCAL, max_behind=0)
    receiver = TcpReceiver(sender.url)
    waiting = TcpReceiver(sender.url)
    thread, of_update = running(lambda: waiting.update(None))
    until(lambda: len(sender.receivers()) == 2)
    waiting.close()
    thread.join(LONG)
    until(lambda: len(sender.receivers()) == 1)
    sender.send(fixed_steps(1)[0])
    thread, of_send = running(lambda: sender.send(fixed_steps(1)[0]))
    sender.close()
    thread.join(LONG)
    receiver.close()
    for end in (sender, receiver, waiting):
        end.close()
    with pytest.raises(RuntimeError, match="closed"):
        sender.send(fixed_steps(1)[0])
    with pytest.raises(RuntimeError, match="closed"):
        receiver.update()
    assert "closed" in str(of_update[0])
    assert "closed" in str(of_send[0])
    until(lambda: threads_of_ends() <= before)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # later Pythons, of threads
def test_a_forked_child_keeps_no_connection_and_no_port() -> None:
    state = fixed_steps(1)[0]
    sender = TcpSender(LOCAL)
    receiver = TcpReceiver(sender.url)
    sender.send(state)
    receiver.wait_for(1, LONG)

    def are_refused() -> bool:
        errors = 0
        for call in (lambda: sender.send(state), receiver.update):
            try:
                call()
            except RuntimeError:
                errors += 1
        return errors == 2

    with forked(are_refused):
        receiver.close()
        until(lambda: not sender.receivers())
        sender.close()
        with TcpSender(sender.url) as again, TcpReceiver(again.url) as other:
            again.send(state)
            assert other.wait_for(1, LONG) == 1


@pytest.mark.parametrize(
    "url", ["tcp://", "tcp://host", "tcp://host:port", "tcp://host:70000", "tcp://:1/a", "x:1"]
)
def test_addresses(url: str) -> None:
    with pytest.raises(ValueError, match=r"tcp://host:port"):
        address_of(url)


def test_ends_by_url() -> None:
    with wcodec.sync.open_sender(LOCAL) as sender:
        assert isinstance(sender, TcpSender)
        with wcodec.sync.open_receiver(sender.url) as receiver:
            assert isinstance(receiver, TcpReceiver)
