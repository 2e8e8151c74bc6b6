"""Ways to do the same thing of which CPUs do different ones faster.

Each is timed once for each CPU, and the answer is kept with the machine code. An environment
variable can name one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from wcodec.backends.numba import machine_code
from wcodec.errors import BackendMisconfigured


def least(calls: Sequence[Callable[[], float]], rounds: int) -> tuple[float, float]:
    """The least seconds of each of two calls that return theirs, in turn, of so many rounds."""
    turns = [[call() for call in calls] for _ in range(rounds)]
    first, second = (min(taken) for taken in zip(*turns, strict=True))
    return first, second


class Choice(NamedTuple):
    """Which way is used, and why."""

    name: str
    why: str


class Ways(NamedTuple):
    """Ways to do something.

    Attributes
    ----------
    setting
        The environment variable that names one.
    names
        Two; the second one is there on every CPU.
    kept_as
        Name of the file that says which is the faster one.
    both
        Whether the code for this CPU has both.
    lacking
        What it has not, otherwise.
    """

    setting: str
    names: tuple[str, str]
    kept_as: str
    both: bool
    lacking: str

    def named(self) -> str:
        """The one that the environment names, or nothing.

        Raises
        ------
        BackendMisconfigured
            It names one that is not there.
        """
        name = os.environ.get(self.setting, "")
        if name and name not in self.names:
            due = f"set it to {' or '.join(self.names)}"
            raise BackendMisconfigured(f"{self.setting} is {name!r}: {due}")
        if name == self.names[0] and not self.both:
            due = f"code for this CPU has no {self.lacking}"
            raise BackendMisconfigured(f"{self.setting} is {name!r}: {due}")
        return name

    def choose(self, measure: Callable[[], tuple[float, float]]) -> Choice:
        """The one that the environment names, or the faster one; `measure` gives the seconds that
        each takes.

        Raises
        ------
        BackendMisconfigured
            See `named`.
        """
        if name := self.named():
            return Choice(name, f"named by {self.setting}")
        if not self.both:
            return Choice(self.names[1], "the only one for this CPU")

        def faster() -> bytes:
            first, second = measure()
            ratio = max(first, second) / min(first, second)
            return f"{self.names[second <= first]} {ratio:.2f}".encode()

        found = machine_code.kept(self.kept_as, faster)
        name, _, ratio = found.decode(errors="replace").partition(" ")
        if name not in self.names:  # of another version
            name, _, ratio = faster().decode().partition(" ")
        return Choice(
            name, f"measured {ratio} times as fast as {self.names[name == self.names[0]]}"
        )
