"""Hub form, written: safetensors files in which the tensors that get smaller are streams.
Spec: hub.md.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from wcodec.backends import Backend
from wcodec.codec.encoder import Encoder
from wcodec.codec.opening import OpenedFile, open_source
from wcodec.codec.pipelining import Progress, WriteBehind, ignore_progress
from wcodec.codec.urls import Url, place_of
from wcodec.directories.hub_header import (
    CRC_KEY,
    HEADER_KEY,
    LEAST_NBYTES,
    VERSION_KEY,
    VERSION_TEXT,
    looks_like_stream,
    read_plain_header,
)
from wcodec.directories.tasks import copy_file
from wcodec.errors import EncodeError, named, within
from wcodec.files.atomic import AnyPath, atomic_output, check_output
from wcodec.files.bases import crc32_of
from wcodec.files.safetensors_header import (
    Entry,
    SafetensorsHeader,
    SourceTensor,
    write_safetensors_header,
)
from wcodec.planner.options import EncodeOptions
from wcodec.reference.tiles import CHUNK_NBYTES, MAX_RANK

_PIECE_NBYTES: Final = 1 << 23  #: bytes that are copied at once


def _sorted(tensors: Iterable[SourceTensor]) -> list[SourceTensor]:
    """In the order in which all are aligned: by size of their dtype, largest first;
    those of unknown dtypes last.
    """
    return sorted(tensors, key=lambda t: -t.dtype.nbytes if not t.dtype_name else 0)


def _plain_entry(t: SourceTensor) -> Entry:
    return t.name, t.stated_dtype, t.stated_shape, t.nbytes


def encode_hub_file(
    source: AnyPath,
    target: AnyPath,
    options: EncodeOptions | None = None,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    *,
    overwrite: bool = False,
    fsync: bool = True,
) -> tuple[int, int]:
    """Bring a safetensors file into hub form; `decode_hub_file` restores it byte for byte.

    Parameters
    ----------
    overwrite
        Whether a target that is there may be replaced, if it is not the source.
    fsync
        As of `wcodec.save_file`.

    Returns
    -------
    Bytes of the source and of the target.

    Raises
    ------
    EncodeError
        ``bad_source``: not a well-formed safetensors file, or one in hub form. ``resource_limit``:
        its header would be too large for safetensors. ``output_exists``; ``bad_option``: the target
        is the source. Nothing is left behind.
    """
    if isinstance(place_of(target), Url):  # what is written first depends on all that follows
        check_output(target, overwrite, [source])
        with tempfile.TemporaryDirectory(prefix="wcodec-hub-") as folder:
            made = Path(folder) / "model.safetensors"
            sizes = encode_hub_file(source, made, options, backend, progress, fsync=False)
            copy_file(made, target, overwrite=overwrite)
        return sizes
    file = open_source(source, EncodeError, is_checked=True)
    with within(source):
        header = read_plain_header(file)
    with (
        atomic_output(target, overwrite=overwrite, inputs=[source], like=source, fsync=fsync) as f,
        within(source),
    ):
        return file.nbytes, _HubWriter(f, file, header, Encoder(options, backend), progress).write()


class _HubWriter:
    """Writes the streams after a gap, and the rest into it when it is known which tensors got
    smaller.
    """

    def __init__(
        self,
        f: BinaryIO,
        source: OpenedFile,
        header: SafetensorsHeader,
        encoder: Encoder,
        progress: Progress,
    ) -> None:
        self.f = f
        self.source = source
        self.header = header
        self.encoder = encoder
        self.progress = progress
        self.plain = [t for t in header.tensors if not self._is_candidate(t)]
        self.streams = list[tuple[SourceTensor, int]]()
        self.crcs = dict[str, int]()

    def _is_candidate(self, t: SourceTensor) -> bool:
        return looks_like_stream(t, self.source) or (
            t.nbytes >= LEAST_NBYTES and not t.dtype_name and len(t.shape) <= MAX_RANK
        )

    def write(self) -> int:
        """Write the file. Returns its size."""
        small = {t.name for t in self.plain}
        candidates = [t for t in self.header.tensors if t.name not in small]
        for t in self.plain:
            self.crcs[t.name] = crc32_of(self.source, t, self.encoder.backend)
        # streams are hardly larger than their tensors:
        # numbers in this header have no fewer digits than in the one to come
        guess = self._header([(t, t.nbytes + t.nbytes // 500 + LEAST_NBYTES) for t in candidates])
        start = len(guess) + sum(t.nbytes for t in self.plain)
        self.f.seek(start)
        for t in candidates:
            self._write_stream(t)
        end, raw = self.f.tell(), self._header(self.streams, len(guess))
        shift = len(raw) + sum(t.nbytes for t in self.plain) - start
        if shift:
            _shift(self.f, start, end, shift)
        self.f.seek(0)
        self.f.write(raw)
        for t in _sorted(self.plain):
            for piece in self.source.pieces(t.start, t.stop):
                self.f.write(piece.data)
                self.progress(piece.size if t.name in small else 0)
        return self.f.seek(end + shift)

    def _write_stream(self, t: SourceTensor) -> None:
        start = self.f.tell()
        words = self.source.words(t.start, t.nbytes, t.dtype.word_type)
        with WriteBehind(self.f, self.encoder.backend.threads, CHUNK_NBYTES) as sink:
            writer = self.encoder.start(sink, self.progress)
            self.crcs[t.name] = writer.add_words("", words, t.dtype, t.shape).crc32
            nbytes = writer.finish()
        if nbytes < t.nbytes or looks_like_stream(t, self.source):
            self.streams.append((t, nbytes))
        else:
            self.plain.append(t)
            self.f.seek(start)
            self.f.truncate()

    def _header(self, streams: list[tuple[SourceTensor, int]], least: int = 0) -> bytes:
        raw = self.header.raw
        crcs = [
            self.encoder.backend.crc32(np.frombuffer(raw, np.uint8)),
            *(self.crcs.get(t.name, 0) for t in self.header.tensors),
        ]
        metadata = {
            **self.header.metadata,
            VERSION_KEY: VERSION_TEXT,
            CRC_KEY: "".join(f"{crc:08x}" for crc in crcs),
            HEADER_KEY: raw[8:].decode(),
        }
        entries = [
            *map(_plain_entry, _sorted(self.plain)),
            *((t.name, "U8", (nbytes,), nbytes) for t, nbytes in streams),
        ]
        return write_safetensors_header(entries, metadata, least)


def _shift(f: BinaryIO, start: int, end: int, by: int) -> None:
    """Move the bytes from `start` to `end` of a file that is being written towards its end."""
    f.flush()
    while end > start:
        nbytes = min(_PIECE_NBYTES, end - start)
        end -= nbytes
        with named(f.name):
            piece = os.pread(f.fileno(), nbytes, end)
            if len(piece) != nbytes:
                raise OSError(errno.EIO, f"{len(piece)} of {nbytes} bytes could be read back")
        f.seek(end + by)
        f.write(piece)
        f.flush()
