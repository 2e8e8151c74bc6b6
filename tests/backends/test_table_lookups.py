"""How decoders look up entries is chosen by time, and can be forced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from variants import VARIANTS, host_has, run_module, skip_unless_it_runs

from wcodec.backends import load_backend
from wcodec.backends.numba import table_lookups
from wcodec.backends.numba.ir import GATHERS, VARIANT


def both_ways() -> None:
    """Skip the test where the code has one way only."""
    if not GATHERS:
        pytest.skip(f"the variant {VARIANT} has one way to look up entries")


def chosen(env: dict[str, str]) -> str:
    """What `wcodec backends -v` says in a process with such an environment."""
    out = run_module(env, "wcodec", "backends", "-v")
    line = next(line for line in out.splitlines() if "numba" in line)
    return line.partition("table lookups ")[2] or line


@pytest.mark.parametrize("name", table_lookups.NAMES)
def test_the_environment_names_one(name: str) -> None:
    both_ways()
    assert chosen({"WCODEC_TABLE_LOOKUP": name}).startswith(f"{name} (named by WCODEC_TABLE_LOOKUP")


def refused(env: dict[str, str], *arguments: str) -> str:
    """What Python says that fails in such an environment, with the default backend."""
    kept = {k: v for k, v in os.environ.items() if k != "WCODEC_BACKEND"}
    run = subprocess.run(
        [sys.executable, *arguments], env={**kept, **env}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode != 0
    return run.stderr


@pytest.mark.parametrize(
    "arguments", [["-m", "wcodec", "backends"], ["-c", "import wcodec; wcodec.get_backend()"]]
)
def test_a_wrong_name_is_refused(arguments: list[str]) -> None:
    """And not taken for a reason to use another backend."""
    said = refused({"WCODEC_TABLE_LOOKUP": "Gather"}, *arguments)
    assert "WCODEC_TABLE_LOOKUP is 'Gather': set it to gather or registers" in said


def test_gather_is_refused_where_there_is_none() -> None:
    skip_unless_it_runs("plain")
    assert "has no gather" in refused(
        {**VARIANTS["plain"], "WCODEC_TABLE_LOOKUP": "gather"}, "-m", "wcodec", "backends"
    )
    assert chosen(VARIANTS["plain"]).startswith("registers (the only one")


def test_it_is_measured_once_and_kept(tmp_path: Path) -> None:
    both_ways()
    env = {"NUMBA_CACHE_DIR": str(tmp_path), "WCODEC_TABLE_LOOKUP": ""}
    first = chosen(env)
    assert first.startswith(table_lookups.NAMES)
    (kept,) = (tmp_path / "wcodec").glob("table_lookups-*")
    kept.write_bytes(kept.read_bytes()[:-1])  # damaged: measured again
    assert chosen(env).startswith(table_lookups.NAMES)
    assert chosen(env) == chosen(env)


def test_a_backend_of_this_process_has_one() -> None:
    has = load_backend("numba").info()["table lookups"]
    assert has.split()[0] in table_lookups.NAMES
    assert host_has("avx2") or has.startswith("registers")


def test_both_are_timed() -> None:
    both_ways()
    name, ratio = table_lookups._measure().decode().split()
    assert name in table_lookups.NAMES
    assert float(ratio) >= 1


def test_what_was_measured_does_not_count_as_code(tmp_path: Path) -> None:
    both_ways()
    code = (
        "from wcodec.backends.numba import machine_code as m;"
        "m.kept('table_lookups', lambda: b'gather 1.00');"
        "assert m.kept('table_lookups', bytes) == b'gather 1.00';"
        "print(m.cache_state().n_functions)"
    )
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "0"
