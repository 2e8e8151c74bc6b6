// Differences of words from a base, and back (spec: R12.5). A thread takes 16 bytes at a time, as
// two u64 of 1 to 8 words each.
#include "common.cuh"

enum { DIFFERENCE_XOR = 1, DIFFERENCE_MINUS = 2, UNIT_NBYTES = 16 };

// Of the words in a u64: their lowest bits, their highest ones, and all bits of the first.
struct Words {
    u64 ones, tops, mask;
    u32 top;
};

DEVICE Words words_of(u32 word_nbytes) {
    const u32 top = 8 * word_nbytes - 1;
    const u64 mask = ~0ull >> (63 - top), ones = ~0ull / mask;
    return {ones, ones << top, mask, top};
}

// No carry goes from a word to the next.
DEVICE u64 add_each(u64 a, u64 b, const Words &w) {
    return ((a & ~w.tops) + (b & ~w.tops)) ^ ((a ^ b) & w.tops);
}
DEVICE u64 subtract_each(u64 a, u64 b, const Words &w) {
    return ((a | w.tops) - (b & ~w.tops)) ^ ((a ^ ~b) & w.tops);
}

DEVICE u64 word_from(u64 z, u64 base, u32 difference, const Words &w) {
    if (difference == DIFFERENCE_XOR) return z ^ base;
    return add_each(base, (z >> 1 & ~w.tops) ^ (z & w.ones) * w.mask, w);
}

DEVICE u64 difference_from(u64 word, u64 base, u32 difference, const Words &w) {
    if (difference == DIFFERENCE_XOR) return word ^ base;
    const u64 d = subtract_each(word, base, w);
    return (d << 1 & ~w.ones) ^ (d >> w.top & w.ones) * w.mask;
}

// The 16 bytes at an address, of which those outside of [first, last) are zeros, and not read; byte
// by byte where it is not aligned.
DEVICE void load_unit(u64 at, u64 first, u64 last, u64 (&part)[2]) {
    if (at % UNIT_NBYTES == 0 && at >= first && at + UNIT_NBYTES <= last) {
        const uint4 unit = *pointer<const uint4>(at);
        part[0] = (u64)unit.y << 32 | unit.x;
        part[1] = (u64)unit.w << 32 | unit.z;
        return;
    }
    part[0] = part[1] = 0;
    for (u32 i = 0; i < UNIT_NBYTES; i++)
        if (at + i >= first && at + i < last)
            part[i / 8] |= (u64)*pointer<const u8>(at + i) << 8 * (i % 8);
}

// The same, at an aligned address.
DEVICE void store_unit(u64 at, u64 first, u64 last, const u64 (&part)[2]) {
    if (at >= first && at + UNIT_NBYTES <= last) {
        *pointer<uint4>(at) =
            make_uint4((u32)part[0], (u32)(part[0] >> 32), (u32)part[1], (u32)(part[1] >> 32));
        return;
    }
    for (u32 i = 0; i < UNIT_NBYTES; i++)
        if (at + i >= first && at + i < last)
            *pointer<u8>(at + i) = (u8)(part[i / 8] >> 8 * (i % 8));
}

// `out` may be `words`. Fast if all three are as far from a multiple of 16.
template <u64 (*FUNCTION)(u64, u64, u32, const Words &)>
DEVICE void each_word(u64 words, u64 base, u64 out, u64 nbytes, u32 word_nbytes, u32 difference) {
    const Words w = words_of(word_nbytes);
    const u64 to_words = words - out, to_base = base - out, last = out + nbytes,
              step = (u64)gridDim.x * BLOCK_THREADS * UNIT_NBYTES;
    for (u64 at = out / UNIT_NBYTES * UNIT_NBYTES +
                  ((u64)blockIdx.x * BLOCK_THREADS + threadIdx.x) * UNIT_NBYTES;
         at < last; at += step) {
        u64 a[2], b[2];
        load_unit(at + to_words, words, words + nbytes, a);
        load_unit(at + to_base, base, base + nbytes, b);
        const u64 parts[2] = {FUNCTION(a[0], b[0], difference, w),
                              FUNCTION(a[1], b[1], difference, w)};
        store_unit(at, out, last, parts);
    }
}

KERNEL __launch_bounds__(BLOCK_THREADS)
    subtract_base(u64 words, u64 base, u64 out, u64 nbytes, u32 word_nbytes, u32 difference) {
    each_word<difference_from>(words, base, out, nbytes, word_nbytes, difference);
}

KERNEL __launch_bounds__(BLOCK_THREADS)
    add_base(u64 coded, u64 base, u64 out, u64 nbytes, u32 word_nbytes, u32 difference) {
    each_word<word_from>(coded, base, out, nbytes, word_nbytes, difference);
}
