"""A sample of the conformance suite for runs that are dear: few and small cases, which together
hold whatever any case holds.

    python conformance_sample.py BACKEND [KIND/ ...]

runs it, or but some kinds of its checks, and prints JSON: what failed, how many checks passed, and
the kernels that the emulator ran.
"""

from __future__ import annotations

import gc
import json
import sys
from types import ModuleType
from typing import Any

from cuda_emulator import EmulatedRuntime

from wcodec import conformance
from wcodec.backends import load_backend
from wcodec.codec.sources import BufferSource
from wcodec.conformance import kernels, sweeps, threads
from wcodec.conformance.cases import Case, Vectors, load
from wcodec.conformance.coded import parts_of
from wcodec.reference import container
from wcodec.reference.segments import Coder

#: checks that are cheap, with `FEWER`
ALWAYS = ("reject/", "either/", "prefixes/", "duty/", "payload/")
CHOSEN = ("accept/", "kernels/", "encode/")  #: checks of the cases that `cover` chooses
FEWER: tuple[tuple[ModuleType, str, Any], ...] = (
    (sweeps, "MOST_FLIPS", 4),
    (kernels, "MOST_SEGMENTS", 4),
    (
        threads,
        "THREADED",
        ("base_pairs", "modes_mixed", "context_scale_parts", "difference_mixed", "sparse_mixed"),
    ),
)


def features(case: Case) -> set[tuple[Any, ...]]:
    """What a case holds: flags, options, dtypes; by word size layouts, coders of planes, contexts,
    modes of planes and of tiles.
    """
    out: set[tuple[Any, ...]] = {("flag", flag) for flag in case.row["flags"]}
    out |= {
        ("option", name, str(value) if name not in ("segment", "tile") else "")
        for name, value in case.row.get("encode", {}).items()
    }
    index = container.read_index(BufferSource(case.data))
    for t in index.tensors:
        out |= {
            ("dtype", t.dtype.name),
            ("difference", t.difference, t.dtype.word_nbytes),
            ("sparse", t.lists is not None, t.difference, t.dtype.word_nbytes),
            ("duplicate", t.duplicate_of is not None),
        }
    for t in (part for whole in index.tensors for part in parts_of(whole)):
        plan, s, n = t.plan(index.tables), t.segments, t.dtype.word_nbytes
        out |= {("patches", n, k > 0) for k in s.n_patches.tolist()} | {
            ("mode", n, m) for m in set(s.prediction.reshape(-1).tolist())
        }
        planes = zip(
            s.layout.tolist(), s.coder.T.tolist(), s.prediction.any(0).tolist(), strict=True
        )
        out |= {("planes", n, layout, *coders, predicted) for layout, coders, predicted in planes}
        out |= {
            ("precision", index.tables[i].prob_bits)
            for i in s.table[s.coder == Coder.RANS].tolist()
        }
        for layout, i in {
            (int(s.layout[k]), int(s.table[p, k]))
            for p, k in zip(*(s.coder == Coder.CONTEXT).nonzero(), strict=True)
        }:
            used = index.tables.maps[i]
            out |= {
                ("context", n, layout, used.kind),
                ("precision", index.tables[used.tables[0]].prob_bits),
            }
        for at, nbytes in zip(
            (plan.offsets[:-1] + t.payload_offset).tolist(), plan.modes_nbytes.tolist(), strict=True
        ):
            out |= {("tile mode", n, mode) for mode in case.data[at : at + nbytes]}
    return out


def cover(vectors: Vectors) -> list[str]:
    """Names of cases that are accepted, each the one that adds most features for what it costs,
    until none adds any.
    """
    accepted = [case for case in vectors.cases if case.expect == "accept"]
    held = {case.name: features(case) for case in accepted}
    # in bytes, about
    cost = {
        case.name: sum(t["nbytes"] for t in case.row["tensors"])
        + 2000 * (1 + len(case.row["tensors"]))
        for case in accepted
    }
    chosen, left = list[str](), set[tuple[Any, ...]]().union(*held.values())
    while left:
        chosen.append(max(held, key=lambda name: len(held[name] & left) / cost[name]))
        left -= held[chosen[-1]]
    return chosen


def main(backend: str, *kinds: str) -> None:
    """See the module."""
    for module, name, value in FEWER:
        assert hasattr(module, name)
        setattr(module, name, value)
    kinds = kinds or (*ALWAYS, *CHOSEN)
    names = [kind + name for name in cover(load()) for kind in kinds if kind in CHOSEN]
    report = conformance.run(
        load_backend(backend), select=[*(kind for kind in kinds if kind in ALWAYS), *names]
    )
    found = {
        "failed": [str(o) for o in report.failed],
        "passed": report.totals["passed"],
        "launched": sorted(EmulatedRuntime.launched),
    }
    print(json.dumps(found | report.info))


if __name__ == "__main__":
    gc.disable()  # it has a tenth of the time that numba takes to compile
    main(*sys.argv[1:])
