"""The other process of `wcodec.conformance.child`: makes a backend, and checks it."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
from pathlib import Path
from typing import Any, BinaryIO, Final

from wcodec.backends import load_backend
from wcodec.conformance.cases import load
from wcodec.conformance.runner import checks_of, run_one
from wcodec.errors import BackendUnavailable

_DIE_WITH_PARENT: Final = 1  #: PR_SET_PDEATHSIG of prctl(2)


def serve(requests: BinaryIO) -> None:
    """Answer requests, a line of JSON each, until there are no more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a backend prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends this process as well
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not on Linux
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)

    def answer(what: Any) -> None:
        answers.write(json.dumps(what).encode() + b"\n")
        answers.flush()

    first = json.loads(requests.readline())
    folder = Path(first["folder"]) if first["folder"] else None
    try:
        backend = load_backend(first["backend"], first["threads"])
        info = {str(k): str(v) for k, v in backend.info().items()}
    except BackendUnavailable as e:
        return answer({"error": str(e)})
    except Exception as e:
        return answer({"error": f"backend {first['backend']!r}: info() raised {e!r}"})
    plain, sweeps = checks_of(backend, load(folder))
    answer(
        {
            "name": backend.name or first["backend"],
            "info": info,
            "plain": [(c.id, c.rules, c.profile) for c in plain],
            "sweeps": [(c.id, c.rules, c.profile) for c in sweeps],
        }
    )
    checks = {c.id: c for c in (*plain, *sweeps)}
    for line in requests:
        request = json.loads(line)
        # for systems on which the parent may be gone, and nobody else ends a check that hangs
        faulthandler.dump_traceback_later(request["timeout"], exit=True, file=2)
        outcome = run_one(checks[request["id"]])
        faulthandler.cancel_dump_traceback_later()
        answer({"message": outcome.message})
    return None
