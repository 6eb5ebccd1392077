/* A named array of numbers as a file stores it: its type, shape and bytes. */
#ifndef QR_MODEL_TENSOR_H
#define QR_MODEL_TENSOR_H

#include <stddef.h>

typedef enum qr_tensor_type { /* as stored; the name in the file is the same text */
                              QR_T_F64,
                              QR_T_F32,
                              QR_T_F16,
                              QR_T_BF16,
                              QR_T_I64,
                              QR_T_I32,
                              QR_T_I16,
                              QR_T_I8,
                              QR_T_U64,
                              QR_T_U32,
                              QR_T_U16,
                              QR_T_U8,
                              QR_T_BOOL,
                              QR_T_F8_E4M3,
                              QR_T_F8_E5M2,
                              QR_T_F8_E8M0,
                              /* GGUF's: blocks of 32 or 256 elements of a row, each with its own scale (blocks.h) */
                              QR_T_Q4_0,
                              QR_T_Q4_1,
                              QR_T_Q5_0,
                              QR_T_Q5_1,
                              QR_T_Q8_0,
                              QR_T_Q2_K,
                              QR_T_Q3_K,
                              QR_T_Q4_K,
                              QR_T_Q5_K,
                              QR_T_Q6_K,
                              QR_T_IQ4_NL,
                              QR_T_IQ4_XS,
                              QR_N_TENSOR_TYPES,
} qr_tensor_type;
const char *qr_tensor_type_name(qr_tensor_type type);
/* Elements of a block and its bytes: 1 and the element's bytes for types without blocks. */
size_t qr_tensor_type_block(qr_tensor_type type);
size_t qr_tensor_type_size(qr_tensor_type type);
/* Of n elements, which are whole blocks. */
size_t qr_tensor_type_bytes(qr_tensor_type type, size_t n_elements);

enum { QR_TENSOR_MAX_DIMS = 8 };

/* How stored numbers become weights, where their type alone does not tell. */
typedef enum qr_tensor_form { QR_FORM_BY_TYPE, QR_FORM_FP8, QR_FORM_GPTQ, QR_FORM_AWQ } qr_tensor_form;

typedef struct qr_tensor {
    const char *name; /* owned by the checkpoint */
    qr_tensor_type type;
    int n_dims;
    size_t dims[QR_TENSOR_MAX_DIMS]; /* row-major, slowest first: a linear layer is [out, in] */
    size_t n_elements;
    const unsigned char *data; /* little-endian, whole blocks; no alignment is promised */
    size_t n_bytes;
    int shard; /* index of the file that holds it; -1: none does */
    /* Of quantised matrices, else NULL and 0: this module knows no names, it is weights.c that finds and checks them. Scales and biases
     * are F32, F16 or BF16.
     * I8: scales [rows, 1]; element [r, c] means data[r, c] * scales[r].
     * U32 with group > 0 (MLX affine): a row is a stream of `bits`-wide integers q, the first in the lowest bits of the first byte; scales
     * and biases are [rows, cols / group]; element [r, c] means q * scales[r, c / group] + biases[r, c / group]. dims and n_elements then
     * count these elements, n_bytes what is stored. */
    const struct qr_tensor *scales, *biases;
    unsigned bits, group;
    /* Forms, with dims and n_elements of the matrix [rows, cols] and one scale for each span[0] rows and span[1] columns:
     * FP8 (F8_E4M3): element [r, c] means data[r, c] * the scale of its place, [rows / span[0], cols / span[1]] rounded up.
     * GPTQ and AWQ (I32 words): element [r, c] means scales[g, r] * (q - z) with z of zeros[g, r] plus zero_add; g is order[c], or
     * c / span[1] where order is NULL. q of GPTQ is [cols, rows], `bits` wide, a word holding neighbours along cols, the first in its
     * lowest bits; its zeros are [groups, rows], packed along rows. AWQ packs both along rows, eight to a word in the order 0 2 4 6 1 3
     * 5 7. */
    qr_tensor_form form;
    const struct qr_tensor *zeros, *order;
    size_t span[2];
    int zero_add;
} qr_tensor;

/* Bytes in the file, with what lies beside it. */
size_t qr_tensor_stored_bytes(const qr_tensor *t);

#endif
