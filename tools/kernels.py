"""Write the LLVM IR of the numba backend's kernels into the package: ``make kernels``.

It is made for each target of `wcodec.backends.numba.ir.TARGETS`, by a process that is told to
compile for such a CPU, with the oldest numba that is supported. ``--check`` says whether it fits
the sources, and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from llvmlite import binding as llvm

from wcodec.backends.numba import archive, ir

#: CPUs whose costs LLVM weighs when it optimises for a target
CPUS = {
    "avx512": "icelake-server",
    "avx512-narrow": "skylake-avx512",
    "avx2": "znver3",
    "avx2-narrow": "haswell",
    "neon": "generic",
    "neon-narrow": "generic",
    "plain": "x86-64",
}
AARCH64 = "aarch64-unknown-linux-gnu"


def compile_for(triple: str) -> None:
    """Make this process compile for another architecture; it must not run any of it.

    Numba and wcodec ask LLVM which one that is, and believe what they are told.
    """
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.get_process_triple = lambda: triple


def bitcode_for(target: str) -> dict[str, bytes]:
    """Bitcode of all kernels and native functions for a target, by name."""
    base = set() if ir.TARGETS[target].variant == "neon" else {"sse2"}
    features = ",".join(f"+{f}" for f in sorted(base | ir.TARGETS[target].needs))
    env = {**os.environ, "NUMBA_CPU_NAME": CPUS[target], "NUMBA_CPU_FEATURES": features}
    command = [sys.executable, __file__, "--one"]
    run = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE)
    print(target, flush=True)
    bitcode: dict[str, bytes] = pickle.loads(run.stdout)
    return bitcode


def main() -> int:
    """Write or check the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        if ir.VARIANT == "neon":
            compile_for(AARCH64)
        from wcodec.backends.numba.catalogue import everything
        from wcodec.backends.numba.compiling import bitcode_of

        made = {one.name: bitcode_of(one) for one in everything()}
        sys.stdout.buffer.write(pickle.dumps(made))
        return 0
    if archive.is_current():
        print("kernels.xz is of these sources")
        return 0
    if args.check:
        print("kernels.xz is not of these sources: run make kernels", file=sys.stderr)
        return 1
    if llvm.llvm_version_info[0] != archive.OLDEST_LLVM:
        print("this is not the oldest numba that is supported: run make kernels", file=sys.stderr)
        return 1
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        bitcode = dict(zip(ir.TARGETS, pool.map(bitcode_for, ir.TARGETS), strict=True))
    archive.write(archive.PATH, bitcode)
    print(f"{archive.PATH.name}: {archive.PATH.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
