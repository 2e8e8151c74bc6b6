"""What a file is that wcodec does not take, by its first bytes, and what to do with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from wcodec.errors import DecodeError
from wcodec.reference.container import MAGIC, ByteSource

HEAD_NBYTES: Final = 256  #: so many first bytes tell

_TO_SAFETENSORS: Final = (
    "load it with the library that wrote it, and save its tensors with safetensors first"
)
_UNPACK: Final = "unpack it first"

#: First bytes, what such a file is, and what to do. The first that fits counts.
_KINDS: Final[list[tuple[bytes, str, str]]] = [
    (rb"\Z", "an empty file", "what wrote or copied it did not finish"),
    (
        re.escape(MAGIC),
        "a .wcodec file",
        "wcodec decode restores what it was made from, wcodec repack codes it anew",
    ),
    (
        rb".{3}[\x00-\x05]\x00{4}\{",
        "a safetensors file",
        "wcodec encode makes a .wcodec file of it; "
        "of one in hub form, wcodec decode makes a plain one",
    ),
    (
        rb"version https://git-lfs",
        "a pointer of Git LFS and not the file itself",
        "git lfs pull fetches it",
    ),
    (rb"GGUF", "a GGUF file", "encode the safetensors files that it was made from"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", _TO_SAFETENSORS),
    (
        rb"\x93NUMPY",
        "an array of numpy.save",
        "load it with numpy.load, and write it with wcodec.save_file",
    ),
    (
        rb"PK\x03\x04.{26,200}data\.pkl",
        "a pickle of torch.save",
        "load it with torch.load, and save its tensors with safetensors first",
    ),
    (
        rb"PK\x03\x04.{26,200}\.npy",
        "an archive of numpy.savez",
        "load it with numpy.load, and write it with wcodec.save_file",
    ),
    (rb"PK\x03\x04", "a zip archive", _UNPACK),
    (
        rb"\x80[\x02-\x05]",
        "a pickle",
        "load it with what wrote it (such as torch.load), "
        "and save its tensors with safetensors first",
    ),
    (rb"\x08[\x01-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]", "an ONNX model", _TO_SAFETENSORS),
    (rb"....TFL3", "a TFLite model", _TO_SAFETENSORS),
    (rb"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    (rb"\x1f\x8b", "compressed by gzip", _UNPACK),
    (rb"\xfd7zXZ\x00", "compressed by xz", _UNPACK),
    (rb"BZh", "compressed by bzip2", _UNPACK),
    (rb"(?i)\s*<(!doctype |html)", "a page of HTML", "a download has gone wrong"),
    (rb"\s*[{\[]", "a JSON text", "name the file of the weights"),
]


def described(head: bytes) -> str | None:
    """What a file is and what to do, such as ``"a GGUF file: encode ..."``;
    ``None`` if that is not known.

    Parameters
    ----------
    head
        The first `HEAD_NBYTES` bytes of the file, or all of a smaller one. Those of a well-formed
        safetensors file may look like others'.
    """
    for pattern, what, to_do in _KINDS:
        if re.match(pattern, head, re.DOTALL):
            return f"{what}: {to_do}"
    return None


@contextmanager
def named_for_what_it_is(source: ByteSource) -> Iterator[None]:
    """Of a file that is no ``.wcodec`` file, errors say what it is."""
    try:
        yield
    except DecodeError as e:
        head = source.read(0, min(HEAD_NBYTES, source.nbytes)).tobytes()
        what = None if head.startswith(MAGIC) else described(head)
        if what is None or e.code not in ("bad_magic", "truncated"):
            raise
        raise DecodeError(e.code, f"this is no .wcodec file but {what}", offset=e.offset) from None
