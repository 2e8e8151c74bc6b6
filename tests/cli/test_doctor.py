"""`wcodec doctor`: what it says of this machine, and what it does where something is wrong."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wcodec.backends import load_backend
from wcodec.backends.code_cache import CodeCache
from wcodec.backends.numba import machine_code
from wcodec.backends.reference import ReferenceBackend
from wcodec.cli import doctor, main, self_test
from wcodec.reference.planes import BY_NAME, DTYPES, OPAQUE

FEW = (OPAQUE, BY_NAME["bool"], BY_NAME["bfloat16"], BY_NAME["complex64"])
NUMBER, TEXT = (int, float), (str, type(None))
SPEEDS = ("memcpy_gb_s", "encode_gb_s", "decode_gb_s")

#: what `--json` prints: types of values, and in a list the type of each
SCHEMA: dict[str, Any] = {
    "wcodec": str,
    "format": str,
    "python": str,
    "platform": str,
    "packages": {"numpy": str, "ml_dtypes": str, "numba": TEXT, "llvmlite": TEXT},
    "cpu": {"name": str, "variant": TEXT, "usable": int, "threads": int},
    "memory": dict.fromkeys(
        ("total_nbytes", "available_nbytes", "limit_nbytes"), (int, type(None))
    ),
    "cache": {
        "folder": str,
        "nbytes": int,
        "n_functions": int,
        "is_writeable": bool,
        "setting": str,
        "is_warm": bool,
    },
    "gpu": {"found": bool, "usable": bool, "reason": str, "info": dict},
    "backend": {"name": TEXT, "reason": str},
    "backends": [{"name": str, "usable": bool, "used": bool, "reason": str, "info": dict}],
    "self_test": {
        "seconds": float,
        "backends": [
            {
                "name": str,
                "compile_s": float,
                "dtypes": [
                    {
                        "name": str,
                        "same": bool,
                        "error": TEXT,
                        "nbytes": int,
                        **dict.fromkeys(SPEEDS, float),
                    }
                ],
            }
        ],
    },
    "problems": [{"what": str, "do": str}],
    "good": bool,
}


def fits(value: Any, schema: Any) -> bool:
    if isinstance(schema, dict):
        return (
            isinstance(value, dict)
            and value.keys() == schema.keys()
            and all(fits(value[k], s) for k, s in schema.items())
        )
    if isinstance(schema, list):
        return isinstance(value, list) and all(fits(v, schema[0]) for v in value)
    return isinstance(value, schema) and (schema is not int or not isinstance(value, bool))


def report_of(capsys: pytest.CaptureFixture[str], *args: str, status: int = 0) -> dict[str, Any]:
    assert main(["doctor", "--json", *args]) == status
    out, err = capsys.readouterr()
    report: dict[str, Any] = json.loads(out)
    assert report["good"] == (status == 0) == (not report["problems"])
    lines = [f"wcodec: error: {p['what']}: {p['do']}" for p in report["problems"]]
    assert err.splitlines() == lines, "a line for each thing that is wrong"
    return report


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only some dtypes, measured once."""
    monkeypatch.setattr(self_test, "DTYPES", FEW)
    monkeypatch.setattr(self_test, "BUDGET_S", 0.0)


# ---- nothing is wrong ----------------------------------------------------------------------------
def test_all_is_well_here(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(capsys)
    assert fits(report, SCHEMA)
    usable = [row["name"] for row in report["backends"] if row["usable"]]
    assert {"numba", "reference"} <= set(usable)
    tested = report["self_test"]["backends"]
    assert sorted(b["name"] for b in tested) == sorted(usable)
    for backend in tested:
        assert [row["name"] for row in backend["dtypes"]] == [d.name for d in DTYPES]
        for row in backend["dtypes"]:
            assert row["same"]
            assert min(row[k] for k in SPEEDS) > 0
    assert report["cpu"]["variant"] == load_backend("numba").info()["variant"]
    assert report["cpu"]["usable"] == len(os.sched_getaffinity(0))
    assert 0 < report["memory"]["available_nbytes"] <= report["memory"]["total_nbytes"]


@pytest.mark.usefixtures("few")
def test_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wcodec.cli.self_test.BUDGET_S", 1e6)  # on a machine under load too
    assert main(["doctor", "--backend", "numba", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("wcodec 0.1.0 (format 0.2), Python 3.")
    assert [line.split()[0] for line in lines[1:6]] == [
        "packages",
        "CPU",
        "memory",
        "compiled",
        "GPU",
    ]
    assert "1 threads, code for " in lines[2]
    assert any(line.split() == ["backend", "numba:", "in", "use"] for line in lines)
    (head,) = (line for line in lines if line.startswith("dtype"))
    assert head.split() == ["dtype", "numba", "encode", "numba", "decode"]
    first = lines.index(head) + 1
    assert [line.split()[0] for line in lines[first : first + 4]] == [d.name for d in FEW]
    assert lines[first + 4].startswith(
        "numba: 4 of 4 dtypes came back the same, matrices of 8.4 MB"
    )
    assert lines[-1] == "nothing is wrong"


@pytest.mark.usefixtures("few")
def test_progress_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--backend", "reference"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["doctor", "--backend", "reference"]) == 0
    shown = [text.strip() for text in capsys.readouterr().err.split("\r")]
    assert "self-test: reference, bfloat16, 3 of 4" in shown
    assert shown[-1] == "", "the line is empty in the end"


def test_any_bits_are_among_what_is_tested() -> None:
    for dtype in DTYPES:
        words = self_test.Trip(ReferenceBackend(), dtype, (72, 260)).words
        n_values = len(np.unique(words.view(np.uint8)))
        assert n_values == (2 if dtype.name == "bool" else 256), dtype.name


# ---- something is wrong --------------------------------------------------------------------------
@pytest.mark.usefixtures("few")
def test_a_backend_that_returns_wrong_bytes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = ReferenceBackend.decode_with_checksums

    def wrong(self: Any, plan: Any, payload: Any, out: Any) -> Any:
        result = right(self, plan, payload, out)
        if plan.dtype.name == "bfloat16":
            out[-1, -1] ^= 1
        return result

    monkeypatch.setattr(ReferenceBackend, "decode_with_checksums", wrong)
    report = report_of(capsys, "--backend", "reference", status=1)
    (tested,) = report["self_test"]["backends"]
    assert [(r["name"], r["same"]) for r in tested["dtypes"]] == [
        (d.name, d.name != "bfloat16") for d in FEW
    ]
    (problem,) = report["problems"]
    assert problem["what"] == (
        "backend reference fails the self-test with bfloat16 (other bytes came back)"
    )
    assert "report this" in problem["do"]
    assert main(["doctor", "--backend", "reference"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith("bfloat16")] == [
        ["bfloat16", "WRONG", "WRONG"]
    ]
    assert lines[-1] == "1 problem"


@pytest.mark.usefixtures("few")
def test_a_backend_that_makes_other_bytes_or_raises(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numba = type(load_backend("numba"))
    right = numba.histogram

    def wrong(self: Any, words: Any, geometry: Any, dtype: Any, **kwargs: Any) -> Any:
        if dtype.name == "complex64":
            raise RuntimeError("no luck")
        return right(self, words, geometry, dtype, **kwargs) + (dtype.name == "bfloat16")

    monkeypatch.setattr(numba, "histogram", wrong)
    report = report_of(capsys, status=1)
    assert [p["what"] for p in report["problems"]] == [
        "backend numba fails the self-test with bfloat16 (its bytes are not those of backend "
        "reference)",
        "backend numba fails the self-test with complex64 (RuntimeError: no luck)",
    ]


@pytest.mark.usefixtures("few")
def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a file").write_text("")
    cache = CodeCache(tmp_path / "a file" / "wcodec", "")
    monkeypatch.setattr(machine_code, "code_cache", lambda: cache)
    report = report_of(capsys, "--backend", "reference", status=1)
    (problem,) = report["problems"]
    assert f"cannot be kept in '{cache.folder}'" in problem["what"]
    assert problem["do"] == "set NUMBA_CACHE_DIR to a folder that can be written"
    assert fits(report, SCHEMA)
    assert main(["doctor", "--backend", "reference"]) == 1
    (line,) = (s for s in capsys.readouterr().out.splitlines() if s.startswith("compiled"))
    assert "cannot be written" in line


@pytest.mark.usefixtures("few")
def test_a_choice_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_of(capsys, "--backend", "no_such", status=1)
    assert report["self_test"]["backends"] == []
    assert "there is no backend 'no_such'" in report["problems"][0]["what"]
    monkeypatch.setenv("WCODEC_THREADS", "many")
    report = report_of(capsys, status=1)
    (problem,) = report["problems"]
    assert "WCODEC_THREADS is 'many'" in problem["what"]


def test_what_is_installed_and_not_usable() -> None:
    def rows(reason: str) -> list[dict[str, Any]]:
        return [{"name": "numba", "usable": not reason, "reason": reason}]

    report: dict[str, Any] = {
        "backend": {"name": "reference", "reason": ""},
        "packages": {"llvmlite": "0.44.0"},
        "backends": rows("it is old"),
        "gpu": {"found": True, "usable": False, "reason": "no CuPy"},
        "cache": None,
        "self_test": {"backends": []},
    }
    found = [p["what"] for p in doctor.problems(report)]
    assert found == [
        "llvmlite is installed, but the numba backend is not usable (it is old)",
        "there is a GPU, but its backend is not usable (no CuPy)",
    ]
    report["packages"]["llvmlite"], report["gpu"]["found"] = None, False
    assert doctor.problems(report) == []


# ---- the cache of compiled code ------------------------------------------------------------------
def test_state_of_the_cache(tmp_path: Path) -> None:
    cache = CodeCache(tmp_path / "code", "code")
    assert cache.state("key") == (str(tmp_path / "code"), 0, 0, True)
    assert not cache.state("key").is_warm
    cache.keep("a", "key", b"123")
    cache.keep("b", "other", b"1234")
    state = cache.state("key")
    assert state == (str(tmp_path / "code"), 3 + 32 + 4 + 32, 1, True)
    assert state.is_warm
    assert not cache.state("third").is_warm
    assert cache.load("a", "key") == b"123"
    assert cache.load("a", "other") is None
