/* Kernels in plain C: the variant for machines without a faster one, and the yardstick that the others are tested against. */
#include "cpu/kernels.h"

#define KERNEL_NAME "scalar"
enum { VN = 1, ROWS = 2 };
typedef float vf;

static inline vf v_load(const float *x) { return *x; }
static inline void v_store(float *y, vf x) { *y = x; }
static inline vf v_set1(float x) { return x; }
static inline vf v_add(vf a, vf b) { return a + b; }
static inline vf v_sub(vf a, vf b) { return a - b; }
static inline vf v_mul(vf a, vf b) { return a * b; }
static inline vf v_div(vf a, vf b) { return a / b; }
static inline vf v_fma(vf a, vf b, vf c) { return a * b + c; } /* two roundings: fmaf() without hardware is a slow library call */
static inline vf v_max(vf a, vf b) { return a > b ? a : b; }
static inline vf v_min(vf a, vf b) { return a < b ? a : b; }
static inline vf v_hadamard(vf a) { return a; }
static inline float v_hsum(vf a) { return a; }
static inline float v_hmax(vf a) { return a; }
static inline vf v_round(vf a) { return __builtin_rintf(a); }
static inline vf v_mask_from(vf a, size_t limit, size_t lane0) { return lane0 < limit ? a : -__builtin_inff(); }

static inline float from_bits(uint32_t bits)
{
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t to_bits(float x)
{
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline vf v_ldexp(vf a, vf n) { return a * from_bits((uint32_t) ((int32_t) n + 127) << 23); }
static inline vf v_reciprocal(vf a) { return 1.0f / a; }
static inline vf v_load_bf16(const uint16_t *x) { return from_bits((uint32_t) *x << 16); }

static inline void v_store_bf16(uint16_t *y, vf x)
{
    uint32_t b = to_bits(x);
    if (x != x) b |= 0x400000; /* a NaN stays one: rounding up could carry into infinity */
    else b += 0x7fff + ((b >> 16) & 1);
    *y = (uint16_t) (b >> 16);
}

static inline vf v_load_f16(const uint16_t *x)
{
    uint32_t h = *x, sign = (h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    if (exponent == 31) return from_bits(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0) {
        float magnitude = (float) mantissa * 0x1p-24f; /* zero and subnormals, exact */
        return sign ? -magnitude : magnitude;
    }
    return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

#include "cpu/kernels_impl.h"

const qr_kernels *const qr_kernels_scalar = &table;
