"""Differences from a base: small where little has moved, exact always,
and refused without the very base.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from conftest import BACKENDS
from cuda_emulator import EmulatedRuntime
from cuda_emulator.backend import EmulatedCuda
from cuda_emulator.streams import LazyRuntime
from fences import Fence
from inputs import ARRAY_DTYPES, BY_NAME, bits, make_array, safetensors_bytes
from memory import peak_of
from sampling import exhaustive, sampled
from test_cli import assert_one_line_of_error, call

import wcodec
from wcodec.backends import Backend, load_backend, use_backend
from wcodec.backends.cuda import differences as on_device
from wcodec.backends.numba.backend import NumbaBackend
from wcodec.codec import encoder
from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder
from wcodec.cuda import Loader
from wcodec.cuda.loader import BUFFERS_OF_SLOT, LEAST_SLOT_NBYTES
from wcodec.errors import DecodeError, EncodeError
from wcodec.files.checkpoint import decode_file, encode_file, verify_file
from wcodec.files.file import MAX_BASES, File, open_base
from wcodec.inspect.report import as_text, describe
from wcodec.planner.options import EncodeOptions
from wcodec.reference import differences as reference
from wcodec.reference.differences import Difference
from wcodec.reference.planes import DType
from wcodec.reference.tiles import Geometry

Array = np.ndarray[Any, Any]
KINDS = (Difference.XOR, Difference.MINUS)
WEIGHTS = ("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "int8", "uint8", "int32")


# ---- arithmetic ----------------------------------------------------------------------------------
def by_the_spec(w: int, b: int, n: int, kind: Difference) -> int:
    """R12.5, word by word."""
    if kind == Difference.XOR:
        return w ^ b
    d = (w - b) % (1 << n)
    return 2 * d if d < 1 << (n - 1) else 2 * ((1 << n) - d) - 1


def words_pair(rng: np.random.Generator, word_nbytes: int, n: int) -> tuple[Array, Array]:
    """Any two words, two that are near, and the extremes."""
    w, b = (
        rng.integers(0, 256, (n, word_nbytes), np.uint8).view(f"<u{word_nbytes}").reshape(-1)
        for _ in range(2)
    )
    near = rng.random(n) < 0.5
    b[near] = (w + rng.integers(0, 5, n).astype(w.dtype) - w.dtype.type(2))[near]
    w[: n // 9], b[: n // 18] = 0, np.iinfo(w.dtype).max
    return w, b


@pytest.mark.parametrize("kind", KINDS)
def test_all_pairs_of_bytes(kind: Difference) -> None:
    w, b = (a.astype(np.uint8).reshape(-1) for a in np.mgrid[:256, :256])
    coded = reference.subtract(w, b, kind)
    assert coded.tolist() == [
        by_the_spec(x, y, 8, kind) for x, y in zip(w.tolist(), b.tolist(), strict=True)
    ]
    reference.add(coded, b, kind)
    assert (coded == w).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word_nbytes", [1, 2, 4, 8])
def test_backends_subtract_and_add_alike(kind: Difference, word_nbytes: int) -> None:
    rng = np.random.default_rng(word_nbytes)
    for shape in ((0, 3), (1, 1), (7, 33), (600, 700)):
        w, b = (a.reshape(shape) for a in words_pair(rng, word_nbytes, shape[0] * shape[1]))
        if w.size < 1000:
            expected = [
                by_the_spec(int(x), int(y), 8 * word_nbytes, kind)
                for x, y in zip(w.flat, b.flat, strict=True)
            ]
            assert reference.subtract(w, b, kind).reshape(-1).tolist() == expected
        w.flags.writeable = b.flags.writeable = False
        for backend in (load_backend("reference"), load_backend("numba"), EmulatedCuda()):
            coded = backend.subtract_base(*map(backend.to_device, (w, b)), kind)
            assert bits(backend.to_host(coded)) == bits(reference.subtract(w, b, kind))
            assert backend.add_base(coded, backend.to_device(b), kind) == load_backend(
                "reference"
            ).crc32(w)
            assert bits(backend.to_host(coded)) == bits(w)


@pytest.mark.parametrize("how", [{}, {"order": "shuffled", "seed": 5}, {"races": True}])
def test_kernels_touch_their_words_alone(how: dict[str, Any]) -> None:
    """All starts and ends within a unit, between pages that cannot be touched."""
    runtime, rng = EmulatedRuntime(**how), np.random.default_rng(0)
    for word_nbytes in (1, 2, 4, 8):
        for n, at_end in (
            (1, True),
            (3, False),
            (16 // word_nbytes + 1, True),
            (700, False),
            (701, True),
        ):
            w, b = words_pair(rng, word_nbytes, n)
            for kind in KINDS:
                # once not aligned alike
                memory = [
                    Fence(n * word_nbytes, end) for end in (at_end, at_end, at_end != (n == 700))
                ]
                for fence, data in zip(memory, (w, b), strict=False):
                    fence.bytes[:] = data.view(np.uint8)
                addresses = [runtime.address(fence.bytes) for fence in memory]
                on_device.subtract_base(runtime, *addresses, n * word_nbytes, word_nbytes, kind)
                assert memory[2].bytes.tobytes() == bits(reference.subtract(w, b, kind))
                on_device.add_base(
                    runtime, addresses[2], addresses[1], n * word_nbytes, word_nbytes, kind
                )
                assert memory[2].bytes.tobytes() == bits(w)


# ---- sizes ---------------------------------------------------------------------------------------
def moved(array: Array, part: float, seed: int = 1) -> Array:
    """A copy with a part of its elements drawn anew."""
    rng, out = np.random.default_rng(seed), array.copy()
    dtype = next(d for d in ARRAY_DTYPES if d.numpy == array.dtype)
    pick = rng.random(array.shape) < part
    out[pick] = make_array(dtype, array.shape, "gaussian", seed + 100)[pick]
    return out


def nudged(array: Array, scale: float = 2, seed: int = 1) -> Array:
    """A copy of which every word is a few steps away."""
    out = array.copy()
    words = out.reshape(-1).view(f"<u{array.dtype.itemsize}")
    words += (
        np.rint(np.random.default_rng(seed).standard_normal(words.size) * scale)
        .astype(np.int64)
        .astype(words.dtype)
    )
    return out


def delta(folder: Path, base: Array, array: Array) -> tuple[int, int, Difference]:
    """Bytes of a file of an array, without a base and with it, which difference,
    once it has come back.
    """
    wcodec.save_file({"w": base}, folder / "base.wcodec")
    plain = wcodec.save_file({"w": array}, folder / "plain.wcodec")
    stored = wcodec.save_file({"w": array}, folder / "delta.wcodec", base=folder / "base.wcodec")
    with wcodec.open(folder / "delta.wcodec") as f:
        assert bits(f.get_tensor("w")) == bits(array)
        return plain, stored, f.record("w").difference


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_a_copy_with_one_weight_in_100_changed(tmp_path: Path, dtype: str) -> None:
    base = make_array(BY_NAME[dtype], (512, 1024), "gaussian")
    plain, stored, difference = delta(tmp_path, base, moved(base, 0.01))
    assert difference != Difference.NONE
    assert stored <= 0.03 * base.nbytes
    assert stored < 0.2 * plain


def test_one_in_100_with_the_reference(tmp_path: Path) -> None:
    base = make_array(BY_NAME["bfloat16"], (512, 512), "gaussian")
    with use_backend("reference"):
        assert delta(tmp_path, base, moved(base, 0.01))[1] <= 0.03 * base.nbytes


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_every_weight_a_few_steps_away(tmp_path: Path, dtype: str) -> None:
    base = make_array(BY_NAME[dtype], (512, 512), "gaussian")
    plain, stored, difference = delta(tmp_path, base, nudged(base))
    assert difference == Difference.MINUS
    assert stored < (0.45 if base.dtype.itemsize > 1 else 0.65) * plain


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_nothing_has_changed(tmp_path: Path, dtype: str) -> None:
    # many segments: not all are looked at
    base = make_array(BY_NAME[dtype], (4000, 600), "gaussian")
    assert delta(tmp_path, base, base)[1] < 1000


def test_signs_that_flip_cost_little(tmp_path: Path) -> None:
    base = make_array(BY_NAME["float32"], (300, 500), "gaussian")
    array = np.where(np.random.default_rng(0).random(base.shape) < 0.5, base, -base)
    plain, stored, difference = delta(tmp_path, base, array)
    assert difference != Difference.NONE
    assert stored < 0.1 * plain


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_another_model_is_no_base(tmp_path: Path, dtype: str) -> None:
    """Where a difference saves nothing, none is taken, and no base is needed."""
    base, array = (make_array(BY_NAME[dtype], (300, 500), "gaussian", seed) for seed in (1, 2))
    plain, stored, difference = delta(tmp_path, base, array)
    assert (stored, difference) == (plain, Difference.NONE)
    (tmp_path / "base.wcodec").unlink()
    with wcodec.open(tmp_path / "delta.wcodec") as f:
        assert f.index.base is None
        assert bits(f.get_tensor("w")) == bits(array)


# ---- checkpoints ---------------------------------------------------------------------------------
def checkpoint() -> dict[str, Array]:
    """Tensors of all dtypes and many shapes."""
    out = {
        d.name: make_array(d, (61, 83), "gaussian", i)
        for i, d in enumerate(ARRAY_DTYPES)
        if d.name != "bool"
    }
    out |= {
        "conv": make_array(BY_NAME["float32"], (40, 8, 3, 3), "gaussian"),
        "bias": make_array(BY_NAME["bfloat16"], (3000,), "gaussian"),
    }
    out |= {"cube": make_array(BY_NAME["bfloat16"], (5, 40, 100), "gaussian")}
    out |= {
        "wide": make_array(BY_NAME["float16"], (3, 5000), "gaussian"),
        "one": np.array(1.5),
        "none": np.empty((0, 3), np.int8),
    }
    return out | {"tied": out["bfloat16"]}


def fine_tuned(base: dict[str, Array], seed: int = 1) -> dict[str, Array]:
    """Every weight a few steps away, and some far."""
    out = {
        n: nudged(a, seed=seed) if a.dtype.itemsize < 16 and a.dtype.kind != "c" else a.copy()
        for n, a in base.items()
    }
    for array in out.values():
        if array.dtype.itemsize == 2:
            array.reshape(-1).view(np.uint16)[::50] += np.uint16(700)
    return out | {"tied": out["bfloat16"]}


BASE = checkpoint()
FINE = fine_tuned(BASE)
FEW = {
    n: FINE[n]
    for n in (
        "int8",
        "float16",
        "bfloat16",
        "float64",
        "complex64",
        "conv",
        "bias",
        "cube",
        "one",
        "none",
        "tied",
    )
}
DTYPE_NAMES = {a.dtype: d.safetensors for d in ARRAY_DTYPES for a in [np.empty(0, d.numpy)]}


def write_safetensors(path: Path, tensors: dict[str, Array], padding: int = 0) -> bytes:
    """By hand: in the order of the names given, so that words lie at odd addresses."""
    entries = [(n, DTYPE_NAMES[a.dtype], list(a.shape), bits(a)) for n, a in tensors.items()]
    data = safetensors_bytes(entries, {"format": "pt"}, padding)
    path.write_bytes(data)
    return data


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a base in both forms, and ``fine.safetensors``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WCODEC_BACKEND", raising=False)
    write_safetensors(tmp_path / "base.safetensors", BASE, padding=3)
    wcodec.save_file(
        BASE, tmp_path / "base.wcodec", options=EncodeOptions(segment=(32, 48), layout="bytes")
    )
    write_safetensors(tmp_path / "fine.safetensors", FINE)
    return tmp_path


def same(path: Path | io.BytesIO, tensors: dict[str, Array], **how: Any) -> None:
    with wcodec.open(path, **how) as f:
        assert f.keys() == list(tensors)
        for name, array in tensors.items():
            assert bits(f.get_tensor(name)) == bits(array), name
            if array.ndim == 3:
                assert bits(f.get_slice(name)[1:4]) == bits(array[1:4]), name
            if array.ndim == 2 and array.size:
                for index in (
                    (slice(3, 50, 9), slice(None)),
                    (2, slice(5, 70)),
                    (slice(None), slice(10, None, 21)),
                    (1, slice(70, None, 190)),
                ):
                    assert bits(f.get_slice(name)[index]) == bits(array[index]), name


@pytest.mark.parametrize(
    ("backend", "base"),
    [
        *((name, "base.safetensors") for name in BACKENDS),
        ("numba", "base.wcodec"),
        exhaustive(("reference", "base.wcodec")),
    ],
    indirect=["backend"],
)
def test_there_and_back(files: Path, backend: Backend, base: str) -> None:
    original = (files / "fine.safetensors").read_bytes()
    _, stored = encode_file("fine.safetensors", "delta.wcodec", base=base, overwrite=True)
    assert stored < encode_file("fine.safetensors", "plain.wcodec", overwrite=True)[1] * 0.7
    assert verify_file("delta.wcodec") == (stored, len(original))  # beside it
    decode_file("delta.wcodec", "out", overwrite=True)
    assert (files / "out").read_bytes() == original
    other = {"base.safetensors": "base.wcodec", "base.wcodec": "base.safetensors"}[base]
    (files / base).rename("elsewhere")
    for now in ("elsewhere", other):
        decode_file("delta.wcodec", "out", base=now, overwrite=True)
        assert (files / "out").read_bytes() == original
        same(files / "delta.wcodec", FINE, base=now)


def test_the_file_depends_on_nothing_but_the_words(files: Path) -> None:
    """The base's form, its options, and the backend are all one."""
    written = set()
    for name in ("reference", "numba"):
        (files / name).mkdir()
        for form in ("base.safetensors", "base.wcodec"):
            (files / name / "base").write_bytes((files / form).read_bytes())
            encode_file(
                "fine.safetensors",
                "delta",
                None,
                load_backend(name),
                base=files / name / "base",
                overwrite=True,
            )
            written.add((files / "delta").read_bytes())
    assert len(written) == 1


def test_content_hash(files: Path) -> None:
    """As R11.4 says, however it is coded, and no other order, name, dtype, shape or bit."""
    with File("base.wcodec") as f:
        found = reference.content_hash((t.name, t.dtype, t.shape, t.crc32) for t in f.index.tensors)
        assert found == reference.content_hash(
            (t.name, t.dtype, t.shape, t.crc32) for t in reversed(f.index.tensors)
        )
    row = ("w", BY_NAME["int8"], (2, 3), 7)
    changes = [
        ("x", *row[1:]),
        ("w", BY_NAME["uint8"], (2, 3), 7),
        ("w", row[1], (3, 2), 7),
        ("w", row[1], (6,), 7),
        (*row[:3], 8),
    ]
    different = [row], [], [row, ("y", *row[1:])], *([c] for c in changes)
    assert len({reference.content_hash(rows) for rows in different}) == 8
    by_hand = bytes.fromhex("01000000 77 03 02 0200000000000000 0300000000000000 07000000")
    assert reference.content_hash([row]) == hashlib.sha256(by_hand).digest()
    assert open_base("base.safetensors", load_backend("numba")).content_hash() == found


def test_tensors_without_a_match_are_stored_whole(files: Path) -> None:
    word = BY_NAME["bfloat16"]
    a, b = (make_array(word, (100, 90), "gaussian", seed) for seed in (1, 2))
    base = {"renamed": a, "reshaped": a, "retyped": a, "kept": a}
    wcodec.save_file(base, "base.wcodec")
    tensors = {
        "new name": a,
        "reshaped": nudged(a).reshape(90, 100),
        "retyped": nudged(a).view(np.float16),
        "kept": nudged(a),
        "new": b,
    }
    wcodec.save_file(tensors, "delta.wcodec", base="base.wcodec")
    same(files / "delta.wcodec", tensors)
    with wcodec.open("delta.wcodec") as f:
        assert {t.name for t in f.index.tensors if t.difference} == {"kept"}
        (files / "base.wcodec").unlink()
        for name in ("new name", "reshaped", "retyped", "new"):
            assert bits(f.get_tensor(name)) == bits(tensors[name])
        with pytest.raises(DecodeError, match="bad_base"):
            f.get_tensor("kept")


def test_duplicates_of_differences(files: Path) -> None:
    """The base's tensor is found by the name of the first one."""
    wcodec.save_file({"w": BASE["bfloat16"]}, "base.wcodec")
    fine = {"w": FINE["bfloat16"], "v": FINE["bfloat16"], "u": FINE["bfloat16"]}
    wcodec.save_file(fine, "delta.wcodec", base="base.wcodec")
    same(files / "delta.wcodec", fine)
    verify_file("delta.wcodec")
    with wcodec.open("delta.wcodec") as f:
        found = [(t.duplicate_of, bool(t.difference)) for t in f.index.tensors]
        assert found == [(None, True), (0, True), (0, True)]


def other_geometry(row_rank: int, segment: tuple[int, int]) -> Any:
    """Stands in for `choose_geometry`."""

    def choose(shape: tuple[int, ...], dtype: DType, _: Any) -> tuple[int, Geometry]:
        rank = min(row_rank, len(shape))
        rows = int(np.prod(shape[:rank], dtype=np.int64))
        cols = int(np.prod(shape[rank:], dtype=np.int64)) * dtype.words_per_element
        return rank, Geometry(rows, cols, *segment, *segment)

    return choose


#: ranks of rows, and segments
OTHERS = [(0, (1, 700)), (1, (7, 11)), (2, (16, 1)), (3, (100, 3)), (4, (1000, 1))]


@pytest.mark.parametrize(
    ("row_rank", "segment", "block"),
    [*((*other, 1 << 23) for other in OTHERS), *sampled([(*other, 300) for other in OTHERS], 2)],
)
def test_a_base_that_is_another_matrix(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    row_rank: int,
    segment: tuple[int, int],
    block: int,
) -> None:
    monkeypatch.setattr("wcodec.files.bases.BLOCK_NBYTES", block)
    names = ("bfloat16", "conv", "bias", "cube", "wide", "complex64")
    with monkeypatch.context() as m:
        m.setattr(encoder, "choose_geometry", other_geometry(row_rank, segment))
        wcodec.save_file({n: BASE[n] for n in names}, "base.wcodec")
    fine = {n: FINE[n] for n in names}
    wcodec.save_file(
        fine, "delta.wcodec", options=EncodeOptions(segment=(16, 64)), base="base.wcodec"
    )
    same(files / "delta.wcodec", fine)
    with wcodec.open("delta.wcodec") as f:
        assert all(t.difference for t in f.index.tensors)


# ---- bases of bases ------------------------------------------------------------------------------
@pytest.mark.parametrize("fine", [FEW, exhaustive(FINE)], ids=len)
def test_a_base_that_is_a_difference(files: Path, backend: Backend, fine: dict[str, Array]) -> None:
    third = fine_tuned(fine, seed=5)
    wcodec.save_file(fine, "second.wcodec", base="base.wcodec")
    wcodec.save_file(third, "third.wcodec", base="second.wcodec")
    same(files / "third.wcodec", third)
    (files / "base.wcodec").unlink()
    with pytest.raises(
        DecodeError, match=r"in the base 'second.wcodec': .*'base.wcodec', which is not beside it"
    ) as e:
        verify_file("third.wcodec")
    assert e.value.code == "bad_base"


class Forged:
    """A base that says of itself what it likes."""

    def __init__(self, name: str, sha256: bytes, words: Array) -> None:
        self.name, self._sha256, self._words = name, sha256, words

    def base_tensor(self, *_: Any) -> Forged:
        return self

    def content_hash(self, _: Mapping[str, int]) -> bytes:
        return self._sha256

    def words(self, rows: slice, cols: slice, room: Array) -> Array:
        return np.ascontiguousarray(self._words[rows, cols])


def forge(path: Path, name: str, array: Array, sha256: bytes | None = None) -> None:
    """A file of differences from a base that is not there;
    by default one whose content hash is its own.
    """
    words = array.view(f"<u{array.dtype.itemsize}")
    with path.open("wb") as f:
        writer = Encoder().start(f)
        t = writer.add("w", array)
    own = reference.content_hash([("w", t.dtype, t.shape, t.crc32)])
    with path.open("wb") as f:
        writer = Encoder().start(f, base=Forged(name, own if sha256 is None else sha256, words))
        assert writer.add("w", array).difference != Difference.NONE
        writer.finish()


def test_bases_of_each_other(files: Path) -> None:
    forge(files / "loop.wcodec", "other.wcodec", BASE["bfloat16"])
    forge(files / "other.wcodec", "loop.wcodec", BASE["bfloat16"])
    with pytest.raises(DecodeError, match=f"more than {MAX_BASES} checkpoints") as e:
        verify_file("loop.wcodec")
    assert e.value.code == "bad_base"


def test_a_base_of_the_same_name_is_not_the_file_itself(files: Path) -> None:
    forge(files / "model.wcodec", "model.wcodec", BASE["bfloat16"])
    with pytest.raises(
        DecodeError, match=r"'model\.wcodec', which is not beside it: name the base \(--base\)"
    ) as e:
        verify_file("model.wcodec")
    assert e.value.code == "bad_base"


# ---- bases that are not there --------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        "../base.wcodec",
        "/etc/passwd",
        "..",
        ".",
        "",
        "x/../base.wcodec",
        "a\0b",
        "x" * 300,
        "b\\c",
        "sub",
    ],
)
def test_a_hint_is_no_path(files: Path, name: str) -> None:
    (files / "sub").mkdir()
    forge(files / "sub" / "delta.wcodec", name, BASE["bfloat16"])
    forge(files / "delta.wcodec", name, BASE["bfloat16"])
    for path in ("sub/delta.wcodec", "delta.wcodec"):
        with pytest.raises(DecodeError, match="name the base") as e:
            wcodec.load_file(path)
        assert e.value.code == "bad_base"


def test_an_empty_tensor_needs_its_base_too(files: Path) -> None:
    forge(files / "delta.wcodec", "none", BASE["bfloat16"])
    with wcodec.open("delta.wcodec") as f:
        t = f.index.tensors[0]
        object.__setattr__(t, "shape", (0, 83))
        object.__setattr__(t, "geometry", Geometry(0, 83, 1, 1, 1, 1))
        for read in (
            lambda: f.decoder.tensor(f.source, t, f.index.tables),
            lambda: next(f.decoder.chunks(f.source, t, f.index.tables)),
        ):
            with pytest.raises(DecodeError, match="bad_base"):
                read()


def test_a_single_array_with_a_difference_is_refused(files: Path) -> None:
    forge(files / "delta.wcodec", "none", BASE["bfloat16"])
    for decode in (Decoder().decode, wcodec.decode):
        with pytest.raises(DecodeError, match="bad_base"):
            decode((files / "delta.wcodec").read_bytes())


def test_a_file_object_has_no_neighbours(files: Path) -> None:
    wcodec.save_file(FINE, "delta.wcodec", base="base.safetensors")
    stream = io.BytesIO((files / "delta.wcodec").read_bytes())
    with pytest.raises(DecodeError, match="bad_base"):
        same(stream, FINE)
    same(stream, FINE, base="base.safetensors")


def test_command_line(files: Path) -> None:
    original = (files / "fine.safetensors").read_bytes()
    status, out, err = call(
        "encode", "--base", "base.safetensors", "fine.safetensors", "-o", "delta.wcodec"
    )
    assert (status, err) == (0, "")
    (files / "fine.safetensors").unlink()
    assert call("verify", "delta.wcodec")[0] == 0
    (files / "base.safetensors").rename("moved.safetensors")
    for command in (("decode", "delta.wcodec", "-f", "-o", "out"), ("verify", "delta.wcodec")):
        status, _, err = call(*command)
        assert status == 1
        assert_one_line_of_error(
            err, "bad_base: in 'delta.wcodec': the file holds differences from 'base.safetensors'"
        )
        assert "--base" in err
        status, _, err = call(*command, "--base", "moved.safetensors")
        assert (status, err) == (0, "")
    assert (files / "out").read_bytes() == original
    status, out, _ = call("info", "delta.wcodec")  # without its base
    assert status == 0
    assert "differences from 'base.safetensors', content hash " in out
    assert "minus base" in out
    assert "xor base" not in call("info", "base.wcodec")[1]


def test_wrong_bases(files: Path) -> None:
    call("encode", "--base", "base.safetensors", "fine.safetensors", "-o", "delta.wcodec")
    changed = bytearray((files / "base.safetensors").read_bytes())
    changed[-1] ^= 1
    (files / "base.safetensors").write_bytes(changed)
    (files / "text").write_text("no checkpoint\n")
    (files / "empty").write_bytes(b"")
    wrong = {
        (): "bad_base: in 'delta.wcodec': base.safetensors has the content hash",
        (
            "--base",
            "base.safetensors",
        ): "bad_base: in 'delta.wcodec': base.safetensors has the content hash",
        (
            "--base",
            "fine.safetensors",
        ): "bad_base: in 'delta.wcodec': fine.safetensors has the content hash",
        (
            "--base",
            "text",
        ): "bad_base: in 'delta.wcodec': in the base 'text': it is no .wcodec file",
        (
            "--base",
            "empty",
        ): "bad_base: in 'delta.wcodec': in the base 'empty': it is no .wcodec file",
        ("--base", "not there"): "not there: No such file",
        ("--base", "."): r"\.: Is a directory",
    }
    for args, message in wrong.items():
        status, _, err = call("decode", "delta.wcodec", "-o", "out", *args)
        assert status == 1
        assert_one_line_of_error(err, message)
        if args:
            assert call("encode", "fine.safetensors", "-f", "-o", "x.wcodec", *args)[0] == (
                0 if "safetensors" in args[1] else 1
            )
    assert not (files / "out").exists()
    status, _, err = call(
        "encode", "fine.safetensors", "-f", "-o", "base.wcodec", "--base", "base.wcodec"
    )
    assert status == 2
    assert "the output base.wcodec is base.wcodec, which is read" in err
    with pytest.raises(
        EncodeError,
        match=r"bad_option: the output 'base.wcodec' would replace 'base.wcodec', which is read",
    ):
        wcodec.save_file(FINE, "base.wcodec", base="base.wcodec")


def test_a_base_that_is_damaged(files: Path) -> None:
    wcodec.save_file(FINE, "delta.wcodec", base="base.wcodec")
    data = bytearray((files / "base.wcodec").read_bytes())
    data[100] ^= 1
    (files / "base.wcodec").write_bytes(data)
    with pytest.raises(DecodeError, match=r"in the base 'base.wcodec'") as e:
        wcodec.load_file("delta.wcodec")
    assert e.value.code == "bad_checksum"


def test_a_difference_that_is_damaged(files: Path, backend: Backend) -> None:
    """No flipped bit gets through."""
    wcodec.save_file({"w": BASE["bfloat16"][:20]}, "base.wcodec")
    wcodec.save_file({"w": moved(BASE["bfloat16"][:20], 0.1)}, "delta.wcodec", base="base.wcodec")
    data = (files / "delta.wcodec").read_bytes()
    for at in np.random.default_rng(3).integers(0, 8 * len(data), 60).tolist():
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        (files / "flipped").write_bytes(flipped)
        with pytest.raises(DecodeError):
            wcodec.load_file("flipped", base="base.wcodec")


def test_info_of_differences(files: Path) -> None:
    wcodec.save_file(FINE, "delta.wcodec", base="base.wcodec")
    with wcodec.open("delta.wcodec") as f:
        report = describe(f)
        assert report["base"] == {"name": "base.wcodec", "content_hash": f.index.base.sha256.hex()}  # type: ignore[union-attr]
        assert all(
            t["order0_bits_per_weight"] is not None
            for t in report["tensors"]
            if t["shape"] not in ([0, 3],)
        )
        (files / "base.wcodec").unlink()
    with wcodec.open("delta.wcodec") as f:
        report = describe(f)
        unknown = [
            t["difference"]
            for t in report["tensors"]
            if t["order0_bits_per_weight"] is None and 0 not in t["shape"]
        ]
        assert len(unknown) > 10
        assert set(unknown) <= {"xor", "minus"}
        assert any("minus base" in line for line in as_text(report))


# ---- devices -------------------------------------------------------------------------------------
def emulated(device: int | None) -> LazyRuntime:
    return LazyRuntime(device or 0, seed=device or 0)


@pytest.mark.parametrize(
    ("slot", "fine"), [(1 << 12, FEW), (1 << 26, FINE), exhaustive((1 << 12, FINE))]
)
def test_on_devices(
    files: Path, monkeypatch: pytest.MonkeyPatch, slot: int, fine: dict[str, Array]
) -> None:
    monkeypatch.setattr("wcodec.cuda.loader.SLOT_NBYTES", slot)
    third = fine_tuned(fine, seed=5)
    # to be cut
    wcodec.save_file(
        fine, "second.wcodec", options=EncodeOptions(segment=(16, 64)), base="base.safetensors"
    )
    wcodec.save_file(third, "third.wcodec", base="second.wcodec")
    for devices in (None, [0, 1]):
        with Loader(devices, streams=2, runtime_of=emulated) as loader:
            for path, base, tensors in (
                ("second", "base.wcodec", fine),
                ("second", None, fine),
                ("third", None, third),
            ):
                loaded = loader.load_file(f"{path}.wcodec", base=base)
                assert list(loaded) == list(tensors)
                assert all(loaded[n].numpy().tobytes() == bits(a) for n, a in tensors.items())
            assert all(
                t.numpy().tobytes() == bits(third[t.name]) for t in loader.iterate("third.wcodec")
            )
            next(iter(loader.iterate("third.wcodec")))  # given up
            assert loader.load_file("third.wcodec", ["tied"])["tied"].numpy().tobytes() == bits(
                third["tied"]
            )


def test_devices_refuse_wrong_bases(files: Path) -> None:
    wcodec.save_file(FINE, "delta.wcodec", base="base.wcodec")
    with Loader(runtime_of=emulated) as loader:
        with pytest.raises(DecodeError, match="bad_base"):
            loader.load_file("delta.wcodec", base="fine.safetensors")
        forge(files / "one.wcodec", "none", BASE["bfloat16"])
        with pytest.raises(DecodeError, match="bad_base"):
            loader.decode((files / "one.wcodec").read_bytes())
        data = bytearray((files / "base.wcodec").read_bytes())
        data[100] ^= 1
        (files / "base.wcodec").write_bytes(data)
        with pytest.raises(DecodeError, match=r"bad_checksum: in the base 'base.wcodec'"):
            loader.load_file("delta.wcodec")
        wcodec.save_file(BASE, "base.wcodec")
        assert loader.load_file("delta.wcodec")["int8"].numpy().tobytes() == bits(FINE["int8"])


def test_devices_count_the_memory_of_bases(files: Path) -> None:
    """At least: the tensors, and the buffers for both files."""
    wcodec.save_file(FINE, "delta.wcodec", base="base.wcodec")
    nbytes, buffers = sum(a.nbytes for a in FINE.values()), LEAST_SLOT_NBYTES * BUFFERS_OF_SLOT
    with (
        pytest.raises(DecodeError, match="resource_limit"),
        Loader(runtime_of=emulated, max_device_bytes=nbytes + buffers) as loader,
    ):
        loader.load_file("delta.wcodec")
    with Loader(runtime_of=emulated, max_device_bytes=3 * nbytes + 2 * buffers) as loader:
        assert loader.load_file("delta.wcodec")["tied"].numpy().tobytes() == bits(FINE["tied"])


@pytest.mark.parametrize("base", ["base.wcodec", exhaustive("base.safetensors")])
def test_the_cuda_backend(files: Path, base: str) -> None:
    backend = EmulatedCuda()
    fine = {n: FINE[n] for n in ("bfloat16", "int8", "float64", "wide")}
    write_safetensors(files / "few.safetensors", fine)
    encode_file("few.safetensors", "delta", None, backend, base=base)
    same(files / "delta", fine, backend=backend)
    encode_file("few.safetensors", "expected", None, load_backend("reference"), base=base)
    assert (files / "delta").read_bytes() == (files / "expected").read_bytes()


# ---- memory --------------------------------------------------------------------------------------
def peak_memory(folder: Path, n_rows: int) -> int:
    """Bytes that encoding and decoding a difference ask for at their peak:
    mapped inputs do not count.
    """
    block = make_array(BY_NAME["bfloat16"], (500, 4096), "gaussian")
    for name, array in (("base", block), ("in", nudged(block))):
        safetensors.numpy.save_file({"w": np.tile(array, (n_rows // 500, 1))}, folder / name)

    def steps() -> None:
        backend = NumbaBackend(1)  # which keeps memory for the next calls
        encode_file(folder / "base", folder / "base.wcodec", None, backend, overwrite=True)
        encode_file(
            folder / "in",
            folder / "coded",
            None,
            backend,
            base=folder / "base.wcodec",
            overwrite=True,
        )
        decode_file(folder / "coded", folder / "out", backend, overwrite=True)

    peak = peak_of(steps)
    assert (folder / "in").read_bytes() == (folder / "out").read_bytes()
    return peak


@pytest.mark.parametrize("n_rows", [2000, exhaustive(4000)])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, n_rows: int) -> None:
    # 16 and 66 MB, or twice as much
    small, large = peak_memory(tmp_path, n_rows), peak_memory(tmp_path, 4 * n_rows)
    assert large < small + 30e6 < 150e6


def test_no_base_is_written_over(tmp_path: Path) -> None:
    """Neither the one that is named, nor one that this one needs,
    nor one that was found by its name.
    """
    rng = np.random.default_rng(0)
    words = [{"w": rng.integers(0, 3, (80, 80)).astype(np.uint16)} for _ in range(3)]
    a, b, c = (tmp_path / f"{name}.wcodec" for name in "abc")
    wcodec.save_file(words[0], a)
    wcodec.save_file(words[0] | {"w": words[0]["w"] ^ 1}, b, base=a)
    before = a.read_bytes(), b.read_bytes()
    for target in (a, b):
        with pytest.raises(
            wcodec.EncodeError,
            match=r"bad_option: the output .* would replace .*, which is read for it",
        ):
            wcodec.save_file(words[2], target, base=b)
    wcodec.save_file(words[0] | {"w": words[0]["w"] ^ 3}, c, base=b)
    for target in (a, b):
        with pytest.raises(
            wcodec.EncodeError,
            match=r"bad_option: the output .* would replace .*, which is read for it",
        ):
            decode_file(c, target, overwrite=True)
    assert (a.read_bytes(), b.read_bytes()) == before
    a.unlink()
    with pytest.raises(
        wcodec.DecodeError, match=r"bad_base.*put it there, or name a restored safetensors file"
    ):
        wcodec.load_file(c)
