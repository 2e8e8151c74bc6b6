"""What `wcodec info` shows: sizes, bounds, and what the encoder chose, by tensor and in all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from operator import itemgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.codec.batches import in_batches, is_small
from wcodec.codec.pipelining import Progress, ignore_progress
from wcodec.errors import DecodeError
from wcodec.files.file import File
from wcodec.files.safetensors_header import Stated
from wcodec.reference.columns import joined_columns
from wcodec.reference.operands import operand_form
from wcodec.reference.planes import DType, Layout, Words
from wcodec.reference.prediction import MODES, PER_TILE, mode_name
from wcodec.reference.records import by_dtype, write_tables
from wcodec.reference.segments import Coder, SegmentTable
from wcodec.reference.tables import ContextKind
from wcodec.reference.tensors import Lists, TensorRecord
from wcodec.reference.tiles import Geometry

#: words of one histogram: independent of the file's segments, which may be tiny
_COUNT_WORDS: Final = 1 << 20
MANY: Final = 1000  #: small tensors of which bounds are not found out unasked
_FEW: Final = 64  #: integers that are counted one by one


#: entries of a tensor that say how often something was chosen
_CHOICES: Final = ("layouts", "coders", "predictions", "contexts", "tile_modes")
_choices_of: Final[Callable[[dict[str, Any]], Any]] = itemgetter(*_CHOICES)


def describe(
    file: File, bound: bool | None = None, progress: Progress = ignore_progress
) -> dict[str, Any]:
    """All that `wcodec info --json` prints.

    Parameters
    ----------
    bound
        Also give the order-0 bound, for which every tensor is decoded (and so checked). With
        ``None``, that of small tensors is left out where there are more than `MANY` of them.
    progress
        Called with the decoded bytes of each tensor.

    Raises
    ------
    DecodeError
    """
    index, base = file.index, file.index.base
    some = islice(filter(is_small, index.tensors), MANY + 1)
    of_small = bound or (bound is None and len(list(some)) <= MANY)
    bound = bound is not False
    there = not bound or not file.needs_base or base_error(file.base) is None
    tensors: list[Any] = []
    for batch in in_batches(index.tensors):
        first = batch[0]
        if len(batch) > 1:
            tensors += _describe_batch(file, batch, of_small)
            progress(sum(t.nbytes for t in batch) if bound else 0)
        elif first.duplicate_of is None:
            wanted = of_small if is_small(first) else bound and (there or not first.difference)
            tensors.append(describe_tensor(file, first, wanted, progress))
            progress(first.nbytes if bound and not wanted else 0)
        else:
            tensors.append(None)  # until all others are there
            progress(first.nbytes if bound else 0)
    for i, t in enumerate(index.tensors):
        if t.duplicate_of is not None:
            tensors[i] = _duplicate(t, tensors[t.duplicate_of])
    for entry in tensors if file.stated else ():
        if (stated := file.stated.get(entry["name"])) is not None:
            _restate(entry, stated)
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


def _duplicate(t: TensorRecord, original: dict[str, Any]) -> dict[str, Any]:
    """The entry of a tensor that is another one again."""
    return {
        **original,
        "name": t.name,
        "stored_nbytes": 0,
        "bits_per_weight": 0.0,
        "duplicate_of": original["name"],
    }


def _restate(entry: dict[str, Any], stated: Stated) -> None:
    """Have an entry of opaque bytes say what they are, where the file keeps a header that does."""
    n, n_bytes = math.prod(stated.shape), entry["nbytes"]
    entry |= {"dtype": stated.dtype, "shape": list(stated.shape)}
    for key in ("bits_per_weight", "order0_bits_per_weight"):
        if entry[key] is not None:
            entry[key] *= n_bytes / n


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
    alike = dict[tuple[int, ...], tuple[list[int], tuple[dict[str, int], ...]]]()
    for t in tensors:  # many small tensors have the same dictionaries
        choices = _choices_of(t)
        alike.setdefault(tuple(map(id, choices)), ([0], choices))[0][0] += 1
    totals: dict[str, Any] = {k: {} for k in _CHOICES}
    for (times,), choices in alike.values():
        for total, counts in zip(totals.values(), choices, strict=True):
            for name, count in counts.items():
                total[name] = total.get(name, 0) + times * count
    operands = dict(Counter(t["operand"] for t in tensors if t["operand"] is not None))
    return {**totals, "n_patches": sum(t["n_patches"] for t in tensors), "operands": operands}


def _of_record(t: TensorRecord) -> dict[str, Any]:
    """What the record alone says of a tensor, without a bound."""
    g, n = t.geometry, math.prod(t.shape)
    return {
        "name": t.name,
        "dtype": t.dtype_name or t.dtype.safetensors or t.dtype.name,
        "shape": list(t.shape),
        "nbytes": t.nbytes,
        "stored_nbytes": t.payload_nbytes,
        "bits_per_weight": 8 * t.payload_nbytes / n if n else None,
        "duplicate_of": None,
        "difference": t.difference.name.lower(),
        "order0_bits_per_weight": None,
        "n_segments": g.n_segments,
        "segment": [g.segment_rows, g.segment_cols],
        "tile": [g.tile_rows, g.tile_cols],
    }


def describe_tensor(
    file: File, t: TensorRecord, bound: bool, progress: Progress = ignore_progress
) -> dict[str, Any]:
    """One entry of the list ``tensors`` of `describe`."""
    if t.lists is not None:
        return _describe_sparse(file, t, t.lists, bound, progress)
    n, plan, segments = math.prod(t.shape), t.plan(file.index.tables), t.segments
    there = plan.plane_nbytes > 0  # planes that the layout has
    coded = there & plan.is_stream
    order0 = _order0_bits(file, t, progress) / n if bound and n else None
    return {
        **_of_record(t),
        "order0_bits_per_weight": order0,
        "layouts": _counted(segments.layout, _LAYOUTS),
        "coders": _counted(segments.coder[there], _CODERS),
        "predictions": _counted(segments.prediction[coded], _MODES),
        "contexts": _contexts(file, segments),
        "tile_modes": _tile_modes(file, t),
        "n_patches": int(segments.n_patches.sum()),
        "n_listed": None,
        "operand": operand_form(t),
    }


def _describe_sparse(
    file: File, t: TensorRecord, lists: Lists, bound: bool, progress: Progress
) -> dict[str, Any]:
    """An entry of a sparse tensor; coders are those of gaps and of the bytes of listed words."""
    n, coders, kinds = math.prod(t.shape), list[int](), list[dict[str, int]]()
    for part in lists.parts if lists.touched.size else ():
        plan = part.plan(file.index.tables)
        coders += part.segments.coder[plan.plane_nbytes > 0].tolist()
        kinds.append(_contexts(file, part.segments))
    return {
        **_of_record(t),
        "order0_bits_per_weight": _order0_bits(file, t, progress) / n if bound and n else None,
        "layouts": {"sparse": t.geometry.n_segments},
        "coders": _counted(coders, _CODERS),
        "predictions": {},
        "contexts": dict(sum((Counter(kind) for kind in kinds), Counter[str]())),
        "tile_modes": {},
        "n_patches": 0,
        "n_listed": int(lists.n_listed.sum()),
        "operand": None,
    }


def _describe_batch(file: File, batch: list[TensorRecord], bound: bool) -> list[dict[str, Any]]:
    """Entries of small tensors; for duplicates any."""
    known = dict[int, dict[str, Any]]()
    for ids in by_dtype(t.dtype for t in batch):
        columns = joined_columns([batch[i].segments for i in ids])
        if columns is None or (columns.prediction == PER_TILE).any():
            continue
        n_patches = columns.n_patches.tolist()
        # layout, coders, tables, modes of each: few are different, but for tables of streams
        is_table = (columns.coder == Coder.RANS) | (columns.coder == Coder.CONSTANT)
        tables = np.where(is_table, 0, columns.table)
        parts = [columns.layout[None], columns.coder, tables, columns.prediction]
        rows, of = np.unique(np.concatenate(parts).T, axis=0, return_inverse=True)
        chosen = [_chosen(file, batch[ids[0]], row) for row in rows.tolist()]
        for i, k, n in zip(ids, of.reshape(-1).tolist(), n_patches, strict=True):
            known[i] = _single_entry(batch[i], chosen[k], n)
    if bound:
        for i, (t, array) in enumerate(zip(batch, file.small_tensors(batch), strict=True)):
            if i in known:
                words = array.reshape(-1).view(np.uint8).view(t.dtype.word_type)
                known[i]["order0_bits_per_weight"] = _bits_of(file, t, words) / math.prod(t.shape)
    return [
        known[i] if i in known else describe_tensor(file, t, bound) for i, t in enumerate(batch)
    ]


def _chosen(file: File, t: TensorRecord, row: list[int]) -> dict[str, Any]:
    """What a tensor of one segment has chosen, as a tensor's entry says it: of its dtype, given its
    layout, and coders, context maps and modes of its planes.
    """
    layout, n = row[0], t.dtype.n_planes
    coder, maps, modes = row[1 : n + 1], row[n + 1 : 2 * n + 1], row[2 * n + 1 :]
    there = 0 if layout == Layout.RAW else n if layout == Layout.PAIRS else t.dtype.word_nbytes
    streams = [p for p in range(there) if coder[p] in (Coder.RANS, Coder.CONTEXT)]
    named = [maps[p] for p in streams if coder[p] == Coder.CONTEXT]
    return {
        "layouts": _counted([layout], _LAYOUTS),
        "coders": _counted(coder[:there], _CODERS),
        "predictions": _counted([modes[p] for p in streams], _MODES),
        "contexts": _counted([file.index.tables.maps[i].kind for i in named], _CONTEXTS),
        "tile_modes": {},
    }


def _single_entry(t: TensorRecord, chosen: dict[str, Any], n_patches: int) -> dict[str, Any]:
    """An entry without a bound, of a tensor of one row and one segment."""
    return {**_of_record(t), **chosen, "n_patches": n_patches, "n_listed": None, "operand": None}


def _lower(names: Any) -> dict[int, str]:
    return {int(m): m.name.lower() for m in names}


_LAYOUTS: Final = _lower(Layout)
_CODERS: Final = _lower(Coder)
_CONTEXTS: Final = _lower(ContextKind)
_MODES: Final = {m: mode_name(m) for m in MODES} | {PER_TILE: "per_tile"}


def _counted(values: Any, names: dict[int, str]) -> dict[str, int]:
    """How often each of some integers occurs, by name; integers without a name included."""
    if len(values) > _FEW:
        found, counts = (a.tolist() for a in np.unique(values, return_counts=True))
    else:
        values = list(values)
        found = sorted(set(values))
        counts = [values.count(v) for v in found]
    return {names.get(v) or f"reserved_{v}": c for v, c in zip(found, counts, strict=True)}


def _contexts(file: File, segments: SegmentTable) -> dict[str, int]:
    """How many planes have context maps of each kind."""
    numbers = segments.table[segments.coder == Coder.CONTEXT].tolist()
    return _counted([file.index.tables.maps[i].kind for i in numbers], _CONTEXTS)


def _tile_modes(file: File, t: TensorRecord) -> dict[str, int]:
    """Modes of the tiles of planes with prediction `PER_TILE`, which only the payload holds."""
    plan = t.plan(file.index.tables)
    stored = [
        file.source.read(t.payload_offset + int(plan.offsets[k]), int(plan.modes_nbytes[k]))
        for k in np.flatnonzero(plan.modes_nbytes).tolist()
    ]
    return _counted(np.concatenate(stored) if stored else [], _MODES)


def _order0_bits(file: File, t: TensorRecord, progress: Progress) -> float:
    """Order-0 entropy of a tensor in bits: the sum over the byte planes of its mapped words,
    each as one whole.
    """
    counts = np.zeros((t.dtype.word_nbytes, 256), np.int64)
    for chunk in file.chunks(t):
        counts += _counts_of(file, t, chunk)
        progress(chunk.nbytes)
    return float(entropies(counts).sum())


def _counts_of(file: File, t: TensorRecord, words: Words) -> NDArray[np.int64]:
    backend = file.decoder.backend
    return plane_counts(backend, backend.to_device(words), words.size, t.dtype)


def _bits_of(file: File, t: TensorRecord, words: Words) -> float:
    """Order-0 entropy of all words of a tensor, in bits."""
    return float(entropies(_counts_of(file, t, words)).sum())


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
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table_text(rows: list[list[str]], left: int = 1) -> Iterator[str]:
    """Lines of a table; the first `left` columns are flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "  ".join(f"{{:{'<' if i < left else '>'}{w}}}" for i, w in enumerate(widths))
    for row in rows:
        yield line.format(*row).rstrip()


def _counts_text(counts: dict[str, int]) -> str:
    return " ".join([f"{k}:{v}" for k, v in counts.items()]) or "-"


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
        texts = dict[tuple[int, ...], list[str]]()
        rows = [_row(t, texts) for t in report["tensors"]]
        yield from table_text([_HEAD, *rows], left=2)


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


def _row(t: dict[str, Any], texts: dict[tuple[int, ...], list[str]]) -> list[str]:
    """Cells of a tensor. `texts` are those of choices, which many small tensors share."""

    def bits(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    choices = _choices_of(t)
    key = tuple(map(id, choices))
    if key not in texts:
        texts[key] = [*map(_counts_text, choices)]
    return [
        printable(t["name"]), printable(t["dtype"]), "x".join(map(str, t["shape"])) or "scalar",
        size_text(t["nbytes"]), percent_text(t["stored_nbytes"], t["nbytes"]),
        bits(t["bits_per_weight"]), bits(t["order0_bits_per_weight"]), *texts[key],
        str(t["n_patches"]), t["operand"] or "-", _instead(t),
    ]  # fmt: skip


def _instead(t: dict[str, Any]) -> str:
    if t["duplicate_of"] is not None:
        return f"duplicate of {printable(t['duplicate_of'])}"
    return "-" if t["difference"] == "none" else f"{t['difference']} base"
