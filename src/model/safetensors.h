/* Checkpoints in safetensors form: one file, or shards with an index. Files are mapped read-only; tensors are borrowed from the map.
 * The header is hostile input: every length, offset, shape and type is checked before anything uses it. Knows no tensor names.
 */
#ifndef QR_MODEL_SAFETENSORS_H
#define QR_MODEL_SAFETENSORS_H

#include "base/file.h"

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
} qr_tensor_type;
const char *qr_tensor_type_name(qr_tensor_type type);
size_t qr_tensor_type_size(qr_tensor_type type); /* bytes per element */

enum { QR_TENSOR_MAX_DIMS = 8 };

typedef struct qr_tensor {
    const char *name; /* owned by the checkpoint */
    qr_tensor_type type;
    int n_dims;
    size_t dims[QR_TENSOR_MAX_DIMS]; /* row-major, slowest first: a linear layer is [out, in] */
    size_t n_elements;
    const unsigned char *data; /* little-endian, n_elements * type size bytes; no alignment is promised */
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
} qr_tensor;

typedef struct qr_checkpoint {
    qr_tensor *tensors; /* [n_tensors], sorted by name */
    size_t n_tensors;
    struct qr_shard {
        char *path;
        char *names; /* of its tensors, one after another */
        qr_file file;
    } * shards; /* [n_shards] */
    size_t n_shards;
} qr_checkpoint;

/* Opens model.safetensors.index.json with its shards if it exists in `dir`, else model.safetensors. */
qr_status qr_checkpoint_open(qr_checkpoint *ckpt, const char *dir, qr_error *err);
/* One file in memory that outlives the checkpoint; `name` is only for messages. */
qr_status qr_checkpoint_open_memory(qr_checkpoint *ckpt, const void *data, size_t size, const char *name, qr_error *err);
void qr_checkpoint_close(qr_checkpoint *ckpt);
/* By exact name; NULL if absent. */
const qr_tensor *qr_checkpoint_find(const qr_checkpoint *ckpt, const char *name);
/* The tensor's pages may leave memory, see qr_file_release. */
void qr_checkpoint_release(const qr_checkpoint *ckpt, const qr_tensor *tensor);

#endif
