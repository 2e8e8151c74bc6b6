"""Instructions a weight in the inner loops of the CUDA decoders, counted in their machine code;
no GPU is needed.

    python benchmarks/gpu/sass.py                               # the bf16 pair decoder, for sm_90
    python benchmarks/gpu/sass.py --kernels all --arch 80,90,120
    python benchmarks/gpu/sass.py --listing                     # the hot path itself

NVRTC compiles ``kernels/decode.cu``; cuobjdump disassembles it
(``pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm``: the first calls the second). How it is
counted: basic blocks and natural loops are found from the branches. Each decoded symbol of a lane
has one ballot, and the loop is the innermost one with the fewest instructions a ballot. Its hot
path is, of all paths once around it that pass the most ballots, the one with the fewest
instructions; every instruction on it counts, predicated or not. What is beside it is listed apart,
with the share of it that a stream of `--bits` a symbol adds: a warp slides its buffer once in 1024
bytes. A group is 128 symbols: 256 weights by pairs, 128 by bytes. Results go to
``benchmarks/results/`` as JSON.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from typing import Any, NamedTuple

from kernel_usage import Usage, compile_with_usage

from wcodec.backends.cuda.runtime import SOURCES, read_source

sys.path.append(str(Path(__file__).resolve().parents[1] / "cpu"))
from bench_files import machine

RESULTS = Path(__file__).resolve().parents[1] / "results"
PACKAGES = ("cupy-cuda13x", "nvidia-cuda-nvrtc", "nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm")
MOST = {"decode_pairs_2": 16.0}  #: instructions a weight that a kernel may take
STEPS = 4  #: symbols that a lane decodes of a group
SLIDE_NBYTES = 1024  #: of a stream, from one slide of a warp's buffer to the next

#: Classes of instructions by the pipe that runs them; what is not here is `other`.
CLASSES = {
    "alu": (
        "LOP3 SHF PRMT ISETP IADD3 IADD VOTE LEA PLOP3 SEL VIADD MOV VIMNMX IMNMX FLO BMSK SGXT "
        "IABS P2R R2P CS2R VIADDMNMX"
    ),
    "multiply": "IMAD IMAD32I FFMA IDP",
    "popc": "POPC BREV",
    "shared": "LDS STS",
    "global": "LDG STG LD ST LDC RED ATOMG",
    "control": "BRA BRX EXIT BSSY BSYNC WARPSYNC BAR NOP CALL RET BREAK YIELD",
}  # fmt: skip
CLASS_OF = {op: name for name, ops in CLASSES.items() for op in ops.split()}


class Instruction(NamedTuple):
    """One line of a disassembly."""

    address: int
    predicate: str
    name: str
    operands: str

    @property
    def op(self) -> str:
        return self.name.split(".")[0]

    @property
    def is_ballot(self) -> bool:
        return self.name == "VOTE.ANY"

    @property
    def is_branch(self) -> bool:
        """BRA.DIV is not taken while a warp is together; a call with a predicate does not come
        back, as this compiler uses it.
        """
        return (self.op == "BRA" and self.name != "BRA.DIV") or (
            self.op == "CALL" and bool(self.predicate)
        )

    @property
    def ends_block(self) -> bool:
        return self.is_branch or (self.op in ("EXIT", "RET", "BRX") and not self.predicate)

    @property
    def targets(self) -> Iterator[int]:
        """Where it may go, from the end of a block."""
        conditional = self.predicate or re.match(r"!?U?P\d", self.operands)
        if self.is_branch:
            yield int(re.findall(r"0x([0-9a-f]+)", self.operands)[-1], 16)
        if not self.ends_block or (self.is_branch and conditional):
            yield self.address + 16


class Loop(NamedTuple):
    """A natural loop: its first block, those that go back to it, and all."""

    head: int
    latches: frozenset[int]
    blocks: frozenset[int]


def tool(package: str, name: str) -> str:
    """Path of a program of a package, or of one that is installed otherwise."""
    try:
        found = [str(f.locate()) for f in files(package) or () if f.name == name]
    except PackageNotFoundError:
        found = []
    path = found[0] if found else shutil.which(name)
    if path is None:
        raise SystemExit(f"{name} is not installed: pip install {package}")
    return path


def disassemble(cubin: bytes, kernel: str) -> list[Instruction]:
    """Instructions of a kernel."""
    disassembler = tool("nvidia-cuda-nvdisasm", "nvdisasm")
    env = {
        **os.environ,
        "NVDISASM_PATH": str(Path(disassembler).parent),
        "PATH": f"{Path(disassembler).parent}:{os.environ['PATH']}",
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernels.cubin")
        path.write_bytes(cubin)
        command = [tool("nvidia-cuda-cuobjdump", "cuobjdump"), "-sass", "-fun", kernel, str(path)]
        text = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    lines = re.findall(
        r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:\{ )?(@!?U?P\d+|@!?U?PT)?\s*([A-Z][\w.]*)\s*(.*?)\s*;",
        text,
        re.MULTILINE,
    )
    if [int(address, 16) for address, *_ in lines] != list(
        range(0, 16 * len(lines), 16)
    ) or not lines:
        raise SystemExit(f"{kernel}: cuobjdump's output is not understood")
    return [
        Instruction(int(address, 16), predicate, name, operands)
        for address, predicate, name, operands in lines
    ]


# ---- control flow --------------------------------------------------------------------------------
class Flow:
    """Basic blocks of a kernel, named by their addresses, and its loops."""

    def __init__(self, code: list[Instruction]) -> None:
        starts = (
            {code[0].address}
            | {t for i in code if i.is_branch for t in i.targets}
            | {i.address + 16 for i in code if i.ends_block}
        )
        self.blocks: dict[int, list[Instruction]] = {}
        for i in code:
            if i.address in starts:
                block = self.blocks[i.address] = []
            block.append(i)
        self.first = code[0].address
        self.after: dict[int, list[int]] = {}
        left = [self.first]
        while left:  # what only a warp that is apart comes to is left out
            name = left.pop()
            if name not in self.after:
                self.after[name] = [t for t in self.blocks[name][-1].targets if t in self.blocks]
                left.extend(self.after[name])
        self.blocks = {name: block for name, block in self.blocks.items() if name in self.after}
        self.before: dict[int, list[int]] = {name: [] for name in self.blocks}
        for name, targets in self.after.items():
            for target in targets:
                self.before[target].append(name)

    def _dominators(self) -> dict[int, set[int]]:
        """Blocks that every way from the start to a block passes."""
        every = set(self.blocks)
        over = {name: {name} if name == self.first else every for name in self.blocks}
        changed = True
        while changed:
            changed = False
            for name in self.blocks:
                new = {name}.union(
                    set.intersection(*(over[p] for p in self.before[name]))
                    if name != self.first
                    else ()
                )
                changed |= new != over[name]
                over[name] = new
        return over

    def loops(self) -> list[Loop]:
        """All of them."""
        over, found = self._dominators(), []
        for head in self.blocks:
            latches = frozenset(p for p in self.before[head] if head in over[p])
            body, left = {head}, list(latches)
            while left:
                name = left.pop()
                if name not in body:
                    body.add(name)
                    left.extend(self.before[name])
            if latches:
                found.append(Loop(head, latches, frozenset(body)))
        return found

    def marks(
        self, names: frozenset[int] | tuple[int, ...], mark: Callable[[Instruction], bool]
    ) -> int:
        """Instructions of a kind in all these blocks."""
        return sum(mark(i) for name in names for i in self.blocks[name])

    def ballots(self, names: frozenset[int] | tuple[int, ...]) -> int:
        """Of all these blocks."""
        return self.marks(names, lambda i: i.is_ballot)

    def hot_path(
        self, loop: Loop, mark: Callable[[Instruction], bool] = lambda i: i.is_ballot
    ) -> tuple[int, ...]:
        """Blocks of the way once around a loop with the most marked instructions,
        and of those with the fewest instructions.
        """
        inner = {(latch, other.head) for other in self.loops() for latch in other.latches}

        @functools.cache
        def best(name: int) -> tuple[int, int, tuple[int, ...]] | None:
            ways = [
                best(t) for t in self.after[name] if t in loop.blocks and (name, t) not in inner
            ]
            rest = [way for way in ways if way is not None] + (
                [(0, 0, ())] if name in loop.latches else []
            )
            if not rest:
                return None
            missed, n, path = min(rest)
            return missed - self.marks((name,), mark), n + len(self.blocks[name]), (name, *path)

        way = best(loop.head)
        return way[2] if way else ()


def find_loop(flow: Flow) -> tuple[Loop, tuple[int, ...]]:
    """The innermost loop with the fewest instructions a ballot, and its hot path."""
    with_ballots = [loop for loop in flow.loops() if flow.ballots(loop.blocks)]
    innermost = [a for a in with_ballots if not any(b.blocks < a.blocks for b in with_ballots)]
    ways = [(loop, flow.hot_path(loop)) for loop in innermost]
    ways = [
        (loop, path)
        for loop, path in ways
        if flow.ballots(path) % STEPS == 0 and flow.ballots(path)
    ]
    if not ways:
        raise SystemExit("there is no loop that decodes whole groups")
    return min(
        ways, key=lambda way: sum(len(flow.blocks[name]) for name in way[1]) / flow.ballots(way[1])
    )


# ---- counts --------------------------------------------------------------------------------------
@functools.cache
def build(arch: int) -> tuple[bytes, dict[str, Usage]]:
    """The decoders, and what they take."""
    cubin, usage, _ = compile_with_usage(read_source("decode"), arch)
    return cubin, usage


def count(kernel: str, arch: int, bits: float, listing: bool) -> dict[str, Any]:
    """All figures of a kernel."""
    cubin, usage = build(arch)
    flow = Flow(disassemble(cubin, kernel))
    loop, path = find_loop(flow)
    hot = [i for name in path for i in flow.blocks[name]]
    if not any(i.op in ("STG", "ST") for i in hot):
        raise SystemExit(f"{kernel}: nothing is stored on the path that was taken for the hot one")
    if listing:
        print(*(f"{i.address:05x} {i.predicate:5} {i.name} {i.operands}" for i in hot), sep="\n")
    groups = flow.ballots(path) // STEPS
    weights = STEPS * (2 if "pairs" in kernel else 1)  # of a lane, in a group
    beside = [slow_path(flow.blocks[name]) for name in sorted(loop.blocks - set(path))]
    slides = STEPS * 32 * bits / 8 / SLIDE_NBYTES  # a group
    slow = sum(b["instructions"] for b in beside if b["slides"]) * slides
    classes = Counter(
        CLASS_OF.get(i.op, "uniform" if i.op[0] == "U" or "UR" in i.op else "other") for i in hot
    )
    return {
        "kernel": kernel, "arch": f"sm_{arch}", "registers": usage[kernel].registers,
        "shared_nbytes": usage[kernel].shared_nbytes,
        "loop": [f"{min(loop.blocks):#x}", f"{flow.blocks[max(loop.blocks)][-1].address:#x}"],
        "groups_an_iteration": groups, "weights_a_group": 32 * weights,
        "instructions_a_group": len(hot) / groups,
        "instructions_a_weight": len(hot) / groups / weights,
        "with_slides_a_weight": (len(hot) / groups + slow) / weights, "groups_a_slide": 1 / slides,
        "classes_a_weight": {k: n / groups / weights for k, n in classes.most_common()},
        "instructions": dict(Counter(i.name for i in hot).most_common()),
        "beside_the_hot_path": beside,
    }  # fmt: skip


def slow_path(block: list[Instruction]) -> dict[str, Any]:
    """What a block beside the hot path does."""
    slides = any(i.op == "STS" for i in block)
    return {
        "at": f"{block[0].address:#x}",
        "instructions": len(block),
        "slides": slides,
        "ops": sorted({i.op for i in block}),
    }


def show(result: dict[str, Any]) -> None:
    """A kernel's figures in a few lines."""
    classes = ", ".join(f"{k} {n:.2f}" for k, n in result["classes_a_weight"].items())
    a_weight = result["instructions_a_weight"]
    group = f"{result['instructions_a_group']:.1f} a group of {result['weights_a_group']} weights"
    slides = (
        f"{result['with_slides_a_weight']:.2f} with a slide every {result['groups_a_slide']:.1f} "
        "groups"
    )
    print(
        f"{result['kernel']} {result['arch']}: {a_weight:.2f} instructions a weight ({group} and a "
        f"lane; {slides})"
    )
    print(f"    {result['registers']} registers; {classes}")
    for block in result["beside_the_hot_path"]:
        what = "slides the buffer" if block["slides"] else "does not slide the buffer"
        print(
            f"    beside the hot path: {block['instructions']} instructions at {block['at']}, "
            f"which {what}: {' '.join(block['ops'])}"
        )


def described() -> dict[str, Any]:
    """The machine, and versions of what compiles and disassembles."""
    about = machine()
    for package in PACKAGES:
        try:
            about["versions"][package] = version(package)
        except PackageNotFoundError:
            about["versions"][package] = "not installed"
    return about


def main() -> None:
    """Count, print, write the JSON."""
    decoders = [k for k in SOURCES["decode"] if k.startswith("decode")]
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--kernels",
        default="decode_pairs_2",
        help="comma-separated, or all (default: decode_pairs_2)",
    )
    p.add_argument(
        "--arch",
        default="90",
        help="compute capabilities without the point, comma-separated (default: 90)",
    )
    p.add_argument(
        "--bits",
        type=float,
        default=5.25,
        help="of the stream, a symbol, for the share of slides (default: 5.25)",
    )
    p.add_argument("--listing", action="store_true", help="print the hot paths")
    p.add_argument(
        "--out", type=Path, help="the JSON file (default: benchmarks/results/DATE-sass.json)"
    )
    args = p.parse_args()
    kernels = decoders if args.kernels == "all" else args.kernels.split(",")
    results = [
        count(k, int(arch), args.bits, args.listing)
        for arch in args.arch.split(",")
        for k in kernels
    ]
    for result in results:
        show(result)
    about = described()
    out = args.out or RESULTS / f"{datetime.date.today().isoformat()}-sass.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    text = " ".join((__doc__ or "").split())
    how = text.partition("How it is counted: ")[2].partition("Results go")[0].rstrip()
    found = {"machine": about, "bits_a_symbol": args.bits, "how": how, "kernels": results}
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(out)
    over = [r for r in results if r["instructions_a_weight"] > MOST.get(r["kernel"], float("inf"))]
    if over:
        sys.exit(
            f"{', '.join(r['kernel'] for r in over)}: more than the {MOST} instructions a weight "
            "that it may take"
        )


if __name__ == "__main__":
    main()
