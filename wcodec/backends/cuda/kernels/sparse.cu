// Words that differ from those of a base: listed, and put into their places (spec: 12.1). Segments
// are runs of words.
//
// Listing cuts segments into parts, a warp each. It takes two kernels: the host makes of the counts
// of the first where each part of the second writes. The words of a round, one a lane, are less
// than 255 apart: only the first that differs can skip so many.
#include "common.cuh"

enum : u32 { SKIP = 255, ROUNDS = 4, LANE_GAPS = 4, ROUND_GAPS = LANES * LANE_GAPS };

// ---- structures, mirrored by sparse.py ----------------------------------------------------------
struct Arrays {
    u64 words, base;  // addresses
    u64 n, segment;   // words of all, of a segment
    u32 part, parts_each, n_parts, reserved;  // words of a part; parts of a segment, of all
};

// What differs in a part.
struct Count {
    u32 n_listed, n_gaps;  // n_gaps: but for the first word's, which skips what is before the part
    u32 first, last;       // places in the part
};

struct Start {
    u64 listed, gaps;  // indices of the part's first word and gap among those of all
    u64 after;         // place that its first gap skips from
    u32 n_listed, reserved;
};

struct List {
    u64 gaps, places;       // indices of the segment's first gap and place among those of all
    u64 start, size;        // the segment
    u32 n_gaps, n_listed;
};

static_assert(sizeof(Arrays) == 48 && sizeof(Count) == 16 && sizeof(Start) == 32 &&
              sizeof(List) == 40, "as sparse.py has them");

// ---- listing ------------------------------------------------------------------------------------
struct Part {
    u64 start, end;  // places; nothing is in between if the last segment is short
};

DEVICE Part part_of(const Arrays &arrays, u32 i) {
    const u64 first = i / arrays.parts_each * arrays.segment, left = arrays.n - first;
    const u64 last = first + (left < arrays.segment ? left : arrays.segment);
    const u64 start = first + (u64)(i % arrays.parts_each) * arrays.part;
    if (start >= last) return {last, last};
    return {start, last - start < arrays.part ? last : start + arrays.part};
}

// Which words of some rounds differ: a bit a lane for each round.
template <class T>
DEVICE void compare(const T *words, const T *base, u64 at, u64 end, u32 (&differing)[ROUNDS]) {
    bool differs[ROUNDS];
#pragma unroll
    for (u32 k = 0; k < ROUNDS; k++) {
        const u64 i = at + LANES * k + lane_id();
        differs[k] = i < end && words[i] != base[i];
    }
#pragma unroll
    for (u32 k = 0; k < ROUNDS; k++) differing[k] = __ballot_sync(ALL_LANES, differs[k]);
}

DEVICE u32 lowest(u32 bits) { return __ffs((int)bits) - 1; }
DEVICE u32 highest(u32 bits) { return 31 - __clz((int)bits); }

template <class T>
DEVICE Count count_part(const Arrays &arrays, const Part &part) {
    const T *words = pointer<const T>(arrays.words), *base = pointer<const T>(arrays.base);
    Count count = {0, 0, 0, 0};
    for (u64 at = part.start; at < part.end; at += LANES * ROUNDS) {
        u32 differing[ROUNDS];
        compare(words, base, at, part.end, differing);
#pragma unroll
        for (u32 k = 0; k < ROUNDS; k++) {
            const u32 bits = differing[k], place = (u32)(at - part.start) + LANES * k;
            if (bits == 0) continue;
            const u32 first = place + lowest(bits), n = __popc(bits);
            if (count.n_listed == 0) {
                count.first = first;
                count.n_gaps = n - 1;
            } else {
                count.n_gaps += n + (first - count.last - 1) / SKIP;
            }
            count.n_listed += n;
            count.last = place + highest(bits);
        }
    }
    return count;
}

// Counts: a warp a part.
KERNEL __launch_bounds__(BLOCK_THREADS)
    count_changes(const Arrays *about, u32 word_nbytes, Count *counts) {
    const Arrays arrays = *about;
    const u32 i = blockIdx.x * BLOCK_WARPS + warp_id();
    if (i >= arrays.n_parts) return;
    const Part part = part_of(arrays, i);
    Count count;
    if (word_nbytes == 1) count = count_part<u8>(arrays, part);
    else if (word_nbytes == 2) count = count_part<u16>(arrays, part);
    else if (word_nbytes == 4) count = count_part<u32>(arrays, part);
    else count = count_part<u64>(arrays, part);
    if (lane_id() == 0) counts[i] = count;
}

template <class T>
DEVICE void list_part(const Arrays &arrays, const Part &part, const Start &start, u8 *gaps,
                      T *listed, T *old) {
    const T *words = pointer<const T>(arrays.words), *base = pointer<const T>(arrays.base);
    u64 n = start.listed, n_gaps = start.gaps, after = start.after;
    for (u64 at = part.start; at < part.end; at += LANES * ROUNDS) {
        u32 differing[ROUNDS];
        compare(words, base, at, part.end, differing);
#pragma unroll
        for (u32 k = 0; k < ROUNDS; k++) {
            const u32 bits = differing[k], lower = bits & lanes_below(), rank = __popc(lower);
            if (bits == 0) continue;
            const u64 place = at + LANES * k, i = place + lane_id();
            const u64 skipped = place + lowest(bits) - after, n_skips = skipped / SKIP;
            for (u64 j = lane_id(); j < n_skips; j += LANES) gaps[n_gaps + j] = SKIP;
            n_gaps += n_skips;
            if (bits >> lane_id() & 1u) {
                const u32 gap = rank == 0 ? (u32)(skipped - n_skips * SKIP)
                                          : lane_id() - highest(lower) - 1;
                gaps[n_gaps + rank] = (u8)gap;
                listed[n + rank] = words[i];
                old[n + rank] = base[i];
            }
            n_gaps += __popc(bits);
            n += __popc(bits);
            after = place + highest(bits) + 1;
        }
    }
}

// Gaps, words and those of the base: a warp a part.
KERNEL __launch_bounds__(BLOCK_THREADS)
    list_changes(const Arrays *about, u32 word_nbytes, const Start *starts, u8 *gaps, u64 listed,
                 u64 old) {
    const Arrays arrays = *about;
    const u32 i = blockIdx.x * BLOCK_WARPS + warp_id();
    if (i >= arrays.n_parts) return;
    const Start start = starts[i];
    if (start.n_listed == 0) return;
    const Part part = part_of(arrays, i);
    if (word_nbytes == 1)
        list_part(arrays, part, start, gaps, pointer<u8>(listed), pointer<u8>(old));
    else if (word_nbytes == 2)
        list_part(arrays, part, start, gaps, pointer<u16>(listed), pointer<u16>(old));
    else if (word_nbytes == 4)
        list_part(arrays, part, start, gaps, pointer<u32>(listed), pointer<u32>(old));
    else list_part(arrays, part, start, gaps, pointer<u64>(listed), pointer<u64>(old));
}

// ---- places -------------------------------------------------------------------------------------
// Some gaps of a lane, in order. Those after the last one are 255, and skip nothing.
struct LaneGaps {
    u32 gaps[LANE_GAPS];
    u32 sums;  // the words that they go on by, and from bit 16 on those that they list
};

DEVICE LaneGaps load_gaps(const u8 *gaps, u32 at, u32 n) {
    LaneGaps own;
    own.sums = 0;
#pragma unroll
    for (u32 k = 0; k < LANE_GAPS; k++) {
        const u32 i = at + lane_id() * LANE_GAPS + k;
        own.gaps[k] = i < n ? gaps[i] : SKIP;
        if (own.gaps[k] < SKIP) own.sums += own.gaps[k] + 1 + (1u << 16);
        else if (i < n) own.sums += SKIP;
    }
    return own;
}

// Sum of a lane's value and those of all lanes before it.
DEVICE u32 sum_up_to(u32 value) {
#pragma unroll
    for (u32 distance = 1; distance < LANES; distance *= 2) {
        const u32 other = __shfl_up_sync(ALL_LANES, value, distance);
        if (lane_id() >= distance) value += other;
    }
    return value;
}

// Places, as far as there is room. Whether all are right: then they are in the segment.
DEVICE bool find_all(const u8 *gaps, const List &list, u64 *places) {
    u64 after = 0;
    u32 n = 0;
    for (u32 at = 0; at < list.n_gaps; at += ROUND_GAPS) {
        const LaneGaps own = load_gaps(gaps, at, list.n_gaps);
        const u32 sums = sum_up_to(own.sums), before = sums - own.sums;
        const u32 all = __shfl_sync(ALL_LANES, sums, LANES - 1);
        u64 place = after + (before & 0xffffu);
        u32 i = n + (before >> 16);
#pragma unroll
        for (u32 k = 0; k < LANE_GAPS; k++) {
            place += own.gaps[k];
            if (own.gaps[k] == SKIP) continue;
            if (i < list.n_listed) places[i] = list.start + place;
            place++;
            i++;
        }
        after += all & 0xffffu;
        n += all >> 16;
    }
    return n == list.n_listed && after <= list.size && list.n_gaps > 0 &&
           gaps[list.n_gaps - 1] < SKIP;
}

// Places: a warp a segment; all are its start if its gaps are wrong.
KERNEL __launch_bounds__(BLOCK_THREADS)
    find_places(const List *lists, u32 n_lists, const u8 *gaps, u64 *places, u8 *right) {
    const u32 k = blockIdx.x * BLOCK_WARPS + warp_id();
    if (k >= n_lists) return;
    const List list = lists[k];
    places += list.places;
    const bool is_right = find_all(gaps + list.gaps, list, places);
    __syncwarp();
    if (!is_right)
        for (u32 i = lane_id(); i < list.n_listed; i += LANES) places[i] = list.start;
    if (lane_id() == 0) right[k] = is_right;
}

// ---- words at places ----------------------------------------------------------------------------
DEVICE u64 first_index() { return (u64)blockIdx.x * BLOCK_THREADS + threadIdx.x; }
DEVICE u64 index_step() { return (u64)gridDim.x * BLOCK_THREADS; }

template <class T>
DEVICE void take(const T *words, const u64 *places, u64 n, T *out) {
    for (u64 i = first_index(); i < n; i += index_step()) out[i] = words[places[i]];
}

template <class T>
DEVICE void put(T *words, const u64 *places, u64 n, const T *values) {
    for (u64 i = first_index(); i < n; i += index_step()) words[places[i]] = values[i];
}

// A thread a word, and others.
KERNEL __launch_bounds__(BLOCK_THREADS)
    take_words(u64 words, const u64 *places, u64 n, u32 word_nbytes, u64 out) {
    if (word_nbytes == 1) take(pointer<u8>(words), places, n, pointer<u8>(out));
    else if (word_nbytes == 2) take(pointer<u16>(words), places, n, pointer<u16>(out));
    else if (word_nbytes == 4) take(pointer<u32>(words), places, n, pointer<u32>(out));
    else take(pointer<u64>(words), places, n, pointer<u64>(out));
}

KERNEL __launch_bounds__(BLOCK_THREADS)
    put_words(u64 words, const u64 *places, u64 n, u32 word_nbytes, u64 values) {
    if (word_nbytes == 1) put(pointer<u8>(words), places, n, pointer<u8>(values));
    else if (word_nbytes == 2) put(pointer<u16>(words), places, n, pointer<u16>(values));
    else if (word_nbytes == 4) put(pointer<u32>(words), places, n, pointer<u32>(values));
    else put(pointer<u64>(words), places, n, pointer<u64>(values));
}
