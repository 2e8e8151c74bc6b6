// One source of kernels with the table of its kernels.
// KERNEL_SOURCE and KERNEL_LIST are given by the command line.
#include "cuda_host.h"

#include KERNEL_SOURCE

namespace cuda_host {
namespace {

template <class T>
T parameter(const void *at) {
    T value;
    memcpy(&value, at, sizeof(T));
    return value;
}

template <class... Types>
struct Caller {
    static constexpr u32 sizes[] = {sizeof(Types)..., 0};

    template <u32... I>
    struct Indices {};
    template <u32 N, u32... I>
    struct Count : Count<N - 1, N - 1, I...> {};
    template <u32... I>
    struct Count<0, I...> {
        using Type = Indices<I...>;
    };

    template <u32... I>
    static void call_with(void *function, void **parameters, Indices<I...>) {
        (void)parameters;  // of none
        reinterpret_cast<void (*)(Types...)>(function)(parameter<Types>(parameters[I])...);
    }
    static void call(void *function, void **parameters) {
        call_with(function, parameters, typename Count<sizeof...(Types)>::Type());
    }
};

template <class... Types>
Kernel describe(const char *name, void (*function)(Types...)) {
    return {name, reinterpret_cast<void *>(function), Caller<Types...>::call, sizeof...(Types),
            Caller<Types...>::sizes};
}

}  // namespace

#define ENTRY(kernel) describe(#kernel, kernel),
extern const Kernel kernels[] = {KERNEL_LIST};
extern const u32 n_kernels = sizeof(kernels) / sizeof(Kernel);

}  // namespace cuda_host
