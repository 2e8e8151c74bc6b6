"""`Publisher` and `Subscriber`, with nothing between them."""

from __future__ import annotations

import contextlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from links import arrays_of, torch_of
from runs import BF16, State, changed, copies, gaussian, same, steps

import wcodec
from wcodec.errors import DecodeError, EncodeError
from wcodec.sync import Held, Message, Publisher, Subscriber, versions


def run(n: int, seed: int = 0) -> list[State]:
    """A model of fixed shapes after each of `n` steps. In each, few words of all tensors change."""
    rng = np.random.default_rng(seed)
    now: State = {
        "a": gaussian(rng, (120, 100)), "b": gaussian(rng, (700,)),
        "scalar": gaussian(rng, (1,)).reshape(()), "empty": np.empty((0, 3), BF16),
    }  # fmt: skip
    now["tied"] = now["a"].copy()
    out = [now]
    for _ in range(n - 1):
        now = {name: changed(rng, a, 0.01) if a.size else a for name, a in now.items()}
        now["tied"] = now["a"].copy()
        out.append(now)
    return out


def messages(states: list[State]) -> list[Message]:
    """All tensors of the first state, and what each differs in from the one before."""
    publisher, out, held = Publisher(), list[Message](), None
    for state in states:
        publisher.publish(state)
        message = publisher.message(held)
        assert message is not None
        held = message.held
        out.append(message)
    assert [m.parent for m in out] == list(range(len(out)))
    return out


def follow(publisher: Publisher, subscriber: Subscriber) -> list[int]:
    """Bring a subscriber up to date. Returns the parents of what was sent."""
    parents = []
    while (message := publisher.message(subscriber.held)) is not None:
        subscriber.apply(message)
        parents.append(message.parent)
    assert subscriber.held == publisher.newest
    return parents


def is_now(subscriber: Subscriber, state: State) -> bool:
    return same(dict(subscriber.tensors), state)


def torch_same(live: dict[str, torch.Tensor], state: State) -> bool:
    return same(arrays_of({n: live[n] for n in state}), state)


# ---- what comes ----------------------------------------------------------------------------------
def test_every_version_comes_bit_for_bit() -> None:
    publisher, subscriber = Publisher(), Subscriber()
    assert publisher.message(None) is None
    assert subscriber.held is None
    assert subscriber.tensors == {}
    parents = []
    for i, state in enumerate(steps(12), 1):
        assert publisher.publish(state) == i
        given = copies(state)
        parents += follow(publisher, subscriber)
        assert subscriber.held is not None
        assert subscriber.held.version == i
        assert is_now(subscriber, given)
        assert publisher.message(subscriber.held) is None
    assert len(parents) == 12
    assert parents.count(0) <= 3


def test_what_was_published_may_change() -> None:
    publisher, states = Publisher(), run(2)
    given = copies(states[0])
    publisher.publish(given)
    given["a"][...] = 0
    subscriber = Subscriber()
    follow(publisher, subscriber)
    assert is_now(subscriber, states[0])


@pytest.mark.parametrize("checked", ["sampled", "full"])
def test_arrays_are_changed_in_place(checked: str) -> None:
    states = run(6)
    live = copies(states[3])
    arrays, publisher = dict(live), Publisher()
    subscriber = Subscriber(live, checked=checked)
    for i, state in enumerate(states):
        publisher.publish(state)
        assert follow(publisher, subscriber) == [i]
        assert same(live, state)
    assert all(live[name] is array for name, array in arrays.items())


def test_tensors_are_changed_in_place() -> None:
    states = run(6)
    live = torch_of(states[3]) | {"other": torch.ones(3)}
    memory, publisher = {n: t.data_ptr() for n, t in live.items()}, Publisher()
    subscriber = Subscriber(live)
    for i, state in enumerate(states):
        publisher.publish(torch_of(state))
        assert follow(publisher, subscriber) == [i]
        assert torch_same(live, state)
        assert subscriber.tensors is live
    assert memory == {n: t.data_ptr() for n, t in live.items()}
    assert torch.equal(live["other"], torch.ones(3))


def test_receivers_come_late_and_miss_versions() -> None:
    states, publisher = run(9), Publisher()
    first, slow = Subscriber(), Subscriber()
    for i, state in enumerate(states[:6]):
        publisher.publish(state)
        follow(publisher, first)
        if i == 1:
            assert follow(publisher, slow) == [0]
    assert follow(publisher, slow) == [2, 3, 4, 5]
    late = Subscriber(torch_of(states[8]))
    assert follow(publisher, late) == [0]
    for subscriber in (first, slow):
        assert is_now(subscriber, states[5])
    for state in states[6:]:
        publisher.publish(state)
        assert follow(publisher, late) == follow(publisher, first)
    assert follow(publisher, slow) == [6, 7, 8]
    assert torch_same(dict(late.tensors), states[8])
    assert is_now(slow, states[8])


def test_who_has_another_state_gets_all_tensors() -> None:
    states, publisher = run(3), Publisher()
    for state in states[:2]:
        publisher.publish(state)
    assert publisher.newest is not None
    for held in (
        Held(1, bytes(32)), Held(2, bytes(32)), Held(3, publisher.newest.content_hash),
    ):  # fmt: skip
        message = publisher.message(held)
        assert message is not None
        assert message.parent == 0
        subscriber = Subscriber()
        subscriber.apply(message)
        assert is_now(subscriber, states[1])


def test_a_version_whose_parent_is_not_held_changes_nothing() -> None:
    states = run(4)
    sent, others = messages(states), messages(run(2, seed=1))
    live = copies(states[0])
    subscriber = Subscriber(live)
    for message in sent[1:]:
        with pytest.raises(DecodeError, match=r"bad_base.*nothing is held"):
            subscriber.apply(message)
    subscriber.apply(sent[0])
    for message in (*sent[2:], others[1]):  # the last one's parent has that number
        with pytest.raises(DecodeError, match="bad_base"):
            subscriber.apply(message)
        assert subscriber.held == sent[0].held
        assert same(live, states[0])
    for message, state in zip(sent[1:], states[1:], strict=True):
        subscriber.apply(message)
        assert same(live, state)


@pytest.mark.parametrize("is_torch", [False, True])
def test_tensors_that_somebody_changed(is_torch: bool) -> None:
    states, publisher = run(3), Publisher()
    live: Any = torch_of(states[0]) if is_torch else copies(states[0])
    now = torch_same if is_torch else same
    subscriber = Subscriber(live)
    publisher.publish(states[0])
    follow(publisher, subscriber)
    words = live["a"].view(torch.int16) if is_torch else live["a"].view(np.int16)
    words ^= 1
    publisher.publish(states[1])
    with pytest.raises(DecodeError, match=r"bad_base.*'a'"):
        follow(publisher, subscriber)
    assert subscriber.held is None
    assert follow(publisher, subscriber) == [0]
    assert now(live, states[1])
    publisher.publish(states[2])
    assert follow(publisher, subscriber) == [2]
    assert now(live, states[2])


@pytest.mark.parametrize("other", [None, np.zeros((120, 101), BF16), np.zeros((120, 100))])
def test_tensors_that_do_not_fit_stay_as_they_are(other: Any) -> None:
    states, publisher = run(2), Publisher()
    live = copies(states[1])
    good = live.pop("a")
    if other is not None:
        live["a"] = other
    before = copies(live)
    publisher.publish(states[0])
    subscriber = Subscriber(live)
    with pytest.raises(DecodeError, match=r"bad_base.*'a'"):
        follow(publisher, subscriber)
    assert same(live, before)
    live["a"] = good
    follow(publisher, subscriber)
    assert all(live[n].tobytes() == a.tobytes() for n, a in states[0].items())


def test_what_cannot_be_changed_in_place() -> None:
    states, publisher = run(1), Publisher()
    live = copies(states[0])
    live["a"].flags.writeable = False
    publisher.publish(states[0])
    with pytest.raises(ValueError, match="writeable"):
        follow(publisher, Subscriber(live))
    with pytest.raises(ValueError, match="none of sampled, full"):
        Subscriber(checked="all")


# ---- messages that are wrong ---------------------------------------------------------------------
def test_messages_that_are_not_what_their_header_says() -> None:
    states = run(3)
    full, delta, _ = messages(states)
    wrong_hash = Held(2, bytes(32))
    for message in (
        full._replace(held=wrong_hash),
        delta._replace(held=wrong_hash),
        full._replace(held=Held(2, full.held.content_hash), parent=1),  # DELTA without a base
        delta._replace(parent=0),  # FULL with one
    ):
        live = copies(states[0])
        subscriber = Subscriber(live)
        subscriber.apply(full)
        with pytest.raises(DecodeError, match="bad_value"):
            subscriber.apply(message)
        assert same(live, states[0])
        assert subscriber.held is None  # S7
        with pytest.raises(DecodeError, match="bad_base"):
            subscriber.apply(delta)
        subscriber.apply(full)
        subscriber.apply(delta)
        assert same(live, states[1])


@pytest.mark.parametrize("is_live", [False, True])
def test_bits_that_flip(is_live: bool) -> None:
    states, rng = run(2), np.random.default_rng(0)
    full, delta = messages(states)
    subscriber = Subscriber(copies(states[0]) if is_live else None)
    n_refused = 0
    for i in range(100):
        subscriber.apply(full)
        sent = (delta, full)[i % 4 == 3]
        data = bytearray(sent.data)
        bit = int(rng.integers(8 * len(data)))
        data[bit // 8] ^= 1 << bit % 8
        try:
            subscriber.apply(sent._replace(data=bytes(data)))
        except DecodeError:
            n_refused += 1
            if subscriber.held is not None:  # nothing has changed
                assert subscriber.held == full.held
                assert is_now(subscriber, states[0])
        else:
            assert is_now(subscriber, states[sent.held.version - 1])
            assert subscriber.held == sent.held
        subscriber.apply(full)
        assert is_now(subscriber, states[0])
        subscriber.apply(delta)
        assert is_now(subscriber, states[1])
    assert n_refused > 50


@pytest.mark.parametrize("cut", [0, 1, 64, -1])
def test_messages_that_end_early(cut: int) -> None:
    states = run(2)
    full, delta = messages(states)
    subscriber = Subscriber()
    subscriber.apply(full)
    with pytest.raises(DecodeError):
        subscriber.apply(delta._replace(data=delta.data[:cut]))
    assert subscriber.held is None
    subscriber.apply(full)
    assert is_now(subscriber, states[0])


def test_limits_hold() -> None:
    full, _ = messages(run(2))
    with pytest.raises(DecodeError, match="resource_limit"):
        Subscriber(max_nbytes=100).apply(full)


# ---- numbers -------------------------------------------------------------------------------------
def test_numbers_that_the_caller_gives() -> None:
    states, publisher, subscriber = run(5), Publisher(), Subscriber()
    last = (1 << 63) - 1
    numbers = [7, None, 100, last]
    for number, state in zip(numbers, states, strict=False):
        found = publisher.publish(state, number)
        assert found == (8 if number is None else number)
        follow(publisher, subscriber)
        assert subscriber.held is not None
        assert subscriber.held.version == found
        assert is_now(subscriber, state)
        for wrong in (found, found - 1, 0, -1, last + 1, 1 << 64):
            with pytest.raises(EncodeError, match="bad_option"):
                publisher.publish(states[4], wrong)
        assert publisher.message(subscriber.held) is None
    with pytest.raises(EncodeError, match="bad_option"):
        publisher.publish(states[4])


@pytest.mark.parametrize("wrong", [0, -1, 1 << 63])
def test_first_numbers_that_are_refused(wrong: int) -> None:
    publisher = Publisher()
    with pytest.raises(EncodeError, match="bad_option"):
        publisher.publish(run(1)[0], wrong)
    assert publisher.newest is None
    assert publisher.publish(run(1)[0]) == 1


# ---- what is kept --------------------------------------------------------------------------------
def test_so_many_deltas_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "MAX_DELTAS", 3)
    states, publisher = run(8), Publisher()
    held = []
    for i, state in enumerate(states):
        publisher.publish(state)
        held.append(publisher.newest)
        assert len(publisher._deltas) == min(i, 3)
    parents = [m.parent for h in held if (m := publisher.message(h)) is not None]
    assert parents == [0, 0, 0, 0, 5, 6, 7]


def test_so_many_bytes_are_kept() -> None:
    rng, publisher = np.random.default_rng(0), Publisher()
    now: State = {"a": gaussian(rng, (200, 100))}
    most = 0
    for _ in range(40):
        publisher.publish(now)
        nbytes = sum(len(m.data) for m in publisher._deltas.values())
        assert nbytes <= versions.MAX_SHARE * now["a"].nbytes
        most = max(most, len(publisher._deltas))
        now = {"a": changed(rng, now["a"], 0.02)}
    assert 3 < most < 39


def test_all_tensors_are_encoded_once() -> None:
    publisher = Publisher()
    for state in run(2):
        publisher.publish(state)
    assert publisher.message(None) is publisher.message(None)


# ---- all kinds of tensors ------------------------------------------------------------------------
def test_all_kinds_of_tensors() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    tied = torch.randn(40, 30).bfloat16()
    now: dict[str, Any] = {
        "tied.a": tied, "tied.b": tied, "scalar": torch.tensor(1.5), "bool": torch.rand(70) < 0.5,
        "empty": torch.empty(0, 4), "fp8": torch.randn(50, 8).to(torch.float8_e4m3fn),
        "transposed": torch.randn(30, 20).T, "complex": torch.randn(8, 9) + 1j,
        "numpy": rng.standard_normal((5, 6)), "numpy.fp8": rng.random(9).astype(
            ml_dtypes.float8_e5m2),
        "parameter": torch.nn.Parameter(torch.randn(9)),
    }  # fmt: skip
    live = wcodec.sync.Subscriber(
        {n: np.zeros_like(t) if isinstance(t, np.ndarray) else torch.zeros_like(
            t.detach(), memory_format=torch.contiguous_format) for n, t in now.items()}
    )  # fmt: skip
    publisher, own = Publisher(), Subscriber()

    def plain(t: Any) -> tuple[Any, bytes]:
        if isinstance(t, torch.Tensor):
            t = t.detach().contiguous()
            return tuple(t.shape), bytes(t.reshape(-1).view(torch.uint8).numpy())
        return t.shape, t.tobytes()

    for i in range(3):
        publisher.publish(now)
        for subscriber in (own, live):
            assert follow(publisher, subscriber) == [i]
            assert list(subscriber.tensors) == list(now)
            for n, t in now.items():
                assert plain(subscriber.tensors[n]) == plain(t)
        with torch.no_grad():
            tied.view(torch.int16)[i] += 1
            now["scalar"] += 1
            now["fp8"].view(torch.uint8)[i] ^= 1
            now["parameter"][i] += 1
            now["numpy"][i] += 1
            now["bool"].logical_not_()


def test_states_that_share_nothing() -> None:
    publisher, subscriber, states = Publisher(), Subscriber(), run(2)
    empty: State = {}
    other: State = {"other": states[0]["a"]}
    parents = list[int]()
    for state in (states[0], other, states[1], empty, empty, states[0], states[1]):
        publisher.publish(state)
        parents += follow(publisher, subscriber)
        assert is_now(subscriber, state)
    assert parents == [0, 0, 0, 0, 0, 0, 6]
    before = subscriber.held
    publisher.publish(states[0])
    publisher.publish(other)
    message = publisher.message(before)  # no way leads over the versions between
    assert message is not None
    assert message.held == publisher.newest
    assert message.parent == 0


# ---- errors of a sender --------------------------------------------------------------------------
@pytest.mark.parametrize(
    "wrong",
    [
        {"a": np.array(["text"])}, {"a": None}, {"a": torch.zeros(3).to_sparse()},
        {"\ud800": np.zeros(3)}, {"a" * 70_000: np.zeros(3)}, {3: np.zeros(3)}, [np.zeros(3)],
    ],
)  # fmt: skip
def test_what_cannot_be_stored_is_no_version(wrong: Any) -> None:
    publisher, subscriber, states = Publisher(), Subscriber(), run(2)
    for i, state in enumerate(states):
        with pytest.raises((EncodeError, TypeError)):
            publisher.publish(wrong)
        assert publisher.message(subscriber.held) is None
        assert publisher.publish(state) == i + 1
        assert follow(publisher, subscriber) == [i]
        assert is_now(subscriber, state)


def test_a_version_that_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers go on, and all tensors come next."""
    publisher, subscriber, states = Publisher(), Subscriber(), run(4)
    for state in states[:2]:
        publisher.publish(state)
        publisher.message(None)
    follow(publisher, subscriber)
    before = publisher.newest

    def advance(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(versions, "advance", advance)
        with pytest.raises(KeyboardInterrupt):
            publisher.publish(states[2])
    assert publisher.message(before) is None
    assert publisher.publish(states[3]) == 3
    assert follow(publisher, subscriber) == [0]
    assert is_now(subscriber, states[3])


def test_a_subscriber_that_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    publisher, states = Publisher(), run(2)
    live = copies(states[0])
    subscriber = Subscriber(live)
    publisher.publish(states[0])
    follow(publisher, subscriber)
    publisher.publish(states[1])
    advance = versions.advance

    def interrupted(*args: Any) -> None:
        advance(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(versions, "advance", interrupted)
        follow(publisher, subscriber)
    assert subscriber.held is None
    assert follow(publisher, subscriber) == [0]
    assert same(live, states[1])
