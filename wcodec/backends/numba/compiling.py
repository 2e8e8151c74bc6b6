"""How the numba backend's code is compiled, and kept on disk.

Three kinds of code: functions that become a part of their callers, kernels that Python calls, and
native functions, which kernels call by address. Native is what is large and fixed, so that it is
compiled once and not in each of its callers.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, Final, TypeVar

from llvmlite import ir as llvm
from numba import cfunc, njit
from numba.core import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.typed_passes import NopythonTypeInference

from wcodec.backends.numba.ir import I64, intrinsic

F = TypeVar("F", bound=Callable[..., Any])


def _anything(function: Any) -> Any:
    """The same, for mypy: numba has no types."""
    return function


def stamp_of(folder: Path) -> str:
    """Checksum of the sources that kernels are made of.

    Numba itself looks at the file of the kernel alone.
    """
    crc = 0
    for path in sorted(folder.glob("*.py")):
        crc = zlib.crc32(path.read_bytes(), crc)
    return f"{crc:08x}"


STAMP: Final = stamp_of(Path(__file__).parent)


class _PartLibrary(JITCodeLibrary):
    """LLVM IR that becomes a part of a kernel's.

    It is optimised there, together with what calls it, and not before as well.
    """

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True


@_anything(register_pass)(mutates_CFG=False, analysis_only=True)
class _NoReferenceCounts(FunctionPass):
    """Compile no counting of references to arrays: a fifth of a kernel's code.

    Kernels make no arrays, and whoever calls them holds all that they take. Numba has an option for
    that, ``_nrt``, but its check of types then allows no function to return a part of an array: so
    counting is switched off after that check.
    """

    _name = "no_reference_counts"

    def __init__(self) -> None:
        _anything(super().__init__)()

    def run_pass(self, state: Any) -> bool:
        state.targetctx.enable_nrt = False
        return True


class _PartCompiler(Compiler):
    def define_pipelines(self) -> Any:
        (pipeline,) = _anything(super().define_pipelines)()
        pipeline.add_pass_after(_NoReferenceCounts, NopythonTypeInference)
        pipeline.finalize()
        return [pipeline]

    def compile_extra(self, func: Any) -> Any:
        context, library = self.state.targetctx, _anything(_PartLibrary)
        self.state.library, self.state.flags.no_compile = (
            library(context.codegen(), func.__qualname__),
            True,
        )
        compiled = _anything(super().compile_extra)(func)._replace(entry_point=object())
        context.insert_user_function(compiled.entry_point, compiled.fndesc, [compiled.library])
        return compiled


def jit(function: F) -> F:
    """Compile as a part of the kernels that call it.

    It is compiled once, where numba would compile anew for each constant that is passed.

    What would let Python and C call it is not compiled: a third of the time that compiling takes.
    Nor are references counted; see `_NoReferenceCounts`.
    """
    compile_with: Any = njit
    no_wrappers = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": True}
    compiled: Any = compile_with(**no_wrappers, error_model="numpy", pipeline_class=_PartCompiler)(
        function
    )
    template = compiled.get_call_template
    compiled.get_call_template = lambda args, kws: template(tuple(map(types.unliteral, args)), kws)
    # nothing is there that a call by Python could find, which without a wrapper would crash
    compiled._insert = lambda *_: None
    compiled._compile_for_args = functools.partial(_refuse, function.__name__)
    same: F = compiled
    return same


def _refuse(name: str, *args: Any, **kwargs: Any) -> Any:
    raise TypeError(f"{name} is a part of kernels: Python cannot call it")


def kernel(function: F) -> F:
    """Compile at the first call, and keep the machine code on disk if there is a place for it."""
    compile_with: Any = njit
    function.__qualname__ += f"-{STAMP}"  # becomes a part of the name of the file on disk
    try:
        compiled: F = compile_with(
            cache=True, nogil=True, no_cfunc_wrapper=True, error_model="numpy", _nrt=False
        )(function)
    except RuntimeError:  # numba finds no directory that it may write to
        compiled = compile_with(nogil=True, no_cfunc_wrapper=True, error_model="numpy", _nrt=False)(
            function
        )
    return compiled


# ---- native functions --------------------------------------------------------------------------
_natives: Final[dict[str, Any]] = {}


def native(name: str, emit: Callable[..., None], n_args: int) -> int:
    """Address of a native function, which is compiled once.

    Parameters
    ----------
    name
        Of the function; a part of the name of its file on disk.
    emit
        ``emit(builder, *args)`` emits its code.
    n_args
        How many int64 it takes.
    """
    if name not in _natives:

        def typed(typing: Any, args: Any) -> Any:
            def codegen(context: Any, b: Any, signature: Any, values: Any) -> Any:
                emit(b, *_unpacked(b, values[0]))
                return context.get_dummy_value()

            return types.void(args), codegen

        _natives[name] = _compiled(name, intrinsic(typed), n_args)
    address: int = _natives[name].address
    return address


# numba looks at the names of a function's parameters
def _body_2(a: Any, b: Any) -> None:
    emitted((a, b))  # type: ignore[name-defined]  # noqa: F821


def _body_4(a: Any, b: Any, c: Any, d: Any) -> None:
    emitted((a, b, c, d))  # type: ignore[name-defined]  # noqa: F821


def _body_5(a: Any, b: Any, c: Any, d: Any, e: Any) -> None:
    emitted((a, b, c, d, e))  # type: ignore[name-defined]  # noqa: F821


def _compiled(name: str, emitted: Any, n_args: int) -> Any:
    """A C function.

    What it calls is a global of it: numba does not find a function on disk that has a closure.
    """
    body = {2: _body_2, 4: _body_4, 5: _body_5}[n_args]
    function = FunctionType(body.__code__, {**globals(), "emitted": emitted}, name)
    function.__qualname__ = f"{name}-{STAMP}"
    signature, compile_with = types.void(*[types.int64] * n_args), _anything(cfunc)
    try:
        return compile_with(signature, cache=True)(function)
    except RuntimeError:  # as in `kernel`
        return compile_with(signature)(function)


def _unpacked(b: Any, values: Any) -> list[Any]:
    """Elements of a tuple."""
    return [b.extract_value(values, i) for i in range(len(values.type.elements))]


@intrinsic
def call_native(typing: Any, function: Any, args: Any) -> Any:
    """Call a native function by its address, with a tuple of integers."""

    def call(context: Any, b: Any, signature: Any, values: Any) -> Any:
        numbers = _unpacked(b, values[1])
        of = llvm.FunctionType(llvm.VoidType(), [I64] * len(numbers))
        b.call(b.inttoptr(values[0], of.as_pointer()), numbers)
        return context.get_dummy_value()

    return types.void(types.int64, _anything(types.UniTuple)(types.int64, len(args))), call
