"""Directories and files converted by many workers: as by one, whatever happens to them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import executors
import fsspec
import pytest
from models import arrays, make_model, remote_sums, sums

import wcodec
from wcodec.cli import main
from wcodec.directories import encode_directory
from wcodec.directories.encoding import plan_encode
from wcodec.directories.resumable import DirectoryPlan
from wcodec.directories.tasks import Unit
from wcodec.files import parts
from wcodec.fleet import Fleet, in_this_process, spread
from wcodec.fleet import conversion as fleet_conversion
from wcodec.fleet.engines import Engine, open_engine
from wcodec.fleet.running import TRIES


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a model and its encoded form."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    make_model(tmp_path / "model")
    encode_directory("model", "one")
    return tmp_path


@pytest.fixture
def memory() -> Iterator[str]:
    """A URL in memory."""
    fs = fsspec.filesystem("memory")
    yield "memory://fleet"
    if fs.exists("/fleet"):
        fs.rm("/fleet", recursive=True)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are small; in this process alone."""
    for module in (parts, fleet_conversion):
        monkeypatch.setattr(module, "PART_NBYTES", 200_000)


def wcodec_(*args: object) -> int:
    """The command."""
    return main([str(a) for a in args])


# ---- executors -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["threads", "processes"])
def test_an_executor_makes_the_same(
    here: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ("--executor", f"executors:{name}")
    assert wcodec_("encode", "model", "-o", "many", "--json", *how) == 0
    report = json.loads(capsys.readouterr().out)
    assert sums(here / "many") == sums(here / "one")
    assert report["complete"]
    assert (report["n_coded"], report["n_copied"]) == (3, 3)
    assert report["fleet"]["units"] == 6
    assert sum(m["units"] for m in report["fleet"]["machines"]) == 6
    assert wcodec_("verify", "many", *how) == 0
    assert wcodec_("decode", "many", "-o", "back", *how) == 0
    assert sums(here / "back") == sums(here / "model")
    lines = capsys.readouterr().out.splitlines()
    assert "1 machine, 3 units of work, 0 tried again" in lines[1]
    # files one by one
    for source, target in (("model", "x.wcodec"), ("one", "x.safetensors")):
        name = f"model-00001-of-00003.{'safetensors' if source == 'model' else 'wcodec'}"
        assert wcodec_("encode" if source == "model" else "decode", f"{source}/{name}", "-o",
                       target, *how) == 0  # fmt: skip
    assert Path("x.wcodec").read_bytes() == Path("one/model-00001-of-00003.wcodec").read_bytes()
    assert Path("x.safetensors").read_bytes() == (here / "model" / name.replace(
        ".wcodec", ".safetensors")).read_bytes()  # fmt: skip
    assert [p for p in os.listdir() if p.startswith(".")] == []


def test_a_worker_that_dies_costs_its_work(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(executors.TRAP, str(here / "trap"))
    Path("trap").touch()
    how = ("--executor", "executors:mortal_processes")
    assert wcodec_("encode", "model", "-o", "many", "--json", *how) == 0
    assert json.loads(capsys.readouterr().out)["fleet"]["retries"] >= 1
    assert sums(here / "many") == sums(here / "one")


@pytest.mark.exhaustive
def test_dask(here: Path) -> None:
    assert wcodec_("encode", "model", "-o", "many", "--executor", "executors:dask") == 0
    assert sums(here / "many") == sums(here / "one")


def test_what_is_no_engine(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for executor, text in (
        ("executors:nothing", "gives no executor"),
        ("executors:none", "is not there, as module:factory"),
        ("nonsense", "is not there, as module:factory"),
    ):
        assert wcodec_("encode", "model", "-o", "many", "--executor", executor) == 1
        assert text in capsys.readouterr().err
    for shard in ("0/2", "3/2", "x", "1/0", "1/2/3"):
        with pytest.raises(SystemExit):
            wcodec_("encode", "model", "-o", "many", "--shard", shard)
        assert "is not of the form I/N" in capsys.readouterr().err
    assert not Path("many").exists()


# ---- units ---------------------------------------------------------------------------------------
class Scripted(Executor):
    """Does what a test says with each call."""

    n_workers = 2

    def __init__(self, answers: Callable[[Unit, int], Any]) -> None:
        self.answers, self.calls = answers, dict[str, int]()

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        unit, future = args[0], Future[Any]()
        n = self.calls[unit.key] = self.calls.get(unit.key, 0) + 1
        try:
            self.answers(unit, n)
            future.set_result(fn(*args, **kwargs))
        except BaseException as e:
            future.set_exception(e)
        return future


def name_of(name: str, backend: Any, progress: Any, again: bool) -> tuple[str, bool]:
    """Work that says what it was told."""
    return name, again


def unit(name: str, may_fail: bool = False) -> Unit:
    """Some work."""
    from functools import partial

    return Unit(name, name, 10, partial(name_of, name), may_fail)


def run(answers: Callable[[Unit, int], Any], units: list[Unit]) -> tuple[list[Any], Fleet, Any]:
    """What comes of units, the fleet, and its executor."""
    executor, results, done = Scripted(answers), list[Any](), list[int]()
    fleet = Fleet(Engine(lambda: executor), "reference")

    def follow(unit: Unit, result: Any) -> list[Unit]:
        results.append(result)
        return []

    fleet(iter(units), follow, done.append)
    assert sum(done) == 10 * sum(not isinstance(r, BaseException) for r in results)
    return results, fleet, executor


def test_what_fails_is_tried_again() -> None:
    def fail(u: Unit, n: int) -> None:
        if u.key == "b" and n < TRIES:
            raise [OSError("no disk"), MemoryError(), RuntimeError("died")][n - 1]

    results, fleet, executor = run(fail, [unit(name) for name in "abc"])
    assert sorted(results) == [("a", False), ("b", True), ("c", False)]
    assert fleet.n_retries == TRIES - 1
    assert executor.calls == {"a": 1, "b": TRIES, "c": 1}


def test_what_cannot_be_done_ends_the_run_and_the_rest_is_noted() -> None:
    def fail(u: Unit, n: int) -> None:
        if u.key == "b":
            raise OSError("no disk")

    done = list[Any]()
    fleet = Fleet(Engine(lambda: Scripted(fail)), "reference")
    with pytest.raises(OSError, match="no disk"):
        fleet([unit(n) for n in "abc"], lambda u, r: done.append(r) or [])
    assert ("a", False) in done

    def refuse(u: Unit, n: int) -> None:
        raise wcodec.DecodeError("bad_checksum", "wrong")

    executor = Scripted(refuse)
    with pytest.raises(wcodec.DecodeError, match="wrong"):
        Fleet(Engine(lambda: executor), "reference")([unit("a")], lambda *_: [])
    assert executor.calls == {"a": 1}, "what is wrong with a file is so everywhere"


def test_what_may_fail_does_not_end_the_run() -> None:
    def fail(u: Unit, n: int) -> None:
        if u.key == "b":
            raise OSError("no disk")

    results, _, executor = run(fail, [unit(n, may_fail=True) for n in "abc"])
    assert [type(r) for r in results].count(OSError) == 1
    assert executor.calls["b"] == TRIES


def test_no_more_is_begun_than_there_is_room_for() -> None:
    taken, most = list[str](), list[int]()

    def units() -> Iterator[Unit]:
        for i in range(100):
            taken.append(str(i))
            yield unit(str(i))

    executor, done = Scripted(lambda *_: None), list[Any]()
    fleet = Fleet(Engine(lambda: executor), "reference")

    def follow(u: Unit, result: Any) -> list[Unit]:
        done.append(result)
        most.append(len(taken) - len(done))
        return []

    fleet(units(), follow)
    assert len(done) == 100
    assert max(most) <= fleet.room


def test_workers_get_what_urls_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they have none of their own."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://here")
    monkeypatch.setenv("SECRET", "x")
    seen = dict[str, str]()

    class Elsewhere(Scripted):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            seen.update(args[3])
            return super().submit(fn, *args, **kwargs)

    fleet = Fleet(Engine(lambda: Elsewhere(lambda *_: None)), "reference")
    fleet([unit("a")], lambda *_: [])
    assert seen["AWS_ENDPOINT_URL"] == "http://here"
    assert "SECRET" not in seen


# ---- parts, shards, and runs that ended ----------------------------------------------------------
def plan(target: str, **more: Any) -> DirectoryPlan:
    return plan_encode("model", target, **more)


def test_large_files_are_spread_in_parts(here: Path, small_parts: None, memory: str) -> None:
    encode_directory("model", "two")
    want = sums(here / "two")
    seen = list[str]()

    def runner(units: Any, follow: Any, progress: Any) -> None:
        run = in_this_process(wcodec.get_backend())
        run((u for u in units if seen.append(u.key) or True), follow, progress)

    for target in ("many", f"{memory}/many"):
        seen.clear()
        spread(plan(target), runner)
        assert any("parts/00002-of-" in key for key in seen)
        assert (sums(here / target) if target == "many" else remote_sums(target)) == want


@pytest.mark.parametrize("place", ["many", "memory://fleet/many"])
def test_a_run_that_ended_goes_on(here: Path, small_parts: None, place: str, memory: str) -> None:
    """However much of it was done, and with whom."""
    encode_directory("model", "two")
    want, ended = sums(here / "two"), 0

    class End(Exception):
        pass

    for n in range(100):
        left, seen = [n], list[str]()

        def progress(_: int, left: list[int] = left) -> None:
            if left[0] == 0:
                raise End
            left[0] -= 1

        def runner(units: Any, follow: Any, progress: Any, seen: list[str] = seen) -> None:
            run = in_this_process(wcodec.get_backend())
            run((u for u in units if seen.append(u.key) or True), follow, progress)

        try:
            spread(plan(place), runner, progress)
        except End:
            ended += 1
            continue
        break
    assert ended > 5
    assert (sums(here / place) if place == "many" else remote_sums(place)) == want


@pytest.mark.parametrize("place", ["many", "memory://fleet/many"])
@pytest.mark.parametrize("n", [2, 3, 7])
def test_shards_make_the_same_together(
    here: Path, small_parts: None, n: int, place: str, memory: str
) -> None:
    encode_directory("model", "two")
    runner = in_this_process(wcodec.get_backend())
    for i in range(n, 0, -1):
        one = plan(place, shard=(i, n))
        spread(one, runner)
        assert one.is_complete == (i == 1)
    found = sums(here / place) if place == "many" else remote_sums(place)
    assert found == sums(here / "two")


@pytest.mark.parametrize("place", ["x.wcodec", "memory://fleet/x.wcodec"])
def test_shards_of_one_large_file(
    here: Path, small_parts: None, place: str, memory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "model/model-00001-of-00003.safetensors"
    assert wcodec_("encode", source, "-o", "one.wcodec") == 0
    for i in (2, 1, 3):
        capsys.readouterr()
        assert wcodec_("encode", source, "-o", place, "--shard", f"{i}/3", "--json") == 0
        assert json.loads(capsys.readouterr().out)["complete"] == (i == 3)
    found = Path(place).read_bytes() if place == "x.wcodec" else fsspec.open(place).open().read()
    assert found == Path("one.wcodec").read_bytes()
    assert not [p for p in os.listdir() if p.startswith(".")]
    if place != "x.wcodec":
        assert [*remote_sums(memory)] == ["x.wcodec"]


def test_a_shard_that_ended_goes_on(here: Path) -> None:
    runner = in_this_process(wcodec.get_backend())
    spread(plan("many", shard=(1, 2)), runner)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spread(plan("many", shard=(2, 2)), runner, stop)
    spread(plan("many", shard=(2, 2)), runner)
    assert sums(here / "many") == sums(here / "one")


def test_a_users_file_is_not_replaced(here: Path, small_parts: None) -> None:
    Path("many").mkdir()
    Path("many/config.json").write_text("mine")
    before = sums(here / "many")
    for more in ({}, {"shard": (1, 2)}):
        with pytest.raises(wcodec.EncodeError, match="output_exists"):
            plan("many", **more)
    assert wcodec_("encode", "model", "-o", "many", "--executor", "executors:threads") == 1
    source = "model/model-00001-of-00003.safetensors"
    Path("mine.wcodec").write_text("mine")
    assert wcodec_("encode", source, "-o", "mine.wcodec", "--shard", "1/1") == 1
    assert Path("mine.wcodec").read_text() == "mine"
    assert sums(here / "many") == before
    assert wcodec_("encode", source, "-o", "mine.wcodec", "--shard", "1/1", "-f") == 0
    assert wcodec.load_file("mine.wcodec").keys() == arrays(0, 4).keys()


def test_an_object_that_was_replaced_is_not_taken_for_done(here: Path, memory: str) -> None:
    """Its name alone says nothing. One that was put there anew, and holds the same, is."""
    target, fs = f"{memory}/many", fsspec.filesystem("memory")

    def stop(_: int) -> None:
        if fs.exists("/fleet/many/model-00001-of-00003.wcodec"):
            raise KeyboardInterrupt

    runner = in_this_process(wcodec.get_backend())
    with pytest.raises(KeyboardInterrupt):
        spread(plan(target), runner, stop)
    done = sorted(n for n in plan(target).done if n.endswith(".wcodec"))
    assert done
    path = f"/fleet/many/{done[0]}"
    good = fs.cat_file(path)
    fs.pipe_file(path, good)  # as a copy of it would be
    assert done[0] in plan(target).done
    fs.pipe_file(path, good[:9000] + bytes([good[9000] ^ 1]) + good[9001:])
    again = plan(target)
    assert done[0] not in again.done
    spread(again, runner)
    assert remote_sums(target) == sums(here / "one")


def test_an_index_of_shards_in_a_directory_that_is_verified(here: Path) -> None:
    Path("one/model-00002-of-00003.wcodec").unlink()
    assert wcodec_("verify", "one", "--executor", "executors:threads") == 1


def test_verify_reports_each_file(
    here: Path, memory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fs = fsspec.filesystem("memory")
    for name in sums(here / "one"):
        fs.pipe_file(f"/fleet/one/{name}", Path("one", name).read_bytes())
    fs.pipe_file("/fleet/one/plain.safetensors",
                 Path("model/model-00001-of-00003.safetensors").read_bytes())  # fmt: skip
    assert wcodec_("verify", f"{memory}/one", "--report", "good.json") == 0
    bad = bytearray(Path("one/model-00002-of-00003.wcodec").read_bytes())
    bad[5000] ^= 4
    fs.pipe_file("/fleet/one/model-00002-of-00003.wcodec", bytes(bad))
    fs.pipe_file("/fleet/one/model-00003-of-00003.wcodec", b"nothing")
    capsys.readouterr()
    how = ("--executor", "executors:threads", "--report", "bad.json")
    assert wcodec_("verify", f"{memory}/one", *how) == 1
    err = capsys.readouterr().err
    assert "model-00002-of-00003.wcodec: bad_checksum" in err
    assert "model-00003-of-00003.wcodec: bad_magic" in err or "truncated" in err
    (good,), (found,) = (json.loads(Path(f"{n}.json").read_text()) for n in ("good", "bad"))
    assert [f["good"] for f in good["files"]] == [True] * 4
    assert [f["good"] for f in found["files"]] == [True, False, False, True]
    assert [f["form"] for f in found["files"]][::3] == ["wcodec", "plain"]
    assert found["n_bad"] == 2
    assert wcodec_("verify", f"{memory}/one", *how) == 1, "the report exists"
    assert wcodec_("verify", f"{memory}/one", *how, "-f", "--shard", "1/4") == 0


def test_engines_of_executors() -> None:
    engine = open_engine(executor="executors:threads")
    assert engine.n_workers == 2
    engine.close()
    assert engine.submit(int, "3").result() == 3, "one that takes no more is made again"
    engine.close()
