/* See forms.h. */
#include "model/forms.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { NAME_ROOM = 160 };

int qr_is_float_type(qr_tensor_type type) { return type == QR_T_F32 || type == QR_T_F16 || type == QR_T_BF16; }

const char *qr_form_name(const qr_tensor *t)
{
    return t->form == QR_FORM_FP8 ? "fp8" : t->form == QR_FORM_GPTQ ? "gptq" : t->form == QR_FORM_AWQ ? "awq" : NULL;
}

qr_status qr_form_check_scales(const qr_tensor *s, int signs, const char *path, qr_error *err)
{
    size_t per_row = s->n_dims > 0 && s->dims[0] > 0 ? s->n_elements / s->dims[0] : 1;
    for (size_t i = 0; i < s->n_elements; i++) {
        uint32_t bits = 0; /* of the sign and the exponent, which is all ones for infinities and NaN; f16 has 5 bits of it, the rest 8 */
        size_t size = qr_tensor_type_size(s->type);
        memcpy((unsigned char *) &bits + 4 - size, s->data + i * size, size);
        uint32_t exponent = s->type == QR_T_F16 ? 0x7C000000 : 0x7F800000;
        int finite = (bits & exponent) != exponent, negative = !signs && bits > 0x80000000; /* -0 is not */
        if (!finite || negative)
            return qr_fail(err, QR_E_FORMAT, "%s: tensor \"%s\": expected finite numbers%s, found %s at row %zu", path, s->name,
                           signs ? "" : " of at least 0", finite ? "a negative one" : "one that is not finite", i / per_row);
    }
    return QR_OK;
}

static const char *path_of(const qr_form_place *place, const qr_tensor *t) { return place->ckpt->shards[t->shard].path; }

/* The tensor whose name is that of t with another end. */
static const qr_tensor *beside(const qr_form_place *place, const qr_tensor *t, const char *old_end, const char *end)
{
    char name[NAME_ROOM];
    snprintf(name, sizeof name, "%.*s%s", (int) (strlen(t->name) - strlen(old_end)), t->name, end);
    return qr_checkpoint_find(place->ckpt, name);
}

static qr_status fail_shape(const qr_form_place *place, const qr_tensor *t, const char *expected, qr_error *err)
{
    size_t first = t->n_dims > 0 ? t->dims[0] : 0, second = t->n_dims > 1 ? t->dims[1] : 0;
    return qr_fail(err, QR_E_FORMAT, "%s: tensor \"%s\": expected %s, found %s of %d dimensions, [%zu, %zu]", path_of(place, t), t->name,
                   expected, qr_tensor_type_name(t->type), t->n_dims, first, second);
}

/* The scales of t; the caller looks at the shape. */
static qr_status take_scales(const qr_form_place *place, qr_tensor *t, const qr_tensor *s, const char *name, qr_error *err)
{
    if (s == NULL)
        return qr_fail(err, QR_E_FORMAT, "%s: tensor \"%s\": expected its scales, \"%s\", beside it, found none of that name",
                       path_of(place, t), t->name, name);
    if (!qr_is_float_type(s->type)) return fail_shape(place, s, "F32, F16 or BF16", err);
    *place->bytes += s->n_bytes;
    t->scales = s;
    return qr_form_check_scales(s, 0, path_of(place, s), err);
}

static size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

qr_status qr_form_take_fp8(const qr_form_place *place, qr_tensor *t, qr_error *err)
{
    const qr_tensor *s = beside(place, t, "weight", "weight_scale_inv");
    char expected[96];
    if (s == NULL) s = beside(place, t, "weight", "weight_scale");
    qr_status status = take_scales(place, t, s, "weight_scale_inv or weight_scale", err);
    if (status != QR_OK) return status;
    size_t rows = t->dims[0], cols = t->dims[1], high = place->config->fp8_block[0], wide = place->config->fp8_block[1];
    if (s->n_elements == 1) { /* one for the tensor */
        high = rows;
        wide = cols;
    } else if (high == 0) { /* one for each row */
        high = 1;
        wide = cols;
    }
    int shaped = s->n_elements == 1 || (s->n_dims == 2 && s->dims[0] == ceil_div(rows, high) && s->dims[1] == ceil_div(cols, wide));
    if (!shaped && !(s->n_dims == 1 && high == 1 && s->dims[0] == rows)) {
        snprintf(expected, sizeof expected, "one scale, or [%zu, %zu] of them", ceil_div(rows, high), ceil_div(cols, wide));
        return fail_shape(place, s, expected, err);
    }
    unsigned nan = 0;
    for (size_t i = 0; i < t->n_bytes; i++) nan |= (t->data[i] & 0x7f) == 0x7f;
    if (nan) return qr_fail(err, QR_E_FORMAT, "%s: tensor \"%s\": expected finite numbers, found NaN", path_of(place, t), t->name);
    t->form = QR_FORM_FP8;
    t->span[0] = high;
    t->span[1] = wide;
    return QR_OK;
}

static int is_ints(const qr_tensor *t, size_t rows, size_t cols)
{
    return t != NULL && (t->type == QR_T_I32 || t->type == QR_T_U32) && t->n_dims == 2 && t->dims[0] == rows && t->dims[1] == cols;
}

/* Which group each column is in, where that is not their order. */
static qr_status take_order(const qr_form_place *place, qr_tensor *t, size_t cols, size_t groups, qr_error *err)
{
    const qr_tensor *order = beside(place, t, "qweight", "g_idx");
    if (order == NULL) return QR_OK;
    if (order->type != QR_T_I32 || order->n_dims != 1 || order->dims[0] != cols)
        return fail_shape(place, order, "I32, one for each input", err);
    for (size_t i = 0; i < cols; i++) {
        int32_t g;
        memcpy(&g, order->data + 4 * i, sizeof g);
        if (g < 0 || (size_t) g >= groups)
            return qr_fail(err, QR_E_FORMAT, "%s: tensor \"%s\": expected groups from 0 to %zu, found %d at %zu", path_of(place, order),
                           order->name, groups - 1, (int) g, i);
    }
    *place->bytes += order->n_bytes;
    t->order = order;
    return QR_OK;
}

qr_status qr_form_take_columns(const qr_form_place *place, qr_tensor *t, size_t rows, size_t cols, qr_error *err)
{
    int gptq = place->config->quantization == QR_QUANT_GPTQ;
    char expected[128];
    size_t bits = 4;
    if (gptq && t->n_dims == 2 && t->dims[0] == cols / 4 && cols % 4 == 0) bits = 8;
    size_t per_word = 32 / bits, divided = gptq ? cols : rows;
    if (divided % per_word != 0 || rows % per_word != 0 || !is_ints(t, gptq ? cols / per_word : cols, gptq ? rows : rows / per_word)) {
        snprintf(expected, sizeof expected, "I32 with the 4%s-bit weights of %zu inputs and %zu outputs", gptq ? "- or 8" : "", cols, rows);
        return fail_shape(place, t, expected, err);
    }
    qr_status status = take_scales(place, t, beside(place, t, "qweight", "scales"), "scales", err);
    if (status != QR_OK) return status;
    const qr_tensor *s = t->scales, *zeros = beside(place, t, "qweight", "qzeros");
    if (s->n_dims != 2 || s->dims[1] != rows || s->dims[0] == 0 || cols % s->dims[0] != 0) {
        snprintf(expected, sizeof expected, "[groups, %zu] where groups divides %zu", rows, cols);
        return fail_shape(place, s, expected, err);
    }
    if (!is_ints(zeros, s->dims[0], rows / per_word)) {
        snprintf(expected, sizeof expected, "\"qzeros\" beside it, I32 [%zu, %zu]", s->dims[0], rows / per_word);
        return fail_shape(place, zeros != NULL ? zeros : t, expected, err);
    }
    if (gptq && (status = take_order(place, t, cols, s->dims[0], err)) != QR_OK) return status;
    *place->bytes += zeros->n_bytes;
    t->form = gptq ? QR_FORM_GPTQ : QR_FORM_AWQ;
    t->zeros = zeros;
    t->span[0] = 1;
    t->span[1] = cols / s->dims[0];
    t->bits = (unsigned) bits;
    t->zero_add = gptq && !place->config->gptq_v2;
    t->dims[0] = rows;
    t->dims[1] = cols;
    t->n_elements = rows * cols;
    return QR_OK;
}
