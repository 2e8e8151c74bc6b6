"""Forks, the end of the interpreter, limits of threads, and what is sent to other processes."""

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from sampling import exhaustive

import wcodec
import wcodec.torch
from wcodec.codec.pipelining import WriteBehind, map_ahead
from wcodec.errors import DecodeError
from wcodec.files.checkpoint import decode_file
from wcodec.processes import Lock, Task, Workers, cached_property, loading

RNG = np.random.default_rng(19)
#: of three megabytes, for more than one thread, and of few bytes
ARRAYS = {
    "large": RNG.standard_normal((1536, 1024)).astype(ml_dtypes.bfloat16),
    "small": RNG.standard_normal((64, 64)).astype("f4"),
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    wcodec.save_file(ARRAYS, "x.wcodec")
    return tmp_path / "x.wcodec"


def forked(work: Callable[[], object]) -> int:
    """A forked child that does some work, and ends with 0 or, after an error, 1."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as e:
            print(repr(e), file=sys.stderr, flush=True)
        os._exit(1)
    return child


def in_child(work: Callable[[], object], seconds: float = 60) -> int:
    """Exit status of a forked child; one that hangs is killed."""
    child = forked(work)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


def right(tensors: dict[str, Any]) -> None:
    """Whether these are `ARRAYS`."""
    assert tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert tensors[name].tobytes() == array.tobytes(), name


# ---- locks, tasks, threads -----------------------------------------------------------------------
def test_a_lock_that_another_thread_holds_is_free_in_a_child() -> None:
    lock, held, done = Lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        assert in_child(lambda: lock.__enter__()) == 0
    finally:
        done.set()
        thread.join()


def test_a_lock_that_the_forking_thread_holds_stays_held() -> None:
    lock = Lock()

    def work() -> None:
        lock.release()  # raises where it is not held
        got = []
        thread = threading.Thread(target=lambda: got.append(lock.acquire(timeout=5)))
        thread.start()
        thread.join()
        assert got == [True]

    with lock:
        assert in_child(work) == 0


def test_a_fork_waits_for_what_is_loaded() -> None:
    begun, loaded = threading.Event(), list[int]()

    def load() -> None:
        with loading:
            begun.set()
            time.sleep(0.3)
            loaded.append(1)

    thread = threading.Thread(target=load)
    thread.start()
    begun.wait()
    assert in_child(lambda: os._exit(0 if loaded else 7)) == 0
    thread.join()


def test_a_child_does_what_its_parents_threads_had_begun() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(parent: int) -> int:
        if os.getpid() == parent:
            begun.set()
            go_on.wait()
        return 5

    with Workers(1, "test") as workers:
        task = workers.begin(slow, os.getpid())
        begun.wait()
        assert in_child(lambda: os._exit(0 if task.result() == 5 else 7)) == 0
        assert in_child(lambda: os._exit(0 if workers.begin(int).result() == 0 else 7)) == 0
        go_on.set()
        assert task.result() == 5


def test_who_wants_a_result_does_the_work_that_no_thread_has_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    workers, where = Workers(4, "test"), list[str]()
    task = workers.begin(lambda: where.append(threading.current_thread().name))
    assert where == []
    task.result()
    task.result()
    assert where == ["MainThread"]
    assert workers.submit(lambda: 3).result(timeout=0) == 3
    with pytest.raises(ZeroDivisionError):
        workers.submit(lambda: 1 // 0).result(timeout=0)
    assert list(map_ahead(str, range(5), 3)) == list("01234")
    workers.close()


def test_a_task_is_settled_or_done_but_not_both() -> None:
    calls = list[int]()
    task = Task(calls.append, 1)
    assert not task.settle()
    task.run()
    assert calls == []
    task = Task(calls.append, 2)
    task.run()
    assert task.settle()
    assert calls == [2]


def test_results_come_in_order_and_errors_where_they_belong() -> None:
    def work(i: int) -> int:
        time.sleep(0.002 * (5 - i % 5))
        if i == 7:
            raise KeyError(i)
        return i

    with pytest.raises(KeyError):
        list(map_ahead(work, range(20), 3, 2))
    assert list(map_ahead(work, range(7), 3, 2)) == list(range(7))


def test_what_is_written_behind_stays_in_order() -> None:
    for threads in (1, None):
        written = list[bytes]()

        class Slow:
            def write(self, data: bytes, to: list[bytes] = written) -> int:
                time.sleep(0.001)
                to.append(data)
                return len(data)

        with WriteBehind(Slow(), threads) as out:  # type: ignore[arg-type]
            for i in range(30):
                out.write(b"%d" % i)
        assert written == [b"%d" % i for i in range(30)]


def test_a_cached_property_is_computed_once() -> None:
    calls = list[int]()

    class Thing:
        @cached_property
        def value(self) -> int:
            calls.append(1)
            return 5

    thing = Thing()
    assert (thing.value, thing.value, len(calls)) == (5, 5, 1)
    assert isinstance(Thing.value, cached_property)


# ---- forks -------------------------------------------------------------------------------------
FIRST_USE = """
import os, signal, sys, threading, time
import numpy as np
import wcodec
with wcodec.use_backend("reference"):
    data = wcodec.encode(np.arange(1 << 14, dtype=np.float32))
if sys.argv[1] == "kernels":
    wcodec.set_backend("numba")
thread = threading.Thread(target=wcodec.decode, args=(data,))
thread.start()
time.sleep(float(sys.argv[2]))
child = os.fork()
if child == 0:
    signal.alarm(60)
    wcodec.decode(data)
    os._exit(0)
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("what", ["backend", "kernels"])
@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.1, 0.2])
def test_a_child_of_a_process_that_uses_wcodec_for_the_first_time(
    what: str, seconds: float
) -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_USE, what, str(seconds)], timeout=120)
    assert done.returncode == 0


@pytest.mark.parametrize("as_object", [exhaustive(False), True])
def test_children_that_are_forked_while_threads_read_and_write(file: Path, as_object: bool) -> None:
    stop = threading.Event()

    def busy(number: int) -> None:
        while not stop.is_set():
            right(wcodec.load_file(file))
            wcodec.save_file(ARRAYS, f"own-{number}.wcodec")

    threads = [threading.Thread(target=busy, args=(i,)) for i in range(3)]
    stream = file.open("rb")
    with wcodec.open(stream if as_object else file) as f:
        for thread in threads:
            thread.start()
        try:
            for i in range(8):
                at = f"child-{i}.wcodec"

                def work(at: str = at) -> None:
                    right({name: f.get_tensor(name) for name in list(f.keys())})
                    wcodec.save_file(ARRAYS, at)
                    right(wcodec.load_file(at))

                assert in_child(work) == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    stream.close()


@pytest.mark.parametrize("wrapped", ["buffered", "raw", "temporary"])
def test_parent_and_children_share_a_file_object(file: Path, wrapped: str) -> None:
    import tempfile

    data = file.read_bytes()
    with tempfile.NamedTemporaryFile() as temporary:
        temporary.write(data)  # not flushed
        stream: Any = {
            "buffered": lambda: file.open("rb"),
            "raw": lambda: file.open("rb", buffering=0),
            "temporary": lambda: temporary,
        }[wrapped]()
        with wcodec.open(stream) as f:

            def work() -> None:
                for _ in range(20):
                    right({name: f.get_tensor(name) for name in list(f.keys())})

            children = [forked(work) for _ in range(4)]
            work()
            for child in children:
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        if wrapped != "temporary":
            stream.close()


def test_a_child_goes_on_with_what_its_parent_iterates(file: Path) -> None:
    with wcodec.torch.safe_open(file) as f:
        tensors = f._reader.iterate()
        first = next(tensors)
        time.sleep(0.2)  # the next one is being made, or made, by a thread

        def work() -> None:
            rest = dict([first, *tensors])
            assert rest.keys() == ARRAYS.keys()

        assert in_child(work) == 0
        assert len(list(tensors)) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_a_child_that_is_forked_while_a_file_is_written(file: Path, threads: int) -> None:
    """Whether it gives up or goes on, the file is its parent's."""
    decode_file(file, "want")
    children = list[int]()

    def progress(_: int) -> None:
        if len(children) < 2:
            child = os.fork()
            if child == 0:
                if not children:
                    raise SystemExit
                children.extend([0, 0])
            children.append(child)

    parent = os.getpid()
    try:
        decode_file(file, "out", wcodec.backends.load_backend("numba", threads), progress)
    except (SystemExit, RuntimeError):
        assert os.getpid() != parent
    finally:
        if os.getpid() != parent:
            os._exit(0)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert Path("out").read_bytes() == Path("want").read_bytes()
    assert sorted(os.listdir()) == ["out", "want", "x.wcodec"]


# ---- the end of the interpreter, and limits ------------------------------------------------------
AT_THE_END = """
import atexit, sys, threading, time
import ml_dtypes
import numpy as np
import wcodec
wcodec.set_backend("numba", 2)
a = np.arange(1 << 21, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(2048, 1024)
wcodec.save_file({"a": a}, "before.wcodec")
def work():
    if sys.argv[1] == "thread":
        time.sleep(0.3)
    wcodec.save_file({"a": a}, "last.wcodec")
    assert wcodec.load_file("last.wcodec")["a"].tobytes() == a.tobytes()
    print("done")
if sys.argv[1] == "thread":
    threading.Thread(target=work).start()
else:
    atexit.register(work)
"""


@pytest.mark.parametrize("how", ["thread", "atexit"])
def test_the_last_checkpoint_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END, how], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("done\n", "")
    assert Path("last.wcodec").read_bytes() == Path("before.wcodec").read_bytes()


STILL_OPEN = """
import threading, time
from wcodec.codec.pipelining import map_ahead
from wcodec.processes import Workers
def slow(i):
    time.sleep(0.2)
    return i
results = map_ahead(slow, range(50), 1, 1)
assert next(results) == 0
workers = Workers(1, "left")
task = workers.begin(slow, 1)
class Late:
    def __del__(self):
        try:
            task.result()
        except RuntimeError:
            pass
late = Late()
"""


def test_a_process_ends_whatever_is_still_open() -> None:
    subprocess.run([sys.executable, "-c", STILL_OPEN], check=True, timeout=60)


def test_what_a_call_raises_is_let_go_of() -> None:
    class Thing:
        pass

    def fail(_: int) -> None:
        thing = Thing()
        things.append(weakref.ref(thing))
        raise ZeroDivisionError

    things = list[weakref.ref[Thing]]()
    gc.disable()
    try:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                list(map_ahead(fail, range(1), 1))
        assert [thing() for thing in things] == [None] * 3
    finally:
        gc.enable()


THREADLESS = """
import sys, threading
started = []
def start(thread):
    started.append(thread.name)
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
from wcodec.cli import main
for args in (
    "decode x.wcodec -o x.safetensors",
    "encode x.safetensors -o y.wcodec",
    "encode --form hub x.safetensors -o hub.safetensors",
    "decode hub.safetensors -o z.safetensors",
    "repack --preset fast x.wcodec -o z.wcodec",
    "verify y.wcodec z.wcodec hub.safetensors",
    "info y.wcodec",
):
    assert main(["--backend", "numba", "--threads", sys.argv[1], *args.split()]) == 0, args
import wcodec.torch
with wcodec.use_backend("numba", int(sys.argv[1])), wcodec.torch.safe_open("x.wcodec") as f:
    assert len(list(f._reader.iterate())) == len(f.get_tensors()) == 2
assert bool(started) == (sys.argv[1] != "1"), started
"""


@pytest.mark.parametrize("threads", [1, 4])
def test_where_no_thread_can_be_started(file: Path, threads: int) -> None:
    """With one, none is tried either."""
    done = subprocess.run(
        [sys.executable, "-c", THREADLESS, str(threads)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    right(wcodec.load_file("y.wcodec"))
    right(wcodec.load_file("z.wcodec"))


# ---- sent to other processes ---------------------------------------------------------------------
def _read(f: Any) -> dict[str, Any]:
    """In another process."""
    found = {
        name: f.get_tensor(name) if hasattr(f, "get_tensor") else f[name] for name in list(f.keys())
    }
    return {n: t if isinstance(t, np.ndarray) else t.view(-1).tolist() for n, t in found.items()}


@pytest.mark.parametrize(
    "opened", [wcodec.open, wcodec.torch.safe_open, wcodec.torch.WCodecCheckpoint]
)
def test_an_open_file_goes_to_a_worker(
    file: Path, opened: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    f = opened("x.wcodec")
    want = _read(f)
    data = pickle.dumps(f)
    monkeypatch.chdir("/")
    again = pickle.loads(data)
    got = _read(again)
    for name in want:
        assert np.array_equal(np.asarray(want[name]), np.asarray(got[name])), name
    for each in (f, again):
        (each._reader if hasattr(each, "_reader") else each).close()


def test_an_open_file_goes_to_a_spawned_process(file: Path) -> None:
    with wcodec.open("x.wcodec") as f, multiprocessing.get_context("spawn").Pool(1) as pool:
        right(pool.apply(_read, (f,)))


def test_how_a_file_was_opened_goes_along(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wcodec.save_file({"small": ARRAYS["small"] + 1}, "delta.wcodec", base="x.wcodec")
    os.rename("x.wcodec", "other.wcodec")
    backend = wcodec.backends.load_backend("reference")
    with wcodec.File("delta.wcodec", backend, 1 << 20, base="other.wcodec") as f:
        data = pickle.dumps(f)
    monkeypatch.chdir("/")
    again = pickle.loads(data)
    assert again.decoder.backend is backend
    assert again.decoder.max_nbytes == 1 << 20
    assert np.array_equal(again.get_tensor("small"), ARRAYS["small"] + 1)
    again.close()


def test_what_cannot_be_sent(file: Path) -> None:
    text = "no path cannot be pickled: open it in the process"
    with file.open("rb") as stream, wcodec.open(stream) as f, pytest.raises(TypeError, match=text):
        pickle.dumps(f)
    with wcodec.open(file) as f:
        data = pickle.dumps(f)
    with pytest.raises(TypeError, match="a closed file cannot be pickled"):
        pickle.dumps(f)
    os.utime(file, (1, 1))
    pickle.loads(data).close()  # the same bytes, whatever its time
    wcodec.save_file({**ARRAYS, "small": ARRAYS["small"] + 1}, file)
    with pytest.raises(DecodeError, match=r"changed: in .*x.wcodec': this is not the file that"):
        pickle.loads(data)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(data)
