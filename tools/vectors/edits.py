"""Files that are refused, as changes of files that are not."""

from __future__ import annotations

import zlib
from typing import Any


def apply_edits(base: bytes, edits: list[dict[str, Any]], refit: list[dict[str, Any]]) -> bytes:
    """A refused file from its base.

    Parameters
    ----------
    edits
        ``at``, ``remove``, ``insert``: at this offset of the base,
        this many bytes give way to these, in hexadecimal.
    refit
        Afterwards and in order: the CRC-32 of bytes ``of[0]`` to ``of[1]`` is stored at ``at``,
        as a u32.
    """
    data = bytearray(base)
    # from the end, so that offsets stay those of the base
    for edit in sorted(edits, key=lambda e: int(e["at"]), reverse=True):
        data[edit["at"] : edit["at"] + edit["remove"]] = bytes.fromhex(edit["insert"])
    for crc in refit:
        start, end = crc["of"]
        data[crc["at"] : crc["at"] + 4] = zlib.crc32(data[start:end]).to_bytes(4, "little")
    return bytes(data)
