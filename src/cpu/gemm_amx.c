/* Tile products by AMX, in bf16 and int8. oneDNN 2.6 reaches 35-42 % of the unit here, and 23-38 % in int8, because it copies what it
 * multiplies into tiles; ours comes in tiles (kernels.h) from the operation before.
 *
 * Two by two tiles of sums stay in registers while a block of K passes, so that each tile that is loaded is used twice; between blocks the
 * sums go through C, which loses nothing. A row's sum takes the same steps in the same order wherever the row lies.
 *
 * Packed weights: [nb / 16][steps][16][16] groups of four bytes: of a row of the weights, k rounded up with zeros.
 */
#include "cpu/features.h"
#include "cpu/gemm.h"

#if defined(__AMX_BF16__) || defined(__AMXBF16__) || defined(QR_EMULATE_TILES) /* the second: as clang 14 has it */
#include "base/mem.h"
#include "cpu/tiles.h"

#include <string.h>

enum { LINE_BYTES = 64, GROUP_BYTES = 4 }; /* of k: a row of a tile, and what one column of a tile of B has in a row */

/* What is best depends on the processor and the shape: in short blocks of K the tiles of A and B come from the first-level cache, in long
 * ones fewer sums go through C (24 cycles a tile, where a product of two takes 16); B may stay while the rows change, or A while the
 * columns do; and B, which comes from further away, may be fetched ahead. So it is tried (gemm.c). */
typedef struct order {
    size_t steps; /* of a block of K */
    int rows_outside, ahead;
    const char *name;
} order;

static const order orders[] = {
    {8, 0, 0, "8 tiles of K at a time, columns outside"},
    {8, 1, 0, "8 tiles of K at a time, rows outside"},
    {16, 0, 0, "16 tiles of K at a time, columns outside"},
    {16, 1, 0, "16 tiles of K at a time, rows outside"},
    {32, 0, 0, "32 tiles of K at a time, columns outside"},
    {32, 1, 0, "32 tiles of K at a time, rows outside"},
    {SIZE_MAX, 0, 0, "all of K at once, columns outside"},
    {SIZE_MAX, 1, 0, "all of K at once, rows outside"},
    {8, 0, 1, "8 tiles of K at a time, columns outside, weights ahead"},
    {8, 1, 1, "8 tiles of K at a time, rows outside, weights ahead"},
    {16, 0, 1, "16 tiles of K at a time, columns outside, weights ahead"},
    {16, 1, 1, "16 tiles of K at a time, rows outside, weights ahead"},
    {32, 0, 1, "32 tiles of K at a time, columns outside, weights ahead"},
    {32, 1, 1, "32 tiles of K at a time, rows outside, weights ahead"},
    {SIZE_MAX, 0, 1, "all of K at once, columns outside, weights ahead"},
    {SIZE_MAX, 1, 1, "all of K at once, rows outside, weights ahead"},
};

struct qr_gemm_kernel {
    qr_gemm_type type;
    size_t row_bytes, nb, steps; /* of a row of weights; steps: tiles along K */
    order order;
};

static void use_order(qr_gemm_kernel *kernel, size_t i)
{
    kernel->order = orders[i];
    if (kernel->order.steps > kernel->steps) kernel->order.steps = kernel->steps;
}

static const char *order_name(size_t i) { return orders[i].name; }

static qr_status amx_open(qr_gemm_kernel **out, qr_gemm_type type, size_t k, size_t nb, int n_threads, size_t *packed_elements,
                          qr_error *err)
{
    (void) n_threads;
    *out = NULL;
    if (type == QR_GEMM_F32 || nb % 16 != 0)
        return qr_fail(err, QR_E_UNSUPPORTED, "products by AMX need bf16 or int8 and blocks of 16 outputs, found %s and %zu",
                       qr_gemm_type_name(type), nb);
    qr_gemm_kernel *kernel = qr_calloc(1, sizeof *kernel);
    if (kernel == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for a matrix kernel");
    size_t es = qr_gemm_type_size(type), steps = (k * es + LINE_BYTES - 1) / LINE_BYTES;
    *kernel = (qr_gemm_kernel){.type = type, .row_bytes = k * es, .nb = nb, .steps = steps};
    use_order(kernel, 0);
    *packed_elements = steps * LINE_BYTES / es * nb;
    *out = kernel;
    return QR_OK;
}

static void amx_close(qr_gemm_kernel *kernel) { qr_free(kernel); }

static int amx_pack(qr_gemm_kernel *kernel, int thread, void *packed, const void *w)
{
    (void) thread;
    unsigned char *to = packed;
    size_t row = kernel->row_bytes;
    for (size_t n0 = 0; n0 < kernel->nb; n0 += 16)
        for (size_t i = 0; i < kernel->steps * LINE_BYTES; i += GROUP_BYTES) {
            const unsigned char *from = (const unsigned char *) w + n0 * row + i;
            if (row >= i + GROUP_BYTES) {
                for (size_t n = 0; n < 16; n++, to += GROUP_BYTES) memcpy(to, from + n * row, GROUP_BYTES);
                continue;
            }
            size_t there = row > i ? row - i : 0;
            memset(to, 0, 16 * GROUP_BYTES);
            for (size_t n = 0; there > 0 && n < 16; n++) memcpy(to + n * GROUP_BYTES, from + n * row, there);
            to += 16 * GROUP_BYTES;
        }
    return 0;
}

#define tile_dot(int8, c, a, b)                                                                                                            \
    do {                                                                                                                                   \
        if (int8) tile_dot_int8(c, a, b);                                                                                                  \
        else tile_dot_bf16(c, a, b);                                                                                                       \
    } while (0)

/* 32 rows times 32 columns over a block of K, or 16 of either at an edge. Lengths in bytes; tiles along K are contiguous. */
typedef struct piece {
    unsigned char *c;
    const unsigned char *a, *b, *ahead; /* ahead: the b of the next piece, to be fetched, or NULL */
    size_t c_row, next, length;         /* next: from the first 16 rows of a, or columns of b, to the others */
    int go_on;                          /* sums begin with c, not with zero */
} piece;

static inline __attribute__((always_inline)) void multiply(const piece *p, const int int8, const int rows2, const int columns2)
{
    unsigned char *c = p->c, *below = c + 16 * p->c_row;
    if (p->go_on) {
        tile_load(0, c, p->c_row);
        if (columns2) tile_load(1, c + LINE_BYTES, p->c_row);
        if (rows2) tile_load(2, below, p->c_row);
        if (rows2 && columns2) tile_load(3, below + LINE_BYTES, p->c_row);
    } else {
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
    }
    for (size_t at = 0; at < p->length; at += TILE_BYTES) {
        tile_load(4, p->a + at, LINE_BYTES);
        tile_load(6, p->b + at, LINE_BYTES);
        tile_dot(int8, 0, 4, 6);
        if (columns2) {
            tile_load(7, p->b + p->next + at, LINE_BYTES);
            tile_dot(int8, 1, 4, 7);
        }
        if (rows2) {
            tile_load(5, p->a + p->next + at, LINE_BYTES);
            tile_dot(int8, 2, 5, 6);
            if (columns2) tile_dot(int8, 3, 5, 7);
        }
        for (size_t i = at; p->ahead != NULL && i < at + TILE_BYTES; i += LINE_BYTES) {
            __builtin_prefetch(p->ahead + i);
            if (columns2) __builtin_prefetch(p->ahead + p->next + i);
        }
    }
    tile_store(0, c, p->c_row);
    if (columns2) tile_store(1, c + LINE_BYTES, p->c_row);
    if (rows2) tile_store(2, below, p->c_row);
    if (rows2 && columns2) tile_store(3, below + LINE_BYTES, p->c_row);
}

typedef struct place {
    size_t step, n_steps, row, column;
    int rows2, columns2;
} place;

/* Of the i-th piece. */
static place place_of(const qr_gemm_kernel *kernel, size_t rows, size_t i)
{
    size_t down = (rows + 31) / 32, across = (kernel->nb + 31) / 32, most = kernel->order.steps;
    size_t in_block = i % (down * across), step = i / (down * across) * most, left = kernel->steps - step;
    size_t row = 32 * (kernel->order.rows_outside ? in_block / across : in_block % down);
    size_t column = 32 * (kernel->order.rows_outside ? in_block % across : in_block / down);
    return (place){step, left < most ? left : most, row, column, rows - row >= 32, kernel->nb - column >= 32};
}

static inline __attribute__((always_inline)) void run(const qr_gemm_kernel *kernel, unsigned char *c, const unsigned char *a,
                                                      const unsigned char *packed, size_t rows, const int int8)
{
    size_t c_row = kernel->nb * sizeof(float), next = kernel->steps * TILE_BYTES; /* sums are of four bytes in either type */
    size_t n = (rows + 31) / 32 * ((kernel->nb + 31) / 32) * ((kernel->steps + kernel->order.steps - 1) / kernel->order.steps);
    place at, then = place_of(kernel, rows, 0);
    for (size_t i = 0; i < n; i++) {
        at = then;
        piece p = {.c = c + at.row * c_row + at.column * sizeof(float),
                   .a = a + at.row / 16 * next + at.step * TILE_BYTES,
                   .b = packed + at.column / 16 * next + at.step * TILE_BYTES,
                   .c_row = c_row,
                   .next = next,
                   .length = at.n_steps * TILE_BYTES,
                   .go_on = at.step > 0};
        if (i + 1 < n) then = place_of(kernel, rows, i + 1);
        int moves = then.step != at.step || then.column != at.column;
        if (kernel->order.ahead && moves && then.n_steps == at.n_steps && then.columns2 == at.columns2)
            p.ahead = packed + then.column / 16 * next + then.step * TILE_BYTES;
        if (at.rows2 && at.columns2) multiply(&p, int8, 1, 1);
        else if (at.rows2) multiply(&p, int8, 1, 0);
        else if (at.columns2) multiply(&p, int8, 0, 1);
        else multiply(&p, int8, 0, 0);
    }
}

static int amx_run(qr_gemm_kernel *kernel, int thread, void *c, const void *a, const void *packed, size_t rows)
{
    (void) thread;
    tiles_begin();
    if (kernel->type == QR_GEMM_INT8) run(kernel, c, a, packed, rows, 1);
    else run(kernel, c, a, packed, rows, 0);
    tiles_end();
    return 0;
}

const qr_gemm_orders qr_gemm_amx_orders = {sizeof orders / sizeof orders[0], use_order, order_name};

#ifdef QR_EMULATE_TILES /* the speed of an emulation says nothing: it takes the first, and tests try each */
#define TO_TRY NULL
#else
#define TO_TRY &qr_gemm_amx_orders
#endif
const qr_gemm_provider qr_gemm_amx = {"AMX", 1, qr_attend_amx, amx_open, amx_close, amx_pack, amx_run, TO_TRY};
#else
static qr_status amx_open(qr_gemm_kernel **out, qr_gemm_type type, size_t k, size_t nb, int n_threads, size_t *packed_elements,
                          qr_error *err)
{
    (void) type, (void) k, (void) nb, (void) n_threads, (void) packed_elements;
    *out = NULL;
    return qr_fail(err, QR_E_UNSUPPORTED, "this build lacks products by AMX");
}

static void amx_close(qr_gemm_kernel *kernel) { (void) kernel; }

static int amx_pack(qr_gemm_kernel *kernel, int thread, void *packed, const void *w)
{
    (void) kernel, (void) thread, (void) packed, (void) w;
    return 1;
}

static int amx_run(qr_gemm_kernel *kernel, int thread, void *c, const void *a, const void *packed, size_t rows)
{
    (void) kernel, (void) thread, (void) c, (void) a, (void) packed, (void) rows;
    return 1;
}

const qr_gemm_provider qr_gemm_amx = {"AMX", 1, NULL, amx_open, amx_close, amx_pack, amx_run, NULL};
#endif
