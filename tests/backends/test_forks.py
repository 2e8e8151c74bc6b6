"""Backends in a child of the process that has made them. CUDA does not work there."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from paths import PYTHONPATH

from wcodec.backends.cuda import cupy_runtime
from wcodec.backends.cuda.cupy_runtime import CupyRuntime
from wcodec.backends.reference import ReferenceBackend
from wcodec.errors import BackendUnavailable


class LikeCuda(ReferenceBackend):
    """What can be made and used in one process alone."""

    name = "cuda"
    survives_fork = False

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(threads)
        if os.environ["WCODEC_TEST_PARENT"] != str(os.getpid()):
            raise BackendUnavailable("not in a child")


SCRIPT = """
import os, sys
os.environ["WCODEC_TEST_PARENT"] = str(os.getpid())
import wcodec.backends as b
b._BUILT_IN["cuda"] = "test_forks:LikeCuda"
how, name = sys.argv[1:]
scope = b.use_backend(name) if how == "use" else None
used = scope.__enter__() if scope else b.set_backend(name)
assert used.name == "cuda"
if not os.fork():
    try:
        print(b.get_backend().name, b.get_backend() is b.get_backend(), flush=True)
    except b.BackendUnavailable as e:
        print(e, flush=True)
    os._exit(0)
os.wait()
assert b.get_backend() is used
"""


@pytest.mark.parametrize(("name", "due"), [("auto", "numba True"), ("cuda", "not in a child")])
@pytest.mark.parametrize("how", ["set", "use"])
def test_a_backend_that_does_not_survive(how: str, name: str, due: str) -> None:
    """With "auto" another one takes its place; one that was named is not available.
    The parent goes on with it.
    """
    env = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how, name],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, due), done.stderr


WHILE_IT_IS_LOADED = """
import os, threading, time
import numpy as np
import wcodec.backends as b
from wcodec.backends.numba.backend import NumbaBackend
loading, make = threading.Event(), NumbaBackend.__init__
def slow(self, threads=None):
    loading.set()
    time.sleep(0.3)
    make(self, threads)
NumbaBackend.__init__ = slow
thread = threading.Thread(target=b.load_backend, args=("numba",))
thread.start()
loading.wait()
child = os.fork()
if not child:
    import wcodec
    b.set_backend("numba")
    os._exit(7 if wcodec.decode(wcodec.encode(np.arange(9))).sum() == 36 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
thread.join()
"""


def test_a_fork_while_a_thread_loads_a_backend() -> None:
    """The child does not wait for a thread that it does not have."""
    done = subprocess.run(
        [sys.executable, "-c", WHILE_IT_IS_LOADED], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


def test_a_runtime_of_the_parent() -> None:
    runtime: Any = CupyRuntime.__new__(CupyRuntime)
    runtime._pid = os.getpid() + 1
    with pytest.raises(BackendUnavailable, match="forked from one that has used CUDA"):
        runtime.in_use()


def test_the_parent_has_used_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_runtime, "_user", os.getpid() + 1)
    with pytest.raises(BackendUnavailable, match="forked from one that has used CUDA"):
        cupy_runtime._ask_driver()


def test_another_library_of_the_parent_has_used_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the driver says that it is not initialised when it is to be."""
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(cuInit=lambda _: 3))
    with pytest.raises(BackendUnavailable, match="forked from one that has used CUDA"):
        cupy_runtime._ask_driver()
