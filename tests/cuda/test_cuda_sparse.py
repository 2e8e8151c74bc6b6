"""Kernels of sparse tensors, on the CPU: in any order, without races, amid memory that cannot be
touched. What they compute is compared in tests/backends/test_backends_sparse.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases import EACH_RUNTIME, Array, Memory, check_sanitized
from cuda_emulator import EmulatedRuntime
from cuda_emulator.streams import LazyRuntime
from plans import make_case
from test_backends_sparse import (
    CHANGES,
    SIZES,
    WIDTHS,
    check_changes,
    check_malformed,
    lists_of,
    malformed,
    places,
    some_of,
    words_pair,
)

from wcodec.backends.cuda import sparse as on_device
from wcodec.backends.cuda.backend import CudaBackend
from wcodec.backends.cuda.runtime import Runtime
from wcodec.reference.planes import BY_NAME
from wcodec.reference.tiles import Spans

RNG = np.random.default_rng(12)


class OfRuntime(CudaBackend):
    """The backend on a runtime that is there."""

    def __init__(self, runtime: Runtime) -> None:
        self._given = runtime
        super().__init__()

    def _runtime(self, device: int | None) -> Runtime:
        return self._given


@pytest.fixture(params=EACH_RUNTIME)
def backend(request: pytest.FixtureRequest) -> CudaBackend:
    return OfRuntime(LazyRuntime(**request.param))


class Fenced(EmulatedRuntime):
    """Each array stands at the end, or at the start, of memory that may be touched."""

    def __init__(self, at_end: bool) -> None:
        super().__init__()
        self.memory = Memory(at_end)

    def empty(self, nbytes: int) -> Array:
        return self.memory.room(nbytes)

    def upload(self, host: Array) -> Array:
        return self.memory.put(host).view(host.dtype).reshape(host.shape)


# ---- in any order, without races -----------------------------------------------------------------
@pytest.mark.parametrize("word_nbytes", SIZES)
def test_changes_in_any_order(backend: CudaBackend, word_nbytes: int) -> None:
    for seed, (n, segment, at) in enumerate(CHANGES):
        check_changes(backend, *words_pair(n, word_nbytes, at, seed), segment)


@pytest.mark.parametrize("part", [1, 31, 32, 129])
def test_changes_in_parts_of_any_size(
    backend: CudaBackend, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr(on_device, "PART", part)
    for seed, share in enumerate((0.0005, 0.01, 0.5)):
        check_changes(backend, *words_pair(2000, 2, some_of(2000, share, seed), seed), 700)


@pytest.mark.parametrize("share", [0, 0.02, 1])
def test_places_in_any_order(backend: CudaBackend, share: float) -> None:
    lists = lists_of([1, 2, 31, 4000, 127, 128, 129, 9000, 256, 255, 1], share)
    found, right = places(backend, lists)
    assert right.all()
    assert np.array_equal(found, lists[5])


def test_malformed_gaps_in_any_order(backend: CudaBackend) -> None:
    assert sum(check_malformed(backend, lists) for lists in [*malformed()][::3]) > 20


@pytest.mark.parametrize("word_nbytes", SIZES)
def test_take_and_put_in_any_order(
    backend: CudaBackend, word_nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_device, "MOST_BLOCKS", 2)  # a thread has several words
    words, values = words_pair(2100, word_nbytes, range(2100))
    at = np.sort(RNG.permutation(2100)[:1999])
    device, on = backend.to_device(words), backend.to_device(at)
    assert np.array_equal(backend.to_host(backend.take(device, on)), words[at])
    backend.put(device, on, backend.to_device(values[:1999]))
    words[at] = values[:1999]
    assert np.array_equal(backend.to_host(device), words)


# ---- memory --------------------------------------------------------------------------------------
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("word_nbytes", SIZES)
def test_listing_touches_nothing_else(word_nbytes: int, at_end: bool) -> None:
    """Between pages that cannot be touched."""
    backend = OfRuntime(Fenced(at_end))
    for n in (1, 100, 129, 4097):
        words, base = words_pair(n, word_nbytes, some_of(n, 0.2, n))
        check_changes(backend, words, base, 4096)
    backend.runtime.memory.check()


@pytest.mark.parametrize("at_end", [True, False])
def test_finding_touches_nothing_else(at_end: bool) -> None:
    backend = OfRuntime(Fenced(at_end))
    for lists in [*malformed()][::5]:
        check_malformed(backend, lists)
    backend.runtime.memory.check()


@pytest.mark.parametrize("at_end", [True, False])
def test_taking_and_putting_touch_nothing_else(at_end: bool) -> None:
    for word_nbytes in SIZES:
        memory = Memory(at_end)
        words, values = (
            RNG.integers(0, 256, size * word_nbytes, np.uint8).view(f"<u{word_nbytes}")
            for size in (700, 300)
        )
        at, runtime = np.append(0, np.sort(1 + RNG.permutation(699)[:299])), EmulatedRuntime()
        at[-1] = 699
        places, room = memory.put(at).view(np.int64), memory.room(values.nbytes)
        fixed, target = memory.put(words), memory.room(words.nbytes)
        target[:] = words.view(np.uint8)
        on_device.take(runtime, runtime.address(fixed), places, word_nbytes, runtime.address(room))
        assert room.tobytes() == words[at].tobytes()
        given = memory.put(values)
        on_device.put(runtime, runtime.address(target), places, word_nbytes, runtime.address(given))
        words[at] = values
        assert target.tobytes() == words.tobytes()
        memory.check()


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("name", ["uint8", "bfloat16", "float32", "float64"])
def test_spans_touch_nothing_else(name: str, at_end: bool) -> None:
    """Words that stand at any multiple of a word, at an end of what may be touched."""
    backend, rng = OfRuntime(EmulatedRuntime()), np.random.default_rng(1)
    for seed in range(4):
        widths = [*WIDTHS[seed:], 1 + seed]
        case, memory = make_case(rng, BY_NAME[name], Spans.of(np.array(widths))), Memory(at_end)
        words = memory.put(case.words).view(case.words.dtype).reshape(case.words.shape)
        encoded = backend.encode_segments(case.plan, words)
        assert np.array_equal(encoded.payload, case.payload)
        backend.histogram(words, case.plan.geometry, case.plan.dtype)
        out = memory.room(words.nbytes).view(words.dtype).reshape(words.shape)
        assert not backend.decode_segments(case.decoding, memory.put(case.payload), out).any()
        assert np.array_equal(out, case.expected)
        memory.check()


def test_sanitizers_find_nothing() -> None:
    check_sanitized(__file__)


def main() -> None:
    """Everything once, with sanitizers on."""
    backend = OfRuntime(EmulatedRuntime.sanitized())
    for word_nbytes in SIZES:
        for seed, (n, segment, at) in enumerate(CHANGES[:8]):
            check_changes(backend, *words_pair(n, word_nbytes, at, seed), segment)
    for share in (0.01, 1):
        lists = lists_of([1, 2, 31, 400, 127, 128, 129], share)
        assert np.array_equal(places(backend, lists)[0], lists[5])
    for lists in [*malformed()][::7]:
        check_malformed(backend, lists)
    for word_nbytes in SIZES:
        words, _ = words_pair(300, word_nbytes, [])
        device, at = backend.to_device(words), backend.to_device(np.arange(0, 300, 7))
        backend.put(device, at, backend.take(device, at))
        assert np.array_equal(backend.to_host(device), words)
    print("OK")


if __name__ == "__main__":
    main()
