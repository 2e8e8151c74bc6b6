// The few operations of matrix kernels that need PTX: products of fragments, products of two bf16 at once, copies to shared memory
// that do not wait. Each has a form in C++, for GPUs before sm_80, which lack them, and for the CPU.
#pragma once

#include "common.cuh"

DEVICE float low_bf16(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float high_bf16(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// The nearest bf16, ties to even; one NaN for all.
DEVICE u16 to_bf16(float value) {
    const u32 bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

DEVICE bool is_finite(float value) { return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u; }

// ---- d += a b ----------------------------------------------------------------------------------------------------------------
// a: 16 x 16 bf16, b: 16 x 8 bf16, d: 16 x 8 fp32, in the fragments of mma.m16n8k16. The whole warp comes here.
DEVICE void multiply_by_shuffles(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    const u32 row = lane_id() & ~3u, column = 8 * (lane_id() & 3u);  // of lanes that have this lane's row of a, and its first column of b
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
#pragma unroll 1
        for (u32 k = 0; k < 4; k++) {  // pairs of rows of b
            const u32 upper = __shfl_sync(ALL_LANES, a[2 * half], row + k), lower = __shfl_sync(ALL_LANES, a[2 * half + 1], row + k);
            const u32 left = __shfl_sync(ALL_LANES, b[half], column + k), right = __shfl_sync(ALL_LANES, b[half], column + 4 + k);
            d[0] += low_bf16(upper) * low_bf16(left) + high_bf16(upper) * high_bf16(left);
            d[1] += low_bf16(upper) * low_bf16(right) + high_bf16(upper) * high_bf16(right);
            d[2] += low_bf16(lower) * low_bf16(left) + high_bf16(lower) * high_bf16(left);
            d[3] += low_bf16(lower) * low_bf16(right) + high_bf16(lower) * high_bf16(right);
        }
    }
}

DEVICE void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if !defined(__CUDA_ARCH__)
    emulator_multiply_bf16(d, a, b);
#elif __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    multiply_by_shuffles(d, a, b);
#endif
}

// Two bf16 times two others, one of which is a power of two, where the products are no subnormals: exact.
DEVICE u32 scale_pair(u32 pair, u32 scales) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    u32 out;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(pair), "r"(scales), "r"(0x80008000u));  // -0 is added: zeros keep their sign
    return out;
#else
    const float low = low_bf16(pair) * low_bf16(scales), high = high_bf16(pair) * high_bf16(scales);
    return __float_as_uint(low) >> 16 | (__float_as_uint(high) & 0xffff0000u);
#endif
}

// ---- copies to shared memory -------------------------------------------------------------------------------------------------
// Copy 16 bytes, both sides at multiples of 16, or zeros if they are not wanted. They are there after `await_copies` and a barrier.
DEVICE void copy_vector(uint4 *to, const uint4 *from, bool wanted) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const u32 at = (u32)__cvta_generic_to_shared(to), nbytes = wanted ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(nbytes) : "memory");
#else
    *to = wanted ? *from : make_uint4(0, 0, 0, 0);
#endif
}

DEVICE void await_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
