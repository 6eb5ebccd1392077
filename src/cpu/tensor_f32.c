/* Widening of stored weights, by way of a small aligned buffer: tensors may begin at any byte of a file. */
#include "cpu/tensor_f32.h"

#include "cpu/kernels.h"
#include "model/blocks.h"

#include <string.h>

/* value = integer * scale of its row, rounded once: the same f32 as in a file that holds the products. */
static void widen_i8(float *to, const qr_tensor *tensor, size_t first, size_t n)
{
    const signed char *from = (const signed char *) tensor->data;
    size_t cols = tensor->dims[1];
    for (size_t i = first, end = first + n; i < end;) {
        size_t row = i / cols, row_end = (row + 1) * cols < end ? (row + 1) * cols : end;
        float scale;
        qr_tensor_f32(&scale, tensor->scales, row, 1);
        for (; i < row_end; i++) *to++ = (float) from[i] * scale;
    }
}

/* Eight elements are `bits` whole bytes, and no group ends between them: cols and group are multiples of 32. */
static void widen_mlx(float *to, const qr_tensor *tensor, size_t first, size_t n)
{
    const unsigned bits = tensor->bits, mask = (1U << bits) - 1;
    for (size_t i = first, end = first + n; i < end;) {
        size_t g = i / tensor->group, group_end = (g + 1) * tensor->group < end ? (g + 1) * tensor->group : end;
        float scale, bias;
        qr_tensor_f32(&scale, tensor->scales, g, 1);
        qr_tensor_f32(&bias, tensor->biases, g, 1);
        while (i < group_end) {
            uint64_t eight = 0;
            memcpy(&eight, tensor->data + i / 8 * bits, bits);
            for (size_t k = i % 8; k < 8 && i < group_end; k++, i++) *to++ = (float) (eight >> k * bits & mask) * scale + bias;
        }
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
