/* config.json, as the Qwen team publishes it and as other tools write it again: `dtype` for `torch_dtype`, `rope_parameters` for
 * `rope_theta` and `rope_scaling`, an explicit `layer_types`, 1000000.0 for 1000000, and keys that nobody here needs.
 *
 * A key that would change the result and is not implemented is refused, never ignored: a model that runs and ranks wrongly is worse than
 * one that does not start. A key may be absent only if transformers' Qwen3Config gives it a default that is certain (head_dim 128,
 * hidden_act "silu", no bias, no sliding window, untied); sizes have to be there.
 *
 * The bounds are far above any model that exists and low enough that no product of sizes overflows: the largest, all weights of one kind
 * in all layers, is below 2^10 * 2^20 * 2^16 elements. */
#include "model/config.h"

#include "base/file.h"
#include "base/json_in.h"
#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

_Static_assert(sizeof(size_t) == 8, "products of sizes within the bounds need up to 50 bits");

enum {
    MAX_FILE = 16 << 20,
    MAX_LAYERS = 1 << 10,
    MAX_HIDDEN = 1 << 16,
    MAX_INTER = 1 << 20,
    MAX_HEADS = 1 << 10,
    MAX_HEAD_DIM = 1 << 10,
    MAX_VOCAB = 1 << 24,
    MAX_POSITIONS = 1 << 24,
    DEFAULT_HEAD_DIM = 128, /* of Qwen3Config, whatever hidden / n_heads is */
};

typedef struct reader {
    const json_t *root;
    const char *path;
    qr_error *err;
} reader;

#define SIZE(json, gguf, min, max, field)                                                                                                  \
    {                                                                                                                                      \
        json, gguf, min, max, offsetof(qr_config, field)                                                                                   \
    }
const struct qr_config_size qr_config_sizes[QR_CONFIG_N_SIZES] = {
    SIZE("num_hidden_layers", "block_count", 1, MAX_LAYERS, n_layers),
    SIZE("hidden_size", "embedding_length", 1, MAX_HIDDEN, hidden),
    SIZE("intermediate_size", "feed_forward_length", 1, MAX_INTER, inter),
    SIZE("num_attention_heads", "attention.head_count", 1, MAX_HEADS, n_heads),
    SIZE("num_key_value_heads", "attention.head_count_kv", 1, MAX_HEADS, n_kv_heads),
    SIZE("head_dim", "attention.key_length", 2, MAX_HEAD_DIM, head_dim),
    SIZE("vocab_size", "vocab_size", 1, MAX_VOCAB, vocab),
    SIZE("max_position_embeddings", "context_length", 1, MAX_POSITIONS, max_positions),
};
#undef SIZE

/* A present value, or NULL: null means absent in every key of this file. */
static const json_t *lookup(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

static qr_status wrong(const reader *r, const char *key, const char *expected, const json_t *found)
{
    return qr_fail(r->err, QR_E_FORMAT, "%s: %s: expected %s, found %s", r->path, key, expected, qr_json_label(found).text);
}

static qr_status unsupported(const reader *r, const char *key, const char *expected, const json_t *found)
{
    return qr_fail(r->err, QR_E_UNSUPPORTED, "%s: %s: this program runs %s, found %s", r->path, key, expected, qr_json_label(found).text);
}

/* An integer in [min, max]; 4096.0 counts as one. `absent` is the default, 0 if there is none. */
static qr_status read_size(const reader *r, const char *key, size_t min, size_t max, size_t absent, size_t *out)
{
    const json_t *value = lookup(r->root, key);
    if (value == NULL && absent > 0) {
        *out = absent;
        return QR_OK;
    }
    double number = json_is_number(value) ? json_number_value(value) : -1;
    if (!(number >= (double) min && number <= (double) max) || number != floor(number)) {
        char expected[96];
        snprintf(expected, sizeof expected, "an integer from %zu to %zu", min, max);
        return wrong(r, key, expected, value);
    }
    *out = (size_t) number;
    return QR_OK;
}

static qr_status read_bool(const reader *r, const char *key, int *out)
{
    const json_t *value = lookup(r->root, key);
    if (value != NULL && !json_is_boolean(value)) return wrong(r, key, "true or false", value);
    *out = json_is_true(value);
    return QR_OK;
}

static int is_text(const json_t *value, const char *text) { return json_is_string(value) && strcmp(json_string_value(value), text) == 0; }

/* Another architecture than the one whose formula is implemented. */
static qr_status check_architecture(const reader *r)
{
    const json_t *type = lookup(r->root, "model_type"), *list = lookup(r->root, "architectures"), *act = lookup(r->root, "hidden_act");
    if (!json_is_string(type)) return wrong(r, "model_type", "\"qwen3\"", type);
    if (!is_text(type, "qwen3")) return unsupported(r, "model_type", "\"qwen3\"", type);
    if (list != NULL) {
        const json_t *name = json_array_get(list, 0);
        if (!json_is_string(name)) return wrong(r, "architectures", "a list such as [\"Qwen3ForCausalLM\"]", list);
        if (is_text(name, "Qwen3ForSequenceClassification"))
            return qr_fail(
                r->err, QR_E_UNSUPPORTED,
                "%s: architectures: found \"Qwen3ForSequenceClassification\", a conversion that has a score layer in place of the yes and "
                "no rows of the head; use the original model, whose architecture is \"Qwen3ForCausalLM\"",
                r->path);
        if (!is_text(name, "Qwen3ForCausalLM")) return unsupported(r, "architectures", "\"Qwen3ForCausalLM\"", name);
    }
    if (act != NULL && !is_text(act, "silu")) return unsupported(r, "hidden_act", "\"silu\"", act);

    int bias = 0, sliding = 0;
    qr_status status = read_bool(r, "attention_bias", &bias);
    if (status == QR_OK) status = read_bool(r, "use_sliding_window", &sliding); /* where it is off, sliding_window means nothing */
    if (status != QR_OK) return status;
    if (bias) return unsupported(r, "attention_bias", "false", json_true());
    if (sliding) return unsupported(r, "use_sliding_window", "false", json_true());
    return QR_OK;
}

/* Re-savers name the layers' kinds; with use_sliding_window off they are all the same. */
static qr_status check_layer_types(const reader *r, size_t n_layers)
{
    const json_t *list = lookup(r->root, "layer_types");
    if (list == NULL) return QR_OK;
    if (!json_is_array(list) || json_array_size(list) != n_layers)
        return qr_fail(r->err, QR_E_FORMAT, "%s: layer_types: expected a list of num_hidden_layers = %zu, found %s of %zu", r->path,
                       n_layers, qr_json_label(list).text, json_array_size(list));
    for (size_t i = 0; i < n_layers; i++) {
        const json_t *kind = json_array_get(list, i);
        if (!is_text(kind, "full_attention")) return unsupported(r, "layer_types", "\"full_attention\"", kind);
    }
    return QR_OK;
}

/* One group of compressed-tensors: only 8-bit integers with one scale per row of the matrix. What it says of activations concerns speed:
 * ours are not quantised, which the weights allow and which is the more exact. */
static qr_status check_8_bit_group(const reader *r, const json_t *group, const char *format, const char *kind)
{
    const json_t *w = lookup(group, "weights"), *own = lookup(group, "format");
    if (!json_is_object(w)) return wrong(r, "quantization_config.config_groups", "objects with weights", json_is_object(group) ? w : group);
    const json_t *bits = lookup(w, "num_bits"), *type = lookup(w, "type"), *symmetric = lookup(w, "symmetric");
    const json_t *strategy = lookup(w, "strategy"), *dynamic = lookup(w, "dynamic");
    if (own != NULL && !is_text(own, format))
        return unsupported(r, "quantization_config: format of a group", "the same as at the top", own);
    if (!json_is_integer(bits) || json_integer_value(bits) != 8) return unsupported(r, "quantization_config: num_bits", "8", bits);
    if ((type != NULL || *kind != 'i') && !is_text(type, kind)) return unsupported(r, "quantization_config: type", kind, type);
    if (symmetric != NULL && !json_is_true(symmetric)) return unsupported(r, "quantization_config: symmetric", "true", symmetric);
    if (!is_text(strategy, "channel") && (*kind == 'i' || !is_text(strategy, "tensor")))
        return unsupported(r, "quantization_config: strategy", "\"channel\"", strategy);
    if (dynamic != NULL && !json_is_false(dynamic)) return unsupported(r, "quantization_config: dynamic weights", "false", dynamic);
    return QR_OK;
}

/* The field's plain 8-bit format: `compressed-tensors`, "int-quantized". Its other parts that change results (packed or sparse storage,
 * a quantised cache, rotations of the activations) are refused. */
static qr_status check_compressed_tensors(const reader *r, const json_t *q, qr_quantization *found)
{
    const int floats = is_text(lookup(q, "format"), "float-quantized");
    const char *format = floats ? "float-quantized" : "int-quantized";
    static const char *const others[] = {"kv_cache_scheme", "sparsity_config", "transform_config"};
    const json_t *groups = lookup(q, "config_groups"), *status = lookup(q, "quantization_status");
    if (!is_text(lookup(q, "format"), format))
        return unsupported(r, "quantization_config: format", "\"int-quantized\" or \"float-quantized\"", lookup(q, "format"));
    if (status != NULL && !is_text(status, "compressed"))
        return unsupported(r, "quantization_config: quantization_status", "\"compressed\"", status);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        const json_t *value = lookup(q, others[i]);
        /* Two ways of some writers to say "none": {}, and a sparsity whose format is not sparse. */
        int is_none = value == NULL || (json_is_object(value) && json_object_size(value) == 0) || is_text(lookup(value, "format"), "dense");
        if (!is_none)
            return qr_fail(r->err, QR_E_UNSUPPORTED, "%s: quantization_config: %s: this program runs none, found %s", r->path, others[i],
                           qr_json_label(value).text);
    }
    if (!json_is_object(groups) || json_object_size(groups) == 0)
        return wrong(r, "quantization_config.config_groups", "an object of at least one group", groups);
    const char *name;
    json_t *group;
    json_object_foreach((json_t *) (uintptr_t) groups, name, group)
    {
        qr_status failed = check_8_bit_group(r, group, format, floats ? "float" : "int");
        if (failed != QR_OK) return failed;
    }
    *found = floats ? QR_QUANT_FP8 : QR_QUANT_INT8;
    return QR_OK;
}

/* Where MLX gives bits, group size and mode: for the model, or for one of its modules. Only the mode matters here: weights.c takes the rest
 * from the shapes, which say it exactly, and only complains where they make no sense. */
static qr_status check_mlx_mode(const reader *r, const json_t *object, const char *module)
{
    const json_t *mode = lookup(object, "mode");
    if (mode == NULL || is_text(mode, "affine")) return QR_OK; /* files from before there were other modes have none */
    return qr_fail(r->err, QR_E_UNSUPPORTED, "%s: quantization: %s%smode: this program runs \"affine\", found %s", r->path,
                   module ? qr_label_of(module).text : "", module ? ": " : "", qr_json_label(mode).text);
}

/* Keys with a dot, and lm_head, are modules: an object with other settings, true, or false. */
static qr_status check_mlx(const reader *r, const json_t *q)
{
    if (!json_is_object(q)) return wrong(r, "quantization", "an object or null", q);
    qr_status status = check_mlx_mode(r, q, NULL);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *) (uintptr_t) q, key, value)
    {
        if (status == QR_OK && json_is_object(value)) status = check_mlx_mode(r, value, key);
    }
    return status;
}

/* Which modules are left as they were is seen from what is stored; how activations were meant to be rounded does not matter here. */
static qr_status check_fp8(const reader *r, const json_t *q, qr_config *config)
{
    const json_t *fmt = lookup(q, "fmt"), *block = lookup(q, "weight_block_size");
    if (fmt != NULL && !is_text(fmt, "e4m3")) return unsupported(r, "quantization_config: fmt", "\"e4m3\"", fmt);
    config->quantization = QR_QUANT_FP8;
    if (block == NULL) return QR_OK;
    for (size_t i = 0; i < 2; i++) {
        json_int_t n = json_integer_value(json_array_get(block, i));
        if (json_array_size(block) != 2 || n < 1 || n > MAX_INTER)
            return wrong(r, "quantization_config.weight_block_size", "two numbers of rows and columns", block);
        config->fp8_block[i] = (size_t) n;
    }
    return QR_OK;
}

static qr_status check_gptq(const reader *r, const json_t *q, qr_config *config)
{
    const json_t *bits = lookup(q, "bits"), *format = lookup(q, "checkpoint_format");
    if (!json_is_integer(bits) || (json_integer_value(bits) != 4 && json_integer_value(bits) != 8))
        return unsupported(r, "quantization_config: bits", "4 or 8", bits);
    config->gptq_v2 = is_text(format, "gptq_v2");
    if (format != NULL && !is_text(format, "gptq") && !config->gptq_v2)
        return unsupported(r, "quantization_config: checkpoint_format", "\"gptq\" or \"gptq_v2\"", format);
    config->quantization = QR_QUANT_GPTQ;
    return QR_OK;
}

static qr_status check_awq(const reader *r, const json_t *q, qr_config *config)
{
    const json_t *bits = lookup(q, "bits"), *version = lookup(q, "version"), *zeros = lookup(q, "zero_point");
    if (!json_is_integer(bits) || json_integer_value(bits) != 4) return unsupported(r, "quantization_config: bits", "4", bits);
    if (version != NULL && !is_text(version, "gemm") && !is_text(version, "GEMM"))
        return unsupported(r, "quantization_config: version", "\"gemm\"", version);
    if (zeros != NULL && !json_is_true(zeros)) return unsupported(r, "quantization_config: zero_point", "true", zeros);
    config->quantization = QR_QUANT_AWQ;
    return QR_OK;
}

/* Weights with scales. MLX writes `quantization` (and a copy under the other key), the rest `quantization_config`. */
static qr_status check_quantization(const reader *r, qr_config *config)
{
    qr_quantization *found = &config->quantization;
    const json_t *mlx = lookup(r->root, "quantization"), *other = lookup(r->root, "quantization_config");
    if (mlx != NULL) {
        *found = QR_QUANT_MLX;
        return check_mlx(r, mlx);
    }
    if (other == NULL) return QR_OK;
    const json_t *method = lookup(other, "quant_method");
    if (is_text(method, "compressed-tensors")) return check_compressed_tensors(r, other, found);
    if (is_text(method, "fp8")) return check_fp8(r, other, config);
    if (is_text(method, "gptq")) return check_gptq(r, other, config);
    if (is_text(method, "awq")) return check_awq(r, other, config);
    return qr_fail(r->err, QR_E_UNSUPPORTED,
                   "%s: quantization_config: this program runs F32, F16, BF16, MLX's affine, fp8, gptq, awq and compressed-tensors "
                   "\"int-quantized\" and \"float-quantized\" weights, found quant_method %s",
                   r->path, qr_json_label(json_object_get(other, "quant_method")).text);
}

/* transformers 4 writes rope_theta and rope_scaling, transformers 5 rope_parameters with both; only the plain kind is implemented. */
static qr_status read_rope(const reader *r, double *theta)
{
    static const char *const blocks[] = {"rope_parameters", "rope_scaling"};
    const json_t *top = lookup(r->root, "rope_theta"), *inner = NULL;
    for (size_t i = 0; i < 2; i++) {
        const json_t *block = lookup(r->root, blocks[i]);
        if (block == NULL) continue;
        if (!json_is_object(block)) return wrong(r, blocks[i], "an object or null", block);
        const json_t *kind = lookup(block, "rope_type"), *old = lookup(block, "type");
        if ((kind != NULL && !is_text(kind, "default")) || (old != NULL && !is_text(old, "default")) ||
            (i == 1 && kind == NULL && old == NULL))
            return unsupported(r, blocks[i], "rope_type \"default\"", kind != NULL && !is_text(kind, "default") ? kind : old);
        if (inner == NULL) inner = lookup(block, "rope_theta");
    }
    if (top != NULL && inner != NULL && json_number_value(top) != json_number_value(inner))
        return wrong(r, "rope_theta", "the same number at the top and in rope_parameters", top);
    const json_t *value = inner != NULL ? inner : top;
    *theta = json_number_value(value); /* 0 for anything but a number */
    if (!(*theta > 0) || !isfinite(*theta)) return wrong(r, "rope_theta", "a number above 0", value);
    return QR_OK;
}

static qr_status read_rest(const reader *r, qr_config *config)
{
    const json_t *eps = lookup(r->root, "rms_norm_eps"), *dtype = lookup(r->root, "torch_dtype");
    config->rms_eps = (float) json_number_value(eps);
    if (!(config->rms_eps > 0 && config->rms_eps < 1)) return wrong(r, "rms_norm_eps", "a number above 0 and below 1", eps);
    if (dtype == NULL) dtype = lookup(r->root, "dtype");
    if (dtype != NULL && !json_is_string(dtype)) return wrong(r, "torch_dtype", "a string", dtype);
    if (dtype != NULL) snprintf(config->torch_dtype, sizeof config->torch_dtype, "%.15s", qr_label_of(json_string_value(dtype)).text);
    qr_status status = qr_config_check(config, r->path, r->err);
    return status == QR_OK ? read_bool(r, "tie_word_embeddings", &config->tied) : status;
}

qr_status qr_config_check(const qr_config *config, const char *path, qr_error *err)
{
    if (config->head_dim % 2 != 0)
        return qr_fail(err, QR_E_FORMAT, "%s: head_dim: expected an even number, as RoPE turns pairs, found %zu", path, config->head_dim);
    if (config->n_heads % config->n_kv_heads != 0)
        return qr_fail(err, QR_E_FORMAT, "%s: num_attention_heads: expected a multiple of num_key_value_heads = %zu, found %zu", path,
                       config->n_kv_heads, config->n_heads);
    return QR_OK;
}

qr_status qr_config_parse(qr_config *config, const char *text, size_t len, const char *path, qr_error *err)
{
    json_t *root;
    *config = (qr_config){0};
    qr_status status = qr_json_parse(&root, text, len, path, err);
    if (status != QR_OK) return status;
    const reader r = {root, path, err};
    status = check_architecture(&r);
    if (status == QR_OK) status = check_quantization(&r, config);
    for (size_t i = 0; status == QR_OK && i < QR_CONFIG_N_SIZES; i++) {
        const struct qr_config_size *size = &qr_config_sizes[i];
        size_t *out = (size_t *) (void *) ((char *) config + size->offset);
        status = read_size(&r, size->json, size->min, size->max, out == &config->head_dim ? DEFAULT_HEAD_DIM : 0, out);
    }
    if (status == QR_OK) status = check_layer_types(&r, config->n_layers);
    if (status == QR_OK) status = read_rope(&r, &config->rope_theta);
    if (status == QR_OK) status = read_rest(&r, config);
    json_decref(root);
    return status;
}

qr_status qr_config_read(qr_config *config, const char *path, qr_error *err)
{
    char *text;
    size_t len;
    *config = (qr_config){0};
    qr_status status = qr_file_read(path, MAX_FILE, &text, &len, err);
    if (status == QR_OK) status = qr_config_parse(config, text, len, path, err);
    qr_free(text);
    return status;
}
