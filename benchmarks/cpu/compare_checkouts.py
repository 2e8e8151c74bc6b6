"""Two checkouts of wcodec beside each other: whole files encoded, decoded and verified.

Each measurement is a process of its own, in turn; of three passes in it, the first one warms up.
Ratios of medians go to the JSON file. Pin it for figures of one core: ``taskset -c 1 python ...``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PASSES = """
import os, resource, sys, time
import wcodec
from wcodec.files import checkpoint
what, plain, coded, threads = sys.argv[1:]
wcodec.set_backend("numba", int(threads))
def options(function):
    return {"fsync": False} if "fsync" in (function.__kwdefaults__ or {}) else {}
def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
found = []
for _ in range(3):
    if os.path.exists("out"):
        os.unlink("out")
    start, before = time.perf_counter(), cpu()
    if what == "verify":
        checkpoint.verify_file(coded)
    elif what == "decode":
        checkpoint.decode_file(coded, "out", **options(checkpoint.decode_file))
    else:
        checkpoint.encode_file(plain, "out", **options(checkpoint.encode_file))
    found.append((time.perf_counter() - start, cpu() - before))
print(min(f[0] for f in found[1:]), min(f[1] for f in found[1:]))
"""


def measure(checkout: Path, what: str, plain: Path, coded: Path, threads: int) -> list[float]:
    """Seconds, and seconds of CPU time, of one process."""
    done = subprocess.run(
        [sys.executable, "-c", PASSES, what, str(plain), str(coded), str(threads)],
        env={**os.environ, "PYTHONPATH": str(checkout)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [float(t) for t in done.stdout.split()]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, help="a folder that holds the package wcodec")
    parser.add_argument("now", type=Path, help="another one")
    parser.add_argument("file", type=Path, help="a safetensors file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--json", type=Path, help="where the figures go; there are more in one file"
    )
    args = parser.parse_args()
    plain = args.file.resolve()
    checkouts = {"before": args.before.resolve(), "now": args.now.resolve()}
    rows = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    out = args.json.resolve() if args.json else None
    with tempfile.TemporaryDirectory(dir=plain.parent) as folder:
        os.chdir(folder)
        command = [sys.executable, "-m", "wcodec", "encode", "-q", str(plain), "-o", "coded.wcodec"]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(checkouts["now"])}, check=True)
        for what in ("decode", "verify", "encode"):
            times: dict[str, list[list[float]]] = {name: [] for name in checkouts}
            for _ in range(args.rounds):
                for name, checkout in checkouts.items():
                    coded = Path("coded.wcodec")
                    times[name].append(measure(checkout, what, plain, coded, args.threads))
            row = {
                "what": what, "threads": args.threads, "nbytes": plain.stat().st_size,
                "cores": len(os.sched_getaffinity(0)), "machine": platform.machine(),
                "rounds": args.rounds,
            }  # fmt: skip
            for i, unit in enumerate(("seconds", "cpu_seconds")):
                row[unit] = {n: statistics.median(t[i] for t in ts) for n, ts in times.items()}
                row[f"{unit}_ratio"] = round(row[unit]["now"] / row[unit]["before"], 3)
            print(json.dumps(row), flush=True)
            rows.append(row)
    if out is not None:
        out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
