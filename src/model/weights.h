/* The tensors of a Qwen3 model by role, every name, shape and type checked against the config. Borrowed from the checkpoint. */
#ifndef QR_MODEL_WEIGHTS_H
#define QR_MODEL_WEIGHTS_H

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/gguf.h"

/* Shapes are [out, in] as stored; q = n_heads * head_dim, kv = n_kv_heads * head_dim. Types are F32, F16 or BF16, possibly mixed; matrices
 * may also be quantised as config.quantization says, and then have `scales` (tensor.h). */
typedef struct qr_layer_weights {
    const qr_tensor *input_norm;               /* [hidden] */
    const qr_tensor *q_proj, *k_proj, *v_proj; /* [q, hidden], [kv, hidden], [kv, hidden] */
    const qr_tensor *q_norm, *k_norm;          /* [head_dim], one for all heads */
    const qr_tensor *o_proj;                   /* [hidden, q] */
    const qr_tensor *post_norm;                /* [hidden] */
    const qr_tensor *gate_proj, *up_proj;      /* [inter, hidden] */
    const qr_tensor *down_proj;                /* [hidden, inter] */
} qr_layer_weights;

typedef struct qr_model {
    char *dir;
    qr_config config;
    qr_checkpoint ckpt;
    const qr_tensor *embed; /* [vocab, hidden] */
    const qr_tensor *norm;  /* [hidden] */
    const qr_tensor *head;  /* [vocab, hidden]; the embedding when tied; or [2, hidden], see qr_model_head_row */
    int head_is_pair;       /* the head has only the rows of these two ids, as GGUF's cls.output.weight */
    uint32_t pair_ids[2];
    int pair_swapped;         /* they are the other way round than the file says */
    qr_layer_weights *layers; /* [n_layers] */
    size_t n_parameters;      /* elements of all tensors that take part; scales and biases are not counted */
    size_t weight_bytes;      /* their bytes as stored, scales and biases included */
    qr_gguf gguf;             /* metadata, of a GGUF file; else empty */
} qr_model;

/* dir: a folder with config.json and model.safetensors (or shards), QR_BUILTIN (builtin.h), or a GGUF file or the folder of one (gguf.h).
 * Names with and without the "model." prefix are accepted. Quantised matrices are those of
 * - the compressed-tensors format "int-quantized": NAME.weight is I8 [rows, cols], NAME.weight_scale [rows, 1];
 * - MLX's affine form (mlx_lm.convert -q): NAME.weight is U32 [rows, cols * bits / 32], NAME.scales and NAME.biases [rows, cols / group],
 *   2, 3, 4, 5, 6 or 8 bits, groups of 32, 64 or 128, which may differ from matrix to matrix;
 * - FP8, GPTQ and AWQ (forms.h), each matrix that is stored so. */
qr_status qr_model_open(qr_model *model, const char *dir, qr_error *err);
/* Only the config: everything else stays zero, and the folder needs no weights. */
qr_status qr_model_open_config(qr_model *model, const char *dir, qr_error *err);
void qr_model_close(qr_model *model);

/* Which row of the head gives the score of a vocabulary id. E_UNSUPPORTED: a pair without that id. Inline for plug-ins. */
static inline qr_status qr_model_head_row(const qr_model *model, uint32_t id, size_t *row, qr_error *err)
{
    *row = id;
    if (!model->head_is_pair) return QR_OK;
    *row = id == model->pair_ids[1];
    if (id == model->pair_ids[*row]) return QR_OK;
    return qr_fail(err, QR_E_UNSUPPORTED, "%s: its head has rows for the tokens %u and %u, \"yes\" and \"no\", only, and none for token %u",
                   model->dir, model->pair_ids[0], model->pair_ids[1], id);
}

#endif
