/* Attention on the dot products of AVX512-BF16, which multiply at twice the rate of f32. Built with these flags; only called after
 * features.c found them. */
#include "cpu/kernels.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "cpu/vector_avx512.h"
#include "cpu/vector_math.h"

enum { ROWS = 8 }; /* query vectors kept in registers */

static inline void begin(void) {}
static inline void end(void) {}

/* s[r][QR_ATTEND_RUN] = q . k for `rows` rows and n (1 or 2) blocks of keys; q [rows][n_pairs] pairs, k [n][n_pairs][QR_KEY_BLOCK] pairs.
 */
static inline __attribute__((always_inline)) void score_block(float *s, const uint32_t *q, const uint32_t *k, const size_t n_pairs,
                                                              const int rows, const int n)
{
    vf acc[2 * ROWS];
    for (int i = 0; i < rows * n; i++) acc[i] = v_set1(0);
    for (size_t p = 0; p < n_pairs; p++) {
        __m512i key[2];
        for (int j = 0; j < n; j++) key[j] = _mm512_loadu_si512(k + ((size_t) j * n_pairs + p) * QR_KEY_BLOCK);
        for (int r = 0; r < rows; r++) {
            __m512i pair = _mm512_set1_epi32((int) q[(size_t) r * n_pairs + p]);
            for (int j = 0; j < n; j++) acc[r * n + j] = v_dot_bf16(acc[r * n + j], pair, key[j]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < n; j++) v_store(s + (size_t) r * QR_ATTEND_RUN + j * QR_KEY_BLOCK, acc[r * n + j]);
}

/* Sixteen sums at a time where there are so many: with eight, each would wait for the one before. */
static inline __attribute__((always_inline)) void all_scores(float *s, const uint32_t *q, const uint32_t *k, size_t n_blocks,
                                                             const size_t n_pairs, size_t n_rows)
{
    for (; n_blocks >= 2; n_blocks -= 2, k += 2 * n_pairs * QR_KEY_BLOCK, s += 2 * QR_KEY_BLOCK)
        for (size_t r = 0; r < n_rows; r += ROWS) score_block(s + r * QR_ATTEND_RUN, q + r * n_pairs, k, n_pairs, ROWS, 2);
    if (n_blocks == 1 && n_rows == 2 * ROWS) score_block(s, q, k, n_pairs, 2 * ROWS, 1);
    else if (n_blocks == 1) score_block(s, q, k, n_pairs, ROWS, 1);
}
_Static_assert(QR_ATTEND_ROWS == 2 * ROWS, "one or two groups of rows");

static void scores(float *s, const void *query, const void *keys, size_t n_keys, size_t head_dim, size_t n_rows)
{
    size_t n_blocks = (n_keys + QR_KEY_BLOCK - 1) / QR_KEY_BLOCK;
    if (head_dim == 128) all_scores(s, query, keys, n_blocks, 64, n_rows); /* as in all Qwen3 models: offsets are constants then */
    else all_scores(s, query, keys, n_blocks, head_dim / 2, n_rows);
}

/* acc[r][..] += p . v for ROWS rows and n (1 or 2) vectors of columns; p [ROWS][QR_ATTEND_RUN / 2] pairs of keys, v [n_keys / 2][v_stride]
 * pairs.
 */
static inline __attribute__((always_inline)) void value_block(float *acc, const uint32_t *p, const uint32_t *v, size_t n_keys,
                                                              size_t v_stride, const int n)
{
    vf sum[ROWS][2];
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < n; j++) sum[r][j] = v_load(acc + (size_t) r * v_stride + j * VN);
    size_t pairs = (n_keys + 1) / 2;
    for (size_t i = 0; i < pairs; i++) {
        /* the partner of an odd last key is nobody's: its weight is zero, but what stands there could be an infinity */
        __mmask32 real = 2 * i + 1 < n_keys ? 0xffffffffu : 0x55555555u;
        __m512i value[2];
        for (int j = 0; j < n; j++) value[j] = _mm512_maskz_loadu_epi16(real, v + i * v_stride + (size_t) j * VN);
        for (int r = 0; r < ROWS; r++) {
            __m512i pair = _mm512_set1_epi32((int) p[(size_t) r * (QR_ATTEND_RUN / 2) + i]);
            for (int j = 0; j < n; j++) sum[r][j] = v_dot_bf16(sum[r][j], pair, value[j]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < n; j++) v_store(acc + (size_t) r * v_stride + j * VN, sum[r][j]);
}

static void values(float *acc, const void *weights, const void *pairs, size_t n_keys, size_t v_stride, size_t n_rows, void *spare)
{
    const uint32_t *p = weights, *v = pairs;
    (void) spare;
    for (size_t d = 0; d < v_stride; d += 2 * VN)
        for (size_t r = 0; r < n_rows; r += ROWS) {
            if (v_stride - d >= 2 * VN) value_block(acc + r * v_stride + d, p + r * (QR_ATTEND_RUN / 2), v + d, n_keys, v_stride, 2);
            else value_block(acc + r * v_stride + d, p + r * (QR_ATTEND_RUN / 2), v + d, n_keys, v_stride, 1);
        }
}

#include "cpu/attend_bf16_impl.h"

const qr_attend_fn qr_attend_bf16 = attend;
#else
const qr_attend_fn qr_attend_bf16 = NULL;
#endif
