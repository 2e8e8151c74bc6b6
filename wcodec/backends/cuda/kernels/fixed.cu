// To the fixed-rate form and back (fixed.cuh). Words are bf16, row by row, at a multiple of 2.
#include "fixed.cuh"

struct Matrix {
    u64 words;
    u32 n_rows, n_cols;
};

DEVICE u64 address_of(const Matrix &matrix, u32 row, u32 col) { return matrix.words + 2 * ((u64)row * matrix.n_cols + col); }
DEVICE u32 load_bf16(u64 address) { return *pointer<const u16>(address); }
DEVICE u32 tiles_across(u32 n_cols) { return ceil_div(n_cols, TILE_COLS); }

// How often each exponent occurs, added to `counts`, 256 x u64. Each warp counts by itself first.
KERNEL __launch_bounds__(BLOCK_THREADS) count_exponents(u64 words, u64 n_words, u64 counts) {
    __shared__ u32 bins[BLOCK_WARPS][256];
    for (u32 i = 0; i < BLOCK_WARPS; i++) bins[i][threadIdx.x] = 0;
    __syncthreads();
    const u64 step = (u64)gridDim.x * BLOCK_THREADS;
    for (u64 i = (u64)blockIdx.x * BLOCK_THREADS + threadIdx.x; i < n_words; i += step)
        atomicAdd(&bins[warp_id()][load_bf16(words + 2 * i) >> 7 & 255u], 1u);
    __syncthreads();
    u64 sum = 0;
    for (u32 i = 0; i < BLOCK_WARPS; i++) sum += bins[i][threadIdx.x];
    if (sum) atomicAdd(pointer<u64>(counts) + threadIdx.x, sum);
}

// A warp a row: whether each lane's weight of 32 from a column on is a patch, as a set of lanes.
DEVICE u32 patches_from(const Matrix &matrix, u32 base, u32 row, u32 first, u32 &word) {
    const u32 col = first + lane_id();
    word = col < matrix.n_cols ? load_bf16(address_of(matrix, row, col)) : 0;
    return __ballot_sync(ALL_LANES, is_patch(word, base));
}

// Numbers of patches of each row, u32. A warp a row.
KERNEL __launch_bounds__(BLOCK_THREADS) count_patches(u64 words, u32 n_rows, u32 n_cols, u32 base, u64 counts) {
    const Matrix matrix = {words, n_rows, n_cols};
    const u32 row = blockIdx.x * BLOCK_WARPS + warp_id();
    if (row >= n_rows) return;
    u32 n = 0, word;
    for (u32 col = 0; col < n_cols; col += LANES) n += __popc(patches_from(matrix, base, row, col, word));
    if (lane_id() == 0) pointer<u32>(counts)[row] = n;
}

// The list of patches, of which those of a row begin at starts[row].
KERNEL __launch_bounds__(BLOCK_THREADS) list_patches(u64 words, u32 n_rows, u32 n_cols, u32 base, u64 starts, u64 patches) {
    const Matrix matrix = {words, n_rows, n_cols};
    const u32 row = blockIdx.x * BLOCK_WARPS + warp_id();
    if (row >= n_rows) return;
    u32 at = pointer<const u32>(starts)[row], word;
    for (u32 col = 0; col < n_cols; col += LANES) {
        const u32 found = patches_from(matrix, base, row, col, word);
        if (found >> lane_id() & 1u) pointer<Patch>(patches)[at + __popc(found & lanes_below())] = {col + lane_id(), word << 16};
        at += __popc(found);
    }
}

// Tiles from words. A warp a tile.
KERNEL __launch_bounds__(BLOCK_THREADS) pack_fixed(u64 words, u32 n_rows, u32 n_cols, u32 base, u64 tiles) {
    const Matrix matrix = {words, n_rows, n_cols};
    const u32 across = tiles_across(n_cols);
    const u64 tile = (u64)blockIdx.x * BLOCK_WARPS + warp_id();
    if (tile >= (u64)ceil_div(n_rows, TILE_ROWS) * across) return;
    const u32 top = (u32)(tile / across) * TILE_ROWS, left = (u32)(tile % across) * TILE_COLS;
    u32 packed[3 * N_FRAGMENTS];
#pragma unroll
    for (u32 f = 0; f < N_FRAGMENTS; f++) {
        u32 pairs[4], three[3];
#pragma unroll
        for (u32 p = 0; p < 4; p++) {
            const u32 row = top + pair_row(lane_id(), p), col = left + pair_column(lane_id(), f, p);
            pairs[p] = 0;
            if (row < n_rows && col < n_cols) pairs[p] = fields_of(load_bf16(address_of(matrix, row, col)), base);
            if (row < n_rows && col + 1 < n_cols) pairs[p] |= fields_of(load_bf16(address_of(matrix, row, col + 1)), base) << 16;
        }
        pack_fields(pairs, three);
#pragma unroll
        for (u32 i = 0; i < 3; i++) packed[3 * f + i] = three[i];
    }
    uint4 *out = pointer<uint4>(tiles) + tile * TILE_VECTORS + lane_id();
#pragma unroll
    for (u32 i = 0; i < 3; i++) out[i * LANES] = make_uint4(packed[4 * i], packed[4 * i + 1], packed[4 * i + 2], packed[4 * i + 3]);
}

// Words from tiles, with +0 for patches. A warp a tile.
KERNEL __launch_bounds__(BLOCK_THREADS) unpack_fixed(u64 tiles, u32 n_rows, u32 n_cols, u32 base, u64 words) {
    const Matrix matrix = {words, n_rows, n_cols};
    const u32 across = tiles_across(n_cols);
    const u64 tile = (u64)blockIdx.x * BLOCK_WARPS + warp_id();
    if (tile >= (u64)ceil_div(n_rows, TILE_ROWS) * across) return;
    const u32 top = (u32)(tile / across) * TILE_ROWS, left = (u32)(tile % across) * TILE_COLS;
    const u32 *in = pointer<const u32>(tiles) + tile * (4 * TILE_VECTORS);
#pragma unroll
    for (u32 f = 0; f < N_FRAGMENTS; f++) {
        u32 pairs[4], three[3];
#pragma unroll
        for (u32 i = 0; i < 3; i++) three[i] = in[word_index(lane_id(), f, i)];
        unpack_fields(three, pairs);
#pragma unroll
        for (u32 p = 0; p < 4; p++) {
            const u32 row = top + pair_row(lane_id(), p), col = left + pair_column(lane_id(), f, p);
            u16 *out = pointer<u16>(address_of(matrix, row, col));
            if (row < n_rows && col < n_cols) out[0] = (u16)word_of(pairs[p] & 0xffffu, base);
            if (row < n_rows && col + 1 < n_cols) out[1] = (u16)word_of(pairs[p] >> 16, base);
        }
    }
}

// Patches to where they belong in the words. A warp a row.
KERNEL __launch_bounds__(BLOCK_THREADS) restore_patches(u64 starts, u64 patches, u32 n_rows, u32 n_cols, u64 words) {
    const Matrix matrix = {words, n_rows, n_cols};
    const u32 row = blockIdx.x * BLOCK_WARPS + warp_id();
    if (row >= n_rows) return;
    const u32 end = pointer<const u32>(starts)[row + 1];
    for (u32 i = pointer<const u32>(starts)[row] + lane_id(); i < end; i += LANES) {
        const Patch patch = pointer<const Patch>(patches)[i];
        if (patch.column < n_cols) *pointer<u16>(address_of(matrix, row, patch.column)) = (u16)(patch.value >> 16);
    }
}
