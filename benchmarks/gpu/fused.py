"""Linear layers straight from operands on this machine's GPU, against cuBLAS.

    python benchmarks/gpu/fused.py           # shapes of Llama-3-8B and 70B, all weights, operands
    python benchmarks/gpu/fused.py --weights bf16 --operands fixed --shapes 14336x4096 --batches 1,8
    python benchmarks/gpu/fused.py --table           # rows for wcodec/cuda/crossover.py, not tables
    python benchmarks/gpu/fused.py --table RESULT.json   # those of a result; nothing is measured

Contenders: "fused", ``wcodec.cuda.linear.linear`` from the payload as it lies in a file, its
workspace given; "cublas", ``F.linear`` in bf16 with the dense weight; "decoded", ``Operand.expand``
to scratch that is used again, then ``F.linear``. x is bf16. Weights are Gaussian with standard
deviation 0.02: bf16 as they are; int8 and fp8 (e4m3) with a float32 scale for each row. Those
"decoded" widens to bf16 after decoding and scales after the product, while "cublas" has them as
bf16, scaled. The host encodes them. Before anything is timed, every copy of an operand is decoded
and compared bit for bit, and each batch's result is compared with float64 on some rows: its error
is at most 1.5 times that of "decoded", which is PyTorch's.

Times are of one product, by CUDA events around many with different copies of the weight in turn;
the copies of each contender are together five times as large as the L2 cache, or more. By default
they are launched by a CUDA graph, of at least 2 GiB of dense weights: neither the host's launches
nor the ends of the graph count. Contenders take turns, in changing order, in one process; medians
of `--rounds` rounds after one that is not counted. "launched" is without graphs: the host's time is
in it, and bounds small products. Where graphs cannot be captured, which is a failure of the run,
the stream is held while the host launches ("held" in the last column). Ratios are times of the
other over that of "fused": above 1, "fused" is faster. GB/s are of the payload, and for cuBLAS of
the dense weight; "of copy" is their share of what cudaMemcpy from device to device moves in the
same run, reads and writes counted.

Results go to ``--out`` as JSON, after each step, and as tables in Markdown. The exit status is 1 if
anything failed, or there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fused_report
import torch
from fused_cases import OPTIONS, WEIGHTS, Case
from fused_device import DEVICES, TorchDevice
from gpu_cases import copy_bandwidth
from gpu_device import Effort
from harness import COPY_NBYTES, Steps, chosen_of, parser_of

from wcodec.errors import BackendUnavailable

#: Rows and columns, the MLPs first, and where they are.
SHAPES = {
    "14336x4096": "Llama-3-8B gate, up",
    "4096x14336": "Llama-3-8B down",
    "28672x8192": "Llama-3-70B gate, up",
    "8192x28672": "Llama-3-70B down",
    "4096x4096": "Llama-3-8B q, o",
    "1024x4096": "Llama-3-8B k, v",
    "8192x8192": "Llama-3-70B q, o",
    "1024x8192": "Llama-3-70B k, v",
    "128256x4096": "Llama-3-8B lm_head",
}
BATCHES = (1, 2, 4, 8, 16, 32, 64)
EMULATED = {"shapes": ["24x1056", "56x544"], "batches": [1, 3, 16, 64], "rounds": 2}


class FusedBench(Steps):
    """All shapes, weights and operands."""

    def __init__(self, device: TorchDevice, args: argparse.Namespace) -> None:
        found = {
            "emulated": args.emulated, "capability": device.capability,
            "torch": f"{torch.__version__}, CUDA {torch.version.cuda}", "rounds": args.rounds,
            "copy": None, "cases": [], "marks": [], "crossover": [],
        }  # fmt: skip
        super().__init__(device, args, "fused", found)
        self.torch_device = device

    def tables(self) -> Iterable[str]:
        self.report["marks"] = fused_report.marks(self.report["cases"])
        self.report["crossover"] = fused_report.crossover(self.report)
        return fused_report.tables(self.report)

    def run(self) -> None:
        """All of it, the most telling first: bf16 as both operands."""
        device, emulated = self.torch_device, self.args.emulated
        nbytes = 1 << 16 if emulated else min(COPY_NBYTES, device.free_nbytes() // 16)
        effort = Effort(2, 3, 0.0) if emulated else Effort()
        self.report["copy"] = self.step("copy", lambda: copy_bandwidth(device, effort, nbytes))
        if self.report["copy"] is None:
            return
        for weights in self.args.weights:
            for shape in self.args.shapes:
                for operand in self.args.operands:
                    self.case(shape, weights, operand)
        if device.graph_error is not None:
            self.report["failures"].append(
                {"step": "CUDA graphs", "error": device.graph_error, "traceback": ""}
            )

    def case(self, text: str, weights: str, operand: str) -> None:
        """A shape, with all batches; a batch that fails does not keep the next from being
        measured.
        """
        rows, cols = map(int, text.split("x"))
        name = f"{text} {weights} {operand}"
        if Case.room((rows, cols), self.torch_device) > self.torch_device.free_nbytes():
            self.report["left_out"].append(f"{name} (no memory)")
            return

        def work() -> None:
            case = Case(self.torch_device, (rows, cols), weights, operand)
            entry = {**case.about(), "layers": SHAPES.get(text, "")}
            self.report["cases"].append(entry)
            bandwidth = float(self.report["copy"]["device_to_device"]["gb_s"]) * 1e9
            for batch in self.args.batches:
                found = self.attempt(
                    f"{name}, batch {batch}",
                    lambda b=batch: case.measure(b, self.args.rounds, bandwidth),
                )
                if found is not None:
                    entry["batches"].append(found)

        self.step(name, work)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    p = parser_of(__doc__)
    p.add_argument(
        "--shapes",
        type=lambda t: t.split(","),
        help=f"comma-separated (default: {','.join(SHAPES)})",
    )
    p.add_argument(
        "--weights",
        type=chosen_of(WEIGHTS),
        default=list(WEIGHTS),
        help=f"of {', '.join(WEIGHTS)} (default: all)",
    )
    p.add_argument(
        "--operands",
        type=chosen_of(OPTIONS),
        default=list(OPTIONS),
        help=f"of {', '.join(OPTIONS)} (default: all)",
    )
    batches = ",".join(map(str, BATCHES))
    p.add_argument(
        "--batches",
        type=lambda t: [int(b) for b in t.split(",")],
        help=f"comma-separated (default: {batches})",
    )
    p.add_argument("--rounds", type=int, help="measurements of each (default: 9)")
    p.add_argument(
        "--seconds",
        type=float,
        default=0,
        help="begin no shape after that time (default: no limit)",
    )
    p.add_argument(
        "--table",
        nargs="?",
        const="",
        metavar="RESULT",
        help="print rows for wcodec/cuda/crossover.py; of a result, if given",
    )
    p.add_argument(
        "--emulated",
        action="store_true",
        help="small shapes on the emulator, for tests: times mean nothing",
    )
    args = p.parse_args(argv)
    usual: dict[str, Any] = (
        EMULATED
        if args.emulated
        else {"shapes": list(SHAPES), "batches": list(BATCHES), "rounds": 9}
    )
    for key, value in usual.items():
        setattr(args, key, getattr(args, key) or value)
    return args


def main(argv: list[str] | None = None) -> int:
    """Run all, print the tables. Returns the exit status:
    0 if nothing went wrong, whatever the speed.
    """
    args = parse(argv)
    if args.table:
        print(
            "\n".join(fused_report.rows_text(json.loads(Path(args.table).read_text())["crossover"]))
        )
        return 0
    try:
        device = DEVICES[args.emulated]()
    except BackendUnavailable as e:
        print(e, file=sys.stderr)
        return 1
    bench = FusedBench(device, args)
    bench.run()
    bench.write()
    if args.table is None:
        print(bench.path.with_suffix(".md").read_text())
    else:
        print("\n".join(fused_report.rows_text(bench.report["crossover"])))
    print(bench.path)
    return 1 if bench.report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
