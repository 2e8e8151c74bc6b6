// What g++ calls at each place of a kernel (-fsanitize-coverage=trace-pc): a counter of it, for a
// fuzzer that is guided by them. Places that share one are rare and do no harm.
#include <cstdint>

extern "C" {

#define SHARED __attribute__((visibility("default")))
SHARED extern const uint32_t emulator_n_counters = 1u << 14;
SHARED uint8_t emulator_counters[emulator_n_counters];

void __sanitizer_cov_trace_pc() {
    const uintptr_t place = reinterpret_cast<uintptr_t>(__builtin_return_address(0)) -
                            reinterpret_cast<uintptr_t>(emulator_counters);
    ++emulator_counters[(place * 0x9e3779b97f4a7c15u) >> 50];
}
}
