/* See weights.h. One table says which tensors a layer has and what shape each must have; everything else follows from it. */
#define _POSIX_C_SOURCE 200809L
#include "model/weights.h"
#include "model/forms.h"

#include "base/mem.h"
#include "model/blocks.h"
#include "model/builtin.h"
#include "model/gguf_model.h"
#include "model/safetensors.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { NAME_MAX_BYTES = 96 }; /* the longest name below has 53 */

enum { HIDDEN, INTER, VOCAB, Q, KV, HEAD_DIM, NONE, N_SIZES };
static const struct {
    const char *name;
    size_t offset;  /* of the pointer in qr_layer_weights */
    int rows, cols; /* indices of `sizes`; cols NONE: a vector */
} layer_tensors[] = {
    {"input_layernorm.weight", offsetof(qr_layer_weights, input_norm), HIDDEN, NONE},
    {"self_attn.q_proj.weight", offsetof(qr_layer_weights, q_proj), Q, HIDDEN},
    {"self_attn.k_proj.weight", offsetof(qr_layer_weights, k_proj), KV, HIDDEN},
    {"self_attn.v_proj.weight", offsetof(qr_layer_weights, v_proj), KV, HIDDEN},
    {"self_attn.q_norm.weight", offsetof(qr_layer_weights, q_norm), HEAD_DIM, NONE},
    {"self_attn.k_norm.weight", offsetof(qr_layer_weights, k_norm), HEAD_DIM, NONE},
    {"self_attn.o_proj.weight", offsetof(qr_layer_weights, o_proj), HIDDEN, Q},
    {"post_attention_layernorm.weight", offsetof(qr_layer_weights, post_norm), HIDDEN, NONE},
    {"mlp.gate_proj.weight", offsetof(qr_layer_weights, gate_proj), INTER, HIDDEN},
    {"mlp.up_proj.weight", offsetof(qr_layer_weights, up_proj), INTER, HIDDEN},
    {"mlp.down_proj.weight", offsetof(qr_layer_weights, down_proj), HIDDEN, INTER},
};

/* The original names start with "model."; tools that save the bare decoder leave that out. */
static qr_tensor *find(qr_checkpoint *ckpt, const char *name)
{
    char full[sizeof "model." + NAME_MAX_BYTES];
    snprintf(full, sizeof full, "model.%s", name);
    const qr_tensor *t = qr_checkpoint_find(ckpt, full);
    if (t == NULL) t = qr_checkpoint_find(ckpt, name);
    return t != NULL ? &ckpt->tensors[t - ckpt->tensors] : NULL;
}

static const char *shape_text(const qr_tensor *t, char *text, size_t room)
{
    size_t used = (size_t) snprintf(text, room, "[");
    for (int i = 0; i < t->n_dims && used < room; i++)
        used += (size_t) snprintf(text + used, room - used, "%s%zu", i ? ", " : "", t->dims[i]);
    if (used < room) snprintf(text + used, room - used, "]");
    return text;
}

static const char *shape_source(const qr_model *model)
{
    return model->config.quantization == QR_QUANT_GGUF ? "its metadata" : "config.json";
}

static qr_status fail_type(const qr_model *model, const qr_tensor *t, qr_error *err)
{
    const char *remark = "";
    if (t->type == QR_T_U32) remark = ", which needs scales beside it and a quantization in config.json";
    if (t->type == QR_T_U32 && model->config.quantization == QR_QUANT_MLX) remark = " in a vector";
    if (t->type == QR_T_I8) remark = ", which needs a quantization_config in config.json";
    if (t->type == QR_T_I8 && model->config.quantization == QR_QUANT_INT8) remark = " in a vector";
    return qr_fail(err, QR_E_UNSUPPORTED, "%s: tensor \"%s\": this program runs F32, F16 and BF16 weights, found %s%s",
                   model->ckpt.shards[t->shard].path, t->name, qr_tensor_type_name(t->type), remark);
}

/* *out = the tensor `name` of floating-point numbers [rows, cols] beside the quantised matrix t; cols 0: as many as there are. */
static qr_status take_beside(qr_model *model, const qr_tensor *t, const char *name, size_t cols, int signs, const qr_tensor **out,
                             qr_error *err)
{
    char expected[64], found[192];
    const qr_tensor *s = qr_checkpoint_find(&model->ckpt, name);
    if (s == NULL)
        return qr_fail(err, QR_E_FORMAT, "%s: tensor \"%s\": expected \"%s\" beside %s weights, found none of that name",
                       model->ckpt.shards[t->shard].path, t->name, name, qr_tensor_type_name(t->type));
    const char *path = model->ckpt.shards[s->shard].path;
    if (!qr_is_float_type(s->type))
        return qr_fail(err, QR_E_FORMAT, "%s: tensor \"%s\": expected F32, F16 or BF16, found %s", path, s->name,
                       qr_tensor_type_name(s->type));
    snprintf(expected, sizeof expected, cols ? "[%zu, %zu]" : "[%zu, ...]", t->dims[0], cols);
    if (s->n_dims != 2 || s->dims[0] != t->dims[0] || (cols ? s->dims[1] != cols : s->dims[1] == 0))
        return qr_fail(err, QR_E_FORMAT, "%s: tensor \"%s\": expected shape %s, found %s", path, s->name, expected,
                       shape_text(s, found, sizeof found));
    model->weight_bytes += s->n_bytes;
    *out = s;
    return qr_form_check_scales(s, signs, path, err);
}

/* The scales beside the 8-bit matrix t. */
static qr_status take_scales(qr_model *model, qr_tensor *t, qr_error *err)
{
    char name[sizeof "model." + NAME_MAX_BYTES + 16];
    const char *path = model->ckpt.shards[t->shard].path;
    snprintf(name, sizeof name, "%s_zero_point", t->name);
    if (qr_checkpoint_find(&model->ckpt, name) != NULL)
        return qr_fail(err, QR_E_UNSUPPORTED, "%s: tensor \"%s\": this program runs symmetric 8-bit weights, found zero points", path,
                       name);
    snprintf(name, sizeof name, "%s_scale", t->name);
    return take_beside(model, t, name, 1, 0, &t->scales, err);
}

/* The name of what lies beside MLX's NAME.weight. */
static const char *mlx_name(char *name, size_t room, const qr_tensor *t, const char *kind)
{
    snprintf(name, room, "%.*s%s", (int) (strlen(t->name) - strlen("weight")), t->name, kind);
    return name;
}

/* MLX's packed matrix t, whose scales and biases and `cols` say how wide its integers and groups are. */
static qr_status take_mlx(qr_model *model, qr_tensor *t, size_t cols, qr_error *err)
{
    char name[sizeof "model." + NAME_MAX_BYTES + 16], found[192];
    const char *path = model->ckpt.shards[t->shard].path;
    qr_status status = take_beside(model, t, mlx_name(name, sizeof name, t, "scales"), 0, 1, &t->scales, err);
    if (status != QR_OK) return status;
    status = take_beside(model, t, mlx_name(name, sizeof name, t, "biases"), t->scales->dims[1], 1, &t->biases, err);
    if (status != QR_OK) return status;
    size_t bits = t->dims[1] * 32 / cols, group = cols / t->scales->dims[1];
    int right = t->dims[1] * 32 == bits * cols && group * t->scales->dims[1] == cols;
    right = right && bits >= 2 && bits <= 8 && bits != 7 && (group == 32 || group == 64 || group == 128);
    if (!right)
        return qr_fail(
            err, QR_E_FORMAT,
            "%s: tensor \"%s\": expected %zu columns of 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128, found %s of U32 with "
            "%zu scales a row",
            path, t->name, cols, shape_text(t, found, sizeof found), t->scales->dims[1]);
    t->bits = (unsigned) bits;
    t->group = (unsigned) group;
    t->dims[1] = cols;
    t->n_elements = t->dims[0] * cols;
    return QR_OK;
}

/* Scales beside a matrix of another type: the writer meant something that this program would compute without. */
static qr_status refuse_scales(const qr_model *model, const qr_tensor *t, qr_error *err)
{
    char name[sizeof "model." + NAME_MAX_BYTES + 16];
    snprintf(name, sizeof name, "%s_scale", t->name);
    const char *expected = "I8";
    if (qr_checkpoint_find(&model->ckpt, name) == NULL) {
        expected = "U32";
        if (qr_checkpoint_find(&model->ckpt, mlx_name(name, sizeof name, t, "scales")) == NULL) return QR_OK;
    }
    return qr_fail(err, QR_E_UNSUPPORTED, "%s: tensor \"%s\": expected %s beside \"%s\", found %s", model->ckpt.shards[t->shard].path,
                   t->name, expected, name, qr_tensor_type_name(t->type));
}

/* *out = the tensor `name` of shape [rows, cols], or [rows] where cols is 0. */
static qr_status take(qr_model *model, const char *name, size_t rows, size_t cols, const qr_tensor **out, qr_error *err)
{
    qr_tensor *t = find(&model->ckpt, name);
    qr_quantization q = model->config.quantization;
    const qr_form_place place = {&model->ckpt, &model->config, &model->weight_bytes};
    if (t == NULL && cols > 0 && (q == QR_QUANT_GPTQ || q == QR_QUANT_AWQ)) {
        char packed[NAME_MAX_BYTES];
        snprintf(packed, sizeof packed, "%.*sqweight", (int) (strlen(name) - strlen("weight")), name);
        if ((t = find(&model->ckpt, packed)) != NULL && t->form == QR_FORM_BY_TYPE) {
            qr_status failed = qr_form_take_columns(&place, t, rows, cols, err);
            if (failed != QR_OK) return failed;
        }
    }
    if (t == NULL)
        return qr_fail(err, QR_E_FORMAT,
                       "%s: tensor \"model.%s\" (with or without \"model.\"): expected by %s, found none of that name among %zu",
                       model->dir, name, shape_source(model), model->ckpt.n_tensors);
    int int8 = t->type == QR_T_I8 && cols > 0 && model->config.quantization == QR_QUANT_INT8;
    int mlx = t->type == QR_T_U32 && cols > 0 && model->config.quantization == QR_QUANT_MLX;
    int blocks = qr_is_block_type(t->type) && cols > 0 && model->config.quantization == QR_QUANT_GGUF;
    int fp8 = t->type == QR_T_F8_E4M3 && cols > 0 && q == QR_QUANT_FP8, columns = t->form != QR_FORM_BY_TYPE;
    if (!qr_is_float_type(t->type) && !int8 && !mlx && !blocks && !fp8 && !columns) return fail_type(model, t, err);
    if (t->n_dims != (cols ? 2 : 1) || t->dims[0] != rows || (mlx ? t->dims[1] > cols : cols && t->dims[1] != cols)) {
        char expected[64], found[192];
        snprintf(expected, sizeof expected, mlx ? "[%zu, at most %zu]" : cols ? "[%zu, %zu]" : "[%zu]", rows, cols);
        return qr_fail(err, QR_E_FORMAT, "%s: tensor \"%s\": expected shape %s from %s, found %s", model->ckpt.shards[t->shard].path,
                       t->name, expected, shape_source(model), shape_text(t, found, sizeof found));
    }
    qr_status status = columns ? QR_OK
                       : fp8   ? qr_form_take_fp8(&place, t, err)
                       : int8  ? take_scales(model, t, err)
                       : mlx   ? take_mlx(model, t, cols, err)
                               : refuse_scales(model, t, err);
    if (status != QR_OK) return status;
    *out = t;
    model->n_parameters += t->n_elements;
    model->weight_bytes += t->n_bytes;
    return QR_OK;
}

/* GGUF's rerankers have only the rows for yes and no, and beside them perhaps the whole head, which says the same. */
static qr_status take_pair(qr_model *model, qr_error *err)
{
    qr_status status = take(model, "cls.output.weight", 2, model->config.hidden, &model->head, err);
    if (status != QR_OK) return status;
    model->head_is_pair = 1;
    return qr_gguf_pair(model->pair_ids, &model->pair_swapped, &model->gguf, &model->ckpt, model->head, model->embed, err);
}

static qr_status take_all(qr_model *model, qr_error *err)
{
    const qr_config *c = &model->config;
    const size_t sizes[N_SIZES] = {[HIDDEN] = c->hidden,
                                   [INTER] = c->inter,
                                   [VOCAB] = c->vocab,
                                   [Q] = c->n_heads * c->head_dim,
                                   [KV] = c->n_kv_heads * c->head_dim,
                                   [HEAD_DIM] = c->head_dim,
                                   [NONE] = 0};
    model->layers = qr_calloc(c->n_layers, sizeof *model->layers);
    if (model->layers == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for a list of %zu layers", model->dir, c->n_layers);
    qr_status status = take(model, "embed_tokens.weight", sizes[VOCAB], sizes[HIDDEN], &model->embed, err);
    for (size_t i = 0; i < c->n_layers; i++) {
        for (size_t k = 0; status == QR_OK && k < sizeof layer_tensors / sizeof layer_tensors[0]; k++) {
            char name[NAME_MAX_BYTES];
            snprintf(name, sizeof name, "layers.%zu.%s", i, layer_tensors[k].name);
            const qr_tensor **slot = (const qr_tensor **) (void *) ((char *) &model->layers[i] + layer_tensors[k].offset);
            status = take(model, name, sizes[layer_tensors[k].rows], sizes[layer_tensors[k].cols], slot, err);
        }
    }
    if (status == QR_OK) status = take(model, "norm.weight", sizes[HIDDEN], 0, &model->norm, err);
    model->head = model->embed; /* tied: some files hold an lm_head as well, a copy that transformers ignores too */
    if (status != QR_OK || c->tied) return status;
    if (c->quantization == QR_QUANT_GGUF && qr_checkpoint_find(&model->ckpt, "cls.output.weight") != NULL) return take_pair(model, err);
    return take(model, "lm_head.weight", sizes[VOCAB], sizes[HIDDEN], &model->head, err);
}

/* A wrong folder is the most frequent mistake of all, so it is told apart from a broken file, with what belongs into the folder. */
static qr_status check_folder(const char *dir, qr_error *err)
{
    static const char *const files[] = {"config.json", "model.safetensors.index.json", "model.safetensors"};
    int there[3];
    struct stat st;
    if (stat(dir, &st) != 0 || !S_ISDIR(st.st_mode))
        return qr_fail(err, QR_E_NOT_FOUND, "%s: expected a model folder, found %s", dir,
                       qr_file_exists(dir) ? "a file" : "none of that name");
    for (int i = 0; i < 3; i++) {
        char *path = qr_path_join(dir, files[i]);
        if (path == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", dir);
        there[i] = qr_file_exists(path);
        qr_free(path);
    }
    if (there[0] && (there[1] || there[2])) return QR_OK;
    return qr_fail(err, QR_E_NOT_FOUND,
                   "%s: not a model folder: expected config.json, tokenizer.json and model.safetensors (or its shards with "
                   "model.safetensors.index.json), or a GGUF file, found no %s",
                   dir, there[0] ? "model.safetensors" : "config.json");
}

static qr_status open_folder(qr_model *model, qr_error *err)
{
    char *path = qr_path_join(model->dir, "config.json");
    if (path == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", model->dir);
    qr_status status = qr_config_read(&model->config, path, err);
    if (status == QR_OK) status = qr_checkpoint_open(&model->ckpt, model->dir, err);
    qr_free(path);
    return status;
}

static qr_status open_builtin(qr_model *model, qr_error *err)
{
    qr_file config, weights;
    qr_status status = qr_builtin_file(&config, "config.json", err);
    if (status == QR_OK) status = qr_builtin_file(&weights, "model.safetensors", err);
    if (status == QR_OK) status = qr_config_parse(&model->config, (const char *) config.data, config.size, QR_BUILTIN "/config.json", err);
    if (status == QR_OK) status = qr_checkpoint_open_memory(&model->ckpt, weights.data, weights.size, QR_BUILTIN "/model.safetensors", err);
    return status;
}

static qr_status open_gguf(qr_model *model, const char *path, qr_error *err)
{
    qr_status status = qr_gguf_open(&model->gguf, &model->ckpt, path, err);
    return status == QR_OK ? qr_gguf_config(&model->config, &model->gguf, &model->ckpt, err) : status;
}

qr_status qr_model_open(qr_model *model, const char *dir, qr_error *err)
{
    char *gguf = NULL;
    *model = (qr_model){0};
    qr_status status = qr_is_builtin(dir) ? QR_OK : qr_gguf_locate(dir, &gguf, err);
    if (status == QR_OK && gguf == NULL && !qr_is_builtin(dir)) status = check_folder(dir, err);
    if (status == QR_OK) {
        model->dir = qr_strndup(dir, strlen(dir));
        if (model->dir == NULL) status = qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", dir);
    }
    if (status == QR_OK)
        status = gguf != NULL ? open_gguf(model, gguf, err) : qr_is_builtin(dir) ? open_builtin(model, err) : open_folder(model, err);
    if (status == QR_OK) status = take_all(model, err);
    if (status != QR_OK) qr_model_close(model);
    qr_free(gguf);
    return status;
}

qr_status qr_model_open_config(qr_model *model, const char *dir, qr_error *err)
{
    qr_file file;
    *model = (qr_model){0};
    if (qr_is_builtin(dir)) {
        qr_status status = qr_builtin_file(&file, "config.json", err);
        return status == QR_OK ? qr_config_parse(&model->config, (const char *) file.data, file.size, QR_BUILTIN "/config.json", err)
                               : status;
    }
    char *path;
    qr_status status = qr_gguf_locate(dir, &path, err);
    if (path != NULL) { /* the metadata are in the file of the weights, which are not read */
        status = open_gguf(model, path, err);
        qr_config config = model->config;
        qr_model_close(model);
        model->config = config;
    } else if (status == QR_OK && (path = qr_path_join(dir, "config.json")) == NULL) {
        status = qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", dir);
    } else if (status == QR_OK) {
        status = qr_config_read(&model->config, path, err);
    }
    qr_free(path);
    return status;
}

void qr_model_close(qr_model *model)
{
    if (model == NULL) return;
    qr_free(model->layers);
    qr_gguf_close(&model->gguf);
    qr_checkpoint_close(&model->ckpt);
    qr_free(model->dir);
    *model = (qr_model){0};
}
