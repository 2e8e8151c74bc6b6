"""The decoder in JavaScript: the conformance suite, and mutated and random files against the
package.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from other_files import VECTORS, Given, bases_of, here, mutated, random_files
from paths import ROOT

import wcodec
from wcodec.backends import load_backend, use_backend
from wcodec.cli import main
from wcodec.codec.sources import BufferSource
from wcodec.reference.container import read_index

FOLDER = ROOT / "decoders" / "js"
HERE = Path(__file__).parent
NODE = shutil.which("node")


def node_is_recent() -> bool:
    if NODE is None:
        return False
    version = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True)
    found = re.match(r"v(\d+)\.(\d+)", version.stdout)
    return found is not None and (int(found[1]), int(found[2])) >= (18, 15)


pytestmark = pytest.mark.skipif(
    not node_is_recent(), reason="needs node 18.15 or later: decoders/js/README.md"
)


def node(*args: Any, stdin: str = "") -> subprocess.CompletedProcess[str]:
    assert NODE is not None
    return subprocess.run(
        [NODE, *map(str, args)], input=stdin, capture_output=True, text=True, timeout=300
    )


def outcomes(files: Iterable[Given]) -> list[dict[str, Any]]:
    """What becomes of each file, all in one process."""
    rows = [
        {"files": [base64.b64encode(d).decode() for d in (f.data, *f.bases)], "most": f.most}
        for f in files
    ]
    done = node(HERE / "driver.mjs", stdin="\n".join(map(json.dumps, rows)))
    assert (done.returncode, done.stderr) == (0, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(rows)
    return found


# ---- the suite -----------------------------------------------------------------------------------
def test_the_vectors() -> None:
    """With the code of each refusal, where the suite of commands only asks for one."""
    cases = VECTORS.cases
    for case, found in zip(cases, outcomes(Given(c.data, bases_of(c)) for c in cases), strict=True):
        whole = ("", case.row.get("restored_sha256"))
        due = {"accept": [whole], "reject": [(case.row.get("code"), None)]}.get(case.expect)
        got = found["code"], found.get("sha256")
        if due is None:
            assert got == whole or found["code"] not in ("", "crash"), (case.id, found)
        else:
            assert got in due, (case.id, found)


@pytest.mark.exhaustive
def test_the_suite_passes(capsys: pytest.CaptureFixture[str]) -> None:
    command = f"'{NODE}' '{FOLDER / 'decode.mjs'}' {{input}} {{output}} {{base}}"
    assert main(["conformance", "--command", command]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"1\d\d\d passed, 0 failed, 0 not run", last)


def test_the_program_says_why_and_writes_nothing(tmp_path: Path) -> None:
    good, bad = VECTORS["accept/base_records"], VECTORS["reject/version_0_1"]
    output = tmp_path / "output"
    output.write_bytes(b"before")
    refused = node(FOLDER / "decode.mjs", bad.path, output)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "unsupported_version: version 0.1\n"
    missing = node(FOLDER / "decode.mjs", tmp_path / "missing", output)
    assert missing.returncode == 1
    assert "no such file" in missing.stderr
    assert output.read_bytes() == b"before"
    shutil.copy(good.path, output)
    onto_itself = node(FOLDER / "decode.mjs", output, output)
    assert (onto_itself.returncode, onto_itself.stderr) == (1, f"{output} is an input\n")
    assert output.read_bytes() == good.data
    assert node(FOLDER / "decode.mjs", good.path, output, "").returncode == 0
    assert hashlib.sha256(output.read_bytes()).hexdigest() == good.row["restored_sha256"]
    assert [p.name for p in tmp_path.iterdir()] == ["output"]


def test_chains_of_bases(tmp_path: Path) -> None:
    """Differences of all words and of few, from one step to the next, with other geometries."""
    rng, steps, kinds = np.random.default_rng(0), list[bytes](), []
    words = rng.integers(0, 2000, (300, 70)).astype(np.uint16)
    for k, n_changed in enumerate([0, 40, 9000, 60]):
        words.reshape(-1)[rng.integers(0, words.size, n_changed)] += 1
        path, base = tmp_path / str(k), tmp_path / str(k - 1) if k else None
        options = wcodec.EncodeOptions(segment=(16 * (k + 1), 32)) if k in (0, 2) else None
        with use_backend("reference"):
            wcodec.save_file({"w": words, "again": words}, path, options=options, base=base)
        steps.append(path.read_bytes())
        first = read_index(BufferSource(steps[k])).tensors[0]
        kinds.append((bool(first.difference), first.lists is not None))
    assert kinds == [(False, False), (True, True), (True, False), (True, True)]
    whole, cut, none = outcomes(
        [
            Given(steps[3], (steps[2], steps[1], steps[0])),
            Given(steps[3], (steps[2], steps[1])),
            Given(steps[3]),
        ]
    )
    assert whole == {"code": "", "sha256": hashlib.sha256(2 * words.tobytes()).hexdigest()}
    assert cut["code"] == none["code"] == "bad_base"


# ---- the module ----------------------------------------------------------------------------------
def test_the_module() -> None:
    """Sources, rows, limits and what is exposed; the checks are in JavaScript."""
    done = node("--test", "--test-reporter=tap", HERE / "checks.mjs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^# pass [1-9]", done.stdout, re.M), done.stdout
    assert re.search(r"^# fail 0$", done.stdout, re.M), done.stdout


def test_what_the_readme_shows(tmp_path: Path) -> None:
    text = (FOLDER / "README.md").read_text()
    (example,) = re.findall(r"```js\n// Node\n(.*?)```", text, re.S)
    shutil.copy(VECTORS["accept/base_records"].path, tmp_path / "model.wcodec")
    shutil.copy(FOLDER / "wcodec.js", tmp_path / "wcodec.mjs")
    example = example.replace('"./wcodec.js"', '"./wcodec.mjs"')
    (tmp_path / "example.mjs").write_text(f"process.chdir({json.dumps(str(tmp_path))});\n{example}")
    done = node(tmp_path / "example.mjs")
    assert (done.returncode, done.stderr) == (0, "")
    names = [t["name"] for t in VECTORS["accept/base_records"].row["tensors"]]
    assert [line.split()[0] for line in done.stdout.splitlines()][: len(names)] == names
    sha256 = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert sha256 == VECTORS["accept/base_records"].row["restored_sha256"]


def test_it_depends_on_nothing() -> None:
    assert "dependencies" not in json.loads((FOLDER / "package.json").read_text())
    assert not re.search(r"^import |\bimport\(|require\(", (FOLDER / "wcodec.js").read_text(), re.M)


# ---- other files than the vectors ----------------------------------------------------------------
@pytest.mark.parametrize(
    ("seed", "n", "n_random"),
    [(0, 150, 20), pytest.param(1, 5000, 500, marks=pytest.mark.exhaustive)],
)
def test_mutated_and_random_files(seed: int, n: int, n_random: int) -> None:
    """Refused where the package refuses them, and else the same. Codes may differ where more than
    one rule is broken (R2.7).
    """
    backend = load_backend("reference")
    given = [*mutated(seed, n, backend), *random_files(seed, n_random)]
    seen, wrong = Counter[tuple[str, str]](), []
    for (file, base), found in zip(given, outcomes(f for f, _ in given), strict=True):
        code, sha256 = here(backend, file, base)
        seen[code, found["code"]] += 1
        if (code == "") != (found["code"] == "") or found.get("sha256", "") != sha256:
            wrong.append((code, found, hashlib.sha256(file.data).hexdigest()))
    assert wrong == []
    assert seen["", ""] >= n_random
    alike = sum(number for (code, other), number in seen.items() if code == other)
    assert alike > 0.95 * sum(seen.values()), seen
    assert len(seen) > 5
