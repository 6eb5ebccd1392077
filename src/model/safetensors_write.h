/* A safetensors file being written: the header first, then the tensors' data at known places. */
#ifndef QR_MODEL_SAFETENSORS_WRITE_H
#define QR_MODEL_SAFETENSORS_WRITE_H

#include "base/buf.h"
#include "base/output.h"
#include "model/tensor.h"

typedef struct qr_safetensors_writer { /* all zero is empty */
    qr_buf header;
    uint64_t data_bytes; /* of the tensors so far */
    uint64_t data_start; /* set by qr_safetensors_write_head */
} qr_safetensors_writer;

/* `format`: what __metadata__ says, "pt" or "mlx". */
void qr_safetensors_begin(qr_safetensors_writer *file, const char *format);
/* Declares a tensor; *offset is where its data begin, from data_start. Readers expect wider types first, then the order of names. */
void qr_safetensors_tensor(qr_safetensors_writer *file, const char *name, qr_tensor_type type, int n_dims, const size_t *dims,
                           uint64_t *offset);
qr_status qr_safetensors_write_head(qr_safetensors_writer *file, qr_output *out, qr_error *err);
/* A header that is there already, in full. */
qr_status qr_safetensors_write_header(qr_output *out, const char *header, size_t len, uint64_t *data_start, qr_error *err);
void qr_safetensors_writer_deinit(qr_safetensors_writer *file);

#endif
