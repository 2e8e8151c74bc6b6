"""Checks of many variants of a file: each prefix, each flipped bit, corrupted payloads."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import partial
from typing import Final

import numpy as np

from wcodec.backends.protocol import Backend
from wcodec.conformance.cases import (
    Case,
    Check,
    Decoded,
    Mismatch,
    Vectors,
    decode,
    require,
    require_same,
)
from wcodec.conformance.coded import coded_of
from wcodec.conformance.guarded import Side, decode_guarded
from wcodec.conformance.recipes import splitmix64
from wcodec.errors import DecodeError
from wcodec.reference import decoding
from wcodec.reference.planes import Bytes
from wcodec.reference.segments import Status

MOST_FLIPS: Final = 500  #: flipped bits of a payload

#: small files, one of each structure
FLIPPED: Final = ("base_bytes", "patches_5", "base_records", "base_deflated", "base_extended",
                  "base_sparse_raw")  # fmt: skip

CORRUPTED: Final = (  #: payloads of all kinds
    "base_bytes", "base_pairs", "base_tiles", "base_both_planes", "base_coders", "base_nibbles",
    "pairs_complex_patched", "patches_5", "eight_planes", "mixed_layouts", "n_129_bytes",
    "base_contexts", "base_modes", "context_position_adst_left", "context_scale_shared",
    "base_sparse", "sparse_words_pairs_bfloat16",
)  # fmt: skip


def check_prefixes(case: Case, backend: Backend) -> None:
    """Every strict prefix of a file is refused."""
    for n in range(len(case.data)):
        try:
            decode(backend, case.data[:n], case.base_path)
        except DecodeError as e:
            require(e.code in ("truncated", "bad_magic"), f"truncated, cut to {n} bytes", str(e))
        else:
            raise Mismatch(f"truncated, cut to {n} bytes", "a decoded file")


def _same(a: Decoded, b: Decoded) -> bool:
    names = [[(t.name, t.dtype.id, t.shape) for t in d.index.tensors] for d in (a, b)]
    return (
        names[0] == names[1] and a.restored == b.restored and a.index.metadata == b.index.metadata
    )


def check_flips(case: Case, backend: Backend) -> None:
    """Every flipped bit of a file is refused or changes nothing."""
    good = decode(backend, case.data, case.base_path)
    for bit in range(8 * len(case.data)):
        spoilt = bytearray(case.data)
        spoilt[bit // 8] ^= 1 << bit % 8
        try:
            got = decode(backend, bytes(spoilt), case.base_path)
        except DecodeError:
            continue
        require(_same(good, got), f"a file refused whose bit {bit} was flipped", "other data")


def corruptions(payload: Bytes, seed: int) -> Iterator[tuple[str, Bytes]]:
    """A payload, spoilt in many ways: bits flipped, all 0, all 1, noise, shifted."""
    n = 8 * payload.size
    bits = (
        range(n)
        if n <= MOST_FLIPS
        else sorted(set((splitmix64(seed, MOST_FLIPS) % np.uint64(n)).tolist()))
    )
    for bit in bits:
        spoilt = payload.copy()
        spoilt[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit} flipped", spoilt
    yield "all 0", np.zeros_like(payload)
    yield "all 255", np.full_like(payload, 255)
    for i in range(4):
        yield f"noise {i}", splitmix64(seed + i, payload.size).astype(np.uint8)
    yield "shifted by 16 bytes", np.roll(payload, 16)
    yield "shifted by 2 bytes", np.roll(payload, -2)


def check_payload(case: Case, backend: Backend) -> None:
    """On corrupt payloads a backend gives the status and the words of the reference,
    and stays within its arrays.
    """
    index = decode(backend, case.data, case.base_path).index
    all_coded = (c for t in index.tensors for c in coded_of(case.data, t, index.tables, backend))
    for coded in all_coded:
        plan, g = coded.plan, coded.plan.geometry
        seed = zlib.crc32(case.id.encode())
        for i, (what, spoilt) in enumerate(corruptions(coded.payload, seed)):
            out = np.zeros((g.rows, g.cols), plan.dtype.word_type)
            due = decoding.decode_segments(plan, spoilt, out)
            side = Side.START if i % 4 == 3 else Side.END
            status, words = decode_guarded(backend, plan, spoilt, side=side)
            names = [
                [Status(s).name if s < len(Status) else str(s) for s in many.tolist()[:20]]
                for many in (due, status)
            ]
            require(np.array_equal(status, due), f"status {names[0]} ({what})", str(names[1]))
            for k in np.flatnonzero(due == Status.OK).tolist():
                part = g.rectangle(k)
                require_same(words[part], out[part], f"the words of segment {k} ({what})")


def sweeps(vectors: Vectors, backend: Backend) -> Iterator[Check]:
    """Spoilt files made on the spot."""
    for name in FLIPPED:
        case = vectors[f"accept/{name}"]
        yield Check(
            f"prefixes/{name}", ("R4.6", "R4.7", "R13.1"), partial(check_prefixes, case, backend)
        )
        yield Check(f"flips/{name}", ("R11.2", "R13.1"), partial(check_flips, case, backend))
    for name in CORRUPTED:
        case = vectors[f"accept/{name}"]
        yield Check(
            f"payload/{name}",
            ("R9.11", "R10.4", "R10.8", "R13.1"),
            partial(check_payload, case, backend),
        )
