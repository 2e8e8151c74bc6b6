"""The self-test of `wcodec doctor`: each dtype to bytes and back with each backend, and the speed
of that beside memcpy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.cli.bench import seconds
from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder
from wcodec.codec.sources import BufferSource
from wcodec.codec.whole import Whole
from wcodec.reference.planes import DTYPES, DType, Words

ROUNDS: Final = 3
BUDGET_S: Final = 4.0  #: for measuring speed, of all backends together
_SMALL: Final = 72, 260  #: of what is checked first: ends that no vector fills
_LARGE_NBYTES: Final = 1 << 23  #: of what the speed of fast backends is measured on
_COLS: Final = 1024
_FAST_S: Final = 0.025  #: a backend is fast if it takes less for a small matrix, there and back
_NO_SPEEDS: Final = dict.fromkeys(("nbytes", "memcpy_gb_s", "encode_gb_s", "decode_gb_s"))
_OTHER: Final = "other bytes came back"


class Trip:
    """A matrix of a dtype, and the way to bytes and back.

    Parameters
    ----------
    shape
        Rows and columns.
    """

    def __init__(self, backend: Backend, dtype: DType, shape: tuple[int, int]) -> None:
        self.backend, self.dtype, self.shape = backend, dtype, shape
        self.words = _words(dtype, shape[0] * shape[1] * dtype.words_per_element)
        self.out = np.empty(shape, dtype.numpy)
        self.stored = b""

    def encode(self) -> None:
        """The matrix into bytes."""
        whole = Whole(self.words.nbytes)
        writer = Encoder(None, self.backend).start(whole)
        writer.add_words("", self.words, self.dtype, self.shape)
        writer.finish()
        self.stored = whole.getvalue()

    def decode(self) -> None:
        """And these into another matrix."""
        source, decoder = BufferSource(self.stored), Decoder(self.backend)
        index = decoder.read_index(source)
        decoder.tensor(source, index.tensors[0], index.tables, self.out)

    def copy(self) -> None:
        """What memcpy does for the same."""
        np.copyto(_bytes(self.out), _bytes(self.words))

    def times(self) -> tuple[float, float, float]:
        """Seconds of memcpy, `encode` and `decode`."""
        return seconds(self.copy), seconds(self.encode), seconds(self.decode)

    def comes_back(self) -> bool:
        """Do both; whether every byte came back."""
        _bytes(self.out)[:] = 0xA5
        self.encode()
        self.decode()
        return np.array_equal(_bytes(self.out), _bytes(self.words))


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)


def _words(dtype: DType, n: int) -> Words:
    """Words as those of weights, of different scale by row; the last eighth has any bits."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((64, 1024)) * 0.02 * np.exp(rng.standard_normal((64, 1)))
    kind: Any = dtype.numpy
    if dtype.numpy.kind in "iub":
        values = np.clip(np.round(values * 400), 0, 127)
    elif dtype.numpy.kind == "c":
        kind = f"<f{dtype.word_nbytes}"
    words = np.resize(values.astype(kind).view(dtype.word_type), n)
    if dtype.name != "bool":
        some = rng.integers(0, 256, 1 << 16, np.uint8).view(dtype.word_type)
        words[-(n // 8) :] = np.resize(some, n // 8)
    return words


# ---- round trips ---------------------------------------------------------------------------------
def check(
    backend: Backend, stored: dict[str, tuple[str, bytes]], progress: Callable[[str], object]
) -> dict[str, Any]:
    """Take each dtype to bytes and back, twice: the first time compiles.

    Parameters
    ----------
    stored
        By dtype, the backend that made bytes first, and these: others have to make the same.
        What is missing is added.
    progress
        Is told what is done next.

    Returns
    -------
    ``name``, ``compile_s``, and ``dtypes``: for each ``name``, ``same``, ``error`` (a text that
    says what is wrong, or ``None``), and of the second time what `_speeds` says, or ``None``.
    """
    compile_s, rows = 0.0, list[dict[str, Any]]()
    for i, dtype in enumerate(DTYPES, 1):
        progress(f"{backend.name}, {dtype.name}, {i} of {len(DTYPES)}")
        row: dict[str, Any] = {"name": dtype.name, "same": True, "error": None, **_NO_SPEEDS}
        try:
            trip = Trip(backend, dtype, _SMALL)
            start = time.perf_counter()
            _require(trip.comes_back(), _OTHER)
            first = time.perf_counter() - start
            other, its = stored.setdefault(dtype.name, (backend.name, trip.stored))
            _require(trip.stored == its, f"its bytes are not those of backend {other}")
            times = trip.times()
            compile_s += max(0.0, first - sum(times[1:]))
            row.update(_speeds(trip, [times]))
        except Exception as e:  # whatever a backend that does not work here may raise
            row.update(same=False, error=_text_of(e))
        rows.append(row)
    return {"name": backend.name, "compile_s": compile_s, "dtypes": rows}


class _Wrong(Exception):
    """What came back is not what it has to be."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise _Wrong(message)


def _text_of(e: Exception) -> str:
    return str(e) if isinstance(e, _Wrong) else f"{type(e).__name__}: {e}"


# ---- speed ---------------------------------------------------------------------------------------
def is_fast(report: dict[str, Any]) -> bool:
    """Whether there is time to measure a backend on larger matrices, by what `check` says of it."""
    done = [row for row in report["dtypes"] if row["same"]]
    times = (r["nbytes"] / 1e9 * (1 / r["encode_gb_s"] + 1 / r["decode_gb_s"]) for r in done)
    return bool(done) and median(times) < _FAST_S


def measure(
    backend: Backend, report: dict[str, Any], budget_s: float, progress: Callable[[str], object]
) -> None:
    """Measure speed on larger matrices: in what `check` says of a backend, these speeds take the
    place of those of small ones, which say little.

    Parameters
    ----------
    budget_s
        For all dtypes together; each has one round at least.
    """
    for i, (dtype, row) in enumerate(zip(DTYPES, report["dtypes"], strict=True), 1):
        if not row["same"]:
            continue
        progress(f"{backend.name}, speed of {dtype.name}, {i} of {len(DTYPES)}")
        shape = _LARGE_NBYTES // (_COLS * dtype.nbytes), _COLS
        try:
            if i == 1:  # threads and buffers, which stay for the others
                Trip(backend, dtype, shape).comes_back()
            row.update(_measured(Trip(backend, dtype, shape), budget_s / len(DTYPES)))
        except Exception as e:
            row.update(_NO_SPEEDS, same=False, error=_text_of(e))


def _measured(trip: Trip, budget_s: float) -> dict[str, Any]:
    start = time.perf_counter()
    # checked too, and memory that is used for the first time is slow
    _require(trip.comes_back(), _OTHER)
    rounds = [trip.times()]
    while len(rounds) < ROUNDS and time.perf_counter() - start < budget_s:
        rounds.append(trip.times())
    return _speeds(trip, rounds)


def _speeds(trip: Trip, rounds: list[tuple[float, float, float]]) -> dict[str, Any]:
    """Bytes of the matrix, and medians in GB/s of decoded bytes."""
    done = trip.words.nbytes
    keys = ("memcpy_gb_s", "encode_gb_s", "decode_gb_s")
    times = (median(t) for t in zip(*rounds, strict=True))
    return {"nbytes": done, **{k: done / t / 1e9 for k, t in zip(keys, times, strict=True)}}


def self_test(
    backends: Iterable[Backend], progress: Callable[[str], object] = lambda _: None
) -> dict[str, Any]:
    """Check all dtypes with each backend, and then measure those that are fast.

    Parameters
    ----------
    progress
        Is told what is done next.

    Returns
    -------
    ``seconds``, those of compiling left out, and ``backends``: for each what `check` and `measure`
    say.
    """
    start, stored = time.perf_counter(), dict[str, tuple[str, bytes]]()
    usable = sorted(backends, key=lambda b: b.name != "reference")  # whose bytes are right
    reports = list[dict[str, Any]]()
    for backend in usable:
        reports.append(check(backend, stored, progress))
    fast = [(b, r) for b, r in zip(usable, reports, strict=True) if is_fast(r)]
    for backend, report in fast:
        measure(backend, report, BUDGET_S / len(fast), progress)
    taken = time.perf_counter() - start - sum(r["compile_s"] for r in reports)
    return {"seconds": max(0.0, taken), "backends": reports}
