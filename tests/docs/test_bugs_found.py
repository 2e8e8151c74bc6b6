"""What docs/bugs_found.md names is there."""

from __future__ import annotations

import re

import pytest
from paths import ROOT

PAGE = (ROOT / "docs" / "bugs_found.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)))


@pytest.mark.parametrize(("path", "test"), NAMED)
def test_what_holds_a_bug_is_there(path: str, test: str) -> None:
    assert re.search(rf"^def {test or 'test_'}", (ROOT / path).read_text(), re.MULTILINE)


def test_every_bug_says_how_it_was_found_and_what_holds_it() -> None:
    bugs = re.findall(r"^- (.*?)(?=^- |^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert len(bugs) > 25
    for bug in bugs:
        text = " ".join(bug.split())
        assert re.fullmatch(r"2026-1[12]-\d\d(, [0-9a-f]{7})?: .+ Found by .+ Held by .+\.", text)
