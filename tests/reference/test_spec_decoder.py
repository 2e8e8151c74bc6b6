"""The decoder of the spec: all of the conformance suite, and random files against the reference."""

from __future__ import annotations

import ast
import py_compile
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import decompress

import decoder
import numpy as np
import pytest
from hypothesis import given, settings
from inputs import BY_NAME, bits, make_array
from numpy.typing import NDArray
from plans import Case, make_case, random_geometry, random_tables, with_maps
from plans import random_plan as plan_of
from sampling import exhaustive
from test_properties import arrays, options, safetensors_files

import wcodec
from wcodec import conformance
from wcodec.backends import load_backend, use_backend
from wcodec.cli import main
from wcodec.codec.encoder import Encoder
from wcodec.conformance.cases import decode, load, sha256
from wcodec.errors import DECODE_CODES, DecodeError
from wcodec.files.checkpoint import encode_file
from wcodec.reference import container
from wcodec.reference.checksums import crc32, crc32_each
from wcodec.reference.container import Index, seal_index, write_index
from wcodec.reference.planes import DTYPES, DType
from wcodec.reference.segments import SegmentTable
from wcodec.reference.tables import TablePool
from wcodec.reference.tensors import TensorRecord
from wcodec.reference.tiles import Geometry

PATH = Path(decoder.__file__)
REFERENCE = load_backend("reference")
VECTORS = load()


@pytest.fixture(autouse=True)
def _reference() -> Iterator[None]:
    """The reference writes the files, which needs no compiling."""
    with use_backend("reference"):
        yield


def outcome(data: bytes, base: bytes = b"") -> tuple[str, bytes]:
    """The code of a refusal, or none and the restored bytes."""
    try:
        return "", b"".join(decoder.decode_file(data, base))
    except decoder.Refused as e:
        return str(e).partition(":")[0], b""


# ---- the file itself -----------------------------------------------------------------------------
def test_it_imports_the_standard_library_alone() -> None:
    nodes = list(ast.walk(ast.parse(PATH.read_text())))
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {str(n.module) for n in nodes if isinstance(n, ast.ImportFrom)}
    assert names > {"zlib", "hashlib"}
    assert names <= set(sys.stdlib_module_names)


#: conventions, encoding, the content SHA-256, freedoms and parts of tensors; operands, decoded like
#: others; versions
NOT_DECODING = (
    "R2.1 R2.3 R9.8 R11.5 R11.6 R11.7 R12.2 R12.3 R14.1 R14.2 R14.3 R14.4 R14.5 R14.6 "
    "R15.1 R15.2 R15.3"
)


def test_a_function_stands_under_each_rule() -> None:
    nodes = ast.walk(ast.parse(PATH.read_text()))
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    texts = {f.name: ast.get_docstring(f) or "" for f in functions}
    assert [name for name, text in texts.items() if not text and name != "__init__"] == []
    named = set[str]()
    for chapter, first, last in re.findall(r"R(\d+)\.(\d+)(?: to R\d+\.(\d+))?", str(texts)):
        named |= {f"R{chapter}.{n}" for n in range(int(first), int(last or first) + 1)}
    spec = (PATH.parent / "wcodec.md").read_text()
    rules = set(re.findall(r"^- \*\*(R\d+\.\d+)\*\*", spec, re.M))
    assert len(rules) > 100
    assert rules - named == set(NOT_DECODING.split())
    assert named <= rules


# ---- the conformance suite -----------------------------------------------------------------------
def test_the_code_of_each_refusal() -> None:
    """That of the manifest, where the suite of commands only asks for a refusal."""
    cases = [c for c in VECTORS.cases if c.expect == "reject"]
    assert {c.row["code"] for c in cases} == set(DECODE_CODES) - {"resource_limit"}
    for case in cases:
        base = b"" if case.checkpoint is None else case.checkpoint.data
        assert outcome(case.data, base) == (case.row["code"], b""), case.id


@pytest.fixture
def command(tmp_path: Path) -> str:
    """The decoder as a command that starts a thousand times: without site-packages, and
    compiled to bytecode once.
    """
    program = tmp_path / "decoder.pyc"
    py_compile.compile(str(PATH), str(program), doraise=True)
    return f"'{sys.executable}' -I -S '{program}' {{input}} {{output}} {{base}}"


def test_a_part_of_the_suite_passes(command: str) -> None:
    """The decoder itself is held against all files by other tests."""
    parts = ["accept/base", "either/", "prefixes/"]
    report = conformance.run(conformance.Command(command), select=parts)
    assert [str(o) for o in report.failed] == []
    assert report.totals["passed"] > 50


@pytest.mark.exhaustive
def test_the_suite_passes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--command", command]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"1\d\d\d passed, 0 failed, 0 not run", last)


def test_the_program_says_why_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = VECTORS["accept/base_records"], VECTORS["reject/version_0_1"]
    output = tmp_path / "output"
    output.write_bytes(b"before")
    assert decoder.main(str(bad.path), str(output)) == 1
    assert capsys.readouterr().err == "unsupported_version: see R4.4\n"
    assert decoder.main(str(tmp_path / "missing"), str(output)) == 1
    assert "No such file" in capsys.readouterr().err
    assert output.read_bytes() == b"before"
    assert decoder.main(str(good.path), str(output), "") == 0
    assert sha256(output.read_bytes()) == good.row["restored_sha256"]
    assert [p.name for p in tmp_path.iterdir()] == ["output"]


# ---- random files --------------------------------------------------------------------------------
def file_of(case: Case, dtype: DType) -> bytes:
    """A file with one tensor, of a random plan."""
    plan, payload = case.decoding, case.payload.tobytes()
    g = plan.geometry
    t = TensorRecord(
        "w", dtype, (g.rows, g.cols // dtype.words_per_element), 1, g, plan.segments,
        crc32_each(case.payload, plan.offsets), 32, len(payload), crc32(case.expected.data),
    )  # fmt: skip
    index = Index([t], plan.tables)
    return container.write_header() + payload + write_index(index, 32 + len(payload))


@pytest.mark.parametrize("seed", [0, *map(exhaustive, range(1, 12))])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_random_plans(dtype: DType, seed: int) -> None:
    """Columns that no encoder writes, and geometries of all kinds."""
    rng = np.random.default_rng([dtype.id, seed])
    geometry = random_geometry(rng, 20)
    geometry = replace(geometry, cols=geometry.cols * dtype.words_per_element)
    tables = with_maps(rng, random_tables(rng))
    case = make_case(rng, dtype, plan=plan_of(rng, geometry, dtype, tables))
    data = file_of(case, dtype)
    assert outcome(data) == ("", case.expected.tobytes())
    assert decode(REFERENCE, data).restored == case.expected.tobytes()


@pytest.mark.parametrize("n_examples", [15, exhaustive(400)])
def test_what_the_encoder_writes(n_examples: int) -> None:
    @settings(max_examples=n_examples)
    @given(array=arrays(), options=options())
    def check(array: NDArray[Any], options: wcodec.EncodeOptions) -> None:
        assert outcome(Encoder(options).encode(array)) == ("", bits(array))

    check()


@pytest.mark.parametrize("n_examples", [20, exhaustive(300)])
def test_checkpoints(tmp_path: Path, n_examples: int) -> None:
    @settings(max_examples=n_examples)
    @given(data=safetensors_files())
    def check(data: bytes) -> None:
        (tmp_path / "in").write_bytes(data)
        encode_file(tmp_path / "in", tmp_path / "coded", overwrite=True)
        assert outcome((tmp_path / "coded").read_bytes()) == ("", data)

    check()


@pytest.mark.parametrize("name", ["int8", "bfloat16", "float32", "float64", "complex64"])
def test_differences_and_duplicates(name: str, tmp_path: Path) -> None:
    dtype, rng = BY_NAME[name], np.random.default_rng(1)
    old, other = (make_array(dtype, (40, 50), "gaussian", seed) for seed in (1, 2))
    words = old.view(dtype.word_type)
    new = (words + rng.integers(-2, 3, words.shape).astype(dtype.word_type)).view(old.dtype)
    files = {"base": {"w": old, "v": other}, "fine": {"w": new, "again": new, "v": other}}
    for file, tensors in files.items():
        base = None if file == "base" else tmp_path / "base"
        wcodec.save_file(tensors, tmp_path / file, base=base)
    base, fine = ((tmp_path / file).read_bytes() for file in files)
    with wcodec.open(tmp_path / "fine") as f:
        assert [bool(t.difference) for t in f.index.tensors] == [True, True, True]
        assert f.index.tensors[1].duplicate_of == 0
    assert outcome(fine, base) == ("", bits(new) + bits(new) + bits(other))
    assert outcome(fine) == outcome(fine, fine) == ("bad_base", b"")
    # a base that is a difference itself: refused, which R12.6 allows
    wcodec.save_file({"w": old}, tmp_path / "third", base=tmp_path / "fine")
    assert outcome((tmp_path / "third").read_bytes(), fine) == ("bad_base", b"")


def test_more_than_it_holds_in_memory() -> None:
    """2^33 bytes, all of them 7."""
    geometry = Geometry(1, 1 << 33, 1, 1 << 24, 1, 1 << 24)
    s = SegmentTable.zeros(512, 2)
    s.layout[:], s.coder[0], s.table[0] = 1, 1, 7
    crcs = np.zeros(512, np.uint32)
    t = TensorRecord("w", BY_NAME["uint8"], (1 << 33,), 0, geometry, s, crcs, 32, 0, 0)
    data = container.write_header() + write_index(Index([t], TablePool()), 32)
    assert outcome(data) == ("resource_limit", b"")


# ---- spoilt files --------------------------------------------------------------------------------
def records_of(data: bytes) -> tuple[int, bytes]:
    """Where the index starts, and its records."""
    offset, nbytes = (int.from_bytes(data[at : at + 8], "little") for at in (len(data) - 64, -56))
    stored = data[offset : offset + nbytes]
    return offset, decompress(stored) if data[-64 + 44] else stored


def spoilt(rng: np.random.Generator, data: bytes) -> bytes:
    """A byte of the index changed, left out or put in, all CRC-32s mended."""
    offset, raw = records_of(data)
    at, kind = int(rng.integers(0, len(raw))), int(rng.integers(0, 5))
    near = [0, 1, 2, 16, 255, (raw[at] + 1) % 256, raw[at] ^ 1 << int(rng.integers(0, 8))]
    value = bytes([int(rng.choice(near))])
    raw = raw[:at] + value * (kind > 0) + raw[at + (kind < 4) :]
    foot = data[-64:]
    n_tensors = int.from_bytes(foot[40:44], "little")
    return data[:offset] + seal_index(raw, offset, int.from_bytes(foot[32:40], "little"), n_tensors)


@pytest.mark.parametrize(("seed", "n"), [(0, 400), exhaustive((1, 10_000))])
def test_spoilt_indexes_are_refused_where_the_reference_refuses_them(seed: int, n: int) -> None:
    """Codes may differ: more than one rule may be broken (R2.7)."""
    rng, seen = np.random.default_rng(seed), Counter[str]()
    cases = [c for c in VECTORS.cases if c.expect == "accept" and len(c.data) < 2000]
    cases = [c for c in cases if len(records_of(c.data)[1]) > 0]
    for _ in range(n):
        case = cases[int(rng.integers(0, len(cases)))]
        data = spoilt(rng, case.data)
        code, restored = outcome(data, b"" if case.checkpoint is None else case.checkpoint.data)
        try:
            due = "", decode(REFERENCE, data, case.base_path).restored
        except DecodeError as e:
            due = e.code, b""
        assert (code == "") == (due[0] == ""), f"{case.id}: {code!r}, and {due[0]!r}"
        assert restored == due[1], case.id
        seen[code] += 1
    assert seen[""] > n // 100
    assert len(seen) > 5
