// What the kernels that take the tiles of a plane share (spec: chapters 7 and 8). A block takes a
// plane; its warps take a tile each, or all of them one where tiles are few.
#pragma once
#include "common.cuh"

// Threads that share a tile: a warp or the block.
// All of them call what takes it, with the same arguments.
struct Team {
    u32 size, rank, n_warps;
    u32 *scratch;  // shared memory: an u32 for each thread
};

DEVICE void sync(const Team &team) {
    if (team.size == BLOCK_THREADS) __syncthreads();
    else __syncwarp();
}

struct Job {
    const Segment &segment;
    const Tensor &tensor;
    const Plane &plane;
    const u8 *modes;  // of all tiles; null if they have the plane's
};

DEVICE Job job_of(const Tensor *tensors, const Segment *segments, const Plane *planes, u32 index) {
    const Plane &plane = planes[index];
    const Segment &segment = segments[plane.segment];
    const u8 *modes = nullptr;
    if (plane.prediction == PER_TILE) {
        modes = pointer<const u8>(segment.modes);
        for (u32 p = 0; p < plane.index; ++p)
            if (planes[segment.plane + p].prediction == PER_TILE) modes += segment.n_tiles;
    }
    return {segment, tensors[segment.tensor], plane, modes};
}

// Who shares a tile of a plane: with few tiles, the block does.
DEVICE Team team_of(const Segment &segment, u32 *scratch) {
    if (segment.n_tiles < BLOCK_WARPS) return {BLOCK_THREADS, threadIdx.x, BLOCK_WARPS, scratch};
    return {32, lane_id(), 1, scratch ? scratch + 32 * warp_id() : nullptr};
}

// A team's first tile, and from there to its next one.
DEVICE u32 first_tile(const Team &team) { return team.n_warps == 1 ? warp_id() : 0; }
DEVICE u32 tile_step(const Team &team) { return BLOCK_WARPS / team.n_warps; }

DEVICE u32 mode_of(const Job &job, u32 tile) {
    return job.modes ? job.modes[tile] : job.plane.prediction;
}
