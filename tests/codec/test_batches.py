"""Small tensors are planned, coded and described many at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inputs import ARRAY_DTYPES, KINDS, bits, make_array, safetensors_bytes
from numpy.typing import NDArray

import wcodec
from wcodec.backends import Backend, use_backend
from wcodec.backends.numba.backend import NumbaBackend
from wcodec.backends.protocol import Checksums, EncodedSegments, SegmentPlan
from wcodec.backends.reference import ReferenceBackend
from wcodec.codec import batches, encoder
from wcodec.codec.batches import MOST, SMALL_NBYTES, in_batches, is_small
from wcodec.codec.whole import Whole
from wcodec.files.checkpoint import decode_file, encode_file
from wcodec.files.repack import repack_file
from wcodec.inspect import report
from wcodec.inspect.report import as_text, describe
from wcodec.reference.planes import BY_NAME
from wcodec.reference.tiles import Spans

FLOAT32 = BY_NAME["float32"]


def many(n: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Scalars, vectors and small matrices of all dtypes, with some that are coded alone."""
    rng, tensors = np.random.default_rng(seed), dict[str, NDArray[Any]]()
    shapes: list[tuple[int, ...]] = [(), (1,), (0,), (3, 5), (200,), (4096,), (70, 3), (1, 1, 900)]
    for i in range(n):
        shape = shapes[i % len(shapes)] if i % 3 else (int(rng.integers(1, 4097)),)
        dtype = ARRAY_DTYPES[int(rng.integers(len(ARRAY_DTYPES)))]
        tensors[f"t{i}"] = make_array(dtype, shape, KINDS[i % len(KINDS)], seed + i)
    tensors["large"] = make_array(FLOAT32, (300, 200), "gaussian")
    tensors["longer"] = make_array(FLOAT32, (SMALL_NBYTES // 4 + 1,), "gaussian")
    tensors["one"] = tensors["two"] = make_array(FLOAT32, (300,), "gaussian")
    tensors["large again"] = tensors["large"]
    tensors["last"] = make_array(FLOAT32, (77,), "gaussian")
    return tensors


def same(a: dict[str, NDArray[Any]], b: dict[str, NDArray[Any]]) -> bool:
    def of(t: dict[str, NDArray[Any]]) -> list[Any]:
        return [(name, x.dtype, x.shape, bits(x)) for name, x in t.items()]

    return of(a) == of(b)


def test_they_come_back(tmp_path: Path, backend: Backend) -> None:
    tensors = many(150)
    wcodec.save_file(tensors, tmp_path / "m.wcodec")
    assert same(wcodec.load_file(tmp_path / "m.wcodec"), tensors)
    with wcodec.open(tmp_path / "m.wcodec") as f:
        assert same({name: f.get_tensor(name) for name in f.keys()}, tensors)  # noqa: SIM118
        shared = [t.name for t in f.index.tensors if t.duplicate_of is not None]
        assert {"two", "large again"} <= set(shared)
        sizes = [len(b) for b in in_batches(f.index.tensors)]
    assert max(sizes) > 10
    assert sum(sizes) == len(tensors)


class TakesNoSpans(NumbaBackend):
    """As a backend is that knows nothing of them."""

    name = "takes_none"
    takes_spans = False


def test_every_backend_writes_the_same(tmp_path: Path) -> None:
    tensors, files = many(80, seed=7), []
    cuda = "cuda_emulator.backend:EmulatedCuda"
    for name in ("reference", "numba", cuda, f"{__name__}:TakesNoSpans"):
        with use_backend(name):
            wcodec.save_file(tensors, tmp_path / "m.wcodec")
            assert same(wcodec.load_file(tmp_path / "m.wcodec"), tensors)
        files.append((tmp_path / "m.wcodec").read_bytes())
    assert len(set(files)) == 1


class OnDevice(ReferenceBackend):
    """Has memory of its own, and takes spans."""

    name = "on_device"
    takes_spans = True

    def to_device(self, array: NDArray[Any]) -> Any:
        return Device(array.copy())

    def to_host(self, array: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
        if out is None:
            return np.asarray(array.content)
        np.copyto(out, array.content)
        return out

    def target(self, out: NDArray[Any]) -> Any:
        return Device(np.empty_like(out))

    def histogram(self, words: Any, *args: Any, **what: Any) -> NDArray[np.int64]:
        return super().histogram(words.content, *args, **what)

    def encode_segments(self, plan: SegmentPlan, words: Any) -> EncodedSegments:
        encoded = super().encode_segments(plan, words.content)
        return encoded._replace(payload=Device(encoded.payload))

    def decode_segments(self, plan: SegmentPlan, payload: Any, out: Any) -> NDArray[np.uint8]:
        return super().decode_segments(plan, payload.content, out.content)


class Device:
    """An array that is not one of NumPy."""

    def __init__(self, content: NDArray[Any]) -> None:
        self.content = content


def test_memory_of_a_device(tmp_path: Path) -> None:
    tensors = {name: t for name, t in many(40).items() if t.nbytes <= SMALL_NBYTES}
    with use_backend(f"{__name__}:OnDevice"):
        wcodec.save_file(tensors, tmp_path / "device")
        assert same(wcodec.load_file(tmp_path / "device"), tensors)
    wcodec.save_file(tensors, tmp_path / "host")
    assert (tmp_path / "device").read_bytes() == (tmp_path / "host").read_bytes()


class FailsOnce(NumbaBackend):
    """There is no memory the first time."""

    name = "fails_once"
    failed = False

    def encode_with_checksums(
        self, plan: SegmentPlan, words: Any
    ) -> tuple[EncodedSegments, Checksums]:
        if not self.failed:
            self.failed = True
            raise MemoryError
        return super().encode_with_checksums(plan, words)


def test_after_an_error_they_still_wait() -> None:
    whole = Whole(0)
    writer = wcodec.codec.Encoder(backend=FailsOnce(1)).start(whole)
    words = np.arange(300, dtype=np.uint32)
    writer.add_later("a", words, FLOAT32, (300,))
    with pytest.raises(MemoryError):
        writer.add_words("b", words, FLOAT32, (300,))
    writer.finish()
    with wcodec.open(whole.getvalue()) as f:
        assert f.keys() == ["a"]
        assert bits(f.get_tensor("a")) == bits(words)


class Short(ReferenceBackend):
    """Loses the end of a payload."""

    name = "short"

    def encode_segments(self, plan: SegmentPlan, words: Any) -> EncodedSegments:
        encoded = super().encode_segments(plan, words)
        return encoded._replace(payload=encoded.payload[:-16])


def test_payloads_are_as_long_as_said() -> None:
    writer = wcodec.codec.Encoder(backend=Short()).start(Whole(0))
    for name in ("a", "b"):
        writer.add_later(name, np.arange(300, dtype=np.uint32), FLOAT32, (300,))
    with pytest.raises(AssertionError, match="where its sizes say"):
        writer.finish()


@pytest.mark.parametrize("n", [15, 20, 24, 1000])
def test_one_that_is_predicted_among_others(tmp_path: Path, n: int) -> None:
    """Positions beside counters, as checkpoints have them."""
    tensors = {f"n{i}": np.array(i * 7, np.int64) for i in range(n)}
    tensors["positions"] = np.arange(4096, dtype=np.int64)
    wcodec.save_file(tensors, tmp_path / "m.wcodec")
    with wcodec.open(tmp_path / "m.wcodec") as f:
        assert f.record("positions").payload_nbytes < 1000
    assert same(wcodec.load_file(tmp_path / "m.wcodec"), tensors)


def test_repacked_they_are_as_small(tmp_path: Path) -> None:
    wcodec.save_file(many(100), tmp_path / "m.wcodec")
    repack_file(tmp_path / "m.wcodec", tmp_path / "again.wcodec")
    assert (tmp_path / "again.wcodec").read_bytes() == (tmp_path / "m.wcodec").read_bytes()


@pytest.mark.parametrize("layout", ["auto", "pairs"])
def test_scales_far_apart(tmp_path: Path, layout: str) -> None:
    """No window has all of them."""
    rng, options = np.random.default_rng(4), wcodec.EncodeOptions(layout=layout)
    tensors = {
        f"t{i}": (rng.standard_normal(1000) * 2.0 ** (i - 25)).astype(np.float32) for i in range(50)
    }
    together = wcodec.save_file(tensors, tmp_path / "m.wcodec", options=options)
    alone = sum(
        wcodec.save_file({"": t}, tmp_path / "one", options=options) for t in tensors.values()
    )
    assert together < alone
    assert same(wcodec.load_file(tmp_path / "m.wcodec"), tensors)


def test_more_than_are_coded_at_once(tmp_path: Path) -> None:
    tensors = {f"{i}": np.full(1 + i % 3, i, np.float32) for i in range(2 * MOST + 5)}
    wcodec.save_file(tensors, tmp_path / "m.wcodec")
    assert same(wcodec.load_file(tmp_path / "m.wcodec"), tensors)
    with wcodec.open(tmp_path / "m.wcodec") as f:
        assert [len(b) for b in in_batches(f.index.tensors)] == [MOST, MOST, 5]


def test_a_safetensors_file_is_restored(tmp_path: Path, backend: Backend) -> None:
    tensors = [
        (f"t{i}", "F32", [n], bits(make_array(FLOAT32, (n,), "gaussian", i)))
        for i, n in enumerate([1, 500, 20_000, 3, 4096, 1, 77])
    ]
    data, seen = safetensors_bytes(tensors, {"format": "pt"}), list[int]()
    (tmp_path / "in").write_bytes(data)
    encode_file(tmp_path / "in", tmp_path / "coded", progress=seen.append)
    assert sum(seen) == sum(len(raw) for *_, raw in tensors)
    decode_file(tmp_path / "coded", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data


def test_tensors_unlike_each_other_get_tables_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together they take no more than if each chooses its table in turn."""
    rng, tensors = np.random.default_rng(3), {}
    for i in range(120):
        values = rng.standard_normal(3000) * 2.0 ** int(rng.integers(-9, 9))
        tensors[f"t{i}"] = (values + (i % 2)).astype(np.float32)
    nbytes = wcodec.save_file(tensors, tmp_path / "m.wcodec")
    with wcodec.open(tmp_path / "m.wcodec") as f:
        assert len(f.index.tables) > 10
    monkeypatch.setattr(encoder, "MOST", 1)
    assert nbytes <= 1.001 * wcodec.save_file(tensors, tmp_path / "m.wcodec")


def test_a_damaged_one_is_named(tmp_path: Path, backend: Backend) -> None:
    tensors = {f"t{i}": make_array(FLOAT32, (900,), "gaussian", i) for i in range(30)}
    wcodec.save_file(tensors, tmp_path / "m.wcodec")
    with wcodec.open(tmp_path / "m.wcodec") as f:
        t = f.record("t17")
        assert is_small(t)
    data = bytearray((tmp_path / "m.wcodec").read_bytes())
    data[t.payload_offset + t.payload_nbytes // 2] ^= 1
    (tmp_path / "m.wcodec").write_bytes(data)

    def describe_it() -> None:
        with wcodec.open(tmp_path / "m.wcodec") as f:
            describe(f)

    for read in (
        describe_it,
        lambda: wcodec.load_file(tmp_path / "m.wcodec"),
        lambda: decode_file(tmp_path / "m.wcodec", tmp_path / "back"),
    ):
        with pytest.raises(wcodec.DecodeError, match="segment 0") as e:
            read()
        assert (e.value.code, e.value.tensor) == ("bad_checksum", "t17")
        assert e.value.file == str(tmp_path / "m.wcodec")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("preset", ["fast", "default", "max"])
def test_they_are_described_as_each_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    wcodec.save_file(many(90), tmp_path / "m.wcodec", options=wcodec.EncodeOptions(preset=preset))
    with wcodec.open(tmp_path / "m.wcodec") as f:
        for bound in (True, False):
            together, seen = describe(f, bound), list[int]()
            describe(f, bound, seen.append)
            assert sum(seen) == (f.index.data_nbytes if bound else 0)
            monkeypatch.setattr(report, "in_batches", lambda tensors: ([t] for t in tensors))
            alone = describe(f, bound)
            monkeypatch.undo()
            assert list(as_text(together)) == list(as_text(alone))
            for a, b in zip(together.pop("tensors"), alone.pop("tensors"), strict=True):
                bits_a, bits_b = (x.pop("order0_bits_per_weight") for x in (a, b))
                assert bits_a == (None if bits_b is None else pytest.approx(bits_b))
                assert a == b
            assert together == alone


def test_bounds_of_many_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = many(20)
    wcodec.save_file(tensors, tmp_path / "m.wcodec")
    with wcodec.open(tmp_path / "m.wcodec") as f:
        assert describe(f)["tensors"] == describe(f, bound=True)["tensors"]
        monkeypatch.setattr(report, "MANY", 3)
        by_name = {t["name"]: t["order0_bits_per_weight"] for t in describe(f)["tensors"]}
        assert by_name["large"] is not None
        assert by_name["last"] is None
        assert describe(f, bound=True)["tensors"][-1]["order0_bits_per_weight"] is not None


def test_spans_are_a_geometry() -> None:
    spans = Spans.of(np.array([3, 1, 4]))
    assert (spans.grid, spans.n_segments, spans.one_tile) == ((1, 3), 3, True)
    assert [a.tolist() for a in spans.sizes()] == [[1, 1, 1], [3, 1, 4]]
    assert [a.tolist() for a in spans.corners()] == [[0, 0, 0], [0, 3, 4]]
    assert [spans.rectangle(k)[1] for k in range(3)] == [slice(0, 3), slice(3, 4), slice(4, 8)]
    assert spans.tile_counts().tolist() == [1, 1, 1]
    some, ids = spans.select(np.array([0]), np.array([0, 2]))
    assert (some.sizes()[1].tolist(), some.cols, ids.tolist()) == ([3, 4], 7, [0, 2])
    assert spans != Spans.of(np.array([4, 1, 3]))


def test_words_are_copied() -> None:
    """A tensor that waits for others may be overwritten meanwhile."""
    whole, array = Whole(0), np.arange(600, dtype=np.float32)
    writer = wcodec.codec.Encoder().start(whole)
    for i in range(3):
        array += 1
        words = array.view(np.uint32)
        writer.add_later(f"t{i}", words, FLOAT32, (600,))
    writer.finish()
    with wcodec.open(whole.getvalue()) as f:
        for i in range(3):
            assert (f.get_tensor(f"t{i}") == np.arange(600) + i + 1).all()


def test_wrong_ones_are_refused() -> None:
    writer = wcodec.codec.Encoder().start(Whole(0))
    words = np.zeros(5, np.uint32)
    writer.add_later("a", words, FLOAT32, (5,))
    with pytest.raises(wcodec.EncodeError, match="two tensors have this name"):
        writer.add_later("a", words, FLOAT32, (5,))
    with pytest.raises(wcodec.EncodeError, match="5 words for shape"):
        writer.add_later("b", words, FLOAT32, (6,))
    assert batches.as_small("c", words, FLOAT32, (5,), "", wcodec.EncodeOptions(), {}) is not None
