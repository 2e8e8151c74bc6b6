"""`import wcodec` brings in nothing, and what is used nothing that only backends or integrations
need (`benchmarks/cpu/bench_import.py` says how long that takes); modules import one way.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import wcodec

HEAVY = (
    "numba", "llvmlite", "cupy", "torch", "tqdm", "onnx", "safetensors", "hypothesis", "fsspec",
    "aiohttp", "s3fs", "ray",
)  # fmt: skip
#: of Python, and not needed to encode and decode an array: each takes milliseconds
LATER = (
    "argparse",
    "concurrent.futures",
    "hashlib",
    "importlib.metadata",
    "json",
    "pathlib",
    "tempfile",
)


def imported_by(code: str) -> set[str]:
    """Modules that a line of Python imports, in a process of its own, beyond NumPy's."""
    script = (
        "import sys, numpy\nbefore = set(sys.modules)\n"
        f"{code}\nprint(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_nothing_heavy_is_imported() -> None:
    every_name = f"import wcodec; {'; '.join(f'wcodec.{n}' for n in wcodec.__all__)}"
    for code in (every_name, "import wcodec.cli"):
        assert not imported_by(code) & set(HEAVY)
        assert "wcodec.codec.encoder" in imported_by(code), "or the test sees nothing"


def test_the_package_alone_is_imported() -> None:
    found = imported_by("import wcodec")
    assert {m for m in found if m.split(".")[0] == "wcodec"} == {"wcodec"}
    assert not found & {*HEAVY, *LATER, "ml_dtypes"}
    script = "import sys, wcodec; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_a_call_imports_what_it_needs() -> None:
    found = imported_by(
        "import wcodec; wcodec.set_backend('reference')\n"
        "assert wcodec.decode(wcodec.encode(numpy.arange(9.0))).tolist() == list(range(9))"
    )
    assert not found & {*HEAVY, *LATER}
    rooms = {m.split(".")[1] for m in found if m.startswith("wcodec.")}
    assert rooms == {"errors", "processes", "reference", "planner", "backends", "codec"}


# ---- names that are imported when they are used -------------------------------------------------
def test_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse(Path(wcodec.__file__).read_text())
    (block,) = (
        n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"
    )
    seen = {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    rooms = {name for name, module in seen.items() if module == "wcodec"}
    assert {n: m for n, m in seen.items() if n not in rooms} == {
        n: f"wcodec.{m}" for n, m in wcodec._MODULE_OF.items()
    }
    assert rooms == set(wcodec._ROOMS)
    assert sorted(seen.keys() - rooms) == wcodec.__all__


@pytest.mark.parametrize("name", wcodec.__all__)
def test_each_name_is_the_one_of_its_module(name: str) -> None:
    module = importlib.import_module(f"wcodec.{wcodec._MODULE_OF[name]}")
    assert getattr(wcodec, name) is getattr(module, name)
    assert pickle.loads(pickle.dumps(getattr(wcodec, name))) is getattr(module, name)
    assert name in dir(wcodec)


@pytest.mark.parametrize("room", wcodec._ROOMS)
def test_rooms_are_there(room: str) -> None:
    script = f"import sys, wcodec; print(wcodec.{room} is sys.modules['wcodec.{room}'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "True\n"
    assert room in dir(wcodec)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'wcodec' has no attribute 'encoder'"):
        _ = wcodec.encoder
    with pytest.raises(ImportError, match="cannot import name 'encoder'"):
        exec("from wcodec import encoder")


# ---- which way imports go ------------------------------------------------------------------------
#: Rooms, from the lowest floor up:
#: each imports what is on its own or below, at whatever time.
FLOORS = (
    ("errors", "processes"),
    ("reference",),
    ("planner",),
    ("backends",),
    ("codec",),
    ("files",),
    ("directories",),
    ("fleet",),
    ("inspect", "conformance", "cuda"),
    ("torch",),
    ("deltas",),
    ("sync",),
    ("transformers",),
    ("cli", "__main__"),
)
ROOT = Path(__file__).parents[1]
PACKAGE = Path(wcodec.__file__).parent
MODULES = {
    ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): p
    for p in PACKAGE.rglob("*.py")
}


def imports(module: str) -> set[str]:
    """Modules of the package that one imports, wherever in its code, but for its types alone."""
    found = set[str]()

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module} imports relative to itself"
                names = [f"{child.module}.{a.name}" for a in child.names]
                found.update(name if name in MODULES else str(child.module) for name in names)
            elif isinstance(child, ast.Import):
                found.update(a.name for a in child.names)
            walk(child)

    walk(ast.parse(MODULES[module].read_text()))
    return found & set(MODULES)


GRAPH = {module: imports(module) for module in MODULES}


def test_no_import_runs_upward() -> None:
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    rooms = {m: m.split(".")[1] for m in MODULES if m != "wcodec"}
    assert set(floor) == set(rooms.values()), "each has its floor"
    assert [
        (m, i) for m in rooms for i in GRAPH[m] if i in rooms and floor[rooms[i]] > floor[rooms[m]]
    ] == []
    assert [m for m in rooms if "wcodec" in GRAPH[m] and not m.startswith("wcodec.cli")] == [], (
        "the package is for users"
    )


def test_no_imports_in_a_circle() -> None:
    left = dict(GRAPH)
    while free := [m for m, needed in left.items() if not needed & set(left) - {m}]:
        for m in free:
            del left[m]
    assert not left, f"in a circle, or need one: {sorted(left)}"


def test_planted_imports_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GRAPH, "wcodec.reference.tiles", {"wcodec.codec.parts"})
    with pytest.raises(AssertionError):
        test_no_import_runs_upward()
    with pytest.raises(AssertionError, match="in a circle"):
        test_no_imports_in_a_circle()


def borrowed_names() -> list[tuple[str, str, str]]:
    """What benchmarks and tools import of the package: their file, a module, and a name."""
    found = []
    for path in sorted(p for room in ("benchmarks", "tools") for p in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "wcodec":
                name = str(path.relative_to(ROOT))
                found += [(name, node.module or "", a.name) for a in node.names]
    return found


def test_benchmarks_and_tools_import_what_is_there() -> None:
    """Few of them are run by tests."""
    missing, seen = [], 0
    for file, module, name in borrowed_names():
        try:
            there = hasattr(importlib.import_module(module), name)
        except ImportError as e:
            if not (e.name or "").startswith("wcodec"):
                continue  # of a library that is not here
            there = False
        seen += 1
        if not there and not module_exists(f"{module}.{name}"):
            missing.append(f"{file}: {module}.{name}")
    assert missing == []
    assert seen > 100


def module_exists(name: str) -> bool:
    """Whether there is a module of that name."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def test_the_command_starts_no_threads_of_linear_algebra() -> None:
    """They would turn in circles at the start. What the user has set stays."""
    code = (
        "import os, sys; before = dict(os.environ); import wcodec.cli;"
        "assert dict(os.environ) == before;"
        "print(len(os.listdir('/proc/self/task')))"
    )
    for setting in ({}, {"OPENBLAS_NUM_THREADS": "1"}):
        env = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
        done = subprocess.run(
            [sys.executable, "-c", code], env={**env, **setting}, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        assert done.stdout.strip() == "1"
