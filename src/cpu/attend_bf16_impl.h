/* Attention with K and V in bf16. q and the weights e^(s - max) are rounded to bf16 as well; scores, sums and the running maximum stay
 * f32, and the sum is over the rounded weights, so that they add up to one. Written once over AVX-512 and what multiplies: an including
 * file defines
 *   load_query(q, i, from, head_dim)                     rounds vector i of up to QR_ATTEND_ROWS, in the order that `scores` wants
 *   scores(s, q, kt, n_keys, head_dim, n_rows)           s [n_rows][QR_ATTEND_RUN] = q . k; past n_keys anything may come out
 *   values(acc, p, v, n_keys, v_stride, n_rows, spare)   acc [n_rows][v_stride] += p [n_rows][QR_ATTEND_RUN] . v; past n_keys p is 0, but
 *                                                        what stands there in v is nobody's and could be an infinity; spare: memory
 *   begin(), end()                                       around them
 * ROWS, of which n_rows is a multiple, and KEY_STEP, up to a multiple of which p is filled. Sums must take the same steps for every row.
 */
#include <math.h>

enum {
    Q_ROWS = QR_ATTEND_ROWS,
    KEY_RUN = QR_ATTEND_RUN,
    BF16_ONE = 0x3f80,
};
_Static_assert((int) Q_ROWS % (int) ROWS == 0 && (int) KEY_RUN % (int) KEY_STEP == 0, "whole groups of rows and keys");

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
        total = v_dot_bf16(total, _mm512_zextsi256_si512(narrow), one);
    }
    float rescale = *sum > 0 ? exp2f((*max - new_max) * scale) : 0;
    *sum = *sum * rescale + v_hsum(total);
    if (*max < new_max)
        for (size_t d = 0; d < v_stride; d += VN) v_store(acc + d, v_mul(v_load(acc + d), v_set1(rescale)));
    *max = new_max;
}

static void attend(const qr_attend *a)
{
    size_t hd = a->head_dim, vs = a->v_stride, n_vectors = a->n_rows * a->n_group;
    float *acc = a->scratch, *s = acc + Q_ROWS * vs;
    uint32_t *p = (uint32_t *) (void *) (s + Q_ROWS * KEY_RUN), *q = p + Q_ROWS * KEY_RUN / 2, *spare = q + Q_ROWS * vs / 2;
    float scale = a->scale * 1.44269504088896341f;
    begin();
    for (size_t first = 0; first < n_vectors; first += Q_ROWS) {
        size_t n = n_vectors - first < Q_ROWS ? n_vectors - first : Q_ROWS, padded = (n + ROWS - 1) / ROWS * ROWS;
        float max[Q_ROWS], sum[Q_ROWS];
        for (size_t i = 0; i < padded; i++) {
            size_t vector = first + (i < n ? i : n - 1); /* missing rows repeat the last one: same work, nothing undefined */
            load_query(q, i, a->q + vector / a->n_group * a->q_stride + vector % a->n_group * hd, hd);
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
                size_t filled = (run + KEY_STEP - 1) / KEY_STEP * KEY_STEP;
                scores(s, q, kt + k0 * (hd / 2), run, hd, padded);
                for (size_t i = 0; i < padded; i++) {
                    size_t row = (first + (i < n ? i : n - 1)) / a->n_group;
                    size_t sees = part == 0 ? keys : a->first_pos + row + 1;
                    size_t visible = sees <= k0 ? 0 : sees - k0 < run ? sees - k0 : run;
                    softmax((uint16_t *) (void *) (p + i * (KEY_RUN / 2)), s + i * KEY_RUN, filled, visible, scale, &max[i], &sum[i],
                            acc + i * vs, vs);
                }
                values(acc, p, v + k0 / 2 * vs, run, vs, padded, spare);
            }
        }
        for (size_t i = 0; i < n; i++) {
            qr_row to = qr_row_at(&a->out, a->out_row + (first + i) / a->n_group);
            size_t column = a->out_column + (first + i) % a->n_group * hd;
            vf inv = v_set1(1.0f / sum[i]);
            for (size_t d = 0; d < hd; d += VN)
                v_store_row(to, column + d, v_mul(v_load(acc + i * vs + d), inv), hd - d < VN ? hd - d : VN);
        }
    }
    end();
}
