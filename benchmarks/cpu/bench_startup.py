"""The first minute of a user: ``python benchmarks/cpu/bench_startup.py [--json OUT]``.

With an empty cache of machine code: CPU seconds of the first call of each dtype, and seconds of the
command on a file of 100 MB, beside the reference's. With a full one: seconds from the start of a
process to a decoded array. All on one core if it is run under ``taskset``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from bench_files import machine, show_report

import wcodec

DTYPES = ("bfloat16", "float32", "int8")
#: Prints CPU seconds of the first encode and decode of each dtype.
FIRST = """
import sys, time
import ml_dtypes, numpy as np
import wcodec
start = time.process_time()
wcodec.set_backend("numba")
print(time.process_time() - start)
rng = np.random.default_rng(0)
for name in sys.argv[1:]:
    x = rng.standard_normal((1024, 1024)) * (20 if name == "int8" else 0.02)
    a = x.astype(getattr(ml_dtypes, name, name))
    start = time.process_time()
    back = wcodec.decode(wcodec.encode(a))
    print(time.process_time() - start)
    assert back.tobytes() == a.tobytes()
"""
DECODE = "import sys, wcodec; wcodec.decode(open(sys.argv[1], 'rb').read())"


def run(cache: Path, *args: str, backend: str = "numba") -> tuple[float, str]:
    """Seconds that a process takes from its start, and what it prints."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env |= {"NUMBA_CACHE_DIR": str(cache), "WCODEC_BACKEND": backend}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *args], env=env, check=True, capture_output=True, text=True
    )
    return time.perf_counter() - start, done.stdout


def first_calls(folder: Path, rounds: int) -> dict[str, float]:
    """CPU seconds with an empty cache, medians: of the backend itself, and of each dtype after
    those before it.
    """
    out = [
        [float(x) for x in run(folder / f"first-{i}", "-c", FIRST, *DTYPES)[1].split()]
        for i in range(rounds)
    ]
    names = ["backend", *DTYPES]
    return dict(zip(names, map(statistics.median, zip(*out, strict=True)), strict=True))


def second_process(folder: Path, rounds: int) -> dict[str, float]:
    """Seconds from the start of a process to a decoded array of 2 MB, and to NumPy alone."""
    path = folder / "a.wcodec"
    rng = np.random.default_rng(0)
    path.write_bytes(
        wcodec.encode((rng.standard_normal((1024, 1024)) * 0.02).astype(ml_dtypes.bfloat16))
    )
    run(folder / "warm", "-c", DECODE, str(path))
    pairs = [
        (
            run(folder / "warm", "-c", DECODE, str(path))[0],
            run(folder / "warm", "-c", "import numpy")[0],
        )
        for _ in range(rounds)
    ]
    decoded, alone = zip(*pairs, strict=True)
    return {"decoded": statistics.median(decoded), "import_numpy": statistics.median(alone)}


def large_file(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of the command on 100 MB of float32, with an empty cache each time."""
    source, rng = folder / "large.safetensors", np.random.default_rng(0)
    from safetensors.numpy import save_file

    save_file({"w": (rng.standard_normal((5000, 5000)) * 0.02).astype(np.float32)}, source)
    times: dict[str, dict[str, list[float]]] = {
        b: {"encode": [], "decode": []} for b in ("auto", "reference")
    }
    for i in range(rounds):
        for backend, of in times.items():
            target, back = folder / f"{backend}.wcodec", folder / f"{backend}.back"
            for what, args in (
                ("encode", (str(source), "-o", str(target))),
                ("decode", (str(target), "-o", str(back))),
            ):
                cache = folder / f"large-{backend}-{what}-{i}"
                of[what].append(run(cache, "-m", "wcodec", what, "-f", *args, backend=backend)[0])
    return {b: {k: statistics.median(v) for k, v in of.items()} for b, of in times.items()}


def main() -> int:
    """Print all, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="write the report here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report: dict[str, Any] = {
            "machine": machine(),
            "cores": len(os.sched_getaffinity(0)),
            "rounds": args.rounds,
            "first_call_cpu_s": first_calls(folder, args.rounds),
            "second_process_s": second_process(folder, args.rounds),
            "file_of_100_MB_s": large_file(folder, args.rounds),
        }
    show_report(report, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
