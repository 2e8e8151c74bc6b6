// The fixed-rate form of bf16 weights: 12 bits each, in the order in which a warp gives them to the matrix units.
//
// Fields. A weight keeps its sign, its 7 bits of mantissa, and a code of 4 bits in place of its exponent: 1 to 15 stand for the
// exponents base + 1 to base + 15, and 0 for that of a zero. So fields, taken for a bf16, are the weight divided by 2^base, and one
// multiplication gives it back: exactly, as base is at most 127. A weight that is no zero and has another exponent is a patch:
// its fields are all 0, which is +0, and it stands in a list, sorted by row and column, with its value.
//
// Order. A tile is 16 rows of 64 columns, 4 fragments of 16 x 16; tiles stand row by row of tiles. Lane 4 g + t has 4 pairs of
// each fragment, as `mma.m16n8k16` wants them: pairs 0 and 2 of row g, 1 and 3 of row g + 8. Of fragment f, it has the columns from
// 32 (f / 2) + 8 t + 4 (f % 2) on: two in pairs 0 and 1, the next two in pairs 2 and 3. So what a lane needs of x for two fragments
// are 8 values that stand together. Rows and columns that the matrix does not have are filled up with +0.
//
// Packing. The fields of a pair leave 8 of 32 bits free. Three words have pairs 0, 1 and 2 in place, and in their free bits
// pair 3. A lane's 12 words of a tile are 3 vectors; of these, the first of all lanes comes first.
#pragma once

#include "common.cuh"

enum { TILE_ROWS = 16, TILE_COLS = 64, TILE_VECTORS = 96, TILE_NBYTES = 16 * TILE_VECTORS, N_FRAGMENTS = 4, N_CODES = 16, MAX_BASE = 127 };

// Bits of two fields in a register, and the parts of pair 3 that the words 0, 1 and 2 carry: a third of them each.
constexpr u32 FIELDS = 0x87ff87ffu, IN_WORD_0 = 0x80078007u, IN_WORD_1 = 0x00780078u, IN_WORD_2 = 0x07800780u;

struct Patch {  // 8 bytes
    u32 column, value;  // value: an fp32's bits
};

// The four pairs of a fragment from its three words: 9 instructions.
DEVICE void unpack_fields(const u32 (&words)[3], u32 (&pairs)[4]) {
    pairs[0] = words[0] & FIELDS;
    pairs[1] = words[1] & FIELDS;
    pairs[2] = words[2] & FIELDS;
    const u32 upper = choose(IN_WORD_1, words[1] >> 8, words[2] >> 4);
    pairs[3] = (__funnelshift_l(words[0], words[0], 4) & IN_WORD_0) | (upper & (IN_WORD_1 | IN_WORD_2));
}

DEVICE void pack_fields(const u32 (&pairs)[4], u32 (&words)[3]) {
    const u32 first = pairs[3] & IN_WORD_0;
    words[0] = pairs[0] | __funnelshift_r(first, first, 4);
    words[1] = pairs[1] | (pairs[3] & IN_WORD_1) << 8;
    words[2] = pairs[2] | (pairs[3] & IN_WORD_2) << 4;
}

DEVICE bool is_patch(u32 word, u32 base) {
    const u32 exponent = word >> 7 & 255u;
    return (word & 0x7fffu) != 0 && exponent - base - 1 >= N_CODES - 1;
}

DEVICE u32 fields_of(u32 word, u32 base) {
    if (is_patch(word, base)) return 0;
    return (word & 0x7fffu) == 0 ? word : word - (base << 7);
}

DEVICE u32 word_of(u32 fields, u32 base) { return (fields & 0x7fffu) == 0 ? fields : fields + (base << 7); }

// Where pair p of a lane's fragment f is in its tile.
DEVICE u32 pair_row(u32 lane, u32 p) { return (lane >> 2) + 8 * (p & 1); }
DEVICE u32 pair_column(u32 lane, u32 f, u32 p) { return 32 * (f >> 1) + 8 * (lane & 3) + 4 * (f & 1) + (p & 2); }

// Where word i of a lane's fragment f is in its tile, in words.
DEVICE u32 word_index(u32 lane, u32 f, u32 i) { return ((3 * f + i) / 4 * LANES + lane) * 4 + (3 * f + i) % 4; }
