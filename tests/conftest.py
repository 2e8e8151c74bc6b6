"""Fixtures for all tests: every backend under test is named here, and has to be usable."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from wcodec.backends import Backend, load_backend, use_backend

if TYPE_CHECKING:
    from fault_cases import Room

BACKENDS = ("reference", "numba")
collect_ignore = ["engines"]  # make test-engines, in an environment of their own

# Tests that interrupt a process start one that can be:
# in the background of a script, none that is started can.
if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    and threading.current_thread() is threading.main_thread()
):
    signal.signal(signal.SIGINT, signal.default_int_handler)

# PyTorch reads it when it is imported: its threads would wait, spinning,
# for those of the tests that run beside each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# CI runs the same examples each time; elsewhere new ones are tried.
# Compiling makes single examples slow: no deadline.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend in turn, also in use by `wcodec.encode` and the like.
    One that is not usable is a failure.
    """
    with use_backend(request.param) as b:
        yield b


@pytest.fixture(scope="session")
def backends() -> list[Backend]:
    """All backends under test; the reference comes first."""
    return [load_backend(name) for name in BACKENDS]


@pytest.fixture(scope="session")
def shared_room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """What fault tests work on. Importing and warming up is done once."""
    from fault_cases import prepared

    with prepared(tmp_path_factory.mktemp("faults")) as room:
        yield room


@pytest.fixture
def room(shared_room: Room) -> Room:
    """The inputs of fault tests, and nothing else."""
    shared_room.clear()
    return shared_room
