"""Time that ``import wcodec``, and what is imported when it is first used, take beyond
``import numpy``: a process each, in turn, medians.

python benchmarks/cpu/bench_import.py [ROUNDS]

Modules are read as bytecode, as they are after pip has installed them. A backend's own imports are
in the last line: llvmlite, where it is installed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

#: what processes run, by what it is called; the first is what the others are compared with
LINES = {
    "import numpy": "import numpy",
    "import wcodec": "import numpy, wcodec",
    "and encode and decode": "import numpy, wcodec; wcodec.encode, wcodec.decode",
    "and all names": "import numpy; from wcodec import *",
    "a call, backend reference": (
        "import numpy, wcodec; wcodec.set_backend('reference'); wcodec.encode(numpy.zeros(9))"
    ),
    "a call, backend auto": "import numpy, wcodec; wcodec.encode(numpy.zeros(9))",
}


def seconds(code: str) -> float:
    """Of a process that runs a line of Python."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    return time.perf_counter() - start


def main(rounds: int = 15) -> None:
    """Print medians, in milliseconds."""
    for code in LINES.values():  # the first time reads from disk and writes bytecode
        seconds(code)
    times = [[1e3 * seconds(code) for code in LINES.values()] for _ in range(rounds)]
    print(f"{'':25}    all    beyond numpy, medians of {rounds} rounds")
    for i, name in enumerate(LINES):
        whole, beyond = (statistics.median(t[i] - less * t[0] for t in times) for less in (0, 1))
        print(f"{name:25} {whole:6.0f} ms" + (f" {beyond:6.0f} ms" if i else ""))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
