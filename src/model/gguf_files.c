/* The files of a folder, from the keys of a GGUF file: as this program kept them, or made from what every such file says. */
#include "base/json_in.h"
#include "base/json_out.h"
#include "base/mem.h"
#include "model/export_internal.h"
#include "model/gguf.h"

#include <stdlib.h>
#include <string.h>

enum { CONTROL = 3, USER_DEFINED = 4 }; /* kinds of tokens that are added ones in tokenizer.json */

/* A name from a file becomes one in a folder: nothing in it leads elsewhere. */
static int is_shard_name(qr_text name)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.", suffix[] = ".safetensors";
    size_t n = sizeof suffix - 1;
    if (name.len <= n || name.len > 128 || name.data[0] == '.' || memcmp(name.data + name.len - n, suffix, n) != 0) return 0;
    for (size_t i = 0; i < name.len; i++)
        if (memchr(plain, name.data[i], sizeof plain - 1) == NULL) return 0;
    return 1;
}

/* The two lists of what was kept; 0 where the file has none. */
static int find_kept(const qr_gguf *gguf, const qr_gguf_key **names, const qr_gguf_key **texts)
{
    *names = qr_gguf_find(gguf, QR_GGUF_KEPT_NAMES);
    *texts = qr_gguf_find(gguf, QR_GGUF_KEPT_TEXTS);
    return *names != NULL && *texts != NULL && (*names)->type == QR_GGUF_ARRAY && (*names)->element == QR_GGUF_STRING &&
           (*texts)->type == QR_GGUF_ARRAY && (*texts)->element == QR_GGUF_STRING && (*names)->n == (*texts)->n;
}

qr_status qr_gguf_kept_shards(const char *path, char **list, qr_error *err)
{
    qr_gguf gguf;
    qr_checkpoint ckpt;
    const qr_gguf_key *names, *texts;
    qr_buf buf = {0};
    *list = NULL;
    qr_status status = qr_gguf_open(&gguf, &ckpt, path, err);
    if (status != QR_OK) return status;
    if (find_kept(&gguf, &names, &texts)) {
        const unsigned char *at = names->data;
        for (size_t i = 0; i < names->n; i++) {
            qr_text name = qr_gguf_next_string(&at);
            if (!is_shard_name(name)) continue;
            qr_buf_add(&buf, name.data, name.len);
            qr_buf_add(&buf, "", 1);
        }
        if (buf.n > 0) qr_buf_add(&buf, "", 1);
    }
    if (buf.failed) status = qr_fail(err, QR_E_MEMORY, "%s: no memory for a list of names", path);
    else *list = buf.data;
    if (status != QR_OK) qr_buf_deinit(&buf);
    qr_gguf_close(&gguf);
    qr_checkpoint_close(&ckpt);
    return status;
}

/* The fewest digits that give the same f32: 1e-06 rather than 9.99999997e-07. */
static int digits_of(float x)
{
    int digits = 1;
    for (char text[32]; digits < 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double) x);
        if (strtof(text, NULL) == x) break;
    }
    return digits;
}

/* config.json of a Qwen3 model. */
static void make_config(qr_buf *buf, const qr_model *model)
{
    const qr_config *c = &model->config;
    qr_json_out json = {.write = qr_buf_write, .arg = buf, .spaced = 1, .pretty = 1};
    qr_tensor_type type = model->layers[0].q_proj->type;
    qr_out_open(&json, NULL, '{');
    qr_out_open(&json, "architectures", '[');
    qr_out_string(&json, NULL, "Qwen3ForCausalLM");
    qr_out_close(&json, ']');
    qr_out_bool(&json, "attention_bias", 0);
    qr_out_int(&json, "head_dim", c->head_dim);
    qr_out_string(&json, "hidden_act", "silu");
    qr_out_int(&json, "hidden_size", c->hidden);
    qr_out_int(&json, "intermediate_size", c->inter);
    qr_out_int(&json, "max_position_embeddings", c->max_positions);
    qr_out_string(&json, "model_type", "qwen3");
    qr_out_int(&json, "num_attention_heads", c->n_heads);
    qr_out_int(&json, "num_hidden_layers", c->n_layers);
    qr_out_int(&json, "num_key_value_heads", c->n_kv_heads);
    qr_out_real(&json, "rms_norm_eps", (double) c->rms_eps, digits_of(c->rms_eps));
    qr_out_real(&json, "rope_theta", c->rope_theta, 17);
    qr_out_bool(&json, "tie_word_embeddings", qr_export_head(model) == NULL);
    qr_out_string(&json, "torch_dtype", type == QR_T_F32 ? "float32" : type == QR_T_F16 ? "float16" : "bfloat16");
    qr_out_bool(&json, "use_sliding_window", 0);
    qr_out_int(&json, "vocab_size", c->vocab);
    qr_out_close(&json, '}');
}

static int is_list(const qr_gguf_key *key, qr_gguf_type element)
{
    return key != NULL && key->type == QR_GGUF_ARRAY && key->element == element;
}

static int32_t kind_of(const qr_gguf_key *kinds, size_t i)
{
    int32_t kind;
    memcpy(&kind, kinds->data + i * sizeof kind, sizeof kind);
    return kind;
}

/* What the Qwen tokenizers have in common, as their tokenizer.json says it. */
static const char fixed[] =
    ",\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{"
    "\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| "
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},\"behavior\":\"Isolated\",\"invert\":false},{"
    "\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":false,\"use_regex\":false}]},\"post_processor\":{\"type\":"
    "\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":false,\"use_regex\":false},\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_"
    "space\":false,\"trim_offsets\":false,\"use_regex\":false},\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
    "\"continuing_subword_prefix\":\"\",\"end_of_word_suffix\":\"\",\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":false,"
    "\"vocab\":";

/* tokenizer.json from the tokens, their kinds and the merges. Tokens that only fill up the table are left out. */
static qr_status make_tokenizer(qr_buf *buf, const qr_gguf *gguf, const char *path, qr_error *err)
{
    const qr_gguf_key *tokens = qr_gguf_find(gguf, "tokenizer.ggml.tokens"), *kinds = qr_gguf_find(gguf, "tokenizer.ggml.token_type");
    const qr_gguf_key *merges = qr_gguf_find(gguf, "tokenizer.ggml.merges");
    enum { NORMAL = 1 };
    if (!is_list(tokens, QR_GGUF_STRING) || !is_list(kinds, QR_GGUF_I32) || !is_list(merges, QR_GGUF_STRING) || kinds->n != tokens->n)
        return qr_fail(err, QR_E_FORMAT, "%s: expected tokens, as many kinds of them, and merges, found no such lists", path);
    qr_json_out json = {.write = qr_buf_write, .arg = buf};
    const unsigned char *at = tokens->data;
    qr_buf_printf(buf, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":");
    qr_out_open(&json, NULL, '[');
    for (size_t i = 0; i < tokens->n; i++) {
        qr_text text = qr_gguf_next_string(&at);
        int32_t kind = kind_of(kinds, i);
        if (kind != CONTROL && kind != USER_DEFINED) continue;
        qr_out_open(&json, NULL, '{');
        qr_out_int(&json, "id", i);
        qr_out_text(&json, "content", text.data, text.len);
        qr_out_bool(&json, "single_word", 0);
        qr_out_bool(&json, "lstrip", 0);
        qr_out_bool(&json, "rstrip", 0);
        qr_out_bool(&json, "normalized", 0);
        qr_out_bool(&json, "special", kind == CONTROL);
        qr_out_close(&json, '}');
    }
    qr_out_close(&json, ']');
    qr_buf_add(buf, fixed, sizeof fixed - 1);
    json = (qr_json_out){.write = qr_buf_write, .arg = buf};
    qr_out_open(&json, NULL, '{');
    at = tokens->data;
    for (size_t i = 0; i < tokens->n; i++) {
        qr_text text = qr_gguf_next_string(&at);
        if (kind_of(kinds, i) != NORMAL) continue;
        char *key = qr_strndup(text.data, text.len);
        if (key == NULL) buf->failed = 1;
        else qr_out_int(&json, key, i);
        qr_free(key);
    }
    qr_out_close(&json, '}');
    qr_buf_printf(buf, ",\"merges\":");
    json = (qr_json_out){.write = qr_buf_write, .arg = buf};
    qr_out_open(&json, NULL, '[');
    at = merges->data;
    for (size_t i = 0; i < merges->n; i++) {
        qr_text text = qr_gguf_next_string(&at);
        qr_out_text(&json, NULL, text.data, text.len);
    }
    qr_out_close(&json, ']');
    qr_buf_printf(buf, "}}");
    return QR_OK;
}

qr_status qr_gguf_read_file(const qr_model *model, const char *path, const char *name, char **text, size_t *len, qr_error *err)
{
    qr_gguf gguf;
    qr_checkpoint ckpt;
    const qr_gguf_key *names, *texts;
    qr_buf buf = {0};
    *text = NULL;
    qr_status status = qr_gguf_open(&gguf, &ckpt, path, err);
    if (status != QR_OK) return status;
    int kept = 0;
    if (find_kept(&gguf, &names, &texts)) {
        const unsigned char *at_name = names->data, *at_text = texts->data;
        for (size_t i = 0; i < names->n && !kept; i++) {
            qr_text key = qr_gguf_next_string(&at_name), value = qr_gguf_next_string(&at_text);
            kept = key.len == strlen(name) && memcmp(key.data, name, key.len) == 0;
            if (kept) qr_buf_add(&buf, value.data, value.len);
        }
    }
    if (!kept && strcmp(name, "config.json") == 0) make_config(&buf, model);
    else if (!kept && strcmp(name, "tokenizer.json") == 0) status = make_tokenizer(&buf, &gguf, path, err);
    else if (!kept) status = qr_fail(err, QR_E_NOT_FOUND, "%s: has no %s", path, name);
    if (status == QR_OK) qr_buf_add(&buf, "", 1); /* an empty file is a block too */
    if (status == QR_OK && buf.failed) status = qr_fail(err, QR_E_MEMORY, "%s: no memory for %s", path, name);
    if (status == QR_OK) {
        *text = buf.data;
        *len = buf.n - 1;
    } else {
        qr_buf_deinit(&buf);
    }
    qr_gguf_close(&gguf);
    qr_checkpoint_close(&ckpt);
    return status;
}
