"""One target, blindly: ``python tools/fuzz/blind.py TARGET [--inputs N] [--seconds S] [--seed 1]``.

No coverage is counted and most inputs are checked in a hurry, so that there are many more of them
than `guided` has: files of the corpus mutated, or thousands of corrupt segments in one call
(`bulk`), behind fences. What follows from a seed and the number of a case is the same each time:
``--case`` runs one again, and checks all of it. `campaign` runs this as a process of its own,
which a crash, 60 s of one case, or 4 GiB end.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import resource
import signal
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

PARENT: Final = os.getppid()  #: before the imports that take long
HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("tools/fuzz", "", "spec", "tests", "tests/backends")]

from bulk import Bulk, Pool, draw_bulk, draw_pool, spread  # noqa: E402
from fences import Heap  # noqa: E402
from fuzz_segments import Fault, check_reference, decode, fenced_numba  # noqa: E402
from targets import TARGETS, Target, corpus_of, fenced_device  # noqa: E402
from variants import ALL_VARIANTS  # noqa: E402

from wcodec.backends import load_backend  # noqa: E402
from wcodec.backends.protocol import Backend, Status  # noqa: E402
from wcodec.reference.checksums import crc32_each  # noqa: E402

MAX_NBYTES: Final = 8192  #: of an input, as `guided` has it
CASE_SECONDS: Final = 60  #: of CPU time that a case may take
DATA_NBYTES: Final = 4 << 30  #: that the process may take
SPOILT: Final = 0.05  #: share of the files whose segments are spoilt, which takes longest
WHOLE_EVERY: Final = 16  #: cases from one that is checked in full to the next
POOL_CASES: Final = 8  #: cases that are drawn from one pool of segments
REPORT_SECONDS: Final = 10
NUMBERS: Final = (
    0, 1, 2, 4, 15, 16, 17, 127, 128, 240, 241, 255, 256, 0x7FFF, 0xFFFF, 1 << 24, (1 << 31) - 1,
    1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip

#: runs a case; the inputs that it had, counted by what became of them
Run = Callable[[int], Counter[str]]


# ---- files ---------------------------------------------------------------------------------------
def bytewise(rng: random.Random) -> Callable[[bytes, int], bytes]:
    """What libFuzzer would do to bytes, more or less."""

    def change(data: bytes, most: int) -> bytes:
        out = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 6))):
            at, size = rng.randrange(len(out) + 1), rng.choice((1, 1, 2, 4, 8))
            kind, old = rng.random(), int.from_bytes(out[at : at + size], "little")
            if kind < 0.3:
                new = old ^ 1 << rng.randrange(8 * size)
            elif kind < 0.5:
                new = rng.choice(NUMBERS)
            elif kind < 0.65:
                new = old + rng.choice((-16, -1, 1, 16))
            elif kind < 0.75:
                new = rng.getrandbits(64)
            else:
                size *= rng.choice((1, 4))
                there = rng.randrange(len(out) + 1)
                piece = out[there : there + size] if kind < 0.95 else b""
                out[at : at + (size if kind > 0.85 else 0)] = piece
                continue
            out[at : at + size] = (new % (1 << 8 * size)).to_bytes(size, "little")
        return bytes(out[:most])

    return change


def run_files(name: str, seed: int, whole: bool, folder: Path) -> Run:
    """Runs a case that is one file, which is left in a folder if it raises."""
    target = TARGETS[name]
    mutate = partial(target.mutate, spoilt=SPOILT) if target.quick else target.mutate
    folders = [corpus_of(name), *target.seeds]
    paths = sorted(p for folder in folders for p in folder.iterdir())
    files = [p.read_bytes() for p in paths if p.stat().st_size <= MAX_NBYTES]
    good = [data for data in files if target.quick is not None and not target.quick(data)]
    files += good * (len(files) // max(1, len(good)))  # most of a corpus is refused

    def run(number: int) -> Counter[str]:
        rng = random.Random(f"{seed} {number}")
        data = mutate(rng.choice(files), MAX_NBYTES, rng.getrandbits(32), bytewise(rng))
        try:
            if target.quick is None or whole or number % WHOLE_EVERY == 0:
                target.check(data)
                return Counter(checked=1)
            return Counter([target.quick(data) or "accepted"])
        except Exception:
            (folder / f"found-{seed}-{number}").write_bytes(data)
            raise

    return run


# ---- segments ------------------------------------------------------------------------------------
def check_sample(
    rng: np.random.Generator, bulk: Bulk, status: NDArray[np.uint8], records: NDArray[np.uint32],
    words: NDArray[np.generic], n: int,
) -> None:  # fmt: skip
    """Some rows and columns of segments, `n` of each, are what the reference makes of them."""
    plan, g = bulk.plan, bulk.plan.geometry
    down, across = (np.sort(rng.permutation(side)[:n]) for side in g.grid)
    geometry, ids = g.select(down, across)
    part = type(plan)(plan.dtype, geometry, plan.segments.take(ids), plan.tables)
    payload = np.concatenate([bulk.payload[slice(*plan.offsets[k : k + 2])] for k in ids])
    some = np.empty((geometry.rows, geometry.cols), words.dtype)
    for i, k in enumerate(ids.tolist()):
        some[geometry.rectangle(i)] = words[g.rectangle(k)]
    check_reference(part, payload, status[ids], some)
    if not np.array_equal(records[ids], crc32_each(payload, part.offsets)):
        raise Fault("checksums of records are wrong")


def run_segments(target: Target, seed: int, whole: bool, tell: Callable[[int, int], None]) -> Run:
    """Runs a case that is a call. `tell` is given the number of the case and a checksum of what
    came out of it, the same for all decoders.
    """
    backend: Backend = load_backend(target.backend, 1)

    @lru_cache(maxsize=1)
    def pool(number: int) -> Pool:
        return draw_pool(np.random.default_rng([seed, 0, number]), number % 4 == 3)

    def run(number: int) -> Counter[str]:
        which = number // POOL_CASES
        if which % 4 == 3 and not backend.takes_spans:
            return Counter()
        rng, heap = np.random.default_rng([seed, 1, number]), Heap()
        bulk, heap.at_end = draw_bulk(rng, pool(which)), bool(number % 2)
        with fenced_numba(heap), fenced_device(heap):
            backend.close()
            try:
                status, records, words = decode(
                    backend, heap, bulk.plan, bulk.payload, bool(number // 2 % 2)
                )
            finally:
                backend.close()
        g, good = bulk.plan.geometry, status == Status.OK
        bad = spread(g, ~bulk.touched) & (words != bulk.expected)
        if bad.any() or not (good | bulk.touched).all():
            raise Fault("a segment that was left alone is not decoded as it should be")
        if target.backend != "reference":
            check_sample(rng, bulk, status, records, words, max(g.grid) if whole else 5)
        words = np.where(spread(g, good), words, words.dtype.type(0))
        tell(number, zlib.crc32(words.tobytes(), zlib.crc32(records, zlib.crc32(status))))
        return Counter({s.name: n for s in Status if (n := int((status == s).sum()))})

    return run


# ---- the command ---------------------------------------------------------------------------------
def work(args: argparse.Namespace) -> None:
    """Run cases until there were enough inputs, or for some seconds."""
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_NBYTES, DATA_NBYTES))
    target, start = TARGETS[args.target], time.monotonic()
    own: Path = args.folder / args.target
    own.mkdir(parents=True, exist_ok=True)
    whole, number, done = args.case is not None, args.case or args.first, Counter[str]()
    case = np.memmap(own / "case", np.int64, "w+", shape=1)
    with open(
        own / "digests", "a" if whole else "w", buffering=1
    ) as digests:  # lines are whole, always

        def tell(number: int, digest: int) -> None:
            if not whole:
                print(args.seed, number, f"{digest:08x}", file=digests)

        if target.backend:
            run = run_segments(target, args.seed, whole, tell)
        else:
            run = run_files(args.target, args.seed, whole, own)
        told = 0.0
        while done.total() < args.inputs and (seconds := time.monotonic() - start) < args.seconds:
            if seconds > told + REPORT_SECONDS:
                told = seconds
                report(done, number, seconds)
                if os.getppid() != PARENT:  # it was killed, and left this process behind
                    sys.exit(1)
            case[0] = number
            signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS)
            done += run(number)
            number += 1
            if whole:
                break
    report(done, number, time.monotonic() - start)
    print(f"number_of_executed_units: {done.total()}")


def report(done: Counter[str], number: int, seconds: float) -> None:
    """Say what was done so far, in a line that begins as those of libFuzzer."""
    what = ", ".join(f"{name} {n}" for name, n in done.most_common())
    rate = done.total() / max(seconds, 1e-9)
    print(
        f"#{done.total()} cases to {number}, {seconds:.0f} s, {rate:.0f} a second: {what}",
        flush=True,
    )


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Fuzz one decoder, without coverage.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--inputs", type=float, default=float("inf"), help="or a few more")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="only the case of this number, checked in full")
    parser.add_argument("--folder", type=Path, default=ROOT / "fuzz")
    args = parser.parse_args(argv)
    os.environ.update(ALL_VARIANTS[TARGETS[args.target].cpu] if TARGETS[args.target].cpu else {})
    faulthandler.enable()
    work(args)


if __name__ == "__main__":
    main()
