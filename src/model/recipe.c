/* The names of `quantize --type` (export.h). */
#include "model/export.h"

#include <stdio.h>
#include <string.h>

static const qr_recipe recipes[] = {
    {"q8_0", QR_T_Q8_0, 0, 0, QR_T_Q8_0, 0, 7},    {"q6_k", QR_T_Q6_K, 0, 0, QR_T_Q6_K, 0, 18},
    {"q5_k_m", QR_T_Q5_K, 0, 0, QR_T_Q6_K, 1, 17}, {"q5_k", QR_T_Q5_K, 0, 0, QR_T_Q5_K, 0, 16},
    {"q4_k_m", QR_T_Q4_K, 0, 0, QR_T_Q6_K, 1, 15}, {"q4_k", QR_T_Q4_K, 0, 0, QR_T_Q4_K, 0, 14},
    {"q3_k", QR_T_Q3_K, 0, 0, QR_T_Q3_K, 0, 11},   {"q2_k", QR_T_Q2_K, 0, 0, QR_T_Q2_K, 0, 10},
    {"q5_1", QR_T_Q5_1, 0, 0, QR_T_Q5_1, 0, 9},    {"q5_0", QR_T_Q5_0, 0, 0, QR_T_Q5_0, 0, 8},
    {"q4_1", QR_T_Q4_1, 0, 0, QR_T_Q4_1, 0, 3},    {"q4_0", QR_T_Q4_0, 0, 0, QR_T_Q4_0, 0, 2},
    {"bf16", QR_T_BF16, 0, 0, QR_T_BF16, 0, 32},   {"f16", QR_T_F16, 0, 0, QR_T_F16, 0, 1},
    {"f32", QR_T_F32, 0, 0, QR_T_F32, 0, 0},
};

const char *qr_recipe_names(void)
{
    return "q8_0, q6_k, q5_k_m, q5_k, q4_k_m, q4_k, q3_k, q2_k, q5_1, q5_0, q4_1, q4_0, bf16, f16, f32, or mlx2, mlx3, mlx4, mlx5, mlx6, "
           "mlx8 with -g32, -g64 or -g128";
}

const qr_recipe *qr_recipe_find(const char *name, qr_recipe *mlx)
{
    for (size_t i = 0; i < sizeof recipes / sizeof recipes[0]; i++)
        if (strcmp(recipes[i].name, name) == 0) return &recipes[i];
    unsigned bits, group = 64;
    int end = 0, short_end = 0;
    int n = sscanf(name, "mlx%1u%n-g%3u%n", &bits, &short_end, &group, &end);
    size_t length = strlen(name);
    if (n < 1 || length != (size_t) (n == 2 ? end : short_end)) return NULL;
    if (bits < 2 || bits > 8 || bits == 7 || (group != 32 && group != 64 && group != 128)) return NULL;
    *mlx = (qr_recipe){.name = name, .type = QR_T_U32, .bits = bits, .group = group};
    return mlx;
}

qr_quant_form qr_recipe_form(const qr_recipe *recipe, const qr_tensor *tensor, int finer, int *fell_back)
{
    enum { SMALL_BLOCK = 32 };
    size_t cols = tensor->dims[tensor->n_dims - 1];
    *fell_back = 0;
    if (recipe->type == QR_AS_STORED) return (qr_quant_form){.type = tensor->type, .bits = tensor->bits, .group = tensor->group};
    if (recipe->type == QR_T_U32) {
        if (cols % recipe->group == 0) return (qr_quant_form){.type = QR_T_U32, .bits = recipe->bits, .group = recipe->group};
        *fell_back = 1; /* a folder says per matrix whether it is quantised, by whether it has scales */
        return (qr_quant_form){.type = QR_T_BF16};
    }
    qr_tensor_type type = finer ? recipe->finer : (qr_tensor_type) recipe->type;
    if (cols % qr_tensor_type_block(type) == 0) return (qr_quant_form){.type = type};
    *fell_back = 1;
    if (cols % SMALL_BLOCK != 0) return (qr_quant_form){.type = QR_T_F16};
    /* of blocks of 32, that with as many bits or the next more */
    return (qr_quant_form){.type = type == QR_T_Q6_K   ? QR_T_Q8_0
                                   : type == QR_T_Q5_K ? QR_T_Q5_1
                                   : type == QR_T_Q4_K ? QR_T_Q5_0
                                                       : QR_T_Q4_0};
}
