"""Whether instructions or memory bound products with operands: counted in machine code;
no GPU is needed.

    python benchmarks/gpu/sass_linear.py                   # for sm_90, and an H200
    python benchmarks/gpu/sass_linear.py --listing raw_8   # the way once around a loop
    python benchmarks/gpu/sass_linear.py --out sass.json

NVRTC compiles ``kernels/linear_*.cu``, cuobjdump disassembles it, as for sass.py. What is counted
is the way once around the loop with the most matrix instructions, and symbols decoded: whole tiles,
without patches, within a segment. Rates of an H200's multiprocessor, in lanes a clock: 128
instructions issued, 64 of the ALU, 64 of multiply-adds; in clocks a warp: 4 for a vector of 16
bytes a lane from shared memory, 2 for the 8 bytes a lane of a load, 1/2 for a matrix instruction at
the data sheet's peak. They are from documents, not measured. The bandwidth's bound is what the
device copies, over the bits of a weight: 12 of bf16, 8 of a byte, and for coded ones those of a
Gaussian (10.65, 7.25 and 6.7). Instructions outside of the loop, latencies and waiting are left
out: a bound by instructions well above that by bandwidth is needed, and does not suffice.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from kernel_usage import compile_with_usage
from sass import CLASS_OF, STEPS, Flow, Instruction, described, disassemble

from wcodec.backends.cuda.runtime import read_source

BATCHES = {"8": 1, "16": 2, "32": 4, "64": 8}  #: groups of 8 rows of x that a kernel multiplies
#: of those that are counted
KINDS = ("linear_bf16_bf16", "linear_int8_bf16", "linear_int8_fp16", "linear_e4m3_bf16")
LANE_WEIGHTS = 16  #: of a lane, in two tiles
TILE_PRODUCTS = 2  #: matrix instructions for them, a group
BITS = {
    ("bf16", "raw"): 12.0, ("bf16", "coded"): 10.65, ("int8", "raw"): 8.0,
    ("int8", "coded"): 7.25, ("e4m3", "raw"): 8.0, ("e4m3", "coded"): 6.7,
}  # fmt: skip
MULTIPLY_ADD = ("IMAD", "IMAD32I", "FFMA", "FMUL", "HFMA2", "HMUL2", "FADD")

PROCESSORS, CLOCK_HZ, COPY_NBYTES = 132, 1.98e9, 4.3e12  #: an H200: assumed, not measured here
ISSUE, ALU, FMA = 128, 64, 64


class Count(NamedTuple):
    """Instructions of a lane in the loop, for each weight, and weights a clock and multiprocessor
    that they allow, by bound.
    """

    instructions: float
    classes: dict[str, float]
    bounds: dict[str, float]


def is_mark(i: Instruction) -> bool:
    """Whether the hot path has as many of these as it can."""
    return i.op == "HMMA" or i.is_ballot


def hot_path(flow: Flow, form: str) -> list[Instruction]:
    """The way once around the loop over whole tiles that are loaded ahead."""
    found = []
    loops = [
        loop for loop in flow.loops() if flow.marks(tuple(loop.blocks), lambda i: i.op == "HMMA")
    ]
    for loop in (a for a in loops if not any(b.blocks < a.blocks for b in loops)):
        path = flow.hot_path(loop, is_mark)
        products, ballots = flow.marks(path, lambda i: i.op == "HMMA"), flow.ballots(path)
        if products and (ballots == 0 if form == "raw" else ballots == 2 * STEPS):
            found.append((products, -sum(len(flow.blocks[name]) for name in path), path))
    if not found:
        raise SystemExit("there is no loop of matrix instructions")
    return [i for name in max(found)[2] for i in flow.blocks[name]]


def class_of(i: Instruction) -> str:
    """The pipe that runs an instruction."""
    if i.op == "HMMA":
        return "matrix"
    if i.op in MULTIPLY_ADD:
        return "multiply"
    return CLASS_OF.get(i.op, "uniform" if i.op[0] == "U" else "other")


def count(code: list[Instruction], groups: int) -> Count:
    """What a weight takes."""
    n_products = sum(i.op == "HMMA" for i in code)
    tiles, rest = divmod(n_products, TILE_PRODUCTS * groups)
    if rest or not tiles:
        raise SystemExit(f"{n_products} matrix instructions are no whole tiles")
    weights = LANE_WEIGHTS * tiles
    classes = {k: n / weights for k, n in Counter(map(class_of, code)).most_common()}
    clocks = sum(
        4 if ".128" in i.name else 2 if ".64" in i.name else 1
        for i in code
        if i.op in ("LDS", "LDG")
    )
    bounds = {
        "issue": ISSUE * weights / len(code),
        "alu": ALU / classes["alu"],
        "multiply": FMA / classes["multiply"],
        "loads": 32 * weights / clocks,
        "matrix": 32 * weights / (n_products / 2),
    }
    return Count(len(code) / weights, classes, bounds)


def measure(kind: str, arch: int, listing: str) -> list[dict[str, Any]]:
    """Figures of all kernels of a source."""
    cubin, usage, _ = compile_with_usage(read_source(kind), arch)
    out = []
    for form in ("raw", "coded"):
        needed = COPY_NBYTES * 8 / BITS[kind.split("_")[1], form] / PROCESSORS / CLOCK_HZ
        for batch, groups in BATCHES.items():
            kernel = f"{kind}_{form}_{batch}"
            code = hot_path(Flow(disassemble(cubin, kernel)), form)
            result = count(code, groups)
            if listing and kernel.endswith(listing):
                print(
                    *(f"{i.address:05x} {i.predicate:5} {i.name} {i.operands}" for i in code),
                    sep="\n",
                )
            bound, least = min(result.bounds.items(), key=lambda item: item[1])
            out.append({
                "kernel": kernel, "instructions_a_weight": round(result.instructions, 2),
                "registers": usage[kernel].registers, "bound": bound,
                "weights_a_clock": round(least, 1), "memory_gives": round(needed, 1),
                "ratio": round(least / needed, 2),
                "classes": {k: round(n, 2) for k, n in result.classes.items()},
            })  # fmt: skip
    return out


def main() -> None:
    """Count and print."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--arch", type=int, default=90, help="compute capability without the point (default: 90)"
    )
    p.add_argument(
        "--listing",
        default="",
        help="print the way around the loop of kernels whose names end with this",
    )
    p.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = p.parse_args()
    rows = [row for kind in KINDS for row in measure(kind, args.arch, args.listing)]
    print(
        f"{'kernel':28} {'instr/w':>8} {'regs':>5} {'w/clock':>8} {'bound':>9} {'memory':>7} "
        f"{'ratio':>6}"
    )
    for r in rows:
        print(
            f"{r['kernel']:28} {r['instructions_a_weight']:8.2f} {r['registers']:5} "
            f"{r['weights_a_clock']:8.1f} {r['bound']:>9} {r['memory_gives']:7.1f} "
            f"{r['ratio']:6.2f}"
        )
    if args.out:
        args.out.write_text(
            json.dumps({"machine": described(), "arch": args.arch, "kernels": rows}, indent=1)
            + "\n"
        )
    if slow := [r["kernel"] for r in rows if r["kernel"].endswith("raw_8") and r["ratio"] < 1]:
        raise SystemExit(f"bound by instructions, not by memory: {', '.join(slow)}")


if __name__ == "__main__":
    main()
