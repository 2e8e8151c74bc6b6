// Operations of matrix kernels that need PTX: products of fragments, arithmetic on two 16-bit
// floats at once, copies to shared memory that do not wait. Each has a form in C++, for GPUs before
// sm_80, which lack some of them, and for the CPU.
#pragma once

#include "common.cuh"

// ---- 16-bit floats ------------------------------------------------------------------------------
// What a kernel's factors and results are: `Bf16` or `Fp16`.
struct Bf16 {
    static DEVICE_MEMBER float to_float(u32 word) { return __uint_as_float(word << 16); }

    // The nearest, ties to even; one NaN for all.
    static DEVICE_MEMBER u32 nearest(float value) {
        const u32 bits = __float_as_uint(value);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
        return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    }
};

struct Fp16 {
    static DEVICE_MEMBER float to_float(u32 word) {
#ifdef __CUDA_ARCH__
        float value;
        asm("{.reg .b16 half; cvt.u16.u32 half, %1; cvt.f32.f16 %0, half;}"
            : "=f"(value)
            : "r"(word));
        return value;
#else
        const u32 sign = (word & 0x8000u) << 16, exponent = word >> 10 & 31u,
                  mantissa = word & 0x3ffu;
        if (exponent == 0)
            return __uint_as_float(sign | __float_as_uint((float)mantissa * 0x1p-24f));
        return __uint_as_float(sign | (exponent == 31 ? 255u : exponent + 112u) << 23 |
                               mantissa << 13);
#endif
    }

    static DEVICE_MEMBER u32 nearest(float value) {
#ifdef __CUDA_ARCH__
        u32 word;
        asm("{.reg .b16 half; cvt.rn.f16.f32 half, %1; cvt.u32.u16 %0, half;}"
            : "=r"(word)
            : "f"(value));
        return word;
#else
        const u32 bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u,
                  size = bits & 0x7fffffffu;
        if (size > 0x7f800000u) return 0x7fff;
        if (size >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more
        // subnormal: adding 2^-1 leaves multiples of 2^-24
        if (size < 0x38800000u) {
            const float shifted = __uint_as_float(size) + 0.5f;
            return sign | (__float_as_uint(shifted) - 0x3f000000u);
        }
        return sign | (size + 0xfffu + (size >> 13 & 1u) - 0x38000000u) >> 13;
#endif
    }
};

template <class Float>
DEVICE float low_half(u32 pair) { return Float::to_float(pair & 0xffffu); }
template <class Float>
DEVICE float high_half(u32 pair) { return Float::to_float(pair >> 16); }

// ---- pairs of them: a b + c, where that needs no rounding; of a product that is 0, any sign -----
template <class Float>
DEVICE u32 multiply_add_in_floats(u32 a, u32 b, u32 c) {
    const float low = low_half<Float>(a) * low_half<Float>(b) + low_half<Float>(c);
    const float high = high_half<Float>(a) * high_half<Float>(b) + high_half<Float>(c);
    return Float::nearest(low) | Float::nearest(high) << 16;
}

DEVICE u32 multiply_add(Bf16, u32 a, u32 b, u32 c) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    u32 out;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
#else
    return multiply_add_in_floats<Bf16>(a, b, c);
#endif
}

DEVICE u32 multiply_add(Fp16, u32 a, u32 b, u32 c) {
#ifdef __CUDA_ARCH__
    u32 out;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
#else
    return multiply_add_in_floats<Fp16>(a, b, c);
#endif
}

// ---- d += a b -----------------------------------------------------------------------------------
// a: 16 x 16, b: 16 x 8, d: 16 x 8 fp32, in the fragments of mma.m16n8k16.
// The whole warp comes here.
template <class Float>
DEVICE void multiply_by_shuffles(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    // of lanes that have this lane's row of a, and its first column of b
    const u32 row = lane_id() & ~3u, column = 8 * (lane_id() & 3u);
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
#pragma unroll 1
        for (u32 k = 0; k < 4; k++) {  // pairs of rows of b
            const u32 upper = __shfl_sync(ALL_LANES, a[2 * half], row + k),
                      lower = __shfl_sync(ALL_LANES, a[2 * half + 1], row + k);
            const u32 left = __shfl_sync(ALL_LANES, b[half], column + k),
                      right = __shfl_sync(ALL_LANES, b[half], column + 4 + k);
            d[0] += low_half<Float>(upper) * low_half<Float>(left) +
                    high_half<Float>(upper) * high_half<Float>(left);
            d[1] += low_half<Float>(upper) * low_half<Float>(right) +
                    high_half<Float>(upper) * high_half<Float>(right);
            d[2] += low_half<Float>(lower) * low_half<Float>(left) +
                    high_half<Float>(lower) * high_half<Float>(left);
            d[3] += low_half<Float>(lower) * low_half<Float>(right) +
                    high_half<Float>(lower) * high_half<Float>(right);
        }
    }
}

#define MATRIX_INSTRUCTION(type)                                                        \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

DEVICE void multiply(Bf16, float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if !defined(__CUDA_ARCH__)
    emulator_multiply(Bf16::to_float, d, a, b);
#elif __CUDA_ARCH__ >= 800
    MATRIX_INSTRUCTION("bf16");
#else
    multiply_by_shuffles<Bf16>(d, a, b);
#endif
}

DEVICE void multiply(Fp16, float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if !defined(__CUDA_ARCH__)
    emulator_multiply(Fp16::to_float, d, a, b);
#elif __CUDA_ARCH__ >= 800
    MATRIX_INSTRUCTION("f16");
#else
    multiply_by_shuffles<Fp16>(d, a, b);
#endif
}

// ---- copies to shared memory --------------------------------------------------------------------
// Copy 16 bytes, both sides at multiples of 16, or zeros if they are not wanted. They are there
// after `await_copies` and a barrier.
DEVICE void copy_vector(uint4 *to, const uint4 *from, bool wanted) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const u32 at = (u32)__cvta_generic_to_shared(to), nbytes = wanted ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(nbytes)
                 : "memory");
#else
    *to = wanted ? *from : make_uint4(0, 0, 0, 0);
#endif
}

DEVICE void await_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
