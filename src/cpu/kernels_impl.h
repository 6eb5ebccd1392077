/* The kernels, written once over a small vector type and built once per instruction set.
 *
 * An including file defines: VN (floats per vector), vf (the type), and the operations v_load, v_store, v_set1, v_add, v_sub, v_mul,
 * v_fma(a, b, c) = a * b + c with one rounding where the machine has it, v_max, v_min, v_div, v_hsum, v_hmax (in a fixed order),
 * v_ldexp(a, n) = a * 2^n for integral n, v_round, v_reciprocal (relative error at most 2^-21), v_hadamard (of the lanes), v_load_bf16,
 * v_store_bf16, v_load_f16, v_mask_from(limit, index of lane 0): x where lane < limit, else -inf; ROWS (query rows kept in registers by
 * attention and GEMM) and KERNEL_NAME. VN divides QR_KEY_BLOCK.
 *
 * Sums run in one fixed order per row. Tails shorter than a vector go through a zero-padded copy: zeros change no sum, and no load
 * crosses the end of an array.
 */
#include <math.h>
#include <string.h>

#include "cpu/attend_keys.h"
#include "cpu/vector_math.h"

enum { VPB = QR_KEY_BLOCK / VN }; /* vectors per key block or GEMM panel */

static float sum_squares(const float *x, size_t n)
{
    vf s0 = v_set1(0), s1 = v_set1(0);
    size_t i = 0;
    for (; i + 2 * VN <= n; i += 2 * VN) {
        vf a = v_load(x + i), b = v_load(x + i + VN);
        s0 = v_fma(a, a, s0);
        s1 = v_fma(b, b, s1);
    }
    for (; i < n; i += VN) {
        vf a = n - i >= VN ? v_load(x + i) : v_load_part(x + i, n - i);
        s0 = v_fma(a, a, s0);
    }
    return v_hsum(v_add(s0, s1));
}

static void rmsnorm(qr_row y, const float *x, const float *w, size_t n, float eps)
{
    vf scale = v_set1(1.0f / sqrtf(sum_squares(x, n) / (float) n + eps));
    for (size_t i = 0; i < n; i += VN) {
        size_t m = n - i < VN ? n - i : VN;
        vf a = m == VN ? v_load(x + i) : v_load_part(x + i, m);
        vf b = m == VN ? v_load(w + i) : v_load_part(w + i, m);
        v_store_row(y, i, v_mul(v_mul(a, scale), b), m);
    }
}

static inline __attribute__((always_inline)) void norm_rope_n(qr_row y, const float *x, const float *w, const float *cosines,
                                                              const float *sines, const size_t n, float eps)
{
    vf scale = v_set1(1.0f / sqrtf(sum_squares(x, n) / (float) n + eps));
    size_t half = n / 2;
    for (size_t i = 0; i < half; i += VN) {
        size_t m = half - i < VN ? half - i : VN;
        vf a = m == VN ? v_load(x + i) : v_load_part(x + i, m);
        vf b = m == VN ? v_load(x + half + i) : v_load_part(x + half + i, m);
        vf wa = m == VN ? v_load(w + i) : v_load_part(w + i, m);
        vf wb = m == VN ? v_load(w + half + i) : v_load_part(w + half + i, m);
        vf c = m == VN ? v_load(cosines + i) : v_load_part(cosines + i, m);
        vf s = m == VN ? v_load(sines + i) : v_load_part(sines + i, m);
        a = v_mul(v_mul(a, scale), wa);
        b = v_mul(v_mul(b, scale), wb);
        vf turned = v_sub(v_mul(a, c), v_mul(b, s)), other = v_add(v_mul(b, c), v_mul(a, s));
        if (y.bf16) {
            uint16_t *to = y.at;
            if (m == VN) v_round_bf16(to + i, turned), v_round_bf16(to + half + i, other);
            else v_store_bf16_n(to + i, turned, m), v_store_bf16_n(to + half + i, other, m);
        } else {
            float *to = y.at;
            v_store_n(to + i, turned, m);
            v_store_n(to + half + i, other, m);
        }
    }
}

/* All Qwen3 models have heads of 128 elements. */
static void norm_rope(qr_row y, const float *x, const float *w, const float *cosines, const float *sines, size_t n, float eps)
{
    if (n == 128) norm_rope_n(y, x, w, cosines, sines, 128, eps);
    else norm_rope_n(y, x, w, cosines, sines, n, eps);
}

/* g * sigmoid(g) * u; coarse: about 1e-5 off, where the result is rounded to bf16 */
static inline __attribute__((always_inline)) vf gated(vf g, vf u, const int coarse)
{
    if (coarse) {
        vf x = v_mul(g, v_set1(-1.44269504088896341f)); /* log2(e) */
        x = v_max(v_min(x, v_set1(126.0f)), v_set1(-126.0f));
        return v_mul(v_mul(g, u), v_reciprocal(v_add(v_set1(1.0f), v_exp2_coarse(x))));
    }
    /* min(-g, 88) keeps e^-g finite: g below -88 gives -1e-36 instead of 0 */
    return v_mul(v_div(g, v_add(v_set1(1.0f), v_exp(v_min(v_sub(v_set1(0.0f), g), v_set1(88.0f))))), u);
}

static inline __attribute__((always_inline)) void swiglu_rows(const qr_rows *y, size_t row0, size_t n_rows, size_t column, const float *c,
                                                              size_t stride, size_t half, size_t n, const int bf16)
{
    for (size_t r = 0; r < n_rows; r++, c += stride) {
        qr_row to = qr_row_at(y, row0 + r);
        const float *up = c + half;
        to.bf16 = bf16;
        size_t i = 0;
        for (; i + VN <= n; i += VN) v_store_row(to, column + i, gated(v_load(c + i), v_load(up + i), bf16), VN);
        if (i < n) v_store_row(to, column + i, gated(v_load_part(c + i, n - i), v_load_part(up + i, n - i), bf16), n - i);
    }
}

static void swiglu(const qr_rows *y, size_t row0, size_t n_rows, size_t column, const float *c, size_t stride, size_t half, size_t n)
{
    if (y->bf16) swiglu_rows(y, row0, n_rows, column, c, stride, half, n, 1);
    else swiglu_rows(y, row0, n_rows, column, c, stride, half, n, 0);
}

static void add(float *x, const float *y, size_t n)
{
    size_t i = 0;
    for (; i + VN <= n; i += VN) v_store(x + i, v_add(v_load(x + i), v_load(y + i)));
    for (; i < n; i++) x[i] += y[i];
}

/* ---- attention ---------------------------------------------------------------------------------------------------------------- */

enum {
    ELEMENT_BYTES = sizeof(float),
    Q_ROWS = 8, /* their scores and sums stay in the first-level cache */
    KEY_STEP = QR_KEY_BLOCK,
};

static inline void begin(void) {}
static inline void end(void) {}

/* [head_dim][Q_ROWS]; missing vectors repeat the last one. */
static const void *load_queries(float *qt, const void *q, size_t n, size_t head_dim)
{
    for (size_t i = 0; i < Q_ROWS; i++) {
        const float *from = (const float *) q + (i < n ? i : n - 1) * head_dim;
        for (size_t d = 0; d < head_dim; d++) qt[d * Q_ROWS + i] = from[d];
    }
    return qt;
}

static void scores(float *s, const void *query, const void *keys, size_t n_keys, size_t head_dim, size_t n_rows)
{
    const float *qt = query, *kt = keys;
    for (size_t b = 0; b * QR_KEY_BLOCK < n_keys; b++, kt += head_dim * QR_KEY_BLOCK) {
        for (size_t r0 = 0; r0 < n_rows; r0 += ROWS) {
            vf acc[ROWS][VPB];
            for (int r = 0; r < ROWS; r++)
                for (int j = 0; j < VPB; j++) acc[r][j] = v_set1(0);
            for (size_t d = 0; d < head_dim; d++) {
                vf k[VPB];
                for (int j = 0; j < VPB; j++) k[j] = v_load(kt + d * QR_KEY_BLOCK + (size_t) j * VN);
                for (int r = 0; r < ROWS; r++) {
                    vf q = v_set1(qt[d * Q_ROWS + r0 + (size_t) r]);
                    for (int j = 0; j < VPB; j++) acc[r][j] = v_fma(q, k[j], acc[r][j]);
                }
            }
            for (int r = 0; r < ROWS; r++)
                for (int j = 0; j < VPB; j++)
                    v_store(s + (r0 + (size_t) r) * QR_ATTEND_RUN + b * QR_KEY_BLOCK + (size_t) j * VN, acc[r][j]);
        }
    }
}

/* Rows that do not see a key have p = 0 there: adding 0 * v leaves their sums bit for bit as they are, since all v are real values of the
 * same sequence. */
static void values(float *acc, const void *weights, const void *elements, size_t n_keys, size_t v_stride, size_t n_rows, void *spare)
{
    (void) spare;
    const float *p = weights, *v = elements;
    for (size_t r0 = 0; r0 < n_rows; r0 += ROWS) {
        for (size_t d = 0; d < v_stride; d += QR_KEY_BLOCK) {
            vf sum[ROWS][VPB];
            for (int r = 0; r < ROWS; r++)
                for (int j = 0; j < VPB; j++) sum[r][j] = v_load(acc + (r0 + (size_t) r) * v_stride + d + (size_t) j * VN);
            for (size_t k = 0; k < n_keys; k++) {
                vf x[VPB];
                for (int j = 0; j < VPB; j++) x[j] = v_load(v + k * v_stride + d + (size_t) j * VN);
                for (int r = 0; r < ROWS; r++) {
                    vf w = v_set1(p[(r0 + (size_t) r) * QR_ATTEND_RUN + k]);
                    for (int j = 0; j < VPB; j++) sum[r][j] = v_fma(w, x[j], sum[r][j]);
                }
            }
            for (int r = 0; r < ROWS; r++)
                for (int j = 0; j < VPB; j++) v_store(acc + (r0 + (size_t) r) * v_stride + d + (size_t) j * VN, sum[r][j]);
        }
    }
}

/* One run of the online softmax (arXiv:1805.02867) for one row. Every row sees a key in its first run, so max is finite from then on. */
static void softmax(void *weights, const float *s, size_t n, const seen_keys *seen, float scale, float *max, float *sum, float *acc,
                    size_t v_stride)
{
    float *p = weights;
    vf m = v_set1(*max);
    for (size_t i = 0; i < n; i += VN) m = v_max(m, v_mask_from(v_load(s + i), seen_end(seen, i), i));
    float new_max = v_hmax(m);
    vf factor = v_set1(scale), shift = v_set1(new_max), total = v_set1(0);
    for (size_t i = 0; i < n; i += VN) {
        vf e = v_exp(v_mul(v_sub(v_load(s + i), shift), factor));
        if (i + VN > seen_end(seen, i)) e = v_max(v_mask_from(e, seen_end(seen, i), i), v_set1(0)); /* others: exactly 0 */
        v_store(p + i, e);
        total = v_add(total, e);
    }
    if (*sum > 0 && *max < new_max) {
        float rescale = expf((*max - new_max) * scale);
        *sum *= rescale;
        for (size_t d = 0; d < v_stride; d += VN) v_store(acc + d, v_mul(v_load(acc + d), v_set1(rescale)));
    }
    *sum += v_hsum(total);
    *max = new_max;
}

#include "cpu/attend_impl.h"

/* ---- conversions and the portable GEMM ---------------------------------------------------------------------------------------- */

/* In steps of a fixed size, which compilers make vectors of. */
static void scale_i8(float *y, const int8_t *q, size_t n, float scale)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t k = 0; k < 16; k++) y[i + k] = (float) q[i + k] * scale;
    for (; i < n; i++) y[i] = (float) q[i] * scale;
}

static void affine_u8(float *y, const uint8_t *q, size_t n, float scale, float bias)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t k = 0; k < 16; k++) y[i + k] = (float) q[i + k] * scale + bias;
    for (; i < n; i++) y[i] = (float) q[i] * scale + bias;
}

static void widen_bf16(float *y, const uint16_t *x, size_t n)
{
    size_t i = 0;
    for (; i + VN <= n; i += VN) v_store(y + i, v_load_bf16(x + i));
    for (; i < n; i++) {
        uint32_t bits = (uint32_t) x[i] << 16;
        memcpy(y + i, &bits, sizeof bits);
    }
}

static void widen_f16(float *y, const uint16_t *x, size_t n)
{
    uint16_t part[VN] = {0};
    for (size_t i = 0; i < n; i += VN) {
        size_t m = n - i < VN ? n - i : VN;
        if (m < VN) memcpy(part, x + i, m * sizeof *x);
        v_store_n(y + i, v_load_f16(m < VN ? part : x + i), m);
    }
}

static void narrow_bf16(uint16_t *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i += VN) {
        size_t m = n - i < VN ? n - i : VN;
        v_store_bf16_n(y + i, m == VN ? v_load(x + i) : v_load_part(x + i, m), m);
    }
}

static void spread_bf16(uint16_t *y, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + VN <= n; i += VN) v_spread_bf16(y + 2 * i, v_load(x + i));
    for (; i < n; i++) {
        uint16_t narrow;
        v_store_bf16_n(&narrow, v_load_part(x + i, 1), 1);
        y[2 * i] = narrow;
    }
}

static void gemm(float *c, const float *a, const float *b, size_t rows, size_t k, size_t nb)
{
    for (size_t n0 = 0; n0 < nb; n0 += QR_PANEL, b += k * QR_PANEL) {
        for (size_t m0 = 0; m0 < rows; m0 += ROWS) {
            vf acc[ROWS][VPB];
            for (int r = 0; r < ROWS; r++)
                for (int j = 0; j < VPB; j++) acc[r][j] = v_set1(0);
            for (size_t i = 0; i < k; i++) {
                vf x[VPB];
                for (int j = 0; j < VPB; j++) x[j] = v_load(b + i * QR_PANEL + (size_t) j * VN);
                for (int r = 0; r < ROWS; r++) {
                    vf w = v_set1(a[(m0 + (size_t) r) * k + i]);
                    for (int j = 0; j < VPB; j++) acc[r][j] = v_fma(w, x[j], acc[r][j]);
                }
            }
            for (int r = 0; r < ROWS; r++)
                for (int j = 0; j < VPB; j++) v_store(c + (m0 + (size_t) r) * nb + n0 + (size_t) j * VN, acc[r][j]);
        }
    }
}

/* ---- 8 bits ------------------------------------------------------------------------------------------------------------------- */

static void rotate(float *x, size_t n, size_t block)
{
    for (float *end = x + n; x < end; x += block) {
        for (size_t i = 0; i < block; i += VN) v_store(x + i, v_hadamard(v_load(x + i)));
        size_t h = VN;
        for (; 4 * h <= block; h *= 4) /* two steps at once */
            for (size_t i = 0; i < block; i += 4 * h)
                for (size_t j = i; j < i + h; j += VN) {
                    vf a = v_load(x + j), b = v_load(x + j + h), c = v_load(x + j + 2 * h), d = v_load(x + j + 3 * h);
                    vf ab = v_add(a, b), cd = v_add(c, d), a_b = v_sub(a, b), c_d = v_sub(c, d);
                    v_store(x + j, v_add(ab, cd));
                    v_store(x + j + h, v_add(a_b, c_d));
                    v_store(x + j + 2 * h, v_sub(ab, cd));
                    v_store(x + j + 3 * h, v_sub(a_b, c_d));
                }
        for (; h < block; h *= 2)
            for (size_t j = 0; j < h; j += VN) {
                vf a = v_load(x + j), b = v_load(x + j + h);
                v_store(x + j, v_add(a, b));
                v_store(x + j + h, v_sub(a, b));
            }
    }
}

/* y [n] = the nearest integers to x * inverse, which are within 127 */
static inline void narrow_i8(int8_t *y, const float *x, size_t n, float inverse)
{
    const float magic = 0x1.8p23f; /* adding it leaves the nearest integer in the lowest bits */
    for (size_t i = 0; i < n; i++) {
        float shifted = x[i] * inverse + magic;
        uint32_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        y[i] = (int8_t) (uint8_t) bits;
    }
}

static float quantize(qr_row y, float *x, size_t n, const float *factors, size_t block)
{
    if (factors != NULL)
        for (size_t i = 0; i < n; i++) x[i] *= factors[i];
    if (block > 0) rotate(x, n, block);
    uint32_t most = 0; /* as bits, where the order of magnitudes is that of integers, and a NaN the largest of all */
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    float largest;
    memcpy(&largest, &most, sizeof largest);
    int finite = most < 0x7f800000u, any = finite && largest >= 0x1p-100f; /* or all zero, or so small that 127 / largest is not finite */
    float inverse = any ? 127.0f / largest : 0;
    int8_t *to = y.at;
    for (size_t i = 0; i < n; i += QR_LINE_INT8, to += y.line) {
        if (n - i >= QR_LINE_INT8) narrow_i8(to, x + i, QR_LINE_INT8, inverse);
        else narrow_i8(to, x + i, n - i, inverse);
    }
    return any ? largest / 127.0f : finite ? 0 : NAN;
}

static void dequantize(float *c, size_t rows, size_t nb, const float *row_scales, const float *column_scales)
{
    for (size_t r = 0; r < rows; r++, c += nb) {
        const float scale = row_scales[r];
        for (size_t i = 0; i < nb; i++) {
            int32_t sum;
            memcpy(&sum, c + i, sizeof sum);
            c[i] = (float) sum * scale * column_scales[i];
        }
    }
}

static const qr_kernels table = {
    .name = KERNEL_NAME,
    .rmsnorm = rmsnorm,
    .norm_rope = norm_rope,
    .swiglu = swiglu,
    .add = add,
    .attend = attend,
    .scale_i8 = scale_i8,
    .affine_u8 = affine_u8,
    .widen_bf16 = widen_bf16,
    .widen_f16 = widen_f16,
    .narrow_bf16 = narrow_bf16,
    .spread_bf16 = spread_bf16,
    .gemm = gemm,
    .quantize = quantize,
    .dequantize = dequantize,
};
