"""Kernels and native functions made into LLVM IR: kernels by numba. Runs where the package is made.

Also where its sources were changed. A kernel becomes a function ``int32 name(int64 *words)``:
`words` are the result and, from the second on, integers, and addresses and shapes of arrays. It
returns 0, or whatever numba returns for an exception.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import numba
import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.registry import cpu_target
from numba.core.typed_passes import NopythonTypeInference
from numba.extending import intrinsic, typeof_impl

from wcodec.backends.numba.ir import I32, I64, POINTER, load
from wcodec.backends.numba.kernels import ArrayOf, Kernel, Native, Part, types_of
from wcodec.backends.numba.machine_code import symbol_of, target_machine


def _anything(function: Any) -> Any:
    """The same, for mypy: numba has no types."""
    return function


# ---- parts ---------------------------------------------------------------------------------------
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


#: what would let Python and C call a function is not compiled: a third of the time
_OPTIONS: Final[dict[str, Any]] = {
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "error_model": "numpy",
}
_parts: Final[dict[Part, Any]] = {}  # numba holds them by weak references


def _type_of_part(part: Part, _: Any) -> Any:
    """Numba's type of a part of kernels.

    It is compiled once, where numba would compile anew for each constant that is passed. References
    are not counted; see `_NoReferenceCounts`.
    """
    if part not in _parts:
        _parts[part] = _anything(intrinsic)(part.function) if part.is_intrinsic else _jitted(part)
        cpu_target.typing_context.refresh()
    if part.is_intrinsic:
        return _anything(cpu_target.typing_context).resolve_value_type(_parts[part])
    return _anything(types.Dispatcher)(_parts[part])


_anything(typeof_impl.register)(Part, _type_of_part)


def _jitted(part: Part) -> Any:
    jit = _anything(numba.njit)(**_OPTIONS, _nrt=True, pipeline_class=_PartCompiler)
    compiled = jit(part.function)
    template = compiled.get_call_template
    compiled.get_call_template = lambda args, kws: template(tuple(map(types.unliteral, args)), kws)
    # nothing is there that a call by Python could find
    compiled._insert = lambda *_: None
    return compiled


# ---- kernels -------------------------------------------------------------------------------------
def _type_of(of: Any) -> Any:
    """Numba's type of a parameter; see `kernels.types_of`."""
    if isinstance(of, ArrayOf):
        return _anything(numba.typeof)(np.empty((0,) * of.ndim, of.dtype))
    if isinstance(of, tuple):
        return _anything(types.Tuple)([_type_of(part) for part in of])
    return numba.from_dtype(np.dtype(of))


def _numbers(b: Any, words: Any) -> Iterator[Any]:
    """Parameters from the second word on."""
    i = 1
    while True:
        yield load(b, b.gep(words, [I64(i)]), I64)
        i += 1


def _built(context: Any, b: Any, of: Any, numbers: Iterator[Any]) -> Any:
    """A value of a type out of words."""
    if isinstance(of, types.BaseTuple):
        return context.make_tuple(b, of, [_built(context, b, t, numbers) for t in _anything(of)])
    value = next(numbers)
    if not isinstance(of, types.Array):
        wide = context.get_value_type(of)
        return b.trunc(value, wide) if wide.width < I64.width else value
    element = context.get_data_type(of.dtype)
    shape, stride = [next(numbers) for _ in range(of.ndim)], I64(context.get_abi_sizeof(element))
    array, strides = context.make_array(of)(context, b), list[Any]()
    for length in reversed(shape):
        strides.insert(0, stride)
        stride = b.mul(stride, length, flags=["nsw"])
    context.populate_array(
        array,
        data=b.inttoptr(value, element.as_pointer()),
        shape=_anything(cgutils.pack_array)(b, shape),
        strides=_anything(cgutils.pack_array)(b, strides),
        itemsize=I64(context.get_abi_sizeof(element)),
        meminfo=None,
    )
    return array._getvalue()


def bitcode_of(one: Kernel | Native) -> bytes:
    """LLVM IR of a kernel or native function, as bitcode."""
    return _of_kernel(one) if isinstance(one, Kernel) else _of_native(one)


def _of_kernel(kernel: Kernel) -> bytes:
    of = _type_of(types_of(kernel.function, kernel.word))

    def built(typing: Any, words: Any) -> Any:
        def codegen(context: Any, b: Any, signature: Any, values: Any) -> Any:
            return _built(context, b, of, _numbers(b, b.inttoptr(values[0], I64.as_pointer())))

        return of(types.int64), codegen

    part, arguments = kernel.part, _anything(intrinsic)(built)

    def entry(words: Any) -> Any:
        return part(*arguments(words))

    jitted = _anything(numba.njit)("(int64,)", **_OPTIONS, _nrt=False)(entry)
    (compiled,) = jitted.overloads.values()
    inner = ir.Module()
    function = _function(inner, symbol_of(kernel.name), I32, [I64.as_pointer()])
    b = ir.IRBuilder(function.append_basic_block())
    name = compiled.fndesc.llvm_func_name
    call = ir.Function(inner, ir.FunctionType(I32, [POINTER, POINTER, I64]), name)
    result, exception = b.alloca(I64), b.alloca(I64)
    b.store(I64(0), result)
    status = b.call(call, [result, exception, b.ptrtoint(function.args[0], I64)])
    b.store(b.load(result), function.args[0])
    b.ret(status)
    module: Any = llvm.parse_assembly(compiled.library.get_llvm_str())
    module.link_in(llvm.parse_assembly(str(inner)))
    return _finished(module, function.name)


def _of_native(native: Native) -> bytes:
    module = ir.Module()
    function = _function(module, symbol_of(native.name), ir.VoidType(), [I64] * native.n_args)
    b = ir.IRBuilder(function.append_basic_block())
    native.emit(b, *function.args)
    b.ret_void()
    return _finished(llvm.parse_assembly(str(module)), function.name)


def _function(module: Any, name: str, result: Any, args: list[Any]) -> Any:
    module.triple = llvm.get_process_triple()
    return ir.Function(module, ir.FunctionType(result, args), name)


# ---- modules -------------------------------------------------------------------------------------
def _finished(module: Any, name: str) -> bytes:
    """Bitcode of a module whose only function is `name`, optimised, without what is of no use."""
    machine: Any = target_machine()
    module.data_layout = str(machine.target_data)
    for value in [*module.functions, *module.global_variables]:
        if not value.is_declaration and value.name != name:
            value.linkage = "internal"
    builder: Any = llvm.create_pass_builder(
        machine, llvm.create_pipeline_tuning_options(speed_level=3)
    )
    passes = builder.getModulePassManager()
    passes.run(module, builder)
    # which memory does not overlap: that was for optimisation, and takes half of the space
    text = re.sub(r", !(noalias|alias\.scope) !\d+", "", str(module))
    # exceptions of numba, pickled: that there was one is all that is looked at
    text = re.sub(
        r"(@\.const\.pickledata.* constant \[\d+ x i8\]) c\".*\"", r"\1 zeroinitializer", text
    )
    module = llvm.parse_assembly(text)
    module.verify()
    for i, function in enumerate(module.functions):
        if not function.is_declaration:
            _forget_names(function)
            if function.name != name:
                function.name = f"part_{i}"
    bitcode: bytes = module.as_bitcode()
    return bitcode


def _forget_names(function: Any) -> None:
    """Take their names from the values of a function: half of its bitcode."""
    for argument in function.arguments:
        argument.name = ""
    for block in function.blocks:
        block.name = ""
        for instruction in block.instructions:
            instruction.name = ""
