"""Instructions that a multiprocessor does in a clock:
what the counted kernels are to be held against.
"""

from __future__ import annotations

from typing import Any

import numpy as np

THREADS = 1024
BLOCKS = 2  #: of a multiprocessor: all the threads that it holds
CHAINS = 8
UNROLLED = 16
ROUNDS = 256
MOST_MULTIPROCESSORS = 1024

#: Kernel and PTX of a step: %0 is of the chain, %1 of the next chain,
#: %2 and %3 are the same for all.
STEPS = {
    "LOP3": "lop3.b32 %0, %0, %1, %2, 0xe8;",
    "SHF": "shf.l.wrap.b32 %0, %0, %1, %2;",
    "PRMT": "prmt.b32 %0, %0, %1, %2;",
    "IMAD": "mad.lo.u32 %0, %0, %2, %3;",
    "POPC": "popc.b32 %0, %0;",
    "VOTE": "{ .reg .pred p; setp.ne.u32 p, %0, %2; vote.sync.ballot.b32 %0, p, 0xffffffff; }",
    "LDS_RANDOM": "ld.shared.u32 %0, [%0];",
    "LDS_SAME_ROW": "ld.shared.u32 %0, [%0];",
}
NAMES = {
    "VOTE": "VOTE, each with an ISETP", "LDS_RANDOM": "LDS, 32-bit, random banks",
    "LDS_SAME_ROW": "LDS, 32-bit, no conflicts",
}  # fmt: skip

_KERNEL = r"""
extern "C" __global__ void __launch_bounds__(THREADS) rate_NAME(
    u64 *first, u64 *last, u32 *blocks, u32 *sink, u32 rounds, u32 a, u32 b) {
    __shared__ u32 table[4096];
    const u32 base = (u32)__cvta_generic_to_shared(table);
    for (u32 i = threadIdx.x; i < 4096; i += THREADS)
        table[i] = base + 4 * ((i * 1664525 + 1013904224) & 4095);  // a permutation of rows
    u32 x[CHAINS];
#pragma unroll
    for (u32 k = 0; k < CHAINS; k++) x[k] = start_of(threadIdx.x * CHAINS + k, base, START);
    u32 multiprocessor;
    asm("mov.u32 %0, %smid;" : "=r"(multiprocessor));
    __syncthreads();
    const u64 start = clock64();
    for (u32 round = 0; round < rounds; round++) {
#pragma unroll
        for (u32 i = 0; i < UNROLLED; i++) {
#pragma unroll
            for (u32 k = 0; k < CHAINS; k++)
                asm volatile("STEP" : "+r"(x[k]) : "r"(x[(k + 1) % CHAINS]), "r"(a), "r"(b));
        }
    }
    const u64 stop = clock64();
    u32 sum = 0;
#pragma unroll
    for (u32 k = 0; k < CHAINS; k++) sum ^= x[k];
    if (sum == 0x9e3779b9) *sink = sum;
    atomicMin(first + multiprocessor, start);
    atomicMax(last + multiprocessor, stop);
    if (threadIdx.x == 0) atomicAdd(blocks + multiprocessor, 1u);
}
"""


def source() -> str:
    """All kernels."""
    head = r"""
typedef unsigned int u32;
typedef unsigned long long u64;
enum { PLAIN, RANDOM, SAME_ROW };
__device__ __forceinline__ u32 start_of(u32 i, u32 base, u32 kind) {
    u32 mixed = i * 2654435761u;
    mixed = (mixed ^ mixed >> 15) * 2246822519u;
    if (kind == RANDOM) return base + (mixed >> 7 & 4095) * 4;
    if (kind == SAME_ROW) return base + ((mixed >> 7 & 0) + (threadIdx.x & 31)) * 4;
    return mixed;
}
"""
    out = [
        f"#define THREADS {THREADS}\n#define CHAINS {CHAINS}\n#define UNROLLED {UNROLLED}\n{head}"
    ]
    for name, step in STEPS.items():
        start = (
            "RANDOM" if name == "LDS_RANDOM" else "SAME_ROW" if name == "LDS_SAME_ROW" else "PLAIN"
        )
        out.append(_KERNEL.replace("NAME", name).replace("STEP", step).replace("START", start))
    return "".join(out)


def measure(device: Any) -> dict[str, float]:
    """Steps a clock and multiprocessor, each on all threads of the GPU at once;
    nothing where there is no GPU.
    """
    if not hasattr(device, "cupy"):
        return {}
    cupy, out = device.cupy, {}
    module = cupy.RawModule(code=source(), options=("--std=c++17",))
    grid = BLOCKS * int(device.runtime.properties["multiProcessorCount"])
    for name in STEPS:
        kernel = module.get_function(f"rate_{name}")
        for _ in range(3):  # the last one counts: clocks are up
            first = cupy.asarray(np.full(MOST_MULTIPROCESSORS, (1 << 64) - 1, np.uint64))
            last = cupy.zeros(MOST_MULTIPROCESSORS, np.uint64)
            blocks, sink = cupy.zeros(MOST_MULTIPROCESSORS, np.uint32), cupy.zeros(1, np.uint32)
            kernel(
                (grid,),
                (THREADS,),
                (
                    first,
                    last,
                    blocks,
                    sink,
                    np.uint32(ROUNDS),
                    np.uint32(0x10325476),
                    np.uint32(0x9E3779B9),
                ),
            )
        n = blocks.get().astype(np.float64)
        clocks = last.get().astype(np.float64) - first.get().astype(np.float64)
        full = n == BLOCKS
        out[NAMES.get(name, name)] = float(
            np.median(n[full] * THREADS * ROUNDS * UNROLLED * CHAINS / clocks[full])
        )
    return out
