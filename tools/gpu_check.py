"""Everything that only a machine with an NVIDIA GPU can show, in one command: ``make gpu-check``.

    python tools/gpu_check.py                            # the first five steps, in 560 seconds
    python tools/gpu_check.py --only models --seconds 0  # one step, or several: no limit but theirs
    python tools/gpu_check.py --emulated                 # a dry run without a GPU, on the emulator
    make gpu-check GPU_CHECK_ARGS="--only speed --only fused --seconds 300"

Steps: ``devices``, ``conformance`` (the whole suite on the device), ``tests`` (those marked
``gpu``), ``speed`` (benchmarks/gpu/gpu.py), ``fused`` (benchmarks/gpu/fused.py: linear layers
straight from operands, against cuBLAS), ``models`` (benchmarks/cpu/bench_models.py: a model of the
shape of Llama-3-8B whose weights stay compressed, multiplied as they are too), ``memcheck`` and
``racecheck`` (compute-sanitizer over a part of the suite and random plans, with memory straight
from the driver, where what lies outside of an array is outside of everything). wcodec need not be
installed. Each step is a process of its own with a time limit, and leaves to the steps after it
what these need at least; whatever becomes of it, the next one runs. ``--out`` (default: $OUT or
benchmarks/results) gets gpu-check.json, written after each step, gpu-check.log with all that was
printed, line by line, conformance.json, and the results of the benchmarks: eight files at most. The
exit status is 0 only if no step failed or was left out; a machine without compute-sanitizer, or one
whose GPU it does not support, is no failure, but is said.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "numpy",
    "ml_dtypes",
    "numba",
    "cupy-cuda13x",
    "nvidia-cuda-nvrtc",
    "torch",
    "transformers",
    "accelerate",
    "pytest",
    "hypothesis",
    "nvidia-nvcomp-cu13",
    "dfloat11",
)
#: Seconds that a step needs at least, or else it is left out, and may take at most.
LIMITS = {
    "devices": (10, 60), "conformance": (30, 150), "tests": (30, 200), "speed": (80, 1500),
    "fused": (60, 360), "models": (100, 900), "memcheck": (60, 360), "racecheck": (60, 360),
}  # fmt: skip
EMULATED_BACKEND = "cuda_emulator.backend:EmulatedCuda"
#: a model for a dry run
TINY = "--hidden 64 --inner 128 --layers 2 --vocab 300 --heads 4 --kv-heads 2 --prompt 5 --tokens 4"
STEPS = tuple(LIMITS)
USUAL = STEPS[:5]  #: the others are calls of their own
#: for all steps together: a little less than a command may take on a machine that is lent
SECONDS = 560.0
FINISH_S = 30.0  #: that a benchmark has to finish a case that it has begun
SANITIZED_S = 75.0  #: that a reduced run takes under compute-sanitizer, about, once Python is up
ERROR_STATUS = 99  #: of compute-sanitizer, for errors it has found
INTERRUPT_S = 15.0  #: of a step's time, to end by itself when it is interrupted
KILL_S = 2.0


@dataclass
class Result:
    """What became of a step: ``passed``, ``failed``, ``timed out``,
    ``not there`` or ``left out``.
    """

    name: str
    outcome: str
    detail: str = ""
    seconds: float = 0.0
    command: list[str] = field(default_factory=list)
    more: Any = None

    @property
    def good(self) -> bool:
        """Whether nothing went wrong."""
        return self.outcome in ("passed", "not there")


@dataclass(frozen=True)
class Run:
    """A process that has ended, or was ended; its output is that of both streams,
    unless they were to be told apart.
    """

    status: int | None
    output: str
    seconds: float
    errors: str = ""

    @property
    def last(self) -> str:
        """The last line it printed."""
        lines = [line.strip() for line in (self.output + self.errors).splitlines() if line.strip()]
        return lines[-1] if lines else ""


class Checker:
    """Runs the steps.

    Parameters
    ----------
    seconds
        For all steps; 0 for no limit.
    emulated
        Whether this is a dry run without a GPU: everything as small as it can be.
    """

    def __init__(
        self, out: Path, seconds: float, backend: str, log: TextIO, emulated: bool = False
    ) -> None:
        self.out = out
        self.seconds = seconds
        self.backend = backend
        self.log = log
        self.started = time.monotonic()
        self.emulated, self.env = emulated, {"WCODEC_GPU_TESTS": "emulated"} if emulated else {}
        self.limit = float("inf")  #: of the step that runs

    def left(self) -> float:
        """Seconds until the time is up."""
        return self.seconds - (time.monotonic() - self.started) if self.seconds else float("inf")

    def note(self, text: str) -> None:
        """Write to the log, at once."""
        self.log.write(text)
        self.log.flush()

    def run(
        self,
        command: list[str],
        limit: float | None = None,
        show: bool = False,
        apart: bool = False,
    ) -> Run:
        """Run a command in the repository, for as long as the step has, or less.

        When its time is up, it is interrupted, as by Ctrl-C,
        and has `INTERRUPT_S` of its time to write what it has found.

        Parameters
        ----------
        apart
            Whether to keep what it writes to its standard error out of the output.
        """
        paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {
            **os.environ,
            **self.env,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
        }
        self.note(f"$ {' '.join(command)}\n")
        start = time.monotonic()
        limit = min(limit or self.limit, self.limit, self.left())
        lines = list[str]()
        errors = list[str]()
        try:
            p = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if apart else subprocess.STDOUT, text=True, errors="replace",
                start_new_session=True, preexec_fn=_interruptible,
            )  # fmt: skip
        except OSError as e:
            return Run(127, f"{command[0]}: {e}", 0.0)

        def read(stream: TextIO, to: list[str]) -> None:
            with stream:
                for line in stream:
                    to.append(line)
                    self.note(line)
                    if show:
                        print(line, end="", flush=True)

        readers = [
            threading.Thread(target=read, args=a, daemon=True)
            for a in ((p.stdout, lines), (p.stderr, errors))
            if a[0] is not None
        ]
        for reader in readers:
            reader.start()
        status: int | None = None
        grace = min(INTERRUPT_S, limit / 4)
        try:
            status = p.wait(None if limit == float("inf") else max(0.0, limit - grace))
        except subprocess.TimeoutExpired:
            self.note(f"---- {limit - grace:.0f} s are up\n")
            _end(p, grace)
        except BaseException:
            _end(p, KILL_S)
            raise
        for reader in readers:
            reader.join(KILL_S)
        return Run(status, "".join(lines), time.monotonic() - start, "".join(errors))

    # ---- the steps
    def devices(self) -> Result:
        """The machine; fails if the backend can't be used, and then nothing else need be tried."""
        versions = {}
        for package in PACKAGES:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                versions[package] = "not installed"
        smi = self.run(["nvidia-smi"], 20)
        backends = self.run(
            [sys.executable, "-m", "wcodec", "--backend", self.backend, "backends", "--json"],
            apart=True,
        )
        more: dict[str, Any] = {
            "python": sys.version,
            "versions": versions,
            "nvidia-smi": smi.output,
            "sanitizer": sanitizer() or "not there",
        }
        print(smi.output if smi.status == 0 else f"nvidia-smi: {smi.last}")
        print(", ".join(f"{k} {v}" for k, v in versions.items()), flush=True)
        if backends.status != 0:
            return Result("devices", _failed(backends), backends.last, more=more)
        row = next(r for r in json.loads(backends.output) if r["name"] == self.backend)
        return Result(
            "devices", "passed", ", ".join(f"{k} {v}" for k, v in row["info"].items()), more=more
        )

    def conformance(self) -> Result:
        """The whole suite."""
        command = [
            sys.executable,
            "-m",
            "wcodec",
            "--backend",
            self.backend,
            "conformance",
            "-f",
            "--report",
            str(self.out / "conformance.json"),
        ]
        run = self.run(command)
        failures = [line for line in run.output.splitlines() if line.startswith("FAILED")]
        return Result(
            "conformance", _failed(run), run.last, more={"failures": failures[:50]}, command=command
        )

    def tests(self) -> Result:
        """Tests with the marker ``gpu``; those that are skipped are named."""
        files = [
            str(p.relative_to(ROOT))
            for p in sorted((ROOT / "tests").rglob("test_*.py"))
            if "pytest.mark.gpu" in p.read_text()
        ]
        without = [
            name
            for name in ("torch", "transformers")
            if self.emulated or importlib.util.find_spec(name) is None
        ]
        if without:  # the second needs the first
            files = [
                f
                for f in files
                if "transformers" not in f and not (without[0] == "torch" and "torch" in f)
            ]
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "tests.xml"
            options = [
                "-o", "addopts=", "-v", "--tb=short", "-rs", "-p", "no:cacheprovider", "-p",
                "no:xdist", "-o", "timeout=90", "--continue-on-collection-errors", "--junitxml",
                str(report),
            ]  # fmt: skip
            command = [sys.executable, "-m", "pytest", "-m", "gpu", *options, *files]
            run = self.run(command)
            counts = counted(report) or counted_lines(run.output)
        outcome = _failed(run)
        if outcome == "passed" and not counts.get("passed"):
            outcome = "failed"
        detail = ", ".join(f"{n} {name}" for name, n in counts.items()) or run.last
        detail += f"; without {' and '.join(without)}, whose tests were not run" if without else ""
        return Result("tests", outcome, detail, command=command)

    def for_benchmark(self) -> float:
        """Seconds in which a benchmark may begin something."""
        return min(self.limit, LIMITS["speed"][1]) - FINISH_S - INTERRUPT_S

    def speed(self) -> Result:
        """The benchmark, which keeps what it has found when its time is up."""
        run, command, report = self.benchmark("gpu")
        if report is None:
            return Result("speed", _failed(run), run.last, command=command)
        met = [m["met"] for m in report["marks"]]
        detail = (
            f"{met.count(True)} marks met, {met.count(False)} missed, "
            f"{met.count(None)} not measured{_unfinished(report)}"
        )
        return Result("speed", _failed(run), detail, command=command)

    def fused(self) -> Result:
        """Products straight from operands, if PyTorch is there;
        begins no shape when its time is nearly up.
        """
        if importlib.util.find_spec("torch") is None:
            return Result("fused", "not there", "torch not installed: no product was measured")
        run, command, report = self.benchmark("fused")
        if report is None:
            return Result("fused", _failed(run), run.last, command=command)
        detail = "; ".join(
            f"{m['what']}: {'not measured' if m['value'] is None else format(m['value'], '.2f')}"
            for m in report["marks"]
        )
        return Result("fused", _failed(run), detail + _unfinished(report), command=command)

    def benchmark(self, name: str) -> tuple[Run, list[str], dict[str, Any] | None]:
        """Run ``benchmarks/gpu/<name>.py``. The report is none if it has not come so far."""
        command = [
            sys.executable,
            f"benchmarks/gpu/{name}.py",
            "--out",
            str(self.out),
            "--seconds",
            f"{self.for_benchmark():.0f}",
        ]
        command += ["--emulated"] * self.emulated
        start = time.time()
        run = self.run(command, show=True)
        written = [p for p in self.out.glob(f"*-{name}-*.json") if p.stat().st_mtime >= start - 1]
        return run, command, json.loads(written[0].read_text()) if written else None

    def models(self) -> Result:
        """A large model, compressed and not, and multiplied as it is,
        if PyTorch and transformers are there.
        """
        missing = [
            name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None
        ]
        if missing:
            return Result(
                "models", "not there", f"{' and '.join(missing)} not installed: no model was run"
            )
        size = ["--device", "cpu", *TINY.split()] if self.emulated else ["--device", "cuda"]
        options = [*size, "--rounds", "3", "--mode", "fused", "--operands", "fixed,rans"]
        options += ["--out", str(self.out)]
        command = [sys.executable, "benchmarks/cpu/bench_models.py", *options]
        run = self.run(command, show=True)
        said = [
            line
            for line in run.output.splitlines()
            if "tokens" in line or "held compressed" in line
        ]
        return Result("models", _failed(run), "; ".join(said) or run.last, command=command)

    def memcheck(self) -> Result:
        """Accesses outside of memory."""
        return self.sanitized("memcheck")

    def racecheck(self) -> Result:
        """Hazards in shared memory."""
        return self.sanitized("racecheck")

    def sanitized(self, name: str) -> Result:
        """A reduced run under compute-sanitizer."""
        tool = sanitizer()
        if tool is None:
            return Result(
                name,
                "not there",
                "compute-sanitizer is neither on the PATH nor in the CUDA toolkit: "
                "nothing was checked",
            )
        # CuPy asks for what may not be there
        options = ["--tool", name, *(["--report-api-errors", "no"] if name == "memcheck" else [])]
        probe = self.run(
            [
                tool,
                *options,
                sys.executable,
                "-c",
                "import cupy; assert (cupy.arange(8) + 1).get().sum() == 36",
            ],
            120,
        )
        if probe.status != 0 or "not supported" in probe.output:
            return Result(
                name,
                "not there",
                f"compute-sanitizer can't be used on this GPU: nothing was checked ({probe.last})",
            )
        seconds = min(SANITIZED_S, self.limit / 4)
        reduced = [
            sys.executable,
            str(Path(__file__)),
            "--reduced",
            "--backend",
            self.backend,
            "--seconds",
            f"{seconds:.0f}",
        ]
        command = [tool, *options, "--error-exitcode", str(ERROR_STATUS), *reduced]
        run = self.run(command)
        lines = run.output.splitlines()
        found = [line.strip("= ") for line in lines if "SUMMARY" in line] + [
            line for line in lines if line.startswith("reduced: ")
        ]
        outcome = _failed(run)
        if outcome == "passed" and not any(line.startswith("reduced: ") for line in found):
            outcome = "failed"
        return Result(name, outcome, "; ".join(found) or run.last, command=command)


def _unfinished(report: dict[str, Any]) -> str:
    """What a benchmark has left out, and what has failed."""
    left_out = f"; left out for lack of time: {', '.join(report['left_out'])}"
    failures = f"; FAILED: {'; '.join(f['step'] for f in report['failures'])}"
    return left_out * bool(report["left_out"]) + failures * bool(report["failures"])


def _interruptible() -> None:
    """In a new process: a script that runs this in the background has it ignore interrupts,
    and all that it starts.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(p: subprocess.Popen[str], grace: float) -> None:
    """End a process and those it has started: interrupt it, and wait, before it is killed.

    Twice: an exception is lost where C code has called Python,
    and pytest then takes it for the failure of a test.
    """
    for how, seconds in (
        (signal.SIGINT, grace / 2),
        (signal.SIGINT, grace / 2),
        (signal.SIGTERM, KILL_S),
        (signal.SIGKILL, KILL_S),
    ):
        try:
            os.killpg(p.pid, how)
            p.wait(seconds)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _failed(run: Run) -> str:
    return "timed out" if run.status is None else "failed" if run.status else "passed"


def counted(report: Path) -> dict[str, int]:
    """Tests by outcome, out of the XML that pytest writes; empty if it has not come to that."""
    if not report.exists():
        return {}
    suite = next(ElementTree.parse(report).iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("failures", "errors", "skipped")}
    return {"passed": int(suite.get("tests", 0)) - sum(counts.values()), **counts}


def counted_lines(output: str) -> dict[str, int]:
    """The same, out of the lines that pytest -v prints, when it could not write the other."""
    names = {"PASSED": "passed", "FAILED": "failures", "ERROR": "errors", "SKIPPED": "skipped"}
    found = re.findall(r"^\S+::.* (PASSED|FAILED|ERROR|SKIPPED)\b", output, re.MULTILINE)
    return {name: found.count(word) for word, name in names.items()} if found else {}


def sanitizer() -> str | None:
    """Path of compute-sanitizer: on the PATH, or in the toolkit."""
    nvcc = shutil.which("nvcc")
    roots = [
        os.environ.get("CUDA_HOME"),
        os.environ.get("CUDA_PATH"),
        str(Path(nvcc).resolve().parent.parent) if nvcc else None,
        "/usr/local/cuda",
    ]
    folders = [Path(r) / f for r in roots if r for f in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer") or next(
        (str(f / "compute-sanitizer") for f in folders if (f / "compute-sanitizer").is_file()), None
    )


# ---- what runs under compute-sanitizer -----------------------------------------------------------
def reduced(
    backend_name: str, seconds: float, say: Callable[[str], None] = print, most: int | None = None
) -> int:
    """Checks of the suite and random plans with spoilt payloads, in turn, until the time is up.
    Returns how many failed.

    `most` of them, if given.
    """
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "backends")]
    import numpy as np
    from plans import make_case
    from test_backends_equal import check_bad, check_decode, check_encode, check_histogram, spoil

    from wcodec.backends import load_backend
    from wcodec.conformance import checks_of
    from wcodec.conformance.cases import load
    from wcodec.reference.planes import DTYPES

    backend, deadline = load_backend(backend_name), time.monotonic() + seconds
    _no_pool()

    def random_plan(seed: int) -> None:
        rng, dtype = np.random.default_rng(seed), DTYPES[seed % len(DTYPES)]
        case = make_case(rng, dtype)
        check_encode(backend, case)
        check_decode(backend, case)
        check_bad(backend, case.decoding, spoil(rng, case))
        check_histogram(backend, rng, case.plan.geometry, dtype)

    checks = [
        c
        for c in checks_of(backend, load(None))[0]
        if c.id.startswith(("kernels/", "encode/", "accept/"))
    ]
    random.Random(0).shuffle(checks)
    work: list[tuple[str, Callable[[], object]]] = []
    for i, c in enumerate(checks):
        work += [(f"random plan {i}", lambda i=i: random_plan(i)), (c.id, c.run)]
    done, wrong = 0, list[str]()
    for name, check in work[:most]:
        if time.monotonic() > deadline:
            break
        try:
            check()
        except Exception as e:
            wrong.append(name)
            say(f"FAILED {name}: {type(e).__name__}: {str(e)[:500]}")
        done += 1
    say(f"reduced: {done - len(wrong)} passed, {len(wrong)} failed, {len(work) - done} left out")
    return len(wrong)


def _no_pool() -> None:
    """CuPy asks the driver for each array: a pool's neighbours would hide what goes beyond one."""
    try:
        import cupy
    except ImportError:
        return
    cupy.cuda.set_allocator(None)
    cupy.cuda.set_pinned_memory_allocator(None)


# ---- the command ---------------------------------------------------------------------------------
def check(
    checker: Checker, names: list[str], done: Callable[[list[Result]], None] = lambda _: None
) -> list[Result]:
    """Run steps; what happens in one does not keep the next from running,
    but for a backend that can't be used.

    `done` gets the results after each.
    """
    results = list[Result]()
    for i, name in enumerate(names):
        least, most = LIMITS[name]
        left = checker.left()
        checker.limit = min(
            most, max(least, left - sum(LIMITS[later][0] for later in names[i + 1 :]))
        )
        if results and results[0].name == "devices" and results[0].outcome == "failed":
            result = Result(name, "left out", "the backend can't be used here")
        elif left < least:
            result = Result(name, "left out", f"no time; --only {name} runs it alone")
        else:
            print(f"---- {name}", flush=True)
            start = time.monotonic()
            try:
                result = getattr(checker, name)()
            except Exception as e:
                result = Result(name, "failed", f"{type(e).__name__}: {e}")
            result.seconds = time.monotonic() - start
            print(f"{name}: {result.outcome}, {result.seconds:.0f} s: {result.detail}", flush=True)
        results.append(result)
        done(results)
    return results


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out = Path(os.environ["OUT"]) if os.environ.get("OUT") else ROOT / "benchmarks" / "results"
    p.add_argument(
        "--only", action="append", choices=STEPS, help="run this step; may be given several times"
    )
    p.add_argument(
        "--out",
        type=Path,
        default=out,
        help="folder of the results (default: $OUT or benchmarks/results)",
    )
    p.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help=f"for all steps together; 0: no limit but each step's own (default: {SECONDS:.0f})",
    )
    p.add_argument(
        "--emulated",
        action="store_true",
        help="a dry run without a GPU, on the emulator of the tests: figures mean nothing",
    )
    p.add_argument("--backend", default="cuda", help=argparse.SUPPRESS)
    p.add_argument("--reduced", action="store_true", help=argparse.SUPPRESS)
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the steps, print a summary. Returns the exit status."""
    args = parse(argv)
    if args.reduced:
        return 1 if reduced(args.backend, args.seconds or SANITIZED_S) else 0
    out, names = args.out.resolve(), args.only or list(USUAL)
    out.mkdir(parents=True, exist_ok=True)

    def write(results: list[Result]) -> None:
        left = [asdict(Result(name, "left out", "not reached")) for name in names[len(results) :]]
        report = {
            "good": not left and all(r.good for r in results),
            "steps": [*(asdict(r) for r in results), *left],
        }
        unfinished = out / "gpu-check.json.unfinished"
        unfinished.write_text(json.dumps(report, indent=1) + "\n")
        unfinished.replace(out / "gpu-check.json")

    write([])
    with (out / "gpu-check.log").open("w") as log:
        backend = EMULATED_BACKEND if args.emulated else args.backend
        results = check(Checker(out, args.seconds, backend, log, args.emulated), names, write)
    good = all(r.good for r in results)
    print(f"\n==== {out / 'gpu-check.json'}")
    for r in results:
        print(
            f"{r.outcome.upper() if not r.good else r.outcome:<10} {r.name:<12} {r.seconds:6.0f} "
            f"s  {r.detail}"
        )
    print("all good" if good else "NOT good")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
