"""Other lossless codecs on the same bf16 weights and the same GPU, where they are installed:
nvCOMP's ANS, and DFloat11.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from gpu_device import Device, Effort, gpu_times, summary, wall_times
from numpy.typing import NDArray

Found = list[dict[str, Any]]
OPS = 16  #: launches and events of a call of theirs, at most, about


def missing(why: str) -> Found:
    """Nothing was measured."""
    return [{"missing": why}]


# ---- nvCOMP --------------------------------------------------------------------------------------
def nvcomp_ans(device: Device, arrays: Sequence[NDArray[Any]], effort: Effort) -> Found:
    """ANS on bytes and on 16-bit floats, which is nearest to bf16:
    the format has no mode of its own for that.
    """
    try:
        from nvidia import nvcomp
    except ImportError as e:
        return missing(f"nvidia-nvcomp-cu13 is not installed here ({e})")
    if not hasattr(device, "cupy"):
        return missing("needs a GPU")
    out: Found = []
    for data_type in ("|u1", "<f2"):
        try:
            out.append(_nvcomp_one(nvcomp, device, arrays, data_type, effort))
        except Exception as e:  # whatever another version of the library does differently
            out += missing(f"data type {data_type}: {type(e).__name__}: {e}")
    return out


def _nvcomp_one(
    nvcomp: Any, device: Any, arrays: Sequence[NDArray[Any]], data_type: str, effort: Effort
) -> dict[str, Any]:
    cupy = device.cupy
    stream = cupy.cuda.get_current_stream()
    codec = nvcomp.Codec(
        algorithm="ANS", device_id=device.number, cuda_stream=stream.ptr, data_type=data_type
    )
    words = [cupy.asarray(a.reshape(-1).view(np.uint8)) for a in arrays]
    sources = [nvcomp.as_array(w.view(np.dtype(data_type))) for w in words]
    device.synchronize()
    coded = [codec.encode(s) for s in sources]
    configs = [
        codec.decompression_config(c) if hasattr(codec, "decompression_config") else None
        for c in coded
    ]
    targets = [cupy.empty_like(w) for w in words]

    def decode(i: int) -> Any:
        if configs[i] is not None:
            return codec.decode(coded[i], out=targets[i], decompression_config=configs[i])
        return codec.decode(coded[i])  # an older one, which makes new memory

    for i, a in enumerate(arrays):
        back = cupy.asarray(decode(i))
        device.synchronize()
        if cupy.asnumpy(back).tobytes() != a.tobytes():
            raise AssertionError("what it decoded differs")
    nbytes, stored = arrays[0].nbytes, sum(int(c.buffer_size) for c in coded) / len(coded)

    def wait(i: int) -> None:
        decode(i)
        device.synchronize()

    turns = range(len(words))
    decoded = gpu_times(device, [lambda i=i: decode(i) for i in turns], OPS, effort)
    encoded = gpu_times(device, [lambda s=s: codec.encode(s) for s in sources], OPS, effort)
    return {
        "version": nvcomp.__version__, "options": f"data type {data_type}, chunks of 64 KiB",
        "ratio": stored / nbytes,
        "decode": summary(decoded, nbytes),
        "call": summary(wall_times([lambda i=i: wait(i) for i in turns], effort), nbytes),
        "encode": summary(encoded, nbytes),
    }  # fmt: skip


# ---- DFloat11 ------------------------------------------------------------------------------------
THREADS = 512
THREAD_NBYTES = 8  #: of the stream, to a thread of its kernel
THREAD_BITS, BLOCK_BITS = 8 * THREAD_NBYTES, 8 * THREAD_NBYTES * THREADS


class Huffman(NamedTuple):
    """A stream as the kernel of DFloat11 takes it: its bytes, where the first code of each thread
    begins, symbols before each block.
    """

    data: NDArray[np.uint8]
    gaps: NDArray[np.uint8]
    positions: NDArray[np.uint32]


def huffman(
    symbols: NDArray[np.uint8], table: dict[Any, tuple[int, int]], end: tuple[int, int]
) -> Huffman:
    """Code symbols by a table of (bits, code); `end` fills the last byte. DFloat11's own encoder
    takes a microsecond a symbol.
    """
    bits, codes = np.zeros(256, np.int64), np.zeros(256, np.uint32)
    for symbol, (n, code) in table.items():
        if isinstance(symbol, int):
            bits[symbol], codes[symbol] = n, code
    lengths = bits[symbols]
    starts = np.cumsum(lengths) - lengths
    n_bits = int(lengths.sum())
    stream = np.zeros(n_bits + -n_bits % 8, np.uint8)
    for k in range(int(bits.max())):
        some = np.flatnonzero(lengths > k)
        stream[starts[some] + k] = (
            codes[symbols[some]] >> (lengths[some] - 1 - k).astype(np.uint32) & 1
        )
    for k, at in enumerate(range(n_bits, stream.size)):
        stream[at] = end[1] >> (end[0] - 1 - k) & 1 if k < end[0] else 0
    data = np.packbits(stream)
    # what fills the last byte begins where a code might
    marks = np.append(starts, n_bits) if n_bits % 8 else starts
    first = np.searchsorted(marks, np.arange(0, marks[-1] + 1, THREAD_BITS))
    n_blocks = -(-data.size // (THREADS * THREAD_NBYTES))
    gaps = np.zeros(n_blocks * THREADS, np.uint8)
    gaps[: first.size] = marks[first] % THREAD_BITS
    five = np.unpackbits(gaps[:, None], axis=1)[:, 3:]
    positions = np.append(
        np.searchsorted(marks, np.arange(0, marks[-1] + 1, BLOCK_BITS)), symbols.size
    )
    return Huffman(data, np.packbits(five), positions.astype(np.uint32))


def dfloat11(device: Device, arrays: Sequence[NDArray[Any]], effort: Effort) -> Found:
    """Its kernel, decoding tensor by tensor; the table is its own, the stream that of `huffman`."""
    spec = importlib.util.find_spec("dfloat11")
    if spec is None or not spec.submodule_search_locations:
        return missing("dfloat11 is not installed here")
    folder = Path(spec.submodule_search_locations[0])
    try:
        import torch

        # the package itself imports much that only whole models need
        tables = _module(folder / "dfloat11_utils.py")
    except ImportError as e:
        return missing(f"dfloat11 is there, but not what it needs: {e}")
    if not hasattr(device, "cupy"):
        return missing("needs a GPU")
    a = arrays[0].reshape(-1).view(np.uint16)
    with contextlib.redirect_stdout(io.StringIO()):
        _, counts = tables.get_codec(torch.from_numpy(a.view(np.int16)).view(torch.bfloat16))
        codec, _, table = tables.get_32bit_codec(counts)
        luts = np.ascontiguousarray(tables.get_luts(table).numpy())
    stream = huffman((a >> 7 & 255).astype(np.uint8), table, codec._table[codec._eof])
    rest = (a >> 8 & 0x80 | a & 0x7F).astype(np.uint8)
    return [_dfloat11_times(device, folder / "decode.ptx", a, luts, stream, rest, effort)]


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _dfloat11_times(
    device: Any, ptx: Path, a: Any, luts: Any, stream: Huffman, rest: Any, effort: Effort
) -> dict[str, Any]:
    cupy = device.cupy
    kernel = cupy.RawModule(path=str(ptx)).get_function("decode")
    shared = 4 * THREADS + 4 + 2 * int(np.diff(stream.positions.astype(np.int64)).max())
    if shared > 48 << 10:
        kernel.max_dynamic_shared_size_bytes = shared
    grid = math.ceil(stream.data.size / (THREADS * THREAD_NBYTES))
    counts = np.uint32(luts.shape[0]), np.uint32(stream.data.size), np.uint32(a.size)
    stored = (
        stream.data.nbytes
        + stream.gaps.nbytes
        + stream.positions.nbytes
        + rest.nbytes
        + luts.nbytes
    )
    n_sets = max(2, math.ceil(3 * device.l2_nbytes / (a.nbytes + stored)))
    host = luts, stream.data, rest, stream.positions, stream.gaps
    sets = [
        (*(cupy.asarray(h) for h in host), cupy.asarray(np.full_like(a, 0xA5A5)))
        for _ in range(n_sets)
    ]

    def decode(i: int) -> None:
        kernel((grid,), (THREADS,), (*sets[i], *counts), shared_mem=shared)

    for i in range(n_sets):
        decode(i)
        if not np.array_equal(sets[i][-1].get(), a):
            raise AssertionError("what it decoded differs")
    times = gpu_times(device, [lambda i=i: decode(i) for i in range(n_sets)], 1, effort)
    return {
        "version": version("dfloat11"),
        "options": "kernel",
        "ratio": stored / a.nbytes,
        "decode": summary(times, a.nbytes),
    }


CODECS: dict[str, Callable[[Device, Sequence[NDArray[Any]], Effort], Found]] = {
    "nvCOMP ANS": nvcomp_ans,
    "DFloat11": dfloat11,
}
