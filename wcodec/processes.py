"""What belongs to one process: its locks, its threads, and work that is given to them.

A child that was forked has one thread, the one that forked. A lock that another thread held stays
held there for ever, and what that thread was to do is never done. So all locks of wcodec are a
`Lock`, all threads are of `Workers`, and work for them is a `Task`: these are put right in a child.
`loading` is held while modules and kernels are loaded, and while the process forks.

Where no thread can be started, such as at a limit of processes or when the interpreter ends, who
wants the result of a task does the work.
"""

from __future__ import annotations

import logging  # noqa: F401 (it has a lock for forks: of these, the last registered is taken first)
import os
import sys
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")

_LONGEST_WAIT_S: Final = 300.0  #: for what is loaded, such as for all kernels to be compiled

_RLock: Final[Any] = type(threading.RLock())
_to_renew: Final = weakref.WeakSet["Renewed"]()
_in_child: Final = list[Callable[[], object]]()
_held: Final = list[Any]()  #: locks that are held while the process forks


class Renewed(Protocol):
    """What is put right in a forked child."""

    def renew(self) -> None:
        """Called in the child, right after the fork."""


def renew_in_child(thing: Renewed) -> None:
    """Have a thing renewed in each child that is forked while it is there."""
    _to_renew.add(thing)


def call_in_child(function: Callable[[], object]) -> None:
    """Have a function called in each child, right after it was forked."""
    _in_child.append(function)


class Lock(_RLock):  # type: ignore[misc]
    """A reentrant lock, to be used as a context. In a forked child it is free, unless the thread
    that forked holds it.

    Its methods are those of `threading.RLock`, in C: Ctrl-C comes before them or after.
    """

    __slots__ = ()

    def __init__(self) -> None:
        _to_renew.add(self)

    def renew(self) -> None:
        """In a child: forget a holder that is not there."""
        if self.acquire(blocking=False):
            self.release()
        else:
            self._at_fork_reinit()


#: Held while modules or kernels are loaded, and while the process forks: what is loaded by half in
#: another thread would stay so in the child.
loading: Final = Lock()


class Task(Generic[T]):
    """A call that is made once: by a thread, or by who wants its result before one has begun it."""

    __slots__ = ("__weakref__", "_begun", "_by", "_call", "_done", "_error", "_value")

    def __init__(self, function: Callable[..., T], *args: Any) -> None:
        self._call: tuple[Callable[..., T], tuple[Any, ...]] | None = (function, args)
        self._error: BaseException | None = None
        self.renew()
        _to_renew.add(self)

    def renew(self) -> None:
        """In a child: a call that another thread had begun is made again, if it is wanted."""
        self._begun, self._done, self._by = threading.Lock(), threading.Lock(), 0
        if self._call is not None:
            self._done.acquire()

    def run(self) -> None:
        """Make the call, unless that has begun."""
        if self._call is None or not self._begun.acquire(blocking=False):
            return
        self._by = threading.get_ident()
        function, args = self._call
        try:
            self._value = function(*args)
        except BaseException as e:
            self._error = e
        self._call = None  # last: a child may be forked at any moment
        self._done.release()
        del self  # the error holds this frame

    @property
    def done(self) -> bool:
        """Whether the call has been made."""
        return self._call is None

    def result(self) -> T:
        """What the call returns. Raises what it raises."""
        self.run()
        if not self._ends():
            raise RuntimeError("the interpreter ends, or the call waits for itself")
        if self._error is None:
            return self._value
        try:
            raise self._error
        finally:
            del self  # the error holds this frame

    def settle(self) -> bool:
        """Have the call not made, or wait for its end. Returns whether it was made."""
        if self._call is not None and self._begun.acquire(blocking=False):
            return False
        self._ends()
        return True

    def _ends(self) -> bool:
        """Wait for the end of the call, unless that cannot come: when the interpreter ends, threads
        stand still, and the garbage collector may ask in the thread that makes the call.
        """
        if self._call is not None and (sys.is_finalizing() or self._by == threading.get_ident()):
            return False
        with self._done:
            return True


class Workers:
    """Threads that make calls, each started when there is work for it. Use as a context, or
    `close` it.

    They do not keep the process alive: who needs a result waits for it.

    Parameters
    ----------
    n
        The most threads; of 0, who wants a result does the work.
    name
        What they are called.
    """

    def __init__(self, n: int, name: str) -> None:
        self.n, self._name, self._lock = n, name, Lock()
        self.renew()
        _to_renew.add(self)

    def renew(self) -> None:
        """In a child: there are no threads yet."""
        self._tasks, self._threads = SimpleQueue[Task[Any] | None](), list[threading.Thread]()

    def begin(self, function: Callable[..., T], *args: Any) -> Task[T]:
        """Have a call made by a thread, after those that were begun before."""
        task = Task(function, *args)
        self._give(task)
        return task

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """As `begin`, for who wants a `Future`; made at once where no thread can be started."""
        from concurrent.futures import Future  # who calls this has imported it

        future = Future[T]()
        task = Task(_fulfil, future, function, args)
        if not self._give(task):
            task.run()
        return future

    def _give(self, task: Task[Any]) -> bool:
        """Have a thread do it, if there is one; starts one, if there may be more."""
        if sys.is_finalizing():  # threads stand still from now on
            return False
        with self._lock:
            if len(self._threads) < self.n:
                name = f"{self._name}_{len(self._threads)}"
                thread = threading.Thread(target=_work, args=(self._tasks,), name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # by a limit, or at the end of the interpreter
                    pass
                else:
                    self._threads.append(thread)
            if self._threads:
                self._tasks.put(task)
            return bool(self._threads)

    def close(self) -> None:
        """End all threads, once they have done what they were given. New work starts new ones."""
        with self._lock:
            tasks, threads = self._tasks, self._threads
            self.renew()
        tasks.put(None)
        for thread in threads:
            if thread is not threading.current_thread() and not sys.is_finalizing():
                thread.join()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._tasks.put(None)


def _work(tasks: SimpleQueue[Task[Any] | None]) -> None:
    while (task := tasks.get()) is not None:
        task.run()
        del task  # which holds a result
    tasks.put(None)  # for the next one; Ctrl-C may have kept it from the list


def _fulfil(future: Future[T], function: Callable[..., T], args: tuple[Any, ...]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function(*args))
        except BaseException as e:
            future.set_exception(e)


class cached_property(Generic[T]):  # noqa: N801 (its name in functools)
    """As `functools.cached_property`, which before Python 3.12 holds a lock that all instances
    share. Two threads may compute a value at once; it is the same.
    """

    def __init__(self, function: Callable[[Any], T]) -> None:
        self._function, self.__doc__ = function, function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> cached_property[T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> cached_property[T] | T:
        if instance is None:
            return self
        value = instance.__dict__[self._name] = self._function(instance)
        return value


# ---- forks ---------------------------------------------------------------------------------------
def _before_fork() -> None:
    locks: list[Any] = [loading]
    for name, path in (
        ("numba.core.compiler_lock", "global_compiler_lock._lock"),
        ("llvmlite.binding.ffi", "lib._lock._lock"),
    ):
        lock: Any = sys.modules.get(name)
        for part in path.split("."):
            lock = getattr(lock, part, None)  # it may be called otherwise in a later version
        locks += [] if lock is None else [lock]
    for lock in locks:
        # whoever holds it may wait for a lock that another module has taken before forking
        if lock.acquire(timeout=_LONGEST_WAIT_S):
            _held.append(lock)


def _after_fork() -> None:
    held = _held.copy()
    _held.clear()  # before another thread that forks has one of them
    for lock in reversed(held):
        lock.release()


def _after_fork_in_child() -> None:
    _after_fork()
    for renewed in list(_to_renew):
        renewed.renew()
    for function in _in_child:
        function()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )
