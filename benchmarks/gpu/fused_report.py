"""The marks that products straight from operands are to meet, and the tables of `fused.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gpu_report import _section as section


class Mark(NamedTuple):
    """A least ratio that is to be reached with all of some shapes and batches."""

    what: str
    operand: str
    shapes: tuple[str, ...]
    batches: tuple[int, ...]
    ratio: str
    least: float


MLP = ("14336x4096", "4096x14336", "28672x8192", "8192x28672")
LAYERS = ("4096x4096", "1024x4096", "8192x8192", "1024x8192", *MLP)
MARKS = (
    Mark(
        "bf16 fixed, MLP shapes, batch 1 to 16: as fast as cuBLAS",
        "fixed",
        MLP,
        (1, 2, 4, 8, 16),
        "to_cublas",
        1.0,
    ),
    Mark(
        "bf16 fixed, MLP shapes, batch 1 to 16: as fast as cuBLAS (goal)",
        "fixed",
        MLP,
        (1, 2, 4, 8, 16),
        "to_cublas",
        1.2,
    ),
    Mark("bf16 rans, MLP shapes, batch 1: as fast as cuBLAS", "rans", MLP, (1,), "to_cublas", 0.6),
    Mark(
        "bf16 rans, all layers, batch 1: as fast as decoding, then cuBLAS",
        "rans",
        LAYERS,
        (1,),
        "to_decoded",
        1.0,
    ),
)
Row = tuple[int, str, str, int, int, int]


def marks(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each mark with the least ratio, and whether it is met;
    ``None`` unless all of it was measured.
    """
    found = {
        (c["shape"], c["operand"], b["batch"]): b
        for c in cases
        if c["weights"] == "bf16"
        for b in c["batches"]
    }
    out = []
    for m in MARKS:
        keys = [(shape, m.operand, batch) for shape in m.shapes for batch in m.batches]
        value = (
            min(found[key][m.ratio] for key in keys) if all(key in found for key in keys) else None
        )
        out.append(
            {
                "what": m.what,
                "value": value,
                "least": m.least,
                "met": None if value is None else value >= m.least,
            }
        )
    return out


def crossover(report: dict[str, Any]) -> list[Row]:
    """Capability, weights, operand, n, k, and the largest batch up to which, at all that were
    measured, products straight from the operand are not slower than decoding and then cuBLAS; 0 if
    there is none. For ``wcodec/cuda/crossover.py``.
    """
    rows = list[Row]()
    for c in report["cases"]:
        most = 0
        for b in sorted(c["batches"], key=lambda b: b["batch"]):
            if b["to_decoded"] < 1.0:
                break
            most = b["batch"]
        if c["batches"]:
            rows.append((report["capability"], c["weights"], c["operand"], c["n"], c["k"], most))
    return rows


def rows_text(rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """Rows of `crossover` as a program has them."""
    for row in rows:
        cells = (f'"{c}"' if isinstance(c, str) else str(c) for c in row)
        yield f"    ({', '.join(cells)}),"


def tables(report: dict[str, Any]) -> Iterator[str]:
    """All that was found, in Markdown."""
    gpu, about = report["gpu"], report["machine"]
    yield f"# Products straight from operands: {gpu['device']}, {about.get('date', '')}"
    yield ""
    if report["emulated"]:
        yield "**On the emulator: these times mean nothing.**"
    yield (
        f"Commit {about['commit']}, sources {about['sources_sha256'][:12]}, `{about['command']}`, "
        f"{report['seconds']:.0f} s."
    )
    if report["copy"]:
        yield f"Copy: device {report['copy']['device_to_device']['gb_s']:.0f} GB/s (read + write)."
    for weights, operand in dict.fromkeys((c["weights"], c["operand"]) for c in report["cases"]):
        cases = [c for c in report["cases"] if (c["weights"], c["operand"]) == (weights, operand)]
        yield from section(f"{weights}, {operand}", _rows(cases))
    if any(m["value"] is not None for m in report["marks"]):
        yield from section("Marks", None)
        yield "```"
        for m in report["marks"]:
            value = "not measured" if m["value"] is None else f"{m['value']:.2f}"
            yield (
                f"{ {True: 'met', False: 'MISSED', None: '-'}[m['met']]:<6}  {m['what']}: "
                f"{value} (>= {m['least']:g})"
            )
        yield "```"
    if report["crossover"]:
        yield from section("Crossover: capability, weights, operand, n, k, most batch", None)
        yield "```"
        yield from rows_text(report["crossover"])
        yield "```"
    for failure in report["failures"]:
        yield f"FAILED {failure['step']}: {failure['error']}"
    if report["left_out"]:
        yield f"Left out: {', '.join(report['left_out'])}."


def _rows(cases: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [[
        "n x k", "bits", "batch", "fused us", "cuBLAS us", "decoded us", "to cuBLAS", "to decoded",
        "fused GB/s", "of copy", "cuBLAS GB/s", "of copy", "launched us", "cuBLAS", "decoded",
        "error", "PyTorch's", "parts x slices", "by",
    ]]  # fmt: skip
    for c in cases:
        for b in c["batches"]:
            times, launched = (
                [f"{1e6 * b[of][n]['median_s']:.1f}" for n in ("fused", "cublas", "decoded")]
                for of in ("times", "launched")
            )
            speeds = [
                text
                for n in ("fused", "cublas")
                for text in (f"{b['gb_s'][n]:.0f}", f"{100 * b['of_copy'][n]:.0f} %")
            ]
            rows.append([
                c["shape"], f"{c['bits']:.2f}", str(b["batch"]), *times, f"{b['to_cublas']:.2f}",
                f"{b['to_decoded']:.2f}", *speeds, *launched, f"{b['error']:.1e}",
                f"{b['torch_error']:.1e}", f"{b['n_parts']} x {b['n_slices']}", b["way"],
            ])  # fmt: skip
    return rows
