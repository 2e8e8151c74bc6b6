"""What came of the suite, for others: JSON, features by decoder, Markdown, a badge."""

from __future__ import annotations

import json
import platform
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np

from wcodec.conformance.runner import OUTCOMES, Outcome, Report
from wcodec.reference.container import VERSION

SCHEMA: Final = Path(__file__).with_name("report.schema.json")  #: of `document`
FORMAT: Final = f"{VERSION[0]}.{VERSION[1]}"


def document(reports: Sequence[Report]) -> dict[str, Any]:
    """All of the reports of a run, as `SCHEMA` has it."""
    try:
        of_package = version("wcodec")
    except PackageNotFoundError:  # from a source tree
        of_package = "unknown"
    return {
        "schema": 1,
        "wcodec": of_package,
        "format": FORMAT,
        "platform": {
            "system": platform.system(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "vectors": reports[0].vectors if reports else {},
        "decoders": [_decoder(report) for report in reports],
    }


def _decoder(report: Report) -> dict[str, Any]:
    return {
        "name": report.target,
        "info": report.info,
        "profile": report.profile,
        "conformant": report.good,
        "totals": report.totals,
        "seconds": round(report.seconds, 3),
        "interrupted": report.interrupted,
        "checks": [asdict(o) | {"seconds": round(o.seconds, 6)} for o in report.outcomes],
    }


def as_json(reports: Sequence[Report]) -> str:
    """`document` as text."""
    return json.dumps(document(reports), indent=1) + "\n"


# ---- features by decoder -------------------------------------------------------------------------
def features_of(outcome: Outcome) -> tuple[str, ...]:
    """The rows of the matrix that a check is in: its kind, and the flags of its vector."""
    return outcome.id.partition("/")[0], *outcome.features


def matrix(reports: Sequence[Report]) -> dict[str, list[Counter[str]]]:
    """By feature, and first of all checks: how often each outcome came, of each report. Features of
    which nothing was selected are left out.
    """
    rows: dict[str, list[Counter[str]]] = {"all": [Counter() for _ in reports]}
    for flagged in (False, True):  # kinds of checks go before flags
        for i, report in enumerate(reports):
            for o in report.outcomes:
                kind, *flags = features_of(o)
                for name in flags if flagged else ("all", kind):
                    row = rows.setdefault(name, [Counter() for _ in reports])
                    row[i][o.outcome] += 1
    return {
        name: row
        for name, row in rows.items()
        if any(set(count) - {"not selected"} for count in row)
    }


def cell(count: Counter[str]) -> str:
    """An entry of the matrix: ``✓ 12``, ``✗ 3 of 12``, ``12 not run``."""
    passed, failed, *left = (count[name] for name in OUTCOMES)
    parts = [f"✗ {failed} of {passed + failed}"] if failed else [f"✓ {passed}"] if passed else []
    parts += [f"{n} {name}" for n, name in zip(left, OUTCOMES[2:], strict=True) if n]
    return ", ".join(parts) or "-"


def grouped(failed: Iterable[Outcome]) -> list[list[Outcome]]:
    """Failures whose messages are the same but for numbers and names, together."""
    groups: dict[str, list[Outcome]] = {}
    for o in failed:
        alike = re.sub(r"'[^']*'|0x[0-9a-f]+|\d+", "#", o.message)
        groups.setdefault(f"{o.id.partition('/')[0]} {alike}", []).append(o)
    return list(groups.values())


def table(reports: Sequence[Report]) -> list[str]:
    """The matrix as lines of text."""
    lines = [["", *(r.target for r in reports)]]
    lines += [[name, *map(cell, row)] for name, row in matrix(reports).items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(text.ljust(n) for text, n in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def as_markdown(reports: Sequence[Report]) -> str:
    """The matrix, and what failed, for GitHub."""

    def literal(text: str) -> str:
        return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))

    lines = ["| | " + " | ".join(literal(r.target) for r in reports) + " |"]
    lines += ["|---" * (1 + len(reports)) + "|"]
    for name, row in matrix(reports).items():
        lines.append(f"| {literal(name)} | " + " | ".join(map(cell, row)) + " |")
    for report in reports:
        lines += ["", f"**{literal(report.target)}**: {literal(report.last_line)}", ""]
        for first, *more in grouped(report.failed):
            alike = f" (and {len(more)} more alike)" if more else ""
            lines.append(f"- {literal(str(first))}{alike}")
    return "\n".join(lines).rstrip() + "\n"


# ---- a badge -------------------------------------------------------------------------------------
_CHAR: Final = 6.6  #: width of a character of the badge, about


def verdict(reports: Sequence[Report]) -> tuple[str, str]:
    """What a badge says, and its colour."""
    n_good = sum(r.good for r in reports)
    total = sum((Counter(r.totals) for r in reports), Counter[str]())
    if len(reports) > 1:
        text = f"{n_good} of {len(reports)} decoders pass"
    elif total["failed"]:
        text = f"{total['failed']} failed"
    elif n_good:
        text = f"{total['passed']} passed"
    else:
        text = f"{total['passed']} of {sum(total.values())} passed"
    bad = any(r.failed for r in reports)
    return text, "#b3261e" if bad else "#1a7f37" if reports and n_good == len(
        reports
    ) else "#6e7781"


def as_badge(reports: Sequence[Report]) -> str:
    """An SVG that says what came of the run."""
    label, (text, colour) = f"wcodec {FORMAT}", verdict(reports)
    left, right = (round(_CHAR * len(part) + 12) for part in (label, text))
    words = "".join(
        f'<text x="{x}" y="14" textLength="{width - 12}">{escape(part)}</text>'
        for x, width, part in ((6, left, label), (left + 6, right, text))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'aria-label="{escape(label)}: {escape(text)}">'
        f"<title>{escape(label)}: {escape(text)}</title>"
        f'<rect width="{left}" height="20" fill="#444"/>'
        f'<rect x="{left}" width="{right}" height="20" fill="{colour}"/>'
        f'<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">{words}</g>'
        "</svg>\n"
    )
