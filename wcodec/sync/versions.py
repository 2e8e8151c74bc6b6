"""Both ends of any transport: weights are turned into messages, and messages into weights."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final

from wcodec.backends import Backend, get_backend
from wcodec.deltas.applying import is_full
from wcodec.deltas.states import (
    NOTHING,
    OpenVersion,
    State,
    advance,
    as_arrays,
    check_fits,
    take,
)
from wcodec.errors import DecodeError, EncodeError
from wcodec.files.saving import tensors_to_bytes
from wcodec.planner.options import EncodeOptions
from wcodec.processes import Lock
from wcodec.sync.ends import Receiver
from wcodec.sync.messages import MAX_VERSION, Held, Message

MAX_DELTAS: Final = 64  #: that are kept for receivers that are behind
MAX_SHARE: Final = 0.5  #: of the bytes of all tensors, for the deltas that are kept


class Publisher:
    """Turns the weights of each step into messages. It keeps a copy of the newest weights, and the
    last deltas. Threads may use it at the same time.

    Parameters
    ----------
    options, backend
        How weights are encoded, and by what.
    """

    def __init__(
        self, options: EncodeOptions | None = None, backend: Backend | None = None
    ) -> None:
        self._options, self._backend = options, backend or get_backend()
        self._lock = Lock()
        self._state, self._last = State(), 0
        self._deltas = dict[Held, Message]()  # by what they differ from, the oldest first
        self._full: Message | None = None
        self.newest: Held | None = None  #: the version that was published last

    def publish(self, state_dict: Mapping[str, Any], version: int | None = None) -> int:
        """Take the weights of a step as the newest version.

        Parameters
        ----------
        state_dict
            Tensors by name, of NumPy or PyTorch, on any device. They must not change until this
            returns.
        version
            Its number; ``None`` for one more than the last, or 1.

        Returns
        -------
        Its number.

        Raises
        ------
        EncodeError
            ``bad_option``: the number is not greater than the last one, or greater than
            `MAX_VERSION`. And as `wcodec.save`.
        """
        with self._lock:
            before, last = self.newest, self._last
            number = last + 1 if version is None else version
            if not last < number <= MAX_VERSION:
                raise EncodeError(
                    "bad_option", f"version {number} does not follow {last}, which was the last one"
                )
            base = State() if before is None else self._state
            data = tensors_to_bytes(state_dict, take, None, self._options, base, self._backend)
            with contextlib.closing(OpenVersion(data, self._backend)) as file:
                now = Held(number, file.content_hash())
                is_delta = file.index.base is not None
                self.newest = None  # until all of it is there
                self._state = advance(base, file)
            self._keep(before if is_delta else None, now, data)
            self.newest, self._last = now, number
            return number

    def _keep(self, before: Held | None, now: Held, data: bytes) -> None:
        """Keep a message: what differs from the version before, or all tensors."""
        if before is None:  # nothing is left of what there was
            self._deltas.clear()
            self._full = Message(now, 0, data)
            return
        self._full = None
        self._deltas[before] = Message(now, before.version, data)
        room = MAX_SHARE * sum(t.words.nbytes for t in self._state.values())
        while len(self._deltas) > MAX_DELTAS or (
            sum(len(m.data) for m in self._deltas.values()) > room
        ):
            del self._deltas[next(iter(self._deltas))]

    def message(self, held: Held | None) -> Message | None:
        """What comes next for a receiver.

        Parameters
        ----------
        held
            What it has; ``None`` for nothing.

        Returns
        -------
        The next delta, where it is kept; else all tensors of the newest version. ``None``: there is
        nothing newer.

        Raises
        ------
        EncodeError
        """
        with self._lock:
            if self.newest is None or held == self.newest:
                return None
            if held in self._deltas:
                return self._deltas[held]
            if self._full is None:
                data = tensors_to_bytes(self._state, take, None, self._options, None, self._backend)
                self._full = Message(self.newest, 0, data)
            return self._full


class Subscriber:
    """Turns messages into weights.

    Parameters
    ----------
    tensors
        Arrays of NumPy or tensors of PyTorch by name, which are changed in place, as by
        `wcodec.apply`. ``None`` for arrays of its own.
    checked
        As of `wcodec.apply`.
    backend, max_nbytes, max_memory
        As of `wcodec.open`.

    Raises
    ------
    ValueError
        `checked` is none of these.
    """

    def __init__(
        self,
        tensors: Mapping[str, Any] | None = None,
        *,
        checked: str = "sampled",
        backend: Backend | None = None,
        max_nbytes: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        self._live, self._full = tensors, is_full(checked)
        self._backend = backend or get_backend()
        self._limits: dict[str, Any] = {"max_nbytes": max_nbytes, "max_memory": max_memory}
        self._state = State()
        self.held: Held | None = None  #: what `tensors` are; ``None`` before the first message

    @property
    def tensors(self) -> Mapping[str, Any]:
        """The weights: those that were given, or arrays."""
        return as_arrays(self._state) if self._live is None else self._live

    def apply(self, message: Message) -> list[str]:
        """Turn the weights into those of a message.

        Returns
        -------
        Names of the tensors of the message, changed or not.

        Raises
        ------
        DecodeError
            ``bad_base``: the message differs from another version than the one that is held, or a
            tensor that was given is missing, or has another dtype or shape: nothing has changed.
            In all other cases some tensors may be new; nothing is held then, and all tensors of a
            version have to come next.
        TypeError, ValueError
            What was given in place of a tensor cannot be changed in place.
        """
        if message.parent and (self.held is None or self.held.version != message.parent):
            raise DecodeError(
                "bad_base",
                f"version {message.held.version} differs from {message.parent}, and "
                f"{'nothing' if self.held is None else self.held.version} is held",
            )
        held, self.held = self.held, None
        with contextlib.closing(OpenVersion(message.data, self._backend, **self._limits)) as file:
            base = file.index.base
            if (base is not None) != bool(message.parent) or (
                file.content_hash() != message.held.content_hash
            ):
                raise DecodeError(
                    "bad_value", "the message is not the version that its header names"
                )
            self.held = held  # what is refused now changes nothing
            if base is not None and (held is None or base.sha256 != held.content_hash):
                raise DecodeError(
                    "bad_base",
                    f"version {message.held.version} differs from another version "
                    f"{message.parent} than the one that is held",
                )
            if self._live is not None:
                check_fits(file, self._live)
            self.held = None  # until all of it is there
            self._state = advance(self._state, file, self._live or NOTHING, self._full)
            self.held = message.held
            return file.keys()


class SubscribedReceiver(Receiver):
    """A receiver to which messages come."""

    def __init__(self, subscriber: Subscriber) -> None:
        super().__init__()
        self._subscriber = subscriber

    @property
    def held(self) -> Held | None:
        """Version and content hash of the weights; ``None`` if that is not known."""
        return self._subscriber.held

    @property
    def version(self) -> int | None:
        """As `Receiver.version`."""
        return None if self.held is None else self.held.version

    @property
    def tensors(self) -> Mapping[str, Any]:
        """As `Receiver.tensors`."""
        return self._subscriber.tensors
