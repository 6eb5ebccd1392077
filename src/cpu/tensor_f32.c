/* Widening of stored weights, by way of a small aligned buffer: tensors may begin at any byte of a file. */
#include "cpu/tensor_f32.h"

#include "cpu/kernels.h"
#include "model/blocks.h"

#include <string.h>

enum { MAX_GROUP = 128 }; /* of MLX */

/* value = integer * scale of its row, rounded once: the same f32 as in a file that holds the products. */
static void widen_i8(float *to, const qr_tensor *tensor, size_t first, size_t n)
{
    const int8_t *from = (const int8_t *) tensor->data;
    size_t cols = tensor->dims[1];
    for (size_t i = first, end = first + n; i < end;) {
        size_t row = i / cols, row_end = (row + 1) * cols < end ? (row + 1) * cols : end;
        float scale;
        qr_tensor_f32(&scale, tensor->scales, row, 1);
        qr_kernels_get()->scale_i8(to, from + i, row_end - i, scale);
        to += row_end - i;
        i = row_end;
    }
}

/* to [n] = integers of a stream of `bits`-wide ones, the first in the lowest bits, from number `first` on. Eight of them are `bits` whole
 * bytes; the stream ends with such eight. */
static void unpack(uint8_t *to, const unsigned char *stream, unsigned bits, size_t first, size_t n)
{
    const uint64_t mask = (1U << bits) - 1;
    stream += first / 8 * bits;
    for (size_t skip = first % 8; n > 0; skip = 0, stream += bits) {
        uint64_t eight = 0;
        if (bits == 4 && skip == 0 && n >= 8) {
            uint32_t x;
            memcpy(&x, stream, sizeof x);
            eight = ((uint64_t) x | (uint64_t) x << 16) & 0x0000FFFF0000FFFF;
            eight = (eight | eight << 8) & 0x00FF00FF00FF00FF;
            eight = (eight | eight << 4) & 0x0F0F0F0F0F0F0F0F;
            memcpy(to, &eight, sizeof eight);
            to += 8;
            n -= 8;
            continue;
        }
        memcpy(&eight, stream, bits);
        for (size_t k = skip; k < 8 && n > 0; k++, n--) *to++ = (uint8_t) (eight >> k * bits & mask);
    }
}

/* No eight elements lie in two groups: cols and group are multiples of 32. */
static void widen_mlx(float *to, const qr_tensor *tensor, size_t first, size_t n)
{
    uint8_t part[MAX_GROUP];
    for (size_t i = first, end = first + n; i < end;) {
        size_t g = i / tensor->group, group_end = (g + 1) * tensor->group < end ? (g + 1) * tensor->group : end, m = group_end - i;
        float scale, bias;
        qr_tensor_f32(&scale, tensor->scales, g, 1);
        qr_tensor_f32(&bias, tensor->biases, g, 1);
        const uint8_t *q = tensor->bits == 8 ? tensor->data + i : part;
        if (tensor->bits != 8) unpack(part, tensor->data, tensor->bits, i, m);
        qr_kernels_get()->affine_u8(to, q, m, scale, bias);
        to += m;
        i = group_end;
    }
}

/* 4 bits of exponent with bias 7 and 3 of mantissa; the two NaNs have been refused. */
static float from_e4m3(unsigned char x)
{
    uint32_t bits = (uint32_t) (x & 0x80) << 24 | (uint32_t) (x & 0x7f) << 20; /* f32's fields, with an exponent 120 too small */
    float f;
    memcpy(&f, &bits, sizeof f);
    return f * 0x1p120f; /* exact, also for what is subnormal in either type */
}

/* Products rounded once. */
static void widen_fp8(float *to, const qr_tensor *tensor, size_t first, size_t n)
{
    size_t cols = tensor->dims[1], per_row = (cols + tensor->span[1] - 1) / tensor->span[1];
    for (size_t i = first, end = first + n; i < end;) {
        size_t row = i / cols, c = i % cols, part = tensor->span[1] - c % tensor->span[1];
        if (part > cols - c) part = cols - c;
        if (part > end - i) part = end - i;
        float scale;
        qr_tensor_f32(&scale, tensor->scales, row / tensor->span[0] * per_row + c / tensor->span[1], 1);
        for (size_t k = 0; k < part; k++) *to++ = from_e4m3(tensor->data[i++]) * scale;
    }
}

static uint32_t word_at(const qr_tensor *t, size_t i)
{
    uint32_t word;
    memcpy(&word, t->data + 4 * i, sizeof word);
    return word;
}

/* GPTQ and AWQ: down a column of the words of one output. The neighbouring outputs of a block find the same cache lines. */
static void widen_columns(float *to, const qr_tensor *t, size_t first, size_t n)
{
    static const unsigned char awq_place[8] = {0, 4, 1, 5, 2, 6, 3, 7}; /* of output i among the eight of a word */
    const size_t rows = t->dims[0], cols = t->dims[1], bits = t->bits, per_word = 32 / bits;
    const uint32_t mask = (1U << bits) - 1;
    const int awq = t->form == QR_FORM_AWQ;
    size_t group = SIZE_MAX, last_row = SIZE_MAX;
    float scale = 0;
    int32_t zero = 0;
    for (size_t i = first; i < first + n; i++) {
        size_t row = i / cols, c = i % cols, g = t->order != NULL ? word_at(t->order, c) : c / t->span[1];
        size_t row_shift = bits * (awq ? awq_place[row % 8] : row % per_word);
        if (g != group || row != last_row) {
            qr_tensor_f32(&scale, t->scales, g * rows + row, 1);
            zero = (int32_t) (word_at(t->zeros, g * (rows / per_word) + row / per_word) >> row_shift & mask) + t->zero_add;
            group = g;
            last_row = row;
        }
        uint32_t q = awq ? word_at(t, c * (rows / 8) + row / 8) >> row_shift : word_at(t, c / per_word * rows + row) >> c % per_word * bits;
        *to++ = (float) ((int32_t) (q & mask) - zero) * scale;
    }
}

/* Rows are whole blocks, so blocks can be counted through the tensor. The first and the last may be taken in part. */
static void widen_blocks(float *to, const qr_tensor *tensor, size_t first, size_t n)
{
    const size_t block = qr_tensor_type_block(tensor->type), size = qr_tensor_type_size(tensor->type);
    float part[QR_BLOCK_MAX];
    while (n > 0) {
        size_t skip = first % block, m = n / block * block;
        const unsigned char *from = tensor->data + first / block * size;
        if (skip == 0 && m > 0) {
            qr_blocks_f32(to, tensor->type, from, m / block);
        } else {
            m = block - skip < n ? block - skip : n;
            qr_blocks_f32(part, tensor->type, from, 1);
            memcpy(to, part + skip, m * sizeof *to);
        }
        to += m;
        first += m;
        n -= m;
    }
}

void qr_tensor_f32(float *to, const qr_tensor *tensor, size_t first, size_t n)
{
    const qr_kernels *k = qr_kernels_get();
    if (qr_is_block_type(tensor->type)) {
        widen_blocks(to, tensor, first, n);
        return;
    }
    if (tensor->form == QR_FORM_FP8) {
        widen_fp8(to, tensor, first, n);
        return;
    }
    if (tensor->form != QR_FORM_BY_TYPE) {
        widen_columns(to, tensor, first, n);
        return;
    }
    const unsigned char *from = tensor->data + first * qr_tensor_type_size(tensor->type);
    uint16_t part[256];
    if (tensor->type == QR_T_F32) {
        memcpy(to, from, n * sizeof *to);
        return;
    }
    if (tensor->type == QR_T_I8) {
        widen_i8(to, tensor, first, n);
        return;
    }
    if (tensor->group > 0) {
        widen_mlx(to, tensor, first, n);
        return;
    }
    for (size_t i = 0; i < n; i += 256) {
        size_t m = n - i < 256 ? n - i : 256;
        memcpy(part, from + 2 * i, 2 * m);
        (tensor->type == QR_T_BF16 ? k->widen_bf16 : k->widen_f16)(to + i, part, m);
    }
}
