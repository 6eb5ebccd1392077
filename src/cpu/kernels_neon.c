/* Kernels for arm64, whose baseline has NEON with FMA and half-precision conversion. */
#include "cpu/kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#define KERNEL_NAME "neon"
enum { VN = 4, ROWS = 4 }; /* 4 x 4 sums, 4 loads, 1 broadcast: 21 of 32 registers */
typedef float32x4_t vf;

static inline vf v_load(const float *x) { return vld1q_f32(x); }
static inline void v_store(float *y, vf x) { vst1q_f32(y, x); }
static inline vf v_set1(float x) { return vdupq_n_f32(x); }
static inline vf v_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf v_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf v_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf v_div(vf a, vf b) { return vdivq_f32(a, b); }
static inline vf v_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline vf v_max(vf a, vf b) { return vmaxq_f32(a, b); }
static inline vf v_min(vf a, vf b) { return vminq_f32(a, b); }
static inline vf v_round(vf a) { return vrndnq_f32(a); }
/* The Hadamard transform of the lanes, unscaled. */
static inline vf v_hadamard(vf a)
{
    static const float by1[VN] = {1, -1, 1, -1}, by2[VN] = {1, 1, -1, -1};
    a = vfmaq_f32(vrev64q_f32(a), a, vld1q_f32(by1));
    return vfmaq_f32(vextq_f32(a, a, 2), a, vld1q_f32(by2));
}

static inline float v_hsum(vf a) { return vaddvq_f32(a); }
static inline float v_hmax(vf a) { return vmaxvq_f32(a); }
static inline vf v_ldexp(vf a, vf n)
{
    return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23)));
}
static inline vf v_reciprocal(vf a) { return vdivq_f32(vdupq_n_f32(1.0f), a); }

static inline vf v_mask_from(vf a, size_t limit, size_t lane0)
{
    static const uint32_t index[VN] = {0, 1, 2, 3};
    uint32_t n = limit <= lane0 ? 0 : limit - lane0 >= VN ? VN : (uint32_t) (limit - lane0);
    return vbslq_f32(vcltq_u32(vld1q_u32(index), vdupq_n_u32(n)), a, vdupq_n_f32(-__builtin_inff()));
}

static inline vf v_load_bf16(const uint16_t *x) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(x), 16)); }

static inline void v_store_bf16(uint16_t *y, vf x)
{
    uint32x4_t b = vreinterpretq_u32_f32(x);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(b, 16), vdupq_n_u32(1));
    uint32x4_t rounded = vaddq_u32(b, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    uint32x4_t number = vceqq_f32(x, x);
    vst1_u16(y, vshrn_n_u32(vbslq_u32(number, rounded, vorrq_u32(b, vdupq_n_u32(0x400000))), 16)); /* a NaN stays one */
}

static inline vf v_load_f16(const uint16_t *x) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x))); }

#include "cpu/kernels_impl.h"

const qr_kernels *const qr_kernels_neon = &table;
#else
const qr_kernels *const qr_kernels_neon = NULL;
#endif
