/* See metrics.h. */
#include "server/metrics.h"

#include <string.h>

static const double bounds[SV_N_BUCKETS] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300};

void sv_metrics_init(sv_metrics *m)
{
    memset(m, 0, sizeof *m);
    pthread_mutex_init(&m->lock, NULL);
}

void sv_metrics_deinit(sv_metrics *m) { pthread_mutex_destroy(&m->lock); }

static void observe(sv_histogram *h, double value)
{
    size_t i = 0;
    while (i < SV_N_BUCKETS && value > bounds[i]) i++;
    h->counts[i]++;
    h->sum += value;
}

void sv_metrics_finished(sv_metrics *m, int status, double seconds)
{
    size_t i = 0;
    pthread_mutex_lock(&m->lock);
    while (i + 1 < SV_N_STATUSES && m->requests[i].n > 0 && m->requests[i].status != status) i++;
    m->requests[i].status = status;
    m->requests[i].n++;
    observe(&m->request_seconds, seconds);
    pthread_mutex_unlock(&m->lock);
}

void sv_metrics_scored(sv_metrics *m, const sv_scored *scored)
{
    pthread_mutex_lock(&m->lock);
    m->documents += scored->documents;
    m->tokens += scored->tokens;
    m->truncated += scored->truncated;
    observe(&m->queue_seconds, scored->timing.queue);
    observe(&m->inference_seconds, scored->timing.compute);
    pthread_mutex_unlock(&m->lock);
}

static void write_head(qr_buf *out, const char *name, const char *type, const char *help)
{
    qr_buf_printf(out, "# HELP qwen_rerank_%s %s\n# TYPE qwen_rerank_%s %s\n", name, help, name, type);
}

static void write_value(qr_buf *out, const char *name, const char *type, const char *help, double value)
{
    write_head(out, name, type, help);
    qr_buf_printf(out, "qwen_rerank_%s %.15g\n", name, value);
}

static void write_histogram(qr_buf *out, const char *name, const char *help, const sv_histogram *h)
{
    uint64_t n = 0;
    write_head(out, name, "histogram", help);
    for (size_t i = 0; i < SV_N_BUCKETS; i++) {
        n += h->counts[i];
        qr_buf_printf(out, "qwen_rerank_%s_bucket{le=\"%g\"} %llu\n", name, bounds[i], (unsigned long long) n);
    }
    n += h->counts[SV_N_BUCKETS];
    qr_buf_printf(out, "qwen_rerank_%s_bucket{le=\"+Inf\"} %llu\nqwen_rerank_%s_sum %.9g\nqwen_rerank_%s_count %llu\n", name,
                  (unsigned long long) n, name, h->sum, name, (unsigned long long) n);
}

static uint64_t count_of(const sv_metrics *m, int status)
{
    for (size_t i = 0; i < SV_N_STATUSES; i++)
        if (m->requests[i].status == status) return m->requests[i].n;
    return 0;
}

void sv_metrics_write(sv_metrics *m, const qr_stats *engine, const sv_gauges *gauges, qr_buf *out)
{
    pthread_mutex_lock(&m->lock);
    sv_metrics copy = *m;
    pthread_mutex_unlock(&m->lock);
    write_head(out, "requests_total", "counter", "HTTP requests by status; 499: the client went away.");
    for (size_t i = 0; i < SV_N_STATUSES && copy.requests[i].n > 0; i++)
        qr_buf_printf(out, "qwen_rerank_requests_total{status=\"%d\"} %llu\n", copy.requests[i].status,
                      (unsigned long long) copy.requests[i].n);
    write_histogram(out, "request_duration_seconds", "From the first byte of a request to the last of its answer.", &copy.request_seconds);
    write_histogram(out, "queue_duration_seconds", "From tokenized until the first batch with documents of the request began.",
                    &copy.queue_seconds);
    write_histogram(out, "inference_duration_seconds", "From there until the last document of the request was scored.",
                    &copy.inference_seconds);
    write_value(out, "documents_total", "counter", "Documents scored.", (double) copy.documents);
    write_value(out, "prompt_tokens_total", "counter", "Tokens of the prompts, as if each were computed whole.", (double) copy.tokens);
    write_value(out, "computed_tokens_total", "counter", "Tokens computed, shared and cached ones once.", (double) engine->computed_tokens);
    write_value(out, "truncated_documents_total", "counter", "Documents that were cut to fit.", (double) copy.truncated);
    write_value(out, "batches_total", "counter", "Batches computed.", (double) engine->batches);
    write_value(out, "batch_tokens_total", "counter", "Tokens in these batches.", (double) engine->batch_tokens);
    write_value(out, "compute_seconds_total", "counter", "Time in the backend.", engine->compute_seconds);
    write_head(out, "stage_seconds_total", "counter", "Of that, by stage, mean over the threads; zeros where the backend is not our own.");
    for (size_t stage = 0; stage < QR_N_STAGES; stage++)
        qr_buf_printf(out, "qwen_rerank_stage_seconds_total{stage=\"%s\"} %.6f\n", qr_stage_name((qr_stage) stage),
                      engine->stage_seconds[stage]);
    write_value(out, "prefix_cache_hits_total", "counter", "Query prefixes that were cached.", (double) engine->prefix_hits);
    write_value(out, "prefix_cache_misses_total", "counter", "Query prefixes that had to be computed.", (double) engine->prefix_misses);
    write_value(out, "result_cache_hits_total", "counter", "Documents whose score was cached.", (double) engine->result_hits);
    write_value(out, "result_cache_misses_total", "counter", "Documents that were looked up there in vain.",
                (double) engine->result_misses);
    write_value(out, "rejected_requests_total", "counter", "Requests refused because too many waited.", (double) count_of(&copy, 429));
    write_value(out, "max_batch_tokens", "gauge", "Tokens that a batch has room for: batch_tokens over batches times this is its fill.",
                (double) gauges->max_batch_tokens);
    write_value(out, "requests_in_flight", "gauge", "Requests for scores that are in work or wait.", (double) gauges->n_waiting);
    write_value(out, "documents_waiting", "gauge", "Documents of these that are not scored yet.", (double) engine->documents_waiting);
    write_value(out, "ready", "gauge", "1 if requests are served.", gauges->ready);
    write_value(out, "resident_memory_bytes", "gauge", "Memory that the process holds.", (double) gauges->resident_bytes);
    write_value(out, "start_time_seconds", "gauge", "When the process started, Unix time.", (double) gauges->start);
}

/* A label's value: what would end it, or the line, is left out. */
static void write_label(qr_buf *out, const char *name, const char *value)
{
    qr_buf_printf(out, "%s=\"", name);
    for (const char *p = value; *p != 0; p++)
        if (*p != '"' && *p != '\\' && *p != '\n') qr_buf_add(out, p, 1);
    qr_buf_add(out, "\"", 1);
}

enum { N_REPLICA_KINDS = 13 };
static const struct {
    const char *name, *type, *help;
} replica_kinds[N_REPLICA_KINDS] = {
    {"replica_up", "gauge", "1 if the server behind this one gets work."},
    {"replica_requests_in_flight", "gauge", "Requests that it has in work."},
    {"replica_request_limit", "gauge", "How many of them it may have, learnt."},
    {"replica_tokens_in_flight", "gauge", "Tokens in these requests."},
    {"replica_requests_total", "counter", "Requests that it answered."},
    {"replica_request_seconds_total", "counter", "Time that these took, together."},
    {"replica_documents_total", "counter", "Documents in them."},
    {"replica_tokens_total", "counter", "Tokens in them, prefixes once a request."},
    {"replica_errors_total", "counter", "Requests that it failed, and that were repeated."},
    {"replica_overloads_total", "counter", "Requests that it refused because of its load."},
    {"replica_ejections_total", "counter", "Times that it was taken out of work."},
    {"replica_hedges_total", "counter", "Requests that it got because another server took long."},
    {"replica_hedges_won_total", "counter", "Those of them that it answered first."},
};

static double replica_value(const qr_replica *r, size_t kind)
{
    const double values[N_REPLICA_KINDS] = {strcmp(r->state, "up") == 0,  (double) r->in_flight, r->limit,
                                            (double) r->in_flight_tokens, (double) r->requests,  r->seconds,
                                            (double) r->documents,        (double) r->tokens,    (double) r->errors,
                                            (double) r->overloads,        (double) r->ejections, (double) r->hedges,
                                            (double) r->hedges_won};
    return values[kind];
}

void sv_metrics_write_replicas(const sv_replicas *models, size_t n_models, qr_buf *out)
{
    size_t n = 0;
    for (size_t m = 0; m < n_models; m++) n += models[m].n;
    for (size_t k = 0; k < N_REPLICA_KINDS && n > 0; k++) {
        const char *name = replica_kinds[k].name;
        write_head(out, name, replica_kinds[k].type, replica_kinds[k].help); /* once for all models: a second one is an error */
        for (size_t m = 0; m < n_models; m++)
            for (size_t i = 0; i < models[m].n; i++) {
                qr_buf_printf(out, "qwen_rerank_%s{", name);
                write_label(out, "model", models[m].model);
                qr_buf_add(out, ",", 1);
                write_label(out, "replica", models[m].list[i].name);
                qr_buf_printf(out, "} %.15g\n", replica_value(&models[m].list[i], k));
            }
    }
}
