"""`wcodec warmup`, `demo` and `bench`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from wcodec.cli.common import DONE, backend_of, fail, show

if TYPE_CHECKING:
    pass


def warmup(args: argparse.Namespace) -> int:
    """`wcodec warmup`."""
    from wcodec.cli.warmup import warm_up, warm_up_cuda
    from wcodec.reference.planes import DTYPES

    chosen = args.backend or os.environ.get("WCODEC_BACKEND") or "auto"
    # if it is named, without a GPU too
    of_cuda = chosen == "cuda" or backend_of(args).name == "cuda"
    if args.arch is not None and not of_cuda:
        args.error("--arch is for --backend cuda")
    if args.dtype and of_cuda:
        args.error("--dtype is not for --backend cuda, all of whose kernels are compiled")
    start, done = time.perf_counter(), list[dict[str, Any]]()
    wanted = [d for d in DTYPES if d.name in args.dtype] if args.dtype else list(DTYPES)
    name, steps = (
        ("cuda", warm_up_cuda(args.arch))
        if of_cuda
        else (backend_of(args).name, warm_up(backend_of(args), wanted))
    )
    for step in steps:
        done.append(step._asdict())
        if not args.json:
            print(f"{step.seconds:7.2f} s  {step.what}", flush=True)
    seconds = time.perf_counter() - start
    show(
        args,
        {"backend": name, "seconds": seconds, "steps": done},
        [f"{seconds:7.2f} s  in all, for backend {name}"],
    )
    return DONE


def demo(args: argparse.Namespace) -> int:
    """`wcodec demo`."""
    from wcodec.cli.demo import run_demo

    if run_demo(lambda line: print(line, flush=True), args.backend, args.threads):
        return DONE
    return fail("a file did not come back with the same SHA-256, or the backends' files differ")


def bench(args: argparse.Namespace) -> int:
    """`wcodec bench`."""
    from wcodec.cli.bench import as_text, bench_file

    def say(line: str) -> None:
        print("wcodec:", line, file=sys.stderr)

    report = bench_file(
        args.input, args.backend, args.threads, args.rounds, args.sample_nbytes, say
    )
    show(args, report, as_text(report))
    return DONE if report["same"] else fail("the tensors did not come back the same")
