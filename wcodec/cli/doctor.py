"""`wcodec doctor`: what wcodec finds on this machine, whether each backend works here, and what to
do where something is wrong.
"""

from __future__ import annotations

import argparse
import glob
import logging
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Final

import ml_dtypes
import numpy as np

from wcodec.backends import Backend, load_backend
from wcodec.backends.numba.cpu import cpu_name
from wcodec.cli.common import BAD_INPUT, DONE, backend_of, fail, show, typed
from wcodec.cli.inspect import backend_rows
from wcodec.cli.self_test import self_test
from wcodec.errors import BackendUnavailable
from wcodec.inspect.report import size_text, table_text
from wcodec.reference.container import VERSION

_compile_log = logging.getLogger("wcodec.compile")
_REPORT_IT: Final = "use another backend (WCODEC_BACKEND), and report this with `doctor --json`"
_LIMIT: Final = "/sys/fs/cgroup/memory.max"  #: of a container


def doctor(args: argparse.Namespace) -> int:
    """`wcodec doctor`: 0 only if nothing is wrong."""
    report = machine(args)
    with _progress(args) as progress:
        report["self_test"] = self_test(_tested(args, report), progress)
    report["problems"] = problems(report)
    report["good"] = not report["problems"]
    show(args, report, as_text(report))
    for p in report["problems"]:
        fail(f"{p['what']}: {p['do']}")
    return DONE if report["good"] else BAD_INPUT


# ---- what is there -------------------------------------------------------------------------------
def machine(args: argparse.Namespace) -> dict[str, Any]:
    """All that is known without a test."""
    from wcodec import __version__

    used, why = None, ""
    try:
        used = backend_of(args)
    except BackendUnavailable as e:
        why = str(e)
    rows = backend_rows(args, used)
    infos = {row["name"]: row["info"] for row in rows}
    usable = len(os.sched_getaffinity(0))
    return {
        "wcodec": __version__,
        "format": ".".join(map(str, VERSION[:2])),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages(),
        "cpu": {
            "name": cpu_name(),
            "variant": infos.get("numba", {}).get("variant"),
            "usable": usable,
            "threads": usable if used is None else used.threads or usable,
        },
        "memory": memory(),
        "cache": compiled_code(infos.get("numba")),
        "gpu": gpu(rows),
        "backend": {"name": None if used is None else used.name, "reason": why},
        "backends": rows,
    }


def packages() -> dict[str, str | None]:
    """Versions of what matters to wcodec; ``None`` for what is not installed."""
    found: dict[str, str | None] = {"numpy": np.__version__, "ml_dtypes": ml_dtypes.__version__}
    for name in ("numba", "llvmlite"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def memory() -> dict[str, int | None]:
    """Bytes of memory: all, available, and the limit of the container; ``None`` if unknown."""
    available, limit = None, None
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) << 10
    except OSError:
        pass
    try:
        text = Path(_LIMIT).read_text().strip()
        limit = int(text) if text.isdecimal() else None
    except OSError:
        pass
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"total_nbytes": total, "available_nbytes": available, "limit_nbytes": limit}


def compiled_code(numba_info: dict[str, str] | None) -> dict[str, Any] | None:
    """The cache of the numba backend, if it is usable."""
    if not numba_info:
        return None
    from wcodec.backends.numba import machine_code

    state = machine_code.cache_state()
    return {**state._asdict(), "is_warm": state.is_warm, "setting": machine_code.SETTING}


def gpu(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether the system has an NVIDIA GPU, and whether the cuda backend can use it."""
    (cuda,) = (row for row in rows if row["name"] == "cuda")
    return {
        "found": os.environ.get("CUDA_VISIBLE_DEVICES") != ""
        and bool(glob.glob("/dev/nvidia[0-9]*")),
        **{key: cuda[key] for key in ("usable", "reason", "info")},
    }


def _tested(args: argparse.Namespace, report: dict[str, Any]) -> list[Backend]:
    """Usable backends, or the one that is named."""
    names = [row["name"] for row in report["backends"] if row["usable"]]
    if args.backend not in (None, "auto"):
        names = [name for name in names if name == args.backend]
    return [load_backend(name, args.threads) for name in names]


# ---- what is wrong -------------------------------------------------------------------------------
def problems(report: dict[str, Any]) -> list[dict[str, str]]:
    """What is wrong, and what to do about it, from all that is known."""
    return [{"what": what, "do": do} for what, do in _problems(report)]


def _problems(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    rows = {row["name"]: row for row in report["backends"]}
    if report["backend"]["name"] is None:
        yield (
            f"the backend that is asked for cannot be used ({report['backend']['reason']})",
            "do what it says, or name another one by --backend or WCODEC_BACKEND",
        )
    numba = rows["numba"]
    if (
        report["packages"]["llvmlite"] is not None
        and not numba["usable"]
        and numba["reason"] != report["backend"]["reason"]  # or it is said
    ):
        yield (
            f"llvmlite is installed, but the numba backend is not usable ({numba['reason']})",
            "do what it says, or install versions that fit: pip install --upgrade 'wcodec[numba]'",
        )
    if report["gpu"]["found"] and not report["gpu"]["usable"]:
        yield (
            f"there is a GPU, but its backend is not usable ({report['gpu']['reason']})",
            "install what it names, or hide the GPU by an empty CUDA_VISIBLE_DEVICES",
        )
    yield from _cache_problems(report["cache"])
    for backend in report["self_test"]["backends"]:
        wrong = [row for row in backend["dtypes"] if not row["same"]]
        for error in dict.fromkeys(row["error"] for row in wrong):
            of = ", ".join(row["name"] for row in wrong if row["error"] == error)
            yield f"backend {backend['name']} fails the self-test with {of} ({error})", _REPORT_IT


def _cache_problems(cache: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if cache is not None and not cache["is_writeable"]:
        yield (
            f"machine code cannot be kept in {typed(cache['folder'])}, so each process compiles "
            "it anew",
            f"set {cache['setting']} to a folder that can be written",
        )


# ---- text ----------------------------------------------------------------------------------------
def as_text(report: dict[str, Any]) -> Iterator[str]:
    """Lines of `wcodec doctor`."""
    yield (
        f"wcodec {report['wcodec']} (format {report['format']}), Python {report['python']}, "
        f"{report['platform']}"
    )
    there = (f"{k} {v or 'is not installed'}" for k, v in report["packages"].items())
    rows = [["packages", ", ".join(there)], ["CPU", _cpu_text(report["cpu"])]]
    rows += [["memory", _memory_text(report["memory"])], ["compiled", _cache_text(report["cache"])]]
    rows += [["GPU", _gpu_text(report["gpu"])]]
    for row in report["backends"]:
        state = "in use" if row["used"] else "usable" if row["usable"] else row["reason"]
        rows.append(["backend", f"{row['name']}: {state}"])
    yield from table_text(rows, left=2)
    yield ""
    yield from _test_text(report["self_test"])
    n = len(report["problems"])
    yield "nothing is wrong" if n == 0 else f"{n} problem{'s' * (n > 1)}"


def _cpu_text(cpu: dict[str, Any]) -> str:
    variant = "" if cpu["variant"] is None else f", code for {cpu['variant']}"
    return f"{cpu['name']}, {cpu['usable']} usable, {cpu['threads']} threads{variant}"


def _memory_text(memory: dict[str, int | None]) -> str:
    names = {"total_nbytes": "", "available_nbytes": " available", "limit_nbytes": " allowed"}
    return ", ".join(f"{size_text(memory[k] or 0)}{t}" for k, t in names.items() if memory[k])


def _cache_text(cache: dict[str, Any] | None) -> str:
    if cache is None:
        return "nothing: the numba backend is not usable"
    state = (
        f"warm ({cache['n_functions']} functions)"
        if cache["is_warm"]
        else "cold: the first calls compile; `wcodec warmup` does that ahead of time"
    )
    locked = "" if cache["is_writeable"] else ", cannot be written"
    return f"{typed(cache['folder'])}, {size_text(cache['nbytes'])}{locked}, {state}"


def _gpu_text(gpu: dict[str, Any]) -> str:
    if gpu["usable"]:
        return ", ".join(f"{k} {v}" for k, v in gpu["info"].items())
    return "found, but not usable" if gpu["found"] else "none was found"


def _test_text(test: dict[str, Any]) -> Iterator[str]:
    """A row for each dtype, and a pair of columns for each backend."""
    backends = test["backends"]
    if not backends:
        yield "self-test: no backend to test"
        return
    yield "self-test: each dtype to bytes and back; GB/s of decoded bytes (as a part of memcpy's)"
    head = ["dtype", *(f"{b['name']} {what}" for b in backends for what in ("encode", "decode"))]
    rows = [head]
    for each in zip(*(b["dtypes"] for b in backends), strict=True):
        cells = [_cell(row, what) for row in each for what in ("encode", "decode")]
        rows.append([each[0]["name"], *cells])
    yield from table_text(rows)
    for b in backends:
        n_same, n = sum(row["same"] for row in b["dtypes"]), len(b["dtypes"])
        sizes = [row["nbytes"] for row in b["dtypes"] if row["nbytes"]]
        yield (
            f"{b['name']}: {n_same} of {n} dtypes came back the same, matrices of "
            f"{size_text(int(median(sizes or [0])))}; {b['compile_s']:.1f} s for compiling"
        )
    yield f"{test['seconds']:.1f} s without compiling"


def _cell(row: dict[str, Any], what: str) -> str:
    if not row["same"]:
        return "WRONG"
    speed = row[f"{what}_gb_s"]
    return f"{speed:.3f} ({speed / row['memcpy_gb_s']:.3f})"


# ---- progress ------------------------------------------------------------------------------------
class _progress:  # noqa: N801 (a context, used as a function)
    """A line on a terminal that says what is tested, written over each time."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._shown = sys.stderr.isatty() and not args.verbose
        self._level = _compile_log.level

    def __enter__(self) -> Callable[[str], None]:
        if self._shown:  # the line says it
            _compile_log.setLevel(logging.WARNING)
        return self._show

    def __exit__(self, *_: object) -> None:
        _compile_log.setLevel(self._level)
        self._write("")

    def _show(self, text: str) -> None:
        self._write(f"self-test: {text}")

    def _write(self, text: str) -> None:
        if self._shown:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r{text[:width].ljust(width)}\r{text[:width]}")
            sys.stderr.flush()
