/* Quantised forms that are several tensors beside one another in safetensors: found, checked and put together. */
#ifndef QR_MODEL_FORMS_H
#define QR_MODEL_FORMS_H

#include "base/error.h"
#include "model/checkpoint.h"
#include "model/config.h"

/* What belongs to a matrix. */
typedef struct qr_form_place {
    qr_checkpoint *ckpt;
    const qr_config *config;
    size_t *bytes; /* scales and the like are added */
} qr_form_place;

/* F32, F16 or BF16. */
int qr_is_float_type(qr_tensor_type type);
/* Every scale a number that a weight can be multiplied by: a NaN would only show as a score that is no number, an infinity too, and where
 * they come from would be hard to see there. A negative one cannot come out of a quantiser of symmetric weights; MLX's makes some. */
qr_status qr_form_check_scales(const qr_tensor *s, int signs, const char *path, qr_error *err);
/* t: F8_E4M3 [rows, cols], with NAME.weight_scale_inv or NAME.weight_scale beside it. */
qr_status qr_form_take_fp8(const qr_form_place *place, qr_tensor *t, qr_error *err);
/* t: NAME.qweight of GPTQ or AWQ, with NAME.scales, NAME.qzeros and, of GPTQ, maybe NAME.g_idx; becomes the matrix [rows, cols]. */
qr_status qr_form_take_columns(const qr_form_place *place, qr_tensor *t, size_t rows, size_t cols, qr_error *err);
/* The form's name for people and JSON: "fp8", "gptq", "awq"; NULL where the tensor's type says it all. */
const char *qr_form_name(const qr_tensor *t);

#endif
