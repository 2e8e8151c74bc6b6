"""Size and speed of wcodec beside memcpy and other codecs, on the same bytes, in the same process,
in turn.

    python benchmarks/cpu/bench_codecs.py               # generated tensors, one core
    python benchmarks/cpu/bench_codecs.py --data FILE   # a file's tensors too, joined by dtype
    python benchmarks/cpu/bench_codecs.py --shapes 4096x4096 --dtypes bf16,int8 --figure codecs.svg

Generated tensors are Gaussian with standard deviation 0.02, shaped like layers of a Llama; int8 is
quantised by row to its largest magnitude. The CPU time that the process got, as a part of the wall
time, is kept for each data set: below 0.97 something else ran on the core. Every codec gets the
same array and options fit for its dtype; ``NOTES`` names them. A round measures each codec once,
encode then decode; the order turns from round to round. Before each measured call the input is
written anew, outside the clock: it finds the same caches whatever ran before, and ZipNN changes its
input. Small tensors are coded several times a round.

Codecs that can decode into a buffer that exists do so. The others return new memory, for which the
C allocator is told to keep what is freed, so that no page faults are counted against them;
``--fresh-memory`` leaves it as it is. Peak memory is what the first call adds to the process's
resident memory at its highest, without the input and the output buffer. Checksums are as each codec
has them by default; ``NOTES`` says who makes any. Every codec is checked for a round trip first.
Missing ones are named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import gc
import importlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from bench_files import RESULTS, machine
from numpy.typing import NDArray

import wcodec
from wcodec.backends import load_backend
from wcodec.cli.bench import seconds, speed
from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder
from wcodec.files.safetensors_header import read_safetensors_header
from wcodec.inspect.report import percent_text, size_text, table_text

SHAPES = ["256x256", "1024x1024", "4096x4096", "4096x11008", "14336x4096"]
DTYPES: dict[str, Any] = {
    "bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32,
    "fp8": ml_dtypes.float8_e4m3fn, "int8": np.int8,
}  # fmt: skip
OF_SAFETENSORS = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F8_E4M3": "fp8", "I8": "int8"}
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}
LEAST_NBYTES = 1 << 20  #: groups of a file's tensors that are smaller are left out
TURN_NBYTES = 1 << 22  #: a round codes smaller data several times
#: of the wall time that the process had a core; with less, something else ran there
QUIET_SHARE = 0.97
LMZIP_CHUNK_NBYTES = 8 << 20  #: lmzip's own default

#: pip name and what is measured, by codec.
NOTES = {
    "memcpy": ("numpy", "np.copyto; with more threads, in as many parts"),
    "wcodec": (
        "wcodec",
        "backend numba, Encoder and Decoder kept, decodes into a buffer; "
        "CRC-32 of all, made and checked",
    ),
    "zstd-1": ("zstandard", "level 1, new bytes"),
    "zstd-3": ("zstandard", "level 3, new bytes"),
    "lz4": ("lz4", "one block, default speed, new bytes"),
    "blosc2-zstd": ("blosc2", "zstd level 1, shuffle with the typesize, decodes into a buffer"),
    "blosc2-lz4": ("blosc2", "lz4 level 1, bitshuffle with the typesize, decodes into a buffer"),
    "ZipNN": (
        "zipnn",
        "byte format of the dtype, int8 in its fp8 mode since it has no other, "
        "new bytearray; no checksum",
    ),
    "lmzip": (
        "lmzip",
        "chunks of 8 MiB in memory, level 1, decodes into a buffer; CRC-32 made and checked",
    ),
    "OpenZL": (
        "openzl",
        "bf16: deconstruct, exponents entropy-coded; fp16, fp32: bytes split, then coded; "
        "new buffer; its checksums",
    ),
    "pcodec": ("pcodec", "default level 8, bf16 as uint16, fp8 as uint8, decodes into a buffer"),
}


class DataSet(NamedTuple):
    """One array to code; `origin` is "generated" or "file"."""

    name: str
    origin: str
    dtype: str
    array: NDArray[Any]


class Work(NamedTuple):
    """A codec on one array. `decode` returns what it decoded,
    or ``None`` if that is in the output buffer.
    """

    encode: Callable[[], Any]
    decode: Callable[[Any], Any]
    nbytes_of: Callable[[Any], int] = len


#: Given the dtype's short name, the array to encode and the one to decode into.
Maker = Callable[[str, NDArray[Any], NDArray[Any]], Work]


def raw(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of a contiguous array."""
    return array.reshape(-1).view(np.uint8)


# ---- the codecs ----------------------------------------------------------------------------------
def make_memcpy(threads: int) -> Maker:
    """Both ways are the same copy."""
    pool = ThreadPoolExecutor(threads)

    def make(dtype: str, array: NDArray[Any], out: NDArray[Any]) -> Work:
        parts = list(
            zip(np.array_split(raw(out), threads), np.array_split(raw(array), threads), strict=True)
        )

        def copy(_: Any = None) -> None:
            if threads == 1:
                np.copyto(*parts[0])
            else:
                list(pool.map(lambda p: np.copyto(*p), parts))

        return Work(copy, copy, lambda _: array.nbytes)

    return make


def make_wcodec(threads: int) -> Maker:
    encoder = Encoder(None, load_backend("numba", threads))
    decoder = Decoder(load_backend("numba", threads))

    def make(dtype: str, array: NDArray[Any], out: NDArray[Any]) -> Work:
        def decode(data: bytes) -> None:
            decoder.decode(data, out)

        return Work(lambda: encoder.encode(array), decode)

    return make


def make_zstd(level: int, threads: int) -> Maker:
    import zstandard

    compressor = zstandard.ZstdCompressor(level=level, threads=threads if threads > 1 else 0)
    decompressor = zstandard.ZstdDecompressor()
    return lambda dtype, array, out: Work(
        lambda: compressor.compress(raw(array)), decompressor.decompress
    )


def make_lz4(threads: int) -> Maker:
    import lz4.block

    def make(dtype: str, array: NDArray[Any], out: NDArray[Any]) -> Work:
        return Work(
            lambda: lz4.block.compress(raw(array), store_size=False),
            lambda data: lz4.block.decompress(data, uncompressed_size=array.nbytes),
        )

    return make


def make_blosc2(codec: str, shuffle: str, threads: int) -> Maker:
    import blosc2

    blosc2.set_nthreads(threads)
    options = {
        "codec": blosc2.Codec[codec],
        "clevel": 1,
        "filters": [blosc2.Filter[shuffle]],
        "filters_meta": [0],
        "nthreads": threads,
    }

    def make(dtype: str, array: NDArray[Any], out: NDArray[Any]) -> Work:
        def decode(data: Any) -> None:
            blosc2.decompress2(data, dst=raw(out), nthreads=threads)

        return Work(
            lambda: blosc2.compress2(raw(array), typesize=array.itemsize, **options), decode
        )

    return make


def make_zipnn(threads: int) -> Maker:
    from zipnn import ZipNN

    names = {
        "bf16": "bfloat16",
        "fp16": "float16",
        "fp32": "float32",
        "fp8": "float8_e4m3fn",
        "int8": "float8_e4m3fn",
    }

    def make(dtype: str, array: NDArray[Any], out: NDArray[Any]) -> Work:
        codec = ZipNN(input_format="byte", bytearray_dtype=names[dtype], threads=threads)
        return Work(lambda: codec.compress(memoryview(raw(array))), codec.decompress)

    return make


def make_lmzip(threads: int) -> Maker:
    from lmz import codec
    from lmz.planner import KIND_BF16, KIND_BYTES

    def make(dtype: str, array: NDArray[Any], out: NDArray[Any]) -> Work:
        kind, target = KIND_BF16 if dtype == "bf16" else KIND_BYTES, memoryview(raw(out))
        cuts = [
            (i, min(i + LMZIP_CHUNK_NBYTES, array.nbytes))
            for i in range(0, array.nbytes, LMZIP_CHUNK_NBYTES)
        ]

        def encode() -> list[tuple[bytes, int, int, int]]:
            view, chunks = memoryview(raw(array)), []
            for start, stop in cuts:
                parts, which, flags, crc = codec.encode_chunk(
                    view[start:stop], array.itemsize, 1, True, kind=kind
                )
                chunks.append(
                    (
                        b"".join(parts) if isinstance(parts, list) else bytes(parts),
                        which,
                        flags,
                        crc,
                    )
                )
            return chunks

        def decode(chunks: list[tuple[bytes, int, int, int]]) -> None:
            for (start, stop), (data, which, flags, crc) in zip(cuts, chunks, strict=True):
                to = target[start:stop]
                done = codec.decode_chunk(
                    data, which, array.itemsize, flags, stop - start, crc, True, to
                )
                if (
                    np.frombuffer(done, np.uint8).ctypes.data
                    != np.frombuffer(to, np.uint8).ctypes.data
                ):
                    to[:] = done

        return Work(encode, decode, lambda chunks: sum(len(c[0]) for c in chunks))

    return make


def make_openzl(threads: int) -> Maker:
    import openzl.ext as zl

    decoder = zl.DCtx()

    def make(dtype: str, array: NDArray[Any], out: NDArray[Any]) -> Work:
        compressor, context = zl.Compressor(), zl.CCtx()
        compressor.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
        graphs, nodes = zl.graphs, zl.nodes
        if dtype == "bf16":
            graph = nodes.BFloat16Deconstruct()(compressor, graphs.Store(), graphs.Entropy())
        elif array.itemsize > 1:
            graph = nodes.TransposeSplit()(compressor, graphs.Entropy())
        else:
            graph = graphs.Entropy()(compressor)
        compressor.select_starting_graph(graph)
        context.set_parameter(zl.CParam.StickyParameters, 1)
        context.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
        context.ref_compressor(compressor)
        kind = zl.Type.Numeric if array.itemsize > 1 else zl.Type.Serial
        words = array.reshape(-1).view(UNSIGNED[array.itemsize])
        return Work(
            lambda: context.compress([zl.Input(kind, words)]),
            lambda data: decoder.decompress(data)[0].content.as_nparray(),
        )

    return make


def make_pcodec(threads: int) -> Maker:
    from pcodec import ChunkConfig, standalone

    names = {
        "bf16": np.uint16,
        "fp16": np.float16,
        "fp32": np.float32,
        "fp8": np.uint8,
        "int8": np.int8,
    }

    def make(dtype: str, array: NDArray[Any], out: NDArray[Any]) -> Work:
        numbers, target = raw(array).view(names[dtype]), raw(out).view(names[dtype])
        config = ChunkConfig(enable_8_bit=True) if array.itemsize == 1 else ChunkConfig()

        def decode(data: bytes) -> None:
            standalone.simple_decompress_into(data, target)

        return Work(lambda: standalone.simple_compress(numbers, config), decode)

    return make


#: What is measured, and whether it can use more than one thread.
MAKERS: dict[str, tuple[Callable[[int], Maker], bool]] = {
    "memcpy": (make_memcpy, True),
    "wcodec": (make_wcodec, True),
    "ZipNN": (make_zipnn, True),
    "OpenZL": (make_openzl, False),
    "lmzip": (make_lmzip, False),
    "pcodec": (make_pcodec, False),
    "zstd-1": (lambda threads: make_zstd(1, threads), True),
    "zstd-3": (lambda threads: make_zstd(3, threads), True),
    "lz4": (make_lz4, False),
    "blosc2-zstd": (lambda threads: make_blosc2("ZSTD", "SHUFFLE", threads), True),
    "blosc2-lz4": (lambda threads: make_blosc2("LZ4", "BITSHUFFLE", threads), True),
}


# ---- the data ------------------------------------------------------------------------------------
def generated(shape: str, dtype: str) -> DataSet:
    """Gaussian weights of standard deviation 0.02."""
    rows, cols = map(int, shape.split("x"))
    weights = np.random.default_rng(rows * 65537 + cols).standard_normal(
        (rows, cols), np.float32
    ) * np.float32(0.02)
    if dtype == "int8":
        weights = np.rint(weights / (np.abs(weights).max(axis=1, keepdims=True) / 127))
    return DataSet(f"gaussian {shape} {dtype}", "generated", dtype, weights.astype(DTYPES[dtype]))


def of_file(path: Path) -> Iterator[DataSet]:
    """The tensors of a safetensors file, those of each dtype joined into one flat array."""
    view, groups = memoryview(np.memmap(path, np.uint8, "r")), dict[str, list[memoryview]]()
    for t in read_safetensors_header(view).tensors:
        groups.setdefault(t.dtype.safetensors or t.dtype_name, []).append(view[t.start : t.stop])
    for name, pieces in groups.items():
        dtype, nbytes = OF_SAFETENSORS.get(name), sum(map(len, pieces))
        if dtype is None or nbytes < LEAST_NBYTES:
            print(f"{path.name}: {size_text(nbytes)} of {name} left out", flush=True)
        else:
            array = np.concatenate([np.frombuffer(p, np.uint8) for p in pieces]).view(DTYPES[dtype])
            yield DataSet(f"{path.stem} {dtype}", "file", dtype, array)


def data_sets(args: argparse.Namespace) -> Iterator[DataSet]:
    """All that the command line asks for, one at a time."""
    if args.shapes is None:
        pairs = [("4096x4096", d) for d in args.dtypes] + [
            (s, "bf16") for s in SHAPES if s != "4096x4096" and "bf16" in args.dtypes
        ]
    else:
        pairs = [(s, d) for s in args.shapes for d in args.dtypes]
    for shape, dtype in pairs:
        yield generated(shape, dtype)
    for path in args.data:
        yield from of_file(path)


# ---- measuring -----------------------------------------------------------------------------------
def warm(maker: Maker, dtype: str) -> None:
    """A round trip of little data: what a codec sets up once is no part of the peaks."""
    small = generated("256x256", dtype).array
    work = maker(dtype, small, np.empty_like(small))
    work.decode(work.encode())


def resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process, bytes."""
    found = re.search(
        rf"^{field}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE
    )
    return 1024 * int(found[1]) if found else 0


def with_peak(run: Callable[[], Any]) -> tuple[Any, int | None]:
    """What a call returns, and what it added to resident memory at its highest;
    ``None`` where the kernel does not say.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to what is resident now
        before = resident("VmRSS")
    except (OSError, AttributeError):
        return run(), None
    result = run()
    return result, max(0, resident("VmHWM") - before)


def bench(data: DataSet, makers: dict[str, Maker], rounds: int) -> dict[str, Any]:
    """Round trips, then `rounds` rounds. Exits if a codec does not give the bytes back."""
    pristine, array, out = data.array, data.array.copy(), np.empty_like(data.array)
    calls = max(1, TURN_NBYTES // pristine.nbytes)
    works = dict[str, Work]()
    payloads = dict[str, Any]()
    failed = dict[str, str]()
    peaks = dict[str, dict[str, int | None]]()
    for name, maker in makers.items():
        try:
            warm(maker, data.dtype)
            np.copyto(raw(array), raw(pristine))
            raw(out)[:] = 0xA5
            work = maker(data.dtype, array, out)
            payloads[name], encode_peak = with_peak(work.encode)
            np.copyto(raw(array), raw(pristine))
            back, decode_peak = with_peak(lambda: work.decode(payloads[name]))  # noqa: B023
            peaks[name] = {"encode_peak_nbytes": encode_peak, "decode_peak_nbytes": decode_peak}
        except Exception as e:
            failed[name] = f"{type(e).__name__}: {e}"
            print(f"{data.name}: {name} failed: {failed[name]}", flush=True)
            continue
        got = raw(out) if back is None else np.frombuffer(back, np.uint8)
        if not np.array_equal(got, raw(pristine)):
            raise SystemExit(f"{data.name}: {name} does not give the bytes back")
        works[name] = work

    def clock(run: Callable[[], Any]) -> float:
        total = 0.0
        for _ in range(calls):
            np.copyto(raw(array), raw(pristine))
            total += seconds(run)
        return total / calls

    names = list(works)
    encode_s = {n: list[float]() for n in works}
    decode_s = {n: list[float]() for n in works}
    wall, cpu = time.perf_counter(), time.process_time()
    for i in range(rounds):
        gc.collect()
        gc.disable()
        for name in names[i % len(names) :] + names[: i % len(names)]:
            encode_s[name].append(clock(works[name].encode))
            decode_s[name].append(clock(lambda name=name: works[name].decode(payloads[name])))  # type: ignore[misc]
        gc.enable()
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    nbytes = pristine.nbytes
    codecs = {}
    for name, work in works.items():
        stored = work.nbytes_of(payloads[name])
        codecs[name] = {
            "stored_nbytes": stored, "ratio": stored / nbytes,
            "encode": speed(nbytes, encode_s[name]), "decode": speed(nbytes, decode_s[name]),
            "encode_s": encode_s[name], "decode_s": decode_s[name], **peaks[name],
        }  # fmt: skip
    for row in codecs.values():
        for other in ("memcpy", "ZipNN"):
            for way in ("encode", "decode"):
                if other in codecs:
                    row[f"{way}_of_{other.lower()}"] = (
                        row[way]["median_gb_s"] / codecs[other][way]["median_gb_s"]
                    )
    return {
        "name": data.name, "origin": data.origin, "dtype": data.dtype,
        "shape": list(pristine.shape), "nbytes": nbytes, "rounds": rounds, "calls_a_round": calls,
        "cpu_share": share, "codecs": codecs, "failed": failed,
    }  # fmt: skip


def as_text(result: dict[str, Any], threads: dict[str, int]) -> Iterator[str]:
    """A table of one data set."""
    yield (
        f"\n{result['name']}, {size_text(result['nbytes'])}, {result['rounds']} rounds, "
        "GB/s of decoded bytes: median (p25..p75)"
    )
    if result["cpu_share"] < QUIET_SHARE:
        yield (
            f"disturbed: this process had its core for {result['cpu_share']:.0%} of the time; "
            "measure again"
        )
    head = [
        "codec",
        "threads",
        "size",
        "encode",
        "",
        "decode",
        "",
        "of memcpy: enc",
        "dec",
        "of ZipNN: enc",
        "dec",
        "peak: enc",
        "dec",
    ]
    rows = [head]
    for name, c in result["codecs"].items():
        cells = [name, str(threads[name]), percent_text(c["stored_nbytes"], result["nbytes"])]
        for s in (c["encode"], c["decode"]):
            cells += [f"{s['median_gb_s']:.2f}", f"({s['p25_gb_s']:.2f}..{s['p75_gb_s']:.2f})"]
        for key in ("encode_of_memcpy", "decode_of_memcpy", "encode_of_zipnn", "decode_of_zipnn"):
            cells.append(f"{c[key]:.2f}" if key in c else "-")
        cells += [
            "-" if c[f"{way}_peak_nbytes"] is None else size_text(c[f"{way}_peak_nbytes"])
            for way in ("encode", "decode")
        ]
        rows.append(cells)
    yield from table_text(rows)


def draw(results: list[dict[str, Any]], target: Path, title: str) -> None:
    """Size against speed of decoding, a panel for the first data set of each dtype and origin."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.use("svg")
    mpl.rcParams.update(
        {
            "svg.hashsalt": "wcodec",
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    origins = [o for o in ("generated", "file") if any(r["origin"] == o for r in results)]
    dtypes = [d for d in DTYPES if any(r["dtype"] == d for r in results)]
    fig, axes = plt.subplots(
        len(origins),
        len(dtypes),
        figsize=(2.7 * len(dtypes) + 0.6, 2.7 * len(origins) + 1.2),
        squeeze=False,
        sharey=True,
    )
    colors = dict(
        zip(
            [n for n in MAKERS if n not in ("memcpy", "wcodec")],
            plt.get_cmap("tab10").colors,
            strict=False,
        )
    )
    marks = dict(zip(colors, "os^vDP<>X", strict=False))
    handles: dict[str, Any] = {}
    for (i, origin), (j, dtype) in ((a, b) for a in enumerate(origins) for b in enumerate(dtypes)):
        ax = axes[i][j]
        result = next((r for r in results if (r["origin"], r["dtype"]) == (origin, dtype)), None)
        if result is None:
            ax.axis("off")
            continue
        for name, c in result["codecs"].items():
            x, s = 100 * c["ratio"], c["decode"]
            y = s["median_gb_s"]
            spread = [[s["median_gb_s"] - s["p25_gb_s"]], [s["p75_gb_s"] - s["median_gb_s"]]]
            if name == "memcpy":
                handles[name] = ax.axhline(y, color="0.45", linestyle="--", linewidth=1)
            else:
                style = (
                    {"color": "black", "marker": "*", "markersize": 11}
                    if name == "wcodec"
                    else {"color": colors[name], "marker": marks[name]}
                )
                handles[name] = ax.errorbar(x, y, yerr=spread, linestyle="none", **style)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_title(result["name"], fontsize=9)
        ax.grid(True, color="0.92")
        ax.set_axisbelow(True)
        if i == len(origins) - 1:
            ax.set_xlabel("size, % of the original")
        if j == 0:
            ax.set_ylabel("decode, GB/s")
    order = [n for n in MAKERS if n in handles]
    fig.legend(
        [handles[n] for n in order], order, loc="lower center", ncols=len(order), frameon=False
    )
    fig.suptitle(title, fontsize=10)
    fig.tight_layout(rect=(0, 0.06, 1, 1))
    fig.savefig(target, metadata={"Date": None})


# ---- the run -------------------------------------------------------------------------------------
def pin(core: int | None, threads: int) -> list[int]:
    """Keep this process on as many cores as threads: `core` and those before it.
    Threads that start later stay there too.
    """
    if not hasattr(os, "sched_setaffinity"):
        return []
    allowed = sorted(os.sched_getaffinity(0))
    at = len(allowed) - 1 if core is None else allowed.index(core)
    cores = [allowed[at - k] for k in range(min(threads, len(allowed)))]
    os.sched_setaffinity(0, cores)
    return sorted(cores)


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep freed memory instead of giving it back. Whether it listens."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        no_mmap, trim = -4, -1
        return bool(mallopt(no_mmap, 0)) and bool(mallopt(trim, (1 << 31) - 1))
    return False


def cpu_details() -> dict[str, Any]:
    """Of ``/proc/cpuinfo``: family, model, stepping, and the vector sets."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    found = dict(
        re.findall(r"^(cpu family|model|stepping|cache size|flags)\s*: (.*)$", text, re.MULTILINE)
    )
    flags = set(found.pop("flags", "").split())
    return {
        **found,
        "vectors": sorted(
            flags & {"avx2", "avx512f", "avx512bw", "avx512_vbmi2", "bmi2", "asimd", "sve"}
        ),
    }


def versions() -> dict[str, str]:
    """Of all that takes part."""
    out = {"wcodec": wcodec.__version__}
    for package in (
        "numpy",
        "ml_dtypes",
        "numba",
        "llvmlite",
        "torch",
        *(pip for pip, _ in NOTES.values()),
    ):
        with contextlib.suppress(PackageNotFoundError):
            out.setdefault(package, version(package))
    return out


def command_line() -> str:
    """The command, with paths cut to their last part."""
    return " ".join(["python", *(Path(a).name if "/" in a else a for a in sys.argv)])


def load_makers(
    threads: int, only: list[str]
) -> tuple[dict[str, Maker], dict[str, int], dict[str, str]]:
    """Codecs that are installed, how many threads each uses, and why not of the others."""
    makers, used, missing = dict[str, Maker](), dict[str, int](), dict[str, str]()
    for name in only:
        make, many = MAKERS[name]
        try:
            makers[name], used[name] = make(threads if many else 1), threads if many else 1
        except ImportError as e:
            missing[name] = f"not installed: pip install {NOTES[name][0]} ({e})"
            print(f"{name}: {missing[name]}", flush=True)
    return makers, used, missing


def parse() -> argparse.Namespace:
    """The command line."""

    def names(known: list[str]) -> Callable[[str], list[str]]:
        def split(text: str) -> list[str]:
            out = [x for x in text.split(",") if x]
            if wrong := [x for x in out if x not in known]:
                raise argparse.ArgumentTypeError(f"{', '.join(wrong)} not among {', '.join(known)}")
            return out

        return split

    def shapes(text: str) -> list[str]:
        out = [] if text == "none" else text.split(",")
        if not all(re.fullmatch(r"[1-9]\d*x[1-9]\d*", x) for x in out):
            raise argparse.ArgumentTypeError("shapes look like 4096x4096,256x256, or none")
        return out

    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--data",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="safetensors files",
    )
    p.add_argument(
        "--shapes",
        type=shapes,
        help="of generated tensors, or none (default: 4096x4096, and in bf16 five shapes)",
    )
    p.add_argument(
        "--dtypes",
        type=names(list(DTYPES)),
        default=list(DTYPES),
        help=f"of generated tensors (default: {','.join(DTYPES)})",
    )
    p.add_argument(
        "--codecs",
        type=names(list(MAKERS)),
        default=list(MAKERS),
        help=f"default: {','.join(MAKERS)}",
    )
    p.add_argument(
        "--rounds", type=int, default=9, help="default: 9; medians of fewer than 7 say little"
    )
    p.add_argument("--core", type=int, help="the core to stay on (default: the last)")
    p.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads and cores, for codecs that can use them (default: 1)",
    )
    p.add_argument(
        "--fresh-memory", action="store_true", help="let the allocator give freed memory back"
    )
    p.add_argument(
        "--out", type=Path, help="the JSON file (default: benchmarks/results/DATE-codecs-CPU.json)"
    )
    p.add_argument(
        "--figure", type=Path, metavar="OUT.svg", help="draw size against speed of decoding"
    )
    return p.parse_args()


def main() -> None:
    """Measure, print tables, write the JSON and the figure."""
    args = parse()
    if args.figure:
        importlib.import_module("matplotlib")  # rather now than after minutes
    cores = pin(args.core, args.threads)
    kept = not args.fresh_memory and keep_freed_memory()
    load_before = os.getloadavg()
    makers, threads, missing = load_makers(args.threads, args.codecs)
    results = []
    for data in data_sets(args):
        results.append(bench(data, makers, args.rounds))
        print("\n".join(as_text(results[-1], threads)), flush=True)
    if not results:
        raise SystemExit("there was nothing to measure")
    about = {
        **machine(),
        "command": command_line(),
        "versions": versions(),
        "cpu_details": cpu_details(),
        "cores_used": cores,
    }
    about |= {
        "threads": threads,
        "load_before": load_before,
        "freed_memory_kept": kept,
        "missing": missing,
        "notes": NOTES,
    }
    if "wcodec" in makers:
        about["backend"] = load_backend("numba", args.threads).info()
    d = about["cpu_details"]
    slug = re.sub(
        r"[^a-z0-9]+", "-", f"{about['cpu']} f{d.get('cpu family', 0)} m{d.get('model', 0)}".lower()
    ).strip("-")
    slug += f"-{args.threads}threads" if args.threads > 1 else ""
    out = args.out or RESULTS / f"{datetime.date.today().isoformat()}-codecs-{slug}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": about, "sets": results}, indent=1) + "\n")
    print(f"\n{out}")
    if args.figure:
        counted = f"{args.threads} thread{'s' if args.threads > 1 else ''}"
        draw(
            results,
            args.figure,
            f"Size and decoding speed, {counted}, {about['cpu']} (family {d.get('cpu family')}, "
            f"model {d.get('model')})",
        )
        print(args.figure)


if __name__ == "__main__":
    main()
