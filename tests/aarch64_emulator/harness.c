/* Calls kernels in memory that it shares with the process that asks for it; see __init__.py. */

#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int file = argc == 2 ? open(argv[1], O_RDWR) : -1;
    int flags = MAP_SHARED | MAP_FIXED_NOREPLACE;
    void *base = (void *)BASE;
    if (mmap(base, NBYTES, PROT_READ | PROT_WRITE, flags, file, 0) != base)
        return 1;
    int64_t call[2]; /* addresses of a kernel and of its words */
    while (read(0, call, sizeof call) == sizeof call) {
        int32_t status = ((int32_t(*)(int64_t *))call[0])((int64_t *)call[1]);
        if (write(1, &status, sizeof status) != sizeof status)
            return 1;
    }
    return 0;
}
