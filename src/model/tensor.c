/* See tensor.h. */
#include "model/tensor.h"

static const struct {
    const char *name;
    size_t block, size; /* elements and bytes */
} types[QR_N_TENSOR_TYPES] = {
    [QR_T_F64] = {"F64", 1, 8},           [QR_T_F32] = {"F32", 1, 4},         [QR_T_F16] = {"F16", 1, 2},
    [QR_T_BF16] = {"BF16", 1, 2},         [QR_T_I64] = {"I64", 1, 8},         [QR_T_I32] = {"I32", 1, 4},
    [QR_T_I16] = {"I16", 1, 2},           [QR_T_I8] = {"I8", 1, 1},           [QR_T_U64] = {"U64", 1, 8},
    [QR_T_U32] = {"U32", 1, 4},           [QR_T_U16] = {"U16", 1, 2},         [QR_T_U8] = {"U8", 1, 1},
    [QR_T_BOOL] = {"BOOL", 1, 1},         [QR_T_F8_E4M3] = {"F8_E4M3", 1, 1}, [QR_T_F8_E5M2] = {"F8_E5M2", 1, 1},
    [QR_T_F8_E8M0] = {"F8_E8M0", 1, 1},   [QR_T_Q4_0] = {"Q4_0", 32, 18},     [QR_T_Q4_1] = {"Q4_1", 32, 20},
    [QR_T_Q5_0] = {"Q5_0", 32, 22},       [QR_T_Q5_1] = {"Q5_1", 32, 24},     [QR_T_Q8_0] = {"Q8_0", 32, 34},
    [QR_T_Q2_K] = {"Q2_K", 256, 84},      [QR_T_Q3_K] = {"Q3_K", 256, 110},   [QR_T_Q4_K] = {"Q4_K", 256, 144},
    [QR_T_Q5_K] = {"Q5_K", 256, 176},     [QR_T_Q6_K] = {"Q6_K", 256, 210},   [QR_T_IQ4_NL] = {"IQ4_NL", 32, 18},
    [QR_T_IQ4_XS] = {"IQ4_XS", 256, 136},
};

const char *qr_tensor_type_name(qr_tensor_type type) { return types[type].name; }
size_t qr_tensor_type_block(qr_tensor_type type) { return types[type].block; }
size_t qr_tensor_type_size(qr_tensor_type type) { return types[type].size; }
size_t qr_tensor_type_bytes(qr_tensor_type type, size_t n_elements) { return n_elements / types[type].block * types[type].size; }

size_t qr_tensor_stored_bytes(const qr_tensor *t)
{
    const qr_tensor *beside[] = {t->scales, t->biases, t->zeros, t->order};
    size_t bytes = t->n_bytes;
    for (size_t i = 0; i < sizeof beside / sizeof beside[0]; i++)
        if (beside[i] != NULL) bytes += beside[i]->n_bytes;
    return bytes;
}
