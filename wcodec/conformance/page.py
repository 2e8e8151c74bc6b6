"""What came of the suite as one page of HTML, which needs nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from wcodec.conformance.cases import Case, Vectors
from wcodec.conformance.documents import FORMAT, cell, features_of, grouped, matrix, verdict
from wcodec.conformance.runner import Outcome, Report, case_of

MOST_HEX: Final = 256  #: bytes of a file that are shown
MOST_FAILED: Final = 50  #: checks that are named in an entry of the matrix

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fff; --line: #d0d7de;
  --good: #1a7f37; --bad: #b3261e; --quiet: #59636e; --shade: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --line: #3d444d;
  --good: #3fb950; --bad: #ff7b72; --quiet: #9198a1; --shade: #151b23; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { border: 1px solid var(--line); padding: .25rem .6rem; text-align: left;
  vertical-align: top; }
thead th { background: var(--shade); position: sticky; top: 0; }
.passed { color: var(--good); } .failed { color: var(--bad); } .quiet { color: var(--quiet); }
a { color: inherit; } pre { background: var(--shade); padding: .6rem; overflow-x: auto; }
summary { cursor: pointer; } :focus-visible { outline: 2px solid; outline-offset: 2px; }
details details { margin-left: 1rem; }
"""
#: opens the vector that a link leads to
_SCRIPT: Final = """
function open_target() {
  const at = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (at) { for (let e = at; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
    at.scrollIntoView(); at.querySelector("summary").focus(); }
}
addEventListener("hashchange", open_target); open_target();
"""


def as_html(reports: Sequence[Report], vectors: Vectors) -> str:
    """The page: features by decoder, what failed, and each vector with its rules and bytes."""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>wcodec conformance</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>",
            f"<h1>Conformance to wcodec {FORMAT}: {escape(verdict(reports)[0])}</h1>",
            *_summaries(reports),
            *_table(reports),
            *_failures(reports),
            *_vectors(reports, vectors),
            f"</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n",
        ]
    )


def _summaries(reports: Sequence[Report]) -> Iterator[str]:
    yield "<ul>"
    for r in reports:
        about = ", ".join(f"{k} {v}" for k, v in r.info.items())
        kind = "passed" if r.good else "failed" if r.failed else "quiet"
        yield (
            f'<li><strong>{escape(r.target)}</strong>: <span class="{kind}">'
            f"{escape(r.last_line)}</span>, {r.seconds:.1f} s"
            f"{f' <span class=quiet>({escape(about)})</span>' if about else ''}</li>"
        )
    yield "</ul>"


def _link(id: str) -> str:
    case = case_of(id)
    return escape(id) if id.startswith("duty/") else f'<a href="#{escape(case)}">{escape(id)}</a>'


def _cell(count: Counter[str], failed: list[Outcome]) -> str:
    kind = "failed" if count["failed"] else "passed" if count["passed"] else "quiet"
    text = f'<span class="{kind}">{escape(cell(count))}</span>'
    if not failed:
        return f"<td>{text}</td>"
    items = "".join(f"<li>{_link(o.id)}</li>" for o in failed[:MOST_FAILED])
    more = f"<li>{len(failed) - MOST_FAILED} more</li>" if len(failed) > MOST_FAILED else ""
    return f"<td><details><summary>{text}</summary><ul>{items}{more}</ul></details></td>"


def _table(reports: Sequence[Report]) -> Iterator[str]:
    names = "".join(f'<th scope="col">{escape(r.target)}</th>' for r in reports)
    yield '<h2>Features by decoder</h2>\n<div class="wide"><table>\n<thead><tr>'
    yield f'<th scope="col">Kind of check, or flag of its vector</th>{names}</tr></thead>\n<tbody>'
    for name, row in matrix(reports).items():
        cells = "".join(
            _cell(c, [o for o in r.failed if name == "all" or name in features_of(o)])
            for r, c in zip(reports, row, strict=True)
        )
        yield f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    yield "</tbody></table></div>"


def _failures(reports: Sequence[Report]) -> Iterator[str]:
    for r in (r for r in reports if r.failed):
        yield f"<h2>What failed: {escape(r.target)}</h2>"
        for group in grouped(r.failed):
            ids = ", ".join(_link(o.id) for o in group[:MOST_FAILED])
            n = f" ({len(group)} alike)" if len(group) > 1 else ""
            yield (
                f'<details><summary><span class="failed">{escape(group[0].id)}</span>{n}: '
                f"{escape(group[0].message)}</summary><p>{ids}</p></details>"
            )


def _vectors(reports: Sequence[Report], vectors: Vectors) -> Iterator[str]:
    of: dict[str, list[tuple[str, Outcome]]] = {}
    for r in reports:
        for o in r.outcomes:
            of.setdefault(case_of(o.id), []).append((r.target, o))
    yield "<h2>Vectors</h2>"
    for case in vectors.cases:
        outcomes = of.get(case.id, [])
        worst = next(
            (kind for kind in ("failed", "passed") if any(o.outcome == kind for _, o in outcomes)),
            "quiet",
        )
        id = escape(case.id)
        yield f'<details id="{id}"><summary class="{worst}">{id}</summary>{_about(case)}'
        yield "<ul>"
        for target, o in outcomes:
            if o.outcome in ("passed", "failed"):
                why = f": {escape(o.message)}" if o.message else ""
                yield (
                    f"<li>{escape(target)}, {escape(o.id)}: "
                    f'<span class="{o.outcome}">{o.outcome}</span>{why}</li>'
                )
        yield f"</ul><pre>{escape(hex_of(case))}</pre></details>"


def _about(case: Case) -> str:
    row = case.row
    due = f"{case.expect} ({row['code']})" if "code" in row else case.expect
    return (
        f"<p>{escape(row.get('comment', ''))}</p><p>Expected: {escape(due)}. Rules: "
        f"{escape(', '.join(case.rules))}. Features: {escape(', '.join(row.get('flags', [])))}.</p>"
    )


def hex_of(case: Case) -> str:
    """The first bytes of a file, 16 a line, with their offsets."""
    data = case.path.read_bytes()
    lines = [
        f"{at:06x}  {data[at : at + 16].hex(' '):<47}  "
        + "".join(chr(b) if 32 <= b < 127 else "." for b in data[at : at + 16])
        for at in range(0, min(len(data), MOST_HEX), 16)
    ]
    if len(data) > MOST_HEX:
        lines.append(f"{len(data) - MOST_HEX} of {len(data)} bytes more")
    return "\n".join(lines)
