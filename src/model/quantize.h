/* Numbers to fewer bits: the inverse of the formats' definitions. Every block's scale is searched for, so that the sum of
 * weight * (value - what the block decodes to)^2 is as small as the search finds, scales rounded to their stored type included.
 */
#ifndef QR_MODEL_QUANTIZE_H
#define QR_MODEL_QUANTIZE_H

#include "base/error.h"
#include "model/tensor.h"

#include <stdint.h>

/* 1 for F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K and Q6_K. */
int qr_can_quantize(qr_tensor_type type);

/* What one row becomes. Its length is a multiple of the type's block (of the group). */
typedef struct qr_quant_form {
    qr_tensor_type type;  /* or U32 with */
    unsigned bits, group; /* MLX's affine form, scales and biases in BF16 */
} qr_quant_form;

/* x [n], finite; weight [n], >= 0, or NULL: importance of each. data: qr_quant_row_bytes(form, n). scales, biases: [n / group] bf16, only
 * for U32. back [n]: what the row decodes to. */
void qr_quantize_row(const qr_quant_form *form, const float *x, const float *weight, size_t n, unsigned char *data, uint16_t *scales,
                     uint16_t *biases, float *back);
size_t qr_quant_row_bytes(const qr_quant_form *form, size_t n);

uint16_t qr_f16_of(float value); /* rounded to nearest even, not beyond the largest finite one */
float qr_f16_to_f32(uint16_t half);
uint16_t qr_bf16_of(float value); /* rounded to nearest even; not beyond the largest finite one */
float qr_bf16_to_f32(uint16_t half);

#endif
