"""`encode`, `decode`, `Encoder`, `Decoder`, and which backend runs them."""

from __future__ import annotations

import io
import logging
import pickle
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import BACKENDS
from inputs import ARRAY_DTYPES, KINDS, bits, make_array
from sampling import crossed, exhaustive

import wcodec
from wcodec.backends import Backend, backend_names, load_backend
from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder
from wcodec.errors import DecodeError, EncodeError
from wcodec.reference.planes import DType

# Below, at and above a group of 128 symbols, a segment of 32768 words,
# and a chunk of two segment rows.
SHAPES: list[tuple[int, ...]] = [
    (),
    (0,),
    (3, 0, 2),
    (1,),
    (127,),
    (129,),
    (32_769,),
    (256, 256),
    (300, 515),
    (2, 3, 70),
    (2, 1, 3, 1, 64),
]


@pytest.mark.parametrize("small", [True, exhaustive(False)])
@pytest.mark.parametrize(
    ("dtype", "kind"), crossed(ARRAY_DTYPES, KINDS, one_in=3), ids=lambda v: getattr(v, "name", v)
)
def test_every_dtype_comes_back(backend: Backend, dtype: DType, kind: str, small: bool) -> None:
    """On the reference but one of the large shapes:
    the others are what the other backend is compared with elsewhere.
    """
    large = [shape for shape in SHAPES if np.prod(shape) > 1000]
    for shape in SHAPES:
        if (
            small
            and backend.name == "reference"
            and shape in large
            and shape != large[dtype.id // 3 % 3]
        ):
            continue
        array = make_array(dtype, shape, kind)
        back = wcodec.decode(wcodec.encode(array))
        assert (back.shape, back.dtype, bits(back)) == (array.shape, array.dtype, bits(array))


@pytest.mark.parametrize(
    ("dtype", "layout"),
    crossed(
        [ml_dtypes.bfloat16, np.float16, np.int16], ["auto", "raw", "bytes", "pairs"], one_in=2
    ),
)
def test_every_16_bit_pattern_comes_back(backend: Backend, dtype: Any, layout: str) -> None:
    array = np.arange(1 << 16).astype(np.uint16).view(dtype).reshape(256, 256)
    for options in (
        wcodec.EncodeOptions(layout=layout),
        wcodec.EncodeOptions(layout=layout, force=True),
    ):
        assert bits(wcodec.decode(wcodec.encode(array, options))) == bits(array)


@pytest.mark.parametrize(
    ("dtype", "predictor"),
    crossed(
        [np.uint8, np.int8, np.uint16, np.float32, ml_dtypes.bfloat16],
        ["auto", "left", "top", "avg", "planar"],
        one_in=2,
    ),
)
def test_planes_whose_residuals_are_constant_come_back(
    backend: Backend, dtype: Any, predictor: str
) -> None:
    """A ramp that starts at its step has one residual everywhere, but is no constant."""
    for shape in ((1, 3), (1, 200), (5, 1), (64, 64)):
        words = np.arange(1, np.prod(shape) + 1).reshape(shape)
        array = words.astype(np.dtype(f"u{np.dtype(dtype).itemsize}")).view(dtype)
        for options in (
            wcodec.EncodeOptions(predictor=predictor),
            wcodec.EncodeOptions(predictor=predictor, force=True),
        ):
            assert bits(wcodec.decode(wcodec.encode(array, options))) == bits(array)


def test_layouts_of_arrays_in_memory_do_not_matter(backend: Backend) -> None:
    array = np.arange(600, dtype="<i4").reshape(20, 30)
    plain = wcodec.encode(array)
    for other in (
        array.astype(">i4"),
        np.asfortranarray(array),
        np.repeat(array, 2, axis=0)[::2],
        array[::-1][::-1],
    ):
        assert wcodec.encode(other) == plain
    assert wcodec.decode(plain).dtype == np.dtype("<i4")
    assert wcodec.encode(array.T) != plain
    assert wcodec.encode(np.float32(1.5)) == wcodec.encode(np.array(1.5, np.float32))
    frozen = array.copy()
    frozen.flags.writeable = False
    assert wcodec.encode(frozen) == plain


def test_an_array_is_decoded_into_another(backend: Backend) -> None:
    array = make_array(ARRAY_DTYPES[10], (300, 200), "gaussian")
    data, out = wcodec.encode(array), np.zeros_like(array)
    assert wcodec.decode(data, out) is out
    assert bits(out) == bits(array)
    for view in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        assert bits(wcodec.decode(view)) == bits(array)
    transposed = np.empty(array.shape[::-1], array.dtype).T
    readonly = np.empty_like(array)
    readonly.flags.writeable = False
    for wrong in (
        np.empty((200, 300), array.dtype),
        np.empty(array.shape, np.uint16),
        transposed,
        readonly,
    ):
        with pytest.raises(ValueError, match="out must be"):
            wcodec.decode(data, wrong)


@pytest.mark.parametrize(
    "array",
    [np.array(["text"]), np.array([None]), np.zeros(3, ml_dtypes.int4), np.zeros(3, "M8[s]")],
)
def test_arrays_that_have_no_dtype_id_are_refused(array: np.ndarray) -> None:
    with pytest.raises(EncodeError, match="unsupported_dtype"):
        wcodec.encode(array)


def test_a_file_of_several_tensors_is_no_array() -> None:
    stream = io.BytesIO()
    writer = Encoder().start(stream)
    writer.add("a", np.zeros(3))
    writer.add("b", np.zeros(3))
    with pytest.raises(EncodeError, match="bad_name"):
        writer.add("b", np.zeros(3))
    writer.finish()
    with pytest.raises(DecodeError, match="bad_range"):
        wcodec.decode(stream.getvalue())


@pytest.mark.parametrize("name", ["\ud800", "x" * 65_536, "\N{SNOWMAN}" * 21_846])
def test_names_that_cannot_be_stored_are_refused(name: str) -> None:
    with pytest.raises(EncodeError, match="bad_name"):
        Encoder().start(io.BytesIO()).add(name, np.zeros(3))


def test_metadata_that_cannot_be_stored_is_refused() -> None:
    with pytest.raises(EncodeError, match="bad_name"):
        Encoder().start(io.BytesIO()).finish({"key": "\udfff"})


class Pipe(io.RawIOBase):
    """A stream that can only be written."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.parts.append(bytes(data))
        return len(self.parts[-1])


def test_a_file_is_written_to_a_stream_that_cannot_seek(backend: Backend) -> None:
    pipe = Pipe()
    writer = Encoder().start(pipe)  # type: ignore[arg-type]
    writer.add("", make_array(ARRAY_DTYPES[2], (300, 300), "gaussian"))
    writer.finish()
    assert b"".join(pipe.parts) == wcodec.encode(
        make_array(ARRAY_DTYPES[2], (300, 300), "gaussian")
    )


def test_objects_may_be_used_again_also_after_an_error(backend: Backend) -> None:
    encoder, decoder = Encoder(None, backend), Decoder(backend)
    for n in (1000, 10, 70_000, 0):
        array = np.arange(n, dtype=np.float32)
        data = encoder.encode(array)
        assert data == wcodec.encode(array)
        with pytest.raises(DecodeError):
            decoder.decode(data[:-1])
        assert np.array_equal(decoder.decode(data), array)


@pytest.mark.parametrize("n", [6, exhaustive(12)])
def test_several_threads_at_once(backend: Backend, n: int) -> None:
    arrays = [
        make_array(d, (n * 25, 257), "gaussian", i)
        for i, d in enumerate(ARRAY_DTYPES[1 : 13 : 12 // n])
    ]
    expected = [wcodec.encode(a) for a in arrays]
    encoder, decoder = Encoder(None, backend), Decoder(backend)
    wrong: list[int] = []

    def work(k: int) -> None:
        for i in range(k, k + n):
            i %= n
            if encoder.encode(arrays[i]) != expected[i] or bits(
                decoder.decode(expected[i])
            ) != bits(arrays[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(0, n, n // 3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_does_not_change_a_byte(threads: int) -> None:
    array = make_array(ARRAY_DTYPES[10], (700, 1000), "gaussian")
    first, *others = (Encoder(None, load_backend(name, threads)).encode(array) for name in BACKENDS)
    assert all(other == first for other in others)
    assert bits(Decoder(load_backend("numba", threads)).decode(first)) == bits(array)


def test_a_limit_on_memory_is_kept() -> None:
    data = wcodec.encode(np.zeros(1000, np.uint8))
    assert Decoder(max_nbytes=1000).decode(data).size == 1000
    with pytest.raises(DecodeError, match="resource_limit"):
        Decoder(max_nbytes=999).decode(data)


def test_more_than_memory_holds_is_a_coded_error() -> None:
    """A few bytes may tell of a tensor of terabytes, all of one value;
    the machine says no, and that is all.
    """
    stream = io.BytesIO()
    writer = Encoder().start(stream)
    writer.tensors.append(_huge())
    writer.finish()
    with pytest.raises(DecodeError) as e:
        wcodec.decode(stream.getvalue())
    assert e.value.code in ("resource_limit", "bad_range")


def _huge() -> wcodec.reference.records.TensorRecord:
    from wcodec.reference.segments import SegmentTable
    from wcodec.reference.tensors import TensorRecord
    from wcodec.reference.tiles import Geometry

    # 2^20 segments of 2^24 float64: 2^47 bytes, all that can be addressed
    side, dtype, n = 1 << 12, ARRAY_DTYPES[12], 1 << 20
    g = Geometry(side << 10, side << 10, side, side, side, side)
    empty = SegmentTable.zeros(1, dtype.n_planes)
    table = SegmentTable(
        *(
            np.broadcast_to(c, (*c.shape[:-1], n))
            for c in (getattr(empty, f) for f in SegmentTable.__slots__)
        )
    )
    return TensorRecord(
        "", dtype, (side << 10, side << 10), 1, g, table, np.zeros(n, np.uint32), 32, 0, 0
    )


# ---- backends ------------------------------------------------------------------------------------
def test_backends_under_test_are_usable_and_listed() -> None:
    assert set(BACKENDS) <= set(backend_names())
    reasons = wcodec.available_backends()
    assert [reasons[name] for name in BACKENDS] == [""] * len(BACKENDS)


def test_names_are_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "cuda:0",
        "no such",
        "no_such_package:Backend",
        "math:pi",
        "wcodec.errors:WcodecError",
        "wcodec.backends.protocol:No",
    ):
        with pytest.raises(wcodec.BackendUnavailable):
            load_backend(name)
    monkeypatch.setenv("WCODEC_THREADS", "many")
    with pytest.raises(wcodec.BackendUnavailable, match="WCODEC_THREADS"):
        load_backend("reference")


def test_a_class_may_be_named() -> None:
    named = load_backend("wcodec.backends.reference:ReferenceBackend")
    assert named is load_backend("reference")


def test_the_innermost_scope_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wcodec.backends._default", None)
    monkeypatch.setenv("WCODEC_BACKEND", "reference")
    assert wcodec.get_backend().name == "reference"
    assert wcodec.set_backend("numba").name == "numba"
    assert wcodec.get_backend().name == "numba"
    with wcodec.use_backend("reference"):
        assert wcodec.get_backend().name == "reference"
        with pytest.raises(wcodec.BackendUnavailable), wcodec.use_backend("no such"):
            pass
        assert wcodec.get_backend().name == "reference"
        seen = []
        thread = threading.Thread(target=lambda: seen.append(wcodec.get_backend().name))
        thread.start()
        thread.join()
        assert seen == ["numba"], "a scope is that of its thread"
    assert wcodec.get_backend().name == "numba"


def test_auto_says_which(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "wcodec"):
        assert load_backend("auto").name == "numba"
    assert "auto: backend numba" in caplog.text


# ---- errors --------------------------------------------------------------------------------------
def test_errors_have_a_code_a_place_and_survive_pickling() -> None:
    e = DecodeError("bad_checksum", "no match", tensor="x", offset=7)
    assert str(e) == "bad_checksum: no match (tensor 'x', offset 7)"
    back = pickle.loads(pickle.dumps(e))
    found = (type(back), back.code, back.tensor, back.offset, str(back))
    assert found == (DecodeError, e.code, "x", 7, str(e))
    assert str(EncodeError("bad_source", "m")) == "bad_source: m"
    with pytest.raises(ValueError, match="not a code"):
        DecodeError("bad_source", "m")
    assert issubclass(DecodeError, wcodec.WcodecError)
    assert issubclass(wcodec.BackendUnavailable, wcodec.WcodecError)
