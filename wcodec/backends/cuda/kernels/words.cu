// Words to planes and back, of any kind (spec: chapters 5, 6 and 10). A block takes a segment.
#include "items.cuh"

// ---- merge --------------------------------------------------------------------------------------
// Where a decoded plane's bytes are: an address, or, if the top bit is set, four bytes that repeat.
typedef u64 Source;

DEVICE Source source_of(const Plane &plane) {
    if (plane.coder == CODER_CONSTANT) return 1ull << 63 | each_byte(plane.table & 255);
    return plane.coder == CODER_RAW ? plane.at : plane.symbols;
}

template <u32 COUNT>
DEVICE void read(Source source, u32 offset, u32 *parts) {
    if (source >> 63) {
#pragma unroll
        for (u32 k = 0; k < ceil_div(COUNT, 4); ++k) parts[k] = (u32)source;
    } else {
        load_bytes<COUNT>(source + offset, parts);
    }
}

template <u32 NBYTES>
DEVICE Planes<NBYTES> read_planes(const Source *sources, bool pairs, u32 base, u32 i) {
    using P = Planes<NBYTES>;
    P planes;
#pragma unroll
    for (u32 p = 1; p < NBYTES; ++p) read<P::COUNT>(sources[p], i, planes.part[p]);
    if (!pairs) {
        read<P::COUNT>(sources[0], i, planes.part[0]);
        return planes;
    }
    u32 packed[P::PACKED_PARTS];
    read<P::COUNT / 2>(sources[0], i / 2, packed);
    unpack_codes(packed, planes.part[0]);
    if constexpr (NBYTES == 1) {
        u32 low[P::PARTS];
        read<P::COUNT / 2>(sources[1], i / 2, packed);
        unpack_codes(packed, low);
#pragma unroll
        for (u32 k = 0; k < P::PARTS; ++k) planes.part[0][k] = planes.part[0][k] << 4 | low[k];
    } else {
#pragma unroll
        for (u32 k = 0; k < P::PARTS; ++k) planes.part[0][k] = add_bytes(planes.part[0][k], base);
    }
    return planes;
}

DEVICE u32 index_of(u32 patch) { return patch & 0xffffff; }

// Whether those that this thread looks at are in range and ascend.
DEVICE bool patches_are_good(const u32 *patches, u32 count, u32 n) {
    bool good = true;
    for (u32 i = threadIdx.x; i < count; i += BLOCK_THREADS) {
        const u32 index = index_of(patches[i]);
        good &= index < n && (i == 0 || index_of(patches[i - 1]) < index);
    }
    return good;
}

template <u32 NBYTES>
DEVICE void apply_patches(const Grid &grid, const Tensor &tensor, const u32 *patches, u32 count) {
    const u32 shift = 8 * NBYTES - 8;
    for (u32 i = threadIdx.x; i < count; i += BLOCK_THREADS) {
        const u64 address = locate<NBYTES>(grid, index_of(patches[i])).address;
        const u64 others = map_word(load_word(address, NBYTES), tensor) & ((1ull << shift) - 1);
        store_word(address, NBYTES, unmap_word((u64)(patches[i] >> 24) << shift | others, tensor));
    }
}

template <u32 NBYTES>
DEVICE void merge(const Segment &segment, const Tensor &tensor, const Plane *planes, u32 *status,
                  u32 *bad) {
    const bool raw = segment.layout == LAYOUT_RAW, pairs = segment.layout == LAYOUT_PAIRS;
    const u32 *patches = pointer<const u32>(segment.patches);
    const u32 n_patches = pairs ? segment.n_patches : 0, base = each_byte(segment.base);
    Grid grid = grid_of<NBYTES>(segment, tensor);
    if (!patches_are_good(patches, n_patches, grid.n)) atomicOr(bad, 1u);
    Source sources[NBYTES == 1 ? 2 : NBYTES];
#pragma unroll
    for (u32 p = 0; p < (NBYTES == 1 ? 2 : NBYTES); ++p)
        sources[p] = raw || (p == NBYTES && !pairs) ? 0 : source_of(planes[p]);
    const WordMap map = map_of<NBYTES>(tensor);
    for (u32 i = threadIdx.x * Item<NBYTES>::COUNT; i < grid.n;
         i += BLOCK_THREADS * Item<NBYTES>::COUNT) {
        Item<NBYTES> item;
        if (raw) {
            load_bytes<ITEM_NBYTES>(segment.record + (u64)i * NBYTES, item.part);
        } else {
            item = join<NBYTES>(read_planes<NBYTES>(sources, pairs, base, i));
            map_item<NBYTES, true>(map, item);
        }
        store_item<NBYTES>(grid, next_place<NBYTES>(grid, i), i, item);
    }
    __syncthreads();
    if (!*bad) apply_patches<NBYTES>(grid, tensor, patches, n_patches);
    else if (threadIdx.x == 0) atomicOr(status, (u32)BAD_PATCH);
}

KERNEL __launch_bounds__(BLOCK_THREADS)
    merge_words(const Tensor *__restrict__ tensors, const Segment *__restrict__ segments,
                const Plane *__restrict__ planes, const u32 *__restrict__ list,
                u32 *__restrict__ status) {
    __shared__ u32 bad;
    if (threadIdx.x == 0) bad = 0;
    __syncthreads();
    const u32 index = list[blockIdx.x];
    const Segment &segment = segments[index];
    const Tensor &tensor = tensors[segment.tensor];
    const Plane *own = planes + segment.plane;
    if (tensor.word_nbytes == 1) merge<1>(segment, tensor, own, status + index, &bad);
    else if (tensor.word_nbytes == 2) merge<2>(segment, tensor, own, status + index, &bad);
    else if (tensor.word_nbytes == 4) merge<4>(segment, tensor, own, status + index, &bad);
    else merge<8>(segment, tensor, own, status + index, &bad);
}

// ---- split --------------------------------------------------------------------------------------
// Slot of this thread's first patch if all patches of the block's items are in order; `total`:
// patches so far. All threads call it. Calls in turn have two rows of `counts` in turn: what a warp
// wrote is read before it has come to the barrier after the next.
DEVICE u32 patch_slot(u32 count, u32 &total, u32 *counts) {
    u32 sum = count;
    if (__any_sync(ALL_LANES, count != 0)) {
#pragma unroll
        for (u32 d = 1; d < 32; d *= 2) {
            const u32 other = __shfl_up_sync(ALL_LANES, sum, d);
            if (lane_id() >= d) sum += other;
        }
    }
    if (lane_id() == 31) counts[warp_id()] = sum;
    __syncthreads();
    u32 slot = total + sum - count;
#pragma unroll
    for (u32 warp = 0; warp < BLOCK_WARPS; ++warp) {
        if (warp < warp_id()) slot += counts[warp];
        total += counts[warp];
    }
    return slot;
}

// Codes of top bytes, and the flags (bit 4 of a byte) of those outside of the window, which have
// the code `fill`. Of the item's bytes, `valid` are there; the others have the code `fill` too.
template <u32 PARTS>
DEVICE void window_codes(const u32 (&top)[PARTS], u32 base, u32 fill, u32 valid,
                         u32 (&codes)[PARTS], u32 (&outside)[PARTS]) {
#pragma unroll
    for (u32 k = 0; k < PARTS; ++k) {
        const u32 there = valid >= 4 * k + 4 ? ALL_LANES
                          : valid <= 4 * k   ? 0
                                             : (1u << 8 * (valid - 4 * k)) - 1;
        const u32 code = choose(there, subtract_bytes(top[k], base), fill);
        outside[k] = ((code >> 4 & 0x0f0f0f0f) + 0x0f0f0f0f) & 0x10101010;
        codes[k] = choose((outside[k] >> 4) * 255, fill, code);
    }
}

// Of a pair of codes that plane 0's table lacks, the second becomes `fill`, or else the first, or
// else both (spec: chapter 14). Words whose code that changes get the flag of those outside of the
// window. `filled`: a pair of two `fill`, in each byte.
template <u32 N_PAIRS, u32 PARTS, u32 PACKED_PARTS>
DEVICE void replace_uncoded(const u8 *uncoded, u32 filled, u32 (&packed)[PACKED_PARTS],
                            u32 (&outside)[PARTS]) {
    u32 any = 0;
#pragma unroll
    for (u32 i = 0; i < N_PAIRS; ++i) any |= uncoded[packed[i / 4] >> 8 * (i % 4) & 255];
    if (!any) return;
#pragma unroll
    for (u32 i = 0; i < N_PAIRS; ++i) {
        const u32 pair = packed[i / 4] >> 8 * (i % 4) & 255;
        if (!uncoded[pair]) continue;
        u32 changed = 0xf0;
        if (uncoded[choose(changed, filled, pair)]) changed = 0x0f;
        if (uncoded[choose(changed, filled, pair)]) changed = 0xff;
        packed[i / 4] = choose(changed << 8 * (i % 4), filled, packed[i / 4]);
        outside[i / 2] |= ((changed & 1) << 4 | (changed & 16) << 8) << 16 * (i % 2);
    }
}

template <u32 PARTS>
DEVICE void write_patches(const u32 (&top)[PARTS], const u32 (&outside)[PARTS], u32 first,
                          u32 *to) {
#pragma unroll
    for (u32 k = 0; k < PARTS; ++k) {
#pragma unroll
        for (u32 byte = 0; byte < 4; ++byte)
            if (outside[k] >> 8 * byte & 16)
                *to++ = (top[k] >> 8 * byte & 255) << 24 | (first + 4 * k + byte);
    }
}

template <u32 COUNT>
DEVICE void write(u64 at, u32 offset, const u32 *parts) {
    if (at) store_bytes<COUNT>(at + offset, parts);
}

// One-byte words: a plane of high halves, one of low halves. What is missing is `fill` and 0.
DEVICE void write_halves(const Planes<1> &planes, const u64 *targets, u32 fill, u32 valid, u32 i) {
    u32 high[4], low[4], none[4], packed[2];
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
        high[k] = planes.part[0][k] >> 4 & 0x0f0f0f0f;
        low[k] = planes.part[0][k] & 0x0f0f0f0f;
    }
    window_codes(high, 0, fill, valid, high, none);
    pack_codes(high, packed);
    write<8>(targets[0], i / 2, packed);
    pack_codes(low, packed);
    write<8>(targets[1], i / 2, packed);
}

template <u32 NBYTES>
DEVICE u32 split(const Segment &segment, const Tensor &tensor, const Plane *planes,
                 const u8 *uncoded, u32 *counts) {
    using P = Planes<NBYTES>;
    const bool pairs = segment.layout == LAYOUT_PAIRS;
    const u32 base = each_byte(segment.base), fill = each_byte(segment.fill);
    const WordMap map = map_of<NBYTES>(tensor);
    u32 *patches = pointer<u32>(segment.patches), total = 0;
    u64 targets[NBYTES == 1 ? 2 : NBYTES];
#pragma unroll
    for (u32 p = 0; p < (NBYTES == 1 ? 2 : NBYTES); ++p)
        targets[p] = p == NBYTES && !pairs ? 0 : planes[p].symbols;
    Grid grid = grid_of<NBYTES>(segment, tensor);
    for (u32 first = 0, odd = 0; first < grid.n;
         first += BLOCK_THREADS * P::COUNT, odd ^= BLOCK_WARPS) {
        const u32 i = first + threadIdx.x * P::COUNT,
                  valid = i < grid.n ? least(grid.n - i, P::COUNT) : 0;
        P bytes;
        if (valid) {
            Item<NBYTES> item = load_item<NBYTES>(grid, next_place<NBYTES>(grid, i), i);
            map_item<NBYTES, false>(map, item);
            bytes = cut<NBYTES>(item);
#pragma unroll
            for (u32 p = 1; p < NBYTES; ++p) write<P::COUNT>(targets[p], i, bytes.part[p]);
            if (!pairs) write<P::COUNT>(targets[0], i, bytes.part[0]);
        }
        if (!pairs) continue;
        if constexpr (NBYTES == 1) {
            if (valid) write_halves(bytes, targets, fill, valid, i);
        } else {
            u32 codes[P::PARTS], outside[P::PARTS], packed[P::PACKED_PARTS], count = 0;
            window_codes(bytes.part[0], base, fill, valid, codes, outside);
            pack_codes(codes, packed);
            replace_uncoded<P::COUNT / 2>(uncoded, fill | fill << 4, packed, outside);
            if (valid) write<P::COUNT / 2>(targets[0], i / 2, packed);
#pragma unroll
            for (u32 k = 0; k < P::PARTS; ++k) count += __popc(outside[k]);
            const u32 slot = patch_slot(count, total, counts + odd);
            if (count) write_patches(bytes.part[0], outside, i, patches + slot);
        }
    }
    return total;
}

KERNEL __launch_bounds__(BLOCK_THREADS)
    split_words(const Table *__restrict__ tables, const Tensor *__restrict__ tensors,
                const Segment *__restrict__ segments, const Plane *__restrict__ planes,
                const u32 *__restrict__ list, u32 *__restrict__ n_patches) {
    __shared__ u32 counts[2 * BLOCK_WARPS];
    __shared__ u8 uncoded[BLOCK_THREADS];  // of each pair of codes: whether plane 0's table lacks it
    const u32 index = list[blockIdx.x];
    const Segment &segment = segments[index];
    const Tensor &tensor = tensors[segment.tensor];
    const Plane *own = planes + segment.plane;
    // no table lacks the pair of two `fill`; missing words, which have it, never become patches
    uncoded[threadIdx.x] = segment.layout == LAYOUT_PAIRS && own->coder == CODER_RANS &&
                           threadIdx.x != 17u * segment.fill &&
                           tables[own->table].freq[threadIdx.x] == 0;
    __syncthreads();
    u32 total = 0;
    if (segment.layout == LAYOUT_RAW) total = 0;
    else if (tensor.word_nbytes == 1) total = split<1>(segment, tensor, own, uncoded, counts);
    else if (tensor.word_nbytes == 2) total = split<2>(segment, tensor, own, uncoded, counts);
    else if (tensor.word_nbytes == 4) total = split<4>(segment, tensor, own, uncoded, counts);
    else total = split<8>(segment, tensor, own, uncoded, counts);
    if (threadIdx.x == 0) n_patches[index] = total;
}
