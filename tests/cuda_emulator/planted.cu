// Kernels with one fault each, which is there if `fault` is 1 and not if it is 0:
// test_cuda_emulator.py shows that the emulator finds it, and finds nothing in the same kernel
// without it.
#include "common.cuh"

#define PARAMETERS const u32 *in, u32 *out, u32 n, u32 fault

DEVICE u32 global_id() { return blockIdx.x * blockDim.x + threadIdx.x; }

// ---- memory -------------------------------------------------------------------------------------
KERNEL read_beyond(PARAMETERS) {
    const u32 i = global_id();
    if (i < n) out[i] = in[i + fault];
}

KERNEL write_beyond(PARAMETERS) {
    const u32 i = global_id();
    if (i < n) out[i + fault] = in[i];
}

KERNEL read_before(PARAMETERS) {
    const u32 i = global_id();
    if (i < n) out[i] = in[(u64)i - fault];
}

template <u32 SIZE>  // in a template, as the kernels of the codec may have it
DEVICE u32 *staged() {
    __shared__ u32 buffer[SIZE];
    return buffer;
}

static __device__ __noinline__ void put(u32 *buffer, u32 i, u32 value) { buffer[i] = value; }

KERNEL shared_overrun(PARAMETERS) {
    u32 *buffer = staged<128>();
    put(buffer, threadIdx.x + fault, in[global_id()]);
    __syncwarp();
    if (global_id() < n) out[global_id()] = buffer[threadIdx.x];
}

KERNEL uninitialised_shared(PARAMETERS) {
    __shared__ u32 buffer[128];
    if (!fault || threadIdx.x) buffer[threadIdx.x] = in[global_id()];
    __syncthreads();
    if (global_id() < n) out[global_id()] = buffer[threadIdx.x];
}

KERNEL left_over_shared(PARAMETERS) {  // from the block before
    __shared__ u32 sum;
    if (threadIdx.x == 0 && (!fault || blockIdx.x == 0)) sum = 0;
    __syncthreads();
    atomicAdd(&sum, in[global_id()]);
    __syncthreads();
    if (global_id() < n) out[global_id()] = sum;
}

KERNEL misaligned(PARAMETERS) {
    const u32 i = global_id();
    const u64 *pairs = pointer<const u64>((u64)in + 4 * fault);
    if (i >= n / 2 - fault) return;
    const u64 pair = pairs[i];
    out[2 * i] = (u32)pair;
    out[2 * i + 1] = (u32)(pair >> 32);
}

KERNEL misaligned_vector(PARAMETERS) {
    const u32 i = global_id();
    const uint4 *quads = pointer<const uint4>((u64)in + 8 * fault);
    if (i >= n / 4 - fault) return;
    const uint4 quad = quads[i];
    out[4 * i] = quad.x, out[4 * i + 1] = quad.y, out[4 * i + 2] = quad.z, out[4 * i + 3] = quad.w;
}

KERNEL bad_shift(PARAMETERS) {
    const u32 i = global_id();
    const u32 shift = fault ? 32 : 0;
    if (i < n) out[i] = in[i] << shift;
}

// ---- barriers and races -------------------------------------------------------------------------
KERNEL missing_syncthreads(PARAMETERS) {
    __shared__ u32 buffer[128];
    buffer[threadIdx.x] = in[global_id()];
    if (!fault) __syncthreads();
    if (global_id() < n) out[global_id()] = buffer[threadIdx.x ^ 64];
}

// The first pass is right; a warp that runs ahead overwrites what others haven't read.
KERNEL missing_second_syncthreads(PARAMETERS) {
    __shared__ u32 buffer[128];
    u32 value = in[global_id()];
    for (u32 pass = 0; pass < 4; ++pass) {
        buffer[threadIdx.x] = value;
        __syncthreads();
        value += buffer[threadIdx.x ^ 64];
        if (!fault) __syncthreads();
    }
    if (global_id() < n) out[global_id()] = value;
}

KERNEL missing_syncwarp(PARAMETERS) {
    __shared__ u32 buffer[128];
    buffer[threadIdx.x] = in[global_id()];
    if (!fault) __syncwarp();
    if (global_id() < n) out[global_id()] = buffer[threadIdx.x ^ 1];
}

KERNEL race_of_warps(PARAMETERS) {  // __syncwarp is not enough
    __shared__ u32 last;
    if (threadIdx.x == 0) last = 0;
    __syncthreads();
    const u32 value = in[global_id()];
    if (fault) {
        if (lane_id() == 0) last = value;
        __syncwarp();
    } else {
        if (threadIdx.x == 0) last = value;
        __syncthreads();
    }
    if (global_id() < n) out[global_id()] = last;
}

KERNEL race_of_blocks(PARAMETERS) {  // each block takes what the one before it has left
    const u32 i = global_id();
    if (i >= n) return;
    out[i] = in[i] + (fault && i >= blockDim.x ? out[i - blockDim.x] : 0);
}

KERNEL scratch_of_all_blocks(PARAMETERS) {  // right as long as no two blocks are under way
    if (global_id() >= n) return;
    u32 *scratch = out + (fault ? 0 : blockIdx.x * blockDim.x);
    for (u32 pass = 0; pass < 8; ++pass) {
        scratch[threadIdx.x] = in[global_id()] + pass;
        __syncthreads();
    }
    const u32 value = scratch[threadIdx.x] - 7;
    __syncthreads();
    out[global_id()] = value;
}

// right in any order of whole threads: only comparing accesses shows it
KERNEL lost_update(PARAMETERS) {
    const u32 i = global_id();
    if (i >= n) return;
    if (fault) out[0] += in[i];
    else atomicAdd(out, in[i]);
}

KERNEL ballot_as_barrier(PARAMETERS) {  // a ballot makes lanes wait, but orders no accesses
    __shared__ u32 buffer[128];
    buffer[threadIdx.x] = in[global_id()];
    const u32 all = __ballot_sync(ALL_LANES, 1);
    if (!fault) __syncwarp();
    if (global_id() < n) out[global_id()] = buffer[threadIdx.x ^ 1] & all;
}

// ---- collectives --------------------------------------------------------------------------------
KERNEL divergent_ballot(PARAMETERS) {
    const u32 i = global_id(), value = in[i];
    u32 votes = 0;
    if (!fault) {
        votes = __ballot_sync(ALL_LANES, value & 1);
    } else if (value & 1) {
        votes = __ballot_sync(ALL_LANES, 1);
    } else {
        votes = __ballot_sync(ALL_LANES, 0);
    }
    if (i < n) out[i] = votes;
}

KERNEL other_collective(PARAMETERS) {
    const u32 i = global_id(), value = in[i];
    u32 found = 0;
    if (fault && lane_id() == 7) found = (u32)__any_sync(ALL_LANES, 1);
    else found = __shfl_sync(ALL_LANES, value, 3);
    if (i < n) out[i] = found;
}

KERNEL part_of_warp(PARAMETERS) {
    const u32 i = global_id();
    const u32 votes = __ballot_sync(fault ? 0xffffu : ALL_LANES, in[i] & 1);
    if (i < n) out[i] = votes;
}

KERNEL early_exit(PARAMETERS) {
    const u32 i = global_id();
    if (fault && lane_id() == 5) return;
    const u32 votes = __ballot_sync(ALL_LANES, in[i] & 1);
    if (i < n) out[i] = votes;
}

KERNEL exit_before_syncthreads(PARAMETERS) {
    const u32 i = global_id();
    if (fault && threadIdx.x >= 96) return;
    __syncthreads();
    if (i < n) out[i] = in[i];
}

KERNEL divergent_syncthreads(PARAMETERS) {
    const u32 i = global_id();
    if (fault && warp_id() == 1) __syncthreads();
    else __syncthreads();
    if (i < n) out[i] = in[i];
}

KERNEL deadlock(PARAMETERS) {  // a lane waits for the block, the others for the warp
    const u32 i = global_id();
    if (fault && lane_id() == 9) __syncthreads();
    else __syncwarp();
    if (!fault || lane_id() != 9) __syncthreads();
    else __syncwarp();
    if (i < n) out[i] = in[i];
}

DEVICE u32 depth(u32 n, volatile u32 *above) {
    volatile u32 room[256];
    room[n & 255] = above[n & 255] + n;
    if (n == 0) return room[0];
    return depth(n - 1, room) + room[n & 255];
}

KERNEL deep_recursion(PARAMETERS) {
    volatile u32 room[256] = {};
    const u32 i = global_id(), found = depth(fault * 200, room);
    if (i < n) out[i] = in[i] + (fault ? found : 0);
}
