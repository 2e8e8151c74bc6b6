"""The decoder in C: the conformance suite, also with sanitizers, and mutated and random files
against the package.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from other_files import VECTORS, Given, here, mutated, random_files
from paths import ROOT

from wcodec import conformance
from wcodec.backends import load_backend

FOLDER = ROOT / "decoders" / "c"
NAMES = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
COMPILER = next(filter(None, map(shutil.which, filter(None, NAMES))), None)
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
SANITIZED = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def has_zlib() -> bool:
    """Whether a C compiler is there, and the header of zlib."""
    if COMPILER is None:
        return False
    done = subprocess.run(
        [COMPILER, "-E", "-"], input=b"#include <zlib.h>", capture_output=True, check=False
    )
    return done.returncode == 0


pytestmark = pytest.mark.skipif(
    not has_zlib(), reason="needs a C compiler and zlib's header: decoders/c/README.md"
)


def build(output: Path, *options: str, main: Path = FOLDER / "main.c") -> Path:
    assert COMPILER is not None
    line = [COMPILER, *STRICT, *options, "-I", str(FOLDER), "-o", str(output), str(main)]
    zlib = [] if "-DWCODEC_NO_ZLIB" in options else ["-lz"]
    done = subprocess.run([*line, str(FOLDER / "wcodec.c"), *zlib], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("c") / "wcodec-decode", "-O2")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sanitized") / "wcodec-decode", *SANITIZED)


def check_suite(program: Path) -> None:
    command = conformance.Command(f"'{program}' {{input}} {{output}} {{base}}")
    report = conformance.run(command)
    assert [str(o) for o in report.failed] == []
    assert report.good


def test_the_suite_passes(program: Path) -> None:
    check_suite(program)


@pytest.mark.exhaustive
def test_the_suite_passes_with_sanitizers(sanitized: Path) -> None:
    check_suite(sanitized)


def test_codes(program: Path, tmp_path: Path) -> None:
    """Those of the manifest, where the suite of commands only asks for a refusal."""
    output = tmp_path / "output"
    for case in (c for c in VECTORS.cases if c.expect == "reject"):
        line = [program, case.path, output, case.base_path or ""]
        done = subprocess.run(line, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{case.row['code']}\n")
    assert list(tmp_path.iterdir()) == []


def test_without_zlib(tmp_path: Path) -> None:
    program, output = build(tmp_path / "decode", "-DWCODEC_NO_ZLIB"), tmp_path / "output"
    plain, deflated = VECTORS["accept/base_bytes"], VECTORS["accept/base_deflated"]
    done = subprocess.run([program, deflated.path, output], capture_output=True, text=True)
    assert (done.returncode, done.stderr, output.exists()) == (1, "no_inflate\n", False)
    assert subprocess.run([program, plain.path, output]).returncode == 0
    assert hashlib.sha256(output.read_bytes()).hexdigest() == plain.row["restored_sha256"]


def test_what_the_program_says(program: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.write_bytes(b"before")
    good = VECTORS["accept/base_records"].path
    for words, status, said in (
        ([], 2, "usage: wcodec-decode"),
        ([tmp_path / "missing", output], 1, "No such file"),
        (["-m", "1", good, output], 1, "resource_limit"),
        ([good, tmp_path / "no" / "output"], 1, "No such file"),
    ):
        done = subprocess.run([program, *words], capture_output=True, text=True)
        assert (done.returncode, said in done.stderr) == (status, True)
    assert output.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["output"]


def test_what_the_readme_shows(tmp_path: Path) -> None:
    (example,) = re.findall(r"```c\n(.*?)```", (FOLDER / "README.md").read_text(), re.S)
    (tmp_path / "example.c").write_text(example)
    program = build(tmp_path / "example", main=tmp_path / "example.c")
    case = VECTORS["accept/base_records"]
    done = subprocess.run([program, case.path], capture_output=True, text=True, check=True)
    due = [f"{t['name']} {t['dtype']} {t['nbytes']}" for t in case.row["tensors"]]
    assert done.stdout.splitlines() == due


@pytest.mark.parametrize(
    ("seed", "n", "n_random"),
    [(0, 100, 20), pytest.param(1, 8000, 800, marks=pytest.mark.exhaustive)],
)
def test_mutated_and_random_files(
    program: Path, request: pytest.FixtureRequest, tmp_path: Path, seed: int, n: int, n_random: int
) -> None:
    """Refused where the package refuses them, and else the same. Codes may differ where more than
    one rule is broken (R2.7). With sanitizers in `make test-all`.
    """
    if n > 100:
        program = request.getfixturevalue("sanitized")
    backend, source, output = load_backend("reference"), tmp_path / "input", tmp_path / "output"
    seen = Counter[tuple[str, str]]()
    for file, base in [*mutated(seed, n, backend), *random_files(seed, n_random)]:
        code, sha256 = here(backend, file, base)
        if code == "resource_limit":  # the limit of the test, which the program does not have
            continue
        source.write_bytes(file.data)
        line = [program, source, output, base or ""]
        done = subprocess.run(line, capture_output=True, text=True, timeout=100)
        found = output.read_bytes() if output.exists() else b""
        output.unlink(missing_ok=True)
        seen[code, done.stderr.strip()] += 1
        assert done.returncode == (code != ""), (code, done.stderr, given_of(file, tmp_path))
        assert code or hashlib.sha256(found).hexdigest() == sha256, given_of(file, tmp_path)
    assert seen["", ""] >= n_random
    alike = sum(number for (code, other), number in seen.items() if code == other)
    assert alike > 0.95 * sum(seen.values()), seen


def given_of(file: Given, folder: Path) -> Path:
    """Where a file is kept that a test has failed on."""
    path = folder / "failed.wcodec"
    path.write_bytes(file.data)
    return path
