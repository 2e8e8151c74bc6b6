"""Sparse tensors: words that differ from a base, listed; read again, and applied in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import decoder as by_the_spec
import numpy as np
import pytest
from inputs import ARRAY_DTYPES, BY_NAME, bits, make_array

import wcodec
from wcodec.backends import load_backend, use_backend
from wcodec.backends.protocol import Backend
from wcodec.codec.decoder import Decoder
from wcodec.deltas import applying
from wcodec.errors import DecodeError
from wcodec.files.file import File
from wcodec.planner import differences as planner
from wcodec.planner.options import PRESETS, EncodeOptions
from wcodec.reference import sparse
from wcodec.reference.planes import DType

Array = np.ndarray[Any, Any]


def changed(rng: np.random.Generator, array: Array, part: float, clustered: bool = False) -> Array:
    """A copy in which a part of the words is another one, or a run of them."""
    new = array.copy()
    flat = new.reshape(-1).view(np.uint8).view(f"<u{min(8, array.dtype.itemsize)}")
    n = max(1, round(flat.size * part)) if flat.size and part else 0
    start = int(rng.integers(0, flat.size - n + 1)) if n else 0
    where = np.arange(start, start + n) if clustered else rng.choice(flat.size, n, replace=False)
    flat[where] ^= rng.integers(1, 100, n).astype(flat.dtype)
    return new


def lists_of(data: Any, name: str = "w") -> Any:
    """The lists of a tensor; ``None`` of one that is not sparse."""
    with File(data) as f:
        return f.record(name).lists


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several segments a tensor."""
    monkeypatch.setattr(planner, "LIST_WORDS", 1000)


# ---- lists ---------------------------------------------------------------------------------------
def by_hand(words: Array, base: Array, segment: int) -> tuple[list[list[int]], list[list[int]]]:
    """Gaps and places of each segment, by R12.11, word by word."""
    gaps, places = list[list[int]](), list[list[int]]()
    for start in range(0, words.size, segment):
        mine, skipped = list[int](), 0
        places.append([])
        for i in range(start, min(start + segment, words.size)):
            if words[i] == base[i]:
                skipped += 1
                continue
            mine += [255] * (skipped // 255) + [skipped % 255]
            places[-1].append(i)
            skipped = 0
        gaps.append(mine)
    return gaps, places


@pytest.mark.parametrize("name", ["reference", "numba"])
@pytest.mark.parametrize("word_nbytes", [1, 2, 4, 8])
def test_lists_are_those_of_the_spec(name: str, word_nbytes: int) -> None:
    rng, backend = np.random.default_rng(word_nbytes), load_backend(name)
    cases = [(0, 5, 0), (1, 1, 1), (1, 9, 1), (700, 256, 1), (5000, 1024, 0.3), (5000, 999, 0.002)]
    for n, segment, part in [*cases, (3000, 5000, 0), (66000, 65536, 0.001)]:
        base = rng.integers(0, 256, n * word_nbytes, np.uint8).view(f"<u{word_nbytes}")
        words = changed(rng, base, part)
        found = backend.list_changes(words, base, segment, n)
        assert found is not None
        gaps, places = by_hand(words, base, segment)
        at = np.array([i for some in places for i in some], np.int64)
        assert found.n_listed.tolist() == [len(p) for p in places]
        assert found.n_gaps.tolist() == [len(g) for g in gaps]
        assert found.gaps.tolist() == [g for some in gaps for g in some]
        assert bits(found.words) == bits(words[at])
        assert bits(found.base) == bits(base[at])
        if at.size:
            assert backend.list_changes(words, base, segment, at.size - 1) is None
            assert backend.list_changes(words, base, segment, at.size) is not None


@pytest.mark.parametrize("gap", [0, 1, 253, 254, 255, 256, 509, 510, 511, 765])
def test_long_gaps(gap: int) -> None:
    base = np.zeros(2000, np.uint16)
    words = base.copy()
    words[[gap, 2 * gap + 1]] = 7
    for name in ("reference", "numba"):
        found = load_backend(name).list_changes(words, base, 2000, 2000)
        assert found is not None
        one = [255] * (gap // 255) + [gap % 255]
        assert found.gaps.tolist() == one + one


def segments_of(found: sparse.Changes, segment: int, n: int) -> sparse.ListedSegments:
    """What a backend wants to know of the segments of one array, all with listed words."""
    ids = np.flatnonzero(found.n_listed)
    starts, ends = ids * segment, np.append(0, np.cumsum(found.n_listed[ids].astype(np.int64)))
    crcs = load_backend("reference").checksums(
        found.words.view(np.uint8), ends * found.words.itemsize
    )
    counts = (of[ids].astype(np.int64) for of in (found.n_gaps, found.n_listed))
    sizes = np.minimum(segment, n - starts)
    return sparse.ListedSegments(np.zeros(ids.size, np.int64), *counts, starts, sizes, crcs)


@pytest.mark.parametrize("kind", ["xor", "minus"])
@pytest.mark.parametrize("word_nbytes", [1, 2, 4, 8])
def test_backends_put_alike(word_nbytes: int, kind: str) -> None:
    """What the numba backend does in one kernel, and what any backend does: on right lists, on gaps
    that do not fit, where something else is, where the new words are already.
    """
    rng, numba = np.random.default_rng(word_nbytes), load_backend("numba")
    difference = wcodec.reference.differences.Difference[kind.upper()]
    for trial in range(40):
        n, segment = int(rng.integers(900, 3000)), int(rng.integers(50, 900))
        bases = [rng.integers(0, 256, n * word_nbytes, np.uint8).view(f"<u{word_nbytes}")] * 3
        news = [changed(rng, base, 0.1) for base in bases]
        found = [sparse.list_changes(*both, segment) for both in zip(news, bases, strict=True)]
        some = [segments_of(f, segment, n) for f in found]
        arrays = [np.full(s.of.size, i) for i, s in enumerate(some)]
        rest = (np.concatenate(columns) for columns in zip(*(s[1:] for s in some), strict=True))
        segments = sparse.ListedSegments(np.concatenate(arrays), *rest)
        gaps = np.concatenate([f.gaps for f in found])
        coded = np.concatenate([numba.subtract_base(f.words, f.base, difference) for f in found])
        before = [base.copy() for base in bases]
        if trial % 4 == 1:
            gaps[rng.integers(gaps.size)] = rng.choice([0, 3, 254, 255])
        elif trial % 4 == 2:  # a word that is listed, or not
            before[1][rng.integers(n)] ^= before[1].dtype.type(1)
        elif trial % 4 == 3:  # a segment is new already
            k = int(rng.integers(0, n // segment)) * segment
            before[2][k : k + segment] = news[2][k : k + segment]
        results = []
        for put_lists in (Backend.put_lists, type(numba).put_lists):
            words, listed = [b.copy() for b in before], coded.copy()
            put = put_lists(numba, words, gaps.copy(), listed, segments, difference)
            results.append((put.status.tolist(), [bits(w) for w in words]))
            for i, (word, old, new) in enumerate(zip(words, before, news, strict=True)):
                wrong = (put.status[segments.of == i] > sparse.PutStatus.THERE.value).any()
                assert (i in put.wrong_arrays(segments)) == wrong
                assert bits(word) == bits(old if wrong else word)
                if not wrong and trial % 4 in (0, 3):
                    assert bits(word) == bits(new)
        assert results[0] == results[1]


# ---- files ---------------------------------------------------------------------------------------
@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("backend", ["reference", "numba", "cuda_emulator.backend:EmulatedCuda"])
@pytest.mark.parametrize("dtype", ARRAY_DTYPES, ids=lambda d: d.name)
def test_files_of_all_dtypes(dtype: DType, backend: str, tmp_path: Path) -> None:
    """Back from the file, a part of it, by the spec's decoder, and in place."""
    rng, row = np.random.default_rng(3), dtype
    base = {"w": make_array(row, (47, 91), rng), "same": make_array(row, (1200,), rng)}
    new = {"w": changed(rng, base["w"], 0.02), "same": base["same"]}
    wcodec.save_file(base, tmp_path / "base.wcodec")
    with use_backend(backend):
        data = wcodec.save(new, base=base)
        on_disk = tmp_path / "new.wcodec"
        wcodec.save_file(new, on_disk, base=tmp_path / "base.wcodec")
        with File(data) as in_memory, File(on_disk) as f:
            of_bases = [file.index.base for file in (in_memory, f)]
            assert [b and b.name for b in of_bases] == ["", "base.wcodec"]
            assert len({b and b.sha256 for b in of_bases}) == 1
        with wcodec.open(data, base=tmp_path / "base.wcodec") as f:
            for name, array in new.items():
                assert f.record(name).lists is not None
                assert bits(f.get_tensor(name)) == bits(array)
            assert bits(f.get_slice("w")[3:17, 5:60]) == bits(new["w"][3:17, 5:60])
            restored = b"".join(bytes(piece) for piece in f.restored(raw=True))
            assert restored == new["w"].tobytes() + new["same"].tobytes()
        for checked in applying.CHECKS:
            arrays = {name: array.copy() for name, array in base.items()}
            assert wcodec.apply(data, arrays, checked=checked) == (["w"], ["same"])
            assert [bits(a) for a in arrays.values()] == [bits(a) for a in new.values()]
            assert wcodec.apply(on_disk, arrays, checked=checked) == ([], ["w", "same"])
    parts = by_the_spec.decode_file(on_disk.read_bytes(), (tmp_path / "base.wcodec").read_bytes())
    assert b"".join(parts) == restored


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("part", "clustered"), [(0, False), (0.0005, False), (0.01, False), (0.2, False), (0.2, True)]
)
def test_presets_and_parts(preset: str, part: float, clustered: bool) -> None:
    rng = np.random.default_rng(1)
    base = {"w": make_array(BY_NAME["bfloat16"], (300, 257), rng)}
    new = {"w": changed(rng, base["w"], part, clustered)}
    data = wcodec.save(new, options=EncodeOptions(preset=preset), base=base)
    lists = lists_of(data)
    assert lists is not None
    assert lists.n_listed.sum() == (
        bits(new["w"]) != 0
        and np.count_nonzero(new["w"].view(np.uint16) != base["w"].view(np.uint16))
    )
    arrays = {"w": base["w"].copy()}
    wcodec.apply(data, arrays, checked="full")
    assert bits(arrays["w"]) == bits(new["w"])


def test_dense_changes_are_coded_as_before() -> None:
    rng = np.random.default_rng(2)
    base = {"w": make_array(BY_NAME["bfloat16"], (300, 256), rng)}
    new = {"w": changed(rng, base["w"], 0.9)}
    data = wcodec.save(new, base=base)
    assert lists_of(data) is None
    arrays = {"w": base["w"].copy()}
    assert wcodec.apply(data, arrays).changed == ["w"]
    assert bits(arrays["w"]) == bits(new["w"])
    assert wcodec.apply(data, arrays) == ([], ["w"])


def test_changes_that_the_sample_does_not_show() -> None:
    """Listed until they are too many, then coded as all words."""
    base = {"w": np.zeros((1 << 11, 1 << 10), np.uint16) + np.arange(1 << 10, dtype=np.uint16)}
    new = {"w": base["w"].copy()}
    step = (1 << 21) // planner.SAMPLED
    for k in range(planner.SAMPLED):  # between the places that are looked at
        new["w"].reshape(-1)[k * step + step // 3 : k * step + step] += np.uint16(5)
    data = wcodec.save(new, base=base)
    arrays = {"w": base["w"].copy()}
    wcodec.apply(data, arrays, checked="full")
    assert bits(arrays["w"]) == bits(new["w"])


def test_options_that_say_how_all_words_are_coded() -> None:
    rng = np.random.default_rng(2)
    base = {"w": make_array(BY_NAME["bfloat16"], (64, 256), rng)}
    new = {"w": changed(rng, base["w"], 0.01)}
    assert lists_of(wcodec.save(new, base=base)) is not None
    for how in ({"segment": (16, 256)}, {"layout": "bytes"}, {"coder": "rans"}, {"force": True}):
        options = EncodeOptions(**how)  # type: ignore[arg-type]
        assert lists_of(wcodec.save(new, options=options, base=base)) is None


def test_what_has_not_changed_costs_nothing() -> None:
    array = {"w": make_array(BY_NAME["bfloat16"], (4096, 1024), np.random.default_rng(0))}
    data = wcodec.save(array, base=array)
    assert len(data) < array["w"].nbytes // 10_000
    assert File(data).record("w").payload_nbytes == 0


@pytest.mark.usefixtures("small_segments")
def test_bases_of_bases_in_all_orders(tmp_path: Path) -> None:
    """Sparse tensors have one row; what they differ from, and what differs from them, has many."""
    rng = np.random.default_rng(4)
    arrays = {"w": make_array(BY_NAME["bfloat16"], (130, 190), rng)}
    wcodec.save_file(arrays, tmp_path / "0.wcodec")
    kinds = []
    for i, part in enumerate((0.9, 0.01, 0.01, 0.9, 0.9, 0.02), 1):
        arrays = {"w": changed(rng, arrays["w"], part)}
        path = tmp_path / f"{i}.wcodec"
        wcodec.save_file(arrays, path, base=tmp_path / f"{i - 1}.wcodec")
        with wcodec.open(path) as f:
            kinds.append(f.record("w").lists is not None)
            assert bits(f.get_tensor("w")) == bits(arrays["w"])
            assert bits(f.get_slice("w")[7:99, 3:111]) == bits(arrays["w"][7:99, 3:111])
    assert kinds == [False, True, True, False, False, True]


# ---- in place ------------------------------------------------------------------------------------
def pair(part: float = 0.01) -> tuple[dict[str, Array], dict[str, Array]]:
    """Two checkpoints: sparse, dense, whole, equal and empty tensors."""
    rng = np.random.default_rng(5)
    base = {
        name: make_array(BY_NAME[dtype], shape, rng)
        for name, dtype, shape in (
            ("a", "bfloat16", (120, 60)), ("b", "bfloat16", (3000,)), ("c", "float32", (70, 70)),
            ("dense", "bfloat16", (90, 90)), ("same", "int8", (500,)), ("none", "int32", (0, 5)),
        )
    }  # fmt: skip
    new = {name: changed(rng, array, part) for name, array in base.items()}
    new["dense"] = changed(rng, base["dense"], 0.9)
    new["same"] = base["same"].copy()
    new["whole"] = make_array(BY_NAME["bfloat16"], (40, 40), rng)
    base["whole"] = new["whole"][::-1].copy()
    return base, new


def copies(arrays: dict[str, Array]) -> dict[str, Array]:
    """The same in memory of their own."""
    return {name: array.copy() for name, array in arrays.items()}


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("checked", applying.CHECKS)
def test_a_wrong_tensor_stays_as_it_is(checked: str) -> None:
    base, new = pair()
    data = wcodec.save(new, base=base)
    for name in ("a", "c", "dense"):
        arrays = copies(base) | {"other": np.zeros(3)}
        listed = np.flatnonzero(
            arrays[name].reshape(-1).view(np.uint8) != new[name].reshape(-1).view(np.uint8)
        )
        wrong = arrays[name].reshape(-1).view(np.uint8)
        wrong[listed[len(listed) // 2]] ^= 64
        before = bits(arrays[name])
        with pytest.raises(DecodeError, match=f"bad_base: the tensor is neither .*'{name}'"):
            wcodec.apply(data, arrays, checked=checked)
        assert bits(arrays[name]) == before
        for other, array in arrays.items():  # as a whole, or not at all
            if other in base and other != name:
                assert bits(array) in (bits(base[other]), bits(new[other]))
        wrong[listed[len(listed) // 2]] ^= 64
        wcodec.apply(data, arrays, checked=checked)
        assert all(bits(arrays[n]) == bits(new[n]) for n in new)


def test_a_full_check_finds_what_is_not_listed() -> None:
    base, new = pair()
    data, arrays = wcodec.save(new, base=base), copies(base)
    same = np.flatnonzero(
        base["a"].reshape(-1).view(np.uint16) == new["a"].reshape(-1).view(np.uint16)
    )
    arrays["a"].reshape(-1).view(np.uint16)[same[7]] ^= 1
    before = bits(arrays["a"])
    with pytest.raises(DecodeError, match="bad_base: the tensor is neither"):
        wcodec.apply(data, arrays, checked="full")
    assert bits(arrays["a"]) == before
    wcodec.apply(data, arrays)  # the word is not looked at
    assert bits(arrays["a"]) != bits(new["a"])
    with pytest.raises(DecodeError, match="bad_base: the tensor is neither"):
        wcodec.apply(data, arrays, checked="full")


@pytest.mark.usefixtures("small_segments")
def test_what_was_interrupted_is_taken_up_again() -> None:
    """Segments of which some are new already."""
    base, new = pair(0.05)
    data, arrays = wcodec.save(new, base=base), copies(base)
    arrays["a"].reshape(-1)[1000:3000] = new["a"].reshape(-1)[1000:3000]
    arrays["c"][...] = new["c"]
    done = wcodec.apply(data, arrays, checked="full")
    assert done == (["a", "b", "dense", "whole"], ["c", "same", "none"])
    assert all(bits(arrays[name]) == bits(new[name]) for name in new)


@pytest.mark.usefixtures("small_segments")
def test_damaged_deltas_change_nothing_wrongly() -> None:
    """Whatever byte of a delta is another one: each tensor is the base's or the new one."""
    base, new = pair()
    data, rng = wcodec.save(new, base=base), np.random.default_rng(6)
    for at in rng.integers(0, len(data), 300).tolist():
        damaged, arrays = bytearray(data), copies(base)
        damaged[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(DecodeError):
            wcodec.apply(bytes(damaged), arrays)
        for name, array in arrays.items():
            assert bits(array) in (bits(base[name]), bits(new[name]))


def test_what_cannot_be_changed_in_place() -> None:
    base, new = pair()
    data = wcodec.save(new, base=base)

    def refused(error: type[Exception], match: str, **instead: Any) -> None:
        arrays = {k: v for k, v in (copies(base) | instead).items() if v is not None}
        before = {name: bits(np.asarray(a)) for name, a in arrays.items()}
        with pytest.raises(error, match=match):
            wcodec.apply(data, arrays)
        assert before == {name: bits(np.asarray(a)) for name, a in arrays.items()}

    fixed = base["a"].copy()
    fixed.flags.writeable = False
    refused(DecodeError, "bad_base: there is no tensor of this name to change.*'b'", b=None)
    refused(DecodeError, "bad_base: it is float32 of shape .*is float64", c=np.zeros((70, 70)))
    refused(DecodeError, r"bad_base: it is bfloat16 .*of shape \[60, 120\]", a=base["a"].T.copy())
    refused(ValueError, "'a': only a C-contiguous, aligned, writeable array", a=fixed)
    refused(ValueError, "'c': only a C-contiguous", c=base["c"].T)
    refused(TypeError, "'b': a list is not changed in place", b=[0.0] * 3000)
    with pytest.raises(TypeError, match="tensors are given by name; this is a list"):
        wcodec.apply(data, [])  # type: ignore[arg-type]
    refused(wcodec.EncodeError, "unsupported_dtype", c=np.ma.masked_array(base["c"]))
    with pytest.raises(ValueError, match="checked 'some' is none of sampled, full"):
        wcodec.apply(data, base, checked="some")


def test_files_objects_and_open_files(tmp_path: Path) -> None:
    base, new = pair()
    wcodec.save_file(new, tmp_path / "delta.wcodec", base=base)
    for delta in (tmp_path / "delta.wcodec", str(tmp_path / "delta.wcodec")):
        arrays = copies(base)
        assert wcodec.apply(delta, arrays).changed
    with (tmp_path / "delta.wcodec").open("rb") as stream, File(stream) as file:
        arrays = copies(base)
        assert wcodec.apply(file, arrays).changed
        assert not wcodec.apply(file, arrays).changed
    with pytest.raises(DecodeError, match="resource_limit"):
        wcodec.apply(tmp_path / "delta.wcodec", copies(base), max_nbytes=1000)


@pytest.mark.usefixtures("small_segments")
def test_duplicates_that_share_memory() -> None:
    base, new = pair()
    base["tied"], new["tied"] = base["a"], new["a"]
    arrays = copies(base)
    arrays["tied"] = arrays["a"]
    data = wcodec.save(new, base=base)
    assert wcodec.apply(data, arrays).changed.count("a") == 1
    assert bits(arrays["tied"]) == bits(new["a"])
    apart = copies(base)
    assert "tied" in wcodec.apply(data, apart).changed
    assert bits(apart["tied"]) == bits(new["tied"])


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("checked", ["sampled", "full"])
@pytest.mark.parametrize("alike", [False, True], ids=["unlike", "alike where they change"])
def test_tensors_that_become_the_same(checked: str, alike: bool) -> None:
    """What they were before does not matter."""
    base, new = pair()
    other = base["a"].copy()
    before, after, words = (x.reshape(-1).view(np.uint16) for x in (base["a"], new["a"], other))
    words[before == after if alike else slice(None)] ^= 1
    base["tied"], new["tied"] = other, new["a"].copy()
    data, arrays = wcodec.save(new, base=base), copies(base)
    assert {"a", "tied"} <= set(wcodec.apply(data, arrays, checked=checked).changed)
    assert all(bits(arrays[name]) == bits(array) for name, array in new.items())
    assert not wcodec.apply(data, arrays, checked=checked).changed


def test_memory_is_counted() -> None:
    """`max_memory` counts what lists may take."""
    rng = np.random.default_rng(0)
    base = {"w": make_array(BY_NAME["bfloat16"], (2048, 1024), rng)}
    data = wcodec.save({"w": changed(rng, base["w"], 0.2)}, base=base)
    with pytest.raises(DecodeError, match="resource_limit"):
        File(data, max_memory=1 << 20)
    assert lists_of(data) is not None
    Decoder(load_backend("numba"), max_memory=1 << 28)


def test_memory_that_is_not_aligned(tmp_path: Path) -> None:
    """An output of `get_tensor` may lie anywhere: nothing is written beside it."""
    rng = np.random.default_rng(8)
    for name in ("float32", "bfloat16", "complex128"):
        row = BY_NAME[name]
        base = {"w": make_array(row, (300, 40), rng)}
        new = {"w": changed(rng, base["w"], 0.02)}
        data = wcodec.save(new, base=base)
        wcodec.save_file(base, tmp_path / "base.wcodec")
        room = np.full(new["w"].nbytes + 64, 0x5A, np.uint8)
        out = room[33 : 33 + new["w"].nbytes].view(row.numpy).reshape(300, 40)
        with wcodec.open(data, base=tmp_path / "base.wcodec") as f:
            f.get_tensor("w", out=out)
        assert bits(out) == bits(new["w"])
        assert (room[:33] == 0x5A).all()
        assert (room[33 + out.nbytes :] == 0x5A).all()


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("shape", [(130, 190), (5, 7, 130), (3, 4, 5, 6, 70), (2000, 3), (5000,)])
def test_parts(shape: tuple[int, ...], tmp_path: Path) -> None:
    """As NumPy takes them."""
    rng = np.random.default_rng(len(shape))
    base = {"w": make_array(BY_NAME["complex64"], shape, rng)}
    new = {"w": changed(rng, base["w"], 0.02)}
    wcodec.save_file(base, tmp_path / "base.wcodec")
    with wcodec.open(wcodec.save(new, base=base), base=tmp_path / "base.wcodec") as f:
        assert f.record("w").lists is not None
        part = f.get_slice("w")
        for _ in range(80):
            index = tuple(one_index(rng, n) for n in shape[: int(rng.integers(len(shape) + 1))])
            assert bits(part[index]) == bits(np.ascontiguousarray(new["w"][index]))
        ids = np.sort(rng.integers(0, shape[0], 9))
        assert bits(part.take(ids)) == bits(new["w"][ids])


def one_index(rng: np.random.Generator, n: int) -> Any:
    """An index of a dimension."""
    a, b = sorted(rng.integers(0, n + 1, 2).tolist())
    ways: list[Any] = [slice(None), int(rng.integers(n)), slice(a, b), slice(None, None, -3)]
    return ways[int(rng.integers(len(ways)))]


def test_tensors_that_cost_nothing_need_no_base() -> None:
    """Constant ones, of whatever base they come."""
    rng = np.random.default_rng(0)
    for n_left in (0, 300, 15_000):
        base = {"w": np.zeros(1 << 16, np.float32)}
        base["w"][rng.choice(1 << 16, n_left, replace=False)] = 3.5
        data = wcodec.save({"w": np.zeros_like(base["w"])}, base=base)
        assert len(data) < 200
        assert File(data).index.base is None


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("checked", applying.CHECKS)
def test_an_interrupt_changes_nothing_by_half(
    checked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, new = pair()
    data, arrays, numba = wcodec.save(new, base=base), copies(base), load_backend("numba")
    calls = iter(range(100))

    def interrupted(self: Any, *args: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return Backend.crc32_of(self, *args)

    kind = type(numba)
    put = kind.put_lists
    if checked == "full":
        monkeypatch.setattr(kind, "crc32_of", interrupted)
    else:
        monkeypatch.setattr(kind, "put_lists", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        wcodec.apply(data, arrays, checked=checked)
    for name, array in arrays.items():
        assert bits(array) in (bits(base[name]), bits(new[name]))
    monkeypatch.setattr(kind, "crc32_of", Backend.crc32_of)
    monkeypatch.setattr(kind, "put_lists", put)
    wcodec.apply(data, arrays, checked="full")
    assert all(bits(arrays[name]) == bits(new[name]) for name in new)
