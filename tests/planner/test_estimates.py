"""Large chunks are planned from a part of their rows, and rare pairs get patches, not slots."""

from __future__ import annotations

import io
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import wcodec
from wcodec.backends import load_backend
from wcodec.backends.reference import ReferenceBackend
from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder, words_of
from wcodec.planner.costs import Chunk, pair_costs, quantise, without_rare
from wcodec.planner.geometry import choose_geometry
from wcodec.planner.options import EncodeOptions
from wcodec.planner.planner import ESTIMATED_WORDS, Planner
from wcodec.reference.planes import Layout, map_words
from wcodec.reference.segments import Coder, SegmentPlan
from wcodec.reference.tiles import Geometry


def gaussian(rows: int, cols: int, seed: int = 0) -> NDArray[Any]:
    """A matrix of bf16."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, cols)) * 0.02).astype(ml_dtypes.bfloat16)


def planned(array: NDArray[Any], **options: Any) -> tuple[Planner, SegmentPlan]:
    """The plan of an array as one chunk, and who made it."""
    chosen = EncodeOptions(**options)
    planner, (dtype, words) = Planner(chosen), words_of(array)
    _, geometry = choose_geometry(array.shape, dtype, chosen)
    matrix = words.reshape(geometry.rows, geometry.cols)
    return planner, planner.plan(matrix, geometry, dtype, load_backend("numba"))


def test_an_estimate_costs_next_to_nothing() -> None:
    array = gaussian(2048, 2048)
    assert array.size >= ESTIMATED_WORDS
    planner, plan = planned(array)
    assert planner.estimated
    whole, exact = planned(array, layout="pairs")
    assert not whole.estimated
    assert (plan.segments.layout == Layout.PAIRS).all()
    backend = load_backend("numba")
    _, words = words_of(array)
    sizes = [
        backend.encode_segments(p, words.reshape(2048, 2048)).payload.size for p in (plan, exact)
    ]
    assert sizes[0] <= sizes[1] * 1.0002


def of_one_byte(dtype: Any, rows: int = 2048, cols: int = 2048) -> NDArray[Any]:
    """Rows that use all of the range of a dtype."""
    array = np.random.default_rng(0).standard_normal((rows, cols))
    largest = 127.0 if dtype == np.int8 else float(ml_dtypes.finfo(dtype).max)
    array *= largest / np.abs(array).max(axis=1, keepdims=True)
    return (np.round(array) if dtype == np.int8 else array).astype(dtype)


def test_words_of_a_byte_are_estimated_where_nearly_all_pairs_occur() -> None:
    array = of_one_byte(np.int8)
    planner, plan = planned(array)
    assert planner.estimated
    used = plan.segments.table[plan.segments.coder == Coder.RANS]
    assert all((plan.tables[int(t)].freq > 0).all() for t in np.unique(used))
    backend = load_backend("numba")
    data = Encoder(None, backend).encode(array)
    exact = Encoder(EncodeOptions(segment=(120, 256)), backend).encode(array)  # no multiple of 64
    assert len(data) <= len(exact)
    assert not planned(np.where(np.abs(array) < 40, array, 0).astype(np.int8))[0].estimated
    assert not planned(of_one_byte(ml_dtypes.float8_e4m3fn))[0].estimated


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "max"},
        {"layout": "pairs"},
        {"coder": "rans"},
        {"force": True},
        {"predictor": "none"},
    ],
)
def test_what_is_asked_for_is_planned_from_all_words(options: dict[str, Any]) -> None:
    assert not planned(gaussian(1024, 2048), **options)[0].estimated


@pytest.mark.parametrize("shape", [(1024, 2047), (1040, 2048), (1000, 2304)])
def test_small_chunks_and_odd_heights_are_planned_from_all_words(shape: tuple[int, int]) -> None:
    assert not planned(gaussian(*shape))[0].estimated


def test_all_rows_have_their_turn() -> None:
    """Of every eight blocks of eight rows one, others in other segments."""
    geometry = Geometry(512, 1024, 128, 128, 128, 128)
    dtype, words = words_of(gaussian(512, 1024))
    matrix = words.reshape(512, 1024)
    part = Chunk(matrix, geometry, dtype, ReferenceBackend(), np.full(32, 128 * 128)).eighth()
    assert part is not None
    assert part.blocks is not None
    assert part.blocks.shape == (32, 2)
    of_segment = part.blocks // 8 // 16 * 8 + part.blocks % 8
    assert (of_segment == np.arange(32)[:, None]).all()
    assert set((part.blocks // 8 % 16).reshape(-1).tolist()) == set(range(16))
    assert (part.histogram(base=100, fill=3)[:, 1].sum(axis=1) == part.size).all()


@pytest.mark.parametrize(("rows", "height"), [(520, 130), (480, 120), (320, 128)])
def test_other_heights_have_no_eighth(rows: int, height: int) -> None:
    geometry = Geometry(rows, 256, height, 128, height, 128)
    dtype, words = words_of(gaussian(rows, 256))
    heights, widths = geometry.sizes()
    matrix = words.reshape(rows, 256)
    assert Chunk(matrix, geometry, dtype, ReferenceBackend(), heights * widths).eighth() is None


def looked_at(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Which words an estimate of a chunk has seen, or the look before it."""
    dtype, words = words_of(array)
    _, geometry = choose_geometry(array.shape, dtype, EncodeOptions())
    matrix = words.reshape(geometry.rows, geometry.cols)
    size = np.full(geometry.n_segments, geometry.segment_rows * geometry.segment_cols)
    part = Chunk(matrix, geometry, dtype, ReferenceBackend(), size).eighth()
    assert part is not None
    assert part.blocks is not None
    seen = np.zeros(matrix.shape, np.bool_)
    for k in part.blocks.reshape(-1).tolist():
        seen[part.geometry.rectangle(k)] = True
    seen.reshape(-1, geometry.segment_rows, geometry.cols)[:, : geometry.segment_rows // 16] = True
    return seen


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.int8])
@pytest.mark.parametrize("unseen", ["noise", "zeros", "tiny"])
def test_what_was_not_looked_at_comes_back_too(unseen: str, dtype: Any) -> None:
    """Words unlike those that were looked at, so that all the choices are bad ones."""
    array = gaussian(2048, 1024) if dtype != np.int8 else of_one_byte(dtype, 2048, 1024)
    seen, rng = looked_at(array), np.random.default_rng(1)
    others = {
        "noise": np.frombuffer(rng.bytes(array.nbytes), dtype).reshape(array.shape),
        "zeros": np.zeros_like(array),
        "tiny": (array.astype(np.float32) * 1e-12).astype(dtype)
        if dtype != np.int8
        else array // 64,
    }[unseen]
    array = np.where(seen, array, others)
    assert planned(array)[0].estimated
    for name in ("numba", "reference"):
        data = Encoder(None, load_backend(name)).encode(array)
        out = np.empty_like(array)
        Decoder(load_backend("numba")).decode(data, out)
        assert out.tobytes() == array.tobytes()
        assert len(data) <= array.nbytes * 1.001
        if name == "numba":
            first = data
        assert data == first


def test_an_exponent_that_may_be_constant_is_looked_at_whole() -> None:
    array = gaussian(2048, 1024)
    bits, seen = array.view(np.uint16), looked_at(array)
    seen[1024:] = False
    bits[seen] = bits[seen] & 0x807F | 120 << 7
    planner, plan = planned(array)
    assert not planner.estimated
    assert not (plan.segments.coder[0] == Coder.CONSTANT).any()
    assert comes_back(file_of([array]), [array])


def test_low_halves_that_may_be_constant_are_looked_at_whole() -> None:
    array = of_one_byte(np.int8, 2048, 1024)
    seen = looked_at(array)
    seen[1024:] = False
    array[seen] &= -16
    planner, _ = planned(array)
    assert not planner.estimated
    assert comes_back(file_of([array]), [array])


def test_rare_pairs_have_no_slots() -> None:
    counts = np.zeros(256, np.int64)
    counts[[0x33, 0x34, 0x43, 0x44]] = [1 << 20, 1 << 19, 1 << 19, 1 << 18]
    counts[[0x01, 0x10]] = [3, 1 << 10]
    kept = without_rare(counts, 3)
    assert kept[0x01] == 0
    assert kept[0x10] == 1 << 10
    table = quantise(kept)
    costs, n_patches = pair_costs(table, 3)
    assert n_patches[[0x33, 0x10, 0x01, 0x05, 0x53, 0x35]].tolist() == [0, 0, 2, 2, 1, 1]
    assert costs[0x01] == costs[0x33] + (64 << 16)
    # at least two symbols stay, whatever is rare
    assert (
        np.flatnonzero(without_rare(np.eye(1, 256, 7, np.int64)[0] * 10**9 + (counts == 3), 7)).size
        > 1
    )


def test_few_words_keep_the_slots_of_all_their_pairs() -> None:
    counts = np.bincount(np.random.default_rng(0).integers(0, 256, 1 << 16), minlength=256)
    counts[7] = 1
    assert (without_rare(counts, 3) == counts).all()


EXPONENTS = [116, 117, 118], [119, 122, 125]  # whose differences are all unlike: no prediction


def of_codes(rows: int, cols: int, often: tuple[float, float], seed: int) -> NDArray[Any]:
    """bf16 whose exponents are 116 to 118 in even columns and 119, 122, or 125 in odd ones, so that
    a pair of equal codes does not occur. How often the first ones do is given.
    """
    rng, bits = np.random.default_rng(seed), np.empty((rows, cols), np.int64)
    for first, (exponents, share) in enumerate(zip(EXPONENTS, often, strict=True)):
        rest = (1 - share) / 2
        bits[:, first::2] = rng.choice(exponents, (rows, cols // 2), p=[share, rest, rest])
    sign_and_mantissa = rng.integers(0, 256, bits.shape)
    bits = bits << 7 | sign_and_mantissa >> 7 << 15 | sign_and_mantissa & 127
    return bits.astype(np.uint16).view(ml_dtypes.bfloat16)


def file_of(arrays: list[NDArray[Any]], **options: Any) -> bytes:
    """A file of some tensors, which share a pool of tables."""
    stream = io.BytesIO()
    writer = Encoder(EncodeOptions(**options), load_backend("numba")).start(stream)
    for i, array in enumerate(arrays):
        writer.add(str(i), array)
    writer.finish()
    return stream.getvalue()


def comes_back(data: bytes, arrays: list[NDArray[Any]]) -> bool:
    """Whether a file holds these arrays."""
    with wcodec.open(data) as f:
        return all(f.get_tensor(str(i)).tobytes() == a.tobytes() for i, a in enumerate(arrays))


@pytest.mark.parametrize("preset", ["default", "fast"])
def test_a_table_without_the_pair_of_two_fill_codes_is_not_used_again(preset: str) -> None:
    """An earlier tensor's suits all pairs that were looked at, but not what others become."""
    before, array = of_codes(2048, 1024, (0.405, 0.395), 0), of_codes(2048, 1024, (0.395, 0.405), 1)
    others = ~looked_at(array) & (np.random.default_rng(2).random(array.shape) < 1e-3)
    array[others] = 2.0**-8  # of exponent 119, next to others of which it makes two
    (planner, plan), (_, other) = planned(array, preset=preset), planned(before, preset=preset)
    assert planner.estimated
    assert np.asarray(plan.fill)[0] != np.asarray(other.fill)[0]
    assert comes_back(file_of([before, array], preset=preset), [before, array])


def test_words_of_a_byte_are_not_estimated_under_a_table_that_lacks_symbols(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the file has no room for another one."""
    monkeypatch.setattr("wcodec.planner.planner.MAX_TABLES", 1)
    array = of_one_byte(np.int8, 2048, 1024)
    before, (of, _) = array[:320].copy(), words_of(array)
    lacking = planned(before)[1].tables[0].freq == 0
    high = map_words(array.view(np.uint8), of).reshape(-1) >> 4
    wanting = lacking[high[::2] | high[1::2] << 4].repeat(2).reshape(array.shape)
    seen = looked_at(array)
    assert (wanting & ~seen).any()
    array[wanting & seen] = 3
    assert comes_back(file_of([before, array]), [before, array])
