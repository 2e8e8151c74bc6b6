// Transforms of tiles, in place (spec: R8.2 and R8.4). Residuals that are there become
// coefficients, and coefficients residuals: rows in groups of 8, then columns, or the other way
// round. What is left over at the edges of a tile stays.
#include "tiles.cuh"
#include "transform.cuh"

// ---- groups of eight ----------------------------------------------------------------------------
DEVICE void load_row(const u8 *at, int (&x)[SIZE]) {
    if ((u64)at % SIZE == 0) {
        const uint2 both = *(const uint2 *)at;
#pragma unroll
        for (u32 k = 0; k < SIZE; ++k) x[k] = signed_byte((k < 4 ? both.x : both.y) >> 8 * (k % 4));
    } else {
#pragma unroll
        for (u32 k = 0; k < SIZE; ++k) x[k] = signed_byte(at[k]);
    }
}

DEVICE void store_row(u8 *at, const int (&x)[SIZE]) {
    if ((u64)at % SIZE == 0) {
        u32 half[2] = {0, 0};
#pragma unroll
        for (u32 k = 0; k < SIZE; ++k) half[k / 4] |= ((u32)x[k] & 255u) << 8 * (k % 4);
        *(uint2 *)at = make_uint2(half[0], half[1]);
    } else {
#pragma unroll
        for (u32 k = 0; k < SIZE; ++k) at[k] = (u8)x[k];
    }
}

template <u32 TRANSFORM, bool INVERSE>
DEVICE void transform_rows(const Team &team, u8 *tile, u32 height, u32 width) {
    const u32 per_row = width / SIZE, n_groups = height * per_row;
#pragma unroll 1
    for (u32 i = team.rank; i < n_groups; i += team.size) {
        u8 *at = tile + i / per_row * width + i % per_row * SIZE;
        int x[SIZE];
        load_row(at, x);
        transform_values<TRANSFORM, INVERSE>(x);
        store_row(at, x);
    }
}

// UNIT columns side by side, 4 or 1, one after the other.
template <u32 TRANSFORM, bool INVERSE, u32 UNIT>
DEVICE void transform_unit(u8 *at, u32 width) {
    u32 bytes[SIZE];
#pragma unroll
    for (u32 k = 0; k < SIZE; ++k)
        bytes[k] = UNIT == 4 ? *(const u32 *)(at + k * width) : at[k * width];
#pragma unroll 1
    for (u32 shift = 0; shift < 8 * UNIT; shift += 8) {
        int x[SIZE];
#pragma unroll
        for (u32 k = 0; k < SIZE; ++k) x[k] = signed_byte(bytes[k] >> shift);
        transform_values<TRANSFORM, INVERSE>(x);
#pragma unroll
        for (u32 k = 0; k < SIZE; ++k)
            bytes[k] = choose(255u << shift, (u32)x[k] << shift, bytes[k]);
    }
#pragma unroll
    for (u32 k = 0; k < SIZE; ++k) {
        if (UNIT == 4) *(u32 *)(at + k * width) = bytes[k];
        else at[k * width] = (u8)bytes[k];
    }
}

template <u32 TRANSFORM, bool INVERSE, u32 UNIT>
DEVICE void transform_units(const Team &team, u8 *tile, u32 height, u32 width) {
    const u32 per_row = width / UNIT, n_groups = height / SIZE * per_row;
#pragma unroll 1
    for (u32 i = team.rank; i < n_groups; i += team.size)
        transform_unit<TRANSFORM, INVERSE, UNIT>(
            tile + i / per_row * SIZE * width + i % per_row * UNIT, width);
}

template <u32 TRANSFORM, bool INVERSE>
DEVICE void transform_columns(const Team &team, u8 *tile, u32 height, u32 width) {
    if (((u64)tile | width) % 4 == 0)
        transform_units<TRANSFORM, INVERSE, 4>(team, tile, height, width);
    else transform_units<TRANSFORM, INVERSE, 1>(team, tile, height, width);
}

template <u32 TRANSFORM, bool INVERSE>
DEVICE void transform_tile(const Team &team, u8 *tile, u32 height, u32 width) {
    if (INVERSE) transform_columns<TRANSFORM, INVERSE>(team, tile, height, width);
    else transform_rows<TRANSFORM, INVERSE>(team, tile, height, width);
    sync(team);
    if (INVERSE) transform_rows<TRANSFORM, INVERSE>(team, tile, height, width);
    else transform_columns<TRANSFORM, INVERSE>(team, tile, height, width);
}

// ---- kernels ------------------------------------------------------------------------------------
template <bool INVERSE>
DEVICE void transform_plane(const Job &job, u64 plane) {
    const Team team = team_of(job.segment, nullptr);
    for (u32 i = first_tile(team); i < job.segment.n_tiles; i += tile_step(team)) {
        const Tile tile = tile_of(job.segment, job.tensor, i);
        const u32 mode = mode_of(job, i);
        u8 *at = pointer<u8>(plane + tile.first);
        if (!is_mode(mode)) continue;  // `inverse_prediction` says so
        if (mode >> 4 == TRANSFORM_DCT)
            transform_tile<TRANSFORM_DCT, INVERSE>(team, at, tile.height, tile.width);
        else if (mode >> 4 == TRANSFORM_ADST)
            transform_tile<TRANSFORM_ADST, INVERSE>(team, at, tile.height, tile.width);
    }
}

// Symbols, before `inverse_prediction`. list: planes.
KERNEL __launch_bounds__(BLOCK_THREADS, 4)
    inverse_transform(const Tensor *__restrict__ tensors, const Segment *__restrict__ segments,
                      const Plane *__restrict__ planes, const u32 *__restrict__ list) {
    const Job job = job_of(tensors, segments, planes, list[blockIdx.x]);
    transform_plane<true>(job, job.plane.symbols);
}

// Residuals, after `forward_prediction`. list: planes.
KERNEL __launch_bounds__(BLOCK_THREADS, 4)
    forward_transform(const Tensor *__restrict__ tensors, const Segment *__restrict__ segments,
                      const Plane *__restrict__ planes, const u32 *__restrict__ list) {
    const Job job = job_of(tensors, segments, planes, list[blockIdx.x]);
    transform_plane<false>(job, job.plane.residuals);
}
