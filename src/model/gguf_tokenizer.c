/* The tokenizer of a GGUF file's metadata. They give vocabulary, merges and kinds of tokens; normalisation and pattern are only named, by
 * `pre`, and are those of tokenizer.json. */
#include "base/utf8.h"
#include "model/gguf_model.h"
#include "text/tokenizer_load.h"

#include <string.h>

enum { NORMAL = 1, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5 };

/* An array of strings, or of 32-bit integers. */
static qr_status find_array(const qr_gguf_key **out, const qr_gguf *gguf, const char *path, const char *name, int strings, qr_error *err)
{
    const qr_gguf_key *key = *out = qr_gguf_find(gguf, name);
    int right = key != NULL && key->type == QR_GGUF_ARRAY &&
                (strings ? key->element == QR_GGUF_STRING : key->element == QR_GGUF_I32 || key->element == QR_GGUF_U32);
    return right ? QR_OK
                 : qr_fail(err, QR_E_FORMAT, "%s: %s: expected an array of %s, found %s", path, name,
                           strings ? "strings" : "32-bit integers", key == NULL ? "nothing" : "something else");
}

static qr_status check_kind(const qr_gguf *gguf, const char *path, qr_error *err)
{
    static const char *const expected[][2] = {{"tokenizer.ggml.model", "gpt2"}, {"tokenizer.ggml.pre", "qwen2"}};
    for (int i = 0; i < 2; i++) {
        const qr_gguf_key *key = qr_gguf_find(gguf, expected[i][0]);
        if (!qr_gguf_is(key, expected[i][1]))
            return qr_fail(err, QR_E_UNSUPPORTED, "%s: %s: expected \"%s\", found %s", path, expected[i][0], expected[i][1],
                           key == NULL ? "nothing" : "something else; this tokenizer is of another kind");
    }
    return QR_OK;
}

/* llama.cpp's converter makes a control token of whatever looks like one. In tokenizer.json these are none, and are found in user text. */
static int is_markup(qr_text text)
{
    static const char *const names[] = {"<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
                                        "<|fim_pad|>",    "<|repo_name|>",  "<|file_sep|>"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (text.len == strlen(names[i]) && memcmp(text.data, names[i], text.len) == 0) return 1;
    return 0;
}

static int load_token(qr_tok_loader *l, qr_text text, uint32_t id, uint32_t kind)
{
    if (kind == UNUSED) return 1; /* a row of the table that pads it: no text gives it */
    if (kind == NORMAL) return qr_tok_load_entry(l, (const unsigned char *) text.data, text.len, id);
    if (kind != CONTROL && kind != USER_DEFINED) {
        qr_fail(&l->error, QR_E_UNSUPPORTED, "tokenizer.ggml.token_type: expected 1, 3, 4 or 5, found %u for token %u", kind, id);
        return 0;
    }
    if (!qr_utf8_is_valid(text.data, text.len)) {
        qr_fail(&l->error, QR_E_FORMAT, "tokenizer.ggml.tokens: expected UTF-8 in added token %u, found something else", id);
        return 0;
    }
    return qr_tok_load_added(l, text, id, kind == CONTROL && !is_markup(text));
}

static int load_all(qr_tok_loader *l, const qr_gguf_key *tokens, const qr_gguf_key *kinds, const qr_gguf_key *merges)
{
    const unsigned char *at = tokens->data;
    for (size_t i = 0; i < tokens->n; i++) {
        uint32_t kind;
        memcpy(&kind, kinds->data + 4 * i, sizeof kind);
        if (!load_token(l, qr_gguf_next_string(&at), (uint32_t) i, kind)) return 0;
    }
    if (!qr_tok_load_vocabulary(l)) return 0;
    at = merges->data;
    for (size_t i = 0; i < merges->n; i++) {
        qr_text merge = qr_gguf_next_string(&at);
        if (!qr_tok_load_merge(l, (const unsigned char *) merge.data, merge.len)) return 0;
    }
    return qr_tok_load_merges(l) && qr_tok_load_end(l);
}

static qr_status load(qr_tokenizer **out, const qr_gguf *gguf, const char *path, qr_error *err)
{
    const qr_gguf_key *tokens = NULL, *kinds = NULL, *merges = NULL;
    qr_tok_loader l;
    qr_status status = check_kind(gguf, path, err);
    if (status == QR_OK) status = find_array(&tokens, gguf, path, "tokenizer.ggml.tokens", 1, err);
    if (status == QR_OK) status = find_array(&kinds, gguf, path, "tokenizer.ggml.token_type", 0, err);
    if (status == QR_OK) status = find_array(&merges, gguf, path, "tokenizer.ggml.merges", 1, err);
    if (status != QR_OK) return status;
    if (tokens->n != kinds->n || tokens->n > QR_TOK_MAX_ID)
        return qr_fail(err, QR_E_FORMAT, "%s: tokenizer.ggml.token_type: expected one for each of at most %d tokens, found %zu for %zu",
                       path, QR_TOK_MAX_ID, kinds->n, tokens->n);
    int good = qr_tok_load_begin(&l) && load_all(&l, tokens, kinds, merges);
    if (good) {
        uint64_t parts[] = {qr_tok_fingerprint(tokens->data, (size_t) (tokens->end - tokens->data)),
                            qr_tok_fingerprint(kinds->data, (size_t) (kinds->end - kinds->data)),
                            qr_tok_fingerprint(merges->data, (size_t) (merges->end - merges->data))};
        l.tok->fingerprint = qr_tok_fingerprint((const unsigned char *) parts, sizeof parts);
    } else {
        status = qr_fail(err, l.error.code, "%s: %s", path, l.error.msg);
    }
    *out = qr_tok_load_finish(&l, good);
    return status;
}

qr_status qr_gguf_tokenizer_open(qr_tokenizer **out, const char *path, qr_error *err)
{
    qr_gguf gguf;
    qr_checkpoint ckpt;
    *out = NULL;
    qr_status status = qr_gguf_open(&gguf, &ckpt, path, err);
    if (status != QR_OK) return status;
    status = load(out, &gguf, path, err);
    qr_gguf_close(&gguf);
    qr_checkpoint_close(&ckpt);
    return status;
}
