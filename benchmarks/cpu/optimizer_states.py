"""States of optimizers, as checkpoints of training hold them: how small, and how fast.

    taskset -c 1 python benchmarks/cpu/optimizer_states.py [--steps 60] [--rounds 5] [--out JSON]

MiniLM is fine-tuned by AdamW on fp32 weights. Both moments of each weight are taken after the last
step and 1, 10 and 50 steps before it: as they are, in fp32; rounded to bf16; and in 8 bits, in
blocks of 256 with a largest value each, in fp32, as 8-bit optimizers hold them (T. Dettmers et al.,
2021; here rounded from fp32 states, not trained with), on their dynamic map or on a linear one.
Beside them: codes that are noise, which nothing makes smaller.

Sizes are percent of each, by every preset, alone and as differences from the states before, with
and without the tables of embeddings: rows of these that no token named have moments of zero.
Entropies are of whole tensors, by byte planes, of differences that the format has, and of MINUS
from moments that were decayed by as many steps, which it has not. zstd and ZipNN get the bytes of
all tensors, one after the other. All that wcodec wrote by its default is read back and compared.
Times are medians of `--rounds`, as parts of memcpy's; all take turns.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import zstandard
from bench_codecs import UNSIGNED, keep_freed_memory, make_zipnn, raw
from bench_files import RESULTS, machine
from deltas import Array, Arrays, training

import wcodec
from wcodec.inspect.report import describe
from wcodec.reference.differences import Difference, subtract

PRESETS = ("default", "fast", "max")
RATES = (1e-6, 1e-5, 1e-4)
BEFORE = (1, 10, 50)  #: steps
BLOCK = 256  #: values that share a largest one
BETAS = {"exp_avg": 0.9, "exp_avg_sq": 0.999}  #: AdamW's, by default
FORMS = ("fp32", "bf16", "8-bit dynamic", "8-bit linear")
#: what a checkpoint may hold: the form of the weights and that of both moments
CHECKPOINTS = [("fp32", form) for form in FORMS[:3]] + [("bf16", "fp32")]
SHORT = {np.float32: "fp32", ml_dtypes.bfloat16: "bf16", np.uint8: "int8", np.int8: "int8"}


# ---- states --------------------------------------------------------------------------------------
def trained(rate: float, steps: int) -> dict[int, dict[str, Arrays]]:
    """Weights and moments of the parameters that have moments, by steps before the last one."""
    marks = {steps - before: before for before in (0, *BEFORE)}
    out = dict[int, dict[str, Arrays]]()
    for step, (model, optimizer) in enumerate(islice(training(rate), steps + 1)):
        if step in marks:
            states = {n: optimizer.state[p] for n, p in model.named_parameters()}
            out[marks[step]] = {
                "weights": {
                    n: p.detach().numpy().copy() for n, p in model.named_parameters() if states[n]
                },
                **{
                    key: {n: s[key].numpy().copy() for n, s in states.items() if s} for key in BETAS
                },
            }
    return out


def dynamic_map(is_signed: bool) -> Array:
    """The 256 values of 8-bit states: seven decimal exponents, and more digits the larger."""
    values = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(0.1, 1, 2 ** (i if is_signed else i + 1) + 1)
        means = 10.0 ** (i - 6) * (edges[:-1] + edges[1:]) / 2
        values += [*means, *(-means if is_signed else [])]
    return np.array(sorted(values), np.float32)


def in_8_bits(arrays: Arrays, is_dynamic: bool) -> Arrays:
    """Codes, and the largest value of each block."""
    out = Arrays()
    is_signed = any((a < 0).any() for a in arrays.values())
    table = dynamic_map(is_signed)
    for name, array in arrays.items():
        blocks = np.zeros((-(-array.size // BLOCK), BLOCK), np.float32)
        blocks.reshape(-1)[: array.size] = array.reshape(-1)
        largest = np.abs(blocks).max(axis=1)
        blocks /= np.where(largest, largest, 1)[:, None]
        if is_dynamic:
            codes = np.searchsorted((table[1:] + table[:-1]) / 2, blocks).astype(np.uint8)
        else:
            codes = np.rint(blocks * (127 if is_signed else 255))
            codes = codes.astype(np.int8 if is_signed else np.uint8)
        out[name] = codes.reshape(-1)[: array.size].reshape(array.shape)
        out[f"{name}.absmax"] = largest
    return out


def in_form(arrays: Arrays, form: str) -> Arrays:
    """States as they are held."""
    if form.startswith("8-bit"):
        return in_8_bits(arrays, form.endswith("dynamic"))
    return {n: a.astype(ml_dtypes.bfloat16) if form == "bf16" else a for n, a in arrays.items()}


def without_tables(arrays: Arrays) -> Arrays:
    """All but the tables of embeddings."""
    return {n: a for n, a in arrays.items() if "_embeddings.weight" not in n}


# ---- sizes ---------------------------------------------------------------------------------------
def steps_before(n: int) -> str:
    """What a base is called; that of 0 is none."""
    return f"base {n} before" if n else "full"


def total(arrays: Arrays) -> int:
    return sum(a.nbytes for a in arrays.values())


def words(array: Array) -> Array:
    return array.reshape(-1).view(UNSIGNED[array.itemsize])


def bits(planes: Array) -> float:
    """Order-0 entropy of words by byte planes, in bits."""
    out = 0.0
    for plane in planes.view(np.uint8).reshape(-1, planes.itemsize).T:
        n = np.bincount(plane, minlength=256)
        n = n[n > 0]
        out += float((n * np.log2(planes.size / n)).sum())
    return out


def entropies(new: Arrays, old: Arrays, decay: float | None) -> dict[str, float]:
    """Percent of the size that each difference would take, and how many words are as they were."""
    found, same = Counter[str](), 0
    for name, array in new.items():
        w, b = words(array), words(old[name])
        same += int((w == b).sum())
        found["NONE"] += bits(w)
        for d in (Difference.XOR, Difference.MINUS):
            found[d.name] += bits(subtract(w, b, d))
        if decay is not None:
            decayed = (old[name].astype(np.float32) * np.float32(decay)).astype(array.dtype)
            found["MINUS, decayed"] += bits(subtract(w, words(decayed), Difference.MINUS))
    percents = {way: round(12.5 * n / total(new), 2) for way, n in found.items()}
    return {"same_percent": round(100 * same / sum(a.size for a in new.values()), 2), **percents}


def all_entropies(forms: dict[int, Arrays], beta: float | None) -> dict[str, Any]:
    """From each base, with and without the tables of embeddings."""
    rest = {k: without_tables(v) for k, v in forms.items()}
    return {
        name: {
            steps_before(k): entropies(kept[0], kept[k], None if beta is None else beta**k)
            for k in BEFORE
        }
        for name, kept in (("entropy_percent", forms), ("entropy_percent, no embeddings", rest))
    }


def chosen(data: bytes) -> dict[str, float]:
    """Percent of the tensors' bytes by what the encoder chose for them: the difference, or that
    changed words are listed, and layouts.
    """
    found, n = Counter[str](), 0
    with wcodec.open(data) as f:
        for t, record in zip(describe(f, bound=False)["tensors"], f.index.tensors, strict=True):
            what = "list" if record.lists is not None else t["difference"]
            found[what if what == "list" else f"{what}; {', '.join(sorted(t['layouts']))}"] += t[
                "nbytes"
            ]
            n += t["nbytes"]
    return {what: round(100 * k / n, 1) for what, k in found.most_common()}


def read_back(data: bytes, base: bytes | None, arrays: Arrays, room: Path) -> None:
    """Fail unless a file has these arrays, to the bit."""
    (room / "new.wcodec").write_bytes(data)
    if base is not None:
        (room / "base.wcodec").write_bytes(base)
    found = wcodec.load_file(
        room / "new.wcodec", base=None if base is None else room / "base.wcodec"
    )
    for name, array in arrays.items():
        if found[name].dtype != array.dtype or not np.array_equal(words(found[name]), words(array)):
            sys.exit(f"{name} is wrong")


def sizes(forms: dict[int, Arrays], room: Path) -> dict[str, Any]:
    """Percent of the size by each preset, full and from each base; what the default chose."""
    new, out, choices = forms[0], dict[str, Any](), dict[str, Any]()
    for preset in PRESETS:
        options, row = wcodec.EncodeOptions(preset=preset), dict[str, float]()
        for before in (0, *BEFORE):
            base = forms[before] if before else None
            data, way = (
                wcodec.save(new, options=options, base=base),
                steps_before(before),
            )
            row[way] = round(100 * len(data) / total(new), 3)
            if preset == "default":
                choices[way] = chosen(data)
                read_back(data, None if base is None else wcodec.save(base), new, room)
        out[preset] = row
    rest = {k: without_tables(v) for k, v in forms.items()}
    out["default, without embeddings"] = {
        steps_before(k): round(
            100 * len(wcodec.save(rest[0], base=rest[k] if k else None)) / total(rest[0]), 3
        )
        for k in rest
    }
    return {"percent": out, "chosen": choices}


def others(arrays: Arrays) -> dict[str, float]:
    """Percent by zstd and ZipNN, whose sizes are those of all tensors of a dtype, joined."""
    joined = dict[str, list[Array]]()
    for array in arrays.values():
        joined.setdefault(SHORT[array.dtype.type], []).append(raw(array))
    found = Counter[str]()
    for dtype, parts in joined.items():
        data = np.concatenate(parts)
        found["zstd -3"] += len(zstandard.ZstdCompressor(3).compress(data.data))
        found["ZipNN"] += len(make_zipnn(1)(dtype, data.copy(), data).encode())
    return {name: round(100 * n / total(arrays), 3) for name, n in found.items()}


def measure(
    rate: float, state: str, form: str, at: dict[int, dict[str, Arrays]], room: Path
) -> dict[str, Any]:
    """All sizes of one state in one form."""
    forms = {before: in_form(kept[state], form) for before, kept in at.items()}
    new, is_moment = forms[0], state in BETAS and not form.startswith("8-bit")
    kept = at[0][state].values()
    zeros = sum(int((a == 0).sum()) for a in kept) / sum(a.size for a in kept)
    report = {
        "rate": rate, "state": state, "form": form, "nbytes": total(new), "tensors": len(new),
        "zeros_percent": round(100 * zeros, 2),
        **sizes(forms, room),
        "others": others(new),
        **all_entropies(forms, BETAS[state] if is_moment else None),
    }  # fmt: skip
    print(f"lr {rate}, {state}, {form}: {report['zeros_percent']} % zeros, {report['others']}")
    for name in ("percent", "chosen", "entropy_percent", "entropy_percent, no embeddings"):
        for key, row in report[name].items():
            print(f"  {key:28}", row, flush=True)
    return report


def checkpoints(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What weights and both moments take in all, by the default preset."""
    by = {(r["rate"], r["state"], r["form"]): r for r in found}
    out = list[dict[str, Any]]()
    for rate in dict.fromkeys(r["rate"] for r in found):
        for weights, moments in CHECKPOINTS:
            parts = [by[rate, "weights", weights], *(by[rate, s, moments] for s in BETAS)]
            nbytes = sum(p["nbytes"] for p in parts)
            percent = {
                way: round(
                    sum(p["nbytes"] * p["percent"]["default"][way] for p in parts) / nbytes, 2
                )
                for way in parts[0]["percent"]["default"]
            }
            out.append(
                {"rate": rate, "weights": weights, "moments": moments, "nbytes": nbytes,
                 "percent": percent}
            )  # fmt: skip
            print(
                f"lr {rate}, weights {weights}, moments {moments}: {nbytes / 1e6:.0f} MB, {percent}"
            )
    return out


# ---- speed ---------------------------------------------------------------------------------------
def timed(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Medians of seconds; all take turns, after a round that does not count."""
    times = {name: list[float]() for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def speed(
    state: str, form: str, at: dict[int, dict[str, Arrays]], rounds: int, room: Path
) -> dict[str, Any]:
    """Encoding to bytes and decoding files by the default preset, as parts of memcpy."""
    new, old = (in_form(at[k][state], form) for k in (0, BEFORE[0]))
    into = {name: np.zeros_like(array) for name, array in new.items()}
    base, full, delta = (room / f"{name}.wcodec" for name in ("base", "full", "delta"))
    wcodec.save_file(old, base, fsync=False)
    wcodec.save_file(new, full, fsync=False)
    wcodec.save_file(new, delta, base=base, fsync=False)

    def copy() -> None:
        for name, array in new.items():
            np.copyto(into[name], array)

    seconds = timed(
        {
            "memcpy": copy,
            "encode": lambda: wcodec.save(new),
            "decode": lambda: wcodec.load_file(full),
            "encode delta": lambda: wcodec.save(new, base=old),
            "decode delta": lambda: wcodec.load_file(delta, base=base),
        },
        rounds,
    )
    copy_s = seconds.pop("memcpy")
    report = {
        "state": state, "form": form, "memcpy_gb_s": round(total(new) / copy_s / 1e9, 2),
        **{f"{name} / memcpy": round(copy_s / s, 3) for name, s in seconds.items()},
    }  # fmt: skip
    print(", ".join(f"{k} {v}" for k, v in report.items()), flush=True)
    return report


def noise(shapes: Arrays, rounds: int) -> dict[str, float]:
    """Codes of 8 bits that nothing makes smaller, in tensors of these shapes: percent of the size,
    and encoding by the default preset as a part of memcpy.
    """
    rng = np.random.default_rng(0)
    new = {n: rng.integers(0, 256, a.shape, dtype=np.uint8) for n, a in shapes.items()}
    seconds = timed(
        {
            "memcpy": lambda: [a.copy() for a in new.values()],
            **{
                preset: lambda preset=preset: wcodec.save(
                    new, options=wcodec.EncodeOptions(preset=preset)
                )
                for preset in PRESETS
            },
        },
        rounds,
    )
    report = {"nbytes": float(total(new))}
    for preset in PRESETS:
        data = wcodec.save(new, options=wcodec.EncodeOptions(preset=preset))
        report[f"{preset}, percent"] = round(100 * len(data) / total(new), 4)
        report[f"{preset}, encode / memcpy"] = round(seconds["memcpy"] / seconds[preset], 3)
    print("noise", report)
    return report


def cases() -> Iterator[tuple[str, str]]:
    """States and their forms."""
    yield from (("weights", form) for form in FORMS[:2])
    yield from ((state, form) for state in BETAS for form in FORMS)


def main() -> None:
    """Measure all, and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60, help=f"more than {max(BEFORE)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--out", type=Path, help="default: benchmarks/results/DATE-optimizer-states.json"
    )
    args = parser.parse_args()
    keep_freed_memory()
    wcodec.set_backend("numba")
    found, speeds, of_noise = list[dict[str, Any]](), list[dict[str, Any]](), dict[str, float]()
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        for rate in RATES:
            at = trained(rate, args.steps)
            found += [measure(rate, *case, at, room) for case in cases()]
            if rate == RATES[1]:
                speeds = [speed(*case, at, args.rounds, room) for case in cases()]
                of_noise = noise(at[0]["weights"], args.rounds)
    report = {
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "steps": args.steps,
        "rounds": args.rounds,
        "states": found,
        "checkpoints": checkpoints(found),
        "speed": speeds,
        "noise": of_noise,
    }
    out = args.out or RESULTS / f"{datetime.date.today().isoformat()}-optimizer-states.json"
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
