"""All fuzz targets: ``make fuzz MINUTES=5``, or ``python tools/fuzz/campaign.py`` with atheris.

Each target is a process under libFuzzer, guided by coverage; as many run at once as there are
cores. They begin with ``tests/corpus/TARGET``. What they find is left in the folder, with the
command that shows it again, and the exit status is 1. ``--blind`` counts no coverage, and so tries
many more inputs (`blind`); decoders of segments then have the same ones, and must agree.
``--replay TARGET FILES`` and ``--blind`` do without atheris; ``--merge`` writes the corpus anew.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
sys.path[:0] = [str(HERE)]

from targets import TARGETS, Target, corpus_of  # noqa: E402
from variants import ALL_VARIANTS, host_has  # noqa: E402

#: seconds and MiB that an input may take, far more than any does
LIMITS: Final = ("-timeout=60", "-rss_limit_mb=2048")


@dataclass
class Result:
    """What came of fuzzing a target."""

    name: str
    log: Path
    seconds: float
    found: list[Path] = field(default_factory=list)
    died: bool = False
    again: str = ""  #: the command for what a blind run found

    def row(self) -> str:
        """A line of the table: inputs, inputs per second, edges, features, corpus."""
        text = self.log.read_text(errors="replace")
        n = _last(r"number_of_executed_units: (\d+)", text) or _last(r"^#(\d+)\s", text) or "0"
        corpus = _last(r"corp: (\S+)", text) or "-"
        edges, features = _last(r" cov: (\d+)", text) or "-", _last(r" ft: (\d+)", text) or "-"
        rate = int(n) / max(self.seconds, 1)
        return f"{self.name:22}{n:>10}{rate:>10.0f}{edges:>8}{features:>10}{corpus:>14}"


def _last(pattern: str, text: str) -> str | None:
    found = re.findall(pattern, text, re.MULTILINE)
    return found[-1] if found else None


# ---- running -------------------------------------------------------------------------------------
def environment(target: Target) -> dict[str, str]:
    """The environment for the process of a target."""
    cpu = ALL_VARIANTS[target.cpu] if target.cpu else {}
    return {**os.environ, **cpu, "WCODEC_EMULATOR": "coverage", "PYTHONUNBUFFERED": "1"}


def lacking(target: Target) -> list[str]:
    """What this CPU lacks to run a target."""
    needs = ALL_VARIANTS[target.cpu]["NUMBA_CPU_FEATURES"].split(",") if target.cpu else []
    return [f[1:] for f in needs if not host_has(f[1:])]


def guided(name: str, folder: Path, *options: str) -> list[str]:
    """The command that runs a target under libFuzzer."""
    return [sys.executable, str(HERE / "guided.py"), name, str(folder), *options]


def run(name: str, folder: Path, seconds: int) -> Result:
    """Fuzz one target for some seconds, its start included."""
    own = folder / name
    (own / "corpus").mkdir(parents=True, exist_ok=True)
    before, start = set(own.iterdir()), time.monotonic()
    command = guided(
        name, folder, f"--seconds={seconds}", *LIMITS, "-print_final_stats=1",
        f"-artifact_prefix={own}/", str(own / "corpus"), str(corpus_of(name)),
    )  # fmt: skip
    status = _logged(command, environment(TARGETS[name]), own / "log")
    found = sorted(p for p in set(own.iterdir()) - before if not p.name.startswith(("log", "slow")))
    return Result(name, own / "log", time.monotonic() - start, found, status != 0)


def run_blind(name: str, folder: Path, seconds: int, inputs: float, seed: int) -> Result:
    """As `run`, without coverage, until there were enough inputs."""
    own, start = folder / name, time.monotonic()
    own.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, str(HERE / "blind.py"), name, f"--folder={folder}", f"--seed={seed}",
    ]  # fmt: skip
    limits = [f"--seconds={seconds}", f"--inputs={inputs}"]
    status = _logged([*command, *limits], dict(os.environ), own / "log")
    again = shlex.join([*command, f"--case={case_of(own)}"])
    found = sorted(own.glob(f"found-{seed}-*")) if status else []
    return Result(name, own / "log", time.monotonic() - start, found, status != 0, again)


def case_of(folder: Path) -> int:
    """Number of the last case that a blind run began; 0 if there was none."""
    path = folder / "case"
    return int.from_bytes(path.read_bytes(), sys.byteorder) if path.exists() else 0


def _logged(command: list[str], env: dict[str, str], log: Path) -> int:
    """The status of a command, which writes to a file."""
    with open(log, "wb") as out:
        return subprocess.run(command, env=env, stdout=out, stderr=out, cwd=ROOT).returncode


def differing(names: list[str], folder: Path) -> list[str]:
    """What decoders of the same segments do not agree on, a line for each case."""
    seen, bad = dict[tuple[str, str], tuple[str, str]](), list[str]()
    for name in names:
        path = folder / name / "digests"
        for line in path.read_text().splitlines() if path.exists() else ():
            seed, case, digest = line.split()
            first, other = seen.setdefault((seed, case), (digest, name))
            if first != digest:
                bad.append(f"--seed={seed} --case={case}: {name} and {other} differ")
    return bad


def fuzz(
    names: list[str], folder: Path, minutes: float, one: Callable[[str, Path, int], Result] = run
) -> int:
    """Fuzz targets, each with `one`, print what came of it, and return the exit status."""
    workers = min(len(os.sched_getaffinity(0)), len(names))
    seconds = max(1, round(60 * minutes * workers / len(names)))
    print(f"{len(names)} targets, {seconds} s each, {workers} at once; all is in {folder}")
    print(f"{'target':22}{'inputs':>10}{'per s':>10}{'edges':>8}{'features':>10}{'corpus':>14}")
    with ThreadPoolExecutor(workers) as pool:
        results = []
        for result in pool.map(lambda name: one(name, folder, seconds), names):
            print(result.row(), flush=True)
            results.append(result)
    bad = [r for r in results if r.died or r.found]
    for r in bad:
        last = r.log.read_text(errors="replace").split("\n")[-2:]
        print(f"\n{r.name}: {len(r.found)} found; {r.log} ends in: {' '.join(last)}")
        for path in r.found:
            print(f"  {sys.executable} tools/fuzz/campaign.py --replay {r.name} {path}")
        if r.again:
            print(f"  {r.again}")
    unlike = differing(names, folder)
    print("", *unlike, sep="\n")
    print(f"{len(results) - len(bad)} targets without a find, {len(bad)} with one")
    return int(bool(bad or unlike))


def replay(name: str, paths: Iterable[Path]) -> int:
    """Check inputs again, in this process: files, or all those of folders. Returns their number;
    the first that is a bug raises.
    """
    os.environ.update(ALL_VARIANTS[TARGETS[name].cpu] if TARGETS[name].cpu else {})
    n = 0
    for path in paths:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            try:
                TARGETS[name].check(file.read_bytes())
            except BaseException:
                print(f"fuzz: {name}: {file}", file=sys.stderr)
                raise
            n += 1
    return n


def merge(names: list[str], folder: Path) -> None:
    """Write corpora anew: for each edge that anything in the folder reaches, or a vector, the
    smallest file that reaches it.
    """
    chosen = {corpus_of(name) for name in names}
    together = [name for name in TARGETS if corpus_of(name) in chosen]
    for name in together:
        fresh = folder / name / "merged"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        corpus_of(name).mkdir(parents=True, exist_ok=True)
        sources = [folder / name / "corpus", corpus_of(name), *TARGETS[name].seeds]
        options = ("-merge=1", "-use_counters=0", f"-artifact_prefix={folder / name}/")
        command = guided(name, folder, *options, *LIMITS, str(fresh))
        subprocess.run(
            [*command, *(str(p) for p in sources if p.is_dir())],
            env=environment(TARGETS[name]), cwd=ROOT, check=True, capture_output=True,
        )  # fmt: skip
    for corpus in chosen:
        shutil.rmtree(corpus)
    for name in together:
        shutil.copytree(folder / name / "merged", corpus_of(name), dirs_exist_ok=True)
    for corpus in sorted(chosen):
        sizes = [p.stat().st_size for p in corpus.iterdir()]
        print(f"{corpus}: {len(sizes)} files, {sum(sizes)} bytes")


# ---- the command ---------------------------------------------------------------------------------
def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Fuzz wcodec's decoders, guided by coverage.")
    parser.add_argument("--minutes", type=float, default=5, help="for all targets together")
    parser.add_argument("--folder", type=Path, default=ROOT / "fuzz", help="of what is found")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--blind", action="store_true", help="many inputs, without coverage")
    parser.add_argument("--inputs", type=float, default=float("inf"), help="blind: a target's most")
    parser.add_argument("--seed", type=int, default=1, help="blind: other inputs")
    parser.add_argument("--merge", action="store_true", help="write tests/corpus anew")
    parser.add_argument("--replay", nargs="+", metavar=("TARGET", "FILE"), help="only these files")
    args = parser.parse_args(argv)
    if args.replay:
        n = replay(args.replay[0], map(Path, args.replay[1:]))
        print(f"{args.replay[0]}: {n} inputs, nothing found")
        return 0
    if not args.blind and find_spec("atheris") is None:
        print(f"fuzz: Python {sys.version.split()[0]} has no atheris: pip install atheris, which "
              "has wheels for Linux on x86-64", file=sys.stderr)  # fmt: skip
        return 2
    names = [name for name in args.targets if not lacking(TARGETS[name])]
    for name in set(args.targets) - set(names):
        print(f"{name}: not run, for this CPU lacks {', '.join(lacking(TARGETS[name]))}")
    if args.merge:
        merge(names, args.folder.absolute())
        return 0
    one = partial(run_blind, inputs=args.inputs, seed=args.seed) if args.blind else run
    return fuzz(names, args.folder.absolute(), args.minutes, one)


if __name__ == "__main__":
    sys.exit(main())
