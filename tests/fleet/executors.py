"""Executors for ``--executor``: processes that can be killed, and threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

#: a file in whose presence a worker kills itself, once
TRAP = "WCODEC_TEST_TRAP"


def processes() -> Executor:
    """Two processes."""
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


def threads() -> Executor:
    """Two threads of this process."""
    return ThreadPoolExecutor(2)


def nothing() -> Any:
    """No executor."""
    return object()


class _Trapped(ProcessPoolExecutor):
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return super().submit(_sprung, os.environ[TRAP], fn, args, kwargs)


def _sprung(trap: str, fn: Any, args: Any, kwargs: Any) -> Any:
    done = fn(*args, **kwargs)
    try:
        Path(trap).unlink()
    except FileNotFoundError:
        return done
    os.kill(os.getpid(), signal.SIGKILL)  # what it did is there, and nobody knows
    return None


def mortal_processes() -> Executor:
    """Two processes, of which one dies when its first piece of work is done."""
    return _Trapped(2, mp_context=multiprocessing.get_context("spawn"))


def dask() -> Executor:
    """The executor of a cluster of dask with two processes."""
    from distributed import Client, LocalCluster

    cluster = LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
    )
    executor: Executor = Client(cluster).get_executor()
    return executor
