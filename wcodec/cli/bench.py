"""`wcodec bench`: speed and size of a user's own file in memory, by backend, beside memcpy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.cli.demo import usable_backends
from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder
from wcodec.codec.opening import open_source
from wcodec.codec.sources import BufferSource
from wcodec.codec.whole import Whole
from wcodec.errors import EncodeError, within
from wcodec.files.atomic import AnyPath
from wcodec.files.safetensors_header import SourceTensor, read_safetensors_header
from wcodec.inspect.report import percent_text, size_text, table_text

ROUNDS: Final = 7
SAMPLE_NBYTES: Final = 1 << 28  #: bytes of tensors that are measured
_BUDGET_S: Final = 20.0  #: a backend that has used that much time gets no further round
_HEAD: Final = ["", "size", "encode", "p25..p75", "decode", "p25..p75", "of memcpy", "rounds"]


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speed(nbytes: int, times: list[float]) -> dict[str, float]:
    """Median, lower and upper quartile of the speed, in GB/s, of runs over `nbytes` bytes."""
    slow, middle, fast = np.percentile(times, [75, 50, 25])
    return {
        "median_gb_s": nbytes / middle / 1e9,
        "p25_gb_s": nbytes / slow / 1e9,
        "p75_gb_s": nbytes / fast / 1e9,
    }


@dataclass
class _Candidate:
    """A backend, what it is measured on, and the times so far."""

    backend: Backend
    tensors: list[tuple[SourceTensor, NDArray[Any]]]
    outs: list[NDArray[Any]]
    stored: bytes = b""
    encode_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.encoder, self.decoder = Encoder(None, self.backend), Decoder(self.backend)

    def encode(self) -> None:
        """All tensors into a file in memory."""
        stream = Whole(sum(words.nbytes for _, words in self.tensors))
        writer = self.encoder.start(stream)
        for t, words in self.tensors:
            writer.add_later(t.name, words, t.dtype, t.shape, t.dtype_name)
        writer.finish()
        self.stored = stream.getvalue()

    def decode(self) -> None:
        """All tensors into buffers that are used again."""
        source = BufferSource(self.stored)
        index = self.decoder.read_index(source)
        for t, out in zip(index.tensors, self.outs, strict=True):
            self.decoder.tensor(source, t, index.tables, out)

    def comes_back(self) -> bool:
        """Encode and decode once, which also compiles; whether every bit came back."""
        for out in self.outs:
            _raw(out)[:] = 0xA5
        self.encode()
        self.decode()
        return all(
            np.array_equal(_raw(words), _raw(out))
            for (_, words), out in zip(self.tensors, self.outs, strict=True)
        )

    def report(self, nbytes: int) -> dict[str, Any]:
        """What was measured."""
        return {
            "name": self.backend.name, "stored_nbytes": len(self.stored),
            "ratio": len(self.stored) / nbytes, "rounds": len(self.encode_s),
            "encode": speed(nbytes, self.encode_s), "decode": speed(nbytes, self.decode_s),
        }  # fmt: skip


def _raw(array: NDArray[Any]) -> NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)


def bench_file(
    path: AnyPath,
    only: str | None = None,
    threads: int | None = None,
    rounds: int = ROUNDS,
    sample_nbytes: int = SAMPLE_NBYTES,
    show: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Measure the usable backends, or one alone, on the first tensors of a safetensors file,
    in turn with memcpy.

    Parameters
    ----------
    rounds
        Runs of each; fewer of backends that take long.
    sample_nbytes
        Once there are that many, no further tensor is taken.
    show
        Is told which backends do not run.

    Returns
    -------
    Sizes, and speeds as of `speed`. ``same``: whether every bit came back.

    Raises
    ------
    BackendUnavailable
        That of the name `only`.
    EncodeError
        ``bad_source``: not a safetensors file, or one without data.
    """
    with within(path):
        tensors = list(_sample(path, sample_nbytes))
        nbytes = sum(words.nbytes for _, words in tensors)
        if not nbytes:
            raise EncodeError("bad_source", "no tensor of the file has any bytes")
    outs = [np.empty(t.shape, t.dtype.numpy) for t, _ in tensors]
    candidates = [_Candidate(b, tensors, outs) for b in usable_backends(show, only, threads)]
    same = [c.comes_back() for c in candidates]
    copies = list[float]()

    def copy() -> None:
        for (_, words), out in zip(tensors, outs, strict=True):
            np.copyto(_raw(out), _raw(words))

    for i in range(rounds):
        copies.append(seconds(copy))
        for c in candidates:
            if i == 0 or sum(c.encode_s) + sum(c.decode_s) < _BUDGET_S:
                c.encode_s.append(seconds(c.encode))
                c.decode_s.append(seconds(c.decode))
    return {
        "file": str(path), "file_nbytes": Path(path).stat().st_size, "nbytes": nbytes,
        "n_tensors": len(tensors), "same": all(same), "memcpy": speed(nbytes, copies),
        "backends": [c.report(nbytes) for c in candidates],
    }  # fmt: skip


def _sample(path: AnyPath, sample_nbytes: int) -> Iterator[tuple[SourceTensor, NDArray[Any]]]:
    """Tensors from the start of a file, copied to memory, and their words."""
    source, taken = open_source(path, EncodeError), 0
    for t in read_safetensors_header(source).tensors:
        if taken >= sample_nbytes:
            return
        taken += t.stop - t.start
        yield t, source.read(t.start, t.nbytes).view(t.dtype.word_type)


def as_text(report: dict[str, Any]) -> Iterator[str]:
    """Lines of `wcodec bench`."""
    copy = report["memcpy"]
    yield (
        f"{report['file']}: {report['n_tensors']} tensors, {size_text(report['nbytes'])}"
        f" of {size_text(report['file_nbytes'])}, in memory, GB/s of decoded bytes"
    )
    rows = [_HEAD, ["memcpy", "100.00 %", *_speed_cells(copy), *_speed_cells(copy), "1.00", "-"]]
    rows += [
        [
            b["name"], percent_text(b["stored_nbytes"], report["nbytes"]),
            *_speed_cells(b["encode"]), *_speed_cells(b["decode"]),
            f"{b['decode']['median_gb_s'] / copy['median_gb_s']:.2f}", str(b["rounds"]),
        ]
        for b in report["backends"]
    ]  # fmt: skip
    yield from table_text(rows)
    yield "memcpy copies from warm memory to warm memory; 'of memcpy' is for decoding"


def _speed_cells(s: dict[str, float]) -> list[str]:
    return [f"{s['median_gb_s']:.2f}", f"{s['p25_gb_s']:.2f}..{s['p75_gb_s']:.2f}"]
