"""How the numba backend's code is compiled, kept on disk and loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import TESTS

from wcodec.backends.numba import catalogue, ir, machine_code
from wcodec.backends.numba.kernels import Bytes, Int, jit, kernel
from wcodec.backends.numba.machine_code import STAMP, stamp_of

HERE = Path(machine_code.__file__).parent

#: Encodes and decodes an array, and prints what had to be compiled, and whether numba was imported.
CALL = """
import logging, sys
import numpy as np
import wcodec
from wcodec.backends.numba import machine_code

logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stderr)
compiled = machine_code._compiled
machine_code._compiled = lambda one: (print(one.name), compiled(one))[1]
wcodec.set_backend("numba")
array = np.random.default_rng(0).standard_normal((200, 300)).astype(np.float32)
assert wcodec.decode(wcodec.encode(array)).tobytes() == array.tobytes()
print("numba" in sys.modules)
"""


def call(cache: Path, code: str = CALL, **env: str) -> tuple[list[str], list[str]]:
    """Lines that a process prints to its standard output and error."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines(), run.stderr.splitlines()


# ---- what the package has along ------------------------------------------------------------------
def test_it_fits_the_sources() -> None:
    """``make kernels`` writes it anew."""
    assert machine_code.is_current()


def test_all_is_there() -> None:
    wanted = {one.name for one in catalogue.everything()}
    for target, names in machine_code._archive()[0]["targets"].items():
        if ir.TARGETS[target][1:] == ir.TARGETS[ir.TARGET][1:]:
            assert set(names) == wanted
        assert set(names) >= {"segments.decode_range", "tables.fill_luts", "split_words_8"}
    assert list(machine_code._archive()[0]["targets"]) == list(ir.TARGETS)


def test_stamp_is_of_all_sources(tmp_path: Path) -> None:
    shutil.copytree(
        HERE,
        tmp_path / "numba",
        ignore=lambda _, names: [n for n in names if not n.endswith(".py")],
    )
    callers = {f"{name}.py" for name in machine_code._CALLERS}
    copies = sorted((tmp_path / "numba").glob("*.py"))
    assert {path.name for path in copies} >= callers | {"segments.py", "rans.py", "ir.py"}
    assert stamp_of(tmp_path / "numba") == STAMP
    seen = {STAMP}
    for path in copies:
        with path.open("a") as f:
            f.write("#")
        seen.add(stamp_of(tmp_path / "numba"))
    assert len(seen) == 1 + len(copies) - len(callers)


def test_numba_is_not_needed(tmp_path: Path) -> None:
    """An empty cache, and then a full one."""
    compiled, _ = call(tmp_path)
    assert "common_decoding.decode_range" in compiled or ir.VARIANT == "plain"
    assert compiled[-1] == "False"
    assert call(tmp_path) == (["False"], [])


@pytest.mark.exhaustive
def test_numba_makes_the_same(tmp_path: Path) -> None:
    """What does not fit the sources is made anew from them."""
    code = """
import pathlib, runpy, sys
from wcodec.backends.numba import machine_code
machine_code.ARCHIVE = pathlib.Path("there is none")
sys.argv[1:] = ["numba", "kernels/"]
runpy.run_module("conformance_sample", run_name="__main__")
"""
    call(tmp_path, code, PYTHONPATH=str(TESTS))


# ---- the cache -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "damage",
    [
        lambda d: b"",
        lambda d: d[:40],
        lambda d: d[:-1],
        lambda d: d[:-9] + bytes([d[-9] ^ 1]) + d[-8:],
    ],
)
def test_damaged_code_is_not_run(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    call(tmp_path)
    paths = sorted((tmp_path / "wcodec").iterdir())
    whole = [path.read_bytes() for path in paths]
    for path, data in zip(paths, whole, strict=True):
        path.write_bytes(damage(data))
    compiled, said = call(tmp_path)
    assert len(compiled) == 1 + len(paths)
    (line,) = said
    assert line.startswith("WARNING machine code of the numba backend is damaged")
    assert [path.read_bytes() for path in paths] == whole


def test_no_place_to_keep_it(tmp_path: Path) -> None:
    (tmp_path / "wcodec").write_bytes(b"a file where the folder would be")
    compiled, said = call(tmp_path)
    assert len(compiled) > 5
    assert len(said) == 1
    assert str(tmp_path / "wcodec") in said[0]


def test_code_of_another_cpu_is_not_run(tmp_path: Path) -> None:
    """Nor of a lesser one, which could be run."""
    call(tmp_path)
    n = len(list((tmp_path / "wcodec").iterdir()))
    lesser = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2"}
    compiled, _ = call(tmp_path, **lesser)
    assert len(compiled) > 5
    assert len(list((tmp_path / "wcodec").iterdir())) == n + len(compiled) - 1


def test_compiled_code_is_forbidden(tmp_path: Path) -> None:
    """``auto`` takes the reference, and the backend says why it cannot be used."""
    said, _ = call(
        tmp_path,
        "import wcodec; print(wcodec.get_backend().name); print(wcodec.available_backends())",
        NUMBA_DISABLE_JIT="1",
        CUDA_VISIBLE_DEVICES="",
        WCODEC_BACKEND="auto",
    )
    assert said[0] == "reference"
    assert "NUMBA_DISABLE_JIT is set" in said[1]


# ---- kernels -------------------------------------------------------------------------------------
def test_part_of_kernels_is_not_called_by_python() -> None:
    @jit
    def twice(x: Any) -> Any:
        return 2 * x

    with pytest.raises(TypeError, match="twice is a part of kernels"):
        twice(1)


def test_what_kernels_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are checked: machine code would take an array for another one."""

    @kernel
    def total(values: Bytes, factor: Int) -> Int:
        n = 0
        for i in range(values.size):
            n += values[i]
        return factor * n

    monkeypatch.setattr(machine_code, "code_cache", lambda: machine_code.CodeCache(tmp_path, ""))
    values = np.arange(10, dtype=np.uint8)
    assert total(values, -3) == -135
    assert total(values[:0], 1) == 0
    read_only = values[2:4]
    read_only.flags.writeable = False
    assert total(read_only, 1) == 5
    for wrong in (values.astype(np.int64), values[::2], values.reshape(2, 5)):
        with pytest.raises(TypeError):
            total(wrong, 1)
    with pytest.raises(ValueError, match="argument"):
        total(values)
