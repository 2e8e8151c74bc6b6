"""Speed of the CUDA backend on this machine's GPU, against the bandwidth of the GPU's own memory.

    python benchmarks/gpu/gpu.py                 # everything; ten minutes or so
    python benchmarks/gpu/gpu.py --quick         # few repetitions, small shapes, a small model
    python benchmarks/gpu/gpu.py --sections decode --shapes 4096x4096 --dtypes bf16,int8

Weights are Gaussian with standard deviation 0.02, int8 quantised by row; the host encodes them.
Every decode is compared bit for bit before it is timed and after, every encoding with the host's
bytes. GPU times are of CUDA events, medians of many with the 10th and 90th percentile, in turn over
data sets that are together three times as large as the L2 cache; the stream is held while the host
queues, so that no gap of the host's is counted. Calls are wall time, until their result is on the
host.

"floor" is (bytes in + bytes out) / bandwidth, where the bandwidth is that of a large cudaMemcpy
from device to device in the same run, bytes read and written counted. "kernels" are the launches of
a decoding or encoding, with payload, words and work list on the device already; "call" is a call of
the backend, work list and waiting included; "from bytes" and "from file" are `Loader.decode` and
`Loader.load_file` of a file in memory. Results go to ``--out`` as JSON, after each step, and as
tables in Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable

import gpu_others
import gpu_rates
import gpu_report
from gpu_cases import DTYPES, Case, Model, ModelShape, copy_bandwidth, room_for, weights
from gpu_device import CupyDevice, Device, Effort, EmulatedDevice
from harness import COPY_NBYTES, Steps, chosen_of, parser_of

from wcodec.errors import BackendUnavailable

SHAPES = ["256x256", "1024x1024", "4096x4096", "4096x11008", "14336x4096"]
SECTIONS = ["decode", "encode", "model", "others", "rates"]
#: cases with a mark, measured first
KEY = [("4096x11008", "bf16"), ("256x256", "bf16"), ("4096x4096", "int8")]
MODEL_MEMORY = 2.3  #: device memory that a model takes, in its bytes


class Bench(Steps):
    """Speed of the backend."""

    def __init__(self, device: Device, args: argparse.Namespace) -> None:
        found = {
            "quick": args.quick,
            "copy": None,
            "cases": [],
            "model": None,
            "others": [],
            "rates": None,
            "marks": [],
        }
        super().__init__(device, args, "gpu", found, "-quick" if args.quick else "")
        self.effort = (
            Effort(2, 3, 0.0) if args.emulated else Effort(3, 20, 0.05) if args.quick else Effort()
        )

    def tables(self) -> Iterable[str]:
        self.report["marks"] = gpu_report.marks(self.report)
        return gpu_report.tables(self.report)

    # ---- the steps
    def run(self) -> None:
        """All of them, the most telling ones first."""
        nbytes = (
            1 << 16
            if self.args.emulated
            else min(COPY_NBYTES, self.device.runtime.free_nbytes() // 16)
        )
        self.report["copy"] = self.step(
            "copy", lambda: copy_bandwidth(self.device, self.effort, nbytes)
        )
        if self.report["copy"] is None:
            return
        wanted = [(s, d) for s in self.args.shapes for d in self.args.dtypes]
        key = [c for c in KEY if c in wanted]
        for shape, dtype in key:
            self.case(shape, dtype)
        if "model" in self.args.sections:
            self.model()
        for shape, dtype in wanted:
            if (shape, dtype) not in key:
                self.case(shape, dtype)
        if "others" in self.args.sections:
            self.others()
        if "rates" in self.args.sections:
            self.report["rates"] = self.step("rates", lambda: gpu_rates.measure(self.device))

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return float(self.report["copy"]["device_to_device"]["gb_s"]) * 1e9

    def case(self, shape: str, dtype: str) -> None:
        """Decoding and encoding of one shape and dtype."""
        rows, cols = map(int, shape.split("x"))
        name = f"{shape} {dtype}"
        sections = [s for s in ("decode", "encode") if s in self.args.sections]
        if not sections:
            return
        case = self.step(
            f"{name}: data",
            lambda: Case(self.device, (rows, cols), dtype, self.bandwidth, self.effort),
        )
        if case is None:
            return
        entry = case.about()
        self.report["cases"].append(entry)
        for section in sections:
            entry[section] = self.step(f"{name}: {section}", getattr(case, section))

    def model(self) -> None:
        """Decoding and loading of a whole model."""
        shape = self.args.model
        free = self.device.runtime.free_nbytes()
        while shape.layers > 1 and shape.nbytes * MODEL_MEMORY > free:
            shape = ModelShape(shape.layers // 2, shape.hidden, shape.ffn, shape.vocab)
        with room_for(shape.nbytes) as folder:
            model = self.step(
                "model: data",
                lambda: Model(self.device, shape, self.bandwidth, self.effort, folder),
            )
            if model is None:
                return
            entry = self.report["model"] = model.about()
            entry["decode"] = self.step("model: decode", model.decode)
            entry["load"] = self.step(
                "model: load", lambda: model.load(2 if self.args.quick else 5)
            )

    def others(self) -> None:
        """Other codecs on the same bytes."""
        shape = max(self.args.shapes, key=lambda s: (s == "4096x11008", s == "4096x4096"))
        rows, cols = map(int, shape.split("x"))
        for name, measure in gpu_others.CODECS.items():
            arrays = [weights((rows, cols), "bf16", seed) for seed in range(3)]
            found = self.step(
                name,
                lambda arrays=arrays, measure=measure: measure(self.device, arrays, self.effort),
            )
            self.report["others"] += [{"name": name, "shape": shape, **f} for f in found or []]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    p = parser_of(__doc__)
    p.add_argument(
        "--quick", action="store_true", help="few repetitions, small shapes, a small model"
    )
    p.add_argument(
        "--sections",
        type=chosen_of(SECTIONS),
        default=SECTIONS[:4],
        help=f"of {', '.join(SECTIONS)} (default: all but rates)",
    )
    p.add_argument(
        "--shapes",
        type=lambda t: t.split(","),
        help=f"comma-separated (default: {','.join(SHAPES)})",
    )
    p.add_argument(
        "--dtypes",
        type=chosen_of(list(DTYPES)),
        default=list(DTYPES),
        help=f"of {', '.join(DTYPES)} (default: all)",
    )
    p.add_argument(
        "--model",
        type=lambda t: ModelShape(*map(int, t.split(","))),
        help="LAYERS,HIDDEN,FFN,VOCAB (default: Llama-2-7B's)",
    )
    p.add_argument("--rates", action="store_true", help="measure the section rates too")
    p.add_argument(
        "--seconds", type=float, default=0, help="begin no step after that time (default: no limit)"
    )
    p.add_argument(
        "--emulated",
        action="store_true",
        help="small shapes on the emulator, for tests: times mean nothing",
    )
    args = p.parse_args(argv)
    shapes, model = SHAPES, ModelShape()
    if args.emulated:
        shapes, model = ["64x96"], ModelShape(2, 64, 96, 128)
    elif args.quick:
        shapes, model = SHAPES[:2], ModelShape(2, 1024, 2816, 4000)
    args.shapes, args.model = args.shapes or shapes, args.model or model
    args.sections = (
        [*args.sections, "rates"] if args.rates and "rates" not in args.sections else args.sections
    )
    return args


def main(argv: list[str] | None = None, device_of: Callable[[], Device] | None = None) -> int:
    """Run all, print the tables. Returns the exit status:
    0 if nothing went wrong, whatever the speed.
    """
    args = parse(argv)
    try:
        device = (device_of or (EmulatedDevice if args.emulated else CupyDevice))()
    except BackendUnavailable as e:
        print(e, file=sys.stderr)
        return 2
    bench = Bench(device, args)
    bench.run()
    bench.write()
    print(bench.path.with_suffix(".md").read_text())
    print(bench.path)
    return 1 if bench.report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
