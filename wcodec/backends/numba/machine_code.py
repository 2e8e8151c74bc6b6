"""LLVM IR made into machine code for the CPU at hand, kept on disk, and loaded.

The package brings the IR of all kernels and native functions along, for each target in
`ir.TARGETS`, in a file that ``tools/kernels.py`` writes. It fits the sources if it has their
checksum; if it does not, numba makes the IR anew.
"""

from __future__ import annotations

import json
import logging
import lzma
import os
import sys
import threading
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

import llvmlite
from llvmlite import binding as llvm

from wcodec.backends.code_cache import CacheState, CodeCache, cache_folder
from wcodec.backends.numba import ir

SETTING: Final = "NUMBA_CACHE_DIR"  #: the environment variable that names another folder
SYMBOL: Final = "wcodec"  #: name of each function in its module
ARCHIVE: Final = Path(__file__).parent / "kernels.xz"
#: of the oldest numba that is supported: LLVM reads what the same version or an earlier one wrote
OLDEST_LLVM: Final = 20
#: sources of which kernels are not made
_CALLERS: Final = (
    "__init__",
    "backend",
    "catalogue",
    "coding",
    "cpu",
    "jobs",
    "kernels",
    "machine_code",
    "scratch",
    "threads",
)
_lock = threading.RLock()
_compile_log = logging.getLogger("wcodec.compile")
_announced = False


def stamp_of(folder: Path) -> str:
    """Checksum of the sources that kernels are made of."""
    crc = 0
    for path in sorted(folder.glob("*.py")):
        if path.stem not in _CALLERS:
            crc = zlib.crc32(path.read_bytes(), crc)
    return f"{crc:08x}"


STAMP: Final = stamp_of(Path(__file__).parent)


@cache
def code_cache() -> CodeCache:
    """Where machine code is kept: in ``$NUMBA_CACHE_DIR``, or ``wcodec/numba`` in the user's
    cache.
    """
    folder = os.environ.get(SETTING)
    where = Path(folder) / "wcodec" if folder else cache_folder("numba")
    return CodeCache(where, "machine code of the numba backend")


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
def _archive() -> tuple[dict[str, Any], bytes]:
    """What the package has along: the stamp of its sources and the places of all IR, and the IR."""
    try:
        head, _, ir_of_all = lzma.decompress(ARCHIVE.read_bytes()).partition(b"\n")
        return json.loads(head), ir_of_all
    except (OSError, EOFError, ValueError, lzma.LZMAError) as e:
        _compile_log.warning("numba: %s cannot be used, and kernels are made anew: %s", ARCHIVE, e)
        return {"stamp": "", "llvm": 0, "targets": {}}, b""


def shipped(name: str) -> bytes | None:
    """IR that the package has along, as LLVM's bitcode; none if it does not fit the sources."""
    head, ir_of_all = _archive()
    if head["stamp"] != STAMP or name not in head["targets"].get(ir.TARGET, {}):
        return None
    at, nbytes = head["targets"][ir.TARGET][name]
    return ir_of_all[at : at + nbytes]


def is_current() -> bool:
    """Whether what the package has along is made of its sources, and for every version of LLVM."""
    head = _archive()[0]
    return bool(head["stamp"] == STAMP and head.get("llvm") == OLDEST_LLVM)


def write_archive(path: Path, bitcode: dict[str, dict[str, bytes]]) -> None:
    """Write what `shipped` reads: IR by target and name. The same IR is written once."""
    places, blob = dict[bytes, tuple[int, int]](), bytearray()
    for code in (code for by_name in bitcode.values() for code in by_name.values()):
        if code not in places:
            places[code] = len(blob), len(code)
            blob += code
    targets = {t: {n: places[c] for n, c in by_name.items()} for t, by_name in bitcode.items()}
    head = {"stamp": STAMP, "llvm": llvm.llvm_version_info[0], "targets": targets}
    path.write_bytes(
        lzma.compress(json.dumps(head).encode() + b"\n" + blob, preset=9 | lzma.PRESET_EXTREME)
    )


@cache
def _loader() -> tuple[Any, Any]:
    """What compiles, and what loads: one for the process, whose code is never given back."""
    machine = target_machine()
    empty: Any = llvm.parse_assembly("")
    return machine, llvm.create_mcjit_compiler(empty, target_machine())


class Named(Protocol):
    """A kernel or native function."""

    name: str


_bitcode_of: Callable[[Any], bytes] | None = None


def use_compiler(bitcode_of: Callable[[Any], bytes]) -> None:
    """Say what makes IR, as bitcode, where what the package has along does not fit."""
    global _bitcode_of
    _bitcode_of = bitcode_of


def _module_of(one: Named) -> Any:
    bitcode = shipped(one.name)
    if bitcode is not None:
        try:
            return llvm.parse_bitcode(bitcode)
        except RuntimeError as e:
            _compile_log.warning("numba: this LLVM does not read %s: %s", ARCHIVE.name, e)
    if _bitcode_of is None:
        raise SystemError(f"there is no IR of {one.name}")
    return llvm.parse_bitcode(_bitcode_of(one))


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
    module = _module_of(one)
    module.triple, module.data_layout = llvm.get_process_triple(), str(machine.target_data)
    code: bytes = machine.emit_object(module)
    return code


def _key() -> tuple[object, ...]:
    """What machine code depends on besides its name."""
    versions = llvmlite.__version__, llvm.llvm_version_info
    return STAMP, *versions, ir.TARGET, ir.cpu_name(), ir.cpu_features()


def cache_state() -> CacheState:
    """What is known of the machine code on disk."""
    return code_cache().state(_key())


def address_of(one: Named) -> int:
    """Address of a kernel or native function in machine code."""
    key = _key()
    name, symbol = one.name, symbol_of(one.name)
    with _lock:
        code = code_cache().load(name, key)
        if code is None:
            code = _compiled(one)
            code_cache().keep(name, key, code)
        engine = _loader()[1]
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        where: int = engine.get_function_address(symbol)
    if not where:
        raise SystemError(f"{name} is not in its machine code")
    return where


def symbol_of(name: str) -> str:
    """Name of a kernel or native function in machine code."""
    return f"{SYMBOL}_{name.replace('.', '_')}"
