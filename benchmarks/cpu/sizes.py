"""Sizes and one-core speeds of each preset on checkpoints, beside zstd -19,
lmzip and ZipNN where these can be imported.

    taskset -c 0 python benchmarks/cpu/sizes.py FILE.safetensors ... [--rounds 5] [--out OUT.json]

Sizes are of whole files, as percentages of the source file. Speeds are in bytes of the source's
tensors, in memory, with one thread of the backend: encoding of all tensors into memory, after a run
that compiles what must be compiled, and decoding of each tensor into a buffer that exists, medians
of `--rounds`, but for encoding with preset max, which is measured once. The C allocator keeps what
is freed, as in ``bench_codecs.py``. The CPU time that the process got is kept as a part of the wall
time: below 0.97 something else ran on the core. zstd gets the whole file, lmzip its own command
line with one thread, ZipNN the bytes of the file in the mode of the dtype (int8 in its fp8 mode,
for it has no other). Results go to ``benchmarks/results/`` as JSON.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from bench_codecs import keep_freed_memory
from bench_files import RESULTS, machine

import wcodec
from wcodec.backends import Backend, load_backend
from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder
from wcodec.codec.sources import BufferSource
from wcodec.codec.whole import Whole
from wcodec.files.safetensors_header import SafetensorsHeader, read_safetensors_header
from wcodec.planner.options import PRESETS

OF_SAFETENSORS = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F8_E4M3": "float8_e4m3fn",
    "I8": "float8_e4m3fn",
}


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a call returns, its seconds, and the CPU time as a part of them."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    wall = time.perf_counter() - wall
    return result, wall, (time.process_time() - cpu) / wall


def encode(
    header: SafetensorsHeader,
    data: memoryview,
    options: wcodec.EncodeOptions,
    backend: Backend | None = None,
) -> bytes:
    """The file of all tensors, put together once it is known."""
    whole = Whole(len(data))
    writer = Encoder(options, backend).start(whole)
    for t in header.tensors:
        writer.add_words(
            t.name,
            np.frombuffer(data[t.start : t.stop], t.dtype.word_type),
            t.dtype,
            t.shape,
            t.dtype_name,
        )
    writer.finish(header.metadata, header.raw)
    return whole.getvalue()


def measure(
    header: SafetensorsHeader, data: memoryview, preset: str, backend: Backend, rounds: int
) -> dict[str, Any]:
    """One preset on one file."""
    nbytes = sum(t.stop - t.start for t in header.tensors)
    options = wcodec.EncodeOptions(preset=preset)
    blob, decoder = encode(header, data, options, backend), Decoder(backend)
    runs = [
        timed(lambda: len(encode(header, data, options, backend)))
        for _ in range(1 if preset == "max" else rounds)
    ]
    source = BufferSource(blob)
    index = decoder.read_index(source)
    buffers = [np.empty(t.shape, t.dtype.numpy) for t in index.tensors]

    def decode() -> None:
        for t, out in zip(index.tensors, buffers, strict=True):
            decoder.tensor(source, t, index.tables, out)

    decode()
    for t, out in zip(header.tensors, buffers, strict=True):
        if out.tobytes() != bytes(data[t.start : t.stop]):
            raise SystemExit(f"{t.name} did not come back the same")
    decodes = [timed(decode) for _ in range(rounds)]
    return {
        "percent": round(100 * len(blob) / len(data), 3),
        "encode_GBps": round(nbytes / statistics.median(r[1] for r in runs) / 1e9, 4),
        "decode_GBps": round(nbytes / statistics.median(r[1] for r in decodes) / 1e9, 3),
        "cpu_share": round(min(r[2] for r in (*runs, *decodes)), 3),
    }


def others(path: Path, data: memoryview, dtype: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Sizes of other codecs, and their speeds with all that their own interface does."""

    def entry(package: str, nbytes: int, encoding: float, decoding: float) -> dict[str, Any]:
        sizes = {"percent": round(100 * nbytes / len(data), 3), "version": version(package)}
        return {
            **sizes,
            "encode_GBps": round(len(data) / encoding / 1e9, 4),
            "decode_GBps": round(len(data) / decoding / 1e9, 3),
        }

    if find_spec("zstandard"):
        import zstandard

        blob, encoding, _ = timed(lambda: zstandard.ZstdCompressor(level=19).compress(data))
        yield (
            "zstd -19",
            entry(
                "zstandard",
                len(blob),
                encoding,
                timed(lambda: zstandard.ZstdDecompressor().decompress(blob))[1],
            ),
        )
    if find_spec("lmz"):
        with tempfile.TemporaryDirectory() as folder:
            packed, back = Path(folder, "x.lmz"), Path(folder, "back")
            command = [sys.executable, "-m", "lmz"]
            _, encoding, _ = timed(
                lambda: subprocess.run(
                    [*command, "compress", "-q", "-j", "1", path, packed], check=True
                )
            )
            _, decoding, _ = timed(
                lambda: subprocess.run(
                    [*command, "decompress", "-q", "-j", "1", packed, back], check=True
                )
            )
            yield "lmzip", entry("lmzip", packed.stat().st_size, encoding, decoding)
    if find_spec("zipnn"):
        from zipnn import ZipNN

        codec = ZipNN(input_format="byte", bytearray_dtype=OF_SAFETENSORS[dtype], threads=1)
        blob, encoding, _ = timed(lambda: codec.compress(bytearray(data)))
        yield "ZipNN", entry("zipnn", len(blob), encoding, timed(lambda: codec.decompress(blob))[1])


def main() -> None:
    """Run all, print a line for each result, write the JSON."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("files", nargs="+", type=Path)
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--backend", default="numba")
    p.add_argument(
        "--out", type=Path, help="the JSON file (default: benchmarks/results/DATE-sizes.json)"
    )
    args = p.parse_args()
    kept = keep_freed_memory()
    backend, results = load_backend(args.backend, 1), dict[str, dict[str, Any]]()
    for path in args.files:
        data = memoryview(np.memmap(path, np.uint8, "r"))
        header = read_safetensors_header(data)
        largest = max(header.tensors, key=lambda t: t.stop - t.start)
        own = {preset: measure(header, data, preset, backend, args.rounds) for preset in PRESETS}
        results[path.name] = {**own, **dict(others(path, data, largest.dtype.safetensors))}
        for name, r in results[path.name].items():
            print(
                f"{path.name:28} {name:9} {r['percent']:7.3f} %  encode {r['encode_GBps']:7.4f}  "
                f"decode {r['decode_GBps']:6.3f} GB/s",
                flush=True,
            )
    versions = {}
    for package in ("zstandard", "lmzip", "zipnn"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    out = args.out or RESULTS / f"{datetime.date.today().isoformat()}-sizes.json"
    found = {
        "machine": machine(),
        "keeps_freed_memory": kept,
        "others": versions,
        "backend": backend.info(),
        "files": results,
    }
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
