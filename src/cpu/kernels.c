/* Choice of the kernel variant. */
#include "cpu/kernels.h"

#include "base/mem.h"
#include "cpu/features.h"

#include <math.h>

const qr_kernels *qr_kernels_get(void)
{
    qr_isa isa = qr_cpu_get()->isa;
    if (isa >= QR_ISA_AVX512_BF16 && qr_kernels_avx512_bf16 != NULL) return qr_kernels_avx512_bf16;
    if (isa >= QR_ISA_AVX512 && qr_kernels_avx512 != NULL) return qr_kernels_avx512;
    if (isa >= QR_ISA_AVX2 && qr_kernels_avx2 != NULL) return qr_kernels_avx2;
    if (isa == QR_ISA_NEON && qr_kernels_neon != NULL) return qr_kernels_neon;
    return qr_kernels_scalar;
}

enum { CHECK_PREFIX = 21, CHECK_OWN = 300, CHECK_ROWS = 3, CHECK_GROUP = 2 }; /* odd numbers, and more than one run of keys */

/* bf16 between 1/2 and 1 of either sign, many different ones. */
static void fill(uint16_t *x, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (uint16_t) (0x3f00 | (seed >> 16 & 0x807f));
    }
}

int qr_attend_agree(qr_attend_fn one, qr_attend_fn other, size_t head_dim)
{
    enum { SLOTS = (CHECK_OWN + 2 * QR_KEY_BLOCK) / QR_KEY_BLOCK * QR_KEY_BLOCK, VECTORS = CHECK_ROWS * CHECK_GROUP };
    size_t v_stride = (head_dim + QR_KEY_BLOCK - 1) / QR_KEY_BLOCK * QR_KEY_BLOCK, n_keys = SLOTS * head_dim, n_values = SLOTS * v_stride;
    size_t width = CHECK_GROUP * head_dim, n_q = CHECK_ROWS * width, n_scratch = qr_attend_scratch(v_stride);
    size_t n_read = (VECTORS + QR_ATTEND_ROWS - 1) / QR_ATTEND_ROWS * QR_ATTEND_ROWS * head_dim; /* of q */
    size_t bytes = (n_keys + n_values + n_read) * sizeof(uint16_t) + (2 * n_q + n_scratch) * sizeof(float);
    float *scratch = qr_pages_alloc(bytes);
    if (scratch == NULL) return 0;
    float *out[2] = {scratch + n_scratch, scratch + n_scratch + n_q};
    uint16_t *kt = (uint16_t *) (void *) (out[1] + n_q), *v = kt + n_keys, *q = v + n_values;
    fill(kt, n_keys, 1);
    fill(v, n_values, 2);
    fill(q, n_q, 3);
    for (int i = 0; i < 2; i++) {
        qr_attend call = {.q = q,
                          .n_rows = CHECK_ROWS,
                          .n_group = CHECK_GROUP,
                          .head_dim = head_dim,
                          .v_stride = v_stride,
                          .scale = 1.0f / sqrtf((float) head_dim),
                          .prefix = {kt, v, CHECK_PREFIX},
                          .own = {kt, v, CHECK_OWN},
                          .first_pos = CHECK_OWN - CHECK_ROWS,
                          .out = {.data = out[i], .width = width},
                          .scratch = scratch};
        (i == 0 ? one : other)(&call);
    }
    int agree = 1;
    for (size_t i = 0; i < n_q; i++) agree &= fabsf(out[0][i] - out[1][i]) <= 0x1p-11f; /* one key of 321 more or less would be 2^-9 */
    qr_pages_free(scratch, bytes);
    return agree;
}
