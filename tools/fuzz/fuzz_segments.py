"""Corrupt segments into a backend's decoder: ``python tools/fuzz/fuzz_segments.py [--segments
100000] [--seed N] [--backend numba]``.

Nothing may crash, and nothing may be touched beyond a buffer. The payload (which cannot be written
to), the output, and all that the numba backend allocates stand against pages that cannot be
touched, on one side in half of the runs and on the other side in the others, with canaries in the
rest of their pages. Segments that were left alone among the corrupt ones must decode as before. A
sample is compared with the reference.

A backend of an emulated device has its buffers to itself: they end where their blocks of the heap
end, which AddressSanitizer watches in a process that has it (``tests/cuda_emulator``).

The work is done in a process of its own, whose crash is reported. The exit status is 1 after any
fault, with the command that shows it again.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(ROOT / "tools" / "fuzz"),
    str(ROOT),
    str(ROOT / "tests"),
    str(ROOT / "tests" / "backends"),
]

from corruptions import corrupted, draw_case  # noqa: E402
from fences import Heap  # noqa: E402
from plans import Case  # noqa: E402

from wcodec.backends import load_backend  # noqa: E402
from wcodec.backends.protocol import Backend, SegmentPlan, Status  # noqa: E402
from wcodec.reference import decoding  # noqa: E402
from wcodec.reference.checksums import crc32_each  # noqa: E402

ROUNDS: Final = 8  #: corruptions of a case
#: rounds from one that is compared with the reference to the next; no multiple of `ROUNDS`
CHECK_EVERY: Final = 13


class Fault(Exception):
    """What a backend did wrong."""


# ---- a backend behind fences ---------------------------------------------------------------------
class _FencedNumpy:
    """Stands for the module numpy in a module that allocates."""

    def __init__(self, heap: Heap) -> None:
        self.empty, self.zeros = heap.empty, heap.zeros

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _fenced(base: Any, heap: Heap) -> Any:
    """A class whose attributes that are arrays stand behind fences,
    and with them all else that its `arrays` or `packed` hands out.
    """

    def set_attribute(self: Any, name: str, value: Any) -> None:
        object.__setattr__(self, name, heap.copy(value) if isinstance(value, np.ndarray) else value)

    def fenced(self: Any, values: Iterable[Any]) -> Iterator[Any]:
        own = {id(value) for value in vars(self).values()}
        for value in values:
            array = getattr(value, "value", value)  # of what is packed
            yield array if id(array) in own else heap.copy(array)

    def arrays(self: Any, rest: Any) -> tuple[Any, ...]:
        return tuple(fenced(self, base.arrays(self, rest)))

    def packed(self: Any) -> Any:
        streams = base.packed(self).value
        return tuple(fenced(self, streams))

    methods = {"arrays": arrays, "packed": packed}
    return type(base.__name__, (base,), {"__setattr__": set_attribute, **methods})


@contextmanager
def fenced_numba(heap: Heap) -> Iterator[None]:
    """Let the numba backend, if it is in use, allocate behind fences. Modules with kernels keep
    their numpy: numba reads it.
    """
    modules = [
        sys.modules[name]
        for name in map("wcodec.backends.numba.{}".format, ("backend", "coding", "jobs", "scratch"))
        if name in sys.modules
    ]
    saved = [
        {
            name: getattr(module, name)
            for name in ("np", "StreamScratch", "Sums")
            if hasattr(module, name)
        }
        for module in modules
    ]
    for module, values in zip(modules, saved, strict=True):
        for name, value in values.items():
            setattr(module, name, _FencedNumpy(heap) if name == "np" else _fenced(value, heap))
    try:
        yield
    finally:
        for module, values in zip(modules, saved, strict=True):
            vars(module).update(values)


def decode(
    backend: Backend, heap: Heap, plan: SegmentPlan, payload: NDArray[np.uint8], at_once: bool
) -> tuple[Any, Any, Any]:
    """Status of each segment, checksums of records, and words, out of memory with fences."""
    g = plan.geometry
    source = heap.copy(payload, frozen=True)
    out = heap.empty((g.rows, g.cols), plan.dtype.word_type)
    on_host = backend.target(out) is out
    if not on_host:  # sanitizers see where an emulated device's memory ends
        source, out = backend.to_device(source), backend.target(out)
    both = getattr(backend, "decode_with_checksums", None) if at_once else None
    if both is not None:
        result, (records, _) = both(plan, source, out)
    else:
        records = backend.checksums(source, plan.offsets)
        result = backend.decode_segments(plan, source, out)
    if not heap.whole:
        raise Fault("canaries beside a buffer were written to")
    return (
        np.array(getattr(result, "status", result)),
        np.array(records),
        out if on_host else backend.to_host(out),
    )


# ---- checks --------------------------------------------------------------------------------------
def check_words(
    plan: SegmentPlan,
    ids: NDArray[np.int64],
    status: NDArray[np.uint8],
    words: Any,
    expected: Any,
    why: str,
) -> None:
    """Some segments are OK, and have the words that they should have."""
    for k in ids.tolist():
        where = plan.geometry.rectangle(k)
        if status[k] != Status.OK or not np.array_equal(words[where], expected[where]):
            raise Fault(f"segment {k}, which {why}, has status {status[k]} or other words")


def check_reference(
    plan: SegmentPlan, payload: NDArray[np.uint8], status: NDArray[np.uint8], words: Any
) -> None:
    """Statuses are those of the reference, and words where they are OK."""
    expected = np.empty_like(words)
    good = decoding.decode_segments(plan, payload, expected)
    if not np.array_equal(status, good):
        k = int(np.flatnonzero(status != good)[0])
        raise Fault(f"segment {k} has status {status[k]}, and {good[k]} in the reference")
    check_words(
        plan, np.flatnonzero(good == Status.OK), status, words, expected, "the reference decodes"
    )


class Tally:
    """What was done so far."""

    def __init__(self) -> None:
        self.statuses, self.n_calls, self.n_compared = Counter[int](), 0, 0

    @property
    def n_segments(self) -> int:
        """Corrupt segments decoded."""
        return self.statuses.total()

    def add(self, statuses: NDArray[np.uint8], compared: bool) -> None:
        """Count a call's corrupt segments."""
        self.statuses.update(statuses.tolist())
        self.n_calls += 1
        self.n_compared += statuses.size if compared else 0

    def summary(self) -> dict[str, Any]:
        """For people and for JSON."""
        by_name = {s.name: self.statuses[s] for s in Status}
        return {
            "segments": self.n_segments,
            "calls": self.n_calls,
            "compared": self.n_compared,
            "statuses": by_name,
        }


def run_case(backend: Backend, seed: int, index: int, tally: Tally, small: bool = False) -> None:
    """All rounds of one case. In half of them the backend starts without scratch,
    so that it is as small as it can be.
    """
    rng, heap = np.random.default_rng([seed, index]), Heap()
    case: Case = draw_case(rng, small)
    expected = np.empty_like(case.words)
    decoding.decode_segments(case.decoding, case.payload, expected)
    with fenced_numba(heap):
        backend.close()
        for turn in range(ROUNDS):
            heap.at_end = bool((index + turn) % 2)
            plan, payload, touched = corrupted(rng, case)
            status, records, words = decode(
                backend, heap, plan, payload, bool((index + turn) // 2 % 2)
            )
            check_words(plan, np.flatnonzero(~touched), status, words, expected, "was left alone")
            compared = (index * ROUNDS + turn) % CHECK_EVERY == 0
            if compared:
                check_reference(plan, payload, status, words)
                if not np.array_equal(records, crc32_each(payload, plan.offsets)):
                    raise Fault("checksums of records are wrong")
            tally.add(status[touched], compared)
            if turn % 4 > 1:
                backend.close()
                heap.forget()
        backend.close()


# ---- the command ---------------------------------------------------------------------------------
def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        description="Corrupt segments into a backend's decoder, its memory behind fences."
    )
    parser.add_argument(
        "--segments",
        type=int,
        default=100_000,
        metavar="N",
        help="how many corrupt segments, or a few more",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--case", type=int, help="only the case of this number, as the report of a fault names it"
    )
    parser.add_argument("--backend", default="numba", help="a name, or package.module:Class")
    parser.add_argument(
        "--small",
        action="store_true",
        help="segments of a few hundred words, many at once: for emulated devices",
    )
    parser.add_argument("--json", action="store_true", help="the result as an object")
    return parser.parse_args(argv)


def work(args: argparse.Namespace, case: Any) -> None:
    """Run cases until there were enough segments;
    `case` tells the parent which one is being run.
    """
    faulthandler.enable()
    backend = load_backend(args.backend, 1)
    tally = Tally()
    start = time.monotonic()
    parent = multiprocessing.parent_process()
    with progress(args.segments) as advance:
        index = args.case or 0
        while tally.n_segments < args.segments:
            # it was killed, and left this process behind
            if parent is not None and not parent.is_alive():
                sys.exit(1)
            before, case.value = tally.n_segments, index
            try:
                run_case(backend, args.seed, index, tally, args.small)
            except Fault as fault:
                print(f"fuzz: {fault}", file=sys.stderr)
                sys.exit(1)
            advance(tally.n_segments - before)
            index += 1
            if args.case is not None:
                break
    report(
        args,
        {"backend": args.backend, **backend.info(), "seed": args.seed, **tally.summary()},
        time.monotonic() - start,
    )


@contextmanager
def progress(total: int) -> Iterator[Any]:
    """A bar on a terminal, if tqdm is there."""
    if not sys.stderr.isatty():
        yield lambda n: None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda n: None
        return
    with tqdm(total=total, unit="segment", leave=False) as bar:
        yield bar.update


def report(args: argparse.Namespace, result: dict[str, Any], seconds: float) -> None:
    """Print what was done."""
    if args.json:
        print(json.dumps({**result, "seconds": round(seconds, 1)}))
        return
    statuses = ", ".join(f"{name} {n}" for name, n in result["statuses"].items())
    backend = (
        f"{result['backend']} ({result['variant']})" if "variant" in result else result["backend"]
    )
    print(
        f"{result['segments']} corrupt segments in {result['calls']} calls, backend {backend}, "
        f"seed {result['seed']}, {seconds:.0f} s: {statuses}; {result['compared']} compared with "
        "the reference"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the work in a process of its own."""
    args, context = parse(argv), multiprocessing.get_context("spawn")
    case = context.Value("q", -1, lock=False)
    process = context.Process(target=work, args=(args, case))
    process.start()
    process.join()
    if process.exitcode == 0:
        return 0
    code = process.exitcode or 0
    what = signal.Signals(-code).name if code < 0 else f"exit {code}"
    small = "--small " if args.small else ""
    again = (
        f"python tools/fuzz/fuzz_segments.py --backend {args.backend} --seed {args.seed} "
        f"{small}--case {case.value}"
    )
    print(f"fuzz: {what} in case {case.value}; again: {again}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
