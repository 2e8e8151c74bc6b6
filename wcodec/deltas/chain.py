"""`Chain`: the versions of a run of training, as full checkpoints and deltas.
Spec: spec/chain.md.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from wcodec.backends import Backend
from wcodec.deltas.manifest import (
    DELTA,
    FILE_NAME,
    FULL,
    MANIFEST,
    MINOR,
    Manifest,
    Version,
    now,
)
from wcodec.deltas.reading import ChainReader
from wcodec.deltas.states import (
    State,
    copied,
    take,
)
from wcodec.errors import EncodeError, within
from wcodec.files.atomic import AnyPath
from wcodec.files.file import File
from wcodec.files.saving import write_tensors
from wcodec.planner.options import EncodeOptions

ORPHAN_AGE_S: Final = 3600.0  #: files that no manifest names are younger while they are written
#: files of versions, and what a writer that was killed leaves of those and of manifests
_OURS: Final = re.compile(
    rf"{FILE_NAME.pattern}|\.({FILE_NAME.pattern}|{re.escape(MANIFEST)})\.[0-9a-f]{{8}}\.wcodec-tmp"
)


class Pruned(NamedTuple):
    """What `Chain.prune` has done.

    Attributes
    ----------
    versions
        Numbers of those that are versions no more.
    files
        Names of the files that are gone.
    """

    versions: list[int]
    files: list[str]


class Chain(ChainReader):
    """The versions of a run of training in a directory, each a full checkpoint or the difference
    from the one before. One process writes it; any number read it meanwhile.

    Parameters
    ----------
    url
        The directory, or a URL that ``fsspec`` knows (``wcodec[remote]``), such as
        ``s3://bucket/run``. Nothing is read or written now.
    backend
        ``None`` for the one of `wcodec.get_backend`.
    options
        How files are encoded; see `EncodeOptions`.
    max_share, max_deltas
        When `append` writes a full checkpoint: when the deltas since the last one have more than
        this part of its bytes, or there are so many of them.
    max_nbytes, max_memory
        As of `wcodec.open`, of each file that is read.
    storage_options
        Given to ``fsspec``.

    Raises
    ------
    ImportError, ValueError
        There is nothing that serves such a URL; the message says what to install.

    Examples
    --------
    >>> chain = wcodec.Chain("runs/7")
    >>> chain.append(state_dict, metadata={"step": "1000"})
    1
    >>> tensors = chain.load()
    """

    def __init__(
        self,
        url: AnyPath,
        backend: Backend | None = None,
        options: EncodeOptions | None = None,
        *,
        max_share: float = 0.5,
        max_deltas: int = 64,
        max_nbytes: int | None = None,
        max_memory: int | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(url, backend, max_nbytes, max_memory, storage_options)
        self._options, self._max_share, self._max_deltas = options, max_share, max_deltas
        #: the newest version, if this has read or written it to append to, and its tensors
        self._newest: Version | None = None
        self._tensors = State()

    def append(
        self,
        state_dict: Mapping[str, Any],
        metadata: dict[str, str] | None = None,
        full: bool | None = None,
    ) -> int:
        """Write the next version: what it differs in from the newest one, or a full checkpoint.

        This keeps a copy of the tensors in memory, for the next delta.

        Parameters
        ----------
        state_dict
            Tensors by name, as `wcodec.save_file` or `wcodec.torch.save_file` takes them.
        metadata
            Texts to keep with them.
        full
            Whether to write a full checkpoint; ``None`` to let sizes decide. The first version
            is one, and one that shares no tensor with the version before.

        Returns
        -------
        The number of the version.

        Raises
        ------
        EncodeError
            ``changed``: another process has written to the chain, or `state_dict` was changed
            meanwhile; and as `wcodec.save_file`. The chain is as it was.
        DecodeError, OSError
        """
        before = self._read_or_new()
        newest, base = before.last, None
        self._check_newest(newest)
        if newest is not None and not (self._full_is_due(before, newest) if full is None else full):
            base = self._base(before, newest)
        number = 1 if newest is None else newest.version + 1
        v = self._write(number, state_dict, metadata or {}, now(), newest, base)
        self._commit(before, (*before.versions, v), v)
        old, self._newest = self._tensors, None
        self._tensors = copied(state_dict, old)
        self._newest = v
        return number

    def prune(
        self,
        keep_last: int | None = None,
        keep_every: int | None = None,
        keep: Iterable[int] = (),
    ) -> Pruned:
        """Let versions go. Those that kept ones differ from are retired: they are versions no
        more, and their files stay.

        Files that no manifest names, as processes that were killed leave them, go too, where they
        are older than an hour.

        Parameters
        ----------
        keep_last
            So many of the newest stay. The newest one always does.
        keep_every
            Those whose number is a multiple of this stay.
        keep
            Numbers of others that stay.

        Raises
        ------
        EncodeError
            ``bad_option``: nothing says what to keep. ``changed``: as `append`.
        KeyError
            There is no version of a number.
        DecodeError, OSError
        """
        before, others = self._read(), list(keep)
        if keep_last is None and keep_every is None and not others:
            raise EncodeError("bad_option", "prune has to know which versions to keep")
        if (keep_last or 0) < 0 or (keep_every is not None and keep_every < 1):
            raise EncodeError("bad_option", "keep_last is at least 0, and keep_every at least 1")
        kept = {before.find(number).version for number in (*others, None)}
        numbers = [v.version for v in before.shown]
        kept.update(numbers[len(numbers) - min(keep_last or 0, len(numbers)) :])
        kept.update(n for n in numbers if keep_every and n % keep_every == 0)
        needed = {v.version for n in kept for v in before.path(before.by_number[n])}
        after = tuple(
            v._replace(retired=v.version not in kept)
            for v in before.versions
            if v.version in needed
        )
        if after != before.versions:
            self._commit(before, after)
        named = {v.file for v in after}
        going = {v.file for v in before.versions} - named
        for name, age in self._store.ages(_OURS).items():
            if name not in named and age > ORPHAN_AGE_S:
                going.add(name)
        for name in going:
            self._store.remove(name)
        return Pruned([n for n in numbers if n not in kept], sorted(going))

    def pack(self, version: int | None = None) -> Version:
        """Write a version as a full checkpoint, to which the manifest then leads. The file that it
        had stays until `prune` finds it.

        Parameters
        ----------
        version
            Its number; ``None`` for the newest.

        Raises
        ------
        EncodeError
            ``changed``: as `append`.
        DecodeError, FileNotFoundError, KeyError
            As `load`.
        """
        before = self._read()
        v = before.find(version)
        if v.kind == FULL:
            return v
        state = self._composed(before, v)
        full = self._write(v.version, state, v.metadata, v.time)
        self._commit(before, tuple(full if o is v else o for o in before.versions), full)
        return full

    # ---- files
    def _commit(
        self, before: Manifest, versions: tuple[Version, ...], new: Version | None = None
    ) -> None:
        """Write the manifest, if it is what it was when it was read.

        Parameters
        ----------
        new
            The version whose file was written, which goes again if the manifest cannot be written.
        """
        try:
            with within(self._store.path(MANIFEST)):
                if before.minor > MINOR:
                    raise EncodeError(
                        "bad_option", f"a manifest of version 1.{before.minor} is read, not written"
                    )
                data = Manifest(before.generation + 1, versions).write()
                if (found := self._read_or_new()) != before:
                    raise EncodeError(
                        "changed",
                        f"another process has written it: generation {found.generation}, where "
                        f"{before.generation} was read; a chain has one writer",
                    )
        except BaseException:
            if new is not None:
                self._store.remove(new.file)
            raise
        self._store.replace(MANIFEST, data)

    def _write(
        self,
        number: int,
        tensors: Mapping[str, Any],
        metadata: dict[str, str],
        when: str,
        newest: Version | None = None,
        base: State | None = None,
    ) -> Version:
        """Write the file of a version. Nothing names it yet.

        Parameters
        ----------
        newest, base
            The version before, and its tensors, for a delta.
        """
        name = f"{number}-{secrets.token_hex(4)}.wcodec"

        def make(path: Path) -> Version:
            write_tensors(tensors, take, path, metadata, self._options, base, True, self._backend)
            with File(path, self._backend) as file:
                index, sha256 = file.index, file.content_hash().hex()
            of = None
            if index.base is not None and newest is not None:
                of = newest.version
                if index.base.sha256.hex() != newest.content_hash:
                    path.unlink()
                    self._newest = None  # what it holds is not that version
                    raise EncodeError(
                        "changed", f"the tensors of version {of} were changed while it was written"
                    )
            return Version(
                number, FULL if of is None else DELTA, of, name, index.file_nbytes,
                index.data_nbytes, sha256, when, dict(metadata),
            )  # fmt: skip

        return self._store.write(name, make)

    # ---- what the writer holds
    def _check_newest(self, newest: Version | None) -> None:
        """Whether the newest version is the one that this writer knows.

        Raises
        ------
        EncodeError
            ``changed``
        """
        mine, there = (v and (v.version, v.content_hash) for v in (self._newest, newest))
        if mine and mine != there:
            with within(self._store.path(MANIFEST)):
                raise EncodeError(
                    "changed",
                    f"the newest version is {there and there[0]}, of another process; this one "
                    f"wrote {mine[0]}: a chain has one writer",
                )

    def _base(self, found: Manifest, newest: Version) -> State:
        """The tensors of the newest version; read when they are first needed."""
        if self._newest is None:
            self._tensors = self._composed(found, newest)
            self._newest = newest
        return self._tensors

    def _full_is_due(self, found: Manifest, newest: Version) -> bool:
        full, *deltas = found.path(newest)
        nbytes = sum(v.nbytes for v in deltas)
        return len(deltas) >= self._max_deltas or nbytes > self._max_share * full.nbytes
