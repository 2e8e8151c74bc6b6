"""A process with wcodec imported, from which children are forked that run the command and come to
harm: a call of the system fails, they are killed, files may not grow.

`Zygote` starts it and asks it for children. Importing takes a second, a child some milliseconds.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from cuda_emulator import build

HERE: Final = Path(__file__).parent
MOST: Final = 4096  #: calls whose names are kept, as in shim.c
SHORT: Final = -1  #: in place of an errno: a call does less than it was asked
KILL: Final = -2  #: the process is killed at that call
NAME_NBYTES: Final = 16


@dataclass(frozen=True)
class Harm:
    """What happens to a child.

    Attributes
    ----------
    at
        The call about files that fails, from 0; -1 for none.
    error
        Its errno, or `SHORT` or `KILL`.
    for_ever
        Whether all later ones fail too, as on a full disk.
    only
        Count calls of that name alone.
    kill_after_s
        When to kill the child.
    file_nbytes
        No file may grow beyond that.
    """

    at: int = -1
    error: int = 0
    for_ever: bool = False
    only: str = ""
    kill_after_s: float | None = None
    file_nbytes: int | None = None

    def __str__(self) -> str:
        names = {SHORT: "SHORT", KILL: "KILL"}
        error = names.get(self.error) or errno.errorcode.get(self.error, "")
        return f"{self.only or 'call'} {self.at}: {error}" if self.at >= 0 else repr(self)


@dataclass(frozen=True)
class Outcome:
    """What came of a child.

    Attributes
    ----------
    status
        Its exit status, negative for a signal.
    err
        What it said on stderr.
    calls
        Names of the calls that it made about files.
    """

    status: int
    err: str
    seconds: float
    calls: list[str] = field(default_factory=list)


class Zygote:
    """Use as a context.

    Parameters
    ----------
    below
        The directory, about whose files calls count; children work there.
    """

    def __init__(self, below: Path) -> None:
        self._below = below

    def __enter__(self) -> Zygote:
        shim = build.make(
            "shim.so",
            [HERE / "shim.c"],
            ["-x", "c", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
             str(HERE / "shim.c"), "-ldl"],
        )  # fmt: skip
        path = os.pathsep.join(p for p in sys.path if p)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self._below)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "LD_PRELOAD": str(shim),
                "PYTHONPATH": path,
                "WCODEC_BACKEND": "reference",
            },
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, *args: object, harm: Harm | None = None) -> Outcome:
        """Run the command in a child."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"args": list(map(str, args)), "harm": asdict(harm or Harm())}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))


# ---- in the process that is forked ---------------------------------------------------------------
class _Shim(ctypes.Structure):
    """As in shim.c."""

    _fields_ = (
        ("n_calls", ctypes.c_int),
        ("at", ctypes.c_int),
        ("error", ctypes.c_int),
        ("for_ever", ctypes.c_int),
        ("only", ctypes.c_char * NAME_NBYTES),
        ("below", ctypes.c_char * 1024),
        ("names", ctypes.c_char * NAME_NBYTES * MOST),
    )


def _serve(below: str) -> None:
    from wcodec import cli

    share = ctypes.CDLL(None).shim_share
    share.restype = ctypes.POINTER(_Shim)
    shim = share().contents
    os.chdir(below)
    _import_all(cli)
    for line in sys.stdin:
        request = json.loads(line)
        outcome = _child(cli, shim, below, request["args"], Harm(**request["harm"]))
        print(json.dumps(asdict(outcome)), flush=True)


def _import_all(cli: Any) -> None:
    """What the command imports when it needs it."""
    assert cli.main(["encode", "warm.safetensors", "-q", "--form", "hub", "-o", "warm"]) == 0
    assert cli.main(["decode", "warm", "-q", "-o", "warm.plain"]) == 0
    assert cli.main(["encode", "warm.safetensors", "-q"]) == 0
    assert cli.main(["repack", "warm.wcodec", "-q", "-o", "warm.repacked"]) == 0
    for path in Path().glob("warm*"):
        path.unlink()


def _child(cli: Any, shim: Any, below: str, args: list[str], harm: Harm) -> Outcome:
    """Fork a child, and wait for its end."""
    shim.n_calls, shim.at, shim.error, shim.for_ever = 0, harm.at, harm.error, harm.for_ever
    shim.only, shim.below = harm.only.encode(), b""
    reading, writing = os.pipe()
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        _run(cli, shim, below, args, harm, writing)
    os.close(writing)
    if harm.kill_after_s is not None:
        time.sleep(harm.kill_after_s)
        os.kill(pid, signal.SIGKILL)
    with open(reading, "rb") as f:
        err = f.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    names = [shim.names[i].value.decode() for i in range(min(shim.n_calls, MOST))]
    return Outcome(status, err, time.perf_counter() - start, names)


def _run(cli: Any, shim: Any, below: str, args: list[str], harm: Harm, writing: int) -> NoReturn:
    status = 70  # of a traceback
    try:
        os.dup2(writing, 2)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        sys.stdout, sys.stderr = (open(fd, "w", closefd=False) for fd in (1, 2))  # noqa: SIM115
        if harm.file_nbytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (harm.file_nbytes, harm.file_nbytes))
        shim.below = os.fsencode(below)
        status = cli.main(args)
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        shim.below = b""
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve(sys.argv[1])
