"""Time that ``import wcodec`` takes beyond ``import numpy``: a process each, in turn, medians.

python benchmarks/cpu/bench_import.py [ROUNDS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def seconds(code: str) -> float:
    """Of a process that runs a line of Python."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main(rounds: int = 15) -> None:
    """Print medians, in milliseconds."""
    lines = ("import numpy", "import wcodec")
    for line in lines:  # the first time reads from disk and writes bytecode
        seconds(line)
    pairs = [[1e3 * seconds(line) for line in lines] for _ in range(rounds)]
    for line, times in zip(lines, zip(*pairs, strict=True), strict=True):
        print(f"{line:15} {statistics.median(times):6.0f} ms")
    print(
        f"{'beyond numpy':15} {statistics.median(b - a for a, b in pairs):6.0f} ms, "
        f"of {rounds} rounds"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
