"""Where bytes of a file come from: memory, a file, or a file object.

Files are read by calls at offsets. Unlike a map, that works on every mount, a file that is cut does
not end the process, and unlike a position, threads and forked processes do not disturb each other.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wcodec.errors import CodecError, DecodeError, named
from wcodec.processes import Lock
from wcodec.reference.container import ByteSource
from wcodec.reference.planes import Bytes, Words

Path = str | os.PathLike[str]

_PIECE_NBYTES: Final = 1 << 23  #: bytes that are read at once, of many
_WHOLE_NBYTES: Final = 1 << 23  #: words of larger tensors are read where they are looked at


class BufferSource:
    """A buffer in memory."""

    def __init__(self, data: Any) -> None:
        self.view = np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)
        self.nbytes = self.view.size

    def read(self, offset: int, nbytes: int) -> Bytes:
        """`nbytes` bytes from `offset`, without a copy."""
        return self.view[offset : offset + nbytes]

    def read_into(self, offset: int, target: Bytes) -> None:
        """Fill `target` with bytes from `offset`."""
        np.copyto(target, self.read(offset, target.size))


class Identity(NamedTuple):
    """Which file it is, and in which state."""

    device: int
    inode: int
    nbytes: int
    mtime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Identity:
        """From what the system says."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class Descriptor:
    """A file descriptor that is open as long as someone reads from it."""

    def __init__(self, number: int, name: str) -> None:
        self.number, self._name = number, name

    def stat(self) -> os.stat_result:
        """What the system says of the file."""
        with named(self._name):
            return os.fstat(self.number)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):  # all that was wanted has been read
            os.close(self.number)


class FileSource:
    """A regular file.

    Parameters
    ----------
    file
        A path, or a file object of the system, whose descriptor is duplicated.
    error
        What is raised where its bytes are not there.
    is_checked
        Whether each read makes sure that the file has not changed. Not needed where what is read
        has a CRC-32.

    Attributes
    ----------
    name
        What it is called in errors.
    identity
        Which file it was when it was opened.

    Raises
    ------
    OSError
        `io.UnsupportedOperation` of a pipe, a socket or a device, which are not waited for.
    """

    is_read = True  #: into memory of the caller, not where it lies

    def __init__(
        self,
        file: Path | BinaryIO,
        error: type[CodecError] = DecodeError,
        is_checked: bool = False,
    ) -> None:
        self._error, self._is_checked = error, is_checked
        if isinstance(file, str | os.PathLike):
            self.name = os.fspath(file)
            try:
                number = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # not waiting for who writes
            except BlockingIOError:  # another process has a lease of it: that is waited for
                number = os.open(file, os.O_RDONLY)
            except OSError as e:
                if e.errno == errno.ENXIO:
                    raise _not_seekable(self.name) from None
                raise
        else:
            self.name, number = str(getattr(file, "name", "")), os.dup(file.fileno())
        self._descriptor: Descriptor | None = Descriptor(number, self.name)
        found = self._descriptor.stat()
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.name)
        if not stat.S_ISREG(found.st_mode):
            raise _not_seekable(self.name)
        self.identity = Identity.of(found)
        self.nbytes = self.identity.nbytes

    def read(self, offset: int, nbytes: int) -> Bytes:
        """`nbytes` bytes from `offset`. Raises as `read_into`."""
        out = np.empty(nbytes, np.uint8)
        self.read_into(offset, out)
        return out

    def read_into(self, offset: int, target: Bytes) -> None:
        """Fill `target` with bytes from `offset`.

        Raises
        ------
        CodecError
            ``truncated``: the file has become shorter than it was. ``changed``, if it `is_checked`.
        OSError
        ValueError
            It is closed.
        """
        descriptor = self._open()
        view, done = target.data, 0
        while done < target.size:
            with named(self.name):
                n = _read_at(descriptor.number, view[done:], offset + done)
            if n == 0:
                raise self._error(
                    "truncated",
                    f"the file ends {target.size - done} bytes early: it was cut meanwhile",
                    offset=offset + done,
                )
            done += n
        if self._is_checked:
            self.check()

    def pieces(self, start: int, stop: int) -> Iterator[Bytes]:
        """The bytes from `start` to `stop`, some at a time. Raises as `read_into`."""
        for at in range(start, stop, _PIECE_NBYTES):
            yield self.read(at, min(_PIECE_NBYTES, stop - at))

    def _open(self) -> Descriptor:
        if self._descriptor is None:
            raise ValueError(f"the file {self.name!r} is closed")
        return self._descriptor

    def check(self) -> None:
        """Make sure that the file is in the state in which it was opened.

        Raises
        ------
        CodecError
            ``changed``, or ``truncated`` if it has become shorter.
        """
        now = Identity.of(self._open().stat())
        if now.nbytes < self.nbytes:
            n = self.nbytes - now.nbytes
            raise self._error("truncated", f"{n} bytes were cut off its end while it was read")
        if now != self.identity:
            raise self._error(
                "changed", "the file was written to while it was read; read it again from the start"
            )

    def will_need(self, offset: int, nbytes: int) -> None:
        """Tell the system what will be read next."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._open().number, offset, nbytes, os.POSIX_FADV_WILLNEED)

    def words(self, offset: int, nbytes: int, dtype: np.dtype[Any]) -> Words | FileWords:
        """Words of the file, flat: in memory, or, of many, as `FileWords`. Raises as `read`."""
        if nbytes <= _WHOLE_NBYTES:
            return self.read(offset, nbytes).view(dtype)
        return FileWords(self, offset, np.dtype(dtype), (nbytes // np.dtype(dtype).itemsize,))

    def close(self) -> None:
        """Let go of the file. Threads that read from it finish that."""
        self._descriptor = None


def _not_seekable(name: str) -> io.UnsupportedOperation:
    return io.UnsupportedOperation(
        errno.ESPIPE, "a pipe or device; wcodec needs a file that it can seek in", name
    )


if hasattr(os, "preadv"):

    def _read_at(number: int, target: memoryview, offset: int) -> int:
        return os.preadv(number, [target], offset)
else:

    def _read_at(number: int, target: memoryview, offset: int) -> int:
        piece = os.pread(number, len(target), offset)
        target[: len(piece)] = piece
        return len(piece)


class ReadsInto(Protocol):
    """A file that is read into memory of the caller."""

    def read_into(self, offset: int, target: Bytes) -> None:
        """Fill `target` with bytes from `offset`."""


class FileWords:
    """Words of a file that are read where they are looked at: an array of one or two dimensions, as
    far as encoders need one.
    """

    def __init__(
        self, source: ReadsInto, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]
    ) -> None:
        self._source, self._offset, self.dtype, self.shape = source, offset, dtype, shape
        self.size, self.itemsize = int(np.prod(shape)), dtype.itemsize
        self.nbytes = self.size * self.itemsize

    def reshape(self, *shape: int) -> FileWords:
        """The same words as an array of another shape."""
        return FileWords(self._source, self._offset, self.dtype, shape)

    def __getitem__(self, index: slice | tuple[slice, slice]) -> Words:
        """Some words by a slice, or by one of rows and one of columns. Raises as `FileSource`."""
        if isinstance(index, slice):
            first, stop, step = index.indices(self.size)
            out = np.empty(max(stop - first, 0), self.dtype)
            self._read(first, out)
            return out[::step]
        (r0, r1, _), (c0, c1, _) = (s.indices(n) for s, n in zip(index, self.shape, strict=True))
        out = np.empty((r1 - r0, c1 - c0), self.dtype)
        self.read_into(index, out)
        return out

    def ahead(self) -> AbstractContextManager[None]:
        """Where all words are read in order; see `reading_on`."""
        return reading_on(self._source, self._offset, self._offset + self.nbytes)

    def look(self, starts: NDArray[np.int64], n: int) -> bytes:
        """`n` words from each of some places; all at once, of a remote file."""
        where = [(self._offset + i * self.itemsize, n * self.itemsize) for i in starts.tolist()]
        look = getattr(self._source, "look", None)
        if look is not None:
            return bytes(look(where))
        return b"".join(self[i : i + n].tobytes() for i in starts.tolist())

    def read_into(self, index: tuple[slice, slice], out: Words) -> None:
        """Fill a C-contiguous array with some rows and columns."""
        rows, width = range(*index[0].indices(self.shape[0])), self.shape[1]
        first = index[1].indices(width)[0]
        if out.shape[1] == width:
            self._read(rows.start * width, out)
            return
        read_runs = getattr(self._source, "read_runs", None)
        if read_runs is not None and out.size:  # of a remote file, all of them at once
            n = out.shape[1] * self.itemsize
            where = [(self._offset + (r * width + first) * self.itemsize, n) for r in rows]
            read_runs(where, out.reshape(-1).view(np.uint8))
            return
        for r, row in zip(rows, out, strict=True):
            self._read(r * width + first, row)

    def _read(self, first: int, out: Words) -> None:
        place = self._offset + first * self.itemsize
        self._source.read_into(place, out.reshape(-1).view(np.uint8))


class StreamSource:
    """A seekable binary file object that is not a file of the system's, such as one of ``fsspec``.
    Whoever else uses it moves its position, also a forked child.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.lock = stream, Lock()
        self.nbytes = stream.seek(0, io.SEEK_END)

    def read(self, offset: int, nbytes: int) -> Bytes:
        """`nbytes` bytes from `offset`.

        Raises
        ------
        DecodeError
            ``truncated``: the file has become shorter than it was.
        """
        if nbytes == 0:
            return np.empty(0, np.uint8)
        pieces, done = list[bytes](), 0
        with self.lock:
            self.stream.seek(offset)
            while done < nbytes:
                pieces.append(self.stream.read(nbytes - done))
                if not pieces[-1]:
                    raise DecodeError(
                        "truncated",
                        f"the file ends {nbytes - done} bytes early",
                        offset=offset + done,
                    )
                done += len(pieces[-1])
        return np.frombuffer(pieces[0] if len(pieces) == 1 else b"".join(pieces), np.uint8)


def read_into(source: ByteSource, offset: int, target: Bytes) -> None:
    """Fill `target` with bytes of a source; without a copy, where it can do that."""
    fill = getattr(source, "read_into", None)
    if fill is None:
        np.copyto(target, source.read(offset, target.size))
    else:
        fill(offset, target)


class ClosedSource:
    """What was closed."""

    nbytes = 0

    def read(self, offset: int, nbytes: int) -> Bytes:
        """Raises `ValueError`."""
        raise ValueError("the file is closed")


class PartSource:
    """A part of another source that is a file itself."""

    def __init__(self, source: ByteSource, start: int, nbytes: int) -> None:
        self._source, self._start, self.nbytes = source, start, nbytes

    def read(self, offset: int, nbytes: int) -> Bytes:
        """As of the other source. Raises as that."""
        return self._source.read(self._start + offset, nbytes)

    def ahead(self, start: int, stop: int) -> AbstractContextManager[None]:
        """As `reading_on`."""
        return reading_on(self._source, self._start + start, self._start + stop)


def reading_on(source: object, start: int, stop: int) -> AbstractContextManager[None]:
    """Where the bytes from `start` to `stop` are read in about this order: a remote source asks for
    what follows before it is wanted.
    """
    ahead = getattr(source, "ahead", None)
    return nullcontext() if ahead is None else ahead(start, stop)


def source_of_object(file: Any) -> ByteSource:
    """What to read a binary file object or a buffer by. Raises `OSError`."""
    if not hasattr(file, "read"):
        return BufferSource(file)
    plain = _system_file(file)
    return StreamSource(file) if plain is None else FileSource(plain)


def _system_file(stream: Any) -> BinaryIO | None:
    """The file of the system that a file object shows as it is."""
    if type(stream).__module__ in ("tempfile", "fsspec.implementations.local"):
        stream = getattr(stream, "file", None) or getattr(stream, "f", None)
    if type(stream) not in (io.BufferedReader, io.BufferedRandom, io.FileIO):
        return None
    if type(getattr(stream, "raw", stream)) is not io.FileIO:
        return None
    stream.flush()  # what was written by it
    found: BinaryIO = stream
    return found if stat.S_ISREG(os.fstat(found.fileno()).st_mode) else None
