/* The backend "vllm": hands batches of token ids to vLLM servers that have the model, several at a time.
 *
 * A batch is a list of parts, each one request to one replica. What goes wrong with a part concerns no other: only its documents are asked
 * for again, elsewhere if there is an elsewhere. A batch fails only if a server refuses it, if its parts have spoilt too many answers, or
 * if no server has been usable for a minute; the caller's own deadline comes through `withdraw`, which closes the connection, by which vLLM
 * learns that it can stop.
 */
#define _GNU_SOURCE
#include "base/mem.h"
#include "base/system.h"
#include "engine/scheduler.h"
#include "vllm/pool.h"

#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

/* Own tokens of a request, where nobody asks for another number: four steps of a vLLM with its default of 2,048 batched tokens, so that it
 * never waits for us, and a list of hundreds of documents still goes to several replicas. */
enum { DEFAULT_BATCH_TOKENS = 8192 };
/* A part that spoils so many answers (status 500, closed connections, nonsense) is what spoils them; refused connections do not count. */
enum { MAX_SPOILT = 6, MAX_REFUSALS = 2 };
/* A server that has found requests too large is asked for one document more after so many that it has taken. */
enum { FULL_TO_GROW = 32 };
static const double default_timeout_s = 120;
/* Without any usable server: longer than a vLLM with a model of 8B takes to start again. */
static const double patience_s = 60;
/* Repeated requests per second, and per first request, that are sent without delay: a failing cluster must not be drowned in repetitions.
 */
static const double retries_per_s = 10, retries_per_request = 0.1, most_retries = 50;
static const double publish_every_s = 0.1, poll_cancel_s = 0.05;

struct work_state;

/* A request for a part's documents. */
typedef struct attempt {
    struct part *part;
    qr_vllm_call call;
    qr_vllm_replica *replica; /* that has it now; NULL: none */
    qr_http_request request;
    double began;
} attempt;

/* Documents that travel together. */
typedef struct part {
    struct work_state *owner;
    qr_vllm_call call; /* of documents [call.first, call.first + call.n) of the batch */
    uint64_t tokens, prefix_hash;
    int n_spoilt, n_refusals, is_retry;
    double not_before;
    uint64_t avoid;       /* seed of the replica that failed last; 0: none */
    attempt first, hedge; /* hedge: the same elsewhere, where the first takes long; with neither in work it waits */
    struct part *next;
} part;

typedef struct work_state {
    struct qr_backend *backend;
    qr_work *work;
    size_t n_left; /* documents without a result */
    part *parts;   /* all that are not answered */
} work_state;

struct qr_backend {
    qr_backend_cfg cfg;
    qr_http *http;
    qr_vllm_pool pool;
    qr_work *works, *ended, **last_ended; /* in work: linked by `next`, as are those that `wait` has to give back */
    size_t n_waiting;                     /* parts without a replica */
    double retries, retries_at;           /* what is left of the allowance, and when it was reckoned */
    qr_hedge hedging;
    double next_hedge; /* when one may be due */
    atomic_int woken;
    qr_backend_stats stats;

    pthread_mutex_t lock; /* guards what other threads read */
    qr_replica *published;
    size_t n_published, published_capacity;
    double published_at;
};

/* ---- parts and works --------------------------------------------------------------------------------------------------------------- */

static uint64_t hash_prefix(const qr_prefix *prefix)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < prefix->n_ids; i++) h = (h ^ prefix->ids[i]) * 0x100000001b3u;
    return qr_load_hash(h);
}

/* Own tokens, and each prefix once. */
static uint64_t count_tokens(const qr_batch *batch, size_t first, size_t n)
{
    uint64_t tokens = 0;
    for (size_t i = first; i < first + n; i++) {
        const qr_seq *seq = &batch->seqs[i];
        tokens += seq->n_ids;
        if (i == first || seq->prefix != batch->seqs[i - 1].prefix) tokens += batch->prefixes[seq->prefix].n_ids;
    }
    return tokens;
}

static void set_range(part *p, size_t first, size_t n)
{
    const qr_batch *batch = &p->owner->work->batch;
    p->call.first = first;
    p->call.n = n;
    p->tokens = count_tokens(batch, first, n);
    p->prefix_hash = hash_prefix(&batch->prefixes[batch->seqs[first].prefix]);
}

static part *add_part(work_state *w, size_t first, size_t n)
{
    part *p = qr_calloc(1, sizeof *p);
    if (p == NULL) return NULL;
    p->owner = w;
    p->first.part = p->hedge.part = p;
    p->call = (qr_vllm_call){.yes_id = w->backend->cfg.yes_id, .no_id = w->backend->cfg.no_id, .batch = &w->work->batch};
    set_range(p, first, n);
    p->next = w->parts;
    w->parts = p;
    w->backend->n_waiting++;
    return p;
}

/* The part is not in work. */
static void free_part(part *p)
{
    part **link = &p->owner->parts;
    while (*link != p) link = &(*link)->next;
    *link = p->next;
    p->owner->backend->n_waiting--;
    qr_http_request_deinit(&p->first.request);
    qr_http_request_deinit(&p->hedge.request);
    qr_free(p);
}

static int is_in_work(const part *p) { return p->first.replica != NULL || p->hedge.replica != NULL; }

/* Takes the attempt from its replica, whose load the caller has brought up to date. */
static void detach(attempt *a)
{
    a->replica = NULL;
    if (!is_in_work(a->part)) a->part->owner->backend->n_waiting++;
    qr_buf_deinit(&a->request.body);
    qr_buf_deinit(&a->request.answer);
}

static void cancel_attempt(attempt *a)
{
    if (a->replica == NULL) return;
    qr_http_cancel(a->part->owner->backend->http, &a->request);
    qr_load_dropped(&a->replica->load, a->part->tokens);
    detach(a);
}

/* Forgets all about the work. */
static void release(qr_backend *b, qr_work *work)
{
    work_state *w = work->state;
    if (w == NULL) return;
    while (w->parts != NULL) {
        cancel_attempt(&w->parts->first);
        cancel_attempt(&w->parts->hedge);
        free_part(w->parts);
    }
    qr_work **link = &b->works;
    while (*link != work) link = &(*link)->next;
    *link = work->next;
    work->next = NULL;
    work->state = NULL;
    qr_free(w);
}

static void end_work(qr_backend *b, qr_work *work, qr_status status, const qr_error *error)
{
    release(b, work);
    work->status = status;
    if (error != NULL) work->error = *error;
    *b->last_ended = work;
    b->last_ended = &work->next;
}

static void fail_work(qr_backend *b, qr_work *work, qr_status code, const char *server, const char *reason)
{
    qr_error error = {0};
    qr_fail(&error, code, "vllm: %s: %s", server, reason);
    end_work(b, work, code, &error);
}

/* ---- answers ----------------------------------------------------------------------------------------------------------------------- */

/* The server could not take the request, through no fault of either. If it had nothing else to do, it was too large: some servers count
 * each document against the length of their queue. */
static void on_overload(attempt *a, double now)
{
    part *p = a->part;
    qr_vllm_replica *r = a->replica;
    double retry_after_s = a->request.retry_after_s;
    r->n_overloads++;
    qr_load_overloaded(&r->load, p->tokens, retry_after_s, now);
    if (r->load.in_flight == 0 && p->call.n > 1) r->most_documents = p->call.n / 2;
    if (a->request.status == 503) qr_vllm_pool_doubt(r); /* it may also be dying */
    detach(a);
    p->avoid = r->load.seed;
}

/* An answer that is none: from the second on, the next attempt waits. */
static void on_spoilt(attempt *a, double now, const char *reason)
{
    part *p = a->part;
    qr_backend *b = p->owner->backend;
    qr_vllm_replica *r = a->replica;
    char name[sizeof r->name];
    snprintf(name, sizeof name, "%s", r->name);
    r->n_errors++;
    qr_load_dropped(&r->load, p->tokens);
    p->avoid = r->load.seed;
    p->is_retry = 1;
    detach(a);
    if (++p->n_spoilt > 1) p->not_before = now + ldexp(0.05, p->n_spoilt);
    if (p->n_spoilt >= MAX_SPOILT && !is_in_work(p)) fail_work(b, p->owner->work, QR_E_BACKEND, name, reason);
    /* Of many that fail at once, as when it is killed, only the first counts: one by one they would look like a server that fails again and
     * again, and it would be left alone for long. */
    if (r->state == QR_VLLM_UP) qr_vllm_pool_failed(&b->pool, r, 0, now, "%s", reason);
}

/* The server finds fault with the request itself: another one is asked, and if it agrees, or if there is none, that is the answer. */
static void on_refusal(attempt *a, double now, const char *reason)
{
    part *p = a->part;
    qr_backend *b = p->owner->backend;
    if (++p->n_refusals < MAX_REFUSALS && b->pool.n_up > 1) {
        on_spoilt(a, now, reason);
        return;
    }
    char name[sizeof a->replica->name];
    snprintf(name, sizeof name, "%s", a->replica->name);
    a->replica->n_errors++;
    qr_load_dropped(&a->replica->load, p->tokens);
    detach(a);
    if (!is_in_work(p)) fail_work(b, p->owner->work, QR_E_BACKEND, name, reason);
}

/* The other attempt at the same is not needed any more. Where it was the first, its replica is not to look idle for that: it took this long
 * at least. */
static void withdraw_other(attempt *a, double now)
{
    part *p = a->part;
    attempt *other = a == &p->first ? &p->hedge : &p->first;
    if (a == &p->hedge) a->replica->n_hedges_won++;
    if (other->replica == NULL) return;
    qr_http_cancel(p->owner->backend->http, &other->request);
    if (other == &p->first) qr_load_answered(&other->replica->load, p->tokens, now - other->began);
    else qr_load_dropped(&other->replica->load, p->tokens);
    detach(other);
}

static void on_results(attempt *a, double now)
{
    part *p = a->part;
    qr_vllm_replica *r = a->replica;
    work_state *w = p->owner;
    qr_backend *b = w->backend;
    qr_error err = {0};
    if (qr_vllm_read_answer(&a->call, a->request.answer.data, a->request.answer.n, w->work->out + p->call.first, &err) != QR_OK) {
        on_spoilt(a, now, err.msg);
        return;
    }
    qr_hedge_answered(&b->hedging, p->tokens, now - p->first.began);
    withdraw_other(a, now);
    qr_load_answered(&r->load, p->tokens, a->request.seconds);
    qr_vllm_pool_heard(&b->pool, r, now);
    if (p->call.n == r->most_documents && ++r->n_full % FULL_TO_GROW == 0) r->most_documents++;
    r->n_requests++;
    r->n_documents += p->call.n;
    r->n_tokens += p->tokens;
    r->seconds += a->request.seconds;
    b->stats.computed_tokens += p->tokens;
    detach(a);
    w->n_left -= p->call.n;
    free_part(p);
    if (w->n_left == 0) end_work(b, w->work, QR_OK, NULL);
}

static void on_answer(qr_http_request *request)
{
    attempt *a = request->owner;
    part *p = a->part;
    qr_vllm_replica *r = a->replica;
    qr_backend *b = p->owner->backend;
    double now = qr_now();
    char reason[400], text[160];
    int status = request->status;
    if (status == 200) {
        on_results(a, now);
        return;
    }
    if (status == 0) {
        snprintf(reason, sizeof reason, "%s", request->error); /* the part, and so the request, may be freed below */
        if (!request->is_refused) {
            on_spoilt(a, now, reason);
            return;
        }
        p->is_retry = 1;
        r->n_errors++;
        /* Whoever refuses connections will not answer the requests that it has, even if their connections stay open (vLLM on SIGTERM). This
         * part is among those that `lost` takes back. */
        qr_vllm_pool_failed(&b->pool, r, 1, now, "%s", reason);
        return;
    }
    qr_vllm_error_text(request->answer.data, request->answer.n, text, sizeof text);
    snprintf(reason, sizeof reason, "%s: status %d: %s", qr_vllm_protocol_route(r->protocol), status, text);
    if (status == 429 || status == 503) {
        on_overload(a, now);
    } else if (status == 413 && p->call.n > 1) {
        r->most_documents = p->call.n / 2;
        qr_load_dropped(&r->load, p->tokens);
        detach(a);
    } else if (status == 400 || status == 413 || status == 422) {
        on_refusal(a, now, reason);
    } else {
        on_spoilt(a, now, reason);
    }
}

/* A replica is gone: what it had is asked for elsewhere. */
static void on_lost(void *arg, qr_vllm_replica *r)
{
    qr_backend *b = arg;
    for (qr_work *work = b->works; work != NULL; work = work->next)
        for (part *p = ((work_state *) work->state)->parts; p != NULL; p = p->next) {
            if (p->first.replica != r && p->hedge.replica != r) continue;
            cancel_attempt(p->first.replica == r ? &p->first : &p->hedge);
            p->avoid = r->load.seed;
            p->is_retry = 1;
        }
}

/* ---- requests ---------------------------------------------------------------------------------------------------------------------- */

/* Takes one from the allowance of retries. */
static int may_retry(qr_backend *b, double now)
{
    b->retries = fmin(b->retries + (now - b->retries_at) * retries_per_s, most_retries);
    b->retries_at = now;
    if (b->retries < 1) return 0;
    b->retries--;
    return 1;
}

static size_t index_of_seed(const qr_vllm_pool *pool, uint64_t seed)
{
    for (size_t i = 0; seed != 0 && i < pool->n; i++)
        if (pool->replicas[i]->load.seed == seed) return i;
    return SIZE_MAX;
}

/* Leaves the part only so many documents as one request may have; the rest becomes a part of its own. 0: no memory. */
static int fit(part *p, const qr_vllm_replica *r)
{
    p->call.protocol = r->protocol;
    size_t n = qr_vllm_capacity(&p->call);
    if (n > r->most_documents) n = r->most_documents > 0 ? r->most_documents : 1;
    if (n == p->call.n) return 1;
    part *rest = add_part(p->owner, p->call.first + n, p->call.n - n);
    if (rest == NULL) return 0;
    rest->n_spoilt = p->n_spoilt;
    rest->n_refusals = p->n_refusals;
    set_range(p, p->call.first, n);
    return 1;
}

static qr_status send_attempt(qr_backend *b, attempt *a, qr_vllm_replica *r, qr_error *err)
{
    char url[1024];
    part *p = a->part;
    snprintf(url, sizeof url, "%s%s", r->base, qr_vllm_protocol_route(r->protocol));
    a->call = p->call;
    a->call.protocol = r->protocol;
    a->call.model = r->model;
    a->request.url = url;
    a->request.connect_to = r->connect_to;
    a->request.timeout_seconds = b->cfg.place.vllm.timeout_seconds > 0 ? b->cfg.place.vllm.timeout_seconds : default_timeout_s;
    a->request.max_answer_bytes = qr_vllm_answer_bytes(&a->call);
    a->request.done = on_answer;
    a->request.owner = a;
    a->request.body.n = 0;
    qr_vllm_write_call(&a->call, &a->request.body);
    if (a->request.body.failed) return qr_fail(err, QR_E_MEMORY, "no memory for a request");
    qr_status status = qr_http_start(b->http, &a->request, err);
    if (status != QR_OK) return status;
    a->began = qr_now();
    if (r->load.in_flight == 0) r->last_heard = r->last_asked = a->began; /* silence is measured from here */
    qr_load_begin(&r->load, p->tokens);
    if (!is_in_work(p)) b->n_waiting--;
    a->replica = r;
    return QR_OK;
}

static qr_status send_part(qr_backend *b, part *p, qr_vllm_replica *r, qr_error *err)
{
    if (!fit(p, r)) return qr_fail(err, QR_E_MEMORY, "no memory for a request");
    qr_status status = send_attempt(b, &p->first, r, err);
    if (status != QR_OK) return status;
    b->retries = fmin(b->retries + retries_per_request, most_retries);
    b->next_hedge = fmin(b->next_hedge, p->first.began + qr_hedge_after(&b->hedging, p->tokens));
    return QR_OK;
}

/* Whether the replica takes all of the part's documents in one request. */
static int takes(const qr_vllm_replica *r, const part *p)
{
    qr_vllm_call call = p->call;
    call.protocol = r->protocol;
    return qr_vllm_capacity(&call) >= p->call.n && r->most_documents >= p->call.n;
}

/* Asks elsewhere for what takes longer than usual, while nothing waits for a place. */
static void hedge(qr_backend *b, double now)
{
    double next = INFINITY;
    for (qr_work *work = b->works; work != NULL; work = work->next)
        for (part *p = ((work_state *) work->state)->parts; p != NULL; p = p->next) {
            if (p->first.replica == NULL || p->hedge.replica != NULL) continue;
            double due = p->first.began + qr_hedge_after(&b->hedging, p->tokens);
            size_t busy = index_of_seed(&b->pool, p->first.replica->load.seed), i = SIZE_MAX;
            if (due <= now) i = qr_balance(b->pool.loads, b->pool.n, p->prefix_hash, p->tokens, busy, now);
            qr_error ignored = {0};
            if (i != SIZE_MAX && i != busy && takes(b->pool.replicas[i], p) && qr_hedge_take(&b->hedging) &&
                send_attempt(b, &p->hedge, b->pool.replicas[i], &ignored) == QR_OK)
                b->pool.replicas[i]->n_hedges++;
            else next = fmin(next, fmax(due, now + poll_cancel_s)); /* there may be room, or an allowance, later */
        }
    b->next_hedge = next;
}

/* Gives waiting parts to replicas, oldest work first, while there is room; returns when to try again. */
static double dispatch(qr_backend *b, double now)
{
    double next = now + 3600;
    for (qr_work *work = b->works, *next_work; work != NULL && b->n_waiting > 0 && b->pool.n_up > 0; work = next_work) {
        next_work = work->next;
        qr_status status = QR_OK;
        qr_error error = {0};
        for (part *p = ((work_state *) work->state)->parts; p != NULL && status == QR_OK; p = p->next) {
            if (is_in_work(p)) continue;
            if (p->not_before > now) {
                next = fmin(next, p->not_before);
                continue;
            }
            size_t avoid = index_of_seed(&b->pool, p->avoid);
            size_t i = qr_balance(b->pool.loads, b->pool.n, p->prefix_hash, p->tokens, avoid, now);
            if (i == SIZE_MAX) {
                next = fmin(next, now + poll_cancel_s); /* a pause may end */
                continue;
            }
            if (p->is_retry && !may_retry(b, now)) {
                next = fmin(next, now + 1 / retries_per_s);
                continue;
            }
            status = send_part(b, p, b->pool.replicas[i], &error);
        }
        if (status != QR_OK) end_work(b, work, status, &error);
    }
    return next;
}

/* Once there has been no server for long enough, nobody is kept waiting. */
static int is_given_up(const qr_backend *b, double now) { return b->pool.down_since > 0 && now - b->pool.down_since > patience_s; }

static qr_status fail_unavailable(const qr_backend *b, qr_error *err)
{
    char reasons[400];
    qr_vllm_pool_reasons(&b->pool, reasons, sizeof reasons);
    return qr_fail(err, QR_E_UNAVAILABLE, "no vLLM server can be used: %s", reasons);
}

/* ---- what other threads see ---------------------------------------------------------------------------------------------------------- */

static void describe(const qr_vllm_replica *r, qr_replica *out)
{
    static const char *const states[] = {"down", "checking", "up", "leaving"};
    *out = (qr_replica){.max_model_len = r->max_model_len,
                        .in_flight = r->load.in_flight,
                        .limit = floor(r->load.limit),
                        .in_flight_tokens = r->load.tokens,
                        .requests = r->n_requests,
                        .documents = r->n_documents,
                        .tokens = r->n_tokens,
                        .errors = r->n_errors,
                        .overloads = r->n_overloads,
                        .ejections = r->n_ejections,
                        .hedges = r->n_hedges,
                        .hedges_won = r->n_hedges_won,
                        .seconds = r->seconds,
                        .sample_seconds = r->sample_seconds};
    snprintf(out->name, sizeof out->name, "%s", r->name);
    snprintf(out->state, sizeof out->state, "%s", states[r->state]);
    snprintf(out->model, sizeof out->model, "%.*s", (int) sizeof out->model - 1, r->model);
    snprintf(out->reason, sizeof out->reason, "%s", r->reason);
    snprintf(out->version, sizeof out->version, "%s", r->version);
    snprintf(out->address, sizeof out->address, "%s", r->address);
    if (r->state != QR_VLLM_UP) return;
    snprintf(out->protocol, sizeof out->protocol, "%s", qr_vllm_protocol_name(r->protocol));
    snprintf(out->why_protocol, sizeof out->why_protocol, "%s", r->why_protocol);
}

static void publish(qr_backend *b, double now)
{
    pthread_mutex_lock(&b->lock);
    qr_replica *grown = qr_grow(b->published, &b->published_capacity, b->pool.n, sizeof *grown);
    if (grown != NULL) {
        b->published = grown;
        b->n_published = b->pool.n;
        for (size_t i = 0; i < b->pool.n; i++) describe(b->pool.replicas[i], &b->published[i]);
    }
    pthread_mutex_unlock(&b->lock);
    b->published_at = now;
}

static size_t vllm_replicas(qr_backend *b, qr_replica *out, size_t capacity)
{
    pthread_mutex_lock(&b->lock);
    size_t n = b->n_published;
    if (n > 0 && capacity > 0) memcpy(out, b->published, (n < capacity ? n : capacity) * sizeof *out);
    pthread_mutex_unlock(&b->lock);
    return n;
}

/* ---- the interface ------------------------------------------------------------------------------------------------------------------- */

static int vllm_probe(const qr_backend_place *place, char *why, size_t size)
{
    size_t n = place->vllm.n_urls;
    if (n == 0) {
        snprintf(why, size, "no server is configured (--vllm-url)");
        return QR_GRADE_NONE;
    }
    snprintf(why, size, "%s%s", place->vllm.urls[0], n > 1 ? " and others" : "");
    return QR_GRADE_VLLM;
}

/* One round: what is due, then waiting for something to happen, for at most so many seconds. */
static void run(qr_backend *b, double seconds)
{
    double now = qr_now();
    double wait = fmin(seconds, qr_vllm_pool_tick(&b->pool, now));
    if (b->n_waiting > 0) wait = fmin(wait, dispatch(b, now) - now);
    if (b->cfg.place.vllm.hedge && b->n_waiting == 0) {
        if (b->next_hedge <= now) hedge(b, now);
        wait = fmin(wait, b->next_hedge - now);
    }
    if (b->ended != NULL) wait = 0;
    /* What has changed is told ten times a second at most, and before a long sleep. */
    if (now - b->published_at >= publish_every_s) publish(b, now);
    else wait = fmin(wait, publish_every_s);
    qr_http_run(b->http, fmax(wait, 0));
}

static int vllm_has_room(const qr_backend *b)
{
    double now = qr_now();
    if (b->pool.n_up == 0) return 1; /* it waits here as well as there */
    if (b->n_waiting > 0) return 0;
    for (size_t i = 0; i < b->pool.n; i++)
        if (qr_load_has_room(b->pool.loads[i], now)) return 1;
    return 0;
}

static qr_status vllm_begin(qr_backend *b, qr_work *work, qr_error *err)
{
    if (is_given_up(b, qr_now())) return fail_unavailable(b, err);
    work_state *w = qr_calloc(1, sizeof *w);
    if (w == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for a batch");
    *w = (work_state){.backend = b, .work = work, .n_left = work->batch.n_seqs};
    if (add_part(w, 0, work->batch.n_seqs) == NULL) {
        qr_free(w);
        return qr_fail(err, QR_E_MEMORY, "no memory for a batch");
    }
    work->state = w;
    work->status = QR_OK;
    work->next = NULL;
    qr_work **last = &b->works;
    while (*last != NULL) last = &(*last)->next;
    *last = work;
    dispatch(b, qr_now());
    return QR_OK;
}

static void vllm_withdraw(qr_backend *b, qr_work *work)
{
    release(b, work);
    for (qr_work **link = &b->ended; *link != NULL; link = &(*link)->next)
        if (*link == work) { /* ended, but not given back yet */
            *link = work->next;
            break;
        }
    b->last_ended = &b->ended;
    while (*b->last_ended != NULL) b->last_ended = &(*b->last_ended)->next;
}

static qr_work *vllm_wait(qr_backend *b, double seconds)
{
    double now = qr_now(), end = now + seconds;
    for (;;) {
        if (is_given_up(b, now) && b->works != NULL) {
            qr_error error = {0};
            end_work(b, b->works, fail_unavailable(b, &error), &error);
        }
        if (b->ended == NULL) run(b, end - now);
        qr_work *work = b->ended;
        if (work != NULL) {
            b->ended = work->next;
            if (b->ended == NULL) b->last_ended = &b->ended;
            work->next = NULL;
            return work;
        }
        if (atomic_exchange(&b->woken, 0) || (now = qr_now()) >= end) return NULL;
    }
}

static void vllm_wake(qr_backend *b)
{
    atomic_store(&b->woken, 1);
    qr_http_wake(b->http);
}

static qr_status vllm_score(qr_backend *b, const qr_batch *batch, qr_logits *out, qr_error *err)
{
    qr_work work = {.batch = *batch, .out = out};
    qr_status status = vllm_begin(b, &work, err);
    if (status != QR_OK) return status;
    while (vllm_wait(b, poll_cancel_s) == NULL)
        if (qr_is_set(batch->cancel)) {
            vllm_withdraw(b, &work);
            return qr_fail(err, QR_E_CANCELLED, "cancelled");
        }
    if (work.status != QR_OK && err != NULL) *err = work.error;
    return work.status;
}

static void vllm_close(qr_backend *b)
{
    if (b == NULL) return;
    while (b->works != NULL) release(b, b->works);
    qr_vllm_pool_close(&b->pool);
    qr_http_close(b->http);
    pthread_mutex_destroy(&b->lock);
    qr_free(b->published);
    qr_free(b);
}

/* Until one server is good, if one has to be; all are bad is an error, at once or, for those that may still be starting, after a time. */
static qr_status await_server(qr_backend *b, qr_error *err)
{
    double end = qr_now() + b->cfg.place.vllm.wait_seconds;
    while (b->pool.n_up == 0 && b->cfg.place.vllm.wait_seconds >= 0) {
        run(b, poll_cancel_s);
        if (b->pool.n_up == 0 && qr_vllm_pool_is_hopeless(&b->pool) && qr_now() >= end) return fail_unavailable(b, err);
    }
    return QR_OK;
}

static qr_status vllm_open(qr_backend **out, const qr_backend_cfg *cfg, qr_error *err)
{
    sigset_t pipe;
    *out = NULL;
    if (cfg->sample == NULL) return qr_fail(err, QR_E_ARG, "the backend vllm needs a sample to check servers with");
    /* A server that closes its connection while we write: OpenSSL would have the process killed. The thread is the engine's own. */
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, NULL);
    qr_backend *b = qr_calloc(1, sizeof *b);
    if (b == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for the vLLM backend");
    pthread_mutex_init(&b->lock, NULL);
    b->cfg = *cfg;
    b->last_ended = &b->ended;
    b->retries = most_retries;
    b->retries_at = qr_now();
    b->next_hedge = INFINITY;
    qr_status status = qr_http_open(&b->http, cfg->place.vllm.api_key, cfg->place.vllm.ca_file, err);
    if (status == QR_OK) status = qr_vllm_pool_open(&b->pool, &b->cfg, b->http, on_lost, b, err);
    if (status == QR_OK) status = await_server(b, err);
    if (status != QR_OK) {
        vllm_close(b);
        return status;
    }
    publish(b, qr_now());
    *out = b;
    return QR_OK;
}

static void vllm_info(const qr_backend *b, qr_backend_info *out)
{
    *out = (qr_backend_info){.batch_tokens = DEFAULT_BATCH_TOKENS};
    const qr_vllm_replica *first = b->pool.replicas[0];
    for (size_t i = 0; i < b->pool.n && first->state != QR_VLLM_UP; i++) first = b->pool.replicas[i];
    snprintf(out->device, sizeof out->device, "%zu of %zu vLLM servers, model %.60s", b->pool.n_up, b->pool.n, first->model);
    snprintf(out->dtype, sizeof out->dtype, "the server's");
}

static void vllm_stats(const qr_backend *b, qr_backend_stats *out) { *out = b->stats; }

const qr_backend_ops qr_backend_vllm = {
    .abi = QR_BACKEND_ABI,
    .name = "vllm",
    .needs_model = 0,
    .probe = vllm_probe,
    .open = vllm_open,
    .close = vllm_close,
    .score = vllm_score,
    .info = vllm_info,
    .stats = vllm_stats,
    .has_room = vllm_has_room,
    .begin = vllm_begin,
    .withdraw = vllm_withdraw,
    .wait = vllm_wait,
    .wake = vllm_wake,
    .replicas = vllm_replicas,
};
