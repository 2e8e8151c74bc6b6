/* wcodec-decode [-m BYTES] INPUT OUTPUT [BASE]: restores a file (spec, chapter 17). POSIX. */
#define _XOPEN_SOURCE 700
#define _FILE_OFFSET_BITS 64
#include "wcodec.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

typedef struct {
    const char *path;
    int fd, error; /* `error` is an errno */
    wcodec_file *file;
} input;

typedef struct {
    const char *path;
    char *temporary;
    int fd, error;
} output;

static int read_at(void *ctx, uint64_t offset, size_t n, void *buffer) {
    input *in = (input *)ctx;
    char *to = (char *)buffer;
    while (n) {
        ssize_t got = pread(in->fd, to, n, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return in->error = got ? errno : EIO; /* or the file became shorter */
        to += got;
        n -= (size_t)got;
        offset += (uint64_t)got;
    }
    return 0;
}

static int write_next(void *ctx, const void *bytes, size_t n) {
    output *out = (output *)ctx;
    const char *from = (const char *)bytes;
    while (n) {
        ssize_t put = write(out->fd, from, n);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return out->error = put ? errno : EIO;
        from += put;
        n -= (size_t)put;
    }
    return 0;
}

static wcodec_status open_input(input *in, const char *path, const wcodec_file *base,
                                const wcodec_options *options) {
    struct stat s;
    in->path = path;
    in->fd = open(path, O_RDONLY);
    if (in->fd < 0 || fstat(in->fd, &s)) {
        in->error = errno;
        return WCODEC_IO_ERROR;
    }
    return wcodec_open(read_at, in, (uint64_t)s.st_size, base, options, &in->file);
}

static void close_input(input *in) {
    wcodec_close(in->file);
    if (in->fd >= 0) close(in->fd);
}

/* A file of its own beside the output, with room for `n` bytes. */
static wcodec_status open_output(output *out, const char *path, uint64_t n) {
    struct statvfs disk;
    size_t size = strlen(path) + 32;
    out->path = path;
    out->temporary = (char *)malloc(size);
    if (!out->temporary) return WCODEC_RESOURCE_LIMIT;
    snprintf(out->temporary, size, "%s.%ld.part", path, (long)getpid());
    out->fd = open(out->temporary, O_WRONLY | O_CREAT | O_EXCL, 0666);
    if (out->fd < 0) {
        out->error = errno;
        return WCODEC_IO_ERROR;
    }
    if (!fstatvfs(out->fd, &disk) && n / disk.f_frsize >= disk.f_bavail && n >= disk.f_frsize)
        return WCODEC_RESOURCE_LIMIT;
    return WCODEC_OK;
}

/* The output gets its name when all is written, or nothing is left of it (R13.3). */
static wcodec_status close_output(output *out, wcodec_status status) {
    if (out->fd >= 0) {
        int failed = !status && fsync(out->fd) && errno != EINVAL;
        failed |= close(out->fd) && !status;
        if (failed || (!status && rename(out->temporary, out->path))) {
            out->error = errno;
            status = WCODEC_IO_ERROR;
        }
        if (status) unlink(out->temporary);
    }
    free(out->temporary);
    return status;
}

static int report(wcodec_status status, const input *in, const input *base, const output *out) {
    const char *path = in->error ? in->path : base->error ? base->path : out->path;
    int error = in->error ? in->error : base->error ? base->error : out->error;
    if (status == WCODEC_IO_ERROR)
        fprintf(stderr, "io_error: %s: %s\n", path, strerror(error));
    else if (status)
        fprintf(stderr, "%s\n", wcodec_status_name(status));
    return status ? 1 : 0;
}

int main(int argc, char **argv) {
    wcodec_options options = {NULL, NULL, NULL, 0};
    input in = {NULL, -1, 0, NULL}, base = {NULL, -1, 0, NULL};
    output out = {NULL, NULL, -1, 0};
    wcodec_status status = WCODEC_OK;
    if (argc > 2 && !strcmp(argv[1], "-m")) {
        options.memory_limit = strtoull(argv[2], NULL, 10);
        argc -= 2;
        argv += 2;
    }
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: wcodec-decode [-m BYTES] INPUT OUTPUT [BASE]\n");
        return 2;
    }
    if (argc == 4 && *argv[3]) status = open_input(&base, argv[3], NULL, &options);
    if (!status) status = open_input(&in, argv[1], base.file, &options);
    if (!status) status = open_output(&out, argv[2], wcodec_restored_nbytes(in.file));
    if (!status) status = wcodec_restore(in.file, write_next, &out);
    status = close_output(&out, status);
    close_input(&in);
    close_input(&base);
    return report(status, &in, &base, &out);
}
