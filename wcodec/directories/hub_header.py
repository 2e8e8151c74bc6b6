"""Hub form: which files and tensors are in it, and what their headers say. Spec: hub.md."""

from __future__ import annotations

import os
import re
import struct
from enum import Enum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.codec.opening import open_source
from wcodec.codec.urls import place_of
from wcodec.errors import DecodeError, EncodeError
from wcodec.files.atomic import AnyPath, read_bytes
from wcodec.files.kinds import HEAD_NBYTES, described
from wcodec.files.safetensors_header import (
    MAX_HEADER_NBYTES,
    SafetensorsHeader,
    SourceTensor,
    parse_safetensors_header,
    read_safetensors_header,
)
from wcodec.files.shard_index import PLAIN
from wcodec.reference.container import MAGIC, VERSION, ByteSource
from wcodec.reference.memory import Memory

VERSION_KEY: Final = "wcodec"  #: in ``__metadata__``: the format version
HEADER_KEY: Final = "wcodec_header"  #: the JSON text of the original's header, its padding included
#: CRC-32 of the original's bytes before the tensors and of each tensor, 8 hexadecimal digits each
CRC_KEY: Final = "wcodec_crc32"
KEYS: Final = (VERSION_KEY, CRC_KEY, HEADER_KEY)
VERSION_TEXT: Final = f"{VERSION[0]}.{VERSION[1]}"
A_HEADER_BYTE: Final = 48  #: bytes of memory, at most, that the objects of a byte of JSON take
LEAST_NBYTES: Final = 4096  #: smaller tensors are stored as they are


def is_stream(array: NDArray[Any]) -> bool:
    """Whether a tensor of a file in hub form is a stream, for `wcodec.decode`: uint8, one
    dimension, the magic number first.
    """
    return array.dtype == np.uint8 and array.ndim == 1 and array[: len(MAGIC)].tobytes() == MAGIC


def is_hub(file: AnyPath | SafetensorsHeader) -> bool:
    """Whether a file is in hub form: its metadata name a format version,
    or one of its tensors is a stream.

    Parameters
    ----------
    file
        A path, or the header of a file, whose metadata alone count.
        A file that is no safetensors file is not in hub form.

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
    source = open_source(path)
    header = read_hub_header(source)
    return is_hub(header) or any(looks_like_stream(t, source) for t in header.tensors)


def is_coded(path: AnyPath) -> bool:
    """Whether a file begins as a ``.wcodec`` file does."""
    return read_bytes(path, len(MAGIC)) == MAGIC


class InputKind(Enum):
    """What an input is, which decides how it is read."""

    DIRECTORY = "directory"
    SAFETENSORS = "safetensors"  #: a safetensors file, in hub form or plain
    WCODEC = "wcodec"  #: a ``.wcodec`` file, or what is taken for one and refused as such


def kind_of(path: AnyPath) -> InputKind:
    """What an input is, for the command and the library alike.

    Raises
    ------
    OSError
    """
    place = place_of(path)
    if place.is_dir():
        return InputKind.DIRECTORY
    if not place.is_file() or is_coded(path):
        return InputKind.WCODEC
    named = os.fspath(path).endswith(PLAIN)
    return InputKind.SAFETENSORS if named or is_hub(path) else InputKind.WCODEC


def looks_like_stream(t: SourceTensor, source: ByteSource) -> bool:
    """Whether a tensor of a safetensors file is a stream, by its entry and its first bytes."""
    return (
        t.stated_dtype == "U8"
        and len(t.stated_shape) == 1
        and source.read(t.start, min(t.nbytes, len(MAGIC))).tobytes() == MAGIC
    )


def parse_version(text: Any) -> tuple[int, int]:
    """A format version such as ``"0.2"``, as in metadata and ``config.json``,
    checked to be one that can be read.

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


def read_plain_header(source: ByteSource) -> SafetensorsHeader:
    """As `read_safetensors_header`, of a file that is to be brought into hub form.

    Raises
    ------
    EncodeError
        ``bad_source``: also if it is in hub form.
    """
    header = read_safetensors_header(source)
    check_plain(header)
    return header


def check_plain(header: SafetensorsHeader) -> None:
    """Refuse a file that is in hub form. Raises as `read_plain_header`."""
    taken = next((key for key in KEYS if key in header.metadata), None)
    if taken is not None:
        raise EncodeError(
            "bad_source", f"the file is in hub form already: its metadata have the key {taken!r}"
        )


def read_hub_header(source: ByteSource, memory: Memory | None = None) -> SafetensorsHeader:
    """As `read_safetensors_header`, for a decoder; `memory` counts what the header takes."""
    n = source.nbytes
    head = source.read(0, min(n, HEAD_NBYTES)).tobytes()
    nbytes = struct.unpack_from("<Q", head)[0] if n > 8 else 0
    if n == 0:
        raise DecodeError("truncated", "the file is empty")
    if not 2 <= nbytes <= MAX_HEADER_NBYTES or head[8:9] != b"{":
        what = described(head)
        message = "this is neither a .wcodec file nor a safetensors file in hub form" + (
            f" but {what}" if what else ""
        )
        raise DecodeError("bad_magic", message, offset=0)
    if nbytes > n - 8:
        raise DecodeError(
            "truncated", f"the header has {nbytes} bytes; the file ends before", offset=n
        )
    (memory or Memory()).take(nbytes * A_HEADER_BYTE, f"a header of {nbytes} bytes")
    try:
        header = parse_safetensors_header(source.read(0, 8 + nbytes).tobytes())
    except EncodeError as e:
        raise DecodeError("bad_value", e.message, tensor=e.tensor) from None
    if header.end != n:
        code, more = (
            ("truncated", "it names tensors up to there")
            if header.end > n
            else ("bad_range", "the tensors end before")
        )
        raise DecodeError(
            code,
            f"the header describes {header.end} bytes, the file has {n}: {more}",
            offset=n,
        )
    return header
