"""LLVM IR made into machine code for the CPU at hand, kept on disk, and loaded."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

import llvmlite
from llvmlite import binding as llvm

from wcodec.backends.code_cache import CacheState, CodeCache, cache_folder
from wcodec.backends.numba import archive, ir
from wcodec.processes import loading

SETTING: Final = "NUMBA_CACHE_DIR"  #: the environment variable that names another folder
_compile_log = logging.getLogger("wcodec.compile")
_announced = False


class Named(Protocol):
    """A kernel or native function."""

    name: str


_make_bitcode: Callable[[Any], bytes] | None = None


def use_compiler(make_bitcode: Callable[[Any], bytes]) -> None:
    """Say what makes IR, as bitcode, where what the package has along does not fit."""
    global _make_bitcode
    _make_bitcode = make_bitcode


def symbol_of(name: str) -> str:
    """Name of a kernel or native function in machine code."""
    return f"wcodec_{name.replace('.', '_')}"


# ---- on disk -------------------------------------------------------------------------------------
@cache
def code_cache() -> CodeCache:
    """Where machine code is kept: in ``$NUMBA_CACHE_DIR``, or ``wcodec/numba`` in the user's
    cache.
    """
    folder = os.environ.get(SETTING)
    where = Path(folder) / "wcodec" if folder else cache_folder("numba")
    return CodeCache(where, "machine code of the numba backend")


@cache
def _key() -> tuple[object, ...]:
    """What machine code depends on besides its name."""
    cpu = ir.TARGET, ir.cpu_name(), ir.cpu_features()
    return archive.STAMP, archive.head(), llvmlite.__version__, *cpu


def cache_state() -> CacheState:
    """What is known of the machine code on disk."""
    return code_cache().state(_key())


# ---- compiling and loading -----------------------------------------------------------------------
def target_machine() -> Any:
    """LLVM's description of the CPU at hand, or of the lesser one that the environment names."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target: Any = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(
        cpu=ir.cpu_name(), features=ir.cpu_features(), opt=3, reloc="default",
        codemodel="jitdefault", jit=True,
    )  # fmt: skip


@cache
def _loader() -> tuple[Any, Any]:
    """What compiles, and what loads: one for the process, whose code is never given back."""
    machine = target_machine()
    empty: Any = llvm.parse_assembly("")
    return machine, llvm.create_mcjit_compiler(empty, target_machine())


def _compiled(one: Named) -> bytes:
    global _announced
    if not _announced:
        # a notebook shows warnings only, and someone waits there
        level = logging.WARNING if "ipykernel" in sys.modules else logging.INFO
        _compile_log.log(
            level, "numba: compiling for this CPU; the machine code is kept for later runs"
        )
        _announced = True
    machine, _ = _loader()
    bitcode = archive.bitcode(ir.TARGET, one.name)
    if bitcode is None:
        if _make_bitcode is None:
            raise SystemError(f"there is no IR of {one.name}")
        bitcode = _make_bitcode(one)
    module: Any = llvm.parse_bitcode(bitcode)
    module.triple, module.data_layout = llvm.get_process_triple(), str(machine.target_data)
    code: bytes = machine.emit_object(module)
    return code


def kept(name: str, make: Callable[[], bytes]) -> bytes:
    """What `make` has found out of this CPU, now or before: it is kept with the machine code."""
    with loading:
        key = "found", *_key()  # another one than that of code, which `cache_state` counts
        found = code_cache().load(name, key)
        if found is None:
            found = make()
            code_cache().keep(name, key, found)
    return found


def address_of(one: Named) -> int:
    """Address of a kernel or native function in machine code."""
    with loading:
        code = code_cache().load(one.name, _key())
        if code is None:
            code = _compiled(one)
            code_cache().keep(one.name, _key(), code)
        engine = _loader()[1]
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        where: int = engine.get_function_address(symbol_of(one.name))
    if not where:
        raise SystemError(f"{one.name} is not in its machine code")
    return where
