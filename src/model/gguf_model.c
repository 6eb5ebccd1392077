/* See gguf_model.h. */
#define _POSIX_C_SOURCE 200809L /* strncasecmp */
#include "model/gguf_model.h"

#include "base/json_in.h"
#include "base/mem.h"
#include "model/blocks.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

enum {
    POOLING_NONE = 0,
    POOLING_RANK = 4,
    UNTIED_HIDDEN = 4096, /* the published Qwen3 models are tied below this size, and have a head of their own from it on */
};

static const char *path_of(const qr_checkpoint *ckpt) { return ckpt->shards[0].path; }

static qr_label label(qr_text text)
{
    char copy[128];
    snprintf(copy, sizeof copy, "%.*s", (int) (text.len < 120 ? text.len : 120), text.len ? text.data : "");
    return qr_label_of(copy);
}

/* An integer within bounds; absent is the default, 0 if there is none. */
static qr_status read_size(size_t *out, const qr_gguf *gguf, const qr_checkpoint *ckpt, const char *name, size_t min, size_t max,
                           size_t absent, qr_error *err)
{
    const qr_gguf_key *key = qr_gguf_find(gguf, name);
    uint64_t value = absent;
    int known = key == NULL ? absent > 0 : qr_gguf_uint(key, &value);
    if (known && value >= min && value <= max) {
        *out = (size_t) value;
        return QR_OK;
    }
    return qr_fail(err, QR_E_FORMAT, "%s: %s: expected an integer from %zu to %zu, found %s", path_of(ckpt), name, min, max,
                   known         ? "another number"
                   : key == NULL ? "nothing"
                                 : "another type of value");
}

static qr_status read_positive(double *out, const qr_gguf *gguf, const qr_checkpoint *ckpt, const char *name, double below, qr_error *err)
{
    *out = 0;
    if (qr_gguf_real(qr_gguf_find(gguf, name), out) && *out > 0 && *out < below) return QR_OK;
    return qr_fail(err, QR_E_FORMAT, "%s: %s: expected a real number above 0%s, found %s", path_of(ckpt), name,
                   below <= 1 ? " and below 1" : "", qr_gguf_find(gguf, name) == NULL ? "nothing" : "something else");
}

/* Keys that change the result and that the formula does not have. */
static qr_status check_formula(const qr_gguf *gguf, const qr_checkpoint *ckpt, size_t head_dim, qr_error *err)
{
    static const char *const as_head_dim[] = {"qwen3.attention.value_length", "qwen3.rope.dimension_count"};
    const qr_gguf_key *scaling = qr_gguf_find(gguf, "qwen3.rope.scaling.type"),
                      *window = qr_gguf_find(gguf, "qwen3.attention.sliding_window");
    uint64_t value = 0;
    if (scaling != NULL && !qr_gguf_is(scaling, "none"))
        return qr_fail(err, QR_E_UNSUPPORTED, "%s: qwen3.rope.scaling.type: this program runs \"none\", found \"%s\"", path_of(ckpt),
                       label(qr_gguf_string(scaling)).text);
    if (window != NULL && (!qr_gguf_uint(window, &value) || value != 0))
        return qr_fail(err, QR_E_UNSUPPORTED, "%s: qwen3.attention.sliding_window: this program runs none, found one", path_of(ckpt));
    for (size_t i = 0; i < sizeof as_head_dim / sizeof as_head_dim[0]; i++) {
        const qr_gguf_key *key = qr_gguf_find(gguf, as_head_dim[i]);
        if (key != NULL && (!qr_gguf_uint(key, &value) || value != head_dim))
            return qr_fail(err, QR_E_UNSUPPORTED, "%s: %s: expected the key_length %zu, found something else", path_of(ckpt),
                           as_head_dim[i], head_dim);
    }
    return QR_OK;
}

static int contains(qr_text text, const char *word)
{
    size_t n = strlen(word);
    for (size_t i = 0; i + n <= text.len; i++)
        if (strncasecmp(text.data + i, word, n) == 0) return 1;
    return 0;
}

/* Embedding models have the architecture, the tokenizer and the tied head of the rerankers: what tells them apart is how their converter
 * says that they are to be used, and the name. */
static qr_status check_purpose(const qr_gguf *gguf, const qr_checkpoint *ckpt, qr_error *err)
{
    const qr_gguf_key *pooling = qr_gguf_find(gguf, "qwen3.pooling_type");
    uint64_t kind = POOLING_NONE;
    if (pooling != NULL && (!qr_gguf_uint(pooling, &kind) || (kind != POOLING_NONE && kind != POOLING_RANK)))
        return qr_fail(err, QR_E_UNSUPPORTED,
                       "%s: qwen3.pooling_type: expected %d, of a reranker, or none, found %llu, which embedding models have; their scores "
                       "would be random",
                       path_of(ckpt), POOLING_RANK, (unsigned long long) kind);
    qr_text name = qr_gguf_string(qr_gguf_find(gguf, "general.name"));
    if (pooling == NULL && contains(name, "embedding") && !contains(name, "rerank"))
        return qr_fail(err, QR_E_UNSUPPORTED, "%s: general.name: expected a reranker, found \"%s\"; its scores would be random",
                       path_of(ckpt), label(name).text);
    return QR_OK;
}

qr_status qr_gguf_config(qr_config *config, const qr_gguf *gguf, const qr_checkpoint *ckpt, qr_error *err)
{
    const qr_gguf_key *architecture = qr_gguf_find(gguf, "general.architecture");
    const qr_tensor *embed = qr_checkpoint_find(ckpt, "model.embed_tokens.weight");
    double eps = 0;
    *config = (qr_config){.quantization = QR_QUANT_GGUF};
    if (!qr_gguf_is(architecture, "qwen3"))
        return qr_fail(err, QR_E_UNSUPPORTED, "%s: general.architecture: this program runs \"qwen3\", found \"%s\"", path_of(ckpt),
                       label(qr_gguf_string(architecture)).text);
    if (embed == NULL || embed->n_dims != 2)
        return qr_fail(err, QR_E_FORMAT, "%s: tensor \"token_embd.weight\": expected a matrix, found %s", path_of(ckpt),
                       embed == NULL ? "none of that name" : "another shape");
    qr_status status = check_purpose(gguf, ckpt, err);
    for (size_t i = 0; status == QR_OK && i < QR_CONFIG_N_SIZES; i++) {
        const struct qr_config_size *size = &qr_config_sizes[i];
        size_t *out = (size_t *) (void *) ((char *) config + size->offset);
        char name[64];
        snprintf(name, sizeof name, "qwen3.%s", size->gguf);
        status = read_size(out, gguf, ckpt, name, size->min, size->max, out == &config->vocab ? embed->dims[0] : 0, err);
    }
    if (status == QR_OK) status = read_positive(&config->rope_theta, gguf, ckpt, "qwen3.rope.freq_base", INFINITY, err);
    if (status == QR_OK) status = read_positive(&eps, gguf, ckpt, "qwen3.attention.layer_norm_rms_epsilon", 1, err);
    if (status == QR_OK) status = check_formula(gguf, ckpt, config->head_dim, err);
    if (status == QR_OK) status = qr_config_check(config, path_of(ckpt), err);
    if (status != QR_OK) return status;
    config->rms_eps = (float) eps;
    if (!(config->rms_eps > 0)) return qr_fail(err, QR_E_FORMAT, "%s: qwen3.attention.layer_norm_rms_epsilon: too small", path_of(ckpt));
    config->tied = qr_checkpoint_find(ckpt, "lm_head.weight") == NULL && qr_checkpoint_find(ckpt, "cls.output.weight") == NULL;
    if (config->tied && config->hidden >= UNTIED_HIDDEN)
        return qr_fail(
            err, QR_E_UNSUPPORTED,
            "%s: expected cls.output.weight or output.weight, which a model of hidden size %zu has beside token_embd.weight, found "
            "neither: the rows for yes and no are lost",
            path_of(ckpt), config->hidden);
    return QR_OK;
}

/* The id of a token; E_FORMAT if there is none. */
static qr_status find_token(uint32_t *id, const qr_gguf *gguf, const char *path, const char *text, qr_error *err)
{
    const qr_gguf_key *tokens = qr_gguf_find(gguf, "tokenizer.ggml.tokens");
    if (tokens != NULL && tokens->type == QR_GGUF_ARRAY && tokens->element == QR_GGUF_STRING) {
        const unsigned char *at = tokens->data;
        for (size_t i = 0; i < tokens->n && i < UINT32_MAX; i++) {
            qr_text token = qr_gguf_next_string(&at);
            *id = (uint32_t) i;
            if (token.len == strlen(text) && memcmp(token.data, text, token.len) == 0) return QR_OK;
        }
    }
    return qr_fail(err, QR_E_FORMAT, "%s: tokenizer.ggml.tokens: expected \"%s\" among them, found none", path, text);
}

/* *yes_row = 0 or 1, by the labels. */
static qr_status read_labels(int *yes_row, const qr_gguf *gguf, const char *path, qr_error *err)
{
    static const char name[] = "qwen3.classifier.output_labels";
    const qr_gguf_key *key = qr_gguf_find(gguf, name);
    *yes_row = 0;
    if (key == NULL) return QR_OK;
    if (key->type == QR_GGUF_ARRAY && key->element == QR_GGUF_STRING && key->n == 2) {
        const unsigned char *at = key->data;
        qr_text first = qr_gguf_next_string(&at), second = qr_gguf_next_string(&at);
        *yes_row = first.len == 2;
        qr_text yes = *yes_row ? second : first, no = *yes_row ? first : second;
        if (yes.len == 3 && no.len == 2 && memcmp(yes.data, "yes", 3) == 0 && memcmp(no.data, "no", 2) == 0) return QR_OK;
    }
    return qr_fail(err, QR_E_UNSUPPORTED, "%s: %s: expected \"yes\" and \"no\", found something else", path, name);
}

/* Whole rows, which are whole blocks. */
static void row_f32(float *to, const qr_tensor *t, size_t row)
{
    size_t cols = t->dims[1], bytes = t->n_bytes / t->dims[0];
    qr_blocks_f32(to, t->type, t->data + row * bytes, cols / qr_tensor_type_block(t->type));
}

static double cosine(const float *a, const float *b, size_t n)
{
    double ab = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < n; i++) {
        ab += (double) a[i] * (double) b[i];
        aa += (double) a[i] * (double) a[i];
        bb += (double) b[i] * (double) b[i];
    }
    return ab / sqrt(aa * bb); /* NaN, of a row of zeros, compares as no match */
}

qr_status qr_gguf_pair(uint32_t ids[2], int *swapped, const qr_gguf *gguf, const qr_checkpoint *ckpt, const qr_tensor *pair,
                       const qr_tensor *embed, qr_error *err)
{
    const double alike = 0.9; /* 2-bit copies of a row still have more; rows of an untied head and of the embedding have next to none */
    const char *path = path_of(ckpt);
    size_t n = pair->dims[1];
    uint32_t yes = 0, no = 0;
    int yes_row = 0;
    *swapped = 0;
    qr_status status = read_labels(&yes_row, gguf, path, err);
    if (status == QR_OK) status = find_token(&yes, gguf, path, "yes", err);
    if (status == QR_OK) status = find_token(&no, gguf, path, "no", err);
    if (status != QR_OK) return status;
    if (yes < embed->dims[0] && no < embed->dims[0]) {
        float *rows = qr_calloc(4, n * sizeof *rows);
        if (rows == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for rows of %zu", path, n);
        float *own_yes = rows, *own_no = rows + n, *table_yes = rows + 2 * n, *table_no = rows + 3 * n;
        row_f32(own_yes, pair, (size_t) yes_row);
        row_f32(own_no, pair, (size_t) !yes_row);
        row_f32(table_yes, embed, yes);
        row_f32(table_no, embed, no);
        double yes_no = cosine(own_yes, table_no, n), no_yes = cosine(own_no, table_yes, n);
        *swapped = yes_no > alike && no_yes > alike && yes_no > cosine(own_yes, table_yes, n) && no_yes > cosine(own_no, table_no, n);
        qr_free(rows);
    }
    if (*swapped) yes_row = !yes_row;
    ids[yes_row] = yes;
    ids[!yes_row] = no;
    return QR_OK;
}
