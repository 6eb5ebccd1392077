/* Counters for Prometheus. */
#ifndef QR_SERVER_METRICS_H
#define QR_SERVER_METRICS_H

#include "base/buf.h"
#include "engine/backend.h"

#include <pthread.h>
#include <time.h>

enum { SV_N_BUCKETS = 17, SV_N_STATUSES = 32 };

typedef struct sv_histogram {
    uint64_t counts[SV_N_BUCKETS + 1]; /* the last one: more than the largest bound */
    double sum;
} sv_histogram;

typedef struct sv_metrics {
    pthread_mutex_t lock;
    struct {
        int status;
        uint64_t n;
    } requests[SV_N_STATUSES];
    sv_histogram request_seconds, queue_seconds, inference_seconds;
    uint64_t documents, tokens, truncated;
} sv_metrics;

/* A request for scores that was answered. */
typedef struct sv_scored {
    size_t documents;
    uint64_t tokens;
    size_t truncated;
    qr_timing timing;
} sv_scored;

/* What is so at the moment. */
typedef struct sv_gauges {
    size_t n_waiting; /* requests */
    int ready;
    size_t max_batch_tokens, resident_bytes;
    time_t start;
} sv_gauges;

void sv_metrics_init(sv_metrics *m);
void sv_metrics_deinit(sv_metrics *m);
void sv_metrics_finished(sv_metrics *m, int status, double seconds);
void sv_metrics_scored(sv_metrics *m, const sv_scored *scored);
/* The text that Prometheus reads. */
void sv_metrics_write(sv_metrics *m, const qr_stats *engine, const sv_gauges *gauges, qr_buf *out);
/* The servers behind a model. */
typedef struct sv_replicas {
    const char *model;
    qr_replica *list; /* [n] */
    size_t n;
} sv_replicas;
/* The same for the servers behind all models; nothing if there are none. */
void sv_metrics_write_replicas(const sv_replicas *models, size_t n_models, qr_buf *out);

#endif
