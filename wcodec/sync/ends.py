"""What all transports have: an end that sends weights, and one that has them."""

from __future__ import annotations

import contextlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from wcodec.processes import renew_in_child

E = TypeVar("E", bound="_End")


class _End(ABC):
    """Use as a context, or `close` it. It serves the process that made it."""

    _is_forked = False

    def __init__(self) -> None:
        """To be called when `_files` can be: a child may be forked at any moment."""
        renew_in_child(self)

    def renew(self) -> None:
        """In a child: let go of connections, which would stay open when the parent closes them."""
        self._is_forked = True
        null = os.open(os.devnull, os.O_RDWR)
        for number in self._files():
            with contextlib.suppress(OSError):  # it was closed meanwhile
                os.dup2(null, number, inheritable=False)  # objects that hold it may close it
        os.close(null)

    def _files(self) -> Iterable[int]:
        """Numbers of the connections that are open."""
        return ()

    def _check_process(self) -> None:
        if self._is_forked:
            raise RuntimeError(
                f"this {type(self).__name__} serves the process that made it: make one in the "
                "process that was forked"
            )

    @abstractmethod
    def close(self) -> None:
        """Let go of connections and threads. Nothing is sent or received from now on."""

    def __enter__(self: E) -> E:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Sender(_End):
    """The end that sends weights.

    Attributes
    ----------
    url
        What `wcodec.sync.open_receiver` takes on the same machine; empty if it takes none.
    """

    url: str = ""

    @abstractmethod
    def send(self, state_dict: Mapping[str, Any], version: int | None = None) -> int:
        """Send the weights of a step: what they differ in from those before, to receivers that have
        these, and all of them to others.

        Parameters
        ----------
        state_dict
            Tensors by name, of NumPy or PyTorch, on any device. They may change when this returns.
        version
            Its number; ``None`` for one more than the last, or 1.

        Returns
        -------
        The number of the version.

        Raises
        ------
        EncodeError, OSError
        """


class Receiver(_End):
    """The end that has weights, and turns them into newer ones when it is told to: such as between
    two steps of a model.
    """

    @property
    @abstractmethod
    def version(self) -> int | None:
        """The number of the version that `tensors` are; ``None`` if that is not known."""

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, Any]:
        """The weights: those that were given, or arrays."""

    @abstractmethod
    def update(self, timeout: float | None = 0.0) -> int | None:
        """Turn the weights into the newest version that has come.

        Parameters
        ----------
        timeout
            Seconds to wait for one, if none has come; ``None`` for ever.

        Returns
        -------
        The number of the version that they are then: the same as before if nothing has come.

        Raises
        ------
        DecodeError
            What has come is damaged, or does not fit the weights; they may be new in part. The
            next version comes as a whole.
        """

    def wait_for(self, version: int, timeout: float | None = None) -> int:
        """Turn the weights into a version, or a later one, as soon as it comes.

        Parameters
        ----------
        timeout
            Seconds to wait for it; ``None`` for ever.

        Raises
        ------
        TimeoutError
            It has not come.
        DecodeError
            As `update`.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while (found := self.version) is None or found < version:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(
                    f"version {version} has not come within {timeout} s; the weights are version "
                    f"{found}{self._trouble()}"
                )
            self.update(left)
        return found

    def _trouble(self) -> str:
        """What keeps versions from coming, if something does, to end a message with."""
        return ""
