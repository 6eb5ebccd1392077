/* Widening of stored weights, by way of a small aligned buffer: tensors may begin at any byte of a file. */
#include "cpu/tensor_f32.h"

#include "cpu/kernels.h"

#include <string.h>

void qr_tensor_f32(float *to, const qr_tensor *tensor, size_t first, size_t n)
{
    const qr_kernels *k = qr_kernels_get();
    const unsigned char *from = tensor->data + first * qr_tensor_type_size(tensor->type);
    uint16_t part[256];
    if (tensor->type == QR_T_F32) {
        memcpy(to, from, n * sizeof *to);
        return;
    }
    for (size_t i = 0; i < n; i += 256) {
        size_t m = n - i < 256 ? n - i : 256;
        memcpy(part, from + 2 * i, 2 * m);
        (tensor->type == QR_T_BF16 ? k->widen_bf16 : k->widen_f16)(to + i, part, m);
    }
}
