// From planes to segment records: encoding tables, rANS streams (spec: chapter 9), and the records
// put together (chapter 10).
#include "common.cuh"

enum { CHUNK_GROUPS = 4, CHUNK = CHUNK_GROUPS * GROUP, HEAD_WORDS = HEAD_NBYTES / 2 };

// What it takes to code a symbol. A state that is to be divided is below freq << (32 - prob_bits),
// so its product with the reciprocal is below 2^64, and the reciprocal's error, less than 1, adds
// less than 1 / freq to the quotient: it is exact.
struct alignas(16) Coder {
    u32 reciprocal_low, reciprocal_high;  // 2^(32 + prob_bits) / freq, rounded up; 0 if freq is 0
    u32 freq, start;                      // start: the sum of the frequencies before it
};

// ---- tables -------------------------------------------------------------------------------------
// A block makes the coders of a table, a thread each.
KERNEL __launch_bounds__(BLOCK_THREADS)
    build_coders(const Table *tables, u32 n_tables, Coder *coders) {
    __shared__ u32 warp_sums[BLOCK_WARPS];
    if (blockIdx.x >= n_tables) return;
    const Table &table = tables[blockIdx.x];
    const u32 freq = table.freq[threadIdx.x];
    u32 sum = freq;  // of the frequencies of this warp, up to this one
    for (u32 step = 1; step < LANES; step *= 2) {
        const u32 other = __shfl_up_sync(ALL_LANES, sum, step);
        if (lane_id() >= step) sum += other;
    }
    if (lane_id() == LANES - 1) warp_sums[warp_id()] = sum;
    __syncthreads();
    u32 start = sum - freq;
    for (u32 i = 0; i < warp_id(); i++) start += warp_sums[i];
    const u64 whole = 1ull << (32 + table.prob_bits);
    const u64 reciprocal = freq == 0 ? 0 : (whole + freq - 1) / freq;
    coders[blockIdx.x * BLOCK_THREADS + threadIdx.x] = {(u32)reciprocal, (u32)(reciprocal >> 32),
                                                        freq, start};
}

// ---- streams ------------------------------------------------------------------------------------
// Where a warp stands in its stream, which it writes from the end.
struct Stream {
    u16 *words;                // the scratch
    u32 position;              // of the word written last
    u32 at_or_above;           // mask of this lane and the lanes above it
    u32 prob_bits, prob_whole; // prob_whole: 1 << prob_bits
};

// A lane whose state would outgrow 32 bits sheds its low word first; the words of a step stand in
// the order of the lanes. Whatever the symbol, that is one word at most, for which the scratch has
// room.
DEVICE u32 code(Stream &stream, u32 state, const Coder &coder) {
    const bool sheds = state >> (32 - stream.prob_bits) >= coder.freq;
    const u32 shedding = __ballot_sync(ALL_LANES, sheds);
    if (sheds) {
        stream.words[stream.position - __popc(shedding & stream.at_or_above)] = (u16)state;
        state >>= 16;
    }
    stream.position -= __popc(shedding);
    const u32 quotient =
        (__umulhi(state, coder.reciprocal_low) + state * coder.reciprocal_high) >> stream.prob_bits;
    return state + coder.start + quotient * (stream.prob_whole - coder.freq);
}

// The four symbols from `at`; those after the last one are padding, of which `fill` holds four.
DEVICE u32 filled_up(u32 four, u32 at, u32 n_symbols, u32 fill) {
    if (at + 4 <= n_symbols) return four;
    const u32 there = at < n_symbols ? (1u << 8 * (n_symbols - at)) - 1u : 0;
    return (four & there) | (fill & ~there);
}

// The lane's 16 bytes of the chunk that starts at symbol `first`.
DEVICE uint4 load_symbols(u64 symbols, u32 first, u32 n_symbols, u32 fill) {
    const u32 at = first + UNIT * lane_id();
    if (at >= n_symbols) return make_uint4(fill, fill, fill, fill);
    const uint4 all = *pointer<const uint4>(symbols + at);
    if (at + UNIT <= n_symbols) return all;
    return make_uint4(
        filled_up(all.x, at, n_symbols, fill), filled_up(all.y, at + 4, n_symbols, fill),
        filled_up(all.z, at + 8, n_symbols, fill), filled_up(all.w, at + 12, n_symbols, fill));
}

// The coder of the symbol at `shift` of four: that of the table, or of the table of its class,
// whose first coder `firsts` has.
template <bool BY_CLASS>
DEVICE Coder coder_of(const Coder *__restrict__ coders, const u32 *firsts, u32 four, u32 classes,
                      u32 shift) {
    const u32 symbol = four >> shift & 255u;
    return BY_CLASS ? coders[firsts[classes >> shift & (MAX_CLASSES - 1u)] + symbol]
                    : coders[symbol];
}

// A warp codes the symbols of a plane; `staged` is its own. Symbols come by chunks, one ahead, 16
// bytes a lane, and are dealt out through shared memory, and so are classes: a lane codes four that
// follow one another of each group. Returns the bytes of the stream.
template <bool BY_CLASS>
DEVICE u32 encode_plane(const Plane &plane, const Table &table, const Coder *__restrict__ coders,
                        const u32 *firsts, u32 *staged) {
    const u64 symbols = plane.prediction != MODE_NONE ? plane.residuals : plane.symbols;
    const u32 n_symbols = plane.n_symbols, n_groups = ceil_div(n_symbols, GROUP),
              fill = (table.padding & 255u) * 0x01010101u;
    Stream stream = {pointer<u16>(plane.at), plane.nbytes / 2, ~lanes_below(), table.prob_bits,
                     1u << table.prob_bits};
    u32 state = STATE_LOW, chunk = ceil_div(n_groups, CHUNK_GROUPS);
    uint4 next = load_symbols(symbols, (chunk - 1) * CHUNK, n_symbols, fill),
          next_classes = make_uint4(0, 0, 0, 0);
    if (BY_CLASS) next_classes = load_symbols(plane.classes, (chunk - 1) * CHUNK, n_symbols, 0);
    while (chunk-- > 0) {
        __syncwarp();
        reinterpret_cast<uint4 *>(staged)[lane_id()] = next;
        if (BY_CLASS) reinterpret_cast<uint4 *>(staged)[LANES + lane_id()] = next_classes;
        __syncwarp();
        if (chunk > 0) next = load_symbols(symbols, (chunk - 1) * CHUNK, n_symbols, fill);
        if (BY_CLASS && chunk > 0)
            next_classes = load_symbols(plane.classes, (chunk - 1) * CHUNK, n_symbols, 0);
        for (u32 group = least(CHUNK_GROUPS, n_groups - chunk * CHUNK_GROUPS); group-- > 0;) {
            const u32 four = staged[group * LANES + lane_id()];
            const u32 classes = BY_CLASS ? staged[CHUNK / 4 + group * LANES + lane_id()] : 0;
            // all at once: states don't wait for them
            const Coder fourth = coder_of<BY_CLASS>(coders, firsts, four, classes, 24);
            const Coder third = coder_of<BY_CLASS>(coders, firsts, four, classes, 16);
            const Coder second = coder_of<BY_CLASS>(coders, firsts, four, classes, 8);
            const Coder first = coder_of<BY_CLASS>(coders, firsts, four, classes, 0);
            state = code(stream, state, fourth);
            state = code(stream, state, third);
            state = code(stream, state, second);
            state = code(stream, state, first);
        }
    }
    u16 *head = stream.words + stream.position - HEAD_WORDS;  // aligned to words only
    head[2 * lane_id()] = (u16)state;
    head[2 * lane_id() + 1] = (u16)(state >> 16);
    return plane.nbytes - 2 * (stream.position - HEAD_WORDS);
}

// A block codes a batch of planes, all with one table: a warp a plane at a time.
KERNEL __launch_bounds__(BLOCK_THREADS)
    encode_streams(const Table *tables, const Coder *coders, const Plane *planes,
                   const Batch *batches, const u32 *list, u32 *lengths) {
    __shared__ Coder shared_coders[BLOCK_THREADS];
    __shared__ uint4 staged[BLOCK_WARPS][LANES];
    const Batch batch = batches[blockIdx.x];
    shared_coders[threadIdx.x] = coders[(u64)batch.table * BLOCK_THREADS + threadIdx.x];
    __syncthreads();
    for (u32 i = warp_id(); i < batch.count; i += BLOCK_WARPS) {
        const u32 plane = list[batch.first + i];
        u32 *own = reinterpret_cast<u32 *>(staged[warp_id()]);
        const u32 nbytes =
            encode_plane<false>(planes[plane], tables[batch.table], shared_coders, nullptr, own);
        if (lane_id() == 0) lengths[plane] = nbytes;
    }
}

// The same for planes with a table for each class of contexts, all with one map:
// more tables than shared memory holds.
KERNEL __launch_bounds__(BLOCK_THREADS)
    encode_contexts(const Table *tables, const ContextMap *maps, const Coder *__restrict__ coders,
                    const Plane *planes, const Batch *batches, const u32 *list, u32 *lengths) {
    __shared__ u32 firsts[MAX_CLASSES];  // coder of each class
    __shared__ uint4 staged[BLOCK_WARPS][2 * LANES];
    const Batch batch = batches[blockIdx.x];
    const ContextMap &map = maps[batch.table];
    if (threadIdx.x < MAX_CLASSES) firsts[threadIdx.x] = map.tables[threadIdx.x] * BLOCK_THREADS;
    __syncthreads();
    for (u32 i = warp_id(); i < batch.count; i += BLOCK_WARPS) {
        const u32 plane = list[batch.first + i];
        u32 *own = reinterpret_cast<u32 *>(staged[warp_id()]);
        const u32 nbytes =
            encode_plane<true>(planes[plane], tables[map.tables[0]], coders, firsts, own);
        if (lane_id() == 0) lengths[plane] = nbytes;
    }
}

// ---- records ------------------------------------------------------------------------------------
// The 16 bytes from `shift` of the 32 of two units; shift is below 16.
DEVICE uint4 join(uint4 low, uint4 high, u32 shift) {
    u32 parts[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (u32 i = 0; i < 6; i++) parts[i] = shift & 8u ? parts[i + 2] : parts[i];
#pragma unroll
    for (u32 i = 0; i < 5; i++) parts[i] = shift & 4u ? parts[i + 1] : parts[i];
    const u32 bits = 8 * (shift & 3u);
    return make_uint4(
        __funnelshift_r(parts[0], parts[1], bits), __funnelshift_r(parts[1], parts[2], bits),
        __funnelshift_r(parts[2], parts[3], bits), __funnelshift_r(parts[3], parts[4], bits));
}

// A unit whose first n bytes are there: the others become 0.
DEVICE uint4 cut(uint4 unit, u32 n) {
    if (n >= UNIT) return unit;
    return make_uint4(filled_up(unit.x, 0, n, 0), filled_up(unit.y, 4, n, 0),
                      filled_up(unit.z, 8, n, 0), filled_up(unit.w, 12, n, 0));
}

// The block copies bytes to where a part of a record starts, and zeros after them; returns where
// the next part starts. Scratch consists of whole units: those that hold some of the bytes may be
// read.
DEVICE u64 put_scratch(u64 to, u64 from, u32 nbytes) {
    const u32 shift = from % UNIT, n_units = ceil_div(nbytes, UNIT),
              n_sources = ceil_div(shift + nbytes, UNIT);
    const uint4 *source = pointer<const uint4>(from - shift);
    for (u32 i = threadIdx.x; i < n_units; i += BLOCK_THREADS) {
        uint4 unit = source[i];
        if (shift != 0)
            unit = join(unit, i + 1 < n_sources ? source[i + 1] : make_uint4(0, 0, 0, 0), shift);
        pointer<uint4>(to)[i] = cut(unit, nbytes - i * UNIT);
    }
    return to + n_units * UNIT;
}

// As `put_scratch`; no byte beside those to copy is read.
DEVICE u64 put_bytes(u64 to, u64 from, u32 nbytes) {
    const u32 n_padded = ceil_div(nbytes, UNIT) * UNIT;
    for (u32 i = threadIdx.x; i < n_padded; i += BLOCK_THREADS)
        pointer<u8>(to)[i] = i < nbytes ? pointer<const u8>(from)[i] : 0;
    return to + n_padded;
}

// A unit of a segment's words, rows one after another, from word `first`.
DEVICE uint4 unit_of_words(const Segment &segment, const Tensor &tensor, u32 first) {
    const u32 nbytes = tensor.word_nbytes, n_words = segment.height * segment.width,
              row = first / segment.width;
    const u64 row_nbytes = tensor.cols * nbytes;
    u32 col = first - row * segment.width;
    u64 at = segment.words + row * row_nbytes + (u64)col * nbytes, halves[2] = {0, 0};
    if (at % UNIT == 0 && (segment.width - col) >= UNIT / nbytes) return *pointer<const uint4>(at);
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        for (u32 filled = 0; filled < 8 && first < n_words; filled += nbytes, first++) {
            halves[half] |= load_word(at, nbytes) << 8 * filled;
            at += nbytes;
            if (++col == segment.width) {
                col = 0;
                at += row_nbytes - (u64)segment.width * nbytes;
            }
        }
    }
    return make_uint4((u32)halves[0], (u32)(halves[0] >> 32), (u32)halves[1],
                      (u32)(halves[1] >> 32));
}

DEVICE void put_words(u64 to, const Segment &segment, const Tensor &tensor) {
    const u32 words = UNIT / tensor.word_nbytes,
              n_units = ceil_div(segment.height * segment.width, words);
    for (u32 i = threadIdx.x; i < n_units; i += BLOCK_THREADS)
        pointer<uint4>(to)[i] = unit_of_words(segment, tensor, i * words);
}

// A block writes the record of a segment (spec:
// R10.1), from what the kernels before have left in the scratch.
KERNEL __launch_bounds__(BLOCK_THREADS)
    assemble(const Tensor *__restrict__ tensors, const Segment *__restrict__ segments,
             const Plane *__restrict__ planes, const u32 *__restrict__ lengths,
             const u32 *__restrict__ n_patches, const u64 *__restrict__ records) {
    const Segment &segment = segments[blockIdx.x];
    const Tensor &tensor = tensors[segment.tensor];
    u64 to = records[blockIdx.x];
    if (segment.layout == LAYOUT_RAW) {
        put_words(to, segment, tensor);
        return;
    }
    const u32 n_planes =
        segment.layout == LAYOUT_PAIRS ? most(2, tensor.word_nbytes) : tensor.word_nbytes;
    u32 n_modes = 0;
    for (u32 i = 0; i < n_planes; i++)
        n_modes += planes[segment.plane + i].prediction == PER_TILE ? segment.n_tiles : 0;
    to = put_bytes(to, segment.modes, n_modes);
    to = put_bytes(to, segment.scales, segment.scales_nbytes);
    for (u32 i = 0; i < n_planes; i++) {
        const Plane &plane = planes[segment.plane + i];
        const bool coded = plane.coder == CODER_RANS || plane.coder == CODER_CONTEXT;
        const u32 length = coded ? lengths[segment.plane + i] : 0;
        if (coded) to = put_scratch(to, plane.at + plane.nbytes - length, length);
        if (plane.coder == CODER_RAW) to = put_scratch(to, plane.symbols, plane.n_symbols);
    }
    put_scratch(to, segment.patches, 4 * n_patches[blockIdx.x]);
}
