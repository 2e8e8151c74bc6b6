// Operands: matrices that can be multiplied from the bytes of a file (spec: chapter 16).
//
// Segments are 8 rows of 1024 columns, in tiles of 32 columns; both may be cut off at the matrix's edges. All have layout PAIRS; their
// lower plane is raw; their plane 0 is raw, or a stream of symbols. A tile is what two steps of `mma.m16n8k16` take of 8 rows: lane
// 4 r + q has the 8 words of row r from column 8 q on, which stand together: 4 bytes of plane 0, and 4 or 8 of the lower plane. A
// group of a stream's symbols is a tile. Only tiles at the right edge, if they have fewer columns, are gathered word by word.
//
// A warp has 16 rows: two bands of 8. The host has checked the structures; what payloads hold may be anything.
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
    u32 codes, lower, patches;  // where plane 0, the lower plane and the patches are, in units of 16 bytes from the payload on
    u32 info;                   // base, whether plane 0 is a stream << 8, number of patches << 16
};

// ---- kinds of weights ----------------------------------------------------------------------------------------------------------
// Each has the inverse of its word map, and makes of 8 merged words 4 pairs of `Float`, in order. All are exact, if the words are
// finite numbers. The powers of two put exponents right: biases differ.
DEVICE u32 spread_low(u32 bytes) { return __byte_perm(bytes, 0, 0x1404); }   // bytes 0 and 1, each as the high one of a half
DEVICE u32 spread_high(u32 bytes) { return __byte_perm(bytes, 0, 0x3424); }  // bytes 2 and 3

struct WeightsBf16 {
    enum { NBYTES = 2, HAS_PATCHES = 1 };
    static DEVICE_MEMBER Unmap unmap() { return {0, 0, 0, 0x80808080u, 1, 0}; }
    static DEVICE_MEMBER void widen(Bf16, u32 (&pairs)[4], const u32 *words) {
        for (u32 i = 0; i < 4; i++) pairs[i] = words[i];
    }
};

struct WeightsInt8 {
    enum { NBYTES = 1, HAS_PATCHES = 0 };
    static DEVICE_MEMBER Unmap unmap() { return {0xffffffffu, 0, 0, 0, 0, 0x80808080u}; }
    // 128 + the low 7 bits, less 128 or, of a negative number, 256: exact in 8 bits.
    static DEVICE_MEMBER void widen(Bf16 f, u32 (&pairs)[4], const u32 *words) {
        for (u32 i = 0; i < 2; i++) {
            const u32 low = words[i] & 0x7f7f7f7fu, sign = words[i] & 0x80808080u;
            pairs[2 * i] = multiply_add(f, __byte_perm(low, 0x43434343u, 0x4140), 0x3f803f80u, __byte_perm(sign, 0xc3c3c3c3u, 0x4140));
            pairs[2 * i + 1] = multiply_add(f, __byte_perm(low, 0x43434343u, 0x4342), 0x3f803f80u, __byte_perm(sign, 0xc3c3c3c3u, 0x4342));
        }
    }
    // 1024 + 128 + the number, less 1152.
    static DEVICE_MEMBER void widen(Fp16 f, u32 (&pairs)[4], const u32 *words) {
        for (u32 i = 0; i < 2; i++) {
            const u32 raised = words[i] ^ 0x80808080u;
            pairs[2 * i] = multiply_add(f, __byte_perm(raised, 0x64646464u, 0x4140), 0x3c003c00u, 0xe480e480u);
            pairs[2 * i + 1] = multiply_add(f, __byte_perm(raised, 0x64646464u, 0x4342), 0x3c003c00u, 0xe480e480u);
        }
    }
};

// Floats of a byte with their bits moved down by SHIFT, below the sign, times a power of two.
template <u32 SHIFT, class Float>
DEVICE void widen_floats(Float f, u32 (&pairs)[4], const u32 *words, u32 factor) {
    const u32 sign = 0x80008000u, rest = (0x7f00u >> SHIFT) * 0x10001u;
    for (u32 i = 0; i < 4; i++) {
        const u32 high = i % 2 ? spread_high(words[i / 2]) : spread_low(words[i / 2]);
        pairs[i] = multiply_add(f, choose(sign, high, high >> SHIFT & rest), factor, sign);  // - 0: zeros keep their sign
    }
}

struct WeightsE4m3 {
    enum { NBYTES = 1, HAS_PATCHES = 0 };
    static DEVICE_MEMBER Unmap unmap() { return {0x07070707u, 0x80808080u, 4, 0, 0, 0}; }
    static DEVICE_MEMBER void widen(Bf16 f, u32 (&pairs)[4], const u32 *words) { widen_floats<4>(f, pairs, words, 0x7b807b80u); }  // 2^120
    static DEVICE_MEMBER void widen(Fp16 f, u32 (&pairs)[4], const u32 *words) { widen_floats<1>(f, pairs, words, 0x5c005c00u); }  // 2^8
};

struct WeightsE5m2 {
    enum { NBYTES = 1, HAS_PATCHES = 0 };
    static DEVICE_MEMBER Unmap unmap() { return {0x03030303u, 0x80808080u, 5, 0, 0, 0}; }
    static DEVICE_MEMBER void widen(Bf16 f, u32 (&pairs)[4], const u32 *words) { widen_floats<3>(f, pairs, words, 0x77807780u); }  // 2^112
    static DEVICE_MEMBER void widen(Fp16, u32 (&pairs)[4], const u32 *words) {
        for (u32 i = 0; i < 4; i++) pairs[i] = i % 2 ? spread_high(words[i / 2]) : spread_low(words[i / 2]);
    }
};

// ---- bands ---------------------------------------------------------------------------------------------------------------------
struct Band {
    u64 payload, records;  // records: of its first segment
    u32 height;
};

DEVICE u32 tiles_of(u32 n_cols) { return n_cols / TILE_COLS; }  // whole ones

// Beyond the last band, that again.
DEVICE Band band_of(const Operand &operand, u32 number) {
    const u32 band = least(number, ceil_div(operand.n_rows, BAND_ROWS) - 1), across = ceil_div(operand.n_cols, SEGMENT_TILES * TILE_COLS);
    const u64 records = operand.records + (u64)band * across * sizeof(Record);
    return {operand.payload, records, least(BAND_ROWS, operand.n_rows - BAND_ROWS * band)};
}

DEVICE u32 tile_words(const Band &band) { return TILE_COLS * band.height; }

DEVICE Record record_of(const Band &band, u32 segment) {
    const uint4 all = *pointer<const uint4>(band.records + (u64)segment * sizeof(Record));
    return {all.x, all.y, all.z, all.w};
}

DEVICE u64 address_in(const Band &band, u32 unit) { return band.payload + (u64)UNIT * unit; }
DEVICE u32 base_of(const Record &record) { return (record.info & 0xffu) * 0x01010101u; }
DEVICE bool is_coded(const Record &record) { return record.info >> 8 & 1u; }

// ---- patches -------------------------------------------------------------------------------------------------------------------
// Those of a segment, one after another; the same in all lanes.
struct Patches {
    u32 unit, next, count;  // where they are; number of the next one, and of all
    u32 patch;              // the next one: value << 24 | element; NEVER if there is none
};

DEVICE void look_at_patch(Patches &patches, u64 payload) {
    const bool any = patches.next < patches.count;
    patches.patch = any ? pointer<const u32>(payload + (u64)UNIT * patches.unit)[patches.next] : (u32)NEVER;
}

DEVICE u32 element_of(const Patches &patches) { return patches.next < patches.count ? patches.patch & 0xffffffu : (u32)NEVER; }

DEVICE void take_patch(Patches &patches, u64 payload) {
    ++patches.next;
    look_at_patch(patches, payload);
}

// Those from an element on.
DEVICE Patches patches_of(const Band &band, const Record &record, u32 element) {
    Patches patches = {record.patches, 0, record.info >> 16, NEVER};
    look_at_patch(patches, band.payload);
#pragma unroll 1
    while (element_of(patches) < element) take_patch(patches, band.payload);
    return patches;
}

// Apply those of a tile, whose rows have `width` columns, to the lane's words; `first` is the tile's first element.
DEVICE void apply_patches(Patches &patches, const Band &band, u32 first, u32 width, u32 (&words)[4]) {
#pragma unroll 1
    for (u32 element = element_of(patches); element < first + band.height * width; element = element_of(patches)) {
        const u32 row = (element - first) / width, col = (element - first) % width;
        const bool own = row == lane_id() / 4 && col / LANE_WORDS == lane_id() % 4;
        const u32 shift = 16 * (col % 2), bits = own ? 0x7f80u << shift : 0, value = patches.patch >> 24 << (7 + shift);
#pragma unroll
        for (u32 i = 0; i < 4; i++) words[i] = choose(i == col % LANE_WORDS / 2 ? bits : 0, value, words[i]);
        take_patch(patches, band.payload);
    }
}

// ---- a lane's words of a tile ----------------------------------------------------------------------------------------------------
template <class Weights>
struct Piece {
    u32 codes;
    Lower<Weights::NBYTES, true> lower;
};

template <class Weights>
using Eight = Words<Weights::NBYTES, true>;

template <class Weights>
DEVICE Eight<Weights> merge_piece(const Piece<Weights> &piece, u32 base) {
    return merge<Weights::NBYTES, true>(piece.codes, piece.lower, base, Weights::unmap());
}

// Where the lane's bytes of the next whole tile of a segment are. Lanes that have no row take those of one that has.
template <class Weights>
struct Cursor {
    u64 codes, lower;
    u32 step;  // bytes of a tile of plane 0
};

template <class Weights>
DEVICE Cursor<Weights> cursor_at(const Band &band, const Record &record, u32 tile) {
    constexpr u32 RATIO = Shape<Weights::NBYTES, true>::RAW_NBYTES / 4;  // bytes of the lower plane for one of plane 0
    const u32 step = tile_words(band) / 2, from = tile * step + 4 * least(lane_id(), 4 * band.height - 1);
    return {address_in(band, record.codes) + from, address_in(band, record.lower) + RATIO * from, step};
}

template <class Weights>
DEVICE void load_lower(Piece<Weights> &piece, u64 at) {
    if constexpr (Weights::NBYTES == 2) {
        const uint2 both = __ldcs(pointer<const uint2>(at));
        piece.lower.data[0] = both.x, piece.lower.data[1] = both.y;
    } else {
        piece.lower.data[0] = __ldcs(pointer<const u32>(at));
    }
}

// The next tile's; plane 0 only if it is raw.
template <class Weights>
DEVICE Piece<Weights> load_piece(Cursor<Weights> &cursor, bool raw) {
    constexpr u32 RATIO = Shape<Weights::NBYTES, true>::RAW_NBYTES / 4;
    Piece<Weights> piece = {};
    if (raw) piece.codes = __ldcs(pointer<const u32>(cursor.codes));
    load_lower<Weights>(piece, cursor.lower);
    cursor.codes += cursor.step;
    cursor.lower += RATIO * cursor.step;
    return piece;
}

// The lane's words of the tile at the right edge, which has `width` columns, both planes raw; 0 where the matrix has none.
template <class Weights>
DEVICE Eight<Weights> gather_words(const Band &band, const Record &record, u32 first, u32 width, Patches &patches) {
    constexpr u32 SIZE = Shape<Weights::NBYTES, true>::SIZE;
    const u32 row = lane_id() / 4, left = lane_id() % 4 * LANE_WORDS;
    Piece<Weights> piece = {};
    u32 kept[4] = {};  // mask
#pragma unroll
    for (u32 k = 0; k < LANE_WORDS; k++) {
        if (row >= band.height || left + k >= width) continue;
        const u32 element = first + row * width + left + k, high = 4 * (element % 2);
        piece.codes |= (*pointer<const u8>(address_in(band, record.codes) + element / 2) >> high & 15u) << 4 * k;
        if constexpr (Weights::NBYTES == 2) {
            piece.lower.data[k / 4] |= (u32)*pointer<const u8>(address_in(band, record.lower) + element) << 8 * (k % 4);
            kept[k / 2] |= 0xffffu << 16 * (k % 2);
        } else {
            piece.lower.data[0] |= (*pointer<const u8>(address_in(band, record.lower) + element / 2) >> high & 15u) << 4 * k;
            kept[k / 4] |= 0xffu << 8 * (k % 4);
        }
    }
    Eight<Weights> words = merge_piece<Weights>(piece, base_of(record));
    if constexpr (Weights::HAS_PATCHES) apply_patches(patches, band, first, width, words.data);
#pragma unroll
    for (u32 i = 0; i < SIZE; i++) words.data[i] &= kept[i];
    return words;
}

// ---- streams ---------------------------------------------------------------------------------------------------------------------
DEVICE Stream stream_of(const Band &band, const Record &record, uint4 *buffer) {
    Plane plane = {};
    plane.at = address_in(band, record.codes);
    plane.nbytes = UNIT * (record.lower - record.codes);
    return open_stream(plane, buffer);
}

// The symbols of the next tile of two streams, step by step of both: each waits for its own last step only.
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
