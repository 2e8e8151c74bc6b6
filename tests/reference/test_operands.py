"""Operands (spec: chapter 14.1): what the encoder makes of matrices, what is none, and why."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from inputs import BY_NAME, bits, make_array, safetensors_bytes

import wcodec
from wcodec.backends import Backend, load_backend, use_backend
from wcodec.cli import main
from wcodec.codec.encoder import Encoder
from wcodec.conformance.cases import load
from wcodec.errors import EncodeError
from wcodec.planner.options import EncodeOptions
from wcodec.reference.differences import Difference
from wcodec.reference.operands import DTYPES, SEGMENT, TILE, operand_form, operand_problem
from wcodec.reference.planes import Layout
from wcodec.reference.segments import Coder
from wcodec.reference.tensors import TensorRecord
from wcodec.reference.tiles import chunks

FIXED, RANS = EncodeOptions(operand="fixed"), EncodeOptions(operand="rans")
SHAPES = [(16, 2048), (13, 1500), (8, 1056), (1, 70), (3, 1), (9, 1031), (24, 32)]


def weights(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Gaussian weights, those of one byte scaled as quantised ones are."""
    values = np.random.default_rng(seed).standard_normal(shape)
    if dtype == "int8":
        return np.clip(np.rint(values * 30), -127, 127).astype(np.int8)
    scale = {"bfloat16": 0.02, "float8_e4m3fn": 100, "float8_e5m2": 10000}[dtype]
    return (values * scale).astype(getattr(ml_dtypes, dtype))


def record(data: bytes, name: str = "") -> TensorRecord:
    with wcodec.open(io.BytesIO(data)) as f:
        return f.record(name)


def plan_in_chunks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """As if 16 MiB were that many bytes."""
    for module in ("wcodec.codec.encoder", "wcodec.codec.parts"):
        monkeypatch.setattr(
            f"{module}.chunks",
            lambda geometry, word_nbytes, nbytes=size: chunks(geometry, word_nbytes, nbytes),
        )


# ---- what the encoder makes ----------------------------------------------------------------------
def test_numbers_of_the_spec() -> None:
    """R14.1, R14.2."""
    assert (SEGMENT, TILE) == ((8, 1024), (8, 32))
    assert sorted(DTYPES) == ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int8"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [FIXED, RANS], ids=["fixed", "rans"])
def test_matrices_become_operands(
    backends: list[Backend], dtype: str, options: EncodeOptions
) -> None:
    for shape in SHAPES:
        array = weights(dtype, shape)
        files = {b.name: Encoder(options, b).encode(array) for b in backends}
        assert len(set(files.values())) == 1, shape
        for b in backends:
            with use_backend(b.name):
                assert bits(wcodec.decode(files["reference"])) == bits(array)
        t = record(files["reference"])
        assert operand_problem(t) is None
        coded = t.segments.coder[0] == Coder.RANS
        heights, widths = t.geometry.sizes()
        may = (heights == 8) & (widths % 32 == 0) & (widths >= 256)
        assert coded[may].all() if options is RANS else not coded.any()
        assert operand_form(t) == ("rans" if coded.any() else "fixed")
        half = (heights * widths + 1) // 2
        lower = heights * widths if dtype == "bfloat16" else half
        least = sum(-(-n // 16) * 16 for n in (*half.tolist(), *lower.tolist()))
        assert (
            t.payload_nbytes - 16 * -(-t.segments.n_patches.astype(int) // 4).sum() <= least
            if options is RANS
            else True
        )
        if not coded.any():
            assert t.payload_nbytes == least + 16 * int(
                (-(-t.segments.n_patches.astype(int) // 4)).sum()
            )


def test_emulated_kernels_write_the_same() -> None:
    array = weights("bfloat16", (24, 1100))
    array[8:16] *= 2.0**-60
    cuda = load_backend("cuda_emulator.backend:EmulatedCuda")
    for options in (FIXED, RANS):
        assert Encoder(options, cuda).encode(array) == Encoder(
            options, load_backend("reference")
        ).encode(array)


def test_other_tensors_are_coded_as_without(backend: Backend) -> None:
    others = {
        "fp32": make_array(BY_NAME["float32"], (64, 96), "gaussian", 1),
        "flat": weights("bfloat16", (70,)),
        "deep": weights("int8", (4, 30, 50)),
        "empty": weights("int8", (0, 50)),
        "e4m3fnuz": make_array(BY_NAME["float8_e4m3fnuz"], (30, 50), "gaussian", 1),
        "uint8": weights("int8", (30, 50)).view(np.uint8),
    }
    for options in (RANS, EncodeOptions(operand="fixed", prob_bits=10, layout="pairs")):
        plain = replace(options, operand=None)
        for name, array in others.items():
            assert wcodec.encode(array, options) == wcodec.encode(array, plain), name
    assert wcodec.encode(weights("int8", (30, 50)), RANS) != wcodec.encode(
        weights("int8", (30, 50))
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_chunks_of_a_tensor_share_a_table(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, dtype: str
) -> None:
    """Symbols that the first chunk has not are coded under its table all the same;
    the next tensor may have its own.
    """
    plan_in_chunks(monkeypatch, 1 << 14)
    array = weights(dtype, (40, 1024))
    array[:16] = (
        np.clip(array[:16].astype(np.float64), -0.031, 0.031)
        if dtype == "bfloat16"
        else np.clip(array[:16], -60, 60)
    )
    other = (
        np.exp2(np.arange(1 << 14) % 11).reshape(16, 1024)
        if dtype == "bfloat16"
        else weights(dtype, (16, 1024)) // 8
    )
    stream = io.BytesIO()
    writer = Encoder(RANS, backend).start(stream)
    writer.add("a", array)
    writer.add("b", other.astype(array.dtype))
    writer.finish()
    a, b = record(stream.getvalue(), "a"), record(stream.getvalue(), "b")
    assert [operand_form(a), operand_form(b)] == ["rans", "rans"]
    assert (a.segments.coder[0] == Coder.RANS).all()
    assert set(a.segments.table[0]) == {0}
    assert set(b.segments.table[0]) == {1}
    with wcodec.open(stream) as f:
        assert bits(f.get_tensor("a")) == bits(array)


def test_chunks_of_a_tensor_share_a_window(
    monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    """A table suits codes of one window: up to one word in 1024 outside of it does not make
    another.
    """
    plan_in_chunks(monkeypatch, 1 << 14)
    array = np.clip(weights("bfloat16", (16, 1024)).astype(np.float64), -0.06, 0.06)
    for n_outside, second in ((8, 107), (50, 108)):
        array[8, :n_outside] = 0.1
        parts = (array[:8], array[8:], array)
        bases = [
            record(wcodec.encode(part.astype(ml_dtypes.bfloat16), RANS)).segments.base.tolist()
            for part in parts
        ]
        assert bases == [[107], [108], [107, second]]


def test_a_chunk_that_cannot_be_coded_goes_before(
    monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    """Its table is not kept; the next chunk makes one."""
    plan_in_chunks(monkeypatch, 1 << 13)
    noise = make_array(BY_NAME["int8"], (8, 1024), "uniform", 3)
    data = wcodec.encode(np.concatenate([noise, weights("int8", (16, 1024)), noise]), RANS)
    t = record(data)
    assert t.segments.coder[0].tolist() == [Coder.RAW, Coder.RANS, Coder.RANS, Coder.RAW]
    assert operand_problem(t) is None
    with wcodec.open(io.BytesIO(data)) as f:
        assert len(f.index.tables) == 1


def test_a_table_is_used_again(backend: Backend) -> None:
    stream = io.BytesIO()
    writer = Encoder(RANS, backend).start(stream)
    for i in range(3):
        writer.add(str(i), weights("bfloat16", (32, 1024), i))
    writer.finish()
    with wcodec.open(stream) as f:
        assert len(f.index.tables) == 1
        assert all(operand_form(t) == "rans" for t in f.index.tensors)


def test_a_table_must_save_its_own_bytes(backend: Backend) -> None:
    assert operand_form(record(wcodec.encode(weights("int8", (8, 128)), RANS))) == "fixed"
    with wcodec.open(io.BytesIO(wcodec.encode(weights("int8", (8, 128)), RANS))) as f:
        assert len(f.index.tables) == 0


def test_windows_of_their_own(backend: Backend) -> None:
    """Rows of zeros, and of weights of another scale: segments that would have many patches under
    the window of the others.
    """
    array = weights("bfloat16", (40, 1024))
    array[8:16], array[16:24] = 0, array[16:24] * 2.0**-60
    for options in (FIXED, RANS):
        data = wcodec.encode(array, options)
        t = record(data)
        assert operand_problem(t) is None
        assert t.segments.base.tolist() == [108, 0, 48, 108, 108]
        assert (t.segments.n_patches < 10).all()
        assert bits(wcodec.decode(data)) == bits(array)
    assert (t.segments.coder[0] == Coder.RANS).all()


def test_a_sample_that_misleads(backend: Backend) -> None:
    """The segments that are looked at first are not like the others."""
    array = weights("bfloat16", (8 * 64, 1024))
    array[np.arange(0, 512, 32)[:, None] + np.arange(8)] *= 2.0**-40
    t = record(wcodec.encode(array, RANS))
    assert operand_form(t) == "rans"
    assert np.bincount(t.segments.base, minlength=256)[[68, 108]].tolist() == [16, 48]


def test_the_next_chunk_has_the_better_window(
    monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    """Not that of the sample that has misled, though all its words lie in that too."""
    plan_in_chunks(monkeypatch, 1 << 20)
    array = weights("bfloat16", (8 * 65, 1024)).astype(np.float64)
    array[np.arange(0, 512, 32)[:, None] + np.arange(8)] /= 16
    array[512:] = np.copysign(np.clip(np.abs(array[512:]), 2.0**-15, 2.0**-8), array[512:])
    array = array.astype(ml_dtypes.bfloat16)
    assert record(wcodec.encode(array[:8], FIXED)).segments.base.tolist() == [104]
    assert set(record(wcodec.encode(array, FIXED)).segments.base.tolist()) == {108}


def test_few_patches_of_a_small_segment(backend: Backend) -> None:
    """More than one word in 100, but no more than 8:
    a last row does not make a matrix no operand.
    """
    for n_patches, layout in ((8, Layout.PAIRS), (9, Layout.BYTES)):
        array = np.full((9, 256), 0.5, ml_dtypes.bfloat16)
        array[8, :n_patches] = 2.0**-40
        t = record(wcodec.encode(array, FIXED))
        assert t.segments.layout[1] == layout
        assert operand_problem(t) == (
            None if layout == Layout.PAIRS else "segment 1 has layout BYTES"
        )


def test_words_outside_have_the_code_that_is_most_frequent(backend: Backend) -> None:
    """In the window of the segment, be it that of the others or not."""
    array = np.full((16, 1024), 0.5, ml_dtypes.bfloat16)
    array[:8, ::3], array[8:] = 2.0, 0.5**30
    array[8:, ::3] = 0.5**26
    array[0, :5] = array[8, :5] = 0.5**80
    data = wcodec.encode(array, FIXED)
    with wcodec.open(io.BytesIO(data)) as f:
        (t,) = f.index.tensors
        plan = t.plan(f.index.tables)
    assert t.segments.n_patches.tolist() == [5, 5]
    for k, exponent in enumerate((126, 97)):
        codes = np.frombuffer(data, np.uint8, 4, t.payload_offset + int(plan.plane_offsets[0, k]))
        fill = exponent - int(t.segments.base[k])
        assert [int(b) >> shift & 15 for b in codes for shift in (0, 4)][:5] == [fill] * 5


def test_tables_of_other_tensors_lack_symbols(
    monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    """A file without room for another table has none for an operand:
    later chunks may have any symbol.
    """
    nibbles = 7 + (np.random.default_rng(1).random((2, 64, 512)) < 0.1).astype(np.uint8)
    matrix = (nibbles[0] << 4 ^ 0x80).view(np.int8)
    for most, form in ((1, "fixed"), (2, "rans")):
        monkeypatch.setattr("wcodec.planner.planner.MAX_TABLES", most)
        stream = io.BytesIO()
        writer = Encoder(RANS, backend).start(stream)
        writer.add("bytes", (nibbles[0] << 4 | nibbles[1]).reshape(2, 32, 512))
        writer.add("matrix", matrix)
        writer.finish()
        with wcodec.open(stream) as f:
            assert len(f.index.tables) == most
            assert operand_form(f.record("matrix")) == form
            assert bits(f.get_tensor("matrix")) == bits(matrix)


def test_too_many_patches_are_no_operand(backend: Backend) -> None:
    array = weights("bfloat16", (24, 1024))
    flat = array[8:16].reshape(-1)
    flat[::50] = 0
    array[8:16] = flat.reshape(8, 1024)
    for options in (FIXED, RANS):
        data = wcodec.encode(array, options)
        t = record(data)
        assert t.segments.layout.tolist() == [Layout.PAIRS, Layout.BYTES, Layout.PAIRS]
        assert operand_problem(t) == "segment 1 has layout BYTES"
        assert operand_form(t) is None
        assert bits(wcodec.decode(data)) == bits(array)


def test_noise_is_raw_where_it_has_no_window(backend: Backend) -> None:
    array = make_array(BY_NAME["bfloat16"], (16, 1024), "uniform", 1)
    data = wcodec.encode(array, RANS)
    assert operand_problem(record(data)) == "segment 0 has layout RAW"
    assert bits(wcodec.decode(data)) == bits(array)


NARROW = [
    ("bfloat16", 1),
    ("bfloat16", 2),
    ("int8", 1),
    ("int8", 5),
    ("int8", 1025),
    ("float8_e5m2", 1),
]


@pytest.mark.parametrize(("dtype", "cols"), NARROW)
def test_how_much_larger_noise_becomes(dtype: str, cols: int) -> None:
    """README, "What is kept": a segment of 6 bf16 words, 5 of them outside of its window,
    takes 64 bytes instead of 12.
    """
    for rows in (8000, 6):
        array = make_array(BY_NAME[dtype], (rows, cols), "uniform", 1)
        for options in (FIXED, RANS):
            data = wcodec.encode(array, options)
            assert len(data) <= array.nbytes * 1.001 + 4096 + 56 * -(-rows // 8)
            assert bits(wcodec.decode(data)) == bits(array)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_one_value_everywhere(backend: Backend, dtype: str) -> None:
    array = np.full((16, 1024), 0.5, getattr(ml_dtypes, dtype))
    for options in (FIXED, RANS):
        assert operand_problem(record(wcodec.encode(array, options))) is None
        assert bits(wcodec.decode(wcodec.encode(array, options))) == bits(array)


def test_precision_of_tables(backend: Backend) -> None:
    array = weights("int8", (16, 1024))
    with wcodec.open(
        io.BytesIO(wcodec.encode(array, EncodeOptions(operand="rans", prob_bits=9)))
    ) as f:
        assert [t.prob_bits for t in f.index.tables.tables] == [9]
        assert bits(f.get_tensor("")) == bits(array)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"operand": "rANS"}, "none of fixed, rans"), ({"segment": (8, 1024)}, "segment"),
        ({"tile": (16, 32)}, "tile"), ({"layout": "bytes"}, "needs layout pairs"),
        ({"layout": "raw"}, "needs layout pairs"), ({"predictor": "none"}, "predictor"),
        ({"transform": "none"}, "transform"), ({"coder": "raw"}, "coder"),
        ({"preset": "max"}, "preset"), ({"preset": "fast"}, "preset"),
        ({"min_saving": 0.0}, "min_saving"), ({"force": True}, "force"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(more: dict[str, Any], message: str) -> None:
    with pytest.raises(EncodeError, match=f"bad_option.*{message}"):
        EncodeOptions(**{"operand": "fixed", **more})


# ---- what is none --------------------------------------------------------------------------------
OPERAND = record(wcodec.encode(weights("bfloat16", (24, 1056)), RANS))


def changed(**columns: Any) -> TensorRecord:
    """The record with other values in its segment table: ``column=(index, value)``."""
    own = {}
    for name, (at, value) in columns.items():
        own[name] = getattr(OPERAND.segments, name).copy()
        own[name][at] = value
    return replace(OPERAND, segments=replace(OPERAND.segments, **own))


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (replace(OPERAND, dtype=BY_NAME["float16"]), "dtype float16"),
        (replace(OPERAND, shape=(2, 12, 1056)), "3 dimensions"),
        (replace(OPERAND, row_rank=0), "row_rank 0"),
        (replace(OPERAND, difference=Difference.XOR), "it is a difference from a base"),
        (
            replace(OPERAND, geometry=replace(OPERAND.geometry, segment_rows=24)),
            "segments of 24 x 1024",
        ),
        (
            replace(OPERAND, geometry=replace(OPERAND.geometry, segment_cols=512)),
            "segments of 8 x 512",
        ),
        (replace(OPERAND, geometry=replace(OPERAND.geometry, tile_cols=64)), "tiles of 8 x 64"),
        (record(wcodec.encode(weights("int8", (8, 0)), RANS)), "it is empty"),
        (changed(layout=(3, Layout.RAW)), "segment 3 has layout RAW"),
        (changed(coder=((0, 2), Coder.CONSTANT)), "plane 0 of segment 2 has coder CONSTANT"),
        (changed(coder=((0, 4), Coder.CONTEXT)), "plane 0 of segment 4 has coder CONTEXT"),
        (changed(coder=((1, 5), Coder.RANS)), "plane 1 of segment 5 has coder RANS"),
        (changed(table=((0, 2), 7)), "tables 0 and 7, not one"),
    ],
)
def test_problems(other: TensorRecord, why: str) -> None:
    assert operand_problem(OPERAND) is None
    assert operand_problem(other) == why
    assert operand_form(other) is None


@pytest.mark.parametrize(("shape", "words"), [((20, 1024), "4 x 1024"), ((24, 1030), "8 x 6")])
def test_coded_segments_are_whole_tiles(shape: tuple[int, int], words: str) -> None:
    t = record(wcodec.encode(weights("bfloat16", shape), RANS))
    last = t.geometry.n_segments - 1
    assert t.segments.coder[0, last] == Coder.RAW
    coder = t.segments.coder.copy()
    coder[0, last] = Coder.RANS
    problem = operand_problem(replace(t, segments=replace(t.segments, coder=coder)))
    assert problem == f"segment {last} is coded and has {words} words, not whole tiles"


def test_raw_segments_name_no_table() -> None:
    """R10.5 has 0 in the column `table` there, whatever the number of the tensor's table is."""
    case = next(c for c in load().cases if c.id == "accept/operand_rans_mixed")
    assert operand_form(record(case.data, "w")) == "rans"


def test_conformance_cases() -> None:
    cases = [c for c in load().cases if "Operand" in c.row["flags"]]
    assert len(cases) >= 12
    for case in cases:
        with wcodec.open(io.BytesIO(case.data)) as f:
            assert {operand_form(t) for t in f.index.tensors} == {case.name.split("_")[1]}, case.id


# ---- files, commands, models ---------------------------------------------------------------------
def test_files_and_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {
        "a": weights("bfloat16", (32, 512), 1),
        "b": weights("int8", (32, 512), 2),
        "c": weights("bfloat16", (512,), 3),
    }
    names = {"bfloat16": "BF16", "int8": "I8"}
    data = safetensors_bytes(
        [(n, names[t.dtype.name], list(t.shape), bits(t)) for n, t in tensors.items()]
    )
    source, operands, back, again = (
        tmp_path / n for n in ("m.safetensors", "o.wcodec", "back.safetensors", "again.wcodec")
    )
    source.write_bytes(data)
    for form in ("fixed", "rans"):
        assert (
            main(["encode", "--operand", form, "-q", str(source), "-f", "-o", str(operands)]) == 0
        )
        assert main(["decode", "-q", str(operands), "-f", "-o", str(back)]) == 0
        assert back.read_bytes() == data
        assert main(["info", "--json", str(operands)]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["operands"] == {form: 2}
        assert [t["operand"] for t in report["tensors"]] == [form, form, None]
        assert main(["info", str(operands)]) == 0
        text = capsys.readouterr().out
        assert f"; operands {form}:2\n" in text
        assert [line.split()[-2] for line in text.splitlines()[-3:]] == [form, form, "-"]
        assert main(["info", "--explain", str(operands)]) == 0
        capsys.readouterr()
        assert main(["encode", "-q", str(source), "-f", "-o", str(again)]) == 0
        plain = again.read_bytes()
        # there
        assert main(["repack", "--operand", form, "-q", str(again), "-f", "-o", str(back)]) == 0
        assert back.read_bytes() == operands.read_bytes()
        assert main(["repack", "-q", str(operands), "-f", "-o", str(again)]) == 0  # and back
        assert again.read_bytes() == plain
    assert main(["info", "--json", str(again)]) == 0
    assert json.loads(capsys.readouterr().out)["operands"] == {}


def test_bad_usage(tmp_path: Path) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    for wrong in (
        ["encode", "--operand", "raw"],
        ["encode", "--operand", "rans", "--preset", "max"],
        ["repack", "--operand", "rans", "--tile", "16x16"],
        ["repack", "--coder", "fixed"],
    ):
        with pytest.raises(SystemExit) as e:
            main([*wrong, a, "-o", b])
        assert e.value.code == 2


def test_operands_are_no_differences(tmp_path: Path) -> None:
    """With a base, other tensors are."""
    old = {
        "w": weights("bfloat16", (64, 512)),
        "f": make_array(BY_NAME["float32"], (64, 512), "gaussian", 1),
    }
    new = {n: t.copy() for n, t in old.items()}
    for t in new.values():
        t[5] += np.array(1, t.dtype)
    wcodec.save_file(old, tmp_path / "base.wcodec")
    wcodec.save_file(new, tmp_path / "tuned.wcodec", base=tmp_path / "base.wcodec", options=RANS)
    with wcodec.open(tmp_path / "tuned.wcodec") as f:
        assert operand_form(f.record("w")) == "rans"
        assert f.record("f").difference != Difference.NONE
        assert all(bits(f.get_tensor(n)) == bits(t) for n, t in new.items())


@pytest.mark.parametrize("form", ["fixed", "rans"])
def test_compressed_weights(form: str) -> None:
    import torch

    from wcodec.torch import CompressedTensor

    def form_of(weight: CompressedTensor) -> str | None:
        return operand_form(record(weight.stream.numpy().tobytes()))

    dense = torch.randn((40, 512), generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    weight = CompressedTensor.from_dense(dense, EncodeOptions(operand=form))
    for one in (weight, pickle.loads(pickle.dumps(weight)), weight.t()):
        assert isinstance(one, CompressedTensor)
        assert form_of(one) == form
    assert torch.equal(weight.decode(), dense)
    assert torch.equal(weight.t().decode(), dense.t())
    again = pickle.loads(pickle.dumps(weight))
    again.mul_(2)
    assert torch.equal(again.decode(), dense * 2)
    assert form_of(again) == form
