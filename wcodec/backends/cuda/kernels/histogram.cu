// Counts of the symbols that segments would have: of byte planes, predicted or not, and of pairs
// (spec: chapters 5 and 7).
//
// Words are read 8 bytes a lane: a pack. A warp goes down a strip of the segment, 32 packs wide, a
// row at a time; what prediction needs of the row above stays in registers. Bytes of a pack are
// handled all at once in a u64.
#include "common.cuh"

enum { PACK = 8, BINS = 256 };

// Histograms that are counted in one pass over the segment. Each bin has copies side by side, which
// lanes take in turn: equal symbols of neighbouring lanes neither wait for each other nor meet in a
// bank.
enum { AT_ONCE = 4, COPIES = 8 };

// What a histogram counts: byte plane 0 to 7, or one of these.
enum { WINDOW_PAIRS = 16, HIGH_PAIRS = 17, LOW_PAIRS = 18 };

// What the caller wants: histograms of `which` planes, of `mode`; or of pairs, before those planes
// if words have more than a byte.
struct Request {
    const u32 *which;
    u32 n_which, mode;
    bool pairs;
};

struct Targets {
    u32 n, packed;  // packed: what is counted, a byte each
    u32 base, fill;  // of the window
    // pairs_in_rows: words 0 and 1 of each row are a pair, 2 and 3, and so on
    bool bytes, pairs, pairs_in_rows;
};

DEVICE u32 target(const Targets &targets, u32 i) { return targets.packed >> 8 * i & 255u; }

// The histograms of a request from `first`.
DEVICE Targets targets_of(const Request &request, const Segment &segment, u32 word_nbytes,
                          u32 first) {
    const u32 window = request.pairs && word_nbytes > 1,
              nibbles = request.pairs && word_nbytes == 1;
    const u32 n = least(AT_ONCE, request.n_which + window - first);
    Targets targets = {n, 0, segment.base, segment.fill & 15u, false, false, false};
    for (u32 i = 0; i < targets.n; i++) {
        const u32 k = first + i;
        const u32 what =
            k < window ? WINDOW_PAIRS : request.which[k - window] + (nibbles ? HIGH_PAIRS : 0);
        targets.packed |= what << 8 * i;
        targets.bytes |= what < WINDOW_PAIRS;
        targets.pairs |= what >= WINDOW_PAIRS;
    }
    return targets;
}

// ---- packs: the words that fit in 8 bytes -------------------------------------------------------
// The first n words from an address.
template <u32 NBYTES>
DEVICE u64 load_pack(u64 address, u32 n) {
    if (n == PACK / NBYTES && address % PACK == 0) return *pointer<const u64>(address);
    u64 pack = 0;
#pragma unroll
    for (u32 i = 0; i < PACK / NBYTES; i++)
        if (i < n) pack |= load_word(address + i * NBYTES, NBYTES) << 8 * NBYTES * i;
    return pack;
}

// ---- prediction (spec: chapter 7), byte by byte -------------------------------------------------
constexpr u64 TOP_BITS = 0x8080808080808080ull;

DEVICE u64 plus(u64 a, u64 b) { return ((a & ~TOP_BITS) + (b & ~TOP_BITS)) ^ ((a ^ b) & TOP_BITS); }
DEVICE u64 minus(u64 a, u64 b) {
    return ((a | TOP_BITS) - (b & ~TOP_BITS)) ^ (~(a ^ b) & TOP_BITS);
}
DEVICE u64 mean(u64 a, u64 b) { return (a & b) + ((a ^ b) >> 1 & ~TOP_BITS); }

DEVICE u64 predicted(u32 mode, u64 left, u64 top, u64 corner) {
    if (mode == MODE_LEFT) return left;
    if (mode == MODE_TOP) return top;
    if (mode == MODE_AVG) return mean(left, top);
    return minus(plus(left, top), corner);
}

// The words to the left of a pack's; `edge` is that of the first lane's first one.
template <u32 NBYTES>
DEVICE u64 left_of(u64 pack, u64 edge) {
    u64 before = __shfl_up_sync(ALL_LANES, (u32)(pack >> 32), 1);
    if (NBYTES == 8) before = before << 32 | __shfl_up_sync(ALL_LANES, (u32)pack, 1);
    else before >>= 32 - 8 * NBYTES % 64;
    if (lane_id() == 0) before = edge;
    return NBYTES == 8 ? before : pack << 8 * NBYTES % 64 | before;
}

// ---- counting -----------------------------------------------------------------------------------
DEVICE void count(u32 *bins, u32 symbol) { atomicAdd(bins + symbol * COPIES, 1u); }

// The bytes at multiples of STRIDE, the first n of them: all, unless a row ends here.
template <u32 STRIDE>
DEVICE void count_bytes(u32 *bins, u64 bytes, u32 n) {
    if (n == PACK / STRIDE) {
#pragma unroll
        for (u32 i = 0; i < PACK / STRIDE; i++) count(bins, (u32)(bytes >> 8 * STRIDE * i) & 255u);
        return;
    }
#pragma unroll 1
    for (u32 i = 0; i < n; i++) count(bins, (u32)(bytes >> 8 * STRIDE * i) & 255u);
}

DEVICE u32 window_code(u32 top, const Targets &targets) {
    const u32 code = (top - targets.base) & 255u;
    return code < 16 ? code : targets.fill;
}

// Symbols of the pairs of a pack, each in the lowest byte of its two words.
template <u32 NBYTES>
DEVICE u64 pairs_of(u64 pack, u32 kind, const Targets &targets) {
    if (kind == HIGH_PAIRS || kind == LOW_PAIRS) {
        const u64 codes = (kind == HIGH_PAIRS ? pack >> 4 : pack) & 0x0f0f0f0f0f0f0f0full;
        return codes | codes >> 4;
    }
    u64 symbols = 0;
#pragma unroll
    for (u32 i = 0; i < PACK / NBYTES; i++) {
        const u64 code = window_code((u32)(pack >> (8 * (NBYTES * (i + 1) - 1))) & 255u, targets);
        symbols |= code << (8 * NBYTES * (i & ~1u) + 4 * (i & 1u));
    }
    return symbols;
}

// Count a pack of mapped words, of which n are there; byte planes from `residuals`.
template <u32 NBYTES>
DEVICE void count_pack(u32 *bins, const Targets &targets, u64 pack, u64 residuals, u32 n) {
#pragma unroll 1
    for (u32 i = 0; i < targets.n; i++, bins += BINS * COPIES) {
        const u32 what = target(targets, i);
        if (what < NBYTES) {
            count_bytes<NBYTES>(bins, residuals >> 8 * (NBYTES - 1 - what), n);
        } else if constexpr (NBYTES < PACK) {
            if (targets.pairs_in_rows)
                count_bytes<2 * NBYTES>(bins, pairs_of<NBYTES>(pack, what, targets), n / 2);
        }
    }
}

// ---- by rows ------------------------------------------------------------------------------------
// The rows that are gone over: those of the segment,
// or pieces of it if its words lie together and their order is that.
struct Rows {
    u64 words, row_nbytes;
    u32 height, width, last_width;  // last_width: of the last row
};

template <u32 NBYTES>
DEVICE Rows rows_of(const Segment &segment, const Tensor &tensor, bool flat) {
    if (!flat)
        return {segment.words, tensor.cols * NBYTES, segment.height, segment.width, segment.width};
    const u32 width = LANES * PACK / NBYTES, n = segment.height * segment.width,
              height = ceil_div(n, width);
    return {segment.words, LANES * PACK, height, width, n - (height - 1) * width};
}

// A lane's part of a row, as it is in memory.
// Edge: the word left of the first lane's pack; only that lane has it.
struct Part {
    u64 pack, edge;
};

template <u32 NBYTES>
DEVICE Part load_part(u64 address, u32 n, bool with_edge) {
    return {load_pack<NBYTES>(address, n), with_edge ? load_word(address - NBYTES, NBYTES) : 0};
}

// Mask of the words of a pack that stand in the first column of a tile.
template <u32 NBYTES>
DEVICE u64 first_columns(u32 col, u32 tile_cols) {
    constexpr u64 WORD = ~0ull >> (64 - 8 * NBYTES);
    u64 mask = 0;
    u32 in_tile = col % tile_cols;
#pragma unroll
    for (u32 i = 0; i < PACK / NBYTES; i++) {
        if (in_tile == 0) mask |= WORD << 8 * NBYTES * i;
        if (++in_tile == tile_cols) in_tile = 0;
    }
    return mask;
}

// What predicts the rows of a strip, from the top down.
struct Predictor {
    u32 mode, row_in_tile, tile_rows;
    u64 first_columns, top, corner;  // top, corner: the row above, mapped, and what is left of it
};

// Residuals of a row, given as it is in memory and as it is mapped.
template <u32 NBYTES>
DEVICE u64 residuals_of(Predictor &predictor, const Part &part, u64 pack, const WordMap &map) {
    const u64 left = apply(map, left_of<NBYTES>(part.pack, part.edge)),
              first = predictor.first_columns;
    u64 prediction = left & ~first;
    if (predictor.row_in_tile != 0)
        prediction = (predicted(predictor.mode, left, predictor.top, predictor.corner) & ~first) |
                     (predictor.top & first);
    predictor.top = pack;
    predictor.corner = left;
    if (++predictor.row_in_tile == predictor.tile_rows) predictor.row_in_tile = 0;
    return minus(pack, prediction);
}

// A warp counts rows of a strip, from `row` to before `end`. Prediction starts a row above, unless
// a tile starts at `row`. Each row is loaded while the one before it is counted.
template <u32 NBYTES>
DEVICE void count_strip(u32 *bins, const Targets &targets, const Tensor &tensor, const WordMap &map,
                        const Rows &rows, u32 mode, u32 strip, u32 row, u32 end) {
    constexpr u32 COUNT = PACK / NBYTES;
    const u32 col = (strip * LANES + lane_id()) * COUNT;
    const u32 n_words = least(COUNT, most(rows.width, col) - col),
              n_last = least(COUNT, most(rows.last_width, col) - col);
    const bool with_edge = mode != MODE_NONE && strip > 0 && lane_id() == 0;
    Predictor predictor = {mode, 0, tensor.tile_rows, 0, 0, 0};
    u32 start = row;
    if (mode != MODE_NONE) {
        const u32 row_in_tile = row % tensor.tile_rows;
        start -= row_in_tile != 0;
        predictor.row_in_tile = row_in_tile - (row_in_tile != 0);
        predictor.first_columns = first_columns<NBYTES>(col, tensor.tile_cols);
    }
    u64 address = rows.words + start * rows.row_nbytes + (u64)col * NBYTES;
    u32 n_next = 0;
    Part next = {0, 0};
    for (u32 i = start; i <= end; i++) {
        const Part part = next;
        const u32 n = n_next;
        if (i < end) {
            n_next = i + 1 == rows.height ? n_last : n_words;
            next = load_part<NBYTES>(address, n_next, with_edge);
            address += rows.row_nbytes;
        }
        if (i == start) continue;
        const u64 pack = apply(map, part.pack);
        const u64 residuals =
            mode != MODE_NONE ? residuals_of<NBYTES>(predictor, part, pack, map) : pack;
        if (i > row) count_pack<NBYTES>(bins, targets, pack, residuals, n);
    }
}

// The block counts what does not depend on how rows follow one another.
// A warp takes a band of a strip at a time.
template <u32 NBYTES>
DEVICE void count_rows(u32 *bins, const Targets &targets, const Tensor &tensor, const WordMap &map,
                       const Rows &rows, u32 mode) {
    const u32 n_bands = least(rows.height, BLOCK_WARPS),
              n_strips = ceil_div(rows.width, LANES * PACK / NBYTES);
    for (u32 i = warp_id(); i < n_strips * n_bands; i += BLOCK_WARPS) {
        const u32 strip = i / n_bands, band = i % n_bands;
        const u32 row = band * rows.height / n_bands, end = (band + 1) * rows.height / n_bands;
        count_strip<NBYTES>(bins, targets, tensor, map, rows, mode, strip, row, end);
    }
}

// ---- pair by pair -------------------------------------------------------------------------------
struct Place {
    u32 row, col, right;  // in the segment; right: after the last column of the tile
};

DEVICE Place place_of(const Segment &segment, const Tensor &tensor, u32 element) {
    const u32 top = element / (tensor.tile_rows * segment.width) * tensor.tile_rows,
              in_band = element - top * segment.width;
    const u32 height = least(tensor.tile_rows, segment.height - top);
    const u32 left = in_band / (height * tensor.tile_cols) * tensor.tile_cols,
              in_tile = in_band - left * height;
    const u32 width = least(tensor.tile_cols, segment.width - left);
    return {top + in_tile / width, left + in_tile % width, left + width};
}

template <u32 NBYTES>
DEVICE u64 word_at(const Segment &segment, const Tensor &tensor, const Place &place) {
    return load_word(segment.words + (place.row * tensor.cols + place.col) * NBYTES, NBYTES);
}

// The block counts pairs of neighbours in element order, wherever they are, from element `first`.
template <u32 NBYTES>
DEVICE void count_pairs(u32 *bins, const Targets &targets, const Segment &segment,
                        const Tensor &tensor, const WordMap &map, u32 first) {
    const u32 n = segment.height * segment.width;
    for (u32 i = first + 2 * threadIdx.x; i < n; i += 2 * BLOCK_THREADS) {
        const Place place = place_of(segment, tensor, i);
        const bool alone = i + 1 == n;
        u64 pack = word_at<NBYTES>(segment, tensor, place);
        if (!alone) {
            const Place other = place.col + 1 < place.right ? Place{place.row, place.col + 1, 0}
                                                            : place_of(segment, tensor, i + 1);
            pack |= word_at<NBYTES>(segment, tensor, other) << 8 * NBYTES;
        }
        pack = apply(map, pack);
#pragma unroll 1
        for (u32 k = 0; k < targets.n; k++) {
            const u32 what = target(targets, k);
            if (what < WINDOW_PAIRS) continue;
            u32 symbol = (u32)pairs_of<NBYTES>(pack, what, targets) & 255u;
            if (alone) symbol = (symbol & 15u) | (what == LOW_PAIRS ? 0u : targets.fill) << 4;
            count(bins + k * BINS * COPIES, symbol);
        }
    }
}

// ---- kernel -------------------------------------------------------------------------------------
DEVICE void clear(uint4 *bins, u32 n) {
    for (u32 i = threadIdx.x; i < n * (BINS * COPIES / 4); i += BLOCK_THREADS)
        bins[i] = make_uint4(0, 0, 0, 0);
}

// A thread adds up the copies of a bin.
DEVICE void write(const uint4 *bins, u32 n, u32 *counts) {
    for (u32 i = 0; i < n; i++) {
        u32 sum = 0;
        for (u32 k = 0; k < COPIES / 4; k++) {
            const uint4 four = bins[(i * BINS + threadIdx.x) * (COPIES / 4) + k];
            sum += four.x + four.y + four.z + four.w;
        }
        counts[i * BINS + threadIdx.x] = sum;
    }
}

template <u32 NBYTES>
DEVICE void count_segment(uint4 *bins, const Segment &segment, const Tensor &tensor,
                          const Request &request, u32 *counts) {
    const u32 mode = request.pairs ? MODE_NONE : request.mode,
              n_histograms = request.n_which + (request.pairs && NBYTES > 1);
    const bool one_across = tensor.tile_cols >= segment.width;
    const bool together = segment.width == tensor.cols || segment.height == 1;
    const bool flat = mode == MODE_NONE && together && (one_across || !request.pairs);
    const bool even = segment.width % 2 == 0 && (one_across || tensor.tile_cols % 2 == 0);
    const WordMap map = map_of<NBYTES>(tensor);
    const Rows rows = rows_of<NBYTES>(segment, tensor, flat);
    u32 *own = reinterpret_cast<u32 *>(bins) + lane_id() % COPIES;
    counts += (u64)blockIdx.x * n_histograms * BINS;
    for (u32 first = 0; first < n_histograms; first += AT_ONCE) {
        Targets targets = targets_of(request, segment, NBYTES, first);
        targets.pairs_in_rows = targets.pairs && (flat || even);
        clear(bins, targets.n);
        __syncthreads();
        if (targets.bytes || targets.pairs_in_rows)
            count_rows<NBYTES>(own, targets, tensor, map, rows, mode);
        if constexpr (NBYTES < PACK) {
            const u32 n = segment.height * segment.width;
            if (targets.pairs)
                count_pairs<NBYTES>(own, targets, segment, tensor, map,
                                    targets.pairs_in_rows ? n & ~1u : 0);
        }
        __syncthreads();
        write(bins, targets.n, counts + first * BINS);
        __syncthreads();
    }
}

// A block counts a segment of the list. Counts: all of the first segment's histograms, of 256 bins
// each, then the next one's.
KERNEL __launch_bounds__(BLOCK_THREADS, 4)
    histograms(const Tensor *tensors, const Segment *segments, const u32 *list, const u32 *which,
               u32 n_which, u32 mode, u32 pairs, u32 *counts) {
    __shared__ uint4 bins[AT_ONCE * BINS * COPIES / 4];
    const Segment segment = segments[list[blockIdx.x]];
    const Tensor tensor = tensors[segment.tensor];
    const Request request = {which, n_which, mode, pairs != 0};
    if (tensor.word_nbytes == 1) count_segment<1>(bins, segment, tensor, request, counts);
    else if (tensor.word_nbytes == 2) count_segment<2>(bins, segment, tensor, request, counts);
    else if (tensor.word_nbytes == 4) count_segment<4>(bins, segment, tensor, request, counts);
    else count_segment<8>(bins, segment, tensor, request, counts);
}

// A block counts the bytes of the residuals of a plane of the list, in memory;
// counts are 256 for each.
KERNEL __launch_bounds__(BLOCK_THREADS)
    count_residuals(const Plane *planes, const u32 *list, u32 *counts) {
    __shared__ uint4 bins[BINS * COPIES / 4];
    const Plane &plane = planes[list[blockIdx.x]];
    const u32 n = plane.n_symbols;
    u32 *own = reinterpret_cast<u32 *>(bins) + lane_id() % COPIES;
    clear(bins, 1);
    __syncthreads();
    for (u32 i = threadIdx.x * PACK; i < n; i += BLOCK_THREADS * PACK)
        count_bytes<1>(own, *pointer<const u64>(plane.residuals + i), least(PACK, n - i));
    __syncthreads();
    write(bins, 1, counts + (u64)blockIdx.x * BINS);
}
