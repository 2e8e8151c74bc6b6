"""What kernels take of a GPU, as the assembler says: registers, stack, shared memory."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from wcodec.backends.cuda.compiler import compile_with_log

_ENTRY: Final = re.compile(r"Compiling entry function '(\w+)'")
_FRAME: Final = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)
_USED: Final = re.compile(r"Used (\d+) registers")
_SHARED: Final = re.compile(r"(\d+) bytes smem")


class Usage(NamedTuple):
    """What a kernel takes: registers of a thread, bytes of a thread's stack and of registers spilt
    to it, bytes shared by a block.
    """

    registers: int
    stack_nbytes: int
    spill_stores_nbytes: int
    spill_loads_nbytes: int
    shared_nbytes: int


def compile_with_usage(source: str, arch: int) -> tuple[bytes, dict[str, Usage], str]:
    """`compile_cubin`, what each kernel takes, and warnings."""
    cubin, log = compile_with_log(source, arch, "--ptxas-options=--verbose")
    usage, rest, kernel = dict[str, Usage](), [], ""
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            kernel = entry[1]
            usage[kernel] = Usage(0, 0, 0, 0, 0)
        elif frame := _FRAME.search(line):  # of the kernel, and of functions that it calls
            stack, stores, loads = (
                a + int(b) for a, b in zip(usage[kernel][1:4], frame.groups(), strict=True)
            )
            usage[kernel] = usage[kernel]._replace(
                stack_nbytes=stack, spill_stores_nbytes=stores, spill_loads_nbytes=loads
            )
        elif used := _USED.search(line):
            shared = _SHARED.search(line)
            usage[kernel] = usage[kernel]._replace(
                registers=int(used[1]), shared_nbytes=int(shared[1]) if shared else 0
            )
        elif not line.startswith("ptxas info"):
            rest.append(line)
    return cubin, usage, "\n".join(rest).strip()
