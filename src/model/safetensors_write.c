/* See safetensors_write.h. The layout is that of the reference implementation, to the byte: no blanks, padding of the header to 8. */
#include "model/safetensors_write.h"

#include "base/mem.h"

void qr_safetensors_begin(qr_safetensors_writer *file, const char *format)
{
    qr_buf_printf(&file->header, "{\"__metadata__\":{\"format\":\"%s\"}", format);
}

void qr_safetensors_tensor(qr_safetensors_writer *file, const char *name, qr_tensor_type type, int n_dims, const size_t *dims,
                           uint64_t *offset)
{
    size_t elements = 1;
    *offset = file->data_bytes;
    qr_buf_printf(&file->header, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", name, qr_tensor_type_name(type));
    for (int i = 0; i < n_dims; i++) {
        qr_buf_printf(&file->header, "%s%zu", i ? "," : "", dims[i]);
        elements *= dims[i];
    }
    file->data_bytes += qr_tensor_type_bytes(type, elements);
    qr_buf_printf(&file->header, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long) *offset, (unsigned long long) file->data_bytes);
}

qr_status qr_safetensors_write_header(qr_output *out, const char *header, size_t len, uint64_t *data_start, qr_error *err)
{
    uint64_t n = len;
    qr_status status = qr_output_at(out, 0, &n, sizeof n, err);
    if (status == QR_OK) status = qr_output_at(out, sizeof n, header, len, err);
    *data_start = sizeof n + len;
    return status;
}

qr_status qr_safetensors_write_head(qr_safetensors_writer *file, qr_output *out, qr_error *err)
{
    qr_buf_add(&file->header, "}", 1);
    while (!file->header.failed && file->header.n % 8 != 0) qr_buf_add(&file->header, " ", 1);
    if (file->header.failed) return qr_fail(err, QR_E_MEMORY, "%s: no memory for the header", out->path);
    return qr_safetensors_write_header(out, file->header.data, file->header.n, &file->data_start, err);
}

void qr_safetensors_writer_deinit(qr_safetensors_writer *file)
{
    qr_buf_deinit(&file->header);
    *file = (qr_safetensors_writer){0};
}
