"""The worst legal files of chapter 16 of the spec, and what it takes to read them.

    python tools/worst_cases.py [--backend NAME] [--mib N]

For each row a file is built whose index has about N MiB of records, deflated as far as R4.14
allows, and another one of a fourth of that. Each is read in a process of its own, which may have no
more address space than `wcodec.reference.memory` counts for it. Shown is what one byte costs:
memory (what the process grew by, at its peak) of the records and of the file, and time; and how
much more time four times the size takes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wcodec.backends import load_backend
from wcodec.codec.decoder import Decoder
from wcodec.codec.sources import BufferSource
from wcodec.files.file import File
from wcodec.reference.container import (
    MAX_INDEX_RATIO,
    RECORD,
    RecordType,
    seal_index,
    write_header,
)
from wcodec.reference.memory import Memory
from wcodec.reference.records import TENSOR

#: two symbols of frequency 256: four bytes, and two codes of 10 bits
TABLE = bytes([9, 0, 1, 9]) + int(f"1{256:09b}" * 2 + "0000", 2).to_bytes(3, "big")
MOST = 65535  #: tables, and context maps
INT8, INT16, INT64 = 3, 5, 9  #: dtypes
N_PLANES = {INT8: 2, INT16: 2, INT64: 8}
SLACK = 48 << 20  #: bytes of address space that a process may need for other things


def record(kind: int, body: bytes, flags: int = 1) -> bytes:
    """An index record."""
    return RECORD.pack(kind, flags, len(body)) + body


def tensor(
    name: bytes,
    dtype: int,
    n_segments: int,
    segment: tuple[int, int] = (1, 1),
    columns: bytes = b"",
) -> bytes:
    """A TENSOR record of segments, one below the other, all planes of which are constant: they have
    no payload, so that their CRC-32 is 0.
    """
    shape = (n_segments * segment[0], segment[1])
    fixed = TENSOR.pack(
        32, 0, 0, dtype, 2, 1, 0, *segment, *segment, 0, len(name), 0, 0
    )  # fmt: skip
    if n_segments and not columns:
        layout = 2 if dtype == INT8 else 1
        parts = [layout, 0, 0, *(1, 0, 0, 0) * N_PLANES[dtype]]
        columns = b"".join(struct.pack("<BI", 0, value) for value in parts)
    table = bytes(4 * n_segments) + columns if n_segments else b""
    return record(RecordType.TENSOR, fixed + struct.pack("<QQ", *shape) + name + table)


def segments(dtype: int, size: int) -> Callable[[int], tuple[bytes, int, int]]:
    """One tensor of segments of a word: four bytes of the records each."""

    def build(n: int) -> tuple[bytes, int, int]:
        k = max(1, (n - 300) // 4)
        return tensor(b"", dtype, k), size * k, 1

    return build


def large_segments(n: int) -> tuple[bytes, int, int]:
    """Segments of 128 MiB, four bytes of the records each."""
    k = max(1, (n - 300) // 4)
    return tensor(b"", INT64, k, (1, 1 << 24)), k << 27, 1


def small_tensors(n: int) -> tuple[bytes, int, int]:
    """Tensors of five segments, more than are checked together."""
    one = len(tensor(b"%06x" % 0, INT64, 5))
    k = n // one
    return b"".join(tensor(b"%06x" % i, INT64, 5) for i in range(k)), 40 * k, k


def empty_tensors(n: int) -> tuple[bytes, int, int]:
    """Tensors without words."""
    k = n // len(tensor(b"%06x" % 0, INT8, 0))
    return b"".join(tensor(b"%x" % i, INT8, 0) for i in range(k)), 0, k


def duplicates(n: int) -> tuple[bytes, int, int]:
    """A tensor many times, under names as short as they can be."""
    names = (b"%x" % i for i in range(n // 20))
    rest = b"".join(record(RecordType.DUPLICATE, bytes(4) + name) for name in names)
    return tensor(b"-", INT8, 1, (1, 1 << 24)) + rest, (n // 20 + 1) << 24, n // 20 + 1


def tables(n: int) -> tuple[bytes, int, int]:
    """The smallest tables."""
    k = min(MOST, n // len(TABLE))
    return record(RecordType.TABLES, struct.pack("<H", k) + TABLE * k), 0, 0


def context_maps(n: int) -> tuple[bytes, int, int]:
    """The smallest context maps."""
    k, one_map = min(MOST, n // 20), bytes([3, 1]) + bytes(16) + bytes(2)
    head = record(RecordType.TABLES, struct.pack("<H", 1) + TABLE)
    return head + record(RecordType.CONTEXTS, struct.pack("<H", k) + one_map * k), 0, 0


def tensors_beside_maps(n: int) -> tuple[bytes, int, int]:
    """As many context maps as tensors: what is done for each of both must not be done for all."""
    maps, (rest, nbytes, k) = context_maps(n // 4)[0], small_tensors(n - n // 4)
    return maps + rest, nbytes, k


def metadata(n: int) -> tuple[bytes, int, int]:
    """Pairs of a short key and an empty value."""
    pairs = [struct.pack("<I", len(key)) + key + bytes(4) for key in _keys(n // 13)]
    return record(RecordType.METADATA, struct.pack("<I", len(pairs)) + b"".join(pairs)), 0, 0


def _keys(k: int) -> Iterator[bytes]:
    return (b"%x" % i for i in range(k))


def long_names(n: int) -> tuple[bytes, int, int]:
    """Texts that Python keeps at four bytes a character, for the sake of one of them."""
    k = max(1, n // 65400)
    names = (b"%06x" % i + b"a" * 65300 + "\U0001f600".encode() for i in range(k))
    return b"".join(tensor(name, INT8, 0) for name in names), 0, k


def unknown_records(n: int) -> tuple[bytes, int, int]:
    """Records to be skipped."""
    return record(999, b"", 0) * (n // RECORD.size), 0, 0


def source_header(n: int) -> tuple[bytes, int, int]:
    """Bytes that are kept as they are."""
    return record(RecordType.SOURCE, b"\1\0" + bytes(n)), 0, 0


#: by row of chapter 16: builds records of about so many bytes; returns them, the bytes of all
#: decoded tensors, and how many there are
ROWS: dict[str, Callable[[int], tuple[bytes, int, int]]] = {
    "inflating": source_header,
    "large segments": large_segments,
    "segments of 1-byte words": segments(INT8, 1),
    "segments of 2-byte words": segments(INT16, 2),
    "segments of 8-byte words": segments(INT64, 8),
    "tensors of few segments": small_tensors,
    "tensors without words": empty_tensors,
    "duplicates": duplicates,
    "tables": tables,
    "context maps": context_maps,
    "tensors beside maps": tensors_beside_maps,
    "metadata": metadata,
    "names": long_names,
    "unknown records": unknown_records,
}


def build(row: str, nbytes: int) -> bytes:
    """The worst file of a row, with records of about `nbytes` bytes."""
    raw, data_nbytes, n_tensors = ROWS[row](nbytes)
    stored = len(zlib.compress(raw, 6))
    missing = (len(raw) - MAX_INDEX_RATIO * stored) // (MAX_INDEX_RATIO - 1)
    if missing > 0:  # so that it may be deflated at all
        raw += record(999, random.Random(0).randbytes(missing + 100), 0)
    return write_header() + seal_index(raw, 32, data_nbytes, n_tensors)


# ---- measuring -----------------------------------------------------------------------------------
def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) << 10


def read(path: str, backend_name: str) -> dict[str, Any]:
    """Read the index of a file, and make the plans of its tensors, in no more address space than is
    counted for it.
    """
    backend = load_backend(backend_name)
    Decoder(backend).read_index(BufferSource(build("tables", 100)))  # what is loaded once
    data, memory = Path(path).read_bytes(), Memory()
    Decoder(backend).read_index(BufferSource(data), memory)
    del backend
    child = [sys.executable, __file__, "--read", path, "--backend", backend_name]
    run = subprocess.run(
        [*child, "--taken", str(memory.taken)], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(run.stdout)
    return {**found, "counted": memory.taken, "file": len(data), "raw": _raw_nbytes(data)}


def _raw_nbytes(data: bytes) -> int:
    return int(struct.unpack_from("<Q", data, len(data) - 48)[0])


def read_limited(path: str, backend_name: str, taken: int) -> dict[str, Any]:
    """What `read` does in a process of its own."""
    backend = load_backend(backend_name)
    Decoder(backend).read_index(BufferSource(build("segments of 8-byte words", 1000)))
    data = Path(path).read_bytes()
    limit = _status("VmSize") + taken + SLACK
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before, start = _status("VmRSS"), time.process_time()
    with File(data, backend) as f:
        opened = time.process_time() - start
        for t in f.index.tensors:  # as decoding does
            plan = f.original(t).plan(f.index.tables)
            _ = plan.offsets, plan.stream_nbytes
    return {"memory": max(0, _status("VmHWM") - before), "seconds": opened}


def main() -> None:
    """Measure all rows, or be the process that reads a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--mib", type=float, default=8)
    parser.add_argument("--row", choices=ROWS, action="append")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    parser.add_argument("--taken", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        print(json.dumps(read_limited(args.read, args.backend, args.taken)))
        return
    print("| row | memory, a byte of records | of file | counted | us, a byte | 4 x size |")
    print("|---|---|---|---|---|---|")
    n = int(args.mib * (1 << 20))
    for row in args.row or ROWS:
        found = []
        for size in (n // 4, n):
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "worst.wcodec")
                Path(path).write_bytes(build(row, size))
                found.append(read(path, args.backend))
        less, one = found
        each = one["memory"] / one["raw"], one["memory"] / one["file"], one["counted"] / one["raw"]
        rate = 1e6 * one["seconds"] / one["raw"]
        growth = one["seconds"] / max(less["seconds"], 1e-9)
        cells = [f"{value:.1f}" for value in each] + [f"{rate:.2f}", f"{growth:.1f}"]
        print(f"| {row} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
