"""Why a file is coded as it is: what each of its tensors would have cost otherwise. `wcodec info --explain`."""

from __future__ import annotations

import builtins
import io
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.codec import Progress, ignore_progress
from wcodec.files import File
from wcodec.reference.container import TensorRecord, write_contexts, write_tables
from wcodec.reference.plan import EncodeOptions, Planner
from wcodec.reference.planes import DType
from wcodec.reference.prediction import MODES, Mode, mode_name
from wcodec.reference.tiles import Geometry
from wcodec.reference.transforms import Transform
from wcodec.report import describe_tensor, percent_text, printable, size_text, table_text

AnyPath = str | os.PathLike[str]

_COUNT_WORDS: Final = 1 << 20  #: words of one histogram
_OF_MODES: Final = {
    mode_name(m): EncodeOptions(
        layout="bytes", predictor=Mode(m & 15).name.lower(), transform=Transform(m >> 4).name.lower(), coder="rans", min_saving=0
    )
    for m in MODES
}


def explain(
    file: AnyPath | bytes | BinaryIO, backend: Backend | None = None, base: AnyPath | None = None, progress: Progress = ignore_progress
) -> dict[str, Any]:
    """For each tensor of a ``.wcodec`` file what it costs, its order-0 bound, and what other choices would have cost.

    Parameters
    ----------
    file
        A path, the bytes of a file, or a seekable binary file object.
    backend
        ``None`` for the one of `wcodec.get_backend`.
    base
        The checkpoint that the file was encoded against, as for `wcodec.open`.
    progress
        Called with the decoded bytes that were just looked at.

    Returns
    -------
    As `wcodec info --explain --json` prints it. All figures of tensors are bits a weight: of ``planes`` what is stored of each byte
    plane (``null`` in other layouts) and its order-0 entropy; ``costs`` are the planner's, the tables that the tensor alone would
    need included, with the segments of the file; ``best`` is the least of them, ``left`` what it would have saved.

    Raises
    ------
    DecodeError

    See also
    --------
    spec/wcodec.md, chapter 14
    """
    with File(io.BytesIO(file) if isinstance(file, builtins.bytes) else file, backend, base=base) as f:
        return explain_file(f, progress)


def explain_file(file: File, progress: Progress = ignore_progress) -> dict[str, Any]:
    """As `explain`, of an open file."""
    tensors = [explain_tensor(file, t, progress) for t in file.index.tensors if t.duplicate_of is None]
    return {
        "nbytes": file.index.data_nbytes,
        "stored_nbytes": sum(t["stored_nbytes"] for t in tensors),
        "left_nbytes": sum(t["left_nbytes"] for t in tensors),
        "tensors": tensors,
    }


def candidates(dtype: DType) -> dict[str, EncodeOptions]:
    """Options for each way to code a tensor: the layouts, each mode, contexts, the presets."""
    pairs = {"pairs": EncodeOptions(layout="pairs", coder="rans", min_saving=0)} if dtype.has_pairs else {}
    contexts = EncodeOptions(layout="bytes", predictor="none", coder="context")
    return {**pairs, **_OF_MODES, "contexts": contexts, "default": EncodeOptions(), "max": EncodeOptions(preset="max")}


def explain_tensor(file: File, t: TensorRecord, progress: Progress = ignore_progress) -> dict[str, Any]:
    """One entry of the list ``tensors`` of `explain`."""
    n, backend = math.prod(t.shape), file.decoder.backend
    planners = {name: (Planner(options), [0]) for name, options in candidates(t.dtype).items()}
    counts = np.zeros((t.dtype.word_nbytes, 256), np.int64)
    for chunk in file.chunks(t):
        words, part = backend.to_device(chunk), replace(t.geometry, rows=chunk.shape[0], cols=chunk.shape[1])
        for planner, nbytes in planners.values():
            planner.plan(words, part, t.dtype, backend)
            nbytes[0] += int(planner.nbytes.sum())
        flat = Geometry(1, chunk.size, 1, _COUNT_WORDS, 1, _COUNT_WORDS)
        counts += backend.histogram(words.reshape(1, -1), flat, t.dtype).sum(axis=0)
        progress(chunk.nbytes)
    costs = {"raw": t.nbytes} | {name: nbytes[0] + _tables_nbytes(planner) for name, (planner, nbytes) in planners.items()}
    best, bits = min(costs, key=lambda name: costs[name]), 8 / n if n else 0.0
    own = describe_tensor(file, t, bound=False)
    order0 = (_entropy_bits(counts) / n if n else np.zeros(len(counts))).tolist()
    return {
        **{k: own[k] for k in ("name", "dtype", "shape", "nbytes", "stored_nbytes", "difference", "segment", "tile")},
        "chosen": {k: own[k] for k in ("layouts", "coders", "predictions", "contexts", "tile_modes")},
        "bits_per_weight": own["stored_nbytes"] * bits,
        "order0_bits_per_weight": sum(order0),
        "planes": [{"stored": s, "order0": o} for s, o in zip(_stored_bits(file, t, bits), order0, strict=True)],
        "costs": {name: nbytes * bits for name, nbytes in costs.items()},
        "best": best,
        "left": max(0, own["stored_nbytes"] - costs[best]) * bits,
        "left_nbytes": max(0, own["stored_nbytes"] - costs[best]),
    }


def _tables_nbytes(planner: Planner) -> int:
    """Bytes of the tables and context maps that a planner has made, their counts aside."""
    return len(write_tables(planner.pool)) + len(write_contexts(planner.pool)) - 4


def _entropy_bits(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Order-0 entropy of each plane, in bits in all."""
    total = counts.sum(axis=1, keepdims=True)
    return np.asarray((counts * (np.log2(np.maximum(total, 1)) - np.log2(np.maximum(counts, 1)))).sum(axis=1), np.float64)


def _stored_bits(file: File, t: TensorRecord, bits: float) -> list[float]:
    """Bits a weight of each byte plane as it is stored; segments of layout RAW add the same to all."""
    plan, n = t.plan(file.index.tables), t.dtype.word_nbytes
    planes = plan.stream_nbytes.sum(axis=1)
    planes = np.array([planes.sum()]) if n == 1 else planes  # two planes of nibbles
    if plan.dtype.word_nbytes == n:
        planes = planes + plan.words_nbytes.sum() // n
    return [float(p) * bits for p in planes.tolist()]


# ---- text and figure -------------------------------------------------------------------------------------------------------
def as_text(report: dict[str, Any]) -> Iterator[str]:
    """Lines of `wcodec info --explain`."""
    left = report["left_nbytes"]
    yield (
        f"{size_text(report['nbytes'])} in {size_text(report['stored_nbytes'])}; {size_text(left)}"
        f" ({percent_text(left, report['nbytes'])}) left on the table. All figures are bits a weight."
    )
    if not report["tensors"]:
        return
    head = ["tensor", "dtype", "chosen", "stored", "order-0", "pairs", "none", "prediction", "transform", "contexts", "max", "best", "left"]
    yield ""
    yield from table_text([head, *map(_row, report["tensors"])], left=3)


def _row(t: dict[str, Any]) -> list[str]:
    costs = t["costs"]

    def least(names: list[str]) -> str:
        name = min(names, key=lambda n: costs[n])
        return f"{name}:{costs[name]:.3f}"

    modes = [mode_name(m) for m in MODES]
    chosen = [k for k in (*t["chosen"]["layouts"], *t["chosen"]["predictions"], *t["chosen"]["contexts"]) if k != "none"]
    return [
        printable(t["name"]), printable(t["dtype"]), " ".join(chosen) or "-", f"{t['bits_per_weight']:.3f}",
        f"{t['order0_bits_per_weight']:.3f}", f"{costs['pairs']:.3f}" if "pairs" in costs else "-", f"{costs['none']:.3f}",
        least(modes[1 : len(Mode)]), least(modes[len(Mode) :]), f"{costs['contexts']:.3f}", f"{costs['max']:.3f}", t["best"],
        f"{t['left']:.3f}",
    ]  # fmt: skip


def plot(report: dict[str, Any], path: AnyPath) -> None:
    """Draw bits a weight of each tensor and plane, the order-0 bounds beside, into a PNG file.

    Raises
    ------
    ImportError
        Matplotlib is missing; the message says how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("a plot needs matplotlib; pip install 'wcodec[plot]'") from None
    tensors = report["tensors"]
    figure = Figure(figsize=(9, max(2.0, 1.5 + 0.3 * len(tensors))), layout="constrained")
    axes, n_planes = figure.add_subplot(), max((len(t["planes"]) for t in tensors), default=0)
    y = np.arange(len(tensors))
    for shift, what, alpha in ((0.2, "order0", 0.45), (-0.2, "stored", 1.0)):
        at = np.zeros(len(tensors))
        for p in range(n_planes):
            width = np.array([t["planes"][p][what] if p < len(t["planes"]) else 0.0 for t in tensors])
            label = f"plane {p}, {'stored' if what == 'stored' else 'order-0 bound'}"
            axes.barh(y + shift, width, 0.38, left=at, color=f"C{p}", alpha=alpha, label=label)
            at += width
    axes.set_yticks(y, [printable(t["name"]).replace("$", r"\$")[:60] for t in tensors])
    axes.invert_yaxis()
    axes.set_xlabel("bits a weight")
    if n_planes:
        figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    figure.savefig(path, format="png", dpi=120)
