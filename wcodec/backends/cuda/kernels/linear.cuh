// y = (x W^T) scale + bias, with W an operand (operand.cuh); x, y and bias are bf16 or fp16, x and
// y row by row; scale is fp32, one for each row of W; sums are fp32.
//
// A warp has 16 rows of W and goes along their tiles, which are read once, straight to registers,
// some tiles ahead. x is in shared memory, some columns at a time, while the next are on their way.
// Where W has few rows, its columns are split: into slices among the 8 warps of a block, whose sums
// are added through shared memory, and into parts among blocks, whose sums go to memory, where
// `add_parts` adds them. Both are added in order: a result depends on the numbers of slices and
// parts, and on nothing else that could differ from run to run.
#include "operand.cuh"

enum { ROW_TILE = 2 * BAND_ROWS };

struct Product {
    u64 x, y, bias, scale;  // bias, scale: or 0
    u32 n_rows, n_cols;     // of W
    u32 n_batch;            // rows of x
};

template <u32 GROUPS>
using Sums = float[GROUPS][4];  // with groups of 8 rows of x

// ---- the end of a sum ---------------------------------------------------------------------------
template <class Float>
DEVICE float load_bias(const Product &p, u32 row) {
    return p.bias ? Float::to_float(pointer<const u16>(p.bias)[row]) : -0.0f;
}
DEVICE float load_scale(const Product &p, u32 row) {
    return p.scale ? pointer<const float>(p.scale)[row] : 1.0f;
}

// The first row of x of a lane's sums with a group.
DEVICE u32 first_batch(u32 group) { return 8 * group + 2 * (lane_id() & 3u); }

// Scale, add the bias, round, store: a lane's sums of products with groups of 8 rows of x,
// from `first` on.
template <class Float, u32 GROUPS>
DEVICE void finish(const Product &p, u32 row_tile, u32 first, const Sums<GROUPS> &sums) {
    const u32 batch = first_batch(first), row = row_tile * ROW_TILE + (lane_id() >> 2);
#pragma unroll
    for (u32 lower = 0; lower < 2; lower++) {
        const u32 own = row + 8 * lower;
        if (own >= p.n_rows) continue;
        const float scale = load_scale(p, own), bias = load_bias<Float>(p, own);
#pragma unroll
        for (u32 k = 0; k < 2 * GROUPS; k++) {
            const u32 of_batch = batch + k / 2 * 8 + k % 2;
            if (of_batch < p.n_batch)
                pointer<u16>(p.y)[(u64)of_batch * p.n_rows + own] =
                    (u16)Float::nearest(sums[k / 2][2 * lower + k % 2] * scale + bias);
        }
    }
}

// ---- x in shared memory -------------------------------------------------------------------------
// How columns and rows of x are cut.
struct Split {
    u32 n_parts, part_tiles;      // among blocks; tiles of a part but for the last
    // of a part, among warps: 1 << slice_bits slices, one after another
    u32 slice_bits, slice_tiles;
    u32 row_bits;                 // 1 << row_bits rows of x are in shared memory
};

// A block's part, in tiles.
struct Part {
    u32 first, end;
};

DEVICE u32 slice_first(const Split &s, const Part &part, u32 slice) {
    return part.first + slice * s.slice_tiles;
}
DEVICE u32 slice_end(const Split &s, const Part &part, u32 slice) {
    return least(part.end, slice_first(s, part, slice) + s.slice_tiles);
}

template <u32 N>
constexpr u32 LOG_2 = 1 + LOG_2<N / 2>;
template <>
constexpr u32 LOG_2<1> = 0;

// Of VECTORS in shared memory, each slice has as many:
// for each tile, its columns of all rows, row by row. So many tiles:
template <u32 VECTORS>
DEVICE u32 stage_tiles(const Split &s) { return VECTORS >> (s.slice_bits + s.row_bits + 2); }

DEVICE u32 load_x(const Product &p, u32 row, u32 col) {
    return pointer<const u16>(p.x)[(u64)row * p.n_cols + col];
}

// Eight columns of a row of x from `col` on, with zeros from `end` on.
DEVICE uint4 gather_x(const Product &p, u32 row, u32 col, u32 end) {
    u32 words[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        words[i] = 0;
        if (row < p.n_batch && col + 2 * i < end) words[i] = load_x(p, row, col + 2 * i);
        if (row < p.n_batch && col + 2 * i + 1 < end)
            words[i] |= load_x(p, row, col + 2 * i + 1) << 16;
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// The stage that begins `done` tiles after the start of each slice;
// zeros after the end of each, and where x has no row.
template <u32 VECTORS>
DEVICE void stage_x(uint4 *stage, const Product &p, const Split &split, const Part &part,
                    u32 done) {
    const u32 bits = LOG_2<VECTORS> - split.slice_bits,
              row = threadIdx.x / 4 & ((1u << split.row_bits) - 1);
    // 64 threads on, the rows are the same again: there are no more than 64
    const u64 from = p.x + 2 * (u64)row * p.n_cols;
    const bool together = p.x % 16 == 0 && p.n_cols % 8 == 0;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < VECTORS; i += BLOCK_THREADS) {
        const u32 slice = i >> bits;
        const u32 tile = slice_first(split, part, slice) + done +
                         ((i & ((1u << bits) - 1)) >> (split.row_bits + 2));
        const u32 col = tile * TILE_COLS + i % 4 * 8,
                  end = least(p.n_cols, slice_end(split, part, slice) * TILE_COLS);
        if (together) {
            const bool wanted = row < p.n_batch && col < end;
            copy_vector(stage + i, pointer<const uint4>(wanted ? from + 2 * (u64)col : p.x),
                        wanted);
        } else {
            stage[i] = gather_x(p, row, col, end);
        }
    }
}

// ---- where tiles come from ----------------------------------------------------------------------
// The segments of two bands that are multiplied. Tiles are numbered along the whole matrix.
struct Current {
    u32 base[2];
    Patches patches[2];
    u32 due;  // the tile that has the next patch
};

// the first tile of its segment
DEVICE u32 segment_first(u32 tile) { return tile / SEGMENT_TILES * SEGMENT_TILES; }
// in the segment
DEVICE u32 first_element(const Band &band, u32 tile) {
    return tile % SEGMENT_TILES * tile_words(band);
}

DEVICE u32 tile_of_patch(const Patches &patches, const Band &band, u32 first) {
    const u32 element = element_of(patches);
    return element == NEVER ? (u32)NEVER : first + element / tile_words(band);
}

// `tile` is any of the segment.
DEVICE void await_patches(Current &current, const Band (&bands)[2], u32 tile) {
    const u32 first = segment_first(tile);
    const u32 due[2] = {tile_of_patch(current.patches[0], bands[0], first),
                        tile_of_patch(current.patches[1], bands[1], first)};
    // so that the compiler knows that it is the same in all lanes
    current.due = __shfl_sync(ALL_LANES, least(due[0], due[1]), 0);
}

template <class Weights>
DEVICE void enter_segment(Current &current, const Band (&bands)[2], const Record (&records)[2],
                          u32 tile) {
#pragma unroll
    for (u32 b = 0; b < 2; b++) {
        current.base[b] = base_of(records[b]);
        if constexpr (Weights::HAS_PATCHES)
            current.patches[b] = patches_of(bands[b], records[b], first_element(bands[b], tile));
    }
    if constexpr (Weights::HAS_PATCHES) await_patches(current, bands, tile);
}

// Raw planes: rounds of COUNT tiles are loaded while the round before is multiplied. A segment is a
// number of whole rounds; what is left behind the last one, and all tiles of bands that are cut
// off, are loaded one by one.
template <class Weights, u32 COUNT>
struct RawTiles {
    enum { AHEAD = COUNT, HAS_REST = 1, TILE_NBYTES = 16 * BAND_ROWS };  // nbytes: of plane 0
    Piece<Weights> pieces[COUNT][2];
    Place<Weights> places[2];  // of the round that is loaded next
    u32 end;                   // after the last whole round; 0 if there is none
    bool more;                 // whether there is a round to be loaded
};

template <class Weights, u32 COUNT>
DEVICE void load_tile(RawTiles<Weights, COUNT> &tiles, u32 i) {
#pragma unroll
    for (u32 b = 0; b < 2; b++)
        tiles.pieces[i][b] = load_piece(tiles.places[b], i * tiles.TILE_NBYTES, true);
}

// `round` is the first tile of the next round to be loaded.
template <class Weights, u32 COUNT>
DEVICE void prepare_round(RawTiles<Weights, COUNT> &tiles, const Band (&bands)[2], u32 round) {
    tiles.more = round < tiles.end;
    if (tiles.more && round % SEGMENT_TILES == 0) {
#pragma unroll
        for (u32 b = 0; b < 2; b++)
            tiles.places[b] =
                place_of<Weights>(bands[b], record_of(bands[b], round / SEGMENT_TILES), 0);
    } else {
#pragma unroll
        for (u32 b = 0; b < 2; b++) advance(tiles.places[b], COUNT * tiles.TILE_NBYTES);
    }
}

template <class Weights, u32 COUNT>
DEVICE void start(RawTiles<Weights, COUNT> &tiles, const Band (&bands)[2], u32 first, u32 end) {
    const bool full =
        bands[0].height == BAND_ROWS && bands[1].height == BAND_ROWS && first + COUNT <= end;
    tiles.end = full ? end - (end - first) % COUNT : 0;
    if (!full) return;
#pragma unroll
    for (u32 b = 0; b < 2; b++)
        tiles.places[b] = place_of<Weights>(bands[b], record_of(bands[b], first / SEGMENT_TILES),
                                            first % SEGMENT_TILES);
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) load_tile(tiles, i);
}

template <class Weights, u32 COUNT>
DEVICE void enter(RawTiles<Weights, COUNT> &, const Band (&)[2], const Record (&)[2], u32) {}

// The i-th tile of a round.
template <class Weights, u32 COUNT>
DEVICE void take_tile(RawTiles<Weights, COUNT> &tiles, u32 i, const u32 (&base)[2],
                      Eight<Weights> (&words)[2]) {
#pragma unroll
    for (u32 b = 0; b < 2; b++) words[b] = merge_piece<Weights>(tiles.pieces[i][b], base[b]);
    if (tiles.more) load_tile(tiles, i);
}

// Plane 0 is a stream of symbols in some segments, or all.
// Parts are whole segments, a round is a tile.
template <class Weights>
struct CodedTiles {
    enum { AHEAD = 1, HAS_REST = 0 };
    Coder coder;
    uint4 *buffer;  // of the warp, for two streams
    Stream streams[2];
    bool coded[2];
    Piece<Weights> pieces[1][2];
    Place<Weights> places[2];
    u32 step[2];    // bytes of a tile of plane 0
    u32 left, end;  // whole tiles of the segment that are not loaded yet; of the matrix
};

template <class Weights>
DEVICE void load_tile(CodedTiles<Weights> &tiles) {
    if (tiles.left == 0) return;
#pragma unroll
    for (u32 b = 0; b < 2; b++) {
        tiles.pieces[0][b] = load_piece(tiles.places[b], 0, !tiles.coded[b]);
        advance(tiles.places[b], tiles.step[b]);
    }
    --tiles.left;
}

template <class Weights>
DEVICE void start(CodedTiles<Weights> &tiles, const Band (&bands)[2], u32, u32 end) {
    tiles.end = end;
    tiles.step[0] = tile_words(bands[0]) / 2, tiles.step[1] = tile_words(bands[1]) / 2;
}

template <class Weights>
DEVICE void prepare_round(CodedTiles<Weights> &, const Band (&)[2], u32) {}

template <class Weights>
DEVICE void enter(CodedTiles<Weights> &tiles, const Band (&bands)[2], const Record (&records)[2],
                  u32 tile) {
    tiles.left = least(tiles.end, tile + SEGMENT_TILES) - least(tiles.end, tile);
    __syncwarp();  // all lanes are done with the buffer
#pragma unroll
    for (u32 b = 0; b < 2; b++) {
        tiles.coded[b] = is_coded(records[b]);
        tiles.places[b] = place_of<Weights>(bands[b], records[b], 0);
        if (tiles.coded[b])
            tiles.streams[b] = stream_of(bands[b], records[b], tiles.buffer + b * BUFFER_UNITS);
    }
    load_tile(tiles);
}

template <class Weights>
DEVICE void take_tile(CodedTiles<Weights> &tiles, u32, const u32 (&base)[2],
                      Eight<Weights> (&words)[2]) {
    Piece<Weights> pieces[2] = {tiles.pieces[0][0], tiles.pieces[0][1]};
    load_tile(tiles);
    if (tiles.coded[0] && tiles.coded[1]) {
        decode_two(tiles.streams[0], tiles.streams[1], tiles.coder, pieces[0].codes,
                   pieces[1].codes);
    } else {
#pragma unroll
        for (u32 b = 0; b < 2; b++) {
            if (!tiles.coded[b]) continue;
            refill(tiles.streams[b]);
            pieces[b].codes = decode_group(tiles.streams[b], tiles.coder);
        }
    }
#pragma unroll
    for (u32 b = 0; b < 2; b++) words[b] = merge_piece<Weights>(pieces[b], base[b]);
}

// ---- products -----------------------------------------------------------------------------------
// Words of two bands times 32 columns of x, of which `x` is the lane's vector for the first group.
// If fewer than 8 rows are there, lanes take others again: columns of products that nobody stores.
template <class Weights, class Float, u32 GROUPS>
DEVICE void multiply_words(Sums<GROUPS> &sums, const Eight<Weights> (&words)[2], const uint4 *x) {
    u32 upper[4], lower[4];
    Weights::widen(Float(), upper, words[0].data);
    Weights::widen(Float(), lower, words[1].data);
#pragma unroll
    for (u32 group = 0; group < GROUPS; group++) {
        const uint4 eight = x[group * LANES];
        multiply(Float(), sums[group], {upper[0], lower[0], upper[1], lower[1]},
                 {eight.x, eight.y});
        multiply(Float(), sums[group], {upper[2], lower[2], upper[3], lower[3]},
                 {eight.z, eight.w});
    }
}

// Of a whole tile.
template <class Weights>
DEVICE void patch_tile(Eight<Weights> (&words)[2], Current &current, const Band (&bands)[2],
                       u32 tile) {
    if constexpr (Weights::HAS_PATCHES) {
        if (current.due > tile) return;
#pragma unroll
        for (u32 b = 0; b < 2; b++)
            apply_patches(current.patches[b], bands[b], first_element(bands[b], tile), TILE_COLS,
                          words[b].data);
        await_patches(current, bands, tile);
    }
}

// A whole tile that was not loaded ahead.
template <class Weights, class Float, u32 GROUPS>
DEVICE void multiply_tile(Sums<GROUPS> &sums, Current &current, const Band (&bands)[2], u32 tile,
                          const uint4 *x) {
    Eight<Weights> words[2];
#pragma unroll
    for (u32 b = 0; b < 2; b++) {
        const Record record = record_of(bands[b], tile / SEGMENT_TILES);
        words[b] = merge_piece<Weights>(
            load_piece(place_of<Weights>(bands[b], record, tile % SEGMENT_TILES), 0, true),
            current.base[b]);
    }
    patch_tile<Weights>(words, current, bands, tile);
    multiply_words<Weights, Float, GROUPS>(sums, words, x);
}

// The tile at the right edge, which has `width` columns.
template <class Weights, class Float, u32 GROUPS>
DEVICE void multiply_edge(Sums<GROUPS> &sums, u32 width, Current &current, const Band (&bands)[2],
                          u32 tile, const uint4 *x) {
    Eight<Weights> words[2];
#pragma unroll
    for (u32 b = 0; b < 2; b++) {
        const Record record = record_of(bands[b], tile / SEGMENT_TILES);
        words[b] = gather_words<Weights>(bands[b], record, first_element(bands[b], tile), width,
                                         current.patches[b]);
    }
    multiply_words<Weights, Float, GROUPS>(sums, words, x);
}

// The sums of slices, added by the warp of the first one.
template <u32 GROUPS>
DEVICE void add_slices(Sums<GROUPS> &sums, float4 *shared, u32 warp, u32 bits) {
    const u32 slice = warp & ((1u << bits) - 1), n = (1u << bits) - 1;  // n: of those that write
    float4 *own = shared + (warp >> bits) * n * (GROUPS * LANES) + lane_id();
    __syncthreads();  // nobody is at x any more
    if (slice > 0) {
#pragma unroll
        for (u32 i = 0; i < GROUPS; i++)
            own[((slice - 1) * GROUPS + i) * LANES] =
                make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
    }
    __syncthreads();
    if (slice > 0) return;
#pragma unroll 1
    for (u32 k = 0; k < n; k++) {
#pragma unroll
        for (u32 i = 0; i < GROUPS; i++) {
            const float4 other = own[(k * GROUPS + i) * LANES];
            sums[i][0] += other.x;
            sums[i][1] += other.y;
            sums[i][2] += other.z;
            sums[i][3] += other.w;
        }
    }
}

// The block's rows of W, and one part of its columns.
// Sums go to y, or to `parts` if there are several.
template <class Weights, class Float, u32 GROUPS, u32 VECTORS, class Tiles>
DEVICE void linear(const Operand &operand, const Product &p, Tiles &tiles, Split split, u64 parts) {
    __shared__ uint4 staged[2][VECTORS];
    if (GROUPS > 1) split.row_bits = 3 + LOG_2<GROUPS>;  // a constant
    if (GROUPS == 8) split.slice_bits = 0;
    const u32 n_row_tiles = ceil_div(p.n_rows, ROW_TILE), n_tiles = ceil_div(p.n_cols, TILE_COLS);
    const u32 warp = uniform_warp_id(), slice = warp & ((1u << split.slice_bits) - 1),
              number = blockIdx.x % split.n_parts;
    const u32 row_tile =
        blockIdx.x / split.n_parts * (BLOCK_WARPS >> split.slice_bits) + (warp >> split.slice_bits);
    const Part part = {number * split.part_tiles, least(n_tiles, (number + 1) * split.part_tiles)};
    const u32 first = slice_first(split, part, slice), end = slice_end(split, part, slice);
    // all but the last tile are whole
    const u32 whole = least(end, tiles_of(p.n_cols)), edge_width = p.n_cols % TILE_COLS;
    const u32 width = stage_tiles<VECTORS>(split),
              tile_vectors = GROUPS == 1 ? 4u << split.row_bits : (u32)(LANES * GROUPS);
    const bool has_work = row_tile < n_row_tiles && first < end;
    const Band bands[2] = {band_of(operand, 2 * row_tile), band_of(operand, 2 * row_tile + 1)};
    // the lane's vector of a tile
    const u32 own = ((lane_id() / 4 & ((1u << split.row_bits) - 1)) * 4 + lane_id() % 4);

    if (has_work) start(tiles, bands, first, whole);
    stage_x<VECTORS>(staged[0], p, split, part, 0);
    Current current = {};
    Sums<GROUPS> sums = {};
    u32 stage = 0;
#pragma unroll 1
    for (u32 done = 0; done < split.slice_tiles; done += width, stage ^= 1) {
        await_copies();
        __syncthreads();  // this stage is there, and nobody is at the other one any more
        if (done + width < split.slice_tiles)
            stage_x<VECTORS>(staged[stage ^ 1], p, split, part, done + width);
        if (!has_work) continue;
        const uint4 *x = staged[stage] + slice * (VECTORS >> split.slice_bits) + own;
        const u32 next = least(end, first + done + width);
#pragma unroll 1
        for (u32 tile = first + done; tile < next;) {  // segment by segment
            if (tile == first || tile % SEGMENT_TILES == 0) {
                const Record records[2] = {record_of(bands[0], tile / SEGMENT_TILES),
                                           record_of(bands[1], tile / SEGMENT_TILES)};
                enter_segment<Weights>(current, bands, records, tile);
                enter(tiles, bands, records, tile);
            }
            const u32 until = least(next, segment_first(tile) + SEGMENT_TILES);
            constexpr u32 AHEAD = Tiles::AHEAD;
#pragma unroll 1
            for (const u32 stop = least(until, tiles.end); tile < stop; tile += AHEAD) {
                prepare_round(tiles, bands, tile + AHEAD);
#pragma unroll
                for (u32 i = 0; i < AHEAD; i++) {
                    Eight<Weights> words[2];
                    take_tile(tiles, i, current.base, words);
                    patch_tile<Weights>(words, current, bands, tile + i);
                    multiply_words<Weights, Float, GROUPS>(sums, words, x);
                    x += tile_vectors;
                }
            }
#pragma unroll 1
            for (const u32 stop = least(until, whole); Tiles::HAS_REST && tile < stop;
                 tile++, x += tile_vectors)
                multiply_tile<Weights, Float, GROUPS>(sums, current, bands, tile, x);
            if (tile < until) {
                multiply_edge<Weights, Float, GROUPS>(sums, edge_width, current, bands, tile, x);
                tile++;
            }
        }
    }
    if (split.slice_bits) {
        add_slices<GROUPS>(sums, (float4 *)staged[0], warp, split.slice_bits);
        if (slice > 0) return;
    }
    if (row_tile >= n_row_tiles) return;
    if (split.n_parts == 1) {
        finish<Float, GROUPS>(p, row_tile, 0, sums);
        return;
    }
    float4 *out = pointer<float4>(parts) +
                  ((u64)number * n_row_tiles + row_tile) * (GROUPS * LANES) + lane_id();
#pragma unroll
    for (u32 i = 0; i < GROUPS; i++)
        if (first_batch(i) < p.n_batch)
            out[i * LANES] = make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
}

template <class Weights, class Float, u32 GROUPS, u32 VECTORS, u32 AHEAD>
DEVICE void linear_raw(const Operand &operand, const Product &p, const Split &split, u64 parts) {
    RawTiles<Weights, AHEAD> tiles;
    linear<Weights, Float, GROUPS, VECTORS>(operand, p, tiles, split, parts);
}

template <class Weights, class Float, u32 GROUPS>
DEVICE void linear_coded(const Operand &operand, const Product &p, const Split &split, u64 parts) {
    __shared__ uint4 lut[LUT_UNITS], words[BLOCK_WARPS][2 * BUFFER_UNITS];
    load_lut(lut, pointer<const u32>(operand.luts), 0);
    CodedTiles<Weights> tiles = {};
    tiles.coder = coder_of(lut, operand.prob_bits);
    tiles.buffer = words[uniform_warp_id()];
    linear<Weights, Float, GROUPS, BLOCK_THREADS>(operand, p, tiles, split, parts);
}

// Blocks that registers of a multiprocessor shall suffice for: two, or one with more loads under
// way. From sm_100 on, the compiler wants more registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
enum { BLOCKS_32 = 1 };
#else
enum { BLOCKS_32 = 2 };
#endif

// A source defines WEIGHTS and FLOAT, and names its kernels.
#define LINEAR(name, blocks, call)                                                                 \
    KERNEL __launch_bounds__(BLOCK_THREADS, blocks)                                                \
        name(u64 payload, u64 records, u64 luts, u32 n_rows, u32 n_cols, u32 prob_bits, u64 x,     \
             u64 y, u64 bias, u64 scale, u32 n_batch, u32 n_parts, u32 part_tiles, u32 slice_bits, \
             u32 slice_tiles, u32 row_bits, u64 parts) {                                           \
        const Operand operand = {payload, records, luts, n_rows, n_cols, prob_bits};               \
        const Product p = {x, y, bias, scale, n_rows, n_cols, n_batch};                            \
        call(operand, p, {n_parts, part_tiles, slice_bits, slice_tiles, row_bits}, parts);         \
    }

#define LINEARS(raw_8, raw_16, raw_32, raw_64, coded_8, coded_16, coded_32, coded_64)  \
    LINEAR(raw_8, 2, (linear_raw<WEIGHTS, FLOAT, 1, 1024, 4>))                         \
    LINEAR(raw_16, 2, (linear_raw<WEIGHTS, FLOAT, 2, 1024, 4>))                        \
    LINEAR(raw_32, BLOCKS_32, (linear_raw<WEIGHTS, FLOAT, 4, 1024, 2>))                \
    LINEAR(raw_64, 1, (linear_raw<WEIGHTS, FLOAT, 8, 1024, 4>))                        \
    LINEAR(coded_8, 2, (linear_coded<WEIGHTS, FLOAT, 1>))                              \
    LINEAR(coded_16, 2, (linear_coded<WEIGHTS, FLOAT, 2>))                             \
    LINEAR(coded_32, 1, (linear_coded<WEIGHTS, FLOAT, 4>))                             \
    LINEAR(coded_64, 1, (linear_coded<WEIGHTS, FLOAT, 8>))
