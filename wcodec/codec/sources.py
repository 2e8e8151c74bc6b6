"""Where bytes of a file come from."""

from __future__ import annotations

import io
import os
import threading
from typing import Any, BinaryIO

import numpy as np

from wcodec.errors import DecodeError
from wcodec.reference.container import ByteSource
from wcodec.reference.planes import Bytes


class BufferSource:
    """A buffer, or a mapped file."""

    def __init__(self, data: Any) -> None:
        self.view = np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)
        self.nbytes = self.view.size

    def read(self, offset: int, nbytes: int) -> Bytes:
        """`nbytes` bytes from `offset`, without a copy."""
        return self.view[offset : offset + nbytes]

    def read_into(self, offset: int, target: Bytes) -> None:
        """Fill `target` with bytes from `offset`."""
        np.copyto(target, self.read(offset, target.size))


class FileSource(BufferSource):
    """A mapped file that can also be read by calls, into the place where bytes are wanted: a map
    would fault at every page.

    Parameters
    ----------
    mapped
        The file as it is mapped.
    file
        The same file, open for reading.
    """

    def __init__(self, mapped: ByteSource, file: BinaryIO) -> None:
        super().__init__(mapped.read(0, mapped.nbytes))
        self._descriptor, self._name = file.fileno(), file.name

    def read_into(self, offset: int, target: Bytes) -> None:
        """As `BufferSource.read_into`.

        Raises
        ------
        DecodeError
            ``truncated``: the file has become shorter than it was.
        OSError
        """
        done = 0
        while done < target.size:
            try:
                n = os.preadv(self._descriptor, [target.data[done:]], offset + done)
            except OSError as e:
                e.filename = self._name  # the system does not say
                raise
            if n == 0:
                raise DecodeError(
                    "truncated",
                    f"the file ends {target.size - done} bytes early",
                    offset=offset + done,
                )
            done += n


class StreamSource:
    """A seekable binary file object: a local file, or one of ``fsspec``."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.lock = stream, threading.Lock()
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
