/* Stored tensors as f32. */
#ifndef QR_CPU_TENSOR_F32_H
#define QR_CPU_TENSOR_F32_H

#include "model/checkpoint.h"

/* to [n] = elements [first, first + n) of an F32, F16 or BF16 tensor, exact; of an I8 matrix with scales, each product rounded once; of a
 * matrix in MLX's affine form, products exact where the scales are 16-bit, the sum rounded once; of GGUF's block types (blocks.h)., or
 * in the other forms of tensor.h, each product rounded once. */
void qr_tensor_f32(float *to, const qr_tensor *tensor, size_t first, size_t n);

#endif
