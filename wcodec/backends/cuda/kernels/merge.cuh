// From planes to words: what a lane makes of its four symbols of a group, for segments whose lower
// planes are raw (spec: chapter 5).
#pragma once
#include "common.cuh"

// What a lane makes of its four symbols of a group.
template <u32 NBYTES, bool PAIRS>
struct Shape {
    enum : u32 {
        N_WORDS = PAIRS ? 8 : 4,
        GROUP_WORDS = N_WORDS * LANES,
        SIZE = N_WORDS * NBYTES / 4,  // of the words, in u32
        STORE_NBYTES = SIZE < 4 ? 4 * SIZE : 16,
        N_RAW = PAIRS && NBYTES == 1 ? 1 : NBYTES - 1,    // lower planes
        RAW_NBYTES = PAIRS && NBYTES == 1 ? 4 : N_WORDS,  // of each
        RAW_SIZE = N_RAW * RAW_NBYTES / 4,                // of all, in u32
        AHEAD = RAW_SIZE <= 2 ? 2 : 1,                    // groups for which they are loaded ahead
    };
};

// The inverse of the word map, on planes of four bytes each.
// Exponents of words of more than a byte have 8 bits.
struct Unmap {
    // one-byte words: bits that stay, and that move up by `rise`; the others move down by one
    u32 keep, sign, rise;
    u32 high, fall;        // larger words: top bits and 1 if the exponent is first, else 0 and 0
    u32 flip;              // the top bits, if they are flipped
};

DEVICE Unmap unmap_of(const Tensor &tensor) {
    const bool exponent_first = tensor.map == MAP_EXPONENT_FIRST;
    const u32 each = 0x01010101u, tops = 0x80808080u, exponent_bits = tensor.exponent_bits & 7;
    Unmap unmap;
    unmap.keep = each * (exponent_first ? (0x80u >> exponent_bits) - 1 : 0xffu);
    unmap.sign = exponent_first ? tops : 0;
    unmap.rise = exponent_bits;
    unmap.high = unmap.sign;
    unmap.fall = exponent_first;
    unmap.flip = tensor.map == MAP_OFFSET ? tops : 0;
    return unmap;
}

DEVICE u32 unmap_bytes(u32 mapped, const Unmap &unmap) {
    return choose(unmap.sign, mapped << unmap.rise, choose(unmap.keep, mapped, mapped >> 1)) ^
           unmap.flip;
}

// exponent | sign, mantissa -> sign, exponent | its last bit, mantissa
DEVICE void unmap_planes(u32 *planes, const Unmap &unmap) {
    const u32 top = planes[0], second = planes[1];
    planes[0] = choose_bits(unmap.high, second, top >> unmap.fall) ^ unmap.flip;
    planes[1] = choose_bits(unmap.high, top << 7, second);
}

// Four words from four bytes of each plane, the top one first.
template <u32 NBYTES>
DEVICE void join(u32 *words, const u32 *planes) {
    if constexpr (NBYTES == 2) {
        words[0] = __byte_perm(planes[1], planes[0], 0x5140);
        words[1] = __byte_perm(planes[1], planes[0], 0x7362);
    } else {
        for (u32 half = 0; half < 2; half++) {
            const u32 low = __byte_perm(planes[3], planes[2], half ? 0x7362 : 0x5140);
            const u32 high = __byte_perm(planes[1], planes[0], half ? 0x7362 : 0x5140);
            words[2 * half] = __byte_perm(low, high, 0x5410);
            words[2 * half + 1] = __byte_perm(low, high, 0x7632);
        }
    }
}

// What a lane makes of a group: words, in raster order.
template <u32 NBYTES, bool PAIRS>
struct Words {
    u32 data[Shape<NBYTES, PAIRS>::SIZE];
};

// A lane's bytes of the lower planes of a group.
template <u32 NBYTES, bool PAIRS>
struct Lower {
    u32 data[Shape<NBYTES, PAIRS>::RAW_SIZE + 1];  // there are no arrays of 0
};

template <u32 NBYTES, bool PAIRS>
DEVICE Words<NBYTES, PAIRS> merge(u32 symbols, const Lower<NBYTES, PAIRS> &lower, u32 base,
                                  const Unmap &unmap) {
    Words<NBYTES, PAIRS> out;
    const u32 nibbles = 0x0f0f0f0fu;
    if constexpr (!PAIRS && NBYTES == 1) {
        out.data[0] = unmap_bytes(symbols, unmap);
    } else if constexpr (!PAIRS) {
        u32 planes[NBYTES] = {symbols};
        for (u32 p = 1; p < NBYTES; p++) planes[p] = lower.data[p - 1];
        unmap_planes(planes, unmap);
        join<NBYTES>(out.data, planes);
    } else if constexpr (NBYTES == 1) {
        // words 0, 2, 4, 6
        const u32 even = unmap_bytes((symbols << 4 & ~nibbles) | (lower.data[0] & nibbles), unmap);
        const u32 odd = unmap_bytes((symbols & ~nibbles) | (lower.data[0] >> 4 & nibbles), unmap);
        out.data[0] = __byte_perm(even, odd, 0x5140);
        out.data[1] = __byte_perm(even, odd, 0x7362);
    } else {
        const u32 even = (symbols & nibbles) + base, odd = (symbols >> 4 & nibbles) + base;
        for (u32 half = 0; half < 2; half++) {
            u32 planes[NBYTES] = {__byte_perm(even, odd, half ? 0x7362 : 0x5140)};
            for (u32 p = 1; p < NBYTES; p++) planes[p] = lower.data[2 * (p - 1) + half];
            unmap_planes(planes, unmap);
            join<NBYTES>(out.data + half * NBYTES, planes);
        }
    }
    return out;
}

// ---- stores -------------------------------------------------------------------------------------
template <u32 NBYTES, bool PAIRS>
DEVICE void store_vectors(u64 address, const Words<NBYTES, PAIRS> &words) {
    const u32 *data = words.data, size = Shape<NBYTES, PAIRS>::SIZE;
    if constexpr (size == 1) *pointer<u32>(address) = data[0];
    else if constexpr (size == 2) *pointer<uint2>(address) = make_uint2(data[0], data[1]);
    else
        for (u32 i = 0; i < size; i += 4)
            *pointer<uint4>(address + 4 * i) =
                make_uint4(data[i], data[i + 1], data[i + 2], data[i + 3]);
}

// The first `n` words, aligned to themselves only.
template <u32 NBYTES, bool PAIRS>
DEVICE void store_words(u64 address, const Words<NBYTES, PAIRS> &words, u32 n) {
    for (u32 i = 0; i < Shape<NBYTES, PAIRS>::N_WORDS; i++) {
        const u32 byte = i * NBYTES;
        if (i < n) store_word(address + byte, NBYTES, words.data[byte / 4] >> 8 * (byte % 4));
    }
}
