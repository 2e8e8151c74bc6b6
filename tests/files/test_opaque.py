"""Tensors of dtypes that the format has no id for: the header that the file keeps says what they
are, and parts of them count as it does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inputs import safetensors_bytes

import wcodec
from wcodec.codec.encoder import Encoder
from wcodec.files.checkpoint import decode_file, encode_file
from wcodec.inspect.report import describe
from wcodec.reference.planes import OPAQUE

RNG = np.random.default_rng(3)
BYTES = RNG.integers(0, 256, (6, 700, 90), np.uint8)  # several segments
#: names, dtypes, shapes, and the shape in bytes of each
STATED = {
    "f4": ("F4", [6, 700, 180], (6, 700, 90)),
    "flat": ("F4", [756_000], (378_000,)),
    "f6": ("F6_E2M3", [700, 720], (700, 540)),
    "f6b": ("F6_E3M2", [4, 8], (4, 6)),
    "later": ("F12", [20, 10], (20, 15)),
    "wide": ("F128", [3, 5], (3, 80)),
    "none": ("F4", [0, 8], (0, 4)),
    "narrow": ("F4", [3, 0, 2], (3, 0, 1)),
}


def data_of(name: str) -> np.ndarray:
    shape = STATED[name][2]
    return BYTES.reshape(-1)[: int(np.prod(shape))].reshape(shape)


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    """A ``.wcodec`` file of all of them."""
    entries = [(n, dtype, shape, data_of(n).tobytes()) for n, (dtype, shape, _) in STATED.items()]
    (tmp_path / "in").write_bytes(safetensors_bytes(entries))
    encode_file(tmp_path / "in", tmp_path / "coded")
    return tmp_path / "coded"


@pytest.mark.parametrize("name", STATED)
def test_a_header_says_what_they_are(coded: Path, name: str) -> None:
    dtype, shape, packed = STATED[name]
    with wcodec.open(coded) as f:
        part = f.get_slice(name)
        assert (part.get_dtype(), part.get_shape()) == (dtype, shape)
        assert f"{dtype}, shape {shape}" in repr(part)
        found = part[...]
        assert (found.dtype, found.shape) == (np.uint8, packed)
        assert found.tobytes() == f.get_tensor(name).tobytes() == data_of(name).tobytes()


INDICES: list[tuple[Any, Any]] = [
    (2, 2),
    (-1, -1),
    (slice(1, 3), slice(1, 3)),
    (slice(None, None, -2), slice(None, None, -2)),
    (slice(4, 4), slice(4, 4)),
    ((slice(5, 1, -3), 7), (slice(5, 1, -3), 7)),
    ((3, slice(None, None, 101)), (3, slice(None, None, 101))),
    ((3, slice(650, 2, -50), slice(10, 14)), (3, slice(650, 2, -50), slice(5, 7))),
    ((..., slice(2, 178)), (..., slice(1, 89))),
    ((0, 0, slice(0, 0)), (0, 0, slice(0, 0))),
    (
        (slice(2, 4), slice(699, None), slice(-2, None)),
        (slice(2, 4), slice(699, None), slice(-1, None)),
    ),
]


@pytest.mark.parametrize(("index", "of_bytes"), INDICES, ids=lambda i: str(i).replace("None", ""))
def test_parts_count_in_elements(coded: Path, index: Any, of_bytes: Any) -> None:
    wanted = BYTES[of_bytes]
    with wcodec.open(coded) as f:
        found = f.get_slice("f4")[index]
    assert found.shape == wanted.shape
    assert found.tobytes() == wanted.tobytes()
    assert found.flags.c_contiguous


def test_parts_of_other_widths(coded: Path) -> None:
    with wcodec.open(coded) as f:
        assert (
            f.get_slice("flat")[123_456:654_320].tobytes()
            == data_of("flat")[61_728:327_160].tobytes()
        )
        assert f.get_slice("f6")[10:12, 4:8].tobytes() == data_of("f6")[10:12, 3:6].tobytes()
        assert f.get_slice("later")[3, 2:6].tobytes() == data_of("later")[3, 3:9].tobytes()
        assert f.get_slice("wide")[2, 1:3].tobytes() == data_of("wide")[2, 16:48].tobytes()


def test_entries(coded: Path) -> None:
    with wcodec.open(coded) as f:
        part = f.get_slice("f4")
        for ids in ([1, 1, 4], [5], []):
            picked = np.array(ids, np.int64)
            found = part.take(picked)
            assert found.shape == (len(ids), 700, 90)
            assert found.tobytes() == BYTES[picked].tobytes()
        for wrong in ([-1, 2], [2, 6], [3, 1]):
            with pytest.raises(IndexError, match="do not ascend, or one is out of bounds"):
                part.take(np.array(wrong, np.int64))
        with pytest.raises(IndexError, match="no whole bytes"):
            f.get_slice("flat").take(np.array([2]))


@pytest.mark.parametrize(
    ("name", "index", "message"),
    [
        ("f4", (0, 0, 0), "slices of whole bytes, of 2 elements or a multiple"),
        ("f4", (0, 0, slice(1, 3)), "whole bytes"),
        ("f4", (0, 0, slice(0, 3)), "whole bytes"),
        ("f4", (0, 0, slice(0, 8, 2)), "whole bytes"),
        ("f6", (0, slice(0, 2)), "of 4 elements or a multiple"),
        ("f4", 6, "out of bounds"),
        ("f4", (0, 0, slice(None), 0), "too many indices"),
    ],
)
def test_parts_that_do_not_end_with_a_byte(
    coded: Path, name: str, index: Any, message: str
) -> None:
    with wcodec.open(coded) as f, pytest.raises(IndexError, match=message):
        f.get_slice(name)[index]


@pytest.mark.parametrize("shape", [[4, 3], [], [5]], ids=str)
def test_rows_that_do_not_end_with_a_byte(tmp_path: Path, shape: list[int]) -> None:
    (tmp_path / "in").write_bytes(safetensors_bytes([("a", "F4", shape, b"abcdef")]))
    encode_file(tmp_path / "in", tmp_path / "coded")
    with wcodec.open(tmp_path / "coded") as f:
        part = f.get_slice("a")
        assert (part.get_dtype(), part.get_shape()) == ("F4", shape)
        with pytest.raises(ValueError, match=r"no whole bytes: .*get_tensor gives all bytes"):
            part[...]
        assert f.get_tensor("a").tobytes() == b"abcdef"


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"\x08\0\0\0\0\0\0\0not JSON",
        safetensors_bytes([("other", "F4", [12], b"abcdef")])[:-6],
        safetensors_bytes([("a", "F4", [10], b"abcde")])[:-5],
        safetensors_bytes([("a", "F16", [3], b"abcdef")])[:-6],
    ],
    ids=["none", "empty", "no JSON", "another name", "another size", "a dtype that is known"],
)
def test_without_a_header_that_describes_them_they_are_bytes(
    tmp_path: Path, header: bytes | None
) -> None:
    """A decoder need not check a header (R4.21): it is a stranger's."""
    with (tmp_path / "a").open("wb") as f:
        writer = Encoder().start(f)
        writer.add_words("a", np.frombuffer(b"abcdef", np.uint8), OPAQUE, (6,), "F4")
        writer.finish(None, header)
    with wcodec.open(tmp_path / "a") as opened:
        part = opened.get_slice("a")
        assert (part.get_dtype(), part.get_shape()) == ("U8", [6])
        assert part[1:3].tobytes() == b"bc"
    decode_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes().endswith(b"abcdef")


def test_equal_bytes_of_two_shapes_keep_both(tmp_path: Path) -> None:
    data = BYTES.tobytes()[:3000]
    entries = [("a", "F4", [60, 100], data), ("b", "F4", [100, 60], data)]
    (tmp_path / "in").write_bytes(safetensors_bytes(entries))
    encode_file(tmp_path / "in", tmp_path / "coded")
    with wcodec.open(tmp_path / "coded") as f:
        assert f.record("b").duplicate_of == 0
        assert f.get_slice("a").get_shape() == [60, 100]
        assert f.get_slice("b").get_shape() == [100, 60]
        shapes = [(t["dtype"], t["shape"]) for t in describe(f)["tensors"]]
    assert shapes == [("F4", [60, 100]), ("F4", [100, 60])]


def test_info_counts_elements(coded: Path) -> None:
    with wcodec.open(coded) as f:
        for t in describe(f)["tensors"]:
            dtype, shape, packed = STATED[t["name"]]
            n = int(np.prod(shape))
            assert (t["dtype"], t["shape"]) == (dtype, shape)
            assert t["nbytes"] == np.prod(packed)
            assert t["bits_per_weight"] == (8 * t["stored_nbytes"] / n if n else None)
