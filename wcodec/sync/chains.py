"""Weights by way of a chain: a directory, or a prefix of an object store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from wcodec.backends import Backend
from wcodec.deltas.chain import Chain
from wcodec.deltas.states import State, as_arrays
from wcodec.errors import EncodeError
from wcodec.files.atomic import AnyPath
from wcodec.planner.options import EncodeOptions
from wcodec.sync.ends import Receiver, Sender


class ChainSender(Sender):
    """Sends weights as versions of a `wcodec.Chain`, which stay there until they are pruned.

    Parameters
    ----------
    url, backend, options, settings
        As of `wcodec.Chain`.
    """

    def __init__(
        self,
        url: AnyPath,
        options: EncodeOptions | None = None,
        backend: Backend | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.url, self.chain = os.fspath(url), Chain(url, backend, options, **settings)

    def send(self, state_dict: Mapping[str, Any], version: int | None = None) -> int:
        """As `Sender.send`. The chain numbers its versions itself.

        Raises
        ------
        EncodeError
            ``bad_option``: `version` is not the next number. And as `wcodec.Chain.append`.
        """
        self._check_process()
        if version is not None:
            known = self._newest()
            if version != known + 1:
                raise EncodeError(
                    "bad_option", f"version {version} does not follow {known} in this chain"
                )
        return self.chain.append(state_dict)

    def _newest(self) -> int:
        try:
            return self.chain.find().version
        except (FileNotFoundError, KeyError):  # there is no chain yet, or it is empty
            return 0

    def close(self) -> None:
        """As `_End.close`: nothing is open."""


class ChainReceiver(Receiver):
    """Has weights, and turns them into those of a chain that another process writes.

    Parameters
    ----------
    url, backend, settings
        As of `wcodec.Chain`. The chain may begin later.
    tensors
        As of `Subscriber`.
    version
        What `tensors` are, if that is known.
    checked
        As of `wcodec.apply`.
    poll
        Seconds between two looks at the chain.
    """

    def __init__(
        self,
        url: AnyPath,
        tensors: Mapping[str, Any] | None = None,
        *,
        version: int | None = None,
        checked: str = "sampled",
        backend: Backend | None = None,
        poll: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.chain = Chain(url, backend, **settings)
        if version is not None and tensors is None:
            raise ValueError("version says what tensors are, and none are given")
        self._tensors, self._state = tensors, State()
        self._version, self._checked, self._poll = version, checked, poll

    @property
    def version(self) -> int | None:
        """As `Receiver.version`."""
        return self._version

    @property
    def tensors(self) -> Mapping[str, Any]:
        """As `Receiver.tensors`."""
        return as_arrays(self._state) if self._tensors is None else self._tensors

    def update(self, timeout: float | None = 0.0) -> int | None:
        """As `Receiver.update`, to the newest version of the chain.

        Raises
        ------
        DecodeError, OSError
            As `wcodec.Chain.update`.
        """
        self._check_process()
        at = 0 if self._version is None else self._version
        for _ in self.chain.follow(at, timeout, self._poll):
            return self._advance()
        return self._version

    def _advance(self) -> int:
        at, self._version = self._version, None  # not known while it changes
        if self._tensors is None:
            state, self._state = self._state, State()
            self._state, self._version = self.chain.advanced(state, at)
        else:
            self._version = self.chain.update(self._tensors, at, checked=self._checked)
        return self._version

    def close(self) -> None:
        """As `_End.close`: nothing is open."""
