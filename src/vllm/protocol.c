/* See protocol.h. The forms are those of vLLM 0.32; older servers ignore fields that they do not know, with status 200, which is why every
 * answer is checked for what was asked. */
#include "vllm/protocol.h"

#include "base/json_in.h"
#include "base/json_out.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* vLLM's own limit on the prompts of one completion request; the other routes have none, and get a bound for the sake of memory. */
enum { MAX_COMPLETION_PROMPTS = 1024, MAX_ITEMS = 2048 };
/* Of one result with all its fields, in bytes; measured with vLLM 0.32: below 400. */
enum { RESULT_BYTES = 4096, ANSWER_BYTES = 65536 };
/* The largest margin that a probability in double precision can tell: ln(2^53). */
static const double max_told_margin = 36.7;

static const struct {
    const char *name, *route, *results; /* results: the member of the answer that lists them */
} protocols[QR_VLLM_N_PROTOCOLS] = {
    [QR_VLLM_COMPLETIONS] = {"completions", "/v1/completions", "choices"},
    [QR_VLLM_CLASSIFY] = {"classify", "/classify", "data"},
    [QR_VLLM_GENERATIVE] = {"generative-scoring", "/generative_scoring", "data"},
};

const char *qr_vllm_protocol_name(qr_vllm_protocol protocol) { return protocols[protocol].name; }
const char *qr_vllm_protocol_route(qr_vllm_protocol protocol) { return protocols[protocol].route; }

qr_vllm_protocol qr_vllm_protocol_find(const char *name)
{
    int p = 0;
    while (p < QR_VLLM_N_PROTOCOLS && strcmp(protocols[p].name, name) != 0) p++;
    return (qr_vllm_protocol) p;
}

size_t qr_vllm_longest_prompt(qr_vllm_protocol protocol, size_t max_model_len)
{
    return protocol == QR_VLLM_CLASSIFY || max_model_len == 0 ? max_model_len : max_model_len - 1;
}

/* ---- requests -------------------------------------------------------------------------------------------------------------------- */

size_t qr_vllm_capacity(const qr_vllm_call *call)
{
    size_t most = call->protocol == QR_VLLM_COMPLETIONS ? MAX_COMPLETION_PROMPTS : MAX_ITEMS, n = 1;
    const qr_seq *seqs = call->batch->seqs + call->first;
    if (most > call->n) most = call->n;
    if (call->protocol != QR_VLLM_GENERATIVE) return most;
    while (n < most && seqs[n].prefix == seqs[0].prefix) n++;
    return n;
}

static void write_ids(qr_buf *body, const uint32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char digits[12], *p = digits + sizeof digits;
        uint32_t value = ids[i];
        do *--p = (char) ('0' + value % 10);
        while ((value /= 10) > 0);
        if (i > 0) *--p = ',';
        qr_buf_add(body, p, (size_t) (digits + sizeof digits - p));
    }
}

/* "key":[[...],...] with whole prompts, or only the documents' own parts. */
static void write_lists(qr_buf *body, const char *key, const qr_vllm_call *call, int whole)
{
    qr_buf_printf(body, ",\"%s\":[", key);
    for (size_t i = 0; i < call->n; i++) {
        const qr_seq *seq = &call->batch->seqs[call->first + i];
        const qr_prefix *prefix = &call->batch->prefixes[seq->prefix];
        qr_buf_printf(body, i > 0 ? ",[" : "[");
        if (whole) write_ids(body, prefix->ids, prefix->n_ids);
        if (whole && prefix->n_ids > 0) qr_buf_add(body, ",", 1);
        write_ids(body, seq->ids, seq->n_ids);
        qr_buf_add(body, "]", 1);
    }
    qr_buf_add(body, "]", 1);
}

static void write_model(qr_buf *body, const char *model)
{
    qr_json_out json = {.write = qr_buf_write, .arg = body};
    qr_buf_printf(body, "{\"model\":");
    qr_out_string(&json, NULL, model);
}

void qr_vllm_write_call(const qr_vllm_call *call, qr_buf *body)
{
    const qr_prefix *prefix = &call->batch->prefixes[call->batch->seqs[call->first].prefix];
    write_model(body, call->model);
    switch (call->protocol) {
    case QR_VLLM_COMPLETIONS:
        write_lists(body, "prompt", call, 1);
        qr_buf_printf(body,
                      ",\"max_tokens\":1,\"temperature\":0,\"logprobs\":0,\"logprob_token_ids\":[%u,%u],\"allowed_token_ids\":[%u,%u],"
                      "\"return_tokens_as_token_ids\":true}",
                      call->yes_id, call->no_id, call->yes_id, call->no_id);
        return;
    case QR_VLLM_CLASSIFY:
        write_lists(body, "input", call, 1);
        qr_buf_printf(body, ",\"use_activation\":false}");
        return;
    default:
        qr_buf_printf(body, ",\"query\":[");
        write_ids(body, prefix->ids, prefix->n_ids);
        qr_buf_add(body, "]", 1);
        write_lists(body, "items", call, 0);
        qr_buf_printf(body, ",\"label_token_ids\":[%u,%u],\"apply_softmax\":true,\"item_first\":false,\"add_special_tokens\":false}",
                      call->yes_id, call->no_id);
    }
}

size_t qr_vllm_answer_bytes(const qr_vllm_call *call) { return ANSWER_BYTES + call->n * RESULT_BYTES; }

/* ---- answers --------------------------------------------------------------------------------------------------------------------- */

/* A number that a margin, which is a float, can hold; false for any other and for what some versions write for -inf, nothing. */
static int read_number(const json_t *value, double *out)
{
    if (!json_is_number(value)) return 0;
    *out = json_number_value(value);
    return fabs(*out) <= FLT_MAX;
}

static qr_status read_log_probability(const json_t *top, uint32_t id, double *out, qr_error *err)
{
    char key[24];
    snprintf(key, sizeof key, "token_id:%u", id);
    const json_t *value = json_object_get(top, key);
    /* vLLM writes minus infinity as -9999. */
    if (read_number(value, out) && *out > -9999 && *out <= 1e-3) return QR_OK;
    return qr_fail(err, QR_E_BACKEND, "expected the log-probability of token %u, found %s (a vLLM without logprob_token_ids?)", id,
                   qr_json_label(value).text);
}

static qr_status read_completion(const qr_vllm_call *call, const json_t *choice, qr_logits *out, qr_error *err)
{
    double yes, no;
    const json_t *top = json_array_get(json_object_get(json_object_get(choice, "logprobs"), "top_logprobs"), 0);
    qr_status status = read_log_probability(top, call->yes_id, &yes, err);
    if (status == QR_OK) status = read_log_probability(top, call->no_id, &no, err);
    if (status == QR_OK) *out = (qr_logits){.yes = (float) (yes - no)};
    return status;
}

static qr_status read_class(const json_t *result, qr_logits *out, qr_error *err)
{
    double margin;
    const json_t *probs = json_object_get(result, "probs");
    if (json_array_size(probs) != 1)
        return qr_fail(err, QR_E_BACKEND, "expected one class, found %zu (a server without Qwen3ForSequenceClassification?)",
                       json_array_size(probs));
    if (!read_number(json_array_get(probs, 0), &margin))
        return qr_fail(err, QR_E_BACKEND, "expected a finite number as the class's value, found %s",
                       qr_json_label(json_array_get(probs, 0)).text);
    *out = (qr_logits){.yes = (float) margin};
    return QR_OK;
}

static qr_status read_probability(const json_t *result, qr_logits *out, qr_error *err)
{
    double p;
    const json_t *score = json_object_get(result, "score");
    if (!read_number(score, &p) || p < 0 || p > 1)
        return qr_fail(err, QR_E_BACKEND, "expected a score from 0 to 1, found %s", qr_json_label(score).text);
    double margin = p <= 0 ? -INFINITY : p >= 1 ? INFINITY : log(p) - log1p(-p);
    *out = (qr_logits){.yes = (float) fmax(-max_told_margin, fmin(margin, max_told_margin))};
    return QR_OK;
}

/* The server's count of the prompts' tokens must be ours: it cuts a prompt that is too long for it without a word. */
static qr_status check_usage(const qr_vllm_call *call, const json_t *root, qr_error *err)
{
    const json_t *count = json_object_get(json_object_get(root, "usage"), "prompt_tokens");
    size_t n = 0;
    if (!json_is_integer(count)) return QR_OK;
    for (size_t i = 0; i < call->n; i++) {
        const qr_seq *seq = &call->batch->seqs[call->first + i];
        n += call->batch->prefixes[seq->prefix].n_ids + seq->n_ids;
    }
    if (json_integer_value(count) == (json_int_t) n) return QR_OK;
    return qr_fail(err, QR_E_BACKEND, "expected %zu prompt tokens, found %s: prompts were cut or changed", n, qr_json_label(count).text);
}

/* Results come with their index, in no promised order; each must be there once. */
static qr_status read_results(const qr_vllm_call *call, const json_t *root, qr_logits *out, qr_error *err)
{
    const json_t *results = json_object_get(root, protocols[call->protocol].results), *result;
    size_t i;
    if (json_array_size(results) != call->n)
        return qr_fail(err, QR_E_BACKEND, "expected %zu results in \"%s\", found %zu", call->n, protocols[call->protocol].results,
                       json_array_size(results));
    for (i = 0; i < call->n; i++) out[i].no = NAN; /* not there yet */
    json_array_foreach(results, i, result)
    {
        const json_t *index = json_object_get(result, "index");
        json_int_t at = json_is_integer(index) ? json_integer_value(index) : -1;
        if (at < 0 || (size_t) at >= call->n || !isnan(out[at].no))
            return qr_fail(err, QR_E_BACKEND, "result %zu: expected an index below %zu that no other has, found %s", i, call->n,
                           qr_json_label(index).text);
        qr_status status = call->protocol == QR_VLLM_COMPLETIONS ? read_completion(call, result, &out[at], err)
                           : call->protocol == QR_VLLM_CLASSIFY  ? read_class(result, &out[at], err)
                                                                 : read_probability(result, &out[at], err);
        if (status != QR_OK) return qr_fail_prefix(err, status, "result %zu", i);
    }
    return QR_OK;
}

static qr_status parse(json_t **root, const char *text, size_t len, const char *route, qr_error *err)
{
    qr_status status = qr_json_parse(root, text, len, route, err);
    if (status == QR_E_FORMAT) err->code = status = QR_E_BACKEND; /* of a file it would be the file's fault */
    return status;
}

qr_status qr_vllm_read_answer(const qr_vllm_call *call, const char *text, size_t len, qr_logits *out, qr_error *err)
{
    json_t *root;
    qr_status status = parse(&root, text, len, protocols[call->protocol].route, err);
    if (status != QR_OK) return status;
    status = check_usage(call, root, err);
    if (status == QR_OK) status = read_results(call, root, out, err);
    json_decref(root);
    return status == QR_OK ? QR_OK : qr_fail_prefix(err, status, "%s", protocols[call->protocol].route);
}

qr_status qr_vllm_read_models(const char *text, size_t len, const char *wanted, char *model, size_t size, size_t *max_model_len,
                              qr_error *err)
{
    json_t *root;
    const json_t *item, *found = NULL;
    const char *first = NULL;
    size_t i;
    qr_status status = parse(&root, text, len, "/v1/models", err);
    if (status != QR_OK) return status;
    json_array_foreach(json_object_get(root, "data"), i, item)
    {
        const char *id = json_string_value(json_object_get(item, "id"));
        if (id == NULL) continue;
        if (first == NULL) first = id;
        if (found == NULL && (wanted == NULL || strcmp(id, wanted) == 0)) found = item;
    }
    if (found == NULL) {
        status = qr_fail(err, QR_E_BACKEND, "/v1/models: expected %s%s, found %s", wanted != NULL ? "the model " : "a model",
                         wanted != NULL ? wanted : "", first != NULL ? qr_label_of(first).text : "none");
    } else {
        const char *id = json_string_value(json_object_get(found, "id"));
        json_int_t most = json_integer_value(json_object_get(found, "max_model_len"));
        *max_model_len = most > 0 ? (size_t) most : 0;
        if (strlen(id) >= size) status = qr_fail(err, QR_E_BACKEND, "/v1/models: a name of %zu bytes", strlen(id));
        else strcpy(model, id);
    }
    json_decref(root);
    return status;
}

/* What a terminal may get to see of a server's words. */
static void make_printable(char *text)
{
    for (; *text != 0; text++)
        if ((unsigned char) *text < 0x20 || (unsigned char) *text >= 0x7F) *text = '?';
}

void qr_vllm_read_version(const char *text, size_t len, char *version, size_t size)
{
    json_error_t ignored;
    json_t *root = json_loadb(text, len, 0, &ignored);
    const char *found = json_string_value(json_object_get(root, "version"));
    snprintf(version, size, "%s", found != NULL ? found : "");
    make_printable(version);
    json_decref(root);
}

void qr_vllm_write_tokenize(const char *model, const char *text, qr_buf *body)
{
    qr_json_out json = {.write = qr_buf_write, .arg = body};
    qr_out_open(&json, NULL, '{');
    qr_out_string(&json, "model", model);
    qr_out_string(&json, "prompt", text);
    qr_out_bool(&json, "add_special_tokens", 0);
    qr_out_close(&json, '}');
}

qr_status qr_vllm_read_tokenize(const char *text, size_t len, const uint32_t *ids, size_t n_ids, qr_error *err)
{
    json_t *root;
    qr_status status = parse(&root, text, len, "/tokenize", err);
    if (status != QR_OK) return status;
    const json_t *tokens = json_object_get(root, "tokens");
    size_t n = json_array_size(tokens), i = 0;
    while (i < n && i < n_ids && json_is_integer(json_array_get(tokens, i)) && json_integer_value(json_array_get(tokens, i)) == ids[i]) i++;
    if (i < n_ids || n != n_ids)
        status = qr_fail(err, QR_E_BACKEND, "its tokenizer is another one: of a text with %zu tokens, token %zu is %s there", n_ids, i,
                         qr_json_label(json_array_get(tokens, i)).text);
    json_decref(root);
    return status;
}

void qr_vllm_error_text(const char *text, size_t len, char *out, size_t size)
{
    json_error_t ignored;
    json_t *root = json_loadb(text, len, 0, &ignored);
    json_t *error = json_object_get(root, "error");
    const char *message = json_string_value(json_object_get(error, "message"));
    if (message == NULL) message = json_string_value(error);
    if (message == NULL) message = json_string_value(json_object_get(root, "detail"));
    if (message == NULL) message = json_string_value(json_object_get(root, "message"));
    int cut = len < 80 ? (int) len : 80;
    if (message != NULL) snprintf(out, size, "%s", message);
    else snprintf(out, size, "%.*s", cut, len > 0 ? text : "");
    make_printable(out);
    json_decref(root);
}
