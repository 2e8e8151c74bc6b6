"""Why a file is coded as it is: what each of its tensors would have cost otherwise.
`wcodec info --explain`.
"""

from __future__ import annotations

import builtins
import io
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.codec.pipelining import Progress, ignore_progress
from wcodec.files.atomic import atomic_output
from wcodec.files.file import File
from wcodec.inspect.report import (
    base_error,
    describe_tensor,
    entropies,
    percent_text,
    plane_counts,
    printable,
    size_text,
    table_text,
)
from wcodec.planner.geometry import choose_geometry
from wcodec.planner.options import EncodeOptions
from wcodec.planner.planner import Planner
from wcodec.reference.planes import DType
from wcodec.reference.prediction import MODES, Mode, mode_name
from wcodec.reference.records import write_contexts, write_tables
from wcodec.reference.tensors import TensorRecord
from wcodec.reference.tiles import Geometry
from wcodec.reference.transforms import Transform

AnyPath = str | os.PathLike[str]

_LEAST_WORDS: Final = 4096  #: of a segment: the histograms of smaller ones would fill the memory
_OF_MODES: Final = {
    mode_name(m): EncodeOptions(
        layout="bytes",
        predictor=Mode(m & 15).name.lower(),
        transform=Transform(m >> 4).name.lower(),
        coder="rans",
        min_saving=0,
    )
    for m in MODES
}

_OF_DUPLICATES: Final[dict[str, Any]] = {
    "stored_nbytes": 0, "bits_per_weight": 0.0, "order0_bits_per_weight": None, "planes": [],
    "costs": {}, "best": None, "left": None, "left_nbytes": None,
}  # fmt: skip


def explain(
    file: AnyPath | bytes | BinaryIO,
    backend: Backend | None = None,
    base: AnyPath | None = None,
    progress: Progress = ignore_progress,
) -> dict[str, Any]:
    """For each tensor of a ``.wcodec`` file what it costs, its order-0 bound,
    and what other choices would have cost.

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
    As `wcodec info --explain --json` prints it: the file and the bases that it was decoded with, if
    they have names, and what follows. All figures of tensors are bits a weight: of
    ``planes`` what is stored of each byte plane (``null`` in other layouts) and its order-0
    entropy; ``costs`` are the planner's, the tables that the tensor alone would need included, with
    the segments of the file, or the encoder's own where those have fewer than 4096 words; ``best``
    is the least of them, ``left`` what it would have saved.

    Entropies and costs of a difference are those of the words themselves, so that its ``best`` and
    ``left`` are ``null``. Without the base it has neither; ``base_error`` says why. A duplicate has
    none of all this.

    Raises
    ------
    DecodeError

    See also
    --------
    spec/wcodec.md, chapter 14
    """
    with File(
        io.BytesIO(file) if isinstance(file, builtins.bytes) else file, backend, base=base
    ) as f:
        return explain_file(f, progress)


def explain_file(file: File, progress: Progress = ignore_progress) -> dict[str, Any]:
    """As `explain`, of an open file."""
    missing = base_error(file.base) if file.needs_base else None
    errors, tensors = list[str](), list[dict[str, Any]]()
    for t in file.index.tensors:
        if t.duplicate_of is not None:
            original = tensors[t.duplicate_of]
            tensors.append(
                {**original, **_OF_DUPLICATES, "name": t.name, "duplicate_of": original["name"]}
            )
            progress(t.nbytes)
            continue
        error = (missing or base_error(partial(file.base_of, t))) if t.difference else None
        errors += [error] if error else []
        tensors.append(explain_tensor(file, t, progress, error is None))
    return {
        "file": None if file.path is None else str(file.path),
        "bases": [str(path) for path in file.base_paths()],
        "nbytes": file.index.data_nbytes,
        "stored_nbytes": sum(t["stored_nbytes"] for t in tensors),
        "left_nbytes": sum(t["left_nbytes"] or 0 for t in tensors),
        "base_error": errors[0] if errors else None,
        "tensors": tensors,
    }


def candidates(dtype: DType) -> dict[str, EncodeOptions]:
    """Options for each way to code a tensor: the layouts, each mode, contexts, the presets."""
    pairs = (
        {"pairs": EncodeOptions(layout="pairs", coder="rans", min_saving=0)}
        if dtype.has_pairs
        else {}
    )
    contexts = EncodeOptions(layout="bytes", predictor="none", coder="context")
    return {
        **pairs,
        **_OF_MODES,
        "contexts": contexts,
        "default": EncodeOptions(),
        "max": EncodeOptions(preset="max"),
    }


def explain_tensor(
    file: File, t: TensorRecord, progress: Progress = ignore_progress, decodable: bool = True
) -> dict[str, Any]:
    """One entry of the list ``tensors`` of `explain`;
    without costs and bounds if it is not `decodable`.
    """
    n, own = math.prod(t.shape), describe_tensor(file, t, bound=False)
    bits = 8 / n if n else 0.0
    costs, order0 = dict[str, int](), [None] * t.dtype.word_nbytes
    if decodable:
        costs, counts = _look(file, t, progress)
        order0 = (entropies(counts).sum(axis=1) * bits / 8).tolist()
    else:
        progress(t.nbytes)
    best = min(costs, key=lambda name: costs[name]) if decodable and not t.difference else None
    left_nbytes = None if best is None else max(0, own["stored_nbytes"] - costs[best])
    return {
        **{
            k: own[k]
            for k in (
                "name",
                "dtype",
                "shape",
                "nbytes",
                "stored_nbytes",
                "duplicate_of",
                "difference",
                "segment",
                "tile",
            )
        },
        "chosen": {
            k: own[k]
            for k in ("difference", "layouts", "coders", "predictions", "contexts", "tile_modes")
        },
        "bits_per_weight": own["stored_nbytes"] * bits,
        "order0_bits_per_weight": sum(order0) if decodable else None,
        "planes": [
            {"stored": s, "order0": o}
            for s, o in zip(_stored_bits(file, t, bits), order0, strict=True)
        ],
        "costs": {name: nbytes * bits for name, nbytes in costs.items()},
        "best": best,
        "left": None if left_nbytes is None else left_nbytes * bits,
        "left_nbytes": left_nbytes,
    }


def _look(
    file: File, t: TensorRecord, progress: Progress
) -> tuple[dict[str, int], NDArray[np.int64]]:
    """Bytes that a tensor's words would have had in each way,
    and how often each byte occurs in each plane.
    """
    backend = file.decoder.backend
    planners = {name: (Planner(options), [0]) for name, options in candidates(t.dtype).items()}
    counts = np.zeros((t.dtype.word_nbytes, 256), np.int64)
    for chunk in file.chunks(t):
        words = backend.to_device(chunk)
        for planner, nbytes in planners.values():
            part = _geometry(t, chunk.shape, planner.options)
            planner.plan(words.reshape(part.rows, part.cols), part, t.dtype, backend)
            nbytes[0] += int(planner.nbytes.sum())
        counts += plane_counts(backend, words, chunk.size, t.dtype)
        progress(chunk.nbytes)
    return {"raw": t.nbytes} | {
        name: nbytes[0] + _tables_nbytes(planner) for name, (planner, nbytes) in planners.items()
    }, counts


def _geometry(t: TensorRecord, shape: tuple[int, ...], options: EncodeOptions) -> Geometry:
    """Segments of some rows of a tensor: those of the file,
    or the encoder's where those are tiny.
    """
    g = t.geometry
    n_words = min(g.rows, g.segment_rows) * min(g.cols, g.segment_cols)
    if t.lists is None and n_words >= min(_LEAST_WORDS, g.rows * g.cols):
        return replace(g, rows=shape[0], cols=shape[1])
    return choose_geometry((shape[0], shape[1] // t.dtype.words_per_element), t.dtype, options)[1]


def _tables_nbytes(planner: Planner) -> int:
    """Bytes of the tables and context maps that a planner has made, their counts aside."""
    return len(write_tables(planner.pool)) + len(write_contexts(planner.pool)) - 4


def _stored_bits(file: File, t: TensorRecord, bits: float) -> list[float]:
    """Bits a weight of each byte plane as it is stored; gaps, and segments of layout RAW, add the
    same to all.
    """
    n, of_gaps = t.dtype.word_nbytes, 0
    if t.lists is not None:
        if not t.lists.touched.size:
            return [0.0] * n
        of_gaps, t = t.lists.gaps.payload_nbytes, t.lists.words
    plan = t.plan(file.index.tables)
    planes = plan.stream_nbytes.sum(axis=1) + of_gaps // n
    planes = np.array([planes.sum()]) if n == 1 else planes  # two planes of nibbles
    if plan.dtype.word_nbytes == n:
        planes = planes + plan.words_nbytes.sum() // n
    return [float(p) * bits for p in planes.tolist()]


# ---- text and figure -----------------------------------------------------------------------------
def as_text(report: dict[str, Any]) -> Iterator[str]:
    """Lines of `wcodec info --explain`."""
    left = report["left_nbytes"]
    yield (
        f"{size_text(report['nbytes'])} in {size_text(report['stored_nbytes'])}; {size_text(left)} "
        f"({percent_text(left, report['nbytes'])}) left on the table. All figures are bits a "
        "weight."
    )
    if report["base_error"]:
        yield (
            "without the base, tensors that are differences have no costs: "
            f"{printable(report['base_error'])}"
        )
    if not report["tensors"]:
        return
    head = [
        "tensor",
        "dtype",
        "chosen",
        "stored",
        "order-0",
        "pairs",
        "none",
        "prediction",
        "transform",
        "contexts",
        "max",
        "best",
        "left",
    ]
    yield ""
    yield from table_text([head, *map(_row, report["tensors"])], left=3)


def _row(t: dict[str, Any]) -> list[str]:
    costs, modes = t["costs"], [mode_name(m) for m in MODES]

    def least(names: list[str]) -> str:
        name = min(names, key=lambda n: costs.get(n, math.inf))
        return f"{name}:{costs[name]:.3f}" if name in costs else "-"

    def bits(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    chosen = [
        t["chosen"]["difference"],
        *t["chosen"]["layouts"],
        *t["chosen"]["predictions"],
        *t["chosen"]["contexts"],
    ]
    text = (
        " ".join(k for k in chosen if k != "none")
        if t["duplicate_of"] is None
        else f"duplicate of {printable(t['duplicate_of'])}"
    )
    return [
        printable(t["name"]), printable(t["dtype"]), text or "-", bits(t["bits_per_weight"]),
        bits(t["order0_bits_per_weight"]), bits(costs.get("pairs")), bits(costs.get("none")),
        least(modes[1 : len(Mode)]), least(modes[len(Mode) :]), bits(costs.get("contexts")),
        bits(costs.get("max")), t["best"] or "-", bits(t["left"]),
    ]  # fmt: skip


def figure_class() -> Any:
    """Matplotlib's class of figures.

    Raises
    ------
    ImportError
        Matplotlib is missing; the message says how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("a plot needs matplotlib; pip install 'wcodec[plot]'") from None
    return Figure


def plot(report: dict[str, Any], path: AnyPath, overwrite: bool = False) -> None:
    """Draw bits a weight of each tensor and plane, the order-0 bounds beside, into a PNG file.

    Parameters
    ----------
    overwrite
        Whether a file that is there may be replaced.

    Raises
    ------
    ImportError
        As `figure_class`.
    EncodeError
        ``output_exists``; ``bad_option``: the figure would replace what the report is about.
    OSError
        Nothing is left behind.
    """
    tensors = report["tensors"]
    figure = figure_class()(figsize=(9, max(2.0, 1.5 + 0.3 * len(tensors))), layout="constrained")
    axes, n_planes = figure.add_subplot(), max((len(t["planes"]) for t in tensors), default=0)
    y = np.arange(len(tensors))
    for shift, what, alpha in ((0.2, "order0", 0.45), (-0.2, "stored", 1.0)):
        at = np.zeros(len(tensors))
        for p in range(n_planes):
            width = np.array(
                [(t["planes"][p][what] or 0.0) if p < len(t["planes"]) else 0.0 for t in tensors]
            )
            label = f"plane {p}, {'stored' if what == 'stored' else 'order-0 bound'}"
            axes.barh(y + shift, width, 0.38, left=at, color=f"C{p}", alpha=alpha, label=label)
            at += width
    axes.set_yticks(y, [printable(t["name"]).replace("$", r"\$")[:60] for t in tensors])
    axes.invert_yaxis()
    axes.set_xlabel("bits a weight")
    if n_planes:
        figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    inputs = [read for read in (report.get("file"), *report.get("bases", ())) if read]
    with atomic_output(path, overwrite=overwrite, inputs=inputs) as f:
        figure.savefig(f, format="png", dpi=120)
