/* A library to be preloaded that counts the system calls about files below one directory, and makes
 * some of them fail. A parent process sets `shim`, which it shares with the processes that it
 * forks, before each of these is started, and reads it when they have ended.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MOST = 4096, SHORT = -1, KILL = -2 };

struct shim {
    atomic_int n_calls;
    int at;           /* the call to fail, from 0; -1 for none */
    int error;        /* its errno; SHORT: it does less than it was asked; KILL: the process ends */
    int for_ever;     /* whether all later ones fail too */
    char only[16];    /* count calls of this name alone; empty for all */
    char below[1024]; /* the directory; empty: count nothing */
    char names[MOST][16];
} *shim;

static char is_ours[1 << 16]; /* by file descriptor */

struct shim *shim_share(void) {
    return shim = mmap(NULL, sizeof *shim, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static int below(const char *path) {
    return shim && shim->below[0] && path && !strncmp(path, shim->below, strlen(shim->below));
}

static int ours(int fd) { return shim && shim->below[0] && fd >= 0 && fd < 1 << 16 && is_ours[fd]; }

static void note(int fd, const char *path) {
    if (fd >= 0 && fd < 1 << 16) is_ours[fd] = below(path);
}

/* Count a call. Returns 0 if it is to be made; else what is to become of it. */
static int fate(const char *name) {
    if (shim->only[0] && strcmp(shim->only, name)) return 0;
    int i = atomic_fetch_add(&shim->n_calls, 1);
    if (i < MOST) snprintf(shim->names[i], sizeof shim->names[i], "%s", name);
    if (shim->at < 0 || (shim->for_ever ? i < shim->at : i != shim->at)) return 0;
    if (shim->error == KILL) kill(getpid(), SIGKILL);
    if (shim->error > 0) errno = shim->error;
    return shim->error;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CALL(result, name, as, parameters, condition, ...)            \
    result name parameters {                                          \
        static __typeof__(&name) real;                                \
        if (!real) real = REAL(name);                                 \
        return (condition) && fate(as) ? -1 : real(__VA_ARGS__);      \
    }
/* Those that may do less than they are asked to. */
#define SOME(name, as, parameters, n, ...)                            \
    ssize_t name parameters {                                         \
        static __typeof__(&name) real;                                \
        if (!real) real = REAL(name);                                 \
        int what = ours(fd) ? fate(as) : 0;                           \
        if (what > 0) return -1;                                      \
        if (what == SHORT && n > 1) n = n / 2;                        \
        return real(__VA_ARGS__);                                     \
    }
#define OPEN(name, real_call, parameters, ...)                        \
    int name parameters {                                             \
        mode_t mode = 0;                                              \
        if (flags & (O_CREAT | O_TMPFILE)) {                          \
            va_list rest;                                             \
            va_start(rest, flags);                                    \
            mode = va_arg(rest, mode_t);                              \
            va_end(rest);                                             \
        }                                                             \
        if (below(path) && fate("open")) return -1;                   \
        int fd = REAL(real_call)(__VA_ARGS__, flags, mode);           \
        note(fd, path);                                               \
        return fd;                                                    \
    }

OPEN(open, open, (const char *path, int flags, ...), path)
OPEN(open64, open64, (const char *path, int flags, ...), path)
OPEN(openat, openat, (int at, const char *path, int flags, ...), at, path)
OPEN(openat64, openat64, (int at, const char *path, int flags, ...), at, path)

SOME(read, "read", (int fd, void *to, size_t n), n, fd, to, n)
SOME(write, "write", (int fd, const void *from, size_t n), n, fd, from, n)
SOME(pread, "pread", (int fd, void *to, size_t n, off_t from), n, fd, to, n, from)
SOME(pread64, "pread", (int fd, void *to, size_t n, off64_t from), n, fd, to, n, from)
SOME(preadv, "preadv", (int fd, const struct iovec *to, int n, off_t from), n, fd, to, n, from)
SOME(preadv64, "preadv", (int fd, const struct iovec *to, int n, off64_t from), n, fd, to, n, from)
SOME(preadv64v2, "preadv", (int fd, const struct iovec *to, int n, off64_t from, int flags), n,
     fd, to, n, from, flags)

CALL(int, fsync, "fsync", (int fd), ours(fd), fd)
CALL(int, fchmod, "fchmod", (int fd, mode_t to), ours(fd), fd, to)
CALL(int, ftruncate, "ftruncate", (int fd, off_t n), ours(fd), fd, n)
CALL(int, ftruncate64, "ftruncate", (int fd, off64_t n), ours(fd), fd, n)
CALL(int, fstat, "fstat", (int fd, struct stat *to), ours(fd), fd, to)
CALL(int, fstat64, "fstat", (int fd, struct stat64 *to), ours(fd), fd, to)
CALL(int, stat, "stat", (const char *path, struct stat *to), below(path), path, to)
CALL(int, stat64, "stat", (const char *path, struct stat64 *to), below(path), path, to)
CALL(int, lstat, "lstat", (const char *path, struct stat *to), below(path), path, to)
CALL(int, lstat64, "lstat", (const char *path, struct stat64 *to), below(path), path, to)
CALL(int, statvfs, "statvfs", (const char *path, struct statvfs *to), below(path), path, to)
CALL(int, statvfs64, "statvfs", (const char *path, struct statvfs64 *to), below(path), path, to)
CALL(int, rename, "rename", (const char *old, const char *new), below(new), old, new)
CALL(int, link, "link", (const char *old, const char *new), below(new), old, new)
CALL(int, symlink, "symlink", (const char *text, const char *path), below(path), text, path)
CALL(int, unlink, "unlink", (const char *path), below(path), path)
CALL(int, mkdir, "mkdir", (const char *path, mode_t mode), below(path), path, mode)
CALL(int, rmdir, "rmdir", (const char *path), below(path), path)

int posix_fallocate64(int fd, off64_t from, off64_t n) {
    return ours(fd) && fate("fallocate") ? shim->error : REAL(posix_fallocate64)(fd, from, n);
}

void *mmap64(void *at, size_t n, int protection, int flags, int fd, off64_t from) {
    if (ours(fd) && fate("mmap")) return MAP_FAILED;
    return REAL(mmap64)(at, n, protection, flags, fd, from);
}

int close(int fd) { /* it is closed, whatever it says of what was to be written */
    int what = ours(fd) ? fate("close") : 0;
    if (fd >= 0 && fd < 1 << 16) is_ours[fd] = 0;
    int error = errno, done = REAL(close)(fd);
    if (what > 0) errno = error;
    return what ? -1 : done;
}
