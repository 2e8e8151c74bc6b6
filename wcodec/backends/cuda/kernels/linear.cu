// y = x W^T + bias, with W in the fixed-rate form (fixed.cuh); x, y and bias are bf16, x and y row by row; sums are fp32.
//
// A warp has 16 rows of W and goes along their tiles, which are read once, straight to registers, some tiles ahead. A block's 8
// warps share x, a part of whose columns at a time is in shared memory, while the next part is on its way. Where W has few rows,
// its columns are split among blocks; their sums go to memory and `add_parts` adds them, in order. So a result depends on the
// number of parts, and on nothing else that could differ from run to run.
//
// Patches. W's tiles have +0 for them, which adds nothing; the exact products with the list are added to a sum in fp32. A factor
// of x that is no finite number times +0 is NaN, though: a sum with one is done over, weight by weight.
#include "fixed.cuh"
#include "matrix.cuh"

enum { BLOCK_ROWS = TILE_ROWS * BLOCK_WARPS, PART_VECTORS = 1024 };

struct Product {
    u64 x, y, bias;              // bias: or 0
    u64 tiles, starts, patches;  // of W
    u32 n_rows, n_cols, base;    // of W
    u32 n_batch;                 // rows of x
};

DEVICE float load_bias(const Product &p, u32 row) { return p.bias ? low_bf16(pointer<const u16>(p.bias)[row]) : -0.0f; }
DEVICE u32 load_x(const Product &p, u32 row, u32 col) { return pointer<const u16>(p.x)[(u64)row * p.n_cols + col]; }

// ---- the end of a sum ----------------------------------------------------------------------------------------------------------
// A weight as it is in the tiles.
DEVICE float load_weight(const Product &p, u32 row, u32 col) {
    const u64 tile = (u64)(row / TILE_ROWS) * ceil_div(p.n_cols, TILE_COLS) + col / TILE_COLS;
    const u32 lane = 4 * (row % 8) + col % 32 / 8, fragment = col % TILE_COLS / 32 * 2 + col % 8 / 4;
    const u32 pair = row % TILE_ROWS / 8 + col % 4 / 2 * 2;
    const u32 *at = pointer<const u32>(p.tiles) + tile * (4 * TILE_VECTORS);
    const u32 words[3] = {at[word_index(lane, fragment, 0)], at[word_index(lane, fragment, 1)], at[word_index(lane, fragment, 2)]};
    u32 pairs[4];
    unpack_fields(words, pairs);
    const u32 fields = (pair == 0 ? pairs[0] : pair == 1 ? pairs[1] : pair == 2 ? pairs[2] : pairs[3]) >> 16 * (col & 1) & 0xffffu;
    return __uint_as_float(word_of(fields, p.base) << 16);
}

// A sum with the patches in their places.
DEVICE float exact_sum(const Product &p, u32 row, u32 batch, u32 first, u32 end) {
    float sum = 0;
#pragma unroll 1
    for (u32 col = 0; col < p.n_cols; col++) {
        const Patch *patch = pointer<const Patch>(p.patches) + first;
        const bool patched = first < end && patch->column == col;
        const float weight = patched ? __uint_as_float(patch->value) : load_weight(p, row, col);
        first += patched;
        sum += weight * low_bf16(load_x(p, batch, col));
    }
    return sum;
}

// What a lane needs for the end of its sums: of its rows, g and g + 8 of the tile.
struct Ends {
    u32 first[2], end[2];  // of their patches
};

DEVICE Ends load_ends(const Product &p, u32 row_tile) {
    Ends ends = {};
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        const u32 row = row_tile * TILE_ROWS + (lane_id() >> 2) + 8 * i;
        if (row >= p.n_rows) continue;
        ends.first[i] = pointer<const u32>(p.starts)[row];
        ends.end[i] = pointer<const u32>(p.starts)[row + 1];
    }
    return ends;
}

// Add patches and bias, round, store: a lane's sums of products with groups of 8 rows of x, from `first` on.
template <u32 GROUPS>
DEVICE void finish(const Product &p, u32 row_tile, u32 first, const Ends &ends, float (&sums)[GROUPS][4]) {
    const u32 batch = 8 * first + 2 * (lane_id() & 3u), row = row_tile * TILE_ROWS + (lane_id() >> 2);
    u32 not_finite = 0;  // set of sums, 4 each group
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
#pragma unroll 1
        for (u32 at = ends.first[i]; at < ends.end[i]; at++) {
            const Patch patch = pointer<const Patch>(p.patches)[at];
            const u32 col = least(patch.column, p.n_cols - 1);
#pragma unroll
            for (u32 k = 0; k < 2 * GROUPS; k++) {
                const u32 of_batch = batch + k / 2 * 8 + k % 2;
                const float factor = of_batch < p.n_batch ? low_bf16(load_x(p, of_batch, col)) : 0;
                sums[k / 2][2 * i + k % 2] += __uint_as_float(patch.value) * factor;
                if (!is_finite(factor)) not_finite |= 1u << (k / 2 * 4 + 2 * i + k % 2);
            }
        }
    }
    u16 *out = pointer<u16>(p.y) + (u64)batch * p.n_rows + row;
#pragma unroll
    for (u32 k = 0; k < 4 * GROUPS; k++) {
        const u32 above = k / 4 * 8 + k % 2, below = k % 4 / 2 * 8;  // rows of y and of W from the first ones
        if (batch + above < p.n_batch && row + below < p.n_rows)
            out[(u64)above * p.n_rows + below] = to_bf16(sums[k / 4][k % 4] + load_bias(p, row + below));
    }
#pragma unroll 1
    for (; not_finite; not_finite &= not_finite - 1) {
        const u32 k = __ffs((int)not_finite) - 1, above = k / 4 * 8 + k % 2, lower = k % 4 / 2;
        const u32 begin = lower ? ends.first[1] : ends.first[0], end = lower ? ends.end[1] : ends.end[0];
        const float sum = exact_sum(p, row + 8 * lower, batch + above, begin, end);
        out[(u64)above * p.n_rows + 8 * lower] = to_bf16(sum + load_bias(p, row + 8 * lower));
    }
}

// ---- x in shared memory ----------------------------------------------------------------------------------------------------------
// Eight columns of a row of x from `col` on, with zeros from `end` on.
DEVICE uint4 gather_x(const Product &p, u32 row, u32 col, u32 end) {
    u32 words[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        words[i] = 0;
        if (row < p.n_batch && col + 2 * i < end) words[i] = load_x(p, row, col + 2 * i);
        if (row < p.n_batch && col + 2 * i + 1 < end) words[i] |= load_x(p, row, col + 2 * i + 1) << 16;
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// Where vector i of a part of x comes from: for each 32 columns and 8 rows, there are 8 columns a lane, as `multiply` wants them.
template <u32 GROUPS>
DEVICE u32 staged_row(u32 i) { return i / LANES % GROUPS * 8 + i % LANES / 4; }
template <u32 GROUPS>
DEVICE u32 staged_col(u32 i) { return i / (LANES * GROUPS) * 32 + i % 4 * 8; }

// A part of x, columns from `first` on, zeros from `end` on.
template <u32 GROUPS>
DEVICE void stage_x(uint4 *part, const Product &p, u32 first, u32 end) {
    if (p.x % 16 == 0 && p.n_cols % 8 == 0) {
#pragma unroll
        for (u32 i = threadIdx.x; i < PART_VECTORS; i += BLOCK_THREADS) {
            const u32 row = staged_row<GROUPS>(i), col = first + staged_col<GROUPS>(i);
            const bool wanted = row < p.n_batch && col < end;
            copy_vector(part + i, pointer<const uint4>(p.x + (wanted ? 2 * ((u64)row * p.n_cols + col) : 0)), wanted);
        }
    } else {
#pragma unroll 1
        for (u32 i = threadIdx.x; i < PART_VECTORS; i += BLOCK_THREADS)
            part[i] = gather_x(p, staged_row<GROUPS>(i), first + staged_col<GROUPS>(i), end);
    }
}

// ---- products ----------------------------------------------------------------------------------------------------------------------
struct Vectors {  // a lane's part of a tile
    uint4 v[3];
};

DEVICE Vectors load_tile(const uint4 *tiles, u32 tile) {
    const uint4 *at = tiles + (u64)tile * TILE_VECTORS;
    return {__ldcs(at), __ldcs(at + LANES), __ldcs(at + 2 * LANES)};
}

// A tile times 64 columns of x.
template <u32 GROUPS>
DEVICE void multiply_tile(float (&sums)[GROUPS][4], const Vectors &tile, const uint4 *x, u32 scales) {
    const u32 words[3 * N_FRAGMENTS] = {
        tile.v[0].x, tile.v[0].y, tile.v[0].z, tile.v[0].w, tile.v[1].x, tile.v[1].y,
        tile.v[1].z, tile.v[1].w, tile.v[2].x, tile.v[2].y, tile.v[2].z, tile.v[2].w};
#pragma unroll
    for (u32 half = 0; half < N_FRAGMENTS / 2; half++) {
        u32 a[2][4];
#pragma unroll
        for (u32 f = 0; f < 2; f++) {
            const u32 *three = words + 3 * (2 * half + f);
            unpack_fields({three[0], three[1], three[2]}, a[f]);
#pragma unroll
            for (u32 i = 0; i < 4; i++) a[f][i] = scale_pair(a[f][i], scales);
        }
#pragma unroll
        for (u32 group = 0; group < GROUPS; group++) {
            const uint4 eight = x[(half * GROUPS + group) * LANES + lane_id()];
            multiply(sums[group], a[0], {eight.x, eight.y});
            multiply(sums[group], a[1], {eight.z, eight.w});
        }
    }
}

// The block's rows of W, and one part of its columns, `part_tiles` tiles wide. Sums go to y, or to `parts` if there are several.
template <u32 GROUPS, u32 AHEAD>
DEVICE void linear(const Product &p, u32 n_parts, u32 part_tiles, u64 parts) {
    constexpr u32 STAGE_TILES = PART_VECTORS / (2 * LANES * GROUPS);  // that x in shared memory is wide
    static_assert(STAGE_TILES % AHEAD == 0, "x is staged for whole rounds of tiles");
    __shared__ uint4 staged[2][PART_VECTORS];
    const u32 n_row_tiles = ceil_div(p.n_rows, TILE_ROWS), across = ceil_div(p.n_cols, TILE_COLS);
    const u32 row_tile = blockIdx.x / n_parts * BLOCK_WARPS + warp_id(), part = blockIdx.x % n_parts;
    const u32 first = part * part_tiles, end = least(across, first + part_tiles), end_col = least(p.n_cols, end * TILE_COLS);
    const bool has_rows = row_tile < n_row_tiles;
    const uint4 *tiles = pointer<const uint4>(p.tiles) + (u64)(has_rows ? row_tile : 0) * across * TILE_VECTORS + lane_id();
    const u32 scales = (127 + p.base) * 0x00800080u;

    Vectors ahead[AHEAD];
#pragma unroll
    for (u32 i = 0; i < AHEAD; i++) ahead[i] = load_tile(tiles, least(first + i, across - 1));
    stage_x<GROUPS>(staged[0], p, first * TILE_COLS, end_col);
    Ends ends = {};
    if (n_parts == 1) ends = load_ends(p, row_tile);  // long before they are needed
    float sums[GROUPS][4] = {};
    u32 stage = 0;
#pragma unroll 1
    for (u32 tile = first; tile < end; stage ^= 1) {
        await_copies();
        __syncthreads();  // this stage is there, and nobody is at the other one any more
        const u32 next = tile + STAGE_TILES;
        if (next < end) stage_x<GROUPS>(staged[stage ^ 1], p, next * TILE_COLS, end_col);
        if (has_rows) {
            const uint4 *x = staged[stage];
            // Beyond the end, x is 0 and weights are those of some tile: finite, so nothing is added.
#pragma unroll 1
            for (const u32 stop = least(next, end); tile < stop; tile += AHEAD) {
#pragma unroll
                for (u32 i = 0; i < AHEAD; i++) {
                    multiply_tile<GROUPS>(sums, ahead[i], x, scales);
                    ahead[i] = load_tile(tiles, least(tile + AHEAD + i, across - 1));
                    x += 2 * LANES * GROUPS;
                }
            }
        }
        tile = next;
    }
    if (!has_rows) return;
    if (n_parts == 1) {
        finish<GROUPS>(p, row_tile, 0, ends, sums);
        return;
    }
    float4 *out = pointer<float4>(parts) + ((u64)part * n_row_tiles + row_tile) * (GROUPS * LANES) + lane_id();
#pragma unroll
    for (u32 i = 0; i < GROUPS; i++) out[i * LANES] = make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
}

// Bounds of 2 blocks a multiprocessor let a thread have 128 registers; with none, fewer are used and some are spilt.
#define LINEAR(name, groups, ahead)                                                                               \
    KERNEL __launch_bounds__(BLOCK_THREADS, 2)                                                                    \
    name(u64 x, u64 tiles, u64 starts, u64 patches, u64 bias, u64 y, u32 n_rows, u32 n_cols, u32 base,            \
         u32 n_batch, u32 n_parts, u32 part_tiles, u64 parts) {                                                   \
        const Product p = {x, y, bias, tiles, starts, patches, n_rows, n_cols, base, n_batch};                    \
        linear<groups, ahead>(p, n_parts, part_tiles, parts);                                                     \
    }

LINEAR(linear_8, 1, 2)
LINEAR(linear_16, 2, 2)
LINEAR(linear_32, 4, 1)
LINEAR(linear_64, 8, 1)

// The sum of all parts, in order. A warp a tile of rows and 8 rows of x.
KERNEL __launch_bounds__(BLOCK_THREADS, 2)
add_parts(u64 x, u64 tiles, u64 starts, u64 patches, u64 bias, u64 y, u32 n_rows, u32 n_cols, u32 base, u32 n_batch, u32 n_parts,
          u32 groups, u64 parts) {
    const Product p = {x, y, bias, tiles, starts, patches, n_rows, n_cols, base, n_batch};
    const u32 n_row_tiles = ceil_div(n_rows, TILE_ROWS);
    const u64 n_warps = (u64)n_row_tiles * groups, warp = (u64)blockIdx.x * BLOCK_WARPS + warp_id();
    if (warp >= n_warps) return;
    const u32 row_tile = (u32)(warp / groups);
    const Ends ends = load_ends(p, row_tile);
    const float4 *at = pointer<const float4>(parts) + warp * LANES + lane_id();
    float sums[1][4] = {};
    for (u32 i = 0; i < n_parts; i++) {
        const float4 part = at[i * n_warps * LANES];
        sums[0][0] += part.x;
        sums[0][1] += part.y;
        sums[0][2] += part.z;
        sums[0][3] += part.w;
    }
    finish<1>(p, row_tile, (u32)(warp % groups), ends, sums);
}
