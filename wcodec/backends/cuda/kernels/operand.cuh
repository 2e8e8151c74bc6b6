// Operands: matrices that can be multiplied from the bytes of a file (spec: chapter 14.1).
//
// Segments are 8 rows of 1024 columns, in tiles of 32 columns; both may be cut off at the matrix's
// edges. All have layout PAIRS; their lower plane is raw; their plane 0 is raw, or a stream of
// symbols. A tile is what two steps of `mma.m16n8k16` take of 8 rows: lane 4 r + q has the 8 words
// of row r from column 8 q on, which stand together: 4 bytes of plane 0, and 4 or 8 of the lower
// plane. A group of a stream's symbols is a tile. Only tiles at the right edge, if they have fewer
// columns, are gathered word by word.
//
// A warp has 16 rows: two bands of 8. The host has checked the structures;
// what payloads hold may be anything.
#pragma once

#include "matrix.cuh"
#include "merge.cuh"
#include "rans.cuh"

enum { BAND_ROWS = 8, TILE_COLS = 32, SEGMENT_TILES = 32, LANE_WORDS = 8, NEVER = 0xffffffffu };

struct Operand {
    u64 payload, records, luts;  // luts: entries of the table, as of `build_luts`
    u32 n_rows, n_cols, prob_bits;
};

struct Record {                 // 16 bytes: of a segment, band by band
    // where plane 0, the lower plane and the patches are, in units of 16 bytes from the payload on
    u32 codes, lower, patches;
    u32 info;                   // base, whether plane 0 is a stream << 8, number of patches << 16
};

// ---- a lane's words of a tile -------------------------------------------------------------------
// Its bytes of both planes.
template <class Weights>
struct Piece {
    u32 codes;
    Lower<Weights::NBYTES, true> lower;
};

template <class Weights>
using Eight = Words<Weights::NBYTES, true>;

// Bytes 0 to 3 and 4 to 7 of the even and the odd ones.
DEVICE Words<1, true> in_order(u32 even, u32 odd) {
    return {{__byte_perm(even, odd, 0x5140), __byte_perm(even, odd, 0x7362)}};
}

// bytes 0 and 1, each as the high one of a half
DEVICE u32 spread_low(u32 bytes) { return __byte_perm(bytes, 0, 0x1404); }
DEVICE u32 spread_high(u32 bytes) { return __byte_perm(bytes, 0, 0x3424); }  // bytes 2 and 3

// Kinds of weights. `merge` makes 8 words of a piece, in order; `widen` makes of them 4 pairs of
// bf16 or fp16. All are exact, if the words are finite numbers.
struct WeightsBf16 {
    enum { NBYTES = 2, HAS_PATCHES = 1, IS_OFFSET = 0 };
    static DEVICE_MEMBER Words<2, true> merge(u32 codes, const Lower<2, true> &lower, u32 base) {
        return ::merge<2, true>(codes, lower, base, {0, 0, 0, 0x80808080u, 1, 0});
    }
    static DEVICE_MEMBER void widen(Bf16, u32 (&pairs)[4], const u32 *words) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) pairs[i] = words[i];
    }
};

// The words are not those of int8 but, as in planes, 128 more.
struct WeightsInt8 {
    enum { NBYTES = 1, HAS_PATCHES = 0, IS_OFFSET = 1 };
    static DEVICE_MEMBER Words<1, true> merge(u32 codes, const Lower<1, true> &lower, u32) {
        const u32 nibbles = 0x0f0f0f0fu, low = lower.data[0];
        return in_order(choose_bits(nibbles, low, codes << 4),
                        choose_bits(nibbles, low >> 4, codes));
    }
    // 128 + the low 7 bits, less 128 or, of a negative number, 256.
    static DEVICE_MEMBER void widen(Bf16 f, u32 (&pairs)[4], const u32 *words) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 low = words[i] & 0x7f7f7f7fu, sign = ~words[i] & 0x80808080u;
            pairs[2 * i] = multiply_add(f, __byte_perm(low, 0x43434343u, 0x4140), 0x3f803f80u,
                                        __byte_perm(sign, 0xc3c3c3c3u, 0x4140));
            pairs[2 * i + 1] = multiply_add(f, __byte_perm(low, 0x43434343u, 0x4342), 0x3f803f80u,
                                            __byte_perm(sign, 0xc3c3c3c3u, 0x4342));
        }
    }
    // 1024 + the word, less 1152.
    static DEVICE_MEMBER void widen(Fp16 f, u32 (&pairs)[4], const u32 *words) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            pairs[2 * i] = multiply_add(f, __byte_perm(words[i], 0x64646464u, 0x4140), 0x3c003c00u,
                                        0xe480e480u);
            pairs[2 * i + 1] = multiply_add(f, __byte_perm(words[i], 0x64646464u, 0x4342),
                                            0x3c003c00u, 0xe480e480u);
        }
    }
};

// Floats of a byte with their bits moved down by SHIFT, below the sign,
// times a power of two that puts the exponent right.
template <u32 SHIFT, class Float>
DEVICE void widen_floats(Float f, u32 (&pairs)[4], const u32 *words, u32 factor) {
    const u32 sign = 0x80008000u, rest = (0x7f00u >> SHIFT) * 0x10001u;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 high = i % 2 ? spread_high(words[i / 2]) : spread_low(words[i / 2]);
        // - 0: zeros keep their sign
        pairs[i] = multiply_add(f, (high & sign) | (high >> SHIFT & rest), factor, sign);
    }
}

// In planes: 4 bits of exponent, sign, 3 of mantissa.
struct WeightsE4m3 {
    enum { NBYTES = 1, HAS_PATCHES = 0, IS_OFFSET = 0 };
    static DEVICE_MEMBER Words<1, true> merge(u32 codes, const Lower<1, true> &lower, u32) {
        const u32 exponent = 0x78787878u, sign = 0x80808080u, low = lower.data[0];
        return in_order(choose_bits(exponent, codes << 3, choose_bits(sign, low << 4, low)),
                        choose_bits(exponent, codes >> 1, choose_bits(sign, low, low >> 4)));
    }
    // 2^120
    static DEVICE_MEMBER void widen(Bf16 f, u32 (&pairs)[4], const u32 *words) {
        widen_floats<4>(f, pairs, words, 0x7b807b80u);
    }
    // 2^8
    static DEVICE_MEMBER void widen(Fp16 f, u32 (&pairs)[4], const u32 *words) {
        widen_floats<1>(f, pairs, words, 0x5c005c00u);
    }
};

// In planes: 5 bits of exponent, of which the last is in the lower one, sign, 2 of mantissa.
struct WeightsE5m2 {
    enum { NBYTES = 1, HAS_PATCHES = 0, IS_OFFSET = 0 };
    static DEVICE_MEMBER Words<1, true> merge(u32 codes, const Lower<1, true> &lower, u32) {
        const u32 exponent = 0x78787878u, last = 0x04040404u, sign = 0x80808080u,
                  low = lower.data[0];
        const u32 even = choose_bits(sign, low << 5, choose_bits(last, low >> 1, low)),
                  odd = choose_bits(sign, low << 1, choose_bits(last, low >> 5, low >> 4));
        return in_order(choose_bits(exponent, codes << 3, even),
                        choose_bits(exponent, codes >> 1, odd));
    }
    // 2^112
    static DEVICE_MEMBER void widen(Bf16 f, u32 (&pairs)[4], const u32 *words) {
        widen_floats<3>(f, pairs, words, 0x77807780u);
    }
    static DEVICE_MEMBER void widen(Fp16, u32 (&pairs)[4], const u32 *words) {
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            pairs[i] = i % 2 ? spread_high(words[i / 2]) : spread_low(words[i / 2]);
    }
};

template <class Weights>
DEVICE Eight<Weights> merge_piece(const Piece<Weights> &piece, u32 base) {
    return Weights::merge(piece.codes, piece.lower, base);
}

// ---- bands --------------------------------------------------------------------------------------
struct Band {
    u64 payload, records;  // of the operand
    u32 first, height;     // first: which of the records is that of its first segment
};

DEVICE u32 tiles_of(u32 n_cols) { return n_cols / TILE_COLS; }  // whole ones

// Beyond the last band, that again.
DEVICE Band band_of(const Operand &operand, u32 number) {
    const u32 band = least(number, ceil_div(operand.n_rows, BAND_ROWS) - 1),
              across = ceil_div(operand.n_cols, SEGMENT_TILES * TILE_COLS);
    return {operand.payload, operand.records, band * across,
            least(BAND_ROWS, operand.n_rows - BAND_ROWS * band)};
}

DEVICE u32 tile_words(const Band &band) { return TILE_COLS * band.height; }

DEVICE Record record_of(const Band &band, u32 segment) {
    const uint4 all = pointer<const uint4>(band.records)[band.first + segment];
    return {all.x, all.y, all.z, all.w};
}

DEVICE u64 address_in(const Band &band, u32 unit) { return band.payload + (u64)UNIT * unit; }
DEVICE u32 base_of(const Record &record) { return (record.info & 0xffu) * 0x01010101u; }
DEVICE bool is_coded(const Record &record) { return record.info >> 8 & 1u; }

// ---- patches ------------------------------------------------------------------------------------
// Those of a segment, one after another; the same in all lanes.
struct Patches {
    u32 at, left;  // which u32 of the payload the next one is; how many there are, with it
    u32 patch;     // the next one: value << 24 | element
};

DEVICE void look_at_patch(Patches &patches, u64 payload) {
    if (patches.left) patches.patch = pointer<const u32>(payload)[patches.at];
}

DEVICE u32 element_of(const Patches &patches) {
    return patches.left ? patches.patch & 0xffffffu : (u32)NEVER;
}

DEVICE void take_patch(Patches &patches, u64 payload) {
    ++patches.at;
    --patches.left;
    look_at_patch(patches, payload);
}

// Those from an element on.
DEVICE Patches patches_of(const Band &band, const Record &record, u32 element) {
    Patches patches = {UNIT / 4 * record.patches, record.info >> 16, 0};
    look_at_patch(patches, band.payload);
#pragma unroll 1
    while (element_of(patches) < element) take_patch(patches, band.payload);
    return patches;
}

// Apply those of a tile, whose rows have `width` columns, to the lane's words;
// `first` is the tile's first element.
DEVICE void apply_patches(Patches &patches, const Band &band, u32 first, u32 width,
                          u32 (&words)[4]) {
#pragma unroll 1
    for (u32 element = element_of(patches); element < first + band.height * width;
         element = element_of(patches)) {
        const u32 row = (element - first) / width, col = (element - first) % width;
        const bool own = row == lane_id() / 4 && col / LANE_WORDS == lane_id() % 4;
        const u32 shift = 16 * (col % 2), bits = own ? 0x7f80u << shift : 0,
                  value = patches.patch >> 24 << (7 + shift);
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            words[i] = choose(i == col % LANE_WORDS / 2 ? bits : 0, value, words[i]);
        take_patch(patches, band.payload);
    }
}

// ---- loads --------------------------------------------------------------------------------------
// Where the lane's bytes of a whole tile are. Lanes that have no row take those of one that has.
template <class Weights>
struct Place {
    // bytes of the lower plane for one of plane 0
    enum : u32 { RATIO = Shape<Weights::NBYTES, true>::RAW_NBYTES / 4 };
    u64 codes, lower;
};

// `tile` is counted from the segment's first on.
template <class Weights>
DEVICE Place<Weights> place_of(const Band &band, const Record &record, u32 tile) {
    const u32 from = tile * (tile_words(band) / 2) + 4 * least(lane_id(), 4 * band.height - 1);
    return {address_in(band, record.codes) + from,
            address_in(band, record.lower) + Place<Weights>::RATIO * from};
}

// Go on by some bytes of plane 0.
template <class Weights>
DEVICE void advance(Place<Weights> &place, u32 nbytes) {
    place.codes += nbytes;
    place.lower += Place<Weights>::RATIO * nbytes;
}

// The tile that is some bytes of plane 0 after a place; plane 0 only if it is raw.
template <class Weights>
DEVICE Piece<Weights> load_piece(const Place<Weights> &place, u32 nbytes, bool raw) {
    const u64 lower = place.lower + Place<Weights>::RATIO * nbytes;
    Piece<Weights> piece = {};
    if (raw) piece.codes = __ldcs(pointer<const u32>(place.codes + nbytes));
    if constexpr (Weights::NBYTES == 2) {
        const uint2 both = __ldcs(pointer<const uint2>(lower));
        piece.lower.data[0] = both.x, piece.lower.data[1] = both.y;
    } else {
        piece.lower.data[0] = __ldcs(pointer<const u32>(lower));
    }
    return piece;
}

// The lane's words of the tile at the right edge, which has `width` columns, both planes raw; 0
// where the matrix has none.
template <class Weights>
DEVICE Eight<Weights> gather_words(const Band &band, const Record &record, u32 first, u32 width,
                                   Patches &patches) {
    constexpr u32 SIZE = Shape<Weights::NBYTES, true>::SIZE;
    const u32 row = lane_id() / 4, left = lane_id() % 4 * LANE_WORDS;
    const u32 n = row < band.height && left < width ? least(LANE_WORDS, width - left) : 0;
    const u64 codes = address_in(band, record.codes), lower = address_in(band, record.lower);
    Piece<Weights> piece = {};
#pragma unroll 1
    for (u32 k = n; k-- > 0;) {  // from the last on: each pushes the others up
        const u32 element = first + row * width + left + k, high = 4 * (element % 2);
        piece.codes = piece.codes << 4 | (*pointer<const u8>(codes + element / 2) >> high & 15u);
        if constexpr (Weights::NBYTES == 2) {
            piece.lower.data[1] = __funnelshift_l(piece.lower.data[0], piece.lower.data[1], 8);
            piece.lower.data[0] = piece.lower.data[0] << 8 | *pointer<const u8>(lower + element);
        } else {
            piece.lower.data[0] =
                piece.lower.data[0] << 4 | (*pointer<const u8>(lower + element / 2) >> high & 15u);
        }
    }
    Eight<Weights> words = merge_piece<Weights>(piece, base_of(record));
    if constexpr (Weights::HAS_PATCHES) apply_patches(patches, band, first, width, words.data);
    const u32 n_bits = 8 * Weights::NBYTES * n;
#pragma unroll
    for (u32 i = 0; i < SIZE; i++)
        words.data[i] &= n_bits <= 32 * i        ? 0
                         : n_bits >= 32 * i + 32 ? 0xffffffffu
                                                 : (1u << (n_bits - 32 * i)) - 1;
    return words;
}

// ---- streams ------------------------------------------------------------------------------------
DEVICE Stream stream_of(const Band &band, const Record &record, uint4 *buffer) {
    Plane plane = {};
    plane.at = address_in(band, record.codes);
    plane.nbytes = UNIT * (record.lower - record.codes);
    return open_stream(plane, buffer);
}

// The symbols of the next tile of two streams, step by step of both:
// each waits for its own last step only.
DEVICE void decode_two(Stream &a, Stream &b, const Coder &coder, u32 &symbols_a, u32 &symbols_b) {
    refill(a);
    refill(b);
    symbols_a = decode_step(a, coder);
    symbols_b = decode_step(b, coder);
    symbols_a = __byte_perm(symbols_a, decode_step(a, coder), 0x0040);
    symbols_b = __byte_perm(symbols_b, decode_step(b, coder), 0x0040);
    symbols_a = __byte_perm(symbols_a, decode_step(a, coder), 0x0410);
    symbols_b = __byte_perm(symbols_b, decode_step(b, coder), 0x0410);
    symbols_a = __byte_perm(symbols_a, decode_step(a, coder), 0x4210);
    symbols_b = __byte_perm(symbols_b, decode_step(b, coder), 0x4210);
}
