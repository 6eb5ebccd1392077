/* What attention in bf16 has in common, whatever multiplies: q and the weights e^(s - max) are rounded to bf16 as well; scores, sums and
 * the running maximum stay f32, and the sum is over the rounded weights, so that they add up to one. */
#include "cpu/attend_keys.h"

#include <math.h>

enum { ELEMENT_BYTES = 2, Q_ROWS = QR_ATTEND_ROWS, KEY_STEP = 2 * VN, BF16_ONE = 0x3f80 };

/* As they are: the products read rows of pairs, also those of vectors that are nobody's. */
static const void *load_queries(float *spare, const void *q, size_t n, size_t head_dim)
{
    (void) spare, (void) n, (void) head_dim;
    return q;
}

/* 2^x for x <= 0 */
static inline vf weight_of(vf x) { return v_exp2_coarse(v_max(x, v_set1(-126.0f))); }

/* Which of the keys i to i + 31 count. */
static inline __mmask32 seen_of(const seen_keys *seen, size_t i)
{
    size_t end = seen_end(seen, i), n = end > i ? end - i : 0;
    return n >= KEY_STEP ? 0xffffffffu : (__mmask32) ((1u << n) - 1);
}

/* One run of the online softmax (arXiv:1805.02867) for one row, see attend_impl.h. The loops take the same steps for all rows of a run,
 * which keeps branches predictable. */
static void softmax(void *weights, const float *s, size_t n, const seen_keys *seen, float scale, float *max, float *sum, float *acc,
                    size_t v_stride)
{
    uint16_t *p = weights;
    vf m0 = v_set1(*max), m1 = m0, total = v_set1(0);
    for (size_t i = 0; i < n; i += KEY_STEP) {
        __mmask32 k = seen_of(seen, i);
        m0 = _mm512_mask_max_ps(m0, (__mmask16) k, m0, v_load(s + i));
        m1 = _mm512_mask_max_ps(m1, (__mmask16) (k >> VN), m1, v_load(s + i + VN));
    }
    float new_max = v_hmax(v_max(m0, m1));
    scale *= 1.44269504088896341f; /* log2(e) */
    vf factor = v_set1(scale), shift = v_set1(-new_max * scale);
    const __m512i one = _mm512_set1_epi16(BF16_ONE);
    for (size_t i = 0; i < n; i += KEY_STEP) {
        vf e0 = weight_of(v_fma(v_load(s + i), factor, shift)), e1 = weight_of(v_fma(v_load(s + i + VN), factor, shift));
        __m512i narrow = _mm512_maskz_mov_epi16(seen_of(seen, i), (__m512i) _mm512_cvtne2ps_pbh(e1, e0));
        _mm512_storeu_si512(p + i, narrow);
        total = v_dot_bf16(total, narrow, one);
    }
    if (*sum > 0 && *max < new_max) {
        float rescale = exp2f((*max - new_max) * scale);
        *sum *= rescale;
        for (size_t d = 0; d < v_stride; d += VN) v_store(acc + d, v_mul(v_load(acc + d), v_set1(rescale)));
    }
    *sum += v_hsum(total);
    *max = new_max;
}

#include "cpu/attend_impl.h"
