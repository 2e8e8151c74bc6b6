"""What is done with the files of a directory, each on its own and on whatever machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from wcodec.backends import Backend
from wcodec.codec.opening import open_source
from wcodec.codec.pipelining import Progress, ignore_progress
from wcodec.codec.urls import Place, Url
from wcodec.errors import named
from wcodec.files.atomic import (
    AnyPath,
    atomic_output,
    check_output,
    sync_folder,
    temporary_of,
)

_PIECE_NBYTES: Final = 1 << 23

#: Writes the file at a path; ``backend``, ``progress``, ``overwrite`` and ``fsync`` are as of
#: `encode_file`. It can be pickled. Returns bytes of what it reads and of what it writes.
Work = Callable[..., tuple[int, int]]


@dataclass(frozen=True)
class Report:
    """What was done with the files of a directory, or with one file.

    Attributes
    ----------
    n_coded
        Files that were encoded, decoded or verified.
    n_copied
        Others that were written: the same bytes, or a text with names changed.
    n_skipped
        Files that an earlier run had finished; they count in the other numbers too.
    nbytes, stored_nbytes
        Bytes of all files, plain and encoded.
    """

    n_coded: int
    n_copied: int
    n_skipped: int
    nbytes: int
    stored_nbytes: int


@dataclass(frozen=True)
class FileTask:
    """A file to be written.

    Attributes
    ----------
    sources
        The file that it is made from, and others whose change makes it another one.
    name
        Where it goes in the target directory, with ``/``.
    label
        What errors call it.
    nbytes
        How many bytes of progress it is.
    is_coded
        Whether it is encoded or decoded, not copied.
    work
        Returns bytes of the file as it is read and as it is written.
    decodes
        Whether what is read is the encoded form.
    split
        Of a file that can be encoded in parts: its options.
    """

    sources: tuple[Place, ...]
    name: str
    label: str
    nbytes: int
    is_coded: bool
    work: Work
    decodes: bool = False
    split: Any = None

    def identity(self) -> list[list[Any]]:
        """Sizes and times of the sources."""
        return [identity_of(p) for p in self.sources]

    def sizes(self, done: tuple[int, int]) -> dict[str, int]:
        """Plain and encoded bytes, given what `work` returns."""
        plain, coded = done[::-1] if self.decodes else done
        return {"nbytes": plain, "stored_nbytes": coded}


def identity_of(path: Place) -> list[Any]:
    """Size and time of a file, or what else changes when it does."""
    if isinstance(path, Url):
        found = path.known or path.look_up()
        if found is None:
            raise FileNotFoundError(2, os.strerror(2), str(path))
        return [found.nbytes, found.tag]
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


# ---- what becomes of files that are not coded ----------------------------------------------------
def _pieces(path: Place) -> Iterator[Any]:
    source = open_source(path, is_checked=True)
    yield from (piece.data for piece in source.pieces(0, source.nbytes))
    source.close()


def copy_file(
    source: Place,
    target: AnyPath,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    **how: bool,
) -> tuple[int, int]:
    """Copy a file."""
    nbytes = 0
    with atomic_output(target, inputs=[source], like=source, **how) as out:
        for piece in _pieces(source):
            out.write(piece)
            nbytes += len(piece)
            progress(len(piece))
    return nbytes, nbytes


def write_text(
    text: bytes,
    sources: tuple[Place, ...],
    nbytes: tuple[int, int],
    plain_nbytes: int,
    target: AnyPath,
    backend: Backend,
    progress: Progress,
    **how: bool,
) -> tuple[int, int]:
    """Write a text that is made of another one."""
    with atomic_output(target, inputs=sources, like=sources[0], **how) as out:
        out.write(text)
    progress(plain_nbytes)
    return nbytes


def text_task(
    text: bytes, old_nbytes: int, sources: tuple[Place, ...], name: str, label: str, encodes: bool
) -> FileTask:
    """Write a text that an encoding or decoding run has changed, in place of one of `old_nbytes`
    bytes.
    """
    nbytes = old_nbytes, len(text)
    plain_nbytes = old_nbytes if encodes else len(text)
    work = partial(write_text, text, sources, nbytes, plain_nbytes)
    return FileTask(sources, name, label, plain_nbytes, False, work, not encodes)


def make_link(
    text: str,
    target: Path,
    backend: Backend,
    progress: Progress,
    *,
    overwrite: bool,
    fsync: bool,
) -> tuple[int, int]:
    """Make a link to a file of the same directory; it has no bytes of its own."""
    check_output(target, overwrite)
    temporary = temporary_of(target) if target.exists() else target
    with named(target):
        temporary.symlink_to(text)
        if temporary != target:
            os.replace(temporary, target)
    if fsync:
        sync_folder(target.parent)
    return 0, 0


# ---- many at once --------------------------------------------------------------------------------
class Unit(NamedTuple):
    """A piece of work for a worker on any machine.

    Attributes
    ----------
    key
        What it is called among all of a run.
    label
        What errors call it.
    nbytes
        How many bytes of progress it is.
    work
        Called with ``backend``, ``progress``, and ``again``: whether it was begun before, and may
        have left something. It can be pickled, and its result too.
    may_fail
        Whether all else goes on where it cannot be done: its result is the error then.
    """

    key: str
    label: str
    nbytes: int
    work: Callable[..., Any]
    may_fail: bool = False


class Runner(Protocol):
    """Has units done."""

    def __call__(
        self,
        units: Iterable[Unit],
        follow: Callable[[Unit, Any], Iterable[Unit]],
        progress: Progress,
    ) -> None:
        """Have units done, in any order, as often as it takes.

        Parameters
        ----------
        follow
            Called in this process with each unit that is done and its result; gives more of them.

        Raises
        ------
        WcodecError, OSError
            A unit cannot be done. Those that are under way are waited for.
        """
