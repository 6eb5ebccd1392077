/* A GGUF file, version 3, being written: keys and the list of tensors first, then their data at known places. Knows no models. */
#ifndef QR_MODEL_GGUF_WRITE_H
#define QR_MODEL_GGUF_WRITE_H

#include "base/buf.h"
#include "base/output.h"
#include "model/tensor.h"

enum { QR_GGUF_ALIGNMENT = 32 };

typedef struct qr_gguf_writer { /* all zero is empty */
    qr_buf keys, tensors;
    uint64_t n_keys, n_tensors;
    uint64_t data_bytes; /* of the tensors so far, padding included */
    uint64_t data_start; /* set by qr_gguf_write_head */
} qr_gguf_writer;

/* Memory that runs out is reported by qr_gguf_write_head. */
void qr_gguf_put_u32(qr_gguf_writer *gguf, const char *key, uint32_t value);
void qr_gguf_put_f32(qr_gguf_writer *gguf, const char *key, float value);
void qr_gguf_put_bool(qr_gguf_writer *gguf, const char *key, int value);
void qr_gguf_put_string(qr_gguf_writer *gguf, const char *key, const char *text, size_t len);
/* An array, to be followed by n calls of the next two. */
void qr_gguf_put_strings(qr_gguf_writer *gguf, const char *key, uint64_t n);
void qr_gguf_put_ints(qr_gguf_writer *gguf, const char *key, uint64_t n);
void qr_gguf_put_string_item(qr_gguf_writer *gguf, const char *text, size_t len);
void qr_gguf_put_int_item(qr_gguf_writer *gguf, int32_t value);

/* Declares a tensor, dims slowest first; *offset is where its data begin, from data_start. The type must be one of GGUF's. */
void qr_gguf_put_tensor(qr_gguf_writer *gguf, const char *name, qr_tensor_type type, int n_dims, const size_t *dims, uint64_t *offset);
/* Once all is declared. The file ends where the last tensor's padding does. */
qr_status qr_gguf_write_head(qr_gguf_writer *gguf, qr_output *out, qr_error *err);
void qr_gguf_writer_deinit(qr_gguf_writer *gguf);

#endif
