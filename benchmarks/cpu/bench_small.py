"""Small tensors: ``python benchmarks/cpu/bench_small.py [--tensors N] [--json OUT]``.

Arrays of bf16 encoded and decoded in a loop, beside ZipNN, if it is installed, and memcpy; and a
file of many scalars and vectors, written, read and listed. On one core if it is run under
``taskset``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from bench_files import machine, show_report

import wcodec

SIDES = (256, 1024)
LOOP_NBYTES = 1 << 24  #: decoded bytes of a round


def per_call(call: Callable[[], Any], n: int) -> float:
    """Seconds of a call in a loop."""
    start = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - start) / n


def calls_of(array: np.ndarray[Any, Any]) -> dict[str, Callable[[], Any]]:
    """What is measured, by name."""
    stored, out = wcodec.encode(array), np.empty_like(array)
    calls: dict[str, Callable[[], Any]] = {
        "memcpy": lambda: np.copyto(out.view(np.uint16), array.view(np.uint16)),
        "wcodec encode": lambda: wcodec.encode(array),
        "wcodec decode": lambda: wcodec.decode(stored),
    }
    with contextlib.suppress(ImportError):
        from zipnn import ZipNN

        plain = array.tobytes()
        codec = ZipNN(input_format="byte", bytearray_dtype="bfloat16", threads=1)
        packed = bytes(codec.compress(bytearray(plain)))
        assert bytes(codec.decompress(packed)) == plain
        # a copy each time: it changes its input
        calls["ZipNN encode"] = lambda: codec.compress(bytearray(plain))
        calls["ZipNN decode"] = lambda: codec.decompress(packed)
    return calls


def arrays(rounds: int) -> dict[str, dict[str, float]]:
    """GB/s of decoded bytes, medians of rounds in which all take turns."""
    rng, out = np.random.default_rng(0), dict[str, dict[str, float]]()
    for side in SIDES:
        array = (rng.standard_normal((side, side)) * 0.02).astype(ml_dtypes.bfloat16)
        calls, n = calls_of(array), max(1, LOOP_NBYTES // array.nbytes)
        for call in calls.values():
            call()
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(per_call(call, n))
        out[f"{side} x {side}"] = {
            name: round(array.nbytes / statistics.median(t) / 1e9, 4) for name, t in times.items()
        }
    return out


def many(n: int) -> dict[str, float]:
    """Seconds to write, read and list a file of `n` scalars and vectors of 1 to 4096 elements."""
    rng = np.random.default_rng(0)
    tensors = {
        f"layers.{i}.scale": (
            rng.standard_normal(() if i % 4 == 0 else int(rng.integers(1, 4097))) * 0.02
        ).astype((ml_dtypes.bfloat16, np.float32)[i % 2])
        for i in range(n)
    }
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "many.wcodec"
        start = time.perf_counter()
        wcodec.save_file(tensors, path)
        written = time.perf_counter()
        back = wcodec.load_file(path)
        read = time.perf_counter()
        assert all(back[k].tobytes() == t.tobytes() for k, t in tensors.items())
        listing = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "wcodec", "info", str(path)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        end = time.perf_counter()
        nbytes = sum(t.nbytes for t in tensors.values())
        return {
            "n": n,
            "percent": round(100 * path.stat().st_size / nbytes, 3),
            "encode_s": round(written - start, 2),
            "decode_s": round(read - written, 2),
            "info_s": round(end - listing, 2),
        }


def main() -> int:
    """Print all, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tensors", type=int, default=100_000)
    parser.add_argument("--json", help="write the report here")
    args = parser.parse_args()
    wcodec.set_backend("numba")
    report = {
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "rounds": args.rounds,
        "GB_per_s": arrays(args.rounds),
        "many": many(args.tensors),
    }
    show_report(report, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
