// The part of CUDA C++ that the kernels use, for g++: a kernel's source is compiled unchanged, and
// each thread is a fiber of one CPU thread. What a kernel must keep to, beyond CUDA's own rules:
// - blocks and grids have one dimension; collectives name the whole warp (common.cuh, rule 4);
// - __shared__ variables are static: no `extern __shared__`, no __activemask, no inline PTX outside
//   of `#ifdef __CUDA_ARCH__`.
#pragma once

#include <cstdint>
#include <cstring>

namespace cuda_host {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;

constexpr u32 WARP_SIZE = 32, WHOLE_WARP = 0xffffffffu;

struct Index {
    u32 x, y, z;
};

struct Position {
    Index thread, block, block_size, grid_size;
};

extern Position position;  // of the fiber that runs

enum class Operation : u32 {
    sync, ballot, any, all, shuffle, shuffle_up, shuffle_down, shuffle_xor, reduce, multiply
};

// What the lanes of a warp gave to a collective.
struct Exchange {
    Operation operation;
    u32 line;
    const char *file;
    u32 not_zero;  // set of lanes whose value is not zero
    u64 values[WARP_SIZE];
};

// Wait for all lanes of the warp. The exchange is valid until this lane arrives at the next
// collective.
const Exchange &arrive(Operation operation, u32 mask, u64 value, const char *file, u32 line);
void wait_for_block(const char *file, u32 line);
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

inline u32 lane() { return position.thread.x % WARP_SIZE; }

template <class T>
T shuffle(Operation operation, u32 mask, T value, u32 from, const char *file, u32 line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "__shfl_sync takes values of 32 or 64 bits");
    u64 bits = 0;
    memcpy(&bits, &value, sizeof(T));
    const u64 other = arrive(operation, mask, bits, file, line).values[from % WARP_SIZE];
    memcpy(&value, &other, sizeof(T));
    return value;
}

struct Kernel {
    const char *name;
    void *function;
    void (*call)(void *function, void **parameters);
    u32 n_parameters;
    const u32 *sizes;  // of the parameters, in bytes
};

extern const Kernel kernels[];
extern const u32 n_kernels;

// When and by whom something is done: what the check for races (races.cpp) compares.
struct Moment {
    u32 block;       // its index
    u32 slot;        // tells apart the blocks that are under way
    u32 n_barriers;  // __syncthreads that the block has passed
    // __syncwarp that the warp has passed: other collectives order no memory accesses
    u32 n_syncs;
};

#ifdef EMULATOR_RACES
Moment moment();
bool is_private(u64 address);  // the fiber's own stack, and what it is told
void forget_accesses();
void note_atomic(const volatile void *at, u32 nbytes, const void *by);
#define EMULATOR_ATOMIC_FUNCTION __attribute__((noinline, no_sanitize("thread")))
#else
inline void forget_accesses() {}
inline void note_atomic(const volatile void *, u32, const void *) {}
#define EMULATOR_ATOMIC_FUNCTION inline
#endif

}  // namespace cuda_host

// ---- declarations -------------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) alignas(n)
#define __constant__ static const
// the only static variables that device code can have: shared.ld finds them
#define __shared__ static

#define threadIdx (cuda_host::position.thread)
#define blockIdx (cuda_host::position.block)
#define blockDim (cuda_host::position.block_size)
#define gridDim (cuda_host::position.grid_size)
constexpr int warpSize = 32;

#define EMULATOR_VECTORS(name, type)                                                             \
    struct alignas(2 * sizeof(type)) name##2 {                                                   \
        type x, y;                                                                               \
    };                                                                                           \
    struct name##3 {                                                                             \
        type x, y, z;                                                                            \
    };                                                                                           \
    struct alignas(sizeof(type) == 8 ? 16 : 4 * sizeof(type)) name##4 {                          \
        type x, y, z, w;                                                                         \
    };                                                                                           \
    static inline name##2 make_##name##2(type x, type y) { return name##2{x, y}; }               \
    static inline name##3 make_##name##3(type x, type y, type z) { return name##3{x, y, z}; }    \
    static inline name##4 make_##name##4(type x, type y, type z, type w) {                       \
        return name##4{x, y, z, w};                                                              \
    }

EMULATOR_VECTORS(char, signed char)
EMULATOR_VECTORS(uchar, unsigned char)
EMULATOR_VECTORS(short, short)
EMULATOR_VECTORS(ushort, unsigned short)
EMULATOR_VECTORS(int, int)
EMULATOR_VECTORS(uint, unsigned)
EMULATOR_VECTORS(longlong, long long)
EMULATOR_VECTORS(ulonglong, unsigned long long)
EMULATOR_VECTORS(float, float)

// ---- barriers and collectives -------------------------------------------------------------------
// Each call says where it stands: that is compared among lanes, and told when something is wrong.
#define EMULATOR_PLACE const char *file = __builtin_FILE(), unsigned line = __builtin_LINE()

static inline void __syncthreads(EMULATOR_PLACE) { cuda_host::wait_for_block(file, line); }

static inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_PLACE) {
    cuda_host::arrive(cuda_host::Operation::sync, mask, 0, file, line);
}

static inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_PLACE) {
    return cuda_host::arrive(cuda_host::Operation::ballot, mask, predicate != 0, file, line)
        .not_zero;
}

static inline int __any_sync(unsigned mask, int predicate, EMULATOR_PLACE) {
    return cuda_host::arrive(cuda_host::Operation::any, mask, predicate != 0, file, line)
               .not_zero != 0;
}

static inline int __all_sync(unsigned mask, int predicate, EMULATOR_PLACE) {
    return cuda_host::arrive(cuda_host::Operation::all, mask, predicate != 0, file, line)
               .not_zero == cuda_host::WHOLE_WARP;
}

template <class T>
static inline T __shfl_sync(unsigned mask, T value, int from, EMULATOR_PLACE) {
    return cuda_host::shuffle(cuda_host::Operation::shuffle, mask, value, (unsigned)from, file,
                              line);
}

template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned by, EMULATOR_PLACE) {
    const unsigned lane = cuda_host::lane();
    return cuda_host::shuffle(cuda_host::Operation::shuffle_up, mask, value,
                              by > lane ? lane : lane - by, file, line);
}

template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned by, EMULATOR_PLACE) {
    const unsigned lane = cuda_host::lane();
    return cuda_host::shuffle(cuda_host::Operation::shuffle_down, mask, value,
                              by > 31 - lane ? lane : lane + by, file, line);
}

template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int bits, EMULATOR_PLACE) {
    return cuda_host::shuffle(cuda_host::Operation::shuffle_xor, mask, value,
                              cuda_host::lane() ^ (unsigned)bits, file, line);
}

static inline unsigned __reduce_add_sync(unsigned mask, unsigned value, EMULATOR_PLACE) {
    const cuda_host::Exchange &exchange =
        cuda_host::arrive(cuda_host::Operation::reduce, mask, value, file, line);
    unsigned sum = 0;
    for (cuda_host::u64 v : exchange.values) sum += (unsigned)v;
    return sum;
}

// What `mma.sync.aligned.m16n8k16.row.col.f32.T.T.f32` does for T bf16 or f16, d += a b, with the
// fragments of the PTX ISA, 9.7.14.5.8: of A, lane 4 g + t has rows g and g + 8, columns 2 t, 2 t +
// 1 and these plus 8; of B, column g, rows like those columns; of D, rows like A's, columns 2 t and
// 2 t + 1.
static inline void emulator_multiply(float (*to_float)(unsigned), float (&d)[4],
                                     const unsigned (&a)[4], const unsigned (&b)[2],
                                     EMULATOR_PLACE) {
    using namespace cuda_host;
    const u64 given[3] = {(u64)a[1] << 32 | a[0], (u64)a[3] << 32 | a[2], (u64)b[1] << 32 | b[0]};
    u64 all[3][WARP_SIZE];
    for (int i = 0; i < 3; ++i) {
        const Exchange &exchange = arrive(Operation::multiply, WHOLE_WARP, given[i], file, line);
        for (u32 from = 0; from < WARP_SIZE; ++from) all[i][from] = exchange.values[from];
    }
    // of 4 in 2 registers
    const auto half_of = [&](u64 registers, u32 half) {
        return to_float((u32)(registers >> 16 * half & 0xffffu));
    };
    const u32 g = lane() / 4, t = lane() % 4;
    for (u32 i = 0; i < 4; ++i) {
        const u32 row = g + 8 * (i / 2), column = 2 * t + i % 2;
        for (u32 k = 0; k < 16; ++k) {
            const u32 owner = k % 8 / 2;
            d[i] += half_of(all[k / 8][row % 8 * 4 + owner], row / 8 * 2 + k % 2) *
                    half_of(all[2][column * 4 + owner], k / 8 * 2 + k % 2);
        }
    }
}

static inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline void __threadfence() {}
static inline void __threadfence_block() {}
[[noreturn]] static inline void __trap() { cuda_host::fail("__trap"); }

// ---- atomics: fibers change only at collectives -------------------------------------------------
#define EMULATOR_ATOMIC(name, expression)                                              \
    template <class T>                                                                 \
    static EMULATOR_ATOMIC_FUNCTION T name(T *at, decltype(T()) value) {               \
        static_assert(sizeof(T) == 4 || sizeof(T) == 8, #name " takes 32 or 64 bits"); \
        cuda_host::note_atomic(at, sizeof(T), __builtin_return_address(0));            \
        const T old = *at;                                                             \
        *at = expression;                                                              \
        return old;                                                                    \
    }

EMULATOR_ATOMIC(atomicAdd, old + value)
EMULATOR_ATOMIC(atomicSub, old - value)
EMULATOR_ATOMIC(atomicOr, old | value)
EMULATOR_ATOMIC(atomicAnd, old & value)
EMULATOR_ATOMIC(atomicXor, old ^ value)
EMULATOR_ATOMIC(atomicMax, old < value ? value : old)
EMULATOR_ATOMIC(atomicMin, value < old ? value : old)
EMULATOR_ATOMIC(atomicExch, value)

template <class T>
static EMULATOR_ATOMIC_FUNCTION T atomicCAS(T *at, decltype(T()) compare, decltype(T()) value) {
    cuda_host::note_atomic(at, sizeof(T), __builtin_return_address(0));
    const T old = *at;
    if (old == compare) *at = value;
    return old;
}

// ---- integers -----------------------------------------------------------------------------------
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((cuda_host::u64)a * b >> 32);
}
static inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

static inline unsigned __brev(unsigned x) {
    unsigned out = 0;
    for (int i = 0; i < 32; ++i) out |= (x >> i & 1u) << (31 - i);
    return out;
}

static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const cuda_host::u64 bytes = (cuda_host::u64)b << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned pick = selector >> 4 * i & 15u;
        unsigned byte = (unsigned)(bytes >> 8 * (pick & 7u)) & 255u;
        if (pick & 8u) byte = byte & 128u ? 255u : 0u;
        out |= byte << 8 * i;
    }
    return out;
}

static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)((((cuda_host::u64)high << 32 | low) << (shift & 31u)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((cuda_host::u64)high << 32 | low) >> (shift & 31u));
}
static inline unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned shift) {
    return shift >= 32 ? low : __funnelshift_l(low, high, shift);
}
static inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned shift) {
    return shift >= 32 ? high : __funnelshift_r(low, high, shift);
}

#define EMULATOR_LEAST(type, a, b)                                      \
    static inline type min(a x, b y) { return (type)x < (type)y ? (type)x : (type)y; } \
    static inline type max(a x, b y) { return (type)x < (type)y ? (type)y : (type)x; }

EMULATOR_LEAST(int, int, int)
EMULATOR_LEAST(unsigned, unsigned, unsigned)
EMULATOR_LEAST(unsigned, int, unsigned)
EMULATOR_LEAST(unsigned, unsigned, int)
EMULATOR_LEAST(long long, long long, long long)
EMULATOR_LEAST(unsigned long long, unsigned long long, unsigned long long)
EMULATOR_LEAST(unsigned long long, long long, unsigned long long)
EMULATOR_LEAST(unsigned long long, unsigned long long, long long)

// ---- loads and stores with a hint ---------------------------------------------------------------
#define EMULATOR_LOAD(name)       \
    template <class T>            \
    static inline T name(const T *at) { return *at; }
#define EMULATOR_STORE(name)      \
    template <class T>            \
    static inline void name(T *at, T value) { *at = value; }

EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldcg)
EMULATOR_LOAD(__ldcs)
EMULATOR_LOAD(__ldlu)
EMULATOR_LOAD(__ldcv)
EMULATOR_STORE(__stwb)
EMULATOR_STORE(__stcg)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stwt)
