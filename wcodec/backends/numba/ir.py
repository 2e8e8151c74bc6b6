"""Vectors of LLVM IR: the instructions that rANS needs and that numba's loops do not reach.

See `rans_vectors`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32: Final = ir.FloatType()
POINTER: Final = ir.PointerType()


# ---- the CPU -------------------------------------------------------------------------------------
def cpu_name() -> str:
    """Name of the CPU that is compiled for: that at hand, or a lesser one of the environment
    variable ``NUMBA_CPU_NAME``.
    """
    return os.environ.get("NUMBA_CPU_NAME") or str(llvm.get_host_cpu_name())


def cpu_features() -> str:
    """What that CPU has, in LLVM's words. ``NUMBA_CPU_FEATURES`` can say so too."""
    named = os.environ.get("NUMBA_CPU_FEATURES")
    if named is not None:
        return named
    listed = cpu_name() == llvm.get_host_cpu_name()
    features = llvm.get_host_cpu_features().flatten() if listed else ""
    # every aarch64 has NEON, but LLVM does not list it on every system
    always = "+neon" if llvm.get_process_triple().startswith(("aarch64", "arm64")) else ""
    return ",".join(filter(None, [features, always]))


class Target(NamedTuple):
    """A class of CPUs that the same code is for.

    Attributes
    ----------
    needs
        LLVM's names of what the CPU has.
    variant
        ``"avx512"``, ``"avx2"``, ``"neon"``, or ``"plain"`` for any other CPU.
    carryless
        Widest carry-less multiplication: ``"avx512"``, ``"avx2"``, ``"sse"``, ``"neon"``, or none.
    byte_lookup
        Whether tables of 256 bytes are looked up in registers.
    """

    needs: frozenset[str]
    variant: str
    carryless: str
    byte_lookup: bool


_AVX512: Final = frozenset({"avx512f", "avx512bw", "avx512vl", "pclmul"})
#: From the best to the least: Ice Lake and Zen 4, Skylake, Alder Lake and Zen 3, Haswell; aarch64,
#: without PMULL such as of a Raspberry Pi 4; any.
#: A CPU that lacks one thing of a class takes the next one that it has all of.
TARGETS: Final = {
    "avx512": Target(_AVX512 | {"avx512vbmi", "vpclmulqdq"}, "avx512", "avx512", True),
    "avx512-narrow": Target(_AVX512, "avx512", "sse", False),
    "avx2": Target(frozenset({"avx2", "pclmul", "vpclmulqdq"}), "avx2", "avx2", False),
    "avx2-narrow": Target(frozenset({"avx2", "pclmul"}), "avx2", "sse", False),
    "neon": Target(frozenset({"neon", "aes"}), "neon", "neon", False),
    "neon-narrow": Target(frozenset({"neon"}), "neon", "", False),
    "plain": Target(frozenset(), "plain", "", False),
}


def _choose_target() -> str:
    has = {f[1:] for f in cpu_features().split(",") if f.startswith("+")}
    return next(name for name, target in TARGETS.items() if target.needs <= has)


TARGET: Final = _choose_target()  #: name in `TARGETS`
_, VARIANT, CARRYLESS, BYTE_LOOKUP = TARGETS[TARGET]
WIDTH: Final = 16 if VARIANT == "avx512" else 8  #: u32 in a vector
GATHERS: Final = VARIANT in ("avx512", "avx2")  #: whether there is `gather`
STREAMS: Final = VARIANT in ("avx512", "avx2")  #: whether there is `stream`


def places(record: np.dtype[Any]) -> dict[str, int]:
    """Where the fields of a record of int64 are, in int64 from its start."""
    return {name: offset // 8 for name, (_, offset, *_) in (record.fields or {}).items()}


class Emitter:
    """The body of a native function, whose parameters are a record of int64."""

    def __init__(self, b: Any, params: Any, record: np.dtype[Any]) -> None:
        self.b, self._params, self._places = b, params, places(record)

    def place(self, name: str, i: int = 0) -> Any:
        """Where a parameter is, or element `i` of it."""
        return element(self.b, self._params, I64, I64(self._places[name] + i))

    def param(self, name: str, i: int = 0) -> Any:
        """A parameter, or element `i` of it."""
        return load(self.b, self.place(name, i), I64)


def vector(element: Any, n: int) -> Any:
    """Type of a vector."""
    return ir.VectorType(element, n)


def splat(value: Any, element: Any, n: int) -> Any:
    """Constant vector of equal elements."""
    return ir.Constant(vector(element, n), [value] * n)


def constant(of: Any, values: Any) -> Any:
    """Constant of a type."""
    return ir.Constant(of, values)


def zero(of: Any) -> Any:
    """The constant 0 of a type."""
    return ir.Constant(of, None)


def declare(b: Any, name: str, result: Any, args: list[Any]) -> Any:
    """An LLVM function by name."""
    found = b.module.globals.get(name)
    return found or ir.Function(b.module, ir.FunctionType(result, args), name)


def pointer(b: Any, address: Any) -> Any:
    """A pointer to bytes from an int64."""
    return b.inttoptr(address, I8.as_pointer())


def element(b: Any, base: Any, of: Any, index: Any) -> Any:
    """``&((of *) base)[index]``."""
    return b.gep(b.bitcast(base, of.as_pointer()), [index], source_etype=of)


def load(b: Any, source: Any, of: Any) -> Any:
    """Load from any address, aligned or not."""
    loaded = b.load(b.bitcast(source, of.as_pointer()))
    loaded.align = 1
    return loaded


def store(b: Any, value: Any, target: Any) -> None:
    """Store to any address, aligned or not."""
    b.store(value, b.bitcast(target, value.type.as_pointer())).align = 1


def stream(b: Any, value: Any, target: Any) -> None:
    """Store past the caches, to an address that is a multiple of 16. Needs `STREAMS`.

    Other threads see it after a fence.
    """
    stored = b.store(value, b.bitcast(target, value.type.as_pointer()))
    stored.align = 16
    stored.set_metadata("nontemporal", b.module.add_metadata([I32(1)]))


def shuffle(b: Any, first: Any, second: Any, order: Iterable[int]) -> Any:
    """Elements of two vectors, by their numbers in both."""
    indices = list(order)
    return b.shuffle_vector(first, second, ir.Constant(vector(I32, len(indices)), indices))


def broadcast(b: Any, value: Any, n: int) -> Any:
    """Vector of a value known at run time."""
    undefined = ir.Constant(vector(value.type, n), ir.Undefined)
    return shuffle(b, b.insert_element(undefined, value, I32(0)), undefined, [0] * n)


def zipped(b: Any, first: Any, second: Any) -> list[Any]:
    """``first[0], second[0], first[1], second[1], ...`` as two vectors."""
    n = first.type.count
    order = [k for i in range(n) for k in (i, n + i)]
    return [shuffle(b, first, second, order[:n]), shuffle(b, first, second, order[n:])]


def unzipped(b: Any, first: Any, second: Any) -> list[Any]:
    """Inverse of `zipped`: the even and the odd elements of two vectors."""
    n = first.type.count
    return [shuffle(b, first, second, range(k, 2 * n, 2)) for k in range(2)]


def interleaved(b: Any, first: Any, second: Any, n: int) -> list[Any]:
    """As `zipped`, but of each `n` elements by themselves: the first halves, then the second."""
    count, out = first.type.count, []
    for part in (0, n // 2):
        at = [run + part + i for run in range(0, count, n) for i in range(n // 2)]
        out.append(shuffle(b, first, second, [k for i in at for k in (i, count + i)]))
    return out


def lookup(b: Any, table: Any, index: Any, bits: int = 16) -> Any:
    """``table[index]`` for each of 8 or 16 u32; indices are below ``2 ** bits``, which is 16 or 32.

    Several indices at a time are moved to a general register.
    """
    n, each = index.type.count, 64 // bits
    narrow = index if bits == 32 else b.trunc(index, vector(I16, n))
    some, out = b.bitcast(narrow, vector(I64, n // each)), ir.Constant(vector(I32, n), ir.Undefined)
    for i in range(n // each):
        four = b.extract_element(some, I32(i))
        for k in range(each):
            one = b.lshr(four, I64(bits * k))
            one = one if k == each - 1 else b.and_(one, I64((1 << bits) - 1))
            entry = b.load(element(b, table, I32, one))
            entry.align = 4
            out = b.insert_element(out, entry, I32(each * i + k))
    return out


def gather(b: Any, table: Any, index: Any, bits: int = 16) -> Any:
    """As `lookup`, by one instruction of AVX-512 or AVX2. Needs `GATHERS`."""
    of = index.type
    if VARIANT == "avx512":
        mask = vector(I1, WIDTH)
        name, last = "llvm.x86.avx512.mask.gather.dpi.512", [splat(1, I1, WIDTH), I32(4)]
        function = declare(b, name, of, [of, POINTER, of, mask, I32])
    else:
        name, last = "llvm.x86.avx2.gather.d.d.256", [splat(-1, I32, WIDTH), I8(4)]
        function = declare(b, name, of, [of, POINTER, of, of, I8])
    return b.call(function, [zero(of), table, index, *last])


def load_16(b: Any, source: Any) -> list[Any]:
    """A table of 16 u32 in registers, for `lookup_16`."""
    return [
        load(b, element(b, source, I32, I64(i)), vector(I32, WIDTH)) for i in range(0, 16, WIDTH)
    ]


def lookup_16(b: Any, table: list[Any], index: Any) -> Any:
    """``table[index & 15]`` for each of 8 or 16 u32."""
    of = vector(I32, WIDTH)
    if VARIANT == "neon":
        return _lookup_16_bytes(b, table, index)
    if VARIANT == "avx512":
        return b.call(declare(b, "llvm.x86.avx512.permvar.si.512", of, [of] * 2), [table[0], index])
    permute = declare(b, "llvm.x86.avx2.permd", of, [of] * 2)
    low, high = (b.call(permute, [half, index]) for half in table)
    return b.select(b.icmp_signed("<", b.shl(index, splat(28, I32, WIDTH)), zero(of)), high, low)


def _lookup_16_bytes(b: Any, table: list[Any], index: Any) -> Any:
    """NEON: `lookup_16` byte by byte, four bytes of an entry."""
    of, n = vector(I8, 16), index.type.count
    quarters = [
        b.bitcast(shuffle(b, part, part, range(i, i + 4)), of)
        for part in table
        for i in range(0, n, 4)
    ]
    first = b.mul(b.and_(index, splat(15, I32, n)), splat(0x04040404, I32, n))
    order = b.bitcast(b.add(first, splat(0x03020100, I32, n)), vector(I8, 4 * n))
    permute, out = declare(b, "llvm.aarch64.neon.tbl4.v16i8", of, [of] * 5), list[Any]()
    for i in range(0, 4 * n, 16):
        some = b.call(permute, [*quarters, shuffle(b, order, order, range(i, i + 16))])
        out.append(b.bitcast(some, vector(I32, 4)))
    return shuffle(b, out[0], out[1], range(n))


def lookup_bytes(b: Any, table: list[Any], index: Any) -> Any:
    """``table[index]`` for each of 64 bytes; `table` is four vectors. Needs `BYTE_LOOKUP`."""
    of = vector(I8, 64)
    permute = declare(b, "llvm.x86.avx512.vpermi2var.qi.512", of, [of] * 3)
    low, high = (b.call(permute, [table[i], index, table[i + 1]]) for i in (0, 2))
    return b.select(b.icmp_signed("<", index, zero(of)), high, low)


def load_row(b: Any, source: Any, n: int) -> Any:
    """A table of 16 bytes in registers of `n` bytes, for `lookup_nibbles`."""
    row = load(b, source, vector(I8, 16))
    return shuffle(b, row, row, [i % 16 for i in range(n)])


def lookup_nibbles(b: Any, row: Any, index: Any) -> Any:
    """``row[index]`` for each byte; indices are below 16."""
    n, of = index.type.count, index.type
    if VARIANT == "neon":
        part = vector(I8, 16)
        permute = declare(b, "llvm.aarch64.neon.tbl1.v16i8", part, [part] * 2)
        table, halves = shuffle(b, row, row, range(16)), range(0, n, 16)
        some = [
            b.call(permute, [table, shuffle(b, index, index, range(i, i + 16))]) for i in halves
        ]
        return shuffle(b, some[0], some[1], range(n))
    name = "avx512.pshuf.b.512" if VARIANT == "avx512" else "avx2.pshuf.b"
    return b.call(declare(b, f"llvm.x86.{name}", of, [of] * 2), [row, index])


def prefetch_line(b: Any, address: Any, write: int = 1) -> None:
    """Ask for a cache line, to write to or to read; it need not exist."""
    b.call(
        declare(b, "llvm.prefetch.p0", ir.VoidType(), [POINTER, I32, I32, I32]),
        [pointer(b, address), I32(write), I32(3), I32(1)],
    )


def popcount(b: Any, mask: Any) -> Any:
    """Number of set elements, int64."""
    if VARIANT == "neon":
        return b.lshr(_row_and_count(b, mask), I64(8))
    count = declare(b, "llvm.ctpop.i32", I32, [I32])
    return b.zext(b.call(count, [b.zext(b.bitcast(mask, ir.IntType(mask.type.count)), I32)]), I64)


def _permute(b: Any, values: Any, mask: Any, table: Any) -> Any:
    """AVX2: one of 256 permutations of 8 u32, 8 bytes each in `table`."""
    row = b.zext(b.bitcast(mask, I8), I64)
    order = b.zext(load(b, element(b, table, I64, row), vector(I8, 8)), vector(I32, 8))
    return b.call(
        declare(b, "llvm.x86.avx2.permd", vector(I32, 8), [vector(I32, 8)] * 2), [values, order]
    )


def _row_and_count(b: Any, mask: Any) -> Any:
    """NEON: which of 8 elements a mask has, in 8 bits, and above these how many, int64."""
    of = vector(I16, 8)
    bits = b.select(mask, constant(of, [256 + (1 << i) for i in range(8)]), zero(of))
    return b.zext(b.call(declare(b, "llvm.vector.reduce.add.v8i16", I16, [of]), [bits]), I64)


def _permute_16(b: Any, values: Any, mask: Any, table: Any) -> Any:
    """NEON: one of 256 permutations of the low 16 bits of 8 u32, 16 bytes each in `table`."""
    of, words = vector(I8, 16), vector(I16, 8)
    row = b.and_(_row_and_count(b, mask), I64(255))
    order = load(b, element(b, table, of, row), of)
    permute = declare(b, "llvm.aarch64.neon.tbl1.v16i8", of, [of] * 2)
    permuted = b.call(permute, [b.bitcast(b.trunc(values, words), of), order])
    return b.zext(b.bitcast(permuted, words), values.type)


def _avx512(b: Any, what: str, values: Any, mask: Any) -> Any:
    n = values.type.count
    of = vector(I32, n)
    function = declare(b, f"llvm.x86.avx512.mask.{what}.v{n}i32", of, [of, of, vector(I1, n)])
    return b.call(function, [values, zero(of), mask])


def _moved(b: Any, what: str, values: Any, mask: Any, table: Any) -> Any:
    if VARIANT == "avx512":
        return _avx512(b, what, values, mask)
    permute = _permute if VARIANT == "avx2" else _permute_16
    return permute(b, values, mask, table)


def expand(b: Any, values: Any, mask: Any, table: Any) -> Any:
    """Successive values, below 2^16, for the elements that `mask` has, in ascending order; others
    are unspecified.
    """
    return _moved(b, "expand", values, mask, table)


def compress(b: Any, values: Any, mask: Any, table: Any) -> Any:
    """The low 16 bits of the values that `mask` has, moved together to the front; their high bits
    and what follows are unspecified.
    """
    return _moved(b, "compress", values, mask, table)


class Loop:
    """``while`` counter: a loop of LLVM IR that carries values.

    Use: ``loop = Loop(b, count, values)``, compute the new values from `loop.values`, then
    `loop.close`.
    """

    def __init__(self, b: Any, count: Any, values: list[Any]) -> None:
        self.b, self.before, self.first = b, b.block, [I64(0), *values]
        self.head, self.done = b.append_basic_block("loop"), b.append_basic_block("done")
        self.count = count
        b.cbranch(b.icmp_signed(">", count, I64(0)), self.head, self.done)
        b.position_at_end(self.head)
        self.phis = [b.phi(v.type) for v in self.first]
        for phi, value in zip(self.phis, self.first, strict=True):
            phi.add_incoming(value, self.before)
        self.index, self.values = self.phis[0], self.phis[1:]

    def close(self, values: list[Any]) -> list[Any]:
        """End the body with the values for the next round. Returns those after the last one."""
        b, body = self.b, self.b.block
        following = b.add(self.index, I64(1))
        new = [following, *values]
        for phi, value in zip(self.phis, new, strict=True):
            phi.add_incoming(value, body)
        b.cbranch(b.icmp_signed("<", following, self.count), self.head, self.done)
        b.position_at_end(self.done)
        out = []
        for first, last in zip(self.first[1:], values, strict=True):
            phi = b.phi(first.type)
            phi.add_incoming(first, self.before)
            phi.add_incoming(last, body)
            out.append(phi)
        return out
