/* The engine behind the public header: tokenizer, prompt, model, and a scheduler that owns the backend.
 *
 * Callers tokenize in their own threads, then give the scheduler a job and wait, or do not (engine.h).
 */
#include "engine/engine.h"

#include "base/mem.h"
#include "base/system.h"
#include "engine/calibration.h"
#include "engine/sample.h"
#include "engine/scheduler.h"
#include "model/builtin.h"

#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { DEFAULT_MAX_LENGTH = 8192, DEFAULT_BATCH_TOKENS = 2048, MAX_THREADS = 1024, MAX_IDLE = 8, MAX_URLS = 1024, N_PLACES = 7 };
static const size_t default_prefix_cache_bytes = (size_t) 256 << 20;

struct qr_engine {
    char *model_dir;
    qr_tokenizer *tokenizer;
    qr_prompt *prompt;
    qr_model model; /* only its config where the backend keeps the model elsewhere */
    int model_open;
    const qr_backend_ops *ops;
    qr_backend_cfg cfg;
    qr_sample_store sample;
    qr_calibration *calibration; /* or NULL */
    qr_ids first_ids;            /* what cfg.first_ids points to */
    char *place[N_PLACES];       /* what cfg.place points to */
    char **urls;                 /* [cfg.place.vllm.n_urls] */
    qr_scheduler *scheduler;
    double load_seconds;
    pid_t process; /* the one with its thread */

    pthread_mutex_t lock;  /* guards the rest */
    qr_ids idle[MAX_IDLE]; /* without ids: what they hold is the encoder's scratch, with the words of former calls */
    size_t n_idle;
};

const char *qr_version(void) { return QR_VERSION; }

/* ---- open and close ----------------------------------------------------------------------------------------------------------- */

static qr_status check_options(const qr_options *o, qr_error *err)
{
    if (o == NULL || o->model == NULL || o->model[0] == 0)
        return qr_fail(err, QR_E_ARG, "qr_options.model: expected a folder, found nothing");
    if (o->threads < 0 || o->threads > MAX_THREADS)
        return qr_fail(err, QR_E_ARG, "qr_options.threads: expected 0 to %d, found %d", MAX_THREADS, o->threads);
    if ((int) o->dtype < QR_DTYPE_AUTO || o->dtype > QR_DTYPE_INT8)
        return qr_fail(err, QR_E_ARG, "qr_options.dtype: expected a qr_dtype, found %d", (int) o->dtype);
    if (o->n_vllm_urls > MAX_URLS || (o->n_vllm_urls > 0 && o->vllm_urls == NULL))
        return qr_fail(err, QR_E_ARG, "qr_options.vllm_urls: expected up to %d URLs, found %zu%s", MAX_URLS, o->n_vllm_urls,
                       o->vllm_urls == NULL ? " and NULL" : "");
    for (size_t i = 0; i < o->n_vllm_urls; i++)
        if (o->vllm_urls[i] == NULL) return qr_fail(err, QR_E_ARG, "qr_options.vllm_urls[%zu]: expected a URL, found NULL", i);
    if (!(o->vllm_timeout_seconds >= 0) || !(o->vllm_wait_seconds >= -1))
        return qr_fail(err, QR_E_ARG, "qr_options.vllm_timeout_seconds, vllm_wait_seconds: expected at least 0 and -1, found %g and %g",
                       o->vllm_timeout_seconds, o->vllm_wait_seconds);
    return QR_OK;
}

/* Limits from the options and the model: a length that the model was not made for is refused, not clipped. */
static qr_status choose_limits(qr_engine *e, const qr_options *o, qr_error *err)
{
    size_t positions = e->model.config.max_positions;
    if (o->max_length > positions)
        return qr_fail(err, QR_E_ARG, "max_length: expected at most the model's %zu positions, found %zu", positions, o->max_length);
    e->cfg.max_length = o->max_length > 0 ? o->max_length : positions < DEFAULT_MAX_LENGTH ? positions : DEFAULT_MAX_LENGTH;
    e->cfg.batch_is_default = o->max_batch_tokens == 0;
    e->cfg.max_batch_tokens = o->max_batch_tokens > 0 ? o->max_batch_tokens : DEFAULT_BATCH_TOKENS;
    if (e->cfg.max_batch_tokens > (size_t) 1 << 24)
        return qr_fail(err, QR_E_ARG, "max_batch_tokens: expected at most %zu, found %zu", (size_t) 1 << 24, o->max_batch_tokens);
    e->cfg.prefix_cache_bytes = o->prefix_cache_bytes == QR_SIZE_NONE ? 0
                                : o->prefix_cache_bytes > 0           ? o->prefix_cache_bytes
                                                                      : default_prefix_cache_bytes;
    return QR_OK;
}

static qr_status copy_place(qr_engine *e, const qr_options *o, qr_error *err)
{
    const char *given[N_PLACES] = {o->device,       o->torch_dir,     o->plugin_dir,  o->vllm_model,
                                   o->vllm_api_key, o->vllm_protocol, o->vllm_ca_file};
    char **copies = e->place;
    for (size_t i = 0; i < N_PLACES; i++)
        if (given[i] != NULL && (copies[i] = qr_strndup(given[i], strlen(given[i]))) == NULL)
            return qr_fail(err, QR_E_MEMORY, "no memory for the engine");
    if (o->n_vllm_urls > 0 && (e->urls = qr_calloc(o->n_vllm_urls, sizeof *e->urls)) == NULL)
        return qr_fail(err, QR_E_MEMORY, "no memory for the engine");
    e->cfg.place = (qr_backend_place){.device = copies[0], .torch_dir = copies[1], .plugin_dir = copies[2]};
    e->cfg.place.vllm = (qr_vllm_place){.urls = (const char *const *) e->urls,
                                        .n_urls = o->n_vllm_urls,
                                        .model = copies[3],
                                        .api_key = copies[4],
                                        .protocol = copies[5],
                                        .ca_file = copies[6],
                                        .timeout_seconds = o->vllm_timeout_seconds,
                                        .wait_seconds = o->vllm_wait_seconds,
                                        .hedge = o->vllm_hedge};
    for (size_t i = 0; i < o->n_vllm_urls; i++)
        if ((e->urls[i] = qr_strndup(o->vllm_urls[i], strlen(o->vllm_urls[i]))) == NULL)
            return qr_fail(err, QR_E_MEMORY, "no memory for the engine");
    return QR_OK;
}

/* Of a model that is elsewhere only the configuration is read: its weights need not be here at all. */
static qr_status open_model(qr_engine *e, const char *dir, qr_error *err)
{
    qr_status status = e->ops->needs_model ? qr_model_open(&e->model, dir, err) : qr_model_open_config(&e->model, dir, err);
    e->model_open = status == QR_OK;
    return status;
}

static qr_status open_parts(qr_engine *e, const qr_backend_ops *ops, const qr_options *o, qr_error *err)
{
    if ((e->model_dir = qr_strndup(o->model, strlen(o->model))) == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for the engine");
    qr_status status = copy_place(e, o, err);
    if (status == QR_OK && (e->ops = ops) == NULL) status = qr_backend_choose(&e->ops, o->backend, &e->cfg.place, err);
    if (status == QR_OK) status = open_model(e, o->model, err);
    if (status == QR_OK) status = qr_model_tokenizer_open(&e->tokenizer, o->model, err);
    if (status == QR_OK) status = qr_prompt_open(&e->prompt, e->tokenizer, o, err);
    if (status == QR_OK) status = choose_limits(e, o, err);
    if (status == QR_OK && qr_tok_vocab_size(e->tokenizer) > e->model.config.vocab)
        status = qr_fail(err, QR_E_FORMAT, "%s: the tokenizer has ids up to %zu, the model only %zu rows: they do not belong together",
                         o->model, qr_tok_vocab_size(e->tokenizer) - 1, e->model.config.vocab);
    return status;
}

/* What two prompts have in common whose queries have nothing in common. None if prompts do not fit at all, which is a caller's error later.
 */
static qr_status find_first_ids(qr_engine *e, qr_error *err)
{
    static const qr_text queries[2] = {{"a", 1}, {"7", 1}}, no_text = {"", 0};
    qr_prompt_ids prompts[2] = {0};
    qr_status status = QR_OK;
    for (size_t i = 0; i < 2 && status == QR_OK; i++) {
        qr_query query = {.query = queries[i], .documents = &no_text, .n_documents = 1};
        status = qr_prompt_build(e->prompt, &query, e->cfg.max_length, &prompts[i], err);
    }
    const qr_ids *a = &prompts[0].ids, *b = &prompts[1].ids;
    size_t n = 0;
    while (status == QR_OK && n < prompts[0].n_shared && n < prompts[1].n_shared && a->id[n] == b->id[n]) n++;
    if (n > 0) {
        e->first_ids = prompts[0].ids;
        prompts[0].ids = (qr_ids){0};
        e->cfg.first_ids = e->first_ids.id;
        e->cfg.n_first_ids = n;
    }
    for (size_t i = 0; i < 2; i++) qr_prompt_ids_deinit(&prompts[i]);
    return status == QR_E_TOO_LONG ? QR_OK : status;
}

static qr_status make_calibration(qr_engine *e, qr_error *err)
{
    if ((e->calibration = qr_calloc(1, sizeof *e->calibration)) == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for the engine");
    qr_status status = qr_calibration_make(e->calibration, e->prompt, e->cfg.max_length, err);
    e->cfg.calibration = &e->calibration->prompts;
    return status;
}

static qr_status start_scheduler(qr_engine *e, const qr_options *o, qr_error *err)
{
    qr_status status;
    if (e->ops->needs_model) {
        if ((status = find_first_ids(e, err)) != QR_OK) return status;
        if (o->dtype == QR_DTYPE_INT8 && (status = make_calibration(e, err)) != QR_OK) return status;
        e->cfg.model = &e->model;
    } else {
        if ((status = qr_sample_make(&e->sample, e->tokenizer, e->prompt, e->cfg.max_length, err)) != QR_OK) return status;
        e->cfg.sample = &e->sample.sample;
    }
    e->cfg.model_dir = e->model_dir;
    e->cfg.yes_id = qr_prompt_yes_id(e->prompt);
    e->cfg.no_id = qr_prompt_no_id(e->prompt);
    e->cfg.dtype = o->dtype;
    e->cfg.threads = o->threads;
    e->cfg.memory_limit = o->memory_limit;
    e->cfg.memory = o->memory;
    e->cfg.cache_dir = o->cache_dir;
    e->cfg.max_batch_documents = o->max_batch_documents;
    e->cfg.max_concurrent = o->max_concurrent;
    e->cfg.flash_attention = o->flash_attention;
    e->cfg.compile = o->compile;
    e->cfg.log = o->log;
    e->cfg.log_arg = o->log_arg;
    return qr_scheduler_open(&e->scheduler, e->ops, &e->cfg, o->warm_up, o->result_cache_bytes, err);
}

static void log_opened(const qr_engine *e, const qr_options *o)
{
    char line[512], size[48] = "";
    if (o->log == NULL) return;
    const qr_backend_info *backend = qr_scheduler_backend_info(e->scheduler);
    /* A warning, so that nobody takes its scores for those of the real model. */
    if (qr_is_builtin(e->model_dir)) o->log(o->log_arg, QR_LOG_WARN, QR_BUILTIN_NOTE);
    if (e->model.pair_swapped)
        o->log(o->log_arg, QR_LOG_WARN, "the file's rows for yes and no contradict their labels; they are used as what they are");
    if (e->model.n_parameters > 0) snprintf(size, sizeof size, " %.1f M parameters,", (double) e->model.n_parameters / 1e6);
    snprintf(line, sizeof line, "%s: backend %s (%s), %s,%s up to %zu tokens, ready in %.2f s", e->model_dir, e->ops->name, backend->device,
             backend->dtype, size, e->cfg.max_length, e->load_seconds);
    o->log(o->log_arg, QR_LOG_INFO, line);
    if (!qr_prompt_is_canonical(e->prompt))
        o->log(o->log_arg, QR_LOG_WARN, "the prompt differs from the one that Qwen3-Reranker was trained with");
}

qr_status qr_engine_open(qr_engine **out, const qr_options *options, qr_error *err) { return qr_engine_open_on(out, NULL, options, err); }

qr_status qr_engine_open_on(qr_engine **out, const qr_backend_ops *ops, const qr_options *options, qr_error *err)
{
    double start = qr_now();
    if (out == NULL) return qr_fail(err, QR_E_ARG, "qr_engine_open: out is NULL");
    *out = NULL;
    qr_status status = check_options(options, err);
    if (status != QR_OK) return status;
    qr_engine *e = qr_calloc(1, sizeof *e);
    if (e == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for the engine");
    pthread_mutex_init(&e->lock, NULL);
    e->process = getpid();
    status = open_parts(e, ops, options, err);
    if (status == QR_OK) status = start_scheduler(e, options, err);
    if (status != QR_OK) {
        qr_engine_close(e);
        return status;
    }
    e->load_seconds = qr_now() - start;
    log_opened(e, options);
    *out = e;
    return QR_OK;
}

void qr_engine_close(qr_engine *e)
{
    if (e == NULL || e->process != getpid()) return; /* after a fork, locks may be held by threads that are not here */
    qr_scheduler_close(e->scheduler);
    qr_prompt_close(e->prompt);
    qr_tok_close(e->tokenizer);
    if (e->model_open) qr_model_close(&e->model);
    for (size_t i = 0; i < e->n_idle; i++) qr_ids_deinit(&e->idle[i]);
    pthread_mutex_destroy(&e->lock);
    qr_free(e->model_dir);
    for (size_t i = 0; i < N_PLACES; i++) qr_free(e->place[i]);
    for (size_t i = 0; e->urls != NULL && i < e->cfg.place.vllm.n_urls; i++) qr_free(e->urls[i]);
    qr_free(e->urls);
    qr_sample_deinit(&e->sample);
    if (e->calibration != NULL) qr_calibration_deinit(e->calibration);
    qr_free(e->calibration);
    qr_ids_deinit(&e->first_ids);
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

/* The encoder's scratch is large and knows words: it goes from call to call instead of living as long as the prompts do. */
static struct qr_encode_scratch *take_scratch(qr_engine *e)
{
    struct qr_encode_scratch *scratch = NULL;
    pthread_mutex_lock(&e->lock);
    if (e->n_idle > 0) scratch = e->idle[--e->n_idle].scratch;
    pthread_mutex_unlock(&e->lock);
    return scratch;
}

static void return_scratch(qr_engine *e, struct qr_encode_scratch *scratch, int is_large)
{
    qr_ids holder = {.scratch = scratch};
    pthread_mutex_lock(&e->lock);
    int kept = scratch != NULL && !is_large && e->n_idle < MAX_IDLE;
    if (kept) e->idle[e->n_idle++] = holder;
    pthread_mutex_unlock(&e->lock);
    if (!kept) qr_ids_deinit(&holder);
}

static qr_status build_prompts(qr_engine *e, const qr_query *queries, size_t n_queries, qr_prompt_ids *prompts, qr_result *results,
                               const qr_call *call, qr_error *err)
{
    static const size_t large_ids = 1 << 18;
    struct qr_encode_scratch *scratch = take_scratch(e);
    qr_status status = QR_OK;
    size_t result = 0, n_ids = 0;
    for (size_t q = 0; q < n_queries && status == QR_OK; q++) {
        const qr_query *query = &queries[q];
        if ((status = check_query(query, q, err)) != QR_OK) break;
        if (query->n_documents == 0) continue;
        size_t max_length = e->cfg.max_length;
        if (query->max_length > 0 && query->max_length < max_length) max_length = query->max_length;
        prompts[q].ids.scratch = scratch;
        status = qr_prompt_build(e->prompt, query, max_length, &prompts[q], err);
        scratch = prompts[q].ids.scratch;
        prompts[q].ids.scratch = NULL;
        n_ids += prompts[q].ids.n;
        if (status != QR_OK && n_queries > 1) qr_fail_prefix(err, status, "query %zu", q);
        if (status == QR_OK) status = describe_results(results + result, &prompts[q], call, err);
        result += query->n_documents;
        if (status == QR_OK && call != NULL && qr_is_set(call->cancel)) status = qr_fail(err, QR_E_CANCELLED, "cancelled");
    }
    return_scratch(e, scratch, n_ids > large_ids);
    return status;
}

/* A call in work. */
typedef struct task {
    qr_job job;
    qr_prompt_ids *prompts; /* [n_queries] */
    size_t n_queries;
    qr_done_fn done;
    void *done_arg;
    double start, tokenized;
    qr_timing *timing; /* or NULL */
} task;

static void free_task(task *t)
{
    for (size_t q = 0; t->prompts != NULL && q < t->n_queries; q++) qr_prompt_ids_deinit(&t->prompts[q]);
    qr_free(t->prompts);
    qr_free(t);
}

static void end_task(qr_job *job)
{
    task *t = job->owner;
    qr_status status = job->status;
    qr_error error = job->error;
    qr_done_fn done = t->done;
    void *arg = t->done_arg;
    if (t->timing != NULL) *t->timing = (qr_timing){t->tokenized - t->start, job->begun - t->tokenized, qr_now() - job->begun};
    free_task(t);
    done(arg, status, &error);
}

static qr_status check_call(const qr_engine *e, const qr_query *queries, size_t n_queries, const qr_call *call, qr_error *err)
{
    if (e == NULL || (queries == NULL && n_queries > 0)) return qr_fail(err, QR_E_ARG, "qr_score: engine or queries is NULL");
    if (e->process != getpid())
        return qr_fail(err, QR_E_ARG, "qr_score: the engine was opened by process %ld, from which this one was forked; open one here",
                       (long) e->process);
    if (call != NULL && !(call->timeout_seconds >= 0))
        return qr_fail(err, QR_E_ARG, "qr_call.timeout_seconds: expected at least 0, found %g", call->timeout_seconds);
    return QR_OK;
}

static size_t count_documents(const qr_query *queries, size_t n_queries)
{
    size_t total = 0;
    for (size_t q = 0; q < n_queries; q++) total += queries[q].n_documents;
    return total;
}

qr_status qr_engine_submit(qr_engine *e, const qr_query *queries, size_t n_queries, qr_result *results, const qr_call *call,
                           qr_done_fn done, void *done_arg, qr_error *err)
{
    double start = qr_now();
    qr_status status = check_call(e, queries, n_queries, call, err);
    if (status != QR_OK) return status;
    size_t total = count_documents(queries, n_queries);
    if (results == NULL && total > 0) return qr_fail(err, QR_E_ARG, "qr_score: results is NULL");
    if (total == 0) {
        done(done_arg, QR_OK, NULL);
        return QR_OK;
    }
    memset(results, 0, total * sizeof *results);
    task *t = qr_calloc(1, sizeof *t);
    if (t == NULL || (t->prompts = qr_calloc(n_queries, sizeof *t->prompts)) == NULL) {
        qr_free(t);
        return qr_fail(err, QR_E_MEMORY, "no memory for %zu queries", n_queries);
    }
    t->n_queries = n_queries;
    if ((status = build_prompts(e, queries, n_queries, t->prompts, results, call, err)) != QR_OK) {
        free_task(t);
        return status;
    }
    t->start = start;
    t->tokenized = qr_now();
    t->done = done;
    t->done_arg = done_arg;
    t->job = (qr_job){.prompts = t->prompts, .n_queries = n_queries, .results = results, .n_results = total, .done = end_task, .owner = t};
    if (call != NULL) {
        t->job.cancel = call->cancel;
        t->job.failed = call->failed;
        t->job.failed_arg = call->failed_arg;
        t->job.progress = call->progress;
        t->job.progress_arg = call->progress_arg;
        t->job.deadline = call->timeout_seconds > 0 ? start + call->timeout_seconds : 0;
        t->timing = call->timing;
    }
    qr_scheduler_submit(e->scheduler, &t->job);
    return QR_OK;
}

/* A caller that waits. */
typedef struct waiting {
    pthread_mutex_t lock;
    pthread_cond_t done;
    int is_done;
    qr_status status;
    qr_error error;
} waiting;

static void wake(void *arg, qr_status status, const qr_error *error)
{
    waiting *w = arg;
    pthread_mutex_lock(&w->lock);
    w->is_done = 1;
    w->status = status;
    if (error != NULL) w->error = *error;
    pthread_cond_signal(&w->done);
    pthread_mutex_unlock(&w->lock);
}

qr_status qr_score(qr_engine *e, const qr_query *queries, size_t n_queries, qr_result *results, const qr_call *call, qr_error *err)
{
    waiting w = {.lock = PTHREAD_MUTEX_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};
    qr_status status = qr_engine_submit(e, queries, n_queries, results, call, wake, &w, err);
    if (status == QR_OK) {
        pthread_mutex_lock(&w.lock);
        while (!w.is_done) pthread_cond_wait(&w.done, &w.lock);
        pthread_mutex_unlock(&w.lock);
        status = w.status;
        if (status != QR_OK && err != NULL) *err = w.error;
    }
    pthread_cond_destroy(&w.done);
    pthread_mutex_destroy(&w.lock);
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

const qr_tokenizer *qr_engine_tokenizer(const qr_engine *e) { return e->tokenizer; }

void qr_engine_info(const qr_engine *e, qr_info *out)
{
    const qr_backend_info *backend = qr_scheduler_backend_info(e->scheduler);
    *out = (qr_info){
        .backend = e->ops->name,
        .device = backend->device,
        .dtype = backend->dtype,
        .model = e->model_dir,
        .max_length = e->cfg.max_length,
        .max_batch_tokens = backend->batch_tokens,
        .n_parameters = e->model.n_parameters,
        .weight_bytes = e->model.weight_bytes,
        .memory_bytes = backend->memory_bytes,
        .yes_id = e->cfg.yes_id,
        .no_id = e->cfg.no_id,
        .canonical_prompt = qr_prompt_is_canonical(e->prompt),
        .load_seconds = e->load_seconds,
        .builtin_model = qr_is_builtin(e->model_dir),
    };
}

const char *qr_stage_name(qr_stage stage)
{
    static const char *const names[] = {"embed", "norm", "qkv", "attention", "o", "mlp", "head", "idle"};
    _Static_assert(sizeof names / sizeof names[0] == QR_N_STAGES, "a name for each stage");
    return (size_t) stage < QR_N_STAGES ? names[stage] : "unknown stage";
}

void qr_engine_stats(qr_engine *e, qr_stats *out) { qr_scheduler_stats(e->scheduler, out); }

size_t qr_engine_replicas(qr_engine *e, qr_replica *out, size_t capacity) { return qr_scheduler_replicas(e->scheduler, out, capacity); }
