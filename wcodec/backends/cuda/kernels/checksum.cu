// CRC-32 (spec: chapter 11) of ranges of memory,
// by polynomial arithmetic instead of a table lookup for each byte.
//
// The bits of a message are the coefficients of a polynomial over GF(2); its CRC is what that
// leaves modulo a polynomial G of degree 32. A warp reads rows of 32 words, a word a lane. What a
// lane has read is the sum of its words times powers of y = x^1024, times a power of x that depends
// on the lane alone. Squaring is an automorphism of the field GF(2)[x] / G, so y = x^(2^10) is a
// root of G as x is: polynomials in y are reduced by the terms of G, for the 32 bits of a word at
// once. So a lane keeps the words at y^0 to y^31 in 32 registers, and the next row costs it an XOR
// for each lower term of G: 14, two of which are one instruction.
//
// As in zlib, bit 0 of a word stands for x^31 and bit 31 for x^0. Zeros before a message change
// nothing; zeros after it multiply by a power of x, which can be divided away, since x^(2^32 - 1)
// is 1. So rows start at multiples of 128.
#include "common.cuh"

enum : u32 {
    G_REFLECTED = 0xedb88320u,
    G_TERMS = 0x04c11db7u,  // bit k: whether G has x^k, for k below 32
    ORDER = 0xffffffffu,    // x to this power is 1
    ROW_NBYTES = 128,
    N_POWERS = 32,  // of y in a state; after as many rows, each register holds the same power again
    CHECKSUM_THREADS = 256
};

// Mirrored by checksums.py.
struct Range {
    u64 at, nbytes;  // any address, any size
    // index of its first part among those of all ranges;
    // its parts start with the row that it starts in
    u32 first_part;
    u32 n_parts;     // 0 if it is empty
};

// What a part adds to the CRC of its range.
struct Share {
    u64 behind;     // bytes from the start of the part's last row to the end of the range
    u32 remainder;  // of the part's rows, zeros outside of the range
    u32 range;
};

struct Powers {
    u32 doubling[32];  // x^(2^k)
    u32 of_lane[32];   // x^(32 * (31 - lane))
    u32 y[4 * 256];    // [256 * k + b]: y times the word whose byte k is b and whose others are 0
};

static_assert(sizeof(Range) == 24 && sizeof(Share) == 16 && sizeof(Powers) == 4352,
              "as checksums.py has them");

// ---- arithmetic modulo G ------------------------------------------------------------------------
DEVICE u32 times(u32 a, u32 b) {
    u32 product = 0;
#pragma unroll
    for (u32 i = 0; i < 32; i++)
        product = product >> 1 ^ (product & 1u) * G_REFLECTED ^ (a >> i & 1u) * b;
    return product;
}

DEVICE u32 times_power(u32 a, u64 exponent, const Powers &powers) {
    const u32 reduced = (u32)(exponent % ORDER);
    for (u32 k = 0; k < 32; k++)
        if (reduced >> k & 1u) a = times(a, powers.doubling[k]);
    return a;
}

DEVICE u32 times_y(u32 a, const u32 *table) {
    return table[a & 255u] ^ table[256 + (a >> 8 & 255u)] ^ table[512 + (a >> 16 & 255u)] ^
           table[768 + (a >> 24)];
}

// ---- words --------------------------------------------------------------------------------------
DEVICE u32 word_at(u64 address) { return *pointer<const u32>(address); }

// The word at an address, of which bytes outside of [first, last) are zeros, and not read.
DEVICE u32 edge_word(u64 at, u64 first, u64 last) {
    if (at >= first && at + 4 <= last) return word_at(at);
    u32 word = 0;
    for (u32 i = 0; i < 4; i++)
        if (at + i >= first && at + i < last) word |= (u32)*pointer<const u8>(at + i) << 8 * i;
    return word;
}

// ---- the state of a lane ------------------------------------------------------------------------
// Up to 32 rows from `at` on, of which the first word is given: each has a power of y of its own.
DEVICE void start(u32 (&state)[N_POWERS], u64 at, u32 first_word, u32 n_rows) {
    const u64 last_row = at + (u64)ROW_NBYTES * (n_rows - 1);
#pragma unroll
    for (u32 k = 0; k < N_POWERS; k++) {
        state[k] = k + 1 == n_rows ? first_word : 0;
        if (k + 1 < n_rows) state[k] = word_at(last_row - ROW_NBYTES * k);
    }
}

// What two overflows, at y^32 one row after the other, become at y^k after the second; `both` is
// their sum. k may be negative.
DEVICE u32 reduced_at(u32 k, u32 earlier, u32 later, u32 both) {
    const bool has_earlier = k >= 1 && k <= 32 && (G_TERMS >> (k - 1) & 1u),
               has_later = k < 32 && (G_TERMS >> k & 1u);
    return has_earlier && has_later ? both : has_earlier ? earlier : has_later ? later : 0;
}

// The next 32 rows, four at a time: G has no terms from y^27 to y^31, so four rows' overflows are
// what stands there before. Registers are not moved: that of y^k becomes that of y^(k + 4).
DEVICE void add_rows(u32 (&state)[N_POWERS], u64 at) {
#pragma unroll
    for (u32 row = 0; row < N_POWERS; row += 4) {
        u32 over[4], words[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            over[i] = state[31 - row - i];
            words[i] = word_at(at + ROW_NBYTES * (row + i));
        }
        const u32 over_01 = over[0] ^ over[1], over_23 = over[2] ^ over[3];
#pragma unroll
        for (u32 k = 0; k < N_POWERS; k++) {
            u32 &power = state[(k + 28 - row) % N_POWERS];
            const u32 risen = k < 4 ? words[3 - k] : power;
            power = risen ^ reduced_at(k - 2, over[0], over[1], over_01) ^
                    reduced_at(k, over[2], over[3], over_23);
        }
    }
}

// Sum of state[k] * y^(k - K) for k from K on.
// Recursive, for the compiler does not unroll a loop of as many steps.
template <u32 K>
DEVICE u32 sum_from(const u32 (&state)[N_POWERS], const u32 *y_table) {
    if constexpr (K + 1 == N_POWERS) return state[K];
    else return times_y(sum_from<K + 1>(state, y_table), y_table) ^ state[K];
}

// A lane's part of the remainder of [first, last), which is not empty:
// of its words in all rows that this touches.
DEVICE u32 lane_remainder(u64 first, u64 last, const u32 *y_table) {
    // before the last one, which need not be whole
    const u32 n_rows = (u32)((last - 1) / ROW_NBYTES - first / ROW_NBYTES);
    const u32 n_first = n_rows ? (n_rows - 1) % N_POWERS + 1 : 0;
    u64 at = first / ROW_NBYTES * ROW_NBYTES + 4 * lane_id();
    u32 state[N_POWERS];
    start(state, at, edge_word(at, first, last), n_first);
    at += ROW_NBYTES * n_first;
    for (u32 left = (n_rows - n_first) / N_POWERS; left; left--, at += ROW_NBYTES * N_POWERS)
        add_rows(state, at);
    return times_y(sum_from<0>(state, y_table), y_table) ^ edge_word(at, first, last);
}

// ---- kernels ------------------------------------------------------------------------------------
// the last one that starts at or before it; it is not empty
DEVICE u32 range_of(u32 part, const Range *ranges, u32 n_ranges) {
    u32 low = 0, high = n_ranges;
    while (high - low > 1) {
        const u32 middle = low + (high - low) / 2;
        if (ranges[middle].first_part <= part) low = middle;
        else high = middle;
    }
    return low;
}

// Shares: a warp a part. Clears the checksums for crc32_join.
// `part_nbytes` is a multiple of 128 below 2^31.
KERNEL __launch_bounds__(CHECKSUM_THREADS, 4)
    crc32_parts(const Powers *powers, const Range *ranges, Share *shares, u32 *checksums,
                u32 n_ranges, u32 n_parts, u32 part_nbytes) {
    __shared__ u32 y_table[4 * 256];
    for (u32 i = threadIdx.x; i < 4 * 256; i += blockDim.x) y_table[i] = powers->y[i];
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < n_ranges; i += gridDim.x * blockDim.x)
        checksums[i] = 0;
    __syncthreads();
    const u32 of_lane = powers->of_lane[lane_id()], n_warps = blockDim.x / 32;
    for (u32 i = blockIdx.x * n_warps + warp_id(); i < n_parts; i += gridDim.x * n_warps) {
        const u32 index = range_of(i, ranges, n_ranges);
        const Range range = ranges[index];
        const u64 end = range.at + range.nbytes;
        const u64 start =
            range.at / ROW_NBYTES * ROW_NBYTES + (u64)(i - range.first_part) * part_nbytes;
        const u64 first = start < range.at ? range.at : start;
        const u64 last = end - start < part_nbytes ? end : start + part_nbytes;
        u32 sum = times(lane_remainder(first, last, y_table), of_lane);
#pragma unroll
        for (u32 distance = 16; distance; distance /= 2)
            sum ^= __shfl_xor_sync(ALL_LANES, sum, distance);
        if (lane_id() == 0)
            shares[i] = Share{end - (last - 1) / ROW_NBYTES * ROW_NBYTES, sum, index};
    }
}

// Checksums: a thread a part, and one a range for what zlib puts in front of it and adds to the
// end.
KERNEL __launch_bounds__(CHECKSUM_THREADS)
    crc32_join(const Powers *powers, const Range *ranges, const Share *shares, u32 *checksums,
               u32 n_ranges, u32 n_parts) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < n_parts + n_ranges;
         i += gridDim.x * blockDim.x) {
        if (i < n_parts) {
            const Share share = shares[i];  // a CRC is the remainder of the message times x^32
            const u64 exponent = (u64)ORDER + 8 * share.behind - 8 * ROW_NBYTES + 32;
            atomicXor(&checksums[share.range], times_power(share.remainder, exponent, *powers));
        } else {
            const u32 index = i - n_parts;
            atomicXor(&checksums[index], ~times_power(~0u, 8 * ranges[index].nbytes, *powers));
        }
    }
}
