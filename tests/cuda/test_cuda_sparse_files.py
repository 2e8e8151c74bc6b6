"""Files of sparse tensors, on emulated devices, whose streams put work off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulator.backend import EmulatedCuda
from inputs import ARRAY_DTYPES, BY_NAME, bits, make_array
from sampling import exhaustive
from test_cuda_loader import Counting, emulated, same
from test_differences import moved, nudged, write_safetensors

import wcodec
from wcodec.backends import load_backend
from wcodec.codec import encoder
from wcodec.codec.listing import Listed
from wcodec.cuda import Loader, pipeline
from wcodec.cuda import sparse as on_device
from wcodec.cuda.loader import BUFFERS_OF_SLOT, LEAST_SLOT_NBYTES
from wcodec.errors import DecodeError
from wcodec.files.checkpoint import encode_file
from wcodec.reference.differences import Difference
from wcodec.reference.sparse import GAP_SKIP

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
SHAPE = (90, 101)


@pytest.fixture
def small_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments so small that tensors have many, the last of which is ragged."""
    monkeypatch.setattr("wcodec.planner.differences.LIST_WORDS", 700)


def first() -> Arrays:
    """Every dtype, and more of one."""
    out = {d.name: make_array(d, SHAPE, "gaussian") for d in ARRAY_DTYPES}
    out |= {f"layer{i}": make_array(BY_NAME["bfloat16"], SHAPE, "gaussian", i) for i in range(3)}
    return out | {"nothing": np.zeros((0, 3), np.float32), "one": np.array(1.5, np.float32)}


def changed(tensors: Arrays, seed: int = 1) -> Arrays:
    """Few words of most tensors, those of one a little each, one whole, of one none but the first
    and last.
    """
    out = {name: moved(a, 0.02, seed) for name, a in tensors.items() if a.shape == SHAPE}
    out["layer1"] = nudged(tensors["layer1"], seed=seed)
    out["layer2"] = tensors["layer2"].copy()
    out["layer2"].reshape(-1)[[0, -1]] = tensors["layer2"].reshape(-1)[[1, 0]]
    out["float16"] = make_array(BY_NAME["float16"], SHAPE, "gaussian", 50 + seed)
    out["int32"][:20] = tensors["int32"][:20]  # segments without a listed word
    return {name: out.get(name, a) for name, a in tensors.items()} | {"tied": out["float32"]}


@pytest.fixture
def chain(tmp_path: Path, small_lists: None) -> tuple[Path, list[Arrays]]:
    """Three checkpoints, each a difference from the one before."""
    versions = [first()]
    versions += [changed(versions[0], 1)]
    versions += [changed({k: v for k, v in versions[1].items() if k != "tied"}, 2)]
    wcodec.save_file(versions[0], tmp_path / "0.wcodec")
    write_safetensors(tmp_path / "0.safetensors", versions[0])
    for i in (1, 2):
        wcodec.save_file(versions[i], tmp_path / f"{i}.wcodec", base=tmp_path / f"{i - 1}.wcodec")
    return tmp_path, versions


def kinds(path: Path) -> dict[str, str]:
    """How the tensors of a file are stored."""
    with wcodec.open(path) as f:
        return {
            t.name: "sparse" if t.lists else "dense" if t.difference else "plain"
            for t in f.index.tensors
        }


def check(loaded: dict[str, Any], due: Arrays) -> None:
    assert list(loaded) == list(due)
    for name, a in due.items():
        same(loaded[name], a)


def test_what_the_files_hold(chain: tuple[Path, list[Arrays]]) -> None:
    folder, _ = chain
    for i in (1, 2):
        found = kinds(folder / f"{i}.wcodec")
        assert {found["layer1"], found["float16"], found["layer2"]} == {"dense", "plain", "sparse"}
        assert sum(kind == "sparse" for kind in found.values()) > 12
        with wcodec.open(folder / f"{i}.wcodec") as f:
            assert f.record("tied").duplicate_of is not None or f.record("float32").duplicate_of
            assert f.record("layer2").geometry.n_segments == 13
            assert np.count_nonzero(f.record("layer2").lists.n_listed) in (1, 2)  # type: ignore[union-attr]
            words = {t.dtype.word_nbytes for t in f.index.tensors if t.lists}
            assert words == {1, 2, 4, 8}
            assert {t.difference for t in f.index.tensors if t.lists} == {
                Difference.XOR,
                Difference.MINUS,
            }


@pytest.mark.parametrize("slot", [exhaustive(1 << 12), exhaustive(1 << 14), pipeline.SLOT_NBYTES])
def test_whole_files(
    chain: tuple[Path, list[Arrays]], slot: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wcodec.cuda.loader.SLOT_NBYTES", slot)
    monkeypatch.setattr(pipeline, "READ_NBYTES", 1 << 10)
    folder, versions = chain
    for devices, streams, verify in ((None, 2, True), ([0, 1], 1, True), (None, 4, False)):
        with Loader(devices, streams=streams, verify=verify, runtime_of=emulated) as loader:
            for i, base in ((1, "0.wcodec"), (1, "0.safetensors"), (2, None), (2, "1.wcodec")):
                path = None if base is None else folder / base
                check(loader.load_file(folder / f"{i}.wcodec", base=path), versions[i])
            some = loader.load_file(folder / "2.wcodec", ["tied", "int8"])
            check(some, {name: versions[2][name] for name in ("tied", "int8")})


def test_one_after_another(chain: tuple[Path, list[Arrays]]) -> None:
    folder, versions = chain
    with Loader(runtime_of=emulated) as loader:
        found = {t.name: t for t in loader.iterate(folder / "2.wcodec")}
        check(found, versions[2])
        next(iter(loader.iterate(folder / "2.wcodec")))  # given up
        check(loader.load_file(folder / "2.wcodec"), versions[2])


def test_memory_of_others(chain: tuple[Path, list[Arrays]]) -> None:
    """The words of the base come to what the caller gives."""
    folder, versions = chain
    given = list[Array]()

    def allocate(runtime: Any, nbytes: int) -> Any:
        given.append(runtime.empty(nbytes))
        return runtime.adopt(runtime.address(given[-1]), nbytes, given[-1])

    loader = Loader(runtime_of=emulated)
    loaded = loader.load_file(folder / "1.wcodec", allocate=allocate)
    check(loaded, versions[1])
    assert [a.tobytes() for a in given] == [bits(a) for a in versions[1].values()]


def test_what_the_caller_has_begun(chain: tuple[Path, list[Arrays]]) -> None:
    """On a stream of the caller, to which the words of the base are copied: they are not there
    before it gets to it.
    """
    folder, versions = chain
    runtime = emulated(0)
    stream = runtime.stream()
    with runtime.on(stream):
        loader = Loader(runtime_of=lambda _: runtime)
        loaded = loader.load_file(folder / "1.wcodec", base=folder / "0.safetensors")
        check(loaded, versions[1])


def test_tensors_of_which_nothing_has_changed(tmp_path: Path) -> None:
    tensors = first()
    wcodec.save_file(tensors, tmp_path / "base.wcodec")
    wcodec.save_file(tensors, tmp_path / "same.wcodec", base=tmp_path / "base.wcodec")
    assert "sparse" in kinds(tmp_path / "same.wcodec").values()
    with Loader(runtime_of=emulated) as loader:
        check(loader.load_file(tmp_path / "same.wcodec"), tensors)


# ---- what is refused -----------------------------------------------------------------------------
def last_gap(listed: Listed) -> Listed:
    """The last gap lists none."""
    gaps = listed.gaps.copy()
    gaps[-1] = GAP_SKIP
    return listed._replace(gaps=gaps)


def beyond(listed: Listed) -> Listed:
    """The last word is behind the end."""
    gaps = listed.gaps.copy()
    gaps[-3:] = 254
    return listed._replace(gaps=gaps)


def too_few(listed: Listed) -> Listed:
    """Gaps of the first segment skip, all but the last."""
    gaps = listed.gaps.copy()
    gaps[: int(listed.n_gaps[0]) - 1] = GAP_SKIP
    return listed._replace(gaps=gaps)


def other_words(listed: Listed) -> Listed:
    """What is coded of a word is its difference from another one."""
    base = listed.base.copy()
    base[len(base) // 2] ^= 1
    return listed._replace(base=base)


def other_places(listed: Listed) -> Listed:
    """The first word is one place on: `words_crc32` or that of the tensor tells."""
    gaps = listed.gaps.copy()
    at = int(np.argmax((gaps[:-1] < 200) & (gaps[1:] > 0)))
    gaps[at], gaps[at + 1] = gaps[at] + 1, gaps[at + 1] - 1
    return listed._replace(gaps=gaps)


def other_sum(listed: Listed) -> Listed:
    return listed._replace(crc32=listed.crc32 ^ 1)


SPOILT: dict[str, tuple[Callable[[Listed], Listed], str]] = {
    "last gap": (last_gap, "bad_patch"),
    "beyond the end": (beyond, "bad_patch"),
    "too few": (too_few, "bad_patch"),
    "other words": (other_words, "bad_checksum"),
    "other places": (other_places, "bad_checksum"),
    "other sum": (other_sum, "bad_checksum"),
}


def error_of(load: Callable[[], Any]) -> DecodeError | None:
    try:
        load()
    except DecodeError as e:
        return e
    return None


def refused_alike(folder: Path, loader: Loader, name: str) -> DecodeError:
    """What the host and a device say of a file: the same."""
    path = folder / "spoilt.wcodec"
    there = error_of(lambda: wcodec.load_file(path, base=folder / "base.wcodec"))
    here = error_of(lambda: loader.load_file(path, base=folder / "base.wcodec"))
    assert there is not None
    assert here is not None
    assert (here.code, here.message, here.tensor) == (there.code, there.message, there.tensor)
    assert (here.offset, here.tensor) == (there.offset, name)
    return here


@pytest.mark.usefixtures("small_lists")
@pytest.mark.parametrize("slot", [1 << 12, pipeline.SLOT_NBYTES])
@pytest.mark.parametrize("name", SPOILT)
def test_lists_that_break_a_rule(
    tmp_path: Path, name: str, slot: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is coded as well as any, so that no record is bad."""
    monkeypatch.setattr("wcodec.cuda.loader.SLOT_NBYTES", slot)
    spoil, code = SPOILT[name]
    base = {n: make_array(BY_NAME["bfloat16"], SHAPE, "gaussian", i) for i, n in enumerate("abc")}
    tensors = {n: moved(a, 0.02) for n, a in base.items()}
    list_words, n_calls = encoder.list_words, 0

    def of_the_second(*args: Any) -> Listed | None:
        nonlocal n_calls
        n_calls += 1
        listed = list_words(*args)
        assert listed is not None
        return spoil(listed) if n_calls == 2 else listed

    wcodec.save_file(base, tmp_path / "base.wcodec")
    monkeypatch.setattr(encoder, "list_words", of_the_second)
    wcodec.save_file(tensors, tmp_path / "spoilt.wcodec", base=tmp_path / "base.wcodec")
    with Loader(runtime_of=emulated) as loader:
        assert refused_alike(tmp_path, loader, "b").code == code
        some = loader.load_file(tmp_path / "spoilt.wcodec", ["a", "c"], tmp_path / "base.wcodec")
        check(some, {n: tensors[n] for n in "ac"})
    if code == "bad_patch":  # also where no CRC-32 is looked at
        with Loader(runtime_of=emulated, verify=False) as loader, pytest.raises(DecodeError) as e:
            loader.load_file(tmp_path / "spoilt.wcodec", base=tmp_path / "base.wcodec")
        assert e.value.code == code


def test_spoilt_records(chain: tuple[Path, list[Arrays]]) -> None:
    """A flipped bit of the records of gaps or words."""
    folder, _ = chain
    (folder / "0.wcodec").rename(folder / "base.wcodec")
    with wcodec.open(folder / "1.wcodec", base=folder / "base.wcodec") as f:
        t = f.record("float32")
    assert t.lists is not None
    data, seen = bytearray((folder / "1.wcodec").read_bytes()), set[int]()
    with Loader(runtime_of=emulated) as loader:
        for part in t.lists.parts:
            for i in range(4):
                at = part.payload_offset + i * part.payload_nbytes // 4 + 3
                data[at] ^= 1 << i
                (folder / "spoilt.wcodec").write_bytes(data)
                data[at] ^= 1 << i
                e = refused_alike(folder, loader, t.name)
                assert e.code == "bad_checksum"
                seen.add(e.offset or 0)
    assert len(seen) > 4


def test_without_its_base(chain: tuple[Path, list[Arrays]], tmp_path: Path) -> None:
    base = make_array(BY_NAME["bfloat16"], SHAPE, "gaussian")
    wcodec.save_file({"w": base}, tmp_path / "base.wcodec")
    wcodec.save_file({"w": moved(base, 0.01)}, tmp_path / "w.wcodec", base=tmp_path / "base.wcodec")
    assert kinds(tmp_path / "w.wcodec") == {"w": "sparse"}
    with Loader(runtime_of=emulated) as loader, pytest.raises(DecodeError, match="bad_base") as e:
        loader.decode((tmp_path / "w.wcodec").read_bytes())
    assert e.value.tensor == "w"


# ---- memory --------------------------------------------------------------------------------------
def test_limits_are_of_lists_too(
    chain: tuple[Path, list[Arrays]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as little memory as a loader takes, for one level of bases, and for two."""
    monkeypatch.setattr("wcodec.cuda.loader.SLOT_NBYTES", 1 << 16)
    monkeypatch.setattr("wcodec.cuda.loader.LEAST_SLOT_NBYTES", 1 << 14)
    folder, versions = chain
    for i, tensors in enumerate(versions[1:], 1):
        limit = least_limit(lambda n, i=i: limited(n).load_file(folder / f"{i}.wcodec"))
        runtime = Counting(0)
        check(limited(limit, runtime).load_file(folder / f"{i}.wcodec"), tensors)
        assert runtime.most <= limit
        limit = least_limit(lambda n, i=i: [*limited(n).iterate(folder / f"{i}.wcodec")])
        runtime, names = Counting(0), list[str]()
        for t in limited(limit, runtime).iterate(folder / f"{i}.wcodec"):
            same(t, tensors[t.name])
            names.append(t.name)
            del t
        assert names == list(tensors)
        assert runtime.most <= limit


def limited(limit: int, runtime: Counting | None = None) -> Loader:
    runtime = runtime or Counting(0)
    return Loader(runtime_of=lambda _: runtime, max_device_bytes=limit)


def least_limit(load: Callable[[int], Any]) -> int:
    """What the refusal of less says."""
    e = error_of(lambda: load(1))
    assert e is not None
    assert e.code == "resource_limit"
    needs = [int(word.strip(",;")) for word in e.message.split() if word.strip(",;").isdecimal()]
    return needs[0] + needs[1]


def test_lists_larger_than_a_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a segment takes beyond a slot is counted, in the file and in its base."""
    monkeypatch.setattr("wcodec.cuda.loader.SLOT_NBYTES", 1 << 12)
    monkeypatch.setattr("wcodec.cuda.loader.LEAST_SLOT_NBYTES", 1 << 12)
    base = {"w": make_array(BY_NAME["float64"], (300, 400), "gaussian")}
    few, many = {"w": moved(base["w"], 0.0001, 1)}, {"w": moved(base["w"], 0.1, 2)}
    wcodec.save_file(base, tmp_path / "base.wcodec")
    for name, steps in (("once", [many]), ("twice", [many, few])):
        path = tmp_path / "base.wcodec"
        for i, tensors in enumerate(steps):
            wcodec.save_file(tensors, tmp_path / f"{name}{i}.wcodec", base=path)
            path = tmp_path / f"{name}{i}.wcodec"
            assert kinds(path) == {"w": "sparse"}
        with wcodec.open(tmp_path / f"{name}0.wcodec") as f:
            largest = int(on_device.segments_nbytes(f.record("w"), f.index.tables).max())
        assert largest > 100_000
        limit = least_limit(lambda n, path=path: limited(n).load_file(path))
        assert limit > 3 * base["w"].nbytes + BUFFERS_OF_SLOT * largest
        runtime = Counting(0)
        loader = limited(limit, runtime)
        for _ in range(2):
            check(loader.load_file(path), steps[-1])
        assert runtime.most <= limit
        slots = [s for p in loader._pipelines if p for s in p._free]
        assert all(s.payload is None or s.payload.size <= 1 << 12 for s in slots)
    assert LEAST_SLOT_NBYTES > 1 << 12


def test_what_is_queued_is_waited_for_when_something_fails(
    chain: tuple[Path, list[Arrays]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, versions = chain
    runtime, take, n = Counting(0), on_device.sparse.take, 0

    def failing(*args: Any) -> None:
        nonlocal n
        n += 1
        if n == 2:
            raise MemoryError("no room")
        take(*args)

    monkeypatch.setattr(on_device.sparse, "take", failing)
    loader = Loader(runtime_of=lambda _: runtime)
    with pytest.raises(DecodeError, match=r"resource_limit.*no room"):
        loader.load_file(folder / "1.wcodec")
    assert runtime._streams
    assert not any(stream.waiting for stream in runtime._streams)
    check(loader.load_file(folder / "1.wcodec"), versions[1])


# ---- encoding ------------------------------------------------------------------------------------
def test_the_backend_writes_the_same(chain: tuple[Path, list[Arrays]]) -> None:
    folder, versions = chain
    write_safetensors(folder / "in", versions[1])
    written = list[bytes]()
    for backend in backends():
        base = folder / "0.safetensors"
        encode_file(folder / "in", folder / "out", None, backend, base=base, overwrite=True)
        written.append((folder / "out").read_bytes())
        with wcodec.open(folder / "out", backend, base=base) as f:
            for name, a in versions[1].items():
                assert f.get_tensor(name).tobytes() == bits(a)
    assert written[0] == written[1] == written[2]


def backends() -> Iterator[Any]:
    yield load_backend("reference")
    yield load_backend("numba")
    yield EmulatedCuda()
