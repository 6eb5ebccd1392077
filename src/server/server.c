/* See server.h. A request for scores goes through these hands:
 *
 *   connection's thread   on_request: route, key, limits; queues the rest
 *   pool                  read_request: JSON, dialect, tokenizing; gives the engine its job
 *   engine's thread       on_scored: queues the rest
 *   pool                  write_answer: order, JSON
 *   connection's thread   sends it
 */
#define _GNU_SOURCE
#include "server/server.h"

#include "base/mem.h"
#include "engine/engine.h"
#include "engine/scheduler.h"
#include "model/builtin.h"
#include "server/assets.h"
#include "server/dialect.h"
#include "server/metrics.h"
#include "server/pool.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

struct sv_server {
    sv_server_options options;
    sv_http *http;
    sv_pool *pool;
    _Atomic(qr_engine *) engine; /* NULL while loading */
    atomic_int draining;
    atomic_size_t n_waiting; /* requests for scores that are in work */
    sv_metrics metrics;
    unsigned char (*keys)[32]; /* SHA-256 of each, so that comparing takes the same time for all */
    time_t start;
};

/* A request for scores in work. */
typedef struct ticket {
    sv_work work; /* first: what the pool holds is the ticket */
    sv_server *server;
    sv_exchange *exchange;
    const sv_dialect *dialect;
    sv_request request;
    qr_result *results;
    size_t *order;
    qr_call call;
    qr_status status;
    qr_error error;
    double read_done, scored; /* qr_now */
    uint64_t prompt_tokens;
    size_t n_truncated;
} ticket;

/* ---- answers -------------------------------------------------------------------------------------------------------------------- */

static const char *error_type(int http)
{
    switch (http) {
    case 401:
        return "authentication_error";
    case 404:
        return "not_found_error";
    case 405:
        return "method_not_allowed";
    case 429:
        return "rate_limit_error";
    case 503:
        return "unavailable_error";
    default:
        return http < 500 ? "invalid_request_error" : "server_error";
    }
}

static qr_json_out json_answer(sv_exchange *x) { return (qr_json_out){.write = qr_buf_write, .arg = &x->answer, .spaced = 1}; }

static void send_json(sv_exchange *x, int status)
{
    qr_buf_add(&x->answer, "\n", 1);
    sv_answer(x, status, "application/json");
}

static void answer_error(sv_exchange *x, const sv_dialect *dialect, int http, const char *message)
{
    /* The first word in quotes is the field that is wrong. */
    char param[64] = "";
    if (message[0] == '"') snprintf(param, sizeof param, "%.*s", (int) strcspn(message + 1, "\""), message + 1);
    sv_error error = {http, message, x->id, error_type(http), param[0] != 0 ? param : NULL};
    qr_json_out json = json_answer(x);
    (dialect != NULL ? dialect->write_error : sv_write_error)(&json, &error);
    if (http == 429 || http == 503) sv_add_header(x, "Retry-After", "1");
    if (http == 401) sv_add_header(x, "WWW-Authenticate", "Bearer");
    send_json(x, http);
}

/* ---- scores --------------------------------------------------------------------------------------------------------------------- */

static void free_ticket(ticket *t)
{
    sv_request_deinit(&t->request);
    qr_free(t->results);
    qr_free(t->order);
    qr_free(t);
}

static void fail(ticket *t, qr_status status, const qr_error *error)
{
    int http = t->dialect != NULL && t->dialect->http_of != NULL ? t->dialect->http_of(status) : qr_status_http(status);
    t->status = status;
    atomic_fetch_sub(&t->server->n_waiting, 1);
    answer_error(t->exchange, t->dialect, http, error->msg);
}

static const char *model_name(const ticket *t) { return t->request.model != NULL ? t->request.model : t->server->options.model_name; }

static void write_answer(sv_work *work)
{
    ticket *t = (ticket *) work;
    sv_exchange *x = t->exchange;
    const sv_request *r = &t->request;
    if (t->status != QR_OK) {
        fail(t, t->status, &t->error);
        return;
    }
    sv_outcome outcome = {.results = t->results, .order = t->order, .id = x->id, .model = model_name(t), .created = time(NULL)};
    qr_rank(t->results, r->n_documents, t->order);
    outcome.n_shown = r->top_n > 0 && r->top_n < r->n_documents ? r->top_n : r->n_documents;
    for (size_t i = 0; i < r->n_documents; i++) {
        outcome.prompt_tokens += t->results[i].n_tokens;
        outcome.n_truncated += (t->results[i].flags & QR_RESULT_TRUNCATED) != 0;
    }
    t->prompt_tokens = outcome.prompt_tokens;
    t->n_truncated = outcome.n_truncated;
    qr_json_out json = json_answer(x);
    t->dialect->write(&json, r, &outcome);

    double now = qr_now();
    sv_add_header(x, "Server-Timing", "read;dur=%.2f, inference;dur=%.2f, total;dur=%.2f", (t->read_done - x->begin) * 1e3,
                  (t->scored - t->read_done) * 1e3, (now - x->begin) * 1e3);
    if (outcome.n_truncated > 0) sv_add_header(x, "X-Truncated-Documents", "%zu", outcome.n_truncated);
    sv_metrics_scored(&t->server->metrics, r->n_documents, outcome.prompt_tokens, outcome.n_truncated, t->scored - t->read_done);
    atomic_fetch_sub(&t->server->n_waiting, 1);
    send_json(x, 200);
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

static qr_status check_limits(const ticket *t, qr_error *err)
{
    size_t limit = t->server->options.max_documents;
    if (t->request.n_documents > limit)
        return qr_fail(err, QR_E_INPUT, "expected at most %zu documents, found %zu", limit, t->request.n_documents);
    return QR_OK;
}

static qr_status begin_scoring(ticket *t, qr_error *err)
{
    sv_request *r = &t->request;
    sv_exchange *x = t->exchange;
    int replaced = 0;
    qr_status status = x->body.failed ? qr_fail(err, QR_E_MEMORY, "no memory for the request")
                                      : qr_json_parse_text(&r->body, x->body.data != NULL ? x->body.data : "", x->body.n, &replaced, err);
    t->dialect = sv_dialect_of(x->path, r->body);
    if (status != QR_OK) return status;
    if (!json_is_object(r->body)) return qr_fail(err, QR_E_INPUT, "the body must be a JSON object, found %s", qr_json_label(r->body).text);
    qr_buf_deinit(&x->body); /* the texts are in r->body now */
    if ((status = t->dialect->read(r, err)) != QR_OK) return status;
    if ((status = check_limits(t, err)) != QR_OK) return status;
    t->read_done = qr_now();
    t->results = qr_calloc(r->n_documents, sizeof *t->results);
    t->order = qr_calloc(r->n_documents, sizeof *t->order);
    if (t->results == NULL || t->order == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for %zu documents", r->n_documents);
    t->call = (qr_call){.cancel = &x->cancel, .timeout_seconds = t->server->options.request_timeout_s};
    return qr_engine_submit(t->server->engine, r->queries, r->n_queries, t->results, &t->call, on_scored, t, err);
}

static void read_request(sv_work *work)
{
    ticket *t = (ticket *) work;
    qr_error error = {0};
    qr_status status = begin_scoring(t, &error);
    if (status != QR_OK) fail(t, status, &error);
}

static void on_rerank(sv_server *s, sv_exchange *x)
{
    if (s->engine == NULL) {
        answer_error(x, NULL, 503, "Loading model");
        return;
    }
    if (atomic_fetch_add(&s->n_waiting, 1) >= s->options.max_waiting) {
        atomic_fetch_sub(&s->n_waiting, 1);
        answer_error(x, NULL, 429, "Model is overloaded: too many requests are waiting");
        return;
    }
    ticket *t = qr_calloc(1, sizeof *t);
    if (t == NULL) {
        atomic_fetch_sub(&s->n_waiting, 1);
        answer_error(x, NULL, 500, "out of memory");
        return;
    }
    t->server = s;
    t->exchange = x;
    x->user = t;
    t->work.run = read_request;
    sv_pool_add(s->pool, &t->work);
}

/* ---- what is asked about the server --------------------------------------------------------------------------------------------- */

/* All zero while the model is being loaded. */
static qr_info engine_info(const sv_server *s)
{
    qr_info info = {0};
    if (s->engine != NULL) qr_engine_info(s->engine, &info);
    return info;
}

static void on_health(sv_server *s, sv_exchange *x)
{
    (void) s;
    qr_buf_printf(&x->answer, "{\"status\": \"ok\"}\n");
    sv_answer(x, 200, "application/json");
}

static void on_ready(sv_server *s, sv_exchange *x)
{
    qr_json_out json = json_answer(x);
    int ready = s->engine != NULL && !s->draining;
    qr_info info = engine_info(s);
    qr_out_open(&json, NULL, '{');
    qr_out_bool(&json, "ready", ready);
    qr_out_string(&json, "status", ready ? "ready" : s->draining ? "draining" : "loading");
    qr_out_string(&json, "backend", info.backend);
    qr_out_string(&json, "model", s->options.model_name);
    qr_out_close(&json, '}');
    if (!ready) sv_add_header(x, "Retry-After", "1");
    send_json(x, ready ? 200 : 503);
}

static void on_config(sv_server *s, sv_exchange *x)
{
    qr_json_out json = json_answer(x);
    qr_info info = engine_info(s);
    qr_out_open(&json, NULL, '{');
    qr_out_string(&json, "version", qr_version());
    qr_out_string(&json, "model", s->options.model_name);
    if (info.builtin_model) qr_out_string(&json, "note", QR_BUILTIN_NOTE);
    qr_out_string(&json, "backend", info.backend);
    qr_out_string(&json, "device", info.device);
    qr_out_string(&json, "dtype", info.dtype);
    qr_out_int(&json, "max_length", info.max_length);
    qr_out_int(&json, "max_batch_tokens", info.max_batch_tokens);
    qr_out_int(&json, "n_parameters", info.n_parameters);
    qr_out_int(&json, "memory_bytes", info.memory_bytes);
    qr_out_bool(&json, "canonical_prompt", info.canonical_prompt);
    qr_out_open(&json, "limits", '{');
    qr_out_int(&json, "max_documents", s->options.max_documents);
    qr_out_int(&json, "max_body_bytes", s->options.max_body_bytes);
    qr_out_int(&json, "max_waiting", s->options.max_waiting);
    qr_out_real(&json, "request_timeout_s", s->options.request_timeout_s, 6);
    qr_out_close(&json, '}');
    qr_out_close(&json, '}');
    send_json(x, 200);
}

/* text-embeddings-inference's; Dify wants `reranker` as the first key of model_type. */
static void on_info(sv_server *s, sv_exchange *x)
{
    qr_json_out json = json_answer(x);
    qr_info info = engine_info(s);
    qr_out_open(&json, NULL, '{');
    qr_out_string(&json, "model_id", s->options.model_name);
    qr_out_string(&json, "model_sha", NULL);
    qr_out_string(&json, "model_dtype", info.dtype);
    qr_out_string(&json, "served_model_name", s->options.model_name);
    qr_out_open(&json, "model_type", '{');
    qr_out_open(&json, "reranker", '{');
    qr_out_open(&json, "id2label", '{');
    qr_out_string(&json, "0", "LABEL_0");
    qr_out_close(&json, '}');
    qr_out_open(&json, "label2id", '{');
    qr_out_int(&json, "LABEL_0", 0);
    qr_out_close(&json, '}');
    qr_out_close(&json, '}');
    qr_out_close(&json, '}');
    qr_out_int(&json, "max_concurrent_requests", s->options.max_waiting);
    qr_out_int(&json, "max_input_length", info.max_length);
    qr_out_int(&json, "max_batch_tokens", info.max_batch_tokens);
    qr_out_string(&json, "max_batch_requests", NULL);
    qr_out_int(&json, "max_client_batch_size", s->options.max_documents);
    qr_out_bool(&json, "auto_truncate", 1);
    qr_out_int(&json, "tokenization_workers", 2);
    qr_out_string(&json, "version", qr_version());
    qr_out_close(&json, '}');
    send_json(x, 200);
}

static void on_version(sv_server *s, sv_exchange *x)
{
    (void) s;
    qr_buf_printf(&x->answer, "{\"version\": \"%s\"}\n", qr_version());
    sv_answer(x, 200, "application/json");
}

static void write_model(qr_json_out *json, const char *key, const sv_server *s)
{
    qr_info info = engine_info(s);
    qr_out_open(json, key, '{');
    qr_out_string(json, "id", s->options.model_name);
    qr_out_string(json, "object", "model");
    qr_out_int(json, "created", (uint64_t) s->start);
    qr_out_string(json, "owned_by", "qwen-rerank");
    qr_out_string(json, "root", s->options.model_name);
    qr_out_string(json, "model_type", "rerank"); /* Xinference's */
    qr_out_int(json, "max_model_len", info.max_length);
    qr_out_close(json, '}');
}

static void on_models(sv_server *s, sv_exchange *x)
{
    qr_json_out json = json_answer(x);
    qr_out_open(&json, NULL, '{');
    qr_out_string(&json, "object", "list");
    qr_out_open(&json, "data", '[');
    write_model(&json, NULL, s);
    qr_out_close(&json, ']');
    qr_out_close(&json, '}');
    send_json(x, 200);
}

/* Any name: the one model answers to all. */
static void on_model(sv_server *s, sv_exchange *x)
{
    qr_json_out json = json_answer(x);
    write_model(&json, NULL, s);
    send_json(x, 200);
}

static void on_metrics(sv_server *s, sv_exchange *x)
{
    qr_stats stats = {0};
    if (s->engine != NULL) qr_engine_stats(s->engine, &stats);
    sv_metrics_write(&s->metrics, &stats, s->n_waiting, s->engine != NULL && !s->draining, &x->answer);
    sv_answer(x, 200, "text/plain; version=0.0.4; charset=utf-8");
}

/* The page for people, its parts, and the API's description. Texts of users are shown there: nothing from elsewhere may run. */
static void on_asset(sv_server *s, sv_exchange *x)
{
    (void) s;
    const sv_asset *asset = sv_asset_find(strcmp(x->path, "/") == 0 ? "/ui" : x->path);
    qr_buf_add(&x->answer, (const char *) asset->data, *asset->n);
    sv_add_header(x, "Content-Security-Policy",
                  "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
                  "form-action 'none'; frame-ancestors 'none'");
    sv_add_header(x, "X-Content-Type-Options", "nosniff");
    sv_add_header(x, "Referrer-Policy", "no-referrer");
    sv_add_header(x, "Cache-Control", "no-cache");
    sv_answer(x, 200, asset->content_type);
}

/* Browsers get the page, probes what text-embeddings-inference says there. */
static void on_root(sv_server *s, sv_exchange *x)
{
    const char *accept = sv_header(x, "Accept");
    sv_add_header(x, "Vary", "Accept");
    if (accept != NULL && strstr(accept, "text/html") != NULL) on_asset(s, x);
    else on_health(s, x);
}

/* ---- routes --------------------------------------------------------------------------------------------------------------------- */

enum { GET = 1, POST = 2, OPEN = 4 /* needs no key */, BELOW = 8 /* and every path below it */ };

typedef struct route {
    const char *path;
    int flags;
    void (*run)(sv_server *s, sv_exchange *x);
} route;

static const route routes[] = {
    {"/v1/rerank", POST, on_rerank},
    {"/v2/rerank", POST, on_rerank},
    {"/rerank", POST, on_rerank},
    {"/v1/reranking", POST, on_rerank},
    {"/reranking", POST, on_rerank},
    {"/v1/score", POST, on_rerank},
    {"/score", POST, on_rerank},
    {"/api/rerank", POST, on_rerank},
    {"/api/v1/rerank", POST, on_rerank},
    {"/v1/v1/rerank", POST, on_rerank}, /* a Cohere client whose base URL ends in /v1 */
    {"/v1/v2/rerank", POST, on_rerank},
    {"/invocations", POST, on_rerank},
    {"/", POST, on_rerank}, /* text-embeddings-inference */
    {"/health", GET | OPEN, on_health},
    {"/healthz", GET | OPEN, on_health},
    {"/v1/health", GET | OPEN, on_health},
    {"/", GET | OPEN, on_root},
    {"/ui", GET | OPEN, on_asset},
    {"/ui/app.js", GET | OPEN, on_asset},
    {"/ui/style.css", GET | OPEN, on_asset},
    {"/ui/docs.js", GET | OPEN, on_asset},
    {"/docs", GET | OPEN, on_asset},
    {"/openapi.json", GET | OPEN, on_asset},
    {"/ready", GET | OPEN, on_ready},
    {"/ping", GET | OPEN, on_ready},
    {"/v1/config", GET, on_config},
    {"/v1/models", GET, on_models},
    {"/models", GET, on_models},
    {"/v1/models/", GET | BELOW, on_model},
    {"/info", GET, on_info},
    {"/version", GET | OPEN, on_version},
    {"/metrics", GET | OPEN, on_metrics},
};

/* The route for a path, with any method; sets *methods to those that it has. */
static const route *find_route(const char *path, int method, int *methods)
{
    const route *found = NULL;
    *methods = 0;
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        const route *r = &routes[i];
        size_t n = strlen(r->path);
        if (r->flags & BELOW ? strncmp(path, r->path, n) != 0 || path[n] == 0 : strcmp(path, r->path) != 0) continue;
        *methods |= r->flags & (GET | POST);
        if (r->flags & method) found = r;
    }
    return found;
}

/* Links of the page are relative, which needs the path without a slash. */
static int is_page_with_slash(const char *path)
{
    size_t n = strlen(path);
    return (n >= 4 && strcmp(path + n - 4, "/ui/") == 0) || (n >= 6 && strcmp(path + n - 6, "/docs/") == 0);
}

/* Without the prefix and without a slash at the end. */
static void normalise_path(const sv_server *s, char *path)
{
    const char *prefix = s->options.url_prefix;
    size_t n = prefix != NULL ? strlen(prefix) : 0;
    while (n > 0 && prefix[n - 1] == '/') n--;
    if (n > 0 && strncmp(path, prefix, n) == 0 && (path[n] == '/' || path[n] == 0)) memmove(path, path + n, strlen(path + n) + 1);
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/') path[--len] = 0;
    if (len == 0) path[0] = '/', path[1] = 0; /* there is room: something was cut, or the NUL of "" and the prefix's first byte */
}

/* The key may come as "Bearer KEY" in any case, bare (llama-index), or in a header of its own. */
static int has_key(const sv_server *s, const sv_exchange *x)
{
    static const char *const names[] = {"Authorization", "X-Api-Key", "Api-Key"};
    int found = 0;
    if (s->options.n_api_keys == 0) return 1;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        unsigned char digest[32];
        const char *key = sv_header(x, names[i]);
        if (key == NULL) continue;
        if (i == 0 && strncasecmp(key, "bearer ", 7) == 0) key += 7;
        while (*key == ' ') key++;
        SHA256((const unsigned char *) key, strlen(key), digest);
        for (size_t k = 0; k < s->options.n_api_keys; k++) found |= CRYPTO_memcmp(digest, s->keys[k], sizeof digest) == 0;
    }
    return found;
}

static void on_request(void *arg, sv_exchange *x)
{
    sv_server *s = arg;
    int methods, method = strcmp(x->method, "POST") == 0 ? POST : strcmp(x->method, "GET") == 0 || strcmp(x->method, "HEAD") == 0 ? GET : 0;
    char message[256];
    if (method == GET && is_page_with_slash(x->path)) {
        sv_add_header(x, "Location", "%s", strstr(x->path, "/ui/") != NULL ? "../ui" : "../docs");
        sv_answer(x, 308, NULL);
        return;
    }
    normalise_path(s, x->path);
    const route *r = find_route(x->path, method, &methods);
    if (r == NULL && methods == 0) {
        snprintf(message, sizeof message, "no such path: %.100s; documents are scored by POST /v1/rerank", qr_label_of(x->path).text);
        answer_error(x, NULL, 404, message);
    } else if (r == NULL) {
        snprintf(message, sizeof message, "%.20s is not possible here; expected %s", qr_label_of(x->method).text,
                 methods == POST  ? "POST"
                 : methods == GET ? "GET"
                                  : "GET or POST");
        sv_add_header(x, "Allow", "%s", methods == POST ? "POST" : methods == GET ? "GET, HEAD" : "GET, HEAD, POST");
        answer_error(x, NULL, 405, message);
    } else if (!(r->flags & OPEN) && !has_key(s, x)) {
        answer_error(x, NULL, 401, "Invalid API Key");
    } else {
        r->run(s, x);
    }
}

/* ---- logs ----------------------------------------------------------------------------------------------------------------------- */

/* What one line of the log says. */
typedef struct request_line {
    const sv_exchange *exchange;
    const ticket *ticket; /* or NULL: no scores were asked for */
    int status;
    double total_ms;
} request_line;

static void write_request_line(qr_json_out *json, const void *arg)
{
    const request_line *line = arg;
    const ticket *t = line->ticket;
    qr_out_string(json, "request_id", line->exchange->id);
    qr_out_string(json, "method", line->exchange->method);
    qr_out_string(json, "path", line->exchange->path);
    qr_out_int(json, "status", (uint64_t) line->status);
    qr_out_real(json, "total_ms", line->total_ms, 6);
    if (t == NULL || t->scored == 0) return;
    qr_out_string(json, "dialect", t->dialect->name);
    qr_out_string(json, "model", model_name(t));
    qr_out_int(json, "documents", t->request.n_documents);
    qr_out_int(json, "tokens", t->prompt_tokens);
    qr_out_int(json, "truncated", t->n_truncated);
    qr_out_real(json, "inference_ms", (t->scored - t->read_done) * 1e3, 6);
}

static void log_request(const sv_server *s, const request_line *line)
{
    char text[600];
    const ticket *t = line->ticket;
    int n = snprintf(text, sizeof text, "%.16s %s %d %.1f ms", line->exchange->method, qr_label_of(line->exchange->path).text, line->status,
                     line->total_ms);
    if (t != NULL && t->scored > 0)
        n += snprintf(text + n, sizeof text - (size_t) n, ", %s, %zu documents, %llu tokens, inference %.1f ms", t->dialect->name,
                      t->request.n_documents, (unsigned long long) t->prompt_tokens, (t->scored - t->read_done) * 1e3);
    snprintf(text + n, sizeof text - (size_t) n, " [%s]", line->exchange->id);
    sv_log_event(s->options.log, line->status >= 500 ? QR_LOG_WARN : QR_LOG_INFO, "request", text, write_request_line, line);
}

static void on_finished(void *arg, const sv_exchange *x, int status)
{
    sv_server *s = arg;
    ticket *t = x->user;
    double total = qr_now() - x->begin;
    sv_metrics_finished(&s->metrics, status, total);
    if (s->options.log != NULL) log_request(s, &(request_line){x, t, status, total * 1e3});
    if (t != NULL) free_ticket(t);
}

static void on_log(void *arg, qr_log_level level, const char *message)
{
    sv_server *s = arg;
    if (s->options.log != NULL) sv_log_event(s->options.log, level, "message", message, NULL, NULL);
}

/* ---- open and close ------------------------------------------------------------------------------------------------------------- */

qr_status sv_server_open(sv_server **out, const sv_server_options *options, qr_error *err)
{
    *out = NULL;
    sv_server *s = qr_calloc(1, sizeof *s);
    if (s == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for the server");
    s->options = *options;
    sv_server_options *o = &s->options;
    if (o->host == NULL) o->host = "127.0.0.1";
    if (o->max_body_bytes == 0) o->max_body_bytes = (size_t) 64 << 20;
    if (o->max_documents == 0) o->max_documents = 100000;
    if (o->max_waiting == 0) o->max_waiting = 512;
    if (o->request_timeout_s == 0) o->request_timeout_s = 300;
    s->start = time(NULL);
    sv_metrics_init(&s->metrics);
    qr_status status = QR_OK;
    if (o->n_api_keys > 0) {
        s->keys = qr_calloc(o->n_api_keys, sizeof *s->keys);
        if (s->keys == NULL) status = qr_fail(err, QR_E_MEMORY, "no memory for %zu keys", o->n_api_keys);
        else
            for (size_t i = 0; i < o->n_api_keys; i++) SHA256((const unsigned char *) o->api_keys[i], strlen(o->api_keys[i]), s->keys[i]);
    }
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (status == QR_OK) status = sv_pool_open(&s->pool, cores > 4 ? 4 : cores < 2 ? 2 : (unsigned) cores, err);
    sv_http_options http = {
        .host = o->host,
        .port = o->port,
        .unix_socket = o->unix_socket,
        .tls_cert = o->tls_cert,
        .tls_key = o->tls_key,
        .max_body_bytes = o->max_body_bytes,
        .handler = on_request,
        .finished = on_finished,
        .log = on_log,
        .arg = s,
    };
    if (status == QR_OK) status = sv_http_open(&s->http, &http, err);
    if (status != QR_OK) {
        sv_server_close(s);
        return status;
    }
    *out = s;
    return QR_OK;
}

void sv_server_set_engine(sv_server *s, qr_engine *engine) { s->engine = engine; }

size_t sv_server_drain(sv_server *s, double seconds)
{
    s->draining = 1;
    return sv_http_drain(s->http, seconds);
}

void sv_server_close(sv_server *s)
{
    if (s == NULL) return;
    sv_http_close(s->http); /* waits for all answers, so the pool has nothing left to do */
    sv_pool_close(s->pool);
    sv_metrics_deinit(&s->metrics);
    qr_free(s->keys);
    qr_free(s);
}

unsigned sv_server_port(const sv_server *s) { return sv_http_port(s->http); }
