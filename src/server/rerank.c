/* Requests for scores. They go through these hands:
 *
 *   connection's thread   sv_on_rerank: limits; queues the rest
 *   pool                  read_request: JSON, dialect, tokenizing; gives the engine its job
 *   engine's thread       on_progress: pieces of a streamed answer; on_scored: queues the rest
 *   pool                  write_answer: order, JSON
 *   connection's thread   sends it
 */
#define _GNU_SOURCE
#include "server/internal.h"

#include "base/mem.h"
#include "base/system.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

typedef struct ticket {
    sv_work work; /* first: what the pool holds is the ticket */
    sv_server *server;
    sv_exchange *exchange;
    const sv_dialect *dialect;
    sv_request request;
    const sv_model *model;
    qr_result *results;
    size_t *order;
    char **failures; /* [n_documents] why one has no score, if that is known of it; NULL: not asked for */
    char *cut;       /* [n_documents] longer than max_document_chars; NULL: none is */
    qr_call call;
    qr_timing timing;
    qr_status status;
    qr_error error;
    double read_done, scored; /* qr_now; 0: not yet */
    uint64_t prompt_tokens;
    size_t n_truncated;

    int wants_stream, has_begun;
    char *told;             /* [n_documents] results that were sent */
    size_t n_told, to_tell; /* the first that was not */
} ticket;

void sv_rerank_free(void *user)
{
    ticket *t = user;
    for (size_t i = 0; t->failures != NULL && i < t->request.n_documents; i++) qr_free(t->failures[i]);
    qr_free(t->failures);
    qr_free(t->results);
    qr_free(t->order);
    qr_free(t->cut);
    qr_free(t->told);
    sv_request_deinit(&t->request);
    qr_free(t);
}

static const char *model_name(const ticket *t)
{
    return t->request.model != NULL ? t->request.model : t->model != NULL ? t->model->name : t->server->models[0].name;
}

/* ---- streamed answers: server-sent events --------------------------------------------------------------------------------------- */

static void send_event(ticket *t, int ends)
{
    sv_exchange *x = t->exchange;
    qr_buf_add(&x->answer, "\n\n", 2);
    if (!t->has_begun) {
        sv_add_header(x, "Cache-Control", "no-cache");
        sv_add_header(x, "X-Accel-Buffering", "no"); /* nginx passes it on as it comes */
    }
    t->has_begun = 1;
    sv_stream(x, 200, "text/event-stream", ends);
}

/* On the engine's thread: what was scored since the last time. */
static int on_progress(void *arg, size_t done, size_t total)
{
    ticket *t = arg;
    sv_exchange *x = t->exchange;
    qr_json_out json = sv_json_answer(x);
    qr_buf_printf(&x->answer, "event: progress\ndata: ");
    qr_out_open(&json, NULL, '{');
    qr_out_int(&json, "done", done);
    qr_out_int(&json, "total", total);
    qr_out_open(&json, "results", '[');
    while (t->to_tell < total && t->told[t->to_tell]) t->to_tell++;
    for (size_t i = t->to_tell; i < total && t->n_told < done; i++) {
        const qr_result *result = &t->results[i];
        if (t->told[i] || !(result->flags & QR_RESULT_DONE)) continue;
        t->told[i] = 1;
        t->n_told++;
        qr_out_open(&json, NULL, '{');
        qr_out_int(&json, "index", i);
        sv_write_score(&json, "relevance_score", &t->request, result);
        sv_write_score(&json, "score", &t->request, result);
        qr_out_int(&json, "tokens", result->n_tokens);
        qr_out_bool(&json, "truncated", (result->flags & QR_RESULT_TRUNCATED) != 0 || (t->cut != NULL && t->cut[i]));
        qr_out_close(&json, '}');
    }
    qr_out_close(&json, ']');
    qr_out_close(&json, '}');
    send_event(t, 0);
    return 0;
}

/* ---- answers -------------------------------------------------------------------------------------------------------------------- */

static void refuse(ticket *t, int http, const char *message)
{
    sv_exchange *x = t->exchange;
    atomic_fetch_sub(&t->server->n_waiting, 1);
    if (!t->has_begun) {
        sv_answer_error(x, t->dialect, http, message);
        return;
    }
    sv_error error = {http, message, x->id, "server_error", NULL};
    qr_json_out json = sv_json_answer(x);
    qr_buf_printf(&x->answer, "event: error\ndata: ");
    t->dialect->write_error(&json, &error);
    send_event(t, 1);
}

static void fail(ticket *t, qr_status status, qr_error *error)
{
    error->code = status;
    t->status = status;
    if (error != &t->error) t->error = *error; /* for the log */
    refuse(t, t->dialect != NULL && t->dialect->http_of != NULL ? t->dialect->http_of(error) : qr_status_http(status), error->msg);
}

/* text-embeddings-inference's, whole milliseconds. */
static void add_timing_headers(ticket *t, double total)
{
    sv_exchange *x = t->exchange;
    qr_info info;
    size_t characters = 0;
    qr_engine_info(t->model->engine, &info);
    for (size_t i = 0; i < t->request.n_documents; i++)
        for (size_t k = 0; k < t->request.documents[i].len; k++)
            characters += ((unsigned char) t->request.documents[i].data[k] & 0xC0) != 0x80;
    sv_add_header(x, "x-compute-type", "%s", info.backend);
    sv_add_header(x, "x-compute-time", "%.0f", total * 1e3);
    sv_add_header(x, "x-compute-characters", "%zu", characters);
    sv_add_header(x, "x-compute-tokens", "%llu", (unsigned long long) t->prompt_tokens);
    sv_add_header(x, "x-total-time", "%.0f", total * 1e3);
    sv_add_header(x, "x-tokenization-time", "%.0f", t->timing.tokenize * 1e3);
    sv_add_header(x, "x-queue-time", "%.0f", t->timing.queue * 1e3);
    sv_add_header(x, "x-inference-time", "%.0f", t->timing.compute * 1e3);
}

static void add_headers(ticket *t)
{
    sv_exchange *x = t->exchange;
    double total = qr_now() - x->begin;
    sv_add_header(x, "Server-Timing", "read;dur=%.2f, tokenize;dur=%.2f, queue;dur=%.2f, inference;dur=%.2f, total;dur=%.2f",
                  (t->read_done - x->begin) * 1e3, t->timing.tokenize * 1e3, t->timing.queue * 1e3, t->timing.compute * 1e3, total * 1e3);
    if (t->n_truncated > 0) sv_add_header(x, "X-Truncated-Documents", "%zu", t->n_truncated);
    if (t->dialect->has_timing_headers) add_timing_headers(t, total);
}

/* What a failed call has scored all the same; what ended it is none of the documents' fault. */
static int has_part(const ticket *t)
{
    int may = t->status == QR_E_TIMEOUT || t->status == QR_E_UNAVAILABLE || t->status == QR_E_BACKEND;
    for (size_t i = 0; may && t->request.partial && i < t->request.n_documents; i++)
        if (t->results[i].flags & QR_RESULT_DONE) return 1;
    return 0;
}

static void write_answer(sv_work *work)
{
    ticket *t = (ticket *) work;
    sv_exchange *x = t->exchange;
    const sv_request *r = &t->request;
    size_t n_done = 0;
    if (t->status != QR_OK && !has_part(t)) {
        fail(t, t->status, &t->error);
        return;
    }
    qr_rank(t->results, r->n_documents, t->order);
    for (size_t i = 0; i < r->n_documents; i++) {
        if (!(t->results[i].flags & QR_RESULT_DONE)) continue;
        n_done++;
        t->prompt_tokens += t->results[i].n_tokens;
        t->n_truncated += (t->results[i].flags & QR_RESULT_TRUNCATED) != 0 || (t->cut != NULL && t->cut[i]);
    }
    sv_outcome outcome = {
        .results = t->results,
        .order = t->order,
        .n_shown = r->top_n > 0 && r->top_n < n_done ? r->top_n : n_done,
        .failure = t->status != QR_OK ? t->error.msg : NULL,
        .failures = t->failures,
        .id = x->id,
        .model = model_name(t),
        .created = time(NULL),
        .prompt_tokens = t->prompt_tokens,
        .n_truncated = t->n_truncated,
        .mirror_data = t->server->options.mirror_data,
    };
    qr_json_out json = sv_json_answer(x);
    if (t->wants_stream) qr_buf_printf(&x->answer, "event: result\ndata: ");
    t->dialect->write(&json, r, &outcome);
    sv_metrics_scored(&t->server->metrics, &(sv_scored){n_done, t->prompt_tokens, t->n_truncated, t->timing});
    atomic_fetch_sub(&t->server->n_waiting, 1);
    if (!t->has_begun) add_headers(t);
    if (t->wants_stream) send_event(t, 1);
    else sv_send_json(x, 200);
}

/* On the engine's thread. Without memory, the reason why the call failed stands for this one. */
static void on_failed(void *arg, size_t document, const char *reason)
{
    ticket *t = arg;
    t->failures[document] = qr_strndup(reason, strlen(reason));
}

static void on_scored(void *arg, qr_status status, const qr_error *error)
{
    ticket *t = arg;
    t->scored = qr_now();
    t->status = status;
    if (status != QR_OK) t->error = *error;
    t->work.run = write_answer;
    sv_pool_add(t->server->pool, &t->work);
}

/* ---- requests ------------------------------------------------------------------------------------------------------------------- */

/* Bytes of the first `limit` code points; len if there are not so many. */
static size_t bytes_of(qr_text text, size_t limit)
{
    size_t n = 0, i = 0;
    if (text.len <= limit) return text.len;
    for (; i < text.len; i++)
        if (((unsigned char) text.data[i] & 0xC0) != 0x80 && n++ == limit) return i;
    return text.len;
}

static qr_status check_limits(ticket *t, qr_error *err)
{
    const sv_server_options *o = &t->server->options;
    sv_request *r = &t->request;
    if (r->n_documents > o->max_documents)
        return qr_fail(err, QR_E_INPUT, "expected at most %zu documents, found %zu", o->max_documents, r->n_documents);
    for (size_t q = 0; o->max_query_chars > 0 && q < r->n_queries; q++)
        if (bytes_of(r->queries[q].query, o->max_query_chars) < r->queries[q].query.len)
            return qr_fail(err, QR_E_TOO_LONG, "the query: expected at most %zu characters, found more, %zu bytes", o->max_query_chars,
                           r->queries[q].query.len);
    for (size_t i = 0; o->max_document_chars > 0 && i < r->n_documents; i++) {
        size_t n = bytes_of(r->documents[i], o->max_document_chars);
        if (n == r->documents[i].len) continue;
        if (r->truncation == QR_TRUNCATE_NEVER)
            return qr_fail(err, QR_E_TOO_LONG,
                           "document %zu: expected at most %zu characters, found more, %zu bytes; it may not be truncated", i,
                           o->max_document_chars, r->documents[i].len);
        if (t->cut == NULL && (t->cut = qr_calloc(r->n_documents, 1)) == NULL)
            return qr_fail(err, QR_E_MEMORY, "no memory for %zu documents", r->n_documents);
        t->cut[i] = 1;
        r->documents[i].len = n;
    }
    return QR_OK;
}

static qr_status begin_scoring(ticket *t, qr_error *err)
{
    sv_request *r = &t->request;
    sv_exchange *x = t->exchange;
    qr_status status = sv_parse_body(x, &r->body, err);
    t->dialect = sv_dialect_of(x->path, r->body);
    if (status != QR_OK) return status;
    r->return_documents = t->server->options.return_documents;
    if ((status = t->dialect->read(r, err)) != QR_OK || (status = sv_unwrap(r, err)) != QR_OK) return status;
    if ((t->model = sv_model_find(t->server, r->model)) == NULL) return sv_fail_model(t->server, r->model, err);
    if ((status = check_limits(t, err)) != QR_OK) return status;
    t->read_done = qr_now();
    t->results = qr_calloc(r->n_documents, sizeof *t->results);
    t->order = qr_calloc(r->n_documents, sizeof *t->order);
    if (r->partial) t->failures = qr_calloc(r->n_documents, sizeof *t->failures);
    if (t->wants_stream) t->told = qr_calloc(r->n_documents, 1);
    if (t->results == NULL || t->order == NULL || (r->partial && t->failures == NULL) || (t->wants_stream && t->told == NULL))
        return qr_fail(err, QR_E_MEMORY, "no memory for %zu documents", r->n_documents);
    t->call = (qr_call){.cancel = &x->cancel, .timeout_seconds = t->server->options.request_timeout_s, .timing = &t->timing};
    if (r->partial) {
        t->call.failed = on_failed;
        t->call.failed_arg = t;
    }
    if (t->wants_stream) {
        t->call.progress = on_progress;
        t->call.progress_arg = t;
    }
    qr_engine *engine = t->model->engine;
    return qr_engine_submit(engine, r->queries, r->n_queries, t->results, &t->call, on_scored, t, err);
}

static void read_request(sv_work *work)
{
    ticket *t = (ticket *) work;
    qr_error error = {0};
    qr_status status = begin_scoring(t, &error);
    if (status != QR_OK) fail(t, status, &error);
}

/* OpenRouter's clients name the type only to say that they do not want it: "application/json;q=1, text/event-stream;q=0". */
static int wants_stream(const char *accept)
{
    static const char type[] = "text/event-stream";
    const char *found = accept != NULL ? strstr(accept, type) : NULL;
    if (found == NULL) return 0;
    found += strlen(type);
    found += strspn(found, "; ");
    return strncasecmp(found, "q=", 2) != 0 || strtod(found + 2, NULL) > 0;
}

void sv_on_rerank(sv_server *s, sv_exchange *x)
{
    if (!sv_is_loaded(s)) {
        sv_answer_error(x, NULL, 503, "Loading model");
        return;
    }
    if (atomic_fetch_add(&s->n_waiting, 1) >= s->options.max_waiting) {
        atomic_fetch_sub(&s->n_waiting, 1);
        sv_answer_error(x, NULL, 429, "Model is overloaded: too many requests are waiting");
        return;
    }
    ticket *t = qr_calloc(1, sizeof *t);
    if (t == NULL) {
        atomic_fetch_sub(&s->n_waiting, 1);
        sv_answer_error(x, NULL, 500, "out of memory");
        return;
    }
    t->server = s;
    t->exchange = x;
    t->wants_stream = wants_stream(sv_header(x, "Accept"));
    x->user = t;
    t->work.run = read_request;
    sv_pool_add(s->pool, &t->work);
}

/* ---- logs ----------------------------------------------------------------------------------------------------------------------- */

int sv_rerank_describe(const void *user, char *text, size_t size)
{
    const ticket *t = user;
    if (t->scored == 0) return 0;
    int n = snprintf(text, size, ", %s, %zu documents, %llu tokens, queue %.1f ms, inference %.1f ms", t->dialect->name,
                     t->request.n_documents, (unsigned long long) t->prompt_tokens, t->timing.queue * 1e3, t->timing.compute * 1e3);
    return n < 0 || (size_t) n >= size ? 0 : n;
}

static void write_texts(qr_json_out *json, const ticket *t)
{
    qr_out_open(json, "queries", '[');
    for (size_t q = 0; q < t->request.n_queries; q++)
        qr_out_text(json, NULL, t->request.queries[q].query.data, t->request.queries[q].query.len);
    qr_out_close(json, ']');
    qr_out_open(json, "texts", '[');
    for (size_t i = 0; i < t->request.n_documents; i++) qr_out_text(json, NULL, t->request.documents[i].data, t->request.documents[i].len);
    qr_out_close(json, ']');
}

void sv_rerank_write_fields(qr_json_out *json, const void *user)
{
    const ticket *t = user;
    if (t->status != QR_OK) qr_out_string(json, "error", t->error.msg[0] != 0 ? t->error.msg : qr_status_text(t->status));
    if (t->read_done == 0) return;
    qr_out_string(json, "dialect", t->dialect->name);
    qr_out_string(json, "model", model_name(t));
    qr_out_int(json, "documents", t->request.n_documents);
    if (t->server->options.log_texts) write_texts(json, t);
    if (t->scored == 0) return;
    qr_out_int(json, "tokens", t->prompt_tokens);
    qr_out_int(json, "truncated", t->n_truncated);
    qr_out_bool(json, "streamed", t->wants_stream);
    qr_out_real(json, "tokenize_ms", t->timing.tokenize * 1e3, 6);
    qr_out_real(json, "queue_ms", t->timing.queue * 1e3, 6);
    qr_out_real(json, "inference_ms", t->timing.compute * 1e3, 6);
}
