"""How decoders look up entries and store words is chosen by time, and can be forced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from variants import VARIANTS, host_has, run_module, skip_unless_it_runs

from wcodec.backends import load_backend
from wcodec.backends.numba import large_outputs, table_lookups
from wcodec.backends.numba.choices import Ways
from wcodec.backends.numba.ir import GATHERS, VARIANT
from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder

CHOICES = {"table lookups": table_lookups.WAYS, "large outputs": large_outputs.WAYS}
each_choice = pytest.mark.parametrize("what", CHOICES)


def both_ways() -> None:
    """Skip the test where the code has one way only."""
    if not GATHERS:
        pytest.skip(f"the variant {VARIANT} has one way to look up entries and to store words")


def chosen(what: str, env: dict[str, str]) -> str:
    """What `wcodec backends -v` says in a process with such an environment."""
    out = run_module(env, "wcodec", "backends", "-v")
    line = next(line for line in out.splitlines() if "numba" in line)
    return line.partition(f"{what} ")[2] or line


@each_choice
@pytest.mark.parametrize("first", [True, False])
def test_the_environment_names_one(what: str, first: bool) -> None:
    both_ways()
    ways = CHOICES[what]
    name = ways.names[not first]
    assert chosen(what, {ways.setting: name}).startswith(f"{name} (named by {ways.setting}")


def refused(env: dict[str, str], *arguments: str) -> str:
    """What Python says that fails in such an environment, with the default backend."""
    kept = {k: v for k, v in os.environ.items() if k != "WCODEC_BACKEND"}
    run = subprocess.run(
        [sys.executable, *arguments], env={**kept, **env}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode != 0
    return run.stderr


@each_choice
@pytest.mark.parametrize(
    "arguments", [["-m", "wcodec", "backends"], ["-c", "import wcodec; wcodec.get_backend()"]]
)
def test_a_wrong_name_is_refused(what: str, arguments: list[str]) -> None:
    """And not taken for a reason to use another backend."""
    ways = CHOICES[what]
    said = refused({ways.setting: "Gather"}, *arguments)
    assert f"{ways.setting} is 'Gather': set it to {' or '.join(ways.names)}" in said


@each_choice
def test_one_is_refused_where_it_is_not(what: str) -> None:
    skip_unless_it_runs("plain")
    ways = CHOICES[what]
    assert f"has no {ways.lacking}" in refused(
        {**VARIANTS["plain"], ways.setting: ways.names[0]}, "-m", "wcodec", "backends"
    )
    assert chosen(what, VARIANTS["plain"]).startswith(f"{ways.names[1]} (the only one")


def test_it_is_measured_once_and_kept(tmp_path: Path) -> None:
    both_ways()
    env = {"NUMBA_CACHE_DIR": str(tmp_path), **{w.setting: "" for w in CHOICES.values()}}
    for what, ways in CHOICES.items():
        assert chosen(what, env).startswith(ways.names)
        (kept,) = (tmp_path / "wcodec").glob(f"{ways.kept_as}-*")
        kept.write_bytes(kept.read_bytes()[:-1])  # damaged: measured again
        assert chosen(what, env).startswith(ways.names)
        assert chosen(what, env) == chosen(what, env)


def test_the_faster_one_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways("WCODEC_NOTHING", ("first", "second"), "nothing", True, "first")
    kept: dict[str, bytes] = {}
    monkeypatch.setattr(
        "wcodec.backends.numba.machine_code.kept",
        lambda name, make: kept.setdefault(name, make()),
    )
    assert ways.choose(lambda: (1.0, 2.5)) == ("first", "measured 2.50 times as fast as second")
    kept.clear()
    assert ways.choose(lambda: (1.0, 1.0)).name == "second"
    kept["nothing"] = b"third 7"  # of another version
    assert ways.choose(lambda: (3.0, 1.0)) == ("second", "measured 3.00 times as fast as first")


@each_choice
def test_a_backend_of_this_process_has_one(what: str) -> None:
    has = load_backend("numba").info()[what]
    assert has.split()[0] in CHOICES[what].names
    assert host_has("avx2") or has.startswith(CHOICES[what].names[1])


@pytest.mark.parametrize("first", [0, 2, 16, 24])
@pytest.mark.parametrize("cols", [1024, 1000])
def test_outputs_are_the_same_wherever_they_begin(
    first: int, cols: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where their addresses are no multiples of 16, which stores past the caches need."""
    both_ways()
    array = np.random.default_rng(1).standard_normal((300, cols)).astype(np.float32)
    backend = load_backend("numba")
    data = Encoder(None, backend).encode(array)
    for name in large_outputs.NAMES:
        monkeypatch.setenv("WCODEC_LARGE_OUTPUTS", name)
        room = np.zeros(array.nbytes + 64, np.uint8)
        start = first - room.ctypes.data % 16 + 16
        out = room[start : start + array.nbytes].view(np.float32).reshape(array.shape)
        Decoder(backend).decode(data, out)
        assert out.tobytes() == array.tobytes()
        assert not room[:start].any()
        assert not room[start + array.nbytes :].any()


def test_large_outputs_are_those_of_16_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WCODEC_LARGE_OUTPUTS", raising=False)
    assert not large_outputs.is_streamed(large_outputs.LARGE_NBYTES - 1)
    streams = large_outputs.choice().name == large_outputs.STREAMING
    assert large_outputs.is_streamed(large_outputs.LARGE_NBYTES) == streams
    monkeypatch.setenv("WCODEC_LARGE_OUTPUTS", "cached")
    assert not large_outputs.is_streamed(1 << 40)


def test_no_memory_to_measure_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    both_ways()

    def fail() -> tuple[float, float]:
        raise MemoryError

    monkeypatch.delenv("WCODEC_LARGE_OUTPUTS", raising=False)
    monkeypatch.setattr(large_outputs, "_measure", fail)
    monkeypatch.setattr("wcodec.backends.numba.machine_code.kept", lambda name, make: make())
    large_outputs.choice.cache_clear()
    assert not large_outputs.is_streamed(1 << 30)
    monkeypatch.undo()
    large_outputs.choice.cache_clear()
    assert large_outputs.choice().name in large_outputs.NAMES
