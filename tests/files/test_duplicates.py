"""Tensors that a checkpoint holds twice: stored once, found by all of their bytes,
and read like any other.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulator.streams import LazyRuntime
from inputs import BY_NAME, bits, make_array, safetensors_bytes

import wcodec
from wcodec.backends import Backend, load_backend
from wcodec.codec.encoder import Encoder
from wcodec.cuda import Loader
from wcodec.errors import EncodeError
from wcodec.files.checkpoint import decode_file, encode_file, verify_file
from wcodec.files.duplicates import _MOST_ALIKE, LEAST_NBYTES, Duplicates
from wcodec.inspect.report import as_text, describe

EMBEDDING = make_array(BY_NAME["bfloat16"], (300, 200), "gaussian", 1)
OTHER = make_array(BY_NAME["bfloat16"], (300, 200), "gaussian", 2)
SMALL = make_array(BY_NAME["float32"], (40,), "gaussian")


def entry(name: str, array: Any, dtype: str = "BF16") -> tuple[str, str, list[int], bytes]:
    return name, dtype, list(array.shape), bits(array)


def duplicates_of(path: Path) -> dict[str, str | None]:
    with wcodec.open(path) as f:
        return {
            t.name: None if t.duplicate_of is None else f.index.tensors[t.duplicate_of].name
            for t in f.index.tensors
        }


def test_tied_embeddings_of_a_file(tmp_path: Path, backend: Backend) -> None:
    tensors = [
        entry("a", OTHER),
        entry("embed", EMBEDDING),
        entry("b", OTHER),
        entry("head", EMBEDDING),
        entry("third", EMBEDDING),
    ]
    data = safetensors_bytes(tensors, {"format": "pt"})
    (tmp_path / "in").write_bytes(data)
    (tmp_path / "once").write_bytes(safetensors_bytes(tensors[:2]))
    encode_file(tmp_path / "in", tmp_path / "coded", overwrite=True)
    encode_file(tmp_path / "once", tmp_path / "coded once", overwrite=True)
    assert duplicates_of(tmp_path / "coded") == {
        "a": None,
        "embed": None,
        "b": "a",
        "head": "embed",
        "third": "embed",
    }
    assert (tmp_path / "coded").stat().st_size < (tmp_path / "coded once").stat().st_size + 600
    decode_file(tmp_path / "coded", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").read_bytes() == data
    assert verify_file(tmp_path / "coded")[1] == len(data)


def test_tied_embeddings_of_a_dict(tmp_path: Path, backend: Backend) -> None:
    path = tmp_path / "f.wcodec"
    transposed = np.asfortranarray(EMBEDDING)  # the same elements in other places of memory
    tensors = {
        "embed": EMBEDDING,
        "x": OTHER,
        "head": EMBEDDING,
        "copy": transposed,
        "turned": EMBEDDING.T,
    }
    wcodec.save_file(tensors, path)
    assert duplicates_of(path) == {
        "embed": None,
        "x": None,
        "head": "embed",
        "copy": "embed",
        "turned": None,
    }
    with wcodec.open(path) as f:
        for name, array in tensors.items():
            assert bits(f.get_tensor(name)) == bits(array)
            assert bits(f.get_slice(name)[5:90:7, 30:]) == bits(array[5:90:7, 30:])
        assert f.index.data_nbytes == 5 * EMBEDDING.nbytes
    loaded = wcodec.load_file(path)
    assert not np.shares_memory(loaded["embed"], loaded["head"])


def nearly(words: np.ndarray[Any, Any], at: int) -> np.ndarray[Any, Any]:
    out = words.copy()
    out[at] ^= 1
    return out


def test_what_is_nearly_the_same_is_not_a_duplicate(tmp_path: Path) -> None:
    """Wherever the one bit is: no checksum and no sample decides."""
    words, dtype = np.arange(40_000, dtype=np.uint16), BY_NAME["uint16"]
    seen = Duplicates()
    assert seen.find(words, dtype, (40_000,), "", lambda: words) is None
    for at in (0, 1, 15, 16, 100, 20_000, 39_900, 39_999):
        assert (
            seen.find(nearly(words, at), dtype, (40_000,), "", lambda at=at: nearly(words, at))
            is None
        )  # type: ignore[misc]
    n = 9
    assert seen.find(words.copy(), dtype, (40_000,), "", lambda: words) == 0
    for other, shape, name in (
        (BY_NAME["int16"], (40_000,), ""),
        (dtype, (200, 200), ""),
        (dtype, (40_000,), "F4"),
    ):
        assert seen.find(words, other, shape, name, lambda: words) is None
        n += 1
    assert seen._n == n + 1


def test_looking_for_duplicates_is_bounded() -> None:
    """Of tensors alike in the places that are looked at first, only so many are compared."""
    words, seen, calls = np.zeros(100_000, np.uint8), Duplicates(), []
    for i in range(100):
        mine = words.copy()
        mine[50] = i + 1

        def again(mine: Any = mine) -> Any:
            calls.append(1)
            return mine

        assert seen.find(mine, BY_NAME["uint8"], (100_000,), "", again) is None
    assert len(calls) <= 100 * _MOST_ALIKE


def test_small_tensors_are_left_alone(tmp_path: Path) -> None:
    assert SMALL.nbytes < LEAST_NBYTES
    wcodec.save_file(
        {"a": SMALL, "b": SMALL, "c": np.empty((0, 3)), "d": np.empty((0, 3))}, tmp_path / "f"
    )
    assert set(duplicates_of(tmp_path / "f").values()) == {None}


def test_opaque_dtypes_keep_their_names(tmp_path: Path) -> None:
    data = safetensors_bytes(
        [(n, t, [1200], bytes(600)) for n, t in (("a", "F4"), ("b", "F4"), ("c", "F6"))]
    )
    (tmp_path / "in").write_bytes(data)
    encode_file(tmp_path / "in", tmp_path / "coded")
    assert duplicates_of(tmp_path / "coded") == {"a": None, "b": "a", "c": None}
    with wcodec.open(tmp_path / "coded") as f:
        assert [f.get_slice(n).get_dtype() for n in "abc"] == ["F4", "F4", "F6"]


def test_by_hand(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as f:
        writer = Encoder().start(f)
        writer.add("a", OTHER)
        writer.add_duplicate("b", 0)
        assert writer.add_duplicate("c", 1).duplicate_of == 0
        with pytest.raises(EncodeError, match="bad_name"):
            writer.add_duplicate("a", 0)
        writer.finish()
    assert all(bits(a) == bits(OTHER) for a in wcodec.load_file(tmp_path / "f").values())
    assert duplicates_of(tmp_path / "f") == {"a": None, "b": "a", "c": "a"}


def test_info(tmp_path: Path) -> None:
    wcodec.save_file({"embed": EMBEDDING, "head": EMBEDDING}, tmp_path / "f")
    with wcodec.open(tmp_path / "f") as f:
        report = describe(f)
    first, second = report["tensors"]
    assert (first["duplicate_of"], second["duplicate_of"]) == (None, "embed")
    assert second["stored_nbytes"] == 0
    assert report["payload_nbytes"] == first["stored_nbytes"]
    assert report["layouts"] == first["layouts"]
    assert any(line.endswith("duplicate of embed") for line in as_text(report))


def test_on_a_device(tmp_path: Path) -> None:
    tensors = {"embed": EMBEDDING, "x": OTHER, "head": EMBEDDING}
    wcodec.save_file(tensors, tmp_path / "f", base=None)
    with Loader(runtime_of=lambda device: LazyRuntime(device or 0)) as loader:
        for names in (None, ["head"]):
            for name, t in loader.load_file(tmp_path / "f", names).items():
                assert t.numpy().tobytes() == bits(tensors[name])


def test_all_backends_write_the_same(tmp_path: Path) -> None:
    data = safetensors_bytes([entry("a", OTHER), entry("b", OTHER)])
    (tmp_path / "in").write_bytes(data)
    for name in ("reference", "numba"):
        encode_file(tmp_path / "in", tmp_path / name, None, load_backend(name))
    assert (tmp_path / "reference").read_bytes() == (tmp_path / "numba").read_bytes()


def test_many_duplicates_share_a_plan(tmp_path: Path) -> None:
    """Each adds its name, not the columns of all segments;
    a duplicate of a duplicate is one of the first.
    """
    options, stream = wcodec.EncodeOptions(segment=(1, 1)), io.BytesIO()
    writer = Encoder(options).start(stream)
    writer.add("0", np.zeros((40, 50), np.uint8))
    for i in range(1, 300):
        writer.add_duplicate(str(i), i - 1)
    writer.finish()
    with wcodec.File(io.BytesIO(stream.getvalue())) as file:
        plans = {id(t.plan(file.index.tables)) for t in file.index.tensors}
        assert len(plans) == 1
        assert {t.duplicate_of for t in file.index.tensors[1:]} == {0}
        tensors = describe(file)["tensors"]
        assert [t["duplicate_of"] for t in tensors] == [None] + ["0"] * 299
        assert {t["order0_bits_per_weight"] for t in tensors} == {0.0}
