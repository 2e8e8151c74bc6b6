"""Every call about a file that a command makes fails once: then it succeeds all the same, or says
in one line which file and why, and leaves nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest
from fault_cases import CASES, LEFT, Room
from zygote import SHORT, Harm, Outcome

#: What a call may say, likely first. `SHORT` is no error: it has to be called again.
ERRORS: dict[str, tuple[int, ...]] = {
    "open": (errno.EACCES, errno.EMFILE, errno.EIO, errno.ESTALE, errno.EROFS, errno.EINTR),
    "read": (errno.EIO, errno.EINTR, SHORT),
    "pread": (errno.EIO, errno.EINTR, SHORT),
    "preadv": (errno.EIO, errno.EINTR),
    "write": (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EINTR, SHORT),
    "fsync": (errno.EIO, errno.ENOSPC, errno.EINTR, errno.EINVAL),
    "link": (errno.EIO, errno.EPERM, errno.EXDEV, errno.EMLINK),
    "rename": (errno.EIO, errno.ENOSPC, errno.EROFS),
    "symlink": (errno.EIO, errno.ENOSPC),
    "unlink": (errno.EIO, errno.EROFS),
    "ftruncate": (errno.EIO, errno.EINTR),
    "fallocate": (errno.ENOSPC, errno.EDQUOT, errno.ENOTSUP),
    "stat": (errno.EIO, errno.EACCES, errno.ESTALE),
    "lstat": (errno.EIO, errno.EACCES),
    "fstat": (errno.EIO, errno.ESTALE),
    "statvfs": (errno.EIO, errno.ENOSYS),
    "fchmod": (errno.EIO, errno.EPERM),
    "mmap": (errno.ENODEV, errno.ENOMEM),
    "close": (errno.EIO, errno.EDQUOT),
    "mkdir": (errno.EIO, errno.ENOSPC),
    "rmdir": (errno.EIO,),
}
STATE = "out/.wcodec-resume.json"


def test_calls_are_counted(room: Room) -> None:
    """The shim knows the calls that this Python makes."""
    for name, calls in room.calls.items():
        assert {"open", "write", "fsync", "fstat", "stat", "close", "unlink"} <= set(calls), name
        assert {"link", "rename"} & set(calls), name
        assert {"read", "pread", "preadv", "mmap"} & set(calls), name
        assert set(calls) <= ERRORS.keys(), name
        assert len(calls) > 30


def problem(room: Room, name: str, harm: Harm, done: Outcome) -> str | None:
    """What is wrong with the outcome of a call that failed; clears what is there."""
    found, due = room.output(), room.due[name]
    if done.status == 0:
        return None if found == due and not done.err else f"other bytes: {sorted(found)}"
    if done.status != 1 or done.err.count("\n") != 1 or not done.err.startswith("wcodec: error: "):
        return "no error in one line"
    if str(room.folder) not in done.err and not any(f"'{f}'" in done.err for f in room.inputs):
        return "an error without a file"
    if left := [path for path in found if LEFT.fullmatch(path)]:
        return f"left {left}"
    if CASES[name].is_folder:
        if STATE not in found and found not in ({}, due):
            return f"a directory that looks whole: {sorted(found)}"
        if any(found[path] != due.get(path) for path in found if path != STATE):
            return "a file that is not whole"
    elif found and (found != due or not {"link", "rename"} & set(done.calls[: harm.at])):
        return f"left {sorted(found)}"
    return None


def failures(room: Room, name: str, n_errors: int, only: Sequence[int] | None = None) -> list[str]:
    """Fail each call of a command once, or `only` some, with so many errors each; what goes
    wrong.
    """
    wrong = []
    for at, call in enumerate(room.calls[name]):
        if only is not None and at not in only:
            continue
        for error in ERRORS[call][:n_errors]:
            room.clear()
            harm = Harm(at, error)
            done = room.run_case(name, harm=harm)
            why = problem(room, name, harm, done)
            if why is None and room.output() not in ({}, room.due[name]):
                again = room.run_case(name)
                if again.status or room.output() != room.due[name]:
                    why = f"again: {again.err}"
            if why is not None:
                wrong.append(f"{call} {harm}: {why}: {done.err[-2000:]}")
    room.clear()
    return wrong


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_each_call_fails_once(room: Room, name: str) -> None:
    assert not failures(room, name, 1)


def test_a_directory_goes_on_where_a_disk_has_failed(room: Room) -> None:
    """Also when the file that it was at had its name already, and no note said so."""
    calls = room.calls["encode directory"]
    named = [at for at, call in enumerate(calls) if call == "link"]
    after = [at + i for at in named for i in range(1, 6)]
    assert {"unlink", "fsync", "close", "stat"} <= {calls[at] for at in after}
    assert not failures(room, "encode directory", 1, after)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CASES)
def test_each_call_fails_with_each_error(room: Room, name: str) -> None:
    assert not failures(room, name, 2 if CASES[name].is_folder else 99)


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_what_is_replaced_is_there_before_or_after(room: Room, name: str) -> None:
    room.clear()
    room.out.write_bytes(b"old")
    calls = room.run_case(name, "-f").calls
    wrong = []
    for at, call in enumerate(calls):
        if call in ("write", "fsync", "rename", "close", "open", "unlink", "fchmod", "ftruncate"):
            room.out.write_bytes(b"old")
            done = room.run_case(name, "-f", harm=Harm(at, ERRORS[call][0]))
            found, is_new = room.output(), "rename" in calls[:at] or done.status == 0
            if found != (room.due[name] if is_new else {"out": b"old"}):
                wrong.append(f"{call} {at}: {sorted(found)} {done}")
    room.clear()
    assert not wrong


def test_a_file_system_that_reports_no_size(room: Room, tmp_path: Path) -> None:
    """As mounts of object stores do. A shim that says so is in the issue; room the call fails."""
    at = room.calls["decode"].index("statvfs")
    for error in ERRORS["statvfs"]:
        assert room.run_case("decode", harm=Harm(at, error)).status == 0
        assert room.output() == room.due["decode"]
        room.clear()
