"""One target under atheris: ``python guided.py TARGET FOLDER [--seconds=N] OPTIONS``, with options
of libFuzzer. See `campaign`, which runs it.
"""

from __future__ import annotations

import shlex
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from targets import Target

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("tools/fuzz", "", "spec", "tests", "tests/backends")]

import atheris  # noqa: E402

MAX_LEN: Final = 8192  #: bytes of an input
#: how targets begin whose coverage is that of machine code
NATIVE: Final = ("segments_numba", "segments_cuda", "linear")


def load(name: str) -> Target:
    """A target, and all that its corpus has it load."""
    from targets import TARGETS, corpus_of

    for path in sorted(corpus_of(name).iterdir()):
        with suppress(Exception):  # libFuzzer will meet it again, and keep it
            TARGETS[name].check(path.read_bytes())
    return TARGETS[name]


def main() -> None:
    """Fuzz until libFuzzer ends the process."""
    name, folder, options = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    end = None
    if options[0].startswith("--seconds="):
        end = time.monotonic() + int(options.pop(0).partition("=")[2])
    warnings.simplefilter("error")  # what overflows in NumPy, for one
    if name.startswith(NATIVE):
        import native_coverage

        native_coverage.count_kernels(folder / "machine-code")
        native_coverage.count_emulated()
        target = load(name)

        def check(data: bytes) -> None:
            native_coverage.tell_libfuzzer(Path(atheris.__file__).parent)
            target.check(data)
    else:
        with atheris.instrument_imports(include=["wcodec"]):
            target = load(name)
        check = target.check

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        return target.mutate(data, max_size, seed, atheris.Mutate)

    if end is not None:
        options.insert(0, f"-max_total_time={max(1, round(end - time.monotonic()))}")
    # libFuzzer has a shell run this again to merge
    again = shlex.join([sys.executable, str(Path(__file__).resolve()), name, str(folder)])
    atheris.Setup([again, f"-max_len={MAX_LEN}", *options], check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
