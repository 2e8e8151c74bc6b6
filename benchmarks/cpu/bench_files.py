"""Speed, memory and size of whole files by the command line,
and of the codec in a process against memcpy.

    python benchmarks/cpu/bench_files.py                      # a 1 GB Llama-shaped bf16 file
    python benchmarks/cpu/bench_files.py --gb 0.1 --data DIR  # a smaller one, and those of DIR

Wall times are medians of `--repeats` runs of ``wcodec encode``, ``wcodec decode``, ``cp`` of the
decoded file and, where lmzip is installed, its ``lmz compress`` and ``lmz decompress``, in turn, as
processes: start-up included, after one run that is not counted, warm cache, targets that do not
exist yet, none waits for the disk. Python keeps bytecode, whatever the environment says. Peak
memory is the largest ``RssAnon`` of ``/proc/PID/status``, looked at every 2 ms: memory of the
process's own, without the mapped input. Speeds in the process are medians of alternating runs, in
bytes of weights, and as parts of the speed of a memcpy of the same bytes measured in between.
Results go to ``benchmarks/results/`` as JSON.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import wcodec
from wcodec.backends import load_backend
from wcodec.cli.bench import seconds
from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder

#: Tensors of one layer of an 8-billion-parameter Llama: 436 MB in bf16. Repeated, and its rows
#: scaled, to the size wanted.
LAYER = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
ENV = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
RESULTS = Path(__file__).resolve().parents[1] / "results"


def main() -> None:
    """Run all, print a line for each result, write the JSON."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, help="a folder of .safetensors files to measure too")
    p.add_argument("--gb", type=float, default=1.0, help="size of the generated file (default: 1)")
    p.add_argument(
        "--sigma", type=float, default=0.0,
        help="of the logarithm of the scale of each row of the generated file (default: 0)",
    )  # fmt: skip
    p.add_argument("--repeats", type=int, default=7, help="runs of each command (default: 7)")
    p.add_argument("--backends", default="numba", help="comma-separated (default: numba)")
    p.add_argument("--threads", default="1,2", help="comma-separated (default: 1,2)")
    p.add_argument(
        "--out", type=Path, help="the JSON file (default: benchmarks/results/DATE-files.json)"
    )
    args = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="wcodec-bench-") as name:
        folder = Path(name)
        sources = [
            make_llama(folder / "llama-bf16.safetensors", args.gb, args.sigma),
            *sorted(args.data.glob("*.safetensors") if args.data else []),
        ]
        files = [
            bench_file(source, folder, backend, int(threads), args.repeats)
            for source in sources
            for backend in args.backends.split(",")
            for threads in args.threads.split(",")
        ]
    arrays = [
        bench_array(b, int(t)) for b in args.backends.split(",") for t in args.threads.split(",")
    ]
    out = args.out or RESULTS / f"{datetime.date.today().isoformat()}-files.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        json.dumps({"machine": machine(), "files": files, "arrays": arrays}, indent=1) + "\n"
    )
    print(out)


def show_report(report: dict[str, Any], path: str | None) -> None:
    """Print a report as JSON, and write it if a path is given."""
    text = json.dumps(report, indent=1)
    print(text)
    if path:
        Path(path).write_text(text + "\n")


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    about = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    cpu = (
        f"{about.get('model name', 'unknown')} (family {about.get('cpu family')}, "
        f"model {about.get('model')})"
    )
    versions = {"wcodec": wcodec.__version__}
    for package in ("numpy", "ml_dtypes", "numba", "llvmlite"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=RESULTS,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": git.stdout.strip() or "unknown",
        "command": " ".join(["python", *(os.path.basename(a) for a in sys.argv)]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def make_llama(path: Path, gb: float, sigma: float = 0.0) -> Path:
    """A bf16 file of about `gb` billion bytes, Gaussian weights of standard deviation 0.02, times a
    log-normal scale of each row.
    """
    layer_nbytes = sum(2 * math.prod(s) for s in LAYER.values())
    n_layers = max(1, math.ceil(gb * 1e9 / layer_nbytes))
    scale = gb * 1e9 / (n_layers * layer_nbytes)
    shapes = {
        f"model.layers.{i}.{n}.weight": (max(1, round(r * scale)), c)
        for i in range(n_layers)
        for n, (r, c) in LAYER.items()
    }
    header, at = dict[str, Any](), 0
    for name, shape in shapes.items():
        header[name] = {
            "dtype": "BF16",
            "shape": shape,
            "data_offsets": [at, at + 2 * math.prod(shape)],
        }
        at += 2 * math.prod(shape)
    raw, rng = json.dumps(header).encode(), np.random.default_rng(0)
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(raw)) + raw)
        for rows, cols in shapes.values():
            for first in range(0, rows, 1024):
                values = rng.standard_normal(
                    (min(1024, rows - first), cols), np.float32
                ) * np.float32(0.02)
                if sigma:
                    values *= np.exp(rng.standard_normal((len(values), 1), np.float32) * sigma)
                f.write(values.astype(ml_dtypes.bfloat16).tobytes())
    return path


def run_command(args: list[str]) -> tuple[float, int]:
    """Wall seconds and peak of anonymous memory of ``wcodec`` with these arguments."""
    start = time.perf_counter()
    peak = watched(
        subprocess.Popen([sys.executable, "-m", "wcodec", *args, "-q", "--no-fsync"], env=ENV),
        f"wcodec {' '.join(args)}",
    )
    return time.perf_counter() - start, peak


def run_lmzip(*args: str) -> float:
    """Wall seconds of lmzip's command."""
    command = [sys.executable, "-m", "lmz", *args, "-q"]
    return seconds(lambda: subprocess.run(command, env=ENV, check=True))


def watched(p: subprocess.Popen[bytes], what: str) -> int:
    """Peak of anonymous memory of a process, which is waited for and has to end well."""
    peak = 0
    while p.poll() is None:
        try:
            with open(f"/proc/{p.pid}/status") as f:
                peak = max(
                    peak,
                    *(int(line.split()[1]) * 1024 for line in f if line.startswith("RssAnon")),
                    0,
                )
        except (FileNotFoundError, ProcessLookupError):
            break
        time.sleep(0.002)
    if p.wait():
        raise SystemExit(f"{what} failed")
    return peak


def bench_file(
    source: Path, folder: Path, backend: str, threads: int, repeats: int
) -> dict[str, Any]:
    """`wcodec encode` and `wcodec decode` of a file, and what others do with it."""
    coded, back, lmz = folder / "coded.wcodec", folder / "back.safetensors", folder / "coded.lmz"
    common, encode, decode, copies = ["--backend", backend, "--threads", str(threads)], [], [], []
    lmzip, has_lmzip = list[tuple[float, float]](), importlib.util.find_spec("lmz") is not None
    for i in range(repeats + 1):
        for path in (coded, back, lmz):
            path.unlink(missing_ok=True)
        if has_lmzip:
            packed = run_lmzip("compress", "-j", str(threads), str(source), str(lmz))
            lmzip.append((packed, run_lmzip("decompress", "-j", str(threads), str(lmz), str(back))))
            back.unlink()
        encoded = run_command([*common, "encode", "-f", str(source), "-o", str(coded)])
        copied = seconds(lambda: subprocess.run(["cp", str(source), str(back)], check=True))
        back.unlink()
        decoded = run_command([*common, "decode", "-f", str(coded), "-o", str(back)])
        if i:
            encode.append(encoded)
            decode.append(decoded)
            copies.append(copied)
    if subprocess.run(["cmp", str(source), str(back)], check=False).returncode:
        raise SystemExit(f"{source} did not come back")
    nbytes, stored_nbytes = source.stat().st_size, coded.stat().st_size
    others = dict[str, Any]()
    if has_lmzip:
        compress, decompress = (statistics.median(t) for t in zip(*lmzip[1:], strict=True))
        others = {
            "lmzip": version("lmzip"), "lmzip_nbytes": lmz.stat().st_size,
            "lmzip_compress_s": compress, "lmzip_decompress_s": decompress,
            "encode_of_lmzip": compress / statistics.median(s for s, _ in encode),
            "decode_of_lmzip": decompress / statistics.median(s for s, _ in decode),
        }  # fmt: skip
    for path in (coded, back, lmz):
        path.unlink(missing_ok=True)
    result = {
        "file": source.name, "nbytes": nbytes, "stored_nbytes": stored_nbytes,
        "ratio": stored_nbytes / nbytes, "backend": backend, "threads": threads,
        "encode_s": statistics.median(s for s, _ in encode),
        "decode_s": statistics.median(s for s, _ in decode),
        "encode_peak_anonymous_nbytes": max(m for _, m in encode),
        "decode_peak_anonymous_nbytes": max(m for _, m in decode),
        "cp_s": statistics.median(copies), "all_encode_s": [s for s, _ in encode],
        "all_decode_s": [s for s, _ in decode], "all_cp_s": copies, **others,
    }  # fmt: skip
    print(
        f"{source.name} {backend} {threads} threads: {result['ratio']:.2%}, encode "
        f"{result['encode_s']:.2f} s {result['encode_peak_anonymous_nbytes'] / 1e6:.0f} MB, decode "
        f"{result['decode_s']:.2f} s {result['decode_peak_anonymous_nbytes'] / 1e6:.0f} MB, cp "
        f"{result['cp_s']:.2f} s",
        flush=True,
    )
    return result


def bench_array(backend_name: str, threads: int, repeats: int = 7) -> dict[str, Any]:
    """Encode, decode into a buffer that is used again, and memcpy, in turn,
    of a 64 MB bf16 array.
    """
    weights = (
        np.random.default_rng(1).standard_normal((8192, 4096), np.float32) * np.float32(0.02)
    ).astype(ml_dtypes.bfloat16)
    encoder = Encoder(None, load_backend(backend_name, threads))
    decoder = Decoder(load_backend(backend_name, threads))
    data, out = encoder.encode(weights), np.zeros_like(weights)
    decoder.decode(data, out)
    times = [
        (
            seconds(lambda: np.copyto(out, weights)),
            seconds(lambda: encoder.encode(weights)),
            seconds(lambda: decoder.decode(data, out)),
        )
        for _ in range(repeats)
    ]
    copy, encode, decode = (statistics.median(t) for t in zip(*times, strict=True))
    result = {
        "backend": backend_name, "threads": threads, "nbytes": weights.nbytes, "repeats": repeats,
        "memcpy_gb_s": weights.nbytes / copy / 1e9, "encode_gb_s": weights.nbytes / encode / 1e9,
        "decode_gb_s": weights.nbytes / decode / 1e9, "encode_of_memcpy": copy / encode,
        "decode_of_memcpy": copy / decode,
    }  # fmt: skip
    print(
        f"array {backend_name} {threads} threads: memcpy {result['memcpy_gb_s']:.1f} GB/s, encode "
        f"{result['encode_gb_s']:.2f} GB/s, decode {result['decode_gb_s']:.2f} GB/s",
        flush=True,
    )
    return result


if __name__ == "__main__":
    main()
