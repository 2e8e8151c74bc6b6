// What the emulator offers, each with results that test_cuda_emulator.py computes in another way.
#include "common.cuh"

// Rows of `out`, one a collective, n threads each.
KERNEL collectives(const u32 *in, u32 *out, u32 n) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x, lane = lane_id(), x = in[i];
    u32 row = 0;
    const auto put = [&](u32 value) { out[row++ * n + i] = value; };
    put(__ballot_sync(ALL_LANES, x & 1));
    put((u32)__any_sync(ALL_LANES, x % 64 == 0));
    put((u32)__all_sync(ALL_LANES, x % 64 != 0));
    put(__shfl_sync(ALL_LANES, x, (int)(x & 31)));
    put(__shfl_up_sync(ALL_LANES, x, 3));
    put(__shfl_down_sync(ALL_LANES, x, 5));
    put(__shfl_xor_sync(ALL_LANES, x, 6));
    const u64 wide = __shfl_sync(ALL_LANES, (u64)x << 32 | lane, (int)(31 - lane));
    put((u32)(wide >> 32));
    put((u32)wide);
    put(__reduce_add_sync(ALL_LANES, x));
    __shared__ u32 turned[1024];
    turned[threadIdx.x] = x;
    __syncthreads();
    put(turned[blockDim.x - 1 - threadIdx.x]);
    __syncthreads();
    turned[threadIdx.x] = ~x;
    __syncwarp();
    put(turned[threadIdx.x ^ 31]);
}

KERNEL integers(const u32 *a, const u32 *b, u32 *out, u32 n) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const u32 x = a[i], y = b[i];
    const u64 wide = __umul64hi((u64)x << 32 | y, (u64)y << 32 | x);
    const u32 values[] = {
        (u32)__popc(x), (u32)__popcll((u64)x << 32 | y), (u32)__clz((int)x), (u32)__ffs((int)x),
        __brev(x), __byte_perm(x, y, y), __funnelshift_l(x, y, y), __funnelshift_r(x, y, y),
        __umulhi(x, y), (u32)wide, (u32)(wide >> 32), __ldg(a + i) ^ x,
        min(x, y), max(x, y), (u32)min((int)x, (int)y), (u32)max((int)x, (int)y),
    };
    for (u32 k = 0; k < sizeof(values) / sizeof(values[0]); ++k) out[k * n + i] = values[k];
}

// `sums`: 8 words, `wide`: 8 double words; the last two of each are exchanged.
KERNEL atomics(const u32 *in, u32 *sums, u64 *wide, u32 n) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const u32 x = in[i];
    const u64 y = (u64)x << 32 | ~x;
    atomicAdd(sums, x), atomicOr(sums + 1, x & 0xff00ff00u);
    atomicAnd(sums + 2, x | 0xff00u), atomicXor(sums + 3, x);
    atomicMax(sums + 4, x), atomicMin(sums + 5, x);
    atomicCAS(sums + 6, 0u, x | 1u), atomicExch(sums + 7, 7u);
    atomicAdd(wide, y), atomicOr(wide + 1, y & 0xff00ff00ull);
    atomicAnd(wide + 2, y | 0xff00u), atomicXor(wide + 3, y);
    atomicMax(wide + 4, y), atomicMin(wide + 5, y);
    atomicCAS(wide + 6, 0ull, y | 1u), atomicExch(wide + 7, 7ull);
}

KERNEL vectors(const uint4 *in, uint4 *out, u32 n) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = make_uint4(in[i].w, in[i].z, in[i].y, in[i].x);
}

__constant__ u32 squares[4] = {0, 1, 4, 9};

// Where each thread is.
KERNEL __launch_bounds__(1024) indices(u32 *out, u64 first) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    out[4 * i] = (u32)first + i;
    out[4 * i + 1] = gridDim.x;
    out[4 * i + 2] = threadIdx.y + threadIdx.z + blockIdx.y + blockIdx.z;
    out[4 * i + 3] = squares[i & 3];
}

KERNEL nothing() {}
