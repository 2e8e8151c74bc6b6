"""The LLVM IR of all kernels and native functions, which the package has along in ``kernels.xz``.

``tools/kernels.py`` writes it, for each target in `ir.TARGETS`. It fits the sources if it has their
checksum. The file is a line of text, and then, compressed, a line of JSON that says where each
piece is, and all pieces, as LLVM's bitcode.
"""

from __future__ import annotations

import json
import logging
import lzma
import zlib
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from llvmlite import binding as llvm

PATH: Final = Path(__file__).parent / "kernels.xz"
#: of the oldest numba that is supported: LLVM reads what the same version or an earlier one wrote
OLDEST_LLVM: Final = 20
_MAGIC: Final = "wcodec kernels"
#: modules beside this one of which kernels are not made
_CALLERS: Final = {
    "__init__",
    "archive",
    "backend",
    "catalogue",
    "choices",
    "coding",
    "cpu",
    "jobs",
    "large_outputs",
    "machine_code",
    "scratch",
    "table_lookups",
    "threads",
}
#: modules of the reference whose constants are in kernels
_REFERENCE: Final = ("planes", "prediction", "rans", "segments", "tables", "transforms")
_compile_log = logging.getLogger("wcodec.compile")


def sources(package: Path) -> list[Path]:
    """The modules that kernels are made of; `package` is the folder of ``wcodec``."""
    here = sorted((package / "backends" / "numba").glob("*.py"))
    reference = [package / "reference" / f"{name}.py" for name in _REFERENCE]
    return [p for p in here if p.stem not in _CALLERS] + [p for p in reference if p.exists()]


def stamp_of(package: Path) -> str:
    """Checksum of the modules that kernels are made of; empty if they are not there as text."""
    crc, paths = 0, sources(package)
    for path in paths:
        crc = zlib.crc32(path.read_bytes(), crc)
    return f"{crc:08x}" if paths else ""


class Head(NamedTuple):
    """What is known of the file without reading all of it.

    Attributes
    ----------
    stamp
        Checksum of the sources that it was made of; empty if the file cannot be used.
    llvm
        Version of LLVM that wrote it.
    crc
        CRC-32 of the file.
    """

    stamp: str
    llvm: int
    crc: int


@cache
def head() -> Head:
    """Of the file that the package has along."""
    try:
        data = PATH.read_bytes()
        magic, stamp, version = data[: data.index(b"\n")].decode().rsplit(" ", 2)
        if magic != _MAGIC:
            raise ValueError("it begins otherwise")
        return Head(stamp, int(version), zlib.crc32(data))
    except (OSError, ValueError) as e:
        _compile_log.warning("numba: %s cannot be used: %s", PATH, e)
        return Head("", 0, 0)


STAMP: Final = stamp_of(PATH.parents[2]) or head().stamp


@cache
def _pieces() -> tuple[dict[str, Any], bytes]:
    """Places of all pieces by target and name, and the pieces; none if they are of no use."""
    if head().stamp != STAMP:
        _compile_log.info("numba: %s does not fit its sources; IR is made anew", PATH.name)
    elif head().llvm > llvm.llvm_version_info[0]:
        _compile_log.warning("numba: %s is for llvmlite 0.45 and later; IR is made anew", PATH.name)
    else:
        try:
            data = PATH.read_bytes()
            places, _, pieces = lzma.decompress(data[data.index(b"\n") + 1 :]).partition(b"\n")
            return json.loads(places), pieces
        except (OSError, EOFError, ValueError, lzma.LZMAError) as e:
            _compile_log.warning("numba: %s is damaged; IR is made anew: %s", PATH, e)
    return {}, b""


def targets() -> dict[str, list[str]]:
    """Names of all pieces, by target."""
    return {target: list(names) for target, names in _pieces()[0].items()}


def bitcode(target: str, name: str) -> bytes | None:
    """IR of a kernel or native function, or none if it has to be made anew."""
    places, pieces = _pieces()
    if name not in places.get(target, {}):
        return None
    at, nbytes = places[target][name]
    return pieces[at : at + nbytes]


def is_current() -> bool:
    """Whether the file is made of its sources, and can be read by each supported LLVM."""
    return head()[:2] == (STAMP, OLDEST_LLVM)


def write(path: Path, of_targets: dict[str, dict[str, bytes]]) -> None:
    """Write the file, given IR by target and name. The same IR is written once."""
    where, pieces = dict[bytes, tuple[int, int]](), bytearray()
    for code in (code for by_name in of_targets.values() for code in by_name.values()):
        if code not in where:
            where[code] = len(pieces), len(code)
            pieces += code
    places = {t: {n: where[c] for n, c in by_name.items()} for t, by_name in of_targets.items()}
    first = f"{_MAGIC} {STAMP} {llvm.llvm_version_info[0]}\n".encode()
    data = json.dumps(places).encode() + b"\n" + pieces
    path.write_bytes(first + lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
