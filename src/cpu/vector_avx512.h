/* Sixteen floats with AVX-512, as kernels_impl.h and attend_bf16.c want them. */
#ifndef QR_CPU_VECTOR_AVX512_H
#define QR_CPU_VECTOR_AVX512_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

enum { VN = 16 };
typedef __m512 vf;

static inline vf v_load(const float *x) { return _mm512_loadu_ps(x); }
static inline void v_store(float *y, vf x) { _mm512_storeu_ps(y, x); }
static inline vf v_set1(float x) { return _mm512_set1_ps(x); }
static inline vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf v_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf v_ldexp(vf a, vf n) { return _mm512_scalef_ps(a, n); }
static inline vf v_reciprocal(vf a)
{
    vf r = _mm512_rcp14_ps(a);
    return _mm512_mul_ps(r, _mm512_fnmadd_ps(a, r, _mm512_set1_ps(2.0f)));
}
/* The Hadamard transform of the lanes, unscaled. */
static inline vf v_hadamard(vf a)
{
    const __m512 by1 = _mm512_castsi512_ps(_mm512_set1_epi64((long long) 0xbf8000003f800000u)); /* 1, -1, 1, -1, ... */
    const __m512 one = _mm512_set1_ps(1.0f), minus = _mm512_set1_ps(-1.0f);
    a = _mm512_fmadd_ps(a, by1, _mm512_permute_ps(a, 0xb1));
    a = _mm512_fmadd_ps(a, _mm512_mask_blend_ps(0xcccc, one, minus), _mm512_permute_ps(a, 0x4e));
    a = _mm512_fmadd_ps(a, _mm512_mask_blend_ps(0xf0f0, one, minus), _mm512_shuffle_f32x4(a, a, 0xb1));
    return _mm512_fmadd_ps(a, _mm512_mask_blend_ps(0xff00, one, minus), _mm512_shuffle_f32x4(a, a, 0x4e));
}

static inline float v_hsum(vf a) { return _mm512_reduce_add_ps(a); }
static inline float v_hmax(vf a) { return _mm512_reduce_max_ps(a); }

static inline vf v_mask_from(vf a, size_t limit, size_t lane0)
{
    unsigned n = limit <= lane0 ? 0 : limit - lane0 >= VN ? VN : (unsigned) (limit - lane0);
    return _mm512_mask_blend_ps((__mmask16) ((1u << n) - 1), _mm512_set1_ps(-__builtin_inff()), a);
}

static inline vf v_load_bf16(const uint16_t *x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) x)), 16));
}

/* Integer rounding rather than VCVTNEPS2BF16: that one flushes subnormals, and this file must run without AVX512-BF16 too. */
static inline void v_store_bf16(uint16_t *y, vf x)
{
    __m512i b = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(b, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    b = _mm512_mask_or_epi32(rounded, nan, b, _mm512_set1_epi32(0x400000)); /* a NaN stays one */
    _mm256_storeu_si256((__m256i *) y, _mm512_cvtepi32_epi16(_mm512_srli_epi32(b, 16)));
}

static inline vf v_load_f16(const uint16_t *x) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) x)); }

#ifdef __AVX512BF16__
/* sum + the products of 32 pairs of bf16, two to each lane; subnormal operands count as zero */
static inline vf v_dot_bf16(vf sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh) a, (__m512bh) b); }
#endif

#endif
