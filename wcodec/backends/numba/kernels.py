"""What the backend's code is made of: kernels, their parts, and native functions.

Kernels are called by Python. They and their parts are Python in the subset that numba compiles.
Native functions are LLVM IR, and kernels call them by address. None of it is compiled here:
`machine_code` loads what a call needs, and `compiling` makes LLVM IR of it, which the package
brings along.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Final, NamedTuple, TypeVar, get_args, get_type_hints

import numpy as np

from wcodec.backends.numba import machine_code
from wcodec.processes import loading

F = TypeVar("F", bound=Callable[..., Any])


# ---- types of what kernels take ------------------------------------------------------------------
class ArrayOf(NamedTuple):
    """Type of a C-contiguous array; a dtype of ``None`` is the kernel's type of words."""

    dtype: Any
    ndim: int = 1


@cache
def array_of(dtype: np.dtype[Any], ndim: int = 1) -> ArrayOf:
    """The same each time, so that types are compared in no time."""
    return ArrayOf(dtype, ndim)


Int = Annotated[Any, np.int64]
UInt = Annotated[Any, np.uint32]
Bytes = Annotated[Any, ArrayOf(np.uint8)]
Bytes2 = Annotated[Any, ArrayOf(np.uint8, 2)]
UInts16 = Annotated[Any, ArrayOf(np.uint16)]
UInts32 = Annotated[Any, ArrayOf(np.uint32)]
UInts32x2 = Annotated[Any, ArrayOf(np.uint32, 2)]
UInts64 = Annotated[Any, ArrayOf(np.uint64)]
UInts64x2 = Annotated[Any, ArrayOf(np.uint64, 2)]
UInts64x3 = Annotated[Any, ArrayOf(np.uint64, 3)]
Ints = Annotated[Any, ArrayOf(np.int64)]
Ints2 = Annotated[Any, ArrayOf(np.int64, 2)]
Ints3 = Annotated[Any, ArrayOf(np.int64, 3)]
Words = Annotated[Any, ArrayOf(None)]


# ---- parts of kernels ----------------------------------------------------------------------------
class Part:
    """A function that becomes a part of the kernels that call it. Python cannot call it.

    It is Python; or if it `is_intrinsic`, it emits LLVM IR, as those of numba do.
    """

    def __init__(self, function: Callable[..., Any], is_intrinsic: bool) -> None:
        self.function, self.is_intrinsic = function, is_intrinsic
        self.__name__, self.__doc__ = function.__name__, function.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{self.__name__} is a part of kernels: Python cannot call it")


def jit(function: F) -> F:
    """A part in Python."""
    part: Any = Part(function, False)
    return part  # type: ignore[no-any-return]


def intrinsic(function: Any) -> Any:
    """A part in LLVM IR, as ``numba.extending.intrinsic`` takes it."""
    return Part(function, True)


# ---- kernels -------------------------------------------------------------------------------------
KERNELS: Final[dict[str, Kernel]] = {}
_Entry: Final = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)


class Kernel:
    """A function in machine code. It is loaded, and compiled if need be, at the first call.

    It takes integers, C-contiguous arrays, and tuples of them, of the types that its parameters are
    annotated with, and returns an integer or nothing. It does not hold the GIL. In place of an
    array or a tuple it takes a list of words: integers, and of each array its address and shape
    (`flat`). Whoever makes such a list keeps the arrays.

    Parameters
    ----------
    word
        The type that `Words` stands for.
    """

    def __init__(self, function: Callable[..., Any], word: Any = None) -> None:
        self.function, self.part, self.word = function, Part(function, False), word
        module = function.__module__.rpartition(".")[2]
        self.name = f"{module}.{function.__name__}" + (f".{np.dtype(word)}" if word else "")
        self.__doc__ = function.__doc__
        self._entry: Callable[[int], int] | None = None
        self._types: tuple[Any, ...] = ()
        self._n_words = 0
        KERNELS[self.name] = self

    def _load(self) -> Callable[[int], int]:
        with loading:
            if self._entry is None:
                self._types = types_of(self.function, self.word)
                self._n_words = 1 + _n_words(self._types)
                self._entry = _Entry(machine_code.address_of(self))
            return self._entry

    def __call__(self, *args: Any) -> int:
        entry, words = self._entry or self._load(), [0]  # the result comes first
        for value, of in zip(args, self._types, strict=True):
            if type(value) is int:
                words.append(value)
            else:
                _append(words, value, of)
        if len(words) != self._n_words:
            raise TypeError(f"{self.name}: {len(words)} words where {self._n_words} are due")
        passed = array("q", words)
        if entry(passed.buffer_info()[0]):
            raise SystemError(f"the kernel {self.name} has failed")
        return passed[0]


def kernel(function: Callable[..., Any]) -> Kernel:
    """A kernel; see `Kernel`."""
    return Kernel(function)


@cache
def types_of(annotated: Any, word: Any) -> tuple[Any, ...]:
    """Types of the parameters of a kernel, or of the fields of a named tuple: a type of NumPy for
    an integer, `ArrayOf`, or a tuple of these for a tuple.
    """
    out = list[Any]()
    for name, hint in get_type_hints(annotated, include_extras=True).items():
        if name == "return":
            continue
        of = types_of(hint, word) if hasattr(hint, "_fields") else get_args(hint)[1]
        if isinstance(of, ArrayOf):
            of = array_of(np.dtype(of.dtype or word), of.ndim)
        out.append(of)
    return tuple(out)


#: of an object of NumPy, where its head ends: there is the address of its data (NumPy's C API,
#: PyArrayObject)
_HEAD_NBYTES: Final = object.__basicsize__
_number_at: Final = ctypes.c_size_t.from_address


def address_of(array: Any) -> int:
    """Where the bytes of an array are: as ``array.ctypes.data``, in a tenth of its time."""
    return _number_at(id(array) + _HEAD_NBYTES).value


def _check_address_of() -> None:
    array = np.empty(2, np.uint8)[1:]
    if address_of(array) != array.ctypes.data:
        raise ImportError("arrays of this NumPy are not what the numba backend takes them for")


_check_address_of()


def flat(array: Any) -> list[int]:
    """Address and shape of an array that is contiguous and of the right type."""
    return [address_of(array), *array.shape]


def _n_words(of: Any) -> int:
    """Words of arguments of such types."""
    if isinstance(of, ArrayOf):
        return 1 + of.ndim
    return sum(map(_n_words, of)) if isinstance(of, tuple) else 1


def _append(words: list[int], value: Any, of: Any) -> None:
    """Append an integer, the address and shape of an array, all of a tuple, or words."""
    kind = type(value)
    if kind is list:
        words += value
    elif kind is np.ndarray:
        if value.dtype != of.dtype or value.ndim != of.ndim or not value.flags.c_contiguous:
            raise TypeError(f"{value.dtype} of {value.ndim} dimensions where {of} is due")
        words.append(address_of(value))
        words += value.shape
    elif kind is Packed:
        if value.of is not of and value.of != of:
            raise TypeError(f"{value.of} where {of} is due")
        words += value.words
    elif isinstance(value, tuple):
        for part, part_of in zip(value, of, strict=True):
            _append(words, part, part_of)
    elif isinstance(value, np.ndarray):  # a memory map, or another subclass
        _append(words, np.asarray(value), of)
    else:
        words.append(value)


class Packed:
    """An argument of kernels that stays the same from call to call: an array or a named tuple."""

    def __init__(self, value: Any) -> None:
        is_array = isinstance(value, np.ndarray)
        kind: Any = type(value)
        self.of: Any = array_of(value.dtype, value.ndim) if is_array else types_of(kind, None)
        self.value, self.words = value, list[int]()
        _append(self.words, value, self.of)


# ---- native functions ----------------------------------------------------------------------------
NATIVES: Final[dict[str, Native]] = {}


class Native:
    """A native function, which returns nothing.

    Parameters
    ----------
    name
        Of the function; a part of the name of its file on disk.
    emit
        ``emit(builder, *args)`` emits its code.
    n_args
        How many int64 it takes.
    """

    def __init__(self, name: str, emit: Callable[..., None], n_args: int) -> None:
        self.name, self.emit, self.n_args, self._address = name, emit, n_args, 0
        NATIVES[name] = self

    @property
    def address(self) -> int:
        """Where its machine code is. It is loaded, and compiled if need be, when it is asked."""
        if not self._address:
            with loading:
                self._address = self._address or machine_code.address_of(self)
        return self._address


@intrinsic
def call_native(typing: Any, function: Any, args: Any) -> Any:
    """Call a native function by its address, with a tuple of integers."""
    from llvmlite import ir
    from numba.core import types

    def call(context: Any, b: Any, signature: Any, values: Any) -> Any:
        numbers = [b.extract_value(values[1], i) for i in range(len(args))]
        of = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * len(numbers))
        b.call(b.inttoptr(values[0], of.as_pointer()), numbers)
        return context.get_dummy_value()

    uniform: Any = types.UniTuple
    return types.void(types.int64, uniform(types.int64, len(args))), call


@intrinsic
def fence(typing: Any) -> Any:
    """Let other threads see what was stored past the caches before they see what comes next."""
    from numba.core import types

    def codegen(context: Any, b: Any, signature: Any, values: Any) -> Any:
        b.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen
