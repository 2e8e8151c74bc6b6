// Items of words: where they are in the matrix, how they are moved, joined from the bytes of planes
// and cut into them, for any word size, layout, map and tiling (spec: chapters 5 and 6). The
// block's threads take the items of one segment in turn.
//
// An item is what a thread moves at once: 16 bytes of words that follow one another in element
// order, and as many bytes of planes. In the matrix an item's words are together, unless a row of
// their tile ends between them; if they are aligned too, they are loaded and stored as one. Of a
// segment's last item, words may be missing: in planes and records there are bytes for them, for
// those have whole units of 16; in the matrix there are not.
#pragma once
#include "common.cuh"

enum { ITEM_NBYTES = 16 };

template <u32 NBYTES>
struct Item {
    enum { COUNT = ITEM_NBYTES / NBYTES };  // words
    u32 part[4];                            // the first word in the lowest bits
};

// An item's bytes in each plane, the top one first; of less than four, the others are anything.
template <u32 NBYTES>
struct Planes {
    enum {
        COUNT = ITEM_NBYTES / NBYTES, PARTS = COUNT < 4 ? 1 : COUNT / 4,
        PACKED_PARTS = (PARTS + 1) / 2
    };
    u32 part[NBYTES][PARTS];
};

// ---- places -------------------------------------------------------------------------------------
struct Grid {
    u64 words, row_nbytes;  // the segment's first word; from a row of the matrix to the next
    u32 n, height, width;   // of the segment; n: its words
    u32 tile_rows, tile_cols;
    bool raster;                          // elements run row by row. Only then:
    // where this thread's next item starts; from there to the one after it
    u32 row, col, step_rows, step_cols;
};

struct Place {
    u64 address;
    u32 run;  // words from there to the end of the tile's row
};

template <u32 NBYTES>
DEVICE Grid grid_of(const Segment &segment, const Tensor &tensor) {
    const u32 n = segment.height * segment.width, count = Item<NBYTES>::COUNT;
    const bool raster =
        segment.layout == LAYOUT_RAW || segment.height == 1 || tensor.tile_cols >= segment.width;
    const bool contiguous = raster && (segment.height == 1 || segment.width == tensor.cols);
    Grid grid;
    grid.words = segment.words;
    grid.row_nbytes = tensor.cols * NBYTES;
    grid.n = n;
    grid.height = contiguous ? 1 : segment.height;
    grid.width = contiguous ? n : segment.width;
    grid.tile_rows = tensor.tile_rows;
    grid.tile_cols = tensor.tile_cols;
    grid.raster = raster;
    grid.row = threadIdx.x * count / grid.width;
    grid.col = threadIdx.x * count % grid.width;
    grid.step_rows = BLOCK_THREADS * count / grid.width;
    grid.step_cols = BLOCK_THREADS * count % grid.width;
    return grid;
}

template <u32 NBYTES>
DEVICE Place place_at(const Grid &grid, u32 row, u32 col, u32 run) {
    return {grid.words + row * grid.row_nbytes + (u64)col * NBYTES, run};
}

// Where element i is, which is below n.
template <u32 NBYTES>
DEVICE Place locate(const Grid &grid, u32 i) {
    if (grid.raster) {
        const u32 row = i / grid.width, col = i % grid.width;
        return place_at<NBYTES>(grid, row, col, grid.width - col);
    }
    const u32 top = i / (grid.tile_rows * grid.width) * grid.tile_rows,
              in_band = i - top * grid.width;
    const u32 height = least(grid.tile_rows, grid.height - top);
    const u32 left = in_band / (height * grid.tile_cols) * grid.tile_cols,
              in_tile = in_band - left * height;
    const u32 width = least(grid.tile_cols, grid.width - left);
    const u32 col = in_tile % width;
    return place_at<NBYTES>(grid, top + in_tile / width, left + col, width - col);
}

// Where element i is, with which an item of this thread starts. Called for its items in turn.
template <u32 NBYTES>
DEVICE Place next_place(Grid &grid, u32 i) {
    if (!grid.raster) return locate<NBYTES>(grid, i);
    const Place place = place_at<NBYTES>(grid, grid.row, grid.col, grid.width - grid.col);
    grid.row += grid.step_rows;
    grid.col += grid.step_cols;
    if (grid.col >= grid.width) {
        grid.col -= grid.width;
        ++grid.row;
    }
    return place;
}

// ---- loads and stores ---------------------------------------------------------------------------
// COUNT bytes at a multiple of that.
template <u32 COUNT>
DEVICE void load_bytes(u64 address, u32 *parts) {
    if constexpr (COUNT == 16) {
        const uint4 all = *pointer<const uint4>(address);
        parts[0] = all.x, parts[1] = all.y, parts[2] = all.z, parts[3] = all.w;
    } else if constexpr (COUNT == 8) {
        const uint2 all = *pointer<const uint2>(address);
        parts[0] = all.x, parts[1] = all.y;
    } else {
        parts[0] = (u32)load_word(address, COUNT);
    }
}

template <u32 COUNT>
DEVICE void store_bytes(u64 address, const u32 *parts) {
    if constexpr (COUNT == 16)
        *pointer<uint4>(address) = make_uint4(parts[0], parts[1], parts[2], parts[3]);
    else if constexpr (COUNT == 8) *pointer<uint2>(address) = make_uint2(parts[0], parts[1]);
    else store_word(address, COUNT, parts[0]);
}

// An item loses its first word and gets another one after its last.
template <u32 NBYTES>
DEVICE void shift_in(Item<NBYTES> &item, u64 word) {
    if constexpr (NBYTES == 8) {
        item = {{item.part[2], item.part[3], (u32)word, (u32)(word >> 32)}};
    } else if constexpr (NBYTES == 4) {
        item = {{item.part[1], item.part[2], item.part[3], (u32)word}};
    } else {
        for (u32 k = 0; k < 3; ++k)
            item.part[k] = __funnelshift_r(item.part[k], item.part[k + 1], 8 * NBYTES);
        item.part[3] = __funnelshift_r(item.part[3], (u32)word, 8 * NBYTES);
    }
}

// The words of an item, by the largest pieces that are together and aligned;
// one by one where a row ends between them.
template <u32 NBYTES>
DEVICE void store_item(const Grid &grid, Place place, u32 i, Item<NBYTES> item) {
    constexpr u32 COUNT = Item<NBYTES>::COUNT;
    const bool together = place.run >= COUNT;
    if (together && place.address % ITEM_NBYTES == 0) {
        *pointer<uint4>(place.address) =
            make_uint4(item.part[0], item.part[1], item.part[2], item.part[3]);
    } else if (together && place.address % 4 == 0) {
#pragma unroll
        for (u32 k = 0; k < 4; ++k) pointer<u32>(place.address)[k] = item.part[k];
    } else if (NBYTES <= 2 && together) {
#pragma unroll
        for (u32 k = 0; k < COUNT; ++k)
            store_word(place.address + k * NBYTES, NBYTES,
                       item.part[k * NBYTES / 4] >> 8 * (k * NBYTES % 4));
    } else {
#pragma unroll 1
        for (u32 end = least(i + COUNT, grid.n); i < end; ++i) {
            if (place.run == 0) place = locate<NBYTES>(grid, i);
            store_word(place.address, NBYTES, (u64)item.part[1] << 32 | item.part[0]);
            place.address += NBYTES;
            --place.run;
            shift_in(item, 0);
        }
    }
}

// What is missing is 0.
template <u32 NBYTES>
DEVICE Item<NBYTES> load_item(const Grid &grid, Place place, u32 i) {
    constexpr u32 COUNT = Item<NBYTES>::COUNT;
    const bool together = place.run >= COUNT;
    Item<NBYTES> item = {{0, 0, 0, 0}};
    if (together && place.address % ITEM_NBYTES == 0) {
        load_bytes<ITEM_NBYTES>(place.address, item.part);
    } else if (together && place.address % 4 == 0) {
#pragma unroll
        for (u32 k = 0; k < 4; ++k) item.part[k] = pointer<const u32>(place.address)[k];
    } else if (NBYTES <= 2 && together) {
#pragma unroll
        for (u32 k = 0; k < COUNT; ++k) {
            const u32 word = (u32)load_word(place.address + k * NBYTES, NBYTES);
            item.part[k * NBYTES / 4] |= word << 8 * (k * NBYTES % 4);
        }
    } else {
#pragma unroll 1
        for (u32 end = i + COUNT; i < end; ++i) {
            if (place.run == 0 && i < grid.n) place = locate<NBYTES>(grid, i);
            shift_in(item, i < grid.n ? load_word(place.address, NBYTES) : 0);
            place.address += NBYTES;
            --place.run;
        }
    }
    return item;
}

// ---- words and bytes ----------------------------------------------------------------------------
// Byte j of x[i] becomes byte i of x[j].
DEVICE void transpose(u32 (&x)[4]) {
    const u32 a = __byte_perm(x[0], x[1], 0x5140), b = __byte_perm(x[2], x[3], 0x5140);
    const u32 c = __byte_perm(x[0], x[1], 0x7362), d = __byte_perm(x[2], x[3], 0x7362);
    x[0] = __byte_perm(a, b, 0x5410);
    x[1] = __byte_perm(a, b, 0x7632);
    x[2] = __byte_perm(c, d, 0x5410);
    x[3] = __byte_perm(c, d, 0x7632);
}

template <u32 NBYTES>
DEVICE Item<NBYTES> join(const Planes<NBYTES> &planes) {
    Item<NBYTES> item;
    if constexpr (NBYTES <= 2) {
#pragma unroll
        for (u32 k = 0; k < 4; ++k) {
            const u32 top = planes.part[0][k / NBYTES], low = planes.part[NBYTES - 1][k / NBYTES];
            item.part[k] = NBYTES == 1 ? top : __byte_perm(low, top, k % 2 ? 0x7362 : 0x5140);
        }
    } else {
#pragma unroll
        for (u32 half = 0; half < NBYTES / 4; ++half) {  // of each word, the low one first
            u32 x[4];
#pragma unroll
            for (u32 p = 0; p < 4; ++p) x[p] = planes.part[NBYTES - 1 - 4 * half - p][0];
            transpose(x);
#pragma unroll
            for (u32 k = 0; k < Item<NBYTES>::COUNT; ++k) item.part[k * NBYTES / 4 + half] = x[k];
        }
    }
    return item;
}

template <u32 NBYTES>
DEVICE Planes<NBYTES> cut(const Item<NBYTES> &item) {
    Planes<NBYTES> planes;
    if constexpr (NBYTES <= 2) {
#pragma unroll
        for (u32 k = 0; k < 4; k += NBYTES) {
            const u32 first = item.part[k], second = item.part[k + NBYTES - 1];
            planes.part[0][k / NBYTES] = NBYTES == 1 ? first : __byte_perm(first, second, 0x7531);
            if (NBYTES == 2)
                planes.part[NBYTES - 1][k / NBYTES] = __byte_perm(first, second, 0x6420);
        }
    } else {
#pragma unroll
        for (u32 half = 0; half < NBYTES / 4; ++half) {
            u32 x[4] = {0, 0, 0, 0};
#pragma unroll
            for (u32 k = 0; k < Item<NBYTES>::COUNT; ++k) x[k] = item.part[k * NBYTES / 4 + half];
            transpose(x);
#pragma unroll
            for (u32 p = 0; p < 4; ++p) planes.part[NBYTES - 1 - 4 * half - p][0] = x[p];
        }
    }
    return planes;
}

template <u32 NBYTES, bool INVERSE>
DEVICE void map_item(const WordMap &map, Item<NBYTES> &item) {
#pragma unroll
    for (u32 k = 0; k < 4; k += NBYTES == 8 ? 2 : 1) {
        if constexpr (NBYTES == 8) {
            const u64 x = (u64)item.part[k + 1] << 32 | item.part[k],
                      y = INVERSE ? invert(map, x) : apply(map, x);
            item.part[k] = (u32)y;
            item.part[k + 1] = (u32)(y >> 32);
        } else {
            item.part[k] = INVERSE ? invert(map, item.part[k]) : apply(map, item.part[k]);
        }
    }
}

// ---- codes --------------------------------------------------------------------------------------
DEVICE u32 each_byte(u32 byte) { return byte * 0x01010101; }

// Codes, two to a byte, become one a byte.
template <u32 PARTS>
DEVICE void unpack_codes(const u32 *packed, u32 (&codes)[PARTS]) {
#pragma unroll
    for (u32 k = 0; k < PARTS; ++k) {
        const u32 even = packed[k / 2] & 0x0f0f0f0f, odd = packed[k / 2] >> 4 & 0x0f0f0f0f;
        codes[k] = __byte_perm(even, odd, k % 2 ? 0x7362 : 0x5140);
    }
}

template <u32 PARTS>
DEVICE void pack_codes(const u32 (&codes)[PARTS], u32 *packed) {
#pragma unroll
    for (u32 k = 0; k < PARTS; k += 2) {
        const u32 first = codes[k], second = codes[(k + 1) % PARTS];
        packed[k / 2] = __byte_perm(first | first >> 4, second | second >> 4, 0x6420);
    }
}
