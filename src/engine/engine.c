/* The engine behind the public header: tokenizer, prompt, model, and one thread that owns the backend.
 *
 * Callers tokenize in their own threads, then queue a job and wait. The engine's thread takes jobs in order of arrival, cuts them into
 * batches of about max_batch_tokens, and has the backend score them. One thread, because compute libraries bind state to threads (OpenMP
 * teams, streams of MLX and CUDA); several would only fight for the same cores.
 */
#define _GNU_SOURCE /* clock_gettime */
#include "base/error.h"
#include "base/mem.h"
#include "engine/backend.h"
#include "model/builtin.h"
#include "text/prompt.h"

#include <math.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { DEFAULT_MAX_LENGTH = 8192, DEFAULT_BATCH_TOKENS = 2048, MAX_THREADS = 1024 };
static const size_t default_prefix_cache_bytes = (size_t) 256 << 20;

typedef struct job {
    const qr_prompt_ids *prompts; /* [n_queries] */
    const qr_query *queries;
    size_t n_queries, n_results;
    qr_result *results;
    const qr_call *call; /* or NULL */
    qr_status status;
    qr_error error;
    int done;
    struct job *next;
} job;

struct qr_engine {
    char *model_dir;
    qr_tokenizer *tokenizer;
    qr_prompt *prompt;
    qr_model model;
    int model_open;
    const qr_backend_ops *ops;
    qr_backend *backend; /* touched by the engine's thread only */
    qr_backend_cfg cfg;
    qr_backend_info backend_info;
    double load_seconds;
    int warm_up;

    pthread_t thread;
    int thread_started;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t job_queued, job_done;
    job *first, **last;
    int closing, opened; /* opened: the thread has opened the backend, or failed to */
    qr_status open_status;
    qr_error open_error;
    qr_stats stats;
};

const char *qr_version(void) { return QR_VERSION; }

static double now_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double) t.tv_sec + (double) t.tv_nsec * 1e-9;
}

/* ---- the engine's thread ------------------------------------------------------------------------------------------------------ */

/* Sequences of one backend call. */
typedef struct batch_room {
    qr_seq *seqs;
    qr_prefix *prefixes;
    qr_logits *logits;
    size_t *result; /* index of each sequence's result */
    size_t capacity;
} batch_room;

static int grow_room(batch_room *room, size_t need)
{
    if (need <= room->capacity) return 1;
    size_t cap[4] = {room->capacity, room->capacity, room->capacity, room->capacity};
    void *grown;
    if ((grown = qr_grow(room->seqs, &cap[0], need, sizeof *room->seqs)) == NULL) return 0;
    room->seqs = grown;
    if ((grown = qr_grow(room->prefixes, &cap[1], need, sizeof *room->prefixes)) == NULL) return 0;
    room->prefixes = grown;
    if ((grown = qr_grow(room->logits, &cap[2], need, sizeof *room->logits)) == NULL) return 0;
    room->logits = grown;
    if ((grown = qr_grow(room->result, &cap[3], need, sizeof *room->result)) == NULL) return 0;
    room->result = grown;
    room->capacity = cap[3];
    return 1;
}

static void free_room(batch_room *room)
{
    qr_free(room->seqs);
    qr_free(room->prefixes);
    qr_free(room->logits);
    qr_free(room->result);
}

static double sigmoid(double x) { return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x)); }

static qr_status store_results(const job *j, const batch_room *room, size_t n_seqs, qr_error *err)
{
    for (size_t i = 0; i < n_seqs; i++) {
        qr_logits l = room->logits[i];
        qr_result *r = &j->results[room->result[i]];
        if (!isfinite(l.yes) || !isfinite(l.no))
            return qr_fail(err, QR_E_BACKEND, "document %zu: the model's output is not a number (logits %g and %g)", room->result[i],
                           (double) l.yes, (double) l.no);
        r->yes = l.yes;
        r->no = l.no;
        r->margin = l.yes - l.no;
        r->score = sigmoid((double) r->margin);
        r->flags |= QR_RESULT_DONE;
    }
    return QR_OK;
}

/* Scores one batch and reports progress. */
static qr_status run_batch(qr_engine *e, job *j, batch_room *room, size_t n_seqs, size_t n_prefixes, size_t n_before, qr_error *err)
{
    const qr_call *call = j->call;
    qr_batch batch = {room->prefixes, n_prefixes, room->seqs, n_seqs, call != NULL ? call->cancel : NULL};
    double start = now_seconds();
    qr_status status = e->ops->score(e->backend, &batch, room->logits, err);
    double seconds = now_seconds() - start;
    if (status == QR_OK) status = store_results(j, room, n_seqs, err);
    qr_backend_stats stats = {0};
    if (e->ops->stats != NULL) e->ops->stats(e->backend, &stats);
    pthread_mutex_lock(&e->lock);
    e->stats.compute_seconds += seconds;
    e->stats.computed_tokens = stats.computed_tokens;
    e->stats.prefix_hits = stats.prefix_hits;
    e->stats.prefix_misses = stats.prefix_misses;
    for (size_t i = 0; i < n_seqs && status == QR_OK; i++) {
        e->stats.documents++;
        e->stats.prompt_tokens += j->results[room->result[i]].n_tokens;
    }
    pthread_mutex_unlock(&e->lock);
    if (status == QR_OK && call != NULL && call->progress != NULL &&
        call->progress(call->progress_arg, n_before + n_seqs, j->n_results) != 0)
        status = qr_fail(err, QR_E_CANCELLED, "cancelled");
    return status;
}

/* Cuts a job into batches. */
static qr_status run_job(qr_engine *e, job *j, batch_room *room, qr_error *err)
{
    size_t n_seqs = 0, n_prefixes = 0, n_tokens = 0, result = 0;
    qr_status status;
    for (size_t q = 0; q < j->n_queries; q++) {
        const qr_prompt_ids *p = &j->prompts[q];
        int new_prefix = 1; /* in this batch */
        for (size_t d = 0; d < p->n_documents; d++, result++) {
            size_t n = p->start[d + 1] - p->start[d];
            size_t with_prefix = n + (new_prefix ? p->n_shared : 0);
            if (n_seqs > 0 && n_tokens + with_prefix > e->cfg.max_batch_tokens) {
                if ((status = run_batch(e, j, room, n_seqs, n_prefixes, result - n_seqs, err)) != QR_OK) return status;
                n_seqs = n_prefixes = n_tokens = 0;
                new_prefix = 1;
            }
            if (j->call != NULL && j->call->cancel != NULL && *j->call->cancel) return qr_fail(err, QR_E_CANCELLED, "cancelled");
            if (!grow_room(room, n_seqs + 1)) return qr_fail(err, QR_E_MEMORY, "no memory for a batch of %zu documents", n_seqs + 1);
            if (new_prefix) {
                room->prefixes[n_prefixes++] = (qr_prefix){p->ids.id, p->n_shared};
                n_tokens += p->n_shared;
                new_prefix = 0;
            }
            room->seqs[n_seqs] = (qr_seq){p->ids.id + p->start[d], n, n_prefixes - 1};
            room->result[n_seqs++] = result;
            n_tokens += n;
        }
    }
    return n_seqs > 0 ? run_batch(e, j, room, n_seqs, n_prefixes, result - n_seqs, err) : QR_OK;
}

static void open_backend(qr_engine *e)
{
    qr_error error = {0};
    qr_status status = e->ops->open(&e->backend, &e->cfg, &error);
    if (status == QR_OK && e->warm_up && e->ops->warm_up != NULL && (status = e->ops->warm_up(e->backend, &error)) != QR_OK) {
        e->ops->close(e->backend);
        e->backend = NULL;
    }
    if (status == QR_OK) e->ops->info(e->backend, &e->backend_info);
    pthread_mutex_lock(&e->lock);
    e->open_status = status;
    e->open_error = error;
    e->opened = 1;
    pthread_cond_broadcast(&e->job_done);
    pthread_mutex_unlock(&e->lock);
}

static void *engine_thread(void *arg)
{
    qr_engine *e = arg;
    batch_room room = {0};
    open_backend(e);
    pthread_mutex_lock(&e->lock);
    while (e->backend != NULL) {
        while (e->first == NULL && !e->closing) pthread_cond_wait(&e->job_queued, &e->lock);
        job *j = e->first;
        if (j == NULL) break; /* closing, and everything that was queued is done */
        if ((e->first = j->next) == NULL) e->last = &e->first;
        pthread_mutex_unlock(&e->lock);
        qr_error error = {0};
        qr_status status = run_job(e, j, &room, &error);
        pthread_mutex_lock(&e->lock);
        j->status = status;
        j->error = error;
        j->done = 1;
        pthread_cond_broadcast(&e->job_done);
    }
    pthread_mutex_unlock(&e->lock);
    free_room(&room);
    if (e->backend != NULL) e->ops->close(e->backend);
    return NULL;
}

/* ---- open and close ----------------------------------------------------------------------------------------------------------- */

static qr_status check_options(const qr_options *o, qr_error *err)
{
    if (o == NULL || o->model == NULL || o->model[0] == 0)
        return qr_fail(err, QR_E_ARG, "qr_options.model: expected a folder, found nothing");
    if (o->threads < 0 || o->threads > MAX_THREADS)
        return qr_fail(err, QR_E_ARG, "qr_options.threads: expected 0 to %d, found %d", MAX_THREADS, o->threads);
    if (o->dtype != QR_DTYPE_AUTO && o->dtype != QR_DTYPE_F32 && o->dtype != QR_DTYPE_BF16)
        return qr_fail(err, QR_E_ARG, "qr_options.dtype: expected auto, f32 or bf16, found %d", (int) o->dtype);
    return QR_OK;
}

/* Limits from the options and the model: a length that the model was not made for is refused, not clipped. */
static qr_status choose_limits(qr_engine *e, const qr_options *o, qr_error *err)
{
    size_t positions = e->model.config.max_positions;
    if (o->max_length > positions)
        return qr_fail(err, QR_E_ARG, "max_length: expected at most the model's %zu positions, found %zu", positions, o->max_length);
    e->cfg.max_length = o->max_length > 0 ? o->max_length : positions < DEFAULT_MAX_LENGTH ? positions : DEFAULT_MAX_LENGTH;
    e->cfg.max_batch_tokens = o->max_batch_tokens > 0 ? o->max_batch_tokens : DEFAULT_BATCH_TOKENS;
    if (e->cfg.max_batch_tokens > (size_t) 1 << 24)
        return qr_fail(err, QR_E_ARG, "max_batch_tokens: expected at most %zu, found %zu", (size_t) 1 << 24, o->max_batch_tokens);
    e->cfg.prefix_cache_bytes = o->prefix_cache_bytes == QR_SIZE_NONE ? 0
                                : o->prefix_cache_bytes > 0           ? o->prefix_cache_bytes
                                                                      : default_prefix_cache_bytes;
    return QR_OK;
}

static qr_status open_parts(qr_engine *e, const qr_options *o, qr_error *err)
{
    if ((e->model_dir = qr_strndup(o->model, strlen(o->model))) == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for the engine");
    qr_status status = qr_backend_choose(&e->ops, o->backend, err);
    if (status == QR_OK && (status = qr_model_open(&e->model, o->model, err)) == QR_OK) e->model_open = 1;
    if (status == QR_OK) status = qr_model_tokenizer_open(&e->tokenizer, o->model, err);
    if (status == QR_OK) status = qr_prompt_open(&e->prompt, e->tokenizer, o, err);
    if (status == QR_OK) status = choose_limits(e, o, err);
    if (status == QR_OK && qr_tok_vocab_size(e->tokenizer) > e->model.config.vocab)
        status = qr_fail(err, QR_E_FORMAT, "%s: the tokenizer has ids up to %zu, the model only %zu rows: they do not belong together",
                         o->model, qr_tok_vocab_size(e->tokenizer) - 1, e->model.config.vocab);
    return status;
}

static qr_status start_thread(qr_engine *e, const qr_options *o, qr_error *err)
{
    e->cfg.model = &e->model;
    e->cfg.model_dir = e->model_dir;
    e->cfg.yes_id = qr_prompt_yes_id(e->prompt);
    e->cfg.no_id = qr_prompt_no_id(e->prompt);
    e->cfg.dtype = o->dtype;
    e->cfg.threads = o->threads;
    e->cfg.log = o->log;
    e->cfg.log_arg = o->log_arg;
    e->warm_up = o->warm_up;
    if (pthread_create(&e->thread, NULL, engine_thread, e) != 0) return qr_fail(err, QR_E_MEMORY, "cannot start the engine's thread");
    e->thread_started = 1;
    pthread_mutex_lock(&e->lock);
    while (!e->opened) pthread_cond_wait(&e->job_done, &e->lock);
    pthread_mutex_unlock(&e->lock);
    if (e->open_status != QR_OK && err != NULL) *err = e->open_error;
    return e->open_status;
}

static void log_opened(const qr_engine *e, const qr_options *o)
{
    char line[512];
    if (o->log == NULL) return;
    /* A warning, so that nobody takes its scores for those of the real model. */
    if (qr_is_builtin(e->model_dir)) o->log(o->log_arg, QR_LOG_WARN, QR_BUILTIN_NOTE);
    snprintf(line, sizeof line, "%s: backend %s (%s), %s, %.1f M parameters, up to %zu tokens, ready in %.2f s", e->model_dir, e->ops->name,
             e->backend_info.device, e->backend_info.dtype, (double) e->model.n_parameters / 1e6, e->cfg.max_length, e->load_seconds);
    o->log(o->log_arg, QR_LOG_INFO, line);
    if (!qr_prompt_is_canonical(e->prompt))
        o->log(o->log_arg, QR_LOG_WARN, "the prompt differs from the one that Qwen3-Reranker was trained with");
}

qr_status qr_engine_open(qr_engine **out, const qr_options *options, qr_error *err)
{
    double start = now_seconds();
    if (out == NULL) return qr_fail(err, QR_E_ARG, "qr_engine_open: out is NULL");
    *out = NULL;
    qr_status status = check_options(options, err);
    if (status != QR_OK) return status;
    qr_engine *e = qr_calloc(1, sizeof *e);
    if (e == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for the engine");
    e->last = &e->first;
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->job_queued, NULL);
    pthread_cond_init(&e->job_done, NULL);
    status = open_parts(e, options, err);
    if (status == QR_OK) status = start_thread(e, options, err);
    if (status != QR_OK) {
        qr_engine_close(e);
        return status;
    }
    e->load_seconds = now_seconds() - start;
    log_opened(e, options);
    *out = e;
    return QR_OK;
}

void qr_engine_close(qr_engine *e)
{
    if (e == NULL) return;
    if (e->thread_started) {
        pthread_mutex_lock(&e->lock);
        e->closing = 1;
        pthread_cond_signal(&e->job_queued);
        pthread_mutex_unlock(&e->lock);
        pthread_join(e->thread, NULL);
    }
    qr_prompt_close(e->prompt);
    qr_tok_close(e->tokenizer);
    if (e->model_open) qr_model_close(&e->model);
    pthread_cond_destroy(&e->job_queued);
    pthread_cond_destroy(&e->job_done);
    pthread_mutex_destroy(&e->lock);
    qr_free(e->model_dir);
    qr_free(e);
}

/* ---- calls -------------------------------------------------------------------------------------------------------------------- */

/* SHA-256 of the ids as ASCII decimals joined by commas: the form in which golden scores name a prompt. */
static qr_status hash_ids(unsigned char digest[32], const qr_prompt_ids *p, size_t d, qr_error *err)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    int ok = ctx != NULL && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1;
    size_t n_own = p->start[d + 1] - p->start[d], n = p->n_shared + n_own;
    char text[4096];
    size_t used = 0;
    for (size_t i = 0; ok && i < n; i++) {
        uint32_t id = i < p->n_shared ? p->ids.id[i] : p->ids.id[p->start[d] + i - p->n_shared];
        used += (size_t) snprintf(text + used, sizeof text - used, i > 0 ? ",%u" : "%u", id);
        if (used > sizeof text - 16 || i + 1 == n) {
            ok = EVP_DigestUpdate(ctx, text, used) == 1;
            used = 0;
        }
    }
    ok = ok && EVP_DigestFinal_ex(ctx, digest, NULL) == 1;
    EVP_MD_CTX_free(ctx);
    return ok ? QR_OK : qr_fail(err, QR_E_MEMORY, "libcrypto cannot compute a SHA-256");
}

/* What is known of the results before anything is computed. */
static qr_status describe_results(qr_result *results, const qr_prompt_ids *p, const qr_call *call, qr_error *err)
{
    for (size_t d = 0; d < p->n_documents; d++) {
        results[d] = (qr_result){
            .n_tokens = (uint32_t) (p->n_shared + p->start[d + 1] - p->start[d]), .n_shared = (uint32_t) p->n_shared, .flags = p->flags[d]};
        qr_status status;
        if (call != NULL && call->want_ids_sha256 && (status = hash_ids(results[d].ids_sha256, p, d, err)) != QR_OK) return status;
    }
    return QR_OK;
}

static qr_status check_query(const qr_query *q, size_t index, qr_error *err)
{
    const char *what = NULL;
    if (q->query.data == NULL && q->query.len > 0) what = "query";
    else if (q->documents == NULL && q->n_documents > 0) what = "documents";
    else if (q->instruction != NULL && q->instruction->data == NULL && q->instruction->len > 0) what = "instruction";
    for (size_t d = 0; what == NULL && d < q->n_documents; d++)
        if (q->documents[d].data == NULL && q->documents[d].len > 0) what = "a document";
    return what == NULL ? QR_OK : qr_fail(err, QR_E_ARG, "query %zu: %s is NULL but has a length", index, what);
}

static qr_status build_prompts(qr_engine *e, job *j, qr_prompt_ids *prompts, qr_error *err)
{
    size_t result = 0;
    for (size_t q = 0; q < j->n_queries; q++) {
        const qr_query *query = &j->queries[q];
        qr_status status = check_query(query, q, err);
        if (status != QR_OK) return status;
        if (query->n_documents == 0) continue;
        size_t max_length = e->cfg.max_length;
        if (query->max_length > 0 && query->max_length < max_length) max_length = query->max_length;
        status = qr_prompt_build(e->prompt, query, max_length, &prompts[q], err);
        if (status != QR_OK) return j->n_queries > 1 ? qr_fail_prefix(err, status, "query %zu", q) : status;
        if ((status = describe_results(j->results + result, &prompts[q], j->call, err)) != QR_OK) return status;
        result += query->n_documents;
        if (j->call != NULL && j->call->cancel != NULL && *j->call->cancel) return qr_fail(err, QR_E_CANCELLED, "cancelled");
    }
    j->n_results = result;
    return QR_OK;
}

static void wait_for(qr_engine *e, job *j)
{
    pthread_mutex_lock(&e->lock);
    *e->last = j;
    e->last = &j->next;
    pthread_cond_signal(&e->job_queued);
    while (!j->done) pthread_cond_wait(&e->job_done, &e->lock);
    pthread_mutex_unlock(&e->lock);
}

qr_status qr_score(qr_engine *e, const qr_query *queries, size_t n_queries, qr_result *results, const qr_call *call, qr_error *err)
{
    if (e == NULL || (queries == NULL && n_queries > 0)) return qr_fail(err, QR_E_ARG, "qr_score: engine or queries is NULL");
    size_t total = 0;
    for (size_t q = 0; q < n_queries; q++) total += queries[q].n_documents;
    if (results == NULL && total > 0) return qr_fail(err, QR_E_ARG, "qr_score: results is NULL");
    if (total == 0) return QR_OK;
    memset(results, 0, total * sizeof *results);
    qr_prompt_ids *prompts = qr_calloc(n_queries, sizeof *prompts);
    if (prompts == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for %zu queries", n_queries);
    job j = {.prompts = prompts, .queries = queries, .n_queries = n_queries, .results = results, .call = call};
    qr_status status = build_prompts(e, &j, prompts, err);
    if (status == QR_OK) {
        wait_for(e, &j);
        status = j.status;
        if (status != QR_OK && err != NULL) *err = j.error;
    }
    for (size_t q = 0; q < n_queries; q++) qr_prompt_ids_deinit(&prompts[q]);
    qr_free(prompts);
    return status;
}

/* 1 if result a comes before result b. Margins decide, since scores saturate: margins of 40 and 50 both give 1.0. */
static int comes_before(const qr_result *results, size_t a, size_t b)
{
    const qr_result *x = &results[a], *y = &results[b];
    int x_done = (x->flags & QR_RESULT_DONE) != 0, y_done = (y->flags & QR_RESULT_DONE) != 0;
    if (x_done != y_done) return x_done;
    if (x_done && x->margin != y->margin) return x->margin > y->margin;
    return a < b;
}

static void sift_down(const qr_result *results, size_t *order, size_t root, size_t n)
{
    for (size_t child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && comes_before(results, order[child], order[child + 1])) child++;
        if (!comes_before(results, order[root], order[child])) return;
        size_t swap = order[root];
        order[root] = order[child];
        order[child] = swap;
    }
}

/* Heapsort: needs no memory, so it cannot fail, and the order is total, so it need not be stable. */
void qr_rank(const qr_result *results, size_t n_results, size_t *order)
{
    for (size_t i = 0; i < n_results; i++) order[i] = i;
    for (size_t i = n_results / 2; i-- > 0;) sift_down(results, order, i, n_results);
    for (size_t n = n_results; n > 1; n--) {
        size_t last = order[0];
        order[0] = order[n - 1];
        order[n - 1] = last;
        sift_down(results, order, 0, n - 1);
    }
}

qr_status qr_tokenize(qr_engine *e, qr_text text, int parse_special, uint32_t *ids, size_t capacity, size_t *n_ids, qr_error *err)
{
    if (e == NULL || n_ids == NULL || (text.data == NULL && text.len > 0) || (ids == NULL && capacity > 0))
        return qr_fail(err, QR_E_ARG, "qr_tokenize: an argument is NULL");
    qr_ids list = {0};
    qr_status status =
        qr_tok_encode(e->tokenizer, text.data, text.len, parse_special ? QR_TOK_SPECIAL : QR_TOK_MARKUP, 0, &list, NULL, NULL, err);
    if (status == QR_OK) {
        *n_ids = list.n;
        size_t n = list.n < capacity ? list.n : capacity;
        if (n > 0) memcpy(ids, list.id, n * sizeof *ids);
    }
    qr_ids_deinit(&list);
    return status;
}

void qr_engine_info(const qr_engine *e, qr_info *out)
{
    *out = (qr_info){
        .backend = e->ops->name,
        .device = e->backend_info.device,
        .dtype = e->backend_info.dtype,
        .model = e->model_dir,
        .max_length = e->cfg.max_length,
        .max_batch_tokens = e->cfg.max_batch_tokens,
        .n_parameters = e->model.n_parameters,
        .weight_bytes = e->model.weight_bytes,
        .memory_bytes = e->backend_info.memory_bytes,
        .yes_id = e->cfg.yes_id,
        .no_id = e->cfg.no_id,
        .canonical_prompt = qr_prompt_is_canonical(e->prompt),
        .load_seconds = e->load_seconds,
        .builtin_model = qr_is_builtin(e->model_dir),
    };
}

void qr_engine_stats(qr_engine *e, qr_stats *out)
{
    pthread_mutex_lock(&e->lock);
    *out = e->stats;
    pthread_mutex_unlock(&e->lock);
}
