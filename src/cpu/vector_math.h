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

/* Stores n <= VN elements of a row from element i on, a multiple of VN. */
static inline void v_store_row(qr_row y, size_t i, vf x, size_t n)
{
    if (y.bf16) v_store_bf16_n((uint16_t *) y.at + i / QR_LINE * y.line + i % QR_LINE, x, n);
    else v_store_n((float *) y.at + i, x, n);
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
    return v_mul(p, v_exp2i(n));
}

#endif
