"""Checks of a program that decodes, in any language."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from wcodec.conformance.cases import (
    PROFILES,
    Case,
    Check,
    Mismatch,
    Vectors,
    require,
    require_same_bytes,
    sha256,
)
from wcodec.conformance.child import how_ended
from wcodec.conformance.recipes import splitmix64

SWEPT: Final = ("base_bytes", "base_records")  #: files whose prefixes and flips a program gets
SAMPLE: Final = 32  #: prefixes, and flips, of each: a process apiece is slow
TIMEOUT_S: Final = 60


class Command:
    """A decoder program.

    Parameters
    ----------
    template
        Command line with ``{input}`` and ``{output}``: a file of the format, and where to write the
        restored stream, `source_header` and the decoded tensors one after another (R4.22).
        ``{base}`` is the file that the input holds differences from, nothing if it holds none.
        Without it, cases that have a base cannot be run.
    name
        What reports call it; by default the template.
    timeout
        Seconds that the program may take.
    profile
        What the program claims to decode, of `PROFILES` (chapter 17 of the spec). It may refuse
        files that are beyond it.

    Raises
    ------
    ValueError
        The template lacks ``{input}`` or ``{output}``, or there is no such program or profile.
    """

    def __init__(
        self,
        template: str,
        name: str = "",
        timeout: float | None = None,
        profile: str | None = None,
    ) -> None:
        if profile is not None and profile not in PROFILES:
            raise ValueError(f"there is no profile {profile!r}: {', '.join(PROFILES)}")
        self.profile = profile
        self.template, self.words = template, shlex.split(template)
        self.name, self.timeout = name or template, timeout or TIMEOUT_S
        if not any("{input}" in w for w in self.words) or not any(
            "{output}" in w for w in self.words
        ):
            raise ValueError(f"the command {template!r} lacks {{input}} or {{output}}")
        if shutil.which(self.words[0]) is None:
            raise ValueError(f"there is no program {self.words[0]!r}")
        self.takes_base = any("{base}" in w for w in self.words)

    def decode(self, data: bytes, base: Path | None = None) -> tuple[int, bytes | None]:
        """Run the program. Returns its exit status and what it wrote,
        ``None`` if there is no output file.
        """
        with tempfile.TemporaryDirectory() as folder:
            source, output = Path(folder) / "input.wcodec", Path(folder) / "restored"
            source.write_bytes(data)
            places = {"{input}": str(source), "{output}": str(output), "{base}": str(base or "")}
            line = [
                re.sub(r"\{(input|output|base)\}", lambda found: places[found[0]], w)
                for w in self.words
            ]
            try:
                done = subprocess.run(
                    line,
                    stdin=subprocess.DEVNULL,
                    # no pipes: a program that it has started would hold them open after its end
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=self.timeout,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise Mismatch("an end", f"none after {self.timeout:g} s") from None
            if done.returncode < 0:
                raise Mismatch("a regular exit", how_ended(done.returncode))
            return done.returncode, output.read_bytes() if output.is_file() else None


def _is_refused(status: int, output: bytes | None) -> bool:
    if status:
        require(output is None, "no output file where the status is not 0", "one")
    return status != 0


def _check_command(case: Case, command: Command, beyond: bool) -> None:
    status, output = command.decode(case.data, case.base_path)
    refused = _is_refused(status, output)
    if case.expect == "reject":
        require(refused, f"a nonzero status ({case.row['code']})", "status 0")
    elif not refused or (case.expect == "accept" and not beyond):
        require(not refused, "status 0", f"status {status}")
        require(output is not None, "an output file", "none")
        if sha256(output) != case.row["restored_sha256"]:
            require_same_bytes(output, case.restored, "the restored bytes")


def _check_command_prefix(case: Case, command: Command, n: int) -> None:
    require(
        _is_refused(*command.decode(case.data[:n])),
        f"{n} of {len(case.data)} bytes refused",
        "status 0",
    )


def _check_command_flip(case: Case, command: Command, bit: int) -> None:
    spoilt = bytearray(case.data)
    spoilt[bit // 8] ^= 1 << bit % 8
    status, output = command.decode(bytes(spoilt))
    if not _is_refused(status, output):
        require(
            sha256(output or b"") == case.row["restored_sha256"],
            f"a file refused whose bit {bit} was flipped",
            "other data",
        )


def _sample(most: int, seed: int) -> list[int]:
    return sorted(set((splitmix64(seed, SAMPLE) % np.uint64(most)).tolist()))


def command_checks(vectors: Vectors, command: Command) -> Iterator[Check]:
    """A check for each vector."""
    claimed = PROFILES[command.profile or "base"]
    for case in vectors.cases:
        beyond = case.profile is not None and case.profile not in claimed
        lacks_base = case.checkpoint is not None and not command.takes_base
        why_not = "the command has no {base}" if lacks_base and not command.profile else ""
        check = partial(_check_command, case, command, beyond)
        yield Check(case.id, case.rules, check, why_not, profile=case.profile)


def command_sweeps(vectors: Vectors, command: Command) -> Iterator[Check]:
    """Prefixes of files, and files with a flipped bit."""
    for seed, name in enumerate(SWEPT):
        case = vectors[f"accept/{name}"]
        for n in _sample(len(case.data), 2 * seed):
            yield Check(
                f"prefixes/{name}/{n}",
                ("R4.6", "R4.7"),
                partial(_check_command_prefix, case, command, n),
            )
        for bit in _sample(8 * len(case.data), 2 * seed + 1):
            yield Check(
                f"flips/{name}/{bit}", ("R11.2",), partial(_check_command_flip, case, command, bit)
            )
