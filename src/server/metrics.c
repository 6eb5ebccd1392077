/* See metrics.h. */
#include "server/metrics.h"

#include <string.h>

static const double bounds[SV_N_BUCKETS] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30};

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

void sv_metrics_scored(sv_metrics *m, size_t documents, uint64_t tokens, size_t truncated, double inference_seconds)
{
    pthread_mutex_lock(&m->lock);
    m->documents += documents;
    m->tokens += tokens;
    m->truncated += truncated;
    observe(&m->inference_seconds, inference_seconds);
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

void sv_metrics_write(sv_metrics *m, const qr_stats *engine, size_t n_waiting, int ready, qr_buf *out)
{
    pthread_mutex_lock(&m->lock);
    sv_metrics copy = *m;
    pthread_mutex_unlock(&m->lock);
    write_head(out, "requests_total", "counter", "HTTP requests by status; 499: the client went away.");
    for (size_t i = 0; i < SV_N_STATUSES && copy.requests[i].n > 0; i++)
        qr_buf_printf(out, "qwen_rerank_requests_total{status=\"%d\"} %llu\n", copy.requests[i].status,
                      (unsigned long long) copy.requests[i].n);
    write_histogram(out, "request_duration_seconds", "From the first byte of a request to the last of its answer.", &copy.request_seconds);
    write_histogram(out, "inference_duration_seconds", "From read to scored: tokenizing, waiting for other requests, computing.",
                    &copy.inference_seconds);
    write_value(out, "documents_total", "counter", "Documents scored.", (double) copy.documents);
    write_value(out, "prompt_tokens_total", "counter", "Tokens of the prompts, as if each were computed whole.", (double) copy.tokens);
    write_value(out, "computed_tokens_total", "counter", "Tokens computed, shared and cached ones once.", (double) engine->computed_tokens);
    write_value(out, "truncated_documents_total", "counter", "Documents that were cut to fit.", (double) copy.truncated);
    write_value(out, "batches_total", "counter", "Batches computed.", (double) engine->batches);
    write_value(out, "batch_tokens_total", "counter", "Tokens in these batches.", (double) engine->batch_tokens);
    write_value(out, "compute_seconds_total", "counter", "Time in the backend.", engine->compute_seconds);
    write_value(out, "prefix_cache_hits_total", "counter", "Query prefixes that were cached.", (double) engine->prefix_hits);
    write_value(out, "prefix_cache_misses_total", "counter", "Query prefixes that had to be computed.", (double) engine->prefix_misses);
    write_value(out, "requests_in_flight", "gauge", "Requests for scores that are in work or wait.", (double) n_waiting);
    write_value(out, "ready", "gauge", "1 if requests are served.", ready);
}
