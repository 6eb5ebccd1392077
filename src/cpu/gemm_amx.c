/* Tile products by AMX, in bf16. oneDNN 2.6 reaches 35-42 % of the unit here, because it copies what it multiplies into tiles; ours comes
 * in tiles (kernels.h) from the operation before.
 *
 * Two by two tiles of sums stay in registers while a block of K passes, so that each tile that is loaded is used twice. A block of K is
 * short enough that the tiles of A and B come from the first-level cache; between blocks the sums go through C. A row's sum takes the same
 * steps in the same order wherever the row lies.
 *
 * Packed weights: [nb / 16][k / 32][16][16][2], k rounded up with zeros.
 */
#include "cpu/features.h"
#include "cpu/gemm.h"

#if defined(__AMX_BF16__) || defined(__AMXBF16__) || defined(QR_EMULATE_TILES) /* the second: as clang 14 has it */
#include "base/mem.h"
#include "cpu/tiles.h"

#include <string.h>

enum { STEPS_PER_BLOCK = 8 }; /* of K: 256 elements; 64 rows of A are 32 KiB, 32 columns of B 16 KiB */

struct qr_gemm_kernel {
    size_t k, nb, steps; /* steps: tiles along K */
};

static qr_status amx_open(qr_gemm_kernel **out, qr_gemm_type type, size_t k, size_t nb, int n_threads, size_t *packed_elements,
                          qr_error *err)
{
    (void) n_threads;
    *out = NULL;
    if (type != QR_GEMM_BF16 || nb % 16 != 0)
        return qr_fail(err, QR_E_UNSUPPORTED, "products by AMX need bf16 and blocks of 16 outputs, found %s and %zu",
                       qr_gemm_type_name(type), nb);
    qr_gemm_kernel *kernel = qr_calloc(1, sizeof *kernel);
    if (kernel == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for a matrix kernel");
    *kernel = (qr_gemm_kernel){k, nb, (k + QR_LINE - 1) / QR_LINE};
    *packed_elements = kernel->steps * QR_LINE * nb;
    *out = kernel;
    return QR_OK;
}

static void amx_close(qr_gemm_kernel *kernel) { qr_free(kernel); }

static int amx_pack(qr_gemm_kernel *kernel, int thread, void *packed, const void *w)
{
    (void) thread;
    uint16_t *to = packed;
    const uint16_t *from = w;
    for (size_t n0 = 0; n0 < kernel->nb; n0 += 16)
        for (size_t i = 0; i < kernel->steps * QR_LINE; i += 2) {
            size_t there = i >= kernel->k ? 0 : kernel->k - i == 1 ? 1 : 2;
            for (size_t n = 0; n < 16; n++, to += 2) {
                uint16_t pair[2] = {0};
                if (there == 2) memcpy(pair, from + (n0 + n) * kernel->k + i, sizeof pair);
                else if (there == 1) pair[0] = from[(n0 + n) * kernel->k + i];
                memcpy(to, pair, sizeof pair);
            }
        }
    return 0;
}

/* 16 or 32 rows times 16 or 32 columns over `steps` steps of K; the sums start at zero or go on from c. Bytes: a_next from the first 16
 * rows to the next, b_next from the first 16 columns to the next. */
static inline __attribute__((always_inline)) void multiply(float *c, size_t nb, const unsigned char *a, size_t a_next,
                                                           const unsigned char *b, size_t b_next, size_t steps, int go_on, const int rows2,
                                                           const int columns2)
{
    size_t stride = nb * sizeof *c;
    float *below = c + 16 * nb;
    if (go_on) {
        tile_load(0, c, stride);
        if (columns2) tile_load(1, c + 16, stride);
        if (rows2) tile_load(2, below, stride);
        if (rows2 && columns2) tile_load(3, below + 16, stride);
    } else {
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
    }
    for (size_t s = 0; s < steps; s++, a += TILE_BYTES, b += TILE_BYTES) {
        tile_load(4, a, 64);
        tile_load(6, b, 64);
        tile_dot_bf16(0, 4, 6);
        if (columns2) {
            tile_load(7, b + b_next, 64);
            tile_dot_bf16(1, 4, 7);
        }
        if (rows2) {
            tile_load(5, a + a_next, 64);
            tile_dot_bf16(2, 5, 6);
            if (columns2) tile_dot_bf16(3, 5, 7);
        }
    }
    tile_store(0, c, stride);
    if (columns2) tile_store(1, c + 16, stride);
    if (rows2) tile_store(2, below, stride);
    if (rows2 && columns2) tile_store(3, below + 16, stride);
}

static int amx_run(qr_gemm_kernel *kernel, int thread, void *c, const void *a, const void *packed, size_t rows)
{
    (void) thread;
    size_t nb = kernel->nb, next = kernel->steps * TILE_BYTES; /* 16 rows of A, 16 columns of B */
    tiles_begin();
    for (size_t s = 0; s < kernel->steps; s += STEPS_PER_BLOCK) {
        size_t steps = kernel->steps - s < STEPS_PER_BLOCK ? kernel->steps - s : STEPS_PER_BLOCK;
        for (size_t n = 0; n < nb; n += 32) {
            const unsigned char *b = (const unsigned char *) packed + n / 16 * next + s * TILE_BYTES;
            int wide = nb - n >= 32;
            for (size_t m = 0; m < rows; m += 32) {
                const unsigned char *at = (const unsigned char *) a + m / 16 * next + s * TILE_BYTES;
                float *to = (float *) c + m * nb + n;
                if (rows - m >= 32 && wide) multiply(to, nb, at, next, b, next, steps, s > 0, 1, 1);
                else if (rows - m >= 32) multiply(to, nb, at, next, b, next, steps, s > 0, 1, 0);
                else if (wide) multiply(to, nb, at, next, b, next, steps, s > 0, 0, 1);
                else multiply(to, nb, at, next, b, next, steps, s > 0, 0, 0);
            }
        }
    }
    tiles_end();
    return 0;
}

const qr_gemm_provider qr_gemm_amx = {"AMX", 1, qr_attend_amx, amx_open, amx_close, amx_pack, amx_run};
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

const qr_gemm_provider qr_gemm_amx = {"AMX", 1, NULL, amx_open, amx_close, amx_pack, amx_run};
#endif
