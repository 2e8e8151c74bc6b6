"""Whether instructions or memory bound the linear layers from fixed-rate weights: counted in machine code; no GPU is needed.

    python benchmarks/sass_linear.py                   # for sm_90, and an H200
    python benchmarks/sass_linear.py --listing         # the loops themselves

NVRTC compiles ``kernels/linear.cu``, cuobjdump disassembles it, as for sass.py. The loop is the innermost one with matrix
instructions; it multiplies tiles of 1024 weights, 32 a lane, and all its instructions count. Rates of an H200's multiprocessor, in
lanes a clock: 128 instructions issued, 64 of the ALU, 64 of multiply-adds; in clocks a warp: 4 for a vector of 16 bytes a lane from
shared or global memory, 1/2 for a matrix instruction at the data sheet's peak. They are from documents, not measured. The
bandwidth's bound is what the device copies, over 12 bits a weight; patches, x and y are left out. Instructions outside of the
loop, latencies and waiting are too: a bound by instructions well above that by bandwidth is needed, and does not suffice.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import NamedTuple

from sass import CLASS_OF, Flow, Instruction, disassemble

from wcodec.backends.cuda.compiler import compile_with_usage
from wcodec.backends.cuda.runtime import read_source

GROUPS = {"linear_8": 1, "linear_16": 2, "linear_32": 4, "linear_64": 8}  #: of 8 rows of x that a kernel multiplies
LANE_WEIGHTS = 32  #: of a tile
TILE_PRODUCTS = 4  #: matrix instructions of a tile, a group
MULTIPLY_ADD = ("IMAD", "IMAD32I", "FFMA", "FMUL", "HFMA2", "HMUL2", "FADD")

PROCESSORS, CLOCK_HZ, COPY_NBYTES = 132, 1.98e9, 4.3e12  #: an H200: assumed, not measured here
ISSUE, ALU, FMA = 128, 64, 64
NEEDED = COPY_NBYTES / 1.5 / PROCESSORS / CLOCK_HZ  #: weights a clock and multiprocessor that memory gives


class Count(NamedTuple):
    """Instructions of a lane in the loop, for each weight, and weights a clock and multiprocessor that they allow, by bound."""

    instructions: float
    classes: dict[str, float]
    bounds: dict[str, float]


def loop_of(flow: Flow) -> list[Instruction]:
    """Instructions of the innermost loop with matrix instructions."""

    def products(blocks: frozenset[int]) -> int:
        return sum(i.op == "HMMA" for name in blocks for i in flow.blocks[name])

    loops = [loop for loop in flow.loops() if products(loop.blocks)]
    if not loops:
        raise SystemExit("there is no loop of matrix instructions")
    inner = min(loops, key=lambda loop: len(loop.blocks))
    if any(products(loop.blocks) != products(inner.blocks) for loop in loops):
        raise SystemExit("there are matrix instructions outside of the innermost loop")
    return [i for name in sorted(inner.blocks) for i in flow.blocks[name]]


def class_of(i: Instruction) -> str:
    """The pipe that runs an instruction."""
    if i.op == "HMMA":
        return "matrix"
    if i.op in MULTIPLY_ADD:
        return "multiply"
    return CLASS_OF.get(i.op, "uniform" if i.op[0] == "U" else "other")


def count(kernel: str, loop: list[Instruction]) -> Count:
    """Of a loop, what a weight takes."""
    n_products = sum(i.op == "HMMA" for i in loop)
    tiles, rest = divmod(n_products, TILE_PRODUCTS * GROUPS[kernel])
    if rest or not tiles:
        raise SystemExit(f"{kernel}: {n_products} matrix instructions are no whole tiles")
    weights = LANE_WEIGHTS * tiles
    classes = {k: n / weights for k, n in Counter(map(class_of, loop)).most_common()}
    vectors = sum(i.op in ("LDS", "LDG") and ".128" in i.name for i in loop)
    bounds = {
        "issue": ISSUE * weights / len(loop),
        "alu": ALU / classes["alu"],
        "multiply": FMA / classes["multiply"],
        "vectors": 32 * weights / (4 * vectors),
        "matrix": 32 * weights / (n_products / 2),
    }
    return Count(len(loop) / weights, classes, bounds)


def main() -> None:
    """Count and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--arch", type=int, default=90, help="compute capability without the point (default: 90)")
    p.add_argument("--listing", action="store_true", help="print the loops")
    args = p.parse_args()
    cubin, usage, _ = compile_with_usage(read_source("linear"), args.arch)
    print(f"an H200's memory gives {NEEDED:.1f} weights a clock and multiprocessor; sm_{args.arch} code allows:")
    slow = []
    for kernel in GROUPS:
        loop = loop_of(Flow(disassemble(cubin, kernel)))
        result = count(kernel, loop)
        if args.listing:
            print(*(f"{i.address:05x} {i.predicate:5} {i.name} {i.operands}" for i in loop), sep="\n")
        bound, least = min(result.bounds.items(), key=lambda item: item[1])
        print(f"{kernel}: {least:.1f} ({bound}), {least / NEEDED:.2f} times what memory gives")
        print(f"    {result.instructions:.2f} instructions a weight, {usage[kernel].registers} registers")
        print(f"    instructions a weight: {', '.join(f'{k} {n:.2f}' for k, n in result.classes.items())}")
        print(f"    weights a clock: {', '.join(f'{k} {n:.1f}' for k, n in result.bounds.items())}")
        if least < NEEDED:
            slow.append(kernel)
    if "linear_8" in slow:
        raise SystemExit("linear_8 is bound by instructions, not by memory")


if __name__ == "__main__":
    main()
