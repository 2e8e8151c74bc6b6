/* Chapters and rules are those of spec/wcodec.md. */
#include "wcodec.h"

#include <stdlib.h>
#include <string.h>

#ifndef WCODEC_NO_ZLIB
#include <zlib.h>
#endif

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define REQUIRE(condition, status) do { if (!(condition)) return (status); } while (0)
#define TRY(call) do { wcodec_status status_ = (call); REQUIRE(!status_, status_); } while (0)

enum { HEADER = 32, FOOTER = 64, RECORD = 12, TENSOR = 48, CHUNK = 1 << 14 };
enum { R_TABLES = 1, R_SOURCE, R_METADATA, R_TENSOR, R_CONTEXTS, R_BASE, R_DUPLICATE };
enum { L_RAW, L_BYTES, L_PAIRS };
enum { C_RAW, C_CONSTANT, C_RANS, C_CONTEXT = 4 };
enum { K_PLANE = 1, K_POSITION, K_SCALE };
enum { D_XOR = 1, D_MINUS };
enum { MAX_PLANES = 8, MAX_CLASSES = 16, MAX_BITS = 12, OWN_MODES = 255 };

const char *wcodec_status_name(wcodec_status status) {
    static const char *const names[] = {
        "ok", "truncated", "bad_magic", "bad_checksum", "bad_range", "bad_value", "bad_table",
        "bad_stream", "bad_patch", "bad_name", "bad_base", "unsupported_version",
        "unsupported_record", "unsupported_coder", "resource_limit", "io_error", "no_inflate"};
    return (size_t)status < sizeof names / sizeof *names ? names[status] : "unknown";
}

/* ---- integers -------------------------------------------------------------------------------- */
static u32 get16(const u8 *p) { return (u32)p[0] | (u32)p[1] << 8; }
static u32 get32(const u8 *p) { return get16(p) | get16(p + 2) << 16; }
static u64 get64(const u8 *p) { return get32(p) | (u64)get32(p + 4) << 32; }
static u32 least(u32 a, u32 b) { return a < b ? a : b; }
static u64 pad16(u64 n) { return (n + 15) / 16 * 16; } /* of sizes of segments: far from 2^64 */

static u64 get_word(const u8 *p, u32 nbytes) {
    u64 w = 0;
    while (nbytes--) w = w << 8 | p[nbytes];
    return w;
}

static void put_word(u8 *p, u32 nbytes, u64 w) {
    for (u32 i = 0; i < nbytes; i++) p[i] = (u8)(w >> 8 * i);
}

/* Adds and multiplies; 0 where the result needs more than 64 bits. */
static int add(u64 *a, u64 b) {
    if (b > UINT64_MAX - *a) return 0;
    *a += b;
    return 1;
}

static int multiply(u64 *a, u64 b) {
    if (b && *a > UINT64_MAX / b) return 0;
    *a *= b;
    return 1;
}

/* Bytes that are read front to back. */
typedef struct {
    const u8 *at;
    u64 left;
} bytes;

static const u8 *next(bytes *b, u64 n) { /* NULL where fewer are left */
    const u8 *at = b->at;
    if (n > b->left) return NULL;
    b->at += n;
    b->left -= n;
    return at;
}

static const u8 *next_of(bytes *b, u64 n, u64 size) { /* `n` times `size` bytes */
    return multiply(&n, size) ? next(b, n) : NULL;
}

/* ---- memory ---------------------------------------------------------------------------------- */
typedef struct {
    wcodec_options options;
    u64 used;
} arena;

typedef union { /* in front of each block */
    u64 nbytes;
    void *alignment;
    long double as_malloc_has;
} block;

static void *take(arena *m, u64 n) {
    block *b;
    u64 room = m->options.memory_limit - m->used;
    if (!add(&n, sizeof(block)) || n > room || n > SIZE_MAX) return NULL;
    b = (block *)(m->options.allocate ? m->options.allocate(m->options.ctx, (size_t)n)
                                      : malloc((size_t)n));
    if (!b) return NULL;
    b->nbytes = n;
    m->used += n;
    return b + 1;
}

static void give(arena *m, void *p) {
    block *b = (block *)p;
    if (!p) return;
    m->used -= (--b)->nbytes;
    if (m->options.allocate)
        m->options.release(m->options.ctx, b);
    else
        free(b);
}

typedef struct { /* grows, and does not keep what it held */
    u8 *at;
    u64 nbytes;
} buffer;

static int grow(arena *m, buffer *b, u64 n) {
    if (b->at && n <= b->nbytes) return 1;
    give(m, b->at);
    b->nbytes = n;
    b->at = (u8 *)take(m, n);
    return b->at != NULL;
}

/* ---- checksums (chapter 11) ------------------------------------------------------------------ */
typedef struct {
    u32 of[4][256];
} crc_table;

static void make_crc_table(crc_table *t) {
    for (u32 i = 0; i < 256; i++) {
        u32 c = i;
        for (int bit = 0; bit < 8; bit++) c = c & 1 ? c >> 1 ^ 0xEDB88320u : c >> 1;
        t->of[0][i] = c;
    }
    for (u32 i = 0; i < 256; i++)
        for (int k = 1; k < 4; k++)
            t->of[k][i] = t->of[k - 1][i] >> 8 ^ t->of[0][t->of[k - 1][i] & 255];
}

/* R11.1; `crc` is that of what came before, 0 of nothing */
static u32 crc32_of(const crc_table *t, u32 crc, const u8 *p, u64 n) {
    crc = ~crc;
    for (; n >= 4; n -= 4, p += 4) {
        crc ^= get32(p);
        crc = t->of[3][crc & 255] ^ t->of[2][crc >> 8 & 255] ^ t->of[1][crc >> 16 & 255] ^
              t->of[0][crc >> 24];
    }
    while (n--) crc = crc >> 8 ^ t->of[0][(crc ^ *p++) & 255];
    return ~crc;
}

typedef struct { /* FIPS 180-4 */
    u32 h[8];
    u64 nbytes;
    u8 waiting[64];
} sha256;

static u32 rotate(u32 x, int n) { return x >> n | x << (32 - n); }

static void sha256_block(u32 h[8], const u8 *p) {
    static const u32 round[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
        0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
        0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
        0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
        0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
        0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
        0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
        0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
        0xc67178f2};
    u32 w[64] = {0}, v[8];
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 4; k++) w[i] = w[i] << 8 | p[4 * i + k];
    for (int i = 16; i < 64; i++) {
        u32 a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + w[i - 7] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) +
               (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
    memcpy(v, h, sizeof v);
    for (int i = 0; i < 64; i++) {
        u32 e = v[4], a = v[0];
        u32 t = v[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) +
                ((e & v[5]) ^ (~e & v[6])) + round[i] + w[i];
        u32 s = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) +
                ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += t;
        v[0] = t + s;
    }
    for (int i = 0; i < 8; i++) h[i] += v[i];
}

static const sha256 sha256_of_nothing = {
    {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab,
     0x5be0cd19},
    0, {0}};

static void sha256_add(sha256 *s, const u8 *p, u64 n) {
    while (n--) {
        s->waiting[s->nbytes++ % 64] = *p++;
        if (s->nbytes % 64 == 0) sha256_block(s->h, s->waiting);
    }
}

static void sha256_end(sha256 *s, u8 digest[32]) {
    static const u8 one = 0x80, zero = 0;
    u64 n_bits = s->nbytes * 8;
    u8 size[8];
    sha256_add(s, &one, 1);
    while (s->nbytes % 64 != 56) sha256_add(s, &zero, 1);
    for (int i = 0; i < 8; i++) size[i] = (u8)(n_bits >> (56 - 8 * i));
    sha256_add(s, size, 8);
    for (int i = 0; i < 32; i++) digest[i] = (u8)(s->h[i / 4] >> (24 - i % 4 * 8));
}

/* ---- texts (R2.6) ---------------------------------------------------------------------------- */
typedef struct {
    const u8 *at;
    u32 nbytes;
    u32 number; /* of the tensor */
} text;

static int is_utf8(const u8 *p, u64 n) {
    while (n) {
        u32 c = p[0], more = c < 0x80 ? 0 : c < 0xE0 ? 1 : c < 0xF0 ? 2 : 3;
        if ((c >= 0x80 && c < 0xC2) || c > 0xF4 || more >= n) return 0;
        for (u32 i = 1; i <= more; i++)
            if ((p[i] & 0xC0) != 0x80) return 0;
        if (c == 0xE0 && p[1] < 0xA0) return 0; /* longer than need be */
        if (c == 0xED && p[1] > 0x9F) return 0; /* surrogates */
        if (c == 0xF0 && p[1] < 0x90) return 0;
        if (c == 0xF4 && p[1] > 0x8F) return 0; /* above U+10FFFF */
        p += more + 1;
        n -= more + 1;
    }
    return 1;
}

static int compare(const text *a, const text *b) {
    u32 n = least(a->nbytes, b->nbytes);
    int order = n ? memcmp(a->at, b->at, n) : 0;
    return order ? order : a->nbytes < b->nbytes ? -1 : a->nbytes > b->nbytes;
}

static void sift(text *t, u64 i, u64 n) {
    text top = t[i];
    for (u64 child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && compare(&t[child], &t[child + 1]) < 0) child++;
        if (compare(&top, &t[child]) >= 0) break;
        t[i] = t[child];
    }
    t[i] = top;
}

/* Sorts by bytes, by heap: qsort may take memory or long. Returns whether all differ. */
static int sort(text *t, u64 n) {
    for (u64 i = n / 2; i-- > 0;) sift(t, i, n);
    for (u64 i = n; i-- > 1;) {
        text top = t[0];
        t[0] = t[i];
        t[i] = top;
        sift(t, 0, i);
    }
    for (u64 i = 1; i < n; i++)
        if (compare(&t[i - 1], &t[i]) == 0) return 0;
    return 1;
}

/* ---- dtypes (chapter 18) --------------------------------------------------------------------- */
enum { IDENTITY = 0, OFFSET = 1 }; /* other maps are EXPONENT_FIRST, with so many exponent bits */

typedef struct {
    char name[16];
    u8 word_nbytes, n_words, map;
} dtype;

static const dtype dtypes[] = {
    {"opaque", 1, 1, IDENTITY},  {"bool", 1, 1, IDENTITY},    {"uint8", 1, 1, IDENTITY},
    {"int8", 1, 1, OFFSET},      {"uint16", 2, 1, IDENTITY},  {"int16", 2, 1, OFFSET},
    {"uint32", 4, 1, IDENTITY},  {"int32", 4, 1, OFFSET},     {"uint64", 8, 1, IDENTITY},
    {"int64", 8, 1, OFFSET},     {"float16", 2, 1, IDENTITY}, {"bfloat16", 2, 1, 8},
    {"float32", 4, 1, 8},        {"float64", 8, 1, IDENTITY}, {"float8_e4m3fn", 1, 1, 4},
    {"float8_e5m2", 1, 1, 5},    {"float8_e8m0fnu", 1, 1, IDENTITY},
    {"float8_e4m3fnuz", 1, 1, 4}, {"float8_e5m2fnuz", 1, 1, 5},
    {"complex64", 4, 2, 8},      {"complex128", 8, 2, IDENTITY}};
enum { N_DTYPES = sizeof dtypes / sizeof *dtypes };

/* How words of so many bytes are coded: `map` is IDENTITY for gaps and MINUS (R12.5, R12.10). */
typedef struct {
    u32 word_nbytes, map;
} word_type;

static u64 unmapped(word_type d, u64 m) { /* R5.2 */
    u32 b = 8 * d.word_nbytes, f = b - 1 - d.map;
    if (d.map == IDENTITY) return m;
    if (d.map == OFFSET) return m ^ (u64)1 << (b - 1);
    return (m >> f & 1) << (b - 1) | m >> (f + 1) << f | (m & (((u64)1 << f) - 1));
}

/* ---- what a file holds ----------------------------------------------------------------------- */
typedef struct {
    text name;
    u32 root; /* a tensor of its own, or the one that it repeats (R4.28) */
    u32 crc32;
    u8 dtype, rank, row_rank, difference, sparse;
    const u8 *shape;
    u64 rows, cols; /* the matrix view, in words (R6.2) */
    u32 segment_rows, segment_cols, tile_rows, tile_cols;
    u64 n_across, n_segments;
    u64 nbytes, payload_offset, gaps_nbytes;
    bytes table; /* the segment table */
} tensor;

struct wcodec_file {
    arena memory;
    wcodec_read_at read;
    void *ctx;
    u64 nbytes, index_offset, index_nbytes, index_raw_nbytes, data_nbytes;
    u32 index_crc32, n_tensors, n_tables, n_maps, index_coding;
    const wcodec_file *base;
    int base_fits; /* R12.6 */
    const u8 *base_hash;
    bytes source_header;
    u8 *index;
    const u8 **tables, **maps; /* where each stands in the index */
    tensor *tensors;
    text *names; /* sorted */
    crc_table crc;
};

static wcodec_status read_at(const wcodec_file *f, u64 offset, u64 n, void *to) {
    return n && f->read(f->ctx, offset, (size_t)n, to) ? WCODEC_IO_ERROR : WCODEC_OK;
}

/* ---- tables (9.1) ---------------------------------------------------------------------------- */
typedef struct {
    bytes from;
    u32 byte, n_bits; /* what is left of the last byte taken */
} bits;

static wcodec_status next_bits(bits *b, u32 n, u32 *value) {
    for (*value = 0; n; n--) {
        if (!b->n_bits) {
            const u8 *p = next(&b->from, 1);
            REQUIRE(p, WCODEC_BAD_TABLE);
            b->byte = *p;
            b->n_bits = 8;
        }
        *value = *value << 1 | (b->byte >> --b->n_bits & 1);
    }
    return WCODEC_OK;
}

static wcodec_status next_frequency(bits *b, u32 k, u32 *v) {
    u32 zeros = 0, bit, q, low;
    for (;;) {
        TRY(next_bits(b, 1, &bit));
        if (bit) break;
        REQUIRE(++zeros <= 12, WCODEC_BAD_TABLE); /* R9.7 */
    }
    TRY(next_bits(b, zeros, &q));
    TRY(next_bits(b, k, &low));
    *v = ((q | (u32)1 << zeros) - 1) << k | low; /* below 2^24 */
    return WCODEC_OK;
}

static wcodec_status read_table(bytes *from, u32 *prob_bits, u16 frequencies[256]) {
    const u8 *head = next(from, 4);
    u32 first, last, k, sum = 0, v = 0;
    bits b;
    REQUIRE(head, WCODEC_BAD_TABLE);
    *prob_bits = head[0], first = head[1], last = head[2], k = head[3];
    REQUIRE(*prob_bits >= 9 && *prob_bits <= MAX_BITS, WCODEC_BAD_TABLE); /* R9.6 */
    REQUIRE(first <= last && k <= 11, WCODEC_BAD_TABLE);                  /* R9.7 */
    memset(frequencies, 0, 256 * sizeof *frequencies);
    b.from = *from, b.byte = 0, b.n_bits = 0;
    for (u32 s = first; s <= last; s++) {
        TRY(next_frequency(&b, k, &v));
        REQUIRE(v < (u32)1 << *prob_bits, WCODEC_BAD_TABLE);          /* R9.6 */
        REQUIRE(v || (s != first && s != last), WCODEC_BAD_TABLE);    /* R9.7 */
        frequencies[s] = (u16)v;
        sum += v;
    }
    REQUIRE(sum == (u32)1 << *prob_bits, WCODEC_BAD_TABLE);             /* R9.6 */
    REQUIRE(!(b.byte & (((u32)1 << b.n_bits) - 1)), WCODEC_BAD_TABLE); /* R9.7: padding */
    *from = b.from;
    return WCODEC_OK;
}

/* A table as it is decoded with. */
typedef struct {
    u32 number, prob_bits;
    u16 frequency[256], start[256];
    u8 symbol[1 << MAX_BITS]; /* of each slot */
} lookup;

static wcodec_status make_lookup(const wcodec_file *f, u32 number, lookup *t) {
    bytes from;
    u32 slot = 0;
    if (t->number == number) return WCODEC_OK;
    from.at = f->tables[number];
    from.left = (u64)(f->index + f->index_raw_nbytes - from.at);
    t->number = UINT32_MAX; /* of no table */
    TRY(read_table(&from, &t->prob_bits, t->frequency));
    for (u32 s = 0; s < 256; s++) {
        t->start[s] = (u16)slot;
        memset(t->symbol + slot, (int)s, t->frequency[s]);
        slot += t->frequency[s];
    }
    t->number = number;
    return WCODEC_OK;
}

/* ---- segment tables (4.5) -------------------------------------------------------------------- */
typedef struct {
    const u8 *at;
    u32 width;
} column;

typedef struct { /* of n segments, R4.36 */
    const u8 *crc32;
    column layout, base, n_patches;
    struct {
        column coder, table, prediction, n_units;
    } planes[MAX_PLANES];
} segment_table;

static u32 value_of(const column *c, u64 i) { /* R4.37 */
    switch (c->width) {
    case 0: return get32(c->at);
    case 1: return c->at[i];
    case 2: return get16(c->at + 2 * i);
    default: return get32(c->at + 4 * i);
    }
}

static wcodec_status read_column(bytes *from, u64 n, column *c) { /* R4.37 */
    const u8 *width = next(from, 1);
    REQUIRE(width, WCODEC_BAD_RANGE); /* R4.30 */
    c->width = *width;
    REQUIRE(c->width <= 2 || c->width == 4, WCODEC_BAD_VALUE);
    c->at = c->width ? next_of(from, n, c->width) : next(from, 4);
    REQUIRE(c->at, WCODEC_BAD_RANGE); /* R4.30 */
    return WCODEC_OK;
}

static u32 n_planes_of(u32 word_nbytes) { return word_nbytes == 1 ? 2 : word_nbytes; } /* R5.9 */

static wcodec_status read_segment_table(bytes *from, u64 n, u32 word_nbytes, segment_table *t) {
    t->crc32 = next_of(from, n, 4);
    REQUIRE(t->crc32, WCODEC_BAD_RANGE); /* R4.38 */
    TRY(read_column(from, n, &t->layout));
    TRY(read_column(from, n, &t->base));
    TRY(read_column(from, n, &t->n_patches));
    for (u32 p = 0; p < n_planes_of(word_nbytes); p++) {
        TRY(read_column(from, n, &t->planes[p].coder));
        TRY(read_column(from, n, &t->planes[p].table));
        TRY(read_column(from, n, &t->planes[p].prediction));
        TRY(read_column(from, n, &t->planes[p].n_units));
    }
    return WCODEC_OK;
}

typedef struct { /* all of a tensor; of one that is not sparse `words` alone */
    segment_table words, gaps;
    const u8 *n_listed, *words_crc32;
    column n_gaps;
    u64 n; /* segments in them: of a sparse tensor those that list words (R12.8) */
} table_set;

static wcodec_status read_tables(const tensor *t, table_set *out) {
    bytes from = t->table;
    u32 word_nbytes = dtypes[t->dtype].word_nbytes;
    out->n = t->n_segments;
    if (t->sparse) { /* R12.8 */
        out->n_listed = next_of(&from, t->n_segments, 4);
        REQUIRE(out->n_listed, WCODEC_BAD_RANGE); /* R4.38 */
        out->n = 0;
        for (u64 i = 0; i < t->n_segments; i++) out->n += get32(out->n_listed + 4 * i) != 0;
    }
    if (out->n && t->sparse) {
        TRY(read_column(&from, out->n, &out->n_gaps));
        out->words_crc32 = next_of(&from, out->n, 4);
        REQUIRE(out->words_crc32, WCODEC_BAD_RANGE);
        TRY(read_segment_table(&from, out->n, 1, &out->gaps));
    }
    if (out->n) TRY(read_segment_table(&from, out->n, word_nbytes, &out->words)); /* R4.36 */
    REQUIRE(from.left == 0, WCODEC_BAD_RANGE);                                    /* R4.30 */
    return WCODEC_OK;
}

/* ---- segments: what is in a record (chapter 10) ---------------------------------------------- */
typedef struct { /* at most 2^24 words (R6.5) */
    u32 rows, cols, tile_rows, tile_cols;
} rectangle;

typedef struct {
    u32 row, col, rows, cols, first; /* `first` element of the segment's (R6.9) */
} tile;

/* Goes on to the next tile (R6.8); to the first one from a tile of zeros. */
static int next_tile(const rectangle *s, tile *t) {
    if (t->rows) {
        t->first += t->rows * t->cols;
        t->col += s->tile_cols;
        if (t->col >= s->cols) t->col = 0, t->row += s->tile_rows;
    }
    if (t->row >= s->rows) return 0;
    t->rows = least(s->tile_rows, s->rows - t->row);
    t->cols = least(s->tile_cols, s->cols - t->col);
    return 1;
}

static u32 n_tiles(const rectangle *s) {
    return (1 + (s->rows - 1) / s->tile_rows) * (1 + (s->cols - 1) / s->tile_cols);
}

typedef struct {
    u32 coder, table, prediction, n_units;
    u32 n; /* symbols */
    u64 nbytes;
} plane;

typedef struct {
    u32 n, layout, base, n_patches, n_planes;
    int windowed; /* PAIRS of words larger than a byte */
    int packed;   /* PAIRS of 1-byte words */
    int scaled;   /* R10.10 */
    u32 n_modes;
    u64 modes_nbytes, scales_nbytes, nbytes; /* with padding */
    plane planes[MAX_PLANES];
} segment_plan;

static int is_mode(u32 m) { return (m & 15) <= 4 && m >> 4 <= 2; } /* R7.1 */

static wcodec_status plan_plane(const wcodec_file *f, const segment_plan *s, u32 p, plane *out) {
    u32 coder = out->coder, units = out->n_units, modes = out->prediction;
    int coded = coder == C_RANS || coder == C_CONTEXT;
    REQUIRE(coder <= 255 && modes <= 255, WCODEC_BAD_VALUE);                    /* R4.39 */
    REQUIRE(coded || coder == C_RAW || coder == C_CONSTANT, WCODEC_UNSUPPORTED_CODER); /* R10.5 */
    REQUIRE(modes == OWN_MODES || is_mode(modes), WCODEC_UNSUPPORTED_CODER);    /* R7.1 */
    REQUIRE(!modes || (s->layout == L_BYTES && coded), WCODEC_BAD_VALUE);       /* R7.2 */
    out->n = s->packed || (s->windowed && p == 0) ? (s->n + 1) / 2 : s->n;      /* R10.3 */
    if (coder == C_RAW) REQUIRE(out->table == 0, WCODEC_BAD_RANGE);             /* R10.5 */
    if (coder == C_CONSTANT) REQUIRE(out->table <= 255, WCODEC_BAD_RANGE);      /* R10.5 */
    if (coder == C_RANS) REQUIRE(out->table < f->n_tables, WCODEC_BAD_RANGE);   /* R10.5 */
    if (coder == C_CONTEXT) {
        REQUIRE(out->table < f->n_maps, WCODEC_BAD_RANGE);                      /* R10.5 */
        REQUIRE(p || *f->maps[out->table] != K_PLANE, WCODEC_BAD_VALUE);        /* R9.13 */
    }
    if (!coded) REQUIRE(units == 0, WCODEC_BAD_RANGE);                          /* R10.6 */
    if (coded) /* R9.10 */
        REQUIRE(units >= 8 && units - 8 <= (out->n + 127) / 128 * 16, WCODEC_BAD_RANGE);
    out->nbytes = coded ? 16 * (u64)units : coder == C_RAW ? pad16(out->n) : 0; /* R10.6 */
    return WCODEC_OK;
}

/* Reads row i of a segment table, and checks it. */
static wcodec_status plan_segment(const wcodec_file *f, const segment_table *t, u64 i, word_type d,
                                  const rectangle *r, segment_plan *s) {
    memset(s, 0, sizeof *s);
    s->n = r->rows * r->cols;
    s->layout = value_of(&t->layout, i);
    s->base = value_of(&t->base, i);
    s->n_patches = value_of(&t->n_patches, i);
    REQUIRE(s->layout <= 255, WCODEC_BAD_VALUE);             /* R4.39 */
    REQUIRE(s->layout <= L_PAIRS, WCODEC_UNSUPPORTED_CODER); /* R5.3 */
    s->windowed = s->layout == L_PAIRS && d.word_nbytes > 1;
    s->packed = s->layout == L_PAIRS && d.word_nbytes == 1;
    REQUIRE(!s->windowed || d.map > OFFSET, WCODEC_BAD_VALUE);                    /* R5.7 */
    REQUIRE(s->base <= 240 && (!s->base || s->windowed), WCODEC_BAD_VALUE);       /* R5.8 */
    REQUIRE(s->n_patches <= (s->windowed ? s->n : 0), WCODEC_BAD_RANGE);          /* R10.9 */
    s->n_planes = s->layout == L_RAW ? 0 : s->packed ? 2 : d.word_nbytes;
    s->nbytes = s->layout == L_RAW ? pad16((u64)s->n * d.word_nbytes) : 0; /* R10.6 */
    for (u32 p = 0; p < n_planes_of(d.word_nbytes); p++) {
        plane *to = &s->planes[p];
        to->coder = value_of(&t->planes[p].coder, i);
        to->table = value_of(&t->planes[p].table, i);
        to->prediction = value_of(&t->planes[p].prediction, i);
        to->n_units = value_of(&t->planes[p].n_units, i);
        if (p >= s->n_planes) { /* R5.9 */
            REQUIRE(!(to->coder | to->table | to->prediction | to->n_units), WCODEC_BAD_VALUE);
            continue;
        }
        TRY(plan_plane(f, s, p, to));
        if (to->prediction == OWN_MODES) s->n_modes += n_tiles(r); /* R10.4 */
        if (to->coder == C_CONTEXT && *f->maps[to->table] == K_SCALE) s->scaled = 1;
        s->nbytes += to->nbytes;
    }
    s->modes_nbytes = pad16(s->n_modes);
    s->scales_nbytes = s->scaled ? pad16(((u64)r->rows + r->cols + 3) / 4) : 0; /* R10.10 */
    s->nbytes += s->modes_nbytes + s->scales_nbytes + pad16(4 * (u64)s->n_patches);
    return WCODEC_OK;
}

static rectangle segment_of(const tensor *t, u64 i) { /* R6.4, R6.6 */
    u64 row = i / t->n_across * t->segment_rows, col = i % t->n_across * t->segment_cols;
    rectangle r;
    r.rows = t->rows - row < t->segment_rows ? (u32)(t->rows - row) : t->segment_rows;
    r.cols = t->cols - col < t->segment_cols ? (u32)(t->cols - col) : t->segment_cols;
    r.tile_rows = t->tile_rows;
    r.tile_cols = t->tile_cols;
    return r;
}

static rectangle run_of(u32 n) { /* R12.10 */
    rectangle r = {1, n, 1, n};
    return r;
}

static word_type coded_words(const tensor *t) { /* R12.5 */
    const dtype *d = &dtypes[t->dtype];
    word_type w = {d->word_nbytes, t->difference == D_MINUS ? (u32)IDENTITY : d->map};
    return w;
}

static const word_type gap_words = {1, IDENTITY}; /* R12.10: of uint8 */

/* ---- the index (4.3, 4.4) -------------------------------------------------------------------- */
static wcodec_status read_tables_record(wcodec_file *f, bytes body) {
    const u8 *n = next(&body, 2);
    u16 frequencies[256];
    u32 prob_bits;
    REQUIRE(n, WCODEC_BAD_RANGE);
    f->n_tables = get16(n);
    f->tables = (const u8 **)take(&f->memory, f->n_tables * sizeof *f->tables);
    REQUIRE(f->tables, WCODEC_RESOURCE_LIMIT);
    for (u32 i = 0; i < f->n_tables; i++) {
        f->tables[i] = body.at;
        TRY(read_table(&body, &prob_bits, frequencies)); /* R4.20 */
    }
    REQUIRE(body.left == 0, WCODEC_BAD_RANGE); /* R4.20 */
    return WCODEC_OK;
}

static u32 n_contexts(u32 kind) { return kind == K_PLANE ? 256 : kind == K_POSITION ? 64 : 16; }

static wcodec_status read_map(const wcodec_file *f, bytes *body) {
    const u8 *head = next(body, 2), *class_of, *table_of;
    REQUIRE(head, WCODEC_BAD_RANGE);                                       /* R4.26 */
    REQUIRE(head[0] >= K_PLANE && head[0] <= K_SCALE, WCODEC_UNSUPPORTED_CODER); /* R4.25 */
    REQUIRE(head[1] >= 1 && head[1] <= MAX_CLASSES, WCODEC_BAD_RANGE);     /* R4.25 */
    class_of = next(body, n_contexts(head[0]));
    table_of = next(body, 2 * (u64)head[1]);
    REQUIRE(class_of && table_of, WCODEC_BAD_RANGE); /* R4.26 */
    for (u32 i = 0; i < n_contexts(head[0]); i++)
        REQUIRE(class_of[i] < head[1], WCODEC_BAD_RANGE); /* R4.25 */
    for (u32 i = 0; i < head[1]; i++) {
        REQUIRE(get16(table_of + 2 * i) < f->n_tables, WCODEC_BAD_RANGE); /* R4.25 */
        REQUIRE(*f->tables[get16(table_of + 2 * i)] == *f->tables[get16(table_of)],
                WCODEC_BAD_VALUE); /* R4.25: prob_bits comes first in a table */
    }
    return WCODEC_OK;
}

static wcodec_status read_contexts(wcodec_file *f, bytes body) {
    const u8 *n = next(&body, 2);
    REQUIRE(n, WCODEC_BAD_RANGE);
    f->n_maps = get16(n);
    f->maps = (const u8 **)take(&f->memory, f->n_maps * sizeof *f->maps);
    REQUIRE(f->maps, WCODEC_RESOURCE_LIMIT);
    for (u32 i = 0; i < f->n_maps; i++) {
        f->maps[i] = body.at;
        TRY(read_map(f, &body));
    }
    REQUIRE(body.left == 0, WCODEC_BAD_RANGE); /* R4.26 */
    return WCODEC_OK;
}

static wcodec_status next_text(bytes *body, text *t) { /* `nbytes` u32, then so many bytes */
    const u8 *nbytes = next(body, 4);
    REQUIRE(nbytes, WCODEC_BAD_RANGE); /* R4.24 */
    t->nbytes = get32(nbytes);
    t->at = next(body, t->nbytes);
    REQUIRE(t->at, WCODEC_BAD_RANGE);                   /* R4.24 */
    REQUIRE(is_utf8(t->at, t->nbytes), WCODEC_BAD_NAME); /* R4.23 */
    return WCODEC_OK;
}

static wcodec_status read_metadata(wcodec_file *f, bytes body) {
    const u8 *n = next(&body, 4);
    wcodec_status status = WCODEC_OK;
    text *keys, value;
    REQUIRE(n && get32(n) <= body.left / 8, WCODEC_BAD_RANGE); /* R4.24: a pair has 8 bytes */
    keys = (text *)take(&f->memory, get32(n) * (u64)sizeof *keys);
    REQUIRE(keys, WCODEC_RESOURCE_LIMIT);
    for (u32 i = 0; i < get32(n) && !status; i++) {
        status = next_text(&body, &keys[i]);
        if (!status) status = next_text(&body, &value);
    }
    if (!status && body.left) status = WCODEC_BAD_RANGE;              /* R4.24 */
    if (!status && !sort(keys, get32(n))) status = WCODEC_BAD_NAME;   /* R4.23 */
    give(&f->memory, keys);
    return status;
}

static wcodec_status read_shape(tensor *t) { /* R4.35, R6.2 */
    u64 nbytes = (u64)dtypes[t->dtype].word_nbytes * dtypes[t->dtype].n_words;
    int empty = 0;
    t->rows = 1;
    t->cols = dtypes[t->dtype].n_words;
    for (u32 i = 0; i < t->rank; i++) {
        u64 size = get64(t->shape + 8 * i);
        empty |= !size;
        REQUIRE(!size || multiply(&nbytes, size), WCODEC_BAD_RANGE);
        *(i < t->row_rank ? &t->rows : &t->cols) *= size;
    }
    REQUIRE(nbytes < (u64)1 << 63, WCODEC_BAD_RANGE);
    t->nbytes = empty ? 0 : nbytes;
    return WCODEC_OK;
}

static wcodec_status read_grid(tensor *t, const u8 *p) {
    u32 rows = t->segment_rows = get32(p), cols = t->segment_cols = get32(p + 4);
    u32 tile_rows = t->tile_rows = get32(p + 8), tile_cols = t->tile_cols = get32(p + 12);
    REQUIRE(rows && cols && tile_rows && tile_cols, WCODEC_BAD_RANGE);                /* R6.5 */
    REQUIRE((u64)rows * cols <= (u64)1 << 24, WCODEC_BAD_RANGE);                      /* R6.5 */
    REQUIRE(rows % tile_rows == 0 && (tile_rows >= 16 || tile_rows == rows), WCODEC_BAD_RANGE);
    REQUIRE(cols % tile_cols == 0 && (tile_cols >= 16 || tile_cols == cols), WCODEC_BAD_RANGE);
    if (t->sparse) /* R12.7 */
        REQUIRE(!t->row_rank && rows == tile_rows && cols == tile_cols, WCODEC_BAD_VALUE);
    if (t->rows && t->cols) { /* R6.4; the number of words is below 2^63 */
        t->n_across = 1 + (t->cols - 1) / cols;
        t->n_segments = t->n_across * (1 + (t->rows - 1) / rows);
    }
    return WCODEC_OK;
}

/* Checks all segments, and counts the bytes of their records (R4.34). */
static wcodec_status check_segments(const wcodec_file *f, tensor *t, u64 *payload_nbytes) {
    table_set of;
    segment_plan s;
    TRY(read_tables(t, &of));
    *payload_nbytes = 0;
    for (u64 i = 0, k = 0; i < t->n_segments; i++) {
        rectangle r = segment_of(t, i);
        if (t->sparse) {
            u32 n = r.rows * r.cols, n_listed = get32(of.n_listed + 4 * i), n_gaps;
            if (!n_listed) continue;
            n_gaps = value_of(&of.n_gaps, k);
            REQUIRE(n_listed <= n, WCODEC_BAD_RANGE); /* R12.9 */
            REQUIRE(n_gaps >= n_listed && n_gaps <= n_listed + (n - n_listed) / 255,
                    WCODEC_BAD_RANGE); /* R12.9 */
            r = run_of(n_gaps);
            TRY(plan_segment(f, &of.gaps, k, gap_words, &r, &s));
            t->gaps_nbytes += s.nbytes; /* a sum of less than 2^63 / 4 records of less than 2^31 */
            REQUIRE(add(payload_nbytes, s.nbytes), WCODEC_BAD_RANGE);
            r = run_of(n_listed);
        }
        TRY(plan_segment(f, &of.words, k++, coded_words(t), &r, &s));
        REQUIRE(add(payload_nbytes, s.nbytes), WCODEC_BAD_RANGE);
    }
    return WCODEC_OK;
}

static wcodec_status read_tensor(wcodec_file *f, bytes body, tensor *t, u64 *end) {
    const u8 *p = next(&body, TENSOR), *dtype_name;
    u64 payload_nbytes, expected;
    u32 flags;
    REQUIRE(p, WCODEC_BAD_RANGE); /* R4.30 */
    flags = get16(p + 40);
    t->payload_offset = get64(p);
    payload_nbytes = get64(p + 8);
    t->crc32 = get32(p + 16);
    t->dtype = p[20], t->rank = p[21], t->row_rank = p[22];
    t->difference = flags & 3;
    t->sparse = flags >> 2 & 1;
    REQUIRE(flags < 8 && !get16(p + 46), WCODEC_BAD_VALUE);                          /* R4.31 */
    REQUIRE(t->difference <= D_MINUS, WCODEC_BAD_VALUE);                             /* R4.31 */
    REQUIRE(t->difference ? f->base_hash != NULL : !t->sparse, WCODEC_BAD_VALUE);    /* R4.31 */
    REQUIRE(t->dtype < N_DTYPES && p[23] == 0, WCODEC_UNSUPPORTED_CODER);            /* R4.31 */
    REQUIRE(t->rank <= 32 && t->row_rank <= t->rank, WCODEC_BAD_RANGE);              /* R6.1 */
    t->shape = next(&body, 8 * (u64)t->rank);
    t->name.nbytes = get16(p + 42);
    t->name.at = next(&body, t->name.nbytes);
    dtype_name = next(&body, get16(p + 44));
    REQUIRE(t->shape && t->name.at && dtype_name, WCODEC_BAD_RANGE);                 /* R4.30 */
    REQUIRE(is_utf8(t->name.at, t->name.nbytes), WCODEC_BAD_NAME);                   /* R4.32 */
    REQUIRE(is_utf8(dtype_name, get16(p + 44)), WCODEC_BAD_NAME);                    /* R2.6 */
    TRY(read_shape(t));
    TRY(read_grid(t, p + 24));
    t->table = body;
    TRY(check_segments(f, t, &expected));
    REQUIRE(payload_nbytes == expected, WCODEC_BAD_RANGE);                           /* R4.34 */
    REQUIRE(t->payload_offset == *end, WCODEC_BAD_RANGE);                            /* R4.33 */
    REQUIRE(add(end, payload_nbytes) && *end <= f->index_offset, WCODEC_BAD_RANGE);  /* R4.33 */
    return WCODEC_OK;
}

static wcodec_status read_duplicate(const wcodec_file *f, bytes body, u32 i, tensor *t) {
    const u8 *of = next(&body, 4);
    text name;
    REQUIRE(of && get32(of) < i, WCODEC_BAD_RANGE); /* R4.28 */
    *t = f->tensors[get32(of)];
    REQUIRE(body.left <= UINT32_MAX, WCODEC_RESOURCE_LIMIT);
    name.at = body.at, name.nbytes = (u32)body.left, name.number = i;
    REQUIRE(is_utf8(name.at, name.nbytes), WCODEC_BAD_NAME); /* R4.32 */
    t->name = name;
    return WCODEC_OK;
}

/* A record of which there is at most one; `seen` has a bit for each type so far (R4.19). */
static wcodec_status read_single(wcodec_file *f, u32 type, bytes body, u32 seen) {
    u32 late = (u32)1 << R_TENSOR | (type == R_TABLES ? (u32)1 << R_CONTEXTS : 0);
    REQUIRE(!(seen >> type & 1), WCODEC_BAD_VALUE);
    REQUIRE(type == R_SOURCE || type == R_METADATA || !(seen & late), WCODEC_BAD_VALUE);
    switch (type) {
    case R_TABLES: return read_tables_record(f, body);
    case R_CONTEXTS: return read_contexts(f, body);
    case R_METADATA: return read_metadata(f, body);
    case R_BASE:
        f->base_hash = next(&body, 32);
        REQUIRE(f->base_hash, WCODEC_BAD_RANGE);                /* R4.27 */
        REQUIRE(is_utf8(body.at, body.left), WCODEC_BAD_NAME); /* R2.6 */
        return WCODEC_OK;
    default:
        REQUIRE(body.left >= 2, WCODEC_BAD_RANGE);                       /* R4.21 */
        REQUIRE(get16(next(&body, 2)) == 1, WCODEC_UNSUPPORTED_RECORD); /* R4.21 */
        f->source_header = body;
        return WCODEC_OK;
    }
}

static wcodec_status read_records(wcodec_file *f) {
    bytes index, body;
    u64 end = HEADER, nbytes = 0;
    u32 n = 0, seen = 0;
    index.at = f->index, index.left = f->index_raw_nbytes;
    while (index.left) {
        const u8 *head = next(&index, RECORD);
        u32 type;
        REQUIRE(head, WCODEC_BAD_RANGE); /* R4.17 */
        type = get16(head);
        body.left = get64(head + 4);
        body.at = next(&index, body.left);
        REQUIRE(body.at, WCODEC_BAD_RANGE);               /* R4.17 */
        REQUIRE(get16(head + 2) <= 1, WCODEC_BAD_VALUE); /* R4.17 */
        if (type == R_TENSOR || type == R_DUPLICATE) {
            tensor *t = &f->tensors[n];
            REQUIRE(n < f->n_tensors, WCODEC_BAD_RANGE); /* R4.16 */
            memset(t, 0, sizeof *t);
            t->root = n;
            TRY(type == R_TENSOR ? read_tensor(f, body, t, &end) : read_duplicate(f, body, n, t));
            t->name.number = n;
            f->names[n++] = t->name;
            REQUIRE(add(&nbytes, t->nbytes), WCODEC_BAD_RANGE); /* R4.16 */
        } else if (type && type <= R_DUPLICATE) {
            TRY(read_single(f, type, body, seen));
        } else {
            REQUIRE(!get16(head + 2), WCODEC_UNSUPPORTED_RECORD); /* R4.18 */
        }
        if (type <= R_DUPLICATE) seen |= (u32)1 << type;
    }
    REQUIRE(n == f->n_tensors && nbytes == f->data_nbytes, WCODEC_BAD_RANGE); /* R4.16 */
    REQUIRE(end == f->index_offset, WCODEC_BAD_RANGE);                        /* R4.33 */
    REQUIRE(sort(f->names, n), WCODEC_BAD_NAME);                              /* R4.32 */
    return WCODEC_OK;
}

/* ---- header, footer, the index as stored (4.1, 4.2) ------------------------------------------ */
static wcodec_status read_header(const wcodec_file *f) {
    static const u8 magic[8] = {0x89, 'W', 'C', 'O', 'D', 'E', 'C', '\n'};
    u8 h[HEADER];
    u32 n = f->nbytes < HEADER ? (u32)f->nbytes : (u32)HEADER;
    TRY(read_at(f, 0, n, h));
    REQUIRE(!memcmp(h, magic, least(n, sizeof magic)), WCODEC_BAD_MAGIC);               /* R4.2 */
    REQUIRE(n == HEADER, WCODEC_TRUNCATED);                                             /* R4.2 */
    REQUIRE(crc32_of(&f->crc, 0, h, 28) == get32(h + 28), WCODEC_BAD_CHECKSUM);         /* R4.3 */
    REQUIRE(get16(h + 8) == 0 && get16(h + 10) == 2, WCODEC_UNSUPPORTED_VERSION);       /* R4.4 */
    REQUIRE(!get32(h + 12) && !get64(h + 16) && !get32(h + 24), WCODEC_BAD_VALUE);      /* R4.5 */
    REQUIRE(f->nbytes >= HEADER + FOOTER, WCODEC_TRUNCATED);                            /* R4.6 */
    return WCODEC_OK;
}

static wcodec_status read_footer(wcodec_file *f) {
    u8 p[FOOTER];
    u64 file_nbytes, end;
    int is_end;
    TRY(read_at(f, f->nbytes - FOOTER, FOOTER, p));
    is_end = !memcmp(p + 56, "WCODECFT", 8);
    if (crc32_of(&f->crc, 0, p, 52) != get32(p + 52)) /* R4.7 */
        return is_end ? WCODEC_BAD_CHECKSUM : WCODEC_TRUNCATED;
    REQUIRE(is_end, WCODEC_BAD_MAGIC); /* R4.8 */
    f->index_offset = end = get64(p);
    f->index_nbytes = get64(p + 8);
    f->index_raw_nbytes = get64(p + 16);
    file_nbytes = get64(p + 24);
    f->data_nbytes = get64(p + 32);
    f->n_tensors = get32(p + 40);
    f->index_coding = p[44];
    f->index_crc32 = get32(p + 48);
    REQUIRE(file_nbytes <= f->nbytes, WCODEC_TRUNCATED);                                /* R4.9 */
    REQUIRE(file_nbytes == f->nbytes, WCODEC_BAD_RANGE);                                /* R4.9 */
    REQUIRE(end >= HEADER && add(&end, f->index_nbytes) && end == f->nbytes - FOOTER,
            WCODEC_BAD_RANGE);                                                          /* R4.10 */
    REQUIRE(!p[45] && !p[46] && !p[47], WCODEC_BAD_VALUE);                              /* R4.11 */
    REQUIRE(f->index_coding <= 1, WCODEC_UNSUPPORTED_CODER);                            /* R4.12 */
    REQUIRE(f->index_coding ? f->index_raw_nbytes / 64 + (f->index_raw_nbytes % 64 != 0) <=
                                  f->index_nbytes
                            : f->index_raw_nbytes == f->index_nbytes,
            WCODEC_BAD_RANGE);                                                          /* R4.14 */
    /* R4.16: a record of one has 16 bytes at least */
    REQUIRE(f->n_tensors <= f->index_raw_nbytes / 16, WCODEC_BAD_RANGE);
    return WCODEC_OK;
}

#ifdef WCODEC_NO_ZLIB
static wcodec_status inflate_index(wcodec_file *f) {
    (void)f;
    return WCODEC_NO_INFLATE;
}
#else
static voidpf zlib_take(voidpf m, uInt n, uInt size) { return take((arena *)m, (u64)n * size); }
static void zlib_give(voidpf m, voidpf p) { give((arena *)m, p); }

/* R4.15. There is a byte of room more than there should be bytes. */
static wcodec_status inflate_stream(wcodec_file *f, z_stream *z, u8 *stored) {
    u64 taken = 0, room = f->index_raw_nbytes + 1, n;
    int result = Z_OK;
    u32 crc = 0;
    z->next_out = f->index;
    for (;;) {
        if (!z->avail_in && taken < f->index_nbytes) {
            n = f->index_nbytes - taken < CHUNK ? f->index_nbytes - taken : (u64)CHUNK;
            TRY(read_at(f, f->index_offset + taken, n, stored));
            crc = crc32_of(&f->crc, crc, stored, n);
            z->next_in = stored;
            z->avail_in = (uInt)n;
            taken += n;
        }
        n = room < (u64)1 << 30 ? room : (u64)1 << 30;
        z->avail_out = (uInt)n;
        result = inflate(z, Z_NO_FLUSH);
        room -= n - z->avail_out;
        if (result != Z_OK) break;
    }
    REQUIRE(result != Z_MEM_ERROR, WCODEC_RESOURCE_LIMIT);
    REQUIRE(result == Z_STREAM_END || result == Z_BUF_ERROR, WCODEC_BAD_STREAM);
    REQUIRE(result == Z_STREAM_END && room == 1, WCODEC_BAD_RANGE);
    REQUIRE(taken == f->index_nbytes && !z->avail_in, WCODEC_BAD_RANGE);
    REQUIRE(crc == f->index_crc32, WCODEC_BAD_CHECKSUM); /* R4.13 */
    return WCODEC_OK;
}

static wcodec_status inflate_index(wcodec_file *f) {
    wcodec_status status;
    z_stream z;
    u8 *stored = (u8 *)take(&f->memory, CHUNK);
    REQUIRE(stored, WCODEC_RESOURCE_LIMIT);
    memset(&z, 0, sizeof z);
    z.zalloc = zlib_take, z.zfree = zlib_give, z.opaque = &f->memory;
    status = inflateInit(&z) == Z_OK ? WCODEC_OK : WCODEC_RESOURCE_LIMIT;
    if (!status) {
        status = inflate_stream(f, &z, stored);
        inflateEnd(&z);
    }
    give(&f->memory, stored);
    return status;
}
#endif

static wcodec_status read_index(wcodec_file *f) {
    u64 n = f->index_raw_nbytes;
    REQUIRE(n < UINT64_MAX && (f->index = (u8 *)take(&f->memory, n + 1)), WCODEC_RESOURCE_LIMIT);
    f->tensors = (tensor *)take(&f->memory, f->n_tensors * (u64)sizeof(tensor));
    f->names = (text *)take(&f->memory, f->n_tensors * (u64)sizeof(text));
    REQUIRE(f->tensors && f->names, WCODEC_RESOURCE_LIMIT);
    if (f->index_coding) {
        TRY(inflate_index(f));
    } else {
        TRY(read_at(f, f->index_offset, n, f->index));
        REQUIRE(crc32_of(&f->crc, 0, f->index, n) == f->index_crc32, WCODEC_BAD_CHECKSUM);
    }
    return read_records(f);
}

/* ---- opening --------------------------------------------------------------------------------- */
static void content_hash(const wcodec_file *f, u8 digest[32]) { /* R11.4 */
    sha256 s = sha256_of_nothing;
    for (u32 i = 0; i < f->n_tensors; i++) {
        const tensor *t = &f->tensors[f->names[i].number];
        u8 p[8];
        put_word(p, 4, t->name.nbytes);
        sha256_add(&s, p, 4);
        sha256_add(&s, t->name.at, t->name.nbytes);
        p[0] = t->dtype, p[1] = t->rank;
        sha256_add(&s, p, 2);
        sha256_add(&s, t->shape, 8 * (u64)t->rank);
        put_word(p, 4, t->crc32);
        sha256_add(&s, p, 4);
    }
    sha256_end(&s, digest);
}

static wcodec_status open_all(wcodec_file *f) {
    make_crc_table(&f->crc);
    TRY(read_header(f));
    TRY(read_footer(f));
    TRY(read_index(f));
    if (f->base && f->base_hash) {
        u8 digest[32];
        content_hash(f->base, digest);
        f->base_fits = !memcmp(digest, f->base_hash, sizeof digest);
    }
    return WCODEC_OK;
}

wcodec_status wcodec_open(wcodec_read_at read, void *ctx, uint64_t nbytes, const wcodec_file *base,
                          const wcodec_options *options, wcodec_file **file) {
    arena m;
    wcodec_file *f;
    wcodec_status status;
    *file = NULL;
    memset(&m, 0, sizeof m);
    if (options) m.options = *options;
    if (!m.options.memory_limit) m.options.memory_limit = (u64)1 << 32;
    f = (wcodec_file *)take(&m, sizeof *f);
    REQUIRE(f, WCODEC_RESOURCE_LIMIT);
    memset(f, 0, sizeof *f);
    f->memory = m;
    f->read = read;
    f->ctx = ctx;
    f->nbytes = nbytes;
    f->base = base;
    status = open_all(f);
    if (status) wcodec_close(f);
    else *file = f;
    return status;
}

void wcodec_close(wcodec_file *f) {
    arena m;
    if (!f) return;
    give(&f->memory, f->index);
    give(&f->memory, (void *)f->tables);
    give(&f->memory, (void *)f->maps);
    give(&f->memory, f->tensors);
    give(&f->memory, f->names);
    m = f->memory;
    give(&m, f);
}

uint32_t wcodec_n_tensors(const wcodec_file *f) { return f->n_tensors; }

uint64_t wcodec_restored_nbytes(const wcodec_file *f) {
    u64 n = f->data_nbytes;
    return add(&n, f->source_header.left) ? n : UINT64_MAX;
}

wcodec_status wcodec_describe(const wcodec_file *f, uint32_t i, wcodec_tensor *out) {
    const tensor *t = f->tensors;
    REQUIRE(i < f->n_tensors, WCODEC_BAD_RANGE);
    t += i;
    memset(out, 0, sizeof *out);
    out->name = (const char *)t->name.at;
    out->name_nbytes = t->name.nbytes;
    out->dtype = dtypes[t->dtype].name;
    for (u32 d = 0; d < t->rank; d++) out->shape[d] = get64(t->shape + 8 * d);
    out->nbytes = t->nbytes;
    out->crc32 = t->crc32;
    out->rank = t->rank;
    out->dtype_id = t->dtype;
    out->difference = t->difference;
    out->sparse = t->sparse;
    return WCODEC_OK;
}

uint32_t wcodec_find(const wcodec_file *f, const char *name, size_t name_nbytes) {
    u32 low = 0, high = f->n_tensors;
    text wanted;
    if (name_nbytes > UINT32_MAX) return f->n_tensors;
    wanted.at = (const u8 *)name, wanted.nbytes = (u32)name_nbytes;
    while (low < high) {
        u32 middle = low + (high - low) / 2;
        int order = compare(&f->names[middle], &wanted);
        if (!order) return f->names[middle].number;
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return f->n_tensors;
}

/* ---- readers --------------------------------------------------------------------------------- */
struct wcodec_reader {
    arena own, *memory; /* of a base that of the reader above it */
    const wcodec_file *file;
    const tensor *of;
    wcodec_reader *base;
    table_set tables;
    u64 i, k;                    /* next segment; next one in the tables */
    u64 gaps_offset, offset;     /* of the next records */
    u32 crc32;                   /* of what has been decoded */
    wcodec_status status;        /* of the call before */
    buffer decoded, record, symbols[2], spare, gaps, listed;
    const u8 *at;                /* in `decoded`, what is to be given next */
    u64 left;
    lookup lookups[MAX_CLASSES];
};

/* ---- prediction, transform (chapters 7 and 8) ------------------------------------------------ */
typedef struct {
    signed char a, b, p, u, r;
} rotation;

static const rotation dct[] = {
    {7, 0, -128, 64, 0}, {6, 1, -128, 64, 0}, {5, 2, -128, 64, 0}, {4, 3, -128, 64, 0},
    {3, 0, -128, 64, 0}, {2, 1, -128, 64, 0}, {1, 0, -128, 64, 0}, {3, 2, 25, -49, 25},
    {7, 4, 13, -25, 13}, {6, 5, 39, -71, 39}, {7, 6, -53, 91, -53}, {5, 4, -53, 91, -53},
    {7, 4, -53, 91, -53}};
static const rotation adst[] = {
    {0, 7, -6, 13, -6},   {1, 6, -19, 37, -19}, {2, 5, -32, 60, -32}, {3, 4, -46, 81, -46},
    {0, 3, -53, 91, -53}, {1, 2, -53, 91, -53}, {0, 1, -53, 91, -53}, {3, 2, -25, 49, -25},
    {7, 4, 53, -91, 53},  {6, 5, 53, -91, 53},  {7, 6, -53, 91, -53}, {4, 5, 25, -49, 25},
    {2, 4, -53, 91, -53}, {1, 7, -53, 91, -53}, {3, 5, -53, 91, -53}};

typedef struct {
    const rotation *rotations;
    int n;
    u8 order[8];
} transform;

static const transform transforms[] = {
    {dct, sizeof dct / sizeof *dct, {0, 6, 3, 7, 1, 4, 2, 5}},
    {adst, sizeof adst / sizeof *adst, {6, 4, 2, 1, 7, 3, 5, 0}}};

static void unlift(u8 *t, u8 s, int c) { /* R8.3, R8.4 */
    int step = c * ((s ^ 128) - 128) + 64;                     /* -2^15 < step < 2^15 */
    *t = (u8)(*t - (((step + (1 << 15)) >> 7) - (1 << 8))); /* >> of what is not negative */
}

static void untransform_8(const transform *t, u8 *v, size_t stride) {
    u8 y[8];
    for (int k = 0; k < 8; k++) y[t->order[k]] = v[(size_t)k * stride];
    for (int i = t->n; i-- > 0;) {
        const rotation *s = &t->rotations[i];
        unlift(&y[s->a], y[s->b], s->r);
        unlift(&y[s->b], y[s->a], s->u);
        unlift(&y[s->a], y[s->b], s->p);
    }
    for (int k = 0; k < 8; k++) v[(size_t)k * stride] = y[k];
}

static void untransform(const transform *t, u8 *v, u32 rows, u32 cols) { /* R8.2, R8.4 */
    for (u32 r = 0; r + 8 <= rows; r += 8)
        for (u32 c = 0; c < cols; c++) untransform_8(t, v + (size_t)r * cols + c, cols);
    for (u32 r = 0; r < rows; r++)
        for (u32 c = 0; c + 8 <= cols; c += 8) untransform_8(t, v + (size_t)r * cols + c, 1);
}

static void unpredict(u32 prediction, u8 *v, u32 rows, u32 cols) { /* R7.3 to R7.6 */
    for (u32 c = 1; c < cols; c++) v[c] = (u8)(v[c] + v[c - 1]);
    for (u32 r = 1; r < rows; r++) {
        u8 *row = v + (size_t)r * cols;
        const u8 *above = row - cols;
        row[0] = (u8)(row[0] + above[0]);
        for (u32 c = 1; c < cols; c++) {
            u32 left = row[c - 1], top = above[c], q;
            switch (prediction) {
            case 1: q = left; break;
            case 2: q = top; break;
            case 3: q = (left + top) >> 1; break;
            default: q = left + top - above[c - 1]; break;
            }
            row[c] = (u8)(row[c] + q);
        }
    }
}

static void undo_modes(const rectangle *s, u32 mode, const u8 *modes, u8 *v) {
    tile t = {0, 0, 0, 0, 0};
    while (next_tile(s, &t)) {
        u8 *at = v + t.first;
        u32 m = mode == OWN_MODES ? *modes++ : mode;
        if (m >> 4) untransform(&transforms[(m >> 4) - 1], at, t.rows, t.cols);
        if (m & 15) unpredict(m & 15, at, t.rows, t.cols);
        else if (m >> 4)
            for (u32 i = 0; i < t.rows * t.cols; i++) at[i] = (u8)(at[i] + 128); /* R7.4 */
    }
}

/* ---- streams (9.2, 9.4) ---------------------------------------------------------------------- */
/* `classes` of the symbols, with a table each; NULL where all have the first table */
static wcodec_status decode_stream(const u8 *in, u32 n_units, const lookup *lookups,
                                   const u8 *classes, u32 n, u8 *out) {
    u32 x[32], bits_of = lookups->prob_bits, mask = ((u32)1 << bits_of) - 1;
    u64 left = 8 * (u64)n_units - 64; /* words; R9.10: 8 units at least */
    const u8 *word = in + 128;
    for (u32 l = 0; l < 32; l++) x[l] = get32(in + 4 * l); /* R9.3 */
    for (u32 g = 0; g < n; g += 128) {                     /* R9.5 */
        for (u32 j = 0; j < 4; j++) {
            for (u32 l = 0; l < 32; l++) { /* R9.9 */
                u32 i = g + 4 * l + j, slot = x[l] & mask, s;
                const lookup *t = classes && i < n ? lookups + classes[i] : lookups; /* R9.12 */
                s = t->symbol[slot];
                if (i < n) out[i] = (u8)s; /* R9.4 */
                x[l] = t->frequency[s] * (x[l] >> bits_of) + slot - t->start[s];
                if (x[l] < (u32)1 << 16) {
                    REQUIRE(left, WCODEC_BAD_STREAM); /* R9.11 */
                    x[l] = x[l] << 16 | get16(word);
                    word += 2;
                    left--;
                }
            }
        }
    }
    for (u32 l = 0; l < 32; l++) REQUIRE(x[l] == (u32)1 << 16, WCODEC_BAD_STREAM); /* R9.11 */
    REQUIRE(left <= 7, WCODEC_BAD_STREAM);                                         /* R9.11 */
    return WCODEC_OK;
}

static u32 code_at(const u8 *p, u32 i) { return (u32)p[i >> 1] >> 4 * (i & 1) & 15; } /* R5.6 */
static u32 scale_at(const u8 *p, u32 i) { return (u32)p[i >> 2] >> 2 * (i & 3) & 3; } /* R10.10 */

/* R9.13, R9.14: the class of each symbol of plane p */
static void find_classes(const segment_plan *s, const rectangle *r, u32 p, const u8 *map,
                         const u8 *scales, const u8 *plane_0, u8 *classes) {
    const u8 *class_of = map + 2;
    u32 step = s->planes[p].n == s->n ? 1 : 2;
    tile t = {0, 0, 0, 0, 0};
    if (map[0] == K_PLANE) {
        for (u32 i = 0; i < s->planes[p].n; i++)
            classes[i] = class_of[s->windowed ? code_at(plane_0, i) : plane_0[i]];
        return;
    }
    while (next_tile(r, &t)) {
        u32 i = t.first;
        for (u32 row = 0; row < t.rows; row++) {
            for (u32 col = 0; col < t.cols; col++, i++) {
                u32 context = map[0] == K_POSITION ? 8 * (row % 8) + col % 8
                                                   : 4 * scale_at(scales, t.row + row) +
                                                         scale_at(scales, r->rows + t.col + col);
                if (i % step == 0) classes[i / step] = class_of[context];
            }
        }
    }
}

/* ---- decoding of a segment (chapters 5 and 10) ----------------------------------------------- */
typedef struct {
    const segment_plan *plan;
    const rectangle *shape;
    word_type words;
    const u8 *modes, *scales, *plane, *patches; /* parts of the record, modes and planes the next */
    u8 *out;
    u64 stride; /* bytes from a row to the next one */
} segment;

static wcodec_status decode_plane(wcodec_reader *r, segment *s, u32 p) {
    const plane *of = &s->plan->planes[p];
    u8 *out = r->symbols[p > 0].at, *classes = NULL;
    const u8 *map = NULL;
    if (of->coder == C_RAW) memcpy(out, s->plane, of->n);
    if (of->coder == C_CONSTANT) memset(out, (int)of->table, of->n);
    if (of->coder == C_RANS) TRY(make_lookup(r->file, of->table, &r->lookups[0]));
    if (of->coder == C_CONTEXT) {
        map = r->file->maps[of->table];
        classes = r->spare.at;
        for (u32 k = 0; k < map[1]; k++)
            TRY(make_lookup(r->file, get16(map + 2 + n_contexts(map[0]) + 2 * k), &r->lookups[k]));
        find_classes(s->plan, s->shape, p, map, s->scales, r->symbols[0].at, classes);
    }
    if (of->coder == C_RANS || of->coder == C_CONTEXT)
        TRY(decode_stream(s->plane, of->n_units, r->lookups, classes, of->n, out));
    if (of->prediction) undo_modes(s->shape, of->prediction, s->modes, out);
    if (of->prediction == OWN_MODES) s->modes += n_tiles(s->shape); /* R10.4 */
    s->plane += of->nbytes;
    return WCODEC_OK;
}

static wcodec_status put_patches(const segment *s, u8 *top) { /* R10.8 */
    for (u32 i = 0, least_index = 0; i < s->plan->n_patches; i++) {
        u32 patch = get32(s->patches + 4 * i), index = patch & 0xFFFFFF;
        REQUIRE(index >= least_index && index < s->plan->n, WCODEC_BAD_PATCH);
        top[index] = (u8)(patch >> 24);
        least_index = index + 1;
    }
    return WCODEC_OK;
}

/* Puts byte `at` of all words into place (R6.9). */
static void scatter(const segment *s, const u8 *from, u32 at) {
    u32 step = s->words.word_nbytes;
    tile t = {0, 0, 0, 0, 0};
    while (next_tile(s->shape, &t)) {
        for (u32 row = 0; row < t.rows; row++) {
            u8 *to = s->out + (t.row + row) * s->stride + (u64)t.col * step + at;
            for (u32 col = 0; col < t.cols; col++, to += step) *to = *from++;
        }
    }
}

static wcodec_status decode_planes(wcodec_reader *r, segment *s) {
    const segment_plan *of = s->plan;
    u8 *first = r->symbols[0].at, *second = r->symbols[1].at, *spare = r->spare.at;
    for (u32 p = 0; p < of->n_planes; p++) {
        TRY(decode_plane(r, s, p));
        if (of->packed) { /* R5.7 */
            if (p == 0) continue;
            for (u32 i = 0; i < of->n; i++)
                spare[i] = (u8)(code_at(first, i) << 4 | code_at(second, i));
            scatter(s, spare, 0);
        } else if (of->windowed && p == 0) { /* R5.7 */
            for (u32 i = 0; i < of->n; i++) spare[i] = (u8)(of->base + code_at(first, i));
            TRY(put_patches(s, spare));
            scatter(s, spare, of->n_planes - 1);
        } else { /* R5.4 */
            scatter(s, p ? second : first, of->n_planes - 1 - p);
        }
    }
    return WCODEC_OK;
}

/* Decodes segment i of a table, whose record is at `*offset`, and moves that on. */
static wcodec_status decode_segment(wcodec_reader *r, const segment_table *t, u64 i, word_type d,
                                    const rectangle *shape, u64 *offset, u8 *out, u64 stride) {
    segment_plan of;
    segment s;
    u32 b = d.word_nbytes, row_nbytes = shape->cols * b;
    TRY(plan_segment(r->file, t, i, d, shape, &of));
    REQUIRE(grow(r->memory, &r->record, of.nbytes), WCODEC_RESOURCE_LIMIT);
    TRY(read_at(r->file, *offset, of.nbytes, r->record.at));
    *offset += of.nbytes;
    REQUIRE(crc32_of(&r->file->crc, 0, r->record.at, of.nbytes) == get32(t->crc32 + 4 * i),
            WCODEC_BAD_CHECKSUM); /* R11.2 */
    if (of.layout == L_RAW) {     /* R5.5, R10.7 */
        for (u64 row = 0; row < shape->rows; row++)
            memcpy(out + row * stride, r->record.at + row * row_nbytes, row_nbytes);
        return WCODEC_OK;
    }
    REQUIRE(grow(r->memory, &r->symbols[0], of.n) && grow(r->memory, &r->spare, of.n) &&
                (of.n_planes == 1 || grow(r->memory, &r->symbols[1], of.n)),
            WCODEC_RESOURCE_LIMIT);
    s.plan = &of, s.shape = shape, s.words = d, s.out = out, s.stride = stride;
    s.modes = r->record.at;
    s.scales = s.modes + of.modes_nbytes;
    s.plane = s.scales + of.scales_nbytes;
    s.patches = r->record.at + of.nbytes - pad16(4 * (u64)of.n_patches);
    for (u32 k = 0; k < of.n_modes; k++)
        REQUIRE(is_mode(s.modes[k]), WCODEC_UNSUPPORTED_CODER); /* R10.4 */
    TRY(decode_planes(r, &s));
    if (d.map == IDENTITY) return WCODEC_OK;
    for (u64 row = 0; row < shape->rows; row++)
        for (u8 *w = out + row * stride, *end = w + row_nbytes; w < end; w += b)
            put_word(w, b, unmapped(d, get_word(w, b)));
    return WCODEC_OK;
}

/* ---- differences (chapter 12) ---------------------------------------------------------------- */
static void add_base(const tensor *t, u8 *coded, const u8 *base, u64 nbytes) { /* R12.5 */
    u32 b = dtypes[t->dtype].word_nbytes;
    u64 all = UINT64_MAX >> (64 - 8 * b);
    for (u64 i = 0; i < nbytes; i += b) {
        u64 z = get_word(coded + i, b), w = get_word(base + i, b);
        if (t->difference == D_XOR) w ^= z;
        else w += z & 1 ? all - (z >> 1) : z >> 1; /* 2^n - d is (z + 1) / 2 */
        put_word(coded + i, b, w);
    }
}

static wcodec_status read_all(wcodec_reader *base, void *to, u64 n) {
    size_t got;
    TRY(wcodec_read(base, to, (size_t)n, &got));
    return got == n ? WCODEC_OK : WCODEC_BAD_BASE;
}

static wcodec_status decode_sparse(wcodec_reader *r, u8 *out) {
    const tensor *t = r->of;
    u32 b = dtypes[t->dtype].word_nbytes, n_listed = get32(r->tables.n_listed + 4 * r->i), n_gaps;
    rectangle all = segment_of(t, r->i), run;
    u64 n = (u64)all.rows * all.cols, at = 0, k = r->k;
    u8 *listed;
    TRY(read_all(r->base, out, n * b));
    if (!n_listed) return WCODEC_OK;
    n_gaps = value_of(&r->tables.n_gaps, k);
    REQUIRE(grow(r->memory, &r->gaps, n_gaps) && grow(r->memory, &r->listed, (u64)n_listed * b),
            WCODEC_RESOURCE_LIMIT);
    run = run_of(n_gaps);
    TRY(decode_segment(r, &r->tables.gaps, k, gap_words, &run, &r->gaps_offset, r->gaps.at,
                       n_gaps));
    run = run_of(n_listed);
    listed = r->listed.at;
    TRY(decode_segment(r, &r->tables.words, k, coded_words(t), &run, &r->offset, listed,
                       (u64)n_listed * b));
    for (u32 i = 0, number = 0; i < n_gaps; i++) { /* R12.11 */
        at += r->gaps.at[i];
        if (r->gaps.at[i] == 255) {
            REQUIRE(i + 1 < n_gaps, WCODEC_BAD_PATCH);
            continue;
        }
        REQUIRE(at < n && number < n_listed, WCODEC_BAD_PATCH);
        add_base(t, listed + (u64)number * b, out + at * b, b); /* R12.12 */
        memcpy(out + at * b, listed + (u64)number++ * b, b);
        at++;
        REQUIRE(i + 1 < n_gaps || number == n_listed, WCODEC_BAD_PATCH);
    }
    r->k++;
    REQUIRE(crc32_of(&r->file->crc, 0, listed, (u64)n_listed * b) ==
                get32(r->tables.words_crc32 + 4 * k),
            WCODEC_BAD_CHECKSUM); /* R12.13 */
    return WCODEC_OK;
}

/* Decodes a row of segments; where they are one word high, a segment. */
static wcodec_status decode_dense(wcodec_reader *r, u32 n_across, u8 *out, u64 stride, u64 nbytes) {
    const tensor *t = r->of;
    u32 b = dtypes[t->dtype].word_nbytes;
    u8 chunk[1024];
    for (u32 k = 0; k < n_across; k++) {
        rectangle s = segment_of(t, r->i + k);
        TRY(decode_segment(r, &r->tables.words, r->i + k, coded_words(t), &s, &r->offset,
                           out + (u64)k * t->segment_cols * b, stride));
    }
    for (u64 at = 0, n; r->base && at < nbytes; at += n) {
        n = nbytes - at < sizeof chunk ? nbytes - at : sizeof chunk;
        TRY(read_all(r->base, chunk, n));
        add_base(t, out + at, chunk, n);
    }
    return WCODEC_OK;
}

/* Decodes what comes next, all of which is then to be given. */
static wcodec_status decode_next(wcodec_reader *r) {
    const tensor *t = r->of;
    rectangle s = segment_of(t, r->i);
    u64 n_across = s.rows == 1 ? 1 : t->n_across;
    u64 stride = dtypes[t->dtype].word_nbytes * (s.rows == 1 ? s.cols : t->cols);
    u64 nbytes = s.rows * stride; /* of the tensor: below 2^63 */
    REQUIRE(grow(r->memory, &r->decoded, nbytes), WCODEC_RESOURCE_LIMIT);
    if (t->sparse)
        TRY(decode_sparse(r, r->decoded.at));
    else
        TRY(decode_dense(r, (u32)n_across, r->decoded.at, stride, nbytes));
    r->i += n_across;
    r->crc32 = crc32_of(&r->file->crc, r->crc32, r->decoded.at, nbytes);
    REQUIRE(r->i < t->n_segments || r->crc32 == t->crc32, WCODEC_BAD_CHECKSUM); /* R11.3 */
    r->at = r->decoded.at;
    r->left = nbytes;
    return WCODEC_OK;
}

static wcodec_status open_reader(const wcodec_file *f, u32 i, arena *shared, wcodec_reader **out);

/* R12.6; R12.4: the name is that of the tensor that a duplicate repeats */
static wcodec_status open_base(wcodec_reader *r) {
    const wcodec_file *base = r->file->base;
    const tensor *t = r->of, *there;
    const text *name = &r->file->tensors[t->root].name;
    u32 i;
    REQUIRE(base && r->file->base_fits, WCODEC_BAD_BASE);
    i = wcodec_find(base, (const char *)name->at, name->nbytes);
    REQUIRE(i < base->n_tensors, WCODEC_BAD_BASE);
    there = &base->tensors[i];
    REQUIRE(there->dtype == t->dtype && there->rank == t->rank &&
                !memcmp(there->shape, t->shape, 8 * (size_t)t->rank),
            WCODEC_BAD_BASE);
    return open_reader(base, i, r->memory, &r->base);
}

static wcodec_status open_reader(const wcodec_file *f, u32 i, arena *shared, wcodec_reader **out) {
    wcodec_status status;
    arena m = f->memory;
    wcodec_reader *r;
    m.used = 0;
    r = (wcodec_reader *)take(shared ? shared : &m, sizeof *r);
    REQUIRE(r, WCODEC_RESOURCE_LIMIT);
    memset(r, 0, sizeof *r);
    r->own = m;
    r->memory = shared ? shared : &r->own;
    r->file = f;
    r->of = &f->tensors[i];
    for (u32 k = 0; k < MAX_CLASSES; k++) r->lookups[k].number = UINT32_MAX;
    r->gaps_offset = r->of->payload_offset;
    r->offset = r->gaps_offset + r->of->gaps_nbytes;
    status = read_tables(r->of, &r->tables);
    if (!status && r->of->difference) status = open_base(r);
    if (!status && !r->of->n_segments && r->of->crc32) status = WCODEC_BAD_CHECKSUM;
    if (status) wcodec_reader_close(r);
    else *out = r;
    return status;
}

wcodec_status wcodec_reader_open(const wcodec_file *f, uint32_t i, wcodec_reader **reader) {
    *reader = NULL;
    REQUIRE(i < f->n_tensors, WCODEC_BAD_RANGE);
    return open_reader(f, i, NULL, reader);
}

void wcodec_reader_close(wcodec_reader *r) {
    arena own, *m;
    if (!r) return;
    wcodec_reader_close(r->base);
    give(r->memory, r->decoded.at);
    give(r->memory, r->record.at);
    give(r->memory, r->symbols[0].at);
    give(r->memory, r->symbols[1].at);
    give(r->memory, r->spare.at);
    give(r->memory, r->gaps.at);
    give(r->memory, r->listed.at);
    own = r->own;
    m = r->memory == &r->own ? &own : r->memory;
    give(m, r);
}

wcodec_status wcodec_read(wcodec_reader *r, void *to, size_t n, size_t *got) {
    for (*got = 0; *got < n;) {
        size_t some;
        if (!r->left) {
            if (r->status || r->i == r->of->n_segments) break;
            r->status = decode_next(r);
            if (r->status) break;
        }
        some = r->left < n - *got ? (size_t)r->left : n - *got;
        memcpy((u8 *)to + *got, r->at, some);
        r->at += some;
        r->left -= some;
        *got += some;
    }
    return r->status;
}

wcodec_status wcodec_restore(const wcodec_file *f, wcodec_write write, void *ctx) {
    u64 n = f->source_header.left;
    if (n && write(ctx, f->source_header.at, (size_t)n)) return WCODEC_IO_ERROR;
    for (u32 i = 0; i < f->n_tensors; i++) { /* R4.22 */
        wcodec_status status = WCODEC_OK;
        wcodec_reader *r;
        TRY(wcodec_reader_open(f, i, &r));
        while (!status && r->i < r->of->n_segments) {
            status = decode_next(r);
            if (!status && write(ctx, r->at, (size_t)r->left)) status = WCODEC_IO_ERROR;
        }
        wcodec_reader_close(r);
        TRY(status);
    }
    return WCODEC_OK;
}
