/* What is asked about the server: health, readiness, configuration, models, counters. */
#define _GNU_SOURCE
#include "server/internal.h"

#include "base/mem.h"
#include "base/system.h"
#include "engine/replica.h"
#include "model/builtin.h"

#include <string.h>

/* All zero while the model is being loaded. */
static qr_info engine_info(const sv_model *m)
{
    qr_info info = {0};
    qr_engine *engine = m->engine;
    if (engine != NULL) qr_engine_info(engine, &info);
    return info;
}

void sv_on_health(sv_server *s, sv_exchange *x)
{
    (void) s;
    qr_buf_printf(&x->answer, "{\"status\": \"ok\"}\n");
    sv_answer(x, 200, "application/json");
}

void sv_on_ready(sv_server *s, sv_exchange *x)
{
    qr_json_out json = sv_json_answer(x);
    int loaded = sv_is_loaded(s), ready = loaded && !s->draining;
    qr_info info = engine_info(&s->models[0]);
    qr_out_open(&json, NULL, '{');
    qr_out_bool(&json, "ready", ready);
    qr_out_string(&json, "status", ready ? "ready" : s->draining ? "draining" : "loading");
    qr_out_string(&json, "backend", info.backend);
    qr_out_string(&json, "model", s->models[0].name);
    qr_out_close(&json, '}');
    if (!ready) sv_add_header(x, "Retry-After", "1");
    sv_send_json(x, ready ? 200 : 503);
}

static void write_engine(qr_json_out *json, const sv_model *m)
{
    qr_info info = engine_info(m);
    qr_out_string(json, "model", m->name);
    if (info.builtin_model) qr_out_string(json, "note", QR_BUILTIN_NOTE);
    qr_out_string(json, "path", info.model);
    qr_out_string(json, "backend", info.backend);
    qr_out_string(json, "device", info.device);
    qr_out_string(json, "dtype", info.dtype);
    qr_out_int(json, "max_length", info.max_length);
    qr_out_int(json, "max_batch_tokens", info.max_batch_tokens);
    qr_out_int(json, "n_parameters", info.n_parameters);
    qr_out_int(json, "memory_bytes", info.memory_bytes);
    qr_out_bool(json, "canonical_prompt", info.canonical_prompt);
    qr_out_real(json, "load_seconds", info.load_seconds, 4);
}

static void write_backends(qr_json_out *json, const qr_backend_place *place, const char *chosen)
{
    qr_out_open(json, "backends", '[');
    for (size_t i = 0; qr_backend_names[i] != NULL; i++) {
        char why[QR_REASON_SIZE] = "";
        int grade = qr_backend_probed(qr_backend_names[i], place, why, sizeof why);
        qr_out_open(json, NULL, '{');
        qr_out_string(json, "name", qr_backend_names[i]);
        if (grade >= 0) qr_out_bool(json, "usable", grade > 0);
        else qr_out_string(json, "usable", NULL);
        qr_out_bool(json, "chosen", chosen != NULL && strcmp(chosen, qr_backend_names[i]) == 0);
        qr_out_string(json, "why", why);
        qr_out_close(json, '}');
    }
    qr_out_close(json, ']');
}

/* The servers behind a model in a new block, or NULL where there are none. */
static qr_replica *list_replicas(const sv_model *m, size_t *n)
{
    qr_engine *engine = m->engine;
    *n = engine != NULL ? qr_engine_replicas(engine, NULL, 0) : 0;
    qr_replica *replicas = *n > 0 ? qr_calloc(*n, sizeof *replicas) : NULL;
    size_t now = replicas != NULL ? qr_engine_replicas(engine, replicas, *n) : 0; /* some may have come or gone in between */
    if (now < *n) *n = now;
    return replicas;
}

static void write_replicas(qr_json_out *json, const sv_model *m)
{
    size_t n;
    qr_replica *replicas = list_replicas(m, &n);
    if (n > 0) qr_out_open(json, "replicas", '[');
    for (size_t i = 0; i < n; i++) {
        const qr_replica *r = &replicas[i];
        qr_out_open(json, NULL, '{');
        qr_replica_write(json, r);
        qr_out_int(json, "in_flight", r->in_flight);
        qr_out_real(json, "limit", r->limit, 6);
        qr_out_int(json, "requests", r->requests);
        qr_out_int(json, "documents", r->documents);
        qr_out_int(json, "errors", r->errors);
        qr_out_int(json, "overloads", r->overloads);
        qr_out_int(json, "ejections", r->ejections);
        qr_out_int(json, "hedges", r->hedges);
        qr_out_int(json, "hedges_won", r->hedges_won);
        qr_out_close(json, '}');
    }
    if (n > 0) qr_out_close(json, ']');
    qr_free(replicas);
}

void sv_on_config(sv_server *s, sv_exchange *x)
{
    const sv_server_options *o = &s->options;
    qr_json_out json = sv_json_answer(x);
    qr_out_open(&json, NULL, '{');
    qr_out_string(&json, "version", qr_version());
    write_engine(&json, &s->models[0]);
    qr_out_open(&json, "models", '[');
    for (size_t i = 0; i < o->n_models; i++) {
        qr_out_open(&json, NULL, '{');
        write_engine(&json, &s->models[i]);
        if (i > 0) write_replicas(&json, &s->models[i]);
        qr_out_close(&json, '}');
    }
    qr_out_close(&json, ']');
    write_replicas(&json, &s->models[0]);
    write_backends(&json, &o->place, engine_info(&s->models[0]).backend);
    qr_out_open(&json, "limits", '{');
    qr_out_int(&json, "max_documents", o->max_documents);
    qr_out_int(&json, "max_query_chars", o->max_query_chars);
    qr_out_int(&json, "max_document_chars", o->max_document_chars);
    qr_out_int(&json, "max_body_bytes", o->max_body_bytes);
    qr_out_int(&json, "max_waiting", o->max_waiting);
    qr_out_real(&json, "request_timeout_s", o->request_timeout_s, 6);
    qr_out_close(&json, '}');
    if (o->write_settings != NULL) o->write_settings(&json, o->settings_arg);
    qr_out_close(&json, '}');
    sv_send_json(x, 200);
}

/* text-embeddings-inference's; Dify wants `reranker` as the first key of model_type. */
void sv_on_info(sv_server *s, sv_exchange *x)
{
    qr_json_out json = sv_json_answer(x);
    qr_info info = engine_info(&s->models[0]);
    qr_out_open(&json, NULL, '{');
    qr_out_string(&json, "model_id", s->models[0].name);
    qr_out_string(&json, "model_sha", NULL);
    qr_out_string(&json, "model_dtype", info.dtype);
    qr_out_string(&json, "served_model_name", s->models[0].name);
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
    qr_out_int(&json, "tokenization_workers", sv_pool_size(s->pool));
    qr_out_string(&json, "version", qr_version());
    qr_out_string(&json, "sha", NULL);
    qr_out_string(&json, "docker_label", NULL);
    qr_out_close(&json, '}');
    sv_send_json(x, 200);
}

void sv_on_version(sv_server *s, sv_exchange *x)
{
    (void) s;
    qr_buf_printf(&x->answer, "{\"version\": \"%s\"}\n", qr_version());
    sv_answer(x, 200, "application/json");
}

void sv_on_cluster_auth(sv_server *s, sv_exchange *x)
{
    qr_buf_printf(&x->answer, "{\"auth\": %s}\n", s->options.n_api_keys > 0 ? "true" : "false");
    sv_answer(x, 200, "application/json");
}

static void write_model(qr_json_out *json, const sv_server *s, const sv_model *m)
{
    qr_info info = engine_info(m);
    qr_out_open(json, NULL, '{');
    qr_out_string(json, "id", m->name);
    qr_out_string(json, "object", "model");
    qr_out_int(json, "created", (uint64_t) s->start);
    qr_out_string(json, "owned_by", "qwen-rerank");
    qr_out_string(json, "root", m->name);
    qr_out_string(json, "model_type", "rerank"); /* Xinference's */
    qr_out_int(json, "max_model_len", info.max_length);
    qr_out_close(json, '}');
}

void sv_on_models(sv_server *s, sv_exchange *x)
{
    qr_json_out json = sv_json_answer(x);
    qr_out_open(&json, NULL, '{');
    qr_out_string(&json, "object", "list");
    qr_out_open(&json, "data", '[');
    for (size_t i = 0; i < s->options.n_models; i++) write_model(&json, s, &s->models[i]);
    qr_out_close(&json, ']');
    qr_out_close(&json, '}');
    sv_send_json(x, 200);
}

void sv_on_model(sv_server *s, sv_exchange *x)
{
    const char *name = x->path + strlen("/v1/models/");
    const sv_model *m = sv_model_find(s, name);
    if (m == NULL) {
        qr_error error = {0};
        sv_answer_error(x, NULL, qr_status_http(sv_fail_model(s, name, &error)), error.msg);
        return;
    }
    qr_json_out json = sv_json_answer(x);
    write_model(&json, s, m);
    sv_send_json(x, 200);
}

void sv_on_metrics(sv_server *s, sv_exchange *x)
{
    qr_stats sum = {0}, stats;
    for (size_t i = 0; i < s->options.n_models; i++) {
        qr_engine *engine = s->models[i].engine;
        if (engine == NULL) continue;
        qr_engine_stats(engine, &stats);
        sum.computed_tokens += stats.computed_tokens;
        sum.prefix_hits += stats.prefix_hits;
        sum.prefix_misses += stats.prefix_misses;
        sum.result_hits += stats.result_hits;
        sum.result_misses += stats.result_misses;
        sum.compute_seconds += stats.compute_seconds;
        sum.batches += stats.batches;
        sum.batch_tokens += stats.batch_tokens;
        sum.documents_waiting += stats.documents_waiting;
        for (size_t stage = 0; stage < QR_N_STAGES; stage++) sum.stage_seconds[stage] += stats.stage_seconds[stage];
    }
    sv_gauges gauges = {s->n_waiting, sv_is_loaded(s) && !s->draining, engine_info(&s->models[0]).max_batch_tokens, qr_memory_resident(),
                        s->start};
    sv_metrics_write(&s->metrics, &sum, &gauges, &x->answer);
    sv_replicas *replicas = qr_calloc(s->options.n_models, sizeof *replicas);
    for (size_t i = 0; replicas != NULL && i < s->options.n_models; i++) {
        replicas[i].model = s->models[i].name;
        replicas[i].list = list_replicas(&s->models[i], &replicas[i].n);
    }
    if (replicas != NULL) sv_metrics_write_replicas(replicas, s->options.n_models, &x->answer);
    for (size_t i = 0; replicas != NULL && i < s->options.n_models; i++) qr_free(replicas[i].list);
    qr_free(replicas);
    sv_answer(x, 200, "text/plain; version=0.0.4; charset=utf-8");
}
