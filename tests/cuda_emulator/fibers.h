// Fibers: stacks of their own, and going on with another one. For cuda_host.cpp only.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <unistd.h>

#if defined(EMULATOR_ADDRESS)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__) || defined(EMULATOR_UCONTEXT)
#define WITH_UCONTEXT
#include <ucontext.h>
#endif

namespace cuda_host {

constexpr size_t STACK_NBYTES = 1 << 16;

struct Fiber {
#ifdef WITH_UCONTEXT
    ucontext_t context;
#else
    void *sp;
#endif
    const void *stack;  // its lowest byte
    size_t stack_nbytes;
    void *fake_stack;
};

// A stack above a page that can't be touched. They are kept for the next launch.
inline void give_stack(Fiber &fiber) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void *whole = mmap(nullptr, STACK_NBYTES + page, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (whole == MAP_FAILED || mprotect(whole, page, PROT_NONE) != 0) {
        perror("emulator: no memory for a stack");
        abort();
    }
    fiber.stack = static_cast<char *>(whole) + page;
    fiber.stack_nbytes = STACK_NBYTES;
}

// What AddressSanitizer remembers of frames that were left for good.
inline void forget_poison(Fiber &fiber) {
#if defined(EMULATOR_ADDRESS)
    __asan_unpoison_memory_region(fiber.stack, fiber.stack_nbytes);
#else
    (void)fiber;
#endif
}

// `start` makes a fiber begin with a function, which never returns, when it is next gone on with;
// of its stack, some bytes stay unused. `swap` leaves one fiber for another.
#ifdef WITH_UCONTEXT

inline void swap(Fiber &from, Fiber &to) { swapcontext(&from.context, &to.context); }

inline void start(Fiber &fiber, void (*function)(), size_t unused) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = const_cast<void *>(fiber.stack);
    fiber.context.uc_stack.ss_size = fiber.stack_nbytes - unused;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, function, 0);
}

#else

// Keeps the registers that a function must keep on the stack, and goes on with another stack.
extern "C" void emulator_swap(void **from, void *to) __attribute__((visibility("hidden")));
asm(R"(
.text
.globl emulator_swap
.hidden emulator_swap
.type emulator_swap,@function
emulator_swap:
    endbr64
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_swap,.-emulator_swap
)");

inline void swap(Fiber &from, Fiber &to) { emulator_swap(&from.sp, to.sp); }

inline void start(Fiber &fiber, void (*function)(), size_t unused) {
    char *end = static_cast<char *>(const_cast<void *>(fiber.stack)) + fiber.stack_nbytes - unused;
    void **top = reinterpret_cast<void **>(end) - 2;
    // the function's return address, none; as it starts, rsp + 8 is a multiple of 16
    *--top = nullptr;
    *--top = reinterpret_cast<void *>(function);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.sp = top;
}

#endif

}  // namespace cuda_host
