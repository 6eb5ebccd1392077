/* See gguf_write.h. */
#include "model/gguf_write.h"

#include "base/mem.h"

#include <string.h>

enum { GGUF_U32 = 4, GGUF_I32 = 5, GGUF_F32 = 6, GGUF_BOOL = 7, GGUF_STRING = 8, GGUF_ARRAY = 9 };

/* Ids of types in files. 0, which is F32's, for those that GGUF has not. */
static const unsigned char type_ids[QR_N_TENSOR_TYPES] = {
    [QR_T_F32] = 0,   [QR_T_F16] = 1,   [QR_T_Q4_0] = 2,  [QR_T_Q4_1] = 3,  [QR_T_Q5_0] = 6,  [QR_T_Q5_1] = 7,  [QR_T_Q8_0] = 8,
    [QR_T_Q2_K] = 10, [QR_T_Q3_K] = 11, [QR_T_Q4_K] = 12, [QR_T_Q5_K] = 13, [QR_T_Q6_K] = 14, [QR_T_BF16] = 30,
};

static void put(qr_buf *buf, const void *data, size_t n) { qr_buf_add(buf, data, n); }
static void put_u32(qr_buf *buf, uint32_t v) { put(buf, &v, sizeof v); }
static void put_u64(qr_buf *buf, uint64_t v) { put(buf, &v, sizeof v); }

static void put_text(qr_buf *buf, const char *text, size_t len)
{
    put_u64(buf, len);
    put(buf, text, len);
}

static void put_key(qr_gguf_writer *gguf, const char *key, uint32_t type)
{
    gguf->n_keys++;
    put_text(&gguf->keys, key, strlen(key));
    put_u32(&gguf->keys, type);
}

void qr_gguf_put_u32(qr_gguf_writer *gguf, const char *key, uint32_t value)
{
    put_key(gguf, key, GGUF_U32);
    put_u32(&gguf->keys, value);
}

void qr_gguf_put_f32(qr_gguf_writer *gguf, const char *key, float value)
{
    put_key(gguf, key, GGUF_F32);
    put(&gguf->keys, &value, sizeof value);
}

void qr_gguf_put_bool(qr_gguf_writer *gguf, const char *key, int value)
{
    put_key(gguf, key, GGUF_BOOL);
    put(&gguf->keys, value ? "\1" : "\0", 1);
}

void qr_gguf_put_string(qr_gguf_writer *gguf, const char *key, const char *text, size_t len)
{
    put_key(gguf, key, GGUF_STRING);
    put_text(&gguf->keys, text, len);
}

static void put_array(qr_gguf_writer *gguf, const char *key, uint32_t type, uint64_t n)
{
    put_key(gguf, key, GGUF_ARRAY);
    put_u32(&gguf->keys, type);
    put_u64(&gguf->keys, n);
}

void qr_gguf_put_strings(qr_gguf_writer *gguf, const char *key, uint64_t n) { put_array(gguf, key, GGUF_STRING, n); }
void qr_gguf_put_ints(qr_gguf_writer *gguf, const char *key, uint64_t n) { put_array(gguf, key, GGUF_I32, n); }
void qr_gguf_put_string_item(qr_gguf_writer *gguf, const char *text, size_t len) { put_text(&gguf->keys, text, len); }
void qr_gguf_put_int_item(qr_gguf_writer *gguf, int32_t value) { put(&gguf->keys, &value, sizeof value); }

static uint64_t aligned(uint64_t n) { return (n + QR_GGUF_ALIGNMENT - 1) / QR_GGUF_ALIGNMENT * QR_GGUF_ALIGNMENT; }

void qr_gguf_put_tensor(qr_gguf_writer *gguf, const char *name, qr_tensor_type type, int n_dims, const size_t *dims, uint64_t *offset)
{
    size_t elements = 1;
    gguf->n_tensors++;
    put_text(&gguf->tensors, name, strlen(name));
    put_u32(&gguf->tensors, (uint32_t) n_dims);
    for (int i = n_dims - 1; i >= 0; i--) { /* there the fastest comes first */
        put_u64(&gguf->tensors, dims[i]);
        elements *= dims[i];
    }
    put_u32(&gguf->tensors, type_ids[type]);
    *offset = gguf->data_bytes;
    put_u64(&gguf->tensors, *offset);
    gguf->data_bytes += aligned(qr_tensor_type_bytes(type, elements));
}

qr_status qr_gguf_write_head(qr_gguf_writer *gguf, qr_output *out, qr_error *err)
{
    qr_buf head = {0};
    put(&head, "GGUF", 4);
    put_u32(&head, 3);
    put_u64(&head, gguf->n_tensors);
    put_u64(&head, gguf->n_keys);
    qr_status status = QR_OK;
    if (head.failed || gguf->keys.failed || gguf->tensors.failed) status = qr_fail(err, QR_E_MEMORY, "%s: no memory for keys", out->path);
    if (status == QR_OK) status = qr_output_at(out, 0, head.data, head.n, err);
    if (status == QR_OK) status = qr_output_at(out, head.n, gguf->keys.data, gguf->keys.n, err);
    if (status == QR_OK) status = qr_output_at(out, head.n + gguf->keys.n, gguf->tensors.data, gguf->tensors.n, err);
    gguf->data_start = aligned(head.n + gguf->keys.n + gguf->tensors.n);
    if (status == QR_OK && gguf->data_bytes > 0) /* the file's full length: the last tensor may end before its padding does */
        status = qr_output_at(out, gguf->data_start + gguf->data_bytes - 1, "", 1, err);
    qr_buf_deinit(&head);
    return status;
}

void qr_gguf_writer_deinit(qr_gguf_writer *gguf)
{
    qr_buf_deinit(&gguf->keys);
    qr_buf_deinit(&gguf->tensors);
    *gguf = (qr_gguf_writer){0};
}
