/* See pool.h. */
#define _GNU_SOURCE
#include "vllm/pool.h"

#include "base/mem.h"
#include "base/system.h"
#include "engine/scheduler.h"
#include "vllm/discovery.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { STEP_NONE, STEP_VERSION, STEP_MODELS, STEP_TOKENIZER, STEP_SCORES, STEP_HEALTH };

/* A server's first answer may take seconds (lazy compilation), its health must not. */
static const double check_timeout_s = 10, scores_timeout_s = 60, health_timeout_s = 5;
/* How long a server may be silent: with work, and without. An idle one is asked so often that a restart, which takes vLLM longer than this,
 * is noticed before the new server gets work unchecked. */
static const double silent_busy_s = 2, silent_idle_s = 5;
static const double first_pause_s = 0.5, longest_pause_s = 15;
static const double address_check_s = 1;
/* Servers of one model in different types differ by less than this on average over the sample: bf16 against f32 by 0.2 at most. */
static const double same_model_margin = 1;
enum { MAX_CHECK_BYTES = 1 << 20 };

static void on_check(qr_http_request *request);

static void say(const qr_vllm_pool *p, qr_log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void say(const qr_vllm_pool *p, qr_log_level level, const char *format, ...)
{
    char line[800];
    va_list values;
    if (p->cfg->log == NULL) return;
    va_start(values, format);
    vsnprintf(line, sizeof line, format, values);
    va_end(values);
    p->cfg->log(p->cfg->log_arg, level, line);
}

/* ---- up and down ----------------------------------------------------------------------------------------------------------------- */

static void set_state(qr_vllm_pool *p, qr_vllm_replica *r, qr_vllm_state state, double now)
{
    if (r->state == QR_VLLM_LEAVING) return;
    r->state = state;
    r->load.is_up = state == QR_VLLM_UP;
    p->n_up = 0;
    for (size_t i = 0; i < p->n; i++) p->n_up += (size_t) p->replicas[i]->load.is_up;
    if (p->n_up > 0) p->down_since = 0;
    else if (p->down_since == 0) p->down_since = now;
}

/* 0.5 s, 1 s, 2 s, ... with up to half of it by chance, so that many front ends do not come at the same moment. */
static double pause_after(qr_vllm_pool *p, unsigned n_failures)
{
    double pause = fmin(ldexp(first_pause_s, n_failures < 10 ? (int) n_failures : 10), longest_pause_s);
    p->jitter = qr_load_hash(p->jitter);
    return pause * (0.5 + 0.5 * (double) (p->jitter >> 11) / (double) (UINT64_C(1) << 53));
}

/* One answer that went wrong is followed by a check at once; several in a row are not. */
void qr_vllm_pool_failed(qr_vllm_pool *p, qr_vllm_replica *r, int is_lost, double now, const char *format, ...)
{
    char reason[sizeof r->reason];
    va_list values;
    va_start(values, format);
    vsnprintf(reason, sizeof reason, format, values);
    va_end(values);
    qr_http_cancel(p->http, &r->check);
    r->step = STEP_NONE;
    int was_up = r->state == QR_VLLM_UP, is_news = strcmp(reason, r->reason) != 0;
    snprintf(r->reason, sizeof r->reason, "%s", reason);
    r->next_check = now + (was_up && r->n_failures == 0 && !is_lost ? 0 : pause_after(p, r->n_failures));
    r->n_failures++;
    r->n_ejections += (uint64_t) was_up;
    set_state(p, r, QR_VLLM_DOWN, now);
    if (was_up || is_news) say(p, QR_LOG_WARN, "vllm: %s is out: %s", r->name, r->reason);
    if (is_lost) p->lost(p->arg, r);
}

static void come_up(qr_vllm_pool *p, qr_vllm_replica *r, double now)
{
    r->reason[0] = 0;
    r->most_documents = SIZE_MAX;
    qr_load_reset(&r->load);
    set_state(p, r, QR_VLLM_UP, now);
    r->last_heard = r->last_asked = now;
    say(p, QR_LOG_INFO, "vllm: %s is in: model %s, %s, up to %zu tokens", r->name, r->model, qr_vllm_protocol_name(r->protocol),
        r->max_model_len);
}

void qr_vllm_pool_leave(qr_vllm_pool *p, qr_vllm_replica *r, double now)
{
    if (r->state == QR_VLLM_LEAVING) return;
    say(p, QR_LOG_INFO, "vllm: %s leaves: its address is gone", r->name);
    set_state(p, r, QR_VLLM_LEAVING, now);
}

void qr_vllm_pool_heard(qr_vllm_pool *p, qr_vllm_replica *r, double now)
{
    (void) p;
    r->last_heard = now;
    if (r->state == QR_VLLM_UP) r->n_failures = 0;
}

void qr_vllm_pool_doubt(qr_vllm_replica *r) { r->last_heard = r->last_asked = 0; }

/* ---- checks ---------------------------------------------------------------------------------------------------------------------- */

static void ask(qr_vllm_pool *p, qr_vllm_replica *r, int step, const char *route, double timeout_s, double now)
{
    char url[1024];
    qr_error err = {0};
    snprintf(url, sizeof url, "%s%s", r->base, route);
    r->step = step;
    r->last_asked = now;
    r->check.url = url; /* libcurl keeps a copy */
    r->check.connect_to = r->connect_to;
    r->check.timeout_seconds = timeout_s;
    r->check.done = on_check;
    r->check.owner = r;
    if (r->check.max_answer_bytes == 0) r->check.max_answer_bytes = MAX_CHECK_BYTES;
    qr_status status = r->check.body.failed ? qr_fail(&err, QR_E_MEMORY, "no memory for a request") : QR_OK;
    if (status == QR_OK) status = qr_http_start(p->http, &r->check, &err);
    if (status != QR_OK) qr_vllm_pool_failed(p, r, 0, now, "%s", err.msg);
}

static void clear_body(qr_vllm_replica *r)
{
    r->check.body.n = 0;
    r->check.max_answer_bytes = 0;
}

static void ask_version(qr_vllm_pool *p, qr_vllm_replica *r, double now)
{
    clear_body(r);
    r->n_tried = 0;
    set_state(p, r, QR_VLLM_CHECKING, now);
    ask(p, r, STEP_VERSION, "/version", check_timeout_s, now);
}

static void ask_models(qr_vllm_pool *p, qr_vllm_replica *r, double now)
{
    clear_body(r);
    ask(p, r, STEP_MODELS, "/v1/models", check_timeout_s, now);
}

static void ask_tokenizer(qr_vllm_pool *p, qr_vllm_replica *r, double now)
{
    clear_body(r);
    qr_vllm_write_tokenize(r->model, p->cfg->sample->text, &r->check.body);
    ask(p, r, STEP_TOKENIZER, "/tokenize", check_timeout_s, now);
}

static qr_vllm_call sample_call(const qr_vllm_pool *p, const qr_vllm_replica *r)
{
    qr_vllm_call call = {r->protocol, r->model, p->cfg->yes_id, p->cfg->no_id, &p->cfg->sample->prompts, 0, p->cfg->sample->prompts.n_seqs};
    if (call.n > QR_VLLM_N_SAMPLES) call.n = QR_VLLM_N_SAMPLES;
    return call;
}

/* Before the next one is asked for: `reason` says what became of the one before. */
static void explain_protocol(qr_vllm_replica *r, int is_forced, const char *reason)
{
    size_t used = r->n_tried > 1 ? strlen(r->why_protocol) : 0;
    if (is_forced) snprintf(r->why_protocol, sizeof r->why_protocol, "as asked for");
    else if (r->n_tried > 0) snprintf(r->why_protocol + used, sizeof r->why_protocol - used, "%s%s", used > 0 ? "; " : "", reason);
    else if (r->why_protocol[0] == 0) snprintf(r->why_protocol, sizeof r->why_protocol, "the first choice");
}

/* The next protocol that may do; none left: the reason of the last one stands. Starts with the one that did last time. */
static void ask_scores(qr_vllm_pool *p, qr_vllm_replica *r, double now, const char *reason)
{
    const char *forced = p->cfg->place.vllm.protocol;
    if (forced != NULL) r->protocol = qr_vllm_protocol_find(forced);
    else if (r->n_tried > 0) r->protocol = (qr_vllm_protocol) ((r->protocol + 1) % QR_VLLM_N_PROTOCOLS);
    if (r->n_tried == (forced != NULL ? 1 : QR_VLLM_N_PROTOCOLS)) {
        qr_vllm_pool_failed(p, r, 0, now, "%s", reason);
        return;
    }
    explain_protocol(r, forced != NULL, reason);
    r->n_tried++;
    if (r->max_model_len > 0 && qr_vllm_longest_prompt(r->protocol, r->max_model_len) < p->cfg->max_length) {
        qr_vllm_pool_failed(p, r, 0, now,
                            "expected room for prompts of %zu tokens and one more, found a max_model_len of %zu (give --max-length %zu, or "
                            "vLLM --max-model-len %zu)",
                            p->cfg->max_length, r->max_model_len, qr_vllm_longest_prompt(r->protocol, r->max_model_len),
                            p->cfg->max_length + 1);
        return;
    }
    qr_vllm_call call = sample_call(p, r);
    clear_body(r);
    call.n = qr_vllm_capacity(&call);
    r->sent = call.n;
    qr_vllm_write_call(&call, &r->check.body);
    r->check.max_answer_bytes = qr_vllm_answer_bytes(&call);
    ask(p, r, STEP_SCORES, qr_vllm_protocol_route(r->protocol), scores_timeout_s, now);
}

/* Reads a classifier's margins that are in truth probabilities, and compares with what other replicas gave. */
static qr_status check_scores(qr_vllm_pool *p, const qr_vllm_replica *r, const qr_logits *found, qr_error *err)
{
    double off = 0;
    size_t n_probabilities = 0;
    for (size_t i = 0; i < r->sent; i++) n_probabilities += found[i].yes >= 0 && found[i].yes <= 1;
    if (r->protocol == QR_VLLM_CLASSIFY && n_probabilities == r->sent)
        return qr_fail(err, QR_E_BACKEND, "/classify: expected margins, found probabilities (a vLLM that does not know use_activation?)");
    if (!p->has_sample) {
        memcpy(p->sample, found, r->sent * sizeof *found);
        p->has_sample = 1;
        return QR_OK;
    }
    for (size_t i = 0; i < r->sent; i++) off += fabs((double) (found[i].yes - p->sample[i].yes)) / (double) r->sent;
    if (off <= same_model_margin) return QR_OK;
    return qr_fail(err, QR_E_BACKEND, "it has another model: known prompts differ by %.2f on average from what the first server gave", off);
}

static void on_scores(qr_vllm_pool *p, qr_vllm_replica *r, double now)
{
    qr_logits found[QR_VLLM_N_SAMPLES];
    qr_error err = {0};
    char text[160];
    if (r->check.status != 200) {
        qr_vllm_error_text(r->check.answer.data, r->check.answer.n, text, sizeof text);
        qr_fail(&err, QR_E_BACKEND, "%s: status %d: %s", qr_vllm_protocol_route(r->protocol), r->check.status, text);
        /* Refusals mean another kind of server; anything else, a server that cannot answer now. */
        if (r->check.status == 401 || r->check.status == 403 || r->check.status == 429 || r->check.status >= 500)
            qr_vllm_pool_failed(p, r, 0, now, "%s", err.msg);
        else ask_scores(p, r, now, err.msg);
        return;
    }
    qr_vllm_call call = sample_call(p, r);
    call.n = r->sent;
    r->sample_seconds = r->check.seconds;
    if (qr_vllm_read_answer(&call, r->check.answer.data, r->check.answer.n, found, &err) != QR_OK) ask_scores(p, r, now, err.msg);
    else if (check_scores(p, r, found, &err) != QR_OK) qr_vllm_pool_failed(p, r, 0, now, "%s", err.msg);
    else come_up(p, r, now);
}

/* For people only: gateways need not have it. */
static void on_version(qr_vllm_pool *p, qr_vllm_replica *r, double now)
{
    r->version[0] = 0;
    if (r->check.status == 200) qr_vllm_read_version(r->check.answer.data, r->check.answer.n, r->version, sizeof r->version);
    ask_models(p, r, now);
}

static void on_models(qr_vllm_pool *p, qr_vllm_replica *r, double now)
{
    qr_error err = {0};
    char text[160];
    int status = r->check.status;
    if (status != 200) {
        qr_vllm_error_text(r->check.answer.data, r->check.answer.n, text, sizeof text);
        qr_vllm_pool_failed(p, r, 0, now, "/v1/models: status %d: %s%s", status, text,
                            status == 401 || status == 403 ? " (it wants an API key: --vllm-api-key-file)" : "");
        return;
    }
    if (qr_vllm_read_models(r->check.answer.data, r->check.answer.n, p->cfg->place.vllm.model, r->model, sizeof r->model, &r->max_model_len,
                            &err) != QR_OK)
        qr_vllm_pool_failed(p, r, 0, now, "%s", err.msg);
    else ask_tokenizer(p, r, now);
}

static void on_tokenizer(qr_vllm_pool *p, qr_vllm_replica *r, double now)
{
    const qr_sample *sample = p->cfg->sample;
    qr_error err = {0};
    int status = r->check.status, is_missing = status == 404 || status == 405;
    if (is_missing) say(p, QR_LOG_WARN, "vllm: %s has no /tokenize: its tokenizer stays unchecked", r->name);
    else if (status != 200) qr_vllm_pool_failed(p, r, 0, now, "/tokenize: status %d", status);
    if (status == 200 &&
        qr_vllm_read_tokenize(r->check.answer.data, r->check.answer.n, sample->text_ids, sample->n_text_ids, &err) != QR_OK)
        qr_vllm_pool_failed(p, r, 0, now, "%s", err.msg);
    else if (status == 200 || is_missing) ask_scores(p, r, now, "no protocol");
}

/* A gateway may have no /health: any answer that is not of a dead engine is a sign of life. */
static void on_health(qr_vllm_pool *p, qr_vllm_replica *r, double now)
{
    if (r->check.status >= 500) qr_vllm_pool_failed(p, r, 1, now, "/health: status %d", r->check.status);
    else r->last_heard = now;
}

static void on_check(qr_http_request *request)
{
    qr_vllm_replica *r = request->owner;
    qr_vllm_pool *p = r->pool;
    double now = qr_now();
    int step = r->step;
    r->step = STEP_NONE;
    if (r->state == QR_VLLM_LEAVING) return;
    if (request->address[0] != 0) snprintf(r->address, sizeof r->address, "%s", request->address);
    if (request->status == 0) {
        /* A busy server may be slow to say that it is well, and if there is no other, its answers are waited for. */
        if (step == STEP_HEALTH && !request->is_refused && p->n_up <= 1) return;
        int is_lost = step == STEP_HEALTH || request->is_refused || p->n_up > 0;
        char reason[sizeof request->error];
        snprintf(reason, sizeof reason, "%s", request->error);
        qr_vllm_pool_failed(p, r, is_lost, now, "%s", reason);
        return;
    }
    if (step == STEP_VERSION) on_version(p, r, now);
    else if (step == STEP_MODELS) on_models(p, r, now);
    else if (step == STEP_TOKENIZER) on_tokenizer(p, r, now);
    else if (step == STEP_SCORES) on_scores(p, r, now);
    else on_health(p, r, now);
}

/* When its next check or probe is due. */
static double due(const qr_vllm_replica *r)
{
    if (r->step != STEP_NONE || r->state == QR_VLLM_LEAVING) return INFINITY;
    if (r->state != QR_VLLM_UP) return r->next_check;
    double silent = r->load.in_flight > 0 ? silent_busy_s : silent_idle_s;
    return fmax(r->last_heard, r->last_asked) + silent;
}

double qr_vllm_pool_tick(qr_vllm_pool *p, double now)
{
    double next = now + 3600;
    qr_vllm_discover(p, now);
    for (size_t i = 0; i < p->n; i++) {
        qr_vllm_replica *r = p->replicas[i];
        if (due(r) <= now) {
            if (r->state == QR_VLLM_UP) {
                clear_body(r);
                ask(p, r, STEP_HEALTH, "/health", health_timeout_s, now);
            } else ask_version(p, r, now);
        }
        next = fmin(next, due(r));
    }
    if (p->resolving) next = fmin(next, now + address_check_s);
    return next - now;
}

/* ---- open and close -------------------------------------------------------------------------------------------------------------- */

qr_status qr_vllm_pool_open(qr_vllm_pool *p, const qr_backend_cfg *cfg, qr_http *http, void (*lost)(void *, qr_vllm_replica *), void *arg,
                            qr_error *err)
{
    const char *protocol = cfg->place.vllm.protocol;
    *p = (qr_vllm_pool){.cfg = cfg, .http = http, .lost = lost, .arg = arg, .down_since = qr_now()};
    p->jitter = qr_load_hash((uint64_t) (p->down_since * 1e9));
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->closing_changed, NULL);
    if (protocol != NULL && qr_vllm_protocol_find(protocol) == QR_VLLM_N_PROTOCOLS)
        return qr_fail(err, QR_E_ARG, "vllm_protocol: expected completions, classify or generative-scoring, found %s", protocol);
    return qr_vllm_discovery_open(p, err);
}

void qr_vllm_pool_close(qr_vllm_pool *p)
{
    if (p->cfg == NULL) return;
    qr_vllm_discovery_close(p);
    while (p->n > 0) qr_vllm_replica_remove(p, p->n - 1);
    qr_free(p->replicas);
    qr_free(p->loads);
    pthread_cond_destroy(&p->closing_changed);
    pthread_mutex_destroy(&p->lock);
}

int qr_vllm_pool_is_hopeless(const qr_vllm_pool *p)
{
    for (size_t i = 0; i < p->n; i++)
        if (p->replicas[i]->n_failures == 0) return 0;
    return 1;
}

void qr_vllm_pool_reasons(const qr_vllm_pool *p, char *text, size_t size)
{
    size_t used = 0;
    text[0] = 0;
    for (size_t i = 0; i < p->n && used + 1 < size; i++) {
        const qr_vllm_replica *r = p->replicas[i];
        if (r->reason[0] == 0) continue;
        int n = snprintf(text + used, size - used, "%s%s: %s", used > 0 ? "; " : "", r->name, r->reason);
        used += n > 0 ? (size_t) n : 0;
    }
}
