/* The keys of a reranker's GGUF file, those that llama.cpp's converter writes and its server reads. */
#include "base/json_in.h"
#include "base/mem.h"
#include "model/builtin.h"
#include "model/export_internal.h"
#include "text/prompt.h"

#include <stdio.h>
#include <string.h>

enum { LENGTH_BYTES = 8 };
enum { NORMAL = 1, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5 }; /* kinds of tokens */
enum { POOLING_RANK = 4, QUANTIZATION_VERSION = 2 };

static void put_word(qr_gguf_writer *gguf, const char *key, const char *text) { qr_gguf_put_string(gguf, key, text, strlen(text)); }

static void describe_network(qr_gguf_writer *gguf, const qr_export *job)
{
    const qr_config *c = &job->model->config;
    const char *slash = strrchr(job->model->dir, '/');
    put_word(gguf, "general.architecture", "qwen3");
    put_word(gguf, "general.type", "model");
    put_word(gguf, "general.name", slash != NULL && slash[1] != 0 ? slash + 1 : job->model->dir);
    qr_gguf_put_u32(gguf, "qwen3.block_count", (uint32_t) c->n_layers);
    qr_gguf_put_u32(gguf, "qwen3.context_length", (uint32_t) c->max_positions);
    qr_gguf_put_u32(gguf, "qwen3.embedding_length", (uint32_t) c->hidden);
    qr_gguf_put_u32(gguf, "qwen3.feed_forward_length", (uint32_t) c->inter);
    qr_gguf_put_u32(gguf, "qwen3.attention.head_count", (uint32_t) c->n_heads);
    qr_gguf_put_u32(gguf, "qwen3.attention.head_count_kv", (uint32_t) c->n_kv_heads);
    qr_gguf_put_f32(gguf, "qwen3.rope.freq_base", (float) c->rope_theta);
    qr_gguf_put_f32(gguf, "qwen3.attention.layer_norm_rms_epsilon", c->rms_eps);
    qr_gguf_put_u32(gguf, "qwen3.attention.key_length", (uint32_t) c->head_dim);
    qr_gguf_put_u32(gguf, "qwen3.attention.value_length", (uint32_t) c->head_dim);
    qr_gguf_put_u32(gguf, "qwen3.pooling_type", POOLING_RANK);
    qr_gguf_put_strings(gguf, "qwen3.classifier.output_labels", 2);
    qr_gguf_put_string_item(gguf, "yes", 3);
    qr_gguf_put_string_item(gguf, "no", 2);
}

typedef struct vocabulary {
    const char **text; /* [rows], borrowed from the JSON; NULL: no such token */
    int32_t *kind;     /* [rows] */
    size_t rows;
    const json_t *merges;
} vocabulary;

static qr_status put_token(vocabulary *v, const json_t *id, const char *text, int kind, const char *path, qr_error *err)
{
    json_int_t at = json_is_integer(id) ? json_integer_value(id) : -1;
    if (at < 0 || (size_t) at >= v->rows)
        return qr_fail(err, QR_E_FORMAT, "%s: token \"%s\": expected an id below the %zu rows of the token table, found %s", path,
                       qr_label_of(text).text, v->rows, qr_json_label(id).text);
    v->text[at] = text;
    v->kind[at] = kind;
    return QR_OK;
}

/* The tokenizer was opened before, so that what it is made of is known; texts stay as the file has them. */
static qr_status read_vocabulary(vocabulary *v, const json_t *root, const char *path, qr_error *err)
{
    const json_t *model = json_object_get(root, "model"), *added = json_object_get(root, "added_tokens");
    json_t *vocab = json_object_get(model, "vocab"), *id;
    const char *text;
    size_t i;
    const json_t *token;
    qr_status status = QR_OK;
    v->merges = json_object_get(model, "merges");
    json_object_foreach(vocab, text, id)
    {
        status = put_token(v, id, text, NORMAL, path, err);
        if (status != QR_OK) return status;
    }
    json_array_foreach(added, i, token)
    {
        text = json_string_value(json_object_get(token, "content"));
        int special = json_is_true(json_object_get(token, "special"));
        if (text == NULL) return qr_fail(err, QR_E_FORMAT, "%s: added token %zu: expected a content, found none", path, i);
        status = put_token(v, json_object_get(token, "id"), text, special ? CONTROL : USER_DEFINED, path, err);
        if (status != QR_OK) return status;
    }
    return QR_OK;
}

static void put_id(qr_gguf_writer *gguf, const vocabulary *v, const char *key, const char *token)
{
    for (size_t i = 0; i < v->rows; i++)
        if (v->text[i] != NULL && v->kind[i] == CONTROL && strcmp(v->text[i], token) == 0) {
            qr_gguf_put_u32(gguf, key, (uint32_t) i);
            return;
        }
}

static void put_vocabulary(qr_gguf_writer *gguf, const vocabulary *v)
{
    char pad[32];
    size_t i;
    const json_t *merge;
    put_word(gguf, "tokenizer.ggml.model", "gpt2");
    put_word(gguf, "tokenizer.ggml.pre", "qwen2");
    qr_gguf_put_strings(gguf, "tokenizer.ggml.tokens", v->rows);
    for (i = 0; i < v->rows; i++) { /* llama.cpp wants as many tokens as rows */
        if (v->text[i] == NULL) snprintf(pad, sizeof pad, "[PAD%zu]", i);
        const char *text = v->text[i] != NULL ? v->text[i] : pad;
        qr_gguf_put_string_item(gguf, text, strlen(text));
    }
    qr_gguf_put_ints(gguf, "tokenizer.ggml.token_type", v->rows);
    for (i = 0; i < v->rows; i++) qr_gguf_put_int_item(gguf, v->text[i] != NULL ? v->kind[i] : UNUSED);
    qr_gguf_put_strings(gguf, "tokenizer.ggml.merges", json_array_size(v->merges));
    json_array_foreach(v->merges, i, merge)
    {
        if (json_is_string(merge)) {
            qr_gguf_put_string_item(gguf, json_string_value(merge), json_string_length(merge));
            continue;
        }
        qr_buf pair = {0};
        const json_t *left = json_array_get(merge, 0), *right = json_array_get(merge, 1);
        qr_buf_add(&pair, json_string_value(left), json_string_length(left));
        qr_buf_add(&pair, " ", 1);
        qr_buf_add(&pair, json_string_value(right), json_string_length(right));
        qr_gguf_put_string_item(gguf, pair.failed ? "" : pair.data, pair.n);
        gguf->keys.failed |= pair.failed;
        qr_buf_deinit(&pair);
    }
    put_id(gguf, v, "tokenizer.ggml.bos_token_id", "<|endoftext|>");
    put_id(gguf, v, "tokenizer.ggml.eos_token_id", "<|im_end|>");
    put_id(gguf, v, "tokenizer.ggml.padding_token_id", "<|endoftext|>");
    qr_gguf_put_bool(gguf, "tokenizer.ggml.add_bos_token", 0);
}

static void put_templates(qr_gguf_writer *gguf, const qr_export *job)
{
    /* What llama.cpp puts query and document into. It has no place for an instruction. */
    static const char rerank[] =
        QR_PROMPT_PREFIX "<Instruct>: " QR_PROMPT_INSTRUCTION "\n<Query>: {query}\n" QR_PROMPT_DOCUMENT QR_PROMPT_SUFFIX;
    char *text;
    size_t len;
    if (qr_export_read_file(job->model, "chat_template.jinja", &text, &len, NULL) == QR_OK) {
        qr_gguf_put_string(gguf, "tokenizer.chat_template", text, len);
        qr_free(text);
    }
    qr_gguf_put_strings(gguf, "tokenizer.chat_templates", 1);
    qr_gguf_put_string_item(gguf, "rerank", 6);
    qr_gguf_put_string(gguf, "tokenizer.chat_template.rerank", rerank, sizeof rerank - 1);
}

/* The folder's files in full, and the headers of its shards: what else the way back needs to give the same bytes. */
static void keep_files(qr_gguf_writer *gguf, const qr_export *job)
{
    static const char index[] = "model.safetensors.index.json";
    const qr_checkpoint *ckpt = &job->model->ckpt;
    int from_gguf = job->model->gguf.n_keys > 0;
    qr_gguf_writer texts = {0};
    qr_buf names = {0};
    uint64_t n = 0;
    for (size_t i = 0; i == 0 || qr_export_files[i - 1] != NULL; i++) {
        const char *name = qr_export_files[i] != NULL ? qr_export_files[i] : index;
        char *text;
        size_t len;
        if (qr_export_read_file(job->model, name, &text, &len, NULL) != QR_OK) continue;
        qr_gguf_put_string_item(&texts, text, len);
        qr_buf_add(&names, name, strlen(name) + 1);
        n++;
        qr_free(text);
    }
    for (size_t i = 0; i < ckpt->n_shards && !from_gguf; i++) { /* checked when the model was opened */
        const char *path = ckpt->shards[i].path, *slash = strrchr(path, '/'), *name = slash != NULL ? slash + 1 : path;
        uint64_t header;
        memcpy(&header, ckpt->shards[i].file.data, sizeof header);
        qr_gguf_put_string_item(&texts, (const char *) ckpt->shards[i].file.data + LENGTH_BYTES, header);
        qr_buf_add(&names, name, strlen(name) + 1);
        n++;
    }
    qr_gguf_put_strings(gguf, QR_GGUF_KEPT_NAMES, n);
    for (size_t at = 0; at < names.n; at += strlen(names.data + at) + 1)
        qr_gguf_put_string_item(gguf, names.data + at, strlen(names.data + at));
    qr_gguf_put_strings(gguf, QR_GGUF_KEPT_TEXTS, n);
    qr_buf_add(&gguf->keys, texts.keys.data, texts.keys.n);
    gguf->keys.failed |= texts.keys.failed | names.failed;
    qr_buf_deinit(&names);
    qr_gguf_writer_deinit(&texts);
}

/* Tensors that are no part of the network are not written; a header that names them would promise what the file has not. */
static int all_tensors_are_used(const qr_model *model)
{
    enum { PER_LAYER = 11 };
    return model->ckpt.n_tensors == 2 + PER_LAYER * model->config.n_layers + (model->head != model->embed);
}

static uint32_t file_type_of(const qr_export *job)
{
    if (job->recipe->type != QR_AS_STORED) return job->recipe->file_type;
    qr_tensor_type type = job->model->layers[0].q_proj->type;
    return type == QR_T_F32 ? 0 : type == QR_T_F16 ? 1 : 32;
}

qr_status qr_gguf_describe(qr_gguf_writer *gguf, const qr_export *job, uint32_t labels[2], qr_error *err)
{
    static const char name[] = "tokenizer.json";
    const qr_model *model = job->model;
    qr_tokenizer *tok = NULL;
    qr_prompt *prompt = NULL;
    char *text = NULL;
    size_t len = 0;
    json_t *root = NULL;
    vocabulary v = {.rows = model->config.vocab};
    qr_status status = qr_model_tokenizer_open(&tok, model->dir, err);
    if (status == QR_OK) status = qr_prompt_open(&prompt, tok, &(qr_options){0}, err);
    if (status == QR_OK) status = qr_export_read_file(model, name, &text, &len, err);
    if (status == QR_OK) status = qr_json_parse(&root, text, len, name, err);
    v.text = qr_calloc(v.rows, sizeof *v.text);
    v.kind = qr_calloc(v.rows, sizeof *v.kind);
    if (status == QR_OK && (v.text == NULL || v.kind == NULL))
        status = qr_fail(err, QR_E_MEMORY, "%s: no memory for %zu tokens", name, v.rows);
    if (status == QR_OK) status = read_vocabulary(&v, root, name, err);
    if (status == QR_OK) {
        labels[0] = qr_prompt_yes_id(prompt);
        labels[1] = qr_prompt_no_id(prompt);
        if (labels[0] >= v.rows || labels[1] >= v.rows)
            status = qr_fail(err, QR_E_FORMAT, "%s: expected rows for \"yes\" and \"no\" in the head, found %zu rows", model->dir, v.rows);
    }
    if (status == QR_OK) {
        describe_network(gguf, job);
        qr_gguf_put_u32(gguf, "general.file_type", file_type_of(job));
        put_vocabulary(gguf, &v);
        put_templates(gguf, job);
        if (job->keep_files && all_tensors_are_used(model)) keep_files(gguf, job);
        qr_gguf_put_u32(gguf, "general.quantization_version", QUANTIZATION_VERSION);
    }
    qr_free(v.text);
    qr_free(v.kind);
    json_decref(root);
    qr_free(text);
    qr_prompt_close(prompt);
    qr_tok_close(tok);
    return status;
}
