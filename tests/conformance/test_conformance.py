"""The vectors are current, small, complete and true to what they say;
the project's backends pass the suite.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import write_vectors
from conformance_sample import cover
from edits import apply_edits
from paths import SPEC, TOOLS, VECTORS
from sampling import exhaustive

from wcodec import conformance
from wcodec.backends import load_backend
from wcodec.cli import main
from wcodec.codec.sources import BufferSource
from wcodec.conformance import cases as conformance_cases
from wcodec.conformance.cases import Vectors, load, sha256
from wcodec.conformance.coded import parts_of
from wcodec.conformance.recipes import RECIPES, make, splitmix64
from wcodec.errors import DECODE_CODES
from wcodec.reference import container
from wcodec.reference.planes import Layout
from wcodec.reference.prediction import MODES, PER_TILE
from wcodec.reference.segments import Coder
from wcodec.reference.tables import ContextKind

MANIFEST = json.loads((VECTORS / "manifest.json").read_text(encoding="utf-8"))

#: codes that no file alone can cause, with the reason
NOT_BY_A_FILE = {
    "resource_limit": "depends on the caller and the machine; the check duty/max_nbytes causes it"
}


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return load(VECTORS)


def check_vectors(folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, TOOLS / "vectors" / "write_vectors.py", "--folder", folder, "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_vectors_are_current():
    assert check_vectors(VECTORS) == (0, "")


@pytest.mark.parametrize("anew", [False, exhaustive(True)])
def test_stale_vectors_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], anew: bool
):
    """By the command; or in this process, where those that are there stand for those that would be
    written.
    """
    shutil.copytree(VECTORS, tmp_path, dirs_exist_ok=True)
    files = {
        p.relative_to(tmp_path).as_posix(): p.read_bytes()
        for p in tmp_path.rglob("*")
        if p.is_file()
    }
    monkeypatch.setattr(write_vectors, "contents", lambda: files)

    def check() -> tuple[int, str]:
        return (
            check_vectors(tmp_path)
            if anew
            else (
                write_vectors.main(["--folder", str(tmp_path), "--check"]),
                capsys.readouterr().err,
            )
        )

    assert check() == (0, "")
    (tmp_path / "accept" / "no_tensors.wcodec").write_bytes(b"")
    (tmp_path / "accept" / "stray.wcodec").write_bytes(b"")
    status, err = check()
    assert status == 1
    assert err.startswith("2 conformance vectors are not current")
    assert err.endswith("run: python tools/vectors/write_vectors.py\n")


@pytest.mark.parametrize("place", ["conformance_vectors", "wcodec/conformance_vectors"])
def test_vectors_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str):
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "manifest.json").write_text('{"cases": []}')
    monkeypatch.setattr(
        conformance_cases, "__file__", str(tmp_path / "wcodec" / "conformance" / "cases.py")
    )
    assert conformance_cases.find_folder() == tmp_path / place


def test_no_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(
        conformance_cases, "__file__", str(tmp_path / "wcodec" / "conformance" / "cases.py")
    )
    with pytest.raises(SystemExit) as e:
        main(["conformance", "--backend", "reference"])
    assert e.value.code == 2
    assert "no conformance vectors" in capsys.readouterr().err


def test_vectors_are_small():
    total = sum(p.stat().st_size for p in (VECTORS).rglob("*") if p.is_file())
    assert total < 1_500_000
    assert len(MANIFEST["cases"]) >= 120


def test_every_case_is_described():
    flags = MANIFEST["flags"]
    for case in MANIFEST["cases"]:
        assert case["expect"] == case["id"].partition("/")[0] in MANIFEST["expect"]
        assert case["comment"]
        assert "\n" not in case["comment"]
        assert case["rules"]
        assert case["flags"]
        assert not set(case["flags"]) - set(flags)
        assert ("code" in case) == (case["expect"] == "reject")
        assert ("tensors" in case) == (case["expect"] != "reject")
    assert set(flags) == {f for c in MANIFEST["cases"] for f in c["flags"]}


def test_bases_of_differences(vectors: Vectors):
    """Every difference that is decoded has its base, a case of its own that has none."""
    for case in vectors.cases:
        differs = any("difference" in t for t in case.row.get("tensors", []))
        assert not differs or case.checkpoint, case.id
        assert case.checkpoint is None or (case.checkpoint.expect, case.checkpoint.checkpoint) == (
            "accept",
            None,
        )
    assert {
        t["difference"]
        for c in MANIFEST["cases"]
        for t in c.get("tensors", [])
        if "difference" in t
    } == {"xor", "minus"}


def test_every_mode_and_context_has_a_case(vectors: Vectors):
    """Each mode for a whole plane and for a tile;
    each kind of context in each layout, under tables of each sum.
    """
    whole = set[int]()
    of_tiles = set[int]()
    contexts = set[tuple[int, int, int]]()
    sums = set[int]()
    for case in vectors.cases:
        if case.expect != "accept":
            continue
        index = container.read_index(BufferSource(case.data))
        for t in (part for of in index.tensors for part in parts_of(of)):
            plan, s = t.plan(index.tables), t.segments
            whole |= set(s.prediction.reshape(-1).tolist())
            for at, n in zip(
                (plan.offsets[:-1] + t.payload_offset).tolist(),
                plan.modes_nbytes.tolist(),
                strict=True,
            ):
                of_tiles |= set(case.data[at : at + n])
            for p, k in np.argwhere(s.coder == Coder.CONTEXT).tolist():
                context_map = index.tables.maps[int(s.table[p, k])]
                contexts.add((context_map.kind, int(s.layout[k]), t.dtype.word_nbytes))
                sums.add(index.tables[context_map.tables[0]].prob_bits)
    assert whole == {*MODES, PER_TILE}
    assert of_tiles == set(MODES)
    assert sums == {9, 10, 11, 12}
    assert contexts >= {(ContextKind.PLANE, Layout.BYTES, n) for n in (2, 4, 8)} | {
        (ContextKind.PLANE, Layout.PAIRS, n) for n in (1, 2, 4)
    }
    assert contexts >= {
        (kind, layout, n)
        for kind in (ContextKind.POSITION, ContextKind.SCALE)
        for layout in (1, 2)
        for n in (1, 2)
    } - {(ContextKind.POSITION, Layout.BYTES, 2)}


def test_every_recipe_gives_its_bytes(vectors: Vectors):
    used = set()
    for case in vectors.cases:
        for i, t in enumerate(case.row.get("tensors", [])):
            assert sha256(case.words(i).tobytes()) == t["sha256"]
            used.add(t["recipe"]["recipe"])
    assert used == set(RECIPES) - {"*"} == set(MANIFEST["recipes"]) - {"*"}


def test_splitmix64_is_the_published_one():
    due = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    # test values of Rosetta Code and of the Java library
    assert splitmix64(1234567, 5).tolist() == due


@pytest.mark.parametrize(
    ("recipe", "n", "word_nbytes", "due"),
    [
        ({"recipe": "hex", "bytes": "0102ff"}, 3, 1, "0102ff"),
        ({"recipe": "constant", "value": "0x1234"}, 2, 2, "34123412"),
        ({"recipe": "counter", "start": "0xff", "step": 2}, 3, 1, "ff0103"),
        (
            {"recipe": "splitmix64", "seed": 1234567, "shift": 0},
            1,
            8,
            (6457827717110365317).to_bytes(8, "little").hex(),
        ),
        (
            {"recipe": "splitmix64", "seed": 1234567, "shift": 56},
            1,
            1,
            f"{6457827717110365317 >> 56:02x}",
        ),
        ({"recipe": "choice", "seed": 1234567, "values": ["0xa", "0xb"]}, 2, 1, "0b0b"),
        (
            {
                "recipe": "smooth",
                "seed": 0,
                "width": 2,
                "down": 10,
                "across": 3,
                "both": 1,
                "noise": 0,
                "shift": 0,
            },
            4,
            1,
            "00030a0e",
        ),
        ({"recipe": "constant", "value": 0, "set": [[1, "0x7f80"]]}, 2, 2, "0000807f"),
    ],
)
def test_recipes_by_hand(recipe: dict, n: int, word_nbytes: int, due: str):
    assert make(recipe, n, word_nbytes).hex() == due


def test_every_edit_gives_its_file(vectors: Vectors):
    edited = [c for c in vectors.cases if "edits" in c.row]
    for case in edited:
        base = vectors[case.row["base"]].data
        edited_base = apply_edits(base, case.row["edits"], case.row.get("refit", []))
        assert edited_base == case.data, case.id
    by_hand = {c.id for c in vectors.cases if "Assembled" in c.row["flags"]}
    assert {c.id for c in vectors.cases if c.expect != "accept"} <= {c.id for c in edited} | by_hand
    assert all(vectors[c.row["base"]].expect == "accept" for c in edited)


def test_no_two_files_are_the_same(vectors: Vectors):
    seen: dict[str, str] = {}
    for case in vectors.cases:
        assert seen.setdefault(case.row["sha256"], case.id) == case.id


def test_every_code_has_a_case():
    codes = {c["code"] for c in MANIFEST["cases"] if c["expect"] == "reject"}
    assert codes == set(DECODE_CODES) - set(NOT_BY_A_FILE)


def untestable(spec: str) -> set[str]:
    """Rules of the list in chapter 17: those at the start of a line of its code block."""
    block = spec.partition("Rules that no file can test")[2].split("```")[1]
    heads = [re.match(r"(?:R\d+\.\d+\s)+", line) for line in block.splitlines()]
    return {rule for head in heads if head for rule in head.group().split()}


def test_every_rule_has_a_case():
    spec = SPEC.read_text(encoding="utf-8")
    rules = set(re.findall(r"\*\*(R\d+(?:\.\d+)*)\*\*", spec))
    cited = {r for c in MANIFEST["cases"] for r in c["rules"]}
    left_out = untestable(spec)
    assert len(rules) > 80
    assert cited <= rules, "cases cite rules that the spec has not"
    assert left_out <= rules, "the list of rules that no file can test names others"
    assert rules - left_out - cited == set(), "rules without a case"
    assert left_out & cited == set(), "rules with a case that the spec calls untestable"


# ---- the suite itself ----------------------------------------------------------------------------
FILES_AND_DUTIES = ["accept/", "reject/", "either/", "encode/", "duty/"]


def some(vectors: Vectors, *more: str) -> list[str]:
    """All files and duties; the kernels on few files,
    which together hold whatever any file holds.
    """
    return [*FILES_AND_DUTIES, *more, *(f"kernels/{name}" for name in cover(vectors))]


@pytest.mark.parametrize("whole", [False, exhaustive(True)])
def test_numba_passes(monkeypatch: pytest.MonkeyPatch, vectors: Vectors, whole: bool):
    monkeypatch.setattr(conformance.sweeps, "MOST_FLIPS", 500 if whole else 20)
    select = "" if whole else some(vectors, "prefixes/", "payload/", "flips/base_deflated")
    report = conformance.run(load_backend("numba"), select=select)
    assert [str(o) for o in report.failed] == []
    assert report.good == whole
    assert report.totals["passed"] >= 1000
    assert not whole or report.last_line == f"{len(report.outcomes)} passed, 0 failed, 0 not run"


@pytest.mark.parametrize("whole", [False, exhaustive(True)])
def test_reference_passes(whole: bool):
    """Kernels and spoilt payloads are held against the reference itself, and spoilt files are
    refused before it comes to them, nearly all.
    """
    report = conformance.run(
        load_backend("reference"), select="" if whole else FILES_AND_DUTIES, sweeps=whole
    )
    assert [str(o) for o in report.failed] == []
    assert report.totals["passed"] >= (1300 if whole else 1000)
    assert report.good == whole


def test_a_selection_is_no_conformance(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    status = main(
        [
            "conformance",
            "--backend",
            "reference",
            "--filter",
            "accept/rank_0",
            "--report",
            str(tmp_path / "r.json"),
        ]
    )
    out = capsys.readouterr().out.splitlines()
    report = json.loads((tmp_path / "r.json").read_text())
    (decoder,) = report["decoders"]
    n = len(decoder["checks"]) - 3
    assert status == 0
    last = f"3 passed, 0 failed, 0 not run; {n} not selected, which is not the whole suite"
    assert out[-1] == last
    assert decoder["totals"] == {"passed": 3, "failed": 0, "not run": 0, "not selected": n}
    assert (decoder["name"], decoder["conformant"]) == ("reference", False)
    ran = [c for c in decoder["checks"] if c["outcome"] == "passed"]
    assert [c["id"] for c in ran] == [
        f"accept/rank_0_{d}" for d in ("bfloat16", "complex128", "uint8")
    ]
    assert ran[0]["features"] == load()["accept/rank_0_bfloat16"].row["flags"]


def test_interrupted_is_not_green(tmp_path: Path):
    """What was found until then is reported."""
    once = (
        f"import os, pathlib, signal; pathlib.Path('{tmp_path}/once').touch(exist_ok=False); "
        "os.kill(os.getppid(), signal.SIGINT)"
    )
    (tmp_path / "decoder.py").write_text(once)
    report = tmp_path / "r.json"
    decoder = f"{sys.executable} {tmp_path}/decoder.py {{input}} {{output}}"
    line = [
        sys.executable,
        "-m",
        "wcodec",
        "conformance",
        "--report",
        report,
        "--filter",
        "accept/",
        "--command",
        decoder,
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    totals = json.loads(report.read_text())["decoders"][0]["totals"]
    assert totals["failed"] > 0
    assert totals["not run"] > 300
    assert "NOT RUN" in done.stdout
    assert ": interrupted" in done.stdout


def test_without_sweeps_is_not_green(capsys: pytest.CaptureFixture[str]):
    line = ["conformance", "--backend", "reference", "--filter", "base_records", "--no-sweeps"]
    assert main(line) == 1
    assert " 2 not run; " in capsys.readouterr().out


def test_nothing_run_is_not_green():
    assert not conformance.Report("none").good


def test_unknown_backend(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as e:
        main(["conformance", "--backend", "no-such-backend"])
    assert e.value.code == 2
    assert "no-such-backend" in capsys.readouterr().err


def test_damaged_vectors_fail(tmp_path: Path, vectors: Vectors):
    (tmp_path / "accept").mkdir()
    row = vectors["accept/no_tensors"].row
    names = (*conformance.sweeps.FLIPPED, *conformance.sweeps.CORRUPTED)
    bases = [vectors[f"accept/{name}"] for name in names]
    bases += [case.checkpoint for case in bases if case.checkpoint is not None]
    rows = [row, *(case.row for case in bases)]
    (tmp_path / "manifest.json").write_text(json.dumps({"cases": rows}))
    (tmp_path / "accept" / "no_tensors.wcodec").write_bytes(b"\x89WCODEC\n")
    report = conformance.run(load_backend("reference"), folder=tmp_path, select="accept/no_tensors")
    assert ["damaged" in o.message for o in report.failed] == [True]


# ---- a program -----------------------------------------------------------------------------------
GOOD = """
import sys
from pathlib import Path
from wcodec.backends import load_backend
from wcodec.conformance.cases import decode
from wcodec.errors import DecodeError
try:
    base = Path(sys.argv[3]) if sys.argv[3:] and sys.argv[3] else None
    data = decode(load_backend("reference"), open(sys.argv[1], "rb").read(), base).restored
except DecodeError as e:
    sys.exit(str(e))
open(sys.argv[2], "wb").write(data)
"""
WRONG = {
    "accepts everything": (
        "open(sys.argv[2], 'wb')",
        {"accept/special_bfloat16", "accept/source_alone", "reject/magic_first_byte"},
    ),
    "writes nothing": (
        "",
        {"accept/special_bfloat16", "accept/source_alone", "reject/magic_first_byte"},
    ),
    "leaves a file behind": (
        "open(sys.argv[2], 'wb'); sys.exit(1)",
        {"accept/special_bfloat16", "accept/source_alone", "reject/magic_first_byte"},
    ),
    "crashes": (
        "import os; os.abort()",
        {"accept/special_bfloat16", "accept/source_alone", "reject/magic_first_byte"},
    ),
}
SOME = ["accept/special_bfloat16", "accept/source_alone", "reject/magic_first_byte"]


def command(tmp_path: Path, program: str, more: str = "") -> conformance.Command:
    (tmp_path / "decoder.py").write_text(program)
    return conformance.Command(
        f"'{sys.executable}' '{tmp_path / 'decoder.py'}' {{input}} {{output}} {more}"
    )


# the name of the very first sweep begins the names of others
@pytest.mark.parametrize("first", [1, exhaustive(0)])
def test_program_passes(tmp_path: Path, first: int):
    decoder = command(tmp_path, GOOD)
    _, sweeps = conformance.checks_of(decoder, load())
    names = [
        *SOME,
        "accept/base_records",
        "either/padding_words",
        "reject/table_padding",
        sweeps[first].id,
        sweeps[-1].id,
    ]
    report = conformance.run(decoder, select=names)
    assert [str(o) for o in report.failed] == []
    assert report.totals["passed"] >= len(names)
    assert report.totals["not selected"] > 500


@pytest.mark.parametrize("name", WRONG)
def test_wrong_program_fails(tmp_path: Path, name: str):
    program, due = WRONG[name]
    report = conformance.run(command(tmp_path, f"import sys\n{program}\n"), select=SOME)
    assert {o.id for o in report.failed} == due


OF_BASES = [
    "accept/difference_xor_w2",
    "accept/base_difference",
    "reject/base_other_file",
    "reject/base_other_hash",
]


def test_program_that_takes_a_base(tmp_path: Path):
    report = conformance.run(
        command(tmp_path, GOOD, "{base}"),
        select=[*OF_BASES, "accept/base_unused", "reject/base_missing"],
    )
    assert [str(o) for o in report.failed] == []
    assert report.totals["passed"] == len(OF_BASES) + 2


def test_program_without_a_base_leaves_its_cases_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    line = command(tmp_path, GOOD).template
    chosen = [part for id in OF_BASES for part in ("--filter", id)]
    args = [*chosen, "--no-sweeps", "--report", str(tmp_path / "r.json")]
    assert main(["conformance", "--command", line, *args]) == 1
    (decoder,) = json.loads((tmp_path / "r.json").read_text())["decoders"]
    checks = {c["id"]: c for c in decoder["checks"]}
    assert {checks[id]["message"] for id in OF_BASES} == {"the command has no {base}"}
    assert {checks[id]["outcome"] for id in OF_BASES} == {"not run"}
    assert not any(c["outcome"] == "passed" for c in checks.values())
    assert ": the command has no {base}\n" in capsys.readouterr().out


def test_program_needs_both_places():
    with pytest.raises(ValueError, match="lacks"):
        conformance.Command("decoder {input}")


# refuses what is beyond profile `core`
CORE = """
import hashlib, json, sys
data = open(sys.argv[1], "rb").read()
cases = json.load(open(sys.argv[4]))["cases"]
row = next((c for c in cases if c["sha256"] == hashlib.sha256(data).hexdigest()), {})
if "profile" in row:
    sys.exit(1)
"""


def test_a_decoder_is_judged_by_its_profile(tmp_path: Path, vectors: Vectors):
    some = ["accept/base_bytes", "accept/base_contexts", "accept/operand_fixed_int8",
            "accept/difference_xor_w1", "reject/contexts_twice"]  # fmt: skip
    of = {c.id: c.profile for c in vectors.cases if c.id in some}
    assert list(of.values()) == ["core", "full", "base", "operand", None]
    made = command(tmp_path, CORE + GOOD, f"{{base}} '{vectors.folder / 'manifest.json'}'")
    for profile, failed in (
        ("core", []),
        ("operand", ["accept/operand_fixed_int8"]),
        ("full", ["accept/base_contexts", "accept/operand_fixed_int8"]),
    ):
        judged = conformance.Command(made.template, profile=profile)
        report = conformance.run(judged, select=some)
        assert sorted(o.id for o in report.failed) == failed
        assert report.profile == profile
        assert report.totals["not run"] == 0
    with pytest.raises(ValueError, match="no profile 'most'"):
        conformance.Command(made.template, profile="most")
    with pytest.raises(SystemExit):
        main(["conformance", "--backend", "reference", "--profile", "core"])
