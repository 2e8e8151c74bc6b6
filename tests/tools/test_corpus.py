"""The corpus of ``make fuzz`` holds with all decoders, which needs no atheris; and what ``make
fuzz`` is made of finds what it is there to find.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import campaign
import native_coverage
import pytest
import targets
import test_fuzz
from fuzz_segments import Fault
from llvmlite import binding as llvm
from paths import TESTS, TOOLS, VECTORS
from sampling import sampled
from sealing import mended, put_together, take_apart
from targets import (
    TARGETS,
    Broken,
    agreed,
    check_index,
    check_segments,
    corpus_of,
    decoded,
    spec_decoded,
)
from variants import check_variant

from wcodec.backends import Backend, load_backend
from wcodec.backends.numba.backend import NumbaBackend
from wcodec.backends.numba.machine_code import target_machine
from wcodec.conformance.cases import load
from wcodec.errors import DecodeError
from wcodec.files.file import open_base
from wcodec.reference.container import FOOTER, HEADER

CORPUS = TESTS / "corpus"
REFERENCE = load_backend("reference")
CASES = load(VECTORS).cases
SMALL = [p for p in sorted((VECTORS / "accept").iterdir()) if p.stat().st_size < 700]


@pytest.mark.parametrize("name", sampled(TARGETS, 4))
def test_the_corpus_holds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    n, cpu = len(list(corpus_of(name).iterdir())), TARGETS[name].cpu
    assert n > 5
    if cpu:
        monkeypatch.setenv("PYTHONPATH", str(TOOLS / "fuzz"))
        out = check_variant(cpu, "campaign", "--replay", name, str(corpus_of(name)))
        assert out == f"{name}: {n} inputs, nothing found\n"
    else:
        assert campaign.replay(name, [corpus_of(name)]) == n


def test_the_corpus_is_small() -> None:
    assert {*CORPUS.iterdir()} == {corpus_of(name) for name in TARGETS}
    assert sum(p.stat().st_size for p in CORPUS.rglob("*") if p.is_file()) < 1_000_000


# ---- sealing -------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", SMALL[::8], ids=lambda p: p.stem)
def test_a_file_put_together_again_is_read_as_before(path: Path) -> None:
    data = path.read_bytes()
    parts = take_apart(data)
    assert parts is not None
    assert take_apart(put_together(parts)) == parts
    assert decoded(put_together(parts), REFERENCE) == decoded(data, REFERENCE)


def test_checksums_are_mended() -> None:
    data = bytearray((VECTORS / "accept" / "raw_uint16.wcodec").read_bytes())
    good = decoded(bytes(data), REFERENCE)
    data[HEADER.size] ^= 1
    assert [code for _, code, _ in decoded(bytes(data), REFERENCE)] == ["bad_checksum"]
    ((name, code, array),) = decoded(mended(bytes(data), REFERENCE), REFERENCE)
    assert (name, code) == (good[0][0], "")
    assert array == bytes([good[0][2][0] ^ 1]) + good[0][2][1:]
    data[-FOOTER.size - 1] ^= 1  # the index
    with pytest.raises(DecodeError, match="bad_checksum"):
        decoded(bytes(data), REFERENCE)


def test_checksums_of_sparse_tensors_are_mended() -> None:
    """Those of good files are left as they are; of a file with another gap and other words all are
    made new, which the decoder of the spec finds right.
    """
    names, done = ("checkpoint", "checkpoint_long"), 0
    for case in CASES:
        checkpoint = case.checkpoint
        if "Sparse" not in case.row["flags"] or case.expect != "accept" or checkpoint is None:
            continue
        assert checkpoint.name in names
        base = open_base(checkpoint.path, REFERENCE)
        assert take_apart(mended(case.data, REFERENCE, base)) == take_apart(case.data), case.id
        done += 1
        if case.name in ("sparse_padding_parts", "sparse_none_and_some"):
            data = bytearray(case.data)
            data[HEADER.size] ^= 2  # the first gap
            assert spec_decoded(bytes(data), checkpoint.data) is None
            parts = spec_decoded(mended(bytes(data), REFERENCE, base), checkpoint.data)
            assert parts is not None
            assert b"".join(parts) != b"".join(spec_decoded(case.data, checkpoint.data) or [])
    assert done > 50


@pytest.mark.parametrize("name", ["index", "hub", "safetensors", "weight_map", "manifest"])
def test_what_mutators_make_is_read_to_its_end(name: str) -> None:
    """Some inputs are accepted and others refused; the same seed makes the same one."""

    def bytewise(data: bytes, most: int) -> bytes:
        return data[: min(most, max(0, len(data) - 1))]

    files = sorted(p for p in (CORPUS / name).iterdir() if p.stat().st_size > 50)
    made = set[bytes]()
    for i in range(60):
        data = files[i % len(files)].read_bytes()
        new = TARGETS[name].mutate(data, 4000, i, bytewise)
        assert len(new) <= 4000
        assert new == TARGETS[name].mutate(data, 4000, i, bytewise)
        TARGETS[name].check(new)
        made.add(new)
    assert len(made) > 30


# ---- planted faults ------------------------------------------------------------------------------
def check_rejects(check: Callable[[bytes], None]) -> None:
    """Check the vectors that decoders refuse."""
    for path in sorted((VECTORS / "reject").iterdir()):
        check(path.read_bytes())


class Eager(NumbaBackend):
    """Refuses a table pool with another error than the reference."""

    def read_tables(self, data: bytes, offset: int, n: int) -> Any:
        raise DecodeError("bad_table", "none is good enough")


class Forgetful(NumbaBackend):
    """Checks no plans."""

    def check_plan(self, plan: Any) -> None:
        pass


class Careless(NumbaBackend):
    """Raises what is no error of wcodec."""

    def check_plan(self, plan: Any) -> None:
        raise IndexError("a bad plan")


@pytest.mark.parametrize(
    ("faulty", "error"), [(Eager, Broken), (Forgetful, Broken), (Careless, IndexError)]
)
def test_planted_faults_of_reading_are_found(
    monkeypatch: pytest.MonkeyPatch, faulty: type[Backend], error: type[Exception]
) -> None:
    monkeypatch.setattr(targets, "backends", lambda: (REFERENCE, faulty(1)))
    with pytest.raises(error):
        check_rejects(check_index)


@pytest.mark.parametrize("faulty", [test_fuzz.WritesBehind, test_fuzz.LikesAllPatches])
def test_planted_faults_of_kernels_are_found(faulty: type[Backend]) -> None:
    backend = faulty(1)
    with pytest.raises(Fault):
        check_rejects(lambda data: check_segments(data, backend))


def test_what_backends_give_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "backends", lambda: (REFERENCE, load_backend("numba")))
    assert agreed(lambda b: 3) == ("", 3)
    with pytest.raises(Broken, match="numba gives something else than reference"):
        agreed(lambda b: b.name)
    with pytest.raises(Broken, match="numba: ''; reference: 'bad_range'"):
        agreed(_refusing(lambda b: b is REFERENCE))


def _refusing(when: Callable[[Backend], bool]) -> Callable[[Backend], None]:
    def function(backend: Backend) -> None:
        if when(backend):
            raise DecodeError("bad_range", "planted")

    return function


# ---- coverage ------------------------------------------------------------------------------------
def test_blocks_are_counted() -> None:
    """Of a loop that runs seven times: the entry, the body and the end."""
    text = """
define i64 @seven() memory(none) {
  br label %body
body:
  %i = phi i64 [ 0, %0 ], [ %next, %body ]
  %sum = phi i64 [ 0, %0 ], [ %more, %body ]
  %next = add i64 %i, 1
  %more = add i64 %sum, %next
  %done = icmp eq i64 %next, 7
  br i1 %done, label %end, label %body
end:
  ret i64 %more
}
"""
    counting = native_coverage.with_counters(text, "seven")
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(counting), target_machine())
    engine.finalize_object()
    run = ctypes.CFUNCTYPE(ctypes.c_int64)(engine.get_function_address("seven"))
    assert run() == 28
    n = ctypes.c_int64.from_address(engine.get_global_value_address("n_blocks_seven")).value
    counters = (ctypes.c_uint8 * n).from_address(engine.get_global_value_address("blocks_seven"))
    assert list(counters) == [1, 7, 1]
