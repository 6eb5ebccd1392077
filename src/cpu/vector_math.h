/* What kernels need beyond single instructions, for any of the vector types that kernels_impl.h describes. */
#ifndef QR_CPU_VECTOR_MATH_H
#define QR_CPU_VECTOR_MATH_H

#include <string.h>

static inline vf v_load_part(const float *x, size_t n)
{
    float part[VN] = {0};
    memcpy(part, x, n * sizeof *x);
    return v_load(part);
}

static inline void v_store_part(float *y, vf x, size_t n)
{
    float part[VN];
    v_store(part, x);
    memcpy(y, part, n * sizeof *y);
}

/* Stores n <= VN elements. */
static inline void v_store_n(float *y, vf x, size_t n)
{
    if (n == VN) v_store(y, x);
    else v_store_part(y, x, n);
}

static inline void v_store_bf16_n(uint16_t *y, vf x, size_t n)
{
    uint16_t part[VN];
    v_store_bf16(n == VN ? y : part, x);
    if (n < VN) memcpy(y, part, n * sizeof *y);
}

/* Rounds to bf16 what a product will read. Products take subnormals as zeros, so that they may become zeros here. */
#ifdef __AVX512BF16__
static inline void v_round_bf16(uint16_t *y, vf x) { _mm256_storeu_si256((__m256i *) (void *) y, (__m256i) _mm512_cvtneps_pbh(x)); }
#else
static inline void v_round_bf16(uint16_t *y, vf x) { v_store_bf16(y, x); }
#endif

/* Likewise, to y[0], y[2], y[4], ... */
static inline void v_spread_bf16(uint16_t *y, vf x)
{
#ifdef __AVX512BF16__
    _mm512_mask_storeu_epi16(y, 0x55555555u, _mm512_cvtepu16_epi32((__m256i) _mm512_cvtneps_pbh(x)));
#else
    uint16_t narrow[VN];
    v_store_bf16(narrow, x);
    for (size_t i = 0; i < VN; i++) y[2 * i] = narrow[i];
#endif
}

/* Stores n <= VN elements of a row from element i on, a multiple of VN. */
static inline void v_store_row(qr_row y, size_t i, vf x, size_t n)
{
    uint16_t *narrow = (uint16_t *) y.at + i / QR_LINE * y.line + i % QR_LINE;
    if (!y.bf16) v_store_n((float *) y.at + i, x, n);
    else if (n == VN) v_round_bf16(narrow, x);
    else v_store_bf16_n(narrow, x, n);
}

/* e^x for x <= 88: 2^round(x log2 e) times a degree-6 polynomial on the rest, relative error at most 1.2e-7 (measured over [-87, 0]).
 * Coefficients: Cephes expf (S. Moshier). Below -87 the result is forced to e^-87 ~ 1.6e-38, which no sum here can notice;
 * -inf (masked keys) must give exactly 0 and is handled where masks are applied. */
static inline vf v_exp(vf x)
{
    x = v_max(x, v_set1(-87.0f));
    vf n = v_round(v_mul(x, v_set1(1.44269504088896341f)));
    vf r = v_fma(n, v_set1(-0.693359375f), x);
    r = v_fma(n, v_set1(2.12194440e-4f), r);
    vf p = v_set1(1.9875691500e-4f);
    p = v_fma(p, r, v_set1(1.3981999507e-3f));
    p = v_fma(p, r, v_set1(8.3334519073e-3f));
    p = v_fma(p, r, v_set1(4.1665795894e-2f));
    p = v_fma(p, r, v_set1(1.6666665459e-1f));
    p = v_fma(p, r, v_set1(5.0000001201e-1f));
    p = v_fma(v_mul(r, r), p, v_add(r, v_set1(1.0f)));
    return v_ldexp(p, n);
}

/* 2^x for -126 <= x <= 126, relative error at most 4e-6, a five-hundredth of a rounding to bf16. Coefficients: least maximum of the
 * relative error over [-1/2, 1/2]. */
static inline vf v_exp2_coarse(vf x)
{
    vf n = v_round(x), r = v_sub(x, n);
    vf p = v_fma(v_set1(9.5701011e-3f), r, v_set1(5.5917860e-2f));
    p = v_fma(p, r, v_set1(0.24024745f));
    p = v_fma(p, r, v_set1(0.69312181f));
    p = v_fma(p, r, v_set1(0.99999926f));
    return v_ldexp(p, n);
}

#endif
