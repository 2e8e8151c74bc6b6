"""Coverage of machine code for libFuzzer: a counter for each basic block of the numba backend's
kernels, and for each place of the emulated CUDA kernels that g++ reports.

A counter is a byte, as libFuzzer's own are (``inline-8bit-counters``).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
from pathlib import Path
from typing import Any, Final

import cuda_emulator
import numpy as np
from llvmlite import binding as llvm

from wcodec.backends.numba import archive, machine_code
from wcodec.backends.numba.kernels import KERNELS, NATIVES

_LABEL: Final = re.compile(r"[-\w.$]+:")
#: what functions say of the memory that they touch, which the counters make untrue
_EFFECTS: Final = re.compile(r"(?<=\s)(memory\([^)]*\)|speculatable|nosync)(?=\s)")
_tables = list[np.ndarray[Any, Any]]()  # libFuzzer reads them for as long as it runs
_untold = list[tuple[int, int, np.ndarray[Any, Any]]]()


def _count_at(address: int, n: int) -> None:
    """Have `n` counters told to libFuzzer."""
    table = np.zeros((n, 2), np.uintp)  # where the code is, and whether a function starts there
    table[:, 0] = address + np.arange(n)
    _tables.append(table)
    _untold.append((address, n, table))


def tell_libfuzzer(atheris: Path) -> None:
    """Tell libFuzzer, which is in atheris's folder, of all counters that it does not know yet: once
    it runs, for atheris must be the first to load it.
    """
    if not _untold:
        return
    (path,) = atheris.glob("core_with_libfuzzer.*.so")
    core = ctypes.CDLL(str(path))
    while _untold:
        counters, n, table = _untold.pop(0)
        ctypes.memset(counters, 0, n)  # what ran before is not of this input
        for function, start, nbytes in (
            (core.__sanitizer_cov_8bit_counters_init, counters, n),
            (core.__sanitizer_cov_pcs_init, table.ctypes.data, table.nbytes),
        ):
            function(ctypes.c_void_p(start), ctypes.c_void_p(start + nbytes))


# ---- numba ---------------------------------------------------------------------------------------
def with_counters(text: str, symbol: str) -> str:
    """LLVM IR that counts how often its blocks run; `symbol` is the name of its function.

    The counters, and how many there are, are global variables. What is counted was optimised
    before.
    """
    n, out, due = 0, list[str](), False
    for line in _EFFECTS.sub("", text).splitlines():
        begins = line.startswith("define ") or _LABEL.match(line) is not None
        if due and " = phi " not in line:
            place = f"getelementptr (i8, ptr @blocks_{symbol}, i64 {n})"
            out += [
                f"  %was.{n} = load i8, ptr {place}",
                f"  %is.{n} = add i8 %was.{n}, 1",
                f"  store i8 %is.{n}, ptr {place}",
            ]
            n, due = n + 1, False
        out.append(line)
        due = due or begins
    out.append(f"@blocks_{symbol} = global [{n} x i8] zeroinitializer")
    out.append(f"@n_blocks_{symbol} = constant i64 {n}")
    return "\n".join([*out, ""])


def count_kernels(folder: Path) -> None:
    """From now on, each kernel and native function of the numba backend that is loaded counts its
    blocks.

    Parameters
    ----------
    folder
        Where their machine code is kept: not where other programs take theirs from.
    """
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    os.environ[machine_code.SETTING] = str(folder / version)
    bitcode, load = archive.bitcode, machine_code.address_of

    def counting(target: str, name: str) -> bytes:
        found = bitcode(target, name)
        if found is None:  # the sources have changed since: numba makes it anew
            from wcodec.backends.numba.compiling import bitcode_of

            found = bitcode_of(KERNELS.get(name) or NATIVES[name])
        symbol = machine_code.symbol_of(name)
        text = with_counters(str(llvm.parse_bitcode(found)), symbol)
        out: bytes = llvm.parse_assembly(text).as_bitcode()
        return out

    def address_of(one: Any) -> int:
        address, symbol = load(one), machine_code.symbol_of(one.name)
        engine = machine_code._loader()[1]
        n = ctypes.c_int64.from_address(engine.get_global_value_address(f"n_blocks_{symbol}"))
        _count_at(engine.get_global_value_address(f"blocks_{symbol}"), n.value)
        return address

    archive.bitcode, machine_code.address_of = counting, address_of


# ---- emulated CUDA -------------------------------------------------------------------------------
def count_emulated() -> None:
    """From now on, libFuzzer is told of the counters of each library of emulated kernels.
    ``WCODEC_EMULATOR`` has to say ``coverage``.
    """
    load, known = cuda_emulator._load, set[Path]()

    def load_and_count(path: Path) -> Any:
        library = load(path)
        if path not in known:
            known.add(path)
            n = ctypes.c_uint32.in_dll(library._library, "emulator_n_counters").value
            counters = (ctypes.c_uint8 * n).in_dll(library._library, "emulator_counters")
            _count_at(ctypes.addressof(counters), n)
        return library

    cuda_emulator._load = load_and_count
