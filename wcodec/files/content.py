"""The content SHA-256 of a checkpoint: what it holds, however it is stored. Spec: 11.1."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final

from wcodec.codec.pipelining import Progress, ignore_progress
from wcodec.errors import DecodeError, EncodeError, within
from wcodec.files.file import File
from wcodec.files.safetensors_header import SafetensorsHeader, parse_safetensors_header
from wcodec.reference.tensors import TensorRecord

MARK: Final = b"wcodec content 1\n"


def content_of(
    pieces: Iterable[Any], progress: Progress = ignore_progress
) -> tuple[SafetensorsHeader, bytes]:
    """The content SHA-256 of a safetensors file.

    Parameters
    ----------
    pieces
        The bytes of the file, of which the first piece is its header.

    Returns
    -------
    The header, and 32 bytes.

    Raises
    ------
    EncodeError
        ``bad_source``: it is not well-formed.
    """
    stream = iter(pieces)
    header = parse_safetensors_header(bytes(next(stream)))
    data, digests = _Bytes(stream, progress), dict[str, bytes]()
    for t in header.tensors:
        digests[t.name] = data.sha256(t.nbytes)
    data.end()
    total = hashlib.sha256(MARK + struct.pack("<I", len(header.metadata)))
    for key in sorted(header.metadata, key=str.encode):
        total.update(_text(key) + _text(header.metadata[key]))
    for t in sorted(header.tensors, key=lambda t: t.name.encode()):
        shape = struct.pack(f"<I{len(t.stated_shape)}Q", len(t.stated_shape), *t.stated_shape)
        total.update(_text(t.name) + _text(t.stated_dtype) + shape + digests[t.name])
    return header, total.digest()


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data


class _Bytes:
    """The bytes of a file from front to back, whatever pieces they come in."""

    def __init__(self, pieces: Iterator[Any], progress: Progress) -> None:
        self._pieces, self._progress, self._piece = pieces, progress, memoryview(b"")

    def sha256(self, nbytes: int) -> bytes:
        """Of the next so many bytes."""
        found = hashlib.sha256()
        while nbytes:
            if not self._piece:
                self._piece = self._next("the file ends before its last tensor does")
            part, self._piece = self._piece[:nbytes], self._piece[nbytes:]
            found.update(part)
            nbytes -= len(part)
            self._progress(len(part))
        return found.digest()

    def end(self) -> None:
        """Nothing but empty pieces may be left."""
        if self._piece or any(len(piece) for piece in self._pieces):
            raise EncodeError("bad_source", "bytes follow the last tensor")

    def _next(self, missing: str) -> memoryview:
        for piece in self._pieces:
            if len(piece):
                return memoryview(piece).cast("B")
        raise EncodeError("bad_source", missing)


def content_of_coded(f: File, progress: Progress = ignore_progress) -> bytes:
    """The content SHA-256 of an open ``.wcodec`` file.

    Raises
    ------
    DecodeError
        ``bad_value``: of a file with an original header that names other tensors or metadata than
        the file itself, so that who reads it and who restores it would not get the same.
    """
    with within(f.path):
        try:
            header, digest = content_of(f.restored(), progress)
        except EncodeError as e:
            raise DecodeError(
                "bad_value", f"the original header: {e.message}", tensor=e.tensor
            ) from None
        if f.index.source_kind is not None:
            _check_source(header, f.index.tensors, f.index.metadata)
    return digest


def _check_source(
    header: SafetensorsHeader, tensors: list[TensorRecord], metadata: dict[str, str]
) -> None:
    """Compare an original header with the records of a file."""
    stated = [(t.name, t.dtype, t.shape, t.dtype_name) for t in header.tensors]
    found = [(t.name, t.dtype, t.shape, t.dtype_name) for t in tensors]
    if stated != found or header.metadata != metadata:
        raise DecodeError(
            "bad_value",
            "the original header names other tensors or metadata than the file has: what is "
            "restored is not what is read",
        )
