"""What `fused.py` measures: products of one matrix, straight from its operand and by cuBLAS."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (as everyone calls it)
from fused_device import TorchDevice
from gpu_cases import host_backend, need
from gpu_device import MOST_BUSY_S, QUEUE, Work, summary

from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder
from wcodec.codec.sources import BufferSource
from wcodec.cuda.linear import linear, plan_linear
from wcodec.cuda.operand import Operand
from wcodec.planner.options import OPERANDS, EncodeOptions
from wcodec.reference.operands import operand_form


class Weights(NamedTuple):
    """A dtype of weights; `most` is the largest magnitude that rows are scaled to,
    0 for weights without scales.
    """

    torch: torch.dtype
    numpy: Any
    most: float


WEIGHTS = {
    "bf16": Weights(torch.bfloat16, ml_dtypes.bfloat16, 0.0),
    "int8": Weights(torch.int8, np.int8, 127.0),
    "e4m3": Weights(torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn, 448.0),
}
OPTIONS = {operand: EncodeOptions(operand=operand) for operand in OPERANDS}
CONTENDERS = ("fused", "cublas", "decoded")
STD = 0.02
ROTATION = 5  #: times the L2 that the copies of a weight are together
LEAST_COPIES = 2
PRODUCT_OPS = 4  #: launches of a product, at most
#: that graphs wait for, so that events and graphs are queued when the first one starts
HOLD_S = 5e-4
CHECKED_ROWS = 256  #: of W, that results are compared on
MOST_ERROR = 1.5  #: times that of PyTorch
BLOCK = 1 << 24  #: weights that are scaled at once

Times = dict[str, dict[str, float]]


def make_weight(
    shape: tuple[int, int], weights: str, place: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gaussian weights, and scales of rows, float32,
    so that each row's largest magnitude is the dtype's.
    """
    generator, of = torch.Generator(place).manual_seed(shape[0] + shape[1]), WEIGHTS[weights]
    if not of.most:
        return torch.empty(shape, dtype=of.torch, device=place).normal_(
            0, STD, generator=generator
        ), None
    words = torch.empty(shape, dtype=of.torch, device=place)
    scale = torch.empty(shape[0], device=place)
    step = max(1, BLOCK // shape[1])
    for some, scales in zip(words.split(step), scale.split(step), strict=True):
        values = torch.empty(some.shape, device=place).normal_(0, STD, generator=generator)
        scales.copy_(values.abs().amax(1) / of.most)
        values /= scales[:, None]
        some.copy_(values.round_() if weights == "int8" else values)
    return words, scale


def widened(words: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """The weight as bf16, scaled."""
    if scale is None:
        return words
    out = torch.empty(words.shape, dtype=torch.bfloat16, device=words.device)
    step = max(1, BLOCK // words.shape[1])
    for to, some, scales in zip(out.split(step), words.split(step), scale.split(step), strict=True):
        to.copy_(some.to(torch.float32) * scales[:, None])
    return out


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


class Case:
    """A matrix as operand and dense, often enough that no cache holds all of either."""

    def __init__(
        self, device: TorchDevice, shape: tuple[int, int], weights: str, operand: str
    ) -> None:
        self.device, self.shape, self.weights, self.operand = device, shape, weights, operand
        self.words, self.scale = make_weight(shape, weights, device.place)
        start = time.perf_counter()
        host = host_backend()
        array = self.words.cpu().view(torch.uint8).numpy().view(WEIGHTS[weights].numpy)
        data = Encoder(OPTIONS[operand], host).encode(array)
        self.encode_s = time.perf_counter() - start
        index = Decoder(host).read_index(BufferSource(data))
        record = index.tensors[0]
        need(
            operand_form(record) == operand,
            f"the encoder made {operand_form(record)}, not {operand}",
        )
        payload = torch.from_numpy(
            np.frombuffer(data, np.uint8)[record.payload_offset :][: record.payload_nbytes].copy()
        ).to(device.place)
        dense = widened(self.words, self.scale)
        self.payload_nbytes, self.dense_nbytes = payload.nbytes, dense.nbytes
        self.payloads = [
            payload,
            *(payload.clone() for _ in range(self._copies(payload.nbytes) - 1)),
        ]
        self.denses = [dense, *(dense.clone() for _ in range(self._copies(dense.nbytes) - 1))]
        self.operands = [
            Operand(device.runtime, record, index.tables, p.data_ptr()) for p in self.payloads
        ]
        self.scratch = torch.empty_like(self.words)
        self.wide = None if self.scale is None else torch.empty_like(dense)
        for operand in self.operands:
            self.scratch.view(torch.uint8).zero_()
            operand.expand(self.scratch.data_ptr())
            need(same_bits(self.scratch, self.words), "decoded words differ from the original ones")

    def _copies(self, nbytes: int) -> int:
        return max(LEAST_COPIES, math.ceil(ROTATION * self.device.l2_nbytes / nbytes))

    def about(self) -> dict[str, Any]:
        """Sizes."""
        n, k = self.shape
        return {
            "shape": f"{n}x{k}", "n": n, "k": k, "weights": self.weights, "operand": self.operand,
            "payload_nbytes": self.payload_nbytes, "dense_nbytes": self.dense_nbytes,
            "bits": 8 * self.payload_nbytes / (n * k), "encode_s": self.encode_s,
            "copies": {"fused": len(self.payloads), "cublas": len(self.denses)}, "batches": [],
        }  # fmt: skip

    @staticmethod
    def room(shape: tuple[int, int], device: TorchDevice) -> int:
        """Device memory that a case takes, at most: words, copies of both forms and scratch, twice,
        as of bf16; blocks in float32.
        """
        return (
            2 * math.prod(shape) * (3 + 2 * LEAST_COPIES)
            + 3 * ROTATION * device.l2_nbytes
            + 12 * BLOCK
        )

    # ---- products
    def measure(self, batch: int, rounds: int, bandwidth: float) -> dict[str, Any]:
        """Check a batch, and time it.

        Parameters
        ----------
        bandwidth
            Bytes a second that the device copies, reads and writes counted.
        """
        device = self.device
        products = Products(self, batch)
        plan = products.plan
        out: dict[str, Any] = {
            "batch": batch,
            "grid": plan.grid,
            "n_parts": plan.n_parts,
            "n_slices": 1 << plan.slice_bits,
            **products.check(),
        }
        n = max(
            len(self.payloads), len(self.denses), math.ceil(device.burst_nbytes / self.dense_nbytes)
        )
        some = min(max(len(self.payloads), len(self.denses)), QUEUE // PRODUCT_OPS)
        works = {name: products.burst(name, n) for name in CONTENDERS}
        few = {name: products.burst(name, some) for name in CONTENDERS}
        out["launched"] = timed(device, few, some, rounds)
        out["way"], out["n_products"] = "graph", n
        graphs = captured(device, works)
        if graphs is not None:
            out["times"] = timed(device, graphs, n, rounds, HOLD_S)
        else:
            hold = min(
                MOST_BUSY_S, 2 * some * max(t["p90_s"] for t in out["launched"].values()) + 1e-4
            )
            out["way"], out["n_products"] = "held", some
            out["times"] = timed(device, few, some, rounds, hold)
        seconds = {name: out["times"][name]["median_s"] for name in CONTENDERS}
        speed = {
            "fused": self.payload_nbytes / seconds["fused"],
            "cublas": self.dense_nbytes / seconds["cublas"],
        }
        out |= {
            "to_cublas": seconds["cublas"] / seconds["fused"],
            "to_decoded": seconds["decoded"] / seconds["fused"],
        }
        out["gb_s"] = {name: s / 1e9 for name, s in speed.items()}
        out["of_copy"] = {name: s / bandwidth for name, s in speed.items()}
        return out


class Products:
    """The contenders: products of a case with one x."""

    def __init__(self, case: Case, batch: int) -> None:
        self.case, self.batch = case, batch
        (n, k), device, first = case.shape, case.device, case.operands[0]
        self.x = (
            torch.randn(batch, k, generator=torch.Generator().manual_seed(batch))
            .to(torch.bfloat16)
            .to(device.place)
        )
        self.y = torch.empty(batch, n, dtype=torch.bfloat16, device=device.place)
        self.plan = plan_linear(case.shape, first.coded, batch, device.runtime.n_processors())
        self.workspace = torch.empty(
            self.plan.workspace_nbytes, dtype=torch.uint8, device=device.place
        )

    def fused(self, i: int) -> torch.Tensor:
        """Straight from the operand."""
        scale = 0 if self.case.scale is None else self.case.scale.data_ptr()
        at = (
            self.x.data_ptr(),
            self.batch,
            self.case.operands[i % len(self.case.operands)],
            self.y.data_ptr(),
        )
        linear(*at, scale=scale, plan=self.plan, workspace=self.workspace.data_ptr())
        return self.y

    def cublas(self, i: int) -> torch.Tensor:
        """With dense weights, bf16."""
        return F.linear(self.x, self.case.denses[i % len(self.case.denses)])

    def decoded(self, i: int) -> torch.Tensor:
        """With the operand decoded to scratch; a byte's weights are widened, and results scaled."""
        case = self.case
        case.operands[i % len(case.operands)].expand(case.scratch.data_ptr())
        if case.scale is None or case.wide is None:
            return F.linear(self.x, case.scratch)
        return F.linear(self.x, case.wide.copy_(case.scratch)).mul_(case.scale)

    def burst(self, name: str, n: int) -> Work:
        """`n` products with different weights in turn."""
        product = getattr(self, name)

        def work() -> None:
            for i in range(n):
                product(i)

        return work

    def check(self) -> dict[str, float]:
        """Errors against float64, on some rows of W:
        of the product, and of PyTorch's with what was decoded.

        Raises
        ------
        AssertionError
            The first one is more than `MOST_ERROR` times the other,
            or a result is not the same every time.
        """
        case = self.case
        got, last = self.fused(0).clone(), self.fused(len(case.operands) - 1)
        need(torch.equal(got, last), "two products with the same weights differ")
        rows = torch.linspace(
            0, case.shape[0] - 1, min(case.shape[0], CHECKED_ROWS), device=case.device.place
        ).long()
        # not every dtype can be indexed on every device
        words = case.words.view(torch.uint8)[rows].view(case.words.dtype)
        exact = self.x.double() @ words.double().T
        exact = exact if case.scale is None else exact * case.scale[rows].double()
        size = exact.norm()
        error, usual = (
            float((y[:, rows].double() - exact).norm() / size) for y in (got, self.decoded(0))
        )
        need(
            error <= MOST_ERROR * usual,
            f"batch {self.batch}: error {error:.2e}, {usual:.2e} of PyTorch's product",
        )
        return {"error": error, "torch_error": usual}


# ---- times ---------------------------------------------------------------------------------------
def captured(device: TorchDevice, works: Mapping[str, Work]) -> dict[str, Work] | None:
    """Works as graphs; ``None`` if that fails, or has failed before:
    `TorchDevice.graph_error` says why.
    """
    if device.graph_error is not None:
        return None
    try:
        return {name: device.capture(work) for name, work in works.items()}
    except Exception as e:  # of CuPy's or PyTorch's own kinds; it becomes a failure of the run
        device.graph_error = f"{type(e).__name__}: {e}"
        return None


def timed(
    device: TorchDevice, works: Mapping[str, Work], n: int, rounds: int, hold: float = 0.0
) -> Times:
    """Seconds of a product, of works of `n` products each, that take turns; before each one, the
    stream waits for `hold` seconds.
    """
    names, times = list(works), {name: list[float]() for name in works}
    for work in works.values():
        work()
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            device.synchronize()
            if hold:
                device.busy(hold)
            first = device.event()
            works[name]()
            last = device.event()
            device.synchronize()
            times[name].append(device.seconds(first, last) / n)
    return {name: summary(t) for name, t in times.items()}
