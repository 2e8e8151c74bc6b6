"""The runner: backends that crash or hang, reports, selections, several decoders at once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path

import faulty_backends as faulty
import jsonschema
import pytest
from sampling import exhaustive

from wcodec import conformance
from wcodec.backends import available_backends, load_backend
from wcodec.backends.reference import ReferenceBackend
from wcodec.cli import main
from wcodec.conformance import documents, page
from wcodec.conformance.cases import load
from wcodec.conformance.walls import AVAILABLE
from wcodec.errors import BackendUnavailable

NEEDS_CC = pytest.mark.skipif(faulty.compiler() is None, reason="there is no compiler `cc`")
NEEDS_WALLS = pytest.mark.skipif(not AVAILABLE, reason="no pages that cannot be touched here")
SELECTED = "which is not the whole suite"
FAULTS = ["kernels/base_bytes", "duty/empty", "duty/faults"]


def found(name: str, *select: str, timeout: float = 60) -> dict[str, str]:
    """Messages of checks that failed, by id; the others passed."""
    target = conformance.InChild(f"faulty_backends:{name}", timeout=timeout)
    report = conformance.run(target, select=select, sweeps=False)
    totals = report.totals
    assert totals["passed"] + totals["failed"] > 0 == totals["not run"]
    return {o.id: o.message for o in report.failed}


# ---- crashes and hangs ---------------------------------------------------------------------------
def test_a_crash_or_hang_costs_one_check() -> None:
    failed = found("Moody", "accept/rank_0_*", "accept/special_float16", timeout=2)
    assert failed == {
        "accept/rank_0_bfloat16": "expected an end of the check; got the end of its process, by "
        "SIGABRT",
        "accept/rank_0_complex128": "expected an end of the check; got the end of its process, by "
        "SIGSEGV, as where a kernel reads or writes beyond an end of an array",
        "accept/rank_0_uint8": "expected an end; got none after 2 s",
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("LeavesByExit", "expected no exception; got SystemExit: 0"),
        ("RaisesOddly", "expected no exception; got Odd: (its text cannot be made)"),
    ],
)
def test_odd_exceptions(name: str, message: str) -> None:
    report = conformance.run(getattr(faulty, name)(), select=FAULTS)
    assert {o.id: o.message for o in report.failed} == {"duty/faults": message}


def test_prints_are_no_answers(capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["conformance", "--backend", "faulty_backends:Prints", "--filter", "rank_0_ui"]) == 0
    )
    out, err = capfd.readouterr()
    assert "printed" in err
    assert "printed" not in out


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "how"),
    [("Exits", "with status 0"), ("Aborts", "by SIGABRT"), ("Crashes", "by SIGSEGV")],
)
def test_ends(name: str, how: str) -> None:
    failed = found(name, *FAULTS)
    assert list(failed) == ["duty/faults"]
    assert f"the end of its process, {how}" in failed["duty/faults"]


@pytest.mark.parametrize(
    "name", ["DiesWhenMade", exhaustive("CannotBeMade"), exhaustive("HasNoInfo")]
)
def test_a_backend_that_cannot_be_made(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main(["conformance", "--backend", f"faulty_backends:{name}"])
    assert e.value.code == 2
    line, usage = capsys.readouterr().err.splitlines()
    assert line.startswith(f"wcodec conformance: error: backend 'faulty_backends:{name}'")
    assert usage.endswith("shows the usage")


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    number, report = tmp_path / "pid", tmp_path / "r.json"
    line = ["-m", "wcodec", "conformance", "--backend", "faulty_backends:Interrupts"]
    line += ["--filter", "duty/faults", "--filter", "duty/max_nbytes", "--report", str(report)]
    path = os.pathsep.join([str(Path(faulty.__file__).parent), *sys.path])
    env = os.environ | {"FAULTY_PID": str(number), "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *line], env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), 0)
    (decoder,) = json.loads(report.read_text())["decoders"]
    assert decoder["interrupted"]
    assert decoder["totals"]["not run"] == 2
    assert "NOT RUN 2: interrupted" in done.stdout


# ---- beyond the ends -----------------------------------------------------------------------------
@NEEDS_WALLS
def test_reading_beyond_an_end_is_found() -> None:
    """Of a payload, at either end, and of the words that are encoded."""
    names = {f"kernels/{n}" for n in ("rank_0_bfloat16", "rank_0_complex128", "special_float32")}
    failed = found("Greedy", *names)
    assert failed.keys() == names
    assert all("SIGSEGV" in message for message in failed.values())


@NEEDS_CC
@NEEDS_WALLS
def test_a_c_backend_that_reads_beyond_its_stream_is_found() -> None:
    assert "SIGSEGV" in found("ReadsPastTheEndInC", "kernels/rank_0_uint8")["kernels/rank_0_uint8"]


@pytest.mark.exhaustive
@NEEDS_WALLS
@pytest.mark.parametrize(
    "name",
    [
        "ReadsPastTheEnd", "ReadsBeforeTheStart", "ReadsPastWords", "ReadsPastColumns",
        "WritesPastTheEnd", "WritesBeforeTheStart",
        pytest.param("ReadsBeforeTheStartInC", marks=NEEDS_CC),
    ],
)  # fmt: skip
def test_going_beyond_an_end_is_found(name: str) -> None:
    assert "kernels/base_bytes" in found(name, "kernels/base_bytes")


def test_a_healthy_one_passes() -> None:
    assert found("factory", *FAULTS) == {}


# ---- threads -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["SharesABuffer", pytest.param("SharesABufferInC", marks=NEEDS_CC)]
)
def test_threads_that_share_a_buffer_are_found(name: str) -> None:
    report = conformance.run(getattr(faulty, name)(), select="duty/threads")
    (failed,) = report.failed
    assert failed.id == "duty/threads"


def test_threads_that_share_nothing_pass() -> None:
    report = conformance.run(load_backend("numba"), select="duty/threads")
    assert report.failed == []


# ---- selections ----------------------------------------------------------------------------------
class Wrong(ReferenceBackend):
    """Decodes one word wrong."""

    name = "wrong"

    def decode_segments(self, plan, payload, out):
        status = super().decode_segments(plan, payload, out)
        if out.shape == (33, 25):
            out[3, 17] ^= 1
        return status


def test_messages_give_place_expected_and_got() -> None:
    report = conformance.run(Wrong(), select=["accept/adst_top", "kernels/adst_top"])
    got = {o.id: o.message for o in report.failed}
    assert got.keys() == {"accept/adst_top", "kernels/adst_top"}
    pattern = (
        r"expected the words of tensor 'w': (0x..) at \[3, 17\]; got (0x..) \(1 of 825 differ\)"
    )
    match = re.fullmatch(pattern, got["kernels/adst_top"])
    assert match
    assert int(match[1], 16) ^ int(match[2], 16) == 1
    assert "expected the file to be decoded; got bad_checksum" in got["accept/adst_top"]


def test_kernels_come_first_then_files_then_sweeps() -> None:
    plain, sweeps = conformance.checks_of(ReferenceBackend(), load())
    kinds = list(dict.fromkeys(c.id.partition("/")[0] for c in (*plain, *sweeps)))
    assert kinds[:2] == ["duty", "kernels"]
    assert set(kinds[2:6]) == {"accept", "reject", "either", "encode"}
    assert set(kinds[6:]) == {"prefixes", "flips", "payload"}


def test_filters_are_texts_or_globs() -> None:
    report = conformance.run(ReferenceBackend(), select=["duty/[ef]*", "rank_0_uint8"])
    ran = [o.id for o in report.outcomes if o.outcome == "passed"]
    rank_0 = [f"{kind}/rank_0_uint8" for kind in ("kernels", "accept", "encode")]
    assert ran == ["duty/empty_input", "duty/faults", *rank_0]
    assert report.selection_good
    assert not report.good
    n = len(report.outcomes) - 5
    assert report.last_line == f"5 passed, 0 failed, 0 not run; {n} not selected, {SELECTED}"


def test_a_filter_that_matches_nothing_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main(["conformance", "--backend", "reference", "--in-process", "--filter", "nonsense"])
    assert e.value.code == 2
    assert "no check has such an id: nonsense" in capsys.readouterr().err


def test_list_prints_ids(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["conformance", "--backend", "reference", "--list", "--filter", "duty/m*"]
    assert main(line) == 0
    assert capsys.readouterr().out == "duty/max_nbytes\n"


def test_stop_at_the_first_failure() -> None:
    report = conformance.run(Wrong(), select="adst_top", stop_at_first=True)
    assert [o.id for o in report.failed] == ["kernels/adst_top"]
    assert {o.message for o in report.outcomes if o.outcome == "not run"} == {
        "stopped at the first failure"
    }


# ---- several decoders, and what is written -------------------------------------------------------
@pytest.fixture
def programs(tmp_path: Path) -> list[str]:
    """Options for a decoder that accepts the same of everything, and for one that refuses all."""
    (tmp_path / "writes.sh").write_text("#!/bin/sh\nprintf x > $2\n")
    (tmp_path / "refuses.sh").write_text("#!/bin/sh\nexit 3\n")
    line = "{input} {output} {base}"
    return [
        part
        for name in ("writes", "refuses")
        for part in ("--command", f"{name}=sh {tmp_path}/{name}.sh {line}")
    ]


PICK = ["--filter", "reject/column_width_*", "--filter", "accept/rank_0_uint8"]


def test_several_decoders_in_one_run(
    tmp_path: Path, programs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    files = {n: tmp_path / f"out.{n}" for n in ("json", "html", "svg")}
    more = ["--report", files["json"], "--html", files["html"], "--badge", files["svg"]]
    assert main(["conformance", *programs, *PICK, *map(str, more)]) == 1
    out = capsys.readouterr().out
    n_reject = len([c for c in load().cases if c.id.startswith("reject/column_width_")])
    assert re.search(r"^  and \d alike: reject/column_width_", out, re.M)
    assert re.search(rf"^reject +✗ {n_reject} of {n_reject},.* +✓ {n_reject},", out, re.M)
    assert out.endswith("\n0 of 2 decoders passed the whole suite\n")
    report = json.loads(files["json"].read_text())
    jsonschema.validate(report, json.loads(documents.SCHEMA.read_text()))
    assert [d["name"] for d in report["decoders"]] == ["writes", "refuses"]
    assert [d["totals"]["failed"] for d in report["decoders"]] == [n_reject + 1, 1]
    assert [d["profile"] for d in report["decoders"]] == [None, None]
    check_page(files["html"].read_text())
    badge = xml.etree.ElementTree.fromstring(files["svg"].read_text())
    assert "0 of 2 decoders pass" in "".join(badge.itertext())
    before = {n: path.read_bytes() for n, path in files.items()}
    for option, n in (("--report", "json"), ("--html", "html"), ("--badge", "svg")):
        assert main(["conformance", *programs, *PICK, option, str(files[n])]) == 1
        assert "output_exists" in capsys.readouterr().err
    assert before == {n: path.read_bytes() for n, path in files.items()}


class Reader(HTMLParser):
    """Ids, links and what a page would fetch; every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids, self.links, self.fetched = set[str](), set[str](), list[str]()
        self.open, self.text = list[str](), ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.add(str(value))
            elif name == "href":
                self.links.add(str(value))
            elif name == "src" or tag == "link":
                self.fetched.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(text: str) -> None:
    seen = Reader(text)
    assert seen.open == seen.fetched == []
    assert "http" not in text
    assert seen.links <= {f"#{id}" for id in seen.ids}
    assert seen.links >= {"#accept/rank_0_uint8", "#reject/column_width_8"}
    assert seen.ids == {c.id for c in load().cases}
    assert "prefers-color-scheme: dark" in text
    case = load()["reject/column_width_8"]
    assert ", ".join(case.rules) in seen.text
    assert case.data[:16].hex(" ") in seen.text


def test_names_on_pages_are_text() -> None:
    report = conformance.Report(
        "<script>|`x`",
        vectors={"cases": 0},
        outcomes=[conformance.Outcome("duty/x", (), "failed", 0, "<b> | *\nnext")],
    )
    text = page.as_html([report], load())
    assert "<script>|" not in text
    assert "<b>" not in text
    assert "\\<b\\> \\| \\* next" in documents.as_markdown([report])
    assert xml.etree.ElementTree.fromstring(documents.as_badge([report])) is not None


def test_markdown_is_a_table(programs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", *programs, *PICK, "--markdown"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["| | writes | refuses |", "|---|---|---|"]
    assert lines[2].startswith("| all | ✗ ")
    assert {line.count("|") for line in lines if line.startswith("|")} == {4}


@pytest.mark.parametrize(
    ("outcomes", "due"),
    [
        ("passed passed", ("2 passed", "#1a7f37")),
        ("passed failed", ("1 failed", "#b3261e")),
        ("passed selected", ("1 of 2 passed", "#6e7781")),
    ],
)
def test_what_a_badge_says(outcomes: str, due: tuple[str, str]) -> None:
    names = [o.replace("selected", "not selected") for o in outcomes.split()]
    made = [conformance.Outcome(f"accept/{i}", (), o) for i, o in enumerate(names)]
    report = conformance.Report("x", outcomes=made)
    assert documents.verdict([report]) == due


def test_a_program_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main(["conformance", "--command", "x=no-such-program {input} {output}"])
    assert e.value.code == 2
    assert "there is no program 'no-such-program'" in capsys.readouterr().err


def test_a_program_that_hangs_with_others_is_ended() -> None:
    """Which hold its output open."""
    command = conformance.Command("sh -c 'sleep 1000 & sleep 1000' {input} {output}", timeout=1)
    report = conformance.run(command, select="accept/rank_0_uint8", sweeps=False)
    assert [o.message for o in report.failed] == ["expected an end; got none after 1 s"]


# ---- backends of others --------------------------------------------------------------------------
def test_a_plug_in_that_fails_breaks_no_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When it is imported, made, or asked about itself."""
    from importlib import metadata

    plugs = {
        "gone": "no_such_module:Backend",
        "broken": "faulty_backends:CannotBeMade",
        "leaves": "faulty_backends:LeavesWhenMade",
        "mute": "faulty_backends:HasNoInfo",
        "good": "faulty_backends:Healthy",
    }
    entries = [metadata.EntryPoint(k, v, "wcodec.backends") for k, v in plugs.items()]
    monkeypatch.setattr(metadata, "entry_points", lambda group: entries)
    reasons = available_backends()
    assert reasons["reference"] == reasons["good"] == ""
    assert "RuntimeError: no device" in reasons["broken"]
    assert "cannot be imported" in reasons["gone"]
    assert "SystemExit" in reasons["leaves"]
    assert main(["backends", "--backend", "reference"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  good +numpy", out, re.M)
    assert re.search(r"^  mute +not usable: its info\(\) raised KeyError", out, re.M)
    assert re.search(r"^  broken +not usable: backend 'broken' cannot be made", out, re.M)
    with pytest.raises(BackendUnavailable, match="makes no"):
        conformance.run("faulty_backends:factory_of_nothing")
