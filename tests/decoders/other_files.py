"""Files for decoders besides the vectors: mutated ones, and random legal ones, and what the package
makes of them.
"""

from __future__ import annotations

import hashlib
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from blind import bytewise
from mutations import mutate_file
from plans import Case as Planned
from plans import make_case, random_geometry, random_tables, with_maps
from plans import random_plan as plan_of
from sealing import mended

from wcodec.backends import Backend
from wcodec.conformance.cases import Case, load
from wcodec.errors import DecodeError
from wcodec.files.file import File, open_base
from wcodec.reference.checksums import crc32, crc32_each
from wcodec.reference.container import FOOTER, Index, write_header, write_index
from wcodec.reference.planes import DTYPES, DType
from wcodec.reference.tensors import TensorRecord

VECTORS = load()
MAX_NBYTES = 1 << 20  #: decoded bytes of a mutated file: a legal one may ask for far more


class Given(NamedTuple):
    """A file to decode, its base, the base of that and so on."""

    data: bytes
    bases: tuple[bytes, ...] = ()
    most: int = 1 << 40


def bases_of(case: Case) -> tuple[bytes, ...]:
    return () if case.checkpoint is None else (case.checkpoint.data,)


def here(backend: Backend, given: Given, base: Path | None) -> tuple[str, str]:
    """The code with which the package refuses a file, or the SHA-256 of what it restores."""
    try:
        with File(given.data, backend, given.most, base) as f:
            tensors = [f.get_tensor(t.name).tobytes() for t in f.index.tensors]
            restored = f.index.source_header + b"".join(tensors)
    except DecodeError as e:
        return e.code, ""
    return "", hashlib.sha256(restored).hexdigest()


def with_another_stream(rng: random.Random, data: bytes) -> bytes:
    """The zlib stream of the index deflated anew, mutated, cut or longer, under CRC-32s that are
    right.
    """
    at, _, *sizes, _, _, _, _, magic = FOOTER.unpack(data[-FOOTER.size :])
    records = zlib.decompress(data[at : -FOOTER.size])
    window, level = rng.choice((9, 12, 15)), rng.choice((0, 1, 9))
    deflater = zlib.compressobj(level, zlib.DEFLATED, window, strategy=rng.choice((0, 2, 4)))
    stream = deflater.compress(records) + deflater.flush()
    kind = rng.random()
    if kind < 0.5:
        stream = bytewise(rng)(stream, 2 * len(stream))
    elif kind < 0.6:
        stream = stream[: rng.randrange(len(stream))]
    elif kind < 0.7:
        stream += rng.randbytes(rng.choice((1, 2, 4, 100)))
    sizes[0] = max(sizes[0], len(records) if rng.random() < 0.9 else rng.randrange(4000))
    sizes[1] = at + len(stream) + FOOTER.size
    foot = FOOTER.pack(at, len(stream), *sizes, 1, bytes(3), zlib.crc32(stream), 0, magic)
    foot = foot[:52] + struct.pack("<I", zlib.crc32(foot[:52])) + foot[56:]
    return data[:at] + stream + foot


def mutated(seed: int, n: int, backend: Backend) -> Iterator[tuple[Given, Path | None]]:
    """Vectors with other bytes, most of them with checksums that are right again."""
    cases = [c for c in VECTORS.cases if len(c.data) < 4000]
    for k in range(n):
        rng = random.Random(f"{seed} {k}")
        case = rng.choice(cases)
        data = mutate_file(case.data, 1 << 16, rng.getrandbits(32), bytewise(rng))
        if rng.random() < 0.1:
            data = with_another_stream(rng, VECTORS["accept/base_deflated"].data)
        elif rng.random() < 0.9:
            base = None if case.base_path is None else open_base(case.base_path, backend)
            data = mended(data, backend, base)
            if base is not None:
                base.close()
        elif rng.random() < 0.3:
            data = data[: rng.randrange(len(data) + 1)]
        yield Given(data, bases_of(case), MAX_NBYTES), case.base_path


def file_of(case: Planned, dtype: DType) -> bytes:
    """A file with one tensor, of a random plan."""
    plan, payload = case.decoding, case.payload.tobytes()
    g = plan.geometry
    t = TensorRecord(
        "w", dtype, (g.rows, g.cols // dtype.words_per_element), 1, g, plan.segments,
        crc32_each(case.payload, plan.offsets), 32, len(payload), crc32(case.expected.data),
    )  # fmt: skip
    return write_header() + payload + write_index(Index([t], plan.tables), 32 + len(payload))


def random_files(seed: int, n: int) -> Iterator[tuple[Given, Path | None]]:
    """Legal files with columns that no encoder writes, and geometries of all kinds."""
    for k in range(n):
        rng = np.random.default_rng([seed, k])
        dtype = DTYPES[int(rng.integers(0, len(DTYPES)))]
        tables = with_maps(rng, random_tables(rng))
        g = random_geometry(rng, 24)
        g = replace(g, cols=g.cols * dtype.words_per_element)
        case = make_case(rng, dtype, plan=plan_of(rng, g, dtype, tables))
        yield Given(file_of(case, dtype)), None
