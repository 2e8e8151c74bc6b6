// The engine: fibers, the order in which lanes, warps and blocks run, barriers and collectives.
//
// Lanes hand over to one another directly; the scheduler, on the stack of the launch, is asked when
// a warp can't go on. What is found wrong ends the launch with a message: the fibers are left where
// they are, and the scheduler returns.
#include "cuda_host.h"
#include "fibers.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

// Where all __shared__ variables lie (shared.ld).
extern "C" cuda_host::u8 emulated_shared_start[] __attribute__((visibility("hidden")));
extern "C" cuda_host::u8 emulated_shared_end[] __attribute__((visibility("hidden")));

namespace cuda_host {

Position position;

namespace {

enum Order : u32 { FORWARD, REVERSE, SHUFFLED };

constexpr u32 MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / WARP_SIZE, MAX_BLOCKS = 3;

struct Warp {
    u32 runnable, waiting, at_barrier, exited;  // sets of lanes; each lane is in one of them
    u32 n_collectives, n_syncs;
    // in turn: lanes that are late still read the last one while others fill the next
    Exchange exchanges[2];
};

struct Block {
    u32 index, slot;
    u32 n_warps, ready;  // ready: set of warps that can go on
    u32 barrier_line, n_barriers;
    u8 *shared;  // its shared memory while another block runs
    Warp warps[MAX_WARPS];
    Fiber fibers[MAX_THREADS];
};

struct Engine {
    const Kernel *kernel;
    void **parameters;
    Order order;
    u64 random;
    Fiber scheduler;
    Fiber *current, *previous;
    Block *block;  // whose shared memory is in place
    Warp *warp;
    Block *blocks[MAX_BLOCKS];
    bool failed;
    char error[512];
};

Engine engine;

// ---- switching ----------------------------------------------------------------------------------
void run_thread();

// Tells the sanitizer that the current fiber goes on.
inline void arrived() {
#if defined(EMULATOR_ADDRESS)
    const void *stack;
    size_t nbytes;
    __sanitizer_finish_switch_fiber(engine.current->fake_stack, &stack, &nbytes);
    if (engine.previous == &engine.scheduler)
        engine.scheduler.stack = stack, engine.scheduler.stack_nbytes = nbytes;
#endif
}

inline void go_to(Fiber &to) {
    Fiber &from = *engine.current;
    engine.previous = &from;
    engine.current = &to;
#if defined(EMULATOR_ADDRESS)
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_nbytes);
#endif
    swap(from, to);
    arrived();
}

// ---- order --------------------------------------------------------------------------------------
inline u32 random_bits() {  // xorshift64*
    engine.random ^= engine.random >> 12;
    engine.random ^= engine.random << 25;
    engine.random ^= engine.random >> 27;
    return static_cast<u32>(engine.random * 0x2545f4914f6cdd1dull >> 32);
}

// One of a set that isn't empty.
inline u32 choose(u32 set) {
    if (engine.order == FORWARD) return __builtin_ctz(set);
    if (engine.order == REVERSE) return 31 - __builtin_clz(set);
    const u32 turn = random_bits() & 31u;
    return (__builtin_ctz(set >> turn | set << (-turn & 31u)) + turn) & 31u;
}

inline bool by_chance(u32 one_in) {
    return engine.order == SHUFFLED && random_bits() % one_in == 0;
}

inline void resume(u32 lane) {
    const u32 index = static_cast<u32>(engine.warp - engine.block->warps) * WARP_SIZE + lane;
    position.thread.x = index;
    go_to(engine.block->fibers[index]);
}

// Let another lane of this warp run, or the scheduler if there is none,
// or now and then another warp.
inline void leave() {
    if (engine.warp->runnable && !by_chance(64)) {
        const u32 lane = choose(engine.warp->runnable), own = position.thread.x;
        if (lane == own % WARP_SIZE) return;
        resume(lane);
    } else {
        go_to(engine.scheduler);
    }
}

void run_thread() {
    arrived();
    engine.kernel->call(engine.kernel->function, engine.parameters);
    Warp &warp = *engine.warp;
    warp.runnable &= ~(1u << lane());
    warp.exited |= 1u << lane();
    leave();
    abort();  // nothing resumes it
}

// ---- barriers -----------------------------------------------------------------------------------
const char *name_of(Operation operation) {
    static const char *const names[] = {
        "__syncwarp", "__ballot_sync", "__any_sync", "__all_sync", "__shfl_sync", "__shfl_up_sync",
        "__shfl_down_sync", "__shfl_xor_sync", "__reduce_add_sync", "mma.sync",
    };
    return names[static_cast<u32>(operation)];
}

const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

void report(const char *format, va_list arguments) {
    const u32 at_block = position.block.x, at_thread = position.thread.x;
    const int n = snprintf(engine.error, sizeof engine.error,
                           "%s, block %u, thread %u: ", engine.kernel->name, at_block, at_thread);
    vsnprintf(engine.error + n, sizeof engine.error - static_cast<size_t>(n), format, arguments);
    engine.failed = true;
}

void report(const char *format, ...) __attribute__((format(printf, 1, 2)));
void report(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    report(format, arguments);
    va_end(arguments);
}

// Of a warp none of whose lanes can run: whether it can go on once the block does.
void check_stuck(const Warp &warp) {
    if (!warp.waiting) return;
    const Exchange &exchange = warp.exchanges[warp.n_collectives & 1];
    position.thread.x = static_cast<u32>(&warp - engine.block->warps) * WARP_SIZE +
                        static_cast<u32>(__builtin_ctz(warp.waiting));
    const char *why = warp.exited ? "have exited, or are not there" : "wait at __syncthreads";
    report("%s (%s:%u) waits for lanes 0x%08x, which %s", name_of(exchange.operation),
           base_name(exchange.file), exchange.line, ~warp.waiting, why);
}

// Let all threads of the block pass __syncthreads.
void release(Block &running) {
    for (u32 i = 0; i < running.n_warps; ++i) {
        Warp &warp = running.warps[i];
        const u32 missing = ~warp.at_barrier;
        if (missing) {
            position.thread.x = i * WARP_SIZE + static_cast<u32>(__builtin_ctz(missing));
            report(
                "__syncthreads (line %u) is not reached by this thread, "
                "which has exited or is not there",
                running.barrier_line);
            return;
        }
    }
    for (u32 i = 0; i < running.n_warps; ++i) {
        Warp &warp = running.warps[i];
        warp.runnable = warp.at_barrier;
        warp.at_barrier = 0;
        running.ready |= 1u << i;
    }
    running.barrier_line = 0;
    ++running.n_barriers;
}

// ---- blocks -------------------------------------------------------------------------------------
size_t shared_nbytes() { return static_cast<size_t>(emulated_shared_end - emulated_shared_start); }

// Not memcpy, which AddressSanitizer replaces by one that refuses the red zones between the
// variables.
void copy(u8 *to, const u8 *from) {
    for (size_t i = 0; i < shared_nbytes(); ++i) to[i] = from[i];
}

Block *new_block(u32 slot) {
    Block *out = static_cast<Block *>(calloc(1, sizeof(Block)));
    out->slot = slot;
    out->shared = static_cast<u8 *>(malloc(shared_nbytes() + 1));
    return out;
}

void set_up(Block &fresh, u32 index, u32 n_threads, int poison) {
    fresh.index = index;
    fresh.n_warps = (n_threads + WARP_SIZE - 1) / WARP_SIZE;
    fresh.ready = fresh.n_warps == 32 ? WHOLE_WARP : (1u << fresh.n_warps) - 1u;
    fresh.barrier_line = fresh.n_barriers = 0;
    for (u32 i = 0; i < fresh.n_warps; ++i) {
        Warp &warp = fresh.warps[i];
        const u32 n_lanes = n_threads - i * WARP_SIZE;
        warp.runnable = n_lanes >= 32 ? WHOLE_WARP : (1u << n_lanes) - 1u;
        warp.exited = ~warp.runnable;
        warp.waiting = warp.at_barrier = warp.n_collectives = warp.n_syncs = 0;
    }
    for (u32 i = 0; i < n_threads; ++i) {
        Fiber &fiber = fresh.fibers[i];
        if (!fiber.stack) give_stack(fiber);
        // their tops differ modulo a page, or all would share few lines of the cache
        start(fiber, run_thread, i * 448 % 4096);
    }
    memset(fresh.shared, poison, shared_nbytes());
}

void put_in_place(Block &next) {
    position.block.x = next.index;
    if (engine.block == &next) return;
    if (engine.block) copy(engine.block->shared, emulated_shared_start);
    copy(emulated_shared_start, next.shared);
    engine.block = &next;
}

// Run a block until it has finished (true), has failed, or another one is to go on.
bool run(Block &running) {
    put_in_place(running);
    for (;;) {
        const u32 index = choose(running.ready);
        Warp &warp = running.warps[index];
        engine.warp = &warp;
        resume(choose(warp.runnable));
        if (engine.failed) return false;
        if (warp.runnable) {
            if (by_chance(16)) return false;
            continue;
        }
        check_stuck(warp);
        running.ready &= ~(1u << index);
        if (engine.failed) return false;
        if (running.ready) continue;
        if (!running.barrier_line) return true;
        release(running);
        if (engine.failed || by_chance(4)) return false;
    }
}

u32 common_divisor(u32 a, u32 b) { return b ? common_divisor(b, a % b) : a; }

// Blocks in the engine's order; of a shuffled grid, a few at a time.
void run_grid(u32 n_blocks, u32 n_threads) {
    u32 step = 1, at = 0, n_resident = 0, started = 0;
    if (engine.order == SHUFFLED) {
        at = random_bits() % n_blocks;
        do step = random_bits() % n_blocks + 1;
        while (common_divisor(step, n_blocks) != 1);
    }
    const int poison = engine.order == FORWARD   ? 0xc5
                       : engine.order == REVERSE ? 0x3a
                                                 : static_cast<int>(random_bits() & 255u);
    const u32 most = engine.order == SHUFFLED ? MAX_BLOCKS : 1;
    engine.block = nullptr;
    while (started < n_blocks || n_resident) {
        while (n_resident < most && started < n_blocks) {
            Block *&fresh = engine.blocks[n_resident];
            if (!fresh) fresh = new_block(n_resident);
            ++n_resident;
            set_up(*fresh, engine.order == REVERSE ? n_blocks - 1 - at : at, n_threads, poison);
            at = static_cast<u32>((static_cast<u64>(at) + step) % n_blocks);
            ++started;
        }
        const u32 pick = n_resident == 1 ? 0 : random_bits() % n_resident;
        Block *running = engine.blocks[pick];
        if (run(*running)) {
            engine.blocks[pick] = engine.blocks[--n_resident];
            engine.blocks[n_resident] = running;
            engine.block = nullptr;
        }
        if (engine.failed) return;
    }
}

// Of fibers that were left where they were.
void forget_frames() {
    for (Block *block : engine.blocks)
        for (u32 i = 0; block && i < MAX_THREADS; ++i)
            if (block->fibers[i].stack) forget_poison(block->fibers[i]);
}

}  // namespace

void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    report(format, arguments);
    va_end(arguments);
    go_to(engine.scheduler);
    abort();
}

const Exchange &arrive(Operation operation, u32 mask, u64 value, const char *file, u32 line) {
    Warp &warp = *engine.warp;
    Exchange &exchange = warp.exchanges[warp.n_collectives & 1];
    if (mask != WHOLE_WARP) {
        fail("%s (%s:%u) with mask 0x%08x: collectives name the whole warp", name_of(operation),
             base_name(file), line, mask);
    }
    if (!warp.waiting) {
        exchange.operation = operation;
        exchange.line = line;
        exchange.file = file;
        exchange.not_zero = 0;
    } else if (exchange.operation != operation || exchange.line != line) {
        fail("divergent collective: %s (%s:%u), while lanes 0x%08x are at %s (%s:%u)",
             name_of(operation), base_name(file), line, warp.waiting, name_of(exchange.operation),
             base_name(exchange.file), exchange.line);
    }
    const u32 bit = 1u << lane();
    exchange.values[lane()] = value;
    if (value) exchange.not_zero |= bit;
    warp.waiting |= bit;
    warp.runnable &= ~bit;
    if (warp.waiting == WHOLE_WARP) {
        ++warp.n_collectives;
        if (operation == Operation::sync) ++warp.n_syncs;
        warp.runnable = WHOLE_WARP;
        warp.waiting = 0;
    }
    leave();
    return exchange;
}

void wait_for_block(const char *file, u32 line) {
    Warp &warp = *engine.warp;
    u32 &other = engine.block->barrier_line;
    if (other && other != line)
        fail("divergent __syncthreads (%s:%u): other threads are at line %u", base_name(file), line,
             other);
    other = line;
    const u32 bit = 1u << lane();
    warp.at_barrier |= bit;
    warp.runnable &= ~bit;
    leave();
}

#ifdef EMULATOR_RACES
Moment moment() {
    return {position.block.x, engine.block->slot, engine.block->n_barriers, engine.warp->n_syncs};
}

bool is_private(u64 address) {
    if (!engine.current) return true;  // no launch yet: the library is being loaded
    return address - reinterpret_cast<u64>(engine.current->stack) < engine.current->stack_nbytes ||
           address - reinterpret_cast<u64>(&position) < sizeof position;
}
#endif

}  // namespace cuda_host

// ---- called from Python -------------------------------------------------------------------------
using namespace cuda_host;

static const Kernel *find(const char *name) {
    for (u32 i = 0; i < n_kernels; ++i)
        if (!strcmp(kernels[i].name, name)) return &kernels[i];
    return nullptr;
}

// Number of a kernel's parameters, and the sizes of the first `room`.
extern "C" __attribute__((visibility("default"))) int emulator_parameters(const char *name,
                                                                          u32 *sizes, u32 room) {
    const Kernel *kernel = find(name);
    if (!kernel) return -1;
    for (u32 i = 0; i < kernel->n_parameters && i < room; ++i) sizes[i] = kernel->sizes[i];
    return static_cast<int>(kernel->n_parameters);
}

// Null, or what was wrong; the text is valid until the next launch.
extern "C" __attribute__((visibility("default"))) const char *emulator_launch(
    const char *name, u32 n_blocks, u32 n_threads, void **parameters, u32 order, u64 seed) {
    engine.kernel = find(name);
    engine.parameters = parameters;
    engine.order = static_cast<Order>(order);
    engine.random = (seed + 1) * 0x9e3779b97f4a7c15ull | 1;
    engine.failed = false;
    engine.current = &engine.scheduler;
    position = {{0, 0, 0}, {0, 0, 0}, {n_threads, 1, 1}, {n_blocks, 1, 1}};
    run_grid(n_blocks, n_threads);
    forget_accesses();
    if (engine.failed) forget_frames();
    return engine.failed ? engine.error : nullptr;
}
