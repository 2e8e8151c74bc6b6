// Prediction and its inverse (spec: chapter 7); for transforms see transform.cu.
//
// A tile is height * width bytes without gaps. The first row is predicted as by LEFT and the first
// column as by TOP, whatever the mode. So LEFT, TOP and PLANAR are undone by sums modulo 256: of
// the first column, then of all rows; of the first row, then of all columns; of all columns, then
// of all rows. AVG has no such form: a wavefront goes over bands of 32 rows. Bytes are taken in
// units of 16, 4 or 1: the largest of which rows have a whole number, and at whose multiples they
// start.
#include "tiles.cuh"

// ---- bytes in registers -------------------------------------------------------------------------
template <u32 UNIT>
struct Bytes {
    enum { PARTS = UNIT == 16 ? 4 : 1 };
    u32 part[PARTS];  // the first byte in the lowest bits; of UNIT 1, the only one
};

template <u32 UNIT>
DEVICE Bytes<UNIT> load(const u8 *at) {
    if constexpr (UNIT == 16) {
        const uint4 all = *(const uint4 *)at;
        return {{all.x, all.y, all.z, all.w}};
    } else {
        return {{UNIT == 4 ? *(const u32 *)at : *at}};
    }
}

template <u32 UNIT>
DEVICE void store(u8 *at, const Bytes<UNIT> &bytes) {
    if constexpr (UNIT == 16)
        *(uint4 *)at = make_uint4(bytes.part[0], bytes.part[1], bytes.part[2], bytes.part[3]);
    else if constexpr (UNIT == 4) *(u32 *)at = bytes.part[0];
    else *at = (u8)bytes.part[0];
}

DEVICE u32 average_bytes(u32 a, u32 b) { return (a & b) + ((a ^ b) >> 1 & 0x7f7f7f7f); }

#ifdef __CUDA_ARCH__
DEVICE u32 sum_of_bytes(u32 x) { return __dp4a(x, 0x01010101u, 0u); }
#else
DEVICE u32 sum_of_bytes(u32 x) { return (x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24); }
#endif

template <u32 UNIT>
DEVICE u32 sum_of(const Bytes<UNIT> &bytes) {
    u32 sum = 0;
#pragma unroll
    for (u32 k = 0; k < Bytes<UNIT>::PARTS; ++k) sum += sum_of_bytes(bytes.part[k]);
    return sum;
}

// Each byte becomes the sum of `before`, which is below 256, the bytes before it, and itself. Sums
// are made in fields of 16 bits: those up to the second and fourth byte by a multiplication; those
// up to the first and third are the same less the byte.
template <u32 UNIT>
DEVICE void prefix(Bytes<UNIT> &bytes, u32 before) {
#pragma unroll
    for (u32 k = 0; k < Bytes<UNIT>::PARTS; ++k) {
        const u32 even = bytes.part[k] & 0x00ff00ff, odd = bytes.part[k] >> 8 & 0x00ff00ff;
        const u32 sums = (even + odd + before) * 0x00010001;
        bytes.part[k] = __byte_perm(sums - odd, sums, 0x6240);
        before = sums >> 16;
    }
}

// ---- rows ---------------------------------------------------------------------------------------
// Sums along rows of `per_row` units, which follow one another: `n_units` in all. One warp; a step
// takes 32 units. `column`: of this lane's first unit in its row. `carry`: the sum of what comes
// before, in the row of the first unit.
template <u32 UNIT>
DEVICE void sum_units(u8 *at, u32 n_units, u32 per_row, u32 column, u32 carry) {
    const u32 lane = lane_id(), stride = 32 % per_row, lanes_of_row = least(32, per_row);
    Bytes<UNIT> next = {};
    if (lane < n_units) next = load<UNIT>(at + lane * UNIT);
#pragma unroll 1
    for (u32 first = 0; first < n_units; first += 32) {
        const u32 unit = first + lane;
        Bytes<UNIT> bytes = next;
        next = {};
        if (unit + 32 < n_units) next = load<UNIT>(at + (unit + 32) * UNIT);
        // reach: how many lanes below have units of the same row
        const u32 own = sum_of(bytes), reach = least(lane, column);
        u32 sum = own;
#pragma unroll 1
        for (u32 d = 1; d < lanes_of_row; d *= 2) {
            const u32 other = __shfl_up_sync(ALL_LANES, sum, d);
            if (reach >= d) sum += other;
        }
        if (column > lane) sum += carry;
        carry = __shfl_sync(ALL_LANES, sum, 31);
        prefix(bytes, (sum - own) & 255);
        if (unit < n_units) store(at + unit * UNIT, bytes);
        column += stride;
        if (column >= per_row) column -= per_row;
    }
}

// What a warp sums along rows: whole ones, or, with `row_nbytes` 0, a part of one,
// before which the sum is `carry`.
struct Piece {
    u64 at;
    u32 nbytes, row_nbytes, carry;
};

template <u32 UNIT>
DEVICE void sum_units_of(const Piece &piece) {
    const u32 per_row = piece.row_nbytes ? piece.row_nbytes / UNIT : 0xffffffff;
    const u32 column = piece.row_nbytes ? lane_id() % per_row : lane_id() + 1;
    sum_units<UNIT>(pointer<u8>(piece.at), piece.nbytes / UNIT, per_row, column, piece.carry);
}

DEVICE void sum_piece(const Piece &piece) {
    const u64 alignment = piece.at | piece.nbytes | piece.row_nbytes;
    if (alignment % 16 == 0) sum_units_of<16>(piece);
    else if (alignment % 4 == 0) sum_units_of<4>(piece);
    else sum_units_of<1>(piece);
}

// This warp's part of `n` bytes of a row, before which the sum is `carry`; afterwards that is the
// sum before what follows them.
DEVICE Piece part_of_row(const Team &team, u64 at, u32 n, u32 &carry) {
    enum { STEP = 16 * 32 };
    const u32 range = ceil_div(ceil_div(n, STEP), team.n_warps) * STEP,
              begin = least(warp_id() * range, n);
    Piece piece = {at + begin, least(range, n - begin), 0, carry};
    const u8 *own = pointer<const u8>(piece.at);
    u32 sum = 0;
    if ((piece.at | piece.nbytes) % 16 == 0) {
        for (u32 i = lane_id() * 16; i < piece.nbytes; i += STEP) sum += sum_of(load<16>(own + i));
    } else {
        for (u32 i = lane_id(); i < piece.nbytes; i += 32) sum += own[i];
    }
#pragma unroll
    for (u32 d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, d);
    if (lane_id() == 0) team.scratch[warp_id()] = sum;
    sync(team);
    for (u32 warp = 0; warp < team.n_warps; ++warp) {
        if (warp < warp_id()) piece.carry += team.scratch[warp];
        carry += team.scratch[warp];
    }
    sync(team);
    return piece;
}

// Sums along rows. A warp has a range of them; where there are fewer rows than warps, a part of
// each: of what can be taken in units of 16 bytes, then of the rest.
DEVICE void sum_rows(const Team &team, u64 tile, u32 n_rows, u32 width) {
    const bool shared = n_rows < team.n_warps;
    u32 carry = 0;
#pragma unroll 1
    for (u32 i = 0; i < (shared ? 2 * n_rows : 1); ++i) {
        Piece piece;
        if (shared) {
            const u64 row = tile + i / 2 * width;
            const u32 head = row % 16 ? 0 : width / 16 * 16;
            if (i % 2 == 0) carry = 0;
            piece = part_of_row(team, i % 2 ? row + head : row, i % 2 ? width - head : head, carry);
        } else {
            const u32 range = ceil_div(n_rows, team.n_warps),
                      begin = least(team.rank / 32 * range, n_rows);
            piece = {tile + begin * width, least(range, n_rows - begin) * width, width, 0};
        }
        sum_piece(piece);
    }
}

// ---- columns ------------------------------------------------------------------------------------
// Sums down a column of units, over `n_rows` rows before which they are `sum`.
// Several rows are loaded at once.
template <u32 UNIT, bool STORES>
DEVICE u32 sum_down(u8 *at, u32 n_rows, u32 width, u32 sum) {
    enum { AT_ONCE = 4 };
#pragma unroll 1
    for (; n_rows >= AT_ONCE; n_rows -= AT_ONCE, at += AT_ONCE * width) {
        u32 bytes[AT_ONCE];
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; ++k) bytes[k] = load<UNIT>(at + k * width).part[0];
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; ++k) {
            sum = add_bytes(sum, bytes[k]);
            if (STORES) store<UNIT>(at + k * width, {{sum}});
        }
    }
#pragma unroll 1
    for (; n_rows > 0; --n_rows, at += width) {
        sum = add_bytes(sum, load<UNIT>(at).part[0]);
        if (STORES) store<UNIT>(at, {{sum}});
    }
    return sum;
}

// Sum of the values of the threads `across`, 2 * `across`, ... below this one, byte by byte;
// `turn`: how many those are.
DEVICE u32 sum_of_turns(const Team &team, u32 value, u32 across, u32 turn, u32 n_turns) {
    u32 *own = team.scratch + team.rank, sum = value;
    *own = sum;
    sync(team);
    for (u32 d = 1; d < n_turns; d *= 2) {
        if (turn >= d) sum = add_bytes(sum, *(own - d * across));
        sync(team);
        *own = sum;
        sync(team);
    }
    return subtract_bytes(sum, value);
}

// Sums down the first `n_units` columns of units: a thread has one. Where there are fewer than
// threads, columns are cut into ranges of rows, whose sums are made first.
template <u32 UNIT>
DEVICE void sum_unit_columns(const Team &team, u8 *tile, u32 height, u32 width, u32 n_units) {
#pragma unroll 1
    for (u32 first = 0; first < n_units; first += team.size) {
        const u32 across = least(n_units - first, team.size),
                  n_ranges = least(team.size / across, height);
        const u32 turn = team.rank / across, range = ceil_div(height, n_ranges);
        const u32 begin = turn < n_ranges ? least(turn * range, height) : height,
                  n_rows = least(range, height - begin);
        u8 *own = tile + begin * width + (first + team.rank % across) * UNIT;
        u32 sum = 0;
        if (n_ranges > 1)
            sum = sum_of_turns(team, sum_down<UNIT, false>(own, n_rows, width, 0), across, turn,
                               n_ranges);
        sum_down<UNIT, true>(own, n_rows, width, sum);
    }
}

DEVICE void sum_columns(const Team &team, u8 *tile, u32 height, u32 width, u32 n_columns) {
    if (((u64)tile | width | n_columns) % 4 == 0)
        sum_unit_columns<4>(team, tile, height, width, n_columns / 4);
    else sum_unit_columns<1>(team, tile, height, width, n_columns);
}

// ---- AVG ----------------------------------------------------------------------------------------
// A unit's bytes from its residuals, the unit above (0 in the first row) and the byte to the left,
// which becomes its last byte.
template <u32 UNIT>
DEVICE u32 undo_average(u32 residuals, u32 above, u32 &left, bool first_row, bool first_column) {
    u32 bytes = 0;
#pragma unroll
    for (u32 shift = 0; shift < 8 * UNIT; shift += 8) {
        u32 top = above >> shift & 255;
        if (first_column && shift == 0) left = top;
        if (first_row) top = left;
        left = ((residuals >> shift) + (left + top) / 2) & 255;
        bytes |= left << shift;
    }
    return bytes;
}

// One warp: lanes have the rows of a band, each a unit after the row above,
// whose bytes come from the lane below.
template <u32 UNIT>
DEVICE void undo_average_of_tile(u8 *tile, u32 height, u32 width) {
    const u32 lane = lane_id(), per_row = width / UNIT;
    for (u32 band = 0; band < height; band += 32) {
        const u32 row = band + lane;
        u8 *own = tile + (row < height ? row : 0) * width;
        u32 bytes = 0, left = 0;
        for (u32 step = 0; step < per_row + 31; ++step) {
            const u32 unit = step - lane;  // lanes that have not begun yet are far beyond the end
            u32 above = __shfl_up_sync(ALL_LANES, bytes, 1);
            if (unit < per_row && row < height) {
                u8 *at = own + unit * UNIT;
                if (lane == 0) above = row ? load<UNIT>(at - width).part[0] : 0;
                bytes =
                    undo_average<UNIT>(load<UNIT>(at).part[0], above, left, row == 0, unit == 0);
                store<UNIT>(at, {{bytes}});
            }
        }
        __syncwarp();  // the next band reads this one's last row
    }
}

// ---- inverse ------------------------------------------------------------------------------------
enum : u32 { CENTRES = 0x80808080 };  // what NONE predicts in front of a transform, in each byte

// That of NONE, in front of a transform.
DEVICE void add_centre(const Team &team, u8 *tile, u32 n) {
    if (((u64)tile | n) % 4 == 0) {
        for (u32 i = team.rank * 4; i < n; i += team.size * 4) *(u32 *)(tile + i) ^= CENTRES;
    } else {
        for (u32 i = team.rank; i < n; i += team.size) tile[i] ^= CENTRES & 255;
    }
}

DEVICE void undo(const Team &team, u8 *tile, u32 height, u32 width, u32 mode) {
    if (mode == MODE_NONE) return;
    mode &= 15;
    if (mode == MODE_NONE) {
        add_centre(team, tile, height * width);
        return;
    }
    if (width == 1) width = height, height = 1;
    if (mode == MODE_AVG && height > 1) {
        if (team.rank >= 32) return;
        if (((u64)tile | width) % 4 == 0) undo_average_of_tile<4>(tile, height, width);
        else undo_average_of_tile<1>(tile, height, width);
        return;
    }
    const bool rows_first = mode == MODE_TOP || height == 1;
#pragma unroll 1
    for (u32 pass = 0; pass < (height == 1 ? 1 : 2); ++pass) {
        if (rows_first == (pass == 0)) sum_rows(team, (u64)tile, rows_first ? 1 : height, width);
        else sum_columns(team, tile, height, width, mode == MODE_LEFT ? 1 : width);
        sync(team);
    }
}

// ---- forward ------------------------------------------------------------------------------------
// What is predicted for a unit, and the neighbours that it takes:
// bytes to the left, above, and above to the left.
DEVICE u32 prediction_of(u32 left, u32 top, u32 corner, u32 prediction) {
    if (prediction == MODE_LEFT) return left;
    if (prediction == MODE_TOP) return top;
    if (prediction == MODE_AVG) return average_bytes(left, top);
    return add_bytes(left, subtract_bytes(top, corner));
}

// In the first row all neighbours are the left one, and in the first column the one above,
// so that each mode predicts that.
template <u32 UNIT>
DEVICE void subtract_units(const Team &team, const u8 *tile, u8 *out, u32 height, u32 width,
                           u32 mode) {
    const u32 per_row = width / UNIT, n_units = height * per_row, stride = team.size % per_row;
    u32 column = team.rank % per_row;
    const u32 prediction = mode & 15;
    for (u32 unit = team.rank; unit < n_units; unit += team.size) {
        const u8 *at = tile + unit * UNIT;
        const u32 bytes = load<UNIT>(at).part[0];
        u32 predicted = mode == MODE_NONE ? 0 : CENTRES;
        if (prediction != MODE_NONE) {
            const bool first_row = unit < per_row, first_column = column == 0;
            u32 top = first_row ? 0 : load<UNIT>(at - width).part[0];
            u32 left = first_column ? top & 255 : at[-1];
            u32 corner = first_column ? left : first_row ? 0 : at[-1 - (i64)width];
            if (UNIT == 4) left |= bytes << 8, corner |= top << 8;
            if (first_row) top = corner = left;
            predicted = prediction_of(left, top, corner, prediction);
        }
        store<UNIT>(out + unit * UNIT, {{subtract_bytes(bytes, predicted)}});
        column += stride;
        if (column >= per_row) column -= per_row;
    }
}

DEVICE void subtract(const Team &team, const u8 *tile, u8 *out, u32 height, u32 width, u32 mode) {
    if (((u64)tile | (u64)out | width) % 4 == 0)
        subtract_units<4>(team, tile, out, height, width, mode);
    else subtract_units<1>(team, tile, out, height, width, mode);
}

// ---- kernels ------------------------------------------------------------------------------------
KERNEL __launch_bounds__(BLOCK_THREADS, 4)
    inverse_prediction(const Tensor *__restrict__ tensors, const Segment *__restrict__ segments,
                       const Plane *__restrict__ planes, const u32 *__restrict__ list,
                       u32 *__restrict__ status) {
    __shared__ u32 scratch[BLOCK_THREADS];
    const Job job = job_of(tensors, segments, planes, list[blockIdx.x]);
    const Team team = team_of(job.segment, scratch);
    u8 *symbols = pointer<u8>(job.plane.symbols);
    for (u32 i = first_tile(team); i < job.segment.n_tiles; i += tile_step(team)) {
        const Tile tile = tile_of(job.segment, job.tensor, i);
        const u32 mode = mode_of(job, i);
        if (is_mode(mode)) undo(team, symbols + tile.first, tile.height, tile.width, mode);
        else if (team.rank == 0) atomicOr(status + job.plane.segment, (u32)BAD_TILE_MODE);
    }
}

KERNEL __launch_bounds__(BLOCK_THREADS)
    forward_prediction(const Tensor *__restrict__ tensors, const Segment *__restrict__ segments,
                       const Plane *__restrict__ planes, const u32 *__restrict__ list) {
    const Job job = job_of(tensors, segments, planes, list[blockIdx.x]);
    const Team team = team_of(job.segment, nullptr);
    const u8 *symbols = pointer<const u8>(job.plane.symbols);
    u8 *residuals = pointer<u8>(job.plane.residuals);
    for (u32 i = first_tile(team); i < job.segment.n_tiles; i += tile_step(team)) {
        const Tile tile = tile_of(job.segment, job.tensor, i);
        const u32 mode = mode_of(job, i);
        subtract(team, symbols + tile.first, residuals + tile.first, tile.height, tile.width, mode);
    }
}
