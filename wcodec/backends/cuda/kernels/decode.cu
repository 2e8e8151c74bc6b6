// Kernels that decode: tables, streams of symbols,
// and segments of the common kinds from payload to words in one go.
#include "merge.cuh"
#include "rans.cuh"

// ---- tables -------------------------------------------------------------------------------------
// luts[table * 4096 + slot] = freq << 20 | (slot - start) << 8 | symbol. Grid: a block a table.
KERNEL __launch_bounds__(BLOCK_THREADS) build_luts(const Table *tables, u32 n_tables, u32 *luts) {
    __shared__ u32 ends[256];  // of each symbol's slots
    if (blockIdx.x >= n_tables) return;
    const Table &table = tables[blockIdx.x];
    const u32 symbol = threadIdx.x;
    ends[symbol] = table.freq[symbol];
    __syncthreads();
    for (u32 distance = 1; distance < 256; distance *= 2) {
        const u32 before = symbol >= distance ? ends[symbol - distance] : 0;
        __syncthreads();
        ends[symbol] += before;
        __syncthreads();
    }
    for (u32 slot = threadIdx.x; slot < MAX_SLOTS; slot += BLOCK_THREADS) {
        u32 found = 0;  // symbols that end at or before the slot
        for (u32 half = 128; half > 0; half /= 2)
            found += ends[found + half - 1] <= slot ? half : 0;
        const u32 start = found > 0 ? ends[found - 1] : 0;
        const u32 entry = (ends[found] - start) << 20 | (slot - start) << 8 | found;
        luts[blockIdx.x * MAX_SLOTS + slot] = slot < 1u << table.prob_bits ? entry : 0;
    }
}

// ---- streams ------------------------------------------------------------------------------------
// Symbols of streams, into scratch. list: planes; those of a batch have one table.
// Grid: a block a batch.
KERNEL __launch_bounds__(BLOCK_THREADS, BLOCKS_ON_SM)
    decode_streams(const Table *tables, const u32 *luts, const Plane *planes, const Batch *batches,
                   const u32 *list, u32 *status) {
    __shared__ DecoderMemory memory;
    const Batch batch = batches[blockIdx.x];
    load_lut(memory.lut, luts, batch.table);
    const Coder coder = coder_of(memory.lut, tables[batch.table].prob_bits);
    const u32 warp = uniform_warp_id();
    for (u32 i = warp; i < batch.count; i += BLOCK_WARPS) {
        const Plane &plane = planes[list[batch.first + i]];
        Stream stream = open_stream(plane, memory.words[warp]);
        u32 *out = pointer<u32>(plane.symbols) + lane_id();
        u32 n_groups = ceil_div(plane.n_symbols, GROUP);
        for (; n_groups >= 2; n_groups -= 2, out += 2 * LANES) {
            refill(stream);
            out[0] = decode_group(stream, coder);
            out[LANES] = decode_group(stream, coder);
        }
        if (n_groups > 0) {
            refill(stream);
            *out = decode_group(stream, coder);
        }
        if (!ends_well(stream) && lane_id() == 0) atomicOr(&status[plane.segment], (u32)BAD_STREAM);
        __syncwarp();  // the buffer is free again
    }
}

// ---- words into the matrix ----------------------------------------------------------------------
// Where the words of a segment lie. Made anew for each use: registers are scarce.
struct Target {
    u64 words, pitch;    // address of the first word; bytes from row to row
    u32 width, n_words;  // of a row: GAPLESS if rows follow each other, or there is one
};

enum : u32 { GAPLESS = 0xffffffffu };

template <u32 NBYTES>
DEVICE Target target_of(const Segment &segment, const Tensor *tensors) {
    const u64 cols = tensors[segment.tensor].cols;
    Target target;
    target.words = segment.words;
    target.pitch = cols * NBYTES;
    target.width = segment.width == cols || segment.height == 1 ? (u32)GAPLESS : segment.width;
    target.n_words = segment.height * segment.width;
    return target;
}

DEVICE bool is_aligned(const Target &target, u32 nbytes) {
    return target.words % nbytes == 0 && (target.width == GAPLESS || target.pitch % nbytes == 0);
}

template <u32 NBYTES>
DEVICE u64 offset_of_word(const Target &target, u32 i) {
    return i / target.width * target.pitch + i % target.width * NBYTES;
}

// Exponents outside of the window, of 8 bits, after the sign. Those from the first bad patch on
// are not applied: no two lanes have the same word. Said to all lanes: whether all are as they
// should be.
template <u32 NBYTES>
DEVICE bool apply_patches(const Segment &segment, const Target &target) {
    const u32 shift = 8 * NBYTES - 9, *patches = pointer<const u32>(segment.patches);
    bool good = true;
    for (u32 first = 0; first < segment.n_patches && good; first += LANES) {
        const u32 i = first + lane_id();
        const bool own = i < segment.n_patches;
        const u32 patch = own ? patches[i] : 0, index = patch & 0xffffff;
        const bool ascends = !own || i == 0 || index > (patches[i - 1] & 0xffffff);
        good = __all_sync(ALL_LANES, ascends && index < target.n_words);
        if (good && own) {
            const u64 address = target.words + offset_of_word<NBYTES>(target, index);
            store_word(address, NBYTES,
                       (load_word(address, NBYTES) & ~(0xffu << shift)) | patch >> 24 << shift);
        }
    }
    return good;
}

// ---- segments -----------------------------------------------------------------------------------
// What a warp works with on a segment. `raw` holds, of each lower plane,
// the address of the lane's bytes of the next group.
template <u32 NBYTES, bool PAIRS>
struct Decoder {
    const Segment *segment;
    const Tensor *tensors;
    Coder coder;
    Stream stream;
    Unmap unmap;
    u32 base;
    u64 raw[Shape<NBYTES, PAIRS>::N_RAW + 1];
};

// The lane's bytes of the group that is `ahead` of the next.
template <u32 NBYTES, bool PAIRS>
DEVICE Lower<NBYTES, PAIRS> load_lower(const Decoder<NBYTES, PAIRS> &decoder, u32 ahead) {
    typedef Shape<NBYTES, PAIRS> S;
    Lower<NBYTES, PAIRS> lower = {};
    for (u32 p = 0; p < S::N_RAW; p++) {
        const u64 at = decoder.raw[p] + ahead * LANES * S::RAW_NBYTES;
        if constexpr (S::RAW_NBYTES == 8) {
            const uint2 both = *pointer<const uint2>(at);
            lower.data[2 * p] = both.x, lower.data[2 * p + 1] = both.y;
        } else {
            lower.data[p] = *pointer<const u32>(at);
        }
    }
    return lower;
}

template <u32 NBYTES, bool PAIRS>
DEVICE void skip_lower(Decoder<NBYTES, PAIRS> &decoder, u32 n_groups) {
    typedef Shape<NBYTES, PAIRS> S;
    for (u32 p = 0; p < S::N_RAW; p++) decoder.raw[p] += n_groups * LANES * S::RAW_NBYTES;
}

template <u32 NBYTES, bool PAIRS>
DEVICE Words<NBYTES, PAIRS> decode_words(Decoder<NBYTES, PAIRS> &decoder,
                                         const Lower<NBYTES, PAIRS> &lower) {
    const u32 symbols = decode_group(decoder.stream, decoder.coder);
    return merge<NBYTES, PAIRS>(symbols, lower, decoder.base, decoder.unmap);
}

// Pairs of whole groups, where the lanes' places in the matrix are aligned and move by as much from
// each pair to the next.
struct Strides {
    u64 at;            // the lane's first word
    u32 second, next;  // bytes from there to that of a pair's second group, and from pair to pair
    u32 n_pairs;       // 0 if it is not like that
};

template <u32 NBYTES, bool PAIRS>
DEVICE Strides strides_of(const Target &target) {
    typedef Shape<NBYTES, PAIRS> S;
    const bool in_step = target.width == GAPLESS || 2 * S::GROUP_WORDS % target.width == 0;
    const u64 next = offset_of_word<NBYTES>(target, 2 * S::GROUP_WORDS);
    const bool fits = in_step && next >> 32 == 0 && is_aligned(target, S::STORE_NBYTES);
    Strides strides;
    strides.at = target.words + offset_of_word<NBYTES>(target, lane_id() * S::N_WORDS);
    strides.second = (u32)offset_of_word<NBYTES>(target, S::GROUP_WORDS);
    strides.next = (u32)next;
    strides.n_pairs = fits ? target.n_words / (2 * S::GROUP_WORDS) : 0;
    return strides;
}

// Returns the number of words. Those of the lower planes are loaded ahead, for memory is far. The
// last pair of groups is loaded once more after itself: a load under a condition would need more
// registers, and waiting for it.
template <u32 NBYTES, bool PAIRS>
DEVICE u32 decode_pairs_of_groups(Decoder<NBYTES, PAIRS> &decoder, const Strides &strides) {
    typedef Shape<NBYTES, PAIRS> S;
    u64 at = strides.at;
    Lower<NBYTES, PAIRS> lower[S::AHEAD] = {};
    for (u32 i = 0; i < S::AHEAD; i++)
        if (strides.n_pairs > 0) lower[i] = load_lower(decoder, i);
    for (u32 left = strides.n_pairs; left > 0; left--) {
        refill(decoder.stream);
        for (u32 i = 0; i < 2; i++) {
            const Words<NBYTES, PAIRS> words = decode_words(decoder, lower[i % S::AHEAD]);
            if (i + S::AHEAD == 2) skip_lower(decoder, left > 1 ? 2 : 0);
            lower[i % S::AHEAD] = load_lower(decoder, (i + S::AHEAD) % 2);
            store_vectors<NBYTES, PAIRS>(i == 0 ? at : at + strides.second, words);
        }
        at += strides.next;
    }
    skip_lower(decoder, strides.n_pairs > 0 ? 2 : 0);
    return strides.n_pairs * (2 * S::GROUP_WORDS);
}

// The groups from word `first` on, wherever their words lie.
template <u32 NBYTES, bool PAIRS>
DEVICE void decode_groups(Decoder<NBYTES, PAIRS> &decoder, u32 first) {
    typedef Shape<NBYTES, PAIRS> S;
    const Target target = target_of<NBYTES>(*decoder.segment, decoder.tensors);
    const bool aligned = is_aligned(target, S::STORE_NBYTES);
    const u32 own = lane_id() * S::N_WORDS, step_cols = S::GROUP_WORDS % target.width;
    const u64 step = offset_of_word<NBYTES>(target, S::GROUP_WORDS),
              wrap = target.pitch - (u64)target.width * NBYTES;
    u32 col = (first + own) % target.width;
    u64 at = target.words + offset_of_word<NBYTES>(target, first + own);
    for (; first < target.n_words; first += S::GROUP_WORDS) {
        refill(decoder.stream);
        Lower<NBYTES, PAIRS> lower = {};
        if (first + own < target.n_words) lower = load_lower(decoder, 0);
        const Words<NBYTES, PAIRS> words = decode_words(decoder, lower);
        if (aligned && first + own + S::N_WORDS <= target.n_words)
            store_vectors<NBYTES, PAIRS>(at, words);
        else if (first + own < target.n_words)
            store_words<NBYTES, PAIRS>(at, words, target.n_words - first - own);
        skip_lower(decoder, 1);
        at += step;
        col += step_cols;
        if (col >= target.width) {
            col -= target.width;
            at += wrap;
        }
    }
}

template <u32 NBYTES, bool PAIRS>
DEVICE u32 decode_segment(const Coder &coder, uint4 *buffer, const Segment &segment,
                          const Tensor *tensors, const Plane *planes) {
    typedef Shape<NBYTES, PAIRS> S;
    Decoder<NBYTES, PAIRS> decoder;
    decoder.segment = &segment;
    decoder.tensors = tensors;
    decoder.coder = coder;
    decoder.unmap = unmap_of(tensors[segment.tensor]);
    // there are windows only where the exponent is first
    if (PAIRS && NBYTES > 1) decoder.unmap.fall = 1, decoder.unmap.flip = 0;
    decoder.base = segment.base * 0x01010101u;
    for (u32 p = 0; p < S::N_RAW; p++)
        decoder.raw[p] = planes[p + 1].at + lane_id() * S::RAW_NBYTES;
    const Strides strides = strides_of<NBYTES, PAIRS>(target_of<NBYTES>(segment, tensors));
    decoder.stream = open_stream(planes[0], buffer);
    decode_groups(decoder, decode_pairs_of_groups(decoder, strides));
    u32 bad = ends_well(decoder.stream) ? 0 : BAD_STREAM;
    if constexpr (PAIRS && NBYTES > 1) {
        __syncwarp();  // other lanes stored the words
        if (!apply_patches<NBYTES>(segment, target_of<NBYTES>(segment, tensors))) bad |= BAD_PATCH;
    }
    return bad;
}

template <u32 NBYTES, bool PAIRS>
DEVICE void decode_batch(DecoderMemory &memory, const Table *tables, const u32 *luts,
                         const Tensor *tensors, const Segment *segments, const Plane *planes,
                         const Batch &batch, const u32 *list, u32 *status) {
    load_lut(memory.lut, luts, batch.table);
    const Coder coder = coder_of(memory.lut, tables[batch.table].prob_bits);
    const u32 warp = uniform_warp_id();
    for (u32 i = warp; i < batch.count; i += BLOCK_WARPS) {
        const Segment &segment = segments[list[batch.first + i]];
        const u32 bad = decode_segment<NBYTES, PAIRS>(coder, memory.words[warp], segment, tensors,
                                                      planes + segment.plane);
        if (bad && lane_id() == 0) atomicOr(&status[list[batch.first + i]], bad);
        __syncwarp();  // the buffer is free again
    }
}

// From payload to words. list: segments, of one tile each; plane 0 is coded without prediction, by
// one table for those of a batch; the lower planes that are used are raw. A segment has one row, or
// its width is the matrix's, or a multiple of the words that a lane makes of a group: 8 by pairs, 4
// by bytes. Grid: a block a batch.
#define DECODE(name, nbytes, pairs)                                                                \
    KERNEL __launch_bounds__(BLOCK_THREADS, nbytes < 4 ? BLOCKS_ON_SM : 4)                         \
        name(const Table *tables, const u32 *luts, const Tensor *tensors, const Segment *segments, \
             const Plane *planes, const Batch *batches, const u32 *list, u32 *status) {            \
        __shared__ DecoderMemory memory;                                                           \
        decode_batch<nbytes, pairs>(memory, tables, luts, tensors, segments, planes,               \
                                    batches[blockIdx.x], list, status);                            \
    }

DECODE(decode_bytes_1, 1, false)
DECODE(decode_bytes_2, 2, false)
DECODE(decode_bytes_4, 4, false)
DECODE(decode_pairs_1, 1, true)
DECODE(decode_pairs_2, 2, true)
DECODE(decode_pairs_4, 4, true)
