"""`import wcodec` brings in nothing that only backends or integrations need
(`benchmarks/cpu/bench_import.py` says how long it takes), and modules import one way.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import wcodec

HEAVY = ("numba", "llvmlite", "cupy", "torch", "tqdm", "onnx", "safetensors", "hypothesis")


def test_nothing_heavy_is_imported() -> None:
    script = f"import sys, wcodec; print([m for m in {HEAVY} if m in sys.modules])"
    for code in (script, script.replace("wcodec", "wcodec.cli", 1)):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout == "[]\n"


# ---- which way imports go ------------------------------------------------------------------------
#: Rooms, from the lowest floor up:
#: each imports what is on its own or below, at whatever time.
FLOORS = (
    ("errors",),
    ("reference",),
    ("planner",),
    ("backends",),
    ("codec",),
    ("files",),
    ("directories",),
    ("inspect", "conformance", "cuda"),
    ("torch",),
    ("transformers",),
    ("cli", "__main__"),
)
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
