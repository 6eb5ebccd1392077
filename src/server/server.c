/* See server.h: routes, keys, logs, opening and closing. */
#define _GNU_SOURCE
#include "server/server.h"

#include "base/mem.h"
#include "base/system.h"
#include "server/assets.h"
#include "server/internal.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

/* ---- models --------------------------------------------------------------------------------------------------------------------- */

int sv_is_loaded(const sv_server *s)
{
    for (size_t i = 0; i < s->options.n_models; i++)
        if (s->models[i].engine == NULL) return 0;
    return 1;
}

sv_model *sv_model_find(sv_server *s, const char *name)
{
    if (name == NULL || s->options.n_models == 1) return &s->models[0];
    for (size_t i = 0; i < s->options.n_models; i++)
        if (strcmp(s->models[i].name, name) == 0) return &s->models[i];
    return NULL;
}

qr_status sv_fail_model(const sv_server *s, const char *name, qr_error *err)
{
    char known[256] = "";
    for (size_t i = 0; i < s->options.n_models; i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i > 0 ? ", " : "", s->models[i].name);
    }
    return qr_fail(err, QR_E_NOT_FOUND, "\"model\": expected one of %s, found \"%.100s\"", known, qr_label_of(name).text);
}

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

qr_json_out sv_json_answer(sv_exchange *x) { return (qr_json_out){.write = qr_buf_write, .arg = &x->answer, .spaced = 1}; }

void sv_send_json(sv_exchange *x, int status)
{
    qr_buf_add(&x->answer, "\n", 1);
    sv_answer(x, status, "application/json");
}

void sv_answer_error(sv_exchange *x, const sv_dialect *dialect, int http, const char *message)
{
    /* The first word in quotes is the field that is wrong. */
    char param[64] = "";
    if (message[0] == '"') snprintf(param, sizeof param, "%.*s", (int) strcspn(message + 1, "\""), message + 1);
    sv_error error = {http, message, x->id, error_type(http), param[0] != 0 ? param : NULL};
    qr_json_out json = sv_json_answer(x);
    (dialect != NULL ? dialect->write_error : sv_write_error)(&json, &error);
    if (http == 429 || http == 503) sv_add_header(x, "Retry-After", "1");
    if (http == 401) sv_add_header(x, "WWW-Authenticate", "Bearer");
    sv_send_json(x, http);
}

qr_status sv_parse_body(sv_exchange *x, json_t **out, qr_error *err)
{
    int replaced = 0;
    if (x->body.failed) return qr_fail(err, QR_E_MEMORY, "no memory for the request");
    qr_status status = qr_json_parse_text(out, x->body.data != NULL ? x->body.data : "", x->body.n, &replaced, err);
    if (status != QR_OK) return status;
    qr_buf_deinit(&x->body); /* the texts are in *out now */
    if (!json_is_object(*out)) return qr_fail(err, QR_E_INPUT, "the body must be a JSON object, found %s", qr_json_label(*out).text);
    return QR_OK;
}

/* ---- routes ----------------------------------------------------------------------------------------------------------------------- */

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
    else sv_on_health(s, x);
}

enum {
    GET = 1,
    POST = 2,
    OPEN = 4,    /* needs no key */
    METRICS = 8, /* needs one if the options say so */
    BELOW = 16,  /* and every path below it */
};

typedef struct route {
    const char *path;
    int flags;
    void (*run)(sv_server *s, sv_exchange *x);
} route;

static const route routes[] = {
    {"/v1/rerank", POST, sv_on_rerank},
    {"/v2/rerank", POST, sv_on_rerank},
    {"/rerank", POST, sv_on_rerank},
    {"/v1/reranking", POST, sv_on_rerank},
    {"/reranking", POST, sv_on_rerank},
    {"/v1/score", POST, sv_on_rerank},
    {"/score", POST, sv_on_rerank},
    {"/api/rerank", POST, sv_on_rerank},
    {"/api/v1/rerank", POST, sv_on_rerank},
    {"/v1/ranking", POST, sv_on_rerank},                                     /* NVIDIA NIM */
    {"/api/v1/services/rerank/text-rerank/text-rerank", POST, sv_on_rerank}, /* DashScope */
    {"/compatible-api/v1/reranks", POST, sv_on_rerank},
    {"/invocations", POST, sv_on_rerank},
    {"/", POST, sv_on_rerank}, /* text-embeddings-inference */
    {"/tokenize", POST, sv_on_tokenize},
    {"/v1/tokenize", POST, sv_on_tokenize},
    {"/health", GET | OPEN, sv_on_health},
    {"/healthz", GET | OPEN, sv_on_health},
    {"/v1/health", GET | OPEN, sv_on_health},
    {"/", GET | OPEN, on_root},
    {"/ui", GET | OPEN, on_asset},
    {"/ui/app.js", GET | OPEN, on_asset},
    {"/ui/style.css", GET | OPEN, on_asset},
    {"/ui/docs.js", GET | OPEN, on_asset},
    {"/docs", GET | OPEN, on_asset},
    {"/openapi.json", GET | OPEN, on_asset},
    {"/ready", GET | OPEN, sv_on_ready},
    {"/ping", GET | OPEN, sv_on_ready},
    {"/v1/config", GET, sv_on_config},
    {"/v1/models", GET, sv_on_models},
    {"/models", GET, sv_on_models},
    {"/v1/models/", GET | BELOW, sv_on_model},
    {"/info", GET, sv_on_info},
    {"/version", GET | OPEN, sv_on_version},
    {"/v1/cluster/auth", GET | OPEN, sv_on_cluster_auth}, /* Xinference */
    {"/metrics", GET | METRICS, sv_on_metrics},
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

/* Without the prefix, without a slash at the end, with one version only. */
static void normalise_path(const sv_server *s, char *path)
{
    const char *prefix = s->options.url_prefix;
    size_t n = prefix != NULL ? strlen(prefix) : 0;
    while (n > 0 && prefix[n - 1] == '/') n--;
    if (n > 0 && strncmp(path, prefix, n) == 0 && (path[n] == '/' || path[n] == 0)) memmove(path, path + n, strlen(path + n) + 1);
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/') path[--len] = 0;
    /* A client that adds a version to a base URL that ends in one. */
    if (strncmp(path, "/v1/v1/", 7) == 0 || strncmp(path, "/v1/v2/", 7) == 0) memmove(path, path + 3, len - 3 + 1);
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

/* Pages of other origins may ask if the options name them. */
static void add_cors(const sv_server *s, sv_exchange *x)
{
    const char *origin = sv_header(x, "Origin"), *allowed = NULL;
    for (size_t i = 0; origin != NULL && allowed == NULL && i < s->options.n_cors_origins; i++) {
        const char *item = s->options.cors_origins[i];
        if (strcmp(item, "*") == 0) allowed = "*";
        else if (strcasecmp(item, origin) == 0) allowed = origin;
    }
    if (s->options.n_cors_origins > 0) sv_add_header(x, "Vary", "Origin");
    if (allowed == NULL) return;
    sv_add_header(x, "Access-Control-Allow-Origin", "%s", allowed);
    sv_add_header(x, "Access-Control-Expose-Headers", "X-Request-ID, Server-Timing, X-Truncated-Documents, Retry-After");
    if (strcmp(x->method, "OPTIONS") != 0) return;
    sv_add_header(x, "Access-Control-Allow-Methods", "GET, POST, OPTIONS");
    sv_add_header(x, "Access-Control-Allow-Headers", "Authorization, Content-Type, X-Api-Key, Api-Key, X-Request-ID, traceparent");
    sv_add_header(x, "Access-Control-Max-Age", "86400");
}

static const char *allow(int methods)
{
    return methods == POST ? "POST, OPTIONS" : methods == GET ? "GET, HEAD, OPTIONS" : "GET, HEAD, POST, OPTIONS";
}

static int is_encoded(const sv_exchange *x)
{
    const char *encoding = sv_header(x, "Content-Encoding");
    return encoding != NULL && strcasecmp(encoding, "identity") != 0;
}

/* What a request of this method may expect of the path; answers by itself what goes wrong, and returns NULL then. */
static const route *choose_route(sv_server *s, sv_exchange *x)
{
    char message[256];
    int methods, method = strcmp(x->method, "POST") == 0 ? POST : strcmp(x->method, "GET") == 0 || strcmp(x->method, "HEAD") == 0 ? GET : 0;
    const route *r = find_route(x->path, method, &methods);
    if (methods == 0) {
        snprintf(message, sizeof message, "no such path: %.100s; documents are scored by POST /v1/rerank", qr_label_of(x->path).text);
        sv_answer_error(x, NULL, 404, message);
    } else if (r == NULL && strcmp(x->method, "OPTIONS") == 0) {
        sv_add_header(x, "Allow", "%s", allow(methods));
        sv_answer(x, 204, NULL);
    } else if (r == NULL) {
        snprintf(message, sizeof message, "%.20s is not possible here; expected %s", qr_label_of(x->method).text, allow(methods));
        sv_add_header(x, "Allow", "%s", allow(methods));
        sv_answer_error(x, NULL, 405, message);
    } else if (!(r->flags & OPEN) && !(r->flags & METRICS && !s->options.protect_metrics) && !has_key(s, x)) {
        sv_answer_error(x, NULL, 401, "Invalid API Key");
    } else if (method == POST && is_encoded(x)) {
        sv_answer_error(x, NULL, 415, "Content-Encoding: expected none, the body must be plain JSON");
    } else {
        return r;
    }
    return NULL;
}

static void on_request(void *arg, sv_exchange *x)
{
    sv_server *s = arg;
    add_cors(s, x);
    if (is_page_with_slash(x->path)) {
        sv_add_header(x, "Location", "%s", strstr(x->path, "/ui/") != NULL ? "../ui" : "../docs");
        sv_answer(x, 308, NULL);
        return;
    }
    normalise_path(s, x->path);
    const route *r = choose_route(s, x);
    if (r != NULL) r->run(s, x);
}

/* ---- logs ----------------------------------------------------------------------------------------------------------------------- */

/* What one line of the log says. */
typedef struct request_line {
    const sv_exchange *exchange;
    int status;
    double total_ms;
} request_line;

static void write_request_line(qr_json_out *json, const void *arg)
{
    const request_line *line = arg;
    qr_out_string(json, "request_id", line->exchange->id);
    if (line->exchange->trace_id[0] != 0) qr_out_string(json, "trace_id", line->exchange->trace_id);
    qr_out_string(json, "method", line->exchange->method);
    qr_out_string(json, "path", line->exchange->path);
    qr_out_int(json, "status", (uint64_t) line->status);
    qr_out_real(json, "total_ms", line->total_ms, 6);
    if (line->exchange->user != NULL) sv_rerank_write_fields(json, line->exchange->user);
}

static void log_request(const sv_server *s, const request_line *line)
{
    char text[600];
    const sv_exchange *x = line->exchange;
    int n = snprintf(text, sizeof text, "%.16s %s %d %.1f ms", x->method, qr_label_of(x->path).text, line->status, line->total_ms);
    if (x->user != NULL) n += sv_rerank_describe(x->user, text + n, sizeof text - (size_t) n);
    snprintf(text + n, sizeof text - (size_t) n, " [%s]", x->id);
    /* Probes come every few seconds, and the page asks for the counters. */
    int is_probe = x->user == NULL && strcmp(x->method, "POST") != 0 && (line->status < 400 || line->status == 503);
    qr_log_level level = is_probe ? QR_LOG_DEBUG : line->status >= 500 ? QR_LOG_WARN : QR_LOG_INFO;
    sv_log_event(s->options.log, level, "request", text, write_request_line, line);
}

static void on_finished(void *arg, const sv_exchange *x, int status)
{
    sv_server *s = arg;
    double total = qr_now() - x->begin;
    sv_metrics_finished(&s->metrics, status, total);
    if (s->options.log != NULL) log_request(s, &(request_line){x, status, total * 1e3});
    if (x->user != NULL) sv_rerank_free(x->user);
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
    s->models = qr_calloc(o->n_models, sizeof *s->models);
    if (s->models == NULL) {
        qr_free(s);
        return qr_fail(err, QR_E_MEMORY, "no memory for %zu models", o->n_models);
    }
    for (size_t i = 0; i < o->n_models; i++) s->models[i].name = o->models[i];
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
        .max_connections = o->max_connections,
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

void sv_server_set_engine(sv_server *s, size_t model, qr_engine *engine) { s->models[model].engine = engine; }

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
    qr_free(s->models);
    qr_free(s);
}

unsigned sv_server_port(const sv_server *s) { return sv_http_port(s->http); }
