"""Inputs made out of others: what libFuzzer would do to bytes is done to the parts that matter.

A mutator takes an input, the most bytes of a new one, a seed, and libFuzzer's own mutator of bytes.
It returns the new input, which follows from these alone.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
from corruptions import corrupted, with_extremes
from plans import Case
from sealing import MAX_TENSOR_NBYTES, put_together, take_apart

from wcodec.codec.sources import BufferSource
from wcodec.conformance.coded import parts_of, payload_of
from wcodec.directories.hub_header import CRC_KEY, HEADER_KEY
from wcodec.errors import DecodeError
from wcodec.reference.container import MAGIC, Index, read_index, write_header, write_index
from wcodec.reference.tables import ContextKind, TablePool
from wcodec.reference.tensors import TensorRecord

Rng = np.random.Generator
Bytewise = Callable[[bytes, int], bytes]

AS_BYTES: Final = 0.05  #: share of the inputs that are mutated without regard for what they are
SPOILT: Final = 0.4  #: share of those in which segments are, which takes a millisecond
MAX_SEGMENTS: Final = 64  #: of a tensor whose segments are taken apart
ROOM_NBYTES: Final = 256  #: that an index may grow by, which is larger than the file when inflated
MAX_OBJECT_NBYTES: Final = 1 << 16  #: of the tensors that a mutated header may announce


# ---- .wcodec files -------------------------------------------------------------------------------
def mutate_file(
    data: bytes, max_size: int, seed: int, bytewise: Bytewise, spoilt: float = SPOILT
) -> bytes:
    """Another index or payload, or segments spoilt as `corruptions` does; sealed anew."""
    rng, parts = np.random.default_rng(seed), take_apart(data)
    if parts is None or rng.random() < AS_BYTES:
        return bytewise(data, max_size)
    kind = rng.random()
    if kind < spoilt:
        out = _with_spoilt_segments(rng, put_together(parts))
    elif kind < (1 + spoilt) / 2 or not parts.payload:
        out = put_together(
            parts._replace(records=bytewise(parts.records, len(parts.records) + ROOM_NBYTES))
        )
    else:
        out = put_together(parts._replace(payload=_overwritten(rng, parts.payload, bytewise)))
    return out if len(out) <= max_size else bytewise(data, max_size)


def _overwritten(rng: Rng, payload: bytes, bytewise: Bytewise) -> bytes:
    """Some bytes of a payload mutated; it keeps its size."""
    start = int(rng.integers(0, len(payload)))
    old = payload[start : start + int(rng.choice([4, 16, 64, 256]))]
    new = bytewise(old, len(old))
    return payload[:start] + new + old[len(new) :] + payload[start + len(old) :]


def _with_spoilt_segments(rng: Rng, data: bytes) -> bytes:
    """Segments of a tensor spoilt, which stay such as an index may name."""
    try:
        index = read_index(BufferSource(data))
    except DecodeError:
        return data
    own = (t for t in index.tensors if t.duplicate_of is None and t.nbytes <= MAX_TENSOR_NBYTES)
    parts = [(t, part) for t in own for part in parts_of(t) if _has_few(part)]
    if not parts:
        return data
    (t, chosen), tables = parts[int(rng.integers(0, len(parts)))], index.tables
    if {ContextKind.PLANE} >= {m.kind for m in tables.maps} or not len(tables):
        tables = with_extremes(rng, tables)
    plan = replace(chosen.plan(index.tables), tables=tables)
    case = Case(plan, np.empty(0), payload_of(chosen, data), plan)
    plan, payload, _ = corrupted(rng, case)
    spoilt = replace(chosen, segments=plan.segments, payload_nbytes=payload.size)
    whole = payload.tobytes()
    if t.lists is not None:
        whole = b"".join(
            whole if part is chosen else payload_of(part, data).tobytes() for part in t.lists.parts
        )
        name = "gaps" if chosen is t.lists.gaps else "words"
        spoilt = replace(t, lists=replace(t.lists, **{name: spoilt}), payload_nbytes=len(whole))
    return _rewritten(index, tables, t, spoilt, whole, data)


def _has_few(t: TensorRecord) -> bool:
    return 0 < t.segment_crc32.size <= MAX_SEGMENTS


def _rewritten(
    index: Index,
    tables: TablePool,
    old: TensorRecord,
    new: TensorRecord,
    payload: bytes,
    data: bytes,
) -> bytes:
    """The file with another tensor in place of one."""
    out, tensors = [write_header()], list[TensorRecord]()
    at = len(out[0])
    for t in index.tensors:
        if t.duplicate_of is not None:
            tensors.append(tensors[t.duplicate_of].duplicate(t.name, t.duplicate_of))
            continue
        piece = data[t.payload_offset : t.payload_offset + t.payload_nbytes]
        if t is old:
            t, piece = new, payload
        tensors.append(replace(t, payload_offset=at))
        out.append(piece)
        at += len(piece)
    return b"".join(out) + write_index(replace(index, tensors=tensors, tables=tables), at)


# ---- JSON ----------------------------------------------------------------------------------------
VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, 1, -1, 2, 8, 255, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, 1 << 64, 0.5,
    1e308, "", "a", "\0", "..", "../a.safetensors", "/a", "é", "\ud800", "U8", "F32", "BF16",
    "F4", "0.2", "0.3", "9.9", [], {}, [0, 0], [0], [[]], {"": ""}, "model.wcodec", "dtype",
    "shape", "data_offsets", "__metadata__", "weight_map", "wcodec", "wcodec_header",
    "wcodec_crc32", "quantization_config", {"quant_method": "wcodec"},
)  # fmt: skip


def mutate_json(data: bytes, max_size: int, seed: int, bytewise: Bytewise) -> bytes:
    """Another value, key or order somewhere in a JSON text."""
    rng = np.random.default_rng(seed)
    text = _mutated_text(rng, data, max_size, bytewise)
    return text if len(text) <= max_size else bytewise(data, max_size)


def _mutated_text(rng: Rng, data: bytes, max_size: int, bytewise: Bytewise) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or rng.random() < 0.2:
        return bytewise(data, max_size)
    for _ in range(int(rng.integers(1, 4))):
        value = _changed(rng, value, 0)
    text = json.dumps(value, ensure_ascii=bool(rng.random() < 0.5))
    if rng.random() < 0.1:  # a key twice
        text = text.replace("{", '{"a": 0, "a": 0, ', 1)
    return text.encode(errors="replace") + b" " * (int(rng.integers(0, 9)) * (rng.random() < 0.2))


def _changed(rng: Rng, value: Any, depth: int) -> Any:
    """A JSON value with something changed in it."""
    if depth and (not isinstance(value, dict | list) or not value or rng.random() < 0.1):
        if isinstance(value, int) and rng.random() < 0.6:
            return value + int(rng.choice([-8, -4, -1, 1, 4, 8]))
        return VALUES[int(rng.integers(0, len(VALUES)))]
    items = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    keys = list(items)
    kind = rng.random() if keys else 1.0
    if kind < 0.7:
        key = keys[int(rng.integers(0, len(keys)))]
        items[key] = _changed(rng, items[key], depth + 1)
    elif kind < 0.8:
        del items[keys[int(rng.integers(0, len(keys)))]]
    else:
        other = items[keys[int(rng.integers(0, len(keys)))]] if keys else None
        name = VALUES[int(rng.integers(0, len(VALUES)))]
        items[name if isinstance(name, str) else "b"] = other
    return items if isinstance(value, dict) else list(items.values())


# ---- safetensors files, plain and in hub form ----------------------------------------------------
def mutate_safetensors(data: bytes, max_size: int, seed: int, bytewise: Bytewise) -> bytes:
    """Another header, whose size is right; the tensors are as long as it says."""
    rng = np.random.default_rng(seed)
    if len(data) < 8 or rng.random() < AS_BYTES:
        return bytewise(data, max_size)
    n = int.from_bytes(data[:8], "little")
    text = _mutated_text(rng, data[8 : 8 + n], max_size, bytewise)
    out = struct.pack("<Q", len(text)) + text
    end = _announced(text)
    body = data[8 + n :]
    if end is not None and rng.random() < 0.9:
        body = (body + bytes(max(0, end - len(body))))[:end]
    out += body
    return out if len(out) <= max_size else bytewise(data, max_size)


def _announced(text: bytes) -> int | None:
    """Bytes of tensors that a header announces, if they are few."""
    try:
        header = json.loads(text)
        ends = [e["data_offsets"][1] for k, e in header.items() if k != "__metadata__"]
        end = max([0, *ends])
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError):
        return None
    return end if isinstance(end, int) and end <= MAX_OBJECT_NBYTES else None


def mutate_hub(
    data: bytes, max_size: int, seed: int, bytewise: Bytewise, spoilt: float = SPOILT
) -> bytes:
    """Another header, or another stream in it, with offsets and checksums that are right."""
    rng = np.random.default_rng(seed)
    if rng.random() < 0.4:
        return mutate_safetensors(data, max_size, seed, bytewise)
    try:
        n = int.from_bytes(data[:8], "little")
        header, body = json.loads(data[8 : 8 + n]), data[8 + n :]
        blobs = {
            name: body[entry["data_offsets"][0] : entry["data_offsets"][1]]
            for name, entry in header.items()
            if name != "__metadata__"
        }
        out = _with_another_stream(rng, header, blobs, max_size, bytewise, spoilt)
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError):
        return bytewise(data, max_size)
    return out if len(out) <= max_size else bytewise(data, max_size)


def _with_another_stream(
    rng: Rng, header: dict[str, Any], blobs: dict[str, bytes], max_size: int, bytewise: Bytewise,
    spoilt: float,
) -> bytes:  # fmt: skip
    streams = [name for name, blob in blobs.items() if blob.startswith(MAGIC)]
    if streams:
        name = streams[int(rng.integers(0, len(streams)))]
        seed = int(rng.integers(0, 1 << 32))
        blobs[name] = mutate_file(blobs[name], max_size, seed, bytewise, spoilt)
    metadata = header.get("__metadata__") or {}
    if HEADER_KEY in metadata and rng.random() < 0.3:
        text = _mutated_text(rng, metadata[HEADER_KEY].encode(), max_size, bytewise)
        metadata[HEADER_KEY] = text.decode(errors="replace")
    if HEADER_KEY in metadata and re.fullmatch("([0-9a-f]{8})+", metadata.get(CRC_KEY, "")):
        raw = metadata[HEADER_KEY].encode()
        crc = zlib.crc32(struct.pack("<Q", len(raw)) + raw)
        metadata[CRC_KEY] = f"{crc:08x}" + metadata[CRC_KEY][8:]
    at = 0
    for name, blob in blobs.items():
        header[name] = {**header[name], "data_offsets": [at, at + len(blob)]}
        if blob.startswith(MAGIC):
            header[name]["shape"] = [len(blob)]
        at += len(blob)
    text = json.dumps(header).encode(errors="replace")
    return struct.pack("<Q", len(text)) + text + b"".join(blobs.values())
