"""What is taken for an array: what holds more than values is refused, and nothing is lost in
silence.
"""

from __future__ import annotations

import array
import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inputs import bits

import wcodec
from wcodec.codec.encoder import Encoder
from wcodec.errors import EncodeError

VALUES = np.linspace(-1, 1, 600, dtype=np.float32).reshape(20, 30)


class Quantity(np.ndarray):
    """An array with a unit, as of astropy and unyt."""

    unit = "m"


class Table:
    """Values with labels, as of pandas and xarray."""

    labels = ("a", "b")

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return VALUES


class Device(Table):
    """Values elsewhere: it speaks DLPack, as arrays of JAX and CuPy do."""

    def __dlpack__(self, **_: Any) -> Any:
        raise NotImplementedError


class Far(Device):
    """Such an array that does not come to the host unasked, as CuPy's."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError("implicit conversion is not allowed.\nCall get()")


RECORDS = np.zeros(3, [("x", "f4"), ("y", "i4")])
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "masked": (lambda: np.ma.masked_less(VALUES, 0), r"MaskedArray.*array\.data and array\.mask"),
    "masked, no mask": (lambda: np.ma.array(VALUES), "MaskedArray"),
    "masked constant": (lambda: np.ma.masked, "MaskedConstant.*array.mask"),
    "list of masked": (lambda: [np.ma.masked_less(VALUES[0], 0)], "a list is not stored"),
    "quantity": (lambda: VALUES.view(Quantity), "a Quantity .*numpy.asarray of it"),
    "table": (Table, "a Table .*would be lost"),
    "far": (Far, "a Far .*implicit conversion is not allowed"),
    "records": (lambda: RECORDS, "each field by itself"),
    "recarray": (lambda: RECORDS.view(np.recarray), "a recarray"),
    "one record": (lambda: RECORDS[0], "each field by itself"),
    "characters": (lambda: np.char.array(["a"]), "a chararray"),
    "objects": (lambda: np.array([1, None]), "'object' has no id in the format; store numbers"),
    "fractions": (lambda: [Fraction(1, 3)], "'object'"),
    "text": (lambda: np.array(["text"]), r"view\('uint8'\)"),
    "bytes": (lambda: np.array([b"text"]), r"view\('uint8'\)"),
    "dates": (lambda: np.zeros(3, "M8[s]"), r"datetime64.*view\('int64'\), and keep the unit"),
    "spans": (lambda: np.zeros(3, "m8[ns]"), r"timedelta64.*view\('int64'\), and keep the unit"),
    "long": (lambda: np.zeros(3, np.longdouble), r"view\('uint8'\)"),
    "metadata": (lambda: np.zeros(3, np.dtype("i4", metadata={"enum": 1})), "has metadata"),
    "ragged": (lambda: [[1], [1, 2]], "inhomogeneous"),
    "text alone": (lambda: "text", "a str"),
    "nothing": (lambda: None, "a NoneType"),
    "gradient": (lambda: torch.ones(3, requires_grad=True), r"wcodec\.torch\.save_file"),
    "torch bf16": (lambda: torch.ones(3, dtype=torch.bfloat16), r"wcodec\.torch\.save_file"),
    "torch sparse": (lambda: torch.eye(3).to_sparse(), r"wcodec\.torch\.save_file"),
    "meta": (lambda: torch.ones(3, device="meta"), r"wcodec\.torch\.save_file"),
}
TAKEN: dict[str, tuple[Any, np.ndarray]] = {
    "byte order": (VALUES.astype(">f4"), VALUES),
    "matrix": (VALUES.view(np.matrix), VALUES),
    "strided": (VALUES.T[::-2], VALUES.T[::-2]),
    "number": (1.5, np.array(1.5)),
    "scalar": (np.float32(1.5), np.array(1.5, np.float32)),
    "list": ([[1, 2], (3, 4)], np.array([[1, 2], [3, 4]])),
    "view": (memoryview(VALUES), VALUES),
    "bytearray": (bytearray(b"abc"), np.frombuffer(b"abc", np.uint8)),
    "array": (array.array("h", [1, -2]), np.array([1, -2], np.int16)),
    "DLPack": (Device(), VALUES),
    "tensor": (torch.from_numpy(VALUES), VALUES),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:.*invariant checks:UserWarning")
def test_what_holds_more_than_values_is_refused(tmp_path: Path, name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(EncodeError, match=message) as e:
        wcodec.save_file({"fine": VALUES, "bad": make()}, tmp_path / "a")
    assert (e.value.code, e.value.tensor) == ("unsupported_dtype", "bad")
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EncodeError, match=message):
        wcodec.encode(make())
    writer = Encoder().start(io.BytesIO())
    with pytest.raises(EncodeError, match=message) as e:
        writer.add("bad", make())
    assert e.value.tensor == "bad"


@pytest.mark.parametrize("name", TAKEN)
def test_what_holds_values_alone_is_kept(tmp_path: Path, name: str) -> None:
    given, wanted = TAKEN[name]
    wcodec.save_file({"w": given}, tmp_path / "a")
    for found in (wcodec.load_file(tmp_path / "a")["w"], wcodec.decode(wcodec.encode(given))):
        assert (found.dtype, found.shape, bits(found)) == (wanted.dtype, wanted.shape, bits(wanted))


def test_a_mapped_array_is_kept(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", VALUES)
    mapped = np.load(tmp_path / "w.npy", mmap_mode="r")
    assert type(mapped) is np.memmap
    assert bits(wcodec.decode(wcodec.encode(mapped))) == bits(VALUES)


def test_nothing_is_decoded_under_a_mask() -> None:
    out = np.ma.masked_less(VALUES, 0)
    with pytest.raises(ValueError, match="out must be"):
        wcodec.decode(wcodec.encode(VALUES), out)
