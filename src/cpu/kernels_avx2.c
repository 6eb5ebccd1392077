/* Kernels for x86-64 with AVX2, FMA and F16C. Built with these flags; only called after features.c found them. */
#include "cpu/kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>

#define KERNEL_NAME "avx2"
enum { VN = 8, ROWS = 4 }; /* 4 x 2 sums, 2 loads, 1 broadcast: 11 of 16 registers */
typedef __m256 vf;

static inline vf v_load(const float *x) { return _mm256_loadu_ps(x); }
static inline void v_store(float *y, vf x) { _mm256_storeu_ps(y, x); }
static inline vf v_set1(float x) { return _mm256_set1_ps(x); }
static inline vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf v_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf v_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

static inline vf v_reciprocal(vf a) { return _mm256_div_ps(_mm256_set1_ps(1.0f), a); }

static inline vf v_ldexp(vf a, vf n)
{
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(a, _mm256_castsi256_ps(power));
}

/* The Hadamard transform of the lanes, unscaled. */
static inline vf v_hadamard(vf a)
{
    a = _mm256_fmadd_ps(a, _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), _mm256_permute_ps(a, 0xb1));
    a = _mm256_fmadd_ps(a, _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1), _mm256_permute_ps(a, 0x4e));
    return _mm256_fmadd_ps(a, _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1), _mm256_permute2f128_ps(a, a, 1));
}

static inline float v_hsum(vf a)
{
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}

static inline float v_hmax(vf a)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}

static inline vf v_mask_from(vf a, size_t limit, size_t lane0)
{
    int n = limit <= lane0 ? 0 : limit - lane0 >= VN ? VN : (int) (limit - lane0);
    __m256i lanes = _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_blendv_ps(_mm256_set1_ps(-__builtin_inff()), a, _mm256_castsi256_ps(lanes));
}

static inline vf v_load_bf16(const uint16_t *x)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) x)), 16));
}

static inline void v_store_bf16(uint16_t *y, vf x)
{
    __m256i b = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(b, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(b, _mm256_set1_epi32(0x400000)); /* a NaN stays one */
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    b = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    b = _mm256_permute4x64_epi64(_mm256_packus_epi32(b, b), 0x08); /* lanes 0 and 2 hold the eight values */
    _mm_storeu_si128((__m128i *) y, _mm256_castsi256_si128(b));
}

static inline vf v_load_f16(const uint16_t *x) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) x)); }

#include "cpu/kernels_impl.h"

const qr_kernels *const qr_kernels_avx2 = &table;
#else
const qr_kernels *const qr_kernels_avx2 = NULL;
#endif
