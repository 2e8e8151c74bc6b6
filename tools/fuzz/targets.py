"""What is fuzzed: functions of bytes, each of which holds wcodec to its contract.

Whatever the bytes are, a decoder accepts them or refuses them with a code of the closed list, and
all decoders say and give the same. A function here returns if that is so. Anything else that it
raises is a bug, and so is a crash, or an input that takes long or much memory.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Final
from unittest import mock

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("", "spec", "tests", "tests/backends", "tools/fuzz")]

import cuda_emulator  # noqa: E402
import decoder as spec_decoder  # noqa: E402
import fuzz_segments  # noqa: E402
import numpy as np  # noqa: E402
from cuda_emulator import EmulatedRuntime  # noqa: E402
from fences import Heap  # noqa: E402
from mutations import mutate_file, mutate_hub, mutate_json, mutate_safetensors  # noqa: E402
from sealing import MAX_TENSOR_NBYTES, mended  # noqa: E402

from wcodec.backends import Backend, load_backend  # noqa: E402
from wcodec.codec.decoder import Decoder  # noqa: E402
from wcodec.codec.sources import BufferSource  # noqa: E402
from wcodec.conformance.coded import coded_of, payload_of  # noqa: E402
from wcodec.cuda import loader  # noqa: E402
from wcodec.cuda.linear import linear  # noqa: E402
from wcodec.cuda.loader import Loader  # noqa: E402
from wcodec.cuda.operand import Operand, kernel_problem  # noqa: E402
from wcodec.deltas.manifest import read_manifest  # noqa: E402
from wcodec.directories.configs import remove_entry  # noqa: E402
from wcodec.directories.hub_header import read_hub_header  # noqa: E402
from wcodec.directories.hub_reading import HubFile  # noqa: E402
from wcodec.errors import DecodeError, EncodeError  # noqa: E402
from wcodec.files.bases import OpenBase  # noqa: E402
from wcodec.files.file import File, open_base  # noqa: E402
from wcodec.files.safetensors_header import read_safetensors_header  # noqa: E402
from wcodec.files.shard_index import is_plain_name, parse_weight_map  # noqa: E402
from wcodec.inspect.report import as_text, describe  # noqa: E402
from wcodec.reference.checksums import crc32_each  # noqa: E402
from wcodec.reference.container import Index, read_index, write_index  # noqa: E402
from wcodec.reference.planes import BY_NAME  # noqa: E402
from wcodec.reference.segments import SegmentPlan  # noqa: E402
from wcodec.reference.tensors import TensorRecord  # noqa: E402

MAX_NBYTES: Final = 1 << 20  #: decoded bytes of a file: a legal one may ask for far more
SPEC_NBYTES: Final = 2048  #: decoded bytes up to which the spec's slow decoder is asked too
BACKENDS: Final = ("reference", "numba")
VECTORS: Final = tuple(ROOT / "conformance_vectors" / name for name in ("accept", "reject"))
BASE: Final = VECTORS[0] / "checkpoint.wcodec"  #: that `check_base` gives
BF16: Final = BY_NAME["bfloat16"].numpy


class Broken(Exception):
    """The contract does not hold."""


def require(holds: bool, message: str) -> None:
    """Raise `Broken` unless a condition holds."""
    if not holds:
        raise Broken(message)


def outcome(function: Callable[[], Any]) -> tuple[str, Any]:
    """The code with which something is refused, or none and what it returns."""
    try:
        return "", function()
    except (DecodeError, EncodeError) as e:
        return e.code, None


def agreed(function: Callable[[Backend], Any]) -> tuple[str, Any]:
    """As `outcome`, of a function of a backend, for which it is the same with all of them."""
    first, *others = (outcome(lambda b=b: function(b)) for b in backends())
    for name, other in zip(BACKENDS[1:], others, strict=True):
        require(first[0] == other[0], f"{name}: {other[0]!r}; {BACKENDS[0]}: {first[0]!r}")
        require(first[1] == other[1], f"{name} gives something else than {BACKENDS[0]}")
    return first


@cache
def backends() -> tuple[Backend, ...]:
    """One of each kind, which works in this thread alone."""
    return tuple(load_backend(name, 1) for name in BACKENDS)


# ---- headers and indexes -------------------------------------------------------------------------
def check_safetensors(data: bytes) -> None:
    """An encoder and a decoder read a safetensors header alike."""
    source = BufferSource(data)
    code, header = outcome(lambda: read_safetensors_header(source))
    hub_code, hub = outcome(lambda: read_hub_header(source))
    require(code in ("", "bad_source"), f"the header is refused with {code}")
    # of the two only the decoder wants an object that starts at once
    if hub_code != "bad_magic" and data:
        require((code == "") == (hub_code == ""), f"encoder: {code!r}; decoder: {hub_code!r}")
        require(header == hub, "encoder and decoder read different headers")


def check_weight_map(data: bytes) -> None:
    """An index of shards, and a ``config.json``: texts that stand beside files of weights."""
    _, names = outcome(lambda: parse_weight_map(data))
    for name in (names or {}).values():
        inside = os.path.dirname(os.path.normpath(os.path.join("/folder", name))) == "/folder"
        require(not is_plain_name(name) or inside, f"{name!r} is taken for the name of a file")
    outcome(lambda: remove_entry(data))


def check_manifest(data: bytes) -> None:
    """The manifest of a chain: what is read is written the same, and names files beside it."""
    code, manifest = outcome(lambda: read_manifest(data))
    if code:
        return
    require(read_manifest(manifest.write()) == manifest, "it is written as another manifest")
    for v in manifest.versions:
        require(is_plain_name(v.file), f"{v.file!r} is taken for the name of a file")
        require(manifest.path(v)[-1] is v, "no path leads to a version")


def summary(index: Index) -> bytes:
    """All that an index says, as it would be written."""
    return write_index(index, index.index_offset)


def index_of(data: bytes, backend: Backend) -> Index:
    """The index of a file, as a backend reads it."""
    return read_index(BufferSource(data), backend.read_tables, backend.check_plan)


def check_index(data: bytes) -> None:
    """Backends read an index alike, and one that is written again says the same."""
    code, written = agreed(lambda b: summary(index_of(data, b)))
    require(code not in ("bad_patch", "resource_limit"), f"an index is refused with {code}")
    if not code:
        at = read_index(BufferSource(data)).index_offset
        again = read_index(BufferSource(data[:at] + written))
        require(summary(again) == written, "what was written is read as something else")


def quick_index(data: bytes) -> str:
    """The fastest backend reads an index."""
    return outcome(lambda: index_of(data, backends()[-1]))[0]


# ---- files ---------------------------------------------------------------------------------------
def decoded(data: bytes, backend: Backend) -> list[tuple[str, str, bytes]]:
    """Name of each tensor, and the code with which it is refused or its bytes."""
    decoder = Decoder(backend, MAX_NBYTES)
    source = BufferSource(data)
    index, out = decoder.read_index(source), []
    for t in index.tensors:
        code, array = outcome(lambda t=t: decoder.tensor(source, t, index.tables))
        out.append((t.name, code, b"" if array is None else array.tobytes()))
    return out


def spec_decoded(data: bytes, base: bytes = b"") -> list[bytes] | None:
    """The source's header and the tensors that the spec's decoder gives; none of a file that it
    refuses.
    """
    try:
        return list(spec_decoder.decode_file(data, base))
    except spec_decoder.Refused:
        return None


def check_decode(data: bytes) -> None:
    """Backends decode a file alike: as it is, and with all checksums mended. So does the decoder
    of the spec, which says the same of small files.
    """
    for file in dict.fromkeys((data, mended(data, backends()[0]))):
        code, tensors = agreed(lambda b, file=file: decoded(file, b))
        n = 0 if code else read_index(BufferSource(file)).data_nbytes
        if code == "resource_limit" or n > SPEC_NBYTES:
            continue
        refused = {code, *(t[1] for t in tensors or [])} - {""}
        expected = None if refused else [t[2] for t in tensors]
        spec = spec_decoded(file)
        same = (None if spec is None else spec[1:]) == expected
        require(same, f"the spec's decoder differs; here: {refused}")


def quick_decode(data: bytes) -> str:
    """The fastest backend decodes a file with all checksums mended."""
    backend = backends()[-1]
    return outcome(lambda: decoded(mended(data, backend), backend))[0]


def used(data: bytes, backend: Backend, base: Path | None = None) -> list[tuple[str, Any]]:
    """What people get out of a file: the report, the file that it restores, tensors, slices, and
    tensors as files of their own; or the code with which each is refused.
    """
    with File(data, backend, MAX_NBYTES, base) as f:
        report = outcome(lambda: json.dumps({**describe(f), "backend": ""}))
        text = outcome(lambda: list(as_text(describe(f)))[1:])
        out = [report, text, outcome(lambda: b"".join(map(bytes, f.restored())))]
        for name in f.keys():  # noqa: SIM118 (a file is no dictionary)
            code, whole = outcome(lambda name=name: f.get_tensor(name))
            part_code, part = outcome(lambda name=name: f.get_slice(name)[...])
            own_code, own = outcome(lambda name=name: Decoder(backend).decode(f.extract(name)))
            out += [(code, None), (part_code, None), (own_code, None)]
            if not code:
                same = [a is not None and a.tobytes() == whole.tobytes() for a in (part, own)]
                require(all(same), f"{name!r}: slice and extracted file: {part_code} {own_code}")
                out.append(("", whole.tobytes()))
    return out


def check_file(data: bytes) -> None:
    """What people do with a file gives the same with all backends, its checksums mended."""
    file = mended(data, backends()[0])
    agreed(lambda b: used(file, b))


def quick_file(data: bytes) -> str:
    """The fastest backend does all that with a file."""
    backend = backends()[-1]
    return outcome(lambda: used(mended(data, backend), backend))[0]


@cache
def _base() -> OpenBase:
    return open_base(BASE, backends()[-1])


def check_base(data: bytes) -> None:
    """As `check_file`, of one that may hold differences from `BASE`. The decoder of the spec says
    the same of small ones.
    """
    file = mended(data, backends()[0], _base())
    code, got = agreed(lambda b: used(file, b, BASE))
    if code == "resource_limit":
        return
    refused, restored = (code, None) if code else got[2]
    if code or read_index(BufferSource(file)).data_nbytes <= SPEC_NBYTES:
        parts = spec_decoded(file, BASE.read_bytes())
        same = (parts is None) == (restored is None)
        if parts is not None and restored is not None:  # a header is made where there is none
            same = restored.endswith(b"".join(parts[1:]))
        require(same, f"the spec's decoder differs; here: {refused!r}")


def quick_base(data: bytes) -> str:
    """The fastest backend restores what such a file holds."""
    backend = backends()[-1]

    def read() -> bytes:
        with File(mended(data, backend, _base()), backend, MAX_NBYTES, BASE) as f:
            return b"".join(map(bytes, f.restored()))

    return outcome(read)[0]


# ---- kernels -------------------------------------------------------------------------------------
@contextmanager
def fenced_device(heap: Heap) -> Iterator[None]:
    """Let memory of emulated devices, whose blocks are aligned, stand behind fences too."""

    def allocate(nbytes: int) -> Any:
        return heap.empty(nbytes + -nbytes % 16, np.uint8)[:nbytes]

    with mock.patch.object(cuda_emulator, "_allocate", allocate):
        yield


def check_segments(data: bytes, backend: Backend) -> None:
    """A backend decodes the segments of a file as the reference does, behind fences: before or
    after the memory, and with checksums in one call or in two, as the file's bytes decide.
    """
    coin = zlib.crc32(data)
    code, index = outcome(lambda: read_index(BufferSource(data)))
    for t in index.tensors if not code else ():
        if t.duplicate_of is not None or not 0 < t.nbytes <= MAX_TENSOR_NBYTES:
            continue
        for coded in coded_of(data, t, index.tables, backend):
            _check_coded(coded.plan, coded.payload, backend, coin)


def _check_coded(plan: SegmentPlan, payload: Any, backend: Backend, coin: int) -> None:
    heap = Heap()
    heap.at_end, at_once = bool(coin & 1), bool(coin & 2)
    with fuzz_segments.fenced_numba(heap), fenced_device(heap):
        backend.close()
        try:
            status, records, words = fuzz_segments.decode(backend, heap, plan, payload, at_once)
        finally:
            backend.close()
    fuzz_segments.check_reference(plan, payload, status, words)
    right = np.array_equal(records, crc32_each(payload, plan.offsets))
    require(right, "checksums of records are wrong")


@cache
def _runtime() -> EmulatedRuntime:
    return EmulatedRuntime(coverage="coverage" in os.environ.get("WCODEC_EMULATOR", ""))


@cache
def _loader() -> Loader:
    return Loader(streams=2, runtime_of=lambda _: _runtime())


def check_loader(data: bytes) -> None:
    """What is loaded to an emulated GPU, in small pieces, is what the host decodes."""
    heap = Heap()
    with (
        suppress(DecodeError),  # of a file that cannot be opened
        File(mended(data, backends()[-1]), backends()[-1], MAX_NBYTES) as f,
        mock.patch.object(loader, "SLOT_NBYTES", 1 << 12),
        fenced_device(heap),
    ):
        for name in f.keys():  # noqa: SIM118 (a file is no dictionary)
            code, there = outcome(lambda name=name: _loader().load_open(f, [name])[name].numpy())
            right, here = outcome(lambda name=name: f.get_tensor(name))
            require(code == right, f"{name!r}: the loader: {code!r}; the host: {right!r}")
            same = here is None or here.tobytes() == there.tobytes()
            require(same, f"{name!r}: the loader gives something else")
        require(heap.whole, "memory of the device beside a buffer was written to")


def check_linear(data: bytes) -> None:
    """Kernels of products read operands as the reference does: all words, and a product with
    columns of the unit matrix, if there are none but numbers.
    """
    code, index = outcome(lambda: read_index(BufferSource(data)))
    for t in index.tensors if not code else ():
        if t.duplicate_of is None and t.nbytes <= MAX_TENSOR_NBYTES and not kernel_problem(t):
            heap = Heap()
            heap.at_end = bool(zlib.crc32(data) & 1)
            with fenced_device(heap):
                _check_operand(t, index, payload_of(t, data), heap)
            require(heap.whole, "memory of the device beside a buffer was written to")


def _check_operand(t: TensorRecord, index: Index, payload: Any, heap: Heap) -> None:
    words = np.empty(t.shape, t.dtype.word_type)
    status = backends()[0].decode_segments(t.plan(index.tables), payload, words)
    payload = heap.copy(payload, frozen=True)
    operand = Operand(_runtime(), t, index.tables, payload.ctypes.data)
    out = heap.empty(t.shape, words.dtype)
    operand.expand(out.ctypes.data)
    chosen = np.linspace(0, t.shape[1] - 1, min(t.shape[1], 8)).astype(np.int64)
    x, y = heap.zeros((8, t.shape[1]), BF16), heap.zeros((8, t.shape[0]), BF16)
    x[np.arange(chosen.size), chosen] = 1
    linear(x.ctypes.data, 8, operand, y.ctypes.data)
    if status.any():  # an operand is taken to be whole
        return
    require(np.array_equal(out, words), "an operand is expanded to something else")
    values = words.view(t.dtype.numpy).astype(np.float32)
    if np.isfinite(values).all():
        same = np.array_equal(y[: chosen.size].astype(np.float32), values[:, chosen].T)
        require(same, "a product with columns of the unit matrix is not the columns")


@cache
def _file() -> IO[bytes]:
    """Kept open: to write a file anew may wait for the disk when it is closed."""
    return tempfile.NamedTemporaryFile(prefix="wcodec-fuzz-", suffix=".safetensors")


def restored(data: bytes, backend: Backend) -> bytes:
    """The file that one in hub form restores."""
    file = _file()
    file.seek(0)
    file.truncate()
    file.write(data)
    file.flush()
    return b"".join(map(bytes, HubFile(Path(file.name), backend, MAX_NBYTES).restored()))


def check_hub(data: bytes) -> None:
    """Backends read a file in hub form alike."""
    agreed(lambda b: restored(data, b))


def quick_hub(data: bytes) -> str:
    """The fastest backend reads a file in hub form."""
    return outcome(lambda: restored(data, backends()[-1]))[0]


# ---- all of them ---------------------------------------------------------------------------------
#: what makes an input out of another: its bytes, the most bytes, a seed, and libFuzzer's mutator
Mutator = Callable[[bytes, int, int, Callable[[bytes, int], bytes]], bytes]


@dataclass(frozen=True)
class Target:
    """One thing that is fuzzed.

    Attributes
    ----------
    check
        Holds wcodec to its contract for an input.
    mutate
        Makes an input out of another.
    seeds
        Folders of inputs that the corpus is chosen from, besides what is found.
    quick
        Checks less, in a fraction of the time, and returns the code with which the input is
        refused, if it is.
    backend
        Whose segments are decoded.
    corpus
        The target whose corpus it has, if it is another's.
    cpu
        Name in `variants.ALL_VARIANTS` of the lesser CPU that numba compiles for; none for that at
        hand.
    """

    check: Callable[[bytes], None]
    mutate: Mutator
    seeds: tuple[Path, ...] = ()
    quick: Callable[[bytes], str] | None = None
    backend: str = ""
    cpu: str = ""
    corpus: str = ""


def _segments(backend: str, cpu: str = "") -> Target:
    @cache
    def loaded() -> Backend:
        return load_backend(backend, 1)

    def check(data: bytes) -> None:
        check_segments(data, loaded())

    return Target(check, mutate_file, VECTORS, backend=backend, cpu=cpu, corpus="segments")


TARGETS: Final = {
    "index": Target(check_index, mutate_file, VECTORS, quick_index),
    "decode": Target(check_decode, mutate_file, VECTORS, quick_decode),
    "file": Target(check_file, mutate_file, VECTORS, quick_file),
    "base": Target(check_base, mutate_file, quick=quick_base),
    "hub": Target(check_hub, mutate_hub, quick=quick_hub),
    "safetensors": Target(check_safetensors, mutate_safetensors),
    "weight_map": Target(check_weight_map, mutate_json),
    "manifest": Target(check_manifest, mutate_json),
    "segments_numba": _segments("numba"),
    "segments_numba_avx2": _segments("numba", "avx2"),
    "segments_numba_plain": _segments("numba", "plain"),
    "segments_cuda": _segments("cuda_emulator.backend:EmulatedCuda"),
    "segments_reference": _segments("reference"),
    "loader": Target(check_loader, mutate_file, VECTORS, corpus="decode"),
    "linear": Target(check_linear, mutate_file),
}


def corpus_of(name: str) -> Path:
    """The folder of a target's corpus, which some have together."""
    return ROOT / "tests" / "corpus" / (TARGETS[name].corpus or name)
