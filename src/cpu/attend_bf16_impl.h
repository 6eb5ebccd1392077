/* What attention in bf16 has in common, whatever multiplies: q and the weights e^(s - max) are rounded to bf16 as well; scores, sums and
 * the running maximum stay f32, and the sum is over the rounded weights, so that they add up to one. */
#include <math.h>

enum { ELEMENT_BYTES = 2, Q_ROWS = QR_ATTEND_ROWS, BF16_ONE = 0x3f80 };

/* As they are: the products read rows of pairs, also those of vectors that are nobody's. */
static const void *load_queries(float *spare, const void *q, size_t n, size_t head_dim)
{
    (void) spare, (void) n, (void) head_dim;
    return q;
}

/* 2^x for x <= 0 */
static inline vf weight_of(vf x) { return v_exp2_coarse(v_max(x, v_set1(-126.0f))); }

/* One run of the online softmax (arXiv:1805.02867) for one row, see attend_impl.h. */
static void softmax(void *weights, const float *s, size_t n, size_t visible, float scale, float *max, float *sum, float *acc,
                    size_t v_stride)
{
    uint16_t *p = weights;
    if (visible == 0) { /* nothing new for this row */
        memset(p, 0, n * sizeof *p);
        return;
    }
    scale *= 1.44269504088896341f; /* log2(e) */
    size_t whole = visible / VN * VN;
    __mmask16 rest = (__mmask16) ((1u << (visible - whole)) - 1);
    vf m = v_set1(*max);
    for (size_t i = 0; i < whole; i += VN) m = v_max(m, v_load(s + i));
    if (rest) m = _mm512_mask_max_ps(m, rest, m, v_load(s + whole));
    float new_max = v_hmax(m);
    vf factor = v_set1(scale), shift = v_set1(-new_max * scale), total = v_set1(0), total2 = v_set1(0);
    const __m512i one = _mm512_set1_epi16(BF16_ONE);
    size_t i = 0;
    for (; i + 2 * VN <= whole; i += 2 * VN) {
        vf e0 = weight_of(v_fma(v_load(s + i), factor, shift)), e1 = weight_of(v_fma(v_load(s + i + VN), factor, shift));
        __m512i narrow = (__m512i) _mm512_cvtne2ps_pbh(e1, e0);
        _mm512_storeu_si512(p + i, narrow);
        total = v_dot_bf16(total, narrow, one);
    }
    for (; i < n; i += VN) {
        __mmask16 real = i + VN <= visible ? (__mmask16) 0xffff : i == whole ? rest : 0;
        vf e = _mm512_maskz_mov_ps(real, weight_of(v_fma(v_load(s + i), factor, shift)));
        __m256i narrow = (__m256i) _mm512_cvtneps_pbh(e);
        _mm256_storeu_si256((__m256i *) (void *) (p + i), narrow);
        total2 = v_dot_bf16(total2, _mm512_zextsi256_si512(narrow), one);
    }
    total = v_add(total, total2);
    float rescale = *sum > 0 ? exp2f((*max - new_max) * scale) : 0;
    *sum = *sum * rescale + v_hsum(total);
    if (*max < new_max)
        for (size_t d = 0; d < v_stride; d += VN) v_store(acc + d, v_mul(v_load(acc + d), v_set1(rescale)));
    *max = new_max;
}

#include "cpu/attend_impl.h"
