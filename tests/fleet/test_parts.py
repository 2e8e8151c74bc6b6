"""Parts of a file: coded on their own and joined, they are the bytes of one run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import safetensors.numpy
from models import arrays

import wcodec
from wcodec.codec.encoder import Encoder
from wcodec.codec.pipelining import Progress
from wcodec.files import parts
from wcodec.files.checkpoint import decode_file, encode_file
from wcodec.files.parts import encode_part, find_repeats, join_parts, part_starts
from wcodec.files.plain import PlainFile
from wcodec.files.safetensors_header import SafetensorsHeader
from wcodec.planner.options import EncodeOptions


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are so small that a small file has many."""
    monkeypatch.setattr(parts, "PART_NBYTES", 300_000)


def in_parts(source: Path, folder: Path, options: EncodeOptions, progress: Progress) -> Path:
    """A file that was encoded in parts, the last one first."""
    n, repeats = find_repeats(source)
    names = [folder / f"{i}.part" for i in range(n)]
    for i in reversed(range(n)):
        encode_part(source, names[i], part=i, repeats=repeats, options=options, progress=progress)
    joined = folder / "joined.wcodec"
    sizes = join_parts(source, joined, parts=names, repeats=repeats)
    assert sizes == (source.stat().st_size, joined.stat().st_size)
    return joined


@pytest.mark.parametrize("preset", ["fast", "default", "max"])
def test_joined_parts_are_the_file(tmp_path: Path, small_parts: None, preset: str) -> None:
    tensors = arrays(0, 6) | {"empty": np.zeros((0, 3), np.float32), "scalar": np.float64(2.0)}
    tensors |= arrays(1, 3) | {"1.again": tensors["0.3.w"], "z": tensors["0.0.norm"]}
    source, one = tmp_path / "m.safetensors", tmp_path / "one.wcodec"
    safetensors.numpy.save_file({n: np.asarray(a) for n, a in tensors.items()}, source, {"a": "b"})
    options, done = EncodeOptions(preset=preset), list[int]()
    encode_file(source, one, options)
    n, repeats = find_repeats(source)
    header = PlainFile(source).header
    names = [t.name for t in header.tensors]
    assert n == len(part_starts(header)) > 3
    # across parts, and both sides of a tensor in one
    twice = {(names[i], names[of]) for i, of in repeats.items()}
    assert {frozenset(pair) for pair in twice} >= {
        frozenset(("0.tied", "0.0.w")),
        frozenset(("1.again", "0.3.w")),
        frozenset(("z", "0.0.norm")),
    }
    joined = in_parts(source, tmp_path, options, done.append)
    assert joined.read_bytes() == one.read_bytes()
    assert sum(done) == sum(t.nbytes for t in header.tensors)
    with wcodec.open(joined) as f:
        assert len(f.index.tables) > 1
        assert sum(t.duplicate_of is not None for t in f.index.tensors) == len(repeats)
    decode_file(joined, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def test_a_file_of_one_part(tmp_path: Path) -> None:
    for name, tensors in (("none", {}), ("some", {"a": arrays(0, 1)["0.0.w"]})):
        source, one = tmp_path / f"{name}.safetensors", tmp_path / f"{name}.wcodec"
        safetensors.numpy.save_file(tensors, source)
        encode_file(source, one)
        assert find_repeats(source) == (1, {})
        encode_part(source, tmp_path / "part", part=0, repeats={}, overwrite=True)
        join_parts(source, tmp_path / name, parts=[tmp_path / "part"], repeats={})
        assert (tmp_path / name).read_bytes() == one.read_bytes()


def test_parts_of_another_file_are_refused(tmp_path: Path, small_parts: None) -> None:
    for k in (0, 1):
        safetensors.numpy.save_file(arrays(k, 4), tmp_path / f"{k}.safetensors")
    source = tmp_path / "0.safetensors"
    n, repeats = find_repeats(source)
    names = [tmp_path / f"{i}" for i in range(n)]
    for i, name in enumerate(names):
        encode_part(source, name, part=i, repeats=repeats)
    other = tmp_path / "1.safetensors"
    with pytest.raises(wcodec.DecodeError, match=r"bad_value: .*not the part of the file"):
        join_parts(other, tmp_path / "out", parts=names, repeats=repeats)
    with pytest.raises(wcodec.EncodeError, match=f"{n - 1} parts of {n}"):
        join_parts(source, tmp_path / "out", parts=names[1:], repeats=repeats)
    with pytest.raises(wcodec.DecodeError, match="not the part of the file"):
        join_parts(source, tmp_path / "out", parts=names[::-1], repeats=repeats)
    assert not (tmp_path / "out").exists()
    with pytest.raises(wcodec.EncodeError, match="output_exists"):
        join_parts(source, names[0], parts=names, repeats=repeats)


def test_parts_share_the_numbers_of_tables() -> None:
    """However many parts there are, their tables can be numbered."""
    writer = Encoder().start(type("Sink", (), {"write": lambda *_: None})(), n_parts=512)
    assert writer.planner.tables.most * 512 <= 65535
    assert writer.planner.tables.most >= 127


def test_a_large_file_has_a_bounded_number_of_parts() -> None:
    tensors = [SimpleNamespace(nbytes=1 << 30) for _ in range(4096)]
    starts = part_starts(cast(SafetensorsHeader, SimpleNamespace(end=1 << 42, tensors=tensors)))
    assert 256 <= len(starts) <= 513
    assert starts[0] == 0
