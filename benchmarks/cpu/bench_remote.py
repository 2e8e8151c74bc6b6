"""Files behind a link of 0.1, 1 and 10 GB/s and 30 ms: how much of it decoders and encoders use.

    python benchmarks/cpu/bench_remote.py [--rounds 7] [--mb 2048] [--out OUT.json]

The link is simulated (`link.py`): requests wait for the latency and share the bandwidth. Weights
are Gaussian bf16, 4096 x 4096 each. In each round and over each link, taking turns: the bytes of
the coded file, read and dropped; `verify`, which decodes all and keeps nothing; `load_file`;
decoding to a file in memory; and encoding the plain file to one in memory. Beside them the same
from a local file that is cached. Rates are of the bytes that come over the link; parts are of its
bandwidth.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy
from bench_files import RESULTS, machine
from link import LinkFileSystem

import wcodec
from wcodec.codec.opening import open_source
from wcodec.files.checkpoint import decode_file, encode_file, verify_file

LINKS = (0.1e9, 1e9, 10e9)
LATENCY_S = 0.03


def make(folder: Path, mb: int) -> tuple[Path, Path]:
    """A plain file and its coded form."""
    rng, tensors = np.random.default_rng(0), {}
    one = (rng.standard_normal((4096, 4096), dtype=np.float32) * 0.02).astype(ml_dtypes.bfloat16)
    for i in range(max(1, mb >> 5)):
        tensors[f"layers.{i}.weight"] = np.roll(one, i + 1)
    plain, coded = folder / "m.safetensors", folder / "m.wcodec"
    safetensors.numpy.save_file(tensors, plain)
    encode_file(plain, coded)
    return plain, coded


def read_all(path: str) -> None:
    """Read a file from front to back."""
    source = open_source(path)
    for _ in source.pieces(0, source.nbytes):
        pass
    source.close()


def timed(function: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mb", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=RESULTS / "remote.json")
    args = parser.parse_args()
    memory = Path("/dev/shm") if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        folder = Path(name)
        plain, coded = make(folder, args.mb)
        rows = measure(folder, plain, coded, args.rounds)
    sizes = {"plain_nbytes": rows.pop("plain"), "coded_nbytes": rows.pop("coded")}
    found = {"machine": machine(), "cores": len(os.sched_getaffinity(0)), "rounds": args.rounds,
             "latency_s": LATENCY_S, **sizes, "links": rows}  # fmt: skip
    args.out.write_text(json.dumps(found, indent=1) + "\n")


def measure(folder: Path, plain: Path, coded: Path, rounds: int) -> dict[str, object]:
    """Rates over each link, and from the local files."""
    sizes = {"plain": plain.stat().st_size, "coded": coded.stat().st_size}
    urls = {p: LinkFileSystem.serve(p.name, p) for p in (plain, coded)}
    back, again = folder / "back.safetensors", folder / "again.wcodec"
    ways: dict[str, tuple[Path, Callable[[str], object]]] = {
        "read": (coded, read_all),
        "verify": (coded, verify_file),
        "load_file": (coded, wcodec.load_file),
        "decode": (coded, lambda p: decode_file(p, back, overwrite=True, fsync=False)),
        "encode": (plain, lambda p: encode_file(p, again, overwrite=True, fsync=False)),
    }
    seconds: dict[tuple[str, str], list[float]] = {}
    requests: dict[tuple[str, str], int] = {}
    for n in range(rounds + 1):  # the first one is not counted
        for link in (None, *LINKS):
            if link is not None and link < 0.5e9 and n > 1:
                continue  # of a slow link, the same comes each time
            LinkFileSystem.be(link or 1e12, LATENCY_S)
            for way, (path, function) in ways.items():
                LinkFileSystem.requests.clear()
                took = timed(lambda f=function, p=str(path) if link is None else urls[path]: f(p))
                key = ("local" if link is None else f"{link / 1e9:g} GB/s", way)
                requests[key] = len(LinkFileSystem.requests)
                if n:
                    seconds.setdefault(key, []).append(took)
    rows: dict[str, object] = dict(sizes)
    for (where, way), all_s in seconds.items():
        took, nbytes = statistics.median(all_s), sizes["plain" if way == "encode" else "coded"]
        row: dict[str, float] = {"seconds": round(took, 4), "gb_s": round(nbytes / took / 1e9, 3)}
        if where != "local":
            rate = float(where.split()[0]) * 1e9
            row |= {"part": round(nbytes / took / rate, 3), "requests": requests[where, way]}
        rows.setdefault(where, {})[way] = row  # type: ignore[index]
        print(where, way, row, file=sys.stderr)
    return rows


if __name__ == "__main__":
    main()
