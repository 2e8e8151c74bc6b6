"""Files: checkpoints there and back, slices, what is read for them, memory,
and nothing half-written.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from inputs import ARRAY_DTYPES, bits, make_array, safetensors_bytes
from memory import peak_of
from paths import VECTORS
from sampling import exhaustive

import wcodec
from wcodec.backends import Backend, use_backend
from wcodec.backends.numba.backend import NumbaBackend
from wcodec.codec.pipelining import CHUNK_BUFFERS, WriteBehind
from wcodec.errors import DecodeError, EncodeError
from wcodec.files.atomic import atomic_output
from wcodec.files.checkpoint import decode_file, encode_file, verify_file


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def there_and_back(folder: Path, data: bytes) -> bytes:
    """Bytes of the coded file, after the original has come back from it."""
    (folder / "in").write_bytes(data)
    sizes = encode_file(folder / "in", folder / "coded", overwrite=True)
    assert sizes == (len(data), (folder / "coded").stat().st_size)
    assert decode_file(folder / "coded", folder / "out", overwrite=True) == (sizes[1], len(data))
    assert (folder / "out").read_bytes() == data
    assert verify_file(folder / "coded") == (sizes[1], len(data))
    assert leftovers(folder) == ["coded", "in", "out"]
    return (folder / "coded").read_bytes()


GAUSSIAN = make_array(ARRAY_DTYPES[10], (300, 200), "gaussian")
CHECKPOINTS = {
    "empty": safetensors_bytes([]),
    "metadata alone": safetensors_bytes([], {"format": "pt", "empty": "", "snow": "\N{SNOWMAN}"}),
    "padded header": safetensors_bytes([("a", "F32", [2], bytes(8))], padding=13),
    "header out of order": safetensors_bytes(
        [(n, "U8", [3], n.encode() * 3) for n in "zax"], {"a": "b"}, order=[2, 0, 1]
    ),
    "names": safetensors_bytes(
        [(n, "I8", [1], b"x") for n in ("", "a/b", 'quote"d', "line\nbreak", "\N{SNOWMAN}")]
    ),
    "unknown dtypes": safetensors_bytes(
        [
            ("a", "F4", [4], b"ab"),
            ("b", "F6_E2M3", [4], b"abc"),
            ("c", "X" * 300, [7, 7], b"anything"),
        ]
    ),
    "no elements": safetensors_bytes(
        [
            ("a", "F32", [0], b""),
            ("b", "BF16", [3, 0, 2], b""),
            ("c", "I8", [1], b"c"),
            ("d", "F64", [0], b""),
        ]
    ),
    "scalars": safetensors_bytes(
        [("a", "F32", [], b"abcd"), ("b", "BOOL", [], b"\x01"), ("c", "C64", [], b"abcdefgh")]
    ),
    "booleans of other bytes": safetensors_bytes([("a", "BOOL", [3], b"\x00\x02\xff")]),
    "all dtypes": safetensors_bytes(
        [
            (d.name, d.safetensors, [30, 20], bits(make_array(d, (30, 20), "uniform", i)))
            for i, d in enumerate(ARRAY_DTYPES)
        ]
    ),
    "weights": safetensors_bytes(
        [("w", "BF16", [300, 200], bits(GAUSSIAN)), ("zeros", "F32", [100, 100], bytes(40_000))]
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_comes_back_byte_for_byte(backend: Backend, tmp_path: Path, name: str) -> None:
    coded = there_and_back(tmp_path, CHECKPOINTS[name])
    with use_backend("reference"):
        assert there_and_back(tmp_path, CHECKPOINTS[name]) == coded


def test_the_arrays_of_a_checkpoint_can_be_had(backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(CHECKPOINTS["unknown dtypes"])
    encode_file(tmp_path / "in", tmp_path / "coded")
    with wcodec.open(tmp_path / "coded") as f:
        assert f.keys() == ["a", "b", "c"]
        assert f.get_tensor("c").tobytes() == b"anything"
        assert f.get_slice("c").get_dtype() == "X" * 300
    (tmp_path / "in").write_bytes(CHECKPOINTS["weights"])
    encode_file(tmp_path / "in", tmp_path / "coded", overwrite=True)
    assert bits(wcodec.load_file(tmp_path / "coded")["w"]) == bits(GAUSSIAN)


HEADER = b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'


def with_header(raw: bytes, data: bytes = b"xy") -> bytes:
    return struct.pack("<Q", len(raw)) + raw + data


def entry(**changed: Any) -> bytes:
    return json.dumps(
        {"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]} | changed}
    ).encode()


BAD_SOURCES = {
    "no bytes": b"",
    "seven bytes": b"1234567",
    "a size beyond the file": struct.pack("<Q", 1000) + HEADER,
    "a size of 2^64 - 1": b"\xff" * 8 + HEADER,
    "not JSON": with_header(b"{not json"),
    "not UTF-8": with_header(HEADER.replace(b"a", b"\xff", 1)),
    "no object": with_header(b"[1, 2]"),
    "deeply nested": with_header(b"[" * 100_000),
    "a key twice": with_header(HEADER[:-1] + b"," + HEADER[1:]),
    "metadata that is no map": with_header(b'{"__metadata__":["x"]}', b""),
    "metadata of numbers": with_header(b'{"__metadata__":{"x":1}}', b""),
    "an entry that is no object": with_header(b'{"a":7}', b""),
    "no dtype": with_header(b'{"a":{"shape":[2],"data_offsets":[0,2]}}'),
    "three offsets": with_header(entry(data_offsets=[0, 1, 2])),
    "a dtype that is no text": with_header(entry(dtype=7)),
    "a shape that is no list": with_header(entry(shape=2)),
    "a negative dimension": with_header(entry(shape=[-2])),
    "a fractional dimension": with_header(entry(shape=[2.0])),
    "a true dimension": with_header(entry(shape=[2, True])),
    "offsets beyond the file": with_header(entry(data_offsets=[0, 3], shape=[3])),
    "a number of many digits": with_header(HEADER.replace(b"[2]", b"[" + b"9" * 5000 + b"]")),
    "offsets the wrong way": with_header(entry(data_offsets=[2, 0])),
    "a size unlike the shape": with_header(entry(shape=[3])),
    "a huge shape": with_header(entry(shape=[1 << 62, 1 << 62])),
    "a gap before": with_header(entry(data_offsets=[1, 3]), b"xyz"),
    "bytes left over": with_header(HEADER, b"xyz"),
    "an overlap": with_header(
        json.dumps(
            {
                n: {"dtype": "U8", "shape": [2], "data_offsets": [i, i + 2]}
                for i, n in enumerate("ab")
            }
        ).encode(),
        b"xyz",
    ),
    "a name that no file can hold": with_header(HEADER.replace(b'"a"', b'"\\ud800"')),
    "too many dimensions": with_header(entry(shape=[1] * 33 + [2])),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_checkpoint_that_is_not_well_formed_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").write_bytes(BAD_SOURCES[name])
    with pytest.raises(EncodeError) as e:
        encode_file(tmp_path / "in", tmp_path / "coded")
    assert e.value.code in {
        "a name that no file can hold": ["bad_name", "bad_source"],
        "too many dimensions": ["resource_limit"],
    }.get(name, ["bad_source"])
    assert leftovers(tmp_path) == ["in"]


def test_metadata_that_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(with_header(b'{"__metadata__":{"x":"\\ud800"}}', b""))
    with pytest.raises(EncodeError):
        encode_file(tmp_path / "in", tmp_path / "coded")
    assert leftovers(tmp_path) == ["in"]


# ---- arrays --------------------------------------------------------------------------------------
def test_arrays_are_saved_and_loaded(backend: Backend, tmp_path: Path) -> None:
    tensors = {
        d.name: make_array(d, (70, 30), "gaussian", i) for i, d in enumerate(ARRAY_DTYPES)
    } | {"scalar": np.array(1.5)}
    path = tmp_path / "arrays.wcodec"
    assert wcodec.save_file(tensors, path, {"made": "today"}) == path.stat().st_size
    back = wcodec.load_file(path)
    assert list(back) == list(tensors)
    for name, array in tensors.items():
        found = (back[name].shape, back[name].dtype, bits(back[name]))
        assert found == (array.shape, array.dtype, bits(array))
    with wcodec.open(str(path)) as f:
        assert f.metadata() == {"made": "today"}
        kept = f.get_tensor("float32")
        out = np.empty_like(kept)
        assert f.get_tensor("float32", out) is out
        with pytest.raises(KeyError):
            f.get_tensor("no such")
        with pytest.raises(KeyError):
            f.get_slice("no such")
    assert bits(kept) == bits(out) == bits(tensors["float32"]), "arrays outlive the file"


def test_a_file_of_arrays_becomes_a_file_that_safetensors_reads(tmp_path: Path) -> None:
    tensors = {
        "w": GAUSSIAN.view(np.uint16),
        "b": np.arange(7, dtype=np.float32),
        "none": np.zeros((0, 3), np.int8),
        "s": np.array(3),
    }
    wcodec.save_file(tensors, tmp_path / "a.wcodec", {"key": "value"})
    decode_file(tmp_path / "a.wcodec", tmp_path / "a.safetensors")
    back = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert {n: (a.shape, a.dtype, bits(a)) for n, a in back.items()} == {
        n: (a.shape, a.dtype, bits(a)) for n, a in tensors.items()
    }
    with safetensors.safe_open(tmp_path / "a.safetensors", "numpy") as f:
        assert f.metadata() == {"key": "value"}


def test_a_file_that_safetensors_wrote_comes_back(backend: Backend, tmp_path: Path) -> None:
    tensors = {
        "w": GAUSSIAN,
        "half": GAUSSIAN.astype(np.float16),
        "i": np.arange(99).reshape(9, 11),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "in", {"format": "np"})
    there_and_back(tmp_path, (tmp_path / "in").read_bytes())


class Counting(io.BytesIO):
    """A seekable file object, as of fsspec, that counts what is read and reads little at a time."""

    most = 1 << 16

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.n_read = 0

    def read(self, n: int | None = -1, /) -> bytes:
        data = super().read(self.most if n is None or n < 0 else min(n, self.most))
        self.n_read += len(data)
        return data


def test_a_file_object_serves_as_well_as_a_path(backend: Backend) -> None:
    stream = Counting(wcodec.encode(GAUSSIAN))
    with wcodec.open(stream) as f:
        assert bits(f.get_tensor("")) == bits(GAUSSIAN)
        assert bits(f.get_slice("")[7:9]) == bits(GAUSSIAN[7:9])
    assert not stream.closed, "the caller's to close"


def test_a_file_that_gets_shorter_is_an_error() -> None:
    data = wcodec.encode(GAUSSIAN)
    stream = Counting(data)
    with wcodec.open(stream) as f:
        stream.truncate(1000)
        with pytest.raises(DecodeError, match="truncated"):
            f.get_tensor("")


def test_a_slice_of_a_large_tensor_reads_little() -> None:
    """64 of 32,000 rows: under 1 % of the payload, for the index too."""
    block = make_array(ARRAY_DTYPES[10], (500, 4096), "gaussian")
    stream = io.BytesIO()
    with use_backend("numba"):
        writer = wcodec.Encoder().start(stream)
        record = writer.add("embed", np.tile(block, (64, 1)))
        writer.finish()
    assert record.shape == (32_000, 4096)
    assert record.payload_nbytes > 150e6, "coded, and not by its repetition"
    counting = Counting(stream.getvalue())
    for backend in ("numba", "reference"):
        counting.n_read = 0
        with use_backend(backend), wcodec.open(counting) as f:
            opened = counting.n_read
            for start in (0, 16_000, 31_936):
                counting.n_read = opened
                rows = f.get_slice("embed")[start : start + 64]
                assert bits(rows) == bits(block[np.arange(start, start + 64) % 500])
                assert counting.n_read < record.payload_nbytes / 100
            counting.n_read = 0
            f.get_slice("embed")[:16, 1000:1256]  # of two segments
            assert counting.n_read < record.payload_nbytes / 400


def test_slices_are_refused_as_numpy_does() -> None:
    with wcodec.open(io.BytesIO(wcodec.encode(GAUSSIAN))) as f:
        part = f.get_slice("")
        assert part.get_shape() == [300, 200]
        assert part.get_dtype() == "BF16"
        for wrong in (300, -301, (0, 200), (0, 0, 0), (..., ...)):
            with pytest.raises(IndexError):
                part[wrong]
        for other in ("a", 1.5, [1, 2], np.zeros(300, bool), True, None):
            with pytest.raises(TypeError):
                part[other]
        assert part[299, 199].shape == ()
        assert part[np.int64(-1), ...].shape == (200,)
        assert part[5:2].shape == (0, 200)
        assert bits(part[::-7, 3::50]) == bits(np.ascontiguousarray(GAUSSIAN[::-7, 3::50]))


def test_slices_of_tensors_whose_other_dimensions_are_huge() -> None:
    """Nothing is counted along them: shape (0, 2 ** 62) is legal."""
    with wcodec.open(VECTORS / "accept" / "empty_huge.wcodec") as f:
        part, n = f.get_slice("w"), 1 << 62
        assert (part[...].shape, part[:, 5].shape, part[:, :0].shape) == ((0, n), (0,), (0, 0))
        assert part.take(np.arange(0)).shape == (0, n)
        with pytest.raises(IndexError):
            part.take(np.arange(1))


def test_a_broken_segment_is_found_by_the_slice_that_touches_it(backend: Backend) -> None:
    data = bytearray(wcodec.encode(GAUSSIAN, wcodec.EncodeOptions(segment=(100, 200))))
    with wcodec.open(io.BytesIO(bytes(data))) as f:
        record = f.record("")
        start = record.payload_offset + int(record.plan(f.index.tables).offsets[1])
    data[start + 20] ^= 4
    with wcodec.open(io.BytesIO(bytes(data))) as f:
        assert bits(f.get_slice("")[:100]) == bits(GAUSSIAN[:100])
        assert bits(f.get_slice("")[200:]) == bits(GAUSSIAN[200:])
        with pytest.raises(DecodeError) as e:
            f.get_slice("")[99:101]
    assert (e.value.code, e.value.tensor, e.value.offset) == ("bad_checksum", "", start)


# ---- nothing half-written ------------------------------------------------------------------------
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_output_appears_whole_or_not_at_all(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(path: Path) -> None:
        with atomic_output(path, overwrite=True) as f:
            f.write(b"x" * (3 << 20))
            raise error

    with pytest.raises(error):
        fail(tmp_path / "new")
    assert leftovers(tmp_path) == []
    (tmp_path / "old").write_bytes(b"precious")
    with pytest.raises(error):
        fail(tmp_path / "old")
    assert leftovers(tmp_path) == ["old"]
    assert (tmp_path / "old").read_bytes() == b"precious"
    with atomic_output(tmp_path / "old", overwrite=True) as f:
        f.write(b"new")
        assert (tmp_path / "old").read_bytes() == b"precious"
    assert (tmp_path / "old").read_bytes() == b"new"


def test_an_array_that_is_refused_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.wcodec"
    wcodec.save_file({"a": GAUSSIAN}, path)
    before = path.read_bytes()
    with pytest.raises(EncodeError, match="unsupported_dtype"):
        wcodec.save_file({"a": GAUSSIAN, "b": np.array(["text"])}, path)
    assert path.read_bytes() == before
    assert leftovers(tmp_path) == ["a.wcodec"]


def test_a_broken_file_leaves_the_old_output(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(CHECKPOINTS["weights"])
    encode_file(tmp_path / "in", tmp_path / "coded")
    data = bytearray((tmp_path / "coded").read_bytes())
    data[5000] ^= 1
    (tmp_path / "coded").write_bytes(data)
    (tmp_path / "out").write_bytes(b"precious")
    with pytest.raises(DecodeError, match=r"bad_checksum: in '.*coded': "):
        decode_file(tmp_path / "coded", tmp_path / "out", overwrite=True)
    with pytest.raises(DecodeError, match="bad_checksum"):
        verify_file(tmp_path / "coded")
    assert (tmp_path / "out").read_bytes() == b"precious"
    assert leftovers(tmp_path) == ["coded", "in", "out"]


def test_long_names_and_limits(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 240)
    wcodec.save_file({"a": GAUSSIAN}, path)
    assert leftovers(tmp_path) == [path.name]
    with pytest.raises(DecodeError, match="resource_limit"):
        decode_file(path, tmp_path / "out", max_nbytes=GAUSSIAN.nbytes - 1)
    assert decode_file(path, tmp_path / "out", max_nbytes=GAUSSIAN.nbytes)[1] > GAUSSIAN.nbytes


def test_a_file_open_for_reading_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.wcodec"
    wcodec.save_file({"a": GAUSSIAN}, path)
    with wcodec.open(path) as f:
        wcodec.save_file({"b": np.zeros(3)}, path)
        assert bits(f.get_tensor("a")) == bits(GAUSSIAN)
    assert list(wcodec.load_file(path)) == ["b"]


# ---- sizes ---------------------------------------------------------------------------------------
def assert_hardly_grows(nbytes: int, stored_nbytes: int) -> None:
    assert stored_nbytes <= nbytes * 1.001 + 4096


@pytest.mark.parametrize("dtype", ARRAY_DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize(
    "shape", [(1,), (300_000,), (3, 100_000), (100_000, 3), (1000, 65), (40, 40, 60)]
)
def test_noise_hardly_grows(dtype: Any, shape: tuple[int, ...]) -> None:
    array = make_array(dtype, shape, "uniform")
    assert_hardly_grows(array.nbytes, len(wcodec.encode(array)))


def test_10_mb_of_noise_hardly_grow(backend: Backend, tmp_path: Path) -> None:
    noise = np.random.default_rng(7).bytes(10_000_000)
    data = safetensors_bytes([("w", "U8", [10_000, 1000], noise)])
    assert_hardly_grows(len(data), len(there_and_back(tmp_path, data)))


@pytest.mark.parametrize("n", [100, exhaustive(1000)])
def test_tiny_tensors_hardly_grow(backend: Backend, tmp_path: Path, n: int) -> None:
    rng = np.random.default_rng(8)
    for nbytes in (1, 40):
        tensors = [(f"layer.{i}.bias", "U8", [nbytes], rng.bytes(nbytes)) for i in range(n)]
        data = safetensors_bytes(tensors)
        assert_hardly_grows(len(data), len(there_and_back(tmp_path, data)))


# ---- memory --------------------------------------------------------------------------------------
def peak_memory(folder: Path, n_rows: int) -> int:
    """Bytes that encoding and decoding a file ask for at their peak: mapped inputs do not count."""
    block = (
        np.random.default_rng(9)
        .standard_normal((1000, 4096), np.float32)
        .astype(ml_dtypes.bfloat16)
        .tobytes()
    )
    header = json.dumps(
        {"w": {"dtype": "BF16", "shape": [n_rows, 4096], "data_offsets": [0, n_rows * 8192]}}
    ).encode()
    with (folder / "in").open("wb") as f:
        f.write(struct.pack("<Q", len(header)) + header)
        for _ in range(n_rows // 1000):
            f.write(block)

    def steps() -> None:
        backend = NumbaBackend(1)  # which keeps memory for the next calls
        encode_file(folder / "in", folder / "coded", None, backend, overwrite=True)
        decode_file(folder / "coded", folder / "out", backend, overwrite=True)

    peak = peak_of(steps)
    digests = [hashlib.sha256((folder / n).read_bytes()).digest() for n in ("in", "out")]
    assert digests[0] == digests[1]
    return peak


def test_few_pieces_wait_to_be_written() -> None:
    given, waiting = list[int](), list[int]()

    class Slow(io.RawIOBase):
        def write(self, _: Any) -> int:
            time.sleep(0.02)  # so that the other thread is ahead as far as it may be
            waiting.append(len(given) - len(waiting))
            return 1

    for spare, most in ((0, CHUNK_BUFFERS), (9, 10)):
        given.clear()
        waiting.clear()
        with WriteBehind(Slow(), None, spare) as out:  # type: ignore[arg-type]
            for i in range(20):
                out.write(b"x")
                given.append(i)
        assert len(waiting) == 20
        assert max(waiting) <= most


@pytest.mark.parametrize("n_rows", [2000, exhaustive(4000)])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, n_rows: int) -> None:
    # 16 and 66 MB, or twice as much
    small, large = peak_memory(tmp_path, n_rows), peak_memory(tmp_path, 4 * n_rows)
    assert large < small + 30e6 < 140e6
