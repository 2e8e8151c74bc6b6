// What all kernels share: types, structures that the host fills in (mirrored by layout.py), and the
// few operations that a GPU has an instruction for and C++ has no word for. No standard headers:
// NVRTC has none.
//
// Rules for every kernel
// 1. The host's structures are right: it has checked them.
//    The bytes of payloads, patches and tile modes may hold anything.
// 2. Nothing is read outside of [at, at + nbytes) of a stream, or of a segment's patches and modes,
//    and nothing is written outside of a segment's words or of the scratch that was given, whatever
//    the payload holds. No loop's length depends on the payload.
// 3. What is wrong is said by a bit of the segment's status, OR-ed atomically. Kernels never trap.
// 4. Warps are 32 threads. Every collective names the whole warp and is reached by all of it.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
#define KERNEL extern "C" __global__ void
#define ALL_LANES 0xffffffffu

// ---- the format's constants (spec: chapters 5 to 10) --------------------------------------------
enum { LAYOUT_RAW = 0, LAYOUT_BYTES = 1, LAYOUT_PAIRS = 2 };
enum { CODER_RAW = 0, CODER_CONSTANT = 1, CODER_RANS = 2, CODER_CONTEXT = 4 };
enum {
    CONTEXT_PLANE = 1, CONTEXT_POSITION = 2, CONTEXT_SCALE = 3, N_CONTEXTS = 256, MAX_CLASSES = 16
};
enum {
    MODE_NONE = 0, MODE_LEFT = 1, MODE_TOP = 2, MODE_AVG = 3, MODE_PLANAR = 4, N_PREDICTIONS = 5,
    PER_TILE = 255
};
enum { TRANSFORM_NONE = 0, TRANSFORM_DCT = 1, TRANSFORM_ADST = 2, N_TRANSFORMS = 3 };
enum { MAP_IDENTITY = 0, MAP_OFFSET = 1, MAP_EXPONENT_FIRST = 2 };
enum {
    LANES = 32, STEPS = 4, GROUP = 128, HEAD_NBYTES = 128, UNIT = 16, MAX_PROB_BITS = 12,
    MAX_SLOTS = 4096
};
enum { STATE_LOW = 1 << 16 };
// of all kernels but those for checksums
enum { BLOCK_WARPS = 8, BLOCK_THREADS = 32 * BLOCK_WARPS };

// Bits of a segment's status; of several, the host reports the one that goes first (see
// decoding.py). A late stream is one that is decoded after plane 0, by CODER_CONTEXT: it counts
// only where all tile modes are right.
enum { BAD_STREAM = 1, BAD_TILE_MODE = 2, BAD_PATCH = 4, BAD_LATE_STREAM = 8 };

// ---- what the host says -------------------------------------------------------------------------
// All addresses are of device memory. Streams, records and scratch start at multiples of 16;
// words at multiples of a word.

struct Table {  // 520 bytes
    u32 prob_bits, padding;  // padding: the symbol that fills up a last group
    u16 freq[256];
};

struct ContextMap {  // 328 bytes
    u32 kind, prob_bits;      // prob_bits: of all its tables
    u32 tables[MAX_CLASSES];  // of each class, the index of a Table
    u8 class_of[N_CONTEXTS];  // of contexts that the kind doesn't have, 0
};

struct Tensor {  // 32 bytes
    u64 cols;    // words of a row of the matrix
    u32 tile_rows, tile_cols;
    // planes: max(2, word_nbytes), of which a segment may use fewer
    u32 word_nbytes, map, exponent_bits, n_planes;
};

struct Segment {  // 72 bytes
    u64 words;    // its first word in the matrix
    u64 record;   // encoding: where the record goes
    u64 modes;    // tile modes, those of each plane with PER_TILE after the other
    u64 scales;   // classes of its rows and columns (spec: R10.10), if it has them
    u64 patches;  // decoding: its patches, u32 each; encoding: scratch for them
    u32 scales_nbytes, n_patches, tensor, plane;  // plane: index of its first Plane
    u32 height, width, n_tiles;
    u8 layout, base, fill, reserved;
};

struct Plane {    // 56 bytes
    u64 at;        // its bytes in the payload; encoding: scratch for its stream
    u64 symbols;   // scratch for its symbols, whole groups
    u64 residuals; // encoding: scratch for its residuals, whole groups, if it has a prediction
    u64 classes;   // scratch for the classes of its symbols, whole groups, with CODER_CONTEXT
    u32 nbytes;    // of its bytes in the payload; encoding: of the scratch at `at`
    // table: index of a Table or a ContextMap, or the byte of CODER_CONSTANT
    u32 n_symbols, table, segment;
    u8 coder, prediction, index, reserved;
    u32 reserved_2;
};

// 16 bytes: entries `first` to `first + count` of a list, all with one table, or context map;
// the work of a block
struct Batch {
    u32 first, count, table, reserved;
};

template <class T>
DEVICE T *pointer(u64 address) {
#ifdef __CUDA_ARCH__
    return (T *)__cvta_global_to_generic(address);  // so that the compiler knows which memory it is
#else
    return (T *)address;
#endif
}

// ---- operations ---------------------------------------------------------------------------------
DEVICE u32 lane_id() { return threadIdx.x & 31u; }
DEVICE u32 warp_id() { return threadIdx.x >> 5; }

#ifdef __CUDA_ARCH__
DEVICE u32 lanes_below() {  // mask of the lanes below this one
    u32 mask;
    asm("mov.u32 %0, %%lanemask_lt;" : "=r"(mask));
    return mask;
}
#else
DEVICE u32 lanes_below() { return (1u << lane_id()) - 1u; }
#endif

DEVICE u32 ceil_div(u32 a, u32 b) { return a / b + (a % b != 0); }  // no overflow
DEVICE u32 least(u32 a, u32 b) { return a < b ? a : b; }
DEVICE u32 most(u32 a, u32 b) { return a > b ? a : b; }

// Bits of `a` where the mask has ones, of `b` elsewhere;
// written so that it becomes one instruction.
DEVICE u32 choose(u32 mask, u32 a, u32 b) { return ((a ^ b) & mask) ^ b; }

// The same for a mask that is constant, of which compilers make two.
DEVICE u32 choose_bits(u32 mask, u32 a, u32 b) {
#ifdef __CUDA_ARCH__
    u32 out;
    asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(out) : "r"(mask), "r"(a), "r"(b));
    return out;
#else
    return choose(mask, a, b);
#endif
}

// Four bytes at once, modulo 256.
DEVICE u32 add_bytes(u32 a, u32 b) {
    return ((a & 0x7f7f7f7f) + (b & 0x7f7f7f7f)) ^ ((a ^ b) & 0x80808080);
}
DEVICE u32 subtract_bytes(u32 a, u32 b) {
    return ((a | 0x80808080) - (b & 0x7f7f7f7f)) ^ ((a ^ ~b) & 0x80808080);
}

// ---- words --------------------------------------------------------------------------------------
DEVICE u64 load_word(u64 address, u32 nbytes) {
    if (nbytes == 1) return *pointer<const u8>(address);
    if (nbytes == 2) return *pointer<const u16>(address);
    if (nbytes == 4) return *pointer<const u32>(address);
    return *pointer<const u64>(address);
}

DEVICE void store_word(u64 address, u32 nbytes, u64 word) {
    if (nbytes == 1) *pointer<u8>(address) = (u8)word;
    else if (nbytes == 2) *pointer<u16>(address) = (u16)word;
    else if (nbytes == 4) *pointer<u32>(address) = (u32)word;
    else *pointer<u64>(address) = word;
}

// The word map (spec: R5.2) and its inverse.
DEVICE u64 map_word(u64 w, const Tensor &t) {
    const u32 bits = 8 * t.word_nbytes;
    if (t.map == MAP_OFFSET) return w ^ (1ull << (bits - 1));
    if (t.map == MAP_IDENTITY) return w;
    const u32 m = bits - 1 - t.exponent_bits;
    const u64 sign = w >> (bits - 1), exponent = w >> m & ((1ull << t.exponent_bits) - 1),
              mantissa = w & ((1ull << m) - 1);
    return exponent << (m + 1) | sign << m | mantissa;
}

DEVICE u64 unmap_word(u64 w, const Tensor &t) {
    if (t.map != MAP_EXPONENT_FIRST) return map_word(w, t);
    const u32 bits = 8 * t.word_nbytes, m = bits - 1 - t.exponent_bits;
    const u64 sign = w >> m & 1, exponent = w >> (m + 1), mantissa = w & ((1ull << m) - 1);
    return sign << (bits - 1) | exponent << m | mantissa;
}

// The word map (R5.2), done to all words of a register, of 32 or 64 bits. An exponent-first word is
// a word whose sign went down by the exponent's bits and whose exponent went up by one bit; OFFSET
// flips the top bit. What a map does not do has a mask of 0.
struct WordMap {
    u64 sign, exponent, rest;  // in the mapped word
    u64 flip;                  // in the word
    u32 exponent_bits;
};

template <u32 NBYTES>
DEVICE WordMap map_of(const Tensor &tensor) {
    // each: the lowest bit of each word
    constexpr u64 each = ~0ull / (~0ull >> (64 - 8 * NBYTES)), top = each << (8 * NBYTES - 1);
    if (tensor.map != MAP_EXPONENT_FIRST)
        return {0, 0, ~0ull, tensor.map == MAP_OFFSET ? top : 0, 0};
    const u32 m = 8 * NBYTES - 1 - tensor.exponent_bits;
    return {each << m, each * (((1ull << tensor.exponent_bits) - 1) << (m + 1)),
            each * ((1ull << m) - 1), 0, tensor.exponent_bits};
}

template <class T>
DEVICE T apply(const WordMap &map, T x) {
    x ^= (T)map.flip;
    return (x >> map.exponent_bits & (T)map.sign) | (x << 1 & (T)map.exponent) | (x & (T)map.rest);
}

template <class T>
DEVICE T invert(const WordMap &map, T x) {
    return ((x & (T)map.sign) << map.exponent_bits | (x & (T)map.exponent) >> 1 |
            (x & (T)map.rest)) ^
           (T)map.flip;
}

// ---- modes and tiles ----------------------------------------------------------------------------
// A tile's mode is transform << 4 | prediction (spec: R7.1).
DEVICE bool is_mode(u32 mode) { return (mode & 15) < N_PREDICTIONS && mode >> 4 < N_TRANSFORMS; }

struct Tile {
    u32 row, col, height, width;  // in the segment
    // its first element, in the order in which elements are coded (spec: R6.9)
    u32 first;
};

DEVICE Tile tile_of(const Segment &s, const Tensor &t, u32 i) {
    const u32 across = ceil_div(s.width, t.tile_cols);
    Tile tile;
    tile.row = i / across * t.tile_rows;
    tile.col = i % across * t.tile_cols;
    tile.height = least(t.tile_rows, s.height - tile.row);
    tile.width = least(t.tile_cols, s.width - tile.col);
    tile.first = tile.row * s.width + tile.height * tile.col;
    return tile;
}
