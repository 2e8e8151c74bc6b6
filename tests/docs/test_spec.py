"""The spec against the code: its worked example, registries, error codes and structures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from enum import IntEnum

import decoder
import numpy as np
import pytest
from paths import ROOT, TOOLS

from wcodec.codec import decode
from wcodec.codec.sources import BufferSource
from wcodec.errors import DECODE_CODES
from wcodec.reference import container, differences, records, transforms
from wcodec.reference.planes import DTYPES, Layout, WordMap
from wcodec.reference.prediction import MODES, PER_TILE, Mode, mode_name
from wcodec.reference.segments import Coder
from wcodec.reference.tables import MAX_CLASSES, N_CONTEXTS, ContextKind
from wcodec.reference.transforms import Transform

SPEC = (ROOT / "spec" / "wcodec.md").read_text()


def chapter(title: str) -> str:
    """Text of a chapter or section."""
    found = re.search(rf"^(#+) [\d.]+ {re.escape(title)}\n(.*?)(?=^\1 |\Z)", SPEC, re.M | re.S)
    assert found, f"there is no chapter {title!r}"
    return found[2]


def rows(text: str) -> list[list[str]]:
    """Cells of the tables of a text, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return [
        c
        for i, c in enumerate(cells)
        if not set("".join(c)) <= set("-")
        and not (i + 1 < len(cells) and set("".join(cells[i + 1])) == {"-"})
    ]


def example_bytes() -> bytes:
    """The file of chapter 19, from its listing alone."""
    listing = re.search(r"```\n(.*?)```", chapter("Worked example"), re.S)
    assert listing
    return b"".join(
        bytes.fromhex(line[6:53])
        for line in listing[1].splitlines()
        if re.match(r"[0-9a-f]{4}  ", line)
    )


def test_the_example_decodes_to_the_numbers_that_it_names() -> None:
    values = re.search(r"of shape 3 x 4: (.*?)\. Coded", chapter("Worked example"))
    assert values
    numbers = [[float(v) for v in row.split(",")] for row in values[1].split(";")]
    got = decode(example_bytes())
    assert got.dtype.name == "bfloat16"
    np.testing.assert_array_equal(got, np.array(numbers, np.float32).astype(got.dtype))


def test_the_example_is_current() -> None:
    run = subprocess.run(
        [sys.executable, TOOLS / "vectors" / "write_example.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_the_example_has_every_part_that_it_lists() -> None:
    index = container.read_index(BufferSource(example_bytes()))
    t = index.tensors[0]
    assert (t.name, t.segments.layout[0], t.segments.n_patches[0]) == ("w", Layout.PAIRS, 1)
    assert t.segments.coder[:, 0].tolist() == [Coder.RANS, Coder.RAW]


def test_dtypes() -> None:
    maps = {WordMap.IDENTITY: "IDENTITY", WordMap.OFFSET: "OFFSET"}
    table = re.search(r"<!-- dtypes -->\n(.*?)<!-- /dtypes -->", SPEC, re.S)
    assert table
    assert rows(table[1]) == [
        [
            str(d.id),
            d.name,
            d.safetensors,
            str(d.word_nbytes),
            str(d.words_per_element),
            maps.get(d.word_map, f"EXPONENT_FIRST {d.exponent_bits}"),
        ]
        for d in DTYPES
    ]
    of_decoder = [
        [str(n), str(1 + (d in decoder.COMPLEX))] for d, n in enumerate(decoder.WORD_NBYTES)
    ]
    assert [row[3:5] for row in rows(table[1])] == of_decoder
    map_of = {str(d): "OFFSET" for d in decoder.OFFSET}
    map_of |= {str(d): f"EXPONENT_FIRST {e}" for d, e in decoder.EXPONENT_BITS.items()}
    assert {row[0]: row[5] for row in rows(table[1]) if row[5] != "IDENTITY"} == map_of
    names = {row[1]: int(row[0]) for row in rows(table[1])}
    assert {n: names[f"uint{8 * n}"] for n in (1, 2, 4, 8)} == decoder.UNSIGNED


def test_error_codes() -> None:
    listed = {row[0].strip("`"): row[1] for row in rows(chapter("Decoder duties and error codes"))}
    assert listed == {code: text.split(":")[0] for code, text in DECODE_CODES.items()}


def test_every_code_in_a_rule_is_listed() -> None:
    cited = set(re.findall(r"`((?:bad|unsupported)_\w+|truncated|resource_limit)`", SPEC))
    assert cited == set(DECODE_CODES)


def test_registries() -> None:
    used = {row[0]: row[1] for row in rows(chapter("Registries")) if len(row) == 3}
    for name, members in (
        ("index records", container.RecordType),
        ("source kinds", container.SourceKind),
        ("layouts", Layout),
        ("coders", Coder),
        ("context kinds", ContextKind),
        ("differences", differences.Difference),
        ("predictions, bits 0 to 3 of a mode", Mode),
        ("transforms, bits 4 to 7 of a mode", Transform),
    ):
        assert re.findall(r"(\d+) (\w+)", used[name].upper()) == [
            (str(int(m)), m.name) for m in members
        ], name
    assert f"{PER_TILE} each tile its own" in used["modes"]


@pytest.mark.parametrize("members", [container.RecordType, Layout, Coder, ContextKind, Mode])
def test_registries_of_the_decoder(members: type[IntEnum]) -> None:
    assert [(m.name, getattr(decoder, m.name)) for m in members] == [(m.name, m) for m in members]
    assert (decoder.XOR, decoder.MINUS) == (1, 2)


def test_modes() -> None:
    """R7.1: a mode is `transform << 4 | prediction`."""
    assert [(int(t) << 4 | int(p)) for t in Transform for p in Mode] == list(MODES)
    assert list(MODES) == decoder.MODES
    assert decoder.EACH_TILE == PER_TILE
    assert [mode_name(m) for m in (0, 4, 0x10, 0x23)] == ["none", "planar", "dct", "avg+adst"]
    assert "A mode is `transform << 4 | prediction`." in SPEC


@pytest.mark.parametrize("transform", [Transform.DCT, Transform.ADST])
def test_tables_of_transforms(transform: Transform) -> None:
    table = re.search(
        rf"{transform.name}, order ([\d, ]+):\n\n<!-- {transform.name.lower()} -->\n(.*?)<!-- /",
        SPEC,
        re.S,
    )
    assert table
    order = tuple(int(k) for k in table[1].split(","))
    assert order == transforms.ORDER[transform] == decoder.ORDER[transform]
    steps = tuple(tuple(map(int, row)) for row in rows(table[2]))
    assert steps == transforms.ROWS[transform] == decoder.ROWS[transform]


def test_numbers_of_contexts() -> None:
    text = chapter("Contexts")
    assert decoder.N_CONTEXTS == N_CONTEXTS
    for kind, n in N_CONTEXTS.items():
        assert re.search(rf"^  {int(kind)} {kind.name}: .*?{n} contexts", text, re.M), kind
    assert f"`n_classes` MUST be 1 to {MAX_CLASSES}" in SPEC


@pytest.mark.parametrize(
    ("title", "structure"),
    [
        ("Header", container.HEADER),
        ("Footer", container.FOOTER),
        ("TENSOR records", records.TENSOR),
    ],
)
def test_structures(title: str, structure: object) -> None:
    table = [
        row
        for row in rows(chapter(title))
        if len(row) == 5 and row[0].isdecimal() and row[1].isdecimal()
    ]
    end = 0
    for offset, size, *_ in table:
        assert int(offset) == end
        end += int(size)
    assert end == structure.size  # type: ignore[attr-defined]


def test_constants() -> None:
    assert container.MAGIC.hex(" ").upper() in SPEC
    assert container.END_MAGIC.hex(" ").upper() in SPEC
    assert f"Version {container.VERSION[0]}.{container.VERSION[1]}, a draft" in SPEC
    assert f"at most {container.MAX_INDEX_RATIO} times `index_nbytes`" in SPEC
    assert f"`base` MUST be at most {records.MAX_WINDOW_BASE}" in SPEC


def test_rules_are_numbered_once() -> None:
    numbers = re.findall(r"^- \*\*(R[\d.]+)\*\*", SPEC, re.M)
    assert len(numbers) == len(set(numbers)) > 80


def test_counts_of_the_rationale() -> None:
    """Those of `benchmarks/gpu/sass_linear.py`: instructions a weight,
    and what they allow of what memory gives.
    """
    text = (ROOT / "spec" / "rationale.md").read_text()
    results = ROOT / "benchmarks" / "results" / "2026-11-22-sass-linear.json"
    kernels = json.loads(results.read_text())["kernels"]
    of = {k["kernel"]: k for k in kernels}
    for what, kind in (
        ("bf16 raw", "bf16_bf16_raw"),
        ("int8 with bf16 factors", "int8_bf16_raw"),
        ("with fp16 factors", "int8_fp16_raw"),
        ("e4m3 with bf16", "e4m3_bf16_raw"),
        ("coded bf16", "bf16_bf16_coded"),
    ):
        few, many = (of[f"linear_{kind}_{batch}"] for batch in (8, 64))
        due = [f"{k['instructions_a_weight']:.2f} ({k['ratio']:.2f})" for k in (few, many)]
        assert f"{what} {' and '.join(due)}" in text, "write them there anew"
    few = of["linear_bf16_bf16_raw_8"]
    assert f"where it takes {few['instructions_a_weight']:.2f} from the file's bytes" in text
    assert f"{few['weights_a_clock']:.1f} weights a clock and multiprocessor could be made" in text
    assert f"of what an H200 gives for {few['memory_gives']:.1f}," in text
