"""That each case of `reject` shows what it is named for: ``spec/decoder.py`` with one check
less, or with a mistake, is seen by the exit status alone.
"""

from __future__ import annotations

from typing import Any

import masks
import pytest
from mutants import MUTANTS

from wcodec.conformance.cases import Case, Vectors, load, sha256


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return load()


def base_of(case: Case) -> bytes:
    return b"" if case.checkpoint is None else case.checkpoint.data


def test_refused_files_break_one_rule(vectors: Vectors) -> None:
    """Or the manifest says which other one they break, and `masks` why. And every check of the
    decoder has a file that nothing else refuses.
    """
    decoder, shown = masks.Switched(), set[tuple[int, int]]()
    for case in (c for c in vectors.cases if c.expect == "reject"):
        found = masks.refusals(decoder, case.data, base_of(case), 2)
        other = masks.masked_by(case.id, found)
        assert case.row.get("masked_by") == other, case.id
        if other is None:
            shown.add((found[0].line, found[0].part))
    left = sorted(text for check, text in masks.conditions().items() if check not in shown)
    assert left == [
        "4 * t.n_segments <= body.left(): 'R4.38'",  # what does not fit is missing later
        "4 * t.n_segments <= body.left(): 'R4.38'",
        "base_data != b'': 'R12.6 (no base is given)'",
        "file.data_nbytes <= MOST_NBYTES: 'chapter 16'",  # files of gigabytes
        "file.payload_end <= index_offset: 'R4.33'",  # the last one has to end there
        "foot.index_offset >= 32: 'R4.10'",
        "foot.index_raw_nbytes <= MOST_INDEX_NBYTES: 'chapter 16'",
        "least <= n_units: 'R9.10, R10.6'",
        "len(data) >= 32: 'R4.2'",
        "len(data) >= 96: 'R4.6'",
        "may_be_large or max(column) <= 255: 'R4.39'",
        "zeros <= 12: 'R9.7'",
    ]


def outcome(decoder: dict[str, Any], case: Case) -> bool:
    """Whether a decoder does with a case what it has to."""
    try:
        parts: list[bytes] = decoder["decode_file"](case.data, base_of(case))
    except Exception:  # a program that fails has refused the file
        return case.expect == "reject"
    return case.expect == "accept" and sha256(b"".join(parts)) == case.row["restored_sha256"]


@pytest.mark.parametrize(("what", "old", "new", "case"), MUTANTS)
def test_mistakes_are_seen(vectors: Vectors, what: str, old: str, new: str, case: str) -> None:
    source = masks.DECODER.read_text(encoding="utf-8")
    assert source.count(old) == 1
    decoders = list[dict[str, Any]]()
    for text in (source, source.replace(old, new)):
        decoders.append({"__name__": "mutant"})
        exec(compile(text, "decoder.py", "exec"), decoders[-1])
    good, mutant = decoders
    assert outcome(good, vectors[case])
    assert not outcome(mutant, vectors[case])
