/* POST /tokenize, in three dialects:
 *
 *   text-embeddings-inference   {"inputs": text or list}                   -> [[{"id", "text", "special", "start", "stop"}]]
 *   llama.cpp                   {"content", "parse_special"?, "with_pieces"?} -> {"tokens": [id, ...]}
 *   vLLM                        {"prompt"}                                 -> {"count", "max_model_len", "tokens": [id, ...]}
 *
 * No special tokens are added: the prompt's are no part of a text.
 */
#define _GNU_SOURCE
#include "server/internal.h"

#include "base/mem.h"

#include <string.h>

typedef struct job {
    sv_work work;
    sv_server *server;
    sv_exchange *exchange;
} job;

/* Where text-embeddings-inference's tokens stand in the text, in characters; null once normalisation has changed what was before. */
typedef struct place {
    const char *text;
    size_t len, at, characters;
    int lost;
} place;

static void write_place(qr_json_out *json, place *p, const char *bytes, size_t n)
{
    size_t begin = p->characters;
    p->lost = p->lost || p->len - p->at < n || memcmp(p->text + p->at, bytes, n) != 0;
    for (size_t i = 0; i < n; i++) p->characters += ((unsigned char) bytes[i] & 0xC0) != 0x80;
    if (!p->lost) p->at += n;
    if (p->lost) {
        qr_out_string(json, "start", NULL);
        qr_out_string(json, "stop", NULL);
    } else {
        qr_out_int(json, "start", begin);
        qr_out_int(json, "stop", p->characters);
    }
}

static void write_tei(qr_json_out *json, const qr_tokenizer *tok, const qr_ids *ids, const json_t *text)
{
    place p = {json_string_value(text), json_string_length(text), 0, 0, 0};
    qr_out_open(json, NULL, '[');
    for (size_t i = 0; i < ids->n; i++) {
        size_t n = 0;
        const char *bytes = qr_tok_bytes(tok, ids->id[i], &n);
        qr_out_open(json, NULL, '{');
        qr_out_int(json, "id", ids->id[i]);
        qr_out_text(json, "text", bytes, n);
        qr_out_bool(json, "special", qr_tok_is_added(tok, ids->id[i]));
        write_place(json, &p, bytes, n);
        qr_out_close(json, '}');
    }
    qr_out_close(json, ']');
}

static void write_ids(qr_json_out *json, const qr_tokenizer *tok, const qr_ids *ids, int with_pieces)
{
    qr_out_open(json, "tokens", '[');
    for (size_t i = 0; i < ids->n; i++) {
        if (!with_pieces) {
            qr_out_int(json, NULL, ids->id[i]);
            continue;
        }
        size_t n = 0;
        const char *bytes = qr_tok_bytes(tok, ids->id[i], &n);
        qr_out_open(json, NULL, '{');
        qr_out_int(json, "id", ids->id[i]);
        qr_out_text(json, "piece", bytes, n);
        qr_out_close(json, '}');
    }
    qr_out_close(json, ']');
}

static qr_status encode(const qr_tokenizer *tok, const char *field, const json_t *text, int special, qr_ids *ids, qr_error *err)
{
    if (!json_is_string(text)) return qr_fail(err, QR_E_INPUT, "\"%s\" must be a string, found %s", field, qr_json_label(text).text);
    ids->n = 0;
    return qr_tok_encode(tok, json_string_value(text), json_string_length(text), special ? QR_TOK_SPECIAL : QR_TOK_MARKUP, 0, ids, NULL,
                         NULL, err);
}

static qr_status tokenize(const job *j, const json_t *body, qr_ids *ids, qr_json_out *json, qr_error *err)
{
    json_t *inputs = sv_field(body, "inputs"), *content = sv_field(body, "content"), *prompt = sv_field(body, "prompt");
    const char *name = json_string_value(sv_field(body, "model"));
    int special = 0, with_pieces = 0;
    sv_model *model = sv_model_find(j->server, name);
    if (model == NULL) return sv_fail_model(j->server, name, err);
    const qr_tokenizer *tok = qr_engine_tokenizer(model->engine);
    qr_status status = sv_read_bool(body, "parse_special", &special, err);
    if (status == QR_OK) status = sv_read_bool(body, "with_pieces", &with_pieces, err);
    if (status != QR_OK) return status;
    if (inputs != NULL) {
        size_t n = json_is_array(inputs) ? json_array_size(inputs) : 1;
        qr_out_open(json, NULL, '[');
        for (size_t i = 0; i < n; i++) {
            const json_t *text = json_is_array(inputs) ? json_array_get(inputs, i) : inputs;
            if ((status = encode(tok, "inputs", text, special, ids, err)) != QR_OK) return status;
            write_tei(json, tok, ids, text);
        }
        qr_out_close(json, ']');
        return QR_OK;
    }
    if (content == NULL && prompt == NULL) return qr_fail(err, QR_E_INPUT, "\"inputs\" must be provided, or \"content\", or \"prompt\"");
    status = content != NULL ? encode(tok, "content", content, special, ids, err) : encode(tok, "prompt", prompt, special, ids, err);
    if (status != QR_OK) return status;
    qr_out_open(json, NULL, '{');
    if (content == NULL) {
        qr_info info;
        qr_engine_info(model->engine, &info);
        qr_out_int(json, "count", ids->n);
        qr_out_int(json, "max_model_len", info.max_length);
    }
    write_ids(json, tok, ids, with_pieces);
    qr_out_close(json, '}');
    return QR_OK;
}

static void run(sv_work *work)
{
    job *j = (job *) work;
    sv_exchange *x = j->exchange;
    json_t *body = NULL;
    qr_ids ids = {0};
    qr_error error = {0};
    qr_json_out json = sv_json_answer(x);
    qr_status status = sv_parse_body(x, &body, &error);
    if (status == QR_OK) status = tokenize(j, body, &ids, &json, &error);
    json_decref(body);
    qr_ids_deinit(&ids);
    qr_free(j);
    if (status == QR_OK) {
        sv_send_json(x, 200);
        return;
    }
    x->answer.n = 0; /* the beginning of an answer that failed */
    sv_answer_error(x, NULL, qr_status_http(status), error.msg);
}

void sv_on_tokenize(sv_server *s, sv_exchange *x)
{
    job *j = sv_is_loaded(s) ? qr_calloc(1, sizeof *j) : NULL;
    if (j == NULL) {
        sv_answer_error(x, NULL, sv_is_loaded(s) ? 500 : 503, sv_is_loaded(s) ? "out of memory" : "Loading model");
        return;
    }
    *j = (job){{run, NULL}, s, x};
    sv_pool_add(s->pool, &j->work);
}
