/* The scheduler with a backend made for the purpose, which waits at a gate before each batch, so that a test decides what has arrived by
 * then, and keeps a record of its batches. */
#include "golden.h"

#include "base/error.h"
#include "base/system.h"
#include "engine/scheduler.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>

/* macOS has no unnamed ones of POSIX. */
typedef struct semaphore {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int value;
} semaphore;

static void semaphore_init(semaphore *s)
{
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    s->value = 0;
}

static void semaphore_post(semaphore *s)
{
    pthread_mutex_lock(&s->lock);
    s->value++;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static void semaphore_wait(semaphore *s)
{
    pthread_mutex_lock(&s->lock);
    while (s->value == 0) pthread_cond_wait(&s->changed, &s->lock);
    s->value--;
    pthread_mutex_unlock(&s->lock);
}

enum { MAX_BATCHES = 4096, BATCH_TOKENS = 1000 };
static const uint32_t bad_id = 666, failing_id = 777; /* a document with one of these: not a number, or a failure of the whole batch */

static struct {
    semaphore gate;    /* posted once a batch */
    atomic_int open;   /* 1: batches need not wait */
    semaphore waiting; /* posted when a batch waits at the gate */
    size_t n_batches, n_tokens[MAX_BATCHES], n_seqs[MAX_BATCHES];
    uint32_t prefix[MAX_BATCHES][32]; /* first ids of the prefixes, which name the jobs */
    size_t n_prefixes[MAX_BATCHES];
} backend;

static float yes_of(const uint32_t *prefix, size_t n_prefix, const uint32_t *ids, size_t n)
{
    uint32_t h = 17;
    for (size_t i = 0; i < n_prefix; i++) h = h * 31 + prefix[i];
    for (size_t i = 0; i < n; i++) h = h * 31 + ids[i];
    return (float) (h % 1000) / 100;
}

static int fake_probe(const qr_backend_place *place, char *why, size_t size) { return place == NULL && why != NULL && size > 0; }

static qr_status fake_open(qr_backend **out, const qr_backend_cfg *cfg, qr_error *err)
{
    (void) cfg, (void) err;
    *out = (qr_backend *) &backend;
    return QR_OK;
}

static void fake_close(qr_backend *b) { (void) b; }

static qr_status fake_score(qr_backend *b, const qr_batch *batch, qr_logits *out, qr_error *err)
{
    (void) b;
    if (!backend.open) {
        semaphore_post(&backend.waiting);
        semaphore_wait(&backend.gate);
    }
    if (qr_is_set(batch->cancel)) return qr_fail(err, QR_E_CANCELLED, "cancelled");
    size_t at = backend.n_batches++ % MAX_BATCHES, n_tokens = 0;
    for (size_t p = 0; p < batch->n_prefixes; p++) {
        n_tokens += batch->prefixes[p].n_ids;
        if (p < 32) backend.prefix[at][p] = batch->prefixes[p].ids[0];
    }
    size_t last = 0;
    for (size_t i = 0; i < batch->n_seqs; i++) {
        const qr_seq *s = &batch->seqs[i];
        const qr_prefix *p = &batch->prefixes[s->prefix];
        assert_true(s->prefix >= last && s->prefix < batch->n_prefixes); /* next to each other */
        last = s->prefix;
        n_tokens += s->n_ids;
        out[i] = (qr_logits){yes_of(p->ids, p->n_ids, s->ids, s->n_ids), 0};
        if (s->ids[0] == bad_id) out[i].yes = NAN;
        if (s->ids[0] == failing_id) return qr_fail(err, QR_E_BACKEND, "the device is lost");
    }
    backend.n_tokens[at] = n_tokens;
    backend.n_seqs[at] = batch->n_seqs;
    backend.n_prefixes[at] = batch->n_prefixes;
    return QR_OK;
}

static void fake_info(const qr_backend *b, qr_backend_info *out) { (void) b, *out = (qr_backend_info){.device = "fake"}; }

static const qr_backend_ops fake = {.abi = QR_BACKEND_ABI,
                                    .name = "fake",
                                    .probe = fake_probe,
                                    .open = fake_open,
                                    .close = fake_close,
                                    .score = fake_score,
                                    .info = fake_info};

/* One query with documents of `length` tokens; ids differ by query and document. */
typedef struct call {
    qr_job job;
    qr_prompt_ids prompt;
    qr_result *results;
    semaphore done;
    size_t batches_at_end;
    volatile int cancel;  /* written atomically */
    char reasons[32][80]; /* of its first documents, by on_failed */
} call;

enum { N_SHARED = 10 };

static void on_done(qr_job *job)
{
    call *c = job->owner;
    c->batches_at_end = backend.n_batches;
    semaphore_post(&c->done);
}

static void on_failed(void *arg, size_t result, const char *reason)
{
    call *c = arg;
    assert_true(result < 32 && c->reasons[result][0] == 0); /* told once */
    snprintf(c->reasons[result], sizeof c->reasons[result], "%s", reason);
}

static call *new_call(uint32_t name, size_t n_documents, size_t length)
{
    call *c = calloc(1, sizeof *c);
    qr_prompt_ids *p = &c->prompt;
    p->ids.n = N_SHARED + n_documents * length;
    p->ids.id = calloc(p->ids.n, sizeof *p->ids.id);
    p->start = calloc(n_documents + 1, sizeof *p->start);
    p->n_shared = N_SHARED;
    p->n_documents = n_documents;
    for (size_t i = 0; i < N_SHARED; i++) p->ids.id[i] = name;
    for (size_t d = 0; d < n_documents; d++)
        for (size_t i = 0; i < length; i++) p->ids.id[N_SHARED + d * length + i] = (uint32_t) (1000 + d);
    for (size_t d = 0; d <= n_documents; d++) p->start[d] = N_SHARED + d * length;
    c->results = calloc(n_documents, sizeof *c->results);
    for (size_t d = 0; d < n_documents; d++) c->results[d].n_tokens = (uint32_t) (N_SHARED + length);
    semaphore_init(&c->done);
    c->job = (qr_job){
        .prompts = p, .n_queries = 1, .results = c->results, .n_results = n_documents, .done = on_done, .owner = c, .cancel = &c->cancel};
    return c;
}

static void free_call(call *c)
{
    free(c->prompt.ids.id);
    free(c->prompt.start);
    free(c->results);
    free(c);
}

static void check_results(const call *c)
{
    const qr_prompt_ids *p = &c->prompt;
    if (c->job.status != QR_OK) fail_msg("%s", c->job.error.msg);
    for (size_t d = 0; d < p->n_documents; d++) {
        const qr_result *r = &c->results[d];
        assert_true(r->flags & QR_RESULT_DONE);
        assert_true(r->margin == yes_of(p->ids.id, N_SHARED, p->ids.id + p->start[d], p->start[d + 1] - p->start[d]));
        assert_true(fabs(r->score - 1 / (1 + exp(-(double) r->margin))) < 1e-12);
    }
}

static qr_scheduler *start(int open)
{
    memset(&backend, 0, sizeof backend);
    backend.open = open;
    semaphore_init(&backend.gate);
    semaphore_init(&backend.waiting);
    qr_backend_cfg cfg = {.max_batch_tokens = BATCH_TOKENS};
    qr_scheduler *s;
    qr_error err = {0};
    if (qr_scheduler_open(&s, &fake, &cfg, 0, 0, &err) != QR_OK) fail_msg("%s", err.msg);
    return s;
}

static void let_through(size_t n_batches)
{
    for (size_t i = 0; i < n_batches; i++) {
        semaphore_wait(&backend.waiting);
        semaphore_post(&backend.gate);
    }
}

/* Batches that wait now, or later, go through. */
static void open_gate(void)
{
    semaphore_wait(&backend.waiting);
    backend.open = 1;
    semaphore_post(&backend.gate);
}

static void test_short_job_overtakes_long_one(void **state)
{
    (void) state;
    qr_scheduler *s = start(0);
    call *large = new_call(1, 1000, 100), *small = new_call(2, 5, 30);
    qr_scheduler_submit(s, &large->job);
    let_through(3);
    semaphore_wait(&backend.waiting); /* the fourth batch is under way */
    size_t before = backend.n_batches;
    qr_scheduler_submit(s, &small->job);
    semaphore_post(&backend.gate);
    open_gate();
    semaphore_wait(&small->done);
    semaphore_wait(&large->done);
    assert_true(small->batches_at_end <= before + 2); /* the one under way, and the next */
    assert_true(large->batches_at_end > small->batches_at_end + 90);
    check_results(small);
    check_results(large);
    qr_scheduler_close(s);
    free_call(small);
    free_call(large);
}

static void test_equal_shares(void **state)
{
    (void) state;
    enum { N = 3 };
    qr_scheduler *s = start(0);
    call *first = new_call(9, 1, 10), *calls[N];
    qr_scheduler_submit(s, &first->job);
    semaphore_wait(&backend.waiting);
    for (uint32_t i = 0; i < N; i++) qr_scheduler_submit(s, &(calls[i] = new_call(i + 1, 300, 20))->job);
    semaphore_post(&backend.gate);
    open_gate();
    semaphore_wait(&first->done);
    size_t last = 0, earliest = SIZE_MAX;
    for (size_t i = 0; i < N; i++) {
        semaphore_wait(&calls[i]->done);
        check_results(calls[i]);
        if (calls[i]->batches_at_end > last) last = calls[i]->batches_at_end;
        if (calls[i]->batches_at_end < earliest) earliest = calls[i]->batches_at_end;
    }
    assert_int_equal(backend.n_prefixes[1], N); /* all of them in the next batch */
    assert_true(last - earliest <= 2);
    for (size_t b = 1; b < backend.n_batches; b++) assert_true(backend.n_tokens[b] <= BATCH_TOKENS);
    for (size_t b = 1; b + 2 < backend.n_batches; b++) assert_true(backend.n_tokens[b] > BATCH_TOKENS * 9 / 10); /* and all well filled */
    qr_scheduler_close(s);
    free_call(first);
    for (size_t i = 0; i < N; i++) free_call(calls[i]);
}

static void test_longer_than_a_batch(void **state)
{
    (void) state;
    qr_scheduler *s = start(1);
    call *c = new_call(1, 3, 5 * BATCH_TOKENS);
    qr_scheduler_submit(s, &c->job);
    semaphore_wait(&c->done);
    check_results(c);
    assert_int_equal(backend.n_batches, 3);
    qr_scheduler_close(s);
    free_call(c);
}

static void test_alike_once(void **state)
{
    (void) state;
    qr_scheduler *s = start(1);
    call *c = new_call(1, 100, 7);
    for (size_t d = 0; d < 100; d++)
        for (size_t i = 0; i < 7; i++) c->prompt.ids.id[c->prompt.start[d] + i] = (uint32_t) (d % 3);
    qr_scheduler_submit(s, &c->job);
    semaphore_wait(&c->done);
    check_results(c);
    assert_int_equal(backend.n_batches, 1);
    assert_int_equal(backend.n_seqs[0], 3);
    qr_stats stats;
    qr_scheduler_stats(s, &stats);
    assert_int_equal(stats.documents, 100);
    assert_int_equal(stats.batches, 1);
    assert_int_equal(stats.batch_tokens, N_SHARED + 3 * 7);
    qr_scheduler_close(s);
    free_call(c);
}

static void test_cancel_and_deadline(void **state)
{
    (void) state;
    qr_scheduler *s = start(0);
    call *first = new_call(9, 1, 10), *cancelled = new_call(1, 500, 20), *late = new_call(2, 500, 20), *other = new_call(3, 500, 20);
    qr_scheduler_submit(s, &first->job);
    semaphore_wait(&backend.waiting);
    late->job.deadline = qr_now() + 0.05;
    qr_scheduler_submit(s, &cancelled->job);
    qr_scheduler_submit(s, &late->job);
    qr_scheduler_submit(s, &other->job);
    semaphore_post(&backend.gate);
    let_through(2);
    semaphore_wait(&backend.waiting);
    __atomic_store_n(&cancelled->cancel, 1, __ATOMIC_RELAXED);
    while (qr_now() < late->job.deadline) {
    }
    backend.open = 1;
    semaphore_post(&backend.gate);
    semaphore_wait(&first->done);
    semaphore_wait(&cancelled->done);
    semaphore_wait(&late->done);
    semaphore_wait(&other->done);
    assert_int_equal(cancelled->job.status, QR_E_CANCELLED);
    assert_int_equal(late->job.status, QR_E_TIMEOUT);
    assert_non_null(strstr(late->job.error.msg, "of 500 documents"));
    check_results(other);
    size_t n_done = 0;
    for (size_t d = 0; d < 500; d++) n_done += (late->results[d].flags & QR_RESULT_DONE) != 0;
    assert_true(n_done > 0 && n_done < 500);
    qr_scheduler_close(s);
    free_call(first);
    free_call(cancelled);
    free_call(late);
    free_call(other);
}

/* One caller's bad result is no other's. */
static void test_failures_stay_apart(void **state)
{
    (void) state;
    qr_scheduler *s = start(0);
    call *first = new_call(9, 1, 10), *bad = new_call(1, 20, 10), *good = new_call(2, 20, 10);
    bad->prompt.ids.id[bad->prompt.start[7]] = bad_id;
    qr_scheduler_submit(s, &first->job);
    semaphore_wait(&backend.waiting);
    qr_scheduler_submit(s, &bad->job);
    qr_scheduler_submit(s, &good->job);
    semaphore_post(&backend.gate);
    open_gate();
    semaphore_wait(&first->done);
    semaphore_wait(&bad->done);
    semaphore_wait(&good->done);
    assert_int_equal(bad->job.status, QR_E_BACKEND);
    assert_non_null(strstr(bad->job.error.msg, "document 7: the model's output is not a number"));
    check_results(good);

    call *failing = new_call(3, 2, 10), *next = new_call(4, 2, 10);
    failing->prompt.ids.id[failing->prompt.start[1]] = failing_id;
    qr_scheduler_submit(s, &failing->job);
    semaphore_wait(&failing->done);
    assert_int_equal(failing->job.status, QR_E_BACKEND);
    assert_string_equal(failing->job.error.msg, "the device is lost");
    qr_scheduler_submit(s, &next->job);
    semaphore_wait(&next->done);
    check_results(next);
    qr_scheduler_close(s);
    call *all[] = {first, bad, good, failing, next};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free_call(all[i]);
}

static void copy_document(call *c, size_t from, size_t to)
{
    const size_t *start = c->prompt.start;
    memcpy(c->prompt.ids.id + start[to], c->prompt.ids.id + start[from], (start[from + 1] - start[from]) * sizeof(uint32_t));
}

/* Who wants to know which documents fail gets the others, also those of later batches; who does not, and shares the batch, ends there. */
static void test_failed_documents_are_told(void **state)
{
    (void) state;
    enum { N = 20, LENGTH = 300 };
    qr_scheduler *s = start(0);
    call *first = new_call(9, 1, 10), *c = new_call(1, N, LENGTH), *other = new_call(2, 1, 10);
    c->prompt.ids.id[c->prompt.start[0]] = failing_id; /* with `other` in the first batch */
    c->prompt.ids.id[c->prompt.start[13]] = bad_id;
    copy_document(c, 0, 19);
    copy_document(c, 13, 18);
    c->job.failed = on_failed;
    c->job.failed_arg = c;
    qr_scheduler_submit(s, &first->job);
    semaphore_wait(&backend.waiting);
    qr_scheduler_submit(s, &c->job);
    qr_scheduler_submit(s, &other->job);
    semaphore_post(&backend.gate);
    open_gate();
    semaphore_wait(&first->done);
    semaphore_wait(&c->done);
    semaphore_wait(&other->done);
    assert_int_equal(other->job.status, QR_E_BACKEND);
    assert_int_equal(c->job.status, QR_E_BACKEND);
    assert_string_equal(c->job.error.msg, "the device is lost");
    size_t n_lost = 0;
    for (size_t d = 0; d < N; d++) {
        const char *reason = c->reasons[d];
        assert_int_equal((c->results[d].flags & QR_RESULT_DONE) == 0, reason[0] != 0);
        if (d == 13 || d == 18) assert_non_null(strstr(reason, "document 13: the model's output is not a number"));
        else if (reason[0] != 0) assert_string_equal(reason, "the device is lost");
        n_lost += strcmp(reason, "the device is lost") == 0;
    }
    assert_string_equal(c->reasons[0], "the device is lost");
    assert_string_equal(c->reasons[19], "the device is lost");
    assert_true(n_lost <= 5); /* one batch's, and the copy */
    qr_stats stats;
    qr_scheduler_stats(s, &stats);
    assert_int_equal(stats.documents_waiting, 0);
    qr_scheduler_close(s);
    free_call(first);
    free_call(c);
    free_call(other);
}

static void *submit_many(void *arg)
{
    qr_scheduler *s = arg;
    for (uint32_t i = 0; i < 30; i++) {
        call *c = new_call(i, 1 + i * 7 % 40, 1 + i * 13 % 300);
        qr_scheduler_submit(s, &c->job);
        semaphore_wait(&c->done);
        check_results(c);
        free_call(c);
    }
    return NULL;
}

static void test_many_callers(void **state)
{
    (void) state;
    enum { N_THREADS = 16 };
    qr_scheduler *s = start(1);
    pthread_t threads[N_THREADS];
    for (size_t i = 0; i < N_THREADS; i++) assert_int_equal(pthread_create(&threads[i], NULL, submit_many, s), 0);
    for (size_t i = 0; i < N_THREADS; i++) pthread_join(threads[i], NULL);
    qr_scheduler_close(s);
}

/* Close waits for what was submitted. */
static void test_close_finishes_jobs(void **state)
{
    (void) state;
    qr_scheduler *s = start(1);
    call *calls[10];
    for (uint32_t i = 0; i < 10; i++) qr_scheduler_submit(s, &(calls[i] = new_call(i, 50, 30))->job);
    qr_scheduler_close(s);
    for (size_t i = 0; i < 10; i++) {
        assert_int_equal(calls[i]->done.value, 1);
        check_results(calls[i]);
        free_call(calls[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_short_job_overtakes_long_one), cmocka_unit_test(test_equal_shares),
        cmocka_unit_test(test_longer_than_a_batch),          cmocka_unit_test(test_alike_once),
        cmocka_unit_test(test_cancel_and_deadline),          cmocka_unit_test(test_failures_stay_apart),
        cmocka_unit_test(test_failed_documents_are_told),    cmocka_unit_test(test_many_callers),
        cmocka_unit_test(test_close_finishes_jobs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
