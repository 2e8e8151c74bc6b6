"""How long a fleet takes to encode checkpoints at a URL, and what it costs: a model, checked here.

    python benchmarks/fleet_model.py [--check] [--files 48] [--out OUT.json] [--figure OUT.svg]

The model. Work is cut into units of `unit_nbytes` at most (a part of a file, or a file). A worker
reads, encodes and writes a unit at once, at the rate of the slowest of the three, after its
requests' latencies and the engine's overhead:

    unit_s = overhead_s + requests * latency_s + nbytes / min(encode, link, link / ratio)

Workers take units until none is left, so the last one makes up to a unit's time more. All share the
bandwidth of the store, and one process hands out the units:

    total_s = start_s + max(ceil(units / workers) * unit_s,
                            nbytes * (1 + ratio) / store, units * driver_s) + join_s

Large files are joined from their parts by one worker each, in turns: `join_s` is what the workers
need to read and write the coded bytes once more. Cost is that of the workers' cores while they run,
and of requests. Prices and the bandwidths of store and link are assumptions, stated in the JSON;
rates of encoding and overheads are measured by ``--check``, which also runs 1, 2 and 4 workers of a
Ray cluster on this machine on local files, and says how far the model is off. There, workers share
the cores: four on two cores are two.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

sys.path.insert(0, str(Path(__file__).parent / "cpu"))

from bench_files import RESULTS, machine

from wcodec.backends import load_backend
from wcodec.codec.encoder import Encoder
from wcodec.directories.encoding import plan_encode
from wcodec.directories.tasks import Unit
from wcodec.files.checkpoint import encode_file
from wcodec.fleet import Fleet, open_engine, spread

SIZES = {"1 TB": 1e12, "10 TB": 1e13, "100 TB": 1e14, "1 PB": 1e15, "10 PB": 1e16}
WORKERS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Rates:
    """What the model takes: bytes, seconds, and US dollars."""

    encode: float = 1.0e9  #: bytes a second, of one core
    ratio: float = 0.66  #: coded bytes by plain ones
    link: float = 1.25e9  #: of a worker to the store
    store: float = 1.25e11  #: of the store to all workers
    latency_s: float = 0.03  #: of a request
    requests: float = 4  #: of a unit, one after another
    overhead_s: float = 0.02  #: of a unit, by engine and notes, on the worker
    driver_s: float = 0.002  #: of a unit, by who hands it out
    start_s: float = 10.0  #: of the run
    unit_nbytes: float = 2.0**28
    file_nbytes: float = 5e9
    core_hour: float = 0.05  #: dollars
    request_price: float = 5.0e-6  #: dollars for a write; reads cost a tenth


def predict(nbytes: float, workers: int, r: Rates) -> dict[str, float]:
    """Seconds, dollars, and what the time goes to."""
    units = math.ceil(nbytes / r.unit_nbytes)
    of_unit = min(nbytes, r.unit_nbytes) / min(r.encode, r.link, r.link / r.ratio)
    unit_s = r.overhead_s + r.requests * r.latency_s + of_unit
    work_s = math.ceil(units / workers) * unit_s
    store_s = nbytes * (1 + r.ratio) / r.store
    driver_s = units * r.driver_s
    join_s = 0.0
    if r.file_nbytes > r.unit_nbytes:  # each file's parts are read and written once more
        files = max(1, math.ceil(nbytes / r.file_nbytes))
        one = min(nbytes, r.file_nbytes) * r.ratio / r.link
        join_s = max(math.ceil(files / workers) * one, 2 * nbytes * r.ratio / r.store)
    total = r.start_s + max(work_s, store_s, driver_s) + join_s
    reads, writes = nbytes / 2**23 + 4 * units, nbytes * r.ratio / 2**25 + 4 * units
    cost = total / 3600 * workers * r.core_hour + (reads / 10 + writes) * r.request_price
    return {"seconds": round(total, 2), "dollars": round(cost, 2), "work_s": round(work_s, 2),
            "store_s": round(store_s, 2), "driver_s": round(driver_s, 2),
            "join_s": round(join_s, 2)}  # fmt: skip


# ---- checked on this machine ---------------------------------------------------------------------
def nothing(backend: Any, progress: Any, again: bool) -> None:
    """A unit that does nothing."""


def warm_up(backend: Any, progress: Any, again: bool) -> None:
    """A unit that has a worker load what it encodes with."""
    Encoder(None, backend).encode(np.zeros((2048, 4096), np.float16))
    time.sleep(0.1)  # so that another worker takes the next one


def seconds_of(engine: Any, folder: Path, n: int) -> tuple[float, float]:
    """Seconds that an engine takes to encode a directory, and for a unit that does nothing."""
    fleet = Fleet(engine, "numba")
    fleet([Unit(str(i), "", 0, warm_up) for i in range(24)], lambda *_: [])
    start = time.perf_counter()
    fleet([Unit(str(i), "", 0, nothing) for i in range(200)], lambda *_: [])
    overhead = (time.perf_counter() - start) / 200
    plan = plan_encode(folder / "in", folder / f"out{n}", fsync=False)
    start = time.perf_counter()
    spread(plan, fleet)
    return time.perf_counter() - start, overhead


def check(n_files: int, rounds: int = 5) -> dict[str, Any]:
    """Rates of this machine, and what 1, 2 and 4 workers take beside what the model says."""
    memory = Path("/dev/shm") if os.path.isdir("/dev/shm") else None
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=memory) as name:
        folder = Path(name)
        (folder / "in").mkdir()
        rng = np.random.default_rng(0)
        weights = (rng.standard_normal((4096, 4096), dtype=np.float32) * 0.02).astype(
            ml_dtypes.bfloat16
        )
        for i in range(n_files):
            safetensors.numpy.save_file(
                {"a": np.roll(weights, i)}, folder / "in" / f"{i:04}.safetensors"
            )
        nbytes = sum(p.stat().st_size for p in (folder / "in").iterdir())
        one = folder / "in" / "0000.safetensors"
        backend = load_backend("numba", 1)
        rates = list[float]()
        for _ in range(7):
            start = time.perf_counter()
            encode_file(one, folder / "x", backend=backend, overwrite=True, fsync=False)
            rates.append(one.stat().st_size / (time.perf_counter() - start))
        took: dict[int, list[float]] = {1: [], 2: [], 4: []}
        overheads: dict[int, list[float]] = {1: [], 2: [], 4: []}
        import ray

        n = 0
        for _ in range(rounds):
            for workers, all_s in took.items():
                ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False,
                         object_store_memory=80 << 20, logging_level="error")  # fmt: skip
                engine = open_engine("local")
                n += 1
                seconds, overhead = seconds_of(engine, folder, n)
                all_s.append(seconds)
                overheads[workers].append(overhead)
                ray.shutdown()
                for path in (folder / f"out{n}").iterdir():
                    path.unlink()
        plain, coded = one.stat().st_size, (folder / "x").stat().st_size
    driver_s = statistics.median(overheads[1])
    here = Rates(
        encode=statistics.median(rates), ratio=coded / plain, link=1e12, store=1e12,
        latency_s=0, overhead_s=driver_s, driver_s=0, start_s=0, unit_nbytes=plain,
        file_nbytes=0,
    )  # fmt: skip
    rows = {}
    for workers, all_s in took.items():
        found, said = statistics.median(all_s), predict(nbytes, min(workers, cores), here)
        rows[str(workers)] = {
            "seconds": round(found, 3),
            "predicted": said["seconds"],
            "predicted / seconds": round(said["seconds"] / found, 3),
            "times one worker": round(statistics.median(took[1]) / found, 3),
        }
        print(workers, rows[str(workers)], file=sys.stderr)
    return {
        "cores": cores,
        "nbytes": nbytes,
        "files": n_files,
        "rounds": rounds,
        "rates": {k: round(v, 6) for k, v in asdict(here).items()},
        "workers": rows,
    }


# ---- the figure ----------------------------------------------------------------------------------
def draw(rows: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Hours by workers, for each size."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fleet"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for size, of_workers in rows.items():
        hours = [of_workers[str(w)]["seconds"] / 3600 for w in WORKERS]
        axes.plot(WORKERS, hours, marker="o", markersize=3, label=size)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("workers, of one core each")
    axes.set_ylabel("hours to encode")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(title="plain bytes")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Predict; with ``--check`` measure too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--files", type=int, default=48)
    parser.add_argument("--out", type=Path, default=RESULTS / "fleet-model.json")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    found: dict[str, Any] = {"machine": machine()}
    rates = Rates()
    if args.check:
        found["check"] = checked = check(args.files)
        measured = {k: checked["rates"][k] for k in ("encode", "ratio", "overhead_s")}
        rates = replace(rates, **measured, driver_s=measured["overhead_s"])
    rows = {
        size: {str(w): predict(nbytes, w, rates) for w in WORKERS} for size, nbytes in SIZES.items()
    }
    found |= {"rates": asdict(rates), "predicted": rows}
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    if args.figure is not None:
        draw(rows, args.figure)


if __name__ == "__main__":
    main()
