/* Attention with K and V in bf16, on the dot products of AVX512-BF16, which multiply at twice the rate of f32. Built with these flags;
 * only called after features.c found them.
 *
 * q and the weights e^(s - max) are rounded to bf16 as well; scores, sums and the running maximum stay f32, and the sum is over the
 * rounded weights, so that they add up to one. VDPBF16PS takes subnormal operands as zero.
 */
#include "cpu/kernels.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "cpu/vector_avx512.h"
#include "cpu/vector_math.h"

#include <math.h>

enum {
    ROWS = 8,                /* query vectors kept in registers */
    Q_ROWS = QR_ATTEND_ROWS, /* query vectors treated together; they share what is loaded of K and V */
    KEY_RUN = QR_ATTEND_RUN,
    BF16_ONE = 0x3f80,
};
_Static_assert(Q_ROWS % ROWS == 0, "attention works on whole groups of rows");

static inline vf dot(vf sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh) a, (__m512bh) b); }

/* s[r][KEY_RUN] = q . k for ROWS rows and n (1 or 2) blocks of keys; q [n_pairs][Q_ROWS] pairs, k [n][n_pairs][QR_KEY_BLOCK] pairs. */
static inline __attribute__((always_inline)) void score_block(float *s, const uint32_t *q, const uint32_t *k, size_t n_pairs, const int n)
{
    vf acc[ROWS][2];
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < n; j++) acc[r][j] = v_set1(0);
    for (size_t p = 0; p < n_pairs; p++) {
        __m512i key[2];
        for (int j = 0; j < n; j++) key[j] = _mm512_loadu_si512(k + ((size_t) j * n_pairs + p) * QR_KEY_BLOCK);
        for (int r = 0; r < ROWS; r++) {
            __m512i pair = _mm512_set1_epi32((int) q[p * Q_ROWS + (size_t) r]);
            for (int j = 0; j < n; j++) acc[r][j] = dot(acc[r][j], pair, key[j]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < n; j++) v_store(s + (size_t) r * KEY_RUN + j * QR_KEY_BLOCK, acc[r][j]);
}

static void scores(float *s, const uint32_t *q, const uint32_t *k, size_t n_blocks, size_t n_pairs, size_t n_rows)
{
    for (size_t b = 0; b < n_blocks; b += 2, k += 2 * n_pairs * QR_KEY_BLOCK, s += 2 * QR_KEY_BLOCK)
        for (size_t r = 0; r < n_rows; r += ROWS) {
            if (n_blocks - b >= 2) score_block(s + r * KEY_RUN, q + r, k, n_pairs, 2);
            else score_block(s + r * KEY_RUN, q + r, k, n_pairs, 1);
        }
}

/* acc[r][..] += p . v for ROWS rows and n (1 or 2) vectors of columns; p [ROWS][KEY_RUN / 2] pairs of keys, v [n_keys / 2][v_stride] pairs.
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
            __m512i pair = _mm512_set1_epi32((int) p[(size_t) r * (KEY_RUN / 2) + i]);
            for (int j = 0; j < n; j++) sum[r][j] = dot(sum[r][j], pair, value[j]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < n; j++) v_store(acc + (size_t) r * v_stride + j * VN, sum[r][j]);
}

static void values(float *acc, const uint32_t *p, const uint32_t *v, size_t n_keys, size_t v_stride, size_t n_rows)
{
    for (size_t d = 0; d < v_stride; d += 2 * VN)
        for (size_t r = 0; r < n_rows; r += ROWS) {
            if (v_stride - d >= 2 * VN) value_block(acc + r * v_stride + d, p + r * (KEY_RUN / 2), v + d, n_keys, v_stride, 2);
            else value_block(acc + r * v_stride + d, p + r * (KEY_RUN / 2), v + d, n_keys, v_stride, 1);
        }
}

/* 2^x for x <= 0, relative error at most 4e-6, a five-hundredth of the rounding to bf16 that follows. Coefficients: least maximum of the
 * relative error over [-1/2, 1/2]. */
static inline vf exp2_coarse(vf x)
{
    x = v_max(x, v_set1(-126.0f));
    vf n = v_round(x), r = v_sub(x, n);
    vf p = v_fma(v_set1(9.5701011e-3f), r, v_set1(5.5917860e-2f));
    p = v_fma(p, r, v_set1(0.24024745f));
    p = v_fma(p, r, v_set1(0.69312181f));
    p = v_fma(p, r, v_set1(0.99999926f));
    return _mm512_scalef_ps(p, n);
}

/* One run of the online softmax (arXiv:1805.02867) for one row: p = 2^(scale * (s - max)) as bf16 for the `visible` ones of n scores and 0
 * for the rest, acc is rescaled to the new maximum. n is a multiple of VN. scale includes log2(e). */
static void softmax(uint16_t *p, const float *s, size_t n, size_t visible, float scale, float *max, float *sum, float *acc, size_t v_stride)
{
    if (visible == 0) {
        memset(p, 0, n * sizeof *p);
        return;
    }
    size_t whole = visible / VN * VN;
    __mmask16 rest = (__mmask16) ((1u << (visible - whole)) - 1);
    vf m = v_set1(*max);
    for (size_t i = 0; i < whole; i += VN) m = v_max(m, v_load(s + i));
    if (rest) m = _mm512_mask_max_ps(m, rest, m, v_load(s + whole));
    float new_max = v_hmax(m);
    vf factor = v_set1(scale), shift = v_set1(-new_max * scale), total = v_set1(0);
    const __m512i one = _mm512_set1_epi16(BF16_ONE);
    for (size_t i = 0; i < n; i += VN) {
        __mmask16 real = i + VN <= visible ? (__mmask16) 0xffff : i == whole ? rest : 0;
        vf e = _mm512_maskz_mov_ps(real, exp2_coarse(v_fma(v_load(s + i), factor, shift)));
        __m256i narrow = (__m256i) _mm512_cvtneps_pbh(e);
        _mm256_storeu_si256((__m256i *) (void *) (p + i), narrow);
        total = dot(total, _mm512_zextsi256_si512(narrow), one);
    }
    float rescale = *sum > 0 ? exp2f((*max - new_max) * scale) : 0;
    *sum = *sum * rescale + v_hsum(total);
    if (*max < new_max)
        for (size_t d = 0; d < v_stride; d += VN) v_store(acc + d, v_mul(v_load(acc + d), v_set1(rescale)));
    *max = new_max;
}

/* q as pairs of bf16, [head_dim / 2][Q_ROWS]. */
static void load_query(uint32_t *to, const float *q, size_t head_dim)
{
    uint16_t pair[VN];
    for (size_t d = 0; d < head_dim; d += VN) {
        size_t n = head_dim - d < VN ? head_dim - d : VN;
        v_store_as(pair, 1, 0, n == VN ? v_load(q + d) : v_load_part(q + d, n), n);
        for (size_t i = 0; i < n; i += 2) to[(d + i) / 2 * Q_ROWS] = pair[i] | (uint32_t) pair[i + 1] << 16;
    }
}

static void attend_bf16(const qr_attend *a)
{
    size_t hd = a->head_dim, vs = a->v_stride, n_vectors = a->n_rows * a->n_group;
    float *acc = a->scratch, *s = acc + Q_ROWS * vs;
    uint32_t *p = (uint32_t *) (void *) (s + Q_ROWS * KEY_RUN), *q = p + Q_ROWS * KEY_RUN / 2;
    float scale = a->scale * 1.44269504088896341f;
    for (size_t first = 0; first < n_vectors; first += Q_ROWS) {
        size_t n = n_vectors - first < Q_ROWS ? n_vectors - first : Q_ROWS, padded = (n + ROWS - 1) / ROWS * ROWS;
        float max[Q_ROWS], sum[Q_ROWS];
        for (size_t i = 0; i < padded; i++) {
            size_t vector = first + (i < n ? i : n - 1); /* missing rows repeat the last one: same work, nothing undefined */
            load_query(q + i, a->q + vector / a->n_group * a->q_stride + vector % a->n_group * hd, hd);
            max[i] = -__builtin_inff();
            sum[i] = 0;
        }
        memset(acc, 0, padded * vs * sizeof *acc);
        size_t last_row = (first + n - 1) / a->n_group;
        const qr_kv *parts[2] = {&a->prefix, &a->own};
        for (int part = 0; part < 2; part++) {
            const qr_kv *kv = parts[part];
            const uint32_t *kt = kv->kt, *v = kv->v;
            size_t keys = part == 0 ? kv->n_keys : a->first_pos + last_row + 1; /* keys that the last row sees */
            for (size_t k0 = 0; k0 < keys; k0 += KEY_RUN) {
                size_t run = keys - k0 < KEY_RUN ? keys - k0 : KEY_RUN;
                size_t blocks = (run + QR_KEY_BLOCK - 1) / QR_KEY_BLOCK;
                scores(s, q, kt + k0 * (hd / 2), blocks, hd / 2, padded);
                for (size_t i = 0; i < padded; i++) {
                    size_t row = (first + (i < n ? i : n - 1)) / a->n_group;
                    size_t sees = part == 0 ? keys : a->first_pos + row + 1;
                    size_t visible = sees <= k0 ? 0 : sees - k0 < run ? sees - k0 : run;
                    softmax((uint16_t *) (void *) (p + i * (KEY_RUN / 2)), s + i * KEY_RUN, blocks * QR_KEY_BLOCK, visible, scale, &max[i],
                            &sum[i], acc + i * vs, vs);
                }
                values(acc, p, v + k0 / 2 * vs, run, vs, padded);
            }
        }
        for (size_t i = 0; i < n; i++) {
            size_t at = (first + i) / a->n_group * a->out_stride + (first + i) % a->n_group * hd;
            vf inv = v_set1(1.0f / sum[i]);
            for (size_t d = 0; d < hd; d += VN)
                v_store_as(a->out, a->out_bf16, at + d, v_mul(v_load(acc + i * vs + d), inv), hd - d < VN ? hd - d : VN);
        }
    }
}

const qr_attend_fn qr_attend_bf16 = attend_bf16;
#else
const qr_attend_fn qr_attend_bf16 = NULL;
#endif
