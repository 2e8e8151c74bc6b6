// What matrix.cuh offers, one kernel each, for a warp a product: a and b as fragments, d to be added to.
#include "matrix.cuh"

template <void (*MULTIPLY)(float (&)[4], const u32 (&)[4], const u32 (&)[2])>
DEVICE void product(u64 a, u64 b, u64 d) {
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    u32 left[4], right[2];
    float sums[4];
    for (u32 i = 0; i < 4; i++) left[i] = pointer<const u32>(a)[4 * at + i];
    for (u32 i = 0; i < 2; i++) right[i] = pointer<const u32>(b)[2 * at + i];
    for (u32 i = 0; i < 4; i++) sums[i] = pointer<const float>(d)[4 * at + i];
    MULTIPLY(sums, left, right);
    for (u32 i = 0; i < 4; i++) pointer<float>(d)[4 * at + i] = sums[i];
}

KERNEL matrix_units(u64 a, u64 b, u64 d) { product<multiply>(a, b, d); }
KERNEL shuffles(u64 a, u64 b, u64 d) { product<multiply_by_shuffles>(a, b, d); }

KERNEL scaled_pairs(u64 pairs, u64 scales, u64 out) {
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    pointer<u32>(out)[at] = scale_pair(pointer<const u32>(pairs)[at], pointer<const u32>(scales)[at]);
}

KERNEL rounded(u64 values, u64 out) {
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    pointer<u16>(out)[at] = to_bf16(pointer<const float>(values)[at]);
}
