"""Hub form: safetensors files in which the tensors that get smaller are ``U8`` tensors that hold
wcodec streams. Spec: hub.md.

A stream is what `wcodec.encode` makes: `wcodec.decode` turns it back into the array.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.codec.decoder import Decoder, check_nbytes
from wcodec.codec.opening import open_source
from wcodec.codec.pipelining import Progress, WriteBehind, ignore_progress
from wcodec.codec.sources import PartSource, reading_on
from wcodec.directories.hub_header import (
    CRC_KEY,
    HEADER_KEY,
    KEYS,
    VERSION_KEY,
    looks_like_stream,
    parse_version,
    read_hub_header,
)
from wcodec.errors import DecodeError, EncodeError, within
from wcodec.files.atomic import (
    AnyPath,
    atomic_output,
    check_output,
    check_room,
)
from wcodec.files.safetensors_header import (
    SourceTensor,
    parse_safetensors_header,
    restored_header,
)
from wcodec.files.slices import Slice
from wcodec.reference.container import Index
from wcodec.reference.memory import Memory
from wcodec.reference.planes import Words
from wcodec.reference.tensors import TensorRecord


@dataclass(frozen=True)
class HubTensor:
    """A tensor of a file in hub form.

    Attributes
    ----------
    source
        Its entry in the file's header, and where it lies.
    index
        If it is a stream, the stream's index.
    """

    source: SourceTensor
    index: Index | None

    @property
    def dtype(self) -> str:
        """The decoded tensor's dtype, as safetensors calls it."""
        return (
            self.source.stated_dtype
            if self.index is None
            else self.index.tensors[0].dtype.safetensors
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """The decoded tensor's shape."""
        return self.source.stated_shape if self.index is None else self.index.tensors[0].shape

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded tensor."""
        return self.source.nbytes if self.index is None else self.index.data_nbytes

    @property
    def entry(self) -> tuple[str, tuple[int, ...], int]:
        """Dtype, shape and bytes of the decoded tensor."""
        return self.dtype, self.shape, self.nbytes


class HubFile:
    """A file in hub form, open for reading: its headers and the indexes of its streams are read and
    checked now.

    Parameters
    ----------
    max_nbytes, max_memory
        As of `wcodec.Decoder`, for all streams together.

    Raises
    ------
    DecodeError
        ``bad_magic``: not in hub form. ``unsupported_version``. ``truncated``, ``bad_value``,
        ``bad_range``, ``bad_checksum`` and what `wcodec.Decoder` raises: damaged.
    """

    def __init__(
        self,
        path: AnyPath,
        backend: Backend | None = None,
        max_nbytes: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        self.path, self.file = path, open_source(path, is_checked=True)
        self.stored_nbytes = self.file.nbytes
        self.decoder = Decoder(backend, None, max_memory)
        self._memory = Memory(self.decoder.max_memory)
        with within(path):
            self._read(max_nbytes)

    def _read(self, max_nbytes: int | None) -> None:
        header = read_hub_header(self.file, self._memory)
        if VERSION_KEY in header.metadata:
            parse_version(header.metadata[VERSION_KEY])
        self.tensors = {
            t.name: HubTensor(t, self._index(t) if looks_like_stream(t, self.file) else None)
            for t in header.tensors
        }
        self.data_nbytes = sum(t.nbytes for t in self.tensors.values())
        check_nbytes(self.data_nbytes, max_nbytes)
        if VERSION_KEY not in header.metadata and not any(t.index for t in self.tensors.values()):
            raise DecodeError(
                "bad_magic",
                "this is a safetensors file that is not in hub form: there is nothing to decode",
            )
        self._order, self._header, self._crcs = self._original(header.metadata)
        crcs = [] if self._crcs is None else self._crcs[1:]
        self._crc_of = dict(zip(self._order, crcs, strict=False))
        self.nbytes = len(self._header) + self.data_nbytes

    def _source(self, t: SourceTensor) -> PartSource:
        return PartSource(self.file, t.start, t.nbytes)

    def _index(self, t: SourceTensor) -> Index:
        with within(tensor=t.name, offset=t.start):
            index = self.decoder.read_index(self._source(t), self._memory)
            if len(index.tensors) != 1 or index.tensors[0].name:
                raise DecodeError("bad_value", "the stream does not hold one tensor without a name")
            if not index.tensors[0].dtype.safetensors:
                raise DecodeError(
                    "bad_value",
                    f"the stream holds a tensor of dtype {index.tensors[0].dtype.name!r}",
                )
            if index.tensors[0].difference:
                raise DecodeError("bad_base", "the stream holds a difference from a base")
            return index

    def _original(self, metadata: dict[str, str]) -> tuple[list[str], bytes, list[int] | None]:
        """Names in the original's order, its header, and CRC-32 of the header and the tensors,
        if the file gives them.
        """
        ours = {key: metadata.pop(key) for key in KEYS if key in metadata}
        if not ours.keys() - {VERSION_KEY}:
            return self._made(metadata)
        missing = [key for key in KEYS if key not in ours]
        if missing:
            raise DecodeError("bad_value", f"the metadata lack {missing[0]!r}")
        return self._kept(metadata, ours[HEADER_KEY], ours[CRC_KEY])

    def _made(self, metadata: dict[str, str]) -> tuple[list[str], bytes, None]:
        """A header for a file that does not hold an original one, such as one that
        ``save_pretrained`` wrote.
        """
        order = sorted(self.tensors.values(), key=lambda t: (-_alignment(t), t.source.name))
        raw = restored_header(((t.source.name, *t.entry) for t in order), metadata)
        return [t.source.name for t in order], raw, None

    def _kept(
        self, metadata: dict[str, str], text: str, crc_text: str
    ) -> tuple[list[str], bytes, list[int]]:
        """The original header, checked against the tensors."""
        try:
            raw = text.encode()
            header = parse_safetensors_header(struct.pack("<Q", len(raw)) + raw)
        except UnicodeEncodeError:
            raise DecodeError("bad_name", "the original header is not UTF-8") from None
        except EncodeError as e:
            raise DecodeError(
                "bad_value", f"in the original header: {e.message}", tensor=e.tensor
            ) from None
        if not re.fullmatch(rf"([0-9a-f]{{8}}){{{len(header.tensors) + 1}}}", crc_text):
            raise DecodeError(
                "bad_value",
                f"the metadata text {CRC_KEY!r} is not 8 hexadecimal digits for the header and "
                "each tensor",
            )
        crcs = [int(crc_text[i : i + 8], 16) for i in range(0, len(crc_text), 8)]
        if self.decoder.backend.crc32(np.frombuffer(header.raw, np.uint8)) != crcs[0]:
            raise DecodeError("bad_checksum", "the CRC-32 of the original header does not match")
        if header.metadata != metadata:
            raise DecodeError("bad_value", "the metadata differ from those of the original header")
        for t, crc in zip(header.tensors, crcs[1:], strict=True):
            self._check(t, crc)
        if len(header.tensors) != len(self.tensors):
            extra = next(iter(self.tensors.keys() - {t.name for t in header.tensors}))
            raise DecodeError("bad_value", "the original header lacks the tensor", tensor=extra)
        return [t.name for t in header.tensors], header.raw, crcs

    def _check(self, t: SourceTensor, crc: int) -> None:
        """Compare a tensor with its entry in the original header."""
        found = self.tensors.get(t.name)
        if found is None:
            raise DecodeError(
                "bad_value", "the tensor of the original header is missing", tensor=t.name
            )
        stated = t.stated_dtype, t.stated_shape, t.nbytes
        if found.entry != stated:
            here, there = (
                f"{dtype} of shape {list(shape)}" for dtype, shape, _ in (found.entry, stated)
            )
            raise DecodeError(
                "bad_value",
                f"the tensor is {here}; the original header says {there}",
                tensor=t.name,
            )
        if found.index is not None and found.index.tensors[0].crc32 != crc:
            raise DecodeError(
                "bad_checksum",
                "the stream holds another tensor: its CRC-32 does not match",
                tensor=t.name,
            )

    def crc32(self, name: str) -> int | None:
        """CRC-32 of a decoded tensor, if the file gives it.

        Raises
        ------
        KeyError
        """
        index = self.tensors[name].index
        if index is not None:
            return index.tensors[0].crc32
        return self._crc_of.get(name)

    def pieces(self, name: str) -> Iterator[Any]:
        """The bytes of a decoded tensor, some at a time.

        Raises
        ------
        KeyError
        DecodeError
            Possibly after some pieces.
        """
        t, crc = self.tensors[name], self.crc32(name)
        with within(self.path):
            if t.index is None:
                yield from self._plain_pieces(t.source, crc)
                return
            with within(tensor=name, offset=t.source.start):
                yield from self._decoded_pieces(t.source, t.index)

    def get_slice(self, name: str) -> Slice:
        """A tensor that is a stream, to take parts of; see `wcodec.files.file.File.get_slice`.

        Raises
        ------
        KeyError
            There is none of this name, or it is stored as it is.
        """
        t = self.tensors[name]
        if t.index is None:
            raise KeyError(name)
        source, tables = self._source(t.source), t.index.tables

        def read(
            record: TensorRecord, down: NDArray[np.int64], across: NDArray[np.int64], out: Words
        ) -> None:
            with within(self.path), within(tensor=name, offset=t.source.start):
                self.decoder.grid(source, record, record.plan(tables), down, across, out)

        return Slice(t.index.tensors[0], lambda: str(self.path), read)

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()

    def restored(self) -> Iterator[Any]:
        """The original file, a piece at a time.

        Raises
        ------
        DecodeError
            Possibly after some pieces.
        """
        yield self._header
        with within(self.path), reading_on(self.file, 0, self.stored_nbytes):
            for i, name in enumerate(self._order):
                t = self.tensors[name]
                if t.index is None:
                    yield from self._plain_pieces(
                        t.source, None if self._crcs is None else self._crcs[i + 1]
                    )
                else:
                    with within(tensor=t.source.name, offset=t.source.start):
                        yield from self._decoded_pieces(t.source, t.index)

    def _decoded_pieces(self, t: SourceTensor, index: Index) -> Iterator[Any]:
        for chunk in self.decoder.chunks(self._source(t), index.tensors[0], index.tables):
            yield _bytes(chunk)

    def _plain_pieces(self, t: SourceTensor, crc: int | None) -> Iterator[Any]:
        found = 0
        for piece in self.file.pieces(t.start, t.stop):
            found = self.decoder.backend.crc32(piece, found)
            yield piece.data
        if crc is not None and found != crc:
            raise DecodeError(
                "bad_checksum",
                "the CRC-32 of the tensor does not match",
                tensor=t.name,
                offset=t.start,
            )


def _bytes(words: Words) -> Any:
    return words.reshape(-1).view(np.uint8).data


def _alignment(t: HubTensor) -> int:
    """Bytes of an element; 0 of unknown dtypes."""
    if t.index is not None:
        return t.index.tensors[0].dtype.nbytes
    return 0 if t.source.dtype_name else t.source.dtype.nbytes


def decode_hub_file(
    source: AnyPath,
    target: AnyPath,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    max_nbytes: int | None = None,
    *,
    overwrite: bool = False,
    max_memory: int | None = None,
    fsync: bool = True,
) -> tuple[int, int]:
    """Restore the safetensors file that `encode_hub_file` read; from one that holds no original
    header, make one with all tensors decoded.

    Parameters
    ----------
    max_nbytes, max_memory
        As of `HubFile`.
    overwrite
        Whether a target that is there may be replaced, if it is not the source.
    fsync
        As of `wcodec.save_file`.

    Returns
    -------
    Bytes of the source and of the target.

    Raises
    ------
    DecodeError
        As `HubFile`. Nothing is left behind. ``resource_limit``: the disk has not the room.
    EncodeError
        ``output_exists``; ``bad_option``: the target is the source.
    """
    check_output(target, overwrite, [source])
    f = HubFile(source, backend, max_nbytes, max_memory)
    check_room(target, f.nbytes)
    with (
        atomic_output(
            target, f.nbytes, overwrite=overwrite, inputs=[source], like=source, fsync=fsync
        ) as stream,
        WriteBehind(stream, f.decoder.backend.threads) as out,
    ):
        for piece in f.restored():
            progress(out.write(piece))
    return f.stored_nbytes, f.nbytes


def verify_hub_file(
    source: AnyPath,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    max_nbytes: int | None = None,
    max_memory: int | None = None,
) -> tuple[int, int]:
    """Decode all of a file in hub form and check every checksum, keeping nothing. Returns and
    raises as `decode_hub_file`.
    """
    f = HubFile(source, backend, max_nbytes, max_memory)
    for piece in f.restored():
        progress(len(piece))
    return f.stored_nbytes, f.nbytes
