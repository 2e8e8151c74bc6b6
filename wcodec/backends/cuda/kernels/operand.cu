// Operands decoded, and sums of parts added: what products need beside themselves.
#include "linear.cuh"

// ---- from operands to words ---------------------------------------------------------------------
enum { AHEAD = 4 };  // tiles that are loaded before they are stored

// Eight words of a row, at a multiple of a word.
template <class Weights>
DEVICE void store_eight(u64 address, Eight<Weights> words, u32 n) {
    if constexpr (Weights::IS_OFFSET) words.data[0] ^= 0x80808080u, words.data[1] ^= 0x80808080u;
    if (n == LANE_WORDS && address % (LANE_WORDS * Weights::NBYTES) == 0)
        store_vectors<Weights::NBYTES, true>(address, words);
    else store_words<Weights::NBYTES, true>(address, words, n);
}

// A warp's segment.
template <class Weights>
DEVICE void expand_segment(const Operand &operand, const Coder &coder, uint4 *buffer,
                           u32 band_number, u32 segment, u64 out) {
    const Band band = band_of(operand, band_number);
    const Record record = record_of(band, segment);
    const u32 first = segment * SEGMENT_TILES,
              n_cols = least(SEGMENT_TILES * TILE_COLS, operand.n_cols - first * TILE_COLS);
    // whole ones, and what is left
    const u32 n_tiles = n_cols / TILE_COLS, width = n_cols % TILE_COLS;
    const u32 row = band_number * BAND_ROWS + lane_id() / 4, left = lane_id() % 4 * LANE_WORDS;
    const bool coded = is_coded(record), has_row = row < operand.n_rows;
    const u32 step = tile_words(band) / 2;
    Place<Weights> place = place_of<Weights>(band, record, 0);
    Patches patches = {};
    if constexpr (Weights::HAS_PATCHES) patches = patches_of(band, record, 0);
    Stream stream = {};
    if (coded) stream = stream_of(band, record, buffer);
    u64 at = out + Weights::NBYTES * ((u64)row * operand.n_cols + first * TILE_COLS + left);
    Piece<Weights> ahead[AHEAD] = {};
#pragma unroll
    for (u32 i = 0; i < AHEAD; i++)
        if (i < n_tiles) ahead[i] = load_piece(place, i * step, !coded);
#pragma unroll 1
    for (u32 round = 0; round < n_tiles; round += AHEAD) {
        advance(place, AHEAD * step);
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) {
            const u32 tile = round + i;
            if (tile >= n_tiles) break;
            Piece<Weights> piece = ahead[i];
            if (tile + AHEAD < n_tiles) ahead[i] = load_piece(place, i * step, !coded);
            if (coded) {
                refill(stream);
                piece.codes = decode_group(stream, coder);
            }
            Eight<Weights> words = merge_piece<Weights>(piece, base_of(record));
            if constexpr (Weights::HAS_PATCHES)
                apply_patches(patches, band, tile * tile_words(band), TILE_COLS, words.data);
            if (has_row) store_eight<Weights>(at, words, LANE_WORDS);
            at += Weights::NBYTES * TILE_COLS;
        }
    }
    if (width == 0) return;
    const Eight<Weights> words =
        gather_words<Weights>(band, record, n_tiles * tile_words(band), width, patches);
    if (has_row && left < width) store_eight<Weights>(at, words, least(LANE_WORDS, width - left));
}

// Words, row by row, at a multiple of a word. Grid: a warp a segment.
template <class Weights>
DEVICE void expand(const Operand &operand, u64 out) {
    __shared__ DecoderMemory memory;
    if (operand.luts) load_lut(memory.lut, pointer<const u32>(operand.luts), 0);
    const Coder coder = coder_of(memory.lut, operand.prob_bits);
    const u32 across = ceil_div(operand.n_cols, SEGMENT_TILES * TILE_COLS),
              warp = uniform_warp_id();
    const u64 number = (u64)blockIdx.x * BLOCK_WARPS + warp;
    if (number >= (u64)ceil_div(operand.n_rows, BAND_ROWS) * across) return;
    expand_segment<Weights>(operand, coder, memory.words[warp], (u32)(number / across),
                            (u32)(number % across), out);
}

#define EXPAND(name, weights)                                                                      \
    KERNEL __launch_bounds__(BLOCK_THREADS, 3)                                                     \
        name(u64 payload, u64 records, u64 luts, u32 n_rows, u32 n_cols, u32 prob_bits, u64 out) { \
        expand<weights>({payload, records, luts, n_rows, n_cols, prob_bits}, out);                 \
    }

EXPAND(expand_bf16, WeightsBf16)
EXPAND(expand_int8, WeightsInt8)
EXPAND(expand_e4m3, WeightsE4m3)
EXPAND(expand_e5m2, WeightsE5m2)

// ---- sums of parts ------------------------------------------------------------------------------
// The sum of all parts, in order. A warp a tile of rows and 8 rows of x.
template <class Float>
DEVICE void add_all(const Product &p, u32 n_parts, u32 groups, u64 parts) {
    const u32 n_row_tiles = ceil_div(p.n_rows, ROW_TILE);
    const u64 n_warps = (u64)n_row_tiles * groups, warp = (u64)blockIdx.x * BLOCK_WARPS + warp_id();
    if (warp >= n_warps) return;
    const float4 *at = pointer<const float4>(parts) + warp * LANES + lane_id();
    const u32 group = (u32)(warp % groups);
    if (first_batch(group) >= p.n_batch) return;
    Sums<1> sums = {};
    for (u32 i = 0; i < n_parts; i++) {
        const float4 part = at[i * n_warps * LANES];
        sums[0][0] += part.x;
        sums[0][1] += part.y;
        sums[0][2] += part.z;
        sums[0][3] += part.w;
    }
    finish<Float, 1>(p, (u32)(warp / groups), group, sums);
}

#define ADD_PARTS(name, type)                                                                      \
    KERNEL __launch_bounds__(BLOCK_THREADS, 2) name(                                               \
        u64 y, u64 bias, u64 scale, u32 n_rows, u32 n_batch, u32 n_parts, u32 groups, u64 parts) { \
        add_all<type>({0, y, bias, scale, n_rows, 0, n_batch}, n_parts, groups, parts);            \
    }

ADD_PARTS(add_parts_bf16, Bf16)
ADD_PARTS(add_parts_fp16, Fp16)
