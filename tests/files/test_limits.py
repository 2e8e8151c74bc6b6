"""What reading a file may take: memory and time against size, and limits that the caller sets."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import worst_cases
from inputs import safetensors_bytes
from memory import peak_of
from numpy.typing import NDArray

import wcodec
from wcodec.backends import load_backend
from wcodec.cli import main
from wcodec.codec.decoder import Decoder
from wcodec.codec.sources import BufferSource
from wcodec.codec.working import working_nbytes
from wcodec.directories.decoding import decode_directory, verify_directory
from wcodec.directories.hub_reading import HubFile, decode_hub_file, verify_hub_file
from wcodec.errors import DecodeError, EncodeError
from wcodec.files.checkpoint import decode_file, verify_file
from wcodec.files.file import File
from wcodec.files.repack import repack_file
from wcodec.files.safetensors_header import parse_safetensors_header
from wcodec.planner.options import EncodeOptions
from wcodec.reference.container import FOOTER, MAX_INDEX_RATIO, write_header
from wcodec.reference.memory import DEFAULT_MAX_MEMORY, Memory, nbytes_of

GAUSSIAN = np.random.default_rng(0).standard_normal((256, 512)).astype(np.float32)


# ---- worst cases ---------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("row", worst_cases.ROWS)
def test_no_file_takes_more_than_is_counted(row: str, backend: str) -> None:
    """In objects and arrays, once tensors have their plans."""
    used, data = load_backend(backend), worst_cases.build(row, 1 << 16)

    def read() -> None:
        with File(data, used) as f:
            for t in f.index.tensors:
                plan = f.original(t).plan(f.index.tables)
                _ = plan.offsets, plan.stream_nbytes

    memory = Memory()
    Decoder(used).read_index(BufferSource(data), memory)
    assert peak_of(read) <= memory.taken + (1 << 16)


def test_a_table_has_at_least_seven_bytes() -> None:
    """Frequencies of two symbols take 20 bits at least, however they are split."""

    def n_bits(value: int, k: int) -> int:
        return 2 * ((value >> k) + 1).bit_length() - 1 + k

    least = min(
        n_bits(a, k) + n_bits((1 << bits) - a, k)
        for bits in range(9, 13)
        for a in range(1, 1 << bits)
        for k in range(12)
    )
    assert len(worst_cases.TABLE) == 4 + -(-least // 8) == 7


def test_an_index_is_refused_before_it_is_inflated() -> None:
    data = worst_cases.build("inflating", 1 << 24)
    assert len(data) < (1 << 24) // (MAX_INDEX_RATIO - 2)
    tracemalloc.start()
    try:
        with pytest.raises(
            DecodeError,
            match=r"^resource_limit: .* index of 17\d{6} bytes; 16777216 .*--max-memory",
        ):
            Decoder(max_memory=1 << 24).read_index(BufferSource(data))
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


class _Footer:
    """A file of which only header and footer are there; `raw` bytes of records are announced."""

    def __init__(self, raw: int) -> None:
        self.stored, self.raw = -(-raw // MAX_INDEX_RATIO), raw
        self.nbytes = 32 + self.stored + FOOTER.size

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        if offset == 0:
            return np.frombuffer(write_header(), np.uint8)[:nbytes]
        assert offset == self.nbytes - FOOTER.size, "more is read"
        return np.frombuffer(self._foot(), np.uint8)

    def _foot(self) -> bytes:
        end = b"WCODECFT"
        sizes = 32, self.stored, self.raw, self.nbytes, 0, 0, 1, bytes(3), 0
        body = FOOTER.pack(*sizes, 0, end)[:52]
        return body + struct.pack("<I", worst_cases.zlib.crc32(body)) + end


def test_by_default_an_index_has_a_limit() -> None:
    with pytest.raises(DecodeError, match=f"{DEFAULT_MAX_MEMORY} are allowed"):
        Decoder().read_index(_Footer(1 << 29))
    with pytest.raises(AssertionError, match="more is read"):  # it would be read now
        Decoder(max_memory=1 << 40).read_index(_Footer(1 << 29))


def test_a_process_with_little_memory_says_so(tmp_path: Path) -> None:
    """The index is refused, where it would not fit."""
    path = tmp_path / "worst.wcodec"
    path.write_bytes(worst_cases.build("segments of 8-byte words", 1 << 22))
    script = (
        "import resource, sys, wcodec\n"
        "from worst_cases import build, _status\n"
        "wcodec.open(build('tables', 1000))\n"
        "limit = _status('VmSize') + (128 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "try:\n"
        "    wcodec.open(sys.argv[1], max_memory=1 << 26)\n"
        "except wcodec.DecodeError as e:\n"
        "    print(e)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "WCODEC_BACKEND": "reference"},
    )
    assert run.stdout.startswith(f"resource_limit: in {str(path)!r}: reading the file may take")


def seconds(work: Callable[[], object]) -> float:
    """CPU time of this thread, the least of three runs."""
    found = list[float]()
    for _ in range(3):
        start = time.thread_time()
        work()
        found.append(time.thread_time() - start)
    return min(found)


@pytest.mark.exhaustive  # of time, if only as a ratio: a machine under load may take longer
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("row", ["tensors beside maps", "duplicates", "metadata", "names"])
def test_time_grows_as_the_size_does(row: str, backend: str) -> None:
    """Eight times the size may not take four times as long as it should: squares take eight."""
    used = load_backend(backend)
    less, more = (BufferSource(worst_cases.build(row, n)) for n in (1 << 16, 1 << 19))
    one, other = (seconds(lambda s=s: Decoder(used).read_index(s)) for s in (less, more))
    assert other < 32 * one + 0.01


def test_a_shape_of_very_many_dimensions_takes_no_time() -> None:
    """Multiplied to the end it would take minutes."""
    entry = {"dtype": "F32", "shape": [(1 << 63) - 1] * 1_000_000, "data_offsets": [0, 4]}
    raw = json.dumps({"w": entry}).encode()
    with pytest.raises(EncodeError, match="4 bytes for a F32 tensor"):
        parse_safetensors_header(struct.pack("<Q", len(raw)) + raw)


# ---- buffers -------------------------------------------------------------------------------------
def _arrays() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(1)
    wide = rng.standard_normal((32, 1 << 16)).astype(ml_dtypes.bfloat16)
    return {
        "int8": (rng.standard_normal((512, 512)) * 20).astype(np.int8),
        "bfloat16": wide,
        "int64": (rng.standard_normal((256, 512)) * 1e9).astype(np.int64),
    }


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("name", ["int8", "bfloat16", "int64"])
@pytest.mark.parametrize("coder", ["rans", "context"])
def test_no_decoding_takes_more_than_is_counted(
    name: str, coder: str, backend: str, tmp_path: Path
) -> None:
    array = _arrays()[name] if backend == "numba" else _arrays()[name][:32, : 1 << 10]
    options = EncodeOptions(coder=coder, layout="bytes", predictor="left", force=True)
    with wcodec.use_backend("numba"):
        wcodec.save_file({"w": array}, tmp_path / "m", options=options)
    used, out = load_backend(backend), np.empty_like(array)
    with File(tmp_path / "m", used) as f:
        _ = f.get_tensor("w"), list(f.restored())  # keeps its plan
        most = working_nbytes(f.index, used)
        assert peak_of(lambda: f.get_tensor("w", out)) <= most + (1 << 16)
        f.decoder = Decoder(used)  # without the buffers of before
        assert peak_of(lambda: [len(piece) for piece in f.restored()]) <= most + (1 << 16)


# ---- everywhere ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each kind, and directories of them."""
    folder = tmp_path_factory.mktemp("limits")
    plain = safetensors_bytes([("w", "F32", [256, 512], GAUSSIAN.tobytes())])
    for form in ("wcodec", "hub"):
        (folder / "plain").mkdir(exist_ok=True)
        (folder / "plain" / "m.safetensors").write_bytes(plain)
        wcodec.encode_safetensors_to_wcodec(folder / "plain", folder / form, form=form)
    wcodec.save_file({"w": GAUSSIAN}, folder / "m.wcodec")
    wcodec.encode_safetensors_to_wcodec(
        folder / "plain" / "m.safetensors", folder / "hub.safetensors", form="hub"
    )
    return folder


def _readers(folder: Path, out: Path) -> dict[str, Callable[..., object]]:
    file, hub = folder / "m.wcodec", folder / "hub.safetensors"
    import wcodec.torch as of_torch

    return {
        "open": lambda **limits: wcodec.open(file, **limits),
        "load_file": lambda **limits: wcodec.load_file(file, **limits),
        "decode": lambda **limits: wcodec.decode(wcodec.encode(GAUSSIAN), **limits),
        "Decoder": lambda **limits: Decoder(**limits).decode(wcodec.encode(GAUSSIAN)),
        "decode_file": lambda **limits: decode_file(file, out / "a", **limits),
        "verify_file": lambda **limits: verify_file(file, **limits),
        "repack_file": lambda **limits: repack_file(file, out / "b", **limits),
        "HubFile": lambda **limits: HubFile(hub, **limits),
        "decode_hub_file": lambda **limits: decode_hub_file(hub, out / "c", **limits),
        "verify_hub_file": lambda **limits: verify_hub_file(hub, **limits),
        "decode a directory": lambda **limits: decode_directory(
            folder / "wcodec", out / "d", **limits
        ),
        "decode a hub": lambda **limits: decode_directory(folder / "hub", out / "e", **limits),
        "verify a directory": lambda **limits: verify_directory(folder / "wcodec", **limits),
        "torch.load_file": lambda **limits: of_torch.load_file(file, **limits),
        "torch.safe_open": lambda **limits: of_torch.safe_open(file, **limits),
    }


READERS = list(_readers(Path(), Path()))


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_takes_limits(reader: str, folder: Path, tmp_path: Path) -> None:
    read = _readers(folder, tmp_path)[reader]
    for limits in ({"max_nbytes": GAUSSIAN.nbytes - 1}, {"max_memory": 1000}):
        (option,) = limits
        with pytest.raises(DecodeError, match=f"^resource_limit: .*{option} ") as raised:
            read(**limits)
        if "decode" != reader != "Decoder":
            of_all = option == "max_nbytes" and " a " in reader  # files of a directory
            assert (raised.value.file is None) == of_all
        assert not list(tmp_path.iterdir())
    read(max_nbytes=GAUSSIAN.nbytes, max_memory=1 << 27)


@pytest.mark.parametrize(
    "command",
    [
        *(["verify", n] for n in ("m.wcodec", "hub.safetensors", "wcodec", "hub")),
        *(["info", n] for n in ("m.wcodec", "hub.safetensors", "wcodec", "hub")),
        ["info", "--explain", "m.wcodec"],
        ["repack", "m.wcodec", "-o", "out"],
        *(["decode", n, "-o", "out"] for n in ("m.wcodec", "hub.safetensors", "wcodec", "hub")),
    ],
)
def test_every_command_takes_limits(
    command: list[str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    args = [str(folder / a) if (folder / a).exists() else a for a in command]
    for option, value in (("--max-nbytes", "500K"), ("--max-memory", "1000")):
        assert main([*args, option, value]) == 1
        said = capsys.readouterr().err
        of_all = option == "--max-nbytes" and os.path.isdir(args[-1] if len(args) == 2 else args[1])
        assert said.startswith("wcodec: error: resource_limit: " + "in '" * (not of_all))
        assert f"({option}) allows more" in said
        assert not list(tmp_path.iterdir())
    assert main([*args, "--max-nbytes", "512K", "--max-memory", "128M"]) == 0


def test_the_environment_sets_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    data = wcodec.encode(GAUSSIAN)
    monkeypatch.setenv("WCODEC_MAX_MEMORY", "1K")
    with pytest.raises(DecodeError, match="1024 are allowed"):
        wcodec.decode(data)
    assert wcodec.decode(data, max_memory=1 << 27).tobytes() == GAUSSIAN.tobytes()
    monkeypatch.setenv("WCODEC_MAX_MEMORY", "much")
    with pytest.raises(ValueError, match="'much' is not a number of bytes from 1, such as"):
        wcodec.decode(data)


def test_numbers_of_bytes() -> None:
    assert [nbytes_of(t) for t in ("1", "3K", "4096M", "4G", "1T")] == [
        1, 3072, 1 << 32, 1 << 32, 1 << 40,
    ]  # fmt: skip
    for text in ("", "0", "0K", "K", "-1", "1KK", "1.5G", "1g", "1 G", "K1"):
        with pytest.raises(ValueError, match="is not a number of bytes"):
            nbytes_of(text)


def test_a_base_is_limited_too(tmp_path: Path) -> None:
    """Its index may be large where that of the file is not."""
    many = {f"t{i}": np.zeros(1, np.int8) + np.int8(i % 100) for i in range(2000)}
    wcodec.save_file({"w": GAUSSIAN, **many}, tmp_path / "base.wcodec")
    tuned = GAUSSIAN.copy()
    tuned[:4] += 1
    wcodec.save_file({"w": tuned}, tmp_path / "m.wcodec", base=tmp_path / "base.wcodec")
    load = wcodec.load_file
    with pytest.raises(DecodeError, match=r"resource_limit: .*in the base 'base\.wcodec'|base"):
        load(tmp_path / "m.wcodec", max_memory=5_000_000)
    assert load(tmp_path / "m.wcodec", max_memory=1 << 28)["w"].tobytes() == tuned.tobytes()
