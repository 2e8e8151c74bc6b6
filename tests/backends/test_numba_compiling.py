"""How the numba backend's code is compiled and kept."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wcodec.backends.numba import compiling
from wcodec.backends.numba.backend import _Announcement
from wcodec.backends.numba.compiling import STAMP, jit, kernel, stamp_of

HERE = Path(compiling.__file__).parent


def test_machine_code_is_of_all_sources(tmp_path: Path) -> None:
    """What was kept on disk is not used once any source has changed:
    its name has the stamp in it.
    """
    shutil.copytree(
        HERE,
        tmp_path / "numba",
        ignore=lambda _, names: [n for n in names if not n.endswith(".py")],
    )
    copies = sorted((tmp_path / "numba").glob("*.py"))
    assert {path.name for path in copies} >= {
        "segments.py",
        "rans.py",
        "split.py",
        "ir.py",
        "compiling.py",
    }
    assert stamp_of(tmp_path / "numba") == STAMP
    seen = {STAMP}
    for path in copies:
        with path.open("a") as f:
            f.write("#")
        seen.add(stamp_of(tmp_path / "numba"))
    assert len(seen) == 1 + len(copies)

    @kernel
    def double(x: Any) -> Any:
        return 2 * x

    assert STAMP in double.py_func.__qualname__


def test_only_our_kernels_are_announced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_Announcement, "said", False)
    listener = _Announcement()

    def compiled(module: str) -> list[str]:
        function = SimpleNamespace(py_func=SimpleNamespace(__module__=module))
        caplog.clear()
        with caplog.at_level(logging.INFO, "wcodec.compile"):
            listener.on_start(SimpleNamespace(data={"dispatcher": function}))
        return caplog.messages

    assert compiled("a_user.s_own") == compiled("wcodec_more.kernels") == []
    assert len(compiled("wcodec.backends.numba.segments")) == 1
    assert compiled("wcodec.backends.numba.rans") == [], "once"


def test_part_of_kernels_is_not_called_by_python() -> None:
    @jit
    def twice(x: Any) -> Any:
        return 2 * x

    @kernel
    def four_times(x: Any) -> Any:
        return twice(twice(x))

    for _ in range(2):
        with pytest.raises(TypeError, match="twice is a part of kernels"):
            twice(1)
        assert four_times(1) == 4
