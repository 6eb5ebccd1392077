/* Widening of stored weights, by way of a small aligned buffer: tensors may begin at any byte of a file. */
#include "cpu/tensor_f32.h"

#include "cpu/kernels.h"

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

void qr_tensor_f32(float *to, const qr_tensor *tensor, size_t first, size_t n)
{
    const qr_kernels *k = qr_kernels_get();
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
    for (size_t i = 0; i < n; i += 256) {
        size_t m = n - i < 256 ? n - i : 256;
        memcpy(part, from + 2 * i, 2 * m);
        (tensor->type == QR_T_BF16 ? k->widen_bf16 : k->widen_f16)(to + i, part, m);
    }
}
