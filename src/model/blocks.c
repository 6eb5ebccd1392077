/* See blocks.h. In every type, low bits come before high ones: a byte's low nibble belongs to the first half of what its group holds. */
#include "model/blocks.h"

#include <stdint.h>
#include <string.h>

/* The non-linear 4-bit types' values, fixed by the format. */
static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* Subnormals, infinities and NaN too: the exponent is moved by a multiplication, which is exact. */
static float f16(const unsigned char *p)
{
    uint32_t half = (uint32_t) p[0] | (uint32_t) p[1] << 8, bits = (half & 0x7FFF) << 13, sign = (half & 0x8000) << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    x *= 0x1p112f;
    memcpy(&bits, &x, sizeof x);
    if ((half & 0x7C00) == 0x7C00) bits |= 0x7F800000;
    bits |= sign;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static void one_f32(float *to, const unsigned char *b) { memcpy(to, b, sizeof *to); }
static void one_f16(float *to, const unsigned char *b) { *to = f16(b); }

static void one_bf16(float *to, const unsigned char *b)
{
    const unsigned char wide[4] = {0, 0, b[0], b[1]};
    memcpy(to, wide, sizeof *to);
}

static void q8_0(float *to, const unsigned char *b)
{
    float d = f16(b);
    for (int j = 0; j < 32; j++) to[j] = (float) (int8_t) b[2 + j] * d;
}

static void q4_0(float *to, const unsigned char *b)
{
    float d = f16(b);
    for (int j = 0; j < 16; j++) {
        to[j] = d * (float) ((b[2 + j] & 15) - 8);
        to[16 + j] = d * (float) ((b[2 + j] >> 4) - 8);
    }
}

static void q4_1(float *to, const unsigned char *b)
{
    float d = f16(b), m = f16(b + 2);
    for (int j = 0; j < 16; j++) {
        to[j] = d * (float) (b[4 + j] & 15) + m;
        to[16 + j] = d * (float) (b[4 + j] >> 4) + m;
    }
}

static uint32_t u32(const unsigned char *p)
{
    return (uint32_t) p[0] | (uint32_t) p[1] << 8 | (uint32_t) p[2] << 16 | (uint32_t) p[3] << 24;
}

static void q5_0(float *to, const unsigned char *b)
{
    float d = f16(b);
    uint32_t high = u32(b + 2);
    for (int j = 0; j < 16; j++) {
        to[j] = d * (float) ((int) ((b[6 + j] & 15U) | (high >> j & 1) << 4) - 16);
        to[16 + j] = d * (float) ((int) (b[6 + j] >> 4 | (high >> (j + 16) & 1) << 4) - 16);
    }
}

static void q5_1(float *to, const unsigned char *b)
{
    float d = f16(b), m = f16(b + 2);
    uint32_t high = u32(b + 4);
    for (int j = 0; j < 16; j++) {
        to[j] = d * (float) (int) ((b[8 + j] & 15U) | (high >> j & 1) << 4) + m;
        to[16 + j] = d * (float) (int) (b[8 + j] >> 4 | (high >> (j + 16) & 1) << 4) + m;
    }
}

/* scales[16] (4 bits of scale, 4 of minimum), q[64], d, dmin. */
static void q2_k(float *to, const unsigned char *b)
{
    float d = f16(b + 80), dmin = f16(b + 82);
    for (int g = 0; g < 16; g++) { /* 16 elements each: two halves, in each four fields of 32 bytes */
        const unsigned char *q = b + 16 + g / 8 * 32 + g % 2 * 16;
        int shift = g % 8 / 2 * 2;
        float scale = d * (float) (b[g] & 15), min = dmin * (float) (b[g] >> 4);
        for (int j = 0; j < 16; j++) to[16 * g + j] = scale * (float) (q[j] >> shift & 3) - min;
    }
}

/* hmask[32], q[64], scales[12] (16 of 6 bits, minus 32), d. The mask's bit is 1 where nothing is taken off. */
static void q3_k(float *to, const unsigned char *b)
{
    const unsigned char *s = b + 96;
    float d = f16(b + 108);
    for (int g = 0; g < 16; g++) {
        const unsigned char *q = b + 32 + g / 8 * 32 + g % 2 * 16, *mask = b + g % 2 * 16;
        int shift = g % 8 / 2 * 2, bit = g / 2;
        int six = (s[g % 8] >> g / 8 * 4 & 15) | (s[8 + g % 4] >> g / 4 * 2 & 3) << 4;
        float scale = d * (float) (six - 32);
        for (int j = 0; j < 16; j++) to[16 * g + j] = scale * (float) ((q[j] >> shift & 3) - ((mask[j] >> bit & 1) ^ 1) * 4);
    }
}

/* Scale and minimum `g` of eight, 6 bits each in 12 bytes. */
static void scale_min(const unsigned char *s, int g, float *scale, float *min)
{
    *scale = (float) (g < 4 ? s[g] & 63 : (s[g + 4] & 15) | s[g - 4] >> 6 << 4);
    *min = (float) (g < 4 ? s[g + 4] & 63 : s[g + 4] >> 4 | s[g] >> 6 << 4);
}

/* d, dmin, scales[12], q[128]. */
static void q4_k(float *to, const unsigned char *b)
{
    float d = f16(b), dmin = f16(b + 2), scale, min;
    for (int g = 0; g < 8; g++) {
        const unsigned char *q = b + 16 + g / 2 * 32;
        int shift = g % 2 * 4;
        scale_min(b + 4, g, &scale, &min);
        scale *= d;
        min *= dmin;
        for (int j = 0; j < 32; j++) to[32 * g + j] = scale * (float) (q[j] >> shift & 15) - min;
    }
}

/* d, dmin, scales[12], high[32], q[128]. */
static void q5_k(float *to, const unsigned char *b)
{
    float d = f16(b), dmin = f16(b + 2), scale, min;
    for (int g = 0; g < 8; g++) {
        const unsigned char *q = b + 48 + g / 2 * 32, *high = b + 16;
        int shift = g % 2 * 4;
        scale_min(b + 4, g, &scale, &min);
        scale *= d;
        min *= dmin;
        for (int j = 0; j < 32; j++) to[32 * g + j] = scale * (float) ((q[j] >> shift & 15) | (high[j] >> g & 1) << 4) - min;
    }
}

/* low[128], high[64], int8 scales[16], d. */
static void q6_k(float *to, const unsigned char *b)
{
    float d = f16(b + 208);
    for (int g = 0; g < 16; g++) { /* 16 elements each: two halves, in each four runs of 32 */
        int run = g % 8 / 2;
        const unsigned char *low = b + g / 8 * 64 + run % 2 * 32 + g % 2 * 16, *high = b + 128 + g / 8 * 32 + g % 2 * 16;
        float scale = d * (float) (int8_t) b[192 + g];
        for (int j = 0; j < 16; j++) to[16 * g + j] = scale * (float) (((low[j] >> run / 2 * 4 & 15) | (high[j] >> run * 2 & 3) << 4) - 32);
    }
}

static void iq4_nl(float *to, const unsigned char *b)
{
    float d = f16(b);
    for (int j = 0; j < 16; j++) {
        to[j] = d * (float) iq4_values[b[2 + j] & 15];
        to[16 + j] = d * (float) iq4_values[b[2 + j] >> 4];
    }
}

/* d, u16 high bits of eight 6-bit scales, their low nibbles[4], q[128]. */
static void iq4_xs(float *to, const unsigned char *b)
{
    float d = f16(b);
    unsigned high = b[2] | (unsigned) b[3] << 8;
    for (int g = 0; g < 8; g++) {
        const unsigned char *q = b + 8 + 16 * g;
        int six = (b[4 + g / 2] >> g % 2 * 4 & 15) | (int) (high >> 2 * g & 3) << 4;
        float scale = d * (float) (six - 32);
        for (int j = 0; j < 16; j++) {
            to[32 * g + j] = scale * (float) iq4_values[q[j] & 15];
            to[32 * g + 16 + j] = scale * (float) iq4_values[q[j] >> 4];
        }
    }
}

int qr_is_block_type(qr_tensor_type type) { return qr_tensor_type_block(type) > 1; }

void qr_blocks_f32(float *to, qr_tensor_type type, const unsigned char *blocks, size_t n_blocks)
{
    static void (*const decoders[QR_N_TENSOR_TYPES])(float *, const unsigned char *) = {
        [QR_T_F32] = one_f32, [QR_T_F16] = one_f16, [QR_T_BF16] = one_bf16, [QR_T_Q4_0] = q4_0,     [QR_T_Q4_1] = q4_1,
        [QR_T_Q5_0] = q5_0,   [QR_T_Q5_1] = q5_1,   [QR_T_Q8_0] = q8_0,     [QR_T_Q2_K] = q2_k,     [QR_T_Q3_K] = q3_k,
        [QR_T_Q4_K] = q4_k,   [QR_T_Q5_K] = q5_k,   [QR_T_Q6_K] = q6_k,     [QR_T_IQ4_NL] = iq4_nl, [QR_T_IQ4_XS] = iq4_xs,
    };
    size_t block = qr_tensor_type_block(type), size = qr_tensor_type_size(type);
    for (size_t i = 0; i < n_blocks; i++) decoders[type](to + i * block, blocks + i * size);
}
