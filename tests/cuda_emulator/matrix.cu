// What matrix.cuh offers, one kernel each, for a warp a product:
// a and b as fragments, d to be added to.
#include "matrix.cuh"

struct Instruction {
    template <class Float>
    static void run(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
        multiply(Float(), d, a, b);
    }
};

struct Shuffles {
    template <class Float>
    static void run(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
        multiply_by_shuffles<Float>(d, a, b);
    }
};

DEVICE u32 own() { return blockIdx.x * blockDim.x + threadIdx.x; }

template <class Way, class Float>
DEVICE void product(u64 a, u64 b, u64 d) {
    u32 left[4], right[2];
    float sums[4];
    for (u32 i = 0; i < 4; i++) left[i] = pointer<const u32>(a)[4 * own() + i];
    for (u32 i = 0; i < 2; i++) right[i] = pointer<const u32>(b)[2 * own() + i];
    for (u32 i = 0; i < 4; i++) sums[i] = pointer<const float>(d)[4 * own() + i];
    Way::template run<Float>(sums, left, right);
    for (u32 i = 0; i < 4; i++) pointer<float>(d)[4 * own() + i] = sums[i];
}

template <class Float>
DEVICE void fused(u64 a, u64 b, u64 c, u64 out) {
    pointer<u32>(out)[own()] =
        multiply_add(Float(), pointer<const u32>(a)[own()], pointer<const u32>(b)[own()],
                     pointer<const u32>(c)[own()]);
}

template <class Float>
DEVICE void rounded(u64 values, u64 out) {
    pointer<u16>(out)[own()] = (u16)Float::nearest(pointer<const float>(values)[own()]);
}

KERNEL matrix_units_bf16(u64 a, u64 b, u64 d) { product<Instruction, Bf16>(a, b, d); }
KERNEL matrix_units_fp16(u64 a, u64 b, u64 d) { product<Instruction, Fp16>(a, b, d); }
KERNEL shuffles_bf16(u64 a, u64 b, u64 d) { product<Shuffles, Bf16>(a, b, d); }
KERNEL shuffles_fp16(u64 a, u64 b, u64 d) { product<Shuffles, Fp16>(a, b, d); }
KERNEL fused_bf16(u64 a, u64 b, u64 c, u64 out) { fused<Bf16>(a, b, c, out); }
KERNEL fused_fp16(u64 a, u64 b, u64 c, u64 out) { fused<Fp16>(a, b, c, out); }
KERNEL rounded_bf16(u64 values, u64 out) { rounded<Bf16>(values, out); }
KERNEL rounded_fp16(u64 values, u64 out) { rounded<Fp16>(values, out); }
KERNEL widened_fp16(u64 words, u64 out) {
    pointer<float>(out)[own()] = Fp16::to_float(pointer<const u16>(words)[own()]);
}
