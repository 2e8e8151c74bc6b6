"""Speed of the CUDA backend on this machine's GPU, against the bandwidth of the GPU's own memory.

    python benchmarks/gpu/gpu.py                 # everything; ten minutes or so
    python benchmarks/gpu/gpu.py --quick         # few repetitions, small shapes, a small model
    python benchmarks/gpu/gpu.py --sections decode --shapes 4096x4096 --dtypes bf16,int8

Weights are Gaussian with standard deviation 0.02, int8 quantised by row; the host encodes them.
Every decode is compared bit for bit before it is timed and after, every encoding with the host's
bytes. GPU times are of CUDA events, medians of many with the 10th and 90th percentile, in turn over
data sets that are together three times as large as the L2 cache; the stream is held while the host
queues, so that no gap of the host's is counted. Calls are wall time, until their result is on the
host.

"floor" is (bytes in + bytes out) / bandwidth, where the bandwidth is that of a large cudaMemcpy
from device to device in the same run, bytes read and written counted. "kernels" are the launches of
a decoding or encoding, with payload, words and work list on the device already; "call" is a call of
the backend, work list and waiting included; "from bytes" and "from file" are `Loader.decode` and
`Loader.load_file` of a file in memory. Results go to ``--out`` as JSON, after each step, and as
tables in Markdown.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import hashlib
import json
import os
import platform
import re
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gpu_others
import gpu_rates
import gpu_report
import numpy as np
from gpu_cases import DTYPES, Case, Model, ModelShape, copy_bandwidth, room_for, weights
from gpu_device import CupyDevice, Device, Effort, EmulatedDevice

import wcodec
from wcodec.errors import BackendUnavailable

sys.path.append(str(Path(__file__).resolve().parents[1] / "cpu"))
from bench_files import RESULTS, machine

SHAPES = ["256x256", "1024x1024", "4096x4096", "4096x11008", "14336x4096"]
SECTIONS = ["decode", "encode", "model", "others", "rates"]
#: cases with a mark, measured first
KEY = [("4096x11008", "bf16"), ("256x256", "bf16"), ("4096x4096", "int8")]
PACKAGES = ["cupy-cuda13x", "nvidia-cuda-nvrtc", "nvidia-nvcomp-cu13", "dfloat11", "torch"]
COPY_NBYTES = 1 << 30
LOST = ("CUDARuntimeError", "CUDADriverError", "AcceleratorError")  #: of CuPy and PyTorch
MODEL_MEMORY = 2.3  #: device memory that a model takes, in its bytes


class Steps(ABC):
    """A run in steps, of which each may fail: its settings, and what it has found.

    Parameters
    ----------
    kind
        The middle of the names of its files: DATE-KIND-GPU.
    found
        What the report starts with, besides the machine, the GPU, failures,
        what was left out and the time.

    Attributes
    ----------
    report
        Written to the JSON file `path` after each step, and as tables beside it.
    """

    def __init__(
        self,
        device: Device,
        args: argparse.Namespace,
        kind: str,
        found: dict[str, Any],
        suffix: str = "",
    ) -> None:
        self.device, self.args, self.started = device, args, time.perf_counter()
        self.report: dict[str, Any] = {
            "machine": about_machine(), "gpu": device.about(), **found, "failures": [],
            "left_out": [], "seconds": 0.0,
        }  # fmt: skip
        day = datetime.date.today().isoformat()
        gpu = re.sub(r"[^a-z0-9]+", "-", self.report["gpu"]["device"].lower()).strip("-")
        self.path = args.out / f"{day}-{kind}-{gpu}{suffix}.json"
        self.lost = False  # the GPU does nothing any more

    @abstractmethod
    def tables(self) -> Iterable[str]:
        """The report, to be read: lines of Markdown. May add to the report what follows from it."""

    def write(self) -> None:
        """What is there so far."""
        self.report["seconds"] = time.perf_counter() - self.started
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = list(self.tables())
        self.path.write_text(json.dumps(self.report, indent=1) + "\n")
        self.path.with_suffix(".md").write_text("\n".join(lines) + "\n")

    def attempt(self, name: str, work: Callable[[], Any]) -> Any:
        """Do something; what goes wrong in it is kept.
        Returns ``None`` then, and when the GPU is lost.
        """
        if self.lost:
            self.report["left_out"].append(name)
            return None
        try:
            return work()
        except Exception as e:
            self.report["failures"].append(
                {
                    "step": name,
                    "error": f"{type(e).__name__}: {e}",
                    "traceback": traceback.format_exc(),
                }
            )
            self.lost = type(e).__name__ in LOST  # no launch works after one that went astray
            return None

    def step(self, name: str, work: Callable[[], Any]) -> Any:
        """`attempt` while there is time; then the memory is free for the next one,
        and the report is written.
        """
        start, n_failures = time.perf_counter(), len(self.report["failures"])
        if self.lost or (self.args.seconds and start - self.started > self.args.seconds):
            self.report["left_out"].append(name)
            return None

        def inside() -> Any:
            with self.device.in_use():
                return work()

        result = self.attempt(name, inside)
        if not self.lost:
            self.attempt(f"{name}: memory", self.give_back)
        failures = self.report["failures"][n_failures:]
        done = f"FAILED: {'; '.join(f['error'] for f in failures)}" if failures else "done"
        print(f"{name}: {done}, {time.perf_counter() - start:.1f} s", flush=True)
        self.write()
        return result

    def give_back(self) -> None:
        """Memory for the next step."""
        gc.collect()
        self.device.runtime.close()


class Bench(Steps):
    """Speed of the backend."""

    def __init__(self, device: Device, args: argparse.Namespace) -> None:
        found = {
            "quick": args.quick,
            "copy": None,
            "cases": [],
            "model": None,
            "others": [],
            "rates": None,
            "marks": [],
        }
        super().__init__(device, args, "gpu", found, "-quick" if args.quick else "")
        self.effort = (
            Effort(2, 3, 0.0) if args.emulated else Effort(3, 20, 0.05) if args.quick else Effort()
        )

    def tables(self) -> Iterable[str]:
        self.report["marks"] = gpu_report.marks(self.report)
        return gpu_report.tables(self.report)

    # ---- the steps
    def run(self) -> None:
        """All of them, the most telling ones first."""
        nbytes = (
            1 << 16
            if self.args.emulated
            else min(COPY_NBYTES, self.device.runtime.free_nbytes() // 16)
        )
        self.report["copy"] = self.step(
            "copy", lambda: copy_bandwidth(self.device, self.effort, nbytes)
        )
        if self.report["copy"] is None:
            return
        wanted = [(s, d) for s in self.args.shapes for d in self.args.dtypes]
        key = [c for c in KEY if c in wanted]
        for shape, dtype in key:
            self.case(shape, dtype)
        if "model" in self.args.sections:
            self.model()
        for shape, dtype in wanted:
            if (shape, dtype) not in key:
                self.case(shape, dtype)
        if "others" in self.args.sections:
            self.others()
        if "rates" in self.args.sections:
            self.report["rates"] = self.step("rates", lambda: gpu_rates.measure(self.device))

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return float(self.report["copy"]["device_to_device"]["gb_s"]) * 1e9

    def case(self, shape: str, dtype: str) -> None:
        """Decoding and encoding of one shape and dtype."""
        rows, cols = map(int, shape.split("x"))
        name = f"{shape} {dtype}"
        sections = [s for s in ("decode", "encode") if s in self.args.sections]
        if not sections:
            return
        case = self.step(
            f"{name}: data",
            lambda: Case(self.device, (rows, cols), dtype, self.bandwidth, self.effort),
        )
        if case is None:
            return
        entry = case.about()
        self.report["cases"].append(entry)
        for section in sections:
            entry[section] = self.step(f"{name}: {section}", getattr(case, section))

    def model(self) -> None:
        """Decoding and loading of a whole model."""
        shape = self.args.model
        free = self.device.runtime.free_nbytes()
        while shape.layers > 1 and shape.nbytes * MODEL_MEMORY > free:
            shape = ModelShape(shape.layers // 2, shape.hidden, shape.ffn, shape.vocab)
        with room_for(shape.nbytes) as folder:
            model = self.step(
                "model: data",
                lambda: Model(self.device, shape, self.bandwidth, self.effort, folder),
            )
            if model is None:
                return
            entry = self.report["model"] = model.about()
            entry["decode"] = self.step("model: decode", model.decode)
            entry["load"] = self.step(
                "model: load", lambda: model.load(2 if self.args.quick else 5)
            )

    def others(self) -> None:
        """Other codecs on the same bytes."""
        shape = max(self.args.shapes, key=lambda s: (s == "4096x11008", s == "4096x4096"))
        rows, cols = map(int, shape.split("x"))
        for name, measure in gpu_others.CODECS.items():
            arrays = [weights((rows, cols), "bf16", seed) for seed in range(3)]
            found = self.step(
                name,
                lambda arrays=arrays, measure=measure: measure(self.device, arrays, self.effort),
            )
            self.report["others"] += [{"name": name, "shape": shape, **f} for f in found or []]


def about_machine() -> dict[str, Any]:
    """As other benchmarks say it, also where there is no git."""
    try:
        out = machine()
    except OSError:
        out = {
            "cpu": platform.processor(),
            "cores": os.cpu_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
        }
        out |= {
            "versions": {"wcodec": wcodec.__version__, "numpy": np.__version__},
            "commit": "unknown",
        }
        out |= {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    for package in PACKAGES:
        try:
            out["versions"][package] = version(package)
        except PackageNotFoundError:
            out["versions"][package] = "not installed"
    root, digest = RESULTS.parents[1] / "wcodec", hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".cu", ".cuh")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return {
        **out,
        "sources_sha256": digest.hexdigest(),
        "command": " ".join(["python", *(os.path.basename(a) for a in sys.argv)]),
    }


def chosen_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """What reads a list, comma-separated, of names that there are."""

    def chosen(text: str) -> list[str]:
        wrong = set(text.split(",")) - set(known)
        if wrong:
            raise argparse.ArgumentTypeError(
                f"{', '.join(sorted(wrong))}: there are {', '.join(known)}"
            )
        return text.split(",")

    return chosen


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A command line that says where results go."""
    p = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out = Path(os.environ["OUT"]) if os.environ.get("OUT") else RESULTS
    p.add_argument(
        "--out",
        type=Path,
        default=out,
        help="folder of the results (default: $OUT or benchmarks/results)",
    )
    return p


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    p = parser_of(__doc__)
    p.add_argument(
        "--quick", action="store_true", help="few repetitions, small shapes, a small model"
    )
    p.add_argument(
        "--sections",
        type=chosen_of(SECTIONS),
        default=SECTIONS[:4],
        help=f"of {', '.join(SECTIONS)} (default: all but rates)",
    )
    p.add_argument(
        "--shapes",
        type=lambda t: t.split(","),
        help=f"comma-separated (default: {','.join(SHAPES)})",
    )
    p.add_argument(
        "--dtypes",
        type=chosen_of(list(DTYPES)),
        default=list(DTYPES),
        help=f"of {', '.join(DTYPES)} (default: all)",
    )
    p.add_argument(
        "--model",
        type=lambda t: ModelShape(*map(int, t.split(","))),
        help="LAYERS,HIDDEN,FFN,VOCAB (default: Llama-2-7B's)",
    )
    p.add_argument("--rates", action="store_true", help="measure the section rates too")
    p.add_argument(
        "--seconds", type=float, default=0, help="begin no step after that time (default: no limit)"
    )
    p.add_argument(
        "--emulated",
        action="store_true",
        help="small shapes on the emulator, for tests: times mean nothing",
    )
    args = p.parse_args(argv)
    shapes, model = SHAPES, ModelShape()
    if args.emulated:
        shapes, model = ["64x96"], ModelShape(2, 64, 96, 128)
    elif args.quick:
        shapes, model = SHAPES[:2], ModelShape(2, 1024, 2816, 4000)
    args.shapes, args.model = args.shapes or shapes, args.model or model
    args.sections = (
        [*args.sections, "rates"] if args.rates and "rates" not in args.sections else args.sections
    )
    return args


def main(argv: list[str] | None = None, device_of: Callable[[], Device] | None = None) -> int:
    """Run all, print the tables. Returns the exit status:
    0 if nothing went wrong, whatever the speed.
    """
    args = parse(argv)
    try:
        device = (device_of or (EmulatedDevice if args.emulated else CupyDevice))()
    except BackendUnavailable as e:
        print(e, file=sys.stderr)
        return 2
    bench = Bench(device, args)
    bench.run()
    bench.write()
    print(bench.path.with_suffix(".md").read_text())
    print(bench.path)
    return 1 if bench.report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
