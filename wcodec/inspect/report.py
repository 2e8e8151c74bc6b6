"""What `wcodec info` shows: sizes, bounds, and what the encoder chose, by tensor and in all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.codec.pipelining import Progress, ignore_progress
from wcodec.errors import DecodeError
from wcodec.files.file import File
from wcodec.reference.operands import operand_form
from wcodec.reference.planes import DType, Layout
from wcodec.reference.prediction import MODES, PER_TILE, mode_name
from wcodec.reference.records import TensorRecord, write_tables
from wcodec.reference.segments import Coder, SegmentTable
from wcodec.reference.tables import ContextKind
from wcodec.reference.tiles import Geometry

#: words of one histogram: independent of the file's segments, which may be tiny
_COUNT_WORDS: Final = 1 << 20


def describe(
    file: File, bound: bool = True, progress: Progress = ignore_progress
) -> dict[str, Any]:
    """All that `wcodec info --json` prints.

    Parameters
    ----------
    bound
        Also give the order-0 bound, for which every tensor is decoded (and so checked).
    progress
        Called with the decoded bytes of each tensor.

    Raises
    ------
    DecodeError
    """
    index, base = file.index, file.index.base
    there = not bound or not file.needs_base or base_error(file.base) is None
    tensors = list[dict[str, Any]]()
    for t in index.tensors:
        if t.duplicate_of is None:
            tensors.append(
                describe_tensor(file, t, bound and (there or not t.difference), progress)
            )
        else:
            original = tensors[t.duplicate_of]
            tensors.append(
                {
                    **original,
                    "name": t.name,
                    "stored_nbytes": 0,
                    "bits_per_weight": 0.0,
                    "duplicate_of": original["name"],
                }
            )
            progress(t.nbytes if bound else 0)
    return {
        "format": "{}.{}".format(*index.version),
        "backend": file.decoder.backend.name,
        "nbytes": index.data_nbytes + len(index.source_header),
        "stored_nbytes": index.file_nbytes,
        "payload_nbytes": sum(t["stored_nbytes"] for t in tensors),
        "index_nbytes": index.index_nbytes,
        "source": None if index.source_kind is None else "safetensors",
        "base": None if base is None else {"name": base.name, "content_hash": base.sha256.hex()},
        "metadata_keys": list(index.metadata),
        "n_unknown_records": index.unknown_records,
        "n_tables": len(index.tables),
        "tables_nbytes": len(write_tables(index.tables)) if len(index.tables) else 0,
        "n_context_maps": len(index.tables.maps),
        "n_tensors": len(tensors),
        **_totals(tensors),
        "tensors": tensors,
    }


def base_error(look: Callable[[], object]) -> str | None:
    """Why there is no base to be had; ``None`` if `look` finds one."""
    try:
        look()
    except DecodeError as e:
        if e.code != "bad_base":
            raise
        return e.message
    return None


def _totals(tensors: list[dict[str, Any]]) -> dict[str, Any]:
    tensors = [t for t in tensors if t["duplicate_of"] is None]
    keys = ("layouts", "coders", "predictions", "contexts", "tile_modes")
    totals: dict[str, Any] = {
        k: dict(sum((Counter(t[k]) for t in tensors), Counter())) for k in keys
    }
    operands = dict(Counter(t["operand"] for t in tensors if t["operand"] is not None))
    return {**totals, "n_patches": sum(t["n_patches"] for t in tensors), "operands": operands}


def describe_tensor(
    file: File, t: TensorRecord, bound: bool, progress: Progress = ignore_progress
) -> dict[str, Any]:
    """One entry of the list ``tensors`` of `describe`."""
    n, plan, segments = math.prod(t.shape), t.plan(file.index.tables), t.segments
    stored_nbytes = t.payload_nbytes
    there = plan.plane_nbytes > 0  # planes that the layout has
    coded = there & plan.is_stream
    return {
        "name": t.name,
        "dtype": t.dtype_name or t.dtype.safetensors or t.dtype.name,
        "shape": list(t.shape),
        "nbytes": t.nbytes,
        "stored_nbytes": stored_nbytes,
        "bits_per_weight": 8 * stored_nbytes / n if n else None,
        "duplicate_of": None,
        "difference": t.difference.name.lower(),
        "order0_bits_per_weight": _order0_bits(file, t, progress) / n if bound and n else None,
        "n_segments": t.geometry.n_segments,
        "segment": [t.geometry.segment_rows, t.geometry.segment_cols],
        "tile": [t.geometry.tile_rows, t.geometry.tile_cols],
        "layouts": _names(segments.layout, Layout),
        "coders": _names(segments.coder[there], Coder),
        "predictions": _modes(np.bincount(segments.prediction[coded], minlength=256)),
        "contexts": _contexts(file, segments),
        "tile_modes": _tile_modes(file, t),
        "n_patches": int(segments.n_patches.sum()),
        "operand": operand_form(t),
    }


def _names(values: NDArray[np.uint8], names: Any) -> dict[str, int]:
    """How often each value occurs, by name in lower case; values without a name included."""
    known = {int(m): m.name.lower() for m in names}
    found, counts = np.unique(values, return_counts=True)
    return {
        known.get(v, f"reserved_{v}"): c
        for v, c in zip(found.tolist(), counts.tolist(), strict=True)
    }


def _modes(counts: NDArray[np.int64]) -> dict[str, int]:
    """How often each mode occurs, by name; `PER_TILE` and bytes that are no mode included."""
    known = {m: mode_name(m) for m in MODES} | {PER_TILE: "per_tile"}
    return {known.get(m, f"reserved_{m}"): int(counts[m]) for m in np.flatnonzero(counts).tolist()}


def _contexts(file: File, segments: SegmentTable) -> dict[str, int]:
    """How many planes have context maps of each kind."""
    numbers = segments.table[segments.coder == Coder.CONTEXT].tolist()
    return dict(Counter(ContextKind(file.index.tables.maps[i].kind).name.lower() for i in numbers))


def _tile_modes(file: File, t: TensorRecord) -> dict[str, int]:
    """Modes of the tiles of planes with prediction `PER_TILE`, which only the payload holds."""
    plan = t.plan(file.index.tables)
    counts = np.zeros(256, np.int64)
    for k in np.flatnonzero(plan.modes_nbytes).tolist():
        stored = file.source.read(
            t.payload_offset + int(plan.offsets[k]), int(plan.modes_nbytes[k])
        )
        counts += np.bincount(stored, minlength=256)
    return _modes(counts)


def _order0_bits(file: File, t: TensorRecord, progress: Progress) -> float:
    """Order-0 entropy of a tensor in bits: the sum over the byte planes of its mapped words,
    each as one whole.
    """
    counts = np.zeros((t.dtype.word_nbytes, 256), np.int64)
    backend = file.decoder.backend
    for chunk in file.chunks(t):
        counts += plane_counts(backend, backend.to_device(chunk), chunk.size, t.dtype)
        progress(chunk.nbytes)
    return float(entropies(counts).sum())


def plane_counts(backend: Backend, words: Any, n: int, dtype: DType) -> NDArray[np.int64]:
    """How often each byte occurs in each plane of `n` words, which are on the backend's device: of
    shape (word_nbytes, 256).
    """
    flat = Geometry(1, n, 1, _COUNT_WORDS, 1, _COUNT_WORDS)
    return np.asarray(backend.histogram(words.reshape(1, -1), flat, dtype).sum(axis=0), np.int64)


def entropies(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """What each symbol adds to the order-0 entropy of its plane, in bits in all,
    from counts of shape (n_planes, 256).
    """
    total = counts.sum(axis=1, keepdims=True)
    return np.asarray(
        counts * (np.log2(np.maximum(total, 1)) - np.log2(np.maximum(counts, 1))), np.float64
    )


# ---- text ----------------------------------------------------------------------------------------
def size_text(nbytes: int) -> str:
    """Bytes for people: ``90.9 MB``; powers of 1000, as disks are sold."""
    value, unit = float(nbytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.95 or unit == "TB":
            break
        value /= 1000
    return f"{nbytes} B" if unit == "B" else f"{value:.1f} {unit}"


def percent_text(part: int, whole: int) -> str:
    """``81.98 %``, or ``-`` of nothing."""
    return f"{100 * part / whole:.2f} %" if whole else "-"


def printable(text: str) -> str:
    """A name out of a file, without control characters that a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table_text(rows: list[list[str]], left: int = 1) -> Iterator[str]:
    """Lines of a table; the first `left` columns are flush left, the others right."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            c.ljust(w) if i < left else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _counts_text(counts: dict[str, int]) -> str:
    return " ".join(f"{k}:{v}" for k, v in counts.items()) or "-"


def as_text(report: dict[str, Any]) -> Iterator[str]:
    """Lines of `wcodec info`."""
    yield (
        f"format {report['format']}, backend {report['backend']}: {size_text(report['nbytes'])} in "
        f"{size_text(report['stored_nbytes'])} "
        f"({percent_text(report['stored_nbytes'], report['nbytes'])})"
    )
    yield (
        f"{report['n_tensors']} tensors, {report['n_tables']} tables "
        f"({size_text(report['tables_nbytes'])}), index {size_text(report['index_nbytes'])}, "
        f"source {report['source'] or 'none'}, metadata: "
        f"{', '.join(map(printable, report['metadata_keys'])) or 'none'}"
    )
    yield (
        f"layouts {_counts_text(report['layouts'])}; coders {_counts_text(report['coders'])}; "
        f"predictions {_counts_text(report['predictions'])}; contexts "
        f"{_counts_text(report['contexts'])}; tiles {_counts_text(report['tile_modes'])}; patches "
        f"{report['n_patches']}; operands {_counts_text(report['operands'])}"
    )
    if report["base"] is not None:
        yield (
            f"differences from {printable(report['base']['name'])!r}, content hash "
            f"{report['base']['content_hash'][:16]}"
        )
    if report["tensors"]:
        yield ""
        yield from table_text([_HEAD, *map(_row, report["tensors"])], left=2)


_HEAD: Final = [
    "tensor",
    "dtype",
    "shape",
    "size",
    "stored",
    "bits/weight",
    "order-0",
    "layouts",
    "coders",
    "predictions",
    "contexts",
    "tiles",
    "patches",
    "operand",
    "instead of words",
]


def _row(t: dict[str, Any]) -> list[str]:
    def bits(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    return [
        printable(t["name"]), printable(t["dtype"]), "x".join(map(str, t["shape"])) or "scalar",
        size_text(t["nbytes"]), percent_text(t["stored_nbytes"], t["nbytes"]),
        bits(t["bits_per_weight"]), bits(t["order0_bits_per_weight"]), _counts_text(t["layouts"]),
        _counts_text(t["coders"]), _counts_text(t["predictions"]), _counts_text(t["contexts"]),
        _counts_text(t["tile_modes"]), str(t["n_patches"]), t["operand"] or "-", _instead(t),
    ]  # fmt: skip


def _instead(t: dict[str, Any]) -> str:
    if t["duplicate_of"] is not None:
        return f"duplicate of {printable(t['duplicate_of'])}"
    return "-" if t["difference"] == "none" else f"{t['difference']} base"
