// The rANS decoder of a warp (spec: chapter 9): a stream's 32 states are the warp's lanes.
//
// Words are staged in shared memory, where those of a step lie side by side: a warp has a buffer,
// which 16-byte loads fill. When the warp is beyond the buffer's first KB, it slides. After a
// stream's end is whatever was there: a stream is read for as many symbols as it should have,
// without checks, and refused at the end if it had too few words. See `decode_group` for what
// bounds all accesses.
#pragma once
#include "common.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
enum { BLOCKS_ON_SM = 4 };  // that registers shall suffice for; there are no more there
#else
enum { BLOCKS_ON_SM = 5 };
#endif
enum { LUT_UNITS = MAX_SLOTS / 4, SLIDE_UNITS = 64, BUFFER_UNITS = 96 };  // units: of 16 bytes
enum { SLIDE_NBYTES = UNIT * SLIDE_UNITS };

#ifdef __CUDA_ARCH__
typedef u32 SharedAddress;
DEVICE SharedAddress shared_address(const void *at) { return (u32)__cvta_generic_to_shared(at); }

// in all lanes, though some don't need it: that takes fewer instructions
DEVICE u32 load_shared_u16(SharedAddress at) {
    u32 value;
    asm volatile("ld.shared.u16 %0, [%1];" : "=r"(value) : "r"(at) : "memory");
    return value;
}

DEVICE u64 multiply_wide(u32 a, u32 b) {  // in one instruction
    u64 product;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
    return product;
}
#else
typedef u64 SharedAddress;
DEVICE SharedAddress shared_address(const void *at) { return (u64)at; }
DEVICE u32 load_shared_u16(SharedAddress at) { return *(const u16 *)at; }
DEVICE u64 multiply_wide(u32 a, u32 b) { return (u64)a * b; }
#endif

// This way the compiler knows that it is the same in all lanes, and so is what follows from it.
DEVICE u32 uniform_warp_id() { return __shfl_sync(ALL_LANES, warp_id(), 0); }

// The shared memory of a block: 28 KB.
struct DecoderMemory {
    uint4 lut[LUT_UNITS];
    uint4 words[BLOCK_WARPS][BUFFER_UNITS];
};

// What a warp needs to know of a table. The high half of `state * scale` is the state's quotient,
// the low half is its slot, on top; `slot_shift` makes of that the offset of the slot's entry.
struct Coder {
    const u8 *lut;
    u32 scale, slot_shift;
    u32 below;  // mask of the lanes below this one
};

// A stream while it is decoded. All is the same in all lanes but for `state`, `left`,
// `next` and `ahead`.
struct Stream {
    uint4 *buffer;
    SharedAddress start, position;  // of the buffer, and of the next word
    u32 state;
    int left;           // units of the stream from the buffer's start on, less the lane's index
    uint4 ahead[2];     // units that the next slide brings in
    const uint4 *next;  // the first unit after those
};

DEVICE Coder coder_of(const void *lut, u32 prob_bits) {
    Coder coder;
    coder.lut = (const u8 *)lut;
    coder.scale = 1u << (32 - prob_bits);
    coder.slot_shift = 30 - prob_bits;
    coder.below = lanes_below();
    return coder;
}

// A table's entries, for the whole block.
DEVICE void load_lut(uint4 *to, const u32 *luts, u32 table) {
    const uint4 *source = (const uint4 *)luts + (u64)table * LUT_UNITS;
    for (u32 i = threadIdx.x; i < LUT_UNITS; i += BLOCK_THREADS) to[i] = source[i];
    __syncthreads();
}

// ---- words --------------------------------------------------------------------------------------
DEVICE void load_ahead(Stream &stream) {
    if (stream.left > (int)BUFFER_UNITS) stream.ahead[0] = stream.next[0];
    if (stream.left > (int)BUFFER_UNITS + 32) stream.ahead[1] = stream.next[32];
    stream.next += SLIDE_UNITS;
}

DEVICE Stream open_stream(const Plane &plane, uint4 *buffer) {
    const u32 lane = lane_id();
    const uint4 zeros = make_uint4(0, 0, 0, 0);
    const uint4 *source = pointer<const uint4>(plane.at + HEAD_NBYTES) + lane;
    Stream stream;
    stream.buffer = buffer;
    stream.state = pointer<const u32>(plane.at)[lane];
    stream.start = stream.position = shared_address(buffer);
    stream.left = (int)((plane.nbytes - HEAD_NBYTES) / UNIT) - (int)lane;
    for (int i = 0; i < (int)BUFFER_UNITS; i += 32)
        buffer[i + lane] = stream.left > i ? source[i] : zeros;
    stream.next = source + BUFFER_UNITS;
    stream.ahead[0] = stream.ahead[1] = zeros;  // they keep what they have after the stream's end
    load_ahead(stream);
    __syncwarp();
    return stream;
}

// Make room for the words of two groups, at most 512 bytes after `position`.
DEVICE void refill(Stream &stream) {
    if (stream.position < stream.start + SLIDE_NBYTES) return;  // the same in all lanes
    const u32 lane = lane_id();
    uint4 *buffer = stream.buffer;
    __syncwarp();  // all lanes have their words of the last step
    buffer[lane] = buffer[SLIDE_UNITS + lane];
    buffer[32 + lane] = stream.ahead[0];
    buffer[64 + lane] = stream.ahead[1];
    stream.position -= SLIDE_NBYTES;
    stream.left -= SLIDE_UNITS;
    load_ahead(stream);
    __syncwarp();
}

// ---- symbols ------------------------------------------------------------------------------------
// The next state, from the last one's quotient and the entry of its slot;
// lanes whose states are low take a word.
DEVICE void advance(Stream &stream, const Coder &coder, u32 quotient, u32 entry) {
    const u32 state = (entry >> 20) * quotient + (entry >> 8 & 0xfff);
    const bool low = state < STATE_LOW;
    const u32 takers = __ballot_sync(ALL_LANES, low);
    const u32 word = load_shared_u16(stream.position + 2 * __popc(takers & coder.below));
    stream.state = low ? __byte_perm(word, state, 0x5410) : state;
    stream.position += 2 * __popc(takers);
}

// One symbol of each lane: returns the entry of the table, whose low byte it is.
DEVICE u32 decode_step(Stream &stream, const Coder &coder) {
    const u64 product = multiply_wide(stream.state, coder.scale);
    const u32 entry = *(const u32 *)(coder.lut + ((u32)product >> coder.slot_shift));
    advance(stream, coder, (u32)(product >> 32), entry);
    return entry;
}

// Four symbols of each lane, the first in the lowest byte. Two groups may be decoded after
// `refill`, whatever the states are: `position` is then less than 1024 bytes into the buffer, each
// step moves it by at most 64 and reads no further than that, and the buffer has 8 * 64 bytes more.
// The offset into the table is below 4 * 4096, for `slot_shift` leaves no more bits.
DEVICE u32 decode_group(Stream &stream, const Coder &coder) {
    u32 symbols = decode_step(stream, coder);
    symbols = __byte_perm(symbols, decode_step(stream, coder), 0x0040);
    symbols = __byte_perm(symbols, decode_step(stream, coder), 0x0410);
    return __byte_perm(symbols, decode_step(stream, coder), 0x4210);
}

// Whether all states are the first again and no more than padding is left (R9.9).
// Said to all lanes.
DEVICE bool ends_well(const Stream &stream) {
    const int unread =
        (stream.left + (int)lane_id()) * (int)UNIT - (int)(stream.position - stream.start);
    return __all_sync(ALL_LANES, stream.state == STATE_LOW && 0 <= unread && unread < (int)UNIT);
}
