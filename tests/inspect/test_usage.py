"""`wcodec du`: sizes, what is held more than once, what bases would save, what cannot be read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from inputs import BY_NAME, bits, make_array, safetensors_bytes
from numpy.typing import NDArray
from test_cli import call

import wcodec
from wcodec import EncodeOptions
from wcodec.backends import load_backend
from wcodec.directories.hub_reading import HubFile
from wcodec.directories.hub_writing import encode_hub_file
from wcodec.errors import BackendUnavailable
from wcodec.files.checkpoint import encode_file
from wcodec.files.saving import save_file
from wcodec.inspect import sampling
from wcodec.inspect.places import Failures, find_files
from wcodec.inspect.sampling import Candidate, choose_pairs, strata_nbytes, strata_of
from wcodec.inspect.sharing import Copy, by_checksums, by_sha256
from wcodec.inspect.usage import usage
from wcodec.inspect.weights import Held, Limits, open_weights
from wcodec.reference.container import MAGIC

NUMBA = load_backend("numba")
BF16 = BY_NAME["bfloat16"]
NORM = np.linspace(0, 1, 160, dtype=np.float32)
NBYTES = 3 * 2 * 300 * 160 + NORM.nbytes  #: of the tensors of a checkpoint


def checkpoint() -> dict[str, NDArray[Any]]:
    layers = {f"layer.{i}.w": make_array(BF16, (300, 160), "gaussian", i) for i in range(3)}
    return {**layers, "norm": NORM}


def tuned(tensors: dict[str, NDArray[Any]], names: list[str]) -> dict[str, NDArray[Any]]:
    """The same, but for a twentieth of the words of some tensors."""
    rng, changed = np.random.default_rng(7), dict(tensors)
    for name in names:
        words = tensors[name].view(np.uint16).copy()
        words ^= (rng.random(words.shape) < 0.05) * rng.integers(1, 4, words.shape, np.uint16)
        changed[name] = words.view(BF16.numpy)
    return changed


def write_plain(tensors: dict[str, NDArray[Any]], path: Path) -> Path:
    named = {"bfloat16": "BF16", "float32": "F32"}
    entries = [(k, named[v.dtype.name], list(v.shape), bits(v)) for k, v in tensors.items()]
    path.write_bytes(safetensors_bytes(entries))
    return path


def write_coded(tensors: dict[str, NDArray[Any]], path: Path, **how: Any) -> Path:
    plain = write_plain(tensors, path.with_suffix(".plain"))
    encode_file(plain, path, backend=NUMBA, **how)
    plain.unlink()
    return path


def report_of(*places: object, **how: Any) -> dict[str, Any]:
    report = usage([str(p) for p in places], NUMBA, **how)
    assert json.loads(json.dumps(report)) == report
    return report


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A checkpoint in four forms, one that differs from it in a tensor, one with other names, and
    what is no weights.
    """
    root, first = tmp_path / "models", checkpoint()
    (root / "more").mkdir(parents=True)
    plain = write_plain(first, root / "a.safetensors")
    encode_file(plain, root / "a.wcodec", backend=NUMBA)
    encode_hub_file(plain, root / "hub.safetensors", backend=NUMBA)
    write_coded(tuned(first, ["layer.1.w"]), root / "more" / "b.wcodec")
    renamed = {k.replace("layer", "block"): v for k, v in first.items() if k != "norm"}
    write_coded(renamed, root / "more" / "c.wcodec")
    (root / "config.json").write_text("{}")
    return root


# ---- sizes ---------------------------------------------------------------------------------------
def test_sizes(models: Path) -> None:
    report = report_of(models)
    sizes = {p: p.stat().st_size for p in models.rglob("*") if p.is_file()}
    assert report["stored_nbytes"] == sum(sizes.values())
    assert (report["n_files"], report["errors"]) == (6, [])
    plain = (models / "a.safetensors").stat().st_size
    forms = {k: (of["n_files"], of["n_tensors"]) for k, of in report["forms"].items()}
    assert forms == {
        "wcodec": (3, 11), "hub": (1, 4), "safetensors": (1, 4), "other": (1, 0),
        "unreadable": (0, 0),
    }  # fmt: skip
    hub = report["forms"]["hub"]
    assert (hub["nbytes"], hub["stored_nbytes"]) == (plain, sizes[models / "hub.safetensors"])
    assert report["forms"]["other"]["stored_nbytes"] == 2
    assert report["dtypes"]["BF16"]["n_tensors"] == 15
    assert report["dtypes"]["BF16"]["nbytes"] == 15 * 2 * 300 * 160
    assert report["dtypes"]["F32"]["n_tensors"] == 4
    assert report["dtypes"]["F32"]["nbytes"] == 4 * NORM.nbytes
    for one in report["files"]:
        assert one["stored_nbytes"] == sizes[Path(one["file"])]
        assert one["base"] is None
    with wcodec.open(models / "a.wcodec") as f:
        payload = sum(t.payload_nbytes for t in f.index.tensors)
    alone = report_of(models / "a.wcodec")
    assert sum(of["stored_nbytes"] for of in alone["dtypes"].values()) == payload
    assert alone["n_files"] == 1


def test_files_that_are_named_themselves(models: Path, tmp_path: Path) -> None:
    """What a file is depends on what is in it, if it has been named, or has a name of weights."""
    shutil.copy(models / "a.wcodec", tmp_path / "v1.5")
    shutil.copy(models / "a.safetensors", tmp_path / "v2.0")
    shutil.copy(models / "a.wcodec", tmp_path / "wrong.safetensors")
    places = [tmp_path / n for n in ("v1.5", "v2.0", "wrong.safetensors")]
    report = report_of(*places, models / "config.json", sampled=False)
    forms = [one["form"] for one in report["files"]]
    assert forms == ["wcodec", "safetensors", "wcodec", "other"]
    assert report["bases"] is None
    inside = report_of(tmp_path, sampled=False)
    assert {Path(one["file"]).name: one["form"] for one in inside["files"]}["v1.5"] == "other"


def test_links_count_once(models: Path, tmp_path: Path) -> None:
    """As in a cache of Hugging Face: a blob is what the link to it is called."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    shutil.copy(models / "a.wcodec", blobs / "0123")
    (snapshot / "model.wcodec").symlink_to("../../blobs/0123")
    os.link(blobs / "0123", blobs / "4567")
    (snapshot / "elsewhere").symlink_to(models)
    report = report_of(tmp_path / "hub", snapshot / "model.wcodec")
    assert [one["file"] for one in report["files"]] == [str(snapshot / "model.wcodec")]


def test_numbers_in_names_are_numbers(tmp_path: Path) -> None:
    for name in ("step-10", "step-9", "step-100"):
        (tmp_path / name).write_bytes(b"x")
    found = find_files([tmp_path], Failures())
    assert [f.place.name for f in found] == ["step-9", "step-10", "step-100"]


# ---- what is held more than once -----------------------------------------------------------------
def test_duplicates_by_checksums(models: Path) -> None:
    found = report_of(models, sampled=False)["duplicates"]
    assert found["compared_by"] == "crc32"
    assert found["not_compared"] == {"n_tensors": 4, "nbytes": NBYTES}
    w = 2 * 300 * 160
    # each of three matrices is in a.wcodec, hub and c; b has two of them, and the norm
    assert found["between"]["nbytes"] == (3 + 2 + 3) * w + 2 * NORM.nbytes
    assert found["between"]["n_tensors"] == 10
    assert found["within"]["n_tensors"] == 0
    names = [[Path(f).name for f in g["files"]] for g in found["groups"]]
    assert sorted(map(sorted, names)) == [
        ["a.wcodec", "b.wcodec", "c.wcodec", "hub.safetensors"],
        ["a.wcodec", "b.wcodec", "hub.safetensors"],
        ["a.wcodec", "c.wcodec", "hub.safetensors"],
    ]
    largest = found["groups"][0]
    assert largest["nbytes"] == 2 * 3 * w
    assert largest["n_renamed"] == 2
    assert ["block.0.w", "layer.0.w"] in largest["names"]


def test_duplicates_by_sha256(models: Path) -> None:
    found = report_of(models, sampled=False, full=True)["duplicates"]
    assert found["compared_by"] == "sha256"
    assert found["not_compared"] == {"n_tensors": 0, "nbytes": 0}
    w = 2 * 300 * 160
    assert found["between"]["nbytes"] == (3 + 2 + 3 + 3) * w + 3 * NORM.nbytes
    assert found["between"]["nbytes_by_proof"] == {"sha256": found["between"]["nbytes"]}


def test_what_would_stay_is_the_largest_copy(tmp_path: Path) -> None:
    first = checkpoint()
    base = write_coded(first, tmp_path / "a.wcodec")
    write_coded(first, tmp_path / "b.wcodec", base=base)
    report = report_of(tmp_path)
    between = report["duplicates"]["between"]
    with wcodec.open(tmp_path / "b.wcodec") as f:
        assert f.needs_base
        assert between["stored_nbytes"] == sum(t.payload_nbytes for t in f.index.tensors)
    assert between["nbytes"] == NBYTES
    assert report["files"][1]["base"] == "a.wcodec"
    assert report["bases"]["pairs"] == [], "one has a base, and is none"


def test_duplicates_within_files(tmp_path: Path) -> None:
    array = make_array(BF16, (300, 160), "gaussian")
    tied = {"embed": array, "head": array, "other": make_array(BF16, (300, 160), "gaussian", 1)}
    save_file(tied, tmp_path / "coded.wcodec")
    coded = report_of(tmp_path)["duplicates"]
    assert coded["within"]["nbytes"] == array.nbytes
    assert coded["within"]["stored_nbytes"] == 0
    write_plain(tied, tmp_path / "plain.safetensors")
    plain = report_of(tmp_path / "plain.safetensors", full=True)["duplicates"]
    assert plain["within"]["nbytes"] == plain["within"]["stored_nbytes"] == array.nbytes
    assert plain["between"]["nbytes"] == 0


def test_records_that_are_equal_tell_more_than_a_checksum(tmp_path: Path) -> None:
    """They are of files that hold the same, coded in the same way."""
    first = checkpoint()
    write_coded(first, tmp_path / "a.wcodec")
    write_coded(first, tmp_path / "b.wcodec")
    same = report_of(tmp_path)["duplicates"]["between"]
    assert same["nbytes_by_proof"] == {"segment_crc32": NBYTES}
    write_coded(first, tmp_path / "c.wcodec", options=EncodeOptions(coder="raw"))
    of_both = report_of(tmp_path / "a.wcodec", tmp_path / "c.wcodec")["duplicates"]["between"]
    # the norm is stored as it is in both
    due = {"crc32": NBYTES - NORM.nbytes, "segment_crc32": NORM.nbytes}
    assert of_both["nbytes_by_proof"] == due


def held(name: str, crc32: int | None, records: bytes = b"") -> Held:
    shape = (4, 8)
    return Held(name, "BF16", shape, 64, 60, crc32, records, BF16.numpy)


def test_a_checksum_is_no_proof() -> None:
    """Three tensors of one CRC-32, two of which are the same."""
    group = [Copy(i, held("w", 5)) for i in range(3)]
    assert by_checksums([group])[0].proof == "crc32"
    digests = {(0, "w"): b"x", (1, "w"): b"y", (2, "w"): b"x"}
    (same,) = by_sha256([group], digests)
    assert [c.file for c in same.copies] == [0, 2]
    assert by_sha256([group], {(0, "w"): b"x"}) == [], "others could not be read"


# ---- what bases would save -----------------------------------------------------------------------
@pytest.mark.parametrize("form", ["wcodec", "safetensors", "hub"])
def test_estimates_are_near(tmp_path: Path, form: str) -> None:
    """Of tensors of which a sample is a part."""
    first = {f"w{i}": make_array(BF16, (1024, 512), "gaussian", i) for i in range(4)}
    first["flat"] = make_array(BF16, (1 << 18,), "gaussian", 9)
    changed = tuned(first, list(first))
    changed["new"] = make_array(BF16, (256, 512), "gaussian", 10)
    base, plain = write_coded(first, tmp_path / "a.wcodec"), tmp_path / "b.safetensors"
    write_plain(changed, plain)
    real, alone = (
        encode_file(plain, tmp_path / "real", base=of, backend=NUMBA, overwrite=True)[1]
        for of in (base, None)
    )
    target = tmp_path / f"b.{'wcodec' if form == 'wcodec' else 'safetensors'}"
    if form == "hub":
        plain = plain.rename(tmp_path / "plain")
        encode_hub_file(plain, target, backend=NUMBA)
    elif form == "wcodec":
        encode_file(plain, target, backend=NUMBA)
        plain.unlink()
    report = report_of(base, target, sample_nbytes=1 << 20)
    (pair,) = report["bases"]["pairs"]
    assert (pair["file"], pair["base"]) == (str(target), str(base))
    assert pair["now_nbytes"] == target.stat().st_size
    assert pair["with_base_nbytes"] == pytest.approx(real, rel=0.2)
    assert pair["alone_nbytes"] == pytest.approx(alone, rel=0.02)
    assert real < 0.6 * alone
    assert pair["saved_nbytes"] == pair["now_nbytes"] - pair["with_base_nbytes"]
    assert report["bases"]["saved_nbytes"] == pair["saved_nbytes"]
    assert (pair["n_shared"], pair["n_equal"]) == (5, 0)
    assert 1 << 19 < pair["sample_nbytes"] < 3 << 19


def test_estimates_of_some_tensors(tmp_path: Path) -> None:
    """Some do the same in each layer, and only these have changed: regular samples may miss them"""
    shapes = {"q": (64, 256), "k": (16, 256), "v": (16, 256), "up": (192, 256), "gate": (192, 256)}
    first = {
        f"layers.{i}.{k}": make_array(BF16, shape, "gaussian", 5 * i + len(k))
        for i in range(8)
        for k, shape in shapes.items()
    }
    first["embed"] = make_array(BF16, (2000, 256), "gaussian", 99)
    base = write_plain(first, tmp_path / "a.safetensors")
    for some in (["q", "v"], ["k"], ["up"], ["layers.6", "layers.7"], ["embed"]):
        names = [k for k in first if k.endswith(tuple(some)) or k.startswith(tuple(some))]
        plain = write_plain(tuned(first, names), tmp_path / "b.safetensors")
        real = encode_file(plain, tmp_path / "c", base=base, backend=NUMBA, overwrite=True)[1]
        (pair,) = report_of(base, plain, sample_nbytes=1 << 20)["bases"]["pairs"]
        assert pair["with_base_nbytes"] == pytest.approx(real, rel=0.2), some


def test_tensors_that_are_equal_take_nothing(models: Path) -> None:
    report = report_of(models / "a.wcodec", models / "more" / "b.wcodec")
    (pair,) = report["bases"]["pairs"]
    assert (pair["n_shared"], pair["n_equal"]) == (4, 3)
    assert pair["sample_nbytes"] == 2 * 300 * 160
    assert 0 < pair["with_base_nbytes"] < 0.3 * pair["now_nbytes"]


def test_parts_that_take_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers may cut tensors so that a row cannot be had without all others."""
    first = {"w": make_array(BF16, (300, 160), "gaussian")}
    write_coded(first, tmp_path / "a.wcodec", options=EncodeOptions(segment=(300, 64)))
    write_coded(tuned(first, ["w"]), tmp_path / "b.wcodec")
    assert len(report_of(tmp_path)["bases"]["pairs"]) == 1
    monkeypatch.setattr("wcodec.inspect.weights._ROW_NBYTES", 2 * 300 * 160 - 1)
    report = report_of(tmp_path)
    assert (report["bases"]["pairs"], report["errors"]) == ([], [])
    write_plain(first, tmp_path / "c.safetensors")
    for names in ("a.wcodec", "c.safetensors"), ("c.safetensors", "b.wcodec"):
        report = report_of(*(tmp_path / name for name in names))
        assert report["bases"]["pairs"] == []


def test_a_base_that_does_not_help(tmp_path: Path) -> None:
    """Of the same names and shapes, and nothing else in common."""
    write_coded({"w": make_array(BF16, (300, 160), "gaussian", 1)}, tmp_path / "a.wcodec")
    write_coded({"w": make_array(BF16, (300, 160), "gaussian", 2)}, tmp_path / "b.wcodec")
    (pair,) = report_of(tmp_path)["bases"]["pairs"]
    assert 0 <= pair["saved_nbytes"] < 0.05 * pair["now_nbytes"]


def test_pairs() -> None:
    def of(number: int, **crc32s: int) -> Candidate:
        return Candidate(number, [held(n, c) for n, c in crc32s.items()], crc32s)

    a, b, other = of(0, u=1, v=2, w=3), of(1, u=4, v=5, w=3), of(2, x=1, y=2)
    pairs, n = choose_pairs([a, b, other, of(3, u=1, v=2, w=9)], 9)
    assert n == 0
    assert [(p.file, p.base) for p in pairs] == [(1, 0), (3, 0)]
    assert [t.name for t in pairs[1].equal] == ["u", "v"]
    assert [t.name for t in pairs[1].differing] == ["w"]
    assert choose_pairs([a, of(1, u=1, v=2, x=3, y=4)], 9) == ([], 0), "half is not most"
    many = [of(i, u=2 * i, v=2 * i + 1) for i in range(20)]
    pairs, n = choose_pairs(many, 5)
    assert (len(pairs), n) == (5, 12), "three of 20 stay full"
    pairs, _ = choose_pairs(many, 99)
    base_of = {p.file: p.base for p in pairs}
    assert base_of == {i: i - 1 for i in range(1, 20) if i % 8}, "chains end somewhere"


@pytest.mark.parametrize("shape", [(4096,), (64, 64), (1, 8, 512), (2, 1, 2048), (5, 7, 11, 13)])
def test_blocks_lie_side_by_side(shape: tuple[int, ...]) -> None:
    n = int(np.prod(shape))
    t = Held("w", "F32", shape, 4 * n, 4 * n, None, b"", np.dtype("<f4"))
    array, most = np.arange(n).reshape(shape), 4 * n // 2
    for nbytes in (4096, 20_000, most):
        (stratum,) = strata_of([t], nbytes)
        assert stratum.nbytes == 4 * n
        assert 0 < strata_nbytes([stratum]) <= max(nbytes, 64 * 4 * shape[-1])
        firsts = []
        for _, index in stratum.blocks:
            part = array[index].reshape(-1)
            assert part.tolist() == list(range(part[0], part[-1] + 1))
            firsts.append(int(part[0]))
        assert len(set(firsts)) == len(firsts)
    assert strata_of([t], 4 * n)[0].blocks[0].part == tuple(slice(0, s) for s in shape)
    assert strata_of([], 1000) == []


@pytest.mark.parametrize("name", ["a.safetensors", "a.wcodec", "hub.safetensors"])
def test_parts_and_pieces(models: Path, name: str) -> None:
    due, weights = checkpoint(), open_weights(models / name, NUMBA, Limits())
    assert weights is not None
    for t in weights.held:
        assert b"".join(bytes(p) for p in weights.pieces(t.name)) == bits(due[t.name])
        index = tuple(slice(n // 3, n // 2) for n in t.shape[:1]) + tuple(
            slice(0, n) for n in t.shape[1:]
        )
        assert bits(weights.part(t, index)) == bits(due[t.name][index])
    weights.close()
    with pytest.raises(ValueError, match="closed"):
        list(weights.pieces("norm"))


def test_hub_tensors(models: Path) -> None:
    f = HubFile(models / "hub.safetensors", NUMBA)
    with wcodec.open(models / "a.wcodec") as coded:
        for t in coded.index.tensors:
            assert f.crc32(t.name) == t.crc32
    with pytest.raises(KeyError):
        f.get_slice("norm")
    assert f.get_slice("layer.0.w").get_shape() == [300, 160]
    f.close()


def test_progress(models: Path) -> None:
    """What is announced is done: what has no checksum, then what seems to be equal, then samples"""
    due, done = list[int](), list[int]()

    @contextmanager
    def progresses(total: int) -> Iterator[Any]:
        due.append(total)
        done.append(0)

        def update(nbytes: int) -> None:
            done[-1] += nbytes

        yield update

    report = report_of(models, full=True, progresses=progresses)
    assert due == done
    samples = sum(2 * pair["sample_nbytes"] for pair in report["bases"]["pairs"])
    w = 2 * 300 * 160
    assert due == [NBYTES, 2 * NBYTES + (2 + 3) * w + NORM.nbytes, samples]
    report_of(models, progresses=progresses)
    assert len(due) == 4, "indexes alone were read, but for samples"


# ---- what cannot be read -------------------------------------------------------------------------
def test_damaged_files_are_listed(models: Path) -> None:
    data = (models / "a.wcodec").read_bytes()
    (models / "cut.wcodec").write_bytes(data[: len(data) // 2])
    (models / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    (models / "huge.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    (models / "magic.safetensors").write_bytes(MAGIC)
    (models / "gone").symlink_to("nowhere")
    os.mkfifo(models / "pipe")
    report = report_of(models, models / "not-there")
    errors = {Path(e["file"]).name: (e["code"], e["error"]) for e in report["errors"]}
    assert {k: code for k, (code, _) in errors.items()} == {
        "cut.wcodec": "truncated", "lfs.safetensors": "bad_source", "gone": None, "pipe": None,
        "huge.safetensors": "bad_source", "magic.safetensors": "truncated", "not-there": None,
    }  # fmt: skip
    assert "Git LFS" in errors["lfs.safetensors"][1]
    assert errors["pipe"][1] == "neither a file nor a directory"
    assert report["forms"]["unreadable"]["n_files"] == 4
    assert report["forms"]["wcodec"]["n_files"] == 3
    assert report["duplicates"]["between"]["n_tensors"] == 10


def test_damage_that_only_reading_finds(models: Path) -> None:
    """It is in the payload. The rest is compared all the same."""
    path = models / "more" / "c.wcodec"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert report_of(models, sampled=False)["errors"] == []
    report = report_of(models, full=True, sampled=False)
    (error,) = report["errors"]
    assert (error["file"], error["code"]) == (str(path), "bad_checksum")
    assert report["duplicates"]["between"]["n_tensors"] > 10


def test_a_base_that_is_not_there(tmp_path: Path) -> None:
    base = write_coded(checkpoint(), tmp_path / "a.wcodec")
    write_coded(tuned(checkpoint(), ["layer.0.w"]), tmp_path / "b.wcodec", base=base)
    save_file({"again": checkpoint()["layer.1.w"]}, tmp_path / "c.wcodec")
    base.unlink()
    assert report_of(tmp_path)["errors"] == []
    report = report_of(tmp_path, full=True)
    assert [e["code"] for e in report["errors"]] == ["bad_base"]


def test_a_file_that_changes_meanwhile(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(models / "more" / "b.wcodec", models / "b.wcodec")
    real = sampling.choose_pairs

    def late(*args: Any) -> Any:
        shutil.copy(models / "more" / "c.wcodec", models / "b.wcodec")
        return real(*args)

    monkeypatch.setattr("wcodec.inspect.usage.choose_pairs", late)
    report = report_of(models / "a.wcodec", models / "b.wcodec")
    assert [e["code"] for e in report["errors"]] == ["changed"]
    assert report["bases"]["n_failed"] == 1


def test_limits(models: Path) -> None:
    report = report_of(models, max_nbytes=1000)
    assert {e["code"] for e in report["errors"]} == {"resource_limit"}
    assert report["forms"]["unreadable"]["n_files"] == 5
    report = report_of(models, max_memory=1000)
    assert {e["code"] for e in report["errors"]} == {"resource_limit"}
    assert report["forms"]["unreadable"]["n_files"] == 5


def test_errors_that_are_no_file_s() -> None:
    failures = Failures()
    with pytest.raises(BackendUnavailable), failures.noted("a"):
        raise BackendUnavailable("no")
    with failures.noted("a"):
        raise MemoryError
    with failures.noted("a"):
        raise OSError(5, "once is enough", "a")
    assert [e["code"] for e in failures.listed] == ["resource_limit"]


# ---- URLs ----------------------------------------------------------------------------------------
@pytest.fixture
def url(models: Path) -> Iterator[str]:
    """The same at a URL."""
    fs = fsspec.filesystem("memory")
    for path in models.rglob("*"):
        if path.is_file():
            fs.pipe(f"/du/{path.relative_to(models).as_posix()}", path.read_bytes())
    yield "memory://du"
    fs.rm("/du", recursive=True)


@pytest.mark.parametrize("full", [False, True])
def test_urls(models: Path, url: str, full: bool) -> None:
    here, there = report_of(models, full=full), report_of(url, full=full)

    def without_places(value: Any) -> Any:
        text = json.dumps(value)
        return json.loads(text.replace(str(models), "X").replace(url, "X"))

    assert without_places(there) == without_places(here)
    one = report_of(f"{url}/a.wcodec")
    assert (one["n_files"], one["errors"]) == (1, [])
    (error,) = report_of(f"{url}/not-there")["errors"]
    assert error["file"] == f"{url}/not-there"


# ---- the command ---------------------------------------------------------------------------------
def test_the_command(models: Path, tmp_path: Path) -> None:
    status, out, err = call("du", models)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(f"{models}: 6 files, ")
    assert any(line.startswith(".wcodec") for line in lines)
    assert any(line.startswith("safetensors, hub form") for line in lines)
    assert any(line.startswith("BF16 ") for line in lines)
    assert "held more than once, by CRC-32s of the files' indexes:" in lines
    assert "; --full reads them" in out
    assert "with the base" in out
    status, out, err = call("du", "--full", "--no-sample", models)
    assert (status, err) == (0, "")
    assert "by SHA-256" in out
    assert "base" not in out
    status, out, err = call("du", "--json", "--pairs", 1, models)
    assert status == 0
    report = json.loads(out)
    assert report == usage([str(models)], max_pairs=1)
    assert report["bases"]["n_left_out"] > 0
    assert "--pairs takes more" in call("du", "--pairs", 1, models)[1]


def test_the_command_fails(models: Path) -> None:
    (models / "cut.wcodec").write_bytes(MAGIC)
    status, out, err = call("du", models, models / "not-there")
    assert status == 1
    assert out.startswith(f"{models}, {models}/not-there: 7 files, ")
    assert "not readable" in out
    first, second = err.splitlines()
    assert first == f"wcodec: error: {models}/not-there: No such file or directory"
    assert second.startswith(f"wcodec: error: truncated: in '{models}/cut.wcodec': the file has 8")
    status, out, _ = call("du", "--json", models)
    assert status == 1
    assert [e["code"] for e in json.loads(out)["errors"]] == ["truncated"]
    assert call("du")[0] == 2
    assert call("du", "--no-sample", "--pairs", 3, models)[0] == 2
    assert call("du", "--max-nbytes", "10", models)[0] == 1


def test_long_lists_are_cut(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for i in range(13):
        few = {"a": rng.random((8, 64)), "b": np.full((8, 64), i // 6 + 0.5)}
        save_file(few, tmp_path / f"{i}.wcodec")
        save_file({"x": few["a"]}, tmp_path / f"{i}-again.wcodec")
    status, out, err = call("du", tmp_path)
    assert (status, err) == (0, "")
    assert "  and 5 more; --json has more of them" in out
    assert f"{tmp_path}/3.wcodec and 2 other files" in out


def test_a_place_without_weights(tmp_path: Path) -> None:
    status, out, err = call("du", tmp_path)
    assert (status, err) == (0, "")
    assert out.startswith(f"{tmp_path}: 0 files, 0 B in 0 B\n")
