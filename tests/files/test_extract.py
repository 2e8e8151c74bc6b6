"""Tensors taken out of a file as files of their own:
the same words, and no more tables than they name.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

import wcodec
from wcodec.backends import Backend
from wcodec.codec.decoder import Decoder
from wcodec.codec.sources import BufferSource
from wcodec.planner.options import EncodeOptions


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    wide = (rng.standard_normal((300, 260)) * 0.02).astype(np.float32)
    return {
        "a": wide,
        "b": (wide * 100).astype(np.float16),
        "heavy": rng.integers(0, 4, (128, 512)).astype(np.uint8),
        "same": wide,
        "empty": np.zeros((0, 3), np.int8),
        "scalar": np.array(3.5),
    }


@pytest.mark.parametrize("preset", ["default", "max"])
def test_each_tensor_as_a_file_of_its_own(backend: Backend, tmp_path: Path, preset: str) -> None:
    arrays = _weights()
    wcodec.save_file(arrays, tmp_path / "m.wcodec", options=EncodeOptions(preset=preset))
    with wcodec.open(tmp_path / "m.wcodec") as f:
        for name, array in arrays.items():
            stream = f.extract(name)
            back = wcodec.decode(stream)
            found = (back.dtype, back.shape, back.tobytes())
            assert found == (array.dtype, array.shape, array.tobytes())
            own, whole = Decoder(backend).read_index(BufferSource(stream)), f.index.tables
            assert len(own.tables) <= len(whole)
            assert own.tensors[0].payload_nbytes == f.record(name).payload_nbytes
        assert any(
            len(Decoder(backend).read_index(BufferSource(f.extract(n))).tables) < len(whole)
            for n in arrays
        )


def test_contexts_go_along(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    rows = rng.choice([1, 4, 16, 60], 512)[:, None]
    arrays = {f"w{i}": (rng.standard_normal((512, 512)) * rows).astype(np.int8) for i in range(2)}
    wcodec.save_file(arrays, tmp_path / "m.wcodec", options=EncodeOptions(preset="max"))
    with wcodec.open(tmp_path / "m.wcodec") as f:
        assert f.index.tables.maps, "this input is to be coded by contexts"
        for name, array in arrays.items():
            assert np.array_equal(wcodec.decode(f.extract(name)), array)


def test_from_a_file_object_and_of_a_difference(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    old = (rng.standard_normal((256, 256)) * 0.1).astype(np.float32)
    new = old.copy()
    new[3] += 1
    wcodec.save_file({"w": old}, tmp_path / "old.wcodec")
    wcodec.save_file({"w": new}, tmp_path / "new.wcodec", base=tmp_path / "old.wcodec")
    with wcodec.open(tmp_path / "new.wcodec") as f:
        assert f.record("w").difference
        assert np.array_equal(wcodec.decode(f.extract("w")), new)
    with wcodec.open(io.BytesIO((tmp_path / "old.wcodec").read_bytes())) as f:
        assert np.array_equal(wcodec.decode(f.extract("w")), old)
        with pytest.raises(KeyError):
            f.extract("v")


@pytest.mark.parametrize("shape", [(700, 64), (300, 5), (9, 30, 64), (300, 2, 3, 8), (50,)])
@pytest.mark.parametrize("dtype", [np.float16, np.complex64])
def test_entries_of_the_first_dimension(
    backend: Backend, shape: tuple[int, ...], dtype: type
) -> None:
    rng = np.random.default_rng(3)
    array = rng.standard_normal(shape).astype(dtype)
    with wcodec.open(
        wcodec.encode(
            array, EncodeOptions(segment=(16, 64), tile=(16, 64)) if shape == (700, 64) else None
        )
    ) as f:
        part = f.get_slice("")
        for n in (0, 1, 7, 40):
            ids = np.sort(rng.choice(shape[0], min(n, shape[0]), replace=False))
            assert np.array_equal(part.take(ids), array[ids])
        for wrong in ([shape[0]], [-1, 0]):
            with pytest.raises(IndexError):
                part.take(np.array(wrong))
    with wcodec.open(bytearray(wcodec.encode(np.array(1.5)))) as f, pytest.raises(IndexError):
        f.get_slice("").take(np.array([0]))
