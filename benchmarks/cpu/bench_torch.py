"""Loading of a bf16 file into PyTorch on the CPU: time and peak memory, against safetensors.

    python benchmarks/cpu/bench_torch.py                  # a 1 GB Llama-shaped bf16 file
    python benchmarks/cpu/bench_torch.py --gb 0.1 --rounds 7

Warm cache, all in one process, in turn, medians of `--rounds` after one that is not counted;
between two loads the tensors are dropped, and as much memory is touched and given back, so that a
virtual machine has it at hand: to get 1 GB from the host can take it a second, which comes on top
of any load that fills memory of the process. safetensors maps a file, so that loading alone reads
nothing. What it takes to have the weights is measured in three ways:

- ``safetensors read``: each byte is read once where it is mapped, as 8-byte integers that PyTorch
  sums up with all threads.
- ``safetensors own``: each page is written to once, so that it becomes memory of the process,
  as what wcodec gives is.
- ``safetensors pread``: its other backend, which reads into memory of the process.

``wcodec`` is `wcodec.torch.load_file`, ``wcodec read`` reads each byte of the tensors after that.
``cold``: before each load the file is taken out of the system's cache, so that it comes from this
machine's disk, whose speed is measured too. ``throttled``: a file object that gives so many GB/s
and no more; in place of safetensors, the file's bytes are read from it into memory that is there
already, the least that any loader of the uncompressed file needs. Memory is the peak of ``RssAnon``
of processes of their own that load once, and of one that only imports and decodes a small array; it
does not count the mapped file. Results go to ``benchmarks/results/`` as JSON.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
from bench_files import RESULTS, machine, make_llama, watched

import wcodec
from wcodec.files.checkpoint import encode_file
from wcodec.torch import load_file

State = dict[str, torch.Tensor]
T = TypeVar("T")
PIECE = 1 << 23


class Throttled(io.RawIOBase):
    """A file of which no more than so many GB/s can be read."""

    def __init__(self, path: Path, rate: float) -> None:
        self._file = path.open("rb", buffering=0)
        self._rate = rate * 1e9
        self._free = time.perf_counter()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of a file."""
        return self._file.seek(offset, whence)

    def readinto(self, target: Any) -> int:
        """As of a file; returns when the bytes would have come."""
        return self._when_there(lambda: self._file.readinto(target), lambda n: n)

    def read(self, nbytes: int = -1) -> bytes:
        """As of a file; returns when the bytes would have come."""
        return self._when_there(lambda: self._file.read(nbytes), len)

    def _when_there(self, read: Callable[[], T], size: Callable[[T], int]) -> T:
        start = max(self._free, time.perf_counter())
        found = read()
        self._free = start + size(found) / self._rate
        time.sleep(max(0.0, self._free - time.perf_counter()))
        return found


def read_all(state: State) -> State:
    """Read each byte once."""
    for t in state.values():
        int(t.view(torch.int64).sum())
    return state


def own(state: State) -> State:
    """Write to each page once."""
    for t in state.values():
        t.view(torch.uint8).view(-1)[:: os.sysconf("SC_PAGE_SIZE")].add_(0)
    return state


def forget(path: Path) -> None:
    """Take a file out of the system's cache."""
    with path.open("rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_file(path: Path, buffer: np.ndarray[Any, Any], throttled: float | None = None) -> None:
    """Read a file into memory that is there."""
    source, at = (Throttled(path, throttled) if throttled else path.open("rb", buffering=0)), 0
    while n := source.readinto(buffer[at : at + PIECE].data):
        at += n


def settle(nbytes: int) -> None:
    """Have as much memory at hand as a load takes, in large pages."""
    memory = np.empty(nbytes, np.uint8)
    memory[:: os.sysconf("SC_PAGE_SIZE")] = 1


def timed(
    calls: dict[str, tuple[Callable[[], Any], Path | None]], rounds: int, nbytes: int
) -> dict[str, list[float]]:
    """Seconds of calls, in turn, that take so much memory; those with a path from a cold cache."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, (call, path) in calls.items():
            if path is not None:
                forget(path)
            gc.collect()
            settle(nbytes)
            start = time.perf_counter()
            result = call()
            took = time.perf_counter() - start
            del result
            if i:
                seconds[name].append(took)
    return seconds


def summary(title: str, seconds: dict[str, list[float]], nbytes: int) -> dict[str, Any]:
    """Medians, printed, and as parts of each other."""
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    print(
        title,
        ", ".join(f"{name} {s:.3f} s ({nbytes / s / 1e9:.2f} GB/s)" for name, s in medians.items()),
        flush=True,
    )
    # of neighbours in time, so that what else the machine does counts less
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds["wcodec"], s, strict=True))
        for name, s in seconds.items()
        if name != "wcodec"
    }
    return {"median_s": medians, "wcodec_of": ratios, "all_s": seconds}


def peak_memory(kind: str, path: Path) -> int:
    """Peak of anonymous memory of a process that loads a file."""
    return watched(
        subprocess.Popen([sys.executable, __file__, "--child", kind, str(path)]),
        f"the process that loads by {kind}",
    )


def child(kind: str, path: str) -> None:
    """Load a file and keep it."""
    loaders: dict[str, Callable[[], State]] = {
        "import": dict,
        "wcodec": lambda: load_file(path),
        "safetensors read": lambda: read_all(safetensors.torch.load_file(path)),
        "safetensors own": lambda: own(safetensors.torch.load_file(path)),
        "safetensors pread": lambda: safetensors.torch.load_file(path, backend="pread"),
    }
    if kind == "import":  # the machine code of kernels too
        wcodec.decode(wcodec.encode(np.zeros(1 << 16, np.uint16)))
    state = loaders[kind]()
    time.sleep(0.05)
    del state


def bench(plain: Path, coded: Path, rounds: int, rates: list[float]) -> dict[str, Any]:
    """All measurements of a file."""
    nbytes = plain.stat().st_size
    buffer = np.ones(nbytes, np.uint8)
    state, wanted = load_file(coded), safetensors.torch.load_file(plain)
    if state.keys() != wanted.keys() or any(
        not torch.equal(state[n].view(torch.int16), t.view(torch.int16)) for n, t in wanted.items()
    ):
        raise SystemExit("the file did not come back")
    del state, wanted
    calls: dict[str, Callable[[], Any]] = {
        "wcodec": lambda: load_file(coded),
        "wcodec read": lambda: read_all(load_file(coded)),
        "safetensors read": lambda: read_all(safetensors.torch.load_file(plain)),
        "safetensors own": lambda: own(safetensors.torch.load_file(plain)),
        "safetensors pread": lambda: safetensors.torch.load_file(plain, backend="pread"),
    }
    out: dict[str, Any] = {
        "nbytes": nbytes,
        "stored_nbytes": coded.stat().st_size,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
    }
    out["warm"] = summary(
        "warm:", timed({name: (call, None) for name, call in calls.items()}, rounds, nbytes), nbytes
    )
    cold = {
        name: (call, coded if name.startswith("wcodec") else plain)
        for name, call in calls.items()
        if name != "safetensors own"
    }
    cold["disk"] = lambda: read_file(plain, buffer), plain
    out["cold"] = summary("cold:", timed(cold, rounds, nbytes), nbytes)
    for rate in rates:
        throttled: dict[str, tuple[Callable[[], Any], Path | None]] = {
            "wcodec": (lambda rate=rate: load_file(Throttled(coded, rate)), None),  # type: ignore[misc]
            "reading": (lambda rate=rate: read_file(plain, buffer, rate), None),  # type: ignore[misc]
        }
        out[f"throttled to {rate} GB/s"] = summary(
            f"throttled to {rate} GB/s:", timed(throttled, rounds, nbytes), nbytes
        )
    buffer = np.empty(0, np.uint8)
    kinds = {
        "import": coded,
        **{name: coded if name == "wcodec" else plain for name in calls if name != "wcodec read"},
    }
    out["peak_anonymous_nbytes"] = {name: peak_memory(name, path) for name, path in kinds.items()}
    print(
        "peak memory:",
        ", ".join(f"{name} {n / 1e6:.0f} MB" for name, n in out["peak_anonymous_nbytes"].items()),
    )
    return out


def main() -> None:
    """Make the files, run all, write the JSON."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--gb", type=float, default=1.0, help="size of the generated file (default: 1)")
    p.add_argument("--rounds", type=int, default=9, help="runs of each load (default: 9)")
    p.add_argument(
        "--rates",
        default="0.25,0.5,0.9",
        help="GB/s of throttled readers, comma-separated (default: 0.25,0.5,0.9)",
    )
    p.add_argument(
        "--out", type=Path, help="the JSON file (default: benchmarks/results/DATE-torch.json)"
    )
    p.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        child(*args.child)
        return
    with tempfile.TemporaryDirectory(prefix="wcodec-bench-") as name:
        plain = make_llama(Path(name) / "llama-bf16.safetensors", args.gb)
        coded = Path(name) / "llama-bf16.wcodec"
        encode_file(plain, coded)
        result = bench(plain, coded, args.rounds, [float(r) for r in args.rates.split(",")])
    about = machine()
    about["versions"] |= {package: version(package) for package in ("torch", "safetensors")}
    out = args.out or RESULTS / f"{datetime.date.today().isoformat()}-torch.json"
    out.write_text(json.dumps({"machine": about, "file": result}, indent=1) + "\n")
    print(out.name)


if __name__ == "__main__":
    main()
