"""What all do with a chain: read its manifest, and make the tensors of a version."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from numpy.typing import NDArray

from wcodec.backends import Backend, get_backend
from wcodec.codec.pipelining import Progress, ignore_progress
from wcodec.deltas.applying import is_full
from wcodec.deltas.manifest import (
    DELTA,
    FULL,
    MANIFEST,
    MAX_NBYTES,
    Manifest,
    Version,
    read_manifest,
)
from wcodec.deltas.states import (
    NOTHING,
    OpenVersion,
    State,
    advance,
    as_arrays,
    check_fits,
    decoded,
    do_fit,
    hash_of,
)
from wcodec.deltas.stores import store_of
from wcodec.errors import DecodeError, within
from wcodec.files.atomic import AnyPath

T = TypeVar("T")


class ChainReader:
    """A chain that is read. See `wcodec.Chain`, whose parameters these are."""

    def __init__(
        self,
        url: AnyPath,
        backend: Backend | None,
        max_nbytes: int | None,
        max_memory: int | None,
        storage_options: dict[str, Any] | None,
    ) -> None:
        self._store = store_of(url, storage_options)
        self._backend = backend or get_backend()
        self._limits: dict[str, Any] = {"max_nbytes": max_nbytes, "max_memory": max_memory}

    def versions(self, retired: bool = False) -> list[Version]:
        """All versions, in ascending order.

        Parameters
        ----------
        retired
            Retired ones too, which `prune` explains.

        Raises
        ------
        DecodeError
            The manifest breaks a rule.
        FileNotFoundError
            There is no chain.
        """
        found = self._read()
        return list(found.versions) if retired else found.shown

    def find(self, version: int | None = None) -> Version:
        """What the manifest says of a version.

        Parameters
        ----------
        version
            Its number; ``None`` for the newest.

        Raises
        ------
        DecodeError, FileNotFoundError
            As `versions`.
        KeyError
            There is no such version.
        """
        return self._read().find(version)

    def load(self, version: int | None = None) -> dict[str, NDArray[Any]]:
        """The tensors of a version, as arrays by name.

        The full checkpoint before it is decoded, and the deltas from there are applied in memory.
        What comes of it is checked against the content hash.

        Parameters
        ----------
        version
            Its number; ``None`` for the newest.

        Raises
        ------
        DecodeError
        FileNotFoundError
            A file is gone, also after the manifest was read again.
        KeyError
            There is no such version.
        """
        return as_arrays(self.state(version))

    def state(self, version: int | None = None) -> State:
        """As `load`, as the format has tensors: opaque bytes with what they are."""
        return self._retried(lambda found: self._composed(found, found.find(version)))

    def update(
        self,
        tensors: Mapping[str, Any],
        version: int | None,
        to: int | None = None,
        *,
        checked: str = "sampled",
    ) -> int:
        """Turn tensors in memory that are one version into another one, in place.

        Parameters
        ----------
        tensors
            As of `wcodec.apply`: arrays of NumPy, or tensors of PyTorch on any device.
        version
            What they are now; ``None`` if they may be anything, which reads a full checkpoint.
        to
            What they are to become; ``None`` for the newest version.
        checked
            As of `wcodec.apply`.

        Returns
        -------
        The number of the version that they are then.

        Raises
        ------
        DecodeError
            ``bad_base``: a tensor of the version is missing, or has another dtype or shape: nothing
            is changed then. Or one is not what `version` has: others may be new already.
        FileNotFoundError, KeyError
            As `load`.
        """
        return self._moved(State(), tensors, version, to, is_full(checked))[1]

    def advanced(
        self, state: State, version: int | None, to: int | None = None
    ) -> tuple[State, int]:
        """As `update`, of tensors as the format has them, which the caller gives up.

        Parameters
        ----------
        state
            The tensors of `version`, or of another chain; empty for none.

        Returns
        -------
        The tensors, and the number of the version that they are.

        Raises
        ------
        DecodeError, FileNotFoundError, KeyError
            As `load`; `state` is not to be used then.
        """
        return self._moved(state, NOTHING, version if state else None, to, False)

    def _moved(
        self, state: State, live: Mapping[str, Any], at: int | None, to: int | None, full: bool
    ) -> tuple[State, int]:
        """`advance` from one version to another."""

        def run(found: Manifest) -> tuple[State, int]:
            nonlocal at, state
            goal = found.find(to)
            if live is not NOTHING:
                with self._opened(found, goal) as file:
                    check_fits(file, live)
            steps = found.path(goal)
            if at in (numbers := [v.version for v in steps]):
                with self._opened(found, found.by_number[at]) as file:
                    # or tensors that it needs on the way are missing
                    if live is NOTHING or do_fit(file, live):
                        steps = steps[numbers.index(at) + 1 :]
            for step in steps:
                with self._opened(found, step) as file:
                    state = advance(state, file, live, full)
                at = step.version
            return state, goal.version

        return self._retried(run)

    def follow(
        self, after: int | None = None, timeout: float | None = None, poll: float = 1.0
    ) -> Iterator[Version]:
        """New versions, as they come. A chain that is not there yet is waited for. One that comes
        may be pruned before you load it.

        Parameters
        ----------
        after
            Versions after this one are new; ``None`` for those that are not there now.
        timeout
            Seconds to wait for a version, after which this ends; ``None`` for ever.
        poll
            Seconds between two looks.

        Raises
        ------
        DecodeError, OSError
        """
        if after is None:
            newest = self._read_or_new().last
            after = 0 if newest is None else newest.version
        return self._following(after, timeout, poll)

    def _following(self, after: int, timeout: float | None, poll: float) -> Iterator[Version]:
        since = time.monotonic()
        while True:
            for v in self._read_or_new().shown:
                if v.version > after:
                    yield v
                    after, since = v.version, time.monotonic()
            if timeout is not None and time.monotonic() - since >= timeout:
                return
            time.sleep(poll if timeout is None else min(poll, timeout))

    def verify(self, progress: Progress = ignore_progress) -> list[Version]:
        """Decode all files, those of retired versions too, and check every checksum, every content
        hash and every parent.

        Returns
        -------
        The versions.

        Raises
        ------
        DecodeError, FileNotFoundError
            What is wrong first.
        """

        def run(found: Manifest) -> list[Version]:
            state, at = State(), 0
            for v in found.versions:
                if v.parent is not None and v.parent != at:
                    state = self._composed(found, found.by_number[v.parent])
                with self._opened(found, v) as file:
                    file.use_base(state)
                    state, at = decoded(file, progress), v.version
                    self._check_content(state, v)
            return found.shown

        return self._retried(run)

    # ---- the manifest
    def _read(self) -> Manifest:
        with within(self._store.path(MANIFEST)):
            return read_manifest(self._store.read(MANIFEST, MAX_NBYTES))

    def _read_or_new(self) -> Manifest:
        try:
            return self._read()
        except FileNotFoundError:
            return Manifest()

    def _retried(self, run: Callable[[Manifest], T]) -> T:
        """Do something by the manifest; if a file is gone, by what the manifest is then."""
        try:
            return run(self._read())
        except FileNotFoundError:
            return run(self._read())

    # ---- files
    @contextlib.contextmanager
    def _opened(self, found: Manifest, v: Version) -> Iterator[OpenVersion]:
        """The file of a version, which is what the manifest says (C6, C7)."""
        with (
            within(self._store.path(v.file)),
            self._store.open(v.file) as source,
            contextlib.closing(OpenVersion(source, self._backend, **self._limits)) as file,
        ):
            index, sha256 = file.index, file.content_hash().hex()
            kind = FULL if index.base is None else DELTA
            stated = v.nbytes, v.data_nbytes, v.content_hash, v.kind
            if stated != (index.file_nbytes, index.data_nbytes, sha256, kind):
                raise DecodeError("bad_value", f"it is not the file of version {v.version}")
            if index.base is not None and v.parent is not None:
                parent = found.by_number[v.parent]
                if index.base.sha256.hex() != parent.content_hash:
                    raise DecodeError(
                        "bad_base", f"it does not differ from version {v.parent}, its parent"
                    )
            yield file

    def _composed(self, found: Manifest, v: Version) -> State:
        """The tensors of a version."""
        state = State()
        for step in found.path(v):
            with self._opened(found, step) as file:
                state = decoded(file) if step.kind == FULL else advance(state, file)
        with within(self._store.path(v.file)):
            self._check_content(state, v)
        return state

    def _check_content(self, state: State, v: Version) -> None:
        if hash_of(state, self._backend) != v.content_hash:
            raise DecodeError(
                "bad_checksum", f"the tensors of version {v.version} have another content hash"
            )
