/* GGUF's block types as f32: 32 or 256 elements of a row share a scale, and the 256 ones have 8 or 16 smaller blocks with scales of their
 * own. Bit for bit what ggml's reference and the gguf package compute: products of scales first, each operation rounded to f32. */
#ifndef QR_MODEL_BLOCKS_H
#define QR_MODEL_BLOCKS_H

#include "model/tensor.h"

enum { QR_BLOCK_MAX = 256 }; /* elements of the longest block */

/* 1 for the types from QR_T_Q4_0 on. */
int qr_is_block_type(qr_tensor_type type);
/* to [n_blocks * qr_tensor_type_block(type)] = n_blocks blocks, which may begin at any byte, of a block type, or of F32, F16 and BF16,
 * whose blocks are single numbers (qr_tensor_f32 reads those faster). */
void qr_blocks_f32(float *to, qr_tensor_type type, const unsigned char *blocks, size_t n_blocks);

#endif
