/* See quantize.h. Fields and bits are those of the formats' definitions: GGUF's blocks, MLX's affine groups. */
#include "model/quantize.h"

#include "model/quantize_fit.h"

#include <float.h>
#include <string.h>

uint16_t qr_bf16_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    return (uint16_t) ((rounded & 0x7F80) == 0x7F80 ? (rounded & 0x8000) | 0x7F7F : rounded);
}

float qr_bf16_to_f32(uint16_t half)
{
    uint32_t bits = (uint32_t) half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

uint16_t qr_f16_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t) (bits >> 16 & 0x8000);
    float size = value < 0 ? -value : value;
    if (!(size < 65504.0f)) return sign | 0x7BFF;
    if (size < 0x1p-14f) { /* subnormal: whole steps of 2^-24, rounded to even by the addition */
        float shifted = size * 0x1p24f + 0x1p23f;
        memcpy(&bits, &shifted, sizeof bits);
        return (uint16_t) (sign | (bits & 0x7FF));
    }
    memcpy(&bits, &size, sizeof bits);
    uint32_t rounded = bits + 0xFFF + (bits >> 13 & 1);
    return (uint16_t) (sign | ((rounded >> 13) - (112U << 10)));
}

float qr_f16_to_f32(uint16_t half)
{
    uint32_t bits = (uint32_t) (half & 0x7FFF) << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f; /* moves the exponent's bias; exact, for subnormals too */
    return half & 0x8000 ? -value : value;
}

int qr_can_quantize(qr_tensor_type type)
{
    switch (type) {
    case QR_T_F32:
    case QR_T_F16:
    case QR_T_BF16:
    case QR_T_Q8_0:
    case QR_T_Q4_0:
    case QR_T_Q4_1:
    case QR_T_Q5_0:
    case QR_T_Q5_1:
    case QR_T_Q2_K:
    case QR_T_Q3_K:
    case QR_T_Q4_K:
    case QR_T_Q5_K:
    case QR_T_Q6_K:
        return 1;
    default:
        return 0;
    }
}

static void put16(unsigned char *out, uint16_t v)
{
    out[0] = (unsigned char) v;
    out[1] = (unsigned char) (v >> 8);
}

/* Blocks of 32 with one scale: Q4_0, Q5_0 (stored with 2^(bits-1) added) and Q8_0. */
static void pack_symmetric(int bits, const float *x, const float *w, unsigned char *out, float *back)
{
    float q[32], low = bits == 8 ? -127.0f : (float) -(1 << (bits - 1)), high = bits == 8 ? 127.0f : -low - 1;
    uint16_t half;
    qr_fit_symmetric(x, w, 32, low, high, &half, q);
    put16(out, half);
    uint32_t fifth = 0;
    unsigned u[32];
    for (int i = 0; i < 32; i++) {
        back[i] = qr_f16_to_f32(half) * q[i];
        u[i] = (unsigned) ((int) q[i] - (bits == 8 ? 0 : (int) low));
        fifth |= (u[i] >> 4 & 1) << i;
    }
    out += 2;
    if (bits == 8) {
        for (int i = 0; i < 32; i++) out[i] = (unsigned char) u[i];
        return;
    }
    if (bits == 5) {
        put16(out, (uint16_t) fifth);
        put16(out + 2, (uint16_t) (fifth >> 16));
        out += 4;
    }
    for (int i = 0; i < 16; i++) out[i] = (unsigned char) ((u[i] & 15) | (u[i + 16] & 15) << 4);
}

/* Blocks of 32 with a scale and an offset: Q4_1, Q5_1. */
static void pack_affine(int bits, const float *x, const float *w, unsigned char *out, float *back)
{
    float q[32];
    uint16_t d, m;
    unsigned u[32];
    uint32_t fifth = 0;
    qr_fit_affine(x, w, 32, (float) ((1 << bits) - 1), qr_f16_of, qr_f16_to_f32, &d, &m, q);
    put16(out, d);
    put16(out + 2, m);
    out += 4;
    for (int i = 0; i < 32; i++) {
        back[i] = qr_f16_to_f32(d) * q[i] + qr_f16_to_f32(m);
        u[i] = (unsigned) q[i];
        fifth |= (u[i] >> 4 & 1) << i;
    }
    if (bits == 5) {
        put16(out, (uint16_t) fifth);
        put16(out + 2, (uint16_t) (fifth >> 16));
        out += 4;
    }
    for (int i = 0; i < 16; i++) out[i] = (unsigned char) ((u[i] & 15) | (u[i + 16] & 15) << 4);
}

/* Q4_K and Q5_K: d, dmin, eight 6-bit scales and minima in 12 bytes, a fifth bit each, four bits each. */
static void pack_k45(int bits, const float *x, const float *w, unsigned char *out, float *back)
{
    float scale[8], min[8], q[QR_SUPER];
    uint16_t d, dmin;
    qr_fit_super_affine(x, w, 8, (float) ((1 << bits) - 1), 63, &d, &dmin, scale, min, q);
    memset(out, 0, bits == 4 ? 144 : 176);
    put16(out, d);
    put16(out + 2, dmin);
    unsigned char *s = out + 4, *qh = out + 16, *qs = out + (bits == 4 ? 16 : 48);
    for (int k = 0; k < 8; k++) {
        unsigned sc = (unsigned) scale[k], mn = (unsigned) min[k];
        float step = qr_f16_to_f32(d) * scale[k], offset = qr_f16_to_f32(dmin) * min[k];
        if (k < 4) {
            s[k] |= (unsigned char) sc;
            s[k + 4] |= (unsigned char) mn;
        } else {
            s[k + 4] = (unsigned char) ((sc & 15) | (mn & 15) << 4);
            s[k - 4] |= (unsigned char) (sc >> 4 << 6);
            s[k] |= (unsigned char) (mn >> 4 << 6);
        }
        for (int i = 0; i < 32; i++) {
            unsigned u = (unsigned) q[32 * k + i];
            back[32 * k + i] = step * q[32 * k + i] - offset;
            qs[32 * (k / 2) + i] |= (unsigned char) ((u & 15) << (k % 2 * 4));
            if (bits == 5) qh[i] |= (unsigned char) (u >> 4 << k);
        }
    }
}

/* Sixteen 4-bit scales and minima, two bits each, d and dmin at the end. */
static void pack_q2_k(const float *x, const float *w, unsigned char *out, float *back)
{
    float scale[16], min[16], q[QR_SUPER];
    uint16_t d, dmin;
    qr_fit_super_affine(x, w, 16, 3, 15, &d, &dmin, scale, min, q);
    memset(out, 0, 84);
    for (int k = 0; k < 16; k++) out[k] = (unsigned char) ((unsigned) scale[k] | (unsigned) min[k] << 4);
    for (int i = 0; i < QR_SUPER; i++) {
        int half = i / 128, shift = i % 128 / 32 * 2;
        float step = qr_f16_to_f32(d) * scale[i / 16], offset = qr_f16_to_f32(dmin) * min[i / 16];
        out[16 + 32 * half + i % 32] |= (unsigned char) ((unsigned) q[i] << shift);
        back[i] = step * q[i] - offset;
    }
    put16(out + 80, d);
    put16(out + 82, dmin);
}

/* A third bit each, two bits each, sixteen 6-bit scales with 32 added in 12 bytes (low four bits, then two high ones), d. */
static void pack_q3_k(const float *x, const float *w, unsigned char *out, float *back)
{
    float scale[16], q[QR_SUPER];
    uint16_t d;
    qr_fit_super_symmetric(x, w, 16, -4, 32, &d, scale, q);
    memset(out, 0, 110);
    unsigned char *qs = out + 32, *s = out + 96;
    for (int i = 0; i < QR_SUPER; i++) {
        unsigned u = (unsigned) ((int) q[i] + 4);
        int half = i / 128, part = i % 128 / 32;
        float step = qr_f16_to_f32(d) * scale[i / 16];
        qs[32 * half + i % 32] |= (unsigned char) ((u & 3) << 2 * part);
        out[i % 32] |= (unsigned char) (u >> 2 << (4 * half + part));
        back[i] = step * q[i];
    }
    for (int k = 0; k < 16; k++) {
        unsigned sc = (unsigned) ((int) scale[k] + 32);
        s[k % 8] |= (unsigned char) ((sc & 15) << (k / 8 * 4));
        s[8 + k % 4] |= (unsigned char) (sc >> 4 << (k / 4 * 2));
    }
    put16(out + 108, d);
}

/* Four low bits each, two high bits each, sixteen signed bytes of scales, d; 32 is added. */
static void pack_q6_k(const float *x, const float *w, unsigned char *out, float *back)
{
    float scale[16], q[QR_SUPER];
    uint16_t d;
    qr_fit_super_symmetric(x, w, 16, -32, 128, &d, scale, q);
    memset(out, 0, 210);
    for (int i = 0; i < QR_SUPER; i++) {
        unsigned u = (unsigned) ((int) q[i] + 32);
        int half = i / 128, part = i % 128 / 32, l = i % 32;
        float step = qr_f16_to_f32(d) * scale[i / 16];
        out[64 * half + 32 * (part % 2) + l] |= (unsigned char) ((u & 15) << (part / 2 * 4));
        out[128 + 32 * half + l] |= (unsigned char) (u >> 4 << 2 * part);
        back[i] = step * q[i];
    }
    for (int k = 0; k < 16; k++) out[192 + k] = (unsigned char) (int) scale[k];
    put16(out + 208, d);
}

static void pack_mlx(unsigned bits, size_t group, const float *x, const float *w, unsigned char *out, uint16_t *scale, uint16_t *bias,
                     float *back)
{
    float q[128];
    qr_fit_affine(x, w, group, (float) ((1U << bits) - 1), qr_bf16_of, qr_bf16_to_f32, scale, bias, q);
    for (size_t i = 0; i < group; i += 8) { /* eight of them are `bits` whole bytes */
        uint64_t eight = 0;
        for (size_t k = 0; k < 8; k++) {
            eight |= (uint64_t) q[i + k] << k * bits;
            back[i + k] = qr_bf16_to_f32(*scale) * q[i + k] + qr_bf16_to_f32(*bias);
        }
        memcpy(out + i / 8 * bits, &eight, bits);
    }
}

static void pack(qr_tensor_type type, const float *x, const float *w, unsigned char *out, float *back)
{
    switch (type) {
    case QR_T_Q8_0:
        pack_symmetric(8, x, w, out, back);
        break;
    case QR_T_Q5_0:
        pack_symmetric(5, x, w, out, back);
        break;
    case QR_T_Q4_0:
        pack_symmetric(4, x, w, out, back);
        break;
    case QR_T_Q5_1:
        pack_affine(5, x, w, out, back);
        break;
    case QR_T_Q4_1:
        pack_affine(4, x, w, out, back);
        break;
    case QR_T_Q2_K:
        pack_q2_k(x, w, out, back);
        break;
    case QR_T_Q3_K:
        pack_q3_k(x, w, out, back);
        break;
    case QR_T_Q4_K:
        pack_k45(4, x, w, out, back);
        break;
    case QR_T_Q5_K:
        pack_k45(5, x, w, out, back);
        break;
    default:
        pack_q6_k(x, w, out, back);
    }
}

size_t qr_quant_row_bytes(const qr_quant_form *form, size_t n)
{
    return form->group > 0 ? n / 8 * form->bits : qr_tensor_type_bytes(form->type, n);
}

void qr_quantize_row(const qr_quant_form *form, const float *x, const float *weight, size_t n, unsigned char *data, uint16_t *scales,
                     uint16_t *biases, float *back)
{
    float ones[QR_SUPER];
    for (size_t i = 0; i < QR_SUPER; i++) ones[i] = 1;
    if (form->group > 0) {
        for (size_t g = 0; g < n / form->group; g++) {
            size_t at = g * form->group;
            pack_mlx(form->bits, form->group, x + at, weight != NULL ? weight + at : ones, data + at / 8 * form->bits, &scales[g],
                     &biases[g], back + at);
        }
        return;
    }
    if (form->type == QR_T_F32) {
        memcpy(data, x, n * sizeof *x);
        memcpy(back, x, n * sizeof *x);
        return;
    }
    if (form->type == QR_T_F16 || form->type == QR_T_BF16) {
        int bf16 = form->type == QR_T_BF16;
        for (size_t i = 0; i < n; i++) {
            uint16_t half = bf16 ? qr_bf16_of(x[i]) : qr_f16_of(x[i]);
            put16(data + 2 * i, half);
            back[i] = bf16 ? qr_bf16_to_f32(half) : qr_f16_to_f32(half);
        }
        return;
    }
    size_t block = qr_tensor_type_block(form->type), size = qr_tensor_type_size(form->type);
    for (size_t i = 0; i < n; i += block) pack(form->type, x + i, weight != NULL ? weight + i : ones, data + i / block * size, back + i);
}
