// Planes with a table for each class of contexts (spec: 9.4):
// which class a symbol has, and decoding by that.
#include "rans.cuh"

// ---- contexts -----------------------------------------------------------------------------------
// An element's place; elements are gone through in the order in which they are coded (spec: R6.9).
struct Walk {
    u32 top, left, height, width;  // of its tile
    u32 row, col;                  // in the tile
};

DEVICE void enter_tile(Walk &walk, const Segment &segment, const Tensor &tensor) {
    walk.height = least(tensor.tile_rows, segment.height - walk.top);
    walk.width = least(tensor.tile_cols, segment.width - walk.left);
}

DEVICE Walk walk_from(const Segment &segment, const Tensor &tensor, u32 element) {
    Walk walk;
    walk.top = element / (tensor.tile_rows * segment.width) * tensor.tile_rows;
    const u32 in_band = element - walk.top * segment.width,
              height = least(tensor.tile_rows, segment.height - walk.top);
    walk.left = in_band / (height * tensor.tile_cols) * tensor.tile_cols;
    enter_tile(walk, segment, tensor);
    const u32 in_tile = in_band - walk.left * height;
    walk.row = in_tile / walk.width;
    walk.col = in_tile % walk.width;
    return walk;
}

DEVICE void go_on(Walk &walk, const Segment &segment, const Tensor &tensor) {
    if (++walk.col < walk.width) return;
    walk.col = 0;
    if (++walk.row < walk.height) return;
    walk.row = 0;
    walk.left += walk.width;
    if (walk.left == segment.width) {
        walk.left = 0;
        walk.top += walk.height;
    }
    enter_tile(walk, segment, tensor);
}

// Two bits of the classes of rows and columns.
DEVICE u32 scale_of(const u8 *scales, u32 i) { return scales[i / 4] >> 2 * (i % 4) & 3u; }

// Contexts of up to 16 symbols from `first`, by where they are, a byte each; after the last one 0.
DEVICE uint4 contexts_of_places(const Segment &segment, const Tensor &tensor, const Plane &plane,
                                u32 kind, u32 first) {
    const u32 n_elements = segment.height * segment.width;
    const u32 step = plane.n_symbols < n_elements ? 2 : 1,
              end = least(first + UNIT, plane.n_symbols);
    const u8 *scales = pointer<const u8>(segment.scales);
    u32 contexts[4] = {0, 0, 0, 0};
    Walk walk = walk_from(segment, tensor, step * first);
#pragma unroll 1
    for (u32 i = first; i < end; ++i) {
        u32 context = walk.row % 8 * 8 + walk.col % 8;
        if (kind == CONTEXT_SCALE)
            context = scale_of(scales, walk.top + walk.row) * 4 +
                      scale_of(scales, segment.height + walk.left + walk.col);
#pragma unroll
        for (u32 k = 0; k < 4; ++k)
            if (k == i % UNIT / 4) contexts[k] |= context << 8 * (i % 4);
        go_on(walk, segment, tensor);
        if (step == 2) go_on(walk, segment, tensor);
    }
    return make_uint4(contexts[0], contexts[1], contexts[2], contexts[3]);
}

// Contexts of 16 symbols from `first`: the symbols of plane 0, or its 4-bit codes.
// Planes have whole units of 16 bytes.
DEVICE uint4 contexts_of_plane(const Plane &plane, bool codes, bool encoding, u32 first) {
    const u64 source = plane.coder == CODER_RAW && !encoding ? plane.at : plane.symbols;
    uint4 unit = make_uint4(0, 0, 0, 0);
    if (plane.coder == CODER_CONSTANT && !encoding) {
        const u32 four = (plane.table & 255u) * 0x01010101u;
        unit = make_uint4(four, four, four, four);
    } else if (codes) {
        const uint2 half = *pointer<const uint2>(source + first / 2);
        unit = make_uint4(half.x, half.y, 0, 0);
    } else {
        unit = *pointer<const uint4>(source + first);
    }
    if (!codes) return unit;
    const u32 nibbles = 0x0f0f0f0fu;
    const u32 even = unit.x & nibbles, odd = unit.x >> 4 & nibbles, next_even = unit.y & nibbles,
              next_odd = unit.y >> 4 & nibbles;
    return make_uint4(__byte_perm(even, odd, 0x5140), __byte_perm(even, odd, 0x7362),
                      __byte_perm(next_even, next_odd, 0x5140),
                      __byte_perm(next_even, next_odd, 0x7362));
}

// Classes of four symbols; of those that are there `n`, the others have class 0: they fill up the
// last group (spec: R9.12).
DEVICE u32 classes_of(const u8 *class_of, u32 contexts, u32 n) {
    u32 classes = 0;
#pragma unroll
    for (u32 k = 0; k < 4; ++k)
        if (k < n) classes |= (u32)class_of[contexts >> 8 * k & 255u] << 8 * k;
    return classes;
}

// Classes of the symbols of planes, into scratch. A block takes a plane. list: planes; what their
// contexts are made of is there. When encoding, plane 0 is in its scratch, however it is stored.
KERNEL __launch_bounds__(BLOCK_THREADS)
    find_classes(const ContextMap *__restrict__ maps, const Tensor *__restrict__ tensors,
                 const Segment *__restrict__ segments, const Plane *__restrict__ planes,
                 const u32 *__restrict__ list, u32 encoding) {
    __shared__ u8 class_of[N_CONTEXTS];
    const Plane &plane = planes[list[blockIdx.x]];
    const Segment &segment = segments[plane.segment];
    const Tensor &tensor = tensors[segment.tensor];
    const ContextMap &map = maps[plane.table];
    class_of[threadIdx.x] = map.class_of[threadIdx.x];
    __syncthreads();
    const u32 n = plane.n_symbols, n_padded = ceil_div(n, GROUP) * GROUP;
    const bool codes = segment.layout == LAYOUT_PAIRS && tensor.word_nbytes > 1;
    for (u32 i = threadIdx.x * UNIT; i < n_padded; i += BLOCK_THREADS * UNIT) {
        uint4 unit = make_uint4(0, 0, 0, 0);
        if (i < n) {
            if (map.kind == CONTEXT_PLANE)
                unit = contexts_of_plane(planes[segment.plane], codes, encoding != 0, i);
            else unit = contexts_of_places(segment, tensor, plane, map.kind, i);
        }
        const u32 left = i < n ? n - i : 0;
        unit.x = classes_of(class_of, unit.x, left);
        unit.y = classes_of(class_of, unit.y, left > 4 ? left - 4 : 0);
        unit.z = classes_of(class_of, unit.z, left > 8 ? left - 8 : 0);
        unit.w = classes_of(class_of, unit.w, left > 12 ? left - 12 : 0);
        *pointer<uint4>(plane.classes + i) = unit;
    }
}

// ---- streams ------------------------------------------------------------------------------------
// One symbol of each lane, under the table of its class;
// there are more tables than shared memory holds.
DEVICE u32 decode_step(Stream &stream, const Coder &coder, const u32 *__restrict__ luts,
                       const u32 *firsts, u32 of_class) {
    const u64 product = multiply_wide(stream.state, coder.scale);
    const u32 entry =
        __ldg(luts + firsts[of_class % MAX_CLASSES] + ((u32)product >> coder.slot_shift) / 4);
    advance(stream, coder, (u32)(product >> 32), entry);
    return entry;
}

// As `decode_group` of rans.cuh. The classes of the lane's four symbols are in `classes`,
// the first in the lowest byte.
DEVICE u32 decode_group(Stream &stream, const Coder &coder, const u32 *__restrict__ luts,
                        const u32 *firsts, u32 classes) {
    u32 symbols = decode_step(stream, coder, luts, firsts, classes);
    symbols = __byte_perm(symbols, decode_step(stream, coder, luts, firsts, classes >> 8), 0x0040);
    symbols = __byte_perm(symbols, decode_step(stream, coder, luts, firsts, classes >> 16), 0x0410);
    return __byte_perm(symbols, decode_step(stream, coder, luts, firsts, classes >> 24), 0x4210);
}

// Symbols of streams, into scratch, by the classes that `find_classes` has left. list: planes;
// those of a batch have one map. fault: what is said of a segment if a stream is bad. Grid: a block
// a batch.
KERNEL __launch_bounds__(BLOCK_THREADS, BLOCKS_ON_SM)
    decode_contexts(const ContextMap *maps, const u32 *__restrict__ luts, const Plane *planes,
                    const Batch *batches, const u32 *list, u32 fault, u32 *status) {
    __shared__ uint4 words[BLOCK_WARPS][BUFFER_UNITS];
    __shared__ u32 firsts[MAX_CLASSES];  // entry of each class
    const Batch batch = batches[blockIdx.x];
    const ContextMap &map = maps[batch.table];
    if (threadIdx.x < MAX_CLASSES) firsts[threadIdx.x] = map.tables[threadIdx.x] * MAX_SLOTS;
    __syncthreads();
    const Coder coder = coder_of(nullptr, map.prob_bits);
    const u32 warp = uniform_warp_id();
    for (u32 i = warp; i < batch.count; i += BLOCK_WARPS) {
        const Plane &plane = planes[list[batch.first + i]];
        Stream stream = open_stream(plane, words[warp]);
        u32 *out = pointer<u32>(plane.symbols) + lane_id();
        const u32 *classes = pointer<const u32>(plane.classes) + lane_id();
        u32 n_groups = ceil_div(plane.n_symbols, GROUP);
        for (; n_groups >= 2; n_groups -= 2, out += 2 * LANES, classes += 2 * LANES) {
            const u32 first = classes[0], second = classes[LANES];
            refill(stream);
            out[0] = decode_group(stream, coder, luts, firsts, first);
            out[LANES] = decode_group(stream, coder, luts, firsts, second);
        }
        if (n_groups > 0) {
            const u32 last = *classes;
            refill(stream);
            *out = decode_group(stream, coder, luts, firsts, last);
        }
        if (!ends_well(stream) && lane_id() == 0) atomicOr(&status[plane.segment], fault);
        __syncwarp();  // the buffer is free again
    }
}
