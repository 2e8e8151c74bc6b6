"""The marks that the CUDA backend is to meet, and the tables of `gpu.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: What is marked: case, where its figure stands in the report, the limit, its unit,
#: whether it is a least value.
MARKS = [
    (
        "bf16 4096x11008 decode, kernels: of the floor",
        ("4096x11008", "bf16", "decode", "kernels", "of_floor"),
        0.6,
        "%",
        True,
    ),
    (
        "bf16 4096x11008 decode, kernels: of the floor (goal)",
        ("4096x11008", "bf16", "decode", "kernels", "of_floor"),
        0.8,
        "%",
        True,
    ),
    (
        "bf16 256x256 decode, a call with checksums",
        ("256x256", "bf16", "decode", "call_with_crc", "median_s"),
        1e-3,
        "ms",
        False,
    ),
    (
        "bf16 256x256 decode, from bytes in host memory",
        ("256x256", "bf16", "decode", "from_bytes", "median_s"),
        1e-3,
        "ms",
        False,
    ),
    (
        "int8 4096x4096 decode, a call with checksums",
        ("4096x4096", "int8", "decode", "call_with_crc", "median_s"),
        5e-3,
        "ms",
        False,
    ),
    (
        "7B-shaped bf16 set, file in host memory to device",
        ("model", "load", "load", "median_s"),
        3.0,
        "s",
        False,
    ),
    ("7B-shaped bf16 set, the first time", ("model", "load", "load", "first_s"), 3.0, "s", False),
    (
        "bf16 4096x11008 encode, kernels",
        ("4096x11008", "bf16", "encode", "kernels", "gb_s"),
        300.0,
        "GB/s",
        True,
    ),
    (
        "bf16 4096x11008 encode, a call without planning",
        ("4096x11008", "bf16", "encode", "call", "gb_s"),
        300.0,
        "GB/s",
        True,
    ),
]
_SCALE = {"%": 100.0, "ms": 1e3, "s": 1.0, "GB/s": 1.0}
FULL_MODEL_LAYERS = 32


def marks(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Each mark with its value, and whether it is met; ``None`` if that was not measured."""
    out = []
    for what, path, limit, unit, least in MARKS:
        value = _find(report, path)
        met = None if value is None else bool(value >= limit if least else value < limit)
        out.append(
            {
                "what": what,
                "value": value,
                "limit": limit,
                "unit": unit,
                "at_least": least,
                "met": met,
            }
        )
    return out


def _find(report: dict[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = None
    if path[0] != "model":
        found = next((c for c in report["cases"] if (c["shape"], c["dtype"]) == path[:2]), None)
        path = path[2:]
    elif (
        report["model"]
        and report["model"]["layers"] == FULL_MODEL_LAYERS
        and report["model"]["nbytes"] > 13e9
    ):
        found, path = report["model"], path[1:]
    for key in path:
        found = found.get(key) if found else None
    return found


def marks_text(report: dict[str, Any]) -> Iterator[str]:
    """A line for each mark."""
    for m in report["marks"]:
        scale, sign = _SCALE[m["unit"]], ">=" if m["at_least"] else "<"
        value = "not measured" if m["value"] is None else f"{m['value'] * scale:.3g} {m['unit']}"
        verdict = {True: "met", False: "MISSED", None: "-"}[m["met"]]
        yield f"{verdict:<6}  {m['what']}: {value} ({sign} {m['limit'] * scale:g} {m['unit']})"


# ---- tables --------------------------------------------------------------------------------------
def tables(report: dict[str, Any]) -> Iterator[str]:
    """All that was found, in Markdown."""
    gpu, about = report["gpu"], report["machine"]
    yield f"# {gpu['device']}, {about.get('date', '')}"
    yield ""
    yield (
        f"Commit {about['commit']}, sources {about['sources_sha256'][:12]}, `{about['command']}`, "
        f"{report['seconds']:.0f} s."
    )
    if report["copy"]:
        copy = report["copy"]
        yield (
            f"Copy: device {copy['device_to_device']['gb_s']:.0f} GB/s (read + write), pinned to "
            f"device {copy['pinned_to_device']['gb_s']:.1f}, device to pinned "
            f"{copy['device_to_pinned']['gb_s']:.1f} GB/s."
        )
    yield from _decode_tables(report["cases"])
    yield from _encode_tables(report["cases"])
    if report["model"]:
        yield from _model_lines(report["model"])
    yield from _others_table(report["others"])
    if report["rates"]:
        yield from _section(
            "Rates, instructions / clock / multiprocessor",
            [["instruction", "rate"], *_rows(report["rates"])],
        )
    yield from _section("Marks", None)
    yield "```"
    yield from marks_text(report)
    yield "```"
    for failure in report["failures"]:
        yield f"FAILED {failure['step']}: {failure['error']}"
    if report["left_out"]:
        yield f"Left out: {', '.join(report['left_out'])}."


def _rows(values: dict[str, float]) -> Iterator[list[str]]:
    for name, value in values.items():
        yield [name, f"{value:.2f}"]


def _section(title: str, rows: list[list[str]] | None) -> Iterator[str]:
    yield ""
    yield f"## {title}"
    yield ""
    if rows:
        yield from _table(rows)


def _table(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    for n, row in enumerate(rows):
        cells = [c.rjust(w) for c, w in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        yield f"| {' | '.join(cells)} |"
        if n == 0:
            rules = ["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]
            yield f"|{'|'.join(rules)}|"


def _speed(s: dict[str, float]) -> list[str]:
    """Speed, its spread, share of the floor."""
    scale = s["gb_s"] * s["median_s"]
    return [
        f"{s['gb_s']:.1f}",
        f"{scale / s['p90_s']:.1f}..{scale / s['p10_s']:.1f}",
        f"{100 * s['of_floor']:.1f} %",
    ]


def _ms(s: dict[str, float]) -> str:
    return f"{1e3 * s['median_s']:.3f}"


def _decode_tables(cases: list[dict[str, Any]]) -> Iterator[str]:
    done = [c for c in cases if c.get("decode")]
    if not done:
        return
    head = [
        "decode", "ratio", "kernels GB/s", "p10..p90", "of floor", "with CRC GB/s", "p10..p90",
        "of floor", "call ms", "call with CRC ms", "from bytes ms", "from file GB/s", "queue ms",
        "us a launch",
    ]  # fmt: skip
    rows = [head]
    for c in done:
        d = c["decode"]
        rows.append([
            f"{c['shape']} {c['dtype']}", f"{100 * c['ratio']:.2f} %", *_speed(d["kernels"]),
            *_speed(d["with_crc"]), _ms(d["call"]), _ms(d["call_with_crc"]), _ms(d["from_bytes"]),
            f"{d['from_file']['gb_s']:.2f}", f"{1e3 * d['queue_s']:.3f}",
            f"{1e6 * d['launch_s']:.1f}",
        ])  # fmt: skip
    yield from _section("Decode", rows)
    yield from _stages("decode", done)


def _encode_tables(cases: list[dict[str, Any]]) -> Iterator[str]:
    done = [c for c in cases if c.get("encode")]
    if not done:
        return
    rows = [
        [
            "encode",
            "kernels GB/s",
            "p10..p90",
            "of floor",
            "call GB/s",
            "with plan GB/s",
            "host to host GB/s",
            "first plan ms",
        ]
    ]
    for c in done:
        e = c["encode"]
        others = [f"{e[name]['gb_s']:.2f}" for name in ("call", "call_with_plan", "host_to_host")]
        rows.append(
            [
                f"{c['shape']} {c['dtype']}",
                *_speed(e["kernels"]),
                *others,
                f"{1e3 * e['first_plan_s']:.1f}",
            ]
        )
    yield from _section("Encode", rows)
    yield from _stages("encode", done)


def _stages(section: str, cases: list[dict[str, Any]]) -> Iterator[str]:
    names = list(dict.fromkeys(name for c in cases for name in c[section]["stages_s"]))
    rows = [[f"{section}, us", *names]]
    for c in cases:
        found = c[section]["stages_s"]
        rows.append(
            [
                f"{c['shape']} {c['dtype']}",
                *(f"{1e6 * found[n]:.1f}" if n in found else "-" for n in names),
            ]
        )
    yield ""
    yield from _table(rows)


def _model_lines(m: dict[str, Any]) -> Iterator[str]:
    yield from _section("Model", None)
    yield (
        f"{m['layers']} layers, {m['n_tensors']} tensors, {m['nbytes'] / 1e9:.2f} GB in "
        f"{m['stored_nbytes'] / 1e9:.2f} GB ({100 * m['ratio']:.2f} %), floor "
        f"{1e3 * m['floor_s']:.2f} ms."
    )
    if m.get("decode"):
        d = m["decode"]
        stages = ", ".join(f"{name} {1e3 * s:.2f} ms" for name, s in d["stages_s"].items())
        yield (
            f"One work list, device to device: {1e3 * d['kernels']['median_s']:.2f} ms, "
            f"{d['kernels']['gb_s']:.0f} GB/s, {100 * d['kernels']['of_floor']:.1f} % of the "
            f"floor; {stages}. The host makes the list in {d['queue_s']:.3f} s."
        )
    if m.get("load"):
        load = m["load"]
        for name, text in (("load", "with checksums"), ("load_unchecked", "without")):
            s = load[name]
            yield (
                f"File to device, {text}: {s['median_s']:.3f} s "
                f"({s['p10_s']:.3f}..{s['p90_s']:.3f}), first {s['first_s']:.3f} s, "
                f"{s['gb_s']:.1f} GB/s of weights."
            )
        yield f"One thread reads the file at {load['read_gb_s']:.1f} GB/s."


def _others_table(others: list[dict[str, Any]]) -> Iterator[str]:
    if not others:
        return
    rows = [["other codecs, bf16", "ratio", "decode GB/s", "p10..p90", "call GB/s", "encode GB/s"]]
    missing = [o for o in others if "missing" in o]
    for o in (o for o in others if "missing" not in o):
        d = o["decode"]
        scale = d["gb_s"] * d["median_s"]
        rows.append([
            f"{o['name']} {o['version']} {o['options']} {o['shape']}", f"{100 * o['ratio']:.2f} %",
            f"{d['gb_s']:.1f}", f"{scale / d['p90_s']:.1f}..{scale / d['p10_s']:.1f}",
            f"{o['call']['gb_s']:.1f}" if o.get("call") else "-",
            f"{o['encode']['gb_s']:.1f}" if o.get("encode") else "-",
        ])  # fmt: skip
    yield from _section("Beside", rows if len(rows) > 1 else None)
    for o in missing:
        yield f"{o['name']}: {o['missing']}."
