"""What benchmarks on a GPU share: a run in steps, its report and files, options, the machine."""

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

import numpy as np
from gpu_device import Device

import wcodec

sys.path.append(str(Path(__file__).resolve().parents[1] / "cpu"))
from bench_files import RESULTS, machine

PACKAGES = ["cupy-cuda13x", "nvidia-cuda-nvrtc", "nvidia-nvcomp-cu13", "dfloat11", "torch"]

COPY_NBYTES = 1 << 30

LOST = ("CUDARuntimeError", "CUDADriverError", "AcceleratorError")  #: of CuPy and PyTorch


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
