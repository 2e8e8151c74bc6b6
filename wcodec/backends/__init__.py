"""The registry: which backends there are, which one is used. Importing it imports none of them."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final, NamedTuple

from wcodec.backends.protocol import Backend
from wcodec.errors import BackendMisconfigured, BackendUnavailable
from wcodec.processes import call_in_child, loading

__all__ = [
    "Backend",
    "available_backends",
    "backend_names",
    "get_backend",
    "load_backend",
    "set_backend",
    "use_backend",
]

GROUP: Final = "wcodec.backends"
_BUILT_IN: Final = {
    "cuda": "wcodec.backends.cuda.backend:CudaBackend",
    "reference": "wcodec.backends.reference:ReferenceBackend",
    "numba": "wcodec.backends.numba.backend:NumbaBackend",
}
_AUTO: Final = ("cuda", "numba", "reference")  #: what "auto" tries, fastest first

_log = logging.getLogger("wcodec")
_loaded: dict[tuple[str, int | None], Backend] = {}
_default: _Choice | None = None
_scoped: ContextVar[_Choice | None] = ContextVar("wcodec_backend", default=None)


class _Choice(NamedTuple):
    """A backend, and how it was chosen."""

    backend: Backend
    name: str
    threads: int | None


def backend_names() -> list[str]:
    """Names of all backends, built in or of the entry point group ``wcodec.backends``,
    usable or not.
    """
    return list(_targets())


def _targets() -> dict[str, str]:
    with loading:  # it takes as long as half of the package
        from importlib.metadata import entry_points

    plugged = {e.name: e.value for e in entry_points(group=GROUP) if e.name not in _BUILT_IN}
    return {**_BUILT_IN, **plugged}


def load_backend(name: str, threads: int | None = None) -> Backend:
    """The backend of a name, or of a class given as ``package.module:Class``, or of a function that
    makes one, given ``threads``. The same object each time.

    Parameters
    ----------
    name
        ``"auto"``, a name out of `backend_names`, or ``package.module:Class``.
    threads
        CPU threads; ``None`` for the environment variable ``WCODEC_THREADS``, or one a core.

    Raises
    ------
    BackendUnavailable
        No such backend, or this machine cannot run it. ``"auto"`` never raises.
    """
    if threads is None and os.environ.get("WCODEC_THREADS"):
        threads = _threads_of(os.environ["WCODEC_THREADS"])
    if name == "auto":
        return _load_auto(threads)
    target = name if ":" in name else _BUILT_IN.get(name) or _targets().get(name)
    if target is None:
        raise BackendUnavailable(
            f"there is no backend {name!r}; there are {', '.join(backend_names())}"
        )
    with loading:
        if (target, threads) not in _loaded:
            _loaded[target, threads] = _construct(name, target, threads)
        return _loaded[target, threads]


def _threads_of(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise BackendMisconfigured(f"WCODEC_THREADS is {text!r}, not a whole number from 1")
    return int(text)


def _construct(name: str, target: str, threads: int | None) -> Backend:
    module, _, attribute = target.partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as e:  # whatever a plug-in does, it is then not usable
        hint = f"; pip install 'wcodec[{name}]'" if name in _BUILT_IN else ""
        raise BackendUnavailable(f"backend {name!r} cannot be imported ({e}){hint}") from e
    if isinstance(cls, type) and not issubclass(cls, Backend):
        raise BackendUnavailable(f"{target!r} is not a subclass of wcodec.backends.Backend")
    try:
        backend = cls(threads)
    except BackendUnavailable:
        raise
    except (Exception, SystemExit) as e:
        raise BackendUnavailable(
            f"backend {name!r} cannot be made ({type(e).__name__}: {e})"
        ) from e
    if not isinstance(backend, Backend):
        raise BackendUnavailable(f"{target!r} makes no wcodec.backends.Backend")
    return backend


def _load_auto(threads: int | None) -> Backend:
    for name in _AUTO:
        try:
            backend = load_backend(name, threads)
        except BackendMisconfigured:
            raise
        except BackendUnavailable as e:
            _log.info("auto: not %s: %s", name, e)
        else:
            _log.info("auto: backend %s", name)
            return backend
    raise AssertionError("the reference backend is always usable")


def available_backends() -> dict[str, str]:
    """All backends by name: an empty text if usable here, otherwise why not."""
    reasons = {}
    for name in backend_names():
        try:
            load_backend(name)
            reasons[name] = ""
        except BackendUnavailable as e:
            reasons[name] = str(e)
    return reasons


def set_backend(name: str, threads: int | None = None) -> Backend:
    """Choose the backend of this process, strictly: if it is not usable here, this fails, now.

    Raises
    ------
    BackendUnavailable
    """
    global _default
    _default = _Choice(load_backend(name, threads), name, threads)
    return _default.backend


def get_backend() -> Backend:
    """The backend in use: of the innermost `use_backend`, or of `set_backend`, or ``"auto"``."""
    choice = _scoped.get() or _default
    if choice is None:
        return set_backend(os.environ.get("WCODEC_BACKEND", "auto"))
    if choice.backend not in _left_behind:
        return choice.backend
    return (set_backend if choice is _default else load_backend)(choice.name, choice.threads)


@contextlib.contextmanager
def use_backend(name: str, threads: int | None = None) -> Iterator[Backend]:
    """`set_backend` for the length of a ``with`` block, in this thread or task alone."""
    backend = load_backend(name, threads)
    token = _scoped.set(_Choice(backend, name, threads))
    try:
        yield backend
    finally:
        _scoped.reset(token)


# ---- processes -----------------------------------------------------------------------------------
#: objects that this process cannot use, for it was forked after they were made
_left_behind: set[Backend] = set()


def _leave_behind() -> None:
    """In a child: a backend that does not survive is loaded anew, or says that it can't be."""
    for key, backend in list(_loaded.items()):
        if not backend.survives_fork:
            _left_behind.add(backend)
            del _loaded[key]


call_in_child(_leave_behind)
