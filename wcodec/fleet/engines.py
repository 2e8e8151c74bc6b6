"""What has work done elsewhere, as executors of ``concurrent.futures``."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, Future
from inspect import signature
from typing import Any, Final

from wcodec.errors import EncodeError, MissingPackage

_ANSWER_S: Final = 10.0  #: for a cluster to take a connection
_ASSUMED_WORKERS: Final = 64  #: of an executor that does not say


class Engine:
    """An executor, made again when it breaks.

    Parameters
    ----------
    make
        Makes the executor.

    """

    def __init__(self, make: Callable[[], Executor]) -> None:
        self._make = make
        self._executor = make()
        self._futures = set[Future[Any]]()  #: that are not done

    @property
    def n_workers(self) -> int:
        """How many units can be worked on at once, about."""
        for name in ("n_workers", "_max_workers"):
            n = getattr(self._executor, name, None)
            if isinstance(n, int) and n > 0:
                return n
        return _ASSUMED_WORKERS

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Have a call made; by a new executor, if this one takes no more."""
        try:
            future = self._executor.submit(function, *args)
        except RuntimeError:  # a pool whose process has died, or that was shut down
            self._executor = self._make()
            future = self._executor.submit(function, *args)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def close(self) -> None:
        """Let go of the workers. What has not begun is not done any more."""
        for future in list(self._futures):
            future.cancel()
        shutdown = self._executor.shutdown
        known = signature(shutdown).parameters  # dask's does not know it
        shutdown(wait=True, **({"cancel_futures": True} if "cancel_futures" in known else {}))


def open_engine(ray: str | None = None, executor: str | None = None, n_cpus: int = 1) -> Engine:
    """An engine.

    Parameters
    ----------
    ray
        The address of a Ray cluster, ``"auto"`` for the one that runs here, or ``"local"`` to start
        one on this machine.
    executor
        In its place, ``"module:factory"``: a function without arguments that gives an executor of
        ``concurrent.futures``.
    n_cpus
        That a unit of work takes, of what Ray has.

    Raises
    ------
    MissingPackage
        Ray is not installed.
    EncodeError
        ``bad_option``: there is no such cluster, or no such factory.
    """
    if ray is not None:
        return Engine(lambda: RayExecutor(ray, n_cpus))
    module, _, name = (executor or "").partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise EncodeError(
            "bad_option", f"the executor {executor!r} is not there, as module:factory: {e}"
        ) from e

    def make() -> Executor:
        made: Executor = factory()
        if not callable(getattr(made, "submit", None)):
            raise EncodeError("bad_option", f"{executor!r} gives no executor but {made!r}")
        return made

    return Engine(make)


class RayExecutor(Executor):
    """Tasks of Ray as futures. A task that fails is not tried again by Ray.

    Parameters
    ----------
    address, n_cpus
        As of `open_engine`.
    """

    def __init__(self, address: str, n_cpus: int) -> None:
        if _is_on_loopback(address):  # else Ray would ask for it by another name of this machine
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        try:
            import ray
        except ImportError:
            raise MissingPackage("--ray needs Ray: pip install 'wcodec[ray]'") from None
        self._ray: Any = ray
        self._n_cpus, self._refs = n_cpus, dict[Future[Any], Any]()
        self._began = not ray.is_initialized()
        if self._began:
            # it would tell on standard output of workers that died, which are replaced
            self._ray._private.worker._worker_logs_enabled = False
            how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
            try:
                if address == "local":
                    ray.init("local", include_dashboard=False, **how)
                else:
                    _check_answers(address)
                    ray.init(address, **how)
            except (OSError, RuntimeError, ValueError) as e:
                text = " ".join(str(e).split())
                raise EncodeError(
                    "bad_option",
                    f"no Ray cluster answers at {address!r}: `ray start --head` starts one, "
                    f"--ray local one for this run ({text})",
                ) from e

    @property
    def n_workers(self) -> int:
        """CPUs of the cluster now, by what a unit takes."""
        cpus = self._ray.cluster_resources().get("CPU", 1)
        return max(1, int(cpus) // self._n_cpus)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As of any executor."""
        how = {"num_cpus": self._n_cpus, "max_retries": 0, "scheduling_strategy": "SPREAD"}
        ref = self._ray.remote(**how)(_call).remote(fn, args, kwargs)
        future: Future[Any] = ref.future()
        self._refs[future] = ref
        future.add_done_callback(lambda f: self._refs.pop(f, None))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As of any executor."""
        for ref in list(self._refs.values()) if cancel_futures else []:
            self._ray.cancel(ref, force=True)
        if self._began:
            self._ray.shutdown()


def _is_on_loopback(address: str) -> bool:
    """Whether a cluster is one of this machine alone, whose nodes go by a loopback address."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "")
        if not address:
            folder = os.environ.get("RAY_TMPDIR", tempfile.gettempdir())
            with contextlib.suppress(OSError), open(f"{folder}/ray/ray_current_cluster") as f:
                address = f.read().strip()
    return address.startswith(("127.", "localhost:", "[::1]:"))


def _check_answers(address: str) -> None:
    """See that something listens at the address of a cluster: Ray waits for minutes for nothing.

    Raises
    ------
    OSError
    """
    import socket

    host, sep, port = address.removeprefix("ray://").rpartition(":")
    if sep and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()


def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


def machine_name() -> str:
    """What the machine is called that this runs on; of a node of Ray also which one."""
    import socket
    import sys

    name = socket.gethostname()
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        name += f"/{ray.get_runtime_context().get_node_id()[:8]}"
    return name
