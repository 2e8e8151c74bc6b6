"""Hub form: safetensors files in which the tensors that get smaller are ``U8`` tensors that hold wcodec streams. Spec: hub.md.

A stream is what `wcodec.encode` makes: `wcodec.decode` turns it back into the array.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.codec.ahead import Progress, ignore_progress
from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder
from wcodec.codec.sources import BufferSource
from wcodec.errors import DecodeError, EncodeError, in_file
from wcodec.kinds import HEAD_NBYTES, described
from wcodec.outputs import AnyPath, WriteBehind, atomic_output, check_output, check_room, map_file
from wcodec.planner.options import EncodeOptions
from wcodec.reference.container import MAGIC, VERSION, Index
from wcodec.reference.planes import Words
from wcodec.reference.tiles import MAX_RANK
from wcodec.sources import (
    MAX_HEADER_NBYTES,
    SafetensorsHeader,
    SourceTensor,
    parse_safetensors_header,
    read_safetensors_header,
)

VERSION_KEY: Final = "wcodec"  #: in ``__metadata__``: the format version
HEADER_KEY: Final = "wcodec_header"  #: the JSON text of the original's header, its padding included
#: CRC-32 of the original's bytes before the tensors and of each tensor, 8 hexadecimal digits each
CRC_KEY: Final = "wcodec_crc32"
KEYS: Final = (VERSION_KEY, CRC_KEY, HEADER_KEY)
VERSION_TEXT: Final = f"{VERSION[0]}.{VERSION[1]}"
LEAST_NBYTES: Final = 4096  #: smaller tensors are stored as they are

_PIECE_NBYTES: Final = 1 << 23  #: bytes that are copied at once

Entry = tuple[str, str, tuple[int, ...], int]  #: name, dtype and shape as in a header, bytes


# ---- what is what ------------------------------------------------------------------------------------------------------------
def is_stream(array: NDArray[Any]) -> bool:
    """Whether a tensor of a file in hub form is a stream, for `wcodec.decode`: uint8, one dimension, the magic number first."""
    return array.dtype == np.uint8 and array.ndim == 1 and array[: len(MAGIC)].tobytes() == MAGIC


def is_hub(file: AnyPath | SafetensorsHeader) -> bool:
    """Whether a file is in hub form: its metadata name a format version, or one of its tensors is a stream.

    Parameters
    ----------
    file
        A path, or the header of a file, whose metadata alone count. A file that is no safetensors file is not in hub form.

    Raises
    ------
    OSError
    """
    if isinstance(file, SafetensorsHeader):
        return VERSION_KEY in file.metadata
    try:
        return has_hub_form(file)
    except DecodeError:
        return False


def has_hub_form(path: AnyPath) -> bool:
    """As `is_hub`, of a file that has to be a well-formed safetensors file.

    Raises
    ------
    DecodeError
        ``bad_magic``, ``truncated``, ``bad_value``, ``bad_range``
    OSError
    """
    view = memoryview(map_file(path))
    header = _read_hub_header(view)
    return is_hub(header) or any(_looks_like_stream(t, view) for t in header.tensors)


def is_coded(path: AnyPath) -> bool:
    """Whether a file begins as a ``.wcodec`` file does."""
    with open(path, "rb") as f:
        return f.read(len(MAGIC)) == MAGIC


def _looks_like_stream(t: SourceTensor, view: memoryview) -> bool:
    return (
        t.stated_dtype == "U8"
        and len(t.stated_shape) == 1
        and bytes(view[t.start : min(t.stop, t.start + len(MAGIC))]) == MAGIC
    )


def parse_version(text: Any) -> tuple[int, int]:
    """A format version such as ``"0.2"``, as in metadata and ``config.json``, checked to be one that can be read.

    Raises
    ------
    DecodeError
        ``bad_value``, ``unsupported_version``
    """
    found = re.fullmatch(r"([0-9]{1,5})[.]([0-9]{1,5})", text) if isinstance(text, str) else None
    if found is None:
        raise DecodeError(
            "bad_value", f"the hub form's format version is {text!r}, not of the form 0.2"
        )
    version = int(found[1]), int(found[2])
    if version != VERSION:
        newer = "; a newer wcodec is needed" if version > VERSION else ""
        raise DecodeError(
            "unsupported_version",
            f"hub form of format version {text}; this decoder knows {VERSION_TEXT}{newer}",
        )
    return version


# ---- headers -----------------------------------------------------------------------------------------------------------------
def _write_header(entries: Iterable[Entry], metadata: dict[str, str], least: int = 0) -> bytes:
    """The first bytes of a safetensors file, at least so many, a multiple of 8.

    Raises
    ------
    EncodeError
        ``bad_name``, ``resource_limit``
    """
    header, at = dict[str, Any]({"__metadata__": metadata} if metadata else {}), 0
    for name, dtype, shape, nbytes in entries:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    try:
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise EncodeError("bad_name", "a tensor's name or a metadata text is not UTF-8") from None
    raw += b" " * max(-len(raw) % 8, least - 8 - len(raw))
    if len(raw) > MAX_HEADER_NBYTES:
        raise EncodeError(
            "resource_limit",
            f"the header has {len(raw)} bytes; safetensors reads {MAX_HEADER_NBYTES} at most",
        )
    return struct.pack("<Q", len(raw)) + raw


def _sorted(tensors: Iterable[SourceTensor]) -> list[SourceTensor]:
    """In the order in which all are aligned: by size of their dtype, largest first; those of unknown dtypes last."""
    return sorted(tensors, key=lambda t: -t.dtype.nbytes if not t.dtype_name else 0)


def _plain_entry(t: SourceTensor) -> Entry:
    return t.name, t.stated_dtype, t.stated_shape, t.nbytes


# ---- encoding ----------------------------------------------------------------------------------------------------------------
def encode_hub_file(
    source: AnyPath,
    target: AnyPath,
    options: EncodeOptions | None = None,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    *,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Bring a safetensors file into hub form; `decode_hub_file` restores it byte for byte.

    Parameters
    ----------
    overwrite
        Whether a target that is there may be replaced, if it is not the source.

    Returns
    -------
    Bytes of the source and of the target.

    Raises
    ------
    EncodeError
        ``bad_source``: not a well-formed safetensors file, or one in hub form. ``resource_limit``: its header would be too large
        for safetensors. ``output_exists``; ``bad_option``: the target is the source. Nothing is left behind.
    """
    data = map_file(source)
    view = memoryview(data)
    with in_file(source):
        header = read_plain_header(view)
    with (
        atomic_output(target, overwrite=overwrite, inputs=[source], like=source) as f,
        in_file(source),
    ):
        return len(data), _HubWriter(f, view, header, Encoder(options, backend), progress).write()


def read_plain_header(data: memoryview) -> SafetensorsHeader:
    """As `read_safetensors_header`, of a file that is to be brought into hub form.

    Raises
    ------
    EncodeError
        ``bad_source``: also if it is in hub form.
    """
    header = read_safetensors_header(data)
    taken = next((key for key in KEYS if key in header.metadata), None)
    if taken is not None:
        raise EncodeError(
            "bad_source", f"the file is in hub form already: its metadata have the key {taken!r}"
        )
    return header


class _HubWriter:
    """Writes the streams behind a gap, and the rest into it when it is known which tensors got smaller."""

    def __init__(
        self,
        f: BinaryIO,
        view: memoryview,
        header: SafetensorsHeader,
        encoder: Encoder,
        progress: Progress,
    ) -> None:
        self.f, self.view, self.header, self.encoder, self.progress = (
            f,
            view,
            header,
            encoder,
            progress,
        )
        self.plain = [t for t in header.tensors if not self._is_candidate(t)]
        self.streams = list[tuple[SourceTensor, int]]()
        self.crcs = dict[str, int]()

    def _is_candidate(self, t: SourceTensor) -> bool:
        return _looks_like_stream(t, self.view) or (
            t.nbytes >= LEAST_NBYTES and not t.dtype_name and len(t.shape) <= MAX_RANK
        )

    def write(self) -> int:
        """Write the file. Returns its size."""
        small = {t.name for t in self.plain}
        candidates = [t for t in self.header.tensors if t.name not in small]
        for t in self.plain:
            self.crcs[t.name] = (
                self.encoder.backend.crc32(np.frombuffer(self.view[t.start : t.stop], np.uint8))
                if t.nbytes
                else 0
            )
        # streams are hardly larger than their tensors: numbers in this header have no fewer digits than in the one to come
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
            for at in range(t.start, t.stop, _PIECE_NBYTES):
                n = self.f.write(self.view[at : min(at + _PIECE_NBYTES, t.stop)])
                self.progress(n if t.name in small else 0)
        return self.f.seek(end + shift)

    def _write_stream(self, t: SourceTensor) -> None:
        start, words = self.f.tell(), np.frombuffer(self.view[t.start : t.stop], t.dtype.word_type)
        with WriteBehind(self.f) as sink:
            writer = self.encoder.start(sink, self.progress)
            self.crcs[t.name] = writer.add_words("", words, t.dtype, t.shape).crc32
            nbytes = writer.finish()
        if nbytes < t.nbytes or _looks_like_stream(t, self.view):
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
        return _write_header(entries, metadata, least)


def _shift(f: BinaryIO, start: int, end: int, by: int) -> None:
    """Move the bytes from `start` to `end` of a file that is being written towards its end."""
    f.flush()
    with open(f.name, "rb", buffering=0) as reading:
        while end > start:
            nbytes = min(_PIECE_NBYTES, end - start)
            end -= nbytes
            piece = os.pread(reading.fileno(), nbytes, end)
            if len(piece) != nbytes:
                raise OSError(
                    errno.EIO, f"{len(piece)} of {nbytes} bytes could be read back", f.name
                )
            f.seek(end + by)
            f.write(piece)
            f.flush()


# ---- decoding ----------------------------------------------------------------------------------------------------------------
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
    """A file in hub form, open for reading: its headers and the indexes of its streams are read and checked now.

    Parameters
    ----------
    max_nbytes
        Refuse a file whose tensors decode to more bytes than that.

    Raises
    ------
    DecodeError
        ``bad_magic``: not in hub form. ``unsupported_version``. ``truncated``, ``bad_value``, ``bad_range``, ``bad_checksum`` and what
        `wcodec.Decoder` raises: damaged.
    """

    def __init__(
        self, path: AnyPath, backend: Backend | None = None, max_nbytes: int | None = None
    ) -> None:
        self.path, self._view = path, memoryview(map_file(path))
        self.stored_nbytes = len(self._view)
        self.decoder = Decoder(backend, max_nbytes)
        with in_file(path):
            self._read(max_nbytes)

    def _read(self, max_nbytes: int | None) -> None:
        header = _read_hub_header(self._view)
        if VERSION_KEY in header.metadata:
            parse_version(header.metadata[VERSION_KEY])
        self.tensors = {
            t.name: HubTensor(t, self._index(t) if _looks_like_stream(t, self._view) else None)
            for t in header.tensors
        }
        self.data_nbytes = sum(t.nbytes for t in self.tensors.values())
        if max_nbytes is not None and self.data_nbytes > max_nbytes:
            raise DecodeError(
                "resource_limit",
                f"the tensors have {self.data_nbytes} bytes; the caller allows {max_nbytes}",
            )
        if VERSION_KEY not in header.metadata and not any(t.index for t in self.tensors.values()):
            raise DecodeError(
                "bad_magic",
                "this is a safetensors file that is not in hub form: there is nothing to decode",
            )
        self._order, self._header, self._crcs = self._original(header.metadata)
        self.nbytes = len(self._header) + self.data_nbytes

    def _source(self, t: SourceTensor) -> BufferSource:
        return BufferSource(self._view[t.start : t.stop])

    def _index(self, t: SourceTensor) -> Index:
        with _in_tensor(t):
            index = self.decoder.read_index(self._source(t))
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
        """Names in the original's order, its header, and CRC-32 of the header and the tensors, if the file gives them."""
        ours = {key: metadata.pop(key) for key in KEYS if key in metadata}
        if not ours.keys() - {VERSION_KEY}:
            return self._made(metadata)
        missing = [key for key in KEYS if key not in ours]
        if missing:
            raise DecodeError("bad_value", f"the metadata lack {missing[0]!r}")
        return self._kept(metadata, ours[HEADER_KEY], ours[CRC_KEY])

    def _made(self, metadata: dict[str, str]) -> tuple[list[str], bytes, None]:
        """A header for a file that does not hold an original one, such as one that ``save_pretrained`` wrote."""
        order = sorted(self.tensors.values(), key=lambda t: (-_alignment(t), t.source.name))
        try:
            raw = _write_header(((t.source.name, *t.entry) for t in order), metadata)
        except EncodeError as e:
            raise DecodeError(e.code, e.message) from None
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
                f"the metadata text {CRC_KEY!r} is not 8 hexadecimal digits for the header and each tensor",
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

    def restored(self) -> Iterator[Any]:
        """The original file, a piece at a time.

        Raises
        ------
        DecodeError
            Possibly after some pieces.
        """
        yield self._header
        with in_file(self.path):
            for i, name in enumerate(self._order):
                t = self.tensors[name]
                if t.index is None:
                    yield from self._plain_pieces(
                        t.source, None if self._crcs is None else self._crcs[i + 1]
                    )
                else:
                    with _in_tensor(t.source):
                        yield from self._decoded_pieces(t.source, t.index)

    def _decoded_pieces(self, t: SourceTensor, index: Index) -> Iterator[Any]:
        for chunk in self.decoder.chunks(self._source(t), index.tensors[0], index.tables):
            yield _bytes(chunk)

    def _plain_pieces(self, t: SourceTensor, crc: int | None) -> Iterator[Any]:
        found = 0
        for at in range(t.start, t.stop, _PIECE_NBYTES):
            piece = self._view[at : min(at + _PIECE_NBYTES, t.stop)]
            found = self.decoder.backend.crc32(np.frombuffer(piece, np.uint8), found)
            yield piece
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


@contextlib.contextmanager
def _in_tensor(t: SourceTensor) -> Iterator[None]:
    """Errors about a stream name its tensor, and say where they are in the file."""
    try:
        yield
    except DecodeError as e:
        raise DecodeError(
            e.code,
            e.message,
            tensor=t.name,
            offset=None if e.offset is None else t.start + e.offset,
        ) from None


def _read_hub_header(view: memoryview) -> SafetensorsHeader:
    """As `read_safetensors_header`, for a decoder."""
    nbytes = struct.unpack("<Q", view[:8])[0] if len(view) > 8 else 0
    if len(view) == 0:
        raise DecodeError("truncated", "the file is empty")
    if not 2 <= nbytes <= MAX_HEADER_NBYTES or bytes(view[8:9]) != b"{":
        what = described(bytes(view[:HEAD_NBYTES]))
        message = "this is neither a .wcodec file nor a safetensors file in hub form" + (
            f" but {what}" if what else ""
        )
        raise DecodeError("bad_magic", message, offset=0)
    if nbytes > len(view) - 8:
        raise DecodeError(
            "truncated", f"the header has {nbytes} bytes; the file ends before", offset=len(view)
        )
    try:
        header = parse_safetensors_header(bytes(view[: 8 + nbytes]))
    except EncodeError as e:
        raise DecodeError("bad_value", e.message, tensor=e.tensor) from None
    if header.end != len(view):
        code, more = (
            ("truncated", "it names tensors up to there")
            if header.end > len(view)
            else ("bad_range", "the tensors end before")
        )
        raise DecodeError(
            code,
            f"the header describes {header.end} bytes, the file has {len(view)}: {more}",
            offset=len(view),
        )
    return header


def decode_hub_file(
    source: AnyPath,
    target: AnyPath,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    max_nbytes: int | None = None,
    *,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Restore the safetensors file that `encode_hub_file` read; from one that holds no original header, make one with all tensors decoded.

    Parameters
    ----------
    max_nbytes
        Refuse files whose tensors decode to more bytes than that.
    overwrite
        Whether a target that is there may be replaced, if it is not the source.

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
    f = HubFile(source, backend, max_nbytes)
    check_output(target, overwrite, [source])
    check_room(target, f.nbytes)
    with (
        atomic_output(
            target, f.nbytes, overwrite=overwrite, inputs=[source], like=source
        ) as stream,
        WriteBehind(stream) as out,
    ):
        for piece in f.restored():
            progress(out.write(piece))
    return f.stored_nbytes, f.nbytes


def verify_hub_file(
    source: AnyPath,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    max_nbytes: int | None = None,
) -> tuple[int, int]:
    """Decode all of a file in hub form and check every checksum, keeping nothing. Returns and raises as `decode_hub_file`."""
    f = HubFile(source, backend, max_nbytes)
    for piece in f.restored():
        progress(len(piece))
    return f.stored_nbytes, f.nbytes
