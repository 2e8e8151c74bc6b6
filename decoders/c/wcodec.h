/* A decoder of wcodec files, after spec/wcodec.md. See README.md.
 *
 * There is no global state. An open file does not change, so threads may share it, each with
 * readers of its own; its callbacks must then bear calls from several threads at once.
 */
#ifndef WCODEC_H
#define WCODEC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a call returns: the codes of chapter 13, and after them what is not about the file. */
typedef enum wcodec_status {
    WCODEC_OK = 0,
    WCODEC_TRUNCATED,           /* the file ends before its structures do */
    WCODEC_BAD_MAGIC,           /* a magic number is wrong */
    WCODEC_BAD_CHECKSUM,        /* a CRC-32 does not match its bytes */
    WCODEC_BAD_RANGE,           /* an offset, size or count leaves its bounds */
    WCODEC_BAD_VALUE,           /* a field holds a value that is not allowed there */
    WCODEC_BAD_TABLE,           /* a frequency table breaks R9.6 or R9.7 */
    WCODEC_BAD_STREAM,          /* a rANS or zlib stream does not end as it must */
    WCODEC_BAD_PATCH,           /* patches or gaps are out of range or out of order */
    WCODEC_BAD_NAME,            /* a text is not UTF-8, or a name occurs twice */
    WCODEC_BAD_BASE,            /* the base is not given, or is another checkpoint */
    WCODEC_UNSUPPORTED_VERSION, /* a version that the decoder does not know */
    WCODEC_UNSUPPORTED_RECORD,  /* a must-understand record or source kind that it does not know */
    WCODEC_UNSUPPORTED_CODER,   /* a reserved coder, layout, mode, dtype, order or index coding */
    WCODEC_RESOURCE_LIMIT,      /* legal, but more than there is or the caller allows */
    WCODEC_IO_ERROR,            /* a callback of the caller failed */
    WCODEC_NO_INFLATE           /* the index is deflated, and the library is built without zlib */
} wcodec_status;

/* Name of a status: that of chapter 13, or "ok", "io_error", "no_inflate". */
const char *wcodec_status_name(wcodec_status status);

/* Reads `n` bytes from `offset` of the file into `buffer`; returns 0, or not 0 if it cannot. */
typedef int (*wcodec_read_at)(void *ctx, uint64_t offset, size_t n, void *buffer);

/* Takes the next `n` bytes; returns 0, or not 0 to stop. */
typedef int (*wcodec_write)(void *ctx, const void *bytes, size_t n);

/* All of it may be 0. */
typedef struct wcodec_options {
    void *(*allocate)(void *ctx, size_t n); /* as malloc, which is taken if it is NULL */
    void (*release)(void *ctx, void *block);
    void *ctx;
    uint64_t memory_limit; /* bytes for the index, and again for each reader with those of its
                              bases; 0 is 4 GiB */
} wcodec_options;

typedef struct wcodec_file wcodec_file;
typedef struct wcodec_reader wcodec_reader;

typedef struct wcodec_tensor {
    const char *name; /* UTF-8, without a 0 at its end; lives as long as the file */
    size_t name_nbytes;
    const char *dtype; /* the name in chapter 18 */
    uint64_t shape[32];
    uint64_t nbytes; /* decoded */
    uint32_t crc32;  /* of the decoded bytes */
    uint32_t rank;
    int dtype_id;
    int difference; /* 0 none, 1 XOR, 2 MINUS */
    int sparse;
} wcodec_tensor;

/* Opens a file of `nbytes` bytes: reads its header, footer and index, and checks all of them.
 * `base` is the open file of the checkpoint that differences refer to (R12.5), or NULL; it has to
 * stay open for as long as the file is. A base that is a difference itself is decoded with its own
 * base. The wrong base is an error of those who decode a difference, not of this call. */
wcodec_status wcodec_open(wcodec_read_at read, void *ctx, uint64_t nbytes, const wcodec_file *base,
                          const wcodec_options *options, wcodec_file **file);
void wcodec_close(wcodec_file *file);

uint32_t wcodec_n_tensors(const wcodec_file *file);
/* Bytes of the restored file. Nothing is decoded yet: check them first. */
uint64_t wcodec_restored_nbytes(const wcodec_file *file);
/* What tensor number `i` is. `i` is below wcodec_n_tensors, else the result is bad_range. */
wcodec_status wcodec_describe(const wcodec_file *file, uint32_t i, wcodec_tensor *tensor);
/* The number of the tensor of a name, or wcodec_n_tensors if there is none. */
uint32_t wcodec_find(const wcodec_file *file, const char *name, size_t name_nbytes);

/* A reader gives the bytes of one tensor from first to last. Segments are decoded one by one; where
 * they are higher than a word, a row of them at a time. */
wcodec_status wcodec_reader_open(const wcodec_file *file, uint32_t i, wcodec_reader **reader);
/* Gives the next `n` bytes. `*got` is less at the end of the tensor alone. A segment's CRC-32 is
 * checked before it is decoded, the tensor's before its last segment is given. */
wcodec_status wcodec_read(wcodec_reader *reader, void *buffer, size_t n, size_t *got);
void wcodec_reader_close(wcodec_reader *reader);

/* Writes the restored file (R4.22): the source header, and all tensors. After an error, what has
 * been written is to be thrown away. */
wcodec_status wcodec_restore(const wcodec_file *file, wcodec_write write, void *ctx);

#ifdef __cplusplus
}
#endif

#endif
