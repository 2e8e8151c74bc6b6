"""Names in an index of shards: they are a stranger's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wcodec.errors import DecodeError
from wcodec.files.shard_index import is_plain_name, read_weight_map

NO_NAMES = ["", ".", "..", "a/b", "/a", "../a", "a/", "a\\b", "a\0", "./a"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_plain_name(name: str, tmp_path: Path) -> None:
    assert not is_plain_name(name)
    index = tmp_path / "model.wcodec.index.json"
    index.write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(DecodeError, match="bad_name") as e:
        read_weight_map(index, "")
    assert e.value.tensor == "w"


@pytest.mark.parametrize("name", ["a", "...", ".a", "a..b", "model-1.wcodec", " ", "é"])
def test_plain_names(name: str) -> None:
    assert is_plain_name(name)
