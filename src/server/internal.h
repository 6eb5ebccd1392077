/* What the parts of the server share: server.c (routes, keys, logs), rerank.c (requests for scores), status.c (questions about the server),
 * tokenize.c. */
#ifndef QR_SERVER_INTERNAL_H
#define QR_SERVER_INTERNAL_H

#include "engine/engine.h"
#include "engine/scheduler.h"
#include "server/dialect.h"
#include "server/metrics.h"
#include "server/pool.h"
#include "server/server.h"

#include <stdatomic.h>
#include <time.h>

typedef struct sv_model {
    const char *name;
    _Atomic(qr_engine *) engine; /* NULL while loading */
} sv_model;

struct sv_server {
    sv_server_options options;
    sv_model *models; /* [options.n_models] */
    sv_http *http;
    sv_pool *pool;
    atomic_int draining;
    atomic_size_t n_waiting; /* requests for scores that are in work */
    sv_metrics metrics;
    unsigned char (*keys)[32]; /* SHA-256 of each, so that comparing takes the same time for all */
    time_t start;
};

/* 1 if every model is loaded. */
int sv_is_loaded(const sv_server *server);
/* The model of that name; NULL name: the first. With one model any name is good. NULL: there is none. */
sv_model *sv_model_find(sv_server *server, const char *name);
qr_status sv_fail_model(const sv_server *server, const char *name, qr_error *err);

/* An answer in the making, and its end. */
qr_json_out sv_json_answer(sv_exchange *x);
void sv_send_json(sv_exchange *x, int status);
/* dialect NULL: the common form. */
void sv_answer_error(sv_exchange *x, const sv_dialect *dialect, int http, const char *message);
/* The body as JSON; E_INPUT if it is something else. */
qr_status sv_parse_body(sv_exchange *x, json_t **out, qr_error *err);

/* rerank.c */
void sv_on_rerank(sv_server *server, sv_exchange *x);
/* Adds what is known of a request for scores to its line in the log; its end frees it. `user` is the exchange's. */
int sv_rerank_describe(const void *user, char *text, size_t size); /* returns the characters written */
void sv_rerank_write_fields(qr_json_out *json, const void *user);
void sv_rerank_free(void *user);

/* status.c */
void sv_on_health(sv_server *server, sv_exchange *x);
void sv_on_ready(sv_server *server, sv_exchange *x);
void sv_on_config(sv_server *server, sv_exchange *x);
void sv_on_info(sv_server *server, sv_exchange *x);
void sv_on_version(sv_server *server, sv_exchange *x);
void sv_on_cluster_auth(sv_server *server, sv_exchange *x);
void sv_on_models(sv_server *server, sv_exchange *x);
void sv_on_model(sv_server *server, sv_exchange *x);
void sv_on_metrics(sv_server *server, sv_exchange *x);

/* tokenize.c */
void sv_on_tokenize(sv_server *server, sv_exchange *x);

#endif
