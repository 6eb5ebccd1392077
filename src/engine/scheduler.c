/* See scheduler.h. */
#include "engine/scheduler.h"

#include "base/mem.h"
#include "base/system.h"
#include "engine/result_cache.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

/* The least part of a batch that a job is given: less would make the work on each query's prefix outweigh that on its documents. */
static const size_t min_share_tokens = 256;

/* Where a sequence of the batch belongs. */
typedef struct slot {
    qr_job *job;
    size_t result;
} slot;

/* A batch that is being put together or computed. Touched by the scheduler's thread only. */
typedef struct room {
    qr_seq *seqs;
    qr_prefix *prefixes;
    qr_logits *logits;
    slot *slots;
    size_t capacity, n_seqs, n_prefixes, n_tokens;
} room;

/* One of several batches in work, of one job: its end, by answer, deadline or cancelling, then concerns no other. */
typedef struct flight {
    qr_work work;
    room room;
    qr_job *job;
    struct flight *next;
} flight;

struct qr_scheduler {
    const qr_backend_ops *ops;
    qr_backend *backend;
    qr_backend_cfg cfg;
    qr_backend_info info;
    room room;
    qr_result_cache *cache; /* or NULL */
    qr_job *active;         /* jobs in work, by arrival; the thread's own */
    flight *flights;        /* the same; only where the backend has `begin` */
    double busy_since;      /* since when there are any */
    int warm_up;

    pthread_t thread;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    qr_job *arrived, **last;
    int closing, opened; /* opened: the thread has opened the backend, or failed to */
    qr_status open_status;
    qr_error open_error;
    qr_stats stats;
};

/* ---- documents that are alike --------------------------------------------------------------------------------------------------- */

static uint64_t hash_ids(const uint32_t *ids, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a, by id instead of by byte: collisions cost time only, ids are compared */
    for (size_t i = 0; i < n; i++) h = (h ^ ids[i]) * 0x100000001b3u;
    return h ^ h >> 29;
}

/* Links the documents of one query that are alike; `result` is the index of its first. `table` has n_slots places, a power of two above
 * their number, and holds the latest document of each kind. */
static void link_alike(qr_job *job, const qr_prompt_ids *p, size_t result, size_t *table, size_t n_slots)
{
    memset(table, 0xff, n_slots * sizeof *table);
    for (size_t d = 0; d < p->n_documents; d++) {
        const uint32_t *ids = p->ids.id + p->start[d];
        size_t n = p->start[d + 1] - p->start[d], at = hash_ids(ids, n) & (n_slots - 1);
        for (; table[at] != SIZE_MAX; at = (at + 1) & (n_slots - 1)) {
            size_t other = table[at];
            if (p->start[other + 1] - p->start[other] == n && memcmp(p->ids.id + p->start[other], ids, n * sizeof *ids) == 0) break;
        }
        job->next_alike[result + d] = SIZE_MAX;
        if (table[at] != SIZE_MAX) {
            job->next_alike[result + table[at]] = result + d;
            job->skip[result + d] = 1;
        }
        table[at] = d;
    }
}

static void forget_alike(qr_job *job)
{
    qr_free(job->next_alike);
    qr_free(job->skip);
    job->next_alike = NULL;
    job->skip = NULL;
}

/* RAG pipelines often send a passage twice. Without memory for the search every document is computed. */
static void find_alike(qr_job *job)
{
    size_t most = 0, n_slots = 2, result = 0;
    for (size_t q = 0; q < job->n_queries; q++)
        if (job->prompts[q].n_documents > most) most = job->prompts[q].n_documents;
    while (n_slots < 2 * most) n_slots *= 2;
    job->next_alike = qr_calloc(job->n_results, sizeof *job->next_alike);
    job->skip = qr_calloc(job->n_results, 1);
    size_t *table = qr_calloc(n_slots, sizeof *table);
    if (job->next_alike == NULL || job->skip == NULL || table == NULL) forget_alike(job);
    for (size_t q = 0; job->skip != NULL && q < job->n_queries; q++) {
        link_alike(job, &job->prompts[q], result, table, n_slots);
        result += job->prompts[q].n_documents;
    }
    qr_free(table);
}

/* ---- jobs ----------------------------------------------------------------------------------------------------------------------- */

static void withdraw_flights(qr_scheduler *s, const qr_job *job);

/* Takes the job out of the active ones and hands it back. */
static void finish(qr_scheduler *s, qr_job *job, qr_status status, const qr_error *error)
{
    if (s->flights != NULL) withdraw_flights(s, job);
    for (qr_job **link = &s->active; *link != NULL; link = &(*link)->next)
        if (*link == job) {
            *link = job->next;
            break;
        }
    forget_alike(job);
    if (job->begun == 0) job->begun = qr_now();
    if (job->n_done < job->n_results) {
        pthread_mutex_lock(&s->lock);
        s->stats.documents_waiting -= job->n_results - job->n_done;
        pthread_mutex_unlock(&s->lock);
    }
    job->status = status;
    if (error != NULL) job->error = *error;
    job->done(job);
}

static void finish_with(qr_scheduler *s, qr_job *job, qr_status status, const char *message)
{
    qr_error error = {0};
    finish(s, job, qr_fail(&error, status, "%s", message), &error);
}

/* Ends jobs that nobody waits for any more. */
static void drop_ended(qr_scheduler *s)
{
    double now = qr_now();
    for (qr_job *job = s->active, *next; job != NULL; job = next) {
        next = job->next;
        if (qr_is_set(job->cancel)) finish_with(s, job, QR_E_CANCELLED, "cancelled");
        else if (job->deadline > 0 && now >= job->deadline) {
            qr_error error = {0};
            qr_fail(&error, QR_E_TIMEOUT, "%zu of %zu documents were scored when the time was up", job->n_done, job->n_results);
            finish(s, job, QR_E_TIMEOUT, &error);
        }
    }
}

/* Appends new jobs to the active ones. They start at the count of the one that has had the least: neither do they overtake all others for
 * long, nor must they wait until they have waited as much as others have been served. */
static void take_in(qr_scheduler *s, qr_job *arrived)
{
    uint64_t least = UINT64_MAX;
    qr_job **link = &s->active;
    for (; *link != NULL; link = &(*link)->next)
        if ((*link)->tokens_served < least) least = (*link)->tokens_served;
    *link = arrived;
    for (qr_job *job = arrived; job != NULL; job = job->next) job->tokens_served = least == UINT64_MAX ? 0 : least;
}

static double sigmoid(double x) { return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x)); }

/* Writes a document's result, and to all that are alike. With the lock held. */
static void store_result(qr_scheduler *s, qr_job *job, size_t first, qr_logits l)
{
    for (size_t d = first; d != SIZE_MAX; d = job->next_alike != NULL ? job->next_alike[d] : SIZE_MAX) {
        qr_result *result = &job->results[d];
        result->yes = l.yes;
        result->no = l.no;
        result->margin = l.yes - l.no;
        result->score = sigmoid((double) result->margin);
        result->flags |= QR_RESULT_DONE;
        job->n_done++;
        s->stats.documents++;
        s->stats.documents_waiting--;
        s->stats.prompt_tokens += result->n_tokens;
    }
}

/* Takes what it can from the cache. With the lock held. */
static void look_up(qr_scheduler *s, qr_job *job)
{
    size_t result = 0;
    if (s->cache == NULL || job->skip == NULL) return;
    for (size_t q = 0; q < job->n_queries; q++) {
        const qr_prompt_ids *p = &job->prompts[q];
        for (size_t d = 0; d < p->n_documents; d++, result++) {
            qr_logits logits;
            if (job->skip[result]) continue;
            qr_result_key key = qr_result_key_of(p->ids.id, p->n_shared, p->ids.id + p->start[d], p->start[d + 1] - p->start[d]);
            job->skip[result] = (char) qr_result_cache_get(s->cache, &key, &logits);
            if (job->skip[result]) store_result(s, job, result, logits);
            s->stats.result_hits += (uint64_t) job->skip[result];
            s->stats.result_misses += (uint64_t) !job->skip[result];
        }
    }
}

/* Ends the jobs that the cache has answered completely. */
static void end_known(qr_scheduler *s)
{
    for (qr_job *job = s->active, *next; job != NULL; job = next) {
        next = job->next;
        if (job->n_done == job->n_results) finish(s, job, QR_OK, NULL);
    }
}

/* ---- batches -------------------------------------------------------------------------------------------------------------------- */

static int grow_room(room *r, size_t need)
{
    if (need <= r->capacity) return 1;
    size_t cap[4] = {r->capacity, r->capacity, r->capacity, r->capacity};
    void *grown;
    if ((grown = qr_grow(r->seqs, &cap[0], need, sizeof *r->seqs)) == NULL) return 0;
    r->seqs = grown;
    if ((grown = qr_grow(r->prefixes, &cap[1], need, sizeof *r->prefixes)) == NULL) return 0;
    r->prefixes = grown;
    if ((grown = qr_grow(r->logits, &cap[2], need, sizeof *r->logits)) == NULL) return 0;
    r->logits = grown;
    if ((grown = qr_grow(r->slots, &cap[3], need, sizeof *r->slots)) == NULL) return 0;
    r->slots = grown;
    r->capacity = cap[3];
    return 1;
}

static void free_room(room *r)
{
    qr_free(r->seqs);
    qr_free(r->prefixes);
    qr_free(r->logits);
    qr_free(r->slots);
}

/* Moves on to the next document that has to be computed; 0 if there is none. */
static int seek_document(qr_job *job)
{
    for (; job->query < job->n_queries; job->query++, job->document = 0)
        for (; job->document < job->prompts[job->query].n_documents; job->document++, job->result++)
            if (job->skip == NULL || !job->skip[job->result]) return 1;
    return 0;
}

/* Puts documents of a job into the batch until they have `share` tokens; at least one if the batch is empty. */
static qr_status add_documents(room *r, qr_job *job, size_t share, size_t max_documents, qr_error *err)
{
    size_t used = 0, query = SIZE_MAX; /* whose prefix is the batch's last */
    for (; seek_document(job); job->document++, job->result++) {
        const qr_prompt_ids *p = &job->prompts[job->query];
        size_t n = p->start[job->document + 1] - p->start[job->document], with_prefix = n + (query != job->query ? p->n_shared : 0);
        if (r->n_seqs > 0 && (used + with_prefix > share || r->n_seqs >= max_documents)) break;
        if (!grow_room(r, r->n_seqs + 1)) return qr_fail(err, QR_E_MEMORY, "no memory for a batch of %zu documents", r->n_seqs + 1);
        if (query != job->query) {
            query = job->query;
            r->prefixes[r->n_prefixes++] = (qr_prefix){p->ids.id, p->n_shared};
        }
        r->seqs[r->n_seqs] = (qr_seq){p->ids.id + p->start[job->document], n, r->n_prefixes - 1};
        r->slots[r->n_seqs++] = (slot){job, job->result};
        job->n_in_batch++;
        used += with_prefix;
    }
    job->tokens_served += used;
    r->n_tokens += used;
    return QR_OK;
}

/* The active job, among those not yet in the batch, that has had the least. The first comer among equals. Of max_concurrent jobs the later
 * ones wait. */
static qr_job *least_served(const qr_scheduler *s)
{
    qr_job *least = NULL;
    size_t n = 0, most = s->cfg.max_concurrent > 0 ? s->cfg.max_concurrent : SIZE_MAX;
    for (qr_job *job = s->active; job != NULL && n < most; job = job->next, n++)
        if (job->n_in_batch == 0 && (least == NULL || job->tokens_served < least->tokens_served)) least = job;
    return least;
}

static qr_status fill_batch(qr_scheduler *s, qr_error *err)
{
    room *r = &s->room;
    size_t n_jobs = 0, limit = s->info.batch_tokens;
    r->n_seqs = r->n_prefixes = r->n_tokens = 0;
    size_t max_documents = s->cfg.max_batch_documents > 0 ? s->cfg.max_batch_documents : SIZE_MAX;
    for (qr_job *job = s->active; job != NULL; job = job->next) n_jobs++;
    if (s->cfg.max_concurrent > 0 && n_jobs > s->cfg.max_concurrent) n_jobs = s->cfg.max_concurrent;
    for (qr_job *job; r->n_tokens < limit && (job = least_served(s)) != NULL; n_jobs--) {
        size_t left = limit - r->n_tokens, share = left / n_jobs;
        if (share < min_share_tokens) share = min_share_tokens < left ? min_share_tokens : left;
        /* What a job leaves of its share falls to those that come after it. */
        size_t before = r->n_seqs;
        qr_status status = add_documents(r, job, share, max_documents, err);
        if (status != QR_OK) return status;
        if (r->n_seqs == before) break; /* its next document is longer than what is left: it comes first next time */
    }
    return QR_OK;
}

/* Ends every job that is in the batch. */
static void fail_batch(qr_scheduler *s, qr_status status, const qr_error *error)
{
    for (qr_job *job = s->active, *next; job != NULL; job = next) {
        next = job->next;
        if (job->n_in_batch > 0) finish(s, job, status, error);
    }
}

static int is_number(qr_logits l) { return isfinite(l.yes) && isfinite(l.no); }

/* A document, and all that are alike, gets no score. The first failure is the job's. */
static void fail_document(qr_job *job, size_t first, const qr_error *error)
{
    if (job->status == QR_OK) {
        job->status = error->code;
        job->error = *error;
    }
    for (size_t d = first; job->failed != NULL && d != SIZE_MAX; d = job->next_alike != NULL ? job->next_alike[d] : SIZE_MAX)
        job->failed(job->failed_arg, d, error->msg);
}

static void fail_documents(const room *r, qr_status status, qr_error *error)
{
    error->code = status;
    for (size_t i = 0; i < r->n_seqs; i++) fail_document(r->slots[i].job, r->slots[i].result, error);
}

/* A result that is not a number fails its job, no other. */
static void check_results(const room *r)
{
    for (size_t i = 0; i < r->n_seqs; i++) {
        qr_error error = {0};
        qr_logits l = r->logits[i];
        if (is_number(l)) continue;
        qr_fail(&error, QR_E_BACKEND, "document %zu: the model's output is not a number (logits %g and %g)", r->slots[i].result,
                (double) l.yes, (double) l.no);
        fail_document(r->slots[i].job, r->slots[i].result, &error);
    }
}

/* Writes the batch's results and counts them. */
static void store_results(qr_scheduler *s, const room *r)
{
    for (size_t i = 0; i < r->n_seqs; i++) {
        qr_job *job = r->slots[i].job;
        qr_logits l = r->logits[i];
        if (!is_number(l)) continue;
        store_result(s, job, r->slots[i].result, l);
        if (s->cache != NULL) {
            const qr_seq *seq = &r->seqs[i];
            const qr_prefix *prefix = &r->prefixes[seq->prefix];
            qr_result_key key = qr_result_key_of(prefix->ids, prefix->n_ids, seq->ids, seq->n_ids);
            qr_result_cache_put(s->cache, &key, l);
        }
    }
}

static int has_more(const qr_scheduler *s, qr_job *job)
{
    for (const flight *f = s->flights; f != NULL; f = f->next)
        if (f->job == job) return 1;
    return seek_document(job);
}

/* Tells a caller how far its job is, and ends it if it is through. */
static void report_job(qr_scheduler *s, qr_job *job)
{
    if (job->status != QR_OK && !(job->failed != NULL && has_more(s, job))) {
        qr_error error = job->error;
        finish(s, job, job->status, &error);
        return;
    }
    int stop = job->progress != NULL && job->progress(job->progress_arg, job->n_done, job->n_results) != 0;
    if (stop) finish_with(s, job, QR_E_CANCELLED, "cancelled");
    else if (job->n_done == job->n_results) finish(s, job, QR_OK, NULL);
}

static void report(qr_scheduler *s)
{
    for (qr_job *job = s->active, *next; job != NULL; job = next) {
        next = job->next;
        if (job->n_in_batch == 0) continue;
        job->n_in_batch = 0;
        report_job(s, job);
    }
}

static void run_batch(qr_scheduler *s)
{
    room *r = &s->room;
    qr_error error = {0};
    qr_status status = fill_batch(s, &error);
    if (status != QR_OK) {
        if (r->n_seqs == 0) finish(s, s->active, status, &error);
        else fail_batch(s, status, &error);
        return;
    }
    /* A batch is given up in the middle only if nobody else is in it. */
    qr_job *only = r->slots[0].job;
    for (size_t i = 1; i < r->n_seqs && only != NULL; i++)
        if (r->slots[i].job != only) only = NULL;
    qr_batch batch = {r->prefixes, r->n_prefixes, r->seqs, r->n_seqs, only != NULL ? only->cancel : NULL};
    double start = qr_now();
    for (size_t i = 0; i < r->n_seqs; i++)
        if (r->slots[i].job->begun == 0) r->slots[i].job->begun = start;
    status = s->ops->score(s->backend, &batch, r->logits, &error);
    double seconds = qr_now() - start;
    if (status == QR_OK) check_results(r);
    else fail_documents(r, status, &error);

    qr_backend_stats backend = {0};
    if (s->ops->stats != NULL) s->ops->stats(s->backend, &backend);
    pthread_mutex_lock(&s->lock);
    s->stats.batches++;
    s->stats.batch_tokens += r->n_tokens;
    s->stats.compute_seconds += seconds;
    s->stats.computed_tokens = backend.computed_tokens;
    s->stats.prefix_hits = backend.prefix_hits;
    s->stats.prefix_misses = backend.prefix_misses;
    memcpy(s->stats.stage_seconds, backend.stage_seconds, sizeof backend.stage_seconds);
    if (status == QR_OK) store_results(s, r);
    pthread_mutex_unlock(&s->lock);
    report(s);
}

/* ---- several batches in work ------------------------------------------------------------------------------------------------------- */

/* How often a caller's flag is looked at while its batch is elsewhere, and the longest sleep. */
static const double poll_cancel_s = 0.05, longest_sleep_s = 3600;

static void count_busy_time(qr_scheduler *s)
{
    double now = qr_now();
    qr_backend_stats backend = {0};
    s->ops->stats(s->backend, &backend);
    pthread_mutex_lock(&s->lock);
    s->stats.compute_seconds += now - s->busy_since;
    s->stats.computed_tokens = backend.computed_tokens;
    pthread_mutex_unlock(&s->lock);
    s->busy_since = now;
}

static void end_flight(qr_scheduler *s, flight *f)
{
    flight **link = &s->flights;
    while (*link != f) link = &(*link)->next;
    *link = f->next;
    count_busy_time(s);
    free_room(&f->room);
    qr_free(f);
}

static void withdraw_flights(qr_scheduler *s, const qr_job *job)
{
    for (flight *f = s->flights, *next; f != NULL; f = next) {
        next = f->next;
        if (f->job != job) continue;
        s->ops->withdraw(s->backend, &f->work);
        end_flight(s, f);
    }
}

/* The job that has had the least tokens, of those that have documents left; the first comer among equals. */
static qr_job *next_to_fly(const qr_scheduler *s)
{
    qr_job *least = NULL;
    size_t n = 0, most = s->cfg.max_concurrent > 0 ? s->cfg.max_concurrent : SIZE_MAX;
    for (qr_job *job = s->active; job != NULL && n < most; job = job->next, n++)
        if ((least == NULL || job->tokens_served < least->tokens_served) && seek_document(job)) least = job;
    return least;
}

static void begin_flight(qr_scheduler *s, qr_job *job)
{
    qr_error error = {0};
    size_t max_documents = s->cfg.max_batch_documents > 0 ? s->cfg.max_batch_documents : SIZE_MAX;
    flight *f = qr_calloc(1, sizeof *f);
    if (f == NULL) {
        finish_with(s, job, QR_E_MEMORY, "no memory for a batch");
        return;
    }
    room *r = &f->room;
    f->job = job;
    qr_status status = add_documents(r, job, s->info.batch_tokens, max_documents, &error);
    if (s->flights == NULL) s->busy_since = qr_now();
    f->next = s->flights;
    s->flights = f;
    if (status == QR_OK) {
        if (job->begun == 0) job->begun = qr_now();
        f->work.batch = (qr_batch){r->prefixes, r->n_prefixes, r->seqs, r->n_seqs, NULL};
        f->work.out = r->logits;
        f->work.owner = f;
        status = s->ops->begin(s->backend, &f->work, &error);
    }
    if (status == QR_OK) return;
    end_flight(s, f);
    finish(s, job, status, &error);
}

static void take_answer(qr_scheduler *s, flight *f)
{
    qr_job *job = f->job;
    qr_status status = f->work.status;
    if (status == QR_OK) check_results(&f->room);
    else fail_documents(&f->room, status, &f->work.error);
    pthread_mutex_lock(&s->lock);
    s->stats.batches++;
    s->stats.batch_tokens += f->room.n_tokens;
    if (status == QR_OK) store_results(s, &f->room);
    pthread_mutex_unlock(&s->lock);
    end_flight(s, f);
    report_job(s, job);
}

/* Until a deadline, or until flags have to be looked at. */
static double time_to_sleep(const qr_scheduler *s)
{
    double now = qr_now(), until = now + longest_sleep_s;
    for (const qr_job *job = s->active; job != NULL; job = job->next) {
        if (job->deadline > 0 && job->deadline < until) until = job->deadline;
        if (job->cancel != NULL && now + poll_cancel_s < until) until = now + poll_cancel_s;
    }
    return until > now ? until - now : 0;
}

static void run_flights(qr_scheduler *s)
{
    for (qr_job *job; s->ops->has_room(s->backend) && (job = next_to_fly(s)) != NULL;) begin_flight(s, job);
    qr_work *work = s->ops->wait(s->backend, time_to_sleep(s));
    for (; work != NULL; work = s->ops->wait(s->backend, 0)) take_answer(s, work->owner);
}

/* ---- the thread ----------------------------------------------------------------------------------------------------------------- */

static void open_backend(qr_scheduler *s)
{
    qr_error error = {0};
    qr_status status = s->ops->open(&s->backend, &s->cfg, &error);
    if (status == QR_OK && s->warm_up && s->ops->warm_up != NULL && (status = s->ops->warm_up(s->backend, &error)) != QR_OK) {
        s->ops->close(s->backend);
        s->backend = NULL;
    }
    if (status == QR_OK) s->ops->info(s->backend, &s->info);
    if (!s->cfg.batch_is_default || s->info.batch_tokens == 0) s->info.batch_tokens = s->cfg.max_batch_tokens;
    pthread_mutex_lock(&s->lock);
    s->open_status = status;
    s->open_error = error;
    s->opened = 1;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static void *run(void *arg)
{
    qr_scheduler *s = arg;
    open_backend(s);
    while (s->backend != NULL) {
        pthread_mutex_lock(&s->lock);
        /* A backend that has several batches in work waits itself, in `wait`, since it has servers to look after. */
        while (s->ops->begin == NULL && s->active == NULL && s->arrived == NULL && !s->closing) pthread_cond_wait(&s->changed, &s->lock);
        int closing = s->closing;
        qr_job *arrived = s->arrived;
        s->arrived = NULL;
        s->last = &s->arrived;
        pthread_mutex_unlock(&s->lock);
        if (closing && arrived == NULL && s->active == NULL) break; /* everything that was queued is done */
        take_in(s, arrived);
        if (s->cache != NULL && arrived != NULL) {
            pthread_mutex_lock(&s->lock);
            for (qr_job *job = arrived; job != NULL; job = job->next) look_up(s, job);
            pthread_mutex_unlock(&s->lock);
            end_known(s);
        }
        drop_ended(s);
        if (s->ops->begin != NULL) run_flights(s);
        else if (s->active != NULL) run_batch(s);
    }
    free_room(&s->room);
    if (s->backend != NULL) s->ops->close(s->backend);
    return NULL;
}

qr_status qr_scheduler_open(qr_scheduler **out, const qr_backend_ops *ops, const qr_backend_cfg *cfg, int warm_up,
                            size_t result_cache_bytes, qr_error *err)
{
    qr_result_cache *cache = NULL;
    *out = NULL;
    qr_status status = result_cache_bytes > 0 ? qr_result_cache_open(&cache, result_cache_bytes, err) : QR_OK;
    if (status != QR_OK) return status;
    qr_scheduler *s = qr_calloc(1, sizeof *s);
    if (s == NULL) {
        qr_result_cache_close(cache);
        return qr_fail(err, QR_E_MEMORY, "no memory for the scheduler");
    }
    s->cache = cache;
    s->ops = ops;
    s->cfg = *cfg;
    s->warm_up = warm_up;
    s->last = &s->arrived;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    if (pthread_create(&s->thread, NULL, run, s) != 0) {
        pthread_cond_destroy(&s->changed);
        pthread_mutex_destroy(&s->lock);
        qr_result_cache_close(cache);
        qr_free(s);
        return qr_fail(err, QR_E_MEMORY, "cannot start the scheduler's thread");
    }
    pthread_mutex_lock(&s->lock);
    while (!s->opened) pthread_cond_wait(&s->changed, &s->lock);
    pthread_mutex_unlock(&s->lock);
    status = s->open_status;
    if (status == QR_OK) {
        *out = s;
        return QR_OK;
    }
    if (err != NULL) *err = s->open_error;
    qr_scheduler_close(s);
    return status;
}

/* With the lock held: the thread closes the backend only after it has seen `closing`. */
static void wake_backend(qr_scheduler *s)
{
    if (s->backend != NULL && s->ops->wake != NULL) s->ops->wake(s->backend);
}

void qr_scheduler_close(qr_scheduler *s)
{
    if (s == NULL) return;
    pthread_mutex_lock(&s->lock);
    s->closing = 1;
    pthread_cond_broadcast(&s->changed);
    wake_backend(s);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    qr_result_cache_close(s->cache);
    qr_free(s);
}

void qr_scheduler_submit(qr_scheduler *s, qr_job *job)
{
    job->status = QR_OK;
    job->query = job->document = job->result = job->n_done = job->n_in_batch = 0;
    job->next = NULL;
    job->begun = 0;
    find_alike(job);
    pthread_mutex_lock(&s->lock);
    s->stats.documents_waiting += job->n_results;
    *s->last = job;
    s->last = &job->next;
    pthread_cond_broadcast(&s->changed);
    wake_backend(s);
    pthread_mutex_unlock(&s->lock);
}

const qr_backend_info *qr_scheduler_backend_info(const qr_scheduler *s) { return &s->info; }

size_t qr_scheduler_replicas(qr_scheduler *s, qr_replica *out, size_t capacity)
{
    return s->ops->replicas != NULL ? s->ops->replicas(s->backend, out, capacity) : 0;
}

void qr_scheduler_stats(qr_scheduler *s, qr_stats *out)
{
    pthread_mutex_lock(&s->lock);
    *out = s->stats;
    pthread_mutex_unlock(&s->lock);
}
