// The check for races. The compiler puts a call before each access to memory, meant for
// ThreadSanitizer; here, each is compared with the accesses of the same bytes before it. Two of
// them, one of which writes and which aren't both atomic, must be by one lane, or have a __syncwarp
// between them if they are by one warp, or a __syncthreads if they are by one block. Blocks have
// nothing but atomics. So a missing barrier shows even where the order of the emulator hides it.
#ifdef EMULATOR_RACES
#include "cuda_host.h"

#include <cstdio>
#include <unordered_map>

// where the library is loaded
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start[];
extern "C" __attribute__((visibility("hidden"))) cuda_host::u8 emulated_shared_start[],
    emulated_shared_end[];

namespace cuda_host {
namespace {

enum class Kind { read, write, atomic };
constexpr u32 NONE = 0, MANY = 0xffffffffu;

// The last of such accesses to a byte, or what is common to the last ones.
struct Access {
    u32 block;  // its index + 1; NONE, MANY
    u32 n_syncs;
    u32 code;  // offset in the library
    u16 n_barriers;
    u8 warp, lane;  // or MANY, cut to 8 bits
};

struct Byte {
    Access read, write, atomic;
};

constexpr u64 PAGE_NBYTES = 1024;
struct Page {
    Byte bytes[PAGE_NBYTES];
    // of a word all of whose accesses were whole, only the first byte is kept
    bool split[PAGE_NBYTES / 4];
};

std::unordered_map<u64, Page *> pages;
u64 last_key = ~0ull;
Page *last_page;

Page &page_of(u64 key) {
    if (key != last_key) {
        Page *&page = pages[key];
        if (!page) page = new Page();
        last_key = key;
        last_page = page;
    }
    return *last_page;
}

bool ordered(const Access &earlier, const Access &now) {
    if (earlier.block == NONE) return true;
    if (earlier.block != now.block) return false;
    if (earlier.n_barriers != now.n_barriers) return true;
    if (earlier.warp != now.warp) return false;
    return earlier.n_syncs != now.n_syncs || earlier.lane == now.lane;
}

// Add to accesses that may be many. Those before a barrier need not be remembered once there is one
// after it.
void merge(Access &all, const Access &now) {
    if (all.block == NONE) {
        all = now;
    } else if (all.block != now.block) {
        all.block = MANY;
    } else if (all.n_barriers != now.n_barriers) {
        all = now;
    } else if (all.warp != now.warp) {
        all.warp = static_cast<u8>(MANY);
    } else if (all.n_syncs != now.n_syncs) {
        all = now;
    } else if (all.lane != now.lane) {
        all.lane = static_cast<u8>(MANY);
    }
}

[[noreturn]] void report(const char *verb, const Access &now, const char *other,
                         const Access &earlier) {
    char who[64] = "several blocks";
    const u32 block = earlier.block - 1;
    if (earlier.block == MANY) {
    } else if (earlier.warp == static_cast<u8>(MANY))
        snprintf(who, sizeof who, "several warps of block %u", block);
    else if (earlier.lane == static_cast<u8>(MANY))
        snprintf(who, sizeof who, "several lanes of warp %u of block %u", earlier.warp, block);
    else
        snprintf(who, sizeof who, "block %u, thread %u", block,
                 earlier.warp * WARP_SIZE + earlier.lane);
    fail("race: <code +0x%x> %s what <code +0x%x> %s (%s)", now.code, verb, earlier.code, other,
         who);
}

void check(Kind kind, Byte &byte, const Access &now) {
    static const char *const verbs[] = {"reads", "writes", "changes atomically"};
    static const char *const others[] = {"has read", "has written", "has changed atomically"};
    const auto compare = [&](Kind other, const Access &earlier) {
        if (!ordered(earlier, now))
            report(verbs[static_cast<int>(kind)], now, others[static_cast<int>(other)], earlier);
    };
    compare(Kind::write, byte.write);
    if (kind != Kind::read) compare(Kind::read, byte.read);
    if (kind != Kind::atomic) compare(Kind::atomic, byte.atomic);
    if (kind == Kind::read) {
        merge(byte.read, now);
    } else if (kind == Kind::atomic) {
        merge(byte.atomic, now);
    } else {
        byte.read = byte.atomic = Access();  // what is ordered after this write is so after them
        byte.write = now;
    }
}

void note(Kind kind, const volatile void *at, u64 nbytes, const void *by) {
    u64 address = reinterpret_cast<u64>(at);
    if (is_private(address)) return;
    const Moment when = moment();
    const u32 code = static_cast<u32>(static_cast<const char *>(by) - __ehdr_start) - 1;
    const u8 warp = static_cast<u8>(position.thread.x / WARP_SIZE);
    const u16 n_barriers = static_cast<u16>(when.n_barriers);
    const Access now = {
        when.block + 1, when.n_syncs, code, n_barriers, warp, static_cast<u8>(lane())};
    const u64 in_shared = address - reinterpret_cast<u64>(emulated_shared_start);
    const bool is_shared =
        in_shared < static_cast<u64>(emulated_shared_end - emulated_shared_start);
    if (is_shared) address = (1ull << 60) + ((u64)when.slot << 32) + in_shared;
    while (nbytes) {
        Page &page = page_of(address / PAGE_NBYTES);
        Byte &byte = page.bytes[address % PAGE_NBYTES];
        bool &split = page.split[address % PAGE_NBYTES / 4];
        if (!split && (address % 4 || nbytes < 4)) {
            Byte *const word = &byte - address % 4;
            for (u32 i = 1; i < 4; ++i) word[i] = word[0];
            split = true;
        }
        if (is_shared && byte.read.block != now.block && byte.write.block != now.block &&
            byte.atomic.block != now.block)
            byte = Byte();
        check(kind, byte, now);
        const u32 step = split ? 1 : 4;
        address += step, nbytes -= step;
    }
}

void note_aligned(Kind kind, const volatile void *at, u64 nbytes, const void *by) {
    if (reinterpret_cast<u64>(at) % nbytes) {
        const u32 code = static_cast<u32>(static_cast<const char *>(by) - __ehdr_start) - 1;
        fail("misaligned: <code +0x%x> accesses %u bytes", code, static_cast<u32>(nbytes));
    }
    note(kind, at, nbytes, by);
}

}  // namespace

void forget_accesses() {
    for (auto &entry : pages) delete entry.second;
    pages.clear();
    last_key = ~0ull;
}

void note_atomic(const volatile void *at, u32 nbytes, const void *by) {
    note_aligned(Kind::atomic, at, nbytes, by);
}

}  // namespace cuda_host

// ---- called by the kernels ----------------------------------------------------------------------
#define CALLED_BY_KERNELS extern "C" __attribute__((visibility("hidden"))) void
#define HERE __builtin_return_address(0)
#define ACCESSES(nbytes)                                                   \
    CALLED_BY_KERNELS __tsan_read##nbytes(void *at) {                      \
        cuda_host::note_aligned(cuda_host::Kind::read, at, nbytes, HERE);  \
    }                                                                      \
    CALLED_BY_KERNELS __tsan_write##nbytes(void *at) {                     \
        cuda_host::note_aligned(cuda_host::Kind::write, at, nbytes, HERE); \
    }                                                                      \
    CALLED_BY_KERNELS __tsan_unaligned_read##nbytes(void *at) {            \
        cuda_host::note(cuda_host::Kind::read, at, nbytes, HERE);          \
    }                                                                      \
    CALLED_BY_KERNELS __tsan_unaligned_write##nbytes(void *at) {           \
        cuda_host::note(cuda_host::Kind::write, at, nbytes, HERE);         \
    }

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

CALLED_BY_KERNELS __tsan_read_range(void *at, size_t nbytes) {
    cuda_host::note(cuda_host::Kind::read, at, nbytes, HERE);
}
CALLED_BY_KERNELS __tsan_write_range(void *at, size_t nbytes) {
    cuda_host::note(cuda_host::Kind::write, at, nbytes, HERE);
}
CALLED_BY_KERNELS __tsan_init() {}
CALLED_BY_KERNELS __tsan_func_entry(void *) {}
CALLED_BY_KERNELS __tsan_func_exit() {}
#endif
