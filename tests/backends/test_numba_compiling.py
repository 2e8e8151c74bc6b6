"""How the numba backend's code is compiled, kept on disk and loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llvmlite import binding as llvm
from paths import TESTS
from sampling import exhaustive

import wcodec
from wcodec.backends import load_backend
from wcodec.backends.code_cache import CodeCache, cache_folder
from wcodec.backends.numba import archive, ir, jobs, machine_code
from wcodec.backends.numba.archive import STAMP
from wcodec.backends.numba.kernels import (
    KERNELS,
    Bytes,
    Int,
    Packed,
    address_of,
    flat,
    jit,
    kernel,
)
from wcodec.backends.numba.machine_code import symbol_of
from wcodec.backends.protocol import SegmentPlan
from wcodec.reference.planes import BY_NAME
from wcodec.reference.segments import SegmentTable
from wcodec.reference.tables import ContextKind, TablePool
from wcodec.reference.tiles import Geometry

PACKAGE = Path(wcodec.__file__).parent
UMASK = os.umask(0)
os.umask(UMASK)

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
    assert archive.is_current()


def test_the_oldest_llvm_made_it() -> None:
    """Those of the versions of numba that are allowed: 0.62 has LLVM 20."""
    assert archive.head().llvm == 20
    root = TESTS.parent
    assert '"numba>=0.62"' in (root / "pyproject.toml").read_text()
    assert " numba==0.62.0\n" in (root / "Makefile").read_text()


NAMES = """
from wcodec.backends.numba import archive, ir
from wcodec.backends.numba.catalogue import everything
print(ir.TARGET, sorted(archive.targets()[ir.TARGET]) == sorted(one.name for one in everything()))
"""


@pytest.mark.parametrize("target", ir.TARGETS)
def test_all_is_there(tmp_path: Path, target: str) -> None:
    assert list(archive.targets()) == list(ir.TARGETS)
    features = ",".join(f"+{name}" for name in ["sse2", *ir.TARGETS[target].needs])
    printed, _ = call(tmp_path, NAMES, NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES=features)
    assert printed == [f"{target} True"]
    for name in archive.targets()[target]:
        module = llvm.parse_bitcode(archive.bitcode(target, name))
        assert any(f.name == symbol_of(name) for f in module.functions)
        assert "site-packages" not in str(module), "a path of the machine that made it"


def test_stamp_is_of_all_sources(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE / "backends" / "numba", tmp_path / "backends" / "numba")
    shutil.copytree(PACKAGE / "reference", tmp_path / "reference")
    made_of = archive.sources(tmp_path)
    assert {path.stem for path in made_of} >= {"segments", "kernels", "ir", "compiling", "planes"}
    assert archive.stamp_of(tmp_path) == STAMP
    seen = {STAMP}
    for path in made_of:
        with path.open("a") as f:
            f.write("#")
        seen.add(archive.stamp_of(tmp_path))
    assert len(seen) == 1 + len(made_of)
    left_out = {p.stem for p in (PACKAGE / "backends" / "numba").glob("*.py")} - {
        p.stem for p in made_of
    }
    assert left_out == {
        "__init__",
        "archive",
        "backend",
        "catalogue",
        "choices",
        "coding",
        "cpu",
        "jobs",
        "large_outputs",
        "table_lookups",
        "machine_code",
        "scratch",
        "threads",
    }


def test_numba_is_not_needed(tmp_path: Path) -> None:
    """An empty cache, and then a full one."""
    without = "import sys; sys.modules['numba'] = None\n"  # its import fails
    compiled, _ = call(tmp_path, without + CALL)
    assert "common_decoding.decode_range" in compiled or ir.VARIANT == "plain"
    assert call(tmp_path)[0] == ["False"]


@pytest.mark.exhaustive
def test_numba_makes_the_same(tmp_path: Path) -> None:
    """What does not fit the sources is made anew from them."""
    code = """
import pathlib, runpy, sys
from wcodec.backends.numba import archive
archive._pieces = lambda: ({}, b"")
sys.argv[1:] = ["numba", "kernels/"]
runpy.run_module("conformance_sample", run_name="__main__")
assert "numba" in sys.modules
"""
    call(tmp_path, code, PYTHONPATH=str(TESTS))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"", "cannot be used"),
        (lambda data: data[:-9], "is damaged"),
        (lambda data: data.replace(b" 20\n", b" 99\n", 1), "is for llvmlite"),
    ],
)
def test_an_archive_of_no_use(tmp_path: Path, damage: Callable[[bytes], bytes], said: str) -> None:
    """It is said once; and without numba, why the backend cannot be used."""
    (tmp_path / "kernels.xz").write_bytes(damage(archive.PATH.read_bytes()))
    code = f"""
import pathlib, sys
sys.modules["numba"] = None
from wcodec.backends.numba import archive
archive.head.cache_clear()
archive.PATH = pathlib.Path({str(tmp_path / "kernels.xz")!r})
import wcodec
print(wcodec.available_backends()["numba"])
"""
    printed, lines = call(tmp_path, code)
    assert "without numba it cannot be made anew" in printed[0]
    assert sum(said in line for line in lines) <= 1


# ---- the cache -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "damage",
    [
        exhaustive(lambda d: b""),
        exhaustive(lambda d: d[:40]),
        exhaustive(lambda d: d[:-1]),
        lambda d: d[:-9] + bytes([d[-9] ^ 1]) + d[-8:],
    ],
)
def test_damaged_code_is_not_run(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    call(tmp_path)
    folder = tmp_path / "wcodec"
    # by time, and not the same each time; of CPUs with one way there is none
    measured = set(folder.glob("table_lookups-*"))
    for path in measured:
        path.write_bytes(damage(path.read_bytes()))
    paths = sorted(set(folder.iterdir()) - measured)
    whole = [path.read_bytes() for path in paths]
    for path, data in zip(paths, whole, strict=True):
        path.write_bytes(damage(data))
    compiled, said = call(tmp_path)
    assert len(compiled) == 1 + len(paths)
    (line,) = said
    assert line.startswith("WARNING machine code of the numba backend is damaged")
    assert [path.read_bytes() for path in paths] == whole


def test_code_of_another_user_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = CodeCache(tmp_path / "code", "code")
    cache.keep("a", "key", b"123")
    (path,) = cache.folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o666 & ~UMASK, "others may read it"
    assert cache.load("a", "key") == b"123"
    if os.geteuid() == 0:
        os.chown(path, 77, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 77)
    assert cache.load("a", "key") is None
    assert "another user" in caplog.messages[0]


def test_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert cache_folder("numba") == tmp_path / f"cache-{os.geteuid()}" / "wcodec" / "numba"


def test_a_fork_while_code_is_compiled(tmp_path: Path) -> None:
    """Children do not wait for a thread that they do not have."""
    code = """
import os, sys, threading, time
import numpy as np
import wcodec
from wcodec.backends.numba import machine_code

wcodec.set_backend("numba")
compiling, compiled = threading.Event(), machine_code._compiled
def slow(one):
    compiling.set()
    time.sleep(0.2)
    return compiled(one)
machine_code._compiled = slow
array = np.random.default_rng(0).standard_normal((99, 99)).astype(np.float32)
thread = threading.Thread(target=wcodec.encode, args=(array,))
thread.start()
compiling.wait()
child = os.fork()
if not child:
    machine_code._compiled = compiled
    assert wcodec.decode(wcodec.encode(array)).tobytes() == array.tobytes()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
thread.join()
"""
    assert call(tmp_path, code)[0] == ["7"]


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


def test_arrays_live_while_a_kernel_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel gets addresses of arrays, which do not keep them."""
    made = list[weakref.ref[Any]]()

    class Pool(TablePool):
        @property
        def map_kinds(self) -> Any:
            kinds = np.array([ContextKind.SCALE])
            made.append(weakref.ref(kinds))
            return kinds

    monkeypatch.setattr(jobs, "check_table", lambda *_: [kinds() is not None for kinds in made])
    segments, geometry = SegmentTable.zeros(1, 1), Geometry(1, 8, 1, 8, 1, 8)
    plan = SegmentPlan(BY_NAME["uint8"], geometry, segments, Pool())
    assert jobs.payload_nbytes(plan) == [True]


def test_what_kernels_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are checked: machine code would take an array for another one."""
    load_backend("numba")  # which says how IR is made

    @kernel
    def total(values: Bytes, factor: Int) -> Int:
        n = 0
        for i in range(values.size):
            n += values[i]
        return factor * n

    monkeypatch.delitem(KERNELS, total.name)
    monkeypatch.setattr(machine_code, "code_cache", lambda: CodeCache(tmp_path, ""))
    values = np.arange(10, dtype=np.uint8)
    assert total(values, -3) == -135
    assert total(values[:0], 1) == 0
    read_only = values[2:4]
    read_only.flags.writeable = False
    assert total(read_only, 1) == 5
    mapped = np.memmap(tmp_path / "mapped", np.uint8, "w+", shape=(4,))
    mapped[:] = 3
    assert total(mapped, 2) == 24
    assert total(Packed(values), 1) == 45
    assert total(flat(values[1:]), 1) == 45
    with pytest.raises(TypeError, match="3 words where 4 are due"):
        total([address_of(values)], 1)
    with pytest.raises(TypeError):
        total(Packed(values.astype(np.int64)), 1)
    for wrong in (values.astype(np.int64), values[::2], values.reshape(2, 5)):
        with pytest.raises(TypeError):
            total(wrong, 1)
    with pytest.raises(ValueError, match="argument"):
        total(values)
