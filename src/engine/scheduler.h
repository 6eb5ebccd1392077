/* The scheduler: prompts of many callers in, batches to the backend, results back. It owns the backend and the only thread that touches it,
 * because compute libraries bind state to threads (OpenMP teams, streams of MLX and CUDA) and several would only fight for the same cores.
 *
 * Every batch is shared out anew among all jobs that wait: the job that has had the least tokens so far comes first, and each gets an equal
 * part of the batch, what it does not need falling to the others. So a job of 5 documents ends soon although one of 1,000 came before it,
 * and a new caller's prompts join the very next batch.
 *
 * A backend that computes elsewhere has several batches in work at once (qr_backend_ops.begin). Each is then of one job, the one that has
 * had the least, and is begun when the backend has room for it.
 *
 * Knows nothing of texts: see engine.c for those.
 */
#ifndef QR_ENGINE_SCHEDULER_H
#define QR_ENGINE_SCHEDULER_H

#include "engine/backend.h"
#include "text/prompt.h"

/* A call's worth of prompts. The caller fills the first part and keeps it, and all it points to, in place until `done` is called. */
typedef struct qr_job {
    const qr_prompt_ids *prompts; /* [n_queries] */
    size_t n_queries;
    qr_result *results;         /* [n_results], the documents of prompts[0] first; scores are written there */
    size_t n_results;           /* at least 1 */
    double deadline;            /* on the clock of qr_now; what is not begun by then fails with E_TIMEOUT; 0: none */
    const volatile int *cancel; /* or NULL */
    qr_failed_fn failed;        /* as in qr_call; on the scheduler's thread */
    void *failed_arg;
    qr_progress_fn progress; /* or NULL; on the scheduler's thread */
    void *progress_arg;
    void (*done)(struct qr_job *); /* on the scheduler's thread, once, as the last use of the job; status and error are set */
    void *owner;
    qr_status status;
    qr_error error;

    /* the scheduler's own */
    size_t *next_alike; /* [n_results] of the documents of a query with the same ids, the next one; SIZE_MAX: none. NULL: all differ */
    char *skip;         /* [n_results] not to be computed: not the first of these, or found in the result cache */
    size_t query, document, result; /* what comes next */
    size_t n_done, n_in_batch;
    double begun; /* when its first batch began, or its end if it needed none; the caller may read it in `done` */
    uint64_t tokens_served;
    struct qr_job *next;
} qr_job;

typedef struct qr_scheduler qr_scheduler;

/* Starts the thread and opens the backend in it; returns when that is done. `cfg` is copied; what it points to is borrowed until close. */
qr_status qr_scheduler_open(qr_scheduler **out, const qr_backend_ops *ops, const qr_backend_cfg *cfg, int warm_up,
                            size_t result_cache_bytes /* 0: no cache of results */, qr_error *err);
/* Waits for all jobs, closes the backend. Accepts NULL. */
void qr_scheduler_close(qr_scheduler *scheduler);
/* Queues a job; from any thread. Cannot fail: what goes wrong is told to `done`. */
void qr_scheduler_submit(qr_scheduler *scheduler, qr_job *job);

const qr_backend_info *qr_scheduler_backend_info(const qr_scheduler *scheduler); /* borrowed until close */
/* As qr_backend_ops.replicas; 0 for a backend that computes here. From any thread. */
size_t qr_scheduler_replicas(qr_scheduler *scheduler, qr_replica *out, size_t capacity);
void qr_scheduler_stats(qr_scheduler *scheduler, qr_stats *out);

#endif
